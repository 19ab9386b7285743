//! Who there is, their API keys and what they may do.

use crate::keys::{id, root};
use crate::{StoreError, Tx};
use claviger_domain::access::{PlatformRole, Scope, ServiceRole};
use claviger_domain::id::{InstanceId, UnixMs};
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

/// One thing that a principal may do.
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
    Ok(())
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

/// Adds an API key by its MAC.
pub fn add_api_key(
    tx: &Tx<'_>,
    iam_id: &str,
    name: &str,
    mac: &[u8; 32],
    now: UnixMs,
) -> Result<Uuid, StoreError> {
    let sql = "INSERT INTO api_keys (id, iam_id, name, mac, created) VALUES (?1, ?2, ?3, ?4, ?5)";
    let id = Uuid::new_v4();
    tx.prepare_cached(sql)?.execute(params![id.to_string(), iam_id, name, mac, now.0])?;
    Ok(id)
}

/// Whose API key has this MAC. The MAC is keyed by a secret, so a look-up by index tells a
/// prober nothing about the keys that exist.
pub fn by_api_key(
    tx: &Tx<'_>,
    mac: &[u8; 32],
) -> Result<Option<(Principal, [u8; 32])>, StoreError> {
    let sql = "SELECT p.iam_id, p.kind, p.name, p.email, k.mac
               FROM api_keys k JOIN principals p ON p.iam_id = k.iam_id WHERE k.mac = ?1";
    let row = tx
        .prepare_cached(sql)?
        .query_row([mac.as_slice()], |row| Ok((read_principal(row)?, row.get(4)?)))
        .optional()?;
    Ok(row)
}

/// Adds a grant.
pub fn add_grant(tx: &Tx<'_>, iam_id: &str, grant: &Grant) -> Result<(), StoreError> {
    let (kind, role) = match grant {
        Grant::Service { role, .. } => ("service", service_name(*role)),
        Grant::Platform(role) => ("platform", platform_name(*role)),
    };
    let (instance, ring, key) = match grant {
        Grant::Platform(_) | Grant::Service { scope: Scope::Everywhere, .. } => (None, None, None),
        Grant::Service { scope: Scope::Instance(instance), .. } => (Some(*instance), None, None),
        Grant::Service { scope: Scope::Ring(instance, ring), .. } => {
            (Some(*instance), Some(ring), None)
        }
        Grant::Service { scope: Scope::Key(root), .. } => {
            (Some(root.instance), None, Some(root.key))
        }
    };
    let sql = "INSERT INTO grants (iam_id, scope, role, instance, ring, key)
        VALUES (?1, ?2, ?3, ?4, ?5, ?6)";
    tx.prepare_cached(sql)?.execute(params![
        iam_id,
        kind,
        role,
        instance.map(|i| i.to_string()),
        ring,
        key.map(|k| k.to_string())
    ])?;
    Ok(())
}

/// Everything that a principal may do.
pub fn grants_of(tx: &Tx<'_>, iam_id: &str) -> Result<Vec<Grant>, StoreError> {
    let sql = "SELECT scope, role, instance, ring, key FROM grants WHERE iam_id = ?1";
    let mut query = tx.prepare_cached(sql)?;
    let mut rows = query.query([iam_id])?;
    let mut out = Vec::new();
    while let Some(row) = rows.next()? {
        let (kind, role): (String, String) = (row.get(0)?, row.get(1)?);
        let damaged = || StoreError::Damaged(format!("role {role:?}"));
        out.push(if kind == "platform" {
            let known = PLATFORM.into_iter().find(|r| platform_name(*r) == role);
            Grant::Platform(known.ok_or_else(damaged)?)
        } else {
            let known = ServiceRole::ALL.into_iter().find(|r| service_name(*r) == role);
            let (instance, ring, key): (Option<String>, Option<String>, Option<String>) =
                (row.get(2)?, row.get(3)?, row.get(4)?);
            let scope = match (instance, ring, key) {
                (None, None, None) => Scope::Everywhere,
                (Some(instance), None, None) => Scope::Instance(id(&instance)?),
                (Some(instance), Some(ring), None) => Scope::Ring(id(&instance)?, ring),
                (Some(instance), None, Some(key)) => Scope::Key(root(&instance, &key)?),
                _ => return Err(StoreError::Damaged("the scope of a role".to_owned())),
            };
            Grant::Service { role: known.ok_or_else(damaged)?, scope }
        });
    }
    Ok(out)
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

fn read_principal(row: &rusqlite::Row<'_>) -> Result<Principal, rusqlite::Error> {
    Ok(Principal {
        iam_id: row.get(0)?,
        service: row.get::<_, String>(1)? == "service",
        name: row.get(2)?,
        email: row.get(3)?,
    })
}

const PLATFORM: [PlatformRole; 4] = [
    PlatformRole::Viewer,
    PlatformRole::Operator,
    PlatformRole::Editor,
    PlatformRole::Administrator,
];

fn service_name(role: ServiceRole) -> &'static str {
    match role {
        ServiceRole::Reader => "Reader",
        ServiceRole::ReaderPlus => "ReaderPlus",
        ServiceRole::Writer => "Writer",
        ServiceRole::Manager => "Manager",
        ServiceRole::KeyPurge => "KeyPurge",
        ServiceRole::KmipAdapterManager => "KmipAdapterManager",
    }
}

fn platform_name(role: PlatformRole) -> &'static str {
    match role {
        PlatformRole::Viewer => "Viewer",
        PlatformRole::Operator => "Operator",
        PlatformRole::Editor => "Editor",
        PlatformRole::Administrator => "Administrator",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Store;
    use claviger_domain::id::KeyId;
    use claviger_domain::key::RootKey;

    #[test]
    fn grants_are_read_as_they_were_added() {
        let dir = tempfile::tempdir().expect("dir");
        let store = Store::open(&dir.path().join("claviger.db")).expect("opens");
        let (instance, key) = (InstanceId::random(), KeyId::random());
        let on = |scope| Grant::Service { role: ServiceRole::Writer, scope };
        let grants = [
            on(Scope::Everywhere),
            on(Scope::Instance(instance)),
            on(Scope::Ring(instance, "payments".to_owned())),
            on(Scope::Key(RootKey { instance, key })),
            Grant::Platform(PlatformRole::Viewer),
        ];
        let read = store.tx("t", |tx| {
            let group = Uuid::new_v4();
            add_resource_group(tx, group, "g", UnixMs(0))?;
            let (name, region) = ("i".to_owned(), "local".to_owned());
            add_instance(tx, &Instance { id: instance, name, region, created: UnixMs(0) }, group)?;
            let (iam_id, name) = ("IBMid-1".to_owned(), "n".to_owned());
            let person = Principal { iam_id, service: false, name, email: String::new() };
            add_principal(tx, &person, UnixMs(0))?;
            grants.iter().try_for_each(|grant| add_grant(tx, "IBMid-1", grant))?;
            // No role is on a key and its ring at once, or on a ring of no instance.
            for wrong in ["NULL, 'r', NULL", "?1, 'r', 'k'"] {
                let sql = format!(
                    "INSERT INTO grants (iam_id, scope, role, instance, ring, key)
                     VALUES ('IBMid-1', 'service', 'Writer', {wrong})"
                );
                let refused = match wrong.contains('?') {
                    true => tx.execute(&sql, [instance.to_string()]),
                    false => tx.execute(&sql, []),
                };
                assert!(refused.is_err(), "{wrong}");
            }
            grants_of(tx, "IBMid-1")
        });
        assert_eq!(read.expect("reads"), grants);
    }
}
