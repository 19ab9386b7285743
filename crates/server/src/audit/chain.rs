//! What binds the two places of audit records to each other: a checkpoint of the segments names
//! the newest row of the database, and the database keeps the newest checkpoint.

use crate::{first, record};
use claviger_audit::{Anchor, Checkpoint, Dir, FINDINGS_MAX, Report, Sink};
use claviger_crypto::sign::PublicKey;
use claviger_store::audit::{self, Head, Link};
use claviger_store::{Store, StoreError, Tx, meta};
use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

/// Name of the newest checkpoint in the database.
const CHECKPOINT: &str = "audit-checkpoint";
/// First byte of an anchor that names a row.
const ROW: u8 = 1;

/// The newest row, as a checkpoint names it. Empty if there is none, or the database does not
/// answer: then the next checkpoint names it.
pub(crate) fn anchor(store: &Store) -> Anchor {
    let head = store.read("audit anchor", audit::head).unwrap_or_else(|e: StoreError| {
        tracing::error!(error = %e, "an audit checkpoint names no row of the database");
        None
    });
    let row = head.and_then(|head| {
        let link = head.link?;
        let mut bytes = vec![ROW];
        bytes.extend_from_slice(&head.id.to_be_bytes());
        bytes.extend_from_slice(&link);
        Anchor::new(bytes)
    });
    row.unwrap_or_default()
}

/// The row that an anchor names.
pub fn row_of(anchor: &Anchor) -> Option<(i64, Link)> {
    let (id, link) = anchor.bytes().strip_prefix(&[ROW])?.split_first_chunk::<8>()?;
    Some((i64::from_be_bytes(*id), link.try_into().ok()?))
}

/// The newest checkpoint that the database keeps; none if it keeps none that can be read.
pub fn kept(tx: &Tx<'_>) -> Result<Option<Checkpoint>, StoreError> {
    Ok(meta::get(tx, CHECKPOINT)?.and_then(|bytes| Checkpoint::decode(&bytes)))
}

/// Keeps the newest checkpoint in the database.
pub(crate) struct DatabaseSink(pub(crate) Store);

impl Sink for DatabaseSink {
    fn send(&mut self, checkpoint: &Checkpoint) -> io::Result<()> {
        let kept =
            self.0.tx("audit checkpoint", |tx| meta::put(tx, CHECKPOINT, &checkpoint.encode()));
        kept.map_err(|e: StoreError| io::Error::other(e))
    }
}

/// Whether a row does not fit, and why.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RowFinding {
    /// Its columns, or its link, are not what was written.
    Changed,
    /// Rows are missing before it.
    Gap,
    /// A row before rows were chained, where all are.
    Unchained,
    /// A checkpoint names this row with another link: it, or one before it, was written anew.
    Rewritten,
    /// A checkpoint names this row, and it is not there.
    Missing,
}

impl fmt::Display for RowFinding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            RowFinding::Changed => "the row was changed",
            RowFinding::Gap => "rows are missing before it",
            RowFinding::Unchained => "the row has no link, where all have one",
            RowFinding::Rewritten => {
                "a checkpoint names it with another link: rows up to it were written anew"
            }
            RowFinding::Missing => "a checkpoint names it, and it is not there",
        })
    }
}

/// What was seen of the rows.
#[derive(Debug, Default)]
pub struct Rows {
    /// Rows that are chained.
    pub chained: u64,
    /// Rows of before rows were chained, which nothing vouches for.
    pub older: u64,
    /// Anchors that fit.
    pub anchors: u64,
    /// What is wrong, by row; at most [`FINDINGS_MAX`].
    pub findings: Vec<(i64, RowFinding)>,
}

/// What [`verify`] saw.
#[derive(Debug)]
pub struct Verified {
    /// The keys that were believed.
    pub keys: Vec<PublicKey>,
    /// The segments.
    pub segments: Report,
    /// The rows.
    pub rows: Rows,
}

/// Why nothing could be verified.
#[derive(Debug, thiserror::Error)]
pub enum VerifyError {
    /// The database.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The segments.
    #[error("cannot read {0}: {1}")]
    Segments(PathBuf, #[source] io::Error),
    /// No key was given, and the database names none.
    #[error("the database has no key of an audit log")]
    NoKey,
}

/// Holds the audit log of the server whose database this is against its hashes, its signatures and
/// the checkpoints in `outside`; the server may be running. Believed are `keys`, or if there are
/// none, the one that the database names. What the database keeps counts as a checkpoint from
/// outside in nothing but that the log has to agree with it.
pub fn verify(
    database: &Path,
    mut keys: Vec<PublicKey>,
    mut outside: Vec<Checkpoint>,
) -> Result<Verified, VerifyError> {
    let (own_key, kept) = claviger_store::view(database, |tx| {
        Ok::<_, StoreError>((meta::get(tx, first::AUDIT_PUBLIC)?, kept(tx)?))
    })?;
    if keys.is_empty() {
        let own = own_key.and_then(|key| Some(PublicKey(key.try_into().ok()?)));
        keys.push(own.ok_or(VerifyError::NoKey)?);
    }
    let inside = u64::from(kept.is_some());
    outside.extend(kept);
    let signed = outside.iter().filter(|checkpoint| checkpoint.signed_by(&keys));
    let mut anchors: Vec<_> = signed.filter_map(|c| row_of(c.anchor())).collect();
    let directory = record::directory(database);
    let mut seen = |checkpoint: &Checkpoint| anchors.extend(row_of(checkpoint.anchor()));
    let mut segments = Dir::existing(&directory)
        .and_then(|files| claviger_audit::verify(&files, &keys, &outside, &mut seen))
        .map_err(|e| VerifyError::Segments(directory, e))?;
    segments.outside = segments.outside.saturating_sub(inside);
    let rows = claviger_store::view(database, |tx| verify_rows(tx, &anchors))?;
    Ok(Verified { keys, segments, rows })
}

/// Holds the rows against their chain and against what checkpoints name.
fn verify_rows(tx: &Tx<'_>, anchors: &[(i64, Link)]) -> Result<Rows, StoreError> {
    let mut named: BTreeMap<i64, Vec<Link>> = BTreeMap::new();
    for (id, link) in anchors {
        let links = named.entry(*id).or_default();
        if !links.contains(link) {
            links.push(*link);
        }
    }
    let mut rows = Rows::default();
    let mut last: Option<Head> = None;
    let finding = |rows: &mut Rows, id, what| {
        if rows.findings.len() < FINDINGS_MAX {
            rows.findings.push((id, what));
        }
    };
    audit::walk(tx, &mut |found| {
        let id = found.head.id;
        let chained = last.is_some_and(|last| last.link.is_some());
        if chained && last.is_some_and(|last| last.id + 1 != id) {
            finding(&mut rows, id, RowFinding::Gap);
        }
        match found.head.link {
            Some(link) if link == found.due => rows.chained += 1,
            Some(_) => finding(&mut rows, id, RowFinding::Changed),
            None if chained => finding(&mut rows, id, RowFinding::Unchained),
            None => rows.older += 1,
        }
        for link in named.remove(&id).unwrap_or_default() {
            if found.head.link == Some(link) {
                rows.anchors += 1;
            } else {
                finding(&mut rows, id, RowFinding::Rewritten);
            }
        }
        last = Some(found.head);
    })?;
    for id in named.into_keys() {
        finding(&mut rows, id, RowFinding::Missing);
    }
    Ok(rows)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::World;
    use serde_json::Value;

    /// Stops a server that did something, and gives its database.
    async fn stopped() -> (tempfile::TempDir, PathBuf) {
        let w = World::new();
        let id = w.root().await;
        w.call(&format!("POST /keys/{id}/actions/wrap"), &Value::Null).await.is(200);
        w.root().await;
        let database = w.app.store.path().to_owned();
        (w.stop().await, database)
    }

    #[tokio::test]
    async fn rows_and_segments_hold_each_other() {
        let (_dir, database) = stopped().await;
        let look = || {
            let Verified { segments, rows, .. } = verify(&database, vec![], vec![]).unwrap();
            assert!(segments.is_whole() && segments.signed.is_some(), "{segments:?}");
            rows
        };
        let rows = look();
        assert_eq!((rows.chained, rows.older, rows.anchors), (2, 0, 1), "{rows:?}");
        assert_eq!(rows.findings, []);
        let kept = claviger_store::view(&database, kept).unwrap().expect("it is kept");
        let head = claviger_store::view(&database, audit::head).unwrap().expect("a row");
        let named = Some((head.id, head.link.expect("it is chained")));
        assert_eq!(row_of(kept.anchor()), named, "the checkpoint of the stop");

        // The last row is cut off: only what was signed knows of it.
        claviger_store::beside(&database, |tx| {
            tx.execute("DELETE FROM audit WHERE id = 2", []).map(drop).map_err(StoreError::from)
        })
        .unwrap();
        assert_eq!(look().findings, [(2, RowFinding::Missing)]);
        // Another one is put into its place, chained as it should be.
        claviger_store::beside(&database, |tx| {
            let at = claviger_domain::id::UnixMs(7);
            audit::add(tx, &claviger_domain::audit::Record::of_system(at, "a.b", String::new()))
        })
        .unwrap();
        assert_eq!(look().findings, [(2, RowFinding::Rewritten)]);
    }
}
