//! Messages of the mutual proof, and what the proof covers. No I/O: `handshake` moves the bytes.
//!
//! All integers are little-endian. Each message is a header of 8 bytes and its fields, at most
//! [`MAX_PROOF_MESSAGE_BYTES`] together; a message that is longer or shorter than its fields is refused.
//!
//! A proof is HMAC-SHA256 under the shared key over the prover's role, 32 bytes of TLS exporter keying material and both
//! hellos word for word. The exporter binds it to this one TLS session (RFC 8446 section 7.5), the role keeps one side's
//! proof from being returned as the other's, the hellos bring versions, resource, both node ids and both nonces.

use ring::hmac;

use crate::ids::{NodeId, ProtocolVersion, VersionRange};
use crate::key::SharedKey;
use crate::limits::{MAX_PROOF_MESSAGE_BYTES, MAX_RESOURCE_NAME_BYTES};

pub(crate) const MAGIC: [u8; 4] = *b"QRBD";
/// Format of the proof itself; the range of protocol versions is negotiated inside it.
pub(crate) const FORMAT: u8 = 1;
pub(crate) const HEADER_BYTES: usize = 8;
pub(crate) const EXPORTER_BYTES: usize = 32;
/// Label of the exporter (RFC 8446 section 7.5).
pub(crate) const EXPORTER_LABEL: &[u8] = b"EXPORTER-qrbd-proof-1";

const HELLO_FIXED_BYTES: usize = 64;
const NONCE_BYTES: usize = 32;
const MAC_BYTES: usize = 32;

const _: () = assert!(HELLO_FIXED_BYTES + MAX_RESOURCE_NAME_BYTES <= MAX_PROOF_MESSAGE_BYTES);

/// Which end of the connection a node is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Role {
    Dialer,
    Acceptor,
}

impl Role {
    const fn label(self) -> &'static [u8] {
        match self {
            Self::Dialer => b"qrbd proof 1 dialer\0",
            Self::Acceptor => b"qrbd proof 1 acceptor\0",
        }
    }
}

/// The first message of each side.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Hello {
    pub(crate) versions: VersionRange,
    /// Who sends this.
    pub(crate) node: NodeId,
    /// Whom the sender means to talk to.
    pub(crate) peer: NodeId,
    /// Random number of the sender's process.
    pub(crate) instance: u64,
    /// Number of the last session with this peer that the sender learned of; 0 if none.
    pub(crate) last_decision: u64,
    pub(crate) nonce: [u8; NONCE_BYTES],
    pub(crate) resource: String,
}

/// One message of the proof.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Message {
    Hello(Hello),
    Proof([u8; MAC_BYTES]),
    /// The dialer found the acceptor's proof right.
    Verified,
    /// The node with the lower id takes this connection as the session.
    Start {
        decision: u64,
    },
}

/// Why bytes are not a message of the proof.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub(crate) enum ProofError {
    #[error("it does not begin with QRBD")]
    Magic,
    #[error("format {0} of the proof is not known")]
    Format(u8),
    #[error("message type {0} is not known")]
    Type(u8),
    #[error("a message of {0} bytes does not fit its type")]
    Length(usize),
    #[error("the version range is empty")]
    Versions,
    #[error("the resource name is empty, not UTF-8, or has control characters")]
    ResourceName,
}

/// Whether `name` can be a resource name on the wire.
pub(crate) fn is_resource_name(name: &str) -> bool {
    !name.is_empty() && name.len() <= MAX_RESOURCE_NAME_BYTES && !name.chars().any(char::is_control)
}

/// Length of the whole message that `header` begins.
pub(crate) fn message_length(header: [u8; HEADER_BYTES]) -> Result<usize, ProofError> {
    if header[..4] != MAGIC {
        return Err(ProofError::Magic);
    }
    if header[4] != FORMAT {
        return Err(ProofError::Format(header[4]));
    }
    let length = usize::from(u16::from_le_bytes([header[6], header[7]]));
    if !(HEADER_BYTES..=MAX_PROOF_MESSAGE_BYTES).contains(&length) {
        return Err(ProofError::Length(length));
    }
    Ok(length)
}

impl Message {
    const HELLO: u8 = 1;
    const PROOF: u8 = 2;
    const VERIFIED: u8 = 3;
    const START: u8 = 4;

    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(MAX_PROOF_MESSAGE_BYTES);
        bytes.extend_from_slice(&MAGIC);
        bytes.push(FORMAT);
        bytes.push(match self {
            Self::Hello(_) => Self::HELLO,
            Self::Proof(_) => Self::PROOF,
            Self::Verified => Self::VERIFIED,
            Self::Start { .. } => Self::START,
        });
        bytes.extend_from_slice(&[0; 2]);
        match self {
            Self::Hello(hello) => {
                assert!(is_resource_name(&hello.resource));
                bytes.extend_from_slice(&hello.versions.min.0.to_le_bytes());
                bytes.extend_from_slice(&hello.versions.max.0.to_le_bytes());
                bytes.push(hello.node.0);
                bytes.push(hello.peer.0);
                bytes.extend_from_slice(&(hello.resource.len() as u16).to_le_bytes());
                bytes.extend_from_slice(&hello.instance.to_le_bytes());
                bytes.extend_from_slice(&hello.last_decision.to_le_bytes());
                bytes.extend_from_slice(&hello.nonce);
                assert_eq!(bytes.len(), HELLO_FIXED_BYTES);
                bytes.extend_from_slice(hello.resource.as_bytes());
            }
            Self::Proof(mac) => bytes.extend_from_slice(mac),
            Self::Verified => {}
            Self::Start { decision } => bytes.extend_from_slice(&decision.to_le_bytes()),
        }
        let length = bytes.len() as u16;
        bytes[6..8].copy_from_slice(&length.to_le_bytes());
        bytes
    }

    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, ProofError> {
        let (header, fields) = bytes
            .split_first_chunk()
            .ok_or(ProofError::Length(bytes.len()))?;
        let wrong_length = ProofError::Length(bytes.len());
        if message_length(*header)? != bytes.len() {
            return Err(wrong_length);
        }
        match header[5] {
            Self::HELLO => decode_hello(fields).map(Self::Hello),
            Self::PROOF => fields.try_into().map(Self::Proof).map_err(|_| wrong_length),
            Self::VERIFIED if fields.is_empty() => Ok(Self::Verified),
            Self::VERIFIED => Err(wrong_length),
            Self::START => {
                let decision = u64::from_le_bytes(fields.try_into().map_err(|_| wrong_length)?);
                Ok(Self::Start { decision })
            }
            other => Err(ProofError::Type(other)),
        }
    }
}

fn decode_hello(fields: &[u8]) -> Result<Hello, ProofError> {
    let wrong_length = ProofError::Length(HEADER_BYTES + fields.len());
    let (fixed, resource) = fields
        .split_first_chunk::<{ HELLO_FIXED_BYTES - HEADER_BYTES }>()
        .ok_or(wrong_length)?;
    let u16_at = |at: usize| u16::from_le_bytes([fixed[at], fixed[at + 1]]);
    let u64_at = |at: usize| u64::from_le_bytes(fixed[at..at + 8].try_into().expect("8 bytes"));
    let (min, max) = (ProtocolVersion(u16_at(0)), ProtocolVersion(u16_at(2)));
    if min > max {
        return Err(ProofError::Versions);
    }
    if usize::from(u16_at(6)) != resource.len() {
        return Err(wrong_length);
    }
    let resource = std::str::from_utf8(resource).map_err(|_| ProofError::ResourceName)?;
    if !is_resource_name(resource) {
        return Err(ProofError::ResourceName);
    }
    Ok(Hello {
        versions: VersionRange { min, max },
        node: NodeId(fixed[4]),
        peer: NodeId(fixed[5]),
        instance: u64_at(8),
        last_decision: u64_at(16),
        nonce: fixed[24..].try_into().expect("32 bytes"),
        resource: resource.to_owned(),
    })
}

/// What both sides prove to know the key over.
pub(crate) struct Transcript {
    exporter: [u8; EXPORTER_BYTES],
    dialer_hello: Vec<u8>,
    acceptor_hello: Vec<u8>,
}

impl Transcript {
    /// Of the session's exporter and both hellos as they went over the wire.
    pub(crate) fn new(
        exporter: [u8; EXPORTER_BYTES],
        dialer_hello: Vec<u8>,
        acceptor_hello: Vec<u8>,
    ) -> Self {
        Self {
            exporter,
            dialer_hello,
            acceptor_hello,
        }
    }

    fn covered(&self, prover: Role) -> Vec<u8> {
        // Unambiguous: the label ends in a zero byte, the exporter has one length, each hello begins with its own.
        [
            prover.label(),
            &self.exporter,
            &self.dialer_hello,
            &self.acceptor_hello,
        ]
        .concat()
    }

    /// The proof of `prover`.
    pub(crate) fn prove(&self, prover: Role, key: &SharedKey) -> [u8; MAC_BYTES] {
        let tag = hmac::sign(key.hmac(), &self.covered(prover));
        tag.as_ref().try_into().expect("HMAC-SHA256 has 32 bytes")
    }

    /// Whether `mac` is the proof of `prover`; takes the same time wherever it differs.
    pub(crate) fn verify(&self, prover: Role, key: &SharedKey, mac: &[u8; MAC_BYTES]) -> bool {
        hmac::verify(key.hmac(), &self.covered(prover), mac).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hello() -> Hello {
        Hello {
            versions: VersionRange::new(1, 3),
            node: NodeId(2),
            peer: NodeId(5),
            instance: 0x1122_3344_5566_7788,
            last_decision: 9,
            nonce: [0xaa; NONCE_BYTES],
            resource: "r0".into(),
        }
    }

    fn messages() -> Vec<Message> {
        vec![
            Message::Hello(hello()),
            Message::Proof([0x55; MAC_BYTES]),
            Message::Verified,
            Message::Start { decision: 7 },
        ]
    }

    #[test]
    fn hello_has_its_documented_bytes() {
        let mut golden = Vec::new();
        golden.extend_from_slice(b"QRBD"); // magic
        golden.extend_from_slice(&[1, 1]); // format, type
        golden.extend_from_slice(&[66, 0]); // length
        golden.extend_from_slice(&[1, 0, 3, 0]); // versions
        golden.extend_from_slice(&[2, 5]); // node, peer
        golden.extend_from_slice(&[2, 0]); // length of the name
        golden.extend_from_slice(&[0x88, 0x77, 0x66, 0x55, 0x44, 0x33, 0x22, 0x11]); // instance
        golden.extend_from_slice(&[9, 0, 0, 0, 0, 0, 0, 0]); // last decision
        golden.extend_from_slice(&[0xaa; 32]); // nonce
        golden.extend_from_slice(b"r0");
        assert_eq!(Message::Hello(hello()).encode(), golden);
        assert_eq!(
            Message::Start { decision: 7 }.encode(),
            b"QRBD\x01\x04\x10\x00\x07\0\0\0\0\0\0\0"
        );
        assert_eq!(Message::Verified.encode(), b"QRBD\x01\x03\x08\x00");
        assert_eq!(
            Message::Proof([0x55; 32]).encode()[..9],
            *b"QRBD\x01\x02\x28\x00\x55"
        );
    }

    #[test]
    fn every_message_comes_back_and_every_prefix_and_extension_of_it_fails() {
        for message in messages() {
            let bytes = message.encode();
            assert_eq!(Message::decode(&bytes).unwrap(), message);
            for length in 0..bytes.len() {
                assert!(
                    Message::decode(&bytes[..length]).is_err(),
                    "{message:?} cut to {length}"
                );
                // The same with a length field that agrees.
                let mut cut = bytes[..length].to_vec();
                if length >= HEADER_BYTES {
                    cut[6..8].copy_from_slice(&(length as u16).to_le_bytes());
                    assert!(
                        Message::decode(&cut).is_err(),
                        "{message:?} shortened to {length}"
                    );
                }
            }
            let mut longer = bytes.clone();
            longer.push(0);
            assert!(Message::decode(&longer).is_err());
            let length = longer.len() as u16;
            longer[6..8].copy_from_slice(&length.to_le_bytes());
            assert!(Message::decode(&longer).is_err(), "{message:?} lengthened");
        }
    }

    #[test]
    fn any_changed_byte_of_any_message_decodes_or_fails_without_panic() {
        for message in messages() {
            let bytes = message.encode();
            for at in 0..bytes.len() {
                for value in 0..=255 {
                    let mut changed = bytes.clone();
                    changed[at] = value;
                    if let Ok(decoded) = Message::decode(&changed) {
                        assert_eq!(decoded.encode(), changed);
                    }
                }
            }
        }
    }

    #[test]
    fn a_proof_holds_for_one_role_one_session_one_key_and_these_hellos_only() {
        let key = SharedKey::from_secret("one").unwrap();
        let transcript = |exporter: u8, dialer: &[u8], acceptor: &[u8]| {
            Transcript::new([exporter; 32], dialer.into(), acceptor.into())
        };
        let one = transcript(1, b"dialer", b"acceptor");
        let mac = one.prove(Role::Dialer, &key);
        assert!(one.verify(Role::Dialer, &key, &mac));
        assert!(!one.verify(Role::Acceptor, &key, &mac), "reflected");
        assert!(
            !one.verify(Role::Dialer, &SharedKey::from_secret("two").unwrap(), &mac),
            "other key"
        );
        assert!(
            !transcript(2, b"dialer", b"acceptor").verify(Role::Dialer, &key, &mac),
            "other session"
        );
        assert!(
            !transcript(1, b"dialez", b"acceptor").verify(Role::Dialer, &key, &mac),
            "other dialer hello"
        );
        assert!(
            !transcript(1, b"dialer", b"acceptoz").verify(Role::Dialer, &key, &mac),
            "other acceptor hello"
        );
    }
}
