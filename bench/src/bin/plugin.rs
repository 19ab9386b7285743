//! The plugin's Encrypt and Decrypt against a floor: a bare gRPC server on the same kind of
//! socket that does the same AES-256-GCM on the same 32 bytes under one key, and nothing else.
//!
//! Each server runs in a process of its own on core 0, the load on core 1; rounds alternate.
//! Reported are medians over rounds: p50 with one call at a time, server CPU per call with 32.

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use claviger_bench::{NoService, cpu_seconds, median, ring};
use claviger_crypto::Key32;
use claviger_domain::id::ClusterId;
use claviger_kms_plugin::proto::key_management_service_client::KeyManagementServiceClient;
use claviger_kms_plugin::proto::key_management_service_server::{
    KeyManagementService, KeyManagementServiceServer,
};
use claviger_kms_plugin::proto::{
    DecryptRequest, DecryptResponse, EncryptRequest, EncryptResponse, StatusRequest, StatusResponse,
};
use claviger_kms_plugin::{Listener, Plugin};
use hyper_util::rt::TokioIo;
use rustix::thread::{CpuSet, sched_setaffinity};
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::net::{UnixListener, UnixStream};
use tokio::task::JoinSet;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::transport::{Channel, Endpoint, Server};
use tonic::{Request, Response, Status};

const ROUNDS: usize = 9;
/// Calls of a round, one at a time and 32 at a time.
const SINGLE: usize = 4_000;
const MANY: usize = 64_000;
const AT_ONCE: usize = 32;
/// Seeds that differ, as after many restarts of API servers.
const SEEDS: usize = 1_000;

type Client = KeyManagementServiceClient<Channel>;
type Failure = Box<dyn std::error::Error + Send + Sync>;

fn main() -> Result<(), Failure> {
    let args: Vec<String> = std::env::args().collect();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    match args.get(1).map(String::as_str) {
        Some("serve-plugin") => runtime.block_on(serve_plugin(Path::new(&args[2]))),
        Some("serve-floor") => runtime.block_on(serve_floor(Path::new(&args[2]))),
        _ => runtime.block_on(measure()),
    }
}

fn pin(core: usize) {
    let mut set = CpuSet::new();
    set.set(core);
    // On a machine of one core everything is there anyway.
    let _ = sched_setaffinity(None, &set);
}

async fn serve_plugin(path: &Path) -> Result<(), Failure> {
    pin(0);
    let cluster = ClusterId::random();
    let plugin = Plugin::new(cluster.clone(), Arc::new(NoService));
    plugin.set(ring(&cluster, &[Key32::generate()]));
    Listener::bind(path)?.serve(plugin, std::future::pending()).await;
    Ok(())
}

struct Floor(LessSafeKey);

fn seal(key: &LessSafeKey, plaintext: &[u8]) -> Result<Vec<u8>, Status> {
    let failed = |_| Status::internal("sealing failed");
    let mut nonce = [0u8; 12];
    aws_lc_rs::rand::fill(&mut nonce).map_err(failed)?;
    let mut out = nonce.to_vec();
    let mut body = plaintext.to_vec();
    let nonce = Nonce::assume_unique_for_key(nonce);
    key.seal_in_place_append_tag(nonce, Aad::from(b"floor"), &mut body).map_err(failed)?;
    out.extend_from_slice(&body);
    Ok(out)
}

#[tonic::async_trait]
impl KeyManagementService for Floor {
    async fn status(&self, _: Request<StatusRequest>) -> Result<Response<StatusResponse>, Status> {
        Ok(Response::new(StatusResponse {
            version: "v2".to_owned(),
            healthz: "ok".to_owned(),
            key_id: "floor".to_owned(),
        }))
    }

    async fn encrypt(
        &self,
        request: Request<EncryptRequest>,
    ) -> Result<Response<EncryptResponse>, Status> {
        let ciphertext = seal(&self.0, &request.into_inner().plaintext)?;
        let annotations = std::collections::HashMap::new();
        Ok(Response::new(EncryptResponse { ciphertext, key_id: "floor".to_owned(), annotations }))
    }

    async fn decrypt(
        &self,
        request: Request<DecryptRequest>,
    ) -> Result<Response<DecryptResponse>, Status> {
        let mut bytes = request.into_inner().ciphertext;
        let failed = |_| Status::invalid_argument("does not open");
        let mut body = bytes.split_off(12.min(bytes.len()));
        let nonce = Nonce::try_assume_unique_for_key(&bytes).map_err(failed)?;
        let plain = self.0.open_in_place(nonce, Aad::from(b"floor"), &mut body).map_err(failed)?;
        Ok(Response::new(DecryptResponse { plaintext: plain.to_vec() }))
    }
}

async fn serve_floor(path: &Path) -> Result<(), Failure> {
    pin(0);
    let key = UnboundKey::new(&AES_256_GCM, Key32::generate().expose())?;
    let listener = UnixListener::bind(path)?;
    Server::builder()
        .add_service(KeyManagementServiceServer::new(Floor(LessSafeKey::new(key))))
        .serve_with_incoming(UnixListenerStream::new(listener))
        .await?;
    Ok(())
}

struct Side {
    name: &'static str,
    child: Child,
    client: Client,
    /// What Encrypt answered, to be decrypted.
    sealed: Vec<EncryptResponse>,
}

impl Side {
    async fn start(name: &'static str, dir: &Path) -> Result<Self, Failure> {
        let socket: PathBuf = dir.join(format!("{name}.sock"));
        let program = std::env::current_exe()?;
        let child = Command::new(program).arg(format!("serve-{name}")).arg(&socket).spawn()?;
        let started = Instant::now();
        while !socket.exists() && started.elapsed() < Duration::from_secs(10) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let connect = tower::service_fn(move |_| {
            let socket = socket.clone();
            async move { UnixStream::connect(socket).await.map(TokioIo::new) }
        });
        let channel = Endpoint::try_from("http://plugin")?.connect_with_connector(connect).await?;
        let mut side = Self { name, child, client: Client::new(channel), sealed: Vec::new() };
        for n in 0..SEEDS {
            side.sealed.push(encrypt(side.client.clone(), n).await?);
        }
        Ok(side)
    }

    fn cpu(&self) -> f64 {
        cpu_seconds(i32::try_from(self.child.id()).unwrap_or(0))
    }

    /// p50 in microseconds of one call at a time.
    async fn single(&self, decrypt: bool) -> Result<f64, Failure> {
        let mut times = Vec::with_capacity(SINGLE);
        for n in 0..SINGLE {
            let begun = Instant::now();
            self.call(n, decrypt).await?;
            times.push(begun.elapsed().as_secs_f64() * 1e6);
        }
        Ok(median(&times))
    }

    /// Server CPU in microseconds per call, and calls per second, 32 at a time.
    async fn many(&self, decrypt: bool) -> Result<(f64, f64), Failure> {
        let (cpu, begun) = (self.cpu(), Instant::now());
        let mut workers = JoinSet::new();
        for worker in 0..AT_ONCE {
            let (client, sealed) = (self.client.clone(), self.sealed[worker].clone());
            workers.spawn(async move {
                for n in 0..MANY / AT_ONCE {
                    call(client.clone(), &sealed, n, decrypt).await?;
                }
                Ok::<(), Failure>(())
            });
        }
        while let Some(done) = workers.join_next().await {
            done??;
        }
        let calls = MANY as f64;
        Ok(((self.cpu() - cpu) * 1e6 / calls, calls / begun.elapsed().as_secs_f64()))
    }

    /// Milliseconds to decrypt every distinct seed once, one after the other.
    async fn seeds(&self) -> Result<f64, Failure> {
        let begun = Instant::now();
        for sealed in &self.sealed {
            decrypt(self.client.clone(), sealed).await?;
        }
        Ok(begun.elapsed().as_secs_f64() * 1e3)
    }

    async fn call(&self, n: usize, decrypt: bool) -> Result<(), Failure> {
        call(self.client.clone(), &self.sealed[n % SEEDS], n, decrypt).await
    }
}

impl Drop for Side {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

async fn call(
    client: Client,
    sealed: &EncryptResponse,
    n: usize,
    opens: bool,
) -> Result<(), Failure> {
    if opens { decrypt(client, sealed).await } else { encrypt(client, n).await.map(drop) }
}

async fn encrypt(mut client: Client, n: usize) -> Result<EncryptResponse, Failure> {
    let mut plaintext = vec![7u8; 32];
    plaintext[..8].copy_from_slice(&n.to_be_bytes());
    let request = EncryptRequest { plaintext, uid: "bench".to_owned() };
    Ok(client.encrypt(request).await?.into_inner())
}

async fn decrypt(mut client: Client, sealed: &EncryptResponse) -> Result<(), Failure> {
    let request = DecryptRequest {
        ciphertext: sealed.ciphertext.clone(),
        uid: "bench".to_owned(),
        key_id: sealed.key_id.clone(),
        annotations: sealed.annotations.clone(),
    };
    let opened = client.decrypt(request).await?.into_inner();
    if opened.plaintext.len() == 32 { Ok(()) } else { Err("a seed has 32 bytes".into()) }
}

async fn measure() -> Result<(), Failure> {
    pin(1);
    let dir = std::env::temp_dir().join(format!("claviger-bench-{}", std::process::id()));
    std::fs::create_dir_all(&dir)?;
    let sides = [Side::start("floor", &dir).await?, Side::start("plugin", &dir).await?];
    println!("| call | figure | floor | plugin | plugin / floor |");
    println!("|---|---|---|---|---|");
    for opens in [false, true] {
        let mut figures: Vec<[[f64; 3]; 2]> = Vec::new();
        for round in 0..ROUNDS {
            let mut row = [[0.0; 3]; 2];
            // Who goes first changes, so that a drift of the machine favours nobody.
            for i in [round % 2, 1 - round % 2] {
                let p50 = sides[i].single(opens).await?;
                let (cpu, rate) = sides[i].many(opens).await?;
                row[i] = [p50, cpu, rate];
            }
            figures.push(row);
        }
        let what = if opens { "Decrypt" } else { "Encrypt" };
        let names =
            ["p50, 1 at a time (us)", "server CPU, 32 at a time (us)", "calls/s, 32 at a time"];
        for (k, name) in names.iter().enumerate() {
            let of = |i: usize| median(&figures.iter().map(|r| r[i][k]).collect::<Vec<_>>());
            let ratio = median(&figures.iter().map(|r| r[1][k] / r[0][k]).collect::<Vec<_>>());
            println!("| {what} | {name} | {:.1} | {:.1} | {ratio:.2} |", of(0), of(1));
        }
    }
    let mut seeds = [Vec::new(), Vec::new()];
    for _ in 0..ROUNDS {
        for (i, side) in sides.iter().enumerate() {
            seeds[i].push(side.seeds().await?);
        }
    }
    let (floor, plugin) = (median(&seeds[0]), median(&seeds[1]));
    println!(
        "| Decrypt | {SEEDS} distinct seeds, one after the other (ms) | {floor:.0} | {plugin:.0} | {:.2} |",
        plugin / floor
    );
    println!("\n{} and {}, {ROUNDS} rounds, medians.", sides[0].name, sides[1].name);
    drop(sides);
    std::fs::remove_dir_all(&dir)?;
    Ok(())
}
