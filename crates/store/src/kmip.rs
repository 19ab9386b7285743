//! KMIP adapters and the certificates of their clients.

use crate::keys::{id, root};
use crate::{StoreError, Tx};
use claviger_domain::id::{InstanceId, UnixMs};
use claviger_domain::key::RootKey;
use rusqlite::{Row, params};
use uuid::Uuid;

/// An adapter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Adapter {
    /// Its identifier.
    pub id: Uuid,
    /// Its name; no other adapter of the instance has it.
    pub name: String,
    /// For people; may be empty.
    pub description: String,
    /// The root key that wraps its objects; its instance is the adapter's.
    pub root: RootKey,
    /// When it was made.
    pub created: UnixMs,
    /// By whom.
    pub created_by: String,
    /// Last change.
    pub updated: UnixMs,
    /// By whom.
    pub updated_by: String,
}

/// The certificate of a client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Certificate {
    /// Its identifier.
    pub id: Uuid,
    /// Its name; no other certificate of the adapter has it.
    pub name: String,
    /// PEM.
    pub pem: String,
    /// SHA-256 of the DER, hexadecimal; no other certificate of the server has it.
    pub fingerprint: String,
    /// When it was added.
    pub created: UnixMs,
    /// By whom.
    pub created_by: String,
}

const ADAPTER: &str = "SELECT instance, id, name, description, key, created, created_by, updated,
    updated_by FROM kmip_adapters WHERE instance = ?1";
const CERTIFICATE: &str = "SELECT id, name, certificate, fingerprint, created, created_by
    FROM kmip_certificates WHERE instance = ?1 AND adapter = ?2";

/// The adapters of an instance, by id. Bound: as many as an instance may have.
pub fn adapters(tx: &Tx<'_>, instance: InstanceId) -> Result<Vec<Adapter>, StoreError> {
    let mut query = tx.prepare_cached(&format!("{ADAPTER} ORDER BY id"))?;
    let mut rows = query.query([instance.to_string()])?;
    let mut out = Vec::new();
    while let Some(row) = rows.next()? {
        out.push(adapter(row)?);
    }
    Ok(out)
}

/// The adapter with this id or name.
pub fn find(
    tx: &Tx<'_>,
    instance: InstanceId,
    id_or_name: &str,
) -> Result<Option<Adapter>, StoreError> {
    let plain = Uuid::parse_str(id_or_name).map(|id| id.to_string()).unwrap_or_default();
    let mut query = tx.prepare_cached(&format!("{ADAPTER} AND (id = ?2 OR name = ?3)"))?;
    let mut rows = query.query(params![instance.to_string(), plain, id_or_name])?;
    rows.next()?.map(adapter).transpose()
}

/// The name of an adapter that uses a key, if there is one.
pub fn using(tx: &Tx<'_>, root: &RootKey) -> Result<Option<String>, StoreError> {
    let sql = "SELECT name FROM kmip_adapters WHERE instance = ?1 AND key = ?2 LIMIT 1";
    let mut query = tx.prepare_cached(sql)?;
    let mut rows = query.query([root.instance.to_string(), root.key.to_string()])?;
    Ok(rows.next()?.map(|row| row.get(0)).transpose()?)
}

/// Adds an adapter. [`StoreError::is_taken`] if its name is taken.
pub fn add(tx: &Tx<'_>, a: &Adapter) -> Result<(), StoreError> {
    let sql = "INSERT INTO kmip_adapters (instance, id, name, description, key, created,
        created_by, updated, updated_by) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)";
    tx.prepare_cached(sql)?.execute(params![
        a.root.instance.to_string(),
        a.id.to_string(),
        a.name,
        a.description,
        a.root.key.to_string(),
        a.created.0,
        a.created_by,
        a.updated.0,
        a.updated_by,
    ])?;
    Ok(())
}

/// Removes an adapter with its certificates.
pub fn remove(tx: &Tx<'_>, a: &Adapter) -> Result<(), StoreError> {
    let ids = [a.root.instance.to_string(), a.id.to_string()];
    tx.execute("DELETE FROM kmip_certificates WHERE instance = ?1 AND adapter = ?2", ids.clone())?;
    tx.execute("DELETE FROM kmip_adapters WHERE instance = ?1 AND id = ?2", ids)?;
    Ok(())
}

/// The certificates of an adapter, by id. Bound: as many as an adapter may have.
pub fn certificates(tx: &Tx<'_>, a: &Adapter) -> Result<Vec<Certificate>, StoreError> {
    let mut query = tx.prepare_cached(&format!("{CERTIFICATE} ORDER BY id"))?;
    let mut rows = query.query([a.root.instance.to_string(), a.id.to_string()])?;
    let mut out = Vec::new();
    while let Some(row) = rows.next()? {
        out.push(certificate(row)?);
    }
    Ok(out)
}

/// The certificate with this id or name.
pub fn find_certificate(
    tx: &Tx<'_>,
    a: &Adapter,
    id_or_name: &str,
) -> Result<Option<Certificate>, StoreError> {
    let plain = Uuid::parse_str(id_or_name).map(|id| id.to_string()).unwrap_or_default();
    let mut query = tx.prepare_cached(&format!("{CERTIFICATE} AND (id = ?3 OR name = ?4)"))?;
    let row = params![a.root.instance.to_string(), a.id.to_string(), plain, id_or_name];
    let mut rows = query.query(row)?;
    rows.next()?.map(certificate).transpose()
}

/// Whether an adapter of the server has a certificate with this fingerprint.
pub fn has_certificate(tx: &Tx<'_>, fingerprint: &str) -> Result<bool, StoreError> {
    let sql = "SELECT 1 FROM kmip_certificates WHERE fingerprint = ?1";
    Ok(tx.prepare_cached(sql)?.exists([fingerprint])?)
}

/// Adds a certificate. [`StoreError::is_taken`] if its name is taken, or it belongs to an
/// adapter.
pub fn add_certificate(tx: &Tx<'_>, a: &Adapter, c: &Certificate) -> Result<(), StoreError> {
    let sql = "INSERT INTO kmip_certificates (instance, adapter, id, name, certificate,
        fingerprint, created, created_by) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)";
    tx.prepare_cached(sql)?.execute(params![
        a.root.instance.to_string(),
        a.id.to_string(),
        c.id.to_string(),
        c.name,
        c.pem,
        c.fingerprint,
        c.created.0,
        c.created_by,
    ])?;
    Ok(())
}

/// Removes a certificate.
pub fn remove_certificate(tx: &Tx<'_>, a: &Adapter, certificate: Uuid) -> Result<(), StoreError> {
    let sql = "DELETE FROM kmip_certificates WHERE instance = ?1 AND adapter = ?2 AND id = ?3";
    let ids = [a.root.instance.to_string(), a.id.to_string(), certificate.to_string()];
    tx.prepare_cached(sql)?.execute(ids)?;
    Ok(())
}

fn adapter(row: &Row<'_>) -> Result<Adapter, StoreError> {
    Ok(Adapter {
        root: root(&row.get::<_, String>(0)?, &row.get::<_, String>(4)?)?,
        id: id(&row.get::<_, String>(1)?)?,
        name: row.get(2)?,
        description: row.get(3)?,
        created: UnixMs(row.get(5)?),
        created_by: row.get(6)?,
        updated: UnixMs(row.get(7)?),
        updated_by: row.get(8)?,
    })
}

fn certificate(row: &Row<'_>) -> Result<Certificate, StoreError> {
    Ok(Certificate {
        id: id(&row.get::<_, String>(0)?)?,
        name: row.get(1)?,
        pem: row.get(2)?,
        fingerprint: row.get(3)?,
        created: UnixMs(row.get(4)?),
        created_by: row.get(5)?,
    })
}
