//! What an agent reads: the cluster's truth, its root keys, its fellow agents, its jobs.

use super::fault::Fault;
use super::limits::JOB_LIFE_MS;
use super::{jobs, roots};
use claviger_domain::cluster::plan::must_fence;
use claviger_domain::cluster::project::{Projection, project};
use claviger_domain::cluster::{Access, RootStatus, Seen};
use claviger_domain::id::{AgentName, ClusterId, UnixMs};
use claviger_domain::key::KeyState;
use claviger_store::clusters::{self, ClusterRow};
use claviger_store::{StoreError, Tx};
use claviger_wire::agent::{LeaseHolder, Nudge, State};
use std::collections::BTreeMap;

/// A cluster with everything that decisions about it rest on, of one moment.
pub struct Whole {
    /// The row.
    pub row: ClusterRow,
    /// Its agents' words.
    pub seen: BTreeMap<AgentName, Seen>,
    /// Its root keys.
    pub roots: Vec<RootStatus>,
}

impl Whole {
    /// Reads what belongs to `row`.
    pub fn of(tx: &Tx<'_>, row: ClusterRow, now: UnixMs) -> Result<Whole, StoreError> {
        let seen = clusters::seen(tx, &row.cluster.id)?;
        let roots = roots::statuses(tx, &roots::roots_of(&row.cluster), now)?;
        Ok(Whole { row, seen, roots })
    }

    /// In the words of the public API.
    pub fn projection(&self, now: UnixMs) -> Projection {
        project(&self.row.cluster, &self.seen, &self.roots, now)
    }

    /// Why nobody may reach the cluster now, if so: its root key is not active, or an API server
    /// is fenced still.
    pub fn closed(&self) -> Option<String> {
        let shut = must_fence(&self.row.cluster, &self.roots);
        if let Some(root) = shut.filter(|root| root.state == KeyState::Deactivated) {
            return Some(format!(
                "root key {} has expired, which cannot be undone: the cluster stays closed, and what is left are backups of etcd from before it was under this key",
                root.root.key
            ));
        }
        if let Some(root) = shut {
            return Some(format!(
                "root key {} is {}: the cluster is closed until it is active again",
                root.root.key, root.state
            ));
        }
        let servers = &self.row.cluster.servers;
        self.seen
            .iter()
            .find(|(agent, s)| {
                servers.contains_key(*agent)
                    && matches!(
                        s.observation.access,
                        Access::Fenced { .. } | Access::Closing { .. }
                    )
            })
            .map(|(agent, _)| {
                format!("the API server of agent {agent} is fenced and has not returned yet")
            })
    }
}

/// The row of a cluster that a certificate names.
pub fn row_of(tx: &Tx<'_>, cluster: &ClusterId) -> Result<ClusterRow, Fault> {
    clusters::get(tx, cluster)?.ok_or_else(|| Fault::NoCluster(cluster.to_string()))
}

/// Everything an agent needs to know.
pub fn state_of(
    tx: &Tx<'_>,
    whole: &Whole,
    key_service: &str,
    now: UnixMs,
) -> Result<State, StoreError> {
    let id = &whole.row.cluster.id;
    let lease = clusters::lease(tx, id)?
        .filter(|lease| lease.until > now)
        .map(|lease| LeaseHolder { agent: lease.agent, until: lease.until });
    let open = clusters::open_jobs(tx, id, UnixMs(now.0 - JOB_LIFE_MS))?;
    Ok(State {
        cluster: whole.row.cluster.clone(),
        seen: whole.seen.clone(),
        roots: whole.roots.clone(),
        lease,
        jobs: open.iter().map(jobs::job).collect::<Result<_, _>>()?,
        crn: whole.row.crn.clone(),
        key_service: key_service.to_owned(),
        restored: whole.row.restored,
        now,
    })
}

/// What a stream says when it has something to say.
pub fn nudge_of(tx: &Tx<'_>, cluster: &ClusterId) -> Result<Nudge, Fault> {
    let row = row_of(tx, cluster)?;
    let event = roots::newest_event(tx, &row.cluster)?;
    Ok(Nudge { revision: row.cluster.revision, event })
}

/// Ends the time in which agents give KEKs back, once each has said by this restore's truth that it
/// holds none which this server lacks.
pub fn settle_restore(tx: &Tx<'_>, whole: &mut Whole) -> Result<(), StoreError> {
    let Some(restore) = whole.row.restored else { return Ok(()) };
    let lacks_none = |agent| {
        whole.seen.get(agent).is_some_and(|s| {
            s.observation.restored == Some(restore) && s.observation.ahead.is_none()
        })
    };
    if whole.row.cluster.servers.keys().all(lacks_none) {
        clusters::restore_settled(tx, &whole.row.cluster.id)?;
        whole.row.restored = None;
    }
    Ok(())
}

/// Keeps the time at which the master status became what it is now.
pub fn keep_status(tx: &Tx<'_>, whole: &Whole, now: UnixMs) -> Result<(), StoreError> {
    let shown = whole.projection(now).master_status;
    if shown != whole.row.master_status {
        clusters::set_master_status(tx, &whole.row.cluster.id, &shown, now)?;
    }
    Ok(())
}
