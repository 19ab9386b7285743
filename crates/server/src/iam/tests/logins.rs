//! People who come in by an issuer: who lets them in, and how long what they got counts.

use super::*;
use crate::iam::token::{Bearer, Credential};
use claviger_store::logins;
use claviger_wire::iam::{GRANT_EXCHANGE, GRANT_REFRESH, ID_TOKEN};

const ISSUER: &str = "https://issuer.example";

fn login(subject: &str) -> Value {
    json!({"issuer": ISSUER, "subject": subject})
}

#[tokio::test]
async fn administrators_let_people_in_by_issuer_and_subject_and_out_again() {
    let (w, admin) = world().await;
    let made = json!({"name": "Alice", "login": login("alice")});
    let made = w.ask(&admin, "POST", "/v3/principals", made).await.is(201);
    assert!(made.body.get("apikey").is_none(), "{}", made.body);
    let alice = made["iam_id"].as_str().unwrap().to_owned();
    let keys = w.ask(&admin, "GET", &format!("/apikeys?boundTo={alice}"), Value::Null).await;
    assert_eq!(keys.is(200)["items"], json!([]));
    let path = |who: &str| format!("/v3/principals/{who}/logins");
    let shown = w.ask(&admin, "GET", &path(&alice), Value::Null).await.is(200);
    assert_eq!(shown["logins"], json!([login("alice")]));

    // A subject is one person.
    let taken = json!({"name": "Mallory", "login": login("alice")});
    w.ask(&admin, "POST", "/v3/principals", taken).await.is(409);
    w.add_person("bob", &[]);
    let both = json!({"logins": [login("bob"), login("alice")]});
    w.ask(&admin, "PUT", &path("IBMid-bob"), both).await.is(409);
    let shown = w.ask(&admin, "GET", &path("IBMid-bob"), Value::Null).await.is(200);
    assert_eq!(shown["logins"], json!([]), "all or nothing");

    for (body, status) in [
        (json!({"logins": [login("bob")]}), 200),
        (json!({"logins": [login("")]}), 400),
        (json!({"logins": [login(&"x".repeat(256))]}), 400),
        (json!({"logins": [login("a\nb")]}), 400),
        (json!({"logins": (0..21).map(|n| login(&n.to_string())).collect::<Vec<_>>()}), 400),
        (json!({"logins": [{"email": "bob@example"}]}), 400),
    ] {
        let said = body.to_string();
        let answer = w.ask(&admin, "PUT", &path("IBMid-bob"), body).await;
        assert_eq!(answer.status, status, "{said}: {}", answer.body);
    }
    w.ask(&admin, "GET", &path("IBMid-nobody"), Value::Null).await.is(404);
    let service = json!({"name": "s", "service": true, "login": login("s")});
    w.ask(&admin, "POST", "/v3/principals", service).await.is(400);
    let bob = w.log_in(&w.api_key("other", &[on(ServiceRole::Manager, Scope::Everywhere)])).await;
    for (verb, body) in [("GET", Value::Null), ("PUT", json!({"logins": []}))] {
        let answer = w.ask(&bob, verb, &path(&alice), body).await;
        assert!(matches!(answer.status, 401 | 403), "{verb}: {}", answer.status);
    }
    // With the person go his logins.
    w.app.store.tx("t", |tx| iam::remove_principal(tx, &alice)).unwrap();
    let again = json!({"name": "Alice", "login": login("alice")});
    w.ask(&admin, "POST", "/v3/principals", again).await.is(201);
}

#[tokio::test]
async fn a_login_counts_while_its_subject_may_come_in_and_its_issuer_is_named() {
    let (w, admin) = world().await;
    let person = w.add_person("p", &[on(ServiceRole::Reader, Scope::Everywhere)]);
    let credential = Credential::Login { issuer: ISSUER.to_owned(), subject: "p".to_owned() };
    let token = w.issue(&person, &credential);
    let expires_s = START.0 / 1000 + 3600;
    let iam_id = person.iam_id.clone();
    let bearer = Bearer { iam_id, credential: credential.clone(), expires_s };
    let refresh = w.app.tokens.refresh_token(&bearer, START);
    let counts = async || {
        let fields = [("grant_type", GRANT_REFRESH), ("refresh_token", &refresh)];
        (w.lists_keys(&token).await, w.grant(&fields).await.status)
    };
    let allow = |issuers: &[(&str, &str)]| {
        w.app.store.tx("t", |tx| logins::allow(tx, issuers)).unwrap();
    };
    let let_in = async |logins: Value| {
        let body = json!({ "logins": logins });
        w.ask(&admin, "PUT", "/v3/principals/IBMid-p/logins", body).await.is(200);
    };
    assert_eq!(counts().await, (401, 400));
    let_in(json!([login("p")])).await;
    assert_eq!(counts().await, (401, 400), "the issuer is not named");
    allow(&[(ISSUER, "claviger")]);
    assert_eq!(counts().await, (200, 200));
    let_in(json!([login("q")])).await;
    assert_eq!(counts().await, (401, 400), "another subject is somebody else");
    let_in(json!([login("p")])).await;
    assert_eq!(counts().await, (200, 200));
    allow(&[("https://other.example", "claviger")]);
    assert_eq!(counts().await, (401, 400));
}

#[tokio::test]
async fn tokens_of_issuers_that_nobody_named_are_refused_and_asked_nowhere() {
    let (w, _) = world().await;
    let claims = json!({"iss": ISSUER, "sub": "p", "aud": "claviger", "exp": 1, "iat": 1});
    let header = jsonwebtoken::Header::new(jsonwebtoken::Algorithm::HS256);
    let key = jsonwebtoken::EncodingKey::from_secret(b"x");
    let token = jsonwebtoken::encode(&header, &claims, &key).unwrap();
    for (kind, token, code) in [
        (ID_TOKEN, &*token, "BXNIM0446E"),
        (ID_TOKEN, "", "BXNIM0446E"),
        ("urn:ietf:params:oauth:token-type:access_token", &*token, "BXNIM0448E"),
    ] {
        let fields = [
            ("grant_type", GRANT_EXCHANGE),
            ("subject_token_type", kind),
            ("subject_token", token),
        ];
        assert_eq!(w.grant(&fields).await.is(400)["errorCode"], code);
    }
}
