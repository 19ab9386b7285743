//! What an operator asked this cluster's agents for. Whoever holds the lease does it; a job that
//! a killed agent had begun is begun again.

use super::lease::Lease;
use super::verify;
use crate::contact::wall;
use crate::node::Node;
use crate::run::with_causes;
use crate::scrub::Scrub;
use claviger_domain::cluster::commit::Commit;
use claviger_domain::cluster::{Cluster, Tally, Verified};
use claviger_domain::id::JobId;
use claviger_domain::key::RootVersion;
use claviger_etcd::EtcdConfig;
use claviger_etcd::census::{Census, Keep};
use claviger_supervise::Supervisor;
use claviger_supervise::unit::ProcessUnit;
use claviger_wire::agent::{CommitRequest, Job, JobKind, JobReport, State, code};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Does jobs.
pub struct Jobs {
    node: Arc<Node>,
    lease: Lease,
    /// Ended, though the server may not show it yet; with the report that it has not taken. What
    /// was done is not done again for that: a scrub stops API servers.
    ended: BTreeMap<JobId, Option<JobReport>>,
    /// What each open job was said to wait for.
    noted: BTreeMap<JobId, String>,
}

/// Why a job has no result.
enum Undone {
    /// It ends without one.
    Failed(String),
    /// It is begun again at a later look.
    Waits(String),
}

impl From<String> for Undone {
    fn from(reason: String) -> Self {
        Undone::Failed(reason)
    }
}

impl Jobs {
    /// For `node`, under `lease`.
    pub fn new(node: Arc<Node>, lease: Lease) -> Self {
        Self { node, lease, ended: BTreeMap::new(), noted: BTreeMap::new() }
    }

    /// Does what is open and can be done now, one after the other.
    pub async fn look(&mut self, state: &State) {
        let open = |id: &JobId| state.jobs.iter().any(|job| job.id == *id);
        self.ended.retain(|id, _| open(id));
        self.noted.retain(|id, _| open(id));
        for job in &state.jobs {
            if !self.lease.held() {
                continue;
            }
            if let Some(untold) = self.ended.get(&job.id) {
                if let Some(report) = untold
                    && self.report(job, report).await
                {
                    self.ended.insert(job.id, None);
                }
                continue;
            }
            if job.kind == JobKind::Scrub && state.cluster.operation.is_some() {
                self.note(job, "waits for the operation to end".to_owned()).await;
                continue;
            }
            let report = match self.run(state, job).await {
                Ok(result) => JobReport::Done { result },
                Err(Undone::Failed(reason)) => JobReport::Failed { reason },
                Err(Undone::Waits(note)) => {
                    self.note(job, note).await;
                    continue;
                }
            };
            let told = self.report(job, &report).await;
            self.ended.insert(job.id, (!told).then_some(report));
        }
    }

    async fn report(&self, job: &Job, report: &JobReport) -> bool {
        match self.node.clients().api.report(job.id, report).await {
            Ok(()) => true,
            Err(error) => {
                tracing::warn!(%error, "cannot report a job");
                false
            }
        }
    }

    /// Says what a job waits for, once: each report is a row, and wakes everybody.
    async fn note(&mut self, job: &Job, note: String) {
        if self.noted.get(&job.id) != Some(&note)
            && self.report(job, &JobReport::Running { note: note.clone() }).await
        {
            self.noted.insert(job.id, note);
        }
    }

    async fn run(&self, state: &State, job: &Job) -> Result<Value, Undone> {
        tracing::info!(kind = ?job.kind, "doing a job");
        match job.kind {
            JobKind::Census => self.census(state, job).await,
            JobKind::Verify => self.verify(state, job).await,
            JobKind::Scrub => self.scrub(state, job).await,
        }
    }

    async fn census(&self, state: &State, job: &Job) -> Result<Value, Undone> {
        let census =
            Census::take(&self.node.local.etcd(), &super::resources(), Keep::Counts, wall())
                .await
                .map_err(chain)?;
        self.keep(state, job, census.tally(&state.cluster.id, &state.cluster.ring)).await?;
        let used = state.cluster.ring.write().map(|kek| kek.root.root);
        let current = used
            .and_then(|root| state.roots.iter().find(|r| r.root == root))
            .and_then(|r| Some(RootVersion { root: r.root, version: r.current? }));
        Ok(json!({ "census": census, "current": current }))
    }

    async fn verify(&self, state: &State, job: &Job) -> Result<Value, Undone> {
        let proven = match verify::current(&state.cluster, &state.roots) {
            Ok(()) => verify::prove(&self.node, &state.cluster, state.now).await,
            Err(error) => Err(error),
        };
        match &proven {
            Ok(Verified { revision, records, .. }) => {
                let (revision, total) = (*revision, *records);
                let tally = Tally { revision, total, current: total, ..Tally::default() };
                self.keep(state, job, tally).await?;
            }
            Err(verify::VerifyError::FallsShort(tally)) => self.keep(state, job, *tally).await?,
            Err(_) => {}
        }
        match proven {
            Ok(proof) => Ok(json!({
                "good": true,
                "revision": proof.revision,
                "records": proof.records,
                "sampled": proof.sampled,
            })),
            Err(verify::VerifyError::Etcd(error)) => Err(chain(error).into()),
            Err(error) => Ok(json!({ "good": false, "why": error.to_string() })),
        }
    }

    /// Has the cluster remember what a count found, where that disproves its proof or takes a disproof
    /// back: then it rewrites what is under an older key, and says what else there is. While an
    /// operation is in progress that proves by itself.
    async fn keep(&self, state: &State, job: &Job, tally: Tally) -> Result<(), Undone> {
        if !is_news(&state.cluster, &tally) {
            return Ok(());
        }
        let over = || Undone::Waits("to be counted again under a new lease".to_owned());
        let fencing = self.lease.fencing().ok_or_else(over)?;
        let commit = Commit::Counted { job: job.id, tally: Tally { at: state.now, ..tally } };
        let request = CommitRequest { fencing, revision: state.cluster.revision, commit };
        match self.node.clients().api.commit(&request).await {
            Ok(state) => Ok(self.node.took(state).map_err(chain)?),
            Err(error) if error.reason() == Some(code::STALE_FENCING) => Err(over()),
            Err(error) if error.reason() == Some(code::STALE_REVISION) => {
                Err(Undone::Waits("the cluster changed while it was counted; again".to_owned()))
            }
            // The operator gets the result all the same.
            Err(error) => {
                tracing::warn!(error = %with_causes(&error), "what a count found is not kept");
                Ok(())
            }
        }
    }

    async fn scrub(&self, state: &State, job: &Job) -> Result<Value, Undone> {
        let scrub = scrub_here(&self.node, &state.cluster)?;
        if !self.noted.contains_key(&job.id) {
            let note = "stopping the API server to rebuild etcd's files".to_owned();
            self.report(job, &JobReport::Running { note }).await;
        }
        let say = |text: &str| tracing::info!("scrub: {text}");
        let outcome = scrub.run(&say).await.map_err(|error| {
            let text = with_causes(&error);
            // What filled the disk in the middle was rolled back, and begins anew once there is room.
            if error.waits() || scrub.lacks_room() {
                Undone::Waits(text)
            } else {
                Undone::Failed(text)
            }
        })?;
        let residue = outcome.after.residue(0, wall());
        // The revision may have moved meanwhile: the figures are worth a second try.
        for _ in 0..5 {
            let latest = self.node.clients().api.state().await.map_err(chain)?;
            let fencing = self.lease.fencing().ok_or("the lease is over".to_owned())?;
            let revision = latest.cluster.revision;
            let request = CommitRequest { fencing, revision, commit: Commit::Residue { residue } };
            match self.node.clients().api.commit(&request).await {
                Ok(state) => {
                    self.node.took(state).map_err(chain)?;
                    break;
                }
                Err(error) => tracing::debug!(%error, "cannot tell the residue yet"),
            }
        }
        Ok(serde_json::to_value(outcome).map_err(chain)?)
    }
}

/// Whether what a count found is to be remembered.
fn is_news(cluster: &Cluster, tally: &Tally) -> bool {
    let rests = cluster.operation.is_none() && cluster.ring.write().is_some();
    let short = tally.rewritable() + tally.unknown > 0;
    rests && (short || cluster.disproof.is_some())
}

/// The scrub of this node's etcd, where that stops everything which writes to it: an API server that
/// runs elsewhere would go on. Whether etcd has a single member, the scrub sees by itself.
pub fn scrub_here(node: &Node, cluster: &Cluster) -> Result<Scrub, String> {
    stops_all(cluster.servers.len(), node.config.etcd.api_server_units.len())?;
    scrub_of(node)
}

/// Whether a node that stops its own API server and `others` stops all of them.
fn stops_all(servers: usize, others: usize) -> Result<(), String> {
    let stopped = 1 + others;
    if servers > stopped {
        return Err(format!(
            "this cluster has {servers} API servers and this node stops {stopped}; clear etcd's members one after the other by replacing them"
        ));
    }
    Ok(())
}

/// The scrub of this node's etcd, where the agent may stop it.
pub fn scrub_of(node: &Node) -> Result<Scrub, String> {
    let etcd = &node.config.etcd;
    let missing =
        "scrub needs etcd.data_dir, etcd.unit_dir and etcd.etcdutl in the agent's settings";
    let (Some(data_dir), Some(unit_dir), Some(etcdutl)) =
        (&etcd.data_dir, &etcd.unit_dir, &etcd.etcdutl)
    else {
        return Err(missing.to_owned());
    };
    let member: Arc<dyn Supervisor> = Arc::new(ProcessUnit::open(unit_dir).map_err(chain)?);
    let own = node.config.api_server.unit_dir.clone();
    let mut api_servers = vec![(own, Arc::clone(&node.supervisor))];
    for unit in &etcd.api_server_units {
        api_servers.push((unit.clone(), Arc::new(ProcessUnit::open(unit).map_err(chain)?)));
    }
    Ok(Scrub {
        etcd: EtcdConfig {
            endpoints: etcd.endpoints.clone(),
            ca: Some(etcd.ca.clone()),
            cert: Some(etcd.cert.clone()),
            key: Some(etcd.key.clone()),
            timeout: EtcdConfig::TIMEOUT,
        },
        member,
        api_servers,
        fence: node.config.state("fence.json"),
        data_dir: data_dir.clone(),
        cluster_token: "etcd-cluster".to_owned(),
        etcdutl: etcdutl.clone(),
    })
}

fn chain(error: impl std::error::Error) -> String {
    with_causes(&error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_count_found_is_kept_while_it_changes_what_is_known() {
        let (good, bad) = (Tally::default(), Tally { unknown: 1, ..Tally::default() });
        let mut cluster = crate::truth::tests::state(1, 1, 0, None).cluster;
        assert!(cluster.operation.is_none() && cluster.ring.write().is_some());
        assert!(!is_news(&cluster, &good) && is_news(&cluster, &bad));
        cluster.disproof = Some(bad);
        assert!(is_news(&cluster, &good), "it is taken back");
        cluster.ring.keks.clear();
        assert!(!is_news(&cluster, &bad), "nothing seals");
    }

    #[test]
    fn a_scrub_is_made_where_every_api_server_is_stopped() {
        for (servers, others) in [(1, 0), (1, 2), (3, 2)] {
            assert_eq!(stops_all(servers, others), Ok(()), "{servers} {others}");
        }
        let why = stops_all(3, 1).unwrap_err();
        assert!(why.contains("3 API servers and this node stops 2"), "{why}");
    }
}
