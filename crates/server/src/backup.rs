//! Backups of the server: database and master key in one encrypted, checked file.
//!
//! `claviger-backup-1\n ‖ id(16) ‖ chunk…`, each chunk `length(4, big endian) ‖ sealed box` under
//! the recovery key with the label `claviger backup 1` and the context id, number of the chunk
//! (8, big endian), and 1 if it is the last, else 0. The first chunk holds the master key, the
//! others the database in order. So chunks can be neither moved, left out, mixed with those of
//! another backup, nor cut off at the end. `docs/formats.md` has it byte by byte.

use crate::clusters::LAST_BACKUP;
use crate::files;
use crate::first::RESTORED;
use claviger_crypto::{Key32, SealingKey};
use claviger_custody::Custodian;
use claviger_custody::software::{self, KeyFileError, MASTER, Software};
use claviger_domain::id::{RestoreId, UnixMs};
use claviger_store::{Store, StoreError};
use std::ffi::OsString;
use std::fs::{File, OpenOptions, Permissions, TryLockError};
use std::io::{self, BufReader, BufWriter, ErrorKind, Read, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use thiserror::Error;
use uuid::Uuid;
use zeroize::Zeroizing;

const MAGIC: &[u8] = b"claviger-backup-1\n";
const LABEL: &[u8] = b"claviger backup 1";
/// Bytes of the database in one chunk.
const CHUNK: usize = 256 << 10;
/// Name of the database in the data directory.
pub const DATABASE: &str = "claviger.db";
/// A copy of the database while a backup is made, or a restore. Holds sealed material only.
const COPY: &str = "backup.tmp";
/// Locked while a backup is made, or a restore.
const LOCK: &str = "backup.lock";

/// Why a backup was not made, or not restored.
#[derive(Debug, Error)]
pub enum BackupError {
    /// A file.
    #[error("{path}: {source}")]
    File {
        /// Which.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// A key file.
    #[error(transparent)]
    Key(#[from] KeyFileError),
    /// The database.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Not a backup, cut off, changed, or made for another recovery key.
    #[error("{path} is not a whole backup under this recovery key ({why})")]
    Broken {
        /// The backup.
        path: PathBuf,
        /// What is wrong.
        why: &'static str,
    },
    /// Something is there that would be overwritten.
    #[error("{0} is there already, and nothing is overwritten")]
    Exists(PathBuf),
    /// Two at once would write over each other's copy.
    #[error("another backup or restore of {0} is under way")]
    Busy(PathBuf),
    /// The backup is there and good; what comes after it failed.
    #[error("{path} is a good backup, but that could not be noted: {why}")]
    Unnoted {
        /// The backup.
        path: PathBuf,
        /// What failed.
        #[source]
        why: Box<BackupError>,
    },
    /// The master key does not open the database.
    #[error("the master key {0} does not open this database; a backup of the two is useless")]
    Apart(PathBuf),
}

fn at(path: &Path) -> impl Fn(io::Error) -> BackupError {
    let path = path.to_owned();
    move |source| BackupError::File { path: path.clone(), source }
}

/// Writes a backup of the server in `data` to the new file `to` (mode 0600), checks it by
/// reading it back, and notes in the database that there is one. The server may be running.
/// Returns the number of bytes of the database. Blocks.
///
/// # Errors
/// `to` is not there then, but for [`BackupError::Unnoted`]: the backup is good, and only not noted.
pub fn make(
    data: &Path,
    master_file: &Path,
    recovery: &Key32,
    to: &Path,
    now: UnixMs,
) -> Result<u64, BackupError> {
    if to.exists() {
        return Err(BackupError::Exists(to.to_owned()));
    }
    let master = software::read_key(master_file, MASTER)?;
    let _alone = alone(data)?;
    let copy = data.join(COPY);
    let temporary = partial(to);
    let made = (|| -> Result<u64, BackupError> {
        clear(&copy)?;
        claviger_store::copy(&data.join(DATABASE), &copy)?;
        belongs(&copy, &master, master_file)?;
        remove(&temporary)?;
        let length = write(&copy, &master, recovery, &temporary)?;
        // Read back from the disk: a backup that does not open is worse than none.
        let mut sink = io::sink();
        read(&temporary, recovery, &mut sink, &temporary)?;
        // Linking fails where renaming would replace.
        std::fs::hard_link(&temporary, to).map_err(at(to))?;
        Ok(length)
    })();
    let _ = clear(&copy);
    let _ = std::fs::remove_file(&temporary);
    let length = made?;
    let noted = sync_dir(to).and_then(|()| {
        let now = now.0.to_string();
        Ok(claviger_store::mark(&data.join(DATABASE), LAST_BACKUP, now.as_bytes())?)
    });
    match noted {
        Ok(()) => Ok(length),
        Err(why) => Err(BackupError::Unnoted { path: to.to_owned(), why: Box::new(why) }),
    }
}

/// Brings a backup back into `data`: the database, and the master key into `master_file`.
/// Overwrites nothing. Everything is checked before anything is in place. Blocks.
///
/// # Errors
/// Neither file is there then, or only the master key, with which it can be repeated.
pub fn restore(
    data: &Path,
    master_file: &Path,
    recovery: &Key32,
    from: &Path,
) -> Result<(), BackupError> {
    let database = data.join(DATABASE);
    for suffix in ["", "-wal", "-shm"] {
        let path = data.join(format!("{DATABASE}{suffix}"));
        if path.exists() {
            return Err(BackupError::Exists(path));
        }
    }
    let _alone = alone(data)?;
    let copy = data.join(COPY);
    clear(&copy)?;
    let restored = (|| -> Result<(), BackupError> {
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&copy);
        let file = file.map_err(at(&copy))?;
        file.set_permissions(Permissions::from_mode(0o600)).map_err(at(&copy))?;
        let mut out = BufWriter::new(file);
        let master = read(from, recovery, &mut out, &copy)?;
        let file = out.into_inner().map_err(|e| at(&copy)(e.into_error()))?;
        file.sync_all().map_err(at(&copy))?;
        claviger_store::check(&copy)?;
        belongs(&copy, &master, master_file)?;
        if master_file.exists() {
            // The first half of an earlier try, perhaps.
            let there = software::read_key(master_file, MASTER)?;
            if !claviger_crypto::digest::equal(there.expose(), master.expose()) {
                return Err(BackupError::Exists(master_file.to_owned()));
            }
        } else {
            software::write_key(master_file, MASTER, &master)?;
        }
        // Agents give back what they hold only to a server that knows why it would lack it.
        claviger_store::stamp(&copy, RESTORED, RestoreId::random().0.as_bytes())?;
        std::fs::hard_link(&copy, &database).map_err(at(&database))?;
        sync_dir(&database)
    })();
    let _ = clear(&copy);
    restored
}

/// Keeps others from making a backup of `data`, or restoring one into it, until it is dropped.
fn alone(data: &Path) -> Result<File, BackupError> {
    let path = data.join(LOCK);
    let lock = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(&path);
    let lock = lock.map_err(at(&path))?;
    match lock.try_lock() {
        Ok(()) => Ok(lock),
        Err(TryLockError::WouldBlock) => Err(BackupError::Busy(data.to_owned())),
        Err(TryLockError::Error(e)) => Err(at(&path)(e)),
    }
}

/// What `to` is called until it is whole. A name that nobody gives to a file of his own.
fn partial(to: &Path) -> PathBuf {
    let mut name = OsString::from(".");
    name.push(to.file_name().unwrap_or_default());
    name.push(".claviger-partial");
    to.with_file_name(name)
}

/// Checks that the master key opens the copy of the database.
fn belongs(copy: &Path, master: &Key32, master_file: &Path) -> Result<(), BackupError> {
    let sealed = claviger_store::peek(copy, "check")?;
    let opens = sealed.is_some_and(|sealed| {
        Software::new(master).open_column(&["meta", "check"], &sealed).is_ok()
    });
    if opens { Ok(()) } else { Err(BackupError::Apart(master_file.to_owned())) }
}

fn write(database: &Path, master: &Key32, recovery: &Key32, to: &Path) -> Result<u64, BackupError> {
    let mut source = BufReader::new(File::open(database).map_err(at(database))?);
    let file =
        OpenOptions::new().write(true).create_new(true).mode(0o600).open(to).map_err(at(to))?;
    file.set_permissions(Permissions::from_mode(0o600)).map_err(at(to))?;
    let mut out = BufWriter::new(file);
    let key = SealingKey::new(recovery);
    let id = Uuid::new_v4();
    out.write_all(MAGIC).and_then(|()| out.write_all(id.as_bytes())).map_err(at(to))?;
    let mut put = |number: u64, last: bool, bytes: &[u8]| {
        let sealed =
            key.seal(LABEL, &[id.as_bytes(), &number.to_be_bytes(), &[u8::from(last)]], bytes);
        let length = u32::try_from(sealed.len()).expect("a chunk is far below 4 GiB");
        out.write_all(&length.to_be_bytes())?;
        out.write_all(&sealed)
    };
    put(0, false, master.expose()).map_err(at(to))?;
    let (mut number, mut total) = (0, 0);
    let mut chunk = fill(&mut source).map_err(at(database))?;
    loop {
        let next = fill(&mut source).map_err(at(database))?;
        number += 1;
        total += chunk.len() as u64;
        let last = next.is_empty();
        put(number, last, &chunk).map_err(at(to))?;
        if last {
            break;
        }
        chunk = next;
    }
    let file = out.into_inner().map_err(|e| at(to)(e.into_error()))?;
    file.sync_all().map_err(at(to))?;
    Ok(total)
}

/// Up to [`CHUNK`] bytes; fewer only at the end.
fn fill(source: &mut impl Read) -> io::Result<Vec<u8>> {
    let mut chunk = Vec::with_capacity(CHUNK);
    source.take(CHUNK as u64).read_to_end(&mut chunk)?;
    Ok(chunk)
}

/// Reads a backup: writes the database to `out`, the file `to`, and gives the master key. What was
/// written counts only when this returns `Ok`.
fn read(
    path: &Path,
    recovery: &Key32,
    out: &mut impl Write,
    to: &Path,
) -> Result<Key32, BackupError> {
    let broken = |why| BackupError::Broken { path: path.to_owned(), why };
    let mut source = BufReader::new(File::open(path).map_err(at(path))?);
    let mut head = [0; MAGIC.len() + 16];
    source.read_exact(&mut head).map_err(|_| broken("it is too short"))?;
    let id = head.strip_prefix(MAGIC).ok_or_else(|| broken("it does not begin like a backup"))?;
    let key = SealingKey::new(recovery);
    let mut master = None;
    for number in 0_u64.. {
        let mut length = [0; 4];
        source.read_exact(&mut length).map_err(|_| broken("its end is missing"))?;
        let length = u32::from_be_bytes(length) as usize;
        if length > CHUNK + claviger_crypto::sealed::OVERHEAD {
            return Err(broken("a chunk is too long"));
        }
        let mut sealed = vec![0; length];
        source.read_exact(&mut sealed).map_err(|_| broken("its end is missing"))?;
        let open = |last: u8| key.open(LABEL, &[id, &number.to_be_bytes(), &[last]], &sealed);
        let (opened, last) = match open(0) {
            Ok(opened) => (opened, false),
            Err(_) => {
                let opened = open(1).map_err(|_| match number {
                    0 => broken("its first chunk does not open: is this the right recovery key?"),
                    _ => broken("a chunk does not open"),
                })?;
                (opened, true)
            }
        };
        if number == 0 {
            let mut bytes = Zeroizing::new(opened.expose().to_vec());
            master = Key32::take(&mut bytes);
        } else {
            out.write_all(opened.expose()).map_err(at(to))?;
        }
        if last {
            break;
        }
    }
    let mut rest = [0; 1];
    if source.read(&mut rest).map_err(at(path))? > 0 {
        return Err(broken("something follows its end"));
    }
    out.flush().map_err(at(to))?;
    master.ok_or_else(|| broken("it has no master key"))
}

fn remove(path: &Path) -> Result<(), BackupError> {
    match std::fs::remove_file(path) {
        Err(e) if e.kind() != ErrorKind::NotFound => Err(at(path)(e)),
        _ => Ok(()),
    }
}

/// Removes a copy that a crash left behind, with what SQLite has beside it: a journal would be
/// rolled back into the next one.
fn clear(copy: &Path) -> Result<(), BackupError> {
    beside(copy).iter().try_for_each(|path| remove(path))
}

/// A database and what SQLite has beside it.
fn beside(database: &Path) -> [PathBuf; 4] {
    ["", "-journal", "-wal", "-shm"].map(|suffix| {
        let mut name = database.as_os_str().to_owned();
        name.push(suffix);
        PathBuf::from(name)
    })
}

/// Removes what a backup that was killed left in `data`: material in it that is shredded meanwhile
/// would stay. Not while a backup is under way. Blocks.
///
/// # Errors
/// When a file cannot be removed.
pub fn sweep(data: &Path) -> Result<(), BackupError> {
    let copy = data.join(COPY);
    // No lock is made in a directory that has nothing else yet.
    if !beside(&copy).iter().any(|path| path.exists()) {
        return Ok(());
    }
    match alone(data) {
        Ok(_alone) => clear(&copy),
        Err(BackupError::Busy(_)) => Ok(()),
        Err(e) => Err(e),
    }
}

fn sync_dir(path: &Path) -> Result<(), BackupError> {
    let dir = files::parent(path);
    File::open(dir).and_then(|dir| dir.sync_all()).map_err(at(dir))
}

/// Opens the database of a data directory, for [`crate::app::App`].
///
/// # Errors
/// Those of [`Store::open`].
pub fn open(data: &Path) -> Result<Store, StoreError> {
    Store::open(&data.join(DATABASE))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::app::{App, Settings, SystemClock};
    use claviger_domain::id::{InstanceId, KeyId};
    use claviger_domain::key::RootKey;
    use claviger_domain::life::Life;
    use claviger_store::events::{self, EventKind};
    use claviger_store::keys::Key;
    use std::sync::Arc;

    fn a_key(instance: InstanceId) -> Key {
        Key {
            root: RootKey { instance, key: KeyId::random() },
            name: "k".into(),
            description: None,
            tags: Vec::new(),
            life: Life::begin(),
            extractable: true,
            imported: false,
            ring: "default".into(),
            created: UnixMs(0),
            created_by: "t".into(),
            updated: None,
            rotated: None,
            expires: None,
            deleted: None,
            deleted_by: None,
            acted: None,
            current: None,
            set_by: None,
            set_at: None,
            synced: None,
        }
    }

    struct Place {
        dir: tempfile::TempDir,
        recovery: Key32,
    }

    impl Place {
        fn new() -> (Place, Store) {
            let dir = tempfile::tempdir().unwrap();
            let master = Key32::generate();
            software::write_key(&dir.path().join("master.key"), MASTER, &master).unwrap();
            let store = open(dir.path()).unwrap();
            let custodian = Arc::new(Software::new(&master));
            let app =
                App::new(store.clone(), custodian, Arc::new(SystemClock), Settings::default());
            drop(app.unwrap());
            (Place { dir, recovery: Key32::generate() }, store)
        }

        fn make(&self, to: &Path) -> Result<u64, BackupError> {
            let data = self.dir.path();
            make(data, &data.join("master.key"), &self.recovery, to, UnixMs(7))
        }
    }

    #[test]
    fn a_running_server_is_backed_up_and_comes_back_elsewhere() {
        let (place, store) = Place::new();
        let value = vec![7; 2 * CHUNK + 5];
        store.tx("t", |tx| claviger_store::meta::put(tx, "large", &value)).unwrap();
        let instances = store.read("t", claviger_store::iam::instances).unwrap();
        let key = a_key(instances[0].id);
        store.tx("t", |tx| claviger_store::keys::add(tx, &key, None)).unwrap();
        let happens = |store: &Store| {
            let kind = EventKind::Disable;
            store.tx("t", |tx| events::add(tx, &key.root, kind, None, UnixMs(1))).unwrap().id
        };
        assert_eq!(happens(&store), 1);
        let to = place.dir.path().join("backup");
        let length = place.make(&to).unwrap();
        assert!(length > 2 * CHUNK as u64);
        assert_eq!(std::fs::metadata(&to).unwrap().permissions().mode() & 0o777, 0o600);
        let marked = store.read("t", |tx| claviger_store::meta::get(tx, LAST_BACKUP)).unwrap();
        assert_eq!(marked.as_deref(), Some(&b"7"[..]));
        assert!(matches!(place.make(&to), Err(BackupError::Exists(_))));

        let new = tempfile::tempdir().unwrap();
        let master = new.path().join("master.key");
        restore(new.path(), &master, &place.recovery, &to).unwrap();
        let again = restore(new.path(), &master, &place.recovery, &to);
        assert!(matches!(again, Err(BackupError::Exists(_))), "never overwrites");
        let back = open(new.path()).unwrap();
        let got = back.read("t", |tx| claviger_store::meta::get(tx, "large")).unwrap();
        assert_eq!(got, Some(value));
        let key = software::read_key(&master, MASTER).unwrap();
        let custodian = Arc::new(Software::new(&key));
        let stamp = || back.read("t", |tx| claviger_store::meta::get(tx, RESTORED)).unwrap();
        assert_eq!(stamp().map(|id| id.len()), Some(16), "it knows that it was restored");
        App::new(back.clone(), custodian, Arc::new(SystemClock), Settings::default()).unwrap();
        assert_eq!(stamp(), None, "and took it up");
        let (later, restored) = (happens(&store), happens(&back));
        assert!(later == 2 && restored > 1 << 32, "no number comes again: {restored}");
        let names: Vec<_> =
            std::fs::read_dir(new.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert!(!names.iter().any(|name| name == COPY), "{names:?}");
    }

    #[test]
    fn what_a_killed_try_left_is_in_nobodys_way() {
        let (place, _store) = Place::new();
        let left = |dir: &Path| {
            for name in ["backup.tmp", "backup.tmp-journal", "backup.tmp-wal"] {
                std::fs::write(dir.join(name), [0xd9; 600]).unwrap();
            }
        };
        let there = |dir: &Path| {
            let all = std::fs::read_dir(dir).unwrap();
            all.filter(|e| e.as_ref().unwrap().file_name().to_string_lossy().contains("tmp"))
                .count()
        };
        let to = place.dir.path().join("backup");
        left(place.dir.path());
        place.make(&to).unwrap();
        assert_eq!(there(place.dir.path()), 0);
        let new = tempfile::tempdir().unwrap();
        left(new.path());
        restore(new.path(), &new.path().join("master.key"), &place.recovery, &to).unwrap();
        assert_eq!(there(new.path()), 0);
        left(new.path());
        let under_way = alone(new.path()).unwrap();
        sweep(new.path()).unwrap();
        assert_eq!(there(new.path()), 3, "somebody's who is still at it");
        drop(under_way);
        sweep(new.path()).unwrap();
        assert_eq!(there(new.path()), 0);
    }

    #[test]
    fn a_backup_that_cannot_be_noted_is_told_from_none() {
        let (place, store) = Place::new();
        let to = place.dir.path().join("backup");
        let refuse = format!(
            "CREATE TRIGGER t BEFORE INSERT ON meta WHEN NEW.name = '{LAST_BACKUP}'
             BEGIN SELECT RAISE(ABORT, 'no'); END"
        );
        store.tx("t", |tx| Ok::<_, StoreError>(tx.execute_batch(&refuse)?)).unwrap();
        let failed = place.make(&to);
        assert!(matches!(failed, Err(BackupError::Unnoted { .. })), "{failed:?}");
        let new = tempfile::tempdir().unwrap();
        restore(new.path(), &new.path().join("master.key"), &place.recovery, &to).unwrap();
    }

    #[test]
    fn one_at_a_time_and_no_other_file_is_touched() {
        let (place, _store) = Place::new();
        let dir = place.dir.path();
        let own = ["backup.partial", "backup.2"].map(|name| dir.join(name));
        own.iter().for_each(|path| std::fs::write(path, "precious").unwrap());
        let lock = alone(dir).unwrap();
        assert!(matches!(place.make(&dir.join("backup.1")), Err(BackupError::Busy(_))));
        assert!(!dir.join("backup.1").exists());
        drop(lock);
        place.make(&dir.join("backup.1")).unwrap();
        for path in own {
            assert_eq!(std::fs::read(&path).unwrap(), b"precious", "{}", path.display());
        }
        assert!(!partial(&dir.join("backup.1")).exists());
    }

    #[test]
    fn nothing_comes_back_from_a_backup_that_is_not_whole() {
        let (place, _store) = Place::new();
        let to = place.dir.path().join("backup");
        place.make(&to).unwrap();
        let whole = std::fs::read(&to).unwrap();
        let mut changed = whole.clone();
        changed[whole.len() / 2] ^= 1;
        let longer = [whole.as_slice(), b"x"].concat();
        let cuts = [0, 10, 40, whole.len() / 2, whole.len() - 1].map(|n| whole[..n].to_vec());
        let other = Key32::generate();
        let tries = cuts.into_iter().chain([changed, longer]).map(|bytes| (bytes, &place.recovery));
        for (bytes, key) in tries.chain([(whole, &other)]) {
            let new = tempfile::tempdir().unwrap();
            let from = new.path().join("backup");
            std::fs::write(&from, &bytes).unwrap();
            let failed = restore(new.path(), &new.path().join("master.key"), key, &from);
            assert!(matches!(failed, Err(BackupError::Broken { .. })), "{failed:?}");
            std::fs::remove_file(new.path().join(LOCK)).unwrap();
            assert_eq!(std::fs::read_dir(new.path()).unwrap().count(), 1);
        }
    }

    #[test]
    fn a_master_key_of_another_server_is_noticed_before_it_matters() {
        let (place, _store) = Place::new();
        let wrong = place.dir.path().join("wrong.key");
        software::write_key(&wrong, MASTER, &Key32::generate()).unwrap();
        let to = place.dir.path().join("backup");
        let failed = make(place.dir.path(), &wrong, &place.recovery, &to, UnixMs(1));
        assert!(matches!(failed, Err(BackupError::Apart(_))), "{failed:?}");
        assert!(!to.exists());
    }

    /// Against what a second implementation wrote; see `docs/formats.md`.
    #[test]
    fn backups_of_the_vectors_read_as_they_should() {
        let all = include_str!("../../crypto/tests/vectors.json");
        let all: serde_json::Value = serde_json::from_str(all).unwrap();
        let bytes = |hex: &serde_json::Value| -> Vec<u8> {
            let hex = hex.as_str().unwrap();
            (0..hex.len())
                .step_by(2)
                .map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap())
                .collect()
        };
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("backup");
        for case in all["backup"].as_array().unwrap() {
            std::fs::write(&path, bytes(&case["backup"])).unwrap();
            let recovery = Key32::take(&mut bytes(&case["recovery"])).unwrap();
            let mut database = Vec::new();
            let master = read(&path, &recovery, &mut database, &path);
            assert_eq!(master.is_ok(), !case["master"].is_null(), "{}", case["name"]);
            if let Ok(master) = master {
                assert_eq!(master.expose().to_vec(), bytes(&case["master"]));
                assert_eq!(database, bytes(&case["database"]));
            }
        }
    }
}
