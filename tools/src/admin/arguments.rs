//! The command line of `qrbdadm`: DRBD's words, and the old spellings that stand in scripts.
//!
//! Old spellings are brought into today's order before they are parsed: options for the command may stand behind `--` in
//! front of it (`-- --overwrite-data-of-peer primary r0`) or behind a `--` after it.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};
use qrbd_control::Target;

/// Administration of QRBD, the QUIC Replicated Block Device.
#[derive(Clone, Debug, PartialEq, Eq, Parser)]
#[command(name = "qrbdadm", version, max_term_width = 100)]
pub struct Arguments {
    /// Options of all commands.
    #[command(flatten)]
    pub global: Global,
    /// The command.
    #[command(subcommand)]
    pub command: Command,
}

/// Options of all commands.
#[derive(Clone, Debug, PartialEq, Eq, Args)]
pub struct Global {
    /// Configuration file.
    #[arg(short = 'c', long, value_name = "FILE", env = "QRBD_CONFIG", default_value = qrbd_config::DEFAULT_CONFIG_FILE)]
    pub config_file: PathBuf,
    /// Which node of the configuration this is [default: the host name].
    #[arg(long, value_name = "NAME", env = "QRBD_NODE")]
    pub node: Option<String>,
    /// Directory of the control socket.
    #[arg(
        long,
        value_name = "DIR",
        env = "QRBD_RUN_DIR",
        default_value = "/run/qrbd"
    )]
    pub run_dir: PathBuf,
    /// Directory for what is remembered outside of the disks: how large they were, so that the metadata of one that grew are found.
    #[arg(
        long,
        value_name = "DIR",
        env = "QRBD_STATE_DIR",
        default_value = "/var/lib/qrbd"
    )]
    pub state_dir: PathBuf,
    /// Print what would be done, do nothing.
    #[arg(short = 'd', long)]
    pub dry_run: bool,
    /// Print what is done.
    #[arg(short = 'v', action = clap::ArgAction::Count)]
    pub verbose: u8,
}

/// Resources a command is aimed at.
#[derive(Clone, Debug, PartialEq, Eq, Args)]
pub struct Targets {
    /// RES, RES/VOL, RES:PEER, RES:PEER/VOL, minor-N, a device, or all.
    #[arg(value_name = "TARGET", required = true)]
    pub targets: Vec<String>,
}

/// Options of `wait-connect` and `wait-sync`.
#[derive(Clone, Debug, PartialEq, Eq, Args)]
pub struct Wait {
    /// Seconds to wait, 0 for ever [default: wfc-timeout of the configuration].
    #[arg(
        long = "wfc-timeout",
        visible_alias = "timeout",
        short = 't',
        value_name = "SECONDS"
    )]
    pub timeout: Option<u32>,
    /// Accepted for old scripts: never longer than --wfc-timeout, which is the limit that counts.
    #[arg(long, value_name = "SECONDS")]
    pub degr_wfc_timeout: Option<u32>,
    /// Accepted for old scripts: never longer than --wfc-timeout, which is the limit that counts.
    #[arg(long, value_name = "SECONDS")]
    pub outdated_wfc_timeout: Option<u32>,
    /// Resources.
    #[command(flatten)]
    pub targets: Targets,
}

/// Options of `status`.
#[derive(Clone, Debug, PartialEq, Eq, Args)]
pub struct Status {
    /// JSON, as drbdsetup status --json prints it.
    #[arg(short, long)]
    pub json: bool,
    /// All fields; twice for more.
    #[arg(long, action = clap::ArgAction::Count)]
    pub verbose: u8,
    /// Counters.
    #[arg(short, long)]
    pub statistics: bool,
    /// Repeat until interrupted, with progress of what is being synchronised.
    #[arg(short, long, conflicts_with = "json")]
    pub watch: bool,
    /// Accepted for old scripts: the output has no colours.
    #[arg(long, value_name = "WHEN", hide = true)]
    pub color: Option<String>,
    /// Resources; all if none is named.
    #[arg(value_name = "TARGET")]
    pub targets: Vec<String>,
}

/// What to do.
#[derive(Clone, Debug, PartialEq, Eq, Subcommand)]
pub enum Command {
    /// Configure a resource, attach its disks and connect.
    Up(Targets),
    /// Demote, disconnect, detach and forget a resource.
    Down(Targets),
    /// Make the running resource equal to the configuration file.
    Adjust(Targets),
    /// Take the backing device into use.
    Attach(Targets),
    /// Release the backing device.
    Detach {
        /// Do not wait for I/O on the backing device.
        #[arg(short, long)]
        force: bool,
        /// Resources.
        #[command(flatten)]
        targets: Targets,
    },
    /// Leave StandAlone.
    Connect {
        /// In a split brain the changes of this node are thrown away.
        #[arg(long)]
        discard_my_data: bool,
        /// Resources.
        #[command(flatten)]
        targets: Targets,
    },
    /// Go StandAlone.
    Disconnect {
        /// Do not ask the peer.
        #[arg(short, long)]
        force: bool,
        /// Resources.
        #[command(flatten)]
        targets: Targets,
    },
    /// Promote.
    Primary {
        /// Declare this node's data UpToDate although it is not known to be (first initial sync, disaster).
        #[arg(
            short,
            long,
            visible_alias = "overwrite-data-of-peer",
            short_alias = 'o'
        )]
        force: bool,
        /// Resources.
        #[command(flatten)]
        targets: Targets,
    },
    /// Demote.
    Secondary {
        /// Fail the I/O of those who hold the device open.
        #[arg(short, long)]
        force: bool,
        /// Resources.
        #[command(flatten)]
        targets: Targets,
    },
    /// Print this node's role, or with RES:PEER the peer's.
    Role(Targets),
    /// Print the connection state.
    Cstate(Targets),
    /// Print the disk states, this node's first.
    Dstate(Targets),
    /// Print the state of resources.
    Status(Status),
    /// Wait until connected.
    #[command(visible_alias = "wait-con")]
    WaitConnect(Wait),
    /// Wait until no resync runs.
    WaitSync(Wait),
    /// Declare the local data bad: it is replaced by the peer's.
    Invalidate(Targets),
    /// Declare the peer's data bad: it is replaced by this node's.
    InvalidateRemote(Targets),
    /// Mark the local data Outdated.
    Outdate(Targets),
    /// Hold the resync.
    PauseSync(Targets),
    /// Let a held resync go on.
    ResumeSync(Targets),
    /// Freeze application I/O.
    SuspendIo(Targets),
    /// Let application I/O go on, also without having fenced a lost peer.
    ResumeIo(Targets),
    /// The backing disks of every node have grown: use what was added (on the Primary).
    Resize {
        /// At most so large: a number with a unit, s for sectors of 512 bytes, k, M, G or T for powers of 1024.
        #[arg(long, value_name = "SIZE", value_parser = size)]
        size: Option<u64>,
        /// What was added is the same on every node: do not copy it.
        #[arg(long)]
        assume_clean: bool,
        /// Resources.
        #[command(flatten)]
        targets: Targets,
    },
    /// Begin a new data generation.
    NewCurrentUuid {
        /// Declare just created mirrors identical: no initial sync.
        #[arg(short = 'C', long)]
        clear_bitmap: bool,
        /// Resources.
        #[command(flatten)]
        targets: Targets,
    },
    /// Print generation identifiers with a legend.
    ShowGi(Targets),
    /// Print generation identifiers.
    GetGi(Targets),
    /// Write fresh metadata.
    CreateMd {
        /// Do not ask, whatever is on the disk.
        #[arg(short, long)]
        force: bool,
        /// Peers that the metadata has room for.
        #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(1..=31))]
        max_peers: Option<u8>,
        /// Resources.
        #[command(flatten)]
        targets: Targets,
    },
    /// Print the metadata as text.
    DumpMd {
        /// Also if the activity log is not applied.
        #[arg(short, long)]
        force: bool,
        /// Resources.
        #[command(flatten)]
        targets: Targets,
    },
    /// Erase the metadata.
    WipeMd {
        /// Do not ask.
        #[arg(short, long)]
        force: bool,
        /// Resources.
        #[command(flatten)]
        targets: Targets,
    },
    /// Mark what the activity log names out of sync, as an attach after a crash does.
    ApplyAl(Targets),
    /// Print the configuration as it was understood.
    Dump {
        /// Resources; all if none is named.
        #[arg(value_name = "TARGET")]
        targets: Vec<String>,
    },
    /// Check the configuration only.
    ShNop {
        /// Resources; all if none is named.
        #[arg(value_name = "TARGET")]
        targets: Vec<String>,
    },
    /// Print the names of the resources of this node in one line.
    ShResources,
    /// Print the name of the resource.
    ShResource(Targets),
    /// Print the device of each volume.
    ShDev(Targets),
    /// Print the backing device of each volume.
    ShLlDev(Targets),
    /// Print the metadata device of each volume.
    ShMdDev(Targets),
    /// Print the metadata index of each volume.
    ShMdIdx(Targets),
    /// Print the device minor of each volume.
    ShMinor(Targets),
    /// Print the address of this node.
    ShIp(Targets),
    /// Make the key file that all nodes of a cluster share.
    Keygen {
        /// Replace an existing file.
        #[arg(short, long)]
        force: bool,
        /// Where to write it.
        #[arg(short, long, value_name = "FILE", default_value = crate::keygen::DEFAULT_KEY_FILE)]
        output: PathBuf,
    },
}

/// Options that take their value as a separate word; needed to find the command behind them.
const WITH_VALUE: &[&str] = &[
    "-c",
    "--config-file",
    "--node",
    "--run-dir",
    "--state-dir",
    "-t",
    "--timeout",
    "--wfc-timeout",
    "--degr-wfc-timeout",
    "--outdated-wfc-timeout",
    "--max-peers",
];

/// Brings old spellings into today's order. The first word is the program.
#[must_use]
pub fn normalise(words: Vec<String>) -> Vec<String> {
    let mut words = words.into_iter();
    let mut ordered: Vec<String> = words.next().into_iter().collect();
    // Before the command: global options, and behind `--` options of the command.
    let mut postponed = Vec::new();
    let mut separated = false;
    let mut command = None;
    while let Some(word) = words.next() {
        if word == "--" {
            separated = true;
        } else if word.starts_with('-') && word.len() > 1 {
            let takes_value = WITH_VALUE.contains(&word.as_str());
            let list = if separated {
                &mut postponed
            } else {
                &mut ordered
            };
            list.push(word);
            if takes_value {
                list.extend(words.next());
            }
        } else {
            command = Some(word);
            break;
        }
    }
    let is_status = command.as_deref() == Some("status");
    ordered.extend(command);
    ordered.append(&mut postponed);
    for word in words {
        match word.as_str() {
            // What follows a `--` behind the command are options of the command, not targets.
            "--" => {}
            // Behind the command -v belongs to it.
            "-v" if is_status => ordered.push("--verbose".to_owned()),
            "-vv" if is_status => ordered.extend(["--verbose".to_owned(), "--verbose".to_owned()]),
            _ => ordered.push(word),
        }
    }
    ordered
}

/// The program's faces: which name it was called by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Face {
    /// `qrbdadm`.
    Qrbdadm,
    /// `drbdadm`.
    Drbdadm,
    /// `drbdsetup`: targets are taken as they are, without the configuration.
    Drbdsetup,
}

impl Face {
    /// The face of a program path.
    #[must_use]
    pub fn of(program: &str) -> Face {
        match program.rsplit('/').next() {
            Some("drbdadm") => Face::Drbdadm,
            Some("drbdsetup") => Face::Drbdsetup,
            _ => Face::Qrbdadm,
        }
    }

    /// The name in messages.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Face::Qrbdadm => "qrbdadm",
            Face::Drbdadm => "drbdadm",
            Face::Drbdsetup => "drbdsetup",
        }
    }
}

/// A size in bytes. The unit is needed: tools differ in what a bare number means.
fn size(text: &str) -> Result<u64, String> {
    let (number, unit) = text.split_at(
        text.find(|c: char| !c.is_ascii_digit())
            .unwrap_or(text.len()),
    );
    let factor = match unit {
        "s" => 512,
        "k" | "K" => 1 << 10,
        "m" | "M" => 1 << 20,
        "g" | "G" => 1 << 30,
        "t" | "T" => 1 << 40,
        _ => return Err("a size is a number with one of the units s, k, M, G, T".to_owned()),
    };
    let bytes = number
        .parse()
        .ok()
        .and_then(|number: u64| number.checked_mul(factor));
    bytes.ok_or_else(|| format!("'{text}' is no size"))
}

/// Word of a target that is not a resource name: a minor.
#[must_use]
pub fn minor_of(text: &str) -> Option<u32> {
    let number = ["minor-", "/dev/drbd", "/dev/nbd", "/dev/qrbd"]
        .iter()
        .find_map(|prefix| text.strip_prefix(prefix))?;
    if number.is_empty() || !number.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    number.parse().ok()
}

/// The target that `text` names, by its form alone.
///
/// # Errors
/// It is no target.
pub fn parse_target(text: &str) -> Result<Target, qrbd_control::message::TargetError> {
    text.parse()
}
