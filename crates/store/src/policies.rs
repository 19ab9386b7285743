//! What keys and instances are told to keep to.

use crate::keys::{id, root};
use crate::{StoreError, Tx};
use claviger_domain::id::{InstanceId, UnixMs};
use claviger_domain::key::RootKey;
use rusqlite::{OptionalExtension, Row, params};
use uuid::Uuid;

/// What a key's policy is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum KeyPolicyKind {
    /// It is rotated by itself.
    Rotation,
    /// Two persons are needed to delete it.
    DualAuthDelete,
}

impl KeyPolicyKind {
    /// Every kind.
    pub const ALL: [KeyPolicyKind; 2] = [KeyPolicyKind::Rotation, KeyPolicyKind::DualAuthDelete];

    /// As it is stored and on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            KeyPolicyKind::Rotation => "rotation",
            KeyPolicyKind::DualAuthDelete => "dualAuthDelete",
        }
    }
}

/// A policy of a key. One that was written stays, switched off or not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyPolicy {
    /// The key.
    pub root: RootKey,
    /// What it is about.
    pub kind: KeyPolicyKind,
    /// Its identifier.
    pub id: Uuid,
    /// Whether it counts.
    pub enabled: bool,
    /// Months of 30 days between rotations, 1 to 12; rotation only, and always there.
    pub interval_month: Option<u8>,
    /// When it was first written.
    pub created: UnixMs,
    /// By whom.
    pub created_by: String,
    /// When it was last written.
    pub updated: UnixMs,
    /// By whom.
    pub updated_by: String,
}

const KEY_COLUMNS: &str =
    "instance, key, kind, id, enabled, interval_month, created, created_by, updated, updated_by";

/// The policies of a key, rotation first.
pub fn of_key(tx: &Tx<'_>, root: &RootKey) -> Result<Vec<KeyPolicy>, StoreError> {
    let sql = format!(
        "SELECT {KEY_COLUMNS} FROM key_policies WHERE instance = ?1 AND key = ?2 ORDER BY kind DESC"
    );
    let mut query = tx.prepare_cached(&sql)?;
    let mut rows = query.query([root.instance.to_string(), root.key.to_string()])?;
    let mut out = Vec::new();
    while let Some(row) = rows.next()? {
        out.push(read_key(row)?);
    }
    Ok(out)
}

/// One policy of a key.
pub fn get(
    tx: &Tx<'_>,
    root: &RootKey,
    kind: KeyPolicyKind,
) -> Result<Option<KeyPolicy>, StoreError> {
    Ok(of_key(tx, root)?.into_iter().find(|p| p.kind == kind))
}

/// Adds or replaces a policy of a key.
pub fn put(tx: &Tx<'_>, p: &KeyPolicy) -> Result<(), StoreError> {
    let sql = "INSERT OR REPLACE INTO key_policies (instance, key, kind, id, enabled,
        interval_month, created, created_by, updated, updated_by)
        VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10)";
    tx.prepare_cached(sql)?.execute(params![
        p.root.instance.to_string(),
        p.root.key.to_string(),
        p.kind.as_str(),
        p.id.to_string(),
        p.enabled,
        p.interval_month,
        p.created.0,
        p.created_by,
        p.updated.0,
        p.updated_by,
    ])?;
    Ok(())
}

/// Generated root keys, active as written, that a rotation policy counts for and that were last
/// rotated (or made) so long ago that `due` says yes; at most `most`. `due` is given the key, the
/// last rotation and the interval in months.
pub fn to_rotate(
    tx: &Tx<'_>,
    most: usize,
    mut due: impl FnMut(&RootKey, UnixMs, u8) -> bool,
) -> Result<Vec<RootKey>, StoreError> {
    let sql = "SELECT k.instance, k.id, coalesce(k.rotated, k.created), p.interval_month
        FROM key_policies p JOIN keys k ON k.instance = p.instance AND k.id = p.key
        WHERE p.kind = 'rotation' AND p.enabled = 1
        AND k.state = 1 AND k.extractable = 0 AND k.imported = 0";
    let mut query = tx.prepare_cached(sql)?;
    let mut rows = query.query([])?;
    let mut out = Vec::new();
    while let Some(row) = rows.next()? {
        let key = root(&row.get::<_, String>(0)?, &row.get::<_, String>(1)?)?;
        if due(&key, UnixMs(row.get(2)?), row.get(3)?) {
            out.push(key);
            if out.len() >= most {
                break;
            }
        }
    }
    Ok(out)
}

/// What an instance's policy is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum InstancePolicyKind {
    /// From which addresses people may come.
    AllowedIp,
    /// By which network one may come.
    AllowedNetwork,
    /// New keys need two persons for their deletion.
    DualAuthDelete,
    /// Which keys may be created and imported.
    KeyCreateImportAccess,
    /// Numbers are kept for the operator.
    Metrics,
    /// New generated root keys are rotated by themselves.
    Rotation,
}

impl InstancePolicyKind {
    /// Every kind.
    pub const ALL: [InstancePolicyKind; 6] = [
        InstancePolicyKind::AllowedIp,
        InstancePolicyKind::AllowedNetwork,
        InstancePolicyKind::DualAuthDelete,
        InstancePolicyKind::KeyCreateImportAccess,
        InstancePolicyKind::Metrics,
        InstancePolicyKind::Rotation,
    ];

    /// As it is stored and on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            InstancePolicyKind::AllowedIp => "allowedIP",
            InstancePolicyKind::AllowedNetwork => "allowedNetwork",
            InstancePolicyKind::DualAuthDelete => "dualAuthDelete",
            InstancePolicyKind::KeyCreateImportAccess => "keyCreateImportAccess",
            InstancePolicyKind::Metrics => "metrics",
            InstancePolicyKind::Rotation => "rotation",
        }
    }

    /// The kind with this name.
    pub fn named(name: &str) -> Option<InstancePolicyKind> {
        Self::ALL.into_iter().find(|kind| kind.as_str() == name)
    }
}

/// A policy of an instance. One that was written stays, switched off or not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InstancePolicy {
    /// What it is about.
    pub kind: InstancePolicyKind,
    /// Whether it counts.
    pub enabled: bool,
    /// A JSON object; what is in it depends on the kind.
    pub attributes: String,
    /// When it was first written.
    pub created: UnixMs,
    /// By whom.
    pub created_by: String,
    /// When it was last written.
    pub updated: UnixMs,
    /// By whom.
    pub updated_by: String,
}

/// The policies of an instance, by name.
pub fn of_instance(tx: &Tx<'_>, instance: InstanceId) -> Result<Vec<InstancePolicy>, StoreError> {
    let sql = "SELECT kind, enabled, attributes, created, created_by, updated, updated_by
        FROM instance_policies WHERE instance = ?1 ORDER BY kind";
    let mut query = tx.prepare_cached(sql)?;
    let mut rows = query.query([instance.to_string()])?;
    let mut out = Vec::new();
    while let Some(row) = rows.next()? {
        out.push(read_instance(row)?);
    }
    Ok(out)
}

/// One policy of an instance.
pub fn of_instance_kind(
    tx: &Tx<'_>,
    instance: InstanceId,
    kind: InstancePolicyKind,
) -> Result<Option<InstancePolicy>, StoreError> {
    let sql = "SELECT kind, enabled, attributes, created, created_by, updated, updated_by
        FROM instance_policies WHERE instance = ?1 AND kind = ?2";
    let mut query = tx.prepare_cached(sql)?;
    let mut rows = query.query(params![instance.to_string(), kind.as_str()])?;
    rows.next()?.map(read_instance).transpose()
}

/// Whether someone decided that only some addresses or networks count: the attributes of what is
/// switched on.
pub fn gates(
    tx: &Tx<'_>,
    instance: InstanceId,
) -> Result<Vec<(InstancePolicyKind, String)>, StoreError> {
    let sql = "SELECT kind, attributes FROM instance_policies
        WHERE instance = ?1 AND kind IN ('allowedIP', 'allowedNetwork') AND enabled = 1";
    let mut query = tx.prepare_cached(sql)?;
    let mut rows = query.query([instance.to_string()])?;
    let mut out = Vec::new();
    while let Some(row) = rows.next()? {
        out.push((instance_kind(&row.get::<_, String>(0)?)?, row.get(1)?));
    }
    Ok(out)
}

/// Adds or replaces a policy of an instance.
pub fn put_of_instance(
    tx: &Tx<'_>,
    instance: InstanceId,
    p: &InstancePolicy,
) -> Result<(), StoreError> {
    let sql = "INSERT OR REPLACE INTO instance_policies (instance, kind, enabled, attributes,
        created, created_by, updated, updated_by) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)";
    tx.prepare_cached(sql)?.execute(params![
        instance.to_string(),
        p.kind.as_str(),
        p.enabled,
        p.attributes,
        p.created.0,
        p.created_by,
        p.updated.0,
        p.updated_by,
    ])?;
    Ok(())
}

/// The person that a service stands for; none for a person, or for a service without an owner.
pub fn owner_of(tx: &Tx<'_>, iam_id: &str) -> Result<Option<String>, StoreError> {
    let sql = "SELECT owner FROM principals WHERE iam_id = ?1";
    Ok(tx.prepare_cached(sql)?.query_row([iam_id], |row| row.get(0)).optional()?.flatten())
}

fn instance_kind(name: &str) -> Result<InstancePolicyKind, StoreError> {
    InstancePolicyKind::named(name)
        .ok_or_else(|| StoreError::Damaged(format!("instance policy {name:?}")))
}

fn read_key(row: &Row<'_>) -> Result<KeyPolicy, StoreError> {
    let kind: String = row.get(2)?;
    Ok(KeyPolicy {
        root: root(&row.get::<_, String>(0)?, &row.get::<_, String>(1)?)?,
        kind: KeyPolicyKind::ALL
            .into_iter()
            .find(|k| k.as_str() == kind)
            .ok_or_else(|| StoreError::Damaged(format!("key policy {kind:?}")))?,
        id: id(&row.get::<_, String>(3)?)?,
        enabled: row.get(4)?,
        interval_month: row.get(5)?,
        created: UnixMs(row.get(6)?),
        created_by: row.get(7)?,
        updated: UnixMs(row.get(8)?),
        updated_by: row.get(9)?,
    })
}

fn read_instance(row: &Row<'_>) -> Result<InstancePolicy, StoreError> {
    Ok(InstancePolicy {
        kind: instance_kind(&row.get::<_, String>(0)?)?,
        enabled: row.get(1)?,
        attributes: row.get(2)?,
        created: UnixMs(row.get(3)?),
        created_by: row.get(4)?,
        updated: UnixMs(row.get(5)?),
        updated_by: row.get(6)?,
    })
}
