//! A connection on its way to become a session: its deadline, and the word to the other side when it does not.

use quinn::Connection;

use crate::event::{CloseCode, RefusalReason};
use crate::limits::HANDSHAKE_TIMEOUT;

/// A connection that is not a session yet. If it is dropped, by an error or because the attempt is given up, the other
/// side is told.
#[derive(Default)]
pub(crate) struct Attempt(Option<Connection>);

impl Attempt {
    pub(crate) fn guard(&mut self, connection: Connection) -> Connection {
        self.0 = Some(connection.clone());
        connection
    }

    /// Awaits the handshake and its deadline, and closes what did not become a session.
    pub(crate) async fn run(
        mut self,
        handshake: impl AsyncFnOnce(&mut Self) -> Result<(), RefusalReason>,
    ) -> Result<(), RefusalReason> {
        let timed_out = Err(RefusalReason::TimedOut(HANDSHAKE_TIMEOUT));
        let outcome = tokio::time::timeout(HANDSHAKE_TIMEOUT, handshake(&mut self))
            .await
            .unwrap_or(timed_out);
        if let Some(connection) = self.0.take()
            && let Err(reason) = &outcome
        {
            connection.close(reason.code().wire(), b"");
        }
        outcome
    }
}

impl Drop for Attempt {
    fn drop(&mut self) {
        if let Some(connection) = self.0.take() {
            connection.close(CloseCode::Abandoned.wire(), b"");
        }
    }
}
