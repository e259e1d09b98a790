//! Claims about the codec as a whole; exact bytes are in `golden`, hostile input in `refusals`.

mod golden;
mod refusals;
mod samples;

use std::vec::Vec;

use proptest::prelude::*;
use samples::{Bytes, Source, message};

use super::codes::WireCode;
use super::*;
use crate::generation::Protocol;
use crate::split_brain::Policy;
use crate::state::{DiskState, Role};
use crate::wire::{GoodbyeReason, ReadOutcome, ResizeStage, ResyncOutcome};

/// What the peer finds in the frame of `sent`.
fn round_trip(sent: &Message<Bytes>) -> Result<(Lane, Message<Bytes>), WireError> {
    decode(&encode_head(sent), payload_of(sent).cloned())
}

proptest! {
    #[test]
    fn every_message_comes_back_as_it_was_sent(seed: u64) {
        let mut source = Source(seed);
        for &kind in MessageKind::ALL {
            let sent = message(kind, &mut source);
            prop_assert_eq!(round_trip(&sent), Ok((sent.lane(), sent)));
        }
    }

    #[test]
    fn a_head_is_one_allocation_of_exactly_its_size(seed: u64) {
        let mut source = Source(seed);
        for &kind in MessageKind::ALL {
            let head = encode_head(&message(kind, &mut source));
            prop_assert_eq!(head.capacity(), head.len(), "{}", kind);
        }
    }

    #[test]
    fn the_header_alone_tells_what_follows(seed: u64) {
        let mut source = Source(seed);
        for &kind in MessageKind::ALL {
            let sent = message(kind, &mut source);
            let head = encode_head(&sent);
            let lengths = parse_frame_header(head.first_chunk().unwrap()).unwrap();
            prop_assert_eq!(FRAME_HEADER_BYTES + lengths.body, head.len());
            prop_assert_eq!(lengths.payload, payload_of(&sent).map_or(0, Payload::length));
        }
    }
}

#[test]
fn the_number_of_a_kind_tells_its_lane() {
    for &kind in MessageKind::ALL {
        let sample = message(kind, &mut Source(1));
        assert_eq!(MessageKind::of(&sample), kind);
        assert_eq!(kind.lane(), sample.lane(), "{kind}");
        assert_eq!(MessageKind::from_code(kind.code()), Some(kind));
    }
    let known = (0..=255u8).filter_map(MessageKind::from_code);
    assert_eq!(known.collect::<Vec<_>>(), MessageKind::ALL);
}

/// Every word with its number; the numbers are part of the format.
fn codes_of<T: WireCode + core::fmt::Debug>() -> Vec<(u8, std::string::String)> {
    (0..=255)
        .filter_map(|code| T::from_code(code).map(|word| (code, word)))
        .inspect(|(code, word)| assert_eq!(word.to_code(), *code))
        .map(|(code, word)| (code, std::format!("{word:?}")))
        .collect()
}

fn words(numbered: &[(u8, &str)]) -> Vec<(u8, std::string::String)> {
    numbered
        .iter()
        .map(|&(code, word)| (code, word.into()))
        .collect()
}

#[test]
fn numbers_of_words_never_change() {
    assert_eq!(
        codes_of::<Role>(),
        words(&[(1, "Primary"), (2, "Secondary")])
    );
    assert_eq!(
        codes_of::<DiskState>(),
        words(&[
            (0, "Diskless"),
            (1, "Attaching"),
            (2, "Detaching"),
            (3, "Failed"),
            (4, "Negotiating"),
            (5, "Inconsistent"),
            (6, "Outdated"),
            (8, "Consistent"),
            (9, "UpToDate"),
        ])
    );
    assert_eq!(
        codes_of::<Protocol>(),
        words(&[(0, "A"), (1, "B"), (2, "C")])
    );
    assert_eq!(
        codes_of::<Policy>(),
        words(&[
            (0, "Disconnect"),
            (1, "DiscardYoungerPrimary"),
            (2, "DiscardOlderPrimary"),
            (3, "DiscardZeroChanges"),
            (4, "DiscardLeastChanges"),
            (5, "DiscardLocal"),
            (6, "DiscardRemote"),
            (7, "DiscardSecondary"),
            (8, "Consensus"),
            (9, "ViolentlyAs0p"),
            (10, "CallPriLostAfterSb"),
        ])
    );
    assert_eq!(
        codes_of::<GoodbyeReason>(),
        words(&[
            (0, "Disconnect"),
            (1, "StandAlone"),
            (2, "Renegotiate"),
            (3, "ProtocolError"),
        ])
    );
    assert_eq!(
        codes_of::<ResizeStage>(),
        words(&[
            (0, "Ask"),
            (1, "Offer"),
            (2, "Refuse"),
            (3, "Take"),
            (4, "Taken"),
        ])
    );
    assert_eq!(
        codes_of::<ResyncOutcome>(),
        words(&[(0, "Written"), (1, "Retry"), (2, "Failed")])
    );
    assert_eq!(
        codes_of::<ReadOutcome>(),
        words(&[(0, "Data"), (1, "Failed")])
    );
}

#[test]
fn a_text_that_is_too_long_is_cut_between_characters() {
    let reason = GoodbyeReason::StandAlone;
    let long = Message::<Bytes>::Goodbye {
        reason,
        text: "€".repeat(200),
    };
    let (_, cut) = round_trip(&long).unwrap();
    assert_eq!(
        cut,
        Message::Goodbye {
            reason,
            text: "€".repeat(170)
        }
    );
}

#[test]
#[should_panic(expected = "payload of the range 0+4096")]
fn a_write_whose_payload_is_shorter_than_its_range_is_not_sent() {
    let _ = encode_head(&Message::Write {
        sequence: 1,
        epoch: 1,
        volume: crate::units::VolumeNumber(0),
        range: crate::units::ByteRange::new(0, 4096),
        payload: Bytes(512),
    });
}

#[test]
fn the_description_names_every_kind_with_its_number() {
    let description = include_str!("../../../../../../docs/wire-protocol.md");
    for kind in MessageKind::ALL {
        let heading = std::format!("#### {:#04x} {kind}\n", kind.code());
        assert!(description.contains(&heading), "no section {heading}");
    }
}
