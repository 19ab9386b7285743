//! Where the material of root keys lives. Only a custodian sees it in the clear.

use claviger_crypto::{OpenError, SecretBytes};
use claviger_domain::key::RootVersion;
use thiserror::Error;

pub mod software;
pub mod suite;

/// Material of a root key version, sealed by its custodian: what the store keeps. Bound to the
/// version, so that it cannot be moved to another row.
pub struct SealedMaterial(pub Vec<u8>);

/// Why a custodian did not do it.
#[derive(Debug, Error)]
pub enum CustodyError {
    /// The ciphertext, its context or its key is not right. The caller's fault; final.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The sealed material does not open under this custodian's master key: the database and
    /// the master key do not belong together, or a row was changed.
    #[error("the sealed material of key version {0} does not open; is this the right master key?")]
    Material(RootVersion),
    /// Imported material has a length that no root key has.
    #[error("a root key has 16, 24 or 32 bytes, not {0}")]
    MaterialLength(usize),
    /// The custodian does not answer; try again. Software always does; a token will not.
    #[error("custodian {0} gave no answer")]
    Unavailable(&'static str),
}

/// Holds root keys. Implementations pass one suite: [`suite`].
pub trait Custodian: Send + Sync {
    /// A short name, for traces.
    fn name(&self) -> &'static str;
    /// Makes 256 bits of material for `version`.
    fn generate(&self, version: &RootVersion) -> Result<SealedMaterial, CustodyError>;
    /// Takes imported material for `version`.
    fn import(
        &self,
        version: &RootVersion,
        material: &SecretBytes,
    ) -> Result<SealedMaterial, CustodyError>;
    /// Wraps `plaintext` under `version`.
    fn wrap(
        &self,
        version: &RootVersion,
        material: &SealedMaterial,
        aad: &[String],
        plaintext: &[u8],
    ) -> Result<String, CustodyError>;
    /// Unwraps a text that names `version`.
    fn unwrap(
        &self,
        version: &RootVersion,
        material: &SealedMaterial,
        aad: &[String],
        ciphertext: &str,
    ) -> Result<SecretBytes, CustodyError>;
    /// Seals anything else that the store keeps secret (standard keys' payloads, signing keys),
    /// bound to where it is stored.
    fn seal_column(&self, place: &[&str], plaintext: &[u8]) -> Vec<u8>;
    /// Opens what `seal_column` made for the same place.
    fn open_column(&self, place: &[&str], sealed: &[u8]) -> Result<SecretBytes, CustodyError>;
    /// Forgets any opened material of `version` that is held in memory.
    fn forget(&self, version: &RootVersion);
}
