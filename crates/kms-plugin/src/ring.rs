//! The opened ring: every KEK of the cluster that this process may use.

use crate::message;
use claviger_crypto::kek::{Carried, Kek};
use claviger_crypto::{Key32, SecretBytes};
use claviger_domain::cluster::ring;
use claviger_domain::id::{ClusterId, Serial};
use std::collections::BTreeMap;
use thiserror::Error;

/// Most KEKs in a ring: one for each rotation in the life of a cluster. 4,096 weekly rotations
/// are 78 years; more than that is a fault of the caller.
pub const KEKS_MAX: usize = 4096;

/// An opened KEK with what every record under it carries.
pub struct OpenKek {
    kek: Kek,
    annotation: Vec<u8>,
    tail: Vec<u8>,
}

impl OpenKek {
    /// Puts `key`, which the root key of `entry` has unwrapped, in place for `cluster`.
    pub fn new(cluster: &ClusterId, entry: &ring::Kek, key: &Key32) -> Self {
        let carried =
            Carried { serial: entry.serial, root: entry.root, wrapped: entry.wrapped.clone() };
        let kek = Kek::new(entry.serial, entry.key_id(cluster), key);
        let annotation = carried.to_bytes();
        let tail = message::tail(kek.key_id(), &annotation);
        Self { kek, annotation, tail }
    }

    /// Its number.
    pub fn serial(&self) -> Serial {
        self.kek.serial()
    }

    /// The opened KEK.
    pub fn kek(&self) -> &Kek {
        &self.kek
    }

    /// The wrapped KEK as a record's annotation carries it ([`Carried`]).
    pub fn annotation(&self) -> &[u8] {
        &self.annotation
    }

    /// What every EncryptResponse under it ends with.
    pub(crate) fn tail(&self) -> &[u8] {
        &self.tail
    }

    /// Whether it opens a fresh random challenge that it sealed.
    pub fn self_test(&self) -> bool {
        let challenge = SecretBytes::random(32);
        let sealed = self.kek.seal(challenge.expose());
        self.kek
            .open(&sealed)
            .is_ok_and(|opened| claviger_crypto::digest::equal(opened.expose(), challenge.expose()))
    }
}

/// KEKs that cannot make a ring: a fault in the caller.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum RingError {
    /// Two KEKs with one number.
    #[error("the ring has two KEKs with serial {0}")]
    Twice(Serial),
    /// The KEK to report is not among them.
    #[error("KEK {0} is to be reported but was not opened")]
    NotOpened(Serial),
    /// More than [`KEKS_MAX`].
    #[error("the ring has {0} KEKs; at most {KEKS_MAX} are supported")]
    TooMany(usize),
}

/// The KEKs of a cluster, opened. Swapped as a whole; every key is wiped on drop.
pub struct OpenRing {
    revision: u64,
    keks: BTreeMap<Serial, OpenKek>,
    reported: Option<Serial>,
}

impl OpenRing {
    /// A ring of `keks`. `revision` is that of the cluster it was taken from; `reported` is the
    /// KEK that Status names and that seals ([`ring::Ring::reported`]).
    pub fn new(
        revision: u64,
        keks: Vec<OpenKek>,
        reported: Option<Serial>,
    ) -> Result<Self, RingError> {
        if keks.len() > KEKS_MAX {
            return Err(RingError::TooMany(keks.len()));
        }
        let mut ring = Self { revision, keks: BTreeMap::new(), reported };
        for kek in keks {
            let serial = kek.serial();
            if ring.keks.insert(serial, kek).is_some() {
                return Err(RingError::Twice(serial));
            }
        }
        match reported {
            Some(serial) if !ring.keks.contains_key(&serial) => Err(RingError::NotOpened(serial)),
            _ => Ok(ring),
        }
    }

    /// Revision of the cluster whose ring this is.
    pub fn revision(&self) -> u64 {
        self.revision
    }

    /// The KEK that Status names and Encrypt seals with.
    pub fn reported(&self) -> Option<&OpenKek> {
        self.keks.get(&self.reported?)
    }

    /// The KEK with this number.
    pub fn get(&self, serial: Serial) -> Option<&OpenKek> {
        self.keks.get(&serial)
    }

    /// Numbers of the KEKs that open a challenge they sealed, rising.
    pub fn self_test(&self) -> Vec<Serial> {
        self.keks.values().filter(|k| k.self_test()).map(OpenKek::serial).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use claviger_domain::cluster::ring::Role;
    use claviger_domain::id::{InstanceId, KeyId, KeyVersionId, UnixMs};
    use claviger_domain::key::{RootKey, RootVersion};

    fn kek(serial: u64) -> OpenKek {
        let root = RootKey { instance: InstanceId::random(), key: KeyId::random() };
        let entry = ring::Kek {
            serial: Serial(serial),
            root: RootVersion { root, version: KeyVersionId::random() },
            wrapped: "wrapped".to_owned(),
            role: Role::Write,
            created: UnixMs(0),
        };
        OpenKek::new(&ClusterId::random(), &entry, &Key32::generate())
    }

    #[test]
    fn a_ring_is_refused_unless_it_can_be_used() {
        let twice = OpenRing::new(1, vec![kek(1), kek(1)], None);
        assert_eq!(twice.err(), Some(RingError::Twice(Serial(1))));
        let absent = OpenRing::new(1, vec![kek(1)], Some(Serial(2)));
        assert_eq!(absent.err(), Some(RingError::NotOpened(Serial(2))));
        let ring = OpenRing::new(7, vec![kek(2), kek(1)], Some(Serial(2))).unwrap();
        assert_eq!(ring.revision(), 7);
        assert_eq!(ring.reported().unwrap().serial(), Serial(2));
        assert_eq!(ring.self_test(), [Serial(1), Serial(2)]);
    }

    #[test]
    fn the_annotation_reads_back() {
        let kek = kek(3);
        let carried = Carried::parse(kek.annotation()).unwrap();
        assert_eq!((carried.serial, carried.wrapped.as_str()), (Serial(3), "wrapped"));
    }
}
