//! `claviger ks`: clusters and their encryption, with the verbs that operators of IBM Cloud
//! Kubernetes Service know.

use crate::connect::Connection;
use crate::exit::{self, Done, Failure};
use crate::render::{Look, attended, confirm};
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
    /// Make yourself the owner, for all clusters of a region
    ///
    /// Whoever enables a cluster with a root key must be able to unwrap with that key himself, or
    /// the owner must. Nothing else is done with his rights: what talks to the key service is
    /// always the cluster itself.
    Reset(Reset),
}

#[derive(clap::Args)]
struct Reset {
    /// The region; `local` unless the server says otherwise
    #[arg(long, value_name = "REGION")]
    region: String,
    /// Do not ask
    #[arg(short = 'f', long)]
    yes: bool,
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
    if let Noun::Kms(kms::Verb::Guard(args)) = noun {
        return connection
            .with_api_key(guard::api_key()?, async |link| guard::run(args, link).await);
    }
    connection.block_on(async |link| match noun {
        Noun::Cluster(verb) => cluster::run(verb, look, link).await,
        Noun::Kms(verb) => kms::run(verb, look, link).await,
        Noun::ApiKey(ApiKey::Info(which)) => cluster::owner(&which, look, link).await,
        Noun::ApiKey(ApiKey::Reset(reset)) => {
            let question = format!(
                "Your rights will count when clusters in {} are enabled, instead of those of the \
                 owner now. Reset?",
                reset.region
            );
            if !reset.yes && attended() && !confirm(&question) {
                return Err(Failure::new(exit::NO, "not confirmed; nothing was changed", ""));
            }
            look.doing(&format!("Resetting the API key of region {}", reset.region));
            link.clusters.reset_api_key(&reset.region).await?;
            look.ok();
            let now = serde_json::json!({ "region": reset.region });
            look.answer(&now, || vec!["You are the owner of the API key now.".to_owned()]);
            Ok(())
        }
    })
}
