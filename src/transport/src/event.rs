//! What the owner is told, and the words for why.

use std::borrow::Cow;
use std::fmt;
use std::net::SocketAddr;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use quinn::{ConnectionError, VarInt};
use tokio::sync::mpsc;

use crate::budget::Credit;
use crate::ids::{NodeId, ProtocolVersion, SessionId, VersionRange};
use crate::lane::Lane;
use crate::limits::MAX_CLOSE_TEXT_BYTES;
use crate::session::Session;

/// Something that happened on an endpoint. `P` is the owner's payload type.
#[derive(Debug)]
pub enum Event<P> {
    /// A session with `peer` begins. A session of the same peer that was up before has been reported lost before this.
    Connected {
        /// Whose proof was verified.
        peer: NodeId,
        /// Number of the session in this endpoint.
        session: SessionId,
        /// To send, to watch, to close.
        handle: Session,
        /// Whether this node dialed.
        dialed_by_us: bool,
        /// Where the peer's packets come from.
        remote: SocketAddr,
        /// The newest version that both nodes speak.
        version: ProtocolVersion,
    },
    /// A frame arrived.
    Frame {
        /// From whom.
        peer: NodeId,
        /// On which session.
        session: SessionId,
        /// On which lane; frames of one lane come in the order they were sent.
        lane: Lane,
        /// Header and body.
        head: Bytes,
        /// Payload, unless its length is 0.
        payload: Option<P>,
        /// What the frame takes of the lane's budget: drop it when the payload's memory is released.
        credit: Credit,
    },
    /// The session is over. Nothing of it follows.
    Lost {
        /// With whom it was.
        peer: NodeId,
        /// Which one.
        session: SessionId,
        /// Why.
        reason: LossReason,
    },
    /// A connection that came in was turned away, or turned us away, before it was a session.
    /// Reported at a bounded rate (see [`limits`](crate::limits)).
    Refused {
        /// Where it came from.
        remote: SocketAddr,
        /// Why.
        reason: RefusalReason,
    },
    /// A connection to `peer` could not be made. The next attempt follows after the connect interval.
    DialFailed {
        /// Whom we dialed.
        peer: NodeId,
        /// Why it failed.
        reason: RefusalReason,
    },
}

/// The events of an endpoint, in order. Bounded by the lanes' budgets: an owner that does not release frames slows its peer.
#[derive(Debug)]
pub struct Events<P>(pub(crate) mpsc::UnboundedReceiver<Event<P>>);

impl<P> Events<P> {
    /// The next event; `None` after the endpoint was shut down.
    pub async fn recv(&mut self) -> Option<Event<P>> {
        self.0.recv().await
    }

    /// The next event if there is one.
    pub fn try_recv(&mut self) -> Option<Event<P>> {
        self.0.try_recv().ok()
    }

    /// The next event, for owners that poll by hand.
    pub fn poll_recv(&mut self, context: &mut Context<'_>) -> Poll<Option<Event<P>>> {
        self.0.poll_recv(context)
    }
}

/// Why a session ended.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LossReason {
    /// [`Session::close`] was called here.
    #[error("closed here: {0}")]
    Closed(String),
    /// The peer closed it.
    #[error("closed by the peer: {code}{}", Detail(.text))]
    ClosedByPeer {
        /// What the peer gives as reason.
        code: CloseCode,
        /// The peer's text, cleaned; may be empty.
        text: String,
    },
    /// Nothing was heard for the idle timeout.
    #[error("nothing heard from the peer for {}.{:03} s", .0.as_secs(), .0.subsec_millis())]
    TimedOut(Duration),
    /// The peer's process does not know the session any more.
    #[error(
        "the peer does not know the session any more: it was restarted, or had given the session up"
    )]
    Reset,
    /// The peer came back as a new process.
    #[error("the peer was restarted and has connected anew")]
    PeerRestarted,
    /// The same process of the peer connected anew, because it had lost this session.
    #[error("the peer had lost this session and has connected anew")]
    Replaced,
    /// The peer sent what this protocol does not allow.
    #[error("protocol violation by the peer: {0}")]
    ProtocolViolation(Cow<'static, str>),
    /// The peer was removed from the endpoint.
    #[error("the peer was removed from the configuration")]
    PeerRemoved,
    /// The endpoint was shut down.
    #[error("this endpoint was shut down")]
    ShutDown,
    /// QUIC itself failed.
    #[error("QUIC failed: {0}")]
    Transport(String),
}

/// Why a connection did not become a session.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RefusalReason {
    /// The peer's proof does not match ours.
    #[error(
        "wrong key: node {0} does not prove the key that is configured here for it (another key file or shared-secret, or someone in between)"
    )]
    WrongKey(NodeId),
    /// No such node is configured here.
    #[error("unknown node: no peer with node-id {0} is configured here, or it is StandAlone")]
    UnknownNode(NodeId),
    /// The dialer meant another node than the one it reached.
    #[error(
        "wrong node: the dialer expects node-id {expected} at this address, but it is node-id {found}"
    )]
    WrongNode {
        /// Whom the dialer wants.
        expected: NodeId,
        /// Whom it reached.
        found: NodeId,
    },
    /// The peer serves another resource at this address.
    #[error("other resource: {ours:?} here, {theirs:?} there")]
    OtherResource {
        /// Of this endpoint.
        ours: String,
        /// Of the other.
        theirs: String,
    },
    /// The version ranges do not meet.
    #[error("no common protocol version: {ours} here, {theirs} there")]
    NoCommonVersion {
        /// Spoken here.
        ours: VersionRange,
        /// Spoken there.
        theirs: VersionRange,
    },
    /// The other side broke the rules of the proof.
    #[error("malformed proof: {0}")]
    Malformed(Cow<'static, str>),
    /// The handshake took too long or did not begin.
    #[error("no answer within {} s", .0.as_secs())]
    TimedOut(Duration),
    /// The other side speaks QUIC, but not with us; or the packets cannot be sent.
    #[error("QUIC failed: {0}")]
    Transport(String),
    /// The other side refused, and told why.
    #[error("refused by the peer: {0}")]
    ByPeer(CloseCode),
    /// Another connection serves this pair of nodes. Never reported; the dialer finds the session up or tries again.
    #[error("another connection of the same two nodes is in use")]
    Superseded,
}

/// Reasons as they cross the wire, in the error code of QUIC's CONNECTION_CLOSE.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum CloseCode {
    /// The owner closed the session.
    Closed,
    /// The proof of the shared key did not match.
    WrongKey,
    /// The dialer's node id is not configured.
    UnknownNode,
    /// The dialer's resource is another one.
    OtherResource,
    /// The version ranges do not meet.
    NoCommonVersion,
    /// The proof was malformed.
    MalformedProof,
    /// The handshake took too long.
    HandshakeTimedOut,
    /// Another connection of the same two processes is in use.
    Duplicate,
    /// A newer connection took the place of this one.
    Replaced,
    /// A lane broke its rules.
    ProtocolViolation,
    /// The endpoint was shut down.
    ShutDown,
    /// The dialer gave the attempt up.
    Abandoned,
    /// The peer is not configured any more.
    PeerRemoved,
    /// The dialer reached another node than it meant.
    WrongNode,
    /// A number that this version does not know.
    Other(u64),
}

const CODES: [CloseCode; 14] = [
    CloseCode::Closed,
    CloseCode::WrongKey,
    CloseCode::UnknownNode,
    CloseCode::OtherResource,
    CloseCode::NoCommonVersion,
    CloseCode::MalformedProof,
    CloseCode::HandshakeTimedOut,
    CloseCode::Duplicate,
    CloseCode::Replaced,
    CloseCode::ProtocolViolation,
    CloseCode::ShutDown,
    CloseCode::Abandoned,
    CloseCode::PeerRemoved,
    CloseCode::WrongNode,
];

impl CloseCode {
    pub(crate) fn wire(self) -> VarInt {
        match self {
            Self::Other(code) => VarInt::from_u64(code).unwrap_or(VarInt::MAX),
            known => {
                let index = CODES
                    .iter()
                    .position(|&code| code == known)
                    .expect("every code is listed");
                VarInt::from_u32(index as u32)
            }
        }
    }

    pub(crate) fn from_wire(code: VarInt) -> Self {
        let code = code.into_inner();
        usize::try_from(code)
            .ok()
            .and_then(|index| CODES.get(index).copied())
            .unwrap_or(Self::Other(code))
    }
}

impl fmt::Display for CloseCode {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Closed => "closed on request",
            Self::WrongKey => "wrong key",
            Self::UnknownNode => "it does not know our node-id, or is StandAlone",
            Self::OtherResource => "it serves another resource",
            Self::NoCommonVersion => "no common protocol version",
            Self::MalformedProof => "malformed proof",
            Self::HandshakeTimedOut => "handshake timed out",
            Self::Duplicate => "another connection is in use",
            Self::Replaced => "replaced by a newer connection",
            Self::ProtocolViolation => "protocol violation",
            Self::ShutDown => "it was shut down",
            Self::Abandoned => "attempt abandoned",
            Self::PeerRemoved => "this node is not configured there any more",
            Self::WrongNode => "the dialed address belongs to another node-id",
            Self::Other(code) => return write!(formatter, "unknown reason {code}"),
        })
    }
}

impl RefusalReason {
    /// What the other side is told.
    pub(crate) fn code(&self) -> CloseCode {
        match self {
            Self::WrongKey(_) => CloseCode::WrongKey,
            Self::UnknownNode(_) => CloseCode::UnknownNode,
            Self::WrongNode { .. } => CloseCode::WrongNode,
            Self::OtherResource { .. } => CloseCode::OtherResource,
            Self::NoCommonVersion { .. } => CloseCode::NoCommonVersion,
            Self::Malformed(_) => CloseCode::MalformedProof,
            Self::TimedOut(_) => CloseCode::HandshakeTimedOut,
            Self::Superseded => CloseCode::Duplicate,
            // The connection is gone already; the code reaches nobody.
            Self::Transport(_) | Self::ByPeer(_) => CloseCode::Abandoned,
        }
    }

    /// Whether the owner is told of a connection that came in and failed so. `connected`: the same node has a session; what else it dialed
    /// while the network was away, and did not finish, tells nothing then.
    pub(crate) fn is_news(&self, connected: bool) -> bool {
        match self {
            Self::Superseded => false,
            Self::TimedOut(_) => !connected,
            _ => true,
        }
    }

    /// Why a connection ended that was not a session yet. The other side's text is not used: it is not proved.
    pub(crate) fn of_connection(error: &ConnectionError, timeout: Duration) -> Self {
        match error {
            ConnectionError::ApplicationClosed(close) => {
                match CloseCode::from_wire(close.error_code) {
                    CloseCode::Duplicate | CloseCode::Abandoned => Self::Superseded,
                    code => Self::ByPeer(code),
                }
            }
            ConnectionError::TimedOut => Self::TimedOut(timeout),
            other => Self::Transport(clean(other.to_string().as_bytes())),
        }
    }
}

impl LossReason {
    /// Why a session's connection ended, as QUIC saw it.
    pub(crate) fn of_connection(error: &ConnectionError, idle_timeout: Duration) -> Self {
        match error {
            ConnectionError::ApplicationClosed(close) => Self::ClosedByPeer {
                code: CloseCode::from_wire(close.error_code),
                text: clean(&close.reason),
            },
            ConnectionError::TimedOut => Self::TimedOut(idle_timeout),
            ConnectionError::Reset => Self::Reset,
            other => Self::Transport(clean(other.to_string().as_bytes())),
        }
    }
}

/// Text from outside, fit for a log line.
fn clean(text: &[u8]) -> String {
    let text = String::from_utf8_lossy(&text[..text.len().min(MAX_CLOSE_TEXT_BYTES)]);
    text.chars()
        .map(|letter| if letter.is_control() { '?' } else { letter })
        .collect()
}

struct Detail<'a>(&'a str);

impl fmt::Display for Detail<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            Ok(())
        } else {
            write!(formatter, " ({})", self.0)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_close_code_survives_the_wire_and_unknown_ones_keep_their_number() {
        for (number, code) in CODES.into_iter().enumerate() {
            assert_eq!(code.wire().into_inner(), number as u64);
            assert_eq!(CloseCode::from_wire(code.wire()), code);
        }
        let unknown = CloseCode::from_wire(VarInt::from_u32(99));
        assert_eq!(unknown, CloseCode::Other(99));
        assert_eq!(unknown.wire(), VarInt::from_u32(99));
    }

    #[test]
    fn an_attempt_that_fell_asleep_is_news_only_as_long_as_its_node_is_not_connected() {
        let asleep = RefusalReason::TimedOut(Duration::from_secs(5));
        assert!(asleep.is_news(false) && !asleep.is_news(true));
        let wrong_key = RefusalReason::WrongKey(NodeId(1));
        assert!(wrong_key.is_news(false) && wrong_key.is_news(true));
        assert!(!RefusalReason::Superseded.is_news(false));
    }

    #[test]
    fn text_from_outside_cannot_break_a_log_line() {
        assert_eq!(clean(b"a\nb\x1b[31m\xff"), "a?b?[31m\u{fffd}");
        assert!(clean(&[b'x'; 10_000]).len() <= MAX_CLOSE_TEXT_BYTES);
    }
}
