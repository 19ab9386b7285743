//! Traces of the real program, taken by a collector that reads them with OpenTelemetry's own
//! definitions.

#![allow(clippy::unwrap_used)] // Helpers of tests: a panic is the report.

use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::trace::v1::Span;
use prost::Message as _;
use std::convert::Infallible;
use std::fs;
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

const PROGRAM: &str = env!("CARGO_BIN_EXE_claviger");

/// What came: the service, and a span of it.
type Came = Arc<Mutex<Vec<(String, Span)>>>;

/// A collector on a free port, which runs as long as the test does.
fn collector() -> (SocketAddr, Came) {
    let came = Came::default();
    let listener = std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap();
    listener.set_nonblocking(true).unwrap();
    let address = listener.local_addr().unwrap();
    let all = came.clone();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let listener = tokio::net::TcpListener::from_std(listener).unwrap();
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let all = all.clone();
                let service = service_fn(move |request| take(request, all.clone()));
                tokio::spawn(async move {
                    let builder = auto::Builder::new(TokioExecutor::new());
                    let _ = builder.serve_connection(TokioIo::new(stream), service).await;
                });
            }
        });
    });
    (address, came)
}

async fn take(request: Request<Incoming>, all: Came) -> Result<Response<Full<Bytes>>, Infallible> {
    assert_eq!(request.uri().path(), "/v1/traces");
    assert_eq!(request.headers()["content-type"], "application/x-protobuf");
    let body = request.into_body().collect().await.unwrap().to_bytes();
    let request = ExportTraceServiceRequest::decode(body).unwrap();
    for resource in request.resource_spans {
        let service = text(&resource.resource.unwrap().attributes, "service.name");
        let spans = resource.scope_spans.into_iter().flat_map(|scope| scope.spans);
        all.lock().unwrap().extend(spans.map(|span| (service.clone(), span)));
    }
    Ok(Response::new(Full::new(Bytes::new())))
}

fn text(of: &[opentelemetry_proto::tonic::common::v1::KeyValue], key: &str) -> String {
    let found = of.iter().find(|pair| pair.key == key).and_then(|pair| pair.value.clone());
    match found.and_then(|value| value.value) {
        Some(Value::StringValue(text)) => text,
        Some(Value::IntValue(number)) => number.to_string(),
        other => format!("{other:?}"),
    }
}

struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A server in `dir` that sends its traces to `endpoint`; what it says of itself.
fn start(dir: &std::path::Path, endpoint: SocketAddr) -> (Server, serde_json::Value) {
    let bootstrap = dir.join("bootstrap.json");
    let mut child = Command::new(PROGRAM)
        .args(["server", "run", "--listen", "127.0.0.1:0", "--data"])
        .arg(dir.join("data"))
        .arg("--bootstrap")
        .arg(&bootstrap)
        .env_clear()
        .env("OTEL_EXPORTER_OTLP_ENDPOINT", format!("http://{endpoint}"))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(fs::File::create(dir.join("log")).unwrap())
        .spawn()
        .unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let told = lines.map_while(Result::ok).any(|line| line.starts_with("bootstrap: "));
    let server = Server(child);
    assert!(told, "it did not start: {}", fs::read_to_string(dir.join("log")).unwrap());
    let told: serde_json::Value = serde_json::from_slice(&fs::read(bootstrap).unwrap()).unwrap();
    fs::write(dir.join("ca.pem"), told["ca"].as_str().unwrap()).unwrap();
    (server, told)
}

fn create_key(dir: &std::path::Path, told: &serde_json::Value, traceparent: &str) -> bool {
    Command::new(PROGRAM)
        .args(["key", "create", "shop"])
        .env_clear()
        .env("CLAVIGER_URL", told["url"].as_str().unwrap())
        .env("CLAVIGER_CA_FILE", dir.join("ca.pem"))
        .env("CLAVIGER_API_KEY", told["api_key"].as_str().unwrap())
        .env("CLAVIGER_INSTANCE_ID", told["instances"][0]["id"].as_str().unwrap())
        .env("TRACEPARENT", traceparent)
        .stdin(Stdio::null())
        .output()
        .unwrap()
        .status
        .success()
}

#[test]
fn a_call_is_followed_from_its_caller_into_database_and_custodian() {
    let dir = tempfile::tempdir().unwrap();
    let (endpoint, came) = collector();
    let (server, told) = start(dir.path(), endpoint);
    let trace = "0af7651916cd43dd8448eb211c80319c";
    assert!(create_key(dir.path(), &told, &format!("00-{trace}-b7ad6b7169203331-01")));
    let found = |name: &str| {
        let came = came.lock().unwrap();
        came.iter().find(|(_, span)| span.name == name).map(|(_, span)| span.clone())
    };
    let request = (0..200).find_map(|_| {
        std::thread::sleep(Duration::from_millis(50));
        found("POST /api/v2/keys").filter(|_| found("custodian").is_some())
    });
    let log = || fs::read_to_string(dir.path().join("log")).unwrap();
    let request = request.unwrap_or_else(|| panic!("no such span came: {}", log()));
    let hex = |id: &[u8]| id.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    assert_eq!(hex(&request.trace_id), trace);
    assert_eq!(hex(&request.parent_span_id), "b7ad6b7169203331");
    assert_eq!(request.kind, 2, "a server's");
    assert!(request.end_time_unix_nano > request.start_time_unix_nano);
    assert_eq!(text(&request.attributes, "http.route"), "/api/v2/keys");
    assert_eq!(text(&request.attributes, "http.response.status_code"), "201");
    let instance = told["instances"][0]["id"].as_str().unwrap();
    assert_eq!(text(&request.attributes, "claviger.instance"), instance);

    let came = came.lock().unwrap();
    let within = |name: &str| {
        came.iter().map(|(_, span)| span).any(|span| {
            span.name == name
                && span.trace_id == request.trace_id
                && span.parent_span_id == request.span_id
        })
    };
    assert!(within("transaction"));
    assert!(came.iter().any(|(_, span)| {
        span.name == "custodian"
            && span.trace_id == request.trace_id
            && text(&span.attributes, "claviger.call") == "generate"
    }));
    assert!(came.iter().all(|(service, _)| service == "claviger-server"));
    // Nothing that came has a secret in it.
    let all = format!("{came:?}");
    assert!(!all.contains(told["api_key"].as_str().unwrap()));
    assert!(!all.contains("Bearer") && !all.contains("eyJ"));
    drop(server);
}

#[test]
fn a_collector_that_is_gone_holds_nobody_up() {
    let dir = tempfile::tempdir().unwrap();
    let gone = std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap().local_addr().unwrap();
    let (_server, told) = start(dir.path(), gone);
    assert!(create_key(dir.path(), &told, ""));
    let said = (0..200).any(|_| {
        std::thread::sleep(Duration::from_millis(50));
        fs::read_to_string(dir.path().join("log")).unwrap().contains("traces are dropped")
    });
    assert!(said, "{}", fs::read_to_string(dir.path().join("log")).unwrap());
}
