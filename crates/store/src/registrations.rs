//! Which resource uses which key.

use crate::keys::{id, root};
use crate::{StoreError, Tx, answers};
use claviger_domain::id::{InstanceId, KeyVersionId, UnixMs};
use claviger_domain::key::RootKey;
use rusqlite::{Row, params};

/// A resource's use of a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Registration {
    /// The key.
    pub root: RootKey,
    /// The resource.
    pub crn: String,
    /// For people.
    pub description: Option<String>,
    /// The key cannot be deleted while this stands, not even by force.
    pub prevent: bool,
    /// The version that the resource uses.
    pub version: KeyVersionId,
    /// When it was made.
    pub created: UnixMs,
    /// By whom.
    pub created_by: String,
    /// Last change.
    pub updated: Option<UnixMs>,
    /// By whom.
    pub updated_by: Option<String>,
    /// Whatever the service notes for itself.
    pub metadata: Option<String>,
}

const COLUMNS: &str =
    "instance, key, crn, description, prevent, version, created, created_by, updated, updated_by,
     metadata";

/// Adds or replaces a registration.
pub fn put(tx: &Tx<'_>, r: &Registration) -> Result<(), StoreError> {
    let sql = "INSERT OR REPLACE INTO registrations (instance, key, crn, description, prevent,
        version, created, created_by, updated, updated_by, metadata)
        VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11)";
    tx.prepare_cached(sql)?.execute(params![
        r.root.instance.to_string(),
        r.root.key.to_string(),
        r.crn,
        r.description,
        r.prevent,
        r.version.to_string(),
        r.created.0,
        r.created_by,
        r.updated.map(|t| t.0),
        r.updated_by,
        r.metadata,
    ])?;
    Ok(())
}

/// One registration.
pub fn get(tx: &Tx<'_>, root: &RootKey, crn: &str) -> Result<Option<Registration>, StoreError> {
    let sql = format!(
        "SELECT {COLUMNS} FROM registrations WHERE instance = ?1 AND key = ?2 AND crn = ?3"
    );
    let mut query = tx.prepare_cached(&sql)?;
    let row = params![root.instance.to_string(), root.key.to_string(), crn];
    Ok(collect(query.query(row)?)?.pop())
}

/// The registrations of a key, by CRN.
pub fn of_key(tx: &Tx<'_>, root: &RootKey) -> Result<Vec<Registration>, StoreError> {
    let sql = format!(
        "SELECT {COLUMNS} FROM registrations WHERE instance = ?1 AND key = ?2 ORDER BY crn"
    );
    let mut query = tx.prepare_cached(&sql)?;
    collect(query.query([root.instance.to_string(), root.key.to_string()])?)
}

/// Hands over the registrations of all keys of an instance, one after the other, by key and CRN.
pub fn each_of_instance(
    tx: &Tx<'_>,
    instance: InstanceId,
    mut take: impl FnMut(Registration),
) -> Result<(), StoreError> {
    let sql = format!("SELECT {COLUMNS} FROM registrations WHERE instance = ?1 ORDER BY key, crn");
    let mut query = tx.prepare_cached(&sql)?;
    let mut rows = query.query([instance.to_string()])?;
    while let Some(row) = rows.next()? {
        take(read(row)?);
    }
    Ok(())
}

/// Number of registrations on the keys of an instance.
pub fn count(tx: &Tx<'_>, instance: InstanceId) -> Result<u64, StoreError> {
    let sql = "SELECT count(*) FROM registrations WHERE instance = ?1";
    let count: i64 = tx.prepare_cached(sql)?.query_row([instance.to_string()], |r| r.get(0))?;
    Ok(count as u64)
}

/// The keys that a resource is registered on.
pub fn roots_of(tx: &Tx<'_>, crn: &str) -> Result<Vec<RootKey>, StoreError> {
    let sql = format!("SELECT {COLUMNS} FROM registrations WHERE crn = ?1 ORDER BY instance, key");
    let mut query = tx.prepare_cached(&sql)?;
    Ok(collect(query.query([crn])?)?.into_iter().map(|r| r.root).collect())
}

/// Removes a registration, with what the resource answered to events; whether there was one.
pub fn remove(tx: &Tx<'_>, root: &RootKey, crn: &str) -> Result<bool, StoreError> {
    answers::remove(tx, root, crn)?;
    let sql = "DELETE FROM registrations WHERE instance = ?1 AND key = ?2 AND crn = ?3";
    let row = params![root.instance.to_string(), root.key.to_string(), crn];
    Ok(tx.prepare_cached(sql)?.execute(row)? > 0)
}

/// Removes all registrations of a key, with what the resources answered to events.
pub fn remove_all(tx: &Tx<'_>, root: &RootKey) -> Result<(), StoreError> {
    for registration in of_key(tx, root)? {
        remove(tx, root, &registration.crn)?;
    }
    Ok(())
}

fn collect(mut rows: rusqlite::Rows<'_>) -> Result<Vec<Registration>, StoreError> {
    let mut out = Vec::new();
    while let Some(row) = rows.next()? {
        out.push(read(row)?);
    }
    Ok(out)
}

fn read(row: &Row<'_>) -> Result<Registration, StoreError> {
    Ok(Registration {
        root: root(&row.get::<_, String>(0)?, &row.get::<_, String>(1)?)?,
        crn: row.get(2)?,
        description: row.get(3)?,
        prevent: row.get(4)?,
        version: id(&row.get::<_, String>(5)?)?,
        created: UnixMs(row.get(6)?),
        created_by: row.get(7)?,
        updated: row.get::<_, Option<i64>>(8)?.map(UnixMs),
        updated_by: row.get(9)?,
        metadata: row.get(10)?,
    })
}
