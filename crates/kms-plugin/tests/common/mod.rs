//! A root key in software, a cluster's ring under it, and a real client on a real socket.

#![allow(clippy::unwrap_used)] // A panic is the report of a test.
#![allow(dead_code)] // Each test program uses a part.

use claviger_crypto::kek::{Carried, wrap_aad};
use claviger_crypto::wrapped::{self, Wrapped};
use claviger_crypto::{Key32, SealingKey};
use claviger_domain::cluster::ring::{Kek, Role};
use claviger_domain::id::{ClusterId, InstanceId, KeyId, KeyVersionId, Serial, UnixMs};
use claviger_domain::key::{RootKey, RootVersion};
use claviger_kms_plugin::proto::key_management_service_client::KeyManagementServiceClient;
use claviger_kms_plugin::proto::{
    DecryptRequest, EncryptRequest, EncryptResponse, StatusRequest, StatusResponse,
};
use claviger_kms_plugin::resolve::Resolving;
use claviger_kms_plugin::{Listener, OpenKek, OpenRing, Plugin, Resolve, ResolveError};
use hyper_util::rt::TokioIo;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::net::UnixStream;
use tokio::task::JoinHandle;
use tonic::Status;
use tonic::transport::{Channel, Endpoint};

pub type Client = KeyManagementServiceClient<Channel>;

/// The key service, in so far as a plugin depends on it: a root key that wraps and unwraps.
pub struct Root {
    pub cluster: ClusterId,
    pub version: RootVersion,
    material: SealingKey,
    pub unwraps: AtomicUsize,
    pub away: std::sync::atomic::AtomicBool,
}

impl Root {
    pub fn new() -> Arc<Self> {
        let root = RootKey { instance: InstanceId::random(), key: KeyId::random() };
        Arc::new(Self {
            cluster: ClusterId::random(),
            version: RootVersion { root, version: KeyVersionId::random() },
            material: SealingKey::new(&Key32::generate()),
            unwraps: AtomicUsize::new(0),
            away: false.into(),
        })
    }

    /// A new KEK, wrapped and opened.
    pub fn mint(&self, serial: u64) -> (Kek, Key32) {
        let key = Key32::generate();
        let aad = wrap_aad(&self.cluster, Serial(serial));
        let entry = Kek {
            serial: Serial(serial),
            root: self.version,
            wrapped: wrapped::wrap(&self.material, &self.version, &aad, key.expose()),
            role: Role::Write,
            created: UnixMs(0),
        };
        (entry, key)
    }

    pub fn open(&self, kek: &(Kek, Key32)) -> OpenKek {
        OpenKek::new(&self.cluster, &kek.0, &kek.1)
    }

    /// A ring of these, the last one reported.
    pub fn ring(&self, revision: u64, keks: &[&(Kek, Key32)]) -> OpenRing {
        let last = keks.last().map(|k| k.0.serial);
        OpenRing::new(revision, keks.iter().map(|k| self.open(k)).collect(), last).unwrap()
    }
}

impl Resolve for Root {
    fn resolve(&self, carried: Carried) -> Resolving<'_> {
        Box::pin(async move {
            self.unwraps.fetch_add(1, Ordering::SeqCst);
            tokio::time::sleep(Duration::from_millis(20)).await;
            if self.away.load(Ordering::SeqCst) {
                return Err(ResolveError::Unavailable("connection refused".to_owned()));
            }
            let refused = |_| ResolveError::Refused("does not open".to_owned());
            let aad = wrap_aad(&self.cluster, carried.serial);
            let wrapped = Wrapped::parse(&carried.wrapped).map_err(refused)?;
            let key = wrapped.open(&self.material, &self.version, &aad).map_err(refused)?;
            let mut bytes = key.expose().to_vec();
            Ok(Key32::take(&mut bytes).unwrap())
        })
    }
}

/// A plugin that serves.
pub struct Served {
    pub plugin: Plugin,
    pub path: PathBuf,
    pub stop: tokio::sync::oneshot::Sender<()>,
    pub task: JoinHandle<()>,
    pub directory: tempfile::TempDir,
}

pub fn serve(root: &Arc<Root>) -> Served {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("kms.sock");
    let plugin = Plugin::new(root.cluster.clone(), root.clone());
    let listener = Listener::bind(&path).unwrap();
    let (stop, stopped) = tokio::sync::oneshot::channel();
    let served = plugin.clone();
    let task = tokio::spawn(async move {
        let shutdown = async {
            let _ = stopped.await;
        };
        listener.serve(served, shutdown).await;
    });
    Served { plugin, path, stop, task, directory }
}

pub async fn client(path: &Path) -> Client {
    KeyManagementServiceClient::new(channel(path).await)
}

pub async fn channel(path: &Path) -> Channel {
    let path = path.to_owned();
    let connector = tower::service_fn(move |_| {
        let path = path.clone();
        async move { UnixStream::connect(path).await.map(TokioIo::new) }
    });
    Endpoint::from_static("http://kms").connect_with_connector(connector).await.unwrap()
}

pub async fn status(client: &mut Client) -> Result<StatusResponse, Status> {
    Ok(client.status(StatusRequest {}).await?.into_inner())
}

pub async fn encrypt(client: &mut Client, seed: &[u8]) -> Result<EncryptResponse, Status> {
    let request = EncryptRequest { plaintext: seed.to_vec(), uid: "u".to_owned() };
    Ok(client.encrypt(request).await?.into_inner())
}

pub fn stored(sealed: &EncryptResponse) -> DecryptRequest {
    DecryptRequest {
        ciphertext: sealed.ciphertext.clone(),
        uid: "u".to_owned(),
        key_id: sealed.key_id.clone(),
        annotations: sealed.annotations.clone(),
    }
}

pub async fn decrypt(client: &mut Client, request: DecryptRequest) -> Result<Vec<u8>, Status> {
    Ok(client.decrypt(request).await?.into_inner().plaintext)
}
