//! One set of promises, held by every backend: the ring on a file and on a loop device, the disk thread, and memory.

mod common;

use common::{Case, DEVICE_BYTES, pattern};
use qrbd_disk::{DiskErrorKind, MAX_BUFFER_BYTES, Operation, Payload};

const KIB: usize = 1 << 10;
const MIB: usize = 1 << 20;

async fn read_returns_what_was_written(case: &Case) {
    let block = case.device.info().alignment as usize;
    for (seed, (offset, length)) in [
        (0, block),
        (block as u64, 3 * block),
        (64 << 10, 64 * KIB),
        (1 << 20, MIB),
        (4 << 20, MAX_BUFFER_BYTES),
    ]
    .into_iter()
    .enumerate()
    {
        let bytes = pattern(seed as u64, length);
        case.write(offset, &bytes).await;
        assert_eq!(
            &*case.read(offset, length).await,
            &bytes[..],
            "{length} bytes at {offset}"
        );
    }
    let last = DEVICE_BYTES - block as u64;
    case.write(last, &pattern(9, block)).await;
    assert_eq!(
        &*case.read(last, block).await,
        &pattern(9, block)[..],
        "the last block"
    );
}

async fn unwritten_space_reads_as_zeroes(case: &Case) {
    case.write(40 << 20, &pattern(1, 4 * KIB)).await;
    assert!(
        case.read((40 << 20) - 65536, 65536)
            .await
            .iter()
            .all(|&byte| byte == 0)
    );
    assert!(
        case.read((40 << 20) + 4096, 65536)
            .await
            .iter()
            .all(|&byte| byte == 0)
    );
}

async fn each_operation_completes_exactly_once(case: &Case) {
    let count = 1500u64;
    for token in 0..count {
        let payload = case.pool.copy_from(&pattern(token, 4 * KIB));
        case.submit(
            token,
            Operation::Write {
                offset: token * 4096,
                payload,
                durable: false,
            },
        );
    }
    let results = case.finish().await;
    assert_eq!(results.len() as u64, count);
    assert!(results.values().all(|result| matches!(result, Ok(None))));
    for token in 0..count {
        case.submit(
            token,
            Operation::Read {
                offset: token * 4096,
                length: 4096,
            },
        );
    }
    let results = case.finish().await;
    assert_eq!(results.len() as u64, count);
    for (token, result) in results {
        assert_eq!(
            &*result.expect("read").expect("data"),
            &pattern(token, 4 * KIB)[..],
            "block {token}"
        );
    }
}

async fn invalid_requests_are_refused_with_place_and_limit(case: &Case) {
    let block = u64::from(case.device.info().alignment);
    let payload = |length: usize| case.pool.copy_from(&vec![1; length]);
    let fine = payload(block as usize);
    let write = |offset, payload: &Payload| Operation::Write {
        offset,
        payload: payload.clone(),
        durable: false,
    };
    let attempts = [
        (
            Operation::Read {
                offset: DEVICE_BYTES,
                length: block as u32,
            },
            DiskErrorKind::OutOfRange,
        ),
        (write(DEVICE_BYTES, &fine), DiskErrorKind::OutOfRange),
        (
            Operation::Discard {
                offset: u64::MAX - block + 1,
                length: block,
            },
            DiskErrorKind::OutOfRange,
        ),
        (
            Operation::WriteZeroes {
                offset: 0,
                length: DEVICE_BYTES + block,
                may_unmap: false,
            },
            DiskErrorKind::OutOfRange,
        ),
        (
            Operation::Read {
                offset: 1,
                length: block as u32,
            },
            DiskErrorKind::Misaligned,
        ),
        (
            Operation::Read {
                offset: 0,
                length: block as u32 + 1,
            },
            DiskErrorKind::Misaligned,
        ),
        (write(0, &fine.slice(0..100)), DiskErrorKind::Misaligned),
        (write(0, &fine.slice(0..0)), DiskErrorKind::InvalidLength),
        (
            Operation::Read {
                offset: 0,
                length: 0,
            },
            DiskErrorKind::InvalidLength,
        ),
        (
            Operation::Read {
                offset: 0,
                length: MAX_BUFFER_BYTES as u32 + block as u32,
            },
            DiskErrorKind::InvalidLength,
        ),
    ];
    for (operation, kind) in attempts {
        let error = case
            .carry_out(operation.clone())
            .await
            .expect_err("invalid");
        assert_eq!(error.kind, kind, "{operation:?}: {error}");
        assert_eq!(error.range, Some(operation.range()));
        assert_eq!(error.path, case.device.info().path);
    }
    assert!(
        case.read(0, block as usize)
            .await
            .iter()
            .all(|&byte| byte == 0),
        "a refused write has no effect"
    );
}

async fn zeroed_ranges_read_as_zeroes_and_neighbours_stay(case: &Case) {
    let bytes = pattern(3, 8 * MIB);
    for (may_unmap, start, length) in [
        (false, 64 * KIB, 4 * KIB),
        (true, 64 * KIB, 4 * KIB),
        (false, 4 * KIB, 5 * MIB),
        (true, 4 * KIB, 5 * MIB),
        (false, 0, 8 * MIB),
    ] {
        case.write(0, &bytes).await;
        let operation = Operation::WriteZeroes {
            offset: start as u64,
            length: length as u64,
            may_unmap,
        };
        assert_eq!(case.carry_out(operation).await.expect("zeroes"), None);
        let after = case.read(0, bytes.len()).await;
        assert_eq!(after[..start], bytes[..start], "before");
        assert!(
            after[start..start + length].iter().all(|&byte| byte == 0),
            "{length} zeroes, may_unmap {may_unmap}"
        );
        assert_eq!(after[start + length..], bytes[start + length..], "behind");
    }
}

async fn discard_leaves_neighbours_alone(case: &Case) {
    let bytes = pattern(4, 2 * MIB);
    case.write(0, &bytes).await;
    assert_eq!(
        case.carry_out(Operation::Discard {
            offset: 65536,
            length: MIB as u64
        })
        .await
        .expect("discard"),
        None
    );
    let after = case.read(0, bytes.len()).await;
    assert_eq!(after[..64 * KIB], bytes[..64 * KIB]);
    assert_eq!(after[64 * KIB + MIB..], bytes[64 * KIB + MIB..]);
    if case.device.info().discard_zeroes {
        assert!(
            after[64 * KIB..64 * KIB + MIB]
                .iter()
                .all(|&byte| byte == 0)
        );
    }
}

async fn durable_writes_and_flushes_complete(case: &Case) {
    let payload = case.pool.copy_from(&pattern(5, 8 * KIB));
    let write = Operation::Write {
        offset: 8192,
        payload: payload.clone(),
        durable: true,
    };
    assert_eq!(case.carry_out(write).await.expect("durable write"), None);
    assert_eq!(case.carry_out(Operation::Flush).await.expect("flush"), None);
    assert_eq!(case.read(8192, 8 * KIB).await, payload);
}

async fn part_of_a_payload_is_written_whatever_its_address(case: &Case) {
    let block = case.device.info().alignment as usize;
    let payload = case.pool.copy_from(&pattern(6, 64 * KIB));
    for start in [block, 512, 1, 4095] {
        let part = payload.slice(start..start + 2 * block);
        let write = Operation::Write {
            offset: 16 * block as u64,
            payload: part.clone(),
            durable: false,
        };
        case.carry_out(write).await.expect("write");
        assert_eq!(
            case.read(16 * block as u64, 2 * block).await,
            part,
            "from {start}"
        );
    }
}

async fn buffers_return_to_the_pool(case: &Case) {
    for token in 0..200 {
        let payload = case.pool.copy_from(&pattern(token, 64 * KIB));
        case.submit(
            token,
            Operation::Write {
                offset: token * 65536,
                payload,
                durable: false,
            },
        );
        case.submit(
            1000 + token,
            Operation::Read {
                offset: token * 65536,
                length: 65536,
            },
        );
    }
    drop(case.finish().await);
    let statistics = case.pool.statistics();
    assert_eq!((statistics.live_buffers, statistics.live_bytes), (0, 0));
    assert!(statistics.peak_live_bytes >= 65536);
}

async fn owner_that_waits_sees_what_another_task_submits(case: &Case) {
    let wait_then_read = async {
        let mut completions = Vec::new();
        let mut seen = 0;
        while seen < 20 {
            qrbd_disk::ReactorExt::completed(&*case.reactor).await;
            seen += case.reactor.take_completions(&mut completions);
        }
    };
    let submit = async {
        for token in 0..20 {
            tokio::time::sleep(std::time::Duration::from_millis(2)).await;
            case.submit(
                token,
                Operation::Read {
                    offset: 0,
                    length: 4096,
                },
            );
        }
    };
    tokio::join!(wait_then_read, submit);
}

macro_rules! conformance {
    ($backend:ident, $case:expr) => {
        mod $backend {
            #[allow(unused_imports)]
            use super::common::{self, DEVICE_BYTES, LoopDevice};
            conformance!(@claims $case;
                read_returns_what_was_written
                unwritten_space_reads_as_zeroes
                each_operation_completes_exactly_once
                invalid_requests_are_refused_with_place_and_limit
                zeroed_ranges_read_as_zeroes_and_neighbours_stay
                discard_leaves_neighbours_alone
                durable_writes_and_flushes_complete
                part_of_a_payload_is_written_whatever_its_address
                buffers_return_to_the_pool
                owner_that_waits_sees_what_another_task_submits);
        }
    };
    (@claims $case:expr; $($claim:ident)*) => {
        $(#[test]
        fn $claim() {
            common::run(async {
                let case: Option<common::Case> = $case;
                if let Some(case) = case {
                    super::$claim(&case).await;
                }
            });
        })*
    };
}

conformance!(memory, Some(common::in_memory()));

conformance!(ring_on_a_file, {
    let (folder, path) = common::file_of(DEVICE_BYTES);
    Some(common::on_ring(&path, vec![Box::new(folder)]))
});

conformance!(ring_on_a_loop_device, {
    common::can_use_loop_devices().then(|| {
        let device = LoopDevice::new(DEVICE_BYTES, 512);
        common::on_ring(&device.path.clone(), vec![Box::new(device)])
    })
});

conformance!(ring_on_a_loop_device_with_4096_byte_sectors, {
    common::can_use_loop_devices().then(|| {
        let device = LoopDevice::new(DEVICE_BYTES, 4096);
        common::on_ring(&device.path.clone(), vec![Box::new(device)])
    })
});

#[cfg(feature = "tokio-uring")]
conformance!(thread_on_a_file, {
    let (folder, path) = common::file_of(DEVICE_BYTES);
    Some(common::on_thread(&path, vec![Box::new(folder)]))
});

#[cfg(feature = "tokio-uring")]
conformance!(thread_on_a_loop_device, {
    common::can_use_loop_devices().then(|| {
        let device = LoopDevice::new(DEVICE_BYTES, 512);
        common::on_thread(&device.path.clone(), vec![Box::new(device)])
    })
});

/// A file system without `FALLOC_FL_ZERO_RANGE`, so zeroes have to be written.
fn file_on_tmpfs() -> (common::Mount, std::path::PathBuf) {
    let mount = common::Mount::tmpfs(2 * DEVICE_BYTES);
    let path = mount.folder.path().join("disk");
    std::fs::File::create(&path)
        .and_then(|file| file.set_len(DEVICE_BYTES))
        .expect("disk file");
    (mount, path)
}

conformance!(ring_on_tmpfs, {
    common::can_use_loop_devices().then(|| {
        let (mount, path) = super::file_on_tmpfs();
        common::on_ring(&path, vec![Box::new(mount)])
    })
});

#[cfg(feature = "tokio-uring")]
conformance!(thread_on_tmpfs, {
    common::can_use_loop_devices().then(|| {
        let (mount, path) = super::file_on_tmpfs();
        common::on_thread(&path, vec![Box::new(mount)])
    })
});
