//! Retention: takes the oldest segments away, whole, and keeps a signed head of each, so that the
//! rest can still be verified and nobody can take away more in secret.

use crate::checkpoint::{Anchor, Checkpoint, SignError, Signer, Statement, Why};
use crate::files::{File, Files};
use crate::format::{self, Ended, Header};
use crate::verify::heads_of;
use crate::walk::{Step, Walk};
use claviger_domain::id::UnixMs;
use std::io;
use thiserror::Error;

/// The list of removed segments: a checkpoint in text on each line, oldest first.
pub(crate) const HEADS: &str = "heads";
const HEADS_NEW: &str = "heads.new";
/// Heads that are kept; older ones go. The newest alone would do to verify what is left. At 64
/// MiB a segment, this is a terabyte.
const HEADS_MAX: usize = 16_384;
/// Bytes of the list: a line has less than 1 KiB.
pub(crate) const HEADS_BYTES_MAX: u64 = HEADS_MAX as u64 * 1024;

/// Which segments stay. What neither rule lets go stays; the segment that is written to always
/// does.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Keep {
    /// Segments go that hold only records from before.
    pub since: Option<UnixMs>,
    /// The oldest segments go until so many bytes are left.
    pub bytes: Option<u64>,
}

/// What retention did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Retired {
    /// Segments removed.
    pub segments: u64,
    /// Bytes of them.
    pub bytes: u64,
    /// The first record that is left; 0 if nothing was removed.
    pub from: u64,
}

/// A segment was not removed. Those before it may have been.
#[derive(Debug, Error)]
pub enum RetireError {
    /// It is not as it was written, or its neighbour is missing: `verify` says more. It stays, as
    /// evidence.
    #[error("segment {sequence} of the audit log is damaged; it stays")]
    Damaged {
        /// Which.
        sequence: u64,
    },
    /// The list of removed segments is damaged; `verify` says more.
    #[error("the list of removed audit segments is damaged; nothing is removed")]
    Heads,
    /// A file cannot be read, written or removed.
    #[error("an audit segment cannot be removed")]
    Io(#[from] io::Error),
    /// The head was not signed.
    #[error("the head of an audit segment cannot be signed")]
    Sign(#[from] SignError),
}

/// Removes what `keep` does not ask for. The log may be written meanwhile; two of these at once
/// must not be.
pub fn retire<F: Files>(
    files: &F,
    signer: &dyn Signer,
    keep: Keep,
    now: UnixMs,
) -> Result<Retired, RetireError> {
    let mut sequences: Vec<u64> =
        files.names()?.iter().filter_map(|name| format::sequence(name)).collect();
    sequences.sort_unstable();
    let mut bytes = 0;
    for &sequence in &sequences {
        bytes += files.open(&format::name(sequence))?.size()?;
    }
    let trusted = [signer.public()];
    let heads: Result<Vec<Checkpoint>, _> = heads_of(files)?.into_iter().collect();
    let mut heads = heads.map_err(|_| RetireError::Heads)?;
    let mut retired = Retired::default();
    for pair in sequences.windows(2) {
        let &[sequence, next] = pair else { continue };
        let Ok(follows) = Walk::open(files.open(&format::name(next))?)? else { break };
        let follows = *follows.header();
        let old = keep.since.is_some_and(|since| follows.newest < since);
        let much = keep.bytes.is_some_and(|most| bytes > most);
        if !old && !much {
            break;
        }
        if follows.sequence != sequence + 1 || follows.ended == Ended::Damaged {
            return Err(RetireError::Damaged { sequence });
        }
        // Whoever was stopped between the two left the head and the segment.
        let last = heads.last().map_or(0, Checkpoint::sequence);
        let listed = last == sequence;
        if !listed && last + 1 != sequence {
            return Err(RetireError::Damaged { sequence });
        }
        let len = if listed {
            files.open(&format::name(sequence))?.size()?
        } else {
            let (len, statement) = head(files, sequence, &follows, &trusted, now)?;
            heads.push(statement.sign(signer)?);
            heads.drain(..heads.len().saturating_sub(HEADS_MAX));
            write_heads(files, &heads)?;
            len
        };
        files.remove(&format::name(sequence))?;
        files.sync_dir()?;
        bytes = bytes.saturating_sub(len);
        retired.segments += 1;
        retired.bytes += len;
        retired.from = follows.first_record;
    }
    Ok(retired)
}

/// Reads a segment from end to end, so that no head is signed for one that was changed.
fn head<F: Files>(
    files: &F,
    sequence: u64,
    follows: &Header,
    trusted: &[claviger_crypto::sign::PublicKey],
    at: UnixMs,
) -> Result<(u64, Statement), RetireError> {
    let damaged = || RetireError::Damaged { sequence };
    let walk = Walk::open(files.open(&format::name(sequence))?)?;
    let mut walk = walk.map_err(|_| damaged())?;
    let header = *walk.header();
    while walk.mark().len < follows.before_len {
        let mark = walk.mark();
        match walk.step()? {
            Step::Group { .. } => {}
            Step::Checkpoint(checkpoint) => {
                // Keys change; one that is not trusted any longer says nothing here.
                let contradicts = checkpoint.signed_by(trusted)
                    && (checkpoint.head() != &mark.link || checkpoint.offset() != mark.len);
                if contradicts {
                    return Err(damaged());
                }
            }
            Step::End | Step::Broken => return Err(damaged()),
        }
    }
    let mark = walk.mark();
    let joins = header.sequence == sequence
        && mark.link == follows.before_head
        && mark.len == follows.before_len
        && mark.records + 1 == follows.first_record;
    if !joins {
        return Err(damaged());
    }
    let statement = Statement {
        why: Why::Removed,
        writer: header.writer,
        start: header.start,
        sequence,
        offset: mark.len,
        records: mark.records,
        at,
        head: mark.link,
        key: trusted.first().map(|key| key.id()).unwrap_or_default(),
        anchor: Anchor::default(),
    };
    Ok((walk.len(), statement))
}

/// Replaces the list in one step.
fn write_heads<F: Files>(files: &F, heads: &[Checkpoint]) -> io::Result<()> {
    let text: String = heads.iter().map(|head| format!("{head}\n")).collect();
    let file = files.create(HEADS_NEW)?;
    file.write_at(text.as_bytes(), 0)?;
    file.sync()?;
    files.rename(HEADS_NEW, HEADS)?;
    files.sync_dir()
}
