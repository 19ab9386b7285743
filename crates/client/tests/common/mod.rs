//! A TLS server whose answers a test decides: what the client must withstand cannot be asked of
//! a correct server.

#![allow(clippy::unwrap_used)] // A panic is the report of a test.

use claviger_client::{Config, NodeConfig, Proof};
use claviger_crypto::SecretBytes;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpListener;

/// A request as it came.
#[derive(Clone, Debug)]
pub struct Asked {
    pub line: String,
    pub headers: HashMap<String, String>,
    pub body: String,
    pub certificate: bool,
}

/// An answer: status, extra header lines, body. Status 0 never answers.
pub type Answer = (u16, &'static str, String);

type Answers = Arc<dyn Fn(&Asked, usize) -> Answer + Send + Sync>;

/// A CA of a test.
pub struct Ca {
    issuer: Issuer<'static, KeyPair>,
    pub pem: String,
}

impl Ca {
    pub fn new() -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let pem = params.self_signed(&key).unwrap().pem();
        Self { issuer: Issuer::new(params, key), pem }
    }

    /// A certificate and its key, PEM.
    pub fn sign(&self, name: &str) -> (String, String) {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        (params.signed_by(&key, &self.issuer).unwrap().pem(), key.serialize_pem())
    }
}

pub struct Server {
    pub ca: Ca,
    pub url: String,
    /// Everything that was asked, in order.
    pub asked: Arc<Mutex<Vec<Asked>>>,
    ca_file: tempfile::NamedTempFile,
}

impl Server {
    /// Serves; `answers` gets the request and how many there were before on the same line.
    pub async fn start(answers: impl Fn(&Asked, usize) -> Answer + Send + Sync + 'static) -> Self {
        let ca = Ca::new();
        let (certificate, key) = ca.sign("localhost");
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(ca.pem.as_bytes()).unwrap()).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let verifier =
            WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone())
                .allow_unauthenticated()
                .build()
                .unwrap();
        let config = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_client_cert_verifier(verifier)
            .with_single_cert(
                vec![CertificateDer::from_pem_slice(certificate.as_bytes()).unwrap()],
                PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap(),
            )
            .unwrap();
        let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("https://localhost:{}", listener.local_addr().unwrap().port());
        let asked = Arc::new(Mutex::new(Vec::new()));
        let (all, answers): (_, Answers) = (asked.clone(), Arc::new(answers));
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let (acceptor, all, answers) = (acceptor.clone(), all.clone(), answers.clone());
                tokio::spawn(async move {
                    if let Ok(stream) = acceptor.accept(stream).await {
                        let certificate = stream.get_ref().1.peer_certificates().is_some();
                        talk(stream, certificate, &all, &answers).await;
                    }
                });
            }
        });
        let ca_file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(ca_file.path(), &ca.pem).unwrap();
        Self { ca, url, asked, ca_file }
    }

    pub fn config(&self) -> Config {
        Config {
            url: self.url.clone(),
            iam_url: None,
            ca_file: self.ca_file.path().to_owned(),
            proof: Proof::ApiKey(SecretBytes::new(b"k&y=1".to_vec())),
        }
    }

    /// A node whose certificate `ca` signed.
    pub fn node(&self, ca: &Ca) -> NodeConfig {
        let (certificate, key) = ca.sign("node");
        NodeConfig {
            url: self.url.clone(),
            ca: self.ca.pem.clone(),
            certificate,
            key: SecretBytes::new(key.into_bytes()),
        }
    }

    pub fn count(&self, line: &str) -> usize {
        self.asked.lock().unwrap().iter().filter(|a| a.line.starts_with(line)).count()
    }
}

async fn talk(
    stream: tokio_rustls::server::TlsStream<tokio::net::TcpStream>,
    certificate: bool,
    all: &Mutex<Vec<Asked>>,
    answers: &Answers,
) {
    let mut stream = BufReader::new(stream);
    loop {
        let mut head = Vec::new();
        loop {
            let mut line = String::new();
            match stream.read_line(&mut line).await {
                Ok(n) if n > 0 => {}
                _ => return,
            }
            if line == "\r\n" {
                break;
            }
            head.push(line.trim_end().to_owned());
        }
        let headers: HashMap<_, _> = head[1..]
            .iter()
            .filter_map(|l| l.split_once(": "))
            .map(|(k, v)| (k.to_ascii_lowercase(), v.to_owned()))
            .collect();
        let len = headers.get("content-length").map_or(0, |l| l.parse().unwrap());
        let mut body = vec![0; len];
        stream.read_exact(&mut body).await.unwrap();
        let line = head[0].trim_end_matches(" HTTP/1.1").to_owned();
        let body = String::from_utf8(body).unwrap();
        let asked = Asked { line, headers, body, certificate };
        let before = {
            let mut all = all.lock().unwrap();
            all.push(asked.clone());
            all.iter().filter(|a| a.line == asked.line).count() - 1
        };
        let (status, extra, body) = answers(&asked, before);
        if status == 0 {
            std::future::pending::<()>().await;
        }
        let length = match extra.contains("content-length") || extra.contains("close") {
            true => String::new(),
            false => format!("content-length: {}\r\n", body.len()),
        };
        let answer = format!("HTTP/1.1 {status} x\r\n{length}{extra}\r\n{body}");
        stream.write_all(answer.as_bytes()).await.unwrap();
        stream.flush().await.unwrap();
        if extra.contains("close") {
            let _ = stream.shutdown().await;
            return;
        }
    }
}

/// A token that lives an hour.
pub fn token() -> Answer {
    token_for(3600)
}

pub fn token_for(seconds: u64) -> Answer {
    let body = format!(
        r#"{{"access_token":"a.b.c","refresh_token":"x","token_type":"Bearer",
            "expires_in":{seconds},"expiration":0,"scope":""}}"#
    );
    (200, "", body)
}

/// An error as Key Protect writes it.
pub fn refusal(status: u16, code: &str) -> Answer {
    let body = format!(
        r#"{{"metadata":{{"collectionType":"application/vnd.ibm.kms.error+json",
            "collectionTotal":1}},"resources":[{{"errorMsg":"No","reasons":[{{"code":"{code}",
            "message":"no","status":{status},"moreInfo":""}}]}}]}}"#
    );
    (status, "", body)
}
