//! What is changed about access is on record: what it was, and what it is.

use super::*;
use claviger_domain::audit::{Change, Facts, Record};

/// The last success of this name, and what it changed.
#[track_caller]
fn last(w: &World, action: &str) -> (Record, Facts, Facts) {
    let found = w.acts().into_iter().rev().find(|act| act.action == action && act.succeeded());
    let record = found.unwrap_or_else(|| panic!("no {action}"));
    let Some(Change::Access { from, to }) = record.data.change.clone() else {
        panic!("{action} does not say what it changed")
    };
    (record, from, to)
}

#[tokio::test]
async fn who_was_given_what_can_be_said_though_it_was_taken_back() {
    let (w, admin) = world().await;
    w.api_key("p", &[]);
    let (p, account) = (("iam_id", "IBMid-p"), w.app.account.id.clone());
    let body = policy(p, &["Manager"], json!({"serviceName": "kms"}), &account);
    let made = w.ask(&admin, "POST", "/v1/policies", body).await.is(201);
    let id = made["id"].as_str().unwrap().to_owned();
    let tag = made.headers["etag"].to_str().unwrap().to_owned();
    let on_one = json!({"serviceName": "kms", "serviceInstance": w.one});
    let path = format!("/v1/policies/{id}");
    let narrower = policy(p, &["Reader"], on_one, &account);
    w.put(&admin, &format!("PUT {path}"), Some(&tag), &narrower).await.is(200);
    w.ask(&admin, "DELETE", &path, Value::Null).await.is(204);

    let wide = [("subject", "IBMid-p"), ("roles", "Manager"), ("on", "keys")];
    let narrow = [
        ("subject", "IBMid-p".to_owned()),
        ("roles", "Reader".to_owned()),
        ("on", format!("keys of instance {}", w.one)),
    ];
    let facts = |all: &[(&str, String)]| -> Facts {
        all.iter().map(|(name, text)| ((*name).to_owned(), text.clone())).collect()
    };
    let wide = facts(&wide.map(|(name, text)| (name, text.to_owned())));
    let narrow = facts(&narrow);
    for (verb, from, to) in [
        ("create", Facts::new(), wide.clone()),
        ("update", wide, narrow.clone()),
        ("delete", narrow, Facts::new()),
    ] {
        let (record, was, is) = last(&w, &format!("iam-am.policy.{verb}"));
        assert_eq!((was, is), (from, to), "{verb}");
        assert_eq!(record.target, format!("policy:{id}"), "{verb}");
    }
    let events = w.ask(&admin, "GET", "/v3/audit?action=iam-am.policy.delete", Value::Null).await;
    let before = &events.is(200)["events"][0]["requestData"]["initialValue"]["access"];
    assert_eq!(before["subject"], "IBMid-p");
}

#[tokio::test]
async fn whoever_only_looks_waits_for_no_writer_and_is_on_record() {
    let (w, admin) = world().await;
    let account = &w.app.account.id;
    let paths = [
        "/v1/policies".to_owned(),
        "/v2/groups".to_owned(),
        "/apikeys".to_owned(),
        "/serviceids".to_owned(),
        "/v3/trusted-issuers".to_owned(),
        "/v2/resource_instances".to_owned(),
        format!("/v2/accounts/{account}/users"),
        format!("/acms/v2/accounts/{account}/policies"),
    ];
    let (store, (held, holds)) = (w.app.store.clone(), std::sync::mpsc::channel());
    let (release, released) = std::sync::mpsc::channel::<()>();
    let writer = std::thread::spawn(move || {
        let hold = |_: &claviger_store::Tx<'_>| {
            held.send(()).unwrap();
            let _ = released.recv();
            Ok::<_, claviger_store::StoreError>(())
        };
        store.tx("t", hold).unwrap();
    });
    holds.recv().unwrap();
    let mut answers = Vec::new();
    for path in &paths {
        let asked = w.ask(&admin, "GET", path, Value::Null);
        answers.push(tokio::time::timeout(Duration::from_secs(20), asked).await.map(|a| a.status));
    }
    release.send(()).unwrap();
    writer.join().unwrap();
    for (path, answer) in paths.iter().zip(answers) {
        assert_eq!(answer.ok(), Some(200), "{path}");
    }
    assert_eq!(w.audited("iam-am.policy.list"), 2, "in either form");
}

#[tokio::test]
async fn groups_identities_and_credentials_say_what_came_and_went() {
    let (w, admin) = world().await;
    w.api_key("p", &[on(ServiceRole::Reader, Scope::Everywhere)]);
    let made = w.ask(&admin, "POST", "/v2/groups", json!({"name": "g"})).await.is(201);
    let group = made["id"].as_str().unwrap();
    assert_eq!(last(&w, "iam-groups.group.create").0.target, format!("group:{group}"));
    let members = format!("/v2/groups/{group}/members");
    let join = |who: &[&str]| {
        let one = |iam_id: &&str| json!({"iam_id": iam_id, "type": "user"});
        json!({"members": who.iter().map(one).collect::<Vec<_>>()})
    };
    w.ask(&admin, "PUT", &members, join(&["IBMid-p", "IBMid-x"])).await.is(207);
    let (record, _, to) = last(&w, "iam-groups.member.add");
    assert_eq!((&*to["members"], &*to["refused"], record.status), ("IBMid-p", "IBMid-x", 200));
    w.ask(&admin, "PUT", &members, join(&["IBMid-x"])).await.is(207);
    let refused = w.acts().into_iter().rev().find(|act| act.action == "iam-groups.member.add");
    assert_eq!(refused.unwrap().status, 404, "nobody came in");
    w.ask(&admin, "DELETE", &format!("/v2/groups/{group}?force=true"), Value::Null).await.is(204);
    let (_, from, _) = last(&w, "iam-groups.group.delete");
    assert_eq!((&*from["members"], &*from["name"]), ("IBMid-p", "g"));

    let key = w.ask(&admin, "POST", "/apikeys", json!({"name": "k", "boundTo": "IBMid-p"})).await;
    let key = key.is(201)["metadata"]["uuid"].as_str().unwrap().to_owned();
    let (_, _, to) = last(&w, "iam-identity.user-apikey.create");
    assert_eq!((&to["id"], &*to["of"]), (&key, "IBMid-p"));
    let account = &w.app.account.id;
    let user = format!("/v2/accounts/{account}/users/IBMid-p");
    w.ask(&admin, "DELETE", &user, Value::Null).await.is(204);
    let (_, from, _) = last(&w, "user-management.user.delete");
    assert!(from["api_keys"].contains(&key), "{from:?}");
    assert_eq!(from["policies"], "Reader on keys");

    let new = json!({"name": "s", "service": true, "roles": [{"role": "Writer"}]});
    w.ask(&admin, "POST", "/v3/principals", new).await.is(201);
    let (_, _, to) = last(&w, "iam-identity.serviceid-apikey.create");
    assert_eq!(to["policies"], "Writer on keys");
}
