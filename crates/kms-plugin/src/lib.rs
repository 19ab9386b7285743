//! KMS v2 for kube-apiserver on a Unix socket.
//!
//! [`Plugin`] holds the cluster's KEKs opened in memory and answers Status, Encrypt and Decrypt
//! from them, without a remote call. It never talks to the key service itself: a KEK that only a
//! record's annotation knows is opened by the [`resolve::Resolve`] that the agent gives.
//!
//! It must never answer Status with a `healthz` other than `ok`: kube-apiserver goes on writing
//! then (kubernetes#138950). A gRPC error stops it.

mod frame;
mod message;
pub mod resolve;
pub mod ring;
mod server;
pub mod service;
pub mod socket;

/// Messages and both ends of the service, generated from `proto/kms_v2.proto`.
#[allow(missing_docs, clippy::all)]
pub mod proto {
    tonic::include_proto!("v2");
}

pub use resolve::{Resolve, ResolveError};
pub use ring::{OpenKek, OpenRing, RingError};
pub use service::Plugin;
pub use socket::{Listener, Place, SocketError};

/// Fails unless a message is read as prost reads it. For the fuzzer alone.
#[cfg(fuzzing)]
pub fn agrees_with_prost(message: &[u8]) {
    message::agrees(message);
}
