//! A volume in memory whose requests can be held and failed, a server around it, and a client on the same thread.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::Future;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use qrbd_disk::{BufferMut, Pool};
use qrbd_engine::Operation;
use qrbd_engine::api::ClientError;
use qrbd_nbd::client::{
    ClientHandshake, ClientOptions, Expected, Negotiated, Reply, ReplyDecoder, RequestFlags,
    encode_request,
};
use qrbd_nbd::protocol::{command, command_flag};
use qrbd_nbd::{ClientError as NbdError, Cookie};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::oneshot;
use tokio::task::{JoinHandle, LocalSet, spawn_local, yield_now};

use crate::front::Limits;
use crate::front::backend::{Export, Exports};
use crate::front::listener::{UnixAcceptor, bind_unix, serve};
use crate::payload::EnginePayload;
use crate::volumes::{Completed, ExportDescription, OpenRefusal, OpenRefusalKind};

/// Longer than anything takes that works.
pub const PATIENCE: Duration = Duration::from_secs(20);

pub struct FakeVolume {
    pub data: RefCell<Vec<u8>>,
    pub size: Cell<u64>,
    pub role: Cell<&'static str>,
    pub openable: Cell<bool>,
    pub openers: Cell<u32>,
    pub closed: Cell<bool>,
    pub fast_zero: Cell<bool>,
    /// Requests stay where they are until [`FakeVolume::release`].
    pub hold: Cell<bool>,
    /// What requests at or above this offset end with.
    pub failure: Cell<Option<(u64, ClientError)>>,
    /// Kind, offset, length and FUA of every request.
    pub log: RefCell<Vec<(&'static str, u64, u32, bool)>>,
    pub most_waiting: Cell<usize>,
    waiting: RefCell<VecDeque<Waiting>>,
    queues: RefCell<Vec<Rc<FakeQueue>>>,
    pub pool: Pool,
}

type Waiting = (u64, Operation<EnginePayload>, Rc<FakeQueue>);

#[derive(Default)]
struct FakeQueue {
    done: RefCell<Vec<(u64, Completed)>>,
    waker: RefCell<Option<Waker>>,
}

impl FakeQueue {
    fn wake(&self) {
        if let Some(waker) = self.waker.borrow_mut().take() {
            waker.wake();
        }
    }
}

impl FakeVolume {
    pub fn new(size: u64) -> Rc<Self> {
        Rc::new(Self {
            data: RefCell::new(vec![0; size as usize]),
            size: Cell::new(size),
            role: Cell::new("Primary"),
            openable: Cell::new(true),
            openers: Cell::new(0),
            closed: Cell::new(false),
            fast_zero: Cell::new(true),
            hold: Cell::new(false),
            failure: Cell::new(None),
            log: RefCell::default(),
            most_waiting: Cell::new(0),
            waiting: RefCell::default(),
            queues: RefCell::default(),
            pool: Pool::default(),
        })
    }

    /// A volume that accepts requests anywhere and holds them; reads of it would find no data.
    pub fn sparse(size: u64) -> Rc<Self> {
        let volume = Self::new(0);
        volume.size.set(size);
        volume
    }

    pub fn waiting(&self) -> usize {
        self.waiting.borrow().len()
    }

    /// Ends the held request at this place of the queue.
    pub fn release_one(&self, index: usize) {
        let (token, operation, queue) = self.waiting.borrow_mut().remove(index).expect("held");
        let completed = self.carry_out(operation);
        queue.done.borrow_mut().push((token, completed));
        queue.wake();
    }

    pub fn release(&self) {
        self.hold.set(false);
        while self.waiting() > 0 {
            self.release_one(0);
        }
    }

    pub fn close(&self) {
        self.closed.set(true);
        self.queues.borrow().iter().for_each(|queue| queue.wake());
    }

    fn carry_out(&self, operation: Operation<EnginePayload>) -> Completed {
        let (kind, range, fua) = match &operation {
            Operation::Read(range) => ("read", *range, false),
            Operation::Write { range, fua, .. } => ("write", *range, *fua),
            Operation::Flush => ("flush", qrbd_engine::units::ByteRange::new(0, 0), false),
            Operation::Discard { range, fua } => ("discard", *range, *fua),
            Operation::WriteZeroes { range, fua, .. } => ("zeroes", *range, *fua),
        };
        self.log
            .borrow_mut()
            .push((kind, range.offset, range.length, fua));
        if let Some((from, error)) = self.failure.get()
            && range.end() > from
        {
            return Err(error);
        }
        let mut data = self.data.borrow_mut();
        if range.end() > data.len() as u64 {
            return Ok(None);
        }
        let bytes = &mut data[range.offset as usize..range.end() as usize];
        match operation {
            Operation::Read(_) => return Ok(Some(self.pool.copy_from(bytes).into())),
            Operation::Write { payload, .. } => bytes.copy_from_slice(payload.as_ref()),
            Operation::Flush => {}
            Operation::Discard { .. } | Operation::WriteZeroes { .. } => bytes.fill(0),
        }
        Ok(None)
    }
}

#[derive(Clone)]
pub struct FakeExports(pub Vec<(&'static str, Rc<FakeVolume>)>);

impl FakeExports {
    fn description(name: &str, volume: &FakeVolume) -> ExportDescription {
        ExportDescription {
            name: name.to_owned(),
            resource: name.to_owned(),
            volume: 0,
            size: volume.size.get(),
            role: volume.role.get(),
            primary: None,
            minimum_block: 512,
            preferred_block: 4096,
            maximum_block: 32 << 20,
            openable: volume.openable.get(),
        }
    }
}

impl Exports for FakeExports {
    type Export = FakeOpen;

    fn exports(&self) -> Vec<ExportDescription> {
        self.0
            .iter()
            .map(|(name, volume)| Self::description(name, volume))
            .collect()
    }

    fn open(&self, name: &str) -> Result<FakeOpen, OpenRefusal> {
        let found = self
            .0
            .iter()
            .find(|(known, _)| *known == name || (name.is_empty() && self.0.len() == 1));
        let (name, volume) = found.ok_or_else(|| OpenRefusal {
            kind: OpenRefusalKind::Unknown,
            text: format!("no export '{name}'"),
        })?;
        if !volume.openable.get() {
            return Err(OpenRefusal {
                kind: OpenRefusalKind::Policy,
                text: format!("resource {name} is Secondary on this node"),
            });
        }
        volume.openers.set(volume.openers.get() + 1);
        let queue = Rc::new(FakeQueue::default());
        volume.queues.borrow_mut().push(Rc::clone(&queue));
        Ok(FakeOpen {
            description: Self::description(name, volume),
            volume: Rc::clone(volume),
            queue,
        })
    }
}

pub struct FakeOpen {
    volume: Rc<FakeVolume>,
    description: ExportDescription,
    queue: Rc<FakeQueue>,
}

impl Drop for FakeOpen {
    fn drop(&mut self) {
        self.volume.openers.set(self.volume.openers.get() - 1);
    }
}

impl Export for FakeOpen {
    fn description(&self) -> &ExportDescription {
        &self.description
    }

    fn submit(&self, token: u64, operation: Operation<EnginePayload>) {
        let (volume, queue) = (Rc::clone(&self.volume), Rc::clone(&self.queue));
        let mut waiting = volume.waiting.borrow_mut();
        waiting.push_back((token, operation, queue));
        volume
            .most_waiting
            .set(volume.most_waiting.get().max(waiting.len()));
        drop(waiting);
        spawn_local(async move {
            yield_now().await;
            if !volume.hold.get() && volume.waiting() > 0 {
                volume.release_one(0);
            }
        });
    }

    fn poll_completions(
        &self,
        context: &mut Context<'_>,
        target: &mut Vec<(u64, Completed)>,
    ) -> Poll<()> {
        let mut done = self.queue.done.borrow_mut();
        if done.is_empty() {
            *self.queue.waker.borrow_mut() = Some(context.waker().clone());
            return Poll::Pending;
        }
        target.append(&mut done);
        Poll::Ready(())
    }

    fn is_closed(&self) -> bool {
        self.volume.closed.get()
    }

    fn zeroes_fast(&self) -> bool {
        self.volume.fast_zero.get()
    }

    fn allocate(&self, length: usize) -> BufferMut {
        self.volume.pool.take(length)
    }
}

/// A server on a socket in a directory of its own.
pub struct Server {
    pub directory: tempfile::TempDir,
    stop: Option<oneshot::Sender<()>>,
    pub task: JoinHandle<()>,
}

impl Server {
    pub fn start(exports: FakeExports, limits: Limits) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let listener: UnixListener = bind_unix(&directory.path().join("nbd.sock")).unwrap();
        let (stop, stopped) = oneshot::channel::<()>();
        let task = spawn_local(serve(exports, UnixAcceptor(listener), limits, async move {
            let _ = stopped.await;
        }));
        Self {
            directory,
            stop: Some(stop),
            task,
        }
    }

    pub fn one(volume: &Rc<FakeVolume>) -> Self {
        Self::start(
            FakeExports(vec![("r0", Rc::clone(volume))]),
            Limits::default(),
        )
    }

    pub async fn raw(&self) -> UnixStream {
        UnixStream::connect(self.directory.path().join("nbd.sock"))
            .await
            .unwrap()
    }

    pub async fn client(&self, export: &str) -> TestClient {
        TestClient::connect(self.raw().await, export, ClientOptions::default())
            .await
            .unwrap()
    }

    pub fn stop(&mut self) {
        let _ = self.stop.take().expect("stopped once").send(());
    }
}

pub struct TestClient<S = UnixStream> {
    pub stream: S,
    pub negotiated: Negotiated,
    decoder: ReplyDecoder,
    buffer: Vec<u8>,
    at: usize,
}

impl<S: AsyncRead + AsyncWrite + Unpin> TestClient<S> {
    pub async fn connect(
        mut stream: S,
        export: &str,
        options: ClientOptions,
    ) -> Result<Self, NbdError> {
        let mut handshake = ClientHandshake::new(export, options);
        let mut bytes = Vec::new();
        let negotiated = loop {
            let result = handshake.advance(&mut &bytes[..]);
            let output = handshake.take_output();
            stream.write_all(&output).await?;
            if let Some(negotiated) = result? {
                break negotiated;
            }
            bytes.resize(handshake.wanted(), 0);
            stream.read_exact(&mut bytes).await?;
        };
        let decoder = ReplyDecoder::new(negotiated.structured_replies);
        Ok(Self {
            stream,
            negotiated,
            decoder,
            buffer: Vec::new(),
            at: 0,
        })
    }

    /// Registers the reply and gives the bytes of the request.
    pub fn request(
        &mut self,
        kind: u16,
        flags: u16,
        cookie: u64,
        offset: u64,
        length: u32,
    ) -> [u8; 28] {
        let expected = match kind {
            command::READ => Expected::Data { offset, length },
            command::BLOCK_STATUS => Expected::Extents,
            _ => Expected::Nothing,
        };
        assert!(self.decoder.expect(Cookie(cookie), expected));
        encode_request(kind, RequestFlags(flags), Cookie(cookie), offset, length)
    }

    pub async fn send(&mut self, kind: u16, flags: u16, cookie: u64, offset: u64, length: u32) {
        let bytes = self.request(kind, flags, cookie, offset, length);
        self.stream.write_all(&bytes).await.unwrap();
    }

    pub async fn send_write(&mut self, cookie: u64, offset: u64, data: &[u8], fua: bool) {
        let flags = if fua { command_flag::FUA } else { 0 };
        let head = self.request(command::WRITE, flags, cookie, offset, data.len() as u32);
        self.stream.write_all(&head).await.unwrap();
        self.stream.write_all(data).await.unwrap();
    }

    /// The next reply; `None` at the end of the stream.
    pub async fn receive(&mut self) -> Option<Reply> {
        loop {
            let mut input = &self.buffer[self.at..];
            let before = input.len();
            let reply = self.decoder.advance(&mut input).expect("a legal reply");
            self.at += before - input.len();
            if let Some(reply) = reply {
                return Some(reply);
            }
            self.buffer.clear();
            self.at = 0;
            let count = tokio::time::timeout(PATIENCE, self.stream.read_buf(&mut self.buffer))
                .await
                .expect("a reply in time");
            match count {
                Ok(0) | Err(_) => return None,
                Ok(_) => {}
            }
        }
    }

    pub async fn receive_ok(&mut self, cookie: u64) -> Reply {
        let reply = self.receive().await.expect("a reply");
        assert_eq!(reply.cookie, Cookie(cookie));
        assert_eq!(reply.result, Ok(()));
        reply
    }

    /// The errno of the next reply, which is one for this cookie.
    pub async fn receive_error(&mut self, cookie: u64) -> qrbd_nbd::Errno {
        let reply = self.receive().await.expect("a reply");
        assert_eq!(reply.cookie, Cookie(cookie));
        reply.result.expect_err("an error").errno
    }
}

/// Runs a test the way the daemon runs: everything on one thread.
pub fn run(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    LocalSet::new().block_on(&runtime, async {
        tokio::time::timeout(PATIENCE * 2, test)
            .await
            .expect("the test ends");
    });
}

/// Lets the other tasks go on until `condition` holds.
pub async fn until(mut condition: impl FnMut() -> bool) {
    let deadline = tokio::time::Instant::now() + PATIENCE;
    while !condition() {
        assert!(
            tokio::time::Instant::now() < deadline,
            "the condition never held"
        );
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

/// Time in which nothing is expected to happen.
pub async fn quiet() {
    tokio::time::sleep(Duration::from_millis(50)).await;
}
