//! Whole-system tests: real API servers and etcd, started as a user would start them.

pub mod lab;
pub mod torture;
