//! `secondary`: everything completed is durable everywhere it should be before the role is given up.

use super::role_change::{RoleChange, Step};
use crate::api::{CommandId, IoError, Payload};
use crate::engine::Engine;
use crate::state::{Refusal, Role};
use crate::volume::After;

impl<P: Payload> Engine<P> {
    pub(super) fn demote(&mut self, id: CommandId, force: bool) -> Result<bool, Refusal> {
        if self.role_change.is_some() {
            return Err(Refusal::InTransientState);
        }
        if self.role != Role::Primary {
            return Ok(true);
        }
        if !force && self.volumes.iter().any(|volume| volume.openers > 0) {
            return Err(Refusal::DeviceInUse);
        }
        if !force && self.is_suspended() && !self.requests.is_empty() {
            // They would wait for ever.
            return Err(Refusal::DeviceInUse);
        }
        self.role_change = Some(RoleChange {
            command: id,
            promotion: false,
            force,
            step: Step::Draining,
            generations: alloc::vec::Vec::new(),
        });
        for p in 0..self.peers.len() {
            self.close_epoch(p);
        }
        Ok(false)
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

    pub(super) fn record_demotion(&mut self) {
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
