//! From the client's bytes to requests: headers, payloads into their buffers, refused payloads to nowhere.
//!
//! Does no I/O. The session feeds it from its read buffer; the rest of a large payload is read straight into the payload's
//! buffer ([`Intake::direct`]), and around large payloads only a header is read ahead, so that hardly any of the next
//! payload has to be copied.
//!
//! Invariants: any split of the bytes gives the same events; between a header and the session's decision about it no byte
//! is consumed; what the session could not take yet is kept ([`Intake::keep`]) and comes first.

use qrbd_disk::BufferMut;
use qrbd_nbd::protocol::REQUEST_LENGTH;
use qrbd_nbd::{Answer, Received, Request, Session, TransmissionError};

/// Payloads of at least this many bytes are worth a read of their own.
const DIRECT_BYTES: usize = 32 << 10;

/// What the bytes amount to.
#[derive(Debug)]
pub enum Event {
    /// All is consumed.
    NeedInput,
    /// A header, which the session takes with `begin_payload`, `begin_drain`, or by doing nothing.
    Header(Received),
    /// A write with all its bytes.
    Payload(Request, BufferMut),
    /// The payload of a refused write is gone.
    Drained(Answer),
}

enum Stage {
    Header,
    Payload {
        request: Request,
        buffer: BufferMut,
        filled: usize,
    },
    Drain {
        answer: Answer,
        remaining: usize,
    },
}

pub struct Intake {
    stage: Stage,
    header: [u8; REQUEST_LENGTH],
    header_filled: usize,
    /// The current payload is a large one, or the last request had one; then the next probably has, too.
    large: bool,
    kept: Vec<u8>,
}

impl Intake {
    pub fn new() -> Self {
        Self {
            stage: Stage::Header,
            header: [0; REQUEST_LENGTH],
            header_filled: 0,
            large: false,
            kept: Vec::new(),
        }
    }

    /// No request is half here.
    pub fn is_between_requests(&self) -> bool {
        matches!(self.stage, Stage::Header) && self.header_filled == 0
    }

    /// Bytes to be fed before anything else that was read.
    pub fn take_kept(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.kept)
    }

    pub fn has_kept(&self) -> bool {
        !self.kept.is_empty()
    }

    /// Keeps what was read and cannot be consumed now.
    pub fn keep(&mut self, input: &[u8]) {
        debug_assert!(self.kept.is_empty(), "kept bytes are fed first");
        self.kept.extend_from_slice(input);
    }

    /// How many bytes the next read should ask for, at most `available`.
    pub fn read_ahead(&self, available: usize) -> usize {
        match self.stage {
            Stage::Header if self.large => REQUEST_LENGTH - self.header_filled,
            _ => available,
        }
    }

    /// Bytes that are missing to the end of the current piece: what may be read without touching the next request.
    pub fn missing(&self) -> usize {
        match &self.stage {
            Stage::Header => REQUEST_LENGTH - self.header_filled,
            Stage::Payload { buffer, filled, .. } => buffer.len() - filled,
            Stage::Drain { remaining, .. } => *remaining,
        }
    }

    /// Where the rest of a large payload belongs.
    pub fn direct(&mut self) -> Option<&mut [u8]> {
        match &mut self.stage {
            Stage::Payload { buffer, filled, .. } if self.large && *filled < buffer.len() => {
                Some(&mut buffer.as_mut_slice()[*filled..])
            }
            _ => None,
        }
    }

    /// `count` bytes were read into [`Intake::direct`]; feed nothing to get the event.
    pub fn advance_direct(&mut self, count: usize) {
        let Stage::Payload { filled, .. } = &mut self.stage else {
            unreachable!("only a payload is read directly");
        };
        *filled += count;
    }

    /// Collects the payload of a write.
    pub fn begin_payload(&mut self, request: Request, buffer: BufferMut) {
        debug_assert_eq!(buffer.len(), request.payload_length() as usize);
        self.large = buffer.len() >= DIRECT_BYTES;
        self.stage = Stage::Payload {
            request,
            buffer,
            filled: 0,
        };
    }

    /// Drops the payload of a refused request.
    pub fn begin_drain(&mut self, answer: Answer) {
        self.stage = Stage::Drain {
            answer,
            remaining: answer.drain as usize,
        };
    }

    /// Consumes from `input` up to the next event.
    ///
    /// # Errors
    /// The stream is out of step; the connection must be closed.
    pub fn next(
        &mut self,
        input: &mut &[u8],
        session: &Session,
    ) -> Result<Event, TransmissionError> {
        match &mut self.stage {
            Stage::Header => {
                let taken = move_bytes(input, &mut self.header[self.header_filled..]);
                self.header_filled += taken;
                if self.header_filled < REQUEST_LENGTH {
                    return Ok(Event::NeedInput);
                }
                self.header_filled = 0;
                self.large = false;
                Ok(Event::Header(session.check(&self.header)?))
            }
            Stage::Payload { buffer, filled, .. } => {
                *filled += move_bytes(input, &mut buffer.as_mut_slice()[*filled..]);
                if *filled < buffer.len() {
                    return Ok(Event::NeedInput);
                }
                let Stage::Payload {
                    request, buffer, ..
                } = std::mem::replace(&mut self.stage, Stage::Header)
                else {
                    unreachable!("matched above");
                };
                Ok(Event::Payload(request, buffer))
            }
            Stage::Drain { answer, remaining } => {
                let taken = (*remaining).min(input.len());
                *input = &input[taken..];
                *remaining -= taken;
                if *remaining > 0 {
                    return Ok(Event::NeedInput);
                }
                let answer = *answer;
                self.stage = Stage::Header;
                Ok(Event::Drained(answer))
            }
        }
    }
}

fn move_bytes(input: &mut &[u8], target: &mut [u8]) -> usize {
    let count = input.len().min(target.len());
    let (taken, rest) = input.split_at(count);
    target[..count].copy_from_slice(taken);
    *input = rest;
    count
}
