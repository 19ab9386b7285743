//! What users of keys did after an event, as they say themselves.

use crate::{StoreError, Tx};
use claviger_domain::id::{KeyVersionId, UnixMs};
use claviger_domain::key::RootKey;
use rusqlite::params;

/// One user's answer to one event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// The key.
    pub root: RootKey,
    /// Number of the event.
    pub event: u64,
    /// Who answers.
    pub crn: String,
    /// What its keys are now, in its own word.
    pub state: String,
    /// The version that it rewrapped to.
    pub rewrapped: Option<KeyVersionId>,
    /// When it answered.
    pub at: UnixMs,
}

/// Adds an answer. It takes the place of what the same user answered before, but for what it
/// answered to a later event.
pub fn put(tx: &Tx<'_>, answer: &Answer) -> Result<(), StoreError> {
    let (instance, key) = (answer.root.instance.to_string(), answer.root.key.to_string());
    let sql = "DELETE FROM event_answers
        WHERE instance = ?1 AND key = ?2 AND crn = ?3 AND event < ?4";
    tx.prepare_cached(sql)?.execute(params![instance, key, answer.crn, answer.event as i64])?;
    let sql = "INSERT OR REPLACE INTO event_answers
        (instance, key, event, crn, state, rewrapped, at) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)";
    tx.prepare_cached(sql)?.execute(params![
        instance,
        key,
        answer.event as i64,
        answer.crn,
        answer.state,
        answer.rewrapped.map(|v| v.to_string()),
        answer.at.0,
    ])?;
    Ok(())
}

/// Forgets what a user answered to events of a key.
pub fn remove(tx: &Tx<'_>, root: &RootKey, crn: &str) -> Result<(), StoreError> {
    let sql = "DELETE FROM event_answers WHERE instance = ?1 AND key = ?2 AND crn = ?3";
    let row = params![root.instance.to_string(), root.key.to_string(), crn];
    tx.prepare_cached(sql)?.execute(row)?;
    Ok(())
}

/// What each user of a key answered to the latest event that it answered at all, by user.
pub fn of_key(tx: &Tx<'_>, root: &RootKey) -> Result<Vec<Answer>, StoreError> {
    // SQLite takes the other columns from the row that has the maximum.
    let sql = "SELECT crn, max(event), state, rewrapped, at FROM event_answers
        WHERE instance = ?1 AND key = ?2 GROUP BY crn ORDER BY crn";
    let mut query = tx.prepare_cached(sql)?;
    let mut rows = query.query([root.instance.to_string(), root.key.to_string()])?;
    let mut out = Vec::new();
    while let Some(row) = rows.next()? {
        out.push(Answer {
            root: *root,
            crn: row.get(0)?,
            event: row.get::<_, i64>(1)? as u64,
            state: row.get(2)?,
            rewrapped: crate::keys::opt_id(row.get(3)?)?,
            at: UnixMs(row.get(4)?),
        });
    }
    Ok(out)
}
