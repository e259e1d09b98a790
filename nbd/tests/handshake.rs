//! The server's answers to every option, right and wrong.

mod support;

use qrbd_nbd::client::encode_option;
use qrbd_nbd::protocol::{info, limits, option, option_reply};
use qrbd_nbd::{Handshake, HandshakeError, Refusal, Step, TransmissionFlags};
use support::memory::POLICY_TEXT;
use support::{
    Conversation, End, OptionReply, counted, go, info_option, kinds, meta_option, option_replies,
};

const ACK: u32 = option_reply::ACK;

fn failure(conversation: Conversation) -> HandshakeError {
    match conversation.end {
        End::Failed(error) => error,
        end => panic!("no failure: {end:?}"),
    }
}

#[test]
fn greeting_is_fixed_newstyle_without_zeroes() {
    let expected = b"NBDMAGICIHAVEOPT\x00\x03";
    assert_eq!(Handshake::new().take_output(), expected);
}

#[test]
fn unknown_client_flags_close_the_session() {
    let mut conversation = Conversation::new();
    assert!(conversation.say(&7u32.to_be_bytes()).is_empty());
    assert_eq!(failure(conversation), HandshakeError::UnknownClientFlags(7));
}

#[test]
fn a_failed_handshake_stays_failed() {
    let mut handshake = Handshake::new();
    let error = handshake.advance(&mut &[0xff; 4][..]).unwrap_err();
    assert_eq!(handshake.advance(&mut &[0; 64][..]).unwrap_err(), error);
}

#[test]
fn wrong_option_magic_closes_the_session() {
    let mut conversation = Conversation::fixed();
    conversation.say(&[0; 16]);
    assert_eq!(failure(conversation), HandshakeError::OptionMagic(0));
}

#[test]
fn client_without_fixed_newstyle_may_only_choose_an_export() {
    let mut conversation = Conversation::new();
    conversation.say(&[0; 4]);
    conversation.say(&encode_option(option::LIST, b""));
    assert_eq!(
        failure(conversation),
        HandshakeError::NotFixedNewstyle(option::LIST)
    );

    let mut conversation = Conversation::new();
    conversation.say(&[0; 4]);
    conversation.say(&encode_option(option::EXPORT_NAME, b"disk"));
    assert!(matches!(conversation.end, End::Transmission(_)));
}

#[test]
fn export_name_reply_has_124_zeroes_unless_both_renounced() {
    for (flags, length) in [(1u32, 134), (3, 10)] {
        let mut conversation = Conversation::new();
        conversation.say(&flags.to_be_bytes());
        let reply = conversation.say(&encode_option(option::EXPORT_NAME, b""));
        assert_eq!(reply.len(), length);
        assert_eq!(reply[..8], (1u64 << 20).to_be_bytes());
        assert!(reply[10..].iter().all(|byte| *byte == 0));
        assert!(matches!(conversation.end, End::Transmission(_)));
    }
}

#[test]
fn refused_export_name_closes_without_a_byte() {
    for name in [&b"nothing"[..], b"secondary", b"\xff\xfe", b"a\0b"] {
        let mut conversation = Conversation::fixed();
        assert!(
            conversation
                .say(&encode_option(option::EXPORT_NAME, name))
                .is_empty()
        );
        assert!(matches!(
            failure(conversation),
            HandshakeError::ExportNameRefused(_)
        ));
    }
}

#[test]
fn export_name_longer_than_the_protocol_closes_before_its_data() {
    let mut conversation = Conversation::fixed();
    conversation.say(&encode_option(option::EXPORT_NAME, &[b'x'; 4097])[..16]);
    assert!(matches!(
        failure(conversation),
        HandshakeError::ExportNameRefused(_)
    ));
}

#[test]
fn abort_is_acknowledged_and_ends() {
    let mut conversation = Conversation::fixed();
    assert_eq!(
        kinds(&conversation.say(&encode_option(option::ABORT, b""))),
        [ACK]
    );
    assert!(matches!(conversation.end, End::Aborted));
}

#[test]
fn list_names_every_export_with_its_description() {
    let mut conversation = Conversation::fixed();
    let replies = option_replies(&conversation.say(&encode_option(option::LIST, b"")));
    let (last, exports) = replies.split_last().unwrap();
    assert_eq!(
        *last,
        OptionReply {
            option: option::LIST,
            kind: ACK,
            data: vec![]
        }
    );
    assert_eq!(exports.len(), conversation.server.list().len());
    assert!(
        exports
            .iter()
            .all(|reply| reply.kind == option_reply::SERVER)
    );
    assert_eq!(
        exports[0].data,
        [&counted("disk")[..], b"memory export disk"].concat()
    );
}

#[test]
fn list_with_data_is_invalid_and_its_data_is_skipped() {
    let mut conversation = Conversation::fixed();
    let said = conversation.say(&encode_option(option::LIST, b"data"));
    assert_eq!(kinds(&said), [option_reply::ERR_INVALID]);
    assert_eq!(
        kinds(&conversation.say(&encode_option(option::STRUCTURED_REPLY, b""))),
        [ACK]
    );
}

#[test]
fn refused_list_carries_kind_and_text() {
    let mut handshake = Handshake::new();
    let bytes = [&3u32.to_be_bytes()[..], &encode_option(option::LIST, b"")].concat();
    assert!(matches!(handshake.advance(&mut &bytes[..]), Ok(Step::List)));
    let _ = handshake.take_output();
    handshake.answer_list(Err(Refusal::Shutdown("going down".into())));
    let expected = OptionReply {
        option: option::LIST,
        kind: option_reply::ERR_SHUTDOWN,
        data: b"going down".to_vec(),
    };
    assert_eq!(option_replies(&handshake.take_output()), [expected]);
}

#[test]
fn info_describes_and_keeps_negotiating() {
    let mut conversation = Conversation::fixed();
    let asked = info_option(option::INFO, "", &[info::NAME, info::DESCRIPTION, 999]);
    let replies = option_replies(&conversation.say(&asked));
    let data: Vec<&[u8]> = replies.iter().map(|reply| &reply.data[..]).collect();
    let flags: u16 = 0b1101_0110_1101;
    let export = [
        &[0, 0][..],
        &(1u64 << 20).to_be_bytes(),
        &flags.to_be_bytes(),
    ]
    .concat();
    assert_eq!(data[0], export);
    assert_eq!(data[1], b"\x00\x01disk", "the canonical name");
    assert_eq!(data[2], b"\x00\x02memory export disk");
    assert_eq!(
        data[3],
        b"\x00\x03\x00\x00\x02\x00\x00\x00\x10\x00\x02\x00\x00\x00"
    );
    assert_eq!(replies.len(), 5);
    assert_eq!(replies[4].kind, ACK);
    assert!(matches!(conversation.end, End::Open));
}

#[test]
fn go_always_sends_export_and_block_size() {
    let mut conversation = Conversation::fixed();
    let replies = option_replies(&conversation.say(&go("disk")));
    let infos: Vec<u8> = replies
        .iter()
        .filter(|r| r.kind == option_reply::INFO)
        .map(|r| r.data[1])
        .collect();
    assert_eq!(infos, [info::EXPORT as u8, info::BLOCK_SIZE as u8]);
    assert_eq!(conversation.session().export().name(), "disk");
}

#[test]
fn go_can_be_refused_and_tried_again() {
    let mut conversation = Conversation::fixed();
    assert_eq!(
        kinds(&conversation.say(&go("nothing"))),
        [option_reply::ERR_UNKNOWN]
    );
    let refused = option_replies(&conversation.say(&go("secondary")));
    let expected = OptionReply {
        option: option::GO,
        kind: option_reply::ERR_POLICY,
        data: POLICY_TEXT.as_bytes().to_vec(),
    };
    assert_eq!(refused, [expected]);
    conversation.say(&go("disk"));
    assert!(matches!(conversation.end, End::Transmission(_)));
}

#[test]
fn malformed_go_is_invalid() {
    let mut conversation = Conversation::fixed();
    for data in [
        &b""[..],
        b"\0\0\0\x09disk\0\0",
        b"\0\0\0\x01\xff\0\0",
        b"\0\0\0\0\0\x01",
    ] {
        let said = conversation.say(&encode_option(option::GO, data));
        assert_eq!(kinds(&said), [option_reply::ERR_INVALID]);
    }
}

#[test]
fn nothing_is_consumed_while_the_owner_decides() {
    let mut handshake = Handshake::new();
    let bytes = [&3u32.to_be_bytes()[..], &go("disk"), b"first request"].concat();
    let mut input = &bytes[..];
    assert!(matches!(handshake.advance(&mut input), Ok(Step::Open(_))));
    assert_eq!(input, b"first request");
    assert!(matches!(
        handshake.advance(&mut input),
        Ok(Step::NeedAnswer)
    ));
    assert_eq!((input, handshake.wanted()), (&b"first request"[..], 0));
}

#[test]
fn bytes_after_go_belong_to_the_transmission() {
    let mut conversation = Conversation::fixed();
    conversation.say(&[&go("disk")[..], b"first request"].concat());
    assert_eq!(conversation.left_over, b"first request");
}

#[test]
fn starttls_extended_headers_and_unknown_options_are_unsupported() {
    let mut conversation = Conversation::fixed();
    for number in [
        option::STARTTLS,
        option::EXTENDED_HEADERS,
        4,
        12,
        0xdead_beef,
    ] {
        let replies = option_replies(&conversation.say(&encode_option(number, b"")));
        assert_eq!(
            (replies[0].option, replies[0].kind),
            (number, option_reply::ERR_UNSUP)
        );
        assert_eq!(replies.len(), 1);
    }
    conversation.say(&go("disk"));
    assert!(matches!(conversation.end, End::Transmission(_)));
}

#[test]
fn data_of_an_unknown_option_is_skipped_exactly() {
    for length in [1, 15, 16, 17, 4096, 200_000] {
        let mut conversation = Conversation::fixed();
        let said =
            conversation.say(&[&encode_option(4, &vec![0x5a; length])[..], &go("disk")].concat());
        assert_eq!(kinds(&said)[0], option_reply::ERR_UNSUP);
        assert!(
            matches!(conversation.end, End::Transmission(_)),
            "{length} bytes"
        );
    }
}

#[test]
fn too_long_data_of_a_known_option_is_skipped_and_too_big() {
    let mut conversation = Conversation::fixed();
    let data = vec![0; limits::OPTION_DATA as usize + 1];
    let said = conversation.say(&encode_option(option::SET_META_CONTEXT, &data));
    assert_eq!(kinds(&said), [option_reply::ERR_TOO_BIG]);
    conversation.say(&go("disk"));
    assert!(matches!(conversation.end, End::Transmission(_)));
}

#[test]
fn an_option_beyond_all_bounds_closes() {
    let mut header = encode_option(option::GO, b"");
    header[12..].copy_from_slice(&u32::MAX.to_be_bytes());
    let mut conversation = Conversation::fixed();
    assert!(conversation.say(&header).is_empty());
    assert_eq!(
        failure(conversation),
        HandshakeError::OptionTooLong {
            option: option::GO,
            length: u32::MAX
        }
    );
}

#[test]
fn a_client_that_never_comes_to_the_point_is_closed() {
    let mut conversation = Conversation::fixed();
    for _ in 0..limits::OPTIONS_PER_SESSION {
        conversation.say(&encode_option(4, b""));
        assert!(matches!(conversation.end, End::Open));
    }
    conversation.say(&encode_option(4, b""));
    assert_eq!(failure(conversation), HandshakeError::TooManyOptions);
}

#[test]
fn df_is_advertised_exactly_with_structured_replies() {
    for structured in [false, true] {
        let mut conversation = Conversation::fixed();
        if structured {
            assert_eq!(
                kinds(&conversation.say(&encode_option(option::STRUCTURED_REPLY, b""))),
                [ACK]
            );
        }
        conversation.say(&go("disk"));
        let session = conversation.session();
        assert_eq!(
            session.flags().contains(TransmissionFlags::SEND_DF),
            structured
        );
        assert_eq!(session.structured_replies(), structured);
        assert!(session.flags().contains(TransmissionFlags::HAS_FLAGS));
    }
}

#[test]
fn structured_reply_with_data_is_invalid() {
    let mut conversation = Conversation::fixed();
    let said = conversation.say(&encode_option(option::STRUCTURED_REPLY, b"x"));
    assert_eq!(kinds(&said), [option_reply::ERR_INVALID]);
    conversation.say(&go("disk"));
    assert!(!conversation.session().structured_replies());
}

#[test]
fn metadata_contexts_need_structured_replies_first() {
    let mut conversation = Conversation::fixed();
    for number in [option::LIST_META_CONTEXT, option::SET_META_CONTEXT] {
        let said = conversation.say(&meta_option(number, "disk", &["base:allocation"]));
        assert_eq!(kinds(&said), [option_reply::ERR_INVALID]);
    }
}

fn structured() -> Conversation {
    let mut conversation = Conversation::fixed();
    conversation.say(&encode_option(option::STRUCTURED_REPLY, b""));
    conversation
}

#[test]
fn list_meta_context_matches_all_namespace_and_name() {
    let mut conversation = structured();
    for (queries, found) in [
        (&[][..], true),
        (&["base:"][..], true),
        (&["base:allocation"][..], true),
        (&["qemu:", "base:allocation"][..], true),
        (&["base:other"][..], false),
        (&["qemu:dirty-bitmap:x"][..], false),
    ] {
        let said = conversation.say(&meta_option(option::LIST_META_CONTEXT, "disk", queries));
        let replies = option_replies(&said);
        assert_eq!(replies.len(), 1 + usize::from(found), "{queries:?}");
        if found {
            assert_eq!(replies[0].data, b"\0\0\0\0base:allocation");
        }
        assert_eq!(replies.last().unwrap().kind, ACK);
    }
}

#[test]
fn set_meta_context_selects_only_the_exact_name() {
    let mut conversation = structured();
    for (queries, found) in [
        (&["base:"][..], false),
        (&[][..], false),
        (&["x", "base:allocation"][..], true),
    ] {
        let said = conversation.say(&meta_option(option::SET_META_CONTEXT, "disk", queries));
        assert_eq!(
            option_replies(&said).len(),
            1 + usize::from(found),
            "{queries:?}"
        );
    }
    let said = conversation.say(&meta_option(
        option::SET_META_CONTEXT,
        "disk",
        &["base:allocation"],
    ));
    assert_eq!(option_replies(&said)[0].data, b"\0\0\0\x01base:allocation");
}

#[test]
fn malformed_meta_context_is_invalid() {
    let mut conversation = structured();
    let said = conversation.say(&encode_option(
        option::SET_META_CONTEXT,
        b"\0\0\0\0\xff\xff\xff\xff",
    ));
    assert_eq!(kinds(&said), [option_reply::ERR_INVALID]);
}

#[test]
fn longest_name_and_text_fit_their_replies() {
    let mut handshake = Handshake::new();
    let bytes = [&3u32.to_be_bytes()[..], &go("disk")].concat();
    let _ = handshake.advance(&mut &bytes[..]).unwrap();
    let _ = handshake.take_output();
    handshake.answer_open(Err(Refusal::Policy("ä".repeat(5000))));
    let replies = option_replies(&handshake.take_output());
    assert_eq!(replies[0].data, "ä".repeat(2048).as_bytes());
}
