//! Every rule on requests, with its error number.

mod support;

use qrbd_nbd::client::{RequestFlags, encode_option, encode_request};
use qrbd_nbd::protocol::{command, limits, option};
use qrbd_nbd::{
    Answer, BlockSizes, Command, Cookie, Errno, ExportInfo, Outcome, Received, Request, Session,
    TransmissionError, TransmissionFlags,
};
use support::{Conversation, go, meta_option};

const COOKIE: Cookie = Cookie(0x1122_3344_5566_7788);
const SIZE: u64 = 1 << 20;
const NONE: RequestFlags = RequestFlags::NONE;
const COMMANDS: [u16; 7] = [
    command::READ,
    command::WRITE,
    command::FLUSH,
    command::TRIM,
    command::CACHE,
    command::WRITE_ZEROES,
    command::BLOCK_STATUS,
];

/// Everything negotiated: structured replies and `base:allocation`.
fn full(export: &str) -> Session {
    let mut conversation = Conversation::fixed();
    conversation.say(&encode_option(option::STRUCTURED_REPLY, b""));
    conversation.say(&meta_option(
        option::SET_META_CONTEXT,
        export,
        &["base:allocation"],
    ));
    conversation.say(&go(export));
    conversation.session()
}

/// An export of `size` bytes whose client knows only simple replies.
fn plain(size: u64, flags: TransmissionFlags, minimum: u32) -> Session {
    let sizes = BlockSizes::new(minimum, 4096, 32 << 20).unwrap();
    Session::without_handshake(ExportInfo::new("plain", size, flags, sizes).unwrap())
}

fn check(
    session: &Session,
    command: u16,
    flags: RequestFlags,
    offset: u64,
    length: u32,
) -> Received {
    session
        .check(&encode_request(command, flags, COOKIE, offset, length))
        .unwrap()
}

fn accepted(
    session: &Session,
    command: u16,
    flags: RequestFlags,
    offset: u64,
    length: u32,
) -> Request {
    match check(session, command, flags, offset, length) {
        Received::Request(request) => request,
        other => panic!("refused: {other:?}"),
    }
}

fn refused(
    session: &Session,
    command: u16,
    flags: RequestFlags,
    offset: u64,
    length: u32,
) -> Errno {
    match check(session, command, flags, offset, length) {
        Received::Answer(Answer {
            cookie,
            outcome: Outcome::Refused { errno, .. },
            drain,
        }) => {
            assert_eq!(cookie, COOKIE);
            assert_eq!(drain, if command == command::WRITE { length } else { 0 });
            errno
        }
        other => panic!("not refused: {other:?}"),
    }
}

#[test]
fn a_valid_request_keeps_all_its_fields() {
    let request = accepted(&full("disk"), command::WRITE, RequestFlags::FUA, 512, 1024);
    let expected = Request {
        cookie: COOKIE,
        command: Command::Write,
        offset: 512,
        length: 1024,
        fua: true,
    };
    assert_eq!(request, expected);
    assert_eq!((request.payload_length(), request.end()), (1024, 1536));
}

#[test]
fn only_write_has_a_payload() {
    let session = full("disk");
    for number in COMMANDS
        .into_iter()
        .filter(|number| ![command::FLUSH, command::WRITE].contains(number))
    {
        assert_eq!(accepted(&session, number, NONE, 0, 512).payload_length(), 0);
    }
}

#[test]
fn wrong_magic_loses_the_stream() {
    let session = full("disk");
    let mut header = encode_request(command::READ, NONE, COOKIE, 0, 512);
    header[0] ^= 1;
    assert_eq!(
        session.check(&header),
        Err(TransmissionError::RequestMagic(0x2460_9513))
    );
}

#[test]
fn disconnect_has_no_reply_whatever_it_carries() {
    let session = full("disk");
    assert_eq!(
        check(&session, command::DISC, NONE, 0, 0),
        Received::Disconnect
    );
    assert_eq!(
        check(&session, command::DISC, RequestFlags(0xffff), 3, 5),
        Received::Disconnect
    );
}

#[test]
fn unknown_commands_are_einval() {
    let session = full("disk");
    for number in [8, 9, 100, u16::MAX] {
        assert_eq!(refused(&session, number, NONE, 0, 512), Errno::Einval);
    }
}

#[test]
fn unknown_flags_are_einval_on_every_command() {
    let session = full("disk");
    for number in COMMANDS {
        let length = if number == command::FLUSH { 0 } else { 512 };
        for bit in 5..16 {
            assert_eq!(
                refused(&session, number, RequestFlags(1 << bit), 0, length),
                Errno::Einval
            );
        }
    }
}

#[test]
fn a_flag_of_another_command_is_einval() {
    let session = full("disk");
    let owners = [
        (RequestFlags::NO_HOLE, command::WRITE_ZEROES),
        (RequestFlags::FAST_ZERO, command::WRITE_ZEROES),
        (RequestFlags::DF, command::READ),
        (RequestFlags::REQ_ONE, command::BLOCK_STATUS),
    ];
    for (flag, owner) in owners {
        for number in COMMANDS {
            let length = if number == command::FLUSH { 0 } else { 512 };
            if number == owner {
                accepted(&session, number, flag, 0, length);
            } else {
                assert_eq!(
                    refused(&session, number, flag, 0, length),
                    Errno::Einval,
                    "{flag:?} on {number}"
                );
            }
        }
    }
}

#[test]
fn fua_is_accepted_on_every_command_and_reaches_only_those_that_write() {
    let session = full("disk");
    for number in COMMANDS {
        let length = if number == command::FLUSH { 0 } else { 512 };
        let writes = [command::WRITE, command::TRIM, command::WRITE_ZEROES].contains(&number);
        assert_eq!(
            accepted(&session, number, RequestFlags::FUA, 0, length).fua,
            writes,
            "{number}"
        );
    }
}

#[test]
fn unadvertised_flags_are_einval() {
    let session = plain(SIZE, TransmissionFlags::SEND_WRITE_ZEROES, 512);
    assert_eq!(
        refused(&session, command::WRITE, RequestFlags::FUA, 0, 512),
        Errno::Einval
    );
    assert_eq!(
        refused(&session, command::READ, RequestFlags::DF, 0, 512),
        Errno::Einval
    );
    assert_eq!(
        refused(
            &session,
            command::WRITE_ZEROES,
            RequestFlags::FAST_ZERO,
            0,
            512
        ),
        Errno::Einval
    );
}

#[test]
fn unadvertised_commands_are_einval() {
    let session = plain(SIZE, TransmissionFlags::NONE, 512);
    assert_eq!(refused(&session, command::FLUSH, NONE, 0, 0), Errno::Einval);
    for number in [
        command::TRIM,
        command::CACHE,
        command::WRITE_ZEROES,
        command::BLOCK_STATUS,
    ] {
        assert_eq!(refused(&session, number, NONE, 0, 512), Errno::Einval);
    }
    accepted(&session, command::READ, NONE, 0, 512);
    accepted(&session, command::WRITE, NONE, 0, 512);
}

#[test]
fn changes_of_a_read_only_export_are_eperm() {
    let session = full("readonly");
    for number in [command::WRITE, command::TRIM, command::WRITE_ZEROES] {
        assert_eq!(refused(&session, number, NONE, 0, 512), Errno::Eperm);
        assert_eq!(
            refused(&session, number, NONE, SIZE, 512),
            Errno::Eperm,
            "before the range"
        );
    }
    let bare = plain(SIZE, TransmissionFlags::READ_ONLY, 512);
    assert_eq!(
        refused(&bare, command::TRIM, NONE, 0, 512),
        Errno::Eperm,
        "before what is advertised"
    );
    accepted(&session, command::READ, NONE, 0, 512);
    accepted(&session, command::FLUSH, NONE, 0, 0);
}

#[test]
fn out_of_range_is_enospc_for_writers_and_einval_for_the_rest() {
    let session = full("disk");
    for number in COMMANDS
        .into_iter()
        .filter(|number| *number != command::FLUSH)
    {
        let writer = [command::WRITE, command::WRITE_ZEROES].contains(&number);
        let expected = if writer { Errno::Enospc } else { Errno::Einval };
        for (offset, length) in [(SIZE, 512), (SIZE - 512, 1024), (1 << 63, 512)] {
            assert_eq!(
                refused(&session, number, NONE, offset, length),
                expected,
                "{number} at {offset}"
            );
        }
        accepted(&session, number, NONE, SIZE - 512, 512);
    }
}

#[test]
fn an_overflowing_range_is_out_of_range() {
    let session = full("disk");
    let last = u64::MAX - 511;
    assert_eq!(
        refused(&session, command::WRITE, NONE, last, 512),
        Errno::Enospc
    );
    assert_eq!(
        refused(&session, command::READ, NONE, last, 1024),
        Errno::Einval
    );
    assert_eq!(
        refused(&session, command::TRIM, NONE, last, u32::MAX - 511),
        Errno::Einval
    );
}

#[test]
fn misaligned_requests_are_einval() {
    let session = full("large-blocks");
    for number in COMMANDS
        .into_iter()
        .filter(|number| *number != command::FLUSH)
    {
        assert_eq!(refused(&session, number, NONE, 512, 4096), Errno::Einval);
        assert_eq!(refused(&session, number, NONE, 0, 4095), Errno::Einval);
        accepted(&session, number, NONE, 4096, 4096);
    }
}

#[test]
fn minimum_block_size_one_accepts_single_bytes() {
    let session = plain(1001, TransmissionFlags::NONE, 1);
    accepted(&session, command::WRITE, NONE, 1000, 1);
    assert_eq!(
        refused(&session, command::WRITE, NONE, 1000, 2),
        Errno::Enospc
    );
}

#[test]
fn payload_up_to_32_mib_is_accepted_and_more_is_einval() {
    let session = plain(1 << 40, TransmissionFlags::NONE, 512);
    for number in [command::READ, command::WRITE] {
        accepted(&session, number, NONE, 0, limits::PAYLOAD);
        assert_eq!(
            refused(&session, number, NONE, 0, limits::PAYLOAD + 512),
            Errno::Einval
        );
    }
}

#[test]
fn an_unfragmented_read_beyond_the_limit_is_eoverflow() {
    let session = full("disk");
    assert_eq!(
        refused(
            &session,
            command::READ,
            RequestFlags::DF,
            0,
            limits::PAYLOAD + 512
        ),
        Errno::Eoverflow
    );
}

#[test]
fn a_write_is_drained_up_to_the_bound_and_disconnects_beyond() {
    let session = full("disk");
    assert_eq!(
        refused(&session, command::WRITE, NONE, 0, limits::DRAIN),
        Errno::Einval
    );
    let header = encode_request(command::WRITE, NONE, COOKIE, 0, limits::DRAIN + 1);
    let expected = TransmissionError::PayloadTooLong {
        length: limits::DRAIN + 1,
    };
    assert_eq!(session.check(&header), Err(expected));
}

#[test]
fn commands_without_payload_may_be_just_under_4_gib() {
    let flags = TransmissionFlags::SEND_TRIM
        | TransmissionFlags::SEND_WRITE_ZEROES
        | TransmissionFlags::SEND_CACHE;
    let session = plain(1 << 40, flags, 512);
    for number in [command::TRIM, command::WRITE_ZEROES, command::CACHE] {
        accepted(&session, number, NONE, 0, u32::MAX - 511);
    }
}

#[test]
fn oversize_trim_and_write_zeroes_are_answered_not_disconnected() {
    let session = full("disk");
    assert_eq!(
        refused(&session, command::TRIM, NONE, 0, u32::MAX - 511),
        Errno::Einval
    );
    assert_eq!(
        refused(&session, command::WRITE_ZEROES, NONE, 0, u32::MAX - 511),
        Errno::Enospc
    );
}

#[test]
fn length_zero_succeeds_without_reaching_the_owner() {
    let session = full("disk");
    for number in [
        command::READ,
        command::WRITE,
        command::TRIM,
        command::CACHE,
        command::WRITE_ZEROES,
    ] {
        for offset in [0, SIZE] {
            let expected = Answer {
                cookie: COOKIE,
                outcome: Outcome::Empty,
                drain: 0,
            };
            assert_eq!(
                check(&session, number, NONE, offset, 0),
                Received::Answer(expected)
            );
        }
    }
    assert_eq!(
        refused(&session, command::BLOCK_STATUS, NONE, 0, 0),
        Errno::Einval
    );
}

#[test]
fn flush_with_a_range_is_einval() {
    let session = full("disk");
    accepted(&session, command::FLUSH, NONE, 0, 0);
    assert_eq!(
        refused(&session, command::FLUSH, NONE, 512, 0),
        Errno::Einval
    );
    assert_eq!(
        refused(&session, command::FLUSH, NONE, 0, 512),
        Errno::Einval
    );
}

#[test]
fn flags_of_write_zeroes_and_block_status_reach_the_owner() {
    let session = full("disk");
    let zeroes = |flags| accepted(&session, command::WRITE_ZEROES, flags, 0, 512).command;
    assert_eq!(
        zeroes(NONE),
        Command::WriteZeroes {
            no_hole: false,
            fast_zero: false
        }
    );
    assert_eq!(
        zeroes(RequestFlags::NO_HOLE),
        Command::WriteZeroes {
            no_hole: true,
            fast_zero: false
        }
    );
    assert_eq!(
        zeroes(RequestFlags::FAST_ZERO),
        Command::WriteZeroes {
            no_hole: false,
            fast_zero: true
        }
    );
    let status = accepted(
        &session,
        command::BLOCK_STATUS,
        RequestFlags::REQ_ONE,
        0,
        512,
    )
    .command;
    assert_eq!(status, Command::BlockStatus { one_extent: true });
}

#[test]
fn block_status_needs_a_context_selected_for_the_same_name() {
    let mut conversation = Conversation::fixed();
    conversation.say(&encode_option(option::STRUCTURED_REPLY, b""));
    conversation.say(&meta_option(
        option::SET_META_CONTEXT,
        "readonly",
        &["base:allocation"],
    ));
    conversation.say(&go("disk"));
    assert_eq!(
        refused(&conversation.session(), command::BLOCK_STATUS, NONE, 0, 512),
        Errno::Einval
    );
}

#[test]
fn the_last_selection_of_contexts_wins() {
    let mut conversation = Conversation::fixed();
    conversation.say(&encode_option(option::STRUCTURED_REPLY, b""));
    conversation.say(&meta_option(
        option::SET_META_CONTEXT,
        "disk",
        &["base:allocation"],
    ));
    conversation.say(&meta_option(option::SET_META_CONTEXT, "disk", &[]));
    conversation.say(&go("disk"));
    assert_eq!(
        refused(&conversation.session(), command::BLOCK_STATUS, NONE, 0, 512),
        Errno::Einval
    );
}

#[test]
fn a_grown_export_accepts_the_new_range() {
    let mut session = full("disk");
    assert_eq!(
        refused(&session, command::WRITE, NONE, SIZE, 512),
        Errno::Enospc
    );
    session.set_size(2 * SIZE).unwrap();
    accepted(&session, command::WRITE, NONE, SIZE, 512);
    assert!(session.set_size(2 * SIZE + 1).is_err());
    assert_eq!(session.export().size(), 2 * SIZE);
}
