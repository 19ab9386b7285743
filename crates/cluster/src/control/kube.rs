//! The plain HTTPS calls that an agent makes to a kube-apiserver, with a client certificate:
//! write the canary Secret, patch a Secret with nothing, read `/readyz`,
//! `/healthz/kms-providers`, `/metrics` and `/version`, and list webhook
//! configurations and identity leases.
//!
//! No plaintext of a Secret ever comes back: answers to writes are asked for as metadata only.
//! Nothing is retried here; whoever calls knows whether a repeat is safe.

use reqwest::header::{ACCEPT, CONTENT_TYPE, HeaderValue, RETRY_AFTER};
use reqwest::{Client, Method, Response, StatusCode};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use thiserror::Error;

/// How to reach one API server. Paths are of PEM files.
#[derive(Debug, Clone)]
pub struct KubeConfig {
    /// `https://host:port`, without a path.
    pub url: String,
    /// The CA that signed the API server's certificate; no other is believed.
    pub ca: PathBuf,
    /// The agent's client certificate.
    pub cert: PathBuf,
    /// Its key.
    pub key: PathBuf,
}

/// Limit for a whole call, in which the API server may wait on etcd and on the plugin; its own
/// limit for a request is 60 s.
const CALL: Duration = Duration::from_secs(30);
/// Limit for a probe: a healthy API server answers in milliseconds, and the agent probes each
/// second.
const PROBE: Duration = Duration::from_secs(5);
/// Limit for a connection, on a loopback or a data centre's network.
const CONNECT: Duration = Duration::from_secs(3);
/// Largest answer that is kept: metadata of one object, a status, or a health report.
const BODY_MAX: usize = 256 << 10;
/// Largest list that is kept: a webhook's CA takes some kilobytes, and there are tens of them.
const LIST_MAX: usize = 4 << 20;
/// Largest `/metrics` that is read through: about 3 MiB on a small cluster, tens on a big one.
const METRICS_MAX: usize = 128 << 20;
/// Most lines of metrics that are kept.
const LINES_MAX: usize = 1_000;
/// Most connections that are kept idle: one for each worker of the rewrite.
const IDLE_MAX: usize = 16;
/// Longest time that a `Retry-After` is believed.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(60);

/// The answer to a write is asked for without data: cheap to encode, and nothing secret in it.
const METADATA_ONLY: HeaderValue = HeaderValue::from_static(
    "application/vnd.kubernetes.protobuf;as=PartialObjectMetadata;g=meta.k8s.io;v=v1",
);
const MERGE_PATCH: HeaderValue = HeaderValue::from_static("application/merge-patch+json");
const JSON: HeaderValue = HeaderValue::from_static("application/json");

/// Why a call to an API server failed.
#[derive(Debug, Error)]
pub enum KubeError {
    /// A file or the URL of the configuration is no good: the operator's to mend.
    #[error("kube-apiserver client: {what} {path}")]
    Config {
        /// What was tried.
        what: &'static str,
        /// On what.
        path: String,
        /// Why not.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// No answer: it is down, restarting, or the network is. Worth a retry.
    #[error("kube-apiserver {url} does not answer")]
    Unreachable {
        /// Which.
        url: String,
        /// Why.
        #[source]
        source: reqwest::Error,
    },
    /// It asks for patience, or has a fault of its own (429, 5xx). Worth a retry.
    #[error("kube-apiserver answered {status}: {message}")]
    Busy {
        /// The status.
        status: u16,
        /// Its words, cut to 300 characters.
        message: String,
        /// How long it asks to wait, if it says so; at most a minute.
        retry_after: Option<Duration>,
    },
    /// The object is not there (404).
    #[error("kube-apiserver has no such object")]
    NotFound,
    /// The object changed or exists already (409).
    #[error("kube-apiserver answered 409: {message}")]
    Conflict {
        /// Its words, cut to 300 characters.
        message: String,
    },
    /// It refuses (other 4xx): certificate, RBAC, or an admission webhook. A retry will not help.
    #[error("kube-apiserver refuses with {status}: {message}")]
    Refused {
        /// The status.
        status: u16,
        /// Its words, cut to 300 characters.
        message: String,
    },
    /// The answer is larger than it may be.
    #[error("answer of kube-apiserver is larger than {limit} bytes")]
    TooLarge {
        /// The limit.
        limit: usize,
    },
}

impl KubeError {
    /// Whether the same call may succeed later.
    pub fn transient(&self) -> bool {
        matches!(self, KubeError::Unreachable { .. } | KubeError::Busy { .. })
    }
}

/// What a health endpoint says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Health {
    /// 200.
    Ok,
    /// Anything else, with the checks that failed (lines that begin with `[-]`), cut to 300
    /// characters.
    Failing(String),
}

/// A client of one kube-apiserver. Cheap to clone; clones share connections.
#[derive(Clone)]
pub struct Kube {
    url: Arc<str>,
    http: Client,
}

impl fmt::Debug for Kube {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Kube").field("url", &self.url).finish_non_exhaustive()
    }
}

impl Kube {
    /// Reads the files and makes a client; connects at the first call.
    pub fn new(config: &KubeConfig) -> Result<Self, KubeError> {
        let url = config.url.trim_end_matches('/');
        if !url.starts_with("https://") {
            return Err(KubeError::Config {
                what: "the URL must begin with https://, not",
                path: url.to_owned(),
                source: "plain HTTP would show the agent's requests to the network".into(),
            });
        }
        let bad = |what: &'static str, path: &Path| {
            let path = path.display().to_string();
            move |source: Box<dyn std::error::Error + Send + Sync>| KubeError::Config {
                what,
                path,
                source,
            }
        };
        let mut roots = rustls::RootCertStore::empty();
        for ca in certificates(&config.ca).map_err(bad("cannot read the CA", &config.ca))? {
            roots.add(ca).map_err(|e| bad("cannot use the CA", &config.ca)(e.into()))?;
        }
        let chain = certificates(&config.cert)
            .map_err(bad("cannot read the client certificate", &config.cert))?;
        let key = PrivateKeyDer::from_pem_file(&config.key)
            .map_err(|e| bad("cannot read the client key", &config.key)(e.into()))?;
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let tls = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|e| bad("cannot set TLS up with", &config.ca)(e.into()))?
            .with_root_certificates(roots)
            .with_client_auth_cert(chain, key)
            .map_err(|e| bad("cannot use the client certificate", &config.cert)(e.into()))?;
        // Several connections of HTTP/1.1 rather than one of HTTP/2: less work on both sides for
        // small bodies, and a restart of the API server is seen on each at once.
        let http = Client::builder()
            .tls_backend_preconfigured(tls)
            .http1_only()
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none())
            .connect_timeout(CONNECT)
            .timeout(CALL)
            .pool_max_idle_per_host(IDLE_MAX)
            .pool_idle_timeout(Duration::from_secs(60))
            .tcp_nodelay(true)
            .user_agent(concat!("claviger/", env!("CARGO_PKG_VERSION")))
            .build()
            .map_err(|e| bad("cannot set TLS up with", &config.ca)(e.into()))?;
        Ok(Self { url: url.into(), http })
    }

    /// The base URL.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Patches a Secret with nothing. kube-apiserver then stores it again exactly if the stored
    /// record is not under the key that it now writes with, and leaves it alone otherwise.
    pub async fn touch_secret(&self, namespace: &str, name: &str) -> Result<(), KubeError> {
        let path = secret_path(namespace, Some(name));
        let response = self.write(Method::PATCH, &path, MERGE_PATCH, "{}".to_owned()).await?;
        drain(response, &self.url).await
    }

    /// Creates a Secret of type Opaque with the one key `content`, or changes it. `content` is
    /// base64 text and must differ from the last one, or nothing is written.
    pub async fn put_canary(
        &self,
        namespace: &str,
        name: &str,
        content: &str,
    ) -> Result<(), KubeError> {
        let data = serde_json::json!({ "data": { "content": content } });
        let one = secret_path(namespace, Some(name));
        // Two rounds: a create may meet one that somebody else has made in between.
        for _ in 0..2 {
            match self.write(Method::PATCH, &one, MERGE_PATCH, data.to_string()).await {
                Ok(response) => return drain(response, &self.url).await,
                Err(KubeError::NotFound) => {}
                Err(e) => return Err(e),
            }
            let whole = serde_json::json!({
                "apiVersion": "v1",
                "kind": "Secret",
                "metadata": {
                    "name": name,
                    "labels": { "app.kubernetes.io/managed-by": "claviger" },
                    "annotations": {
                        "claviger.io/purpose":
                            "written again at each change of the key, to see the key in etcd",
                    },
                },
                "data": { "content": content },
            });
            let all = secret_path(namespace, None);
            match self.write(Method::POST, &all, JSON, whole.to_string()).await {
                Ok(response) => return drain(response, &self.url).await,
                Err(KubeError::Conflict { .. }) => {}
                Err(e) => return Err(e),
            }
        }
        Err(KubeError::Conflict { message: format!("{namespace}/{name} comes and goes") })
    }

    /// `/readyz`.
    pub async fn readyz(&self) -> Result<Health, KubeError> {
        self.health("/readyz").await
    }

    /// `/healthz/kms-providers`. Looking is also what makes kube-apiserver ask the plugin for
    /// its key id, at most every 20 s; unasked it does so once a minute.
    pub async fn kms_providers(&self) -> Result<Health, KubeError> {
        self.health("/healthz/kms-providers").await
    }

    /// `gitVersion` of `/version`.
    pub async fn version(&self) -> Result<String, KubeError> {
        let response = self.get("/version").await?;
        let response = accepted(response, &self.url).await?;
        let body = bounded(response, &self.url, BODY_MAX).await?;
        let value: serde_json::Value = serde_json::from_slice(&body).unwrap_or_default();
        value.get("gitVersion").and_then(|v| v.as_str()).map(str::to_owned).ok_or_else(|| {
            KubeError::Refused { status: 200, message: "no gitVersion in /version".to_owned() }
        })
    }

    /// The lines of `/metrics` that begin with `prefix`, at most 1,000 of them. The body is read
    /// through as it comes and never kept whole.
    pub async fn metrics(&self, prefix: &str) -> Result<Vec<String>, KubeError> {
        let request = self.http.get(format!("{}/metrics", self.url)).timeout(CALL);
        let response = request.send().await.map_err(|e| self.unreachable(e))?;
        let mut response = accepted(response, &self.url).await?;
        let mut lines = Lines::new(prefix);
        let mut read = 0;
        while let Some(chunk) = response.chunk().await.map_err(|e| self.unreachable(e))? {
            read += chunk.len();
            if read > METRICS_MAX {
                return Err(KubeError::TooLarge { limit: METRICS_MAX });
            }
            lines.feed(&chunk);
        }
        Ok(lines.finish())
    }

    /// The objects of a list, which holds no Secrets, as JSON.
    pub async fn list(&self, path: &str) -> Result<Vec<serde_json::Value>, KubeError> {
        let url = format!("{}{path}", self.url);
        let request = self.http.get(url).header(ACCEPT, JSON).timeout(PROBE);
        let response = request.send().await.map_err(|e| self.unreachable(e))?;
        let response = accepted(response, &self.url).await?;
        let body = bounded(response, &self.url, LIST_MAX).await?;
        let value: serde_json::Value = serde_json::from_slice(&body).unwrap_or_default();
        let items = value.get("items").and_then(|items| items.as_array()).cloned();
        items.ok_or_else(|| KubeError::Refused {
            status: 200,
            message: format!("{path} gives no list"),
        })
    }

    async fn get(&self, path: &str) -> Result<Response, KubeError> {
        let request = self.http.get(format!("{}{path}", self.url)).timeout(PROBE);
        request.send().await.map_err(|e| self.unreachable(e))
    }

    async fn health(&self, path: &str) -> Result<Health, KubeError> {
        let response = self.get(path).await?;
        let status = response.status();
        if status.is_success() {
            drain(response, &self.url).await?;
            return Ok(Health::Ok);
        }
        if status == StatusCode::UNAUTHORIZED || status == StatusCode::FORBIDDEN {
            // Not a word about health: the agent may not ask.
            return accepted(response, &self.url).await.map(|_| Health::Ok);
        }
        let body = bounded(response, &self.url, BODY_MAX).await?;
        let text = String::from_utf8_lossy(&body);
        let failed: Vec<&str> = text.lines().filter(|l| l.starts_with("[-]")).collect();
        let words = if failed.is_empty() { text.into_owned() } else { failed.join("; ") };
        Ok(Health::Failing(short(&words)))
    }

    async fn write(
        &self,
        method: Method,
        path: &str,
        content_type: HeaderValue,
        body: String,
    ) -> Result<Response, KubeError> {
        let request = self
            .http
            .request(method, format!("{}{path}", self.url))
            .header(ACCEPT, METADATA_ONLY)
            .header(CONTENT_TYPE, content_type)
            .body(body);
        let response = request.send().await.map_err(|e| self.unreachable(e))?;
        accepted(response, &self.url).await
    }

    fn unreachable(&self, source: reqwest::Error) -> KubeError {
        KubeError::Unreachable { url: self.url.to_string(), source }
    }
}

fn certificates(
    path: &Path,
) -> Result<Vec<CertificateDer<'static>>, Box<dyn std::error::Error + Send + Sync>> {
    let certificates: Vec<_> =
        CertificateDer::pem_file_iter(path)?.collect::<Result<Vec<_>, _>>()?;
    if certificates.is_empty() {
        return Err("there is no certificate in it".into());
    }
    Ok(certificates)
}

/// The path of one Secret, or of all in a namespace; every byte that is not unreserved
/// (RFC 3986) is encoded, whatever etcd's key held.
fn secret_path(namespace: &str, name: Option<&str>) -> String {
    let mut path = format!("/api/v1/namespaces/{}/secrets", encoded(namespace));
    if let Some(name) = name {
        path.push('/');
        path.push_str(&encoded(name));
    }
    path
}

fn encoded(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'~') {
            out.push(char::from(byte));
        } else if byte == b'.' && text != "." && text != ".." {
            out.push('.');
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}

async fn accepted(response: Response, url: &str) -> Result<Response, KubeError> {
    let status = response.status();
    if status.is_success() {
        return Ok(response);
    }
    let retry_after = response
        .headers()
        .get(RETRY_AFTER)
        .and_then(|v| v.to_str().ok()?.trim().parse().ok())
        .map(|s| Duration::from_secs(s).min(RETRY_AFTER_MAX));
    // The status says enough if the body cannot be had.
    let body = bounded(response, url, BODY_MAX).await.unwrap_or_default();
    let message = message(&body);
    Err(match status {
        StatusCode::NOT_FOUND => KubeError::NotFound,
        StatusCode::CONFLICT => KubeError::Conflict { message },
        StatusCode::TOO_MANY_REQUESTS => {
            KubeError::Busy { status: status.as_u16(), message, retry_after }
        }
        s if s.is_server_error() => KubeError::Busy { status: s.as_u16(), message, retry_after },
        s => KubeError::Refused { status: s.as_u16(), message },
    })
}

/// The words of a `Status` object in any encoding: its `message` if it is JSON, else what is
/// printable.
fn message(body: &[u8]) -> String {
    let json: Option<serde_json::Value> = serde_json::from_slice(body).ok();
    if let Some(text) = json.as_ref().and_then(|v| v.get("message")?.as_str()) {
        return short(text);
    }
    let text = String::from_utf8_lossy(body);
    let printable: String =
        text.chars().map(|c| if c.is_ascii_graphic() || c == ' ' { c } else { ' ' }).collect();
    short(&printable.split_whitespace().collect::<Vec<_>>().join(" "))
}

fn short(text: &str) -> String {
    text.chars().take(300).collect()
}

async fn bounded(mut response: Response, url: &str, limit: usize) -> Result<Vec<u8>, KubeError> {
    let mut body = Vec::new();
    while let Some(chunk) = response
        .chunk()
        .await
        .map_err(|source| KubeError::Unreachable { url: url.to_owned(), source })?
    {
        if body.len() + chunk.len() > limit {
            return Err(KubeError::TooLarge { limit });
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body)
}

/// Reads an answer to its end, so that the connection can be used again, and forgets it.
async fn drain(mut response: Response, url: &str) -> Result<(), KubeError> {
    let mut read = 0;
    while let Some(chunk) = response
        .chunk()
        .await
        .map_err(|source| KubeError::Unreachable { url: url.to_owned(), source })?
    {
        read += chunk.len();
        if read > BODY_MAX {
            // It was done all the same; only the connection is given up.
            return Ok(());
        }
    }
    Ok(())
}

/// Picks lines with a prefix out of a stream of bytes.
struct Lines<'a> {
    prefix: &'a str,
    partial: Vec<u8>,
    kept: Vec<String>,
}

/// Longest line of metrics that is kept; a longer one is cut.
const LINE_MAX: usize = 4 << 10;

impl<'a> Lines<'a> {
    fn new(prefix: &'a str) -> Self {
        Self { prefix, partial: Vec::new(), kept: Vec::new() }
    }

    fn feed(&mut self, bytes: &[u8]) {
        for piece in bytes.split_inclusive(|b| *b == b'\n') {
            let (text, whole) = match piece.strip_suffix(b"\n") {
                Some(text) => (text, true),
                None => (piece, false),
            };
            let room = LINE_MAX.saturating_sub(self.partial.len());
            self.partial.extend_from_slice(&text[..text.len().min(room)]);
            if whole {
                self.end_line();
            }
        }
    }

    fn end_line(&mut self) {
        if self.kept.len() < LINES_MAX && self.partial.starts_with(self.prefix.as_bytes()) {
            self.kept.push(String::from_utf8_lossy(&self.partial).into_owned());
        }
        self.partial.clear();
    }

    fn finish(mut self) -> Vec<String> {
        if !self.partial.is_empty() {
            self.end_line();
        }
        self.kept
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_from_etcd_cannot_leave_their_place_in_a_path() {
        for (namespace, name, path) in [
            ("default", "a.b-c", "/api/v1/namespaces/default/secrets/a.b-c"),
            ("n/s", "x y?z#%", "/api/v1/namespaces/n%2Fs/secrets/x%20y%3Fz%23%25"),
            ("..", "ä", "/api/v1/namespaces/%2E%2E/secrets/%C3%A4"),
        ] {
            assert_eq!(secret_path(namespace, Some(name)), path);
        }
    }

    #[test]
    fn metrics_are_filtered_however_they_are_cut() {
        let text = "# HELP x\nx{a=\"1\"} 1\ny 2\nx 3";
        for cut in 0..text.len() {
            let mut lines = Lines::new("x");
            lines.feed(&text.as_bytes()[..cut]);
            lines.feed(&text.as_bytes()[cut..]);
            assert_eq!(lines.finish(), ["x{a=\"1\"} 1", "x 3"], "cut at {cut}");
        }
    }

    #[test]
    fn words_of_a_status_are_found_in_json_and_in_protobuf() {
        assert_eq!(message(br#"{"kind":"Status","message":"no"}"#), "no");
        assert_eq!(message(b"k8s\0\n\x0b\x12\x06Status\x12\x04gone"), "k8s Status gone");
        assert_eq!(message(&[b'x'; 1000]).len(), 300);
    }
}
