//! The role of a node for one resource.

use super::state_words;

state_words! {
    /// Role of a node for one resource.
    Role {
        /// Not known (a peer without a connection).
        Unknown,
        /// Serves the device to clients.
        Primary,
        /// Receives the Primary's writes.
        Secondary,
    }
}
