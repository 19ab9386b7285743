//! Starts the parts and keeps them running.
//!
//! One loop does both: each round looks at every part, starts what is dead and may start, and
//! asks what lives whether it is ready. So a resumed cluster, a part that died and a cluster that
//! comes up for the first time are one case, and a keeper that is killed loses nothing: the next
//! one finds the processes by their units.

use crate::environment;
use crate::error::DevError;
use crate::files;
use crate::layout::Layout;
use crate::parts::{Dev, Part};
use crate::people;
use crate::probe::Probe;
use crate::registration;
use crate::spec;
use claviger_domain::cluster::Process;
use claviger_supervise::unit::ProcessUnit;
use claviger_supervise::{SuperviseError, Supervisor, proc};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::Path;
use std::time::{Duration, Instant};

/// Between two rounds.
const ROUND: Duration = Duration::from_millis(250);
/// Wait before a dead part is started again: doubles up to the most while it keeps dying.
const DELAY_LEAST: Duration = Duration::from_millis(250);
const DELAY_MOST: Duration = Duration::from_secs(5);
/// Deaths in a row, without having been ready, from which on waiting for a part is no use.
const HOPELESS: u32 = 3;
/// How much of a log's end is looked at for last words, and how much of them is shown.
const LAST_WORDS: u64 = 4096;
const SHOWN: usize = 300;
/// A part that lived this long is taken for healthy: its next death counts as the first.
const HEALTHY: Duration = Duration::from_secs(10);

/// `progress.json`: what the keeper is at, for those who wait for it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    /// The keeper.
    pub keeper: Process,
    /// Whether every part does its work, or is kept from it by a hold.
    pub ready: bool,
    /// What is being waited for, or what is held; may be empty.
    pub note: String,
    /// The part that died again and again before it ever became ready, and its last words.
    pub failing: Option<String>,
}

/// The right to keep one cluster; falls with the process that has it.
#[derive(Debug)]
pub struct KeeperLock(#[allow(dead_code)] File);

impl KeeperLock {
    /// Takes it; none while another keeper has it.
    pub fn take(layout: &Layout) -> Result<Option<Self>, DevError> {
        Ok(files::try_lock(&layout.keeper_lock())?.map(Self))
    }
}

/// One part as the keeper sees it.
struct Watch {
    part: Part,
    unit: ProcessUnit,
    process: Option<Process>,
    since: Instant,
    ready: bool,
    held: bool,
    next: Instant,
    delay: Duration,
    /// Deaths since it was last ready.
    deaths: u32,
    note: String,
}

/// The loop.
pub struct Keeper<'a> {
    dev: &'a Dev,
    probe: Probe,
    watches: Vec<Watch>,
    rights: bool,
    /// What went wrong in the last round and is tried again in the next.
    troubles: Vec<String>,
    told: Option<Progress>,
    /// Whether that is in the file, too.
    written: bool,
    _lock: KeeperLock,
}

impl<'a> Keeper<'a> {
    /// A keeper for a prepared cluster; starts nothing yet.
    pub fn new(dev: &'a Dev, lock: KeeperLock) -> Result<Self, DevError> {
        let now = Instant::now();
        let watches = dev.parts().into_iter().map(|part| {
            Ok(Watch {
                part,
                unit: dev.unit(part)?,
                process: None,
                since: now,
                ready: false,
                held: false,
                next: now,
                delay: DELAY_LEAST,
                deaths: 0,
                note: "not started yet".to_owned(),
            })
        });
        let watches = watches.collect::<Result<_, DevError>>()?;
        Ok(Self {
            dev,
            probe: Probe::new(dev)?,
            watches,
            rights: false,
            troubles: Vec::new(),
            told: None,
            written: false,
            _lock: lock,
        })
    }

    /// Keeps until `until` ends. Says every change of what it waits for to `say`.
    pub async fn run(
        mut self,
        until: impl Future<Output = ()>,
        mut say: impl FnMut(&Progress),
    ) -> Result<(), DevError> {
        let mut until = std::pin::pin!(until);
        loop {
            tokio::select! {
                biased;
                () = &mut until => return Ok(()),
                done = self.round() => done?,
            }
            let progress = self.progress()?;
            if self.told.as_ref() != Some(&progress) {
                say(&progress);
                self.told = Some(progress);
                self.written = false;
            }
            if !self.written {
                self.write_progress();
            }
            tokio::select! {
                biased;
                () = &mut until => return Ok(()),
                () = tokio::time::sleep(ROUND) => {}
            }
        }
    }

    async fn round(&mut self) -> Result<(), DevError> {
        for index in 0..self.watches.len() {
            self.look(index)?;
            if self.watches[index].process.is_none() {
                self.start(index)?;
            }
            let watch = &mut self.watches[index];
            if watch.process.is_some() && !watch.ready {
                match self.probe.ready(self.dev, watch.part).await {
                    Ok(()) => {
                        watch.ready = true;
                        watch.deaths = 0;
                        watch.note.clear();
                    }
                    Err(note) => watch.note = note,
                }
            }
        }
        registration::take_over(self.dev)?;
        let before = std::mem::take(&mut self.troubles);
        if !registration::done(self.dev)
            && self.is_ready(Part::Server)
            && let Err(e) = registration::register(self.dev).await
        {
            self.trouble("the cluster is not registered yet", &e);
        }
        if !people::done(self.dev)?
            && self.is_ready(Part::Server)
            && let Err(e) = people::let_in(self.dev).await
        {
            self.trouble("not everybody has an API key yet", &e);
        }
        if !self.rights && self.is_ready(Part::ApiServer(1)) {
            match self.probe.apply_rights(self.dev).await {
                Ok(()) => self.rights = true,
                Err(e) => self.trouble("the agents have no rights yet", &e),
            }
        }
        // A full disk must not end the keeper: what it keeps goes on, and there may be room again.
        if let Err(e) = environment::write(self.dev, &self.pids()) {
            self.trouble("the file of variables cannot be written", &e);
        }
        for new in self.troubles.iter().filter(|trouble| !before.contains(trouble)) {
            tracing::warn!("{new}; trying again");
        }
        Ok(())
    }

    /// Notes what is tried again, for the log and for those who wait.
    fn trouble(&mut self, what: &str, why: &dyn fmt::Display) {
        self.troubles.push(format!("{what}: {why}"));
    }

    fn write_progress(&mut self) {
        match files::write_json(&self.dev.layout.progress(), &self.told) {
            Ok(()) => self.written = true,
            // Those who wait are told when there is room again.
            Err(e) => tracing::debug!(error = %e, "the progress cannot be written; trying again"),
        }
    }

    /// Brings what is known of a part up to date.
    fn look(&mut self, index: usize) -> Result<(), DevError> {
        let watch = &mut self.watches[index];
        let name = watch.part.to_string();
        let seen = watch.unit.observe().map_err(DevError::unit(&name))?;
        watch.held = seen.held.is_some();
        if seen.process == watch.process {
            return Ok(());
        }
        let now = Instant::now();
        if watch.process.is_some() {
            tracing::info!(part = %name, "its process is gone");
            watch.deaths = watch.deaths.saturating_add(1);
            watch.delay = if now - watch.since >= HEALTHY {
                DELAY_LEAST
            } else {
                (watch.delay * 2).min(DELAY_MOST)
            };
            watch.next = now + watch.delay;
        }
        watch.process = seen.process;
        watch.since = now;
        watch.ready = false;
        Ok(())
    }

    /// Starts a dead part if it may start now. Troubles become its note: they pass, or the
    /// operator reads them.
    fn start(&mut self, index: usize) -> Result<(), DevError> {
        let part = self.watches[index].part;
        let waits = self.waits_for(part);
        let watch = &mut self.watches[index];
        let name = part.to_string();
        if Instant::now() < watch.next {
            return Ok(());
        }
        if let Some(other) = waits {
            watch.note = format!("waits for {other}");
            return Ok(());
        }
        let seen = watch.unit.observe().map_err(DevError::unit(&name))?;
        if let Some(reason) = seen.held {
            watch.note = format!("is held: {reason}");
            return Ok(());
        }
        watch.next = Instant::now() + watch.delay;
        for port in self.dev.listens(part) {
            if let Err(taken) = spec::check_port(&name, port) {
                watch.note = taken.to_string();
                return Ok(());
            }
        }
        match watch.unit.start(&seen.extra_args) {
            Ok(process) => {
                tracing::info!(part = %name, pid = process.pid, "started");
                watch.process = Some(process);
                watch.since = Instant::now();
                watch.note = "starts".to_owned();
            }
            // Somebody else did it, or forbade it, just now: the next round sees it.
            Err(SuperviseError::Running(_) | SuperviseError::Held(_)) => {}
            Err(e) => {
                watch.delay = (watch.delay * 2).min(DELAY_MOST);
                watch.note = DevError::unit(&name)(e).to_string();
            }
        }
        Ok(())
    }

    /// What must be ready before this part is started.
    fn waits_for(&self, part: Part) -> Option<Part> {
        let needed = match part {
            Part::Etcd | Part::Server => Vec::new(),
            // Once it is registered an agent coasts by itself while the server is away.
            Part::Agent(_) if registration::done(self.dev) => Vec::new(),
            Part::Agent(_) => return Some(Part::Server),
            Part::ApiServer(n) => vec![Part::Etcd, Part::Agent(n)],
        };
        needed.into_iter().find(|other| !self.is_ready(*other))
    }

    fn is_ready(&self, part: Part) -> bool {
        self.watches.iter().any(|watch| watch.part == part && watch.ready)
    }

    fn pids(&self) -> BTreeMap<Part, i32> {
        let alive = self.watches.iter().filter_map(|w| Some((w.part, w.process?.pid)));
        alive.collect()
    }

    fn progress(&self) -> Result<Progress, DevError> {
        let id = i32::try_from(std::process::id()).unwrap_or_default();
        let keeper = proc::alive(id).ok_or_else(|| DevError::Answer {
            part: "/proc".to_owned(),
            answer: "that this process does not live".to_owned(),
        })?;
        let waiting = self.watches.iter().filter(|w| !w.ready);
        let mut notes: Vec<String> = waiting.map(|w| format!("{}: {}", w.part, w.note)).collect();
        notes.extend(self.troubles.iter().cloned());
        let ready = self.watches.iter().all(|w| w.ready || w.held)
            && people::done(self.dev)?
            && (self.rights || self.dev.binaries.is_none() || !self.is_ready(Part::ApiServer(1)));
        let failing = self.watches.iter().find(|w| !w.held && w.deaths >= HOPELESS).map(|w| {
            let words = last_words(&self.dev.layout.log(&w.part.to_string()));
            format!("{} ended {HOPELESS} times; it says: {words}", w.part)
        });
        Ok(Progress { keeper, ready, note: notes.join("; "), failing })
    }
}

/// The last line of a log, cut to what people read.
fn last_words(log: &Path) -> String {
    let inner = || -> io::Result<String> {
        let mut file = File::open(log)?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(LAST_WORDS)))?;
        let mut end = Vec::new();
        file.take(LAST_WORDS).read_to_end(&mut end)?;
        let end = String::from_utf8_lossy(&end);
        let line = end.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or_default();
        Ok(line.chars().take(SHOWN).collect())
    };
    inner().unwrap_or_default()
}
