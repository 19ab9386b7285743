//! The wrapped DEK of the key service: what `wrap` answers and `unwrap` takes.
//!
//! Base64 (RFC 4648, section 4) of a JSON object
//! `{"ciphertext": base64, "handle": uuid, "version": "claviger/1"}`, where the inner ciphertext
//! is `0x01 ‖ key version id(16) ‖ sealed box`. The handle is bound: clients exist that rewrite
//! it, and such a text must not open.

use crate::sealed::{OpenError, SealingKey};
use crate::secret::SecretBytes;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use claviger_domain::id::KeyVersionId;
use claviger_domain::key::RootVersion;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

const FORMAT: u8 = 1;
const LABEL: &[u8] = b"claviger wrap 1";
/// What the text says of its form.
const VERSION: &str = "claviger/1";

/// Largest accepted ciphertext text: 32 KiB, enough for a 16 KiB plaintext.
pub const TEXT_MAX: usize = 32 << 10;

/// Largest plaintext to wrap: 16 KiB.
pub const PLAINTEXT_MAX: usize = 16 << 10;

#[derive(Serialize, Deserialize)]
struct Envelope {
    ciphertext: String,
    handle: Uuid,
    version: String,
}

/// A parsed wrapped DEK: names its key version, not yet opened.
pub struct Wrapped {
    version: KeyVersionId,
    handle: Uuid,
    sealed: Vec<u8>,
}

impl Wrapped {
    /// Reads a wrapped DEK. Any fault is one error, as for a text that does not open.
    pub fn parse(text: &str) -> Result<Wrapped, OpenError> {
        if text.len() > TEXT_MAX {
            return Err(OpenError);
        }
        let json = STANDARD.decode(text).map_err(|_| OpenError)?;
        let envelope: Envelope = serde_json::from_slice(&json).map_err(|_| OpenError)?;
        if envelope.version != VERSION {
            return Err(OpenError);
        }
        let bytes = STANDARD.decode(envelope.ciphertext).map_err(|_| OpenError)?;
        let rest = bytes.strip_prefix(&[FORMAT]).ok_or(OpenError)?;
        let (version, sealed) = rest.split_at_checked(16).ok_or(OpenError)?;
        let version = Uuid::from_slice(version).map_err(|_| OpenError)?;
        Ok(Wrapped {
            version: KeyVersionId(version),
            handle: envelope.handle,
            sealed: sealed.to_vec(),
        })
    }

    /// The key version that opens it.
    pub fn version(&self) -> KeyVersionId {
        self.version
    }

    /// Opens it with the material of `root`, whose version must be [`version`](Self::version).
    pub fn open(
        &self,
        material: &SealingKey,
        root: &RootVersion,
        aad: &[String],
    ) -> Result<SecretBytes, OpenError> {
        if root.version != self.version {
            return Err(OpenError);
        }
        let context = Context::new(root, self.handle, aad);
        material.open(LABEL, &context.parts(), &self.sealed)
    }
}

/// Wraps `plaintext` with the material of `root`; `aad` in its order must be given again.
///
/// # Panics
/// On more than [`PLAINTEXT_MAX`] bytes: callers check first.
pub fn wrap(material: &SealingKey, root: &RootVersion, aad: &[String], plaintext: &[u8]) -> String {
    assert!(plaintext.len() <= PLAINTEXT_MAX, "callers bound their plaintexts");
    let handle = Uuid::new_v4();
    let context = Context::new(root, handle, aad);
    let mut bytes = vec![FORMAT];
    bytes.extend_from_slice(root.version.0.as_bytes());
    bytes.extend_from_slice(&material.seal(LABEL, &context.parts(), plaintext));
    let envelope =
        Envelope { ciphertext: STANDARD.encode(bytes), handle, version: VERSION.to_owned() };
    let json = serde_json::to_vec(&envelope).expect("three strings are valid JSON");
    STANDARD.encode(json)
}

struct Context<'a> {
    ids: [Uuid; 4],
    count: [u8; 4],
    aad: &'a [String],
}

impl<'a> Context<'a> {
    fn new(root: &RootVersion, handle: Uuid, aad: &'a [String]) -> Self {
        let ids = [root.root.instance.0, root.root.key.0, root.version.0, handle];
        let count = u32::try_from(aad.len()).expect("aad lists are short").to_be_bytes();
        Self { ids, count, aad }
    }

    fn parts(&self) -> Vec<&[u8]> {
        let mut parts: Vec<&[u8]> = self.ids.iter().map(|id| id.as_bytes().as_slice()).collect();
        parts.push(&self.count);
        parts.extend(self.aad.iter().map(String::as_bytes));
        parts
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::secret::Key32;
    use claviger_domain::id::{InstanceId, KeyId};
    use claviger_domain::key::RootKey;

    fn root() -> RootVersion {
        let root = RootKey { instance: InstanceId::random(), key: KeyId::random() };
        RootVersion { root, version: KeyVersionId::random() }
    }

    #[test]
    fn unwraps_with_the_same_key_and_aad_only() {
        let (material, root) = (SealingKey::new(&Key32::generate()), root());
        let aad = vec!["a".to_owned(), String::new()];
        let text = wrap(&material, &root, &aad, b"dek");
        let wrapped = Wrapped::parse(&text).expect("our own text");
        assert_eq!(wrapped.version(), root.version);
        assert_eq!(wrapped.open(&material, &root, &aad).expect("opens").expose(), b"dek");
        assert!(wrapped.open(&material, &root, &aad[..1]).is_err());
        assert!(wrapped.open(&material, &root, &["".to_owned(), "a".to_owned()]).is_err());
        let mut other = root;
        other.root.key = KeyId::random();
        assert!(wrapped.open(&material, &other, &aad).is_err());
    }

    #[test]
    fn a_changed_handle_does_not_open() {
        let (material, root) = (SealingKey::new(&Key32::generate()), root());
        let json = STANDARD.decode(wrap(&material, &root, &[], b"dek")).expect("base64");
        let mut envelope: Envelope = serde_json::from_slice(&json).expect("json");
        envelope.handle = Uuid::new_v4();
        let text = STANDARD.encode(serde_json::to_vec(&envelope).expect("json"));
        assert!(Wrapped::parse(&text).expect("parses").open(&material, &root, &[]).is_err());
    }

    #[test]
    fn rubbish_does_not_parse() {
        for text in ["", "!", "e30=", "bnVsbA==", &"A".repeat(TEXT_MAX + 4)] {
            assert!(Wrapped::parse(text).is_err());
        }
    }
}
