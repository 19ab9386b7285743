//! One file for each noun.

pub mod agent;
pub mod census;
pub mod completions;
pub mod dev;
pub mod key;
pub mod ks;
pub mod server;
