//! Reads records in the order in which they were written.

use crate::files::Files;
use crate::format;
use crate::walk::{Step, Walk};
use claviger_domain::id::UnixMs;
use std::collections::VecDeque;
use std::io;
use thiserror::Error;

/// One record of the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Counted over the writer's life, from 1.
    pub number: u64,
    /// When it happened.
    pub at: UnixMs,
    /// What its body is.
    pub kind: u16,
    /// The body.
    pub body: Vec<u8>,
}

/// A place in the log that cannot be read.
#[derive(Debug, Error)]
pub enum ReadError {
    /// Bytes that are not the log's. Reading goes on with the next segment; `verify` says more.
    #[error("segment {sequence} of the audit log is damaged from byte {offset} on")]
    Damaged {
        /// Which segment.
        sequence: u64,
        /// From where on.
        offset: u64,
    },
    /// A file cannot be read.
    #[error("segment {sequence} of the audit log cannot be read")]
    Io {
        /// Which segment.
        sequence: u64,
        /// Why not.
        #[source]
        source: io::Error,
    },
}

/// Reads forward; holds one group in memory. At the end it gives none, and more when asked again
/// after something was written, so it can follow a log. The chain within each segment is held
/// against what is read; signatures are [`crate::verify()`]'s business.
///
/// A log that is followed while its disk fails may give a record twice: once from where it was
/// not durable, once from where it stands now.
pub struct Reader<F: Files> {
    files: F,
    from: UnixMs,
    /// The segment that is read, and what follows it, once something does.
    open: Option<(Walk<F::File>, Option<Next>)>,
    /// Number of the segment that is read or comes next.
    sequence: u64,
    group: VecDeque<Entry>,
}

impl<F: Files> Reader<F> {
    /// Gives records that happened at `from` or later, each by its own time.
    pub fn open(files: F, from: UnixMs) -> io::Result<Self> {
        let mut sequences = sequences(&files)?;
        let mut sequence = 1;
        // The last segment that has only older ones before it.
        while let Some(last) = sequences.pop() {
            sequence = last;
            let walk = Walk::open(files.open(&format::name(last))?)?;
            if walk.is_ok_and(|walk| walk.header().newest < from) {
                break;
            }
        }
        Ok(Self { files, from, open: None, sequence, group: VecDeque::new() })
    }

    fn read(&mut self) -> Result<Option<Entry>, ReadError> {
        loop {
            if let Some(entry) = self.group.pop_front() {
                return Ok(Some(entry));
            }
            let sequence = self.sequence;
            let io = |source| ReadError::Io { sequence, source };
            let Some((walk, next)) = &mut self.open else {
                if self.begin()? {
                    continue;
                }
                return Ok(None);
            };
            let mark = walk.mark();
            // A segment ends where the next one says; what stands there is no part of the log.
            if let Some(next) = next.as_ref().filter(|next| mark.len >= next.before_len) {
                (self.sequence, self.open) = (next.sequence, None);
                continue;
            }
            match walk.step().map_err(io)? {
                Step::Group { .. } => {
                    let records = format::records(walk.payload()).unwrap_or_default();
                    let entries = (mark.records + 1..).zip(records).map(|(number, r)| Entry {
                        number,
                        at: r.at,
                        kind: r.kind,
                        body: r.body.to_vec(),
                    });
                    let from = self.from;
                    self.group.extend(entries.filter(|entry| entry.at >= from));
                }
                Step::Checkpoint(_) => {}
                Step::End | Step::Broken => {
                    let (len, known) = (walk.len(), next.is_some());
                    if !known {
                        *next = follows(&self.files, sequence).map_err(io)?;
                    }
                    // It may have grown since it was opened, in another process.
                    walk.look_again().map_err(io)?;
                    match next {
                        _ if walk.len() != len => {}
                        // The end, or a frame that is being written.
                        None => return Ok(None),
                        Some(next) if known => {
                            (self.sequence, self.open) = (next.sequence, None);
                            return Err(ReadError::Damaged { sequence, offset: mark.len });
                        }
                        Some(_) => {}
                    }
                }
            }
        }
    }

    /// Opens the segment that comes next; false if there is none yet.
    fn begin(&mut self) -> Result<bool, ReadError> {
        let io = |source| ReadError::Io { sequence: self.sequence, source };
        let sequences = sequences(&self.files).map_err(io)?;
        // Those before may have been removed by retention.
        let Some(sequence) = sequences.into_iter().find(|other| *other >= self.sequence) else {
            return Ok(false);
        };
        let io = |source| ReadError::Io { sequence, source };
        let opened = self.files.open(&format::name(sequence)).and_then(Walk::open).map_err(io)?;
        match opened {
            Ok(walk) => {
                self.open = Some((walk, follows(&self.files, sequence).map_err(io)?));
                self.sequence = sequence;
                Ok(true)
            }
            // Its header is being written.
            Err(header) if header.unborn() => Ok(false),
            Err(_) => {
                self.sequence = sequence + 1;
                Err(ReadError::Damaged { sequence, offset: 0 })
            }
        }
    }
}

impl<F: Files> Iterator for Reader<F> {
    type Item = Result<Entry, ReadError>;

    fn next(&mut self) -> Option<Self::Item> {
        self.read().transpose()
    }
}

struct Next {
    sequence: u64,
    before_len: u64,
}

/// What follows segment `sequence`, if anything does.
fn follows<F: Files>(files: &F, sequence: u64) -> io::Result<Option<Next>> {
    let Some(next) = sequences(files)?.into_iter().find(|other| *other > sequence) else {
        return Ok(None);
    };
    match Walk::open(files.open(&format::name(next))?)? {
        Ok(walk) => {
            let here = walk.header().sequence == sequence + 1;
            // After a gap nobody says where this one ends: reading it ends with an error.
            let before_len = if here { walk.header().before_len } else { u64::MAX };
            Ok(Some(Next { sequence: next, before_len }))
        }
        Err(header) if header.unborn() => Ok(None),
        Err(_) => Ok(Some(Next { sequence: next, before_len: u64::MAX })),
    }
}

fn sequences<F: Files>(files: &F) -> io::Result<Vec<u64>> {
    let mut sequences: Vec<u64> =
        files.names()?.iter().filter_map(|name| format::sequence(name)).collect();
    sequences.sort_unstable();
    Ok(sequences)
}
