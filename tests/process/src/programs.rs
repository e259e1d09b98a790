//! Finds the programs under test and those of other packages, and runs them to their end within a bound.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

/// The interpreter of the distribution's packages; another `python3` first in PATH may lack their modules.
pub const PYTHON: &str = "/usr/bin/python3";

/// Exit code of `timeout` when the time is over.
const TIME_IS_OVER: i32 = 124;

/// Path of a program of this workspace: beside the running test executable.
///
/// # Panics
/// If it has not been built.
#[must_use]
pub fn built(name: &str) -> PathBuf {
    let test = std::env::current_exe().expect("the path of the test is known");
    let directories = test.ancestors().skip(1).take(2);
    for directory in directories {
        let path = directory.join(name);
        if path.is_file() {
            return path;
        }
    }
    panic!(
        "{name} is not beside {}: build it first with 'cargo build --workspace'",
        test.display()
    );
}

/// Path of a program of a Debian package.
///
/// # Panics
/// If it is not installed; the text names the package.
#[must_use]
pub fn installed(package: &str, tool: &str) -> PathBuf {
    let path = Path::new(tool);
    if path.is_absolute() && path.exists() {
        return path.to_owned();
    }
    // Tools of the administrator are not in everybody's PATH.
    let searched = std::env::var_os("PATH").unwrap_or_default();
    let mut directories: Vec<PathBuf> = std::env::split_paths(&searched).collect();
    directories.extend(["/usr/sbin".into(), "/sbin".into()]);
    let found = directories
        .into_iter()
        .map(|directory| directory.join(tool))
        .find(|path| path.is_file());
    found
        .unwrap_or_else(|| panic!("{tool} is missing: install it with 'apt-get install {package}'"))
}

/// What a program said and how it ended.
#[derive(Clone, Debug)]
pub struct Finished {
    /// The command line, for messages.
    pub command: String,
    /// Exit code; 128 + number of the signal that ended it.
    pub code: i32,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

impl Finished {
    /// The standard output of a program that must have succeeded.
    ///
    /// # Panics
    /// If it did not.
    #[track_caller]
    pub fn succeeded(self) -> String {
        assert!(self.code == 0, "{self}");
        self.stdout
    }

    /// Its standard error, if it ended with `code` and said each of `words` there.
    ///
    /// # Panics
    /// If it ended otherwise or did not say them.
    #[track_caller]
    pub fn refused(self, code: i32, words: &[&str]) -> String {
        assert!(self.code == code, "exit code {code} expected\n{self}");
        for word in words {
            assert!(self.stderr.contains(word), "'{word}' expected\n{self}");
        }
        self.stderr
    }
}

impl std::fmt::Display for Finished {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{}: exit code {}\n{}{}",
            self.command, self.code, self.stdout, self.stderr
        )
    }
}

/// Runs a program to its end.
///
/// # Panics
/// If it does not end within `limit`.
#[track_caller]
pub fn run<S: AsRef<OsStr>>(
    program: &Path,
    arguments: impl IntoIterator<Item = S>,
    limit: Duration,
) -> Finished {
    run_with(program, arguments, limit, &[])
}

/// [`run`] with variables of the environment.
///
/// # Panics
/// As [`run`].
#[track_caller]
pub fn run_with<S: AsRef<OsStr>>(
    program: &Path,
    arguments: impl IntoIterator<Item = S>,
    limit: Duration,
    environment: &[(&str, &str)],
) -> Finished {
    let mut command = Command::new("timeout");
    command
        .arg("--kill-after=2")
        .arg(format!("{}", limit.as_secs_f32()))
        .arg(program)
        .args(arguments);
    command
        .stdin(std::process::Stdio::null())
        .envs(environment.iter().copied());
    let words: Vec<_> = command
        .get_args()
        .skip(2)
        .map(OsStr::to_string_lossy)
        .collect();
    let line = words.join(" ");
    let Output {
        status,
        stdout,
        stderr,
    } = command.output().expect("timeout of coreutils runs");
    let code = status.code().unwrap_or_else(|| {
        128 + std::os::unix::process::ExitStatusExt::signal(&status).unwrap_or(0)
    });
    let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
    let finished = Finished {
        command: line,
        code,
        stdout: text(&stdout),
        stderr: text(&stderr),
    };
    assert!(
        code != TIME_IS_OVER,
        "did not end within {} s: {finished}",
        limit.as_secs_f32()
    );
    finished
}
