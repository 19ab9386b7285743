//! Rows of the cluster service: clusters, their agents, leases, jobs and acknowledgements.
//!
//! Functions here read and write rows inside a transaction that somebody else opened; they know
//! no rules. What a change may be is for `domain::cluster::commit`.

use claviger_domain::cluster::{Cluster, Observation, Seen};
use claviger_domain::id::{AgentName, ClusterId, JobId, RestoreId, UnixMs};
use claviger_domain::key::{KeyState, RootKey};
use rusqlite::types::Type;
use rusqlite::{Connection, OptionalExtension, Result, Row, named_params, params};
use serde::de::DeserializeOwned;
use std::collections::BTreeMap;
use std::str::FromStr;

/// A cluster as it is stored.
#[derive(Debug, Clone)]
pub struct ClusterRow {
    /// Its durable truth.
    pub cluster: Cluster,
    /// Its cloud resource name, ten segments.
    pub crn: String,
    /// URL of its API server.
    pub server_url: String,
    /// PEM of the CA of its API server.
    pub ca: String,
    /// IAM id of whoever registered it.
    pub registered_by: String,
    /// The master status that was shown last.
    pub master_status: String,
    /// Since when.
    pub master_status_since: UnixMs,
    /// The last restore of the server, while agents may hold KEKs of this cluster that it lacks.
    pub restored: Option<RestoreId>,
}

const CLUSTER_COLUMNS: &str =
    "doc, crn, server_url, ca, registered_by, master_status, master_status_ms, restored";

fn cluster_row(row: &Row<'_>) -> Result<ClusterRow> {
    Ok(ClusterRow {
        cluster: json(row, 0)?,
        crn: row.get(1)?,
        server_url: row.get(2)?,
        ca: row.get(3)?,
        registered_by: row.get(4)?,
        master_status: row.get(5)?,
        master_status_since: UnixMs(row.get(6)?),
        restored: row.get::<_, Option<String>>(7)?.map(|_| parsed(row, 7)).transpose()?,
    })
}

/// Adds a cluster. Fails with a constraint violation when its name or CRN is taken; see
/// [`name_taken`]. `admin_kubeconfig` is sealed already.
pub fn insert(db: &Connection, row: &ClusterRow, admin_kubeconfig: Option<&[u8]>) -> Result<()> {
    db.execute(
        "INSERT INTO clusters (id, name, crn, server_url, ca, admin_kubeconfig, registered_by,
             created_ms, revision, doc, master_status, master_status_ms)
         VALUES (:id, :name, :crn, :url, :ca, :admin, :by, :created, :revision, :doc, :status, :since)",
        named_params! {
            ":id": row.cluster.id.as_str(),
            ":name": row.cluster.name,
            ":crn": row.crn,
            ":url": row.server_url,
            ":ca": row.ca,
            ":admin": admin_kubeconfig,
            ":by": row.registered_by,
            ":created": row.cluster.created.0,
            ":revision": number(row.cluster.revision),
            ":doc": text(&row.cluster),
            ":status": row.master_status,
            ":since": row.master_status_since.0,
        },
    )?;
    Ok(())
}

/// Whether `error` says that a unique column has the value already.
pub fn name_taken(error: &rusqlite::Error) -> bool {
    error.sqlite_error().is_some_and(|e| {
        e.extended_code == rusqlite::ffi::SQLITE_CONSTRAINT_UNIQUE
            || e.extended_code == rusqlite::ffi::SQLITE_CONSTRAINT_PRIMARYKEY
    })
}

/// The cluster with this id.
pub fn get(db: &Connection, id: &ClusterId) -> Result<Option<ClusterRow>> {
    db.prepare_cached(&format!("SELECT {CLUSTER_COLUMNS} FROM clusters WHERE id = ?1"))?
        .query_row([id.as_str()], cluster_row)
        .optional()
}

/// The cluster with this id or name; an id wins.
pub fn find(db: &Connection, id_or_name: &str) -> Result<Option<ClusterRow>> {
    db.prepare_cached(&format!(
        "SELECT {CLUSTER_COLUMNS} FROM clusters WHERE id = ?1 OR name = ?1
         ORDER BY id = ?1 DESC LIMIT 1"
    ))?
    .query_row([id_or_name], cluster_row)
    .optional()
}

/// Every cluster, by name, at most `limit`.
pub fn list(db: &Connection, limit: usize) -> Result<Vec<ClusterRow>> {
    db.prepare_cached(&format!("SELECT {CLUSTER_COLUMNS} FROM clusters ORDER BY name LIMIT ?1"))?
        .query_map([count(limit)], cluster_row)?
        .collect()
}

/// How many clusters there are.
pub fn how_many(db: &Connection) -> Result<usize> {
    let n: i64 = db.query_row("SELECT count(*) FROM clusters", [], |row| row.get(0))?;
    Ok(usize::try_from(n).unwrap_or(usize::MAX))
}

/// The sealed admin kubeconfig, if whoever registered the cluster gave one.
pub fn admin_kubeconfig(db: &Connection, id: &ClusterId) -> Result<Option<Vec<u8>>> {
    let found = db
        .query_row("SELECT admin_kubeconfig FROM clusters WHERE id = ?1", [id.as_str()], |row| {
            row.get(0)
        })
        .optional()?;
    Ok(found.flatten())
}

/// Removes a cluster and all that is kept of it.
pub fn remove(db: &Connection, id: &ClusterId) -> Result<()> {
    for table in ["join_tokens", "agents", "observations", "leases", "jobs", "event_acks"] {
        db.execute(&format!("DELETE FROM {table} WHERE cluster = ?1"), [id.as_str()])?;
    }
    db.execute("DELETE FROM clusters WHERE id = ?1", [id.as_str()])?;
    Ok(())
}

/// Stores what a commit made of the cluster. Answers false, and changes nothing, unless the
/// stored revision is the one just before.
pub fn update(db: &Connection, cluster: &Cluster) -> Result<bool> {
    let changed = db
        .prepare_cached(
            "UPDATE clusters SET revision = ?2, doc = ?3 WHERE id = ?1 AND revision = ?2 - 1",
        )?
        .execute(params![cluster.id.as_str(), number(cluster.revision), text(cluster)])?;
    Ok(changed == 1)
}

/// Keeps the master status that is shown from now on, and since when.
pub fn set_master_status(db: &Connection, id: &ClusterId, status: &str, now: UnixMs) -> Result<()> {
    db.prepare_cached(
        "UPDATE clusters SET master_status = ?2, master_status_ms = ?3
         WHERE id = ?1 AND master_status <> ?2",
    )?
    .execute(params![id.as_str(), status, now.0])?;
    Ok(())
}

/// The server came back from a backup: agents may hold KEKs of every cluster that it lacks.
pub fn restored(db: &Connection, restore: RestoreId) -> Result<()> {
    db.execute("UPDATE clusters SET restored = ?1", [restore.to_string()])?;
    Ok(())
}

/// Every agent of the cluster has said that it holds no KEK which this server lacks.
pub fn restore_settled(db: &Connection, id: &ClusterId) -> Result<()> {
    db.prepare_cached("UPDATE clusters SET restored = NULL WHERE id = ?1")?
        .execute([id.as_str()])?;
    Ok(())
}

/// Adds a join token by its keyed hash, and forgets those of the cluster that ended before
/// `forget_before`.
pub fn insert_join_token(
    db: &Connection,
    tag: &[u8; 32],
    cluster: &ClusterId,
    by: &str,
    expires: UnixMs,
    forget_before: UnixMs,
) -> Result<()> {
    db.execute(
        "DELETE FROM join_tokens WHERE cluster = ?1 AND expires_ms < ?2",
        params![cluster.as_str(), forget_before.0],
    )?;
    db.execute(
        "INSERT INTO join_tokens (tag, cluster, made_by, expires_ms) VALUES (?1, ?2, ?3, ?4)",
        params![tag.as_slice(), cluster.as_str(), by, expires.0],
    )?;
    Ok(())
}

/// How many unused tokens the cluster has that are still good at `now`.
pub fn open_join_tokens(db: &Connection, cluster: &ClusterId, now: UnixMs) -> Result<usize> {
    let n: i64 = db.query_row(
        "SELECT count(*) FROM join_tokens WHERE cluster = ?1 AND expires_ms > ?2 AND used_ms IS NULL",
        params![cluster.as_str(), now.0],
        |row| row.get(0),
    )?;
    Ok(usize::try_from(n).unwrap_or(usize::MAX))
}

/// What became of a join token that somebody showed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TokenUse {
    /// It was good and is used up now.
    Good(ClusterId),
    /// Nobody made it, or it was forgotten.
    Unknown,
    /// Its hour is over.
    Expired,
    /// This agent joined with it and this very key before, within the token's time.
    Again {
        /// The cluster.
        cluster: ClusterId,
        /// When it joined.
        joined: UnixMs,
    },
    /// An agent joined with it before.
    Used {
        /// Which.
        by: String,
    },
}

/// Uses a join token up, for an agent whose public key hashes to `key`. It counts as used at the
/// last time that this agent showed it.
pub fn use_join_token(
    db: &Connection,
    tag: &[u8; 32],
    agent: &AgentName,
    key: &[u8; 32],
    now: UnixMs,
) -> Result<TokenUse> {
    struct Found {
        cluster: ClusterId,
        expires: i64,
        used: Option<(String, Option<Vec<u8>>, i64)>,
    }
    let sql = "SELECT cluster, expires_ms, used_by, used_key, used_ms FROM join_tokens
               WHERE tag = ?1";
    let read = |row: &Row<'_>| {
        let used_by: Option<String> = row.get(2)?;
        let used = match used_by {
            Some(by) => Some((by, row.get(3)?, row.get(4)?)),
            None => None,
        };
        Ok(Found { cluster: parsed(row, 0)?, expires: row.get(1)?, used })
    };
    let Some(found) = db.query_row(sql, [tag.as_slice()], read).optional()? else {
        return Ok(TokenUse::Unknown);
    };
    let in_time = found.expires > now.0;
    let answer = match found.used {
        None if !in_time => return Ok(TokenUse::Expired),
        None => TokenUse::Good(found.cluster),
        Some((by, used_key, used_ms))
            if in_time && by == agent.as_str() && used_key.as_deref() == Some(key.as_slice()) =>
        {
            TokenUse::Again { cluster: found.cluster, joined: UnixMs(used_ms) }
        }
        Some((by, ..)) => return Ok(TokenUse::Used { by }),
    };
    db.execute(
        "UPDATE join_tokens SET used_ms = ?2, used_by = ?3, used_key = ?4 WHERE tag = ?1",
        params![tag.as_slice(), now.0, agent.as_str(), key.as_slice()],
    )?;
    Ok(answer)
}

/// An agent and the certificate that counts for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AgentRow {
    /// Its name.
    pub name: AgentName,
    /// SHA-256 of its certificate, hexadecimal.
    pub fingerprint: String,
    /// That of the certificate before the last renewal.
    pub previous: Option<String>,
    /// When its certificate ends.
    pub not_after: UnixMs,
    /// When it joined last.
    pub joined: UnixMs,
    /// When it last proved who it is.
    pub last_contact: UnixMs,
}

fn agent_row(row: &Row<'_>) -> Result<AgentRow> {
    Ok(AgentRow {
        name: parsed(row, 0)?,
        fingerprint: row.get(1)?,
        previous: row.get(2)?,
        not_after: UnixMs(row.get(3)?),
        joined: UnixMs(row.get(4)?),
        last_contact: UnixMs(row.get(5)?),
    })
}

const AGENT_COLUMNS: &str = "name, fingerprint, previous, not_after_ms, joined_ms, last_contact_ms";

/// The agents of a cluster, by name.
pub fn agents(db: &Connection, cluster: &ClusterId) -> Result<Vec<AgentRow>> {
    db.prepare_cached(&format!(
        "SELECT {AGENT_COLUMNS} FROM agents WHERE cluster = ?1 ORDER BY name"
    ))?
    .query_map([cluster.as_str()], agent_row)?
    .collect()
}

/// One agent.
pub fn agent(db: &Connection, cluster: &ClusterId, name: &AgentName) -> Result<Option<AgentRow>> {
    db.prepare_cached(&format!(
        "SELECT {AGENT_COLUMNS} FROM agents WHERE cluster = ?1 AND name = ?2"
    ))?
    .query_row([cluster.as_str(), name.as_str()], agent_row)
    .optional()
}

/// An agent joined: from now on this certificate alone counts for its name.
pub fn agent_joined(
    db: &Connection,
    cluster: &ClusterId,
    name: &AgentName,
    fingerprint: &str,
    not_after: UnixMs,
    now: UnixMs,
) -> Result<()> {
    db.execute(
        "INSERT INTO agents (cluster, name, fingerprint, not_after_ms, joined_ms, last_contact_ms)
         VALUES (?1, ?2, ?3, ?4, ?5, ?5)
         ON CONFLICT (cluster, name) DO UPDATE SET fingerprint = ?3, previous = NULL,
             not_after_ms = ?4, joined_ms = ?5, last_contact_ms = ?5",
        params![cluster.as_str(), name.as_str(), fingerprint, not_after.0, now.0],
    )?;
    Ok(())
}

/// An agent renewed its certificate, showing `shown`. Both count: the answer may be lost.
pub fn agent_renewed(
    db: &Connection,
    cluster: &ClusterId,
    name: &AgentName,
    shown: &str,
    fingerprint: &str,
    not_after: UnixMs,
) -> Result<()> {
    db.execute(
        "UPDATE agents SET previous = ?3, fingerprint = ?4, not_after_ms = ?5
         WHERE cluster = ?1 AND name = ?2",
        params![cluster.as_str(), name.as_str(), shown, fingerprint, not_after.0],
    )?;
    Ok(())
}

/// An agent left for good: no certificate counts for its name, and its words are forgotten. The
/// lease stays, so that its fencing token never falls.
pub fn agent_left(db: &Connection, cluster: &ClusterId, name: &AgentName) -> Result<()> {
    let who = params![cluster.as_str(), name.as_str()];
    db.execute("DELETE FROM agents WHERE cluster = ?1 AND name = ?2", who)?;
    db.execute("DELETE FROM observations WHERE cluster = ?1 AND agent = ?2", who)?;
    db.execute("DELETE FROM event_acks WHERE cluster = ?1 AND agent = ?2", who)?;
    Ok(())
}

/// Notes that an agent proved who it is.
pub fn agent_contact(
    db: &Connection,
    cluster: &ClusterId,
    name: &AgentName,
    now: UnixMs,
) -> Result<()> {
    db.prepare_cached("UPDATE agents SET last_contact_ms = ?3 WHERE cluster = ?1 AND name = ?2")?
        .execute(params![cluster.as_str(), name.as_str(), now.0])?;
    Ok(())
}

/// Stores an agent's newest observation.
pub fn observe(db: &Connection, cluster: &ClusterId, seen: &Seen) -> Result<()> {
    db.prepare_cached(
        "INSERT INTO observations (cluster, agent, at_ms, doc) VALUES (?1, ?2, ?3, ?4)
         ON CONFLICT (cluster, agent) DO UPDATE SET at_ms = ?3, doc = ?4",
    )?
    .execute(params![
        cluster.as_str(),
        seen.observation.agent.as_str(),
        seen.at.0,
        text(&seen.observation)
    ])?;
    Ok(())
}

/// The newest observation of one agent.
pub fn seen_of(db: &Connection, cluster: &ClusterId, agent: &AgentName) -> Result<Option<Seen>> {
    db.prepare_cached("SELECT doc, at_ms FROM observations WHERE cluster = ?1 AND agent = ?2")?
        .query_row([cluster.as_str(), agent.as_str()], |row| {
            Ok(Seen { observation: json(row, 0)?, at: UnixMs(row.get(1)?) })
        })
        .optional()
}

/// The newest observation of every agent of a cluster.
pub fn seen(db: &Connection, cluster: &ClusterId) -> Result<BTreeMap<AgentName, Seen>> {
    db.prepare_cached("SELECT doc, at_ms FROM observations WHERE cluster = ?1")?
        .query_map([cluster.as_str()], |row| {
            let observation: Observation = json(row, 0)?;
            Ok((observation.agent.clone(), Seen { observation, at: UnixMs(row.get(1)?) }))
        })?
        .collect()
}

/// The lease of a cluster, held or ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeaseRow {
    /// Who holds it, or held it last.
    pub agent: AgentName,
    /// Rises with each new holder.
    pub fencing: u64,
    /// Until when.
    pub until: UnixMs,
}

/// The lease of a cluster; none before anybody ever held it.
pub fn lease(db: &Connection, cluster: &ClusterId) -> Result<Option<LeaseRow>> {
    db.prepare_cached("SELECT agent, fencing, until_ms FROM leases WHERE cluster = ?1")?
        .query_row([cluster.as_str()], |row| {
            Ok(LeaseRow {
                agent: parsed(row, 0)?,
                fencing: unsigned(row.get(1)?),
                until: UnixMs(row.get(2)?),
            })
        })
        .optional()
}

/// Stores the lease of a cluster.
pub fn set_lease(db: &Connection, cluster: &ClusterId, lease: &LeaseRow) -> Result<()> {
    db.prepare_cached(
        "INSERT INTO leases (cluster, agent, fencing, until_ms) VALUES (?1, ?2, ?3, ?4)
         ON CONFLICT (cluster) DO UPDATE SET agent = ?2, fencing = ?3, until_ms = ?4",
    )?
    .execute(params![
        cluster.as_str(),
        lease.agent.as_str(),
        number(lease.fencing),
        lease.until.0
    ])?;
    Ok(())
}

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

fn state(row: &Row<'_>, column: usize) -> Result<KeyState> {
    let text: String = row.get(column)?;
    KeyState::ALL
        .into_iter()
        .find(|s| s.to_string() == text)
        .ok_or_else(|| broken(column, format!("{text:?} is no key state")))
}

fn parsed<T: FromStr<Err: std::fmt::Display>>(row: &Row<'_>, column: usize) -> Result<T> {
    row.get::<_, String>(column)?.parse().map_err(|e: T::Err| broken(column, e.to_string()))
}

fn json<T: DeserializeOwned>(row: &Row<'_>, column: usize) -> Result<T> {
    let text: String = row.get(column)?;
    serde_json::from_str(&text).map_err(|e| broken(column, e.to_string()))
}

/// A row that this build cannot read: damaged, or written by a newer build.
fn broken(column: usize, why: String) -> rusqlite::Error {
    rusqlite::Error::FromSqlConversionFailure(column, Type::Text, why.into())
}

fn text<T: serde::Serialize>(value: &T) -> String {
    serde_json::to_string(value).expect("these types have string keys and no failing serializer")
}

/// SQLite's integers are signed; revisions, events and fencing tokens start at 0 and count up.
fn number(n: u64) -> i64 {
    i64::try_from(n).expect("a counter that rises by one does not reach 2^63")
}

fn unsigned(n: i64) -> u64 {
    u64::try_from(n).unwrap_or(0)
}

fn count(n: usize) -> i64 {
    i64::try_from(n).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use claviger_domain::cluster::ring::Ring;
    use claviger_domain::id::{InstanceId, KeyId};

    fn database() -> Connection {
        let db = Connection::open_in_memory().unwrap();
        db.execute_batch("PRAGMA foreign_keys = ON").unwrap();
        db.execute_batch(include_str!("../migrations/0002_clusters.sql")).unwrap();
        db.execute_batch(include_str!("../migrations/0006_restore_and_join.sql")).unwrap();
        db
    }

    fn row(name: &str) -> ClusterRow {
        let id = ClusterId::random();
        ClusterRow {
            crn: format!("crn:v1:claviger:public:containers-kubernetes:local:a/x:{id}::"),
            cluster: Cluster {
                id,
                name: name.into(),
                created: UnixMs(1),
                revision: 0,
                ring: Ring::default(),
                servers: BTreeMap::new(),
                operation: None,
                history: Vec::new(),
                used: Vec::new(),
                public_endpoint: false,
                verified: None,
                residue: None,
                disproof: None,
            },
            server_url: "https://127.0.0.1:6443".into(),
            ca: String::new(),
            registered_by: "IBMid-1".into(),
            master_status: "Ready".into(),
            master_status_since: UnixMs(1),
            restored: None,
        }
    }

    #[test]
    fn a_cluster_is_found_by_id_and_name_and_an_id_wins() {
        let db = database();
        let a = row("a");
        insert(&db, &a, Some(b"sealed")).unwrap();
        let mut b = row("b");
        b.cluster.name = a.cluster.id.to_string();
        insert(&db, &b, None).unwrap();
        let found = |what: &str| find(&db, what).unwrap().map(|r| r.cluster.id);
        assert_eq!(found("a"), Some(a.cluster.id.clone()));
        assert_eq!(found(a.cluster.id.as_str()), Some(a.cluster.id.clone()));
        assert_eq!(found("c"), None);
        assert_eq!(admin_kubeconfig(&db, &a.cluster.id).unwrap().as_deref(), Some(&b"sealed"[..]));
        assert_eq!(admin_kubeconfig(&db, &b.cluster.id).unwrap(), None);
        let taken = insert(&db, &row("a"), None).unwrap_err();
        assert!(name_taken(&taken), "{taken}");
    }

    #[test]
    fn a_commit_is_stored_only_upon_the_revision_before_it() {
        let db = database();
        let mut a = row("a");
        insert(&db, &a, None).unwrap();
        a.cluster.revision = 2;
        assert!(!update(&db, &a.cluster).unwrap(), "skips a revision");
        a.cluster.revision = 1;
        assert!(update(&db, &a.cluster).unwrap());
        assert!(!update(&db, &a.cluster).unwrap(), "the same commit again");
        assert_eq!(get(&db, &a.cluster.id).unwrap().unwrap().cluster.revision, 1);
    }

    #[test]
    fn a_join_token_is_good_once_and_for_its_time() {
        let db = database();
        let a = row("a");
        insert(&db, &a, None).unwrap();
        let id = &a.cluster.id;
        let node: AgentName = "n1".parse().unwrap();
        insert_join_token(&db, &[1; 32], id, "me", UnixMs(100), UnixMs(0)).unwrap();
        insert_join_token(&db, &[2; 32], id, "me", UnixMs(100), UnixMs(0)).unwrap();
        assert_eq!(open_join_tokens(&db, id, UnixMs(99)).unwrap(), 2);
        let other: AgentName = "n2".parse().unwrap();
        let by = |tag, node, key, now| {
            use_join_token(&db, &[tag; 32], node, &[key; 32], UnixMs(now)).unwrap()
        };
        let used = |tag, now| by(tag, &node, 7, now);
        assert_eq!(used(3, 50), TokenUse::Unknown);
        assert_eq!(used(1, 50), TokenUse::Good(id.clone()));
        let burnt = TokenUse::Used { by: "n1".into() };
        let again = |joined| TokenUse::Again { cluster: id.clone(), joined: UnixMs(joined) };
        assert_eq!(used(1, 51), again(50), "the answer was lost");
        assert_eq!(used(1, 52), again(51), "twice");
        assert_eq!(by(1, &node, 8, 51), burnt, "another key");
        assert_eq!(by(1, &other, 7, 51), burnt, "another name");
        assert_eq!(used(1, 100), burnt, "its hour is over");
        assert_eq!(used(2, 100), TokenUse::Expired);
        insert_join_token(&db, &[4; 32], id, "me", UnixMs(300), UnixMs(200)).unwrap();
        assert_eq!(used(2, 50), TokenUse::Unknown, "forgotten");
    }

    #[test]
    fn only_the_newest_acknowledgements_of_an_agent_are_kept() {
        let db = database();
        let a = row("a");
        insert(&db, &a, None).unwrap();
        let root = RootKey { instance: InstanceId::random(), key: KeyId::random() };
        let ack = |event, fenced| AckRow {
            cluster: a.cluster.id.clone(),
            agent: "n1".parse().unwrap(),
            root,
            event,
            state: KeyState::Suspended,
            fenced,
            at: UnixMs(5),
        };
        for event in 1..=ACKS_KEPT as u64 + 5 {
            acknowledge(&db, &ack(event, false)).unwrap();
        }
        acknowledge(&db, &ack(ACKS_KEPT as u64 + 5, true)).unwrap();
        let kept = acks_of_key(&db, &root).unwrap();
        assert_eq!(kept.len(), ACKS_KEPT);
        assert_eq!(kept.first(), Some(&ack(ACKS_KEPT as u64 + 5, true)));
        assert_eq!(kept.last().map(|k| k.event), Some(6));
    }

    #[test]
    fn the_master_status_keeps_its_time_while_the_text_stays() {
        let db = database();
        let a = row("a");
        insert(&db, &a, None).unwrap();
        let since = || get(&db, &a.cluster.id).unwrap().unwrap().master_status_since.0;
        set_master_status(&db, &a.cluster.id, "Ready", UnixMs(9)).unwrap();
        assert_eq!(since(), 1);
        set_master_status(&db, &a.cluster.id, "Other", UnixMs(9)).unwrap();
        assert_eq!(since(), 9);
    }
}
