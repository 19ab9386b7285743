//! A log that only grows and shows when somebody has changed it: what was read, wrapped,
//! unwrapped and refused, in files of their own.
//!
//! Records are bytes here; what they mean is the caller's business. Records that wait together
//! are one *group*: one write, one hash, one flush, one answer. Groups form a chain of hashes
//! through files called *segments*; a new start of the writer goes on in a new segment that says
//! how the one before it ended. At most a minute apart, the head of the chain is signed as a
//! *checkpoint*, which is kept in the log and leaves the machine. [`verify()`] holds the log
//! against its own chain, the signatures, and the checkpoints that left.
//!
//! A record that was answered as recorded is never lost to a crash: [`Durability`] says from when
//! on. When the disk takes nothing, nothing is answered as recorded. `docs/formats.md` has every
//! byte.
//!
//! This crate must never drop a record in silence, and never repair a log: what is missing or
//! changed is reported and stays visible.

use claviger_domain::id::UnixMs;
use std::fmt;
use std::str::FromStr;
use uuid::Uuid;

mod checkpoint;
mod engine;
mod files;
mod flood;
mod format;
#[cfg(test)]
mod power;
mod read;
mod recover;
mod retire;
#[cfg(test)]
mod sim;
mod sink;
#[cfg(test)]
mod tamper;
mod verify;
mod walk;
mod writer;

pub use checkpoint::{
    ANCHOR_MAX, Anchor, Checkpoint, CheckpointError, SignError, Signer, Why, checkpoints_of,
};
pub use engine::{CHECKPOINT_MS_MAX, Durability, Options, SYNC_AFTER, WINDOW};
pub use files::{Dir, DirFile, File, Files};
pub use flood::{Counted, Flood, SOURCES_COUNTED, SOURCES_NAMED, Source, source_of};
pub use format::{BODY_MAX, Ended, GROUP_MAX};
pub use read::{Entry, ReadError, Reader};
pub use recover::{OpenError, Recovery};
pub use retire::{Keep, RetireError, Retired, retire};
pub use sink::{FileSink, Sink, Syslog};
pub use verify::{FINDINGS_MAX, Finding, Report, Tail, What, verify};
pub use writer::{Health, Log, NotRecorded, QUEUE, Refused, Seams, Settle};

/// One record to put into the log.
#[derive(Debug, Clone, Copy)]
pub struct Record<'a> {
    /// When it happened.
    pub at: UnixMs,
    /// What its body is; numbers are the caller's.
    pub kind: u16,
    /// At most [`BODY_MAX`] bytes.
    pub body: &'a [u8],
}

/// Who writes a log. A directory holds the log of one writer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct WriterId(pub Uuid);

impl WriterId {
    /// A new writer.
    pub fn random() -> Self {
        Self(Uuid::new_v4())
    }
}

impl fmt::Display for WriterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for WriterId {
    type Err = uuid::Error;

    fn from_str(text: &str) -> Result<Self, uuid::Error> {
        text.parse().map(Self)
    }
}
