//! The HTTP contracts: paths, headers, bodies and error bodies, for both ends.
//!
//! [`kp`] is Key Protect v2, [`iam`] the token endpoint, [`ks`] the cluster service as IBM's
//! clients know it and our own additions under `/v3`, [`agent`] what a node agent and the server
//! say to each other, [`rc`] instances and their groups, [`access`] policies and access groups,
//! [`audit`] what is on record. Only shapes live here, no transport and no rules.

pub mod access;
pub mod agent;
pub mod audit;
pub mod iam;
pub mod kp;
pub mod ks;
pub mod rc;
