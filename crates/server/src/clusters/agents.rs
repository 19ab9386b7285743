//! The agents' API: what a node may say and ask, about its own cluster alone.

use super::commits::{self, audit_name};
use super::fault::Fault;
use super::joining::{self, admitted};
use super::lease;
use super::limits::{
    COMMIT_MAX, JOIN_MAX, OBSERVATION_MAX, OBSERVATION_REFRESH_MS, REPORT_MAX, WORD_MAX,
};
use super::node_ca::Proven;
use super::request::{Doing, json, recorded};
use super::state::{Whole, keep_status, row_of, settle_restore, state_of};
use super::{jobs, roots};
use crate::app::App;
use crate::http::Trace;
use crate::http::auth::Node;
use crate::room::For;
use axum::Json;
use axum::extract::{Path, Request, State};
use axum::http::StatusCode;
use claviger_domain::audit::Credential;
use claviger_domain::cluster::{Observation, Seen};
use claviger_domain::id::{JobId, UnixMs};
use claviger_store::clusters::{self, AckRow};
use claviger_store::{Tx, audit};
use claviger_wire::agent::{self as wire, Certificate, Lease};
use std::sync::Arc;
use zeroize::Zeroizing;

type Shared = State<Arc<App>>;

fn doing(app: &App, node: &Node, action: &'static str, trace: Trace) -> Doing {
    let (crn, who) = (app.account.cluster_crn(&node.cluster), node.who(app));
    Doing { who, credential: Credential::Certificate, action, target: crn, trace }
}

/// Runs `work` in a transaction of the node's cluster, after its certificate was looked at.
async fn write<T: Send + 'static>(
    app: &Arc<App>,
    node: Node,
    name: &'static str,
    work: impl Fn(&App, &Tx<'_>, &Node, UnixMs) -> Result<T, Fault> + Send + 'static,
) -> Result<T, Fault> {
    let run = move |app: &App| {
        let now = app.clock.now();
        app.store.tx(name, |tx| {
            admitted(tx, &node, now)?;
            work(app, tx, &node, now)
        })
    };
    app.asked(For::Node, run).await
}

/// `POST /agent/v1/join`
pub async fn join(
    State(app): Shared,
    trace: Trace,
    request: Request,
) -> Result<Json<Certificate>, Fault> {
    let asked: wire::JoinRequest = json(request, JOIN_MAX).await?;
    let (agent, token, of) = (asked.agent, Zeroizing::new(asked.token), asked.cluster);
    let doing = Doing {
        who: "-".into(),
        credential: Credential::Token,
        action: "containers-kubernetes.cluster-agent.join",
        target: agent.to_string(),
        trace,
    };
    let issued = recorded(&app, doing, move |app, doing, now| {
        let key = Proven::read(&asked.csr)?;
        app.store.tx("join", |tx| {
            let issued = joining::join(app, tx, &token, &agent, of.as_ref(), &key, now)?;
            let crn = app.account.cluster_crn(&issued.certificate.cluster);
            let who = format!("crn-{crn} agent {agent}");
            audit::add(tx, &Doing { who, target: crn, ..doing.clone() }.done(now))?;
            Ok::<_, Fault>(issued)
        })
    })
    .await?;
    app.hub.cluster_changed(issued.certificate.cluster.clone());
    Ok(Json(issued.certificate))
}

/// `POST /agent/v1/renew`
pub async fn renew(
    State(app): Shared,
    node: Node,
    trace: Trace,
    request: Request,
) -> Result<Json<Certificate>, Fault> {
    let asked: wire::RenewRequest = json(request, JOIN_MAX).await?;
    let key = Proven::read(&asked.csr)?;
    let issued = write(&app, node, "renew", move |app, tx, node, now| {
        let action = "containers-kubernetes.cluster-agent.renew";
        audit::add(tx, &doing(app, node, action, trace.clone()).done(now))?;
        clusters::agent_contact(tx, &node.cluster, &node.agent, now)?;
        joining::renew(app, tx, node, &key, now)
    });
    Ok(Json(issued.await?.certificate))
}

/// `GET /agent/v1/state`
pub async fn state(State(app): Shared, node: Node) -> Result<Json<wire::State>, Fault> {
    let read = move |app: &App| {
        let now = app.clock.now();
        app.store.read("agent state", |tx| {
            admitted(tx, &node, now)?;
            let whole = Whole::of(tx, row_of(tx, &node.cluster)?, now)?;
            let url = app.url(whole.row.cluster.public_endpoint);
            Ok::<_, Fault>(state_of(tx, &whole, url, now)?)
        })
    };
    Ok(Json(app.asked(For::Node, read).await?))
}

/// `POST /agent/v1/observation`
pub async fn observation(
    State(app): Shared,
    node: Node,
    request: Request,
) -> Result<StatusCode, Fault> {
    let said: Observation = json(request, OBSERVATION_MAX).await?;
    if said.agent != node.agent {
        return Err(Fault::Bad(format!("agent {} speaks for itself only", node.agent)));
    }
    let cluster = node.cluster.clone();
    let known = {
        let (node, said) = (node.clone(), said.clone());
        let read = move |app: &App| {
            let now = app.clock.now();
            app.store.read("observation", |tx| {
                admitted(tx, &node, now)?;
                let last = clusters::seen_of(tx, &node.cluster, &node.agent)?;
                Ok::<_, Fault>(last.is_some_and(|last| {
                    last.observation == said && now.apart(last.at) < OBSERVATION_REFRESH_MS
                }))
            })
        };
        app.asked(For::Node, read).await?
    };
    if known {
        return Ok(StatusCode::NO_CONTENT);
    }
    let news = write(&app, node, "observation", move |_, tx, node, now| {
        let last = clusters::seen_of(tx, &node.cluster, &node.agent)?;
        clusters::observe(tx, &node.cluster, &Seen { observation: said.clone(), at: now })?;
        clusters::agent_contact(tx, &node.cluster, &node.agent, now)?;
        let mut whole = Whole::of(tx, row_of(tx, &node.cluster)?, now)?;
        settle_restore(tx, &mut whole)?;
        keep_status(tx, &whole, now)?;
        Ok(last.is_none_or(|last| last.observation != said))
    });
    if news.await? {
        app.hub.cluster_changed(cluster);
    }
    Ok(StatusCode::NO_CONTENT)
}

/// `POST /agent/v1/lease`
pub async fn lease(State(app): Shared, node: Node, request: Request) -> Result<Json<Lease>, Fault> {
    let asked: wire::LeaseRequest = json(request, WORD_MAX).await?;
    let granted = write(&app, node, "lease", move |_, tx, node, now| {
        let last = clusters::lease(tx, &node.cluster)?;
        let lease = lease::grant(last.as_ref(), &node.agent, asked.fencing, now)
            .map_err(|held| Fault::LeaseHeld(held.by, held.left_ms))?;
        clusters::set_lease(tx, &node.cluster, &lease)?;
        Ok(Lease { fencing: lease.fencing, until: lease.until })
    });
    Ok(Json(granted.await?))
}

/// `POST /agent/v1/commit`
pub async fn commit(
    State(app): Shared,
    node: Node,
    trace: Trace,
    request: Request,
) -> Result<Json<wire::State>, Fault> {
    let asked: wire::CommitRequest = json(request, COMMIT_MAX).await?;
    let cluster = node.cluster.clone();
    let state = write(&app, node, "commit", move |app, tx, node, now| {
        let whole = commits::commit(tx, &node.cluster, &node.agent, &asked, now)?;
        if let Some(action) = audit_name(&asked.commit) {
            audit::add(tx, &doing(app, node, action, trace.clone()).done(now))?;
        }
        Ok(state_of(tx, &whole, app.url(whole.row.cluster.public_endpoint), now)?)
    });
    let state = state.await?;
    app.hub.cluster_changed(cluster);
    Ok(Json(state))
}

/// `POST /agent/v1/ack`
pub async fn ack(
    State(app): Shared,
    node: Node,
    trace: Trace,
    request: Request,
) -> Result<StatusCode, Fault> {
    let said: wire::Acknowledgement = json(request, WORD_MAX).await?;
    let kept = write(&app, node, "ack", move |app, tx, node, now| {
        let row = row_of(tx, &node.cluster)?;
        if !roots::roots_of(&row.cluster).contains(&said.root) {
            return Err(Fault::Bad(format!("the cluster does not use root key {}", said.root.key)));
        }
        if said.event == 0 || said.event > claviger_store::events::last_of(tx, &said.root)? {
            return Err(Fault::Bad(format!(
                "root key {} had no event {}",
                said.root.key, said.event
            )));
        }
        clusters::acknowledge(
            tx,
            &AckRow {
                cluster: node.cluster.clone(),
                agent: node.agent.clone(),
                root: said.root,
                event: said.event,
                state: said.state,
                fenced: said.fenced,
                at: now,
            },
        )?;
        let action = "containers-kubernetes.cluster-key-state.update";
        audit::add(tx, &doing(app, node, action, trace.clone()).done(now))?;
        Ok(())
    });
    kept.await?;
    Ok(StatusCode::NO_CONTENT)
}

/// `POST /agent/v1/jobs/{id}`
pub async fn job(
    State(app): Shared,
    node: Node,
    Path(id): Path<String>,
    request: Request,
) -> Result<StatusCode, Fault> {
    let id: JobId = id.parse().map_err(|e| Fault::Bad(format!("{e}")))?;
    let said: wire::JobReport = json(request, REPORT_MAX).await?;
    let cluster = node.cluster.clone();
    let stored = write(&app, node, "job report", move |_, tx, node, now| {
        jobs::report(tx, &node.cluster, id, &said, now)
    });
    stored.await?;
    app.hub.cluster_changed(cluster);
    Ok(StatusCode::NO_CONTENT)
}
