//! A server of memory on a Unix socket: one thread per connection, the smallest honest owner of the protocol crate.
//!
//! Its exports: `disk` (also the empty name), `readonly`, `large-blocks` (minimum 4096), `slow-zero` (a fast zero is
//! refused), `broken` (every read and write fails with EIO), and `secondary`, which is refused by policy.
#![allow(dead_code)] // each user takes its part

use std::io::{self, IoSlice, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, RwLock};
use std::thread;

use qrbd_nbd::{
    BlockSizes, Command, Errno, ExportInfo, Extent, Handshake, ListedExport, OpenKind, Received,
    Refusal, Request, Session, Step, TransmissionFlags, protocol,
};

pub const POLICY_TEXT: &str = "resource 'secondary' is Secondary here; the Primary is node-b";

pub struct MemoryExport {
    info: ExportInfo,
    data: RwLock<Vec<u8>>,
    broken: bool,
    slow_zero: bool,
    pub flushes: AtomicU64,
    pub fuas: AtomicU64,
}

pub struct MemoryServer {
    exports: Vec<MemoryExport>,
}

impl MemoryServer {
    /// All exports hold `size` zero bytes.
    pub fn new(size: u64) -> Arc<Self> {
        let rw = TransmissionFlags::SEND_FLUSH
            | TransmissionFlags::SEND_FUA
            | TransmissionFlags::SEND_TRIM
            | TransmissionFlags::SEND_WRITE_ZEROES
            | TransmissionFlags::SEND_FAST_ZERO
            | TransmissionFlags::SEND_CACHE
            | TransmissionFlags::CAN_MULTI_CONN;
        let export = |name: &str, flags, sizes| {
            let info = ExportInfo::new(name, size, flags, sizes).expect("size is whole blocks");
            MemoryExport {
                info: info
                    .with_description(format!("memory export {name}"))
                    .expect("short text"),
                data: RwLock::new(vec![0; size as usize]),
                broken: name == "broken",
                slow_zero: name == "slow-zero",
                flushes: AtomicU64::new(0),
                fuas: AtomicU64::new(0),
            }
        };
        let large = BlockSizes::new(4096, 4096, protocol::limits::PAYLOAD).expect("legal sizes");
        let normal = BlockSizes::default();
        Arc::new(Self {
            exports: vec![
                export("disk", rw, normal),
                export("readonly", rw | TransmissionFlags::READ_ONLY, normal),
                export("large-blocks", rw, large),
                export("slow-zero", rw, normal),
                export("broken", rw, normal),
            ],
        })
    }

    pub fn export(&self, name: &str) -> Option<&MemoryExport> {
        let name = if name.is_empty() { "disk" } else { name };
        self.exports
            .iter()
            .find(|export| export.info.name() == name)
    }

    /// Accepts connections for the life of the process.
    pub fn listen(self: &Arc<Self>, path: &Path) -> io::Result<()> {
        let listener = UnixListener::bind(path)?;
        let server = Arc::clone(self);
        thread::spawn(move || {
            for stream in listener.incoming() {
                let (Ok(stream), server) = (stream, Arc::clone(&server)) else {
                    return;
                };
                thread::spawn(move || server.report(server.serve(stream)));
            }
        });
        Ok(())
    }

    /// A connection within the process, served by its own thread.
    pub fn connect(self: &Arc<Self>) -> UnixStream {
        let (ours, theirs) = UnixStream::pair().expect("socket pair");
        let server = Arc::clone(self);
        thread::spawn(move || server.report(server.serve(theirs)));
        ours
    }

    fn report(&self, result: io::Result<()>) {
        if let Err(error) = result {
            eprintln!("connection ended: {error}");
        }
    }

    pub fn serve(&self, mut stream: UnixStream) -> io::Result<()> {
        let Some(session) = self.handshake(&mut stream)? else {
            return Ok(());
        };
        let export = self.export(session.export().name()).expect("opened above");
        let mut payload = Vec::new();
        loop {
            let mut header = [0; protocol::REQUEST_LENGTH];
            match stream.read_exact(&mut header) {
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
                other => other?,
            }
            match session.check(&header).map_err(io::Error::other)? {
                Received::Disconnect => return Ok(()),
                Received::Answer(answer) => {
                    io::copy(
                        &mut (&mut stream).take(u64::from(answer.drain)),
                        &mut io::sink(),
                    )?;
                    stream.write_all(&session.answer(&answer))?;
                }
                Received::Request(request) => {
                    payload.resize(request.payload_length() as usize, 0);
                    stream.read_exact(&mut payload)?;
                    export.execute(&session, &request, &payload, &mut stream)?;
                }
            }
        }
    }

    fn handshake(&self, stream: &mut UnixStream) -> io::Result<Option<Session>> {
        let mut handshake = Handshake::new();
        let mut bytes = [0; 4096];
        let mut count = 0;
        loop {
            let mut input = &bytes[..count];
            let step = handshake.advance(&mut input);
            stream.write_all(&handshake.take_output())?;
            count = 0;
            match step.map_err(io::Error::other)? {
                Step::NeedInput => {
                    let wanted = handshake.wanted().min(bytes.len());
                    count = stream.read(&mut bytes[..wanted])?;
                    if count == 0 {
                        return Ok(None);
                    }
                }
                Step::Open(open) => handshake.answer_open(self.open(&open.name, open.kind)),
                Step::List => handshake.answer_list(Ok(self.list())),
                Step::Transmission(session) => return Ok(Some(session)),
                Step::Aborted => return Ok(None),
                Step::NeedAnswer => unreachable!("every question is answered at once"),
            }
        }
    }

    pub fn open(&self, name: &str, _kind: OpenKind) -> Result<ExportInfo, Refusal> {
        if name == "secondary" {
            return Err(Refusal::Policy(POLICY_TEXT.into()));
        }
        let export = self
            .export(name)
            .ok_or_else(|| Refusal::Unknown(format!("no export '{name}'")))?;
        Ok(export.info.clone())
    }

    /// Only what can be opened: nbdinfo opens every export of a list and fails as a whole when one is refused.
    pub fn list(&self) -> Vec<ListedExport> {
        let names = self.exports.iter().map(|export| export.info.name());
        names
            .map(|name| ListedExport {
                name: name.into(),
                description: format!("memory export {name}"),
            })
            .collect()
    }
}

impl MemoryExport {
    fn execute(
        &self,
        session: &Session,
        request: &Request,
        payload: &[u8],
        stream: &mut UnixStream,
    ) -> io::Result<()> {
        let range = request.offset as usize..request.end() as usize;
        if request.fua {
            self.fuas.fetch_add(1, Ordering::Relaxed);
        }
        match request.command {
            Command::Read | Command::Write if self.broken => {
                return stream.write_all(&session.error(
                    request.cookie,
                    Errno::Eio,
                    "the memory is broken",
                ));
            }
            Command::Read => {
                let data = self.data.read().expect("no panic while locked");
                return write_both(stream, &session.read_head(request), &data[range]);
            }
            Command::Write => {
                self.data.write().expect("no panic while locked")[range].copy_from_slice(payload)
            }
            Command::WriteZeroes {
                fast_zero: true, ..
            } if self.slow_zero => {
                return stream.write_all(&session.error(
                    request.cookie,
                    Errno::Enotsup,
                    "zeroes are slow here",
                ));
            }
            Command::WriteZeroes { .. } | Command::Trim => {
                self.data.write().expect("no panic while locked")[range].fill(0);
            }
            Command::Flush => {
                self.flushes.fetch_add(1, Ordering::Relaxed);
            }
            Command::Cache => {}
            Command::BlockStatus { .. } => {
                let extents = [Extent {
                    length: request.length,
                    status: 0,
                }];
                return stream.write_all(&session.block_status(request, &extents));
            }
        }
        stream.write_all(&session.done(request.cookie))
    }
}

fn write_both(stream: &mut UnixStream, head: &[u8], data: &[u8]) -> io::Result<()> {
    let written = stream.write_vectored(&[IoSlice::new(head), IoSlice::new(data)])?;
    if written < head.len() {
        stream.write_all(&head[written..])?;
        return stream.write_all(data);
    }
    stream.write_all(&data[written - head.len()..])
}
