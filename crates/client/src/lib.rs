//! The server seen from outside: tokens, deadlines, retries.
//!
//! [`KeyService`] is Key Protect v2, [`ClusterService`] what operators ask of clusters, [`Access`]
//! who may do what, [`AgentApi`] what a node agent and the server say to each other; an [`Operator`]
//! has all but the last by one login. All go over TLS 1.3 to a server whose certificate one given CA
//! has signed, and to no other; proxies and the system's own trust are not looked at. Only who logs
//! in asks his issuer as well ([`People`]).
//!
//! What an [`Error`] is decides whether a cluster is fenced: see [`UnwrapOutcome`].

mod access;
mod admin;
mod agent;
mod clusters;
mod config;
mod error;
mod http;
mod keys;
mod login;
mod operator;
mod token;
mod trace;

pub use access::Access;
pub use admin::{Admin, WantedEvents};
pub use agent::{AgentApi, NudgeStream};
pub use clusters::ClusterService;
pub use config::{Config, NodeConfig, Proof};
pub use error::Error;
pub use keys::{KeyService, UnwrapOutcome, Unwrapped, WrappedDek};
pub use login::{LoggedIn, Pending, People, exchange};
pub use operator::Operator;
pub use trace::continue_trace;
