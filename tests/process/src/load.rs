//! `qrbd-load`: writing what can be checked later, and checking it.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::node::Node;
use crate::process::Process;
use crate::programs::{Finished, built, run};
use crate::stage::Stage;
use crate::wait;

/// For a check of a whole device.
const CHECK_LIMIT: Duration = Duration::from_secs(60);
/// A server that answers nothing for so long has failed, in any of these tests.
const MAX_SILENCE_SECONDS: &str = "25";

/// Load that runs beside the test.
#[derive(Debug)]
pub struct Load {
    /// What it remembers.
    pub journal: PathBuf,
    process: Process,
    log: PathBuf,
}

impl Load {
    /// Starts load on a Primary; `name` tells its journal from others, an existing journal is continued.
    ///
    /// # Panics
    /// If it cannot be started.
    #[must_use]
    pub fn start(stage: &Stage, node: &Node, name: &str, arguments: &[&str]) -> Load {
        let journal = stage.path(&format!("{name}.journal"));
        let log = stage.path(&format!("{name}-load.log"));
        let mut command = Command::new(built("qrbd-load"));
        command.args([
            "run",
            "--quiet",
            "--max-silence",
            MAX_SILENCE_SECONDS,
            "--export",
            &node.resource,
        ]);
        command
            .arg("--socket")
            .arg(node.nbd_socket())
            .arg("--journal")
            .arg(&journal)
            .args(arguments);
        let process = Process::start("qrbd-load", &command, &log);
        Load {
            journal,
            process,
            log,
        }
    }

    /// Load until the server is gone.
    #[must_use]
    pub fn until_disconnect(stage: &Stage, node: &Node, name: &str) -> Load {
        Load::start(
            stage,
            node,
            name,
            &[
                "--until-disconnect",
                "--flush-every",
                "50",
                "--read-percent",
                "10",
            ],
        )
    }

    /// Waits until the journal has about this many records (two for each completed write).
    ///
    /// # Panics
    /// If it ends before, or does not come so far.
    #[track_caller]
    pub fn wait_records(&mut self, records: u64) {
        wait::until(
            &format!("{records} records in the journal"),
            Duration::from_secs(30),
            || {
                if let Some(status) = self.process.ended() {
                    panic!("the load ended: {status}\n{}", self.said());
                }
                (self.records() >= records).then_some(())
            },
        );
    }

    /// Records in the journal.
    #[must_use]
    pub fn records(&self) -> u64 {
        std::fs::metadata(&self.journal).map_or(0, |metadata| metadata.len() / 32)
    }

    /// Whether it has ended.
    pub fn has_ended(&mut self) -> bool {
        self.process.ended().is_some()
    }

    /// Waits for its success.
    ///
    /// # Panics
    /// If it does not end within `limit`, or fails.
    #[track_caller]
    pub fn finish(mut self, limit: Duration) -> PathBuf {
        let status = self.process.wait(limit);
        assert!(
            status.success(),
            "the load failed: {status}\n{}",
            self.said()
        );
        self.journal.clone()
    }

    /// Ends it by a signal: nothing is said about its success.
    pub fn abandon(mut self) -> PathBuf {
        self.process.kill();
        self.journal.clone()
    }

    fn said(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }
}

/// Runs load to its end.
///
/// # Panics
/// If it fails.
#[track_caller]
pub fn write(stage: &Stage, node: &Node, name: &str, arguments: &[&str]) -> PathBuf {
    Load::start(stage, node, name, arguments).finish(Duration::from_secs(60))
}

/// Proves that every write of the journal that was acknowledged is there, on the export.
///
/// # Panics
/// If one is not, or anything is there that was never written.
#[track_caller]
pub fn verify(node: &Node, journal: &Path) {
    try_verify(node, journal, &[]).succeeded();
}

/// `qrbd-load verify` of the export.
#[must_use]
#[track_caller]
pub fn try_verify(node: &Node, journal: &Path, arguments: &[&str]) -> Finished {
    let mut words = vec![
        "verify".into(),
        "--export".into(),
        node.resource.clone().into(),
    ];
    words.extend([
        "--socket".into(),
        node.nbd_socket().into_os_string(),
        "--journal".into(),
        journal.as_os_str().to_owned(),
    ]);
    words.extend(arguments.iter().map(std::ffi::OsString::from));
    run(&built("qrbd-load"), words, CHECK_LIMIT)
}

/// Compares the first `bytes` of two files.
///
/// # Panics
/// If they differ.
#[track_caller]
pub fn assert_equal(left: &Path, right: &Path, bytes: u64) {
    let finished = compare(left, right, bytes);
    assert!(finished.code == 0, "the data areas differ: {finished}");
}

/// `qrbd-load compare`.
#[must_use]
#[track_caller]
pub fn compare(left: &Path, right: &Path, bytes: u64) -> Finished {
    let words = [
        "compare".as_ref(),
        left.as_os_str(),
        right.as_os_str(),
        "--bytes".as_ref(),
    ];
    let words = words
        .into_iter()
        .map(ToOwned::to_owned)
        .chain([bytes.to_string().into()]);
    run(&built("qrbd-load"), words, CHECK_LIMIT)
}
