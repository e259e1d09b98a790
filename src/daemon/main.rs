//! `qrbdd`, the QRBD daemon.

use std::io::IsTerminal as _;
use std::process::ExitCode;

use clap::Parser;
use tracing_subscriber::EnvFilter;

fn main() -> ExitCode {
    let inherited = qrbd_kernel_device::inherit::take();
    let arguments = qrbdd::Arguments::parse();
    // What the transport says of sessions, each resource says in its own words.
    let filter = EnvFilter::try_from_env("QRBD_LOG")
        .unwrap_or_else(|_| EnvFilter::new("info,qrbd_transport=error"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .with_target(false)
        .init();
    // A bug must not leave half a daemon: the restart recovers.
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        report(panic);
        std::process::abort();
    }));
    match qrbdd::run(arguments, inherited) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("qrbdd: {error:#}");
            ExitCode::FAILURE
        }
    }
}
