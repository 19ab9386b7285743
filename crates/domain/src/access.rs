//! Who may do what in the key service and the cluster service: roles, operations and the one
//! table between them. Allow-only: a caller may do what any of its grants allows.

use serde::{Deserialize, Serialize};

/// A service role on an instance of the key service. Additive from Reader to Manager;
/// `KeyPurge` stands alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
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
}

/// A platform role on instances and clusters. Additive.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
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

/// Every operation of the key service that needs a service role.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum KeyOperation {
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
}

impl KeyOperation {
    /// Every operation.
    pub const ALL: [KeyOperation; 17] = [
        KeyOperation::List,
        KeyOperation::ReadMetadata,
        KeyOperation::ReadPayload,
        KeyOperation::Wrap,
        KeyOperation::Unwrap,
        KeyOperation::Rewrap,
        KeyOperation::Create,
        KeyOperation::Import,
        KeyOperation::Rotate,
        KeyOperation::Disable,
        KeyOperation::Enable,
        KeyOperation::Delete,
        KeyOperation::Restore,
        KeyOperation::Purge,
        KeyOperation::ListRegistrations,
        KeyOperation::WriteRegistration,
        KeyOperation::AcknowledgeEvent,
    ];
}

/// Whether `role` allows `operation`: the one table of service roles.
pub fn role_allows(role: ServiceRole, operation: KeyOperation) -> bool {
    use KeyOperation::*;
    let least = match operation {
        Purge => return role == ServiceRole::KeyPurge,
        List | ReadMetadata | Wrap | Unwrap | Rewrap | ListRegistrations | WriteRegistration
        | AcknowledgeEvent => ServiceRole::Reader,
        ReadPayload => ServiceRole::ReaderPlus,
        Create | Import | Rotate => ServiceRole::Writer,
        Disable | Enable | Delete | Restore => ServiceRole::Manager,
    };
    role != ServiceRole::KeyPurge && role >= least
}

/// Whether only a service identity may do `operation`, whatever its role.
pub fn services_only(operation: KeyOperation) -> bool {
    matches!(operation, KeyOperation::WriteRegistration | KeyOperation::AcknowledgeEvent)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_role_against_every_operation() {
        use ServiceRole::*;
        // Columns: Reader, ReaderPlus, Writer, Manager, KeyPurge.
        let rows = [
            (KeyOperation::List, "yyyyn"),
            (KeyOperation::ReadMetadata, "yyyyn"),
            (KeyOperation::ReadPayload, "nyyyn"),
            (KeyOperation::Wrap, "yyyyn"),
            (KeyOperation::Unwrap, "yyyyn"),
            (KeyOperation::Rewrap, "yyyyn"),
            (KeyOperation::Create, "nnyyn"),
            (KeyOperation::Import, "nnyyn"),
            (KeyOperation::Rotate, "nnyyn"),
            (KeyOperation::Disable, "nnnyn"),
            (KeyOperation::Enable, "nnnyn"),
            (KeyOperation::Delete, "nnnyn"),
            (KeyOperation::Restore, "nnnyn"),
            (KeyOperation::Purge, "nnnny"),
            (KeyOperation::ListRegistrations, "yyyyn"),
            (KeyOperation::WriteRegistration, "yyyyn"),
            (KeyOperation::AcknowledgeEvent, "yyyyn"),
        ];
        assert_eq!(rows.len(), KeyOperation::ALL.len());
        for (operation, cells) in rows {
            let roles = [Reader, ReaderPlus, Writer, Manager, KeyPurge];
            for (role, cell) in roles.into_iter().zip(cells.chars()) {
                assert_eq!(role_allows(role, operation), cell == 'y', "{role:?} {operation:?}");
            }
        }
    }
}
