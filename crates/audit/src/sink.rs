//! Ways by which checkpoints leave: whoever changes the log cannot change them there.

use crate::checkpoint::Checkpoint;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::net::{SocketAddr, UdpSocket};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};

/// A way out. A checkpoint covers all before it, so one that was lost costs precision, no more.
pub trait Sink: Send {
    /// Sends one. Called on a thread of its own, about once a minute.
    fn send(&mut self, checkpoint: &Checkpoint) -> io::Result<()>;
}

/// Appends each to a file, as a line of text, durably. The file belongs on another disk, or into
/// another machine's hands.
pub struct FileSink(File);

impl FileSink {
    /// Opens the file, or makes it for its owner alone.
    pub fn open(path: &Path) -> io::Result<Self> {
        OpenOptions::new().append(true).create(true).mode(0o600).open(path).map(Self)
    }
}

impl Sink for FileSink {
    fn send(&mut self, checkpoint: &Checkpoint) -> io::Result<()> {
        // One write: a line is never half of this one and half of another writer's.
        self.0.write_all(format!("{checkpoint}\n").as_bytes())?;
        self.0.sync_data()
    }
}

enum To {
    Unix(PathBuf),
    Udp(SocketAddr),
}

/// Sends each to a syslog daemon (RFC 5424), by datagrams: to a socket of this machine, or by UDP
/// (RFC 5426). Datagrams can be lost without an error.
pub struct Syslog {
    to: To,
    host: String,
}

impl Syslog {
    /// To the socket at `path`, for instance `/dev/log`. `host` is this machine's name.
    pub fn unix(path: &Path, host: &str) -> Self {
        Self { to: To::Unix(path.to_owned()), host: hostname(host) }
    }

    /// To a daemon at `address`. `host` is this machine's name.
    pub fn udp(address: SocketAddr, host: &str) -> Self {
        Self { to: To::Udp(address), host: hostname(host) }
    }

    /// Facility 13 (log audit), severity 5 (notice).
    fn message(&self, checkpoint: &Checkpoint) -> String {
        let at = jiff::Timestamp::from_millisecond(checkpoint.at().0).map(|at| format!("{at:.3}"));
        let at = at.as_deref().unwrap_or("-");
        let (host, pid) = (&self.host, std::process::id());
        format!("<109>1 {at} {host} claviger {pid} audit-checkpoint - {checkpoint}")
    }
}

impl Sink for Syslog {
    fn send(&mut self, checkpoint: &Checkpoint) -> io::Result<()> {
        let message = self.message(checkpoint);
        // A new socket each time: the daemon may have been started anew.
        match &self.to {
            To::Unix(path) => {
                let socket = UnixDatagram::unbound()?;
                // A daemon that does not read must not stop the next checkpoint.
                socket.set_nonblocking(true)?;
                socket.send_to(message.as_bytes(), path)?;
            }
            To::Udp(address) => {
                let any: SocketAddr = match address {
                    SocketAddr::V4(_) => ([0, 0, 0, 0], 0).into(),
                    SocketAddr::V6(_) => ([0u16; 8], 0).into(),
                };
                let socket = UdpSocket::bind(any)?;
                socket.set_nonblocking(true)?;
                socket.send_to(message.as_bytes(), address)?;
            }
        }
        Ok(())
    }
}

/// A name as RFC 5424 takes it: printable ASCII without blanks, at most 255 characters.
fn hostname(host: &str) -> String {
    let name: String = host.chars().filter(char::is_ascii_graphic).take(255).collect();
    if name.is_empty() { "-".to_owned() } else { name }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::tests::checkpoint;
    use crate::checkpoints_of;

    fn sent(text: &str) -> Vec<Checkpoint> {
        checkpoints_of(text).collect::<Result<_, _>>().expect("checkpoints")
    }

    #[test]
    fn a_file_gets_a_line_for_each() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("checkpoints");
        for _ in 0..2 {
            let mut sink = FileSink::open(&path).expect("opens");
            sink.send(&checkpoint()).expect("writes");
        }
        let text = std::fs::read_to_string(&path).expect("reads");
        assert_eq!(sent(&text), [checkpoint(), checkpoint()]);
    }

    #[test]
    fn a_syslog_daemon_gets_a_message_for_each() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("log");
        let daemon = UnixDatagram::bind(&path).expect("binds");
        let other = UdpSocket::bind("127.0.0.1:0").expect("binds");
        let address = other.local_addr().expect("an address");
        let mut buffer = [0; 4096];
        Syslog::unix(&path, "node 1\n").send(&checkpoint()).expect("sends");
        let read = daemon.recv(&mut buffer).expect("receives");
        let text = std::str::from_utf8(&buffer[..read]).expect("text");
        let start = "<109>1 1970-01-01T00:00:00.005Z node1 claviger ";
        assert!(text.starts_with(start), "{text}");
        assert_eq!(sent(text), [checkpoint()]);
        Syslog::udp(address, "").send(&checkpoint()).expect("sends");
        let read = other.recv(&mut buffer).expect("receives");
        assert_eq!(sent(std::str::from_utf8(&buffer[..read]).expect("text")), [checkpoint()]);
        assert!(Syslog::unix(&dir.path().join("none"), "h").send(&checkpoint()).is_err());
    }
}
