//! Keys, their versions and aliases.

use crate::{StoreError, Tx, access};
use claviger_domain::id::{InstanceId, KeyId, KeyVersionId, UnixMs};
use claviger_domain::key::{KeyState, RootKey};
use claviger_domain::life::Life;
use rusqlite::{OptionalExtension, Row, params};
use std::collections::BTreeMap;
use std::str::FromStr;

/// A key as it is stored. Its state may be overtaken by its expiry: see [`Key::life_at`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Key {
    /// Instance and id.
    pub root: RootKey,
    /// 2 to 90 characters, not unique.
    pub name: String,
    /// For people.
    pub description: Option<String>,
    /// Labels.
    pub tags: Vec<String>,
    /// Where it was in its life when it was last written.
    pub life: Life,
    /// A standard key: its payload can be read.
    pub extractable: bool,
    /// Its material came from outside.
    pub imported: bool,
    /// Its key ring.
    pub ring: String,
    /// When it was made.
    pub created: UnixMs,
    /// By whom.
    pub created_by: String,
    /// Last change; none on a fresh key.
    pub updated: Option<UnixMs>,
    /// Last rotation.
    pub rotated: Option<UnixMs>,
    /// When it stops wrapping.
    pub expires: Option<UnixMs>,
    /// When it was deleted.
    pub deleted: Option<UnixMs>,
    /// By whom.
    pub deleted_by: Option<String>,
    /// The last disable or delete.
    pub acted: Option<UnixMs>,
    /// The version that wraps; none for standard keys.
    pub current: Option<KeyVersionId>,
    /// Who wants it deleted, where two are needed: the IAM id, of a person or a service.
    pub set_by: Option<String>,
    /// Since when.
    pub set_at: Option<UnixMs>,
    /// The last time that its users were told its state on demand.
    pub synced: Option<UnixMs>,
}

impl Key {
    /// Where it is in its life at `now`: an active key whose expiration date has come is
    /// deactivated, whether or not that was written yet. A suspended one stays suspended until it
    /// is enabled.
    pub fn life_at(&self, now: UnixMs) -> Life {
        match (self.life, self.expires) {
            (Life::Active(active), Some(expires)) if expires <= now => active.expire().into(),
            (life, _) => life,
        }
    }

    /// Whether it is destroyed, and was deleted before `limit`.
    pub fn deleted_before(&self, limit: UnixMs) -> bool {
        self.life.state() == KeyState::Destroyed && self.deleted.is_some_and(|at| at < limit)
    }

    /// The state at `now`.
    pub fn state_at(&self, now: UnixMs) -> KeyState {
        self.life_at(now).state()
    }
}

/// A version of a root key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Version {
    /// Its identifier.
    pub id: KeyVersionId,
    /// 1 for the first.
    pub number: u32,
    /// When it was made.
    pub created: UnixMs,
}

const COLUMNS: &str = "instance, id, name, description, tags, state, extractable, imported, ring,
    created, created_by, updated, rotated, expires, deleted, deleted_by, acted, current,
    set_by, set_at, synced";

/// The key, if there is one.
pub fn get(tx: &Tx<'_>, root: &RootKey) -> Result<Option<Key>, StoreError> {
    let sql = format!("SELECT {COLUMNS} FROM keys WHERE instance = ?1 AND id = ?2");
    let mut query = tx.prepare_cached(&sql)?;
    let mut rows = query.query([root.instance.to_string(), root.key.to_string()])?;
    rows.next()?.map(read).transpose()
}

/// The key that an id or an alias names.
pub fn find(tx: &Tx<'_>, instance: InstanceId, name: &str) -> Result<Option<Key>, StoreError> {
    if let Ok(key) = name.parse() {
        return get(tx, &RootKey { instance, key });
    }
    // One statement, so that an alias which is not there costs no less than one that is.
    let sql = format!(
        "SELECT {COLUMNS} FROM keys WHERE instance = ?1 AND id =
            (SELECT key FROM aliases WHERE instance = ?1 AND alias = ?2)"
    );
    let mut query = tx.prepare_cached(&sql)?;
    let mut rows = query.query(params![instance.to_string(), name])?;
    rows.next()?.map(read).transpose()
}

/// Every key of an instance, by id. Bound: as many as an instance may have (see the server's
/// limits); without secrets.
pub fn all(tx: &Tx<'_>, instance: InstanceId) -> Result<Vec<Key>, StoreError> {
    let sql = format!("SELECT {COLUMNS} FROM keys WHERE instance = ?1 ORDER BY id");
    let mut query = tx.prepare_cached(&sql)?;
    let mut rows = query.query([instance.to_string()])?;
    let mut out = Vec::new();
    while let Some(row) = rows.next()? {
        out.push(read(row)?);
    }
    Ok(out)
}

/// The ring of each key of an instance that something is registered on.
pub fn rings_of_used(
    tx: &Tx<'_>,
    instance: InstanceId,
) -> Result<BTreeMap<KeyId, String>, StoreError> {
    let sql = "SELECT id, ring FROM keys k WHERE instance = ?1 AND EXISTS
        (SELECT 1 FROM registrations r WHERE r.instance = k.instance AND r.key = k.id)";
    let mut query = tx.prepare_cached(sql)?;
    let mut rows = query.query([instance.to_string()])?;
    let mut out = BTreeMap::new();
    while let Some(row) = rows.next()? {
        out.insert(id(&row.get::<_, String>(0)?)?, row.get(1)?);
    }
    Ok(out)
}

/// Number of keys of an instance, whatever their state.
pub fn count(tx: &Tx<'_>, instance: InstanceId) -> Result<u64, StoreError> {
    let sql = "SELECT count(*) FROM keys WHERE instance = ?1";
    let count: i64 = tx.prepare_cached(sql)?.query_row([instance.to_string()], |r| r.get(0))?;
    Ok(count as u64)
}

/// Adds a key. `payload` is the sealed payload of a standard key.
pub fn add(tx: &Tx<'_>, key: &Key, payload: Option<&[u8]>) -> Result<(), StoreError> {
    let sql = "INSERT INTO keys (instance, id, name, description, tags, state, extractable,
        imported, ring, created, created_by, updated, rotated, expires, deleted, deleted_by,
        acted, current, payload)
        VALUES (?1,?2,?3,?4,?5,?6,?7,?8,?9,?10,?11,?12,?13,?14,?15,?16,?17,?18,?19)";
    tx.prepare_cached(sql)?.execute(params![
        key.root.instance.to_string(),
        key.root.key.to_string(),
        key.name,
        key.description,
        serde_json::to_string(&key.tags).expect("strings are valid JSON"),
        key.life.state() as u8,
        key.extractable,
        key.imported,
        key.ring,
        key.created.0,
        key.created_by,
        key.updated.map(|t| t.0),
        key.rotated.map(|t| t.0),
        key.expires.map(|t| t.0),
        key.deleted.map(|t| t.0),
        key.deleted_by,
        key.acted.map(|t| t.0),
        key.current.map(|v| v.to_string()),
        payload,
    ])?;
    Ok(())
}

/// Writes what can change in a key: everything but its identity, origin and payload.
pub fn update(tx: &Tx<'_>, key: &Key) -> Result<(), StoreError> {
    let sql = "UPDATE keys SET name = ?3, description = ?4, tags = ?5, state = ?6, ring = ?7,
        updated = ?8, rotated = ?9, expires = ?10, deleted = ?11, deleted_by = ?12, acted = ?13,
        current = ?14, set_by = ?15, set_at = ?16, synced = ?17 WHERE instance = ?1 AND id = ?2";
    tx.prepare_cached(sql)?.execute(params![
        key.root.instance.to_string(),
        key.root.key.to_string(),
        key.name,
        key.description,
        serde_json::to_string(&key.tags).expect("strings are valid JSON"),
        key.life.state() as u8,
        key.ring,
        key.updated.map(|t| t.0),
        key.rotated.map(|t| t.0),
        key.expires.map(|t| t.0),
        key.deleted.map(|t| t.0),
        key.deleted_by,
        key.acted.map(|t| t.0),
        key.current.map(|v| v.to_string()),
        key.set_by,
        key.set_at.map(|t| t.0),
        key.synced.map(|t| t.0),
    ])?;
    Ok(())
}

/// The sealed payload of a standard key; none once it is shredded.
pub fn payload(tx: &Tx<'_>, root: &RootKey) -> Result<Option<Vec<u8>>, StoreError> {
    let sql = "SELECT payload FROM keys WHERE instance = ?1 AND id = ?2";
    let ids = [root.instance.to_string(), root.key.to_string()];
    Ok(tx.prepare_cached(sql)?.query_row(ids, |row| row.get(0)).optional()?.flatten())
}

/// Overwrites all material of a key with nothing. There is no way back; the log has it until
/// [`Store::settle`](crate::Store::settle).
pub fn shred(tx: &Tx<'_>, root: &RootKey) -> Result<(), StoreError> {
    let ids = [root.instance.to_string(), root.key.to_string()];
    tx.execute(
        "UPDATE key_versions SET material = NULL WHERE instance = ?1 AND key = ?2",
        ids.clone(),
    )?;
    tx.execute("UPDATE keys SET payload = NULL WHERE instance = ?1 AND id = ?2", ids)?;
    crate::unsettle(tx)
}

/// Keys deleted before `before` that still have material.
pub fn to_shred(tx: &Tx<'_>, before: UnixMs) -> Result<Vec<RootKey>, StoreError> {
    let sql = "SELECT instance, id FROM keys k WHERE state = 5 AND deleted < ?1
        AND (payload IS NOT NULL OR EXISTS (SELECT 1 FROM key_versions v
             WHERE v.instance = k.instance AND v.key = k.id AND material IS NOT NULL))
        LIMIT 100";
    roots(tx, sql, before)
}

/// Keys deleted before `before`, at most 100. One that a KMIP adapter names stays until the
/// adapter is gone: its material is not there any more.
pub fn to_purge(tx: &Tx<'_>, before: UnixMs) -> Result<Vec<RootKey>, StoreError> {
    let sql = "SELECT instance, id FROM keys k WHERE state = 5 AND deleted < ?1
        AND NOT EXISTS (SELECT 1 FROM kmip_adapters a
            WHERE a.instance = k.instance AND a.key = k.id)
        LIMIT 100";
    roots(tx, sql, before)
}

/// Whether a KMIP adapter names the key.
pub fn has_adapter(tx: &Tx<'_>, root: &RootKey) -> Result<bool, StoreError> {
    let sql = "SELECT 1 FROM kmip_adapters WHERE instance = ?1 AND key = ?2";
    Ok(tx.prepare_cached(sql)?.exists([root.instance.to_string(), root.key.to_string()])?)
}

/// Removes a key and everything that hangs on it; only audit records remain. There is no way
/// back.
pub fn purge(tx: &Tx<'_>, root: &RootKey) -> Result<(), StoreError> {
    // What refers to the key before the key itself.
    const OF_KEY: [&str; 9] = [
        "DELETE FROM event_answers WHERE instance = ?1 AND key = ?2",
        "DELETE FROM event_acks WHERE instance = ?1 AND key = ?2",
        "DELETE FROM key_events WHERE instance = ?1 AND key = ?2",
        "DELETE FROM registrations WHERE instance = ?1 AND key = ?2",
        "DELETE FROM key_policies WHERE instance = ?1 AND key = ?2",
        "DELETE FROM aliases WHERE instance = ?1 AND key = ?2",
        "DELETE FROM access_policies WHERE instance = ?1 AND key = ?2",
        "DELETE FROM key_versions WHERE instance = ?1 AND key = ?2",
        "DELETE FROM keys WHERE instance = ?1 AND id = ?2",
    ];
    let ids = [root.instance.to_string(), root.key.to_string()];
    for sql in OF_KEY {
        tx.execute(sql, ids.clone())?;
    }
    access::changed(tx)?;
    crate::unsettle(tx)
}

/// Keys that are active as written although their expiration date has come, at most 100.
pub fn to_expire(tx: &Tx<'_>, now: UnixMs) -> Result<Vec<RootKey>, StoreError> {
    let sql = "SELECT instance, id FROM keys WHERE state = 1
        AND expires IS NOT NULL AND expires <= ?1 LIMIT 100";
    roots(tx, sql, now)
}

/// The earliest expiration date of an active key.
pub fn next_expiry(tx: &Tx<'_>) -> Result<Option<UnixMs>, StoreError> {
    let sql = "SELECT min(expires) FROM keys WHERE state = 1
        AND expires IS NOT NULL";
    let next: Option<i64> = tx.prepare_cached(sql)?.query_row([], |row| row.get(0))?;
    Ok(next.map(UnixMs))
}

/// Adds a version with its sealed material; its number follows the highest.
pub fn add_version(
    tx: &Tx<'_>,
    root: &RootKey,
    version: KeyVersionId,
    material: &[u8],
    now: UnixMs,
) -> Result<(), StoreError> {
    let sql = "INSERT INTO key_versions (instance, key, id, number, created, material)
        SELECT ?1, ?2, ?3, 1 + coalesce(max(number), 0), ?4, ?5
        FROM key_versions WHERE instance = ?1 AND key = ?2";
    tx.prepare_cached(sql)?.execute(params![
        root.instance.to_string(),
        root.key.to_string(),
        version.to_string(),
        now.0,
        material
    ])?;
    Ok(())
}

/// The versions of a root key, newest first.
pub fn versions(tx: &Tx<'_>, root: &RootKey) -> Result<Vec<Version>, StoreError> {
    let sql = "SELECT id, number, created FROM key_versions
        WHERE instance = ?1 AND key = ?2 ORDER BY number DESC";
    let mut query = tx.prepare_cached(sql)?;
    let mut rows = query.query([root.instance.to_string(), root.key.to_string()])?;
    let mut out = Vec::new();
    while let Some(row) = rows.next()? {
        out.push(Version {
            id: id(&row.get::<_, String>(0)?)?,
            number: row.get(1)?,
            created: UnixMs(row.get(2)?),
        });
    }
    Ok(out)
}

/// One version of a root key.
pub fn version(
    tx: &Tx<'_>,
    root: &RootKey,
    version: KeyVersionId,
) -> Result<Option<Version>, StoreError> {
    let sql = "SELECT number, created FROM key_versions
        WHERE instance = ?1 AND key = ?2 AND id = ?3";
    let ids = [root.instance.to_string(), root.key.to_string(), version.to_string()];
    let row = tx
        .prepare_cached(sql)?
        .query_row(ids, |row| {
            Ok(Version { id: version, number: row.get(0)?, created: UnixMs(row.get(1)?) })
        })
        .optional()?;
    Ok(row)
}

/// The sealed material of a version; none if there is no such version or it is shredded.
pub fn material(
    tx: &Tx<'_>,
    root: &RootKey,
    version: KeyVersionId,
) -> Result<Option<Vec<u8>>, StoreError> {
    let sql = "SELECT material FROM key_versions WHERE instance = ?1 AND key = ?2 AND id = ?3";
    let ids = [root.instance.to_string(), root.key.to_string(), version.to_string()];
    Ok(tx.prepare_cached(sql)?.query_row(ids, |row| row.get(0)).optional()?.flatten())
}

/// Gives a key an alias. [`StoreError::is_taken`] if the instance has it already.
pub fn add_alias(
    tx: &Tx<'_>,
    root: &RootKey,
    alias: &str,
    created: UnixMs,
    created_by: &str,
) -> Result<(), StoreError> {
    let sql = "INSERT INTO aliases (instance, alias, key, created, created_by)
        VALUES (?1, ?2, ?3, ?4, ?5)";
    let (instance, key) = (root.instance.to_string(), root.key.to_string());
    tx.prepare_cached(sql)?.execute(params![instance, alias, key, created.0, created_by])?;
    Ok(())
}

/// Takes an alias from a key; whether the key had it.
pub fn remove_alias(tx: &Tx<'_>, root: &RootKey, alias: &str) -> Result<bool, StoreError> {
    let sql = "DELETE FROM aliases WHERE instance = ?1 AND key = ?2 AND alias = ?3";
    let row = params![root.instance.to_string(), root.key.to_string(), alias];
    Ok(tx.prepare_cached(sql)?.execute(row)? > 0)
}

/// The aliases of a key, sorted.
pub fn aliases(tx: &Tx<'_>, root: &RootKey) -> Result<Vec<String>, StoreError> {
    let sql = "SELECT alias FROM aliases WHERE instance = ?1 AND key = ?2 ORDER BY alias";
    let mut query = tx.prepare_cached(sql)?;
    let rows = query.query_map([root.instance.to_string(), root.key.to_string()], |r| r.get(0))?;
    Ok(rows.collect::<Result<_, _>>()?)
}

fn roots(tx: &Tx<'_>, sql: &str, at: UnixMs) -> Result<Vec<RootKey>, StoreError> {
    let mut query = tx.prepare_cached(sql)?;
    let mut rows = query.query([at.0])?;
    let mut out = Vec::new();
    while let Some(row) = rows.next()? {
        out.push(root(&row.get::<_, String>(0)?, &row.get::<_, String>(1)?)?);
    }
    Ok(out)
}

fn read(row: &Row<'_>) -> Result<Key, StoreError> {
    let state: u8 = row.get(5)?;
    let tags: String = row.get(4)?;
    let time = |at| row.get::<_, Option<i64>>(at).map(|t| t.map(UnixMs));
    Ok(Key {
        root: root(&row.get::<_, String>(0)?, &row.get::<_, String>(1)?)?,
        name: row.get(2)?,
        description: row.get(3)?,
        tags: serde_json::from_str(&tags)
            .map_err(|_| StoreError::Damaged("tags of a key".to_owned()))?,
        life: KeyState::from_number(state)
            .map(Life::stored)
            .ok_or_else(|| StoreError::Damaged(format!("key state {state}")))?,
        extractable: row.get(6)?,
        imported: row.get(7)?,
        ring: row.get(8)?,
        created: UnixMs(row.get(9)?),
        created_by: row.get(10)?,
        updated: time(11)?,
        rotated: time(12)?,
        expires: time(13)?,
        deleted: time(14)?,
        deleted_by: row.get(15)?,
        acted: time(16)?,
        current: opt_id(row.get(17)?)?,
        set_by: row.get(18)?,
        set_at: time(19)?,
        synced: time(20)?,
    })
}

/// An identifier out of a column.
pub(crate) fn id<T: FromStr>(text: &str) -> Result<T, StoreError> {
    text.parse().map_err(|_| StoreError::Damaged(format!("identifier {text:?}")))
}

pub(crate) fn opt_id<T: FromStr>(text: Option<String>) -> Result<Option<T>, StoreError> {
    text.map(|text| id(&text)).transpose()
}

pub(crate) fn root(instance: &str, key: &str) -> Result<RootKey, StoreError> {
    Ok(RootKey { instance: id(instance)?, key: id(key)? })
}
