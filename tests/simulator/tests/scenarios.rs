//! Each promise as a story: one test per promise at least, named after what it claims.
//!
//! The checkers look on all the time; a test asserts only what is special about its story. Stories that depend on what a crash
//! keeps run over several seeds.

use qrbd_engine::api::{ClientError, Command};
use qrbd_engine::config::Fencing;
use qrbd_engine::state::{ConnectionState, DiskState, Refusal, ReplicationState, Role};
use qrbd_engine::units::{BLOCKS_PER_EXTENT, ByteRange, VolumeNumber};
use qrbd_engine::wire::message::Protocol;
use qrbd_simulator::disk::View;
use qrbd_simulator::queue::{MILLISECOND, Micros, SECOND};
use qrbd_simulator::scenario::{Request, Scenario, block, extent};
use qrbd_simulator::settings::{Beginning, Settings};
use qrbd_simulator::world::{node_id, volume_number};

const EVERY_PROTOCOL: [Protocol; 3] = [Protocol::A, Protocol::B, Protocol::C];

fn over_seeds(protocol: Protocol, count: u64, story: impl Fn(Scenario)) {
    for seed in 0..count {
        story(Scenario::serving_with(Settings::quiet(seed, protocol)));
    }
}

// ---- W: writes --------------------------------------------------------------------------------------------------------------

#[test]
fn w1_protocol_a_completes_before_the_peer_has_the_write() {
    let mut world = Scenario::serving(Protocol::A);
    world.mute(0);
    let request = world.write(0, block(5));
    world.completed(request);
    assert!(!world.holds(1, block(5), request.write, View::Cached));
    world.heal();
    world.wait_in_sync();
    assert!(world.holds(1, block(5), request.write, View::Cached));
}

#[test]
fn w2_protocol_b_waits_for_receipt_and_not_for_the_peers_disk() {
    let mut world = Scenario::serving(Protocol::B);
    world.stall_disk(1, 300 * MILLISECOND);
    let request = world.write(0, block(5));
    world.run(100 * MILLISECOND);
    assert!(world.is_answered(request));
    assert!(!world.holds(1, block(5), request.write, View::Cached));
    world.run(SECOND);

    world.mute(0);
    let request = world.write(0, block(6));
    world.run(50 * MILLISECOND);
    assert!(
        !world.is_answered(request),
        "answered before it was received"
    );
    world.heal();
    world.completed(request);
}

#[test]
fn w3_protocol_c_waits_for_both_disks() {
    let mut world = Scenario::serving(Protocol::C);
    for node in [0, 1] {
        world.stall_disk(node, 300 * MILLISECOND);
        let request = world.write(0, block(5 + node as u64));
        world.run(200 * MILLISECOND);
        assert!(
            !world.is_answered(request),
            "answered while the disk of n{node} stalls"
        );
        world.completed(request);
        assert!(world.holds(0, block(5 + node as u64), request.write, View::Cached));
        assert!(world.holds(1, block(5 + node as u64), request.write, View::Cached));
    }
}

#[test]
fn w4_flush_is_answered_when_both_disks_are_durable_protocol_c() {
    let mut world = Scenario::serving(Protocol::C);
    let write = world.write_now(0, block(5));
    world.flush_now(0);
    for node in [0, 1] {
        assert!(
            world.holds(node, block(5), write.write, View::Durable),
            "not durable on n{node}"
        );
    }
    let fua = world.write_fua(0, block(6));
    world.completed(fua);
    for node in [0, 1] {
        assert!(
            world.holds(node, block(6), fua.write, View::Durable),
            "FUA not durable on n{node}"
        );
    }
}

#[test]
fn w4_flush_waits_for_the_peers_disk_protocol_c() {
    let mut world = Scenario::serving(Protocol::C);
    world.write_now(0, block(5));
    world.stall_disk(1, 300 * MILLISECOND);
    let flush = world.flush(0);
    world.run(200 * MILLISECOND);
    assert!(!world.is_answered(flush));
    world.completed(flush);
}

#[test]
fn w4_flush_is_durable_here_under_a_and_b() {
    for protocol in [Protocol::A, Protocol::B] {
        let mut world = Scenario::serving(protocol);
        let write = world.write_now(0, block(5));
        world.flush_now(0);
        assert!(world.holds(0, block(5), write.write, View::Durable));
    }
}

#[test]
fn w4_flush_alone_makes_the_misses_of_the_peer_durable() {
    for seed in 0..10 {
        let mut world = Scenario::serving_with(Settings::quiet(seed, Protocol::C));
        world.power_loss(1);
        world.wait_disconnected(0);
        let write = world.write_now(0, block(5));
        world.flush_now(0);
        world.power_loss(0);
        world.restart(0);
        assert!(world.holds(0, block(5), write.write, View::Durable));
        world.restart(1);
        world.wait_in_sync();
        assert!(
            world.holds(1, block(5), write.write, View::Cached),
            "the peer's miss was forgotten"
        );
    }
}

#[test]
fn w5_overlapping_writes_end_in_one_order_on_both_nodes() {
    for protocol in EVERY_PROTOCOL {
        over_seeds(protocol, 10, |mut world| {
            let ranges = [
                ByteRange::new(4096, 8192),
                ByteRange::new(4608, 512),
                ByteRange::new(0, 16384),
            ];
            let mut requests = Vec::new();
            for turn in 0..30 {
                requests.push(world.write(0, ranges[turn % 3]));
                world.run(100);
            }
            for request in requests {
                world.completed(request);
            }
            world.wait_in_sync();
            assert!(world.world.differing[0].is_empty());
            let seen = world.read_now(0, block(1));
            assert_eq!(seen, world.world.sector(1, 0, 8));
        });
    }
}

#[test]
fn w6_a_dependent_write_never_reaches_the_peer_without_its_predecessor() {
    for protocol in EVERY_PROTOCOL {
        over_seeds(protocol, 30, |mut world| {
            // The write-order checker looks at what the power loss left.
            for turn in 0..20 {
                world.write_now(0, extent(turn % 5));
            }
            let seed = world.world.settings.seed;
            world.run(seed * 37);
            world.power_loss(1);
            world.restart(1);
            world.wait_in_sync();
        });
    }
}

#[test]
fn w7_an_acknowledged_write_that_the_peers_power_loss_took_is_sent_again() {
    let mut lost = 0;
    for seed in 0..30 {
        let mut world = Scenario::serving_with(Settings::quiet(seed, Protocol::C));
        let write = world.write_now(0, block(5));
        world.power_loss(1);
        lost += u32::from(!world.holds(1, block(5), write.write, View::Cached));
        world.restart(1);
        world.wait_in_sync();
        assert!(
            world.holds(1, block(5), write.write, View::Cached),
            "seed {seed}"
        );
    }
    assert!(lost > 3, "the power loss took the write only {lost} times");
}

#[test]
fn w8_a_primary_that_loses_its_peer_under_load_makes_a_generation_before_it_completes() {
    for protocol in EVERY_PROTOCOL {
        let mut world = Scenario::serving(protocol);
        let before = world.world.generation_on_disk(0, 0).unwrap();
        world.partition();
        let request = world.write(0, block(5));
        world.completed(request);
        world.wait_disconnected(0);
        let request = world.write(0, block(6));
        world.completed(request);
        let image = world.world.nodes[0].volumes[0]
            .disk
            .load(View::Durable)
            .unwrap();
        assert!(
            !image.superblock.current.same(before),
            "{protocol:?}: same generation as the peer's"
        );
        world.heal();
        world.wait_in_sync();
    }
}

#[test]
fn w9_reads_and_writes_go_on_through_the_peer_when_the_local_disk_fails() {
    let mut world = Scenario::serving(Protocol::C);
    let before = world.write_now(0, block(5));
    world.break_disk(0);
    let write = world.write_now(0, block(6));
    world.until_disk_is_given_up(0);
    assert!(world.holds(1, block(6), write.write, View::Cached));
    assert_eq!(
        world.read_now(0, block(5)),
        qrbd_simulator::stamps::stamp(before.write, 40)
    );
    world.repair_disk(0);
    world.attach(0);
    world.wait_in_sync();
    assert!(world.holds(0, block(6), write.write, View::Cached));
}

#[test]
fn w9_reads_of_a_broken_disk_come_from_the_peer() {
    let mut world = Scenario::serving(Protocol::C);
    let write = world.write_now(0, block(5));
    world.world.nodes[0].volumes[0].faults.read_errors = (u64::MAX, 1000);
    assert_eq!(
        world.read_now(0, block(5)),
        qrbd_simulator::stamps::stamp(write.write, 40)
    );
}

#[test]
fn w10_discarded_and_zeroed_ranges_read_the_same_on_both_nodes() {
    for protocol in EVERY_PROTOCOL {
        let mut world = Scenario::serving(protocol);
        for range in [block(5), block(6), ByteRange::new(7 * 4096, 65536)] {
            world.write_now(0, range);
        }
        let discard = world.discard(0, ByteRange::new(5 * 4096 + 512, 2048));
        let zeroes = world.zeroes(0, ByteRange::new(7 * 4096 + 512, 40_960));
        world.completed(discard);
        world.completed(zeroes);
        world.wait_in_sync();
        assert_eq!(world.read_now(0, ByteRange::new(5 * 4096 + 512, 512)), 0);
        assert_eq!(world.world.sector(1, 0, 41), 0);
        assert_ne!(
            world.world.sector(1, 0, 40),
            0,
            "the rest of the block was lost"
        );
        assert!(world.world.differing[0].is_empty());
    }
}

// ---- C: crash and power loss ------------------------------------------------------------------------------------------------

#[test]
fn c1_a_crash_of_the_primary_costs_no_more_than_the_activity_log() {
    for seed in 0..10 {
        let mut world = Scenario::serving_with(Settings::quiet(seed, Protocol::C));
        for turn in 0..40 {
            world.write_now(0, extent(turn % 12));
        }
        let request = world.write(0, extent(3));
        world.run(100);
        world.power_loss(0);
        world.restart(0);
        let extents = u64::from(world.world.settings.volumes[0].al_extents);
        assert!(
            world.bits(0) <= extents * BLOCKS_PER_EXTENT,
            "{} bits",
            world.bits(0)
        );
        assert!(world.is_answered(request) || world.world.requests.is_empty());
        world.wait_in_sync();
    }
}

#[test]
fn c2_metadata_open_after_a_power_loss_at_any_instant() {
    for seed in 0..150 {
        let mut world = Scenario::serving_with(Settings::quiet(seed, Protocol::C));
        for turn in 0..12 {
            world.write(0, extent(turn));
        }
        // The checkers load the metadata that the crash left.
        world.run(seed * 23);
        world.power_loss(0);
        world.power_loss(1);
        world.restart(0);
        world.restart(1);
        world.wait_in_sync();
    }
}

/// Two nodes whose disks have grown, node 0 Primary.
fn with_grown_disks(seed: u64) -> Scenario {
    let mut settings = Settings::quiet(seed, Protocol::C);
    settings.volumes[0].internal = vec![true, seed.is_multiple_of(2)];
    settings.volumes[0].growth = vec![56 << 20];
    let mut world = Scenario::serving_with(settings);
    for node in 0..2 {
        assert!(world.world.grow_disk(node, 0));
    }
    world
}

fn resize() -> Command {
    Command::Resize {
        volume: VolumeNumber(0),
        bytes: None,
        assume_clean: false,
    }
}

#[test]
fn c2_metadata_that_move_open_after_a_power_loss_at_any_instant() {
    let mut sizes = std::collections::BTreeSet::new();
    for seed in 0..150 {
        let mut world = with_grown_disks(seed);
        for turn in 0..6 {
            world.write(0, extent(turn));
        }
        world.give(0, resize());
        // The checkers load the metadata that the crash left.
        world.run(seed * 400);
        world.power_loss(0);
        world.power_loss(1);
        world.restart(0);
        world.restart(1);
        world.wait_in_sync();
        sizes.insert(world.view(0).volumes[0].size);
        assert_eq!(world.view(0).volumes[0].size, world.view(1).volumes[0].size);
    }
    assert_eq!(
        sizes.len(),
        2,
        "crashes before and after the new size was noted"
    );
}

#[test]
fn c2_metadata_that_move_are_found_though_the_disk_grows_again() {
    let mut on_the_way = [0; 2];
    for seed in (0..150).step_by(3) {
        let mut settings = Settings::quiet(seed, Protocol::C);
        settings.volumes[0].internal = vec![true, true];
        settings.volumes[0].growth = vec![56 << 20, 72 << 20];
        let mut world = Scenario::serving_with(settings);
        for node in 0..2 {
            assert!(world.world.grow_disk(node, 0));
        }
        let write = world.write_now(0, block(5));
        world.flush_now(0);
        world.give(0, resize());
        world.run(seed * 80);
        for (node, count) in on_the_way.iter_mut().enumerate() {
            assert!(world.world.grow_disk(node, 0));
            let known = world.world.nodes[node].volumes[0].disk.known;
            *count += u32::from(known.is_some_and(|known| known.moving_to.is_some()));
        }
        world.power_loss(0);
        world.power_loss(1);
        world.restart(0);
        world.restart(1);
        world.wait_in_sync();
        world.promote(0).unwrap();
        world.command(0, resize()).unwrap();
        world.wait_in_sync();
        for node in 0..2 {
            assert_eq!(world.view(node).volumes[0].size, 72 << 20);
            assert!(world.holds(node, block(5), write.write, View::Cached));
        }
    }
    assert!(
        on_the_way.iter().all(|&count| count > 5),
        "crashes in the window: {on_the_way:?}"
    );
}

#[test]
fn w10_what_a_resize_adds_reads_the_same_on_both_nodes() {
    for seed in 0..20 {
        let mut world = with_grown_disks(seed);
        world.write_now(0, block(5));
        world.command(0, resize()).unwrap();
        world.wait_in_sync();
        let size = world.view(0).volumes[0].size;
        assert_eq!(size, 56 << 20);
        let last = block(size / 4096 - 1);
        let seen = world.read_now(0, last);
        world.power_loss(0);
        world.wait_disconnected(1);
        world.promote(1).unwrap();
        assert_eq!(world.read_now(1, last), seen);
        let write = world.write_now(1, last);
        world.restart(0);
        world.wait_in_sync();
        assert!(world.holds(0, last, write.write, View::Cached));
    }
}

#[test]
fn c3_an_acked_write_survives_the_primarys_crash_protocol_c() {
    over_seeds(Protocol::C, 20, |mut world| {
        let write = world.write_now(0, block(5));
        world.power_loss(0);
        world.wait_disconnected(1);
        world.promote(1).unwrap();
        assert_eq!(
            world.read_now(1, block(5)),
            qrbd_simulator::stamps::stamp(write.write, 40)
        );
        world.restart(0);
        world.wait_in_sync();
        assert!(world.holds(0, block(5), write.write, View::Cached));
    });
}

#[test]
fn c3_an_acked_write_survives_the_secondarys_power_loss() {
    over_seeds(Protocol::C, 20, |mut world| {
        let write = world.write_now(0, block(5));
        world.power_loss(1);
        assert_eq!(
            world.read_now(0, block(5)),
            qrbd_simulator::stamps::stamp(write.write, 40)
        );
        world.restart(1);
        world.wait_in_sync();
    });
}

#[test]
fn c3_a_flushed_write_survives_the_power_loss_of_both() {
    over_seeds(Protocol::C, 20, |mut world| {
        let write = world.write_now(0, block(5));
        world.flush_now(0);
        world.write(0, block(6));
        world.run(300);
        world.power_loss(0);
        world.power_loss(1);
        let first = usize::from(world.world.settings.seed % 2 == 0);
        world.restart(first);
        world.promote(first).unwrap();
        assert_eq!(
            world.read_now(first, block(5)),
            qrbd_simulator::stamps::stamp(write.write, 40)
        );
        world.restart(1 - first);
        world.wait_in_sync();
        assert!(world.holds(1 - first, block(5), write.write, View::Cached));
    });
}

#[test]
fn c4_the_survivor_of_protocol_a_and_b_is_a_state_that_the_primary_passed_through() {
    for protocol in [Protocol::A, Protocol::B] {
        over_seeds(protocol, 30, |mut world| {
            let mut last = world.write_now(0, block(0));
            for turn in 1..30 {
                // A log record, then the commit that depends on it.
                world.write_now(0, block(turn));
                last = world.write_now(0, extent(4));
                if turn == 25 && protocol == Protocol::A {
                    world.mute(0);
                }
            }
            world.power_loss(0);
            world.heal();
            world.wait_disconnected(1);
            world.settle();
            // The write-order checker measures the new Primary.
            world.promote(1).unwrap();
            world.read_now(1, extent(4));
            world.restart(0);
            world.wait_in_sync();
            assert!(last.write > 0);
        });
    }
}

#[test]
fn c5_a_killed_primary_comes_back_with_everything_it_answered() {
    for protocol in EVERY_PROTOCOL {
        over_seeds(protocol, 10, |mut world| {
            let write = world.write_now(0, block(5));
            world.kill(0);
            world.restart(0);
            world.promote(0).unwrap();
            assert_eq!(
                world.read_now(0, block(5)),
                qrbd_simulator::stamps::stamp(write.write, 40)
            );
            world.wait_in_sync();
        });
    }
}

/// A survivor that was in contact under protocol A did not get everything that was completed, whatever is configured by now.
#[test]
fn a_killed_primary_of_protocol_a_keeps_what_it_answered_although_protocol_c_is_configured_meanwhile()
 {
    for stops in [false, true] {
        over_seeds(Protocol::A, 10, |mut world| {
            world.mute(0);
            let write = world.write_now(0, block(5));
            world.kill(0);
            world.wait_disconnected(1);
            world.heal();
            assert!(!world.holds(1, block(5), write.write, View::Cached));
            if stops {
                world.detach(1).unwrap();
            }
            world.disconnect(1).unwrap();
            world.adjust_protocol(1, Protocol::C);
            world.world.settings.protocol = Protocol::C;
            if stops {
                world.kill(1);
                world.restart(1);
            } else {
                world.connect(1, false).unwrap();
            }
            world.restart(0);
            world.wait_in_sync();
            world.promote(0).unwrap();
            let found = world.read_now(0, block(5));
            assert_eq!(found, qrbd_simulator::stamps::stamp(write.write, 40));
        });
    }
}

// ---- G: who has the newer data ------------------------------------------------------------------------------------------------

#[test]
fn g1_the_node_that_stayed_behind_becomes_the_target_whoever_is_primary() {
    let mut world = Scenario::serving(Protocol::C);
    world.power_loss(0);
    world.wait_disconnected(1);
    world.promote(1).unwrap();
    let write = world.write_now(1, block(7));
    world.restart(0);
    world.wait_in_sync();
    assert!(world.holds(0, block(7), write.write, View::Cached));
    assert!(world.saw_rule(0, "bitmap-peer"), "{:?}", world.world.rules);
    assert!(world.saw_rule(1, "bitmap-self"), "{:?}", world.world.rules);
}

#[test]
fn g2_a_reconnect_without_writes_copies_nothing() {
    for protocol in EVERY_PROTOCOL {
        let mut world = Scenario::serving(protocol);
        world.write_now(0, block(5));
        world.settle();
        world.disconnect(1).unwrap();
        world.run(SECOND);
        world.connect(1, false).unwrap();
        world.wait_in_sync();
        assert!(
            !world.saw_rule(1, "resync-finished"),
            "{:?}",
            world.world.rules
        );
    }
}

fn split_brain(protocol: Protocol) -> Scenario {
    let mut settings = Settings::quiet(3, protocol);
    settings.reckless = true;
    let mut world = Scenario::serving_with(settings);
    world.partition();
    world.wait_disconnected(0);
    world.wait_disconnected(1);
    world.promote(1).unwrap();
    world.write_now(0, block(5));
    world.write_now(1, block(6));
    world.heal();
    world.until("both stand alone", |world| {
        (0..2).all(|node| {
            let view = world.nodes[node].live_view().unwrap();
            view.peers[1 - node].as_ref().unwrap().connection == ConnectionState::StandAlone
        })
    });
    world
}

#[test]
fn g3_a_split_brain_is_found_and_both_sides_are_kept() {
    for protocol in EVERY_PROTOCOL {
        let mut world = split_brain(protocol);
        assert!(
            world.world.figures.split_brains > 0,
            "no handler was called"
        );
        world.connect(0, false).unwrap();
        world.connect(1, false).unwrap();
        world.run(5 * SECOND);
        assert_eq!(world.connection(0), ConnectionState::StandAlone);
        assert!(world.world.differing[0].contains(&40) && world.world.differing[0].contains(&48));
    }
}

#[test]
fn g3_discard_my_data_gives_up_one_side_and_keeps_the_other() {
    let mut world = split_brain(Protocol::C);
    let (kept, lost) = (world.world.sector(0, 0, 40), world.world.sector(1, 0, 48));
    assert_eq!(
        world.connect(1, true),
        Err(Refusal::DiscardNotAllowed),
        "a Primary may not discard"
    );
    world.demote(1).unwrap();
    world.connect(1, true).unwrap();
    world.connect(0, false).unwrap();
    world.wait_in_sync();
    assert_eq!(world.world.sector(1, 0, 40), kept);
    assert_ne!(world.world.sector(0, 0, 48), lost);
}

#[test]
fn g4_a_second_primary_is_refused_while_connected() {
    let mut world = Scenario::serving(Protocol::C);
    assert_eq!(world.promote(1), Err(Refusal::TwoPrimaries));
    assert_eq!(world.view(1).role, Role::Secondary);
}

#[test]
fn g4_outdated_data_are_not_promoted_without_force() {
    let mut world = Scenario::serving(Protocol::C);
    world.disconnect(1).unwrap();
    world
        .command(
            1,
            Command::Outdate {
                volume: volume_number(0),
            },
        )
        .unwrap();
    world.write_now(0, block(5));
    assert_eq!(world.promote(1), Err(Refusal::NoUpToDateDisk));
    world.kill(1);
    world.world.manager.disconnect_whim(1);
    world.restart(1);
    assert_eq!(
        world.disk(1),
        DiskState::Outdated,
        "forgotten over a restart"
    );
    assert_eq!(world.promote(1), Err(Refusal::NoUpToDateDisk));
    world.connect(1, false).unwrap();
    world.wait_in_sync();
}

#[test]
fn g4_an_interrupted_target_is_not_promoted_without_force() {
    let mut world = Scenario::serving(Protocol::C);
    world.disconnect(1).unwrap();
    for number in 0..64 {
        world.write_now(0, block(number * 16));
    }
    world.connect(1, false).unwrap();
    world.until("the resync runs", |world| {
        world.nodes[1].live_view().unwrap().volumes[0].disk == DiskState::Inconsistent
    });
    world.power_loss(0);
    world.wait_disconnected(1);
    assert_eq!(world.disk(1), DiskState::Inconsistent);
    assert_eq!(world.promote(1), Err(Refusal::NoUpToDateDisk));
    world.restart(0);
    world.wait_in_sync();
}

#[test]
fn g4_a_node_without_data_is_not_promoted_without_force() {
    let mut world = Scenario::unstarted(Settings::quiet(1, Protocol::C));
    world.restart(0);
    assert_eq!(world.promote(0), Err(Refusal::NoUpToDateDisk));
}

#[test]
fn g5_unrelated_disks_are_refused_and_nothing_is_overwritten() {
    let mut settings = Settings::quiet(5, Protocol::C);
    settings.beginning = Beginning::ForcePrimary;
    settings.reckless = true;
    let mut world = Scenario::unstarted(settings);
    for node in [0, 1] {
        world.world.manager.disconnect_whim(node);
        world.restart(node);
        world
            .command(node, Command::Promote { force: true })
            .unwrap();
        world.write_now(node, block(3 + node as u64));
        world
            .command(node, Command::Demote { force: true })
            .unwrap();
    }
    let before: Vec<u64> = (24..40)
        .map(|sector| world.world.sector(1, 0, sector))
        .collect();
    world.connect(0, false).unwrap();
    world.connect(1, false).unwrap();
    world.run(5 * SECOND);
    assert_eq!(world.connection(0), ConnectionState::StandAlone);
    let after: Vec<u64> = (24..40)
        .map(|sector| world.world.sector(1, 0, sector))
        .collect();
    assert_eq!(before, after);
}

// ---- R: resync ----------------------------------------------------------------------------------------------------------------

#[test]
fn r1_a_resync_copies_only_what_is_marked() {
    let mut world = Scenario::serving(Protocol::C);
    world.disconnect(1).unwrap();
    for number in [3, 70, 1500] {
        world.write_now(0, block(number));
    }
    assert_eq!(world.bits(0), 3);
    world.connect(1, false).unwrap();
    world.wait_in_sync();
    // The crash-resync checker refuses every block that is not marked.
    assert!(world.saw_rule(1, "resync-finished"));
}

#[test]
fn r1_an_interrupted_resync_goes_on_where_it_was() {
    let mut world = Scenario::serving(Protocol::C);
    world.disconnect(1).unwrap();
    // The target is flushed, and bits are cleared, after every 32 MiB.
    for number in 0..44 {
        world.write_now(0, ByteRange::new(number << 20, 1 << 20));
    }
    let all = world.bits(0);
    world.connect(1, false).unwrap();
    world.until("half of it is copied", |world| {
        let view = world.nodes[0].live_view().unwrap();
        let bits = view.peers[1].as_ref().unwrap().volumes[0].bits;
        bits > 0 && bits < all
    });
    world.power_loss(1);
    world.wait_disconnected(0);
    assert!(world.bits(0) < all, "everything is marked again");
    world.restart(1);
    world.wait_in_sync();
}

#[test]
fn r2_writes_during_a_resync_are_never_overtaken_by_it() {
    over_seeds(Protocol::C, 10, |mut world| {
        world.disconnect(1).unwrap();
        for number in 0..64 {
            world.write_now(0, block(number * 4));
        }
        world.connect(1, false).unwrap();
        world.until("the resync runs", |world| {
            world.nodes[0].live_view().unwrap().replication(1, 0) == ReplicationState::SyncSource
        });
        let requests: Vec<_> = (0..64)
            .map(|number| world.write(0, block(number * 4)))
            .collect();
        for &request in &requests {
            world.completed(request);
        }
        world.wait_in_sync();
        for (number, request) in requests.iter().enumerate() {
            assert!(
                world.holds(1, block(number as u64 * 4), request.write, View::Cached),
                "block {number}"
            );
        }
    });
}

#[test]
fn r3_the_target_is_inconsistent_from_the_first_block_to_the_last_and_over_a_crash() {
    let mut world = Scenario::serving(Protocol::C);
    world.disconnect(1).unwrap();
    for number in 0..200 {
        world.write_now(0, block(number * 8));
    }
    world.connect(1, false).unwrap();
    world.until("data arrive", |world| {
        world.sector(1, 0, 0) == world.sector(0, 0, 0)
    });
    assert_eq!(world.disk(1), DiskState::Inconsistent);
    world.power_loss(1);
    let image = world.world.nodes[1].volumes[0]
        .disk
        .load(View::Durable)
        .unwrap();
    assert!(!image.superblock.flags.consistent);
    world.restart(1);
    world.wait_in_sync();
}

// ---- what clients are told ------------------------------------------------------------------------------------------------------

#[test]
fn a_secondary_answers_no_request() {
    let mut world = Scenario::in_sync(Settings::quiet(1, Protocol::C));
    let request = world.read(1, block(0));
    assert_eq!(world.answer(request), Err(ClientError::NotPrimary));
}

#[test]
fn a_primary_without_any_data_says_so_and_does_not_hang() {
    let mut world = Scenario::serving(Protocol::C);
    world.power_loss(1);
    world.wait_disconnected(0);
    world.break_disk(0);
    let request = world.write(0, block(5));
    assert_eq!(world.answer(request), Err(ClientError::Io));
}

#[test]
fn disconnecting_the_last_good_copy_of_a_primary_is_refused() {
    let mut world = Scenario::serving(Protocol::C);
    world.detach(0).unwrap();
    assert_eq!(world.disconnect(0), Err(Refusal::NoUpToDateDisk));
    assert!(
        world.detach(1).is_err(),
        "the peer detached what the Primary lives on"
    );
    assert!(
        world
            .command(
                0,
                Command::InvalidateRemote {
                    volume: volume_number(0),
                    peer: node_id(1)
                }
            )
            .is_err()
    );
    world.write_now(0, block(5));
    world.attach(0);
    world.wait_in_sync();
}

#[test]
fn a_diskless_primary_does_not_read_the_disk_it_attaches_before_it_is_current() {
    over_seeds(Protocol::C, 10, |mut world| {
        world.detach(0).unwrap();
        let write = world.write_now(0, block(5));
        world.begin_attach(0, 0);
        for _ in 0..40 {
            assert_eq!(
                world.read_now(0, block(5)),
                qrbd_simulator::stamps::stamp(write.write, 40)
            );
            world.run(50);
        }
        world.wait_in_sync();
    });
}

#[test]
fn a_disk_that_meets_a_diskless_primary_with_newer_data_is_never_taken_for_good() {
    over_seeds(Protocol::C, 20, |mut world| {
        world.detach(1).unwrap();
        world.write_now(0, block(5));
        world.break_disk(0);
        let lost = world.write(0, block(6));
        let _ = world.answer(lost);
        world.until_disk_is_given_up(0);
        world.begin_attach(1, 0);
        for number in 0..200 {
            assert_ne!(
                world.view(0).peer_disk(1, 0),
                DiskState::UpToDate,
                "the Primary writes to it, and nobody marks that"
            );
            world.write(0, block(20 + number));
            world.run(50);
        }
        world.settle();
        assert_eq!(world.disk(1), DiskState::Outdated);
    });
}

#[test]
fn a_resync_that_its_source_ended_is_over_although_the_connection_is_lost() {
    for seed in 0..40 {
        let mut world = Scenario::serving_with(Settings::quiet(seed, Protocol::C));
        world.disconnect(1).unwrap();
        world.write_now(0, block(5));
        // Long enough at its metadata to be met there.
        world.world.settings.disk_delay = (MILLISECOND, 2 * MILLISECOND);
        world.connect(1, false).unwrap();
        world.until("the block is copied", |world| {
            let view = world.nodes[0].live_view().unwrap();
            view.replication(1, 0) == ReplicationState::SyncSource
                && view.peers[1].as_ref().unwrap().volumes[0].bits == 0
        });
        world.run(400 * seed);
        world.disconnect(0).unwrap();
        world.wait_disconnected(1);
        world.settle();
        let image = world.world.nodes[1].volumes[0].disk.load(View::Cached);
        let flags = image.expect("the metadata open").superblock.flags;
        assert_eq!(
            world.disk(1) == DiskState::UpToDate,
            flags.was_up_to_date,
            "what the node says ({}) and what its disk says differ",
            world.disk(1)
        );
        world.connect(0, false).unwrap();
        world.wait_in_sync();
    }
}

/// Both administrators give an order in the same moment; returns how the commands ended.
fn orders_at_once(
    world: &mut Scenario,
    apart: u64,
    orders: [Command; 2],
) -> [Result<(), Refusal>; 2] {
    let [first, second] = orders;
    let first = world.give(0, first);
    world.run(apart);
    let second = world.give(1, second);
    [first, second].map(|command| world.ended(command))
}

#[test]
fn two_nodes_that_are_invalidated_at_once_do_not_both_lose_their_data() {
    let volume = volume_number(0);
    let mut refused = 0;
    for seed in 0..60 {
        let mut world = Scenario::in_sync(Settings::quiet(seed, Protocol::C));
        let invalidate = || Command::Invalidate { volume };
        let ended = orders_at_once(&mut world, 20 * seed, [invalidate(), invalidate()]);
        // Where there is time enough between the two, the second one waits for the end of the resync or is refused.
        assert!(ended.iter().any(Result::is_ok), "seed {seed}: {ended:?}");
        refused += u32::from(ended.iter().any(Result::is_err));
        world.wait_in_sync();
    }
    assert!(refused > 20, "refused only {refused} times");
}

#[test]
fn two_nodes_that_invalidate_each_other_at_once_do_not_both_lose_their_data() {
    let volume = volume_number(0);
    for seed in 0..60 {
        let mut world = Scenario::in_sync(Settings::quiet(seed, Protocol::C));
        let remote = |peer| Command::InvalidateRemote {
            volume,
            peer: node_id(peer),
        };
        let own = Command::Invalidate { volume };
        let second = if seed % 2 == 0 { remote(0) } else { own };
        let _ = orders_at_once(&mut world, 20 * (seed / 2), [remote(1), second]);
        world.run(SECOND);
        world.wait_in_sync();
    }
}

#[test]
fn the_survivor_of_a_primary_that_just_died_is_not_invalidated() {
    for seed in 0..10 {
        let mut world = Scenario::serving_with(Settings::quiet(seed, Protocol::C));
        let write = world.write_now(0, block(5));
        world.power_loss(0);
        let invalidate = Command::Invalidate {
            volume: volume_number(0),
        };
        assert!(world.command(1, invalidate).is_err());
        assert_eq!(world.disk(1), DiskState::UpToDate);
        world.restart(0);
        world.wait_in_sync();
        assert!(world.holds(0, block(5), write.write, View::Cached));
    }
}

#[test]
fn an_attach_that_is_still_being_written_down_does_not_end_the_connection() {
    for seed in 0..20 {
        let mut world = Scenario::in_sync(Settings::quiet(seed, Protocol::C));
        let volume = volume_number(0);
        world.command(1, Command::Invalidate { volume }).unwrap();
        world.until("the full sync runs", |world| {
            world.nodes[1].live_view().unwrap().replication(0, 0) == ReplicationState::SyncTarget
        });
        world.detach(0).unwrap();
        world.until("connected again", |world| world.nodes[1].connected(0));
        world.world.settings.disk_delay = (2 * MILLISECOND, 3 * MILLISECOND);
        world.attach(0);
        world.world.settings.disk_delay = (50, 500);
        world.wait_in_sync();
        for node in [0, 1] {
            assert!(!world.saw_rule(node, "protocol-error"));
        }
    }
}

#[test]
fn more_writes_than_the_activity_log_has_extents_do_not_wait_for_each_other_for_ever() {
    for protocol in EVERY_PROTOCOL {
        for seed in 0..5 {
            let mut settings = Settings::quiet(seed, protocol);
            settings.volumes[0].data_bytes = 96 << 20;
            settings.volumes[0].al_extents = 9;
            let mut world = Scenario::serving_with(settings);
            let mut requests = Vec::new();
            for round in 0..3 {
                for number in 0..24 {
                    requests.push(world.write(0, extent(number)));
                    // Two extents at once.
                    let border = (number + 1) * BLOCKS_PER_EXTENT * 4096 - 4096;
                    if round == 1 && number < 23 {
                        requests.push(world.write(0, ByteRange::new(border, 8192)));
                    }
                }
            }
            for request in requests {
                world.completed(request);
            }
            world.settle();
        }
    }
}

#[test]
fn a_primary_gets_the_disk_back_that_its_clients_saw_also_when_its_peer_attaches_older_data() {
    over_seeds(Protocol::C, 40, |mut world| {
        world.detach(1).unwrap();
        let write = world.write_now(0, block(5));
        world.break_disk(0);
        let lost = world.write(0, block(6));
        let _ = world.answer(lost);
        world.until_disk_is_given_up(0);
        world.repair_disk(0);
        let seed = world.world.settings.seed;
        // The peer's question meets a Primary that has its disk back already.
        world.world.links[0].delay = (5 * MILLISECOND, 6 * MILLISECOND);
        world.begin_attach(1, 0);
        world.run(200 * seed);
        world.begin_attach(0, 0);
        world.wait_in_sync();
        assert_eq!(world.view(0).role, Role::Primary);
        assert_eq!(
            world.read_now(0, block(5)),
            qrbd_simulator::stamps::stamp(write.write, 40)
        );
    });
}

#[test]
fn clients_of_a_diskless_primary_never_see_an_older_disk_that_it_attaches() {
    over_seeds(Protocol::A, 10, |mut world| {
        world.write_now(0, block(4));
        world.run(SECOND);
        // Completed here, never received there.
        world.mute(0);
        let write = world.write_now(0, block(5));
        world.break_disk(0);
        let read = world.read(0, block(4));
        world.until_disk_is_given_up(0);
        world.power_loss(1);
        world.heal();
        world.wait_disconnected(0);
        let _ = world.answer(read);
        world.restart(1);
        world.until("they are connected again", |world| {
            world.nodes[0].connected(1) && world.nodes[1].connected(0)
        });
        world.until("the disk was compared", |world| {
            let view = world.nodes[1].live_view();
            view.is_some_and(|view| view.volumes[0].disk != DiskState::Negotiating)
        });
        assert_eq!(world.disk(1), DiskState::Outdated);
        // A disk of this volume, but from before: as if the one that broke had come back without its last writes.
        world.repair_disk(0);
        world.begin_attach(0, 0);
        world.run(2 * SECOND);
        let seen = world.read(0, block(5));
        if let Ok(Some(data)) = world.answer(seen) {
            assert_eq!(data.0[0], qrbd_simulator::stamps::stamp(write.write, 40));
        }
    });
}

#[test]
fn writes_go_on_through_the_peer_when_a_disk_breaks_again_while_a_primary_attaches_it() {
    over_seeds(Protocol::C, 10, |mut world| {
        world.detach(0).unwrap();
        world.write_now(0, block(5));
        world.world.nodes[0].volumes[0].faults.metadata_errors = (u64::MAX, 1000);
        world.begin_attach(0, 0);
        world.run(500 * MILLISECOND);
        assert_eq!(world.disk(0), DiskState::Diskless);
        world.write_now(0, block(6));
    });
}

#[test]
fn a_demotion_amid_a_handshake_leaves_the_generation_that_was_compared() {
    for seed in 0..40 {
        let mut world = Scenario::serving_with(Settings::quiet(seed, Protocol::C));
        world.disconnect(1).unwrap();
        for number in 0..20 {
            world.write_now(0, ByteRange::new(number << 20, 1 << 20));
        }
        world.connect(1, false).unwrap();
        world.until("the resync runs", |world| {
            world.nodes[0].live_view().unwrap().replication(1, 0) == ReplicationState::SyncSource
        });
        world.power_loss(1);
        world.wait_disconnected(0);
        world.settle();
        world.world.settings.disk_delay = (2 * MILLISECOND, 3 * MILLISECOND);
        world.restart(1);
        world.until("the bitmaps are exchanged", |world| {
            world.nodes[0].live_view().unwrap().replication(1, 0) == ReplicationState::WFBitMapS
        });
        world.run(500 * seed);
        world.demote(0).unwrap();
        world.world.settings.disk_delay = (50, 500);
        world.wait_in_sync();
        assert_eq!(
            world.world.generation_on_disk(0, 0),
            world.world.generation_on_disk(1, 0),
            "both have the same data"
        );
    }
}

#[test]
fn reads_of_a_diskless_primary_wait_until_its_peers_disk_is_attached() {
    over_seeds(Protocol::C, 20, |mut world| {
        world.detach(0).unwrap();
        world.write_now(0, block(5));
        world.kill(1);
        world.world.boot(1);
        world.connect(1, false).unwrap();
        world.until_connected();
        world.settle();
        world.begin_attach(1, 0);
        world.until("the disk is within reach", |world| {
            world.nodes[0].live_view().unwrap().peer_disk(1, 0) == DiskState::UpToDate
        });
        let read = world.read(0, block(5));
        assert!(world.answer(read).is_ok());
    });
}

/// What may happen to the peer of a Primary without a disk between a completed write and the flush.
#[derive(Clone, Copy, PartialEq)]
enum Interruption {
    Network,
    Process,
    Power,
}

/// The connection is lost, and node 1 serves node 0 again.
fn interrupt(world: &mut Scenario, interruption: Interruption) {
    match interruption {
        Interruption::Network => world.partition(),
        Interruption::Process => world.kill(1),
        Interruption::Power => world.power_loss(1),
    }
    world.wait_disconnected(0);
    match interruption {
        Interruption::Network => world.heal(),
        Interruption::Process | Interruption::Power => world.restart(1),
    }
    until_served(world);
}

/// Waits until a Primary without a disk has its peer's again.
fn until_served(world: &mut Scenario) {
    world.until("the peer's disk is within reach again", |world| {
        let view = world.nodes[0].live_view().unwrap();
        view.connected(1) && view.mirrors_to(1, 0) && view.peer_disk(1, 0) == DiskState::UpToDate
    });
    world.settle();
}

/// The client of node 0 learns by one flush that completed writes may be gone, and by no other.
fn a_flush_fails_once(world: &mut Scenario) {
    let flush = world.flush(0);
    assert_eq!(world.answer(flush), Err(ClientError::Io));
    world.flush_now(0);
}

/// The only good disk, that of `node`, fails under a write of the Primary's client, node 0.
fn break_under_a_write(world: &mut Scenario, node: usize) {
    world.break_disk(node);
    let failed = world.write(0, block(6));
    assert_eq!(world.answer(failed), Err(ClientError::Io));
    world.until_disk_is_given_up(node);
}

/// Node 0 is alone, and its disk fails after a completed write that no flush covered.
fn lose_the_only_disk_unflushed(world: &mut Scenario) {
    world.disconnect(1).unwrap();
    world.wait_disconnected(0);
    world.write_now(0, block(5));
    break_under_a_write(world, 0);
}

#[test]
fn a_flush_fails_once_where_the_only_disk_lost_power_with_completed_writes() {
    let mut lost = 0;
    for seed in 0..30 {
        let mut world = Scenario::serving_with(Settings::quiet(seed, Protocol::C));
        world.detach(0).unwrap();
        let write = world.write_now(0, block(5));
        interrupt(&mut world, Interruption::Power);
        lost += u32::from(!world.holds(1, block(5), write.write, View::Cached));
        a_flush_fails_once(&mut world);
        assert!(world.saw_rule(0, "peer-lost-unflushed-writes"));
        world.write_now(0, block(6));
        world.flush_now(0);
    }
    assert!(lost > 3, "the power loss took the write only {lost} times");
}

#[test]
fn every_flush_that_waits_for_a_restarted_peer_fails_if_it_lost_completed_writes() {
    over_seeds(Protocol::C, 20, |mut world| {
        world.detach(0).unwrap();
        world.write_now(0, block(5));
        world.power_loss(1);
        world.wait_disconnected(0);
        world.restart(1);
        world.until("its disk is there, and not ready yet", |world| {
            let view = world.nodes[0].live_view().unwrap();
            view.connected(1) && view.peer_disk(1, 0) == DiskState::UpToDate
        });
        let flushes = [world.flush(0), world.flush(0)];
        assert!(!flushes.iter().any(|&flush| world.is_answered(flush)));
        for flush in flushes {
            assert_eq!(world.answer(flush), Err(ClientError::Io));
        }
        world.flush_now(0);
    });
}

#[test]
fn a_flush_fails_where_the_only_disk_failed_with_completed_writes_and_came_back() {
    over_seeds(Protocol::C, 20, |mut world| {
        world.detach(0).unwrap();
        world.write_now(0, block(5));
        break_under_a_write(&mut world, 1);
        world.repair_disk(1);
        world.attach(1);
        until_served(&mut world);
        a_flush_fails_once(&mut world);
    });
}

#[test]
fn a_flush_of_a_diskless_primary_succeeds_where_nothing_was_lost() {
    for interruption in [Interruption::Network, Interruption::Process] {
        over_seeds(Protocol::C, 20, |mut world| {
            world.detach(0).unwrap();
            let write = world.write_now(0, block(5));
            interrupt(&mut world, interruption);
            assert!(world.holds(1, block(5), write.write, View::Durable));
            world.flush_now(0);
            // All that the power loss could take was flushed before.
            interrupt(&mut world, Interruption::Power);
            assert!(world.holds(1, block(5), write.write, View::Durable));
            world.flush_now(0);
            assert!(!world.saw_rule(0, "peer-lost-unflushed-writes"));
        });
    }
}

#[test]
fn a_flush_that_failed_during_the_outage_has_told_already() {
    over_seeds(Protocol::C, 10, |mut world| {
        world.detach(0).unwrap();
        world.write_now(0, block(5));
        world.power_loss(1);
        world.wait_disconnected(0);
        let flush = world.flush(0);
        assert_eq!(world.answer(flush), Err(ClientError::Io));
        world.restart(1);
        until_served(&mut world);
        world.flush_now(0);
        assert!(!world.saw_rule(0, "peer-lost-unflushed-writes"));
    });
}

#[test]
fn a_new_primary_term_knows_nothing_of_writes_that_were_lost_before() {
    over_seeds(Protocol::C, 10, |mut world| {
        world.detach(0).unwrap();
        world.write_now(0, block(5));
        world.power_loss(1);
        world.wait_disconnected(0);
        world.demote(0).unwrap();
        world.restart(1);
        world.until("they are connected", |world| world.nodes[0].connected(1));
        world.settle();
        world.promote(0).unwrap();
        world.flush_now(0);
        // It heard of the loss, nobody flushed: the next term's clients never saw those writes.
        world.write_now(0, block(6));
        interrupt(&mut world, Interruption::Power);
        assert!(world.saw_rule(0, "peer-lost-unflushed-writes"));
        world.demote(0).unwrap();
        world.promote(0).unwrap();
        world.flush_now(0);
    });
}

#[test]
fn the_target_of_a_resync_tells_its_clients_what_the_power_loss_of_its_source_took() {
    let mut told = 0;
    for seed in 0..30 {
        let mut world = Scenario::serving_with(Settings::quiet(seed, Protocol::C));
        world.detach(0).unwrap();
        for number in 0..200 {
            world.write_now(0, block(number * 7));
        }
        world.begin_attach(0, 0);
        world.until("the resync runs", |world| {
            let view = world.nodes[0].live_view().unwrap();
            view.replication(1, 0) == ReplicationState::SyncTarget
        });
        world.write_now(0, block(5));
        if world.disk(0) == DiskState::UpToDate {
            continue;
        }
        interrupt(&mut world, Interruption::Power);
        let flush = world.flush(0);
        // The checkers look at what a flush that succeeds vouches for.
        told += u32::from(world.answer(flush) == Err(ClientError::Io));
        world.wait_in_sync();
    }
    assert!(told > 3, "told only {told} times");
}

#[test]
fn a_flush_fails_where_the_own_disk_goes_before_a_restarted_peer_was_brought_up_to_date() {
    let mut told = 0;
    for (seed, late) in (0..20).flat_map(|seed| [(seed, false), (seed, true)]) {
        let mut world = Scenario::serving_with(Settings::quiet(seed, Protocol::C));
        world.write_now(0, block(5));
        world.power_loss(1);
        world.wait_disconnected(0);
        let volume = volume_number(0);
        let detach = Command::Detach {
            volume,
            force: true,
        };
        if late {
            world.restart(1);
            world.until("they compare their bitmaps", |world| {
                let view = world.nodes[0].live_view().unwrap();
                view.replication(1, 0) == ReplicationState::WFBitMapS
            });
            world.give(0, detach);
        } else {
            world.command(0, detach).unwrap();
            world.restart(1);
        }
        world.run(2 * SECOND);
        let view = world.view(0);
        if view.volumes[0].disk == DiskState::Diskless && view.in_sync_with(1, 0) {
            a_flush_fails_once(&mut world);
            told += 1;
        }
    }
    assert!(told > 3, "told only {told} times");
}

#[test]
fn a_peer_that_comes_back_without_its_disk_first_hides_no_power_loss() {
    for served_itself in [false, true] {
        over_seeds(Protocol::C, 10, |mut world| {
            let detach = |force| Command::Detach {
                volume: volume_number(0),
                force,
            };
            if !served_itself {
                world.command(0, detach(false)).unwrap();
            }
            world.write_now(0, block(5));
            world.power_loss(1);
            world.wait_disconnected(0);
            world.world.boot(1);
            world.connect(1, false).unwrap();
            world.until_connected();
            world.settle();
            if served_itself {
                world.command(0, detach(true)).unwrap();
            }
            world.attach(1);
            until_served(&mut world);
            a_flush_fails_once(&mut world);
        });
    }
}

#[test]
fn a_flush_that_failed_without_the_disk_has_told_already() {
    over_seeds(Protocol::C, 10, |mut world| {
        lose_the_only_disk_unflushed(&mut world);
        let flush = world.flush(0);
        assert_eq!(world.answer(flush), Err(ClientError::Io));
        world.repair_disk(0);
        world.attach(0);
        world.flush_now(0);
    });
}

#[test]
fn a_flush_fails_where_the_only_good_disk_failed_and_was_attached_again() {
    over_seeds(Protocol::C, 10, |mut world| {
        lose_the_only_disk_unflushed(&mut world);
        world.repair_disk(0);
        world.attach(0);
        a_flush_fails_once(&mut world);
    });
}

#[test]
fn a_flush_fails_where_the_metadata_of_the_only_good_disk_failed_with_nothing_under_way() {
    over_seeds(Protocol::C, 10, |mut world| {
        world.disconnect(1).unwrap();
        world.wait_disconnected(0);
        world.write_now(0, block(5));
        // A write that needs an extent of the activity log: the disk is given up in the step in which that fails.
        world.break_metadata(0);
        let failed = world.write(0, extent(7));
        assert_eq!(world.answer(failed), Err(ClientError::Io));
        world.until_disk_is_given_up(0);
        world.repair_disk(0);
        world.attach(0);
        world.connect(1, false).unwrap();
        until_served(&mut world);
        a_flush_fails_once(&mut world);
    });
}

#[test]
fn a_disk_that_goes_when_its_peers_resync_is_just_over_is_not_good_when_it_comes_back_alone() {
    let mut taken_over = 0;
    for seed in 0..200 {
        let mut world = Scenario::serving_with(Settings::quiet(seed, Protocol::C));
        world.disconnect(1).unwrap();
        for number in 0..5 {
            world.write_now(0, block(number));
        }
        world.connect(1, false).unwrap();
        world.until("the resync runs", |world| {
            let view = world.nodes[0].live_view().unwrap();
            view.replication(1, 0) == ReplicationState::SyncSource
        });
        world.run(10 * seed);
        let view = world.view(0);
        if view.replication(1, 0) != ReplicationState::SyncSource {
            continue;
        }
        world.give(
            0,
            Command::Detach {
                volume: volume_number(0),
                force: true,
            },
        );
        world.run(SECOND);
        if world.disk(1) != DiskState::UpToDate || !world.view(0).in_sync_with(1, 0) {
            continue;
        }
        taken_over += 1;
        let write = world.write_now(0, block(6));
        world.flush_now(0);
        world.power_loss(1);
        world.power_loss(0);
        world.world.boot(0);
        world.attach(0);
        assert_ne!(world.disk(0), DiskState::UpToDate, "seed {seed}");
        world.restart(1);
        world.connect(0, false).unwrap();
        world.wait_in_sync();
        assert!(world.holds(0, block(6), write.write, View::Cached));
    }
    assert!(taken_over > 3, "the peer took over only {taken_over} times");
}

#[test]
fn a_disk_that_lost_a_promised_write_is_not_up_to_date_when_it_comes_back() {
    over_seeds(Protocol::B, 10, |mut world| {
        world.stall_disk(1, SECOND);
        world.write_now(0, block(5));
        world.break_disk(1);
        world.kill(0);
        world.until_disk_is_given_up(1);
        world.repair_disk(1);
        world.attach(1);
        assert_eq!(world.disk(1), DiskState::Outdated);
        assert!(
            world.promote(1).is_err(),
            "promoted without a write that was promised"
        );
        world.restart(0);
        world.wait_in_sync();
        assert_eq!(world.disk(1), DiskState::UpToDate);
    });
}

/// The disk of node 1 fails with a received write on its way to it, after the connection ended and another protocol was configured. What
/// the disk is when it is attached again.
fn disk_that_lost_a_write_received_before(mut world: Scenario, adjusted: Protocol) -> DiskState {
    world.stall_disk(1, SECOND);
    world.write_now(0, block(5));
    world.run(10 * MILLISECOND);
    world.kill(0);
    world.disconnect(1).unwrap();
    assert_eq!(world.connection(1), ConnectionState::StandAlone);
    world.adjust_protocol(1, adjusted);
    world.break_disk(1);
    world.until_disk_is_given_up(1);
    world.repair_disk(1);
    world.attach(1);
    world.disk(1)
}

#[test]
fn a_promise_under_protocol_b_outlives_the_configuration_of_protocol_b() {
    over_seeds(Protocol::B, 10, |world| {
        let disk = disk_that_lost_a_write_received_before(world, Protocol::A);
        assert_eq!(disk, DiskState::Outdated);
    });
}

#[test]
fn what_was_received_under_protocol_a_is_no_promise_once_protocol_b_is_configured() {
    over_seeds(Protocol::A, 10, |world| {
        let disk = disk_that_lost_a_write_received_before(world, Protocol::B);
        assert_eq!(disk, DiskState::UpToDate);
    });
}

#[test]
fn an_outdated_source_is_up_to_date_when_its_target_is() {
    let mut world = Scenario::serving(Protocol::C);
    world.detach(0).unwrap();
    world.write_now(0, block(5));
    world.partition();
    world.wait_disconnected(0);
    world.wait_disconnected(1);
    let volume = volume_number(0);
    world.command(1, Command::Outdate { volume }).unwrap();
    world.heal();
    world.until_connected();
    assert_eq!(world.disk(1), DiskState::Outdated);
    world.attach(0);
    world.wait_in_sync();
    assert_eq!(world.disk(0), DiskState::UpToDate);
    assert_eq!(world.disk(1), DiskState::UpToDate);
}

/// A Primary that is alone finds its disk broken.
fn lose_the_only_disk(world: &mut Scenario, node: usize) {
    world.break_disk(node);
    let read = world.read(node, block(5));
    assert!(world.answer(read).is_err());
    world.until_disk_is_given_up(node);
}

/// The model's branches are tested here as much as the engine: the generation that notes what the Primary's disk misses is no promotion's.
#[test]
fn a_refused_promotion_takes_nothing_from_a_diskless_primary_that_works_on_the_same_data() {
    over_seeds(Protocol::C, 20, |mut world| {
        world.partition();
        world.wait_disconnected(0);
        world.wait_disconnected(1);
        lose_the_only_disk(&mut world, 0);
        world.heal();
        world.until("they shake hands", |world| {
            let process = world.nodes[1].process.as_ref().unwrap();
            process.sessions[0].is_some()
        });
        assert!(world.promote(1).is_err(), "the other node is Primary");
        let write = world.write_now(0, block(6));
        world.kill(0);
        world.wait_disconnected(1);
        world.promote(1).unwrap();
        world.read_now(1, block(6));
        assert!(world.holds(1, block(6), write.write, View::Cached));
    });
}

#[test]
fn a_primary_that_was_promoted_apart_and_lost_its_disk_works_on_its_peers_data() {
    over_seeds(Protocol::C, 20, |mut world| {
        world.demote(0).unwrap();
        world.settle();
        // The peer agreed; then the connection dies, while the promotion is being written down.
        world.stall_disk(0, 3 * SECOND);
        let promote = Command::Promote { force: false };
        let command = world.give(0, promote);
        world.run(100 * MILLISECOND);
        world.partition();
        world.wait_disconnected(0);
        world.until("the node is Primary", |world| {
            let answers = world.command_answers.as_ref().unwrap();
            answers.get(&command).is_some_and(|answer| answer.is_ok())
        });
        world.world.openers(0, 1);
        lose_the_only_disk(&mut world, 0);
        world.heal();
        world.until_connected();
        let write = world.write_now(0, block(6));
        world.kill(0);
        world.wait_disconnected(1);
        world.promote(1).unwrap();
        world.read_now(1, block(6));
        assert!(world.holds(1, block(6), write.write, View::Cached));
    });
}

#[test]
fn a_primary_does_not_go_back_alone_to_a_disk_that_its_peer_knows_to_be_older() {
    let mut world = Scenario::serving(Protocol::C);
    world.write_now(0, block(5));
    // The disk fails in a way that leaves no note of it, and nothing is completed through the peer.
    world.world.nodes[0].volumes[0].faults.metadata_errors = (u64::MAX, 1000);
    let write = world.write(0, extent(7));
    world.until("the peer knows", |world| {
        world.nodes[0].live_view().unwrap().volumes[0].disk != DiskState::UpToDate
    });
    world.mute(1);
    world.run(20 * MILLISECOND);
    world.partition();
    let _ = world.answer(write);
    world.wait_disconnected(0);
    world.heal();
    world.until_connected();
    world.partition();
    world.wait_disconnected(0);
    world.world.nodes[0].volumes[0].faults.metadata_errors = (0, 0);
    world.begin_attach(0, 0);
    world.run(SECOND);
    assert_eq!(world.disk(0), DiskState::Diskless);
    world.heal();
    world.until_connected();
    world.attach(0);
    world.wait_in_sync();
}

/// How long a promotion takes that is asked for at the moment in which the Primary ends, by seed.
fn takeovers(end: impl Fn(&mut Scenario, usize)) -> Vec<Micros> {
    let takeover = |seed| {
        let mut world = Scenario::serving_with(Settings::quiet(seed, Protocol::C));
        end(&mut world, 0);
        let begun = world.world.now;
        world.promote(1).unwrap();
        world.world.now - begun
    };
    (0..20).map(takeover).collect()
}

#[test]
fn a_promotion_beside_a_killed_primary_does_not_wait_the_whole_ping_timeout() {
    let killed = takeovers(Scenario::kill);
    assert!(
        killed.iter().all(|&time| time < 200 * MILLISECOND),
        "{killed:?}"
    );
    // What has no power says nothing: without the end of the connection there is the ping alone.
    let without_power = takeovers(Scenario::power_loss);
    assert!(
        without_power.iter().any(|&time| time >= 500 * MILLISECOND),
        "{without_power:?}"
    );
}

#[test]
fn a_killed_secondary_holds_its_primary_up_for_little_more_than_ping_timeout() {
    for flushes in [false, true] {
        over_seeds(Protocol::C, 20, |mut world| {
            if flushes {
                world.write_now(0, block(4));
            }
            world.kill(1);
            let begun = world.world.now;
            let request = match flushes {
                true => world.flush(0),
                false => world.write(0, block(5)),
            };
            world.completed(request);
            let time = world.world.now - begun;
            assert!(time < 800 * MILLISECOND, "{time}");
        });
    }
}

#[test]
fn a_primary_that_lives_is_not_given_up_because_a_packet_filter_says_that_nobody_listens() {
    over_seeds(Protocol::C, 10, |mut world| {
        world.hear_that_nobody_listens(1);
        world.run(SECOND);
        let promotion = world.give(1, Command::Promote { force: false });
        world.hear_that_nobody_listens(1);
        assert_eq!(world.ended(promotion), Err(Refusal::TwoPrimaries));
        world.run(SECOND);
        assert_eq!(world.connection(1), ConnectionState::Connected);
        assert!(!world.saw_rule(1, "ping-timeout"));
    });
}

#[test]
fn a_promotion_that_is_not_carried_out_leaves_no_generation_behind() {
    let mut settings = Settings::quiet(1, Protocol::A);
    settings.volumes.push(settings.volumes[0].clone());
    let mut world = Scenario::serving_with(settings);
    world.mute(0);
    let write = world.write_now(0, block(5));
    world.kill(0);
    world.wait_disconnected(1);
    world.world.nodes[1].volumes[1].faults.metadata_errors = (u64::MAX, 1000);
    assert!(world.promote(1).is_err(), "promoted with a broken disk");
    world.world.nodes[1].volumes[1].faults.metadata_errors = (0, 0);
    world.begin_attach(1, 1);
    world.run(SECOND);
    world.heal();
    world.restart(0);
    world.wait_in_sync();
    for node in [0, 1] {
        assert!(
            world.holds(node, block(5), write.write, View::Cached),
            "n{node} gave up what the last Primary wrote"
        );
    }
}

#[test]
fn an_old_disk_that_was_refused_once_is_refused_again() {
    let mut world = Scenario::serving(Protocol::C);
    // The Primary's disk fails without a note of it, its clients go on through the peer, then the peer's disk fails as well.
    world.world.nodes[0].volumes[0].faults.metadata_errors = (u64::MAX, 1000);
    let write = world.write(0, extent(7));
    world.completed(write);
    let read = world.read(0, extent(7));
    world.completed(read);
    world.break_disk(1);
    let write = world.write(0, block(6));
    let _ = world.answer(write);
    world.until_disk_is_given_up(1);
    world.world.nodes[0].volumes[0].faults.metadata_errors = (0, 0);
    for _ in 0..3 {
        world.begin_attach(0, 0);
        world.run(SECOND);
        assert_eq!(world.disk(0), DiskState::Diskless);
    }
    world.repair_disk(1);
    world.attach(1);
    world.attach(0);
    world.wait_in_sync();
}

// ---- fencing ------------------------------------------------------------------------------------------------------------------------------

fn stonith() -> Scenario {
    let mut settings = Settings::quiet(1, Protocol::C);
    settings.fencing = Fencing::ResourceAndStonith;
    Scenario::serving_with(settings)
}

/// Cuts the link under a write of the Primary, which notices and waits.
fn frozen_write(scenario: &mut Scenario) -> Request {
    scenario.partition();
    let write = scenario.write(0, block(3));
    scenario.until("the Primary waits", |world| {
        world.nodes[0].live_view().is_some_and(|view| view.frozen)
    });
    write
}

#[test]
fn frozen_primary_answers_nothing_until_its_peer_is_fenced() {
    let mut scenario = stonith();
    let write = frozen_write(&mut scenario);
    assert!(!scenario.is_answered(write));
    scenario.until("the peer is fenced", |world| world.constrained == Some(1));
    scenario.until("the write is answered", |world| world.requests.is_empty());
    scenario.completed(write);
    scenario.heal();
    scenario.wait_in_sync();
    scenario.until("the constraint is lifted", |world| {
        world.constrained.is_none()
    });
}

#[test]
fn primary_that_is_shot_while_frozen_is_no_split_brain() {
    let mut scenario = stonith();
    scenario.world.fencing_fails = true;
    let write = frozen_write(&mut scenario);
    assert!(!scenario.is_answered(write));
    scenario.run(2 * SECOND);
    assert!(scenario.saw_rule(0, "fencing-failed"));
    // The survivor shoots it and takes over.
    scenario.world.fencing_fails = false;
    scenario.world.nodes[0].start_scheduled = true;
    scenario.promote(1).unwrap();
    assert!(scenario.world.nodes[0].process.is_none());
    let write = scenario.write(1, block(3));
    scenario.settle();
    scenario.completed(write);
    scenario.heal();
    scenario.restart(0);
    scenario.wait_in_sync();
    assert_eq!(scenario.world.figures.split_brains, 0);
}

#[test]
fn frozen_primary_goes_on_when_its_peer_comes_back() {
    let mut scenario = stonith();
    scenario.world.fencing_fails = true;
    let write = frozen_write(&mut scenario);
    scenario.run(5 * SECOND);
    assert!(!scenario.is_answered(write));
    scenario.heal();
    scenario.until("the write is answered", |world| world.requests.is_empty());
    scenario.completed(write);
    scenario.wait_in_sync();
}

#[test]
fn promotion_without_the_peer_needs_it_fenced() {
    let mut scenario = stonith();
    scenario.demote(0).unwrap();
    scenario.world.fencing_fails = true;
    scenario.kill(0);
    scenario.until("the peer is missed", |world| {
        world.nodes[1]
            .live_view()
            .is_some_and(|view| !view.connected(0))
    });
    assert_eq!(scenario.promote(1), Err(Refusal::PeerNotFenced));
    scenario.world.fencing_fails = false;
    scenario.promote(1).unwrap();
}

#[test]
fn data_that_nobody_confirmed_are_not_promoted_beside_a_peer_without_its_disk() {
    let mut scenario = stonith();
    // Node 1 goes on alone, and both lose their power.
    scenario.power_loss(0);
    scenario.promote(1).unwrap();
    scenario.power_loss(1);
    scenario.world.boot(1);
    scenario.restart(0);
    scenario.connect(1, false).unwrap();
    scenario.until("they are connected", |world| {
        world.nodes[0].connected(1) && world.nodes[1].connected(0)
    });
    assert_eq!(scenario.promote(0), Err(Refusal::NoUpToDateDisk));
    scenario.attach(1);
    scenario.wait_in_sync();
    scenario.promote(0).unwrap();
    assert_eq!(scenario.world.figures.split_brains, 0);
}

#[test]
fn survivor_whose_disk_was_detached_and_attached_again_keeps_what_the_dead_primary_lost() {
    let mut scenario = Scenario::serving(Protocol::C);
    let writes: Vec<_> = (0..40)
        .map(|number| scenario.write_now(0, block(number)))
        .collect();
    scenario.power_loss(0);
    scenario.wait_disconnected(1);
    scenario.detach(1).unwrap();
    scenario.attach(1);
    scenario.restart(0);
    scenario.wait_in_sync();
    assert!(scenario.saw_rule(1, "survivor-self"));
    for (number, write) in writes.iter().enumerate() {
        assert!(scenario.holds(1, block(number as u64), write.write, View::Cached));
        assert!(scenario.holds(0, block(number as u64), write.write, View::Cached));
    }
}

#[test]
fn shooting_the_peer_does_not_make_data_current_that_nobody_confirmed() {
    let mut scenario = stonith();
    scenario.power_loss(0);
    scenario.promote(1).unwrap();
    let write = scenario.write_now(1, block(5));
    scenario.power_loss(1);
    // The node with the older data comes back alone, and the cluster's configuration is lost.
    scenario.restart(0);
    scenario.world.constrained = None;
    assert_eq!(scenario.promote(0), Err(Refusal::PeerNotFenced));
    scenario.restart(1);
    scenario.wait_in_sync();
    assert!(
        scenario.holds(0, block(5), write.write, View::Cached)
            || !scenario.holds(1, block(5), write.write, View::Cached)
    );
    assert_eq!(scenario.world.figures.split_brains, 0);
}

#[test]
fn diskless_node_is_not_promoted_on_data_that_its_peer_cannot_vouch_for() {
    let mut scenario = stonith();
    scenario.power_loss(1);
    scenario.write_now(0, block(3));
    scenario.demote(0).unwrap();
    scenario.detach(0).unwrap();
    scenario.restart(1);
    scenario.until("they are connected", |world| {
        world.nodes[0].connected(1) && world.nodes[1].connected(0)
    });
    assert_eq!(scenario.promote(0), Err(Refusal::NoUpToDateDisk));
    scenario.attach(0);
    scenario.wait_in_sync();
    scenario.promote(0).unwrap();
}
