//! Every combination: symmetry, agreement with the invariants of the table, and a snapshot of how many combinations each row decides.
//!
//! The table sees generations only through questions ("is mine the peer's slot?"). All pairs of identifier sets over a small
//! universe are reduced to one representative per set of answers; those are crossed with all flags of both sides. A second sweep takes
//! all pairs with the flags that correct directions, which also shows that the answers are all that matters.

use alloc::collections::BTreeMap;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt::Write as _;

use super::{O, X, Y, side};
use crate::generation::{DiskLevel, Outcome, Protocol, Rule, Side, Verdict, compare};
use crate::units::Generation;

const HISTORIES: &[&[Generation]] = &[
    &[],
    &[O],
    &[X],
    &[Y],
    &[O, X],
    &[X, O],
    &[Y, O],
    &[O, Y],
    &[X, Y, O],
];

fn identifier_sets() -> Vec<Side<'static>> {
    let mut sets = Vec::new();
    for current in [Generation::JUST_CREATED, O, X, Y] {
        for bitmap in [Generation::NONE, Generation::JUST_CREATED, O, X, Y] {
            for history in HISTORIES {
                sets.push(Side {
                    current,
                    bitmap,
                    history,
                    ..side(0)
                });
            }
        }
    }
    sets
}

/// The answers by which the table knows a pair of identifier sets.
fn answers(me: &Side<'_>, peer: &Side<'_>) -> [bool; 13] {
    let known = |value: Generation| !value.is_just_created();
    let same = |one: Generation, other: Generation| known(one) && one.same(other);
    let in_history =
        |value: Generation, side: &Side<'_>| side.history.iter().any(|old| same(value, *old));
    let any =
        |value: Generation, side: &Side<'_>| same(value, side.bitmap) || in_history(value, side);
    [
        known(me.current),
        known(peer.current),
        me.current.same(peer.current),
        same(me.current, peer.bitmap),
        same(peer.current, me.bitmap),
        in_history(me.current, peer),
        in_history(peer.current, me),
        known(me.bitmap),
        known(peer.bitmap),
        same(me.bitmap, peer.bitmap),
        any(me.bitmap, peer) || me.history.iter().any(|old| any(*old, peer)),
        peer.history
            .first()
            .is_some_and(|old| same(me.bitmap, *old)),
        me.history
            .first()
            .is_some_and(|old| same(peer.bitmap, *old)),
    ]
}

fn representatives() -> Vec<(Side<'static>, Side<'static>)> {
    let sets = identifier_sets();
    let mut found = BTreeMap::new();
    for me in &sets {
        for peer in &sets {
            found.entry(answers(me, peer)).or_insert((
                *me,
                Side {
                    node_id: crate::units::NodeId(1),
                    ..*peer
                },
            ));
        }
    }
    found.into_values().collect()
}

const DISKS: [DiskLevel; 4] = [
    DiskLevel::Inconsistent,
    DiskLevel::Outdated,
    DiskLevel::Consistent,
    DiskLevel::UpToDate,
];

/// All flags of one side: 256 combinations.
fn with_flags(base: Side<'static>, number: usize) -> Side<'static> {
    let flag = |bit: usize| number >> bit & 1 == 1;
    Side {
        crashed_primary: flag(0),
        still_running_since_contact: flag(1),
        role_primary: flag(2),
        full_sync_requested: flag(3),
        sync_target: flag(4),
        bits: u64::from(flag(5)),
        disk: DISKS[number >> 6],
        ..base
    }
}

/// What must hold for every pair, whatever the row.
fn check(me: &Side<'_>, peer: &Side<'_>, found: Verdict) {
    let mirror = compare(peer, me);
    assert_eq!(mirror, found.mirrored(), "not symmetric: {me:?} {peer:?}");
    let context = || alloc::format!("{found:?} for {me:?} and {peer:?}");
    match found.outcome {
        Outcome::InSync => {
            assert!(
                me.current.same(peer.current) && !me.current.is_just_created(),
                "{}",
                context()
            );
            assert!(me.bits == 0 && peer.bits == 0, "{}", context());
            assert!(
                me.disk > DiskLevel::Inconsistent && peer.disk > DiskLevel::Inconsistent,
                "{}",
                context()
            );
        }
        Outcome::Source(extent) | Outcome::Target(extent) => {
            let (from, to) = if matches!(found.outcome, Outcome::Source(_)) {
                (me, peer)
            } else {
                (peer, me)
            };
            assert!(from.disk > DiskLevel::Inconsistent, "{}", context());
            assert!(
                !from.full_sync_requested && !from.current.is_just_created(),
                "{}",
                context()
            );
            if extent == crate::generation::Extent::Bitmap {
                assert!(
                    to.disk > DiskLevel::Inconsistent || to.sync_target,
                    "{}",
                    context()
                );
                assert!(
                    !to.full_sync_requested && !to.current.is_just_created(),
                    "{}",
                    context()
                );
            }
            // A target that tracks changes of its own, with bits, holds writes that nobody else has, unless it gave its data up.
            let writes_of_its_own =
                !to.bitmap.is_just_created() && to.bits > 0 && to.disk > DiskLevel::Inconsistent;
            let given_up = matches!(found.rule, Rule::GivenUpSelf | Rule::GivenUpPeer);
            if given_up {
                // Named by the source, begun by no Primary, and everything since then is marked.
                let (named, since) = (to.current, to.bitmap);
                assert!(
                    from.history.iter().any(|old| old.same(named)),
                    "{}",
                    context()
                );
                assert!(!named.made_by_primary(), "{}", context());
                assert!(
                    since.same(from.bitmap) || since.same(from.current),
                    "{}",
                    context()
                );
            }
            let declared_void = to.full_sync_requested || to.current.is_just_created() || given_up;
            if writes_of_its_own && !declared_void && from.bits > 0 {
                panic!("writes discarded without a split brain: {}", context());
            }
        }
        Outcome::NoSource => {
            let void = |side: &Side<'_>| {
                side.disk == DiskLevel::Inconsistent || side.current.is_just_created()
            };
            assert!(void(me) && void(peer), "{}", context());
        }
        Outcome::SplitBrain(_) => {
            let void = |side: &Side<'_>| side.full_sync_requested || side.current.is_just_created();
            assert!(!void(me) && !void(peer), "{}", context());
        }
        Outcome::Unrelated => assert!(!answers(me, peer)[10], "{}", context()),
        Outcome::Refuse(_) => {}
    }
}

fn tally(counts: &mut BTreeMap<(Rule, Outcome), u64>, found: Verdict) {
    *counts.entry((found.rule, found.outcome)).or_default() += 1;
}

fn print(title: &str, counts: &BTreeMap<(Rule, Outcome), u64>, text: &mut String) {
    writeln!(text, "{title}: {} cases", counts.values().sum::<u64>()).expect("writing to a string");
    for ((rule, outcome), count) in counts {
        writeln!(
            text,
            "  {:<30} {:<28} {count:>9}",
            rule.name(),
            alloc::format!("{outcome:?}")
        )
        .expect("writing to a string");
    }
}

/// Millions of pairs: symmetric, within the invariants, and as many per row as written down. If a change of the table is
/// meant, the message of the failure is the new `snapshot.txt`.
#[test]
fn table_is_total_symmetric_and_unchanged() {
    let mut text = String::new();

    let mut counts = BTreeMap::new();
    for (me, peer) in representatives() {
        for protocol in [Protocol::A, Protocol::C] {
            for mine in 0..256 {
                let me = Side {
                    protocol,
                    ..with_flags(me, mine)
                };
                for theirs in 0..256 {
                    let peer = Side {
                        protocol,
                        ..with_flags(peer, theirs)
                    };
                    let found = compare(&me, &peer);
                    check(&me, &peer, found);
                    tally(&mut counts, found);
                }
            }
        }
    }
    print(
        "one pair of identifier sets per set of answers, all flags",
        &counts,
        &mut text,
    );
    let rules: alloc::collections::BTreeSet<_> = counts.keys().map(|(rule, _)| *rule).collect();
    for rule in Rule::ALL.iter().filter(|rule| **rule != Rule::SameNodeId) {
        assert!(rules.contains(rule), "no case reaches {rule}");
    }

    let mut counts = BTreeMap::new();
    let mut by_answers: BTreeMap<([bool; 13], usize, usize), Verdict> = BTreeMap::new();
    let sets = identifier_sets();
    // Bits on, UpToDate or Inconsistent, sync target or not, full sync requested or not.
    let flags: Vec<usize> = (0..256)
        .filter(|n| n & 0b10_0111 == 0b10_0000 && (n >> 6 == 0 || n >> 6 == 3))
        .collect();
    for me in &sets {
        for peer in &sets {
            let key = answers(me, peer);
            for mine in &flags {
                for theirs in &flags {
                    let me = with_flags(*me, *mine);
                    let peer = Side {
                        node_id: crate::units::NodeId(1),
                        ..with_flags(*peer, *theirs)
                    };
                    let found = compare(&me, &peer);
                    check(&me, &peer, found);
                    tally(&mut counts, found);
                    let first = by_answers.entry((key, *mine, *theirs)).or_insert(found);
                    assert_eq!(
                        *first, found,
                        "the answers do not tell {me:?} and {peer:?} apart"
                    );
                }
            }
        }
    }
    print(
        "all pairs of identifier sets, flags that correct directions",
        &counts,
        &mut text,
    );

    assert!(
        text == include_str!("snapshot.txt"),
        "the table changed; snapshot.txt would be:\n{text}"
    );
}
