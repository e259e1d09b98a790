//! Serves memory over NBD on a Unix socket, to try any client against this crate:
//! `cargo run -p qrbd-nbd --example memory_server -- /tmp/nbd.sock 1073741824`, then
//! `nbdinfo --list 'nbd+unix://?socket=/tmp/nbd.sock'`.

#[path = "../tests/support/memory.rs"]
mod memory;

use std::path::Path;
use std::process::ExitCode;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let (socket, size) = match arguments.as_slice() {
        [socket, size] => (Path::new(socket), size.parse::<u64>()),
        _ => {
            eprintln!("usage: memory_server SOCKET BYTES");
            return ExitCode::from(2);
        }
    };
    let Some(size) = size
        .ok()
        .filter(|size| size.is_multiple_of(4096) && *size <= 1 << 40)
    else {
        eprintln!("BYTES must be a multiple of 4096 up to 1 TiB");
        return ExitCode::from(2);
    };
    if let Err(error) = memory::MemoryServer::new(size).listen(socket) {
        eprintln!("{}: {error}", socket.display());
        return ExitCode::FAILURE;
    }
    loop {
        std::thread::park();
    }
}
