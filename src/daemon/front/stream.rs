//! A client's socket in tokio's event loop that wakes nobody for what was sent.
//!
//! Registered for both directions, as tokio's own sockets are, each reply that the client takes raises an event: a wake-up per
//! request that tells nothing. Here arrivals alone are watched. When the client is slower than the replies, a second descriptor
//! is watched until there is room.

use std::io::{self, IoSlice, Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use nix::sys::socket::{Shutdown, shutdown};
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};

/// A stream socket `S` of the standard library, non-blocking.
#[derive(Debug)]
pub struct ClientStream<S: AsRawFd> {
    socket: AsyncFd<S>,
    /// Only while a write waits: its first event tells of the state at that time.
    room: Option<AsyncFd<OwnedFd>>,
}

#[expect(
    deprecated,
    reason = "what replaces it is unsafe code, to rule out types whose descriptor changes; a socket's does not"
)]
fn watch<S: AsRawFd>(socket: S, interest: Interest) -> io::Result<AsyncFd<S>> {
    AsyncFd::with_interest(socket, interest)
}

impl<S: AsRawFd> ClientStream<S> {
    /// Takes a socket, which must be non-blocking, into the event loop.
    ///
    /// # Errors
    /// If the system has no room for it.
    pub fn new(socket: S) -> io::Result<Self> {
        Ok(ClientStream {
            socket: watch(socket, Interest::READABLE)?,
            room: None,
        })
    }
}

impl<S> AsyncRead for ClientStream<S>
where
    S: AsRawFd + Unpin,
    for<'a> &'a S: Read,
{
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            let mut readiness = ready!(self.socket.poll_read_ready(context))?;
            let space = buffer.initialize_unfilled();
            let length = space.len();
            match self.socket.get_ref().read(space) {
                Ok(count) => {
                    // Less than there was room for: the socket is empty, and what comes is a new event. Its end (0) stays.
                    if count > 0 && count < length {
                        readiness.clear_ready();
                    }
                    buffer.advance(count);
                    return Poll::Ready(Ok(()));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => readiness.clear_ready(),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }
}

impl<S> ClientStream<S>
where
    S: AsRawFd + AsFd,
{
    /// Writes; if there is no room, the task is woken when there is.
    fn poll_with_room(
        &mut self,
        context: &mut Context<'_>,
        mut write: impl FnMut(&S) -> io::Result<usize>,
    ) -> Poll<io::Result<usize>> {
        loop {
            if let Some(room) = &self.room {
                ready!(room.poll_write_ready(context)).map(drop)?;
                self.room = None;
            }
            match write(self.socket.get_ref()) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    let copy = self.socket.get_ref().as_fd().try_clone_to_owned()?;
                    self.room = Some(watch(copy, Interest::WRITABLE)?);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                written => return Poll::Ready(written),
            }
        }
    }
}

impl<S> AsyncWrite for ClientStream<S>
where
    S: AsRawFd + AsFd + Unpin,
    for<'a> &'a S: Write,
{
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.poll_with_room(context, |mut socket| socket.write(bytes))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.poll_with_room(context, |mut socket| socket.write_vectored(slices))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        let ended = shutdown(self.socket.get_ref().as_raw_fd(), Shutdown::Write);
        Poll::Ready(ended.map_err(io::Error::from))
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;
    use std::time::Duration;

    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::time::timeout;

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(20);

    fn pair() -> (ClientStream<UnixStream>, ClientStream<UnixStream>) {
        let (one, two) = UnixStream::pair().unwrap();
        one.set_nonblocking(true).unwrap();
        two.set_nonblocking(true).unwrap();
        (
            ClientStream::new(one).unwrap(),
            ClientStream::new(two).unwrap(),
        )
    }

    #[tokio::test]
    async fn bytes_pass_a_full_buffer_in_order_and_the_end_is_seen() {
        let (mut one, mut two) = pair();
        // More than a socket's buffer holds: the writer has to wait several times.
        let sent: Vec<u8> = (0..4 << 20).map(|index| (index % 251) as u8).collect();
        let copy = sent.clone();
        let writer = tokio::spawn(async move {
            one.write_all(&copy).await.unwrap();
            one.shutdown().await.unwrap();
            one
        });
        let mut received = Vec::new();
        timeout(PATIENCE, two.read_to_end(&mut received))
            .await
            .expect("the end was missed")
            .unwrap();
        assert!(received == sent);
        writer.await.unwrap();
    }

    #[tokio::test]
    async fn each_message_of_a_conversation_is_noticed() {
        let (mut one, mut two) = pair();
        let echo = tokio::spawn(async move {
            let mut buffer = [0u8; 64];
            loop {
                let count = two.read(&mut buffer).await.unwrap();
                if count == 0 {
                    return;
                }
                two.write_all(&buffer[..count]).await.unwrap();
            }
        });
        for round in 0..500u16 {
            let message = round.to_be_bytes();
            one.write_all(&message).await.unwrap();
            let mut answer = [0u8; 2];
            timeout(PATIENCE, one.read_exact(&mut answer))
                .await
                .expect("an answer was missed")
                .unwrap();
            assert_eq!(answer, message);
        }
        drop(one);
        timeout(PATIENCE, echo)
            .await
            .expect("the end was missed")
            .unwrap();
    }
}
