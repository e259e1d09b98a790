//! Shared by the protocol tests: options as bytes, and a server handshake that answers by itself.
#![allow(dead_code)] // each test takes its part

pub mod memory;

use std::sync::{Arc, LazyLock};

use memory::MemoryServer;
use qrbd_nbd::client::encode_option;
use qrbd_nbd::protocol::{self, option};
use qrbd_nbd::{Handshake, HandshakeError, Session, Step};

pub const FIXED_NO_ZEROES: u32 = 3;

pub fn counted(text: &str) -> Vec<u8> {
    [&(text.len() as u32).to_be_bytes()[..], text.as_bytes()].concat()
}

pub fn info_option(option: u32, name: &str, kinds: &[u16]) -> Vec<u8> {
    let mut data = counted(name);
    data.extend((kinds.len() as u16).to_be_bytes());
    kinds
        .iter()
        .for_each(|kind| data.extend(kind.to_be_bytes()));
    encode_option(option, &data)
}

pub fn meta_option(option: u32, name: &str, queries: &[&str]) -> Vec<u8> {
    let mut data = counted(name);
    data.extend((queries.len() as u32).to_be_bytes());
    queries.iter().for_each(|query| data.extend(counted(query)));
    encode_option(option, &data)
}

pub fn go(name: &str) -> Vec<u8> {
    info_option(option::GO, name, &[])
}

/// How a conversation ended.
#[derive(Debug)]
pub enum End {
    Open,
    Transmission(Box<Session>),
    Aborted,
    Failed(HandshakeError),
}

/// The memory is never touched here, so all conversations share it.
static SERVER: LazyLock<Arc<MemoryServer>> = LazyLock::new(|| MemoryServer::new(1 << 20));

/// A handshake answered by the memory server, fed in pieces.
pub struct Conversation {
    pub server: Arc<MemoryServer>,
    pub handshake: Handshake,
    pub output: Vec<u8>,
    pub end: End,
    /// Bytes that the handshake left for the transmission.
    pub left_over: Vec<u8>,
}

impl Conversation {
    pub fn new() -> Self {
        let mut handshake = Handshake::new();
        let greeting = handshake.take_output();
        assert_eq!(greeting.len(), protocol::GREETING_LENGTH);
        let (output, left_over) = (Vec::new(), Vec::new());
        Self {
            server: Arc::clone(&SERVER),
            handshake,
            output,
            end: End::Open,
            left_over,
        }
    }

    /// After the client's flags.
    pub fn fixed() -> Self {
        let mut conversation = Self::new();
        conversation.say(&FIXED_NO_ZEROES.to_be_bytes());
        conversation
    }

    /// Feeds bytes and returns what the server said to them.
    pub fn say(&mut self, bytes: &[u8]) -> Vec<u8> {
        let before = self.output.len();
        let mut input = bytes;
        while matches!(self.end, End::Open) {
            let step = self.handshake.advance(&mut input);
            self.output.extend(self.handshake.take_output());
            match step {
                Ok(Step::NeedInput) => {
                    assert!(input.is_empty(), "input is left although more is asked for");
                    assert!(self.handshake.wanted() > 0);
                    break;
                }
                Ok(Step::NeedAnswer) => unreachable!("every question is answered at once"),
                Ok(Step::Open(open)) => self
                    .handshake
                    .answer_open(self.server.open(&open.name, open.kind)),
                Ok(Step::List) => self.handshake.answer_list(Ok(self.server.list())),
                Ok(Step::Transmission(session)) => self.end = End::Transmission(Box::new(session)),
                Ok(Step::Aborted) => self.end = End::Aborted,
                Err(error) => self.end = End::Failed(error),
            }
        }
        self.left_over.extend(input);
        self.output[before..].to_vec()
    }

    pub fn session(self) -> Session {
        match self.end {
            End::Transmission(session) => *session,
            end => panic!("no transmission: {end:?}"),
        }
    }
}

/// One option reply, taken apart.
#[derive(Debug, PartialEq, Eq)]
pub struct OptionReply {
    pub option: u32,
    pub kind: u32,
    pub data: Vec<u8>,
}

pub fn option_replies(mut bytes: &[u8]) -> Vec<OptionReply> {
    let mut replies = Vec::new();
    while !bytes.is_empty() {
        let number = |at: usize| u32::from_be_bytes(bytes[at..at + 4].try_into().unwrap());
        assert_eq!(bytes[..8], protocol::OPTION_REPLY_MAGIC.to_be_bytes());
        let length = number(16) as usize;
        let data = bytes[20..20 + length].to_vec();
        replies.push(OptionReply {
            option: number(8),
            kind: number(12),
            data,
        });
        bytes = &bytes[20 + length..];
    }
    replies
}

pub fn kinds(bytes: &[u8]) -> Vec<u32> {
    option_replies(bytes)
        .into_iter()
        .map(|reply| reply.kind)
        .collect()
}
