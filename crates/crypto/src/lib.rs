//! Secrets in memory and the sealed formats: the only caller of the cryptographic library.
//!
//! Every format of ours is AES-256-GCM (NIST SP 800-38D) under a key that is derived anew for each
//! message by HKDF-Expand (RFC 5869, SHA-256) from a 192-bit random salt. So no message key is
//! used twice, no nonce must be counted, and a key may seal without bound (two equal salts among
//! 2^64 messages: probability 2^-65). A 128-bit commitment from the same expansion ties the
//! ciphertext to one key. `docs/formats.md` has each format byte by byte.

pub mod digest;
pub mod harden;
pub mod kek;
pub mod sealed;
pub mod secret;
pub mod sign;
pub mod transport;
pub mod value;
pub mod wrapped;

pub use sealed::{OpenError, SealingKey};
pub use secret::{Key32, SecretBytes};
