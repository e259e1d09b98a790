//! Bodies of messages from bytes; `encode` is the mirror, field by field.
//!
//! What a body can say wrongly by itself is refused here: unknown codes, broken bounds, ranges that no device has. Whether a
//! message makes sense at this moment, and whether volume and numbers exist, is the engine's business.

use alloc::boxed::Box;

use super::encode::{hello_flags, volume_flags};
use super::error::WireError;
use super::kind::MessageKind;
use super::reader::{RANGE_BYTES, Reader};
use crate::limits;
use crate::split_brain::Policies;
use crate::units::{BLOCK_BYTES, ByteRange, Generation, NodeId, VolumeNumber};
use crate::wire::{Hello, Message, ReadOutcome, VolumeHello};

/// Bytes of a [`VolumeHello`] without history.
const VOLUME_HELLO_BYTES: usize = 60;
/// Bytes of one entry of a [`Message::PeerState`].
const DISK_BYTES: usize = 3;
const GENERATION_BYTES: usize = 8;

// The largest bodies fit.
const _: () = {
    let volume_hello = VOLUME_HELLO_BYTES + limits::HISTORY_LENGTH * GENERATION_BYTES;
    assert!(11 + limits::MAX_VOLUMES * volume_hello <= limits::MAX_BODY_BYTES);
    assert!(5 + limits::MAX_VOLUMES * DISK_BYTES <= limits::MAX_BODY_BYTES);
    assert!(6 + limits::MAX_MISSED_RANGES * RANGE_BYTES <= limits::MAX_BODY_BYTES);
    assert!(7 + limits::BITMAP_PART_BYTES <= limits::MAX_BODY_BYTES);
};

fn history(reader: &mut Reader<'_>) -> Result<alloc::vec::Vec<Generation>, WireError> {
    reader.list(
        "history",
        limits::HISTORY_LENGTH,
        GENERATION_BYTES,
        |reader| reader.generation("history"),
    )
}

fn hello(reader: &mut Reader<'_>) -> Result<Hello, WireError> {
    let node_id = reader.u8("node_id")?;
    reader.bounds("node_id", node_id.into(), 0, limits::MAX_NODES as u64 - 1)?;
    let role = reader.code("role")?;
    let protocol = reader.code("protocol")?;
    let after_sb_0pri = reader.code("policies.after_sb_0pri")?;
    let after_sb_1pri = reader.code("policies.after_sb_1pri")?;
    let after_sb_2pri = reader.code("policies.after_sb_2pri")?;
    let flags = reader.flags("flags", hello_flags::ALL)?;
    Ok(Hello {
        node_id: NodeId(node_id),
        role,
        protocol,
        policies: Policies {
            after_sb_0pri,
            after_sb_1pri,
            after_sb_2pri,
            always_asbp: flags & hello_flags::ALWAYS_ASBP != 0,
        },
        discard_my_data: flags & hello_flags::DISCARD_MY_DATA != 0,
        volumes: reader.list(
            "volumes",
            limits::MAX_VOLUMES,
            VOLUME_HELLO_BYTES,
            volume_hello,
        )?,
    })
}

fn volume_hello(reader: &mut Reader<'_>) -> Result<VolumeHello, WireError> {
    let volume = reader.volume()?;
    let round = reader.u32("round")?;
    let disk = reader.code("disk")?;
    let flags = reader.flags("flags", volume_flags::ALL)?;
    let most_bits = limits::MAX_DEVICE_BYTES / BLOCK_BYTES;
    Ok(VolumeHello {
        volume,
        round,
        disk,
        attached_anew: flags & volume_flags::ATTACHED_ANEW != 0,
        crashed_primary: flags & volume_flags::CRASHED_PRIMARY != 0,
        running_since_contact: flags & volume_flags::RUNNING_SINCE_CONTACT != 0,
        full_sync: flags & volume_flags::FULL_SYNC != 0,
        sync_target: flags & volume_flags::SYNC_TARGET != 0,
        max_bytes: reader.u64_up_to("max_bytes", limits::MAX_DEVICE_BYTES)?,
        effective_bytes: reader.u64_up_to("effective_bytes", limits::MAX_DEVICE_BYTES)?,
        current: reader.generation("current")?,
        bitmap: reader.generation("bitmap")?,
        bits: reader.u64_up_to("bits", most_bits)?,
        cache: reader.u64("cache")?,
        history: history(reader)?,
    })
}

/// What every operation on the data lane begins with.
fn operation(reader: &mut Reader<'_>) -> Result<(u64, u64, VolumeNumber, ByteRange), WireError> {
    Ok((
        reader.u64("sequence")?,
        reader.u64("epoch")?,
        reader.volume()?,
        reader.range()?,
    ))
}

/// A body as a message; its payload, of `announced` bytes, is put in by `payload` when the body was found whole.
struct Decoder<'a, P> {
    reader: Reader<'a>,
    announced: usize,
    payload: Option<P>,
}

impl<P> Decoder<'_, P> {
    /// Checks that the body is over and that the header announced as many bytes of payload as the body says.
    fn finish(self, expected: usize) -> Result<Option<P>, WireError> {
        let kind = self.reader.kind;
        self.reader.finish()?;
        if self.announced != expected {
            return Err(WireError::PayloadLength {
                kind,
                expected,
                announced: self.announced,
            });
        }
        Ok(self.payload)
    }

    /// The payload of a message that has one, `expected` bytes long.
    fn finish_with_payload(self, expected: usize) -> Result<P, WireError> {
        let (kind, announced) = (self.reader.kind, self.announced);
        let missing = WireError::PayloadLength {
            kind,
            expected,
            announced,
        };
        self.finish(expected)?.ok_or(missing)
    }
}

/// The message in `body`. `payload` holds `announced` bytes; `None` only if that is 0.
pub(super) fn message<P>(
    kind: MessageKind,
    body: &[u8],
    announced: usize,
    payload: Option<P>,
) -> Result<Message<P>, WireError> {
    let mut decoder = Decoder {
        reader: Reader::new(kind, body),
        announced,
        payload,
    };
    let reader = &mut decoder.reader;
    let message = match kind {
        MessageKind::Write => {
            let (sequence, epoch, volume, range) = operation(reader)?;
            let payload = decoder.finish_with_payload(range.length as usize)?;
            return Ok(Message::Write {
                sequence,
                epoch,
                volume,
                range,
                payload,
            });
        }
        MessageKind::ResyncData => {
            let (id, volume, range) = (reader.u64("id")?, reader.volume()?, reader.range()?);
            let payload = decoder.finish_with_payload(range.length as usize)?;
            return Ok(Message::ResyncData {
                id,
                volume,
                range,
                payload,
            });
        }
        MessageKind::ReadReply => {
            let (id, outcome) = (reader.u64("id")?, reader.code("outcome")?);
            if outcome == ReadOutcome::Data {
                // How much was asked for is the engine's knowledge; nothing at all was not.
                let payload = Some(decoder.finish_with_payload(announced.max(1))?);
                return Ok(Message::ReadReply {
                    id,
                    outcome,
                    payload,
                });
            }
            Message::ReadReply {
                id,
                outcome,
                payload: None,
            }
        }
        MessageKind::Discard => {
            let (sequence, epoch, volume, range) = operation(reader)?;
            Message::Discard {
                sequence,
                epoch,
                volume,
                range,
            }
        }
        MessageKind::WriteZeroes => {
            let (sequence, epoch, volume, range) = operation(reader)?;
            let may_unmap = reader.flag("may_unmap")?;
            Message::WriteZeroes {
                sequence,
                epoch,
                volume,
                range,
                may_unmap,
            }
        }
        MessageKind::Barrier => Message::Barrier {
            epoch: reader.u64("epoch")?,
        },
        MessageKind::ReadRequest => Message::ReadRequest {
            id: reader.u64("id")?,
            volume: reader.volume()?,
            range: reader.range()?,
        },
        MessageKind::DiskLost => Message::DiskLost {
            volume: reader.volume()?,
            generation: reader.generation("generation")?,
            missed: reader.list(
                "missed",
                limits::MAX_MISSED_RANGES,
                RANGE_BYTES,
                Reader::range,
            )?,
        },
        MessageKind::DiskBack => Message::DiskBack {
            volume: reader.volume()?,
        },
        MessageKind::Received => Message::Received {
            through: reader.u64("through")?,
        },
        MessageKind::Written => {
            let (first, count) = (reader.u64("first")?, reader.u32("count")?);
            let most = limits::MAX_BUFFERED_OPERATIONS as u64;
            reader.bounds("count", count.into(), 1, most)?;
            reader.bounds("first", first, 0, u64::MAX - u64::from(count))?;
            Message::Written { first, count }
        }
        MessageKind::Failed => Message::Failed {
            sequence: reader.u64("sequence")?,
        },
        MessageKind::BarrierAck => Message::BarrierAck {
            epoch: reader.u64("epoch")?,
        },
        MessageKind::ResyncAck => Message::ResyncAck {
            volume: reader.volume()?,
            id: reader.u64("id")?,
            outcome: reader.code("outcome")?,
        },
        MessageKind::ResyncFlushed => Message::ResyncFlushed {
            volume: reader.volume()?,
            id: reader.u64("id")?,
        },
        MessageKind::ResyncFinished => Message::ResyncFinished {
            volume: reader.volume()?,
        },
        MessageKind::Hello => Message::Hello(Box::new(hello(reader)?)),
        MessageKind::Again => Message::Again(Box::new(volume_hello(reader)?)),
        MessageKind::VolumeReady => Message::VolumeReady {
            volume: reader.volume()?,
        },
        MessageKind::PeerState => Message::PeerState {
            role: reader.code("role")?,
            disks: reader.list("disks", limits::MAX_VOLUMES, DISK_BYTES, |reader| {
                Ok((reader.volume()?, reader.code("disk")?))
            })?,
        },
        MessageKind::Ping => Message::Ping {
            id: reader.u64("id")?,
        },
        MessageKind::Pong => Message::Pong {
            id: reader.u64("id")?,
        },
        MessageKind::PromoteRequest => Message::PromoteRequest {
            id: reader.u64("id")?,
        },
        MessageKind::PromoteReply => Message::PromoteReply {
            id: reader.u64("id")?,
            refusal: reader.i32("refusal")?,
        },
        MessageKind::Goodbye => Message::Goodbye {
            reason: reader.code("reason")?,
            text: reader.text("text", limits::MAX_TEXT_BYTES)?,
        },
        MessageKind::Resize => Message::Resize {
            volume: reader.volume()?,
            stage: reader.code("stage")?,
            bytes: reader.u64_up_to("bytes", limits::MAX_DEVICE_BYTES)?,
            text: reader.text("text", limits::MAX_TEXT_BYTES)?,
        },
        MessageKind::ResyncPause => Message::ResyncPause {
            volume: reader.volume()?,
            paused: reader.flag("paused")?,
        },
        MessageKind::SkipInitialSync => Message::SkipInitialSync {
            volume: reader.volume()?,
            current: reader.generation("current")?,
        },
        MessageKind::SkipInitialSyncDone => Message::SkipInitialSyncDone {
            volume: reader.volume()?,
            current: reader.generation("current")?,
            done: reader.flag("done")?,
        },
        MessageKind::InvalidateRequest => Message::InvalidateRequest {
            volume: reader.volume()?,
        },
        MessageKind::InvalidateQuestion => Message::InvalidateQuestion {
            volume: reader.volume()?,
        },
        MessageKind::InvalidateAnswer => Message::InvalidateAnswer {
            volume: reader.volume()?,
            granted: reader.flag("granted")?,
        },
        MessageKind::OutdateRequest => Message::OutdateRequest,
        MessageKind::MissesTracked => Message::MissesTracked {
            volume: reader.volume()?,
            current: reader.generation("current")?,
        },
        MessageKind::BitmapRuns => Message::BitmapRuns {
            volume: reader.volume()?,
            last: reader.flag("last")?,
            runs: reader.bytes("runs", limits::BITMAP_PART_BYTES)?.to_vec(),
        },
        MessageKind::ResyncBegin => Message::ResyncBegin {
            volume: reader.volume()?,
            current: reader.generation("current")?,
            history: history(reader)?,
        },
        MessageKind::ResyncReady => Message::ResyncReady {
            volume: reader.volume()?,
        },
        MessageKind::ResyncWaits => Message::ResyncWaits {
            volume: reader.volume()?,
            milliseconds: reader.u32("milliseconds")?,
        },
        MessageKind::BitmapTaken => Message::BitmapTaken {
            volume: reader.volume()?,
        },
        MessageKind::ResyncZeroes => Message::ResyncZeroes {
            id: reader.u64("id")?,
            volume: reader.volume()?,
            range: reader.range()?,
        },
        MessageKind::ResyncFlush => Message::ResyncFlush {
            volume: reader.volume()?,
            id: reader.u64("id")?,
        },
        MessageKind::ResyncFinish => Message::ResyncFinish {
            volume: reader.volume()?,
        },
    };
    decoder.finish(0)?;
    Ok(message)
}
