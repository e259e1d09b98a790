//! Owns the normalised text of a configuration, in the manner of `drbdadm dump`.
//!
//! The text is a configuration again, and reading it gives the same model. What `common` or a template file says is printed in
//! every resource that inherits it, so that one resource's text stands alone. Secrets are printed: the text is for whoever may read the files.

use std::fmt::Write as _;
use std::net::SocketAddr;

use crate::model::{Connection, DiskSource, Loaded, MetaDisk, Node, Resource, Volume};
use crate::settings::{Settings, bare_or_quoted, quote};

/// All resources that can be used, after `global` and, if all of them inherit it, `common`.
#[must_use]
pub fn dump(loaded: &Loaded) -> String {
    let mut printer = Printer::default();
    if let Some(main) = loaded.files.first() {
        printer.line(&format!("# {}", one_line(&main.to_string_lossy())));
    }
    printer.section("global", &loaded.global.settings);
    // A resource with a template file has other defaults, and its text does not name that file.
    let inherited = loaded
        .resources
        .iter()
        .all(|resource| resource.inherits_common);
    if inherited
        && loaded
            .common
            .iter()
            .any(|(_, settings)| !settings.is_empty())
    {
        printer.open("common");
        for (name, settings) in &loaded.common {
            printer.section(name, settings);
        }
        printer.close();
    }
    for resource in &loaded.resources {
        printer.text.push('\n');
        printer.resource(resource);
    }
    printer.text
}

/// One resource, with everything it inherits.
#[must_use]
pub fn dump_resource(resource: &Resource) -> String {
    let mut printer = Printer::default();
    printer.resource(resource);
    printer.text
}

fn one_line(text: &str) -> String {
    text.chars()
        .map(|c| if c.is_control() { '?' } else { c })
        .collect()
}

fn address(address: SocketAddr) -> String {
    let family = if address.is_ipv4() { "ipv4" } else { "ipv6" };
    format!("{family} {address}")
}

#[derive(Default)]
struct Printer {
    text: String,
    depth: usize,
}

impl Printer {
    fn line(&mut self, line: &str) {
        for _ in 0..self.depth {
            self.text.push_str("    ");
        }
        self.text.push_str(line);
        self.text.push('\n');
    }

    fn open(&mut self, title: &str) {
        self.line(&format!("{title} {{"));
        self.depth += 1;
    }

    fn close(&mut self) {
        self.depth -= 1;
        self.line("}");
    }

    fn statement(&mut self, name: &str, value: &str) {
        self.line(&format!("{name:<16} {value};"));
    }

    /// A section of options; nothing if it is empty.
    fn section(&mut self, name: &str, settings: &Settings) {
        if settings.is_empty() {
            return;
        }
        self.open(name);
        for (option, setting) in settings.iter() {
            self.statement(option, &setting.text());
        }
        self.close();
    }

    fn resource(&mut self, resource: &Resource) {
        let place = match resource.local_node() {
            Some(node) => format!(
                "# resource {} on {}: not ignored, not stacked",
                resource.name,
                one_line(&node.name)
            ),
            None => format!("# resource {}: not for this host", resource.name),
        };
        self.line(&place);
        self.line(&format!(
            "# defined at {}:{}",
            one_line(&resource.position.file),
            resource.position.line
        ));
        self.open(&format!("resource {}", bare_or_quoted(&resource.name)));
        for node in &resource.nodes {
            self.node(node);
        }
        for connection in resource
            .connections
            .iter()
            .filter(|connection| !connection.implicit)
        {
            self.connection(resource, connection);
        }
        for (name, settings) in &resource.settings {
            self.section(name, settings);
        }
        self.close();
    }

    fn node(&mut self, node: &Node) {
        if node.floating {
            self.open(&format!("floating {}", address(node.address)));
        } else {
            let mut title = format!("on {}", bare_or_quoted(&node.name));
            for alias in &node.aliases {
                let _ = write!(title, " {}", bare_or_quoted(alias));
            }
            self.open(&title);
        }
        self.statement("node-id", &node.node_id.to_string());
        for volume in &node.volumes {
            self.volume(volume);
        }
        if !node.floating {
            self.statement("address", &address(node.address));
        }
        self.section("options", &node.options);
        self.close();
    }

    fn volume(&mut self, volume: &Volume) {
        self.open(&format!("volume {}", volume.number));
        if let Some(device) = &volume.device {
            let name = device
                .name
                .as_ref()
                .map(|name| format!("{} ", bare_or_quoted(&format!("/dev/{name}"))));
            self.statement(
                "device",
                &format!("{}minor {}", name.unwrap_or_default(), device.minor),
            );
        }
        match &volume.disk {
            DiskSource::Path(path) => {
                self.statement("disk", &bare_or_quoted(&path.to_string_lossy()))
            }
            DiskSource::None => self.statement("disk", "none"),
        }
        let meta_disk = match &volume.meta_disk {
            MetaDisk::Internal => "internal".to_string(),
            // A path that itself ends in `[N]` would read as indexed, but no statement can have made one.
            MetaDisk::External { path } => bare_or_quoted(&path.to_string_lossy()),
            MetaDisk::Indexed { path, index } => {
                bare_or_quoted(&format!("{}[{index}]", path.to_string_lossy()))
            }
        };
        self.statement("meta-disk", &meta_disk);
        self.section("disk", &volume.settings);
        self.close();
    }

    fn connection(&mut self, resource: &Resource, connection: &Connection) {
        self.open("connection");
        let host = |side: usize, at: SocketAddr| {
            let node = &resource.nodes[connection.nodes[side]];
            format!("{} address {}", host_name(&node.name), address(at))
        };
        for path in &connection.paths {
            self.open("path");
            for side in 0..2 {
                self.statement("host", &host(side, path.addresses[side]));
            }
            self.close();
        }
        self.section("net", &connection.net_settings);
        self.section("disk", &connection.disk_settings);
        for device in connection
            .peer_devices
            .iter()
            .filter(|device| !device.settings.is_empty())
        {
            self.open(&format!("volume {}", device.volume));
            self.section("disk", &device.settings);
            self.close();
        }
        self.close();
    }
}

/// A host's name is quoted if it could be taken for part of the statement.
fn host_name(name: &str) -> String {
    if matches!(name, "address" | "port" | "via") {
        quote(name)
    } else {
        bare_or_quoted(name)
    }
}
