//! The requests of one session that the engine has: which token belongs to which, and long ones in parts.
//!
//! The engine takes at most `MAX_REQUEST_BYTES` at once, while TRIM and WRITE_ZEROES may be just under 4 GiB. Such a request
//! is given in parts, a few at a time; after the first failure no further part is given, and its error is the reply's.
//!
//! Invariants: a request ends exactly once, after all parts that were given have completed; tokens of open parts are
//! unique within the session.

use qrbd_engine::Operation;
use qrbd_engine::api::ClientError;
use qrbd_engine::limits::MAX_REQUEST_BYTES;
use qrbd_engine::units::ByteRange;
use qrbd_nbd::{Command, Request};

use crate::payload::EnginePayload;

/// A token: the slot in the low half, a counter in the high half.
const SLOT_BITS: u32 = 32;

struct Pending {
    request: Request,
    /// First byte that no part was given for.
    next: u64,
    /// Parts at the engine.
    open_parts: u32,
    error: Option<ClientError>,
}

/// What a completion leads to.
#[derive(Debug)]
pub enum Progress {
    /// Other parts are open; this one may be given now.
    Continue(Option<(u64, Operation<EnginePayload>)>),
    /// The request is over.
    Finished(Request, Result<(), ClientError>),
}

#[derive(Default)]
pub struct InFlight {
    slots: Vec<Option<Pending>>,
    free: Vec<u32>,
    counter: u32,
}

impl InFlight {
    pub fn is_empty(&self) -> bool {
        self.free.len() == self.slots.len()
    }

    /// A request that the engine takes in one piece.
    pub fn begin(&mut self, request: Request) -> u64 {
        let end = request.end();
        let slot = self.insert(Pending {
            request,
            next: end,
            open_parts: 1,
            error: None,
        });
        self.token(slot)
    }

    /// A TRIM or WRITE_ZEROES: calls `submit` with the parts to be given now, at most `parallel`.
    pub fn begin_parts(
        &mut self,
        request: Request,
        parallel: u32,
        mut submit: impl FnMut(u64, Operation<EnginePayload>),
    ) {
        let slot = self.insert(Pending {
            request,
            next: request.offset,
            open_parts: 0,
            error: None,
        });
        for _ in 0..parallel.max(1) {
            let Some((token, operation)) = self.next_part(slot) else {
                break;
            };
            submit(token, operation);
        }
    }

    /// Books a completion.
    ///
    /// # Panics
    /// On a token that is not open.
    pub fn complete(&mut self, token: u64, result: Result<(), ClientError>) -> Progress {
        let slot = token as u32;
        let pending = self.slots[slot as usize]
            .as_mut()
            .expect("a request completes once");
        pending.open_parts -= 1;
        if let Err(error) = result {
            pending.error.get_or_insert(error);
        }
        if let Some(part) = self.next_part(slot) {
            return Progress::Continue(Some(part));
        }
        let pending = &mut self.slots[slot as usize];
        if pending
            .as_ref()
            .is_some_and(|pending| pending.open_parts > 0)
        {
            return Progress::Continue(None);
        }
        let pending = pending.take().expect("looked up above");
        self.free.push(slot);
        Progress::Finished(pending.request, pending.error.map_or(Ok(()), Err))
    }

    fn insert(&mut self, pending: Pending) -> u32 {
        if let Some(slot) = self.free.pop() {
            self.slots[slot as usize] = Some(pending);
            return slot;
        }
        self.slots.push(Some(pending));
        self.slots.len() as u32 - 1
    }

    fn token(&mut self, slot: u32) -> u64 {
        self.counter = self.counter.wrapping_add(1);
        u64::from(self.counter) << SLOT_BITS | u64::from(slot)
    }

    fn next_part(&mut self, slot: u32) -> Option<(u64, Operation<EnginePayload>)> {
        let pending = self.slots[slot as usize].as_mut()?;
        let rest = pending.request.end() - pending.next;
        if rest == 0 || pending.error.is_some() {
            return None;
        }
        let length = rest.min(u64::from(MAX_REQUEST_BYTES)) as u32;
        let range = ByteRange::new(pending.next, length);
        let fua = pending.request.fua;
        let operation = match pending.request.command {
            Command::Trim => Operation::Discard { range, fua },
            Command::WriteZeroes { no_hole, .. } => Operation::WriteZeroes {
                range,
                may_unmap: !no_hole,
                fua,
            },
            other => unreachable!("{other:?} is given in one piece"),
        };
        pending.next += u64::from(length);
        pending.open_parts += 1;
        Some((self.token(slot), operation))
    }
}
