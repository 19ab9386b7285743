//! Calls as plain HTTP, so that what is judged is the wire and no client's reading of it.

use super::RINGS;
use super::model::{State, View};
use super::server::Server;
use reqwest::{Certificate, Method, StatusCode};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

const CALL: Duration = Duration::from_secs(20);

/// Whose token a call carries.
#[derive(Clone, Copy)]
pub(super) enum Who {
    /// A Manager; the first of two who delete.
    Manager,
    /// Another Manager, who also may purge.
    Second,
    /// A service, which may register.
    Service,
}

/// What became of a call.
pub(super) enum Answered {
    /// 2xx, with the body, or null.
    Done(Value),
    /// 4xx.
    Refused(StatusCode, String),
    /// No answer: it may have taken effect.
    Lost,
}

#[derive(Clone)]
pub(super) struct Client {
    http: reqwest::Client,
    url: String,
    instance: String,
    tokens: [String; 3],
}

impl Client {
    /// Lets in who is needed. For a server that is not being killed.
    pub(super) async fn first(server: &Server) -> Result<Self, String> {
        // Who comes second finds it installed.
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let bootstrap = server.bootstrap()?;
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let ca = Certificate::from_pem(text(&bootstrap["ca"]).as_bytes());
        let http = reqwest::Client::builder()
            .tls_certs_only([ca.map_err(|e| e.to_string())?])
            .https_only(true)
            .timeout(CALL)
            .build()
            .map_err(|e| e.to_string())?;
        let mut client = Self {
            http,
            url: server.url(),
            instance: text(&bootstrap["instances"][0]["id"]),
            tokens: Default::default(),
        };
        let admin = client.token(&text(&bootstrap["api_key"])).await?;
        client.tokens = [admin.clone(), admin.clone(), admin.clone()];
        let mut made = Vec::new();
        for body in [
            json!({"name": "second", "email": "second@example.org", "roles": [
                {"role": "Manager"}, {"role": "KeyPurge"}]}),
            json!({"name": "service", "service": true, "roles": [{"role": "Reader"}]}),
        ] {
            let answer = client.done(Method::POST, "/v3/principals", &body).await?;
            made.push(client.token(&text(&answer["apikey"])).await?);
        }
        let service = made.pop().ok_or("no service")?;
        client.tokens = [admin, made.pop().ok_or("no second")?, service];
        for ring in RINGS {
            client.done(Method::POST, &format!("/api/v2/key_rings/{ring}"), &Value::Null).await?;
        }
        Ok(client)
    }

    async fn token(&self, api_key: &str) -> Result<String, String> {
        let form = [("grant_type", "urn:ibm:params:oauth:grant-type:apikey"), ("apikey", api_key)];
        let answer = self
            .http
            .post(format!("{}/identity/token", self.url))
            .form(&form)
            .send()
            .await
            .map_err(|e| e.to_string())?;
        let answer: Value = answer.json().await.map_err(|e| e.to_string())?;
        let token = answer["access_token"].as_str();
        token.map(str::to_owned).ok_or_else(|| format!("no token: {answer}"))
    }

    async fn done(&self, method: Method, path: &str, body: &Value) -> Result<Value, String> {
        match self.call(Who::Manager, method, path, body).await? {
            Answered::Done(value) => Ok(value),
            Answered::Refused(status, text) => Err(format!("{path}: {status} {text}")),
            Answered::Lost => Err(format!("{path}: no answer")),
        }
    }

    /// One call. A 5xx is an error of the run: nothing here justifies one.
    pub(super) async fn call(
        &self,
        who: Who,
        method: Method,
        path: &str,
        body: &Value,
    ) -> Result<Answered, String> {
        let mut request = self
            .http
            .request(method, format!("{}{path}", self.url))
            .bearer_auth(&self.tokens[who as usize])
            .header("Bluemix-Instance", &self.instance);
        if !body.is_null() {
            request = request.body(body.to_string());
        }
        let Ok(response) = request.send().await else { return Ok(Answered::Lost) };
        let status = response.status();
        let Ok(text) = response.text().await else { return Ok(Answered::Lost) };
        if status.is_server_error() {
            return Err(format!("{path}: {status} {text}"));
        }
        if !status.is_success() {
            return Ok(Answered::Refused(status, text));
        }
        if text.is_empty() {
            return Ok(Answered::Done(Value::Null));
        }
        let value = serde_json::from_str(&text);
        value.map(Answered::Done).map_err(|e| format!("{path}: {e}: {text}"))
    }

    /// Ids of all keys with this name, in whatever state.
    pub(super) async fn named(&self, name: &str) -> Result<Vec<String>, String> {
        let path = format!("/api/v2/keys?limit=5000&state=1,2,3,5&search=exact:name:{name}");
        let list = self.done(Method::GET, &path, &Value::Null).await?;
        let keys = list["resources"].as_array().ok_or_else(|| format!("no list: {list}"))?;
        let named = keys.iter().filter(|key| key["name"] == name);
        Ok(named.filter_map(|key| key["id"].as_str()).map(str::to_owned).collect())
    }

    /// All that can be seen of a key.
    pub(super) async fn view(&self, id: &str) -> Result<View, String> {
        let get = async |path: String| self.done(Method::GET, &path, &Value::Null).await;
        let found = get(format!("/api/v2/keys/{id}/metadata")).await?;
        let key = &found["resources"][0];
        let strings = |value: &Value| -> BTreeSet<String> {
            let items = value.as_array().into_iter().flatten();
            items.filter_map(Value::as_str).map(str::to_owned).collect()
        };
        let root = key["extractable"] == false;
        let (mut versions, mut users) = (Vec::new(), BTreeMap::new());
        if root {
            let found =
                get(format!("/api/v2/keys/{id}/versions?limit=5000&allKeyStates=true")).await?;
            for version in found["resources"].as_array().into_iter().flatten() {
                versions.push(version["id"].as_str().unwrap_or_default().to_owned());
            }
            // The newest comes first.
            versions.reverse();
            let found = get(format!("/api/v2/keys/{id}/registrations?limit=5000")).await?;
            for user in found["resources"].as_array().into_iter().flatten() {
                let crn = user["resourceCrn"].as_str().unwrap_or_default().to_owned();
                users.insert(crn, user["preventKeyDeletion"] == true);
            }
        }
        let rotation = &key["rotation"];
        Ok(View {
            state: State::from_number(key["state"].as_u64()).ok_or(format!("no state: {key}"))?,
            root,
            imported: key["imported"] == true,
            ring: key["keyRingID"].as_str().unwrap_or_default().to_owned(),
            aliases: strings(&key["aliases"]),
            rotation: rotation["interval_month"].as_u64(),
            dual: key["dualAuthDelete"]["enabled"] == true,
            set: key["dualAuthDelete"]["keySetForDeletion"] == true,
            versions,
            users,
        })
    }
}
