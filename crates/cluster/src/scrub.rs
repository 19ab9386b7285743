//! Clears plaintext out of the files of a single-member etcd: its log keeps every value that was
//! ever written, long after a rewrite, a compaction and a defragmentation.
//!
//! The member is rebuilt from a snapshot of itself, with the API servers stopped, so that nobody
//! writes meanwhile. Name, peer URLs and cluster token are those it has, and its revision goes
//! on where it was: nothing is lost, so no revision is bumped and no client sees time go back.
//!
//! | step | what is durable then | a crash there is |
//! |---|---|---|
//! | hold and stop the API servers; compact, defragment, snapshot | `Preparing` | rolled back |
//! | hold and stop etcd; see that nobody wrote to its file since; restore; fsync | `Preparing` | rolled back |
//! | the fresh member is whole | `Restored` | carried on |
//! | exchange the two member directories in one rename | by inode | carried on |
//! | start etcd; same keys, no older revision, or else exchange back | `Restored` | carried on |
//! | proven | `Proven` | carried on |
//! | start the API servers; remove the old member and the journal | nothing left | |
//!
//! One scrub of a member at a time: whoever works on it holds a lock on its data directory, since
//! several agents of a machine may share the member. What was cut off, by a crash or by a failure
//! that may pass, is finished or rolled back by [`tend`], whichever agent comes first.
//!
//! A full disk must leave etcd able to start. So room is asked for before anything is stopped, what
//! is no longer needed is removed before something is started, and to go back needs no write.
//!
//! Everything lies within the data directory, so that a rename never crosses a file system and
//! the data directory itself may be a mount point. What blocks of the disk still hold of removed
//! files is out of reach.

use crate::file::{self, FileError};
use claviger_etcd::bolt::{BoltError, Database};
use claviger_etcd::client::Member;
use claviger_etcd::residue::{self, Found, ResidueError};
use claviger_etcd::{Etcd, EtcdConfig, EtcdError};
use claviger_supervise::{SuperviseError, Supervisor};
use serde::{Deserialize, Serialize};
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};
use thiserror::Error;

mod disk;
mod etcdutl;
mod since;
pub(crate) use disk::free;
use disk::{remove_dir, room, settle, sync};
use since::Since;

/// The hold that a scrub sets; it lifts no other.
const HOLD: &str = "plaintext is being cleared out of etcd's files";
const JOURNAL: &str = "claviger-scrub.json";
const WORK: &str = "claviger-scrub";

/// How long an API server may take to end by itself; one open watch keeps it for a minute, and
/// its clients reconnect whatever way it ends.
const API_SERVER_GRACE: Duration = Duration::from_secs(5);
/// How long etcd may take to write its last batch down and end.
const ETCD_GRACE: Duration = Duration::from_secs(30);
/// How long a fresh member may take to answer: it reads its whole database first.
const ETCD_START: Duration = Duration::from_secs(120);
/// Pause between two looks for a scrub that was cut off: API servers are held meanwhile.
const TEND: Duration = Duration::from_secs(5);
/// How often to look whether it is done.
const LOOK: Duration = Duration::from_millis(100);

/// What a scrub needs to know and to hold.
#[derive(Debug, Clone)]
pub struct Scrub {
    /// How etcd is reached.
    pub etcd: EtcdConfig,
    /// What runs etcd.
    pub member: Arc<dyn Supervisor>,
    /// What runs every API server that uses it, by its unit directory.
    pub api_servers: Vec<(PathBuf, Arc<dyn Supervisor>)>,
    /// The record of this node's fence. While it is there, no API server is started.
    pub fence: PathBuf,
    /// etcd's `--data-dir`. Its log must lie within.
    pub data_dir: PathBuf,
    /// etcd's `--initial-cluster-token`; `etcd-cluster` unless it was set.
    pub cluster_token: String,
    /// The program `etcdutl`, of etcd's own version.
    pub etcdutl: PathBuf,
}

/// What a scrub found and left.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outcome {
    /// Plaintext in the files before; none when a crash came between.
    pub before: Option<Found>,
    /// Plaintext in the files afterwards: none, unless live records are plaintext.
    pub after: Found,
    /// Keys in etcd, before and afterwards.
    pub keys: u64,
    /// etcd's revision when the snapshot was taken.
    pub revision: i64,
}

/// Why the files were not cleared. etcd and the API servers run as before, unless the text says
/// otherwise.
#[derive(Debug, Error)]
#[allow(missing_docs)]
pub enum ScrubError {
    #[error(
        "etcd has {0} members; clear them by replacing one member after the other, since only a single member can be rebuilt in place"
    )]
    NotSingle(usize),
    #[error("the data directory {} is not that of this etcd: {why}", path.display())]
    NotThere { path: PathBuf, why: &'static str },
    #[error(
        "somebody wrote to etcd while every API server was stopped (revision {newer} after {taken}); end that client and try again"
    )]
    StrangeWriter { taken: i64, newer: i64 },
    #[error("another scrub of this etcd is under way")]
    Busy,
    #[error(
        "the disk of {} has {} MiB free and {} are needed: make room, and it goes on by itself",
        path.display(), free >> 20, needed >> 20
    )]
    NoRoom { path: PathBuf, free: u64, needed: u64 },
    #[error(
        "this scrub was begun by an agent that also stops the API server of {}; that agent has to finish it",
        .0.display()
    )]
    NotOurs(PathBuf),
    #[error("etcd.etcdutl in the agent's settings: {} {why}", path.display())]
    Etcdutl { path: PathBuf, why: String },
    #[error("etcdutl failed: {0}")]
    Restore(String),
    #[error("the rebuilt etcd is not the same: {0}; the old one is back")]
    NotTheSame(String),
    #[error("a step was interrupted")]
    Interrupted,
    #[error("cannot {doing} {}", path.display())]
    Io {
        doing: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error(transparent)]
    Etcd(#[from] EtcdError),
    #[error(transparent)]
    Database(#[from] BoltError),
    #[error(transparent)]
    Residue(#[from] ResidueError),
    #[error(transparent)]
    Supervise(#[from] SuperviseError),
    #[error(transparent)]
    File(#[from] FileError),
}

impl ScrubError {
    /// Whether it may be tried again by itself: nothing was touched, and the cause may pass.
    pub fn waits(&self) -> bool {
        matches!(self, ScrubError::Busy | ScrubError::NoRoom { .. })
    }

    /// Whether this etcd cannot be scrubbed with these settings, however often it is tried.
    /// Nothing was touched.
    pub fn never(&self) -> bool {
        matches!(
            self,
            ScrubError::NotSingle(_) | ScrubError::NotThere { .. } | ScrubError::Etcdutl { .. }
        )
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Phase {
    Preparing,
    Restored,
    Proven,
}

/// What a crash must not take with it.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Journal {
    phase: Phase,
    /// Arguments that each API server ran with; none for one that did not run.
    api_servers: Vec<Option<Vec<String>>>,
    /// Their unit directories, in the same order; in a journal of an older agent none, and then
    /// the order is that of its settings.
    #[serde(default)]
    units: Vec<PathBuf>,
    etcd_args: Vec<String>,
    keys: u64,
    /// Those of them that hang on no lease; the others may end at any moment. None in a journal of
    /// an older agent: all of them.
    #[serde(default)]
    lasting: Option<u64>,
    revision: i64,
    /// Inode of the fresh member directory, which tells on which side of the exchange we are.
    fresh: u64,
}

impl Scrub {
    /// Clears the files. A scrub that a crash cut off is finished or rolled back first.
    pub async fn run(&self, say: &(dyn Fn(&str) + Sync)) -> Result<Outcome, ScrubError> {
        let _alone = self.alone()?;
        if let Some(outcome) = self.finish(say).await? {
            return Ok(outcome);
        }
        let etcd = Etcd::connect(&self.etcd).await?;
        let member = self.member_of(&etcd).await?;
        let before = self.scan().await?;
        let mut journal = Journal {
            phase: Phase::Preparing,
            api_servers: Vec::new(),
            units: Vec::new(),
            etcd_args: self.member.observe()?.extra_args,
            keys: 0,
            lasting: None,
            revision: 0,
            fresh: 0,
        };
        for (unit, server) in &self.api_servers {
            let seen = server.observe()?;
            journal.api_servers.push(seen.process.map(|_| seen.extra_args));
            journal.units.push(unit.clone());
        }
        self.note(&journal)?;
        match self.prepare(&etcd, &member.name, &member.peer_urls, &mut journal, say).await {
            Ok(()) => {}
            Err(e) => {
                self.roll_back(&journal, say).await?;
                return Err(e);
            }
        }
        self.carry_on(journal, Some(before), say).await
    }

    /// What could be in its way, without touching anything: after this, what fails in
    /// [`run`](Self::run) fails with the API servers stopped.
    pub async fn check(&self) -> Result<(), ScrubError> {
        let etcd = Etcd::connect(&self.etcd).await?;
        self.member_of(&etcd).await.map(|_| ())
    }

    /// The one member, if this node can scrub it.
    async fn member_of(&self, etcd: &Etcd) -> Result<Member, ScrubError> {
        let mut members = etcd.statuses().await?;
        let count = members.len();
        let Some((member, status)) = members.pop().filter(|_| count == 1) else {
            return Err(ScrubError::NotSingle(count));
        };
        self.check_data_dir()?;
        self.check_room()?;
        etcdutl::fits(&self.etcdutl, &status?.version).await?;
        Ok(member)
    }

    /// Finishes or rolls back a scrub that was cut off. None if there was none, or if it was
    /// rolled back.
    pub async fn resume(&self, say: &(dyn Fn(&str) + Sync)) -> Result<Option<Outcome>, ScrubError> {
        if !self.data_dir.join(JOURNAL).exists() {
            return Ok(None);
        }
        let _alone = self.alone()?;
        self.finish(say).await
    }

    async fn finish(&self, say: &(dyn Fn(&str) + Sync)) -> Result<Option<Outcome>, ScrubError> {
        let Some(mut journal) = file::read_json::<Journal>(&self.data_dir.join(JOURNAL))? else {
            return Ok(None);
        };
        if journal.units.is_empty() {
            journal.units = self.api_servers.iter().map(|(unit, _)| unit.clone()).collect();
        }
        let ours = |unit: &PathBuf| self.api_servers.iter().any(|(known, _)| known == unit);
        if let Some(unit) = journal.units.iter().find(|unit| !ours(unit)) {
            return Err(ScrubError::NotOurs(unit.clone()));
        }
        // Gone back from before: the old member is in place, and the fresh one was removed.
        let gone_back = journal.phase == Phase::Restored
            && !self.exchanged(&journal)?
            && !self.fresh().join("member").exists();
        if journal.phase == Phase::Preparing || gone_back {
            self.roll_back(&journal, say).await?;
            return Ok(None);
        }
        self.carry_on(journal, None, say).await.map(Some)
    }

    /// Keeps everybody else off this member, until what it returns is dropped.
    fn alone(&self) -> Result<File, ScrubError> {
        use rustix::fs::{FlockOperation, flock};
        let dir = File::open(&self.data_dir).map_err(failed("open", &self.data_dir))?;
        match flock(&dir, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(dir),
            Err(rustix::io::Errno::WOULDBLOCK) => Err(ScrubError::Busy),
            Err(e) => Err(failed("lock", &self.data_dir)(e.into())),
        }
    }

    fn fresh(&self) -> PathBuf {
        self.data_dir.join(WORK).join("fresh")
    }

    async fn scan(&self) -> Result<Found, ScrubError> {
        let data_dir = self.data_dir.clone();
        Ok(blocking(move || residue::scan(&data_dir, None)).await??)
    }

    /// Up to a whole fresh member beside the old one. Changes nothing that etcd would see,
    /// except that history is compacted.
    async fn prepare(
        &self,
        etcd: &Etcd,
        name: &str,
        peer_urls: &[String],
        journal: &mut Journal,
        say: &(dyn Fn(&str) + Sync),
    ) -> Result<(), ScrubError> {
        say("stopping the API servers");
        for (_, server) in &self.api_servers {
            hold(server)?;
        }
        for (_, server) in &self.api_servers {
            stop(server, API_SERVER_GRACE).await?;
        }
        say("compacting and defragmenting etcd");
        let work = self.data_dir.join(WORK);
        remove_dir(&work)?;
        file::make_dir(&work)?;
        (journal.keys, journal.revision) = etcd.count(b"").await?;
        etcd.compact(journal.revision, true).await?;
        etcd.defragment_all().await?;
        let snapshot = work.join("snapshot.db");
        etcd.snapshot(&snapshot).await?;
        say("stopping etcd and rebuilding it from its snapshot");
        hold(&self.member)?;
        stop(&self.member, ETCD_GRACE).await?;
        let db = self.data_dir.join("member/snap/db");
        let mut since = Since::new(journal.revision);
        let since = blocking(move || -> Result<Since, BoltError> {
            Database::open(&db)?.revisions(|at, kv| since.add(at, &kv.key, kv.lease))?;
            Ok(since)
        });
        let since = since.await??;
        if let Some(newer) = since.strange {
            return Err(ScrubError::StrangeWriter { taken: journal.revision, newer });
        }
        journal.lasting = Some(since.lasting);
        let fresh = self.fresh();
        let restored = etcdutl::Restored {
            snapshot: &snapshot,
            to: &fresh,
            name,
            peer_urls,
            cluster_token: &self.cluster_token,
        };
        etcdutl::restore(&self.etcdutl, &restored).await?;
        let (old, new) = (self.data_dir.join("member"), fresh.join("member"));
        let settle = move || -> Result<u64, ScrubError> {
            let like = fs::metadata(&old).map_err(failed("read", &old))?;
            let new_meta = fs::metadata(&new).map_err(failed("read", &new))?;
            settle(&new, (like.uid(), like.gid()), like.mode() & 0o7777)?;
            Ok(new_meta.ino())
        };
        journal.fresh = blocking(settle).await??;
        sync(&fresh)?;
        fs::remove_file(&snapshot).map_err(failed("remove", &snapshot))?;
        sync(&work)?;
        journal.phase = Phase::Restored;
        self.note(journal)
    }

    /// From a whole fresh member to the end.
    async fn carry_on(
        &self,
        mut journal: Journal,
        before: Option<Found>,
        say: &(dyn Fn(&str) + Sync),
    ) -> Result<Outcome, ScrubError> {
        if journal.phase == Phase::Restored {
            if !self.exchanged(&journal)? {
                // After a crash somebody may have started it again.
                hold(&self.member)?;
                stop(&self.member, ETCD_GRACE).await?;
                self.exchange()?;
            }
            say("starting the rebuilt etcd");
            if let Err(why) = self.proven(&journal).await {
                hold(&self.member)?;
                stop(&self.member, ETCD_GRACE).await?;
                self.exchange()?;
                // Not noted first, which a full disk would not take: that the fresh member is
                // gone says it.
                self.roll_back(&journal, say).await?;
                return Err(ScrubError::NotTheSame(why));
            }
            journal.phase = Phase::Proven;
            self.note(&journal)?;
        }
        // The old member goes before the API servers come: from here on nobody goes back to it.
        self.start(&self.member, &journal.etcd_args)?;
        remove_dir(&self.data_dir.join(WORK))?;
        // Before anybody writes. That it cannot be counted keeps no API server from coming back.
        let after = self.scan().await;
        say("starting the API servers");
        self.start_api_servers(&journal)?;
        file::remove(&self.data_dir.join(JOURNAL))?;
        Ok(Outcome { before, after: after?, keys: journal.keys, revision: journal.revision })
    }

    /// Starts etcd and compares what it has with what it had.
    async fn proven(&self, journal: &Journal) -> Result<(), String> {
        self.start(&self.member, &journal.etcd_args).map_err(|e| e.to_string())?;
        let until = Instant::now() + ETCD_START;
        let etcd = loop {
            match Etcd::connect(&self.etcd).await {
                Ok(etcd) => break etcd,
                Err(e) if Instant::now() > until => return Err(e.to_string()),
                Err(_) => tokio::time::sleep(LOOK).await,
            }
        };
        let (keys, revision) = etcd.count(b"").await.map_err(|e| e.to_string())?;
        let least = journal.lasting.unwrap_or(journal.keys).min(journal.keys);
        if !(least..=journal.keys).contains(&keys) || revision < journal.revision {
            return Err(format!(
                "{keys} keys at revision {revision}, there were {} at {}",
                journal.keys, journal.revision
            ));
        }
        Ok(())
    }

    /// Back to how it was: nothing of ours on disk, etcd and the API servers running.
    async fn roll_back(
        &self,
        journal: &Journal,
        say: &(dyn Fn(&str) + Sync),
    ) -> Result<(), ScrubError> {
        say("going back to the files as they were");
        // First, since etcd may not start on a full disk.
        let removed = remove_dir(&self.data_dir.join(WORK));
        self.start(&self.member, &journal.etcd_args)?;
        removed?;
        self.start_api_servers(journal)?;
        file::remove(&self.data_dir.join(JOURNAL))?;
        Ok(())
    }

    fn start_api_servers(&self, journal: &Journal) -> Result<(), ScrubError> {
        let mut done = Ok(());
        for (unit, args) in journal.units.iter().zip(&journal.api_servers) {
            let Some((_, server)) = self.api_servers.iter().find(|(known, _)| known == unit) else {
                continue;
            };
            let started = release(server).and_then(|()| match args {
                // Looked for after the release: a fence that falls later finds no hold of ours,
                // sets its own, and kills.
                Some(args) if !self.fence.exists() => self.start(server, args),
                _ => Ok(()),
            });
            // One that does not start keeps no other from it.
            done = done.and(started);
        }
        done
    }

    /// Starts what we held, unless somebody else holds it or was faster.
    fn start(&self, unit: &Arc<dyn Supervisor>, args: &[String]) -> Result<(), ScrubError> {
        release(unit)?;
        match unit.start(args) {
            Ok(_) | Err(SuperviseError::Running(_) | SuperviseError::Held(_)) => Ok(()),
            Err(e) => Err(e.into()),
        }
    }

    fn note(&self, journal: &Journal) -> Result<(), ScrubError> {
        let path = self.data_dir.join(JOURNAL);
        let bytes = serde_json::to_vec(journal).map_err(|e| ScrubError::Io {
            doing: "write",
            path: path.clone(),
            source: e.into(),
        })?;
        Ok(file::write(&path, &bytes)?)
    }

    fn check_data_dir(&self) -> Result<(), ScrubError> {
        let wal = self.data_dir.join("member/wal");
        if fs::symlink_metadata(&wal).is_ok_and(|m| m.is_dir()) {
            return Ok(());
        }
        let why = "its log lies elsewhere (--wal-dir), which is not supported";
        Err(ScrubError::NotThere { path: self.data_dir.clone(), why })
    }

    /// Whether there is no room for a scrub now, so that another try waits for it.
    pub fn lacks_room(&self) -> bool {
        matches!(self.check_room(), Err(ScrubError::NoRoom { .. }))
    }

    /// Asks for room for what is written beside the old member, before anything is stopped.
    fn check_room(&self) -> Result<(), ScrubError> {
        let db = self.data_dir.join("member/snap/db");
        let size = fs::metadata(&db).map_err(failed("read", &db))?.len();
        let free = free(&self.data_dir).map_err(failed("measure", &self.data_dir))?;
        match room(size) {
            needed if free < needed => {
                Err(ScrubError::NoRoom { path: self.data_dir.clone(), free, needed })
            }
            _ => Ok(()),
        }
    }

    /// Whether the fresh member is in place.
    fn exchanged(&self, journal: &Journal) -> Result<bool, ScrubError> {
        let member = self.data_dir.join("member");
        Ok(fs::metadata(&member).map_err(failed("read", &member))?.ino() == journal.fresh)
    }

    /// Puts each member directory where the other was, in one step.
    fn exchange(&self) -> Result<(), ScrubError> {
        use rustix::fs::{CWD, RenameFlags, renameat_with};
        let (member, fresh) = (self.data_dir.join("member"), self.fresh());
        renameat_with(CWD, fresh.join("member"), CWD, &member, RenameFlags::EXCHANGE)
            .map_err(|e| failed("exchange", &member)(e.into()))?;
        sync(&fresh)?;
        sync(&self.data_dir)
    }
}

/// Finishes or rolls back whatever scrub of this node's etcd was cut off, again and again until it
/// is. `scrub` gives it as the settings are now, none where there is none to do. Never returns.
pub async fn tend(scrub: impl Fn() -> Option<Scrub>) {
    let mut said = None;
    loop {
        if let Some(scrub) = scrub() {
            match scrub.resume(&|text| tracing::info!("scrub: {text}")).await {
                Ok(found) => {
                    said = None;
                    if found.is_some() {
                        tracing::info!("finished a scrub that was cut off");
                    }
                }
                // Whoever is at it finishes it.
                Err(ScrubError::Busy) => {}
                Err(error) => {
                    let why = crate::run::with_causes(&error);
                    // The same trouble again is no news.
                    if said.as_ref() != Some(&why) {
                        tracing::error!(%why, "a scrub was cut off and cannot be finished yet");
                        said = Some(why);
                    }
                }
            }
        }
        tokio::time::sleep(TEND).await;
    }
}

fn failed(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> ScrubError {
    let path = path.to_owned();
    move |source| ScrubError::Io { doing, path, source }
}

/// Runs what waits for the disk on a thread that may wait.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, ScrubError> {
    tokio::task::spawn_blocking(work).await.map_err(|_| ScrubError::Interrupted)
}

async fn stop(unit: &Arc<dyn Supervisor>, grace: Duration) -> Result<(), ScrubError> {
    let unit = unit.clone();
    Ok(blocking(move || unit.stop(grace)).await??)
}

/// Holds a unit, unless somebody else does already: a fence must stay what it is.
fn hold(unit: &Arc<dyn Supervisor>) -> Result<(), ScrubError> {
    if unit.observe()?.held.is_none() {
        unit.hold(HOLD)?;
    }
    Ok(())
}

fn release(unit: &Arc<dyn Supervisor>) -> Result<(), ScrubError> {
    if unit.observe()?.held.as_deref() == Some(HOLD) {
        unit.release()?;
    }
    Ok(())
}
