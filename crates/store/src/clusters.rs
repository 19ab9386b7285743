//! Rows of the cluster service: clusters, their agents, leases, jobs and acknowledgements.
//!
//! Functions here read and write rows inside a transaction that somebody else opened; they know
//! no rules. What a change may be is for `domain::cluster::commit`.

use claviger_domain::cluster::Cluster;
use claviger_domain::id::{ClusterId, RestoreId, UnixMs};
use claviger_domain::key::KeyState;
use rusqlite::types::Type;
use rusqlite::{Connection, OptionalExtension, Result, Row, named_params, params};
use serde::de::DeserializeOwned;
use std::str::FromStr;

mod agents;
mod jobs;
pub use agents::{
    AgentRow, LeaseRow, TokenUse, agent, agent_contact, agent_joined, agent_left, agent_renewed,
    agents, insert_join_token, lease, observe, open_join_tokens, seen, seen_of, set_lease,
    use_join_token,
};
pub use jobs::{
    ACKS_KEPT, AckRow, JobRow, acknowledge, acks_of_key, forget_jobs, insert_job, job, open_jobs,
    report_job,
};

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
    use claviger_domain::id::{AgentName, InstanceId, KeyId};
    use claviger_domain::key::RootKey;

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
            cluster: Cluster::new(id, name.into(), UnixMs(1)),
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
