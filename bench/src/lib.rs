//! What benchmarks share: medians, CPU time of processes, and a plugin without a key service.

pub mod real;
pub mod service;

use claviger_crypto::Key32;
use claviger_crypto::kek::Carried;
use claviger_domain::cluster::ring::{Kek, Role};
use claviger_domain::id::{ClusterId, InstanceId, KeyId, KeyVersionId, Serial, UnixMs};
use claviger_domain::key::{RootKey, RootVersion};
use claviger_kms_plugin::resolve::{Resolve, ResolveError, Resolving};
use claviger_kms_plugin::{OpenKek, OpenRing};

pub use claviger_tests::cpu_seconds;

/// The numbers that the arguments after the program's name give, `NAME N` each; of those that they do
/// not give, what `numbers` says.
pub fn arguments<const N: usize>(
    mut numbers: [(&str, usize); N],
) -> Result<[usize; N], real::Failure> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    for pair in args.chunks(2) {
        let known = numbers.iter_mut().find(|(name, _)| *name == pair[0]);
        match (known, pair.get(1)) {
            (Some((_, number)), Some(value)) => *number = value.parse()?,
            _ => return Err(format!("unknown arguments {pair:?}").into()),
        }
    }
    Ok(numbers.map(|(_, number)| number))
}

/// The middle of `values`; 0 of none.
pub fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied().unwrap_or(0.0)
}

/// A ring of KEKs 1 to `serials`, of which the last is reported. Nothing wraps them: a benchmark
/// never asks a key service.
pub fn ring(cluster: &ClusterId, keys: &[Key32]) -> OpenRing {
    // The same ids each time: what one ring of these sealed, another opens.
    let id = "00000000-0000-4000-8000-000000000001";
    let root = RootKey {
        instance: id.parse::<InstanceId>().expect("a UUID"),
        key: id.parse::<KeyId>().expect("a UUID"),
    };
    let version: KeyVersionId = id.parse().expect("a UUID");
    let keks = keys.iter().zip(1..).map(|(key, serial)| {
        let entry = Kek {
            serial: Serial(serial),
            root: RootVersion { root, version },
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
