//! A fresh instance of the key service for each suite, made as a client makes it: through the
//! Resource Controller.

use super::suites::Server;
use crate::Outcome;
use reqwest::{Certificate, Client};
use serde_json::{Value, json};
use std::time::Duration;

/// Key Protect's plan, under which clients create instances.
const PLAN: &str = "eedd3585-90c6-4c8f-be3d-062069e99fc3";

/// Makes one instance for each name and returns their ids.
pub fn make(server: &Server, names: &[&str]) -> Outcome<Vec<String>> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|e| format!("no runtime: {e}"))?;
    runtime.block_on(async {
        let api = Api::log_in(server).await?;
        let mut ids = Vec::new();
        for name in names {
            ids.push(api.instance(name).await?);
        }
        Ok(ids)
    })
}

/// Makes a root key and returns its id.
pub fn root_key(server: &Server, instance: &str, name: &str) -> Outcome<String> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|e| format!("no runtime: {e}"))?;
    runtime.block_on(async {
        let api = Api::log_in(server).await?;
        let kind = "application/vnd.ibm.kms.key+json";
        let body = json!({
            "metadata": {"collectionType": kind, "collectionTotal": 1},
            "resources": [{"type": kind, "name": name, "extractable": false}],
        });
        let request = api.client.post(format!("{}/api/v2/keys", api.url)).bearer_auth(&api.token);
        let answer = Api::send(request.header("Bluemix-Instance", instance).json(&body)).await?;
        let id = answer.pointer("/resources/0/id").and_then(Value::as_str);
        id.map(str::to_owned).ok_or_else(|| format!("a key without id: {answer}"))
    })
}

/// The server, to somebody who has logged in.
pub(crate) struct Api {
    client: Client,
    url: String,
    token: String,
    group: String,
}

impl Api {
    async fn log_in(server: &Server) -> Outcome<Self> {
        Self::log_in_with(server, &server.api_key).await
    }

    /// The token of whoever has this API key.
    pub(crate) fn token_of(server: &Server, api_key: &str) -> Outcome<String> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|e| format!("no runtime: {e}"))?;
        runtime.block_on(async { Self::token(&Self::client(server)?, server, api_key).await })
    }

    fn client(server: &Server) -> Outcome<Client> {
        let pem = std::fs::read(&server.ca_file)
            .map_err(|e| format!("cannot read {}: {e}", server.ca_file.display()))?;
        let ca = Certificate::from_pem(&pem).map_err(|e| e.to_string())?;
        // Whoever came first has installed it; there is one provider in this project.
        drop(rustls::crypto::aws_lc_rs::default_provider().install_default());
        Client::builder()
            .tls_certs_only([ca])
            .timeout(Duration::from_secs(20))
            .build()
            .map_err(|e| e.to_string())
    }

    async fn token(client: &Client, server: &Server, api_key: &str) -> Outcome<String> {
        let form = [("grant_type", "urn:ibm:params:oauth:grant-type:apikey"), ("apikey", api_key)];
        let request = client.post(format!("{}/identity/token", server.url)).form(&form);
        let answer = Self::send(request).await?;
        Ok(answer["access_token"].as_str().ok_or("an answer without token")?.to_owned())
    }

    /// Logs in by this API key, which may see resource groups.
    pub(crate) async fn log_in_with(server: &Server, api_key: &str) -> Outcome<Self> {
        let client = Self::client(server)?;
        let url = server.url.clone();
        let token = Self::token(&client, server, api_key).await?;
        let request = client.get(format!("{url}/v2/resource_groups")).bearer_auth(&token);
        let groups = Self::send(request).await?;
        let group = groups.pointer("/resources/0/id").and_then(Value::as_str);
        let group = group.ok_or_else(|| format!("no resource group: {groups}"))?.to_owned();
        Ok(Self { client, url, token, group })
    }

    /// The one resource group.
    pub(crate) fn group(&self) -> &str {
        &self.group
    }

    /// Asks for something to be made, in an instance of the key service if one is named.
    pub(crate) async fn post(
        &self,
        path: &str,
        instance: Option<&str>,
        body: &Value,
    ) -> Outcome<Value> {
        let mut request = self.client.post(format!("{}{path}", self.url)).bearer_auth(&self.token);
        if let Some(instance) = instance {
            request = request.header("Bluemix-Instance", instance);
        }
        Self::send(request.json(body)).await
    }

    /// Looks at something.
    pub(crate) async fn get(&self, path: &str) -> Outcome<Value> {
        let request = self.client.get(format!("{}{path}", self.url));
        Self::send(request.bearer_auth(&self.token)).await
    }

    /// Asks for something to be as `body` says.
    pub(crate) async fn put(&self, path: &str, body: &Value) -> Outcome<Value> {
        let request = self.client.put(format!("{}{path}", self.url));
        Self::send(request.bearer_auth(&self.token).json(body)).await
    }

    /// Makes an instance and returns its id.
    pub(crate) async fn instance(&self, name: &str) -> Outcome<String> {
        let body = json!({
            "name": name, "target": "us-south", "resource_group": self.group,
            "resource_plan_id": PLAN,
        });
        let url = format!("{}/v2/resource_instances", self.url);
        let request = self.client.post(url).bearer_auth(&self.token).json(&body);
        let answer = Self::send(request).await?;
        let id = answer["guid"].as_str();
        id.map(str::to_owned).ok_or_else(|| format!("an instance without guid: {answer}"))
    }

    async fn send(request: reqwest::RequestBuilder) -> Outcome<Value> {
        let answer = request.send().await.map_err(|e| format!("no answer: {e:?}"))?;
        let (status, url) = (answer.status(), answer.url().clone());
        let text = answer.text().await.map_err(|e| e.to_string())?;
        if !status.is_success() {
            return Err(format!("{url}: {status}: {text}"));
        }
        if text.is_empty() {
            return Ok(Value::Null);
        }
        serde_json::from_str(&text).map_err(|e| format!("{url}: not JSON: {e}"))
    }
}
