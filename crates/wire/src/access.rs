//! Access policies, groups and roles, as IBM's clients know them: `/v1/policies`, `/v2/groups`,
//! `/v2/roles`, and the older `/acms` and `/v1/groups`.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// `type` of a policy that gives roles to principals and groups.
pub const TYPE_ACCESS: &str = "access";
/// `type` of a policy that lets one service use another.
pub const TYPE_AUTHORIZATION: &str = "authorization";

/// A policy. A field that is not here would narrow it (tags, times), so none is ignored.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema, Default)]
#[serde(default, deny_unknown_fields)]
#[schemars(rename = "AccessPolicy")]
#[allow(missing_docs)] // The names are the contract.
pub struct Policy {
    #[serde(skip_serializing_if = "String::is_empty")]
    pub id: String,
    #[serde(rename = "type")]
    pub kind: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub description: String,
    pub subjects: Vec<Attributes>,
    pub roles: Vec<PolicyRole>,
    pub resources: Vec<Attributes>,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub href: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub created_at: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub created_by_id: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub last_modified_at: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub last_modified_by_id: String,
    /// `active`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub state: String,
}

/// Names and values that must all hold.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema, Default, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "PolicyAttributes")]
#[allow(missing_docs)]
pub struct Attributes {
    #[serde(default)]
    pub attributes: Vec<Attribute>,
}

/// One of them.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema, Default, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "PolicyAttribute")]
#[allow(missing_docs)]
pub struct Attribute {
    pub name: String,
    pub value: String,
    /// `stringEquals`, and nothing else here.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub operator: Option<String>,
}

/// A role in a policy.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema, Default)]
#[serde(default)]
#[allow(missing_docs)]
pub struct PolicyRole {
    /// A CRN.
    pub role_id: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub display_name: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub description: String,
}

/// All policies that were asked for.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "{P}List")]
#[allow(missing_docs)]
pub struct Policies<P = Policy> {
    pub policies: Vec<P>,
}

/// A policy in the older form.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema, Default)]
#[serde(default, deny_unknown_fields)]
#[schemars(rename = "OldAccessPolicy")]
#[allow(missing_docs)]
pub struct OldPolicy {
    #[serde(skip_serializing_if = "String::is_empty")]
    pub id: String,
    #[serde(rename = "type", skip_serializing_if = "String::is_empty")]
    pub kind: String,
    pub roles: Vec<OldRole>,
    pub resources: Vec<OldAttributes>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub subjects: Vec<OldAttributes>,
}

/// A role in the older form.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema, Default)]
#[serde(default, rename_all = "camelCase")]
#[allow(missing_docs)]
pub struct OldRole {
    /// A CRN.
    pub id: String,
    pub display_name: String,
    pub description: String,
}

/// Names and values in the older form.
pub type OldAttributes = std::collections::BTreeMap<String, String>;

/// The roles of a service, and those of the platform that count for it.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[allow(missing_docs)]
pub struct OldRoles {
    pub supported_roles: Vec<OldRole>,
    pub platform_extensions: OldPlatformRoles,
    pub system_defined_roles: Vec<OldSystemRole>,
}

/// The second half of [`OldRoles`].
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[allow(missing_docs)]
pub struct OldPlatformRoles {
    pub supported_roles: Vec<OldRole>,
}

/// The third part of [`OldRoles`].
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[allow(missing_docs)]
pub struct OldSystemRole {
    pub crn: String,
    pub display_name: String,
    pub description: String,
}

/// Every role that there is.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "AccessRoles")]
#[allow(missing_docs)]
pub struct Roles {
    pub custom_roles: Vec<Role>,
    pub service_roles: Vec<Role>,
    pub system_roles: Vec<Role>,
}

/// One of them.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "AccessRole")]
#[allow(missing_docs)]
pub struct Role {
    pub id: String,
    pub crn: String,
    pub name: String,
    pub display_name: String,
    pub description: String,
    pub service_name: String,
    pub account_id: String,
    pub actions: Vec<String>,
}

/// An access group.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema, Default)]
#[serde(default)]
#[schemars(rename = "AccessGroup")]
#[allow(missing_docs)]
pub struct Group {
    #[serde(skip_serializing_if = "String::is_empty")]
    pub id: String,
    pub name: String,
    pub description: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub account_id: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub created_at: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub created_by_id: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub last_modified_at: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub last_modified_by_id: String,
}

/// What can be changed in a group.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema, Default)]
#[schemars(rename = "AccessGroupChange")]
#[allow(missing_docs)]
pub struct GroupChange {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
}

/// A page of groups.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "AccessGroups")]
#[allow(missing_docs)]
pub struct Groups {
    #[serde(flatten)]
    pub page: Page,
    pub groups: Vec<Group>,
}

/// Where a page of groups or members stands in the whole.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[allow(missing_docs)]
pub struct Page {
    pub limit: usize,
    pub offset: usize,
    pub total_count: usize,
    pub first: Href,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub next: Option<Href>,
}

/// Where another page is.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[allow(missing_docs)]
pub struct Href {
    pub href: String,
}

/// A page of members.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "AccessGroupMembers")]
#[allow(missing_docs)]
pub struct Members {
    #[serde(flatten)]
    pub page: Page,
    pub members: Vec<Member>,
}

/// Who is in a group. `id` is the older name of `iam_id`; answers have both.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema, Default)]
#[serde(default)]
#[schemars(rename = "AccessGroupMember")]
#[allow(missing_docs)]
pub struct Member {
    pub iam_id: String,
    pub id: String,
    /// `user` or `service`.
    #[serde(rename = "type")]
    pub kind: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub name: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub email: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub created_at: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub created_by_id: String,
}

/// Who is to come into a group.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema, Default)]
#[allow(missing_docs)]
pub struct NewMembers {
    #[serde(default)]
    pub members: Vec<Member>,
}

/// What became of each.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[allow(missing_docs)]
pub struct AddedMembers {
    pub members: Vec<AddedMember>,
}

/// What became of one. `ok` is for older clients.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[allow(missing_docs)]
pub struct AddedMember {
    pub iam_id: String,
    pub id: String,
    #[serde(rename = "type")]
    pub kind: String,
    pub status_code: u16,
    pub ok: bool,
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub errors: Vec<AccessErrorItem>,
}

/// An error of all of these.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[allow(missing_docs)]
pub struct AccessError {
    pub trace: String,
    pub errors: Vec<AccessErrorItem>,
    pub status_code: u16,
}

/// Why.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[allow(missing_docs)]
pub struct AccessErrorItem {
    pub code: String,
    pub message: String,
}

/// People of the account: `/v2/accounts/{account}/users`.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[allow(missing_docs)]
pub struct Users {
    pub total_results: usize,
    pub limit: usize,
    pub first_url: String,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub next_url: Option<String>,
    pub resources: Vec<User>,
}

/// One of them.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[allow(missing_docs)]
pub struct User {
    pub id: String,
    pub iam_id: String,
    pub realm: String,
    pub user_id: String,
    pub firstname: String,
    pub lastname: String,
    /// `ACTIVE`.
    pub state: String,
    pub email: String,
    pub account_id: String,
}
