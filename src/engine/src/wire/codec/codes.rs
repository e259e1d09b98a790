//! The numbers of the words that stand in messages.
//!
//! A number is never given to another word. Role and disk state have theirs in [`crate::state`]; a word that no peer can say of
//! itself (role Unknown, disk DUnknown) is refused.

use crate::generation::Protocol;
use crate::split_brain::Policy;
use crate::state::{DiskState, Role};
use crate::wire::{GoodbyeReason, ReadOutcome, ResizeStage, ResyncOutcome};

/// A word with a number.
pub(super) trait WireCode: Copy + 'static {
    /// Its number.
    fn to_code(self) -> u8;
    /// The word with this number.
    fn from_code(code: u8) -> Option<Self>;
}

macro_rules! codes {
    ($name:ident { $($variant:ident = $code:literal,)* }) => {
        impl WireCode for $name {
            fn to_code(self) -> u8 {
                match self { $($name::$variant => $code,)* }
            }
            fn from_code(code: u8) -> Option<$name> {
                match code { $($code => Some($name::$variant),)* _ => None }
            }
        }
    };
}

codes! { Protocol { A = 0, B = 1, C = 2, } }
codes! { GoodbyeReason { Disconnect = 0, StandAlone = 1, Renegotiate = 2, ProtocolError = 3, } }
codes! { ResyncOutcome { Written = 0, Retry = 1, Failed = 2, } }
codes! { ResizeStage { Ask = 0, Offer = 1, Refuse = 2, Take = 3, Taken = 4, } }
codes! { ReadOutcome { Data = 0, Failed = 1, } }
codes! {
    Policy {
        Disconnect = 0,
        DiscardYoungerPrimary = 1,
        DiscardOlderPrimary = 2,
        DiscardZeroChanges = 3,
        DiscardLeastChanges = 4,
        DiscardLocal = 5,
        DiscardRemote = 6,
        DiscardSecondary = 7,
        Consensus = 8,
        ViolentlyAs0p = 9,
        CallPriLostAfterSb = 10,
    }
}

impl WireCode for Role {
    fn to_code(self) -> u8 {
        self.code()
    }
    fn from_code(code: u8) -> Option<Role> {
        Role::from_code(code).filter(|&role| role != Role::Unknown)
    }
}

impl WireCode for DiskState {
    fn to_code(self) -> u8 {
        self.code()
    }
    fn from_code(code: u8) -> Option<DiskState> {
        DiskState::from_code(code).filter(|&disk| disk != DiskState::DUnknown)
    }
}
