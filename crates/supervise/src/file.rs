//! Small files that are whole or not there, and survive a power cut.

use crate::SuperviseError;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// Largest file of a unit that is read: commands and arguments are a few KiB.
const MAX_BYTES: u64 = 1 << 20;

/// Replaces `path` by `bytes`, mode 0600, durable before visible.
pub(crate) fn write(path: &Path, bytes: &[u8]) -> Result<(), SuperviseError> {
    let inner = || -> io::Result<()> {
        let dir = path.parent().ok_or_else(|| io::Error::other("no parent directory"))?;
        // One writer at a time (the unit's lock), so one temporary name is enough, and what a
        // crash leaves behind is overwritten by the next write.
        let temp = path.with_extension("tmp");
        let mut file =
            OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&temp)?;
        file.set_permissions(std::os::unix::fs::PermissionsExt::from_mode(0o600))?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&temp, path)?;
        File::open(dir)?.sync_all()
    };
    inner().map_err(|source| error("write", path, source))
}

/// Reads `path`; none if it does not exist.
pub(crate) fn read(path: &Path) -> Result<Option<Vec<u8>>, SuperviseError> {
    let inner = || -> io::Result<Option<Vec<u8>>> {
        match fs::metadata(path) {
            Ok(meta) if meta.len() > MAX_BYTES => {
                return Err(io::Error::new(io::ErrorKind::InvalidData, "larger than 1 MiB"));
            }
            Ok(_) => {}
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(e),
        }
        match fs::read(path) {
            Ok(bytes) => Ok(Some(bytes)),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(e),
        }
    };
    inner().map_err(|source| error("read", path, source))
}

/// Removes `path` durably; no error if it is not there.
pub(crate) fn remove(path: &Path) -> Result<(), SuperviseError> {
    let inner = || -> io::Result<()> {
        match fs::remove_file(path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
            other => other?,
        }
        let dir = path.parent().ok_or_else(|| io::Error::other("no parent directory"))?;
        File::open(dir)?.sync_all()
    };
    inner().map_err(|source| error("remove", path, source))
}

pub(crate) fn error(doing: &'static str, path: &Path, source: io::Error) -> SuperviseError {
    SuperviseError::Io { doing, path: path.display().to_string(), source }
}
