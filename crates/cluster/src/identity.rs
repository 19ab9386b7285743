//! Who this agent is to the server: a key pair that never leaves the node, and a certificate for
//! it that lives 30 days and is renewed from its tenth day on. A node that was off for longer
//! joins again, under its old name and with a new token; its ring and its fence stay.

use crate::config::AgentConfig;
use crate::contact::wall;
use crate::file::{self, FileError};
use crate::node::{Clients, Node};
use crate::ring::jitter;
use claviger_client::{AgentApi, Error as ClientError, KeyService, NodeConfig};
use claviger_crypto::SecretBytes;
use claviger_domain::id::ClusterId;
use claviger_wire::agent::{Certificate, JoinRequest, RenewRequest};
use rcgen::{CertificateParams, KeyPair};
use std::sync::Arc;
use std::time::Duration;
use thiserror::Error;
use zeroize::Zeroize as _;

const KEY: &str = "node.key";
const CERTIFICATE: &str = "node.json";
/// A certificate is renewed when no more than this is left of its 30 days.
const RENEW_WHEN_LEFT_MS: i64 = 20 * 24 * 3600 * 1000;
/// Pause between two looks at the certificate's age.
const LOOK: Duration = Duration::from_secs(3600);
/// First and longest pause while the server does not answer a join.
const PAUSE: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(15));

/// Why the agent has no identity. The operator's to mend, except where it says otherwise.
#[derive(Debug, Error)]
pub enum IdentityError {
    /// A file of the state directory.
    #[error(transparent)]
    File(#[from] FileError),
    /// Neither a certificate nor a token to get one.
    #[error(
        "this agent has no valid certificate and no join token: put the token that `claviger ks cluster join-token` prints into the file that join_token_file names"
    )]
    NoToken,
    /// The server does not let it in.
    #[error(
        "the server does not let this agent join; get a new token with `claviger ks cluster join-token`, since one works once and for an hour"
    )]
    Refused(#[source] ClientError),
    /// The certificate does not fit its key.
    #[error(
        "the agent's certificate cannot be used; remove {CERTIFICATE} and {KEY} from its state directory and join again"
    )]
    Unusable(#[source] ClientError),
    /// The key pair cannot be made or read.
    #[error("the agent's key pair cannot be used")]
    Key(#[from] rcgen::Error),
}

/// A node's identity.
pub struct Identity {
    key: KeyPair,
    certificate: Certificate,
}

impl Identity {
    /// What the last run left, or a new one by the one-time token. Waits for the server.
    pub async fn obtain(config: &AgentConfig, ca: &str) -> Result<Self, IdentityError> {
        let key = key_pair(config)?;
        if let Some(certificate) = file::read_json::<Certificate>(&config.state(CERTIFICATE))? {
            if certificate.not_after > wall() {
                return Ok(Self { key, certificate });
            }
            tracing::warn!("the agent's certificate has expired; it joins again");
        }
        let token = match &config.join_token_file {
            Some(path) => file::read(path)?,
            None => None,
        };
        let token = token.ok_or(IdentityError::NoToken)?;
        let token = String::from_utf8_lossy(&token).trim().to_owned();
        let csr = request(&key)?;
        let mut pause = PAUSE.0;
        let certificate = loop {
            let request =
                JoinRequest { token: token.clone(), agent: config.name.clone(), csr: csr.clone() };
            match AgentApi::join(&config.server, ca, &request).await {
                Ok(certificate) => break certificate,
                Err(error) if error.is_unreachable() => {
                    tracing::warn!(%error, "cannot join yet");
                    tokio::time::sleep(jitter(pause)).await;
                    pause = (pause * 2).min(PAUSE.1);
                }
                Err(error) => return Err(IdentityError::Refused(error)),
            }
        };
        file::write_json(&config.state(CERTIFICATE), &certificate)?;
        tracing::info!(cluster = %certificate.cluster, "joined");
        Ok(Self { key, certificate })
    }

    /// The cluster that the certificate names.
    pub fn cluster(&self) -> &ClusterId {
        &self.certificate.cluster
    }

    /// Clients of the server at `url` with this identity.
    pub fn clients(&self, url: &str, ca: &str) -> Result<Clients, IdentityError> {
        let config = || NodeConfig {
            url: url.to_owned(),
            ca: ca.to_owned(),
            certificate: self.certificate.certificate.clone(),
            key: SecretBytes::new(self.key.serialize_pem().into_bytes()),
        };
        Ok(Clients {
            api: AgentApi::connect(&config()).map_err(IdentityError::Unusable)?,
            keys: KeyService::for_node(&config()).map_err(IdentityError::Unusable)?,
        })
    }

    /// Renews the certificate whenever it is due. Never returns.
    pub async fn keep(mut self, node: Arc<Node>, ca: String) {
        loop {
            let left = self.certificate.not_after.0 - wall().0;
            if left < RENEW_WHEN_LEFT_MS {
                match self.renew(&node, &ca).await {
                    Ok(()) => tracing::info!("renewed the agent's certificate"),
                    Err(error) => {
                        let days = left / (24 * 3600 * 1000);
                        tracing::warn!(%error, days, "cannot renew the agent's certificate yet");
                    }
                }
            }
            tokio::time::sleep(jitter(LOOK)).await;
        }
    }

    async fn renew(&mut self, node: &Node, ca: &str) -> Result<(), IdentityError> {
        let request = RenewRequest { csr: request(&self.key)? };
        let api = node.clients().api.clone();
        self.certificate = api.renew(&request).await.map_err(IdentityError::Refused)?;
        file::write_json(&node.config.state(CERTIFICATE), &self.certificate)?;
        node.set_clients(self.clients(&node.config.server, ca)?);
        Ok(())
    }
}

/// The key pair of the last run, or a new one (ECDSA P-256), durable before it is used.
fn key_pair(config: &AgentConfig) -> Result<KeyPair, IdentityError> {
    let path = config.state(KEY);
    if let Some(mut pem) = file::read(&path)? {
        let key = KeyPair::from_pem(&String::from_utf8_lossy(&pem));
        pem.zeroize();
        return Ok(key?);
    }
    let key = KeyPair::generate()?;
    let mut pem = key.serialize_pem();
    let written = file::write(&path, pem.as_bytes());
    pem.zeroize();
    written?;
    Ok(key)
}

fn request(key: &KeyPair) -> Result<String, IdentityError> {
    Ok(CertificateParams::default().serialize_request(key)?.pem()?)
}
