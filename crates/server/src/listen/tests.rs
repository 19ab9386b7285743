//! Connections of clumsy and hostile clients, over an in-memory stream and over real sockets.

use super::*;
use crate::app::Settings;
use crate::testing::{World, connect};
use axum::body::Body;
use axum::routing::post;
use http_body_util::{BodyExt, Full};
use hyper::{Request, StatusCode};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::task::JoinHandle;

const SOON: Duration = Duration::from_secs(50);

fn begin(bounds: Bounds) -> (DuplexStream, JoinHandle<bool>, watch::Sender<bool>) {
    begin_with(1 << 20, bounds)
}

fn begin_with(
    buffer: usize,
    bounds: Bounds,
) -> (DuplexStream, JoinHandle<bool>, watch::Sender<bool>) {
    let (ours, theirs) = tokio::io::duplex(buffer);
    let router = Router::new()
        .route("/", post(async |body: crate::http::body::Body| body.0.len().to_string()));
    let (close, closed) = watch::channel(false);
    let peer = SocketAddr::from(([127, 0, 0, 1], 1));
    let guest = Guest { peer, proxies: [].into(), room: Room::new(bounds.room), bounds, closed };
    let talk = async move { guest.talk(theirs, router, None).await.is_ok() };
    (ours, tokio::spawn(talk), close)
}

fn patient() -> Bounds {
    let long = Duration::from_secs(40);
    Bounds { idle: long, request: long, ..Bounds::default() }
}

#[tokio::test]
async fn a_client_that_says_nothing_or_drips_is_left() {
    let brief = Bounds { idle: Duration::from_millis(100), ..patient() };
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
    let brief = Bounds { request: Duration::from_millis(100), ..patient() };
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

type Secure = tokio_rustls::client::TlsStream<TcpStream>;

/// A server on a real socket.
struct Open {
    world: World,
    address: SocketAddr,
    stop: tokio::sync::oneshot::Sender<()>,
    serving: JoinSet<()>,
}

impl Open {
    async fn with(bounds: Bounds) -> Open {
        Open::serving(Settings::default(), bounds).await
    }

    async fn serving(settings: Settings, bounds: Bounds) -> Open {
        let world = World::with(settings);
        let private = TcpListener::bind(("127.0.0.1", 0)).await.expect("listens");
        let address = private.local_addr().expect("an address");
        let tls = crate::tls::config(&world.app).expect("a certificate");
        let (app, listeners) =
            (world.app.clone(), Listeners { private, public: None, status: None });
        let (stop, stopped) = tokio::sync::oneshot::channel();
        let mut serving = JoinSet::new();
        serving.spawn(async move {
            let stopped = async { drop(stopped.await) };
            serve_within(app, tls, listeners, bounds, stopped).await;
        });
        Open { world, address, stop, serving }
    }

    async fn connect(&self) -> std::io::Result<Secure> {
        connect(self.address, "localhost", self.world.app.authority.der()).await
    }

    /// Waits until a number of connections is open.
    async fn until_open(&self, count: usize) {
        let line = format!("claviger_connections {count}\n");
        let seen = async {
            while !self.world.app.metrics.render().contains(&line) {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(SOON, seen).await.expect("in time");
    }
}

/// Whether the other end has closed: no byte comes any more.
async fn over(stream: &mut Secure) -> bool {
    let mut byte = [0];
    let read = tokio::time::timeout(SOON, stream.read(&mut byte)).await.expect("in time");
    !matches!(read, Ok(1))
}

#[tokio::test]
async fn who_sends_a_byte_at_a_time_is_left() {
    let brief = Duration::from_secs(1);
    let open = Open::with(Bounds { idle: brief, request: brief, ..patient() }).await;
    let head = "POST /identity/token HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\n";
    for (what, at_once, slowly) in [("head", "", head), ("body", head, "x")] {
        let mut client = open.connect().await.expect("connects");
        // Where it is not taken, the other end has closed already.
        let _ = client.write_all(at_once.as_bytes()).await;
        let drips = async {
            for byte in slowly.bytes().cycle() {
                let sent = async {
                    client.write_all(&[byte]).await?;
                    client.flush().await
                };
                if sent.await.is_err() {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::select! {
            () = drips => {}
            () = open.until_open(0) => {}
        }
        open.until_open(0).await;
        assert!(over(&mut client).await, "{what}");
    }
}

#[tokio::test]
async fn who_does_not_read_is_left() {
    let request = Duration::from_secs(1);
    let open = Open::with(Bounds { request, idle: request, ..patient() }).await;
    let mut client = open.connect().await.expect("connects");
    // More than the buffers of both ends hold.
    let asked = "GET /openapi.json HTTP/1.1\r\nHost: x\r\n\r\n".repeat(100);
    let _ = client.write_all(asked.as_bytes()).await;
    let _ = client.flush().await;
    open.until_open(0).await;
}

#[tokio::test]
async fn one_address_has_so_many_connections_and_no_more() {
    let limits = Limits { of_address: 4, ..Bounds::default().room };
    let open = Open::with(Bounds { room: limits, ..patient() }).await;
    let asked = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n";
    let mut held = Vec::new();
    for _ in 0..4 {
        let mut client = open.connect().await.expect("connects");
        client.write_all(asked).await.expect("is taken");
        let mut answer = [0; 12];
        client.read_exact(&mut answer).await.expect("an answer");
        assert_eq!(&answer, b"HTTP/1.1 200");
        held.push(client);
    }
    for _ in 0..10 {
        // It is told apart from an agent only once it has shown no certificate.
        match open.connect().await {
            Ok(mut refused) => assert!(over(&mut refused).await),
            Err(refused) => assert_ne!(refused.kind(), std::io::ErrorKind::ConnectionRefused),
        }
    }
    open.until_open(4).await;
    assert!(open.world.app.metrics.render().contains("claviger_connections_refused_total 10\n"));
    // Room for one is there as soon as another has left.
    drop(held.pop());
    open.until_open(3).await;
    let mut client = open.connect().await.expect("connects");
    client.write_all(asked).await.expect("is taken");
    assert!(!over(&mut client).await);
}

#[tokio::test]
async fn who_never_says_who_he_is_is_left() {
    let limits = Limits { handshakes: 3, ..Bounds::default().room };
    let handshake = Duration::from_secs(2);
    let open = Open::with(Bounds { room: limits, handshake, ..patient() }).await;
    let mut held = Vec::new();
    for _ in 0..20 {
        held.push(TcpStream::connect(open.address).await.expect("connects"));
    }
    for mut silent in held {
        let mut rest = Vec::new();
        let ended = tokio::time::timeout(SOON, silent.read_to_end(&mut rest)).await;
        assert!(ended.is_ok() && rest.is_empty());
    }
    open.until_open(0).await;
    assert!(open.connect().await.is_ok());
}

/// A request that has begun is answered after the server was told to stop; streams end only then.
#[tokio::test]
async fn a_stop_waits_for_requests_and_then_ends_streams() {
    let open = Open::with(patient()).await;
    let mut client = open.connect().await.expect("connects");
    let mut idle = open.connect().await.expect("connects");
    let body = "grant_type=none";
    let head = format!(
        "POST /identity/token HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    client.write_all(head.as_bytes()).await.expect("is taken");
    let mut go_on = [0; 25];
    client.read_exact(&mut go_on).await.expect("an answer");
    assert_eq!(&go_on, b"HTTP/1.1 100 Continue\r\n\r\n");
    let Open { world, address, stop, mut serving } = open;
    let closing = world.app.hub.closing();
    stop.send(()).expect("serves");
    assert!(over(&mut idle).await, "a connection without a request ends");
    assert!(TcpStream::connect(address).await.is_err(), "nobody new comes in");
    let ready = world.app.blocking(App::ready).await;
    assert!(ready.is_err_and(|why| why.contains("stopping")));
    assert!(!*closing.borrow(), "streams last as long as there are requests");
    client.write_all(body.as_bytes()).await.expect("is taken");
    let mut answer = Vec::new();
    let read = tokio::time::timeout(SOON, client.read_to_end(&mut answer)).await;
    assert!(read.is_ok());
    assert!(answer.starts_with(b"HTTP/1.1 400"), "{}", String::from_utf8_lossy(&answer));
    let ended = tokio::time::timeout(SOON, serving.join_next()).await;
    assert!(matches!(ended, Ok(Some(Ok(())))));
    assert!(*closing.borrow());
}

/// The address on record of a request that came through a proxy, and of one that says so itself.
#[tokio::test]
async fn a_trusted_proxy_says_who_called() {
    for (proxies, want) in [(vec![], "127.0.0.1"), (vec!["127.0.0.0/8"], "198.51.100.7")] {
        let trusted_proxies = proxies.iter().filter_map(|text| Subnet::parse(text)).collect();
        let limits = Limits { of_address: 1, ..Bounds::default().room };
        let settings = Settings { trusted_proxies, ..Settings::default() };
        let open = Open::serving(settings, Bounds { room: limits, ..patient() }).await;
        let mut client = open.connect().await.expect("connects");
        let body = "grant_type=none";
        let asked = format!(
            "POST /identity/token HTTP/1.1\r\nHost: x\r\nX-Forwarded-For: 1.1.1.1\r\nX-Forwarded-For: 198.51.100.7\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        client.write_all(asked.as_bytes()).await.expect("is taken");
        assert!(!over(&mut client).await);
        let acts = open.world.acts();
        let act = acts.iter().find(|act| act.status == 400).expect("is on record");
        assert_eq!(act.address.expect("an address").to_string(), want);
        // All that come by a proxy have its address.
        let mut second = open.connect().await.expect("connects");
        let _ = second.write_all(asked.as_bytes()).await;
        assert_eq!(over(&mut second).await, proxies.is_empty());
    }
}

/// A clock that fails for good once it is told to.
struct Broken(std::sync::atomic::AtomicBool);

impl crate::app::Clock for Broken {
    fn now(&self) -> claviger_domain::id::UnixMs {
        claviger_domain::id::UnixMs(1_800_000_000_000)
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
    let config = crate::tls::config(&app).expect("TLS");
    let private = TcpListener::bind(("127.0.0.1", 0)).await.expect("listens");
    let listeners = Listeners { private, public: None, status: None };
    clock.0.store(true, std::sync::atomic::Ordering::SeqCst);
    let served = tokio::spawn(serve(app, config, listeners, std::future::pending()));
    let ended = tokio::time::timeout(SOON, served).await.expect("ends");
    assert!(ended.expect_err("not as if all were well").is_panic());
}
