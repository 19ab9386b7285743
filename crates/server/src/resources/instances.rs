//! `/v2/resource_instances`: make, list, see, rename, remove instances of the key service.

use super::view;
use crate::app::App;
use crate::clusters::limits::CLUSTERS_MAX;
use crate::http::admin::{Doing, Needs, Refusal, parse};
use crate::http::auth::Caller;
use crate::http::body::Body;
use crate::http::error::Form;
use crate::keys::query::Query;
use axum::Json;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use claviger_domain::access::PlatformRole;
use claviger_domain::cluster::write_root;
use claviger_domain::id::InstanceId;
use claviger_domain::policy::Site;
use claviger_store::instances::{self as store, Placed};
use claviger_store::{Tx, clusters};
use claviger_wire::rc::{
    NewResourceInstance, RESOURCE_ID, ResourceInstance, ResourceInstanceChange, ResourceInstances,
    SERVICE_INSTANCE,
};
use std::sync::Arc;

/// Instances of one server; a bound on lists.
const INSTANCES_MAX: u64 = 1000;
/// Largest page, and the usual one, as the Resource Controller has them.
const LIMIT_MAX: usize = 100;
const NAME_MAX: usize = 180;
const REGION_MAX: usize = 64;

fn doing(
    app: &App,
    caller: Caller,
    action: &'static str,
    instance: Option<InstanceId>,
    needs: Needs,
) -> Doing {
    let target = match instance {
        Some(instance) => app.account.instance_crn(instance),
        None => format!("a/{}", app.account.id),
    };
    Doing::new(caller, Form::Resource, action, target, needs)
}

/// A role on an instance; on all of them where none is named, as only who sees all may learn that
/// one is not there.
fn on(least: PlatformRole, instance: Option<InstanceId>) -> Needs {
    Needs::Role(least, instance.map_or(Site::Instances, Site::Instance))
}

/// The instance that a path names: a GUID, or a CRN whose eighth segment is one.
fn named(text: &str) -> Option<InstanceId> {
    let guid = if text.starts_with("crn:") { text.split(':').nth(7)? } else { text };
    guid.parse().ok()
}

fn found(tx: &Tx<'_>, instance: Option<InstanceId>) -> Result<Placed, Refusal> {
    let found = instance.map(|instance| store::get(tx, instance)).transpose()?.flatten();
    let none = "There is no such instance of the key service; list them, or look at the id: it \
                must be a GUID or a CRN";
    found.ok_or_else(|| Refusal::none(none))
}

/// `GET /v2/resource_instances`, a page after the instance `start`.
pub(super) async fn list(
    State(app): State<Arc<App>>,
    caller: Caller,
    query: Query,
) -> Result<Json<ResourceInstances>, Refusal> {
    let needs = Needs::Role(PlatformRole::Viewer, Site::SomeInstance);
    let doing = doing(&app, caller, "kms.instance.list", None, needs);
    let page = doing.look(&app, move |app, tx, doing, _| {
        let limit = match query.get("limit").map(str::parse) {
            None => LIMIT_MAX,
            Some(Ok(limit)) if (1..=LIMIT_MAX).contains(&limit) => limit,
            Some(_) => return Err(Refusal::bad(format!("limit must be 1 to {LIMIT_MAX}"))),
        };
        let start: Option<InstanceId> = match query.get("start").map(str::parse) {
            None => None,
            Some(Ok(start)) => Some(start),
            Some(Err(_)) => return Err(Refusal::bad("start must come out of next_url")),
        };
        let mut fits: Vec<ResourceInstance> = store::all(tx)?
            .iter()
            .filter(|i| start.is_none_or(|start| i.id > start))
            .filter(|i| {
                let site = Site::Instance(i.id);
                doing.caller.access.platform(PlatformRole::Viewer, site).is_some()
            })
            .map(|i| view::instance(app, i))
            .filter(|i| wanted(&query, i))
            .collect();
        let more = fits.len() > limit;
        fits.truncate(limit);
        let next_url = match fits.last() {
            Some(last) if more => Some(next(&query, limit, last)),
            _ => None,
        };
        Ok(ResourceInstances { rows_count: fits.len() as u64, next_url, resources: fits })
    });
    Ok(Json(page.await?))
}

/// Query parameters that choose among instances, and what each is held against.
fn filters(i: &ResourceInstance) -> [(&'static str, String); 9] {
    [
        ("name", i.name.clone()),
        ("guid", i.guid.to_string()),
        ("resource_group", i.resource_group_id.to_string()),
        ("resource_group_id", i.resource_group_id.to_string()),
        ("resource_id", RESOURCE_ID.to_owned()),
        ("resource_plan_id", i.resource_plan_id.clone()),
        ("type", SERVICE_INSTANCE.to_owned()),
        ("sub_type", i.sub_type.clone()),
        ("state", i.state.clone()),
    ]
}

fn wanted(query: &Query, i: &ResourceInstance) -> bool {
    filters(i).iter().all(|(name, value)| query.get(name).is_none_or(|wanted| wanted == value))
}

fn next(query: &Query, limit: usize, last: &ResourceInstance) -> String {
    let mut url = format!("/v2/resource_instances?limit={limit}&start={}", last.guid);
    for (name, _) in filters(last) {
        if let Some(value) = query.get(name) {
            url.push_str(&format!("&{name}="));
            for byte in value.bytes() {
                match byte {
                    b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' => {
                        url.push(byte as char);
                    }
                    _ => url.push_str(&format!("%{byte:02X}")),
                }
            }
        }
    }
    url
}

/// `POST /v2/resource_instances`.
pub(super) async fn create(
    State(app): State<Arc<App>>,
    caller: Caller,
    body: Body,
) -> Result<(StatusCode, Json<ResourceInstance>), Refusal> {
    let id = InstanceId::random();
    let new = parse::<NewResourceInstance>(&body);
    let needs = Needs::Role(PlatformRole::Editor, Site::Instances);
    let doing = doing(&app, caller, "kms.instance.create", Some(id), needs);
    let made = doing.run(&app, move |app, tx, doing, now| {
        let new = new.as_ref().map_err(Clone::clone)?;
        let group = match new.resource_group.as_deref().filter(|text| !text.is_empty()) {
            None => app.account.resource_group,
            Some(text) => {
                let what = "There is no such resource group; see /v2/resource_groups";
                store::group(tx, text)?.ok_or_else(|| Refusal::bad(what))?.id
            }
        };
        if store::count(tx)? >= INSTANCES_MAX {
            let what = format!("There are {INSTANCES_MAX} instances, as many as there may be");
            return Err(Refusal::new(StatusCode::CONFLICT, "RC-InstanceQuotaExceeded", what));
        }
        let placed = Placed {
            id,
            name: name(&new.name)?,
            region: region(app, new.target.as_deref())?,
            group,
            created: now,
            created_by: Some(doing.caller.iam_id.clone()),
        };
        store::add(tx, &placed).map_err(taken)?;
        Ok(view::instance(app, &placed))
    });
    Ok((StatusCode::CREATED, Json(made.await?)))
}

fn name(text: &str) -> Result<String, Refusal> {
    let text = text.trim();
    let length = text.chars().count();
    if !(1..=NAME_MAX).contains(&length) || text.chars().any(char::is_control) {
        let what = format!("name must have 1 to {NAME_MAX} characters, none of them control");
        return Err(Refusal::bad(what));
    }
    Ok(text.to_owned())
}

/// The region that a target says: itself, or the end of a deployment's CRN. Every instance is
/// here, whatever it says; clients want to read again what they asked for.
fn region(app: &App, target: Option<&str>) -> Result<String, Refusal> {
    let target = target.map(str::trim).filter(|text| !text.is_empty());
    let Some(target) = target else { return Ok(app.account.region.clone()) };
    let last = target.rsplit(':').next().unwrap_or_default();
    let last = last.rsplit_once("%3A").map_or(last, |(_, region)| region);
    let sane = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'_';
    if !(1..=REGION_MAX).contains(&last.len()) || !last.bytes().all(sane) {
        return Err(Refusal::bad("target must be a region's name or the CRN of a deployment"));
    }
    Ok(last.to_owned())
}

fn taken(e: claviger_store::StoreError) -> Refusal {
    if e.is_taken() {
        let what = "Another instance has this name; choose another name, or remove that instance";
        return Refusal::new(StatusCode::CONFLICT, "RC-InstanceNameNotUnique", what);
    }
    e.into()
}

/// `GET /v2/resource_instances/{id}`.
pub(super) async fn get(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path(id): Path<String>,
) -> Result<Json<ResourceInstance>, Refusal> {
    let id = named(&id);
    let doing = doing(&app, caller, "kms.instance.read", id, on(PlatformRole::Viewer, id));
    let seen = doing.look(&app, move |app, tx, _, _| Ok(view::instance(app, &found(tx, id)?)));
    Ok(Json(seen.await?))
}

/// `PATCH /v2/resource_instances/{id}`: another name.
pub(super) async fn change(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path(id): Path<String>,
    body: Body,
) -> Result<Json<ResourceInstance>, Refusal> {
    let id = named(&id);
    let change = parse::<ResourceInstanceChange>(&body);
    let doing = doing(&app, caller, "kms.instance.update", id, on(PlatformRole::Editor, id));
    let changed = doing.run(&app, move |app, tx, _, _| {
        let mut placed = found(tx, id)?;
        let change = change.as_ref().map_err(Clone::clone)?;
        if let Some(text) = &change.name {
            placed.name = name(text)?;
            store::rename(tx, placed.id, &placed.name).map_err(taken)?;
        }
        Ok(view::instance(app, &placed))
    });
    Ok(Json(changed.await?))
}

/// `DELETE /v2/resource_instances/{id}`: with all that hangs on it, unless it is in use.
pub(super) async fn delete(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path(id): Path<String>,
) -> Result<StatusCode, Refusal> {
    let id = named(&id);
    let doing = doing(&app, caller, "kms.instance.delete", id, on(PlatformRole::Editor, id));
    doing
        .run(&app, move |_, tx, _, _| {
            let instance = found(tx, id)?.id;
            unused(tx, instance)?;
            Ok(store::remove(tx, instance)?)
        })
        .await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Refuses to remove an instance that somebody relies on; in the Resource Controller's words.
fn unused(tx: &Tx<'_>, instance: InstanceId) -> Result<(), Refusal> {
    let refuse = |what: String| {
        let code = "RC-ServiceBrokerErrorResponse";
        Err(Refusal::new(StatusCode::UNPROCESSABLE_ENTITY, code, format!("[409, Conflict] {what}")))
    };
    let used = store::in_use(tx, instance)?;
    if used.keys > 0 {
        return refuse(format!(
            "CONTAINS_ACTIVE_KEYS: Remove all keys before de-provisioning: Instance contains {} \
             active keys. Delete them first, then the instance",
            used.keys
        ));
    }
    if used.registrations > 0 {
        return refuse(format!(
            "CONTAINS_REGISTRATIONS: {} registrations are on keys of the instance. Remove them \
             first, then the instance",
            used.registrations
        ));
    }
    for row in clusters::list(tx, CLUSTERS_MAX).map_err(claviger_store::StoreError::from)? {
        let cluster = &row.cluster;
        let writes = write_root(cluster).map(|version| version.root.instance);
        let target = cluster.operation.as_ref().map(|op| op.target.instance);
        if writes == Some(instance) || target == Some(instance) {
            return refuse(format!(
                "CONTAINS_KEY_OF_CLUSTER: cluster {} is encrypted under a key of the instance, \
                 which can be restored. Move it to another key first",
                cluster.name
            ));
        }
    }
    Ok(())
}
