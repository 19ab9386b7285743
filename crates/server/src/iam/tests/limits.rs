//! How often one caller may call, and that it takes nothing from others.

use super::*;
use crate::http::auth::Node;
use claviger_domain::audit::Record;

/// Three calls a second, six at once.
fn few() -> Settings {
    Settings { calls_per_second: 3, agent_calls_per_second: 3, ..Settings::default() }
}

fn refused(acts: &[Record]) -> Vec<(&str, &str, u16, Option<u64>)> {
    let limits = acts.iter().filter(|act| act.action == "claviger.calls.limit");
    limits.map(|act| (&*act.who, &*act.target, act.status, act.data.count)).collect()
}

#[tokio::test]
async fn who_calls_too_often_is_told_when_to_come_back_and_nobody_else_is() {
    let w = World::exactly(few());
    let key = w.root().await;
    let other = w.person("other", &[(ServiceRole::Reader, Scope::Everywhere)]);
    let wrap = format!("POST /keys/{key}/actions/wrap");
    // One went to the key.
    for _ in 0..5 {
        w.by(&w.manager, &wrap, "{}").await.is(200);
    }
    let mut told = Vec::new();
    for _ in 0..20 {
        let answer = w.by(&w.manager, &wrap, "{}").await;
        told.push(answer.headers["retry-after"].to_str().unwrap().to_owned());
        assert!(answer.body.to_string().contains("Try again in"), "{}", answer.body);
        answer.refused(429, "TOO_MANY_REQUESTS_ERR");
    }
    assert_eq!(told.join(""), "11122233344455555555", "three in each of the next seconds");
    // It is the caller who is limited, whatever he asks and however he came by his token.
    let change = w.by(&w.manager, &format!("POST /keys/{key}/actions/disable"), "").await;
    change.refused(429, "TOO_MANY_REQUESTS_ERR");
    let policies = w.ask(&w.manager, "GET", "/v1/policies", Value::Null).await.is(429);
    assert_eq!(policies["errors"][0]["code"], "TOO_MANY_REQUESTS_ERR");
    w.by(&other, &wrap, "{}").await.is(200);
    for path in ["/healthz", "/openapi.json"] {
        w.raw(Request::get(path).body(Body::empty()).unwrap()).await.is(200);
    }

    w.clock.advance(Duration::from_secs(1));
    let answers = [0; 4].map(|_| w.by(&w.manager, &wrap, "{}"));
    let statuses: Vec<u16> =
        futures_util::future::join_all(answers).await.iter().map(|a| a.status).collect();
    assert_eq!(statuses.iter().filter(|status| **status == 200).count(), 3, "{statuses:?}");

    w.clock.advance(Duration::from_secs(1));
    w.settle().await;
    let who = "IBMid-manager";
    let want = [(who, "principal", 429, Some(22)), (who, "principal", 429, Some(1))];
    assert_eq!(refused(&w.acts()), want, "a record for each second");
    assert_eq!(
        w.audited("kms.secrets.wrap"),
        5 + 1 + 3,
        "what was refused is not on record by itself"
    );
    let metric = r#"claviger_calls_limited_total{kind="principal"} 23"#;
    assert!(w.app.metrics.render().contains(metric));
}

#[tokio::test]
async fn logins_count_and_a_login_that_is_refused_is_counted() {
    let w = World::exactly(few());
    let person = w.api_key("p", &[]);
    let mut statuses = Vec::new();
    for _ in 0..8 {
        statuses.push(w.login(&person).await.status);
    }
    assert_eq!(statuses, [200, 200, 200, 200, 200, 200, 429, 429]);
    assert_eq!(w.lists_keys(&w.manager).await, 200);
    assert_eq!(w.audited("iam-identity.user-apikey.login"), 6);
}

#[tokio::test]
async fn agents_are_limited_by_themselves() {
    let w = World::exactly(few());
    let key = w.root().await;
    let (cluster, crn, token) = w.cluster(&key);
    let node = |agent: &str| Node {
        cluster: cluster.clone(),
        agent: agent.parse().unwrap(),
        fingerprint: "t".to_owned(),
        not_after: crate::testing::START,
    };
    let state = async |agent: &str| {
        let mut request = Request::get("/agent/v1/state").body(Body::empty()).unwrap();
        request.extensions_mut().insert(node(agent));
        w.raw(request).await
    };
    // The certificate has ended, which is found out after the call was counted.
    let mut statuses = Vec::new();
    for _ in 0..7 {
        statuses.push(state("n1").await.status);
    }
    assert_eq!(statuses, [401, 401, 401, 401, 401, 401, 429]);
    let by_token = w.ask(&token, "GET", &format!("/api/v2/keys/{key}/metadata"), Value::Null).await;
    by_token.refused(429, "TOO_MANY_REQUESTS_ERR");
    assert_eq!(state("n2").await.status, 401, "another agent");
    let mut other = Request::get("/agent/v1/state").body(Body::empty()).unwrap();
    other.extensions_mut().insert(Node { fingerprint: "u".to_owned(), ..node("n1") });
    assert_eq!(w.raw(other).await.status, 401, "another certificate of the same agent");
    assert_eq!(w.lists_keys(&w.manager).await, 200);
    w.clock.advance(Duration::from_secs(1));
    w.settle().await;
    let who = format!("crn-{crn} agent n1 certificate t");
    assert_eq!(refused(&w.acts()), [(&*who, "agent", 429, Some(2))]);
}
