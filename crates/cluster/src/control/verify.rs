//! The proof that a cluster is encrypted as it says: etcd's bytes counted at one revision, and a
//! sample opened by a plugin that has just been made and knows nothing but the root key.

use crate::node::Node;
use crate::service_keys::ServiceKeys;
use claviger_domain::cluster::{Cluster, RootStatus, Tally, Verified};
use claviger_domain::id::{ClusterId, KeyVersionId, Serial, UnixMs};
use claviger_etcd::EtcdError;
use claviger_etcd::census::{Census, Keep};
use claviger_etcd::record::Record;
use claviger_kms_plugin::proto::DecryptRequest;
use claviger_kms_plugin::proto::key_management_service_server::KeyManagementService as _;
use claviger_kms_plugin::{OpenRing, Plugin};
use std::collections::HashMap;
use std::sync::Arc;
use thiserror::Error;

/// Records that the fresh plugin opens.
pub const SAMPLE: u64 = 32;

/// Why there is no proof.
#[derive(Debug, Error)]
pub enum VerifyError {
    /// etcd did not answer.
    #[error("etcd did not answer")]
    Etcd(#[from] EtcdError),
    /// Encryption was never enabled; without this, a cluster without Secrets would be proven.
    #[error("the cluster has no root key: encryption was never enabled")]
    NotEnabled,
    /// Records that are not under the write key.
    #[error("{0}")]
    FallsShort(Tally),
    /// The root key was rotated, and the cluster has not moved to the new version yet.
    #[error(
        "records are under version {uses} of the root key, and {current} is current: a rotation is on its way; `claviger ks kms status` tells how far"
    )]
    Outdated {
        /// The version that the write KEK is under.
        uses: KeyVersionId,
        /// The one that the key service calls current.
        current: KeyVersionId,
    },
    /// A record that a fresh plugin does not open.
    #[error("a freshly started plugin cannot open {key}: {why}")]
    DoesNotOpen {
        /// Its key in etcd.
        key: String,
        /// Why not.
        why: String,
    },
}

/// Counts and opens. Fails unless everything is under the write key and the sample opens. `now`
/// is the server's clock before the count began: rules compare it with times of the server, and
/// this node's clock may differ.
pub async fn prove(
    node: &Arc<Node>,
    cluster: &Cluster,
    now: UnixMs,
) -> Result<Verified, VerifyError> {
    if cluster.ring.write().is_none() {
        return Err(VerifyError::NotEnabled);
    }
    let census = Census::take(&node.local.etcd(), &super::resources(), Keep::Counts, now).await?;
    let tally = census.tally(&cluster.id, &cluster.ring);
    if tally.rewritable() + tally.unknown > 0 {
        return Err(VerifyError::FallsShort(tally));
    }
    let sampled = open_sample(node, &cluster.id, &tally).await?;
    Ok(Verified { revision: tally.revision, at: tally.at, records: tally.total, sampled })
}

/// Whether the cluster writes under the version that the key service calls current.
pub fn current(cluster: &Cluster, roots: &[RootStatus]) -> Result<(), VerifyError> {
    let Some(write) = cluster.ring.write() else { return Err(VerifyError::NotEnabled) };
    let root = roots.iter().find(|r| r.root == write.root.root);
    match root.and_then(|r| r.current).filter(|current| *current != write.root.version) {
        Some(current) => Err(VerifyError::Outdated { uses: write.root.version, current }),
        None => Ok(()),
    }
}

/// Opens every n-th record with a plugin whose ring is empty, so that each KEK comes out of the
/// record's own annotation and through the key service.
async fn open_sample(node: &Arc<Node>, id: &ClusterId, tally: &Tally) -> Result<u64, VerifyError> {
    let keys = ServiceKeys::default();
    keys.bind(node);
    let plugin = Plugin::new(id.clone(), Arc::new(keys));
    if let Ok(empty) = OpenRing::new(0, Vec::new(), None::<Serial>) {
        plugin.set(empty);
    }
    let stride = (tally.total / SAMPLE).max(1);
    let (mut at, mut sampled) = (0u64, 0u64);
    for resource in super::resources() {
        let mut pages = node.local.etcd().range(resource.prefix().as_bytes(), tally.revision);
        while let Some(page) = pages.next().await? {
            for kv in page {
                at += 1;
                if at % stride != 0 || sampled >= SAMPLE {
                    continue;
                }
                open_one(&plugin, &kv.key, &kv.value).await.map_err(|why| {
                    VerifyError::DoesNotOpen {
                        key: String::from_utf8_lossy(&kv.key).into_owned(),
                        why,
                    }
                })?;
                sampled += 1;
            }
        }
    }
    Ok(sampled)
}

async fn open_one(plugin: &Plugin, key: &[u8], value: &[u8]) -> Result<(), String> {
    let Record::KmsV2(record) = Record::parse(value) else {
        return Err("it is no KMS v2 record any more".to_owned());
    };
    let request = DecryptRequest {
        ciphertext: record.encrypted_dek.to_vec(),
        uid: "verify".to_owned(),
        key_id: record.key_id.to_owned(),
        annotations: record
            .annotations
            .iter()
            .map(|(name, value)| ((*name).to_owned(), value.to_vec()))
            .collect::<HashMap<_, _>>(),
    };
    let answer = plugin.decrypt(tonic::Request::new(request)).await;
    let seed = answer.map_err(|status| status.message().to_owned())?.into_inner();
    let seed = claviger_crypto::SecretBytes::new(seed.plaintext);
    record.open(seed.expose(), key).map(drop).map_err(|e| e.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use claviger_domain::cluster::ring::{Kek, Ring, Role};
    use claviger_domain::id::{InstanceId, KeyId};
    use claviger_domain::key::{KeyState, RootKey, RootVersion};

    #[test]
    fn a_cluster_under_an_older_version_is_not_verified() {
        let root = RootKey { instance: InstanceId::random(), key: KeyId::random() };
        let [old, new] = [(), ()].map(|()| KeyVersionId::random());
        let on = |versions: &[KeyVersionId]| Cluster {
            revision: 1,
            ring: Ring {
                keks: versions
                    .iter()
                    .map(|version| Kek {
                        serial: Serial(1),
                        root: RootVersion { root, version: *version },
                        wrapped: "w".into(),
                        role: Role::Write,
                        created: UnixMs(0),
                    })
                    .collect(),
                minted: 1,
            },
            ..Cluster::new(ClusterId::random(), "c".into(), UnixMs(0))
        };
        let status = |current| RootStatus {
            root,
            name: "r".into(),
            state: KeyState::Active,
            current,
            event: 1,
            expires: None,
            restorable_until: None,
        };
        assert!(current(&on(&[new]), &[status(Some(new))]).is_ok());
        assert!(current(&on(&[new]), &[status(None)]).is_ok(), "that is for the fence");
        let outdated = current(&on(&[old]), &[status(Some(new))]);
        assert!(matches!(outdated, Err(VerifyError::Outdated { .. })), "{outdated:?}");
        let bare = current(&on(&[]), &[status(Some(new))]);
        assert!(matches!(bare, Err(VerifyError::NotEnabled)), "{bare:?}");
    }
}
