//! Who there is, their API keys and what they may do.

use crate::access::{self, Stamp, Stored};
use crate::keys::{id, opt_id};
use crate::{StoreError, Tx};
use claviger_domain::access::{PlatformRole, Scope, ServiceRole};
use claviger_domain::id::{InstanceId, PolicyId, UnixMs};
use claviger_domain::policy::{Policy, Role, Subject, Target};
use rusqlite::{OptionalExtension, params};
use uuid::Uuid;

/// Someone or something that can hold roles.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Principal {
    /// For instance `IBMid-…` or `iam-ServiceId-…`.
    pub iam_id: String,
    /// A service, not a person.
    pub service: bool,
    /// For people.
    pub name: String,
    /// May be empty for services.
    pub email: String,
}

/// One role of a principal, where it needs no more than that.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Grant {
    /// A service role.
    Service {
        /// The role.
        role: ServiceRole,
        /// Where it counts.
        scope: Scope,
    },
    /// A platform role on everything.
    Platform(PlatformRole),
}

/// Adds a principal.
pub fn add_principal(tx: &Tx<'_>, p: &Principal, now: UnixMs) -> Result<(), StoreError> {
    let sql =
        "INSERT INTO principals (iam_id, kind, name, email, created) VALUES (?1, ?2, ?3, ?4, ?5)";
    let kind = if p.service { "service" } else { "user" };
    tx.prepare_cached(sql)?.execute(params![p.iam_id, kind, p.name, p.email, now.0])?;
    access::changed(tx)
}

/// A principal with what administrators see of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// Who it is.
    pub principal: Principal,
    /// For people; may be empty.
    pub description: String,
    /// The person that a service stands for.
    pub owner: Option<String>,
    /// Starts at 1, rises with each change.
    pub version: u64,
    /// When it was made.
    pub created: UnixMs,
    /// When it was changed last.
    pub updated: UnixMs,
}

const IDENTITY: &str =
    "iam_id, kind, name, email, description, owner, version, created, coalesce(updated, created)";

/// One principal with what administrators see of it.
pub fn identity(tx: &Tx<'_>, iam_id: &str) -> Result<Option<Identity>, StoreError> {
    let sql = format!("SELECT {IDENTITY} FROM principals WHERE iam_id = ?1");
    Ok(tx.prepare_cached(&sql)?.query_row([iam_id], read_identity).optional()?)
}

/// Every person, or every service, by name. Bound: as many as the server lets be made.
pub fn identities(tx: &Tx<'_>, service: bool) -> Result<Vec<Identity>, StoreError> {
    let sql = format!("SELECT {IDENTITY} FROM principals WHERE kind = ?1 ORDER BY name, iam_id");
    let kind = if service { "service" } else { "user" };
    let mut query = tx.prepare_cached(&sql)?;
    let rows = query.query_map([kind], read_identity)?;
    Ok(rows.collect::<Result<_, _>>()?)
}

/// Changes name and description; the version rises.
pub fn describe(
    tx: &Tx<'_>,
    iam_id: &str,
    name: &str,
    description: &str,
    now: UnixMs,
) -> Result<(), StoreError> {
    let sql = "UPDATE principals
               SET name = ?2, description = ?3, version = version + 1, updated = ?4
               WHERE iam_id = ?1";
    tx.prepare_cached(sql)?.execute(params![iam_id, name, description, now.0])?;
    access::changed(tx)
}

/// Gives a principal that was just made a description.
pub fn describe_new(tx: &Tx<'_>, iam_id: &str, description: &str) -> Result<(), StoreError> {
    let sql = "UPDATE principals SET description = ?2 WHERE iam_id = ?1";
    tx.prepare_cached(sql)?.execute([iam_id, description])?;
    Ok(())
}

/// Number of services that stand for a person.
pub fn owned_by(tx: &Tx<'_>, iam_id: &str) -> Result<u64, StoreError> {
    let mut query = tx.prepare_cached("SELECT count(*) FROM principals WHERE owner = ?1")?;
    Ok(query.query_row([iam_id], |row| row.get::<_, i64>(0))? as u64)
}

/// Removes a principal with its API keys, its places in groups and the policies about it; whether
/// there was one.
pub fn remove_principal(tx: &Tx<'_>, iam_id: &str) -> Result<bool, StoreError> {
    access::remove_about(tx, &Subject::Principal(iam_id.to_owned()))?;
    for table in ["api_keys", "access_group_members", "trusted_subjects", "login_subjects"] {
        tx.execute(&format!("DELETE FROM {table} WHERE iam_id = ?1"), [iam_id])?;
    }
    Ok(tx.execute("DELETE FROM principals WHERE iam_id = ?1", [iam_id])? > 0)
}

/// The principal with this IAM id.
pub fn principal(tx: &Tx<'_>, iam_id: &str) -> Result<Option<Principal>, StoreError> {
    let sql = "SELECT iam_id, kind, name, email FROM principals WHERE iam_id = ?1";
    let row = tx.prepare_cached(sql)?.query_row([iam_id], read_principal).optional()?;
    Ok(row)
}

/// Says for which person a service stands.
pub fn set_owner(tx: &Tx<'_>, iam_id: &str, owner: &str) -> Result<(), StoreError> {
    let sql = "UPDATE principals SET owner = ?2 WHERE iam_id = ?1";
    tx.prepare_cached(sql)?.execute([iam_id, owner])?;
    Ok(())
}

/// Number of principals.
pub fn count_principals(tx: &Tx<'_>) -> Result<u64, StoreError> {
    let mut query = tx.prepare_cached("SELECT count(*) FROM principals")?;
    Ok(query.query_row([], |row| row.get::<_, i64>(0))? as u64)
}

/// What is known of an API key. The key itself is nowhere.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ApiKey {
    /// Its identifier.
    pub id: Uuid,
    /// Whose it is.
    pub iam_id: String,
    /// For people.
    pub name: String,
    /// For people; may be empty.
    pub description: String,
    /// Starts at 1, rises with each change.
    pub version: u64,
    /// When it was made.
    pub created: UnixMs,
    /// By whom; empty if that was not noted yet.
    pub created_by: String,
    /// The API key by whose token it was made, there or gone; none if it was none.
    pub created_with: Option<Uuid>,
    /// When it was changed last.
    pub updated: UnixMs,
}

impl ApiKey {
    /// A new one of `iam_id`, made by `by`.
    pub fn new(iam_id: &str, name: &str, by: &str, now: UnixMs) -> ApiKey {
        ApiKey {
            id: Uuid::new_v4(),
            iam_id: iam_id.to_owned(),
            name: name.to_owned(),
            description: String::new(),
            version: 1,
            created: now,
            created_by: by.to_owned(),
            created_with: None,
            updated: now,
        }
    }
}

const API_KEY: &str = "k.id, k.iam_id, k.name, k.description, k.version, k.created, k.created_by, \
                       coalesce(k.updated, k.created), k.created_with";

/// Adds an API key by its MAC.
pub fn add_api_key(tx: &Tx<'_>, key: &ApiKey, mac: &[u8; 32]) -> Result<(), StoreError> {
    let sql = "INSERT INTO api_keys
                   (id, iam_id, name, description, version, mac, created, created_by, created_with)
               VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)";
    tx.prepare_cached(sql)?.execute(params![
        key.id.to_string(),
        key.iam_id,
        key.name,
        key.description,
        key.version as i64,
        mac,
        key.created.0,
        key.created_by,
        key.created_with.map(|with| with.to_string()),
    ])?;
    access::changed(tx)
}

/// Changes name and description; the version rises.
pub fn describe_api_key(
    tx: &Tx<'_>,
    key: Uuid,
    name: &str,
    description: &str,
    now: UnixMs,
) -> Result<(), StoreError> {
    let sql = "UPDATE api_keys
               SET name = ?2, description = ?3, version = version + 1, updated = ?4
               WHERE id = ?1";
    tx.prepare_cached(sql)?.execute(params![key.to_string(), name, description, now.0])?;
    Ok(())
}

/// What is known of one API key.
pub fn api_key(tx: &Tx<'_>, key: Uuid) -> Result<Option<ApiKey>, StoreError> {
    let sql = format!("SELECT {API_KEY} FROM api_keys k WHERE k.id = ?1");
    let mut query = tx.prepare_cached(&sql)?;
    let mut rows = query.query([key.to_string()])?;
    rows.next()?.map(read_api_key).transpose()
}

/// The API keys of a principal, oldest first.
pub fn api_keys(tx: &Tx<'_>, iam_id: &str) -> Result<Vec<ApiKey>, StoreError> {
    let sql =
        format!("SELECT {API_KEY} FROM api_keys k WHERE k.iam_id = ?1 ORDER BY k.created, k.id");
    let mut query = tx.prepare_cached(&sql)?;
    let mut rows = query.query([iam_id])?;
    let mut out = Vec::new();
    while let Some(row) = rows.next()? {
        out.push(read_api_key(row)?);
    }
    Ok(out)
}

/// The API keys that were made by tokens of this one, or of one that it made, and so on.
pub fn made_with(tx: &Tx<'_>, key: Uuid) -> Result<Vec<ApiKey>, StoreError> {
    let sql = format!(
        "WITH RECURSIVE made (id) AS (
             SELECT id FROM api_keys WHERE created_with = ?1
             UNION SELECT k.id FROM api_keys k JOIN made ON k.created_with = made.id)
         SELECT {API_KEY} FROM api_keys k JOIN made ON made.id = k.id ORDER BY k.created, k.id"
    );
    let mut query = tx.prepare_cached(&sql)?;
    let mut rows = query.query([key.to_string()])?;
    let mut out = Vec::new();
    while let Some(row) = rows.next()? {
        out.push(read_api_key(row)?);
    }
    Ok(out)
}

/// Removes an API key; whether there was one. What it made counts from then on as made by what made
/// it, if that is known.
pub fn remove_api_key(tx: &Tx<'_>, key: Uuid) -> Result<bool, StoreError> {
    let sql = "UPDATE api_keys SET created_with =
                   coalesce((SELECT created_with FROM api_keys WHERE id = ?1), created_with)
               WHERE created_with = ?1";
    tx.prepare_cached(sql)?.execute([key.to_string()])?;
    let gone =
        tx.prepare_cached("DELETE FROM api_keys WHERE id = ?1")?.execute([key.to_string()])? > 0;
    access::changed(tx)?;
    Ok(gone)
}

/// The API key with this MAC, its MAC, and whose it is. The MAC is keyed by a secret, so a look-up
/// by index tells a prober nothing about the keys that exist.
pub fn by_api_key(
    tx: &Tx<'_>,
    mac: &[u8; 32],
) -> Result<Option<(Principal, Uuid, [u8; 32])>, StoreError> {
    let sql = "SELECT p.iam_id, p.kind, p.name, p.email, k.id, k.mac
               FROM api_keys k JOIN principals p ON p.iam_id = k.iam_id WHERE k.mac = ?1";
    let mut query = tx.prepare_cached(sql)?;
    let mut rows = query.query([mac.as_slice()])?;
    let Some(row) = rows.next()? else { return Ok(None) };
    Ok(Some((read_principal(row)?, id(&row.get::<_, String>(4)?)?, row.get(5)?)))
}

/// Gives a principal a role: adds a policy about it alone.
pub fn add_grant(
    tx: &Tx<'_>,
    iam_id: &str,
    grant: &Grant,
    by: &str,
    now: UnixMs,
) -> Result<PolicyId, StoreError> {
    let (role, target) = match grant {
        Grant::Service { role, scope } => (Role::Service(*role), Target::Keys(scope.clone())),
        Grant::Platform(role) => (Role::Platform(*role), Target::Account),
    };
    let (id, subject) = (PolicyId::random(), Subject::Principal(iam_id.to_owned()));
    let policy = Policy::new(id, subject, vec![role], target)
        .expect("one role of the kind that its target has");
    access::add(tx, &Stored { policy, stamp: Stamp::new(by, now) })?;
    Ok(id)
}

/// An instance of the key service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Instance {
    /// Its identifier.
    pub id: InstanceId,
    /// Its name.
    pub name: String,
    /// Its region.
    pub region: String,
    /// When it was made.
    pub created: UnixMs,
}

/// Adds a resource group.
pub fn add_resource_group(
    tx: &Tx<'_>,
    group: Uuid,
    name: &str,
    now: UnixMs,
) -> Result<(), StoreError> {
    let sql = "INSERT INTO resource_groups (id, name, created) VALUES (?1, ?2, ?3)";
    tx.prepare_cached(sql)?.execute(params![group.to_string(), name, now.0])?;
    Ok(())
}

/// Adds an instance to a resource group.
pub fn add_instance(tx: &Tx<'_>, instance: &Instance, group: Uuid) -> Result<(), StoreError> {
    let sql = "INSERT INTO instances (id, name, region, resource_group, created)
               VALUES (?1, ?2, ?3, ?4, ?5)";
    tx.prepare_cached(sql)?.execute(params![
        instance.id.to_string(),
        instance.name,
        instance.region,
        group.to_string(),
        instance.created.0
    ])?;
    Ok(())
}

/// Every instance, by name.
pub fn instances(tx: &Tx<'_>) -> Result<Vec<Instance>, StoreError> {
    let sql = "SELECT id, name, region, created FROM instances ORDER BY name";
    let mut query = tx.prepare_cached(sql)?;
    let mut rows = query.query([])?;
    let mut out = Vec::new();
    while let Some(row) = rows.next()? {
        out.push(Instance {
            id: id(&row.get::<_, String>(0)?)?,
            name: row.get(1)?,
            region: row.get(2)?,
            created: UnixMs(row.get(3)?),
        });
    }
    Ok(out)
}

/// Whether there is such an instance.
pub fn has_instance(tx: &Tx<'_>, instance: InstanceId) -> Result<bool, StoreError> {
    let sql = "SELECT 1 FROM instances WHERE id = ?1";
    Ok(tx.prepare_cached(sql)?.exists([instance.to_string()])?)
}

fn read_identity(row: &rusqlite::Row<'_>) -> Result<Identity, rusqlite::Error> {
    Ok(Identity {
        principal: read_principal(row)?,
        description: row.get(4)?,
        owner: row.get(5)?,
        version: row.get::<_, i64>(6)? as u64,
        created: UnixMs(row.get(7)?),
        updated: UnixMs(row.get(8)?),
    })
}

fn read_api_key(row: &rusqlite::Row<'_>) -> Result<ApiKey, StoreError> {
    Ok(ApiKey {
        id: id(&row.get::<_, String>(0)?)?,
        iam_id: row.get(1)?,
        name: row.get(2)?,
        description: row.get(3)?,
        version: row.get::<_, i64>(4)? as u64,
        created: UnixMs(row.get(5)?),
        created_by: row.get(6)?,
        updated: UnixMs(row.get(7)?),
        created_with: opt_id(row.get(8)?)?,
    })
}

fn read_principal(row: &rusqlite::Row<'_>) -> Result<Principal, rusqlite::Error> {
    Ok(Principal {
        iam_id: row.get(0)?,
        service: row.get::<_, String>(1)? == "service",
        name: row.get(2)?,
        email: row.get(3)?,
    })
}
