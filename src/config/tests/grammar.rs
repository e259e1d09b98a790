//! The grammar: sections, devices, addresses, connections, ids, includes.

mod support;

use qrbd_config::{Device, DiskSource, MetaDisk, Protocol, SkipReason};
use support::{
    TWO_NODES, directory, error_with_body, load_as, load_files, load_text, messages, resource,
    summaries, with_body,
};

/// The volume 0 of alice in a resource whose `on alice` section has `lines`.
fn alice(lines: &str) -> qrbd_config::Volume {
    let resource = resource(&format!(
        "resource r0 {{ on alice {{ address 10.0.0.1:7789; {lines} }} on bob {{ address 10.0.0.2:7789; disk /dev/sdb; }} }}"
    ));
    resource.volumes()[0].clone()
}

fn alice_error(lines: &str) -> String {
    let loaded = load_text(&format!(
        "resource r0 {{ on bob {{ address 10.0.0.2:7789; disk /dev/sdb; }} on alice {{ address 10.0.0.1:7789;\n{lines}\n}} }}"
    ));
    assert_eq!(loaded.errors.len(), 1, "{}", messages(&loaded));
    summaries(&loaded).remove(0)
}

#[test]
fn a_device_is_a_path_a_minor_or_a_name_with_a_minor() {
    let device = |text: &str| {
        alice(&format!("disk /dev/sdb; device {text};"))
            .device
            .expect("a device")
    };
    assert_eq!(
        device("/dev/drbd7"),
        Device {
            minor: 7,
            name: None
        }
    );
    assert_eq!(
        device("/dev/nbd3"),
        Device {
            minor: 3,
            name: None
        }
    );
    assert_eq!(
        device("minor 5"),
        Device {
            minor: 5,
            name: None
        }
    );
    assert_eq!(
        device("/dev/drbd2 minor 2"),
        Device {
            minor: 2,
            name: None
        }
    );
    assert_eq!(
        device("drbd_home minor 4"),
        Device {
            minor: 4,
            name: Some("drbd_home".into())
        }
    );
    assert_eq!(
        device("/dev/drbd_home minor 4"),
        Device {
            minor: 4,
            name: Some("drbd_home".into())
        }
    );
    assert_eq!(
        device("\"/dev/drbd1\""),
        Device {
            minor: 1,
            name: None
        }
    );
}

#[test]
fn a_device_without_a_minor_is_refused() {
    assert_eq!(
        alice_error("disk /dev/sdb; device /dev/mydev;"),
        "qrbd.conf:2:23: the name `/dev/mydev` does not tell the minor"
    );
    assert_eq!(
        alice_error("disk /dev/sdb; device /dev/drbd0 minor 1;"),
        "qrbd.conf:2:40: `/dev/drbd0` is not minor 1"
    );
    assert_eq!(
        alice_error("disk /dev/sdb; device minor 1048576;"),
        "qrbd.conf:2:29: `1048576` is not a minor"
    );
    assert_eq!(
        alice_error("disk /dev/sdb; device /dev/nbd1048576;"),
        "qrbd.conf:2:23: minor 1048576 is out of range"
    );
}

#[test]
fn a_volume_without_a_device_is_legal() {
    assert_eq!(alice("disk /dev/sdb;").device, None);
}

#[test]
fn a_disk_is_an_absolute_path_or_none() {
    assert_eq!(
        alice("disk /srv/r0.img;").disk,
        DiskSource::Path("/srv/r0.img".into())
    );
    assert_eq!(
        alice("disk \"/srv/my disk.img\";").disk,
        DiskSource::Path("/srv/my disk.img".into())
    );
    assert_eq!(alice("disk none;").disk, DiskSource::None);
    assert_eq!(
        alice_error("disk r0.img;"),
        "qrbd.conf:2:6: `r0.img` is not an absolute path"
    );
    assert_eq!(
        alice_error("device minor 0;"),
        "qrbd.conf:2:1: volume 0 of node `alice` has no `disk`"
    );
}

#[test]
fn a_meta_disk_is_internal_external_or_indexed() {
    let meta = |text: &str| alice(&format!("disk /dev/sdb; {text}")).meta_disk;
    assert_eq!(meta(""), MetaDisk::Internal);
    assert_eq!(meta("meta-disk internal;"), MetaDisk::Internal);
    assert_eq!(meta("meta-disk \"internal\";"), MetaDisk::Internal);
    assert_eq!(meta("flexible-meta-disk internal;"), MetaDisk::Internal);
    assert_eq!(
        meta("meta-disk /dev/sdc;"),
        MetaDisk::External {
            path: "/dev/sdc".into()
        }
    );
    assert_eq!(
        meta("flexible-meta-disk /dev/sdc;"),
        MetaDisk::External {
            path: "/dev/sdc".into()
        }
    );
    assert_eq!(
        meta("meta-disk /dev/sdc[3];"),
        MetaDisk::Indexed {
            path: "/dev/sdc".into(),
            index: 3
        }
    );
    assert_eq!(
        meta("meta-disk /dev/sdc [0];"),
        MetaDisk::Indexed {
            path: "/dev/sdc".into(),
            index: 0
        }
    );
}

#[test]
fn a_bad_meta_disk_index_is_refused() {
    assert_eq!(
        alice_error("disk /dev/sdb; meta-disk /dev/sdc[x];"),
        "qrbd.conf:2:26: `[x]` is not an index"
    );
    assert_eq!(
        alice_error("disk /dev/sdb; meta-disk /dev/sdc[256];"),
        "qrbd.conf:2:26: `[256]` is not an index"
    );
    assert_eq!(
        alice_error("disk /dev/sdb; flexible-meta-disk /dev/sdc[0];"),
        "qrbd.conf:2:35: `flexible-meta-disk` takes a path without an index"
    );
}

#[test]
fn an_address_names_its_family_or_not() {
    for (text, expected) in [
        ("10.0.0.9:7000", "10.0.0.9:7000"),
        ("ipv4 10.0.0.9:7000", "10.0.0.9:7000"),
        ("10.0.0.9 : 7000", "10.0.0.9:7000"),
    ] {
        let resource = resource(&format!(
            "resource r0 {{ disk /dev/sdb; on alice {{ address {text}; }} on bob {{ address 10.0.0.2:1; }} }}"
        ));
        assert_eq!(resource.nodes[0].address.to_string(), expected);
    }
    let resource = resource(
        "resource r0 { disk /dev/sdb; on alice { address ipv6 [fd00::1]:7000; } on bob { address [fd00::2]:7000; } }",
    );
    assert_eq!(resource.nodes[0].address.to_string(), "[fd00::1]:7000");
}

#[test]
fn a_bad_address_is_refused() {
    let error = |text: &str| {
        let loaded = load_text(&format!(
            "resource r0 {{ disk /dev/sdb; on alice {{\naddress {text}; }} on bob {{ address 10.0.0.2:1; }} }}"
        ));
        summaries(&loaded).join("\n")
    };
    assert_eq!(
        error("10.0.0.1"),
        "qrbd.conf:2:9: the address `10.0.0.1` has no port"
    );
    assert_eq!(
        error("alice.example:7789"),
        "qrbd.conf:2:9: `alice.example:7789` is not an address"
    );
    assert_eq!(error("10.0.0.1:0"), "qrbd.conf:2:9: port 0 is not a port");
    assert_eq!(
        error("10.0.0.1:70000"),
        "qrbd.conf:2:9: `10.0.0.1:70000` is not an address"
    );
    assert_eq!(
        error("0.0.0.0:7789"),
        "qrbd.conf:2:9: `0.0.0.0:7789` is not the address of one node"
    );
    assert_eq!(
        error("ipv6 10.0.0.1:7789"),
        "qrbd.conf:2:14: `10.0.0.1:7789` is not an ipv6 address"
    );
    assert_eq!(
        error("sdp 10.0.0.1:7789"),
        "qrbd.conf:2:9: address family `sdp` is not supported"
    );
    assert_eq!(
        error("[fd00::1]:7789"),
        "qrbd.conf:1:30: [fd00::1]:7789 and 10.0.0.2:1 are of different families"
    );
}

#[test]
fn statements_of_the_resource_hold_for_all_nodes_and_are_overridden_per_node() {
    let resource = resource(
        "resource r0 {
            device minor 3; disk /dev/vg/r0; meta-disk internal;
            on alice { address 10.0.0.1:7789; }
            on bob { address 10.0.0.2:7789; disk /dev/sdz; }
        }",
    );
    assert_eq!(
        resource.nodes[0].volumes[0].disk,
        DiskSource::Path("/dev/vg/r0".into())
    );
    assert_eq!(
        resource.nodes[1].volumes[0].disk,
        DiskSource::Path("/dev/sdz".into())
    );
    assert_eq!(
        resource.nodes[1].volumes[0]
            .device
            .as_ref()
            .map(|device| device.minor),
        Some(3)
    );
}

#[test]
fn volumes_are_numbered_and_sorted() {
    let resource = resource(
        "resource r0 {
            volume 7 { device minor 7; disk /dev/sdc; meta-disk internal; }
            volume 0 { device minor 0; disk /dev/sdb; disk { al-extents 67; } }
            on alice { address 10.0.0.1:7789; }
            on bob { address 10.0.0.2:7789; volume 7 { disk none; } }
        }",
    );
    let numbers: Vec<u16> = resource
        .volumes()
        .iter()
        .map(|volume| volume.number)
        .collect();
    assert_eq!(numbers, [0, 7]);
    assert_eq!(resource.volumes()[0].options.al_extents, 67);
    assert_eq!(resource.volumes()[1].options.al_extents, 1237);
    assert_eq!(resource.nodes[1].volumes[1].disk, DiskSource::None);
}

#[test]
fn the_implicit_volume_cannot_be_mixed_with_numbered_ones() {
    let error = alice_error("disk /dev/sdb; volume 1 { disk /dev/sdc; }");
    assert_eq!(
        error,
        "qrbd.conf:2:16: `volume` sections cannot be mixed with `device`, `disk` or `meta-disk` outside of them"
    );
    let error = alice_error("volume 1 { disk /dev/sdc; } disk /dev/sdb;");
    assert_eq!(
        error,
        "qrbd.conf:2:29: `disk` outside of `volume` cannot be mixed with `volume` sections"
    );
}

#[test]
fn nodes_must_have_the_same_volumes() {
    let loaded = load_text(
        "resource r0 {
            on alice { address 10.0.0.1:1; volume 0 { disk /dev/a; } volume 1 { disk /dev/b; } }
            on bob { address 10.0.0.2:1; volume 0 { disk /dev/a; } }
        }",
    );
    assert_eq!(
        summaries(&loaded),
        ["qrbd.conf:3:13: volume 1 is on node `alice`, but not on node `bob`"]
    );
}

#[test]
fn ids_of_two_nodes_follow_the_addresses_not_the_order_of_sections() {
    let resource = resource(
        "resource r0 { disk /dev/sdb; on bob { address 10.0.0.20:1; } on alice { address 10.0.0.3:1; } }",
    );
    assert_eq!(
        resource
            .nodes
            .iter()
            .map(|node| node.node_id)
            .collect::<Vec<_>>(),
        [1, 0]
    );
}

#[test]
fn ids_that_are_written_count() {
    let resource = resource(
        "resource r0 { disk /dev/sdb; on bob { node-id 4; address 10.0.0.2:1; } on alice { node-id 31; address 10.0.0.3:1; } }",
    );
    assert_eq!(
        resource
            .nodes
            .iter()
            .map(|node| node.node_id)
            .collect::<Vec<_>>(),
        [4, 31]
    );
}

#[test]
fn half_written_double_or_too_large_ids_are_refused() {
    let error = |a: &str, b: &str| {
        let text = format!(
            "resource r0 {{ disk /dev/sdb; on alice {{ {a} address 10.0.0.1:1; }}\non bob {{ {b} address 10.0.0.2:1; }} }}"
        );
        summaries(&load_text(&text)).join("\n")
    };
    assert_eq!(
        error("node-id 0;", ""),
        "qrbd.conf:2:1: node `bob` has no `node-id`"
    );
    assert_eq!(
        error("node-id 1;", "node-id 1;"),
        "qrbd.conf:2:18: `node-id 1` belongs to another node"
    );
    assert_eq!(
        error("node-id 0;", "node-id 32;"),
        "qrbd.conf:2:18: `32` is not a node-id"
    );
}

const THREE_HOSTS: &str = "
    disk /dev/sdb;
    on alice { node-id 0; address 10.0.0.1:7789; }
    on bob { node-id 1; address 10.0.0.2:7789; }
    on charlie { node-id 2; address 10.0.0.3:7789; }
";

#[test]
fn a_mesh_connects_every_pair() {
    let resource = resource(&format!(
        "resource r0 {{ {THREE_HOSTS} connection-mesh {{ hosts alice bob charlie; net {{ protocol A; }} }} }}"
    ));
    let pairs: Vec<_> = resource
        .connections
        .iter()
        .map(|connection| connection.nodes)
        .collect();
    assert_eq!(pairs, [[0, 1], [0, 2], [1, 2]]);
    assert!(
        resource
            .connections
            .iter()
            .all(|connection| connection.net.protocol == Protocol::A)
    );
    let peers: Vec<_> = resource
        .peers()
        .map(|peer| peer.node.name.as_str())
        .collect();
    assert_eq!(peers, ["bob", "charlie"]);
}

#[test]
fn three_nodes_need_connections() {
    let loaded = load_text(&format!("resource r0 {{ {THREE_HOSTS} }}"));
    assert_eq!(
        summaries(&loaded),
        ["qrbd.conf:1:1: resource `r0` has 3 nodes, but no `connection`"]
    );
}

#[test]
fn connections_have_addresses_ports_and_paths() {
    let resource = resource(&format!(
        "resource r0 {{ {THREE_HOSTS}
            connection {{ host alice address 10.1.0.1:7000; host bob address ipv4 10.1.0.2:7001; }}
            connection {{ host charlie port 7002; host alice; }}
            connection {{
                path {{ host bob address 10.2.0.2:1; host charlie address 10.2.0.3:1; }}
                path {{ host charlie address 10.3.0.3:1; host bob address 10.3.0.2:1; }}
            }}
        }}"
    ));
    let peers: Vec<_> = resource.peers().collect();
    assert_eq!(peers[0].paths[0].local.to_string(), "10.1.0.1:7000");
    assert_eq!(peers[0].paths[0].peer.to_string(), "10.1.0.2:7001");
    assert_eq!(peers[1].node.name, "charlie");
    assert_eq!(peers[1].paths[0].local.to_string(), "10.0.0.1:7789");
    assert_eq!(peers[1].paths[0].peer.to_string(), "10.0.0.3:7002");
    let paths = &resource.connections[2].paths;
    assert_eq!(paths.len(), 2);
    assert_eq!(
        paths[1].addresses.map(|address| address.to_string()),
        ["10.3.0.2:1", "10.3.0.3:1"]
    );
}

#[test]
fn a_node_may_have_its_address_in_the_connection_alone() {
    let resource = resource(
        "resource r0 { disk /dev/sdb; on alice { node-id 0; } on bob { node-id 1; }
            connection { host alice address 10.0.0.1:7000; host bob address 10.0.0.2:7000; } }",
    );
    assert_eq!(resource.nodes[1].address.to_string(), "10.0.0.2:7000");
}

#[test]
fn wrong_connections_are_refused() {
    let error = |text: &str| {
        summaries(&load_text(&format!(
            "resource r0 {{ {THREE_HOSTS}{text} }}"
        )))
        .join("\n")
    };
    assert_eq!(
        error("connection { host alice; host bobb; }"),
        "qrbd.conf:6:31: host `bobb` has no `on` section in this resource"
    );
    assert_eq!(
        error("connection { host alice; }"),
        "qrbd.conf:6:1: a connection has two hosts, this one has 1"
    );
    assert_eq!(
        error("connection { host alice; host bob; host charlie; }"),
        "qrbd.conf:6:36: a connection has two hosts, this is the third"
    );
    assert_eq!(
        error("connection { host alice; host alice; }"),
        "qrbd.conf:6:1: `alice` is connected to itself"
    );
    assert_eq!(
        error("connection-mesh { hosts alice bob charlie; }\nconnection { host bob; host alice; }"),
        "qrbd.conf:7:1: `bob` and `alice` are connected twice"
    );
    assert_eq!(
        error("connection-mesh { hosts alice; }"),
        "qrbd.conf:6:1: `connection-mesh` needs two hosts or more"
    );
    assert_eq!(
        error("connection { path { host alice; } }"),
        "qrbd.conf:6:14: a path has two hosts, this one has 1"
    );
}

#[test]
fn a_floating_section_is_found_by_the_local_address() {
    let text = "resource r0 { disk /dev/sdb; floating 10.0.0.1:7789 { device minor 1; } floating ipv4 10.0.0.2:7789 { } }";
    let resource = resource(text);
    assert_eq!(resource.local, Some(0));
    assert_eq!(resource.nodes[1].name, "10.0.0.2:7789");
    assert!(resource.nodes[1].floating);
    let directory = directory(&[("qrbd.conf", text)]);
    let as_other = load_as(&directory.path().join("qrbd.conf"), "10.0.0.2:7789");
    assert_eq!(
        as_other.resources[0].local,
        Some(1),
        "the node's name takes precedence"
    );
}

#[test]
fn the_addresses_of_this_host_include_loopback() {
    let directory = directory(&[(
        "qrbd.conf",
        "resource r0 { disk /dev/sdb; floating 192.0.2.1:7789 { } floating 127.0.0.1:7789 { } }",
    )]);
    let loaded = qrbd_config::load(&directory.path().join("qrbd.conf"), "no-such-host");
    assert_eq!(loaded.resources[0].local, Some(1));
}

#[test]
fn two_floating_sections_with_local_addresses_are_ambiguous() {
    let loaded =
        load_text("resource r0 { disk /dev/sdb; floating 10.0.0.1:1 { } floating 10.0.0.1:2 { } }");
    assert_eq!(
        summaries(&loaded),
        ["qrbd.conf:1:54: two `floating` sections have an address of this host"]
    );
}

#[test]
fn a_section_may_have_several_host_names() {
    let resource = resource(
        "resource r0 { disk /dev/sdb; on bob bob-old { address 10.0.0.2:1; } on \"old\" alice { address 10.0.0.1:1; } }",
    );
    assert_eq!(resource.local, Some(1));
    assert_eq!(resource.nodes[1].name, "old");
    assert!(resource.node("bob-old").is_some());
}

#[test]
fn skipped_parts_may_hold_anything() {
    let loaded = load_text(&format!(
        "skip resource r1 {{ this is {{ not }} a ; config\n }}\nskip {{ }}\nresource r0 {{ skip on x {{ nonsense }} {TWO_NODES} }}"
    ));
    assert!(loaded.errors.is_empty(), "{}", messages(&loaded));
    assert_eq!(loaded.resources.len(), 1);
    assert_eq!(loaded.skipped.len(), 1);
    assert_eq!(
        (loaded.skipped[0].name.as_str(), loaded.skipped[0].reason),
        ("r1", SkipReason::Skip)
    );
}

#[test]
fn a_stacked_resource_takes_no_part_and_is_reported() {
    let loaded = load_text(&format!(
        "resource r0 {{ {TWO_NODES} }}
         resource r1 {{ stacked-on-top-of r0 {{ device minor 10; address 10.9.0.1:7789; }}
                        on charlie {{ device minor 10; disk /dev/sdc; address 10.9.0.3:7789; meta-disk internal; }} }}"
    ));
    assert!(loaded.errors.is_empty(), "{}", messages(&loaded));
    assert_eq!(loaded.resources.len(), 1);
    assert_eq!(
        (loaded.skipped[0].name.as_str(), loaded.skipped[0].reason),
        ("r1", SkipReason::Stacked)
    );
    assert_eq!(loaded.ignored[0].option, "stacked-on-top-of");
}

#[test]
fn proxies_are_accepted_and_ignored() {
    let loaded = load_text(
        "resource r0 { disk /dev/sdb; proxy { memlimit 100M; plugin { zlib level 9; } }
            on alice { address 127.0.0.1:7789; proxy on alice { inside 127.0.0.1:7790; outside 10.0.0.1:7791; } }
            on bob { address 127.0.0.2:7789; } }",
    );
    assert!(loaded.errors.is_empty(), "{}", messages(&loaded));
    assert_eq!(
        loaded
            .ignored
            .iter()
            .map(|ignored| ignored.option.as_str())
            .collect::<Vec<_>>(),
        ["proxy"]
    );
}

#[test]
fn a_syncer_section_goes_where_its_options_live_now() {
    let resource = with_body("syncer { rate 10M; al-extents 257; verify-alg sha1; after none; }");
    assert_eq!(
        resource.connections[0].peer_devices[0]
            .options
            .resync_rate_bytes_per_second,
        10 << 20
    );
    assert_eq!(resource.volumes()[0].options.al_extents, 257);
    assert_eq!(
        resource.connections[0].net.verify_alg.as_deref(),
        Some("sha1")
    );
}

#[test]
fn required_module_versions_are_accepted_and_ignored() {
    let loaded = load_text("require-drbd-module-version-ge 9.0.16;\n");
    assert!(loaded.errors.is_empty());
    assert_eq!(loaded.ignored[0].option, "require-drbd-module-version-ge");
}

#[test]
fn a_bare_word_may_be_quoted_and_options_may_be_negated() {
    let resource = with_body(
        "disk { no-disk-flushes; md-flushes no; disk-drain yes; } net { always-asbp; max-buffers \"8K\"; }",
    );
    assert!(!resource.volumes()[0].options.disk_flushes);
    assert!(!resource.volumes()[0].options.md_flushes);
    assert!(resource.volumes()[0].options.disk_drain);
    assert!(resource.connections[0].net.always_asbp);
    assert_eq!(resource.connections[0].net.max_buffers, 8192);
}

#[test]
fn includes_are_relative_sorted_and_read_once() {
    let one = |name: &str, net: u8| {
        format!(
            "resource {name} {{ on alice {{ disk /dev/{name}; address 10.0.{net}.1:1; }} on bob {{ disk /dev/{name}; address 10.0.{net}.2:1; }} }}"
        )
    };
    let loaded = load_files(&[
        (
            "etc/qrbd.conf",
            "include \"qrbd.d/*.res\";\ninclude \"qrbd.d/a.res\";\ninclude \"nothing-here/*.res\";\ninclude qrbd.conf;\n",
        ),
        ("etc/qrbd.d/b.res", &one("b", 2)),
        (
            "etc/qrbd.d/a.res",
            &format!("{}\ninclude \"more/c.res\";", one("a", 1)),
        ),
        ("etc/qrbd.d/more/c.res", &one("c", 3)),
        ("etc/qrbd.d/ignored.bak", "nonsense"),
    ]);
    assert!(loaded.errors.is_empty(), "{}", messages(&loaded));
    let names: Vec<_> = loaded
        .resources
        .iter()
        .map(|resource| resource.name.as_str())
        .collect();
    assert_eq!(names, ["a", "c", "b"]);
    assert_eq!(loaded.files.len(), 4);
}

#[test]
fn a_missing_include_is_an_error_that_names_the_path() {
    let loaded = load_text("common { }\ninclude \"gone.res\";\n");
    assert_eq!(
        summaries(&loaded),
        ["qrbd.conf:2:9: cannot read gone.res: No such file or directory (os error 2)"]
    );
}

#[test]
fn includes_nest_ten_deep() {
    let names: Vec<String> = (0..=11).map(|number| format!("f{number}.conf")).collect();
    let texts: Vec<String> = (0..=11)
        .map(|number| format!("include \"f{}.conf\";", number + 1))
        .collect();
    let all: Vec<(&str, &str)> = names
        .iter()
        .zip(&texts)
        .map(|(name, text)| (name.as_str(), text.as_str()))
        .collect();
    let loaded = load_files(&all);
    assert_eq!(
        summaries(&loaded),
        ["f10.conf:1:9: `include` is nested deeper than 10"]
    );
    assert_eq!(loaded.files.len(), 11);
}

#[test]
fn a_template_file_replaces_common() {
    let loaded = load_files(&[
        (
            "qrbd.conf",
            &format!(
                "common {{ net {{ timeout 50; max-buffers 100; }} }}\nresource r0 {{ template-file \"t.conf\"; {TWO_NODES} }}"
            ),
        ),
        ("t.conf", "common { net { max-buffers 200; } }"),
    ]);
    assert!(loaded.errors.is_empty(), "{}", messages(&loaded));
    let net = &loaded.resources[0].connections[0].net;
    assert_eq!((net.timeout_ms, net.max_buffers), (6000, 200));
}

#[test]
fn a_missing_main_file_is_an_error_that_names_it() {
    let loaded = load_as(std::path::Path::new("/nonexistent/qrbd.conf"), "alice");
    assert_eq!(
        summaries(&loaded),
        ["cannot read /nonexistent/qrbd.conf: No such file or directory (os error 2)"]
    );
    assert!(loaded.resources.is_empty());
}

#[test]
fn a_directory_or_a_device_as_main_file_is_refused() {
    assert_eq!(
        summaries(&load_as(std::path::Path::new("/dev"), "alice")),
        ["/dev is a directory"]
    );
    assert_eq!(
        summaries(&load_as(std::path::Path::new("/dev/zero"), "alice")),
        ["/dev/zero is not a regular file"]
    );
}

#[test]
fn a_file_over_the_limit_is_refused() {
    let loaded = load_text(&"#".repeat((1 << 20) + 1));
    assert!(
        loaded.errors[0].message.contains("is too large"),
        "{}",
        messages(&loaded)
    );
}

#[test]
fn names_that_would_confuse_commands_are_refused() {
    for name in ["all", "../r0", "a/b", "r0:bob", "\"\"", "-r", "\"r 0\""] {
        let loaded = load_text(&format!("resource {name} {{ {TWO_NODES} }}"));
        assert_eq!(loaded.errors.len(), 1, "{name}");
        assert!(
            loaded.errors[0]
                .message
                .contains("cannot be the name of a resource"),
            "{name}"
        );
    }
    assert!(error_with_body("on \"x/y\" { }").contains("is not a host name"));
}
