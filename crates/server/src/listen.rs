//! The accept loop: TLS 1.3 only, client certificates optional, everything bounded.

mod room;

use self::room::{Full, Limits, Room};
use crate::app::App;
use crate::http::auth::Node;
use crate::http::network::{Network, Subnet, client, trusted};
use crate::pulse::{Over, Patience, Pulse};
use crate::tls::not_after;
use axum::{Extension, Router};
use claviger_crypto::digest::{hex, sha256};
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use rustls::ServerConfig;
use rustls_pki_types::CertificateDer;
use std::convert::Infallible;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tower::ServiceExt;
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

/// Connections at one time. Each costs some 50 KiB; an agent holds two or three.
pub const CONNECTIONS: usize = 4096;
/// Of these, as many as strangers may hold: whoever shows no node's certificate. The rest is kept
/// for agents, so that no crowd of strangers can keep a suspension from them.
const STRANGERS: usize = 3072;
/// Of one address that shows no node's certificate, which may be a proxy's or a whole network's.
const OF_ADDRESS: usize = 512;
/// Of one address, connections that have not said yet who they are.
const HANDSHAKES: usize = 128;
/// Of one agent: it needs two or three, and its successor the same; what a broken network leaves
/// behind counts until a ping is not answered.
const OF_AGENT: usize = 64;
/// A handshake takes two round trips.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// From the first byte of a request's head to its last, and between requests. Longer than 30 s:
/// that is what clients wait between two calls when Key Protect wants them to, and a connection
/// that is closed at that very moment fails the second one.
const HEAD_TIMEOUT: Duration = Duration::from_secs(45);
/// How long a stranger's request may take until its answer was taken. Bodies have 15 seconds and
/// answers take milliseconds, so only who does not read takes longer.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(60);
/// How long a stop waits for all connections to end.
pub const DRAIN: Duration = Duration::from_secs(10);
/// Of that, how long streams stay open while other requests are still to be answered.
const DRAIN_REQUESTS: Duration = Duration::from_secs(8);
/// Streams of one HTTP/2 connection.
const STREAMS: u32 = 128;

/// What connections may take.
#[derive(Debug, Clone, Copy)]
struct Bounds {
    handshake: Duration,
    /// Without a request under way; for a request's head, too.
    idle: Duration,
    /// For a stranger's request, until its answer was taken.
    request: Duration,
    room: Limits,
}

impl Default for Bounds {
    fn default() -> Self {
        let (strangers, of_address) = (STRANGERS, OF_ADDRESS);
        let (handshakes, of_agent) = (HANDSHAKES, OF_AGENT);
        Self {
            handshake: HANDSHAKE_TIMEOUT,
            idle: HEAD_TIMEOUT,
            request: REQUEST_TIMEOUT,
            room: Limits { strangers, of_address, handshakes, of_agent },
        }
    }
}

/// Where the server listens. Both have the same certificates and answer the same paths; a request
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
    listeners: Listeners,
    stop: impl Future<Output = ()>,
) {
    serve_within(app, tls, listeners, Bounds::default(), stop).await;
}

async fn serve_within(
    app: Arc<App>,
    tls: ServerConfig,
    mut listeners: Listeners,
    bounds: Bounds,
    stop: impl Future<Output = ()>,
) {
    let private = crate::http::router(app.clone());
    let public = private.clone().layer(Extension(Network::Public));
    let private = private.layer(Extension(Network::Private));
    let acceptor = TlsAcceptor::from(Arc::new(tls));
    let all = Arc::new(Semaphore::new(CONNECTIONS));
    let room = Room::new(bounds.room);
    let proxies: Arc<[Subnet]> = app.settings.trusted_proxies.clone().into();
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
    clockwork.spawn(crate::tls::watch(app.clone()));
    if let Some(status) = listeners.status.take() {
        clockwork.spawn(crate::status::serve(app.clone(), status));
    }
    loop {
        let permit = all.clone().acquire_owned();
        let accepted = tokio::select! {
            () = &mut stop => break,
            // None ends by itself, so one has panicked; a server without it is none.
            Some(Err(e)) = clockwork.join_next() => {
                tracing::error!("a task of the server panicked; stopping");
                fell = Some(e);
                break;
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
                let (room, open) = (room.clone(), app.metrics.connected());
                let proxies = proxies.clone();
                let app = app.clone();
                connections.spawn(async move {
                    let _open = open;
                    let guest = Guest { peer, proxies, room, bounds, closed };
                    if let Err(e) = guest.connection(stream, acceptor, router).await {
                        if e.is::<Full>() {
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
    // First it is said, to whoever asks the status listener, which stays to the end; then nobody
    // new comes in; then what is under way is answered; streams, which never end, are last.
    app.hub.stop();
    drop(listeners);
    closing.send_replace(true);
    let drained = async {
        let answered = tokio::time::timeout(DRAIN_REQUESTS, app.hub.answered()).await;
        if answered.is_err() {
            tracing::warn!("some requests take long to be answered");
        }
        app.hub.close();
        while connections.join_next().await.is_some() {}
    };
    if tokio::time::timeout(DRAIN, drained).await.is_err() {
        tracing::warn!("some answers were still under way and are cut off");
    }
    if let Some(panic) = fell.and_then(|e| e.try_into_panic().ok()) {
        std::panic::resume_unwind(panic);
    }
}

type Failed = Box<dyn std::error::Error + Send + Sync>;

/// Whoever connected, and what he may take.
struct Guest {
    peer: SocketAddr,
    /// Who is believed who called him.
    proxies: Arc<[Subnet]>,
    room: Arc<Room>,
    bounds: Bounds,
    closed: watch::Receiver<bool>,
}

impl Guest {
    async fn connection(
        self,
        stream: TcpStream,
        acceptor: TlsAcceptor,
        router: Router,
    ) -> Result<(), Failed> {
        let address = self.peer.ip();
        stream.set_nodelay(true)?;
        // Everybody comes from the address of a proxy.
        let proxy = trusted(address, &self.proxies);
        let shaking = (!proxy).then(|| self.room.handshake(address)).transpose()?;
        let accepted = tokio::time::timeout(self.bounds.handshake, acceptor.accept(stream));
        let stream = accepted.await??;
        drop(shaking);
        let (_, session) = stream.get_ref();
        let node = session.peer_certificates().and_then(|chain| node(chain.first()?));
        let _place = match &node {
            Some(node) => self.room.agent(node)?,
            None => self.room.stranger((!proxy).then_some(address))?,
        };
        self.talk(stream, router, node).await
    }

    /// Answers what comes over a connection until it is over.
    async fn talk<S>(mut self, stream: S, router: Router, node: Option<Node>) -> Result<(), Failed>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let Guest { peer, bounds, .. } = self;
        let proxies = self.proxies.clone();
        // Agents have streams that last.
        let request = node.is_none().then_some(bounds.request);
        let patience = Patience { idle: bounds.idle, request };
        let pulse = Pulse::new();
        let beats = pulse.clone();
        let service = hyper::service::service_fn(move |request: hyper::Request<Incoming>| {
            let (head, body) = request.into_parts();
            let (body, asked) = beats.lend(body);
            let mut request = hyper::Request::from_parts(head, body);
            if let Some(node) = &node {
                request.extensions_mut().insert(node.clone());
            }
            let address = client(peer.ip(), request.headers(), &proxies);
            request.extensions_mut().insert(Peer(address));
            let answer = router.clone().oneshot(request);
            async move { Ok::<_, Infallible>(answer.await?.map(|body| asked.answered(body))) }
        });
        let mut builder = auto::Builder::new(TokioExecutor::new());
        builder.http1().timer(TokioTimer::new()).header_read_timeout(bounds.idle);
        builder
            .http2()
            .timer(TokioTimer::new())
            .max_concurrent_streams(STREAMS)
            .keep_alive_interval(bounds.idle)
            .keep_alive_timeout(bounds.handshake);
        let served = builder.serve_connection(TokioIo::new(stream), service);
        let mut served = std::pin::pin!(served);
        tokio::select! {
            done = served.as_mut() => return done,
            over = pulse.over(patience) => match over {
                Over::Silent => return Err("nothing was asked".into()),
                Over::Stalled => return Err("a request took too long".into()),
                Over::Idle => {
                    served.as_mut().graceful_shutdown();
                    return tokio::time::timeout(bounds.handshake, served).await?;
                }
            },
            () = async { let _ = self.closed.wait_for(|closed| *closed).await; } => {}
        }
        served.as_mut().graceful_shutdown();
        served.await
    }
}

/// Where a request came from: the other end of its socket or, behind a trusted proxy, of the
/// proxy's.
#[derive(Debug, Clone, Copy)]
pub struct Peer(pub IpAddr);

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
        not_after: not_after(der)?,
    })
}

#[cfg(test)]
mod tests;
