//! KEKs that only a record's annotation knows, as restored data has them.
//!
//! Annotations are forgeable by whoever writes etcd. So an entry is tried only when its serial
//! and its `key_id` agree with the ciphertext, is opened by the root key under the cluster's
//! AAD, and every try costs from a small budget, so that forged records cannot turn the plugin
//! into a flood of calls on the key service.

use crate::ring::OpenKek;
use claviger_crypto::Key32;
use claviger_crypto::digest::sha256;
use claviger_crypto::kek::Carried;
use claviger_domain::cluster::ring::{self, Role};
use claviger_domain::id::{ClusterId, UnixMs};
use std::collections::HashMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use thiserror::Error;
use tokio::time::{Instant, timeout};
use tonic::Status;

/// How long one try may take: kube-apiserver waits 10 s (`timeout` of its configuration), so the
/// answer, or a clear error, is there before it gives up.
pub const TRY_FOR: Duration = Duration::from_secs(8);
/// How long a failure is answered again without a new try.
pub const FAILED_FOR: Duration = Duration::from_secs(30);
/// How long an opened KEK is kept. It is in no ring, so no suspension of its root key is watched
/// for: this bounds how long one goes unseen. kube-apiserver keeps what it decrypted for longer.
pub const OPEN_FOR: Duration = Duration::from_secs(60);
/// Most wrapped KEKs remembered, opened or failed.
pub const ENTRIES_MAX: usize = 64;
/// Tries that may be made at once, and how long one of them takes to come back.
const BURST: u32 = 8;
const REFILL: Duration = Duration::from_secs(1);

/// A carried KEK that could not be opened.
#[derive(Debug, Error, Clone, PartialEq, Eq)]
pub enum ResolveError {
    /// The key service did not answer; later it may.
    #[error("the key service did not answer: {0}")]
    Unavailable(String),
    /// The key service answered no: wrong key, key suspended, forged.
    #[error("the key service refused: {0}")]
    Refused(String),
}

/// What [`Resolve::resolve`] gives.
pub type Resolving<'a> = Pin<Box<dyn Future<Output = Result<Key32, ResolveError>> + Send + 'a>>;

/// Opens a KEK by its root key. Given by the agent, which can reach the key service.
pub trait Resolve: Send + Sync {
    /// Unwraps `carried.wrapped` with `carried.root` under
    /// [`claviger_crypto::kek::wrap_aad`] of the agent's own cluster and `carried.serial`. Called
    /// at most once at a time for a wrapped text; given up after [`TRY_FOR`].
    fn resolve(&self, carried: Carried) -> Resolving<'_>;
}

enum Outcome {
    Unknown,
    Open(Arc<OpenKek>),
    Failed(ResolveError),
}

struct Slot {
    outcome: Outcome,
    until: Instant,
}

type Shared = Arc<tokio::sync::Mutex<Slot>>;

struct Inner {
    slots: HashMap<[u8; 32], Shared>,
    budget: u32,
    refilled: Instant,
    /// Rises with every wipe, so that an answer which was under way is thrown away.
    epoch: u64,
}

/// Remembers what was resolved; bounded in every direction.
pub(crate) struct Resolver {
    cluster: ClusterId,
    resolve: Arc<dyn Resolve>,
    inner: Arc<Mutex<Inner>>,
}

impl Resolver {
    pub(crate) fn new(cluster: ClusterId, resolve: Arc<dyn Resolve>) -> Self {
        let inner =
            Inner { slots: HashMap::new(), budget: BURST, refilled: Instant::now(), epoch: 0 };
        Self { cluster, resolve, inner: Arc::new(Mutex::new(inner)) }
    }

    /// The `key_id` that records under `carried` must have.
    pub(crate) fn key_id(&self, carried: &Carried) -> String {
        entry(carried).key_id(&self.cluster)
    }

    /// Forgets every opened KEK and failure; what is under way is thrown away when it arrives.
    pub(crate) fn wipe(&self) {
        let mut inner = lock(&self.inner);
        inner.epoch += 1;
        inner.slots.clear();
    }

    /// The opened KEK of an annotation whose serial and key id the caller has checked.
    pub(crate) async fn open(&self, carried: Carried) -> Result<Arc<OpenKek>, Status> {
        let id = sha256(&carried.to_bytes());
        let (slot, epoch) = self.slot(id)?;
        // Whoever comes second waits here for the first one's answer.
        let mut slot = slot.lock().await;
        if slot.until > Instant::now() {
            match &slot.outcome {
                Outcome::Open(kek) => return Ok(kek.clone()),
                Outcome::Failed(error) => return Err(status(error)),
                Outcome::Unknown => {}
            }
        }
        self.spend()?;
        let opened = match timeout(TRY_FOR, self.resolve.resolve(carried.clone())).await {
            Ok(answer) => answer,
            Err(_) => Err(ResolveError::Unavailable(format!("no answer in {TRY_FOR:?}"))),
        };
        // A wipe in between: the KEK, if there is one, is dropped, and so wiped, here.
        if lock(&self.inner).epoch != epoch {
            return Err(Status::unavailable("the key ring changed; ask again"));
        }
        match opened {
            Ok(key) => {
                let kek = Arc::new(OpenKek::new(&self.cluster, &entry(&carried), &key));
                slot.outcome = Outcome::Open(kek.clone());
                slot.until = Instant::now() + OPEN_FOR;
                self.forget_later(id);
                Ok(kek)
            }
            Err(error) => {
                let answer = status(&error);
                slot.outcome = Outcome::Failed(error);
                slot.until = Instant::now() + FAILED_FOR;
                Err(answer)
            }
        }
    }

    fn slot(&self, id: [u8; 32]) -> Result<(Shared, u64), Status> {
        let mut inner = lock(&self.inner);
        let epoch = inner.epoch;
        if let Some(slot) = inner.slots.get(&id) {
            return Ok((slot.clone(), epoch));
        }
        if inner.slots.len() >= ENTRIES_MAX {
            let oldest = inner.slots.iter().filter_map(|(id, slot)| {
                // A slot that is locked or waited for is in use.
                let slot = (Arc::strong_count(slot) == 1).then(|| slot.try_lock().ok())??;
                Some((slot.until, *id))
            });
            let Some((_, oldest)) = oldest.min() else {
                return Err(Status::resource_exhausted(
                    "too many records whose KEK only the record knows; ask again later",
                ));
            };
            inner.slots.remove(&oldest);
        }
        let slot = Slot { outcome: Outcome::Unknown, until: Instant::now() };
        let slot = Arc::new(tokio::sync::Mutex::new(slot));
        inner.slots.insert(id, slot.clone());
        Ok((slot, epoch))
    }

    /// Takes one try out of the budget.
    fn spend(&self) -> Result<(), Status> {
        let mut inner = lock(&self.inner);
        let back = inner.refilled.elapsed().as_secs() / REFILL.as_secs();
        if back > 0 {
            inner.budget = BURST.min(inner.budget.saturating_add(back.min(64) as u32));
            inner.refilled = Instant::now();
        }
        inner.budget = inner.budget.checked_sub(1).ok_or_else(|| {
            Status::resource_exhausted(
                "too many unknown KEKs in records at once; ask again in a second",
            )
        })?;
        Ok(())
    }

    /// Wipes an opened KEK when its time is over, whether or not anybody asks again.
    fn forget_later(&self, id: [u8; 32]) {
        let inner = Arc::downgrade(&self.inner);
        tokio::spawn(async move {
            tokio::time::sleep(OPEN_FOR).await;
            if let Some(inner) = inner.upgrade() {
                lock(&inner).slots.remove(&id);
            }
        });
    }
}

fn lock(inner: &Mutex<Inner>) -> std::sync::MutexGuard<'_, Inner> {
    // Every change leaves the map usable, so a panic elsewhere is no reason to stop.
    inner.lock().unwrap_or_else(PoisonError::into_inner)
}

fn entry(carried: &Carried) -> ring::Kek {
    ring::Kek {
        serial: carried.serial,
        root: carried.root,
        wrapped: carried.wrapped.clone(),
        role: Role::Retained,
        created: UnixMs(0),
    }
}

fn status(error: &ResolveError) -> Status {
    match error {
        ResolveError::Unavailable(_) => Status::unavailable(error.to_string()),
        ResolveError::Refused(_) => Status::failed_precondition(error.to_string()),
    }
}
