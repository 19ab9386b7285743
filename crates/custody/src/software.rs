//! Root keys sealed under one master key that is kept in a file or given at start.
//!
//! The master key is 256 random bits. Its file holds one line, `claviger-master-key-1:` and 64
//! hexadecimal digits, has mode 0600 and belongs to the user who runs the server; anything else
//! is refused, since a key that others can read is no key. Sealed material is a sealed box
//! (`claviger_crypto::sealed`) under the master key with the label `claviger root material 1`
//! and instance, key and version as its context.

use crate::{Custodian, CustodyError, SealedMaterial};
use claviger_crypto::{Key32, SealingKey, SecretBytes, wrapped};
use claviger_domain::key::RootVersion;
use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use thiserror::Error;
use zeroize::{Zeroize, Zeroizing};

const MATERIAL: &[u8] = b"claviger root material 1";
const COLUMN: &[u8] = b"claviger column 1";
/// What the line of a master key's file begins with.
pub const MASTER: &str = "claviger-master-key-1:";
/// What the line of a recovery key's file begins with: it opens backups, nothing else.
pub const RECOVERY: &str = "claviger-recovery-key-1:";

/// Opened key versions that are kept. A version is opened in a few microseconds, so this only
/// has to cover what is hot: the current versions of some hundred clusters.
const OPENED_MAX: usize = 512;

/// Why a key file cannot be used.
#[derive(Debug, Error)]
pub enum KeyFileError {
    /// The file cannot be read or written.
    #[error("key file {path}: {why}")]
    File {
        /// The file.
        path: PathBuf,
        /// The cause.
        why: String,
    },
    /// Others could read it.
    #[error("key file {path} has mode {mode:03o}; it must be 0600 (chmod 600 {path})")]
    Mode {
        /// The file.
        path: PathBuf,
        /// Its mode.
        mode: u32,
    },
    /// It belongs to another user.
    #[error("key file {path} belongs to user {owner}, not to user {me} who runs this")]
    Owner {
        /// The file.
        path: PathBuf,
        /// Whose it is.
        owner: u32,
        /// Who we are.
        me: u32,
    },
    /// It does not hold such a key.
    #[error("{path} does not hold the right key (one line: {prefix} and 64 hexadecimal digits)")]
    Form {
        /// The file.
        path: PathBuf,
        /// What the line has to begin with.
        prefix: &'static str,
    },
}

/// The software custodian.
pub struct Software {
    master: SealingKey,
    opened: Mutex<Opened>,
}

#[derive(Default)]
struct Opened {
    clock: u64,
    keys: HashMap<RootVersion, (u64, Arc<SealingKey>)>,
}

impl Software {
    /// A custodian with this master key.
    pub fn new(master: &Key32) -> Self {
        Self { master: SealingKey::new(master), opened: Mutex::default() }
    }

    fn opened(
        &self,
        version: &RootVersion,
        material: &SealedMaterial,
    ) -> Result<Arc<SealingKey>, CustodyError> {
        if let Some(key) = held(&self.opened).get(version) {
            return Ok(key);
        }
        let bytes = self
            .master
            .open(MATERIAL, &context(version), &material.0)
            .map_err(|_| CustodyError::Material(*version))?;
        let key = Arc::new(SealingKey::of_material(bytes.expose()));
        held(&self.opened).put(*version, key.clone());
        Ok(key)
    }
}

impl Custodian for Software {
    fn generate(&self, version: &RootVersion) -> Result<SealedMaterial, CustodyError> {
        let key = Key32::generate();
        Ok(SealedMaterial(self.master.seal(MATERIAL, &context(version), key.expose())))
    }

    fn import(
        &self,
        version: &RootVersion,
        material: &SecretBytes,
    ) -> Result<SealedMaterial, CustodyError> {
        if !matches!(material.len(), 16 | 24 | 32) {
            return Err(CustodyError::MaterialLength(material.len()));
        }
        Ok(SealedMaterial(self.master.seal(MATERIAL, &context(version), material.expose())))
    }

    fn wrap(
        &self,
        version: &RootVersion,
        material: &SealedMaterial,
        aad: &[String],
        plaintext: &[u8],
    ) -> Result<String, CustodyError> {
        Ok(wrapped::wrap(&*self.opened(version, material)?, version, aad, plaintext))
    }

    fn unwrap(
        &self,
        version: &RootVersion,
        material: &SealedMaterial,
        aad: &[String],
        ciphertext: &str,
    ) -> Result<SecretBytes, CustodyError> {
        let parsed = wrapped::Wrapped::parse(ciphertext)?;
        Ok(parsed.open(&*self.opened(version, material)?, version, aad)?)
    }

    fn seal_column(&self, place: &[&str], plaintext: &[u8]) -> Vec<u8> {
        let place: Vec<&[u8]> = place.iter().map(|part| part.as_bytes()).collect();
        self.master.seal(COLUMN, &place, plaintext)
    }

    fn open_column(&self, place: &[&str], sealed: &[u8]) -> Result<SecretBytes, CustodyError> {
        let place: Vec<&[u8]> = place.iter().map(|part| part.as_bytes()).collect();
        Ok(self.master.open(COLUMN, &place, sealed)?)
    }

    fn forget(&self, version: &RootVersion) {
        held(&self.opened).keys.remove(version);
    }
}

impl Opened {
    fn get(&mut self, version: &RootVersion) -> Option<Arc<SealingKey>> {
        self.clock += 1;
        let (used, key) = self.keys.get_mut(version)?;
        *used = self.clock;
        Some(key.clone())
    }

    fn put(&mut self, version: RootVersion, key: Arc<SealingKey>) {
        if self.keys.len() >= OPENED_MAX {
            let oldest = self.keys.iter().min_by_key(|(_, (used, _))| *used).map(|(v, _)| *v);
            if let Some(oldest) = oldest {
                self.keys.remove(&oldest);
            }
        }
        self.clock += 1;
        self.keys.insert(version, (self.clock, key));
    }
}

fn held(mutex: &Mutex<Opened>) -> MutexGuard<'_, Opened> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn context(version: &RootVersion) -> [&[u8]; 3] {
    [
        version.root.instance.0.as_bytes(),
        version.root.key.0.as_bytes(),
        version.version.0.as_bytes(),
    ]
}

/// Reads a key out of its file, whose line begins with `prefix` ([`MASTER`] or [`RECOVERY`]).
pub fn read_key(path: &Path, prefix: &'static str) -> Result<Key32, KeyFileError> {
    let failed = |e: std::io::Error| KeyFileError::File { path: path.into(), why: e.to_string() };
    let mut file = File::open(path).map_err(failed)?;
    // Of the opened file, so that it cannot be exchanged between look and read.
    let metadata = file.metadata().map_err(failed)?;
    let mode = metadata.permissions().mode() & 0o777;
    if mode & 0o077 != 0 {
        return Err(KeyFileError::Mode { path: path.into(), mode });
    }
    let me = rustix::process::geteuid().as_raw();
    if metadata.uid() != me {
        return Err(KeyFileError::Owner { path: path.into(), owner: metadata.uid(), me });
    }
    let mut text = Zeroizing::new(Vec::with_capacity(128));
    (&mut file).take(128).read_to_end(&mut text).map_err(failed)?;
    parse_key(&text, prefix).ok_or_else(|| KeyFileError::Form { path: path.into(), prefix })
}

/// Reads a key out of the text of its file, however that was handed over.
pub fn parse_key(text: &[u8], prefix: &str) -> Option<Key32> {
    let digits = text.strip_prefix(prefix.as_bytes())?.trim_ascii_end();
    if digits.len() != 64 {
        return None;
    }
    let mut bytes = Zeroizing::new([0u8; 32]);
    for (byte, pair) in bytes.iter_mut().zip(digits.chunks(2)) {
        let high = char::from(pair[0]).to_digit(16)?;
        let low = char::from(pair[1]).to_digit(16)?;
        *byte = (high * 16 + low) as u8;
    }
    Key32::take(bytes.as_mut_slice())
}

/// Writes `key` into a new file with mode 0600, durably. Never replaces a file.
pub fn write_key(path: &Path, prefix: &str, key: &Key32) -> Result<(), KeyFileError> {
    let failed = |e: std::io::Error| KeyFileError::File { path: path.into(), why: e.to_string() };
    let dir = match path.parent() {
        Some(dir) if !dir.as_os_str().is_empty() => dir,
        _ => Path::new("."),
    };
    let mut text = Zeroizing::new(Vec::with_capacity(128));
    text.extend_from_slice(prefix.as_bytes());
    for byte in key.expose() {
        for digit in [byte >> 4, byte & 15] {
            let digit = char::from_digit(u32::from(digit), 16).expect("a nibble");
            text.push(digit as u8);
        }
    }
    text.push(b'\n');
    // Under another name first: a crash leaves no half key under the real name. Linking fails if
    // the real name exists.
    let temporary = dir.join(format!(".key-{}", uuid::Uuid::new_v4()));
    let write = || {
        let mut file =
            OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary)?;
        file.set_permissions(std::fs::Permissions::from_mode(0o600))?;
        file.write_all(&text)?;
        file.sync_all()?;
        std::fs::hard_link(&temporary, path)?;
        File::open(dir)?.sync_all()
    };
    let done = write();
    let _ = std::fs::remove_file(&temporary);
    text.zeroize();
    done.map_err(failed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use claviger_domain::id::{InstanceId, KeyId, KeyVersionId};
    use claviger_domain::key::RootKey;

    #[test]
    fn passes_the_suite() {
        let key = Key32::generate();
        crate::suite::run(&Software::new(&key), &Software::new(&key));
        crate::suite::foreign(&Software::new(&key), &Software::new(&Key32::generate()));
    }

    #[test]
    fn master_key_files_read_back_and_open_ones_are_refused() {
        let dir = tempfile::tempdir().expect("dir");
        let path = dir.path().join("master.key");
        let key = Key32::generate();
        write_key(&path, MASTER, &key).expect("writes");
        assert_eq!(read_key(&path, MASTER).expect("reads").expose(), key.expose());
        assert!(write_key(&path, MASTER, &key).is_err(), "a master key is never replaced");
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o640)).expect("chmod");
        assert!(matches!(read_key(&path, MASTER), Err(KeyFileError::Mode { mode: 0o640, .. })));
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).expect("chmod");
        std::fs::write(&path, "rubbish").expect("writes");
        assert!(matches!(read_key(&path, MASTER), Err(KeyFileError::Form { .. })));
        let recovery = dir.path().join("recovery.key");
        write_key(&recovery, RECOVERY, &key).expect("writes");
        assert!(matches!(read_key(&recovery, MASTER), Err(KeyFileError::Form { .. })));
        std::fs::remove_file(recovery).expect("removes");
        assert_eq!(std::fs::read_dir(dir.path()).expect("lists").count(), 1);
    }

    #[test]
    fn opened_keys_are_bounded_and_forgotten() {
        let custodian = Software::new(&Key32::generate());
        let root = RootKey { instance: InstanceId::random(), key: KeyId::random() };
        let mut last = None;
        for _ in 0..OPENED_MAX + 10 {
            let version = RootVersion { root, version: KeyVersionId::random() };
            let material = custodian.generate(&version).expect("makes");
            custodian.wrap(&version, &material, &[], b"x").expect("wraps");
            last = Some(version);
        }
        assert_eq!(held(&custodian.opened).keys.len(), OPENED_MAX);
        custodian.forget(&last.expect("some"));
        assert_eq!(held(&custodian.opened).keys.len(), OPENED_MAX - 1);
    }
}
