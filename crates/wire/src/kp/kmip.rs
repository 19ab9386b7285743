//! KMIP adapters, their certificates and objects. Unlike the rest of Key Protect in snake_case.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// Media type of adapters.
pub const ADAPTER_TYPE: &str = "application/vnd.ibm.kms.kmip_adapter+json";
/// Media type of certificates.
pub const CERTIFICATE_TYPE: &str = "application/vnd.ibm.kms.kmip_client_certificate+json";
/// Media type of objects.
pub const OBJECT_TYPE: &str = "application/vnd.ibm.kms.kmip_object+json";
/// The one profile.
pub const PROFILE: &str = "native_1.0";

/// An adapter, in answers.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "KmipAdapter")]
#[allow(missing_docs)] // The names are the contract.
pub struct Adapter {
    pub id: Uuid,
    pub name: String,
    pub description: String,
    pub profile: String,
    pub profile_data: ProfileData,
    pub created_by: String,
    pub created_at: String,
    pub updated_by: String,
    pub updated_at: String,
}

/// What the profile needs.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema, Default)]
#[schemars(rename = "KmipProfileData", extend("required" = ["crk_id"]))]
#[allow(missing_docs)]
pub struct ProfileData {
    /// In requests id or alias, in answers the id.
    #[serde(default)]
    #[schemars(length(min = 1))]
    pub crk_id: String,
}

/// An adapter to make.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema, Default)]
#[schemars(rename = "NewKmipAdapter", extend("required" = ["profile", "profile_data"]))]
#[allow(missing_docs)]
pub struct NewAdapter {
    /// Absent or empty: made here.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    #[schemars(regex(pattern = "^([A-Za-z0-9_-]{2,40})?$"))]
    pub name: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    #[schemars(length(max = 240))]
    pub description: Option<String>,
    #[serde(default)]
    #[schemars(extend("const" = PROFILE))]
    pub profile: String,
    #[serde(default)]
    pub profile_data: ProfileData,
}

/// A certificate; lists leave the PEM out.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "KmipCertificate")]
#[allow(missing_docs)]
pub struct Certificate {
    pub id: Uuid,
    pub name: String,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub certificate: Option<String>,
    pub created_by: String,
    pub created_at: String,
}

/// A certificate to add.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema, Default)]
#[schemars(rename = "NewKmipCertificate", extend("required" = ["certificate"]))]
#[allow(missing_docs)]
pub struct NewCertificate {
    /// Absent or empty: made here.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    #[schemars(regex(pattern = "^([A-Za-z0-9_-]{2,40})?$"))]
    pub name: Option<String>,
    /// PEM.
    #[serde(default)]
    #[schemars(length(min = 1, max = 16384))]
    pub certificate: String,
}
