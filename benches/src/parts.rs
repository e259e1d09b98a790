//! The single parts that a write passes, each with a `step` that does its work once.
//!
//! A step checks what it got: a part that no longer does its work is not fast, it is broken.

use std::hint::black_box;

use qrbd_engine::activity_log::ActivityLog;
use qrbd_engine::bitmap::Bitmap;
use qrbd_engine::generation::{self, DiskLevel, Side};
use qrbd_engine::units::{ByteRange, Generation, NodeId, VolumeNumber};
use qrbd_engine::wire::Message;
use qrbd_engine::wire::codec::{decode, encode_head};
use qrbd_nbd::client::{RequestFlags, encode_request};
use qrbd_nbd::protocol::command;
use qrbd_nbd::server::{Command, Received, Session};
use qrbd_nbd::{BlockSizes, Cookie, ExportInfo, TransmissionFlags};

use crate::Places;
use crate::pair::Length;

/// Blocks of 1 TiB.
pub const BLOCKS: u64 = 1 << 28;
const BLOCK_BYTES: u32 = 4096;
/// Extents that the activity log holds by default.
pub const LOG_SLOTS: u32 = 1237;

/// A frame of a 4 KiB write: its head encoded and decoded. The payload is never touched.
pub struct Frames {
    sequence: u64,
    places: Places,
}

impl Frames {
    /// From the first frame of a session on.
    #[must_use]
    pub fn new() -> Frames {
        Frames {
            sequence: 0,
            places: Places::new(11),
        }
    }

    /// One frame.
    ///
    /// # Panics
    /// If what was encoded cannot be decoded.
    pub fn step(&mut self) {
        self.sequence += 1;
        let payload = Length(BLOCK_BYTES as usize);
        let head = encode_head(&black_box(Message::Write {
            sequence: self.sequence,
            epoch: self.sequence / 8,
            volume: VolumeNumber(0),
            range: ByteRange::new(
                self.places.below(BLOCKS) * u64::from(BLOCK_BYTES),
                BLOCK_BYTES,
            ),
            payload,
        }));
        let (_, message) = decode(black_box(&head), Some(Length(BLOCK_BYTES as usize)))
            .expect("what was encoded can be decoded");
        assert!(matches!(message, Message::Write { sequence, .. } if sequence == self.sequence));
    }
}

impl Default for Frames {
    fn default() -> Frames {
        Frames::new()
    }
}

/// An NBD WRITE of 4 KiB: its header judged, its reply made.
pub struct Requests {
    session: Session,
    places: Places,
    cookie: u64,
}

impl Requests {
    /// A session of an export of 1 TiB.
    ///
    /// # Panics
    /// If that is not a legal export.
    #[must_use]
    pub fn new() -> Requests {
        let flags = TransmissionFlags::SEND_FLUSH | TransmissionFlags::SEND_FUA;
        let export = ExportInfo::new(
            "r0",
            BLOCKS * u64::from(BLOCK_BYTES),
            flags,
            BlockSizes::default(),
        );
        Requests {
            session: Session::without_handshake(export.expect("a legal export")),
            places: Places::new(12),
            cookie: 0,
        }
    }

    /// One request.
    ///
    /// # Panics
    /// If it is not taken for what it is.
    pub fn step(&mut self) {
        self.cookie += 1;
        let header = encode_request(
            command::WRITE,
            RequestFlags::NONE,
            Cookie(self.cookie),
            self.places.below(BLOCKS) * u64::from(BLOCK_BYTES),
            BLOCK_BYTES,
        );
        let Ok(Received::Request(request)) = self.session.check(black_box(&header)) else {
            panic!("a legal request is refused");
        };
        assert_eq!(request.command, Command::Write);
        black_box(self.session.done(request.cookie));
    }
}

impl Default for Requests {
    fn default() -> Requests {
        Requests::new()
    }
}

/// A bitmap of 1 TiB of which a block is set and cleared.
pub struct Marks {
    bitmap: Bitmap,
    places: Places,
}

impl Marks {
    /// Nothing is marked.
    #[must_use]
    pub fn new() -> Marks {
        Marks {
            bitmap: Bitmap::new(BLOCKS),
            places: Places::new(13),
        }
    }

    /// One block.
    ///
    /// # Panics
    /// If it was not clear, or is not set.
    pub fn step(&mut self) {
        let block = self.places.below(BLOCKS);
        assert_eq!(self.bitmap.set(block..block + 1), 1);
        assert_eq!(self.bitmap.clear(block..block + 1), 1);
    }
}

impl Default for Marks {
    fn default() -> Marks {
        Marks::new()
    }
}

/// A scan over 100 000 runs scattered over the bitmap of 1 TiB, as a resync does it; begins anew at the end.
pub struct Scan {
    bitmap: Bitmap,
    from: u64,
}

impl Scan {
    /// At the first block.
    #[must_use]
    pub fn new() -> Scan {
        let (mut bitmap, mut places) = (Bitmap::new(BLOCKS), Places::new(14));
        for _ in 0..100_000 {
            let block = places.below(BLOCKS);
            bitmap.set(block..block + 1);
        }
        Scan { bitmap, from: 0 }
    }

    /// The next run.
    pub fn step(&mut self) {
        let next = self.bitmap.next_run(self.from, 256);
        self.from = black_box(next).map_or(0, |run| run.end);
    }
}

impl Default for Scan {
    fn default() -> Scan {
        Scan::new()
    }
}

/// The activity log, full of hot extents.
pub struct Log {
    log: ActivityLog,
    places: Places,
    extents: u32,
}

impl Log {
    /// Touches will go to `extents` different ones: up to [`LOG_SLOTS`] need no transaction once they are active.
    #[must_use]
    pub fn new(extents: u32) -> Log {
        let mut log = Log {
            log: ActivityLog::new(LOG_SLOTS),
            places: Places::new(15),
            extents,
        };
        (0..extents.min(LOG_SLOTS)).for_each(|extent| log.touch(extent));
        log
    }

    /// One extent.
    pub fn step(&mut self) {
        let extent = self.places.below(u64::from(self.extents)) as u32;
        self.touch(extent);
    }

    fn touch(&mut self, extent: u32) {
        let log = &mut self.log;
        if !log.acquire(extent..extent + 1) {
            let planned = log.plan([extent].into_iter()).expect("slots are free");
            black_box(planned);
            log.committed();
            let active = log.acquire(extent..extent + 1);
            assert!(active, "active after its transaction");
        }
        log.release(extent..extent + 1);
    }
}

/// Two nodes that meet after an outage: the comparison of their generations.
pub struct Meeting {
    history: Vec<Generation>,
}

impl Meeting {
    /// A node that wrote alone, and one that missed it.
    #[must_use]
    pub fn new() -> Meeting {
        let mut places = Places::new(16);
        let history = (0..8).map(|_| Generation(places.below(u64::MAX) | 16));
        Meeting {
            history: history.collect(),
        }
    }

    /// One comparison.
    pub fn step(&mut self) {
        let [ahead, common, older @ ..] = self.history.as_slice() else {
            unreachable!("eight were made");
        };
        let me = Side {
            node_id: NodeId(0),
            current: *ahead,
            bitmap: *common,
            history: older,
            crashed_primary: false,
            still_running_since_contact: false,
            role_primary: true,
            disk: DiskLevel::UpToDate,
            full_sync_requested: false,
            sync_target: false,
            bits: 1000,
            protocol: generation::Protocol::C,
        };
        let peer = Side {
            node_id: NodeId(1),
            current: *common,
            bitmap: Generation::NONE,
            role_primary: false,
            disk: DiskLevel::Consistent,
            bits: 0,
            ..me
        };
        black_box(generation::compare(black_box(&me), black_box(&peer)));
    }
}

impl Default for Meeting {
    fn default() -> Meeting {
        Meeting::new()
    }
}
