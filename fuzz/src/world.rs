//! A whole server in process, asked as clients, operators and nodes ask it.

use axum::Router;
use axum::body::Body;
use axum::http::{Method, Request, header};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use claviger_crypto::Key32;
use claviger_crypto::transport::{Oaep, seal_for, seal_nonce};
use claviger_custody::software::Software;
use claviger_domain::id::UnixMs;
use claviger_server::app::{App, ManualClock, Settings};
use claviger_server::http::auth::Node;
use claviger_server::{first, http, listen};
use claviger_store::Store;
use http_body_util::BodyExt;
use rcgen::{CertificateParams, KeyPair};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tempfile::TempDir;
use tokio::runtime::Runtime;
use tower::ServiceExt;

const START: UnixMs = UnixMs(1_800_000_000_000);
/// Inputs to one server at most: each leaves audit records.
const INPUTS: u64 = 2_000;
/// Requests of one input.
const REQUESTS: usize = 8;
/// What stands between two of them.
const BETWEEN: &[u8] = b"\n----\n";
/// No request takes longer, but for those that are not asked: see [`World::refuses`].
const ANSWER: Duration = Duration::from_secs(20);
const DATABASE: &str = "claviger.db";
const KEY: &str = "application/vnd.ibm.kms.key+json";

/// An answer.
pub struct Answer {
    pub status: u16,
    pub media_type: String,
    pub body: Vec<u8>,
}

impl Answer {
    fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or(Value::Null)
    }
}

/// A server with keys in every state, people, a service, a cluster and a node of it.
pub struct World {
    runtime: Runtime,
    master: Vec<u8>,
    template: TempDir,
    running: Option<(Router, TempDir)>,
    /// Whether this server is the one that is being made.
    filling: bool,
    /// Whether an input changed anything.
    changed: bool,
    inputs: u64,
    node: Option<Node>,
    /// Words that stand in an input for what only this server has, the longest first.
    words: BTreeMap<std::cmp::Reverse<(usize, String)>, String>,
}

impl World {
    /// Makes one. Takes seconds: an import token is made.
    pub fn new() -> World {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            // As the server's, but fewer: each keeps a stack.
            .max_blocking_threads(8)
            .build()
            .expect("a runtime");
        let master = Key32::generate().expose().to_vec();
        let template = crate::directory();
        let mut world = World {
            runtime,
            master,
            template,
            running: None,
            filling: true,
            changed: false,
            inputs: 0,
            node: None,
            words: BTreeMap::new(),
        };
        world.fill();
        world
    }

    fn app(&self, dir: &TempDir) -> Arc<App> {
        let store = Store::open(&dir.path().join(DATABASE)).expect("opens");
        let master = Key32::take(&mut self.master.clone()).expect("32 bytes");
        let custodian = Arc::new(Software::new(&master));
        let clock = Arc::new(ManualClock::new(START));
        let url = "https://keys.example:8443".to_owned();
        let settings =
            Settings { url, keys_max: 200, ..Settings::default() }.without_waits().without_limits();
        App::new(store, custodian, clock, settings).expect("starts")
    }

    fn word(&mut self, name: &str, value: impl Into<String>) {
        self.words.insert(std::cmp::Reverse((name.len(), name.to_owned())), value.into());
    }

    /// Replaces the words of an input by what this server has for them.
    pub fn filled(&self, input: &[u8]) -> Vec<u8> {
        let mut out = Vec::with_capacity(input.len());
        let mut rest = input;
        while let Some(&byte) = rest.first() {
            let found = (byte == b'$')
                .then(|| self.words.iter().find(|(word, _)| rest.starts_with(word.0.1.as_bytes())))
                .flatten();
            match found {
                Some((word, value)) => {
                    out.extend_from_slice(value.as_bytes());
                    rest = &rest[word.0.0..];
                }
                None => {
                    out.push(byte);
                    rest = &rest[1..];
                }
            }
        }
        out
    }

    /// Sets everything up through the API, as people do.
    fn fill(&mut self) {
        let dir = crate::directory();
        let app = self.app(&dir);
        let told = first::bootstrap(&app).expect("answers").expect("a first start");
        first::delivered(&app).expect("answers");
        let router = http::router(app);
        self.running = Some((router, dir));
        self.word("$instance", told.instances[0].id.to_string());
        self.word("$apikey", told.api_key);
        let manager = self.log_in("$apikey");
        self.word("$manager", manager);
        for (name, role) in [("service", "Reader"), ("purger", "KeyPurge")] {
            let new = json!({ "name": name, "service": true, "roles": [{ "role": role }] });
            let made = self.must("manager POST /v3/principals", &new);
            self.word("$newkey", made["apikey"].as_str().expect("a key"));
            let token = self.log_in("$newkey");
            self.word(&format!("${name}"), token);
        }
        self.must("manager POST /api/v2/key_rings/ring", &Value::Null);
        let payload = STANDARD.encode([7; 32]);
        for (name, root, payload) in [
            ("root", true, None),
            ("imported", true, Some(payload.as_str())),
            ("standard", false, Some("c29tZSBieXRlcw==")),
            ("suspended", true, None),
            ("destroyed", true, None),
        ] {
            let mut key = json!({
                "type": KEY, "name": name, "extractable": !root, "aliases": [name],
            });
            if let Some(payload) = payload {
                key["payload"] = json!(payload);
            }
            let body = json!({
                "metadata": { "collectionType": KEY, "collectionTotal": 1 }, "resources": [key],
            });
            let made = self.must("manager POST /api/v2/keys", &body);
            let id = made.pointer("/resources/0/id").and_then(Value::as_str).expect("an id");
            self.word(&format!("${name}"), id);
            if let Some(version) = made.pointer("/resources/0/keyVersion/id") {
                self.word(&format!("${name}version"), version.as_str().expect("an id"));
            }
        }
        let wrap = json!({ "plaintext": "c2VjcmV0", "aad": ["a", ""] });
        let wrapped = self.must("manager POST /api/v2/keys/$root/actions/wrap", &wrap);
        self.word("$ciphertext", wrapped["ciphertext"].as_str().expect("a ciphertext"));
        self.must("manager POST /api/v2/keys/$suspended/actions/disable", &Value::Null);
        self.must("manager DELETE /api/v2/keys/$destroyed", &Value::Null);
        self.import_token();
        self.cluster();
        // One whole file, without a log beside it.
        let (_, dir) = self.running.take().expect("it runs");
        self.filling = false;
        let (from, to) = (dir.path().join(DATABASE), self.template.path().join(DATABASE));
        claviger_store::copy(&from, &to).expect("copies");
    }

    fn import_token(&mut self) {
        self.must("manager POST /api/v2/import_token", &json!({ "maxAllowedRetrievals": 500 }));
        let token = self.must("manager GET /api/v2/import_token", &Value::Null);
        let decoded =
            |field: &str| STANDARD.decode(token[field].as_str().expect("a field")).expect("base64");
        let pem = String::from_utf8(decoded("payload")).expect("PEM");
        let (material, iv) = ([9; 32], [1; 12]);
        let payload = seal_for(&pem, Oaep::Sha256, &material).expect("seals");
        let nonce = seal_nonce(&material, &iv, &decoded("nonce")).expect("seals");
        self.word("$payload", STANDARD.encode(payload));
        self.word("$nonce", STANDARD.encode(nonce));
        self.word("$iv", STANDARD.encode(iv));
    }

    fn cluster(&mut self) {
        let groups = self.must("manager GET /v2/resource_groups", &Value::Null);
        let group = groups.pointer("/resources/0/id").and_then(Value::as_str);
        self.word("$group", group.expect("a resource group"));
        let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).expect("a key");
        let csr = CertificateParams::default().serialize_request(&key).expect("a request");
        let csr = csr.pem().expect("PEM");
        let register = json!({
            "name": "one", "server_url": "https://127.0.0.1:6443", "ca": self.authority(),
        });
        let registered = self.must("manager POST /v3/clusters", &register);
        let token = registered["join_token"].as_str().expect("a token").to_owned();
        self.word("$cluster", registered["id"].as_str().expect("an id"));
        let join = json!({ "token": token, "agent": "cp-1", "csr": csr });
        let made = self.must("nobody POST /agent/v1/join", &join);
        let pem = made["certificate"].as_str().expect("a certificate").to_owned();
        let der = CertificateDer::from_pem_slice(pem.as_bytes()).expect("PEM");
        self.node = listen::node(&der);
        assert!(self.node.is_some(), "a certificate of a node");
        self.word("$csr", csr.replace('\n', "\\n"));
        self.word("$certificate", pem.replace('\n', "\\n"));
        let again = self.must("manager POST /v3/clusters/one/join-tokens", &Value::Null);
        self.word("$jointoken", again["join_token"].as_str().expect("a token"));
        let lease = self.must("node POST /agent/v1/lease", &json!({ "fencing": null }));
        self.word("$fencing", lease["fencing"].to_string());
        let state = self.must("node GET /agent/v1/state", &Value::Null);
        let revision = state.pointer("/cluster/revision").cloned().unwrap_or(json!(0));
        self.word("$revision", revision.to_string());
        self.word("$held", state["cluster"].to_string());
    }

    /// A CA for the cluster's API server.
    fn authority(&self) -> String {
        let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).expect("a key");
        let mut params = CertificateParams::default();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        params.self_signed(&key).expect("a certificate").pem()
    }

    fn log_in(&mut self, word: &str) -> String {
        let grant = "urn%3Aibm%3Aparams%3Aoauth%3Agrant-type%3Aapikey";
        let form = format!("grant_type={grant}&apikey={word}");
        let answer = self.identify(form.as_bytes()).json();
        answer["access_token"].as_str().expect("a token").to_owned()
    }

    /// A request that must succeed, also one that is not asked by inputs.
    fn must(&mut self, line: &str, body: &Value) -> Value {
        let body = if body.is_null() { String::new() } else { body.to_string() };
        let input = format!("{line}\n\n{body}");
        let request = self.request(self.filled(input.as_bytes()).as_slice()).expect("a request");
        let answer = self.send(request);
        assert!(answer.status < 300, "{line}: {}", String::from_utf8_lossy(&answer.body));
        answer.json()
    }

    /// Reads `WHO METHOD PATH`, headers, an empty line and a body.
    fn request(&self, input: &[u8]) -> Option<Request<Body>> {
        let end = input.windows(2).position(|pair| pair == b"\n\n")?;
        let (head, body) = (std::str::from_utf8(&input[..end]).ok()?, &input[end + 2..]);
        let mut lines = head.lines();
        let mut words = lines.next()?.split(' ');
        let (who, method, path) = (words.next()?, words.next()?, words.next()?);
        let mut request = Request::builder().method(method).uri(path);
        let mut instance = true;
        for line in lines {
            let (name, value) = line.split_once(": ")?;
            instance &= !name.eq_ignore_ascii_case("bluemix-instance");
            request = request.header(name, value);
        }
        let word = |name: &str| self.words.get(&std::cmp::Reverse((name.len(), name.to_owned())));
        match who {
            "manager" | "service" | "purger" => {
                let token = word(&format!("${who}"))?;
                request = request.header(header::AUTHORIZATION, format!("Bearer {token}"));
            }
            "node" => request = request.extension(self.node.clone()?),
            _ => {}
        }
        if instance {
            request = request.header("Bluemix-Instance", word("$instance")?);
        }
        request.body(Body::from(body.to_vec())).ok()
    }

    fn send(&self, request: Request<Body>) -> Answer {
        let (router, _) = self.running.as_ref().expect("it runs");
        let router = router.clone();
        self.runtime.block_on(async move {
            let asked = async {
                let answer = router.oneshot(request).await.expect("it never fails");
                let status = answer.status().as_u16();
                let media_type = answer.headers().get(header::CONTENT_TYPE);
                let media_type = media_type.and_then(|v| v.to_str().ok()).unwrap_or_default();
                let media_type = media_type.to_owned();
                let body = answer.into_body().collect().await.expect("a body").to_bytes().to_vec();
                Answer { status, media_type, body }
            };
            tokio::time::timeout(ANSWER, asked).await.expect("an answer within its time")
        })
    }

    /// What is not asked: a stream has no end, and a key pair takes seconds.
    fn refuses(request: &Request<Body>) -> bool {
        let path = request.uri().path();
        path.ends_with("/stream") || (path.contains("import_token") && request.method() != "GET")
    }

    /// A fresh server unless this one is as it was made, so that an input leads to the same
    /// whenever it is replayed.
    fn renew(&mut self) {
        self.inputs += 1;
        if self.running.is_some() && !self.changed && !self.inputs.is_multiple_of(INPUTS) {
            return;
        }
        self.changed = false;
        self.running = None;
        let dir = crate::directory();
        let (from, to) = (self.template.path().join(DATABASE), dir.path().join(DATABASE));
        std::fs::copy(from, to).expect("copies");
        let router = http::router(self.app(&dir));
        self.running = Some((router, dir));
    }

    /// Does the requests that an input describes, one after the other, on a fresh server; what
    /// does not describe one is left out.
    pub fn ask(&mut self, input: &[u8]) -> Vec<(String, Answer)> {
        let filled = self.filled(input);
        let mut rest = filled.as_slice();
        let mut requests = Vec::new();
        while requests.len() < REQUESTS && !rest.is_empty() {
            let end = rest.windows(BETWEEN.len()).position(|bytes| bytes == BETWEEN);
            let (one, next) = rest.split_at(end.unwrap_or(rest.len()));
            requests.extend(self.request(one).filter(|request| !Self::refuses(request)));
            rest = next.strip_prefix(BETWEEN).unwrap_or(next);
        }
        if !requests.is_empty() {
            self.renew();
        }
        let mut asked = Vec::new();
        for request in requests {
            let line = format!("{} {}", request.method(), request.uri());
            // Retrieving an import token is the one change that is asked for so.
            let looks = matches!(*request.method(), Method::GET | Method::HEAD)
                && !line.contains("import_token");
            let answer = self.send(request);
            self.changed |= !looks && answer.status < 300;
            asked.push((line, answer));
        }
        asked
    }

    /// Asks for a token with a form.
    pub fn identify(&mut self, form: &[u8]) -> Answer {
        if !self.filling {
            self.renew();
        }
        let request = Request::post("/identity/token").body(Body::from(self.filled(form)));
        self.send(request.expect("a request"))
    }
}

impl Default for World {
    fn default() -> Self {
        Self::new()
    }
}
