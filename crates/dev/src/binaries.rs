//! Where kube-apiserver, kubectl, etcd and etcdutl are on this machine.
//!
//! Looked for in KUBEBUILDER_ASSETS, then in the cache that `cargo xtask testbed` fills
//! (`${CLAVIGER_CACHE:-~/.cache/claviger}/testbed/<module>-<digits>/`, the digits being the
//! first 16 of the SHA-256 of the module's go.mod and go.sum), then in PATH; a program found
//! outside the cache counts only when its version fits.

use crate::error::DevError;
use aws_lc_rs::digest::{Context, SHA256};
use std::fmt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::str::FromStr;

/// A minor version of Kubernetes that the testbed can build.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
pub enum Minor {
    /// The newest.
    #[default]
    #[serde(rename = "1.37")]
    V1_37,
    /// The oldest that is supported.
    #[serde(rename = "1.34")]
    V1_34,
}

impl Minor {
    /// As people write it.
    pub fn as_str(self) -> &'static str {
        match self {
            Minor::V1_37 => "1.37",
            Minor::V1_34 => "1.34",
        }
    }

    fn module(self) -> (&'static str, [&'static [u8]; 2]) {
        match self {
            Minor::V1_37 => (
                "kubernetes-1.37",
                [
                    include_bytes!("../../../testbed/kubernetes-1.37/go.mod"),
                    include_bytes!("../../../testbed/kubernetes-1.37/go.sum"),
                ],
            ),
            Minor::V1_34 => (
                "kubernetes-1.34",
                [
                    include_bytes!("../../../testbed/kubernetes-1.34/go.mod"),
                    include_bytes!("../../../testbed/kubernetes-1.34/go.sum"),
                ],
            ),
        }
    }
}

impl fmt::Display for Minor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Minor {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        match text.strip_prefix('v').unwrap_or(text) {
            "1.37" => Ok(Minor::V1_37),
            "1.34" => Ok(Minor::V1_34),
            _ => Err(format!("{text:?} is not a Kubernetes minor of the testbed: 1.37, 1.34")),
        }
    }
}

/// The programs of a control plane, by absolute path.
#[derive(Debug, Clone)]
pub struct Binaries {
    /// kube-apiserver.
    pub kube_apiserver: PathBuf,
    /// kubectl of the same version.
    pub kubectl: PathBuf,
    /// kube-controller-manager of the same version, where there is one.
    pub kube_controller_manager: Option<PathBuf>,
    /// etcd, 3.5 or newer.
    pub etcd: PathBuf,
    /// etcdutl of the same version.
    pub etcdutl: PathBuf,
}

/// Finds all programs for a Kubernetes minor, or says how to get them.
pub fn find(minor: Minor) -> Result<Binaries, DevError> {
    let (module, sums) = minor.module();
    let version = format!("{minor}.");
    let fits = |word: &str| word.starts_with(&version);
    let kubernetes = place(&cached(module, &sums)?, &["kube-apiserver", "kubectl"], &fits);
    let kubernetes = kubernetes.ok_or_else(|| missing(&format!("Kubernetes {minor}"), minor))?;
    let sums: [&[u8]; 2] = [
        include_bytes!("../../../testbed/etcd/go.mod"),
        include_bytes!("../../../testbed/etcd/go.sum"),
    ];
    // 3.4 has no `etcdutl`, and its watch progress is too old for consistent reads.
    let fits = |word: &str| {
        let mut parts = word.split('.');
        parts.next() == Some("3")
            && parts.next().and_then(|minor| minor.parse::<u32>().ok()).is_some_and(|m| m >= 5)
    };
    let etcd = place(&cached("etcd", &sums)?, &["etcd", "etcdutl"], &fits)
        .ok_or_else(|| missing("etcd 3.5 or newer", minor))?;
    let manager = kubernetes.join("kube-controller-manager");
    Ok(Binaries {
        kube_apiserver: kubernetes.join("kube-apiserver"),
        kubectl: kubernetes.join("kubectl"),
        kube_controller_manager: manager.is_file().then_some(manager),
        etcd: etcd.join("etcd"),
        etcdutl: etcd.join("etcdutl"),
    })
}

fn missing(what: &str, minor: Minor) -> DevError {
    DevError::refused(
        format!("{what} is not on this machine"),
        format!(
            "run `cargo xtask testbed --kubernetes {minor}` once (about 5 minutes), or name a \
             directory that has the programs in KUBEBUILDER_ASSETS"
        ),
    )
}

/// The directory that has all of these programs.
fn place(cached: &Path, programs: &[&str], fits: &dyn Fn(&str) -> bool) -> Option<PathBuf> {
    let all_fit =
        |dir: &Path| programs.iter().all(|name| version_fits(&dir.join(name), name, fits));
    let assets = std::env::var_os("KUBEBUILDER_ASSETS").map(PathBuf::from);
    if let Some(dir) = assets.filter(|dir| all_fit(dir)) {
        return std::path::absolute(dir).ok();
    }
    if programs.iter().all(|name| cached.join(name).is_file()) {
        return Some(cached.to_owned());
    }
    let path = std::env::var_os("PATH")?;
    let found = std::env::split_paths(&path).find(|dir| all_fit(dir))?;
    std::path::absolute(found).ok()
}

fn version_fits(path: &Path, program: &str, fits: &dyn Fn(&str) -> bool) -> bool {
    if !path.is_file() {
        return false;
    }
    let args: &[&str] = match program {
        "kubectl" => &["version", "--client"],
        "etcdutl" => &["version"],
        _ => &["--version"],
    };
    let out = Command::new(path).args(args).stdin(Stdio::null()).stderr(Stdio::null()).output();
    out.is_ok_and(|out| {
        let text = String::from_utf8_lossy(&out.stdout);
        let mut words = text.split_ascii_whitespace();
        words.any(|word| fits(word.strip_prefix('v').unwrap_or(word)))
    })
}

fn cached(module: &str, sums: &[&[u8]]) -> Result<PathBuf, DevError> {
    let cache = match std::env::var_os("CLAVIGER_CACHE") {
        Some(dir) => PathBuf::from(dir),
        None => match std::env::var_os("HOME") {
            Some(home) => Path::new(&home).join(".cache/claviger"),
            None => {
                return Err(DevError::refused(
                    "HOME is not set",
                    "set CLAVIGER_CACHE to the directory that `cargo xtask testbed` filled",
                ));
            }
        },
    };
    let mut hash = Context::new(&SHA256);
    sums.iter().for_each(|bytes| hash.update(bytes));
    let hash = hash.finish();
    let digits: String = hash.as_ref()[..8].iter().map(|b| format!("{b:02x}")).collect();
    let dir = cache.join("testbed").join(format!("{module}-{digits}"));
    std::path::absolute(&dir).map_err(DevError::io("find", &dir))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cache_is_named_as_the_testbed_names_it() {
        for minor in [Minor::V1_37, Minor::V1_34] {
            let (module, sums) = minor.module();
            let here = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testbed").join(module);
            let out = Command::new("sh")
                .current_dir(here)
                .args(["-c", "cat go.mod go.sum | sha256sum"])
                .output()
                .unwrap();
            let digits = String::from_utf8(out.stdout).unwrap()[..16].to_owned();
            let dir = cached(module, &sums).unwrap();
            assert!(dir.ends_with(format!("testbed/{module}-{digits}")), "{}", dir.display());
        }
    }

    #[test]
    fn a_program_counts_only_when_its_version_fits() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("kube-apiserver");
        // Written by another process: a child of another test could else still hold the open
        // file, and a program that is open for writing is not run ("text file busy").
        let write = "printf '#!/bin/sh\\necho Kubernetes v1.37.9\\n' > \"$0\" && chmod 755 \"$0\"";
        let written = Command::new("sh").args(["-c", write]).arg(&path).status().unwrap();
        assert!(written.success());
        assert!(version_fits(&path, "kube-apiserver", &|word| word.starts_with("1.37.")));
        assert!(!version_fits(&path, "kube-apiserver", &|word| word.starts_with("1.34.")));
        assert!(!version_fits(&dir.path().join("kubectl"), "kubectl", &|_| true));
    }
}
