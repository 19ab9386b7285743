//! What users of keys did after an event, as they say themselves.

use crate::{StoreError, Tx};
use claviger_domain::id::{KeyVersionId, UnixMs};
use claviger_domain::key::RootKey;
use rusqlite::{OptionalExtension, params};

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

/// The key that an event is about.
pub fn key_of(tx: &Tx<'_>, event: u64) -> Result<Option<RootKey>, StoreError> {
    let Ok(event) = i64::try_from(event) else { return Ok(None) };
    let sql = "SELECT instance, key FROM key_events WHERE id = ?1";
    let found: Option<(String, String)> = tx
        .prepare_cached(sql)?
        .query_row([event], |row| Ok((row.get(0)?, row.get(1)?)))
        .optional()?;
    found.map(|(instance, key)| crate::keys::root(&instance, &key)).transpose()
}

/// Adds an answer, or puts it in the place of the same user's last one to the event.
pub fn put(tx: &Tx<'_>, answer: &Answer) -> Result<(), StoreError> {
    let sql = "INSERT OR REPLACE INTO event_answers
        (instance, key, event, crn, state, rewrapped, at) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)";
    tx.prepare_cached(sql)?.execute(params![
        answer.root.instance.to_string(),
        answer.root.key.to_string(),
        answer.event as i64,
        answer.crn,
        answer.state,
        answer.rewrapped.map(|v| v.to_string()),
        answer.at.0,
    ])?;
    Ok(())
}

/// The answers to one event of a key, by user.
pub fn of_event(tx: &Tx<'_>, root: &RootKey, event: u64) -> Result<Vec<Answer>, StoreError> {
    let sql = "SELECT crn, state, rewrapped, at FROM event_answers
        WHERE instance = ?1 AND key = ?2 AND event = ?3 ORDER BY crn";
    let mut query = tx.prepare_cached(sql)?;
    let ids = params![root.instance.to_string(), root.key.to_string(), event as i64];
    let mut rows = query.query(ids)?;
    let mut out = Vec::new();
    while let Some(row) = rows.next()? {
        out.push(Answer {
            root: *root,
            event,
            crn: row.get(0)?,
            state: row.get(1)?,
            rewrapped: crate::keys::opt_id(row.get(2)?)?,
            at: UnixMs(row.get(3)?),
        });
    }
    Ok(out)
}
