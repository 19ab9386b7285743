//! What the database says that no answer does: audit records and key events; and time that
//! passes.
//!
//! The database is opened beside a running server, as any tool may open it, so that the server
//! finds it after a kill as it left it itself.

use super::call::Call;
use super::state::{Age, State};
use crate::Outcome;
use claviger_audit::{Dir, Finding, Reader, What};
use claviger_domain::id::UnixMs;
use claviger_server::audit::{body, chain};
use claviger_store::rusqlite::{Connection, OpenFlags, params};
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

const DAY_MS: i64 = 86_400_000;
/// How long the server may take to do what is due at its start.
const DUE: Duration = Duration::from_secs(20);

/// One audit record: action, status, reason.
type Record = (String, u16, String);

/// All of them, by correlation id.
pub type Audit = HashMap<String, Vec<Record>>;

/// The database of a running server, and its audit log.
pub struct Records(Connection, PathBuf);

impl Records {
    /// Opens it.
    pub fn open(path: &Path) -> Outcome<Self> {
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let connection = Connection::open_with_flags(path, flags).map_err(failed)?;
        connection.busy_timeout(Duration::from_secs(5)).map_err(failed)?;
        Ok(Self(connection, claviger_server::record::directory(path)))
    }

    /// Audit records by correlation id.
    pub fn audit(&self) -> Outcome<Audit> {
        let sql = "SELECT correlation, action, status, reason FROM audit";
        let mut query = self.0.prepare(sql).map_err(failed)?;
        let rows = query.query_map([], |row| {
            Ok((row.get::<_, String>(0)?, (row.get(1)?, row.get(2)?, row.get(3)?)))
        });
        let mut all = Audit::new();
        for row in rows.map_err(failed)? {
            let (correlation, record) = row.map_err(failed)?;
            all.entry(correlation).or_default().push(record);
        }
        let files = Dir::existing(&self.1).map_err(|e| format!("the audit log: {e}"))?;
        let entries = Reader::open(files, UnixMs(0)).map_err(|e| format!("the audit log: {e}"))?;
        for entry in entries {
            let entry = entry.map_err(|e| format!("the audit log: {e}"))?;
            let record = body::decode(entry.at, &entry.body)
                .ok_or_else(|| format!("record {} of the audit log is none", entry.number))?;
            let said = (record.action.into_owned(), record.status, record.reason.into_owned());
            all.entry(record.correlation).or_default().push(said);
        }
        Ok(all)
    }

    /// How many changes are on record under a correlation id.
    pub fn rows(&self, id: &str) -> Outcome<i64> {
        let sql = "SELECT count(*) FROM audit WHERE correlation = ?1";
        self.0.query_row(sql, [id], |row| row.get(0)).map_err(failed)
    }

    /// Whether those who follow keys are told what happened to each, in its order.
    pub fn events_of(&self, state: &State) -> Outcome<()> {
        let sql = "SELECT kind FROM key_events WHERE key = ?1 AND kind <> 'expire' ORDER BY id";
        let mut query = self.0.prepare(sql).map_err(failed)?;
        for (number, key) in &state.keys {
            let Some(id) = &key.id else { continue };
            let rows = query.query_map([id], |row| row.get::<_, String>(0)).map_err(failed)?;
            let found = rows.collect::<Result<Vec<_>, _>>().map_err(failed)?;
            if found != key.events {
                return Err(format!(
                    "events of key {number}: {found:?}, expected {:?}",
                    key.events
                ));
            }
        }
        Ok(())
    }

    /// Lets a deleted key have been deleted long ago.
    pub fn age(&self, id: &str, age: Age) -> Outcome<()> {
        let by = match age {
            Age::Real => 0,
            Age::Hours => 5 * 3_600_000,
            Age::Month => 31 * DAY_MS,
        };
        self.moved("UPDATE keys SET deleted = deleted - ?2 WHERE id = ?1 AND state = 5", id, by)
    }

    /// Lets a deleted key be due for its removal.
    pub fn let_be_removed(&self, id: &str) -> Outcome<()> {
        let sql = "UPDATE keys SET deleted = deleted - ?2 WHERE id = ?1 AND state = 5";
        self.moved(sql, id, 91 * DAY_MS)
    }

    /// Lets an active key be due for its rotation by a policy.
    pub fn let_be_rotated(&self, id: &str, months: u8) -> Outcome<()> {
        let sql = "UPDATE keys SET created = created - ?2, rotated = rotated - ?2 WHERE id = ?1";
        self.moved(sql, id, (30 * i64::from(months) + 1) * DAY_MS)
    }

    fn moved(&self, sql: &str, id: &str, by: i64) -> Outcome<()> {
        match self.0.execute(sql, params![id, by]).map_err(failed)? {
            1 => Ok(()),
            _ => Err(format!("time did not pass for key {id}")),
        }
    }

    /// Waits until the server has done by itself what `sql` counts, for the key `id`.
    pub fn wait(&self, what: &str, id: &str, sql: &str, count: i64) -> Outcome<()> {
        let deadline = Instant::now() + DUE;
        loop {
            let found: i64 = self.0.query_row(sql, [id], |row| row.get(0)).map_err(failed)?;
            if found == count {
                return Ok(());
            }
            if Instant::now() >= deadline {
                return Err(format!("{what} of key {id}: {found} after {DUE:?}, expected {count}"));
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Records of what the clock did to a key.
    pub fn by_the_clock(&self, action: &str, id: &str) -> Outcome<i64> {
        let sql = "SELECT count(*) FROM audit
            WHERE who = 'system' AND action = ?1 AND target LIKE '%:key:' || ?2";
        self.0.query_row(sql, [action, id], |row| row.get(0)).map_err(failed)
    }
}

/// Whether the audit log of a server that was killed is as it was written, and hangs together with
/// the rows of its database.
pub fn verify(database: &Path) -> Outcome<()> {
    let found = chain::verify(database, vec![], vec![]).map_err(|e| e.to_string())?;
    // The last write may have been cut by the kill; the next start says so.
    let wrong = |finding: &&Finding| finding.what != What::Torn;
    if let Some(wrong) = found.segments.findings.iter().find(wrong) {
        return Err(format!("the audit log: {wrong:?}"));
    }
    match found.rows.findings.first() {
        Some((row, what)) => Err(format!("audit row {row}: {what}")),
        None => Ok(()),
    }
}

/// Whether each call has the record that it must have, and no other.
/// One that `may_be_lost` may have none.
pub fn complete(calls: &[Call], audit: &Audit, may_be_lost: impl Fn(&Call) -> bool) -> Outcome<()> {
    for call in calls {
        let records = audit.get(&call.id).map(Vec::as_slice).unwrap_or_default();
        let fits = match (&call.answer, records) {
            (None, []) => true,
            (Some(_), []) => may_be_lost(call),
            (None, [(action, ..)]) => action == call.op.action(),
            (Some(answer), [(action, status, reason)]) => {
                let status_is = if answer.status < 300 { 200 } else { answer.status };
                action == call.op.action() && *status == status_is && *reason == answer.code
            }
            _ => false,
        };
        if !fits {
            let answer = call.answer.as_ref().map(|a| (a.status, &a.code));
            return Err(format!(
                "{}: {:?}, answered {answer:?}, is on record as {records:?}",
                call.id, call.op
            ));
        }
    }
    Ok(())
}

/// Whether a call without an answer is on record as done.
pub fn done(call: &Call, audit: &Audit) -> bool {
    let records = audit.get(&call.id).map(Vec::as_slice).unwrap_or_default();
    records.iter().any(|(_, status, _)| *status < 300)
}

fn failed(e: claviger_store::rusqlite::Error) -> String {
    format!("the server's database: {e}")
}
