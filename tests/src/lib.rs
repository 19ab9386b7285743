//! Whole-system tests: real API servers and etcd, started as a user would start them, and the
//! demo, which walks the same way more slowly.
//!
//! Nothing here is a fake, and Claviger is driven by its own command line.

pub mod conformance;
pub mod kube;
pub mod lab;
pub mod load;
pub mod raw;
pub mod schemathesis;
pub mod torture;
pub mod traffic;

/// What goes wrong here ends a test or the demo; one text for the person who reads it.
pub type Outcome<T> = Result<T, String>;
