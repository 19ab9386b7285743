//! A custodian whose work shows in traces.

use claviger_crypto::SecretBytes;
use claviger_custody::{Custodian, CustodyError, SealedMaterial};
use claviger_domain::key::RootVersion;
use std::sync::Arc;

/// Passes everything on, each call of root keys in a span of its own that tells no more than which
/// call it was.
pub(crate) struct Traced(pub(crate) Arc<dyn Custodian>);

impl Traced {
    fn span(&self, call: &'static str) -> tracing::span::EnteredSpan {
        tracing::debug_span!(
            target: "claviger::trace",
            "custodian",
            otel.kind = "client",
            claviger.custodian = self.0.name(),
            claviger.call = call,
        )
        .entered()
    }
}

impl Custodian for Traced {
    fn name(&self) -> &'static str {
        self.0.name()
    }

    fn generate(&self, version: &RootVersion) -> Result<SealedMaterial, CustodyError> {
        let _span = self.span("generate");
        self.0.generate(version)
    }

    fn import(
        &self,
        version: &RootVersion,
        material: &SecretBytes,
    ) -> Result<SealedMaterial, CustodyError> {
        let _span = self.span("import");
        self.0.import(version, material)
    }

    fn wrap(
        &self,
        version: &RootVersion,
        material: &SealedMaterial,
        aad: &[String],
        plaintext: &[u8],
    ) -> Result<String, CustodyError> {
        let _span = self.span("wrap");
        self.0.wrap(version, material, aad, plaintext)
    }

    fn unwrap(
        &self,
        version: &RootVersion,
        material: &SealedMaterial,
        aad: &[String],
        ciphertext: &str,
    ) -> Result<SecretBytes, CustodyError> {
        let _span = self.span("unwrap");
        self.0.unwrap(version, material, aad, ciphertext)
    }

    fn seal_column(&self, place: &[&str], plaintext: &[u8]) -> Vec<u8> {
        self.0.seal_column(place, plaintext)
    }

    fn open_column(&self, place: &[&str], sealed: &[u8]) -> Result<SecretBytes, CustodyError> {
        self.0.open_column(place, sealed)
    }

    fn forget(&self, version: &RootVersion) {
        self.0.forget(version);
    }
}
