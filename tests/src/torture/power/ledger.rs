//! What a ledger says of a disk.

use super::super::Dice;
use crate::Outcome;
use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Bytes that a disk writes wholly or not at all.
const SECTOR: usize = 512;

/// A change that is not flushed, and its place in the ledger.
struct Pending<T> {
    place: usize,
    what: T,
}

enum Change {
    Write { offset: usize, bytes: Vec<u8> },
    Length(usize),
}

impl Change {
    fn apply(&self, to: &mut Vec<u8>, most: usize) {
        match self {
            Change::Write { offset, bytes } => {
                let bytes = &bytes[..bytes.len().min(most)];
                let end = offset + bytes.len();
                if to.len() < end {
                    to.resize(end, 0);
                }
                to[*offset..end].copy_from_slice(bytes);
            }
            Change::Length(len) => to.resize(*len, 0),
        }
    }
}

enum Naming {
    Add(PathBuf, usize),
    Move(PathBuf, PathBuf),
    Remove(PathBuf),
}

impl Naming {
    fn apply(&self, names: &mut BTreeMap<PathBuf, usize>) {
        match self {
            Naming::Add(path, node) => drop(names.insert(path.clone(), *node)),
            Naming::Move(from, to) => {
                if let Some(node) = names.remove(from) {
                    names.insert(to.clone(), node);
                }
            }
            Naming::Remove(path) => drop(names.remove(path)),
        }
    }
}

/// A file or a directory.
#[derive(Default)]
struct Node {
    is_dir: bool,
    /// Its durable bytes.
    bytes: Vec<u8>,
    changes: Vec<Pending<Change>>,
    /// Of a directory.
    namings: Vec<Pending<Naming>>,
}

/// Files, what of them is durable, and what is not.
#[derive(Default)]
pub struct Disk {
    nodes: Vec<Node>,
    /// The node that has an inode's number now.
    inodes: HashMap<u64, usize>,
    /// Durable names.
    durable: BTreeMap<PathBuf, usize>,
    /// Names as a program sees them.
    seen: BTreeMap<PathBuf, usize>,
    /// Flushes under way: node, place of their beginning.
    flushes: HashMap<u64, (usize, usize)>,
}

impl Disk {
    /// All that is below `root` is durable.
    pub fn read(root: &Path) -> Outcome<Self> {
        let mut disk = Self::default();
        disk.read_below(root).map_err(|e| format!("{}: {e}", root.display()))?;
        Ok(disk)
    }

    fn read_below(&mut self, path: &Path) -> std::io::Result<()> {
        let what = fs::symlink_metadata(path)?;
        let is_dir = what.is_dir();
        let bytes = if is_dir { Vec::new() } else { fs::read(path)? };
        let node = self.add(what.ino(), Node { is_dir, bytes, ..Node::default() });
        self.durable.insert(path.to_owned(), node);
        self.seen.insert(path.to_owned(), node);
        if is_dir {
            for entry in fs::read_dir(path)? {
                self.read_below(&entry?.path())?;
            }
        }
        Ok(())
    }

    fn add(&mut self, inode: u64, node: Node) -> usize {
        self.nodes.push(node);
        self.inodes.insert(inode, self.nodes.len() - 1);
        self.nodes.len() - 1
    }

    /// Takes in what was noted. A record that the kill has cut off at the end counts not.
    pub fn follow(&mut self, ledger: &[u8]) -> Outcome<()> {
        let mut rest = ledger;
        let mut place = 0;
        while let Some((head, after)) = rest.split_at_checked(21) {
            let number = |at: usize| u64::from_le_bytes(head[at..at + 8].try_into().expect("8"));
            let len = u32::from_le_bytes(head[17..21].try_into().expect("4")) as usize;
            let Some((data, next)) = after.split_at_checked(len) else { break };
            self.one(place, head[0], number(1), number(9), data)?;
            place += 1;
            rest = next;
        }
        Ok(())
    }

    fn one(&mut self, place: usize, kind: u8, a: u64, b: u64, data: &[u8]) -> Outcome<()> {
        match kind {
            b'O' if b & 1 == 1 => {
                let node = self.add(a, Node::default());
                self.name(place, Naming::Add(path(data), node))?;
            }
            b'O' => {
                let node = self.node(a)?;
                if b & 2 == 2 {
                    self.nodes[node].changes.push(Pending { place, what: Change::Length(0) });
                }
            }
            b'W' | b'T' => {
                let node = self.node(a)?;
                let at = usize::try_from(b).map_err(|e| e.to_string())?;
                let what = match kind {
                    b'W' => Change::Write { offset: at, bytes: data.to_vec() },
                    _ => Change::Length(at),
                };
                self.nodes[node].changes.push(Pending { place, what });
            }
            b'B' => drop(self.flushes.insert(b, (self.node(a)?, place))),
            b'E' => {
                let begun = self.flushes.remove(&b);
                let (node, begun) = begun.ok_or("a flush ends that has not begun")?;
                self.flushed(node, begun);
            }
            b'R' | b'L' => {
                let split = data.iter().position(|byte| *byte == 0).ok_or("one name of two")?;
                let (from, to) = (path(&data[..split]), path(&data[split + 1..]));
                if from.parent() != to.parent() {
                    return Err(format!("{} goes to another directory", from.display()));
                }
                self.name(
                    place,
                    match (kind, self.seen.get(&from)) {
                        (b'L', Some(node)) => Naming::Add(to, *node),
                        _ => Naming::Move(from, to),
                    },
                )?;
            }
            b'U' => self.name(place, Naming::Remove(path(data)))?,
            b'M' => {
                let node = self.add(a, Node { is_dir: true, ..Node::default() });
                self.name(place, Naming::Add(path(data), node))?;
            }
            _ => return Err(format!("the ledger has a record {kind}")),
        }
        Ok(())
    }

    fn node(&self, inode: u64) -> Outcome<usize> {
        self.inodes.get(&inode).copied().ok_or_else(|| format!("inode {inode} is unknown"))
    }

    fn name(&mut self, place: usize, what: Naming) -> Outcome<()> {
        let (Naming::Add(path, _) | Naming::Move(path, _) | Naming::Remove(path)) = &what;
        let dir = path.parent().and_then(|dir| self.seen.get(dir));
        let dir = *dir.ok_or_else(|| format!("{} is in no directory", path.display()))?;
        what.apply(&mut self.seen);
        self.nodes[dir].namings.push(Pending { place, what });
        Ok(())
    }

    fn flushed(&mut self, node: usize, begun: usize) {
        let node = &mut self.nodes[node];
        let after = node.changes.partition_point(|change| change.place < begun);
        for change in node.changes.drain(..after) {
            change.what.apply(&mut node.bytes, usize::MAX);
        }
        let after = node.namings.partition_point(|naming| naming.place < begun);
        for naming in node.namings.drain(..after) {
            naming.what.apply(&mut self.durable);
        }
    }

    /// The files as they may be after a power cut, and how many changes are missing or torn.
    /// `None` is a directory.
    pub fn cut(mut self, dice: &mut Dice) -> (BTreeMap<PathBuf, Option<Vec<u8>>>, usize) {
        let mut lost = 0;
        for node in &mut self.nodes {
            let namings = node.namings.len() as u64;
            let kept = usize::try_from(dice.below(namings + 1)).expect("an index");
            lost += node.namings.len() - kept;
            for naming in node.namings.drain(..).take(kept) {
                naming.what.apply(&mut self.durable);
            }
            // All of them, none, or any.
            let luck = dice.below(4);
            for change in node.changes.drain(..) {
                let most = match (luck, dice.below(4), &change.what) {
                    (0, ..) | (2.., 0 | 1, _) => usize::MAX,
                    (2.., 2, Change::Write { bytes, .. }) => {
                        let sectors = bytes.len().div_ceil(SECTOR) as u64;
                        usize::try_from(dice.below(sectors)).expect("an index") * SECTOR
                    }
                    _ => 0,
                };
                lost += usize::from(most < usize::MAX);
                if most > 0 {
                    change.what.apply(&mut node.bytes, most);
                }
            }
        }
        (self.files(), lost)
    }

    fn files(&self) -> BTreeMap<PathBuf, Option<Vec<u8>>> {
        let mut files: BTreeMap<PathBuf, Option<Vec<u8>>> = BTreeMap::new();
        // The root, which comes first, is there whatever happens.
        let root = self.durable.keys().next();
        for (path, node) in self.durable.iter().skip(1) {
            let node = &self.nodes[*node];
            let dir = path.parent();
            let is_there = dir == root.map(PathBuf::as_path)
                || dir.is_some_and(|dir| matches!(files.get(dir), Some(None)));
            // Shared memory; a database makes it anew.
            let is_memory = path.as_os_str().as_bytes().ends_with(b"-shm");
            if is_there && !is_memory {
                files.insert(path.clone(), (!node.is_dir).then(|| node.bytes.clone()));
            }
        }
        files
    }
}

fn path(bytes: &[u8]) -> PathBuf {
    PathBuf::from(std::ffi::OsStr::from_bytes(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: u64 = 70;
    const DIR: u64 = 71;

    fn record(kind: u8, a: u64, b: u64, data: &[u8]) -> Vec<u8> {
        let len = u32::try_from(data.len()).unwrap().to_le_bytes();
        [&[kind][..], &a.to_le_bytes(), &b.to_le_bytes(), &len, data].concat()
    }

    /// What may be left of the file `d/f` after any of 200 power cuts.
    fn left(records: &[Vec<u8>]) -> Vec<Option<Vec<u8>>> {
        let mut all = Vec::new();
        for seed in 0..200 {
            let root = PathBuf::from("/d");
            let mut disk = Disk::default();
            let node = disk.add(DIR, Node { is_dir: true, ..Node::default() });
            disk.durable.insert(root.clone(), node);
            disk.seen.insert(root, node);
            disk.follow(&records.concat()).unwrap();
            let (files, _) = disk.cut(&mut Dice(seed));
            let found = files.get(Path::new("/d/f")).cloned().flatten();
            if !all.contains(&found) {
                all.push(found);
            }
        }
        all.sort();
        all
    }

    fn made() -> Vec<Vec<u8>> {
        vec![record(b'O', FILE, 1, b"/d/f"), record(b'W', FILE, 0, b"one")]
    }

    fn flushed(inode: u64) -> [Vec<u8>; 2] {
        [record(b'B', inode, inode, b""), record(b'E', inode, inode, b"")]
    }

    #[test]
    fn what_was_flushed_is_there() {
        let records = [made(), flushed(FILE).to_vec(), flushed(DIR).to_vec()].concat();
        assert_eq!(left(&records), [Some(b"one".to_vec())]);
    }

    #[test]
    fn a_name_needs_a_flush_of_its_directory() {
        let records = [made(), flushed(FILE).to_vec()].concat();
        assert_eq!(left(&records), [None, Some(b"one".to_vec())]);
    }

    #[test]
    fn a_flush_holds_what_was_written_before_it_began() {
        let [begins, ends] = flushed(FILE);
        let mut records = [made(), vec![begins]].concat();
        records.extend([record(b'W', FILE, 0, b"two"), ends]);
        records.extend(flushed(DIR));
        assert_eq!(left(&records), [Some(b"one".to_vec()), Some(b"two".to_vec())]);
    }

    #[test]
    fn a_flush_that_failed_or_was_under_way_holds_nothing() {
        let [begins, _] = flushed(FILE);
        let records = [made(), flushed(DIR).to_vec(), vec![begins]].concat();
        assert_eq!(left(&records), [Some(Vec::new()), Some(b"one".to_vec())]);
    }

    #[test]
    fn long_writes_are_torn_between_sectors() {
        let mut records = [vec![record(b'O', FILE, 1, b"/d/f")], flushed(DIR).to_vec()].concat();
        records.push(record(b'W', FILE, 0, &[7; 1200]));
        let lengths: Vec<_> = left(&records).into_iter().flatten().map(|f| f.len()).collect();
        assert_eq!(lengths, [0, 512, 1024, 1200]);
    }

    #[test]
    fn writes_of_one_file_are_lost_in_any_combination() {
        let mut records = [made(), flushed(FILE).to_vec(), flushed(DIR).to_vec()].concat();
        records.extend([record(b'W', FILE, 0, b"O"), record(b'W', FILE, 2, b"E")]);
        let all: Vec<_> = left(&records).into_iter().flatten().collect();
        assert_eq!(all, [b"OnE".to_vec(), b"One".to_vec(), b"onE".to_vec(), b"one".to_vec()]);
    }

    #[test]
    fn a_rename_is_lost_or_done() {
        let moved = [record(b'O', FILE, 1, b"/d/g"), record(b'W', FILE, 0, b"new")];
        let old = [record(b'O', 9, 1, b"/d/f"), record(b'W', 9, 0, b"old")];
        let mut records = [old.to_vec(), flushed(9).to_vec(), moved.to_vec()].concat();
        records.extend(flushed(FILE));
        records.extend(flushed(DIR));
        records.push(record(b'R', 0, 0, b"/d/g\0/d/f"));
        assert_eq!(left(&records), [Some(b"new".to_vec()), Some(b"old".to_vec())]);
    }

    #[test]
    fn a_record_that_was_cut_off_counts_not() {
        let mut records = [made(), flushed(FILE).to_vec(), flushed(DIR).to_vec()].concat();
        let mut cut = record(b'W', FILE, 0, b"xyz");
        cut.pop();
        records.push(cut);
        assert_eq!(left(&records), [Some(b"one".to_vec())]);
    }
}
