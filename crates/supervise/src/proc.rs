//! What the kernel says of a process: `/proc/PID/stat` and `/proc/PID/environ`.

use crate::unit::UNIT_VARIABLE;
use claviger_domain::cluster::Process;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fd::OwnedFd;
pub use rustix::process::Signal;
use rustix::process::{Pid, PidfdFlags, WaitOptions, pidfd_open, pidfd_send_signal};
use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::{Duration, Instant};

/// One line of `/proc/PID/stat`, as far as it is of use here (format: proc(5)).
struct Stat {
    /// Field 3; `Z` and `X` are dead.
    state: u8,
    /// Field 4.
    parent: i32,
    /// Field 6.
    session: i32,
    /// Field 22, clock ticks since boot.
    start: u64,
}

fn stat(pid: i32) -> Option<Stat> {
    let line = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // Field 2 is the program's name in parentheses and may hold anything, so count from its end.
    let mut fields = line.get(line.rfind(')')? + 1..)?.split_ascii_whitespace();
    let state = *fields.next()?.as_bytes().first()?;
    let parent = fields.next()?.parse().ok()?;
    let session = fields.nth(1)?.parse().ok()?;
    let start = fields.nth(15)?.parse().ok()?;
    Some(Stat { state, parent, session, start })
}

/// The process with this id, unless there is none or it is a zombie.
pub fn alive(pid: i32) -> Option<Process> {
    let stat = stat(pid)?;
    (!matches!(stat.state, b'Z' | b'X' | b'x')).then_some(Process { pid, start: stat.start })
}

/// Whether exactly this process, not another with its id, still runs. A zombie does not.
pub fn is_alive(process: Process) -> bool {
    alive(process.pid) == Some(process)
}

/// Watches the children that this process has from before it became another program by exec, so
/// that none stays as a zombie. Only those that are there now; to be called before any is started.
pub fn adopt_children() {
    let own = rustix::process::getpid().as_raw_nonzero().get();
    let Ok(entries) = fs::read_dir("/proc") else { return };
    for entry in entries.flatten() {
        let pid = entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok());
        let Some(pid) = pid.filter(|pid| stat(*pid).is_some_and(|s| s.parent == own)) else {
            continue;
        };
        let reaper = std::thread::Builder::new().name(format!("reap {pid}")).stack_size(64 << 10);
        let wait = move || rustix::process::waitpid(Pid::from_raw(pid), WaitOptions::empty());
        if let Err(e) = reaper.spawn(wait) {
            tracing::warn!(pid, error = %e, "cannot watch a child: it will stay as a zombie");
        }
    }
}

/// Identifies this run of the kernel: a start time counts only together with it.
pub(crate) fn boot_id() -> String {
    fs::read_to_string("/proc/sys/kernel/random/boot_id")
        .map(|text| text.trim().to_owned())
        .unwrap_or_default()
}

/// Whether a process is one that this user may have started as a unit's program: its user is this
/// process's, and so is its PID namespace. An environment is whatever its author wrote; without
/// this, whoever may start a container could pass for the program of any unit.
fn may_be_ours(pid: i32) -> bool {
    let space = |who: &str| fs::read_link(format!("/proc/{who}/ns/pid")).ok();
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let uids = status.lines().find_map(|line| line.strip_prefix("Uid:")).unwrap_or_default();
    // Real, effective, saved, of file access.
    let effective = uids.split_ascii_whitespace().nth(1).and_then(|uid| uid.parse::<u32>().ok());
    let own = space("self");
    effective == Some(rustix::process::geteuid().as_raw())
        && own.is_some()
        && own == space(&pid.to_string())
}

/// All living session leaders of this user and PID namespace whose environment holds `variable`
/// (`NAME=value`): programs of units. Descendants of a program inherit its environment but not its
/// place as session leader.
pub(crate) fn leaders(variable: &[u8]) -> Vec<Process> {
    let mut found = Vec::new();
    let Ok(entries) = fs::read_dir("/proc") else { return found };
    for entry in entries.flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else {
            continue;
        };
        let Ok(environ) = fs::read(format!("/proc/{pid}/environ")) else { continue };
        if !environ.split(|b| *b == 0).any(|one| one == variable) {
            continue;
        }
        let stat = stat(pid).filter(|s| s.session == pid && !matches!(s.state, b'Z' | b'X' | b'x'));
        let stat = stat.filter(|_| may_be_ours(pid));
        found.extend(stat.map(|s| Process { pid, start: s.start }));
    }
    found
}

/// The arguments of a process, its program's name the first; none if they cannot be read.
pub(crate) fn arguments(process: Process) -> Vec<String> {
    let line = fs::read(format!("/proc/{}/cmdline", process.pid)).unwrap_or_default();
    let Some(line) = line.strip_suffix(b"\0") else { return Vec::new() };
    line.split(|b| *b == 0).map(|one| String::from_utf8_lossy(one).into_owned()).collect()
}

/// All living processes whose environment says that they belong to a unit below `units`, which
/// must be absolute: the programs themselves and whatever they left behind.
pub fn of_units_below(units: &Path) -> Vec<Process> {
    let mut found = Vec::new();
    let Ok(entries) = fs::read_dir("/proc") else { return found };
    for entry in entries.flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else {
            continue;
        };
        let Ok(environ) = fs::read(format!("/proc/{pid}/environ")) else { continue };
        let belongs = environ.split(|b| *b == 0).any(|one| {
            let value = one.strip_prefix(UNIT_VARIABLE.as_bytes());
            let value = value.and_then(|rest| rest.strip_prefix(b"="));
            value.is_some_and(|dir| Path::new(OsStr::from_bytes(dir)).starts_with(units))
        });
        if belongs {
            found.extend(alive(pid));
        }
    }
    found
}

/// Asks exactly this process to end, kills it after `grace`, and returns once it is gone. Fails
/// when it is still there `KILL_WAIT` after SIGKILL, which only the kernel's own troubles cause.
pub fn end(process: Process, first: Signal, grace: Duration) -> io::Result<()> {
    let Some(handle) = handle(process)? else { return Ok(()) };
    handle.signal(first)?;
    if handle.wait(grace)? {
        return Ok(());
    }
    handle.signal(Signal::KILL)?;
    if handle.wait(KILL_WAIT)? {
        return Ok(());
    }
    Err(io::Error::new(io::ErrorKind::TimedOut, "still there 30 s after SIGKILL"))
}

/// How long a process may take to die after SIGKILL. Only one that the kernel holds (a dead disk)
/// takes longer than it takes to give its memory back.
pub(crate) const KILL_WAIT: Duration = Duration::from_secs(30);

/// A handle that names one process for good, whatever becomes of its id.
struct Handle(OwnedFd);

/// Opens a handle on `process`; none if it is dead.
fn handle(process: Process) -> io::Result<Option<Handle>> {
    let Some(pid) = Pid::from_raw(process.pid) else { return Ok(None) };
    match pidfd_open(pid, PidfdFlags::empty()) {
        // The id may have passed to another process before the handle was opened, not after.
        Ok(fd) => Ok(is_alive(process).then_some(Handle(fd))),
        Err(rustix::io::Errno::SRCH) => Ok(None),
        Err(e) => Err(e.into()),
    }
}

impl Handle {
    /// Sends a signal; no error if the process is gone.
    fn signal(&self, signal: Signal) -> io::Result<()> {
        match pidfd_send_signal(&self.0, signal) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
            Err(e) => Err(e.into()),
        }
    }

    /// Waits until the process has ended, at most `limit`; says whether it has.
    fn wait(&self, limit: Duration) -> io::Result<bool> {
        let until = Instant::now() + limit;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            let left = Timespec {
                tv_sec: left.as_secs().try_into().unwrap_or(i64::MAX),
                tv_nsec: left.subsec_nanos().into(),
            };
            let mut fds = [PollFd::new(&self.0, PollFlags::IN)];
            match poll(&mut fds, Some(&left)) {
                Ok(n) => return Ok(n > 0),
                Err(rustix::io::Errno::INTR) => {}
                Err(e) => return Err(e.into()),
            }
        }
    }
}
