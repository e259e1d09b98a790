//! Steps of engines: an event goes in, the effects are carried out in order, then the checkers look.

use qrbd_engine::api::{
    ClientError, Command, CommandId, Effect, Event, Notice, Operation, RequestId,
};
use qrbd_engine::state::{DiskState, Refusal};
use qrbd_engine::units::{ByteRange, Time};

use crate::administrator::Purpose;
use crate::disk::Job;
use crate::engine_view::NodeView;
use crate::network::NodeIndex;
use crate::node::Process;
use crate::oracle::{WriteNumber, WriteRecord};
use crate::queue::{MILLISECOND, SECOND};
use crate::stamps::Stamps;
use crate::world::{Occurrence, OpenCommand, OpenRequest, RequestKind, World, volume_number};

impl World {
    /// Gives a command; returns its handle.
    pub fn command(&mut self, node: NodeIndex, command: Command, purpose: Purpose) -> u64 {
        let id = self.next_handle;
        self.next_handle += 1;
        let Some(process) = &self.nodes[node].process else {
            return id;
        };
        let text = match &command {
            Command::Attach { volume, .. } => format!("Attach {{ volume: {volume} }}"),
            other => format!("{other:?}"),
        };
        let promotion = match command {
            Command::Promote { force } => Some(force),
            _ => None,
        };
        self.trace
            .line(self.now, || format!("n{node} command {id}: {text}"));
        let view_before = process.view.clone();
        let peers_live = (0..self.settings.nodes)
            .filter(|&peer| peer != node)
            .all(|peer| self.peer_is_the_same(node, peer));
        self.commands.insert(
            id,
            OpenCommand {
                node,
                text,
                at: self.now,
                began: self.moment,
                promotion,
                view_before,
                peers_live,
                purpose,
            },
        );
        self.tell(
            node,
            Event::Command {
                id: CommandId(id),
                command,
            },
        );
        id
    }

    /// A client submits a request; returns its handle.
    pub fn submit(
        &mut self,
        node: NodeIndex,
        volume: usize,
        kind: RequestKind,
        operation: Operation<Stamps>,
    ) -> u64 {
        let id = self.next_handle;
        self.next_handle += 1;
        let began = self.tick_moment();
        let branch = self.nodes[node].volumes[volume].branch;
        if let RequestKind::Write { number, .. } = kind {
            self.writes[number as usize].began = began;
            let record = self.writes[number as usize].clone();
            self.branches[branch].begin(number, &record);
        }
        self.trace.line(self.now, || {
            format!("n{node} v{volume} request {id}: {kind:?}")
        });
        self.requests.insert(
            id,
            OpenRequest {
                node,
                volume,
                kind,
                branch,
                began,
                at: self.now,
            },
        );
        self.tell(
            node,
            Event::Request {
                id: RequestId(id),
                volume: volume_number(volume),
                operation,
            },
        );
        id
    }

    /// A new write of `range`; the number goes into a [`RequestKind::Write`].
    pub fn new_write(&mut self, range: ByteRange, zeroes: bool) -> WriteNumber {
        self.writes.push(WriteRecord {
            range,
            zeroes,
            began: 0,
            era: self.era,
        });
        self.writes.len() as u64 - 1
    }

    /// Hands an event to the engine of a node and carries out what comes out.
    pub fn tell(&mut self, node: NodeIndex, event: Event<Stamps>) {
        if self.violation.is_some() {
            return;
        }
        self.trace.mix(&[self.now, node as u64, 3]);
        let nodes = self.settings.nodes;
        let Some(process) = self.nodes[node].process.as_mut() else {
            return;
        };
        process.engine.handle(Time(self.now / MILLISECOND), event);
        let mut effects = Vec::new();
        while let Some(effect) = process.engine.poll() {
            effects.push(effect);
            if effects.len() > 100_000 {
                self.fail(
                    "bounds",
                    format!("n{node}: one event gave more than 100000 effects"),
                );
                return;
            }
        }
        let view = NodeView::of(&process.engine, nodes);
        let before = std::mem::replace(&mut process.view, view.clone());
        self.nodes[node].view = Some(view);
        self.figures.steps += 1;
        self.restless = true;
        let cut = self.fault_budget > 0
            && !effects.is_empty()
            && self.crash_amid_effects > 0
            && self.random.below(1_000_000) < self.crash_amid_effects;
        if cut {
            self.fault_budget -= 1;
            effects.truncate(self.random.below(effects.len() as u64 + 1) as usize);
        }
        let incarnation = self.nodes[node].incarnation;
        self.view_changed(node, &before);
        for effect in effects {
            self.carry_out(node, effect);
            if self.violation.is_some() || self.nodes[node].incarnation != incarnation {
                return;
            }
        }
        if cut {
            let power = self.random.chance(500);
            self.crash(node, power);
            self.start_later(node);
            return;
        }
        self.check_after_step(node);
        self.arm(node);
    }

    /// Schedules the start of a node's process.
    pub fn start_later(&mut self, node: NodeIndex) {
        if !self.nodes[node].start_scheduled {
            self.nodes[node].start_scheduled = true;
            let delay = self.random.delay(MILLISECOND, 3 * SECOND);
            self.schedule(delay, Occurrence::Start { node });
        }
    }

    pub(crate) fn arm(&mut self, node: NodeIndex) {
        let state = &mut self.nodes[node];
        let Some(process) = state.process.as_mut() else {
            return;
        };
        let Some(Time(at)) = process.engine.next_timeout() else {
            return;
        };
        let at = at.saturating_mul(MILLISECOND).max(self.now);
        if process
            .tick_at
            .is_none_or(|scheduled| at < scheduled || scheduled < self.now)
        {
            process.tick_at = Some(at);
            let incarnation = state.incarnation;
            self.queue.push(at, Occurrence::Tick { node, incarnation });
        }
    }

    pub(crate) fn timer(&mut self, node: NodeIndex, incarnation: u64) {
        let now = self.now;
        let state = &mut self.nodes[node];
        if state.incarnation != incarnation {
            return;
        }
        let Some(process) = state.process.as_mut() else {
            return;
        };
        if process.tick_at != Some(now) {
            return;
        }
        process.tick_at = None;
        let due = process
            .engine
            .next_timeout()
            .is_some_and(|Time(at)| at.saturating_mul(MILLISECOND) <= now);
        if due {
            self.tell(node, Event::Tick);
            let Some(process) = self.nodes[node].process.as_mut() else {
                return;
            };
            let again = process
                .engine
                .next_timeout()
                .is_some_and(|Time(at)| at.saturating_mul(MILLISECOND) <= now);
            process.ticks_in_place = if again { process.ticks_in_place + 1 } else { 0 };
            if process.ticks_in_place > 1000 {
                self.fail(
                    "bounds",
                    format!("n{node}: the timer stays due after 1000 ticks at the same moment"),
                );
            }
        } else {
            self.arm(node);
        }
    }

    pub(crate) fn carry_out(&mut self, node: NodeIndex, effect: Effect<Stamps>) {
        match effect {
            Effect::Read { volume, io, range } => self.disk_job(node, volume, io, Job::Read(range)),
            Effect::Write {
                volume,
                io,
                range,
                payload,
                durable,
            } => self.disk_job(node, volume, io, Job::Write(range, payload, durable)),
            Effect::Discard { volume, io, range }
            | Effect::WriteZeroes {
                volume, io, range, ..
            } => {
                self.disk_job(node, volume, io, Job::Zero(range));
            }
            Effect::Flush { volume, io } => self.disk_job(node, volume, io, Job::Flush),
            Effect::MetadataWrite {
                volume,
                io,
                offset,
                bytes,
            } => {
                self.disk_job(node, volume, io, Job::MetadataWrite(offset, bytes));
            }
            Effect::MetadataFlush { volume, io } => {
                self.disk_job(node, volume, io, Job::MetadataFlush)
            }
            Effect::MeasureDisk { volume, io } => self.disk_job(node, volume, io, Job::Measure),
            Effect::RememberDisk { volume, io, known } => {
                self.disk_job(node, volume, io, Job::Remember(known));
            }
            Effect::Send {
                peer,
                session,
                message,
                more,
            } => self.send(node, peer, session, message, more),
            Effect::Push { peer, session } => self.push(node, peer, session),
            Effect::CloseSession { peer, session } => self.close(node, peer, session),
            Effect::Probe { peer, session } => self.probe(node, usize::from(peer.0), session),
            Effect::StartConnecting { peer } => {
                let peer = usize::from(peer.0);
                self.process(node).wants[peer] = true;
                let link = self.link_of(node, peer);
                self.call_later(link);
            }
            Effect::StopConnecting { peer } => {
                self.process(node).wants[usize::from(peer.0)] = false
            }
            Effect::Complete { id, result } => self.complete(node, id, result),
            Effect::CommandDone { id, result } => self.command_done(node, id, result),
            Effect::Detached { volume } => {
                self.trace
                    .line(self.now, || format!("n{node} v{volume} detached"));
                self.nodes[node].volumes[usize::from(volume.0)].attached = false;
            }
            Effect::Handler { name, peer, volume } => {
                self.trace.line(self.now, || {
                    format!("n{node} handler {name} {peer:?} {volume:?}")
                });
                self.handler_called(node, name);
            }
            Effect::AskHandler { id, name, .. } => self.handler_asked(node, name, id),
            Effect::FencePeer { peer, id } => self.fence_called(node, usize::from(peer.0), id),
            Effect::Notice(notice) => self.notice(node, &notice),
        }
    }

    pub(crate) fn notice(&mut self, node: NodeIndex, notice: &Notice) {
        let rule = match notice {
            Notice::Role { rule, .. }
            | Notice::Disk { rule, .. }
            | Notice::Connection { rule, .. }
            | Notice::Replication { rule, .. }
            | Notice::Decision { rule, .. } => rule,
        };
        if let Some(rules) = &mut self.rules {
            rules.push((node, rule));
        }
        if let Notice::Disk {
            volume,
            from,
            to: DiskState::Failed,
            ..
        } = notice
        {
            let volume = usize::from(volume.0);
            match from {
                DiskState::Negotiating => self.nodes[node].volumes[volume].attach_refused = true,
                // With nothing under way it is Diskless at the end of the same step.
                DiskState::UpToDate => {
                    self.nodes[node].volumes[volume].failed_at = self.tick_moment();
                }
                _ => {}
            }
        }
        self.trace.mix(&[
            rule.len() as u64,
            u64::from(rule.as_bytes().first().copied().unwrap_or(0)),
        ]);
        self.trace.line(self.now, || match notice {
            Notice::Role { from, to, rule } => format!("n{node} role {from} -> {to} ({rule})"),
            Notice::Disk {
                volume,
                from,
                to,
                rule,
            } => format!("n{node} v{volume} disk {from} -> {to} ({rule})"),
            Notice::Connection {
                peer,
                from,
                to,
                rule,
            } => format!("n{node} connection to n{peer} {from} -> {to} ({rule})"),
            Notice::Replication {
                peer,
                volume,
                from,
                to,
                rule,
            } => {
                format!("n{node} v{volume} replication to n{peer} {from} -> {to} ({rule})")
            }
            Notice::Decision {
                volume, rule, text, ..
            } => {
                format!(
                    "n{node} {}decision {rule}: {text}",
                    volume.map_or(String::new(), |volume| format!("v{volume} "))
                )
            }
        });
    }

    pub(crate) fn process(&mut self, node: NodeIndex) -> &mut Process {
        self.nodes[node]
            .process
            .as_mut()
            .expect("an effect comes from a running process")
    }

    pub(crate) fn complete(
        &mut self,
        node: NodeIndex,
        id: RequestId,
        result: Result<Option<Stamps>, ClientError>,
    ) {
        let Some(request) = self.requests.remove(&id.0) else {
            self.fail(
                "bounds",
                format!("n{node}: request {} was answered twice or never made", id.0),
            );
            return;
        };
        self.trace.mix(&[id.0, u64::from(result.is_ok())]);
        self.trace.line(self.now, || match &result {
            Ok(_) => format!("n{node} request {} done", id.0),
            Err(error) => format!("n{node} request {} failed: {error:?}", id.0),
        });
        match &result {
            Ok(_) => self.figures.completed += 1,
            Err(_) => self.figures.failed += 1,
        }
        let frozen = (self.nodes[node].process.as_ref()).is_some_and(|process| process.view.frozen);
        if frozen && result.is_ok() && !matches!(request.kind, RequestKind::Read(_)) {
            let text = format!(
                "n{node}: request {} was answered while the peer was not fenced",
                id.0
            );
            self.fail("fencing", text);
        }
        let now = self.tick_moment();
        match (request.kind, &result) {
            (RequestKind::Write { number, range, fua }, Ok(_)) => {
                let kept = fua || !self.is_lost_unflushed(node, request.volume);
                self.branches[request.branch].end(number, range, kept, fua, now);
            }
            (RequestKind::Write { number, range, .. }, Err(_)) => {
                self.branches[request.branch].end(number, range, false, false, now);
            }
            _ => {}
        }
        self.check_answer(id.0, &request, &result, now);
        if let Some(answers) = &mut self.answers {
            answers.insert(id.0, result);
        }
    }

    pub(crate) fn command_done(
        &mut self,
        node: NodeIndex,
        id: CommandId,
        result: Result<(), Refusal>,
    ) {
        let Some(command) = self.commands.remove(&id.0) else {
            self.fail(
                "bounds",
                format!(
                    "n{node}: command {} was answered twice or never given",
                    id.0
                ),
            );
            return;
        };
        self.trace.mix(&[id.0, u64::from(result.is_ok())]);
        self.trace.line(self.now, || match &result {
            Ok(()) => format!("n{node} command {} done: {}", id.0, command.text),
            Err(refusal) => format!(
                "n{node} command {} refused: {refusal}: {}",
                id.0, command.text
            ),
        });
        if let (Some(forced), Ok(())) = (command.promotion, &result) {
            self.promoted(node, forced, &command);
        }
        if let Some(answers) = &mut self.command_answers {
            answers.insert(id.0, result);
        }
        self.manager_answer(node, &command, result);
    }
}
