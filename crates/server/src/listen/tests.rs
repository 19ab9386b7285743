//! Connections of clumsy and hostile clients, over an in-memory stream.

use super::*;
use axum::body::Body;
use axum::routing::post;
use http_body_util::{BodyExt, Full};
use hyper::{Request, StatusCode};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::task::JoinHandle;

const SOON: Duration = Duration::from_secs(50);

fn begin(patience: Patience) -> (DuplexStream, JoinHandle<bool>, watch::Sender<bool>) {
    begin_with(1 << 20, patience)
}

fn begin_with(
    buffer: usize,
    patience: Patience,
) -> (DuplexStream, JoinHandle<bool>, watch::Sender<bool>) {
    let (ours, theirs) = tokio::io::duplex(buffer);
    let router = Router::new()
        .route("/", post(async |body: crate::http::body::Body| body.0.len().to_string()));
    let (close, closed) = watch::channel(false);
    let peer = SocketAddr::from(([127, 0, 0, 1], 1));
    let talk = talk(theirs, router, None, peer, patience, closed);
    (ours, tokio::spawn(async { talk.await.is_ok() }), close)
}

fn patient() -> Patience {
    Patience { idle: Duration::from_secs(40), request: Some(Duration::from_secs(40)) }
}

#[tokio::test]
async fn a_client_that_says_nothing_or_drips_is_left() {
    let brief = Patience { idle: Duration::from_millis(100), request: None };
    for said in [&b""[..], b"PRI * HTTP/2", b"GET / HT", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"] {
        let (mut client, served, _close) = begin(brief);
        client.write_all(said).await.expect("is taken");
        let mut rest = Vec::new();
        let ended = tokio::time::timeout(SOON, client.read_to_end(&mut rest)).await;
        assert!(ended.is_ok(), "{said:?}");
        drop(client);
        tokio::time::timeout(SOON, served).await.expect("ends").expect("does not panic");
    }
}

#[tokio::test]
async fn a_body_that_never_comes_ends_the_connection_of_a_stranger() {
    let brief =
        Patience { idle: Duration::from_secs(40), request: Some(Duration::from_millis(100)) };
    let (mut client, served, _close) = begin(brief);
    let head = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\nabc";
    client.write_all(head).await.expect("is taken");
    let mut rest = Vec::new();
    let ended = tokio::time::timeout(SOON, client.read_to_end(&mut rest)).await;
    assert!(ended.is_ok());
    assert!(!served.await.expect("does not panic"), "as a failure");
}

/// Whoever sends too much over HTTP/2 reads why, rather than a broken stream.
#[tokio::test]
async fn a_body_too_long_is_answered_over_http2() {
    for declared in [true, false] {
        let (client, _served, _close) = begin(patient());
        let (mut sender, connection) =
            hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(client))
                .await
                .expect("a connection");
        tokio::spawn(connection);
        let bytes = bytes::Bytes::from(vec![b'x'; 3 << 20]);
        let full = Full::new(bytes);
        let body = if declared {
            Body::new(full)
        } else {
            Body::from_stream(futures_util::StreamExt::map(full.into_data_stream(), |b| b))
        };
        let request = Request::post("http://x/").body(body).expect("a request");
        let answer = tokio::time::timeout(SOON, sender.send_request(request)).await;
        let answer = answer.expect("in time").expect("not a broken stream");
        assert_eq!(answer.status(), StatusCode::PAYLOAD_TOO_LARGE, "declared: {declared}");
        let text = answer.into_body().collect().await.expect("whole").to_bytes();
        assert!(text.starts_with(b"{"), "{text:?}");
    }
}

/// The same over HTTP/1.1, where a connection that ends while the client writes loses the answer.
#[tokio::test]
async fn a_body_too_long_is_taken_before_it_is_refused() {
    let (mut client, _served, _close) = begin_with(4 << 10, patient());
    let body = vec![b'x'; 400_000];
    let head = format!("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n", body.len());
    let talk = async {
        client.write_all(head.as_bytes()).await.expect("is taken");
        client.write_all(&body).await.expect("all of it is taken");
        let mut answer = [0; 12];
        client.read_exact(&mut answer).await.expect("an answer");
        assert_eq!(&answer, b"HTTP/1.1 413");
    };
    tokio::time::timeout(SOON, talk).await.expect("in time");
}

#[tokio::test]
async fn a_connection_is_known_by_its_listener() {
    let listen = async || TcpListener::bind(("127.0.0.1", 0)).await.expect("listens");
    let (private, public) = (listen().await, listen().await);
    let at = [&private, &public].map(|l| l.local_addr().expect("an address"));
    let both = Listeners { private, public: Some(public), status: None };
    for (address, network) in [(at[1], Network::Public), (at[0], Network::Private)] {
        let _client = TcpStream::connect(address).await.expect("connects");
        let accepted = tokio::time::timeout(SOON, both.accept()).await.expect("in time");
        assert_eq!(accepted.expect("accepts").2, network);
    }
    let alone = Listeners { private: both.private, public: None, status: None };
    let _client = TcpStream::connect(at[0]).await.expect("connects");
    assert_eq!(alone.accept().await.expect("accepts").2, Network::Private);
}

#[tokio::test]
async fn a_certificate_of_a_clock_that_was_ahead_is_made_anew() {
    let w = crate::testing::World::new();
    let made = || {
        tls(&w.app).expect("TLS");
        w.app.store.read("t", |tx| meta::get(tx, "server-certificate")).expect("reads")
    };
    let now = w.app.clock.now();
    w.clock.set(UnixMs(now.0 + 86_400_000));
    let ahead = made();
    assert_eq!(made(), ahead, "kept while it is good");
    w.clock.set(now);
    let mended = made().expect("one");
    assert_ne!(Some(&mended), ahead.as_ref());
    assert!(validity(&mended).expect("dates").0 <= now);
}

/// A clock that fails for good once it is told to.
struct Broken(std::sync::atomic::AtomicBool);

impl crate::app::Clock for Broken {
    fn now(&self) -> UnixMs {
        UnixMs(1_800_000_000_000)
    }
    fn up(&self) -> Duration {
        assert!(!self.0.load(std::sync::atomic::Ordering::SeqCst), "the clock is broken");
        Duration::ZERO
    }
}

#[tokio::test]
async fn a_server_whose_clockwork_has_fallen_stops() {
    let dir = tempfile::tempdir().expect("dir");
    let store = claviger_store::Store::open(&dir.path().join("claviger.db")).expect("opens");
    let key = claviger_crypto::Key32::generate();
    let custodian = Arc::new(claviger_custody::software::Software::new(&key));
    let clock = Arc::new(Broken(std::sync::atomic::AtomicBool::new(false)));
    let app = App::new(store, custodian, clock.clone(), crate::app::Settings::default());
    let app = app.expect("starts");
    let config = tls(&app).expect("TLS");
    let private = TcpListener::bind(("127.0.0.1", 0)).await.expect("listens");
    let listeners = Listeners { private, public: None, status: None };
    clock.0.store(true, std::sync::atomic::Ordering::SeqCst);
    let served = tokio::spawn(serve(app, config, listeners, std::future::pending()));
    let ended = tokio::time::timeout(SOON, served).await.expect("ends");
    assert!(ended.expect_err("not as if all were well").is_panic());
}
