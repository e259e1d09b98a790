//! Options: every one of them is known, with its range, default, units and inheritance.

mod support;

use qrbd_config::{
    AfterSplitBrain0Primaries, AfterSplitBrain1Primary, DiskOptions, Fencing, NetOptions,
    OnIoError, OnNoData, Protocol, Quorum, ReadBalancing, ResourceOptions, RrConflict,
    StartupOptions,
};
use support::{TWO_NODES, error_with_body, load_text, messages, resource, summaries, with_body};

/// Section, option, a value, and whether the program does what it says.
const EVERY_OPTION: &[(&str, &str, &str, bool)] = &[
    ("net", "protocol", "C", true),
    ("net", "timeout", "50", true),
    ("net", "ko-count", "0", true),
    ("net", "ping-int", "20", true),
    ("net", "ping-timeout", "300", true),
    ("net", "connect-int", "120", true),
    ("net", "socket-check-timeout", "5", false),
    ("net", "max-buffers", "131072", true),
    ("net", "max-epoch-size", "20000", true),
    ("net", "sndbuf-size", "128M", false),
    ("net", "rcvbuf-size", "0", false),
    ("net", "tcp-cork", "yes", false),
    ("net", "unplug-watermark", "16", false),
    ("net", "allow-two-primaries", "yes", false),
    ("net", "allow-remote-read", "no", false),
    ("net", "cram-hmac-alg", "sha1", false),
    ("net", "shared-secret", "\"a secret\"", true),
    ("net", "data-integrity-alg", "crc32c", false),
    ("net", "verify-alg", "crc32c", false),
    ("net", "csums-alg", "crc32c", false),
    ("net", "csums-after-crash-only", "yes", false),
    ("net", "use-rle", "yes", false),
    ("net", "after-sb-0pri", "discard-zero-changes", true),
    ("net", "after-sb-1pri", "discard-secondary", true),
    ("net", "after-sb-2pri", "call-pri-lost-after-sb", true),
    ("net", "always-asbp", "yes", true),
    ("net", "rr-conflict", "retry-connect", false),
    ("net", "fencing", "resource-only", true),
    ("net", "on-congestion", "block", true),
    ("net", "congestion-fill", "10G", false),
    ("net", "congestion-extents", "67", false),
    ("net", "transport", "tcp", false),
    ("net", "load-balance-paths", "yes", false),
    ("net", "tls", "no", false),
    ("net", "tls-keyring", "1", false),
    ("net", "tls-privkey", "2", false),
    ("net", "tls-certificate", "3", false),
    ("disk", "on-io-error", "pass_on", false),
    ("disk", "size", "10G", false),
    ("disk", "al-extents", "6433", true),
    ("disk", "al-updates", "no", false),
    ("disk", "disk-barrier", "no", false),
    ("disk", "disk-flushes", "no", true),
    ("disk", "disk-drain", "no", false),
    ("disk", "md-flushes", "no", false),
    ("disk", "disk-timeout", "6000", false),
    ("disk", "read-balancing", "64K-striping", false),
    ("disk", "resync-after", "none", true),
    ("disk", "rs-discard-granularity", "1M", false),
    ("disk", "discard-zeroes-if-aligned", "no", false),
    ("disk", "disable-write-same", "yes", false),
    ("disk", "max-bio-size", "1M", false),
    ("disk", "block-size", "4096", false),
    ("disk", "discard-granularity", "64K", false),
    ("disk", "diskless", "no", false),
    ("disk", "bitmap", "no", false),
    ("disk", "resync-rate", "8G", false),
    ("disk", "c-plan-ahead", "0", false),
    ("disk", "c-delay-target", "100", false),
    ("disk", "c-fill-target", "1M", false),
    ("disk", "c-max-rate", "4G", false),
    ("disk", "c-min-rate", "0", false),
    ("disk", "resync-without-replication", "yes", false),
    ("disk", "peer-tiebreaker", "no", false),
    ("options", "auto-promote", "yes", false),
    ("options", "auto-promote-timeout", "20", false),
    ("options", "cpu-mask", "ff", false),
    ("options", "on-no-data-accessible", "suspend-io", false),
    ("options", "quorum", "majority", false),
    ("options", "quorum-minimum-redundancy", "1", false),
    ("options", "on-no-quorum", "io-error", false),
    (
        "options",
        "on-suspended-primary-outdated",
        "force-secondary",
        false,
    ),
    ("options", "peer-ack-window", "100M", false),
    ("options", "peer-ack-delay", "10000", false),
    ("options", "twopc-timeout", "50", false),
    ("options", "twopc-retry-timeout", "50", false),
    ("options", "max-io-depth", "4", false),
    ("options", "nbd-listen", "127.0.0.1:10809", true),
    ("startup", "wfc-timeout", "300000", true),
    ("startup", "degr-wfc-timeout", "120", false),
    ("startup", "outdated-wfc-timeout", "0", false),
    ("startup", "wait-after-sb", "yes", false),
    ("startup", "become-primary-on", "both", false),
    ("startup", "stacked-timeouts", "yes", false),
    ("handlers", "fence-peer", "\"/bin/true\"", true),
    ("handlers", "unfence-peer", "\"/bin/true\"", true),
    ("handlers", "pri-on-incon-degr", "\"/bin/true\"", true),
    ("handlers", "pri-lost-after-sb", "\"/bin/true\"", true),
    ("handlers", "pri-lost", "\"/bin/true\"", true),
    ("handlers", "local-io-error", "\"/bin/true\"", true),
    ("handlers", "initial-split-brain", "\"/bin/true\"", true),
    ("handlers", "split-brain", "\"/bin/true\"", true),
    ("handlers", "before-resync-target", "\"/bin/true\"", true),
    ("handlers", "before-resync-source", "\"/bin/true\"", true),
    ("handlers", "after-resync-target", "\"/bin/true\"", true),
    ("handlers", "out-of-sync", "\"/bin/true\"", false),
    ("handlers", "quorum-lost", "\"/bin/true\"", false),
    ("handlers", "disconnected", "\"/bin/true\"", true),
];

#[test]
fn every_option_is_accepted_and_those_that_do_not_do_what_they_say_are_reported() {
    for (section, option, value, acts) in EVERY_OPTION {
        let loaded = load_text(&format!(
            "resource r0 {{\n{section} {{\n{option} {value};\n}} {TWO_NODES} }}"
        ));
        assert!(loaded.errors.is_empty(), "{option}: {}", messages(&loaded));
        let ignored: Vec<_> = loaded
            .ignored
            .iter()
            .map(|ignored| (ignored.option.as_str(), ignored.position.line))
            .collect();
        let expected = if *acts { vec![] } else { vec![(*option, 3)] };
        assert_eq!(ignored, expected, "{option}");
    }
}

#[test]
fn a_value_that_is_not_carried_out_is_told_with_what_the_program_does_instead() {
    let loaded = load_text(&format!(
        "resource r0 {{\nnet {{ allow-two-primaries; rr-conflict disconnect; }}\noptions {{ quorum majority; on-no-quorum io-error; auto-promote no; }}\nnet {{ no-tcp-cork; }} disk {{ md-flushes; size 0; }} {TWO_NODES} }}"
    ));
    assert!(loaded.errors.is_empty(), "{}", messages(&loaded));
    let told: Vec<String> = loaded
        .ignored
        .iter()
        .map(|ignored| {
            let text = ignored.to_string();
            text[text.find(".conf").map_or(0, |at| at + 5)..].to_owned()
        })
        .collect();
    assert_eq!(
        told,
        [
            ":2:7: `allow-two-primaries yes` is not carried out by this version, which acts as with `allow-two-primaries no`",
            ":3:11: `quorum majority` is not carried out by this version, which acts as with `quorum off`",
            ":3:28: `on-no-quorum io-error` is not carried out by this version and has no effect",
            ":4:7: `tcp-cork` has no effect in this program and is ignored",
        ]
    );
}

#[test]
fn an_ignored_option_is_reported_once_at_its_first_place() {
    let loaded = load_text(&format!(
        "common {{\n net {{ tcp-cork no; }} }}\nresource r0 {{ net {{ no-tcp-cork; sndbuf-size 1M; }} {TWO_NODES} }}"
    ));
    let ignored: Vec<_> = loaded
        .ignored
        .iter()
        .map(|ignored| (ignored.option.as_str(), ignored.position.line))
        .collect();
    assert_eq!(ignored, [("tcp-cork", 2), ("sndbuf-size", 3)]);
}

#[test]
fn global_options_are_known() {
    let loaded = load_text(
        "global { usage-count no; dialog-refresh 1; disable-ip-verification; minor-count 64;
                  cmd-timeout-short 6; cmd-timeout-medium 100; cmd-timeout-long 200; udev-always-use-vnr; }",
    );
    assert!(loaded.errors.is_empty(), "{}", messages(&loaded));
    assert_eq!(loaded.global.cmd_timeout_short_s, 6);
    assert_eq!(loaded.global.cmd_timeout_long_s, 200);
    let ignored: Vec<_> = loaded
        .ignored
        .iter()
        .map(|ignored| ignored.option.as_str())
        .collect();
    assert_eq!(
        ignored,
        [
            "dialog-refresh",
            "disable-ip-verification",
            "minor-count",
            "udev-always-use-vnr"
        ]
    );
}

#[test]
fn defaults_are_drbds_except_auto_promote() {
    let resource = with_body("");
    let net = &resource.connections[0].net;
    assert_eq!(net, &NetOptions::default());
    assert_eq!(net.protocol, Protocol::C);
    assert_eq!(
        (
            net.timeout_ms,
            net.ko_count,
            net.ping_int_ms,
            net.ping_timeout_ms
        ),
        (6000, 7, 10_000, 500)
    );
    assert_eq!(
        (net.connect_int_ms, net.max_buffers, net.max_epoch_size),
        (10_000, 2048, 2048)
    );
    assert_eq!(net.after_sb_0pri, AfterSplitBrain0Primaries::Disconnect);
    assert_eq!(net.rr_conflict, RrConflict::Disconnect);
    assert_eq!(net.fencing, Fencing::DontCare);
    assert!(net.shared_secret.is_none() && net.allow_remote_read && !net.allow_two_primaries);
    let disk = &resource.volumes()[0].options;
    assert_eq!(disk, &DiskOptions::default());
    assert_eq!(
        (disk.on_io_error, disk.al_extents, disk.size_bytes),
        (OnIoError::Detach, 1237, None)
    );
    assert!(disk.al_updates && disk.disk_flushes && disk.disk_drain && disk.md_flushes);
    assert_eq!(disk.read_balancing, ReadBalancing::PreferLocal);
    let peer = &resource.connections[0].peer_devices[0].options;
    assert_eq!(peer.resync_rate_bytes_per_second, 250 << 10);
    assert_eq!(peer.c_max_rate_bytes_per_second, 100 << 20);
    assert_eq!(peer.c_min_rate_bytes_per_second, 250 << 10);
    assert_eq!(
        (
            peer.c_plan_ahead_ms,
            peer.c_delay_target_ms,
            peer.c_fill_target_bytes
        ),
        (2000, 1000, 50 << 10)
    );
    assert_eq!(resource.options, ResourceOptions::default());
    assert!(!resource.options.auto_promote);
    assert_eq!(resource.options.quorum, Quorum::Off);
    assert_eq!(
        (
            resource.options.on_no_quorum,
            resource.options.on_no_data_accessible
        ),
        (OnNoData::SuspendIo, OnNoData::IoError)
    );
    assert_eq!(resource.startup, StartupOptions::default());
    assert_eq!(resource.startup.wfc_timeout_s, None);
}

#[test]
fn suffixes_are_bytes_in_the_unit_of_the_option() {
    let peer = |text: &str| {
        let resource = with_body(&format!("disk {{ {text} }}"));
        resource.connections[0].peer_devices[0].options.clone()
    };
    assert_eq!(
        peer("resync-rate 1000;").resync_rate_bytes_per_second,
        1000 << 10
    );
    assert_eq!(
        peer("resync-rate 10M;").resync_rate_bytes_per_second,
        10 << 20
    );
    assert_eq!(peer("c-fill-target 100;").c_fill_target_bytes, 100 * 512);
    assert_eq!(peer("c-fill-target 24M;").c_fill_target_bytes, 24 << 20);
    assert_eq!(peer("c-fill-target 8s;").c_fill_target_bytes, 8 * 512);
    let size = |text: &str| {
        with_body(&format!("disk {{ size {text}; }}")).volumes()[0]
            .options
            .size_bytes
    };
    assert_eq!(size("2048"), Some(1 << 20));
    assert_eq!(size("2048s"), Some(1 << 20));
    assert_eq!(size("10g"), Some(10 << 30));
    assert_eq!(
        size("1000000000s"),
        Some(512_000_000_000),
        "more than eight digits are a number too"
    );
}

#[test]
fn numbers_out_of_range_are_errors() {
    for (section, text, expected) in [
        ("net", "timeout 0", "`timeout` 0 is out of range"),
        ("net", "timeout 601", "`timeout` 601 is out of range"),
        ("net", "max-buffers 31", "`max-buffers` 31 is out of range"),
        (
            "net",
            "max-buffers 1M",
            "`max-buffers` 1M = 1048576 is out of range",
        ),
        (
            "net",
            "ping-int 99999999999999999999999",
            "`ping-int` 99999999999999999999999 is out of range",
        ),
        ("net", "ping-int 9999999999999999G", "out of range"),
        ("net", "ping-int -1", "`ping-int` takes a number, not `-1`"),
        (
            "net",
            "ping-int 10s",
            "`ping-int` takes a number, not `10s`",
        ),
        (
            "net",
            "ping-int 1.5",
            "`ping-int` takes a number, not `1.5`",
        ),
        ("net", "ping-int \"\"", "`ping-int` takes a number, not ``"),
        (
            "disk",
            "resync-rate 9G",
            "`resync-rate` 9G = 9437184 is out of range",
        ),
        ("disk", "al-extents 6", "`al-extents` 6 is out of range"),
        ("options", "quorum 33", "`quorum` cannot be `33`"),
        (
            "disk",
            "read-balancing 48K-striping",
            "`read-balancing` cannot be `48K-striping`",
        ),
        ("net", "tls maybe", "`tls` cannot be `maybe`"),
        (
            "disk",
            "resync-after r0/x",
            "`resync-after` takes RESOURCE, RESOURCE/VOLUME or none",
        ),
        (
            "options",
            "nbd-listen here",
            "`nbd-listen` takes IP:PORT, not `here`",
        ),
    ] {
        let error = error_with_body(&format!("{section} {{ {text}; }}"));
        assert!(error.contains(expected), "{text}: {error}");
    }
}

#[test]
fn a_long_secret_is_refused_without_being_shown() {
    let secret = "x".repeat(65);
    let loaded = load_text(&format!(
        "resource r0 {{ net {{ shared-secret {secret}; }} {TWO_NODES} }}"
    ));
    assert_eq!(loaded.errors.len(), 1);
    assert!(!messages(&loaded).contains("xxxx"), "{}", messages(&loaded));
}

#[test]
fn a_secret_is_not_in_debug_output() {
    let loaded = load_text(&format!(
        "resource r0 {{ net {{ shared-secret hunter2; }} {TWO_NODES} }}"
    ));
    assert_eq!(
        loaded.resources[0].connections[0]
            .net
            .shared_secret
            .as_ref()
            .map(|secret| secret.expose()),
        Some("hunter2")
    );
    assert!(!format!("{:?}", loaded.resources).contains("hunter2"));
}

#[test]
fn disk_options_are_inherited_from_common_resource_volume_node_and_node_volume() {
    let resource = resource(
        "common { disk { al-extents 100; disk-timeout 1; size 1M; on-io-error pass_on; rs-discard-granularity 4096; } }
         resource r0 {
            disk { disk-timeout 2; size 2M; on-io-error detach; rs-discard-granularity 8192; }
            volume 0 { disk /dev/sdb; disk { size 3M; on-io-error call-local-io-error; rs-discard-granularity 16384; } }
            on alice { address 10.0.0.1:1; disk { on-io-error pass_on; rs-discard-granularity 32768; }
                       volume 0 { disk { rs-discard-granularity 65536; } } }
            on bob { address 10.0.0.2:1; }
         }",
    );
    let alice = &resource.nodes[0].volumes[0].options;
    assert_eq!(alice.al_extents, 100);
    assert_eq!(alice.disk_timeout_ms, Some(200));
    assert_eq!(alice.size_bytes, Some(3 << 20));
    assert_eq!(alice.on_io_error, OnIoError::PassOn);
    assert_eq!(alice.rs_discard_granularity_bytes, 65536);
    let bob = &resource.nodes[1].volumes[0].options;
    assert_eq!(
        (bob.on_io_error, bob.rs_discard_granularity_bytes),
        (OnIoError::CallLocalIoError, 16384)
    );
}

#[test]
fn net_options_are_inherited_from_common_resource_and_connection() {
    let resource = resource(&format!(
        "common {{ protocol A; net {{ timeout 10; max-buffers 100; ko-count 1; }} }}
         resource r0 {{ net {{ max-buffers 200; ko-count 2; }} {TWO_NODES}
            connection {{ host alice; host bob; net {{ ko-count 3; protocol B; }} }} }}"
    ));
    let net = &resource.connections[0].net;
    assert_eq!(
        (net.timeout_ms, net.max_buffers, net.ko_count, net.protocol),
        (1000, 200, 3, Protocol::B)
    );
}

#[test]
fn resync_options_are_inherited_down_to_the_volume_of_a_connection() {
    let resource = resource(
        "common { disk { c-max-rate 1M; c-min-rate 1M; resync-rate 1M; c-plan-ahead 1; } }
         resource r0 {
            disk { c-min-rate 2M; resync-rate 2M; c-plan-ahead 2; }
            volume 0 { disk /dev/sdb; } volume 1 { disk /dev/sdc; }
            on alice { address 10.0.0.1:1; } on bob { address 10.0.0.2:1; }
            connection { host alice; host bob; disk { resync-rate 3M; c-plan-ahead 3; } volume 1 { disk { c-plan-ahead 4; } } }
         }",
    );
    let devices = &resource.connections[0].peer_devices;
    assert_eq!(
        devices
            .iter()
            .map(|device| device.volume)
            .collect::<Vec<_>>(),
        [0, 1]
    );
    assert_eq!(devices[0].options.c_max_rate_bytes_per_second, 1 << 20);
    assert_eq!(devices[0].options.c_min_rate_bytes_per_second, 2 << 20);
    assert_eq!(devices[0].options.resync_rate_bytes_per_second, 3 << 20);
    assert_eq!(devices[0].options.c_plan_ahead_ms, 300);
    assert_eq!(devices[1].options.c_plan_ahead_ms, 400);
}

#[test]
fn a_connection_cannot_have_options_of_the_whole_device() {
    let error = error_with_body("connection { host alice; host bob; disk { al-extents 100; } }");
    assert!(
        error.ends_with(
            "`al-extents` is an option of the whole device; a connection cannot have its own"
        ),
        "{error}"
    );
}

#[test]
fn options_and_handlers_are_inherited_and_overridden_by_the_local_section() {
    let text = "common { options { quorum 2; auto-promote; } handlers { fence-peer \"a\"; split-brain \"b \\\"c\\\"\"; } }
         resource r0 { options { quorum majority; } handlers { fence-peer \"d\"; outdate-peer \"d\"; } disk /dev/sdb;
            on alice { address 10.0.0.1:1; options { auto-promote no; nbd-listen 127.0.0.1; } } on bob { address 10.0.0.2:1; } }";
    let resource = resource(text);
    assert_eq!(resource.options.quorum, Quorum::Majority);
    assert!(!resource.options.auto_promote);
    assert_eq!(
        resource
            .options
            .nbd_listen
            .map(|address| address.to_string())
            .as_deref(),
        Some("127.0.0.1:10809")
    );
    assert_eq!(resource.handlers.get("fence-peer"), Some("d"));
    assert_eq!(resource.handlers.get("split-brain"), Some("b \"c\""));
    assert_eq!(resource.handlers.get("pri-lost"), None);
}

#[test]
fn fencing_in_the_disk_section_is_the_older_spelling() {
    assert_eq!(
        with_body("disk { fencing resource-only; }").connections[0]
            .net
            .fencing,
        Fencing::ResourceOnly
    );
    let error =
        error_with_body("connection { host alice; host bob; disk { fencing resource-only; } }");
    assert!(
        error.contains("`fencing` is an option of the whole device"),
        "{error}"
    );
}

#[test]
fn split_brain_policies_are_typed_and_a_node_may_be_named() {
    let net = |text: &str| {
        with_body(&format!("net {{ {text} }}")).connections[0]
            .net
            .clone()
    };
    assert_eq!(
        net("after-sb-0pri discard-node-bob;").after_sb_0pri,
        AfterSplitBrain0Primaries::DiscardNode("bob".into())
    );
    assert_eq!(
        net("after-sb-1pri consensus;").after_sb_1pri,
        AfterSplitBrain1Primary::Consensus
    );
    let error = error_with_body("net { after-sb-0pri discard-node-carl; }");
    assert!(
        error.ends_with("`discard-node-carl` names a node that the resource does not have"),
        "{error}"
    );
    let error = error_with_body("net { after-sb-1pri discard-zero-changes; }");
    assert!(
        error.ends_with("`after-sb-1pri` cannot be `discard-zero-changes`"),
        "{error}"
    );
}

#[test]
fn options_that_exclude_each_other_are_errors_where_they_stand() {
    for (text, expected) in [
        (
            "protocol B;\nallow-two-primaries;",
            "3:1: `allow-two-primaries` needs protocol C, this connection has B",
        ),
        (
            "protocol A;\nfencing resource-and-stonith;",
            "3:1: `fencing resource-and-stonith` is not possible with protocol A",
        ),
        (
            "protocol C;\non-congestion pull-ahead;",
            "3:1: `on-congestion pull-ahead` is for protocol A only",
        ),
        (
            "ping-int 120;\ntimeout 100;",
            "3:1: `timeout` (10.0 s) must be shorter than `connect-int` (10.0 s)",
        ),
        (
            "\nping-int 6;",
            "3:1: `timeout` (6.0 s) must be shorter than `ping-int` (6.0 s)",
        ),
    ] {
        let loaded = load_text(&format!("resource r0 {{ net {{\n{text} }} {TWO_NODES} }}"));
        assert_eq!(summaries(&loaded), [format!("qrbd.conf:{expected}")]);
    }
    assert_eq!(
        with_body("net { protocol A; on-congestion pull-ahead; }").connections[0]
            .net
            .protocol,
        Protocol::A
    );
}

#[test]
fn a_conflict_that_comes_from_common_is_found_in_the_resource() {
    let loaded = load_text(&format!(
        "common {{ net {{ allow-two-primaries; }} }}\nresource r0 {{ {TWO_NODES} }}\nresource r1 {{ protocol A; {} }}",
        TWO_NODES
            .replace("drbd0", "drbd1")
            .replace("sdb", "sdc")
            .replace("7789", "7790")
    ));
    assert_eq!(loaded.resources.len(), 1);
    assert_eq!(loaded.errors[0].resource.as_deref(), Some("r1"));
}

#[test]
fn an_option_set_twice_is_an_error_only_if_the_values_differ() {
    with_body("protocol C; net { protocol C; } net { protocol C; }");
    let error = error_with_body("protocol A; net { protocol C; }");
    assert!(
        error.ends_with("`protocol` is set twice, differently"),
        "{error}"
    );
}
