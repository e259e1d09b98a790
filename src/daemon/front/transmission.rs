//! The loop of one session: completions to replies, replies to the socket, bytes to requests, in this order.
//!
//! Everything is one future that is polled when any of the three has something new; it goes on until none has.
//!
//! How a session ends:
//! - the client disconnects, or closes: nothing more is read, what is in flight is carried out and answered;
//! - the volume is taken away, or the server stops: what is in flight is answered as it ends, requests that were sent
//!   meanwhile get `ESHUTDOWN`, then the connection is closed; all this for `Limits::farewell` at most;
//! - the connection is handed over: requests that have begun are read to their end and answered, and no byte of the next one is taken, so
//!   that another process may go on with the same socket;
//! - the connection is to be closed although the client goes on with another one later: replies are held back until the client, who waits for
//!   them, sends nothing more; then it is told that nothing more is read, gets all replies at once, and the connection is closed. So it
//!   never believes a request to be under way that is lost, unless it does not fall silent within `Limits::silence_patience`;
//! - the connection breaks: replies go nowhere, what is in flight is awaited, since the volume is in use until then.

use std::cell::Cell;
use std::future::Future;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use qrbd_engine::Operation;
use qrbd_engine::api::ClientError;
use qrbd_engine::units::ByteRange;
use qrbd_nbd::{
    Answer, Command, Errno, Extent, Outcome, Received, Request, Session, TransmissionError,
};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep};

use crate::payload::EnginePayload;
use crate::volumes::Completed;

use super::backend::Export;
use super::in_flight::{InFlight, Progress};
use super::intake::{Event, Intake};
use super::outbox::{Charge, Outbox, SLICES};
use super::replies::{STOPPING, error_of};
use super::{Common, Limits, SCRATCH_BYTES};

/// What a session that stands in the way of the daemon's end is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Departure {
    /// End between two requests: somebody else goes on with the socket.
    HandOver,
    /// Close the socket so that nothing is lost on it: nobody goes on with it, but the client with another one.
    Close,
}

/// How a session came to its end; for the log.
#[derive(Debug, thiserror::Error)]
pub enum End {
    /// The client disconnected or closed.
    #[error("the client left")]
    ClientLeft,
    /// The volume was taken away, or the server stops.
    #[error("the volume is not served any more")]
    Stopped,
    /// The socket stands between two requests and may be used by somebody else.
    #[error("the connection is handed over")]
    HandedOver,
    /// The session was asked to close, and nothing was lost on the socket.
    #[error("the connection is closed with everything answered")]
    Closed,
    /// The connection failed.
    #[error("{0}")]
    Broken(#[from] io::Error),
    /// The client sends something else than requests.
    #[error("{0}")]
    Garbage(#[from] TransmissionError),
}

/// Until the first of both has passed.
struct Holding {
    /// The client's silence so far.
    silence: Pin<Box<Sleep>>,
    /// The patience with it.
    patience: Pin<Box<Sleep>>,
}

/// One session after the handshake. Ready when it is over and nothing of it is in flight.
pub struct Transmission<S, X> {
    stream: S,
    export: X,
    session: Session,
    common: Rc<Common>,
    intake: Intake,
    /// A header whose request may not begin yet, see `Limits`.
    held: Option<Received>,
    in_flight: InFlight,
    outbox: Outbox,
    charge: Charge,
    /// Bytes read in this poll.
    read_now: usize,
    completions: Vec<(u64, Completed)>,
    /// Set once when the session is to end; it then only finishes what it has.
    end: Option<End>,
    /// No request will be read any more.
    deaf: bool,
    /// Nothing can be written any more.
    mute: bool,
    stop: Option<Pin<Box<dyn Future<Output = ()>>>>,
    farewell: Option<Pin<Box<Sleep>>>,
    departure: Option<Pin<Box<dyn Future<Output = Departure>>>>,
    /// The session is to be handed over: nothing of a further request is read.
    leaving: bool,
    /// Tells the client's end of the socket that nothing more is read here. What was sent before is still there.
    stop_receiving: Option<Box<dyn FnOnce()>>,
    /// Replies are held back.
    holding: Option<Holding>,
    /// The client was silent when it was told that nothing more is read.
    silent: bool,
    /// The size of the volume as it is now, for a client that can be told of a change.
    size: Option<Rc<Cell<u64>>>,
}

impl<S, X> Transmission<S, X>
where
    S: AsyncRead + AsyncWrite + Unpin,
    X: Export,
{
    /// `stop` tells that the server stops.
    pub fn new(
        common: Rc<Common>,
        stream: S,
        session: Session,
        export: X,
        stop: impl Future<Output = ()> + 'static,
    ) -> Self {
        Self {
            stream,
            export,
            session,
            common,
            intake: Intake::new(),
            held: None,
            in_flight: InFlight::default(),
            outbox: Outbox::default(),
            charge: Charge::default(),
            read_now: 0,
            completions: Vec::new(),
            end: None,
            deaf: false,
            mute: false,
            stop: Some(Box::pin(stop)),
            farewell: None,
            departure: None,
            leaving: false,
            stop_receiving: None,
            holding: None,
            silent: false,
            size: None,
        }
    }

    /// The same with a signal after which the session ends as [`End::HandedOver`] once it stands between two requests, or as
    /// [`End::Closed`]. `stop_receiving` shuts the socket down for what comes.
    pub(crate) fn until(
        mut self,
        departure: impl Future<Output = Departure> + 'static,
        stop_receiving: impl FnOnce() + 'static,
    ) -> Self {
        self.departure = Some(Box::pin(departure));
        self.stop_receiving = Some(Box::new(stop_receiving));
        self
    }

    /// The same for a client that is told of changes of the size by other means: requests are checked against the size that is set.
    pub fn with_size(mut self, size: Rc<Cell<u64>>) -> Self {
        self.size = Some(size);
        self
    }

    /// Takes over a changed size.
    fn follow_size(&mut self) {
        if let Some(size) = &self.size
            && size.get() != self.session.export().size()
        {
            // A size that the protocol cannot express changes nothing: requests stay within the old one.
            let _ = self.session.set_size(size.get());
        }
    }

    /// No request is half here and none waits.
    fn is_between_requests(&self) -> bool {
        self.intake.is_between_requests() && !self.intake.has_kept() && self.held.is_none()
    }

    /// Completed requests become replies.
    fn poll_completions(&mut self, context: &mut Context<'_>) -> bool {
        let mut completions = std::mem::take(&mut self.completions);
        let any = self
            .export
            .poll_completions(context, &mut completions)
            .is_ready();
        for (token, completed) in completions.drain(..) {
            self.complete(token, completed);
        }
        self.completions = completions;
        if self.export.is_closed() {
            self.stop_serving();
        }
        any
    }

    fn complete(&mut self, token: u64, completed: Completed) {
        let (result, data) = match completed {
            Ok(data) => (Ok(()), data),
            Err(error) => (Err(error), None),
        };
        let (request, result) = match self.in_flight.complete(token, result) {
            Progress::Finished(request, result) => (request, result),
            Progress::Continue(part) => {
                if let Some((token, operation)) = part {
                    self.export.submit(token, operation);
                }
                return;
            }
        };
        match result {
            Ok(()) => self.succeed(&request, data),
            Err(error) => {
                let (errno, text) = error_of(error, request.command);
                let reply = self.session.error(request.cookie, errno, text);
                self.reply(&reply, charge_of(&request));
                if error == ClientError::NotPrimary {
                    self.stop_serving();
                }
            }
        }
    }

    fn succeed(&mut self, request: &Request, data: Option<EnginePayload>) {
        let charge = charge_of(request);
        if request.command != Command::Read {
            let head = self.session.done(request.cookie);
            return self.reply(&head, charge);
        }
        let data = data.expect("a read completes with data");
        assert_eq!(
            data.as_ref().len(),
            request.length as usize,
            "a read completes with all its data"
        );
        let head = self.session.read_head(request);
        // The charge goes with the data, which is written last.
        self.reply(&head, Charge::default());
        if self.mute {
            self.release(charge);
        } else {
            self.outbox.push_data(data, charge);
        }
    }

    fn reply(&mut self, bytes: &[u8], charge: Charge) {
        if self.mute {
            self.release(charge);
        } else {
            self.outbox.push(bytes, charge);
        }
    }

    fn release(&mut self, freed: Charge) {
        self.charge.requests -= freed.requests;
        self.charge.bytes -= freed.bytes;
        self.common.budget.give_back(freed.bytes);
    }

    /// Writes what there is in one call.
    fn poll_write(&mut self, context: &mut Context<'_>) -> bool {
        if self.outbox.is_empty() || self.holding.is_some() {
            return false;
        }
        let mut slices = [IoSlice::new(&[]); SLICES];
        let count = self.outbox.slices(&mut slices);
        let stream = Pin::new(&mut self.stream);
        match stream.poll_write_vectored(context, &slices[..count]) {
            Poll::Pending => false,
            Poll::Ready(Ok(0)) => {
                self.broken(io::ErrorKind::WriteZero.into());
                true
            }
            Poll::Ready(Ok(written)) => {
                let freed = self.outbox.advance(written);
                self.release(freed);
                true
            }
            Poll::Ready(Err(error)) => {
                self.broken(error);
                true
            }
        }
    }

    /// Reads once, or continues with what was read before.
    fn poll_read(&mut self, context: &mut Context<'_>) -> bool {
        if let Some(header) = self.held.take() {
            if !self.admits(context, &header) {
                self.held = Some(header);
                return false;
            }
            self.take_header(header);
            return true;
        }
        if self.deaf {
            return false;
        }
        if self.intake.has_kept() {
            let kept = self.intake.take_kept();
            self.feed(context, &kept);
            return true;
        }
        if self.leaving && self.intake.is_between_requests() {
            return false;
        }
        match self.poll_read_stream(context) {
            Poll::Pending => false,
            Poll::Ready(Ok(0)) => {
                // A request that was cut off here was not sent, as the client sees it.
                self.finish(match self.silent {
                    true => End::Closed,
                    false => End::ClientLeft,
                });
                true
            }
            Poll::Ready(Ok(count)) => {
                self.read_now += count;
                true
            }
            Poll::Ready(Err(error)) => {
                self.broken(error);
                true
            }
        }
    }

    fn poll_read_stream(&mut self, context: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let stream = Pin::new(&mut self.stream);
        if let Some(space) = self.intake.direct() {
            let mut buffer = ReadBuf::new(space);
            ready!(stream.poll_read(context, &mut buffer))?;
            let count = buffer.filled().len();
            self.intake.advance_direct(count);
            self.feed(context, &[]);
            return Poll::Ready(Ok(count));
        }
        let common = Rc::clone(&self.common);
        let mut scratch = common.scratch.borrow_mut();
        let length = match self.leaving {
            true => self.intake.missing().min(scratch.len()),
            false => self.intake.read_ahead(scratch.len()),
        };
        let mut buffer = ReadBuf::new(&mut scratch[..length]);
        ready!(stream.poll_read(context, &mut buffer))?;
        let input = buffer.filled();
        self.feed(context, input);
        Poll::Ready(Ok(input.len()))
    }

    /// Takes requests out of the bytes until they are used up, or the session has enough in flight.
    fn feed(&mut self, context: &mut Context<'_>, mut input: &[u8]) {
        while !self.deaf {
            match self.intake.next(&mut input, &self.session) {
                Ok(Event::NeedInput) => return,
                Ok(Event::Header(Received::Disconnect)) => self.finish(End::ClientLeft),
                Ok(Event::Header(header)) => {
                    if !self.admits(context, &header) {
                        self.held = Some(header);
                        self.intake.keep(input);
                        return;
                    }
                    self.take_header(header);
                }
                Ok(Event::Payload(request, buffer)) => self.execute_write(request, buffer),
                Ok(Event::Drained(answer)) => self.answer(&answer),
                Err(error) => self.finish(End::Garbage(error)),
            }
        }
    }

    /// Whether a request may begin; if not, a completion, a write or the budget wakes the task.
    fn admits(&self, context: &mut Context<'_>, header: &Received) -> bool {
        if self.charge.requests == 0 {
            return true;
        }
        let limits = &self.common.limits;
        let bytes = match header {
            Received::Request(request) => charge_of(request).bytes,
            Received::Answer(_) | Received::Disconnect => 0,
        };
        self.charge.requests < limits.session_requests
            && (bytes == 0 || self.charge.bytes + bytes <= limits.session_bytes)
            && self.common.budget.has_room(context, bytes)
    }

    fn take_header(&mut self, header: Received) {
        match header {
            Received::Request(request) if self.end.is_some() => {
                let outcome = Outcome::Refused {
                    errno: Errno::Eshutdown,
                    text: STOPPING,
                };
                self.refuse(Answer {
                    cookie: request.cookie,
                    outcome,
                    drain: request.payload_length(),
                });
            }
            Received::Request(request) => {
                let charge = charge_of(&request);
                self.charge.requests += charge.requests;
                self.charge.bytes += charge.bytes;
                self.common.budget.take(charge.bytes);
                if request.command == Command::Write {
                    let buffer = self.export.allocate(request.length as usize);
                    self.intake.begin_payload(request, buffer);
                } else {
                    self.execute(request);
                }
            }
            Received::Answer(answer) => self.refuse(answer),
            Received::Disconnect => unreachable!("handled where it was read"),
        }
    }

    fn refuse(&mut self, answer: Answer) {
        self.charge.requests += 1;
        if answer.drain > 0 {
            self.intake.begin_drain(answer);
        } else {
            self.answer(&answer);
        }
    }

    fn answer(&mut self, answer: &Answer) {
        let reply = self.session.answer(answer);
        self.reply(
            &reply,
            Charge {
                requests: 1,
                bytes: 0,
            },
        );
    }

    fn execute_write(&mut self, request: Request, buffer: qrbd_disk::BufferMut) {
        if self.end.is_some() {
            let reply = self
                .session
                .error(request.cookie, Errno::Eshutdown, STOPPING);
            return self.reply(&reply, charge_of(&request));
        }
        let operation = Operation::Write {
            range: ByteRange::new(request.offset, request.length),
            payload: buffer.into(),
            fua: request.fua,
        };
        self.submit(request, operation);
    }

    fn execute(&mut self, request: Request) {
        match request.command {
            Command::Read => {
                let range = ByteRange::new(request.offset, request.length);
                self.submit(request, Operation::Read(range));
            }
            Command::Flush => self.submit(request, Operation::Flush),
            Command::WriteZeroes {
                fast_zero: true, ..
            } if !self.export.zeroes_fast() => {
                let text = "zeroes are not faster than writes here";
                let reply = self.session.error(request.cookie, Errno::Enotsup, text);
                self.reply(&reply, charge_of(&request));
            }
            Command::Trim | Command::WriteZeroes { .. } => {
                let (export, parallel) = (&self.export, self.common.limits.parallel_parts);
                self.in_flight
                    .begin_parts(request, parallel, |token, operation| {
                        export.submit(token, operation);
                    });
            }
            // A hint; the disks' caches are not ours to fill.
            Command::Cache => {
                let head = self.session.done(request.cookie);
                self.reply(&head, charge_of(&request));
            }
            Command::BlockStatus { .. } => {
                let extent = Extent {
                    length: request.length,
                    status: 0,
                };
                let reply = self.session.block_status(&request, &[extent]);
                self.reply(&reply, charge_of(&request));
            }
            Command::Write => unreachable!("executed when its payload is complete"),
        }
    }

    fn submit(&mut self, request: Request, operation: Operation<EnginePayload>) {
        let token = self.in_flight.begin(request);
        self.export.submit(token, operation);
    }

    /// Nothing more is read. What is in flight is answered, unless the connection is broken.
    fn finish(&mut self, end: End) {
        self.deaf = true;
        // A payload that will never be complete.
        self.intake = Intake::new();
        self.held = None;
        self.end.get_or_insert(end);
        self.start_farewell();
    }

    fn broken(&mut self, error: io::Error) {
        // Replies are lost after all.
        self.end.take_if(|end| matches!(end, End::Closed));
        self.finish(End::Broken(error));
        self.silence();
    }

    /// Gives up on writing.
    fn silence(&mut self) {
        self.mute = true;
        let freed = self.outbox.clear();
        self.release(freed);
    }

    /// Requests are answered with `ESHUTDOWN` from now on.
    fn stop_serving(&mut self) {
        if self.end.is_none() {
            self.end = Some(End::Stopped);
            self.start_farewell();
        }
    }

    fn start_farewell(&mut self) {
        let time = self.common.limits.farewell;
        self.farewell
            .get_or_insert_with(|| Box::pin(tokio::time::sleep(time)));
    }

    /// The server's wish to stop, and the end of the client's patience.
    fn poll_signals(&mut self, context: &mut Context<'_>) -> bool {
        let mut any = false;
        if let Some(stop) = &mut self.stop
            && stop.as_mut().poll(context).is_ready()
        {
            self.stop = None;
            self.stop_serving();
            any = true;
        }
        if let Some(departure) = &mut self.departure
            && let Poll::Ready(departure) = departure.as_mut().poll(context)
        {
            self.departure = None;
            match departure {
                Departure::HandOver => self.leaving = true,
                Departure::Close => {
                    let Limits {
                        silence,
                        silence_patience,
                        ..
                    } = self.common.limits;
                    self.holding = Some(Holding {
                        silence: Box::pin(tokio::time::sleep(silence)),
                        patience: Box::pin(tokio::time::sleep(silence_patience)),
                    });
                }
            }
            any = true;
        }
        any |= self.poll_silence(context);
        if let Some(farewell) = &mut self.farewell
            && !self.mute
            && farewell.as_mut().poll(context).is_ready()
        {
            let end = io::ErrorKind::TimedOut.into();
            self.broken(end);
            any = true;
        }
        any
    }

    /// Replies are held back no longer when the client waits for them, or has had its time.
    fn poll_silence(&mut self, context: &mut Context<'_>) -> bool {
        let idle = self.in_flight.is_empty() && self.is_between_requests();
        let Some(Holding { silence, patience }) = &mut self.holding else {
            return false;
        };
        if !idle || self.read_now > 0 {
            silence
                .as_mut()
                .reset(Instant::now() + self.common.limits.silence);
        }
        let silent = silence.as_mut().poll(context).is_ready();
        let over = self.end.is_some() || patience.as_mut().poll(context).is_ready();
        if !silent && !over {
            return false;
        }
        self.holding = None;
        self.silent = silent;
        if let Some(stop_receiving) = self.stop_receiving.take() {
            stop_receiving();
        }
        true
    }

    /// Called when nothing is left to do at the moment.
    fn is_over(&self) -> bool {
        let idle = self.in_flight.is_empty() && self.outbox.is_empty();
        let heard = self.deaf || (self.intake.is_between_requests() && self.held.is_none());
        let abandoned = self.mute && matches!(self.end, Some(End::Stopped));
        self.end.is_some() && ((idle && heard) || abandoned)
    }
}

/// What a request is charged for until its reply is written.
fn charge_of(request: &Request) -> Charge {
    let bytes = match request.command {
        Command::Read | Command::Write => u64::from(request.length),
        _ => 0,
    };
    Charge { requests: 1, bytes }
}

impl<S, X> Future for Transmission<S, X>
where
    S: AsyncRead + AsyncWrite + Unpin,
    X: Export,
{
    type Output = End;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<End> {
        let this = self.get_mut();
        this.read_now = 0;
        this.follow_size();
        loop {
            // The requests so far should reach the disks while the rest is read.
            if this.read_now >= SCRATCH_BYTES && !this.in_flight.is_empty() {
                context.waker().wake_by_ref();
                return Poll::Pending;
            }
            let mut any = this.poll_completions(context);
            any |= this.poll_write(context);
            any |= this.poll_read(context);
            if any {
                continue;
            }
            if !this.poll_signals(context) {
                break;
            }
        }
        let idle = this.in_flight.is_empty() && this.outbox.is_empty();
        if this.leaving && this.end.is_none() && idle && this.is_between_requests() {
            return Poll::Ready(End::HandedOver);
        }
        if this.is_over() {
            return Poll::Ready(this.end.take().expect("a session is over for a reason"));
        }
        Poll::Pending
    }
}

impl<S, X> Drop for Transmission<S, X> {
    fn drop(&mut self) {
        self.common.budget.give_back(self.charge.bytes);
    }
}
