//! The command line of `qrbdd`.

use std::path::PathBuf;

use clap::Parser;
use clap::builder::{BoolishValueParser, TypedValueParser};

/// The daemon of QRBD, the QUIC Replicated Block Device: one for each node, serves every resource of that node.
///
/// It brings up what was up when it ended without a reboot in between, and what --up names; everything else `qrbdadm up` does.
#[derive(Clone, Debug, PartialEq, Eq, Parser)]
#[command(name = "qrbdd", version, max_term_width = 100)]
pub struct Arguments {
    /// Configuration file.
    #[arg(short = 'c', long, value_name = "FILE", env = "QRBD_CONFIG", default_value = qrbd_config::DEFAULT_CONFIG_FILE)]
    pub config_file: PathBuf,
    /// Which node of the configuration this is [default: the host name].
    #[arg(long, value_name = "NAME", env = "QRBD_NODE")]
    pub node: Option<String>,
    /// Directory of the control socket and the NBD socket.
    #[arg(
        long,
        value_name = "DIR",
        env = "QRBD_RUN_DIR",
        default_value = "/run/qrbd"
    )]
    pub run_dir: PathBuf,
    /// Directory for what the daemon remembers outside of its disks beyond a reboot: how large they were, so that the metadata of one
    /// that has grown meanwhile are found. qrbdadm looks there too.
    #[arg(
        long,
        value_name = "DIR",
        env = qrbd_control::last_known::STATE_DIRECTORY_VARIABLE,
        default_value = qrbd_control::last_known::DEFAULT_STATE_DIRECTORY
    )]
    pub state_dir: PathBuf,
    /// The key that all nodes of the cluster share (qrbdadm keygen), for resources without a shared-secret.
    #[arg(
        long,
        value_name = "FILE",
        env = "QRBD_KEY_FILE",
        default_value = "/etc/qrbd/authkey"
    )]
    pub key_file: PathBuf,
    /// Bring these resources up at the start: a name, or all. May be repeated.
    #[arg(long, value_name = "RES")]
    pub up: Vec<String>,
    /// Whether to take over what an earlier daemon of this run directory had up, and the kernel devices that it left: yes or no.
    #[arg(
        long,
        value_name = "YES|NO",
        env = "QRBD_ADOPT",
        default_value = "yes",
        value_parser = yes_or_no()
    )]
    pub adopt: bool,
    /// How long requests to a kernel device wait while no daemon serves it, in seconds; then they fail.
    #[arg(
        long,
        value_name = "SECONDS",
        env = "QRBD_DEAD_CONNECTION_TIMEOUT",
        default_value_t = 86_400,
        value_parser = clap::value_parser!(u32).range(1..=31_536_000)
    )]
    pub dead_connection_timeout: u32,
    /// How long the daemon looks again for what a client or the peer waits for before it sleeps, in microseconds; it does so only while
    /// waits are short, and on more than one processor. With more than four operations under way three times as long, unless others want
    /// the processor. 0: never.
    #[arg(
        long,
        value_name = "MICROSECONDS",
        env = "QRBD_BUSY_WAIT",
        default_value_t = 200,
        value_parser = clap::value_parser!(u32).range(..=10_000)
    )]
    pub busy_wait: u32,
    /// Stay in the foreground: the daemon always does, the option is there for init scripts.
    #[arg(long)]
    pub foreground: bool,
}

/// `yes` and `no`, with what else people write for them.
fn yes_or_no() -> impl TypedValueParser<Value = bool> {
    BoolishValueParser::new()
}
