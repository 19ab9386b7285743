//! Import tokens: how key material travels here under a key of ours.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Media type of import tokens.
pub const IMPORT_TOKEN_TYPE: &str = "application/vnd.ibm.kms.import_token+json";

/// `POST /import_token`; each field has a default.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema, Default)]
#[serde(rename_all = "camelCase")]
pub struct NewImportToken {
    /// Seconds until it ends.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    #[schemars(range(min = 300, max = 86400))]
    pub expiration: Option<i64>,
    /// How often it may be retrieved.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    #[schemars(range(min = 1, max = 500))]
    pub max_allowed_retrievals: Option<i64>,
}

/// An import token: a bare object.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[allow(missing_docs)]
pub struct ImportToken {
    #[serde(default)]
    pub id: String,
    #[schemars(extend("format" = "date-time"))]
    pub creation_date: String,
    #[schemars(extend("format" = "date-time"))]
    pub expiration_date: String,
    /// Seconds from creation to end.
    pub expiration: u64,
    pub max_allowed_retrievals: u32,
    pub remaining_retrievals: u32,
    /// Base64 of the public key's PEM; only when it is retrieved.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub payload: Option<String>,
    /// Base64; only when it is retrieved.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub nonce: Option<String>,
}
