//! The words and rules of Claviger.
//!
//! Nothing here does I/O, reads a clock or waits: time, observations and the last durable
//! commit are arguments, decisions are return values. The types that agent and server both
//! hold (the cluster's state, ring and operation) derive serde here, because a mirrored copy
//! in another crate would be a second truth; see `docs/decisions/0003-state-is-the-contract.md`.

pub mod access;
pub mod audit;
pub mod cluster;
pub mod features;
pub mod id;
pub mod key;
pub mod life;
pub mod policy;
