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
    let (ours, theirs) = tokio::io::duplex(1 << 20);
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
