//! Bytes of generic netlink: requests out, answers in.
//!
//! Owns the layout of messages (`linux/netlink.h`, `linux/genetlink.h`): native byte order, everything aligned to four bytes. Answers are
//! bounds-checked; what is malformed ends an iteration instead of being guessed at. Does no I/O and knows no family.

/// `NLM_F_REQUEST | NLM_F_ACK`: what every request here is sent with.
const REQUEST_WITH_ACK: u16 = 0x01 | 0x04;
/// `NLMSG_ERROR`: an error number, 0 for "done".
const TYPE_ERROR: u16 = 2;
/// `NLMSG_DONE`.
const TYPE_DONE: u16 = 3;
/// The first type that is a family's.
const FIRST_FAMILY_TYPE: u16 = 0x10;
/// `NLA_F_NESTED`.
const NESTED: u16 = 1 << 15;
/// `NLA_TYPE_MASK`.
const TYPE_MASK: u16 = 0x3fff;
const HEADER: usize = 16;
const GENERIC_HEADER: usize = 4;
const ATTRIBUTE_HEADER: usize = 4;

fn aligned(length: usize) -> usize {
    length.next_multiple_of(4)
}

/// A request that is being written.
#[derive(Clone, Debug)]
pub struct Request {
    bytes: Vec<u8>,
}

impl Request {
    /// A request to `family` (its number as the message type); answered by the kernel with at least an acknowledgement.
    #[must_use]
    pub fn new(family: u16, sequence: u32, command: u8, version: u8) -> Request {
        let mut bytes = Vec::with_capacity(128);
        // The length comes last.
        bytes.extend_from_slice(&0u32.to_ne_bytes());
        bytes.extend_from_slice(&family.to_ne_bytes());
        bytes.extend_from_slice(&REQUEST_WITH_ACK.to_ne_bytes());
        bytes.extend_from_slice(&sequence.to_ne_bytes());
        // The sender's port: the kernel fills it in.
        bytes.extend_from_slice(&0u32.to_ne_bytes());
        bytes.extend_from_slice(&[command, version, 0, 0]);
        Request { bytes }
    }

    fn attribute(&mut self, kind: u16, payload: &[u8]) {
        let length = u16::try_from(ATTRIBUTE_HEADER + payload.len()).expect("a short attribute");
        self.bytes.extend_from_slice(&length.to_ne_bytes());
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.bytes.extend_from_slice(payload);
        self.bytes.resize(aligned(self.bytes.len()), 0);
    }

    /// A 32-bit number.
    pub fn u32(&mut self, kind: u16, value: u32) {
        self.attribute(kind, &value.to_ne_bytes());
    }

    /// A 64-bit number.
    pub fn u64(&mut self, kind: u16, value: u64) {
        self.attribute(kind, &value.to_ne_bytes());
    }

    /// A string, zero-terminated. At most a few hundred bytes without a zero.
    ///
    /// # Panics
    /// If it does not fit into an attribute.
    pub fn string(&mut self, kind: u16, value: &str) {
        let mut bytes = value.as_bytes().to_vec();
        bytes.push(0);
        self.attribute(kind, &bytes);
    }

    /// Attributes within an attribute.
    ///
    /// # Panics
    /// If they do not fit into one.
    pub fn nested(&mut self, kind: u16, inner: impl FnOnce(&mut Request)) {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(&0u16.to_ne_bytes());
        self.bytes.extend_from_slice(&(kind | NESTED).to_ne_bytes());
        inner(self);
        let length = u16::try_from(self.bytes.len() - start).expect("a short attribute");
        self.bytes[start..start + 2].copy_from_slice(&length.to_ne_bytes());
    }

    /// The bytes to send.
    #[must_use]
    pub fn finish(mut self) -> Vec<u8> {
        let length = u32::try_from(self.bytes.len()).expect("a short message");
        self.bytes[..4].copy_from_slice(&length.to_ne_bytes());
        self.bytes
    }
}

/// One message of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Message<'a> {
    /// The request with this number is done, or failed with an error number of the system (positive).
    Acknowledgement {
        /// Number of the request.
        sequence: u32,
        /// 0, or the error number.
        error: i32,
    },
    /// Something that a family says.
    Family {
        /// The family's number.
        family: u16,
        /// Number of the request that it answers; 0 for what nobody asked for.
        sequence: u32,
        /// The family's command.
        command: u8,
        /// The attributes.
        attributes: Attributes<'a>,
    },
}

/// The messages of one datagram. Ends at the first one that is malformed.
#[must_use]
pub fn messages(datagram: &[u8]) -> Messages<'_> {
    Messages { rest: datagram }
}

/// See [`messages`].
#[derive(Clone, Debug)]
pub struct Messages<'a> {
    rest: &'a [u8],
}

impl<'a> Iterator for Messages<'a> {
    type Item = Message<'a>;

    fn next(&mut self) -> Option<Message<'a>> {
        loop {
            let length = u32_at(self.rest, 0)? as usize;
            let kind = u16_at(self.rest, 4)?;
            let sequence = u32_at(self.rest, 8)?;
            let body = self.rest.get(HEADER..length)?;
            self.rest = self.rest.get(aligned(length)..).unwrap_or_default();
            match kind {
                TYPE_ERROR => {
                    let error = u32_at(body, 0)?.cast_signed().checked_neg()?;
                    return Some(Message::Acknowledgement { sequence, error });
                }
                TYPE_DONE => return None,
                family if family >= FIRST_FAMILY_TYPE => {
                    return Some(Message::Family {
                        family,
                        sequence,
                        command: *body.first()?,
                        attributes: Attributes {
                            rest: body.get(GENERIC_HEADER..)?,
                        },
                    });
                }
                _ => {}
            }
        }
    }
}

/// Attributes of a message or of another attribute: kind and payload. Ends at the first one that is malformed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attributes<'a> {
    rest: &'a [u8],
}

impl<'a> Attributes<'a> {
    /// The attributes within a payload.
    #[must_use]
    pub fn within(payload: &'a [u8]) -> Attributes<'a> {
        Attributes { rest: payload }
    }

    /// The payload of the first attribute of a kind.
    #[must_use]
    pub fn payload(self, kind: u16) -> Option<&'a [u8]> {
        let mut attributes = self;
        attributes.find_map(|(found, payload)| (found == kind).then_some(payload))
    }

    /// A 16-bit number.
    #[must_use]
    pub fn u16(self, kind: u16) -> Option<u16> {
        u16_at(self.payload(kind)?, 0)
    }

    /// A 32-bit number.
    #[must_use]
    pub fn u32(self, kind: u16) -> Option<u32> {
        u32_at(self.payload(kind)?, 0)
    }

    /// A byte.
    #[must_use]
    pub fn u8(self, kind: u16) -> Option<u8> {
        self.payload(kind)?.first().copied()
    }
}

impl<'a> Iterator for Attributes<'a> {
    type Item = (u16, &'a [u8]);

    fn next(&mut self) -> Option<(u16, &'a [u8])> {
        let length = usize::from(u16_at(self.rest, 0)?);
        let kind = u16_at(self.rest, 2)? & TYPE_MASK;
        let payload = self.rest.get(ATTRIBUTE_HEADER..length)?;
        self.rest = self.rest.get(aligned(length)..).unwrap_or_default();
        Some((kind, payload))
    }
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    let bytes = bytes.get(at..at + 2)?;
    Some(u16::from_ne_bytes(bytes.try_into().ok()?))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    let bytes = bytes.get(at..at + 4)?;
    Some(u32::from_ne_bytes(bytes.try_into().ok()?))
}

#[cfg(all(test, target_endian = "little"))]
mod tests {
    use super::*;

    #[test]
    fn a_request_has_its_length_its_flags_and_aligned_attributes() {
        let mut request = Request::new(0x1c, 7, 3, 1);
        request.u32(1, 5);
        request.string(2, "nbd1x");
        request.nested(7, |sockets| sockets.nested(1, |item| item.u32(1, 9)));
        let expected: Vec<u8> = [
            &[60, 0, 0, 0, 0x1c, 0, 5, 0, 7, 0, 0, 0, 0, 0, 0, 0][..],
            &[3, 1, 0, 0],
            &[8, 0, 1, 0, 5, 0, 0, 0],
            &[10, 0, 2, 0, b'n', b'b', b'd', b'1', b'x', 0, 0, 0],
            &[16, 0, 7, 0x80, 12, 0, 1, 0x80, 8, 0, 1, 0, 9, 0, 0, 0],
            &[][..],
        ]
        .concat();
        let mut expected = expected;
        expected[0] = expected.len() as u8;
        assert_eq!(request.finish(), expected);
    }

    #[test]
    fn an_answer_is_taken_apart_into_family_messages_and_acknowledgements() {
        let datagram: Vec<u8> = [
            &[28, 0, 0, 0, 0x10, 0, 0, 0, 7, 0, 0, 0, 0, 0, 0, 0][..],
            &[1, 2, 0, 0, 6, 0, 1, 0, 0x1c, 0, 0, 0],
            &[36, 0, 0, 0, 2, 0, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0],
            &[0xf0, 0xff, 0xff, 0xff, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
            &[0, 0, 0, 0],
        ]
        .concat();
        let found: Vec<Message<'_>> = messages(&datagram).collect();
        let [
            Message::Family {
                family: 0x10,
                sequence: 7,
                command: 1,
                attributes,
            },
            Message::Acknowledgement {
                sequence: 8,
                error: 16,
            },
        ] = found[..]
        else {
            panic!("{found:?}");
        };
        assert_eq!(attributes.u16(1), Some(0x1c));
        assert_eq!((attributes.u16(2), attributes.u32(1)), (None, None));
    }

    #[test]
    fn malformed_answers_end_without_a_guess() {
        let good = {
            let mut request = Request::new(0x1c, 1, 5, 1);
            request.nested(9, |list| list.u32(1, 2));
            request.finish()
        };
        for cut in 0..good.len() {
            assert_eq!(messages(&good[..cut]).count(), 0, "{cut} bytes");
        }
        for at in 0..good.len() {
            for value in [0, 1, 3, 0x7f, 0xff] {
                let mut bytes = good.clone();
                bytes[at] = value;
                for message in messages(&bytes) {
                    if let Message::Family { attributes, .. } = message {
                        attributes.for_each(|(_, payload)| {
                            assert!(Attributes::within(payload).count() <= payload.len());
                        });
                    }
                }
            }
        }
        // An error number that cannot be negated.
        let mut error = vec![20, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        error.extend_from_slice(&i32::MIN.to_ne_bytes());
        assert_eq!(messages(&error).count(), 0);
    }
}
