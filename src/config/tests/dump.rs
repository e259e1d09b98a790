//! The dump is a configuration that means the same.

mod support;

use qrbd_config::{Loaded, Resource, dump, dump_resource};
use support::{TWO_NODES, load_files, load_text, messages};

/// The resources without the places where they were written.
fn meaning(loaded: &Loaded) -> Vec<Resource> {
    let mut resources = loaded.resources.clone();
    for resource in &mut resources {
        resource.position.file = "".into();
        resource.position.line = 0;
        resource.position.column = 0;
        resource.inherits_common = true;
        for connection in &mut resource.connections {
            connection.implicit = false;
        }
    }
    resources
}

fn round_trip(files: &[(&str, &str)]) {
    let loaded = load_files(files);
    assert!(loaded.errors.is_empty(), "{}", messages(&loaded));
    assert!(!loaded.resources.is_empty());
    let text = dump(&loaded);
    let again = load_text(&text);
    assert!(again.errors.is_empty(), "{}\n{text}", messages(&again));
    assert_eq!(meaning(&again), meaning(&loaded), "{text}");
    assert_eq!(again.global, loaded.global);
    if loaded
        .resources
        .iter()
        .all(|resource| resource.inherits_common)
    {
        assert_eq!(again.common, loaded.common);
    }
    for resource in &loaded.resources {
        let alone = load_text(&dump_resource(resource));
        assert!(alone.errors.is_empty(), "{}", messages(&alone));
        let mut original = meaning(&loaded);
        original.retain(|other| other.name == resource.name);
        assert_eq!(meaning(&alone), original, "a resource's text stands alone");
    }
}

#[test]
fn a_plain_resource_survives() {
    round_trip(&[("qrbd.conf", &format!("resource r0 {{ {TWO_NODES} }}"))]);
}

#[test]
fn every_level_of_options_survives() {
    round_trip(&[(
        "qrbd.conf",
        r#"global { usage-count no; minor-count 8; cmd-timeout-long 100; }
        common { protocol A; net { shared-secret "a \"b\" \\c ;{#"; congestion-fill 100M; on-congestion pull-ahead; }
                 disk { resync-rate 10M; c-fill-target 24M; size 100G; no-md-flushes; read-balancing 32K-striping; }
                 handlers { fence-peer "/usr/lib/fence \"$X\" > /dev/null; exit 7"; } }
        resource "r-1.x" {
            options { quorum majority; nbd-listen [::1]:7000; cpu-mask "0f"; }
            startup { wfc-timeout 15; become-primary-on alice bob; }
            net { ping-timeout 20; verify-alg sha1; }
            volume 0 { device minor 0; disk /dev/sda; meta-disk /dev/md[1]; disk { al-extents 67; } }
            volume 2 { device drbd_data minor 2; disk "/srv/with space.img"; meta-disk /dev/md2; }
            on alice alice.example { address 10.0.0.1:7789; volume 0 { disk { on-io-error pass_on; } } disk { disk-timeout 3; } options { auto-promote; } }
            on bob { address 10.0.0.2:7789; volume 2 { disk none; } }
        }"#,
    )]);
}

#[test]
fn connections_with_paths_and_volumes_survive() {
    round_trip(&[(
        "qrbd.conf",
        "resource r0 {
            disk /dev/sdb;
            on alice { node-id 5; address 10.0.0.1:7789; }
            on address { node-id 6; }
            floating [fd00::1]:7789 { node-id 7; device minor 9; }
            connection { host alice port 7000; host address address 10.0.0.2:7001; net { protocol B; } disk { c-max-rate 5M; } volume 0 { disk { bitmap no; } } }
            connection { path { host alice address [fd00::2]:1; host \"[fd00::1]:7789\"; } path { host alice address [fd00::3]:2; host \"[fd00::1]:7789\" port 4; } }
        }",
    )]);
}

#[test]
fn templates_meshes_and_floating_nodes_survive() {
    round_trip(&[
        (
            "qrbd.conf",
            "common { net { timeout 20; } }
             resource r0 { template-file t; device minor 1; disk /dev/a;
                on alice { node-id 0; address 10.0.0.1:1; } on b { node-id 1; address 10.0.0.2:1; } on c { node-id 2; address 10.0.0.3:1; }
                connection-mesh { hosts alice b c; } }
             resource r1 { disk /dev/b; floating 10.0.0.1:2 { } floating 10.0.0.2:2 { } }",
        ),
        ("t", "common { net { ko-count 3; } }"),
    ]);
}

#[test]
fn a_resource_that_is_not_for_this_host_says_so() {
    let loaded = load_text(&format!(
        "resource r0 {{ {} }}",
        TWO_NODES.replace("alice", "carl")
    ));
    assert!(dump(&loaded).contains("# resource r0: not for this host\n"));
}
