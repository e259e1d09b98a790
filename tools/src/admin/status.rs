//! `status`, `role`, `cstate`, `dstate`: reports of the daemon, and for `dstate` of the metadata if the resource is not up.

use std::io::{IsTerminal, Write};
use std::time::Duration;

use qrbd_control::client::Client;
use qrbd_control::status::Role;
use qrbd_control::{Command, KernelError, Response, StatusReport, Target};

use super::arguments::{Face, Status};
use super::daemon::{is_unknown, unexpected};
use super::progress_bars::Bars;
use super::{Context, EXIT_CONFIGURATION, Failure, Outcome};
use crate::show::{json, progress, queries, text};

const WATCH_INTERVAL: Duration = Duration::from_secs(1);

impl Context {
    pub(super) fn status(&self, arguments: &Status) -> Outcome {
        let targets = if arguments.targets.is_empty() {
            vec![Target::all()]
        } else {
            self.targets(&arguments.targets)?
        };
        let options = text::Options {
            // `qrbdadm -v status` and `qrbdadm status --verbose` mean the same.
            verbose: arguments.verbose.max(self.global.verbose),
            statistics: arguments.statistics,
        };
        if self.global.dry_run {
            for target in targets {
                say!("status {target}");
            }
            return Ok(());
        }
        if arguments.watch {
            return self.watch(&targets, options);
        }
        let (report, missing) = self.reports(&targets)?;
        if arguments.json {
            put!("{}", json::status(&report));
        } else if !report.resources.is_empty() || missing.is_empty() {
            put!("{}", text::status(&report, options));
        }
        if missing.is_empty() {
            return Ok(());
        }
        let lines: Vec<String> = missing
            .iter()
            .map(|name| format!("{name}: No such resource"))
            .collect();
        Err(Failure::new(EXIT_CONFIGURATION, lines.join("\n")))
    }

    /// The resources that `targets` name, and the names that the daemon does not know.
    fn reports(&self, targets: &[Target]) -> Result<(StatusReport, Vec<String>), Failure> {
        // One look is enough to tell a daemon that is not there from a resource that is not up.
        Client::connect(&self.global.run_dir).map_err(Failure::execution)?;
        let mut all = StatusReport::default();
        let mut missing = Vec::new();
        for target in targets {
            let report = self
                .report_if_running(Command::Status, target.clone())?
                .unwrap_or_default();
            match &target.resource {
                Some(name) if !report.resources.iter().any(|entry| entry.name == *name) => {
                    missing.push(name.clone())
                }
                _ => all.resources.extend(report.resources),
            }
        }
        all.sort();
        all.resources
            .dedup_by(|left, right| left.name == right.name);
        Ok((all, missing))
    }

    fn watch(&self, targets: &[Target], options: text::Options) -> Outcome {
        let terminal = std::io::stdout().is_terminal();
        let mut bars = Bars::new();
        let mut shown = String::new();
        loop {
            let (report, _) = self.reports(targets)?;
            let running = progress::running(&report);
            let text = text::status(&report, options);
            if terminal {
                bars.clear();
                put!("\x1b[H\x1b[2J{text}");
            } else if text != shown {
                put!("{text}");
            }
            shown = text;
            if std::io::stdout().flush().is_err() {
                return Ok(());
            }
            bars.update(&running);
            std::thread::sleep(WATCH_INTERVAL);
        }
    }

    pub(super) fn role(&self, targets: &[String]) -> Outcome {
        let targets = self.targets(targets)?;
        self.for_each("role", targets, Target::to_string, |target| {
            let resource = match self.call(Command::Role, target.clone())? {
                Response::Status(report) => report.resources.into_iter().next(),
                Response::Refused(refusal) if is_unknown(&refusal) => None,
                response => return Err(unexpected(target, response)),
            };
            let Some(resource) = resource else {
                say!("{}", Role::Unknown);
                return Err(Failure::new(
                    EXIT_CONFIGURATION,
                    format!("{target}: {}", KernelError::ResourceUnknown),
                ));
            };
            let line = queries::role(&resource, target.peer.as_deref());
            put!("{}", line.ok_or_else(|| no_such(target, "connection"))?);
            Ok(())
        })
    }

    pub(super) fn cstate(&self, targets: &[String]) -> Outcome {
        let targets = self.targets(targets)?;
        self.for_each("cstate", targets, Target::to_string, |target| {
            let resource = match self.call(Command::Cstate, target.clone())? {
                Response::Status(report) => report.resources.into_iter().next(),
                response => return Err(unexpected(target, response)),
            };
            let lines =
                resource.and_then(|resource| queries::cstate(&resource, target.peer.as_deref()));
            put!("{}", lines.ok_or_else(|| no_such(target, "connection"))?);
            Ok(())
        })
    }

    pub(super) fn dstate(&self, targets: &[String]) -> Outcome {
        let targets = self.targets(targets)?;
        self.for_each("dstate", targets, Target::to_string, |target| {
            let name = target.resource.as_deref().unwrap_or_default();
            match self.running(name)? {
                Some(resource) => {
                    let lines = queries::dstate(&resource, target.volume);
                    put!("{}", lines.ok_or_else(|| no_such(target, "device"))?);
                    Ok(())
                }
                None if self.face == Face::Drbdsetup => Err(no_such(target, "device")),
                None => self.dstate_of_metadata(target),
            }
        })
    }
}

fn no_such(target: &Target, what: &str) -> Failure {
    Failure::new(EXIT_CONFIGURATION, format!("{target}: No such {what}"))
}
