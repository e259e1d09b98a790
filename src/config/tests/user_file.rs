//! A file as a user of DRBD has it must work word for word.

mod support;

use qrbd_config::{Device, DiskSource, MetaDisk, Protocol, dump_resource};
use support::{directory, load_as, messages};

const R0_RES: &str = "resource r0 {
    protocol C;
    
    on node1 {
        device /dev/drbd0;
        disk /dev/sdb;
        address 192.168.1.10:7789;
        meta-disk internal;
    }
    
    on node2 {
        device /dev/drbd0;
        disk /dev/sdb;
        address 192.168.1.11:7789;
        meta-disk internal;
    }
}";

fn load_as_node(name: &str) -> qrbd_config::Loaded {
    let directory = directory(&[
        (
            "qrbd.conf",
            "include \"qrbd.d/global_common.conf\";\ninclude \"qrbd.d/*.res\";\n",
        ),
        (
            "qrbd.d/global_common.conf",
            "global { usage-count no; }\ncommon { }\n",
        ),
        ("qrbd.d/r0.res", R0_RES),
    ]);
    let loaded = load_as(&directory.path().join("qrbd.conf"), name);
    assert!(loaded.errors.is_empty(), "{}", messages(&loaded));
    assert!(loaded.ignored.is_empty());
    loaded
}

#[test]
fn both_nodes_read_the_users_file_and_agree_on_the_ids() {
    for (name, own, other) in [("node1", 0, 1), ("node2", 1, 0)] {
        let loaded = load_as_node(name);
        let resource = loaded.resource("r0").expect("r0");
        assert_eq!(resource.local, Some(own));
        assert_eq!(
            resource
                .nodes
                .iter()
                .map(|node| node.node_id)
                .collect::<Vec<_>>(),
            [0, 1]
        );
        let peers: Vec<_> = resource.peers().collect();
        assert_eq!(peers.len(), 1);
        assert_eq!(peers[0].index, other);
        assert_eq!(peers[0].paths[0].local, resource.nodes[own].address);
        assert_eq!(peers[0].paths[0].peer, resource.nodes[other].address);
        assert_eq!(peers[0].connection.net.protocol, Protocol::C);
    }
}

#[test]
fn dev_drbd0_means_minor_0() {
    let loaded = load_as_node("node1");
    let volume = &loaded.resources[0].volumes()[0];
    assert_eq!(volume.number, 0);
    assert_eq!(
        volume.device,
        Some(Device {
            minor: 0,
            name: None
        })
    );
    assert_eq!(volume.disk, DiskSource::Path("/dev/sdb".into()));
    assert_eq!(volume.meta_disk, MetaDisk::Internal);
}

#[test]
fn a_third_host_sees_the_resource_but_has_no_part_in_it() {
    let loaded = load_as_node("node3");
    let resource = loaded.resource("r0").expect("r0");
    assert_eq!(resource.local, None);
    assert!(resource.volumes().is_empty());
    assert_eq!(resource.peers().count(), 0);
    assert_eq!(loaded.local_resources().count(), 0);
}

#[test]
fn the_dump_shows_the_ids() {
    let loaded = load_as_node("node1");
    let text = dump_resource(&loaded.resources[0]);
    let body = text.split_once("resource r0 {").expect("the section").1;
    assert_eq!(
        body,
        "
    on node1 {
        node-id          0;
        volume 0 {
            device           minor 0;
            disk             /dev/sdb;
            meta-disk        internal;
        }
        address          ipv4 192.168.1.10:7789;
    }
    on node2 {
        node-id          1;
        volume 0 {
            device           minor 0;
            disk             /dev/sdb;
            meta-disk        internal;
        }
        address          ipv4 192.168.1.11:7789;
    }
    net {
        protocol         C;
    }
}
"
    );
}
