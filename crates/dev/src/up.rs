//! Ways to bring a cluster up: in this process, or by a keeper in the background.

use crate::down;
use crate::error::DevError;
use crate::files;
use crate::keep::{Keeper, KeeperLock, Progress};
use crate::parts::Dev;
use claviger_supervise::unit::{Command, ProcessUnit};
use claviger_supervise::{SuperviseError, Supervisor, proc};
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// How long a whole cluster may take to become ready. A busy machine of two cores takes 15 s for
/// one API server; three with thousands of Secrets on a slow disk take minutes.
pub const READY_WAIT: Duration = Duration::from_secs(300);
/// How long a keeper may take to say what it does, after it was started.
const FIRST_WORD: Duration = Duration::from_secs(20);

/// Keeps the cluster until this process is asked to end, then ends the cluster. None while
/// another process keeps it.
pub async fn keep_here(dev: &Dev, say: impl FnMut(&Progress)) -> Result<Option<()>, DevError> {
    use tokio::signal::unix::{SignalKind, signal};
    let Some(lock) = KeeperLock::take(&dev.layout)? else { return Ok(None) };
    // What an earlier keeper wrote says nothing any more.
    let _ = std::fs::remove_file(dev.layout.progress());
    let listen = |kind| signal(kind).map_err(DevError::io("catch signals in", &dev.layout.dir));
    let mut interrupt = listen(SignalKind::interrupt())?;
    let mut terminate = listen(SignalKind::terminate())?;
    let end = async move {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
    };
    Keeper::new(dev, lock)?.run(end, say).await?;
    down::end_parts(&dev.layout, &dev.spec)?;
    Ok(Some(()))
}

/// Starts a keeper in the background unless there is one.
pub fn keep_in_background(dev: &Dev) -> Result<(), DevError> {
    let name = "keeper";
    match KeeperLock::take(&dev.layout)? {
        None => return Ok(()),
        Some(lock) => {
            let _ = std::fs::remove_file(dev.layout.progress());
            drop(lock);
        }
    }
    let unit = ProcessUnit::open(&dev.layout.unit(name)).map_err(DevError::unit(name))?;
    let argv = vec![
        dev.program.display().to_string(),
        "dev".to_owned(),
        "keep".to_owned(),
        "--dir".to_owned(),
        dev.layout.dir.display().to_string(),
    ];
    // What says where programs are must reach the keeper as well.
    let passed = ["KUBEBUILDER_ASSETS", "CLAVIGER_CACHE", "RUST_BACKTRACE"];
    let env: BTreeMap<String, String> = passed
        .iter()
        .filter_map(|name| Some(((*name).to_owned(), std::env::var(name).ok()?)))
        .collect();
    let command = Command { argv, env, hostname: None, log: dev.layout.log(name) };
    unit.set_command(&command).map_err(DevError::unit(name))?;
    match unit.start(&[]) {
        Ok(_) | Err(SuperviseError::Running(_)) => Ok(()),
        Err(e) => Err(DevError::unit(name)(e)),
    }
}

/// Waits until the keeper, whoever it is, says that all is ready; tells each change to `say`.
pub async fn wait_ready(
    dev: &Dev,
    limit: Duration,
    mut say: impl FnMut(&Progress),
) -> Result<Progress, DevError> {
    let began = Instant::now();
    let mut told = None;
    loop {
        let progress: Option<Progress> = files::read_json(&dev.layout.progress())?;
        let alive = progress.as_ref().is_some_and(|p| proc::is_alive(p.keeper));
        if let Some(progress) = &progress {
            if alive && progress.ready {
                return Ok(progress.clone());
            }
            if told.as_ref() != Some(progress) {
                say(progress);
                told = Some(progress.clone());
            }
        }
        let not_ready = |note: &str| DevError::NotReady {
            seconds: began.elapsed().as_secs(),
            note: note.to_owned(),
            logs: dev.layout.logs(),
        };
        if let Some(failing) = progress.as_ref().filter(|_| alive).and_then(|p| p.failing.as_ref())
        {
            return Err(not_ready(failing));
        }
        if !alive && began.elapsed() >= FIRST_WORD {
            return Err(not_ready("the keeper has ended"));
        }
        if began.elapsed() >= limit {
            let note = progress.map(|p| p.note).unwrap_or_default();
            return Err(not_ready(&note));
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}
