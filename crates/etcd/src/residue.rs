//! Plaintext Secrets left in etcd's files: old revisions, free pages, the log, followers' snapshots.
//!
//! A record is recognised by its beginning, as kube-apiserver writes it: `k8s\0`, then the
//! `runtime.Unknown` whose TypeMeta is `v1`, `Secret`
//! (k8s.io/apimachinery `pkg/runtime/generated.proto`), or the JSON object that an API server with
//! `--storage-media-type=application/json` writes. The tail of a large record whose first page was
//! used again has no beginning and is not counted; such tails exist only in free pages, which
//! defragmentation and scrub remove whole.

use claviger_domain::cluster::Residue;
use claviger_domain::id::UnixMs;
use memchr::memmem::Finder;
use serde::{Deserialize, Serialize};
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use thiserror::Error;

/// How a plaintext Secret begins in protobuf.
pub const PROTOBUF_SECRET: &[u8] = b"k8s\0\x0a\x0c\x0a\x02v1\x12\x06Secret";
/// How one begins in JSON, in the field order of Go's encoder.
pub const JSON_SECRET: &[u8] = b"{\"kind\":\"Secret\",\"apiVersion\":\"v1\"";

/// Bytes read at a time.
const CHUNK: usize = 1 << 20;
/// Files in a data directory: a WAL of a few segments, a few snapshots, one database.
const FILES_MAX: usize = 10_000;
/// `member/wal` is the deepest etcd goes; one more for a log directory inside.
const DEPTH_MAX: usize = 4;

/// Why the files could not be read.
#[derive(Debug, Error)]
pub enum ResidueError {
    /// A file cannot be read.
    #[error("cannot read {}", path.display())]
    Io {
        /// Which.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// Not a data directory of etcd.
    #[error("{} is not a data directory of etcd: {why}", path.display())]
    NotEtcd {
        /// Which.
        path: PathBuf,
        /// Why not.
        why: &'static str,
    },
}

/// Plaintext Secrets in one file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileResidue {
    /// The file, below the data directory.
    pub path: PathBuf,
    /// Records found.
    pub records: u64,
}

/// Plaintext Secrets in the files of one member.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Default)]
pub struct Found {
    /// In the database file `member/snap/db`.
    pub db: u64,
    /// In every other file: log, snapshots, what a crash left.
    pub wal: u64,
    /// Files that hold any.
    pub files: Vec<FileResidue>,
}

impl Found {
    /// As the cluster keeps it; `live` is what a reader of etcd would get.
    pub fn residue(&self, live: u64, at: UnixMs) -> Residue {
        Residue { live, db: self.db, wal: self.wal, at }
    }
}

/// Searches every file below `data_dir`; `wal_dir` too if the log lies elsewhere. etcd may run
/// meanwhile: a file that it removes while we look counts as empty, and what it wrote within its
/// `--backend-batch-interval` (100 ms) is in the log but not yet in the database file.
pub fn scan(data_dir: &Path, wal_dir: Option<&Path>) -> Result<Found, ResidueError> {
    let mut found = Found::default();
    let db = data_dir.join("member/snap/db");
    if !db.is_file() {
        let why = "it has no member/snap/db";
        return Err(ResidueError::NotEtcd { path: data_dir.to_owned(), why });
    }
    let mut seen = 0;
    scan_dir(data_dir, data_dir, 0, &mut seen, &mut found)?;
    if let Some(wal_dir) = wal_dir.filter(|w| !w.starts_with(data_dir)) {
        scan_dir(wal_dir, wal_dir, 0, &mut seen, &mut found)?;
    }
    Ok(found)
}

fn scan_dir(
    base: &Path,
    dir: &Path,
    depth: usize,
    seen: &mut usize,
    found: &mut Found,
) -> Result<(), ResidueError> {
    let failed = |source| ResidueError::Io { path: dir.to_owned(), source };
    let refuse = |why| ResidueError::NotEtcd { path: base.to_owned(), why };
    if depth > DEPTH_MAX {
        return Err(refuse("its directories are nested too deeply"));
    }
    for entry in fs::read_dir(dir).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        *seen += 1;
        if *seen > FILES_MAX {
            return Err(refuse("it holds more than 10,000 files"));
        }
        let (path, kind) = (entry.path(), entry.file_type().map_err(failed)?);
        if kind.is_dir() {
            scan_dir(base, &path, depth + 1, seen, found)?;
        } else if kind.is_file() {
            let records = match scan_file(&path) {
                Err(ResidueError::Io { source, .. })
                    if source.kind() == io::ErrorKind::NotFound =>
                {
                    0
                }
                other => other?,
            };
            let below = path.strip_prefix(base).unwrap_or(&path).to_owned();
            if below == Path::new("member/snap/db") {
                found.db += records;
            } else {
                found.wal += records;
            }
            if records > 0 {
                found.files.push(FileResidue { path: below, records });
            }
        }
    }
    Ok(())
}

/// Counts the plaintext Secrets in one file.
pub fn scan_file(path: &Path) -> Result<u64, ResidueError> {
    let failed = |source| ResidueError::Io { path: path.to_owned(), source };
    count(File::open(path).map_err(failed)?, CHUNK).map_err(failed)
}

/// Counts the beginnings of Secrets in a stream, those that lie across two chunks included.
fn count(mut from: impl Read, chunk: usize) -> io::Result<u64> {
    let finders = [Finder::new(PROTOBUF_SECRET), Finder::new(JSON_SECRET)];
    let overlap = PROTOBUF_SECRET.len().max(JSON_SECRET.len()) - 1;
    let mut buffer = vec![0; chunk + overlap];
    let (mut kept, mut records) = (0, 0);
    loop {
        let read = match from.read(&mut buffer[kept..]) {
            Ok(0) => return Ok(records),
            Ok(read) => read,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
            Err(e) => return Err(e),
        };
        let filled = kept + read;
        for finder in &finders {
            // Only what ends in the new bytes; the rest was counted before.
            let from = kept.saturating_sub(finder.needle().len() - 1);
            records += finder.find_iter(&buffer[from..filled]).count() as u64;
        }
        let keep = filled.min(overlap);
        buffer.copy_within(filled - keep..filled, 0);
        kept = keep;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Gives at most `step` bytes at a time.
    struct Slow<'a>(&'a [u8], usize);
    impl Read for Slow<'_> {
        fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
            let n = self.1.min(self.0.len()).min(out.len());
            out[..n].copy_from_slice(&self.0[..n]);
            self.0 = &self.0[n..];
            Ok(n)
        }
    }

    proptest! {
        #[test]
        fn each_record_counts_once_wherever_chunks_end(
            gaps in proptest::collection::vec(0usize..90, 1..20),
            chunk in 1usize..70, step in 1usize..70, json in any::<bool>(),
        ) {
            let needle = if json { JSON_SECRET } else { PROTOBUF_SECRET };
            let mut bytes = Vec::new();
            for gap in &gaps {
                bytes.extend(std::iter::repeat_n(b'k', *gap));
                bytes.extend_from_slice(needle);
            }
            bytes.extend_from_slice(&needle[..needle.len() - 1]);
            prop_assert_eq!(count(Slow(&bytes, step), chunk).expect("reads"), gaps.len() as u64);
        }
    }

    #[test]
    fn a_directory_that_is_not_etcds_is_refused() {
        let dir = std::env::temp_dir();
        assert!(matches!(scan(&dir, None), Err(ResidueError::NotEtcd { .. })));
    }
}
