//! Who may do what in the key service and the cluster service: roles, operations and the one
//! table between them. Allow-only: a caller may do what any of its grants allows.

use crate::id::{InstanceId, KeyId};
use crate::key::RootKey;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A service role on an instance of the key service. Additive from Reader to Manager;
/// `KeyPurge` and `KmipAdapterManager` stand alone.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema,
)]
pub enum ServiceRole {
    /// Metadata, versions, wrap, unwrap, rewrap; a service may register what uses a key.
    Reader,
    /// Reader, and the payload of standard keys.
    ReaderPlus,
    /// ReaderPlus, and create, import, rotate.
    Writer,
    /// Writer, and disable, enable, delete, restore, policies.
    Manager,
    /// Purge only.
    KeyPurge,
    /// KMIP adapters, and listing keys and rings, which choosing a root key needs.
    KmipAdapterManager,
}

impl ServiceRole {
    /// Every service role.
    pub const ALL: [ServiceRole; 6] = [
        ServiceRole::Reader,
        ServiceRole::ReaderPlus,
        ServiceRole::Writer,
        ServiceRole::Manager,
        ServiceRole::KeyPurge,
        ServiceRole::KmipAdapterManager,
    ];
}

/// A platform role on instances and clusters. Additive.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema,
)]
pub enum PlatformRole {
    /// Sees instances and clusters.
    Viewer,
    /// Viewer, and operates clusters (refresh, census, rewrite).
    Operator,
    /// Operator, and creates and deletes instances.
    Editor,
    /// Editor, and enables encryption, registers clusters, manages access.
    Administrator,
}

impl PlatformRole {
    /// Every platform role.
    pub const ALL: [PlatformRole; 4] = [
        PlatformRole::Viewer,
        PlatformRole::Operator,
        PlatformRole::Editor,
        PlatformRole::Administrator,
    ];
}

macro_rules! operations {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// Every operation of the key service that needs a service role.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum KeyOperation {
            $($(#[$doc])* $name,)*
        }

        impl KeyOperation {
            /// Every operation, in the order of their numbers.
            pub const ALL: &[KeyOperation] = &[$(KeyOperation::$name,)*];
        }
    };
}

// One list, so that no operation can be left out of the tests that walk them all.
operations! {
    /// List keys, count keys.
    List,
    /// Read metadata or versions.
    ReadMetadata,
    /// Read a key with its payload.
    ReadPayload,
    /// Wrap.
    Wrap,
    /// Unwrap.
    Unwrap,
    /// Rewrap.
    Rewrap,
    /// Create a key.
    Create,
    /// Import a key.
    Import,
    /// Rotate.
    Rotate,
    /// Disable.
    Disable,
    /// Enable.
    Enable,
    /// Delete.
    Delete,
    /// Restore.
    Restore,
    /// Purge.
    Purge,
    /// List registrations.
    ListRegistrations,
    /// Create, change or delete a registration. Services only.
    WriteRegistration,
    /// Acknowledge a key event. Services only.
    AcknowledgeEvent,
    /// Move a key to another ring.
    PatchKey,
    /// Be the first of the two who delete a key.
    SetForDeletion,
    /// Take that back.
    UnsetForDeletion,
    /// Tell the users of a key its state once more.
    Sync,
    /// Give a key an alias.
    CreateAlias,
    /// Take an alias away.
    DeleteAlias,
    /// List key rings.
    ListRings,
    /// Create a key ring.
    CreateRing,
    /// Delete a key ring.
    DeleteRing,
    /// Create a key with policies of its own instead of the instance's.
    CreateWithPolicies,
    /// Read a key's policies.
    ReadPolicies,
    /// Change a key's policies.
    WritePolicies,
    /// Read the instance's policies.
    ReadInstancePolicies,
    /// Change the instance's policies.
    WriteInstancePolicies,
    /// Read which private port serves the allowed addresses.
    ReadAllowedIp,
    /// Make an import token.
    CreateImportToken,
    /// Retrieve the import token.
    ReadImportToken,
    /// Manage KMIP adapters, their certificates and objects.
    ManageKmip,
    /// Read what is on record about the instance.
    ReadAudit,
}

/// Whether `role` allows `operation`: the one table of service roles.
pub fn role_allows(role: ServiceRole, operation: KeyOperation) -> bool {
    use KeyOperation::*;
    let least = match operation {
        Purge => return role == ServiceRole::KeyPurge,
        List | ListRings | ManageKmip if role == ServiceRole::KmipAdapterManager => return true,
        List | ReadMetadata | Wrap | Unwrap | Rewrap | ListRegistrations | WriteRegistration
        | AcknowledgeEvent | ListRings => ServiceRole::Reader,
        ReadPayload => ServiceRole::ReaderPlus,
        Create | Import | Rotate | SetForDeletion | UnsetForDeletion | Sync | CreateAlias
        | CreateRing | CreateImportToken | ReadImportToken => ServiceRole::Writer,
        Disable
        | Enable
        | Delete
        | Restore
        | PatchKey
        | DeleteAlias
        | DeleteRing
        | CreateWithPolicies
        | ReadPolicies
        | WritePolicies
        | ReadInstancePolicies
        | WriteInstancePolicies
        | ReadAllowedIp
        | ManageKmip
        | ReadAudit => ServiceRole::Manager,
    };
    let alone = matches!(role, ServiceRole::KeyPurge | ServiceRole::KmipAdapterManager);
    !alone && role >= least
}

/// Whether only a service identity may do `operation`, whatever its role.
pub fn services_only(operation: KeyOperation) -> bool {
    matches!(operation, KeyOperation::WriteRegistration | KeyOperation::AcknowledgeEvent)
}

/// Where a service role counts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Scope {
    /// In every instance.
    Everywhere,
    /// On all that is in an instance, and on the instance itself.
    Instance(InstanceId),
    /// On a key ring of an instance and on the keys that are in it at the time.
    Ring(InstanceId, String),
    /// On one key, whatever ring it is in.
    Key(RootKey),
}

/// What of an instance an operation is done on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum On<'a> {
    /// The instance as a whole: its policies, its import token, a new ring.
    Instance,
    /// A key ring: a new key in it, or the list of its keys.
    Ring(&'a str),
    /// A key, and the ring that it is in.
    Key(KeyId, &'a str),
}

impl Scope {
    /// Whether a role of this scope counts for something of `instance`.
    pub fn covers(&self, instance: InstanceId, on: On<'_>) -> bool {
        match (self, on) {
            (Scope::Everywhere, _) => true,
            (Scope::Instance(own), _) => *own == instance,
            (Scope::Ring(own, ring), On::Ring(on) | On::Key(_, on)) => {
                *own == instance && ring == on
            }
            (Scope::Key(own), On::Key(key, _)) => *own == RootKey { instance, key },
            (Scope::Ring(..), On::Instance) | (Scope::Key(_), On::Instance | On::Ring(_)) => false,
        }
    }

    /// Whether a role of this scope counts for anything at all in `instance`.
    pub fn reaches(&self, instance: InstanceId) -> bool {
        match self {
            Scope::Everywhere => true,
            Scope::Instance(own) | Scope::Ring(own, _) => *own == instance,
            Scope::Key(own) => own.instance == instance,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_scope_against_everything_it_may_cover() {
        let (one, two) = (InstanceId::random(), InstanceId::random());
        let (key, other) = (KeyId::random(), KeyId::random());
        let ons = [
            (one, On::Instance),
            (one, On::Ring("a")),
            (one, On::Ring("b")),
            (one, On::Key(key, "a")),
            (one, On::Key(key, "b")),
            (one, On::Key(other, "a")),
            (two, On::Instance),
            (two, On::Ring("a")),
            (two, On::Key(key, "a")),
        ];
        for (scope, cells) in [
            (Scope::Everywhere, "yyyyyyyyy"),
            (Scope::Instance(one), "yyyyyynnn"),
            (Scope::Ring(one, "a".to_owned()), "nynynynnn"),
            (Scope::Key(RootKey { instance: one, key }), "nnnyynnnn"),
        ] {
            for ((instance, on), cell) in ons.into_iter().zip(cells.chars()) {
                assert_eq!(scope.covers(instance, on), cell == 'y', "{scope:?} {on:?}");
            }
            assert!(scope.reaches(one), "{scope:?}");
            assert_eq!(scope.reaches(two), scope == Scope::Everywhere, "{scope:?}");
        }
    }

    #[test]
    fn every_role_against_every_operation() {
        // Columns: Reader, ReaderPlus, Writer, Manager, KeyPurge, KmipAdapterManager.
        let rows = [
            (KeyOperation::List, "yyyyny"),
            (KeyOperation::ReadMetadata, "yyyynn"),
            (KeyOperation::ReadPayload, "nyyynn"),
            (KeyOperation::Wrap, "yyyynn"),
            (KeyOperation::Unwrap, "yyyynn"),
            (KeyOperation::Rewrap, "yyyynn"),
            (KeyOperation::Create, "nnyynn"),
            (KeyOperation::Import, "nnyynn"),
            (KeyOperation::Rotate, "nnyynn"),
            (KeyOperation::Disable, "nnnynn"),
            (KeyOperation::Enable, "nnnynn"),
            (KeyOperation::Delete, "nnnynn"),
            (KeyOperation::Restore, "nnnynn"),
            (KeyOperation::Purge, "nnnnyn"),
            (KeyOperation::ListRegistrations, "yyyynn"),
            (KeyOperation::WriteRegistration, "yyyynn"),
            (KeyOperation::AcknowledgeEvent, "yyyynn"),
            (KeyOperation::PatchKey, "nnnynn"),
            (KeyOperation::SetForDeletion, "nnyynn"),
            (KeyOperation::UnsetForDeletion, "nnyynn"),
            (KeyOperation::Sync, "nnyynn"),
            (KeyOperation::CreateAlias, "nnyynn"),
            (KeyOperation::DeleteAlias, "nnnynn"),
            (KeyOperation::ListRings, "yyyyny"),
            (KeyOperation::CreateRing, "nnyynn"),
            (KeyOperation::DeleteRing, "nnnynn"),
            (KeyOperation::CreateWithPolicies, "nnnynn"),
            (KeyOperation::ReadPolicies, "nnnynn"),
            (KeyOperation::WritePolicies, "nnnynn"),
            (KeyOperation::ReadInstancePolicies, "nnnynn"),
            (KeyOperation::WriteInstancePolicies, "nnnynn"),
            (KeyOperation::ReadAllowedIp, "nnnynn"),
            (KeyOperation::CreateImportToken, "nnyynn"),
            (KeyOperation::ReadImportToken, "nnyynn"),
            (KeyOperation::ManageKmip, "nnnyny"),
            (KeyOperation::ReadAudit, "nnnynn"),
        ];
        assert_eq!(rows.len(), KeyOperation::ALL.len());
        for (operation, cells) in rows {
            let roles = ServiceRole::ALL;
            for (role, cell) in roles.into_iter().zip(cells.chars()) {
                assert_eq!(role_allows(role, operation), cell == 'y', "{role:?} {operation:?}");
            }
        }
    }
}
