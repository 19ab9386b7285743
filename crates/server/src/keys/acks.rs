//! Which users of a key have acted on its last event.

use crate::app::App;
use crate::http::auth::Caller;
use crate::http::error::{KpError, service};
use crate::keys::act::{About, Act, state_allows};
use crate::keys::registrations::CLUSTER;
use axum::Json;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use claviger_domain::access::KeyOperation;
use claviger_domain::id::{AgentName, ClusterId, InstanceId};
use claviger_domain::key::{KeyAction, RootKey};
use claviger_store::registrations::{self, Registration};
use claviger_store::{StoreError, Tx, answers, clusters, events};
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
    let act = Act { caller, instance, action, failed, about: About::Key(key) };
    let found = act.look(&app, |_, tx, act, now| {
        let key = act.key(tx, KeyOperation::ReadMetadata)?;
        state_allows(&key, KeyAction::Read, now)?;
        let event = events::last_of(tx, &key.root)?;
        let registered = registrations::of_key(tx, &key.root)?;
        Ok(Acknowledgements {
            event,
            clusters: of_clusters(tx, &key.root, &registered, event)?,
            services: of_services(tx, &key.root, &registered, event)?,
        })
    });
    match found.await {
        Ok(found) => Json(found).into_response(),
        Err(e) => KpError::in_service_form(e),
    }
}

/// What the agents of clusters said.
fn of_clusters(
    tx: &Tx<'_>,
    root: &RootKey,
    registered: &[Registration],
    event: u64,
) -> Result<Vec<ClusterAcknowledgement>, StoreError> {
    let mut seen: BTreeMap<ClusterId, BTreeMap<AgentName, AgentAcknowledgement>> = BTreeMap::new();
    for registration in registered {
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
        // Of one without agents nobody has acted, and nothing is known.
        let acknowledged = !agents.is_empty() && agents.iter().all(|agent| agent.event >= event);
        out.push(ClusterAcknowledgement { cluster, acknowledged, agents });
    }
    Ok(out)
}

/// What others said by `event_ack`.
fn of_services(
    tx: &Tx<'_>,
    root: &RootKey,
    registered: &[Registration],
    last: u64,
) -> Result<Vec<ServiceAcknowledgement>, StoreError> {
    let silent = |crn: &str| ServiceAcknowledgement {
        acknowledged: last == 0,
        event: 0,
        state: None,
        rewrapped: None,
        at: None,
        crn: crn.to_owned(),
    };
    let mut seen: BTreeMap<String, ServiceAcknowledgement> = registered
        .iter()
        .filter(|registration| !registration.crn.starts_with(CLUSTER))
        .map(|registration| (registration.crn.clone(), silent(&registration.crn)))
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
