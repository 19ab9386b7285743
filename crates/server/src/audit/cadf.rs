//! Records as events of CADF. Pure: whatever keeps records, they are shown the same.

use crate::app::Account;
use crate::keys::view;
use axum::http::StatusCode;
use claviger_domain::audit::{Authorisation, Change, Credential, Facts, Policy, Record, Severity};
use claviger_domain::id::{InstanceId, KeyVersionId, UnixMs};
use claviger_domain::key::KeyState;
use claviger_wire::audit::{
    self as wire, Event, EventAckData, Host, Initiator, KciaAttr, Observer, Reason, RequestData,
    ResponseData, Target, Values,
};
use std::collections::BTreeMap;
use std::net::IpAddr;

/// What records leave out, since it can be looked up.
#[derive(Debug, Default)]
pub struct Names {
    /// Names of people and services, by IAM id.
    pub principals: BTreeMap<String, String>,
    /// When key versions were made; without those of keys that are gone.
    pub versions: BTreeMap<KeyVersionId, UnixMs>,
}

/// A record as an event.
pub fn event(record: &Record, account: &Account, names: &Names) -> Event {
    let (kind, verb) = record.action.rsplit_once('.').unwrap_or((&record.action, ""));
    let instance = instance_of(&record.target);
    let (request_data, response_data) = data(record, instance, names);
    Event {
        event_time: view::date(record.at),
        action: record.action.to_string(),
        outcome: if record.succeeded() { "success" } else { "failure" }.to_owned(),
        message: message(kind, verb, record.succeeded()),
        initiator: Initiator {
            id: record.who.clone(),
            name: names.principals.get(&record.who).cloned().unwrap_or_default(),
            type_uri: type_of(&record.who).to_owned(),
            credential: record.credential.map(|c| wire::Credential { kind: named(c) }),
            host: record.address.map(|address| Host {
                address: address.to_string(),
                address_type: match address {
                    IpAddr::V4(_) => "IPv4".to_owned(),
                    IpAddr::V6(_) => "IPv6".to_owned(),
                },
            }),
        },
        target: Target { id: record.target.clone(), type_uri: kind.replace('.', "/") },
        observer: Observer { name: "ActivityTracker".to_owned() },
        reason: reason(record),
        severity: Severity::of(&record.action, record.status).as_str().to_owned(),
        request_data,
        response_data,
        data_event: uses_keys(&record.action),
        correlation_id: record.correlation.clone(),
        log_source_crn: match instance {
            Some(instance) => account.instance_crn(instance),
            None => record.target.clone(),
        },
        save_service_copy: true,
    }
}

fn named(credential: Credential) -> String {
    credential.as_str().to_owned()
}

/// The instance that a CRN of the key service names.
pub(super) fn instance_of(crn: &str) -> Option<InstanceId> {
    let mut segments = crn.split(':');
    (segments.nth(4)? == "kms").then(|| segments.nth(2)?.parse().ok()).flatten()
}

fn type_of(who: &str) -> &'static str {
    match who.split_once('-').map(|(realm, _)| realm) {
        Some("IBMid") => "service/security/account/user",
        Some("iam") => "service/security/account/serviceid",
        Some("crn") => "service/security/clientid",
        _ => "service/security",
    }
}

fn message(kind: &str, verb: &str, succeeded: bool) -> String {
    let (service, what) = kind.split_once('.').unwrap_or((kind, ""));
    let service = match service {
        "kms" => "Key Protect",
        "iam-identity" => "IAM Identity Service",
        "containers-kubernetes" => "Kubernetes Service",
        other => other,
    };
    let what = what.replace(['-', '.'], " ").replace("secrets", "secret");
    let failed = if succeeded { "" } else { " -failure" };
    format!("{service}: {verb} {what}{failed}")
}

fn reason(record: &Record) -> Reason {
    // Whoever is not let do something and whoever is not let in are one.
    let code = if record.status == 403 { 401 } else { record.status };
    let phrase = StatusCode::from_u16(code).ok().and_then(|status| status.canonical_reason());
    Reason {
        reason_code: code,
        reason_type: phrase.unwrap_or_default().to_owned(),
        reason_for_failure: (!record.reason.is_empty()).then(|| record.reason.to_string()),
    }
}

/// Whether an action uses keys or looks at them, and changes neither them nor what governs them.
fn uses_keys(action: &str) -> bool {
    let Some(of_keys) = action.strip_prefix("kms.secrets") else { return false };
    let uses = [".wrap", ".unwrap", ".rewrap", ".read", ".list", ".head"];
    uses.iter().any(|end| of_keys.ends_with(end))
}

fn data(
    record: &Record,
    instance: Option<InstanceId>,
    names: &Names,
) -> (RequestData, ResponseData) {
    let data = &record.data;
    let version = |id: Option<KeyVersionId>| Some(view::date(*names.versions.get(&id?)?));
    let mut asked = RequestData {
        request_uri: (!data.uri.is_empty()).then(|| data.uri.clone()),
        instance_id: instance,
        key_ring_id: data.ring.clone(),
        ..RequestData::default()
    };
    let mut came = ResponseData {
        rewrapped_key_version_id: data.rewrapped,
        total_resources: data.total,
        count: data.count,
        repeated: data.repeated.then_some(true),
        ..ResponseData::default()
    };
    if let Some(key) = &data.key {
        asked.key_type = Some(if key.standard { "standardKey" } else { "rootKey" }.to_owned());
        came.key_id = Some(key.id);
        came.key_ring_id = Some(key.ring.clone());
        came.key_version_id = key.version;
        came.key_version_creation_date = version(key.version);
        came.key_state = Some(key.state as u8);
        came.expiration_date = key.expires.map(view::date);
        came.days_to_key_expire =
            key.expires.map(|end| (end.0 - record.at.0).div_euclid(86_400_000));
    }
    if let Some(purge) = data.purge {
        came.deletion_date = Some(view::date(purge.deleted));
        came.purge_allowed_from = Some(view::date(purge.allowed_from));
        came.purge_eligible_on = Some(view::date(purge.due));
    }
    if let Some(token) = data.import_token {
        came.max_allowed_retrievals = Some(token.allowed);
        came.remaining_retrievals = Some(token.remaining);
        came.expiration_date = Some(view::date(token.expires));
    }
    if let Some(said) = &data.event {
        came.event_ack_data = Some(EventAckData {
            event_id: said.event,
            event_type: said.kind.clone(),
            key_state: said.state.clone(),
            event_ack_time_stamp: view::date(said.at),
            new_key_version_id: said.version,
            new_key_version_creation_date: version(said.version),
        });
    }
    match &data.change {
        None => {}
        Some(Change::Ring { from, to }) => {
            let ring = |ring: &String| Values { key_ring_id: Some(ring.clone()), ..empty() };
            (asked.initial_value, asked.new_value) = (Some(ring(from)), Some(ring(to)));
        }
        Some(Change::State { from, to }) => {
            let state = |state: &KeyState| Values { key_state: Some(*state as u8), ..empty() };
            (came.initial_value, came.new_value) = (Some(state(from)), Some(state(to)));
        }
        Some(Change::Deletion { from, to }) => {
            let word = |word: &Authorisation| Values {
                auth_id: Some(word.by.clone()),
                auth_expiration: Some(view::date(word.until)),
                ..empty()
            };
            came.initial_value = from.as_ref().map(word);
            came.new_value = to.as_ref().map(word);
        }
        Some(Change::Policies { from, to }) => {
            (asked.initial_value, asked.new_value) = (policies(from), policies(to));
        }
        Some(Change::Access { from, to }) => {
            let values = |facts: &Facts| {
                (!facts.is_empty()).then(|| Values { access: facts.clone(), ..empty() })
            };
            (asked.initial_value, asked.new_value) = (values(from), values(to));
        }
    }
    (asked, came)
}

fn empty() -> Values {
    Values::default()
}

fn policies(all: &[Policy]) -> Option<Values> {
    let mut values = empty();
    for policy in all {
        match policy {
            Policy::DualAuthDelete { enabled } => {
                values.policy_dual_auth_delete_enabled = Some(*enabled);
            }
            Policy::Rotation { enabled, interval_month } => {
                values.policy_rotation_enabled = Some(*enabled);
                values.policy_rotation_interval = *interval_month;
            }
            Policy::AllowedNetwork { enabled, network } => {
                values.policy_allowed_network_enabled = Some(*enabled);
                values.policy_allowed_network_attribute = network.clone();
            }
            Policy::AllowedIp { enabled, subnets } => {
                values.policy_allowed_ip_enabled = Some(*enabled);
                values.policy_allowed_ip_attribute = (!subnets.is_empty()).then(|| subnets.clone());
            }
            Policy::KeyCreateImportAccess { enabled, may } => {
                values.policy_kcia_enabled = Some(*enabled);
                values.policy_kcia_attr = may.map(|may| KciaAttr {
                    crk: may.create_root,
                    csk: may.create_standard,
                    irk: may.import_root,
                    isk: may.import_standard,
                    et: may.token_only,
                });
            }
            Policy::Metrics { enabled } => values.policy_metrics_enabled = Some(*enabled),
        }
    }
    (!all.is_empty()).then_some(values)
}

#[cfg(test)]
mod tests {
    use super::*;
    use claviger_domain::audit::{Acknowledged, Data, ImportToken, KeyFacts, MayMake, Purge};
    use serde_json::json;

    const AT: UnixMs = UnixMs(1_800_000_000_000);
    const INSTANCE: &str = "11111111-2222-4333-8444-555555555555";
    const KEY: &str = "21111111-2222-4333-8444-555555555555";
    const VERSION: &str = "31111111-2222-4333-8444-555555555555";

    fn account() -> Account {
        Account {
            id: "0".repeat(32),
            region: "local".to_owned(),
            resource_group: uuid::Uuid::nil(),
        }
    }

    fn crn(rest: &str) -> String {
        format!("crn:v1:bluemix:public:kms:local:a/{}:{INSTANCE}:{rest}", "0".repeat(32))
    }

    fn record(action: &'static str, data: Data) -> Record {
        Record {
            at: AT,
            who: "IBMid-1".to_owned(),
            credential: Some(Credential::Token),
            address: Some("192.0.2.7".parse().expect("an address")),
            action: action.into(),
            target: crn(&format!("key:{KEY}")),
            status: 200,
            reason: "".into(),
            correlation: "c".to_owned(),
            data,
        }
    }

    fn facts() -> KeyFacts {
        KeyFacts {
            id: KEY.parse().expect("an id"),
            ring: "default".to_owned(),
            standard: false,
            state: KeyState::Active,
            version: Some(VERSION.parse().expect("an id")),
            expires: Some(UnixMs(AT.0 + 36 * 3_600_000)),
        }
    }

    #[test]
    fn an_event_whole() {
        let data = Data {
            uri: format!("/api/v2/keys/{KEY}/actions/unwrap"),
            ring: Some("default".to_owned()),
            key: Some(facts()),
            rewrapped: Some(VERSION.parse().expect("an id")),
            ..Data::default()
        };
        let names = Names {
            principals: [("IBMid-1".to_owned(), "Ada".to_owned())].into(),
            versions: [(VERSION.parse().expect("an id"), UnixMs(0))].into(),
        };
        let event = event(&record("kms.secrets.unwrap", data), &account(), &names);
        let want = json!({
            "eventTime": "2027-01-15T08:00:00Z",
            "action": "kms.secrets.unwrap",
            "outcome": "success",
            "message": "Key Protect: unwrap secret",
            "initiator": {
                "id": "IBMid-1", "name": "Ada", "typeURI": "service/security/account/user",
                "credential": {"type": "token"},
                "host": {"address": "192.0.2.7", "addressType": "IPv4"},
            },
            "target": {"id": crn(&format!("key:{KEY}")), "typeURI": "kms/secrets"},
            "observer": {"name": "ActivityTracker"},
            "reason": {"reasonCode": 200, "reasonType": "OK"},
            "severity": "normal",
            "requestData": {
                "requestURI": format!("/api/v2/keys/{KEY}/actions/unwrap"),
                "instanceID": INSTANCE, "keyType": "rootKey", "keyRingId": "default",
            },
            "responseData": {
                "keyId": KEY, "keyRingId": "default", "keyVersionId": VERSION,
                "keyVersionCreationDate": "1970-01-01T00:00:00Z", "keyState": 1,
                "expirationDate": "2027-01-16T20:00:00Z", "daysToKeyExpire": 1,
                "rewrappedKeyVersionId": VERSION,
            },
            "dataEvent": true,
            "correlationId": "c",
            "logSourceCRN": crn(":"),
            "saveServiceCopy": true,
        });
        assert_eq!(serde_json::to_value(event).expect("JSON"), want);
    }

    #[test]
    fn what_came_of_it_and_what_was_changed() {
        let at = |days: i64| UnixMs(AT.0 + days * 86_400_000);
        let date = |days: i64| view::date(at(days));
        let by = |by: &str| Authorisation { by: by.to_owned(), until: at(7) };
        let change = |change| Data { change: Some(change), ..Data::default() };
        let may = MayMake {
            create_root: true,
            create_standard: false,
            import_root: true,
            import_standard: false,
            token_only: true,
        };
        let from = vec![
            Policy::AllowedIp { enabled: false, subnets: Vec::new() },
            Policy::DualAuthDelete { enabled: false },
        ];
        let to = vec![
            Policy::AllowedIp { enabled: true, subnets: vec!["192.0.2.0/24".to_owned()] },
            Policy::AllowedNetwork { enabled: true, network: Some("private-only".to_owned()) },
            Policy::DualAuthDelete { enabled: true },
            Policy::KeyCreateImportAccess { enabled: true, may: Some(may) },
            Policy::Rotation { enabled: true, interval_month: Some(3) },
            Policy::Metrics { enabled: true },
        ];
        let token = ImportToken { allowed: 3, remaining: 2, expires: at(1) };
        let purge = Purge { deleted: at(0), allowed_from: at(1), due: at(90) };
        let said = Acknowledged {
            event: 7,
            kind: "rotate".to_owned(),
            state: "DEK_ENABLED".to_owned(),
            at: at(0),
            version: None,
        };
        for (action, data, asked, came) in [
            (
                "kms.secrets.list",
                Data { total: Some(9), ..Data::default() },
                json!({}),
                json!({"totalResources": 9}),
            ),
            (
                "iam-identity.token.verify",
                Data { count: Some(70), ..Data::default() },
                json!({}),
                json!({"count": 70}),
            ),
            (
                "kms.secrets.rotate",
                Data { repeated: true, ..Data::default() },
                json!({}),
                json!({"repeated": true}),
            ),
            (
                "kms.secrets.patch",
                change(Change::Ring { from: "a".to_owned(), to: "b".to_owned() }),
                json!({"initialValue": {"keyRingId": "a"}, "newValue": {"keyRingId": "b"}}),
                json!({}),
            ),
            (
                "kms.secrets.expire",
                change(Change::State { from: KeyState::Active, to: KeyState::Deactivated }),
                json!({}),
                json!({"initialValue": {"keyState": 1}, "newValue": {"keyState": 3}}),
            ),
            (
                "kms.secrets.setkeyfordeletion",
                change(Change::Deletion { from: None, to: Some(by("IBMid-1")) }),
                json!({}),
                json!({"newValue": {"authID": "IBMid-1", "authExpiration": date(7)}}),
            ),
            (
                "kms.secrets.purge",
                Data { purge: Some(purge), ..Data::default() },
                json!({}),
                json!({"deletionDate": date(0), "purgeAllowedFrom": date(1), "purgeEligibleOn": date(90)}),
            ),
            (
                "kms.import-token.read",
                Data { import_token: Some(token), ..Data::default() },
                json!({}),
                json!({"maxAllowedRetrievals": 3, "remainingRetrievals": 2, "expirationDate": date(1)}),
            ),
            (
                "kms.secrets-event.ack",
                Data { event: Some(said), ..Data::default() },
                json!({}),
                json!({"eventAckData": {"eventId": 7, "eventType": "rotate", "keyState": "DEK_ENABLED",
                    "eventAckTimeStamp": date(0)}}),
            ),
            (
                "kms.instance-policies.write",
                change(Change::Policies { from, to }),
                json!({
                   "initialValue": {
                       "policyAllowedIPEnabled": false, "policyDualAuthDeleteEnabled": false,
                   },
                   "newValue": {
                       "policyAllowedIPEnabled": true, "policyAllowedIPAttribute": ["192.0.2.0/24"],
                       "policyAllowedNetworkEnabled": true,
                       "policyAllowedNetworkAttribute": "private-only",
                       "policyDualAuthDeleteEnabled": true, "PolicyKCIAEnabled": true,
                       "PolicyKCIAAttrCRK": true, "PolicyKCIAAttrCSK": false,
                       "PolicyKCIAAttrIRK": true, "PolicyKCIAAttrISK": false,
                       "PolicyKCIAAttrET": true, "policyRotationEnabled": true,
                       "policyRotationInterval": 3, "policyMetricsEnabled": true,
                   },
                }),
                json!({}),
            ),
        ] {
            let record = record(action, data);
            // As it comes back from wherever it was kept.
            let kept = serde_json::to_string(&record).expect("JSON");
            assert_eq!(serde_json::from_str::<Record>(&kept).expect("a record"), record);
            let shown = event(&record, &account(), &Names::default());
            let shown = serde_json::to_value(shown).expect("JSON");
            let mut want = asked;
            want["instanceID"] = json!(INSTANCE);
            assert_eq!(shown["requestData"], want, "{action}");
            assert_eq!(shown["responseData"], came, "{action}");
        }
    }

    #[test]
    fn how_it_ended_and_who_did_it() {
        let refused = Record {
            status: 403,
            reason: "SERVICE_ONLY_ERR".into(),
            who: "iam-ServiceId-1".to_owned(),
            address: Some("2001:db8::1".parse().expect("an address")),
            ..record("kms.registrations.default", Data::default())
        };
        let shown = event(&refused, &account(), &Names::default());
        assert_eq!((shown.outcome.as_str(), shown.severity.as_str()), ("failure", "critical"));
        assert_eq!((shown.reason.reason_code, shown.data_event), (401, false));
        assert_eq!(shown.reason.reason_for_failure.as_deref(), Some("SERVICE_ONLY_ERR"));
        assert_eq!(shown.message, "Key Protect: default registrations -failure");
        assert_eq!(shown.initiator.type_uri, "service/security/account/serviceid");
        assert_eq!(shown.initiator.host.map(|host| host.address_type).as_deref(), Some("IPv6"));
        let system = Record {
            who: "system".to_owned(),
            credential: None,
            address: None,
            target: "-".to_owned(),
            ..record("iam-identity.user-apikey.login", Data::default())
        };
        let shown = event(&system, &account(), &Names::default());
        assert_eq!((shown.initiator.credential, shown.initiator.host), (None, None));
        assert_eq!(shown.request_data, RequestData::default());
        assert_eq!(shown.target.type_uri, "iam-identity/user-apikey");
    }
}
