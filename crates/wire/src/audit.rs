//! Audit records as events of CADF (DMTF DSP0262), in the shape and with the names that Key Protect
//! sends to IBM's Activity Tracker: `GET /v3/audit`.

use claviger_domain::id::{InstanceId, KeyId, KeyVersionId};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// A page of events, newest first.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct Events {
    /// May be fewer than asked for, or none, where there are more.
    pub events: Vec<Event>,
    /// Ask with `before=` this for older ones; none if there are none.
    pub next: Option<String>,
}

/// One event.
#[derive(Debug, Clone, Serialize, Deserialize, PartialEq, Eq, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[allow(missing_docs)] // The names are the contract.
pub struct Event {
    /// RFC 3339.
    pub event_time: String,
    /// For instance `kms.secrets.rotate`.
    pub action: String,
    /// `success` or `failure`.
    pub outcome: String,
    /// For people.
    pub message: String,
    pub initiator: Initiator,
    pub target: Target,
    pub observer: Observer,
    pub reason: Reason,
    /// `normal`, `warning` or `critical`.
    pub severity: String,
    pub request_data: RequestData,
    pub response_data: ResponseData,
    /// Whether keys were used or looked at; else they or what governs them were changed.
    pub data_event: bool,
    pub correlation_id: String,
    #[serde(rename = "logSourceCRN")]
    pub log_source_crn: String,
    pub save_service_copy: bool,
}

/// Who did it.
#[derive(Debug, Clone, Serialize, Deserialize, PartialEq, Eq, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[allow(missing_docs)]
pub struct Initiator {
    /// IAM id.
    pub id: String,
    pub name: String,
    #[serde(rename = "typeURI")]
    pub type_uri: String,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub credential: Option<Credential>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub host: Option<Host>,
}

/// How he proved who he is.
#[derive(Debug, Clone, Serialize, Deserialize, PartialEq, Eq, JsonSchema)]
pub struct Credential {
    /// `token`, `apikey`, `certificate` or `host`.
    #[serde(rename = "type")]
    pub kind: String,
}

/// Where the request came from.
#[derive(Debug, Clone, Serialize, Deserialize, PartialEq, Eq, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[allow(missing_docs)]
pub struct Host {
    pub address: String,
    /// `IPv4` or `IPv6`.
    pub address_type: String,
}

/// What it was done to.
#[derive(Debug, Clone, Serialize, Deserialize, PartialEq, Eq, JsonSchema)]
#[schemars(rename = "EventTarget")]
#[serde(rename_all = "camelCase")]
#[allow(missing_docs)]
pub struct Target {
    /// CRN.
    pub id: String,
    /// For instance `kms/secrets`.
    #[serde(rename = "typeURI")]
    pub type_uri: String,
}

/// Who says so.
#[derive(Debug, Clone, Serialize, Deserialize, PartialEq, Eq, JsonSchema)]
#[allow(missing_docs)]
pub struct Observer {
    pub name: String,
}

/// How it ended.
#[derive(Debug, Clone, Serialize, Deserialize, PartialEq, Eq, JsonSchema)]
#[schemars(rename = "EventReason")]
#[serde(rename_all = "camelCase")]
#[allow(missing_docs)]
pub struct Reason {
    /// HTTP status; 401 for what is forbidden too.
    pub reason_code: u16,
    /// Its phrase.
    pub reason_type: String,
    /// Code of the refusal.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub reason_for_failure: Option<String>,
}

/// What was asked for.
#[derive(Debug, Clone, Default, Serialize, Deserialize, PartialEq, Eq, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[allow(missing_docs)]
pub struct RequestData {
    #[serde(rename = "requestURI", skip_serializing_if = "Option::is_none", default)]
    pub request_uri: Option<String>,
    #[serde(rename = "instanceID", skip_serializing_if = "Option::is_none", default)]
    pub instance_id: Option<InstanceId>,
    /// `rootKey` or `standardKey`.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub key_type: Option<String>,
    /// As the header named it.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub key_ring_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub initial_value: Option<Values>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub new_value: Option<Values>,
}

/// What came of it.
#[derive(Debug, Clone, Default, Serialize, Deserialize, PartialEq, Eq, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[allow(missing_docs)]
pub struct ResponseData {
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub key_id: Option<KeyId>,
    /// The one that the key is in.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub key_ring_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub key_version_id: Option<KeyVersionId>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub key_version_creation_date: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    /// 1 active, 2 suspended, 3 deactivated, 5 destroyed.
    pub key_state: Option<u8>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub expiration_date: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub days_to_key_expire: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub rewrapped_key_version_id: Option<KeyVersionId>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub total_resources: Option<u64>,
    /// How many refusals of one second the event stands for.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub count: Option<u64>,
    /// Nothing was done: the request was the same as one before, and was answered again.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub repeated: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub deletion_date: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub purge_allowed_from: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub purge_eligible_on: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub max_allowed_retrievals: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub remaining_retrievals: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub event_ack_data: Option<EventAckData>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub initial_value: Option<Values>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub new_value: Option<Values>,
}

/// What a user of a key said about one of its events.
#[derive(Debug, Clone, Serialize, Deserialize, PartialEq, Eq, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[allow(missing_docs)]
pub struct EventAckData {
    pub event_id: u64,
    /// For instance `rotate`.
    pub event_type: String,
    /// In the user's own word.
    pub key_state: String,
    pub event_ack_time_stamp: String,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub new_key_version_id: Option<KeyVersionId>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub new_key_version_creation_date: Option<String>,
}

/// What something was, or is now.
#[derive(Debug, Clone, Default, Serialize, Deserialize, PartialEq, Eq, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[allow(missing_docs)]
pub struct Values {
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub key_ring_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    /// 1 active, 2 suspended, 3 deactivated, 5 destroyed.
    pub key_state: Option<u8>,
    #[serde(rename = "authID", skip_serializing_if = "Option::is_none", default)]
    pub auth_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub auth_expiration: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub policy_allowed_network_enabled: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub policy_allowed_network_attribute: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub policy_dual_auth_delete_enabled: Option<bool>,
    #[serde(rename = "policyAllowedIPEnabled", skip_serializing_if = "Option::is_none", default)]
    pub policy_allowed_ip_enabled: Option<bool>,
    #[serde(rename = "policyAllowedIPAttribute", skip_serializing_if = "Option::is_none", default)]
    pub policy_allowed_ip_attribute: Option<Vec<String>>,
    #[serde(rename = "PolicyKCIAEnabled", skip_serializing_if = "Option::is_none", default)]
    pub policy_kcia_enabled: Option<bool>,
    /// What the policy allows; absent if it is off.
    #[serde(flatten)]
    pub policy_kcia_attr: Option<KciaAttr>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub policy_rotation_enabled: Option<bool>,
    /// Months of 30 days.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub policy_rotation_interval: Option<u8>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub policy_metrics_enabled: Option<bool>,
    /// Of access policies, groups, identities and credentials: what they say, by names.
    #[serde(skip_serializing_if = "BTreeMap::is_empty", default)]
    pub access: BTreeMap<String, String>,
}

/// What a policy `keyCreateImportAccess` allows.
#[derive(Debug, Clone, Copy, Serialize, Deserialize, PartialEq, Eq, JsonSchema)]
pub struct KciaAttr {
    /// Create root keys.
    #[serde(rename = "PolicyKCIAAttrCRK")]
    pub crk: bool,
    /// Create standard keys.
    #[serde(rename = "PolicyKCIAAttrCSK")]
    pub csk: bool,
    /// Import root keys.
    #[serde(rename = "PolicyKCIAAttrIRK")]
    pub irk: bool,
    /// Import standard keys.
    #[serde(rename = "PolicyKCIAAttrISK")]
    pub isk: bool,
    /// Import with an import token only.
    #[serde(rename = "PolicyKCIAAttrET")]
    pub et: bool,
}
