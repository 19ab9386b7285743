//! Where the server is, whom to trust and who asks.

use crate::error::Error;
use crate::token::Credential;
use claviger_crypto::SecretBytes;
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use zeroize::Zeroize;

/// Largest CA file: some 300 certificates.
const CA_MAX: u64 = 1 << 20;
/// How long connecting may take; a call has some seconds more.
const CONNECT: Duration = Duration::from_secs(3);
/// How long an idle connection is kept.
const IDLE: Duration = Duration::from_secs(60);

/// An operator's way to the server.
pub struct Config {
    /// Base URL, `https://…`.
    pub url: String,
    /// Base URL of the token endpoint, if it is another.
    pub iam_url: Option<String>,
    /// PEM file of the CA that signed the server's certificate. No other CA counts.
    pub ca_file: PathBuf,
    /// By what the operator comes in.
    pub proof: Proof,
}

/// By what an operator comes in.
pub enum Proof {
    /// An API key.
    ApiKey(SecretBytes),
    /// The refresh token of a login.
    RefreshToken(SecretBytes),
}

impl Proof {
    pub(crate) fn credential(&self) -> Credential {
        let copy = |secret: &SecretBytes| SecretBytes::new(secret.expose().to_vec());
        match self {
            Proof::ApiKey(key) => Credential::ApiKey(copy(key)),
            Proof::RefreshToken(token) => Credential::RefreshToken(copy(token)),
        }
    }
}

/// A node agent's way to the server: its certificate is its credential.
pub struct NodeConfig {
    /// Base URL, `https://…`.
    pub url: String,
    /// PEM of the CA that signed the server's certificate. No other CA counts.
    pub ca: String,
    /// The node's certificate, PEM.
    pub certificate: String,
    /// Its private key, PEM (PKCS#8).
    pub key: SecretBytes,
}

/// A base URL without the slash or `/api/v2` at its end.
pub(crate) fn base(url: &str) -> Result<String, Error> {
    let url = url.trim();
    let trimmed = url.trim_end_matches('/').trim_end_matches("/api/v2").trim_end_matches('/');
    let parsed = reqwest::Url::parse(trimmed)
        .map_err(|e| Error::local(format!("{url:?} is not a URL: {e}")))?;
    if parsed.scheme() != "https" || parsed.host_str().is_none() {
        return Err(Error::local(format!(
            "{url:?} must begin with https:// and name a host; keys go over TLS only"
        )));
    }
    if !parsed.username().is_empty() || parsed.query().is_some() || parsed.fragment().is_some() {
        return Err(Error::local("a base URL has no user, query or fragment".to_owned()));
    }
    Ok(trimmed.to_owned())
}

/// Reads a CA file.
pub(crate) fn read_ca(path: &Path) -> Result<Vec<u8>, Error> {
    let fail = |e: std::io::Error| {
        Error::local(format!("cannot read the CA file {}: {e}", path.display()))
    };
    let mut pem = Vec::new();
    File::open(path).map_err(fail)?.take(CA_MAX + 1).read_to_end(&mut pem).map_err(fail)?;
    if pem.len() as u64 > CA_MAX {
        return Err(Error::local(format!("the CA file {} is too large", path.display())));
    }
    Ok(pem)
}

/// A client that trusts `ca` alone, speaks TLS 1.3 alone, and shows `identity` if there is one.
pub(crate) fn client(
    ca: &[u8],
    identity: Option<(&str, &SecretBytes)>,
) -> Result<reqwest::Client, Error> {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(ca) {
        let certificate = certificate
            .map_err(|e| Error::local(format!("the CA is not a valid PEM file: {e}")))?;
        roots.add(certificate).map_err(|e| Error::local(format!("the CA is not usable: {e}")))?;
    }
    if roots.is_empty() {
        return Err(Error::local("the CA file holds no certificate"));
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(|e| Error::protocol(format!("TLS 1.3 is not available: {e}")))?
        .with_root_certificates(roots);
    let mut tls = match identity {
        None => builder.with_no_client_auth(),
        Some((certificate, key)) => {
            let bad = |what: String| Error::local(format!("the node's certificate: {what}"));
            let chain: Vec<_> = CertificateDer::pem_slice_iter(certificate.as_bytes())
                .collect::<Result<_, _>>()
                .map_err(|e| bad(format!("not a valid PEM file: {e}")))?;
            let key = PrivateKeyDer::from_pem_slice(key.expose())
                .map_err(|_| bad("its key is not a valid PEM file".to_owned()))?;
            builder
                .with_client_auth_cert(chain, key)
                .map_err(|e| bad(format!("not usable with its key: {e}")))?
        }
    };
    tls.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    reqwest::Client::builder()
        .tls_backend_preconfigured(tls)
        .https_only(true)
        .no_proxy()
        .redirect(reqwest::redirect::Policy::none())
        .connect_timeout(CONNECT)
        .pool_idle_timeout(IDLE)
        .user_agent(concat!("claviger/", env!("CARGO_PKG_VERSION")))
        .build()
        .map_err(|e| Error::protocol(format!("cannot make a client: {e}")))
}

/// A text that is wiped when dropped.
pub(crate) struct SecretText(pub String);

impl Drop for SecretText {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base_urls() {
        assert_eq!(base("https://a:1/").unwrap(), "https://a:1");
        assert_eq!(base(" https://a/api/v2/ ").unwrap(), "https://a");
        for bad in ["http://a", "a:1", "", "https://u@a", "https://a?q=1"] {
            assert!(matches!(base(bad), Err(Error::Local { .. })), "{bad}");
        }
    }

    #[test]
    fn a_ca_must_hold_a_certificate() {
        for bad in ["", "no PEM", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"]
        {
            assert!(matches!(client(bad.as_bytes(), None), Err(Error::Local { .. })), "{bad}");
        }
        let error = read_ca(Path::new("/nonexistent")).unwrap_err();
        assert!(error.to_string().contains("/nonexistent"), "{error}");
    }
}
