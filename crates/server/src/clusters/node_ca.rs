//! Certificates for nodes: what a request must be, what a certificate says.

use super::fault::Fault;
use super::limits::{CERTIFICATE_MS, JOIN_MAX};
use crate::authority::{Authority, pem};
use claviger_crypto::digest::{hex, sha256};
use claviger_domain::id::{AgentName, ClusterId, UnixMs};
use claviger_wire::agent::{Certificate, identity};
use rcgen::{
    CertificateParams, CertificateSigningRequestParams, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, KeyUsagePurpose, PublicKeyData, SanType,
};
use std::time::Duration;
use x509_parser::prelude::X509Certificate;

/// A public key whose owner proved to hold the private one.
pub struct Proven {
    key: rcgen::PublicKey,
    uris: Vec<String>,
}

impl Proven {
    /// Reads a PKCS#10 request (RFC 2986, PEM) and checks its signature by its own key: ECDSA on
    /// P-256 with SHA-256, or Ed25519. Of the rest only [`uris`](Self::uris) is of use.
    pub fn read(request: &str) -> Result<Proven, Fault> {
        if request.len() > JOIN_MAX {
            return Err(Fault::Bad(format!("a certificate request has at most {JOIN_MAX} bytes")));
        }
        let parsed = CertificateSigningRequestParams::from_pem(request).map_err(|e| {
            Fault::Bad(format!("the certificate request is not good: {e}; it must be PKCS#10, PEM"))
        })?;
        let names = parsed.params.subject_alt_names.into_iter();
        let uris = names.filter_map(|name| match name {
            SanType::URI(uri) => Some(uri.as_str().to_owned()),
            _ => None,
        });
        let (key, uris) = (parsed.public_key, uris.collect());
        // The request names the algorithm of its signature; the key must be one of that kind, an
        // uncompressed point of P-256 or 32 bytes of Ed25519.
        let (algorithm, bytes) = (key.algorithm(), key.der_bytes());
        let p256 = *algorithm == rcgen::PKCS_ECDSA_P256_SHA256
            && bytes.len() == 65
            && bytes.first() == Some(&4);
        let ed25519 = *algorithm == rcgen::PKCS_ED25519 && bytes.len() == 32;
        if p256 || ed25519 {
            Ok(Proven { key, uris })
        } else {
            Err(Fault::Bad("a node's key is of ECDSA P-256 or Ed25519".into()))
        }
    }

    /// The URIs that the request names: what its owner signed, true or not.
    pub fn uris(&self) -> &[String] {
        &self.uris
    }

    /// SHA-256 of the public key.
    pub fn hash(&self) -> [u8; 32] {
        sha256(self.key.der_bytes())
    }

    /// Whether this is the public key of a certificate.
    pub fn is_of(&self, certificate: &X509Certificate<'_>) -> bool {
        *certificate.public_key().subject_public_key.data == *self.key.der_bytes()
    }
}

/// A certificate and its fingerprint (SHA-256 of the DER, hexadecimal).
pub struct Issued {
    /// For the node.
    pub certificate: Certificate,
    /// For the table of agents.
    pub fingerprint: String,
}

/// Signs a node's certificate.
pub fn issue(
    authority: &Authority,
    cluster: &ClusterId,
    agent: &AgentName,
    key: &Proven,
    now: UnixMs,
) -> Result<Issued, Fault> {
    let bug = |e: rcgen::Error| Fault::Bug(format!("signing a node's certificate: {e}"));
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::OrganizationName, "Claviger node");
    // A common name has at most 64 characters; the identity is in the alternative name.
    params.distinguished_name.push(DnType::CommonName, agent.as_str());
    let uri = identity(cluster, agent).as_str().try_into().map_err(bug)?;
    params.subject_alt_names = vec![SanType::URI(uri)];
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    let life = Duration::from_millis(CERTIFICATE_MS.unsigned_abs());
    let der = authority.sign(params, &key.key, now, life).map_err(bug)?;
    Ok(Issued {
        fingerprint: hex(&sha256(&der)),
        certificate: Certificate {
            cluster: cluster.clone(),
            certificate: pem(&der),
            ca: authority.pem(),
            not_after: UnixMs(now.0 + CERTIFICATE_MS),
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use rcgen::KeyPair;
    use x509_parser::prelude::{FromDer, GeneralName};

    fn authority() -> Authority {
        let (certificate, key) = Authority::generate(UnixMs(1_700_000_000_000)).unwrap();
        Authority::load(certificate, &key).unwrap()
    }

    fn request(algorithm: &'static rcgen::SignatureAlgorithm) -> String {
        let key = KeyPair::generate_for(algorithm).unwrap();
        let mut params = CertificateParams::new(vec!["evil.example".to_owned()]).unwrap();
        params.distinguished_name.push(DnType::CommonName, "system:masters");
        params.serialize_request(&key).unwrap().pem().unwrap()
    }

    #[test]
    fn a_certificate_says_who_and_for_how_long_and_nothing_that_was_asked_for() {
        let now = UnixMs(1_800_000_000_000);
        let (cluster, agent) = (ClusterId::random(), "n1".parse().unwrap());
        for algorithm in [&rcgen::PKCS_ECDSA_P256_SHA256, &rcgen::PKCS_ED25519] {
            let key = Proven::read(&request(algorithm)).unwrap_or_else(|e| panic!("{e}"));
            let issued =
                issue(&authority(), &cluster, &agent, &key, now).unwrap_or_else(|e| panic!("{e}"));
            let pem = x509_parser::pem::parse_x509_pem(issued.certificate.certificate.as_bytes());
            let der = pem.unwrap().1.contents;
            let (_, cert) = X509Certificate::from_der(&der).unwrap();
            let sans = cert.subject_alternative_name().unwrap().unwrap();
            let uri = format!("claviger://cluster/{cluster}/agent/n1");
            assert_eq!(sans.value.general_names, [GeneralName::URI(&uri)]);
            let usage = cert.extended_key_usage().unwrap().unwrap();
            assert!(usage.value.client_auth && !usage.value.server_auth && !usage.value.any);
            assert!(!cert.is_ca());
            assert!(!cert.subject().to_string().contains("masters"));
            assert_eq!(cert.validity().not_after.timestamp(), 1_800_000_000 + 30 * 86_400);
            assert_eq!(issued.certificate.not_after.0, (1_800_000_000 + 30 * 86_400) * 1000);
            assert_eq!(issued.fingerprint, hex(&sha256(&der)));
        }
    }

    #[test]
    fn requests_that_are_not_good_are_refused() {
        assert!(Proven::read(&request(&rcgen::PKCS_ECDSA_P384_SHA384)).is_err(), "P-384");
        assert!(Proven::read("").is_err());
        assert!(Proven::read(&"x".repeat(JOIN_MAX + 1)).is_err());
        // One bit of the signature, the last octets of the request, is another.
        let good = request(&rcgen::PKCS_ECDSA_P256_SHA256);
        let mut der = x509_parser::pem::parse_x509_pem(good.as_bytes()).unwrap().1.contents;
        *der.last_mut().unwrap() ^= 1;
        let forged = pem(&rustls_pki_types::CertificateDer::from(der))
            .replace("CERTIFICATE", "CERTIFICATE REQUEST");
        assert!(Proven::read(&forged).is_err(), "forged signature");
    }
}
