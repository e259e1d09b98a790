//! The words of the state machines: role, disk, connection and replication state, with DRBD 9's names.
//!
//! Each enum lives in its own file together with its transition table; [`refusal`] holds the reasons for which a
//! requested change is turned down, with DRBD's texts and codes. This module decides nothing else.

mod connection;
mod disk;
pub mod refusal;
mod replication;
mod role;

pub use connection::ConnectionState;
pub use disk::DiskState;
pub use refusal::Refusal;
pub use replication::ReplicationState;
pub use role::Role;

/// Declares a fieldless state enum with its words.
macro_rules! state_words {
    ($(#[$meta:meta])* $name:ident { $($(#[$vmeta:meta])* $variant:ident),+ $(,)? }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Hash)]
        #[repr(u8)]
        pub enum $name { $($(#[$vmeta])* $variant),+ }
        impl $name {
            /// Every value in rank order.
            pub const ALL: &'static [$name] = &[$($name::$variant),+];
            /// DRBD's word for the state.
            #[must_use]
            pub fn word(self) -> &'static str {
                match self { $($name::$variant => stringify!($variant)),+ }
            }
            /// The state with rank `code`, as it stands on the wire.
            #[must_use]
            pub fn from_code(code: u8) -> Option<$name> {
                Self::ALL.get(usize::from(code)).copied()
            }
            /// Rank, as it stands on the wire.
            #[must_use]
            pub fn code(self) -> u8 {
                self as u8
            }
        }
        impl core::fmt::Display for $name {
            fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
                f.pad(self.word())
            }
        }
    };
}
pub(crate) use state_words;
