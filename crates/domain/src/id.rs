//! Identifiers, one type for each kind of thing, so that they cannot be mixed up.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;
use thiserror::Error;
use uuid::Uuid;

/// A text that does not have the form of the identifier that was expected.
#[derive(Debug, Error, PartialEq, Eq, Clone)]
#[error("{text:?} is not a valid {kind}")]
pub struct InvalidId {
    /// What was expected, in words.
    pub kind: &'static str,
    /// What came instead, cut to 64 characters.
    pub text: String,
}

impl InvalidId {
    fn new(kind: &'static str, text: &str) -> Self {
        Self { kind, text: text.chars().take(64).collect() }
    }
}

macro_rules! uuid_id {
    ($(#[$doc:meta])* $name:ident, $kind:literal) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
        #[serde(transparent)]
        pub struct $name(pub Uuid);

        impl $name {
            /// A new random identifier (UUID version 4).
            pub fn random() -> Self {
                Self(Uuid::new_v4())
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }

        impl FromStr for $name {
            type Err = InvalidId;
            fn from_str(text: &str) -> Result<Self, InvalidId> {
                Uuid::parse_str(text).map(Self).map_err(|_| InvalidId::new($kind, text))
            }
        }
    };
}

uuid_id!(
    /// An instance of the key service: the tenant that owns keys.
    InstanceId,
    "key service instance id (a UUID)"
);
uuid_id!(
    /// A key of the key service, root or standard.
    KeyId,
    "key id (a UUID)"
);
uuid_id!(
    /// One material of a root key. Distinct from the key's id.
    KeyVersionId,
    "key version id (a UUID)"
);
uuid_id!(
    /// One piece of long-running work on a cluster.
    OperationId,
    "operation id (a UUID)"
);
uuid_id!(
    /// One return of the server from a backup.
    RestoreId,
    "restore id (a UUID)"
);
uuid_id!(
    /// One piece of work that an operator asks a cluster's agents to do and report.
    JobId,
    "job id (a UUID)"
);

uuid_id!(
    /// An access policy.
    PolicyId,
    "policy id (a UUID)"
);

/// What stands before the UUID of an access group.
const GROUP: &str = "AccessGroupId-";

/// An access group, in IBM's form: `AccessGroupId-` and a UUID.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GroupId(Uuid);

impl GroupId {
    /// A new random identifier.
    pub fn random() -> Self {
        Self(Uuid::new_v4())
    }
}

impl fmt::Display for GroupId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{GROUP}{}", self.0)
    }
}

impl FromStr for GroupId {
    type Err = InvalidId;
    fn from_str(text: &str) -> Result<Self, InvalidId> {
        let id = text.strip_prefix(GROUP).and_then(|id| Uuid::parse_str(id).ok());
        id.map(Self).ok_or_else(|| InvalidId::new("access group id", text))
    }
}

/// A cluster's identifier: 20 characters of `[a-z0-9]`, chosen at registration.
#[derive(
    Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema,
)]
#[serde(try_from = "String", into = "String")]
#[schemars(extend("pattern" = "^[a-z0-9]{20}$"))]
pub struct ClusterId(String);

impl ClusterId {
    /// Number of characters in a cluster id.
    pub const LEN: usize = 20;

    /// A new random cluster id.
    pub fn random() -> Self {
        const ALPHABET: &[u8; 32] = b"abcdefghijklmnopqrstuv0123456789";
        let (a, b) = (Uuid::new_v4(), Uuid::new_v4());
        // UUID bytes 6 and 8 carry fixed bits, so only the others are used.
        let bytes = a.as_bytes()[9..].iter().chain(&b.as_bytes()[9..]).chain(&a.as_bytes()[..6]);
        Self(bytes.take(Self::LEN).map(|b| ALPHABET[(b % 32) as usize] as char).collect())
    }

    /// The identifier as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The first eight characters, as used in the `key_id` that an API server stores.
    pub fn short(&self) -> &str {
        &self.0[..8]
    }
}

impl fmt::Display for ClusterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for ClusterId {
    type Err = InvalidId;
    fn from_str(text: &str) -> Result<Self, InvalidId> {
        let ok = text.len() == Self::LEN
            && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
        if ok { Ok(Self(text.to_owned())) } else { Err(InvalidId::new("cluster id", text)) }
    }
}

impl TryFrom<String> for ClusterId {
    type Error = InvalidId;
    fn try_from(text: String) -> Result<Self, InvalidId> {
        text.parse()
    }
}

impl From<ClusterId> for String {
    fn from(id: ClusterId) -> String {
        id.0
    }
}

/// The name of an agent, and so of the API server beside it: 1 to 63 characters of
/// `[a-z0-9-]` (a DNS label, RFC 1123), unique within its cluster.
#[derive(
    Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema,
)]
#[serde(try_from = "String", into = "String")]
#[schemars(extend("pattern" = "^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$"))]
pub struct AgentName(String);

impl AgentName {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for AgentName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for AgentName {
    type Err = InvalidId;
    fn from_str(text: &str) -> Result<Self, InvalidId> {
        let ok = (1..=63).contains(&text.len())
            && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
            && !text.starts_with('-')
            && !text.ends_with('-');
        if ok {
            Ok(Self(text.to_owned()))
        } else {
            Err(InvalidId::new("agent name (a DNS label of at most 63 characters)", text))
        }
    }
}

impl TryFrom<String> for AgentName {
    type Error = InvalidId;
    fn try_from(text: String) -> Result<Self, InvalidId> {
        text.parse()
    }
}

impl From<AgentName> for String {
    fn from(name: AgentName) -> String {
        name.0
    }
}

/// Number of a KEK within its cluster: starts at 1, rises by one, is never used twice.
#[derive(
    Debug,
    Clone,
    Copy,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    Serialize,
    Deserialize,
    JsonSchema,
    Default,
)]
#[serde(transparent)]
pub struct Serial(pub u64);

impl fmt::Display for Serial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A moment, in milliseconds since the Unix epoch. Rules take it as an argument.
#[derive(
    Debug,
    Clone,
    Copy,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    Serialize,
    Deserialize,
    JsonSchema,
    Default,
)]
#[serde(transparent)]
pub struct UnixMs(pub i64);

impl UnixMs {
    /// Milliseconds from `earlier` to `self`; 0 if the clock went back.
    pub fn since(self, earlier: UnixMs) -> u64 {
        u64::try_from(self.0.saturating_sub(earlier.0)).unwrap_or(0)
    }

    /// Milliseconds between the two, whichever is later: how old a note of the same clock is at most,
    /// if that clock may have been set back.
    pub fn apart(self, other: UnixMs) -> u64 {
        self.0.abs_diff(other.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cluster_ids_are_random_and_read_back() {
        let (a, b) = (ClusterId::random(), ClusterId::random());
        assert_ne!(a, b);
        assert_eq!(a.as_str().parse::<ClusterId>().as_ref(), Ok(&a));
        assert!("UPPER00000000000000x".parse::<ClusterId>().is_err());
        assert!("short".parse::<ClusterId>().is_err());
    }

    #[test]
    fn agent_names_are_dns_labels() {
        for good in ["a", "master-1", "0"] {
            assert!(good.parse::<AgentName>().is_ok(), "{good}");
        }
        for bad in ["", "-a", "a-", "A", "a.b", &"x".repeat(64)] {
            assert!(bad.parse::<AgentName>().is_err(), "{bad}");
        }
    }
}
