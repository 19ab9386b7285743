//! Snapshots: the database file of a member, followed by its SHA-256.

use super::{EtcdError, deadline, failed};
use crate::pb::etcdserverpb::SnapshotRequest;
use crate::pb::etcdserverpb::maintenance_client::MaintenanceClient;
use claviger_crypto::digest::Sha256;
use std::fs::{File, OpenOptions};
use std::io::{BufWriter, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::sync::mpsc;
use tonic::transport::Channel;

/// Bytes behind the database in a snapshot file (etcd, `maintenance.go`).
pub const TRAILER: usize = 32;

/// A database file is a whole number of pages, and a page at least this long; what goes beyond
/// is the trailer (etcdutl tells the two kinds of file apart in the same way).
const PAGE_MIN: u64 = 512;

/// Longest wait for the next piece; etcd reads it from a file that it holds open.
const STALL: Duration = Duration::from_secs(60);
/// Longest wait for a whole snapshot: etcd's advice is 8 GiB at most.
const WHOLE: Duration = Duration::from_secs(3600);
/// Pieces of 32 KiB that wait for the disk.
const PIECES: usize = 16;

/// A snapshot on disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SnapshotFile {
    /// Where.
    pub path: PathBuf,
    /// Its size with the trailer, in bytes.
    pub size: u64,
    /// SHA-256 of the database in it.
    pub sha256: [u8; TRAILER],
}

pub(super) async fn take(
    url: &str,
    channel: Channel,
    to: &Path,
) -> Result<SnapshotFile, EtcdError> {
    let mut client = MaintenanceClient::new(channel);
    let request = deadline(SnapshotRequest {}, WHOLE);
    let lost = |status| failed(url, "send a snapshot", 0, status);
    let mut stream = client.snapshot(request).await.map_err(lost)?.into_inner();
    let partial = partial(to);
    let (pieces, receiver) = mpsc::channel(PIECES);
    let path = partial.clone();
    let writer = tokio::task::spawn_blocking(move || write(&path, receiver));
    let stalled = || tonic::Status::deadline_exceeded("no piece of the snapshot for 60 s");
    let mut received = Ok(());
    loop {
        match tokio::time::timeout(STALL, stream.message()).await {
            Ok(Ok(Some(piece))) => {
                if pieces.send(piece.blob).await.is_err() {
                    break; // The writer ended; its error says why.
                }
            }
            Ok(Ok(None)) => break,
            Ok(Err(status)) => {
                received = Err(lost(status));
                break;
            }
            Err(_) => {
                received = Err(lost(stalled()));
                break;
            }
        }
    }
    drop(pieces);
    let written = writer.await.map_err(|_| EtcdError::Nonsense("the writer of a snapshot died"))?;
    let checked = received.and(written).and_then(|()| check(&partial));
    let finished = checked.and_then(|found| {
        std::fs::rename(&partial, to)
            .and_then(|()| sync_parent(to))
            .map_err(|source| EtcdError::File { doing: "rename", path: to.to_owned(), source })?;
        Ok(SnapshotFile { path: to.to_owned(), ..found })
    });
    if finished.is_err() {
        // Half a snapshot is of no use and may be large.
        let _ = std::fs::remove_file(&partial);
    }
    finished
}

/// Checks a snapshot file against the digest behind its database.
pub fn check(path: &Path) -> Result<SnapshotFile, EtcdError> {
    let failed = |source| EtcdError::File { doing: "read", path: path.to_owned(), source };
    let damaged = |why| EtcdError::Damaged { path: path.to_owned(), why };
    let mut file = File::open(path).map_err(failed)?;
    let size = file.metadata().map_err(failed)?.len();
    let trailer = TRAILER as u64;
    if size < trailer + 2 * PAGE_MIN || size % PAGE_MIN != trailer {
        return Err(damaged("its size is not that of a database and a digest"));
    }
    let mut hasher = Sha256::new();
    let mut left = size - trailer;
    let mut buffer = vec![0; 1 << 20];
    while left > 0 {
        let want = buffer.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        file.read_exact(&mut buffer[..want]).map_err(failed)?;
        hasher.update(&buffer[..want]);
        left -= want as u64;
    }
    let mut sha256 = [0; TRAILER];
    file.seek(SeekFrom::Start(size - trailer)).map_err(failed)?;
    file.read_exact(&mut sha256).map_err(failed)?;
    if hasher.finish() != sha256 {
        return Err(damaged("it does not have the digest that it carries"));
    }
    Ok(SnapshotFile { path: path.to_owned(), size, sha256 })
}

fn partial(to: &Path) -> PathBuf {
    let mut name = to.file_name().unwrap_or_default().to_owned();
    name.push(".partial");
    to.with_file_name(name)
}

fn write(path: &Path, mut pieces: mpsc::Receiver<prost::bytes::Bytes>) -> Result<(), EtcdError> {
    let failed = |source| EtcdError::File { doing: "write", path: path.to_owned(), source };
    let file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(path)
        .map_err(failed)?;
    // It may have existed with another mode.
    file.set_permissions(std::fs::Permissions::from_mode(0o600)).map_err(failed)?;
    let mut out = BufWriter::new(file);
    while let Some(piece) = pieces.blocking_recv() {
        out.write_all(&piece).map_err(failed)?;
    }
    let file = out.into_inner().map_err(|e| failed(e.into_error()))?;
    file.sync_all().map_err(failed)
}

fn sync_parent(path: &Path) -> std::io::Result<()> {
    let parent = path.parent().filter(|p| !p.as_os_str().is_empty());
    File::open(parent.unwrap_or(Path::new(".")))?.sync_all()
}
