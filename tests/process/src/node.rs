//! One node: its disk, its configuration file, its daemon as a process, and the administrator's tool for it.

use std::ffi::OsStr;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use nix::sys::signal::Signal;
use qrbd_nbd::{Client, ClientError};

use crate::process::Process;
use crate::programs::{Finished, built, run};
use crate::stage::Stage;
use crate::status::Status;
use crate::wait;

/// For one command of the administrator.
const COMMAND_LIMIT: Duration = Duration::from_secs(30);
/// For a daemon to answer after its start, and to end.
const START_LIMIT: Duration = Duration::from_secs(10);
const STOP_LIMIT: Duration = Duration::from_secs(20);

/// See the module's text.
#[derive(Debug)]
pub struct Node {
    /// Name in the configuration.
    pub name: String,
    /// Name of the resource.
    pub resource: String,
    /// Backing disk.
    pub disk: PathBuf,
    /// Configuration file.
    pub configuration: PathBuf,
    /// The cluster's key.
    pub key: PathBuf,
    run_dir: PathBuf,
    state_dir: PathBuf,
    log: PathBuf,
    daemon: Option<Process>,
}

impl Node {
    /// A node whose daemon does not run.
    #[must_use]
    pub fn new(
        stage: &Stage,
        name: &str,
        resource: &str,
        disk: &Path,
        configuration: &Path,
        key: &Path,
    ) -> Node {
        Node {
            name: name.to_owned(),
            resource: resource.to_owned(),
            disk: disk.to_owned(),
            configuration: configuration.to_owned(),
            key: key.to_owned(),
            run_dir: stage.path(&format!("{name}.run")),
            state_dir: stage.path(&format!("{name}.state")),
            log: stage.path(&format!("{name}.log")),
            daemon: None,
        }
    }

    /// Gives the node directories and a log of its own, for a second daemon of the same name.
    pub fn use_directories_of(&mut self, stage: &Stage, name: &str) {
        self.run_dir = stage.path(&format!("{name}.run"));
        self.state_dir = stage.path(&format!("{name}.state"));
        self.log = stage.path(&format!("{name}.log"));
    }

    fn daemon_command(&self) -> Command {
        let mut command = Command::new(built("qrbdd"));
        command
            .arg("--config-file")
            .arg(&self.configuration)
            .args(["--node", &self.name]);
        command
            .arg("--run-dir")
            .arg(&self.run_dir)
            .arg("--state-dir")
            .arg(&self.state_dir);
        command.arg("--key-file").arg(&self.key);
        command
    }

    /// Starts the daemon and waits until it answers.
    ///
    /// # Panics
    /// If it runs already or does not come up.
    #[track_caller]
    pub fn start(&mut self) {
        self.start_unchecked();
        let socket = self.run_dir.join("control.sock");
        wait::until(
            &format!("qrbdd of {} answers", self.name),
            START_LIMIT,
            || {
                let daemon = self.daemon.as_mut().expect("just started");
                assert!(
                    daemon.ended().is_none(),
                    "qrbdd of {} ended at its start:\n{}",
                    self.name,
                    self.log()
                );
                UnixStream::connect(&socket).ok()
            },
        );
    }

    /// Starts the daemon without waiting for anything: it may refuse to run.
    ///
    /// # Panics
    /// If it runs already.
    #[track_caller]
    pub fn start_unchecked(&mut self) {
        assert!(self.daemon.is_none(), "qrbdd of {} runs already", self.name);
        self.daemon = Some(Process::start(
            &format!("qrbdd of {}", self.name),
            &self.daemon_command(),
            &self.log,
        ));
    }

    /// The daemon's process.
    ///
    /// # Panics
    /// If it was not started.
    #[track_caller]
    pub fn daemon(&mut self) -> &mut Process {
        self.daemon.as_mut().expect("the daemon was started")
    }

    /// SIGKILL.
    ///
    /// # Panics
    /// If it had ended before by itself: the test would be about something else.
    #[track_caller]
    pub fn kill(&mut self) {
        let mut daemon = self.daemon.take().expect("the daemon was started");
        assert!(
            daemon.ended().is_none(),
            "qrbdd of {} ended by itself",
            self.name
        );
        daemon.kill();
    }

    /// SIGTERM, and its orderly end.
    ///
    /// # Panics
    /// If it does not end, or with an error.
    #[track_caller]
    pub fn stop(&mut self) {
        let mut daemon = self.daemon.take().expect("the daemon was started");
        daemon.signal(Signal::SIGTERM);
        let status = daemon.wait(STOP_LIMIT);
        assert!(
            status.success(),
            "qrbdd of {} ended with {status}",
            self.name
        );
    }

    /// Fails if the daemon ended by itself.
    ///
    /// # Panics
    /// That is how.
    #[track_caller]
    pub fn must_run(&mut self) {
        if let Some(status) = self.daemon().ended() {
            panic!("qrbdd of {} ended: {status}\n{}", self.name, self.log());
        }
    }

    /// What the daemons of this node have logged.
    #[must_use]
    pub fn log(&self) -> String {
        std::fs::read(&self.log)
            .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
            .unwrap_or_default()
    }

    /// Waits until the log says something.
    ///
    /// # Panics
    /// If it does not.
    #[track_caller]
    pub fn wait_log(&self, words: &str, limit: Duration) {
        wait::until(
            &format!("'{words}' in the log of {}", self.name),
            limit,
            || self.log().contains(words).then_some(()),
        );
    }

    /// `qrbdadm` for this node.
    #[track_caller]
    pub fn admin<S: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = S>) -> Finished {
        let mut words = vec![
            "--config-file".into(),
            self.configuration.clone().into_os_string(),
        ];
        words.extend(["--node".into(), self.name.clone().into()]);
        words.extend(["--run-dir".into(), self.run_dir.clone().into_os_string()]);
        words.extend([
            "--state-dir".into(),
            self.state_dir.clone().into_os_string(),
        ]);
        words.extend(arguments.into_iter().map(|word| word.as_ref().to_owned()));
        run(&built("qrbdadm"), words, COMMAND_LIMIT)
    }

    /// A command for the resource that must succeed; gives its output.
    ///
    /// # Panics
    /// If it does not.
    #[track_caller]
    pub fn command(&self, words: &str) -> String {
        self.try_command(words).succeeded()
    }

    /// A command for the resource.
    #[must_use]
    #[track_caller]
    pub fn try_command(&self, words: &str) -> Finished {
        self.admin(words.split(' ').chain([self.resource.as_str()]))
    }

    /// Report of the resource.
    ///
    /// # Panics
    /// If the resource is not up.
    #[must_use]
    #[track_caller]
    pub fn status(&self) -> Status {
        Status::parse(&self.command("status --json"))
            .unwrap_or_else(|| panic!("{} is not up on {}", self.resource, self.name))
    }

    /// Waits until the report is as wanted.
    ///
    /// # Panics
    /// If it does not become so within `limit`; the text has the last report.
    #[track_caller]
    pub fn wait_status(
        &self,
        what: &str,
        limit: Duration,
        wanted: impl Fn(&Status) -> bool,
    ) -> Status {
        let mut last = None;
        let found = wait::within(limit, || {
            let status = self.status();
            let right = wanted(&status);
            last = Some(status.clone());
            right.then_some(status)
        });
        found.unwrap_or_else(|| {
            let last = last.map(|status| status.to_string()).unwrap_or_default();
            panic!(
                "{}: not within {} s: {what}; status: {last}",
                self.name,
                limit.as_secs_f32()
            )
        })
    }

    /// Waits until this node knows that it is not connected.
    ///
    /// # Panics
    /// If that does not come.
    #[track_caller]
    pub fn wait_disconnected(&self, limit: Duration) -> Status {
        self.wait_status("not connected", limit, |status| {
            status.connection_state() != "Connected"
        })
    }

    /// Waits until both nodes are connected and UpToDate.
    ///
    /// # Panics
    /// If that does not come.
    #[track_caller]
    pub fn wait_healthy(&self, limit: Duration) -> Status {
        self.wait_status("connected and UpToDate on both", limit, Status::is_healthy)
    }

    /// `up`, with the daemon.
    ///
    /// # Panics
    /// If it is refused.
    #[track_caller]
    pub fn start_and_up(&mut self) {
        self.start();
        self.command("up");
    }

    /// `primary`, tried again while the node is in a passing state or still believes in a peer that is dying.
    ///
    /// # Panics
    /// If it does not succeed within `limit`.
    #[track_caller]
    pub fn promote(&self, limit: Duration) {
        let mut last = None;
        let done = wait::within(limit, || {
            let finished = self.try_command("primary");
            let done = finished.code == 0;
            last = Some(finished);
            done.then_some(())
        });
        if done.is_none() {
            panic!(
                "{}: no promotion within {} s: {}",
                self.name,
                limit.as_secs_f32(),
                last.expect("tried")
            );
        }
    }

    /// The NBD socket.
    #[must_use]
    pub fn nbd_socket(&self) -> PathBuf {
        self.run_dir.join("nbd.sock")
    }

    /// The control socket.
    #[must_use]
    pub fn control_socket(&self) -> PathBuf {
        self.run_dir.join("control.sock")
    }

    /// URI of the resource for NBD clients.
    #[must_use]
    pub fn uri(&self) -> String {
        format!(
            "nbd+unix:///{}?socket={}",
            self.resource,
            self.nbd_socket().display()
        )
    }

    /// An NBD client of the resource.
    ///
    /// # Errors
    /// What the server answers.
    ///
    /// # Panics
    /// If nobody listens.
    #[track_caller]
    pub fn try_client(&self) -> Result<Client<UnixStream>, ClientError> {
        let stream = UnixStream::connect(self.nbd_socket())
            .unwrap_or_else(|error| panic!("nobody serves NBD on {}: {error}", self.name));
        for limit in [UnixStream::set_read_timeout, UnixStream::set_write_timeout] {
            limit(&stream, Some(COMMAND_LIMIT)).expect("a time limit can be set");
        }
        Client::connect(stream, &self.resource)
    }

    /// An NBD client of the resource.
    ///
    /// # Panics
    /// If it is refused.
    #[must_use]
    #[track_caller]
    pub fn client(&self) -> Client<UnixStream> {
        self.try_client()
            .unwrap_or_else(|error| panic!("{} refuses the export: {error}", self.name))
    }
}
