//! Messages with random contents, every variant of them: a new kind does not compile before it has a sample here.

use alloc::boxed::Box;
use alloc::string::String;
use alloc::vec::Vec;

use crate::api::Payload;
use crate::limits::*;
use crate::split_brain::{Policies, Policy};
use crate::state::{DiskState, Role};
use crate::units::{BLOCK_BYTES, ByteRange, Generation, NodeId, VolumeNumber};
use crate::wire::codec::MessageKind;
use crate::wire::message::Protocol;
use crate::wire::{
    GoodbyeReason, Hello, Message, ReadOutcome, ResizeStage, ResyncOutcome, VolumeHello,
};

/// A payload that knows its length only: the codec looks at nothing else.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Bytes(pub usize);

impl Payload for Bytes {
    fn length(&self) -> usize {
        self.0
    }
    fn is_zero(&self) -> bool {
        true
    }
}

/// Random numbers (splitmix64) in which the ends of every interval are frequent.
pub struct Source(pub u64);

impl Source {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub fn between(&mut self, least: u64, most: u64) -> u64 {
        match self.next() % 8 {
            0 => least,
            1 => most,
            _ => match (most - least).checked_add(1) {
                Some(values) => least + self.next() % values,
                None => self.next(),
            },
        }
    }

    fn number(&mut self) -> u64 {
        self.between(0, u64::MAX)
    }

    fn flag(&mut self) -> bool {
        self.next() & 1 == 1
    }

    pub fn pick<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.next() as usize % choices.len()]
    }

    fn list<T>(&mut self, most: usize, mut item: impl FnMut(&mut Source) -> T) -> Vec<T> {
        let count = self.between(0, most as u64);
        (0..count).map(|_| item(self)).collect()
    }

    fn volume(&mut self) -> VolumeNumber {
        VolumeNumber(self.between(0, u64::from(u16::MAX)) as u16)
    }

    fn generation(&mut self) -> Generation {
        Generation(self.number())
    }

    fn history(&mut self) -> Vec<Generation> {
        self.list(HISTORY_LENGTH, Source::generation)
    }

    fn range(&mut self) -> ByteRange {
        let length = self.between(1, u64::from(MAX_REQUEST_BYTES));
        ByteRange::new(self.between(0, MAX_DEVICE_BYTES - length), length as u32)
    }

    fn role(&mut self) -> Role {
        self.pick(&[Role::Primary, Role::Secondary])
    }

    fn disk(&mut self) -> DiskState {
        match self.pick(DiskState::ALL) {
            DiskState::DUnknown => DiskState::UpToDate,
            disk => disk,
        }
    }

    fn volume_hello(&mut self) -> VolumeHello {
        VolumeHello {
            volume: self.volume(),
            round: self.between(0, u64::from(u32::MAX)) as u32,
            disk: self.disk(),
            attached_anew: self.flag(),
            max_bytes: self.between(0, MAX_DEVICE_BYTES),
            effective_bytes: self.between(0, MAX_DEVICE_BYTES),
            current: self.generation(),
            bitmap: self.generation(),
            history: self.history(),
            crashed_primary: self.flag(),
            running_since_contact: self.flag(),
            full_sync: self.flag(),
            sync_target: self.flag(),
            bits: self.between(0, MAX_DEVICE_BYTES / BLOCK_BYTES),
            cache: self.between(0, u64::MAX),
        }
    }
}

/// Characters of one to four bytes, as many as fit.
fn text(from: &mut Source) -> String {
    let wanted = from.between(0, MAX_TEXT_BYTES as u64) as usize;
    let mut text = String::new();
    while text.len() < wanted {
        let next = from.pick(&['a', 'ß', '€', '🦀']);
        text.push(if text.len() + next.len_utf8() <= wanted {
            next
        } else {
            'a'
        });
    }
    text
}

/// A message of the kind, of random contents within the bounds.
pub fn message(kind: MessageKind, from: &mut Source) -> Message<Bytes> {
    match kind {
        MessageKind::Write => {
            let range = from.range();
            Message::Write {
                sequence: from.number(),
                epoch: from.number(),
                volume: from.volume(),
                range,
                payload: Bytes(range.length as usize),
            }
        }
        MessageKind::Discard => Message::Discard {
            sequence: from.number(),
            epoch: from.number(),
            volume: from.volume(),
            range: from.range(),
        },
        MessageKind::WriteZeroes => Message::WriteZeroes {
            sequence: from.number(),
            epoch: from.number(),
            volume: from.volume(),
            range: from.range(),
            may_unmap: from.flag(),
        },
        MessageKind::Barrier => Message::Barrier {
            epoch: from.number(),
        },
        MessageKind::ReadRequest => Message::ReadRequest {
            id: from.number(),
            volume: from.volume(),
            range: from.range(),
        },
        MessageKind::DiskLost => Message::DiskLost {
            volume: from.volume(),
            generation: from.generation(),
            missed: from.list(MAX_MISSED_RANGES, Source::range),
        },
        MessageKind::DiskBack => Message::DiskBack {
            volume: from.volume(),
        },
        MessageKind::Received => Message::Received {
            through: from.number(),
        },
        MessageKind::Written => {
            let count = from.between(1, MAX_BUFFERED_OPERATIONS as u64);
            let first = from.between(0, u64::MAX - count);
            Message::Written {
                first,
                count: count as u32,
            }
        }
        MessageKind::Failed => Message::Failed {
            sequence: from.number(),
        },
        MessageKind::BarrierAck => Message::BarrierAck {
            epoch: from.number(),
        },
        MessageKind::ResyncAck => Message::ResyncAck {
            volume: from.volume(),
            id: from.number(),
            outcome: from.pick(&[
                ResyncOutcome::Written,
                ResyncOutcome::Retry,
                ResyncOutcome::Failed,
            ]),
        },
        MessageKind::ResyncFlushed => Message::ResyncFlushed {
            volume: from.volume(),
            id: from.number(),
        },
        MessageKind::ResyncFinished => Message::ResyncFinished {
            volume: from.volume(),
        },
        MessageKind::Hello => Message::Hello(Box::new(Hello {
            node_id: NodeId(from.between(0, MAX_NODES as u64 - 1) as u8),
            role: from.role(),
            protocol: from.pick(&[Protocol::A, Protocol::B, Protocol::C]),
            policies: Policies {
                after_sb_0pri: from.pick(Policy::ALL),
                after_sb_1pri: from.pick(Policy::ALL),
                after_sb_2pri: from.pick(Policy::ALL),
                always_asbp: from.flag(),
            },
            discard_my_data: from.flag(),
            volumes: from.list(MAX_VOLUMES, Source::volume_hello),
        })),
        MessageKind::Again => Message::Again(Box::new(from.volume_hello())),
        MessageKind::VolumeReady => Message::VolumeReady {
            volume: from.volume(),
        },
        MessageKind::PeerState => Message::PeerState {
            role: from.role(),
            disks: from.list(MAX_VOLUMES, |from| (from.volume(), from.disk())),
        },
        MessageKind::Ping => Message::Ping { id: from.number() },
        MessageKind::Pong => Message::Pong { id: from.number() },
        MessageKind::PromoteRequest => Message::PromoteRequest { id: from.number() },
        MessageKind::PromoteReply => Message::PromoteReply {
            id: from.number(),
            refusal: from.next() as i32,
        },
        MessageKind::Goodbye => Message::Goodbye {
            reason: from.pick(&[
                GoodbyeReason::Disconnect,
                GoodbyeReason::StandAlone,
                GoodbyeReason::Renegotiate,
                GoodbyeReason::ProtocolError,
            ]),
            text: text(from),
        },
        MessageKind::Resize => Message::Resize {
            volume: from.volume(),
            stage: from.pick(&[
                ResizeStage::Ask,
                ResizeStage::Offer,
                ResizeStage::Refuse,
                ResizeStage::Take,
                ResizeStage::Taken,
            ]),
            bytes: from.between(0, MAX_DEVICE_BYTES),
            text: text(from),
        },
        MessageKind::ResyncPause => Message::ResyncPause {
            volume: from.volume(),
            paused: from.flag(),
        },
        MessageKind::SkipInitialSync => Message::SkipInitialSync {
            volume: from.volume(),
            current: from.generation(),
        },
        MessageKind::SkipInitialSyncDone => Message::SkipInitialSyncDone {
            volume: from.volume(),
            current: from.generation(),
            done: from.flag(),
        },
        MessageKind::InvalidateQuestion => Message::InvalidateQuestion {
            volume: from.volume(),
        },
        MessageKind::InvalidateAnswer => Message::InvalidateAnswer {
            volume: from.volume(),
            granted: from.flag(),
        },
        MessageKind::InvalidateRequest => Message::InvalidateRequest {
            volume: from.volume(),
        },
        MessageKind::OutdateRequest => Message::OutdateRequest,
        MessageKind::MissesTracked => Message::MissesTracked {
            volume: from.volume(),
            current: from.generation(),
        },
        MessageKind::BitmapRuns => Message::BitmapRuns {
            volume: from.volume(),
            runs: from.list(BITMAP_PART_BYTES, |from| from.next() as u8),
            last: from.flag(),
        },
        MessageKind::ResyncBegin => Message::ResyncBegin {
            volume: from.volume(),
            current: from.generation(),
            history: from.history(),
        },
        MessageKind::ResyncReady => Message::ResyncReady {
            volume: from.volume(),
        },
        MessageKind::ResyncWaits => Message::ResyncWaits {
            volume: from.volume(),
            milliseconds: from.number() as u32,
        },
        MessageKind::BitmapTaken => Message::BitmapTaken {
            volume: from.volume(),
        },
        MessageKind::ResyncData => {
            let range = from.range();
            Message::ResyncData {
                id: from.number(),
                volume: from.volume(),
                range,
                payload: Bytes(range.length as usize),
            }
        }
        MessageKind::ResyncZeroes => Message::ResyncZeroes {
            id: from.number(),
            volume: from.volume(),
            range: from.range(),
        },
        MessageKind::ResyncFlush => Message::ResyncFlush {
            volume: from.volume(),
            id: from.number(),
        },
        MessageKind::ResyncFinish => Message::ResyncFinish {
            volume: from.volume(),
        },
        MessageKind::ReadReply => {
            let id = from.number();
            if from.flag() {
                let payload = Bytes(from.between(1, u64::from(MAX_REQUEST_BYTES)) as usize);
                Message::ReadReply {
                    id,
                    outcome: ReadOutcome::Data,
                    payload: Some(payload),
                }
            } else {
                Message::ReadReply {
                    id,
                    outcome: ReadOutcome::Failed,
                    payload: None,
                }
            }
        }
    }
}
