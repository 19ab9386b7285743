//! `cargo xtask testbed`: Kubernetes and etcd, built from their own modules.
//!
//! Each Go module below `testbed/` is built into a directory of the cache that is named after
//! it and the first 16 digits of the SHA-256 of its go.mod and go.sum, so a change of either
//! builds anew and nothing else does. `claviger dev` looks into the same directories.

use crate::sh::{self, Done};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

/// The Kubernetes minors that there is a module for, newest first.
pub const MINORS: [&str; 2] = ["1.37", "1.34"];
/// What is built of Kubernetes; one of the benches alone needs the last.
const KUBERNETES: [&str; 3] = ["kube-apiserver", "kubectl", "kube-controller-manager"];
const ETCD: [&str; 2] = ["etcd", "etcdutl"];
/// The oldest minor of etcd 3 that will do, as in `claviger dev`.
const ETCD_MINOR_MIN: u32 = 5;

/// Builds what is missing: both minors, or the ones named by `--kubernetes`.
pub fn run(args: &[String]) -> Done {
    let minors = minors(args)?;
    let started = Instant::now();
    if let Some(dir) = ready("etcd", &ETCD, &fits_etcd)? {
        say_there("etcd", &dir);
    } else {
        build_etcd()?;
    }
    for minor in minors {
        let name = format!("kubernetes-{minor}");
        let version = format!("{minor}.");
        if let Some(dir) = ready(&name, &KUBERNETES[..2], &|word| word.starts_with(&version))? {
            say_there(&name, &dir);
        } else {
            build_kubernetes(minor)?;
        }
    }
    sh::say(&format!("the testbed is complete ({:.0} s)", started.elapsed().as_secs_f64()));
    Ok(())
}

fn minors(args: &[String]) -> Result<Vec<&'static str>, String> {
    let mut chosen = Vec::new();
    let mut args = args.iter();
    while let Some(arg) = args.next() {
        let value = match arg.strip_prefix("--kubernetes=") {
            Some(value) => value,
            None if arg == "--kubernetes" => {
                args.next().ok_or("--kubernetes needs a value: 1.37 or 1.34")?
            }
            None => return Err(format!("testbed has no option {arg:?}; it has --kubernetes")),
        };
        let known = MINORS.iter().find(|minor| **minor == value).ok_or_else(|| {
            format!("there is no module for Kubernetes {value:?}; there is {}", MINORS.join(", "))
        })?;
        chosen.push(*known);
    }
    Ok(if chosen.is_empty() { MINORS.to_vec() } else { chosen })
}

fn say_there(name: &str, dir: &Path) {
    sh::say(&format!("{name} is there: {}", dir.display()));
}

/// The directory that has all of these programs already. Looked for as `claviger dev` does: in
/// KUBEBUILDER_ASSETS, in the cache, in PATH.
fn ready(
    module: &str,
    programs: &[&str],
    fits: &dyn Fn(&str) -> bool,
) -> Result<Option<PathBuf>, String> {
    let assets = std::env::var_os("KUBEBUILDER_ASSETS").map(PathBuf::from);
    let path = std::env::var_os("PATH").unwrap_or_default();
    let path: Vec<PathBuf> = std::env::split_paths(&path).collect();
    Ok(place(assets.as_deref(), &target(module)?, &path, programs, fits))
}

fn place(
    assets: Option<&Path>,
    cached: &Path,
    path: &[PathBuf],
    programs: &[&str],
    fits: &dyn Fn(&str) -> bool,
) -> Option<PathBuf> {
    let all_fit = |dir: &Path| programs.iter().all(|p| version_fits(&dir.join(p), p, fits));
    if let Some(dir) = assets.filter(|dir| all_fit(dir)) {
        return Some(dir.to_owned());
    }
    if programs.iter().all(|program| cached.join(program).is_file()) {
        return Some(cached.to_owned());
    }
    path.iter().find(|dir| all_fit(dir)).cloned()
}

fn fits_etcd(word: &str) -> bool {
    let mut parts = word.split('.');
    let minor = |part: &str| part.parse().is_ok_and(|minor: u32| minor >= ETCD_MINOR_MIN);
    parts.next() == Some("3") && parts.next().is_some_and(minor)
}

/// Whether `path` runs and says a version that fits.
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
        String::from_utf8_lossy(&out.stdout)
            .split_ascii_whitespace()
            .any(|word| fits(word.strip_prefix('v').unwrap_or(word)))
    })
}

fn module(name: &str) -> PathBuf {
    sh::root().join("testbed").join(name)
}

/// Where a module's programs belong in the cache.
fn target(name: &str) -> Result<PathBuf, String> {
    let sums = sh::output(
        Command::new("sh").current_dir(module(name)).args(["-c", "cat go.mod go.sum | sha256sum"]),
    )?;
    let hash = sums.get(..16).filter(|h| h.bytes().all(|b| b.is_ascii_hexdigit()));
    let hash = hash.ok_or_else(|| format!("sha256sum wrote {sums:?}"))?;
    Ok(sh::cache()?.join("testbed").join(format!("{name}-{hash}")))
}

fn build_etcd() -> Done {
    let flags = "-s -w";
    build("etcd", &[("etcd", "."), ("etcdutl", "go.etcd.io/etcd/etcdutl/v3")], flags)
}

fn build_kubernetes(minor: &str) -> Done {
    let name = format!("kubernetes-{minor}");
    let path = module(&name).join("go.mod");
    let text = fs::read_to_string(&path).map_err(|e| format!("{}: {e}", path.display()))?;
    let version = required_version(&text, "k8s.io/kubernetes")
        .ok_or_else(|| format!("{} requires no k8s.io/kubernetes", path.display()))?;
    let minor_number = minor.strip_prefix("1.").unwrap_or(minor);
    // The feature gates and the compatibility version of a build come from these.
    let base = "k8s.io/component-base/version";
    let flags = format!(
        "-s -w -X {base}.gitVersion={version} -X {base}.gitMajor=1 \
         -X {base}.gitMinor={minor_number} -X k8s.io/client-go/pkg/version.gitVersion={version}"
    );
    let packages = KUBERNETES.map(|program| (program, format!("k8s.io/kubernetes/cmd/{program}")));
    let packages: Vec<(&str, &str)> = packages.iter().map(|(p, path)| (*p, &**path)).collect();
    sh::say(&format!("Kubernetes {version}: about 5 minutes and 3 GB of memory, once"));
    build(&name, &packages, &flags)
}

/// The version that a go.mod requires of `path`.
fn required_version<'a>(text: &'a str, path: &str) -> Option<&'a str> {
    text.lines().find_map(|line| {
        let mut words = line.trim().trim_start_matches("require ").split_ascii_whitespace();
        (words.next() == Some(path)).then(|| words.next()).flatten()
    })
}

/// Builds packages of a module into a directory beside the target, then renames it: what stands
/// in the cache is whole.
fn build(name: &str, packages: &[(&str, &str)], flags: &str) -> Done {
    let target = target(name)?;
    let parent = target.parent().ok_or("the cache has no parent directory")?;
    let temp = parent.join(format!(".{name}-{}.tmp", std::process::id()));
    let io = |what: &str, e: std::io::Error| format!("cannot {what} {}: {e}", temp.display());
    fs::create_dir_all(&temp).map_err(|e| io("create", e))?;
    for (program, package) in packages {
        let mut go = Command::new("go");
        go.current_dir(module(name))
            .env("CGO_ENABLED", "0")
            .env("GOFLAGS", "-mod=readonly")
            .env("GOWORK", "off")
            .args(["build", "-trimpath", "-ldflags", flags, "-o"])
            .arg(temp.join(program))
            .arg(package);
        if let Err(why) = sh::run(&format!("building {program} ({name})"), &mut go) {
            let _ = fs::remove_dir_all(&temp);
            return Err(format!(
                "{why}\nhint: is the Go module proxy reachable? see go env GOPROXY"
            ));
        }
    }
    if target.exists() {
        // Another run was faster, or left an incomplete directory of an older layout.
        fs::remove_dir_all(&target)
            .map_err(|e| format!("cannot remove {}: {e}", target.display()))?;
    }
    fs::rename(&temp, &target).map_err(|e| io("rename", e))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_required_version_is_found_in_either_form() {
        let block = "module x\nrequire (\n\tk8s.io/api v0.37.2\n\tk8s.io/kubernetes v1.37.2\n)\n";
        assert_eq!(required_version(block, "k8s.io/kubernetes"), Some("v1.37.2"));
        let line = "require k8s.io/kubernetes v1.34.4 // indirect\n";
        assert_eq!(required_version(line, "k8s.io/kubernetes"), Some("v1.34.4"));
        assert_eq!(required_version(block, "k8s.io/kube"), None);
    }

    #[test]
    fn options_are_read_and_unknown_ones_refused() {
        let args = |text: &str| text.split_whitespace().map(String::from).collect::<Vec<_>>();
        assert_eq!(minors(&[]).unwrap(), MINORS);
        assert_eq!(minors(&args("--kubernetes 1.34")).unwrap(), ["1.34"]);
        assert_eq!(minors(&args("--kubernetes=1.37")).unwrap(), ["1.37"]);
        assert!(minors(&args("--kubernetes 1.2")).is_err());
        assert!(minors(&args("--kubernetes")).is_err());
        assert!(minors(&args("--fast")).is_err());
    }

    /// Writes a program that says a version. By another process: a child of another test could
    /// else still hold the open file, and a program that is open for writing is not run.
    fn program(dir: &Path, name: &str, version: &str) {
        fs::create_dir_all(dir).unwrap();
        let write = "printf '#!/bin/sh\\necho Version %s\\n' \"$1\" > \"$0\" && chmod 755 \"$0\"";
        let script = ["-c".as_ref(), write.as_ref(), dir.join(name).into_os_string().as_os_str()]
            .map(std::ffi::OsStr::to_owned);
        let written = Command::new("sh").args(script).arg(version).status().unwrap();
        assert!(written.success());
    }

    #[test]
    fn programs_on_the_machine_are_used_where_their_version_fits() {
        let root = std::env::temp_dir().join(format!("claviger-xtask-{}", std::process::id()));
        let (assets, cached, path) = (root.join("assets"), root.join("cache"), root.join("bin"));
        let wanted = ["kube-apiserver", "kubectl"];
        let fits = |word: &str| word.starts_with("1.37.");
        let found = |assets| place(assets, &cached, std::slice::from_ref(&path), &wanted, &fits);
        assert_eq!(found(Some(&*assets)), None);
        // What envtest downloads has no kube-controller-manager.
        wanted.iter().for_each(|name| program(&assets, name, "v1.37.9"));
        assert_eq!(found(Some(&*assets)), Some(assets.clone()));
        wanted.iter().for_each(|name| program(&path, name, "v1.37.2"));
        assert_eq!(found(None), Some(path.clone()));
        wanted.iter().for_each(|name| program(&cached, name, "of the cache"));
        assert_eq!(found(None), Some(cached.clone()));
        assert_eq!(found(Some(&*assets)), Some(assets.clone()), "what is named goes first");
        program(&assets, "kubectl", "v1.34.1");
        assert_eq!(found(Some(&*assets)), Some(cached.clone()));
        fs::remove_dir_all(root).unwrap();
        for (word, want) in [("3.5.0", true), ("3.14.1", true), ("3.4.9", false), ("4.6.0", false)]
        {
            assert_eq!(fits_etcd(word), want, "{word}");
        }
    }

    #[test]
    fn every_module_has_its_version() {
        for minor in MINORS {
            let text = fs::read_to_string(module(&format!("kubernetes-{minor}")).join("go.mod"));
            let text = text.unwrap();
            let version = required_version(&text, "k8s.io/kubernetes").unwrap();
            assert!(version.starts_with(&format!("v{minor}.")), "{version}");
        }
    }
}
