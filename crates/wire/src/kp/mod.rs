//! Key Protect v2: bodies of `/api/v2`. Names and shapes are the clients'.

pub mod ack;
pub mod import;
pub mod kmip;
pub mod policies;
pub mod rings;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// Header that names the instance.
pub const INSTANCE_HEADER: &str = "Bluemix-Instance";
/// Header that ties an act to a caller's own record of it.
pub const CORRELATION_HEADER: &str = "Correlation-Id";

/// Media type of a key; Python's generated client needs it on key answers.
pub const KEY_TYPE: &str = "application/vnd.ibm.kms.key+json";
/// Media type of key versions.
pub const VERSION_TYPE: &str = "application/vnd.ibm.kms.key.version+json";
/// Media type of registrations.
pub const REGISTRATION_TYPE: &str = "application/vnd.ibm.kms.registration+json";
/// Media type of the answers to wrap, unwrap and rewrap.
pub const ACTION_TYPE: &str = "application/vnd.ibm.kms.key_action+json";
/// Media type of an error.
pub const ERROR_TYPE: &str = "application/vnd.ibm.kms.error+json";

/// What an envelope carries.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct Metadata {
    /// Media type of the resources.
    #[serde(rename = "collectionType")]
    pub collection_type: String,
    /// Number of resources in this envelope.
    #[serde(rename = "collectionTotal")]
    pub collection_total: u64,
    /// Number of matches, ignoring limit and offset; only with `totalCount=true`.
    #[serde(rename = "totalCount", skip_serializing_if = "Option::is_none", default)]
    pub total_count: Option<u64>,
    /// How a search was understood; only in the answer to one.
    #[serde(rename = "searchQuery", skip_serializing_if = "Option::is_none", default)]
    pub search_query: Option<SearchQuery>,
}

/// How a search was understood.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema, PartialEq, Eq)]
pub struct SearchQuery {
    /// What was looked for, without prefixes.
    pub query: String,
    /// Where: `name`, `alias`.
    pub scopes: Vec<String>,
    /// Whether the keys that do not match were asked for.
    pub not: bool,
    /// Whether the whole name or alias had to match.
    pub exact: bool,
}

/// The outer shape of nearly every body.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "{T}Envelope")]
pub struct Envelope<T> {
    /// Type and number of the resources.
    pub metadata: Metadata,
    /// The resources; an empty list is `[]`, never absent.
    #[serde(default = "Vec::new")]
    #[schemars(default)]
    pub resources: Vec<T>,
}

impl<T> Envelope<T> {
    /// An envelope of `resources` of this media type.
    pub fn of(collection_type: &str, resources: Vec<T>) -> Self {
        let total = resources.len() as u64;
        let metadata = Metadata {
            collection_type: collection_type.to_owned(),
            collection_total: total,
            total_count: None,
            search_query: None,
        };
        Self { metadata, resources }
    }
}

/// A key, in answers.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema, Default)]
#[serde(rename_all = "camelCase")]
#[allow(missing_docs)] // The names are the contract.
pub struct Key {
    #[serde(rename = "type")]
    pub media_type: String,
    pub id: Uuid,
    pub name: String,
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub aliases: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub description: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub tags: Vec<String>,
    /// Active, suspended, deactivated, destroyed.
    #[schemars(extend("enum" = [1, 2, 3, 5]))]
    pub state: u8,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub expiration_date: Option<String>,
    pub extractable: bool,
    pub crn: String,
    pub imported: bool,
    #[serde(rename = "keyRingID", default)]
    pub key_ring_id: String,
    #[schemars(extend("format" = "date-time"))]
    pub creation_date: String,
    pub created_by: String,
    pub algorithm_type: String,
    pub algorithm_metadata: AlgorithmMetadata,
    pub algorithm_bit_size: u32,
    pub algorithm_mode: String,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub nonactive_state_reason: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    #[schemars(extend("format" = "date-time"))]
    pub last_update_date: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    #[schemars(extend("format" = "date-time"))]
    pub last_rotate_date: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub key_version: Option<KeyVersion>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub dual_auth_delete: Option<DualAuthDelete>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub rotation: Option<Rotation>,
    pub deleted: bool,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    #[schemars(extend("format" = "date-time"))]
    pub deletion_date: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub deleted_by: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub restore_allowed: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    #[schemars(extend("format" = "date-time"))]
    pub restore_expiration_date: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub purge_allowed: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    #[schemars(extend("format" = "date-time"))]
    pub purge_allowed_from: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    #[schemars(extend("format" = "date-time"))]
    pub purge_scheduled_on: Option<String>,
    /// Base64; standard keys only.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    #[schemars(extend("contentEncoding" = "base64"))]
    pub payload: Option<String>,
}

/// Kept for clients that read it; the values are constants.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema, Default)]
#[serde(rename_all = "camelCase")]
#[allow(missing_docs)]
pub struct AlgorithmMetadata {
    pub bit_length: String,
    pub mode: String,
}

/// Whether two persons are needed to delete a key, and how far they are.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
#[allow(missing_docs)]
pub struct DualAuthDelete {
    pub enabled: bool,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub key_set_for_deletion: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    #[schemars(extend("format" = "date-time"))]
    pub auth_expiration: Option<String>,
}

/// How often a key is rotated by itself.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema, Default, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Rotation {
    pub enabled: bool,
    /// Months of 30 days, 1 to 12.
    pub interval_month: u8,
}

/// A key version, by id.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[allow(missing_docs)]
pub struct KeyVersion {
    pub id: Uuid,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    #[schemars(extend("format" = "date-time"))]
    pub creation_date: Option<String>,
}

/// A key to create or import. Go writes `Tags`, the others `tags`; unknown fields are ignored.
#[derive(Serialize, Deserialize, JsonSchema, Default)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("required" = ["name"]))]
#[allow(missing_docs)]
pub struct NewKey {
    #[serde(rename = "type", default)]
    pub media_type: String,
    #[serde(default)]
    #[schemars(length(min = 2, max = 90))]
    pub name: String,
    /// A standard key: its payload can be read. A root key's cannot.
    #[serde(default)]
    pub extractable: bool,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    #[schemars(length(max = 240))]
    pub description: Option<String>,
    /// Not a UUID and not a word of this API.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    #[schemars(length(max = 5), inner(regex(pattern = "^[A-Za-z0-9_-]{2,90}$")))]
    pub aliases: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty", default, alias = "Tags")]
    #[schemars(length(max = 30), inner(regex(pattern = "^[^<>,:&|]{1,30}$")))]
    pub tags: Vec<String>,
    /// RFC 3339, in the future; empty: none.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub expiration_date: Option<String>,
    /// Base64: of a root key 16, 24 or 32 bytes, of a standard key at most 7,500. Absent: made here.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    #[schemars(extend("contentEncoding" = "base64"))]
    pub payload: Option<String>,
    /// Only with an import token.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub encrypted_nonce: Option<String>,
    /// Only with an import token.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub iv: Option<String>,
    /// Only with an import token: `RSAES_OAEP_SHA_256` if absent, or `RSAES_OAEP_SHA_1`.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub encryption_algorithm: Option<String>,
    /// Only `keys_with_policy_overrides` heeds it.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub rotation: Option<policies::RotationInput>,
    /// Only `keys_with_policy_overrides` heeds it.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub dual_auth_delete: Option<policies::DualAuthDeleteInput>,
}

/// `wrap`: without a plaintext the service makes 32 random bytes and answers them too.
#[derive(Serialize, Deserialize, JsonSchema, Default)]
#[allow(missing_docs)]
pub struct WrapRequest {
    /// Base64.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    #[schemars(extend("contentEncoding" = "base64"))]
    pub plaintext: Option<String>,
    /// In order; a null counts as an empty string.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    #[schemars(length(max = 126), inner(length(max = 255)))]
    pub aad: Option<Vec<Option<String>>>,
}

/// `unwrap` and `rewrap`.
#[derive(Serialize, Deserialize, JsonSchema, Default)]
#[schemars(extend("required" = ["ciphertext"]))]
#[allow(missing_docs)]
pub struct UnwrapRequest {
    /// As wrap answered it.
    #[serde(default)]
    #[schemars(length(min = 1))]
    pub ciphertext: String,
    /// As it was given to wrap.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    #[schemars(length(max = 126), inner(length(max = 255)))]
    pub aad: Option<Vec<Option<String>>>,
}

/// The answer to wrap, unwrap and rewrap: a bare object.
#[derive(Serialize, Deserialize, JsonSchema, Default)]
#[serde(rename_all = "camelCase")]
#[allow(missing_docs)]
pub struct ActionAnswer {
    /// Base64; wrap without a plaintext, and unwrap.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    #[schemars(extend("contentEncoding" = "base64"))]
    pub plaintext: Option<String>,
    /// Wrap and rewrap; unwrap when a newer version exists.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub ciphertext: Option<String>,
    /// The version that wrapped what came in, or that wraps what goes out.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub key_version: Option<KeyVersion>,
    /// The version of `ciphertext`, where it differs.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub rewrapped_key_version: Option<KeyVersion>,
}

/// `rotate`: a payload for imported keys only.
#[derive(Serialize, Deserialize, JsonSchema, Default)]
#[serde(rename_all = "camelCase")]
#[allow(missing_docs)]
pub struct RotateRequest {
    /// Base64.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    #[schemars(extend("contentEncoding" = "base64"))]
    pub payload: Option<String>,
    /// Only with an import token.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub encrypted_nonce: Option<String>,
    /// Only with an import token.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub iv: Option<String>,
    /// Only with an import token.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub encryption_algorithm: Option<String>,
}

/// A registration: which resource uses which key version.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema, Default)]
#[serde(rename_all = "camelCase")]
#[allow(missing_docs)]
pub struct Registration {
    #[serde(default)]
    pub key_id: Uuid,
    #[serde(skip_serializing_if = "String::is_empty", default)]
    pub key_name: String,
    #[serde(default)]
    pub resource_crn: String,
    #[serde(default)]
    pub created_by: String,
    #[serde(default)]
    #[schemars(extend("format" = "date-time"))]
    pub creation_date: String,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub updated_by: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    #[schemars(extend("format" = "date-time"))]
    pub last_updated: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub description: Option<String>,
    #[serde(default)]
    pub prevent_key_deletion: bool,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub key_version: Option<KeyVersion>,
    /// Shown to services only.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub registration_metadata: Option<String>,
}

/// A registration to write; POST needs `prevent_key_deletion`, PATCH only what changes.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema, Default)]
#[serde(rename_all = "camelCase")]
#[allow(missing_docs)]
pub struct RegistrationInput {
    #[serde(skip_serializing_if = "Option::is_none", default)]
    #[schemars(length(max = 240))]
    pub description: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub prevent_key_deletion: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub key_version_id: Option<Uuid>,
    /// Whatever the service notes for itself.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    #[schemars(length(max = 4096))]
    pub registration_metadata: Option<String>,
}

/// Who acted on the last event of a key: `GET /v3/instances/{i}/keys/{k}/acknowledgements`.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[allow(missing_docs)]
pub struct Acknowledgements {
    /// Number of the key's last event; 0 if there was none.
    pub event: u64,
    /// Every cluster registered on the key, or that acted on one of its events.
    pub clusters: Vec<ClusterAcknowledgement>,
    /// Everything else registered on the key, and whatever answered one of its events by
    /// `event_ack`.
    #[serde(default)]
    pub services: Vec<ServiceAcknowledgement>,
}

/// The newest event that a registered resource answered by `event_ack`.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[allow(missing_docs)]
pub struct ServiceAcknowledgement {
    pub crn: String,
    /// Whether it answered the last event.
    pub acknowledged: bool,
    /// 0 if it answered none yet.
    pub event: u64,
    /// What its keys are now, in its own word.
    pub state: Option<String>,
    /// The version that it rewrapped to.
    pub rewrapped: Option<claviger_domain::id::KeyVersionId>,
    pub at: Option<claviger_domain::id::UnixMs>,
}

/// How far one cluster is with the last event of a key.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[allow(missing_docs)]
pub struct ClusterAcknowledgement {
    pub cluster: claviger_domain::id::ClusterId,
    /// Whether every agent of the cluster acted on the last event.
    pub acknowledged: bool,
    pub agents: Vec<AgentAcknowledgement>,
}

/// The newest event that one agent acted on.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[allow(missing_docs)]
pub struct AgentAcknowledgement {
    pub agent: claviger_domain::id::AgentName,
    /// 0 if it acted on none yet.
    pub event: u64,
    pub state: Option<claviger_domain::key::KeyState>,
    pub fenced: bool,
    pub at: Option<claviger_domain::id::UnixMs>,
}

/// An error, inside an envelope of [`ERROR_TYPE`].
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[allow(missing_docs)]
pub struct ErrorBody {
    pub error_msg: String,
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub reasons: Vec<Reason>,
}

/// One reason of an error.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[allow(missing_docs)]
pub struct Reason {
    pub code: String,
    pub message: String,
    /// A number, or Go cannot read the error at all.
    pub status: u16,
    pub more_info: String,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub target: Option<Target>,
}

/// What a reason is about.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "ErrorTarget")]
#[allow(missing_docs)]
pub struct Target {
    /// `field`, `query_param` or `header`.
    #[serde(rename = "type")]
    pub kind: String,
    pub name: String,
}
