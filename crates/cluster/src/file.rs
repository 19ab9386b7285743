//! Small files that are whole or not there, survive a power cut and are for this user only.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use thiserror::Error;

/// Largest file of ours that is read: a ring of 1,000 KEKs has about 600 KiB.
const MAX_BYTES: u64 = 8 << 20;

/// A file or directory of the agent that cannot be used.
#[derive(Debug, Error)]
#[error("cannot {doing} {}", .path.display())]
pub struct FileError {
    /// What was tried.
    pub doing: &'static str,
    /// On what.
    pub path: PathBuf,
    /// Why not.
    #[source]
    pub source: io::Error,
}

impl FileError {
    fn of(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self { doing, path, source }
    }
}

/// Makes a directory, and those above it, mode 0700. One that exists is left as it is.
pub(crate) fn make_dir(path: &Path) -> Result<(), FileError> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(FileError::of("create", path))
}

/// Replaces `path` by `bytes`, mode 0600, durable before visible. One writer at a time: the
/// agent's lock sees to that, so what a crash leaves behind is overwritten by the next write.
pub(crate) fn write(path: &Path, bytes: &[u8]) -> Result<(), FileError> {
    let inner = || -> io::Result<()> {
        let dir = path.parent().ok_or_else(|| io::Error::other("no parent directory"))?;
        let mut name = path.file_name().unwrap_or_default().to_owned();
        name.push(".new");
        let temp = dir.join(name);
        let mut file =
            OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&temp)?;
        // The mode above counts only for a new file, and after the umask.
        file.set_permissions(Permissions::from_mode(0o600))?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&temp, path)?;
        File::open(dir)?.sync_all()
    };
    inner().map_err(FileError::of("write", path))
}

/// Says in the log that others may write to a directory of ours: they could put files of their own
/// in the place of what is in it.
pub(crate) fn warn_of_writers(path: &Path) {
    let mode = fs::metadata(path).map_or(0, |found| found.permissions().mode());
    if mode & 0o022 != 0 {
        let path = path.display();
        tracing::warn!("others may write to {path} (mode {:03o}): chmod 700 {path}", mode & 0o777);
    }
}

/// Reads `path`; none if it does not exist.
pub(crate) fn read(path: &Path) -> Result<Option<Vec<u8>>, FileError> {
    read_if(path, |_| Ok(()))
}

/// Reads a key; none if it does not exist. Refused where others may read or write it: it is no
/// secret then, or not ours.
pub(crate) fn read_private(path: &Path) -> Result<Option<Vec<u8>>, FileError> {
    read_if(path, |file| {
        let mode = file.metadata()?.permissions().mode() & 0o777;
        if mode & 0o077 == 0 {
            return Ok(());
        }
        Err(io::Error::other(format!(
            "it has mode {mode:03o}; it must be 0600 (chmod 600 {})",
            path.display()
        )))
    })
}

fn read_if(
    path: &Path,
    good: impl Fn(&File) -> io::Result<()>,
) -> Result<Option<Vec<u8>>, FileError> {
    let inner = || -> io::Result<Option<Vec<u8>>> {
        let file = match File::open(path) {
            Ok(file) => file,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(e),
        };
        // Of the opened file, so that it cannot be exchanged between look and read.
        good(&file)?;
        let mut bytes = Vec::new();
        file.take(MAX_BYTES + 1).read_to_end(&mut bytes)?;
        if bytes.len() as u64 > MAX_BYTES {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "larger than 8 MiB"));
        }
        Ok(Some(bytes))
    };
    inner().map_err(FileError::of("read", path))
}

/// Removes `path` durably; no error if it is not there.
pub(crate) fn remove(path: &Path) -> Result<(), FileError> {
    let inner = || -> io::Result<()> {
        match fs::remove_file(path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
            other => other?,
        }
        let dir = path.parent().ok_or_else(|| io::Error::other("no parent directory"))?;
        File::open(dir)?.sync_all()
    };
    inner().map_err(FileError::of("remove", path))
}

/// Reads JSON; none if the file does not exist.
pub(crate) fn read_json<T: for<'a> serde::Deserialize<'a>>(
    path: &Path,
) -> Result<Option<T>, FileError> {
    let Some(bytes) = read(path)? else { return Ok(None) };
    serde_json::from_slice(&bytes)
        .map(Some)
        .map_err(|e| FileError::of("understand", path)(io::Error::from(e)))
}

/// Writes JSON as [`write`] does.
pub(crate) fn write_json<T: serde::Serialize>(path: &Path, value: &T) -> Result<(), FileError> {
    let mut bytes = serde_json::to_vec_pretty(value)
        .map_err(|e| FileError::of("write", path)(io::Error::from(e)))?;
    bytes.push(b'\n');
    write(path, &bytes)
}
