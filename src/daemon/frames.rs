//! The engine's messages as frames of the transport.

use qrbd_engine::wire;
use qrbd_engine::wire::codec::{FRAME_HEADER_BYTES, parse_frame_header};
use qrbd_transport::{CodecError, FrameCodec, FrameLengths, Lane, VersionRange};

/// Versions of the messages that this release speaks.
pub(crate) const VERSIONS: VersionRange = VersionRange::new(1, 1);

/// The frame format of the engine.
#[derive(Debug)]
pub(crate) struct EngineFrames;

impl FrameCodec for EngineFrames {
    const HEADER_BYTES: usize = FRAME_HEADER_BYTES;

    fn lengths(header: &[u8]) -> Result<FrameLengths, CodecError> {
        let header = header
            .try_into()
            .expect("the transport hands over exactly the header");
        match parse_frame_header(header) {
            Ok(lengths) => Ok(FrameLengths {
                body: lengths.body,
                payload: lengths.payload,
            }),
            Err(error) => Err(CodecError(error.to_string().into())),
        }
    }
}

/// The transport's name of a lane.
pub(crate) fn lane_of(lane: wire::Lane) -> Lane {
    match lane {
        wire::Lane::Data => Lane::Data,
        wire::Lane::Acks => Lane::Acks,
        wire::Lane::Control => Lane::Control,
        wire::Lane::Resync => Lane::Resync,
    }
}
