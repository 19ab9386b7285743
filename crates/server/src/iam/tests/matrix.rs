//! Every operation against every role, on its own and a foreign instance, with the key named by
//! id, by alias and within a ring, for roles on an instance, on a ring and on a key alone: what
//! the router answers is held against one table.

use super::*;
use crate::testing::envelope;
use claviger_domain::access::KeyOperation;
use claviger_domain::id::KeyId;
use claviger_store::events;
use claviger_store::iam::Principal;

/// The least scope that a role must have.
#[derive(Clone, Copy, PartialEq, PartialOrd)]
enum Needs {
    /// A role on the key alone will do.
    Key,
    /// One on the key's ring will do.
    Ring,
    /// It must be on the instance.
    Instance,
}

/// Roles: Reader, ReaderPlus, Writer, Manager, KeyPurge, KmipAdapterManager. A new operation
/// without a row fails the test, as does one without a request.
const TABLE: &[(KeyOperation, &str, Needs)] = &[
    // A key on which alone a role is stays out of lists.
    (KeyOperation::List, "yyyyny", Needs::Ring),
    (KeyOperation::ReadMetadata, "yyyynn", Needs::Key),
    (KeyOperation::ReadPayload, "nyyynn", Needs::Key),
    (KeyOperation::Wrap, "yyyynn", Needs::Key),
    (KeyOperation::Unwrap, "yyyynn", Needs::Key),
    (KeyOperation::Rewrap, "yyyynn", Needs::Key),
    (KeyOperation::Create, "nnyynn", Needs::Ring),
    (KeyOperation::Import, "nnyynn", Needs::Ring),
    (KeyOperation::Rotate, "nnyynn", Needs::Key),
    (KeyOperation::Disable, "nnnynn", Needs::Key),
    (KeyOperation::Enable, "nnnynn", Needs::Key),
    (KeyOperation::Delete, "nnnynn", Needs::Key),
    (KeyOperation::Restore, "nnnynn", Needs::Key),
    (KeyOperation::Purge, "nnnnyn", Needs::Key),
    (KeyOperation::ListRegistrations, "yyyynn", Needs::Key),
    (KeyOperation::WriteRegistration, "yyyynn", Needs::Key),
    (KeyOperation::AcknowledgeEvent, "yyyynn", Needs::Key),
    // It moves into a ring, too.
    (KeyOperation::PatchKey, "nnnynn", Needs::Ring),
    (KeyOperation::SetForDeletion, "nnyynn", Needs::Key),
    (KeyOperation::UnsetForDeletion, "nnyynn", Needs::Key),
    (KeyOperation::Sync, "nnyynn", Needs::Key),
    (KeyOperation::CreateAlias, "nnyynn", Needs::Key),
    (KeyOperation::DeleteAlias, "nnnynn", Needs::Key),
    (KeyOperation::ListRings, "yyyyny", Needs::Ring),
    (KeyOperation::CreateRing, "nnyynn", Needs::Instance),
    (KeyOperation::DeleteRing, "nnnynn", Needs::Ring),
    (KeyOperation::CreateWithPolicies, "nnnynn", Needs::Ring),
    (KeyOperation::ReadPolicies, "nnnynn", Needs::Key),
    (KeyOperation::WritePolicies, "nnnynn", Needs::Key),
    (KeyOperation::ReadInstancePolicies, "nnnynn", Needs::Instance),
    (KeyOperation::WriteInstancePolicies, "nnnynn", Needs::Instance),
    (KeyOperation::ReadAllowedIp, "nnnynn", Needs::Instance),
    (KeyOperation::CreateImportToken, "nnyynn", Needs::Instance),
    (KeyOperation::ReadImportToken, "nnyynn", Needs::Instance),
    (KeyOperation::ManageKmip, "nnnyny", Needs::Instance),
    (KeyOperation::ReadAudit, "nnnynn", Needs::Instance),
];

/// The ring that the key is in.
const RING: &str = "own-ring";

/// How an operation is asked for: `{k}` stands for the key, `{i}` for the instance. Several where
/// clients have several ways. Bodies are such that nothing is undone for what comes after.
fn requests(operation: KeyOperation) -> (&'static [&'static str], Value) {
    use KeyOperation as O;
    let key = |more: Value| {
        let mut key = json!({"name": "made", "extractable": false});
        key.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        envelope(key)
    };
    match operation {
        O::List => (&["GET /api/v2/keys?state=1,2,3,5"], Value::Null),
        O::ReadMetadata => (
            &[
                "GET /api/v2/keys/{k}/metadata",
                "GET /api/v2/keys/{k}/versions",
                "GET /v3/instances/{i}/keys/{k}/acknowledgements",
            ],
            Value::Null,
        ),
        O::ReadPayload => (&["GET /api/v2/keys/{k}"], Value::Null),
        O::Wrap => (
            &["POST /api/v2/keys/{k}/actions/wrap", "POST /api/v2/keys/{k}?action=wrap"],
            Value::Null,
        ),
        O::Unwrap => (
            &["POST /api/v2/keys/{k}/actions/unwrap", "POST /api/v2/keys/{k}?action=unwrap"],
            Value::Null,
        ),
        O::Rewrap => (
            &["POST /api/v2/keys/{k}/actions/rewrap", "POST /api/v2/keys/{k}?action=rewrap"],
            Value::Null,
        ),
        O::Create => (&["POST /api/v2/keys"], key(json!({}))),
        O::Import => (&["POST /api/v2/keys"], key(json!({"payload": "AAECAwQFBgcICQoLDA0ODw=="}))),
        O::Rotate => (
            &["POST /api/v2/keys/{k}/actions/rotate", "POST /api/v2/keys/{k}?action=rotate"],
            Value::Null,
        ),
        O::Disable => (
            &["POST /api/v2/keys/{k}/actions/disable", "POST /api/v2/keys/{k}?action=disable"],
            Value::Null,
        ),
        O::Enable => (
            &["POST /api/v2/keys/{k}/actions/enable", "POST /api/v2/keys/{k}?action=enable"],
            Value::Null,
        ),
        O::Delete => (&["DELETE /api/v2/keys/{k}"], Value::Null),
        O::Restore => (
            &["POST /api/v2/keys/{k}/restore", "POST /api/v2/keys/{k}?action=restore"],
            Value::Null,
        ),
        O::Purge => (&["DELETE /api/v2/keys/{k}/purge"], Value::Null),
        O::ListRegistrations => (&["GET /api/v2/keys/{k}/registrations"], Value::Null),
        O::WriteRegistration => (
            &[
                "POST /api/v2/keys/{k}/registrations/crn:v1:a:b:c:d:a%2Fe:f::",
                "PUT /api/v2/keys/{k}/registrations/crn:v1:a:b:c:d:a%2Fe:f::",
                "PATCH /api/v2/keys/{k}/registrations/crn:v1:a:b:c:d:a%2Fe:f::",
                "DELETE /api/v2/keys/{k}/registrations/crn:v1:a:b:c:d:a%2Fe:none::",
            ],
            Value::Null,
        ),
        O::AcknowledgeEvent => {
            let said = json!({"eventId": 0, "adopterKeyState": "DEK_DISABLED",
                "timestamp": "2027-01-15T08:00:00Z"});
            (&["POST /api/v2/event_ack"], envelope(said))
        }
        O::PatchKey => (&["PATCH /api/v2/keys/{k}"], json!({"keyRingID": RING})),
        O::SetForDeletion => (
            &[
                "POST /api/v2/keys/{k}/actions/setKeyForDeletion",
                "POST /api/v2/keys/{k}?action=setKeyForDeletion",
            ],
            Value::Null,
        ),
        O::UnsetForDeletion => (
            &[
                "POST /api/v2/keys/{k}/actions/unsetKeyForDeletion",
                "POST /api/v2/keys/{k}?action=unsetKeyForDeletion",
            ],
            Value::Null,
        ),
        O::Sync => (&["POST /api/v2/keys/{k}/actions/sync"], Value::Null),
        O::CreateAlias => (&["POST /api/v2/keys/{k}/aliases/more"], Value::Null),
        O::DeleteAlias => (&["DELETE /api/v2/keys/{k}/aliases/none"], Value::Null),
        O::ListRings => (&["GET /api/v2/key_rings"], Value::Null),
        O::CreateRing => (&["POST /api/v2/key_rings/another"], Value::Null),
        O::DeleteRing => (&["DELETE /api/v2/key_rings/own-ring"], Value::Null),
        O::CreateWithPolicies => (&["POST /api/v2/keys_with_policy_overrides"], key(json!({}))),
        O::ReadPolicies => (&["GET /api/v2/keys/{k}/policies"], Value::Null),
        O::WritePolicies => (&["PUT /api/v2/keys/{k}/policies"], Value::Null),
        O::ReadInstancePolicies => (&["GET /api/v2/instance/policies"], Value::Null),
        O::WriteInstancePolicies => (&["PUT /api/v2/instance/policies"], Value::Null),
        O::ReadAllowedIp => (&["GET /api/v2/instance/allowed_ip_port"], Value::Null),
        // So short a life is refused, since to make one is slow.
        O::CreateImportToken => (&["POST /api/v2/import_token"], json!({"expiration": 1})),
        O::ReadImportToken => (&["GET /api/v2/import_token"], Value::Null),
        O::ManageKmip => (&["GET /api/v2/kmip_adapters"], Value::Null),
        O::ReadAudit => (&["GET /v3/audit?instance={i}&limit=1"], Value::Null),
    }
}

struct Who {
    what: String,
    token: String,
    service: bool,
    role: usize,
    /// None: his role is in another instance.
    holds: Option<Needs>,
}

/// One for each role, scope and kind; the roles in the order of the table's columns.
fn everyone(w: &World, key: KeyId) -> Vec<Who> {
    let scopes = [
        ("instance", Some(Needs::Instance), Scope::Instance(w.one)),
        ("ring", Some(Needs::Ring), Scope::Ring(w.one, RING.to_owned())),
        ("key", Some(Needs::Key), Scope::Key(RootKey { instance: w.one, key })),
        ("elsewhere", None, Scope::Instance(w.two)),
        ("ring-elsewhere", None, Scope::Ring(w.two, RING.to_owned())),
        ("key-elsewhere", None, Scope::Key(RootKey { instance: w.two, key })),
    ];
    let mut all = Vec::new();
    for service in [false, true] {
        for (role, name) in ServiceRole::ALL.into_iter().enumerate() {
            for (place, holds, scope) in &scopes {
                let what = format!("{name:?}-{place}-{service}");
                let kind = if service { "iam-ServiceId" } else { "IBMid" };
                let principal = Principal {
                    iam_id: format!("{kind}-{what}"),
                    service,
                    name: what.clone(),
                    email: String::new(),
                };
                let grant = on(name, scope.clone());
                let added = w.app.store.tx("t", |tx| {
                    iam::add_principal(tx, &principal, START)?;
                    iam::add_grant(tx, &principal.iam_id, &grant, "t", START)
                });
                added.unwrap();
                let token = w.token(&principal);
                all.push(Who { what, token, service, role, holds: *holds });
            }
        }
    }
    all
}

impl World {
    /// Whether the router lets someone do this: neither 401 nor "for services only". For a list,
    /// whether the key is in it.
    async fn lets(
        &self,
        who: &Who,
        line: &str,
        ring: Option<&str>,
        body: &Value,
        key: &str,
    ) -> bool {
        let (method, path) = line.split_once(' ').unwrap();
        let mut request = Request::builder()
            .method(method)
            .uri(path)
            .header("authorization", format!("Bearer {}", who.token))
            .header("bluemix-instance", self.one.to_string());
        if let Some(ring) = ring {
            request = request.header("x-kms-key-ring", ring);
        }
        let body = if body.is_null() { Body::empty() } else { Body::from(body.to_string()) };
        let answer = self.raw(request.body(body).unwrap()).await;
        assert!(answer.status < 500, "{line} by {}: {}", who.what, answer.body);
        if line.starts_with("GET /api/v2/keys?") {
            let keys = answer.body["resources"].as_array().cloned().unwrap_or_default();
            return keys.iter().any(|listed| listed["id"] == *key);
        }
        let refused = answer.status == 401 || answer.code() == "SERVICE_ONLY_ERR";
        // A key that is hidden by the ring of the request is not there.
        let codes = [answer.code(), answer.body["code"].as_str().unwrap_or_default()];
        !refused && !codes.contains(&"KEY_NOT_FOUND_ERR")
    }
}

/// Each name with each ring that a request may name.
fn pairs<'n>(names: &[&'n str]) -> Vec<(&'n str, Option<&'static str>)> {
    let rings = [Some(RING), None, Some("other")];
    names.iter().flat_map(|name| rings.map(|ring| (*name, ring))).collect()
}

/// Whether the ring of the request leaves someone what his role gives him.
fn rings_allow(operation: KeyOperation, of_key: bool, who: &Who, ring: Option<&str>) -> bool {
    use KeyOperation as O;
    match ring {
        Some(RING) => true,
        // Where a new key goes: without a word into `default`, on which only who holds the whole
        // instance has a role.
        _ if matches!(operation, O::Create | O::Import | O::CreateWithPolicies) => {
            who.holds >= Some(Needs::Instance)
        }
        // In a ring where it is not, a key is not found.
        Some(_) => !of_key && operation != O::List,
        None => true,
    }
}

#[tokio::test]
async fn every_operation_by_everyone() {
    let (w, admin) = world().await;
    w.ask(&admin, "POST", &format!("/api/v2/key_rings/{RING}"), Value::Null).await.is(201);
    let id = w.make_root(&admin, w.one, "there").await;
    let moved = json!({"keyRingID": RING});
    w.ask(&admin, "PATCH", &format!("/api/v2/keys/{id}"), moved).await.is(200);
    let everyone = everyone(&w, id.parse().unwrap());

    let mut left: Vec<KeyOperation> = KeyOperation::ALL.to_vec();
    for (operation, roles, needs) in TABLE {
        left.retain(|other| other != operation);
        let (lines, mut body) = requests(*operation);
        if *operation == KeyOperation::AcknowledgeEvent {
            let event = w.app.store.read("t", |tx| events::last_of(tx, &root(&w, &id))).unwrap();
            assert!(event > 0, "the key was disabled before");
            body["resources"][0]["eventId"] = json!(event);
        }
        let of_services = claviger_domain::access::services_only(*operation);
        for line in lines {
            let of_key = line.contains("{k}") || *operation == KeyOperation::AcknowledgeEvent;
            let names: &[&str] = if of_key { &[&id, "there-alias"] } else { &[""] };
            let mut asked = Vec::new();
            for who in &everyone {
                let role = roles.as_bytes()[who.role] == b'y';
                let scope = who.holds.is_some_and(|holds| holds >= *needs);
                let may = role && scope && (who.service || !of_services);
                for (name, ring) in pairs(names) {
                    let expected = may && rings_allow(*operation, of_key, who, ring);
                    let line = line.replace("{k}", name).replace("{i}", &w.one.to_string());
                    let (w, body, id) = (&w, &body, &id);
                    asked.push(async move {
                        let lets = w.lets(who, &line, ring, body, id).await;
                        let by = &who.what;
                        assert_eq!(lets, expected, "{operation:?}: {line} by {by}, ring {ring:?}");
                    });
                }
            }
            // All at once, as their records are written together.
            futures_util::future::join_all(asked).await;
        }
    }
    assert!(left.is_empty(), "operations without a row: {left:?}");
}
