//! The database behind one transaction seam.
//!
//! A server writes by [`Store::tx`] and reads by [`Store::read`] alone; both are synchronous, so an
//! async caller runs them on a blocking thread. [`copy`], [`mark`], [`stamp`], [`beside`], [`peek`],
//! [`view`] and [`check`] are for commands on the server's machine. The modules hold the SQL of one
//! subject each, as functions over [`Tx`]; of the rules they know what a query needs.

mod migrate;

pub mod access;
pub mod answers;
pub mod audit;
pub mod clusters;
pub mod events;
pub mod iam;
pub mod import_tokens;
pub mod instances;
pub mod keys;
pub mod kmip;
pub mod logins;
pub mod meta;
pub mod policies;
pub mod registrations;
pub mod repeats;
pub mod rings;
pub mod trust;

use rusqlite::trace::{TraceEvent, TraceEventCodes};
use rusqlite::{Connection, OpenFlags, TransactionBehavior};
use std::cell::Cell;
use std::fs::{File, OpenOptions};
use std::ops::Deref;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use thiserror::Error;

pub use rusqlite;

/// How long a statement waits for SQLite's own locks. Only an outside tool that has the file
/// open can hold one, so this is rarely used; longer would hide that tool.
const BUSY: Duration = Duration::from_secs(5);

/// Connections that read. More would only wait for the two or four cores.
const READERS: usize = 4;

/// The setting that says that overwritten material may still be in the log. Durable, so that a
/// server that dies in between empties the log at its next start.
const UNSETTLED: &str = "unsettled";

fn unsettle(tx: &Tx<'_>) -> Result<(), StoreError> {
    meta::put(tx, UNSETTLED, b"1")
}

/// Why the database did not do it.
#[derive(Debug, Error)]
pub enum StoreError {
    /// The database cannot be opened.
    #[error("cannot open the database {path}: {why}")]
    Open {
        /// The file.
        path: PathBuf,
        /// The cause.
        why: String,
    },
    /// Another process has it open.
    #[error("the database {0} is in use by another server")]
    InUse(PathBuf),
    /// It was written by a newer version of this program.
    #[error("the database has schema {found}, this program knows {known}; use a newer claviger")]
    Newer {
        /// Schema number in the file.
        found: i64,
        /// The newest that is known here.
        known: i64,
    },
    /// It was written by an older version of this program, which may be running.
    #[error(
        "the database has schema {found}, this program needs {known}; start its server once, or use the program that serves it"
    )]
    Older {
        /// Schema number in the file.
        found: i64,
        /// The one that is needed.
        known: i64,
    },
    /// A value in the database cannot be read. A fault of ours or a damaged file.
    #[error("the database holds a value that cannot be read: {0}")]
    Damaged(String),
    /// More is asked for at once than can be done. Nothing was begun.
    #[error("the server is busy with other requests; nothing was done. Try again")]
    Busy,
    /// SQLite refused.
    #[error("database: {0}")]
    Sqlite(#[from] rusqlite::Error),
}

impl StoreError {
    /// Whether a UNIQUE or PRIMARY KEY constraint was hit: the thing exists already.
    pub fn is_taken(&self) -> bool {
        use rusqlite::ffi::{SQLITE_CONSTRAINT_PRIMARYKEY, SQLITE_CONSTRAINT_UNIQUE};
        // Other constraints are hit by faults of ours alone.
        matches!(self, StoreError::Sqlite(e)
            if e.sqlite_error().is_some_and(|e| matches!(e.extended_code,
                SQLITE_CONSTRAINT_PRIMARYKEY | SQLITE_CONSTRAINT_UNIQUE)))
    }

    /// Whether the disk is full or not writable, which an operator has to mend.
    pub fn is_disk(&self) -> bool {
        use rusqlite::ErrorCode::{CannotOpen, DiskFull, ReadOnly, SystemIoFailure};
        matches!(self, StoreError::Sqlite(e)
            if matches!(e.sqlite_error_code(),
                Some(DiskFull | ReadOnly | SystemIoFailure | CannotOpen)))
    }
}

/// A transaction, or a consistent view for reading. Dereferences to the connection.
pub struct Tx<'c> {
    inner: rusqlite::Transaction<'c>,
    // What the epoch of access becomes with this transaction.
    access_epoch: Cell<Option<u64>>,
}

impl<'c> Tx<'c> {
    fn new(inner: rusqlite::Transaction<'c>) -> Tx<'c> {
        Tx { inner, access_epoch: Cell::new(None) }
    }

    fn access_epoch(&self) -> Option<u64> {
        self.access_epoch.get()
    }

    /// Whether this transaction changes who may do what.
    pub fn changed_access(&self) -> bool {
        self.access_epoch().is_some()
    }

    fn set_access_epoch(&self, epoch: u64) {
        self.access_epoch.set(Some(epoch));
    }
}

impl Deref for Tx<'_> {
    type Target = Connection;
    fn deref(&self) -> &Connection {
        &self.inner
    }
}

/// The database. Cheap to clone.
#[derive(Clone)]
pub struct Store(Arc<Inner>);

struct Inner {
    path: PathBuf,
    writer: Mutex<Connection>,
    readers: Mutex<Vec<Connection>>,
    returned: Condvar,
    access_epoch: AtomicU64,
    // Holds the lock that keeps a second server out; freed when the process ends, however.
    _lock: File,
}

impl Store {
    /// Opens the database at `path`, makes it (mode 0600) if there is none, and brings its
    /// schema up to date. Fails if another process has it, or if it is of a newer version.
    pub fn open(path: &Path) -> Result<Store, StoreError> {
        let failed =
            |why: std::io::Error| StoreError::Open { path: path.to_owned(), why: why.to_string() };
        let lock = private_file(&path.with_extension("lock")).map_err(failed)?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(std::fs::TryLockError::WouldBlock) => return Err(StoreError::InUse(path.into())),
            Err(std::fs::TryLockError::Error(e)) => return Err(failed(e)),
        }
        // SQLite gives its log and index files the mode of the database file.
        drop(private_file(path).map_err(failed)?);
        let mut writer = connect(path)
            .map_err(|e| StoreError::Open { path: path.to_owned(), why: e.to_string() })?;
        migrate::run(&mut writer)?;
        // Each start has all in the one file that people know to keep. Whoever else has it open
        // may be in the way, which does no harm.
        let _: i64 = writer.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |row| row.get(0))?;
        let readers = (0..READERS)
            .map(|_| {
                let reader = connect(path)?;
                reader.pragma_update(None, "query_only", true)?;
                Ok(reader)
            })
            .collect::<Result<Vec<_>, rusqlite::Error>>()?;
        let epoch = access::epoch(&Tx::new(writer.transaction()?))?;
        Ok(Store(Arc::new(Inner {
            path: path.to_owned(),
            writer: Mutex::new(writer),
            readers: Mutex::new(readers),
            returned: Condvar::new(),
            access_epoch: AtomicU64::new(epoch),
            _lock: lock,
        })))
    }

    /// The epoch of access as of the last durable change: what was compiled under another one
    /// counts no longer. Never waits.
    pub fn access_epoch(&self) -> u64 {
        self.0.access_epoch.load(Ordering::Acquire)
    }

    /// The database file.
    pub fn path(&self) -> &Path {
        &self.0.path
    }

    /// Runs `work` in a transaction: all of it is durable when this returns `Ok`, none of it
    /// was done when it returns `Err`. One at a time; blocks. `name` is for logs. `work` should
    /// have no effect but on the database, since that is undone when it fails.
    pub fn tx<T, E: From<StoreError>>(
        &self,
        name: &'static str,
        mut work: impl FnMut(&Tx<'_>) -> Result<T, E>,
    ) -> Result<T, E> {
        let _span = span(name, true).entered();
        let mut writer = held(&self.0.writer);
        let tx = writer
            .transaction_with_behavior(TransactionBehavior::Immediate)
            .map_err(StoreError::from)?;
        let tx = Tx::new(tx);
        let done = work(&tx)?;
        let epoch = tx.access_epoch();
        tx.inner.commit().map_err(|e| {
            tracing::error!(transaction = name, error = %e, "commit failed");
            StoreError::from(e)
        })?;
        if let Some(epoch) = epoch {
            // Still under the writer's lock, so epochs are told in their order.
            self.0.access_epoch.store(epoch, Ordering::Release);
        }
        Ok(done)
    }

    /// Runs `work` on one consistent view. Never waits for a writer. Blocks while all readers
    /// are busy.
    pub fn read<T, E: From<StoreError>>(
        &self,
        name: &'static str,
        work: impl FnOnce(&Tx<'_>) -> Result<T, E>,
    ) -> Result<T, E> {
        let _span = span(name, false).entered();
        let mut reader = Reader { inner: &self.0, connection: Some(self.take_reader()) };
        let connection = reader.connection.as_mut().expect("set above, taken in drop");
        let tx = connection.transaction().map_err(StoreError::from)?;
        work(&Tx::new(tx))
    }

    /// After material was overwritten: brings what is in the log into the database file and
    /// empties the log, so that the material is in neither. Does nothing otherwise. False when
    /// someone still reads an older state; try again then. Blocks, for some seconds at most.
    pub fn settle(&self) -> Result<bool, StoreError> {
        self.settle_and(|| {})
    }

    /// The same; does `between` after the log is empty, before that is noted.
    fn settle_and(&self, between: impl FnOnce()) -> Result<bool, StoreError> {
        let due = self.read("settle", |tx| meta::get(tx, UNSETTLED))?;
        if due.is_none_or(|due| due.is_empty()) {
            return Ok(true);
        }
        // Held over both: what is overwritten in between would count as settled.
        let mut writer = held(&self.0.writer);
        let busy: i64 =
            writer.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |row| row.get(0))?;
        if busy != 0 {
            return Ok(false);
        }
        between();
        let tx = Tx::new(writer.transaction_with_behavior(TransactionBehavior::Immediate)?);
        meta::put(&tx, UNSETTLED, b"")?;
        tx.inner.commit()?;
        Ok(true)
    }

    /// Calls `tell` with the text of every statement that is run from now on, so that tests can
    /// compare what look-ups cost. Blocks until no connection is in use.
    pub fn trace(&self, tell: impl Fn(&str) + Clone + Send + 'static) -> Result<(), StoreError> {
        let each = |connection: &mut Connection| {
            let tell = tell.clone();
            let told = move |event: TraceEvent<'_>| {
                if let TraceEvent::Stmt(_, sql) = event {
                    tell(sql);
                }
            };
            connection.trace_v2(TraceEventCodes::SQLITE_TRACE_STMT, Some(told))
        };
        each(&mut held(&self.0.writer))?;
        let mut readers: Vec<Connection> = (0..READERS).map(|_| self.take_reader()).collect();
        let done = readers.iter_mut().try_for_each(each);
        held(&self.0.readers).append(&mut readers);
        self.0.returned.notify_all();
        Ok(done?)
    }

    fn take_reader(&self) -> Connection {
        let mut readers = held(&self.0.readers);
        loop {
            if let Some(reader) = readers.pop() {
                return reader;
            }
            readers = self.0.returned.wait(readers).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

/// Copies the database at `from`, as of one moment, into a new file `to` with mode 0600, whether
/// or not a server has it open, and without keeping its writers waiting.
pub fn copy(from: &Path, to: &Path) -> Result<(), StoreError> {
    let failed = |path: &Path, why: String| StoreError::Open { path: path.to_owned(), why };
    if !from.is_file() {
        return Err(failed(from, "there is no such file".to_owned()));
    }
    drop(private_file(to).map_err(|e| failed(to, e.to_string()))?);
    let source = connect(from)?;
    known(&source)?;
    let mut copy = Connection::open_with_flags(to, OpenFlags::SQLITE_OPEN_READ_WRITE)?;
    // All pages in one step: one consistent view, and no start from the beginning when a
    // server writes meanwhile.
    let backup = rusqlite::backup::Backup::new(&source, &mut copy)?;
    backup.run_to_completion(i32::MAX, Duration::ZERO, None)?;
    drop(backup);
    // One whole file, without a log beside it.
    copy.pragma_update(None, "journal_mode", "DELETE")?;
    copy.close().map_err(|(_, e)| e)?;
    File::open(to).and_then(|file| file.sync_all()).map_err(|e| failed(to, e.to_string()))
}

/// Sets a value of [`meta`] in a database that a server may have open.
pub fn mark(path: &Path, name: &str, value: &[u8]) -> Result<(), StoreError> {
    let mut connection = connect(path)?;
    known(&connection)?;
    let tx = Tx::new(connection.transaction_with_behavior(TransactionBehavior::Immediate)?);
    meta::put(&tx, name, value)?;
    Ok(tx.inner.commit()?)
}

/// Sets a value of [`meta`] in a database that nobody has open, of this schema or an older one. It
/// stays one whole file, without a log beside it.
pub fn stamp(path: &Path, name: &str, value: &[u8]) -> Result<(), StoreError> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let mut connection = Connection::open_with_flags(path, flags)?;
    known(&connection)?;
    connection.pragma_update(None, "journal_mode", "DELETE")?;
    connection.pragma_update(None, "synchronous", "FULL")?;
    {
        let tx = Tx::new(connection.transaction()?);
        meta::put(&tx, name, value)?;
        tx.inner.commit()?;
    }
    Ok(connection.close().map_err(|(_, e)| e)?)
}

/// Runs `work` in a transaction of a database that a server may have open, which heeds it from its
/// next look on. Only on the schema of this program.
pub fn beside<T, E: From<StoreError>>(
    path: &Path,
    work: impl FnOnce(&Tx<'_>) -> Result<T, E>,
) -> Result<T, E> {
    let mut connection = opened(path)?;
    let tx = connection
        .transaction_with_behavior(TransactionBehavior::Immediate)
        .map_err(StoreError::from)?;
    let tx = Tx::new(tx);
    let done = work(&tx)?;
    tx.inner.commit().map_err(StoreError::from)?;
    Ok(done)
}

/// A value of [`meta`] in a database, whether or not a server has it open.
pub fn peek(path: &Path, name: &str) -> Result<Option<Vec<u8>>, StoreError> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let mut connection = Connection::open_with_flags(path, flags)?;
    known(&connection)?;
    meta::get(&Tx::new(connection.transaction()?), name)
}

/// The schema of a database, and the newest that is known here; nothing is changed.
///
/// # Errors
/// When it cannot be read, or a newer version of this program wrote it.
pub fn schema(path: &Path) -> Result<(i64, i64), StoreError> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(path, flags)?;
    known(&connection)?;
    Ok((migrate::version(&connection)?, migrate::KNOWN))
}

/// Runs `work` on one consistent view of a database that a server may have open. Only on the schema
/// of this program.
pub fn view<T, E: From<StoreError>>(
    path: &Path,
    work: impl FnOnce(&Tx<'_>) -> Result<T, E>,
) -> Result<T, E> {
    let mut connection = opened(path)?;
    let tx = Tx::new(connection.transaction().map_err(StoreError::from)?);
    work(&tx)
}

/// Opens a database of this program's schema, beside whoever has it open.
fn opened(path: &Path) -> Result<Connection, StoreError> {
    if !path.is_file() {
        let why = "there is no such file".to_owned();
        return Err(StoreError::Open { path: path.to_owned(), why });
    }
    let connection = connect(path)?;
    known(&connection)?;
    let found = migrate::version(&connection)?;
    if found < migrate::KNOWN {
        return Err(StoreError::Older { found, known: migrate::KNOWN });
    }
    Ok(connection)
}

/// Whether the database at `path` is whole, by SQLite's own check.
pub fn check(path: &Path) -> Result<(), StoreError> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(path, flags)?;
    let found: String = connection.query_row("PRAGMA integrity_check", [], |row| row.get(0))?;
    if found == "ok" { Ok(()) } else { Err(StoreError::Damaged(found)) }
}

fn known(connection: &Connection) -> Result<(), StoreError> {
    let (found, known) = (migrate::version(connection)?, migrate::KNOWN);
    if found > known { Err(StoreError::Newer { found, known }) } else { Ok(()) }
}

/// For traces: how long a transaction took, the wait for its turn included.
fn span(name: &'static str, writes: bool) -> tracing::Span {
    tracing::debug_span!(
        target: "claviger::trace",
        "transaction",
        otel.kind = "client",
        db.system.name = "sqlite",
        db.operation.name = name,
        claviger.writes = writes,
    )
}

struct Reader<'s> {
    inner: &'s Inner,
    connection: Option<Connection>,
}

impl Drop for Reader<'_> {
    fn drop(&mut self) {
        if let Some(connection) = self.connection.take() {
            held(&self.inner.readers).push(connection);
            self.inner.returned.notify_one();
        }
    }
}

// A panic inside a transaction rolls it back, so the connection stays good.
fn held<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn private_file(path: &Path) -> std::io::Result<File> {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(path)?;
    file.set_permissions(std::fs::Permissions::from_mode(0o600))?;
    Ok(file)
}

fn connect(path: &Path) -> Result<Connection, rusqlite::Error> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(path, flags)?;
    connection.busy_timeout(BUSY)?;
    connection.pragma_update(None, "journal_mode", "WAL")?;
    connection.pragma_update(None, "synchronous", "FULL")?;
    connection.pragma_update(None, "foreign_keys", true)?;
    // Deleted material is overwritten, not left in free pages.
    connection.pragma_update(None, "secure_delete", true)?;
    connection.set_prepared_statement_cache_capacity(64);
    Ok(connection)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_transaction_leaves_nothing_and_a_second_server_is_refused() {
        let dir = tempfile::tempdir().expect("dir");
        let path = dir.path().join("claviger.db");
        let store = Store::open(&path).expect("opens");
        assert!(matches!(Store::open(&path), Err(StoreError::InUse(_))));
        let failed: Result<(), StoreError> = store.tx("t", |tx| {
            meta::put(tx, "a", b"1")?;
            Err(StoreError::Damaged("on purpose".into()))
        });
        assert!(failed.is_err());
        let seen = store.read("t", |tx| meta::get(tx, "a")).expect("reads");
        assert_eq!(seen, None);
        store.tx("t", |tx| meta::put(tx, "a", b"2")).expect("writes");
        assert_eq!(store.read("t", |tx| meta::get(tx, "a")).expect("reads"), Some(b"2".to_vec()));
        let mode = std::fs::metadata(&path).expect("there").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        drop(store);
        Store::open(&path).expect("free again");
    }

    #[test]
    fn nothing_is_written_between_the_emptying_of_the_log_and_its_note() {
        let dir = tempfile::tempdir().expect("dir");
        let store = Store::open(&dir.path().join("claviger.db")).expect("opens");
        store.tx("t", unsettle).expect("writes");
        let mut between = false;
        let settled = store.settle_and(|| between = store.0.writer.try_lock().is_err());
        assert!(settled.expect("settles") && between, "the writer is held");
        let settled = store.settle_and(|| panic!("nothing to do"));
        assert!(settled.expect("settles"));
    }

    #[test]
    fn taken_is_what_is_there_already_and_no_other_fault() {
        let dir = tempfile::tempdir().expect("dir");
        let store = Store::open(&dir.path().join("claviger.db")).expect("opens");
        let tries = [
            ("INSERT INTO meta (name, value) VALUES ('a', x'00'), ('a', x'00')", true),
            ("INSERT INTO meta (name, value) VALUES ('b', NULL)", false),
            (
                "INSERT INTO aliases (instance, alias, key, created, created_by)
              VALUES ('i', 'a', 'k', 0, 'x')",
                false,
            ),
        ];
        for (sql, taken) in tries {
            let failed = store.tx("t", |tx| Ok::<_, StoreError>(tx.execute(sql, [])?));
            assert_eq!(failed.expect_err("a constraint").is_taken(), taken, "{sql}");
        }
    }

    #[test]
    fn reads_cannot_write() {
        let dir = tempfile::tempdir().expect("dir");
        let store = Store::open(&dir.path().join("claviger.db")).expect("opens");
        assert!(store.read("t", |tx| meta::put(tx, "a", b"1")).is_err());
    }

    #[test]
    fn a_newer_schema_is_refused() {
        let dir = tempfile::tempdir().expect("dir");
        let path = dir.path().join("claviger.db");
        let store = Store::open(&path).expect("opens");
        let newer = store
            .tx("t", |tx| Ok::<_, StoreError>(tx.pragma_update(None, "user_version", 9_999)?));
        newer.expect("sets");
        drop(store);
        assert!(matches!(Store::open(&path), Err(StoreError::Newer { found: 9_999, .. })));
    }
}
