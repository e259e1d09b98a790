//! Handlers whose word counts before a resync, and the one that tells of a Primary without good data.

mod harness;

use harness::*;
use qrbd_engine::Command;
use qrbd_engine::config::PeerConfig;
use qrbd_engine::state::{ConnectionState, DiskState, ReplicationState};
use qrbd_engine::wire::{GoodbyeReason, Message};

fn at_the_target(config: &mut PeerConfig) {
    config.before_resync_target = Some(600_000);
}

fn at_the_source(config: &mut PeerConfig) {
    config.before_resync_source = Some(600_000);
}

/// Node 0 wrote alone; the handler of `node` is running.
fn asked(configure: &dyn Fn(&mut PeerConfig), node: usize) -> Pair {
    let mut pair = Pair::synced(configure);
    pair.write(0, 4096, 1);
    pair.pass_time();
    pair.cut();
    pair.write(0, 4096, 7);
    pair.nodes[node].says_at_once = None;
    pair.heal();
    pair
}

#[test]
fn the_target_is_what_it_was_until_its_handler_ends() {
    let mut pair = asked(&at_the_target, 1);
    assert_eq!(pair.nodes[1].asked.len(), 1);
    assert_eq!(pair.nodes[1].asked[0].1, "before-resync-target");
    // Longer than either node would wait for a peer that is stuck; the source takes writes meanwhile.
    let began = pair.now;
    while pair.now.since(began) < 100_000 {
        pair.pass_time();
    }
    pair.write(0, 8192, 8);
    assert_eq!(pair.replication(1), ReplicationState::WFBitMapT);
    assert_eq!(pair.disk(1), DiskState::Outdated);
    assert_eq!(pair.nodes[1].byte(4096), 1);
    assert_ne!(pair.nodes[1].byte(8192), 8);
    pair.say(1, Some(0));
    pair.assert_equal_and_in_sync();
    assert_eq!((pair.nodes[1].byte(4096), pair.nodes[1].byte(8192)), (7, 8));
}

#[test]
fn a_target_whose_handler_does_not_allow_it_keeps_its_data_and_is_stand_alone() {
    for code in [Some(1), Some(3), None] {
        let mut pair = asked(&at_the_target, 1);
        pair.say(1, code);
        assert_eq!(pair.connection(1), ConnectionState::StandAlone);
        assert_eq!(pair.connection(0), ConnectionState::Connecting);
        assert_eq!(pair.disk(1), DiskState::Outdated);
        assert_eq!(pair.nodes[1].byte(4096), 1);
        pair.write(0, 8192, 8);
        pair.nodes[1].says_at_once = Some(0);
        pair.connect(1, false);
        pair.assert_equal_and_in_sync();
        assert_eq!((pair.nodes[1].byte(4096), pair.nodes[1].byte(8192)), (7, 8));
    }
}

#[test]
fn a_source_is_asked_too_and_passes_over_a_three() {
    let mut pair = asked(&at_the_source, 0);
    assert_eq!(pair.nodes[0].asked[0].1, "before-resync-source");
    pair.say(0, Some(1));
    assert_eq!(pair.connection(0), ConnectionState::StandAlone);
    assert_eq!(pair.connection(1), ConnectionState::Connecting);
    pair.write(0, 8192, 8);
    pair.connect(0, false);
    assert_eq!(pair.nodes[1].byte(4096), 1);
    pair.say(0, Some(3));
    pair.assert_equal_and_in_sync();
    assert_eq!(pair.nodes[1].byte(8192), 8);
}

#[test]
fn an_answer_for_a_resync_that_is_not_to_be_any_more_changes_nothing() {
    let mut pair = asked(&at_the_target, 1);
    pair.cut();
    pair.say(1, Some(0));
    assert_eq!(pair.nodes[1].byte(4096), 1);
    pair.heal();
    pair.cut();
    pair.heal();
    assert_eq!(pair.nodes[1].asked.len(), 2);
    // The first one is of the connection before: it allows nothing, and forbids nothing.
    pair.say(1, Some(1));
    assert_eq!(pair.replication(1), ReplicationState::WFBitMapT);
    assert_eq!(pair.disk(1), DiskState::Outdated);
    pair.say(1, Some(0));
    pair.assert_equal_and_in_sync();
}

#[test]
fn a_primary_without_a_disk_keeps_its_connection_when_its_own_is_not_to_be_target() {
    let mut pair = Pair::synced(&at_the_target);
    pair.command(0, detach()).unwrap();
    pair.write(0, 4096, 7);
    pair.nodes[0].says_at_once = Some(1);
    let _ = pair.attach(0);
    assert_eq!(pair.connection(0), ConnectionState::Connected);
    assert_eq!(pair.disk(0), DiskState::Diskless);
    pair.write(0, 8192, 8);
    assert_eq!(pair.read(0, 4096), 7);
    pair.nodes[0].says_at_once = Some(0);
    pair.attach(0).unwrap();
    pair.assert_equal_and_in_sync();
}

fn detach() -> Command {
    Command::Detach {
        volume: VOLUME,
        force: false,
    }
}

fn calls_of(pair: &Pair, node: usize, name: &str) -> usize {
    let calls = pair.nodes[node].handlers.iter();
    calls.filter(|&&called| called == name).count()
}

#[test]
fn a_primary_without_good_data_is_reported_once_each_time() {
    let mut pair = Pair::synced(&plain);
    let calls = |pair: &Pair| calls_of(pair, 0, "pri-on-incon-degr");
    pair.command(0, detach()).unwrap();
    pair.write(0, 4096, 7);
    assert_eq!(calls(&pair), 0, "the peer has good data");
    pair.cut();
    assert_eq!(calls(&pair), 1);
    pair.pass_time();
    assert_eq!(calls(&pair), 1);
    pair.heal();
    assert_eq!(pair.read(0, 4096), 7);
    pair.cut();
    assert_eq!(calls(&pair), 2);
    assert_eq!(calls_of(&pair, 1, "pri-on-incon-degr"), 0);
}

#[test]
fn a_connection_that_is_made_anew_on_purpose_is_no_reason_for_alarm() {
    let calls = |pair: &Pair| calls_of(pair, 0, "pri-on-incon-degr");
    for returns in [true, false] {
        let mut pair = Pair::synced(&plain);
        pair.command(0, detach()).unwrap();
        pair.linked = returns;
        let session = pair.nodes[0].session.expect("they are connected");
        let goodbye = Message::Goodbye {
            reason: GoodbyeReason::Renegotiate,
            text: String::new(),
        };
        pair.wire.push_back((0, session, goodbye));
        pair.run();
        assert_eq!(calls(&pair), 0);
        let began = pair.now;
        while pair.now.since(began) < 20_000 {
            pair.pass_time();
        }
        assert_eq!(calls(&pair), usize::from(!returns));
    }
}

#[test]
fn a_primary_that_would_have_to_be_target_is_reported() {
    let mut pair = Pair::synced(&plain);
    pair.cut();
    pair.command(1, Command::Promote { force: false }).unwrap();
    pair.write(1, 4096, 9);
    pair.command(1, Command::Demote { force: false }).unwrap();
    pair.heal();
    assert_eq!(calls_of(&pair, 0, "pri-lost"), 1);
    assert_eq!(calls_of(&pair, 1, "pri-lost"), 0);
    assert_eq!(pair.connection(0), ConnectionState::StandAlone);
}
