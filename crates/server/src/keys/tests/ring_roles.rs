//! Roles on a key ring, and on one key: where they count and where not.

use super::rings::within;
use super::*;

/// Rings `a` and `b`, a key in each, and one in `default`.
struct Rings {
    w: World,
    a: String,
    b: String,
    default: String,
}

impl Rings {
    async fn new() -> Rings {
        let w = World::with(Settings::default().without_waits());
        let mut keys = Vec::new();
        for ring in ["a_", "b_", "default"] {
            if ring != "default" {
                w.call(&format!("POST /key_rings/{ring}"), &Value::Null).await.is(201);
            }
            let new = envelope(json!({"name": "root", "aliases": [format!("in-{ring}")]}));
            keys.push(within(&w, &w.manager, ring, "POST /keys", new).await.is(201).id());
        }
        let [a, b, default] = keys.try_into().unwrap();
        Rings { w, a, b, default }
    }

    fn on_a(&self, name: &str, role: ServiceRole) -> String {
        self.w.person(name, &[(role, Scope::Ring(self.w.one, "a_".to_owned()))])
    }
}

#[tokio::test]
async fn a_role_on_a_ring_counts_for_its_keys_and_for_no_others() {
    let rings = Rings::new().await;
    let (w, a, b, default) = (&rings.w, &rings.a, &rings.b, &rings.default);
    let null = || Value::Null.to_string();
    let manager = rings.on_a("manager-a", ServiceRole::Manager);
    for name in [a.as_str(), "in-a_"] {
        for line in ["GET /keys/{k}", "GET /keys/{k}/metadata", "POST /keys/{k}/actions/wrap"] {
            w.by(&manager, &line.replace("{k}", name), null()).await.is(200);
        }
    }
    // Elsewhere it is refused as a stranger is, whether or not the key is there.
    let nowhere = KeyId::random().to_string();
    for name in [b, default, &nowhere, "in-b_", "in-default", "in-nothing"] {
        for line in [
            "GET /keys/{k}",
            "GET /keys/{k}/metadata",
            "GET /keys/{k}/versions",
            "GET /keys/{k}/policies",
            "GET /keys/{k}/registrations",
            "POST /keys/{k}/actions/wrap",
            "POST /keys/{k}/actions/rotate",
            "POST /keys/{k}/actions/disable",
            "POST /keys/{k}?action=unwrap",
            "POST /keys/{k}/aliases/another",
            "DELETE /keys/{k}/aliases/in-b_",
            "DELETE /keys/{k}",
        ] {
            let refused = w.by(&manager, &line.replace("{k}", name), null()).await.is(401);
            assert!(refused.key().get("reasons").is_none(), "{line} {name}");
        }
    }
    // In its own ring it learns what is there and what is not.
    let line = format!("GET /keys/{b}/metadata");
    within(w, &manager, "a_", &line, Value::Null).await.refused(404, "KEY_NOT_FOUND_ERR");
    within(w, &manager, "b_", &line, Value::Null).await.is(401);
    // What is of the whole instance is not of the ring.
    for line in [
        "POST /key_rings/third",
        "DELETE /key_rings/b_",
        "GET /instance/policies",
        "GET /import_token",
        "POST /import_token",
        "GET /kmip_adapters",
    ] {
        w.by(&manager, line, null()).await.is(401);
    }
}

#[tokio::test]
async fn lists_and_counts_show_what_is_in_the_rings_of_the_caller() {
    let rings = Rings::new().await;
    let (w, a) = (&rings.w, &rings.a);
    let on_ring = rings.on_a("on-ring", ServiceRole::Reader);
    let root = RootKey { instance: w.one, key: rings.b.parse().unwrap() };
    let on_key = w.person("on-key", &[(ServiceRole::Manager, Scope::Key(root))]);
    let elsewhere = Scope::Ring(w.two, "a_".to_owned());
    let elsewhere = w.person("elsewhere", &[(ServiceRole::Manager, elsewhere)]);
    let both = Scope::Ring(w.one, "a_".to_owned());
    let both =
        w.person("both", &[(ServiceRole::Reader, both), (ServiceRole::Reader, Scope::Key(root))]);
    for (token, keys) in [(&on_ring, 1), (&on_key, 0), (&both, 1)] {
        let listed = w.by(token, "GET /keys", "").await.is(200);
        assert_eq!(listed.body["metadata"]["collectionTotal"], keys);
        if keys > 0 {
            assert_eq!(listed.id(), *a);
        }
        let head = w.by(token, "HEAD /keys", "").await.is(200);
        assert_eq!(head.headers["key-total"], keys.to_string().as_str());
        let found = w.by(token, "GET /keys?search=root", "").await.is(200);
        assert_eq!(found.body["metadata"]["collectionTotal"], keys);
    }
    // A role on a key lets it be used by whoever knows its name.
    w.by(&on_key, "GET /keys/in-b_/metadata", "").await.is(200);
    w.by(&on_key, &format!("POST /keys/{}/actions/wrap", rings.b), "").await.is(200);
    let listed = within(w, &on_ring, "b_", "GET /keys", Value::Null).await.is(200);
    assert_eq!(listed.body["resources"], json!([]));
    for line in ["GET /keys", "HEAD /keys", "GET /key_rings", "GET /keys/registrations"] {
        w.by(&elsewhere, line, "").await.is(401);
    }

    let listed = w.by(&on_ring, "GET /key_rings?totalCount=true", "").await.is(200);
    assert_eq!(listed.body["resources"].as_array().unwrap().len(), 1);
    assert_eq!(
        (&listed.key()["id"], &listed.body["metadata"]["totalCount"]),
        (&json!("a_"), &json!(1))
    );
    w.by(&on_key, "GET /key_rings", "").await.is(401);

    // Registrations follow the ring of their key.
    for id in [a, &rings.b] {
        let (_, crn, cluster) = w.cluster(id);
        let crn = crn.replace(':', "%3A").replace('/', "%2F");
        let line = format!("POST /keys/{id}/registrations/{crn}");
        let body = envelope(json!({"preventKeyDeletion": false})).to_string();
        w.by(&cluster, &line, body).await.is(201);
    }
    for (token, of) in [(&on_ring, vec![a]), (&on_key, vec![&rings.b]), (&both, vec![a, &rings.b])]
    {
        let listed = w.by(token, "GET /keys/registrations", "").await.is(200);
        let resources = listed.body["resources"].as_array().unwrap();
        let mut keys: Vec<&str> = resources.iter().map(|r| r["keyId"].as_str().unwrap()).collect();
        let mut of: Vec<&str> = of.into_iter().map(String::as_str).collect();
        keys.sort_unstable();
        of.sort_unstable();
        assert_eq!(keys, of);
    }
}

#[tokio::test]
async fn keys_are_made_in_the_ring_and_moved_between_rings_that_the_caller_has() {
    let rings = Rings::new().await;
    let (w, a) = (&rings.w, &rings.a);
    let new = || envelope(json!({"name": "new"}));
    let writer = rings.on_a("writer", ServiceRole::Writer);
    let made = within(w, &writer, "a_", "POST /keys", new()).await.is(201);
    assert_eq!(made.key()["keyRingID"], "a_");
    let import = envelope(json!({"name": "new", "payload": STANDARD.encode([7; 32])}));
    within(w, &writer, "a_", "POST /keys", import.clone()).await.is(201);
    for ring in ["b_", "default", "nowhere"] {
        within(w, &writer, ring, "POST /keys", new()).await.is(401);
        within(w, &writer, ring, "POST /keys", import.clone()).await.is(401);
    }
    w.by(&writer, "POST /keys", new().to_string()).await.is(401);
    let overrides = "POST /keys_with_policy_overrides";
    within(w, &writer, "a_", overrides, new()).await.is(401);
    let manager = rings.on_a("manager-a", ServiceRole::Manager);
    within(w, &manager, "a_", overrides, new()).await.is(201);
    within(w, &manager, "b_", overrides, new()).await.is(401);
    w.by(&writer, &format!("POST /keys/{a}/aliases/second"), "").await.is(201);
    w.by(&writer, "POST /keys/second/aliases/third", "").await.is(201);

    // Out of the ring only with the same right on the other one.
    let to = |ring: &str| json!({"keyRingID": ring}).to_string();
    let line = format!("PATCH /keys/{a}");
    for ring in ["b_", "default", "nowhere"] {
        w.by(&manager, &line, to(ring)).await.is(401);
    }
    w.by(&manager, &line, to("a_")).await.is(200);
    let ring = |ring: &str| Scope::Ring(w.one, ring.to_owned());
    let two = [(ServiceRole::Manager, ring("a_")), (ServiceRole::Writer, ring("b_"))];
    let half = w.person("half", &two);
    w.by(&half, &line, to("b_")).await.is(401);
    let two = [(ServiceRole::Manager, ring("a_")), (ServiceRole::Manager, ring("b_"))];
    let both = w.person("both", &two);
    w.by(&both, &line, to("b_")).await.is(200);
    // The right stays with the ring, not with the key.
    w.by(&manager, &format!("GET /keys/{a}/metadata"), "").await.is(401);
    w.by(&both, &format!("GET /keys/{a}/metadata"), "").await.is(200);
    let root = RootKey { instance: w.one, key: a.parse().unwrap() };
    let on_key = w.person("on-key", &[(ServiceRole::Manager, Scope::Key(root))]);
    w.by(&on_key, &line, to("a_")).await.is(401);
    w.by(&on_key, &format!("GET /keys/{a}/metadata"), "").await.is(200);
}

#[tokio::test]
async fn a_ring_takes_the_roles_on_it_along() {
    let w = World::with(Settings::default().without_waits());
    w.call("POST /key_rings/old", &Value::Null).await.is(201);
    let id = within(&w, &w.manager, "old", "POST /keys", envelope(json!({"name": "root"})));
    let id = id.await.is(201).id();
    let owner = w.person("owner", &[(ServiceRole::Manager, Scope::Ring(w.one, "old".to_owned()))]);
    w.by(&owner, &format!("DELETE /keys/{id}"), "").await.is(204);
    // Its deleted key would go to a ring on which the owner may nothing.
    w.by(&owner, "DELETE /key_rings/old?force=true", "").await.is(401);
    w.call("DELETE /key_rings/old?force=true", &Value::Null).await.is(204);
    w.call("POST /key_rings/old", &Value::Null).await.is(201);
    w.by(&owner, "GET /keys", "").await.is(401);
    let other = w.person("other", &[(ServiceRole::Manager, Scope::Ring(w.one, "old".to_owned()))]);
    w.by(&other, "DELETE /key_rings/old", "").await.is(204);
}

#[tokio::test]
async fn two_persons_for_a_deletion_may_have_their_roles_on_the_ring() {
    let rings = Rings::new().await;
    let (w, a) = (&rings.w, &rings.a);
    let policy = envelope(json!({"dualAuthDelete": {"enabled": true}}));
    w.call(&format!("PUT /keys/{a}/policies"), &policy).await.is(200);
    let first = rings.on_a("first", ServiceRole::Writer);
    let second = rings.on_a("second", ServiceRole::Manager);
    w.by(&first, &format!("POST /keys/{a}/actions/setKeyForDeletion"), "").await.is(204);
    // Moved away, the first of them has no say any longer.
    w.call(&format!("PATCH /keys/{a}"), &json!({"keyRingID": "b_"})).await.is(200);
    w.call(&format!("DELETE /keys/{a}"), &Value::Null).await.refused(409, "AUTHORIZATIONS_NOT_MET");
    w.call(&format!("PATCH /keys/{a}"), &json!({"keyRingID": "a_"})).await.is(200);
    w.by(&second, &format!("DELETE /keys/{a}"), "").await.is(204);
}
