//! Registrations whole, acknowledgements of events, and the old form of actions.

use super::*;

impl World {
    async fn acknowledgements(&self, key: &str) -> Answer {
        self.acknowledgements_by(&self.manager, key).await
    }

    async fn acknowledgements_by(&self, token: &str, key: &str) -> Answer {
        let path = format!("/v3/instances/{}/keys/{key}/acknowledgements", self.one);
        let request = Request::get(path).header("authorization", format!("Bearer {token}"));
        self.raw(request.body(Body::empty()).unwrap()).await
    }
}

#[tokio::test]
async fn registrations_are_replaced_changed_and_queried() {
    let w = World::with(Settings::default().without_waits());
    let null = Value::Null;
    let made = w.create(json!({"name": "named", "aliases": ["al"]})).await.is(201);
    let (id, old) = (made.id(), made.key()["keyVersion"]["id"].clone());
    let (_, crn, token) = w.cluster(&id);
    // Encoded once more than needed, and under the key's alias.
    let twice = crn.replace(':', "%253A").replace('/', "%252F");
    let once = crn.replace(':', "%3A").replace('/', "%2F");
    let path = format!("/keys/{id}/registrations/{once}");
    let body = |r: Value| envelope(r).to_string();
    let full = json!({"preventKeyDeletion": true, "description": "d", "registrationMetadata": "m"});
    let line = format!("POST /keys/al/registrations/{twice}");
    let made = w.by(&token, &line, body(full)).await.is(201);
    assert_eq!(made.media_type, "application/vnd.ibm.kms.registration+json");
    assert_eq!(made.key()["resourceCrn"], json!(crn));
    assert_eq!(made.key()["keyName"], "named");
    assert_eq!(made.key()["registrationMetadata"], "m");
    assert_eq!(made.key()["keyVersion"]["id"], old);
    let seen = w.call("GET /keys/al/registrations", &null).await.is(200);
    assert!(seen.key().get("registrationMetadata").is_none(), "for services only");

    w.call(&format!("POST /keys/{id}/actions/rotate"), &null).await.is(204);
    let changed = body(json!({"description": "e"}));
    let changed = w.by(&token, &format!("PATCH {path}"), changed).await.is(200);
    assert_eq!(changed.key()["keyVersion"]["id"], old, "a patch keeps the version");
    assert_eq!(changed.key()["registrationMetadata"], "m");
    assert!(changed.key()["lastUpdated"].is_string() && changed.key()["updatedBy"].is_string());
    w.by(&token, &format!("PUT {path}"), body(json!({}))).await.refused(400, "INVALID_FIELD_ERR");
    let put = body(json!({"preventKeyDeletion": false}));
    let replaced = w.by(&token, &format!("PUT {path}"), put).await.is(200);
    assert_eq!(replaced.key()["preventKeyDeletion"], false);
    for absent in ["description", "registrationMetadata"] {
        assert!(replaced.key().get(absent).is_none(), "{absent}");
    }
    assert_ne!(replaced.key()["keyVersion"]["id"], old, "the current version, as on creation");
    let back = body(json!({"keyVersionId": old}));
    w.by(&token, &format!("PATCH {path}"), back).await.refused(422, "KEY_VERSION_INVALID");
    for bad in
        [json!({"description": "x".repeat(241)}), json!({"registrationMetadata": "x".repeat(4097)})]
    {
        let line = format!("PATCH {path}");
        w.by(&token, &line, body(bad)).await.refused(400, "INVALID_FIELD_ERR");
    }

    let query = |of: &str, query: &str| {
        format!("GET /keys{of}/registrations?urlEncodedResourceCRNQuery={query}")
    };
    let begin: String = crn.split(':').take(8).collect::<Vec<_>>().join("%3A").replace('/', "%2F");
    let of_key = format!("/{id}");
    for (line, total) in [
        (query("", &once), 1),
        (query("", &twice), 1),
        (query("", &format!("{begin}%3A*")), 1),
        (query("", &format!("{begin}%3Aother")), 0),
        (query(&of_key, "crn%3A*"), 1),
        (query(&of_key, "crn%3Av2%3A*"), 0),
        ("GET /keys/registrations?preventKeyDeletion=true".to_owned(), 0),
        ("GET /keys/registrations?preventKeyDeletion=False&totalCount=True".to_owned(), 1),
    ] {
        for token in [&w.manager, &token] {
            let listed = w.by(token, &line, "").await.is(200);
            assert_eq!(listed.body["metadata"]["collectionTotal"], total, "{line}");
        }
    }
    for line in [query("", "crn%3A*"), query("", &format!("*{begin}")), query(&of_key, "c*n")] {
        w.call(&line, &null).await.refused(400, "INVALID_QUERY_PARAM_ERR");
    }

    // Another cluster on the same key sees nothing of this one.
    let (_, _, stranger) = w.cluster(&id);
    let listed = w.by(&stranger, &format!("GET /keys/{id}/registrations"), "").await.is(200);
    assert_eq!(listed.body["resources"], json!([]));
    w.by(&stranger, &format!("DELETE {path}"), "").await.refused(403, "RESOURCE_OWNER_ERR");

    // A suspended key lists and lets go, but takes nothing.
    w.call(&format!("POST /keys/{id}/actions/disable"), &null).await.is(204);
    let put = body(json!({"preventKeyDeletion": false}));
    w.by(&token, &format!("PUT {path}"), put).await.refused(422, "KEY_INVALID_STATE_ERR");
    w.by(&token, &format!("GET /keys/{id}/registrations"), "").await.is(200);
    w.by(&token, &format!("DELETE {path}"), "").await.is(204);
}

#[tokio::test]
async fn a_user_of_a_key_acknowledges_its_events() {
    let w = World::with(Settings::default().without_waits());
    let null = Value::Null;
    let id = w.root().await;
    let (_, crn, token) = w.cluster(&id);
    w.call(&format!("POST /keys/{id}/actions/rotate"), &null).await.is(204);
    let event = w.app.store.read("t", |tx| events::after(tx, 0, 1)).unwrap().remove(0);
    let said = json!({
        "eventId": event.id.to_string(),
        "adopterKeyState": "DEK_ENABLED",
        "timestamp": "2027-01-15T08:00:01Z",
        "keyStateData": {"rewrappedKeyVersion": event.version},
    });
    let body = |said: &Value| envelope(said.clone()).to_string();
    let with = |name: &str, value: Value| {
        let mut said = said.clone();
        said[name] = value;
        body(&said)
    };
    for _ in 0..2 {
        w.by(&token, "POST /event_ack", body(&said)).await.is(204);
    }
    let seen = w.acknowledgements(&id).await.is(200);
    let want = json!({
        "crn": crn, "acknowledged": true, "event": event.id, "state": "DEK_ENABLED",
        "rewrapped": event.version, "at": START,
    });
    assert_eq!(seen.body["services"], json!([want]));
    w.by(&token, "POST /event_ack", with("eventId", json!(event.id))).await.is(204);

    w.by(&w.manager, "POST /event_ack", body(&said)).await.refused(403, "SERVICE_ONLY_ERR");
    let nobody = w.person("nobody", &[]);
    w.by(&nobody, "POST /event_ack", body(&said)).await.is(401);
    let elsewhere = w.root().await;
    let (_, _, stranger) = w.cluster(&elsewhere);
    w.by(&stranger, "POST /event_ack", body(&said)).await.is(401);
    w.by(&token, "POST /event_ack", with("eventId", json!("9999"))).await.is(401);
    for (name, value) in [
        ("eventId", json!("seven")),
        ("adopterKeyState", json!("")),
        ("timestamp", null.clone()),
        ("timestamp", json!("now")),
        ("keyStateData", null.clone()),
        ("keyStateData", json!({"rewrappedKeyVersion": "7"})),
    ] {
        w.by(&token, "POST /event_ack", with(name, value)).await.refused(400, "INVALID_FIELD_ERR");
    }
    let unknown = json!({"rewrappedKeyVersion": KeyId::random()});
    w.by(&token, "POST /event_ack", with("keyStateData", unknown))
        .await
        .refused(422, "KEY_VERSION_INVALID");
    w.by(&token, "POST /event_ack", "").await.refused(400, "BAD_BODY_ERR");
    assert_eq!(w.audited("kms.secrets-event.ack"), 15);
}

#[tokio::test]
async fn acknowledgements_are_seen_as_far_as_the_key_is() {
    let w = World::with(Settings::default().without_waits());
    let null = Value::Null;
    let id = w.root().await;
    let service = w.service("backup", Some("IBMid-manager"), ServiceRole::Reader);
    let idle = w.service("idle", Some("IBMid-manager"), ServiceRole::Reader);
    let crn = "crn:v1:bluemix:public:cloud-object-storage:global:a/1:2:bucket:b";
    let line =
        format!("POST /keys/{id}/registrations/{}", crn.replace(':', "%3A").replace('/', "%2F"));
    let body = envelope(json!({"preventKeyDeletion": false})).to_string();
    w.by(&service, &line, body).await.is(201);
    let before = w.acknowledgements(&id).await.is(200);
    let services = &before.body["services"];
    assert_eq!((&services[0]["crn"], &services[0]["acknowledged"]), (&json!(crn), &json!(true)));

    for (action, state) in [("disable", "DEK_DISABLED"), ("enable", "DEK_GONE")] {
        w.call(&format!("POST /keys/{id}/actions/{action}"), &null).await.is(204);
        let waiting = w.acknowledgements(&id).await.is(200);
        assert_eq!(waiting.body["services"][0]["acknowledged"], false, "{action}");
        let said = envelope(json!({
            "eventId": waiting.body["event"], "adopterKeyState": state,
            "timestamp": "2027-01-15T08:00:01Z",
        }));
        let refused = w.by(&idle, "POST /event_ack", said.to_string()).await;
        refused.refused(403, "RESOURCE_OWNER_ERR");
        w.by(&service, "POST /event_ack", said.to_string()).await.is(204);
        let seen = w.acknowledgements(&id).await.is(200);
        assert_eq!(seen.body["services"].as_array().unwrap().len(), 1, "the newest of each");
        assert_eq!(seen.body["services"][0]["state"], state);
        assert_eq!(seen.body["services"][0]["acknowledged"], true);
    }

    // What it answered goes with its registration.
    w.by(&service, &line.replace("POST", "DELETE"), "").await.is(204);
    let seen = w.acknowledgements(&id).await.is(200);
    assert_eq!(seen.body["services"], json!([]));

    w.acknowledgements(&KeyId::random().to_string()).await.is(404);
    let nobody = w.person("nobody", &[]);
    w.acknowledgements_by(&nobody, &id).await.is(401);
    // Policies of networks bind this path too.
    let policy = json!({
        "metadata": {"collectionType": "application/vnd.ibm.kms.policy+json", "collectionTotal": 1},
        "resources": [{"policy_type": "allowedIP", "policy_data": {
            "enabled": true, "attributes": {"allowed_ip": ["192.0.2.0/24"]},
        }}],
    });
    w.call("PUT /instance/policies", &policy).await.is(204);
    let barred = w.acknowledgements(&id).await.is(401);
    assert_eq!(barred.body["code"], "E0001", "in the shape of its path");
    assert!(w.audited("kms.secrets-event.list") > 0);
}

#[tokio::test]
async fn the_old_form_knows_every_action_of_its_time() {
    let w = World::with(Settings::default().without_waits());
    let null = Value::Null;
    let key = w.create(json!({"name": "old", "payload": STANDARD.encode([3; 32])})).await.is(201);
    let id = key.id();
    let ask = |action: &str| format!("POST /keys/{id}?action={action}");
    let wrapped = w.call(&ask("wrap"), &json!({"plaintext": "AAAA"})).await.is(200);
    assert_eq!(wrapped.media_type, "application/vnd.ibm.kms.key_action+json");
    let sealed = json!({"ciphertext": wrapped.body["ciphertext"]});
    w.call(&ask("unwrap"), &sealed).await.is(200);
    w.call(&ask("rewrap"), &sealed).await.is(200);
    let material = json!({"payload": STANDARD.encode([4; 32])});
    w.call(&ask("rotate"), &material).await.is(204);
    let request = Request::post(format!("/api/v2/keys/{id}?action=rotate"))
        .header("authorization", format!("Bearer {}", w.manager))
        .header("bluemix-instance", w.one.to_string())
        .header("prefer", "return=representation");
    let rotated = w.raw(request.body(Body::from(material.to_string())).unwrap()).await.is(200);
    assert_eq!(rotated.key()["id"], json!(id));
    w.call(&ask("disable"), &null).await.is(204);
    w.call(&ask("enable"), &null).await.is(204);
    let line = format!("DELETE /keys/{id}");
    w.call(&line, &null).await.is(204);
    // With the whole key, as clients once had to.
    let whole = envelope(json!({"name": "old", "extractable": false,
                                "payload": STANDARD.encode([3; 32])}));
    let restored = w.call(&ask("restore"), &whole).await.is(201);
    assert_eq!(restored.key()["state"], 1);
    w.call(&line, &null).await.is(204);
    w.call(&ask("restore"), &null).await.is(201);
    w.call(&format!("POST /keys/{id}"), &null).await.refused(400, "INVALID_QUERY_PARAM_ERR");
}

#[tokio::test]
async fn a_changed_handle_does_not_unwrap() {
    let w = World::new();
    let id = w.root().await;
    let line = format!("POST /keys/{id}/actions/wrap");
    let wrapped = w.call(&line, &json!({"plaintext": "AAAA"})).await.is(200);
    let text = STANDARD.decode(wrapped.body["ciphertext"].as_str().unwrap()).unwrap();
    let mut inner: Value = serde_json::from_slice(&text).unwrap();
    inner["handle"] = json!(KeyId::random());
    let ask = json!({"ciphertext": STANDARD.encode(inner.to_string())});
    let line = format!("POST /keys/{id}/actions/unwrap");
    w.call(&line, &ask).await.refused(422, "UNPROCESSABLE_CIPHERTEXT_ERR");
}
