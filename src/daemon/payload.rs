//! Payloads on their way through the engine, and where received ones are put.
//!
//! One buffer travels from the NBD client or the network to the disk and back. A payload that came over the network carries its
//! lane's [`Credit`], so that the peer is slowed while the bytes are in use here; whoever hands the bytes to the disk keeps the
//! credit until the disk is done.

use std::sync::Arc;

use bytes::Bytes;
use qrbd_disk::{BufferMut, Pool};
use qrbd_transport::{Credit, PayloadAllocator};

/// Bytes as the engine sees them: cheap to clone, immutable.
#[derive(Clone, Debug)]
pub struct EnginePayload {
    data: qrbd_disk::Payload,
    credit: Option<Arc<Credit>>,
}

impl EnginePayload {
    /// The bytes.
    #[must_use]
    pub fn data(&self) -> &qrbd_disk::Payload {
        &self.data
    }

    /// The bytes, to be written to a socket or a disk.
    #[must_use]
    pub fn into_data(self) -> qrbd_disk::Payload {
        self.data
    }

    /// The bytes as the transport sends them.
    #[must_use]
    pub fn into_bytes(self) -> Bytes {
        Bytes::from(self.data)
    }

    /// The bytes of a frame; `credit` is given back with the last clone.
    #[must_use]
    pub fn received(data: qrbd_disk::Payload, credit: Arc<Credit>) -> Self {
        EnginePayload {
            data,
            credit: Some(credit),
        }
    }

    /// The bytes alone: from now on somebody else is charged for them.
    #[must_use]
    pub fn without_credit(self) -> Self {
        EnginePayload::from(self.data)
    }

    /// What the peer is charged for these bytes, to be kept as long as they are in use.
    #[must_use]
    pub fn credit(&self) -> Option<Arc<Credit>> {
        self.credit.clone()
    }
}

impl From<qrbd_disk::Payload> for EnginePayload {
    fn from(data: qrbd_disk::Payload) -> Self {
        EnginePayload { data, credit: None }
    }
}

impl From<BufferMut> for EnginePayload {
    fn from(buffer: BufferMut) -> Self {
        EnginePayload::from(buffer.freeze())
    }
}

impl AsRef<[u8]> for EnginePayload {
    fn as_ref(&self) -> &[u8] {
        &self.data
    }
}

impl qrbd_engine::Payload for EnginePayload {
    fn length(&self) -> usize {
        self.data.len()
    }

    fn is_zero(&self) -> bool {
        // Most data differ from zero in the first words; the rest goes by 16 bytes, which the compiler makes vectors of.
        let (chunks, rest) = self.data.as_chunks::<16>();
        chunks.iter().all(|chunk| u128::from_ne_bytes(*chunk) == 0)
            && rest.iter().all(|&byte| byte == 0)
    }
}

/// Puts received payloads into pooled, aligned buffers, so that the disk takes them without a copy.
#[derive(Clone, Debug)]
pub struct PooledAllocator(pub Pool);

/// A pooled buffer that the transport fills.
#[derive(Debug)]
pub struct PooledBuffer(BufferMut);

impl AsMut<[u8]> for PooledBuffer {
    fn as_mut(&mut self) -> &mut [u8] {
        self.0.as_mut_slice()
    }
}

impl PayloadAllocator for PooledAllocator {
    type Buffer = PooledBuffer;
    type Payload = qrbd_disk::Payload;

    fn allocate(&self, length: usize) -> PooledBuffer {
        PooledBuffer(self.0.take(length))
    }

    fn freeze(buffer: PooledBuffer) -> qrbd_disk::Payload {
        buffer.0.freeze()
    }
}

#[cfg(test)]
mod tests {
    use qrbd_engine::Payload as _;

    use super::*;

    #[test]
    fn zero_is_told_from_any_single_byte_that_is_not() {
        let pool = Pool::default();
        for length in [1, 15, 16, 17, 4096, 4099] {
            assert!(EnginePayload::from(pool.copy_from(&vec![0; length])).is_zero());
            for at in [0, length / 2, length - 1] {
                let mut bytes = vec![0; length];
                bytes[at] = 1;
                assert!(
                    !EnginePayload::from(pool.copy_from(&bytes)).is_zero(),
                    "byte {at} of {length}"
                );
            }
        }
    }
}
