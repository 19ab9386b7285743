//! The Resource Controller and Resource Manager, as clients of IBM's know them: instances of the
//! key service under `/v2/resource_instances`, their groups under `/v2/resource_groups`.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use uuid::Uuid;

/// The catalogue's id of Key Protect.
pub const RESOURCE_ID: &str = "ee41347f-b18e-4ca6-bf80-b5467c63f9a6";
/// The catalogue's id of Key Protect's plan; this server has no other.
pub const PLAN_ID: &str = "eedd3585-90c6-4c8f-be3d-062069e99fc3";
/// The type of every instance.
pub const SERVICE_INSTANCE: &str = "service_instance";

/// An instance of the key service.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[allow(missing_docs)] // The names are the contract.
pub struct ResourceInstance {
    /// The CRN.
    pub id: String,
    pub guid: Uuid,
    pub url: String,
    pub crn: String,
    pub name: String,
    pub region_id: String,
    pub account_id: String,
    pub resource_plan_id: String,
    pub resource_group_id: Uuid,
    pub resource_group_crn: String,
    pub resource_id: String,
    pub target_crn: String,
    /// `active`: instances are made and removed at once.
    pub state: String,
    #[serde(rename = "type")]
    pub kind: String,
    pub sub_type: String,
    pub allow_cleanup: bool,
    pub locked: bool,
    pub last_operation: LastOperation,
    pub dashboard_url: String,
    pub created_at: String,
    pub created_by: String,
    pub updated_at: String,
    pub updated_by: String,
    pub extensions: Extensions,
}

/// The last change of an instance; always done.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[allow(missing_docs)]
pub struct LastOperation {
    #[serde(rename = "type")]
    pub kind: String,
    pub state: String,
    pub description: String,
}

/// Where an instance is reached. Terraform needs the maps.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[allow(missing_docs)]
pub struct Extensions {
    pub endpoints: Endpoints,
    pub virtual_private_endpoints: BTreeMap<String, serde_json::Value>,
}

/// Base URLs of the key service. Both are the private one where there is no public listener.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[allow(missing_docs)]
pub struct Endpoints {
    pub public: String,
    pub private: String,
}

/// An instance to make.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema, Default)]
#[schemars(extend("required" = ["name"]))]
#[allow(missing_docs)]
pub struct NewResourceInstance {
    #[serde(default)]
    #[schemars(length(min = 1, max = 180))]
    pub name: String,
    /// A region, or the CRN of a deployment.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub target: Option<String>,
    /// Id or name.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub resource_group: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub resource_plan_id: Option<String>,
}

/// What can be changed in an instance; the rest of a body is ignored.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema, Default)]
#[allow(missing_docs)]
pub struct ResourceInstanceChange {
    #[serde(default)]
    #[schemars(length(min = 1, max = 180))]
    pub name: Option<String>,
}

/// A page of instances.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[allow(missing_docs)]
pub struct ResourceInstances {
    pub rows_count: u64,
    /// Path and query of the next page, if there is one.
    pub next_url: Option<String>,
    pub resources: Vec<ResourceInstance>,
}

/// A resource group.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[allow(missing_docs)]
pub struct ResourceGroup {
    pub id: Uuid,
    pub crn: String,
    pub account_id: String,
    pub name: String,
    pub state: String,
    pub default: bool,
    pub created_at: String,
    pub updated_at: String,
    pub resource_linkages: Vec<String>,
}

/// All resource groups.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[allow(missing_docs)]
pub struct ResourceGroups {
    pub resources: Vec<ResourceGroup>,
}

/// An error of both.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[allow(missing_docs)]
pub struct ResourceError {
    pub error_code: String,
    pub message: String,
    pub status_code: u16,
    pub transaction_id: String,
}
