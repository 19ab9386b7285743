//! Certificates of a development cluster. Two authorities, as in a real control plane: whoever
//! may speak to the API server may not thereby speak to etcd.

use crate::error::DevError;
use crate::files;
use crate::layout::Layout;
use crate::spec::Spec;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa,
    KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, date_time_ymd,
};
use std::time::{SystemTime, UNIX_EPOCH};

/// How long everything holds: longer than any development cluster lives.
const YEARS: i32 = 10;
/// The agents' name in Kubernetes; what it may do is bound to it.
pub const AGENT_USER: &str = "claviger-agent";

/// Makes all certificates and keys of a cluster, once. The last file written marks that the
/// directory is whole; without it everything is made anew, before anything was started with it.
pub fn ensure(layout: &Layout, spec: &Spec) -> Result<(), DevError> {
    let marker = layout.pki().join("complete");
    if marker.is_file() {
        return Ok(());
    }
    files::make_dir(&layout.pki())?;

    let kube = authority(layout, "ca", "claviger-dev-ca")?;
    for number in 1..=spec.apiservers {
        let names = [
            "127.0.0.1",
            "10.0.0.1",
            "localhost",
            "kubernetes",
            "kubernetes.default",
            "kubernetes.default.svc",
            "kubernetes.default.svc.cluster.local",
        ];
        let name = format!("apiserver-{number}");
        leaf(layout, &kube, &name, "kube-apiserver", None, &names, &SERVER)?;
    }
    leaf(layout, &kube, "admin", "kubernetes-admin", Some("system:masters"), &[], &CLIENT)?;
    leaf(layout, &kube, "agent", AGENT_USER, None, &[], &CLIENT)?;

    let etcd = authority(layout, "etcd-ca", "claviger-dev-etcd-ca")?;
    let names = ["127.0.0.1", "localhost"];
    // etcd uses its own certificate also as a client: of itself, for its HTTP gateway.
    leaf(layout, &etcd, "etcd", "etcd", None, &names, &BOTH)?;
    leaf(layout, &etcd, "etcd-apiserver", "kube-apiserver", None, &[], &CLIENT)?;
    leaf(layout, &etcd, "etcd-agent", AGENT_USER, None, &[], &CLIENT)?;
    leaf(layout, &etcd, "etcd-client", "claviger-dev", None, &[], &CLIENT)?;

    let accounts = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
    files::write(&layout.key("service-accounts"), accounts.serialize_pem().as_bytes())?;
    files::write(&layout.pki().join("service-accounts.pub"), accounts.public_key_pem().as_bytes())?;
    files::write(&marker, b"")
}

const SERVER: [ExtendedKeyUsagePurpose; 1] = [ExtendedKeyUsagePurpose::ServerAuth];
const CLIENT: [ExtendedKeyUsagePurpose; 1] = [ExtendedKeyUsagePurpose::ClientAuth];
const BOTH: [ExtendedKeyUsagePurpose; 2] =
    [ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];

type Authority = CertifiedIssuer<'static, KeyPair>;

fn authority(layout: &Layout, file: &str, name: &str) -> Result<Authority, DevError> {
    let mut params = params(name, None, &[])?;
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
    files::write(&layout.key(file), key.serialize_pem().as_bytes())?;
    let authority = CertifiedIssuer::self_signed(params, key)?;
    files::write(&layout.certificate(file), authority.pem().as_bytes())?;
    Ok(authority)
}

fn leaf(
    layout: &Layout,
    authority: &Authority,
    file: &str,
    name: &str,
    organisation: Option<&str>,
    names: &[&str],
    uses: &[ExtendedKeyUsagePurpose],
) -> Result<(), DevError> {
    let mut params = params(name, organisation, names)?;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = uses.to_vec();
    params.use_authority_key_identifier_extension = true;
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
    let certificate = params.signed_by(&key, authority)?;
    files::write(&layout.key(file), key.serialize_pem().as_bytes())?;
    files::write(&layout.certificate(file), certificate.pem().as_bytes())
}

fn params(
    name: &str,
    organisation: Option<&str>,
    names: &[&str],
) -> Result<CertificateParams, DevError> {
    let names: Vec<String> = names.iter().map(|n| (*n).to_owned()).collect();
    let mut params = CertificateParams::new(names)?;
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    if let Some(organisation) = organisation {
        params.distinguished_name.push(DnType::OrganizationName, organisation);
    }
    // Whole years are exact enough here; a clock before 2025 is taken for one that is not set.
    let seconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
    let year = 1970 + i32::try_from(seconds / 31_556_952).unwrap_or(0);
    let year = year.max(2025);
    params.not_before = date_time_ymd(year - 1, 1, 1);
    params.not_after = date_time_ymd(year + YEARS, 1, 1);
    Ok(params)
}
