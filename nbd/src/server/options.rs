//! Parsing of option data. Pure functions from complete option data to typed values; `None` means malformed, which the
//! handshake answers with `ERR_INVALID`. Strings borrow from the option data and are bounded by `limits::STRING`.

use crate::export::is_string;
use crate::protocol::{be_u16, be_u32, info};

/// INFO and GO.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct InfoRequest<'a> {
    pub name: &'a str,
    pub wants: InfoWants,
}

/// Optional information that was asked for; the rest is always or never sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct InfoWants {
    pub name: bool,
    pub description: bool,
}

/// LIST_META_CONTEXT and SET_META_CONTEXT.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct MetaContextRequest<'a> {
    pub name: &'a str,
    pub queries: Vec<&'a str>,
}

pub(super) fn parse_export_name(data: &[u8]) -> Option<&str> {
    string(data)
}

pub(super) fn parse_info(data: &[u8]) -> Option<InfoRequest<'_>> {
    let mut rest = data;
    let name = counted_string(&mut rest)?;
    let count = be_u16(take(&mut rest, 2)?, 0);
    if rest.len() != usize::from(count) * 2 {
        return None;
    }
    let mut wants = InfoWants::default();
    for number in rest.chunks_exact(2) {
        match be_u16(number, 0) {
            info::NAME => wants.name = true,
            info::DESCRIPTION => wants.description = true,
            // EXPORT and BLOCK_SIZE are always sent; unknown kinds are ignored, as the spec asks.
            _ => {}
        }
    }
    Some(InfoRequest { name, wants })
}

pub(super) fn parse_meta_context(data: &[u8]) -> Option<MetaContextRequest<'_>> {
    let mut rest = data;
    let name = counted_string(&mut rest)?;
    let count = be_u32(take(&mut rest, 4)?, 0);
    let mut queries = Vec::new();
    for _ in 0..count {
        // Each query takes at least four bytes, so the data bounds the loop and the list.
        queries.push(counted_string(&mut rest)?);
    }
    rest.is_empty()
        .then_some(MetaContextRequest { name, queries })
}

fn take<'a>(rest: &mut &'a [u8], count: usize) -> Option<&'a [u8]> {
    let (taken, after) = rest.split_at_checked(count)?;
    *rest = after;
    Some(taken)
}

fn counted_string<'a>(rest: &mut &'a [u8]) -> Option<&'a str> {
    let length = be_u32(take(rest, 4)?, 0);
    string(take(rest, usize::try_from(length).ok()?)?)
}

fn string(bytes: &[u8]) -> Option<&str> {
    std::str::from_utf8(bytes)
        .ok()
        .filter(|text| is_string(text))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn info_data(name: &[u8], kinds: &[u16]) -> Vec<u8> {
        let mut data = (name.len() as u32).to_be_bytes().to_vec();
        data.extend_from_slice(name);
        data.extend_from_slice(&(kinds.len() as u16).to_be_bytes());
        kinds
            .iter()
            .for_each(|kind| data.extend_from_slice(&kind.to_be_bytes()));
        data
    }

    fn meta_data(name: &str, queries: &[&str]) -> Vec<u8> {
        let mut data = (name.len() as u32).to_be_bytes().to_vec();
        data.extend_from_slice(name.as_bytes());
        data.extend_from_slice(&(queries.len() as u32).to_be_bytes());
        for query in queries {
            data.extend_from_slice(&(query.len() as u32).to_be_bytes());
            data.extend_from_slice(query.as_bytes());
        }
        data
    }

    #[test]
    fn unknown_information_is_ignored() {
        let data = info_data(b"r0", &[info::NAME, 77]);
        let wants = InfoWants {
            name: true,
            description: false,
        };
        assert_eq!(parse_info(&data), Some(InfoRequest { name: "r0", wants }));
    }

    #[test]
    fn every_shorter_or_longer_info_request_is_malformed() {
        let mut data = info_data(b"r0", &[info::NAME, info::DESCRIPTION]);
        for end in 0..data.len() {
            assert_eq!(parse_info(&data[..end]), None, "{end} bytes");
        }
        data.push(0);
        assert_eq!(parse_info(&data), None);
    }

    #[test]
    fn every_shorter_or_longer_meta_context_request_is_malformed() {
        let mut data = meta_data("r0", &["base:allocation", ""]);
        let expected = MetaContextRequest {
            name: "r0",
            queries: vec!["base:allocation", ""],
        };
        assert_eq!(parse_meta_context(&data), Some(expected));
        for end in 0..data.len() {
            assert_eq!(parse_meta_context(&data[..end]), None, "{end} bytes");
        }
        data.push(0);
        assert_eq!(parse_meta_context(&data), None);
    }

    #[test]
    fn a_huge_query_count_needs_no_memory() {
        let mut data = meta_data("", &[]);
        data[4..8].copy_from_slice(&u32::MAX.to_be_bytes());
        assert_eq!(parse_meta_context(&data), None);
    }

    #[test]
    fn names_must_be_utf8_without_nul_and_short() {
        assert_eq!(parse_export_name(b"\xff"), None);
        assert_eq!(parse_export_name(b"a\0"), None);
        assert_eq!(parse_export_name(&[b'x'; 4097]), None);
        assert!(parse_export_name(&[b'x'; 4096]).is_some());
        assert_eq!(parse_info(&info_data(b"\xc3", &[])), None);
    }
}
