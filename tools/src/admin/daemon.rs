//! Commands that the daemon carries out.

use std::collections::HashMap;
use std::path::Path;
use std::time::Duration;

use qrbd_control::client::{Client, ClientError};
use qrbd_control::status::ResourceStatus;
use qrbd_control::{Command, Progress, Request, Response, StatusReport, Target};

use super::arguments::{Face, Wait, minor_of, parse_target};
use super::progress_bars::Bars;
use super::{Context, EXIT_CONFIGURATION, EXIT_USAGE, Failure, Outcome};

impl Context {
    /// Asks the daemon for `command` on each target.
    pub(super) fn ask(&self, name: &str, targets: &[String], command: Command) -> Outcome {
        let takes_down = matches!(
            command,
            Command::Down
                | Command::Secondary { .. }
                | Command::Detach { .. }
                | Command::Disconnect { .. }
        );
        let targets = if takes_down {
            self.targets(targets)?
        } else {
            self.configured_targets(targets)?
        };
        if matches!(command, Command::Up | Command::Adjust | Command::Attach)
            && !self.global.dry_run
        {
            self.warn_of_other_configuration()?;
        }
        self.for_each(name, targets, Target::to_string, |target| {
            self.ask_one(name, target, &command)
        })
    }

    /// For commands that would do more than a part of a resource asks for.
    ///
    /// # Errors
    /// A target names a connection, or one of several volumes.
    pub(super) fn whole_resources(&self, name: &str, targets: &[String]) -> Outcome {
        for text in targets {
            let target = match minor_of(text) {
                Some(_) => self.targets(std::slice::from_ref(text))?.remove(0),
                None => parse_target(text)
                    .map_err(|error| Failure::new(EXIT_USAGE, error.to_string()))?,
            };
            let is_all_there_is = |number| {
                let resource = target.resource.as_deref().unwrap_or_default();
                self.configuration()
                    .loaded
                    .resource(resource)
                    .is_some_and(|resource| {
                        resource
                            .volumes()
                            .iter()
                            .all(|volume| volume.number == number)
                    })
            };
            let part = match (&target.peer, target.volume) {
                (Some(_), _) => "connection",
                (None, Some(number)) if !is_all_there_is(number) => "volume",
                _ => continue,
            };
            return Err(Failure::new(
                EXIT_USAGE,
                format!("{name} operates on whole resources, but you specified a specific {part}!"),
            ));
        }
        Ok(())
    }

    /// `wait-connect` and `wait-sync`.
    pub(super) fn wait(&self, name: &str, wait: &Wait) -> Outcome {
        let configuration = self.configuration();
        let waits: Vec<(Target, Option<u32>)> = configuration
            .select(&wait.targets.targets)?
            .into_iter()
            .map(|selected| {
                let configured = selected.resource.startup.wfc_timeout_s;
                (
                    selected.target,
                    wait.timeout
                        .map_or(configured, |seconds| (seconds > 0).then_some(seconds)),
                )
            })
            .collect();
        self.for_each(
            name,
            waits,
            |(target, _)| target.to_string(),
            |(target, timeout_seconds)| {
                let timeout_seconds = *timeout_seconds;
                let command = match name {
                    "wait-connect" => Command::WaitConnect { timeout_seconds },
                    _ => Command::WaitSync { timeout_seconds },
                };
                self.ask_one(name, target, &command)
            },
        )
    }

    fn ask_one(&self, name: &str, target: &Target, command: &Command) -> Outcome {
        if self.global.dry_run {
            say!("{name} {target}{}", options_of(command));
            return Ok(());
        }
        match self.call(command.clone(), target.clone())? {
            Response::Ok { text } => {
                // Hints and warnings: scripts read stdout.
                if !text.is_empty() {
                    complain!("{}", text.trim_end());
                }
                Ok(())
            }
            response => Err(unexpected(target, response)),
        }
    }

    /// One request; progress is shown as it comes.
    pub(super) fn call(&self, command: Command, target: Target) -> Result<Response, Failure> {
        let mut client = Client::connect(&self.global.run_dir).map_err(Failure::execution)?;
        client
            .set_timeout(self.longest_silence(&command))
            .map_err(Failure::execution)?;
        let mut bars = Bars::new();
        let mut steps: HashMap<String, Progress> = HashMap::new();
        let response = client.call(&Request { command, target }, |step| {
            steps.insert(crate::show::progress::object(&step), step.clone());
            bars.update(steps.values());
        });
        bars.clear();
        response.map_err(Failure::execution)
    }

    /// How long the daemon may say nothing: `cmd-timeout-short` for questions, `-medium` for the rest; waiting has its own
    /// limit.
    fn longest_silence(&self, command: &Command) -> Option<Duration> {
        let limits = &self.configuration().loaded.global;
        let seconds = match command {
            Command::WaitConnect { .. } | Command::WaitSync { .. } => return None,
            Command::Role
            | Command::Cstate
            | Command::Dstate
            | Command::Status
            | Command::ShowGi
            | Command::GetGi
            | Command::Version => limits.cmd_timeout_short_s,
            _ => limits.cmd_timeout_medium_s,
        };
        Some(Duration::from_secs(u64::from(seconds.max(1))))
    }

    /// Report of the daemon, `None` if no daemon runs.
    pub(super) fn report_if_running(
        &self,
        command: Command,
        target: Target,
    ) -> Result<Option<StatusReport>, Failure> {
        let mut client = match Client::connect(&self.global.run_dir) {
            Ok(client) => client,
            Err(ClientError::NotRunning { .. }) => return Ok(None),
            Err(error) => return Err(Failure::execution(error)),
        };
        client
            .set_timeout(self.longest_silence(&command))
            .map_err(Failure::execution)?;
        match client
            .call(
                &Request {
                    command,
                    target: target.clone(),
                },
                |_| {},
            )
            .map_err(Failure::execution)?
        {
            Response::Status(report) => Ok(Some(report)),
            // What the daemon does not know has no report.
            Response::Refused(refusal) if is_unknown(&refusal) => Ok(Some(StatusReport::default())),
            response => Err(unexpected(&target, response)),
        }
    }

    /// State of a resource according to the daemon, `None` if it is not up.
    pub(super) fn running(&self, resource: &str) -> Result<Option<ResourceStatus>, Failure> {
        let report = self
            .report_if_running(Command::Status, Target::resource(resource))?
            .unwrap_or_default();
        Ok(report
            .resources
            .into_iter()
            .find(|entry| entry.name == resource))
    }

    /// The targets as the daemon gets them, one per resource: what the configuration names, and what is up although the
    /// configuration does not tell of it any more. A file that was broken or removed must not stop anybody from asking about a
    /// resource that runs, or from taking it down.
    ///
    /// # Errors
    /// Neither knows the name.
    pub(super) fn targets(&self, texts: &[String]) -> Result<Vec<Target>, Failure> {
        let nothing = [String::from("all")];
        let texts = if texts.is_empty() { &nothing } else { texts };
        let mut targets = Vec::new();
        for text in texts {
            match self.configured_targets(std::slice::from_ref(text)) {
                Ok(configured) => {
                    // All means all: what the configuration does not tell of any more, too.
                    let mut others = match text.as_str() {
                        "all" => self.targets_that_are_up(text),
                        _ => Vec::new(),
                    };
                    others.retain(|up| configured.iter().all(|one| one.resource != up.resource));
                    targets.extend(configured.into_iter().chain(others));
                }
                Err(failure) => {
                    let up = self.targets_that_are_up(text);
                    if up.is_empty() {
                        return Err(failure);
                    }
                    complain!("{}", failure.message);
                    complain!("warning: {text} is up, so it is taken as the daemon knows it");
                    targets.extend(up);
                }
            }
        }
        Ok(targets)
    }

    fn targets_that_are_up(&self, text: &str) -> Vec<Target> {
        let Ok(target) = parse_target(text) else {
            return Vec::new();
        };
        if let Some(name) = &target.resource
            && self
                .configuration()
                .select(std::slice::from_ref(name))
                .is_ok()
        {
            // The resource is well defined; it has no such part.
            return Vec::new();
        }
        // Without a daemon nothing is up.
        let whole = Target {
            volume: None,
            peer: None,
            ..target.clone()
        };
        let Ok(Some(report)) = self.report_if_running(Command::Status, whole) else {
            return Vec::new();
        };
        match &target.resource {
            Some(name) if report.resources.iter().any(|entry| entry.name == *name) => vec![target],
            Some(_) => Vec::new(),
            None => (report.resources.iter())
                .map(|entry| Target::resource(&entry.name))
                .collect(),
        }
    }

    /// The targets that the configuration names.
    fn configured_targets(&self, texts: &[String]) -> Result<Vec<Target>, Failure> {
        let by_form =
            self.face == Face::Drbdsetup && !texts.iter().any(|text| minor_of(text).is_some());
        if by_form {
            let parse = |text: &String| {
                parse_target(text).map_err(|error| Failure::new(EXIT_USAGE, error.to_string()))
            };
            return texts.iter().map(parse).collect();
        }
        let configuration = self.configuration();
        Ok(configuration
            .select(texts)?
            .into_iter()
            .map(|selected| selected.target)
            .collect())
    }

    /// The daemon reads its own configuration file: say so if it is another one.
    fn warn_of_other_configuration(&self) -> Outcome {
        let Response::Version(version) = self.call(Command::Version, Target::all())? else {
            return Ok(());
        };
        let canonical =
            |path: &Path| std::fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
        let theirs = Path::new(&version.configuration_file);
        if canonical(theirs) != canonical(&self.global.config_file) {
            complain!(
                "warning: the daemon (pid {}) reads {}, not {}",
                version.process_id,
                theirs.display(),
                self.global.config_file.display()
            );
        }
        if version.node != self.node {
            let message = format!(
                "the daemon is node '{}', this command is for node '{}' (--node)",
                version.node, self.node
            );
            return Err(Failure::new(EXIT_CONFIGURATION, message));
        }
        Ok(())
    }
}

pub(super) fn is_unknown(refusal: &qrbd_control::Refusal) -> bool {
    let unknown = qrbd_control::KernelError::ResourceUnknown.number();
    refusal.kind == qrbd_control::RefusalKind::Kernel(unknown)
}

/// The failure that a response other than the one hoped for means.
pub(super) fn unexpected(target: &Target, response: Response) -> Failure {
    match response {
        Response::Refused(refusal) => {
            Failure::new(refusal.exit_code, refusal.message(&target.to_string()))
        }
        other => Failure::execution(format!(
            "{target}: the daemon gave an answer of another kind: {other:?}"
        )),
    }
}

fn options_of(command: &Command) -> String {
    let option = match command {
        Command::Detach { force: true }
        | Command::Disconnect { force: true }
        | Command::Primary { force: true }
        | Command::Secondary { force: true } => "--force".to_owned(),
        Command::Connect {
            discard_my_data: true,
        } => "--discard-my-data".to_owned(),
        Command::Resize {
            bytes,
            assume_clean,
        } => {
            let size = bytes.map(|bytes| format!("--size={}s", bytes / 512));
            let clean = assume_clean.then(|| "--assume-clean".to_owned());
            let words: Vec<String> = size.into_iter().chain(clean).collect();
            match words.is_empty() {
                true => return String::new(),
                false => words.join(" "),
            }
        }
        Command::NewCurrentUuid { clear_bitmap: true } => "--clear-bitmap".to_owned(),
        Command::WaitConnect {
            timeout_seconds: Some(seconds),
        }
        | Command::WaitSync {
            timeout_seconds: Some(seconds),
        } => {
            format!("--wfc-timeout={seconds}")
        }
        _ => return String::new(),
    };
    format!(" {option}")
}
