//! The proof on the wire: one bidirectional stream that the dialer opens, before anything else.
//!
//!   1. dialer → acceptor   Hello
//!   2. acceptor → dialer   Hello
//!   3. dialer → acceptor   Proof     the dialer proves first: whoever dials us without the key learns nothing to guess it by
//!   4. acceptor → dialer   Proof
//!   5. dialer → acceptor   Verified
//!   6. lower node id → higher node id   Start
//!
//! Whoever finds something wrong closes the connection with the code of the reason. Nothing but these messages is sent
//! or read before both sides verified; QUIC is held to one stream and a small window until then.

use quinn::{Connection, ReadError, ReadExactError, RecvStream, SendStream, WriteError};
use ring::rand::{SecureRandom, SystemRandom};

use crate::event::RefusalReason;
use crate::ids::{NodeId, ProtocolVersion, VersionRange};
use crate::key::SharedKey;
use crate::limits::HANDSHAKE_TIMEOUT;
use crate::proof::{
    EXPORTER_BYTES, EXPORTER_LABEL, HEADER_BYTES, Hello, Message, Role, Transcript, message_length,
};

/// What this node says of itself.
#[derive(Clone, Debug)]
pub(crate) struct Identity {
    pub(crate) node: NodeId,
    pub(crate) resource: String,
    pub(crate) versions: VersionRange,
    /// Random number of this process.
    pub(crate) instance: u64,
}

/// A peer whose proof was verified.
#[derive(Debug)]
pub(crate) struct Proven {
    pub(crate) peer: NodeId,
    pub(crate) instance: u64,
    /// Last session with us that the peer had learned of when it sent its hello.
    pub(crate) last_decision: u64,
    pub(crate) version: ProtocolVersion,
    pub(crate) stream: ProofStream,
}

/// The stream of the proof.
#[derive(Debug)]
pub(crate) struct ProofStream {
    send: SendStream,
    receive: RecvStream,
}

/// Random bytes of the operating system.
///
/// # Panics
/// If it has none: nothing that needs secrets may run then.
pub(crate) fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    SystemRandom::new()
        .fill(&mut bytes)
        .expect("the operating system gives random numbers");
    bytes
}

impl Identity {
    fn hello(&self, peer: NodeId, last_decision: u64) -> Hello {
        Hello {
            versions: self.versions,
            node: self.node,
            peer,
            instance: self.instance,
            last_decision,
            nonce: random(),
            resource: self.resource.clone(),
        }
    }

    /// Holds `hello` against our own configuration. `expected` is whom we dialed.
    fn check(
        &self,
        hello: &Hello,
        expected: Option<NodeId>,
    ) -> Result<ProtocolVersion, RefusalReason> {
        if hello.resource != self.resource {
            return Err(RefusalReason::OtherResource {
                ours: self.resource.clone(),
                theirs: hello.resource.clone(),
            });
        }
        if hello.peer != self.node {
            return Err(RefusalReason::WrongNode {
                expected: hello.peer,
                found: self.node,
            });
        }
        if let Some(expected) = expected
            && hello.node != expected
        {
            return Err(RefusalReason::WrongNode {
                expected,
                found: hello.node,
            });
        }
        self.versions
            .newest_common(hello.versions)
            .ok_or(RefusalReason::NoCommonVersion {
                ours: self.versions,
                theirs: hello.versions,
            })
    }
}

/// Steps 1 to 5 as the dialer of `peer`.
pub(crate) async fn prove_as_dialer(
    connection: &Connection,
    identity: &Identity,
    peer: NodeId,
    key: &SharedKey,
    last_decision: u64,
) -> Result<Proven, RefusalReason> {
    let (send, receive) = connection.open_bi().await.map_err(|error| lost(&error))?;
    let mut stream = ProofStream { send, receive };
    let own_hello = stream
        .write(&Message::Hello(identity.hello(peer, last_decision)))
        .await?;
    let (hello, peer_hello) = stream.read_hello().await?;
    let version = identity.check(&hello, Some(peer))?;
    let transcript = Transcript::new(exporter(connection)?, own_hello, peer_hello);
    stream
        .write(&Message::Proof(transcript.prove(Role::Dialer, key)))
        .await?;
    stream
        .read_proof(&transcript, Role::Acceptor, peer, key)
        .await?;
    stream.write(&Message::Verified).await?;
    Ok(Proven {
        peer,
        instance: hello.instance,
        last_decision: hello.last_decision,
        version,
        stream,
    })
}

/// Steps 1 to 5 as the acceptor. `find` gives a configured peer's key and the last session with it.
pub(crate) async fn prove_as_acceptor(
    connection: &Connection,
    identity: &Identity,
    find: impl FnOnce(NodeId) -> Option<(SharedKey, u64)>,
) -> Result<Proven, RefusalReason> {
    let (send, receive) = connection.accept_bi().await.map_err(|error| lost(&error))?;
    let mut stream = ProofStream { send, receive };
    let (hello, peer_hello) = stream.read_hello().await?;
    let peer = hello.node;
    let version = identity.check(&hello, None)?;
    let (key, last_decision) = find(peer).ok_or(RefusalReason::UnknownNode(peer))?;
    let own_hello = stream
        .write(&Message::Hello(identity.hello(peer, last_decision)))
        .await?;
    let transcript = Transcript::new(exporter(connection)?, peer_hello, own_hello);
    stream
        .read_proof(&transcript, Role::Dialer, peer, &key)
        .await?;
    stream
        .write(&Message::Proof(transcript.prove(Role::Acceptor, &key)))
        .await?;
    match stream.read().await?.0 {
        Message::Verified => {}
        other => return Err(unexpected(&other)),
    }
    Ok(Proven {
        peer,
        instance: hello.instance,
        last_decision: hello.last_decision,
        version,
        stream,
    })
}

impl ProofStream {
    /// Writes a message and gives its bytes.
    pub(crate) async fn write(&mut self, message: &Message) -> Result<Vec<u8>, RefusalReason> {
        let bytes = message.encode();
        self.send
            .write_all(&bytes)
            .await
            .map_err(|error| match error {
                WriteError::ConnectionLost(error) => lost(&error),
                other => RefusalReason::Malformed(other.to_string().into()),
            })?;
        Ok(bytes)
    }

    /// Step 6 as the higher node id.
    pub(crate) async fn read_start(&mut self) -> Result<u64, RefusalReason> {
        match self.read().await?.0 {
            Message::Start { decision } => Ok(decision),
            other => Err(unexpected(&other)),
        }
    }

    async fn read(&mut self) -> Result<(Message, Vec<u8>), RefusalReason> {
        let malformed =
            |error: crate::proof::ProofError| RefusalReason::Malformed(error.to_string().into());
        let mut header = [0; HEADER_BYTES];
        self.fill(&mut header).await?;
        let mut bytes = vec![0; message_length(header).map_err(malformed)?];
        bytes[..HEADER_BYTES].copy_from_slice(&header);
        self.fill(&mut bytes[HEADER_BYTES..]).await?;
        Ok((Message::decode(&bytes).map_err(malformed)?, bytes))
    }

    async fn read_hello(&mut self) -> Result<(Hello, Vec<u8>), RefusalReason> {
        match self.read().await? {
            (Message::Hello(hello), bytes) => Ok((hello, bytes)),
            (other, _) => Err(unexpected(&other)),
        }
    }

    async fn read_proof(
        &mut self,
        transcript: &Transcript,
        prover: Role,
        peer: NodeId,
        key: &SharedKey,
    ) -> Result<(), RefusalReason> {
        match self.read().await?.0 {
            Message::Proof(mac) if transcript.verify(prover, key, &mac) => Ok(()),
            Message::Proof(_) => Err(RefusalReason::WrongKey(peer)),
            other => Err(unexpected(&other)),
        }
    }

    async fn fill(&mut self, target: &mut [u8]) -> Result<(), RefusalReason> {
        self.receive
            .read_exact(target)
            .await
            .map_err(|error| match error {
                ReadExactError::ReadError(ReadError::ConnectionLost(error)) => lost(&error),
                other => RefusalReason::Malformed(other.to_string().into()),
            })
    }
}

fn lost(error: &quinn::ConnectionError) -> RefusalReason {
    RefusalReason::of_connection(error, HANDSHAKE_TIMEOUT)
}

fn unexpected(message: &Message) -> RefusalReason {
    let name = match message {
        Message::Hello(_) => "Hello",
        Message::Proof(_) => "Proof",
        Message::Verified => "Verified",
        Message::Start { .. } => "Start",
    };
    RefusalReason::Malformed(format!("{name} out of turn").into())
}

/// The session's exporter keying material, the same on both ends of one TLS session and of no other.
pub(crate) fn exporter(connection: &Connection) -> Result<[u8; EXPORTER_BYTES], RefusalReason> {
    let mut material = [0; EXPORTER_BYTES];
    connection
        .export_keying_material(&mut material, EXPORTER_LABEL, b"")
        .map_err(|_| RefusalReason::Transport("no keying material can be exported".into()))?;
    Ok(material)
}
