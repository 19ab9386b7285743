//! The key service, IAM and the cluster service over HTTPS.
//!
//! [`app::App`] is what all requests share, [`http::router`] the paths, [`listen::serve`] the
//! accept loop. The server never connects into a cluster.

pub mod app;
pub mod audit;
pub mod authority;
pub mod backup;
pub mod clusters;
pub mod files;
pub mod first;
pub mod http;
pub mod iam;
pub mod keys;
pub mod listen;
mod metrics;
pub mod place;
mod pulse;
mod rate;
pub mod record;
mod refusals;
mod repeat;
pub mod resources;
pub mod room;
pub mod status;
pub mod sure;
mod throttle;
pub mod tls;
mod traced;
pub mod unlock;

#[cfg(test)]
mod testing;
