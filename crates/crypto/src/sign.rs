//! Signatures by Ed25519 (RFC 8032), for statements that others must be able to check.

use crate::digest::{hex, sha256};
use crate::secret::Key32;
use aws_lc_rs::signature::{ED25519, Ed25519KeyPair, KeyPair, UnparsedPublicKey};
use std::fmt;

/// Bytes of a signature.
pub const SIGNATURE_LEN: usize = 64;

/// A private key. The library wipes it when it is dropped.
pub struct SigningKey {
    pair: Ed25519KeyPair,
    public: PublicKey,
}

impl SigningKey {
    /// The key whose seed (RFC 8032, section 5.1.5: the private key) is `seed`.
    ///
    /// # Panics
    /// Never: any 32 bytes are a seed.
    pub fn of_seed(seed: &Key32) -> Self {
        let pair = Ed25519KeyPair::from_seed_unchecked(seed.expose())
            .expect("any 32 bytes are a seed of Ed25519");
        let public = pair.public_key().as_ref().try_into();
        Self { public: PublicKey(public.expect("public keys have 32 bytes")), pair }
    }

    /// What others check signatures with.
    pub fn public(&self) -> PublicKey {
        self.public
    }

    /// The signature over `message`. Put a label of its own in front of each kind of message, so
    /// that none passes for another.
    pub fn sign(&self, message: &[u8]) -> [u8; SIGNATURE_LEN] {
        self.pair.sign(message).as_ref().try_into().expect("signatures have 64 bytes")
    }
}

/// A public key.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PublicKey(pub [u8; 32]);

impl PublicKey {
    /// Whether `signature` over `message` was made by this key's owner. A key that is no point
    /// of the curve has signed nothing.
    pub fn signed(&self, message: &[u8], signature: &[u8; SIGNATURE_LEN]) -> bool {
        UnparsedPublicKey::new(&ED25519, self.0).verify(message, signature).is_ok()
    }

    /// A short name for this key: the first 8 bytes of its SHA-256.
    pub fn id(&self) -> [u8; 8] {
        let [a, b, c, d, e, f, g, h, ..] = sha256(&self.0);
        [a, b, c, d, e, f, g, h]
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PublicKey({})", hex(&self.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(hex: &str) -> Vec<u8> {
        let digits = |at| u8::from_str_radix(&hex[at..at + 2], 16).expect("hexadecimal");
        (0..hex.len()).step_by(2).map(digits).collect()
    }

    /// RFC 8032, section 7.1, test 2.
    #[test]
    fn the_rfcs_vector() {
        let mut seed = bytes("4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb");
        let key = SigningKey::of_seed(&Key32::take(&mut seed).expect("32 bytes"));
        let public = bytes("3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c");
        assert_eq!(key.public().0.as_slice(), public);
        let signature = key.sign(&[0x72]);
        assert_eq!(
            signature.as_slice(),
            bytes(
                "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da\
                 085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00"
            )
        );
        assert!(key.public().signed(&[0x72], &signature));
        assert!(!key.public().signed(&[0x73], &signature));
        let mut other = signature;
        other[0] ^= 1;
        assert!(!key.public().signed(&[0x72], &other));
        assert!(!PublicKey([0xff; 32]).signed(&[0x72], &signature));
    }
}
