//! Policies one by one, and every combination for symmetry.

use alloc::vec::Vec;

use super::*;

fn policies(zero: Policy, one: Policy, two: Policy) -> Policies {
    Policies {
        after_sb_0pri: zero,
        after_sb_1pri: one,
        after_sb_2pri: two,
        always_asbp: false,
    }
}

fn side(node_id: u8, policies: Policies) -> SplitBrainSide {
    SplitBrainSide {
        node_id: NodeId(node_id),
        primary_now: false,
        bits: 5,
        bitmap_generation: Generation(0x1000),
        inconsistent: false,
        discard_my_data: false,
        policies,
    }
}

fn pair(zero: Policy, one: Policy, two: Policy) -> (SplitBrainSide, SplitBrainSide) {
    let policies = policies(zero, one, two);
    (side(0, policies), side(1, policies.mirrored()))
}

fn zero(policy: Policy) -> (SplitBrainSide, SplitBrainSide) {
    pair(policy, Policy::Disconnect, Policy::Disconnect)
}

#[track_caller]
fn expect(
    me: &SplitBrainSide,
    peer: &SplitBrainSide,
    decided_by: DecidedBy,
    resolution: Resolution,
) {
    let expected = Decision {
        decided_by,
        resolution,
    };
    assert_eq!(resolve(me, peer, History::Bitmap), expected);
    assert_eq!(resolve(peer, me, History::Bitmap), expected.mirrored());
}

const TARGET: Resolution = Resolution::IAmTarget(Extent::Bitmap);
const SOURCE: Resolution = Resolution::IAmSource(Extent::Bitmap);
const NOBODY: Resolution = Resolution::Unresolved { text: UNRESOLVED };

#[test]
fn by_default_nobody_loses() {
    let (me, peer) = zero(Policy::Disconnect);
    for (mine, theirs) in [(false, false), (true, false), (true, true)] {
        let me = SplitBrainSide {
            primary_now: mine,
            ..me
        };
        let peer = SplitBrainSide {
            primary_now: theirs,
            ..peer
        };
        expect(&me, &peer, DecidedBy::Disconnect, NOBODY);
    }
}

#[test]
fn one_sided_discard_my_data_goes_before_every_policy() {
    let (me, peer) = zero(Policy::DiscardRemote);
    let me = SplitBrainSide {
        discard_my_data: true,
        ..me
    };
    expect(&me, &peer, DecidedBy::Manual, TARGET);
    assert_eq!(
        resolve(&me, &peer, History::Ancestor).resolution,
        Resolution::IAmTarget(Extent::Full)
    );
    // Also before a quarrel about settings.
    let strange = SplitBrainSide {
        policies: policies(Policy::Consensus, Policy::Disconnect, Policy::Disconnect),
        ..peer
    };
    expect(&me, &strange, DecidedBy::Manual, TARGET);
}

#[test]
fn discard_my_data_on_both_sides_is_refused_with_a_text() {
    let (me, peer) = zero(Policy::Disconnect);
    let me = SplitBrainSide {
        discard_my_data: true,
        ..me
    };
    let peer = SplitBrainSide {
        discard_my_data: true,
        ..peer
    };
    let Resolution::ConfigurationError { text } = resolve(&me, &peer, History::Bitmap).resolution
    else {
        panic!("not refused")
    };
    assert!(text.starts_with("incompatible discard-my-data settings"));
}

#[test]
fn primary_is_not_discarded_by_hand() {
    let (me, peer) = zero(Policy::Disconnect);
    let me = SplitBrainSide {
        discard_my_data: true,
        primary_now: true,
        ..me
    };
    expect(
        &me,
        &peer,
        DecidedBy::ManualImpossible,
        Resolution::Unresolved {
            text: DISCARD_ON_PRIMARY,
        },
    );
}

#[test]
fn younger_and_older_primary_are_told_by_the_bit_in_the_slot() {
    let primary_before = Generation(0x1001);
    let (me, peer) = zero(Policy::DiscardYoungerPrimary);
    let older = SplitBrainSide {
        bitmap_generation: primary_before,
        ..peer
    };
    expect(&me, &older, DecidedBy::DiscardYoungerPrimary, TARGET);
    let (me, peer) = zero(Policy::DiscardOlderPrimary);
    let older = SplitBrainSide {
        bitmap_generation: primary_before,
        ..peer
    };
    expect(&me, &older, DecidedBy::DiscardOlderPrimary, SOURCE);
    let fewer = SplitBrainSide { bits: 4, ..peer };
    expect(&me, &fewer, DecidedBy::YoungerOlderUndecided, SOURCE);
}

#[test]
fn zero_changes_decides_only_if_a_side_has_none() {
    let (me, peer) = zero(Policy::DiscardZeroChanges);
    expect(&me, &peer, DecidedBy::ZeroChangesUndecided, NOBODY);
    expect(
        &SplitBrainSide { bits: 0, ..me },
        &peer,
        DecidedBy::DiscardZeroChanges,
        TARGET,
    );
    let none = |side| SplitBrainSide { bits: 0, ..side };
    expect(
        &none(me),
        &none(peer),
        DecidedBy::DiscardZeroChanges,
        SOURCE,
    );
}

#[test]
fn least_changes_discards_the_smaller_and_breaks_ties_by_node_id() {
    let (me, peer) = zero(Policy::DiscardLeastChanges);
    expect(
        &SplitBrainSide { bits: 4, ..me },
        &peer,
        DecidedBy::DiscardLeastChanges,
        TARGET,
    );
    expect(&me, &peer, DecidedBy::DiscardLeastChanges, SOURCE);
}

#[test]
fn discard_local_faces_discard_remote() {
    let (me, peer) = zero(Policy::DiscardLocal);
    expect(&me, &peer, DecidedBy::DiscardNamedSide, TARGET);
    let same = SplitBrainSide {
        policies: me.policies,
        ..peer
    };
    let text = "incompatible after-sb-0pri settings";
    expect(
        &me,
        &same,
        DecidedBy::IncompatibleSettings,
        Resolution::ConfigurationError { text },
    );
}

#[test]
fn word_at_the_wrong_level_is_a_configuration_error() {
    for (zero, one, two) in [
        (Policy::Consensus, Policy::Disconnect, Policy::Disconnect),
        (
            Policy::Disconnect,
            Policy::DiscardLeastChanges,
            Policy::Disconnect,
        ),
        (Policy::Disconnect, Policy::Disconnect, Policy::Consensus),
    ] {
        let (me, peer) = pair(zero, one, two);
        let error = Resolution::ConfigurationError {
            text: CONFIGURATION_ERROR,
        };
        expect(&me, &peer, DecidedBy::ConfigurationError, error);
    }
}

#[test]
fn with_one_primary_the_words_differ_in_how_they_spare_it() {
    let primary = |(me, peer): (SplitBrainSide, SplitBrainSide)| {
        (
            SplitBrainSide {
                primary_now: true,
                ..me
            },
            peer,
        )
    };
    let (me, peer) = primary(pair(
        Policy::DiscardLocal,
        Policy::DiscardSecondary,
        Policy::Disconnect,
    ));
    expect(&me, &peer, DecidedBy::DiscardSecondary, SOURCE);
    let (me, peer) = primary(pair(
        Policy::DiscardLocal,
        Policy::Consensus,
        Policy::Disconnect,
    ));
    expect(&me, &peer, DecidedBy::ConsensusFailed, NOBODY);
    let (me, peer) = primary(pair(
        Policy::DiscardRemote,
        Policy::Consensus,
        Policy::Disconnect,
    ));
    expect(&me, &peer, DecidedBy::DiscardNamedSide, SOURCE);
    let (me, peer) = primary(pair(
        Policy::DiscardLocal,
        Policy::ViolentlyAs0p,
        Policy::Disconnect,
    ));
    expect(&me, &peer, DecidedBy::DiscardNamedSide, TARGET);
    let (me, peer) = primary(pair(
        Policy::DiscardLocal,
        Policy::CallPriLostAfterSb,
        Policy::Disconnect,
    ));
    expect(
        &me,
        &peer,
        DecidedBy::DiscardNamedSide,
        Resolution::IMustDemote(Extent::Bitmap),
    );
    let (me, peer) = primary(pair(
        Policy::DiscardRemote,
        Policy::CallPriLostAfterSb,
        Policy::Disconnect,
    ));
    expect(&me, &peer, DecidedBy::DiscardNamedSide, SOURCE);
}

#[test]
fn common_ancestor_in_the_history_needs_always_asbp_and_a_full_sync() {
    let (mut me, mut peer) = zero(Policy::DiscardLeastChanges);
    let decision = resolve(&me, &peer, History::Ancestor);
    assert_eq!(decision.decided_by, DecidedBy::AncestorNeedsAlwaysAsbp);
    me.policies.always_asbp = true;
    let decision = resolve(&me, &peer, History::Ancestor);
    assert_eq!(decision.decided_by, DecidedBy::IncompatibleSettings);
    peer.policies.always_asbp = true;
    assert_eq!(
        resolve(&me, &peer, History::Ancestor).resolution,
        Resolution::IAmSource(Extent::Full)
    );
}

#[test]
fn inconsistent_side_never_wins() {
    let (me, peer) = zero(Policy::DiscardRemote);
    let me = SplitBrainSide {
        inconsistent: true,
        ..me
    };
    expect(
        &me,
        &peer,
        DecidedBy::WinnerInconsistent,
        Resolution::Unresolved {
            text: WINNER_INCONSISTENT,
        },
    );
}

#[test]
fn policy_words_parse_back() {
    for policy in Policy::ALL {
        assert_eq!(policy.word().parse(), Ok(*policy));
        assert_eq!(policy.mirrored().mirrored(), *policy);
    }
    assert_eq!("discard-everything".parse::<Policy>(), Err(UnknownPolicy));
}

/// Every pair of sides with every triple of words: symmetric, and no Primary is overwritten except by `violently-as0p`.
#[test]
fn resolution_is_total_and_symmetric_and_spares_primaries() {
    let mut sides = Vec::new();
    for number in 0..64u8 {
        let flag = |bit: u8| number >> bit & 1 == 1;
        sides.push(SplitBrainSide {
            primary_now: flag(0),
            bits: [0, 7][usize::from(flag(1))] + u64::from(flag(2)),
            bitmap_generation: Generation(0x1000 | u64::from(flag(3))),
            inconsistent: flag(4),
            discard_my_data: flag(5),
            ..side(0, Policies::default())
        });
    }
    let mut cases = 0u32;
    for zero in Policy::ALL {
        for one in Policy::ALL {
            for two in Policy::ALL {
                for always_asbp in [false, true] {
                    let policies = Policies {
                        always_asbp,
                        ..policies(*zero, *one, *two)
                    };
                    let other = [policies.mirrored(), Policies::default()]
                        [usize::from(cases.is_multiple_of(7))];
                    for me in &sides {
                        for peer in &sides {
                            let me = SplitBrainSide { policies, ..*me };
                            let peer = SplitBrainSide {
                                node_id: NodeId(1),
                                policies: other,
                                ..*peer
                            };
                            let history = if cases.is_multiple_of(2) {
                                History::Bitmap
                            } else {
                                History::Ancestor
                            };
                            check(&me, &peer, history);
                            cases += 1;
                        }
                    }
                }
            }
        }
    }
    assert!(cases > 10_000_000);
}

fn check(me: &SplitBrainSide, peer: &SplitBrainSide, history: History) {
    let decision = resolve(me, peer, history);
    assert_eq!(
        resolve(peer, me, history),
        decision.mirrored(),
        "{me:?} {peer:?}"
    );
    let (loser, winner) = match decision.resolution {
        Resolution::IAmTarget(_) => (me, peer),
        Resolution::IAmSource(_) => (peer, me),
        _ => return,
    };
    assert!(!winner.inconsistent, "{me:?} {peer:?}");
    if loser.primary_now {
        let word = if winner.primary_now {
            loser.policies.after_sb_2pri
        } else {
            loser.policies.after_sb_1pri
        };
        assert_eq!(word, Policy::ViolentlyAs0p, "{me:?} {peer:?}");
    }
    if history == History::Ancestor {
        assert!(loser.discard_my_data || loser.policies.always_asbp);
    }
    assert!(!winner.discard_my_data, "{me:?} {peer:?}");
}
