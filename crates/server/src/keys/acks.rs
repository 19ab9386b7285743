//! Which users of a key have acted on its last event.

use crate::app::App;
use crate::http::auth::Caller;
use crate::http::error::{KpError, service};
use crate::keys::act::{Act, state_allows};
use crate::keys::registrations::CLUSTER;
use axum::Json;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use claviger_domain::access::KeyOperation;
use claviger_domain::id::{AgentName, ClusterId, InstanceId};
use claviger_domain::key::{KeyAction, RootKey};
use claviger_store::{StoreError, Tx, answers, clusters, events, registrations};
use claviger_wire::kp::{
    Acknowledgements, AgentAcknowledgement, ClusterAcknowledgement, ServiceAcknowledgement,
};
use std::collections::BTreeMap;
use std::sync::Arc;

/// `GET /v3/instances/{instance}/keys/{key}/acknowledgements`.
pub(crate) async fn acknowledgements(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path((instance, key)): Path<(String, String)>,
) -> Response {
    let Ok(instance) = instance.parse::<InstanceId>() else {
        let what = "The instance is named by its UUID.";
        return service(StatusCode::BAD_REQUEST, "E4000", what, "");
    };
    let action = "kms.secrets-event.list";
    let failed = "Acknowledgements could not be listed";
    let act = Act { caller, instance, action, failed, key };
    let found = act.look(&app, |_, tx, act, now| {
        let key = act.key(tx, KeyOperation::ReadMetadata)?;
        state_allows(&key, KeyAction::Read, now)?;
        Ok(Acknowledgements {
            event: events::last_of(tx, &key.root)?,
            clusters: of_clusters(tx, &key.root)?,
            services: of_services(tx, &key.root)?,
        })
    });
    match found.await {
        Ok(found) => Json(found).into_response(),
        Err(e) => KpError::in_service_form(e),
    }
}

/// What the agents of clusters said.
fn of_clusters(tx: &Tx<'_>, root: &RootKey) -> Result<Vec<ClusterAcknowledgement>, StoreError> {
    let event = events::last_of(tx, root)?;
    let mut seen: BTreeMap<ClusterId, BTreeMap<AgentName, AgentAcknowledgement>> = BTreeMap::new();
    for registration in registrations::of_key(tx, root)? {
        let crn = registration.crn.strip_prefix(CLUSTER);
        if let Some(cluster) = crn.and_then(|rest| rest.split(':').nth(4)?.parse().ok()) {
            seen.entry(cluster).or_default();
        }
    }
    // Newest event first: the first row of an agent is its newest.
    for ack in clusters::acks_of_key(tx, root)? {
        let agents = seen.entry(ack.cluster).or_default();
        agents.entry(ack.agent.clone()).or_insert(AgentAcknowledgement {
            agent: ack.agent,
            event: ack.event,
            state: Some(ack.state),
            fenced: ack.fenced,
            at: Some(ack.at),
        });
    }
    let mut out = Vec::new();
    for (cluster, mut agents) in seen {
        for agent in clusters::agents(tx, &cluster)? {
            agents.entry(agent.name.clone()).or_insert(AgentAcknowledgement {
                agent: agent.name,
                event: 0,
                state: None,
                fenced: false,
                at: None,
            });
        }
        let agents: Vec<_> = agents.into_values().collect();
        let acknowledged = agents.iter().all(|agent| agent.event >= event);
        out.push(ClusterAcknowledgement { cluster, acknowledged, agents });
    }
    Ok(out)
}

/// What others said by `event_ack`.
fn of_services(tx: &Tx<'_>, root: &RootKey) -> Result<Vec<ServiceAcknowledgement>, StoreError> {
    let last = events::last_of(tx, root)?;
    let silent = |crn: String| ServiceAcknowledgement {
        acknowledged: last == 0,
        event: 0,
        state: None,
        rewrapped: None,
        at: None,
        crn,
    };
    let mut seen: BTreeMap<String, ServiceAcknowledgement> = registrations::of_key(tx, root)?
        .into_iter()
        .filter(|registration| !registration.crn.starts_with(CLUSTER))
        .map(|registration| (registration.crn.clone(), silent(registration.crn)))
        .collect();
    for answer in answers::of_key(tx, root)? {
        let said = ServiceAcknowledgement {
            acknowledged: answer.event >= last,
            event: answer.event,
            state: Some(answer.state),
            rewrapped: answer.rewrapped,
            at: Some(answer.at),
            crn: answer.crn,
        };
        seen.insert(said.crn.clone(), said);
    }
    Ok(seen.into_values().collect())
}
