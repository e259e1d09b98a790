//! One resource that is up: its owner, the one task that drives its engine, and the handle that everybody else has on it.
//!
//! The owner is a single future: each time it is polled it gathers what came in (client requests, commands, disk completions, the
//! peer's frames, the clock), gives it all to the engine, carries out the effects, and hands the disk its operations in one call. It
//! decides nothing. Invariants: the core is borrowed only between two points of waiting, never across one; a request or command that
//! was taken in gets its one answer, also when the resource ends.

mod core;
mod disks;
mod marks;
mod network;
mod report;

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::future::Future;
use std::pin::{Pin, pin};
use std::rc::{Rc, Weak};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use qrbd_control::generations::GenerationReport;
use qrbd_control::status::ResourceStatus;
use qrbd_disk::{Pool, UringReactor};
use qrbd_engine::api::{ClientError, FenceAnswer, FenceId, HandlerId, Notice, SessionId};
use qrbd_engine::state::Refusal;
use qrbd_engine::status::Status;
use qrbd_engine::units::{NodeId, VolumeNumber};
use qrbd_engine::{Command, Operation};
use tokio::sync::{broadcast, oneshot};
use tokio::time::Sleep;

pub(crate) use self::core::Core;
pub(crate) use network::KeySource;

use crate::attach::Attached;
use crate::busy_wait::{self, BusyWait, Waits};
use crate::clock::Clock;
use crate::handlers::Handlers;
use crate::payload::EnginePayload;
use crate::plan::{PeerPlan, ResourcePlan};
use crate::volumes::{CompletionQueue, ExportDescription};

/// Rounds of one poll after which the other tasks of the thread get their turn.
const ROUNDS_PER_TURN: usize = 32;
/// How long each step of the end of a resource may take.
const END_PATIENCE: Duration = Duration::from_secs(2);
/// How often it is looked at.
const END_STEP: Duration = Duration::from_millis(2);
/// State changes that a slow listener may fall behind.
const NOTICES_KEPT: usize = 256;

/// What others give to the owner.
pub(crate) enum Incoming {
    /// A client's request.
    Request {
        volume: VolumeNumber,
        operation: Operation<EnginePayload>,
        token: u64,
        completions: Rc<CompletionQueue>,
    },
    /// So many clients have the volume open now.
    Openers { volume: VolumeNumber, count: u32 },
    /// The `fence-peer` handler ended.
    PeerFenced {
        peer: NodeId,
        id: FenceId,
        answer: FenceAnswer,
    },
    /// A peer's machine says that nobody listens there.
    NobodyListens { peer: NodeId, session: SessionId },
    /// Another handler ended whose answer the engine waits for.
    HandlerAnswered {
        id: HandlerId,
        exit_code: Option<i32>,
    },
    /// An administrator's command.
    Command {
        command: Command,
        reply: oneshot::Sender<Result<(), Refusal>>,
    },
}

/// The handle on a resource that is up. One thread's.
pub(crate) struct Shared {
    pub(crate) name: Rc<str>,
    pub(crate) pool: Pool,
    inbox: RefCell<Vec<Incoming>>,
    waker: Cell<Option<Waker>>,
    openers: RefCell<BTreeMap<VolumeNumber, u32>>,
    /// Queues of the clients that have a volume open.
    queues: RefCell<Vec<Weak<CompletionQueue>>>,
    core: RefCell<Core>,
    notices: broadcast::Sender<Notice>,
    stopped: Cell<bool>,
    /// The disks that were attached since the daemon was started: how often, and the identity of the last one.
    attached: RefCell<BTreeMap<VolumeNumber, (u32, u64)>>,
}

impl Shared {
    /// A resource without disks and connections; [`Shared::owner`] must be run.
    pub(crate) fn new(
        plan: ResourcePlan,
        clock: Clock,
        seed: [u64; 2],
        reactor: UringReactor,
        handlers: Handlers,
        key: KeySource,
    ) -> Rc<Shared> {
        let name: Rc<str> = Rc::from(plan.name.as_str());
        let pool = reactor.pool().clone();
        let notices = broadcast::Sender::new(NOTICES_KEPT);
        Rc::new_cyclic(|weak| Shared {
            core: RefCell::new(Core::new(
                plan,
                clock,
                seed,
                reactor,
                handlers,
                key,
                notices.clone(),
                weak.clone(),
            )),
            name,
            pool,
            inbox: RefCell::default(),
            waker: Cell::default(),
            openers: RefCell::default(),
            queues: RefCell::default(),
            notices,
            stopped: Cell::new(false),
            attached: RefCell::default(),
        })
    }

    /// The future that drives the resource until [`Shared::stop`].
    pub(crate) fn owner(self: &Rc<Self>, busy_wait: Rc<BusyWait>) -> Owner {
        Owner {
            shared: Rc::clone(self),
            timer: None,
            late_flush: false,
            waits: Waits::new(busy_wait),
        }
    }

    /// Gives something to the owner.
    pub(crate) fn push(&self, incoming: Incoming) {
        if self.stopped.get() {
            if let Incoming::Request {
                token, completions, ..
            } = incoming
            {
                completions.push(token, Err(ClientError::NotPrimary));
            }
            return;
        }
        self.inbox.borrow_mut().push(incoming);
        self.wake();
    }

    /// Has the owner look around.
    pub(crate) fn wake(&self) {
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }

    /// A client opened (1) or closed (-1) a volume.
    pub(crate) fn change_openers(&self, volume: VolumeNumber, change: i32) {
        let mut openers = self.openers.borrow_mut();
        let count = openers.entry(volume).or_default();
        *count = count
            .checked_add_signed(change)
            .expect("closed as often as opened");
        let count = *count;
        drop(openers);
        self.push(Incoming::Openers { volume, count });
    }

    /// A client opened a volume; its completions go to this queue.
    pub(crate) fn opened(&self, queue: &Rc<CompletionQueue>) {
        let mut queues = self.queues.borrow_mut();
        queues.retain(|queue| queue.strong_count() > 0);
        queues.push(Rc::downgrade(queue));
    }

    /// The clients that have a volume open are to go.
    fn close_clients(&self) {
        self.queues
            .borrow_mut()
            .drain(..)
            .filter_map(|queue| queue.upgrade())
            .for_each(|queue| queue.close());
    }

    /// Carries out a command.
    ///
    /// # Errors
    /// The engine's refusal; [`Refusal::Unknown`] if the resource ends meanwhile.
    pub(crate) async fn command(&self, command: Command) -> Result<(), Refusal> {
        let (reply, answer) = oneshot::channel();
        self.push(Incoming::Command { command, reply });
        answer.await.unwrap_or(Err(Refusal::Unknown))
    }

    /// Takes a disk that was opened and prepared into use.
    ///
    /// # Errors
    /// The engine's refusal; the disk is closed then.
    pub(crate) async fn attach(
        &self,
        volume: VolumeNumber,
        attached: Attached,
    ) -> Result<(), Refusal> {
        let image = Box::new(attached.image);
        let device_uuid = image.superblock.device_uuid;
        self.core.borrow_mut().use_disk(
            volume,
            attached.data,
            attached.meta,
            &image,
            attached.last_known,
        )?;
        let result = self.command(Command::Attach { volume, image }).await;
        match result {
            Ok(()) => {
                let mut attached = self.attached.borrow_mut();
                let (count, uuid) = attached.entry(volume).or_default();
                *count += 1;
                *uuid = device_uuid;
            }
            Err(_) => self.core.borrow_mut().drop_disk(volume),
        }
        result
    }

    /// The engine's state.
    pub(crate) fn status(&self) -> Status {
        self.core.borrow().engine_status()
    }

    /// Identity of the disk that the volume had last; `None` if it had none since the daemon was started.
    pub(crate) fn device_uuid(&self, volume: VolumeNumber) -> Option<u64> {
        self.attached.borrow().get(&volume).map(|(_, uuid)| *uuid)
    }

    /// The generation of the data on the volume's disk; 0 without a disk.
    pub(crate) fn current_generation(&self, volume: VolumeNumber) -> u64 {
        self.status()
            .volumes
            .iter()
            .find(|status| status.number == volume)
            .and_then(|status| status.identifiers.as_ref())
            .map_or(0, |identifiers| identifiers.current().0)
    }

    /// True if this node agreed that another one becomes Primary, since it was Primary itself.
    pub(crate) fn agreed_to_a_successor(&self) -> bool {
        self.core.borrow().agreed_to_a_successor()
    }

    /// True while a comparison with a peer is under way whose outcome may make this node's generation another one.
    pub(crate) fn compares(&self) -> bool {
        use qrbd_engine::state::ReplicationState as State;
        self.status().peers.iter().any(|peer| {
            peer.devices.iter().any(|device| {
                matches!(
                    device.replication,
                    State::StartingSyncT | State::WFBitMapT | State::WFSyncUUID
                )
            })
        })
    }

    /// True if the data of the volume are what a Primary here had completed before the daemon was started, given the same generation:
    /// no other node can have been Primary (alone it would have made a new generation, with this one it would have asked), and a
    /// survivor's copy that replaced this disk's lacks nothing that was completed.
    pub(crate) fn data_is_as_left(&self, volume: VolumeNumber) -> bool {
        let times = self.attached.borrow().get(&volume).map(|(times, _)| *times);
        let core = self.core.borrow();
        times == Some(1) && !core.agreed_to_another() && core.copies_are_whole(volume)
    }

    /// DRBD's status.
    pub(crate) fn report(&self) -> ResourceStatus {
        report::status(&self.core.borrow())
    }

    /// Generation identifiers of the attached volumes.
    pub(crate) fn generations(&self) -> Vec<GenerationReport> {
        report::generations(&self.core.borrow())
    }

    /// What the NBD front may show.
    pub(crate) fn exports(&self) -> Vec<ExportDescription> {
        report::exports(&self.core.borrow())
    }

    /// What the resource was configured with.
    pub(crate) fn plan(&self) -> ResourcePlan {
        self.core.borrow().plan.clone()
    }

    /// From now on another plan of the same shape counts; connections are changed by [`Shared::reconfigure_peer`].
    pub(crate) fn replace_plan(&self, plan: ResourcePlan) {
        self.core.borrow_mut().replace_plan(plan);
    }

    /// Other options count for a peer; `moved`: it is reached in another way from the next attempt on.
    ///
    /// # Errors
    /// [`Refusal::InTransientState`] if that is not possible while the connection stands.
    pub(crate) fn reconfigure_peer(&self, peer: &PeerPlan, moved: bool) -> Result<(), Refusal> {
        self.core.borrow_mut().reconfigure_peer(peer, moved)?;
        self.wake();
        Ok(())
    }

    /// Why there is no connection to a peer, if something other than the peer's absence is known.
    pub(crate) fn trouble_with(&self, peer: NodeId) -> Option<network::Trouble> {
        self.core.borrow().network.trouble_with(peer)
    }

    /// State changes and decisions from now on.
    pub(crate) fn listen(&self) -> broadcast::Receiver<Notice> {
        self.notices.subscribe()
    }

    /// Ends the owner: disks are closed, sessions ended, requests and commands answered with an error. Returns when the addresses
    /// are free again. A resource is demoted, disconnected and detached before; where that was refused, it ends as by a crash.
    pub(crate) async fn stop(&self) {
        // What was said to a peer last is given its time to arrive.
        self.core.borrow_mut().leave();
        patiently(|| !self.core.borrow().network.has_sessions()).await;
        self.stopped.set(true);
        self.wake();
        self.close_clients();
        let incoming = std::mem::take(&mut *self.inbox.borrow_mut());
        for item in incoming {
            if let Incoming::Request {
                token, completions, ..
            } = item
            {
                completions.push(token, Err(ClientError::NotPrimary));
            }
        }
        let endpoints = self.core.borrow_mut().end();
        for endpoint in endpoints {
            let address = endpoint.local_address();
            endpoint.shutdown().await;
            // The socket goes with the last task that knows it.
            patiently(|| std::net::UdpSocket::bind(address).is_ok()).await;
        }
    }

    /// A session that was to be closed has sent what it had to send.
    fn finish_close(&self, peer: NodeId, session: qrbd_transport::SessionId) {
        let mut core = self.core.borrow_mut();
        let now = core.now();
        core.network.finish_close(now, peer, session);
        drop(core);
        self.wake();
    }
}

/// Waits until something is true, at most [`END_PATIENCE`].
async fn patiently(is_done: impl Fn() -> bool) {
    let deadline = tokio::time::Instant::now() + END_PATIENCE;
    while !is_done() && tokio::time::Instant::now() < deadline {
        tokio::time::sleep(END_STEP).await;
    }
}

/// The future that drives a resource.
pub(crate) struct Owner {
    shared: Rc<Shared>,
    timer: Option<Pin<Box<Sleep>>>,
    /// The disks are to be flushed after the network's tasks ran.
    late_flush: bool,
    waits: Waits,
}

impl Future for Owner {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let this = &mut *self;
        let shared = &this.shared;
        if shared.stopped.get() {
            return Poll::Ready(());
        }
        let mut core = shared.core.borrow_mut();
        core.stop_waiting_for_disks();
        busy_wait::something_happens();
        if std::mem::take(&mut this.late_flush) {
            core.flush_disks();
        }
        for _ in 0..ROUNDS_PER_TURN {
            // Registered before looking, so that nothing is missed.
            shared.waker.set(Some(context.waker().clone()));
            core.take_incoming(&mut shared.inbox.borrow_mut());
            let worked = core.round(context);
            if core.take_role_change() && !report::is_openable(&core) {
                shared.close_clients();
            }
            if worked {
                this.waits.worked(core.under_way());
                continue;
            }
            if core.network_goes_first() {
                this.late_flush = true;
                return after_the_others(context);
            }
            core.flush_disks();
            // Nothing left to do: sleep until the disk, the network, a client or the clock has something.
            if core.poll_disk(context).is_ready() {
                continue;
            }
            if core.is_waited_for() {
                this.waits.idle(core.under_way());
            }
            let Some(deadline) = core.deadline() else {
                return Poll::Pending;
            };
            let timer = this
                .timer
                .get_or_insert_with(|| Box::pin(tokio::time::sleep_until(deadline)));
            // Deadlines move away with every frame; a timer that fires too early is cheaper than one that is set anew each time.
            if timer.is_elapsed() || deadline < timer.deadline() {
                timer.as_mut().reset(deadline);
            }
            // When it fired, the next round finds out what for.
            if timer.as_mut().poll(context).is_pending() {
                return Poll::Pending;
            }
        }
        core.flush_disks();
        context.waker().wake_by_ref();
        Poll::Pending
    }
}

/// Has the task polled again when every task that is ready now had its turn.
fn after_the_others(context: &mut Context<'_>) -> Poll<()> {
    pin!(tokio::task::yield_now()).poll(context)
}
