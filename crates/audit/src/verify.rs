//! Holds a log against its own chain, the signatures in it, and checkpoints that left the machine.

use crate::WriterId;
use crate::checkpoint::{Checkpoint, Why, checkpoints_of};
use crate::files::{File, Files};
use crate::format::{self, Ended, Header, Mark};
use crate::retire::HEADS;
use crate::walk::{Step, Walk};
use claviger_crypto::sign::PublicKey;
use claviger_domain::id::UnixMs;
use std::fmt;
use std::io;
use std::iter::Peekable;

/// Findings that a report holds; more are only counted.
pub const FINDINGS_MAX: usize = 1_000;

/// Something that is not as it was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Finding {
    /// Which segment.
    pub sequence: u64,
    /// Where in its file.
    pub offset: u64,
    /// The first record that is concerned, counted over the writer's life.
    pub record: u64,
    /// What is wrong.
    pub what: What,
}

/// What is wrong with a log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum What {
    /// The segment's header cannot be read. Its records cannot be checked.
    Header,
    /// The file holds another segment than its name says.
    Misplaced {
        /// Which.
        holds: u64,
    },
    /// The segment is of another writer.
    Foreign(WriterId),
    /// Segments are missing before this one.
    Gap {
        /// How many.
        segments: u64,
    },
    /// Bytes do not chain: they were changed, or are no frames at all. What follows in this
    /// segment cannot be checked.
    Edited,
    /// The segment does not go on where the one before it ends.
    Chain,
    /// Records are missing that the next segment, or a checkpoint, counted.
    Truncated {
        /// The last record that there was.
        records: u64,
    },
    /// Bytes stand behind the segment's end.
    Extra,
    /// A checkpoint in the log is signed by no trusted key, or says something else than the log.
    Forged,
    /// The log says something else than a checkpoint that left the machine.
    Rewritten,
    /// A checkpoint from outside is signed by no trusted key.
    ForgedOutside,
    /// The segment should end with a checkpoint and does not.
    NoCheckpoint,
    /// The last segment ends in a torn frame, and nobody writes: its writer was stopped. The next
    /// start cuts it off and says so.
    Torn,
    /// The writer itself found the segment before this one damaged when it started.
    FoundDamaged,
    /// The list of removed segments is not whole.
    Heads,
}

impl fmt::Display for What {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            What::Header => write!(f, "the header cannot be read"),
            What::Misplaced { holds } => write!(f, "the file holds segment {holds}"),
            What::Foreign(writer) => write!(f, "the segment is of writer {writer}"),
            What::Gap { segments } => write!(f, "{segments} segment(s) are missing before it"),
            What::Edited => write!(f, "bytes were changed"),
            What::Chain => write!(f, "it does not go on where the segment before it ends"),
            What::Truncated { records } => write!(f, "the end is missing, up to record {records}"),
            What::Extra => write!(f, "bytes stand behind the end"),
            What::Forged => write!(f, "the checkpoint is forged"),
            What::Rewritten => write!(f, "a checkpoint from outside says something else"),
            What::ForgedOutside => write!(f, "a checkpoint from outside is forged"),
            What::NoCheckpoint => write!(f, "the checkpoint at its end is missing"),
            What::Torn => write!(f, "the last frame is torn; the writer was stopped"),
            What::FoundDamaged => {
                write!(f, "the writer found the segment before it damaged when it started")
            }
            What::Heads => write!(f, "the list of removed segments is not whole"),
        }
    }
}

/// Bytes behind the last whole frame of the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tail {
    /// Where they begin in the last segment.
    pub offset: u64,
    /// How many.
    pub bytes: u64,
}

/// What [`verify`] saw.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Report {
    /// Whose log; none if the directory holds none.
    pub writer: Option<WriterId>,
    /// Number of the first record that is there. Above 1 once segments were removed.
    pub from: u64,
    /// Number of the last record that is there.
    pub to: u64,
    /// Segments read.
    pub segments: u64,
    /// Segments removed by retention whose signed heads are there.
    pub removed: u64,
    /// Checkpoints in the log that hold.
    pub checkpoints: u64,
    /// Last record that a checkpoint in the log covers, and when that was signed. What comes
    /// after is chained but not signed yet.
    pub signed: Option<(u64, UnixMs)>,
    /// Checkpoints from outside that the log agrees with.
    pub outside: u64,
    /// Checkpoints from outside about other writers or about removed segments.
    pub outside_unchecked: u64,
    /// Starts that found a torn tail, cut it off and said so.
    pub cuts: u64,
    /// A frame that is being written, or was torn; see [`What::Torn`].
    pub tail: Option<Tail>,
    /// What is wrong, at most [`FINDINGS_MAX`].
    pub findings: Vec<Finding>,
    /// How many more there are.
    pub more: u64,
}

impl Report {
    /// Whether nothing is wrong.
    pub fn is_whole(&self) -> bool {
        self.findings.is_empty()
    }

    fn finding(&mut self, sequence: u64, mark: (u64, u64), what: What) {
        if self.findings.len() < FINDINGS_MAX {
            let (offset, record) = mark;
            self.findings.push(Finding { sequence, offset, record, what });
        } else {
            self.more += 1;
        }
    }
}

/// Verifies the log in `files`: the chain of every segment and from one to the next, every
/// checkpoint in it by the keys in `trusted`, and that it agrees with the checkpoints in
/// `outside`. `seen` is called with each checkpoint of the log that holds, so that the caller can
/// follow its anchor.
///
/// Without checkpoints from outside, nobody can tell whether the end of the log is missing: give
/// those that have left the machine. The log may be written meanwhile.
pub fn verify<F: Files>(
    files: &F,
    trusted: &[PublicKey],
    outside: &[Checkpoint],
    seen: &mut dyn FnMut(&Checkpoint),
) -> io::Result<Report> {
    let mut report = Report::default();
    let heads = read_heads(files, trusted, &mut report)?;
    let mut sequences: Vec<u64> =
        files.names()?.iter().filter_map(|name| format::sequence(name)).collect();
    sequences.sort_unstable();
    let first = sequences.first().copied().unwrap_or(0);
    let mut known: Vec<&Checkpoint> = Vec::new();
    for checkpoint in outside {
        if !checkpoint.signed_by(trusted) {
            let place = (checkpoint.offset(), checkpoint.records());
            report.finding(checkpoint.sequence(), place, What::ForgedOutside);
        } else if checkpoint.sequence() < first || checkpoint.why() == Why::Removed {
            report.outside_unchecked += 1;
        } else {
            known.push(checkpoint);
        }
    }
    known.sort_by_key(|checkpoint| (checkpoint.sequence(), checkpoint.offset()));
    // A head may stand for a segment that is there still: whoever removed it was stopped.
    let head = heads.iter().rfind(|head| head.sequence() < first);
    let mut log = Reading {
        files,
        trusted,
        report,
        seen,
        last: head.map_or(0, Checkpoint::sequence),
        before: head.map(Expected::of),
    };
    log.unborn(&mut sequences)?;
    let mut next = None;
    for (index, &sequence) in sequences.iter().enumerate() {
        let walk = match next.take() {
            Some(walk) => walk,
            None => log.open(sequence)?,
        };
        let follower = match sequences.get(index + 1) {
            Some(&follower) => Some(log.open(follower)?),
            None => None,
        };
        log.gap(sequence);
        let Some(walk) = walk.filter(|walk| log.ours(walk.header())) else {
            log.before = None;
            next = follower;
            continue;
        };
        if log.report.from == 0 {
            let header = walk.header();
            log.report.from = header.first_record;
            let all = known.len();
            known.retain(|checkpoint| checkpoint.writer() == header.writer);
            log.report.outside_unchecked += (all - known.len()) as u64;
        }
        let mine = known.iter().copied().filter(|c| c.sequence() == sequence).collect();
        let follows = follower.as_ref().and_then(Option::as_ref).map(|walk| *walk.header());
        let follows = follows.filter(|header| header.sequence == sequence + 1);
        let last = index + 1 == sequences.len();
        log.segment(walk, follows.as_ref(), last, mine)?;
        next = follower;
    }
    let Reading { mut report, last, .. } = log;
    report.segments = sequences.len() as u64;
    // Checkpoints about segments that are not there.
    if let Some(checkpoint) = known.iter().rfind(|c| !sequences.contains(&c.sequence())) {
        let what = What::Truncated { records: checkpoint.records() };
        let place = (checkpoint.offset(), report.to + 1);
        report.finding(last.max(checkpoint.sequence()), place, what);
    }
    Ok(report)
}

/// Reads the signed heads of removed segments, oldest first; those that hold.
fn read_heads<F: Files>(
    files: &F,
    trusted: &[PublicKey],
    report: &mut Report,
) -> io::Result<Vec<Checkpoint>> {
    let mut heads: Vec<Checkpoint> = Vec::new();
    for head in heads_of(files)? {
        let holds = head.as_ref().is_ok_and(|head| {
            head.why() == Why::Removed
                && head.signed_by(trusted)
                && heads.last().is_none_or(|before| {
                    before.writer() == head.writer() && before.sequence() + 1 == head.sequence()
                })
        });
        match head {
            Ok(head) if holds => heads.push(head),
            _ => {
                let at = heads.last().map_or((0, 0), |head| (head.sequence(), head.records()));
                report.finding(at.0 + 1, (0, at.1 + 1), What::Heads);
                break;
            }
        }
    }
    report.removed = heads.len() as u64;
    Ok(heads)
}

/// Lines of the list of removed segments.
pub(crate) fn heads_of<F: Files>(
    files: &F,
) -> io::Result<Vec<Result<Checkpoint, crate::CheckpointError>>> {
    let file = match files.open(HEADS) {
        Ok(file) => file,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(e),
    };
    let len = file.size()?.min(crate::retire::HEADS_BYTES_MAX);
    let mut bytes = vec![0; usize::try_from(len).unwrap_or(0)];
    let read = file.read_at(&mut bytes, 0)?;
    Ok(checkpoints_of(&String::from_utf8_lossy(&bytes[..read])).collect())
}

/// Where the next segment has to go on.
struct Expected {
    start: u64,
    mark: Mark,
    newest: UnixMs,
    /// Bytes of the file.
    file_len: u64,
    /// Whether a checkpoint ends it that says that nothing follows.
    signed_end: bool,
}

impl Expected {
    fn of(head: &Checkpoint) -> Self {
        Self {
            start: head.start(),
            mark: Mark { len: head.offset(), link: *head.head(), records: head.records() },
            newest: UnixMs(0),
            file_len: head.offset(),
            signed_end: true,
        }
    }
}

struct Reading<'a, F: Files> {
    files: &'a F,
    trusted: &'a [PublicKey],
    report: Report,
    seen: &'a mut dyn FnMut(&Checkpoint),
    /// The last segment that was there, or was removed by retention.
    last: u64,
    /// None where the segment before cannot be relied on, or there is none.
    before: Option<Expected>,
}

type Known<'k> = Peekable<std::vec::IntoIter<&'k Checkpoint>>;

impl<F: Files> Reading<'_, F> {
    /// Leaves the newest segment out if its header was never durable: it carries nothing.
    fn unborn(&mut self, sequences: &mut Vec<u64>) -> io::Result<()> {
        let Some(&newest) = sequences.last() else { return Ok(()) };
        if let Err(header) = Walk::open(self.files.open(&format::name(newest))?)?
            && header.unborn()
        {
            sequences.pop();
            self.report.tail = Some(Tail { offset: 0, bytes: header.len });
            if !self.files.locked()? {
                self.report.finding(newest, (0, 0), What::Torn);
            }
        }
        Ok(())
    }

    /// Opens a segment; none, and a finding, if it cannot be read as this one.
    fn open(&mut self, sequence: u64) -> io::Result<Option<Walk<F::File>>> {
        let at = (0, self.report.to + 1);
        let Ok(walk) = Walk::open(self.files.open(&format::name(sequence))?)? else {
            self.report.finding(sequence, at, What::Header);
            return Ok(None);
        };
        let header = walk.header();
        if header.sequence != sequence {
            self.report.finding(sequence, at, What::Misplaced { holds: header.sequence });
            return Ok(None);
        }
        Ok(Some(walk))
    }

    /// Whether a segment is of the log's writer: the one of the first segment.
    fn ours(&mut self, header: &Header) -> bool {
        let writer = *self.report.writer.get_or_insert(header.writer);
        if header.writer != writer {
            let at = (0, header.first_record);
            self.report.finding(header.sequence, at, What::Foreign(header.writer));
        }
        header.writer == writer
    }

    /// Looks whether segments are missing before this one.
    fn gap(&mut self, sequence: u64) {
        let segments = sequence - self.last - 1;
        if segments > 0 {
            self.report.finding(sequence, (0, self.report.to + 1), What::Gap { segments });
            self.before = None;
        }
        self.last = sequence;
    }

    /// Whether the segment goes on where the one before ended.
    fn joins(&mut self, header: &Header) {
        let (sequence, at) = (header.sequence, (0, header.first_record));
        let before = self.before.take();
        if header.ended == Ended::Damaged {
            self.report.finding(sequence, at, What::FoundDamaged);
            return;
        }
        self.report.cuts += u64::from(header.ended == Ended::Torn && header.before_cut > 0);
        let Some(before) = before else {
            let first = header.ended == Ended::First && header.first_record == 1;
            if sequence == 1 && !first {
                self.report.finding(sequence, at, What::Chain);
            }
            return;
        };
        let starts = match header.ended {
            Ended::Torn => header.start == before.start + 1,
            _ => header.start == before.start || header.start == before.start + 1,
        };
        let joins = header.before_head == before.mark.link
            && header.before_len == before.mark.len
            && header.first_record == before.mark.records + 1
            && header.newest >= before.newest
            && header.ended != Ended::First
            && starts;
        if !joins {
            self.report.finding(sequence, at, What::Chain);
        }
        let end = (before.mark.len, header.first_record);
        if before.file_len > before.mark.len + header.before_cut {
            self.report.finding(sequence - 1, end, What::Extra);
        }
        if header.ended == Ended::Whole && !before.signed_end {
            self.report.finding(sequence - 1, end, What::NoCheckpoint);
        }
    }

    /// Reads one segment up to where the one that `follows` says that it ends.
    fn segment(
        &mut self,
        mut walk: Walk<F::File>,
        follows: Option<&Header>,
        last: bool,
        known: Vec<&Checkpoint>,
    ) -> io::Result<()> {
        let header = *walk.header();
        let sequence = header.sequence;
        self.joins(&header);
        // A writer that found damage here does not know where the segment ended.
        let follows = follows.filter(|next| next.ended != Ended::Damaged);
        let mut known: Known<'_> = known.into_iter().peekable();
        let (mut newest, mut signed_end) = (header.newest, false);
        let whole = loop {
            let mark = walk.mark();
            let sent = self.hold(sequence, mark, &mut known);
            if follows.is_some_and(|next| mark.len >= next.before_len) {
                break true;
            }
            let step = walk.step()?;
            if let Some(sent) = sent {
                self.stands(last, mark, sent, &step);
            }
            match step {
                Step::Group { newest: group } => {
                    newest = newest.max(group);
                    signed_end = false;
                }
                Step::Checkpoint(checkpoint) => {
                    signed_end = matches!(checkpoint.why(), Why::Closed | Why::Full);
                    self.checkpoint(&header, mark, &checkpoint);
                }
                Step::End => break follows.is_none(),
                Step::Broken => break false,
            }
        };
        let mark = walk.mark();
        self.report.to = self.report.to.max(mark.records);
        let at = (mark.len, mark.records + 1);
        match follows {
            _ if whole => {}
            Some(next) if walk.len() < next.before_len => {
                let records = next.first_record.saturating_sub(1);
                self.report.finding(sequence, at, What::Truncated { records });
            }
            None if last && !walk.damaged(self.trusted)? => {
                self.report.tail = Some(Tail { offset: mark.len, bytes: walk.len() - mark.len });
                if !self.files.locked()? {
                    self.report.finding(sequence, at, What::Torn);
                }
            }
            _ => self.report.finding(sequence, at, What::Edited),
        }
        if (whole || last)
            && let Some(records) = known.map(|checkpoint| checkpoint.records()).max()
        {
            self.report.finding(sequence, at, What::Truncated { records });
        }
        self.before = whole.then(|| Expected {
            start: header.start,
            mark,
            newest,
            file_len: walk.len(),
            signed_end,
        });
        Ok(())
    }

    /// Holds checkpoints from outside against the chain. Gives the one that has to follow here.
    fn hold<'k>(
        &mut self,
        sequence: u64,
        mark: Mark,
        known: &mut Known<'k>,
    ) -> Option<&'k Checkpoint> {
        let mut sent = None;
        while let Some(checkpoint) = known.next_if(|c| c.offset() <= mark.len) {
            if checkpoint.offset() == mark.len && agrees(checkpoint, mark) {
                // The same one may have left by several ways.
                self.report.outside += 1;
                sent = Some(checkpoint);
            } else {
                let place = (checkpoint.offset(), checkpoint.records() + 1);
                self.report.finding(sequence, place, What::Rewritten);
            }
        }
        sent
    }

    /// Whether a checkpoint that left stands in the log itself: it was durable there before.
    fn stands(&mut self, last: bool, mark: Mark, sent: &Checkpoint, step: &Step) {
        let what = match step {
            Step::Checkpoint(checkpoint) if **checkpoint == *sent => return,
            // Further up, what is broken is found as such.
            Step::Broken if !last => return,
            Step::End | Step::Broken => What::Truncated { records: sent.records() },
            Step::Group { .. } | Step::Checkpoint(_) => What::Rewritten,
        };
        self.report.finding(sent.sequence(), (mark.len, mark.records + 1), what);
    }

    /// Looks at a checkpoint that stands in the log.
    fn checkpoint(&mut self, header: &Header, mark: Mark, checkpoint: &Checkpoint) {
        let holds = checkpoint.signed_by(self.trusted)
            && checkpoint.writer() == header.writer
            && checkpoint.start() == header.start
            && checkpoint.sequence() == header.sequence
            && checkpoint.offset() == mark.len
            && agrees(checkpoint, mark);
        if holds {
            self.report.checkpoints += 1;
            self.report.signed = Some((checkpoint.records(), checkpoint.at()));
            (self.seen)(checkpoint);
        } else {
            self.report.finding(header.sequence, (mark.len, mark.records + 1), What::Forged);
        }
    }
}

/// Whether a checkpoint says of its place what the chain says.
fn agrees(checkpoint: &Checkpoint, mark: Mark) -> bool {
    checkpoint.head() == &mark.link && checkpoint.records() == mark.records
}
