//! The dead-man timer of `ks kms verify --by-disabling`: a process of its own that disables the
//! root key and enables it again, whatever becomes of its starter.
//!
//! It hangs on a pipe. `go` on the pipe lets it disable the key; whether it did, it says. Then
//! `done` ends it; the pipe's end without `done` means that its starter died, and then, or when
//! its time is up, it enables the key. It disables the key itself so that it knows whose
//! suspension it ends: one that somebody else has made meanwhile stays.

use crate::connect::Link;
use crate::exit::{self, Done, Failure};
use crate::ids;
use claviger_domain::id::{InstanceId, KeyId};
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

/// What the guard writes once nothing can hold it back.
const ARMED: &str = "armed";
/// What lets it disable the key.
const GO: &str = "go";
/// What it writes when the key is disabled.
const DISABLED: &str = "disabled";
/// What ends it without an act.
const DISARM: &str = "done";
/// How long it tries to reach the key server: past an outage or an upgrade of it.
const TRY_FOR: Duration = Duration::from_secs(3600);

/// Arguments of the guard; its credentials come by the environment.
#[derive(clap::Args)]
pub struct Guard {
    #[arg(long)]
    instance_id: InstanceId,
    #[arg(long)]
    crk: KeyId,
    /// Seconds
    #[arg(long)]
    after: u64,
}

/// The guard, seen by its starter. Dropped without [`Armed::disarm`], it enables the key at once
/// if it has disabled it.
pub struct Armed {
    child: Child,
    pipe: ChildStdin,
    out: BufReader<ChildStdout>,
}

impl Armed {
    /// Starts a guard and returns once it is armed: it has reached the key server and seen the key.
    pub fn start(
        link: &Link,
        instance: InstanceId,
        key: KeyId,
        after: Duration,
    ) -> Result<Armed, Failure> {
        let unable = |why: String| {
            Failure::new(
                exit::UNREACHABLE,
                format!("the guard that enables the key again cannot be armed: {why}"),
                "nothing was changed; try again",
            )
        };
        let program = std::env::current_exe().map_err(|e| unable(e.to_string()))?;
        let mut child = Command::new(program)
            .args(["ks", "kms", "guard", "--instance-id", &instance.to_string()])
            .args(["--crk", &key.to_string(), "--after", &after.as_secs().to_string()])
            .envs(link.environment())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(|e| unable(e.to_string()))?;
        let pipe = child.stdin.take().expect("standard input is a pipe");
        let out = child.stdout.take().expect("standard output is a pipe");
        let mut armed = Armed { child, pipe, out: BufReader::new(out) };
        match armed.heard() {
            Ok(line) if line == ARMED => Ok(armed),
            Ok(_) => Err(unable("it ended; see its message above".to_owned())),
            Err(error) => Err(unable(error.to_string())),
        }
    }

    fn heard(&mut self) -> std::io::Result<String> {
        let mut line = String::new();
        self.out.read_line(&mut line)?;
        Ok(line.trim().to_owned())
    }

    /// Lets it disable the key. An error means that it did not, and will not enable it either.
    pub fn disable(&mut self) -> Done {
        let told = writeln!(self.pipe, "{GO}").and_then(|()| self.heard());
        match told {
            Ok(line) if line == DISABLED => Ok(()),
            Ok(line) if !line.is_empty() => Err(Failure::new(
                exit::NO,
                format!("the root key was not disabled: {line}"),
                "nothing was changed; look at the key: claviger key get",
            )),
            _ => Err(Failure::new(
                exit::UNKNOWN,
                "the guard has ended, and whether it disabled the root key is not known",
                "look at the key: claviger key get",
            )),
        }
    }

    /// The key is enabled again: the guard has nothing left to do.
    pub fn disarm(mut self) {
        // A guard that is gone has fired, and that is no harm: an active key stays active.
        let told = writeln!(self.pipe, "{DISARM}");
        drop(self.pipe);
        if told.is_ok() {
            drop(self.child.wait());
        }
    }
}

/// The guard itself.
pub async fn run(args: Guard, link: &Link) -> Done {
    // Away from the terminal and its signals. It fails only for a process that leads a group
    // already, and then signals to its starter's group miss it anyhow.
    let _ = rustix::process::setsid();
    link.keys.metadata(args.instance_id, args.crk).await?;
    let mut out = std::io::stdout();
    let mut say = |line: &str| {
        writeln!(out, "{line}").and_then(|()| out.flush()).map_err(|e| {
            Failure::new(exit::UNREACHABLE, format!("the starter of the guard is gone: {e}"), "")
        })
    };
    say(ARMED)?;
    let mut line = String::new();
    let read = std::io::stdin().read_line(&mut line);
    if read.is_err() || line.trim() != GO {
        // Its starter died first: nothing was changed.
        return Ok(());
    }
    let deadline = Instant::now() + Duration::from_secs(args.after);
    match link.keys.disable(args.instance_id, args.crk).await.map_err(Failure::from) {
        Ok(()) => drop(say(DISABLED)),
        // No answer: it may be disabled, so it is enabled.
        Err(failure) if failure.code == exit::UNREACHABLE => drop(say(DISABLED)),
        Err(failure) => {
            let why = failure.error.replace('\n', " ");
            return say(&why);
        }
    }
    let (tell, told) = mpsc::channel();
    std::thread::spawn(move || {
        let mut line = String::new();
        let read = std::io::stdin().read_line(&mut line);
        // The receiver lives until the process ends.
        let _ = tell.send(read.is_ok() && line.trim() == DISARM);
    });
    let disarmed = told.recv_timeout(deadline.saturating_duration_since(Instant::now()));
    if disarmed == Ok(true) {
        return Ok(());
    }
    let until = Instant::now() + TRY_FOR;
    loop {
        match ids::enable(&link.keys, args.instance_id, args.crk, |_| ()).await {
            Ok(()) => {
                // Nobody may be left to read it.
                drop(writeln!(std::io::stderr(), "guard: root key {} is enabled again", args.crk));
                return Ok(());
            }
            Err(failure) if failure.code == exit::UNREACHABLE && Instant::now() < until => {
                tokio::time::sleep(Duration::from_secs(2)).await;
            }
            Err(failure) => return Err(failure),
        }
    }
}
