//! Room on the disk, and directories that last.

use super::{ScrubError, failed};
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// Two segments of etcd's log, 64 MiB each and set aside when they are begun, and some.
const LOG: u64 = 144 << 20;

/// Bytes that a scrub writes before it removes anything, for a database of `size` bytes: etcd's
/// copy while it defragments, the snapshot, the fresh database, and what a fresh log sets aside.
pub(super) fn room(size: u64) -> u64 {
    size.saturating_mul(3).saturating_add(LOG)
}

/// Bytes that are free for anybody on the file system of `path`.
pub(crate) fn free(path: &Path) -> io::Result<u64> {
    let found = rustix::fs::statvfs(path)?;
    Ok(found.f_bavail.saturating_mul(found.f_frsize))
}

/// Removes a tree durably; no error if it is not there.
pub(super) fn remove_dir(path: &Path) -> Result<(), ScrubError> {
    match fs::remove_dir_all(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => other.map_err(failed("remove", path))?,
    }
    match path.parent() {
        Some(parent) => sync(parent),
        None => Ok(()),
    }
}

/// Makes what a directory names durable.
pub(super) fn sync(dir: &Path) -> Result<(), ScrubError> {
    File::open(dir).and_then(|d| d.sync_all()).map_err(failed("write down", dir))
}

/// Makes a tree durable and gives it to the one whom the old one belonged to: etcd may run as
/// another user than the agent. The depth is that of a member directory.
pub(super) fn settle(path: &Path, owner: (u32, u32), mode: u32) -> Result<(), ScrubError> {
    use std::os::unix::fs::{PermissionsExt, chown};
    let meta = fs::symlink_metadata(path).map_err(failed("read", path))?;
    if (meta.uid(), meta.gid()) != owner {
        chown(path, Some(owner.0), Some(owner.1)).map_err(failed("give away", path))?;
    }
    if meta.is_dir() {
        fs::set_permissions(path, fs::Permissions::from_mode(mode))
            .map_err(failed("set the mode of", path))?;
        for entry in fs::read_dir(path).map_err(failed("read", path))? {
            settle(&entry.map_err(failed("read", path))?.path(), owner, mode)?;
        }
    }
    File::open(path).and_then(|f| f.sync_all()).map_err(failed("write down", path))
}

#[cfg(test)]
mod tests {
    use super::super::ScrubError;
    use super::room;

    #[test]
    fn room_is_asked_for_three_databases_and_a_log() {
        assert_eq!(room(0), 144 << 20);
        assert_eq!(room(100 << 20), 444 << 20);
        assert_eq!(room(u64::MAX), u64::MAX);
        let said = ScrubError::NoRoom { path: "/d".into(), free: 5 << 20, needed: room(1 << 20) };
        assert!(said.waits() && said.to_string().contains("5 MiB free and 147 are needed"));
    }
}
