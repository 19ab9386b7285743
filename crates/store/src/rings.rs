//! Key rings. `default` is in every instance and has no row.

use crate::{StoreError, Tx, access};
use claviger_domain::id::{InstanceId, UnixMs};
use rusqlite::{OptionalExtension, params};

/// The ring that is in every instance.
pub const DEFAULT: &str = "default";

/// A key ring other than [`DEFAULT`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ring {
    /// Its name, unique in the instance.
    pub id: String,
    /// When it was made.
    pub created: UnixMs,
    /// By whom.
    pub created_by: String,
}

/// How many keys a ring holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Holds {
    /// Keys that are not destroyed.
    pub live: u64,
    /// Destroyed keys that are not purged.
    pub destroyed: u64,
}

/// Adds a ring. [`StoreError::is_taken`] if the instance has it already.
pub fn add(tx: &Tx<'_>, instance: InstanceId, ring: &Ring) -> Result<(), StoreError> {
    let sql = "INSERT INTO key_rings (instance, id, created, created_by) VALUES (?1, ?2, ?3, ?4)";
    let row = params![instance.to_string(), ring.id, ring.created.0, ring.created_by];
    tx.prepare_cached(sql)?.execute(row)?;
    Ok(())
}

/// The rings of an instance, by name, without [`DEFAULT`].
pub fn all(tx: &Tx<'_>, instance: InstanceId) -> Result<Vec<Ring>, StoreError> {
    let sql = "SELECT id, created, created_by FROM key_rings WHERE instance = ?1 ORDER BY id";
    let mut query = tx.prepare_cached(sql)?;
    let rows = query.query_map([instance.to_string()], |row| {
        Ok(Ring { id: row.get(0)?, created: UnixMs(row.get(1)?), created_by: row.get(2)? })
    })?;
    Ok(rows.collect::<Result<_, _>>()?)
}

/// Whether the instance has this ring.
pub fn exists(tx: &Tx<'_>, instance: InstanceId, ring: &str) -> Result<bool, StoreError> {
    if ring == DEFAULT {
        return Ok(true);
    }
    let sql = "SELECT 1 FROM key_rings WHERE instance = ?1 AND id = ?2";
    let row = params![instance.to_string(), ring];
    let found = tx.prepare_cached(sql)?.query_row(row, |row| row.get::<_, i64>(0)).optional()?;
    Ok(found.is_some())
}

/// How many keys a ring holds.
pub fn holds(tx: &Tx<'_>, instance: InstanceId, ring: &str) -> Result<Holds, StoreError> {
    let sql = "SELECT count(*) FILTER (WHERE state <> 5), count(*) FILTER (WHERE state = 5)
        FROM keys WHERE instance = ?1 AND ring = ?2";
    let row = params![instance.to_string(), ring];
    let (live, destroyed): (i64, i64) =
        tx.prepare_cached(sql)?.query_row(row, |row| Ok((row.get(0)?, row.get(1)?)))?;
    Ok(Holds { live: live as u64, destroyed: destroyed as u64 })
}

/// Removes a ring with the roles on it, which are not to count for a later ring of its name; the
/// keys that it holds go to [`DEFAULT`]. Whether there was one.
pub fn remove(tx: &Tx<'_>, instance: InstanceId, ring: &str) -> Result<bool, StoreError> {
    let row = params![instance.to_string(), ring];
    let sql = "DELETE FROM key_rings WHERE instance = ?1 AND id = ?2";
    if tx.prepare_cached(sql)?.execute(row)? == 0 {
        return Ok(false);
    }
    let sql = "DELETE FROM access_policies WHERE instance = ?1 AND ring = ?2";
    tx.prepare_cached(sql)?.execute(row)?;
    access::changed(tx)?;
    let sql = "UPDATE keys SET ring = ?3 WHERE instance = ?1 AND ring = ?2";
    tx.prepare_cached(sql)?.execute(params![instance.to_string(), ring, DEFAULT])?;
    Ok(true)
}
