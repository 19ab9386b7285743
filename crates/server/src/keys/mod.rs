//! Key Protect v2: keys, what can be done with them, and who uses them.
//!
//! One file for each group of operations. Every operation runs through [`act::Act`]: permission,
//! work, audit record, error mapping. Content types of requests are ignored, since clients send
//! none or the wrong one.

mod acks;
pub(crate) mod act;
mod actions;
mod aliases;
mod changes;
pub mod clock;
mod create;
mod dual;
mod event_ack;
mod import;
mod kmip;
mod list;
pub(crate) mod policies;
mod purge;
pub(crate) mod query;
mod reading;
mod registrations;
mod rings;
mod sync;
pub(crate) mod view;

use crate::http::api::content::{any_of, envelope, json, one, several, typed};
use crate::http::api::parameters::{
    ACTION, ALL_STATES, FORCE_KEY, INSTANCE_POLICY, KEY_POLICY, KEY_TOTAL, KEYS, PAGE, PREFER,
    REGISTRATIONS, SEARCH,
};
use crate::http::api::{
    Api, Description, Kind, delete, get, head, patch, post, post_each, put, says,
};
use claviger_wire::kp::policies::{
    ALLOWED_IP_TYPE, InstancePolicy, InstancePolicyInput, KeyPolicy, KeyPolicyInput, POLICY_TYPE,
    PrivatePort,
};
use claviger_wire::kp::rings::KeyPatch;
use claviger_wire::kp::{
    ACTION_TYPE, Acknowledgements, ActionAnswer, KEY_TYPE, Key, KeyVersion, NewKey,
    REGISTRATION_TYPE, Registration, RegistrationInput, RotateRequest, UnwrapRequest, VERSION_TYPE,
    WrapRequest,
};

/// Paths of the key service.
pub(crate) fn api() -> Api {
    keys()
        .merge(registrations())
        .merge(policies())
        .merge(rings::api())
        .merge(aliases::api())
        .merge(import::api())
        .merge(event_ack::api())
        .merge(kmip::api())
}

fn keys() -> Api {
    let made = |id, summary| {
        says(id, summary)
            .header(PREFER)
            .takes(one::<NewKey>())
            .answers(201, envelope::<Key>(KEY_TYPE))
            .refuses(&[409, 500])
    };
    let list = says("listKeys", "Keys of the instance")
        .query(&PAGE)
        .query(&KEYS)
        .query(&SEARCH)
        .answers(200, envelope::<Key>(KEY_TYPE));
    let count = says("countKeys", "How many keys there are")
        .query(&KEYS)
        .answers_nothing(200)
        .tells(KEY_TOTAL);
    let read = says("getKey", "A key, and the payload of a standard key")
        .answers(200, envelope::<Key>(KEY_TYPE))
        .refuses(&[500]);
    let old = says("actOnKey", "What the paths under `actions` do, as it was asked for once")
        .deprecated()
        .query(&[ACTION])
        .header(PREFER)
        .may_take(any_of::<WrapRequest, UnwrapRequest, RotateRequest>())
        .answers(200, typed::<ActionAnswer>(ACTION_TYPE))
        .answers(201, envelope::<Key>(KEY_TYPE))
        .answers_nothing(204)
        .refuses(&[409, 410, 422, 500]);
    let moved = says("patchKey", "Move a key to another key ring")
        .takes(json::<KeyPatch>())
        .answers(200, envelope::<Key>(KEY_TYPE))
        .refuses(&[409]);
    let gone = |id, summary| {
        says(id, summary)
            .header(PREFER)
            .answers(200, envelope::<Key>(KEY_TYPE))
            .answers_nothing(204)
            .refuses(&[409])
    };
    let versions = says("listKeyVersions", "Versions of a root key, the newest first")
        .query(&PAGE)
        .query(&[ALL_STATES])
        .answers(200, envelope::<KeyVersion>(VERSION_TYPE));
    let deleted = gone(
        "deleteKey",
        "Delete a key; it can be restored for 30 days, while its instance is there",
    )
    .query(&[FORCE_KEY])
    .refuses(&[410]);
    Api::new("keys", Kind::KeyProtect)
        .at(
            "/api/v2/keys",
            [
                get(list::list, list),
                head(list::count, count),
                post(create::create, made("createKey", "Make or import a key")),
            ],
        )
        .at(
            "/api/v2/keys_with_policy_overrides",
            [post(
                create::with_policies,
                made("createKeyWithPolicies", "Make or import a key with policies of its own"),
            )],
        )
        .at(
            "/api/v2/keys/{id}",
            [
                get(reading::with_payload, read),
                post(actions::old_form, old),
                patch(rings::move_key, moved),
                delete(changes::delete, deleted),
            ],
        )
        .at(
            "/api/v2/keys/{id}/purge",
            [delete(
                purge::purge,
                gone("purgeKey", "Remove a deleted key for good, four hours later or more"),
            )],
        )
        .at(
            "/api/v2/keys/{id}/metadata",
            [get(
                reading::metadata,
                says("getKeyMetadata", "A key without payload")
                    .answers(200, envelope::<Key>(KEY_TYPE)),
            )],
        )
        .at("/api/v2/keys/{id}/versions", [get(reading::versions, versions)])
        .at(
            "/api/v2/keys/{id}/restore",
            [post(
                changes::restore,
                says("restoreKey", "Bring a deleted key back")
                    .answers(201, envelope::<Key>(KEY_TYPE))
                    .refuses(&[409]),
            )],
        )
        .at("/api/v2/keys/{id}/actions/{action}", [post_each(actions::act, "action", actions())])
}

fn actions() -> Vec<(&'static str, Description)> {
    let answer = typed::<ActionAnswer>(ACTION_TYPE);
    let plain = |id, summary| says(id, summary).answers_nothing(204).refuses(&[409]);
    vec![
        (
            "wrap",
            says("wrapKey", "Encrypt a DEK under the current version of a root key, or a new DEK")
                .may_take(json::<WrapRequest>())
                .answers(200, answer)
                .refuses(&[409, 500]),
        ),
        (
            "unwrap",
            says("unwrapKey", "Decrypt a DEK")
                .takes(json::<UnwrapRequest>())
                .answers(200, answer)
                .refuses(&[409, 422, 500]),
        ),
        (
            "rewrap",
            says("rewrapKey", "Encrypt a DEK anew under the current version, without showing it")
                .takes(json::<UnwrapRequest>())
                .answers(200, answer)
                .refuses(&[409, 422, 500]),
        ),
        (
            "rotate",
            plain("rotateKey", "Make a new version of a root key the current one")
                .may_take(json::<RotateRequest>())
                .refuses(&[500]),
        ),
        ("disable", plain("disableKey", "Suspend a root key: it neither wraps nor unwraps")),
        ("enable", plain("enableKey", "End the suspension of a root key")),
        (
            "setKeyForDeletion",
            plain("setKeyForDeletion", "Be the first of the two who delete a key").refuses(&[410]),
        ),
        ("unsetKeyForDeletion", plain("unsetKeyForDeletion", "Take that back").refuses(&[410])),
        ("sync", plain("syncKey", "Tell the users of a key its state once more")),
    ]
}

fn registrations() -> Api {
    let list = |id, summary| {
        says(id, summary)
            .query(&PAGE)
            .query(&REGISTRATIONS)
            .answers(200, envelope::<Registration>(REGISTRATION_TYPE))
    };
    let write = |id, summary, status| {
        says(id, summary)
            .takes(one::<RegistrationInput>())
            .answers(status, envelope::<Registration>(REGISTRATION_TYPE))
            .refuses(&[409, 422])
    };
    let acknowledgements = says("listAcknowledgements", "Who acted on the last event of a key")
        .answers(200, json::<Acknowledgements>())
        .refuses(&[404]);
    Api::new("registrations", Kind::KeyProtect)
        .at(
            "/api/v2/keys/registrations",
            [get(
                registrations::of_instance,
                list(
                    "listRegistrationsOfInstance",
                    "Which resources use which keys of the instance",
                ),
            )],
        )
        .at(
            "/api/v2/keys/{id}/registrations",
            [get(registrations::of_key, list("listRegistrations", "Which resources use a key"))],
        )
        // The CRN has slashes, encoded or not: the wildcard takes both.
        .at(
            "/api/v2/keys/{id}/registrations/{*crn}",
            [
                post(
                    registrations::create,
                    write("createRegistration", "Register a resource", 201),
                ),
                put(
                    registrations::replace,
                    write("replaceRegistration", "Replace a registration", 200),
                ),
                patch(
                    registrations::change,
                    write("updateRegistration", "Change a registration", 200),
                ),
                delete(
                    registrations::delete,
                    says("deleteRegistration", "Take a registration away")
                        .answers_nothing(204)
                        .refuses(&[409, 422]),
                ),
            ],
        )
        .merge(Api::new("registrations", Kind::Service).at(
            "/v3/instances/{instance}/keys/{key}/acknowledgements",
            [get(acks::acknowledgements, acknowledgements)],
        ))
}

fn policies() -> Api {
    let of_key = envelope::<KeyPolicy>(POLICY_TYPE);
    Api::new("policies", Kind::KeyProtect)
        .at(
            "/api/v2/keys/{id}/policies",
            [
                get(
                    policies::key::get,
                    says("getKeyPolicies", "Policies of a key")
                        .query(&[KEY_POLICY])
                        .answers(200, of_key),
                ),
                put(
                    policies::key::put,
                    says("putKeyPolicies", "Set policies of a key")
                        .query(&[KEY_POLICY])
                        .takes(several::<KeyPolicyInput>())
                        .answers(200, of_key)
                        .refuses(&[409]),
                ),
            ],
        )
        .at(
            "/api/v2/instance/policies",
            [
                get(
                    policies::instance::get,
                    says("getInstancePolicies", "Policies of the instance")
                        .query(&[INSTANCE_POLICY])
                        .answers(200, envelope::<InstancePolicy>(POLICY_TYPE)),
                ),
                put(
                    policies::instance::put,
                    says("putInstancePolicies", "Set policies of the instance")
                        .query(&[INSTANCE_POLICY])
                        .takes(several::<InstancePolicyInput>())
                        .answers_nothing(204),
                ),
            ],
        )
        .at(
            "/api/v2/instance/allowed_ip_port",
            [get(
                policies::instance::port,
                says("getAllowedIpPort", "The private port, while only some addresses are allowed")
                    .answers(200, envelope::<PrivatePort>(ALLOWED_IP_TYPE)),
            )],
        )
}

#[cfg(test)]
mod tests;
