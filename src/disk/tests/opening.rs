//! Opening, claiming and probing disks; the synchronous helpers; disks that are too small or full.

mod common;

use std::fs::{File, OpenOptions as FileOptions};
use std::os::unix::fs::OpenOptionsExt;

use common::{LoopDevice, Mount, file_of, pattern};
use proptest::prelude::*;
use qrbd_disk::{DeviceKind, DiskErrorKind, OpenOptions, Operation};

const SHARED: OpenOptions = OpenOptions {
    direct: true,
    read_only: false,
    exclusive: false,
};
const READ_ONLY: OpenOptions = OpenOptions {
    direct: true,
    read_only: true,
    exclusive: false,
};

#[test]
fn file_opens_with_its_size_and_a_power_of_two_alignment() {
    let (_folder, path) = file_of(3 << 20);
    let disk = qrbd_disk::open(&path, OpenOptions::default()).expect("open");
    let info = disk.info();
    assert_eq!((info.kind, info.size), (DeviceKind::File, 3 << 20));
    assert!(info.alignment.is_power_of_two() && info.alignment >= 512);
    assert!(info.can_discard && info.discard_zeroes);
    assert_eq!(disk.current_size().expect("size"), 3 << 20);
}

#[test]
fn odd_tail_of_a_file_is_left_out_with_a_notice() {
    let (_folder, path) = file_of((1 << 20) + 100);
    let disk = qrbd_disk::open(&path, OpenOptions::default()).expect("open");
    assert_eq!(disk.info().size, 1 << 20);
    assert!(
        disk.notices()
            .iter()
            .any(|notice| notice.contains("last 100 bytes")),
        "{:?}",
        disk.notices()
    );
}

#[test]
fn missing_file_and_folder_are_told_apart() {
    let folder = tempfile::tempdir().expect("folder");
    let missing =
        qrbd_disk::open(folder.path().join("none"), OpenOptions::default()).expect_err("missing");
    assert_eq!(missing.kind, DiskErrorKind::NotFound);
    assert!(missing.to_string().contains("none"), "{missing}");
    let not_a_disk = qrbd_disk::open(folder.path(), OpenOptions::default()).expect_err("a folder");
    assert_eq!(not_a_disk.kind, DiskErrorKind::NotADisk);
    let character =
        qrbd_disk::open("/dev/null", OpenOptions::default()).expect_err("a character device");
    assert_eq!(character.kind, DiskErrorKind::NotADisk);
}

#[test]
fn second_owner_of_a_file_is_told_who_holds_it() {
    let (_folder, path) = file_of(1 << 20);
    let first = qrbd_disk::open(&path, OpenOptions::default()).expect("open");
    let error = qrbd_disk::open(&path, OpenOptions::default()).expect_err("locked");
    assert_eq!(error.kind, DiskErrorKind::Busy);
    assert!(
        error
            .to_string()
            .contains(&format!("process {}", std::process::id())),
        "{error}"
    );
    qrbd_disk::open(&path, READ_ONLY).expect("looking without a claim");
    drop(first);
    qrbd_disk::open(&path, OpenOptions::default()).expect("free again");
}

#[test]
fn file_behind_a_loop_device_is_busy() {
    if !common::can_use_loop_devices() {
        return;
    }
    let device = LoopDevice::new(1 << 20, 512);
    let error = qrbd_disk::open(&device.file, OpenOptions::default()).expect_err("attached");
    assert_eq!(error.kind, DiskErrorKind::Busy);
    assert!(
        error
            .to_string()
            .contains(device.path.to_str().expect("plain path")),
        "{error}"
    );
}

#[test]
fn loop_device_tells_its_sector_size() {
    if !common::can_use_loop_devices() {
        return;
    }
    let device = LoopDevice::new(8 << 20, 4096);
    let disk = qrbd_disk::open(&device.path, OpenOptions::default()).expect("open");
    let info = disk.info();
    assert_eq!(
        (info.kind, info.size, info.logical_block, info.alignment),
        (DeviceKind::Loop, 8 << 20, 4096, 4096)
    );
    assert!(info.direct);
}

#[test]
fn claimed_block_device_is_busy() {
    if !common::can_use_loop_devices() {
        return;
    }
    let device = LoopDevice::new(1 << 20, 512);
    let first = qrbd_disk::open(&device.path, OpenOptions::default()).expect("open");
    let error = qrbd_disk::open(&device.path, OpenOptions::default()).expect_err("claimed");
    assert_eq!(error.kind, DiskErrorKind::Busy);
    assert!(
        error
            .to_string()
            .contains("busy: already mounted or claimed by"),
        "{error}"
    );
    drop(first);
    qrbd_disk::open(&device.path, OpenOptions::default()).expect("free again");
}

#[test]
fn mounted_block_device_is_busy_and_names_the_mount_point() {
    if !common::can_use_loop_devices() {
        return;
    }
    let device = LoopDevice::new(16 << 20, 512);
    let mount = Mount::ext4(&device.path);
    let error = qrbd_disk::open(&device.path, OpenOptions::default()).expect_err("mounted");
    assert_eq!(error.kind, DiskErrorKind::Busy);
    assert!(
        error
            .to_string()
            .contains(mount.folder.path().to_str().expect("plain path")),
        "{error}"
    );
}

#[test]
fn read_only_block_device_is_refused_for_writing() {
    if !common::can_use_loop_devices() {
        return;
    }
    let device = LoopDevice::new(1 << 20, 512);
    common::command(
        "blockdev",
        &["--setro", device.path.to_str().expect("plain path")],
    )
    .expect("blockdev");
    let error = qrbd_disk::open(&device.path, OpenOptions::default()).expect_err("read-only");
    assert!(
        matches!(
            error.kind,
            DiskErrorKind::ReadOnly | DiskErrorKind::PermissionDenied
        ),
        "{error}"
    );
    qrbd_disk::open(&device.path, READ_ONLY).expect("reading");
}

#[test]
fn read_only_disk_refuses_changes() {
    common::run(async {
        let (folder, path) = file_of(1 << 20);
        let pool = qrbd_disk::Pool::default();
        let reactor =
            qrbd_disk::UringReactor::new(qrbd_disk::UringOptions::default(), pool.clone())
                .expect("ring");
        let disk = qrbd_disk::open(&path, READ_ONLY).expect("open");
        assert_eq!(
            disk.write_all_at(0, &[1; 512]).expect_err("read-only").kind,
            DiskErrorKind::ReadOnly
        );
        let device = Box::new(reactor.attach(disk));
        let case = common::Case {
            device,
            reactor: Box::new(reactor),
            pool,
            held: vec![Box::new(folder)],
        };
        let payload = case.pool.copy_from(&[1; 4096]);
        for change in [
            Operation::Write {
                offset: 0,
                payload,
                durable: false,
            },
            Operation::Discard {
                offset: 0,
                length: 4096,
            },
            Operation::WriteZeroes {
                offset: 0,
                length: 4096,
                may_unmap: true,
            },
        ] {
            assert_eq!(
                case.carry_out(change).await.expect_err("read-only").kind,
                DiskErrorKind::ReadOnly
            );
        }
        assert!(case.read(0, 4096).await.iter().all(|&byte| byte == 0));
    });
}

#[test]
fn direct_io_can_be_declined() {
    let (_folder, path) = file_of(1 << 20);
    let options = OpenOptions {
        direct: false,
        ..OpenOptions::default()
    };
    let disk = qrbd_disk::open(&path, options).expect("open");
    assert!(!disk.info().direct);
    assert_eq!(disk.notices(), [] as [String; 0]);
}

#[test]
fn tmpfs_works_with_or_without_direct_io() {
    if !common::can_use_loop_devices() {
        return;
    }
    let mount = Mount::tmpfs(2 << 20);
    let path = mount.folder.path().join("disk");
    File::create(&path)
        .and_then(|file| file.set_len(1 << 20))
        .expect("file");
    let disk = qrbd_disk::open(&path, OpenOptions::default()).expect("open");
    assert_eq!(
        disk.info().direct,
        disk.notices().is_empty(),
        "a fallback is announced: {:?}",
        disk.notices()
    );
    disk.write_all_at(512, &pattern(1, 1024)).expect("write");
    let mut back = [0; 1024];
    disk.read_exact_at(512, &mut back).expect("read");
    assert_eq!(back[..], pattern(1, 1024)[..]);
}

#[test]
fn disk_that_shrank_gives_unexpected_end() {
    common::run(async {
        let (folder, path) = file_of(1 << 20);
        let case = common::on_ring(&path, vec![Box::new(folder)]);
        FileOptions::new()
            .write(true)
            .open(&path)
            .and_then(|file| file.set_len(512 << 10))
            .expect("shrink");
        for (offset, length) in [(768 << 10, 4096), ((512 << 10) - 4096, 8192)] {
            let error = case
                .carry_out(Operation::Read { offset, length })
                .await
                .expect_err("beyond the end");
            assert_eq!(error.kind, DiskErrorKind::UnexpectedEnd, "{error}");
            assert!(error.to_string().contains("smaller"), "{error}");
        }
        case.read(0, 4096).await;
    });
}

#[test]
fn shrunken_disk_tells_its_current_size_and_fails_synchronous_reads() {
    let (_folder, path) = file_of(1 << 20);
    let disk = qrbd_disk::open(&path, OpenOptions::default()).expect("open");
    FileOptions::new()
        .write(true)
        .open(&path)
        .and_then(|file| file.set_len(512 << 10))
        .expect("shrink");
    assert_eq!(disk.current_size().expect("size"), 512 << 10);
    let error = disk
        .read_exact_at(768 << 10, &mut [0; 100])
        .expect_err("beyond the end");
    assert_eq!(error.kind, DiskErrorKind::UnexpectedEnd);
    assert_eq!(error.range, Some((768 << 10, 100)));
}

async fn sparse_file_on_a_full_file_system(mount: &Mount) {
    let path = mount.folder.path().join("disk");
    File::create(&path)
        .and_then(|file| file.set_len(64 << 20))
        .expect("sparse file");
    let case = common::on_ring(&path, Vec::new());
    let mut failure = None;
    for index in 0..64u64 {
        let payload = case.pool.copy_from(&pattern(index, 1 << 20));
        let result = case
            .carry_out(Operation::Write {
                offset: index << 20,
                payload,
                durable: true,
            })
            .await;
        if let Err(error) = result {
            failure = Some((index, error));
            break;
        }
    }
    let (index, error) = failure.expect("64 MiB do not fit");
    assert_eq!(error.kind, DiskErrorKind::NoSpace, "{error}");
    assert_eq!(error.range, Some((index << 20, 1 << 20)));
    assert!(error.to_string().contains("full"), "{error}");
    if index > 0 {
        assert_eq!(
            &*case.read(0, 1 << 20).await,
            &pattern(0, 1 << 20)[..],
            "what was written before stays"
        );
    }
}

#[test]
fn full_tmpfs_is_an_ordinary_write_error() {
    if common::can_use_loop_devices() {
        common::run(async { sparse_file_on_a_full_file_system(&Mount::tmpfs(4 << 20)).await });
    }
}

#[test]
fn full_ext4_is_an_ordinary_write_error() {
    if common::can_use_loop_devices() {
        let device = LoopDevice::new(16 << 20, 512);
        let mount = Mount::ext4(&device.path);
        common::run(async { sparse_file_on_a_full_file_system(&mount).await });
    }
}

#[test]
fn synchronous_helpers_refuse_what_lies_outside() {
    let (_folder, path) = file_of(1 << 20);
    let disk = qrbd_disk::open(&path, OpenOptions::default()).expect("open");
    assert_eq!(
        disk.write_all_at((1 << 20) - 1, &[1, 2])
            .expect_err("outside")
            .kind,
        DiskErrorKind::OutOfRange
    );
    assert_eq!(
        disk.read_exact_at(u64::MAX, &mut [0])
            .expect_err("outside")
            .kind,
        DiskErrorKind::OutOfRange
    );
    disk.write_all_at((1 << 20) - 1, &[9])
        .expect("the last byte");
    disk.sync().expect("sync");
}

#[test]
fn synchronous_helpers_see_what_the_page_cache_sees() {
    let (_folder, path) = file_of(1 << 20);
    let disk = qrbd_disk::open(&path, SHARED).expect("open");
    disk.write_all_at(1000, b"hello").expect("write");
    disk.sync().expect("sync");
    let plain = FileOptions::new()
        .read(true)
        .custom_flags(0)
        .open(&path)
        .expect("plain");
    let mut back = [0; 7];
    std::os::unix::fs::FileExt::read_exact_at(&plain, &mut back, 999).expect("read");
    assert_eq!(&back, b"\0hello\0");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn synchronous_helpers_behave_like_an_array(
        writes in prop::collection::vec((0u64..3_000_000, 0usize..1_500_000, any::<u64>()), 1..8),
        alignment_probe in 0u64..3_000_000,
    ) {
        const BYTES: u64 = 4 << 20;
        let (_folder, path) = file_of(BYTES);
        let disk = qrbd_disk::open(&path, OpenOptions::default()).expect("open");
        let mut model = vec![0u8; BYTES as usize];
        for (offset, length, seed) in writes {
            let length = length.min((BYTES - offset) as usize);
            let bytes = pattern(seed, length);
            disk.write_all_at(offset, &bytes).expect("write");
            model[offset as usize..offset as usize + length].copy_from_slice(&bytes);
        }
        let mut back = vec![0u8; BYTES as usize];
        disk.read_exact_at(0, &mut back).expect("read");
        prop_assert!(back == model, "whole disk");
        let mut part = vec![0u8; 70_001];
        disk.read_exact_at(alignment_probe, &mut part).expect("read");
        prop_assert!(part[..] == model[alignment_probe as usize..alignment_probe as usize + part.len()], "part");
    }
}

#[cfg(feature = "loop")]
#[test]
fn attached_file_is_a_disk_until_it_is_dropped() {
    if !common::can_use_loop_devices() {
        return;
    }
    let (_folder, path) = file_of(1 << 20);
    let attached = qrbd_disk::loop_device::AttachedFile::new(&path).expect("attach");
    let disk = qrbd_disk::open(attached.path(), OpenOptions::default()).expect("open");
    assert_eq!(
        (disk.info().kind, disk.info().size),
        (DeviceKind::Loop, 1 << 20)
    );
    disk.write_all_at(100, b"through the loop").expect("write");
    disk.sync().expect("sync");
    drop(disk);
    assert_eq!(
        qrbd_disk::open(&path, OpenOptions::default())
            .expect_err("attached")
            .kind,
        DiskErrorKind::Busy
    );
    drop(attached);
    let file = qrbd_disk::open(&path, OpenOptions::default()).expect("detached");
    let mut back = [0; 16];
    file.read_exact_at(100, &mut back).expect("read");
    assert_eq!(&back, b"through the loop");
}
