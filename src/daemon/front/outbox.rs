//! Replies on their way to the client: small ones side by side in one buffer, data of reads in the buffer it came in.
//!
//! Owns the order of the bytes and what each of them is charged for: when the last byte of a reply has been written, its
//! [`Charge`] is given back to the session's account. Does no I/O.

use std::collections::VecDeque;
use std::io::IoSlice;

use crate::payload::EnginePayload;

/// Small replies are gathered up to about this many bytes.
const GATHER_BYTES: usize = 16 << 10;

/// Pieces handed to one system call.
pub const SLICES: usize = 128;

/// What a session has in flight.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Charge {
    pub requests: usize,
    pub bytes: u64,
}

enum Content {
    Gathered(Vec<u8>),
    Data(EnginePayload),
}

struct Piece {
    content: Content,
    charge: Charge,
}

impl Piece {
    fn bytes(&self) -> &[u8] {
        match &self.content {
            Content::Gathered(bytes) => bytes,
            Content::Data(payload) => payload.as_ref(),
        }
    }
}

#[derive(Default)]
pub struct Outbox {
    pieces: VecDeque<Piece>,
    /// Bytes of the first piece that were written.
    written: usize,
    /// An empty buffer for the next piece.
    spare: Option<Vec<u8>>,
}

impl Outbox {
    pub fn is_empty(&self) -> bool {
        self.pieces.is_empty()
    }

    /// A reply, or its head when data follows; `charge` is given back once it is written.
    pub fn push(&mut self, bytes: &[u8], charge: Charge) {
        if let Some(Piece {
            content: Content::Gathered(gathered),
            charge: sum,
        }) = self.pieces.back_mut()
            && gathered.len() + bytes.len() <= GATHER_BYTES
        {
            gathered.extend_from_slice(bytes);
            sum.requests += charge.requests;
            sum.bytes += charge.bytes;
            return;
        }
        let mut gathered = self.spare.take().unwrap_or_default();
        gathered.extend_from_slice(bytes);
        self.pieces.push_back(Piece {
            content: Content::Gathered(gathered),
            charge,
        });
    }

    /// The data of a reply whose head was pushed last.
    pub fn push_data(&mut self, data: EnginePayload, charge: Charge) {
        self.pieces.push_back(Piece {
            content: Content::Data(data),
            charge,
        });
    }

    /// The next bytes to write.
    pub fn slices<'a>(&'a self, slices: &mut [IoSlice<'a>; SLICES]) -> usize {
        let mut skip = self.written;
        let mut count = 0;
        for (piece, slice) in self.pieces.iter().zip(slices.iter_mut()) {
            *slice = IoSlice::new(&piece.bytes()[skip..]);
            skip = 0;
            count += 1;
        }
        count
    }

    /// `count` bytes were written; returns the charge of what is complete now.
    pub fn advance(&mut self, count: usize) -> Charge {
        self.written += count;
        let mut freed = Charge::default();
        while let Some(first) = self.pieces.front() {
            let length = first.bytes().len();
            if self.written < length {
                break;
            }
            self.written -= length;
            let piece = self.pieces.pop_front().expect("looked at above");
            freed.requests += piece.charge.requests;
            freed.bytes += piece.charge.bytes;
            if let Content::Gathered(mut gathered) = piece.content {
                gathered.clear();
                self.spare = Some(gathered);
            }
        }
        debug_assert!(!self.pieces.is_empty() || self.written == 0);
        freed
    }

    /// Forgets everything; returns its charge.
    pub fn clear(&mut self) -> Charge {
        self.written = 0;
        self.pieces
            .drain(..)
            .fold(Charge::default(), |sum, piece| Charge {
                requests: sum.requests + piece.charge.requests,
                bytes: sum.bytes + piece.charge.bytes,
            })
    }
}
