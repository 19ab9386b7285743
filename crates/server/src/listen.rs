//! The accept loop: TLS 1.3 only, client certificates optional, everything bounded.

use crate::app::App;
use crate::first::StartError;
use crate::http::auth::Node;
use crate::http::network::Network;
use crate::pulse::{Over, Patience, Pulse};
use axum::{Extension, Router};
use claviger_crypto::digest::{hex, sha256};
use claviger_domain::id::UnixMs;
use claviger_store::{StoreError, meta};
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, TryAcquireError, watch};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tower::ServiceExt;
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

/// Connections at one time. Each costs some 50 KiB; an agent holds two or three.
pub const CONNECTIONS: usize = 4096;
/// Of these, as many as strangers may hold: whoever shows no node's certificate. The rest is kept
/// for agents, so that no crowd of strangers can keep a suspension from them.
const STRANGERS: usize = 3072;
/// A handshake takes two round trips.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// From the first byte of a request's head to its last, and between requests. Longer than 30 s:
/// that is what clients wait between two calls when Key Protect wants them to, and a connection
/// that is closed at that very moment fails the second one.
const HEAD_TIMEOUT: Duration = Duration::from_secs(45);
/// How long a stranger's request may take until its answer was taken. Bodies have 15 seconds and
/// answers take milliseconds, so only who does not read takes longer.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(60);
/// How long a stop waits for answers that are under way.
pub const DRAIN: Duration = Duration::from_secs(10);
/// Streams of one HTTP/2 connection.
const STREAMS: u32 = 128;
/// A server certificate with less life than this left is renewed, at start or while serving.
const RENEW: Duration = Duration::from_secs(30 * 86_400);
/// How often the certificate's life is looked at; short against [`RENEW`].
const LOOK_AT_CERTIFICATE: Duration = Duration::from_secs(86_400);

/// TLS of this server: its certificate, made or renewed if need be, and which clients' it takes.
/// Blocks.
///
/// # Errors
/// When the database does not answer or a certificate cannot be made.
pub fn tls(app: &App) -> Result<ServerConfig, StartError> {
    let mut names = vec!["localhost".to_owned(), "127.0.0.1".to_owned(), "::1".to_owned()];
    names.extend(app.settings.names.iter().cloned());
    let (certificate, key) = certificate(app, &names)?;
    let mut roots = RootCertStore::empty();
    roots.add(app.authority.der().clone())?;
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let clients = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone())
        .allow_unauthenticated()
        .build()
        .map_err(|e| rustls::Error::General(e.to_string()))?;
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_client_cert_verifier(clients)
        .with_single_cert(vec![certificate, app.authority.der().clone()], key)?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(config)
}

fn certificate(
    app: &App,
    names: &[String],
) -> Result<(CertificateDer<'static>, PrivateKeyDer<'static>), StartError> {
    const KEY: &str = "server-key";
    let now = app.clock.now();
    let names_text = names.join(",");
    let stored = app.store.read("server certificate", |tx| -> Result<_, StoreError> {
        let get = |name| meta::get(tx, name);
        Ok((get("server-certificate")?, get(KEY)?, get("server-names")?))
    })?;
    if let (Some(certificate), Some(sealed), Some(stored)) = stored
        && stored == names_text.as_bytes()
        && validity(&certificate).is_some_and(|(begin, end)| {
            // One that was made while the clock was ahead is good for nobody.
            begin <= now && end.since(now) > RENEW.as_millis() as u64
        })
    {
        let key = app
            .custodian
            .open_column(&["meta", KEY], &sealed)
            .map_err(|_| StartError::MasterKey)?;
        let key = PrivateKeyDer::Pkcs8(key.expose().to_vec().into());
        return Ok((certificate.into(), key));
    }
    let (certificate, key) = app.authority.server(names, now)?;
    let sealed = app.custodian.seal_column(&["meta", KEY], &key);
    app.store.tx("server certificate", |tx| -> Result<(), StoreError> {
        meta::put(tx, "server-certificate", &certificate)?;
        meta::put(tx, KEY, &sealed)?;
        meta::put(tx, "server-names", names_text.as_bytes())
    })?;
    Ok((certificate, PrivateKeyDer::Pkcs8(key.into())))
}

/// From when on, and until when, a certificate is good.
fn validity(der: &[u8]) -> Option<(UnixMs, UnixMs)> {
    let (_, certificate) = X509Certificate::from_der(der).ok()?;
    let validity = certificate.validity();
    let at = |time: x509_parser::time::ASN1Time| UnixMs(time.timestamp() * 1000);
    Some((at(validity.not_before), at(validity.not_after)))
}

/// Where the server listens. Both have one certificate and answer the same paths; a request
/// carries by which it came.
pub struct Listeners {
    /// The private one.
    pub private: TcpListener,
    /// The public one, if there is one.
    pub public: Option<TcpListener>,
    /// For probes and Prometheus, in plain HTTP ([`crate::status`]); none if nobody asks.
    pub status: Option<TcpListener>,
}

impl Listeners {
    /// The next connection of either.
    async fn accept(&self) -> std::io::Result<(TcpStream, SocketAddr, Network)> {
        let public = async {
            match &self.public {
                Some(public) => public.accept().await,
                None => std::future::pending().await,
            }
        };
        let (network, accepted) = tokio::select! {
            accepted = self.private.accept() => (Network::Private, accepted),
            accepted = public => (Network::Public, accepted),
        };
        accepted.map(|(stream, peer)| (stream, peer, network))
    }
}

/// Serves until `stop` resolves, then lets what is under way end, for at most [`DRAIN`].
///
/// # Panics
/// After that, when one of the tasks that go by the clock did.
pub async fn serve(
    app: Arc<App>,
    tls: ServerConfig,
    mut listeners: Listeners,
    stop: impl Future<Output = ()>,
) {
    let private = crate::http::router(app.clone());
    let public = private.clone().layer(Extension(Network::Public));
    let private = private.layer(Extension(Network::Private));
    let mut acceptor = TlsAcceptor::from(Arc::new(tls));
    let mut daily = tokio::time::interval(LOOK_AT_CERTIFICATE);
    let room = Arc::new(Semaphore::new(CONNECTIONS));
    let strangers = Arc::new(Semaphore::new(STRANGERS));
    let (closing, closed) = watch::channel(false);
    let mut connections = JoinSet::new();
    let mut refused = false;
    let mut fell = None;
    let mut stop = std::pin::pin!(stop);
    // Dropped, and so ended, with the set when this returns.
    let mut clockwork = JoinSet::new();
    clockwork.spawn(crate::keys::clock::watch(app.clone()));
    clockwork.spawn(crate::audit::retention::watch(app.clone()));
    clockwork.spawn(crate::refusals::watch(app.clone()));
    if let Some(status) = listeners.status.take() {
        clockwork.spawn(crate::status::serve(app.clone(), status));
    }
    loop {
        let permit = room.clone().acquire_owned();
        let accepted = tokio::select! {
            () = &mut stop => break,
            // None ends by itself, so one has panicked; a server without it is none.
            Some(Err(e)) = clockwork.join_next() => {
                tracing::error!("a task of the server panicked; stopping");
                fell = Some(e);
                break;
            }
            _ = daily.tick() => {
                // Connections that are open keep the certificate they began with.
                match app.blocking(self::tls).await {
                    Ok(tls) => acceptor = TlsAcceptor::from(Arc::new(tls)),
                    Err(e) => tracing::error!(error = %e, "the server's certificate cannot be renewed; trying again tomorrow"),
                }
                continue;
            }
            accepted = async { (permit.await, listeners.accept().await) } => accepted,
        };
        // Ended connections are forgotten here, so the set does not grow.
        while connections.try_join_next().is_some() {}
        match accepted {
            (Ok(permit), Ok((stream, peer, network))) => {
                refused = false;
                let router = match network {
                    Network::Private => private.clone(),
                    Network::Public => public.clone(),
                };
                let (acceptor, closed) = (acceptor.clone(), closed.clone());
                let (strangers, open) = (strangers.clone(), app.metrics.connected());
                let app = app.clone();
                connections.spawn(async move {
                    let _open = open;
                    if let Err(e) = connection(stream, acceptor, router, strangers, closed).await {
                        if e.is::<TryAcquireError>() {
                            app.metrics.refused();
                        }
                        tracing::debug!(%peer, error = %e, "connection");
                    }
                    drop(permit);
                });
            }
            (_, Err(e)) => {
                // Out of file descriptors, mostly: waiting is all that helps. One line, not ten
                // each second.
                if !std::mem::replace(&mut refused, true) {
                    tracing::warn!(error = %e, "cannot accept connections");
                }
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            (Err(_), _) => break,
        }
    }
    drop(listeners);
    closing.send_replace(true);
    app.hub.close();
    let drained = async { while connections.join_next().await.is_some() {} };
    if tokio::time::timeout(DRAIN, drained).await.is_err() {
        tracing::warn!("some answers were still under way and are cut off");
    }
    if let Some(panic) = fell.and_then(|e| e.try_into_panic().ok()) {
        std::panic::resume_unwind(panic);
    }
}

type Failed = Box<dyn std::error::Error + Send + Sync>;

async fn connection(
    stream: TcpStream,
    acceptor: TlsAcceptor,
    router: Router,
    strangers: Arc<Semaphore>,
    closed: watch::Receiver<bool>,
) -> Result<(), Failed> {
    stream.set_nodelay(true)?;
    let peer = stream.peer_addr()?;
    let stream = tokio::time::timeout(HANDSHAKE_TIMEOUT, acceptor.accept(stream)).await??;
    let (_, session) = stream.get_ref();
    let node = session.peer_certificates().and_then(|chain| node(chain.first()?));
    let _room = match node {
        Some(_) => None,
        None => Some(strangers.try_acquire_owned()?),
    };
    let request = node.is_none().then_some(REQUEST_TIMEOUT);
    let patience = Patience { idle: HEAD_TIMEOUT, request };
    talk(stream, router, node, peer, patience, closed).await
}

/// Answers what comes over a connection until it is over.
async fn talk<S>(
    stream: S,
    router: Router,
    node: Option<Node>,
    peer: SocketAddr,
    patience: Patience,
    mut closed: watch::Receiver<bool>,
) -> Result<(), Failed>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let pulse = Pulse::new();
    let beats = pulse.clone();
    let service = hyper::service::service_fn(move |request: hyper::Request<Incoming>| {
        let (head, body) = request.into_parts();
        let (body, asked) = beats.lend(body);
        let mut request = hyper::Request::from_parts(head, body);
        if let Some(node) = &node {
            request.extensions_mut().insert(node.clone());
        }
        request.extensions_mut().insert(Peer(peer));
        let answer = router.clone().oneshot(request);
        async move { Ok::<_, Infallible>(answer.await?.map(|body| asked.answered(body))) }
    });
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(HEAD_TIMEOUT);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(STREAMS)
        .keep_alive_interval(HEAD_TIMEOUT)
        .keep_alive_timeout(HANDSHAKE_TIMEOUT);
    let served = builder.serve_connection(TokioIo::new(stream), service);
    let mut served = std::pin::pin!(served);
    tokio::select! {
        done = served.as_mut() => return done,
        over = pulse.over(patience) => match over {
            Over::Silent => return Err("nothing was asked".into()),
            Over::Stalled => return Err("a request took too long".into()),
            Over::Idle => {
                served.as_mut().graceful_shutdown();
                return tokio::time::timeout(HANDSHAKE_TIMEOUT, served).await?;
            }
        },
        () = async { let _ = closed.wait_for(|closed| *closed).await; } => {}
    }
    served.as_mut().graceful_shutdown();
    served.await
}

/// Where a request came from.
#[derive(Debug, Clone, Copy)]
pub struct Peer(pub SocketAddr);

/// The node that a verified client certificate names, by its one subject alternative name
/// `URI:claviger://cluster/<cluster id>/agent/<name>`.
pub fn node(der: &CertificateDer<'_>) -> Option<Node> {
    let (_, certificate) = X509Certificate::from_der(der).ok()?;
    let names = certificate.subject_alternative_name().ok()??;
    let uri = names.value.general_names.iter().find_map(|name| match name {
        GeneralName::URI(uri) => Some(*uri),
        _ => None,
    })?;
    let (cluster, agent) = uri.strip_prefix("claviger://cluster/")?.split_once("/agent/")?;
    Some(Node {
        cluster: cluster.parse().ok()?,
        agent: agent.parse().ok()?,
        fingerprint: hex(&sha256(der)),
        not_after: validity(der)?.1,
    })
}

#[cfg(test)]
mod tests;
