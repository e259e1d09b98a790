//! The model's world: two nodes, a link, writes with a family tree, and what an engine has to keep for the table to be right.
//!
//! A block holds the number of the write that made it, and each write knows which one it replaced. A node *has* a write if
//! its block descends from it. A completed write is owed to the client until an event that the promises allow forfeits it.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use super::Random;
use crate::generation::{
    DiskLevel, Extent, Identifiers, Outcome, Protocol, Side, Verdict, compare,
};
use crate::units::{Generation, NodeId};

const BLOCKS: usize = 3;

/// An error put in on purpose, to show that the model would find it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Plant {
    Nothing,
    ForcedDiskKeepsItsGeneration,
    EqualGenerationsAreInSync,
    SurvivorOfACrashIsIgnored,
    CrashIsForgotten,
    WriteAloneInTheOldGeneration,
    FlushAloneInTheOldGeneration,
    BitClearedBeforeTheSourceIsDurable,
    AdoptedBeforeBitsAreMerged,
    AbortedMeetingCountsAsContact,
    UnconfirmedWritesNotMarked,
    GivenUpGenerationIsForgotten,
    PrimaryGoesOnInANamedGeneration,
    GivenUpGenerationIsWrittenInAgain,
}

impl Plant {
    pub(super) const ERRORS: &'static [Plant] = &[
        Plant::ForcedDiskKeepsItsGeneration,
        Plant::EqualGenerationsAreInSync,
        Plant::SurvivorOfACrashIsIgnored,
        Plant::CrashIsForgotten,
        Plant::WriteAloneInTheOldGeneration,
        Plant::FlushAloneInTheOldGeneration,
        Plant::BitClearedBeforeTheSourceIsDurable,
        Plant::AdoptedBeforeBitsAreMerged,
        Plant::AbortedMeetingCountsAsContact,
        Plant::UnconfirmedWritesNotMarked,
        Plant::GivenUpGenerationIsForgotten,
        Plant::PrimaryGoesOnInANamedGeneration,
        Plant::GivenUpGenerationIsWrittenInAgain,
    ];
}

struct Write {
    block: usize,
    replaced: usize,
    completed: bool,
    /// Durable wherever a flush promised it.
    flushed: bool,
    /// Covered by a generation that the other node does not have.
    own_generation: bool,
    forfeited: bool,
}

struct Node {
    up: bool,
    ids: Identifiers,
    data: [usize; BLOCKS],
    durable: [usize; BLOCKS],
    bits: [bool; BLOCKS],
    activity_log: [bool; BLOCKS],
    disk: DiskLevel,
    primary: bool,
    /// Promoted since the last contact.
    promoted_alone: bool,
    crashed: bool,
    still_running: bool,
    sync_target: bool,
    full_sync: bool,
    /// Started a generation since the two were last in sync.
    went_on_alone: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Link {
    Down,
    Established,
    /// Resync under way from this node to the other.
    Resync(usize),
}

pub(super) struct World {
    random: Random,
    plant: Plant,
    protocol: Protocol,
    nodes: [Node; 2],
    link: Link,
    writes: Vec<Write>,
    /// Writes of protocol A that the peer has not received yet.
    queue: Vec<usize>,
    /// A half-synced disk was declared good: a split brain or unrelated data may follow without two writers.
    forced: bool,
    trace: Vec<String>,
    pub(super) resyncs: u64,
    pub(super) splits: u64,
    pub(super) in_sync: u64,
}

fn id(node: usize) -> NodeId {
    NodeId(node as u8)
}

impl World {
    pub(super) fn new(seed: u64, plant: Plant) -> World {
        let mut random = Random(seed);
        let protocol = if random.chance(60) {
            Protocol::C
        } else {
            Protocol::A
        };
        let writes = (0..2 * BLOCKS).map(|n| Write {
            block: n % BLOCKS,
            replaced: usize::MAX,
            completed: false,
            flushed: false,
            own_generation: false,
            forfeited: false,
        });
        let node = |n: usize| {
            let data = core::array::from_fn(|block| n * BLOCKS + block);
            Node {
                up: true,
                ids: Identifiers::just_created(),
                data,
                durable: data,
                bits: [false; BLOCKS],
                activity_log: [false; BLOCKS],
                disk: DiskLevel::Inconsistent,
                primary: false,
                promoted_alone: false,
                crashed: false,
                still_running: false,
                sync_target: false,
                full_sync: false,
                went_on_alone: false,
            }
        };
        let mut nodes = [node(0), node(1)];
        if random.chance(70) {
            // Begin after the first sync.
            for node in &mut nodes {
                node.ids = Identifiers::from_parts(Generation(0xAAAA), [], [Generation(0x5554)]);
                (node.data, node.durable) = ([0, 1, 2], [0, 1, 2]);
                node.disk = DiskLevel::UpToDate;
            }
        }
        World {
            random,
            plant,
            protocol,
            nodes,
            link: Link::Down,
            writes: writes.collect(),
            queue: Vec::new(),
            forced: false,
            trace: Vec::new(),
            resyncs: 0,
            splits: 0,
            in_sync: 0,
        }
    }

    fn has(&self, node: usize, write: usize) -> bool {
        let mut value = self.nodes[node].data[self.writes[write].block];
        while value != write {
            if value == usize::MAX {
                return false;
            }
            value = self.writes[value].replaced;
        }
        true
    }

    /// Forfeits what was only ever promised for one loss: unflushed writes of a shared generation that `keeper` does not have.
    fn forfeit_unflushed_without(&mut self, keeper: usize) {
        for write in 0..self.writes.len() {
            let lost = !self.has(keeper, write);
            let write = &mut self.writes[write];
            write.forfeited |= lost && !write.flushed && !write.own_generation;
        }
    }

    /// A completed write that nobody has any more: fine only if no flush covered it.
    fn forfeit_what_is_gone(&mut self) -> Result<(), String> {
        for write in 0..self.writes.len() {
            if self.writes[write].completed && !self.has(0, write) && !self.has(1, write) {
                if self.writes[write].flushed && !self.writes[write].forfeited {
                    return Err(format!("flushed write {write} is gone"));
                }
                self.writes[write].forfeited = true;
            }
        }
        Ok(())
    }

    fn owed_only_by(&self, holder: usize) -> Option<usize> {
        (0..self.writes.len()).find(|write| {
            let w = &self.writes[*write];
            w.completed && !w.forfeited && self.has(holder, *write) && !self.has(1 - holder, *write)
        })
    }

    fn new_current(&mut self, node: usize) {
        let random = self.random.next();
        let primary = self.nodes[node].primary;
        self.nodes[node]
            .ids
            .new_current(random, primary, &[id(1 - node)]);
        self.nodes[node].went_on_alone = true;
        for write in 0..self.writes.len() {
            if self.has(node, write) {
                self.writes[write].own_generation = true;
            }
        }
    }

    /// Before anything is completed without the peer.
    fn go_on_alone(&mut self, node: usize) {
        let ids = &self.nodes[node].ids;
        // The peer may have given up what was begun for its lost disk.
        let lent = !ids.current().made_by_primary()
            && self.plant != Plant::PrimaryGoesOnInANamedGeneration;
        if ids.needs_new_current(&[id(1 - node)]) || lent || self.random.chance(10) {
            self.new_current(node);
        }
    }

    fn start_write(&mut self, node: usize) -> usize {
        let block = self.random.below(BLOCKS as u64) as usize;
        let write = self.writes.len();
        self.writes.push(Write {
            block,
            replaced: self.nodes[node].data[block],
            completed: false,
            flushed: false,
            own_generation: false,
            forfeited: false,
        });
        self.nodes[node].data[block] = write;
        write
    }

    fn write(&mut self, node: usize) {
        let peer = 1 - node;
        if !self.nodes[node].up
            || !self.nodes[node].primary
            || self.nodes[node].disk != DiskLevel::UpToDate
        {
            return;
        }
        if self.link == Link::Down {
            if self.plant != Plant::WriteAloneInTheOldGeneration {
                self.go_on_alone(node);
            }
            let write = self.start_write(node);
            self.nodes[node].bits[self.writes[write].block] = true;
            self.writes[write].completed = true;
            self.writes[write].own_generation = true;
            return;
        }
        let write = self.start_write(node);
        let block = self.writes[write].block;
        self.nodes[node].activity_log[block] = true;
        match self.protocol {
            Protocol::C => {
                let cut = self.random.chance(10);
                if cut && self.random.chance(50) {
                    return self.cut(); // The peer never saw it; it is not completed.
                }
                self.nodes[peer].data[block] = write;
                if cut {
                    return self.cut();
                }
            }
            _ => self.queue.push(write),
        }
        self.writes[write].completed = true;
    }

    fn deliver(&mut self, node: usize) {
        for write in core::mem::take(&mut self.queue) {
            self.nodes[1 - node].data[self.writes[write].block] = write;
        }
    }

    fn flush(&mut self, node: usize, for_client: bool) {
        if self.link == Link::Down {
            // A flush that the peer does not share completes something alone, if a write before it is not confirmed there.
            // A node that was promoted alone cannot know what the peer has durable.
            let unconfirmed = self.nodes[node].activity_log.contains(&true);
            let alone = unconfirmed || for_client && self.nodes[node].promoted_alone;
            if self.nodes[node].primary
                && alone
                && self.plant != Plant::FlushAloneInTheOldGeneration
            {
                self.go_on_alone(node);
            }
            self.nodes[node].activity_log = [false; BLOCKS];
        } else {
            let primary = if self.nodes[0].primary { 0 } else { 1 };
            self.deliver(primary);
            for node in &mut self.nodes {
                node.durable = node.data;
                node.activity_log = [false; BLOCKS];
            }
        }
        let primary = self.nodes[node].primary;
        self.nodes[node].durable = self.nodes[node].data;
        for write in 0..self.writes.len() {
            if primary && for_client && self.writes[write].completed && self.has(node, write) {
                self.writes[write].flushed = true;
            }
        }
    }

    fn cut(&mut self) {
        if self.link == Link::Down {
            return;
        }
        self.link = Link::Down;
        self.queue.clear();
        for node in &mut self.nodes {
            if node.up && node.primary && self.plant != Plant::UnconfirmedWritesNotMarked {
                for block in 0..BLOCKS {
                    node.bits[block] |= node.activity_log[block];
                }
            }
        }
    }

    fn crash(&mut self, node: usize, power: bool) -> Result<(), String> {
        if !self.nodes[node].up {
            return Ok(());
        }
        self.nodes[node].up = false;
        if power {
            let had: Vec<usize> = (0..self.writes.len())
                .filter(|write| self.has(node, *write))
                .collect();
            for block in 0..BLOCKS {
                let lose = self.random.chance(50);
                let node = &mut self.nodes[node];
                if lose {
                    node.data[block] = node.durable[block];
                }
                node.durable[block] = node.data[block];
            }
            // This node's data were the newest alone: what it had not flushed is lost as on a single disk.
            if self.nodes[node].went_on_alone
                || self.nodes[1 - node].disk == DiskLevel::Inconsistent
            {
                for write in had {
                    let lost = !self.has(node, write) && !self.writes[write].flushed;
                    self.writes[write].forfeited |= lost;
                }
            }
        }
        let state = &mut self.nodes[node];
        state.crashed |= state.primary;
        state.primary = false;
        if self.plant == Plant::CrashIsForgotten {
            state.crashed = false;
        }
        for block in 0..BLOCKS {
            state.bits[block] |= state.activity_log[block];
        }
        state.activity_log = [false; BLOCKS];
        state.still_running &= !power && self.random.chance(50);
        self.cut();
        self.forfeit_what_is_gone()?;
        self.forfeit_after_second_loss();
        Ok(())
    }

    /// Which single holders of unflushed writes the table may pass over, by the promises per protocol.
    fn forfeit_after_second_loss(&mut self) {
        for node in 0..2 {
            let (me, peer) = (&self.nodes[node], &self.nodes[1 - node]);
            let passes_over_peer =
                me.crashed && (!peer.still_running || self.protocol != Protocol::C || peer.crashed);
            if passes_over_peer || peer.disk == DiskLevel::Inconsistent {
                self.forfeit_unflushed_without(node);
            }
        }
    }

    fn orderly_stop(&mut self, node: usize) {
        if self.nodes[node].up {
            self.demote(node);
            self.cut();
            self.nodes[node].durable = self.nodes[node].data;
            self.nodes[node].up = false;
            self.nodes[node].still_running &= self.random.chance(50);
            self.forfeit_after_second_loss();
        }
    }

    fn promote(&mut self, node: usize) {
        let peer = 1 - node;
        let me = &self.nodes[node];
        if !me.up
            || me.primary
            || me.disk != DiskLevel::UpToDate
            || (self.link != Link::Down && self.nodes[peer].primary)
        {
            return;
        }
        self.nodes[node].primary = true;
        self.nodes[node].promoted_alone = self.link == Link::Down;
        if self.link == Link::Down {
            // Fail-over: what the old Primary had not delivered (A), or what this node lost unflushed, is given up.
            for write in 0..self.writes.len() {
                let lost = !self.has(node, write);
                let protocol = self.protocol;
                let write = &mut self.writes[write];
                write.forfeited |=
                    lost && !write.own_generation && (!write.flushed || protocol != Protocol::C);
            }
            if self.random.chance(50) {
                self.go_on_alone(node);
            }
        }
    }

    fn demote(&mut self, node: usize) {
        if self.nodes[node].up && self.nodes[node].primary {
            self.flush(node, false);
            self.nodes[node].primary = false;
        }
    }

    fn force(&mut self, node: usize) {
        let me = &self.nodes[node];
        if !me.up || self.link != Link::Down || me.disk == DiskLevel::UpToDate {
            return;
        }
        let random = self.random.next();
        // A person declares these data to be the ones that count.
        for write in 0..self.writes.len() {
            self.writes[write].forfeited |=
                !self.has(node, write) && !self.writes[write].own_generation;
        }
        let me = &mut self.nodes[node];
        me.primary = true;
        if me.disk == DiskLevel::Inconsistent {
            self.forced = true;
            if self.plant == Plant::ForcedDiskKeepsItsGeneration {
                me.ids.new_current(random, true, &[id(1 - node)]);
            } else {
                me.ids.force_current(random, &[id(1 - node)]);
            }
        }
        me.disk = DiskLevel::UpToDate;
        me.sync_target = false;
        me.full_sync = false;
        me.went_on_alone = true;
    }

    fn invalidate(&mut self, node: usize) {
        if self.link == Link::Established && !self.nodes[node].primary {
            self.flush(1 - node, false);
            self.cut();
            self.nodes[node].disk = DiskLevel::Inconsistent;
            self.nodes[node].full_sync = true;
            for write in 0..self.writes.len() {
                self.writes[write].forfeited |= !self.has(1 - node, write);
            }
        }
    }

    fn side(&self, node: usize) -> Side<'_> {
        let me = &self.nodes[node];
        Side {
            node_id: id(node),
            current: me.ids.current(),
            bitmap: me.ids.slot(id(1 - node)),
            history: me.ids.history(),
            crashed_primary: me.crashed,
            still_running_since_contact: me.still_running
                && self.plant != Plant::SurvivorOfACrashIsIgnored,
            role_primary: me.primary,
            disk: me.disk,
            full_sync_requested: me.full_sync,
            sync_target: me.sync_target,
            bits: me.bits.iter().filter(|bit| **bit).count() as u64,
            protocol: self.protocol,
        }
    }

    fn connect(&mut self) -> Result<(), String> {
        if self.link != Link::Down || !self.nodes[0].up || !self.nodes[1].up {
            return Ok(());
        }
        let (a, b) = (self.side(0), self.side(1));
        let mut verdict = compare(&a, &b);
        if compare(&b, &a) != verdict.mirrored() {
            return Err(format!("{verdict} is not symmetric"));
        }
        let equal = a.current.same(b.current) && !a.current.is_just_created();
        let consistent = a.disk > DiskLevel::Inconsistent && b.disk > DiskLevel::Inconsistent;
        if self.plant == Plant::EqualGenerationsAreInSync && equal && consistent {
            verdict = Verdict {
                outcome: Outcome::InSync,
                ..verdict
            };
        }
        let both_void = self.nodes.iter().all(|node| {
            node.disk == DiskLevel::Inconsistent
                || node.full_sync
                || node.ids.current() == Generation::JUST_CREATED
        });
        match verdict.outcome {
            Outcome::InSync => self.found_in_sync(verdict),
            Outcome::Source(extent) => self.resync(0, extent, verdict),
            Outcome::Target(extent) => self.resync(1, extent, verdict),
            Outcome::SplitBrain(history) => {
                self.splits += 1;
                if !self.forced && !self.nodes.iter().all(|node| node.went_on_alone) {
                    return Err(format!("{verdict}: but only one side went on alone"));
                }
                let winner = self.random.below(2) as usize;
                self.give_up(1 - winner);
                let extent = match history {
                    crate::generation::History::Bitmap => Extent::Bitmap,
                    crate::generation::History::Ancestor => Extent::Full,
                };
                if self.nodes[winner].disk == DiskLevel::Inconsistent {
                    Ok(())
                } else {
                    self.resync(winner, extent, verdict)
                }
            }
            Outcome::Unrelated if !self.forced => Err(format!("{verdict}: but nothing was forced")),
            Outcome::Unrelated => {
                // The administrator invalidates one side.
                let loser = usize::from(self.nodes[0].disk > DiskLevel::Inconsistent);
                self.give_up(loser);
                self.nodes[loser].full_sync = true;
                self.nodes[loser].disk = DiskLevel::Inconsistent;
                Ok(())
            }
            Outcome::NoSource | Outcome::Refuse(crate::generation::Refusal::NoConsistentSource)
                if both_void =>
            {
                Ok(())
            }
            Outcome::Refuse(crate::generation::Refusal::TwoPrimaries)
                if self.nodes.iter().all(|n| n.primary) =>
            {
                Ok(())
            }
            _ => Err(format!("{verdict}: no reason for it")),
        }
    }

    /// Somebody decided that this node's own writes are discarded.
    fn give_up(&mut self, loser: usize) {
        self.nodes[loser].primary = false;
        for write in 0..self.writes.len() {
            self.writes[write].forfeited |= !self.has(1 - loser, write);
        }
    }

    fn found_in_sync(&mut self, verdict: Verdict) -> Result<(), String> {
        if self.nodes[0].data != self.nodes[1].data {
            return Err(format!("{verdict}: but the data differ"));
        }
        if self.nodes[0].primary && self.nodes[1].primary {
            return Ok(()); // Refused elsewhere.
        }
        self.in_sync += 1;
        self.link = Link::Established;
        self.both_up_to_date();
        Ok(())
    }

    fn both_up_to_date(&mut self) {
        self.forced = false;
        for node in &mut self.nodes {
            node.disk = DiskLevel::UpToDate;
            node.still_running = true;
            node.promoted_alone = false;
            node.crashed = false;
            node.sync_target = false;
            node.went_on_alone = false;
        }
    }

    /// The steps of a resync's start, each durable, with the link cut between any two.
    fn resync(&mut self, source: usize, extent: Extent, verdict: Verdict) -> Result<(), String> {
        let target = 1 - source;
        self.resyncs += 1;
        if self.nodes[target].primary && self.nodes[target].disk >= DiskLevel::Consistent {
            return Ok(()); // rr-conflict disconnect
        }
        if let Some(write) = self.owed_only_by(target) {
            return Err(format!(
                "{verdict}: completed write {write} would be lost on node {target}"
            ));
        }
        let merged: [bool; BLOCKS] = core::array::from_fn(|block| {
            extent == Extent::Full || self.nodes[0].bits[block] || self.nodes[1].bits[block]
        });
        for (block, marked) in merged.iter().enumerate() {
            if !marked && self.nodes[0].data[block] != self.nodes[1].data[block] {
                return Err(format!(
                    "{verdict}: block {block} differs and is not marked"
                ));
            }
        }
        if self.plant != Plant::BitClearedBeforeTheSourceIsDurable {
            self.nodes[source].durable = self.nodes[source].data;
        }
        if self.plant == Plant::AbortedMeetingCountsAsContact {
            self.nodes[source].still_running = true;
            self.nodes[target].still_running = true;
        }
        if self.plant != Plant::AdoptedBeforeBitsAreMerged {
            self.nodes[source].bits = merged;
            if self.random.chance(10) {
                return Ok(());
            }
            self.nodes[target].bits = merged;
            if self.random.chance(10) {
                return Ok(());
            }
        }
        let generation = self.nodes[source].ids.clone();
        let node = &mut self.nodes[target];
        node.ids.adopt(&generation, id(source));
        node.disk = DiskLevel::Inconsistent;
        node.sync_target = true;
        node.full_sync = false;
        node.went_on_alone = false;
        if self.random.chance(10) {
            return Ok(());
        }
        self.nodes[target].bits = merged;
        self.nodes[source].bits = merged;
        self.nodes[source].ids.slot_cleared(id(target));
        self.link = Link::Resync(source);
        Ok(())
    }

    fn resync_step(&mut self) {
        let Link::Resync(source) = self.link else {
            return;
        };
        let target = 1 - source;
        self.deliver(if self.nodes[0].primary { 0 } else { 1 });
        let marked = |node: &Node| (0..BLOCKS).find(|block| node.bits[*block]);
        match marked(&self.nodes[target]).or(marked(&self.nodes[source])) {
            Some(block) => {
                let value = self.nodes[source].data[block];
                self.nodes[target].data[block] = value;
                self.nodes[target].durable[block] = value;
                if self.plant != Plant::BitClearedBeforeTheSourceIsDurable {
                    self.nodes[source].durable[block] = value;
                }
                let first = self.random.below(2) as usize;
                self.nodes[first].bits[block] = false;
                if self.random.chance(95) {
                    self.nodes[1 - first].bits[block] = false;
                }
            }
            None => {
                self.link = Link::Established;
                self.both_up_to_date();
            }
        }
    }

    /// One random step.
    pub(super) fn step(&mut self) -> Result<(), String> {
        let result = self.random_step();
        let state = self.describe();
        if self.trace.last() != Some(&state) {
            self.trace.push(state);
        }
        result
    }

    /// The last states, for the text of an error.
    pub(super) fn trace(&self) -> String {
        self.trace[self.trace.len().saturating_sub(14)..].join("\n")
    }

    fn describe(&self) -> String {
        let mut text = String::from(match self.link {
            Link::Down => "down",
            Link::Established => "established",
            Link::Resync(_) => "resync",
        });
        for n in &self.nodes {
            let bits = n.bits.map(u8::from);
            let flags = [
                (n.up, "up"),
                (n.primary, "primary"),
                (n.crashed, "crashed"),
                (n.still_running, "running"),
            ];
            let flags: Vec<&str> = flags
                .iter()
                .filter(|(set, _)| *set)
                .map(|(_, name)| *name)
                .collect();
            let slots: Vec<Generation> = n.ids.slots().map(|(_, slot)| slot).collect();
            text += &format!(
                "\n   {:?} {} data {:?} durable {:?} bits {bits:?} al {:?} {:?} {slots:?} {:?}",
                n.disk,
                flags.join(","),
                n.data,
                n.durable,
                n.activity_log.map(u8::from),
                n.ids.current(),
                n.ids.history(),
            );
        }
        text
    }

    fn random_step(&mut self) -> Result<(), String> {
        let node = self.random.below(2) as usize;
        match self.random.below(200) {
            0..=59 => self.write(node),
            60..=69 if self.nodes[node].up && self.nodes[node].primary => self.flush(node, true),
            70..=75 => self.cut(),
            76..=105 => self.connect()?,
            106..=135 => self.resync_step(),
            136..=139 => self.crash(node, true)?,
            140..=142 => self.crash(node, false)?,
            143 => {
                // Both in one moment: nobody has time to mark anything.
                self.link = Link::Down;
                self.queue.clear();
                self.crash(node, true)?;
                self.crash(1 - node, true)?;
            }
            144..=146 => self.orderly_stop(node),
            147..=170 => self.nodes[node].up = true,
            171..=188 => self.promote(node),
            189..=193 => self.demote(node),
            194 if self.random.chance(30) => self.force(node),
            195 if self.random.chance(20) => self.invalidate(node),
            196 if self.link == Link::Down
                && !self.nodes[node].primary
                && self.nodes[node].disk == DiskLevel::UpToDate =>
            {
                self.nodes[node].disk = DiskLevel::Outdated;
            }
            197 => self.lose_disk_and_take_it_back(node),
            198.. if self.protocol == Protocol::A => {
                self.deliver(if self.nodes[0].primary { 0 } else { 1 })
            }
            _ => {}
        }
        Ok(())
    }

    /// The Primary's disk fails, the peer begins the generation that was named for what it misses, but the answer is lost with the
    /// connection; the disk is back before anything was completed without it.
    fn lose_disk_and_take_it_back(&mut self, node: usize) {
        let peer = 1 - node;
        let good = |node: &Node| node.up && node.disk == DiskLevel::UpToDate;
        if self.link != Link::Established
            || !self.nodes[node].primary
            || !self.nodes.iter().all(good)
        {
            return;
        }
        self.deliver(node);
        if self.random.chance(50) {
            // It reached the peer alone, and no client was told.
            let write = self.start_write(node);
            let Write {
                block, replaced, ..
            } = self.writes[write];
            self.nodes[node].data[block] = replaced;
            self.nodes[peer].data[block] = write;
            self.nodes[peer].bits[block] = true;
        }
        let named = Generation(self.random.next() & !Generation::PRIMARY_BIT);
        if self.nodes[peer].ids.needs_new_current(&[id(node)]) {
            self.nodes[peer]
                .ids
                .new_current(named.0, false, &[id(node)]);
        }
        self.cut();
        if self.plant != Plant::GivenUpGenerationIsForgotten {
            self.nodes[node].ids.give_up(named);
        }
        if self.random.chance(30) {
            self.lose_disk_again_and_go_on_through_the_peer(node);
        }
    }

    /// Nothing was completed alone since: the peer, connected again, notes what the disk misses under the name of this loss and serves the
    /// clients. Then the Primary dies, and its disk is back as it was.
    fn lose_disk_again_and_go_on_through_the_peer(&mut self, node: usize) {
        let peer = 1 - node;
        let named = self.random.next();
        let other_name = self.plant != Plant::GivenUpGenerationIsWrittenInAgain;
        if other_name && !self.nodes[peer].ids.current().made_by_primary()
            || self.nodes[peer].ids.needs_new_current(&[id(node)])
        {
            self.nodes[peer].ids.new_current(named, false, &[id(node)]);
        }
        self.nodes[peer].went_on_alone = true;
        let write = self.start_write(peer);
        self.nodes[peer].bits[self.writes[write].block] = true;
        self.writes[write].completed = true;
        self.writes[write].own_generation = true;
        let state = &mut self.nodes[node];
        (state.up, state.primary, state.crashed) = (false, false, true);
        state.still_running = false;
        for block in 0..BLOCKS {
            state.bits[block] |= core::mem::take(&mut state.activity_log[block]);
        }
    }

    /// Faults stop: the nodes must come to equal data with nothing marked.
    pub(super) fn settle(&mut self) -> Result<(), String> {
        for round in 0..200 {
            for node in 0..2 {
                self.nodes[node].up = true;
                if self.link == Link::Down {
                    self.demote(node);
                }
            }
            if round % 50 == 49
                && self
                    .nodes
                    .iter()
                    .all(|node| node.disk == DiskLevel::Inconsistent || node.full_sync)
            {
                self.force(0);
            }
            self.connect()?;
            self.resync_step();
        }
        self.deliver(if self.nodes[0].primary { 0 } else { 1 });
        let [a, b] = &self.nodes;
        let settled = self.link == Link::Established
            && a.data == b.data
            && a.ids.current().same(b.ids.current());
        let unmarked = !a.bits.contains(&true) && !b.bits.contains(&true);
        if settled && unmarked {
            Ok(())
        } else {
            Err(format!(
                "did not settle: {:?} {:?}",
                self.side(0),
                self.side(1)
            ))
        }
    }
}
