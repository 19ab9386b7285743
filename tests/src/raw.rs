//! What is in etcd, byte by byte, past the API server.

use crate::Outcome;
use crate::lab::Lab;
use claviger_etcd::{Etcd, EtcdConfig};
use std::fs::File;
use std::io::Read;
use std::path::Path;

/// The value of a key of etcd.
pub async fn value(lab: &Lab, key: &str) -> Outcome<Vec<u8>> {
    let config = EtcdConfig {
        endpoints: lab.var("ETCDCTL_ENDPOINTS")?.split(',').map(str::to_owned).collect(),
        ca: Some(lab.var("ETCDCTL_CACERT")?.into()),
        cert: Some(lab.var("ETCDCTL_CERT")?.into()),
        key: Some(lab.var("ETCDCTL_KEY")?.into()),
        timeout: EtcdConfig::TIMEOUT,
    };
    let etcd = Etcd::connect(&config).await.map_err(|e| e.to_string())?;
    let found = etcd.get(key.as_bytes()).await.map_err(|e| e.to_string())?;
    found.record.map(|kv| kv.value.to_vec()).ok_or_else(|| format!("etcd has no key {key}"))
}

/// Lines of a dump: offset, bytes in hexadecimal, and what is printable.
pub fn dump(bytes: &[u8], max: usize) -> Vec<String> {
    let shown = &bytes[..bytes.len().min(max)];
    let lines = shown.chunks(24).enumerate().map(|(index, chunk)| {
        let hex: Vec<String> = chunk.iter().map(|byte| format!("{byte:02x}")).collect();
        let text: String = chunk
            .iter()
            .map(|byte| if byte.is_ascii_graphic() || *byte == b' ' { *byte as char } else { '.' })
            .collect();
        format!("{:04x}  {:<71}  {text}", index * 24, hex.join(" "))
    });
    lines.collect()
}

/// How often `needle` occurs in all files below `dir`, those that end in `.log` of ours not
/// excepted: whatever etcd wrote counts.
pub fn occurrences(dir: &Path, needle: &[u8]) -> Outcome<u64> {
    let entries = std::fs::read_dir(dir).map_err(|e| format!("{}: {e}", dir.display()))?;
    let mut count = 0;
    for entry in entries {
        let path = entry.map_err(|e| e.to_string())?.path();
        count += if path.is_dir() {
            occurrences(&path, needle)?
        } else {
            in_file(&path, needle).map_err(|e| format!("{}: {e}", path.display()))?
        };
    }
    Ok(count)
}

/// Reads in pieces of a megabyte; the end of each is kept, so that nothing on a border is missed.
fn in_file(path: &Path, needle: &[u8]) -> std::io::Result<u64> {
    let mut file = File::open(path)?;
    let mut piece = vec![0u8; 1 << 20];
    let mut kept: Vec<u8> = Vec::new();
    let mut count = 0;
    loop {
        let read = file.read(&mut piece)?;
        if read == 0 {
            return Ok(count);
        }
        kept.extend_from_slice(&piece[..read]);
        count += count_in(&kept, needle);
        // One byte less than the needle: a match can neither be lost nor be counted twice.
        let tail = kept.len().saturating_sub(needle.len() - 1);
        kept.drain(..tail);
    }
}

fn count_in(hay: &[u8], needle: &[u8]) -> u64 {
    let Some(&first) = needle.first() else { return 0 };
    let mut count = 0;
    let mut rest = hay;
    while let Some(at) = rest.iter().position(|byte| *byte == first) {
        if rest[at..].starts_with(needle) {
            count += 1;
        }
        rest = &rest[at + 1..];
    }
    count
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_marker_on_a_border_counts_once() {
        let dir = tempfile::tempdir().unwrap();
        let mut bytes = vec![b'.'; (1 << 20) - 3];
        bytes.extend(b"marker-and-marker");
        std::fs::create_dir(dir.path().join("sub")).unwrap();
        std::fs::write(dir.path().join("sub/db"), &bytes).unwrap();
        std::fs::write(dir.path().join("wal"), b"mark marker").unwrap();
        assert_eq!(occurrences(dir.path(), b"marker").unwrap(), 3);
        assert_eq!(occurrences(dir.path(), b"none").unwrap(), 0);
    }

    #[test]
    fn a_dump_shows_bytes_and_text() {
        let lines = dump(b"k8s\x00Secret", 100);
        assert_eq!(lines.len(), 1);
        assert!(lines[0].starts_with("0000  6b 38 73 00 53"), "{}", lines[0]);
        assert!(lines[0].ends_with("k8s.Secret"), "{}", lines[0]);
    }
}
