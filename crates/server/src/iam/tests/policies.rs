//! Policies and groups: their shapes, their versions, and that they count at once.

use super::*;

#[tokio::test]
async fn a_policy_counts_with_the_next_request_and_no_longer_than_it_is_there() {
    let (w, admin) = world().await;
    let person = w.log_in(&w.api_key("p", &[])).await;
    assert_eq!(w.lists_keys(&person).await, 401);
    let kms = json!({"serviceName": "kms", "serviceInstance": w.one});
    let id = w.policy(&admin, ("iam_id", "IBMid-p"), "Reader", kms.clone()).await;
    assert_eq!(w.lists_keys(&person).await, 200);
    let path = format!("/v1/policies/{id}");
    let read = w.ask(&admin, "GET", &path, Value::Null).await;
    let tag = read.headers["etag"].to_str().unwrap().to_owned();
    let mut body = read.is(200).body;
    assert_eq!(body["resources"][0]["attributes"][2]["value"], json!(w.one));
    assert_eq!(body["created_by_id"], "IBMid-admin");

    // What was read goes back as it is, but for the role.
    body["roles"][0]["role_id"] = json!("crn:v1:bluemix:public:iam::::serviceRole:Manager");
    let line = format!("PUT {path}");
    w.put(&admin, &line, None, &body).await.is(400);
    w.put(&admin, &line, Some("\"7-x\""), &body).await.is(412);
    let changed = w.put(&admin, &line, Some(&tag), &body).await;
    let next = changed.headers["etag"].to_str().unwrap().to_owned();
    changed.is(200);
    assert_ne!(next, tag);
    w.put(&admin, &line, Some(&tag), &body).await.is(412);
    w.make_root(&person, w.one, "made").await;
    w.put(
        &admin,
        &line,
        Some(&next),
        &policy(("iam_id", "IBMid-admin"), &["Reader"], kms.clone(), &w.app.account.id),
    )
    .await
    .is(400);

    let same = policy(("iam_id", "IBMid-p"), &["Manager"], kms, &w.app.account.id);
    assert_eq!(
        w.ask(&admin, "POST", "/v1/policies", same).await.is(409)["errors"][0]["code"],
        "policy_conflict_error"
    );
    w.ask(&person, "DELETE", &path, Value::Null).await.is(401);
    w.ask(&admin, "DELETE", &path, Value::Null).await.is(204);
    assert_eq!(w.lists_keys(&person).await, 401);
    w.ask(&admin, "DELETE", &path, Value::Null).await.is(404);
    w.ask(&admin, "GET", &path, Value::Null).await.is(404);
    for (action, times) in
        [("iam-am.policy.create", 2), ("iam-am.policy.update", 5), ("iam-am.policy.delete", 3)]
    {
        assert_eq!(w.audited(action), times, "{action}");
    }
}

#[tokio::test]
async fn lists_are_chosen_by_what_clients_ask() {
    let (w, admin) = world().await;
    w.api_key("p", &[]);
    let kms = json!({"serviceName": "kms"});
    w.policy(&admin, ("iam_id", "IBMid-p"), "Reader", kms.clone()).await;
    let account = &w.app.account.id;
    let count = async |query: &str| {
        let list = w.ask(&admin, "GET", &format!("/v1/policies?{query}"), Value::Null).await;
        list.is(200).body["policies"].as_array().unwrap().len()
    };
    assert_eq!(count("").await, 4, "two of the administrator, one of the manager");
    assert_eq!(count(&format!("account_id={account}&iam_id=IBMid-p&type=access")).await, 1);
    assert_eq!(count("iam_id=IBMid-p&type=authorization").await, 0);
    assert_eq!(count("account_id=else").await, 0);
    assert_eq!(count("access_group_id=AccessGroupId-x").await, 0);
}

#[tokio::test]
async fn what_is_not_understood_is_refused_since_it_would_be_wider() {
    let (w, admin) = world().await;
    w.api_key("p", &[]);
    let account = w.app.account.id.clone();
    let (one, key) = (json!(w.one), json!(claviger_domain::id::KeyId::random()));
    let try_out = async |subject: (&str, &str), roles: &[&str], on: Value| {
        let body = policy(subject, roles, on, &account);
        w.ask(&admin, "POST", "/v1/policies", body).await.status
    };
    let p = ("iam_id", "IBMid-p");
    for on in [
        json!({"serviceName": "cloud-object-storage"}),
        json!({"serviceName": "kms", "region": "local"}),
        json!({"serviceName": "kms", "resourceGroupId": "x"}),
        json!({"serviceName": "kms", "serviceInstance": "x"}),
        json!({"serviceName": "kms", "serviceInstance": w.app.account.resource_group}),
        json!({"serviceName": "kms", "serviceInstance": one, "resourceType": "key"}),
        json!({"serviceName": "kms", "serviceInstance": one, "resource": key}),
        json!({"serviceName": "kms", "serviceInstance": one, "resourceType": "alias", "resource": "x"}),
        json!({"serviceName": "kms", "resourceType": "key", "resource": key}),
        json!({"serviceInstance": one}),
        json!({"serviceName": "containers-kubernetes"}),
        json!({"serviceType": "platform_service"}),
    ] {
        assert_eq!(try_out(p, &["Reader"], on.clone()).await, 400, "{on}");
    }
    assert_eq!(try_out(p, &[], json!({})).await, 400);
    assert_eq!(try_out(p, &["Reader", "Reader"], json!({})).await, 400);
    assert_eq!(try_out(p, &["Owner"], json!({})).await, 400);
    assert_eq!(try_out(("iam_id", "IBMid-nobody"), &["Reader"], json!({})).await, 400);
    assert_eq!(try_out(("access_group_id", "AccessGroupId-x"), &["Reader"], json!({})).await, 400);
    let on_key = |key: &Value| json!({"serviceName": "kms", "serviceInstance": one, "resourceType": "key", "resource": key});
    assert_eq!(try_out(p, &["Reader"], on_key(&key)).await, 400, "there is no such key");
    let on_key = on_key(&json!(w.make_root(&admin, w.one, "root").await));
    assert_eq!(try_out(p, &["Viewer"], on_key.clone()).await, 400, "a key has no platform role");
    assert_eq!(try_out(p, &["Reader"], on_key).await, 201);
    let ring = |ring: &str| json!({"serviceName": "kms", "serviceInstance": one, "resourceType": "keyRing", "resource": ring});
    assert_eq!(try_out(p, &["Reader"], ring("payments")).await, 400, "whatever will be in it");
    assert_eq!(try_out(p, &["Reader"], ring("default")).await, 201);
    assert_eq!(try_out(p, &["Viewer", "Manager"], json!({"serviceType": "service"})).await, 201);
    let mut foreign = policy(p, &["Reader"], json!({}), "0000");
    assert_eq!(w.ask(&admin, "POST", "/v1/policies", foreign.clone()).await.status, 400);
    foreign["resources"] = json!([{"attributes": [{"name": "serviceName", "value": "k*", "operator": "stringMatch"}]}]);
    assert_eq!(w.ask(&admin, "POST", "/v1/policies", foreign).await.status, 400);
}

#[tokio::test]
async fn policies_are_bounded_whoever_makes_them() {
    let (w, admin) = world().await;
    w.api_key("p", &[]);
    crate::iam::fill(&w.app);
    let account = &w.app.account.id;
    let one = policy(("iam_id", "IBMid-p"), &["Reader"], json!({"serviceName": "kms"}), account);
    w.ask(&admin, "POST", "/v1/policies", one).await.is(409);
    let with = json!({"name": "n", "roles": [{"role": "Reader"}]});
    w.ask(&admin, "POST", "/v3/principals", with).await.is(409);
    w.ask(&admin, "POST", "/v3/principals", json!({"name": "n"})).await.is(201);
}

#[tokio::test]
async fn all_services_are_not_access_itself() {
    let (w, admin) = world().await;
    let account = w.app.account.id.clone();
    let person = w.log_in(&w.api_key("p", &[])).await;
    let p = ("iam_id", "IBMid-p");
    let services = json!({"serviceType": "service"});
    let body = policy(p, &["Administrator", "Manager"], services, &account);
    let made = w.ask(&admin, "POST", "/v1/policies", body).await.is(201);
    let shown = made["resources"][0]["attributes"].as_array().unwrap();
    assert!(shown.iter().any(|a| a["name"] == "serviceType" && a["value"] == "service"));
    assert_eq!(w.lists_keys(&person).await, 200);
    w.ask(&person, "GET", "/v2/resource_instances", Value::Null).await.is(200);
    w.ask(&person, "GET", "/v1/clusters", Value::Null).await.is(200);
    for line in ["GET /v1/policies", "GET /v2/groups", "GET /v3/audit", "GET /serviceids"] {
        let (method, path) = line.split_once(' ').unwrap();
        assert_eq!(w.ask(&person, method, path, Value::Null).await.status, 401, "{line}");
    }
    let other = json!({"name": "k", "boundTo": "IBMid-admin"});
    w.ask(&person, "POST", "/apikeys", other).await.is(401);
    // The whole account is never what is meant by nothing.
    let mut nothing = policy(p, &["Administrator"], json!({}), &account);
    w.ask(&admin, "POST", "/v1/policies", nothing.clone()).await.is(201);
    nothing["resources"] = json!([{"attributes": []}]);
    w.ask(&admin, "POST", "/v1/policies", nothing.clone()).await.is(400);
    let role = json!({"id": nothing["roles"][0]["role_id"]});
    let old = json!({"roles": [role], "subjects": [{"iam_id": "IBMid-p"}], "resources": [{}]});
    w.ask(&admin, "POST", &format!("/acms/v2/accounts/{account}/policies"), old).await.is(400);
}

#[tokio::test]
async fn nothing_that_narrows_a_policy_is_passed_over() {
    let (w, admin) = world().await;
    w.api_key("p", &[]);
    let account = w.app.account.id.clone();
    let old = format!("/acms/v2/accounts/{account}/policies");
    let whole = policy(("iam_id", "IBMid-p"), &["Reader"], json!({"serviceName": "kms"}), &account);
    let mut tags = whole.clone();
    tags["resources"][0]["tags"] =
        json!([{"name": "env", "value": "test", "operator": "stringEquals"}]);
    let mut attribute = whole.clone();
    attribute["resources"][0]["attributes"][0]["not"] = json!(true);
    let mut times = whole.clone();
    times["pattern"] = json!("time-based-conditions:weekly:all-day");
    let in_old = |on: Value| {
        let role = json!({"id": whole["roles"][0]["role_id"]});
        json!({"roles": [role], "subjects": [{"iam_id": "IBMid-p"}], "resources": [on]})
    };
    let kms = json!({"serviceName": "kms"});
    let mut control = in_old(kms.clone());
    control["control"] = json!({});
    for (path, body) in [
        ("/v1/policies", tags),
        ("/v1/policies", attribute),
        ("/v1/policies", times),
        (&*old, control),
        (&*old, in_old(json!({"serviceName": "kms", "serviceInstance": ""}))),
        (&*old, in_old(json!({"serviceName": "", "serviceInstance": "", "accountId": account}))),
        (&*old, in_old(json!({"serviceName": "kms", "resourceType": "", "resource": ""}))),
    ] {
        let status = w.ask(&admin, "POST", path, body.clone()).await.status;
        assert_eq!(status, 400, "{path} {body}");
    }
    w.ask(&admin, "POST", &old, in_old(kms)).await.is(201);
}

#[tokio::test]
async fn groups_give_their_roles_to_whoever_is_in_them() {
    let (w, admin) = world().await;
    let person = w.log_in(&w.api_key("p", &[])).await;
    let new = json!({"name": "readers", "description": "who may look"});
    let made = w.ask(&admin, "POST", "/v2/groups", new.clone()).await.is(201);
    let group = made["id"].as_str().unwrap().to_owned();
    w.ask(&admin, "POST", "/v2/groups", new).await.is(409);
    w.policy(&admin, ("access_group_id", &group), "Reader", json!({"serviceName": "kms"})).await;
    assert_eq!(w.lists_keys(&person).await, 401);
    let members = format!("/v2/groups/{group}/members");
    let join = json!({"members": [
        {"iam_id": "IBMid-p", "type": "user"}, {"iam_id": "IBMid-nobody", "type": "user"},
    ]});
    let added = w.ask(&admin, "PUT", &members, join).await.is(207);
    assert_eq!(added["members"][0]["status_code"], 200);
    assert_eq!(added["members"][1]["status_code"], 404);
    assert_eq!(w.lists_keys(&person).await, 200);
    let listed = w.ask(&admin, "GET", &members, Value::Null).await.is(200);
    assert_eq!(
        (&listed["members"][0]["iam_id"], &listed["total_count"]),
        (&json!("IBMid-p"), &json!(1))
    );
    let mine = w.ask(&admin, "GET", "/v2/groups?iam_id=IBMid-p", Value::Null).await.is(200);
    assert_eq!(mine["groups"][0]["id"], json!(group));

    let path = format!("/v2/groups/{group}");
    let tag = w.ask(&admin, "GET", &path, Value::Null).await.headers["etag"].clone();
    let change = json!({"name": "viewers"});
    w.put(&admin, &format!("PATCH {path}"), Some("1-x"), &change).await.is(409);
    let changed = w.put(&admin, &format!("PATCH {path}"), tag.to_str().ok(), &change).await.is(200);
    assert_eq!(
        (&changed["name"], &changed["description"]),
        (&json!("viewers"), &json!("who may look"))
    );

    w.ask(&admin, "DELETE", &path, Value::Null).await.is(409);
    w.ask(&admin, "DELETE", &format!("{members}/IBMid-p"), Value::Null).await.is(204);
    assert_eq!(w.lists_keys(&person).await, 401);
    w.ask(&admin, "DELETE", &format!("{members}/IBMid-p"), Value::Null).await.is(404);
    let join = json!({"members": [{"id": "IBMid-p", "type": "user"}]});
    let older = format!("/v1/groups/{group}/members");
    assert_eq!(w.ask(&admin, "PUT", &older, join).await.is(207)["members"][0]["ok"], true);
    assert_eq!(w.lists_keys(&person).await, 200);
    w.ask(&admin, "DELETE", &format!("{path}?force=true"), Value::Null).await.is(204);
    assert_eq!(w.lists_keys(&person).await, 401, "its policies went with it");
    assert_eq!(w.ask(&person, "GET", "/v2/groups", Value::Null).await.status, 401);
}

#[tokio::test]
async fn pages_of_groups_follow_each_other() {
    let (w, admin) = world().await;
    for n in 0..5 {
        let new = json!({"name": format!("group-{n}")});
        w.ask(&admin, "POST", "/v2/groups", new).await.is(201);
    }
    let (mut path, mut names) = ("/v2/groups?limit=2&account_id=".to_owned(), Vec::new());
    path += &w.app.account.id;
    for _ in 0..9 {
        let page = w.ask(&admin, "GET", &path, Value::Null).await.is(200);
        names.extend(page["groups"].as_array().unwrap().iter().map(|g| g["name"].clone()));
        let Some(next) = page["next"]["href"].as_str() else { break };
        path = next.to_owned();
    }
    assert_eq!(json!(names), json!(["group-0", "group-1", "group-2", "group-3", "group-4"]));
}

#[tokio::test]
async fn the_older_paths_show_the_same_policies() {
    let (w, admin) = world().await;
    w.api_key("p", &[]);
    let account = &w.app.account.id;
    let scope = format!("/acms/v1/scopes/a%2F{account}/users/IBMid-p/policies");
    let body = json!({
        "roles": [{"id": "crn:v1:bluemix:public:iam::::serviceRole:Writer"}],
        "resources": [{"serviceName": "kms", "serviceInstance": w.one, "accountId": account}],
    });
    let made = w.ask(&admin, "POST", &scope, body.clone()).await;
    let tag = made.headers["etag"].to_str().unwrap().to_owned();
    let id = made.is(201)["id"].as_str().unwrap().to_owned();
    let seen = w.ask(&admin, "GET", &format!("/v1/policies/{id}"), Value::Null).await.is(200);
    assert_eq!(seen["roles"][0]["display_name"], "Writer");
    let one = format!("{scope}/{id}");
    assert_eq!(
        w.ask(&admin, "GET", &one, Value::Null).await.is(200)["resources"][0]["serviceName"],
        "kms"
    );
    w.put(&admin, &format!("PUT {one}"), Some(&tag), &body).await.is(200);
    let other = format!("/acms/v1/scopes/a%2F{account}/users/IBMid-admin/policies/{id}");
    w.ask(&admin, "GET", &other, Value::Null).await.is(404);
    let listed = w.ask(&admin, "GET", &scope, Value::Null).await.is(200);
    assert_eq!(listed["policies"].as_array().unwrap().len(), 1);
    w.ask(&admin, "DELETE", &one, Value::Null).await.is(204);

    let v2 = format!("/acms/v2/accounts/{account}/policies");
    let cluster = claviger_domain::id::ClusterId::random();
    let authorization = json!({
        "type": "authorization",
        "roles": [{"id": "crn:v1:bluemix:public:iam::::serviceRole:Reader"}],
        "subjects": [{"serviceName": "containers-kubernetes", "serviceInstance": cluster}],
        "resources": [{"serviceName": "kms", "serviceInstance": w.one}],
    });
    let made = w.ask(&admin, "POST", &v2, authorization.clone()).await.is(201);
    let id = made["id"].as_str().unwrap();
    let listed = w.ask(&admin, "GET", &format!("{v2}?type=authorization"), Value::Null).await;
    assert_eq!(listed.is(200)["policies"][0]["subjects"][0]["serviceInstance"], json!(cluster));
    w.ask(&admin, "DELETE", &format!("/acms/v1/policies/{id}?scope=a/{account}"), Value::Null)
        .await
        .is(204);
    let mut wide = authorization;
    wide["roles"][0]["id"] = json!("crn:v1:bluemix:public:iam::::serviceRole:Manager");
    w.ask(&admin, "POST", &v2, wide).await.is(400);
    w.ask(&admin, "GET", "/acms/v2/accounts/0000/policies", Value::Null).await.is(404);
}

#[tokio::test]
async fn the_last_administrator_stays() {
    let (w, admin) = world().await;
    let list = w.ask(&admin, "GET", "/v1/policies?iam_id=IBMid-admin", Value::Null).await.is(200);
    let all = list["policies"].as_array().unwrap().clone();
    let administers = |policy: &&Value| policy["roles"][0]["display_name"] == "Administrator";
    let id = all.iter().find(administers).unwrap()["id"].as_str().unwrap().to_owned();
    let account = &w.app.account.id;
    let keys = w.ask(&admin, "GET", "/apikeys", Value::Null).await.is(200);
    let key = keys["items"][0]["metadata"]["uuid"].as_str().unwrap().to_owned();
    let ways = [
        format!("/v1/policies/{id}"),
        format!("/v2/accounts/{account}/users/IBMid-admin"),
        format!("/apikeys/{key}"),
    ];
    for path in &ways {
        w.ask(&admin, "DELETE", path, Value::Null).await.is(409);
    }
    w.api_key("second", &[ADMINISTRATOR]);
    w.ask(&admin, "DELETE", &ways[0], Value::Null).await.is(204);
    w.ask(&admin, "GET", &ways[0], Value::Null).await.is(401);
}

#[tokio::test]
async fn platform_roles_may_be_on_one_instance() {
    let (w, admin) = world().await;
    let person = w.log_in(&w.api_key("p", &[])).await;
    let list = "/v2/resource_instances";
    w.ask(&person, "GET", list, Value::Null).await.is(401);
    let on = json!({"serviceName": "kms", "serviceInstance": w.one});
    w.policy(&admin, ("iam_id", "IBMid-p"), "Editor", on).await;
    let seen = w.ask(&person, "GET", list, Value::Null).await.is(200);
    assert_eq!((&seen["rows_count"], &seen["resources"][0]["guid"]), (&json!(1), &json!(w.one)));
    w.ask(&person, "GET", &format!("{list}/{}", w.one), Value::Null).await.is(200);
    w.ask(&person, "POST", list, json!({"name": "another"})).await.is(401);
    w.ask(&person, "DELETE", &format!("{list}/{}", w.two), Value::Null).await.is(401);
    w.ask(&person, "GET", "/v1/policies", Value::Null).await.is(401);
    w.ask(&person, "DELETE", &format!("{list}/{}", w.one), Value::Null).await.is(204);
    w.ask(&person, "GET", list, Value::Null).await.is(401);
}
