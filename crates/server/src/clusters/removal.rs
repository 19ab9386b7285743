//! A cluster that is gone, or that this server is to have nothing to do with any more.
//!
//! What goes is what the server knows of it: its certificates count no longer, so its agents get
//! no key. Its Secrets stay as they are. While KEKs of it may open them, its registrations stay on
//! their root keys, so that nobody deletes one by mistake; [`super::release`] takes them away.

use super::authorizations;
use super::commits;
use super::fault::Fault;
use super::operators::{Params, Shared, forced};
use super::request::{Doing, cluster, recorded};
use super::roots::roots_of;
use super::state::Whole;
use crate::http::auth::Caller;
use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use claviger_domain::access::PlatformRole::Administrator;
use claviger_domain::cluster::FRESH_MS;
use claviger_domain::id::UnixMs;
use claviger_domain::policy::Subject;
use claviger_store::{Tx, access, audit, clusters, registrations};

/// `DELETE /v1/clusters/{idOrName}?force=true`
pub async fn remove_cluster(
    State(app): Shared,
    mut caller: Caller,
    Path(name): Path<String>,
    Query(params): Params,
) -> Result<StatusCode, Fault> {
    let doing = Doing::by(&caller, "containers-kubernetes.cluster.delete", &*name);
    let removed = recorded(&app, doing, move |app, doing, now| {
        let force = forced(&params)?;
        app.store.tx("remove cluster", |tx| {
            let row = cluster(app, tx, &mut caller, Administrator, &name)?;
            let whole = Whole::of(tx, row, now)?;
            let (id, target) = (whole.row.cluster.id.clone(), whole.row.crn.clone());
            remove(tx, &whole, force, now)?;
            audit::add(tx, &Doing { target, ..doing.clone() }.done(now))?;
            Ok::<_, Fault>(id)
        })
    });
    app.hub.cluster_changed(removed.await?);
    Ok(StatusCode::NO_CONTENT)
}

/// Removes a cluster, in the caller's transaction. Refused while an agent of it is heard, and
/// without `force` while it has keys.
fn remove(tx: &Tx<'_>, whole: &Whole, force: bool, now: UnixMs) -> Result<(), Fault> {
    let row = &whole.row;
    for agent in clusters::agents(tx, &row.cluster.id)? {
        let seen = whole.seen.get(&agent.name);
        let spoke = seen.map_or(agent.last_contact, |s| s.at.max(agent.last_contact));
        let silent_ms = now.apart(spoke);
        if silent_ms < FRESH_MS {
            return Err(Fault::NodeAlive { agent: agent.name, heard_s: silent_ms / 1000 });
        }
    }
    if !row.cluster.ring.keks.is_empty() && !force {
        return Err(Fault::Encrypted(row.cluster.name.clone()));
    }
    // From here on a registration is all that keeps a root key of the cluster from deletion.
    commits::register(tx, row, &row.cluster, now)?;
    for root in registrations::roots_of(tx, &row.crn)? {
        if !row.cluster.ring.names(root) {
            registrations::remove(tx, &root, &row.crn)?;
        }
    }
    for root in roots_of(&row.cluster) {
        authorizations::end(tx, &row.cluster.id, &root, now)?;
    }
    access::remove_about(tx, &Subject::Clusters(Some(row.cluster.id.clone())))?;
    clusters::remove(tx, &row.cluster.id)?;
    Ok(())
}
