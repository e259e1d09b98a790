//! The command line: today's spelling and the old ones mean the same.

use std::path::Path;

use clap::{CommandFactory, Parser};
use qrbd_tools::admin::arguments::{Arguments, Command, Face, minor_of, normalise};

fn parse(line: &str) -> Result<Command, clap::Error> {
    let words = line.split_whitespace().map(str::to_owned).collect();
    Arguments::try_parse_from(normalise(words)).map(|arguments| arguments.command)
}

#[test]
fn the_command_line_is_well_formed() {
    Arguments::command().debug_assert();
}

#[test]
fn old_spellings_mean_what_todays_mean() {
    let same = [
        (
            "qrbdadm -- --overwrite-data-of-peer primary r0",
            "qrbdadm primary --force r0",
        ),
        (
            "qrbdadm primary --overwrite-data-of-peer r0",
            "qrbdadm primary --force r0",
        ),
        ("drbdadm -- -o primary r0", "qrbdadm primary --force r0"),
        ("drbdadm primary r0 --force", "qrbdadm primary --force r0"),
        (
            "drbdadm primary r0 -- --force",
            "qrbdadm primary --force r0",
        ),
        (
            "drbdadm -- --discard-my-data connect r0",
            "qrbdadm connect --discard-my-data r0",
        ),
        (
            "drbdadm connect -- --discard-my-data r0",
            "qrbdadm connect --discard-my-data r0",
        ),
        (
            "drbdadm -- --clear-bitmap new-current-uuid r0/0",
            "qrbdadm new-current-uuid --clear-bitmap r0/0",
        ),
        (
            "drbdadm -- --force create-md r0",
            "qrbdadm create-md --force r0",
        ),
        (
            "drbdadm -- --max-peers 3 create-md r0",
            "qrbdadm create-md --max-peers=3 r0",
        ),
        (
            "drbdadm -- --wfc-timeout 5 wait-connect r0",
            "qrbdadm wait-connect -t 5 r0",
        ),
        ("drbdadm status -v r0", "qrbdadm status --verbose r0"),
        (
            "drbdadm status -vv r0",
            "qrbdadm status --verbose --verbose r0",
        ),
    ];
    for (old, new) in same {
        assert_eq!(
            parse(old).unwrap_or_else(|error| panic!("{old}: {error}")),
            parse(new).unwrap(),
            "{old}"
        );
    }
}

#[test]
fn agents_wait_is_accepted_with_all_its_timeouts() {
    let line =
        "drbdadm wait-connect --wfc-timeout=5 --degr-wfc-timeout=5 --outdated-wfc-timeout=5 r0";
    let Command::WaitConnect(wait) = parse(line).unwrap() else {
        panic!("another command")
    };
    assert_eq!(wait.timeout, Some(5));
    assert_eq!(wait.targets.targets, ["r0"]);
}

#[test]
fn every_command_of_the_contract_is_there() {
    let with_target = [
        "up",
        "down",
        "adjust",
        "attach",
        "detach",
        "connect",
        "disconnect",
        "primary",
        "secondary",
        "role",
        "cstate",
        "dstate",
        "status",
        "wait-connect",
        "wait-sync",
        "invalidate",
        "invalidate-remote",
        "outdate",
        "pause-sync",
        "resume-sync",
        "suspend-io",
        "resume-io",
        "new-current-uuid",
        "show-gi",
        "get-gi",
        "create-md",
        "dump-md",
        "wipe-md",
        "apply-al",
        "dump",
        "sh-nop",
        "sh-resource",
        "sh-dev",
        "sh-ll-dev",
        "sh-md-dev",
        "sh-md-idx",
        "sh-minor",
        "sh-ip",
    ];
    for command in with_target {
        for target in ["r0", "r0/1", "r0:bob", "all", "r0 r1"] {
            parse(&format!("qrbdadm {command} {target}"))
                .unwrap_or_else(|error| panic!("{command} {target}: {error}"));
        }
    }
    for command in [
        "sh-resources",
        "keygen",
        "keygen --output /tmp/key",
        "status",
        "dump",
        "sh-nop",
        "status --watch",
    ] {
        parse(&format!("qrbdadm {command}")).unwrap_or_else(|error| panic!("{command}: {error}"));
    }
    for command in [
        "primary",
        "primary --nonsense r0",
        "nonsense r0",
        "create-md --max-peers 32 r0",
        "status --json --watch",
    ] {
        parse(&format!("qrbdadm {command}")).expect_err(command);
    }
}

#[test]
fn global_options_stay_in_front() {
    let words = "qrbdadm -c f --node n --run-dir d -d -- --force primary r0"
        .split(' ')
        .map(str::to_owned)
        .collect();
    let arguments = Arguments::try_parse_from(normalise(words)).unwrap();
    assert_eq!(arguments.global.config_file, Path::new("f"));
    assert_eq!(arguments.global.node.as_deref(), Some("n"));
    assert!(arguments.global.dry_run);
    assert!(matches!(
        arguments.command,
        Command::Primary { force: true, .. }
    ));
}

#[test]
fn names_of_the_program_choose_its_face() {
    assert_eq!(Face::of("/usr/sbin/drbdadm"), Face::Drbdadm);
    assert_eq!(Face::of("drbdsetup"), Face::Drbdsetup);
    assert_eq!(Face::of("/usr/sbin/qrbdadm"), Face::Qrbdadm);
}

#[test]
fn minors_are_told_from_names() {
    assert_eq!(minor_of("minor-3"), Some(3));
    assert_eq!(minor_of("/dev/drbd12"), Some(12));
    assert_eq!(minor_of("/dev/nbd0"), Some(0));
    for text in [
        "r0",
        "minor-",
        "minor-x",
        "/dev/drbd/by-res/r0",
        "minor-99999999999",
    ] {
        assert_eq!(minor_of(text), None, "{text}");
    }
}
