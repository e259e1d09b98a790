//! Any bytes, in any pieces: no panic, no loss of step, and the same answer however they are split.

mod support;

use proptest::prelude::*;
use qrbd_nbd::client::{
    ClientHandshake, ClientOptions, Expected, ReplyDecoder, RequestFlags, encode_option,
    encode_request,
};
use qrbd_nbd::protocol::{Extent, command, info, limits, option};
use qrbd_nbd::{Answer, Command, Cookie, Outcome, Received};
use support::{Conversation, End, FIXED_NO_ZEROES, go, info_option, meta_option};

/// A client that uses every option, ending with GO and three bytes of a request.
fn long_transcript() -> Vec<u8> {
    [
        FIXED_NO_ZEROES.to_be_bytes().to_vec(),
        encode_option(option::STARTTLS, b""),
        encode_option(option::EXTENDED_HEADERS, b""),
        encode_option(option::STRUCTURED_REPLY, b""),
        encode_option(option::LIST, b""),
        encode_option(option::LIST, b"wrong"),
        encode_option(77, &[1; 100]),
        meta_option(option::LIST_META_CONTEXT, "disk", &[]),
        meta_option(option::SET_META_CONTEXT, "disk", &["base:allocation"]),
        info_option(option::INFO, "secondary", &[info::NAME]),
        info_option(
            option::INFO,
            "disk",
            &[info::NAME, info::DESCRIPTION, info::BLOCK_SIZE],
        ),
        encode_option(option::GO, b"malformed"),
        go("disk"),
        b"\x25\x60\x95".to_vec(),
    ]
    .concat()
}

fn run(pieces: &[&[u8]]) -> Conversation {
    let mut conversation = Conversation::new();
    pieces
        .iter()
        .for_each(|piece| drop(conversation.say(piece)));
    conversation
}

#[test]
fn every_split_of_a_handshake_gives_the_same_answer() {
    let bytes = long_transcript();
    let whole = run(&[&bytes]);
    assert!(matches!(whole.end, End::Transmission(_)));
    assert_eq!(whole.left_over, b"\x25\x60\x95");
    for at in 0..bytes.len() {
        let split = run(&[&bytes[..at], &bytes[at..]]);
        assert!(split.output == whole.output, "split at {at}");
        assert_eq!(split.left_over, whole.left_over);
    }
    let single: Vec<&[u8]> = bytes.chunks(1).collect();
    assert!(run(&single).output == whole.output);
}

#[test]
fn every_prefix_of_a_handshake_waits_for_the_rest() {
    let bytes = long_transcript();
    let handshake = bytes.len() - 3;
    for end in 0..handshake {
        let conversation = run(&[&bytes[..end]]);
        assert!(matches!(conversation.end, End::Open), "{end} bytes");
        let wanted = conversation.handshake.wanted();
        assert!(
            wanted > 0 && end + wanted <= handshake,
            "{end} bytes and {wanted} wanted"
        );
    }
}

#[test]
fn reading_only_what_is_wanted_leaves_nothing_over() {
    let bytes = long_transcript();
    let mut conversation = Conversation::new();
    let mut at = 0;
    while matches!(conversation.end, End::Open) {
        let wanted = conversation.handshake.wanted();
        conversation.say(&bytes[at..at + wanted]);
        at += wanted;
    }
    assert_eq!((at, conversation.left_over.len()), (bytes.len() - 3, 0));
}

#[test]
fn every_prefix_of_the_servers_side_leaves_the_client_waiting() {
    let options = ClientOptions {
        structured_replies: true,
        allocation: true,
    };
    let mut server = Conversation::fixed();
    let mut bytes = b"NBDMAGICIHAVEOPT\x00\x03".to_vec();
    for asked in [
        encode_option(option::STRUCTURED_REPLY, b""),
        meta_option(option::SET_META_CONTEXT, "disk", &["base:allocation"]),
        info_option(option::GO, "disk", &[info::NAME, info::DESCRIPTION]),
    ] {
        bytes.extend(server.say(&asked));
    }
    for end in 0..bytes.len() {
        let mut client = ClientHandshake::new("disk", options);
        assert!(
            client.advance(&mut &bytes[..end]).unwrap().is_none(),
            "{end} bytes"
        );
        assert!(client.wanted() > 0 && end + client.wanted() <= bytes.len());
        let negotiated = client.advance(&mut &bytes[end..]).unwrap().unwrap();
        assert_eq!(negotiated.allocation_context, Some(1));
        assert_eq!(
            negotiated.description.as_deref(),
            Some("memory export disk")
        );
    }
}

fn options() -> impl Strategy<Value = Vec<u8>> {
    let data = prop_oneof![
        prop::collection::vec(any::<u8>(), 0..40),
        Just(go("disk")[16..].to_vec()),
        Just(meta_option(option::SET_META_CONTEXT, "disk", &["base:allocation"])[16..].to_vec()),
        Just(Vec::new()),
    ];
    prop_oneof![
        9 => (0u32..14, data).prop_map(|(number, data)| encode_option(number, &data)),
        1 => prop::collection::vec(any::<u8>(), 0..40),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn random_bytes_never_panic_the_handshake(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        run(&[&bytes]);
        run(&[&FIXED_NO_ZEROES.to_be_bytes(), &bytes]);
    }

    #[test]
    fn random_options_are_answered_alike_in_any_split(
        sent in prop::collection::vec(options(), 0..12),
        piece in 1usize..50,
        flags in 0u32..4,
    ) {
        let bytes = [flags.to_be_bytes().to_vec(), sent.concat()].concat();
        let whole = run(&[&bytes]);
        let pieces: Vec<&[u8]> = bytes.chunks(piece).collect();
        let split = run(&pieces);
        prop_assert_eq!(&whole.output, &split.output);
        prop_assert_eq!(&whole.left_over, &split.left_over);
        prop_assert_eq!(format!("{:?}", whole.end), format!("{:?}", split.end));
        prop_assert!(whole.output.len() <= 200 + 100 * bytes.len());
    }

    #[test]
    fn an_accepted_request_is_always_inside_the_export(
        number in 0u16..9,
        flags in prop_oneof![Just(0u16), 0u16..64, any::<u16>()],
        offset in prop_oneof![0u64..(1 << 20) + 5000, (0u64..2100).prop_map(|block| block * 512), any::<u64>()],
        length in prop_oneof![0u32..5000, (0u32..3000).prop_map(|block| block * 512), any::<u32>()],
    ) {
        let mut conversation = Conversation::fixed();
        conversation.say(&encode_option(option::STRUCTURED_REPLY, b""));
        conversation.say(&meta_option(option::SET_META_CONTEXT, "disk", &["base:allocation"]));
        conversation.say(&go("disk"));
        let session = conversation.session();
        let header = encode_request(number, RequestFlags(flags), Cookie(9), offset, length);
        match session.check(&header) {
            Ok(Received::Request(request)) => {
                let end = offset.checked_add(u64::from(length));
                prop_assert!(end.is_some_and(|end| end <= session.export().size()));
                prop_assert!(request.length.is_multiple_of(512) && request.offset.is_multiple_of(512));
                prop_assert_eq!(request.length == 0, request.command == Command::Flush);
                prop_assert!(request.payload_length() <= limits::PAYLOAD);
                if request.command == Command::Read {
                    prop_assert_eq!(session.read_head(&request).len(), 28);
                }
                if let Command::BlockStatus { .. } = request.command {
                    let reply = session.block_status(&request, &[Extent { length: 1 << 30, status: 0 }]);
                    prop_assert_eq!(reply.len(), 32);
                }
            }
            Ok(Received::Answer(answer)) => {
                prop_assert_eq!(answer.drain, if number == command::WRITE { length } else { 0 });
                prop_assert!(answer.outcome != Outcome::Empty || length == 0);
                prop_assert_eq!(answer.cookie, Cookie(9));
                prop_assert_eq!(&session.answer(&answer)[..4], b"\x66\x8e\x33\xef");
            }
            Ok(Received::Disconnect) => prop_assert_eq!(number, command::DISC),
            Err(_) => prop_assert!(number == command::WRITE && length > limits::DRAIN),
        }
    }

    #[test]
    fn random_headers_never_panic_the_validator(header in any::<[u8; 28]>(), valid_magic in any::<bool>()) {
        let mut header = header;
        if valid_magic {
            header[..4].copy_from_slice(b"\x25\x60\x95\x13");
        }
        let mut conversation = Conversation::fixed();
        conversation.say(&go("large-blocks"));
        let checked = conversation.session().check(&header);
        if let Ok(Received::Answer(Answer { drain, .. })) = checked {
            prop_assert!(drain <= limits::DRAIN);
        }
    }

    #[test]
    fn random_bytes_never_panic_the_clients_handshake(
        bytes in prop::collection::vec(any::<u8>(), 0..200),
        greeted in any::<bool>(),
    ) {
        let greeting = if greeted { &b"NBDMAGICIHAVEOPT\x00\x03"[..] } else { b"" };
        let mut client = ClientHandshake::new("disk", ClientOptions::default());
        let bytes = [greeting, &bytes].concat();
        let _ = client.advance(&mut &bytes[..]);
    }

    #[test]
    fn random_chunks_never_panic_the_reply_decoder(
        chunks in prop::collection::vec(
            (0u16..2, prop_oneof![0u16..7, 0x8000u16..0x8004], 0u64..4, 0u32..40, prop::collection::vec(any::<u8>(), 0..40)),
            1..8,
        ),
    ) {
        let mut decoder = ReplyDecoder::new(true);
        let read = Expected::Data { offset: 0, length: 16 };
        prop_assert!(decoder.expect(Cookie(0), read));
        prop_assert!(decoder.expect(Cookie(1), Expected::Extents));
        prop_assert!(decoder.expect(Cookie(2), Expected::Nothing));
        let mut bytes = Vec::new();
        for (flags, kind, cookie, length, payload) in chunks {
            bytes.extend(b"\x66\x8e\x33\xef");
            bytes.extend(flags.to_be_bytes());
            bytes.extend(kind.to_be_bytes());
            bytes.extend(cookie.to_be_bytes());
            bytes.extend(length.to_be_bytes());
            bytes.extend(payload);
        }
        let mut input = &bytes[..];
        while let Ok(Some(_)) = decoder.advance(&mut input) {}
    }
}
