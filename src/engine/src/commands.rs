//! The administrator's commands: what is refused, what it takes until it is done.
//!
//! A command that meets a state that is just changing (a handshake, data of an old connection on its way to the disk) waits for it, at
//! most [`limits::COMMAND_PATIENCE_MS`]. Promotion: every connected peer votes; two nodes that want it at the same time are told
//! apart by their ids. Demotion: everything completed is durable everywhere it should be before the role is given up.

use alloc::string::String;
use alloc::vec::Vec;

use crate::activity_log::ActivityLog;
use crate::api::{Command, CommandId, Effect, IoError, Payload};
use crate::engine::{Engine, IoOwner};
use crate::handshake::set_disk_flags;
use crate::limits;
use crate::metadata::image::MetadataImage;
use crate::metadata::ring::RingWriter;
use crate::metadata_writer::MetadataWriter;
use crate::peer::Vote;
use crate::state::{ConnectionState, DiskState, Refusal, ReplicationState, Role};
use crate::units::{Generation, NodeId, Time, VolumeNumber};
use crate::volume::{After, Backing};
use crate::wire::{GoodbyeReason, Message};

/// A command that waits for the state to settle.
#[derive(Debug)]
pub(crate) struct Deferred {
    pub id: CommandId,
    pub command: Command,
    /// Number of the event that brought it.
    pub since: u64,
    pub deadline: Time,
}

/// `new-current-uuid --clear-bitmap` under way.
#[derive(Debug)]
pub(crate) struct SkipCommand {
    id: CommandId,
    volume: usize,
    /// The generation that is offered.
    current: Generation,
    /// Peers that have not answered yet, by index.
    asked: Vec<usize>,
    pub deadline: Time,
}

/// How far a role change is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Step {
    /// Promotion: the peers vote until the deadline.
    Voting { deadline: Time },
    /// Demotion: open requests end, epochs become durable.
    Draining,
    /// Demotion: the local disks are flushed; so many answers are missing.
    Flushing { missing: usize },
    /// The superblocks are written; so many are missing.
    Recording { missing: usize },
}

/// A role change under way.
#[derive(Debug)]
pub(crate) struct RoleChange {
    command: CommandId,
    promotion: bool,
    force: bool,
    step: Step,
}

impl RoleChange {
    pub fn is_promotion(&self) -> bool {
        self.promotion
    }
    pub fn is_demotion(&self) -> bool {
        !self.promotion
    }
    /// A demotion that waits for open requests.
    pub fn is_draining(&self) -> bool {
        self.step == Step::Draining
    }
    pub fn deadline(&self) -> Option<Time> {
        match self.step {
            Step::Voting { deadline } => Some(deadline),
            _ => None,
        }
    }
}

impl<P: Payload> Engine<P> {
    pub(crate) fn command(&mut self, id: CommandId, command: Command) {
        let deadline = self.now.after(limits::COMMAND_PATIENCE_MS);
        let since = self.events;
        self.try_command(Deferred {
            id,
            command,
            since,
            deadline,
        });
    }

    /// Tries the commands that wait again. True if one got through.
    pub(crate) fn retry_deferred(&mut self) -> bool {
        let mut progress = false;
        for deferred in core::mem::take(&mut self.deferred) {
            if self.now >= deferred.deadline {
                self.command_done(deferred.id, Err(Refusal::InTransientState));
                progress = true;
            } else {
                let waiting = self.deferred.len();
                self.try_command(deferred);
                progress |= self.deferred.len() == waiting;
            }
        }
        progress
    }

    fn try_command(&mut self, deferred: Deferred) {
        let id = deferred.id;
        let result = match &deferred.command {
            Command::Attach { volume, image } => self.attach(id, *volume, image),
            Command::Detach { volume, force } => self.detach(id, *volume, *force),
            Command::Connect {
                peer,
                discard_my_data,
            } => self.connect(*peer, *discard_my_data).map(|()| true),
            Command::Disconnect { peer, force } => self.disconnect(id, *peer, *force),
            Command::Promote { force } => self.promote(id, *force, deferred.since),
            Command::Demote { force } => self.demote(id, *force),
            Command::Invalidate { volume } => self.invalidate(Some(id), *volume, deferred.since),
            Command::InvalidateRemote { volume, peer } => {
                self.invalidate_remote(id, *volume, *peer)
            }
            Command::Outdate { volume } => self.outdate(id, *volume),
            Command::PauseSync { volume, peer } => {
                self.pause_sync(*volume, *peer, true).map(|()| true)
            }
            Command::ResumeSync { volume, peer } => {
                self.pause_sync(*volume, *peer, false).map(|()| true)
            }
            Command::NewCurrentUuid {
                volume,
                clear_bitmap,
            } => self.new_current_uuid(id, *volume, *clear_bitmap),
        };
        match result {
            // Done at once.
            Ok(true) => self.command_done(id, Ok(())),
            // Under way; whoever ends it reports.
            Ok(false) => {}
            Err(Refusal::InTransientState) if self.now < deferred.deadline => {
                self.deferred.push(deferred)
            }
            Err(refusal) => self.command_done(id, Err(refusal)),
        }
    }

    /// Takes a changed configuration of a peer: timeouts, policies, windows; the protocol counts from the next connection on, so the
    /// shell disconnects before. False if the peer is unknown or the protocol would change under a standing connection.
    pub fn reconfigure_peer(&mut self, config: crate::config::PeerConfig) -> bool {
        let Some(p) = self.peer_index(config.node_id) else {
            return false;
        };
        if self.peers[p].session.is_some() && self.peers[p].config.protocol != config.protocol {
            return false;
        }
        self.peers[p].config = config;
        true
    }

    /// Takes a changed configuration of a volume; `al-extents` counts from the next attach on. False if the volume is unknown.
    pub fn reconfigure_volume(&mut self, config: crate::config::VolumeConfig) -> bool {
        let Some(v) = self.volume_index(config.number) else {
            return false;
        };
        self.volumes[v].config = config;
        true
    }

    fn volume_of(&self, number: VolumeNumber) -> Result<usize, Refusal> {
        self.volume_index(number).ok_or(Refusal::Unknown)
    }

    fn peer_of(&self, node: NodeId) -> Result<usize, Refusal> {
        self.peer_index(node).ok_or(Refusal::Unknown)
    }

    /// Refuses while anything is between two states.
    fn settled(&self) -> Result<(), Refusal> {
        let busy = self.role_change.is_some()
            || self.skip_command.is_some()
            || self.peers.iter().any(|peer| {
                peer.shaking_hands()
                    || peer.receiver_session != peer.session && !peer.drained()
                    || peer.connection == ConnectionState::Connected
                        && peer.devices.iter().any(|device| {
                            device.round_wanted
                                || device.postponed.is_some()
                                || device.awaits_answer()
                        })
                    || peer.devices.iter().any(|device| {
                        matches!(
                            device.replication,
                            ReplicationState::WFBitMapS | ReplicationState::WFBitMapT
                        ) || device.replication == ReplicationState::Established
                            && !(device.accepts && device.peer_accepts)
                    })
            });
        if busy {
            Err(Refusal::InTransientState)
        } else {
            Ok(())
        }
    }

    // ---- disk ---------------------------------------------------------------------------------------------------------------------

    fn attach(
        &mut self,
        id: CommandId,
        number: VolumeNumber,
        image: &MetadataImage,
    ) -> Result<bool, Refusal> {
        let v = self.volume_of(number)?;
        if self.volumes[v].backing.is_some() {
            return Err(Refusal::DiskConfigured);
        }
        if self.role_change.is_some() {
            return Err(Refusal::InTransientState);
        }
        let mut superblock = image.superblock.clone();
        let connected = self
            .peers
            .iter()
            .any(|peer| peer.connection == ConnectionState::Connected);
        if self.role == Role::Primary
            && !connected
            && !self.volumes[v].exposed.same(superblock.current)
        {
            // Its clients saw the peer's data: an older state must not take their place. With the peer at hand the handshake decides.
            return Err(Refusal::DataNotCurrent);
        }
        let crashed = superblock.flags.primary_indicator || superblock.flags.crashed_primary;
        superblock.flags.crashed_primary = crashed;
        superblock.flags.primary_indicator = self.role == Role::Primary;
        for peer in &self.peers {
            if superblock.allocate_slot(peer.config.node_id).is_err() {
                return Err(Refusal::Unknown);
            }
        }
        let state = if !superblock.flags.consistent {
            DiskState::Inconsistent
        } else if !superblock.flags.was_up_to_date {
            DiskState::Outdated
        } else {
            DiskState::UpToDate
        };
        let size = if superblock.effective_bytes == 0 {
            image.layout.data_bytes
        } else {
            superblock.effective_bytes
        };
        if self.role == Role::Primary && self.volumes[v].size > image.layout.data_bytes {
            return Err(Refusal::DataNotCurrent);
        }
        let slots = superblock.al_slots;
        let ring = RingWriter::new(image.layout.ring_blocks, slots, image.ring_sequence);
        let mut writer = MetadataWriter::default();
        let version = writer.want_superblock();
        let primary = self.role == Role::Primary;
        let volume = &mut self.volumes[v];
        if !primary {
            volume.size = size;
        }
        volume.attached_anew = Some(state).filter(|_| connected);
        let state = if connected {
            DiskState::Negotiating
        } else {
            state
        };
        volume.backing = Some(Backing {
            layout: image.layout,
            superblock,
            bitmaps: image.bitmaps.clone(),
            log: ActivityLog::new(slots),
            ring,
            writer,
            crashed_primary: crashed,
            completion_gate: 0,
        });
        let bytes = volume.size;
        if let Some(backing) = volume.backing.as_mut() {
            for bitmap in &mut backing.bitmaps {
                bitmap.resize(crate::units::blocks_of(bytes), true);
            }
        }
        self.set_disk(v, DiskState::Attaching, "attach");
        self.set_disk(v, state, "metadata");
        for p in 0..self.peers.len() {
            self.peers[p].devices[v].contact = None;
            if primary && connected {
                self.peers[p].devices[v].hold = true;
            }
            if self.peers[p].connection == ConnectionState::Connected {
                // The question is asked when it can be followed up: what the peer sends behind its answer must not meet a node that is
                // still writing the attach down.
                self.peers[p].devices[v].round_wanted = true;
            } else if self.peers[p].shaking_hands() {
                // The Hello may have said that there is no disk.
                self.renegotiate(p, "attached-during-handshake");
            }
        }
        self.volumes[v].after(version, 0, None, After::Command(id));
        Ok(false)
    }

    fn detach(
        &mut self,
        id: CommandId,
        number: VolumeNumber,
        force: bool,
    ) -> Result<bool, Refusal> {
        let v = self.volume_of(number)?;
        match self.volumes[v].disk {
            DiskState::Diskless => return Ok(true),
            DiskState::Failed | DiskState::Detaching | DiskState::Attaching => {
                return Err(Refusal::InTransientState);
            }
            _ => {}
        }
        self.settled()?;
        if self.volumes[v].detaching.is_some() {
            return Err(Refusal::InTransientState);
        }
        if self.role == Role::Primary && !self.has_remote_data(v) && !force {
            return Err(Refusal::NoUpToDateDisk);
        }
        if self.role == Role::Primary {
            // The clients go on through the peer, as after a disk error.
            self.volumes[v].detaching = Some(id);
            self.set_disk(v, DiskState::Detaching, "detach");
            self.disk_gone(v, "detach");
            return Ok(false);
        }
        let needed = self.peers.iter().any(|peer| {
            peer.connection == ConnectionState::Connected
                && peer.role == Role::Primary
                && peer.devices[v].disk != DiskState::UpToDate
                && self.volumes[v].disk == DiskState::UpToDate
        });
        if needed && !force {
            // The Primary would lose its last good data.
            return Err(Refusal::PeerRefused);
        }
        self.volumes[v].detaching = Some(id);
        for p in 0..self.peers.len() {
            // What the Primary sent and this disk did not make durable is marked there.
            self.renegotiate(p, "detach");
        }
        let volume = &mut self.volumes[v];
        let bitmap = volume
            .backing
            .as_mut()
            .map_or(0, |backing| backing.writer.want_bitmap());
        volume.after(0, bitmap, None, After::Detach);
        Ok(false)
    }

    pub(crate) fn detach_durable(&mut self, v: usize) {
        // The log may be called clean only when the bits are on disk.
        let volume = &mut self.volumes[v];
        if let Some(backing) = volume
            .backing
            .as_mut()
            .filter(|backing| !backing.superblock.flags.al_clean)
        {
            backing.superblock.flags.al_clean = true;
            let superblock = backing.writer.want_superblock();
            return volume.after(superblock, 0, None, After::Detach);
        }
        if self.volumes[v].disk.has_data() {
            self.set_disk(v, DiskState::Detaching, "detach");
            self.disk_gone(v, "detach");
        }
    }

    fn outdate(&mut self, id: CommandId, number: VolumeNumber) -> Result<bool, Refusal> {
        let v = self.volume_of(number)?;
        if self.volumes[v].disk < DiskState::Outdated {
            return Err(if self.volumes[v].disk == DiskState::Diskless {
                Refusal::IsDiskless
            } else {
                Refusal::LowerThanOutdated
            });
        }
        if self.role == Role::Primary {
            return Err(Refusal::NoUpToDateDisk);
        }
        if self.peers.iter().any(|peer| peer.session.is_some()) {
            return Err(Refusal::ConnectedOutdates);
        }
        self.settled()?;
        self.set_disk(v, DiskState::Outdated, "outdate");
        let volume = &mut self.volumes[v];
        if let Some(backing) = volume.backing.as_mut() {
            set_disk_flags(&mut backing.superblock.flags, DiskState::Outdated);
            let version = backing.writer.want_superblock();
            volume.after(version, 0, None, After::Command(id));
        }
        Ok(false)
    }

    fn invalidate(
        &mut self,
        id: Option<CommandId>,
        number: VolumeNumber,
        since: u64,
    ) -> Result<bool, Refusal> {
        let v = self.volume_of(number)?;
        if !self.volumes[v].usable() {
            return Err(Refusal::NoLocalDisk);
        }
        self.settled()?;
        if self.role == Role::Primary {
            return Err(Refusal::NeedSecondary);
        }
        let Some(p) = self.peers.iter().position(|peer| {
            peer.connection == ConnectionState::Connected
                && peer.devices[v].disk == DiskState::UpToDate
        }) else {
            return Err(Refusal::NeedConnection);
        };
        if self.peers[p].devices[v].replication != ReplicationState::Established {
            return Err(Refusal::ResyncRunning);
        }
        if self.peers[p].heard_in <= since {
            // It may have died a moment ago, and what it had not made durable would be here alone: only a peer that is alive takes over.
            self.ask_whether_alive(p);
            return Err(Refusal::InTransientState);
        }
        self.set_disk(v, DiskState::Inconsistent, "invalidate");
        let volume = &mut self.volumes[v];
        if let Some(backing) = volume.backing.as_mut() {
            backing.superblock.flags.invalidated = true;
            set_disk_flags(&mut backing.superblock.flags, DiskState::Inconsistent);
            let version = backing.writer.want_superblock();
            // Not bound to the session: the mark stays, and whoever connects next carries it out.
            volume.after(
                version,
                0,
                None,
                After::Invalidated {
                    peer: p,
                    command: id,
                },
            );
        }
        Ok(false)
    }

    fn invalidate_remote(
        &mut self,
        id: CommandId,
        number: VolumeNumber,
        node: NodeId,
    ) -> Result<bool, Refusal> {
        let v = self.volume_of(number)?;
        let p = self.peer_of(node)?;
        if !self.volumes[v].usable() {
            return Err(Refusal::NoLocalDisk);
        }
        self.settled()?;
        if self.volumes[v].disk != DiskState::UpToDate {
            return Err(Refusal::NoUpToDateDisk);
        }
        if self.peers[p].connection == ConnectionState::Connected {
            if self.peers[p].role == Role::Primary {
                return Err(Refusal::NeedSecondary);
            }
            if !self.peers[p].devices[v].disk.has_data() {
                return Err(Refusal::NoRemoteDisk);
            }
            if self.peers[p].devices[v].replication != ReplicationState::Established {
                return Err(Refusal::ResyncRunning);
            }
            self.send(p, Message::InvalidateRequest { volume: number });
            return Ok(true);
        }
        let volume = &mut self.volumes[v];
        if let Some(backing) = volume.backing.as_mut() {
            if let Some(slot) = backing.slot(node) {
                backing.bitmaps[slot].set_all();
            }
            let version = backing.writer.want_bitmap();
            volume.after(0, version, None, After::Command(id));
        }
        Ok(false)
    }

    pub(crate) fn invalidate_request_received(
        &mut self,
        p: usize,
        number: VolumeNumber,
    ) -> Result<(), &'static str> {
        if self.volume_index(number).is_none() {
            return Err("an unknown volume");
        }
        if self.invalidate(None, number, self.events - 1).is_err() {
            self.decision(
                Some(p),
                None,
                "invalidate-refused",
                String::from("the peer asked for a full sync at a bad moment"),
            );
        }
        Ok(())
    }

    fn pause_sync(
        &mut self,
        number: VolumeNumber,
        node: NodeId,
        pause: bool,
    ) -> Result<(), Refusal> {
        let v = self.volume_of(number)?;
        let p = self.peer_of(node)?;
        if self.peers[p].devices[v].paused_here == pause {
            return Err(if pause {
                Refusal::PauseAlreadySet
            } else {
                Refusal::PauseAlreadyClear
            });
        }
        self.peers[p].devices[v].paused_here = pause;
        if self.peers[p].connection == ConnectionState::Connected {
            self.send(
                p,
                Message::ResyncPause {
                    volume: number,
                    paused: pause,
                },
            );
        }
        self.apply_pause(p, v);
        Ok(())
    }

    fn new_current_uuid(
        &mut self,
        id: CommandId,
        number: VolumeNumber,
        clear_bitmap: bool,
    ) -> Result<bool, Refusal> {
        let v = self.volume_of(number)?;
        if !self.volumes[v].usable() {
            return Err(Refusal::IsDiskless);
        }
        self.settled()?;
        if !clear_bitmap {
            if self.volumes[v].disk != DiskState::UpToDate {
                return Err(Refusal::NoUpToDateDisk);
            }
            if self
                .peers
                .iter()
                .any(|peer| peer.connection == ConnectionState::Connected)
            {
                return Err(Refusal::NeedStandAlone);
            }
            self.new_generation(v, "new-current-uuid");
            let gate = self.volumes[v]
                .backing
                .as_ref()
                .map_or(0, |backing| backing.completion_gate);
            self.volumes[v].after(gate, 0, None, After::Command(id));
            return Ok(false);
        }
        // Declaring nodes equal is safe only before anything was written, and only with somebody to agree with.
        let fresh = self.volumes[v]
            .backing
            .as_ref()
            .is_some_and(|backing| backing.superblock.current.is_just_created());
        let connected: Vec<usize> = (0..self.peers.len())
            .filter(|&p| self.peers[p].connection == ConnectionState::Connected)
            .collect();
        if !fresh || self.role == Role::Primary || connected.is_empty() {
            return Err(Refusal::NeedStandAlone);
        }
        for &p in &connected {
            let theirs = self.peers[p].devices[v].theirs.as_ref();
            let fresh = theirs
                .is_some_and(|theirs| theirs.current.is_just_created() && theirs.disk.has_data());
            if !fresh || self.peers[p].role == Role::Primary {
                return Err(Refusal::NeedStandAlone);
            }
        }
        let mut identifiers = self.volumes[v]
            .backing
            .as_ref()
            .map(Backing::identifiers)
            .ok_or(Refusal::IsDiskless)?;
        identifiers.new_current(self.random.draw(), false, &[]);
        let current = identifiers.current();
        self.skip_command = Some(SkipCommand {
            id,
            volume: v,
            current,
            asked: connected.clone(),
            deadline: self.now.after(limits::COMMAND_PATIENCE_MS),
        });
        for p in connected {
            self.send(
                p,
                Message::SkipInitialSync {
                    volume: number,
                    current,
                },
            );
        }
        Ok(false)
    }

    /// Declares the local disk UpToDate under the generation, all bits cleared. Only for metadata that were just created.
    fn skip_initial_sync(&mut self, v: usize, current: Generation) -> u64 {
        self.set_disk(v, DiskState::UpToDate, "skip-initial-sync");
        let Some(backing) = self.volumes[v].backing.as_mut() else {
            return 0;
        };
        let mut identifiers = backing.identifiers();
        identifiers.follow_current(current);
        backing.set_identifiers(&identifiers);
        for bitmap in &mut backing.bitmaps {
            bitmap.clear_all();
        }
        set_disk_flags(&mut backing.superblock.flags, DiskState::UpToDate);
        backing.writer.want_bitmap();
        let version = backing.writer.want_superblock();
        for peer in &mut self.peers {
            if peer.connection == ConnectionState::Connected {
                peer.devices[v].contact = Some(current);
            }
        }
        version
    }

    pub(crate) fn skip_initial_sync_received(
        &mut self,
        p: usize,
        number: VolumeNumber,
        current: Generation,
    ) -> Result<(), &'static str> {
        let v = self.volume_index(number).ok_or("an unknown volume")?;
        let fresh = self.volumes[v]
            .backing
            .as_ref()
            .is_some_and(|backing| backing.superblock.current.is_just_created());
        if !fresh
            || self.role == Role::Primary
            || current.is_just_created()
            || self.role_change.is_some()
        {
            self.send(
                p,
                Message::SkipInitialSyncDone {
                    volume: number,
                    current,
                    done: false,
                },
            );
            return Ok(());
        }
        let version = self.skip_initial_sync(v, current);
        self.volumes[v].after(
            version,
            0,
            Some(p),
            After::SkippedForPeer { peer: p, current },
        );
        Ok(())
    }

    pub(crate) fn skip_initial_sync_done(
        &mut self,
        p: usize,
        number: VolumeNumber,
        current: Generation,
        done: bool,
    ) -> Result<(), &'static str> {
        let Some(command) = &mut self.skip_command else {
            return Err("an answer to a question that was never asked");
        };
        let (id, v) = (command.id, command.volume);
        if self.volumes[v].number != number
            || command.current != current
            || !command.asked.contains(&p)
        {
            return Err("an answer to another question");
        }
        command.asked.retain(|&asked| asked != p);
        let missing = command.asked.len();
        if !done {
            self.skip_command = None;
            self.command_done(id, Err(Refusal::PeerRefused));
            return Ok(());
        }
        self.peers[p].devices[v].disk = DiskState::UpToDate;
        if missing > 0 {
            return Ok(());
        }
        self.skip_command = None;
        let version = self.skip_initial_sync(v, current);
        self.volumes[v].after(version, 0, None, After::Command(id));
        Ok(())
    }

    /// Gives the command up if its time is over. A peer that did not answer may have done its part or not: both compare anew.
    pub(crate) fn check_skip_command(&mut self) {
        let now = self.now;
        let Some(command) = self.skip_command.take_if(|command| now >= command.deadline) else {
            return;
        };
        self.command_done(command.id, Err(Refusal::Timeout));
        for p in command.asked {
            self.drop_session(
                p,
                ConnectionState::Timeout,
                "no-answer-to-skip-initial-sync",
            );
        }
    }

    // ---- connection ---------------------------------------------------------------------------------------------------------------

    fn connect(&mut self, node: NodeId, discard_my_data: bool) -> Result<(), Refusal> {
        let p = self.peer_of(node)?;
        if discard_my_data && self.role == Role::Primary {
            return Err(Refusal::DiscardNotAllowed);
        }
        match self.peers[p].connection {
            ConnectionState::StandAlone => {}
            ConnectionState::Connecting if !self.peers[p].shaking_hands() => {
                self.peers[p].discard_my_data = discard_my_data;
                return Ok(());
            }
            ConnectionState::Connected if !discard_my_data => return Ok(()),
            ConnectionState::Connected => return Err(Refusal::NetConfigured),
            _ => return Err(Refusal::InTransientState),
        }
        self.peers[p].discard_my_data = discard_my_data;
        self.set_connection(p, ConnectionState::Unconnected, "connect");
        self.set_connection(p, ConnectionState::Connecting, "connect");
        self.effect(Effect::StartConnecting { peer: node });
        Ok(())
    }

    fn disconnect(&mut self, id: CommandId, node: NodeId, force: bool) -> Result<bool, Refusal> {
        let p = self.peer_of(node)?;
        if self.peers[p].connection == ConnectionState::StandAlone {
            return Ok(true);
        }
        if !force
            && self.role == Role::Primary
            && self.peers[p].connection == ConnectionState::Connected
        {
            let loses = (0..self.volumes.len()).any(|v| {
                self.volumes[v].disk != DiskState::UpToDate
                    && self.peers[p].devices[v].disk == DiskState::UpToDate
            });
            if loses {
                return Err(Refusal::NoUpToDateDisk);
            }
        }
        if !force && self.peers[p].role == Role::Primary {
            let blinds = (0..self.volumes.len()).any(|v| {
                self.volumes[v].disk == DiskState::UpToDate
                    && self.peers[p].devices[v].disk != DiskState::UpToDate
            });
            if blinds {
                return Err(Refusal::PeerRefused);
            }
        }
        if self.peers[p].session.is_some() {
            self.peers[p].disconnecting = Some(id);
            self.send(
                p,
                Message::Goodbye {
                    reason: GoodbyeReason::Disconnect,
                    text: String::from("disconnected by the administrator"),
                },
            );
            self.drop_session(p, ConnectionState::Disconnecting, "disconnect");
            return Ok(false);
        }
        self.set_connection(p, ConnectionState::Disconnecting, "disconnect");
        self.become_stand_alone(p, "disconnect");
        Ok(true)
    }

    // ---- promotion ----------------------------------------------------------------------------------------------------------------

    fn promote(&mut self, id: CommandId, force: bool, since: u64) -> Result<bool, Refusal> {
        if self.role == Role::Primary {
            return if self.role_change.is_some() {
                Err(Refusal::InTransientState)
            } else {
                Ok(true)
            };
        }
        for p in 0..self.peers.len() {
            let peer = &self.peers[p];
            if peer.connection == ConnectionState::Connected && peer.role == Role::Primary {
                if peer.heard_in > since {
                    return Err(Refusal::TwoPrimaries);
                }
                // It may have died a moment ago: it refuses only if it is alive.
                self.ask_whether_alive(p);
                return Err(Refusal::InTransientState);
            }
        }
        self.settled()?;
        if self.peers.iter().any(|peer| peer.granted.is_some()) {
            return Err(Refusal::InTransientState);
        }
        self.check_data(force)?;
        let mut asked = false;
        for p in 0..self.peers.len() {
            self.peers[p].vote = None;
            if self.peers[p].connection == ConnectionState::Connected {
                let question = self.random.draw();
                self.peers[p].vote = Some(Vote::Asked(question));
                self.send(p, Message::PromoteRequest { id: question });
                asked = true;
            }
        }
        let deadline = self.now.after(limits::VOTE_TIMEOUT_MS);
        self.role_change = Some(RoleChange {
            command: id,
            promotion: true,
            force,
            step: Step::Voting { deadline },
        });
        if !asked {
            self.record_promotion();
        }
        Ok(false)
    }

    /// True data must be within reach of a Primary (G4).
    fn check_data(&self, force: bool) -> Result<(), Refusal> {
        for (v, volume) in self.volumes.iter().enumerate() {
            let good = volume.disk == DiskState::UpToDate
                || self.has_remote_data(v)
                    && (volume.disk == DiskState::Diskless || self.is_sync_target(v));
            let forced = force && volume.usable();
            if !good && !forced {
                return Err(Refusal::NoUpToDateDisk);
            }
        }
        Ok(())
    }

    fn is_sync_target(&self, v: usize) -> bool {
        self.peers
            .iter()
            .any(|peer| peer.devices[v].replication.is_sync_target())
    }

    pub(crate) fn promote_request_received(
        &mut self,
        p: usize,
        id: u64,
    ) -> Result<(), &'static str> {
        let node = self.peers[p].config.node_id;
        let refusal = if self.role == Role::Primary {
            Some(Refusal::TwoPrimaries)
        } else if self
            .role_change
            .as_ref()
            .is_some_and(|change| change.promotion)
            && self.node_id < node
        {
            Some(Refusal::ConcurrentStateChange)
        } else if self
            .role_change
            .as_ref()
            .is_some_and(|change| matches!(change.step, Step::Recording { .. }))
            || self.peers[p].connection != ConnectionState::Connected
        {
            Some(Refusal::InTransientState)
        } else {
            None
        };
        if refusal.is_none() {
            // The peer has the smaller id and wants it at the same moment: this node steps back.
            if let Some(change) = self.role_change.take() {
                self.command_done(change.command, Err(Refusal::ConcurrentStateChange));
            }
            self.peers[p].granted = Some(self.now.after(2 * limits::VOTE_TIMEOUT_MS));
        }
        self.send(
            p,
            Message::PromoteReply {
                id,
                refusal: refusal.map_or(0, Refusal::code),
            },
        );
        Ok(())
    }

    pub(crate) fn promote_reply_received(
        &mut self,
        p: usize,
        id: u64,
        refusal: i32,
    ) -> Result<(), &'static str> {
        if self.peers[p].vote != Some(Vote::Asked(id)) {
            // The promotion was given up meanwhile.
            return Ok(());
        }
        if refusal == 0 {
            self.peers[p].vote = Some(Vote::Granted);
            self.count_votes();
            return Ok(());
        }
        self.peers[p].vote = None;
        let refusal = [
            Refusal::TwoPrimaries,
            Refusal::ConcurrentStateChange,
            Refusal::InTransientState,
        ]
        .into_iter()
        .find(|known| known.code() == refusal)
        .unwrap_or(Refusal::PeerRefused);
        self.give_up_promotion(refusal);
        Ok(())
    }

    /// A peer that is gone does not vote.
    pub(crate) fn vote_lost(&mut self, p: usize) {
        if self.peers[p].vote.take().is_some() {
            self.count_votes();
        }
        if let Some(command) = self
            .skip_command
            .take_if(|command| command.asked.contains(&p))
        {
            self.command_done(command.id, Err(Refusal::NeedConnection));
        }
    }

    fn give_up_promotion(&mut self, refusal: Refusal) {
        if let Some(change) = self
            .role_change
            .take_if(|change| change.promotion && matches!(change.step, Step::Voting { .. }))
        {
            for peer in &mut self.peers {
                peer.vote = None;
            }
            self.command_done(change.command, Err(refusal));
            // A peer that granted it must know that it may promote itself.
            self.broadcast_state();
        }
    }

    fn count_votes(&mut self) {
        let voting = self
            .role_change
            .as_ref()
            .is_some_and(|change| matches!(change.step, Step::Voting { .. }));
        if voting
            && !self
                .peers
                .iter()
                .any(|peer| matches!(peer.vote, Some(Vote::Asked(_))))
        {
            self.record_promotion();
        }
    }

    /// Everybody agrees: makes the promotion durable, then takes the role.
    fn record_promotion(&mut self) {
        let Some(change) = &self.role_change else {
            return;
        };
        let force = change.force;
        if let Err(refusal) = self.check_data(force) {
            return self.give_up_promotion(refusal);
        }
        let mut missing = 0;
        let mut renegotiate = false;
        for v in 0..self.volumes.len() {
            if !self.volumes[v].usable() {
                continue;
            }
            let absent = self.peers.iter().any(|peer| !peer.devices[v].mirrors());
            if force && self.volumes[v].disk != DiskState::UpToDate && !self.is_sync_target(v) {
                self.force_up_to_date(v);
                renegotiate = true;
            } else if absent {
                // An absent peer that shares the generation may have gone on by itself: from here on the two are told apart.
                self.new_generation_if_shared(v, "promotion-without-peer");
            }
            let volume = &mut self.volumes[v];
            let Some(backing) = volume.backing.as_mut() else {
                continue;
            };
            let flags = &mut backing.superblock.flags;
            flags.primary_indicator = true;
            flags.al_clean = false;
            if backing.superblock.effective_bytes == 0 {
                backing.superblock.effective_bytes = volume.size;
            }
            let bitmap = backing.writer.want_bitmap();
            let superblock = backing.writer.want_superblock();
            volume.after(superblock, bitmap, None, After::RoleChange);
            missing += 1;
        }
        if let Some(change) = &mut self.role_change {
            change.step = Step::Recording { missing };
        }
        if missing == 0 {
            self.finish_role_change();
        }
        if renegotiate {
            for p in 0..self.peers.len() {
                self.renegotiate(p, "forced-promotion");
            }
        }
    }

    /// `primary --force`: whatever is here is declared current.
    fn force_up_to_date(&mut self, v: usize) {
        let random = self.random.draw();
        let absent: alloc::vec::Vec<NodeId> =
            self.peers.iter().map(|peer| peer.config.node_id).collect();
        let was = self.volumes[v].disk;
        self.set_disk(v, DiskState::UpToDate, "forced");
        let Some(backing) = self.volumes[v].backing.as_mut() else {
            return;
        };
        let mut identifiers = backing.identifiers();
        if was == DiskState::Inconsistent && !identifiers.current().is_just_created() {
            identifiers.force_current(random, &absent);
        } else {
            identifiers.new_current(random, true, &absent);
        }
        let flags = &mut backing.superblock.flags;
        flags.sync_target = false;
        flags.invalidated = false;
        set_disk_flags(flags, DiskState::UpToDate);
        self.follow_identifiers(v, &identifiers, "forced-promotion");
    }

    pub(crate) fn role_change_durable(&mut self, _v: usize) {
        let Some(change) = &mut self.role_change else {
            return;
        };
        if let Step::Recording { missing } = &mut change.step {
            *missing = missing.saturating_sub(1);
            if *missing == 0 {
                self.finish_role_change();
            }
        }
    }

    fn finish_role_change(&mut self) {
        let Some(change) = self.role_change.take() else {
            return;
        };
        for peer in &mut self.peers {
            peer.vote = None;
        }
        if change.promotion
            && let Err(refusal) = self.check_data(false)
        {
            // A disk failed while the promotion was written down.
            for volume in &mut self.volumes {
                if let Some(backing) = volume.backing.as_mut() {
                    backing.superblock.flags.primary_indicator = false;
                    backing.writer.want_superblock();
                }
            }
            self.broadcast_state();
            return self.command_done(change.command, Err(refusal));
        }
        let (role, rule) = if change.promotion {
            (Role::Primary, "promote")
        } else {
            (Role::Secondary, "demote")
        };
        self.set_role(role, rule);
        self.command_done(change.command, Ok(()));
    }

    // ---- demotion -----------------------------------------------------------------------------------------------------------------

    fn demote(&mut self, id: CommandId, force: bool) -> Result<bool, Refusal> {
        if self.role_change.is_some() {
            return Err(Refusal::InTransientState);
        }
        if self.role != Role::Primary {
            return Ok(true);
        }
        if !force && self.volumes.iter().any(|volume| volume.openers > 0) {
            return Err(Refusal::DeviceInUse);
        }
        self.role_change = Some(RoleChange {
            command: id,
            promotion: false,
            force,
            step: Step::Draining,
        });
        for p in 0..self.peers.len() {
            self.close_epoch(p);
        }
        Ok(false)
    }

    /// Moves a role change on. True if it moved.
    pub(crate) fn pump_role_change(&mut self) -> bool {
        let Some(change) = &self.role_change else {
            return false;
        };
        match change.step {
            Step::Voting { deadline } if self.now >= deadline => {
                self.give_up_promotion(Refusal::Timeout);
                true
            }
            Step::Draining if self.requests.is_empty() => {
                let mut missing = 0;
                for v in 0..self.volumes.len() {
                    if self.volumes[v].usable() {
                        let volume = self.volumes[v].number;
                        let io = self.new_io(v, IoOwner::DemoteFlush);
                        self.effect(Effect::Flush { volume, io });
                        missing += 1;
                    }
                }
                self.set_role_step(Step::Flushing { missing });
                if missing == 0 {
                    self.record_demotion();
                }
                true
            }
            Step::Draining => {
                for p in 0..self.peers.len() {
                    self.close_epoch(p);
                }
                false
            }
            _ => false,
        }
    }

    fn set_role_step(&mut self, step: Step) {
        if let Some(change) = &mut self.role_change {
            change.step = step;
        }
    }

    pub(crate) fn demote_flush_done(&mut self, v: usize, result: Result<(), IoError>) {
        if result.is_err() {
            self.fail_disk(v, "flush-error");
        }
        if let Some(RoleChange {
            step: Step::Flushing { missing },
            ..
        }) = &mut self.role_change
        {
            *missing -= 1;
            if *missing == 0 {
                self.record_demotion();
            }
        }
    }

    fn record_demotion(&mut self) {
        let mut missing = 0;
        for v in 0..self.volumes.len() {
            let unconfirmed = self.volumes[v].backing.as_ref().is_some_and(|backing| {
                self.peers
                    .iter()
                    .any(|peer| !peer.devices[v].mirrors() && backing.bits(peer.config.node_id) > 0)
            });
            if unconfirmed {
                // What is given up as durable here may be missing there.
                self.new_generation_if_shared(v, "demotion-without-peer");
            }
        }
        for volume in &mut self.volumes {
            if !volume.usable() {
                continue;
            }
            let Some(backing) = volume.backing.as_mut() else {
                continue;
            };
            let flags = &mut backing.superblock.flags;
            flags.primary_indicator = false;
            flags.crashed_primary = false;
            backing.crashed_primary = false;
            let bitmap = backing.writer.want_bitmap();
            let superblock = backing.writer.want_superblock();
            volume.after(superblock, bitmap, None, After::RoleChange);
            missing += 1;
        }
        self.set_role_step(Step::Recording { missing });
        if missing == 0 {
            self.finish_role_change();
        }
    }
}
