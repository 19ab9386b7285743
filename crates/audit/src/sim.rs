//! A disk for tests that loses power, by seed. What was not flushed is kept, dropped or torn,
//! sector by sector; names that were not flushed come and go, each on its own. A flush that fails
//! forgets what it was for, as Linux does: a later one succeeds and says nothing of it.

use crate::engine::{Clock, Syncer};
use crate::files::{File, Files};
use claviger_domain::id::UnixMs;
use std::collections::BTreeMap;
use std::io;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, Weak};
use std::time::Duration;

/// Bytes that a disk writes whole or not at all, mostly.
const SECTOR: usize = 512;

/// SplitMix64: a few lines, the same numbers for ever.
pub(crate) struct Rng(pub u64);

impl Rng {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `bound`.
    pub(crate) fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.next() % bound.max(1) as u64).expect("below a usize")
    }

    pub(crate) fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }
}

#[derive(Default)]
struct Inode {
    /// What readers see.
    seen: Vec<u8>,
    /// What is on the disk.
    durable: Vec<u8>,
    dirty: Vec<Range<usize>>,
    /// Dirty ranges that a flush under way is for, and the length then.
    flying: Option<(Vec<Range<usize>>, usize)>,
}

impl Inode {
    fn keep(&mut self, ranges: &[Range<usize>], len: usize) {
        self.durable.resize(len, 0);
        for range in ranges {
            let range = range.start.min(len)..range.end.min(len).min(self.seen.len());
            if !range.is_empty() {
                self.durable[range.clone()].copy_from_slice(&self.seen[range]);
            }
        }
    }

    /// What is left when the power goes.
    fn lose(&mut self, rng: &mut Rng) {
        let (short, long) =
            (self.seen.len().min(self.durable.len()), self.seen.len().max(self.durable.len()));
        let mut dirty = std::mem::take(&mut self.dirty);
        dirty.extend(self.flying.take().map(|(ranges, _)| ranges).unwrap_or_default());
        let style = rng.below(4);
        let len = match style {
            0 => self.durable.len(),
            1 => self.seen.len(),
            _ => short + rng.below(long - short + 1),
        };
        let old = self.durable.len();
        self.durable.resize(len, 0);
        for byte in self.durable.iter_mut().skip(old) {
            // Blocks that were given to the file and not written hold anything.
            *byte = if style == 2 { 0 } else { rng.next().to_be_bytes()[0] };
        }
        for range in dirty {
            let mut at = range.start;
            while at < range.end {
                let end = ((at / SECTOR + 1) * SECTOR).min(range.end);
                let torn = if rng.one_in(8) { at + rng.below(end - at) } else { end };
                let kept = at..torn.min(len).min(self.seen.len());
                if (style == 1 || style > 1 && rng.one_in(2)) && kept.start < kept.end {
                    self.durable[kept.clone()].copy_from_slice(&self.seen[kept]);
                }
                at = end;
            }
        }
        self.seen.clone_from(&self.durable);
    }
}

enum Change {
    Named(String, usize),
    Renamed(String, String, usize),
    Removed(String),
}

/// What the disk does wrong.
#[derive(Default, Clone, Copy)]
pub(crate) struct Lies {
    /// Says that it has flushed a file, and has not.
    pub sync: bool,
    /// The same of names.
    pub sync_dir: bool,
}

struct State {
    rng: Rng,
    inodes: Vec<Inode>,
    names: BTreeMap<String, usize>,
    durable_names: BTreeMap<String, usize>,
    changes: Vec<Change>,
    lies: Lies,
    /// Bytes that files may still grow by.
    room: Option<usize>,
    /// Flushes and writes that fail next.
    sync_fails: bool,
    write_fails: bool,
    /// Operations until the power goes.
    fuse: Option<usize>,
    /// Since when the power is off.
    off: Option<Duration>,
    now: Duration,
    sync_ms_max: usize,
    lock: Weak<()>,
}

impl State {
    /// Counts an operation; none is done any longer once the power is off.
    fn step(&mut self) -> io::Result<()> {
        if let Some(fuse) = &mut self.fuse {
            if *fuse == 0 {
                self.off.get_or_insert(self.now);
            }
            *fuse = fuse.saturating_sub(1);
        }
        if self.off.is_some() { Err(io::Error::other("the power is off")) } else { Ok(()) }
    }

    fn takes_time(&mut self) {
        let ms = self.rng.below(self.sync_ms_max + 1);
        self.now += Duration::from_millis(ms as u64);
    }

    fn inode(&self, name: &str) -> io::Result<usize> {
        self.names.get(name).copied().ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    /// Ends a flush of `ranges`.
    fn flush(&mut self, inode: usize, ranges: &[Range<usize>], len: usize) -> io::Result<()> {
        if std::mem::take(&mut self.sync_fails) {
            let kept = self.rng.below(ranges.len() + 1);
            let file = &mut self.inodes[inode];
            let len = if self.rng.one_in(2) { len } else { file.durable.len() };
            file.keep(&ranges[..kept], len);
            return Err(io::Error::other("input/output error"));
        }
        if !self.lies.sync {
            self.inodes[inode].keep(ranges, len);
        }
        Ok(())
    }
}

/// The disk. Clones are the same disk.
#[derive(Clone)]
pub(crate) struct Disk(Arc<Mutex<State>>);

impl Disk {
    pub(crate) fn new(seed: u64, lies: Lies) -> Self {
        Self(Arc::new(Mutex::new(State {
            rng: Rng(seed),
            inodes: Vec::new(),
            names: BTreeMap::new(),
            durable_names: BTreeMap::new(),
            changes: Vec::new(),
            lies,
            room: None,
            sync_fails: false,
            write_fails: false,
            fuse: None,
            off: None,
            now: Duration::from_secs(1_000_000),
            sync_ms_max: 0,
            lock: Weak::new(),
        })))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().expect("no panic while it is held")
    }

    pub(crate) fn advance(&self, by: Duration) {
        self.state().now += by;
    }

    pub(crate) fn set_sync_ms_max(&self, ms: usize) {
        self.state().sync_ms_max = ms;
    }

    pub(crate) fn set_room(&self, bytes: Option<usize>) {
        self.state().room = bytes;
    }

    pub(crate) fn fail_sync(&self) {
        self.state().sync_fails = true;
    }

    pub(crate) fn fail_write(&self) {
        self.state().write_fails = true;
    }

    /// Lets the power go after so many operations.
    pub(crate) fn light_fuse(&self, operations: usize) {
        self.state().fuse = Some(operations);
    }

    /// Since when the power is off, if it is.
    pub(crate) fn off_since(&self) -> Option<Duration> {
        self.state().off
    }

    /// What a machine finds when it is switched on again. Without a loss of power: what a process
    /// finds after another one was killed.
    pub(crate) fn restart(&self, power_lost: bool) {
        let mut state = self.state();
        let state = &mut *state;
        (state.fuse, state.off, state.room) = (None, None, None);
        (state.sync_fails, state.write_fails) = (false, false);
        if !power_lost {
            for inode in &mut state.inodes {
                // The kernel goes on without the process.
                let flying = inode.flying.take().map(|(ranges, _)| ranges);
                inode.dirty.extend(flying.unwrap_or_default());
            }
            return;
        }
        let mut names = std::mem::take(&mut state.durable_names);
        let all = state.rng.one_in(4);
        for change in std::mem::take(&mut state.changes) {
            if !all && state.rng.one_in(2) {
                continue;
            }
            match change {
                Change::Named(name, inode) => {
                    names.insert(name, inode);
                }
                Change::Renamed(from, to, inode) => {
                    names.remove(&from);
                    names.insert(to, inode);
                }
                Change::Removed(name) => {
                    names.remove(&name);
                }
            }
        }
        for inode in &mut state.inodes {
            inode.lose(&mut state.rng);
        }
        state.names.clone_from(&names);
        state.durable_names = names;
    }

    /// The bytes of a file.
    pub(crate) fn bytes(&self, name: &str) -> Vec<u8> {
        let state = self.state();
        state.inodes[state.inode(name).expect("the file is there")].seen.clone()
    }

    /// Puts a file there, durably, as somebody would who has the disk in his hands.
    pub(crate) fn put(&self, name: &str, bytes: &[u8]) {
        let mut state = self.state();
        let inode = state.inodes.len();
        let (seen, durable) = (bytes.to_vec(), bytes.to_vec());
        state.inodes.push(Inode { seen, durable, ..Inode::default() });
        state.names.insert(name.to_owned(), inode);
        state.durable_names.insert(name.to_owned(), inode);
    }

    /// The same files on a disk of their own.
    pub(crate) fn copy(&self) -> Disk {
        let copy = Disk::new(0, Lies::default());
        copy.state().now = self.state().now;
        for name in self.names().expect("names") {
            copy.put(&name, &self.bytes(&name));
        }
        copy
    }
}

impl Files for Disk {
    type File = SimFile;
    type Lock = Arc<()>;

    fn create(&self, name: &str) -> io::Result<SimFile> {
        let mut state = self.state();
        state.step()?;
        if let Ok(inode) = state.inode(name) {
            state.inodes[inode].seen.clear();
            return Ok(SimFile { disk: self.clone(), inode });
        }
        let inode = state.inodes.len();
        state.inodes.push(Inode::default());
        state.names.insert(name.to_owned(), inode);
        state.changes.push(Change::Named(name.to_owned(), inode));
        Ok(SimFile { disk: self.clone(), inode })
    }

    fn open(&self, name: &str) -> io::Result<SimFile> {
        let inode = self.state().inode(name)?;
        Ok(SimFile { disk: self.clone(), inode })
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let mut state = self.state();
        state.step()?;
        let inode = state.inode(from)?;
        state.names.remove(from);
        state.names.insert(to.to_owned(), inode);
        state.changes.push(Change::Renamed(from.to_owned(), to.to_owned(), inode));
        Ok(())
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        let mut state = self.state();
        state.step()?;
        state.inode(name)?;
        state.names.remove(name);
        state.changes.push(Change::Removed(name.to_owned()));
        Ok(())
    }

    fn sync_dir(&self) -> io::Result<()> {
        let mut state = self.state();
        state.step()?;
        if !state.lies.sync_dir {
            state.durable_names = state.names.clone();
            state.changes.clear();
        }
        Ok(())
    }

    fn names(&self) -> io::Result<Vec<String>> {
        Ok(self.state().names.keys().cloned().collect())
    }

    fn lock(&self) -> io::Result<Option<Arc<()>>> {
        let mut state = self.state();
        if state.lock.upgrade().is_some() {
            return Ok(None);
        }
        let lock = Arc::new(());
        state.lock = Arc::downgrade(&lock);
        Ok(Some(lock))
    }

    fn locked(&self) -> io::Result<bool> {
        Ok(self.state().lock.upgrade().is_some())
    }
}

/// A file of a [`Disk`].
pub(crate) struct SimFile {
    disk: Disk,
    inode: usize,
}

fn place(offset: u64) -> usize {
    usize::try_from(offset).expect("small")
}

impl File for SimFile {
    fn size(&self) -> io::Result<u64> {
        Ok(self.disk.state().inodes[self.inode].seen.len() as u64)
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let state = self.disk.state();
        let rest = state.inodes[self.inode].seen.get(place(offset)..).unwrap_or_default();
        let len = rest.len().min(buffer.len());
        buffer[..len].copy_from_slice(&rest[..len]);
        Ok(len)
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        let mut state = self.disk.state();
        state.step()?;
        let state = &mut *state;
        let at = place(offset);
        let growth = (at + bytes.len()).saturating_sub(state.inodes[self.inode].seen.len());
        let mut done = Ok(());
        let mut len = bytes.len();
        if state.room.is_some_and(|room| growth > room) {
            len -= growth - state.room.unwrap_or(0);
            done = Err(io::ErrorKind::StorageFull.into());
        } else if std::mem::take(&mut state.write_fails) {
            len = state.rng.below(len);
            done = Err(io::Error::other("input/output error"));
        }
        if let Some(room) = &mut state.room {
            *room = room.saturating_sub(growth);
        }
        let file = &mut state.inodes[self.inode];
        if file.seen.len() < at + len {
            file.seen.resize(at + len, 0);
        }
        file.seen[at..at + len].copy_from_slice(&bytes[..len]);
        file.dirty.push(at..at + len);
        done
    }

    fn truncate(&self, len: u64) -> io::Result<()> {
        let mut state = self.disk.state();
        state.step()?;
        state.inodes[self.inode].seen.truncate(place(len));
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        let mut state = self.disk.state();
        state.step()?;
        state.takes_time();
        let file = &mut state.inodes[self.inode];
        assert!(file.flying.is_none(), "two flushes at once: one would not hear of an error");
        let (dirty, len) = (std::mem::take(&mut file.dirty), file.seen.len());
        state.flush(self.inode, &dirty, len)
    }
}

/// The clock of a disk's machine.
pub(crate) struct SimClock(pub Disk);

impl Clock for SimClock {
    fn elapsed(&self) -> Duration {
        self.0.state().now
    }

    fn now(&self) -> UnixMs {
        UnixMs(i64::try_from(self.elapsed().as_millis()).expect("soon"))
    }
}

/// Flushes that end some time after they began and cover only what was written before.
pub(crate) struct SimSyncer {
    disk: Disk,
    flight: Option<(usize, Duration)>,
}

impl SimSyncer {
    pub(crate) fn new(disk: &Disk) -> Self {
        Self { disk: disk.clone(), flight: None }
    }
}

impl Syncer<SimFile> for SimSyncer {
    fn start(&mut self, file: &Arc<SimFile>) {
        let mut state = self.disk.state();
        let ms = state.sync_ms_max + 1;
        let ms = state.rng.below(ms) as u64;
        let inode = &mut state.inodes[file.inode];
        assert!(inode.flying.is_none(), "two flushes at once: one would not hear of an error");
        inode.flying = Some((std::mem::take(&mut inode.dirty), inode.seen.len()));
        self.flight = Some((file.inode, state.now + Duration::from_millis(ms)));
    }

    fn poll(&mut self) -> Option<io::Result<()>> {
        let mut state = self.disk.state();
        let (inode, end) = self.flight?;
        if state.now < end {
            return None;
        }
        self.flight = None;
        if let Err(e) = state.step() {
            return Some(Err(e));
        }
        let (ranges, len) = state.inodes[inode].flying.take()?;
        // The length only grows while a flush is under way.
        let len = len.max(state.inodes[inode].durable.len());
        Some(state.flush(inode, &ranges, len))
    }

    fn wait(&mut self) -> io::Result<()> {
        if let Some((_, end)) = self.flight {
            let mut state = self.disk.state();
            state.now = state.now.max(end);
        }
        self.poll().unwrap_or(Ok(()))
    }
}
