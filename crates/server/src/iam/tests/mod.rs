//! Identity and access over the router: who comes in, who may do what, and what changes of it.

mod identities;
mod limits;
mod logins;
mod matrix;
mod policies;
mod record;
mod revoked;
mod strangers;
mod tokens;

use crate::app::Settings;
use crate::testing::{Answer, START, World};
use axum::body::Body;
use axum::http::Request;
use claviger_domain::access::{PlatformRole, Scope, ServiceRole};
use claviger_domain::key::RootKey;
use claviger_store::iam::{self, ApiKey, Grant};
use serde_json::{Value, json};
use std::time::Duration;

const ADMINISTRATOR: Grant = Grant::Platform(PlatformRole::Administrator);

fn on(role: ServiceRole, scope: Scope) -> Grant {
    Grant::Service { role, scope }
}

/// A world with an administrator, who is Manager everywhere as well; his token.
async fn world() -> (World, String) {
    let w = World::exactly(Settings::default().without_waits().without_limits());
    let admin = w.api_key("admin", &[ADMINISTRATOR, on(ServiceRole::Manager, Scope::Everywhere)]);
    let token = w.log_in(&admin).await;
    (w, token)
}

impl World {
    /// The API key of a person who may do this.
    fn api_key(&self, name: &str, grants: &[Grant]) -> String {
        self.add_person(name, grants);
        let secret = self.app.tokens.new_api_key();
        let key = ApiKey::new(&format!("IBMid-{name}"), "t", "t", START);
        let mac = self.app.tokens.api_key_mac(&secret);
        self.app.store.tx("t", |tx| iam::add_api_key(tx, &key, &mac)).unwrap();
        secret
    }

    /// Asks with `If-Match`.
    async fn put(&self, token: &str, line: &str, tag: Option<&str>, body: &Value) -> Answer {
        let (method, path) = line.split_once(' ').unwrap();
        let mut request = Request::builder()
            .method(method)
            .uri(path)
            .header("authorization", format!("Bearer {token}"));
        if let Some(tag) = tag {
            request = request.header("if-match", tag);
        }
        self.raw(request.body(Body::from(body.to_string())).unwrap()).await
    }

    /// A policy about a principal or a group; its id.
    async fn policy(&self, admin: &str, subject: (&str, &str), role: &str, on: Value) -> String {
        let body = policy(subject, &[role], on, &self.app.account.id);
        let made = self.ask(admin, "POST", "/v1/policies", body).await.is(201);
        made["id"].as_str().unwrap().to_owned()
    }

    async fn lists_keys(&self, token: &str) -> u16 {
        self.ask(token, "GET", "/api/v2/keys", Value::Null).await.status
    }
}

/// A policy as clients send it. `on` has names and values.
fn policy(subject: (&str, &str), roles: &[&str], on: Value, account: &str) -> Value {
    let role = |name: &&str| match *name {
        "Viewer" | "Operator" | "Editor" | "Administrator" => {
            json!({"role_id": format!("crn:v1:bluemix:public:iam::::role:{name}")})
        }
        "KeyPurge" | "ReaderPlus" | "KmipAdapterManager" => {
            json!({"role_id": format!("crn:v1:bluemix:public:kms::::serviceRole:{name}")})
        }
        _ => json!({"role_id": format!("crn:v1:bluemix:public:iam::::serviceRole:{name}")}),
    };
    let mut attributes = vec![json!({"name": "accountId", "value": account})];
    for (name, value) in on.as_object().unwrap() {
        attributes.push(json!({"name": name, "value": value, "operator": "stringEquals"}));
    }
    json!({
        "type": "access",
        "subjects": [{"attributes": [{"name": subject.0, "value": subject.1}]}],
        "roles": roles.iter().map(role).collect::<Vec<_>>(),
        "resources": [{"attributes": attributes}],
    })
}

fn root(w: &World, key: &str) -> RootKey {
    RootKey { instance: w.one, key: key.parse().unwrap() }
}

fn hours(n: u64) -> Duration {
    Duration::from_secs(3600 * n)
}
