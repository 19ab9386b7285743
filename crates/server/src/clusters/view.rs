//! A cluster as IBM's clients decode it, and the whole of it for `ks kms status`.

use super::authorizations::access_of;
use super::state::{Whole, state_of};
use super::{roots, words};
use crate::app::App;
use claviger_domain::cluster::plan::must_fence;
use claviger_domain::cluster::{Access, Cluster, RootStatus, Seen, write_root};
use claviger_domain::features::{self, KubeVersion};
use claviger_domain::id::{AgentName, UnixMs};
use claviger_store::{StoreError, Tx, clusters, events};
use claviger_wire::ks::{
    AgentView, ClusterView, FeatureRow, Features, KmsStatus, KmsView, Lifecycle,
};
use std::collections::BTreeMap;

/// Name of the one resource group.
const RESOURCE_GROUP: &str = "default";

/// The version that each API server of the cluster said, none where it said nothing.
pub fn versions(cluster: &Cluster, seen: &BTreeMap<AgentName, Seen>) -> Vec<Option<KubeVersion>> {
    let said = |agent| seen.get(agent).and_then(|s: &Seen| s.observation.kubernetes.as_ref());
    cluster.servers.keys().map(|agent| said(agent)?.parse().ok()).collect()
}

/// The oldest version among the API servers, and the build of the agent beside it:
/// `1.37.2_0.1.0`; empty before any has spoken.
fn kube_version(whole: &Whole) -> String {
    let members = |agent: &&AgentName| whole.row.cluster.servers.contains_key(*agent);
    let spoken = whole.seen.iter().filter(|(agent, _)| members(agent)).filter_map(|(_, seen)| {
        let version: KubeVersion = seen.observation.kubernetes.as_deref()?.parse().ok()?;
        Some((version, &seen.observation.build))
    });
    spoken.min().map(|(version, build)| format!("{version}_{build}")).unwrap_or_default()
}

/// A cluster as `getCluster` shows it.
pub fn view(app: &App, whole: &Whole, now: UnixMs) -> ClusterView {
    let cluster = &whole.row.cluster;
    let shown = whole.projection(now);
    let since = if shown.master_status == whole.row.master_status {
        whole.row.master_status_since
    } else {
        now
    };
    let version = kube_version(whole);
    let date = |at: UnixMs| {
        jiff::Timestamp::from_millisecond(at.0).map(|t| format!("{t:.0}")).unwrap_or_default()
    };
    ClusterView {
        id: cluster.id.to_string(),
        name: cluster.name.clone(),
        state: shown.state.to_owned(),
        // About workers, of which this service knows none: the control plane's is the master
        // status, and a reason is told once.
        status: String::new(),
        created_date: date(cluster.created),
        location: app.account.region.clone(),
        region: app.account.region.clone(),
        resource_group: app.account.resource_group.to_string(),
        resource_group_name: RESOURCE_GROUP.to_owned(),
        provider: "claviger".to_owned(),
        kind: "kubernetes".to_owned(),
        master_kube_version: version.clone(),
        target_version: version,
        master_url: whole.row.server_url.clone(),
        server_url: whole.row.server_url.clone(),
        master_health: shown.master_health.to_owned(),
        master_status: shown.master_status.clone(),
        worker_count: 0,
        owner_email: String::new(),
        crn: whole.row.crn.clone(),
        lifecycle: Lifecycle {
            modified_date: date(since),
            master_status: shown.master_status,
            master_status_modified_date: date(since),
            master_health: shown.master_health.to_owned(),
            master_state: shown.master_state.to_owned(),
        },
        features: Features { key_protect_enabled: shown.enabled, pull_secret_applied: false },
        kms: kms(app, whole, now),
    }
}

/// How the cluster uses the key service; none before it ever did.
fn kms(app: &App, whole: &Whole, now: UnixMs) -> Option<KmsView> {
    let cluster = &whole.row.cluster;
    let write = cluster.ring.write();
    let operation = cluster.operation.as_ref();
    let root = write.map(|kek| kek.root.root).or(operation.map(|op| op.target))?;
    let phase = match operation {
        Some(_) => words::next(cluster, &whole.seen, &whole.roots, now),
        None => String::new(),
    };
    Some(KmsView {
        provider: "claviger".to_owned(),
        instance_id: Some(root.instance),
        crk_id: Some(root.key),
        endpoint: if cluster.public_endpoint { "public" } else { "private" }.to_owned(),
        endpoint_url: app.url(cluster.public_endpoint).to_owned(),
        phase,
        write_key_id: write.map(|kek| kek.key_id(&cluster.id)),
        rewrite: operation.and_then(|op| op.rewrite),
    })
}

/// Everything about a cluster's encryption.
pub fn status(app: &App, tx: &Tx<'_>, whole: &Whole, now: UnixMs) -> Result<KmsStatus, StoreError> {
    let cluster = &whole.row.cluster;
    let registered = match write_root(cluster) {
        Some(version) => roots::registered(tx, &version.root, &whole.row.crn)?,
        None => false,
    };
    let kubernetes = versions(cluster, &whole.seen);
    let enabled = cluster.is_proven();
    let missing = access_of(tx, &cluster.id)?.missing;
    let authorised = write_root(cluster).is_none_or(|version| !missing.contains(&version.root));
    let facts = features::Facts { kubernetes: &kubernetes, registered, enabled, authorised };
    let rows = features::table(&facts).into_iter().map(|f| FeatureRow {
        name: f.name.to_owned(),
        available: f.available == Some(true),
        known: f.available.is_some(),
        because: f.because,
    });
    let agents = agents(tx, whole)?;
    let next = words::closed(cluster, &whole.roots, &agents)
        .unwrap_or_else(|| words::next(cluster, &whole.seen, &whole.roots, now));
    Ok(KmsStatus {
        view: view(app, whole, now),
        state: state_of(tx, whole, app.url(cluster.public_endpoint), now)?,
        next,
        features: rows.collect(),
        agents,
    })
}

/// Every agent, and whether it acted on the newest event of the key that closes the cluster, or else
/// of the one that writes.
fn agents(tx: &Tx<'_>, whole: &Whole) -> Result<Vec<AgentView>, StoreError> {
    let cluster = &whole.row.cluster;
    let closes = must_fence(cluster, &whole.roots);
    let write = write_root(cluster).map(|version| version.root);
    let status = closes.or_else(|| whole.roots.iter().find(|r| Some(r.root) == write));
    let status = status.filter(|r| r.event > 0);
    let event = status.map(|r| events::get(tx, r.event)).transpose()?.flatten();
    let closed = event.filter(|_| closes.is_some()).map(|event| event.at);
    let acks = match status {
        Some(status) => clusters::acks_of_key(tx, &status.root)?,
        None => Vec::new(),
    };
    let rows = clusters::agents(tx, &cluster.id)?.into_iter().map(|row| {
        let ack = acks.iter().find(|a| a.cluster == cluster.id && a.agent == row.name);
        let spoke = whole.seen.get(&row.name).map_or(row.last_contact, |s| s.at);
        let newest = |s: &RootStatus| ack.is_some_and(|a| a.event >= s.event);
        let closing = matches!(
            whole.seen.get(&row.name).map(|s| &s.observation.access),
            Some(Access::Closing { .. })
        );
        let fenced = status.is_some_and(newest) && ack.is_some_and(|a| a.fenced) && !closing;
        AgentView {
            acknowledged: status.map(newest),
            unfenced_since: closed.filter(|_| cluster.servers.contains_key(&row.name) && !fenced),
            fenced: ack.is_some_and(|a| a.fenced),
            agent: row.name,
            not_after: row.not_after,
            last_contact: spoke.max(row.last_contact),
        }
    });
    Ok(rows.collect())
}
