//! Every line that scripts read, against golden texts.

use qrbd_control::generations::{GenerationReport, PeerFlags, PeerGeneration, VolumeFlags};
use qrbd_control::status::{
    ConnectionState, DeviceStatus, DiskState, ReplicationState, Role, SyncKind,
};
use qrbd_control::{Progress, StatusReport};
use qrbd_engine::metadata::image::{CreateOptions, LoggedExtents, create};
use qrbd_engine::metadata::layout::Placement;
use qrbd_engine::units::{Generation, NodeId};
use qrbd_tools::show::text::{Options, status};
use qrbd_tools::show::{generations, json, metadata, progress, queries};

use super::fixtures::{
    connection, device, healthy, peer_device, resource, syncing, two_volumes_syncing,
};

fn plain(report: &StatusReport) -> String {
    status(report, Options::default())
}

#[test]
fn nothing_configured_says_so() {
    assert_eq!(
        plain(&StatusReport::default()),
        "# No currently configured QRBD found.\n"
    );
    assert_eq!(json::status(&StatusReport::default()), "[]\n");
}

#[test]
fn healthy_pair_prints_drbds_four_lines() {
    assert_eq!(
        plain(&healthy()),
        "r0 role:Primary\n\
         \x20 disk:UpToDate open:yes\n\
         \x20 bob role:Secondary\n\
         \x20   peer-disk:UpToDate\n\
         \n"
    );
}

#[test]
fn volumes_appear_when_there_are_several_and_a_lost_peer_shows_its_connection() {
    assert_eq!(
        plain(&two_volumes_syncing()),
        "r0 role:Primary\n\
         \x20 volume:0 disk:UpToDate\n\
         \x20 volume:1 disk:UpToDate\n\
         \x20 bob role:Secondary\n\
         \x20   volume:0 replication:SyncSource peer-disk:Inconsistent done:41.35\n\
         \x20   volume:1 peer-disk:UpToDate\n\
         \x20 carol connection:Connecting\n\
         \n"
    );
}

#[test]
fn what_is_wrong_is_shown_without_asking() {
    let mut report = healthy();
    let resource = &mut report.resources[0];
    resource.suspended_quorum = true;
    resource.suspended_user = true;
    resource.devices[0].quorum = false;
    resource.devices[0].open = false;
    resource.devices[0].disk_state = DiskState::Diskless;
    resource.devices[0].upper_blocked = true;
    resource.connections[0].congested = true;
    let peer_device = &mut resource.connections[0].peer_devices[0];
    peer_device.replication_state = ReplicationState::PausedSyncS;
    peer_device.out_of_sync_kib = 524_288;
    peer_device.resync_suspended_user = true;
    peer_device.resync_suspended_dependency = true;
    assert_eq!(
        plain(&report),
        "r0 role:Primary suspended:user,quorum\n\
         \x20 disk:Diskless client:no quorum:no blocked:upper\n\
         \x20 bob role:Secondary congested:yes ap-in-flight:8 rs-in-flight:16\n\
         \x20   replication:PausedSyncS peer-disk:UpToDate done:50.00 resync-suspended:user,dependency\n\
         \n"
    );
}

#[test]
fn reason_of_a_missing_connection_is_told() {
    let mut report = healthy();
    let bob = &mut report.resources[0].connections[0];
    bob.connection_state = ConnectionState::StandAlone;
    bob.peer_role = Role::Unknown;
    bob.reason = Some("no key file\n/etc/qrbd/authkey".into());
    assert_eq!(
        plain(&report),
        "r0 role:Primary\n\
         \x20 disk:UpToDate open:yes\n\
         \x20 bob connection:StandAlone\n\
         \x20   # no key file /etc/qrbd/authkey\n\
         \n"
    );
    assert!(json::status(&report).contains("\"reason\": \"no key file\\n/etc/qrbd/authkey\""));
}

#[test]
fn verbose_and_statistics_print_every_field() {
    let report = StatusReport {
        resources: vec![resource(
            vec![DeviceStatus {
                device_path: None,
                minor: -1,
                ..device(0)
            }],
            vec![connection("bob", 1, vec![syncing(0)])],
        )],
    };
    assert_eq!(
        status(
            &report,
            Options {
                verbose: 1,
                statistics: true
            }
        ),
        "r0 node-id:0 role:Primary suspended:no force-io-failures:no\n\
         \x20   write-ordering:flush\n\
         \x20 volume:0 minor:-1 disk:UpToDate backing_dev:/dev/vg/r0 open:no quorum:yes\n\
         \x20     size:1048576 read:100 written:200 al-writes:3 bm-writes:4 upper-pending:5 lower-pending:6 \
         al-suspended:no blocked:no\n\
         \x20     # no kernel device: reach the volume as NBD export 'r0/0'\n\
         \x20 bob node-id:1 connection:Connected role:Secondary congested:no ap-in-flight:8 rs-in-flight:16\n\
         \x20   volume:0 replication:SyncSource peer-disk:Inconsistent done:41.35 resync-suspended:no\n\
         \x20       received:0 sent:1000 out-of-sync:615014 pending:0 unacked:0 dbdt1:100.00 eta:6\n\
         \n"
    );
    assert_eq!(
        status(
            &healthy(),
            Options {
                verbose: 0,
                statistics: true
            }
        ),
        "r0 role:Primary\n\
         \x20 disk:UpToDate open:yes\n\
         \x20     read:100 written:200\n\
         \x20 bob role:Secondary\n\
         \x20   peer-disk:UpToDate\n\
         \x20       received:0 sent:1000\n\
         \n"
    );
}

#[test]
fn json_has_drbds_fields_in_drbds_order() {
    let report = StatusReport {
        resources: vec![resource(
            vec![device(0)],
            vec![connection("bob", 1, vec![syncing(0)])],
        )],
    };
    assert_eq!(json::status(&report), include_str!("golden/syncing.json"));
}

#[test]
fn json_of_a_volume_in_sync_has_no_sync_fields() {
    let text = json::status(&healthy());
    assert!(
        text.contains("\"has-sync-details\": false") && text.contains("\"percent-in-sync\": 100.0"),
        "{text}"
    );
    assert!(
        !text.contains("rs-total") && !text.contains("percent-resync-done"),
        "{text}"
    );
}

#[test]
fn json_of_a_verify_has_the_verify_fields() {
    let mut verifying = syncing(0);
    verifying.replication_state = ReplicationState::VerifyS;
    verifying.sync.as_mut().unwrap().kind = SyncKind::Verify {
        start_sector: 1,
        stop_sector: 2,
        position_sector: 3,
        left_sectors: 1_048_576,
        skipped_sectors: 5,
    };
    let report = StatusReport {
        resources: vec![resource(
            vec![device(0)],
            vec![connection("bob", 1, vec![verifying])],
        )],
    };
    let value: serde_json::Value = serde_json::from_str(&json::status(&report)).unwrap();
    let peer_device = &value[0]["connections"][0]["peer_devices"][0];
    assert_eq!(peer_device["has-online-verify-details"], true);
    assert_eq!(peer_device["ov-left"], 1_048_576);
    assert_eq!(peer_device["percent-resync-done"], 50.0);
    assert!(peer_device.get("rs-failed").is_none());
}

#[test]
fn one_line_queries_answer_as_drbdadm_does() {
    let report = two_volumes_syncing();
    let resource = &report.resources[0];
    assert_eq!(queries::role(resource, None).unwrap(), "Primary\n");
    assert_eq!(queries::role(resource, Some("bob")).unwrap(), "Secondary\n");
    assert_eq!(queries::role(resource, Some("eve")), None);
    assert_eq!(
        queries::cstate(resource, None).unwrap(),
        "Connected\nConnecting\n"
    );
    assert_eq!(
        queries::cstate(resource, Some("carol")).unwrap(),
        "Connecting\n"
    );
    assert_eq!(
        queries::dstate(resource, None).unwrap(),
        "UpToDate/Inconsistent/DUnknown\nUpToDate/UpToDate/DUnknown\n"
    );
    assert_eq!(
        queries::dstate(resource, Some(1)).unwrap(),
        "UpToDate/UpToDate/DUnknown\n"
    );
    assert_eq!(queries::dstate(resource, Some(7)), None);
}

fn generation_report() -> GenerationReport {
    GenerationReport {
        resource: "r0".into(),
        volume: 0,
        current: 0x0123_4567_89AB_CDEF,
        history: vec![0xA, 0xB, 0xC],
        flags: VolumeFlags {
            consistent: true,
            was_up_to_date: true,
            primary: true,
            ..VolumeFlags::default()
        },
        peers: vec![
            PeerGeneration {
                node_id: 1,
                name: "bob".into(),
                bitmap: 0xFEDC,
                flags: PeerFlags {
                    connected: true,
                    device_seen: true,
                    ..PeerFlags::default()
                },
            },
            PeerGeneration {
                node_id: 2,
                ..PeerGeneration::default()
            },
        ],
    }
}

#[test]
fn get_gi_prints_one_line_per_peer() {
    assert_eq!(
        generations::get_gi(&generation_report()),
        "0123456789ABCDEF:000000000000FEDC:000000000000000A:000000000000000B:1:1:1:0:0:0:0:1:0:0:0:1\n\
         0123456789ABCDEF:0000000000000000:000000000000000A:000000000000000B:1:1:1:0:0:0:0:0:0:0:0:0\n"
    );
    let alone = GenerationReport {
        current: 4,
        ..GenerationReport::default()
    };
    assert_eq!(
        generations::get_gi(&alone),
        "0000000000000004:0000000000000000:0000000000000000:0000000000000000:0:0:0:0:0:0:0:0:0:0:0:0\n"
    );
}

#[test]
fn show_gi_points_at_every_field() {
    assert_eq!(
        generations::show_gi(&generation_report()),
        include_str!("golden/show-gi.txt")
    );
}

#[test]
fn dump_md_prints_every_field_of_the_metadata() {
    let mut image = create(&CreateOptions {
        placement: Placement::Internal,
        device_bytes: 1 << 30,
        max_peers: 2,
        node_id: NodeId(0),
        device_uuid: 0x1122_3344_5566_7788,
        al_slots: 1237,
    })
    .unwrap();
    image.superblock.flags.consistent = true;
    image.superblock.flags.was_up_to_date = true;
    image.superblock.current = Generation(0xCAFE);
    image.superblock.push_history(Generation(0xA0));
    image.superblock.effective_bytes = 1 << 29;
    let slot = image.superblock.allocate_slot(NodeId(1)).unwrap();
    image.superblock.peers[slot].bitmap = Generation(0xB0);
    image.superblock.peers[slot].flags.full_sync = true;
    image.bitmaps[slot].set(16..24);
    image.bitmaps[slot].set(100..101);
    assert_eq!(metadata::dump(&image), include_str!("golden/dump-md.txt"));

    image.logged = LoggedExtents::Known(vec![3, 5]);
    assert!(metadata::dump(&image).contains("# activity log, not applied: extents 3 5\n"));
}

#[test]
fn disk_state_is_told_from_the_flags() {
    let mut superblock = create(&CreateOptions {
        placement: Placement::Internal,
        device_bytes: 1 << 30,
        max_peers: 1,
        node_id: NodeId(0),
        device_uuid: 1,
        al_slots: 67,
    })
    .unwrap()
    .superblock;
    assert_eq!(metadata::disk_state(&superblock), DiskState::Inconsistent);
    superblock.flags.consistent = true;
    assert_eq!(metadata::disk_state(&superblock), DiskState::Outdated);
    superblock.flags.was_up_to_date = true;
    assert_eq!(metadata::disk_state(&superblock), DiskState::Consistent);
    let slot = superblock.allocate_slot(NodeId(1)).unwrap();
    assert_eq!(metadata::disk_state(&superblock), DiskState::Consistent);
    superblock.peers[slot].flags.outdated = true;
    assert_eq!(metadata::disk_state(&superblock), DiskState::UpToDate);
}

#[test]
fn progress_line_tells_percent_speed_and_time() {
    let report = StatusReport {
        resources: vec![resource(
            vec![device(0)],
            vec![connection("bob", 1, vec![syncing(0), peer_device(1)])],
        )],
    };
    let running = progress::running(&report);
    assert_eq!(running.len(), 1);
    assert_eq!(
        progress::line(&running[0]),
        "r0/0 bob SyncSource 41.35% 100.0 MiB/s 0:00:06 left"
    );
    let waiting = Progress {
        resource: "r0".into(),
        volume: None,
        peer: Some("bob".into()),
        phase: "waiting".into(),
        done_kib: 0,
        total_kib: 0,
        kib_per_second: 0,
        remaining_seconds: None,
    };
    assert_eq!(progress::line(&waiting), "r0 bob waiting");
    let stalled = Progress {
        total_kib: 100,
        done_kib: 300,
        ..waiting
    };
    assert_eq!(progress::line(&stalled), "r0 bob waiting 100.00% (stalled)");
    assert_eq!(progress::clock(3 * 3600 + 65), "3:01:05");
}
