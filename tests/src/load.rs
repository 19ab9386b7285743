//! Secrets as real clusters have them: certificates, registry credentials, tokens, Helm releases,
//! small opaque ones, and a few large ones. Content is random, so nothing compresses away.

use crate::Outcome;
use crate::kube::Kube;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

/// Where they go.
pub const NAMESPACES: [&str; 4] = ["shop", "billing", "ingress", "platform"];

/// How many calls are under way at a time.
const WORKERS: usize = 16;

/// Begins the value of every planted Secret, so that etcd's files can be searched for it.
pub const MARKER: &str = "planted-plaintext-marker-";

/// A small generator of numbers (SplitMix64): the same seed gives the same Secrets.
pub struct Random(u64);

impl Random {
    /// Starts at `seed`.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next number.
    pub fn number(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number from `low` up to, not including, `high`.
    pub fn between(&mut self, low: u64, high: u64) -> u64 {
        low + self.number() % (high - low).max(1)
    }

    fn bytes(&mut self, len: u64) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(usize::try_from(len).unwrap_or(0) + 8);
        while (bytes.len() as u64) < len {
            bytes.extend(self.number().to_le_bytes());
        }
        bytes.truncate(usize::try_from(len).unwrap_or(usize::MAX));
        bytes
    }

    fn text(&mut self, len: u64) -> String {
        STANDARD.encode(self.bytes(len * 3 / 4))
    }

    fn text_between(&mut self, low: u64, high: u64) -> String {
        let len = self.between(low, high);
        self.text(len)
    }
}

/// A seed that differs from run to run.
pub fn seed() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Random::new(now.as_nanos() as u64 ^ u64::from(std::process::id())).number()
}

/// One Secret and the namespace it goes to.
pub struct Planted {
    /// The namespace.
    pub namespace: &'static str,
    /// The object.
    pub object: Value,
}

/// `count` Secrets of real shapes: for 1,000 of them about 20 MB, five above 100 KiB.
/// Each carries `MARKER` followed by its number.
pub fn shapes(count: usize, seed: u64) -> Vec<Planted> {
    let mut random = Random::new(seed);
    (0..count).map(|number| shape(number, count, &mut random)).collect()
}

fn shape(number: usize, count: usize, random: &mut Random) -> Planted {
    let marker = format!("{MARKER}{number:05}");
    let pem = |label: &str, body: &str| {
        let lines: Vec<&str> = body.as_bytes().chunks(64).map(as_text).collect();
        format!("-----BEGIN {label}-----\n{}\n-----END {label}-----\n", lines.join("\n"))
    };
    // Five large ones, spread evenly.
    let large = count >= 200 && number.is_multiple_of(count / 5);
    let (kind, name, mut data) = match number % 20 {
        _ if large => ("Opaque", "bundle", json!({"bundle": random.text(400_000)})),
        0..5 => {
            let certificate =
                pem("CERTIFICATE", &random.text(1900)) + &pem("CERTIFICATE", &random.text(1700));
            let key = pem("RSA PRIVATE KEY", &random.text(1620));
            ("kubernetes.io/tls", "tls", json!({"tls.crt": certificate, "tls.key": key}))
        }
        5..8 => {
            let auth = random.text_between(100, 1200);
            let config =
                json!({"auths": {"registry.example": {"username": "puller", "auth": auth}}});
            (
                "kubernetes.io/dockerconfigjson",
                "registry",
                json!({".dockerconfigjson": config.to_string()}),
            )
        }
        8..11 => {
            let token = format!("{}.{}.{}", random.text(48), random.text(640), random.text(342));
            let ca = pem("CERTIFICATE", &random.text(1500));
            ("Opaque", "token", json!({"token": token, "ca.crt": ca, "namespace": "shop"}))
        }
        11..17 => {
            let release = random.text_between(20_000, 95_000);
            ("helm.sh/release.v1", "release", json!({"release": release}))
        }
        _ => {
            let password = random.text_between(16, 4000);
            ("Opaque", "settings", json!({"username": "app", "password": password}))
        }
    };
    // The marker goes into a field of its own, plain in the stored bytes.
    data["note"] = Value::String(marker);
    let namespace = NAMESPACES[number % NAMESPACES.len()];
    let object = json!({
        "apiVersion": "v1",
        "kind": "Secret",
        "type": kind,
        "metadata": {"name": format!("{name}-{number:05}"), "labels": {"planted": "yes"}},
        "stringData": data,
    });
    Planted { namespace, object }
}

fn as_text(chunk: &[u8]) -> &str {
    // Base64 is ASCII, so every cut is between characters.
    std::str::from_utf8(chunk).unwrap_or_default()
}

/// Plants Secrets through the API server, 16 at a time. Gives their size in bytes.
pub async fn plant(kube: &Kube, secrets: Vec<Planted>) -> Outcome<u64> {
    for namespace in NAMESPACES {
        kube.namespace(namespace).await?;
    }
    let size = secrets.iter().map(|s| s.object.to_string().len() as u64).sum();
    let secrets = Arc::new(secrets);
    let next = Arc::new(AtomicUsize::new(0));
    let mut workers = tokio::task::JoinSet::new();
    for _ in 0..WORKERS {
        let (kube, secrets, next) = (kube.clone(), Arc::clone(&secrets), Arc::clone(&next));
        workers.spawn(async move {
            while let Some(secret) = secrets.get(next.fetch_add(1, Ordering::Relaxed)) {
                kube.create(secret.namespace, &secret.object).await?;
            }
            Ok::<(), String>(())
        });
    }
    while let Some(ended) = workers.join_next().await {
        ended.map_err(|e| e.to_string())??;
    }
    Ok(size)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thousand_secrets_have_the_promised_sizes() {
        let sizes: Vec<usize> =
            shapes(1000, 7).iter().map(|s| s.object["stringData"].to_string().len()).collect();
        let all: usize = sizes.iter().sum();
        let large = sizes.iter().filter(|size| **size > 100 * 1024).count();
        assert!((18_000_000..22_000_000).contains(&all), "{all} bytes");
        assert!((1..=5).contains(&large), "{large} large ones");
        assert!(sizes.iter().all(|size| *size < 1 << 20), "Kubernetes takes 1 MiB at most");
    }

    #[test]
    fn the_same_seed_gives_the_same_secrets() {
        let (a, b) = (shapes(40, 1), shapes(40, 1));
        assert!(a.iter().zip(&b).all(|(a, b)| a.object == b.object && a.namespace == b.namespace));
        assert_ne!(a[3].object, shapes(40, 2)[3].object);
    }
}
