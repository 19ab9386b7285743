//! The log as its users see it: a queue, and the thread that writes.

use crate::checkpoint::{Anchor, Checkpoint, Signer};
use crate::engine::{Clock, Engine, Options, Parts, Syncer};
use crate::files::{File, Files};
use crate::format::{BODY_MAX, Group};
use crate::recover::{self, OpenError, Recovery};
use crate::sink::Sink;
use crate::{Record, WriterId};
use claviger_domain::id::UnixMs;
use std::io;
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant, SystemTime};
use thiserror::Error;

/// Records that wait. When so many wait, or as many bytes as a group holds, the disk does not
/// keep up; callers are refused then rather than queued without end.
pub const QUEUE: usize = 4096;
/// Checkpoints that wait to leave. One that finds no room is dropped: the next covers it.
const SINK_QUEUE: usize = 16;

/// A record was not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum Refused {
    /// Too many wait. Try again soon.
    #[error("too many audit records wait for the disk")]
    Full,
    /// The body is longer than [`BODY_MAX`].
    #[error("the audit record has {0} bytes, more than {BODY_MAX}")]
    TooLong(usize),
    /// The log is closed, or its thread has ended.
    #[error("the audit log is closed")]
    Closed,
}

/// Records were taken and could not be recorded: nothing they stand for may be answered as done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum NotRecorded {
    /// An operator has to make room; then it goes on by itself.
    #[error("the disk of the audit log is full")]
    NoSpace,
    /// The disk takes nothing. It is tried anew with each group, and each second.
    #[error("the disk of the audit log cannot be written")]
    Disk,
}

impl NotRecorded {
    fn of(error: &io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => NotRecorded::NoSpace,
            _ => NotRecorded::Disk,
        }
    }
}

/// Answers those who wait. Called on the log's thread, once for each group, so it wakes whoever
/// waits at most once for all of them; it must not wait for anything itself.
pub trait Settle<T>: Send {
    /// `tokens` are those of the group's records, in order; what is left in there is dropped.
    fn settle(&mut self, tokens: &mut Vec<T>, outcome: Result<(), NotRecorded>);
}

impl<T, S: FnMut(&mut Vec<T>, Result<(), NotRecorded>) + Send> Settle<T> for S {
    fn settle(&mut self, tokens: &mut Vec<T>, outcome: Result<(), NotRecorded>) {
        self(tokens, outcome);
    }
}

/// What a log asks of its surroundings.
pub struct Seams<T> {
    /// Signs checkpoints.
    pub signer: Box<dyn Signer>,
    /// Gives what the next checkpoint binds; called on the log's thread, where records wait for
    /// it, so it answers at once.
    pub anchor: Box<dyn FnMut() -> Anchor + Send>,
    /// Where checkpoints go to.
    pub sinks: Vec<Box<dyn Sink>>,
    /// Answers those who wait.
    pub settle: Box<dyn Settle<T>>,
}

/// How a log is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Health {
    /// Why the last group was not recorded, or no segment can be begun; none if all is well. It
    /// is the next record that shows whether a full disk has room again: do not stop appending.
    pub failing: Option<NotRecorded>,
    /// Number of the last record.
    pub records: u64,
    /// The last checkpoint, and the last record that it covers.
    pub checkpoint: Option<(UnixMs, u64)>,
    /// Checkpoints that did not leave by some sink.
    pub not_sent: u64,
    /// Whether the last one did not.
    pub sink_failing: bool,
}

struct Queue<T> {
    group: Group,
    tokens: Vec<T>,
    /// Whether the thread sleeps and has to be woken.
    asleep: bool,
    closed: bool,
}

struct Shared<T> {
    queue: Mutex<Queue<T>>,
    work: Condvar,
    health: Mutex<Health>,
}

/// No holder of these locks panics with half a change made.
fn locked<V>(mutex: &Mutex<V>) -> MutexGuard<'_, V> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<T> Shared<T> {
    fn close(&self) {
        locked(&self.queue).closed = true;
        self.work.notify_one();
    }
}

/// An open log that is written to. `T` is what a caller wants back when its record is settled,
/// for instance the sending half of a channel.
pub struct Log<T> {
    shared: Arc<Shared<T>>,
    thread: Option<JoinHandle<()>>,
}

impl<T: Send + 'static> Log<T> {
    /// Opens the log of `writer` in `files` and starts its thread. `known` are checkpoints that
    /// the caller keeps elsewhere, at least the newest one; the log's end is held against them.
    ///
    /// A full disk is no error here: records are refused until there is room.
    pub fn start<F: Files>(
        files: F,
        writer: WriterId,
        known: &[Checkpoint],
        options: Options,
        seams: Seams<T>,
    ) -> Result<(Self, Recovery), OpenError> {
        let Seams { signer, anchor, sinks, settle } = seams;
        let syncer = Box::new(SyncThread::new()?);
        let parts = Parts { files, clock: Box::new(System::new()), syncer, signer, anchor };
        let (engine, recovery) = recover::open(parts, writer, known, options)?;
        let queue = Queue { group: Group::new(), tokens: Vec::new(), asleep: false, closed: false };
        let failing = (!engine.is_ready()).then_some(NotRecorded::Disk);
        let health = Health { failing, records: recovery.records, ..Health::default() };
        let shared = Arc::new(Shared {
            queue: Mutex::new(queue),
            work: Condvar::new(),
            health: Mutex::new(health),
        });
        let leaving = Leaving::start(sinks, &shared)?;
        let thread = {
            let shared = Arc::clone(&shared);
            let named = thread::Builder::new().name("audit".into());
            named.spawn(move || Thread { shared, engine, settle, leaving }.run())?
        };
        Ok((Self { shared, thread: Some(thread) }, recovery))
    }

    /// Queues a record. Its token comes back by [`Settle`], once the record is recorded or
    /// could not be; if it is refused here, the token is dropped.
    pub fn append(&self, record: Record<'_>, token: T) -> Result<(), Refused> {
        if record.body.len() > BODY_MAX {
            return Err(Refused::TooLong(record.body.len()));
        }
        let mut queue = locked(&self.shared.queue);
        if queue.closed {
            return Err(Refused::Closed);
        }
        if queue.tokens.len() >= QUEUE || !queue.group.has_room(record.body.len()) {
            return Err(Refused::Full);
        }
        queue.group.push(record);
        queue.tokens.push(token);
        let asleep = std::mem::replace(&mut queue.asleep, false);
        drop(queue);
        if asleep {
            self.shared.work.notify_one();
        }
        Ok(())
    }

    /// How the log is doing.
    pub fn health(&self) -> Health {
        *locked(&self.shared.health)
    }

    /// Settles what waits, signs a last checkpoint, sends it, ends the threads. Dropping the log
    /// does the same.
    pub fn close(self) {}
}

impl<T> Drop for Log<T> {
    fn drop(&mut self) {
        self.shared.close();
        if let Some(thread) = self.thread.take() {
            // It has reported its own panic, if it had one.
            let _ = thread.join();
        }
    }
}

/// What runs on the log's thread.
struct Thread<T, F: Files> {
    shared: Arc<Shared<T>>,
    engine: Engine<F>,
    settle: Box<dyn Settle<T>>,
    leaving: Leaving,
}

impl<T, F: Files> Thread<T, F> {
    fn run(mut self) {
        let (mut group, mut tokens) = (Group::new(), Vec::new());
        let mut failing = locked(&self.shared.health).failing;
        loop {
            let closed = self.wait(&mut group, &mut tokens);
            if !group.is_empty() {
                let put = self.engine.put(&mut group);
                let outcome = put.as_ref().map_err(NotRecorded::of).copied();
                let now = outcome.err();
                // A disk that stays full would say so in each line of the logs.
                if now.is_some()
                    && now != failing
                    && let Err(error) = &put
                {
                    tracing::error!(%error, "audit records are not recorded");
                }
                if now.is_none() && failing.is_some() {
                    tracing::info!("audit records are recorded again");
                }
                failing = now;
                let mut health = locked(&self.shared.health);
                (health.failing, health.records) = (failing, self.engine.records());
                drop(health);
                self.settle.settle(&mut tokens, outcome);
                tokens.clear();
                group.clear();
            } else if closed {
                break;
            }
            if self.engine.due().is_some_and(|due| due <= self.engine.elapsed()) {
                let before = self.engine.is_ready();
                self.engine.tick();
                match (before, self.engine.is_ready()) {
                    (false, true) => failing = None,
                    (_, false) => failing = failing.or(Some(NotRecorded::Disk)),
                    (true, true) => {}
                }
                locked(&self.shared.health).failing = failing;
            }
            self.told();
        }
        if let Err(e) = self.engine.close() {
            tracing::error!(error = %e, "the audit log was closed without a checkpoint");
        }
        self.told();
    }

    /// Waits for records, or until something is due. Gives whether the log was closed.
    fn wait(&mut self, group: &mut Group, tokens: &mut Vec<T>) -> bool {
        let mut queue = locked(&self.shared.queue);
        while queue.group.is_empty() && !queue.closed {
            let due = self.engine.due().map(|due| due.saturating_sub(self.engine.elapsed()));
            if due == Some(Duration::ZERO) {
                break;
            }
            queue.asleep = true;
            let work = &self.shared.work;
            queue = match due {
                None => work.wait(queue).unwrap_or_else(PoisonError::into_inner),
                Some(due) => {
                    work.wait_timeout(queue, due).unwrap_or_else(PoisonError::into_inner).0
                }
            };
            queue.asleep = false;
        }
        std::mem::swap(&mut queue.group, group);
        std::mem::swap(&mut queue.tokens, tokens);
        queue.closed
    }

    /// Tells others what has become of it.
    fn told(&mut self) {
        let made = self.engine.made();
        if let Some(last) = made.last() {
            locked(&self.shared.health).checkpoint = Some((last.at(), last.records()));
        }
        for checkpoint in made {
            self.leaving.send(checkpoint, &self.shared.health);
        }
    }
}

/// A panic must not leave callers waiting: what comes is refused.
impl<T, F: Files> Drop for Thread<T, F> {
    fn drop(&mut self) {
        let mut queue = locked(&self.shared.queue);
        queue.closed = true;
        queue.tokens.clear();
    }
}

/// The thread on which checkpoints leave, so that a sink that hangs stops nobody.
struct Leaving {
    queue: Option<SyncSender<Checkpoint>>,
    thread: Option<JoinHandle<()>>,
}

impl Leaving {
    fn start<T: Send + 'static>(
        mut sinks: Vec<Box<dyn Sink>>,
        shared: &Arc<Shared<T>>,
    ) -> io::Result<Self> {
        if sinks.is_empty() {
            return Ok(Self { queue: None, thread: None });
        }
        let (queue, waiting) = sync_channel::<Checkpoint>(SINK_QUEUE);
        let shared = Arc::clone(shared);
        let thread = thread::Builder::new().name("audit-sinks".into()).spawn(move || {
            for checkpoint in waiting {
                let mut failed = false;
                for sink in &mut sinks {
                    if let Err(error) = sink.send(&checkpoint) {
                        tracing::error!(%error, "an audit checkpoint did not leave");
                        failed = true;
                    }
                }
                let mut health = locked(&shared.health);
                health.sink_failing = failed;
                health.not_sent += u64::from(failed);
            }
        })?;
        Ok(Self { queue: Some(queue), thread: Some(thread) })
    }

    fn send(&self, checkpoint: Checkpoint, health: &Mutex<Health>) {
        if let Some(queue) = &self.queue
            && let Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) =
                queue.try_send(checkpoint)
        {
            let mut health = locked(health);
            health.sink_failing = true;
            health.not_sent += 1;
        }
    }
}

impl Drop for Leaving {
    fn drop(&mut self) {
        self.queue = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// The machine's clocks.
struct System(Instant);

impl System {
    fn new() -> Self {
        Self(Instant::now())
    }
}

impl Clock for System {
    fn elapsed(&self) -> Duration {
        self.0.elapsed()
    }

    fn now(&self) -> UnixMs {
        let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        UnixMs(i64::try_from(since.as_millis()).unwrap_or(i64::MAX))
    }
}

/// Flushes on a thread of its own, so that groups go on being written meanwhile.
struct SyncThread<A> {
    files: SyncSender<Arc<A>>,
    ends: Receiver<io::Result<()>>,
}

impl<A: File> SyncThread<A> {
    fn new() -> io::Result<Self> {
        let (files, waiting) = sync_channel::<Arc<A>>(1);
        let (end, ends) = sync_channel(1);
        // Ends when the engine is dropped.
        thread::Builder::new().name("audit-sync".into()).spawn(move || {
            while let Ok(file) = waiting.recv() {
                if end.send(file.sync()).is_err() {
                    return;
                }
            }
        })?;
        Ok(Self { files, ends })
    }
}

fn ended() -> io::Error {
    io::Error::other("the thread that flushes has ended")
}

impl<A: File> Syncer<A> for SyncThread<A> {
    fn start(&mut self, file: &Arc<A>) {
        // If the thread has ended, the end is an error.
        let _ = self.files.try_send(Arc::clone(file));
    }

    fn poll(&mut self) -> Option<io::Result<()>> {
        match self.ends.try_recv() {
            Ok(synced) => Some(synced),
            Err(std::sync::mpsc::TryRecvError::Empty) => None,
            Err(std::sync::mpsc::TryRecvError::Disconnected) => Some(Err(ended())),
        }
    }

    fn wait(&mut self) -> io::Result<()> {
        self.ends.recv().unwrap_or_else(|_| Err(ended()))
    }
}
