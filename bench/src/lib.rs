//! What benchmarks share: medians, CPU time of processes, and a plugin without a key service.

use claviger_crypto::Key32;
use claviger_crypto::kek::Carried;
use claviger_domain::cluster::ring::{Kek, Role};
use claviger_domain::id::{ClusterId, InstanceId, KeyId, KeyVersionId, Serial, UnixMs};
use claviger_domain::key::{RootKey, RootVersion};
use claviger_kms_plugin::resolve::{Resolve, ResolveError, Resolving};
use claviger_kms_plugin::{OpenKek, OpenRing};

/// The middle of `values`; 0 of none.
pub fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied().unwrap_or(0.0)
}

/// User and kernel time that a process has used, in seconds; 0 of a dead one.
pub fn cpu_seconds(pid: i32) -> f64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // The second field is a name in parentheses that may hold blanks.
    let fields: Vec<&str> = stat
        .rsplit_once(')')
        .map(|(_, rest)| rest.split_whitespace().collect())
        .unwrap_or_default();
    let ticks: f64 = [11, 12].iter().filter_map(|i| fields.get(*i)?.parse::<f64>().ok()).sum();
    // Linux reports in units of USER_HZ, which is 100 on every architecture we build for.
    ticks / 100.0
}

/// A ring of KEKs 1 to `serials`, of which the last is reported. Nothing wraps them: a benchmark
/// never asks a key service.
pub fn ring(cluster: &ClusterId, keys: &[Key32]) -> OpenRing {
    let root = RootKey { instance: InstanceId::random(), key: KeyId::random() };
    let keks = keys.iter().zip(1..).map(|(key, serial)| {
        let entry = Kek {
            serial: Serial(serial),
            root: RootVersion { root, version: KeyVersionId::random() },
            // As long as the key service's own.
            wrapped: "A".repeat(348),
            role: Role::Write,
            created: UnixMs(0),
        };
        OpenKek::new(cluster, &entry, key)
    });
    let last = Serial(keys.len() as u64);
    OpenRing::new(last.0, keks.collect(), Some(last)).expect("serials rise and the last is there")
}

/// Resolves nothing: every record's KEK is in the ring.
pub struct NoService;

impl Resolve for NoService {
    fn resolve(&self, _: Carried) -> Resolving<'_> {
        Box::pin(async { Err(ResolveError::Refused("a benchmark has no key service".to_owned())) })
    }
}
