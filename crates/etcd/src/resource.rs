//! Which keys of etcd hold which Kubernetes resource.

use std::fmt;
use std::str::FromStr;
use thiserror::Error;

/// Where kube-apiserver keeps its objects, unless `--etcd-prefix` says otherwise.
pub const PREFIX: &str = "/registry";

/// Longest name of a resource, in bytes: a DNS subdomain (RFC 1123) and its group.
const NAME_MAX: usize = 512;

/// A Kubernetes resource and the prefix of its keys in etcd.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Resource {
    name: String,
    prefix: String,
}

/// A text that names no resource.
#[derive(Debug, Error, PartialEq, Eq)]
#[error(
    "{0:?} names no resource; give one like `secrets`, `widgets.example.com`, or the path of its keys in etcd"
)]
pub struct InvalidResource(String);

impl Resource {
    /// Secrets, under the usual prefix.
    pub fn secrets() -> Self {
        Self { name: "secrets".to_owned(), prefix: format!("{PREFIX}/secrets/") }
    }

    /// Its name, as in an EncryptionConfiguration, or the path it was given by.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What each of its keys begins with; ends in `/`.
    pub fn prefix(&self) -> &str {
        &self.prefix
    }

    /// The resource `name` below another prefix of etcd, for API servers that were started with
    /// `--etcd-prefix`.
    pub fn below(etcd_prefix: &str, name: &str) -> Result<Self, InvalidResource> {
        let ok = |c: u8| c.is_ascii_alphanumeric() || matches!(c, b'-' | b'.');
        let path = |c: u8| ok(c) || matches!(c, b'/' | b'_' | b':');
        let invalid = || InvalidResource(name.chars().take(64).collect());
        if name.is_empty() || name.len() > NAME_MAX || !etcd_prefix.starts_with('/') {
            return Err(invalid());
        }
        if name.starts_with('/') {
            let trimmed = name.trim_end_matches('/');
            let good = trimmed.len() > 1 && trimmed.bytes().all(path);
            return good
                .then(|| Self { name: trimmed.to_owned(), prefix: format!("{trimmed}/") })
                .ok_or_else(invalid);
        }
        if !name.bytes().all(ok) {
            return Err(invalid());
        }
        let root = etcd_prefix.trim_end_matches('/');
        let prefix = match name.split_once('.') {
            // Custom resources lie below their group.
            Some((resource, group)) if !resource.is_empty() && !group.is_empty() => {
                format!("{root}/{group}/{resource}/")
            }
            Some(_) => return Err(invalid()),
            None => format!("{root}/{name}/"),
        };
        Ok(Self { name: name.to_owned(), prefix })
    }
}

impl FromStr for Resource {
    type Err = InvalidResource;
    fn from_str(name: &str) -> Result<Self, InvalidResource> {
        Self::below(PREFIX, name)
    }
}

impl fmt::Display for Resource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_lead_to_prefixes() {
        for (name, prefix) in [
            ("secrets", "/registry/secrets/"),
            ("widgets.example.com", "/registry/example.com/widgets/"),
            ("/registry/services/specs/", "/registry/services/specs/"),
        ] {
            assert_eq!(name.parse::<Resource>().map(|r| r.prefix), Ok(prefix.to_owned()));
        }
        for bad in ["", ".", "a.", ".b", "a b", "/", "//", "secrets/x"] {
            assert!(bad.parse::<Resource>().is_err(), "{bad}");
        }
        let other = Resource::below("/k8s/", "secrets").map(|r| r.prefix);
        assert_eq!(other, Ok("/k8s/secrets/".to_owned()));
    }
}
