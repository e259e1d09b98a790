//! One node's identifiers and how they rotate. Pure: the caller makes each result durable in one superblock write before it
//! acts on it.
//!
//! Invariants (checked after every change):
//! - a slot is never empty-but-present and never just-created;
//! - the history has no duplicates, no just-created value, no value that is also current, at most [`HISTORY_LENGTH`] entries.

use alloc::collections::BTreeMap;
use alloc::vec::Vec;

use crate::limits::HISTORY_LENGTH;
use crate::units::{Generation, NodeId};

/// The generations one node keeps for one volume.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Identifiers {
    current: Generation,
    bitmap: BTreeMap<NodeId, Generation>,
    history: Vec<Generation>,
}

impl Identifiers {
    /// Identifiers of metadata that were just created.
    #[must_use]
    pub fn just_created() -> Identifiers {
        Identifiers {
            current: Generation::JUST_CREATED,
            bitmap: BTreeMap::new(),
            history: Vec::new(),
        }
    }

    /// Identifiers as read from metadata. Empty and just-created slots, and empty, just-created, repeated or surplus history
    /// entries are left out.
    #[must_use]
    pub fn from_parts(
        current: Generation,
        slots: impl IntoIterator<Item = (NodeId, Generation)>,
        history: impl IntoIterator<Item = Generation>,
    ) -> Identifiers {
        let bitmap = slots
            .into_iter()
            .filter(|(_, slot)| !slot.is_just_created())
            .collect();
        let mut identifiers = Identifiers {
            current,
            bitmap,
            history: Vec::new(),
        };
        for old in history {
            identifiers.append(old);
        }
        identifiers
    }

    /// Version of the data on this node's disk.
    #[must_use]
    pub fn current(&self) -> Generation {
        self.current
    }

    /// The slot for `peer`, [`Generation::NONE`] if empty.
    #[must_use]
    pub fn slot(&self, peer: NodeId) -> Generation {
        self.bitmap.get(&peer).copied().unwrap_or(Generation::NONE)
    }

    /// The slots that are filled, in order of node id.
    pub fn slots(&self) -> impl Iterator<Item = (NodeId, Generation)> {
        self.bitmap.iter().map(|(peer, slot)| (*peer, *slot))
    }

    /// Older generations, newest first.
    #[must_use]
    pub fn history(&self) -> &[Generation] {
        &self.history
    }

    /// True if writing without the `absent` peers needs a new current generation first: one of them may know the current one.
    /// A peer with a filled slot knows only that older one, or is Inconsistent.
    #[must_use]
    pub fn needs_new_current(&self, absent: &[NodeId]) -> bool {
        self.current.is_just_created() || absent.iter().any(|peer| self.slot(*peer).is_none())
    }

    /// Starts a new generation on this node's disk, before the first write that the `absent` peers (not connected, or without a
    /// disk) will miss. The old current fills their empty slots; filled ones keep the older value; if nobody needed it, it goes to the history.
    ///
    /// Not for data that are Inconsistent: see [`Identifiers::force_current`]. `random` are 64 fresh random bits.
    pub fn new_current(&mut self, random: u64, primary: bool, absent: &[NodeId]) {
        let old = self.replace_current(random, primary);
        if !old.is_just_created() {
            let mut kept = false;
            for peer in absent {
                kept |= self.bitmap.entry(*peer).or_insert(old).same(old);
            }
            if !kept {
                self.prepend(old);
            }
        }
        self.check();
    }

    /// Starts a new generation on a disk that was Inconsistent and is declared good by force.
    ///
    /// The old current is forgotten: the disk claimed it at the start of a resync but never held all of it, so nobody who does
    /// hold it may be taken for an older copy. What the disk was before that resync takes its place in the empty slots of the
    /// `absent` peers: meeting the old source again is then a split brain and no silent overwrite.
    pub fn force_current(&mut self, random: u64, absent: &[NodeId]) {
        self.replace_current(random, true);
        if let Some(before) = self.history.first().copied() {
            for peer in absent {
                self.bitmap.entry(*peer).or_insert(before);
            }
        }
        self.check();
    }

    /// Follows a connected peer that started the generation `new` with the same data (`new-current-uuid`).
    pub fn follow_current(&mut self, new: Generation) {
        assert!(
            !new.is_just_created(),
            "a peer cannot start an empty generation"
        );
        if !new.same(self.current) {
            let old = core::mem::replace(&mut self.current, new);
            self.history.retain(|value| !value.same(new));
            self.prepend(old);
        }
        self.check();
    }

    /// Takes over the source's generation at the **start** of a resync, in the same superblock write that marks this disk
    /// Inconsistent and sync target and withdraws a request for a full sync; both bitmaps, OR-ed, are durable on both sides before.
    ///
    /// The own slot for the source, or else the own old current, or else (taking over the same generation once more) the newest own entry
    /// becomes the newest history entry: it is the value that the source's slot has until it learns of the adoption, which the rule
    /// `sync-source-missed-start` and [`Identifiers::force_current`] rely on. Slots for third nodes go to the history too, since the
    /// bits for them do not know what the resync brings; so do the source's slots for third nodes.
    pub fn adopt(&mut self, source: &Identifiers, source_node: NodeId) {
        assert!(
            !source.current.is_just_created(),
            "a source has a generation"
        );
        let old = core::mem::replace(&mut self.current, source.current);
        let own = core::mem::take(&mut self.history);
        let slots = core::mem::take(&mut self.bitmap);
        let third = slots
            .iter()
            .filter(|(peer, _)| **peer != source_node)
            .map(|(_, slot)| slot);
        let mine = slots
            .get(&source_node)
            .into_iter()
            .chain([&old])
            .chain(own.first())
            .chain(third);
        let theirs = source.history.iter().chain(source.bitmap.values());
        for value in mine.chain(theirs).chain(&own) {
            self.append(*value);
        }
        self.check();
    }

    /// The peer has durably adopted this node's generation (as the target of a resync that starts), so nothing older is tracked
    /// for it any more: its slot moves to the history. The bits stay.
    pub fn slot_cleared(&mut self, peer: NodeId) {
        if let Some(slot) = self.bitmap.remove(&peer) {
            self.prepend(slot);
        }
        self.check();
    }

    /// The generation `named` was to be begun by a peer for this node's lost disk, which is back before anything was completed in it: a peer
    /// that began it has nothing that this node lacks. See the row `given-up-self` of the table.
    pub fn give_up(&mut self, named: Generation) {
        if !self.knows(named) {
            self.prepend(named);
        }
        self.check();
    }

    fn replace_current(&mut self, random: u64, primary: bool) -> Generation {
        let mut bits = random & !Generation::PRIMARY_BIT;
        // Reserved and known values cannot be told from an old generation. Odd steps of an odd multiple of two visit every even value.
        while self.knows(Generation(bits)) {
            bits = bits.wrapping_add(0x9E37_79B9_7F4A_7C16);
        }
        let new = Generation(bits | if primary { Generation::PRIMARY_BIT } else { 0 });
        core::mem::replace(&mut self.current, new)
    }

    fn knows(&self, value: Generation) -> bool {
        value.is_just_created()
            || value.same(self.current)
            || self.bitmap.values().any(|slot| slot.same(value))
            || self.history.iter().any(|old| old.same(value))
    }

    fn prepend(&mut self, value: Generation) {
        if value.is_just_created() || value.same(self.current) {
            return;
        }
        self.history.retain(|old| !old.same(value));
        self.history.insert(0, value);
        self.history.truncate(HISTORY_LENGTH);
    }

    fn append(&mut self, value: Generation) {
        let known = value.same(self.current) || self.history.iter().any(|old| old.same(value));
        if !value.is_just_created() && !known && self.history.len() < HISTORY_LENGTH {
            self.history.push(value);
        }
    }

    fn check(&self) {
        assert!(self.history.len() <= HISTORY_LENGTH);
        assert!(self.bitmap.values().all(|slot| !slot.is_just_created()));
        for (index, old) in self.history.iter().enumerate() {
            assert!(!old.is_just_created() && !old.same(self.current));
            assert!(
                self.history[..index].iter().all(|newer| !newer.same(*old)),
                "{old} twice in the history"
            );
        }
    }
}
