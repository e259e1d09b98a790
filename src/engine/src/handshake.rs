//! Two nodes meet: who has the newer data, and what follows from it for each volume.
//!
//! Sequence on a new session (control lane unless noted):
//! 1. each side sends `Hello` once its metadata is settled and nothing of an older session is on its way to the disk;
//! 2. both compare the same facts (what was sent, not what changed since) and reach mirrored verdicts;
//! 3. in sync: `VolumeReady` when the verdict is durable; resync: bitmaps are exchanged, see `resync`;
//! 4. a verdict that forbids the connection makes both sides StandAlone; each tells the other.
//!
//! From its `Hello` until the peer takes mirrored writes a Primary holds new writes of the volume, except where it will be source of
//! a resync under a generation of its own already: there their blocks are marked and follow with the resync.

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use crate::api::{Effect, Payload, SessionId};
use crate::engine::Engine;
use crate::generation::{DiskLevel, Extent, History, Outcome, Side, compare};
use crate::limits;
use crate::peer::ResyncTarget;
use crate::split_brain::{self, Resolution, SplitBrainSide};
use crate::state::{ConnectionState, DiskState, ReplicationState, Role};
use crate::units::{NodeId, VolumeNumber};
use crate::volume::After;
use crate::wire::{GoodbyeReason, Hello, Message, VolumeHello};

fn level(disk: DiskState) -> DiskLevel {
    match disk {
        DiskState::UpToDate => DiskLevel::UpToDate,
        DiskState::Consistent => DiskLevel::Consistent,
        DiskState::Outdated => DiskLevel::Outdated,
        _ => DiskLevel::Inconsistent,
    }
}

fn side<'a>(
    node_id: NodeId,
    hello: &'a VolumeHello,
    role: Role,
    protocol: crate::wire::message::Protocol,
) -> Side<'a> {
    Side {
        node_id,
        current: hello.current,
        bitmap: hello.bitmap,
        history: &hello.history,
        crashed_primary: hello.crashed_primary,
        still_running_since_contact: hello.running_since_contact,
        role_primary: role == Role::Primary && !hello.attached_anew,
        disk: level(hello.disk),
        full_sync_requested: hello.full_sync,
        sync_target: hello.sync_target,
        bits: hello.bits,
        protocol,
    }
}

impl<P: Payload> Engine<P> {
    // ---- greeting ---------------------------------------------------------------------------------------------------------------

    pub(crate) fn peer_connected(&mut self, node: NodeId, session: SessionId) {
        let Some(p) = self.peer_index(node) else {
            return self.effect(Effect::CloseSession {
                peer: node,
                session,
            });
        };
        if self.peers[p].session.is_some() {
            // The shell reports the loss of an older session first; if it did not, this is that report.
            self.connection_lost(p, ConnectionState::BrokenPipe, "replaced");
        }
        if self.peers[p].connection != ConnectionState::Connecting {
            return self.effect(Effect::CloseSession {
                peer: node,
                session,
            });
        }
        let now = self.now;
        let peer = &mut self.peers[p];
        peer.session = Some(session);
        peer.last_heard = now;
        peer.handshake_deadline = Some(now.after(peer.config.timeout));
        self.try_send_hello(p);
    }

    /// Sends the Hello if nothing stands in the way; called again whenever something might have gone out of it. True if sent.
    pub(crate) fn try_send_hello(&mut self, p: usize) -> bool {
        let peer = &self.peers[p];
        if peer.session.is_none()
            || peer.hello_sent.is_some()
            || !peer.drained()
            || self
                .role_change
                .as_ref()
                .is_some_and(|change| !change.is_draining())
        {
            return false;
        }
        let settled = self.volumes.iter().all(|volume| {
            volume.detaching.is_none()
                && !volume.is_finishing_resync()
                && volume.backing.as_ref().is_none_or(|backing| {
                    backing.writer.superblock.wanted == backing.writer.superblock.durable
                })
                && !matches!(
                    volume.disk,
                    DiskState::Attaching | DiskState::Failed | DiskState::Detaching
                )
        });
        if !settled {
            return false;
        }
        let volumes: Vec<VolumeHello> = (0..self.volumes.len())
            .map(|v| self.volume_hello(p, v, 1))
            .collect();
        let hello = Hello {
            node_id: self.node_id,
            role: self.role,
            protocol: self.peers[p].config.protocol,
            policies: self.peers[p].config.policies,
            discard_my_data: self.peers[p].discard_my_data,
            volumes,
        };
        let session = self.peers[p].session;
        let peer = &mut self.peers[p];
        peer.receiver = crate::receiver::Receiver::new();
        peer.receiver_session = session;
        peer.acks_received = 0;
        peer.acks_written.clear();
        peer.epoch_durable = None;
        peer.log = crate::transfer_log::TransferLog::new();
        for (device, mine) in peer.devices.iter_mut().zip(&hello.volumes) {
            device.round = 1;
            device.mine = Some(mine.clone());
            device.theirs = None;
            device.hold = self.role == Role::Primary;
        }
        peer.hello_sent = Some(hello.clone());
        self.send(p, Message::Hello(alloc::boxed::Box::new(hello)));
        self.try_decide(p);
        true
    }

    fn volume_hello(&self, p: usize, v: usize, round: u32) -> VolumeHello {
        let volume = &self.volumes[v];
        let node = self.peers[p].config.node_id;
        let contact = self.peers[p].devices[v].contact;
        let claimed = volume
            .attached_anew
            .filter(|_| volume.disk == DiskState::Negotiating);
        let Some(backing) = volume
            .backing
            .as_ref()
            .filter(|_| volume.disk.has_data() || claimed.is_some())
        else {
            return VolumeHello {
                volume: volume.number,
                round,
                disk: DiskState::Diskless,
                attached_anew: false,
                max_bytes: 0,
                effective_bytes: volume.size,
                current: if self.role == Role::Primary {
                    volume.exposed
                } else {
                    crate::units::Generation::NONE
                },
                bitmap: crate::units::Generation::NONE,
                history: Vec::new(),
                crashed_primary: false,
                running_since_contact: false,
                full_sync: false,
                sync_target: false,
                bits: 0,
            };
        };
        let superblock = &backing.superblock;
        VolumeHello {
            volume: volume.number,
            round,
            disk: claimed.unwrap_or(volume.disk),
            attached_anew: volume.attached_anew.is_some() && self.role == Role::Primary,
            max_bytes: backing.layout.data_bytes,
            effective_bytes: superblock.effective_bytes,
            current: superblock.current,
            bitmap: backing.bitmap_generation(node),
            history: superblock.history.clone(),
            crashed_primary: backing.crashed_primary,
            running_since_contact: contact
                .is_some_and(|generation| generation.same(superblock.current)),
            full_sync: superblock.flags.invalidated,
            sync_target: superblock.flags.sync_target,
            bits: backing.bits(node),
        }
    }

    pub(crate) fn hello_received(&mut self, p: usize, hello: Hello) -> Result<(), &'static str> {
        let peer = &mut self.peers[p];
        if peer.hello_received.is_some() {
            return Err("a second Hello");
        }
        if hello.node_id != peer.config.node_id {
            return Err("a Hello of another node");
        }
        if hello.volumes.len() > limits::MAX_VOLUMES {
            return Err("a Hello with too many volumes");
        }
        peer.hello_received = Some(hello);
        self.try_decide(p);
        Ok(())
    }

    /// Shakes hands again for one volume whose disk was attached on a standing connection.
    pub(crate) fn start_round(&mut self, p: usize, v: usize) {
        let round = self.peers[p].devices[v].round + 1;
        self.send_round(p, v, round);
    }

    fn send_round(&mut self, p: usize, v: usize, round: u32) {
        let mine = self.volume_hello(p, v, round);
        let device = &mut self.peers[p].devices[v];
        device.round = round;
        device.mine = Some(mine.clone());
        device.theirs = None;
        device.hold = self.role == Role::Primary;
        self.send(p, Message::Again(alloc::boxed::Box::new(mine)));
    }

    pub(crate) fn again_received(
        &mut self,
        p: usize,
        theirs: VolumeHello,
    ) -> Result<(), &'static str> {
        let v = self
            .volume_index(theirs.volume)
            .ok_or("a handshake for an unknown volume")?;
        if self.peers[p].connection != ConnectionState::Connected {
            return Err("a handshake for one volume before that of the connection");
        }
        if !self.may_shake_hands(p, v) {
            self.peers[p].devices[v].postponed = Some(theirs);
            return Ok(());
        }
        let device = &self.peers[p].devices[v];
        let round = device.round;
        let answer = theirs.round == round && device.theirs.is_none();
        // Only a disk that came anew asks for another round; two that mirror do not.
        let question =
            theirs.round == round + 1 && !(self.volumes[v].usable() && device.disk.has_data());
        if !answer && !question {
            return Err("a handshake for one volume out of turn");
        }
        if theirs.round == round + 1 {
            self.send_round(p, v, theirs.round);
        }
        let said = self.peers[p].devices[v]
            .mine
            .as_ref()
            .is_some_and(|mine| mine.disk != DiskState::Diskless);
        if said && !self.volumes[v].usable() && self.volumes[v].disk != DiskState::Negotiating {
            // The disk that the round was about is gone again.
            self.renegotiate(p, "disk-lost-during-handshake");
            return Ok(());
        }
        self.peers[p].devices[v].theirs = Some(theirs);
        self.decide_volume(p, v);
        Ok(())
    }

    /// What a handshake says must be durable and stay true until its verdict.
    fn may_shake_hands(&self, p: usize, v: usize) -> bool {
        let changing = self
            .role_change
            .as_ref()
            .is_some_and(|change| !change.is_draining())
            || self.volumes[v].is_finishing_resync();
        let recorded = self.volumes[v].backing.as_ref().is_none_or(|backing| {
            backing.writer.superblock.wanted == backing.writer.superblock.durable
        });
        // What a Primary without a disk sent must be written and noted at the peer before the two compare, or the comparison would
        // overtake it (lanes are not ordered with each other).
        let device = &self.peers[p].devices[v];
        let noted = device.misses_tracked || device.disk != DiskState::UpToDate;
        let drained = !device.round_wanted
            || self.role != Role::Primary
            || noted && !device.resync_ending && !self.peers[p].log.has_unwritten(v);
        !changing && recorded && drained
    }

    /// Takes up questions that were postponed. True if there was one.
    pub(crate) fn take_postponed(&mut self, p: usize) -> bool {
        let mut progress = false;
        for v in 0..self.volumes.len() {
            if self.peers[p].devices[v].round_wanted
                && self.peers[p].devices[v].postponed.is_none()
                && self.may_shake_hands(p, v)
            {
                self.peers[p].devices[v].round_wanted = false;
                self.start_round(p, v);
                progress = true;
            }
            if self.peers[p].devices[v].postponed.is_some() && self.may_shake_hands(p, v) {
                self.peers[p].devices[v].round_wanted = false;
                let told = self.peers[p].devices[v].told_since.take();
                if let Some(theirs) = self.peers[p].devices[v].postponed.take() {
                    progress = true;
                    if let Err(what) = self.again_received(p, theirs) {
                        self.protocol_error(p, what);
                    }
                }
                // What the peer said after its question counts more than what stood in it.
                let device = &mut self.peers[p].devices[v];
                if let Some(disk) = told
                    && device.replication != ReplicationState::Off
                    && device.disk.has_data()
                {
                    device.disk = disk;
                }
            }
        }
        progress
    }

    // ---- verdicts ----------------------------------------------------------------------------------------------------------------

    fn try_decide(&mut self, p: usize) {
        let (Some(mine), Some(theirs)) = (&self.peers[p].hello_sent, &self.peers[p].hello_received)
        else {
            return;
        };
        if self.peers[p].connection == ConnectionState::Connected {
            return;
        }
        let (mine, theirs) = (mine.clone(), theirs.clone());
        if mine.protocol != theirs.protocol {
            return self.refuse_connection(
                p,
                "incompatible-protocol",
                String::from("incompatible protocol settings"),
            );
        }
        if let Some(setting) = mine.policies.contradiction(&theirs.policies) {
            return self.refuse_connection(
                p,
                "incompatible-policies",
                format!("incompatible {} settings", setting.word()),
            );
        }
        if mine.discard_my_data && theirs.discard_my_data {
            let text = String::from(
                "incompatible discard-my-data settings: give --discard-my-data on one node only",
            );
            return self.refuse_connection(p, "incompatible-discard-my-data", text);
        }
        // A verdict that forbids the connection is found before anything changes.
        for v in 0..self.volumes.len() {
            let Some(their) = theirs
                .volumes
                .iter()
                .find(|hello| hello.volume == self.volumes[v].number)
            else {
                continue;
            };
            self.peers[p].devices[v].theirs = Some(their.clone());
            if let Err((rule, text)) = self.verdict(p, v, true) {
                return self.refuse_connection(p, rule, text);
            }
        }
        if mine.role == Role::Primary && theirs.role == Role::Primary {
            let text = String::from(
                "Multiple primaries not allowed by config: make one node Secondary, then connect",
            );
            return self.refuse_connection(p, "two-primaries", text);
        }
        let now = self.now;
        let peer = &mut self.peers[p];
        peer.handshake_deadline = None;
        peer.role = theirs.role;
        peer.last_heard = now;
        peer.discard_my_data = false;
        self.set_connection(p, ConnectionState::Connected, "handshake");
        for v in 0..self.volumes.len() {
            if self.peers[p].devices[v].theirs.is_some() {
                self.decide_volume(p, v);
            } else {
                self.peers[p].devices[v].hold = false;
                self.peers[p].devices[v].mine = None;
            }
        }
        for v in 0..self.volumes.len() {
            if self.peers[p].devices[v].paused_here {
                let volume = self.volumes[v].number;
                self.send(
                    p,
                    Message::ResyncPause {
                        volume,
                        paused: true,
                    },
                );
            }
        }
        self.broadcast_state();
    }

    /// What the two sides' facts mean for the volume; an error forbids the connection. `first`: the first time that these facts
    /// are looked at, so that a split brain is reported once.
    fn verdict(
        &mut self,
        p: usize,
        v: usize,
        first: bool,
    ) -> Result<(Outcome, &'static str), (&'static str, String)> {
        let device = &self.peers[p].devices[v];
        let (Some(mine), Some(theirs)) = (device.mine.clone(), device.theirs.clone()) else {
            return Ok((Outcome::NoSource, "no-volume"));
        };
        if mine.disk == DiskState::Diskless || theirs.disk == DiskState::Diskless {
            return Ok((Outcome::NoSource, "diskless"));
        }
        agreed_size(&mine, &theirs).map_err(|text| ("incompatible-size", text))?;
        let (my_role, their_role) = match (&self.peers[p].hello_sent, &self.peers[p].hello_received)
        {
            (Some(my_hello), Some(their_hello)) if mine.round == 1 => {
                (my_hello.role, their_hello.role)
            }
            _ => (self.role, self.peers[p].role),
        };
        let config = &self.peers[p].config;
        let (node, protocol) = (config.node_id, config.protocol);
        let me = side(self.node_id, &mine, my_role, protocol);
        let peer = side(node, &theirs, their_role, protocol);
        let verdict = compare(&me, &peer);
        let rule = verdict.rule.name();
        let outcome = match verdict.outcome {
            Outcome::SplitBrain(History::Bitmap) if mine.bits == 0 || theirs.bits == 0 => {
                // One side went on alone and the other one only got ready to: nothing is lost by following the one that wrote.
                let me_source = match (mine.bits > 0, theirs.bits > 0) {
                    (false, false) if my_role != their_role => my_role == Role::Primary,
                    (false, false) => self.node_id < node,
                    (wrote, _) => wrote,
                };
                if me_source {
                    Outcome::Source(Extent::Bitmap)
                } else {
                    Outcome::Target(Extent::Bitmap)
                }
            }
            Outcome::SplitBrain(history) => self.resolve_split_brain(
                p, v, history, &mine, &theirs, my_role, their_role, rule, first,
            )?,
            Outcome::Unrelated => return Err((rule, String::from("Unrelated data, aborting!"))),
            Outcome::Refuse(refusal) => return Err((rule, refusal.text().to_string())),
            other => other,
        };
        // A Primary whose own data are not good works on its peer's anyway, and goes on with the resync that makes them good.
        let conflict = |role, hello: &VolumeHello| {
            role == Role::Primary
                && !hello.attached_anew
                && level(hello.disk) >= DiskLevel::Consistent
        };
        if matches!(outcome, Outcome::Target(_)) && conflict(my_role, &mine)
            || matches!(outcome, Outcome::Source(_)) && conflict(their_role, &theirs)
        {
            let text = String::from(
                "the Primary would have to become target of a resync (rr-conflict disconnect): make it Secondary, then connect",
            );
            return Err(("rr-conflict", text));
        }
        Ok((outcome, rule))
    }

    #[allow(clippy::too_many_arguments)]
    fn resolve_split_brain(
        &mut self,
        p: usize,
        v: usize,
        history: History,
        mine: &VolumeHello,
        theirs: &VolumeHello,
        my_role: Role,
        their_role: Role,
        rule: &'static str,
        first: bool,
    ) -> Result<Outcome, (&'static str, String)> {
        let (Some(hello), Some(peer_hello)) =
            (&self.peers[p].hello_sent, &self.peers[p].hello_received)
        else {
            return Err((rule, String::from("split brain")));
        };
        let me = SplitBrainSide {
            node_id: self.node_id,
            primary_now: my_role == Role::Primary,
            bits: mine.bits,
            bitmap_generation: mine.bitmap,
            inconsistent: level(mine.disk) == DiskLevel::Inconsistent,
            discard_my_data: hello.discard_my_data,
            policies: hello.policies,
        };
        let peer = SplitBrainSide {
            node_id: self.peers[p].config.node_id,
            primary_now: their_role == Role::Primary,
            bits: theirs.bits,
            bitmap_generation: theirs.bitmap,
            inconsistent: level(theirs.disk) == DiskLevel::Inconsistent,
            discard_my_data: peer_hello.discard_my_data,
            policies: peer_hello.policies,
        };
        let (node, number) = (peer.node_id, self.volumes[v].number);
        let losses = format!(
            "this node has {} KiB that the peer does not have, the peer has {} KiB that this node does not have",
            mine.bits * 4,
            theirs.bits * 4
        );
        if first {
            self.effect(Effect::Handler {
                name: "initial-split-brain",
                peer: Some(node),
                volume: Some(number),
            });
        }
        let decision = split_brain::resolve(&me, &peer, history);
        let by = decision.decided_by.word();
        let text = match decision.resolution {
            Resolution::IAmSource(extent) => {
                if first {
                    let text = format!(
                        "Split-Brain detected ({rule}), solved: this node's data survive; {losses}"
                    );
                    self.decision(Some(p), Some(v), by, text);
                }
                return Ok(Outcome::Source(extent));
            }
            Resolution::IAmTarget(extent) => {
                if first {
                    let text = format!(
                        "Split-Brain detected ({rule}), solved: this node's data are discarded; {losses}"
                    );
                    self.decision(Some(p), Some(v), by, text);
                }
                return Ok(Outcome::Target(extent));
            }
            Resolution::IMustDemote(_) => {
                self.effect(Effect::Handler {
                    name: "pri-lost-after-sb",
                    peer: Some(node),
                    volume: Some(number),
                });
                "the Primary loses and must become Secondary first"
            }
            Resolution::PeerMustDemote(_) => {
                "the peer loses, but is Primary and must become Secondary first"
            }
            Resolution::Unresolved { text } | Resolution::ConfigurationError { text } => text,
        };
        self.effect(Effect::Handler {
            name: "split-brain",
            peer: Some(node),
            volume: Some(number),
        });
        let remedy = "on the node whose changes shall be lost run 'disconnect', 'secondary' and 'connect --discard-my-data', \
                      on the other one 'connect'";
        let text = text
            .strip_prefix(split_brain::UNRESOLVED)
            .unwrap_or(text)
            .trim();
        let text = if text.is_empty() {
            String::new()
        } else {
            format!(" {text};")
        };
        Err((
            by,
            format!("{}{text} {losses}; {remedy}", split_brain::UNRESOLVED),
        ))
    }

    /// Carries out the verdict for a volume.
    fn decide_volume(&mut self, p: usize, v: usize) {
        let device = &self.peers[p].devices[v];
        let (Some(mine), Some(theirs)) = (device.mine.clone(), device.theirs.clone()) else {
            return;
        };
        if mine.round != theirs.round {
            return;
        }
        let (outcome, rule) = match self.verdict(p, v, mine.round > 1) {
            Ok(found) => found,
            // The Primary gives that disk up and goes on with this one.
            Err((rule, text)) if theirs.attached_anew => {
                return self.decision(Some(p), Some(v), rule, text);
            }
            Err((rule, text)) if mine.attached_anew => {
                // The peer serves this Primary's clients: it is the disk that goes, not the connection.
                self.decision(Some(p), Some(v), rule, text);
                self.peers[p].devices[v].hold = false;
                return self.fail_disk(v, rule);
            }
            Err((rule, text)) => return self.refuse_connection(p, rule, text),
        };
        self.peers[p].devices[v].disk = theirs.disk;
        self.peers[p].devices[v].tracks_misses = false;
        let text = format!(
            "generations {} / {}: {outcome}",
            mine.current, theirs.current
        );
        self.decision(Some(p), Some(v), rule, text);
        if mine.disk == DiskState::Diskless || theirs.disk == DiskState::Diskless {
            return self.connect_diskless(p, v, &mine, &theirs);
        }
        if let Ok(size) = agreed_size(&mine, &theirs) {
            self.agree_on_size(v, size);
        }
        if let (Outcome::Target(_), Some(claimed)) = (outcome, self.volumes[v].attached_anew) {
            self.set_disk(v, claimed.min(DiskState::Outdated), rule);
        }
        match outcome {
            // The Primary gives that disk up, see below; here nothing changes.
            Outcome::Target(_) if theirs.attached_anew => {
                self.peers[p].devices[v].disk = DiskState::Diskless
            }
            Outcome::Source(_) if mine.attached_anew => {
                self.peers[p].devices[v].hold = false;
                let seen = self.volumes[v].exposed;
                if seen.same(mine.current) && !seen.same(theirs.current) {
                    // Its clients saw these very data, and the peer's are older: an ordinary handshake makes it the source.
                    self.end_attached_anew(v);
                    return self.renegotiate(p, "clients-saw-these-data");
                }
                if !seen.is_none() && !seen.same(theirs.current) {
                    self.peers[p].devices[v].disk = theirs.disk.min(DiskState::Outdated);
                }
                // Its clients saw the peer's data; a disk that claims to be newer is not one of this volume's line.
                self.fail_disk(v, rule);
            }
            Outcome::InSync | Outcome::NoSource => {
                self.set_replication(p, v, ReplicationState::Established, rule);
                self.in_sync(p, v, outcome == Outcome::InSync, theirs.disk);
            }
            Outcome::Source(extent) => {
                if let Some(claimed) = self.volumes[v].attached_anew.take() {
                    self.set_disk(v, claimed, rule);
                }
                self.newest_within_reach(v);
                // Whatever it calls itself, it lacks something until the resync is over.
                self.peers[p].devices[v].disk = theirs.disk.min(DiskState::Consistent);
                self.set_replication(p, v, ReplicationState::WFBitMapS, rule);
                let node = self.peers[p].config.node_id;
                if let Some(backing) = self.volumes[v].backing.as_mut() {
                    if let (Extent::Full, Some(slot)) = (extent, backing.slot(node)) {
                        backing.bitmaps[slot].set_all();
                    }
                    // Under a generation of its own, what a Primary writes meanwhile is marked and follows with the resync.
                    let tracked = !backing.bitmap_generation(node).is_none();
                    self.peers[p].devices[v].hold &= !tracked;
                }
            }
            Outcome::Target(extent) => {
                self.set_replication(p, v, ReplicationState::WFBitMapT, rule);
                if !mine.current.same(theirs.current) && self.volumes[v].disk > DiskState::Outdated
                {
                    // Newer data exist: whatever becomes of this connection, these are old.
                    self.outdate_disk(v, rule);
                }
                self.peers[p].devices[v].target =
                    Some(alloc::boxed::Box::new(ResyncTarget::default()));
                self.send_bitmap(p, v, extent == Extent::Bitmap);
            }
            Outcome::SplitBrain(_) | Outcome::Unrelated | Outcome::Refuse(_) => {
                unreachable!("refused by verdict()")
            }
        }
    }

    /// Nothing to copy: records that durably, then lets writes flow.
    fn in_sync(&mut self, p: usize, v: usize, equal: bool, their_disk: DiskState) {
        let node = self.peers[p].config.node_id;
        if let Some(claimed) = self.volumes[v].attached_anew.take() {
            self.set_disk(v, claimed, "in-sync-with-peer");
        }
        if equal {
            self.newest_within_reach(v);
            if level(their_disk) == DiskLevel::UpToDate
                && self.volumes[v].disk != DiskState::UpToDate
                || self.volumes[v].disk == DiskState::Consistent
            {
                self.set_disk(v, DiskState::UpToDate, "in-sync-with-peer");
            }
            if self.volumes[v].disk == DiskState::UpToDate
                && matches!(their_disk, DiskState::Outdated | DiskState::Consistent)
            {
                self.peers[p].devices[v].disk = DiskState::UpToDate;
            }
        }
        let disk = self.volumes[v].disk;
        let volume = &mut self.volumes[v];
        let Some(backing) = volume.backing.as_mut() else {
            return;
        };
        if equal {
            let mut identifiers = backing.identifiers();
            identifiers.slot_cleared(node);
            backing.set_identifiers(&identifiers);
            backing.crashed_primary = false;
            backing.superblock.flags.crashed_primary = false;
            set_disk_flags(&mut backing.superblock.flags, disk);
        }
        if let Some(peer) = backing.superblock.peer_mut(node) {
            peer.flags.connected = true;
            peer.flags.device_seen = true;
        }
        let version = volume.want_superblock();
        volume.after(version, 0, Some(p), After::Ready { peer: p });
    }

    pub(crate) fn send_volume_ready(&mut self, p: usize, v: usize) {
        let number = self.volumes[v].number;
        self.peers[p].devices[v].accepts = true;
        self.send(p, Message::VolumeReady { volume: number });
        self.volume_settled(p, v);
    }

    pub(crate) fn volume_ready_received(
        &mut self,
        p: usize,
        number: VolumeNumber,
    ) -> Result<(), &'static str> {
        let v = self
            .volume_index(number)
            .ok_or("readiness of an unknown volume")?;
        if self.peers[p].devices[v].replication != ReplicationState::Established {
            return Err("readiness of a volume that is not in sync");
        }
        self.peers[p].devices[v].peer_accepts = true;
        self.volume_settled(p, v);
        Ok(())
    }

    /// Both sides are ready: held writes go on, mirrored.
    fn volume_settled(&mut self, p: usize, v: usize) {
        let current = self.volumes[v]
            .backing
            .as_ref()
            .map(|backing| backing.superblock.current);
        let mine = self.volumes[v].disk;
        let device = &mut self.peers[p].devices[v];
        if device.accepts && device.peer_accepts {
            device.hold = false;
            if device.disk == DiskState::UpToDate && mine == DiskState::UpToDate {
                device.contact = current;
            }
        }
    }

    /// One side has no disk: the connection stands, nothing is compared.
    fn connect_diskless(&mut self, p: usize, v: usize, mine: &VolumeHello, theirs: &VolumeHello) {
        self.set_replication(p, v, ReplicationState::Established, "diskless");
        if mine.disk == DiskState::Diskless && theirs.disk.has_data() && self.volumes[v].size == 0 {
            self.volumes[v].size = if theirs.effective_bytes == 0 {
                theirs.max_bytes
            } else {
                theirs.effective_bytes
            };
        }
        // What a Primary without a disk showed its clients must be what the other one has; anything else is old.
        let stale = |primary: &VolumeHello, disk: &VolumeHello| {
            let known = primary.current.same(disk.current)
                || primary.current.same(disk.bitmap)
                || disk.history.iter().any(|old| old.same(primary.current));
            primary.disk == DiskState::Diskless && !primary.current.is_none() && !known
        };
        if stale(mine, theirs) && theirs.disk > DiskState::Outdated {
            self.peers[p].devices[v].disk = DiskState::Outdated;
        }
        if stale(theirs, mine) {
            // Before the disk takes the state that it claims: the Primary must not see it UpToDate for a moment and write to it.
            if let Some(claimed) = &mut self.volumes[v].attached_anew {
                *claimed = (*claimed).min(DiskState::Outdated);
            }
            self.end_attached_anew(v);
            if self.volumes[v].disk > DiskState::Outdated {
                self.outdate_disk(v, "primary-showed-newer-data");
            }
        } else {
            self.end_attached_anew(v);
        }
        match self.volumes[v]
            .backing
            .as_mut()
            .filter(|_| theirs.disk == DiskState::Diskless)
        {
            Some(backing) => {
                // The other one has only this disk: what it was told of on an earlier connection becomes durable before it goes on, so
                // that its next flush covers that too (W4).
                backing.writer.data_flush = true;
                let version = backing.writer.want_bitmap();
                self.volumes[v].after(0, version, Some(p), After::Ready { peer: p });
            }
            None => self.send_volume_ready(p, v),
        }
        if self.peers[p].role == Role::Primary {
            self.track_misses(p, v, &[]);
        }
    }

    /// Nobody has current data to bring a disk up to date that a Primary attached: unless it holds what the clients last saw, it
    /// cannot be used.
    pub(crate) fn end_attached_anew(&mut self, v: usize) {
        let Some(claimed) = self.volumes[v].attached_anew.take() else {
            return;
        };
        let current = self.volumes[v]
            .backing
            .as_ref()
            .map(|backing| backing.superblock.current);
        if self.volumes[v].disk != DiskState::Negotiating {
            return;
        }
        if self.role != Role::Primary {
            self.set_disk(v, claimed, "metadata");
        } else if current.is_some_and(|current| current.same(self.volumes[v].exposed)) {
            self.set_disk(v, claimed, "clients-saw-these-data");
        } else {
            self.fail_disk(v, "clients-saw-newer-data");
        }
    }

    /// The comparison found nothing newer at the peer: with every peer at hand, old data are the newest that there are.
    fn newest_within_reach(&mut self, v: usize) {
        let all = self
            .peers
            .iter()
            .all(|peer| peer.connection == ConnectionState::Connected);
        if all
            && matches!(
                self.volumes[v].disk,
                DiskState::Outdated | DiskState::Consistent
            )
        {
            self.set_disk(v, DiskState::UpToDate, "nothing-newer");
            if let Some(backing) = self.volumes[v].backing.as_mut() {
                set_disk_flags(&mut backing.superblock.flags, DiskState::UpToDate);
                backing.writer.want_superblock();
            }
        }
    }

    /// Newer data than these exist: records it (in the next superblock write).
    pub(crate) fn outdate_disk(&mut self, v: usize, rule: &'static str) {
        self.set_disk(v, DiskState::Outdated, rule);
        if let Some(backing) = self.volumes[v].backing.as_mut() {
            set_disk_flags(&mut backing.superblock.flags, DiskState::Outdated);
            backing.writer.want_superblock();
        }
    }

    /// Ends the handshake for good: both sides become StandAlone.
    pub(crate) fn refuse_connection(&mut self, p: usize, rule: &'static str, text: String) {
        self.decision(Some(p), None, rule, text.clone());
        let mut text = text;
        while text.len() > limits::MAX_TEXT_BYTES {
            text.pop();
        }
        self.send(
            p,
            Message::Goodbye {
                reason: GoodbyeReason::StandAlone,
                text,
            },
        );
        self.drop_session(p, ConnectionState::Disconnecting, rule);
    }

    pub(crate) fn goodbye_received(
        &mut self,
        p: usize,
        reason: GoodbyeReason,
        text: String,
    ) -> Result<(), &'static str> {
        let (state, rule) = match reason {
            GoodbyeReason::Disconnect => (ConnectionState::TearDown, "peer-disconnects"),
            GoodbyeReason::StandAlone => (ConnectionState::Disconnecting, "refused-by-peer"),
            GoodbyeReason::Renegotiate => (ConnectionState::TearDown, "peer-renegotiates"),
            GoodbyeReason::ProtocolError => {
                (ConnectionState::ProtocolError, "refused-as-senseless")
            }
        };
        self.decision(Some(p), None, rule, text);
        self.drop_session(p, state, rule);
        Ok(())
    }

    pub(crate) fn peer_state_received(
        &mut self,
        p: usize,
        role: Role,
        disks: Vec<(VolumeNumber, DiskState)>,
    ) -> Result<(), &'static str> {
        if role == Role::Primary && self.role == Role::Primary {
            return Err("two Primaries");
        }
        let promoted = role == Role::Primary && self.peers[p].role != Role::Primary;
        self.peers[p].role = role;
        // Primary now, or the promotion was given up.
        self.peers[p].granted = None;
        for (number, disk) in disks {
            let Some(v) = self.volume_index(number) else {
                continue;
            };
            let device = &mut self.peers[p].devices[v];
            // What a disk that is being attached becomes is learned through a handshake of its own.
            let passing = matches!(disk, DiskState::Attaching | DiskState::Negotiating);
            if device.replication == ReplicationState::Off || passing {
                continue;
            }
            device.told_since =
                Some(disk).filter(|_| device.postponed.is_some() && disk.has_data());
            if device.disk == disk {
                continue;
            }
            if disk.has_data() {
                // What a disk that was without data became is learned through a handshake of its own.
                if device.disk.has_data() {
                    device.disk = disk;
                }
            } else {
                self.peer_disk_lost(p, v, disk, "peer-disk-lost");
            }
        }
        if promoted {
            for v in 0..self.volumes.len() {
                if self.peers[p].devices[v].disk == DiskState::Diskless {
                    self.track_misses(p, v, &[]);
                }
            }
        }
        Ok(())
    }

    fn agree_on_size(&mut self, v: usize, bytes: u64) {
        let volume = &mut self.volumes[v];
        volume.size = bytes;
        if let Some(backing) = volume.backing.as_mut() {
            backing.superblock.effective_bytes = bytes;
            for bitmap in &mut backing.bitmaps {
                bitmap.resize(crate::units::blocks_of(bytes), true);
            }
        }
    }
}

/// Writes what a disk state means into the flags of the superblock.
pub(crate) fn set_disk_flags(flags: &mut crate::metadata::superblock::Flags, disk: DiskState) {
    flags.consistent = disk >= DiskState::Outdated;
    flags.was_up_to_date = disk == DiskState::UpToDate;
}

/// The size that both disks can serve; an error if a device in use would shrink.
fn agreed_size(mine: &VolumeHello, theirs: &VolumeHello) -> Result<u64, String> {
    let fits = mine.max_bytes.min(theirs.max_bytes);
    let agreed = match (mine.effective_bytes, theirs.effective_bytes) {
        (0, 0) => fits,
        (0, size) | (size, 0) => size,
        (one, other) => one.max(other),
    };
    if agreed > fits {
        let who = if theirs.max_bytes < agreed {
            "The peer's disk size is too small!"
        } else {
            "This node's disk size is too small!"
        };
        return Err(format!(
            "{who} The volume has {agreed} bytes, the disks offer {} here and {} there",
            mine.max_bytes, theirs.max_bytes
        ));
    }
    Ok(agreed)
}
