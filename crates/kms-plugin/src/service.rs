//! Status, Encrypt and Decrypt over the opened ring.

use crate::message::{self, Stored};
use crate::proto::key_management_service_server::KeyManagementService;
use crate::proto::{
    DecryptRequest, DecryptResponse, EncryptRequest, EncryptResponse, StatusRequest, StatusResponse,
};
use crate::resolve::{Resolve, Resolver};
use crate::ring::{OpenKek, OpenRing};
use arc_swap::ArcSwap;
use claviger_crypto::SecretBytes;
use claviger_crypto::kek::{ANNOTATION, Carried, Kek, SEED_MAX, serial_of};
use claviger_domain::id::{ClusterId, Serial};
use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tonic::{Request, Response, Status};

/// Largest ciphertext: what kube-apiserver accepts from a plugin, so none of ours is longer.
pub const CIPHERTEXT_MAX: usize = 1024;

/// Largest text of a reason in an error: it ends in kube-apiserver's log on every call.
const REASON_MAX: usize = 300;

/// How long a wipe waits for calls that still use the ring. They take microseconds.
const WIPE_WAIT: Duration = Duration::from_secs(1);

enum Gate {
    Open(OpenRing),
    Waiting(String),
    Fenced(String),
}

/// The plugin: a handle, cheap to clone, shared by the agent and the socket's server.
///
/// It begins waiting; [`set`](Self::set) opens it.
#[derive(Clone)]
pub struct Plugin {
    gate: Arc<ArcSwap<Gate>>,
    resolver: Arc<Resolver>,
}

impl Plugin {
    /// A plugin for `cluster` that answers Unavailable until [`set`](Self::set). `resolve` opens
    /// KEKs that only records know.
    pub fn new(cluster: ClusterId, resolve: Arc<dyn Resolve>) -> Self {
        let gate = Gate::Waiting("the agent has just started".to_owned());
        Self {
            gate: Arc::new(ArcSwap::from_pointee(gate)),
            resolver: Arc::new(Resolver::new(cluster, resolve)),
        }
    }

    /// Answers from `ring` from now on. Calls under way end with the ring they began with.
    pub fn set(&self, ring: OpenRing) {
        drop(self.gate.swap(Arc::new(Gate::Open(ring))));
    }

    /// Refuses every call with FailedPrecondition from now on and wipes every key. When this
    /// returns, no key is left in the plugin's memory. Safe to repeat.
    pub fn fence(&self, reason: &str) {
        self.close(Gate::Fenced(cut(reason)));
    }

    /// Answers Unavailable from now on, and wipes every key. Safe to repeat.
    pub fn wait(&self, reason: &str) {
        self.close(Gate::Waiting(cut(reason)));
    }

    fn close(&self, gate: Gate) {
        let old = self.gate.swap(Arc::new(gate));
        self.resolver.wipe();
        // No call holds the ring across an await, so the last of them lets go in microseconds.
        let begun = Instant::now();
        while Arc::strong_count(&old) > 1 && begun.elapsed() < WIPE_WAIT {
            std::thread::yield_now();
        }
        if Arc::strong_count(&old) > 1 {
            tracing::error!("a call still held the key ring a second after it was closed");
        }
    }

    /// The `key_id` that Status answers; none while it refuses.
    pub fn key_id(&self) -> Option<String> {
        match &**self.gate.load() {
            Gate::Open(ring) => ring.reported().map(|k| k.kek().key_id().to_owned()),
            Gate::Waiting(_) | Gate::Fenced(_) => None,
        }
    }

    /// Revision of the cluster whose ring is held; none while it refuses.
    pub fn revision(&self) -> Option<u64> {
        match &**self.gate.load() {
            Gate::Open(ring) => Some(ring.revision()),
            Gate::Waiting(_) | Gate::Fenced(_) => None,
        }
    }

    /// Seals and opens a random challenge with each KEK; the numbers of those that passed,
    /// rising. Empty while it refuses.
    pub fn self_test(&self) -> Vec<Serial> {
        match &**self.gate.load() {
            Gate::Open(ring) => ring.self_test(),
            Gate::Waiting(_) | Gate::Fenced(_) => Vec::new(),
        }
    }

    /// Does `work` with the ring, or says why there is none.
    fn with_ring<T>(&self, work: impl FnOnce(&OpenRing) -> Result<T, Status>) -> Result<T, Status> {
        match &**self.gate.load() {
            Gate::Open(ring) => work(ring),
            Gate::Waiting(reason) => Err(Status::unavailable(format!("not ready: {reason}"))),
            Gate::Fenced(reason) => Err(Status::failed_precondition(format!("fenced: {reason}"))),
        }
    }

    /// The EncryptResponse for a seed, encoded.
    pub(crate) fn seal(&self, seed: &[u8]) -> Result<Vec<u8>, Status> {
        self.with_seed(seed, |kek| {
            message::encrypt_response(Kek::sealed_len(seed.len()), kek.tail(), |out| {
                kek.kek().seal_into(seed, out);
            })
        })
    }

    /// Does `work` with the KEK that seals, if `seed` may be sealed.
    fn with_seed<T>(&self, seed: &[u8], work: impl FnOnce(&OpenKek) -> T) -> Result<T, Status> {
        if seed.is_empty() || seed.len() > SEED_MAX {
            return Err(Status::invalid_argument(format!(
                "a seed has 1 to {SEED_MAX} bytes, this one {}",
                seed.len()
            )));
        }
        self.with_ring(|ring| Ok(work(reported(ring)?)))
    }

    /// The seed of a record.
    pub(crate) async fn open(&self, stored: Stored<'_>) -> Result<SecretBytes, Status> {
        let serial = serial_of(stored.ciphertext)
            .filter(|_| stored.ciphertext.len() <= CIPHERTEXT_MAX)
            .ok_or_else(|| Status::invalid_argument("not a sealed seed of this plugin"))?;
        let known =
            self.with_ring(|ring| ring.get(serial).map(|kek| open_with(kek, &stored)).transpose())?;
        if let Some(seed) = known {
            return Ok(seed);
        }
        let carried = stored.carried.ok_or_else(|| {
            Status::not_found(format!(
                "KEK {serial} is not in this cluster's ring and the record carries none"
            ))
        })?;
        let carried = Carried::parse(carried)
            .filter(|c| c.serial == serial && self.resolver.key_id(c) == stored.key_id)
            .ok_or_else(|| {
                Status::invalid_argument(format!(
                    "the record's annotation {ANNOTATION} does not belong to its ciphertext: \
                     changed by someone, or of another cluster"
                ))
            })?;
        let kek = self.resolver.open(carried).await?;
        // The gate may have closed while the key service was asked.
        self.with_ring(|_| open_with(&kek, &stored))
    }
}

const _: () = assert!(Kek::sealed_len(SEED_MAX) <= CIPHERTEXT_MAX);

fn reported(ring: &OpenRing) -> Result<&OpenKek, Status> {
    ring.reported().ok_or_else(|| Status::unavailable("not ready: the cluster has no KEK yet"))
}

fn open_with(kek: &OpenKek, stored: &Stored<'_>) -> Result<SecretBytes, Status> {
    if kek.kek().key_id() != stored.key_id {
        return Err(Status::invalid_argument(format!(
            "KEK {} has another key id than the record's: the record was changed, or is of \
             another cluster",
            kek.serial()
        )));
    }
    kek.kek().open(stored.ciphertext).map_err(|_| {
        Status::invalid_argument(format!(
            "the seed does not open with KEK {}: the record was changed, or is of another cluster",
            kek.serial()
        ))
    })
}

fn cut(reason: &str) -> String {
    reason.chars().take(REASON_MAX).collect()
}

/// For callers in the process; the socket's are answered by [`server`](crate::server).
#[tonic::async_trait]
impl KeyManagementService for Plugin {
    async fn status(&self, _: Request<StatusRequest>) -> Result<Response<StatusResponse>, Status> {
        self.with_ring(|ring| {
            let kek = reported(ring)?;
            Ok(Response::new(StatusResponse {
                version: "v2".to_owned(),
                healthz: "ok".to_owned(),
                key_id: kek.kek().key_id().to_owned(),
            }))
        })
    }

    async fn encrypt(
        &self,
        request: Request<EncryptRequest>,
    ) -> Result<Response<EncryptResponse>, Status> {
        let seed = SecretBytes::new(request.into_inner().plaintext);
        self.with_seed(seed.expose(), |kek| {
            Response::new(EncryptResponse {
                ciphertext: kek.kek().seal(seed.expose()),
                key_id: kek.kek().key_id().to_owned(),
                annotations: HashMap::from([(ANNOTATION.to_owned(), kek.annotation().to_vec())]),
            })
        })
    }

    async fn decrypt(
        &self,
        request: Request<DecryptRequest>,
    ) -> Result<Response<DecryptResponse>, Status> {
        let request = request.into_inner();
        let stored = Stored {
            ciphertext: &request.ciphertext,
            key_id: &request.key_id,
            carried: request.annotations.get(ANNOTATION).map(Vec::as_slice),
        };
        let seed = self.open(stored).await?;
        Ok(Response::new(DecryptResponse { plaintext: seed.expose().to_vec() }))
    }
}
