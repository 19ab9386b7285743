//! What is taken away while a request is under way counts for it no longer.

use super::*;
use crate::app::App;
use crate::iam::token::Credential;
use claviger_domain::id::{AgentName, UnixMs};
use claviger_domain::policy::Subject;
use claviger_store::access;
use std::convert::Infallible;

/// Asks with a body that comes only once `meanwhile` is done: after the caller was looked up.
async fn late(
    w: &World,
    token: &str,
    line: &str,
    body: &Value,
    meanwhile: impl FnOnce(&App) + Send + 'static,
) -> Answer {
    let (app, text) = (w.app.clone(), body.to_string());
    let body = futures_util::stream::once(async move {
        meanwhile(&app);
        Ok::<_, Infallible>(text)
    });
    let (method, path) = line.split_once(' ').unwrap();
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header("authorization", format!("Bearer {token}"))
        .header("bluemix-instance", w.one.to_string());
    w.raw(request.body(Body::from_stream(body)).unwrap()).await
}

fn no_keys(app: &App) {
    let removed = app.store.tx("t", |tx| {
        let keys = iam::api_keys(tx, "IBMid-p")?;
        keys.iter().try_for_each(|key| iam::remove_api_key(tx, key.id).map(drop))
    });
    removed.unwrap();
}

fn no_policies(app: &App) {
    let subject = Subject::Principal("IBMid-p".to_owned());
    app.store.tx("t", |tx| access::remove_about(tx, &subject)).unwrap();
}

fn another_change(app: &App) {
    app.store.tx("t", access::changed).unwrap();
}

#[tokio::test]
async fn a_right_that_is_gone_when_the_body_comes_is_gone() {
    let ca = World::new().app.authority.pem();
    let cluster = json!({"name": "c", "server_url": "https://127.0.0.1:6443", "ca": ca});
    let policy = |account: &str| policy(("iam_id", "IBMid-p"), &["Viewer"], json!({}), account);
    type Meanwhile = fn(&App);
    for (meanwhile, done) in
        [(no_keys as Meanwhile, false), (no_policies, false), (another_change, true)]
    {
        let (w, admin) = world().await;
        let root = w.make_root(&admin, w.one, "root").await;
        let account = w.app.account.id.clone();
        let wrap = format!("POST /api/v2/keys/{root}/actions/wrap");
        for (line, body) in [
            ("POST /v1/policies", policy(&account)),
            ("POST /apikeys", json!({"name": "k", "boundTo": "IBMid-admin"})),
            ("POST /v3/principals", json!({"name": "n"})),
            ("POST /v3/clusters", cluster.clone()),
            ("POST /v2/resource_instances", json!({"name": "i", "target": "local"})),
            ("POST /api/v2/keys", crate::testing::envelope(json!({"name": "key"}))),
            (&wrap, json!({})),
        ] {
            let manager = on(ServiceRole::Manager, Scope::Everywhere);
            w.app.store.tx("t", |tx| iam::remove_principal(tx, "IBMid-p")).unwrap();
            let token = w.log_in(&w.api_key("p", &[ADMINISTRATOR, manager])).await;
            let answer = late(&w, &token, line, &body, meanwhile).await;
            let status = answer.status;
            assert!(status == 401 || done, "{line}: {status} {}", answer.body);
            assert!(status < 400 || !done, "{line}: {status} {}", answer.body);
        }
    }
}

#[tokio::test]
async fn a_certificate_is_no_credential_of_a_person() {
    let (w, _) = world().await;
    let manager = on(ServiceRole::Manager, Scope::Everywhere);
    let person = w.add_person("p", &[manager]);
    let (agent, fingerprint): (AgentName, _) = ("n1".parse().unwrap(), "t".to_owned());
    let not_after = UnixMs(START.0 + 3_600_000);
    let token = w.issue(&person, &Credential::Node { agent, fingerprint, not_after });
    assert_eq!(w.lists_keys(&token).await, 401);
}
