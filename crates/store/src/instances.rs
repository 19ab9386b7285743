//! Instances of the key service and their resource groups, as the Resource Controller shows them.

use crate::keys::id;
use crate::{StoreError, Tx, access, meta};
use claviger_domain::id::{InstanceId, UnixMs};
use rusqlite::{OptionalExtension, Row, params};
use uuid::Uuid;

/// An instance with its place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Placed {
    /// Its identifier.
    pub id: InstanceId,
    /// Its name; no other instance has it.
    pub name: String,
    /// The region that it was asked for.
    pub region: String,
    /// Its resource group.
    pub group: Uuid,
    /// When it was made.
    pub created: UnixMs,
    /// By whom; none if it was there from the first start.
    pub created_by: Option<String>,
}

/// A resource group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Group {
    /// Its identifier.
    pub id: Uuid,
    /// Its name.
    pub name: String,
    /// When it was made.
    pub created: UnixMs,
}

/// What of an instance is in use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct InUse {
    /// Keys that are not destroyed.
    pub keys: u64,
    /// Registrations on its keys.
    pub registrations: u64,
}

const COLUMNS: &str = "id, name, region, resource_group, created";

/// The instance, if there is one.
pub fn get(tx: &Tx<'_>, instance: InstanceId) -> Result<Option<Placed>, StoreError> {
    let sql = format!("SELECT {COLUMNS} FROM instances WHERE id = ?1");
    let mut query = tx.prepare_cached(&sql)?;
    let mut rows = query.query([instance.to_string()])?;
    rows.next()?.map(|row| read(tx, row)).transpose()
}

/// Every instance, by id. Bound: as many as the server lets be made.
pub fn all(tx: &Tx<'_>) -> Result<Vec<Placed>, StoreError> {
    let sql = format!("SELECT {COLUMNS} FROM instances ORDER BY id");
    let mut query = tx.prepare_cached(&sql)?;
    let mut rows = query.query([])?;
    let mut out = Vec::new();
    while let Some(row) = rows.next()? {
        out.push(read(tx, row)?);
    }
    Ok(out)
}

/// Number of instances.
pub fn count(tx: &Tx<'_>) -> Result<u64, StoreError> {
    let mut query = tx.prepare_cached("SELECT count(*) FROM instances")?;
    Ok(query.query_row([], |row| row.get::<_, i64>(0))? as u64)
}

/// Adds an instance. [`StoreError::is_taken`] if another has its name.
pub fn add(tx: &Tx<'_>, new: &Placed) -> Result<(), StoreError> {
    let sql = "INSERT INTO instances (id, name, region, resource_group, created)
               VALUES (?1, ?2, ?3, ?4, ?5)";
    tx.prepare_cached(sql)?.execute(params![
        new.id.to_string(),
        new.name,
        new.region,
        new.group.to_string(),
        new.created.0
    ])?;
    match &new.created_by {
        Some(by) => meta::put(tx, &maker(new.id), by.as_bytes()),
        None => Ok(()),
    }
}

/// Gives an instance another name. [`StoreError::is_taken`] if another has it.
pub fn rename(tx: &Tx<'_>, instance: InstanceId, name: &str) -> Result<(), StoreError> {
    let sql = "UPDATE instances SET name = ?2 WHERE id = ?1";
    tx.prepare_cached(sql)?.execute(params![instance.to_string(), name])?;
    Ok(())
}

/// What keeps an instance from being removed.
pub fn in_use(tx: &Tx<'_>, instance: InstanceId) -> Result<InUse, StoreError> {
    let count = |sql: &str| -> Result<u64, StoreError> {
        let mut query = tx.prepare_cached(sql)?;
        Ok(query.query_row([instance.to_string()], |row| row.get::<_, i64>(0))? as u64)
    };
    Ok(InUse {
        keys: count("SELECT count(*) FROM keys WHERE instance = ?1 AND state <> 5")?,
        registrations: count("SELECT count(*) FROM registrations WHERE instance = ?1")?,
    })
}

/// Tables with rows of an instance, each before those that it refers to.
const TABLES: [&str; 14] = [
    "event_acks",
    "event_answers",
    "key_events",
    "registrations",
    "aliases",
    "key_policies",
    "kmip_certificates",
    "kmip_adapters",
    "key_versions",
    "keys",
    "instance_policies",
    "key_rings",
    "import_tokens",
    "access_policies",
];

/// Removes an instance with all that hangs on it, its keys' material too. There is no way back; the
/// log has it until [`Store::settle`](crate::Store::settle).
pub fn remove(tx: &Tx<'_>, instance: InstanceId) -> Result<(), StoreError> {
    let guid = instance.to_string();
    for table in TABLES {
        tx.execute(&format!("DELETE FROM {table} WHERE instance = ?1"), [&guid])?;
    }
    tx.execute("DELETE FROM meta WHERE name = ?1", [maker(instance)])?;
    tx.execute("DELETE FROM instances WHERE id = ?1", [&guid])?;
    access::changed(tx)?;
    crate::unsettle(tx)
}

/// Every resource group, by name.
pub fn groups(tx: &Tx<'_>) -> Result<Vec<Group>, StoreError> {
    let mut query =
        tx.prepare_cached("SELECT id, name, created FROM resource_groups ORDER BY name")?;
    let mut rows = query.query([])?;
    let mut out = Vec::new();
    while let Some(row) = rows.next()? {
        out.push(Group {
            id: id(&row.get::<_, String>(0)?)?,
            name: row.get(1)?,
            created: UnixMs(row.get(2)?),
        });
    }
    Ok(out)
}

/// The resource group that an id or a name names.
pub fn group(tx: &Tx<'_>, id_or_name: &str) -> Result<Option<Group>, StoreError> {
    let sql = "SELECT id, name, created FROM resource_groups WHERE id = ?1 OR name = ?2";
    let plain = Uuid::parse_str(id_or_name).map(|id| id.to_string()).unwrap_or_default();
    let row = tx
        .prepare_cached(sql)?
        .query_row(params![plain, id_or_name], |row| {
            Ok((row.get::<_, String>(0)?, row.get(1)?, row.get(2)?))
        })
        .optional()?;
    row.map(|(text, name, created)| Ok(Group { id: id(&text)?, name, created: UnixMs(created) }))
        .transpose()
}

/// Where the one who made an instance is kept.
fn maker(instance: InstanceId) -> String {
    format!("instance-created-by/{instance}")
}

fn read(tx: &Tx<'_>, row: &Row<'_>) -> Result<Placed, StoreError> {
    let instance: InstanceId = id(&row.get::<_, String>(0)?)?;
    let by = meta::get(tx, &maker(instance))?;
    Ok(Placed {
        id: instance,
        name: row.get(1)?,
        region: row.get(2)?,
        group: id(&row.get::<_, String>(3)?)?,
        created: UnixMs(row.get(4)?),
        created_by: by.and_then(|bytes| String::from_utf8(bytes).ok()),
    })
}
