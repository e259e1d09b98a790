//! The ring's own promises: small queues, overflow, several owners of one ring, limits, and shutdown.

mod common;

use std::time::Duration;

use common::{file_of, pattern};
use qrbd_disk::{
    BlockDevice, Completion, OpenOptions, Operation, Payload, Pool, Reactor, ReactorExt, TaskRun,
    UringDevice, UringOptions, UringReactor,
};

fn ring(options: UringOptions, bytes: u64) -> (UringReactor, UringDevice, Pool, tempfile::TempDir) {
    let (folder, path) = file_of(bytes);
    let pool = Pool::default();
    let reactor = UringReactor::new(options, pool.clone()).expect("ring");
    let device = reactor.attach(qrbd_disk::open(&path, OpenOptions::default()).expect("open"));
    (reactor, device, pool, folder)
}

fn write(pool: &Pool, index: u64) -> Operation {
    Operation::Write {
        offset: index * 4096,
        payload: pool.copy_from(&pattern(index, 4096)),
        durable: false,
    }
}

async fn finish(reactor: &UringReactor) -> Vec<Completion> {
    let mut completions = Vec::new();
    while reactor.outstanding() > 0 {
        reactor.completed().await;
        reactor.take_completions(&mut completions);
    }
    completions
}

fn assert_each_once(completions: &[Completion], count: u64) {
    let mut tokens: Vec<u64> = completions
        .iter()
        .map(|completion| completion.token)
        .collect();
    tokens.sort_unstable();
    assert_eq!(tokens, (0..count).collect::<Vec<_>>());
    assert!(
        completions
            .iter()
            .all(|completion| completion.result.is_ok())
    );
}

#[test]
fn more_operations_than_slots_all_complete() {
    common::run(async {
        let options = UringOptions {
            entries: 4,
            completions: 8,
            in_kernel: 8,
            ..UringOptions::default()
        };
        let (reactor, device, pool, _folder) = ring(options, 4 << 20);
        for index in 0..1000 {
            device
                .submit(index, write(&pool, index))
                .expect("below the limit");
        }
        assert_each_once(&finish(&reactor).await, 1000);
    });
}

#[test]
fn completion_queue_overflow_loses_nothing() {
    common::run(async {
        let options = UringOptions {
            entries: 4,
            completions: 8,
            in_kernel: 512,
            ..UringOptions::default()
        };
        let (reactor, device, pool, _folder) = ring(options, 4 << 20);
        for index in 0..400 {
            device
                .submit(index, write(&pool, index))
                .expect("below the limit");
        }
        reactor.flush();
        // All of them end while nobody looks, in a queue of eight.
        std::thread::sleep(Duration::from_millis(300));
        assert_each_once(&finish(&reactor).await, 400);
    });
}

#[test]
fn every_way_of_posting_completions_works() {
    common::run(async {
        for task_run in [
            TaskRun::Deferred,
            TaskRun::Cooperative,
            TaskRun::Interrupting,
        ] {
            for in_kernel in [8, 512] {
                let options = UringOptions {
                    entries: 4,
                    completions: 8,
                    in_kernel,
                    task_run,
                    ..UringOptions::default()
                };
                let (reactor, device, pool, _folder) = ring(options, 4 << 20);
                for index in 0..300 {
                    device
                        .submit(index, write(&pool, index))
                        .expect("below the limit");
                }
                assert_each_once(&finish(&reactor).await, 300);
                device.submit(0, Operation::Flush).expect("below the limit");
                assert_each_once(&finish(&reactor).await, 1);
            }
        }
    });
}

#[test]
fn completions_are_found_without_the_runtime_looking() {
    common::run(async {
        let (reactor, device, pool, _folder) = ring(UringOptions::default(), 4 << 20);
        device.submit(0, write(&pool, 0)).expect("below the limit");
        reactor.flush();
        let mut completions = Vec::new();
        for _ in 0..20_000 {
            if reactor.take_completions(&mut completions) > 0 {
                break;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        assert_each_once(&completions, 1);
    });
}

#[test]
fn limit_hands_the_operation_back() {
    common::run(async {
        let options = UringOptions {
            outstanding: 3,
            ..UringOptions::default()
        };
        let (reactor, device, pool, _folder) = ring(options, 4 << 20);
        for index in 0..3 {
            device
                .submit(index, write(&pool, index))
                .expect("below the limit");
        }
        let refused = device.submit(3, write(&pool, 3)).expect_err("at the limit");
        assert_eq!(refused.limit, 3);
        let Operation::Write {
            offset, payload, ..
        } = &refused.operation
        else {
            panic!("another operation came back")
        };
        assert_eq!((*offset, &payload[..]), (3 * 4096, &pattern(3, 4096)[..]));
        let mut completions = finish(&reactor).await;
        device
            .submit(3, refused.operation)
            .expect("there is room again");
        completions.extend(finish(&reactor).await);
        assert_each_once(&completions, 4);
    });
}

#[test]
fn owners_of_one_ring_get_their_own_completions() {
    common::run(async {
        let (first, first_device, pool, _folder) = ring(UringOptions::default(), 4 << 20);
        let (_second_folder, path) = file_of(4 << 20);
        let second = first.share();
        let second_device =
            second.attach(qrbd_disk::open(&path, OpenOptions::default()).expect("open"));
        let serve = async |reactor: &UringReactor, device: &UringDevice, base: u64| {
            let mut completions = Vec::new();
            for index in 0..200 {
                device
                    .submit(base + index, write(&pool, index))
                    .expect("below the limit");
                reactor.completed().await;
                reactor.take_completions(&mut completions);
            }
            completions.extend(finish(reactor).await);
            completions
                .iter()
                .map(|completion| completion.token)
                .collect::<Vec<_>>()
        };
        let (ours, theirs) = tokio::join!(
            serve(&first, &first_device, 0),
            serve(&second, &second_device, 10_000)
        );
        assert_eq!(ours, (0..200).collect::<Vec<_>>());
        assert_eq!(theirs, (10_000..10_200).collect::<Vec<_>>());
    });
}

#[test]
fn owner_is_woken_while_the_other_owner_does_not_poll() {
    common::run(async {
        let (first, first_device, pool, _folder) = ring(UringOptions::default(), 4 << 20);
        let (_second_folder, path) = file_of(4 << 20);
        let second = first.share();
        let second_device =
            second.attach(qrbd_disk::open(&path, OpenOptions::default()).expect("open"));
        let mut held_up = Box::pin(second.completed());
        second_device
            .submit(7, write(&pool, 1))
            .expect("below the limit");
        // The second owner is the last that asked the runtime, and then gets no turn any more.
        let _ =
            std::future::poll_fn(|context| std::task::Poll::Ready(held_up.as_mut().poll(context)))
                .await;
        for index in 0..50 {
            first_device
                .submit(index, write(&pool, index))
                .expect("below the limit");
            tokio::time::timeout(Duration::from_secs(20), first.completed())
                .await
                .expect("woken");
            assert_eq!(first.take_completions(&mut Vec::new()), 1);
        }
        held_up.await;
        assert_eq!(second.take_completions(&mut Vec::new()), 1);
    });
}

#[test]
fn shutdown_with_operations_in_flight_leaks_nothing() {
    common::run(async {
        for flushed in [true, false] {
            let (reactor, device, pool, folder) = ring(
                UringOptions {
                    in_kernel: 64,
                    ..UringOptions::default()
                },
                64 << 20,
            );
            for index in 0..500 {
                let payload = pool.copy_from(&pattern(index, 64 << 10));
                device
                    .submit(
                        index,
                        Operation::Write {
                            offset: index * 65536,
                            payload,
                            durable: false,
                        },
                    )
                    .expect("below the limit");
                device
                    .submit(
                        index,
                        Operation::Read {
                            offset: index * 65536,
                            length: 65536,
                        },
                    )
                    .expect("below the limit");
            }
            device
                .submit(1000, Operation::Flush)
                .expect("below the limit");
            if flushed {
                reactor.flush();
            }
            assert!(pool.statistics().live_buffers >= 500);
            drop(reactor);
            assert!(
                pool.statistics().live_buffers > 0,
                "the device still holds the ring"
            );
            drop(device);
            assert_eq!(pool.statistics().live_buffers, 0);
            drop(folder);
        }
        let open = std::fs::read_dir("/proc/self/fd").expect("procfs").count();
        assert!(open < 200, "{open} descriptors are open");
    });
}

#[test]
fn operations_outlive_their_device_handle() {
    common::run(async {
        let (reactor, device, pool, _folder) = ring(UringOptions::default(), 4 << 20);
        for index in 0..100 {
            device
                .submit(index, write(&pool, index))
                .expect("below the limit");
        }
        drop(device);
        assert_each_once(&finish(&reactor).await, 100);
    });
}

#[test]
fn one_round_is_one_system_call() {
    common::run(async {
        let (reactor, device, pool, _folder) = ring(UringOptions::default(), 4 << 20);
        let before = reactor.statistics().enters;
        for index in 0..50 {
            device
                .submit(index, write(&pool, index))
                .expect("below the limit");
        }
        assert_eq!(
            reactor.statistics().enters,
            before,
            "nothing is handed over before the end of the round"
        );
        reactor.flush();
        assert_eq!(reactor.statistics().enters, before + 1);
        finish(&reactor).await;
        assert_eq!(reactor.statistics().completed, 50);
    });
}

#[test]
fn aligned_parts_are_not_copied() {
    common::run(async {
        let (reactor, device, pool, _folder) = ring(UringOptions::default(), 4 << 20);
        let alignment = device.info().memory_alignment as usize;
        let whole: Payload = pool.copy_from(&pattern(1, 64 << 10));
        let part = |start: usize| Operation::Write {
            offset: 0,
            payload: whole.slice(start..start + 4096),
            durable: false,
        };
        device.submit(0, part(4096)).expect("below the limit");
        device
            .submit(1, part(4096 + alignment))
            .expect("below the limit");
        assert_eq!(reactor.statistics().bounced, 0);
        if alignment > 1 {
            device
                .submit(2, part(4096 + alignment / 2))
                .expect("below the limit");
            assert_eq!(reactor.statistics().bounced, 1);
        }
        finish(&reactor).await;
    });
}
