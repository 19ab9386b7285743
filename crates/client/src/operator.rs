//! An operator's way in.

use crate::access::Access;
use crate::admin::Admin;
use crate::clusters::ClusterService;
use crate::config::{self, Config};
use crate::error::Error;
use crate::http::Http;
use crate::keys::KeyService;
use crate::token::Session;

/// All that an operator asks a server for, by one login, one copy of what he comes in by and one set of
/// connections.
#[derive(Clone)]
pub struct Operator {
    /// Root keys.
    pub keys: KeyService,
    /// Clusters.
    pub clusters: ClusterService,
    /// Instances, and what is on record.
    pub admin: Admin,
    /// Who may do what.
    pub access: Access,
}

impl Operator {
    /// Connects and logs in with the first call. Fails if the CA's file or a URL is none.
    pub fn connect(config: &Config) -> Result<Self, Error> {
        let base = config::base(&config.url)?;
        let iam = match &config.iam_url {
            Some(url) => config::base(url)?,
            None => base.clone(),
        };
        let client = config::client(&config::read_ca(&config.ca_file)?, None)?;
        let (http, iam) = (Http { client: client.clone(), base }, Http { client, base: iam });
        let session = Session::new(http, iam, config.proof.credential());
        Ok(Self {
            keys: KeyService { session: session.clone() },
            clusters: ClusterService { session: session.clone() },
            admin: Admin { session: session.clone() },
            access: Access { session },
        })
    }
}
