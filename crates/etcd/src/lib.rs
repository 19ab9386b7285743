//! etcd, seen from outside Kubernetes: its API, its files, and what kube-apiserver stores in it.
//!
//! [`client`] calls etcd over gRPC, [`bolt`] reads a database file without it, [`record`] knows
//! what a stored value is, [`census`] counts records by the key that opens them and [`residue`]
//! finds plaintext that is left in etcd's files. Nothing here holds a root key, asks the key
//! service, or believes what a record says of itself where it can be checked.

pub mod bolt;
pub mod census;
pub mod client;
pub mod record;
pub mod residue;
pub mod resource;

pub use client::{Etcd, EtcdConfig, EtcdError};

/// etcd's messages, compiled from `proto/`.
#[allow(missing_docs, clippy::all, clippy::pedantic)]
pub mod pb {
    /// What etcd stores for a key.
    pub mod mvccpb {
        tonic::include_proto!("mvccpb");
    }
    /// Calls and their messages.
    pub mod etcdserverpb {
        tonic::include_proto!("etcdserverpb");
    }
}
