//! The fault hooks of the in-memory backend.

mod common;

use std::cell::RefCell;
use std::rc::Rc;

use qrbd_disk::memory::{Fault, MemoryReactor};
use qrbd_disk::{
    BlockDevice, Completion, DiskErrorKind, Operation, OperationKind, Pool, Reactor, ReactorExt,
};

fn tokens(completions: &[Completion]) -> Vec<u64> {
    completions
        .iter()
        .map(|completion| completion.token)
        .collect()
}

#[test]
fn injected_error_reaches_the_caller_and_nothing_is_written() {
    common::run(async {
        let pool = Pool::default();
        let reactor = MemoryReactor::new(pool.clone());
        let device = reactor.create("disk", 1 << 20);
        let seen = Rc::new(RefCell::new(Vec::new()));
        let log = Rc::clone(&seen);
        reactor.set_faults(move |submitted| {
            log.borrow_mut()
                .push((submitted.kind, submitted.offset, submitted.length));
            if submitted.kind == OperationKind::Write {
                Fault::Error(nix::libc::EIO)
            } else {
                Fault::None
            }
        });
        let payload = pool.copy_from(&[5; 4096]);
        device
            .submit(
                1,
                Operation::Write {
                    offset: 8192,
                    payload,
                    durable: false,
                },
            )
            .expect("room");
        device
            .submit(
                2,
                Operation::Read {
                    offset: 8192,
                    length: 4096,
                },
            )
            .expect("room");
        let mut completions = Vec::new();
        while reactor.outstanding() > 0 {
            reactor.completed().await;
            reactor.take_completions(&mut completions);
        }
        assert_eq!(tokens(&completions), [1, 2]);
        let error = completions[0].result.as_ref().expect_err("injected");
        assert_eq!(
            (error.kind, error.range, error.errno),
            (DiskErrorKind::Io, Some((8192, 4096)), Some(nix::libc::EIO))
        );
        let data = completions[1]
            .result
            .as_ref()
            .expect("read")
            .as_ref()
            .expect("data");
        assert!(data.iter().all(|&byte| byte == 0));
        assert_eq!(
            *seen.borrow(),
            [
                (OperationKind::Write, 8192, 4096),
                (OperationKind::Read, 8192, 4096)
            ]
        );
    });
}

#[test]
fn delays_reorder_and_held_operations_wait_for_their_release() {
    let reactor = MemoryReactor::new(Pool::default());
    let device = reactor.create("disk", 1 << 20);
    reactor.set_faults(|submitted| match submitted.token {
        1 => Fault::Delay(2),
        2 => Fault::Hold,
        _ => Fault::None,
    });
    for token in 1..=3 {
        device.submit(token, Operation::Flush).expect("room");
    }
    let mut completions = Vec::new();
    for _ in 0..10 {
        reactor.take_completions(&mut completions);
    }
    assert_eq!(tokens(&completions), [3, 1]);
    assert_eq!(reactor.outstanding(), 1);
    assert_eq!(reactor.release(2), 1);
    assert_eq!(reactor.release(2), 0);
    reactor.take_completions(&mut completions);
    assert_eq!(tokens(&completions), [3, 1, 2]);
}

#[test]
fn waiting_owner_is_woken_by_a_release() {
    common::run(async {
        let reactor = MemoryReactor::new(Pool::default());
        let device = reactor.create("disk", 1 << 20);
        reactor.set_faults(|_| Fault::Hold);
        device.submit(1, Operation::Flush).expect("room");
        let release = async {
            tokio::task::yield_now().await;
            assert_eq!(reactor.release(1), 1);
        };
        tokio::join!(reactor.completed(), release);
        assert_eq!(reactor.take_completions(&mut Vec::new()), 1);
    });
}
