//! A whole cluster on loopback: etcd with TLS, kube-apiservers with certificates and RBAC, the
//! key server and the agents, in a directory of its own.
//!
//! Every program is a unit ([`claviger_supervise::unit`]), so nothing is lost when the keeper is
//! killed, and an agent's hold on its API server is honoured. This crate never touches keys; it
//! must not be used for a cluster that matters.

pub mod binaries;
pub mod down;
pub mod environment;
mod error;
mod files;
pub mod keep;
pub mod layout;
mod parts;
mod people;
mod pki;
pub mod probe;
pub mod registration;
mod spec;
pub mod status;
pub mod up;

pub use error::DevError;
pub use parts::{Dev, Part};
pub use spec::{Options, Ports, Spec};
