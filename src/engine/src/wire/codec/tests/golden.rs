//! The exact bytes of one message of each kind, a line for each field. They were computed from the description in
//! `docs/wire-protocol.md` by other means than the encoder: a change here is a change of the format.

use alloc::boxed::Box;
use std::string::String;
use std::vec::Vec;
use std::{format, vec};

use super::samples::Bytes;
use crate::generation::Protocol;
use crate::split_brain::{Policies, Policy};
use crate::state::{DiskState, Refusal, Role};
use crate::units::{ByteRange, Generation, NodeId, VolumeNumber};
use crate::wire::codec::*;
use crate::wire::{GoodbyeReason, Hello, ReadOutcome, ResizeStage, ResyncOutcome, VolumeHello};

type Golden = (Message<Bytes>, &'static str);

/// The first word of each line.
fn hex(text: &str) -> String {
    text.lines()
        .filter_map(|line| line.split_whitespace().next())
        .collect()
}

fn check(lane: Lane, goldens: &[Golden]) {
    for (message, expected) in goldens {
        let expected = hex(expected);
        let found: String = encode_head(message)
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        assert_eq!(found, expected, "{}", MessageKind::of(message));
        let bytes: Vec<u8> = (0..expected.len())
            .step_by(2)
            .map(|at| u8::from_str_radix(&expected[at..at + 2], 16).unwrap())
            .collect();
        let received = decode(&bytes, payload_of(message).cloned());
        assert_eq!(received, Ok((lane, message.clone())));
    }
}

fn volume() -> VolumeHello {
    VolumeHello {
        volume: VolumeNumber(2),
        round: 1,
        disk: DiskState::UpToDate,
        attached_anew: true,
        max_bytes: 1 << 30,
        effective_bytes: 1 << 29,
        current: Generation(0xa0a1_a2a3_a4a5_a6a7),
        bitmap: Generation(0xb0b1_b2b3_b4b5_b6b7),
        history: vec![
            Generation(0xc0c1_c2c3_c4c5_c6c7),
            Generation(0xd0d1_d2d3_d4d5_d6d7),
        ],
        crashed_primary: false,
        running_since_contact: false,
        full_sync: true,
        sync_target: false,
        bits: 3,
        cache: 0xe0e1_e2e3_e4e5_e6e7,
    }
}

fn crashed_volume() -> VolumeHello {
    VolumeHello {
        volume: VolumeNumber(65535),
        round: 7,
        disk: DiskState::Inconsistent,
        attached_anew: false,
        max_bytes: 4096,
        effective_bytes: 0,
        current: Generation::JUST_CREATED,
        bitmap: Generation::NONE,
        history: Vec::new(),
        crashed_primary: true,
        running_since_contact: true,
        full_sync: false,
        sync_target: true,
        bits: 1,
        cache: 0,
    }
}

#[test]
fn every_kind_has_golden_bytes() {
    let goldens = [data(), acks(), control(), resync()].concat();
    let mut kinds: Vec<_> = goldens
        .iter()
        .map(|(message, _)| MessageKind::of(message))
        .collect();
    kinds.dedup();
    assert_eq!(kinds, MessageKind::ALL);
}

#[test]
fn bytes_of_the_data_lane_never_change() {
    check(Lane::Data, &data());
}

fn data() -> Vec<Golden> {
    vec![
        (
            Message::Write {
                sequence: 0x0102_0304_0506_0708,
                epoch: 0x11,
                volume: VolumeNumber(3),
                range: ByteRange::new(8192, 4096),
                payload: Bytes(4096),
            },
            r#"
            51524246          magic "QRBF"
            01                version 1
            20                kind Write
            0000              flags
            1e000000          body length 30
            00100000          payload length 4096
            7eeaf544          checksum
            0807060504030201  sequence
            1100000000000000  epoch
            0300              volume 3
            0020000000000000  range.offset 8192
            00100000          range.length 4096
"#,
        ),
        (
            Message::Discard {
                sequence: 2,
                epoch: 0x11,
                volume: VolumeNumber(3),
                range: ByteRange::new(1 << 40, 32 << 20),
            },
            r#"
            51524246          magic "QRBF"
            01                version 1
            21                kind Discard
            0000              flags
            1e000000          body length 30
            00000000          payload length 0
            e2967b42          checksum
            0200000000000000  sequence
            1100000000000000  epoch
            0300              volume 3
            0000000000010000  range.offset 1099511627776
            00000002          range.length 33554432
"#,
        ),
        (
            Message::WriteZeroes {
                sequence: 3,
                epoch: 0x11,
                volume: VolumeNumber(3),
                range: ByteRange::new(512, 1536),
                may_unmap: true,
            },
            r#"
            51524246          magic "QRBF"
            01                version 1
            22                kind WriteZeroes
            0000              flags
            1f000000          body length 31
            00000000          payload length 0
            8decdaa4          checksum
            0300000000000000  sequence
            1100000000000000  epoch
            0300              volume 3
            0002000000000000  range.offset 512
            00060000          range.length 1536
            01                may_unmap yes
"#,
        ),
        (
            Message::Barrier {
                epoch: 0x1122_3344_5566_7788,
            },
            r#"
            51524246          magic "QRBF"
            01                version 1
            23                kind Barrier
            0000              flags
            08000000          body length 8
            00000000          payload length 0
            99be0f9f          checksum
            8877665544332211  epoch
"#,
        ),
        (
            Message::ReadRequest {
                id: 5,
                volume: VolumeNumber(3),
                range: ByteRange::new(4096, 65536),
            },
            r#"
            51524246          magic "QRBF"
            01                version 1
            24                kind ReadRequest
            0000              flags
            16000000          body length 22
            00000000          payload length 0
            c7578af4          checksum
            0500000000000000  id
            0300              volume 3
            0010000000000000  range.offset 4096
            00000100          range.length 65536
"#,
        ),
        (
            Message::DiskLost {
                volume: VolumeNumber(3),
                generation: Generation(0x0807_0605_0403_0200),
                missed: vec![ByteRange::new(0, 512), ByteRange::new(1 << 20, 4096)],
            },
            r#"
            51524246          magic "QRBF"
            01                version 1
            25                kind DiskLost
            0000              flags
            26000000          body length 38
            00000000          payload length 0
            9e4538ab          checksum
            0300              volume 3
            0002030405060708  generation
            02000000          missed: 2 ranges
            0000000000000000  missed[0].offset 0
            00020000          missed[0].length 512
            0000100000000000  missed[1].offset 1 MiB
            00100000          missed[1].length 4096
"#,
        ),
        (
            Message::DiskBack {
                volume: VolumeNumber(3),
            },
            r#"
            51524246          magic "QRBF"
            01                version 1
            26                kind DiskBack
            0000              flags
            02000000          body length 2
            00000000          payload length 0
            2cb3df62          checksum
            0300              volume 3
"#,
        ),
    ]
}

#[test]
fn bytes_of_the_acks_lane_never_change() {
    check(Lane::Acks, &acks());
}

fn acks() -> Vec<Golden> {
    vec![
        (
            Message::Received {
                through: 0x1122_3344_5566_7788,
            },
            r#"
            51524246          magic "QRBF"
            01                version 1
            40                kind Received
            0000              flags
            08000000          body length 8
            00000000          payload length 0
            0ca2d557          checksum
            8877665544332211  through
"#,
        ),
        (
            Message::Written {
                first: 0x1122_3344_5566_7788,
                count: 258,
            },
            r#"
            51524246          magic "QRBF"
            01                version 1
            41                kind Written
            0000              flags
            0c000000          body length 12
            00000000          payload length 0
            96bf7bc6          checksum
            8877665544332211  first
            02010000          count 258
"#,
        ),
        (
            Message::Failed { sequence: 9 },
            r#"
            51524246          magic "QRBF"
            01                version 1
            42                kind Failed
            0000              flags
            08000000          body length 8
            00000000          payload length 0
            91913844          checksum
            0900000000000000  sequence
"#,
        ),
        (
            Message::BarrierAck { epoch: 9 },
            r#"
            51524246          magic "QRBF"
            01                version 1
            43                kind BarrierAck
            0000              flags
            08000000          body length 8
            00000000          payload length 0
            c911da93          checksum
            0900000000000000  epoch
"#,
        ),
        (
            Message::ResyncAck {
                volume: VolumeNumber(3),
                id: 9,
                outcome: ResyncOutcome::Retry,
            },
            r#"
            51524246          magic "QRBF"
            01                version 1
            44                kind ResyncAck
            0000              flags
            0b000000          body length 11
            00000000          payload length 0
            340a64ab          checksum
            0300              volume 3
            0900000000000000  id
            01                outcome Retry
"#,
        ),
        (
            Message::ResyncFlushed {
                volume: VolumeNumber(3),
                id: 9,
            },
            r#"
            51524246          magic "QRBF"
            01                version 1
            45                kind ResyncFlushed
            0000              flags
            0a000000          body length 10
            00000000          payload length 0
            7728d5ca          checksum
            0300              volume 3
            0900000000000000  id
"#,
        ),
        (
            Message::ResyncFinished {
                volume: VolumeNumber(3),
            },
            r#"
            51524246          magic "QRBF"
            01                version 1
            46                kind ResyncFinished
            0000              flags
            02000000          body length 2
            00000000          payload length 0
            72692c6c          checksum
            0300              volume 3
"#,
        ),
    ]
}

#[test]
fn bytes_of_the_control_lane_never_change() {
    check(Lane::Control, &control());
}

fn control() -> Vec<Golden> {
    vec![
        (
            Message::Hello(Box::new(Hello {
                node_id: NodeId(1),
                role: Role::Primary,
                protocol: Protocol::C,
                policies: Policies {
                    after_sb_0pri: Policy::DiscardZeroChanges,
                    after_sb_1pri: Policy::Consensus,
                    after_sb_2pri: Policy::CallPriLostAfterSb,
                    always_asbp: true,
                },
                discard_my_data: true,
                volumes: vec![volume(), crashed_volume()],
            })),
            r#"
            51524246          magic "QRBF"
            01                version 1
            60                kind Hello
            0000              flags
            93000000          body length 147
            00000000          payload length 0
            ceb4a20d          checksum
            01                node_id 1
            01                role Primary
            02                protocol C
            03                after_sb_0pri discard-zero-changes
            08                after_sb_1pri consensus
            0a                after_sb_2pri call-pri-lost-after-sb
            03                flags: discard_my_data, always_asbp
            02000000          volumes: 2
            0200              volume 2
            01000000          round 1
            09                disk UpToDate
            09                flags: attached_anew, full_sync
            0000004000000000  max_bytes 1 GiB
            0000002000000000  effective_bytes 512 MiB
            a7a6a5a4a3a2a1a0  current
            b7b6b5b4b3b2b1b0  bitmap
            0300000000000000  bits 3
            e7e6e5e4e3e2e1e0  cache
            02000000          history: 2 entries
            c7c6c5c4c3c2c1c0  history[0]
            d7d6d5d4d3d2d1d0  history[1]
            ffff              volume 65535
            07000000          round 7
            05                disk Inconsistent
            16                flags: crashed_primary, running_since_contact, sync_target
            0010000000000000  max_bytes
            0000000000000000  effective_bytes
            0400000000000000  current
            0000000000000000  bitmap
            0100000000000000  bits
            0000000000000000  cache
            00000000          history: none
"#,
        ),
        (
            Message::Again(Box::new(crashed_volume())),
            r#"
            51524246          magic "QRBF"
            01                version 1
            61                kind Again
            0000              flags
            3c000000          body length 60
            00000000          payload length 0
            4274c280          checksum
            ffff              volume 65535
            07000000          round 7
            05                disk Inconsistent
            16                flags: crashed_primary, running_since_contact, sync_target
            0010000000000000  max_bytes
            0000000000000000  effective_bytes
            0400000000000000  current
            0000000000000000  bitmap
            0100000000000000  bits
            0000000000000000  cache
            00000000          history: none
"#,
        ),
        (
            Message::VolumeReady {
                volume: VolumeNumber(3),
            },
            r#"
            51524246          magic "QRBF"
            01                version 1
            62                kind VolumeReady
            0000              flags
            02000000          body length 2
            00000000          payload length 0
            1148eb1f          checksum
            0300              volume 3
"#,
        ),
        (
            Message::PeerState {
                role: Role::Secondary,
                disks: vec![
                    (VolumeNumber(0), DiskState::Consistent),
                    (VolumeNumber(3), DiskState::Diskless),
                ],
            },
            r#"
            51524246          magic "QRBF"
            01                version 1
            63                kind PeerState
            0000              flags
            0b000000          body length 11
            00000000          payload length 0
            31b90f9f          checksum
            02                role Secondary
            02000000          disks: 2
            0000              disks[0].volume 0
            08                disks[0].disk Consistent
            0300              disks[1].volume 3
            00                disks[1].disk Diskless
"#,
        ),
        (
            Message::Ping {
                id: 0x1122_3344_5566_7788,
            },
            r#"
            51524246          magic "QRBF"
            01                version 1
            64                kind Ping
            0000              flags
            08000000          body length 8
            00000000          payload length 0
            fad93998          checksum
            8877665544332211  id
"#,
        ),
        (
            Message::Pong {
                id: 0x1122_3344_5566_7788,
            },
            r#"
            51524246          magic "QRBF"
            01                version 1
            65                kind Pong
            0000              flags
            08000000          body length 8
            00000000          payload length 0
            a259db4f          checksum
            8877665544332211  id
"#,
        ),
        (
            Message::PromoteRequest {
                id: 0x1122_3344_5566_7788,
            },
            r#"
            51524246          magic "QRBF"
            01                version 1
            66                kind PromoteRequest
            0000              flags
            08000000          body length 8
            00000000          payload length 0
            0bdf8dec          checksum
            8877665544332211  id
"#,
        ),
        (
            Message::PromoteReply {
                id: 0x1122_3344_5566_7788,
                refusal: Refusal::ConcurrentStateChange.code(),
            },
            r#"
            51524246          magic "QRBF"
            01                version 1
            67                kind PromoteReply
            0000              flags
            0c000000          body length 12
            00000000          payload length 0
            3fdc34a6          checksum
            8877665544332211  id
            edffffff          refusal -19
"#,
        ),
        (
            Message::Goodbye {
                reason: GoodbyeReason::StandAlone,
                text: "two Primaries €".into(),
            },
            r#"
            51524246          magic "QRBF"
            01                version 1
            68                kind Goodbye
            0000              flags
            16000000          body length 22
            00000000          payload length 0
            9aa67b70          checksum
            01                reason StandAlone
            11000000          text: 17 bytes
            74776f205072696d617269657320e282ac  text "two Primaries €"
"#,
        ),
        (
            Message::ResyncPause {
                volume: VolumeNumber(3),
                paused: true,
            },
            r#"
            51524246          magic "QRBF"
            01                version 1
            69                kind ResyncPause
            0000              flags
            03000000          body length 3
            00000000          payload length 0
            8cf01c41          checksum
            0300              volume 3
            01                paused yes
"#,
        ),
        (
            Message::SkipInitialSync {
                volume: VolumeNumber(3),
                current: Generation(0x1112_1314_1516_1718),
            },
            r#"
            51524246          magic "QRBF"
            01                version 1
            6a                kind SkipInitialSync
            0000              flags
            0a000000          body length 10
            00000000          payload length 0
            c065b0ad          checksum
            0300              volume 3
            1817161514131211  current
"#,
        ),
        (
            Message::SkipInitialSyncDone {
                volume: VolumeNumber(3),
                current: Generation(0x1112_1314_1516_1718),
                done: true,
            },
            r#"
            51524246          magic "QRBF"
            01                version 1
            6b                kind SkipInitialSyncDone
            0000              flags
            0b000000          body length 11
            00000000          payload length 0
            564906fe          checksum
            0300              volume 3
            1817161514131211  current
            01                done yes
"#,
        ),
        (
            Message::InvalidateRequest {
                volume: VolumeNumber(3),
            },
            r#"
            51524246          magic "QRBF"
            01                version 1
            6c                kind InvalidateRequest
            0000              flags
            02000000          body length 2
            00000000          payload length 0
            a1440de5          checksum
            0300              volume 3
"#,
        ),
        (
            Message::MissesTracked {
                volume: VolumeNumber(3),
                current: Generation(0x1112_1314_1516_1718),
            },
            r#"
            51524246          magic "QRBF"
            01                version 1
            6d                kind MissesTracked
            0000              flags
            0a000000          body length 10
            00000000          payload length 0
            98e357c4          checksum
            0300              volume 3
            1817161514131211  current
"#,
        ),
        (
            Message::BitmapRuns {
                volume: VolumeNumber(3),
                runs: vec![0, 0, 5, 2],
                last: true,
            },
            r#"
            51524246          magic "QRBF"
            01                version 1
            6e                kind BitmapRuns
            0000              flags
            0b000000          body length 11
            00000000          payload length 0
            6a7e046f          checksum
            0300              volume 3
            01                last yes
            04000000          runs: 4 bytes
            00000502          runs
"#,
        ),
        (
            Message::ResyncBegin {
                volume: VolumeNumber(3),
                current: Generation(0x1112_1314_1516_1718),
                history: vec![Generation(0xc0c1_c2c3_c4c5_c6c7)],
            },
            r#"
            51524246          magic "QRBF"
            01                version 1
            6f                kind ResyncBegin
            0000              flags
            16000000          body length 22
            00000000          payload length 0
            0ef92363          checksum
            0300              volume 3
            1817161514131211  current
            01000000          history: 1 entry
            c7c6c5c4c3c2c1c0  history[0]
"#,
        ),
        (
            Message::ResyncReady {
                volume: VolumeNumber(3),
            },
            r#"
            51524246          magic "QRBF"
            01                version 1
            70                kind ResyncReady
            0000              flags
            02000000          body length 2
            00000000          payload length 0
            805bb0cb          checksum
            0300              volume 3
"#,
        ),
        (
            Message::BitmapTaken {
                volume: VolumeNumber(3),
            },
            r#"
            51524246          magic "QRBF"
            01                version 1
            71                kind BitmapTaken
            0000              flags
            02000000          body length 2
            00000000          payload length 0
            05822616          checksum
            0300              volume 3
"#,
        ),
        (
            Message::Resize {
                volume: VolumeNumber(3),
                stage: ResizeStage::Refuse,
                bytes: 0x0000_0012_1314_1516,
                text: "no disk".into(),
            },
            r#"
            51524246          magic "QRBF"
            01                version 1
            72                kind Resize
            0000              flags
            16000000          body length 22
            00000000          payload length 0
            006d67dd          checksum
            0300              volume 3
            02                stage Refuse
            1615141312000000  bytes
            07000000          text: 7 bytes
            6e6f206469736b    text "no disk"
"#,
        ),
        (
            Message::OutdateRequest,
            r#"
            51524246          magic "QRBF"
            01                version 1
            73                kind OutdateRequest
            0000              flags
            00000000          body length 0
            00000000          payload length 0
            b4424fed          checksum
"#,
        ),
        (
            Message::ResyncWaits {
                volume: VolumeNumber(3),
                milliseconds: 600_000,
            },
            r#"
            51524246          magic "QRBF"
            01                version 1
            74                kind ResyncWaits
            0000              flags
            06000000          body length 6
            00000000          payload length 0
            08b0aeb4          checksum
            0300              volume 3
            c0270900          milliseconds 600000
"#,
        ),
        (
            Message::InvalidateQuestion {
                volume: VolumeNumber(3),
            },
            r#"
            51524246          magic "QRBF"
            01                version 1
            75                kind InvalidateQuestion
            0000              flags
            02000000          body length 2
            00000000          payload length 0
            93e89fd6          checksum
            0300              volume 3
"#,
        ),
        (
            Message::InvalidateAnswer {
                volume: VolumeNumber(3),
                granted: true,
            },
            r#"
            51524246          magic "QRBF"
            01                version 1
            76                kind InvalidateAnswer
            0000              flags
            03000000          body length 3
            00000000          payload length 0
            16783a71          checksum
            0300              volume 3
            01                granted yes
"#,
        ),
    ]
}

#[test]
fn bytes_of_the_resync_lane_never_change() {
    check(Lane::Resync, &resync());
}

fn resync() -> Vec<Golden> {
    vec![
        (
            Message::ResyncData {
                id: 1,
                volume: VolumeNumber(3),
                range: ByteRange::new(262144, 262144),
                payload: Bytes(262144),
            },
            r#"
            51524246          magic "QRBF"
            01                version 1
            83                kind ResyncData
            0000              flags
            16000000          body length 22
            00000400          payload length 262144
            453b908b          checksum
            0100000000000000  id
            0300              volume 3
            0000040000000000  range.offset 262144
            00000400          range.length 262144
"#,
        ),
        (
            Message::ResyncZeroes {
                id: 2,
                volume: VolumeNumber(3),
                range: ByteRange::new(524288, 262144),
            },
            r#"
            51524246          magic "QRBF"
            01                version 1
            84                kind ResyncZeroes
            0000              flags
            16000000          body length 22
            00000000          payload length 0
            0d1a0f41          checksum
            0200000000000000  id
            0300              volume 3
            0000080000000000  range.offset 524288
            00000400          range.length 262144
"#,
        ),
        (
            Message::ResyncFlush {
                volume: VolumeNumber(3),
                id: 9,
            },
            r#"
            51524246          magic "QRBF"
            01                version 1
            85                kind ResyncFlush
            0000              flags
            0a000000          body length 10
            00000000          payload length 0
            25f8870c          checksum
            0300              volume 3
            0900000000000000  id
"#,
        ),
        (
            Message::ResyncFinish {
                volume: VolumeNumber(3),
            },
            r#"
            51524246          magic "QRBF"
            01                version 1
            86                kind ResyncFinish
            0000              flags
            02000000          body length 2
            00000000          payload length 0
            ceddcb71          checksum
            0300              volume 3
"#,
        ),
        (
            Message::ReadReply {
                id: 5,
                outcome: ReadOutcome::Data,
                payload: Some(Bytes(65536)),
            },
            r#"
            51524246          magic "QRBF"
            01                version 1
            87                kind ReadReply
            0000              flags
            09000000          body length 9
            00000100          payload length 65536
            7ca3d180          checksum
            0500000000000000  id
            00                outcome Data
"#,
        ),
        (
            Message::ReadReply {
                id: 6,
                outcome: ReadOutcome::Failed,
                payload: None,
            },
            r#"
            51524246          magic "QRBF"
            01                version 1
            87                kind ReadReply (failed)
            0000              flags
            09000000          body length 9
            00000000          payload length 0
            ef70d50f          checksum
            0600000000000000  id
            01                outcome Failed
"#,
        ),
    ]
}
