//! The dead-man timer of `ks kms verify --by-disabling`: a process of its own that disables the
//! root key and enables it again, whatever becomes of its starter.
//!
//! It hangs on a pipe. `go` on the pipe lets it disable the key; whether it did, it says. Then
//! `done` ends it; the pipe's end without `done` means that its starter died, and then, or when
//! its time is up, it enables the key. It disables the key itself so that it knows whose
//! suspension it ends: one that somebody else has made or asked for meanwhile stays. That is seen
//! from the audit record, which has a refused request for what is so already, too.
//!
//! It lives on this machine: one that is switched off takes it along, and the key stays disabled.

use crate::connect::Link;
use crate::exit::{self, Done, Failure};
use crate::ids;
use claviger_client::{Error, WantedEvents};
use claviger_crypto::SecretBytes;
use claviger_domain::id::{InstanceId, KeyId};
use claviger_domain::key::KeyState;
use claviger_wire::audit::Event;
use rustix::time::{ClockId, clock_gettime};
use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::Duration;

/// What the guard writes once nothing can hold it back.
const ARMED: &str = "armed";
/// What lets it disable the key.
const GO: &str = "go";
/// What it writes when the key is disabled; after a blank the correlation id of the act, if the
/// audit record tells it.
const DISABLED: &str = "disabled";
/// What ends it without an act.
const DISARM: &str = "done";
/// How long it tries to reach the key server: past an outage or an upgrade of it.
const TRY_FOR: Duration = Duration::from_secs(3600);
/// First pause between two tries; it doubles up to the longest.
const PAUSE: Duration = Duration::from_secs(2);
/// Longest pause between two tries: failed logins are limited, too.
const PAUSE_MAX: Duration = Duration::from_secs(30);
/// How often it looks at the time: a sleep of the machine is noticed no later after its end.
const TICK: Duration = Duration::from_secs(1);
/// The action of a disabled key, on record.
const DISABLE: &str = "kms.secrets.disable";
/// Longest line with an API key; a key has 44 characters.
const API_KEY_MAX: usize = 4096;
/// How many records of that action are looked at.
const RECORDS: usize = 100;
/// Code of a request to disable what is suspended already.
const SO_ALREADY: &str = "KEY_ACTION_INVALID_STATE_ERR";

/// Arguments of the guard. Its API key is the first line of its standard input.
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
        let mut command = Command::new(program);
        command.args(["ks", "kms", "guard", "--instance-id", &instance.to_string()]).args([
            "--crk",
            &key.to_string(),
            "--after",
            &after.as_secs().to_string(),
        ]);
        link.tell(&mut command);
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(|e| unable(e.to_string()))?;
        let mut pipe = child.stdin.take().expect("standard input is a pipe");
        let out = child.stdout.take().expect("standard output is a pipe");
        let told = pipe
            .write_all(link.api_key().map_or(&[], SecretBytes::expose))
            .and_then(|()| pipe.write_all(b"\n"));
        let mut armed = Armed { child, pipe, out: BufReader::new(out) };
        told.map_err(|e| unable(e.to_string()))?;
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
    pub fn disable(&mut self) -> Result<Disabled, Failure> {
        let told = writeln!(self.pipe, "{GO}").and_then(|()| self.heard());
        if let Ok(line) = &told
            && let Some(correlation) = line.strip_prefix(DISABLED)
        {
            let correlation = correlation.trim().to_owned();
            return Ok(Disabled((!correlation.is_empty()).then_some(correlation)));
        }
        match told {
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

/// Reads the API key that the starter sends; none of one who came in by a login.
pub fn api_key() -> Result<Option<SecretBytes>, Failure> {
    let mut line = String::with_capacity(API_KEY_MAX);
    let read = std::io::stdin().lock().take(API_KEY_MAX as u64).read_line(&mut line);
    let whole = read.is_ok() && line.ends_with('\n');
    line.truncate(line.trim_end().len());
    let line = SecretBytes::new(line.into_bytes());
    if whole {
        return Ok(Some(line).filter(|line| !line.expose().is_empty()));
    }
    Err(Failure::new(
        exit::USAGE,
        "the guard is not told an API key",
        "it is no command for people",
    ))
}

/// The guard itself.
pub async fn run(args: Guard, link: &Link) -> Done {
    // Away from the terminal and its signals. It fails only for a process that leads a group
    // already, and then signals to its starter's group miss it anyhow.
    let _ = rustix::process::setsid();
    link.keys.metadata(args.instance_id, args.crk).await?;
    let mut out = std::io::stdout();
    let mut say = |line: &str| -> Done {
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
    let deadline = uptime() + Duration::from_secs(args.after);
    let (instance, key) = (args.instance_id, args.crk);
    match link.keys.disable(instance, key).await {
        Ok(()) => {}
        Err(error) if may_be_done(&error) && !is_active(link, instance, key).await => {}
        Err(error) => {
            let why = error.to_string().replace('\n', " ");
            return say(&why);
        }
    }
    let disabled = Disabled::on_record(link, instance, key).await;
    // Nobody may be left to hear it.
    drop(say(format!("{DISABLED} {}", disabled.0.as_deref().unwrap_or_default()).trim()));
    let (tell, told) = channel();
    std::thread::spawn(move || {
        let mut line = String::new();
        let read = std::io::stdin().read_line(&mut line);
        // The receiver lives until the process ends.
        let _ = tell.send(read.is_ok() && line.trim() == DISARM);
    });
    if disarmed(&told, deadline) {
        return Ok(());
    }
    let until = uptime() + TRY_FOR;
    let mut pause = PAUSE;
    loop {
        match disabled.undo(instance, key, |_| (), link).await {
            Ok(undone) => {
                let how = match undone {
                    Undone::Enabled => format!("root key {key} is enabled again"),
                    Undone::Left(who) => format!("root key {key} stays disabled: {who}"),
                };
                // Nobody may be left to read it.
                drop(writeln!(std::io::stderr(), "guard: {how}"));
                return Ok(());
            }
            // Whatever else it is, a wrong certificate or a login that is refused, may pass.
            Err(failure) if uptime() >= until || nothing_to_undo(link, instance, key).await => {
                return Err(failure);
            }
            Err(_) => {
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(PAUSE_MAX);
            }
        }
    }
}

/// Waits for a word of the starter until `deadline`, an [`uptime`]; whether it was the one that
/// ends the guard.
fn disarmed(told: &Receiver<bool>, deadline: Duration) -> bool {
    loop {
        match told.recv_timeout(deadline.saturating_sub(uptime()).min(TICK)) {
            Ok(disarmed) => return disarmed,
            Err(RecvTimeoutError::Timeout) if uptime() < deadline => {}
            Err(_) => return false,
        }
    }
}

/// How long the machine has been up, its sleep included: a suspended laptop does not hold the
/// time back.
fn uptime() -> Duration {
    let now = clock_gettime(ClockId::Boottime);
    let (seconds, nanos) = (u64::try_from(now.tv_sec), u32::try_from(now.tv_nsec));
    Duration::new(seconds.unwrap_or_default(), nanos.unwrap_or_default())
}

/// Whether a request that was answered so may have been done all the same.
fn may_be_done(error: &Error) -> bool {
    match error {
        Error::Unreachable { .. } | Error::Busy { .. } | Error::Protocol { .. } => true,
        Error::Refused { .. }
        | Error::Unauthorized { .. }
        | Error::Tls { .. }
        | Error::Local { .. } => false,
    }
}

/// Whether the key is known to be active.
async fn is_active(link: &Link, instance: InstanceId, key: KeyId) -> bool {
    let found = link.keys.metadata(instance, key).await;
    found.is_ok_and(|found| found.state == KeyState::Active as u8)
}

/// Whether the key is known to be in a state that nothing leads out of, or in none that was ours.
async fn nothing_to_undo(link: &Link, instance: InstanceId, key: KeyId) -> bool {
    match link.keys.metadata(instance, key).await {
        Ok(found) => found.state != KeyState::Suspended as u8,
        Err(error) => error.is_key_state(),
    }
}

/// A root key that this command has disabled. Holds the correlation id of that act; none if the
/// caller may not read the audit record.
pub struct Disabled(Option<String>);

/// What became of the key.
pub enum Undone {
    /// It is active.
    Enabled,
    /// Somebody else wants it disabled; who, and since when.
    Left(String),
}

impl Disabled {
    /// What was just done, as it is on record.
    async fn on_record(link: &Link, instance: InstanceId, key: KeyId) -> Self {
        let found = requests(link, instance, key).await.unwrap_or_default();
        let last = found.into_iter().find(|event| event.outcome == "success");
        Self(last.map(|event| event.correlation_id))
    }

    /// Enables the key again, unless somebody else has asked since that it be disabled: whether
    /// that changed anything or not, he counts on it. Who cannot read the record enables it; a
    /// request that comes between the look and the act, within milliseconds, is overtaken.
    pub async fn undo(
        &self,
        instance: InstanceId,
        key: KeyId,
        note: impl FnMut(&str),
        link: &Link,
    ) -> Result<Undone, Failure> {
        if let Some(ours) = &self.0 {
            let found = requests(link, instance, key).await?;
            if let Some(event) = asked_by_others(&found, ours) {
                let who = &event.initiator;
                let name = if who.name.is_empty() { &who.id } else { &who.name };
                return Ok(Undone::Left(format!("{name} asked for that at {}", event.event_time)));
            }
        }
        ids::enable(&link.keys, instance, key, note).await?;
        Ok(Undone::Enabled)
    }
}

/// Requests to disable the key, newest first.
async fn requests(link: &Link, instance: InstanceId, key: KeyId) -> Result<Vec<Event>, Failure> {
    let wanted = WantedEvents {
        instance: Some(instance),
        key: Some(key),
        action: Some(DISABLE.to_owned()),
        ..WantedEvents::default()
    };
    Ok(link.admin.events(&wanted, RECORDS).await?.events)
}

/// The last request since `ours` that was done, or was refused only because it was so already.
/// One for want of a right counts for nothing.
fn asked_by_others<'a>(events: &'a [Event], ours: &str) -> Option<&'a Event> {
    let since = events.iter().take_while(|event| event.correlation_id != ours);
    let mut meant = since.filter(|event| {
        event.outcome == "success" || event.reason.reason_for_failure.as_deref() == Some(SO_ALREADY)
    });
    meant.next()
}
