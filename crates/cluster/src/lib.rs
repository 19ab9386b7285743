//! The agent of one control-plane node, and the loop that one agent of a cluster runs.
//!
//! An agent speaks for one kube-apiserver: it answers KMS v2 for it, writes its
//! EncryptionConfiguration, restarts it, fences it, and reports what it sees. It never touches a
//! root key: it asks the key service to unwrap, and holds what comes out in locked memory.
//!
//! | module | what it does |
//! |---|---|
//! | [`config`] | the agent's file of settings |
//! | [`encryption`] | the bytes of an EncryptionConfiguration, and back |
//! | [`contact`] | how long the server has been away, across reboots and clock jumps |
//! | [`control`] | the loop of the agent that holds the lease |
//! | [`scrub`] | clears plaintext out of etcd's log and database file |

pub mod config;
pub mod contact;
pub mod control;
pub mod encryption;
mod file;
pub mod scrub;
