//! What a Secondary tells the Primary about the operations that it received: received (protocol B), written, durable.
//!
//! Under protocol C a client waits for the report of its write, so it leaves with the turn in which the disk answered. Under A and B
//! nobody waits for it but the Primary's memory: it is gathered with those that follow, since a packet for each write, with its
//! wake-up at the Primary, costs both nodes as much as the write itself.
//!
//! Invariant: what is gathered is reported within [`limits::REPORT_GATHER_MS`], or with the session's end never: the Primary then marks
//! what it was not told of. A Primary without good data of its own waits for every report (W9), and so does one that resyncs this node,
//! so nothing is gathered for them.
//!
//! The Primary's activity log waits for reports too: an extent is free for another one when the epochs of its writes are reported as
//! durable, and a log whose slots are all taken by what is gathered here would let clients wait while both nodes have nothing to do.
//! Nothing on the wire tells of that. But both nodes are configured alike as a rule, so no more is gathered than a part of the
//! own log, [`limits::REPORT_LOG_PART`]: a starved log gets slots back as soon as a few writes are durable. Logs of ordinary size
//! change nothing by that; where the Primary's log is much smaller than this node's, its clients may wait for the gathering's end.

use alloc::vec::Vec;

use crate::api::Payload;
use crate::engine::Engine;
use crate::limits;
use crate::state::{DiskState, ReplicationState};
use crate::units::Time;
use crate::wire::Message;
use crate::wire::message::Protocol;

/// What one session's Primary was not told yet.
#[derive(Debug, Default)]
pub struct Reports {
    /// Numbers of operations that the disk has.
    written: Vec<u64>,
    /// Their payload.
    bytes: u64,
    /// Operations that the disk has and that no report of a durable epoch covers yet.
    retiring: usize,
    /// Last number whose receipt was reported.
    received: u64,
    /// Newest epoch that is durable here.
    pub durable: Option<u64>,
    /// When what is gathered has to be reported.
    pub due: Option<Time>,
}

impl Reports {
    /// The disk has the operation with this number; so many bytes came with it.
    pub fn written(&mut self, sequence: u64, bytes: u32) {
        self.written.push(sequence);
        self.bytes += u64::from(bytes);
        self.retiring += 1;
    }

    /// True if there is more to tell than `most` operations, or much data.
    fn is_full(&self, most: usize) -> bool {
        self.written.len() >= most
            || self.bytes >= limits::REPORT_BYTES
            || self.durable.is_some() && self.retiring >= most
    }

    fn take_runs(&mut self) -> Vec<(u64, u32)> {
        self.bytes = 0;
        self.due = None;
        let mut sequences = core::mem::take(&mut self.written);
        sequences.sort_unstable();
        let mut runs: Vec<(u64, u32)> = Vec::new();
        for sequence in sequences {
            match runs.last_mut() {
                Some((first, count)) if *first + u64::from(*count) == sequence => *count += 1,
                _ => runs.push((sequence, 1)),
            }
        }
        runs
    }
}

impl<P: Payload> Engine<P> {
    /// Reports to every peer what it waits for or what has waited long enough, in as few messages as possible.
    pub(crate) fn send_reports(&mut self) {
        for p in 0..self.peers.len() {
            let receipt = self.report_receipt(p);
            let reports = &self.peers[p].reports;
            let lone = reports.written.is_empty();
            if lone && reports.durable.is_none() {
                continue;
            }
            let due = reports.due.is_some_and(|due| self.now >= due);
            let gathers = self.may_gather(p);
            // That an epoch is durable is reported with the write that follows it: at depth 1 a packet of its own would cost as much
            // as the report of the write. A write that is under way ends.
            let waits = gathers || lone && self.peers[p].receiver.is_writing();
            if receipt || due || !waits || reports.is_full(self.most_gathered()) {
                self.report(p);
            } else if gathers {
                let due = self.now.after(limits::REPORT_GATHER_MS);
                self.peers[p].reports.due.get_or_insert(due);
            }
        }
    }

    /// True if neither a client of the Primary nor the Primary itself waits for the reports of single writes.
    pub(crate) fn may_gather(&self, p: usize) -> bool {
        let peer = &self.peers[p];
        peer.config.protocol != Protocol::C
            && peer.devices.iter().all(|device| {
                device.disk == DiskState::UpToDate
                    && device.replication == ReplicationState::Established
            })
    }

    /// Operations that may be gathered.
    pub(crate) fn most_gathered(&self) -> usize {
        let logs = self.volumes.iter().map(|volume| volume.config.al_extents);
        let log = logs.min().unwrap_or(0).max(limits::MIN_AL_EXTENTS) as usize;
        (log / limits::REPORT_LOG_PART).min(limits::REPORT_OPERATIONS)
    }

    /// Protocol B: the receipt is what clients wait for. True if there was something to say.
    fn report_receipt(&mut self, p: usize) -> bool {
        let through = self.peers[p].receiver.received_through();
        let news = self.peers[p].config.protocol == Protocol::B
            && through > self.peers[p].reports.received
            && self.receiver_is_current(p);
        if news {
            self.peers[p].reports.received = through;
            self.send(p, Message::Received { through });
        }
        news
    }

    /// Reports what was written and what is durable.
    pub(crate) fn report(&mut self, p: usize) {
        for (first, count) in self.peers[p].reports.take_runs() {
            self.send(p, Message::Written { first, count });
        }
        // After the writes that it covers.
        if let Some(epoch) = self.peers[p].reports.durable.take() {
            self.peers[p].reports.retiring = 0;
            self.send(p, Message::BarrierAck { epoch });
        }
    }
}
