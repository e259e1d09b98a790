//! `qrbdadm`, also called as `drbdadm` and `drbdsetup`: see [`qrbd_tools::admin`].

use std::process::ExitCode;

fn main() -> ExitCode {
    let words = std::env::args_os()
        .map(|word| word.to_string_lossy().into_owned())
        .collect();
    ExitCode::from(qrbd_tools::admin::run(words))
}
