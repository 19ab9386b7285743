//! Programs with a time limit.

use crate::Outcome;
use std::fs::File;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// Runs it, what it says in `log`. An error when it fails or takes longer than `limit`.
pub fn run(command: &mut Command, log: &Path, limit: Duration) -> Outcome<()> {
    let file = File::create(log).map_err(|e| format!("cannot write {}: {e}", log.display()))?;
    let again = file.try_clone().map_err(|e| format!("cannot write {}: {e}", log.display()))?;
    let name = command.get_program().to_string_lossy().into_owned();
    // A group of its own, so that what it started ends with it.
    command.stdin(Stdio::null()).stdout(file).stderr(again).process_group(0);
    let mut child = command.spawn().map_err(|e| format!("cannot start {name}: {e}"))?;
    let deadline = Instant::now() + limit;
    loop {
        match child.try_wait().map_err(|e| format!("cannot wait for {name}: {e}"))? {
            Some(status) if status.success() => return Ok(()),
            Some(status) => return Err(format!("{name} ended with {status}{}", last_words(log))),
            None if Instant::now() >= deadline => {
                let group = format!("-{}", child.id());
                let _ = Command::new("kill").args(["-9", "--", &group]).status();
                let _ = child.wait();
                return Err(format!(
                    "{name} did not end within {} s{}",
                    limit.as_secs(),
                    last_words(log)
                ));
            }
            None => std::thread::sleep(Duration::from_millis(100)),
        }
    }
}

/// The end of a log, for a failure.
fn last_words(log: &Path) -> String {
    let text = std::fs::read(log).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<&str> = text.lines().collect();
    let from = lines.len().saturating_sub(15);
    format!("; the end of {}:\n{}", log.display(), lines.get(from..).unwrap_or(&[]).join("\n"))
}
