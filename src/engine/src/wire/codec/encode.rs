//! Bodies of messages as bytes; `decode` is the mirror, field by field.
//!
//! A body is laid out twice by the same code: once to count its bytes, once into a buffer of exactly that size. A message that
//! breaks a bound of `limits` is a bug of this node and panics; only the text of a goodbye is cut instead.

use alloc::vec::Vec;

use super::codes::WireCode;
use crate::limits;
use crate::units::{ByteRange, Generation, VolumeNumber};
use crate::wire::{Message, ReadOutcome, VolumeHello};

/// Bits of `flags` in a [`crate::wire::Hello`].
pub(super) mod hello_flags {
    pub const DISCARD_MY_DATA: u8 = 1;
    pub const ALWAYS_ASBP: u8 = 2;
    pub const ALL: u8 = 3;
}

/// Bits of `flags` in a [`VolumeHello`].
pub(super) mod volume_flags {
    pub const ATTACHED_ANEW: u8 = 1;
    pub const CRASHED_PRIMARY: u8 = 2;
    pub const RUNNING_SINCE_CONTACT: u8 = 4;
    pub const FULL_SYNC: u8 = 8;
    pub const SYNC_TARGET: u8 = 16;
    pub const ALL: u8 = 31;
}

/// Where the bytes of a body go.
pub(super) trait Sink {
    fn bytes(&mut self, bytes: &[u8]);

    fn u8(&mut self, value: u8) {
        self.bytes(&[value]);
    }
    fn u16(&mut self, value: u16) {
        self.bytes(&value.to_le_bytes());
    }
    fn u32(&mut self, value: u32) {
        self.bytes(&value.to_le_bytes());
    }
    fn u64(&mut self, value: u64) {
        self.bytes(&value.to_le_bytes());
    }
    fn code(&mut self, word: impl WireCode)
    where
        Self: Sized,
    {
        self.u8(word.to_code());
    }
    fn volume(&mut self, volume: VolumeNumber) {
        self.u16(volume.0);
    }
    fn generation(&mut self, generation: Generation) {
        self.u64(generation.0);
    }
    fn range(&mut self, range: ByteRange) {
        self.u64(range.offset);
        self.u32(range.length);
    }
    fn count(&mut self, what: &str, count: usize, limit: usize) {
        assert!(
            count <= limit,
            "{count} {what} in a message, at most {limit}"
        );
        self.u32(count as u32);
    }
    fn history(&mut self, history: &[Generation]) {
        self.count("history entries", history.len(), limits::HISTORY_LENGTH);
        for &generation in history {
            self.generation(generation);
        }
    }
}

/// Counts.
pub(super) struct Length(pub usize);

impl Sink for Length {
    fn bytes(&mut self, bytes: &[u8]) {
        self.0 += bytes.len();
    }
}

impl Sink for Vec<u8> {
    fn bytes(&mut self, bytes: &[u8]) {
        self.extend_from_slice(bytes);
    }
}

/// As much of the text as fits [`limits::MAX_TEXT_BYTES`], without breaking a character.
fn clipped(text: &str) -> &str {
    let mut end = text.len().min(limits::MAX_TEXT_BYTES);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

fn put_volume_hello(out: &mut impl Sink, hello: &VolumeHello) {
    let VolumeHello {
        volume,
        round,
        disk,
        attached_anew,
        max_bytes,
        effective_bytes,
        current,
        bitmap,
        history,
        crashed_primary,
        running_since_contact,
        full_sync,
        sync_target,
        bits,
        cache,
    } = hello;
    let flags = [
        (*attached_anew, volume_flags::ATTACHED_ANEW),
        (*crashed_primary, volume_flags::CRASHED_PRIMARY),
        (*running_since_contact, volume_flags::RUNNING_SINCE_CONTACT),
        (*full_sync, volume_flags::FULL_SYNC),
        (*sync_target, volume_flags::SYNC_TARGET),
    ];
    out.volume(*volume);
    out.u32(*round);
    out.code(*disk);
    out.u8(joined(&flags));
    out.u64(*max_bytes);
    out.u64(*effective_bytes);
    out.generation(*current);
    out.generation(*bitmap);
    out.u64(*bits);
    out.u64(*cache);
    out.history(history);
}

/// The bits whose flag is set.
fn joined(flags: &[(bool, u8)]) -> u8 {
    flags
        .iter()
        .filter(|(set, _)| *set)
        .fold(0, |all, (_, bit)| all | bit)
}

/// The body of a message.
pub(super) fn put_body<P>(out: &mut impl Sink, message: &Message<P>) {
    match message {
        Message::Hello(hello) => {
            let policies = &hello.policies;
            let flags = [
                (hello.discard_my_data, hello_flags::DISCARD_MY_DATA),
                (policies.always_asbp, hello_flags::ALWAYS_ASBP),
            ];
            out.u8(hello.node_id.0);
            out.code(hello.role);
            out.code(hello.protocol);
            out.code(policies.after_sb_0pri);
            out.code(policies.after_sb_1pri);
            out.code(policies.after_sb_2pri);
            out.u8(joined(&flags));
            out.count("volumes", hello.volumes.len(), limits::MAX_VOLUMES);
            for volume in &hello.volumes {
                put_volume_hello(out, volume);
            }
        }
        Message::Again(hello) => put_volume_hello(out, hello),
        Message::PeerState { role, disks } => {
            out.code(*role);
            out.count("volumes", disks.len(), limits::MAX_VOLUMES);
            for &(volume, disk) in disks {
                out.volume(volume);
                out.code(disk);
            }
        }
        Message::OutdateRequest => {}
        Message::Ping { id } | Message::Pong { id } | Message::PromoteRequest { id } => {
            out.u64(*id)
        }
        Message::PromoteReply { id, refusal } => {
            out.u64(*id);
            out.bytes(&refusal.to_le_bytes());
        }
        Message::Goodbye { reason, text } => {
            let text = clipped(text);
            out.code(*reason);
            out.count("bytes of text", text.len(), limits::MAX_TEXT_BYTES);
            out.bytes(text.as_bytes());
        }
        Message::Resize {
            volume,
            stage,
            bytes,
            text,
        } => {
            let text = clipped(text);
            out.volume(*volume);
            out.code(*stage);
            out.u64(*bytes);
            out.count("bytes of text", text.len(), limits::MAX_TEXT_BYTES);
            out.bytes(text.as_bytes());
        }
        Message::InvalidateAnswer { volume, granted } => {
            out.volume(*volume);
            out.u8((*granted).into());
        }
        Message::ResyncPause { volume, paused } => {
            out.volume(*volume);
            out.u8((*paused).into());
        }
        Message::SkipInitialSync { volume, current }
        | Message::MissesTracked { volume, current } => {
            out.volume(*volume);
            out.generation(*current);
        }
        Message::SkipInitialSyncDone {
            volume,
            current,
            done,
        } => {
            out.volume(*volume);
            out.generation(*current);
            out.u8((*done).into());
        }
        Message::VolumeReady { volume }
        | Message::InvalidateRequest { volume }
        | Message::InvalidateQuestion { volume }
        | Message::DiskBack { volume }
        | Message::ResyncReady { volume }
        | Message::BitmapTaken { volume }
        | Message::ResyncFinish { volume }
        | Message::ResyncFinished { volume } => out.volume(*volume),
        Message::ResyncWaits {
            volume,
            milliseconds,
        } => {
            out.volume(*volume);
            out.u32(*milliseconds);
        }
        Message::Write {
            sequence,
            epoch,
            volume,
            range,
            payload: _,
        }
        | Message::Discard {
            sequence,
            epoch,
            volume,
            range,
        } => {
            out.u64(*sequence);
            out.u64(*epoch);
            out.volume(*volume);
            out.range(*range);
        }
        Message::WriteZeroes {
            sequence,
            epoch,
            volume,
            range,
            may_unmap,
        } => {
            out.u64(*sequence);
            out.u64(*epoch);
            out.volume(*volume);
            out.range(*range);
            out.u8((*may_unmap).into());
        }
        Message::Barrier { epoch } | Message::BarrierAck { epoch } => out.u64(*epoch),
        Message::ReadRequest { id, volume, range }
        | Message::ResyncData {
            id,
            volume,
            range,
            payload: _,
        }
        | Message::ResyncZeroes { id, volume, range } => {
            out.u64(*id);
            out.volume(*volume);
            out.range(*range);
        }
        Message::DiskLost {
            volume,
            generation,
            missed,
        } => {
            out.volume(*volume);
            out.generation(*generation);
            out.count("missed ranges", missed.len(), limits::MAX_MISSED_RANGES);
            for &range in missed {
                out.range(range);
            }
        }
        Message::Received { through } => out.u64(*through),
        Message::Written { first, count } => {
            out.u64(*first);
            out.u32(*count);
        }
        Message::Failed { sequence } => out.u64(*sequence),
        Message::BitmapRuns { volume, runs, last } => {
            out.volume(*volume);
            out.u8((*last).into());
            out.count("bytes of bitmap", runs.len(), limits::BITMAP_PART_BYTES);
            out.bytes(runs);
        }
        Message::ResyncBegin {
            volume,
            current,
            history,
        } => {
            out.volume(*volume);
            out.generation(*current);
            out.history(history);
        }
        Message::ResyncFlush { volume, id } | Message::ResyncFlushed { volume, id } => {
            out.volume(*volume);
            out.u64(*id);
        }
        Message::ReadReply {
            id,
            outcome,
            payload,
        } => {
            assert!(
                payload.is_some() == (*outcome == ReadOutcome::Data),
                "a reply to a read has a payload exactly if it succeeded"
            );
            out.u64(*id);
            out.code(*outcome);
        }
        Message::ResyncAck {
            volume,
            id,
            outcome,
        } => {
            out.volume(*volume);
            out.u64(*id);
            out.code(*outcome);
        }
    }
}
