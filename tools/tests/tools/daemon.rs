//! `qrbdadm` against a scripted daemon: requests sent, texts and exit codes that come of the answers.

use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::{Arc, Mutex};

use qrbd_control::status::DiskState;
use qrbd_control::{
    Command, KernelError, Progress, Refusal, Request, Response, StateChangeError, StatusReport,
    Target, VersionInformation, codec,
};

use super::fixtures::{configured, healthy, qrbdadm, qrbdadm_with_input};

/// Answers every request with what `answer` says; remembers the requests.
fn daemon(
    directory: &Path,
    answer: impl Fn(&Request) -> Vec<Response> + Send + 'static,
) -> Arc<Mutex<Vec<Request>>> {
    let listener = UnixListener::bind(directory.join("control.sock")).unwrap();
    let seen = Arc::new(Mutex::new(Vec::new()));
    let log = Arc::clone(&seen);
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            while let Ok(Some(request)) = codec::read_message::<Request>(&mut stream) {
                // Remembered before it is answered: the asker may look at once.
                log.lock().unwrap().push(request.clone());
                for response in answer(&request) {
                    codec::write_message(&mut stream, &response).unwrap();
                }
            }
        }
    });
    seen
}

fn ok() -> Vec<Response> {
    vec![Response::Ok {
        text: String::new(),
    }]
}

fn version(directory: &Path, node: &str) -> Response {
    Response::Version(VersionInformation {
        version: "1".into(),
        node: node.into(),
        configuration_file: directory.join("qrbd.conf").display().to_string(),
        process_id: 7,
    })
}

#[test]
fn absent_daemon_gives_20_and_the_way_to_start_it() {
    let directory = configured("internal");
    for command in [
        &["up", "r0"][..],
        &["status"],
        &["role", "r0"],
        &["primary", "r0"],
    ] {
        let ran = qrbdadm(directory.path(), command);
        assert_eq!(ran.code, 20, "{command:?}");
        assert!(
            ran.stderr.contains("qrbdd is not running") && ran.stderr.contains("control.sock"),
            "{}",
            ran.stderr
        );
        assert_eq!(ran.stdout, "");
    }
}

#[test]
fn commands_reach_the_daemon_as_asked() {
    let directory = configured("internal");
    let path = directory.path().to_owned();
    let seen = daemon(directory.path(), move |request| match request.command {
        Command::Version => vec![version(&path, "alice")],
        _ => ok(),
    });
    let r0 = || Target::resource("r0");
    let cases: [(&[&str], Command, Target); 11] = [
        (&["up", "all"], Command::Up, r0()),
        (
            &["--", "--overwrite-data-of-peer", "primary", "r0"],
            Command::Primary { force: true },
            r0(),
        ),
        (
            &["secondary", "r0"],
            Command::Secondary { force: false },
            r0(),
        ),
        (
            &["connect", "--discard-my-data", "r0:bob"],
            Command::Connect {
                discard_my_data: true,
            },
            Target {
                peer: Some("bob".into()),
                ..r0()
            },
        ),
        (
            &["resize", "--size=3G", "--assume-clean", "r0/0"],
            Command::Resize {
                bytes: Some(3 << 30),
                assume_clean: true,
            },
            Target {
                volume: Some(0),
                ..r0()
            },
        ),
        (
            &["--", "--clear-bitmap", "new-current-uuid", "r0/0"],
            Command::NewCurrentUuid { clear_bitmap: true },
            Target {
                volume: Some(0),
                ..r0()
            },
        ),
        (
            &["detach", "--force", "minor-0"],
            Command::Detach { force: true },
            Target {
                volume: Some(0),
                ..r0()
            },
        ),
        (
            &["detach", "/dev/drbd0"],
            Command::Detach { force: false },
            Target {
                volume: Some(0),
                ..r0()
            },
        ),
        (
            &["wait-sync", "r0"],
            Command::WaitSync {
                timeout_seconds: Some(9),
            },
            r0(),
        ),
        (
            &["wait-connect", "-t", "0", "r0"],
            Command::WaitConnect {
                timeout_seconds: None,
            },
            r0(),
        ),
        (&["down", "r0"], Command::Down, r0()),
    ];
    for (words, command, target) in cases {
        seen.lock().unwrap().clear();
        let ran = qrbdadm(directory.path(), words);
        assert_eq!((ran.code, ran.stderr.as_str()), (0, ""), "{words:?}");
        assert_eq!(
            seen.lock().unwrap().last(),
            Some(&Request { command, target }),
            "{words:?}"
        );
    }
}

#[test]
fn down_of_a_part_is_refused_since_it_would_take_everything() {
    let directory = configured("internal");
    let seen = daemon(directory.path(), |_| ok());
    let ran = qrbdadm(directory.path(), &["down", "r0:bob"]);
    assert_eq!(
        (ran.code, ran.stderr.as_str()),
        (
            1,
            "down operates on whole resources, but you specified a specific connection!\n"
        )
    );
    assert!(seen.lock().unwrap().is_empty(), "nobody was asked");
    // The only volume is the whole resource.
    for whole in ["r0/0", "minor-0", "r0", "all"] {
        assert_eq!(
            qrbdadm(directory.path(), &["down", whole]).code,
            0,
            "{whole}"
        );
    }
}

#[test]
fn hints_of_the_daemon_stay_out_of_the_way_of_scripts() {
    let directory = configured("internal");
    daemon(directory.path(), |_| {
        vec![Response::Ok {
            text: "a hint".to_owned(),
        }]
    });
    let ran = qrbdadm(directory.path(), &["primary", "r0"]);
    assert_eq!(
        (ran.code, ran.stdout.as_str(), ran.stderr.as_str()),
        (0, "", "a hint\n")
    );
}

#[test]
fn dry_run_asks_nobody() {
    let directory = configured("internal");
    let ran = qrbdadm(directory.path(), &["-d", "primary", "--force", "r0"]);
    assert_eq!((ran.code, ran.stdout.as_str()), (0, "primary r0 --force\n"));
    let ran = qrbdadm(directory.path(), &["-d", "create-md", "--force", "r0"]);
    assert_eq!((ran.code, ran.stdout.as_str()), (0, "create-md r0/0\n"));
}

#[test]
fn refusals_come_out_with_drbds_text_and_exit_code() {
    let refusals: [(Refusal, i32, &str); 5] = [
        (
            StateChangeError::NoUpToDateDisk.into(),
            17,
            "r0: State change failed: (-2) Need access to UpToDate data\n\
             Command 'qrbdadm primary r0' terminated with exit code 17\n",
        ),
        (
            Refusal::from(StateChangeError::TwoPrimaries).with_detail("bob is Primary"),
            11,
            "r0: State change failed: (-1) Multiple primaries not allowed by config\nbob is Primary\n\
             Command 'qrbdadm primary r0' terminated with exit code 11\n",
        ),
        (
            KernelError::ResourceUnknown.into(),
            10,
            "r0: Failure: (158) Unknown resource\nCommand 'qrbdadm primary r0' terminated with exit code 10\n",
        ),
        (
            Refusal::wait_timeout("not connected after 5 s"),
            5,
            "r0: not connected after 5 s\n",
        ),
        (
            StateChangeError::LowerThanOutdated.into(),
            5,
            "r0: State change failed: (-16) Disk state is lower than outdated\n",
        ),
    ];
    for (refusal, code, stderr) in refusals {
        let directory = configured("internal");
        daemon(directory.path(), move |_| {
            vec![Response::Refused(refusal.clone())]
        });
        let ran = qrbdadm(directory.path(), &["primary", "r0"]);
        assert_eq!((ran.code, ran.stderr.as_str()), (code, stderr));
    }
}

#[test]
fn unknown_resources_are_told_before_the_daemon_is_asked() {
    let directory = configured("internal");
    let seen = daemon(directory.path(), |_| ok());
    for (target, message) in [
        ("x", "'x' not defined in your config (for this host).\n"),
        (
            "r0/3",
            "'r0/3' not defined in your config (for this host).\n",
        ),
        (
            "minor-9",
            "'minor-9' not defined in your config (for this host).\n",
        ),
        ("r0:eve", "'eve' is no peer of r0 (peers are: bob).\n"),
    ] {
        let ran = qrbdadm(directory.path(), &["primary", target]);
        assert_eq!((ran.code, ran.stderr.as_str()), (1, message));
    }
    assert_eq!(seen.lock().unwrap().len(), 0);
}

#[test]
fn broken_configuration_gives_10_with_its_place() {
    let directory = configured("internal");
    let path = directory.path().join("qrbd.conf");
    let text = std::fs::read_to_string(&path).unwrap();
    std::fs::write(
        &path,
        format!("{text}\nresource r1 {{ net {{ protocol D; }} }}\n"),
    )
    .unwrap();
    let ran = qrbdadm(directory.path(), &["primary", "r1"]);
    assert_eq!(ran.code, 10);
    assert!(ran.stderr.contains("qrbd.conf:7:"), "{}", ran.stderr);
    assert_eq!(qrbdadm(directory.path(), &["sh-nop"]).code, 10);
    // The other resource is not held up by it.
    daemon(directory.path(), |_| ok());
    assert_eq!(qrbdadm(directory.path(), &["primary", "r0"]).code, 0);
    // And `all` does what it can, but does not look like success.
    let ran = qrbdadm(directory.path(), &["primary", "all"]);
    assert_eq!(ran.code, 10);
    assert!(ran.stderr.contains("qrbd.conf:7:"), "{}", ran.stderr);
}

#[test]
fn silent_daemon_is_given_up_after_the_configured_time() {
    let directory = configured("internal");
    let path = directory.path().join("qrbd.conf");
    let text = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, format!("global {{ cmd-timeout-short 1; }}\n{text}")).unwrap();
    let _listener = UnixListener::bind(directory.path().join("control.sock")).unwrap();
    let ran = qrbdadm(directory.path(), &["status"]);
    assert_eq!(ran.code, 20);
    assert!(
        ran.stderr.contains("qrbdd did not answer within 1 seconds"),
        "{}",
        ran.stderr
    );
}

#[test]
fn missing_configuration_names_the_file() {
    let directory = tempfile::tempdir().unwrap();
    let ran = qrbdadm(directory.path(), &["primary", "r0"]);
    assert_eq!(ran.code, 10);
    assert!(ran.stderr.contains("qrbd.conf"), "{}", ran.stderr);
}

#[test]
fn daemon_of_another_node_is_not_given_an_up() {
    let directory = configured("internal");
    let path = directory.path().to_owned();
    let seen = daemon(directory.path(), move |request| match request.command {
        Command::Version => vec![version(&path, "bob")],
        _ => ok(),
    });
    let ran = qrbdadm(directory.path(), &["up", "r0"]);
    assert_eq!(ran.code, 10);
    assert!(
        ran.stderr.contains("the daemon is node 'bob'"),
        "{}",
        ran.stderr
    );
    assert_eq!(seen.lock().unwrap().len(), 1);
}

fn serving_status(directory: &Path, report: StatusReport) {
    daemon(directory, move |request| match &request.target.resource {
        Some(name)
            if !report
                .resources
                .iter()
                .any(|resource| resource.name == *name) =>
        {
            vec![Response::Refused(KernelError::ResourceUnknown.into())]
        }
        _ => vec![Response::Status(report.clone())],
    });
}

#[test]
fn status_and_queries_print_the_report() {
    let directory = configured("internal");
    serving_status(directory.path(), healthy());
    let text = "r0 role:Primary\n  disk:UpToDate open:yes\n  bob role:Secondary\n    peer-disk:UpToDate\n\n";
    for words in [&["status"][..], &["status", "r0"], &["status", "all"]] {
        let ran = qrbdadm(directory.path(), words);
        assert_eq!(
            (ran.code, ran.stdout.as_str(), ran.stderr.as_str()),
            (0, text, ""),
            "{words:?}"
        );
    }
    let ran = qrbdadm(directory.path(), &["status", "--json", "r0"]);
    let value: serde_json::Value = serde_json::from_str(&ran.stdout).unwrap();
    assert_eq!(value[0]["name"], "r0");
    for (words, line) in [
        (["role", "r0"], "Primary\n"),
        (["role", "r0:bob"], "Secondary\n"),
        (["cstate", "r0"], "Connected\n"),
        (["dstate", "r0"], "UpToDate/UpToDate\n"),
    ] {
        let ran = qrbdadm(directory.path(), &words);
        assert_eq!(
            (ran.code, ran.stdout.as_str(), ran.stderr.as_str()),
            (0, line, ""),
            "{words:?}"
        );
    }
}

#[test]
fn resource_that_is_not_up_is_told_so() {
    let directory = configured("internal");
    serving_status(directory.path(), StatusReport::default());
    let ran = qrbdadm(directory.path(), &["status"]);
    assert_eq!(
        (ran.code, ran.stdout.as_str()),
        (0, "# No currently configured QRBD found.\n")
    );
    let ran = qrbdadm(directory.path(), &["status", "r0"]);
    assert_eq!(
        (ran.code, ran.stdout.as_str(), ran.stderr.as_str()),
        (10, "", "r0: No such resource\n")
    );
    let ran = qrbdadm(directory.path(), &["role", "r0"]);
    assert_eq!((ran.code, ran.stdout.as_str()), (10, "Unknown\n"));
    assert!(
        ran.stderr.starts_with("r0: Unknown resource\n"),
        "{}",
        ran.stderr
    );
}

#[test]
fn attached_volume_is_safe_from_offline_commands() {
    let directory = configured("internal");
    serving_status(directory.path(), healthy());
    for words in [
        &["wipe-md", "--force", "r0"][..],
        &["apply-al", "r0"],
        &["dump-md", "r0"],
    ] {
        let ran = qrbdadm_with_input(directory.path(), words, "yes\n");
        assert_eq!(ran.code, 10, "{words:?}");
        assert!(
            ran.stderr
                .contains("r0/0: Failure: (124) Device is attached"),
            "{}",
            ran.stderr
        );
    }
}

#[test]
fn invalidate_goes_to_the_daemon_while_attached() {
    let directory = configured("internal");
    let seen = daemon(directory.path(), |request| match request.command {
        Command::Status => vec![Response::Status(healthy())],
        _ => ok(),
    });
    assert_eq!(qrbdadm(directory.path(), &["invalidate", "r0"]).code, 0);
    let last = seen.lock().unwrap().last().cloned().unwrap();
    assert_eq!(
        last,
        Request {
            command: Command::Invalidate,
            target: "r0/0".parse().unwrap()
        }
    );
}

#[test]
fn diskless_volume_answers_from_its_metadata() {
    let directory = configured("internal");
    let mut report = healthy();
    report.resources[0].devices[0].disk_state = DiskState::Diskless;
    serving_status(directory.path(), report);
    assert_eq!(qrbdadm(directory.path(), &["create-md", "r0"]).code, 0);
    let ran = qrbdadm(directory.path(), &["get-gi", "r0"]);
    assert!(
        ran.code == 0 && ran.stdout.starts_with("0000000000000004:"),
        "{ran:?}"
    );
}

#[test]
fn progress_is_printed_in_plain_lines_off_a_terminal() {
    let directory = configured("internal");
    let step = |done_kib| {
        Response::Progress(Progress {
            resource: "r0".into(),
            volume: Some(0),
            peer: Some("bob".into()),
            phase: "SyncTarget".into(),
            done_kib,
            total_kib: 1000,
            kib_per_second: 1024,
            remaining_seconds: Some(1),
        })
    };
    daemon(directory.path(), move |_| {
        vec![
            step(100),
            step(101),
            step(200),
            Response::Ok {
                text: "done".into(),
            },
        ]
    });
    let ran = qrbdadm(directory.path(), &["wait-sync", "r0"]);
    assert_eq!((ran.code, ran.stdout.as_str()), (0, ""));
    assert_eq!(
        ran.stderr,
        "r0/0 bob SyncTarget 10.00% 1.0 MiB/s 0:00:01 left\nr0/0 bob SyncTarget 20.00% 1.0 MiB/s 0:00:01 left\ndone\n"
    );
}

#[test]
fn garbage_from_the_socket_is_an_error_not_a_panic() {
    let directory = configured("internal");
    let listener = UnixListener::bind(directory.path().join("control.sock")).unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            use std::io::Write;
            let mut stream = stream.unwrap();
            let _ = codec::read_message::<Request>(&mut stream);
            let _ = stream.write_all(&[0xff; 64]);
        }
    });
    let ran = qrbdadm(directory.path(), &["primary", "r0"]);
    assert_eq!(ran.code, 20);
    assert!(
        ran.stderr.contains("control frame of 4294967295 bytes"),
        "{}",
        ran.stderr
    );
}
