//! The comparison table. The first row that matches decides; `docs/generations.md` has the reasoning per row.
//!
//! Values are compared without bit 0. Where a row exists twice (mine and the peer's), both conditions are computed first, so
//! that the order of the rows cannot favour one side.

use super::{DiskLevel, Extent, History, Outcome, Protocol, Refusal, Rule, Side, Verdict};
use crate::units::Generation;

impl Side<'_> {
    fn inconsistent(&self) -> bool {
        self.disk == DiskLevel::Inconsistent
    }

    /// Tracks changes since an older generation: may have written alone.
    fn tracks(&self) -> bool {
        is_ancestor(self.bitmap)
    }

    /// A Primary whose own disk has the data that its client sees. An Outdated disk under a Primary was not written by it.
    fn acts_as_primary(&self) -> bool {
        self.role_primary && self.disk >= DiskLevel::Consistent
    }

    fn remembers(&self, generation: Generation) -> bool {
        is_ancestor(generation) && self.history.iter().any(|old| old.same(generation))
    }

    /// The bitmap slot and the history: everything this side once was.
    fn ancestors(&self) -> impl Iterator<Item = Generation> {
        core::iter::once(self.bitmap)
            .chain(self.history.iter().copied())
            .filter(|old| is_ancestor(*old))
    }
}

/// Empty and just-created values relate no data to each other.
fn is_ancestor(generation: Generation) -> bool {
    !generation.is_just_created()
}

fn matches(one: Generation, other: Generation) -> bool {
    is_ancestor(one) && one.same(other)
}

fn verdict(rule: Rule, outcome: Outcome) -> Verdict {
    Verdict { rule, outcome }
}

fn source(rule: Rule, extent: Extent) -> Verdict {
    verdict(rule, Outcome::Source(extent))
}

fn target(rule: Rule, extent: Extent) -> Verdict {
    verdict(rule, Outcome::Target(extent))
}

fn split(rule: Rule, history: History) -> Verdict {
    verdict(rule, Outcome::SplitBrain(history))
}

/// Concludes from the two sides what `me` has to do. Pure, total, and symmetric: `compare(a, b) == compare(b, a).mirrored()`.
///
/// A target that is Primary stays target: the caller applies `rr-conflict`. The target's disk is at best what the source's was.
#[must_use]
pub fn compare(me: &Side<'_>, peer: &Side<'_>) -> Verdict {
    if me.node_id == peer.node_id {
        return verdict(Rule::SameNodeId, Outcome::Refuse(Refusal::SameNodeId));
    }
    by_disk(me, peer, by_generation(me, peer))
}

fn by_generation(me: &Side<'_>, peer: &Side<'_>) -> Verdict {
    match (me.full_sync_requested, peer.full_sync_requested) {
        (true, true) => {
            return verdict(
                Rule::FullSyncRequestedBoth,
                Outcome::Refuse(Refusal::NoConsistentSource),
            );
        }
        (true, false) => return target(Rule::FullSyncRequestedSelf, Extent::Full),
        (false, true) => return source(Rule::FullSyncRequestedPeer, Extent::Full),
        (false, false) => {}
    }
    match (me.current.is_just_created(), peer.current.is_just_created()) {
        (true, true) => return verdict(Rule::JustCreatedBoth, Outcome::NoSource),
        (true, false) => return target(Rule::JustCreatedSelf, Extent::Full),
        (false, true) => return source(Rule::JustCreatedPeer, Extent::Full),
        (false, false) => {}
    }
    if me.current.same(peer.current) {
        return equal_currents(me, peer);
    }
    different_currents(me, peer)
}

/// Both sides claim the same version of the data.
fn equal_currents(me: &Side<'_>, peer: &Side<'_>) -> Verdict {
    match (me.inconsistent(), peer.inconsistent()) {
        (true, true) => return verdict(Rule::InconsistentBoth, Outcome::NoSource),
        (true, false) => return target(Rule::ResyncInterruptedSelf, Extent::Bitmap),
        (false, true) => return source(Rule::ResyncInterruptedPeer, Extent::Bitmap),
        (false, false) => {}
    }
    let (mine, theirs) = (me.bits > 0, peer.bits > 0);
    if !mine && !theirs {
        return verdict(nothing_marked(me, peer), Outcome::InSync);
    }
    let (i_wrote_alone, peer_wrote_alone) = (me.tracks() && mine, peer.tracks() && theirs);
    match (i_wrote_alone, peer_wrote_alone) {
        (true, _) | (_, true) if mine && theirs => {
            return split(Rule::EqualDiverged, History::Bitmap);
        }
        (true, _) => return source(Rule::SyncSourceMissedFinish, Extent::Bitmap),
        (_, true) => return target(Rule::SyncTargetPeerMissedFinish, Extent::Bitmap),
        (false, false) => {}
    }
    match (me.acts_as_primary(), peer.acts_as_primary()) {
        (true, true) => return verdict(Rule::TwoPrimaries, Outcome::Refuse(Refusal::TwoPrimaries)),
        (true, false) => return source(Rule::PrimarySelf, Extent::Bitmap),
        (false, true) => return target(Rule::PrimaryPeer, Extent::Bitmap),
        (false, false) => {}
    }
    if me.crashed_primary || peer.crashed_primary {
        return after_crash(me, peer);
    }
    match (mine, theirs) {
        (true, false) => source(Rule::LeftoverBitsSelf, Extent::Bitmap),
        (false, true) => target(Rule::LeftoverBitsPeer, Extent::Bitmap),
        _ => match (
            me.disk == DiskLevel::Outdated,
            peer.disk == DiskLevel::Outdated,
        ) {
            (false, true) => source(Rule::BetterDiskSelf, Extent::Bitmap),
            (true, false) => target(Rule::BetterDiskPeer, Extent::Bitmap),
            _ => lower_node_id(Rule::LeftoverBitsBoth, me, peer),
        },
    }
}

fn nothing_marked(me: &Side<'_>, peer: &Side<'_>) -> Rule {
    if me.crashed_primary || peer.crashed_primary {
        Rule::CrashedNothingMarked
    } else if me.still_running_since_contact && peer.still_running_since_contact {
        Rule::Reconnected
    } else {
        Rule::Equal
    }
}

fn completed_is_on_both(one: &Side<'_>, other: &Side<'_>) -> bool {
    one.protocol == Protocol::C && other.protocol == Protocol::C
}

/// Same generation, blocks marked, nobody is Primary now, at least one side crashed as Primary.
fn after_crash(me: &Side<'_>, peer: &Side<'_>) -> Verdict {
    let completed_is_on_both = completed_is_on_both(me, peer);
    match (me.crashed_primary, peer.crashed_primary) {
        (true, false) if completed_is_on_both && peer.still_running_since_contact => {
            target(Rule::SurvivorPeer, Extent::Bitmap)
        }
        (false, true) if completed_is_on_both && me.still_running_since_contact => {
            source(Rule::SurvivorSelf, Extent::Bitmap)
        }
        (true, false) => source(Rule::CrashedPrimarySelf, Extent::Bitmap),
        (false, true) => target(Rule::CrashedPrimaryPeer, Extent::Bitmap),
        _ => lower_node_id(Rule::CrashedBoth, me, peer),
    }
}

fn lower_node_id(rule: Rule, me: &Side<'_>, peer: &Side<'_>) -> Verdict {
    if me.node_id < peer.node_id {
        source(rule, Extent::Bitmap)
    } else {
        target(rule, Extent::Bitmap)
    }
}

/// The sides claim different versions: find the ancestor.
fn different_currents(me: &Side<'_>, peer: &Side<'_>) -> Verdict {
    match (gave_up(me, peer), gave_up(peer, me)) {
        (true, false) => return source(Rule::GivenUpSelf, Extent::Bitmap),
        (false, true) => return target(Rule::GivenUpPeer, Extent::Bitmap),
        _ => {}
    }
    // A would-be target that tracks changes of its own may have written alone, and is no mere older copy.
    match (
        matches(me.current, peer.bitmap),
        matches(peer.current, me.bitmap),
    ) {
        (true, true) => return split(Rule::BitmapCrossed, History::Bitmap),
        (true, false) if me.tracks() => return split(Rule::BitmapPeerDiverged, History::Bitmap),
        (false, true) if peer.tracks() => return split(Rule::BitmapSelfDiverged, History::Bitmap),
        (true, false) => return target(Rule::BitmapPeer, Extent::Bitmap),
        (false, true) => return source(Rule::BitmapSelf, Extent::Bitmap),
        (false, false) => {}
    }
    if missed_start(me, peer) {
        return source(Rule::SyncSourceMissedStart, Extent::Bitmap);
    }
    if missed_start(peer, me) {
        return target(Rule::SyncTargetPeerMissedStart, Extent::Bitmap);
    }
    match (peer.remembers(me.current), me.remembers(peer.current)) {
        (true, true) => return split(Rule::HistoryCrossed, History::Ancestor),
        (true, false) if me.tracks() => return split(Rule::HistoryPeerDiverged, History::Ancestor),
        (false, true) if peer.tracks() => {
            return split(Rule::HistorySelfDiverged, History::Ancestor);
        }
        (true, false) => return target(Rule::HistoryPeer, Extent::Full),
        (false, true) => return source(Rule::HistorySelf, Extent::Full),
        (false, false) => {}
    }
    if matches(me.bitmap, peer.bitmap) {
        return split(Rule::BitmapBoth, History::Bitmap);
    }
    if me
        .ancestors()
        .any(|mine| peer.ancestors().any(|theirs| theirs.same(mine)))
    {
        return split(Rule::HistoryBoth, History::Ancestor);
    }
    verdict(Rule::Unrelated, Outcome::Unrelated)
}

/// `target` adopted a generation of `source` at the start of a resync, and `source`, which did not learn it, went on from there.
/// Its slot still names what the target was before, so its bits still cover everything. At most one direction can hold: the
/// target is Inconsistent and the source is not.
fn missed_start(source: &Side<'_>, target: &Side<'_>) -> bool {
    !source.inconsistent()
        && target.inconsistent()
        && target.sync_target
        && !target.tracks()
        && target
            .history
            .first()
            .is_some_and(|before| matches(source.bitmap, *before))
        && source.remembers(target.current)
}

/// `other` began its generation for the lost disk of `primary`, which took that disk back before anything was completed in it, and remembers
/// the generation that it had named. Since then it went on alone, or nothing was completed that `other` had not received; the bits of both
/// cover everything.
fn gave_up(primary: &Side<'_>, other: &Side<'_>) -> bool {
    if other.current.made_by_primary() {
        return false;
    }
    let since_the_same = if primary.tracks() {
        matches(primary.bitmap, other.bitmap)
    } else {
        // As after a crash in one generation: what that took from the cache, the survivor has.
        let survivor = primary.crashed_primary
            && !primary.acts_as_primary()
            && completed_is_on_both(primary, other)
            && other.still_running_since_contact;
        matches(primary.current, other.bitmap) && !survivor
    };
    since_the_same && primary.remembers(other.current) && !other.remembers(primary.current)
}

/// Corrects a direction that the disks cannot follow.
fn by_disk(me: &Side<'_>, peer: &Side<'_>, found: Verdict) -> Verdict {
    let i_am_source = match found.outcome {
        Outcome::Source(_) => true,
        Outcome::Target(_) => false,
        Outcome::SplitBrain(_) => return split_by_disk(me, peer, found),
        _ => return found,
    };
    let (from, to) = if i_am_source { (me, peer) } else { (peer, me) };
    if from.current.is_just_created() {
        return verdict(
            Rule::NoConsistentSource,
            Outcome::Refuse(Refusal::NoConsistentSource),
        );
    }
    if from.inconsistent() {
        // A side without data of its own is never a way out.
        let target_is_void =
            to.inconsistent() || to.full_sync_requested || to.current.is_just_created();
        return if target_is_void {
            verdict(
                Rule::NoConsistentSource,
                Outcome::Refuse(Refusal::NoConsistentSource),
            )
        } else if from.sync_target {
            // Its own data were given up when that resync began; what it has since came from elsewhere and is still there.
            if i_am_source {
                target(Rule::OnlyConsistentPeer, Extent::Full)
            } else {
                source(Rule::OnlyConsistentSelf, Extent::Full)
            }
        } else {
            let rule = if i_am_source {
                Rule::DamagedSourceSelf
            } else {
                Rule::DamagedSourcePeer
            };
            verdict(rule, Outcome::Refuse(Refusal::DamagedSource))
        };
    }
    // The bits explain an interrupted resync. They need not know why a disk is Inconsistent otherwise.
    let unexplained = to.inconsistent() && !to.sync_target;
    match found.outcome {
        Outcome::Source(Extent::Bitmap) if unexplained => {
            source(Rule::InconsistentPeer, Extent::Full)
        }
        Outcome::Target(Extent::Bitmap) if unexplained => {
            target(Rule::InconsistentSelf, Extent::Full)
        }
        _ => found,
    }
}

/// A disk in the middle of a resync gave up its own data when that began, and is no party to a split brain. One that is
/// Inconsistent for another reason may still hold completed writes.
fn split_by_disk(me: &Side<'_>, peer: &Side<'_>, found: Verdict) -> Verdict {
    let given_up = |side: &Side<'_>| side.inconsistent() && side.sync_target;
    if given_up(me) && !peer.inconsistent() {
        target(Rule::OnlyConsistentPeer, Extent::Full)
    } else if given_up(peer) && !me.inconsistent() {
        source(Rule::OnlyConsistentSelf, Extent::Full)
    } else {
        found
    }
}
