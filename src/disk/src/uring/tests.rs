//! Fallbacks that the kernels and file systems at hand would not take by themselves.

use super::*;
use crate::open::OpenOptions;
use crate::operation::ReactorExt;

/// Carries out a discard and a write of zeroes on `path` after the faster ways were found missing; what is then read.
async fn without_fallocate(path: &std::path::Path) -> (Vec<u8>, Vec<u8>) {
    let reactor = UringReactor::new(UringOptions::default(), Pool::default()).expect("ring");
    let device = reactor.attach(crate::open(path, OpenOptions::default()).expect("open"));
    device.device.no_punch.set(true);
    device.device.no_zero_range.set(true);
    let carry_out = async |operation: Operation| {
        device.submit(0, operation).expect("below the limit");
        let mut completions = Vec::new();
        reactor.completed().await;
        reactor.take_completions(&mut completions);
        completions.remove(0).result.expect("success")
    };
    let payload = reactor.pool().copy_from(&[7; 4 << 20]);
    carry_out(Operation::Write {
        offset: 0,
        payload,
        durable: false,
    })
    .await;
    carry_out(Operation::Discard {
        offset: 65536,
        length: 65536,
    })
    .await;
    let discarded = carry_out(Operation::Read {
        offset: 0,
        length: 262_144,
    })
    .await
    .expect("data");
    carry_out(Operation::WriteZeroes {
        offset: 8192,
        length: 3 << 20,
        may_unmap: true,
    })
    .await;
    let zeroed = carry_out(Operation::Read {
        offset: 0,
        length: 4 << 20,
    })
    .await
    .expect("data");
    (discarded.to_vec(), zeroed.to_vec())
}

fn assert_only_zero(bytes: &[u8], start: usize, end: usize) {
    let wrong = bytes
        .iter()
        .enumerate()
        .position(|(at, &byte)| (byte == 0) != (start..end).contains(&at));
    assert_eq!(wrong, None, "first byte that is not as expected");
}

fn block_on<T>(body: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("runtime");
    runtime.block_on(body)
}

fn file_of_8_mebibytes() -> (tempfile::TempDir, std::path::PathBuf) {
    let folder = tempfile::tempdir().expect("temporary folder");
    let path = folder.path().join("disk");
    std::fs::File::create(&path)
        .and_then(|file| file.set_len(8 << 20))
        .expect("disk file");
    (folder, path)
}

#[test]
fn file_without_fallocate_ignores_discards_and_gets_zeroes_written() {
    let (_folder, path) = file_of_8_mebibytes();
    let (discarded, zeroed) = block_on(without_fallocate(&path));
    assert_only_zero(&discarded, 0, 0);
    assert_only_zero(&zeroed, 8192, 8192 + (3 << 20));
}

/// The command exists since Linux 6.12; without it the discard is a hint that has no effect.
#[test]
fn block_device_without_zeroing_discard_gets_the_discard_command() {
    let run = |program: &str, arguments: &[&str]| {
        let output = std::process::Command::new(program)
            .args(arguments)
            .output()
            .ok()?;
        output
            .status
            .success()
            .then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
    };
    let (_folder, file) = file_of_8_mebibytes();
    let attach = || {
        run(
            "losetup",
            &["--find", "--show", file.to_str().expect("plain path")],
        )
    };
    let attached = nix::unistd::geteuid()
        .is_root()
        .then(|| (0..20).find_map(|_| attach()))
        .flatten();
    let Some(path) = attached else {
        eprintln!("skipped: needs root and losetup");
        return;
    };
    let (discarded, zeroed) = block_on(without_fallocate(std::path::Path::new(&path)));
    run("losetup", &["--detach", &path]);
    let release = nix::sys::utsname::uname()
        .expect("uname")
        .release()
        .to_string_lossy()
        .into_owned();
    let mut numbers = release
        .split(['.', '-'])
        .map_while(|number| number.parse::<u32>().ok());
    if (numbers.next(), numbers.next()) >= (Some(6), Some(12)) {
        assert_only_zero(&discarded, 65536, 131_072);
    } else {
        assert_only_zero(&discarded, 0, 0);
    }
    assert_only_zero(&zeroed, 8192, 8192 + (3 << 20));
}

#[test]
fn durable_write_is_followed_by_a_flush_where_the_device_has_no_such_writes() {
    let directory = tempfile::tempdir().expect("temporary directory");
    let path = directory.path().join("disk");
    std::fs::write(&path, vec![0; 1 << 20]).expect("file");
    block_on(async {
        let reactor = UringReactor::new(UringOptions::default(), Pool::default()).expect("ring");
        let device = reactor.attach(crate::open(&path, OpenOptions::default()).expect("open"));
        for (missing, flushes) in [(false, 0), (true, 1)] {
            device.device.no_durable_writes.set(missing);
            let operation = Operation::Write {
                offset: 0,
                payload: reactor.pool().copy_from(&[7; 4096]),
                durable: true,
            };
            device.submit(0, operation).expect("below the limit");
            let mut completions = Vec::new();
            reactor.completed().await;
            assert_eq!(reactor.take_completions(&mut completions), 1);
            assert_eq!(completions.remove(0).result.expect("success"), None);
            assert_eq!(reactor.statistics().flushed_after, flushes);
        }
    });
}

#[test]
fn kernel_is_told_which_writes_are_to_be_durable() {
    let (_folder, path) = file_of_8_mebibytes();
    block_on(async {
        let reactor = UringReactor::new(UringOptions::default(), Pool::default()).expect("ring");
        let device = reactor.attach(crate::open(&path, OpenOptions::default()).expect("open"));
        for (durable, flags) in [(true, nix::libc::RWF_DSYNC), (false, 0)] {
            let operation = Operation::Write {
                offset: 0,
                payload: reactor.pool().copy_from(&[7; 4096]),
                durable,
            };
            device.submit(0, operation).expect("below the limit");
            let mut queue = reactor.core.queue.borrow_mut();
            let mut transfer = queue.pop_front().expect("it waits for the next round");
            assert_eq!(transfer.rw_flags(), flags, "durable: {durable}");
        }
    });
}
