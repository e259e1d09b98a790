//! Going on alone: new generations, begun before anything is completed that a peer will not have (W8).

use alloc::format;
use alloc::vec::Vec;

use crate::api::Payload;
use crate::engine::Engine;
use crate::generation::Identifiers;
use crate::state::{DiskState, Role};
use crate::units::{Generation, NodeId};
use crate::volume::After;

impl<P: Payload> Engine<P> {
    fn absent_peers(&self, v: usize) -> Vec<NodeId> {
        self.peers
            .iter()
            .filter(|peer| !peer.devices[v].mirrors())
            .map(|peer| peer.config.node_id)
            .collect()
    }

    /// If an absent peer still shares this node's current generation (it may be missing writes from now on), makes a new one.
    /// Completions wait for it (W8).
    pub(crate) fn new_generation_if_shared(&mut self, v: usize, rule: &'static str) {
        self.begin_generation_if_shared(v, Generation::NONE, rule);
    }

    /// The same with the generation that a peer named, if it named one that can be told from all others here.
    pub(crate) fn begin_generation_if_shared(
        &mut self,
        v: usize,
        named: Generation,
        rule: &'static str,
    ) {
        let absent = self.absent_peers(v);
        if self.is_frozen() {
            // Nothing is answered before it is made.
            self.volumes[v].generation_due = true;
            return;
        }
        // Only good data begin a generation; what is written to an Inconsistent disk alone is never completed.
        if self.volumes[v].disk != DiskState::UpToDate {
            return;
        }
        // One that was begun for a peer's lost disk may have been given up there since, see `give_up_named`: a Primary does not go on in it, and
        // nobody for the next loss of that disk, which has another name.
        let lent = self.acts_as_primary() && !absent.is_empty();
        let due = self.volumes[v].backing.as_ref().is_some_and(|backing| {
            let identifiers = backing.identifiers();
            let current = identifiers.current();
            let given_up = lent || !named.is_none() && !current.same(named);
            identifiers.needs_new_current(&absent) || given_up && !current.made_by_primary()
        });
        if due {
            self.begin_generation(v, named, rule);
        }
    }

    /// This node is Primary, or about to be.
    fn acts_as_primary(&self) -> bool {
        self.role == Role::Primary
            || (self.role_change.as_ref()).is_some_and(|change| change.is_promotion())
    }

    /// Makes a new current generation; the old one is remembered for every absent peer that has none remembered yet.
    pub(crate) fn new_generation(&mut self, v: usize, rule: &'static str) {
        self.begin_generation(v, Generation::NONE, rule);
    }

    fn begin_generation(&mut self, v: usize, named: Generation, rule: &'static str) {
        let random = if named.is_just_created() {
            self.random.draw()
        } else {
            named.0
        };
        let primary = self.acts_as_primary();
        let absent = self.absent_peers(v);
        let Some(backing) = self.volumes[v].backing.as_mut() else {
            return;
        };
        let mut identifiers = backing.identifiers();
        identifiers.new_current(random, primary, &absent);
        self.follow_identifiers(v, &identifiers, rule);
    }

    /// The generation that the peer is to begin when it notes what this node's lost disk misses. This node draws it, so that it knows it
    /// without an answer, see [`Engine::give_up_named`].
    pub(crate) fn name_generation(&mut self, p: usize, v: usize) -> Generation {
        if self.peers[p].devices[v].named.is_none() {
            self.peers[p].devices[v].named =
                Generation(self.random.draw() & !Generation::PRIMARY_BIT);
        }
        self.peers[p].devices[v].named
    }

    /// This Primary's disk is back by its own word: it holds everything that clients saw. Without a disk there was nothing to protect from a
    /// lost peer; now there is. A peer with newer data would have had to fence this node first.
    pub(crate) fn disk_taken_back(&mut self, v: usize) {
        self.confirm(v);
        for p in 0..self.peers.len() {
            if self.peers[p].fence.call.is_none() {
                self.fence_lost_peer(p);
            }
        }
        self.give_up_named(v);
    }

    /// A peer may have begun the generation that was named to it, and the answer, without which nothing is completed in it, did not arrive.
    /// That it was in vain is remembered beside this node's own generation, in which nothing changes before something is completed alone.
    fn give_up_named(&mut self, v: usize) {
        let good = self.volumes[v].disk == DiskState::UpToDate;
        let Some(backing) = self.volumes[v].backing.as_mut().filter(|_| good) else {
            return;
        };
        let named: Vec<_> = (self.peers.iter_mut())
            .map(|peer| core::mem::take(&mut peer.devices[v].named))
            .filter(|named| !named.is_none())
            .collect();
        if named.is_empty() {
            return;
        }
        let mut identifiers = backing.identifiers();
        for named in named {
            identifiers.give_up(named);
        }
        backing.set_identifiers(&identifiers);
        backing.writer.want_superblock();
    }

    /// Makes these identifiers the volume's; completions wait until they are durable.
    pub(crate) fn follow_identifiers(
        &mut self,
        v: usize,
        identifiers: &Identifiers,
        rule: &'static str,
    ) {
        let Some(backing) = self.volumes[v].backing.as_mut() else {
            return;
        };
        let old = backing.superblock.current;
        backing.set_identifiers(identifiers);
        backing.superblock.flags.crashed_primary = false;
        backing.crashed_primary = false;
        backing.completion_gate = backing.writer.want_superblock();
        let gate = backing.completion_gate;
        self.volumes[v].after(gate, 0, None, After::Requests);
        let current = identifiers.current();
        self.decision(
            None,
            Some(v),
            rule,
            format!("new current generation {current}, the one before was {old}"),
        );
    }
}
