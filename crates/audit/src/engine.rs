//! Writes groups, flushes them, signs the chain's head, goes on in a new segment. One caller at a
//! time; no threads here, so that a test can stop it anywhere.

use crate::checkpoint::{Anchor, Checkpoint, SignError, Signer, Statement, Why};
use crate::files::{File, Files};
use crate::format::{self, Ended, GROUP_MAX, Group, HEADER_LEN, Header, Link, Mark};
use crate::walk::CUT_MAX;
use crate::{WriterId, format::LINK_LEN};
use claviger_domain::id::UnixMs;
use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::time::Duration;
use thiserror::Error;

/// In [`Durability::Written`], a flush begins when the oldest record that it is for has been
/// answered this long. The rest of [`WINDOW`] is left to the disk.
pub const SYNC_AFTER: Duration = Duration::from_millis(8);
/// In [`Durability::Written`], a record that was answered longer ago than this is durable; if the
/// disk has not managed it by then, no further record is answered before it has.
pub const WINDOW: Duration = Duration::from_millis(20);
/// Longest time between two checkpoints while records come.
pub const CHECKPOINT_MS_MAX: u64 = 60_000;
/// Bytes that are written and not flushed; with one group that is written and one whose write
/// failed, no more than [`CUT_MAX`] can be torn.
const UNSYNCED_MAX: usize = CUT_MAX as usize - 2 * (GROUP_MAX + 64);
/// Pause before what failed is tried again without a record that asks for it.
const AGAIN: Duration = Duration::from_secs(1);
/// Pause between looks at a flush under way, when nothing else is to be done.
const LOOK: Duration = Duration::from_millis(1);

/// When a record counts as recorded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Durability {
    /// After the flush of its group. Loss of power loses nothing that was answered.
    Synced,
    /// After the write of its group, which is flushed within [`WINDOW`]. The end of the process
    /// loses nothing that was answered; loss of power, or of the kernel, loses what was answered
    /// in the window before. It holds while the disk needs at most 9 ms for one flush; with a
    /// slower one, what is lost was answered within [`WINDOW`] and the time of two flushes.
    Written,
}

/// How a log is written.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// When a record counts as recorded.
    pub durability: Durability,
    /// Bytes after which a segment is full.
    pub segment_bytes: u64,
    /// Time between checkpoints while records come, at most [`CHECKPOINT_MS_MAX`].
    pub checkpoint_ms: u64,
}

impl Default for Options {
    fn default() -> Self {
        // Two checkpoints may be the pause and a slow disk apart.
        Self {
            durability: Durability::Synced,
            segment_bytes: 64 * 1024 * 1024,
            checkpoint_ms: 45_000,
        }
    }
}

/// Time, as the engine sees it.
pub(crate) trait Clock: Send {
    /// Never goes back.
    fn elapsed(&self) -> Duration;
    fn now(&self) -> UnixMs;
}

/// Flushes a file beside the engine, one at a time.
pub(crate) trait Syncer<A>: Send {
    /// Begins; what was written until now has to be durable at the end.
    fn start(&mut self, file: &Arc<A>);
    /// How it ended, once.
    fn poll(&mut self) -> Option<io::Result<()>>;
    /// Waits for the end.
    fn wait(&mut self) -> io::Result<()>;
}

/// What the engine works with.
pub(crate) struct Parts<F: Files> {
    pub files: F,
    pub clock: Box<dyn Clock>,
    pub syncer: Box<dyn Syncer<F::File>>,
    pub signer: Box<dyn Signer>,
    pub anchor: Box<dyn FnMut() -> Anchor + Send>,
}

/// The segment that is written to.
struct Active<A> {
    file: Arc<A>,
    /// Behind the last whole frame.
    whole: Mark,
    /// Behind the last flush that succeeded.
    durable: Mark,
    /// Behind the last byte that may stand in the file.
    reach: u64,
    flight: Option<Flight>,
}

/// A flush under way.
struct Flight {
    /// Up to where.
    mark: Mark,
    /// Over how many of the groups that were answered.
    groups: usize,
    /// When to look whether it has ended.
    look: Duration,
}

/// How the segment before the next one ends.
#[derive(Clone, Copy)]
pub(crate) struct Before {
    pub ended: Ended,
    pub mark: Mark,
    pub cut: u64,
}

/// Groups that were answered and are not durable yet, kept to be written again if a flush fails.
#[derive(Default)]
struct Unsynced {
    frames: Vec<u8>,
    groups: VecDeque<Kept>,
    /// Whether they stand in no segment that is written to.
    owed: bool,
}

struct Kept {
    len: usize,
    records: u32,
    answered: Duration,
}

impl Unsynced {
    fn forget(&mut self, groups: usize) {
        let bytes: usize = self.groups.drain(..groups).map(|kept| kept.len).sum();
        self.frames.drain(..bytes);
    }
}

/// A checkpoint could not be made. The records are not concerned.
#[derive(Debug, Error)]
pub(crate) enum NoCheckpoint {
    #[error("an audit checkpoint could not be written")]
    Io(#[source] io::Error),
    #[error("an audit checkpoint could not be signed")]
    Sign(#[source] SignError),
}

pub(crate) struct Engine<F: Files> {
    parts: Parts<F>,
    _lock: F::Lock,
    options: Options,
    writer: WriterId,
    start: u64,
    /// Of the newest segment.
    sequence: u64,
    newest: UnixMs,
    before: Before,
    active: Option<Active<F::File>>,
    unsynced: Unsynced,
    /// Bytes to cut off the segment before, once this one says so.
    to_cut: Option<(Arc<F::File>, u64)>,
    /// Since when there have been records that no checkpoint covers.
    uncovered: Option<Duration>,
    /// When something is to be tried again.
    again: Option<Duration>,
    made: Vec<Checkpoint>,
}

/// Where a start goes on.
pub(crate) struct Origin<F: Files> {
    pub lock: F::Lock,
    pub writer: WriterId,
    pub start: u64,
    pub sequence: u64,
    pub newest: UnixMs,
    pub before: Before,
    pub to_cut: Option<(Arc<F::File>, u64)>,
}

impl<F: Files> Engine<F> {
    pub(crate) fn new(parts: Parts<F>, origin: Origin<F>, options: Options) -> Self {
        let options =
            Options { checkpoint_ms: options.checkpoint_ms.min(CHECKPOINT_MS_MAX), ..options };
        Self {
            parts,
            _lock: origin.lock,
            options,
            writer: origin.writer,
            start: origin.start,
            sequence: origin.sequence,
            newest: origin.newest,
            before: origin.before,
            active: None,
            unsynced: Unsynced::default(),
            to_cut: origin.to_cut,
            uncovered: None,
            again: None,
            made: Vec::new(),
        }
    }

    /// Number of the last record.
    pub(crate) fn records(&self) -> u64 {
        self.active.as_ref().map_or(self.before.mark.records, |active| active.whole.records)
    }

    /// Whether there is a segment to write to that holds all that was answered.
    pub(crate) fn is_ready(&self) -> bool {
        self.active.is_some() && !self.unsynced.owed
    }

    /// Checkpoints made since the last call; they are durable.
    pub(crate) fn made(&mut self) -> Vec<Checkpoint> {
        std::mem::take(&mut self.made)
    }

    /// Now, by the engine's clock.
    pub(crate) fn elapsed(&self) -> Duration {
        self.parts.clock.elapsed()
    }

    /// When [`Engine::tick`] has something to do.
    pub(crate) fn due(&self) -> Option<Duration> {
        let flight = self.active.as_ref().and_then(|active| active.flight.as_ref());
        let flush = match (flight, self.unsynced.groups.front()) {
            (Some(flight), _) => Some(flight.look),
            (None, Some(oldest)) if !self.unsynced.owed => Some(oldest.answered + SYNC_AFTER),
            _ => None,
        };
        let pause = Duration::from_millis(self.options.checkpoint_ms);
        let checkpoint = self.uncovered.map(|since| since + pause);
        // What failed has its own pause, or it would be tried without one.
        let checkpoint = checkpoint.map(|at| self.again.map_or(at, |again| at.max(again)));
        let again = (!self.is_ready()).then(|| self.again.unwrap_or_else(|| self.elapsed()));
        [flush, checkpoint, again].into_iter().flatten().min()
    }

    /// Does what has become due.
    pub(crate) fn tick(&mut self) {
        self.poll();
        if !self.is_ready() {
            if self.again.is_some_and(|again| self.elapsed() < again) {
                return;
            }
            if let Err(e) = self.ready() {
                tracing::error!(error = %e, "the audit log cannot be written");
                self.again = Some(self.elapsed() + AGAIN);
                return;
            }
        }
        self.flush_if_due();
        let pause = Duration::from_millis(self.options.checkpoint_ms);
        let waits = self.again.is_some_and(|again| self.elapsed() < again);
        if !waits && self.uncovered.is_some_and(|since| self.elapsed() >= since + pause) {
            match self.checkpoint(Why::Due) {
                Ok(()) => self.again = None,
                Err(e) => {
                    let cause = std::error::Error::source(&e).map(ToString::to_string);
                    tracing::error!(error = %e, cause, "no audit checkpoint");
                    self.again = Some(self.elapsed() + AGAIN);
                }
            }
        }
    }

    /// Puts a group into the log; returns when its records count as recorded.
    ///
    /// After an error none of them may be answered as done. They may stand in the log all the
    /// same if the process ends before it could cut them off.
    pub(crate) fn put(&mut self, group: &mut Group) -> io::Result<()> {
        let (records, newest) = (group.count(), group.newest());
        let frame = group.frame();
        let mut done = self.attempt(frame, records);
        if done.is_err() && self.active.is_none() {
            // The segment was given up: its disk may take a new one. Once, then the caller knows.
            done = self.attempt(frame, records);
        }
        match &done {
            Ok(()) => {
                self.newest = self.newest.max(newest);
                self.uncovered.get_or_insert(self.parts.clock.elapsed());
            }
            Err(_) => self.again = Some(self.elapsed() + AGAIN),
        }
        done
    }

    fn attempt(&mut self, frame: &mut [u8], records: u32) -> io::Result<()> {
        self.poll();
        self.ready()?;
        match self.options.durability {
            Durability::Synced => {
                self.write(frame, records)?;
                self.sync()
            }
            Durability::Written => {
                let late = |at: &Kept| self.parts.clock.elapsed() >= at.answered + WINDOW;
                if self.unsynced.groups.front().is_some_and(late)
                    || self.unsynced.frames.len() + frame.len() > UNSYNCED_MAX
                {
                    self.sync()?;
                }
                self.write(frame, records)?;
                let answered = self.parts.clock.elapsed();
                self.unsynced.frames.extend_from_slice(frame);
                self.unsynced.groups.push_back(Kept { len: frame.len(), records, answered });
                self.flush_if_due();
                Ok(())
            }
        }
    }

    /// Flushes all, signs a last checkpoint. Records come no longer.
    pub(crate) fn close(&mut self) -> Result<(), NoCheckpoint> {
        self.ready().map_err(NoCheckpoint::Io)?;
        self.checkpoint(Why::Closed)
    }

    /// Makes sure that there is a segment to write to, with room, that holds all that was
    /// answered.
    pub(crate) fn ready(&mut self) -> io::Result<()> {
        if self.active.as_ref().is_some_and(|active| active.whole.len >= self.options.segment_bytes)
        {
            self.rotate()?;
        }
        if self.active.is_none() {
            self.create()?;
        }
        if self.unsynced.owed {
            self.write_again()?;
        }
        if let Some((file, len)) = self.to_cut.take() {
            // The header says what is cut off; if the cut fails, readers know where to stop.
            let _ = file.truncate(len).and_then(|()| file.sync());
        }
        Ok(())
    }

    /// Leaves a full segment.
    fn rotate(&mut self) -> io::Result<()> {
        self.sync()?;
        let ended = match self.checkpoint(Why::Full) {
            Ok(()) => Ended::Whole,
            Err(NoCheckpoint::Sign(e)) => {
                tracing::error!(error = %e, "a full audit segment ends without a checkpoint");
                Ended::Unsigned
            }
            Err(NoCheckpoint::Io(e)) => return Err(e),
        };
        if let Some(active) = self.active.take() {
            self.before = Before { ended, mark: active.whole, cut: 0 };
        }
        Ok(())
    }

    /// Starts the next segment. Its header is durable before anything follows it.
    fn create(&mut self) -> io::Result<()> {
        let Before { ended, mark, cut } = self.before;
        let sequence = self.sequence + 1;
        let header = Header {
            ended,
            writer: self.writer,
            start: self.start,
            sequence,
            first_record: mark.records + 1,
            created: self.parts.clock.now(),
            newest: self.newest,
            before_len: mark.len,
            before_cut: cut,
            before_head: mark.link,
        };
        let bytes = header.encode();
        let (files, name) = (&self.parts.files, format::name(sequence));
        let made = files.create(&name).and_then(|file| {
            file.write_at(&bytes, 0)?;
            file.sync()?;
            files.sync_dir()?;
            Ok(file)
        });
        let file = made.inspect_err(|_| {
            // Carries nothing; if it stays, the next try empties it.
            let _ = files.remove(&name);
        })?;
        let link: Link = bytes[HEADER_LEN - LINK_LEN..].try_into().expect("a header ends so");
        let mark = header.mark(link);
        self.sequence = sequence;
        self.active = Some(Active {
            file: Arc::new(file),
            whole: mark,
            durable: mark,
            reach: mark.len,
            flight: None,
        });
        Ok(())
    }

    /// Writes what was answered and lies in a segment that was given up.
    fn write_again(&mut self) -> io::Result<()> {
        let mut frames = std::mem::take(&mut self.unsynced.frames);
        let mut rest = frames.as_mut_slice();
        let mut done = Ok(());
        let groups: Vec<_> = self.unsynced.groups.iter().map(|k| (k.len, k.records)).collect();
        for (len, records) in groups {
            let (frame, behind) = rest.split_at_mut(len);
            done = self.write(frame, records);
            if done.is_err() {
                break;
            }
            rest = behind;
        }
        self.unsynced.frames = frames;
        if done.is_err()
            && let Some(active) = &mut self.active
        {
            // From the start the next time.
            active.whole = active.durable;
            cut(active);
        }
        done?;
        self.unsynced.owed = false;
        self.sync()
    }

    /// Writes a frame behind the last one.
    fn write(&mut self, frame: &mut [u8], records: u32) -> io::Result<()> {
        let active = self.active.as_mut().ok_or_else(given_up)?;
        let link = format::chain(&active.whole.link, frame);
        let len = active.whole.len + frame.len() as u64;
        active.reach = active.reach.max(len);
        if let Err(e) = active.file.write_at(frame, active.whole.len) {
            cut(active);
            return Err(e);
        }
        active.whole = Mark { len, link, records: active.whole.records + u64::from(records) };
        Ok(())
    }

    /// Makes everything that was written durable.
    fn sync(&mut self) -> io::Result<()> {
        self.land()?;
        let active = self.active.as_mut().ok_or_else(given_up)?;
        if active.durable == active.whole {
            return Ok(());
        }
        let synced = active.file.sync();
        match synced {
            Ok(()) => {
                active.durable = active.whole;
                self.unsynced.forget(self.unsynced.groups.len());
                Ok(())
            }
            Err(e) => {
                self.give_up();
                Err(e)
            }
        }
    }

    /// Begins a flush if one is due and none is under way.
    fn flush_if_due(&mut self) {
        let Some(oldest) = self.unsynced.groups.front().map(|oldest| oldest.answered) else {
            return;
        };
        let now = self.elapsed();
        if self.unsynced.owed || now < oldest + SYNC_AFTER {
            return;
        }
        if let Some(active) = &mut self.active
            && active.flight.is_none()
        {
            let groups = self.unsynced.groups.len();
            active.flight = Some(Flight { mark: active.whole, groups, look: now + LOOK });
            self.parts.syncer.start(&active.file);
        }
    }

    /// Takes note of a flush that has ended.
    fn poll(&mut self) {
        let now = self.elapsed();
        let flight = self.active.as_mut().and_then(|active| active.flight.as_mut());
        let Some(flight) = flight else { return };
        flight.look = now + LOOK;
        let Some(synced) = self.parts.syncer.poll() else { return };
        if let Err(error) = self.landed(synced) {
            tracing::error!(%error, "the disk did not flush an audit segment; going on in a new one");
            // What was answered has to be durable as soon as can be.
            if let Err(error) = self.ready() {
                tracing::error!(%error, "the audit log cannot be written");
                self.again = Some(self.elapsed() + AGAIN);
            }
        }
    }

    /// Waits for a flush under way. Two at once on one file would not do: the kernel tells an
    /// error to only one of them.
    fn land(&mut self) -> io::Result<()> {
        if self.active.as_ref().is_some_and(|active| active.flight.is_some()) {
            let synced = self.parts.syncer.wait();
            self.landed(synced)?;
        }
        Ok(())
    }

    fn landed(&mut self, synced: io::Result<()>) -> io::Result<()> {
        let flight = self.active.as_mut().and_then(|active| {
            active.flight.take().inspect(|flight| {
                if synced.is_ok() {
                    active.durable = flight.mark;
                }
            })
        });
        match (&synced, flight) {
            (Ok(()), Some(flight)) => self.unsynced.forget(flight.groups),
            (Ok(()), None) => {}
            (Err(_), _) => self.give_up(),
        }
        synced
    }

    /// Leaves a segment whose flush failed: the kernel may have dropped the bytes and will say
    /// nothing more of them. What counts is what was durable before; what was answered since is
    /// written into the next segment.
    fn give_up(&mut self) {
        let Some(active) = self.active.take() else { return };
        let cut = active.reach - active.durable.len;
        self.before = Before { ended: Ended::Doubtful, mark: active.durable, cut };
        self.to_cut = Some((active.file, active.durable.len));
        self.unsynced.owed = !self.unsynced.groups.is_empty();
    }

    /// Signs the head. Everything before is durable when the checkpoint is written, so whoever
    /// finds one knows that nothing before it was torn; the checkpoint is durable before anybody
    /// else sees it, so whoever has seen one knows that the log has it.
    fn checkpoint(&mut self, why: Why) -> Result<(), NoCheckpoint> {
        self.sync().map_err(NoCheckpoint::Io)?;
        let anchor = (self.parts.anchor)();
        let active = self.active.as_ref().ok_or_else(given_up).map_err(NoCheckpoint::Io)?;
        let statement = Statement {
            why,
            writer: self.writer,
            start: self.start,
            sequence: self.sequence,
            offset: active.whole.len,
            records: active.whole.records,
            at: self.parts.clock.now(),
            head: active.whole.link,
            key: self.parts.signer.public().id(),
            anchor,
        };
        let checkpoint = statement.sign(&*self.parts.signer).map_err(NoCheckpoint::Sign)?;
        let mut frame = format::checkpoint_frame(&checkpoint.encode());
        self.write(&mut frame, 0).map_err(NoCheckpoint::Io)?;
        self.sync().map_err(NoCheckpoint::Io)?;
        self.uncovered = None;
        self.made.push(checkpoint);
        Ok(())
    }
}

/// Cuts off what stands behind the last whole frame. If it fails, the next write goes over it.
fn cut<A: File>(active: &mut Active<A>) {
    let _ = active.file.truncate(active.whole.len);
}

fn given_up() -> io::Error {
    io::Error::other("the segment was given up")
}
