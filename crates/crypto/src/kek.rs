//! The KEK of a cluster: seals the DEK seeds of kube-apiserver, and travels wrapped in the
//! annotations of every record, so that a record can be opened knowing only the root key.

use crate::sealed::{self, OpenError, SealingKey};
use crate::secret::{Key32, SecretBytes};
use claviger_domain::id::{ClusterId, InstanceId, KeyId, KeyVersionId, Serial};
use claviger_domain::key::{RootKey, RootVersion};
use uuid::Uuid;

const LABEL: &[u8] = b"claviger seed 1";

/// The annotation of a KMS v2 record that carries [`Carried`]. A fully qualified domain name,
/// as kube-apiserver demands.
pub const ANNOTATION: &str = "kek.claviger.io";

/// Largest seed that is sealed: kube-apiserver's is 32 bytes (KMS v2) or a DEK of 32 (v1).
pub const SEED_MAX: usize = 512;

/// An opened KEK.
pub struct Kek {
    serial: Serial,
    key_id: String,
    aad: Vec<u8>,
    key: SealingKey,
}

/// The additional authenticated data under which a KEK is wrapped by its root key: cluster and
/// serial. The root key's version is bound by the wrapped format itself.
pub fn wrap_aad(cluster: &ClusterId, serial: Serial) -> Vec<String> {
    vec!["claviger kek 1".to_owned(), cluster.to_string(), serial.to_string()]
}

impl Kek {
    /// Makes a KEK ready for use. `key_id` is what kube-apiserver stores with each record.
    pub fn new(serial: Serial, key_id: String, key: &Key32) -> Self {
        let aad = sealed::aad(&[&serial.0.to_be_bytes(), key_id.as_bytes()]);
        Self { serial, key_id, aad, key: SealingKey::new(key) }
    }

    /// Its number.
    pub fn serial(&self) -> Serial {
        self.serial
    }

    /// Its name in the records.
    pub fn key_id(&self) -> &str {
        &self.key_id
    }

    /// Seals a seed: `serial(8, big endian) ‖ sealed box`, bound to serial and key id.
    pub fn seal(&self, seed: &[u8]) -> Vec<u8> {
        let mut out = Vec::with_capacity(Self::sealed_len(seed.len()));
        self.seal_into(seed, &mut out);
        out
    }

    /// Appends what [`seal`](Self::seal) makes, [`sealed_len`](Self::sealed_len) bytes, to `out`.
    pub fn seal_into(&self, seed: &[u8], out: &mut Vec<u8>) {
        out.extend_from_slice(&self.serial.0.to_be_bytes());
        self.key.seal_bound(LABEL, &self.aad, seed, out);
    }

    /// Bytes of a sealed seed of `len` bytes.
    pub const fn sealed_len(len: usize) -> usize {
        8 + sealed::OVERHEAD + len
    }

    /// Opens what [`seal`](Self::seal) made.
    pub fn open(&self, ciphertext: &[u8]) -> Result<SecretBytes, OpenError> {
        let sealed = ciphertext.strip_prefix(&self.serial.0.to_be_bytes()).ok_or(OpenError)?;
        self.key.open_bound(LABEL, &self.aad, sealed)
    }
}

/// The serial that a sealed seed names, unproven.
pub fn serial_of(ciphertext: &[u8]) -> Option<Serial> {
    let bytes = ciphertext.first_chunk::<8>()?;
    Some(Serial(u64::from_be_bytes(*bytes)))
}

/// A wrapped KEK as a record carries it, with the root key version that opens it. Annotations
/// are not authenticated: whoever writes etcd can forge them, so nothing here is believed until
/// the root key has opened the KEK under [`wrap_aad`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Carried {
    /// Number of the KEK.
    pub serial: Serial,
    /// The root key version that wraps it.
    pub root: RootVersion,
    /// The wrapped KEK, as the key service answered.
    pub wrapped: String,
}

impl Carried {
    const FORMAT: u8 = 1;

    /// `0x01 ‖ serial(8) ‖ instance(16) ‖ key(16) ‖ version(16) ‖ wrapped KEK (text)`.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(57 + self.wrapped.len());
        out.push(Self::FORMAT);
        out.extend_from_slice(&self.serial.0.to_be_bytes());
        out.extend_from_slice(self.root.root.instance.0.as_bytes());
        out.extend_from_slice(self.root.root.key.0.as_bytes());
        out.extend_from_slice(self.root.version.0.as_bytes());
        out.extend_from_slice(self.wrapped.as_bytes());
        out
    }

    /// Reads [`to_bytes`](Self::to_bytes); none for anything else.
    pub fn parse(bytes: &[u8]) -> Option<Carried> {
        let rest = bytes.strip_prefix(&[Self::FORMAT])?;
        let (serial, rest) = rest.split_first_chunk::<8>()?;
        let (instance, rest) = rest.split_first_chunk::<16>()?;
        let (key, rest) = rest.split_first_chunk::<16>()?;
        let (version, wrapped) = rest.split_first_chunk::<16>()?;
        if wrapped.is_empty() || wrapped.len() > crate::wrapped::TEXT_MAX {
            return None;
        }
        Some(Carried {
            serial: Serial(u64::from_be_bytes(*serial)),
            root: RootVersion {
                root: RootKey {
                    instance: InstanceId(Uuid::from_bytes(*instance)),
                    key: KeyId(Uuid::from_bytes(*key)),
                },
                version: KeyVersionId(Uuid::from_bytes(*version)),
            },
            wrapped: String::from_utf8(wrapped.to_vec()).ok()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_opens_under_its_serial_and_key_id_only() {
        let key = Key32::generate();
        let kek = Kek::new(Serial(7), "id".to_owned(), &key);
        let sealed = kek.seal(&[9; 32]);
        assert_eq!(serial_of(&sealed), Some(Serial(7)));
        assert_eq!(kek.open(&sealed).expect("opens").expose(), [9; 32]);
        assert!(Kek::new(Serial(7), "other".to_owned(), &key).open(&sealed).is_err());
        assert!(Kek::new(Serial(8), "id".to_owned(), &key).open(&sealed).is_err());
        assert!(kek.open(&sealed[..8]).is_err());
        assert_eq!(serial_of(&[0; 7]), None);
    }

    #[test]
    fn carried_keks_read_back() {
        let root = RootKey { instance: InstanceId::random(), key: KeyId::random() };
        let root = RootVersion { root, version: KeyVersionId::random() };
        let carried = Carried { serial: Serial(3), root, wrapped: "abc".to_owned() };
        let bytes = carried.to_bytes();
        assert_eq!(Carried::parse(&bytes), Some(carried));
        for len in 0..58 {
            assert_eq!(Carried::parse(&bytes[..len.min(bytes.len() - 3)]), None);
        }
    }
}
