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
/// How long it is not asked for after it was given up for another agent: until it has ended at the
/// server, and that agent has asked for it some times.
const AWAY: Duration = Duration::from_secs(30);

#[derive(Debug, Clone, Copy)]
struct Held {
    fencing: u64,
    until: Instant,
}

/// A handle on the lease; clones see the same.
#[derive(Debug, Clone, Default)]
pub struct Lease {
    held: Arc<Mutex<Option<Held>>>,
    away: Arc<Mutex<Option<Instant>>>,
}

impl Lease {
    /// Asks for the lease and renews it. Never returns.
    pub async fn keep(self, node: Arc<Node>) {
        loop {
            if let Some(left) = self.away() {
                tokio::time::sleep(left).await;
            }
            let asked = Instant::now();
            let request = LeaseRequest { fencing: self.fencing() };
            match node.clients().api.lease(&request).await {
                // Given up while the answer was under way.
                Ok(Some(_)) if self.away().is_some() => self.set(None),
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

    /// Gives it up, so that another agent gets it: it ends at the server by itself.
    pub fn give_way(&self) {
        *self.away.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now() + AWAY);
        self.set(None);
    }

    /// How long it is still left to others.
    fn away(&self) -> Option<Duration> {
        let until = *self.away.lock().unwrap_or_else(PoisonError::into_inner);
        until?.checked_duration_since(Instant::now()).filter(|left| !left.is_zero())
    }

    fn set(&self, held: Option<Held>) {
        *self.held.lock().unwrap_or_else(PoisonError::into_inner) = held;
    }
}
