//! The accounting of the buffer pool, and what buffers promise.

use bytes::Bytes;
use proptest::prelude::*;
use qrbd_disk::buffer::{PAGE_BYTES, SIZE_CLASSES};
use qrbd_disk::{BufferMut, MAX_BUFFER_BYTES, Payload, Pool};

#[derive(Clone, Debug)]
enum Step {
    Take(usize),
    Freeze(usize),
    Clone(usize),
    Slice(usize),
    ToBytes(usize),
    DropBuffer(usize),
    DropPayload(usize),
    DropBytes(usize),
    Trim,
}

fn step() -> impl Strategy<Value = Step> {
    let index = any::<prop::sample::Index>().prop_map(|index| index.index(1 << 16));
    prop_oneof![
        4 => prop_oneof![6 => 0usize..5000, 2 => 0usize..70_000, 1 => Just(300_000)].prop_map(Step::Take),
        2 => index.clone().prop_map(Step::Freeze),
        2 => index.clone().prop_map(Step::Clone),
        1 => index.clone().prop_map(Step::Slice),
        1 => index.clone().prop_map(Step::ToBytes),
        2 => index.clone().prop_map(Step::DropBuffer),
        3 => index.clone().prop_map(Step::DropPayload),
        1 => index.prop_map(Step::DropBytes),
        1 => Just(Step::Trim),
    ]
}

fn class(length: usize) -> usize {
    *SIZE_CLASSES
        .iter()
        .find(|&&capacity| length <= capacity)
        .expect("small enough")
}

fn take_from<T>(items: &mut Vec<T>, index: usize) -> Option<T> {
    (!items.is_empty()).then(|| items.swap_remove(index % items.len()))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn pool_counts_every_buffer_until_its_last_clone_is_gone(steps in prop::collection::vec(step(), 1..120), limit in 0usize..(1 << 20)) {
        let pool = Pool::new(limit);
        let mut next_id = 0u32;
        let mut buffers: Vec<(u32, BufferMut)> = Vec::new();
        let mut payloads: Vec<(u32, Payload)> = Vec::new();
        let mut bytes: Vec<(u32, Bytes)> = Vec::new();
        let mut capacity_of = std::collections::BTreeMap::new();
        let mut taken = 0;
        for step in steps {
            match step {
                Step::Take(length) => {
                    let mut buffer = pool.take(length);
                    prop_assert_eq!(buffer.len(), length);
                    prop_assert_eq!(buffer.capacity(), class(length));
                    prop_assert_eq!(buffer.as_slice().as_ptr() as usize % PAGE_BYTES, 0);
                    buffer.as_mut_slice().fill(next_id as u8);
                    capacity_of.insert(next_id, class(length));
                    buffers.push((next_id, buffer));
                    next_id += 1;
                    taken += 1;
                }
                Step::Freeze(index) => {
                    if let Some((id, buffer)) = take_from(&mut buffers, index) {
                        payloads.push((id, buffer.freeze()));
                    }
                }
                Step::Clone(index) if !payloads.is_empty() => {
                    let copy = payloads[index % payloads.len()].clone();
                    payloads.push(copy);
                }
                Step::Slice(index) if !payloads.is_empty() => {
                    let (id, payload) = &payloads[index % payloads.len()];
                    let part = (*id, payload.slice(payload.len() / 3..payload.len() / 2));
                    payloads.push(part);
                }
                Step::ToBytes(index) => {
                    if let Some((id, payload)) = take_from(&mut payloads, index) {
                        bytes.push((id, Bytes::from(payload)));
                    }
                }
                Step::DropBuffer(index) => drop(take_from(&mut buffers, index)),
                Step::DropPayload(index) => drop(take_from(&mut payloads, index)),
                Step::DropBytes(index) => drop(take_from(&mut bytes, index)),
                Step::Trim => {
                    pool.trim();
                    prop_assert_eq!(pool.statistics().cached_bytes, 0);
                }
                Step::Clone(_) | Step::Slice(_) => {}
            }
            let mut live: Vec<u32> = buffers.iter().map(|(id, _)| *id).collect();
            live.extend(payloads.iter().map(|(id, _)| *id));
            live.extend(bytes.iter().map(|(id, _)| *id));
            live.sort_unstable();
            live.dedup();
            let statistics = pool.statistics();
            prop_assert_eq!(statistics.live_buffers, live.len());
            prop_assert_eq!(statistics.live_bytes, live.iter().map(|id| capacity_of[id]).sum::<usize>());
            prop_assert!(statistics.cached_bytes <= limit);
            prop_assert!(statistics.peak_live_bytes >= statistics.live_bytes);
            prop_assert_eq!(statistics.allocated + statistics.reused, taken);
            prop_assert!(payloads.iter().all(|(id, payload)| payload.iter().all(|&byte| byte == *id as u8)), "live bytes are never reused");
            prop_assert!(bytes.iter().all(|(id, bytes)| bytes.iter().all(|&byte| byte == *id as u8)), "live bytes are never reused");
        }
        drop((buffers, payloads, bytes));
        prop_assert_eq!(pool.statistics().live_bytes, 0);
    }
}

#[test]
fn freed_buffer_is_reused() {
    let pool = Pool::default();
    let first = pool.take(60_000).as_slice().as_ptr();
    assert_eq!(pool.take(40_000).as_slice().as_ptr(), first);
    let statistics = pool.statistics();
    assert_eq!((statistics.allocated, statistics.reused), (1, 1));
}

#[test]
fn bytes_share_the_memory_of_the_payload() {
    let pool = Pool::default();
    let payload = pool.copy_from(b"shared");
    let address = payload.as_ptr();
    let bytes = Bytes::from(payload);
    assert_eq!((bytes.as_ptr(), &bytes[..]), (address, &b"shared"[..]));
    std::thread::spawn(move || drop(bytes))
        .join()
        .expect("dropped elsewhere");
    assert_eq!(pool.statistics().live_bytes, 0);
}

#[test]
fn zeroes_are_shared_and_not_counted() {
    let zeroes = Payload::zeroes(Payload::MAX_ZEROES);
    assert!(zeroes.iter().all(|&byte| byte == 0));
    assert_eq!(zeroes.as_ptr(), Payload::zeroes(4096).as_ptr());
}

#[test]
fn largest_buffer_is_available_and_one_byte_more_is_a_bug() {
    let pool = Pool::new(0);
    assert_eq!(pool.take(MAX_BUFFER_BYTES).len(), MAX_BUFFER_BYTES);
    assert_eq!(pool.statistics().cached_bytes, 0);
    std::panic::catch_unwind(|| pool.take(MAX_BUFFER_BYTES + 1)).expect_err("too long");
}

#[test]
fn resize_stays_within_the_capacity() {
    let mut buffer = Pool::default().take(100);
    buffer.resize(4096);
    buffer.as_mut_slice()[4095] = 1;
    buffer.resize(10);
    assert_eq!(buffer.freeze().len(), 10);
}
