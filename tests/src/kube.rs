//! The API server, as a client with a certificate sees it: a few plain HTTPS calls.

use crate::Outcome;
use crate::lab::{Lab, check};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use reqwest::{Certificate, Client, Identity, Method, StatusCode};
use serde_json::Value;
use std::time::Duration;

/// A client of one API server.
#[derive(Clone)]
pub struct Kube {
    client: Client,
    url: String,
}

impl Kube {
    /// A client with the credentials of the cluster's kubeconfig.
    pub fn of(lab: &Lab) -> Outcome<Kube> {
        let args = ["config", "view", "--raw", "--flatten", "--minify", "-o", "json"];
        let out = check("kubectl config view", lab.kubectl(&args)?)?;
        let config: Value = serde_json::from_slice(&out.stdout).map_err(|e| e.to_string())?;
        let cluster = &config["clusters"][0]["cluster"];
        let user = &config["users"][0]["user"];
        let bytes = |value: &Value, name: &str| -> Outcome<Vec<u8>> {
            let text =
                value[name].as_str().ok_or_else(|| format!("the kubeconfig lacks {name}"))?;
            STANDARD.decode(text).map_err(|e| format!("{name}: {e}"))
        };
        let mut identity = bytes(user, "client-key-data")?;
        identity.extend(bytes(user, "client-certificate-data")?);
        let ca = Certificate::from_pem(&bytes(cluster, "certificate-authority-data")?)
            .map_err(|e| e.to_string())?;
        let url = cluster["server"].as_str().ok_or("the kubeconfig lacks server")?.to_owned();
        // Whoever came first has installed it; there is one provider in this project.
        drop(rustls::crypto::aws_lc_rs::default_provider().install_default());
        let client = Client::builder()
            .tls_certs_only([ca])
            .identity(Identity::from_pem(&identity).map_err(|e| e.to_string())?)
            .timeout(Duration::from_secs(20))
            .build()
            .map_err(|e| e.to_string())?;
        Ok(Kube { client, url })
    }

    /// `host:port` of the API server.
    pub fn address(&self) -> &str {
        self.url.trim_start_matches("https://").trim_end_matches('/')
    }

    /// One call. Gives the status and the body; an error only if there is no answer at all.
    pub async fn call(
        &self,
        method: Method,
        path: &str,
        body: Option<&Value>,
    ) -> Outcome<(StatusCode, Value)> {
        let mut request = self.client.request(method, format!("{}{path}", self.url));
        if let Some(body) = body {
            request = request.json(body);
        }
        let answer = request.send().await.map_err(|e| chain(&e))?;
        let status = answer.status();
        let text = answer.text().await.map_err(|e| chain(&e))?;
        Ok((status, serde_json::from_str(&text).unwrap_or(Value::String(text))))
    }

    /// Makes a namespace; one that exists is no error.
    pub async fn namespace(&self, name: &str) -> Outcome<()> {
        let body = serde_json::json!({"metadata": {"name": name}});
        match self.call(Method::POST, "/api/v1/namespaces", Some(&body)).await? {
            (StatusCode::CREATED | StatusCode::CONFLICT, _) => Ok(()),
            (status, body) => Err(format!("cannot make namespace {name}: {status} {body}")),
        }
    }

    /// Makes a Secret; one that exists is no error.
    pub async fn create(&self, namespace: &str, secret: &Value) -> Outcome<()> {
        let path = format!("/api/v1/namespaces/{namespace}/secrets");
        match self.call(Method::POST, &path, Some(secret)).await? {
            (StatusCode::CREATED | StatusCode::CONFLICT, _) => Ok(()),
            (status, body) => Err(format!("cannot make {}: {status} {body}", secret["metadata"])),
        }
    }

    /// Reads a Secret's data.
    pub async fn read(&self, namespace: &str, name: &str) -> Outcome<Value> {
        let path = format!("/api/v1/namespaces/{namespace}/secrets/{name}");
        match self.call(Method::GET, &path, None).await? {
            (StatusCode::OK, body) => Ok(body["data"].clone()),
            (status, body) => Err(format!("cannot read {namespace}/{name}: {status} {body}")),
        }
    }

    /// Replaces a Secret without a condition: the last writer wins.
    pub async fn replace(&self, namespace: &str, secret: &Value) -> Outcome<()> {
        let name = secret["metadata"]["name"].as_str().unwrap_or_default();
        let path = format!("/api/v1/namespaces/{namespace}/secrets/{name}");
        match self.call(Method::PUT, &path, Some(secret)).await? {
            (StatusCode::OK, _) => Ok(()),
            (status, body) => Err(format!("cannot replace {namespace}/{name}: {status} {body}")),
        }
    }

    /// All Secrets, read page by page from etcd: how many there are.
    pub async fn list_all(&self) -> Outcome<usize> {
        let (mut count, mut next) = (0, String::new());
        loop {
            let path = format!("/api/v1/secrets?limit=500&continue={next}");
            let (status, body) = self.call(Method::GET, &path, None).await?;
            if status != StatusCode::OK {
                return Err(format!("cannot list Secrets: {status} {body}"));
            }
            count += body["items"].as_array().map_or(0, Vec::len);
            match body["metadata"]["continue"].as_str() {
                Some(token) if !token.is_empty() => token.clone_into(&mut next),
                _ => return Ok(count),
            }
        }
    }
}

/// An error with its causes: reqwest's own text says too little.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        text.push_str(": ");
        text.push_str(&inner.to_string());
        cause = inner.source();
    }
    text
}
