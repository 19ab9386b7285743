//! The seam to the disk: few operations, each with what it promises, so that tests can put a
//! disk under the log that loses power.

use std::fs::{self, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// Held by the one who writes. No segment has this name.
const LOCK: &str = "lock";

/// A directory of files.
pub trait Files: Send + Sync + 'static {
    /// A file in it.
    type File: File;
    /// Keeps other writers out while it lives.
    type Lock: Send;

    /// Makes an empty file, or empties the one that is there. Not durable before
    /// [`Files::sync_dir`].
    fn create(&self, name: &str) -> io::Result<Self::File>;
    /// Opens a file that is there.
    fn open(&self, name: &str) -> io::Result<Self::File>;
    /// Gives a file another name and replaces what had it, in one step. Not durable before
    /// [`Files::sync_dir`].
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;
    /// Takes a file away. Not durable before [`Files::sync_dir`].
    fn remove(&self, name: &str) -> io::Result<()>;
    /// Makes names durable: those that are there and those that are not.
    fn sync_dir(&self) -> io::Result<()>;
    /// Names of all files, in any order.
    fn names(&self) -> io::Result<Vec<String>>;
    /// The right to write; none while another has it. Ends with its process.
    fn lock(&self) -> io::Result<Option<Self::Lock>>;
    /// Whether somebody has it now.
    fn locked(&self) -> io::Result<bool>;
}

/// An open file.
pub trait File: Send + Sync + 'static {
    /// Bytes that it has.
    fn size(&self) -> io::Result<u64>;
    /// Reads from `offset` on, fewer bytes than asked for only at the end.
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize>;
    /// Writes all of `bytes` at `offset`. After an error any part of them may stand there.
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()>;
    /// Cuts the file to `len` bytes.
    fn truncate(&self, len: u64) -> io::Result<()>;
    /// Makes the bytes and their number durable. After an error, nothing is known of bytes
    /// written since the last success, and a later success says nothing about them.
    fn sync(&self) -> io::Result<()>;
}

/// A directory of this machine.
pub struct Dir {
    path: PathBuf,
    dir: fs::File,
}

impl Dir {
    /// Opens the directory, for its owner alone; makes it if its parent is there.
    pub fn open(path: &Path) -> io::Result<Self> {
        match fs::DirBuilder::new().mode(0o700).create(path) {
            Ok(()) => {
                let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
                fs::File::open(parent.unwrap_or(Path::new(".")))?.sync_all()?;
            }
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
            Err(e) => return Err(e),
        }
        Self::existing(path)
    }

    /// Opens a directory that is there, to read it.
    pub fn existing(path: &Path) -> io::Result<Self> {
        Ok(Self { path: path.to_owned(), dir: fs::File::open(path)? })
    }

    fn lock_file(&self, create: bool) -> io::Result<fs::File> {
        let mut options = OpenOptions::new();
        options.read(true).write(create).create(create).mode(0o600).open(self.path.join(LOCK))
    }
}

impl Files for Dir {
    type File = DirFile;
    type Lock = fs::File;

    fn create(&self, name: &str) -> io::Result<DirFile> {
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(true).mode(0o600);
        options.open(self.path.join(name)).map(DirFile)
    }

    fn open(&self, name: &str) -> io::Result<DirFile> {
        let path = self.path.join(name);
        // Who only verifies may have no right to write.
        let opened = OpenOptions::new().read(true).write(true).open(&path);
        match opened {
            Err(e)
                if matches!(
                    e.kind(),
                    io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem
                ) =>
            {
                fs::File::open(&path).map(DirFile)
            }
            opened => opened.map(DirFile),
        }
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        fs::rename(self.path.join(from), self.path.join(to))
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        fs::remove_file(self.path.join(name))
    }

    fn sync_dir(&self) -> io::Result<()> {
        self.dir.sync_all()
    }

    fn names(&self) -> io::Result<Vec<String>> {
        let entries = fs::read_dir(&self.path)?;
        // Names of ours are ASCII; whoever put another kind of file here keeps it.
        entries
            .map(|entry| entry.map(|entry| entry.file_name().into_string().ok()))
            .filter_map(io::Result::transpose)
            .collect()
    }

    fn lock(&self) -> io::Result<Option<fs::File>> {
        let file = self.lock_file(true)?;
        match file.try_lock() {
            Ok(()) => Ok(Some(file)),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(e)) => Err(e),
        }
    }

    fn locked(&self) -> io::Result<bool> {
        let file = match self.lock_file(false) {
            Ok(file) => file,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(false),
            Err(e) => return Err(e),
        };
        match file.try_lock_shared() {
            Ok(()) => Ok(false),
            Err(TryLockError::WouldBlock) => Ok(true),
            Err(TryLockError::Error(e)) => Err(e),
        }
    }
}

/// A file of a [`Dir`].
pub struct DirFile(fs::File);

impl File for DirFile {
    fn size(&self) -> io::Result<u64> {
        Ok(self.0.metadata()?.len())
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let mut done = 0;
        while done < buffer.len() {
            match self.0.read_at(&mut buffer[done..], offset + done as u64) {
                Ok(0) => break,
                Ok(n) => done += n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        Ok(done)
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.0.write_all_at(bytes, offset)
    }

    fn truncate(&self, len: u64) -> io::Result<()> {
        self.0.set_len(len)
    }

    fn sync(&self) -> io::Result<()> {
        self.0.sync_data()
    }
}
