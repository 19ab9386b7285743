//! A backup that somebody brings. What restores is what was made.
#![no_main]

use claviger_crypto::Key32;
use claviger_server::backup;
use libfuzzer_sys::fuzz_target;
use serde_json::Value;
use std::sync::LazyLock;
use tempfile::TempDir;

static DIR: LazyLock<TempDir> = LazyLock::new(claviger_fuzz::directory);

/// The vectors of the format: the recovery key, and the backups that were made under it.
static MADE: LazyLock<(Vec<u8>, Vec<Vec<u8>>)> = LazyLock::new(|| {
    let text = include_str!("../../crates/crypto/tests/vectors.json");
    let all: Value = serde_json::from_str(text).expect("JSON");
    let cases = all["backup"].as_array().expect("a list");
    let of = |field: &str| cases.iter().map(|case| bytes(&case[field])).collect::<Vec<_>>();
    (of("recovery").swap_remove(0), of("backup"))
});

fn bytes(hex: &Value) -> Vec<u8> {
    let hex = hex.as_str().expect("text");
    let digits = |at| u8::from_str_radix(&hex[at..at + 2], 16).expect("hexadecimal");
    (0..hex.len()).step_by(2).map(digits).collect()
}

fuzz_target!(|input: &[u8]| {
    let (recovery, made) = &*MADE;
    let data = DIR.path().join("data");
    let from = DIR.path().join("backup");
    let _ = std::fs::remove_dir_all(&data);
    std::fs::create_dir(&data).expect("a directory");
    std::fs::write(&from, input).expect("writes");
    let recovery = Key32::take(&mut recovery.clone()).expect("32 bytes");
    if backup::restore(&data, &data.join("master.key"), &recovery, &from).is_ok() {
        assert!(made.iter().any(|made| made == input), "nobody has made this backup");
        return;
    }
    let mut left: Vec<_> = std::fs::read_dir(&data).expect("a directory").flatten().collect();
    // What keeps two of them apart stays; it is empty.
    left.retain(|file| file.file_name() != "backup.lock");
    assert!(left.is_empty(), "a failed restore leaves {left:?}");
});
