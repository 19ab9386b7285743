//! `claviger ks`: clusters and their encryption, with the verbs that operators of IBM Cloud
//! Kubernetes Service know.

use crate::connect::Connection;
use crate::exit::Done;
use crate::render::Look;
use clap::Subcommand;

mod cluster;
mod follow;
mod guard;
mod kms;
pub use kms::run_job;
mod release;
mod verify;
mod view;

/// Arguments of `claviger ks`.
#[derive(clap::Args)]
pub struct Args {
    #[command(subcommand)]
    noun: Noun,
    #[command(flatten)]
    look: Look,
    #[command(flatten)]
    connection: Connection,
}

#[derive(Subcommand)]
enum Noun {
    /// Clusters: list, look at, register, get a kubeconfig
    #[command(subcommand)]
    Cluster(cluster::Verb),
    /// Encryption of a cluster: enable, follow, prove
    #[command(subcommand)]
    Kms(kms::Verb),
    /// Whose credentials talk to the key service for a cluster
    #[command(subcommand, name = "api-key")]
    ApiKey(ApiKey),
}

#[derive(Subcommand)]
enum ApiKey {
    /// Show the owner
    Info(Which),
}

/// Which cluster.
#[derive(clap::Args, Clone)]
pub struct Which {
    /// Id or name of the cluster
    #[arg(short, long, env = "CLAVIGER_CLUSTER", hide_env_values = true, value_name = "CLUSTER")]
    pub cluster: String,
}

/// Runs it.
pub fn run(args: Args) -> Done {
    let Args { noun, look, connection } = args;
    connection.block_on(async |link| match noun {
        Noun::Cluster(verb) => cluster::run(verb, look, link).await,
        Noun::Kms(verb) => kms::run(verb, look, link).await,
        Noun::ApiKey(ApiKey::Info(which)) => cluster::owner(&which, look, link).await,
    })
}
