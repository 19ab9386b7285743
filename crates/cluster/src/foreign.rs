//! What encrypts here already, and not by us. An enablement would put our file in its place: its
//! keys would be gone, and with them every record under them.

use crate::encryption;
use crate::file::{self, FileError};
use crate::node::Node;
use crate::take_up;
use claviger_crypto::digest;
use claviger_domain::cluster::PROVIDER;
use claviger_etcd::record::Record;
use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

const FIRST: &str = "decrypt what is there first (`identity` as the first provider, then write every \
                     record again), and take the flag away";

/// Fails with what was found, for an operator.
pub async fn none(node: &Node) -> Result<(), String> {
    let ours = &node.config.api_server.encryption_config;
    let observed = node.supervisor.observe().map_err(|e| e.to_string())?;
    let line = observed.process.map(|p| std::fs::read(format!("/proc/{}/cmdline", p.pid)));
    let other = line.and_then(Result::ok).and_then(|line| theirs(&line, ours));
    for path in std::iter::once(ours.clone()).chain(other) {
        let found = file::read(&path).map_err(|e| crate::run::with_causes(&e))?;
        if found.is_some_and(|bytes| encryption::stage_of(&bytes, &node.config.socket).is_none()) {
            return Err(format!(
                "{} is an EncryptionConfiguration that is not ours and may encrypt: {FIRST}",
                path.display()
            ));
        }
    }
    for resource in crate::control::resources() {
        let mut pages = node.local.etcd().range(resource.prefix().as_bytes(), 0);
        while let Some(page) = pages.next().await.map_err(|e| e.to_string())? {
            if let Some((key, what)) =
                page.iter().find_map(|kv| Some((&kv.key, strange(&kv.value)?)))
            {
                return Err(format!(
                    "the record {} is {what}, so something else has encrypted here: {FIRST}",
                    String::from_utf8_lossy(key)
                ));
            }
        }
    }
    Ok(())
}

/// Most copies that are kept of files that are not ours. Who writes more of them does so again and
/// again; an operator is to look before the next is written over.
const KEPT_MAX: usize = 16;

/// Keeps a copy of the file at `path`, if it is not ours, before ours takes its place: it may hold
/// the only copy of a key. The copy is named by its content and stays for good.
pub(crate) fn keep(path: &Path, socket: &Path) -> Result<(), FileError> {
    let Some(bytes) = file::read(path)? else { return Ok(()) };
    if encryption::stage_of(&bytes, socket).is_some() {
        return Ok(());
    }
    let hash = digest::hex(&digest::sha256(&bytes));
    let mut kept = path.as_os_str().to_owned();
    kept.push(".before-claviger-");
    let start = PathBuf::from(&kept);
    kept.push(&hash[..16]);
    let kept = PathBuf::from(kept);
    if kept.exists() {
        return Ok(());
    }
    if copies(&start)? >= KEPT_MAX {
        let why = format!("there are {KEPT_MAX} already; remove those that nobody needs");
        let (doing, source) = ("keep another copy as", io::Error::other(why));
        return Err(FileError { doing, path: kept, source });
    }
    tracing::warn!(file = %kept.display(), "kept a copy of a configuration that is not ours");
    file::write(&kept, &bytes)
}

/// How many files there are whose path begins with `start`.
fn copies(start: &Path) -> Result<usize, FileError> {
    let dir = start.parent().unwrap_or(Path::new("/"));
    let name = start.file_name().unwrap_or_default().as_bytes();
    let failed = |source| FileError { doing: "list", path: dir.to_owned(), source };
    let mut count = 0;
    for entry in std::fs::read_dir(dir).map_err(failed)? {
        count += usize::from(entry.map_err(failed)?.file_name().as_bytes().starts_with(name));
    }
    Ok(count)
}

/// Another file that the API server was started with.
fn theirs(cmdline: &[u8], ours: &Path) -> Option<PathBuf> {
    let named = Path::new(OsStr::from_bytes(take_up::named(cmdline)?));
    (named != ours).then(|| named.to_owned())
}

/// What a stored value is, if neither plaintext nor ours.
fn strange(value: &[u8]) -> Option<String> {
    match Record::parse(value) {
        Record::Plaintext(_) => None,
        Record::KmsV2(record) if record.provider == PROVIDER => None,
        Record::KmsV2(record) => Some(format!("under the KMS provider {:?}", record.provider)),
        Record::KmsV1 { provider, .. } => Some(format!("under the KMS v1 provider {provider:?}")),
        Record::Other { transformer, key_name } => {
            Some(format!("under {transformer}, key {key_name:?}"))
        }
        Record::Undecodable { why } => Some(format!("not decodable ({why})")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_file_that_is_not_ours_is_kept_before_it_is_written_over() {
        let dir = tempfile::tempdir().unwrap();
        let (path, socket) = (dir.path().join("e.yaml"), Path::new("/s"));
        let put = |text: &[u8]| {
            std::fs::write(&path, text).unwrap();
            keep(&path, socket)
        };
        let kept = || {
            let files = std::fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().path());
            files.filter(|p| *p != path).map(|p| std::fs::read(p).unwrap()).collect::<Vec<_>>()
        };
        keep(&path, socket).unwrap();
        put(&encryption::bytes(encryption::STAGES[0], socket).unwrap()).unwrap();
        assert!(kept().is_empty(), "nothing there, or ours");
        put(b"aescbc: key 1").unwrap();
        put(b"aescbc: key 2").unwrap();
        put(b"aescbc: key 1").unwrap();
        assert_eq!(kept().len(), 2);
        assert!(kept().contains(&b"aescbc: key 2".to_vec()), "the second one, too");
        for n in 3..=KEPT_MAX {
            put(format!("aescbc: key {n}").as_bytes()).unwrap();
        }
        let full = put(b"aescbc: one more").unwrap_err();
        assert!(full.source.to_string().contains("16 already"), "{full:?}");
        put(b"aescbc: key 1").unwrap();
    }

    #[test]
    fn other_encryption_is_seen() {
        assert_eq!(strange(b"k8s\0\x0a\x00"), None);
        assert_eq!(strange(b"{}"), None);
        let found = strange(b"k8s:enc:aescbc:v1:key1:0123456789abcdef0123456789abcdef");
        assert_eq!(found.as_deref(), Some("under aescbc, key \"key1\""));
        assert!(strange(b"garbage").is_some());
        let ours = Path::new("/etc/kubernetes/claviger.yaml");
        let line = b"kube-apiserver\0--encryption-provider-config=/etc/other.yaml\0--v=2";
        assert_eq!(theirs(line, ours).as_deref(), Some(Path::new("/etc/other.yaml")));
        let both = b"kube-apiserver\0--encryption-provider-config=/etc/other.yaml\0--encryption-provider-config\0/etc/kubernetes/claviger.yaml";
        assert_eq!(theirs(both, ours), None, "the last one counts");
        assert_eq!(theirs(b"kube-apiserver", ours), None);
    }
}
