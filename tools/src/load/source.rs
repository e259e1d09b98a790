//! Where `verify` reads from: an NBD export or a raw file.

use std::fs::File;
use std::io::{Seek, SeekFrom};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::path::Path;

use anyhow::Context;
use qrbd_nbd::Client;

/// Readable bytes of known size.
pub trait Source {
    /// Size in bytes.
    fn bytes(&self) -> u64;
    /// Fills `buffer` from `offset`.
    ///
    /// # Errors
    /// The read failed or reaches beyond the end.
    fn read(&mut self, offset: u64, buffer: &mut [u8]) -> anyhow::Result<()>;
}

/// Bytes of a file or block device.
///
/// # Errors
/// The end cannot be sought.
pub fn file_bytes(file: &mut File) -> std::io::Result<u64> {
    file.seek(SeekFrom::End(0))
}

/// A file or block device, such as a backing disk while its node is down.
#[derive(Debug)]
pub struct FileSource {
    file: File,
    bytes: u64,
}

impl FileSource {
    /// Opens `path` for reading.
    ///
    /// # Errors
    /// It cannot be opened.
    pub fn open(path: &Path) -> anyhow::Result<FileSource> {
        let mut file =
            File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
        let bytes = file_bytes(&mut file)
            .with_context(|| format!("cannot tell the size of {}", path.display()))?;
        Ok(FileSource { file, bytes })
    }
}

impl Source for FileSource {
    fn bytes(&self) -> u64 {
        self.bytes
    }
    fn read(&mut self, offset: u64, buffer: &mut [u8]) -> anyhow::Result<()> {
        self.file
            .read_exact_at(buffer, offset)
            .with_context(|| format!("cannot read {} bytes at {offset}", buffer.len()))
    }
}

/// An NBD export on a Unix socket.
#[derive(Debug)]
pub struct ExportSource {
    client: Client<UnixStream>,
}

impl ExportSource {
    /// Connects to `export` on `socket`.
    ///
    /// # Errors
    /// Nobody listens, or the export is refused.
    pub fn connect(socket: &Path, export: &str) -> anyhow::Result<ExportSource> {
        Ok(ExportSource {
            client: connect(socket, export)?,
        })
    }
}

impl Source for ExportSource {
    fn bytes(&self) -> u64 {
        self.client.size()
    }
    fn read(&mut self, offset: u64, buffer: &mut [u8]) -> anyhow::Result<()> {
        self.client
            .read(offset, buffer)
            .with_context(|| format!("cannot read {} bytes at {offset}", buffer.len()))
    }
}

/// Connects to `export` on `socket`.
///
/// # Errors
/// Nobody listens, or the export is refused.
pub fn connect(socket: &Path, export: &str) -> anyhow::Result<Client<UnixStream>> {
    let stream = UnixStream::connect(socket)
        .with_context(|| format!("cannot connect to {}", socket.display()))?;
    Client::connect(stream, export)
        .with_context(|| format!("cannot open export '{export}' on {}", socket.display()))
}
