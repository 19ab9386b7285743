//! Who this agent is to the server: a key pair that never leaves the node, and a certificate for
//! it that lives 30 days and is renewed from its tenth day on. A node whose certificate counts no
//! longer goes on and coasts until it finds a new token, and joins again under its old name, or a
//! certificate that an operator carried there; its ring and its fence stay.

use crate::config::AgentConfig;
use crate::contact::{Moment, wall};
use crate::endpoint::Endpoint;
use crate::file::{self, FileError};
use crate::node::{Clients, Node};
use crate::ring::jitter;
use crate::run::with_causes;
use claviger_client::{AgentApi, Error as ClientError, KeyService, NodeConfig};
use claviger_crypto::{SecretBytes, digest};
use claviger_domain::id::{ClusterId, UnixMs};
use claviger_wire::agent::{
    Certificate, JoinRequest, ReissueRequest, RenewRequest, identity, reissue_name,
};
use rcgen::{CertificateParams, KeyPair, SanType};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::{CertificateError as Bad, RootCertStore};
use std::sync::Arc;
use std::time::{Duration, Instant};
use thiserror::Error;
use zeroize::{Zeroize as _, Zeroizing};

const KEY: &str = "node.key";
const CERTIFICATE: &str = "node.json";
/// A certificate that an operator put there, until the agent takes it up.
const INSTALLED: &str = "node-installed.json";
/// A certificate is renewed when no more than this is left of its 30 days.
const RENEW_WHEN_LEFT_MS: i64 = 20 * 24 * 3600 * 1000;
/// Pause between two tries to renew it.
const LOOK: Duration = Duration::from_secs(3600);
/// Pause between two looks for a new certificate or token on disk.
const TICK: Duration = Duration::from_secs(2);
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
    /// It cannot ask by file.
    #[error("this agent never joined, so it has nothing to show; let it join with a token")]
    NeverJoined,
    /// What an operator carried here.
    #[error("this is no certificate for this node: {0}")]
    NotOurs(String),
    /// The token was one of another cluster.
    #[error("the certificate is one of cluster {0}, this node belongs to {1}")]
    OtherCluster(ClusterId, ClusterId),
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
    /// What the last run left or an operator installed, or a new one by the one-time token; for
    /// that it waits for the server. A certificate that has expired is enough to go on with: the
    /// node coasts, and [`keep`](Self::keep) looks for another.
    pub async fn obtain(config: &AgentConfig, ca: &str) -> Result<Self, IdentityError> {
        let key = key_pair(config)?;
        if let Some(certificate) = file::read_json::<Certificate>(&config.state(CERTIFICATE))? {
            return Ok(Self { key, certificate });
        }
        let token = token(config)?.ok_or(IdentityError::NoToken)?;
        let csr = request(&key, None)?;
        let mut pause = PAUSE.0;
        let certificate = loop {
            match join(config, &config.server, ca, &token, &csr, None).await {
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
            url: url.to_owned(),
            api: AgentApi::connect(&config()).map_err(IdentityError::Unusable)?,
            keys: KeyService::for_node(&config()).map_err(IdentityError::Unusable)?,
        })
    }

    /// Keeps a certificate that counts: takes up one that was installed, joins anew with a fresh
    /// token where the old one counts no longer, renews it when it is due. Never returns.
    pub async fn keep(mut self, node: Arc<Node>, ca: String) {
        let mut tried = None;
        let mut said = None;
        let mut renewed: Option<Instant> = None;
        let mut endpoint = Endpoint::default();
        loop {
            self.install(&node, &ca);
            self.follow(&node, &ca, &mut endpoint).await;
            let left = self.certificate.not_after.0 - wall().0;
            let counts = left > 0 && !node.refused();
            if counts {
                (tried, said) = (None, None);
                if left < RENEW_WHEN_LEFT_MS && renewed.is_none_or(|at| at.elapsed() > LOOK) {
                    renewed = Some(Instant::now());
                    match self.renew(&node, &ca).await {
                        Ok(()) => tracing::info!("renewed the agent's certificate"),
                        Err(error) => {
                            let days = left / (24 * 3600 * 1000);
                            tracing::warn!(%error, days, "cannot renew the agent's certificate yet");
                        }
                    }
                }
            } else {
                let why = if left > 0 { "counts no longer" } else { "has expired" };
                if said.replace(why) != Some(why) {
                    tracing::error!(
                        "the agent's certificate {why}, so the server does not hear it; put a new token of `claviger ks cluster join-token` into the file that join_token_file names, or take a certificate by file (`claviger agent request-certificate`)"
                    );
                }
                self.rejoin(&node, &ca, &mut tried).await;
            }
            tokio::time::sleep(jitter(TICK)).await;
        }
    }

    /// Takes up a certificate that an operator installed, if there is one and it is good.
    fn install(&mut self, node: &Node, ca: &str) {
        let path = node.config.state(INSTALLED);
        let found = match file::read_json::<Certificate>(&path) {
            Ok(None) => return,
            Ok(Some(found)) => self
                .fits(&found, &node.config, ca)
                .and_then(|()| self.take(found, node, ca).map_err(|e| e.to_string())),
            Err(error) => Err(error.to_string()),
        };
        match found {
            Ok(()) => tracing::info!("took up the certificate that was installed"),
            Err(why) => tracing::error!(%why, "the certificate that was installed is not taken"),
        }
        if let Err(error) = file::remove(&path) {
            tracing::warn!(%error, "an installed certificate stays where it was put");
        }
    }

    /// Goes to the URL that the server names, or back to that of the settings, if it answers
    /// this node there.
    async fn follow(&self, node: &Node, ca: &str, endpoint: &mut Endpoint) {
        let (using, named) = (node.clients().url.clone(), node.named_url());
        let silent = node.contact().map_or(0, |mark| mark.elapsed_ms(&Moment::now()));
        let silent = Duration::from_millis(silent);
        let settings = &node.config.server;
        let next = endpoint.next(&using, named.as_deref(), settings, silent, Instant::now());
        let Some(url) = next else { return };
        match self.answers(&url, node, ca).await {
            Ok(clients) => {
                tracing::info!(from = using, to = url, "uses another URL of the server");
                endpoint.moved(&using, silent, Instant::now());
                node.set_clients(clients);
            }
            Err(why) => {
                if endpoint.failed(&url, silent, Instant::now()) {
                    tracing::warn!(url, using, %why, "the server does not answer by this URL; this agent stays with the one it has");
                }
            }
        }
    }

    /// Clients of `url`, if the server answers there and knows this node.
    async fn answers(&self, url: &str, node: &Node, ca: &str) -> Result<Clients, String> {
        let clients = self.clients(url, ca).map_err(|e| with_causes(&e))?;
        let state = clients.api.state().await.map_err(|e| e.to_string())?;
        if state.cluster.id != node.cluster {
            return Err(format!("it speaks of cluster {}", state.cluster.id));
        }
        node.took(state).map_err(|e| with_causes(&e))?;
        Ok(clients)
    }

    /// Joins with a token that was not tried yet.
    async fn rejoin(&mut self, node: &Node, ca: &str, tried: &mut Option<[u8; 32]>) {
        let Ok(Some(token)) = token(&node.config) else { return };
        let tag = digest::sha256(token.as_bytes());
        if *tried == Some(tag) {
            return;
        }
        let Ok(csr) = request(&self.key, None) else { return };
        let of = Some(node.cluster.clone());
        match join(&node.config, &node.clients().url, ca, &token, &csr, of).await {
            Err(error) if error.is_unreachable() => return,
            Err(error) => tracing::error!(%error, "the server does not let this agent join again"),
            Ok(certificate) => match self.take(certificate, node, ca) {
                Ok(()) => tracing::info!("joined again"),
                Err(error) => tracing::error!(%error, "what the join gave cannot be used"),
            },
        }
        *tried = Some(tag);
    }

    async fn renew(&mut self, node: &Node, ca: &str) -> Result<(), IdentityError> {
        let request = RenewRequest { csr: request(&self.key, None)? };
        let api = node.clients().api.clone();
        let certificate = api.renew(&request).await.map_err(IdentityError::Refused)?;
        self.take(certificate, node, ca)
    }

    /// Uses another certificate from now on.
    fn take(
        &mut self,
        certificate: Certificate,
        node: &Node,
        ca: &str,
    ) -> Result<(), IdentityError> {
        // A process speaks for one cluster from its start to its end.
        if certificate.cluster != node.cluster {
            return Err(IdentityError::OtherCluster(certificate.cluster, node.cluster.clone()));
        }
        file::write_json(&node.config.state(CERTIFICATE), &certificate)?;
        self.certificate = certificate;
        node.set_clients(self.clients(&node.clients().url, ca)?);
        Ok(())
    }

    /// Whether this is a certificate for this node's key, of this cluster, signed by the server,
    /// and good now.
    fn fits(&self, new: &Certificate, config: &AgentConfig, ca: &str) -> Result<(), String> {
        if new.cluster != self.certificate.cluster {
            return Err(format!(
                "it is of cluster {}, this node belongs to {}",
                new.cluster, self.certificate.cluster
            ));
        }
        let der = CertificateDer::from_pem_slice(new.certificate.as_bytes())
            .map_err(|_| "it holds no certificate".to_owned())?;
        let good = |at: UnixMs| signed(&der, ca, at);
        good(wall()).map_err(|e| match e {
            Bad::Expired | Bad::ExpiredContext { .. } => {
                "it has expired; ask for another".to_owned()
            }
            Bad::NotValidYet | Bad::NotValidYetContext { .. } => {
                "it is not valid yet; set this node's clock".to_owned()
            }
            other => format!(
                "the server that this node trusts did not sign it, or it was changed ({other:?})"
            ),
        })?;
        // The date beside it must be its own, or it would not be renewed in time.
        if good(UnixMs(new.not_after.0 - 1000)).is_err() || new.not_after <= wall() {
            return Err("its date was changed".to_owned());
        }
        // What is signed holds the name as it is.
        let name = identity(&new.cluster, &config.name);
        if !der.windows(name.len()).any(|part| part == name.as_bytes()) {
            return Err(format!("it is for another node than {}", config.name));
        }
        let other = Self {
            key: copy(&self.key).map_err(|e| e.to_string())?,
            certificate: Certificate {
                cluster: new.cluster.clone(),
                certificate: new.certificate.clone(),
                ca: new.ca.clone(),
                not_after: new.not_after,
            },
        };
        other.clients(&config.server, ca).map(|_| ()).map_err(|_| {
            "it is for another key than this node's; was it asked for on this node?".to_owned()
        })
    }
}

/// Writes a request for a new certificate, for an operator to carry to the server.
pub fn write_request(config: &AgentConfig) -> Result<ReissueRequest, IdentityError> {
    let known = known(config)?;
    let name = reissue_name(&known.certificate.cluster, &config.name, wall());
    Ok(ReissueRequest {
        csr: request(&known.key, Some(&name))?,
        cluster: known.certificate.cluster,
        agent: config.name.clone(),
        certificate: known.certificate.certificate,
    })
}

/// Puts a certificate that an operator carried here in place for the agent, running or not, once
/// it is known to be good.
pub fn install(config: &AgentConfig, new: &Certificate) -> Result<(), IdentityError> {
    let ca = file::read(&config.ca)?.unwrap_or_default();
    known(config)?
        .fits(new, config, &String::from_utf8_lossy(&ca))
        .map_err(IdentityError::NotOurs)?;
    Ok(file::write_json(&config.state(INSTALLED), new)?)
}

/// Whether this node has a certificate.
pub fn joined(config: &AgentConfig) -> bool {
    config.state(CERTIFICATE).exists()
}

/// Why the node's key cannot be read, if there is one that cannot.
pub(crate) fn key_trouble(config: &AgentConfig) -> Option<String> {
    let pem = file::read_private(&config.state(KEY)).map(|pem| pem.map(Zeroizing::new));
    pem.err().map(|error| with_causes(&error))
}

/// Whether the agent has taken up what was installed.
pub fn is_taken_up(config: &AgentConfig) -> bool {
    !config.state(INSTALLED).exists()
}

/// The identity of an agent that joined once.
fn known(config: &AgentConfig) -> Result<Identity, IdentityError> {
    let certificate = file::read_json::<Certificate>(&config.state(CERTIFICATE))?;
    let certificate = certificate.ok_or(IdentityError::NeverJoined)?;
    let pem = file::read_private(&config.state(KEY))?.ok_or(IdentityError::NeverJoined)?;
    Ok(Identity { key: read_key(pem)?, certificate })
}

/// Whether one of the CAs of `ca` signed this certificate for a client, and it is good at `at`.
fn signed(der: &CertificateDer<'_>, ca: &str, at: UnixMs) -> Result<(), Bad> {
    let mut roots = RootCertStore::empty();
    for root in CertificateDer::pem_slice_iter(ca.as_bytes()).flatten() {
        let _ = roots.add(root);
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build();
    let at = Duration::from_millis(u64::try_from(at.0).unwrap_or(0));
    match verifier.map(|v| v.verify_client_cert(der, &[], UnixTime::since_unix_epoch(at))) {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(rustls::Error::InvalidCertificate(bad))) => Err(bad),
        _ => Err(Bad::UnknownIssuer),
    }
}

/// The one-time token, if the settings name a file and it is there.
fn token(config: &AgentConfig) -> Result<Option<String>, FileError> {
    let Some(path) = &config.join_token_file else { return Ok(None) };
    let token = file::read(path)?;
    Ok(token.map(|t| String::from_utf8_lossy(&t).trim().to_owned()).filter(|t| !t.is_empty()))
}

async fn join(
    config: &AgentConfig,
    url: &str,
    ca: &str,
    token: &str,
    csr: &str,
    cluster: Option<ClusterId>,
) -> Result<Certificate, ClientError> {
    let (token, agent, csr) = (token.to_owned(), config.name.clone(), csr.to_owned());
    AgentApi::join(url, ca, &JoinRequest { token, agent, csr, cluster }).await
}

/// The key pair of the last run, or a new one (ECDSA P-256), durable before it is used.
fn key_pair(config: &AgentConfig) -> Result<KeyPair, IdentityError> {
    let path = config.state(KEY);
    if let Some(pem) = file::read_private(&path)? {
        return Ok(read_key(pem)?);
    }
    let key = KeyPair::generate()?;
    let mut pem = key.serialize_pem();
    let written = file::write(&path, pem.as_bytes());
    pem.zeroize();
    written?;
    Ok(key)
}

fn read_key(mut pem: Vec<u8>) -> Result<KeyPair, rcgen::Error> {
    let key = KeyPair::from_pem(&String::from_utf8_lossy(&pem));
    pem.zeroize();
    key
}

fn copy(key: &KeyPair) -> Result<KeyPair, rcgen::Error> {
    read_key(key.serialize_pem().into_bytes())
}

fn request(key: &KeyPair, uri: Option<&str>) -> Result<String, IdentityError> {
    let mut params = CertificateParams::default();
    if let Some(uri) = uri {
        params.subject_alt_names = vec![SanType::URI(uri.try_into()?)];
    }
    Ok(params.serialize_request(key)?.pem()?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rcgen::{BasicConstraints, ExtendedKeyUsagePurpose, IsCa, Issuer};
    use std::path::Path;

    const DAY: i64 = 86_400_000;

    struct Ca(Issuer<'static, KeyPair>, String);

    fn ca() -> Ca {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        let pem = params.self_signed(&key).unwrap().pem();
        Ca(Issuer::new(params, key), pem)
    }

    impl Ca {
        /// A certificate as the server makes one, good from a day before `end` less 30 days.
        fn issue(&self, cluster: &ClusterId, agent: &str, key: &KeyPair, end: i64) -> Certificate {
            let mut params = CertificateParams::default();
            let name = identity(cluster, &agent.parse().unwrap());
            params.subject_alt_names = vec![SanType::URI(name.as_str().try_into().unwrap())];
            params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
            let at = |ms: i64| {
                rcgen::date_time_ymd(1970, 1, 1) + Duration::from_millis(ms.unsigned_abs())
            };
            (params.not_before, params.not_after) = (at(end - 31 * DAY), at(end));
            Certificate {
                cluster: cluster.clone(),
                certificate: params.signed_by(key, &self.0).unwrap().pem(),
                ca: self.1.clone(),
                not_after: UnixMs(end),
            }
        }
    }

    fn config(home: &Path) -> AgentConfig {
        let mut config = AgentConfig::parse(include_str!("../agent.sample.toml")).unwrap();
        config.state_dir = home.to_owned();
        config.ca = home.join("ca.pem");
        config.name = "n1".parse().unwrap();
        config
    }

    #[test]
    fn only_a_certificate_of_this_node_is_installed() {
        let dir = tempfile::tempdir().unwrap();
        let config = config(dir.path());
        let (ca, other_ca, cluster) = (ca(), ca(), ClusterId::random());
        std::fs::write(&config.ca, &ca.1).unwrap();
        let now = wall().0 / 1000 * 1000;
        let new = |agent: &str, key: &KeyPair, end| ca.issue(&cluster, agent, key, end);
        let stranger = KeyPair::generate().unwrap();
        let early = install(&config, &new("n1", &stranger, now + 30 * DAY));
        assert!(matches!(early, Err(IdentityError::NeverJoined)));

        let key = key_pair(&config).unwrap();
        let expired = new("n1", &key, now - DAY);
        file::write_json(&config.state(CERTIFICATE), &expired).unwrap();
        let good = new("n1", &key, now + 30 * DAY);
        let mut longer = new("n1", &key, now + DAY);
        longer.not_after = good.not_after;
        let cases = [
            (
                "another cluster",
                ca.issue(&ClusterId::random(), "n1", &key, now + DAY),
                "of cluster",
            ),
            ("another node", new("n2", &key, now + DAY), "another node"),
            ("another key", new("n1", &stranger, now + DAY), "another key"),
            ("expired", new("n1", &key, now - 1000), "has expired"),
            ("not valid yet", new("n1", &key, now + 40 * DAY), "clock"),
            ("another server", other_ca.issue(&cluster, "n1", &key, now + DAY), "did not sign"),
            ("its date changed", longer, "date was changed"),
        ];
        for (name, certificate, says) in cases {
            let error = install(&config, &certificate).unwrap_err().to_string();
            assert!(error.contains(says), "{name}: {error}");
            assert!(is_taken_up(&config), "{name}: nothing was put there");
        }
        install(&config, &good).unwrap();
        assert!(!is_taken_up(&config));
    }

    #[test]
    fn a_key_that_others_may_read_or_write_is_none() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let config = config(dir.path());
        key_pair(&config).unwrap();
        assert_eq!(key_trouble(&config), None);
        for mode in [0o604, 0o620, 0o777] {
            let wide = std::fs::Permissions::from_mode(mode);
            std::fs::set_permissions(config.state(KEY), wide).unwrap();
            assert!(key_pair(&config).is_err(), "{mode:o}");
            let told = key_trouble(&config).unwrap();
            assert!(told.contains("chmod 600"), "{told}");
        }
    }

    #[test]
    fn a_request_is_signed_for_this_node() {
        let dir = tempfile::tempdir().unwrap();
        let config = config(dir.path());
        let (ca, cluster) = (ca(), ClusterId::random());
        assert!(matches!(write_request(&config), Err(IdentityError::NeverJoined)));
        let key = key_pair(&config).unwrap();
        let expired = ca.issue(&cluster, "n1", &key, wall().0 - DAY);
        file::write_json(&config.state(CERTIFICATE), &expired).unwrap();
        let request = write_request(&config).unwrap();
        assert_eq!((&request.cluster, request.agent.as_str()), (&cluster, "n1"));
        assert_eq!(request.certificate, expired.certificate);
        let parsed = rcgen::CertificateSigningRequestParams::from_pem(&request.csr).unwrap();
        let names = format!("{:?}", parsed.params.subject_alt_names);
        assert!(names.contains(&format!("{}/asked/", identity(&cluster, &config.name))));
    }
}
