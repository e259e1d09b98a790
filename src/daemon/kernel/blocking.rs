//! What is asked of the kernel about a device, step by step. Everything here waits and runs on a helper thread: while the kernel connects a
//! device it reads from it, and those reads are served by the daemon's one thread.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::process::Command;
use std::time::{Duration, Instant};

use qrbd_kernel_device::holders::{self, Holder};
use qrbd_kernel_device::links::Names;
use qrbd_kernel_device::process::may_configure_devices;
use qrbd_kernel_device::sysfs::Device;
use qrbd_kernel_device::{Connect, Nbd, NbdError, Places, Unavailable};

/// How soon a request whose socket died is sent again once there is another one. `TIMEOUT` stays 0, so this cuts nobody off.
const REQUEST_TIMER: Duration = Duration::from_secs(1);
/// Largest request in KiB: fewer and larger ones cost less than the kernel's 128.
const LARGEST_REQUEST_KIB: u32 = 1024;
/// How long the device's node and size may take to appear.
const APPEAR_PATIENCE: Duration = Duration::from_secs(10);
/// How long a device may take to go after it was disconnected: as long as somebody closes it.
const GONE_PATIENCE: Duration = Duration::from_secs(3);
/// How long those who only look at a device (udev, a `mkfs` that has just ended) may have it open before they count as holders.
const LOOK_PATIENCE: Duration = Duration::from_secs(3);
/// Between two looks.
const STEP: Duration = Duration::from_millis(20);

/// What is at a device's place.
#[derive(Debug)]
pub(super) enum Found {
    /// Nothing.
    Free,
    /// A device of this volume, from an earlier daemon.
    Ours,
    /// Somebody else's, in words.
    Foreign(String),
}

/// Looks without touching the device and without privilege. Does not wait: may run anywhere.
pub(super) fn look(places: &Places, index: u32, backend: &str) -> Found {
    let device = Device::new(places, index);
    let Some(process) = device.process() else {
        return Found::Free;
    };
    let path = places.device(index);
    match device.backend() {
        Some(found) if found == backend => Found::Ours,
        Some(found) => Found::Foreign(format!(
            "{} is connected to '{found}' (by process {process}): disconnect that, or use another minor for this volume",
            path.display()
        )),
        None => Found::Foreign(format!(
            "{} is connected by process {process} without an identifier (nbd-client?): disconnect it ('nbd-client -d {}'), or use \
             another minor for this volume",
            path.display(),
            path.display()
        )),
    }
}

/// The driver, loaded if need be.
///
/// # Errors
/// A text that says what is missing.
pub(super) fn driver() -> Result<Nbd, String> {
    if !may_configure_devices() {
        return Err(
            "qrbdd has not the right to: it needs CAP_SYS_ADMIN (run it as root)".to_owned(),
        );
    }
    match Nbd::open() {
        Ok(nbd) => return Ok(nbd),
        Err(Unavailable::NoDriver) => {}
        Err(error) => return Err(error.to_string()),
    }
    let loaded = Command::new("modprobe").arg("nbd").output();
    let said = match loaded {
        Ok(output) if output.status.success() => "it was loaded".to_owned(),
        Ok(output) => {
            let text = String::from_utf8_lossy(&output.stderr);
            format!("'modprobe nbd' says: {}", text.trim().replace('\n', "; "))
        }
        Err(error) => format!("'modprobe nbd' cannot be run: {error}"),
    };
    Nbd::open().map_err(|error| {
        let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
        match error {
            Unavailable::NoDriver => {
                let kernel = kernel.trim();
                format!("this kernel ({kernel}) has no NBD driver (module 'nbd'); {said}")
            }
            error => error.to_string(),
        }
    })
}

/// What a device is connected with.
#[derive(Clone, Debug)]
pub(super) struct Wanted {
    pub(super) index: u32,
    pub(super) size: u64,
    pub(super) block_size: u32,
    pub(super) flags: u16,
    pub(super) dead_connection_timeout: Duration,
    pub(super) backend: String,
    pub(super) names: Names,
}

/// Connects a device, sets it up and waits until it can be opened. Gives lines for the administrator.
///
/// # Errors
/// A text; the device is not connected then.
pub(super) fn connect(
    places: &Places,
    wanted: &Wanted,
    sockets: Vec<UnixStream>,
) -> Result<Vec<String>, String> {
    let sockets: Vec<OwnedFd> = sockets.into_iter().map(OwnedFd::from).collect();
    let mut nbd = driver()?;
    let connect = Connect {
        index: wanted.index,
        size_bytes: wanted.size,
        block_size_bytes: wanted.block_size,
        server_flags: wanted.flags,
        dead_connection_timeout: wanted.dead_connection_timeout,
        backend: &wanted.backend,
        sockets: &sockets,
    };
    nbd.connect(&connect)
        .map_err(|error| match look(places, wanted.index, &wanted.backend) {
            Found::Foreign(text) if error.is_busy() => text,
            _ => error.to_string(),
        })?;
    drop(sockets);
    let mut told = set_up(places, wanted);
    let device = Device::new(places, wanted.index);
    let node = places.device(wanted.index);
    let there = || device.size_bytes() == wanted.size && node.exists();
    if !within(APPEAR_PATIENCE, there) {
        told.push(format!(
            "{} has not appeared with {} bytes within {} s",
            node.display(),
            wanted.size,
            APPEAR_PATIENCE.as_secs()
        ));
    } else if let Err(error) = File::open(&node) {
        // The first opening reads the partition table, here rather than in whoever comes first.
        told.push(format!("{}: {error}", node.display()));
    }
    Ok(told)
}

/// Settings that are no part of the connection.
pub(super) fn set_up(places: &Places, wanted: &Wanted) -> Vec<String> {
    let device = Device::new(places, wanted.index);
    let mut told = wanted.names.place(places);
    let path = places.device(wanted.index);
    if let Err(error) = device.set_request_timer(REQUEST_TIMER) {
        told.push(format!(
            "{}: queue/io_timeout cannot be set ({error}): after a restart of qrbdd requests wait up to 30 s",
            path.display()
        ));
    }
    if let Err(error) = device.set_largest_request(LARGEST_REQUEST_KIB) {
        told.push(format!(
            "{}: queue/max_sectors_kb cannot be set: {error}",
            path.display()
        ));
    }
    told
}

/// Gives a device living sockets in the place of dead ones.
///
/// # Errors
/// What the driver answers.
pub(super) fn replace(
    index: u32,
    backend: &str,
    sockets: Vec<UnixStream>,
) -> Result<(), ReplaceError> {
    let sockets: Vec<OwnedFd> = sockets.into_iter().map(OwnedFd::from).collect();
    let mut nbd = driver().map_err(ReplaceError::NoDriver)?;
    Ok(nbd.replace_sockets(index, backend, &sockets)?)
}

/// Why sockets were not replaced.
#[derive(Debug, thiserror::Error)]
pub(super) enum ReplaceError {
    /// The driver does not answer.
    #[error("{0}")]
    NoDriver(String),
    /// The driver refuses.
    #[error(transparent)]
    Refused(#[from] NbdError),
}

/// Tells a device its size.
///
/// # Errors
/// A text.
pub(super) fn resize(index: u32, backend: &str, size: u64) -> Result<(), String> {
    driver()?
        .resize(index, backend, size)
        .map_err(|error| error.to_string())
}

/// Makes sure that nobody has a device open. With `serves`, its sockets are served, so it can be asked by opening it: the claim keeps
/// everybody else from mounting it until it is dropped.
///
/// # Errors
/// Who has it open.
pub(super) fn claim(
    places: &Places,
    index: u32,
    serves: bool,
) -> Result<Option<File>, Vec<Holder>> {
    let deadline = Instant::now() + LOOK_PATIENCE;
    loop {
        let mut holders = holders::users(places, index);
        let settled = !holders.is_empty();
        let mut claimed = None;
        if holders.is_empty() {
            holders = holders::processes(places, index);
        }
        if holders.is_empty() && serves {
            match holders::claim(places, index) {
                Ok(Some(file)) => claimed = Some(file),
                Ok(None) => holders.push(Holder::Unknown),
                // A device that is not there is open to nobody.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) if error.raw_os_error() == Some(nix::libc::ENXIO) => {}
                Err(_) => holders.push(Holder::Unknown),
            }
        }
        if holders.is_empty() {
            return Ok(claimed);
        }
        if settled || Instant::now() >= deadline {
            return Err(holders);
        }
        std::thread::sleep(STEP);
    }
}

/// Disconnects a device and waits until it is gone.
///
/// # Errors
/// A text, if it is not gone.
pub(super) fn disconnect(
    places: &Places,
    index: u32,
    names: &Names,
    claim: Option<File>,
) -> Result<(), String> {
    let device = Device::new(places, index);
    if device.is_connected() {
        let disconnected = driver()?.disconnect(index);
        // The device goes with the last one who has it open.
        drop(claim);
        names.remove(places);
        match disconnected {
            Err(error) if !error.is_not_configured() => return Err(error.to_string()),
            _ => {}
        }
        if !within(GONE_PATIENCE, || !device.is_connected()) {
            let holders = [
                holders::users(places, index),
                holders::processes(places, index),
            ];
            let names: Vec<String> = holders.iter().flatten().map(ToString::to_string).collect();
            return Err(format!(
                "{} is disconnected, but stays until it is closed: {}",
                places.device(index).display(),
                names.join(", ")
            ));
        }
    }
    names.remove(places);
    Ok(())
}

fn within(patience: Duration, is_true: impl Fn() -> bool) -> bool {
    let deadline = Instant::now() + patience;
    loop {
        if is_true() {
            return true;
        }
        if Instant::now() >= deadline {
            return false;
        }
        std::thread::sleep(STEP);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn places(root: &std::path::Path) -> Places {
        std::fs::create_dir_all(root.join("sys/block/nbd0")).unwrap();
        Places {
            dev: root.join("dev"),
            sys: root.join("sys"),
            proc: root.join("proc"),
        }
    }

    #[test]
    fn a_device_is_ours_by_its_identifier_alone() {
        let root = tempfile::tempdir().unwrap();
        let places = places(root.path());
        let attribute = |name: &str, text: &str| {
            std::fs::write(root.path().join("sys/block/nbd0").join(name), text).unwrap();
        };
        assert!(matches!(look(&places, 0, "qrbd:a:r0/0:1"), Found::Free));
        attribute("pid", "77\n");
        let Found::Foreign(text) = look(&places, 0, "qrbd:a:r0/0:1") else {
            panic!("a device without identifier is not ours");
        };
        assert!(
            text.contains("process 77") && text.contains("nbd-client -d"),
            "{text}"
        );
        attribute("backend", "qrbd:b:r0/0:2\n");
        let Found::Foreign(text) = look(&places, 0, "qrbd:a:r0/0:1") else {
            panic!("another node's device is not ours");
        };
        assert!(text.contains("'qrbd:b:r0/0:2'"), "{text}");
        assert!(matches!(look(&places, 0, "qrbd:b:r0/0:2"), Found::Ours));
    }

    #[test]
    fn who_mounts_a_device_is_named_without_waiting_and_without_touching_it() {
        let root = tempfile::tempdir().unwrap();
        let places = places(root.path());
        std::fs::write(root.path().join("sys/block/nbd0/dev"), "43:0\n").unwrap();
        std::fs::create_dir_all(root.path().join("proc/self")).unwrap();
        let mountinfo = root.path().join("proc/self/mountinfo");
        std::fs::write(&mountinfo, "36 22 43:0 / /data rw - ext4 /dev/nbd0 rw\n").unwrap();
        let holders = claim(&places, 0, true).unwrap_err();
        assert!(holders[0].to_string().ends_with("nbd0 is mounted on /data"));
        std::fs::write(&mountinfo, "").unwrap();
        // There is no node to open: nobody can have it open.
        assert!(claim(&places, 0, true).unwrap().is_none());
    }

    #[test]
    fn a_device_that_is_not_connected_is_gone_already_and_loses_its_names() {
        let root = tempfile::tempdir().unwrap();
        let places = places(root.path());
        let names = Names {
            resource: "r0".to_owned(),
            volume: 0,
            index: 0,
            own: None,
        };
        assert_eq!(names.place(&places), Vec::<String>::new());
        disconnect(&places, 0, &names, None).unwrap();
        assert!(!places.dev.join("drbd0").is_symlink());
    }
}
