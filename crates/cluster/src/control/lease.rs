//! The right to run the loop: taken from the server, kept while it lasts, never believed for
//! longer than it was given.

use crate::node::Node;
use claviger_wire::agent::LeaseRequest;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How long the server gives it for (15 s), less a margin for a paused process and a slow
/// answer: the count begins when the request leaves.
const GIVEN: Duration = Duration::from_secs(12);
/// How often it is renewed.
const RENEW: Duration = Duration::from_secs(4);
/// How often it is asked for while another agent holds it.
const ASK: Duration = Duration::from_secs(2);

#[derive(Debug, Clone, Copy)]
struct Held {
    fencing: u64,
    until: Instant,
}

/// A handle on the lease; clones see the same.
#[derive(Debug, Clone, Default)]
pub struct Lease {
    held: Arc<Mutex<Option<Held>>>,
}

impl Lease {
    /// Asks for the lease and renews it. Never returns.
    pub async fn keep(self, node: Arc<Node>) {
        loop {
            let asked = Instant::now();
            let request = LeaseRequest { fencing: self.fencing() };
            match node.clients().api.lease(&request).await {
                Ok(Some(given)) => {
                    let held = Held { fencing: given.fencing, until: asked + GIVEN };
                    if self.fencing() != Some(given.fencing) {
                        tracing::info!(fencing = given.fencing, "holds the lease of the cluster");
                    }
                    self.set(Some(held));
                }
                Ok(None) => self.set(None),
                // It may have been renewed or not: what was given still counts down.
                Err(error) => tracing::debug!(%error, "cannot ask for the lease"),
            }
            tokio::time::sleep(if self.held() { RENEW } else { ASK }).await;
        }
    }

    /// The fencing token, while the lease is surely held.
    pub fn fencing(&self) -> Option<u64> {
        let held = *self.held.lock().unwrap_or_else(PoisonError::into_inner);
        held.filter(|h| Instant::now() < h.until).map(|h| h.fencing)
    }

    /// Whether it is surely held.
    pub fn held(&self) -> bool {
        self.fencing().is_some()
    }

    /// Forgets it: the server said that it is another's.
    pub fn lost(&self) {
        self.set(None);
    }

    fn set(&self, held: Option<Held>) {
        *self.held.lock().unwrap_or_else(PoisonError::into_inner) = held;
    }
}
