//! What goes on record of an act: who, what, on what, how it ended, and the few facts about it that
//! an auditor needs. Never payloads, plaintexts, nonces or tokens.
//!
//! One type for every place that keeps records; how they are shown is not decided here. Every text
//! and list in a record comes from something that is bounded where it is read.

use crate::id::{KeyId, KeyVersionId, PolicyId, UnixMs};
use crate::key::KeyState;
use serde::{Deserialize, Serialize};
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::net::IpAddr;

/// How whoever did it proved who he is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Credential {
    /// An access token, or the token that lets an agent join a cluster.
    Token,
    /// An API key: the act is to get a token for it.
    ApiKey,
    /// The certificate of a node.
    Certificate,
    /// None: he could write the server's own database.
    Host,
}

impl Credential {
    /// Every kind.
    pub const ALL: [Credential; 4] =
        [Credential::Token, Credential::ApiKey, Credential::Certificate, Credential::Host];

    /// As it is stored and shown.
    pub fn as_str(self) -> &'static str {
        match self {
            Credential::Token => "token",
            Credential::ApiKey => "apikey",
            Credential::Certificate => "certificate",
            Credential::Host => "host",
        }
    }
}

/// How much an act deserves a look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// Routine.
    Normal,
    /// Something was changed that matters, or was tried in vain.
    Warning,
    /// Something was lost, or someone tried what he may not.
    Critical,
}

impl Severity {
    /// Of an act with this action and this HTTP status, after Key Protect: what the status says
    /// outranks what the action says.
    pub fn of(action: &str, status: u16) -> Severity {
        match status {
            401 | 403 | 503 | 507 => return Severity::Critical,
            400 | 409 | 424 | 502 | 504 | 505 => return Severity::Warning,
            _ => {}
        }
        match action {
            "kms.secrets.delete" | "kms.registrations.delete" => Severity::Critical,
            "kms.secrets.rotate"
            | "kms.secrets.restore"
            | "kms.secrets.enable"
            | "kms.secrets.disable"
            | "kms.secrets.setkeyfordeletion"
            | "kms.secrets.unsetkeyfordeletion"
            | "kms.policies.write"
            | "kms.instance-policies.write" => Severity::Warning,
            _ => Severity::Normal,
        }
    }

    /// As it is shown.
    pub fn as_str(self) -> &'static str {
        match self {
            Severity::Normal => "normal",
            Severity::Warning => "warning",
            Severity::Critical => "critical",
        }
    }
}

/// Most characters of each text of a record that are kept.
pub const TEXT_MAX: usize = 512;

/// One act.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// When.
    pub at: UnixMs,
    /// IAM id of who did it; `-` if nobody could be told, `system` for the server itself.
    pub who: String,
    /// How he proved it; none for the server itself.
    pub credential: Option<Credential>,
    /// The peer of the request's socket, or of a trusted proxy's.
    pub address: Option<IpAddr>,
    /// For instance `kms.secrets.rotate`.
    pub action: Cow<'static, str>,
    /// CRN or name of what it was done to.
    pub target: String,
    /// The HTTP status of the answer; below 400 is a success.
    pub status: u16,
    /// Reason code of a failure, else empty.
    pub reason: Cow<'static, str>,
    /// The correlation id of the request.
    pub correlation: String,
    /// What else is known.
    pub data: Data,
}

impl Record {
    /// A success of which nothing more is known.
    pub fn done(
        at: UnixMs,
        who: impl Into<String>,
        action: impl Into<Cow<'static, str>>,
        target: impl Into<String>,
    ) -> Record {
        Record {
            at,
            who: who.into(),
            credential: None,
            address: None,
            action: action.into(),
            target: target.into(),
            status: 200,
            reason: "".into(),
            correlation: String::new(),
            data: Data::default(),
        }
    }

    /// A success of the server itself, which nobody asked for.
    pub fn of_system(at: UnixMs, action: &'static str, target: String) -> Record {
        Record::done(at, "system", action, target)
    }

    /// A text as it is kept: its first [`TEXT_MAX`] characters. They come from requests.
    pub fn kept(text: &str) -> &str {
        let end = text.char_indices().nth(TEXT_MAX).map_or(text.len(), |(at, _)| at);
        &text[..end]
    }

    /// Whether what was asked for was done.
    pub fn succeeded(&self) -> bool {
        self.status < 400
    }
}

/// What is known of an act besides. Only what is there takes room.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Data {
    /// Path and query of the request.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub uri: String,
    /// The key ring that the request named in its header.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ring: Option<String>,
    /// The key, as it was afterwards; as it was found if nothing was done.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key: Option<KeyFacts>,
    /// The version that a DEK was rewrapped to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rewrapped: Option<KeyVersionId>,
    /// How many resources a list had.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub total: Option<u64>,
    /// How many refusals of one second the record stands for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub count: Option<u64>,
    /// Nothing was done: the request was the same as one before, and was answered again.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub repeated: bool,
    /// When a purged key was deleted, and when it could and would have been purged.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub purge: Option<Purge>,
    /// An import token that was made or retrieved.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub import_token: Option<ImportToken>,
    /// An event that was acknowledged.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub event: Option<Acknowledged>,
    /// What was changed, from what to what.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub change: Option<Change>,
    /// The access policy that allowed it; none if none did.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub policy: Option<PolicyId>,
}

/// A key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyFacts {
    /// Which.
    pub id: KeyId,
    /// Its key ring.
    pub ring: String,
    /// Whether it is a standard key; else a root key.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub standard: bool,
    /// Its state.
    pub state: KeyState,
    /// The version that was used, else the current one; none for standard keys.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<KeyVersionId>,
    /// When it stops wrapping.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires: Option<UnixMs>,
}

/// The times of a purge.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Purge {
    /// When the key was deleted.
    pub deleted: UnixMs,
    /// Since when it could be purged.
    pub allowed_from: UnixMs,
    /// When it would have been purged by itself.
    pub due: UnixMs,
}

/// How far an import token is used up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImportToken {
    /// Retrievals in all.
    pub allowed: u32,
    /// Retrievals left.
    pub remaining: u32,
    /// When it ends.
    pub expires: UnixMs,
}

/// What a user of a key said about one of its events.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Acknowledged {
    /// Number of the event.
    pub event: u64,
    /// What happened, for instance `rotate`.
    pub kind: String,
    /// What its keys are now, in its own word.
    pub state: String,
    /// When it was done, as it says.
    pub at: UnixMs,
    /// The version that was current after the event.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<KeyVersionId>,
}

/// What was changed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[allow(missing_docs)] // From what, to what.
pub enum Change {
    /// A key's ring.
    Ring { from: String, to: String },
    /// A key's state, by the clock.
    State { from: KeyState, to: KeyState },
    /// Who wants a key deleted.
    Deletion { from: Option<Authorisation>, to: Option<Authorisation> },
    /// Policies of a key or an instance: those that were named, as they were and as they are.
    Policies { from: Vec<Policy>, to: Vec<Policy> },
    /// Who may come in or do what: an access policy, a group, an identity, a credential.
    Access { from: Facts, to: Facts },
}

/// What something says, by names. Texts are cut as all that are kept are.
pub type Facts = BTreeMap<String, String>;

/// The word of the first of two who delete a key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Authorisation {
    /// IAM id.
    pub by: String,
    /// Until when it counts.
    pub until: UnixMs,
}

/// What a policy says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[allow(missing_docs)] // As in the policies themselves.
pub enum Policy {
    DualAuthDelete { enabled: bool },
    Rotation { enabled: bool, interval_month: Option<u8> },
    AllowedNetwork { enabled: bool, network: Option<String> },
    AllowedIp { enabled: bool, subnets: Vec<String> },
    KeyCreateImportAccess { enabled: bool, may: Option<MayMake> },
    Metrics { enabled: bool },
}

/// Which keys may be made, and how.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct MayMake {
    pub create_root: bool,
    pub create_standard: bool,
    pub import_root: bool,
    pub import_standard: bool,
    /// Imports need an import token.
    pub token_only: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_status_says_outranks_what_the_action_says() {
        use Severity::{Critical, Normal, Warning};
        for (action, status, severity) in [
            ("kms.secrets.wrap", 200, Normal),
            ("kms.secrets.wrap", 404, Normal),
            ("kms.secrets.wrap", 401, Critical),
            ("kms.secrets.wrap", 403, Critical),
            ("kms.secrets.wrap", 409, Warning),
            ("kms.secrets.wrap", 503, Critical),
            ("kms.secrets.delete", 200, Critical),
            ("kms.secrets.delete", 409, Warning),
            ("kms.secrets.delete", 410, Critical),
            ("kms.registrations.delete", 204, Critical),
            ("kms.secrets.rotate", 200, Warning),
            ("kms.secrets.disable", 401, Critical),
            ("kms.secrets.unsetkeyfordeletion", 200, Warning),
            ("kms.policies.write", 200, Warning),
            ("kms.policies.read", 200, Normal),
            ("kms.instance-policies.write", 200, Warning),
            ("kms.secrets.purge", 200, Normal),
            ("kms.secrets.list", 504, Warning),
        ] {
            assert_eq!(Severity::of(action, status), severity, "{action} {status}");
        }
    }
}
