//! KMIP adapters, their certificates and objects. Unlike the rest of Key Protect in snake_case.

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
#[derive(Debug, Clone, Serialize, Deserialize)]
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
#[derive(Debug, Clone, Serialize, Deserialize, Default)]
#[allow(missing_docs)]
pub struct ProfileData {
    /// In requests id or alias, in answers the id.
    #[serde(default)]
    pub crk_id: String,
}

/// An adapter to make.
#[derive(Debug, Clone, Serialize, Deserialize, Default)]
#[allow(missing_docs)]
pub struct NewAdapter {
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub name: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub description: Option<String>,
    #[serde(default)]
    pub profile: String,
    #[serde(default)]
    pub profile_data: ProfileData,
}

/// A certificate; lists leave the PEM out.
#[derive(Debug, Clone, Serialize, Deserialize)]
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
#[derive(Debug, Clone, Serialize, Deserialize, Default)]
#[allow(missing_docs)]
pub struct NewCertificate {
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub name: Option<String>,
    /// PEM.
    #[serde(default)]
    pub certificate: String,
}
