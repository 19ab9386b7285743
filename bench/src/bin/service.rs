//! Wrap and unwrap of the key service against three floors that do less and less of it.
//!
//! - **F0**: bare hyper over rustls with TLS 1.3 that seals 32 bytes with AES-256-GCM.
//! - **F1**: F0 that takes our request and answers our bytes.
//! - **F2**: F1 that appends 512 bytes to a file for each request, and answers after the fdatasync
//!   of their group.
//!
//! Every server runs in a process of its own on core 0, the load on core 1; rounds alternate.
//! Reported are medians over rounds: p50 with one connection, CPU of the server and requests per
//! second with 32. The service runs twice: with `audit_durability` synced, whose floor is F2, and
//! written, whose floor is F1. Tokens, policies and the audit log are on, as they always are.

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use claviger_bench::real::Failure;
use claviger_bench::service::Service;
use claviger_bench::{arguments, cpu_seconds, median};
use claviger_crypto::Key32;
use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use rustix::thread::{CpuSet, sched_setaffinity};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use serde_json::{Value, json};
use std::convert::Infallible;
use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, mpsc};
use std::time::Instant;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;
use tokio::task::JoinSet;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::{ClientConfig, RootCertStore, ServerConfig};
use tokio_rustls::{TlsAcceptor, TlsConnector};

const ROUNDS: usize = 7;
/// Requests of a round on [`AT_ONCE`] connections, and so many times fewer on one.
const MANY: usize = 6_400;
const FEWER: usize = 12;
const AT_ONCE: usize = 32;
/// Bytes that F2 keeps of a request, and groups of them at most.
const KEPT: usize = 512;
const GROUP: usize = 256;
const CALLS: [&str; 2] = ["wrap", "unwrap"];

fn main() -> Result<(), Failure> {
    let args: Vec<String> = std::env::args().collect();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    match args.get(1).map(String::as_str) {
        Some("floor") => {
            pin(0);
            runtime.block_on(floor(Path::new(&args[2]), &args[3]))
        }
        _ => {
            let [rounds, many] = arguments([("--rounds", ROUNDS), ("--requests", MANY)])?;
            runtime.block_on(measure(rounds, many))
        }
    }
}

fn pin(core: usize) {
    let mut set = CpuSet::new();
    set.set(core);
    // On a machine of one core everything is there anyway.
    let _ = sched_setaffinity(None, &set);
}

/// A call, the headers of its answer, and its body.
type Recorded = (String, Vec<(String, String)>, String);

/// What a floor answers to a request: the bytes of the service, or its own.
#[derive(Clone)]
struct Answers(Arc<Vec<(String, Response<()>, Bytes)>>);

impl Answers {
    /// Of a file with recorded answers; none of F0.
    fn read(path: &Path) -> Result<Self, Failure> {
        let text = std::fs::read(path.join("answers.json")).unwrap_or_else(|_| b"[]".to_vec());
        let all: Vec<Recorded> = serde_json::from_slice(&text)?;
        let all = all.into_iter().map(|(call, headers, body)| {
            let mut head = Response::builder();
            for (name, value) in headers {
                head = head.header(name, value);
            }
            Ok((call, head.body(())?, Bytes::from(body)))
        });
        Ok(Self(Arc::new(all.collect::<Result<_, Failure>>()?)))
    }

    fn to(&self, path: &str, sealed: usize) -> Response<Full<Bytes>> {
        match self.0.iter().find(|(call, ..)| path.ends_with(&format!("/{call}"))) {
            Some((_, head, body)) => {
                let mut answer = Response::new(Full::new(body.clone()));
                *answer.headers_mut() = head.headers().clone();
                answer
            }
            None => Response::new(Full::new(Bytes::from(vec![b'x'; sealed]))),
        }
    }
}

/// Appends [`KEPT`] bytes for each request, and tells when their group is durable.
fn keeper(file: File) -> mpsc::Sender<oneshot::Sender<()>> {
    let (send, asked) = mpsc::channel::<oneshot::Sender<()>>();
    std::thread::spawn(move || {
        let mut file = file;
        while let Ok(first) = asked.recv() {
            let mut group = vec![first];
            group.extend(asked.try_iter().take(GROUP - 1));
            let bytes = vec![7u8; KEPT * group.len()];
            if file.write_all(&bytes).and_then(|()| file.sync_data()).is_err() {
                break;
            }
            for waiting in group {
                let _ = waiting.send(());
            }
        }
    });
    send
}

/// One of the floors, until it is killed.
async fn floor(dir: &Path, name: &str) -> Result<(), Failure> {
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()])?;
    std::fs::write(dir.join(format!("{name}.pem")), made.cert.pem())?;
    let key = PrivateKeyDer::try_from(made.signing_key.serialize_der())?;
    let provider = Arc::new(tokio_rustls::rustls::crypto::aws_lc_rs::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&tokio_rustls::rustls::version::TLS13])?
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key)?;
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let answers = match name {
        "F0" => Answers(Arc::default()),
        _ => Answers::read(dir)?,
    };
    let kept = (name == "F2")
        .then(|| OpenOptions::new().append(true).create(true).open(dir.join("kept")).map(keeper));
    let kept = kept.transpose()?;
    let key = UnboundKey::new(&AES_256_GCM, Key32::generate().expose())?;
    let key = Arc::new(LessSafeKey::new(key));
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    println!("url: https://{}", listener.local_addr()?);
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        let (acceptor, answers) = (acceptor.clone(), answers.clone());
        let (key, kept) = (Arc::clone(&key), kept.clone());
        tokio::spawn(async move {
            let Ok(stream) = acceptor.accept(stream).await else { return };
            let service = service_fn(|request: Request<Incoming>| {
                let (answers, key, kept) = (answers.clone(), Arc::clone(&key), kept.clone());
                async move {
                    let path = request.uri().path().to_owned();
                    let body = request.into_body().collect().await.map(|b| b.to_bytes());
                    let mut plain = body.map(|body| body.to_vec()).unwrap_or_default();
                    plain.resize(32, 0);
                    let mut nonce = [0u8; 12];
                    aws_lc_rs::rand::fill(&mut nonce).expect("random bytes");
                    let nonce = Nonce::assume_unique_for_key(nonce);
                    key.seal_in_place_append_tag(nonce, Aad::empty(), &mut plain).expect("seals");
                    if let Some(kept) = &kept {
                        let (done, durable) = oneshot::channel();
                        if kept.send(done).is_ok() {
                            let _ = durable.await;
                        }
                    }
                    Ok::<_, Infallible>(answers.to(&path, plain.len()))
                }
            });
            let mut http = hyper::server::conn::http1::Builder::new();
            let _ =
                http.pipeline_flush(false).serve_connection(TokioIo::new(stream), service).await;
        });
    }
}

/// A server's process.
enum Process {
    Floor(Child),
    Service(Box<Service>),
}

/// A server of either kind, and what is sent to it.
struct Side {
    name: &'static str,
    process: Process,
    address: String,
    connector: TlsConnector,
    /// Whole requests, in the order of [`CALLS`].
    requests: [Vec<u8>; 2],
}

impl Drop for Side {
    fn drop(&mut self) {
        if let Process::Floor(child) = &mut self.process {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

type Stream = TlsStream<TcpStream>;

/// The address that a floor tells in its only line.
fn started(child: &mut Child) -> Result<String, Failure> {
    let mut line = String::new();
    BufReader::new(child.stdout.take().ok_or("no standard output")?).read_line(&mut line)?;
    let address = line.trim_end().strip_prefix("url: https://");
    Ok(address.ok_or("a floor did not start")?.to_owned())
}

fn connector(pem: &[u8]) -> Result<TlsConnector, Failure> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(pem)?)?;
    let provider = Arc::new(tokio_rustls::rustls::crypto::aws_lc_rs::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&tokio_rustls::rustls::version::TLS13])?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(TlsConnector::from(Arc::new(config)))
}

/// One whole request, as an SDK sends it.
fn request(path: &str, headers: &[(&str, &str)], body: &str) -> Vec<u8> {
    let mut text = format!("POST {path} HTTP/1.1\r\nHost: localhost\r\n");
    for (name, value) in headers {
        text += &format!("{name}: {value}\r\n");
    }
    text += &format!("Content-Length: {}\r\n\r\n{body}", body.len());
    text.into_bytes()
}

/// An answer: its head's lines, and its body.
struct Answer {
    head: String,
    body: String,
}

/// Sends a request and reads the whole answer into `buffer`; where its body begins.
async fn exchange(stream: &mut Stream, out: &[u8], buffer: &mut Vec<u8>) -> Result<usize, Failure> {
    stream.write_all(out).await?;
    stream.flush().await?;
    buffer.clear();
    let mut whole: Option<(usize, usize)> = None;
    loop {
        if let Some((begin, length)) = whole
            && buffer.len() >= begin + length
        {
            return Ok(begin);
        }
        if stream.read_buf(buffer).await? == 0 {
            return Err("the server closed the connection".into());
        }
        if whole.is_none()
            && let Some(at) = buffer.windows(4).position(|four| four == b"\r\n\r\n")
        {
            let head = std::str::from_utf8(&buffer[..at])?;
            if !head.starts_with("HTTP/1.1 20") {
                return Err(head.to_owned().into());
            }
            let length = head.lines().find_map(|line| {
                let (name, value) = line.split_once(':')?;
                name.eq_ignore_ascii_case("content-length").then(|| value.trim().parse().ok())?
            });
            whole = Some((at + 4, length.ok_or("an answer without a length")?));
        }
    }
}

impl Side {
    async fn connect(&self) -> Result<Stream, Failure> {
        let stream = TcpStream::connect(&self.address).await?;
        stream.set_nodelay(true)?;
        Ok(self.connector.connect(ServerName::try_from("localhost")?, stream).await?)
    }

    async fn ask(&self, out: &[u8]) -> Result<Answer, Failure> {
        let mut buffer = Vec::new();
        let begin = exchange(&mut self.connect().await?, out, &mut buffer).await?;
        Ok(Answer {
            head: String::from_utf8(buffer[..begin].to_vec())?,
            body: String::from_utf8(buffer[begin..].to_vec())?,
        })
    }

    async fn floor(
        name: &'static str,
        dir: &Path,
        requests: &[Vec<u8>; 2],
    ) -> Result<Self, Failure> {
        let program = std::env::current_exe()?;
        let mut command = Command::new(program);
        let mut child = command.arg("floor").arg(dir).arg(name).stdout(Stdio::piped()).spawn()?;
        let address = started(&mut child)?;
        let process = Process::Floor(child);
        let connector = connector(&std::fs::read(dir.join(format!("{name}.pem")))?)?;
        Ok(Self { name, process, address, connector, requests: requests.clone() })
    }

    /// The service, with a root key, and something wrapped.
    async fn service(name: &'static str) -> Result<Self, Failure> {
        let flags = ["--audit-durability", name, "--calls-per-second", "0"];
        let service = Service::start(name, &flags)?;
        let caller = service.first().await?;
        let key = caller.root("bench").await?;
        let address = service.told("/url").trim_start_matches("https://").to_owned();
        let connector = connector(service.told("/ca").as_bytes())?;
        let bearer = format!("Bearer {}", caller.token);
        let headers = [
            ("Authorization", bearer.as_str()),
            ("Bluemix-Instance", caller.instance.as_str()),
            ("Content-Type", "application/json"),
            ("Accept", "application/json"),
        ];
        let action = |call: &str| format!("/api/v2/keys/{key}/actions/{call}");
        let wrap = json!({ "plaintext": "A".repeat(43) + "=" }).to_string();
        let wrap = request(&action("wrap"), &headers, &wrap);
        let process = Process::Service(Box::new(service));
        let requests = [wrap, Vec::new()];
        let mut side = Self { name, process, address, connector, requests };
        let wrapped: Value = serde_json::from_str(&side.ask(&side.requests[0]).await?.body)?;
        let unwrap = json!({ "ciphertext": wrapped["ciphertext"] }).to_string();
        side.requests[1] = request(&action("unwrap"), &headers, &unwrap);
        Ok(side)
    }

    /// Headers and body of each call's answer, for the floors.
    async fn answers(&self) -> Result<Value, Failure> {
        let mut all = Vec::new();
        for (call, out) in CALLS.iter().zip(&self.requests) {
            let answer = self.ask(out).await?;
            let headers = answer.head.lines().skip(1).filter_map(|line| line.split_once(": "));
            let own = |name: &str| {
                ["content-length", "date"].iter().any(|n| name.eq_ignore_ascii_case(n))
            };
            let headers: Vec<_> = headers.filter(|(name, _)| !own(name)).collect();
            all.push(json!([call, headers, answer.body]));
        }
        Ok(Value::Array(all))
    }

    fn cpu(&self) -> f64 {
        let id = match &self.process {
            Process::Floor(child) => child.id(),
            Process::Service(service) => service.id(),
        };
        cpu_seconds(i32::try_from(id).unwrap_or(0))
    }

    /// p50 in microseconds on one connection.
    async fn single(&self, call: usize, count: usize) -> Result<f64, Failure> {
        let mut stream = self.connect().await?;
        let mut buffer = Vec::with_capacity(8192);
        let mut times = Vec::with_capacity(count);
        for _ in 0..count {
            let begun = Instant::now();
            exchange(&mut stream, &self.requests[call], &mut buffer).await?;
            times.push(begun.elapsed().as_secs_f64() * 1e6);
        }
        Ok(median(&times))
    }

    /// CPU of the server in microseconds per request, and requests per second, on 32 connections
    /// that are open before.
    async fn many(&self, call: usize, count: usize) -> Result<(f64, f64), Failure> {
        let mut streams = Vec::new();
        for _ in 0..AT_ONCE {
            streams.push(self.connect().await?);
        }
        let (cpu, begun) = (self.cpu(), Instant::now());
        let mut workers = JoinSet::new();
        for mut stream in streams {
            let out = self.requests[call].clone();
            workers.spawn(async move {
                let mut buffer = Vec::with_capacity(8192);
                for _ in 0..count / AT_ONCE {
                    exchange(&mut stream, &out, &mut buffer).await?;
                }
                Ok::<(), Failure>(())
            });
        }
        while let Some(done) = workers.join_next().await {
            done??;
        }
        let requests = (count / AT_ONCE * AT_ONCE) as f64;
        Ok(((self.cpu() - cpu) * 1e6 / requests, requests / begun.elapsed().as_secs_f64()))
    }
}

/// Figures of a side and a call, one of each round.
#[derive(Default)]
struct Figures {
    p50: Vec<f64>,
    cpu: Vec<f64>,
    rate: Vec<f64>,
}

async fn measure(rounds: usize, many: usize) -> Result<(), Failure> {
    // On the disk that the service writes to; the system's temporary directory may be memory.
    let dir = std::env::current_dir()?.join("target/bench-floors");
    std::fs::create_dir_all(&dir)?;
    // Servers keep the core that they begin on.
    pin(0);
    let synced = Side::service("synced").await?;
    let written = Side::service("written").await?;
    std::fs::write(dir.join("answers.json"), synced.answers().await?.to_string())?;
    let mut sides = Vec::new();
    for name in ["F0", "F1", "F2"] {
        sides.push(Side::floor(name, &dir, &synced.requests).await?);
    }
    sides.extend([synced, written]);
    pin(1);
    let mut figures: Vec<[Figures; 2]> = sides.iter().map(|_| Default::default()).collect();
    for round in 0..=rounds {
        for (side, figures) in sides.iter().zip(&mut figures) {
            for (call, figures) in figures.iter_mut().enumerate() {
                let p50 = side.single(call, many / FEWER).await?;
                let (cpu, rate) = side.many(call, many).await?;
                // The first round warms caches up.
                if round > 0 {
                    figures.p50.push(p50);
                    figures.cpu.push(cpu);
                    figures.rate.push(rate);
                }
            }
        }
        eprintln!("round {round} of {rounds}");
    }
    println!("| call | server | p50 at 1, us | CPU at 32, us | requests/s at 32 |");
    println!("|---|---|---|---|---|");
    for (at, call) in CALLS.iter().enumerate() {
        for (side, figures) in sides.iter().zip(&figures) {
            let Figures { p50, cpu, rate } = &figures[at];
            let name = side.name;
            let (p50, cpu, rate) = (median(p50), median(cpu), median(rate));
            println!("| {call} | {name} | {p50:.0} | {cpu:.1} | {rate:.0} |");
        }
    }
    println!("\n| call | ratio | p50 at 1 | CPU at 32 |\n|---|---|---|---|");
    for (at, call) in CALLS.iter().enumerate() {
        for (ours, floor) in [(3, 2), (4, 1), (3, 0), (4, 0)] {
            let (a, b) = (&figures[ours][at], &figures[floor][at]);
            let (p50, cpu) = (median(&a.p50) / median(&b.p50), median(&a.cpu) / median(&b.cpu));
            let names = format!("{} / {}", sides[ours].name, sides[floor].name);
            println!("| {call} | {names} | {p50:.2} | {cpu:.2} |");
        }
    }
    drop(sides);
    Ok(std::fs::remove_dir_all(dir)?)
}
