//! Import tokens: one for each instance, under which key material travels here.

use crate::{StoreError, Tx};
use claviger_domain::id::{InstanceId, UnixMs};
use rusqlite::{OptionalExtension, params};

/// An import token. What is secret in it is sealed by the custodian.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImportToken {
    /// Its identifier; no other call takes it.
    pub id: String,
    /// When it was made.
    pub created: UnixMs,
    /// When it ends.
    pub expires: UnixMs,
    /// Retrievals in all.
    pub allowed: u32,
    /// Retrievals left.
    pub remaining: u32,
    /// The sealed private key.
    pub private: Vec<u8>,
    /// The public key, PEM.
    pub public: String,
    /// The sealed nonce.
    pub nonce: Vec<u8>,
}

/// Puts a token in the place of the instance's last one.
pub fn put(tx: &Tx<'_>, instance: InstanceId, token: &ImportToken) -> Result<(), StoreError> {
    let sql = "INSERT OR REPLACE INTO import_tokens
        (instance, id, created, expires, allowed, remaining, private, public, nonce)
        VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)";
    tx.prepare_cached(sql)?.execute(params![
        instance.to_string(),
        token.id,
        token.created.0,
        token.expires.0,
        token.allowed,
        token.remaining,
        token.private,
        token.public,
        token.nonce,
    ])?;
    Ok(())
}

/// The instance's token, expired or not.
pub fn get(tx: &Tx<'_>, instance: InstanceId) -> Result<Option<ImportToken>, StoreError> {
    let sql = "SELECT id, created, expires, allowed, remaining, private, public, nonce
        FROM import_tokens WHERE instance = ?1";
    let found = tx
        .prepare_cached(sql)?
        .query_row([instance.to_string()], |row| {
            Ok(ImportToken {
                id: row.get(0)?,
                created: UnixMs(row.get(1)?),
                expires: UnixMs(row.get(2)?),
                allowed: row.get(3)?,
                remaining: row.get(4)?,
                private: row.get(5)?,
                public: row.get(6)?,
                nonce: row.get(7)?,
            })
        })
        .optional()?;
    Ok(found)
}

/// Removes the tokens that ended before `before`; how many.
pub fn remove_ended(tx: &Tx<'_>, before: UnixMs) -> Result<usize, StoreError> {
    let sql = "DELETE FROM import_tokens WHERE expires < ?1";
    let removed = tx.prepare_cached(sql)?.execute([before.0])?;
    if removed > 0 {
        crate::unsettle(tx)?;
    }
    Ok(removed)
}

/// Uses up one retrieval; callers look first whether one is left.
pub fn retrieved(tx: &Tx<'_>, instance: InstanceId) -> Result<(), StoreError> {
    let sql = "UPDATE import_tokens SET remaining = remaining - 1 WHERE instance = ?1";
    tx.prepare_cached(sql)?.execute([instance.to_string()])?;
    Ok(())
}
