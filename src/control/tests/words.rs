//! Words, numbers and texts that scripts hold on to.

use qrbd_control::status::{
    ConnectionState, DiskState, PeerDeviceStatus, ReplicationState, Role, SyncDetails, SyncKind,
};
use qrbd_control::{KernelError, Refusal, StateChangeError, Target};

#[test]
fn refusals_print_as_drbdsetup_prints_them() {
    let cases = [
        (
            Refusal::from(StateChangeError::NoUpToDateDisk),
            "r0: State change failed: (-2) Need access to UpToDate data",
            17,
        ),
        (
            StateChangeError::TwoPrimaries.into(),
            "r0: State change failed: (-1) Multiple primaries not allowed by config",
            11,
        ),
        (
            StateChangeError::DeviceInUse.into(),
            "r0: State change failed: (-12) Device is held open by someone",
            11,
        ),
        (
            StateChangeError::NoLocalDisk.into(),
            "r0: State change failed: (-4) Can not resync without local disk",
            16,
        ),
        (
            StateChangeError::LowerThanOutdated.into(),
            "r0: State change failed: (-16) Disk state is lower than outdated",
            5,
        ),
        (
            StateChangeError::NoQuorum.into(),
            "r0: State change failed: (-25) No quorum",
            11,
        ),
        (
            KernelError::DiscardImpossible.into(),
            "r0: Failure: (123) --discard-my-data not allowed when primary.",
            10,
        ),
        (
            KernelError::ResourceUnknown.into(),
            "r0: Failure: (158) Unknown resource",
            10,
        ),
        (
            Refusal::wait_timeout("timeout after 5 seconds"),
            "r0: timeout after 5 seconds",
            5,
        ),
        (Refusal::other("out of luck", 20), "r0: out of luck", 20),
    ];
    for (refusal, message, exit_code) in cases {
        assert_eq!(refusal.message("r0"), message);
        assert_eq!(refusal.exit_code, exit_code, "{message}");
    }
}

#[test]
fn detail_follows_on_its_own_line() {
    let refusal =
        Refusal::from(StateChangeError::DeviceInUse).with_detail("opened by nbd client (pid 12)\n");
    assert_eq!(
        refusal.message("r0/0"),
        "r0/0: State change failed: (-12) Device is held open by someone\nopened by nbd client (pid 12)"
    );
}

#[test]
fn numbers_are_unique_and_found_again() {
    for &error in StateChangeError::ALL {
        assert_eq!(StateChangeError::from_number(error.number()), Some(error));
        assert!((-28..=-1).contains(&error.number()));
    }
    for &error in KernelError::ALL {
        assert_eq!(KernelError::from_number(error.number()), Some(error));
        assert!((101..=176).contains(&error.number()));
    }
    assert_eq!(StateChangeError::from_number(-3), None);
    assert_eq!(KernelError::from_number(100), None);
}

#[test]
fn state_words_rank_as_in_drbd() {
    assert!(
        DiskState::Outdated < DiskState::DUnknown && DiskState::DUnknown < DiskState::Consistent
    );
    assert!(
        ReplicationState::Off < ReplicationState::Established
            && ReplicationState::Established < ReplicationState::Ahead
    );
    assert!(ConnectionState::Connecting < ConnectionState::Connected);
    for &word in ReplicationState::ALL {
        assert_eq!(word.as_str().parse(), Ok(word));
    }
    assert!("Syncing".parse::<ReplicationState>().is_err());
    assert_eq!("Primary".parse(), Ok(Role::Primary));
}

#[test]
fn targets_are_read_as_drbdadm_reads_them() {
    for text in ["all", "r0", "r0/1", "r0:bob", "r0:bob/65535"] {
        assert_eq!(text.parse::<Target>().unwrap().to_string(), text);
    }
    assert_eq!("all".parse::<Target>().unwrap(), Target::all());
    for text in [
        "", "/0", ":bob", "r0:", "r0/", "r0/x", "r0/+1", "r0/65536", "all/0", "all:bob",
    ] {
        let error = text.parse::<Target>().expect_err(text);
        assert!(error.to_string().contains("allowed are RES"), "{error}");
    }
}

fn syncing(sync: Option<SyncDetails>) -> PeerDeviceStatus {
    PeerDeviceStatus {
        volume: 0,
        replication_state: ReplicationState::SyncSource,
        peer_disk_state: DiskState::Inconsistent,
        peer_client: false,
        resync_suspended_user: false,
        resync_suspended_peer: false,
        resync_suspended_dependency: false,
        received_kib: 0,
        sent_kib: 0,
        out_of_sync_kib: 512,
        pending: 0,
        unacked: 0,
        sync,
    }
}

fn details(kind: SyncKind) -> SyncDetails {
    SyncDetails {
        total_sectors: 4096,
        dt_start_ms: 3000,
        paused_ms: 1000,
        dt0_ms: 2000,
        db0_sectors: 2048,
        dt1_ms: 1000,
        db1_sectors: 512,
        want_kib_per_second: 0,
        kind,
    }
}

#[test]
fn progress_is_derived_from_the_counters() {
    let peer_device = syncing(Some(details(SyncKind::Resync {
        failed_sectors: 0,
        same_csum_sectors: 0,
    })));
    assert_eq!(peer_device.sectors_to_go(), 1024);
    assert_eq!(peer_device.percent_done(), Some(75.0));
    assert_eq!(peer_device.remaining_seconds(), Some(2.0));
    assert_eq!(peer_device.mean_mib_per_second(), Some(0.75));
    assert_eq!(peer_device.percent_in_sync(2048), 75.0);
    assert_eq!(peer_device.percent_in_sync(0), 0.0);
}

#[test]
fn progress_stays_within_bounds_when_counters_disagree() {
    let mut sync = details(SyncKind::Resync {
        failed_sectors: 1 << 40,
        same_csum_sectors: 0,
    });
    sync.db1_sectors = 0;
    sync.dt1_ms = 0;
    let stalled = syncing(Some(sync.clone()));
    assert_eq!(stalled.sectors_to_go(), 0);
    assert_eq!(stalled.remaining_seconds(), None);
    assert_eq!(stalled.percent_done(), Some(100.0));
    sync.total_sectors = 100;
    sync.kind = SyncKind::Verify {
        start_sector: 0,
        stop_sector: 0,
        position_sector: 0,
        left_sectors: 500,
        skipped_sectors: 0,
    };
    assert_eq!(syncing(Some(sync.clone())).percent_done(), Some(0.0));
    sync.total_sectors = 0;
    assert_eq!(syncing(Some(sync)).percent_done(), Some(0.0));
    assert_eq!(syncing(None).percent_done(), None);
}

#[test]
fn holders_of_the_resync_are_listed() {
    let mut peer_device = syncing(None);
    assert_eq!(peer_device.resync_suspended(), "no");
    peer_device.resync_suspended_user = true;
    peer_device.resync_suspended_dependency = true;
    assert_eq!(peer_device.resync_suspended(), "user,dependency");
}
