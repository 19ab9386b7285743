//! Who may do what, and what is put on record.

use super::*;

#[tokio::test]
async fn roles_count_for_their_instance_only_and_strangers_learn_nothing() {
    let w = World::new();
    let id = w.root().await;
    let reader = w.person("reader", &[(ServiceRole::Reader, Scope::Instance(w.one))]);
    let elsewhere = w.person("elsewhere", &[(ServiceRole::Manager, Scope::Instance(w.two))]);
    let nobody = w.person("nobody", &[]);
    w.by(&reader, &format!("POST /keys/{id}/actions/wrap"), "").await.is(200);
    for line in [
        "POST /keys".to_owned(),
        format!("POST /keys/{id}/actions/rotate"),
        format!("POST /keys/{id}/actions/disable"),
        format!("DELETE /keys/{id}"),
    ] {
        let refused =
            w.by(&reader, &line, envelope(json!({"name": "xx"})).to_string()).await.is(401);
        assert!(refused.key().get("reasons").is_none());
    }
    for token in [&elsewhere, &nobody] {
        let (known, unknown) = (format!("GET /keys/{id}/metadata"), "GET /keys/nope/metadata");
        let (known, unknown) = (w.by(token, &known, "").await, w.by(token, unknown, "").await);
        assert_eq!((known.status, &known.body), (401, &unknown.body), "the same for both");
    }
    w.by(&reader, "GET /keys/nope/metadata", "").await.refused(404, "KEY_NOT_FOUND_ERR");
    w.by("rubbish", "GET /keys", "").await.refused(400, "BEARER_SUB_EXTRACTION_ERR");
    let request = Request::get("/api/v2/keys").header("bluemix-instance", w.one.to_string());
    w.raw(request.body(Body::empty()).unwrap()).await.is(401);
    let asked = |instance: &str| {
        let request = Request::get("/api/v2/keys")
            .header("authorization", format!("Bearer {}", w.manager))
            .header("bluemix-instance", instance);
        request.body(Body::empty()).unwrap()
    };
    w.raw(asked("claviger-1")).await.is(400);
    w.raw(asked(&InstanceId::random().to_string())).await.refused(404, "INSTANCE_NOT_FOUND_ERR");
    w.call("GET /nothing", &Value::Null).await.refused(404, "PATH_NOT_FOUND_ERR");
    w.call("PUT /keys", &Value::Null).await.refused(405, "METHOD_NOT_ALLOWED_ERR");
}

#[tokio::test]
async fn who_may_list_nothing_is_told_so_and_not_that_there_is_nothing() {
    let w = World::new();
    w.root().await;
    let one = Scope::Instance(w.one);
    let ring = Scope::Ring(w.one, "other".into());
    for (name, role, scope, status) in [
        ("purger", ServiceRole::KeyPurge, one.clone(), 401),
        ("reader", ServiceRole::Reader, one, 200),
        ("of a ring", ServiceRole::Reader, ring, 200),
    ] {
        let token = w.person(name, &[(role, scope)]);
        w.by(&token, "GET /keys", "").await.is(status);
        w.by(&token, "HEAD /keys", "").await.is(status);
    }
}

#[tokio::test]
async fn tokens_are_given_for_api_keys_and_end() {
    let w = World::exactly(crate::app::Settings::default());
    let bootstrap = w.app.blocking(|app| crate::first::bootstrap(app).unwrap().unwrap()).await;
    let ask = |path: &str, form: String| {
        let request = Request::post(path).header("authorization", "Basic Yng6Yng=");
        request.body(Body::from(form)).unwrap()
    };
    let grant = "grant_type=urn%3Aibm%3Aparams%3Aoauth%3Agrant-type%3Aapikey";
    for path in ["/identity/token", "/oidc/token"] {
        let form = format!("{grant}&response_type=cloud_iam&apikey={}", bootstrap.api_key);
        let answer = w.raw(ask(path, form)).await.is(200);
        assert_eq!(answer.media_type, "application/json");
        assert_eq!(answer.body["expires_in"], 3600);
        assert_eq!(answer.body["expiration"], START.0 / 1000 + 3600);
        let token = answer.body["access_token"].as_str().unwrap();
        w.by(token, "GET /keys", "").await.is(200);
        if path == "/oidc/token" {
            w.advance(3700);
            w.by(token, "GET /keys", "").await.is(401);
        }
    }
    let wrong = w.raw(ask("/identity/token", format!("{grant}&apikey=x"))).await.is(400);
    assert_eq!(wrong.body["errorCode"], "BXNIM0415E");
    let wrong = w.raw(ask("/identity/token", "grant_type=password".into())).await.is(400);
    assert!(wrong.body["context"]["requestId"].is_string());
    let node = format!("grant_type={}", claviger_wire::iam::GRANT_NODE);
    w.raw(ask("/identity/token", node)).await.is(401);
    w.app.blocking(|app| crate::first::delivered(app).unwrap()).await;
    assert!(w.app.blocking(|app| crate::first::bootstrap(app).unwrap()).await.is_none());
}

#[tokio::test]
async fn every_act_is_on_record_whether_it_was_done_or_refused() {
    let w = World::new();
    let id = w.root().await;
    w.call(&format!("POST /keys/{id}/actions/wrap"), &Value::Null).await.is(200);
    w.call(&format!("POST /keys/{id}/actions/unwrap"), &Value::Null).await.is(400);
    w.call(&format!("POST /keys/{id}/actions/disable"), &Value::Null).await.is(204);
    let acts = w.acts();
    let short: Vec<_> =
        acts.iter().map(|act| (&*act.action, act.succeeded(), act.status)).collect();
    let want = [
        ("kms.secrets.create", true, 200),
        ("kms.secrets.disable", true, 200),
        // What changes nothing lies in the audit log's segments.
        ("kms.secrets.wrap", true, 200),
        ("kms.secrets.unwrap", false, 400),
    ];
    assert_eq!(short, want);
    assert!(acts[2].target.ends_with(&format!(":key:{id}")), "{}", acts[2].target);
}

#[tokio::test]
async fn a_key_that_is_named_like_a_ring_is_on_record_as_a_key() {
    let w = World::new();
    w.call("GET /keys/key-ring:payments/metadata", &Value::Null).await.is(404);
    let acts = w.acts();
    let act = acts.iter().find(|act| act.action == "kms.secrets-metadata.read").unwrap();
    assert!(act.target.ends_with(":key:key-ring:payments"), "{}", act.target);
}
