//! Whatever comes from outside: refused with kind and field, never a panic, nothing allocated that the bytes do not account for.

use std::vec::Vec;
use std::{format, vec};

use proptest::prelude::*;

use super::samples::{Bytes, Source, message};
use crate::limits::*;
use crate::wire::codec::*;

/// A frame's head with a right checksum around any body.
fn head(kind: MessageKind, payload: u32, body: &[u8]) -> Vec<u8> {
    let mut head = Vec::new();
    head.extend_from_slice(&FRAME_MAGIC);
    head.extend_from_slice(&[WIRE_VERSION, kind.code(), 0, 0]);
    head.extend_from_slice(&(body.len() as u32).to_le_bytes());
    head.extend_from_slice(&payload.to_le_bytes());
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&head);
    hasher.update(body);
    head.extend_from_slice(&hasher.finalize().to_le_bytes());
    head.extend_from_slice(body);
    head
}

/// Decodes a head with the payload that it announces.
fn receive(head: &[u8]) -> Result<(Lane, Message<Bytes>), WireError> {
    let announced = head
        .get(12..16)
        .map_or(0, |bytes| u32::from_le_bytes(bytes.try_into().unwrap()));
    decode(head, (announced > 0).then_some(Bytes(announced as usize)))
}

/// A sample of the kind and its body.
fn body_of(kind: MessageKind, seed: u64) -> (Message<Bytes>, Vec<u8>) {
    let sample = message(kind, &mut Source(seed));
    let body = encode_head(&sample).split_off(FRAME_HEADER_BYTES);
    (sample, body)
}

fn payload_bytes(message: &Message<Bytes>) -> u32 {
    payload_of(message).map_or(0, Payload::length) as u32
}

/// Samples whose heads are short enough to try every bit of them.
fn short_heads() -> Vec<(MessageKind, Vec<u8>)> {
    let mut heads = Vec::new();
    for &kind in MessageKind::ALL {
        let mut found = 0;
        for seed in 0..200 {
            let bytes = encode_head(&message(kind, &mut Source(seed)));
            if bytes.len() < 1000 && found < 12 {
                found += 1;
                heads.push((kind, bytes));
            }
        }
        assert!(found > 0, "no short sample of {kind}");
    }
    heads
}

#[test]
fn every_prefix_of_every_head_is_refused() {
    for (kind, bytes) in short_heads() {
        for end in 0..bytes.len() {
            assert!(
                receive(&bytes[..end]).is_err(),
                "{kind}: {end} of {} bytes",
                bytes.len()
            );
        }
    }
}

#[test]
fn every_prefix_of_every_body_is_refused_though_its_checksum_is_right() {
    for (kind, bytes) in short_heads() {
        let announced = u32::from_le_bytes(bytes[12..16].try_into().unwrap());
        let body = &bytes[FRAME_HEADER_BYTES..];
        for end in 0..body.len() {
            let refusal = receive(&head(kind, announced, &body[..end])).unwrap_err();
            let named =
                matches!(refusal, WireError::Truncated { kind: named, .. } if named == kind);
            assert!(named, "{kind}: {end} of {} bytes: {refusal}", body.len());
        }
    }
}

#[test]
fn every_body_that_goes_on_is_refused() {
    for (kind, bytes) in short_heads() {
        let announced = u32::from_le_bytes(bytes[12..16].try_into().unwrap());
        let longer = [&bytes[FRAME_HEADER_BYTES..], &[0]].concat();
        let refusal = receive(&head(kind, announced, &longer)).unwrap_err();
        assert_eq!(refusal, WireError::Trailing { kind, bytes: 1 });
    }
}

#[test]
fn every_flipped_bit_of_every_head_is_refused() {
    for (kind, mut bytes) in short_heads() {
        let announced = u32::from_le_bytes(bytes[12..16].try_into().unwrap());
        let payload = (announced > 0).then_some(Bytes(announced as usize));
        for bit in 0..bytes.len() * 8 {
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert!(
                decode(&bytes, payload.clone()).is_err(),
                "{kind}: bit {bit}"
            );
            assert!(
                receive(&bytes).is_err(),
                "{kind}: bit {bit}, payload as announced"
            );
            bytes[bit / 8] ^= 1 << (bit % 8);
        }
    }
}

#[test]
fn a_foreign_version_flag_kind_or_magic_is_named() {
    let ping = encode_head(&Message::<Bytes>::Ping { id: 1 });
    let with = |at: usize, byte: u8| {
        let mut bytes: [u8; FRAME_HEADER_BYTES] = *ping.first_chunk().unwrap();
        bytes[at] = byte;
        parse_frame_header(&bytes).unwrap_err()
    };
    assert_eq!(with(0, b'X'), WireError::Magic { found: *b"XRBF" });
    assert_eq!(with(4, 2), WireError::Version { found: 2 });
    assert_eq!(with(5, 0x1f), WireError::Kind { code: 0x1f });
    assert_eq!(with(6, 1), WireError::Flags { found: 1 });
    assert_eq!(with(7, 0x80), WireError::Flags { found: 0x8000 });
    assert_eq!(
        format!("{}", with(4, 2)),
        "frame of wire version 2, this node reads version 1: run releases on both nodes that share a wire version"
    );
}

#[test]
fn a_length_beyond_its_limit_is_refused_by_the_header_alone() {
    let refusal = |kind: MessageKind, body: usize, payload: usize| {
        let mut header: [u8; FRAME_HEADER_BYTES] = *head(kind, 0, &[]).first_chunk().unwrap();
        header[8..12].copy_from_slice(&(body as u32).to_le_bytes());
        header[12..16].copy_from_slice(&(payload as u32).to_le_bytes());
        parse_frame_header(&header).err()
    };
    let write = MessageKind::Write;
    let most = MAX_REQUEST_BYTES as usize;
    assert_eq!(refusal(write, MAX_BODY_BYTES, most), None);
    for (body, payload, field, bytes, limit) in [
        (
            MAX_BODY_BYTES + 1,
            1,
            "body length",
            MAX_BODY_BYTES + 1,
            MAX_BODY_BYTES,
        ),
        (
            u32::MAX as usize,
            1,
            "body length",
            u32::MAX as usize,
            MAX_BODY_BYTES,
        ),
        (30, most + 1, "payload length", most + 1, most),
        (
            30,
            u32::MAX as usize,
            "payload length",
            u32::MAX as usize,
            most,
        ),
    ] {
        let expected = WireError::TooLong {
            kind: write,
            field,
            bytes,
            limit,
        };
        assert_eq!(refusal(write, body, payload), Some(expected));
    }
    for &kind in MessageKind::ALL {
        let expected = WireError::TooLong {
            kind,
            field: "payload length",
            bytes: 1,
            limit: 0,
        };
        assert_eq!(
            refusal(kind, 0, 1),
            (!kind.carries_payload()).then_some(expected)
        );
    }
}

#[test]
fn a_payload_that_is_not_what_header_and_body_say_is_refused() {
    for kind in [MessageKind::Write, MessageKind::ResyncData] {
        let (sample, body) = body_of(kind, 3);
        let length = payload_bytes(&sample);
        let refusal = decode(&head(kind, length, &body), None::<Bytes>).unwrap_err();
        let announced = length as usize;
        assert_eq!(
            refusal,
            WireError::Delivered {
                kind,
                announced,
                delivered: 0
            }
        );
        let other = if length == 1 { 2 } else { length - 1 };
        let refusal = receive(&head(kind, other, &body)).unwrap_err();
        let (expected, announced) = (length as usize, other as usize);
        assert_eq!(
            refusal,
            WireError::PayloadLength {
                kind,
                expected,
                announced
            }
        );
        let refusal = receive(&head(kind, 0, &body)).unwrap_err();
        assert_eq!(
            refusal,
            WireError::PayloadLength {
                kind,
                expected,
                announced: 0
            }
        );
    }
    let kind = MessageKind::ReadReply;
    let id = [0; 8];
    let failed = receive(&head(kind, 512, &[&id[..], &[1]].concat())).unwrap_err();
    assert_eq!(
        failed,
        WireError::PayloadLength {
            kind,
            expected: 0,
            announced: 512
        }
    );
    let empty = receive(&head(kind, 0, &[&id[..], &[0]].concat())).unwrap_err();
    assert_eq!(
        empty,
        WireError::PayloadLength {
            kind,
            expected: 1,
            announced: 0
        }
    );
    let surprise = decode(
        &encode_head(&Message::<Bytes>::Ping { id: 1 }),
        Some(Bytes(1)),
    );
    let kind = MessageKind::Ping;
    assert_eq!(
        surprise.unwrap_err(),
        WireError::Delivered {
            kind,
            announced: 0,
            delivered: 1
        }
    );
}

/// A body of zeroes in which `bytes` stand at `at`.
fn zeroes(length: usize, at: usize, bytes: &[u8]) -> Vec<u8> {
    let mut body = vec![0; length];
    body[at..at + bytes.len()].copy_from_slice(bytes);
    body
}

#[test]
fn a_number_beyond_its_bounds_is_named() {
    let device = MAX_DEVICE_BYTES;
    let blocks = device / 4096;
    let request = u64::from(MAX_REQUEST_BYTES);
    let buffered = MAX_BUFFERED_OPERATIONS as u64;
    let range = |offset: u64, length: u64| {
        [&offset.to_le_bytes()[..], &(length as u32).to_le_bytes()].concat()
    };
    use MessageKind::*;
    let primary = |body: Vec<u8>| {
        let mut body = body;
        body[1] = 1;
        body
    };
    #[rustfmt::skip]
    let cases = [
        (Hello, primary(zeroes(11, 0, &[32])), "node_id", 32, 0, 31),
        (Hello, primary(zeroes(11, 7, &65u32.to_le_bytes())), "volumes", 65, 0, 64),
        (Hello, primary(zeroes(11, 7, &[255; 4])), "volumes", u64::from(u32::MAX), 0, 64),
        (Again, zeroes(60, 8, &(device + 1).to_le_bytes()), "max_bytes", device + 1, 0, device),
        (Again, zeroes(60, 16, &(device + 1).to_le_bytes()), "effective_bytes", device + 1, 0, device),
        (Again, zeroes(60, 40, &(blocks + 1).to_le_bytes()), "bits", blocks + 1, 0, blocks),
        (Again, zeroes(60, 56, &[33]), "history", 33, 0, 32),
        (PeerState, zeroes(5, 0, &[1, 65]), "disks", 65, 0, 64),
        (Goodbye, zeroes(600, 1, &513u32.to_le_bytes()), "text", 513, 0, 512),
        (Resize, zeroes(15, 3, &(device + 1).to_le_bytes()), "bytes", device + 1, 0, device),
        (Resize, zeroes(600, 11, &513u32.to_le_bytes()), "text", 513, 0, 512),
        (DiskLost, zeroes(14, 10, &16385u32.to_le_bytes()), "missed", 16385, 0, 16384),
        (BitmapRuns, zeroes(65544, 3, &65537u32.to_le_bytes()), "runs", 65537, 0, 65536),
        (ResyncBegin, zeroes(14, 10, &[255; 4]), "history", u64::from(u32::MAX), 0, 32),
        (Discard, zeroes(30, 18, &range(0, 0)), "range.length", 0, 1, request),
        (Discard, zeroes(30, 18, &range(0, request + 1)), "range.length", request + 1, 1, request),
        (Discard, zeroes(30, 18, &range(device, 1)), "range.offset", device, 0, device - 1),
        (Discard, zeroes(30, 18, &range(u64::MAX, 1)), "range.offset", u64::MAX, 0, device - 1),
        (Write, zeroes(30, 18, &range(u64::MAX, 512)), "range.offset", u64::MAX, 0, device - 512),
        (ReadRequest, zeroes(22, 10, &range(0, 0)), "range.length", 0, 1, request),
        (DiskLost, [&zeroes(14, 10, &[1])[..], &range(0, 0)].concat(), "range.length", 0, 1, request),
        (Written, zeroes(12, 8, &[0]), "count", 0, 1, buffered),
        (Written, zeroes(12, 8, &16385u32.to_le_bytes()), "count", 16385, 1, buffered),
        (Written, [&u64::MAX.to_le_bytes()[..], &[1, 0, 0, 0]].concat(), "first", u64::MAX, 0, u64::MAX - 1),
    ];
    for (kind, body, field, value, least, most) in cases {
        let refusal = receive(&head(kind, 0, &body)).unwrap_err();
        assert_eq!(
            refusal,
            WireError::Bounds {
                kind,
                field,
                value,
                least,
                most
            }
        );
    }
}

#[test]
fn a_code_without_meaning_is_named() {
    use MessageKind::*;
    let hello = [0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let hello_with = |at: usize, code: u8| {
        let mut body = hello;
        body[at] = code;
        body.to_vec()
    };
    assert!(receive(&head(Hello, 0, &hello)).is_ok());
    let cases = [
        (Hello, hello_with(1, 0), "role", 0),
        (Hello, hello_with(1, 3), "role", 3),
        (Hello, hello_with(2, 3), "protocol", 3),
        (Hello, hello_with(3, 11), "policies.after_sb_0pri", 11),
        (Hello, hello_with(4, 11), "policies.after_sb_1pri", 11),
        (Hello, hello_with(5, 255), "policies.after_sb_2pri", 255),
        (Hello, hello_with(6, 4), "flags", 4),
        (Again, zeroes(60, 6, &[7]), "disk", 7),
        (Again, zeroes(60, 6, &[10]), "disk", 10),
        (Again, zeroes(60, 7, &[32]), "flags", 32),
        (PeerState, vec![0, 0, 0, 0, 0], "role", 0),
        (PeerState, vec![1, 1, 0, 0, 0, 0, 0, 7], "disk", 7),
        (Goodbye, vec![4, 0, 0, 0, 0], "reason", 4),
        (ResyncPause, vec![0, 0, 2], "paused", 2),
        (Resize, zeroes(15, 2, &[5]), "stage", 5),
        (SkipInitialSyncDone, zeroes(11, 10, &[2]), "done", 2),
        (
            WriteZeroes,
            zeroes(31, 26, &[1, 0, 0, 0, 2]),
            "may_unmap",
            2,
        ),
        (BitmapRuns, zeroes(7, 2, &[2]), "last", 2),
        (ReadReply, zeroes(9, 8, &[2]), "outcome", 2),
        (ResyncAck, zeroes(11, 10, &[3]), "outcome", 3),
    ];
    for (kind, body, field, code) in cases {
        let refusal = receive(&head(kind, 0, &body)).unwrap_err();
        assert_eq!(refusal, WireError::Code { kind, field, code });
    }
    let (kind, field) = (Goodbye, "text");
    let broken = receive(&head(kind, 0, &[0, 1, 0, 0, 0, 0xff])).unwrap_err();
    assert_eq!(broken, WireError::Text { kind, field });
}

#[test]
fn a_count_without_its_entries_is_refused_before_anything_is_allocated_for_them() {
    use MessageKind::*;
    let mut hello = zeroes(11, 7, &64u32.to_le_bytes());
    hello[1] = 1;
    // One byte less than the least that the count stands for.
    hello.resize(11 + 64 * 52 - 1, 0);
    let cases = [
        (Hello, hello, "volumes"),
        (PeerState, zeroes(5 + 3 * 64 - 1, 0, &[1, 64]), "disks"),
        (
            DiskLost,
            zeroes(14 + 12 * 16384 - 1, 10, &16384u32.to_le_bytes()),
            "missed",
        ),
        (
            BitmapRuns,
            zeroes(7 + 65535, 3, &65536u32.to_le_bytes()),
            "runs",
        ),
        (Goodbye, zeroes(5 + 511, 1, &512u32.to_le_bytes()), "text"),
        (ResyncBegin, zeroes(14 + 8 * 32 - 1, 10, &[32]), "history"),
    ];
    for (kind, body, field) in cases {
        let refusal = receive(&head(kind, 0, &body)).unwrap_err();
        assert_eq!(refusal, WireError::Truncated { kind, field });
    }
}

proptest! {
    #[test]
    fn random_bytes_are_refused(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        prop_assert!(receive(&bytes).is_err());
    }

    #[test]
    fn a_random_body_is_refused_or_has_no_other_form(
        kind in proptest::sample::select(MessageKind::ALL),
        payload in prop_oneof![Just(0u32), 1u32..10_000],
        body in proptest::collection::vec(any::<u8>(), 0..120),
    ) {
        let payload = if kind.carries_payload() { payload } else { 0 };
        let bytes = head(kind, payload, &body);
        if let Ok((_, message)) = receive(&bytes) {
            prop_assert_eq!(encode_head(&message), bytes);
        }
    }

    #[test]
    fn a_damaged_body_is_refused_or_has_no_other_form(
        kind in proptest::sample::select(MessageKind::ALL),
        seed: u64,
        at: prop::sample::Index,
        byte: u8,
    ) {
        let (sample, mut body) = body_of(kind, seed);
        if !body.is_empty() {
            let at = at.index(body.len());
            body[at] = byte;
        }
        let bytes = head(kind, payload_bytes(&sample), &body);
        match receive(&bytes) {
            Ok((_, message)) => prop_assert_eq!(encode_head(&message), bytes),
            Err(refusal) => {
                let text = format!("{refusal}");
                prop_assert!(text.contains(kind.word()), "{}", text);
            }
        }
    }
}
