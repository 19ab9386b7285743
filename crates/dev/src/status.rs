//! How the parts of a cluster are, seen without their keeper.

use crate::error::DevError;
use crate::files;
use crate::keep::Progress;
use crate::parts::Dev;
use crate::probe::Probe;
use claviger_supervise::{Supervisor, proc};
use serde::Serialize;

/// One line of `dev status`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PartStatus {
    /// Its name, which is also that of its unit and its log.
    pub part: String,
    /// `ready`, `not ready`, `held` or `dead`.
    pub state: &'static str,
    /// Its process, while it lives.
    pub pid: Option<i32>,
    /// Why it is not ready; may be empty.
    pub note: String,
}

/// Looks at every part once.
pub async fn look(dev: &Dev) -> Result<Vec<PartStatus>, DevError> {
    let progress: Option<Progress> = files::read_json(&dev.layout.progress())?;
    let keeper = progress.map(|p| p.keeper).filter(|keeper| proc::is_alive(*keeper));
    let mut all = vec![PartStatus {
        part: "keeper".to_owned(),
        state: if keeper.is_some() { "ready" } else { "dead" },
        pid: keeper.map(|keeper| keeper.pid),
        note: String::new(),
    }];
    let probe = Probe::new(dev)?;
    for part in dev.parts() {
        let name = part.to_string();
        let seen = dev.unit(part)?.observe().map_err(DevError::unit(&name))?;
        let pid = seen.process.map(|process| process.pid);
        let (state, note) = match (pid, seen.held) {
            (Some(_), None) => match probe.ready(dev, part).await {
                Ok(()) => ("ready", String::new()),
                Err(note) => ("not ready", note),
            },
            (_, Some(reason)) => ("held", reason),
            (None, None) => ("dead", String::new()),
        };
        all.push(PartStatus { part: name, state, pid, note });
    }
    Ok(all)
}
