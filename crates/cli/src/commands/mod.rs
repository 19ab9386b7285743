//! One file for each noun.

pub mod agent;
pub mod audit;
pub mod census;
pub mod completions;
pub mod dev;
pub mod iam;
pub mod instance;
pub mod key;
pub mod ks;
pub mod login;
pub mod man;
pub mod server;
