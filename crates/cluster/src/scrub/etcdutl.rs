//! etcd's own program for its files.

use super::{ScrubError, failed};
use std::path::Path;
use std::process::{Output, Stdio};
use std::time::Duration;
use tokio::process::Command;

/// How long it may take to restore: it copies a database of 8 GiB at most.
const RESTORE: Duration = Duration::from_secs(900);
/// How long it may take to tell its version.
const VERSION: Duration = Duration::from_secs(10);

/// Fails unless the program runs, and is of the minor version of the etcd that said `etcd` of
/// itself (`3.6.4`): another one may write files that this etcd does not read.
pub(super) async fn fits(program: &Path, etcd: &str) -> Result<(), ScrubError> {
    let unfit = |why| ScrubError::Etcdutl { path: program.to_owned(), why };
    let mut command = Command::new(program);
    command.arg("version");
    let out = run(program, command, VERSION).await;
    let out = out.map_err(|e| unfit(e.to_string()))?;
    let text = String::from_utf8_lossy(&out.stdout);
    let own = text.lines().find_map(|line| line.strip_prefix("etcdutl version: "));
    match own.map(str::trim).filter(|_| out.status.success()) {
        None => Err(unfit("does not tell its version".to_owned())),
        Some(own) if minor(own) != minor(etcd) => Err(unfit(format!("is {own}, etcd is {etcd}"))),
        Some(_) => Ok(()),
    }
}

/// `3.6` of `3.6.4`.
fn minor(version: &str) -> Option<&str> {
    let second = version.match_indices('.').nth(1)?;
    Some(&version[..second.0])
}

/// What a member is restored with.
pub(super) struct Restored<'a> {
    pub(super) snapshot: &'a Path,
    pub(super) to: &'a Path,
    pub(super) name: &'a str,
    pub(super) peer_urls: &'a [String],
    pub(super) cluster_token: &'a str,
}

/// Makes the data directory of a member out of a snapshot.
pub(super) async fn restore(program: &Path, member: &Restored<'_>) -> Result<(), ScrubError> {
    let Restored { snapshot, to, name, peer_urls, cluster_token } = member;
    let urls: Vec<_> = peer_urls.iter().map(|url| format!("{name}={url}")).collect();
    let mut command = Command::new(program);
    command
        .args(["snapshot", "restore"])
        .arg(snapshot)
        .arg("--data-dir")
        .arg(to)
        .args(["--name", name])
        .args(["--initial-cluster", &urls.join(",")])
        .args(["--initial-advertise-peer-urls", &peer_urls.join(",")])
        .args(["--initial-cluster-token", cluster_token]);
    let out = run(program, command, RESTORE).await?;
    if out.status.success() {
        return Ok(());
    }
    let text = String::from_utf8_lossy(&out.stderr);
    let last = text.lines().rev().find(|l| !l.trim().is_empty()).unwrap_or("it says nothing");
    Err(ScrubError::Restore(last.chars().take(500).collect()))
}

async fn run(program: &Path, mut command: Command, limit: Duration) -> Result<Output, ScrubError> {
    command.stdin(Stdio::null()).kill_on_drop(true);
    let out = tokio::time::timeout(limit, command.output()).await;
    let late = |_| ScrubError::Restore(format!("no end within {} s", limit.as_secs()));
    out.map_err(late)?.map_err(failed("start", program))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    #[tokio::test]
    async fn a_program_that_would_fail_later_is_told_before() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("etcdutl");
        let missing = fits(&path, "3.6.4").await.unwrap_err();
        assert!(missing.never() && missing.to_string().contains("cannot start"), "{missing}");
        for (script, why) in [
            ("echo etcdutl version: 3.6.9", None),
            ("echo etcdutl version: 3.5.12", Some("is 3.5.12, etcd is 3.6.4")),
            ("echo etcdutl version: 3.6.4; exit 1", Some("does not tell its version")),
            ("echo usage", Some("does not tell its version")),
        ] {
            // Nobody may write to a program while it starts, so each is a file of its own.
            let path = dir.path().join(why.unwrap_or("good"));
            std::fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o700)).unwrap();
            let said = fits(&path, "3.6.4").await.err().map(|e| e.to_string());
            assert_eq!(said.is_some(), why.is_some(), "{said:?}");
            assert!(said.unwrap_or_default().contains(why.unwrap_or_default()));
            std::fs::remove_file(&path).unwrap();
        }
    }
}
