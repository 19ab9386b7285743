//! Policies of keys and of instances.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use uuid::Uuid;

use super::{DualAuthDelete, Rotation};

/// Media type of policies.
pub const POLICY_TYPE: &str = "application/vnd.ibm.kms.policy+json";
/// Media type of the private port.
pub const ALLOWED_IP_TYPE: &str = "application/vnd.ibm.kms.allowed_ip_metadata+json";

/// A key's policy, in answers: one of `rotation` and `dual_auth_delete`.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[allow(missing_docs)] // The names are the contract.
pub struct KeyPolicy {
    #[serde(rename = "type")]
    pub media_type: String,
    pub id: Uuid,
    pub crn: String,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub rotation: Option<Rotation>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub dual_auth_delete: Option<DualAuthDelete>,
    #[schemars(extend("format" = "date-time"))]
    pub creation_date: String,
    pub created_by: String,
    #[schemars(extend("format" = "date-time"))]
    pub last_update_date: String,
    pub updated_by: String,
}

/// A key's policy to write. What is only in answers is let through, so that what was read can be
/// sent back; anything else is refused.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema, Default)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[allow(missing_docs)]
pub struct KeyPolicyInput {
    #[serde(rename = "type", skip_serializing_if = "Option::is_none", default)]
    pub media_type: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub rotation: Option<RotationInput>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub dual_auth_delete: Option<DualAuthDeleteInput>,
    #[serde(skip_serializing, default)]
    pub id: Option<Value>,
    #[serde(skip_serializing, default)]
    pub crn: Option<Value>,
    #[serde(skip_serializing, default)]
    pub creation_date: Option<Value>,
    #[serde(skip_serializing, default)]
    pub created_by: Option<Value>,
    #[serde(skip_serializing, default)]
    pub last_update_date: Option<Value>,
    #[serde(skip_serializing, default)]
    pub updated_by: Option<Value>,
}

/// How often a key is to be rotated. Go writes -1 for an interval of nothing.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema, Default)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs)]
pub struct RotationInput {
    /// Absent: yes.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub enabled: Option<bool>,
    /// Absent: as it was.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub interval_month: Option<i64>,
}

/// Whether two persons are to be needed to delete a key.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema, Default)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs)]
pub struct DualAuthDeleteInput {
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub enabled: Option<bool>,
}

/// An instance's policy, in answers.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[allow(missing_docs)]
pub struct InstancePolicy {
    pub policy_type: String,
    pub policy_data: PolicyData,
    #[serde(rename = "creationDate")]
    #[schemars(extend("format" = "date-time"))]
    pub creation_date: String,
    #[serde(rename = "createdBy")]
    pub created_by: String,
    #[serde(rename = "lastUpdated")]
    #[schemars(extend("format" = "date-time"))]
    pub last_updated: String,
    #[serde(rename = "updatedBy")]
    pub updated_by: String,
}

/// What an instance's policy says.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema, Default)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs)]
pub struct PolicyData {
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub enabled: Option<bool>,
    /// Depends on the type; see [`AllowedIp`] and the others.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub attributes: Option<Map<String, Value>>,
}

/// An instance's policy to write. What is only in answers is let through.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema, Default)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs)]
pub struct InstancePolicyInput {
    pub policy_type: String,
    pub policy_data: PolicyData,
    #[serde(rename = "creationDate", skip_serializing, default)]
    pub creation_date: Option<Value>,
    #[serde(rename = "createdBy", skip_serializing, default)]
    pub created_by: Option<Value>,
    #[serde(rename = "lastUpdated", skip_serializing, default)]
    pub last_updated: Option<Value>,
    #[serde(rename = "updatedBy", skip_serializing, default)]
    pub updated_by: Option<Value>,
}

/// Attributes of `allowedIP`.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema, Default)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs)]
pub struct AllowedIp {
    /// Subnets in CIDR notation.
    #[serde(default)]
    pub allowed_ip: Vec<String>,
}

/// Attributes of `allowedNetwork`.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema, Default)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs)]
pub struct AllowedNetwork {
    /// `public-and-private` or `private-only`.
    #[serde(default)]
    pub allowed_network: String,
}

/// Attributes of `rotation` of an instance.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema, Default)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs)]
pub struct RotationAttributes {
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub interval_month: Option<i64>,
}

/// Attributes of `keyCreateImportAccess`; an absent one has its default.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema, PartialEq, Eq)]
#[serde(deny_unknown_fields, default)]
#[allow(missing_docs)]
pub struct KeyCreateImportAccess {
    pub create_root_key: bool,
    pub create_standard_key: bool,
    pub import_root_key: bool,
    pub import_standard_key: bool,
    /// Import with an import token only.
    pub enforce_token: bool,
}

impl Default for KeyCreateImportAccess {
    fn default() -> Self {
        Self {
            create_root_key: true,
            create_standard_key: true,
            import_root_key: true,
            import_standard_key: true,
            enforce_token: false,
        }
    }
}

/// Which port serves the private endpoint.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[allow(missing_docs)]
pub struct PrivatePort {
    pub private_endpoint_port: u16,
}
