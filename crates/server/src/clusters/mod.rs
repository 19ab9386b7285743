//! The cluster service: clusters, what their agents say and change, what operators ask for.
//!
//! It keeps each cluster's durable truth and never connects into a cluster. Truth changes only
//! through `domain::cluster::commit::apply`, in one transaction: by an agent under the lease's
//! token and upon the revision it planned on, or by an operator who enables or switches.

mod agents;
mod api_key;
mod authorizations;
mod commits;
mod fault;
mod give_up;
mod jobs;
mod joining;
mod lease;
mod limits;
mod node_ca;
mod nodes;
mod operations;
mod operators;
mod register;
mod request;
mod roots;
mod state;
mod stream;
mod view;
mod words;

pub use authorizations::{access_of, authorise_all};
pub use fault::Fault;
pub use joining::admits;
#[cfg(test)]
pub(crate) use roots::scope_of;
pub use roots::{LAST_BACKUP, users};

use crate::app::App;
use axum::routing::{delete, get, post};
use axum::{Extension, Router};
use std::sync::Arc;
use stream::Streams;

/// Paths of the cluster service and of the agents' API.
pub fn routes() -> Router<Arc<App>> {
    let service = Router::new()
        .route("/v2/enableKMS", post(operators::enable_kms))
        .route("/v2/getKMSInstances", get(operators::instances))
        .route("/v2/getCRKs", get(operators::crks))
        .route("/v2/getCluster", get(operators::get_cluster))
        .route("/v2/vpc/getClusters", get(operators::get_clusters))
        .route("/v1/clusters", get(operators::get_clusters))
        .route("/v1/logging/{cluster}/clusterkeyowner", get(api_key::owner))
        .route("/v1/keys", post(api_key::reset))
        .route("/v3/clusters", post(operators::register))
        .route("/v3/clusters/{cluster}/join-tokens", post(operators::join_token))
        .route("/v3/clusters/{cluster}/node-certificates", post(operators::reissue))
        .route("/v3/clusters/{cluster}/nodes/{node}", delete(operators::remove_node))
        .route("/v3/clusters/{cluster}/kms", get(operators::status))
        .route("/v3/clusters/{cluster}/kms/operations", post(operators::operation))
        .route("/v3/clusters/{cluster}/kms/operations/cancel", post(operators::cancel))
        .route("/v3/clusters/{cluster}/jobs", post(operators::new_job))
        .route("/v3/clusters/{cluster}/jobs/{id}", get(operators::job))
        .route("/v3/clusters/{cluster}/kubeconfig", get(operators::kubeconfig));
    let agents = Router::new()
        .route("/agent/v1/join", post(agents::join))
        .route("/agent/v1/renew", post(agents::renew))
        .route("/agent/v1/state", get(agents::state))
        .route("/agent/v1/stream", get(stream::stream))
        .route("/agent/v1/observation", post(agents::observation))
        .route("/agent/v1/lease", post(agents::lease))
        .route("/agent/v1/commit", post(agents::commit))
        .route("/agent/v1/ack", post(agents::ack))
        .route("/agent/v1/jobs/{id}", post(agents::job))
        .layer(Extension(Arc::new(Streams::default())));
    service.clone().nest("/global", service).merge(agents)
}

#[cfg(test)]
mod tests;
