//! One row for each act: who, what, on what, how it ended. Never payloads, plaintexts or tokens.

use crate::{StoreError, Tx};
use claviger_domain::id::UnixMs;
use rusqlite::params;

/// One act.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Act {
    /// When.
    pub at: UnixMs,
    /// IAM id of who did it; `-` if nobody could be told.
    pub who: String,
    /// For instance `kms.secrets.rotate`.
    pub action: &'static str,
    /// CRN or name of what it was done to.
    pub target: String,
    /// The HTTP status of the answer; below 400 is a success.
    pub status: u16,
    /// Reason code of a failure, else empty.
    pub reason: String,
    /// The correlation id of the request.
    pub correlation: String,
}

/// Adds a row. Texts are cut to 512 characters: they come from requests.
pub fn add(tx: &Tx<'_>, act: &Act) -> Result<(), StoreError> {
    let cut = |text: &str| text.chars().take(512).collect::<String>();
    let sql = "INSERT INTO audit (at, who, action, target, outcome, status, reason, correlation)
               VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)";
    tx.prepare_cached(sql)?.execute(params![
        act.at.0,
        cut(&act.who),
        act.action,
        cut(&act.target),
        if act.status < 400 { "success" } else { "failure" },
        act.status,
        cut(&act.reason),
        cut(&act.correlation),
    ])?;
    Ok(())
}

/// Number of acts with this action; for tests and health.
pub fn count(tx: &Tx<'_>, action: &str) -> Result<u64, StoreError> {
    let sql = "SELECT count(*) FROM audit WHERE action = ?1";
    let count: i64 = tx.prepare_cached(sql)?.query_row([action], |row| row.get(0))?;
    Ok(count as u64)
}
