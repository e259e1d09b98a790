//! `new-current-uuid`: a new generation by hand, and with `--clear-bitmap` the initial sync that is skipped.
//!
//! Two nodes are declared equal only before anything was written, and only when both carried it out durably; a peer that does not
//! answer in time is compared with anew.

use alloc::vec::Vec;

use crate::api::{CommandId, Payload};
use crate::engine::Engine;
use crate::handshake::set_disk_flags;
use crate::limits;
use crate::state::{ConnectionState, DiskState, Refusal, Role};
use crate::units::{Generation, Time, VolumeNumber};
use crate::volume::{After, Backing};
use crate::wire::Message;

/// `new-current-uuid --clear-bitmap` under way.
#[derive(Debug)]
pub(crate) struct SkipCommand {
    pub(super) id: CommandId,
    pub(super) volume: usize,
    /// The generation that is offered.
    pub(super) current: Generation,
    /// Peers that have not answered yet, by index.
    pub(super) asked: Vec<usize>,
    pub deadline: Time,
}

impl<P: Payload> Engine<P> {
    pub(super) fn new_current_uuid(
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
        let fresh = (self.volumes[v].current()).is_some_and(Generation::is_just_created);
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
        let fresh = (self.volumes[v].current()).is_some_and(Generation::is_just_created);
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
}
