//! The writer of one sending lane: drains the lane's queue into its QUIC stream.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use quinn::{ConnectionError, WriteError};

use crate::lane::Lane;
use crate::session::Shared;

/// Pieces of frames that are given to QUIC at once.
const BATCH_PIECES: usize = 64;
/// Runs of pieces up to this size are copied together: QUIC looks through its unacknowledged pieces one by one for each
/// packet, which costs more than the copy.
const SMALL_PIECE_BYTES: usize = 1024;

/// Writes `lane` until the session ends. The end of the connection is reported by the session's supervisor.
pub(crate) async fn run(session: Arc<Shared>, lane: Lane) {
    match write_lane(&session, lane).await {
        Ok(()) | Err(WriteError::ConnectionLost(_)) => {}
        Err(other) => {
            session.end_for_violation(Some(lane), &format!("it cannot be written: {other}"))
        }
    }
}

async fn write_lane(session: &Shared, lane: Lane) -> Result<(), WriteError> {
    // Waits until the peer allows lanes, which it does when it takes the session up.
    let mut stream = session.connection.open_uni().await?;
    stream.set_priority(lane.priority())?;
    stream.write_all(&lane.preamble()).await?;
    let mut batch = Vec::with_capacity(BATCH_PIECES);
    loop {
        batch.clear();
        if !session.take_queued(lane, &mut batch, BATCH_PIECES) {
            if !session.is_open() {
                return Err(ConnectionError::LocallyClosed.into());
            }
            session.lane(lane).work.notified().await;
            continue;
        }
        join_small_pieces(&mut batch);
        let mut pieces = &mut batch[..];
        while !pieces.is_empty() {
            let written = stream.write_chunks(pieces).await?;
            session.handed_over(lane, written.bytes);
            pieces = &mut pieces[written.chunks..];
        }
    }
}

fn join_small_pieces(batch: &mut Vec<Bytes>) {
    let small = |piece: &Bytes| piece.len() <= SMALL_PIECE_BYTES;
    if !batch.windows(2).any(|pair| pair.iter().all(small)) {
        return;
    }
    let mut joined = Vec::with_capacity(BATCH_PIECES);
    for run in batch.chunk_by(|first, second| small(first) && small(second)) {
        match run {
            [single] => joined.push(single.clone()),
            several => {
                let mut bytes = BytesMut::with_capacity(several.iter().map(Bytes::len).sum());
                several
                    .iter()
                    .for_each(|piece| bytes.extend_from_slice(piece));
                joined.push(bytes.freeze());
            }
        }
    }
    *batch = joined;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn joining_keeps_every_byte_in_order_and_leaves_large_pieces_alone() {
        let lengths = [10, 20, 4096, 30, 4096, 4096, 1, 1024, 1025, 5];
        let mut counter = 0u8;
        let mut piece = |length| {
            counter += 1;
            Bytes::from(vec![counter; length])
        };
        let mut batch: Vec<Bytes> = lengths.into_iter().map(&mut piece).collect();
        let (before, large) = (batch.concat(), batch[2].clone());
        join_small_pieces(&mut batch);
        assert_eq!(batch.concat(), before);
        assert_eq!(
            batch.iter().map(Bytes::len).collect::<Vec<_>>(),
            [30, 4096, 30, 4096, 4096, 1025, 1025, 5]
        );
        assert_eq!(batch[1].as_ptr(), large.as_ptr());
    }
}
