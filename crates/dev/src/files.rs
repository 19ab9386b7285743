//! Files of the cluster's directory: whole or not there, readable by their owner alone.

use crate::error::DevError;
use rustix::fs::FlockOperation;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;
use std::time::{Duration, Instant};

/// Creates a directory of mode 0700, with its parents.
pub fn make_dir(path: &Path) -> Result<(), DevError> {
    DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(DevError::io("create", path))
}

/// Creates a directory that nobody else can have prepared: it is ours, 0700, and no link. For
/// directories whose parent anybody may write to.
pub fn make_private_dir(path: &Path) -> Result<(), DevError> {
    match DirBuilder::new().mode(0o700).create(path) {
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
        other => other.map_err(DevError::io("create", path))?,
    }
    let meta = fs::symlink_metadata(path).map_err(DevError::io("look at", path))?;
    let ours = meta.is_dir()
        && meta.uid() == rustix::process::geteuid().as_raw()
        && meta.permissions().mode() & 0o777 == 0o700;
    if ours {
        return Ok(());
    }
    Err(DevError::refused(
        format!("{} is not a directory of yours with mode 0700", path.display()),
        "remove it and run the same again",
    ))
}

/// Replaces `path` by `bytes`, mode 0600, durable before visible.
pub fn write(path: &Path, bytes: &[u8]) -> Result<(), DevError> {
    let inner = || -> io::Result<()> {
        let dir = path.parent().ok_or_else(|| io::Error::other("no parent directory"))?;
        // The process id keeps two writers apart: `dev up` and the keeper it started.
        let temp = path.with_extension(format!("{}.tmp", std::process::id()));
        let mut file =
            OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&temp)?;
        file.set_permissions(fs::Permissions::from_mode(0o600))?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&temp, path)?;
        File::open(dir)?.sync_all()
    };
    inner().map_err(DevError::io("write", path))
}

/// Takes the lock (flock) of a file, which falls when the file is dropped or its holder dies;
/// none while somebody else has it.
pub fn try_lock(path: &Path) -> Result<Option<File>, DevError> {
    let inner = || -> io::Result<Option<File>> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(path)?;
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Some(file)),
            Err(rustix::io::Errno::WOULDBLOCK) => Ok(None),
            Err(e) => Err(e.into()),
        }
    };
    inner().map_err(DevError::io("lock", path))
}

/// Takes the lock of a file as soon as it is free; gives up after `limit`.
pub fn lock(path: &Path, limit: Duration) -> Result<File, DevError> {
    let until = Instant::now() + limit;
    loop {
        if let Some(file) = try_lock(path)? {
            return Ok(file);
        }
        if Instant::now() >= until {
            let busy = io::Error::new(io::ErrorKind::WouldBlock, "another process holds it");
            return Err(DevError::io("lock", path)(busy));
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Writes only what differs, so that a watcher of the file is not woken for nothing.
pub fn write_if_new(path: &Path, bytes: &[u8]) -> Result<(), DevError> {
    if fs::read(path).is_ok_and(|now| now == bytes) { Ok(()) } else { write(path, bytes) }
}

/// Reads a JSON file; none if it is not there.
pub fn read_json<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, DevError> {
    match fs::read(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(DevError::io("read", path)(e)),
        Ok(bytes) => serde_json::from_slice(&bytes)
            .map(Some)
            .map_err(|e| DevError::io("understand", path)(e.into())),
    }
}

/// Writes a JSON file.
pub fn write_json<T: Serialize>(path: &Path, value: &T) -> Result<(), DevError> {
    let mut bytes =
        serde_json::to_vec_pretty(value).map_err(|e| DevError::io("write", path)(e.into()))?;
    bytes.push(b'\n');
    write(path, &bytes)
}

/// Reads a text file.
pub fn read_text(path: &Path) -> Result<String, DevError> {
    fs::read_to_string(path).map_err(DevError::io("read", path))
}
