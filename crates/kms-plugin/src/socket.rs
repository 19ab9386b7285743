//! The Unix socket: who may connect, and how it comes and goes.

use crate::server::KmsServer;
use crate::service::Plugin;
use hyper::server::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use std::fs::{DirBuilder, File, Permissions};
use std::future::Future;
use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use thiserror::Error;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::JoinSet;

/// Longest path of a socket: `sun_path` of Linux has 108 bytes, the last of them zero.
pub const PATH_MAX: usize = 107;
/// Largest message that is read: a ciphertext of 1 KiB with annotations of 32 KiB, and as much
/// again for their framing.
pub const MESSAGE_MAX: usize = 64 << 10;
/// Connections at once. An API server keeps one for each provider of its configuration, and a
/// second set while it reloads.
pub const CONNECTIONS_MAX: usize = 64;
/// Calls at once on one connection; others wait in kube-apiserver.
pub const CALLS_MAX: u32 = 256;
/// How long calls under way may take to end when the socket closes.
pub const DRAIN: Duration = Duration::from_secs(2);
/// How long a call may take: `timeout` of the EncryptionConfiguration that the agent writes.
pub const CALL_TIMEOUT: Duration = Duration::from_secs(10);
/// Pause after a failed accept, which is nearly always a lack of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// The socket could not be opened.
#[derive(Debug, Error)]
pub enum SocketError {
    /// The path does not fit.
    #[error(
        "socket path {path} has {len} bytes, Linux allows {PATH_MAX}; choose a shorter one, \
         for instance under /run"
    )]
    TooLong {
        /// The path.
        path: PathBuf,
        /// Its length in bytes.
        len: usize,
    },
    /// The path names no file in a directory.
    #[error(
        "socket path {0} must be absolute and name a file, for instance /run/claviger/kms.sock"
    )]
    NoName(PathBuf),
    /// Somebody answers there.
    #[error("socket {0} is already in use by a running process; stop that one, or choose another")]
    InUse(PathBuf),
    /// Something else lies there, which is left alone.
    #[error("{0} exists and is no socket; remove it yourself, or choose another path")]
    NotASocket(PathBuf),
    /// Others could put a socket of their own in its place.
    #[error("directory {0} may be written by every user; run `chmod go-w` on it")]
    OpenToAll(PathBuf),
    /// The operating system said no.
    #[error("cannot {doing} {path}")]
    Io {
        /// What was tried.
        doing: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
}

/// A listening socket, mode 0600 from its first moment. Its file goes when this is dropped.
pub struct Listener {
    listener: UnixListener,
    file: Owned,
}

/// The socket's file, removed on drop unless another has taken its place.
struct Owned {
    path: PathBuf,
    device: u64,
    inode: u64,
    uid: u32,
}

impl Owned {
    /// Whether this very file is at its path. Its number is nobody else's while it is listened on.
    fn is_in_place(&self) -> bool {
        std::fs::symlink_metadata(&self.path)
            .is_ok_and(|m| (m.dev(), m.ino()) == (self.device, self.inode))
    }
}

impl Drop for Owned {
    fn drop(&mut self) {
        if self.is_in_place() {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

impl Listener {
    /// Listens on `path`, whose directory must exist. A socket that a dead process left there is
    /// replaced. Must be called in a Tokio runtime.
    pub fn bind(path: &Path) -> Result<Self, SocketError> {
        let len = path.as_os_str().as_bytes().len();
        if len > PATH_MAX {
            return Err(SocketError::TooLong { path: path.to_owned(), len });
        }
        let (Some(directory), Some(name)) = (path.parent(), path.file_name()) else {
            return Err(SocketError::NoName(path.to_owned()));
        };
        if !path.is_absolute() {
            return Err(SocketError::NoName(path.to_owned()));
        }
        let parent = std::fs::metadata(directory).map_err(io_error("read", directory))?;
        // The sticky bit keeps others from renaming what is ours.
        if parent.mode() & 0o1002 == 0o0002 {
            return Err(SocketError::OpenToAll(directory.to_owned()));
        }
        refuse_unless_stale(path)?;

        // Bound in a directory that only this user may enter, so that nobody can connect before
        // the mode is set; then moved over whatever stale socket is there, in one step.
        let mut fresh = std::ffi::OsString::from(".");
        fresh.push(name);
        fresh.push(".new");
        let fresh = directory.join(fresh);
        clear(&fresh)?;
        DirBuilder::new().mode(0o700).create(&fresh).map_err(io_error("create", &fresh))?;
        let bound = Self::bind_in(&fresh, path);
        let cleared = clear(&fresh);
        let listener = bound?;
        cleared?;
        Ok(listener)
    }

    fn bind_in(fresh: &Path, path: &Path) -> Result<Self, SocketError> {
        // By the descriptor of the directory, since its own path may be too long.
        let directory = File::open(fresh).map_err(io_error("open", fresh))?;
        let short = format!("/proc/self/fd/{}/s", directory.as_raw_fd());
        let listener = UnixListener::bind(&short).map_err(io_error("listen on", path))?;
        let socket = fresh.join("s");
        std::fs::set_permissions(&socket, Permissions::from_mode(0o600))
            .map_err(io_error("set the mode of", &socket))?;
        let found = std::fs::symlink_metadata(&socket).map_err(io_error("read", &socket))?;
        std::fs::rename(&socket, path).map_err(io_error("put in place", path))?;
        let file = Owned {
            path: path.to_owned(),
            device: found.dev(),
            inode: found.ino(),
            uid: found.uid(),
        };
        Ok(Self { listener, file })
    }

    /// Where it listens.
    pub fn path(&self) -> &Path {
        &self.file.path
    }

    /// Whether its file is where callers look for it. Where it is not, who is connected is served
    /// on, and nobody else comes: it must be [`bind`](Self::bind)ed anew.
    pub fn is_in_place(&self) -> bool {
        self.file.is_in_place()
    }

    /// Which file its socket is; for a successor that [`inherit`](Self::inherit)s it.
    pub fn place(&self) -> Place {
        Place { path: self.file.path.clone(), device: self.file.device, inode: self.file.inode }
    }

    /// Goes on with a socket that this process's predecessor bound and has handed over by its
    /// descriptor. None if its file is no longer there: then nobody can reach it. Must be called
    /// in a Tokio runtime.
    pub fn inherit(socket: OwnedFd, place: Place) -> Result<Option<Self>, SocketError> {
        let Place { path, device, inode } = place;
        let found = match std::fs::symlink_metadata(&path) {
            Ok(found) if (found.dev(), found.ino()) == (device, inode) => found,
            Ok(_) => return Ok(None),
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(io_error("read", &path)(e)),
        };
        let socket = std::os::unix::net::UnixListener::from(socket);
        let listener = socket.set_nonblocking(true).and_then(|()| UnixListener::from_std(socket));
        let listener = listener.map_err(io_error("listen on", &path))?;
        Ok(Some(Self { listener, file: Owned { path, device, inode, uid: found.uid() } }))
    }

    /// Serves `plugin` until `shutdown` ends; then lets calls under way end, [`DRAIN`] at most.
    /// Whoever connects afterwards waits until the socket is served again, by this process or by
    /// one that inherits it, or is dropped. Only root and this process's own user may connect.
    pub async fn serve(&self, plugin: Plugin, shutdown: impl Future<Output = ()>) {
        let service = KmsServer::new(plugin);
        let (stop, stopped) = watch::channel(());
        let mut connections = JoinSet::new();
        {
            let free = Arc::new(Semaphore::new(CONNECTIONS_MAX));
            tokio::pin!(shutdown);
            loop {
                let accepted = tokio::select! {
                    () = &mut shutdown => break,
                    Some(_) = connections.join_next() => continue,
                    accepted = accept(&self.listener, self.file.uid, &free) => accepted,
                };
                connections.spawn(converse(accepted, service.clone(), stopped.clone()));
            }
        }
        drop(stop);
        let ended = async { while connections.join_next().await.is_some() {} };
        if tokio::time::timeout(DRAIN, ended).await.is_err() {
            tracing::warn!("calls were still under way {DRAIN:?} after the socket closed");
        }
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.listener.as_fd()
    }
}

/// The file of a listening socket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// Its path.
    pub path: PathBuf,
    /// The file system's number.
    pub device: u64,
    /// The file's number there.
    pub inode: u64,
}

/// The next connection of a user who may.
async fn accept(listener: &UnixListener, own: u32, free: &Arc<Semaphore>) -> Connection {
    loop {
        let permit = free.clone().acquire_owned().await.expect("the semaphore is never closed");
        match listener.accept().await {
            Ok((stream, _)) => match stream.peer_cred() {
                Ok(peer) if peer.uid() == 0 || peer.uid() == own => {
                    return Connection { stream, _permit: permit };
                }
                Ok(peer) => {
                    tracing::warn!(uid = peer.uid(), "refused a connection of another user")
                }
                Err(error) => tracing::warn!(%error, "refused a connection of an unknown user"),
            },
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// Answers the calls of one connection until it ends, or until `stopped` says that those under
/// way are the last.
async fn converse(connection: Connection, service: KmsServer, mut stopped: watch::Receiver<()>) {
    let mut connection = pin!(
        http2::Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .max_concurrent_streams(CALLS_MAX)
            .auto_date_header(false)
            .serve_connection(TokioIo::new(connection), service)
    );
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        _ = stopped.changed() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "a connection broke");
    }
}

/// Lets a stale socket or nothing at all pass.
fn refuse_unless_stale(path: &Path) -> Result<(), SocketError> {
    let found = match std::fs::symlink_metadata(path) {
        Ok(found) => found,
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(io_error("read", path)(e)),
    };
    if !found.file_type().is_socket() {
        return Err(SocketError::NotASocket(path.to_owned()));
    }
    match std::os::unix::net::UnixStream::connect(path) {
        Ok(_) => Err(SocketError::InUse(path.to_owned())),
        Err(e) if matches!(e.kind(), ErrorKind::ConnectionRefused | ErrorKind::NotFound) => Ok(()),
        // A full backlog, for one: somebody listens.
        Err(e) if e.kind() == ErrorKind::WouldBlock => Err(SocketError::InUse(path.to_owned())),
        Err(e) => Err(io_error("connect to", path)(e)),
    }
}

/// Removes the directory of an earlier try, which holds one socket at most.
fn clear(fresh: &Path) -> Result<(), SocketError> {
    let gone = |done: io::Result<()>| match done {
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(()),
        other => other.map_err(io_error("remove", fresh)),
    };
    gone(std::fs::remove_file(fresh.join("s")))?;
    gone(std::fs::remove_dir(fresh))
}

fn io_error(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> SocketError {
    let path = path.to_owned();
    move |source| SocketError::Io { doing, path, source }
}

/// An accepted connection that counts against [`CONNECTIONS_MAX`] while it lives.
struct Connection {
    stream: UnixStream,
    _permit: OwnedSemaphorePermit,
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

/// Does not say that it can write several buffers at once, although it can. h2 would then keep
/// the data of each answer above 256 bytes, as those of Encrypt are, in a buffer of its own and
/// write answer by answer; so it copies up to 1 KiB each and writes the answers of many calls, and
/// data and trailers of one, together.
impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
