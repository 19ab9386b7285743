//! Which clusters have acted on the last event of a key.

use crate::app::App;
use crate::http::auth::Caller;
use crate::http::error::{Form, KpError, service};
use axum::Json;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use claviger_domain::access::KeyOperation;
use claviger_domain::id::{AgentName, ClusterId, InstanceId, KeyId};
use claviger_domain::key::RootKey;
use claviger_store::{StoreError, Tx, clusters, events, keys, registrations};
use claviger_wire::kp::{Acknowledgements, AgentAcknowledgement, ClusterAcknowledgement};
use std::collections::BTreeMap;
use std::sync::Arc;

/// `GET /v3/instances/{instance}/keys/{key}/acknowledgements`.
pub(crate) async fn acknowledgements(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path((instance, key)): Path<(String, String)>,
) -> Response {
    let (Ok(instance), Ok(key)) = (instance.parse::<InstanceId>(), key.parse::<KeyId>()) else {
        let what = "Instance and key are named by their UUIDs.";
        return service(StatusCode::BAD_REQUEST, "E4000", what, "");
    };
    if caller.permit(KeyOperation::ReadMetadata, instance, Some(key)).is_err() {
        return Form::Service.unauthorized();
    }
    let root = RootKey { instance, key };
    match app.blocking(move |app| app.store.read("acknowledgements", |tx| look(tx, &root))).await {
        Ok(Some(found)) => Json(found).into_response(),
        Ok(None) => service(
            StatusCode::NOT_FOUND,
            "E4043",
            "There is no such key in this instance.",
            "claviger key ls --instance-id",
        ),
        Err(e) => {
            let e = KpError::from(e);
            service(e.status, "E5000", &e.message, "")
        }
    }
}

fn look(tx: &Tx<'_>, root: &RootKey) -> Result<Option<Acknowledgements>, StoreError> {
    if keys::get(tx, root)?.is_none() {
        return Ok(None);
    }
    let event = events::last_of(tx, root)?;
    let mut seen: BTreeMap<ClusterId, BTreeMap<AgentName, AgentAcknowledgement>> = BTreeMap::new();
    for registration in registrations::of_key(tx, root)? {
        let cluster = registration.crn.split(':').nth(7).and_then(|id| id.parse().ok());
        if let Some(cluster) = cluster {
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
    Ok(Some(Acknowledgements { event, clusters: out }))
}
