//! Where the operator's commands on the node find a running agent: a socket in its state
//! directory, for root and the agent's own user. One line of JSON asks, lines answer.

use crate::hand_over::FORMAT;
use crate::node::Node;
use claviger_domain::cluster::Access;
use claviger_domain::id::{AgentName, ClusterId, Serial};
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::UnixStream as Blocking;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::mpsc;
use tokio::time::timeout;

const NAME: &str = "desk.sock";
/// Longest line: a path, or a reason with causes.
const LINE_MAX: u64 = 16 << 10;
/// How long a question may take to arrive.
const ASK: Duration = Duration::from_secs(2);
/// How long the asker waits for a line: an agent may be opening a KEK.
const ANSWER: Duration = Duration::from_secs(60);
/// Questions at once.
const ASKERS: usize = 8;

/// What can be asked.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "ask", rename_all = "kebab-case")]
pub enum Asked {
    /// How it is.
    Status,
    /// To let `program` take its place.
    Upgrade {
        /// The successor.
        program: PathBuf,
        /// The hand-over that it understands ([`FORMAT`]).
        format: u32,
    },
}

/// What is answered.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "say", rename_all = "kebab-case")]
pub enum Said {
    /// How it is.
    Status(Status),
    /// It gives its place away now.
    Going,
    /// It goes on as before.
    Not {
        /// Why.
        why: String,
    },
}

/// How an agent is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// Its program's version.
    pub version: String,
    /// Its process.
    pub pid: u32,
    /// Its name.
    pub agent: AgentName,
    /// Its cluster.
    pub cluster: ClusterId,
    /// The URL by which it reaches the server.
    pub server: String,
    /// The KEKs that are open.
    pub open: Vec<Serial>,
    /// Whether its API server may read.
    pub access: Access,
    /// Whether it took its ring from a predecessor.
    pub inherited: bool,
}

/// An order to give the agent's place away.
pub struct Order {
    /// To whom.
    pub program: PathBuf,
    back: UnixStream,
}

impl Order {
    /// Answers. An asker that is gone changes nothing.
    pub async fn say(&mut self, said: &Said) {
        if let Err(error) = send(&mut self.back, said).await {
            tracing::debug!(%error, "whoever asked for the upgrade is gone");
        }
    }
}

/// Listens. Only one agent at a time has the state directory, so what lies there is stale.
pub fn open(state_dir: &Path) -> io::Result<UnixListener> {
    // By the directory's descriptor, since its path may be too long for a socket.
    let dir = File::open(state_dir)?;
    match std::fs::remove_file(state_dir.join(NAME)) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    let listener = UnixListener::bind(format!("/proc/self/fd/{}/{NAME}", dir.as_raw_fd()))?;
    std::fs::set_permissions(state_dir.join(NAME), std::fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

/// Answers questions; orders go to `orders`. Never returns.
pub async fn serve(
    listener: UnixListener,
    node: Arc<Node>,
    inherited: bool,
    orders: mpsc::Sender<Order>,
) {
    let room = Arc::new(tokio::sync::Semaphore::new(ASKERS));
    loop {
        let Ok(permit) = room.clone().acquire_owned().await else { return };
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::debug!(%error, "cannot accept a question");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let own = rustix::process::getuid().as_raw();
        if !stream.peer_cred().is_ok_and(|peer| peer.uid() == 0 || peer.uid() == own) {
            tracing::warn!("refused a question of another user");
            continue;
        }
        let (node, orders) = (node.clone(), orders.clone());
        tokio::spawn(async move {
            if let Err(error) = answer(stream, &node, inherited, &orders).await {
                tracing::debug!(%error, "a question was not answered");
            }
            drop(permit);
        });
    }
}

async fn answer(
    mut stream: UnixStream,
    node: &Node,
    inherited: bool,
    orders: &mpsc::Sender<Order>,
) -> io::Result<()> {
    let mut line = String::new();
    let mut reader = tokio::io::BufReader::new((&mut stream).take(LINE_MAX));
    timeout(ASK, reader.read_line(&mut line)).await??;
    match serde_json::from_str(&line)? {
        Asked::Status => {
            let status = Status {
                version: env!("CARGO_PKG_VERSION").to_owned(),
                pid: std::process::id(),
                agent: node.config.name.clone(),
                cluster: node.cluster.clone(),
                server: node.clients().url.clone(),
                open: node.plugin.self_test(),
                access: node.observation().access.clone(),
                inherited,
            };
            send(&mut stream, &Said::Status(status)).await
        }
        Asked::Upgrade { program, format } => {
            let fit = if format == FORMAT {
                fit(&program)
            } else {
                Err(format!(
                    "it hands over in format {FORMAT}, the new program takes {format}; restart it while the server answers"
                ))
            };
            if let Err(why) = fit {
                return send(&mut stream, &Said::Not { why }).await;
            }
            match orders.try_send(Order { program, back: stream }) {
                Ok(()) => Ok(()),
                Err(error) => {
                    let why = "another upgrade is under way".to_owned();
                    send(&mut error.into_inner().back, &Said::Not { why }).await
                }
            }
        }
    }
}

/// Whether a program may be given this process: nobody but root and the agent's user can have
/// put it there.
fn fit(program: &Path) -> Result<(), String> {
    let shown = program.display();
    if !program.is_absolute() {
        return Err(format!("{shown} is not an absolute path"));
    }
    let found = std::fs::metadata(program).map_err(|e| format!("cannot read {shown}: {e}"))?;
    let own = rustix::process::getuid().as_raw();
    if !found.is_file() || found.mode() & 0o111 == 0 {
        return Err(format!("{shown} is not a program"));
    }
    if found.mode() & 0o022 != 0 || !(found.uid() == 0 || found.uid() == own) {
        return Err(format!(
            "{shown} can be changed by others than root and the agent's user; mend that with chown and `chmod go-w`"
        ));
    }
    Ok(())
}

async fn send(stream: &mut UnixStream, said: &Said) -> io::Result<()> {
    let mut line = serde_json::to_vec(said)?;
    line.push(b'\n');
    stream.write_all(&line).await
}

/// Asks the agent of a state directory, and gives its answers until it has no more to say.
pub fn ask(state_dir: &Path, asked: &Asked) -> io::Result<Vec<Said>> {
    let dir = File::open(state_dir)?;
    let mut stream = Blocking::connect(format!("/proc/self/fd/{}/{NAME}", dir.as_raw_fd()))?;
    stream.set_read_timeout(Some(ANSWER))?;
    let mut line = serde_json::to_vec(asked)?;
    line.push(b'\n');
    stream.write_all(&line)?;
    let mut said = Vec::new();
    for line in BufReader::new(stream.take(2 * LINE_MAX)).lines() {
        match line {
            Ok(line) => said.push(serde_json::from_str(&line)?),
            // The end is cut off where the process becomes another.
            Err(_) if !said.is_empty() => break,
            Err(e) => return Err(e),
        }
    }
    Ok(said)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_that_others_can_change_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("claviger");
        let refused = |path: &Path| fit(path).err().unwrap_or_default();
        assert!(refused(Path::new("claviger")).contains("absolute"));
        assert!(refused(&path).contains("cannot read"));
        assert!(refused(dir.path()).contains("not a program"));
        std::fs::write(&path, "").unwrap();
        for (mode, said) in
            [(0o644, "not a program"), (0o775, "chmod"), (0o757, "chmod"), (0o755, "")]
        {
            let permissions = std::fs::Permissions::from_mode(mode);
            std::fs::set_permissions(&path, permissions).unwrap();
            assert!(refused(&path).contains(said), "{mode:o}: {}", refused(&path));
        }
        assert_eq!(fit(&path), Ok(()));
    }
}
