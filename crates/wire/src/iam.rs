//! Identities: the token endpoint (`POST /identity/token` and `POST /oidc/token`, form-encoded),
//! who there is, API keys, trusted issuers.

use claviger_domain::access::{PlatformRole, ServiceRole};
use claviger_domain::id::{InstanceId, KeyId};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Grant type of an API key (field `apikey`).
pub const GRANT_APIKEY: &str = "urn:ibm:params:oauth:grant-type:apikey";

/// Grant type of a refresh token (field `refresh_token`).
pub const GRANT_REFRESH: &str = "refresh_token";

/// Grant type of a service-account token of a trusted cluster (field `cr_token`).
pub const GRANT_CR_TOKEN: &str = "urn:ibm:params:oauth:grant-type:cr-token";

/// Grant type of an ID token of an issuer of people (RFC 8693; field `subject_token`, and
/// `subject_token_type` is [`ID_TOKEN`]).
pub const GRANT_EXCHANGE: &str = "urn:ietf:params:oauth:grant-type:token-exchange";

/// What an ID token is called when it is exchanged (RFC 8693, section 3).
pub const ID_TOKEN: &str = "urn:ietf:params:oauth:token-type:id_token";

/// What an access token is called when it is given in exchange.
pub const ACCESS_TOKEN: &str = "urn:ietf:params:oauth:token-type:access_token";

/// Grant type of a node agent: its certificate is the credential, the form carries nothing else.
pub const GRANT_NODE: &str = "urn:claviger:params:oauth:grant-type:node-certificate";

/// A token, as clients of IBM's IAM expect it.
#[derive(Serialize, Deserialize, JsonSchema)]
pub struct Token {
    /// A JWT.
    pub access_token: String,
    /// Good for the grant `refresh_token`; `not_supported` where there is none.
    pub refresh_token: String,
    /// `Bearer`.
    pub token_type: String,
    /// Seconds from now.
    pub expires_in: u64,
    /// Seconds since the Unix epoch.
    pub expiration: i64,
    /// Not in use; clients want the field.
    pub scope: String,
    /// [`ACCESS_TOKEN`], after an exchange alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub issued_token_type: Option<String>,
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
    /// By what a person comes in, instead of an API key.
    #[serde(default)]
    pub login: Option<LoginSubject>,
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

/// Somebody as an OpenID Connect issuer knows him: both together are an identity.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct LoginSubject {
    /// What his ID tokens say in `iss`; one that the server's settings name.
    #[schemars(length(min = 1, max = 512))]
    pub issuer: String,
    /// What they say in `sub`.
    #[schemars(length(min = 1, max = 255))]
    pub subject: String,
}

/// By which issuers a person comes in: `/v3/principals/{iam_id}/logins`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Logins {
    /// All of them.
    #[schemars(length(max = 20))]
    pub logins: Vec<LoginSubject>,
}

/// Who was let in. The API key is shown this once; who comes in by an issuer has none.
#[derive(Serialize, Deserialize, JsonSchema)]
#[allow(missing_docs)]
pub struct MadePrincipal {
    pub iam_id: String,
    pub name: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub apikey: Option<String>,
}

/// An API key as `/apikeys` shows it.
#[derive(Serialize, Deserialize, JsonSchema)]
#[allow(missing_docs)] // The names are the contract.
pub struct ApiKey {
    pub metadata: IdentityMetadata,
    pub entity: ApiKeyEntity,
}

/// When something was made and changed, and how it is named.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[allow(missing_docs)]
pub struct IdentityMetadata {
    pub uuid: String,
    #[serde(rename = "iam_id")]
    pub iam_id: String,
    /// What `If-Match` is held against.
    pub version: String,
    pub crn: String,
    pub created_at: String,
    pub modified_at: String,
}

/// What an API key is. `apiKey` is there once: in the answer to its creation.
#[derive(Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[allow(missing_docs)]
pub struct ApiKeyEntity {
    pub name: String,
    pub description: String,
    /// CRN of whose it is.
    pub bound_to: String,
    pub format: String,
    #[serde(skip_serializing_if = "String::is_empty", default)]
    pub api_key: String,
    pub api_key_id: String,
    /// Id of the API key by whose token it was made, there or gone. Ours.
    #[serde(skip_serializing_if = "String::is_empty", default)]
    pub created_with: String,
}

/// A service ID as `/serviceids` shows it.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[allow(missing_docs)]
pub struct ServiceId {
    pub metadata: IdentityMetadata,
    pub entity: ServiceIdEntity,
}

/// What a service ID is.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[allow(missing_docs)]
pub struct ServiceIdEntity {
    /// CRN of the account.
    pub bound_to: String,
    pub name: String,
    pub description: String,
}

/// An API key or a service ID to make or to change; the rest of a body is ignored.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema, Default)]
#[serde(default, rename_all = "camelCase")]
#[allow(missing_docs)]
pub struct NewIdentity {
    pub name: String,
    pub description: String,
    /// CRN or IAM id of whose it is; the caller's own, or the account's, if empty.
    pub bound_to: String,
}

/// A page of API keys or service IDs.
#[derive(Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(rename = "{T}List")]
#[allow(missing_docs)]
pub struct Items<T> {
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub next_page_token: Option<String>,
    pub items: Vec<T>,
}

/// Who asks: `/identity/userinfo`.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[allow(missing_docs)]
pub struct UserInfo {
    pub active: bool,
    pub iam_id: String,
    #[serde(rename = "realmId")]
    pub realm_id: String,
    pub identifier: String,
    pub name: String,
    pub email: String,
    pub sub: String,
    pub account: UserInfoAccount,
    pub iss: String,
}

/// Whose account it is.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[allow(missing_docs)]
pub struct UserInfoAccount {
    pub bss: String,
}

/// The public keys of access tokens: `/identity/keys`, a JWK set (RFC 7517).
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[allow(missing_docs)]
pub struct JwkSet {
    pub keys: Vec<EcJwk>,
}

/// One of them (RFC 7518, section 6.2).
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[allow(missing_docs)]
pub struct EcJwk {
    pub kty: String,
    pub crv: String,
    #[serde(rename = "use")]
    pub usage: String,
    pub alg: String,
    pub kid: String,
    pub x: String,
    pub y: String,
}

/// The key that signs access tokens from now on.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[allow(missing_docs)]
pub struct RotatedSigningKey {
    pub kid: String,
}

/// An issuer whose tokens are believed: `/v3/trusted-issuers`.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TrustedIssuer {
    /// What its tokens say in `iss`.
    pub issuer: String,
    /// What they must say in `aud`.
    pub audience: String,
    /// Its public keys: a JWK set (RFC 7517) for RS256 or ES256.
    pub jwks: serde_json::Value,
    /// Which service ID each subject may become.
    #[serde(default)]
    pub subjects: Vec<TrustedSubject>,
}

/// A subject, and what it may become.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub struct TrustedSubject {
    /// What its tokens say in `sub`, for instance `system:serviceaccount:NAMESPACE:NAME`.
    pub subject: String,
    /// IAM id of a service ID.
    pub iam_id: String,
}

/// Every issuer.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[allow(missing_docs)]
pub struct TrustedIssuers {
    pub issuers: Vec<TrustedIssuer>,
}
