//! The daemon under memory pressure: the kernel must never have to write to our device to give us memory.
//!
//! A program that serves the device under a mounted file system is part of the way that frees memory. Three things keep it from waiting
//! for itself: its disks are opened with O_DIRECT (elsewhere), its pages are locked so that none has to be read back, and its
//! allocations never start writeback (`PR_SET_IO_FLUSHER`). When memory runs out all the same, others are ended before it.

use nix::errno::Errno;
use nix::sys::mman::{MlockAllFlags, mlockall};
use nix::sys::resource::{RLIM_INFINITY, Resource, getrlimit};

/// Protects this process and every thread that it starts later. Gives a line for each protection that the system refuses.
///
/// Call it before the first thread is started: the flag is inherited, never spread.
#[must_use]
pub fn protect() -> Vec<String> {
    let mut refused = Vec::new();
    if let Err(errno) = set_io_flusher() {
        let needs = match errno {
            Errno::EPERM => " (it needs CAP_SYS_RESOURCE)",
            Errno::EINVAL => " (it needs Linux 5.6)",
            _ => "",
        };
        refused.push(format!("PR_SET_IO_FLUSHER: {errno}{needs}"));
    }
    if let Err(text) = lock_memory() {
        refused.push(text);
    }
    if let Err(error) = spare_from_oom_killer() {
        refused.push(format!("oom_score_adj: {error}"));
    }
    refused
}

/// Has others ended first when memory runs out, unless that was arranged already.
fn spare_from_oom_killer() -> std::io::Result<()> {
    /// As good as never, without being an exception for ever.
    const SCORE: i32 = -900;
    let path = "/proc/self/oom_score_adj";
    let now: Option<i32> = std::fs::read_to_string(path)?.trim().parse().ok();
    if now.is_some_and(|now| now <= SCORE) {
        return Ok(());
    }
    std::fs::write(path, SCORE.to_string())
}

/// True if this process may configure devices (`CAP_SYS_ADMIN`).
#[must_use]
pub fn may_configure_devices() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    // Where it cannot be told, the driver's answer tells.
    capabilities(&status).is_none_or(|effective| effective & (1 << CAP_SYS_ADMIN) != 0)
}

/// From `linux/capability.h`.
const CAP_SYS_ADMIN: u32 = 21;

/// The effective capabilities in the text of `/proc/PID/status`.
fn capabilities(status: &str) -> Option<u64> {
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))?;
    u64::from_str_radix(line.trim(), 16).ok()
}

/// Locks every page that is used from now on, without reserving what is never touched.
fn lock_memory() -> Result<(), String> {
    // With a limit, growing beyond it would fail later, which is worse than being swapped.
    let unlimited = nix::unistd::geteuid().is_root()
        || getrlimit(Resource::RLIMIT_MEMLOCK).is_ok_and(|(soft, _)| soft == RLIM_INFINITY);
    if !unlimited {
        return Err("memory is not locked: it needs root or LimitMEMLOCK=infinity".to_owned());
    }
    let all = MlockAllFlags::MCL_CURRENT | MlockAllFlags::MCL_FUTURE;
    let as_touched = MlockAllFlags::from_bits_retain(nix::libc::MCL_ONFAULT);
    mlockall(all | as_touched).map_err(|errno| format!("memory is not locked: {errno}"))
}

fn set_io_flusher() -> Result<(), Errno> {
    /// From `linux/prctl.h`.
    const PR_SET_IO_FLUSHER: nix::libc::c_int = 57;
    let (on, unused): (nix::libc::c_ulong, nix::libc::c_ulong) = (1, 0);
    // SAFETY: this prctl takes plain numbers and touches no memory of the process.
    let result = unsafe { nix::libc::prctl(PR_SET_IO_FLUSHER, on, unused, unused, unused) };
    Errno::result(result).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn capabilities_are_read_from_the_kernels_mask() {
        let status = |mask: &str| format!("Name:\tqrbdd\nCapEff:\t{mask}\nCapBnd:\t0\n");
        assert_eq!(capabilities(&status("0000000000200000")), Some(1 << 21));
        assert_eq!(capabilities(&status("0")), Some(0));
        assert_eq!(capabilities("Name:\tqrbdd\n"), None);
    }

    #[test]
    fn what_the_system_refuses_is_named_with_its_remedy() {
        for line in protect() {
            assert!(
                line.starts_with("PR_SET_IO_FLUSHER: ")
                    || line.starts_with("oom_score_adj: ")
                    || line.starts_with("memory is not locked: "),
                "{line}"
            );
        }
    }
}
