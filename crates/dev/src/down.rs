//! Ends every process of a cluster, whoever started it, and finds them without trusting anything
//! but their units.

use crate::error::DevError;
use crate::files;
use crate::keep::{KeeperLock, Progress};
use crate::layout::Layout;
use crate::parts::no_cluster;
use crate::spec::Spec;
use claviger_supervise::Supervisor;
use claviger_supervise::proc::{self, Signal};
use claviger_supervise::unit::ProcessUnit;
use std::fs;
use std::io;
use std::time::{Duration, Instant};

/// How long the keeper may take to end everything by itself: the sum of the graces below, and as
/// much again for a busy machine.
const KEEPER: Duration = Duration::from_secs(60);

/// Order of ending once the keeper is gone, and how long each may take by itself. Agents go before
/// API servers, since they would start them again. An API server with one open watch would take a
/// minute; nothing is lost by killing it.
const ORDER: [(&str, Duration); 4] = [
    ("agent-", Duration::from_secs(5)),
    ("apiserver-", Duration::from_secs(3)),
    ("server", Duration::from_secs(12)),
    ("etcd", Duration::from_secs(5)),
];

/// Everything that a cluster writes into its directory.
const ENTRIES: [&str; 14] = [
    "units",
    "logs",
    "pki",
    "etcd",
    "server",
    "kubeconfig",
    "bootstrap.json",
    "server-ca.pem",
    "people.json",
    "cluster.json",
    "ports.json",
    "keeper.lock",
    "prepare.lock",
    "dev.json",
];

/// Ends the cluster in this directory. With `purge` its files too. No error if nothing runs.
pub fn down(layout: &Layout, purge: bool) -> Result<(), DevError> {
    let spec = Spec::read(layout)?.ok_or_else(|| no_cluster(layout))?;
    let lock = end_keeper(layout)?;
    end_parts(layout, &spec)?;
    if purge {
        remove(layout)?;
    }
    drop(lock);
    Ok(())
}

/// Ends every part but the keeper; for the keeper itself, which holds the lock.
pub fn end_parts(layout: &Layout, spec: &Spec) -> Result<(), DevError> {
    for (prefix, grace) in ORDER {
        end_units(layout, prefix, grace)?;
    }
    // What the parts themselves started and left behind. Our own unit is not among them: a
    // keeper is a unit too.
    let own = i32::try_from(std::process::id()).unwrap_or_default();
    let left = match fs::canonicalize(layout.units()) {
        Ok(units) => proc::of_units_below(&units),
        Err(_) => Vec::new(),
    };
    for process in left {
        if process.pid != own && !is_keeper(layout, process.pid) {
            tracing::warn!(pid = process.pid, "a process was left behind; killing it");
            proc::end(process, Signal::KILL, Duration::from_secs(1))
                .map_err(DevError::io("end a process of", &layout.units()))?;
        }
    }
    for path in [layout.env(), layout.progress()] {
        gone(fs::remove_file(&path)).map_err(DevError::io("remove", &path))?;
    }
    gone(fs::remove_dir_all(&spec.sockets)).map_err(DevError::io("remove", &spec.sockets))
}

/// Ends the keeper, in the background or in somebody's terminal, and takes its place so that none
/// comes meanwhile.
fn end_keeper(layout: &Layout) -> Result<KeeperLock, DevError> {
    let until = Instant::now() + KEEPER;
    let mut asked = false;
    loop {
        if let Some(lock) = KeeperLock::take(layout)? {
            // It holds no lock, but may be about to: the background's unit has the last word.
            end_units(layout, "keeper", Duration::from_secs(5))?;
            return Ok(lock);
        }
        // The lock is held, so a keeper lives, and the file's keeper is it unless it has only
        // just begun.
        let keeper = files::read_json::<Progress>(&layout.progress())?.map(|p| p.keeper);
        if Instant::now() >= until {
            if let Some(keeper) = keeper {
                proc::end(keeper, Signal::KILL, Duration::from_secs(1))
                    .map_err(DevError::io("end the keeper of", &layout.dir))?;
            }
            end_units(layout, "keeper", Duration::from_secs(1))?;
            return KeeperLock::take(layout)?.ok_or_else(|| {
                DevError::refused(
                    format!("somebody holds {}", layout.keeper_lock().display()),
                    "find who (fuser shows it), end it and run the same again",
                )
            });
        }
        match keeper {
            Some(keeper) if !asked => {
                asked = true;
                proc::end(keeper, Signal::TERM, KEEPER)
                    .map_err(DevError::io("end the keeper of", &layout.dir))?;
            }
            _ => std::thread::sleep(Duration::from_millis(50)),
        }
    }
}

fn is_keeper(layout: &Layout, pid: i32) -> bool {
    let unit = ProcessUnit::open(&layout.unit("keeper")).ok();
    let seen = unit.and_then(|unit| unit.observe().ok());
    seen.and_then(|seen| seen.process).is_some_and(|process| process.pid == pid)
}

/// Ends all units with this name, or whose name begins with it and a number, at the same time.
fn end_units(layout: &Layout, prefix: &str, grace: Duration) -> Result<(), DevError> {
    let entries = match fs::read_dir(layout.units()) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => other.map_err(DevError::io("read", &layout.units()))?,
    };
    let names = entries.flatten().filter_map(|entry| entry.file_name().into_string().ok());
    let names =
        names.filter(
            |name| {
                if prefix.ends_with('-') { name.starts_with(prefix) } else { name == prefix }
            },
        );
    let ends: Vec<_> = names
        .map(|name| {
            let unit = ProcessUnit::open(&layout.unit(&name)).map_err(DevError::unit(&name));
            std::thread::spawn(move || unit?.stop(grace).map_err(DevError::unit(&name)))
        })
        .collect();
    let mut done = Ok(());
    for end in ends {
        let one = end.join().unwrap_or_else(|_| {
            Err(DevError::Answer { part: prefix.to_owned(), answer: "a panic".to_owned() })
        });
        done = done.and(one);
    }
    done
}

/// Removes what a cluster wrote, and the directory if nothing else is in it.
fn remove(layout: &Layout) -> Result<(), DevError> {
    let numbered = fs::read_dir(&layout.dir)
        .map_err(DevError::io("read", &layout.dir))?
        .flatten()
        .filter_map(|entry| entry.file_name().into_string().ok())
        .filter(|name| {
            let number = name.strip_prefix("agent-").or_else(|| name.strip_prefix("apiserver-"));
            number.is_some_and(|n| n.parse::<u32>().is_ok()) || name.ends_with(".tmp")
        });
    // dev.json goes last: while it is there, the same command can be run again.
    for name in numbered.chain(ENTRIES.map(String::from)) {
        let path = layout.dir.join(name);
        let removed =
            if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
        gone(removed).map_err(DevError::io("remove", &path))?;
    }
    match fs::remove_dir(&layout.dir) {
        Err(e) if e.kind() == io::ErrorKind::DirectoryNotEmpty => Ok(()),
        other => gone(other).map_err(DevError::io("remove", &layout.dir)),
    }
}

/// Gone already is as good as removed.
fn gone(done: io::Result<()>) -> io::Result<()> {
    match done {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}
