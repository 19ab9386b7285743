//! People, service IDs, groups and policies that are there when schemathesis begins.

use super::known::text;
use crate::Outcome;
use crate::conformance::instances::Api;
use serde_json::{Value, json};

/// How many of each are changed and removed.
const SPARE: usize = 6;

/// What is there: values by names of parameters, and bodies by names of operations, since of
/// random ones hardly any names somebody who is there.
pub struct Access {
    pub usual: Value,
    pub spare: Value,
    pub bodies: Value,
}

/// Puts the values of `more` into `all`.
pub fn add(all: &mut Value, more: &Value) {
    if let (Some(all), Some(more)) = (all.as_object_mut(), more.as_object()) {
        all.extend(more.clone());
    }
}

pub async fn make(api: &Api, name: &str, instance: &str) -> Outcome<Access> {
    let account = api.get("/identity/userinfo").await?;
    let account = account["account"]["bss"].as_str().ok_or("no account")?.to_owned();
    let (mut people, mut services, mut uuids) = (Vec::new(), Vec::new(), Vec::new());
    let (mut groups, mut api_keys) = (Vec::new(), Vec::new());
    for n in 0..SPARE {
        let named = json!({ "name": format!("{name}-{n}") });
        people.push(text(&api.post("/v3/principals", None, &named).await?, "iam_id")?);
        let service = api.post("/serviceids", None, &named).await?;
        services.push(text(&service["metadata"], "iam_id")?);
        uuids.push(text(&service["metadata"], "uuid")?);
        groups.push(text(&api.post("/v2/groups", None, &named).await?, "id")?);
        let key = api.post("/apikeys", None, &named).await?;
        api_keys.push(text(&key["metadata"], "uuid")?);
    }
    let member = json!({ "members": [{ "iam_id": people[0], "type": "user" }] });
    api.put(&format!("/v2/groups/{}/members", groups[0]), &member).await?;

    // About one service ID, as a policy stays about its subject.
    let about = &services[1];
    let mut policies = Vec::new();
    for (role, target) in [
        (service_role("Reader"), json!({ "serviceName": "kms" })),
        (service_role("Writer"), json!({ "serviceName": "kms" })),
        (service_role("Reader"), json!({ "serviceName": "kms", "serviceInstance": instance })),
        (role("Viewer"), json!({ "serviceName": "kms" })),
        (role("Viewer"), json!({ "serviceName": "containers-kubernetes" })),
        (role("Editor"), json!({ "serviceName": "containers-kubernetes" })),
        (role("Operator"), json!({})),
    ] {
        let body = policy(about, &role, &target, &account);
        policies.push(text(&api.post("/v1/policies", None, &body).await?, "id")?);
    }
    let keys = api.get("/identity/keys").await?;
    let mut issuers = Vec::new();
    for n in 0..3 {
        let issuer = format!("https://{name}-{n}.example");
        api.put("/v3/trusted-issuers", &trusted(&issuer, &keys, about)).await?;
        issuers.push(issuer);
    }

    let (reader, writer) = (service_role("Reader"), service_role("KmipAdapterManager"));
    let target = json!({ "serviceName": "kms", "serviceInstance": instance });
    let new: Vec<Value> =
        [&reader, &writer].map(|role| policy(about, role, &target, &account)).into();
    let old: Vec<Value> = [&reader, &writer].map(|role| old_policy(about, role, &target)).into();
    let members: Vec<Value> = people
        .iter()
        .map(|iam_id| json!({ "members": [{ "iam_id": iam_id, "type": "user" }] }))
        .collect();
    let bodies = json!({
        "createAccessPolicy": new, "replaceAccessPolicy": new,
        "createOldAccessPolicy": old, "replaceOldAccessPolicy": old,
        "createUserPolicy": old, "replaceUserPolicy": old,
        "createServiceIdPolicy": old, "replaceServiceIdPolicy": old,
        "addAccessGroupMembers": members, "addOldAccessGroupMembers": members,
        "putTrustedIssuer": [trusted(&issuers[0], &keys, about)],
    });
    let usual = json!({
        "policy": policies[..2], "access_group": groups[..1], "iam_id": [people[0], about],
        "api_key": api_keys[..1], "service_id": [uuids[0], services[1]], "account": [account],
        "scope": [account, format!("a/{account}")], "issuer": issuers[..1], "If-Match": ["*"],
    });
    let spare = json!({
        "policy": policies[2..], "access_group": groups[1..], "iam_id": people[1..],
        "api_key": api_keys[1..], "service_id": uuids[2..], "issuer": issuers[1..],
    });
    Ok(Access { usual, spare, bodies })
}

fn role(name: &str) -> String {
    format!("crn:v1:bluemix:public:iam::::role:{name}")
}

fn service_role(name: &str) -> String {
    let service = if name == "KmipAdapterManager" { "kms" } else { "iam" };
    format!("crn:v1:bluemix:public:{service}::::serviceRole:{name}")
}

fn policy(about: &str, role: &str, target: &Value, account: &str) -> Value {
    let mut attributes = vec![json!({ "name": "accountId", "value": account })];
    for (name, value) in target.as_object().into_iter().flatten() {
        attributes.push(json!({ "name": name, "value": value }));
    }
    json!({
        "type": "access",
        "subjects": [{ "attributes": [{ "name": "iam_id", "value": about }] }],
        "roles": [{ "role_id": role }],
        "resources": [{ "attributes": attributes }],
    })
}

fn old_policy(about: &str, role: &str, target: &Value) -> Value {
    json!({
        "type": "access", "subjects": [{ "iam_id": about }], "roles": [{ "id": role }],
        "resources": [target],
    })
}

fn trusted(issuer: &str, keys: &Value, becomes: &str) -> Value {
    json!({
        "issuer": issuer, "audience": "claviger", "jwks": keys,
        "subjects": [{ "subject": "system:serviceaccount:a:b", "iam_id": becomes }],
    })
}
