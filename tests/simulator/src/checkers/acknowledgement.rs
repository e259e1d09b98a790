//! W1 to W4, W9: what a client was told is so.
//!
//! At the answer to a write: with C and a peer in sync both disks hold it or something newer; with B the peer received it; with A it
//! was handed to the network; the local disk holds it, or the peer's does where there is none. At the answer to a flush, and for the
//! sectors of a FUA write, the same of the durable sectors, and alone also the knowledge of what the peer misses is durable.
//! A flush that succeeds after completed writes went with the power of the only node that had them has told nobody: the first one after
//! that must fail. An error is an answer only where no good copy was within reach.

use qrbd_engine::api::ClientError;
use qrbd_engine::state::{DiskState, Role};
use qrbd_engine::units::ByteRange;
use qrbd_engine::wire::message::Protocol;

use super::raised;
use crate::disk::View;
use crate::engine_view::{NodeView, bits};
use crate::network::NodeIndex;
use crate::node::Loss;
use crate::oracle::{Moment, Standard, WriteNumber};
use crate::queue::SECOND;
use crate::stamps::{Sector, Stamps, sectors};
use crate::world::{OpenRequest, RequestKind, World};

impl World {
    /// Called when a request was answered.
    pub(crate) fn check_answer(
        &mut self,
        id: u64,
        request: &OpenRequest,
        result: &Result<Option<Stamps>, ClientError>,
        now: Moment,
    ) {
        let Some(view) = self.nodes[request.node].live_view().cloned() else {
            return;
        };
        match (request.kind, result) {
            (RequestKind::Outside, Err(ClientError::OutOfRange)) => {}
            (RequestKind::Outside, Err(ClientError::NotPrimary))
                if view.role != Role::Primary || self.is_being_demoted(request.node) => {}
            (RequestKind::Outside, other) => {
                self.fail(
                    "acknowledgement",
                    format!(
                        "request {id} beyond the end of the device was answered with {other:?}"
                    ),
                );
            }
            (_, Err(error)) => {
                self.check_error(id, request, *error, &view);
                // One that began before the connection was lost says nothing of writes that were completed after it.
                let flushes = matches!(request.kind, RequestKind::Flush);
                let found = self.nodes[request.node].disconnected_at;
                if flushes && request.began > found {
                    self.branches[request.branch].tell_lost(found, request.began, now);
                }
            }
            (RequestKind::Read(range), Ok(data)) => {
                self.check_read(id, request, range, data.as_ref(), now)
            }
            (RequestKind::Write { number, range, fua }, Ok(_)) => {
                self.checked("acknowledgement");
                self.check_write(id, request, number, range, &view, now);
                if fua {
                    self.check_durable(id, request, Some(range), &view);
                }
            }
            (RequestKind::Flush, Ok(_)) => {
                self.checked("durability");
                self.branches[request.branch].flushed(request.began);
                self.check_durable(id, request, None, &view);
                self.check_misses_durable(id, request, &view);
            }
        }
    }

    /// True if a node follows the branch of a request: it was not promoted apart from it.
    fn is_followed_by(&self, node: NodeIndex, request: &OpenRequest) -> bool {
        self.nodes[node].volumes[request.volume].branch == request.branch
    }

    /// True if the process at the other end of the session is the one that the session was made with.
    pub(crate) fn peer_is_the_same(&self, node: NodeIndex, peer: NodeIndex) -> bool {
        let session = self.nodes[node]
            .process
            .as_ref()
            .and_then(|process| process.sessions[peer]);
        session.is_some_and(|(_, connection)| {
            let connection = &self.connections[connection];
            let end = connection.end_of(peer);
            self.nodes[peer].process.is_some()
                && connection.ends[end].incarnation == self.nodes[peer].incarnation
        })
    }

    /// True if the only good copy lost its power, and its last words are still on their way to this node: what it confirmed in them
    /// was kept by nobody, unless a flush covers it.
    pub(crate) fn is_lost_unflushed(&self, node: NodeIndex, volume: usize) -> bool {
        let good_here = (self.nodes[node].live_view())
            .is_some_and(|view| view.volumes[volume].disk == DiskState::UpToDate);
        !good_here
            && (0..self.settings.nodes)
                .filter(|&peer| peer != node)
                .all(|peer| {
                    self.nodes[peer].volumes[volume].loss >= Loss::Power
                        && !self.peer_is_the_same(node, peer)
                })
    }

    fn holds(
        &self,
        node: NodeIndex,
        request: &OpenRequest,
        range: ByteRange,
        now: Moment,
    ) -> Result<(), Sector> {
        let branch = &self.branches[request.branch];
        let disk = &self.nodes[node].volumes[request.volume].disk;
        let image = |sector| disk.sector(sector, View::Cached);
        let bad = if self.settings.protocol == Protocol::C {
            branch.first_bad(sectors(range), Standard::Live, now + 1, image)
        } else {
            // Later writes to the same place may have been completed without this node.
            branch.first_older(sectors(range), request.began, image)
        };
        bad.map_or(Ok(()), Err)
    }

    fn holds_durably(
        &self,
        node: NodeIndex,
        request: &OpenRequest,
        range: ByteRange,
        now: Moment,
    ) -> bool {
        let disk = &self.nodes[node].volumes[request.volume].disk;
        let image = |sector| disk.sector(sector, View::Durable);
        self.branches[request.branch]
            .first_bad(sectors(range), Standard::Live, now + 1, image)
            .is_none()
    }

    fn check_write(
        &mut self,
        id: u64,
        request: &OpenRequest,
        number: WriteNumber,
        range: ByteRange,
        view: &NodeView,
        now: Moment,
    ) {
        let (node, volume) = (request.node, request.volume);
        let here = view.volumes[volume].disk == DiskState::UpToDate;
        let mut good_copies = 0;
        if matches!(
            view.volumes[volume].disk,
            DiskState::Failed | DiskState::Detaching
        ) {
            // It leaves, but it was UpToDate when the write landed.
            good_copies += usize::from(self.holds(node, request, range, now).is_ok());
        }
        if here {
            match self.holds(node, request, range, now) {
                Ok(()) => good_copies += 1,
                Err(sector) => {
                    let text = format!(
                        "write {id} (w{number}) {range} was answered, but the local disk of n{node} lacks sector {sector}"
                    );
                    return self.fail("acknowledgement", text);
                }
            }
        }
        for peer in (0..self.settings.nodes).filter(|&peer| peer != node) {
            // A SyncTarget's source counts as well.
            let good = view.connected(peer) && view.peer_disk(peer, volume) == DiskState::UpToDate;
            let in_sync = good && view.mirrors_to(peer, volume);
            if !self.peer_is_the_same(node, peer) || !self.is_followed_by(peer, request) {
                // It crashed or went its own way, and this node was not told yet.
                good_copies += usize::from(good);
                continue;
            }
            let holds = self.holds(peer, request, range, now);
            if good && holds.is_ok() {
                good_copies += 1;
            }
            let must_hold = in_sync && (self.settings.protocol == Protocol::C || !here);
            if must_hold && let Err(sector) = holds {
                let found = self.name(self.sector(peer, volume, sector));
                let text = format!(
                    "write {id} (w{number}) {range} was answered, but n{peer} has {found} in sector {sector}"
                );
                return self.fail("acknowledgement", text);
            }
            let zeroes = self.writes[number as usize].zeroes;
            let told = match self.settings.protocol {
                Protocol::A => raised(&self.checks.sent, number),
                Protocol::B | Protocol::C => raised(&self.checks.received, number),
            };
            if view.mirrors_to(peer, volume)
                && !zeroes
                && !told
                // A resync may have brought it since the local disk had it.
                && holds.is_err()
                && !self.is_marked(node, peer, volume, range)
            {
                let text = format!(
                    "write {id} (w{number}) {range} was answered under {:?} before n{peer} got it",
                    self.settings.protocol
                );
                return self.fail("acknowledgement", text);
            }
            // What the peer has durably already was not completed without it.
            let has = self.holds_durably(peer, request, range, now);
            if !view.mirrors_to(peer, volume) && here && !has {
                self.check_alone(id, node, peer, volume, range);
            }
        }
        if good_copies == 0 && self.violation.is_none() {
            self.fail(
                "acknowledgement",
                format!("write {id} (w{number}) {range} was answered, but no UpToDate disk has it"),
            );
        }
    }

    /// True if every block of the range is marked out of sync in memory.
    pub(crate) fn is_marked(
        &self,
        node: NodeIndex,
        peer: NodeIndex,
        volume: usize,
        range: ByteRange,
    ) -> bool {
        let Some(process) = &self.nodes[node].process else {
            return false;
        };
        bits(process, volume, peer).is_some_and(|bits| bits.covers(range.blocks_touched()))
    }

    /// Every sector (of the range) that a flush covered is durable where it must be.
    fn check_durable(
        &mut self,
        id: u64,
        request: &OpenRequest,
        range: Option<ByteRange>,
        view: &NodeView,
    ) {
        let (node, volume) = (request.node, request.volume);
        let here = view.volumes[volume].disk == DiskState::UpToDate;
        let mut where_to_look = Vec::new();
        if here {
            where_to_look.push(node);
        }
        // A disk that left in this very step took the flushed data with it.
        let leaving = !here && request_disk_is_durable(self, request, range);
        for peer in (0..self.settings.nodes).filter(|&peer| peer != node) {
            let wanted = self.settings.protocol == Protocol::C || !(here || leaving);
            // The source of a resync of this very disk holds the only good data.
            let serves = !here
                && view.connected(peer)
                && view.mirrors_to(peer, volume)
                && view.peer_disk(peer, volume) == DiskState::UpToDate;
            let there = (serves || view.in_sync_with(peer, volume))
                && self.peer_is_the_same(node, peer)
                && self.is_followed_by(peer, request);
            if wanted && there {
                where_to_look.push(peer);
            }
        }
        let branch = &self.branches[request.branch];
        let within = covered(range);
        for &holder in &where_to_look {
            let disk = &self.nodes[holder].volumes[volume].disk;
            let image = |sector| disk.sector(sector, View::Durable);
            let bad = branch.first_bad(within.clone(), Standard::Flushed, 0, image);
            if let Some(sector) = bad {
                let found = self.name(disk.sector(sector, View::Durable));
                let allowed = branch.allowed(sector, Standard::Flushed, 0);
                let allowed: Vec<String> =
                    allowed.into_iter().map(|stamp| self.name(stamp)).collect();
                let text = format!(
                    "request {id} ({}) was answered, but a power loss of n{holder} would leave {found} in sector {sector}, allowed: {}",
                    if range.is_some() { "FUA" } else { "flush" },
                    allowed.join(", ")
                );
                return self.fail("durability", text);
            }
        }
        if range.is_none() {
            self.check_lost(id, request, &where_to_look);
        }
    }

    /// A flush was answered: no write of this Primary that was answered before went with the power of its only good copy.
    fn check_lost(&mut self, id: u64, request: &OpenRequest, holders: &[NodeIndex]) {
        let branch = &self.branches[request.branch];
        let since = self.nodes[request.node].primary_since;
        let found = holders.iter().find_map(|&holder| {
            let disk = &self.nodes[holder].volumes[request.volume].disk;
            let stamp = |sector| disk.sector(sector, View::Durable);
            branch
                .lost_untold(&self.writes, since)
                .find(|lost| !branch.is_not_older(lost.sector, stamp(lost.sector), lost.write))
                .map(|lost| {
                    (
                        holder,
                        lost.sector,
                        lost.write,
                        self.name(stamp(lost.sector)),
                    )
                })
        });
        if let Some((holder, sector, write, found)) = found {
            let text = format!(
                "flush {id} was answered, but w{write} that was answered before went with the power of n{holder}: \
                 sector {sector} has {found}"
            );
            self.fail("durability", text);
        }
    }

    /// A flush answered alone: what the peer misses is known durably.
    fn check_misses_durable(&mut self, id: u64, request: &OpenRequest, view: &NodeView) {
        let (node, volume) = (request.node, request.volume);
        if view.volumes[volume].disk != DiskState::UpToDate {
            return;
        }
        for peer in (0..self.settings.nodes).filter(|&peer| peer != node) {
            if view.mirrors_to(peer, volume) || self.full_sync_due(node, peer, volume) {
                continue;
            }
            let Some(knowledge) = self.knowledge(node, volume, View::Durable) else {
                continue;
            };
            let bad = self.differing[volume].iter().copied().find(|&sector| {
                self.sector(node, volume, sector) != self.sector(peer, volume, sector)
                    && !knowledge.marked(peer, sector)
                    && !knowledge.logged(sector)
                    && !self.is_being_written(volume, sector)
                    && !self.peer_knows(peer, node, volume, sector)
            });
            if let Some(sector) = bad {
                let text = format!(
                    "flush {id} was answered alone, but that n{peer} misses sector {sector} is not durable on n{node}"
                );
                return self.fail("durability", text);
            }
        }
    }

    fn peer_knows(&self, peer: NodeIndex, node: NodeIndex, volume: usize, sector: Sector) -> bool {
        let knowledge = self.knowledge(peer, volume, View::Cached);
        knowledge
            .is_some_and(|knowledge| knowledge.marked(node, sector) || knowledge.logged(sector))
    }

    fn is_being_demoted(&self, node: NodeIndex) -> bool {
        self.commands
            .values()
            .any(|command| command.node == node && command.text.starts_with("Demote"))
    }

    fn check_error(&mut self, id: u64, request: &OpenRequest, error: ClientError, view: &NodeView) {
        let (node, volume) = (request.node, request.volume);
        let ill = |node: NodeIndex| {
            let faults = self.nodes[node].volumes[volume].faults;
            let last = [
                faults.read_errors.0,
                faults.write_errors.0,
                faults.metadata_errors.0,
                faults.full,
                faults.slow,
            ];
            last.into_iter()
                .any(|until| until > 0 && until + 20 * SECOND > self.now)
        };
        let excuse = match error {
            ClientError::NotPrimary => view.role != Role::Primary || self.is_being_demoted(node),
            ClientError::OutOfRange => false,
            ClientError::NoSpace => (0..self.settings.nodes).any(ill),
            ClientError::Io => {
                let changes =
                    matches!(request.kind, RequestKind::Write { .. } | RequestKind::Flush);
                // A write that began on old data is none of the good ones that they turn out to be.
                let good_here = view.volumes[volume].disk == DiskState::UpToDate
                    && (!changes
                        || (self.checks.good_since.get(&(node, volume)))
                            .is_none_or(|&since| since < request.at))
                    && !ill(node);
                let good_there = (0..self.settings.nodes).any(|peer| {
                    peer != node
                        && view.connected(peer)
                        && view.peer_disk(peer, volume) == DiskState::UpToDate
                        // A write or a flush that ran before a good disk was found there did not reach it.
                        && (!changes
                            || view.mirrors_to(peer, volume)
                                && (self.checks.connected_since.get(&(node, peer)))
                                    .is_some_and(|&since| since < request.at))
                        && !ill(peer)
                });
                // What a peer that lost its power had completed alone may be gone, and what this node's disk had before it failed.
                let since = self.nodes[node].primary_since;
                let branch = &self.branches[request.branch];
                let peers = (0..self.settings.nodes).filter(|&peer| peer != node);
                let lost = matches!(request.kind, RequestKind::Flush)
                    && peers
                        .map(|peer| self.nodes[peer].power_lost_at)
                        .chain([self.nodes[node].volumes[volume].failed_at])
                        .any(|at| at > since && branch.may_tell(at, request.began));
                view.role != Role::Primary
                    || self.is_being_demoted(node)
                    || lost
                    || (!good_here && !good_there)
            }
        };
        if !excuse {
            let text = format!(
                "request {id} on n{node} failed with {error:?} although good data were within reach: {:?}",
                request.kind
            );
            self.fail("acknowledgement", text);
        }
    }
}

fn covered(range: Option<ByteRange>) -> std::ops::Range<Sector> {
    range.map_or(0..Sector::MAX, sectors)
}

fn request_disk_is_durable(world: &World, request: &OpenRequest, range: Option<ByteRange>) -> bool {
    let branch = &world.branches[request.branch];
    let disk = &world.nodes[request.node].volumes[request.volume].disk;
    let image = |sector| disk.sector(sector, View::Durable);
    branch
        .first_bad(covered(range), Standard::Flushed, 0, image)
        .is_none()
}
