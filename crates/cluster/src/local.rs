//! The clients of this node's API server and of etcd. Their certificates are files that other tools
//! renew in place, so the clients are made anew when a file changes.

use crate::config::AgentConfig;
use crate::control::kube::{Kube, KubeConfig, KubeError};
use crate::run::with_causes;
use claviger_etcd::{Etcd, EtcdConfig, EtcdError};
use std::sync::{Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant, SystemTime};
use thiserror::Error;

/// How often to look at the files. A renewal comes days before the end.
const LOOK: Duration = Duration::from_secs(60);

/// A client cannot be made of the files that are there.
#[derive(Debug, Error)]
pub enum LocalError {
    /// That of the API server.
    #[error(transparent)]
    Kube(#[from] KubeError),
    /// That of etcd.
    #[error(transparent)]
    Etcd(#[from] EtcdError),
}

/// Both clients, as the files were when they were made.
#[derive(Debug)]
pub struct Local {
    clients: RwLock<(Kube, Etcd)>,
    renewal: Mutex<Renewal>,
}

#[derive(Debug)]
struct Renewal {
    made_of: [Stamp; 6],
    looked: Instant,
    said: Option<String>,
}

impl Local {
    /// Makes both. Call within a runtime.
    pub fn new(config: &AgentConfig) -> Result<Self, LocalError> {
        // First, so that no change falls in between.
        let made_of = stamps(config);
        let clients = RwLock::new(clients(config)?);
        let renewal = Mutex::new(Renewal { made_of, looked: Instant::now(), said: None });
        Ok(Self { clients, renewal })
    }

    /// The API server, as of now; do not keep it for longer than a piece of work.
    pub fn kube(&self) -> Kube {
        self.clients.read().unwrap_or_else(PoisonError::into_inner).0.clone()
    }

    /// etcd, the same.
    pub fn etcd(&self) -> Etcd {
        self.clients.read().unwrap_or_else(PoisonError::into_inner).1.clone()
    }

    /// Makes the clients anew if a file has changed, once a minute. What cannot be used (half of a
    /// renewal, perhaps) leaves the former ones in place, and is tried again.
    pub(crate) fn renew(&self, config: &AgentConfig, now: Instant) {
        let mut renewal = self.renewal.lock().unwrap_or_else(PoisonError::into_inner);
        if now.saturating_duration_since(renewal.looked) < LOOK {
            return;
        }
        renewal.looked = now;
        let found = stamps(config);
        if found == renewal.made_of {
            return;
        }
        match clients(config) {
            Ok(new) => {
                *self.clients.write().unwrap_or_else(PoisonError::into_inner) = new;
                (renewal.made_of, renewal.said) = (found, None);
                tracing::info!("took up changed certificates for the API server and etcd");
            }
            Err(error) => {
                let why = with_causes(&error);
                if renewal.said.as_ref() != Some(&why) {
                    tracing::warn!(%why, "changed certificates for the API server and etcd cannot be used");
                    renewal.said = Some(why);
                }
            }
        }
    }
}

fn clients(config: &AgentConfig) -> Result<(Kube, Etcd), LocalError> {
    let kube = Kube::new(&KubeConfig {
        url: config.kube.url.clone(),
        ca: config.kube.ca.clone(),
        cert: config.kube.cert.clone(),
        key: config.kube.key.clone(),
    })?;
    let etcd = Etcd::prepare(&EtcdConfig {
        endpoints: config.etcd.endpoints.clone(),
        ca: Some(config.etcd.ca.clone()),
        cert: Some(config.etcd.cert.clone()),
        key: Some(config.etcd.key.clone()),
        timeout: EtcdConfig::TIMEOUT,
    })?;
    Ok((kube, etcd))
}

/// What a file was like.
type Stamp = Option<(SystemTime, u64, u64)>;

fn stamps(config: &AgentConfig) -> [Stamp; 6] {
    use std::os::unix::fs::MetadataExt as _;
    let (kube, etcd) = (&config.kube, &config.etcd);
    let paths = [&kube.ca, &kube.cert, &kube.key, &etcd.ca, &etcd.cert, &etcd.key];
    paths.map(|path| {
        let found = std::fs::metadata(path).ok()?;
        Some((found.modified().ok()?, found.len(), found.ino()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::tests::config;
    use std::path::Path;

    fn write(dir: &Path, pair: &rcgen::CertifiedKey<rcgen::KeyPair>) {
        std::fs::write(dir.join("ca.pem"), pair.cert.pem() + &pair.signing_key.serialize_pem())
            .unwrap();
    }

    #[tokio::test]
    async fn renewed_files_are_taken_up_and_half_of_a_renewal_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let pair = || rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
        write(dir.path(), &pair());
        let config = config(dir.path());
        let local = Local::new(&config).unwrap();
        let renewal = || local.renewal.lock().unwrap();
        let (start, first) = (Instant::now(), renewal().made_of);
        let after = |minutes: u32| start + LOOK * minutes + Duration::from_secs(1);
        local.renew(&config, after(1));
        assert_eq!(renewal().made_of, first, "nothing has changed");
        std::fs::write(dir.path().join("ca.pem"), "half").unwrap();
        local.renew(&config, after(2));
        assert!(renewal().made_of == first && renewal().said.is_some(), "the former ones stay");
        write(dir.path(), &pair());
        local.renew(&config, after(2));
        assert!(renewal().said.is_some(), "once a minute");
        local.renew(&config, after(3));
        assert!(renewal().made_of == stamps(&config) && renewal().said.is_none());
    }
}
