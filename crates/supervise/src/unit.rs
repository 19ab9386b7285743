//! A unit that is a process of this machine.
//!
//! | file | what it holds |
//! |---|---|
//! | `command.json` | [`Command`]: what to run |
//! | `process.json` | the last start: intent first, then process id and start time, and the extra arguments |
//! | `hold` | why the program must not run, while that is so |
//! | `lock` | taken (flock) by whoever changes one of the others; never held while waiting for a process to end |
//!
//! The program leads a session of its own, survives whoever started it, and carries two variables:
//! [`UNIT_VARIABLE`] and [`START_VARIABLE`]. By the second a process is found again whose starter
//! was killed before it could write down the process id, by the first one whose record is lost:
//! a unit has no process only if none of its user and PID namespace carries its name.

use crate::proc::{self, Signal};
use crate::{Observed, SuperviseError, Supervisor, file};
use claviger_domain::cluster::Process;
use rustix::fs::FlockOperation;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

/// Names the unit's directory in the environment of its program.
pub const UNIT_VARIABLE: &str = "CLAVIGER_UNIT";
/// Names one start in the environment of the program: a random text.
pub const START_VARIABLE: &str = "CLAVIGER_UNIT_START";

/// How long to wait for the unit's lock. Holders write small files and spawn, which takes
/// milliseconds; a machine that swaps may take seconds.
const LOCK_WAIT: Duration = Duration::from_secs(10);
/// How long a child may be under way between fork and its last exec before a start whose
/// starter died counts as failed.
const EXEC_WAIT: Duration = Duration::from_secs(1);
/// Most processes that are ended at once: one, or one more where a record was lost. More are there
/// only while somebody goes on starting them.
const ENDS_MAX: usize = 8;

/// Variables of the starter that its programs have too.
const PASSED_ON: [&str; 5] = ["PATH", "HOME", "TMPDIR", "CLAVIGER_LOG", "CLAVIGER_LOG_FORMAT"];

/// What a unit runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Command {
    /// Program (absolute path) and arguments.
    pub argv: Vec<String>,
    /// Environment; of the starter's only PATH, HOME, TMPDIR and what says how much to log are
    /// passed on.
    #[serde(default)]
    pub env: BTreeMap<String, String>,
    /// Host name for a UTS namespace of its own; without the right to make one the program
    /// runs under the machine's name.
    #[serde(default)]
    pub hostname: Option<String>,
    /// File that standard output and error are appended to.
    pub log: PathBuf,
}

/// The content of `process.json`.
#[derive(Debug, Serialize, Deserialize)]
struct Record {
    /// Value of [`START_VARIABLE`].
    start: String,
    /// The kernel's run, since start times count from it.
    boot: String,
    /// None from before the spawn until after it.
    process: Option<Process>,
    extra_args: Vec<String>,
}

/// A program in a directory of its own. Any number of parties may have one open.
#[derive(Debug, Clone)]
pub struct ProcessUnit {
    dir: PathBuf,
}

impl ProcessUnit {
    /// Opens the unit in `dir`, making the directory (0700) if it is not there yet.
    pub fn open(dir: &Path) -> Result<Self, SuperviseError> {
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(dir)
            .map_err(|e| file::error("create", dir, e))?;
        // One name for one unit, whichever way it was reached: the search by environment needs it.
        let dir = fs::canonicalize(dir).map_err(|e| file::error("open", dir, e))?;
        Ok(Self { dir })
    }

    /// The unit's directory, absolute.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// What it runs; none before the first [`ProcessUnit::set_command`].
    pub fn command(&self) -> Result<Option<Command>, SuperviseError> {
        self.json("command.json")
    }

    /// Sets what the next start runs. A process that runs is left alone.
    pub fn set_command(&self, command: &Command) -> Result<(), SuperviseError> {
        let _lock = self.lock()?;
        self.put("command.json", command)
    }

    fn json<T: for<'a> Deserialize<'a>>(&self, name: &str) -> Result<Option<T>, SuperviseError> {
        let path = self.dir.join(name);
        let Some(bytes) = file::read(&path)? else { return Ok(None) };
        serde_json::from_slice(&bytes)
            .map(Some)
            .map_err(|e| file::error("understand", &path, io::Error::from(e)))
    }

    fn put<T: Serialize>(&self, name: &str, value: &T) -> Result<(), SuperviseError> {
        let path = self.dir.join(name);
        let mut bytes = serde_json::to_vec_pretty(value)
            .map_err(|e| file::error("write", &path, io::Error::from(e)))?;
        bytes.push(b'\n');
        file::write(&path, &bytes)
    }

    /// Takes the lock; it falls when the file is dropped or its holder dies.
    fn lock(&self) -> Result<File, SuperviseError> {
        let path = self.dir.join("lock");
        let inner = || -> io::Result<File> {
            let lock = OpenOptions::new()
                .read(true)
                .write(true)
                .create(true)
                .truncate(false)
                .mode(0o600)
                .open(&path)?;
            let until = Instant::now() + LOCK_WAIT;
            loop {
                match rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive) {
                    Ok(()) => return Ok(lock),
                    Err(rustix::io::Errno::WOULDBLOCK) if Instant::now() < until => {
                        std::thread::sleep(Duration::from_millis(5));
                    }
                    Err(rustix::io::Errno::INTR) => {}
                    Err(e) => return Err(e.into()),
                }
            }
        };
        inner().map_err(|e| file::error("lock", &path, e))
    }

    fn held(&self) -> Result<Option<String>, SuperviseError> {
        let bytes = file::read(&self.dir.join("hold"))?;
        Ok(bytes.map(|b| String::from_utf8_lossy(&b).trim_end().to_owned()))
    }

    /// The last start, with a process that is alive or none. To be called under the lock: then
    /// a record without a process means that its starter died half-way.
    fn last(&self) -> Result<Option<Record>, SuperviseError> {
        let boot = proc::boot_id();
        let mut last = self.json::<Record>("process.json")?;
        if let Some(record) = &mut last {
            if record.boot != boot {
                record.process = None;
            } else if record.process.is_none() {
                record.process = self.search(&record.start);
                if record.process.is_some() {
                    self.put("process.json", record)?;
                }
            } else {
                record.process = record.process.filter(|p| proc::is_alive(*p));
            }
        }
        if last.as_ref().is_some_and(|record| record.process.is_some()) {
            return Ok(last);
        }
        // The record may be lost, or of a later start that came to nothing.
        let Some(process) = self.carriers().first().copied() else { return Ok(last) };
        tracing::warn!(pid = process.pid, unit = %self.dir.display(), "found a process that the unit's record does not name");
        let start = last.map(|record| record.start).unwrap_or_default();
        let extra_args = self.extra_args_of(process);
        let known = extra_args.is_some();
        let extra_args = extra_args.unwrap_or_default();
        let record = Record { start, boot, process: Some(process), extra_args };
        if known {
            self.put("process.json", &record)?;
        }
        Ok(Some(record))
    }

    /// Every process that carries the unit's name.
    fn carriers(&self) -> Vec<Process> {
        let mut variable = UNIT_VARIABLE.as_bytes().to_vec();
        variable.push(b'=');
        variable.extend_from_slice(self.dir.as_os_str().as_bytes());
        proc::leaders(&variable)
    }

    /// What a process has behind the unit's command; none where it runs another, or is still under
    /// way to its last exec.
    fn extra_args_of(&self, process: Process) -> Option<Vec<String>> {
        let argv = self.command().ok().flatten().map(|command| command.argv).unwrap_or_default();
        let args = proc::arguments(process);
        args.strip_prefix(argv.as_slice()).map(<[String]>::to_vec)
    }

    /// Finds the process of a start whose starter died before it wrote the process id down.
    fn search(&self, start: &str) -> Option<Process> {
        let variable = format!("{START_VARIABLE}={start}");
        let written = fs::metadata(self.dir.join("process.json")).and_then(|m| m.modified()).ok();
        loop {
            if let Some(process) = proc::leaders(variable.as_bytes()).first() {
                return Some(*process);
            }
            // A fresh start may still be between fork and exec, where it cannot be told apart.
            let age = written.and_then(|w| w.elapsed().ok()).unwrap_or(EXEC_WAIT);
            if age >= EXEC_WAIT {
                return None;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn spawn(&self, extra_args: &[String]) -> Result<Process, SuperviseError> {
        let path = self.dir.join("command.json");
        let command = self
            .command()?
            .ok_or_else(|| file::error("read", &path, io::Error::from(io::ErrorKind::NotFound)))?;
        let program = command.argv.first().cloned().unwrap_or_default();
        let failed = |source| SuperviseError::Spawn { program: program.clone(), source };
        runnable(Path::new(&program)).map_err(failed)?;
        let log = log_file(&command.log).map_err(|e| file::error("open", &command.log, e))?;
        let errors = log.try_clone().map_err(|e| file::error("open", &command.log, e))?;

        let start = random_text().map_err(failed)?;
        let mut record = Record {
            start: start.clone(),
            boot: proc::boot_id(),
            process: None,
            extra_args: extra_args.to_vec(),
        };
        self.put("process.json", &record)?;

        let mut argv: Vec<&str> = vec!["setsid"];
        if let Some(name) = command.hostname.as_deref().filter(|_| may_unshare()) {
            // Each step replaces the process by exec: the id stays the same throughout.
            argv.extend(["unshare", "--uts", "--", "sh", "-c"]);
            argv.extend(["printf %s \"$1\" >/proc/sys/kernel/hostname; shift; exec \"$@\""]);
            argv.extend(["sh", name]);
        }
        argv.extend(command.argv.iter().map(String::as_str));
        argv.extend(extra_args.iter().map(String::as_str));
        let mut child = std::process::Command::new(argv[0]);
        child.args(&argv[1..]).env_clear();
        for name in PASSED_ON {
            if let Some(value) = std::env::var_os(name) {
                child.env(name, value);
            }
        }
        child
            .envs(&command.env)
            .env(UNIT_VARIABLE, &self.dir)
            .env(START_VARIABLE, &start)
            .current_dir(&self.dir)
            .stdin(Stdio::null())
            .stdout(log)
            .stderr(errors);
        let mut child = child.spawn().map_err(failed)?;
        let pid = i32::try_from(child.id()).map_err(|e| failed(io::Error::other(e)))?;
        let process = proc::alive(pid);
        // Nobody else may be there to take the dead child off the kernel's table.
        let reaper = std::thread::Builder::new().name(format!("reap {pid}")).stack_size(64 << 10);
        if let Err(e) = reaper.spawn(move || child.wait()) {
            tracing::warn!(pid, error = %e, "cannot watch a child: it will stay as a zombie");
        }
        let process = process
            .ok_or_else(|| failed(io::Error::other("it ended at once; its log says why")))?;
        record.process = Some(process);
        self.put("process.json", &record)?;
        Ok(process)
    }

    fn end(&self, first: Signal, grace: Duration) -> Result<(), SuperviseError> {
        let end = |process| {
            // The lock is free from here on: a fence must not wait for somebody's grace to pass.
            proc::end(process, first, grace)
                .map_err(|e| file::error("end the process of", &self.dir, e))
        };
        for _ in 0..ENDS_MAX {
            match self.process() {
                Ok(None) => return Ok(()),
                Ok(Some(process)) => end(process)?,
                Err(error) => {
                    // What cannot be looked up in the directory is ended all the same.
                    for process in self.carriers() {
                        end(process)?;
                    }
                    return Err(error);
                }
            }
        }
        let still = io::Error::other("others are started all the time");
        Err(file::error("end the process of", &self.dir, still))
    }

    fn process(&self) -> Result<Option<Process>, SuperviseError> {
        let _lock = self.lock()?;
        Ok(self.last()?.and_then(|record| record.process))
    }
}

impl Supervisor for ProcessUnit {
    fn start(&self, extra_args: &[String]) -> Result<Process, SuperviseError> {
        let _lock = self.lock()?;
        if let Some(reason) = self.held()? {
            return Err(SuperviseError::Held(reason));
        }
        if let Some(process) = self.last()?.and_then(|record| record.process) {
            return Err(SuperviseError::Running(process));
        }
        self.spawn(extra_args)
    }

    fn kill(&self) -> Result<(), SuperviseError> {
        self.end(Signal::KILL, proc::KILL_WAIT)
    }

    fn stop(&self, grace: Duration) -> Result<(), SuperviseError> {
        self.end(Signal::TERM, grace)
    }

    fn observe(&self) -> Result<Observed, SuperviseError> {
        let _lock = self.lock()?;
        let held = self.held()?;
        let (process, extra_args) = match self.last()? {
            Some(record) => (record.process, record.extra_args),
            None => (None, Vec::new()),
        };
        Ok(Observed { process, held, extra_args })
    }

    fn hold(&self, reason: &str) -> Result<(), SuperviseError> {
        let _lock = self.lock()?;
        file::write(&self.dir.join("hold"), format!("{reason}\n").as_bytes())
    }

    fn release(&self) -> Result<(), SuperviseError> {
        let _lock = self.lock()?;
        file::remove(&self.dir.join("hold"))
    }
}

/// Refuses what exec would refuse later, when only the log could tell.
fn runnable(program: &Path) -> io::Result<()> {
    if !program.is_absolute() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "not an absolute path"));
    }
    let meta = fs::metadata(program)?;
    if !meta.is_file() || meta.permissions().mode() & 0o111 == 0 {
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, "not an executable file"));
    }
    Ok(())
}

fn log_file(path: &Path) -> io::Result<File> {
    if let Some(parent) = path.parent() {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(parent)?;
    }
    OpenOptions::new().append(true).create(true).mode(0o600).open(path)
}

/// 128 random bits as hexadecimal digits.
fn random_text() -> io::Result<String> {
    use std::io::Read;
    let mut bytes = [0_u8; 16];
    File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(bytes.iter().map(|b| format!("{b:02x}")).collect())
}

/// Whether this process may make a UTS namespace: root outside a locked-down container.
fn may_unshare() -> bool {
    static MAY: OnceLock<bool> = OnceLock::new();
    *MAY.get_or_init(|| {
        let probe = std::process::Command::new("unshare")
            .args(["--uts", "--", "sh", "-c", "printf probe >/proc/sys/kernel/hostname"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status();
        let may = probe.is_ok_and(|status| status.success());
        if !may {
            tracing::debug!("no UTS namespaces here: all programs share the machine's name");
        }
        may
    })
}
