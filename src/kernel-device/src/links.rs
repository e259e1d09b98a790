//! The names of a device: `/dev/qrbd/by-res/RES/VOL`, `/dev/drbdN` for files and scripts written for DRBD, and a name of the file's own.
//!
//! Invariant: a name that something else has (a device of DRBD itself, a file) is left alone.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::Places;

/// The volume and device that names lead to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Names {
    /// The resource.
    pub resource: String,
    /// The volume.
    pub volume: u16,
    /// N of `/dev/nbdN`.
    pub index: u32,
    /// A further name below `/dev`.
    pub own: Option<String>,
}

impl Names {
    fn paths(&self, places: &Places) -> Vec<PathBuf> {
        let by_resource = places
            .dev
            .join("qrbd/by-res")
            .join(&self.resource)
            .join(self.volume.to_string());
        let like_drbd = places.dev.join(format!("drbd{}", self.index));
        let own = self.own.as_ref().map(|name| places.dev.join(name));
        [by_resource, like_drbd].into_iter().chain(own).collect()
    }

    /// Makes the names. Gives a line for each that could not be made.
    #[must_use]
    pub fn place(&self, places: &Places) -> Vec<String> {
        let device = places.device(self.index);
        self.paths(places)
            .iter()
            .filter_map(|path| {
                let error = link(path, &device).err()?;
                Some(format!("{} is not made: {error}", path.display()))
            })
            .collect()
    }

    /// Removes the names that lead to the device.
    pub fn remove(&self, places: &Places) {
        let device = places.device(self.index);
        for path in self.paths(places) {
            if fs::read_link(&path).is_ok_and(|target| target == device) {
                // Gone already is as good.
                let _ = fs::remove_file(&path);
            }
        }
        let of_resource = places.dev.join("qrbd/by-res").join(&self.resource);
        // Not while another volume is in it.
        let _ = fs::remove_dir(of_resource);
    }
}

/// Makes `path` lead to `device`, in the place of another link to an NBD device.
fn link(path: &Path, device: &Path) -> io::Result<()> {
    match fs::symlink_metadata(path) {
        Ok(found) if found.is_symlink() => {
            if fs::read_link(path)? == device {
                return Ok(());
            }
            fs::remove_file(path)?;
        }
        Ok(_) => {
            let text = "something else is there";
            return Err(io::Error::new(io::ErrorKind::AlreadyExists, text));
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    if let Some(directory) = path.parent() {
        fs::create_dir_all(directory)?;
    }
    std::os::unix::fs::symlink(device, path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::holders::tests::FakeKernel;

    fn names() -> Names {
        Names {
            resource: "r0".to_owned(),
            volume: 1,
            index: 3,
            own: Some("mail/spool".to_owned()),
        }
    }

    #[test]
    fn a_device_gets_its_names_and_loses_them_again() {
        let kernel = FakeKernel::new();
        let dev = &kernel.places.dev;
        assert_eq!(names().place(&kernel.places), Vec::<String>::new());
        for name in ["qrbd/by-res/r0/1", "drbd3", "mail/spool"] {
            assert_eq!(fs::read_link(dev.join(name)).unwrap(), dev.join("nbd3"));
        }
        // Again, and after a move.
        assert_eq!(names().place(&kernel.places), Vec::<String>::new());
        let moved = Names {
            index: 4,
            ..names()
        };
        assert_eq!(moved.place(&kernel.places), Vec::<String>::new());
        assert_eq!(
            fs::read_link(dev.join("mail/spool")).unwrap(),
            dev.join("nbd4")
        );
        // The old device's names that lead elsewhere now stay.
        names().remove(&kernel.places);
        assert!(dev.join("mail/spool").is_symlink() && !dev.join("drbd3").is_symlink());
        moved.remove(&kernel.places);
        assert!(!dev.join("mail/spool").is_symlink());
        assert!(!dev.join("qrbd/by-res/r0").exists());
    }

    #[test]
    fn a_name_that_something_else_has_is_left_alone() {
        let kernel = FakeKernel::new();
        kernel.file("dev/drbd3", "a device of DRBD");
        let told = names().place(&kernel.places);
        assert_eq!(told.len(), 1);
        assert!(told[0].ends_with("drbd3 is not made: something else is there"));
        names().remove(&kernel.places);
        assert_eq!(kernel.read("dev/drbd3"), "a device of DRBD");
    }
}
