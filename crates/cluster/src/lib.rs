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
//! | [`endpoint`] | which of the server's URLs is used |
//! | [`identity`] | key pair and certificate: join, renew |
//! | [`sync`] | the server's state, and what the server is told |
//! | [`ring`] | the opened KEKs |
//! | [`fence`] | no process with keys or plaintext while a root key is suspended |
//! | [`silence`] | the proof that no API server answers any more |
//! | [`take_up`] | which file the API server has, and how it takes it up |
//! | `peers` | which API servers share its etcd |
//! | `preflight` | what could make an operation fail, looked for beforehand |
//! | [`files`] | plaintext in etcd's files on this machine |
//! | [`observe`] | what the API server does |
//! | [`hand_over`] | the open ring on its way to a successor |
//! | [`desk`] | what the operator's commands on the node ask a running agent |
//! | `down` | whether an API server that is not ready is worth a word |
//! | [`drive`] | the pace of the one task that acts on the node |
//! | [`driver`] | what it does at each look |
//! | [`control`] | the loop of the agent that holds the lease |
//! | [`scrub`] | clears plaintext out of etcd's log and database file |

mod acknowledgements;
pub mod check;
pub mod config;
pub mod contact;
pub mod control;
pub mod desk;
mod down;
pub mod drive;
pub mod driver;
pub mod encryption;
pub mod endpoint;
pub mod fence;
mod file;
pub mod files;
mod foreign;
pub mod hand_over;
pub mod identity;
pub mod keys;
pub mod local;
pub mod node;
pub mod observe;
mod peers;
mod preflight;
pub mod ring;
pub mod run;
pub mod scrub;
pub mod service_keys;
pub mod silence;
pub mod sync;
pub mod take_up;
mod truth;
