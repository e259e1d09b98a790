//! Golden bytes of every reply.

mod support;

use qrbd_nbd::client::{RequestFlags, encode_option, encode_request};
use qrbd_nbd::protocol::{command, option};
use qrbd_nbd::{Answer, Cookie, Errno, Extent, Outcome, Received, Request, Session};
use support::{Conversation, go, meta_option};

const COOKIE: Cookie = Cookie(0x0102_0304_0506_0708);

fn session(structured: bool) -> Session {
    let mut conversation = Conversation::fixed();
    if structured {
        conversation.say(&encode_option(option::STRUCTURED_REPLY, b""));
        conversation.say(&meta_option(
            option::SET_META_CONTEXT,
            "disk",
            &["base:allocation"],
        ));
    }
    conversation.say(&go("disk"));
    conversation.session()
}

fn request(command: u16, flags: RequestFlags, offset: u64, length: u32) -> Request {
    match session(true).check(&encode_request(command, flags, COOKIE, offset, length)) {
        Ok(Received::Request(request)) => request,
        other => panic!("{other:?}"),
    }
}

fn answer(session: &Session, outcome: Outcome) -> Vec<u8> {
    session.answer(&Answer {
        cookie: COOKIE,
        outcome,
        drain: 0,
    })
}

#[test]
fn done_is_a_simple_reply_with_or_without_structured_replies() {
    for structured in [false, true] {
        assert_eq!(
            &*session(structured).done(COOKIE),
            b"\x67\x44\x66\x98\0\0\0\0\x01\x02\x03\x04\x05\x06\x07\x08"
        );
    }
}

#[test]
fn simple_read_head_is_a_simple_reply() {
    let read = request(command::READ, RequestFlags::NONE, 0x1000, 0x200);
    assert_eq!(
        &*session(false).read_head(&read),
        b"\x67\x44\x66\x98\0\0\0\0\x01\x02\x03\x04\x05\x06\x07\x08"
    );
}

#[test]
fn structured_read_head_is_one_final_data_chunk() {
    let read = request(command::READ, RequestFlags::NONE, 0x1000, 0x200);
    let expected = [
        &b"\x66\x8e\x33\xef"[..],            // magic
        b"\x00\x01",                         // DONE
        b"\x00\x01",                         // OFFSET_DATA
        b"\x01\x02\x03\x04\x05\x06\x07\x08", // cookie
        b"\x00\x00\x02\x08",                 // 8 + 512 bytes
        b"\x00\x00\x00\x00\x00\x00\x10\x00", // offset
    ]
    .concat();
    assert_eq!(&*session(true).read_head(&read), expected);
}

#[test]
fn simple_error_carries_the_number_alone() {
    let reply = session(false).error(COOKIE, Errno::Enospc, "text");
    assert_eq!(
        reply,
        b"\x67\x44\x66\x98\0\0\0\x1c\x01\x02\x03\x04\x05\x06\x07\x08"
    );
}

#[test]
fn structured_error_is_one_final_error_chunk_with_text() {
    let expected = [
        &b"\x66\x8e\x33\xef"[..],            // magic
        b"\x00\x01",                         // DONE
        b"\x80\x01",                         // ERROR
        b"\x01\x02\x03\x04\x05\x06\x07\x08", // cookie
        b"\x00\x00\x00\x0a",                 // 6 + 4 bytes
        b"\x00\x00\x00\x6c",                 // ESHUTDOWN
        b"\x00\x04stop",                     // text
    ]
    .concat();
    assert_eq!(
        session(true).error(COOKIE, Errno::Eshutdown, "stop"),
        expected
    );
}

#[test]
fn error_text_is_cut_at_a_character_within_the_limit() {
    let reply = session(true).error(COOKIE, Errno::Eio, &format!("x{}", "ä".repeat(4000)));
    assert_eq!(reply.len(), 20 + 6 + 4095);
    assert!(std::str::from_utf8(&reply[26..]).is_ok());
}

#[test]
fn empty_answer_is_a_none_chunk_when_structured() {
    let expected = b"\x66\x8e\x33\xef\x00\x01\x00\x00\x01\x02\x03\x04\x05\x06\x07\x08\0\0\0\0";
    assert_eq!(answer(&session(true), Outcome::Empty), expected);
    assert_eq!(
        answer(&session(false), Outcome::Empty),
        &*session(false).done(COOKIE)
    );
}

#[test]
fn refused_read_never_gets_a_simple_reply_when_structured() {
    let session = session(true);
    let header = encode_request(command::READ, RequestFlags::NONE, COOKIE, 1 << 40, 512);
    let Ok(Received::Answer(answer)) = session.check(&header) else {
        panic!("accepted")
    };
    let reply = session.answer(&answer);
    assert_eq!(reply[..8], *b"\x66\x8e\x33\xef\x00\x01\x80\x01");
    assert!(reply.ends_with(b"beyond the end of the export"));
}

#[test]
fn block_status_is_one_final_chunk_of_the_selected_context() {
    let status = request(command::BLOCK_STATUS, RequestFlags::NONE, 0, 4096);
    let extents = [
        Extent {
            length: 512,
            status: 0,
        },
        Extent {
            length: 3584,
            status: 3,
        },
    ];
    let expected = [
        &b"\x66\x8e\x33\xef"[..],            // magic
        b"\x00\x01",                         // DONE
        b"\x00\x05",                         // BLOCK_STATUS
        b"\x01\x02\x03\x04\x05\x06\x07\x08", // cookie
        b"\x00\x00\x00\x14",                 // 4 + 2 * 8 bytes
        b"\x00\x00\x00\x01",                 // context
        b"\x00\x00\x02\x00\x00\x00\x00\x00", // 512 bytes of data
        b"\x00\x00\x0e\x00\x00\x00\x00\x03", // 3584 bytes of hole and zero
    ]
    .concat();
    assert_eq!(session(true).block_status(&status, &extents), expected);
}

#[test]
fn block_status_is_cut_to_the_request_and_to_one_extent_if_asked() {
    let extents = [
        Extent {
            length: 1024,
            status: 0,
        },
        Extent {
            length: 1 << 20,
            status: 0,
        },
    ];
    let lengths = |flags, length| {
        let reply =
            session(true).block_status(&request(command::BLOCK_STATUS, flags, 0, length), &extents);
        let extents = reply[24..].chunks(8);
        extents
            .map(|raw| u32::from_be_bytes(raw[..4].try_into().unwrap()))
            .collect::<Vec<_>>()
    };
    assert_eq!(lengths(RequestFlags::NONE, 4096), [1024, 3072]);
    assert_eq!(lengths(RequestFlags::NONE, 1024), [1024]);
    assert_eq!(lengths(RequestFlags::REQ_ONE, 4096), [1024]);
    assert_eq!(lengths(RequestFlags::REQ_ONE, 512), [512]);
}

#[test]
#[should_panic(expected = "needs an extent")]
fn block_status_without_an_extent_is_a_bug_of_the_owner() {
    session(true).block_status(
        &request(command::BLOCK_STATUS, RequestFlags::NONE, 0, 512),
        &[],
    );
}
