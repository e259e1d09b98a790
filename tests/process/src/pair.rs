//! Two nodes with one resource, made as an administrator makes them.

use std::path::PathBuf;
use std::time::Duration;

use crate::configuration::{Host, Options, render};
use crate::load::assert_equal;
use crate::node::Node;
use crate::programs::{built, run};
use crate::relay::Relay;
use crate::stage::{Stage, address};

/// Bytes of each backing disk unless a test wants another size.
pub const DISK_BYTES: u64 = 64 << 20;
/// For two nodes to find each other and to copy what is missing.
pub const SYNC_LIMIT: Duration = Duration::from_secs(60);

/// How a pair is made.
#[derive(Clone, Debug, Default)]
pub struct PairOptions {
    /// Of the resource.
    pub resource: Options,
    /// Bytes of each disk; [`DISK_BYTES`] if none.
    pub disk_bytes: Option<u64>,
    /// With a relay between the nodes.
    pub relay: bool,
}

/// See the module's text. Fields go in this order: processes before the directory.
#[derive(Debug)]
pub struct Pair {
    /// Left node.
    pub alice: Node,
    /// Right node.
    pub bob: Node,
    /// The network between them, if it can be cut. A field, so that it can be used beside a borrowed node.
    pub relay: Option<Relay>,
    /// Directory of the test.
    pub stage: Stage,
}

impl Pair {
    /// Files, key and metadata; no daemon runs.
    ///
    /// # Panics
    /// If something cannot be made.
    #[must_use]
    #[track_caller]
    pub fn prepared(options: &PairOptions) -> Pair {
        let stage = Stage::new();
        let key = stage.path("authkey");
        run(
            &built("qrbdadm"),
            ["keygen".as_ref(), "--output".as_ref(), key.as_os_str()],
            Duration::from_secs(10),
        )
        .succeeded();
        let bytes = options.disk_bytes.unwrap_or(DISK_BYTES);
        let disks = [
            stage.file("alice.disk", bytes),
            stage.file("bob.disk", bytes),
        ];
        let own = [address(), address()];
        let relay = options.relay.then(|| Relay::new(own[0], own[1]));
        let seen = relay
            .as_ref()
            .map_or(own, |relay| [relay.before_right(), relay.before_left()]);
        let file = |name: &str, addresses: [_; 2]| -> PathBuf {
            let hosts = [("alice", 0), ("bob", 1)].map(|(name, index)| Host {
                name: name.to_owned(),
                disk: disks[index].clone(),
                meta_disk: "internal".to_owned(),
                address: addresses[index],
            });
            let path = stage.path(&format!("{name}.conf"));
            std::fs::write(&path, render(&options.resource, &hosts))
                .expect("a file can be written");
            path
        };
        let node = |name: &str, index: usize, addresses| {
            Node::new(
                &stage,
                name,
                &options.resource.resource,
                &disks[index],
                &file(name, addresses),
                &key,
            )
        };
        let alice = node("alice", 0, [own[0], seen[1]]);
        let bob = node("bob", 1, [seen[0], own[1]]);
        for node in [&alice, &bob] {
            node.command("create-md");
        }
        Pair {
            alice,
            bob,
            relay,
            stage,
        }
    }

    /// Both up and connected, data Inconsistent on both: as after the first `up` of a new pair.
    ///
    /// # Panics
    /// If they do not connect.
    #[must_use]
    #[track_caller]
    pub fn connected(options: &PairOptions) -> Pair {
        let mut pair = Pair::prepared(options);
        for node in [&mut pair.alice, &mut pair.bob] {
            node.start_and_up();
        }
        for node in [&pair.alice, &pair.bob] {
            node.wait_status("connected", SYNC_LIMIT, |status| {
                status.connection_state() == "Connected"
            });
        }
        pair
    }

    /// Both UpToDate without an initial sync (both disks are zeroes), alice Primary.
    ///
    /// # Panics
    /// If that does not come about.
    #[must_use]
    #[track_caller]
    pub fn ready(options: &PairOptions) -> Pair {
        let pair = Pair::connected(options);
        pair.alice.command("new-current-uuid --clear-bitmap");
        pair.alice.wait_healthy(SYNC_LIMIT);
        pair.bob.wait_healthy(SYNC_LIMIT);
        pair.alice.command("primary");
        pair.bob
            .wait_status("sees the Primary", SYNC_LIMIT, |status| {
                status.peer_role() == "Primary"
            });
        pair
    }

    /// The network between the nodes.
    ///
    /// # Panics
    /// If the pair was made without.
    #[must_use]
    pub fn relay(&self) -> &Relay {
        self.relay.as_ref().expect("the pair was made with a relay")
    }

    /// Waits until both see both UpToDate, takes the resource down and compares every byte of the data areas.
    ///
    /// # Panics
    /// If a byte differs.
    #[track_caller]
    pub fn assert_equal_disks(&self) {
        let bytes = self.alice.wait_healthy(SYNC_LIMIT).size_bytes();
        assert_eq!(self.bob.wait_healthy(SYNC_LIMIT).size_bytes(), bytes);
        assert_equal(&self.alice.disk, &self.bob.disk, bytes);
    }
}
