//! Messages go through their bytes, so that every run also tests the wire format.
//!
//! The text of a message may be cut on the way; everything else must come out as it went in.

use qrbd_engine::wire::codec::{decode, encode_head, payload_of};
use qrbd_engine::wire::message::Message;

use crate::stamps::Stamps;

/// The message as the receiver decodes it.
///
/// # Panics
/// If the codec refuses or changes what the engine sent.
#[must_use]
pub fn through_the_wire(message: &Message<Stamps>) -> Message<Stamps> {
    let head = encode_head(message);
    let payload = payload_of(message).cloned();
    let (lane, decoded) = decode(&head, payload).expect("what an engine sends is decodable");
    assert_eq!(lane, message.lane(), "lane of {message:?}");
    if !matches!(message, Message::Goodbye { .. }) {
        assert_eq!(&decoded, message, "a message changed on the wire");
    }
    decoded
}
