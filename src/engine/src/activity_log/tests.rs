//! Claims about the activity log in memory, against a naive model.

use super::*;
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet, VecDeque};

fn active(log: &ActivityLog) -> Vec<u32> {
    let mut extents: Vec<u32> = log.active_extents().collect();
    extents.sort_unstable();
    extents
}

fn activate(log: &mut ActivityLog, extents: &[u32]) -> Transaction {
    let transaction = log.plan(extents.iter().copied()).expect("room");
    log.committed();
    transaction
}

#[test]
fn extent_is_active_only_after_commit() {
    let mut log = ActivityLog::new(7);
    let transaction = log.plan([5, 6, 5].into_iter()).unwrap();
    assert_eq!(transaction.updates, [(0, Some(5)), (1, Some(6))]);
    assert_eq!(
        (transaction.activated, transaction.evicted),
        (vec![5, 6], vec![])
    );
    assert!(!log.is_active(5) && !log.acquire(5..7) && log.is_changing());
    assert_eq!(log.slots()[..3], [Some(5), Some(6), None]);
    log.committed();
    assert!(log.acquire(5..7) && log.acquire(5..6));
    assert_eq!((log.active_count(), log.referenced_count()), (2, 2));
}

#[test]
fn evicted_extent_is_inactive_before_the_transaction_is_durable() {
    let mut log = ActivityLog::new(2);
    activate(&mut log, &[1, 2]);
    let transaction = log.plan([3].into_iter()).unwrap();
    assert_eq!(transaction.evicted, [1]);
    assert!(!log.is_active(1) && !log.is_active(3) && log.is_active(2));
    assert_eq!(log.plan([4].into_iter()), None, "one transaction at a time");
    log.committed();
    assert_eq!(active(&log), [2, 3]);
}

#[test]
fn least_recently_used_without_references_is_evicted() {
    let mut log = ActivityLog::new(3);
    activate(&mut log, &[1, 2, 3]);
    assert!(log.acquire(1..2));
    log.release(1..2);
    assert_eq!(activate(&mut log, &[4]).evicted, [2]);
    assert!(log.acquire(3..4));
    assert_eq!(activate(&mut log, &[5]).evicted, [1]);
    assert_eq!(activate(&mut log, &[6]).evicted, [4]);
    assert_eq!(active(&log), [3, 5, 6]);
}

#[test]
fn nothing_is_placed_when_every_slot_is_referenced() {
    let mut log = ActivityLog::new(2);
    activate(&mut log, &[1, 2]);
    assert!(log.acquire(1..3));
    assert_eq!(log.plan([3].into_iter()), None);
    log.release(2..3);
    assert_eq!(activate(&mut log, &[3]).evicted, [2]);
}

#[test]
fn acquire_takes_all_or_nothing() {
    let mut log = ActivityLog::new(4);
    activate(&mut log, &[1, 2]);
    assert!(!log.acquire(1..4));
    assert_eq!(log.referenced_count(), 0);
    assert!(log.acquire(1..1), "an empty range needs nothing");
}

#[test]
fn plan_does_not_evict_what_it_was_asked_for() {
    let mut log = ActivityLog::new(3);
    activate(&mut log, &[1, 2, 3]);
    let transaction = activate(&mut log, &[1, 2, 9, 10]);
    assert_eq!(
        (transaction.activated, transaction.evicted),
        (vec![9], vec![3])
    );
    assert!(log.acquire(1..3));
}

#[test]
fn request_named_first_gets_all_its_extents_under_contention() {
    let mut log = ActivityLog::new(9);
    activate(&mut log, &[100, 101, 102, 103, 104, 105, 106, 107, 108]);
    let mut held: VecDeque<u32> = (100..109).collect();
    for &extent in &held {
        assert!(log.acquire(extent..extent + 1));
    }
    let mut rivals = 200u32..;
    while !log.acquire(0..9) {
        if let Some(done) = held.pop_front() {
            log.release(done..done + 1);
        }
        let rival = rivals.next().unwrap();
        if log.plan((0..9).chain([rival])).is_some() {
            log.committed();
        }
        if log.acquire(rival..rival + 1) {
            held.push_back(rival);
        }
        assert!(rival < 300, "starved");
    }
}

#[test]
fn transaction_has_at_most_64_updates() {
    let mut log = ActivityLog::new(1237);
    let transaction = activate(&mut log, &(0..200).collect::<Vec<_>>());
    assert_eq!(transaction.updates.len(), 64);
    assert_eq!(active(&log), (0..64).collect::<Vec<_>>());
}

#[test]
fn cold_extents_one_by_one_evict_in_few_transactions() {
    let slots = 1237;
    let mut log = ActivityLog::new(slots);
    let mut ring = vec![None; slots as usize];
    let (mut evicting, cold) = (0, 4 * slots);
    for extent in 0..cold {
        let transaction = log.plan([extent].into_iter()).unwrap();
        for (slot, content) in transaction.updates {
            ring[usize::from(slot)] = content;
        }
        assert_eq!(ring, log.slots(), "the transactions say all that changes");
        evicting += u32::from(!transaction.evicted.is_empty());
        assert!(transaction.evicted.iter().all(|&old| !log.is_active(old)));
        log.committed();
        assert!(log.acquire(extent..extent + 1));
        log.release(extent..extent + 1);
    }
    assert!(evicting <= cold / 32, "{evicting} of {cold}");
    assert!(
        log.active_count() >= slots as usize - 32,
        "what is hot stays"
    );
    assert!(log.is_active(cold - 1) && log.is_active(cold - 1200));
}

#[test]
fn spare_slots_cost_neither_what_is_referenced_nor_what_is_wanted() {
    let mut log = ActivityLog::new(64);
    activate(&mut log, &(0..64).collect::<Vec<_>>());
    assert!(log.acquire(0..61));
    let transaction = log.plan([61, 62, 100].into_iter()).unwrap();
    assert_eq!(transaction.evicted, [63]);
    log.committed();
    log.release(0..61);
    let transaction = activate(&mut log, &[200]);
    assert_eq!(transaction.evicted.len(), 1 + 64 / 8);
    assert_eq!(transaction.updates.len(), 1 + 64 / 8);
    assert_eq!(activate(&mut log, &[201, 202]).evicted, []);
}

#[test]
fn clear_empties_every_slot() {
    let mut log = ActivityLog::new(7);
    activate(&mut log, &[1, 2]);
    assert!(log.plan([3].into_iter()).is_some());
    log.clear();
    assert_eq!(log, ActivityLog::new(7));
}

#[test]
#[should_panic(expected = "released more often than acquired")]
fn release_without_acquire_is_a_bug() {
    let mut log = ActivityLog::new(7);
    activate(&mut log, &[1]);
    log.release(1..2);
}

#[test]
fn largest_log_and_largest_extent_work() {
    let mut log = ActivityLog::new(MAX_SLOTS);
    let mut next = 0;
    while log.active_count() < MAX_SLOTS as usize {
        activate(
            &mut log,
            &(next..next + 64).map(|n| (1 << 28) - n).collect::<Vec<_>>(),
        );
        next += 64;
    }
    assert!(log.is_active((1 << 28) - 1));
    assert!(!log.is_active(u32::MAX));
    assert_eq!(activate(&mut log, &[1]).evicted.len(), 1 + 32);
}

/// The activity log as one would write it without regard to cost.
#[derive(Default)]
struct Model {
    slots: Vec<Option<u32>>,
    references: BTreeMap<u32, u32>,
    /// Active extents without references, least recently used first.
    idle: Vec<u32>,
    pending: Vec<u32>,
}

impl Model {
    fn is_active(&self, extent: u32) -> bool {
        self.slots.contains(&Some(extent)) && !self.pending.contains(&extent)
    }

    fn acquire(&mut self, extents: Range<u32>) -> bool {
        if !extents.clone().all(|extent| self.is_active(extent)) {
            return false;
        }
        for extent in extents {
            self.idle.retain(|&idle| idle != extent);
            *self.references.entry(extent).or_default() += 1;
        }
        true
    }

    fn release(&mut self, extents: Range<u32>) {
        for extent in extents {
            let references = self.references.get_mut(&extent).unwrap();
            *references -= 1;
            if *references == 0 {
                self.references.remove(&extent);
                self.idle.push(extent);
            }
        }
    }

    fn plan(&mut self, wanted: &[u32]) -> Option<(Vec<u32>, Vec<u32>)> {
        if !self.pending.is_empty() {
            return None;
        }
        let mut missing = vec![];
        for &extent in wanted {
            if self.idle.contains(&extent) {
                self.idle.retain(|&idle| idle != extent);
                self.idle.push(extent);
            } else if !self.is_active(extent) && !missing.contains(&extent) {
                missing.push(extent);
            }
            if missing.len() == 64 {
                break;
            }
        }
        let (mut activated, mut evicted) = (vec![], vec![]);
        for extent in missing {
            let slot = match self.slots.iter().position(Option::is_none) {
                Some(slot) => slot,
                None => match self.idle.first() {
                    Some(victim) if !wanted.contains(victim) => {
                        let victim = self.idle.remove(0);
                        evicted.push(victim);
                        self.slots
                            .iter()
                            .position(|&slot| slot == Some(victim))
                            .unwrap()
                    }
                    _ => break,
                },
            };
            self.slots[slot] = Some(extent);
            self.pending.push(extent);
            activated.push(extent);
        }
        if !evicted.is_empty() {
            for _ in 0..(self.slots.len() / 8).min(32).min(64 - activated.len()) {
                match self.idle.first() {
                    Some(victim) if !wanted.contains(victim) => {
                        let victim = self.idle.remove(0);
                        let slot = self.slots.iter().position(|&slot| slot == Some(victim));
                        self.slots[slot.unwrap()] = None;
                        evicted.push(victim);
                    }
                    _ => break,
                }
            }
        }
        (!activated.is_empty()).then_some((activated, evicted))
    }

    fn committed(&mut self) {
        self.idle.append(&mut self.pending);
    }
}

#[derive(Clone, Debug)]
enum Action {
    Acquire(u32, u32),
    ReleaseOldest,
    Plan(Vec<u32>),
    Commit,
}

fn actions(extents: u32, most_wanted: usize) -> impl Strategy<Value = Vec<Action>> {
    let action = prop_oneof![
        4 => (0..extents, 1u32..4).prop_map(|(first, count)| Action::Acquire(first, count)),
        3 => Just(Action::ReleaseOldest),
        3 => prop::collection::vec(0..extents, 0..most_wanted).prop_map(Action::Plan),
        3 => Just(Action::Commit),
    ];
    prop::collection::vec(action, 0..200)
}

fn behaves_as_the_model(
    slots: u32,
    extents: u32,
    actions: Vec<Action>,
) -> Result<(), TestCaseError> {
    let mut log = ActivityLog::new(slots);
    let mut model = Model {
        slots: vec![None; slots as usize],
        ..Model::default()
    };
    let mut held: VecDeque<Range<u32>> = VecDeque::new();
    for action in actions {
        match action {
            Action::Acquire(first, count) => {
                let extents = first..first + count;
                let taken = log.acquire(extents.clone());
                prop_assert_eq!(taken, model.acquire(extents.clone()));
                if taken {
                    held.push_back(extents);
                }
            }
            Action::ReleaseOldest => {
                if let Some(extents) = held.pop_front() {
                    log.release(extents.clone());
                    model.release(extents);
                }
            }
            Action::Plan(wanted) => {
                let planned = log.plan(wanted.iter().copied());
                if let Some(transaction) = &planned {
                    let placed = transaction.updates.iter().filter_map(|update| update.1);
                    prop_assert_eq!(&placed.collect::<Vec<_>>(), &transaction.activated);
                }
                let planned =
                    planned.map(|transaction| (transaction.activated, transaction.evicted));
                prop_assert_eq!(planned, model.plan(&wanted));
            }
            Action::Commit => {
                log.committed();
                model.committed();
            }
        }
        prop_assert_eq!(log.slots(), &model.slots[..]);
        prop_assert_eq!(log.is_changing(), !model.pending.is_empty());
        prop_assert_eq!(log.referenced_count(), model.references.len());
        for extent in 0..extents + 4 {
            prop_assert_eq!(log.is_active(extent), model.is_active(extent));
        }
        prop_assert_eq!(log.active_count(), active(&log).len());
    }
    Ok(())
}

proptest! {
    #[test]
    fn log_behaves_as_the_model(slots in 1u32..8, actions in actions(24, 6)) {
        behaves_as_the_model(slots, 24, actions)?;
    }

    /// Large enough that a plan that evicts empties a slot besides.
    #[test]
    fn log_with_spare_slots_behaves_as_the_model(slots in 8u32..16, actions in actions(30, 8)) {
        behaves_as_the_model(slots, 30, actions)?;
    }

    #[test]
    fn log_from_a_replay_has_the_same_slots_and_all_are_evictable(extents in prop::collection::btree_set(0u32..99, 1..20)) {
        let slots: Vec<Option<u32>> = extents.iter().flat_map(|&extent| [None, Some(extent)]).collect();
        let mut log = ActivityLog::from_replay(&slots);
        prop_assert_eq!(log.slots(), &slots[..]);
        prop_assert_eq!(active(&log), extents.iter().copied().collect::<Vec<_>>());
        let count = slots.len() as u32;
        let transaction = log.plan(1000..1000 + count).unwrap();
        prop_assert_eq!(transaction.activated.len() as u32, count);
        prop_assert_eq!(transaction.evicted.into_iter().collect::<BTreeSet<_>>(), extents);
    }

    #[test]
    fn index_behaves_as_a_map(keys in prop::collection::vec((0u32..40, any::<bool>()), 0..300)) {
        let mut index = Index::new(40);
        let mut model = BTreeMap::new();
        for (position, (key, insert)) in keys.into_iter().enumerate() {
            match (insert, model.contains_key(&key)) {
                (true, false) => {
                    index.insert(key, position as u16);
                    model.insert(key, position as u16);
                }
                (false, true) => {
                    index.remove(key);
                    model.remove(&key);
                }
                _ => {}
            }
            for key in 0..40 {
                prop_assert_eq!(index.get(key), model.get(&key).copied());
            }
        }
    }
}
