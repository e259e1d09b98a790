//! Configuration files of a pair, in the grammar that users write.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::path::PathBuf;

/// Replication protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// Asynchronous.
    A,
    /// Received by the peer.
    B,
    /// On both disks.
    C,
}

/// What a test wants of the resource.
#[derive(Clone, Debug)]
pub struct Options {
    /// Name of the resource.
    pub resource: String,
    /// `protocol`.
    pub protocol: Protocol,
    /// More lines of the `net` section.
    pub net: String,
    /// Lines of the `disk` section.
    pub disk: String,
    /// More sections of the resource.
    pub more: String,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            resource: "r0".to_owned(),
            protocol: Protocol::C,
            net: String::new(),
            disk: String::new(),
            more: String::new(),
        }
    }
}

/// What one `on` section says.
#[derive(Clone, Debug)]
pub struct Host {
    /// Name of the node.
    pub name: String,
    /// `disk`.
    pub disk: PathBuf,
    /// `meta-disk`.
    pub meta_disk: String,
    /// `address`.
    pub address: SocketAddr,
}

/// The file, with timers that suit tests.
#[must_use]
pub fn render(options: &Options, hosts: &[Host]) -> String {
    let mut text = format!(
        "resource {} {{\n    net {{\n        protocol {:?};\n        ping-int 2;\n        ping-timeout 5;\n        timeout 15;\n        connect-int 2;\n",
        options.resource, options.protocol
    );
    for line in options.net.lines() {
        let _ = writeln!(text, "        {line}");
    }
    let _ = writeln!(
        text,
        "    }}\n    disk {{\n        {}\n    }}\n    {}",
        options.disk, options.more
    );
    // Explicit node ids: without them the order of addresses decides, which two nodes behind a relay see differently.
    for (node_id, host) in hosts.iter().enumerate() {
        let _ = writeln!(
            text,
            "    on {} {{\n        node-id {node_id};\n        disk {};\n        meta-disk {};\n        address {};\n    }}",
            host.name,
            host.disk.display(),
            host.meta_disk,
            host.address
        );
    }
    text.push_str("}\n");
    text
}
