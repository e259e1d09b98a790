//! A process of our own: its log, its signals, its end.
//!
//! It is killed when its owner goes, and by the kernel when the thread of the test dies.

use std::fs::{File, OpenOptions};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::wait;

/// A running (or ended) child.
#[derive(Debug)]
pub struct Process {
    name: String,
    log: PathBuf,
    child: Child,
}

impl Process {
    /// Starts `command`; both outputs are appended to `log`.
    ///
    /// # Panics
    /// If it cannot be started.
    #[must_use]
    pub fn start(name: &str, command: &Command, log: &Path) -> Process {
        let output: File = OpenOptions::new()
            .create(true)
            .append(true)
            .open(log)
            .expect("the log can be written");
        let errors = output.try_clone().expect("the log can be written twice");
        // Of util-linux, which is everywhere; becomes the program itself, so the process id is the program's.
        let mut guarded = Command::new("setpriv");
        guarded
            .args(["--pdeathsig", "KILL", "--"])
            .arg(command.get_program())
            .args(command.get_args());
        for (name, value) in command.get_envs() {
            guarded.env(name, value.unwrap_or_default());
        }
        let child = guarded
            .stdin(Stdio::null())
            .stdout(output)
            .stderr(errors)
            .spawn()
            .expect("setpriv of util-linux runs");
        Process {
            name: name.to_owned(),
            log: log.to_owned(),
            child,
        }
    }

    /// Its process id.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// How it ended, if it did.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().expect("a child can be waited for")
    }

    /// Sends a signal to it, unless it has ended.
    pub fn signal(&mut self, signal: Signal) {
        if self.ended().is_none() {
            let id = i32::try_from(self.child.id()).expect("process ids are positive");
            // It may be ending at this moment.
            let _ = kill(Pid::from_raw(id), signal);
        }
    }

    /// SIGKILL, and waits until it is gone.
    pub fn kill(&mut self) {
        self.signal(Signal::SIGKILL);
        self.child.wait().expect("a child can be waited for");
    }

    /// Waits for its end.
    ///
    /// # Panics
    /// If it does not end within `limit`.
    #[track_caller]
    pub fn wait(&mut self, limit: Duration) -> ExitStatus {
        let name = self.name.clone();
        wait::until(&format!("end of {name}"), limit, || self.ended())
    }

    /// What it said.
    #[must_use]
    pub fn said(&self) -> String {
        std::fs::read(&self.log)
            .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
            .unwrap_or_default()
    }

    /// Memory it occupies, KiB (VmRSS).
    ///
    /// # Panics
    /// If it is gone.
    #[must_use]
    #[track_caller]
    pub fn resident_kib(&self) -> u64 {
        let path = format!("/proc/{}/status", self.child.id());
        let status = std::fs::read_to_string(&path)
            .unwrap_or_else(|error| panic!("{} is gone: {path}: {error}", self.name));
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix("VmRSS:"))
            .unwrap_or_else(|| panic!("{} is gone", self.name));
        line.trim()
            .trim_end_matches(" kB")
            .parse()
            .expect("VmRSS is a number of kB")
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // An end that nobody asked for is worth a line.
        if let Ok(Some(status)) = self.child.try_wait()
            && let Some(signal) = status.signal()
            && signal != Signal::SIGKILL as i32
            && std::thread::panicking()
        {
            eprintln!("{} was ended by signal {signal}", self.name);
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
