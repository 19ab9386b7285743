//! Puts acts on record that belong to no change of state: in the audit log's segments. A change
//! is a row of the database, in the transaction that makes it.
//!
//! What waits at once shares one flush: one for each would be the slowest part of a wrap.

use crate::app::{AuditSettings, CheckpointSink};
use crate::audit::body;
use crate::audit::chain::{self, DatabaseSink};
use claviger_audit::{
    Checkpoint, Dir, FileSink, Health, Keep, Log, Options, Recovery, Refused, RetireError, Retired,
    Seams, Sink, Syslog, WriterId,
};
use claviger_crypto::sign::SigningKey;
use claviger_domain::audit::Record;
use claviger_domain::id::UnixMs;
use claviger_store::{Store, StoreError};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::oneshot;

/// Name of the log's directory, beside the database.
pub const DIRECTORY: &str = "audit";

/// Where the log of the database at `database` is.
pub fn directory(database: &Path) -> PathBuf {
    database.with_file_name(DIRECTORY)
}

type Answer = oneshot::Sender<Result<(), NotRecorded>>;

/// Puts acts on record.
pub struct Recorder {
    log: Log<Answer>,
    key: Arc<SigningKey>,
    directory: PathBuf,
    /// Held while segments are removed: two of these at once must not be.
    retiring: Mutex<()>,
}

/// An act could not be put on record, so it must not be answered as done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NotRecorded {
    /// The disk takes nothing: an operator has to make room.
    #[error("the audit record could not be written: the disk is full or not writable")]
    Disk,
    /// Too many wait, or the log has ended.
    #[error("the audit record could not be written")]
    Failed,
}

impl NotRecorded {
    /// What a caller is told.
    pub(crate) fn what(self) -> &'static str {
        match self {
            NotRecorded::Disk => {
                "The server cannot write to its disk, so nothing is answered that could not be put on record. Tell its operator to make room, then try again"
            }
            NotRecorded::Failed => {
                "The act could not be put on record, so it is not answered. Try again"
            }
        }
    }
}

impl From<claviger_audit::NotRecorded> for NotRecorded {
    fn from(_: claviger_audit::NotRecorded) -> Self {
        NotRecorded::Disk
    }
}

/// Who writes, and what signs.
pub(crate) struct Writer {
    pub(crate) id: WriterId,
    pub(crate) key: SigningKey,
}

impl Recorder {
    /// Opens the log beside the database of `store`, or makes it. What a start finds wrong with
    /// it is logged, and stands in the log for good; the server starts all the same.
    pub(crate) fn start(
        store: &Store,
        writer: Writer,
        settings: &AuditSettings,
    ) -> io::Result<Recorder> {
        let directory = directory(store.path());
        let files = Dir::open(&directory)?;
        let key = Arc::new(writer.key);
        let known: Option<Checkpoint> = store
            .read("audit checkpoint", chain::kept)
            .map_err(|e: StoreError| io::Error::other(e))?;
        let mut sinks: Vec<Box<dyn Sink>> = vec![Box::new(DatabaseSink(store.clone()))];
        for sink in &settings.checkpoints {
            sinks.push(opened(sink)?);
        }
        let rows = store.clone();
        let settle = |tokens: &mut Vec<Answer>,
                      outcome: Result<(), claviger_audit::NotRecorded>| {
            let outcome = outcome.map_err(NotRecorded::from);
            for answer in tokens.drain(..) {
                // Whoever asked has gone away; the record stands all the same.
                let _ = answer.send(outcome);
            }
        };
        let seams = Seams {
            signer: Box::new(key.clone()),
            anchor: Box::new(move || chain::anchor(&rows)),
            sinks,
            settle: Box::new(settle),
        };
        let options = Options { durability: settings.durability, ..Options::default() };
        let (log, found) = Log::start(files, writer.id, known.as_slice(), options, seams)
            .map_err(io::Error::other)?;
        tell(&found);
        Ok(Recorder { log, key, directory, retiring: Mutex::new(()) })
    }

    /// Why the last record could not be written; none if it was.
    pub(crate) fn trouble(&self) -> Option<NotRecorded> {
        self.log.health().failing.map(NotRecorded::from)
    }

    /// Returns once the record counts as recorded.
    pub async fn record(&self, record: Record) -> Result<(), NotRecorded> {
        self.queue(&record)?.await.unwrap_or(Err(NotRecorded::Failed))
    }

    /// Like [`record`](Self::record), without waiting for it.
    pub(crate) fn note(&self, record: &Record) -> Result<(), NotRecorded> {
        self.queue(record).map(drop)
    }

    /// Like [`record`](Self::record), for a thread that may block.
    pub(crate) fn record_blocking(&self, record: &Record) -> Result<(), NotRecorded> {
        self.queue(record)?.blocking_recv().unwrap_or(Err(NotRecorded::Failed))
    }

    /// How the log is doing.
    pub(crate) fn health(&self) -> Health {
        self.log.health()
    }

    /// Removes the oldest segments, as `keep` says. Blocks: it reads what it removes.
    pub(crate) fn retire(&self, keep: Keep, now: UnixMs) -> Result<Retired, RetireError> {
        let _one = self.retiring.lock().unwrap_or_else(PoisonError::into_inner);
        claviger_audit::retire(&Dir::existing(&self.directory)?, &*self.key, keep, now)
    }

    fn queue(
        &self,
        record: &Record,
    ) -> Result<oneshot::Receiver<Result<(), NotRecorded>>, NotRecorded> {
        let (answer, waiting) = oneshot::channel();
        let body = body::encode(record).ok_or(NotRecorded::Failed)?;
        let entry = claviger_audit::Record { at: record.at, kind: body::ACT, body: &body };
        match self.log.append(entry, answer) {
            Ok(()) => Ok(waiting),
            Err(Refused::Full | Refused::Closed | Refused::TooLong(_)) => Err(NotRecorded::Failed),
        }
    }
}

/// Opens a place for checkpoints, so that one that cannot be written is found at the start.
fn opened(sink: &CheckpointSink) -> io::Result<Box<dyn Sink>> {
    let host = rustix::system::uname();
    let host = host.nodename().to_string_lossy();
    Ok(match sink {
        CheckpointSink::File(path) => Box::new(FileSink::open(path)?),
        CheckpointSink::Syslog(path) => Box::new(Syslog::unix(path, &host)),
        CheckpointSink::SyslogUdp(address) => Box::new(Syslog::udp(*address, &host)),
    })
}

fn tell(found: &Recovery) {
    if found.cut > 0 {
        tracing::warn!(bytes = found.cut, "the audit log ended in a torn frame, which was cut off");
    }
    for finding in &found.findings {
        tracing::error!(
            segment = finding.sequence,
            offset = finding.offset,
            what = %finding.what,
            "the audit log is not as it was written; `claviger audit verify` says more"
        );
    }
}
