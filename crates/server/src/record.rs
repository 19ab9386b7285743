//! Writes audit records that belong to no change of state, many in one transaction.
//!
//! Wrap and unwrap are answered only after their record is durable. One disk flush for each
//! would be the slowest part of them, so all that wait share one.

use claviger_domain::audit::Record;
use claviger_store::{Store, StoreError, audit};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::oneshot;

/// Records that wait. A full queue means that the disk does not keep up; callers get 503 then
/// rather than a queue without end.
const QUEUE: usize = 4096;
/// Records in one transaction; bounds how long it holds the writer.
const BATCH: usize = 512;

struct Waiting {
    record: Record,
    done: oneshot::Sender<Result<(), NotRecorded>>,
}

/// Puts acts on record.
pub struct Recorder {
    queue: SyncSender<Waiting>,
    trouble: Arc<Mutex<Option<NotRecorded>>>,
}

/// An act could not be put on record, so it must not be answered as done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NotRecorded {
    /// The disk takes nothing: an operator has to make room.
    #[error("the audit record could not be written: the disk is full or not writable")]
    Disk,
    /// Too many wait, or the database did not take it.
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

impl Recorder {
    pub(crate) fn start(store: Store) -> Recorder {
        let (queue, waiting) = sync_channel(QUEUE);
        let trouble = Arc::new(Mutex::new(None));
        let noted = trouble.clone();
        // Ends when the last sender is dropped.
        let spawned = std::thread::Builder::new().name("audit".into()).spawn(move || {
            // A panic loses its batch, whose callers are told so; without the thread, nothing
            // would be answered any more.
            while catch_unwind(AssertUnwindSafe(|| run(&store, &waiting, &noted))).is_err() {
                tracing::error!("the writer of audit records had to start anew");
            }
        });
        spawned.expect("the system gives one more thread at start");
        Recorder { queue, trouble }
    }

    /// Why the last batch could not be written; none if it was.
    pub(crate) fn trouble(&self) -> Option<NotRecorded> {
        *self.trouble.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns once the record is durable.
    pub async fn record(&self, record: Record) -> Result<(), NotRecorded> {
        let (done, answer) = oneshot::channel();
        match self.queue.try_send(Waiting { record, done }) {
            Ok(()) => {}
            Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) => {
                return Err(NotRecorded::Failed);
            }
        }
        answer.await.unwrap_or(Err(NotRecorded::Failed))
    }
}

fn run(store: &Store, waiting: &Receiver<Waiting>, trouble: &Mutex<Option<NotRecorded>>) {
    while let Ok(first) = waiting.recv() {
        let mut batch = vec![first];
        while batch.len() < BATCH
            && let Ok(next) = waiting.try_recv()
        {
            batch.push(next);
        }
        let written = store
            .tx("audit", |tx| batch.iter().try_for_each(|waiting| audit::add(tx, &waiting.record)));
        let written = written.map_err(|e: StoreError| {
            tracing::error!(records = batch.len(), error = %e, "audit records not written");
            if e.is_disk() { NotRecorded::Disk } else { NotRecorded::Failed }
        });
        *trouble.lock().unwrap_or_else(PoisonError::into_inner) = written.err();
        for waiting in batch {
            // Whoever asked has gone away; the record stands all the same.
            let _ = waiting.done.send(written);
        }
    }
}
