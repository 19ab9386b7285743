//! Key states and what each allows: one table, after NIST SP 800-57 part 1 revision 5,
//! section 7, with the rules of Key Protect where they differ.

use crate::id::{InstanceId, KeyId, KeyVersionId};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::fmt;

/// The state of a key. The numbers are those of the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum KeyState {
    /// May wrap and unwrap.
    Active = 1,
    /// Disabled: neither wraps nor unwraps until it is enabled.
    Suspended = 2,
    /// Expired: unwraps, never wraps.
    Deactivated = 3,
    /// Deleted: restorable for 30 days, then its material is shredded.
    Destroyed = 5,
}

impl KeyState {
    /// Every state, in the order of their numbers.
    pub const ALL: [KeyState; 4] =
        [KeyState::Active, KeyState::Suspended, KeyState::Deactivated, KeyState::Destroyed];

    /// The state with this number on the wire.
    pub fn from_number(number: u8) -> Option<KeyState> {
        Self::ALL.into_iter().find(|s| *s as u8 == number)
    }
}

impl fmt::Display for KeyState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            KeyState::Active => "active",
            KeyState::Suspended => "suspended",
            KeyState::Deactivated => "deactivated",
            KeyState::Destroyed => "destroyed",
        })
    }
}

/// What a caller can do with a key whose answer depends on the key's state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum KeyAction {
    /// Read its metadata.
    Read,
    /// Seal a DEK under the current version.
    Wrap,
    /// Open a wrapped DEK.
    Unwrap,
    /// Open a wrapped DEK and seal it under the current version.
    Rewrap,
    /// Make a new version current.
    Rotate,
    /// Suspend it.
    Disable,
    /// End its suspension.
    Enable,
    /// Destroy it, restorably.
    Delete,
    /// Bring it back after a delete.
    Restore,
    /// Add, change or replace a registration.
    Register,
    /// Remove it for ever.
    Purge,
    /// Note that one of two persons wants it deleted.
    SetForDeletion,
    /// Take that back.
    UnsetForDeletion,
    /// Tell its users its state once more.
    Sync,
    /// Move it to another ring.
    Patch,
    /// Give it an alias, or take one away.
    Alias,
    /// Change its policies.
    SetPolicy,
    /// List what uses it.
    ReadRegistrations,
    /// Take a registration away.
    Unregister,
}

impl KeyAction {
    /// Every action.
    pub const ALL: [KeyAction; 19] = [
        KeyAction::Read,
        KeyAction::Wrap,
        KeyAction::Unwrap,
        KeyAction::Rewrap,
        KeyAction::Rotate,
        KeyAction::Disable,
        KeyAction::Enable,
        KeyAction::Delete,
        KeyAction::Restore,
        KeyAction::Register,
        KeyAction::Purge,
        KeyAction::SetForDeletion,
        KeyAction::UnsetForDeletion,
        KeyAction::Sync,
        KeyAction::Patch,
        KeyAction::Alias,
        KeyAction::SetPolicy,
        KeyAction::ReadRegistrations,
        KeyAction::Unregister,
    ];
}

/// What the table of states says of an action.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// The state allows it.
    Allowed,
    /// The state forbids it now; another state may allow it (HTTP 409).
    WrongState,
    /// The key is gone, or on its way (HTTP 410).
    Gone,
}

/// Whether a key in `state` allows `action`: the one table of states.
pub fn verdict(state: KeyState, action: KeyAction) -> Verdict {
    use KeyAction::*;
    use KeyState::*;
    match (state, action) {
        (_, Read | Sync | ReadRegistrations) => Verdict::Allowed,
        (Destroyed, Restore | Purge) => Verdict::Allowed,
        (Destroyed, Delete | SetForDeletion | UnsetForDeletion) => Verdict::Gone,
        (Destroyed, _) | (_, Restore | Purge) => Verdict::WrongState,
        (_, Delete | SetForDeletion | UnsetForDeletion | Patch | Alias | SetPolicy) => {
            Verdict::Allowed
        }
        (Active, Enable) => Verdict::WrongState,
        (Active, _) => Verdict::Allowed,
        (Suspended, Enable | Unregister) => Verdict::Allowed,
        (Suspended, _) => Verdict::WrongState,
        // An expired key must be able to lose its users, or nobody could ever delete it.
        (Deactivated, Unwrap | Rewrap | Rotate | Unregister) => Verdict::Allowed,
        (Deactivated, _) => Verdict::WrongState,
    }
}

/// A root key, wherever it lives.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema,
)]
pub struct RootKey {
    /// The instance that owns it.
    pub instance: InstanceId,
    /// The key.
    pub key: KeyId,
}

impl fmt::Display for RootKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.instance, self.key)
    }
}

/// One version of a root key: what a KEK is wrapped under.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema,
)]
pub struct RootVersion {
    /// The root key.
    pub root: RootKey,
    /// Its version.
    pub version: KeyVersionId,
}

impl fmt::Display for RootVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.root, self.version)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The table as an operator would draw it; `verdict` must agree in every cell.
    #[test]
    fn every_cell_of_the_table_of_states() {
        // Columns: active, suspended, deactivated, destroyed. y allowed, n wrong state, g gone.
        let rows = [
            (KeyAction::Read, "yyyy"),
            (KeyAction::Wrap, "ynnn"),
            (KeyAction::Unwrap, "ynyn"),
            (KeyAction::Rewrap, "ynyn"),
            (KeyAction::Rotate, "ynyn"),
            (KeyAction::Disable, "ynnn"),
            (KeyAction::Enable, "nynn"),
            (KeyAction::Delete, "yyyg"),
            (KeyAction::Restore, "nnny"),
            (KeyAction::Register, "ynnn"),
            (KeyAction::Purge, "nnny"),
            (KeyAction::SetForDeletion, "yyyg"),
            (KeyAction::UnsetForDeletion, "yyyg"),
            (KeyAction::Sync, "yyyy"),
            (KeyAction::Patch, "yyyn"),
            (KeyAction::Alias, "yyyn"),
            (KeyAction::SetPolicy, "yyyn"),
            (KeyAction::ReadRegistrations, "yyyy"),
            (KeyAction::Unregister, "yyyn"),
        ];
        assert_eq!(rows.len(), KeyAction::ALL.len());
        for (action, cells) in rows {
            for (state, cell) in KeyState::ALL.into_iter().zip(cells.chars()) {
                let expected = match cell {
                    'y' => Verdict::Allowed,
                    'n' => Verdict::WrongState,
                    _ => Verdict::Gone,
                };
                assert_eq!(verdict(state, action), expected, "{action:?} on a {state} key");
            }
        }
    }

    #[test]
    fn state_numbers_read_back() {
        for state in KeyState::ALL {
            assert_eq!(KeyState::from_number(state as u8), Some(state));
        }
        assert_eq!(KeyState::from_number(4), None);
    }
}
