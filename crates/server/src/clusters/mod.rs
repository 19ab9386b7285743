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
pub(crate) mod limits;
mod node_ca;
mod nodes;
mod operations;
mod operators;
mod register;
mod release;
mod removal;
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

use crate::http::api::content::{Content, events, json};
use crate::http::api::parameters::{CLUSTER, FORCE_CLUSTER, FORCE_NODE, KMS_INSTANCE, REGION};
use crate::http::api::{Api, Description, Kind, delete, get, post, says};
use claviger_domain::cluster::Observation;
use claviger_wire::agent::{
    Acknowledgement, Certificate, CommitRequest, JobReport, JoinRequest, Lease, LeaseRequest,
    Nudge, ReissueRequest, RenewRequest, State,
};
use claviger_wire::ks::{
    CancelOperation, ClusterView, Crk, EnableKms, GivenUp, JobView, KeyOwner, KmsInstance,
    KmsStatus, NewJob, NodeRemoved, OpenOperation, Opened, RegisterCluster, Registered, ReleaseKey,
    Released,
};
use schemars::json_schema;
use std::sync::Arc;
use stream::Streams;

/// Paths of the cluster service and of the agents' API.
pub(crate) fn api() -> Api {
    ibm().merge(ours()).also_under("/global").merge(agents())
}

/// An empty object: the clients read one.
const EMPTY: Content = Content {
    media_type: "application/json",
    schema: |_| json_schema!({ "type": "object", "maxProperties": 0 }),
};

/// What `kubectl` reads.
const KUBECONFIG: Content = Content {
    media_type: "application/yaml",
    schema: |_| json_schema!({ "type": "object", "description": "A kubeconfig." }),
};

/// Paths that IBM's clients call.
fn ibm() -> Api {
    let clusters = |id| says(id, "Every cluster").answers(200, json::<Vec<ClusterView>>());
    let enable = says("enableKms", "Encrypt a cluster under a root key, or move it to another")
        .takes(json::<EnableKms>())
        .answers(200, EMPTY)
        .answers(201, EMPTY)
        .refuses(&[404, 409, 412, 422, 429, 507]);
    let instances = says("getKmsInstances", "Instances of the key service")
        .answers(200, json::<Vec<KmsInstance>>())
        .refuses(&[507]);
    let crks = says("getCrks", "Root keys of an instance")
        .query(&[KMS_INSTANCE])
        .answers(200, json::<Vec<Crk>>())
        .refuses(&[400, 404, 507]);
    let one = says("getCluster", "A cluster")
        .query(&[CLUSTER])
        .answers(200, json::<ClusterView>())
        .refuses(&[400, 404]);
    let owner = says("getClusterKeyOwner", "Whose credentials talk to the key service")
        .answers(200, json::<KeyOwner>())
        .refuses(&[404, 507]);
    let reset = says("resetApiKey", "The caller lends root keys to clusters from now on")
        .header(REGION)
        .answers_nothing(204)
        .refuses(&[400, 507]);
    let remove = says("removeCluster", "Forget a cluster; its Secrets stay as they are")
        .query(&[FORCE_CLUSTER])
        .answers_nothing(204)
        .refuses(&[404, 409, 507]);
    Api::new("clusters", Kind::Service)
        .at("/v2/enableKMS", [post(operators::enable_kms, enable)])
        .at("/v2/getKMSInstances", [get(operators::instances, instances)])
        .at("/v2/getCRKs", [get(operators::crks, crks)])
        .at("/v2/getCluster", [get(operators::get_cluster, one)])
        .at("/v2/vpc/getClusters", [get(operators::get_clusters, clusters("getClusters"))])
        .at("/v1/clusters", [get(operators::get_clusters, clusters("listClusters"))])
        .at("/v1/clusters/{cluster}", [delete(removal::remove_cluster, remove)])
        .at("/v1/logging/{cluster}/clusterkeyowner", [get(api_key::owner, owner)])
        .at("/v1/keys", [post(api_key::reset, reset)])
}

/// Our own, for operators.
fn ours() -> Api {
    let register =
        says("registerCluster", "Make a cluster known, with a token for its first agent")
            .takes(json::<RegisterCluster>())
            .answers(201, json::<Registered>())
            .refuses(&[409, 429, 507]);
    let token = on_cluster("createJoinToken", "A token for one more agent")
        .answers(201, json::<Registered>())
        .refuses(&[429, 507]);
    let reissue = on_cluster("reissueCertificate", "A certificate for a node's written request")
        .takes(json::<ReissueRequest>())
        .answers(201, json::<Certificate>())
        .refuses(&[500, 507]);
    let remove = on_cluster("removeNode", "Forget a node that is gone for good")
        .query(&[FORCE_NODE])
        .answers(200, json::<NodeRemoved>())
        .refuses(&[409, 500, 507]);
    let status = on_cluster("getKmsStatus", "Everything about a cluster's encryption")
        .answers(200, json::<KmsStatus>());
    let operation = on_cluster("openOperation", "Enable encryption, or switch the root key")
        .takes(json::<OpenOperation>())
        .answers(200, json::<Opened>())
        .answers(202, json::<Opened>())
        .refuses(&[409, 412, 422, 429, 500, 507]);
    let cancel = on_cluster("cancelOperation", "Give up what is in progress")
        .takes(json::<CancelOperation>())
        .answers(200, json::<GivenUp>())
        .refuses(&[409, 422, 500, 507]);
    let release = on_cluster("releaseKey", "Take a cluster off a root key it needs no more")
        .takes(json::<ReleaseKey>())
        .answers(200, json::<Released>())
        .refuses(&[409, 507]);
    let new_job = on_cluster("createJob", "Ask a cluster's agents for work")
        .takes(json::<NewJob>())
        .answers(202, json::<JobView>())
        .refuses(&[409, 429, 507]);
    let job = on_cluster("getJob", "How a job stands").answers(200, json::<JobView>());
    let kubeconfig = on_cluster("getKubeconfig", "What leads to a cluster")
        .answers(200, KUBECONFIG)
        .refuses(&[409, 500, 507]);
    Api::new("clusters", Kind::Service)
        .at("/v3/clusters", [post(operators::register, register)])
        .at("/v3/clusters/{cluster}/join-tokens", [post(operators::join_token, token)])
        .at("/v3/clusters/{cluster}/node-certificates", [post(operators::reissue, reissue)])
        .at("/v3/clusters/{cluster}/nodes/{node}", [delete(operators::remove_node, remove)])
        .at("/v3/clusters/{cluster}/kms", [get(operators::status, status)])
        .at("/v3/clusters/{cluster}/kms/operations", [post(operators::operation, operation)])
        .at("/v3/clusters/{cluster}/kms/operations/cancel", [post(operators::cancel, cancel)])
        .at("/v3/clusters/{cluster}/kms/release", [post(release::release_key, release)])
        .at("/v3/clusters/{cluster}/jobs", [post(operators::new_job, new_job)])
        .at("/v3/clusters/{cluster}/jobs/{job}", [get(operators::job, job)])
        .at("/v3/clusters/{cluster}/kubeconfig", [get(operators::kubeconfig, kubeconfig)])
}

fn on_cluster(id: &'static str, summary: &'static str) -> Description {
    says(id, summary).refuses(&[404])
}

fn agents() -> Api {
    let join = says("joinCluster", "The first certificate of a node, for a join token")
        .takes(json::<JoinRequest>())
        .answers(200, json::<Certificate>())
        .refuses(&[401, 429, 500, 503, 507]);
    let renew = says("renewCertificate", "A new certificate for the same node")
        .takes(json::<RenewRequest>())
        .answers(200, json::<Certificate>())
        .refuses(&[500, 507]);
    let state = says("getState", "All that an agent needs to know").answers(200, json::<State>());
    let stream = says("streamNudges", "Server-sent events that say when to look again")
        .answers(200, events::<Nudge>())
        .refuses(&[429]);
    let observation = says("observe", "What an agent sees of its node")
        .takes(json::<Observation>())
        .answers_nothing(204)
        .refuses(&[507]);
    let lease = says("takeLease", "The right to run the loop, for 15 seconds")
        .takes(json::<LeaseRequest>())
        .answers(200, json::<Lease>())
        .refuses(&[409, 507]);
    let commit = says("commit", "One durable change of the cluster")
        .takes(json::<CommitRequest>())
        .answers(200, json::<State>())
        .refuses(&[409, 422, 500, 507]);
    let ack = says("acknowledge", "An agent has acted on a key event")
        .takes(json::<Acknowledgement>())
        .answers_nothing(204)
        .refuses(&[507]);
    let job = says("reportJob", "How a job stands")
        .takes(json::<JobReport>())
        .answers_nothing(204)
        .refuses(&[404, 507]);
    Api::new("agents", Kind::Open)
        .at("/agent/v1/join", [post(agents::join, join)])
        .merge(
            Api::new("agents", Kind::Node)
                .at("/agent/v1/renew", [post(agents::renew, renew)])
                .at("/agent/v1/state", [get(agents::state, state)])
                .at("/agent/v1/stream", [get(stream::stream, stream)])
                .at("/agent/v1/observation", [post(agents::observation, observation)])
                .at("/agent/v1/lease", [post(agents::lease, lease)])
                .at("/agent/v1/commit", [post(agents::commit, commit)])
                .at("/agent/v1/ack", [post(agents::ack, ack)])
                .at("/agent/v1/jobs/{job}", [post(agents::job, job)]),
        )
        .sharing(Arc::new(Streams::default()))
}

#[cfg(test)]
mod tests;
