//! What the client makes of servers other than ours, good and bad, byte by byte.

use qrbd_nbd::client::{
    ClientHandshake, ClientOptions, Expected, Negotiated, Reply, ReplyDecoder, encode_option,
};
use qrbd_nbd::protocol::{
    OPTION_REPLY_MAGIC, SIMPLE_REPLY_MAGIC, STRUCTURED_REPLY_MAGIC, chunk, option, option_reply,
};
use qrbd_nbd::{ClientError, Cookie, Errno, TransmissionFlags};

const COOKIE: Cookie = Cookie(42);
const DONE: u16 = chunk::FLAG_DONE;

fn simple(errno: u32, data: &[u8]) -> Vec<u8> {
    [
        &SIMPLE_REPLY_MAGIC.to_be_bytes()[..],
        &errno.to_be_bytes(),
        &COOKIE.0.to_be_bytes(),
        data,
    ]
    .concat()
}

fn structured(flags: u16, kind: u16, payload: &[u8]) -> Vec<u8> {
    let length = payload.len() as u32;
    let header = [
        &STRUCTURED_REPLY_MAGIC.to_be_bytes()[..],
        &flags.to_be_bytes(),
        &kind.to_be_bytes(),
    ]
    .concat();
    [
        &header[..],
        &COOKIE.0.to_be_bytes(),
        &length.to_be_bytes(),
        payload,
    ]
    .concat()
}

fn data(flags: u16, offset: u64, data: &[u8]) -> Vec<u8> {
    structured(
        flags,
        chunk::OFFSET_DATA,
        &[&offset.to_be_bytes()[..], data].concat(),
    )
}

fn hole(flags: u16, offset: u64, length: u32) -> Vec<u8> {
    structured(
        flags,
        chunk::OFFSET_HOLE,
        &[&offset.to_be_bytes()[..], &length.to_be_bytes()].concat(),
    )
}

fn error(flags: u16, errno: u32, text_length: u16, rest: &[u8]) -> Vec<u8> {
    structured(
        flags,
        chunk::ERROR,
        &[&errno.to_be_bytes()[..], &text_length.to_be_bytes(), rest].concat(),
    )
}

const READ: Expected = Expected::Data {
    offset: 1000,
    length: 10,
};

fn decode(
    with_structured: bool,
    expected: Expected,
    bytes: &[u8],
) -> Result<Option<Reply>, ClientError> {
    let mut decoder = ReplyDecoder::new(with_structured);
    assert!(decoder.expect(COOKIE, expected));
    decoder.advance(&mut &bytes[..])
}

fn broken(with_structured: bool, expected: Expected, bytes: &[u8]) {
    match decode(with_structured, expected, bytes) {
        Err(ClientError::Protocol(_)) => {}
        other => panic!("accepted: {other:?}"),
    }
}

#[test]
fn chunks_in_any_order_with_holes_make_one_read() {
    let bytes = [
        data(0, 1006, b"wxyz"),
        hole(0, 1002, 4),
        data(0, 1000, b"ab"),
        structured(DONE, chunk::NONE, b""),
    ];
    let reply = decode(true, READ, &bytes.concat()).unwrap().unwrap();
    assert_eq!(
        (reply.result, &reply.data[..]),
        (Ok(()), &b"ab\0\0\0\0wxyz"[..])
    );
}

#[test]
fn an_error_after_data_fails_the_whole_read() {
    let bytes = [data(0, 1000, b"0123456789"), error(DONE, 5, 3, b"bad")].concat();
    let reply = decode(true, READ, &bytes).unwrap().unwrap();
    let failed = reply.result.unwrap_err();
    assert_eq!(
        (failed.errno, failed.text.as_str(), reply.data.len()),
        (Errno::Eio, "bad", 0)
    );
}

#[test]
fn unknown_error_chunks_are_errors() {
    let bytes = structured(DONE, chunk::ERROR_BIT | 77, &[0, 0, 0, 22, 0, 0, 9, 9]);
    assert_eq!(
        decode(true, READ, &bytes)
            .unwrap()
            .unwrap()
            .result
            .unwrap_err()
            .errno,
        Errno::Einval
    );
}

#[test]
fn data_outside_the_read_breaks_the_protocol() {
    broken(true, READ, &data(DONE, 999, b"x"));
    broken(true, READ, &data(DONE, 1009, b"xy"));
    broken(true, READ, &data(DONE, u64::MAX, b"x"));
    broken(true, READ, &hole(DONE, 1000, 11));
    broken(true, READ, &hole(DONE, 1000, u32::MAX));
}

#[test]
fn too_little_or_too_much_data_breaks_the_protocol() {
    broken(true, READ, &data(DONE, 1000, b"012345678"));
    broken(
        true,
        READ,
        &[data(0, 1000, b"0123456789"), data(0, 1000, b"0")].concat(),
    );
    broken(true, READ, &structured(DONE, chunk::NONE, b""));
}

#[test]
fn lengths_are_refused_before_memory_is_taken() {
    for (kind, expected) in [
        (chunk::OFFSET_DATA, READ),
        (chunk::OFFSET_HOLE, READ),
        (chunk::ERROR, Expected::Nothing),
        (chunk::BLOCK_STATUS, Expected::Extents),
        (chunk::NONE, READ),
    ] {
        let mut bytes = structured(DONE, kind, b"");
        bytes[16..20].copy_from_slice(&u32::MAX.to_be_bytes());
        broken(true, expected, &bytes);
    }
}

#[test]
fn a_simple_reply_to_a_structured_read_breaks_the_protocol() {
    broken(true, READ, &simple(0, b"0123456789"));
    broken(true, READ, &simple(5, b""));
    broken(true, Expected::Extents, &simple(0, b""));
}

#[test]
fn a_structured_reply_that_was_not_negotiated_breaks_the_protocol() {
    broken(false, READ, &data(DONE, 1000, b"0123456789"));
}

#[test]
fn unknown_cookies_and_magics_break_the_protocol() {
    let mut decoder = ReplyDecoder::new(false);
    assert!(matches!(
        decoder.advance(&mut &simple(0, b"")[..]),
        Err(ClientError::Protocol(_))
    ));
    broken(true, READ, &[7; 16]);
}

#[test]
fn chunks_of_the_wrong_kind_break_the_protocol() {
    broken(true, Expected::Nothing, &data(DONE, 1000, b"0123456789"));
    broken(true, READ, &structured(DONE, chunk::BLOCK_STATUS, &[0; 12]));
    broken(true, READ, &structured(DONE, 6, b""));
    broken(true, READ, &structured(0, chunk::NONE, b""));
    broken(
        true,
        Expected::Extents,
        &structured(DONE, chunk::BLOCK_STATUS, &[0; 12]),
    );
}

#[test]
fn malformed_errors_break_the_protocol() {
    broken(true, READ, &error(DONE, 0, 0, b""));
    broken(true, READ, &error(DONE, 5, 4, b"abc"));
    broken(true, READ, &structured(DONE, chunk::ERROR, b"12345"));
}

#[test]
fn any_split_gives_the_same_reply() {
    let bytes = [
        data(0, 1006, b"wxyz"),
        hole(0, 1002, 4),
        data(DONE, 1000, b"ab"),
    ]
    .concat();
    let whole = decode(true, READ, &bytes).unwrap();
    for at in 0..bytes.len() {
        let mut decoder = ReplyDecoder::new(true);
        assert!(decoder.expect(COOKIE, READ));
        assert_eq!(decoder.advance(&mut &bytes[..at]).unwrap(), None);
        assert_eq!(
            decoder.advance(&mut &bytes[at..]).unwrap(),
            whole,
            "split at {at}"
        );
    }
}

const GREETING: &[u8] = b"NBDMAGICIHAVEOPT\x00\x03";

fn option_reply(option: u32, kind: u32, data: &[u8]) -> Vec<u8> {
    let length = data.len() as u32;
    let header = [
        &OPTION_REPLY_MAGIC.to_be_bytes()[..],
        &option.to_be_bytes(),
        &kind.to_be_bytes(),
    ]
    .concat();
    [&header[..], &length.to_be_bytes(), data].concat()
}

fn handshake(
    options: ClientOptions,
    bytes: &[u8],
) -> (Result<Option<Negotiated>, ClientError>, Vec<u8>) {
    let mut handshake = ClientHandshake::new("r0", options);
    let result = handshake.advance(&mut &bytes[..]);
    (result, handshake.take_output())
}

const SIMPLE: ClientOptions = ClientOptions {
    structured_replies: false,
    allocation: false,
};

#[test]
fn a_server_without_go_is_asked_by_export_name() {
    let bytes = [
        GREETING,
        &option_reply(option::STRUCTURED_REPLY, option_reply::ERR_UNSUP, b""),
        &option_reply(option::GO, option_reply::ERR_UNSUP, b"what?"),
        &[0, 0, 0, 0, 0, 0, 2, 0, 0, 3],
    ]
    .concat();
    let (result, output) = handshake(ClientOptions::default(), &bytes);
    let negotiated = result.unwrap().unwrap();
    assert_eq!(
        (negotiated.size, negotiated.structured_replies),
        (512, false)
    );
    assert_eq!(
        negotiated.flags,
        TransmissionFlags::HAS_FLAGS | TransmissionFlags::READ_ONLY
    );
    assert!(output.ends_with(&encode_option(option::EXPORT_NAME, b"r0")));
}

#[test]
fn a_server_with_zeroes_sends_124_more() {
    let unsupported = option_reply(option::GO, option_reply::ERR_UNSUP, b"");
    let mut bytes = [b"NBDMAGICIHAVEOPT\x00\x01", &unsupported[..], &[0; 133]].concat();
    assert!(matches!(handshake(SIMPLE, &bytes).0, Ok(None)));
    bytes.push(0);
    assert!(matches!(handshake(SIMPLE, &bytes).0, Ok(Some(_))));
}

#[test]
fn go_without_a_size_breaks_the_protocol() {
    let bytes = [GREETING, &option_reply(option::GO, option_reply::ACK, b"")].concat();
    assert!(matches!(
        handshake(SIMPLE, &bytes).0,
        Err(ClientError::Protocol(_))
    ));
}

#[test]
fn a_foreign_or_old_server_breaks_the_protocol() {
    for greeting in [
        &b"SSH-2.0-OpenSSH_9.2p1 Debian"[..],
        b"NBDMAGICIHAVEOPT\x00\x00",
        b"NBDMAGIC\x00\x00\x42\x02\x81\x86\x12\x53\0\0",
    ] {
        assert!(matches!(
            handshake(SIMPLE, greeting).0,
            Err(ClientError::Protocol(_))
        ));
    }
}

#[test]
fn replies_out_of_step_or_too_long_break_the_protocol() {
    let ack = option_reply(option::LIST, option_reply::ACK, b"");
    let mut long = option_reply(option::GO, option_reply::ERR_POLICY, b"");
    long[16..].copy_from_slice(&u32::MAX.to_be_bytes());
    let malformed = option_reply(option::GO, option_reply::INFO, b"\0\0\0");
    let short = option_reply(option::GO, option_reply::INFO, b"\0");
    let list = option_reply(option::GO, option_reply::SERVER, b"");
    for reply in [vec![0; 20], ack, long, malformed, short, list] {
        let bytes = [GREETING, &reply].concat();
        assert!(matches!(
            handshake(SIMPLE, &bytes).0,
            Err(ClientError::Protocol(_))
        ));
    }
}
