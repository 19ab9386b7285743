//! The token endpoint, and how long what it gives counts.

use super::*;
use claviger_wire::iam::{GRANT_CR_TOKEN, GRANT_REFRESH};
use jsonwebtoken::jwk::{Jwk, JwkSet};
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation};
use rcgen::KeyPair;

#[tokio::test]
async fn a_refresh_token_is_good_for_a_day_and_as_long_as_its_api_key() {
    let (w, _) = world().await;
    let person = w.api_key("p", &[on(ServiceRole::Reader, Scope::Everywhere)]);
    let first = w.login(&person).await.is(200);
    let refresh = |token: &Answer| {
        let token = token["refresh_token"].as_str().unwrap().to_owned();
        let w = &w;
        async move { w.grant(&[("grant_type", GRANT_REFRESH), ("refresh_token", &token)]).await }
    };
    w.clock.advance(hours(23));
    assert_eq!(w.lists_keys(first["access_token"].as_str().unwrap()).await, 401, "an hour");
    let second = refresh(&first).await.is(200);
    assert_eq!(w.lists_keys(second["access_token"].as_str().unwrap()).await, 200);
    w.clock.advance(hours(2));
    for over in [&first, &second] {
        // The code on which clients log in anew.
        assert_eq!(refresh(over).await.is(400)["errorCode"], "BXNIM0407E", "never prolonged");
    }
    let third = w.login(&person).await.is(200);
    let admin = w.log_in(&w.api_key("second", &[ADMINISTRATOR])).await;
    let keys = w.ask(&admin, "GET", "/apikeys?boundTo=IBMid-p", Value::Null).await.is(200);
    let id = keys["items"][0]["metadata"]["uuid"].as_str().unwrap();
    let token = third["access_token"].as_str().unwrap();
    assert_eq!(w.lists_keys(token).await, 200);
    w.ask(&admin, "DELETE", &format!("/apikeys/{id}"), Value::Null).await.is(204);
    assert_eq!(w.lists_keys(token).await, 401, "its key is gone, and the token was known");
    refresh(&third).await.is(400);
    w.login(&person).await.is(400);
    for bad in ["", "clr_x.y", "not_supported"] {
        let fields = [("grant_type", GRANT_REFRESH), ("refresh_token", bad)];
        assert_eq!(w.grant(&fields).await.is(400)["errorCode"], "BXNIM0407E");
    }
}

/// A flood of refusals is a few records, and locks nobody out.
#[tokio::test]
async fn failed_logins_are_limited_by_source_and_then_counted() {
    let (w, _) = world().await;
    let person = w.api_key("p", &[]);
    let mut answers = Vec::new();
    for _ in 0..25 {
        let answer = w.login("clv_wrong").await;
        answers.push((answer.status, answer.headers.contains_key("retry-after")));
    }
    let (first, rest) = answers.split_at(20);
    assert!(first.iter().all(|answer| *answer == (400, false)), "{answers:?}");
    assert!(rest.iter().all(|answer| *answer == (429, true)), "{answers:?}");
    let good = w.login(&person).await.is(200);
    assert_eq!(w.lists_keys("none").await, 400);
    assert_eq!(w.lists_keys("none").await, 400);
    let _ = good;

    w.clock.advance(std::time::Duration::from_secs(3));
    w.settle().await;
    // Counts are put on record without that anybody waits.
    let counted = |acts: &[claviger_domain::audit::Record]| {
        acts.iter().filter(|act| act.data.count.is_some()).count()
    };
    let mut acts = w.acts();
    for _ in 0..1000 {
        if counted(&acts) >= 2 {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        acts = w.acts();
    }
    let of = |action: &str, status: u16| {
        let found = acts.iter().filter(|act| act.action == action && act.status == status);
        found.map(|act| act.data.count).collect::<Vec<_>>()
    };
    assert_eq!(of("iam-identity.user-apikey.login", 400), [None; 20]);
    assert_eq!(of("iam-identity.user-apikey.login", 429), [Some(5)]);
    assert_eq!(of("iam-identity.token.verify", 401), [Some(2)]);
    // One is forgiven every three seconds.
    assert_eq!(w.login("clv_wrong").await.status, 400);
    assert_eq!(w.login("clv_wrong").await.status, 429);
}

#[tokio::test]
async fn credentials_in_a_query_are_on_no_record() {
    let (w, _) = world().await;
    let person = w.api_key("p", &[]);
    for path in ["/identity/token", "/oidc/token"] {
        let line = format!("{path}?apikey={person}&refresh_token={person}&cr_token={person}");
        w.raw(Request::post(line).body(Body::empty()).unwrap()).await.is(400);
    }
    let acts = w.acts();
    let refused = acts.iter().filter(|act| act.status == 400);
    let uris: Vec<&str> = refused.map(|act| act.data.uri.as_str()).collect();
    assert_eq!(uris, ["/identity/token", "/oidc/token"]);
    for file in w.files() {
        assert!(!file.windows(person.len()).any(|bytes| bytes == person.as_bytes()));
    }
}

#[tokio::test]
async fn other_grants_are_refused() {
    let (w, _) = world().await;
    for grant in [
        "",
        "password",
        "urn:ibm:params:oauth:grant-type:passcode",
        "urn:ibm:params:oauth:grant-type:assume",
        "urn:ibm:params:oauth:grant-type:delegated-refresh-token",
    ] {
        let refused = w.grant(&[("grant_type", grant), ("apikey", "x")]).await.is(400);
        assert_eq!(refused["errorCode"], "BXNIM0106E", "{grant}");
        assert!(refused["context"]["requestId"].is_string());
    }
}

/// What a verifier of ours does: the token's key out of the public set.
async fn verified(w: &World, token: &str) -> bool {
    let request = Request::get("/identity/keys").body(Body::empty()).unwrap();
    let set: JwkSet = serde_json::from_value(w.raw(request).await.is(200).body).unwrap();
    let kid = jsonwebtoken::decode_header(token).unwrap().kid.unwrap();
    let Some(jwk) = set.find(&kid) else { return false };
    let mut validation = Validation::new(Algorithm::ES256);
    validation.validate_exp = false;
    let key = DecodingKey::from_jwk(jwk).unwrap();
    jsonwebtoken::decode::<Value>(token, &key, &validation).is_ok()
}

#[tokio::test]
async fn public_keys_verify_tokens_also_after_another_key_signs() {
    let (w, admin) = world().await;
    let person = w.api_key("p", &[on(ServiceRole::Reader, Scope::Everywhere)]);
    let old = w.log_in(&person).await;
    assert!(verified(&w, &old).await);
    w.ask(&old, "POST", "/v3/signing-keys/rotate", Value::Null).await.is(401);
    let rotated = w.ask(&admin, "POST", "/v3/signing-keys/rotate", Value::Null).await.is(200);
    let new = w.log_in(&person).await;
    assert_eq!(json!(jsonwebtoken::decode_header(&new).unwrap().kid), rotated["kid"]);
    for token in [&old, &new] {
        assert!(verified(&w, token).await);
        assert_eq!(w.lists_keys(token).await, 200);
    }
    assert_eq!(w.audited("iam-identity.signing-key.rotate"), 2, "one was refused");
    w.ask(&admin, "POST", "/v3/signing-keys/rotate?now=perhaps", Value::Null).await.is(400);
    w.ask(&admin, "POST", "/v3/signing-keys/rotate?now=true", Value::Null).await.is(200);
    for token in [&old, &new, &admin] {
        assert!(!verified(&w, token).await);
        assert_eq!(w.lists_keys(token).await, 401, "known, and verified by a key that ended");
    }
    let again = w.log_in(&person).await;
    assert!(verified(&w, &again).await);
}

#[tokio::test]
async fn a_rotation_is_taken_up_though_nobody_waits_for_its_answer() {
    let (w, admin) = world().await;
    let request = Request::post("/v3/signing-keys/rotate?now=true")
        .header("authorization", format!("Bearer {admin}"))
        .body(Body::empty())
        .unwrap();
    let before = w.app.tokens.generation();
    {
        // As when a client goes away: the handler is dropped where it waits.
        let mut asked = std::pin::pin!(w.raw(request));
        while w.audited("iam-identity.signing-key.rotate") == 0 {
            let _ = futures_util::poll!(&mut asked);
            tokio::task::yield_now().await;
        }
    }
    for _ in 0..1000 {
        if w.app.tokens.generation() != before {
            break;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_ne!(w.app.tokens.generation(), before);
    assert_eq!(w.lists_keys(&admin).await, 401);
}

const ISSUER: &str = "https://kubernetes.default.svc.cluster.local";
const SUBJECT: &str = "system:serviceaccount:apps:backup";

/// A cluster that signs tokens for its service accounts.
struct Issuer {
    sign: EncodingKey,
    algorithm: Algorithm,
    jwk: Value,
}

impl Issuer {
    fn new(algorithm: Algorithm, kid: &str) -> Issuer {
        let (sign, jwk) = if algorithm == Algorithm::RS256 {
            let size = rcgen::RsaKeySize::_2048;
            let pair = KeyPair::generate_rsa_for(&rcgen::PKCS_RSA_SHA256, size).unwrap();
            // PKCS#1 is the end of PKCS#8, after 26 octets (RFC 5208, section 5).
            let sign = EncodingKey::from_rsa_der(&pair.serialize_der()[26..]);
            (sign.clone(), Jwk::from_encoding_key(&sign, algorithm).unwrap())
        } else {
            let pair = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
            let sign = EncodingKey::from_ec_der(&pair.serialize_der());
            (sign.clone(), Jwk::from_encoding_key(&sign, algorithm).unwrap())
        };
        let mut jwk = serde_json::to_value(jwk).unwrap();
        jwk["kid"] = json!(kid);
        Issuer { sign, algorithm, jwk }
    }

    fn token(&self, w: &World, change: impl Fn(&mut Value)) -> String {
        let now = w.app.clock.now().0 / 1000;
        let mut claims = json!({
            "iss": ISSUER, "sub": SUBJECT, "aud": ["claviger"], "exp": now + 600, "nbf": now,
        });
        change(&mut claims);
        let mut header = Header::new(self.algorithm);
        header.kid = self.jwk["kid"].as_str().map(str::to_owned);
        jsonwebtoken::encode(&header, &claims, &self.sign).unwrap()
    }
}

async fn come_in(w: &World, token: &str, profile: &str) -> Answer {
    let fields = [("grant_type", GRANT_CR_TOKEN), ("cr_token", token), ("profile_name", profile)];
    w.grant(&fields).await
}

#[tokio::test]
async fn a_pod_of_a_trusted_cluster_becomes_the_service_id_that_it_was_given() {
    let (w, admin) = world().await;
    let (es, rs) = (Issuer::new(Algorithm::ES256, "e"), Issuer::new(Algorithm::RS256, "r"));
    let stranger = Issuer::new(Algorithm::ES256, "e");
    let new = json!({"name": "backup", "boundTo": ""});
    let service = w.ask(&admin, "POST", "/serviceids/", new).await.is(201);
    let iam_id = service["metadata"]["iam_id"].as_str().unwrap().to_owned();
    w.policy(&admin, ("iam_id", &iam_id), "Reader", json!({"serviceName": "kms"})).await;
    let trust = |iam_id: &str, keys: Value| {
        json!({"issuer": ISSUER, "audience": "claviger", "jwks": {"keys": keys},
               "subjects": [{"subject": SUBJECT, "iam_id": iam_id}]})
    };
    assert_eq!(come_in(&w, &es.token(&w, |_| ()), "").await.status, 400, "not trusted yet");
    let path = "/v3/trusted-issuers";
    for (why, bad) in [
        ("a person", trust("IBMid-admin", json!([es.jwk]))),
        ("no key", trust(&iam_id, json!([]))),
        ("no name", trust(&iam_id, json!([{"kty": "EC"}]))),
        ("a secret", trust(&iam_id, json!([{"kty": "oct", "k": "AAAA", "kid": "s"}]))),
        ("a private key", {
            let mut private = es.jwk.clone();
            private["d"] = json!("AAAA");
            trust(&iam_id, json!([private]))
        }),
        ("twice", trust(&iam_id, json!([es.jwk, es.jwk]))),
    ] {
        assert_eq!(w.ask(&admin, "PUT", path, bad).await.status, 400, "{why}");
    }
    w.ask(&admin, "PUT", path, trust(&iam_id, json!([es.jwk, rs.jwk]))).await.is(200);

    for issuer in [&es, &rs] {
        for profile in ["", "backup", &iam_id, service["metadata"]["crn"].as_str().unwrap()] {
            let answer = come_in(&w, &issuer.token(&w, |_| ()), profile).await.is(200);
            assert_eq!(answer["refresh_token"], "not_supported");
            assert_eq!(w.lists_keys(answer["access_token"].as_str().unwrap()).await, 200);
        }
    }
    let now = w.app.clock.now().0 / 1000;
    type Change<'c> = Box<dyn Fn(&mut Value) + 'c>;
    let set = |name: &'static str, value: Value| -> Change<'_> {
        Box::new(move |claims| claims[name] = value.clone())
    };
    let mut same: Vec<Value> = Vec::new();
    for (why, token, profile) in [
        ("another issuer", es.token(&w, set("iss", json!("https://else"))), ""),
        ("another subject", es.token(&w, set("sub", json!("system:serviceaccount:apps:web"))), ""),
        ("no subject", es.token(&w, set("sub", json!(""))), ""),
        ("another audience", es.token(&w, set("aud", json!(["api"]))), ""),
        ("over", es.token(&w, set("exp", json!(now - 60))), ""),
        ("not begun", es.token(&w, set("nbf", json!(now + 60))), ""),
        ("without an end in sight", es.token(&w, set("exp", json!(now + 1_000_000))), ""),
        ("signed by another key of the same name", stranger.token(&w, |_| ()), ""),
        ("another profile", es.token(&w, |_| ()), "another"),
        ("rubbish", "a.b.c".to_owned(), ""),
        ("too long", "x".repeat(9000), ""),
    ] {
        let mut refused = come_in(&w, &token, profile).await.is(400).body;
        refused["context"] = Value::Null;
        same.push(refused);
        assert_eq!(same[0], same[same.len() - 1], "{why}: one answer for all");
    }
    let token = come_in(&w, &es.token(&w, |_| ()), "").await.is(200);
    let token = token["access_token"].as_str().unwrap();
    assert_eq!(w.lists_keys(token).await, 200);
    // No longer than the pod's own: that had ten minutes.
    w.clock.advance(Duration::from_secs(500));
    assert_eq!(w.lists_keys(token).await, 200);
    w.clock.advance(Duration::from_secs(110));
    assert_eq!(w.lists_keys(token).await, 401);

    // What another key of the issuer signed, or was meant for another audience, ends with that.
    let by_key = async |issuer: &Issuer| {
        let answer = come_in(&w, &issuer.token(&w, |_| ()), "").await.is(200);
        answer["access_token"].as_str().unwrap().to_owned()
    };
    let (by_es, by_rs) = (by_key(&es).await, by_key(&rs).await);
    w.ask(&admin, "PUT", path, trust(&iam_id, json!([rs.jwk]))).await.is(200);
    assert_eq!(w.lists_keys(&by_es).await, 401, "its key is trusted no longer");
    assert_eq!(w.lists_keys(&by_rs).await, 200);
    let mut another = trust(&iam_id, json!([rs.jwk]));
    another["audience"] = json!("another");
    w.ask(&admin, "PUT", path, another).await.is(200);
    assert_eq!(w.lists_keys(&by_rs).await, 401);
    w.ask(&admin, "PUT", path, trust(&iam_id, json!([es.jwk]))).await.is(200);
    let token = &by_key(&es).await;
    assert_eq!(w.lists_keys(token).await, 200);
    let listed = w.ask(&admin, "GET", path, Value::Null).await.is(200);
    assert_eq!(listed["issuers"][0]["subjects"][0]["iam_id"], json!(iam_id));
    let gone = format!("{path}/{}", ISSUER.replace("//", "%2F%2F"));
    w.ask(&admin, "DELETE", &gone, Value::Null).await.is(204);
    assert_eq!(w.lists_keys(token).await, 401, "its issuer is trusted no longer");
}
