//! Configurations in a temporary directory, read as node `alice`; paths in messages lose the directory's name.
#![allow(dead_code, reason = "each test file uses a part")]

use std::net::IpAddr;
use std::path::Path;

use qrbd_config::{Loaded, Resource, load_on_host};
use tempfile::TempDir;

/// The section of a plain two-node resource without options.
pub const TWO_NODES: &str = "
    on alice { device /dev/drbd0; disk /dev/sdb; address 10.0.0.1:7789; meta-disk internal; }
    on bob   { device /dev/drbd0; disk /dev/sdb; address 10.0.0.2:7789; meta-disk internal; }
";

pub fn directory(files: &[(&str, &str)]) -> TempDir {
    let directory = tempfile::tempdir().expect("a temporary directory");
    for (name, text) in files {
        let path = directory.path().join(name);
        std::fs::create_dir_all(path.parent().expect("a parent")).expect("a directory");
        std::fs::write(path, text).expect("a file");
    }
    directory
}

/// Reads `files`, the first of which is the main one.
pub fn load_files(files: &[(&str, &str)]) -> Loaded {
    let directory = directory(files);
    load_as(&directory.path().join(files[0].0), "alice")
}

pub fn load_as(main: &Path, node: &str) -> Loaded {
    let own: [IpAddr; 1] = ["10.0.0.1".parse().expect("an address")];
    load_on_host(main, node, &own)
}

pub fn load_text(text: &str) -> Loaded {
    load_files(&[("qrbd.conf", text)])
}

/// The only resource of a text that must be without errors.
pub fn resource(text: &str) -> Resource {
    let mut loaded = load_text(text);
    assert!(loaded.errors.is_empty(), "{}", messages(&loaded));
    assert_eq!(loaded.resources.len(), 1);
    loaded.resources.remove(0)
}

/// A resource `r0` with two nodes and `body`.
pub fn with_body(body: &str) -> Resource {
    resource(&format!("resource r0 {{\n{body}\n{TWO_NODES}\n}}\n"))
}

/// All errors in full, with the temporary directory's name taken out.
pub fn messages(loaded: &Loaded) -> String {
    let text = loaded
        .errors
        .iter()
        .map(|error| format!("{error}\n"))
        .collect::<String>();
    strip(&text)
}

/// The errors' first lines.
pub fn summaries(loaded: &Loaded) -> Vec<String> {
    loaded
        .errors
        .iter()
        .map(|error| strip(&error.summary()))
        .collect()
}

fn strip(text: &str) -> String {
    let base = std::env::temp_dir();
    let base = base.to_string_lossy();
    let mut out = String::new();
    let mut rest = text;
    while let Some(at) = rest.find(&format!("{base}/.tmp")) {
        out.push_str(&rest[..at]);
        let tail = &rest[at + base.len() + 1..];
        rest = tail.find('/').map_or("", |slash| &tail[slash + 1..]);
    }
    out + rest
}

/// The first line of the only error of `resource r0 { body + two nodes }`.
pub fn error_with_body(body: &str) -> String {
    let loaded = load_text(&format!("resource r0 {{\n{body}\n{TWO_NODES}\n}}\n"));
    let mut summaries = summaries(&loaded);
    assert_eq!(summaries.len(), 1, "{}", messages(&loaded));
    assert!(loaded.resources.is_empty());
    summaries.remove(0)
}
