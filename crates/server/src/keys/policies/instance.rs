//! `GET` and `PUT /instance/policies`, and which port serves the addresses that they allow.

use super::{as_asked, months, strict, told, unknown_field};
use crate::app::App;
use crate::http::auth::Caller;
use crate::http::body::Body;
use crate::http::error::KpError;
use crate::http::network::{BOTH, PRIVATE_ONLY, Subnet};
use crate::keys::act::{ALLOWED_IP_PORT, About, Act, Changed, Instance, answer, nothing_again};
use crate::keys::query::Query;
use crate::keys::view;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use claviger_domain::access::KeyOperation;
use claviger_domain::audit::{Change, MayMake, Policy};
use claviger_domain::id::InstanceId;
use claviger_store::StoreError;
use claviger_store::policies::{self as store, InstancePolicy, InstancePolicyKind};
use claviger_wire::kp::Envelope;
use claviger_wire::kp::policies::{
    self as wire, ALLOWED_IP_TYPE, InstancePolicyInput, POLICY_TYPE, PolicyData, PrivatePort,
    RotationAttributes,
};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};
use std::sync::Arc;

/// Subnets of one policy; each request is compared with all of them.
const SUBNETS_MAX: usize = 1000;

fn named(name: &str) -> Result<InstancePolicyKind, String> {
    InstancePolicyKind::named(name)
        .ok_or_else(|| InstancePolicyKind::ALL.map(InstancePolicyKind::as_str).join(", "))
}

fn asked(query: &Query) -> Result<Option<InstancePolicyKind>, KpError> {
    let Some(name) = query.get("policy") else { return Ok(None) };
    named(name).map(Some).map_err(|known| {
        KpError::query("policy", format!("The query_param 'policy' must be: out of {known}"))
    })
}

/// A policy to write: kind, whether it counts, attributes as they are stored.
type Wanted = (InstancePolicyKind, bool, String);

fn wanted(body: &Body, query: &Query) -> Result<Vec<Wanted>, KpError> {
    let asked = asked(query)?;
    let body: Envelope<InstancePolicyInput> = strict(body)?;
    let mut wanted = Vec::new();
    for input in body.resources {
        let kind = named(&input.policy_type).map_err(|known| {
            KpError::field(
                "policy_type",
                format!("The field 'policy_type' must be: out of {known}"),
            )
        })?;
        let (enabled, attributes) = checked(kind, input.policy_data)?;
        wanted.push((kind, enabled, attributes));
    }
    let kinds: Vec<_> = wanted.iter().map(|(kind, _, _)| *kind).collect();
    as_asked(&kinds, asked)?;
    Ok(wanted)
}

fn checked(kind: InstancePolicyKind, data: PolicyData) -> Result<(bool, String), KpError> {
    use InstancePolicyKind::*;
    let enabled = data
        .enabled
        .ok_or_else(|| KpError::field("enabled", "The field 'enabled' must be: given"))?;
    let given = data.attributes.unwrap_or_default();
    let attributes = match (kind, enabled) {
        // Clients send them along, whatever they are.
        (AllowedIp | AllowedNetwork | KeyCreateImportAccess, false) => "{}".to_owned(),
        (DualAuthDelete | Metrics, _) => match given.keys().next() {
            Some(name) => return Err(unknown_field(name)),
            None => "{}".to_owned(),
        },
        (Rotation, false) if given.is_empty() => "{}".to_owned(),
        (Rotation, false) => {
            let what = "The field 'attributes' must be: absent when the policy is disabled";
            return Err(KpError::field("attributes", what));
        }
        (Rotation, true) => {
            let given: RotationAttributes = typed(given)?;
            let interval = months(given.interval_month.unwrap_or(0))?;
            stored(&RotationAttributes { interval_month: Some(interval.into()) })
        }
        (AllowedIp, true) => stored(&subnets(typed(given)?)?),
        (AllowedNetwork, true) => {
            let given: wire::AllowedNetwork = typed(given)?;
            if ![BOTH, PRIVATE_ONLY].contains(&given.allowed_network.as_str()) {
                let what = format!("The field 'allowed_network' must be: {BOTH} or {PRIVATE_ONLY}");
                return Err(KpError::field("allowed_network", what));
            }
            stored(&given)
        }
        (KeyCreateImportAccess, true) => stored(&typed::<wire::KeyCreateImportAccess>(given)?),
    };
    Ok((enabled, attributes))
}

fn subnets(given: wire::AllowedIp) -> Result<wire::AllowedIp, KpError> {
    let bad = |what: String| KpError::field("allowed_ip", what);
    let count = given.allowed_ip.len();
    if !(1..=SUBNETS_MAX).contains(&count) {
        return Err(bad(format!(
            "The field 'allowed_ip' must be: 1 to {SUBNETS_MAX} subnets, not {count}"
        )));
    }
    match given.allowed_ip.iter().position(|text| Subnet::parse(text).is_none()) {
        None => Ok(given),
        Some(at) => Err(bad(format!(
            "The field 'allowed_ip' must be: subnets in CIDR notation, as 192.0.2.0/24; number {} is not",
            at + 1
        ))),
    }
}

fn typed<T: DeserializeOwned>(given: Map<String, Value>) -> Result<T, KpError> {
    serde_json::from_value(Value::Object(given)).map_err(told)
}

fn stored(attributes: &impl Serialize) -> String {
    serde_json::to_string(attributes).expect("attributes are valid JSON")
}

fn act(caller: Caller, instance: InstanceId) -> Act {
    let (action, failed) = ("kms.instance-policies.write", "Instance policies could not be set");
    Act { caller, instance, action, failed, about: About::Instance }
}

/// Writes the policies of the body; those that it does not name stay. Those on keys are heeded by
/// keys that are made later, those on networks and addresses by the next request.
pub(crate) async fn put(
    State(app): State<Arc<App>>,
    caller: Caller,
    Instance(instance): Instance,
    query: Query,
    body: Body,
) -> Result<Response, KpError> {
    let wanted = wanted(&body, &query);
    act(caller, instance)
        .change_once(&app, nothing_again, move |_, tx, act, now| {
            act.on_instance(tx, KeyOperation::WriteInstancePolicies)?;
            let (mut from, mut to) = (Vec::new(), Vec::new());
            for (kind, enabled, attributes) in wanted.as_ref().map_err(Clone::clone)? {
                let before = store::of_instance_kind(tx, act.instance, *kind)?;
                from.extend(before.as_ref().map(noted).transpose()?);
                let by = || act.caller.iam_id.clone();
                let (created, created_by) =
                    before.map_or_else(|| (now, by()), |p| (p.created, p.created_by));
                let policy = InstancePolicy {
                    kind: *kind,
                    enabled: *enabled,
                    attributes: attributes.clone(),
                    created,
                    created_by,
                    updated: now,
                    updated_by: by(),
                };
                store::put_of_instance(tx, act.instance, &policy)?;
                to.push(noted(&policy)?);
            }
            act.note(|data| data.change = Some(Change::Policies { from, to }));
            Ok(Changed::just(()))
        })
        .await?;
    Ok(StatusCode::NO_CONTENT.into_response())
}

/// The policies that were ever written, or the one that is asked for.
pub(crate) async fn get(
    State(app): State<Arc<App>>,
    caller: Caller,
    Instance(instance): Instance,
    query: Query,
) -> Result<Response, KpError> {
    let (action, failed) =
        ("kms.instance-policies.read", "Instance policies could not be retrieved");
    let act = Act { action, failed, ..act(caller, instance) };
    let found = act
        .look(&app, move |_, tx, act, _| {
            act.on_instance(tx, KeyOperation::ReadInstancePolicies)?;
            let asked = asked(&query)?;
            let mut all = store::of_instance(tx, act.instance)?;
            all.retain(|p| asked.is_none_or(|kind| p.kind == kind));
            Ok(all.into_iter().map(seen).collect::<Result<Vec<_>, _>>()?)
        })
        .await?;
    Ok(answer(StatusCode::OK, POLICY_TYPE, &Envelope::of(POLICY_TYPE, found)))
}

/// A policy as it goes on record.
pub(crate) fn noted(p: &InstancePolicy) -> Result<Policy, StoreError> {
    let enabled = p.enabled;
    // What is switched off has no attributes.
    Ok(match p.kind {
        InstancePolicyKind::DualAuthDelete => Policy::DualAuthDelete { enabled },
        InstancePolicyKind::Metrics => Policy::Metrics { enabled },
        InstancePolicyKind::Rotation => {
            let said: Option<RotationAttributes> = attributes(p)?;
            let months = said.and_then(|said| said.interval_month);
            let interval_month = months.and_then(|months| u8::try_from(months).ok());
            Policy::Rotation { enabled, interval_month }
        }
        InstancePolicyKind::AllowedNetwork => {
            let said: Option<wire::AllowedNetwork> = attributes(p)?;
            Policy::AllowedNetwork { enabled, network: said.map(|said| said.allowed_network) }
        }
        InstancePolicyKind::AllowedIp => {
            let said: Option<wire::AllowedIp> = attributes(p)?;
            let subnets = said.map(|said| said.allowed_ip).unwrap_or_default();
            Policy::AllowedIp { enabled, subnets }
        }
        InstancePolicyKind::KeyCreateImportAccess => {
            let said: Option<wire::KeyCreateImportAccess> = attributes(p)?;
            let may = said.map(|said| MayMake {
                create_root: said.create_root_key,
                create_standard: said.create_standard_key,
                import_root: said.import_root_key,
                import_standard: said.import_standard_key,
                token_only: said.enforce_token,
            });
            Policy::KeyCreateImportAccess { enabled, may }
        }
    })
}

fn attributes<T: DeserializeOwned>(p: &InstancePolicy) -> Result<Option<T>, StoreError> {
    if !p.enabled {
        return Ok(None);
    }
    let damaged = || StoreError::Damaged("attributes of an instance policy".to_owned());
    serde_json::from_str(&p.attributes).map(Some).map_err(|_| damaged())
}

fn seen(p: InstancePolicy) -> Result<wire::InstancePolicy, StoreError> {
    let attributes: Map<String, Value> = serde_json::from_str(&p.attributes)
        .map_err(|_| StoreError::Damaged("attributes of an instance policy".to_owned()))?;
    let attributes = (!attributes.is_empty()).then_some(attributes);
    Ok(wire::InstancePolicy {
        policy_type: p.kind.as_str().to_owned(),
        policy_data: PolicyData { enabled: Some(p.enabled), attributes },
        creation_date: view::second(p.created),
        created_by: p.created_by,
        last_updated: view::second(p.updated),
        updated_by: p.updated_by,
    })
}

/// `GET /instance/allowed_ip_port`: the port of the private endpoint while the instance allows
/// only some addresses, else nothing. No address is barred from asking.
pub(crate) async fn port(
    State(app): State<Arc<App>>,
    caller: Caller,
    Instance(instance): Instance,
) -> Result<Response, KpError> {
    let failed = "The private endpoint's port could not be retrieved";
    let act = Act { action: ALLOWED_IP_PORT, failed, ..act(caller, instance) };
    let found = act
        .look(&app, |app, tx, act, _| {
            act.on_instance(tx, KeyOperation::ReadAllowedIp)?;
            let kind = InstancePolicyKind::AllowedIp;
            let policy = store::of_instance_kind(tx, act.instance, kind)?;
            let port = PrivatePort { private_endpoint_port: port_of(&app.settings.url) };
            Ok(policy.filter(|p| p.enabled).map(|_| port).into_iter().collect::<Vec<_>>())
        })
        .await?;
    Ok(answer(StatusCode::OK, ALLOWED_IP_TYPE, &Envelope::of(ALLOWED_IP_TYPE, found)))
}

/// The port of a base URL.
fn port_of(url: &str) -> u16 {
    let uri: Option<axum::http::Uri> = url.parse().ok();
    uri.and_then(|uri| uri.port_u16()).unwrap_or(443)
}

#[cfg(test)]
mod tests {
    use super::port_of;

    #[test]
    fn ports_of_base_urls() {
        assert_eq!(port_of("https://localhost"), 443);
        assert_eq!(port_of("https://keys.example:8443"), 8443);
        assert_eq!(port_of("https://[::1]:9000"), 9000);
    }
}
