//! Encoding of everything the server says during the handshake. Appends to a caller's buffer; decides nothing.

use crate::export::{ExportInfo, TransmissionFlags};
use crate::protocol::{
    EXPORT_NAME_ZEROES, GREETING_MAGIC, OPTION_MAGIC, OPTION_REPLY_MAGIC, bounded_text,
    handshake_flag, info, option_reply,
};

use super::options::InfoWants;

pub(super) fn greeting(out: &mut Vec<u8>) {
    out.extend_from_slice(&GREETING_MAGIC.to_be_bytes());
    out.extend_from_slice(&OPTION_MAGIC.to_be_bytes());
    let flags = handshake_flag::FIXED_NEWSTYLE | handshake_flag::NO_ZEROES;
    out.extend_from_slice(&flags.to_be_bytes());
}

/// One option reply; `parts` together are its data.
pub(super) fn reply(out: &mut Vec<u8>, option: u32, kind: u32, parts: &[&[u8]]) {
    let length: usize = parts.iter().map(|part| part.len()).sum();
    let length = u32::try_from(length).expect("parts are bounded strings and numbers");
    out.extend_from_slice(&OPTION_REPLY_MAGIC.to_be_bytes());
    out.extend_from_slice(&option.to_be_bytes());
    out.extend_from_slice(&kind.to_be_bytes());
    out.extend_from_slice(&length.to_be_bytes());
    parts.iter().for_each(|part| out.extend_from_slice(part));
}

pub(super) fn ack(out: &mut Vec<u8>, option: u32) {
    reply(out, option, option_reply::ACK, &[]);
}

pub(super) fn error(out: &mut Vec<u8>, option: u32, kind: u32, text: &str) {
    debug_assert!(kind & option_reply::ERROR_BIT != 0);
    reply(out, option, kind, &[bounded_text(text).as_bytes()]);
}

pub(super) fn listed_export(out: &mut Vec<u8>, option: u32, name: &str, description: &str) {
    let name = bounded_text(name);
    let length = (name.len() as u32).to_be_bytes();
    let parts = [
        &length[..],
        name.as_bytes(),
        bounded_text(description).as_bytes(),
    ];
    reply(out, option, option_reply::SERVER, &parts);
}

pub(super) fn meta_context(out: &mut Vec<u8>, option: u32, id: u32, name: &str) {
    reply(
        out,
        option,
        option_reply::META_CONTEXT,
        &[&id.to_be_bytes(), name.as_bytes()],
    );
}

/// The replies of INFO and GO including the final ACK. BLOCK_SIZE is sent unasked too: a client may use it, and one that
/// does not know it must ignore it.
pub(super) fn infos(
    out: &mut Vec<u8>,
    option: u32,
    export: &ExportInfo,
    flags: TransmissionFlags,
    wants: InfoWants,
) {
    let mut info = |kind: u16, parts: &[&[u8]]| {
        let data = parts.concat();
        reply(
            out,
            option,
            option_reply::INFO,
            &[&kind.to_be_bytes(), &data],
        );
    };
    info(
        info::EXPORT,
        &[&export.size().to_be_bytes(), &flags.bits().to_be_bytes()],
    );
    if wants.name {
        info(info::NAME, &[export.name().as_bytes()]);
    }
    if let (true, Some(description)) = (wants.description, export.description()) {
        info(info::DESCRIPTION, &[description.as_bytes()]);
    }
    let sizes = export.block_sizes();
    info(
        info::BLOCK_SIZE,
        &[
            &sizes.minimum().to_be_bytes(),
            &sizes.preferred().to_be_bytes(),
            &sizes.maximum_payload().to_be_bytes(),
        ],
    );
    ack(out, option);
}

/// The headerless reply to EXPORT_NAME.
pub(super) fn export_name(out: &mut Vec<u8>, size: u64, flags: TransmissionFlags, zeroes: bool) {
    out.extend_from_slice(&size.to_be_bytes());
    out.extend_from_slice(&flags.bits().to_be_bytes());
    if zeroes {
        out.extend_from_slice(&[0; EXPORT_NAME_ZEROES]);
    }
}
