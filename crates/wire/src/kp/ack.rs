//! What users of keys say they did after an event.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// `POST /event_ack`, inside an envelope.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema, Default)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("required" = ["eventId", "adopterKeyState", "timestamp"]))]
#[allow(missing_docs)]
pub struct EventAcknowledge {
    /// The event's number, as a number or as text.
    #[serde(default)]
    #[schemars(extend("type" = ["integer", "string"], "minimum" = 0))]
    pub event_id: Value,
    /// What the keys of the user are now, for instance `DEK_ENABLED`.
    #[serde(default)]
    #[schemars(regex(pattern = "^[!-~]{1,64}$"))]
    pub adopter_key_state: String,
    /// When the user was done, RFC 3339.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub timestamp: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub key_state_data: Option<KeyStateData>,
}

/// More about the keys of a user.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema, Default)]
#[serde(rename_all = "camelCase")]
#[allow(missing_docs)]
pub struct KeyStateData {
    /// The key version that everything is rewrapped to.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub rewrapped_key_version: Option<String>,
}
