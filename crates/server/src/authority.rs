//! The server's own certificate authority: it signs the server's certificate and those of node
//! agents.
//!
//! One authority for both, so that an operator pins one fingerprint: a node's certificate says
//! clientAuth only and the server's serverAuth only, and TLS checks that on both ends, so
//! neither can stand in for the other.

use claviger_crypto::digest::{hex, sha256};
use claviger_domain::id::UnixMs;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, PublicKeyData, SanType, SerialNumber,
};
use rustls_pki_types::CertificateDer;
use std::time::Duration;

/// Life of the authority's certificate: ten years.
const CA_LIFE: Duration = Duration::from_secs(3650 * 86_400);
/// Life of the server's certificate: a year and a month.
const SERVER_LIFE: Duration = Duration::from_secs(396 * 86_400);
/// Certificates begin this much earlier, for clocks that are behind.
const EARLIER: Duration = Duration::from_secs(3600);

/// Signs certificates.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    der: CertificateDer<'static>,
}

impl Authority {
    /// Makes a new authority: its certificate (DER) and its private key (PKCS#8 DER).
    pub(crate) fn generate(now: UnixMs) -> Result<(Vec<u8>, Vec<u8>), rcgen::Error> {
        let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256)?;
        let mut params = CertificateParams::default();
        params.distinguished_name = name("Claviger CA");
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        dates(&mut params, now, CA_LIFE);
        let certificate = params.self_signed(&key)?;
        Ok((certificate.der().to_vec(), key.serialize_der()))
    }

    /// An authority out of what [`generate`](Self::generate) made.
    pub(crate) fn load(certificate: Vec<u8>, key: &[u8]) -> Result<Authority, rcgen::Error> {
        let key = KeyPair::try_from(key)?;
        let der = CertificateDer::from(certificate);
        Ok(Authority { issuer: Issuer::from_ca_cert_der(&der, key)?, der })
    }

    /// The authority's certificate.
    pub fn der(&self) -> &CertificateDer<'static> {
        &self.der
    }

    /// The authority's certificate, PEM.
    pub fn pem(&self) -> String {
        pem(&self.der)
    }

    /// SHA-256 of the authority's certificate, lower-case hexadecimal: what operators compare.
    pub fn fingerprint(&self) -> String {
        hex(&sha256(&self.der))
    }

    /// Signs a certificate for `key` as `params` say, good for `life` from `now`.
    pub fn sign(
        &self,
        mut params: CertificateParams,
        key: &impl PublicKeyData,
        now: UnixMs,
        life: Duration,
    ) -> Result<CertificateDer<'static>, rcgen::Error> {
        dates(&mut params, now, life);
        // 121 random bits or more: unpredictable, and positive in DER.
        let mut serial = *uuid::Uuid::new_v4().as_bytes();
        serial[0] &= 0x7f;
        params.serial_number = Some(SerialNumber::from_slice(&serial));
        params.use_authority_key_identifier_extension = true;
        Ok(params.signed_by(key, &self.issuer)?.der().clone())
    }

    /// A new key (PKCS#8 DER) and certificate for the server under these names and addresses.
    pub(crate) fn server(
        &self,
        names: &[String],
        now: UnixMs,
    ) -> Result<(CertificateDer<'static>, Vec<u8>), rcgen::Error> {
        let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256)?;
        let mut params = CertificateParams::default();
        params.distinguished_name = name("Claviger server");
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        for name in names {
            params.subject_alt_names.push(match name.parse() {
                Ok(address) => SanType::IpAddress(address),
                Err(_) => SanType::DnsName(name.as_str().try_into()?),
            });
        }
        let certificate = self.sign(params, &key, now, SERVER_LIFE)?;
        Ok((certificate, key.serialize_der()))
    }
}

/// PEM of a certificate (RFC 7468).
pub fn pem(der: &CertificateDer<'_>) -> String {
    use base64::Engine as _;
    let text = base64::engine::general_purpose::STANDARD.encode(der);
    let mut out = String::from("-----BEGIN CERTIFICATE-----\n");
    for line in text.as_bytes().chunks(64) {
        out.push_str(std::str::from_utf8(line).expect("base64 is ASCII"));
        out.push('\n');
    }
    out + "-----END CERTIFICATE-----\n"
}

fn name(common: &str) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    name.push(DnType::OrganizationName, "Claviger");
    name.push(DnType::CommonName, common);
    name
}

fn dates(params: &mut CertificateParams, now: UnixMs, life: Duration) {
    let epoch = rcgen::date_time_ymd(1970, 1, 1);
    let now = Duration::from_millis(now.0.max(0) as u64);
    params.not_before = epoch + now.saturating_sub(EARLIER);
    params.not_after = epoch + now + life;
}
