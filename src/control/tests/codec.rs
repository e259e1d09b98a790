//! The frame of the control socket: golden bytes, limits, and that no bytes but a message are taken for one.

use std::io::Cursor;

use qrbd_control::codec::{self, CodecError, HEADER_BYTES, MAX_FRAME_BYTES, VERSION};
use qrbd_control::generations::GenerationReport;
use qrbd_control::status::{
    ConnectionState, ConnectionStatus, DeviceStatus, DiskState, HostAddress, PathStatus,
    PeerDeviceStatus, ReplicationState, ResourceStatus, Role, SyncDetails, SyncKind,
};
use qrbd_control::{
    Command, KernelError, Progress, Refusal, Request, Response, StateChangeError, StatusReport,
    Target, VersionInformation,
};

fn decode_frame<T: serde::de::DeserializeOwned>(frame: &[u8]) -> Result<T, CodecError> {
    let header = frame[..HEADER_BYTES].try_into().unwrap();
    assert_eq!(codec::body_length(header)?, frame.len() - HEADER_BYTES);
    codec::decode(&frame[HEADER_BYTES..])
}

fn status_report() -> StatusReport {
    StatusReport {
        resources: vec![ResourceStatus {
            name: "r0".into(),
            node_id: 0,
            role: Role::Primary,
            suspended_user: false,
            suspended_no_data: false,
            suspended_fencing: true,
            suspended_quorum: false,
            force_io_failures: false,
            write_ordering: "flush".into(),
            devices: vec![DeviceStatus {
                volume: 0,
                minor: -1,
                backing_dev: "/dev/sdb".into(),
                device_path: None,
                export: "r0".into(),
                disk_state: DiskState::UpToDate,
                client: false,
                open: true,
                quorum: true,
                size_kib: 1 << 20,
                read_kib: 1,
                written_kib: 2,
                al_writes: 3,
                bm_writes: 4,
                upper_pending: 5,
                lower_pending: 6,
                al_suspended: false,
                upper_blocked: false,
                lower_blocked: false,
            }],
            connections: vec![ConnectionStatus {
                peer_node_id: 1,
                name: "bob".into(),
                connection_state: ConnectionState::Connected,
                congested: false,
                peer_role: Role::Secondary,
                tls: true,
                ap_in_flight_sectors: 7,
                rs_in_flight_sectors: 8,
                reason: None,
                paths: vec![PathStatus {
                    this_host: HostAddress {
                        address: "10.0.0.1".into(),
                        port: 7789,
                        family: "ipv4".into(),
                    },
                    remote_host: HostAddress {
                        address: "10.0.0.2".into(),
                        port: 7789,
                        family: "ipv4".into(),
                    },
                    established: true,
                }],
                peer_devices: vec![PeerDeviceStatus {
                    volume: 0,
                    replication_state: ReplicationState::SyncSource,
                    peer_disk_state: DiskState::Inconsistent,
                    peer_client: false,
                    resync_suspended_user: false,
                    resync_suspended_peer: false,
                    resync_suspended_dependency: false,
                    received_kib: 0,
                    sent_kib: 9,
                    out_of_sync_kib: 10,
                    pending: 11,
                    unacked: 12,
                    sync: Some(SyncDetails {
                        total_sectors: 13,
                        dt_start_ms: 14,
                        paused_ms: 15,
                        dt0_ms: 16,
                        db0_sectors: 17,
                        dt1_ms: 18,
                        db1_sectors: 19,
                        want_kib_per_second: 20,
                        kind: SyncKind::Resync {
                            failed_sectors: 21,
                            same_csum_sectors: 22,
                        },
                    }),
                }],
            }],
        }],
    }
}

fn every_response() -> Vec<Response> {
    vec![
        Response::Ok {
            text: "done".into(),
        },
        Response::Refused(
            Refusal::from(StateChangeError::NoUpToDateDisk)
                .with_detail("peer bob is not connected"),
        ),
        Response::Refused(KernelError::NoDisk.into()),
        Response::Refused(Refusal::wait_timeout("timeout")),
        Response::Status(status_report()),
        Response::Progress(Progress {
            resource: "r0".into(),
            volume: Some(0),
            peer: None,
            phase: "SyncTarget".into(),
            done_kib: 1,
            total_kib: 2,
            kib_per_second: 3,
            remaining_seconds: Some(4),
        }),
        Response::Generations(vec![GenerationReport {
            resource: "r0".into(),
            history: vec![1, 2],
            ..Default::default()
        }]),
        Response::Version(VersionInformation {
            version: "0.1.0".into(),
            node: "alice".into(),
            configuration_file: "/etc/qrbd.conf".into(),
            process_id: 1,
        }),
    ]
}

#[test]
fn request_has_its_golden_bytes() {
    let request = Request {
        command: Command::Primary { force: true },
        target: Target::resource("r0"),
    };
    let golden: &[u8] = &[
        19, 0, 0, 0, // bytes that follow
        1, // version
        7, 0, 0, 0, // Command::Primary
        1, // force
        1, 2, 0, 0, 0, 0, 0, 0, 0, b'r', b'0', // resource: Some("r0")
        0,    // volume: None
        0,    // peer: None
    ];
    assert_eq!(codec::encode(&request).unwrap(), golden);
    assert_eq!(decode_frame::<Request>(golden).unwrap(), request);
}

#[test]
fn volume_and_peer_have_their_golden_bytes() {
    let request = Request {
        command: Command::WaitSync {
            timeout_seconds: Some(5),
        },
        target: "r0:b/513".parse().unwrap(),
    };
    let golden: &[u8] = &[
        34, 0, 0, 0, 1, //
        14, 0, 0, 0, // Command::WaitSync
        1, 5, 0, 0, 0, // timeout_seconds: Some(5)
        1, 2, 0, 0, 0, 0, 0, 0, 0, b'r', b'0', //
        1, 1, 2, // volume: Some(513)
        1, 1, 0, 0, 0, 0, 0, 0, 0, b'b', // peer: Some("b")
    ];
    assert_eq!(codec::encode(&request).unwrap(), golden);
}

#[test]
fn refusal_has_its_golden_bytes() {
    let response = Response::Refused(StateChangeError::NoQuorum.into());
    let golden: &[u8] = &[
        39, 0, 0, 0, 1, //
        1, 0, 0, 0, // Response::Refused
        0, 0, 0, 0, 0xe7, 0xff, 0xff, 0xff, // RefusalKind::StateChange(-25)
        9, 0, 0, 0, 0, 0, 0, 0, b'N', b'o', b' ', b'q', b'u', b'o', b'r', b'u', b'm', // text
        0, 0, 0, 0, 0, 0, 0, 0,  // detail
        11, // exit_code
    ];
    assert_eq!(codec::encode(&response).unwrap(), golden);
}

#[test]
fn command_tags_do_not_move() {
    let commands = [
        Command::Up,
        Command::Down,
        Command::Adjust,
        Command::Attach,
        Command::Detach { force: false },
        Command::Connect {
            discard_my_data: false,
        },
        Command::Disconnect { force: false },
        Command::Primary { force: false },
        Command::Secondary { force: false },
        Command::Role,
        Command::Cstate,
        Command::Dstate,
        Command::Status,
        Command::WaitConnect {
            timeout_seconds: None,
        },
        Command::WaitSync {
            timeout_seconds: None,
        },
        Command::Invalidate,
        Command::InvalidateRemote,
        Command::PauseSync,
        Command::ResumeSync,
        Command::Outdate,
        Command::NewCurrentUuid {
            clear_bitmap: false,
        },
        Command::ShowGi,
        Command::GetGi,
        Command::Version,
        Command::SuspendIo,
        Command::ResumeIo,
        Command::Resize {
            bytes: None,
            assume_clean: false,
        },
    ];
    for (tag, command) in commands.into_iter().enumerate() {
        let frame = codec::encode(&Request {
            command: command.clone(),
            target: Target::all(),
        })
        .unwrap();
        assert_eq!(frame[5..9], (tag as u32).to_le_bytes(), "{command:?}");
    }
}

#[test]
fn every_response_comes_back_equal() {
    for response in every_response() {
        let frame = codec::encode(&response).unwrap();
        assert_eq!(decode_frame::<Response>(&frame).unwrap(), response);
    }
}

#[test]
fn every_prefix_of_every_response_is_refused() {
    for response in every_response() {
        let frame = codec::encode(&response).unwrap();
        for end in HEADER_BYTES..frame.len() {
            assert!(
                codec::decode::<Response>(&frame[HEADER_BYTES..end]).is_err(),
                "{response:?} cut at {end}"
            );
        }
    }
}

#[test]
fn trailing_bytes_are_refused() {
    let mut body = codec::encode(&Response::Ok {
        text: String::new(),
    })
    .unwrap()
    .split_off(HEADER_BYTES);
    body.extend([0, 0]);
    assert!(matches!(
        codec::decode::<Response>(&body),
        Err(CodecError::TrailingBytes { count: 2 })
    ));
}

#[test]
fn other_version_is_refused_by_name() {
    let mut body = codec::encode(&Response::Ok {
        text: String::new(),
    })
    .unwrap()
    .split_off(HEADER_BYTES);
    body[0] = VERSION + 1;
    let error = codec::decode::<Response>(&body).unwrap_err();
    assert!(
        error.to_string().contains("install the same version"),
        "{error}"
    );
}

#[test]
fn length_field_is_bounded_before_anything_is_allocated() {
    assert!(matches!(
        codec::body_length([0; 4]),
        Err(CodecError::Length { length: 0 })
    ));
    assert_eq!(
        codec::body_length((MAX_FRAME_BYTES as u32).to_le_bytes()).unwrap(),
        MAX_FRAME_BYTES
    );
    assert!(codec::body_length((MAX_FRAME_BYTES as u32 + 1).to_le_bytes()).is_err());
    assert!(codec::body_length([0xff; 4]).is_err());
}

#[test]
fn hostile_inner_length_is_refused() {
    // Response::Ok with a text of 2^60 bytes.
    let mut body = vec![VERSION, 0, 0, 0, 0];
    body.extend((1u64 << 60).to_le_bytes());
    assert!(matches!(
        codec::decode::<Response>(&body),
        Err(CodecError::Malformed { .. })
    ));
    // Response::Generations with 2^40 entries.
    let mut body = vec![VERSION, 4, 0, 0, 0];
    body.extend((1u64 << 40).to_le_bytes());
    assert!(matches!(
        codec::decode::<Response>(&body),
        Err(CodecError::Malformed { .. })
    ));
}

#[test]
fn garbage_never_panics() {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    for round in 0..20_000 {
        let mut body = vec![VERSION];
        for _ in 0..round % 97 {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            // Small bytes reach deeper into the decoder than large ones.
            body.push(if state >> 63 == 0 {
                (state >> 40) as u8 % 24
            } else {
                (state >> 32) as u8
            });
        }
        let _ = codec::decode::<Response>(&body);
        let _ = codec::decode::<Request>(&body);
    }
}

#[test]
fn message_that_does_not_fit_is_refused_by_the_sender() {
    let response = Response::Ok {
        text: "x".repeat(MAX_FRAME_BYTES),
    };
    assert!(matches!(
        codec::encode(&response),
        Err(CodecError::TooLarge { .. })
    ));
}

#[test]
fn stream_gives_messages_in_order_and_tells_end_from_truncation() {
    let mut bytes = Vec::new();
    for text in ["one", "two"] {
        codec::write_message(&mut bytes, &Response::Ok { text: text.into() }).unwrap();
    }
    let mut stream = Cursor::new(bytes.clone());
    for text in ["one", "two"] {
        assert_eq!(
            codec::read_message::<Response>(&mut stream).unwrap(),
            Some(Response::Ok { text: text.into() })
        );
    }
    assert_eq!(codec::read_message::<Response>(&mut stream).unwrap(), None);

    let mut cut = Cursor::new(&bytes[..bytes.len() - 1]);
    assert!(codec::read_message::<Response>(&mut cut).unwrap().is_some());
    assert!(matches!(
        codec::read_message::<Response>(&mut cut),
        Err(CodecError::Io(_))
    ));
    let mut cut = Cursor::new(&bytes[..2]);
    assert!(matches!(
        codec::read_message::<Response>(&mut cut),
        Err(CodecError::Io(_))
    ));
}
