//! A start: finds out how the last segment ended, and begins the next one, which says so.

use crate::checkpoint::Checkpoint;
use crate::engine::{Before, Engine, Options, Origin, Parts};
use crate::files::{File, Files};
use crate::format::{self, Ended, Mark};
use crate::verify::{Finding, What};
use crate::walk::{CUT_MAX, Step, Walk};
use crate::{Why, WriterId};
use claviger_crypto::sign::PublicKey;
use claviger_domain::id::UnixMs;
use std::io;
use std::sync::Arc;
use thiserror::Error;

/// A log cannot be opened.
#[derive(Debug, Error)]
pub enum OpenError {
    /// Another process writes it.
    #[error("another process writes this audit log")]
    Locked,
    /// The directory holds the log of another writer. Give this one a directory of its own.
    #[error("the directory holds the audit log of writer {0}")]
    OtherWriter(WriterId),
    /// A file cannot be read.
    #[error("the audit log cannot be read")]
    Io(#[from] io::Error),
}

/// What a start found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recovery {
    /// How the last segment ended.
    pub ended: Ended,
    /// Its number; 0 if there was none.
    pub sequence: u64,
    /// Bytes behind its last whole frame.
    pub cut: u64,
    /// Number of the last record.
    pub records: u64,
    /// What is wrong with the log's end: damage, or less than the known checkpoints say. The log
    /// goes on all the same, in a segment that says so. Only the last segment is read here;
    /// `verify` reads all.
    pub findings: Vec<Finding>,
}

/// Opens the log in `parts.files`, and holds its end against `known` checkpoints: ones that the
/// caller keeps elsewhere.
pub(crate) fn open<F: Files>(
    parts: Parts<F>,
    writer: WriterId,
    known: &[Checkpoint],
    options: Options,
) -> Result<(Engine<F>, Recovery), OpenError> {
    let lock = parts.files.lock()?.ok_or(OpenError::Locked)?;
    let trusted = [parts.signer.public()];
    let known: Vec<&Checkpoint> =
        known.iter().filter(|c| c.writer() == writer && c.signed_by(&trusted)).collect();
    let mut last = look(&parts.files, writer, &trusted, &known)?;
    // Whatever a checkpoint counted is not counted again: missing numbers show what is missing.
    let counted = known.iter().map(|checkpoint| checkpoint.records()).max().unwrap_or(0);
    if let Some(checkpoint) = known.iter().max_by_key(|c| (c.sequence(), c.offset()))
        && checkpoint.sequence() > last.sequence
    {
        last.finding(last.mark.len, What::Truncated { records: counted });
    }
    if !last.findings.is_empty() {
        last.before.ended = Ended::Damaged;
        last.to_cut = None;
    }
    last.before.mark.records = last.mark.records.max(counted);
    let sequence = known.iter().map(|c| c.sequence()).fold(last.sequence, u64::max);
    let recovery = Recovery {
        ended: last.before.ended,
        sequence: last.sequence,
        cut: last.before.cut,
        records: last.before.mark.records,
        findings: last.findings,
    };
    let origin = Origin {
        lock,
        writer,
        start: last.start.max(known.iter().map(|c| c.start()).max().unwrap_or(0)) + 1,
        sequence,
        newest: last.newest,
        before: last.before,
        to_cut: last.to_cut,
    };
    let mut engine = Engine::new(parts, origin, options);
    // What cannot be begun now is tried again.
    engine.tick();
    Ok((engine, recovery))
}

/// The last segment.
struct Last<A> {
    start: u64,
    sequence: u64,
    newest: UnixMs,
    mark: Mark,
    before: Before,
    to_cut: Option<(Arc<A>, u64)>,
    findings: Vec<Finding>,
}

impl<A> Last<A> {
    fn none() -> Self {
        let mark = Mark { len: 0, link: [0; 32], records: 0 };
        Self {
            start: 0,
            sequence: 0,
            newest: UnixMs(0),
            mark,
            before: Before { ended: Ended::First, mark, cut: 0 },
            to_cut: None,
            findings: Vec::new(),
        }
    }

    fn finding(&mut self, offset: u64, what: What) {
        let record = self.mark.records + 1;
        self.findings.push(Finding { sequence: self.sequence, offset, record, what });
    }
}

fn look<F: Files>(
    files: &F,
    writer: WriterId,
    trusted: &[PublicKey],
    known: &[&Checkpoint],
) -> Result<Last<F::File>, OpenError> {
    let mut sequences: Vec<u64> =
        files.names()?.iter().filter_map(|name| format::sequence(name)).collect();
    sequences.sort_unstable();
    let mut unreadable = Vec::new();
    let newest_name = sequences.last().copied().unwrap_or(0);
    while let Some(sequence) = sequences.pop() {
        let walk = match Walk::open(files.open(&format::name(sequence))?)? {
            Ok(walk) => walk,
            Err(header) if header.unborn() && sequence == newest_name => {
                // Nothing is written behind a header that is not durable.
                tracing::warn!(sequence, "an audit segment without a header is removed");
                files.remove(&format::name(sequence))?;
                files.sync_dir()?;
                continue;
            }
            Err(_) => {
                unreadable.push(sequence);
                continue;
            }
        };
        if walk.header().writer != writer {
            return Err(OpenError::OtherWriter(walk.header().writer));
        }
        let mut last = read(walk, trusted, known)?;
        // Their numbers are taken.
        last.sequence = unreadable.first().copied().unwrap_or(last.sequence);
        for sequence in unreadable {
            last.findings.push(Finding {
                sequence,
                offset: 0,
                record: last.mark.records + 1,
                what: What::Header,
            });
        }
        return Ok(last);
    }
    let mut last = Last::none();
    last.sequence = unreadable.first().copied().unwrap_or(0);
    for sequence in unreadable {
        last.findings.push(Finding { sequence, offset: 0, record: 1, what: What::Header });
    }
    Ok(last)
}

/// Reads the last segment to its end.
fn read<A: File>(
    mut walk: Walk<A>,
    trusted: &[PublicKey],
    known: &[&Checkpoint],
) -> io::Result<Last<A>> {
    let header = *walk.header();
    let mut known: Vec<&Checkpoint> =
        known.iter().copied().filter(|c| c.sequence() == header.sequence).collect();
    known.sort_by_key(|checkpoint| checkpoint.offset());
    let mut known = known.into_iter().peekable();
    let mut last = Last::none();
    (last.start, last.sequence, last.newest) = (header.start, header.sequence, header.newest);
    let mut signed_end = false;
    let mut conflict = None;
    // A checkpoint that left stood in the log before.
    let (broken, missing) = loop {
        last.mark = walk.mark();
        let mut sent = None;
        while let Some(checkpoint) = known.next_if(|c| c.offset() <= last.mark.len) {
            let agrees = checkpoint.offset() == last.mark.len
                && checkpoint.head() == &last.mark.link
                && checkpoint.records() == last.mark.records;
            if agrees {
                sent = Some(checkpoint.records());
            } else {
                conflict.get_or_insert(checkpoint.offset());
            }
        }
        match walk.step()? {
            Step::Group { newest } => {
                last.newest = last.newest.max(newest);
                signed_end = false;
            }
            Step::Checkpoint(checkpoint) => {
                signed_end = matches!(checkpoint.why(), Why::Closed | Why::Full);
            }
            Step::End => break (false, sent),
            Step::Broken => break (true, sent),
        }
    };
    if let Some(offset) = conflict {
        last.finding(offset, What::Rewritten);
    }
    let missing = known.map(|checkpoint| checkpoint.records()).max().or(missing);
    if let Some(records) = missing {
        last.finding(last.mark.len, What::Truncated { records });
    } else if broken && walk.damaged(trusted)? {
        last.finding(last.mark.len, What::Edited);
    }
    let cut = walk.len().saturating_sub(last.mark.len);
    let ended = if cut == 0 && signed_end { Ended::Whole } else { Ended::Torn };
    if last.findings.is_empty() {
        flush_again(&walk, last.mark.len)?;
    }
    last.before = Before { ended, mark: last.mark, cut };
    if cut > 0 {
        last.to_cut = Some((Arc::new(walk.into_file()), last.mark.len));
    }
    Ok(last)
}

/// Makes what was just read durable before anything is built on it. It may stand in the kernel's
/// memory alone; after a flush that failed, the kernel even takes it for flushed, so it has to be
/// written again.
fn flush_again<A: File>(walk: &Walk<A>, len: u64) -> io::Result<()> {
    let from = len.saturating_sub(CUT_MAX);
    let mut bytes = vec![0; usize::try_from(len - from).expect("CUT_MAX fits")];
    let read = walk.file().read_at(&mut bytes, from)?;
    walk.file().write_at(&bytes[..read], from)?;
    walk.file().sync()
}
