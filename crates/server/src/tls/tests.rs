//! A real client of a server whose certificate is exchanged.

use super::*;
use crate::app::Settings;
use crate::listen::{self, Listeners};
use crate::testing::{self, START, World};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use std::fs::Permissions;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt as _;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::client::TlsStream;

const SOON: Duration = Duration::from_secs(50);

/// An authority of the operator's.
struct Office {
    issuer: Issuer<'static, KeyPair>,
    der: CertificateDer<'static>,
}

impl Office {
    fn new() -> Office {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let der = params.self_signed(&key).unwrap().der().clone();
        Office { issuer: Issuer::new(params, key), der }
    }

    /// Writes a pair into the files; the certificate.
    fn issue(&self, files: &CertificateFiles, name: &str) -> CertificateDer<'static> {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        std::fs::write(&files.chain, certificate.pem()).unwrap();
        std::fs::write(&files.key, key.serialize_pem()).unwrap();
        std::fs::set_permissions(&files.key, Permissions::from_mode(0o600)).unwrap();
        certificate.der().clone()
    }
}

async fn connect(
    at: SocketAddr,
    name: &'static str,
    ca: &CertificateDer<'static>,
) -> Result<TlsStream<TcpStream>, std::io::Error> {
    tokio::time::timeout(SOON, testing::connect(at, name, ca)).await.expect("in time")
}

fn shown(stream: &TlsStream<TcpStream>) -> CertificateDer<'static> {
    stream.get_ref().1.peer_certificates().unwrap()[0].clone().into_owned()
}

/// Asks over a connection, which stays open.
async fn asks(stream: &mut TlsStream<TcpStream>) {
    let talk = async {
        stream.write_all(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
        let mut answer = Vec::new();
        while !answer.ends_with(b"ok\n") {
            let read = stream.read_buf(&mut answer).await.unwrap();
            assert_ne!(read, 0, "{}", String::from_utf8_lossy(&answer));
        }
        assert!(answer.starts_with(b"HTTP/1.1 200"));
    };
    tokio::time::timeout(SOON, talk).await.expect("in time");
}

#[tokio::test]
async fn a_certificate_is_exchanged_while_connections_go_on() {
    let (office, dir) = (Office::new(), tempfile::tempdir().unwrap());
    let [chain, key] = ["c.pem", "k.pem"].map(|name| dir.path().join(name));
    let files = CertificateFiles { chain, key };
    let first = office.issue(&files, "*.keys.example");
    let world = World::with(Settings {
        names: vec!["a.keys.example".to_owned(), "agents.example".to_owned()],
        certificate: Some(files.clone()),
        ..Settings::default()
    });
    let app = world.app.clone();
    let private = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let at = private.local_addr().unwrap();
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let listeners = Listeners { private, public: None, status: None };
    let tls = config(&app).unwrap();
    let served = tokio::spawn(listen::serve(app.clone(), tls, listeners, async {
        let _ = stopped.await;
    }));

    let mut old = connect(at, "a.keys.example", &office.der).await.unwrap();
    assert_eq!(shown(&old), first);
    asks(&mut old).await;
    // All other names are the built-in certificate's.
    let authority = app.authority.der().clone();
    for name in ["localhost", "agents.example", "127.0.0.1"] {
        let mut stream = connect(at, name, &authority).await.unwrap();
        asks(&mut stream).await;
    }
    assert!(connect(at, "a.keys.example", &authority).await.is_err());

    let second = office.issue(&files, "*.keys.example");
    app.certificates.look(&app, false).unwrap();
    assert_eq!(shown(&connect(at, "a.keys.example", &office.der).await.unwrap()), second);
    asks(&mut old).await;

    // A key of another, a certificate for others, and none at all.
    let other = CertificateFiles { chain: files.chain.with_extension("other"), ..files.clone() };
    office.issue(&other, "*.keys.example");
    let unfit = app.certificates.look(&app, false);
    assert!(matches!(unfit, Err(FilesError::Apart { .. })), "{unfit:?}");
    office.issue(&files, "elsewhere.example");
    let unfit = app.certificates.look(&app, false);
    let foreign = matches!(unfit, Err(FilesError::Unfit { why: Unfit::Foreign { .. }, .. }));
    assert!(foreign, "{unfit:?}");
    std::fs::remove_file(&files.chain).unwrap();
    assert!(matches!(app.certificates.look(&app, false), Err(FilesError::Read { .. })));
    assert!(app.certificates.look(&app, false).is_ok(), "it is said once");
    assert!(app.certificates.look(&app, true).is_err(), "and to whoever asks");
    assert!(app.metrics.render().contains("claviger_tls_certificate_failing 1"));
    assert!(app.certificates.trouble(START).is_some_and(|why| why.contains("c.pem")));
    assert_eq!(shown(&connect(at, "a.keys.example", &office.der).await.unwrap()), second);

    let third = office.issue(&files, "a.keys.example");
    std::fs::set_permissions(&files.key, Permissions::from_mode(0o604)).unwrap();
    assert!(matches!(app.certificates.look(&app, false), Err(FilesError::Mode { .. })));
    std::fs::set_permissions(&files.key, Permissions::from_mode(0o640)).unwrap();
    app.certificates.look(&app, false).unwrap();
    assert_eq!(app.certificates.trouble(START), None);
    assert!(app.metrics.render().contains("claviger_tls_certificate_failing 0"));
    let ends = not_after(&third).unwrap().0 / 1000;
    let line = format!("claviger_tls_certificate_not_after_seconds{{certificate=\"own\"}} {ends}");
    assert!(app.metrics.render().contains(&line), "{}", app.metrics.render());
    assert_eq!(shown(&connect(at, "a.keys.example", &office.der).await.unwrap()), third);
    asks(&mut old).await;
    drop(stop);
    drop(old);
    tokio::time::timeout(SOON, served).await.expect("stops").unwrap();
}

#[tokio::test]
async fn a_certificate_of_a_clock_that_was_ahead_is_made_anew() {
    let w = crate::testing::World::new();
    let made = || {
        config(&w.app).expect("TLS");
        w.app.store.read("t", |tx| meta::get(tx, "server-certificate")).expect("reads")
    };
    let now = w.app.clock.now();
    w.clock.set(UnixMs(now.0 + 86_400_000));
    let ahead = made();
    assert_eq!(made(), ahead, "kept while it is good");
    w.clock.set(now);
    let mended = made().expect("one");
    assert_ne!(Some(&mended), ahead.as_ref());
    assert!(Seen::of(&mended).expect("dates").not_before <= now);
}
