//! The blocking client against a scripted daemon on a real socket.

use std::os::unix::net::UnixListener;
use std::time::Duration;

use qrbd_control::client::{Client, ClientError};
use qrbd_control::{Command, Progress, Request, Response, Target, codec};

fn directory(name: &str) -> std::path::PathBuf {
    let path = std::env::temp_dir().join(format!("qrbd-control-{}-{name}", std::process::id()));
    std::fs::create_dir_all(&path).unwrap();
    path
}

fn request() -> Request {
    Request {
        command: Command::Up,
        target: Target::resource("r0"),
    }
}

fn step(done_kib: u64) -> Response {
    Response::Progress(Progress {
        resource: "r0".into(),
        volume: None,
        peer: None,
        phase: "attaching".into(),
        done_kib,
        total_kib: 2,
        kib_per_second: 0,
        remaining_seconds: None,
    })
}

#[test]
fn absent_daemon_is_named_with_its_socket_and_how_to_start_it() {
    let directory = directory("absent");
    let error = Client::connect(&directory).unwrap_err();
    assert!(matches!(error, ClientError::NotRunning { .. }));
    let text = error.to_string();
    assert!(
        text.contains("control.sock") && text.contains("systemctl start qrbdd"),
        "{text}"
    );
    std::fs::remove_dir_all(directory).unwrap();
}

#[test]
fn progress_precedes_the_answer_and_requests_follow_each_other() {
    let directory = directory("progress");
    let listener = UnixListener::bind(directory.join("control.sock")).unwrap();
    let daemon = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        for _ in 0..2 {
            assert_eq!(
                codec::read_message::<Request>(&mut stream).unwrap(),
                Some(request())
            );
            for response in [step(1), step(2), Response::Ok { text: "up".into() }] {
                codec::write_message(&mut stream, &response).unwrap();
            }
        }
    });
    let mut client = Client::connect(&directory).unwrap();
    for _ in 0..2 {
        let mut seen = Vec::new();
        let response = client
            .call(&request(), |progress| seen.push(progress.done_kib))
            .unwrap();
        assert_eq!(response, Response::Ok { text: "up".into() });
        assert_eq!(seen, [1, 2]);
    }
    daemon.join().unwrap();
    std::fs::remove_dir_all(directory).unwrap();
}

#[test]
fn silent_and_vanishing_daemons_are_told_apart() {
    let directory = directory("silent");
    let listener = UnixListener::bind(directory.join("control.sock")).unwrap();
    let mut client = Client::connect(&directory).unwrap();
    client.set_timeout(Some(Duration::from_millis(50))).unwrap();
    let (stream, _) = listener.accept().unwrap();
    assert!(matches!(
        client.call(&request(), |_| {}),
        Err(ClientError::Timeout { .. })
    ));
    drop(stream);
    assert!(matches!(
        client.call(&request(), |_| {}),
        Err(ClientError::Closed)
    ));
    std::fs::remove_dir_all(directory).unwrap();
}
