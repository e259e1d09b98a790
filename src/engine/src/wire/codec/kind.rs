//! The numbers of the messages on the wire.
//!
//! Invariants: a number is never given to another message, not even after the message is gone; the upper three bits tell the
//! lane (number / 32 = code of the lane + 1), so each lane has room for 32 kinds and 0 is none.

use core::fmt;

use crate::wire::{Lane, Message};

macro_rules! kinds {
    ($($variant:ident = $code:literal,)*) => {
        /// Kind of a message, one for each variant of [`Message`].
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Hash)]
        #[repr(u8)]
        pub enum MessageKind {
            $(#[doc = concat!("[`Message::", stringify!($variant), "`]")] $variant = $code,)*
        }

        impl MessageKind {
            /// Every kind, in the order of the numbers.
            pub const ALL: &'static [MessageKind] = &[$(MessageKind::$variant),*];

            /// Kind of a message.
            #[must_use]
            pub fn of<P>(message: &Message<P>) -> MessageKind {
                match message { $(Message::$variant { .. } => MessageKind::$variant,)* }
            }

            /// Name of the variant.
            #[must_use]
            pub fn word(self) -> &'static str {
                match self { $(MessageKind::$variant => stringify!($variant),)* }
            }

            /// The kind with this number.
            #[must_use]
            pub fn from_code(code: u8) -> Option<MessageKind> {
                match code { $($code => Some(MessageKind::$variant),)* _ => None }
            }
        }
    };
}

kinds! {
    Write = 0x20,
    Discard = 0x21,
    WriteZeroes = 0x22,
    Barrier = 0x23,
    ReadRequest = 0x24,
    DiskLost = 0x25,
    DiskBack = 0x26,

    Received = 0x40,
    Written = 0x41,
    Failed = 0x42,
    BarrierAck = 0x43,
    ResyncAck = 0x44,
    ResyncFlushed = 0x45,
    ResyncFinished = 0x46,

    Hello = 0x60,
    Again = 0x61,
    VolumeReady = 0x62,
    PeerState = 0x63,
    Ping = 0x64,
    Pong = 0x65,
    PromoteRequest = 0x66,
    PromoteReply = 0x67,
    Goodbye = 0x68,
    ResyncPause = 0x69,
    SkipInitialSync = 0x6a,
    SkipInitialSyncDone = 0x6b,
    InvalidateRequest = 0x6c,
    MissesTracked = 0x6d,
    BitmapRuns = 0x6e,
    ResyncBegin = 0x6f,
    ResyncReady = 0x70,
    BitmapTaken = 0x71,
    Resize = 0x72,
    OutdateRequest = 0x73,
    ResyncWaits = 0x74,
    InvalidateQuestion = 0x75,
    InvalidateAnswer = 0x76,

    ResyncData = 0x83,
    ResyncZeroes = 0x84,
    ResyncFlush = 0x85,
    ResyncFinish = 0x86,
    ReadReply = 0x87,
}

impl MessageKind {
    /// The number on the wire.
    #[must_use]
    pub fn code(self) -> u8 {
        self as u8
    }

    /// The lane that messages of this kind travel on.
    #[must_use]
    pub fn lane(self) -> Lane {
        Lane::ALL[usize::from(self.code() / 32) - 1]
    }

    /// True if a payload follows, or may follow, the body.
    #[must_use]
    pub fn carries_payload(self) -> bool {
        matches!(
            self,
            MessageKind::Write | MessageKind::ResyncData | MessageKind::ReadReply
        )
    }
}

impl fmt::Display for MessageKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.word())
    }
}
