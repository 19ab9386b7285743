//! People who come in by an OpenID Connect issuer: which issuers count, and whom their subjects come
//! in as.

use crate::{StoreError, Tx, access};
use claviger_domain::id::UnixMs;
use rusqlite::{OptionalExtension, params};

/// A subject of an issuer. Both together are an identity.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LoginSubject {
    /// What its tokens say in `iss`.
    pub issuer: String,
    /// What they say in `sub`.
    pub subject: String,
}

/// Lets exactly these issuers count, each with its audience. Nothing changes where they do already.
pub fn allow(tx: &Tx<'_>, issuers: &[(&str, &str)]) -> Result<(), StoreError> {
    let mut wanted: Vec<(String, String)> =
        issuers.iter().map(|(issuer, audience)| ((*issuer).into(), (*audience).into())).collect();
    wanted.sort();
    let there: Vec<(String, String)> = {
        let sql = "SELECT issuer, audience FROM login_issuers ORDER BY issuer";
        let mut query = tx.prepare_cached(sql)?;
        let rows = query.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?;
        rows.collect::<Result<_, _>>()?
    };
    if there == wanted {
        return Ok(());
    }
    tx.execute("DELETE FROM login_issuers", [])?;
    for (issuer, audience) in wanted {
        let sql = "INSERT INTO login_issuers (issuer, audience) VALUES (?1, ?2)";
        tx.prepare_cached(sql)?.execute([issuer, audience])?;
    }
    access::changed(tx)
}

/// The person that a subject comes in as, by IAM id; none if its issuer does not count.
pub fn person(tx: &Tx<'_>, issuer: &str, subject: &str) -> Result<Option<String>, StoreError> {
    let sql = "SELECT s.iam_id FROM login_subjects s JOIN login_issuers i ON i.issuer = s.issuer
               WHERE s.issuer = ?1 AND s.subject = ?2";
    Ok(tx.prepare_cached(sql)?.query_row([issuer, subject], |row| row.get(0)).optional()?)
}

/// The subjects that come in as a person. Bound: as many as the server lets one have.
pub fn of_person(tx: &Tx<'_>, iam_id: &str) -> Result<Vec<LoginSubject>, StoreError> {
    let sql = "SELECT issuer, subject FROM login_subjects WHERE iam_id = ?1
               ORDER BY issuer, subject";
    let mut query = tx.prepare_cached(sql)?;
    let rows = query.query_map([iam_id], |row| {
        Ok(LoginSubject { issuer: row.get(0)?, subject: row.get(1)? })
    })?;
    Ok(rows.collect::<Result<_, _>>()?)
}

/// Lets a subject come in as a person. One that comes in as somebody is taken
/// ([`StoreError::is_taken`]).
pub fn add(
    tx: &Tx<'_>,
    login: &LoginSubject,
    iam_id: &str,
    by: &str,
    now: UnixMs,
) -> Result<(), StoreError> {
    let sql = "INSERT INTO login_subjects (issuer, subject, iam_id, created, created_by)
               VALUES (?1, ?2, ?3, ?4, ?5)";
    let row = params![login.issuer, login.subject, iam_id, now.0, by];
    tx.prepare_cached(sql)?.execute(row)?;
    access::changed(tx)
}

/// Lets no subject come in as this person any longer.
pub fn remove_all(tx: &Tx<'_>, iam_id: &str) -> Result<(), StoreError> {
    tx.execute("DELETE FROM login_subjects WHERE iam_id = ?1", [iam_id])?;
    access::changed(tx)
}
