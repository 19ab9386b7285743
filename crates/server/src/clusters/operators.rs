//! The operator's API: IBM's paths that its clients call, and our own under `/v3`.

use super::fault::Fault;
use super::limits::{BODY_MAX, CLUSTERS_MAX};
use super::operations::{self, Outcome, Wanted, instance_of, key_of};
use super::request::{Doing, allowed, cluster, json, recorded, renew};
use super::state::Whole;
use super::{give_up, jobs, joining, nodes, register, view};
use crate::app::App;
use crate::http::auth::Caller;
use crate::room::For;
use axum::Json;
use axum::extract::{Path, Query, Request, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use claviger_domain::access::PlatformRole::{Administrator, Operator, Viewer};
use claviger_domain::access::{KeyOperation, On};
use claviger_domain::cluster::TakeUp;
use claviger_domain::id::{InstanceId, JobId, UnixMs};
use claviger_domain::key::{KeyState, RootKey};
use claviger_domain::policy::Site;
use claviger_store::clusters;
use claviger_store::{StoreError, Tx, audit, iam, keys, registrations};
use claviger_wire::agent::{Certificate, JobKind, ReissueRequest};
use claviger_wire::ks::{
    CancelOperation, ClusterView, Crk, EnableKms, GivenUp, JobView, KmsInstance, KmsStatus, NewJob,
    NodeRemoved, OpenOperation, Opened, RegisterCluster, Registered,
};
use serde_json::json;
use std::collections::HashMap;
use std::sync::Arc;
use zeroize::Zeroizing;

pub(super) type Shared = State<Arc<App>>;
pub(super) type Params = Query<HashMap<String, String>>;

/// The query parameter `force`, which is an operator's word.
pub(super) fn forced(params: &HashMap<String, String>) -> Result<bool, Fault> {
    match params.get("force").map(String::as_str) {
        None | Some("" | "false") => Ok(false),
        Some("true") => Ok(true),
        Some(_) => Err(Fault::Bad("force is true or false".into())),
    }
}

/// Reads, on one view.
async fn read<T: Send + 'static>(
    app: &Arc<App>,
    work: impl FnOnce(&App, &Tx<'_>, UnixMs) -> Result<T, Fault> + Send + 'static,
) -> Result<T, Fault> {
    let run = move |app: &App| {
        let now = app.clock.now();
        app.store.read("operator reads", |tx| work(app, tx, now))
    };
    app.asked(For::Other, run).await
}

/// A cluster that the caller may look at, with everything about it.
fn viewed(
    app: &App,
    tx: &Tx<'_>,
    caller: &mut Caller,
    id_or_name: &str,
    now: UnixMs,
) -> Result<Whole, Fault> {
    Ok(Whole::of(tx, cluster(app, tx, caller, Viewer, id_or_name)?, now)?)
}

/// Keeps since when each of these clusters shows what it shows now, where that changed with
/// time alone: an agent fell silent, a key expired.
async fn keep_shown(app: &Arc<App>, changed: Vec<(claviger_domain::id::ClusterId, String)>) {
    if changed.is_empty() {
        return;
    }
    let keep = move |app: &App| {
        let now = app.clock.now();
        app.store.tx("master status", |tx| -> Result<(), StoreError> {
            for (id, status) in &changed {
                clusters::set_master_status(tx, id, status, now)?;
            }
            Ok(())
        })
    };
    if let Err(e) = app.asked(For::Other, keep).await {
        tracing::warn!(error = %e, "the time of a master status was not kept");
    }
}

fn shown(app: &App, whole: &Whole, now: UnixMs) -> Shown {
    let view = view::view(app, whole, now);
    let changed = view.master_status != whole.row.master_status;
    let changed = changed.then(|| (whole.row.cluster.id.clone(), view.master_status.clone()));
    Shown { view, changed }
}

struct Shown {
    view: ClusterView,
    changed: Option<(claviger_domain::id::ClusterId, String)>,
}

/// `GET /v2/getCluster?cluster=`
pub async fn get_cluster(
    State(app): Shared,
    mut caller: Caller,
    Query(params): Params,
) -> Result<Json<ClusterView>, Fault> {
    let name = params.get("cluster").cloned().filter(|name| !name.is_empty());
    let name = name.ok_or_else(|| Fault::Bad("the query parameter `cluster` is missing".into()))?;
    let one = read(&app, move |app, tx, now| {
        Ok(shown(app, &viewed(app, tx, &mut caller, &name, now)?, now))
    });
    let one = one.await?;
    keep_shown(&app, one.changed.into_iter().collect()).await;
    Ok(Json(one.view))
}

/// `GET /v2/vpc/getClusters`, `GET /v1/clusters`
pub async fn get_clusters(
    State(app): Shared,
    caller: Caller,
) -> Result<Json<Vec<ClusterView>>, Fault> {
    let all = read(&app, move |app, tx, now| {
        allowed(&caller, Viewer, Site::SomeCluster)?;
        let mut rows = clusters::list(tx, CLUSTERS_MAX)?;
        rows.retain(|row| caller.access.platform(Viewer, Site::Cluster(&row.cluster.id)).is_some());
        let one = |row| Ok(shown(app, &Whole::of(tx, row, now)?, now));
        rows.into_iter().map(one).collect::<Result<Vec<Shown>, Fault>>()
    });
    let (views, changed): (Vec<_>, Vec<_>) =
        all.await?.into_iter().map(|s| (s.view, s.changed)).unzip();
    keep_shown(&app, changed.into_iter().flatten().collect()).await;
    Ok(Json(views))
}

/// `GET /v3/clusters/{c}/kms`
pub async fn status(
    State(app): Shared,
    mut caller: Caller,
    Path(name): Path<String>,
) -> Result<Json<KmsStatus>, Fault> {
    let status = read(&app, move |app, tx, now| {
        let whole = viewed(app, tx, &mut caller, &name, now)?;
        Ok(view::status(app, tx, &whole, now)?)
    });
    Ok(Json(status.await?))
}

/// `GET /v2/getKMSInstances`
pub async fn instances(
    State(app): Shared,
    mut caller: Caller,
) -> Result<Json<Vec<KmsInstance>>, Fault> {
    let action = "containers-kubernetes.account-key-management-service-instance.list";
    let doing = Doing::by(&caller, action, &*app.account.id);
    let all = recorded(&app, doing, move |app, doing, now| {
        app.store.tx("list instances", |tx| -> Result<_, Fault> {
            renew(app, tx, &mut caller)?;
            allowed(&caller, Viewer, Site::SomeCluster)?;
            audit::add(tx, &doing.done(now))?;
            let mut all = iam::instances(tx)?;
            all.retain(|i| {
                let platform = caller.access.platform(Viewer, Site::Instance(i.id)).is_some();
                platform || caller.sees(i.id)
            });
            Ok(all)
        })
    });
    let row = |i: iam::Instance| KmsInstance {
        instance_id: i.id,
        name: i.name,
        region: i.region,
        service: "kms".to_owned(),
    };
    Ok(Json(all.await?.into_iter().map(row).collect()))
}

/// `GET /v2/getCRKs?kms_instance=`
pub async fn crks(
    State(app): Shared,
    mut caller: Caller,
    Query(params): Params,
) -> Result<Json<Vec<Crk>>, Fault> {
    let missing = || Fault::Bad("the query parameter `kms_instance` is missing".into());
    let instance = instance_of(params.get("kms_instance").ok_or_else(missing)?)?;
    let action = "containers-kubernetes.account-customer-root-key.list";
    let doing = Doing::by(&caller, action, app.account.instance_crn(instance));
    let all = recorded(&app, doing, move |app, doing, now| {
        app.store.tx("list root keys", |tx| -> Result<_, Fault> {
            renew(app, tx, &mut caller)?;
            allowed(&caller, Viewer, Site::SomeCluster)?;
            audit::add(tx, &doing.done(now))?;
            root_keys(tx, &caller, instance, now)
        })
    });
    Ok(Json(all.await?))
}

/// Root keys of an instance that the caller may list, those deleted only while a cluster is
/// registered on them. An instance in which he may list nothing is as none.
fn root_keys(
    tx: &Tx<'_>,
    caller: &Caller,
    instance: InstanceId,
    now: UnixMs,
) -> Result<Vec<Crk>, Fault> {
    if !caller.sees(instance) || !iam::has_instance(tx, instance)? {
        return Err(Fault::NoInstance(instance));
    }
    let names: HashMap<String, String> = clusters::list(tx, CLUSTERS_MAX)?
        .into_iter()
        // Which other clusters there are is not for whoever may only list keys.
        .filter(|row| caller.access.platform(Viewer, Site::Cluster(&row.cluster.id)).is_some())
        .map(|row| (row.crn, row.cluster.name))
        .collect();
    let mut users: HashMap<RootKey, Vec<String>> = HashMap::new();
    registrations::each_of_instance(tx, instance, |registration| {
        if let Some(name) = names.get(&registration.crn) {
            users.entry(registration.root).or_default().push(name.clone());
        }
    })?;
    let mut out = Vec::new();
    for key in keys::all(tx, instance)? {
        if !caller.permits(KeyOperation::List, instance, On::Ring(&key.ring)) {
            continue;
        }
        let state = key.state_at(now);
        let mut clusters = users.remove(&key.root).unwrap_or_default();
        if key.extractable || (state == KeyState::Destroyed && clusters.is_empty()) {
            continue;
        }
        clusters.sort();
        let date = |at: UnixMs| jiff::Timestamp::from_millisecond(at.0).ok();
        out.push(Crk {
            crk_id: key.root.key,
            name: key.name,
            state: state.to_string(),
            version: key.current,
            expires: key.expires.and_then(date).map(|at| format!("{at:.0}")),
            clusters,
            origin: if key.imported { "imported" } else { "generated" }.to_owned(),
        });
    }
    Ok(out)
}

/// `POST /v3/clusters`
pub async fn register(
    State(app): Shared,
    mut caller: Caller,
    request: Request,
) -> Result<(StatusCode, Json<Registered>), Fault> {
    let mut asked: RegisterCluster = json(request, BODY_MAX).await?;
    let admin = asked.admin_kubeconfig.take().map(Zeroizing::new);
    let name = asked.name.chars().take(64).collect::<String>();
    let doing = Doing::by(&caller, "containers-kubernetes.cluster.create", name);
    let registered = recorded(&app, doing, move |app, doing, now| {
        let admin = admin.as_deref().map(String::as_str);
        app.store.tx("register", |tx| {
            renew(app, tx, &mut caller)?;
            allowed(&caller, Administrator, Site::Clusters)?;
            register::checked(&asked, admin)?;
            let registered = register::register(app, tx, &asked, admin, &caller.iam_id, now)?;
            let target = app.account.cluster_crn(&registered.id);
            audit::add(tx, &Doing { target, ..doing.clone() }.done(now))?;
            Ok::<_, Fault>(registered)
        })
    });
    Ok((StatusCode::CREATED, Json(registered.await?)))
}

/// `POST /v3/clusters/{c}/join-tokens`
pub async fn join_token(
    State(app): Shared,
    mut caller: Caller,
    Path(name): Path<String>,
) -> Result<(StatusCode, Json<Registered>), Fault> {
    let doing = Doing::by(&caller, "containers-kubernetes.cluster-join-token.create", &*name);
    let made = recorded(&app, doing, move |app, doing, now| {
        app.store.tx("join token", |tx| {
            let row = cluster(app, tx, &mut caller, Administrator, &name)?;
            let target = row.crn.clone();
            audit::add(tx, &Doing { target, ..doing.clone() }.done(now))?;
            register::token(tx, &row, &caller.iam_id, now)
        })
    });
    Ok((StatusCode::CREATED, Json(made.await?)))
}

/// What is told to whoever asks for an endpoint that is not there.
const NO_PUBLIC: &str = "the key server has no public listener, so agents reach it by the private \
                         one; give it one: `claviger server run --public-listen`";

async fn open(
    app: &Arc<App>,
    mut caller: Caller,
    name: String,
    wanted: Result<Wanted, Fault>,
) -> Result<Outcome, Fault> {
    let doing = Doing::by(&caller, "containers-kubernetes.cluster-kms.enable", &*name);
    let opened = recorded(app, doing, move |app, doing, now| {
        let wanted = wanted?;
        app.store.tx("open operation", |tx| {
            let whole = Whole::of(tx, cluster(app, tx, &mut caller, Administrator, &name)?, now)?;
            let (id, target) = (whole.row.cluster.id.clone(), whole.row.crn.clone());
            let mut outcome = operations::open(tx, whole, &wanted, &caller, now)?;
            if wanted.public_endpoint && app.settings.public_url.is_none() {
                outcome.opened.warnings.push(NO_PUBLIC.to_owned());
            }
            audit::add(tx, &Doing { target, ..doing.clone() }.done(now))?;
            Ok::<_, Fault>((id, outcome))
        })
    });
    let (id, outcome) = opened.await?;
    if outcome.changed {
        app.hub.cluster_changed(id);
    }
    Ok(outcome)
}

/// `POST /v2/enableKMS`
pub async fn enable_kms(
    State(app): Shared,
    caller: Caller,
    request: Request,
) -> Result<Response, Fault> {
    let asked: EnableKms = json(request, BODY_MAX).await?;
    let account = asked.account_id.filter(|id| !id.is_empty() && *id != app.account.id);
    let wanted = match account {
        Some(_) => Err(Fault::Bad("account_id is not the account of this server".into())),
        None => instance_of(&asked.instance_id).and_then(|instance| {
            let key = key_of(&asked.crk_id, instance)?;
            Ok(Wanted {
                target: RootKey { instance, key },
                public_endpoint: asked.private_endpoint == Some(false),
                take_up: TakeUp::default(),
                accept_plaintext: false,
            })
        }),
    };
    let outcome = open(&app, caller, asked.cluster, wanted).await?;
    let status = if outcome.changed { StatusCode::CREATED } else { StatusCode::OK };
    Ok((status, Json(json!({}))).into_response())
}

/// `POST /v3/clusters/{c}/kms/operations`
pub async fn operation(
    State(app): Shared,
    caller: Caller,
    Path(name): Path<String>,
    request: Request,
) -> Result<(StatusCode, Json<Opened>), Fault> {
    let asked: OpenOperation = json(request, BODY_MAX).await?;
    let wanted = Wanted {
        target: RootKey { instance: asked.instance_id, key: asked.crk_id },
        public_endpoint: asked.public_endpoint,
        take_up: asked.take_up,
        accept_plaintext: asked.accept_plaintext,
    };
    let outcome = open(&app, caller, name, Ok(wanted)).await?;
    // An operation that was under way already is accepted again, as after a lost answer.
    let accepted = outcome.opened.operation.is_some();
    let status = if accepted { StatusCode::ACCEPTED } else { StatusCode::OK };
    Ok((status, Json(outcome.opened)))
}

/// `POST /v3/clusters/{c}/kms/operations/cancel`
pub async fn cancel(
    State(app): Shared,
    mut caller: Caller,
    Path(name): Path<String>,
    request: Request,
) -> Result<Json<GivenUp>, Fault> {
    let asked: CancelOperation = json(request, BODY_MAX).await?;
    let doing = Doing::by(&caller, "containers-kubernetes.cluster-kms.cancel", &*name);
    let given_up = recorded(&app, doing, move |app, doing, now| {
        app.store.tx("cancel", |tx| {
            let whole = Whole::of(tx, cluster(app, tx, &mut caller, Administrator, &name)?, now)?;
            let (id, target) = (whole.row.cluster.id.clone(), whole.row.crn.clone());
            let without = asked.without_root_key;
            let given_up = give_up::give_up(tx, whole, without, &caller.iam_id, now)?;
            audit::add(tx, &Doing { target, ..doing.clone() }.done(now))?;
            Ok::<_, Fault>((id, given_up))
        })
    });
    let (id, given_up) = given_up.await?;
    app.hub.cluster_changed(id);
    Ok(Json(given_up))
}

/// `DELETE /v3/clusters/{c}/nodes/{node}?force=true`
pub async fn remove_node(
    State(app): Shared,
    mut caller: Caller,
    Path((name, node)): Path<(String, String)>,
    Query(params): Params,
) -> Result<Json<NodeRemoved>, Fault> {
    let action = "containers-kubernetes.cluster-agent.remove";
    let doing = Doing::by(&caller, action, &*name);
    let removed = recorded(&app, doing, move |app, doing, now| {
        let agent = node.parse().map_err(|e| Fault::Bad(format!("node: {e}")))?;
        let force = forced(&params)?;
        app.store.tx("remove node", |tx| {
            let whole = Whole::of(tx, cluster(app, tx, &mut caller, Administrator, &name)?, now)?;
            let (id, target) = (whole.row.cluster.id.clone(), whole.row.crn.clone());
            let removed = nodes::remove(tx, whole, &agent, force, now)?;
            audit::add(tx, &Doing { target, ..doing.clone() }.done(now))?;
            Ok::<_, Fault>((id, removed))
        })
    });
    let (id, removed) = removed.await?;
    app.hub.cluster_changed(id);
    Ok(Json(removed))
}

/// `POST /v3/clusters/{c}/node-certificates`
pub async fn reissue(
    State(app): Shared,
    mut caller: Caller,
    Path(name): Path<String>,
    request: Request,
) -> Result<(StatusCode, Json<Certificate>), Fault> {
    let asked: ReissueRequest = json(request, BODY_MAX).await?;
    let action = "containers-kubernetes.cluster-agent.reissue";
    let doing = Doing::by(&caller, action, &*name);
    let issued = recorded(&app, doing, move |app, doing, now| {
        app.store.tx("reissue", |tx| {
            let row = cluster(app, tx, &mut caller, Administrator, &name)?;
            let issued = joining::reissue(app, tx, &row.cluster.id, &asked, now)?;
            audit::add(tx, &Doing { target: row.crn, ..doing.clone() }.done(now))?;
            Ok::<_, Fault>(issued)
        })
    });
    Ok((StatusCode::CREATED, Json(issued.await?.certificate)))
}

/// `POST /v3/clusters/{c}/jobs`
pub async fn new_job(
    State(app): Shared,
    mut caller: Caller,
    Path(name): Path<String>,
    request: Request,
) -> Result<(StatusCode, Json<JobView>), Fault> {
    let asked: NewJob = json(request, BODY_MAX).await?;
    let doing = Doing::by(&caller, "containers-kubernetes.cluster-job.create", &*name);
    let made = recorded(&app, doing, move |app, doing, now| {
        app.store.tx("new job", |tx| {
            let row = cluster(app, tx, &mut caller, Operator, &name)?;
            if asked.kind == JobKind::Scrub && row.cluster.ring.write().is_none() {
                // It would stop API servers for nothing: the plaintext would be written again.
                return Err(Fault::NotEncrypted);
            }
            let target = row.crn;
            audit::add(tx, &Doing { target, ..doing.clone() }.done(now))?;
            let job = jobs::create(tx, &row.cluster.id, asked.kind, &caller.iam_id, now)?;
            Ok::<_, Fault>((row.cluster.id, job))
        })
    });
    let (cluster, job) = made.await?;
    app.hub.cluster_changed(cluster);
    Ok((StatusCode::ACCEPTED, Json(job)))
}

/// `GET /v3/clusters/{c}/jobs/{id}`
pub async fn job(
    State(app): Shared,
    mut caller: Caller,
    Path((name, id)): Path<(String, String)>,
) -> Result<Json<JobView>, Fault> {
    let id: JobId = id.parse().map_err(|e| Fault::Bad(format!("{e}")))?;
    let view = read(&app, move |app, tx, now| {
        jobs::view(tx, &cluster(app, tx, &mut caller, Viewer, &name)?.cluster.id, id, now)
    });
    Ok(Json(view.await?))
}

/// `GET /v3/clusters/{c}/kubeconfig`
pub async fn kubeconfig(
    State(app): Shared,
    mut caller: Caller,
    Path(name): Path<String>,
) -> Result<Response, Fault> {
    let doing = Doing::by(&caller, "containers-kubernetes.cluster.config", &*name);
    let text = recorded(&app, doing, move |app, doing, now| {
        // With stored credentials this hands out the whole cluster.
        app.store.tx("kubeconfig", |tx| {
            let whole = Whole::of(tx, cluster(app, tx, &mut caller, Administrator, &name)?, now)?;
            let target = whole.row.crn.clone();
            audit::add(tx, &Doing { target, ..doing.clone() }.done(now))?;
            register::kubeconfig(app, tx, &whole)
        })
    });
    let text = text.await?;
    let headers = [(header::CONTENT_TYPE, "application/yaml"), (header::CACHE_CONTROL, "no-store")];
    Ok((headers, text.expose().to_vec()).into_response())
}
