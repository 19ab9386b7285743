//! What operators asked agents for, and on which key events agents acted.

use super::{count, number, parsed, state, unsigned};
use claviger_domain::id::{AgentName, ClusterId, JobId, UnixMs};
use claviger_domain::key::{KeyState, RootKey};
use rusqlite::{Connection, OptionalExtension, Result, Row, params};

/// Work for a cluster's agents. Kind and report are JSON whose shapes the wire knows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JobRow {
    /// Its identifier.
    pub id: JobId,
    /// What to do.
    pub kind: String,
    /// When it was asked for.
    pub requested: UnixMs,
    /// How it stands.
    pub report: Option<String>,
    /// When it ended, done or given up.
    pub ended: Option<UnixMs>,
}

fn job_row(row: &Row<'_>) -> Result<JobRow> {
    Ok(JobRow {
        id: parsed(row, 0)?,
        kind: row.get(1)?,
        requested: UnixMs(row.get(2)?),
        report: row.get(3)?,
        ended: row.get::<_, Option<i64>>(4)?.map(UnixMs),
    })
}

const JOB_COLUMNS: &str = "id, kind, requested_ms, report, ended_ms";

/// Adds a job.
pub fn insert_job(
    db: &Connection,
    cluster: &ClusterId,
    id: JobId,
    kind: &str,
    by: &str,
    now: UnixMs,
) -> Result<()> {
    db.execute(
        "INSERT INTO jobs (id, cluster, kind, requested_by, requested_ms) VALUES (?1, ?2, ?3, ?4, ?5)",
        params![id.to_string(), cluster.as_str(), kind, by, now.0],
    )?;
    Ok(())
}

/// Jobs of a cluster that have not ended and were asked for after `asked_after`, oldest first.
pub fn open_jobs(db: &Connection, cluster: &ClusterId, asked_after: UnixMs) -> Result<Vec<JobRow>> {
    db.prepare_cached(&format!(
        "SELECT {JOB_COLUMNS} FROM jobs WHERE cluster = ?1 AND ended_ms IS NULL
             AND requested_ms > ?2 ORDER BY requested_ms, id"
    ))?
    .query_map(params![cluster.as_str(), asked_after.0], job_row)?
    .collect()
}

/// One job of a cluster.
pub fn job(db: &Connection, cluster: &ClusterId, id: JobId) -> Result<Option<JobRow>> {
    db.prepare_cached(&format!("SELECT {JOB_COLUMNS} FROM jobs WHERE cluster = ?1 AND id = ?2"))?
        .query_row(params![cluster.as_str(), id.to_string()], job_row)
        .optional()
}

/// Stores how a job stands. Answers false when there is none that has not ended.
pub fn report_job(
    db: &Connection,
    cluster: &ClusterId,
    id: JobId,
    report: &str,
    ended: Option<UnixMs>,
) -> Result<bool> {
    let changed = db.execute(
        "UPDATE jobs SET report = ?3, ended_ms = ?4
         WHERE cluster = ?1 AND id = ?2 AND ended_ms IS NULL",
        params![cluster.as_str(), id.to_string(), report, ended.map(|at| at.0)],
    )?;
    Ok(changed == 1)
}

/// Forgets all but the newest `keep` jobs of a cluster.
pub fn forget_jobs(db: &Connection, cluster: &ClusterId, keep: usize) -> Result<()> {
    db.execute(
        "DELETE FROM jobs WHERE cluster = ?1 AND id NOT IN
             (SELECT id FROM jobs WHERE cluster = ?1 ORDER BY requested_ms DESC, id LIMIT ?2)",
        params![cluster.as_str(), count(keep)],
    )?;
    Ok(())
}

/// An agent's word that it acted on a key event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AckRow {
    /// Its cluster.
    pub cluster: ClusterId,
    /// The agent.
    pub agent: AgentName,
    /// The root key.
    pub root: RootKey,
    /// The event.
    pub event: u64,
    /// The key's state that it acted on.
    pub state: KeyState,
    /// Whether its API server was fenced then.
    pub fenced: bool,
    /// When it said so.
    pub at: UnixMs,
}

/// How many acknowledgements are kept for one agent and one key: the newest ones.
pub const ACKS_KEPT: usize = 100;

/// Stores an acknowledgement; the last word for one event counts.
pub fn acknowledge(db: &Connection, ack: &AckRow) -> Result<()> {
    let (instance, key) = (ack.root.instance.to_string(), ack.root.key.to_string());
    db.execute(
        "INSERT INTO event_acks (instance, key, event, cluster, agent, state, fenced, at_ms)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)
         ON CONFLICT (instance, key, event, cluster, agent)
             DO UPDATE SET state = ?6, fenced = ?7, at_ms = ?8",
        params![
            instance,
            key,
            number(ack.event),
            ack.cluster.as_str(),
            ack.agent.as_str(),
            ack.state.to_string(),
            ack.fenced,
            ack.at.0
        ],
    )?;
    db.execute(
        "DELETE FROM event_acks WHERE cluster = ?1 AND agent = ?2 AND instance = ?3 AND key = ?4
             AND event < (SELECT min(event) FROM (SELECT event FROM event_acks
                 WHERE cluster = ?1 AND agent = ?2 AND instance = ?3 AND key = ?4
                 ORDER BY event DESC LIMIT ?5))",
        params![ack.cluster.as_str(), ack.agent.as_str(), instance, key, count(ACKS_KEPT)],
    )?;
    Ok(())
}

/// Every acknowledgement that is kept for a key, newest event first.
pub fn acks_of_key(db: &Connection, root: &RootKey) -> Result<Vec<AckRow>> {
    db.prepare_cached(
        "SELECT event, cluster, agent, state, fenced, at_ms FROM event_acks
         WHERE instance = ?1 AND key = ?2 ORDER BY event DESC, cluster, agent",
    )?
    .query_map([root.instance.to_string(), root.key.to_string()], |row| {
        Ok(AckRow {
            root: *root,
            event: unsigned(row.get(0)?),
            cluster: parsed(row, 1)?,
            agent: parsed(row, 2)?,
            state: state(row, 3)?,
            fenced: row.get(4)?,
            at: UnixMs(row.get(5)?),
        })
    })?
    .collect()
}
