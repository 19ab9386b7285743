//! The token endpoint: `POST /identity/token` and `POST /oidc/token`, form-encoded.

use claviger_domain::access::{PlatformRole, ServiceRole};
use claviger_domain::id::{InstanceId, KeyId};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Grant type of an API key (field `apikey`).
pub const GRANT_APIKEY: &str = "urn:ibm:params:oauth:grant-type:apikey";

/// Grant type of a node agent: its certificate is the credential, the form carries nothing else.
pub const GRANT_NODE: &str = "urn:claviger:params:oauth:grant-type:node-certificate";

/// A token, as clients of IBM's IAM expect it.
#[derive(Serialize, Deserialize, JsonSchema)]
pub struct Token {
    /// A JWT.
    pub access_token: String,
    /// Not in use; clients want the field.
    pub refresh_token: String,
    /// `Bearer`.
    pub token_type: String,
    /// Seconds from now.
    pub expires_in: u64,
    /// Seconds since the Unix epoch.
    pub expiration: i64,
    /// Not in use; clients want the field.
    pub scope: String,
}

/// The body of an error of the token endpoint.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
pub struct TokenError {
    /// For instance `BXNIM0415E`.
    #[serde(rename = "errorCode")]
    pub error_code: String,
    /// For people.
    #[serde(rename = "errorMessage")]
    pub error_message: String,
    /// Where to look it up.
    #[serde(default)]
    pub context: ErrorContext,
}

/// Identifies the failed request.
#[derive(Debug, Serialize, Deserialize, JsonSchema, Default)]
pub struct ErrorContext {
    /// The correlation id.
    #[serde(rename = "requestId")]
    pub request_id: String,
}

/// Someone or something to be let in: `POST /v3/principals`.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema, Default)]
#[serde(deny_unknown_fields)]
pub struct NewPrincipal {
    /// For people.
    #[schemars(length(min = 1, max = 180))]
    pub name: String,
    /// A service ID, not a person.
    #[serde(default)]
    pub service: bool,
    /// For a person; may be empty.
    #[serde(default)]
    #[schemars(length(max = 180))]
    pub email: String,
    /// IAM id of the person that a service ID stands for; the caller if none is given.
    #[serde(default)]
    pub owner: Option<String>,
    /// Service roles.
    #[serde(default)]
    #[schemars(length(max = 100))]
    pub roles: Vec<RoleOn>,
    /// Platform roles.
    #[serde(default)]
    #[schemars(length(max = 100))]
    pub platform: Vec<PlatformRole>,
}

/// A service role and where it counts: in all instances if none is named, on the whole instance
/// if neither a key ring nor a key of it is.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs)]
pub struct RoleOn {
    pub role: ServiceRole,
    #[serde(default)]
    pub instance: Option<InstanceId>,
    #[serde(default)]
    pub ring: Option<String>,
    #[serde(default)]
    pub key: Option<KeyId>,
}

/// Who was let in. The API key is shown this once.
#[derive(Serialize, Deserialize, JsonSchema)]
#[allow(missing_docs)]
pub struct MadePrincipal {
    pub iam_id: String,
    pub name: String,
    pub apikey: String,
}
