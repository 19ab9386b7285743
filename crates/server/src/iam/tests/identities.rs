//! API keys, service IDs and users.

use super::*;

#[tokio::test]
async fn what_a_stolen_api_key_made_goes_with_it() {
    let (w, _) = world().await;
    let first = w.api_key("p", &[on(ServiceRole::Reader, Scope::Everywhere)]);
    let make = async |token: &str| {
        let made = w.ask(token, "POST", "/apikeys", json!({"name": "k"})).await.is(201);
        let id = made["metadata"]["uuid"].as_str().unwrap().to_owned();
        let token = w.log_in(made["entity"]["apiKey"].as_str().unwrap()).await;
        (id, token)
    };
    let token = w.log_in(&first).await;
    let (own, by_own) = make(&token).await;
    let (stolen, thief) = make(&by_own).await;
    let (second, by_second) = make(&thief).await;
    let (_, third) = make(&by_second).await;
    let list = w.ask(&token, "GET", "/apikeys", Value::Null).await.is(200);
    let items = list["items"].as_array().unwrap();
    let of = |id: &str| items.iter().find(|item| item["metadata"]["uuid"] == id).unwrap();
    assert_eq!(of(&second)["entity"]["createdWith"], json!(stolen));
    // One between that is gone does not hide what came of it.
    w.ask(&token, "DELETE", &format!("/apikeys/{second}"), Value::Null).await.is(204);
    w.ask(&token, "DELETE", &format!("/apikeys/{stolen}?cascade=x"), Value::Null).await.is(400);
    assert_eq!(w.lists_keys(&third).await, 200);
    let line = format!("/apikeys/{stolen}?cascade=true");
    w.ask(&token, "DELETE", &line, Value::Null).await.is(204);
    for (token, status) in [(&thief, 401), (&third, 401), (&by_own, 200), (&token, 200)] {
        assert_eq!(w.lists_keys(token).await, status);
    }
    // Without it what was made stays, as where one is exchanged for another.
    let (_, last) = make(&by_own).await;
    w.ask(&token, "DELETE", &format!("/apikeys/{own}"), Value::Null).await.is(204);
    assert_eq!(w.lists_keys(&last).await, 200);
}

#[tokio::test]
async fn a_person_manages_his_own_api_keys_and_nobody_elses() {
    let (w, admin) = world().await;
    let person = w.log_in(&w.api_key("p", &[])).await;
    let other = w.log_in(&w.api_key("q", &[])).await;
    let new = json!({"name": "laptop", "description": "mine"});
    let made = w.ask(&person, "POST", "/apikeys", new).await;
    assert_eq!(made.headers["cache-control"], "no-store");
    let made = made.is(201);
    let secret = made["entity"]["apiKey"].as_str().unwrap();
    w.login(secret).await.is(200);
    let path = format!("/apikeys/{}", made["metadata"]["uuid"].as_str().unwrap());
    let read = w.ask(&person, "GET", &path, Value::Null).await.is(200);
    assert!(read["entity"].get("apiKey").is_none(), "shown once");
    let unknown = w.ask(&other, "GET", "/apikeys/ApiKey-none", Value::Null).await;
    let foreign = w.ask(&other, "GET", &path, Value::Null).await;
    assert_eq!((unknown.status, foreign.status), (401, 401));
    let version = read["metadata"]["version"].as_str().unwrap().to_owned();
    let change = json!({"name": "desktop"});
    w.put(&person, &format!("PUT {path}"), Some("9-x"), &change).await.is(409);
    let changed = w.put(&person, &format!("PUT {path}"), Some(&version), &change).await.is(200);
    assert_eq!(changed["entity"]["name"], "desktop");
    assert_eq!(
        w.ask(&person, "GET", "/apikeys", Value::Null).await.is(200)["items"]
            .as_array()
            .unwrap()
            .len(),
        2
    );
    w.ask(&other, "GET", "/apikeys?boundTo=IBMid-p", Value::Null).await.is(401);
    w.ask(&other, "POST", "/apikeys", json!({"name": "x", "boundTo": "IBMid-p"})).await.is(401);
    w.ask(&admin, "GET", &path, Value::Null).await.is(200);
    w.ask(&admin, "GET", "/apikeys/ApiKey-none", Value::Null).await.is(404);
    w.ask(&person, "DELETE", &path, Value::Null).await.is(204);
    w.login(secret).await.is(400);
    for n in 0..19 {
        w.ask(&person, "POST", "/apikeys", json!({"name": format!("key {n}")})).await.is(201);
    }
    w.ask(&person, "POST", "/apikeys", json!({"name": "one too many"})).await.is(409);
}

#[tokio::test]
async fn service_ids_come_and_go_with_all_that_hangs_on_them() {
    let (w, admin) = world().await;
    let account =
        format!("crn:v1:bluemix:public:iam-identity::a/{0}::account:{0}", w.app.account.id);
    let new = json!({"name": "robot", "description": "d", "boundTo": account});
    let made = w.ask(&admin, "POST", "/serviceids", new).await.is(201);
    let (uuid, iam_id) = (&made["metadata"]["uuid"], &made["metadata"]["iam_id"]);
    assert_eq!(json!(format!("iam-{}", uuid.as_str().unwrap())), *iam_id);
    let list = w.ask(&admin, "GET", &format!("/serviceids?boundTo={account}"), Value::Null).await;
    assert_eq!(list.is(200)["items"][0], made.body);
    let key = json!({"name": "k", "boundTo": made["metadata"]["crn"]});
    let key = w.ask(&admin, "POST", "/apikeys", key).await.is(201);
    let robot = w.log_in(key["entity"]["apiKey"].as_str().unwrap()).await;
    w.policy(&admin, ("iam_id", iam_id.as_str().unwrap()), "Reader", json!({"serviceName": "kms"}))
        .await;
    assert_eq!(w.lists_keys(&robot).await, 200);
    // Whoever stole its key could make himself another.
    w.ask(&robot, "POST", "/apikeys", json!({"name": "more"})).await.is(401);
    let path = format!("/serviceids/{}", uuid.as_str().unwrap());
    let version = made["metadata"]["version"].as_str();
    w.put(&admin, &format!("PUT {path}"), Some("x"), &json!({"name": "n"})).await.is(409);
    let changed = w.put(&admin, &format!("PUT {path}"), version, &json!({"name": "n"})).await;
    assert_eq!(changed.is(200)["entity"]["name"], "n");
    let user = format!("/v2/accounts/{}/users/IBMid-admin", w.app.account.id);
    w.api_key("second", &[ADMINISTRATOR]);
    assert_eq!(
        w.ask(&admin, "DELETE", &user, Value::Null).await.is(409)["errors"][0]["code"],
        "USER_OWNS_SERVICES_ERR"
    );
    w.ask(&robot, "DELETE", &path, Value::Null).await.is(401);
    w.ask(&admin, "DELETE", &path, Value::Null).await.is(204);
    assert_eq!(w.lists_keys(&robot).await, 401);
    w.ask(&admin, "GET", &path, Value::Null).await.is(404);
    let policies = format!("/v1/policies?iam_id={}", iam_id.as_str().unwrap());
    assert_eq!(w.ask(&admin, "GET", &policies, Value::Null).await.is(200)["policies"], json!([]));
    w.ask(&admin, "DELETE", &user, Value::Null).await.is(204);
}

#[tokio::test]
async fn users_are_listed_shown_and_removed() {
    let (w, admin) = world().await;
    let person = w.api_key("p", &[on(ServiceRole::Reader, Scope::Everywhere)]);
    let token = w.log_in(&person).await;
    let users = format!("/v2/accounts/{}/users", w.app.account.id);
    let list = w.ask(&admin, "GET", &users, Value::Null).await.is(200);
    assert_eq!(
        (&list["total_results"], &list["resources"][2]["iam_id"]),
        (&json!(3), &json!("IBMid-p"))
    );
    w.ask(&token, "GET", &users, Value::Null).await.is(401);
    let one = format!("{users}/IBMid-p");
    assert_eq!(w.ask(&admin, "GET", &one, Value::Null).await.is(200)["state"], "ACTIVE");
    let info = w.ask(&token, "GET", "/identity/userinfo", Value::Null).await.is(200);
    assert_eq!(
        (&info["iam_id"], &info["account"]["bss"]),
        (&json!("IBMid-p"), &json!(w.app.account.id))
    );
    assert_eq!(w.lists_keys(&token).await, 200);
    w.ask(&admin, "DELETE", &one, Value::Null).await.is(204);
    assert_eq!(w.lists_keys(&token).await, 401);
    w.login(&person).await.is(400);
    w.ask(&admin, "GET", &one, Value::Null).await.is(404);
    w.ask(&admin, "GET", "/v2/accounts/0000/users", Value::Null).await.is(404);
}

#[tokio::test]
async fn roles_are_told_to_whoever_has_a_token() {
    let (w, _) = world().await;
    let person = w.log_in(&w.api_key("p", &[])).await;
    let roles = w.ask(&person, "GET", "/v2/roles?service_name=kms", Value::Null).await.is(200);
    assert_eq!(roles["service_roles"].as_array().unwrap().len(), 6);
    assert_eq!(roles["system_roles"].as_array().unwrap().len(), 4);
    let old = w.ask(&person, "GET", "/acms/v1/roles?serviceName=kms&sourceServiceName=containers-kubernetes&policyType=authorization", Value::Null).await.is(200);
    assert_eq!(old["supportedRoles"].as_array().unwrap().len(), 1);
    assert_eq!(w.ask("x", "GET", "/v2/roles", Value::Null).await.status, 401);
}
