//! Counts plaintext in the files of the etcd member on this machine, whoever holds the lease: once
//! at the start, and whenever an operation has compacted etcd or somebody else has counted.

use crate::contact::{Moment, wall};
use crate::node::Node;
use crate::run::with_causes;
use claviger_crypto::digest;
use claviger_domain::cluster::files::EtcdFiles;
use claviger_domain::cluster::{Cluster, Residue};
use claviger_domain::id::{OperationId, UnixMs};
use claviger_etcd::residue;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

/// Pause after a count that failed: while etcd's files are exchanged, for instance.
const RETRY: Duration = Duration::from_secs(30);

/// What a count was made after.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct After {
    ended: Option<OperationId>,
    compacted: Option<i64>,
    counted: Option<UnixMs>,
}

/// Counts again and again. Never returns.
pub async fn count(node: Arc<Node>) {
    let Some(data_dir) = node.config.etcd.data_dir.clone() else {
        return std::future::pending().await;
    };
    let mut news = node.watch_latest();
    let mut last = None;
    loop {
        let found = place(&data_dir);
        if let Ok(place) = &found
            && node.files().is_none_or(|files| files.place != *place)
        {
            node.set_files(EtcdFiles { place: place.clone(), residue: None });
        }
        let due = node.cluster_truth().as_ref().and_then(due).filter(|due| last != Some(*due));
        let failed = match (due, found) {
            (None, _) => false,
            (Some(due), Ok(place)) => match scan(&data_dir).await {
                Ok(residue) => {
                    node.set_files(EtcdFiles { place, residue: Some(residue) });
                    last = Some(due);
                    false
                }
                Err(why) => {
                    tracing::warn!(%why, "cannot count plaintext in etcd's files yet");
                    true
                }
            },
            (Some(_), Err(error)) => {
                tracing::warn!(%error, dir = %data_dir.display(), "cannot see etcd's files");
                true
            }
        };
        if failed {
            tokio::time::sleep(RETRY).await;
        } else if news.changed().await.is_err() {
            return;
        }
    }
}

async fn scan(data_dir: &Path) -> Result<Residue, String> {
    let dir = data_dir.to_owned();
    let found = tokio::task::spawn_blocking(move || residue::scan(&dir, None)).await;
    let found = found.map_err(|e| e.to_string())?.map_err(|e| with_causes(&e))?;
    Ok(found.residue(0, wall()))
}

/// What a count now would be made after; none while plaintext is there for anybody to see, since
/// nothing seals yet or an operation is not so far.
fn due(cluster: &Cluster) -> Option<After> {
    cluster.ring.write()?;
    let compacted = cluster.operation.as_ref().map(|op| op.compacted);
    if compacted == Some(None) {
        return None;
    }
    Some(After {
        ended: cluster.history.first().map(|f| f.id),
        compacted: compacted.flatten(),
        counted: cluster.residue.map(|r| r.at),
    })
}

/// A name of a directory that is the same for every agent of this machine and for none of another.
fn place(dir: &Path) -> io::Result<String> {
    let meta = std::fs::metadata(dir)?;
    let text = format!("{} {} {}", Moment::now().boot, meta.dev(), meta.ino());
    Ok(digest::hex(&digest::sha256(text.as_bytes())[..16]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_has_one_name_by_whatever_path() {
        let dir = tempfile::tempdir().unwrap();
        let other = tempfile::tempdir().unwrap();
        let link = other.path().join("link");
        std::os::unix::fs::symlink(dir.path(), &link).unwrap();
        assert_eq!(place(dir.path()).unwrap(), place(&link).unwrap());
        assert_ne!(place(dir.path()).unwrap(), place(other.path()).unwrap());
        assert!(place(&dir.path().join("missing")).is_err());
    }
}
