//! The loop that carries a cluster through enable, rotate and switch. It runs in the one agent
//! of a cluster that holds the lease.

pub mod kube;
