//! How a running agent hands its open ring and its socket to its successor: the new program that
//! takes its place in the same process, by exec.
//!
//! The ring goes through a sealed memfd, the key that opens the memfd and the descriptors through
//! a pair of sockets whose one end is the successor's standard input. So nothing secret is in a
//! file, an argument, a variable or, since a memfd may be swapped, in clear in it. The successor
//! believes only a pair that its own process made: the kernel says who that was.
//!
//! What is handed over decides nothing: the successor reads the fence, the deadline of coasting
//! and the ring's wrapped entries from disk, and takes an opened KEK only where these let it.

use claviger_crypto::{Key32, SealingKey, SecretBytes};
use claviger_domain::id::ClusterId;
use claviger_kms_plugin::Place;
use rustix::fs::{MemfdFlags, SealFlags};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType,
};
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::io::{self, IoSlice, IoSliceMut, Read, Seek as _, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;

/// Version of all that is said here. A successor that speaks another is refused beforehand.
pub const FORMAT: u32 = 1;

/// What the memfd is sealed for.
const LABEL: &[u8] = b"claviger agent hand-over 1";
/// Bytes of the one-time key in front of the note.
const KEY: usize = 32;
/// Most bytes of the note: a cluster's id, three numbers and a path.
const NOTE_MAX: usize = 8192;
/// Most bytes of the memfd: the largest ring of a plugin, sealed.
const RING_MAX: u64 = 1 << 20;

/// A ring on its way.
pub struct Ring {
    /// The cluster whose it is.
    pub cluster: ClusterId,
    /// Revision of the cluster that it was opened for.
    pub revision: u64,
    /// The opened KEKs, as [`crate::ring::Opener::hand`] puts them.
    pub keks: SecretBytes,
}

/// What a successor finds.
pub struct Inherited {
    /// The listening socket of the plugin, and its file.
    pub socket: (OwnedFd, Place),
    /// The open ring; none if the predecessor had none.
    pub ring: Option<Ring>,
}

/// What goes with the descriptors, in clear.
#[derive(Serialize, Deserialize)]
struct Note {
    format: u32,
    path: PathBuf,
    device: u64,
    inode: u64,
    ring: Option<(ClusterId, u64)>,
}

/// Puts the plugin's socket and the ring into a pair of sockets and gives the end that the
/// successor is to have. What nobody reads there goes with the end's last descriptor.
pub fn pack(socket: BorrowedFd<'_>, place: Place, ring: Option<&Ring>) -> io::Result<OwnedFd> {
    let Place { path, device, inode } = place;
    let what = ring.map(|r| (r.cluster.clone(), r.revision));
    let note = serde_json::to_vec(&Note { format: FORMAT, path, device, inode, ring: what })?;
    let key = Key32::generate();
    let memfd = ring.map(|ring| memfd(&key, &note, &ring.keks)).transpose()?;
    let (ours, theirs) = rustix::net::socketpair(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::CLOEXEC,
        None,
    )?;
    let fds: Vec<BorrowedFd<'_>> =
        std::iter::once(socket).chain(memfd.as_ref().map(|f| f.as_fd())).collect();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !control.push(SendAncillaryMessage::ScmRights(&fds)) {
        return Err(io::Error::other("no room for two descriptors"));
    }
    let parts = [IoSlice::new(key.expose()), IoSlice::new(&note)];
    rustix::net::sendmsg(&ours, &parts, &mut control, SendFlags::NOSIGNAL)?;
    Ok(theirs)
}

/// Takes out of `end` what [`pack`] put there. None if `end` is anything but a pair of sockets
/// that this very process made, before an exec or after, or if nothing is left in it.
pub fn unpack(end: BorrowedFd<'_>) -> io::Result<Option<Inherited>> {
    if !is_ours(end) {
        return Ok(None);
    }
    let mut bytes = [0; KEY + NOTE_MAX];
    let read = receive(end, &mut bytes);
    // Wipes it in the buffer.
    let key = Key32::take(&mut bytes[..KEY]);
    let (length, mut fds) = match read {
        Ok((0, _)) | Err(rustix::io::Errno::AGAIN) => return Ok(None),
        other => other?,
    };
    let wrong = |why: &str| io::Error::new(io::ErrorKind::InvalidData, why.to_owned());
    let note = bytes.get(KEY..length).ok_or_else(|| wrong("the note of the predecessor is cut"))?;
    let said: Note = serde_json::from_slice(note)?;
    if said.format != FORMAT {
        return Err(wrong("the predecessor speaks another format"));
    }
    if fds.len() != 1 + usize::from(said.ring.is_some()) {
        return Err(wrong("the predecessor's descriptors are not those of its note"));
    }
    let socket = fds.remove(0);
    let ring = match (said.ring, fds.pop(), key) {
        (Some((cluster, revision)), Some(memfd), Some(key)) => {
            let keks = open(&key, note, memfd)?;
            Some(Ring { cluster, revision, keks })
        }
        _ => None,
    };
    let place = Place { path: said.path, device: said.device, inode: said.inode };
    Ok(Some(Inherited { socket: (socket, place), ring }))
}

/// What the predecessor left on standard input.
pub fn inherited() -> io::Result<Option<Inherited>> {
    unpack(io::stdin().as_fd())
}

/// Whether this is a socket whose other end this process made.
fn is_ours(end: BorrowedFd<'_>) -> bool {
    let packets = rustix::net::sockopt::socket_type(end) == Ok(SocketType::SEQPACKET);
    let peer = rustix::net::sockopt::socket_peercred(end);
    packets && peer.is_ok_and(|peer| peer.pid == rustix::process::getpid())
}

fn receive(end: BorrowedFd<'_>, bytes: &mut [u8]) -> rustix::io::Result<(usize, Vec<OwnedFd>)> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT;
    let read = rustix::net::recvmsg(end, &mut [IoSliceMut::new(bytes)], &mut control, flags)?;
    let mut fds = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            fds.extend(rights);
        }
    }
    Ok((read.bytes, fds))
}

fn memfd(key: &Key32, note: &[u8], keks: &SecretBytes) -> io::Result<OwnedFd> {
    let sealed = SealingKey::new(key).seal(LABEL, &[note], keks.expose());
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let mut file = File::from(rustix::fs::memfd_create("claviger-ring", flags)?);
    file.write_all(&sealed)?;
    let seals = SealFlags::WRITE | SealFlags::GROW | SealFlags::SHRINK | SealFlags::SEAL;
    rustix::fs::fcntl_add_seals(&file, seals)?;
    Ok(file.into())
}

fn open(key: &Key32, note: &[u8], memfd: OwnedFd) -> io::Result<SecretBytes> {
    let mut file = File::from(memfd);
    // Its place is shared with whoever wrote it.
    file.rewind()?;
    let mut sealed = Vec::new();
    file.take(RING_MAX).read_to_end(&mut sealed)?;
    let opened = SealingKey::new(key).open(LABEL, &[note], &sealed);
    opened.map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ring() -> Ring {
        let keks = SecretBytes::new(b"opened KEKs, two of them".to_vec());
        Ring { cluster: ClusterId::random(), revision: 7, keks }
    }

    fn place() -> Place {
        Place { path: "/run/claviger/kms.sock".into(), device: 3, inode: 4 }
    }

    #[test]
    fn what_is_packed_comes_out_once() {
        let (socket, ring) = (File::open("/dev/null").unwrap(), ring());
        let end = pack(socket.as_fd(), place(), Some(&ring)).unwrap();
        let found = unpack(end.as_fd()).unwrap().unwrap();
        assert_eq!(found.socket.1, place());
        let got = found.ring.unwrap();
        assert_eq!((got.cluster, got.revision), (ring.cluster, 7));
        assert!(got.keks.expose() == ring.keks.expose());
        assert!(unpack(end.as_fd()).unwrap().is_none(), "nothing is left");
    }

    #[test]
    fn without_a_ring_the_socket_comes_alone() {
        let socket = File::open("/dev/null").unwrap();
        let end = pack(socket.as_fd(), place(), None).unwrap();
        assert!(unpack(end.as_fd()).unwrap().unwrap().ring.is_none());
    }

    #[test]
    fn the_memfd_is_unreadable_without_its_key_and_cannot_be_changed() {
        let (key, ring) = (Key32::generate(), ring());
        let mut file = File::from(memfd(&key, b"note", &ring.keks).unwrap());
        assert!(file.write_all(b"x").is_err(), "sealed");
        let mut bytes = Vec::new();
        file.rewind().unwrap();
        file.read_to_end(&mut bytes).unwrap();
        assert!(!bytes.windows(6).any(|w| w == b"opened"), "in clear");
        let again = || OwnedFd::from(file.try_clone().unwrap());
        assert!(open(&Key32::generate(), b"note", again()).is_err(), "another key");
        assert!(open(&key, b"another note", again()).is_err(), "another note");
        assert!(open(&key, b"note", again()).is_ok());
    }

    #[test]
    fn only_a_pair_of_this_process_is_believed() {
        let null = File::open("/dev/null").unwrap();
        assert!(unpack(null.as_fd()).unwrap().is_none());
        let (stream, _other) = std::os::unix::net::UnixStream::pair().unwrap();
        assert!(unpack(stream.as_fd()).unwrap().is_none(), "another kind of socket");
        // This process made the pair; the child that gets it as its input did not.
        let socket = File::open("/dev/null").unwrap();
        let end = pack(socket.as_fd(), place(), Some(&ring())).unwrap();
        let child = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "hand_over::tests::what_a_stranger_left", "--ignored"])
            .stdin(end)
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&child.stdout);
        assert!(child.status.success() && said.contains("1 passed"), "{said}");
    }

    #[test]
    #[ignore = "started by another test, with an input of its own"]
    fn what_a_stranger_left() {
        assert!(inherited().unwrap().is_none());
    }
}
