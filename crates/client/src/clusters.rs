//! The cluster service, as operators use it.

use crate::error::Error;
use crate::http::{Answer, Call, segment};
use crate::token::Session;
use claviger_domain::id::{AgentName, InstanceId, JobId};
use claviger_wire::agent::{Certificate, ReissueRequest};
use claviger_wire::ks::{
    CancelOperation, ClusterView, Crk, GivenUp, JobView, KeyOwner, KmsInstance, KmsStatus, NewJob,
    NodeRemoved, OpenOperation, Opened, RegisterCluster, Registered, ReleaseKey, Released,
};
use reqwest::Method;
use reqwest::header::HeaderValue;
use serde::de::DeserializeOwned;

/// The cluster service. Cheap to clone. A `cluster` is an id or a name.
#[derive(Clone)]
pub struct ClusterService {
    pub(crate) session: Session,
}

impl ClusterService {
    /// The instances of the key service.
    pub async fn kms_instances(&self) -> Result<Vec<KmsInstance>, Error> {
        self.read("/v2/getKMSInstances".to_owned()).await
    }

    /// The root keys of an instance.
    pub async fn crks(&self, instance: InstanceId) -> Result<Vec<Crk>, Error> {
        self.read(format!("/v2/getCRKs?kms_instance={instance}")).await
    }

    /// Every cluster.
    pub async fn list(&self) -> Result<Vec<ClusterView>, Error> {
        self.read("/v2/vpc/getClusters".to_owned()).await
    }

    /// One cluster.
    pub async fn get(&self, cluster: &str) -> Result<ClusterView, Error> {
        self.read(format!("/v2/getCluster?cluster={}", segment(cluster))).await
    }

    /// Makes the caller the owner of the API key, for all clusters of the region.
    pub async fn reset_api_key(&self, region: &str) -> Result<(), Error> {
        let mut call = Call::post("/v1/keys".to_owned()).idempotent();
        let region = HeaderValue::from_str(region)
            .map_err(|_| Error::local("a region is a word such as `local`"))?;
        call.headers.insert("x-region", region);
        self.session.send(call).await.map(drop)
    }

    /// Whose credentials talk to the key service for a cluster.
    pub async fn key_owner(&self, cluster: &str) -> Result<KeyOwner, Error> {
        self.read(format!("/v1/logging/{}/clusterkeyowner", segment(cluster))).await
    }

    /// Makes a cluster known. Its join token is shown this once.
    pub async fn register(&self, cluster: &RegisterCluster) -> Result<Registered, Error> {
        let call = Call::post("/v3/clusters".to_owned()).json(cluster)?;
        self.session.send(call).await?.json()
    }

    /// A join token for one more agent.
    pub async fn join_token(&self, cluster: &str) -> Result<Registered, Error> {
        let call = Call::post(below(cluster, "/join-tokens"));
        self.session.send(call).await?.json()
    }

    /// A new certificate for a node that cannot ask for it itself.
    pub async fn reissue(
        &self,
        cluster: &str,
        request: &ReissueRequest,
    ) -> Result<Certificate, Error> {
        let call = Call::post(below(cluster, "/node-certificates")).json(request)?;
        self.session.send(call).await?.json()
    }

    /// Removes a node whose machine is gone; `force` says that it is off for good.
    pub async fn remove_node(
        &self,
        cluster: &str,
        node: &AgentName,
        force: bool,
    ) -> Result<NodeRemoved, Error> {
        let path = below(cluster, &format!("/nodes/{node}?force={force}"));
        self.session.send(Call::new(Method::DELETE, path)).await?.json()
    }

    /// Forgets a cluster; `force` for one that is encrypted.
    pub async fn remove(&self, cluster: &str, force: bool) -> Result<(), Error> {
        let path = format!("/v1/clusters/{}?force={force}", segment(cluster));
        self.session.send(Call::new(Method::DELETE, path)).await.map(drop)
    }

    /// Everything about a cluster's encryption.
    pub async fn kms_status(&self, cluster: &str) -> Result<KmsStatus, Error> {
        self.read(below(cluster, "/kms")).await
    }

    /// Asks for enablement, or a switch of key or instance.
    pub async fn open_operation(
        &self,
        cluster: &str,
        operation: &OpenOperation,
    ) -> Result<Opened, Error> {
        let call = Call::post(below(cluster, "/kms/operations")).json(operation)?;
        self.session.send(call).await?.json()
    }

    /// Gives up what is in progress; refused with 409 where it cannot be.
    pub async fn cancel(&self, cluster: &str, request: &CancelOperation) -> Result<GivenUp, Error> {
        let call = Call::post(below(cluster, "/kms/operations/cancel")).json(request)?;
        self.session.send(call).await?.json()
    }

    /// Takes a cluster off a root key that it needs no more; refused with 409 where it may.
    pub async fn release(&self, cluster: &str, request: &ReleaseKey) -> Result<Released, Error> {
        let call = Call::post(below(cluster, "/kms/release")).json(request)?;
        self.session.send(call).await?.json()
    }

    /// Asks a cluster's agents for work.
    pub async fn new_job(&self, cluster: &str, job: &NewJob) -> Result<JobView, Error> {
        let call = Call::post(below(cluster, "/jobs")).json(job)?;
        self.session.send(call).await?.json()
    }

    /// How a job stands.
    pub async fn job(&self, cluster: &str, job: JobId) -> Result<JobView, Error> {
        self.read(below(cluster, &format!("/jobs/{job}"))).await
    }

    /// A kubeconfig; refused with 409 while the root key is suspended.
    pub async fn kubeconfig(&self, cluster: &str) -> Result<String, Error> {
        self.fetch(below(cluster, "/kubeconfig")).await?.text()
    }

    async fn read<T: DeserializeOwned>(&self, path: String) -> Result<T, Error> {
        self.fetch(path).await?.json()
    }

    async fn fetch(&self, path: String) -> Result<Answer, Error> {
        self.session.send(Call::get(path)).await
    }
}

fn below(cluster: &str, rest: &str) -> String {
    format!("/v3/clusters/{}{rest}", segment(cluster))
}
