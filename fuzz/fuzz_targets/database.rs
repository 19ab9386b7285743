//! etcd's files: a database, a snapshot, anything that is searched for plaintext.
//!
//! The first byte says whether checksums are put right, so that what lies behind them is read.
#![no_main]

use claviger_crypto::digest::sha256;
use claviger_etcd::bolt::Database;
use claviger_etcd::residue;
use libfuzzer_sys::fuzz_target;
use std::path::PathBuf;
use std::sync::LazyLock;
use tempfile::TempDir;

static DIR: LazyLock<(TempDir, PathBuf)> = LazyLock::new(|| {
    let dir = claviger_fuzz::directory();
    let path = dir.path().join("db");
    (dir, path)
});

/// Where a meta page's fields begin, and its checksum.
const META: usize = 16;
const CHECKSUM: usize = META + 56;

/// FNV-1a, 64 bits: the checksum of a meta page of bbolt.
fn fnv1a(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

fn put_right(file: &mut [u8]) {
    let size = file.get(META + 8..META + 12).and_then(|b| b.try_into().ok());
    let size = size.map_or(0, u32::from_le_bytes) as usize;
    for at in [0, size] {
        let Some(page) = file.get_mut(at..) else { continue };
        if page.len() < CHECKSUM + 8 {
            continue;
        }
        let sum = fnv1a(&page[META..CHECKSUM]);
        page[CHECKSUM..CHECKSUM + 8].copy_from_slice(&sum.to_le_bytes());
    }
}

fuzz_target!(|input: &[u8]| {
    let Some((kind, file)) = input.split_first() else { return };
    let mut file = file.to_vec();
    if kind & 1 == 1 {
        put_right(&mut file);
    }
    let snapshot = kind & 2 == 2;
    if snapshot {
        let digest = sha256(&file);
        file.extend_from_slice(&digest);
    }
    let (_, path) = &*DIR;
    std::fs::write(path, &file).expect("writes");
    let opened = if snapshot { Database::open_snapshot(path) } else { Database::open(path) };
    if let Ok(database) = opened {
        let read = || {
            let mut newest = 0;
            database.revisions(|revision, _| newest = revision.main).map(|()| newest)
        };
        if let Ok(newest) = read() {
            assert_eq!(read().expect("as before"), newest);
        }
    }
    let counted = residue::scan_file(path).expect("reads");
    let begins = |needle: &[u8]| file.windows(needle.len()).filter(|w| *w == needle).count();
    let expected = begins(residue::PROTOBUF_SECRET) + begins(residue::JSON_SECRET);
    assert_eq!(counted, expected as u64);
});
