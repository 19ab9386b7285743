//! What happened to root keys, in the order in which it happened.

use crate::keys::{id, root};
use crate::{StoreError, Tx};
use claviger_domain::id::{KeyVersionId, UnixMs};
use claviger_domain::key::RootKey;
use rusqlite::{OptionalExtension, Row, params};

/// What happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EventKind {
    /// A new version is current.
    Rotate,
    /// Suspended.
    Disable,
    /// No longer suspended.
    Enable,
    /// Destroyed, restorably.
    Delete,
    /// Back after a delete.
    Restore,
    /// Its expiration date came.
    Expire,
}

impl EventKind {
    /// Every kind.
    pub const ALL: [EventKind; 6] = [
        EventKind::Rotate,
        EventKind::Disable,
        EventKind::Enable,
        EventKind::Delete,
        EventKind::Restore,
        EventKind::Expire,
    ];

    /// As it is stored and logged.
    pub fn as_str(self) -> &'static str {
        match self {
            EventKind::Rotate => "rotate",
            EventKind::Disable => "disable",
            EventKind::Enable => "enable",
            EventKind::Delete => "delete",
            EventKind::Restore => "restore",
            EventKind::Expire => "expire",
        }
    }
}

/// One thing that happened to a root key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyEvent {
    /// Its number; rises over all keys.
    pub id: u64,
    /// The key.
    pub root: RootKey,
    /// What.
    pub kind: EventKind,
    /// The version that is current afterwards.
    pub version: Option<KeyVersionId>,
    /// When.
    pub at: UnixMs,
}

/// Adds an event. Announce it once the transaction is through, not before.
pub fn add(
    tx: &Tx<'_>,
    root: &RootKey,
    kind: EventKind,
    version: Option<KeyVersionId>,
    at: UnixMs,
) -> Result<KeyEvent, StoreError> {
    let sql =
        "INSERT INTO key_events (instance, key, kind, version, at) VALUES (?1, ?2, ?3, ?4, ?5)";
    tx.prepare_cached(sql)?.execute(params![
        root.instance.to_string(),
        root.key.to_string(),
        kind.as_str(),
        version.map(|v| v.to_string()),
        at.0
    ])?;
    let id = tx.last_insert_rowid() as u64;
    Ok(KeyEvent { id, root: *root, kind, version, at })
}

/// Lets the numbers of later events begin beyond any that a database of which this one is a copy
/// may have given by `now`: beyond one for each microsecond of the calendar, or 2^32 from here on
/// where the clock is wrong.
pub fn renumber(tx: &Tx<'_>, now: UnixMs) -> Result<(), StoreError> {
    let sql = "SELECT seq FROM sqlite_sequence WHERE name = 'key_events'";
    let last: i64 = tx.query_row(sql, [], |row| row.get(0)).optional()?.unwrap_or(0);
    let next = last.saturating_add(1 << 32).max(now.0.saturating_mul(1000));
    tx.execute("DELETE FROM sqlite_sequence WHERE name = 'key_events'", [])?;
    tx.execute("INSERT INTO sqlite_sequence (name, seq) VALUES ('key_events', ?1)", [next])?;
    Ok(())
}

/// Number of the last event of a key; 0 if there was none.
pub fn last_of(tx: &Tx<'_>, root: &RootKey) -> Result<u64, StoreError> {
    let sql = "SELECT coalesce(max(id), 0) FROM key_events WHERE instance = ?1 AND key = ?2";
    let ids = [root.instance.to_string(), root.key.to_string()];
    let last: i64 = tx.prepare_cached(sql)?.query_row(ids, |row| row.get(0))?;
    Ok(last as u64)
}

/// The last event of a key: what happened, and when.
pub fn last(tx: &Tx<'_>, root: &RootKey) -> Result<Option<(EventKind, UnixMs)>, StoreError> {
    let sql = "SELECT kind, at FROM key_events WHERE instance = ?1 AND key = ?2
        ORDER BY id DESC LIMIT 1";
    let mut query = tx.prepare_cached(sql)?;
    let mut rows = query.query([root.instance.to_string(), root.key.to_string()])?;
    let Some(row) = rows.next()? else { return Ok(None) };
    Ok(Some((kind(&row.get::<_, String>(0)?)?, UnixMs(row.get(1)?))))
}

/// The event with this number.
pub fn get(tx: &Tx<'_>, number: u64) -> Result<Option<KeyEvent>, StoreError> {
    let Ok(number) = i64::try_from(number) else { return Ok(None) };
    let sql = "SELECT id, instance, key, kind, version, at FROM key_events WHERE id = ?1";
    let mut query = tx.prepare_cached(sql)?;
    let mut rows = query.query([number])?;
    rows.next()?.map(read).transpose()
}

/// Events after number `after`, oldest first, at most `limit`.
pub fn after(tx: &Tx<'_>, after: u64, limit: u32) -> Result<Vec<KeyEvent>, StoreError> {
    let sql = "SELECT id, instance, key, kind, version, at FROM key_events
               WHERE id > ?1 ORDER BY id LIMIT ?2";
    let mut query = tx.prepare_cached(sql)?;
    let mut rows = query.query(params![after as i64, limit])?;
    let mut out = Vec::new();
    while let Some(row) = rows.next()? {
        out.push(read(row)?);
    }
    Ok(out)
}

fn read(row: &Row<'_>) -> Result<KeyEvent, StoreError> {
    let version: Option<String> = row.get(4)?;
    Ok(KeyEvent {
        id: row.get::<_, i64>(0)? as u64,
        root: root(&row.get::<_, String>(1)?, &row.get::<_, String>(2)?)?,
        kind: kind(&row.get::<_, String>(3)?)?,
        version: version.map(|v| id(&v)).transpose()?,
        at: UnixMs(row.get(5)?),
    })
}

fn kind(name: &str) -> Result<EventKind, StoreError> {
    EventKind::ALL
        .into_iter()
        .find(|k| k.as_str() == name)
        .ok_or_else(|| StoreError::Damaged(format!("event kind {name:?}")))
}
