//! The volumes as the NBD front sees them: what is exported, opening, requests and their completions.
//!
//! Everything here belongs to the daemon's one thread (`Rc`, no locks). A session opens a volume with [`Volumes::open`], gives it
//! requests with tokens of its own, and takes completions out of the one queue of its [`OpenVolume`]: many requests may be in flight
//! without a task for each. Every submitted request gets exactly one completion, also when the role is lost or the resource goes away.
//! The session bounds what it has in flight; the device's bounds ([`OpenVolume::size`], block sizes) are checked by the engine too.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::fmt;
use std::future::poll_fn;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use qrbd_disk::{BufferMut, Pool};
use qrbd_engine::Operation;
use qrbd_engine::api::ClientError;
use qrbd_engine::units::VolumeNumber;

use crate::payload::EnginePayload;
use crate::resource::{Incoming, Shared};

/// One export.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExportDescription {
    /// Name of the export: `r0` for volume 0, `r0/1` for others.
    pub name: String,
    /// The resource.
    pub resource: String,
    /// The volume's number.
    pub volume: u16,
    /// Size in bytes; 0 while it is not known (no disk here, no peer).
    pub size: u64,
    /// This node's role, DRBD's word.
    pub role: &'static str,
    /// Name of the connected Primary, if another node is.
    pub primary: Option<String>,
    /// Requests must be multiples of this many bytes.
    pub minimum_block: u32,
    /// Requests should be multiples of this many bytes.
    pub preferred_block: u32,
    /// Longest read or write in bytes.
    pub maximum_block: u32,
    /// [`Volumes::open`] would succeed at this moment.
    pub openable: bool,
}

/// Why a volume was not opened.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum OpenRefusalKind {
    /// There is no such export.
    Unknown,
    /// This node may not serve it now (`NBD_REP_ERR_POLICY`).
    Policy,
}

/// A volume that was not opened.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{text}")]
pub struct OpenRefusal {
    /// What to answer.
    pub kind: OpenRefusalKind,
    /// One line for the client: the resource, its role, the Primary if known.
    pub text: String,
}

/// The resources that are up. Cheap to clone.
#[derive(Clone, Default)]
pub struct Volumes {
    resources: Rc<RefCell<BTreeMap<String, Rc<Shared>>>>,
}

impl fmt::Debug for Volumes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set()
            .entries(self.resources.borrow().keys())
            .finish()
    }
}

impl Volumes {
    pub(crate) fn insert(&self, shared: &Rc<Shared>) {
        self.resources
            .borrow_mut()
            .insert(shared.name.to_string(), Rc::clone(shared));
    }

    pub(crate) fn remove(&self, name: &str) {
        self.resources.borrow_mut().remove(name);
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.resources.borrow().is_empty()
    }

    pub(crate) fn get(&self, name: &str) -> Option<Rc<Shared>> {
        self.resources.borrow().get(name).cloned()
    }

    pub(crate) fn all(&self) -> Vec<Rc<Shared>> {
        self.resources.borrow().values().cloned().collect()
    }

    /// Every volume of every resource that is up, by name.
    #[must_use]
    pub fn exports(&self) -> Vec<ExportDescription> {
        self.all()
            .iter()
            .flat_map(|shared| shared.exports())
            .collect()
    }

    /// Opens the volume called `name` (`r0`, `r0/1`; empty: the only one there is).
    ///
    /// # Errors
    /// [`OpenRefusal`] if there is no such volume or this node may not serve it.
    pub fn open(&self, name: &str) -> Result<OpenVolume, OpenRefusal> {
        self.open_as(name, true)
    }

    /// Opens a volume for the kernel, which is no opener itself: whoever opens the kernel's device is.
    ///
    /// # Errors
    /// As [`Volumes::open`].
    pub(crate) fn open_for_kernel(&self, name: &str) -> Result<OpenVolume, OpenRefusal> {
        self.open_as(name, false)
    }

    fn open_as(&self, name: &str, counts: bool) -> Result<OpenVolume, OpenRefusal> {
        let exports = self.exports();
        let known = || {
            let names: Vec<&str> = exports.iter().map(|export| export.name.as_str()).collect();
            if names.is_empty() {
                "no resource is up".to_owned()
            } else {
                format!("there are: {}", names.join(", "))
            }
        };
        let found = match (name, &exports[..]) {
            ("", [only]) => Some(only),
            ("", _) => None,
            (name, exports) => exports.iter().find(|export| {
                export.name == name
                    || (export.volume == 0
                        && name.strip_suffix("/0") == Some(export.resource.as_str()))
            }),
        };
        let Some(export) = found else {
            let text = match name {
                "" => format!("an export must be named, {}", known()),
                _ => format!("no export '{name}', {}", known()),
            };
            return Err(OpenRefusal {
                kind: OpenRefusalKind::Unknown,
                text,
            });
        };
        if !export.openable {
            let text = match &export.primary {
                Some(primary) => {
                    format!(
                        "resource {} is {} on this node; {primary} is Primary",
                        export.resource, export.role
                    )
                }
                None => format!(
                    "resource {} is {} on this node",
                    export.resource, export.role
                ),
            };
            return Err(OpenRefusal {
                kind: OpenRefusalKind::Policy,
                text,
            });
        }
        let shared = self
            .get(&export.resource)
            .expect("an export belongs to a resource that is up");
        let number = VolumeNumber(export.volume);
        if counts {
            shared.change_openers(number, 1);
        }
        let completions = Rc::new(CompletionQueue::default());
        shared.opened(&completions);
        Ok(OpenVolume {
            completions,
            description: export.clone(),
            number,
            shared,
            counts,
        })
    }
}

/// What a request ended with: reads carry the bytes.
pub type Completed = Result<Option<EnginePayload>, ClientError>;

/// The completions of one session, in the order in which requests ended.
#[derive(Default)]
pub struct CompletionQueue {
    done: RefCell<Vec<(u64, Completed)>>,
    waker: Cell<Option<Waker>>,
    closed: Cell<bool>,
}

impl CompletionQueue {
    pub(crate) fn push(&self, token: u64, completed: Completed) {
        self.done.borrow_mut().push((token, completed));
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }

    /// The volume may not be served any more.
    pub(crate) fn close(&self) {
        self.closed.set(true);
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }

    /// True when the volume may not be served any more (the role is lost, the resource goes away): the session is to end. Whoever
    /// waits for completions is woken when it becomes true.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.closed.get()
    }

    /// Moves all completions to the end of `target`; ready if there was at least one, otherwise the task is woken when there is.
    pub fn poll_take(
        &self,
        context: &mut Context<'_>,
        target: &mut Vec<(u64, Completed)>,
    ) -> Poll<()> {
        if self.take(target) > 0 {
            return Poll::Ready(());
        }
        self.waker.set(Some(context.waker().clone()));
        Poll::Pending
    }

    /// Moves all completions to the end of `target` and returns their number. Does not wait.
    pub fn take(&self, target: &mut Vec<(u64, Completed)>) -> usize {
        let mut done = self.done.borrow_mut();
        let count = done.len();
        target.append(&mut done);
        count
    }

    /// Waits until there is a completion to take or the queue is closed. Cancel-safe.
    pub async fn wait(&self) {
        poll_fn(|context| {
            if self.done.borrow().is_empty() && !self.closed.get() {
                self.waker.set(Some(context.waker().clone()));
                Poll::Pending
            } else {
                Poll::Ready(())
            }
        })
        .await;
    }
}

/// A volume that a client has open; counts as an opener until it is dropped, unless it was opened for the kernel.
///
/// Drop it when the client is gone; requests still in flight are carried out, and their completions go nowhere.
pub struct OpenVolume {
    shared: Rc<Shared>,
    number: VolumeNumber,
    description: ExportDescription,
    completions: Rc<CompletionQueue>,
    counts: bool,
}

impl OpenVolume {
    /// What was known when it was opened.
    #[must_use]
    pub fn description(&self) -> &ExportDescription {
        &self.description
    }

    /// Size in bytes when it was opened.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.description.size
    }

    /// Hands a request to the engine. Its completion comes through [`OpenVolume::completions`] with the same token, never from within
    /// this call.
    pub fn submit(&self, token: u64, operation: Operation<EnginePayload>) {
        self.shared.push(Incoming::Request {
            volume: self.number,
            operation,
            token,
            completions: Rc::clone(&self.completions),
        });
    }

    /// Where completions come out.
    #[must_use]
    pub fn completions(&self) -> &Rc<CompletionQueue> {
        &self.completions
    }

    /// A buffer to receive a write's bytes into: [`EnginePayload::from`] it when it is full. At most 32 MiB.
    #[must_use]
    pub fn allocate(&self, length: usize) -> BufferMut {
        self.shared.pool.take(length)
    }

    /// The pool behind [`OpenVolume::allocate`].
    #[must_use]
    pub fn pool(&self) -> &Pool {
        &self.shared.pool
    }
}

impl fmt::Debug for OpenVolume {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "OpenVolume({})", self.description.name)
    }
}

impl Drop for OpenVolume {
    fn drop(&mut self) {
        if self.counts {
            self.shared.change_openers(self.number, -1);
        }
    }
}
