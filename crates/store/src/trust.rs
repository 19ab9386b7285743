//! Clusters whose service-account tokens are believed, and which service IDs those become.

use crate::{StoreError, Tx, access};
use claviger_domain::id::UnixMs;
use rusqlite::{OptionalExtension, params};

/// An issuer of tokens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Issuer {
    /// What its tokens say in `iss`.
    pub issuer: String,
    /// What they must say in `aud`.
    pub audience: String,
    /// Its public keys, a JWK set (RFC 7517).
    pub jwks: String,
    /// When it was trusted.
    pub created: UnixMs,
    /// By whom.
    pub created_by: String,
}

/// A subject of an issuer, and the service ID that it may become.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trust {
    /// The issuer.
    pub issuer: String,
    /// What its tokens say in `sub`.
    pub subject: String,
    /// The service ID.
    pub iam_id: String,
}

/// Trusts an issuer, or changes its keys and audience.
pub fn put_issuer(tx: &Tx<'_>, issuer: &Issuer) -> Result<(), StoreError> {
    let sql = "INSERT INTO trusted_issuers (issuer, audience, jwks, created, created_by)
               VALUES (?1, ?2, ?3, ?4, ?5)
               ON CONFLICT (issuer) DO UPDATE SET audience = excluded.audience,
                   jwks = excluded.jwks, created = excluded.created,
                   created_by = excluded.created_by";
    tx.prepare_cached(sql)?.execute(params![
        issuer.issuer,
        issuer.audience,
        issuer.jwks,
        issuer.created.0,
        issuer.created_by,
    ])?;
    access::changed(tx)
}

/// The issuer of this name.
pub fn issuer(tx: &Tx<'_>, name: &str) -> Result<Option<Issuer>, StoreError> {
    let sql = "SELECT issuer, audience, jwks, created, created_by FROM trusted_issuers
               WHERE issuer = ?1";
    Ok(tx.prepare_cached(sql)?.query_row([name], read_issuer).optional()?)
}

/// Every issuer, by name. Bound: as many as the server lets be trusted.
pub fn issuers(tx: &Tx<'_>) -> Result<Vec<Issuer>, StoreError> {
    let sql =
        "SELECT issuer, audience, jwks, created, created_by FROM trusted_issuers ORDER BY issuer";
    let mut query = tx.prepare_cached(sql)?;
    let rows = query.query_map([], read_issuer)?;
    Ok(rows.collect::<Result<_, _>>()?)
}

/// Trusts an issuer no longer, nor any of its subjects; whether it was trusted.
pub fn remove_issuer(tx: &Tx<'_>, name: &str) -> Result<bool, StoreError> {
    tx.execute("DELETE FROM trusted_subjects WHERE issuer = ?1", [name])?;
    let gone = tx.execute("DELETE FROM trusted_issuers WHERE issuer = ?1", [name])? > 0;
    access::changed(tx)?;
    Ok(gone)
}

/// Lets a subject become a service ID; whether it could not before.
pub fn add(tx: &Tx<'_>, trust: &Trust, by: &str, now: UnixMs) -> Result<bool, StoreError> {
    let sql = "INSERT INTO trusted_subjects (issuer, subject, iam_id, created, created_by)
               VALUES (?1, ?2, ?3, ?4, ?5) ON CONFLICT DO NOTHING";
    let row = params![trust.issuer, trust.subject, trust.iam_id, now.0, by];
    let added = tx.prepare_cached(sql)?.execute(row)? > 0;
    access::changed(tx)?;
    Ok(added)
}

/// Lets it become that no longer; whether it could.
pub fn remove(tx: &Tx<'_>, trust: &Trust) -> Result<bool, StoreError> {
    let sql = "DELETE FROM trusted_subjects WHERE issuer = ?1 AND subject = ?2 AND iam_id = ?3";
    let row = params![trust.issuer, trust.subject, trust.iam_id];
    let gone = tx.prepare_cached(sql)?.execute(row)? > 0;
    access::changed(tx)?;
    Ok(gone)
}

/// The service IDs that a subject may become. Bound: as many as the server lets be trusted.
pub fn of_subject(tx: &Tx<'_>, issuer: &str, subject: &str) -> Result<Vec<String>, StoreError> {
    let sql = "SELECT iam_id FROM trusted_subjects WHERE issuer = ?1 AND subject = ?2
               ORDER BY iam_id";
    let mut query = tx.prepare_cached(sql)?;
    let rows = query.query_map([issuer, subject], |row| row.get(0))?;
    Ok(rows.collect::<Result<_, _>>()?)
}

/// Every subject of an issuer. Bound: as many as the server lets be trusted.
pub fn of_issuer(tx: &Tx<'_>, issuer: &str) -> Result<Vec<Trust>, StoreError> {
    let sql = "SELECT issuer, subject, iam_id FROM trusted_subjects WHERE issuer = ?1
               ORDER BY subject, iam_id";
    let mut query = tx.prepare_cached(sql)?;
    let rows = query.query_map([issuer], |row| {
        Ok(Trust { issuer: row.get(0)?, subject: row.get(1)?, iam_id: row.get(2)? })
    })?;
    Ok(rows.collect::<Result<_, _>>()?)
}

fn read_issuer(row: &rusqlite::Row<'_>) -> Result<Issuer, rusqlite::Error> {
    Ok(Issuer {
        issuer: row.get(0)?,
        audience: row.get(1)?,
        jwks: row.get(2)?,
        created: UnixMs(row.get(3)?),
        created_by: row.get(4)?,
    })
}
