//! What is on record, over the router.

use crate::http::network::Network;
use crate::listen::Peer;
use crate::testing::{Answer, World, envelope};
use axum::body::Body;
use axum::http::Request;
use claviger_domain::access::{PlatformRole, Scope, ServiceRole};
use claviger_store::iam::Grant;
use serde_json::{Value, json};

impl World {
    async fn audit(&self, token: &str, query: &str) -> Answer {
        self.ask(token, "GET", &format!("/v3/audit?{query}"), Value::Null).await
    }

    fn administrator(&self) -> String {
        self.person_with("admin", &[Grant::Platform(PlatformRole::Administrator)])
    }
}

fn actions(answer: &Answer) -> Vec<&str> {
    let events = answer["events"].as_array().unwrap();
    events.iter().map(|event| event["action"].as_str().unwrap()).collect()
}

/// One act of each kind that has something to say, and what is then on record of it.
#[tokio::test]
async fn each_act_says_on_record_what_an_auditor_asks() {
    let settings = crate::app::Settings {
        purge_after: std::time::Duration::ZERO,
        ..crate::app::Settings::default().without_waits()
    };
    let w = World::with(settings);
    let null = Value::Null;
    let mine = format!("instance={}", w.one);
    let made = json!({"name": "root", "aliases": ["al"], "expirationDate": "2027-01-18T20:00:00Z"});
    let made = w.create(made).await.is(201);
    let (id, first) = (made.id(), made.key()["keyVersion"]["id"].clone());
    let wrapped = w.call("POST /keys/al/actions/wrap", &null).await.is(200);
    w.call(&format!("POST /keys/{id}/actions/rotate"), &null).await.is(204);
    let second = w.call(&format!("GET /keys/{id}/metadata"), &null).await.is(200);
    let second = second.key()["keyVersion"]["id"].clone();
    let sealed = json!({"ciphertext": wrapped["ciphertext"]});
    w.call(&format!("POST /keys/{id}/actions/rewrap"), &sealed).await.is(200);
    w.call("GET /keys", &null).await.is(200);
    w.call("POST /key_rings/other", &null).await.is(201);
    w.call(&format!("PATCH /keys/{id}"), &json!({"keyRingID": "other"})).await.is(200);
    let dual = envelope(json!({"dualAuthDelete": {"enabled": true}}));
    w.call(&format!("PUT /keys/{id}/policies"), &dual).await.is(200);
    w.call(&format!("POST /keys/{id}/actions/setKeyForDeletion"), &null).await.is(204);
    w.call(&format!("POST /keys/{id}/actions/disable"), &null).await.is(204);
    w.call("POST /keys/al/actions/wrap", &null).await.is(409);
    w.call("POST /keys/nothing/actions/wrap", &null).await.is(404);
    let second_person = w.person("second", &[(ServiceRole::Manager, Scope::Instance(w.one))]);
    w.by(&second_person, &format!("DELETE /keys/{id}"), "").await.is(204);
    let purger = w.person("purger", &[(ServiceRole::KeyPurge, Scope::Instance(w.one))]);
    w.by(&purger, &format!("DELETE /keys/{id}/purge"), "").await.is(204);

    let found = w.audit(&w.manager, &mine).await.is(200);
    let events = found["events"].as_array().unwrap();
    let one = |action: &str| {
        let mut of = events.iter().filter(|event| event["action"] == action);
        of.next_back().unwrap_or_else(|| panic!("{action}"))
    };
    let date = "2027-01-15T08:00:00Z";
    let create = one("kms.secrets.create");
    assert_eq!(create["eventTime"], date);
    assert_eq!(create["initiator"]["id"], "IBMid-manager");
    assert_eq!(create["initiator"]["name"], "manager");
    assert_eq!(create["initiator"]["credential"]["type"], "token");
    assert_eq!(create["requestData"]["requestURI"], "/api/v2/keys");
    assert_eq!(create["requestData"]["instanceID"], json!(w.one));
    assert_eq!(create["requestData"]["keyType"], "rootKey");
    let want = json!({
        "keyId": id, "keyRingId": "default", "keyState": 1, "keyVersionId": first,
        "expirationDate": "2027-01-18T20:00:00Z", "daysToKeyExpire": 3,
    });
    assert_eq!(create["responseData"], want, "the version is gone, and so is its date");
    let key_crn = create["target"]["id"].as_str().unwrap();
    assert!(key_crn.ends_with(&format!(":key:{id}")), "{key_crn}");

    let wrap = one("kms.secrets.wrap");
    assert_eq!(wrap["target"]["id"], key_crn, "not under its alias");
    assert_eq!(wrap["requestData"]["requestURI"], "/api/v2/keys/al/actions/wrap");
    let rewrap = &one("kms.secrets.rewrap")["responseData"];
    assert_eq!((&rewrap["keyVersionId"], &rewrap["rewrappedKeyVersionId"]), (&first, &second));
    assert_eq!(one("kms.secrets.rotate")["responseData"]["keyVersionId"], second);
    assert_eq!(one("kms.secrets.rotate")["severity"], "warning");
    assert_eq!(one("kms.secrets.list")["responseData"]["totalResources"], 1);
    let patch = &one("kms.secrets.patch")["requestData"];
    assert_eq!(patch["initialValue"]["keyRingId"], "default");
    assert_eq!(patch["newValue"]["keyRingId"], "other");
    let policies = &one("kms.policies.write")["requestData"];
    assert_eq!(policies["newValue"], json!({"policyDualAuthDeleteEnabled": true}));
    assert!(policies.get("initialValue").is_none(), "there was none");
    let set = &one("kms.secrets.setkeyfordeletion")["responseData"];
    let want = json!({"authID": "IBMid-manager", "authExpiration": "2027-01-22T08:00:00Z"});
    assert_eq!(set["newValue"], want);
    assert_eq!(one("kms.secrets.disable")["responseData"]["keyState"], 2);
    let delete = one("kms.secrets.delete");
    assert_eq!(delete["responseData"]["keyState"], 5);
    assert_eq!((&delete["severity"], &delete["dataEvent"]), (&json!("critical"), &json!(false)));
    let purge = &one("kms.secrets.purge")["responseData"];
    let dates = ("deletionDate", "purgeAllowedFrom", "purgeEligibleOn");
    assert_eq!((&purge[dates.0], &purge[dates.1]), (&json!(date), &json!(date)));
    assert_eq!(purge[dates.2], "2027-04-15T08:00:00Z");

    let refused: Vec<&Value> =
        events.iter().filter(|event| event["outcome"] == "failure").collect();
    assert_eq!(refused.len(), 2);
    assert_eq!(refused[0]["reason"]["reasonForFailure"], "KEY_NOT_FOUND_ERR");
    assert!(refused[0]["target"]["id"].as_str().unwrap().ends_with(":key:nothing"));
    assert_eq!(refused[1]["reason"]["reasonCode"], 409);
    assert_eq!(refused[1]["responseData"]["keyState"], 2, "as it was found");
    let text = found.body.to_string();
    assert!(!text.contains(wrapped["plaintext"].as_str().unwrap()), "no plaintext");
    assert!(!text.contains(wrapped["ciphertext"].as_str().unwrap()));
}

#[tokio::test]
async fn what_the_clock_and_policies_do_says_from_what_to_what() {
    let w = World::new();
    let key = json!({"name": "short", "expirationDate": "2027-01-15T08:00:10Z"});
    w.create(key).await.is(201);
    w.advance(10);
    crate::keys::clock::turn(&w.app).unwrap();
    let policy = |enabled: bool| {
        let mut data = json!({"enabled": enabled});
        if enabled {
            data["attributes"] = json!({"allowed_network": "private-only"});
        }
        envelope(json!({"policy_type": "allowedNetwork", "policy_data": data}))
    };
    w.call("PUT /instance/policies", &policy(true)).await.is(204);
    w.call("PUT /instance/policies", &policy(false)).await.is(204);
    let token = json!({"expiration": 300, "maxAllowedRetrievals": 3});
    w.call("POST /import_token", &token).await.is(200);
    w.call("GET /import_token", &Value::Null).await.is(200);

    let mine = format!("instance={}", w.one);
    let found = w.audit(&w.manager, &mine).await.is(200);
    let read = &found["events"][0]["responseData"];
    let want = json!({
        "maxAllowedRetrievals": 3, "remainingRetrievals": 2,
        "expirationDate": "2027-01-15T08:05:10Z",
    });
    assert_eq!(*read, want);
    let write = &found["events"][2]["requestData"];
    let before = json!({
        "policyAllowedNetworkEnabled": true, "policyAllowedNetworkAttribute": "private-only",
    });
    assert_eq!(write["initialValue"], before);
    assert_eq!(write["newValue"], json!({"policyAllowedNetworkEnabled": false}));
    let expire = &found["events"][4];
    assert_eq!(expire["action"], "kms.secrets.expire");
    assert_eq!(expire["initiator"]["id"], "system");
    assert!(expire["initiator"].get("credential").is_none());
    assert_eq!(expire["responseData"]["initialValue"]["keyState"], 1);
    assert_eq!(expire["responseData"]["newValue"]["keyState"], 3);
}

#[tokio::test]
async fn a_manager_reads_of_his_instance_and_an_administrator_everything() {
    let w = World::new();
    let admin = w.administrator();
    let on_one = w.person("on-one", &[(ServiceRole::Manager, Scope::Instance(w.one))]);
    let ring = Scope::Ring(w.one, "default".to_owned());
    let on_ring = w.person("on-ring", &[(ServiceRole::Manager, ring)]);
    let writer = w.person("writer", &[(ServiceRole::Writer, Scope::Everywhere)]);
    let (one, two) = (format!("instance={}", w.one), format!("instance={}", w.two));
    let id = w.root().await;
    w.make_root(&w.manager, w.two, "elsewhere").await;
    w.root().await;

    let own = w.audit(&on_one, &one).await.is(200);
    assert_eq!(actions(&own), ["kms.secrets.create", "kms.secrets.create"]);
    for (token, query) in
        [(&on_one, &*two), (&on_one, ""), (&on_ring, &*one), (&writer, &*one), (&writer, "")]
    {
        let refused = w.audit(token, query).await.is(401);
        assert_eq!(refused["code"], "E0001", "in the shape of its path");
    }
    let of_key = w.audit(&on_one, &format!("{one}&key={id}")).await.is(200);
    assert_eq!(of_key["events"].as_array().unwrap().len(), 1);
    let other = w.audit(&admin, &two).await.is(200);
    assert!(actions(&other).contains(&"kms.secrets.create"));
    let all = w.audit(&admin, "").await.is(200);
    assert_eq!(actions(&all).iter().filter(|a| **a == "kms.secrets.create").count(), 3);
    // Reading is on record, and so is that it was refused.
    let reads = w.audit(&admin, "action=kms.audit.*").await.is(200);
    let refused = |event: &&Value| event["reason"]["reasonCode"] == 401;
    assert_eq!(reads["events"].as_array().unwrap().iter().filter(refused).count(), 5);
    for bad in ["limit=0", "limit=1001", "from=now", "before=x", "key=x", "instance=x"] {
        w.audit(&admin, bad).await.is(400);
    }
    w.audit(&admin, &format!("key={id}")).await.is(400);
    let nowhere = claviger_domain::id::InstanceId::random();
    w.audit(&w.manager, &format!("instance={nowhere}")).await.is(404);

    // An instance that lets nobody come from there does not show its records there.
    let policy = json!({"enabled": true, "attributes": {"allowed_ip": ["192.0.2.0/24"]}});
    let policy = envelope(json!({"policy_type": "allowedIP", "policy_data": policy}));
    w.call("PUT /instance/policies", &policy).await.is(204);
    for (address, status) in [("192.0.2.7", 200), ("203.0.113.9", 401)] {
        let mut request = Request::get(format!("/v3/audit?{one}"))
            .header("authorization", format!("Bearer {on_one}"))
            .body(Body::empty())
            .unwrap();
        request.extensions_mut().insert(Peer(address.parse().unwrap()));
        request.extensions_mut().insert(Network::Private);
        let found = w.raw(request).await.is(status);
        if status == 200 {
            let again = w.audit(&admin, &one).await.is(200);
            let by_whom = |event: &&Value| event["initiator"]["host"]["address"] == address;
            assert!(again["events"].as_array().unwrap().iter().any(|e| by_whom(&e)));
            assert!(!found["events"].as_array().unwrap().is_empty());
        }
    }
}

#[tokio::test]
async fn records_come_in_pages_newest_first() {
    let w = World::new();
    let admin = w.administrator();
    for n in 0..7 {
        w.root().await;
        if n % 2 == 0 {
            w.advance(60);
        }
    }
    let query = "action=kms.secrets.create&limit=2&from=2027-01-15T08:01:00Z";
    let (mut times, mut before) = (Vec::new(), String::new());
    for _ in 0..10 {
        let page = w.audit(&admin, &format!("{query}{before}")).await.is(200);
        let events = page["events"].as_array().unwrap();
        assert!(events.len() <= 2);
        times.extend(events.iter().map(|e| e["eventTime"].as_str().unwrap().to_owned()));
        match page["next"].as_str() {
            Some(next) => before = format!("&before={next}"),
            None => break,
        }
    }
    assert_eq!(times.len(), 6, "all but the one before that");
    assert!(times.is_sorted_by(|a, b| a >= b));
    let to = w.audit(&admin, "action=kms.secrets.create&to=2027-01-15T08:01:00Z").await.is(200);
    assert_eq!(to["events"].as_array().unwrap().len(), 1);
}
