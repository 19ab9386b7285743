//! The key ring of a cluster: its KEKs in order, wrapped, each with a role.

use crate::id::{ClusterId, Serial, UnixMs};
use crate::key::{RootKey, RootVersion};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What a KEK may be used for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// Every plugin must be able to open with it before any seals with it.
    Staged,
    /// Seals. At most one KEK has this role.
    Write,
    /// Opens; records or un-compacted revisions may be under it, and its root key's suspension
    /// fences the cluster.
    Read,
    /// Opens; no live record is under it, only old revisions or backups can be.
    Retained,
    /// Its root key is not active, and an operator decided that the cluster goes on without it:
    /// nothing is fenced for it and nothing waits for it. Live records may be under it. They
    /// stay as they are, unread, and count as unknown until the root key is active again.
    Lost,
}

/// A KEK as everybody but the plugin sees it: wrapped.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Kek {
    /// Its number, never reused.
    pub serial: Serial,
    /// The root key version that wraps it.
    pub root: RootVersion,
    /// The wrapped KEK, as the key service answered: opaque text, at most 4 KiB.
    pub wrapped: String,
    /// What it may be used for.
    pub role: Role,
    /// When it was minted.
    pub created: UnixMs,
}

impl Kek {
    /// The `key_id` that an API server stores with each record under this KEK.
    ///
    /// Opaque to Kubernetes, at most 1 KiB there; ours is under 64 bytes. It changes exactly
    /// when the KEK changes and never returns, since serials are never reused.
    pub fn key_id(&self, cluster: &ClusterId) -> String {
        let version = self.root.version.0.simple().to_string();
        format!("v2:{}:{}:{}", cluster.short(), self.serial, &version[..8])
    }
}

/// The serial in a `key_id` that [`Kek::key_id`] made, or none.
pub fn serial_of(key_id: &str) -> Option<Serial> {
    let mut parts = key_id.split(':');
    match (parts.next(), parts.next(), parts.next(), parts.next(), parts.next()) {
        (Some("v2"), Some(_), Some(serial), Some(_), None) => serial.parse().ok().map(Serial),
        _ => None,
    }
}

/// The KEKs of a cluster, by rising serial.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema, Default)]
pub struct Ring {
    /// Every KEK the cluster has.
    pub keks: Vec<Kek>,
    /// The highest serial that was ever given. A staged KEK whose operation was given up leaves
    /// the ring, its serial does not come back. 0 where it is not written: then no KEK has left.
    #[serde(default)]
    pub minted: u64,
}

impl Ring {
    /// The KEK that seals.
    pub fn write(&self) -> Option<&Kek> {
        self.keks.iter().find(|k| k.role == Role::Write)
    }

    /// The KEK whose `key_id` the plugins report: the write KEK, or at first enablement, while
    /// API servers only read, the staged one.
    pub fn reported(&self) -> Option<&Kek> {
        self.write().or_else(|| self.keks.iter().find(|k| k.role == Role::Staged))
    }

    /// The KEK with this serial.
    pub fn get(&self, serial: Serial) -> Option<&Kek> {
        self.keks.iter().find(|k| k.serial == serial)
    }

    /// The root key that wrote before the one that writes now: that of the newest KEK that live
    /// records may be under and that is wrapped by another root key. None while there is none.
    pub fn former(&self) -> Option<RootKey> {
        let write = self.write()?.root.root;
        let read = |k: &&Kek| k.role == Role::Read && k.root.root != write;
        self.keks.iter().rev().find(read).map(|k| k.root.root)
    }

    /// Whether `root` wraps the KEK that seals, or one that live records may still be under.
    pub fn uses(&self, root: RootKey) -> bool {
        self.in_use().any(|k| k.root.root == root)
    }

    /// The KEK that seals, and those that live records may still be under.
    pub fn in_use(&self) -> impl Iterator<Item = &Kek> {
        self.keks.iter().filter(|k| matches!(k.role, Role::Write | Role::Read))
    }

    /// Whether a KEK of the ring is wrapped by `root`.
    pub fn names(&self, root: RootKey) -> bool {
        self.keks.iter().any(|k| k.root.root == root)
    }

    /// Whether KEKs under `root` can be needed by old revisions and backups, and by nothing else.
    pub fn only_retains(&self, root: RootKey) -> bool {
        let under = |k: &&Kek| k.root.root == root;
        self.names(root) && self.keks.iter().filter(under).all(|k| k.role == Role::Retained)
    }

    /// The serial that the next KEK gets.
    pub fn next_serial(&self) -> Serial {
        let here = self.keks.iter().map(|k| k.serial.0).max().unwrap_or(0);
        Serial(here.max(self.minted) + 1)
    }
}
