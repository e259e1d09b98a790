//! The handshake of one connection over a real stream.
//!
//! Reads exactly what the handshake asks for, so that no byte of the transmission is taken along. LIST names only what can
//! be opened now: `nbdinfo --list` opens every name it is told and fails as a whole when one is refused.

use std::io;

use qrbd_nbd::{
    BlockSizes, ExportInfo, Handshake, HandshakeError, ListedExport, OpenKind, Refusal, Session,
    Step, TransmissionFlags,
};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use crate::volumes::{ExportDescription, OpenRefusal, OpenRefusalKind};

use super::backend::{Export, Exports};

/// Bytes read at once; option data is mostly far shorter.
const READ_BYTES: usize = 4096;

/// The handshake came to nothing.
#[derive(Debug, thiserror::Error)]
pub enum NegotiationError {
    /// The connection broke.
    #[error(transparent)]
    Stream(#[from] io::Error),
    /// The client does not speak the protocol.
    #[error(transparent)]
    Protocol(#[from] HandshakeError),
}

/// Talks until the client has chosen an export; `None` when it left.
pub async fn negotiate<S, E>(
    stream: &mut S,
    exports: &E,
) -> Result<Option<(Session, E::Export)>, NegotiationError>
where
    S: AsyncRead + AsyncWrite + Unpin,
    E: Exports,
{
    let mut handshake = Handshake::new();
    let mut bytes = [0; READ_BYTES];
    let mut count = 0;
    let mut opened = None;
    loop {
        let mut input = &bytes[..count];
        let step = handshake.advance(&mut input);
        debug_assert!(input.is_empty() || !matches!(step, Ok(Step::NeedInput)));
        let output = handshake.take_output();
        if !output.is_empty() {
            stream.write_all(&output).await?;
        }
        count = 0;
        match step? {
            Step::NeedInput => {
                let wanted = handshake.wanted().min(READ_BYTES);
                count = stream.read(&mut bytes[..wanted]).await?;
                if count == 0 {
                    return Ok(None);
                }
            }
            Step::Open(open) => {
                let answer = match open_export(exports, &open.name) {
                    Ok((info, export)) => {
                        // A client that only asks is no opener.
                        opened = (open.kind != OpenKind::Info).then_some(export);
                        Ok(info)
                    }
                    Err(refusal) => Err(refusal),
                };
                handshake.answer_open(answer);
            }
            Step::List => handshake.answer_list(Ok(list(exports))),
            Step::Transmission(session) => {
                let export = opened.expect("the transmission begins after an export was opened");
                return Ok(Some((session, export)));
            }
            Step::Aborted => return Ok(None),
            Step::NeedAnswer => unreachable!("every question is answered at once"),
        }
    }
}

fn open_export<E: Exports>(exports: &E, name: &str) -> Result<(ExportInfo, E::Export), Refusal> {
    let export = exports
        .open(name)
        .map_err(|OpenRefusal { kind, text }| match kind {
            OpenRefusalKind::Unknown => Refusal::Unknown(text),
            OpenRefusalKind::Policy => Refusal::Policy(text),
        })?;
    let info =
        export_info(export.description()).map_err(|error| Refusal::Policy(error.to_string()))?;
    Ok((info, export))
}

fn list<E: Exports>(exports: &E) -> Vec<ListedExport> {
    exports
        .exports()
        .into_iter()
        .filter(|export| export.openable)
        .map(|export| ListedExport {
            description: description_text(&export),
            name: export.name,
        })
        .collect()
}

fn description_text(export: &ExportDescription) -> String {
    format!("volume {} of resource {}", export.volume, export.resource)
}

/// What the client is told. Sessions share nothing but the volume, whose FLUSH covers all of them: `CAN_MULTI_CONN`.
pub(super) fn export_info(
    export: &ExportDescription,
) -> Result<ExportInfo, qrbd_nbd::ExportInfoError> {
    let flags = TransmissionFlags::SEND_FLUSH
        | TransmissionFlags::SEND_FUA
        | TransmissionFlags::SEND_TRIM
        | TransmissionFlags::SEND_WRITE_ZEROES
        | TransmissionFlags::SEND_FAST_ZERO
        | TransmissionFlags::SEND_CACHE
        | TransmissionFlags::CAN_MULTI_CONN;
    let minimum = export.minimum_block;
    let preferred = export.preferred_block.max(minimum);
    let sizes = BlockSizes::new(minimum, preferred, export.maximum_block)?;
    let size = export.size - export.size % u64::from(minimum);
    ExportInfo::new(export.name.as_str(), size, flags, sizes)?
        .with_description(description_text(export))
}
