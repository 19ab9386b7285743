//! Takes a cluster's registration off a root key that nothing of the cluster needs any more.
//!
//! A KEK keeps its root key from deletion for as long as old revisions or backups may be under it,
//! and of backups the server knows nothing: that they may die is for an operator to say. What the
//! server sees to is that no live record dies, by a census that one of the cluster's agents made
//! for this decision. The KEK stays in the ring, so what is under it opens until the root key is
//! deleted.

use super::fault::Fault;
use super::limits::BODY_MAX;
use super::operators::Shared;
use super::request::{Doing, allowed, json, recorded, renew};
use crate::app::App;
use crate::http::auth::Caller;
use axum::Json;
use axum::extract::{Path, Request, State};
use claviger_domain::access::PlatformRole::Administrator;
use claviger_domain::cluster::Cluster;
use claviger_domain::cluster::ring::Role;
use claviger_domain::id::{ClusterId, JobId, UnixMs};
use claviger_domain::key::{RootKey, RootVersion};
use claviger_domain::policy::Site;
use claviger_store::clusters::{self, ClusterRow};
use claviger_store::{StoreError, Tx, audit, registrations};
use claviger_wire::agent::{JobKind, JobReport};
use claviger_wire::ks::{ReleaseKey, Released};
use serde::Deserialize;
use std::collections::BTreeMap;

/// So long after it was asked for, a census counts for a release, in milliseconds: it says nothing
/// of what is put into etcd since.
const CENSUS_FRESH_MS: i64 = 10 * 60_000;

/// `POST /v3/clusters/{c}/kms/release`
pub async fn release_key(
    State(app): Shared,
    mut caller: Caller,
    Path(name): Path<String>,
    request: Request,
) -> Result<Json<Released>, Fault> {
    let asked: ReleaseKey = json(request, BODY_MAX).await?;
    let action = "containers-kubernetes.cluster-kms.release";
    let doing = Doing::by(&caller, action, &*name);
    let released = recorded(&app, doing, move |app, doing, now| {
        app.store.tx("release a root key", |tx| {
            renew(app, tx, &mut caller)?;
            let known = clusters::find(tx, &name)?;
            let site = known.as_ref().map_or(Site::Clusters, |row| Site::Cluster(&row.cluster.id));
            allowed(&caller, Administrator, site)?;
            let (target, released) = release(app, tx, &name, &asked, now)?;
            audit::add(tx, &Doing { target, ..doing.clone() }.done(now))?;
            Ok::<_, Fault>(released)
        })
    });
    Ok(Json(released.await?))
}

/// Takes the registration away, in the caller's transaction; with the cluster's CRN.
fn release(
    app: &App,
    tx: &Tx<'_>,
    name: &str,
    asked: &ReleaseKey,
    now: UnixMs,
) -> Result<(String, Released), Fault> {
    let root = RootKey { instance: asked.instance_id, key: asked.crk_id };
    let known = clusters::find(tx, name)?;
    let crn = match (&known, name.parse::<ClusterId>()) {
        (Some(row), _) => row.crn.clone(),
        // One that was removed: its registrations are all that is left of it.
        (None, Ok(id)) => app.account.cluster_crn(&id),
        (None, Err(_)) => return Err(Fault::NoCluster(name.chars().take(64).collect())),
    };
    if registrations::get(tx, &root, &crn)?.is_none() {
        return Err(match known {
            Some(_) => Fault::NotRegistered(root),
            None => Fault::NoCluster(name.chars().take(64).collect()),
        });
    }
    if let Some(row) = &known
        && let Some(why) = needed(&row.cluster, root)
    {
        return Err(Fault::InUse { root, why });
    }
    if !asked.force {
        return Err(Fault::BackupsMayDie(root));
    }
    let mut notes = Vec::new();
    match &known {
        Some(row) => counted(tx, row, asked.census, root, now)?,
        None => notes.push(
            "The cluster was removed from this server: what is under the key in its etcd was not counted."
                .to_owned(),
        ),
    }
    registrations::remove(tx, &root, &crn)?;
    notes.push(format!(
        "Root key {} can be deleted as far as this cluster goes. Until then backups under it open as before; afterwards they never do.",
        root.key
    ));
    Ok((crn, Released { crk_id: root.key, notes }))
}

/// What the cluster needs `root` for, if it does.
fn needed(cluster: &Cluster, root: RootKey) -> Option<&'static str> {
    let operation = cluster.operation.as_ref();
    if operation.is_some_and(|op| op.target == root || op.without == Some(root)) {
        return Some("the operation in progress is about it");
    }
    let mut roles = cluster.ring.keks.iter().filter(|k| k.root.root == root).map(|k| k.role);
    roles.find_map(|role| match role {
        Role::Write => Some("Secrets are written under it"),
        Role::Read => Some("Secrets may be under it until the operation in progress has ended"),
        Role::Staged => Some("API servers name a key under it in their configuration"),
        Role::Lost => Some("Secrets under it wait until it is active again"),
        Role::Retained => None,
    })
}

/// Whether the census of job `census` counts, and has no record under `root`.
fn counted(
    tx: &Tx<'_>,
    row: &ClusterRow,
    census: Option<JobId>,
    root: RootKey,
    now: UnixMs,
) -> Result<(), Fault> {
    let no = |why: &str| Err(Fault::NoCensus(why.to_owned()));
    let Some(id) = census else { return no("none was made for this") };
    let damaged = |e: serde_json::Error| StoreError::Damaged(format!("job: {e}"));
    let job = clusters::job(tx, &row.cluster.id, id)?.ok_or(Fault::NoJob(id))?;
    let kind: JobKind = serde_json::from_str(&job.kind).map_err(damaged)?;
    if kind != JobKind::Census {
        return no("the job is no census");
    }
    if now.0 - job.requested.0 > CENSUS_FRESH_MS {
        return no("the census is older than 10 minutes");
    }
    let report = job.report.as_deref().map(serde_json::from_str).transpose().map_err(damaged)?;
    let Some(JobReport::Done { result }) = report else { return no("the census is not done") };
    let Ok(Counted { census }) = serde_json::from_value(result) else {
        return no("the agent's census makes no sense");
    };
    unused(&census, root).map_err(Fault::NoCensus)
}

/// A census as an agent reports it, as far as this decision rests on it.
#[derive(Deserialize)]
struct Counted {
    census: Census,
}

#[derive(Deserialize)]
struct Census {
    resources: BTreeMap<String, Counts>,
}

#[derive(Deserialize)]
struct Counts {
    under: Vec<Under>,
    unknown: Class,
    undecodable: Class,
    forged: Class,
}

#[derive(Deserialize)]
struct Under {
    root: Option<RootVersion>,
    records: u64,
}

#[derive(Deserialize)]
struct Class {
    records: u64,
}

/// Whether no live record can be under `root`; else why not.
fn unused(census: &Census, root: RootKey) -> Result<(), String> {
    if census.resources.is_empty() {
        return Err("it counted nothing".to_owned());
    }
    let all = || census.resources.values();
    let ours = |u: &&Under| u.root.is_some_and(|version| version.root == root);
    let under: u64 = all().flat_map(|c| &c.under).filter(ours).map(|u| u.records).sum();
    if under > 0 {
        return Err(format!("{under} live records are under it"));
    }
    let hidden: u64 =
        all().map(|c| c.unknown.records + c.undecodable.records + c.forged.records).sum();
    if hidden > 0 {
        return Err(format!("{hidden} live records do not say which key they are under"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use claviger_domain::id::{InstanceId, KeyId, KeyVersionId};
    use serde_json::json;

    #[test]
    fn a_census_proves_that_no_live_record_is_under_the_key() {
        let root = || RootKey { instance: InstanceId::random(), key: KeyId::random() };
        let (old, new) = (root(), root());
        let census = |old_records: u64, unknown: u64, undecodable: u64, forged: u64| {
            let version = |root| RootVersion { root, version: KeyVersionId::random() };
            json!({ "census": { "revision": 7, "resources": { "secrets": {
                "records": 9,
                "plaintext": { "records": 3 },
                "under": [
                    { "provider": "claviger", "key_id": "a", "root": version(new), "records": 5 },
                    { "provider": "claviger", "key_id": "b", "root": version(old), "records": old_records },
                    { "provider": "other", "key_id": "c", "records": 1 },
                ],
                "unknown": { "records": unknown },
                "undecodable": { "records": undecodable },
                "forged": { "records": forged },
            } } }, "current": null })
        };
        for (found, good) in [
            (census(0, 0, 0, 0), true),
            (census(1, 0, 0, 0), false),
            (census(0, 1, 0, 0), false),
            (census(0, 0, 1, 0), false),
            (census(0, 0, 0, 1), false),
            (json!({ "census": { "resources": {} } }), false),
        ] {
            let counted: Counted = serde_json::from_value(found.clone()).unwrap();
            assert_eq!(unused(&counted.census, old).is_ok(), good, "{found}");
            assert!(unused(&counted.census, new).is_err(), "the key in use: {found}");
        }
    }
}
