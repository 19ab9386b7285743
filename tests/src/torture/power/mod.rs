//! A disk that loses its power.
//!
//! kill -9 leaves the page cache, so it shows nothing of flushes that are missing. Here a program
//! runs with `ledger.c` loaded into it, which notes what it does to its files. When it is killed,
//! the files are made again as a disk may have them after a power cut: what was flushed is there;
//! of what was not, each write is there, missing or torn, in any combination, and each directory
//! has lost any number of its last changes.

mod ledger;

use super::Dice;
use crate::Outcome;
use ledger::Disk;
use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;

/// The library that is loaded into the program.
const SOURCE: &str = include_str!("ledger.c");

/// The files below one directory, and the ledger of one program at a time.
pub struct Power {
    root: PathBuf,
    ledger: PathBuf,
    library: PathBuf,
    before: Disk,
    dice: Dice,
    /// Power cuts until now, and writes and names that they took.
    pub cuts: usize,
    pub lost: usize,
}

impl Power {
    /// For files below `root`, which is there. Builds its library in `dir`, with the C compiler.
    pub fn new(root: &Path, dir: &Path, seed: u64) -> Outcome<Self> {
        let source = dir.join("ledger.c");
        let library = dir.join("ledger.so");
        fs::write(&source, SOURCE)
            .map_err(|e| format!("cannot write {}: {e}", source.display()))?;
        let built = Command::new("cc")
            .args(["-shared", "-fPIC", "-O2", "-o"])
            .args([&library, &source])
            .output()
            .map_err(|e| format!("cannot start cc, the C compiler: {e}"))?;
        if !built.status.success() {
            return Err(format!("cc: {}", String::from_utf8_lossy(&built.stderr)));
        }
        let root = root.canonicalize().map_err(|e| format!("{}: {e}", root.display()))?;
        let before = Disk::read(&root)?;
        let ledger = dir.join("ledger");
        Ok(Self { root, ledger, library, before, dice: Dice(seed), cuts: 0, lost: 0 })
    }

    /// What the program is to be started with.
    pub fn environment(&self) -> [(&'static str, &Path); 3] {
        [("LD_PRELOAD", &self.library), ("LEDGER", &self.ledger), ("LEDGER_ROOT", &self.root)]
    }

    /// After the program was killed: makes the files as they may be when the power comes back.
    pub fn cut(&mut self) -> Outcome<()> {
        let noted = fs::read(&self.ledger).unwrap_or_default();
        let mut disk = std::mem::take(&mut self.before);
        disk.follow(&noted)?;
        let (files, lost) = disk.cut(&mut self.dice);
        self.cuts += 1;
        self.lost += lost;
        self.make(&files).map_err(|e| format!("cannot make {} again: {e}", self.root.display()))?;
        let _ = fs::remove_file(&self.ledger);
        self.before = Disk::read(&self.root)?;
        Ok(())
    }

    /// `None` is a directory.
    fn make(&self, files: &BTreeMap<PathBuf, Option<Vec<u8>>>) -> std::io::Result<()> {
        let modes: BTreeMap<&PathBuf, u32> = files
            .keys()
            .filter_map(|path| Some((path, fs::metadata(path).ok()?.permissions().mode() & 0o777)))
            .collect();
        for entry in fs::read_dir(&self.root)? {
            let path = entry?.path();
            if path.is_dir() { fs::remove_dir_all(&path)? } else { fs::remove_file(&path)? }
        }
        for (path, bytes) in files {
            match bytes {
                None => {
                    let mode = modes.get(path).copied().unwrap_or(0o700);
                    fs::DirBuilder::new().mode(mode).create(path)?;
                }
                Some(bytes) => {
                    let mode = modes.get(path).copied().unwrap_or(0o600);
                    let mut options = fs::OpenOptions::new();
                    let mut file = options.write(true).create_new(true).mode(mode).open(path)?;
                    std::io::Write::write_all(&mut file, bytes)?;
                }
            }
        }
        Ok(())
    }
}
