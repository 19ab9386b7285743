//! What a cluster can do, computed from what is observed of it: the table of features by version.
//!
//! The table once turned on a version number alone. Here each row turns on a fact: the versions
//! that the API servers answer, whether agents joined, whether the key service knows the cluster
//! as a user of its root key.

use std::fmt;
use std::str::FromStr;

/// Oldest Kubernetes minor with KMS v2 as a stable API (1.29, where v1 is off by default).
pub const KMS_V2: (u32, u32) = (1, 29);

/// Oldest Kubernetes minor with `storagemigration.k8s.io/v1`.
pub const STORAGE_MIGRATION: (u32, u32) = (1, 37);

/// The API servers of a cluster may be at most one minor apart (Kubernetes' version skew policy
/// for several API servers).
pub const MINOR_SKEW_MAX: u32 = 1;

/// A Kubernetes version as an API server says it: `v1.37.2`, `v1.34.1+k3s1`, `v1.30.0-rc.1`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct KubeVersion {
    /// Major.
    pub major: u32,
    /// Minor.
    pub minor: u32,
    /// Patch.
    pub patch: u32,
}

impl KubeVersion {
    /// Whether this is the given minor or a newer one.
    pub fn at_least(self, minor: (u32, u32)) -> bool {
        (self.major, self.minor) >= minor
    }
}

impl fmt::Display for KubeVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.major, self.minor, self.patch)
    }
}

/// A text that is no Kubernetes version.
#[derive(Debug, thiserror::Error, PartialEq, Eq, Clone, Copy)]
#[error("not a Kubernetes version such as v1.37.2")]
pub struct InvalidVersion;

impl FromStr for KubeVersion {
    type Err = InvalidVersion;
    fn from_str(text: &str) -> Result<Self, InvalidVersion> {
        let text = text.strip_prefix('v').unwrap_or(text);
        let core = text.split(['-', '+']).next().unwrap_or_default();
        let mut parts = core.split('.').map(|part| part.parse::<u32>());
        match (parts.next(), parts.next(), parts.next(), parts.next()) {
            (Some(Ok(major)), Some(Ok(minor)), Some(Ok(patch)), None) => {
                Ok(Self { major, minor, patch })
            }
            _ => Err(InvalidVersion),
        }
    }
}

/// What is known of a cluster.
#[derive(Debug, Clone, Copy)]
pub struct Facts<'a> {
    /// `gitVersion` of each API server that belongs to the cluster; none where it did not answer.
    pub kubernetes: &'a [Option<KubeVersion>],
    /// Whether the key service lists the cluster as a user of the root key that writes.
    pub registered: bool,
    /// Whether encryption was proven.
    pub enabled: bool,
    /// Whether an authorization lets the cluster use the root key that writes, if one does.
    pub authorised: bool,
}

const NO_AUTHORIZATION: &str = "no authorization lets the cluster use its root key: \
                                `claviger iam authorization create`";

/// Why a cluster cannot be encrypted as it is.
#[derive(Debug, thiserror::Error, PartialEq, Eq, Clone, Copy)]
pub enum Unfit {
    /// KMS v2 is not there.
    #[error(
        "an API server runs Kubernetes {0}; encryption needs at least 1.29, where KMS v2 is stable: update the control plane first"
    )]
    TooOld(KubeVersion),
    /// More than one minor apart.
    #[error(
        "API servers run Kubernetes {0} and {1}, more than one minor apart: finish the update of the control plane first"
    )]
    Skew(KubeVersion, KubeVersion),
}

/// Whether the API servers that answered can be encrypted. One that did not answer yet is no
/// obstacle here: the preflight waits for it.
pub fn fit(kubernetes: &[Option<KubeVersion>]) -> Result<(), Unfit> {
    let known = || kubernetes.iter().flatten().copied();
    let (Some(oldest), Some(newest)) = (known().min(), known().max()) else { return Ok(()) };
    if !oldest.at_least(KMS_V2) {
        return Err(Unfit::TooOld(oldest));
    }
    if oldest.major != newest.major || newest.minor - oldest.minor > MINOR_SKEW_MAX {
        return Err(Unfit::Skew(oldest, newest));
    }
    Ok(())
}

/// A row of the table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Feature {
    /// What it is.
    pub name: &'static str,
    /// Whether the cluster has it; none while that is not known.
    pub available: Option<bool>,
    /// Why not, or what it rests on.
    pub because: String,
}

/// The table, in the order of the document.
pub fn table(facts: &Facts<'_>) -> Vec<Feature> {
    let known: Vec<KubeVersion> = facts.kubernetes.iter().flatten().copied().collect();
    let (can, why) = match (known.iter().min(), fit(facts.kubernetes)) {
        (None, _) => (None, "no API server has told its version yet".to_owned()),
        (Some(_), Err(unfit)) => (Some(false), unfit.to_string()),
        (Some(oldest), Ok(())) => (Some(true), format!("Kubernetes {oldest}, KMS v2")),
    };
    let registration = match (facts.registered, facts.enabled) {
        _ if !facts.authorised => NO_AUTHORIZATION,
        (true, _) => "the key service lists the cluster as a user of its root key",
        (false, true) => {
            "the key service does not list the cluster; enable again with a new root key"
        }
        (false, false) => "comes with `ks kms enable`",
    };
    let row =
        |name, available, because: &str| Feature { name, available, because: because.to_owned() };
    let registered = |name| match can {
        Some(true) => row(name, Some(facts.registered && facts.authorised), registration),
        other => row(name, other, &why),
    };
    // What an agent does with the key itself.
    let uses = |name| match can {
        Some(true) if !facts.authorised => row(name, Some(false), NO_AUTHORIZATION),
        other => row(name, other, &why),
    };
    let able = |name| row(name, can, &why);
    let in_tree = known.iter().min().map(|v| v.at_least(STORAGE_MIGRATION));
    vec![
        able("enable with a root key"),
        row(
            "rewrite Secrets by hand after a rotation",
            Some(false),
            "not needed: agents rewrite what is stale",
        ),
        uses("Secrets rewritten automatically after a root key rotation"),
        registered("the key service shows which clusters use a key"),
        able("automatic reaction to disable, enable, delete and restore"),
        able("disabling the root key closes the cluster"),
        able("destroying the root key's material makes the data unrecoverable"),
        registered("root keys in use cannot be deleted"),
        row(
            "storage migration in the API server (storagemigration.k8s.io/v1)",
            in_tree,
            match in_tree {
                Some(true) => "Kubernetes 1.37 or newer; not needed",
                Some(false) => "needs Kubernetes 1.37",
                None => &why,
            },
        ),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn v(text: &str) -> KubeVersion {
        text.parse().unwrap()
    }

    #[test]
    fn versions_as_api_servers_say_them() {
        assert_eq!(v("v1.37.2"), KubeVersion { major: 1, minor: 37, patch: 2 });
        assert_eq!(v("v1.34.1+k3s1").to_string(), "1.34.1");
        assert_eq!(v("1.30.0-rc.1").minor, 30);
        for bad in ["", "v1", "v1.2", "v1.2.3.4", "v1.x.3", "latest"] {
            assert_eq!(bad.parse::<KubeVersion>(), Err(InvalidVersion), "{bad}");
        }
    }

    #[test]
    fn which_versions_can_be_encrypted() {
        let fit = |texts: &[&str]| fit(&texts.iter().map(|t| t.parse().ok()).collect::<Vec<_>>());
        assert_eq!(fit(&[]), Ok(()));
        assert_eq!(fit(&["not yet"]), Ok(()));
        assert_eq!(fit(&["v1.29.0"]), Ok(()));
        assert_eq!(fit(&["v1.28.15"]), Err(Unfit::TooOld(v("1.28.15"))));
        assert_eq!(fit(&["v1.37.2", "v1.28.0"]), Err(Unfit::TooOld(v("1.28.0"))));
        assert_eq!(fit(&["v1.36.9", "v1.37.0"]), Ok(()));
        assert_eq!(fit(&["v1.37.0", "v1.35.2"]), Err(Unfit::Skew(v("1.35.2"), v("1.37.0"))));
    }

    #[test]
    fn the_table_follows_the_facts() {
        let answers = |kubernetes: &[&str], registered, enabled| {
            let kubernetes: Vec<_> = kubernetes.iter().map(|t| t.parse().ok()).collect();
            let facts = Facts { kubernetes: &kubernetes, registered, enabled, authorised: true };
            let rows = table(&facts);
            assert!(rows.iter().all(|r| !r.because.is_empty()));
            let letter = |r: &Feature| r.available.map_or('?', |yes| if yes { 'y' } else { '-' });
            rows.iter().map(letter).collect::<String>()
        };
        assert_eq!(answers(&[], false, false), "?-???????", "nothing is known of it yet");
        assert_eq!(answers(&["what?"], false, false), "?-???????");
        assert_eq!(answers(&["v1.28.3"], true, true), "---------");
        assert_eq!(answers(&["v1.34.1"], false, false), "y-y-yyy--");
        assert_eq!(answers(&["v1.34.1"], true, true), "y-yyyyyy-");
        assert_eq!(answers(&["v1.37.2", "v1.37.2"], true, true), "y-yyyyyyy");
        assert_eq!(answers(&["v1.37.2", "v1.36.2"], true, true), "y-yyyyyy-");

        let kubernetes = [Some(v("v1.37.2"))];
        let (registered, enabled) = (true, true);
        let facts = Facts { kubernetes: &kubernetes, registered, enabled, authorised: false };
        let lost: Vec<_> =
            table(&facts).into_iter().filter(|r| r.because == NO_AUTHORIZATION).collect();
        assert!(lost.len() == 3 && lost.iter().all(|r| r.available == Some(false)));
    }
}
