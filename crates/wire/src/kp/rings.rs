//! Key rings and aliases.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// Header that names a key ring: where a new key goes, or where a key is looked for.
pub const RING_HEADER: &str = "X-Kms-Key-Ring";
/// Media type of key rings.
pub const RING_TYPE: &str = "application/vnd.ibm.kms.key_ring+json";
/// Media type of aliases.
pub const ALIAS_TYPE: &str = "application/vnd.ibm.kms.alias+json";

/// A key ring; `default` has neither date nor maker.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
#[allow(missing_docs)]
pub struct KeyRing {
    pub id: String,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    #[schemars(extend("format" = "date-time"))]
    pub creation_date: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub created_by: Option<String>,
}

/// `PATCH /keys/{id}`: a bare object. Go writes `KeyRingID`.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema, Default)]
#[schemars(extend("required" = ["keyRingID"]))]
pub struct KeyPatch {
    /// The ring to move the key to.
    #[schemars(required, length(min = 1))]
    #[serde(
        rename = "keyRingID",
        alias = "KeyRingID",
        alias = "keyRingId",
        skip_serializing_if = "Option::is_none",
        default
    )]
    pub key_ring_id: Option<String>,
}

/// A key's alias.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[allow(missing_docs)]
pub struct KeyAlias {
    pub key_id: Uuid,
    pub alias: String,
    pub created_by: String,
    #[schemars(extend("format" = "date-time"))]
    pub creation_date: String,
}
