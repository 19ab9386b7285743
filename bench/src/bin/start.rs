//! How long a kube-apiserver takes from its start to its first list of all Secrets: stored in
//! plaintext, under one seed, and each under a seed of its own. The plugin opens every distinct
//! seed once per start, one call after the other (k8s.io/apiserver `envelope/kmsv2`), so this is
//! what a cluster pays whose API servers were restarted that often since its last rewrite.
//!
//! Needs `CLAVIGER_BIN`; `--secrets N` and `--rounds N` change 1,000 and five.

use claviger_bench::real::{Failure, Real};
use claviger_bench::{arguments, median};
use claviger_crypto::kek::ANNOTATION;
use claviger_crypto::{SecretBytes, value};
use claviger_domain::id::Serial;
use claviger_etcd::client::{Swap, Swapped};
use claviger_etcd::record::{DekType, KmsV2, PROTOBUF, Record};
use claviger_etcd::resource::Resource;
use claviger_tests::lab;
use std::time::Instant;

const STATES: [&str; 3] = ["plaintext", "one seed", "a seed each"];

fn main() -> Result<(), Failure> {
    let [secrets, rounds] = arguments([("--secrets", 1_000), ("--rounds", 5)])?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(measure(secrets, rounds))
}

async fn measure(secrets: usize, rounds: usize) -> Result<(), Failure> {
    let real = Real::start().await?;
    real.plugin.set(real.ring(1));
    real.restart().await?;
    real.load(secrets).await?;
    let mut ready = vec![Vec::new(); STATES.len()];
    let mut listed = vec![Vec::new(); STATES.len()];
    for round in 0..rounds {
        for k in 0..STATES.len() {
            let state = (k + round) % STATES.len();
            store_again(&real, state).await?;
            let begun = Instant::now();
            real.restart().await?;
            let to_ready = begun.elapsed().as_secs_f64();
            let found = lab::check("list", real.lab.kubectl(&["get", "secrets", "-o", "name"])?)?;
            let to_list = begun.elapsed().as_secs_f64();
            let found = String::from_utf8_lossy(&found.stdout).lines().count();
            if found < secrets {
                return Err(format!("the API server lists {found} of {secrets} Secrets").into());
            }
            eprintln!(
                "round {} {:<12} ready {to_ready:.2} s, listed {to_list:.2} s",
                round + 1,
                STATES[state]
            );
            ready[state].push(to_ready);
            listed[state].push(to_list);
        }
    }
    println!("| {secrets} Secrets | ready, s | listed, s | x plaintext |");
    println!("|---|---|---|---|");
    for (state, name) in STATES.iter().enumerate() {
        let of = |figures: &[Vec<f64>], state: usize| median(&figures[state]);
        println!(
            "| {name} | {:.2} | {:.2} | {:.2} |",
            of(&ready, state),
            of(&listed, state),
            of(&listed, state) / of(&listed, 0),
        );
    }
    Ok(real.lab.down()?)
}

/// Brings every Secret into one of [`STATES`], past the API server.
async fn store_again(real: &Real, state: usize) -> Result<(), Failure> {
    let ring = real.ring(1);
    let kek = ring.get(Serial(1)).ok_or("the ring has no first KEK")?;
    let shared = SecretBytes::random(value::SEED);
    let shared_sealed = kek.kek().seal(shared.expose());
    let mut pages = real.etcd.range(Resource::secrets().prefix().as_bytes(), 0);
    while let Some(page) = pages.next().await? {
        for kv in page {
            let opened = match Record::parse(&kv.value) {
                Record::KmsV2(record) => {
                    let seed =
                        kek.kek().open(record.encrypted_dek).map_err(|_| "a strange seed")?;
                    record.open(seed.expose(), &kv.key).map_err(|_| "a strange body")?
                }
                Record::Plaintext(_) => SecretBytes::new(kv.value.to_vec()),
                other => return Err(format!("a record that nobody stored: {other:?}").into()),
            };
            if !opened.expose().starts_with(PROTOBUF) {
                return Err("a Secret that is not in protobuf".into());
            }
            let fresh = SecretBytes::random(value::SEED);
            let (seed, sealed) = match state {
                0 => (None, Vec::new()),
                1 => (Some(&shared), shared_sealed.clone()),
                _ => (Some(&fresh), kek.kek().seal(fresh.expose())),
            };
            let value = match seed {
                None => opened.expose().to_vec(),
                Some(seed) => KmsV2 {
                    provider: "bench",
                    key_id: kek.kek().key_id(),
                    encrypted_dek: &sealed,
                    annotations: vec![(ANNOTATION, kek.annotation())],
                    dek_type: DekType::Seed,
                    body: &value::seal_seeded(seed.expose(), &kv.key, opened.expose())
                        .ok_or("a seed has 32 bytes")?,
                }
                .to_value(),
            };
            let swap = Swap { key: kv.key.to_vec(), value, mod_revision: kv.mod_revision };
            match real.etcd.put_if_unchanged(swap).await? {
                Swapped::Done(_) | Swapped::Changed => {}
            }
        }
    }
    Ok(())
}
