//! A certificate of the operator's own, in two PEM files: read, and judged before it is used.

use claviger_domain::id::UnixMs;
use rustls::crypto::aws_lc_rs::sign::any_supported_type;
use rustls::sign::CertifiedKey;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use std::fs::{File, Metadata};
use std::io::Read as _;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use thiserror::Error;
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};
use zeroize::{Zeroize as _, Zeroizing};

/// Largest file: a chain has a few KiB.
const FILE_MAX: usize = 64 << 10;
/// Certificates of a chain; real ones have two or three.
const CHAIN_MAX: usize = 10;

/// Where the pair is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CertificateFiles {
    /// The certificate first, then those that lead from it to its root; PEM.
    pub chain: PathBuf,
    /// Its private key, PEM; nobody but its owner and group may read it.
    pub key: PathBuf,
}

/// Why a pair is not used.
#[derive(Debug, Error)]
#[allow(missing_docs)] // The texts say it.
pub enum FilesError {
    #[error("cannot read {path}: {why}")]
    Read { path: PathBuf, why: String },
    #[error("{path} has more than {FILE_MAX} bytes")]
    Long { path: PathBuf },
    #[error("others may read the private key in {path} (mode {mode:03o})")]
    Mode { path: PathBuf, mode: u32 },
    #[error("{path} holds no certificate in PEM")]
    NoCertificate { path: PathBuf },
    #[error("{path} holds more than {CHAIN_MAX} certificates")]
    Chain { path: PathBuf },
    #[error("{path} holds no private key in PEM that can be used")]
    NoKey { path: PathBuf },
    #[error("{key} is not the private key of the first certificate in {chain}")]
    Apart { chain: PathBuf, key: PathBuf },
    #[error("the certificate in {path}: {why}")]
    Unfit { path: PathBuf, why: Unfit },
}

/// What is wrong with a certificate itself.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[allow(missing_docs)] // The texts say it.
pub enum Unfit {
    #[error("cannot be read")]
    Damaged,
    #[error("has ended")]
    Ended,
    #[error("is not good yet")]
    Early,
    #[error("is one of an authority, not of a server")]
    Authority,
    #[error("is not for servers (extended key usage)")]
    Usage,
    #[error("has no DNS name, by which clients choose it")]
    Nameless,
    #[error("is for {named}, and clients are told to come to none of these names")]
    Foreign { named: String },
}

/// What is looked at of a certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Seen {
    pub(super) not_before: UnixMs,
    pub(super) not_after: UnixMs,
    pub(super) authority: bool,
    /// Whether it may be a server's; also if it does not say.
    pub(super) for_servers: bool,
    /// In lower case; `*.` may stand for one label.
    pub(super) names: Vec<String>,
}

impl Seen {
    pub(super) fn of(der: &[u8]) -> Result<Seen, Unfit> {
        let damaged = |_| Unfit::Damaged;
        let (_, certificate) = X509Certificate::from_der(der).map_err(damaged)?;
        let at = |time: x509_parser::time::ASN1Time| UnixMs(time.timestamp().saturating_mul(1000));
        let usage = certificate.extended_key_usage().map_err(|_| Unfit::Damaged)?;
        let alternative = certificate.subject_alternative_name().map_err(|_| Unfit::Damaged)?;
        let names = alternative.iter().flat_map(|found| &found.value.general_names);
        let dns = names.filter_map(|name| match name {
            GeneralName::DNSName(name) => Some(name.to_ascii_lowercase()),
            _ => None,
        });
        Ok(Seen {
            not_before: at(certificate.validity().not_before),
            not_after: at(certificate.validity().not_after),
            authority: certificate.is_ca(),
            for_servers: usage.is_none_or(|usage| usage.value.server_auth || usage.value.any),
            names: dns.collect(),
        })
    }

    /// Whether it is good for a server now that clients are told to come to by `told`.
    pub(super) fn fit(&self, told: &[String], now: UnixMs) -> Result<(), Unfit> {
        if self.authority {
            return Err(Unfit::Authority);
        }
        if !self.for_servers {
            return Err(Unfit::Usage);
        }
        if self.names.is_empty() {
            return Err(Unfit::Nameless);
        }
        if now.0 >= self.not_after.0 {
            return Err(Unfit::Ended);
        }
        if now.0 < self.not_before.0 {
            return Err(Unfit::Early);
        }
        if !told.iter().any(|name| self.names.iter().any(|pattern| covers(pattern, name))) {
            return Err(Unfit::Foreign { named: self.names.join(", ") });
        }
        Ok(())
    }
}

/// Whether a name of a certificate is good for a host (RFC 6125, section 6.4).
pub(super) fn covers(pattern: &str, host: &str) -> bool {
    let (pattern, host) = (pattern.to_ascii_lowercase(), host.to_ascii_lowercase());
    let host = host.strip_suffix('.').unwrap_or(&host);
    match pattern.strip_prefix("*.") {
        None => pattern == host,
        Some(rest) => {
            host.split_once('.').is_some_and(|(label, domain)| !label.is_empty() && domain == rest)
        }
    }
}

/// What is known of a file without reading it: another of it is another file, or another content.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Stamp([i64; 8]);

impl Stamp {
    /// Of both files; none of one that is not there.
    pub(super) fn of(files: &CertificateFiles) -> [Option<Stamp>; 2] {
        [&files.chain, &files.key].map(|path| std::fs::metadata(path).ok().map(|m| Stamp::from(&m)))
    }

    fn from(m: &Metadata) -> Stamp {
        let (device, inode, size) = (m.dev() as i64, m.ino() as i64, m.size() as i64);
        let mode = i64::from(m.mode());
        let (changed, changed_ns) = (m.ctime(), m.ctime_nsec());
        Stamp([device, inode, size, mode, m.mtime(), m.mtime_nsec(), changed, changed_ns])
    }
}

/// A pair that is good.
#[derive(Debug)]
pub(super) struct Own {
    pub(super) certified: Arc<CertifiedKey>,
    pub(super) names: Vec<String>,
    pub(super) not_after: UnixMs,
}

impl CertificateFiles {
    /// Looks whether the pair is one that a server could use, for clients that come by `told`; when
    /// the certificate ends.
    ///
    /// # Errors
    /// When it is not, with the reason.
    pub fn look(&self, told: &[String], now: UnixMs) -> Result<UnixMs, FilesError> {
        self.load(told, now).map(|own| own.not_after)
    }

    /// Reads both and holds them against each other.
    pub(super) fn load(&self, told: &[String], now: UnixMs) -> Result<Own, FilesError> {
        let CertificateFiles { chain, key } = self;
        let pem = read(chain, false)?;
        let certificates: Result<Vec<_>, _> =
            CertificateDer::pem_slice_iter(&pem).take(CHAIN_MAX + 1).collect();
        let certificates = certificates.unwrap_or_default();
        let Some(first) = certificates.first() else {
            return Err(FilesError::NoCertificate { path: chain.clone() });
        };
        if certificates.len() > CHAIN_MAX {
            return Err(FilesError::Chain { path: chain.clone() });
        }
        let unfit = |why| FilesError::Unfit { path: chain.clone(), why };
        let seen = Seen::of(first).map_err(unfit)?;
        let no_key = || FilesError::NoKey { path: key.clone() };
        let pem = read(key, true)?;
        let private = PrivateKeyDer::from_pem_slice(&pem).map_err(|_| no_key())?;
        let certified = certified(certificates, private).map_err(|e| match e {
            rustls::Error::InconsistentKeys(_) => {
                FilesError::Apart { chain: chain.clone(), key: key.clone() }
            }
            _ => no_key(),
        })?;
        seen.fit(told, now).map_err(unfit)?;
        let Seen { names, not_after, .. } = seen;
        Ok(Own { certified: Arc::new(certified), names, not_after })
    }
}

/// A chain and its private key, whose bytes are wiped here; the cryptographic library keeps the key
/// in memory of its own, which it wipes.
pub(super) fn certified(
    chain: Vec<CertificateDer<'static>>,
    mut private: PrivateKeyDer<'static>,
) -> Result<CertifiedKey, rustls::Error> {
    let signing = any_supported_type(&private);
    private.zeroize();
    let certified = CertifiedKey::new(chain, signing?);
    certified.keys_match()?;
    Ok(certified)
}

fn read(path: &Path, secret: bool) -> Result<Zeroizing<Vec<u8>>, FilesError> {
    let failed = |e: std::io::Error| FilesError::Read { path: path.into(), why: e.to_string() };
    let file = File::open(path).map_err(failed)?;
    // Of the opened file, so that it cannot be exchanged between look and read.
    let mode = file.metadata().map_err(failed)?.permissions().mode() & 0o777;
    if secret && mode & 0o007 != 0 {
        return Err(FilesError::Mode { path: path.into(), mode });
    }
    // Room for all at once: a vector that grows leaves copies of a secret behind.
    let mut bytes = Zeroizing::new(Vec::with_capacity(FILE_MAX + 1));
    file.take(FILE_MAX as u64 + 1).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() > FILE_MAX {
        return Err(FilesError::Long { path: path.into() });
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_compared_as_rfc_6125_says() {
        for (pattern, host, good) in [
            ("keys.example", "keys.example", true),
            ("Keys.Example", "keys.eXample.", true),
            ("keys.example", "x.keys.example", false),
            ("*.example", "keys.example", true),
            ("*.example", "a.keys.example", false),
            ("*.example", "example", false),
            ("*.example", ".example", false),
            ("*", "keys", false),
            ("k*.example", "keys.example", false),
        ] {
            assert_eq!(covers(pattern, host), good, "{pattern} {host}");
        }
    }

    #[test]
    fn a_certificate_is_judged() {
        let good = Seen {
            not_before: UnixMs(10),
            not_after: UnixMs(20),
            authority: false,
            for_servers: true,
            names: vec!["keys.example".to_owned()],
        };
        let told = ["keys.example".to_owned(), "192.0.2.1".to_owned()];
        let foreign = Unfit::Foreign { named: "other.example".to_owned() };
        let with = |change: fn(&mut Seen)| {
            let mut seen = good.clone();
            change(&mut seen);
            seen
        };
        for (seen, now, expected) in [
            (good.clone(), 10, Ok(())),
            (good.clone(), 19, Ok(())),
            (good.clone(), 20, Err(Unfit::Ended)),
            (good.clone(), 9, Err(Unfit::Early)),
            (with(|seen| seen.authority = true), 10, Err(Unfit::Authority)),
            (with(|seen| seen.for_servers = false), 10, Err(Unfit::Usage)),
            (with(|seen| seen.names.clear()), 10, Err(Unfit::Nameless)),
            (with(|seen| seen.names = vec!["other.example".to_owned()]), 10, Err(foreign)),
        ] {
            assert_eq!(seen.fit(&told, UnixMs(now)), expected, "{seen:?} at {now}");
        }
    }
}
