//! Reads etcd's database file without etcd: a snapshot, a copy, or the file of a stopped member.
//!
//! The file is a bbolt database (go.etcd.io/bbolt `internal/common`): pages of equal size, a
//! copy-on-write B+tree of buckets, two meta pages of which the one with the higher transaction
//! number and a right checksum counts. Nothing is ever written, and everything that the file
//! says of itself (page numbers, lengths, counts) is checked before it is used. Pages carry no
//! checksum, so a changed byte that leaves a sound tree is seen only where a digest covers the
//! whole file: [`Database::open_snapshot`].

use crate::client::EtcdError;
use crate::pb::mvccpb::KeyValue;
use prost::Message;
use prost::bytes::Bytes;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use thiserror::Error;

const MAGIC: u32 = 0xED0C_DAED;
const VERSION: u32 = 2;
const PAGE_HEADER: usize = 16;
const ELEMENT: usize = 16;
/// Bytes of a meta page in front of its checksum.
const META: usize = 56;
const BRANCH: u16 = 0x01;
const LEAF: u16 = 0x02;
const META_FLAG: u16 = 0x04;
const BUCKET: u32 = 0x01;
/// Page sizes that a system may have.
const PAGE_SIZES: std::ops::RangeInclusive<usize> = 512..=65536;
/// Deepest tree: each branch has two children at least, so this is 2^32 leaves.
const DEPTH_MAX: usize = 32;
/// Largest page with its overflow: some of etcd's largest values, 1.5 MiB by default and 10 MiB
/// by its own advice, on one leaf.
const SPAN_MAX: usize = 256 << 20;

/// Why a database file cannot be read.
#[derive(Debug, Error)]
pub enum BoltError {
    /// The file cannot be opened or read.
    #[error("cannot read {}", path.display())]
    Io {
        /// Which.
        path: PathBuf,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
    /// It is no database of etcd, or a damaged one.
    #[error("{} is not a sound database of etcd: {why}", path.display())]
    Damaged {
        /// Which.
        path: PathBuf,
        /// What is wrong with it.
        why: &'static str,
    },
    /// It is in use: its tree moved on while it was being read. Take a snapshot and read that.
    #[error("{} changed while it was being read; take a snapshot and read that", .0.display())]
    Changed(PathBuf),
}

/// A database file, open for reading.
#[derive(Debug)]
pub struct Database {
    file: File,
    path: PathBuf,
    page_size: usize,
    /// Number of the page behind the last.
    high: u64,
    root: u64,
    transaction: u64,
}

/// A revision of etcd: of the store, and of the change within a transaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Revision {
    /// The revision of the store.
    pub main: i64,
    /// The change within it.
    pub sub: i64,
    /// Whether it deletes the key.
    pub tombstone: bool,
}

struct Meta {
    page_size: usize,
    root: u64,
    high: u64,
    transaction: u64,
}

/// A page with its overflow, its header checked.
struct Page {
    bytes: Vec<u8>,
    branch: bool,
    count: usize,
}

enum Stop {
    Why(&'static str),
    Io(std::io::Error),
}

impl From<&'static str> for Stop {
    fn from(why: &'static str) -> Self {
        Stop::Why(why)
    }
}

/// What is called for each key and value of a bucket.
type Visit<'a> = &'a mut dyn FnMut(&[u8], Bytes) -> Result<(), Stop>;
/// What is called for each element of a leaf page: its flags, key and value.
type Element<'a> = &'a mut dyn FnMut(u32, &[u8], Bytes) -> Result<(), Stop>;

impl Database {
    /// Opens a snapshot file, after checking the digest behind its database.
    pub fn open_snapshot(path: &Path) -> Result<Database, BoltError> {
        match crate::client::check_snapshot(path) {
            Ok(_) => Self::open(path),
            Err(EtcdError::File { path, source, .. }) => Err(BoltError::Io { path, source }),
            Err(EtcdError::Damaged { path, why }) => Err(BoltError::Damaged { path, why }),
            Err(_) => Err(BoltError::Damaged { path: path.to_owned(), why: "no snapshot" }),
        }
    }

    /// Opens a database file, or a snapshot without checking its digest. Read-only, without a
    /// lock: of a member that runs, a reader may see [`BoltError::Changed`].
    pub fn open(path: &Path) -> Result<Database, BoltError> {
        let io = |source| BoltError::Io { path: path.to_owned(), source };
        let file = File::open(path).map_err(io)?;
        let len = file.metadata().map_err(io)?.len();
        match newest(&file, len) {
            Ok(meta) => Ok(Database {
                file,
                path: path.to_owned(),
                page_size: meta.page_size,
                high: meta.high,
                root: meta.root,
                transaction: meta.transaction,
            }),
            Err(stop) => Err(stopped(path, stop)),
        }
    }

    /// Gives every key-value record of etcd to `each`, oldest revision first, tombstones too.
    pub fn revisions(&self, mut each: impl FnMut(Revision, KeyValue)) -> Result<(), BoltError> {
        let mut last = None;
        let mut visit = |key: &[u8], value: Bytes| {
            let revision = revision(key).ok_or("a key of the bucket is no revision")?;
            // The order makes "the last one is the newest" true for whoever counts.
            if last.is_some_and(|l| (revision.main, revision.sub) <= l) {
                return Err("revisions are out of order".into());
            }
            last = Some((revision.main, revision.sub));
            let kv = KeyValue::decode(value).map_err(|_| "a value is no record of etcd")?;
            each(revision, kv);
            Ok(())
        };
        let done = self.bucket(b"key").and_then(|root| self.walk_bucket(root, &mut visit));
        // A writer may have used again pages of ours from the second transaction on; the meta
        // page of one that is not finished yet does not count.
        let len = self.file.metadata().map_err(|e| stopped(&self.path, Stop::Io(e)))?.len();
        match newest(&self.file, len) {
            Ok(now) if now.transaction == self.transaction => {
                done.map_err(|stop| stopped(&self.path, stop))
            }
            Ok(_) => Err(BoltError::Changed(self.path.clone())),
            Err(stop) => Err(stopped(&self.path, stop)),
        }
    }

    /// What a bucket of the root holds: its page number, or its inline page.
    fn bucket(&self, name: &[u8]) -> Result<Bytes, Stop> {
        let mut found = None;
        self.walk(self.root, &mut |flags, key, value| {
            if key == name {
                if flags & BUCKET == 0 {
                    return Err("a bucket of etcd is none".into());
                }
                found = Some(value);
            }
            Ok(())
        })?;
        found.ok_or(Stop::Why("it has no bucket of keys"))
    }

    fn walk_bucket(&self, bucket: Bytes, visit: Visit<'_>) -> Result<(), Stop> {
        let mut each = |flags: u32, key: &[u8], value: Bytes| {
            if flags & BUCKET != 0 {
                return Err("a bucket within the bucket of keys".into());
            }
            visit(key, value)
        };
        // Header of a bucket: page number of its root, a sequence number. With root 0 a small
        // bucket's only page lies behind the header.
        match le64(&bucket, 0)? {
            0 => {
                let inline = bucket.get(16..).ok_or("an inline bucket is cut off")?;
                let page = page(inline.to_vec())?;
                if page.branch {
                    return Err("an inline bucket with branches".into());
                }
                leaf(page, &mut each)
            }
            root => self.walk(root, &mut each),
        }
    }

    /// Gives every element below page `root` to `each`, in the order of keys.
    fn walk(&self, root: u64, each: Element<'_>) -> Result<(), Stop> {
        let mut budget = self.high;
        self.walk_page(root, 0, &mut budget, each)
    }

    fn walk_page(
        &self,
        number: u64,
        depth: usize,
        budget: &mut u64,
        each: Element<'_>,
    ) -> Result<(), Stop> {
        if depth > DEPTH_MAX {
            return Err("its tree is too deep".into());
        }
        // A tree visits each page once; a cycle or a shared page would visit more than there are.
        *budget = budget.checked_sub(1).ok_or("its tree has a cycle")?;
        let page = self.page(number)?;
        if !page.branch {
            return leaf(page, each);
        }
        for i in 0..page.count {
            let child = le64(&page.bytes, PAGE_HEADER + i * ELEMENT + 8)?;
            self.walk_page(child, depth + 1, budget, each)?;
        }
        Ok(())
    }

    fn page(&self, number: u64) -> Result<Page, Stop> {
        let mut header = [0; PAGE_HEADER];
        // Pages 0 and 1 are the meta pages.
        if number < 2 || number >= self.high {
            return Err("a page number is out of bounds".into());
        }
        let at = number * self.page_size as u64;
        self.file.read_exact_at(&mut header, at).map_err(Stop::Io)?;
        if le64(&header, 0)? != number {
            return Err("a page does not have the number it is found under".into());
        }
        let overflow = u64::from(le32(&header, 12)?);
        let pages = overflow + 1;
        if pages > self.high - number || pages > (SPAN_MAX / self.page_size) as u64 {
            return Err("a page reaches beyond the file".into());
        }
        let span = usize::try_from(pages).map_err(|_| "a page is too large")? * self.page_size;
        let mut bytes = vec![0; span];
        self.file.read_exact_at(&mut bytes, at).map_err(Stop::Io)?;
        page(bytes)
    }
}

fn page(bytes: Vec<u8>) -> Result<Page, Stop> {
    let branch = match le16(&bytes, 8)? {
        BRANCH => true,
        LEAF => false,
        _ => return Err("a page of the tree is neither branch nor leaf".into()),
    };
    let count = usize::from(le16(&bytes, 10)?);
    if PAGE_HEADER + count * ELEMENT > bytes.len() {
        return Err("a page has more elements than room".into());
    }
    // Only the root of an empty bucket is an empty leaf; a branch always has children.
    if branch && count == 0 {
        return Err("a branch without children".into());
    }
    Ok(Page { bytes, branch, count })
}

fn leaf(page: Page, each: Element<'_>) -> Result<(), Stop> {
    let (count, bytes) = (page.count, Bytes::from(page.bytes));
    for i in 0..count {
        let at = PAGE_HEADER + i * ELEMENT;
        let flags = le32(&bytes, at)?;
        // Where the key lies is counted from the element itself.
        let key = at.saturating_add(le32(&bytes, at + 4)? as usize);
        let value = key.saturating_add(le32(&bytes, at + 8)? as usize);
        let end = value.saturating_add(le32(&bytes, at + 12)? as usize);
        if key < PAGE_HEADER + count * ELEMENT || end > bytes.len() {
            return Err("an element lies outside its page".into());
        }
        each(flags, &bytes[key..value], bytes.slice(value..end))?;
    }
    Ok(())
}

/// The meta page that counts.
fn newest(file: &File, len: u64) -> Result<Meta, Stop> {
    let first = meta(file, 0, len);
    // The second lies one page further on; without the first, any page size is tried.
    let sizes: Vec<usize> = match &first {
        Ok(meta) => vec![meta.page_size],
        Err(_) => (9..=16).map(|shift| 1 << shift).collect(),
    };
    let second = sizes
        .into_iter()
        .find_map(|size| meta(file, size as u64, len).ok().filter(|m| m.page_size == size));
    match (first, second) {
        (Ok(a), Some(b)) if b.transaction > a.transaction => Ok(b),
        (Ok(a), _) => Ok(a),
        (Err(_), Some(b)) => Ok(b),
        (Err(stop), None) => Err(stop),
    }
}

fn meta(file: &File, at: u64, len: u64) -> Result<Meta, Stop> {
    let mut bytes = [0; PAGE_HEADER + META + 8];
    if at + (bytes.len() as u64) > len {
        return Err("it is too short".into());
    }
    file.read_exact_at(&mut bytes, at).map_err(Stop::Io)?;
    let meta = &bytes[PAGE_HEADER..];
    if le16(&bytes, 8)? & META_FLAG == 0 || le32(meta, 0)? != MAGIC {
        return Err("it has no meta page of bbolt".into());
    }
    if le32(meta, 4)? != VERSION {
        return Err("its format has another version than 2".into());
    }
    if le64(meta, META)? != fnv1a(&meta[..META]) {
        return Err("both its meta pages have a wrong checksum".into());
    }
    let page_size = le32(meta, 8)? as usize;
    let high = le64(meta, 40)?;
    if !PAGE_SIZES.contains(&page_size) || !page_size.is_power_of_two() {
        return Err("its page size makes no sense".into());
    }
    // Pages behind the high-water mark need not exist; those before it must.
    if high.checked_mul(page_size as u64).is_none_or(|end| end > len) {
        return Err("it is cut off".into());
    }
    Ok(Meta { page_size, root: le64(meta, 16)?, high, transaction: le64(meta, 48)? })
}

fn stopped(path: &Path, stop: Stop) -> BoltError {
    let path = path.to_owned();
    match stop {
        Stop::Why(why) => BoltError::Damaged { path, why },
        Stop::Io(source) => BoltError::Io { path, source },
    }
}

/// Reads `main(8) ‖ '_' ‖ sub(8)`, big endian, and the mark `t` of a tombstone behind it.
fn revision(key: &[u8]) -> Option<Revision> {
    let (main, rest) = key.split_first_chunk::<8>()?;
    let (sub, mark) = rest.strip_prefix(b"_")?.split_first_chunk::<8>()?;
    let tombstone = match mark {
        b"" => false,
        b"t" => true,
        _ => return None,
    };
    Some(Revision { main: i64::from_be_bytes(*main), sub: i64::from_be_bytes(*sub), tombstone })
}

/// FNV-1a, 64 bits: the checksum of a meta page.
fn fnv1a(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

const SHORT: Stop = Stop::Why("a structure is cut off");

fn chunk<const N: usize>(bytes: &[u8], at: usize) -> Result<[u8; N], Stop> {
    bytes.get(at..).and_then(|b| b.first_chunk::<N>()).copied().ok_or(SHORT)
}

fn le16(bytes: &[u8], at: usize) -> Result<u16, Stop> {
    chunk(bytes, at).map(u16::from_le_bytes)
}

fn le32(bytes: &[u8], at: usize) -> Result<u32, Stop> {
    chunk(bytes, at).map(u32::from_le_bytes)
}

fn le64(bytes: &[u8], at: usize) -> Result<u64, Stop> {
    chunk(bytes, at).map(u64::from_le_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn revisions_read_as_etcd_writes_them() {
        let key = [&5i64.to_be_bytes()[..], b"_", &2i64.to_be_bytes()[..]].concat();
        assert_eq!(revision(&key), Some(Revision { main: 5, sub: 2, tombstone: false }));
        let dead = [&key[..], b"t"].concat();
        assert_eq!(revision(&dead), Some(Revision { main: 5, sub: 2, tombstone: true }));
        for bad in [&key[..16], b"", b"meta", &[&key[..], b"x"].concat()] {
            assert_eq!(revision(bad), None);
        }
    }

    #[test]
    fn fnv_of_the_published_vectors() {
        // Landon Curt Noll's test vectors for FNV-1a, 64 bits.
        assert_eq!(fnv1a(b""), 0xcbf2_9ce4_8422_2325);
        assert_eq!(fnv1a(b"foobar"), 0x8594_4171_f739_67e8);
    }
}
