//! `qrbdadm`: reads the configuration, talks to the daemon, works on metadata while no daemon holds the disk.
//!
//! Exit codes are DRBD's: 0 done, 1 usage or unknown resource or question answered with no, 2 syntax, 10 configuration or
//! refused request, 11/16/17/5 refused state change, 20 daemon or disk cannot be reached, 40 a file system is in the way.
//! With several targets the largest code counts; a code of 20 or more ends the command at once.

pub mod arguments;
mod configuration;
mod create_md;
mod daemon;
mod metadata;
mod offline;
mod progress_bars;
mod queries;
mod status;

use std::cell::OnceCell;
use std::fmt;
use std::io::Write;

use clap::Parser;
use clap::error::ErrorKind;

use arguments::{Arguments, Command, Face, Global, normalise};
use configuration::Configuration;

/// Wrong use of the program: unknown command or resource.
pub const EXIT_USAGE: u8 = 1;
/// Wrong syntax of the command line.
pub const EXIT_SYNTAX: u8 = 2;
/// The configuration is at fault.
pub const EXIT_CONFIGURATION: u8 = 10;
/// Daemon or disk cannot be reached.
pub const EXIT_EXECUTION: u8 = 20;
/// `create-md` would overwrite the end of a file system.
pub const EXIT_FILE_SYSTEM: u8 = 40;
/// `dump-md` of metadata whose activity log must be applied first.
pub const EXIT_UNCLEAN: u8 = 255;

/// Why a command failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// Exit code of the program.
    pub exit_code: u8,
    /// For stderr; may be empty.
    pub message: String,
}

impl Failure {
    fn new(exit_code: u8, message: impl Into<String>) -> Failure {
        Failure {
            exit_code,
            message: message.into(),
        }
    }

    fn execution(message: impl fmt::Display) -> Failure {
        Failure::new(EXIT_EXECUTION, message.to_string())
    }
}

/// What a command gives.
pub type Outcome = Result<(), Failure>;

/// Everything a command works with.
struct Context {
    face: Face,
    global: Global,
    node: String,
    loaded: OnceCell<Configuration>,
}

impl Context {
    /// The configuration, read when it is first needed.
    fn configuration(&self) -> &Configuration {
        self.loaded
            .get_or_init(|| Configuration::load(&self.global.config_file, &self.node))
    }

    /// Tells that a part of a command failed, in DRBD's words, and gives its exit code.
    fn report(&self, command: &str, object: &str, failure: &Failure) -> u8 {
        if !failure.message.is_empty() {
            complain!("{}", failure.message);
        }
        if failure.exit_code >= 10 && self.face != Face::Drbdsetup {
            complain!(
                "Command '{} {command} {object}' terminated with exit code {}",
                self.face.name(),
                failure.exit_code
            );
        }
        failure.exit_code
    }

    /// Runs `work` for every item; tells what fails; the largest exit code counts, 20 ends it.
    fn for_each<T>(
        &self,
        command: &str,
        items: impl IntoIterator<Item = T>,
        object: impl Fn(&T) -> String,
        mut work: impl FnMut(&T) -> Outcome,
    ) -> Outcome {
        let mut worst = 0;
        for item in items {
            if self.global.verbose > 0 && !self.global.dry_run {
                say!("{} {command} {}", self.face.name(), object(&item));
            }
            if let Err(failure) = work(&item) {
                worst = worst.max(self.report(command, &object(&item), &failure));
                if worst >= EXIT_EXECUTION {
                    break;
                }
            }
        }
        if worst == 0 {
            Ok(())
        } else {
            Err(Failure::new(worst, ""))
        }
    }
}

/// The program: `words` are its arguments with its name first. Gives the exit code.
#[must_use]
pub fn run(words: Vec<String>) -> u8 {
    let face = Face::of(words.first().map_or("", String::as_str));
    let arguments = match Arguments::try_parse_from(normalise(words)) {
        Ok(arguments) => arguments,
        Err(error) => return usage(&error),
    };
    let node = match &arguments.global.node {
        Some(node) => node.clone(),
        None => nix::unistd::gethostname()
            .map(|name| name.to_string_lossy().into_owned())
            .unwrap_or_else(|_| "localhost".to_owned()),
    };
    let context = Context {
        face,
        global: arguments.global,
        node,
        loaded: OnceCell::new(),
    };
    let code = match context.dispatch(arguments.command) {
        // What could be done was done; that a resource was left out for its errors must not go unnoticed.
        Ok(())
            if context
                .loaded
                .get()
                .is_some_and(Configuration::left_resources_out) =>
        {
            EXIT_CONFIGURATION
        }
        Ok(()) => 0,
        Err(failure) => {
            if !failure.message.is_empty() {
                complain!("{}", failure.message);
            }
            failure.exit_code
        }
    };
    // A reader that went away (`| head`) is no failure of ours.
    let _ = std::io::stdout().flush();
    code
}

fn usage(error: &clap::Error) -> u8 {
    let _ = error.print();
    match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => 0,
        ErrorKind::InvalidSubcommand
        | ErrorKind::MissingSubcommand
        | ErrorKind::MissingRequiredArgument
        | ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => EXIT_USAGE,
        _ => EXIT_SYNTAX,
    }
}

impl Context {
    fn dispatch(&self, command: Command) -> Outcome {
        use qrbd_control::Command as Ask;
        match command {
            Command::Up(targets) => self.ask("up", &targets.targets, Ask::Up),
            Command::Down(targets) => {
                self.whole_resources("down", &targets.targets)?;
                self.ask("down", &targets.targets, Ask::Down)
            }
            Command::Adjust(targets) => self.ask("adjust", &targets.targets, Ask::Adjust),
            Command::Attach(targets) => self.ask("attach", &targets.targets, Ask::Attach),
            Command::Detach { force, targets } => {
                self.ask("detach", &targets.targets, Ask::Detach { force })
            }
            Command::Connect {
                discard_my_data,
                targets,
            } => self.ask(
                "connect",
                &targets.targets,
                Ask::Connect { discard_my_data },
            ),
            Command::Disconnect { force, targets } => {
                self.ask("disconnect", &targets.targets, Ask::Disconnect { force })
            }
            Command::Primary { force, targets } => {
                self.ask("primary", &targets.targets, Ask::Primary { force })
            }
            Command::Secondary { force, targets } => {
                self.ask("secondary", &targets.targets, Ask::Secondary { force })
            }
            Command::InvalidateRemote(targets) => {
                self.ask("invalidate-remote", &targets.targets, Ask::InvalidateRemote)
            }
            Command::PauseSync(targets) => self.ask("pause-sync", &targets.targets, Ask::PauseSync),
            Command::ResumeSync(targets) => {
                self.ask("resume-sync", &targets.targets, Ask::ResumeSync)
            }
            Command::SuspendIo(targets) => self.ask("suspend-io", &targets.targets, Ask::SuspendIo),
            Command::ResumeIo(targets) => self.ask("resume-io", &targets.targets, Ask::ResumeIo),
            Command::Resize {
                size,
                assume_clean,
                targets,
            } => self.ask(
                "resize",
                &targets.targets,
                Ask::Resize {
                    bytes: size,
                    assume_clean,
                },
            ),
            Command::NewCurrentUuid {
                clear_bitmap,
                targets,
            } => self.ask(
                "new-current-uuid",
                &targets.targets,
                Ask::NewCurrentUuid { clear_bitmap },
            ),
            Command::WaitConnect(wait) => self.wait("wait-connect", &wait),
            Command::WaitSync(wait) => self.wait("wait-sync", &wait),
            Command::Status(status) => self.status(&status),
            Command::Role(targets) => self.role(&targets.targets),
            Command::Cstate(targets) => self.cstate(&targets.targets),
            Command::Dstate(targets) => self.dstate(&targets.targets),
            Command::ShowGi(targets) => self.generations("show-gi", &targets.targets),
            Command::GetGi(targets) => self.generations("get-gi", &targets.targets),
            Command::Invalidate(targets) => self.invalidate(&targets.targets),
            Command::Outdate(targets) => self.outdate(&targets.targets),
            Command::CreateMd {
                force,
                max_peers,
                targets,
            } => self.create_md(force, max_peers, &targets.targets),
            Command::DumpMd { force, targets } => self.dump_md(force, &targets.targets),
            Command::WipeMd { force, targets } => self.wipe_md(force, &targets.targets),
            Command::ApplyAl(targets) => self.apply_al(&targets.targets),
            Command::Dump { targets } => self.dump(&targets),
            Command::ShNop { targets } => self.sh_nop(&targets),
            Command::ShResources => self.sh_resources(),
            Command::ShResource(targets) => self.sh_resource(&targets.targets),
            Command::ShDev(targets) => self.sh_dev(&targets.targets),
            Command::ShLlDev(targets) => self.sh_ll_dev(&targets.targets),
            Command::ShMdDev(targets) => self.sh_md_dev(&targets.targets),
            Command::ShMdIdx(targets) => self.sh_md_idx(&targets.targets),
            Command::ShMinor(targets) => self.sh_minor(&targets.targets),
            Command::ShIp(targets) => self.sh_ip(&targets.targets),
            Command::Keygen { force, output } => {
                if self.global.dry_run {
                    say!("keygen {}", output.display());
                    return Ok(());
                }
                crate::keygen::keygen(&output, force)
                    .map_err(|error| Failure::execution(format!("{error:#}")))?;
                say!(
                    "Key written to {}. Copy it to every node of the cluster, owner root, mode 0400.",
                    output.display()
                );
                Ok(())
            }
        }
    }
}
