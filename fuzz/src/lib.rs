//! What the fuzz targets share: a server in process, and files that are not on a disk.

pub mod world;

use std::path::PathBuf;
use tempfile::TempDir;

/// A directory in memory, if the system has one.
pub fn directory() -> TempDir {
    let memory = PathBuf::from("/dev/shm");
    let at = if memory.is_dir() { memory } else { std::env::temp_dir() };
    tempfile::Builder::new().prefix("claviger-fuzz-").tempdir_in(at).expect("a directory")
}
