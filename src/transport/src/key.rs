//! The key that all nodes of a cluster share: loading it, and nothing that could print it.
//!
//! A key file is used as it is, apart from white space at its end (which editors and `echo` add). A `shared-secret`
//! is a text that a person chose, so it is stretched with PBKDF2 before use: who records a proof must pay for each guess.

use std::fmt;
use std::fs::{self, OpenOptions};
use std::io::{self, Read};
use std::num::NonZeroU32;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use ring::{hmac, pbkdf2};

use crate::limits::{MAX_KEY_BYTES, MIN_KEY_BYTES};

const STRETCH_SALT: &[u8] = b"qrbd shared-secret 1";
/// About 10 ms on a current core.
const STRETCH_ROUNDS: NonZeroU32 = NonZeroU32::new(20_000).unwrap();

/// The secret by which the nodes of a cluster know each other.
#[derive(Clone)]
pub struct SharedKey(hmac::Key);

/// Why there is no usable key.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum KeyError {
    /// No such file.
    #[error("key file {} does not exist: make it with `qrbdadm keygen` on one node and copy it to the others", .0.display())]
    Missing(PathBuf),
    /// The file cannot be read.
    #[error("key file {} cannot be read: {source}", .path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// A directory, a device, a pipe.
    #[error("key file {} is not a regular file", .0.display())]
    NotAFile(PathBuf),
    /// Group or others may read or write it.
    #[error("key file {} has mode {mode:04o}, so others than its owner can use it: `chmod 0400 {}`, and make a new one with `qrbdadm keygen` if it may have been read", .path.display(), .path.display())]
    TooOpen {
        /// The file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// Too few bytes.
    #[error("key file {} holds {length} bytes, at least {MIN_KEY_BYTES} are needed: make one with `qrbdadm keygen`", .path.display())]
    TooShort {
        /// The file.
        path: PathBuf,
        /// Its length without white space at the end.
        length: usize,
    },
    /// Too many bytes.
    #[error("key file {} is longer than {MAX_KEY_BYTES} bytes: make one with `qrbdadm keygen`", .0.display())]
    TooLong(PathBuf),
    /// A `shared-secret` without a character, or far too long.
    #[error(
        "shared-secret has {0} bytes: it needs at least 1 and at most {MAX_KEY_BYTES}; `qrbdadm keygen` makes a key file to use in its place"
    )]
    SecretLength(usize),
}

impl SharedKey {
    /// The key in the file `path`.
    ///
    /// # Errors
    /// If the file is missing, unreadable, open to others, or not of a usable length. Each names the file and what to do.
    pub fn from_file(path: impl AsRef<Path>) -> Result<Self, KeyError> {
        let path = path.as_ref();
        let unreadable = |source| KeyError::Unreadable {
            path: path.to_owned(),
            source,
        };
        // O_NONBLOCK: a pipe in the place of the file must not hang the daemon.
        let file = OpenOptions::new()
            .read(true)
            .custom_flags(nix::fcntl::OFlag::O_NONBLOCK.bits())
            .open(path)
            .map_err(|source| match source.kind() {
                io::ErrorKind::NotFound => KeyError::Missing(path.to_owned()),
                _ => unreadable(source),
            })?;
        let metadata: fs::Metadata = file.metadata().map_err(unreadable)?;
        if !metadata.is_file() {
            return Err(KeyError::NotAFile(path.to_owned()));
        }
        let mode = metadata.mode() & 0o7777;
        if mode & 0o077 != 0 {
            return Err(KeyError::TooOpen {
                path: path.to_owned(),
                mode,
            });
        }
        let mut bytes = Vec::with_capacity(MAX_KEY_BYTES + 1);
        file.take(MAX_KEY_BYTES as u64 + 1)
            .read_to_end(&mut bytes)
            .map_err(unreadable)?;
        if bytes.len() > MAX_KEY_BYTES {
            return Err(KeyError::TooLong(path.to_owned()));
        }
        let key = bytes.trim_ascii_end();
        if key.len() < MIN_KEY_BYTES {
            return Err(KeyError::TooShort {
                path: path.to_owned(),
                length: key.len(),
            });
        }
        Ok(Self(hmac::Key::new(hmac::HMAC_SHA256, key)))
    }

    /// The key made of the text of a `shared-secret` option. Takes some milliseconds.
    ///
    /// # Errors
    /// If the text is empty or longer than [`MAX_KEY_BYTES`].
    pub fn from_secret(text: &str) -> Result<Self, KeyError> {
        if text.is_empty() || text.len() > MAX_KEY_BYTES {
            return Err(KeyError::SecretLength(text.len()));
        }
        let mut stretched = [0; 32];
        pbkdf2::derive(
            pbkdf2::PBKDF2_HMAC_SHA256,
            STRETCH_ROUNDS,
            STRETCH_SALT,
            text.as_bytes(),
            &mut stretched,
        );
        Ok(Self(hmac::Key::new(hmac::HMAC_SHA256, &stretched)))
    }

    pub(crate) fn hmac(&self) -> &hmac::Key {
        &self.0
    }
}

impl fmt::Debug for SharedKey {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("SharedKey(not shown)")
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn file(contents: &[u8], mode: u32) -> (tempfile::TempDir, PathBuf) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("authkey");
        fs::write(&path, contents).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        (directory, path)
    }

    fn tag(key: &SharedKey) -> Vec<u8> {
        hmac::sign(key.hmac(), b"test").as_ref().to_vec()
    }

    #[test]
    fn white_space_at_the_end_of_a_key_file_does_not_matter() {
        let (_first, plain) = file(b"0123456789abcdef", 0o400);
        let (_second, newline) = file(b"0123456789abcdef\r\n", 0o600);
        let (_third, other) = file(b"0123456789abcdeF", 0o400);
        let plain = SharedKey::from_file(plain).unwrap();
        assert_eq!(tag(&plain), tag(&SharedKey::from_file(newline).unwrap()));
        assert_ne!(tag(&plain), tag(&SharedKey::from_file(other).unwrap()));
    }

    #[test]
    fn a_key_file_that_others_can_use_is_refused_by_name_with_the_remedy() {
        for mode in [0o440, 0o404, 0o420, 0o602, 0o644] {
            let (_directory, path) = file(b"0123456789abcdef", mode);
            let error = SharedKey::from_file(&path).unwrap_err();
            assert!(
                matches!(error, KeyError::TooOpen { mode: found, .. } if found == mode),
                "{error}"
            );
            let text = error.to_string();
            assert!(
                text.contains(path.to_str().unwrap())
                    && text.contains("chmod")
                    && text.contains("qrbdadm keygen")
            );
        }
    }

    #[test]
    fn missing_short_long_and_odd_key_files_are_refused_by_name() {
        let (directory, short) = file(b"0123456789abcde\n\n\n\n", 0o400);
        assert!(matches!(
            SharedKey::from_file(&short),
            Err(KeyError::TooShort { length: 15, .. })
        ));
        let (_long_directory, long) = file(&[7; MAX_KEY_BYTES + 1], 0o400);
        assert!(matches!(
            SharedKey::from_file(long),
            Err(KeyError::TooLong(_))
        ));
        let missing = directory.path().join("none");
        let error = SharedKey::from_file(&missing).unwrap_err();
        assert!(
            error.to_string().contains(missing.to_str().unwrap())
                && error.to_string().contains("qrbdadm keygen")
        );
        assert!(matches!(
            SharedKey::from_file(directory.path()),
            Err(KeyError::NotAFile(_))
        ));
        let pipe = directory.path().join("pipe");
        nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRUSR).unwrap();
        assert!(matches!(
            SharedKey::from_file(pipe),
            Err(KeyError::NotAFile(_))
        ));
    }

    #[test]
    fn a_secret_makes_one_key_and_is_never_printed() {
        let key = SharedKey::from_secret("correct horse").unwrap();
        assert_eq!(
            tag(&key),
            tag(&SharedKey::from_secret("correct horse").unwrap())
        );
        assert_ne!(
            tag(&key),
            tag(&SharedKey::from_secret("correct horsf").unwrap())
        );
        assert!(!format!("{key:?}").contains("horse"));
        assert!(matches!(
            SharedKey::from_secret(""),
            Err(KeyError::SecretLength(0))
        ));
    }
}
