//! The status listener: plain HTTP for probes and Prometheus, apart from everything that has
//! tokens. It tells nothing secret and takes nothing in.

use crate::app::App;
use crate::metrics::MEDIA_TYPE;
use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;

/// Connections at once: some probes and a scraper.
const CONNECTIONS: usize = 32;
/// For a request's head, and for the whole of a connection.
const HEAD: Duration = Duration::from_secs(5);
const CONNECTION: Duration = Duration::from_secs(60);

pub(crate) fn router(app: Arc<App>) -> Router {
    Router::new()
        .route("/healthz", get(health))
        .route("/readyz", get(ready))
        .route("/metrics", get(metrics))
        .with_state(app)
}

/// Whether the process works at all; a supervisor restarts it otherwise.
pub(crate) async fn health(app: State<Arc<App>>) -> Response {
    said(app.blocking(|app| app.alive().map_err(|e| e.to_string())).await)
}

/// Whether calls should be sent here: the database answers, acts can be put on record, and it is
/// not about to stop. A certificate that cannot be exchanged is worth a line.
async fn ready(app: State<Arc<App>>) -> Response {
    let answer = app.blocking(|app| {
        app.ready().map(|()| app.certificates.trouble(app.clock.now()).unwrap_or_default())
    });
    match answer.await {
        // It serves all the same.
        Ok(trouble) if !trouble.is_empty() => format!("ok\nwarning: {trouble}\n").into_response(),
        answer => said(answer.map(drop)),
    }
}

fn said(good: Result<(), String>) -> Response {
    match good {
        Ok(()) => "ok\n".into_response(),
        Err(why) => (StatusCode::SERVICE_UNAVAILABLE, format!("{why}\n")).into_response(),
    }
}

async fn metrics(app: State<Arc<App>>) -> Response {
    app.metrics.audit(&app.recorder.health());
    ([(header::CONTENT_TYPE, MEDIA_TYPE)], app.metrics.render()).into_response()
}

/// Serves until it is dropped.
pub async fn serve(app: Arc<App>, listener: TcpListener) {
    let router = router(app);
    let room = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let Ok(permit) = room.clone().acquire_owned().await else { return };
        let Ok((stream, _)) = listener.accept().await else {
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        let service = TowerToHyperService::new(router.clone());
        tokio::spawn(async move {
            let served = http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HEAD)
                .serve_connection::<_, _>(TokioIo::new(stream), with_body(service));
            // However it ends, the next probe opens another.
            let _ = tokio::time::timeout(CONNECTION, served).await;
            drop(permit);
        });
    }
}

/// The router as hyper calls it.
fn with_body(
    service: TowerToHyperService<Router>,
) -> impl hyper::service::Service<
    hyper::Request<Incoming>,
    Response = Response,
    Error = std::convert::Infallible,
    Future: Send,
> {
    service
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::app::Settings;
    use crate::testing::World;
    use axum::body::{Body, to_bytes};
    use axum::http::Request;
    use tower::ServiceExt;

    async fn asked(router: &Router, path: &str) -> (u16, String) {
        let request = Request::get(path).body(Body::empty()).expect("a request");
        let answer = router.clone().oneshot(request).await.expect("an answer");
        let status = answer.status().as_u16();
        let body = to_bytes(answer.into_body(), 1 << 20).await.expect("a body");
        (status, String::from_utf8(body.to_vec()).expect("text"))
    }

    #[tokio::test]
    async fn a_server_that_stops_is_not_ready_but_healthy() {
        let world = World::with(Settings::default());
        let router = router(world.app.clone());
        assert_eq!(asked(&router, "/readyz").await, (200, "ok\n".to_owned()));
        world.app.hub.close();
        let (status, why) = asked(&router, "/readyz").await;
        assert_eq!(status, 503);
        assert!(why.contains("stopping"), "{why}");
        assert_eq!(asked(&router, "/healthz").await.0, 200);
        assert_eq!(asked(&router, "/api/v2/keys").await.0, 404, "nothing else is here");
    }

    #[tokio::test]
    async fn what_was_called_is_counted() {
        let world = World::with(Settings::default());
        let main = crate::http::router(world.app.clone());
        assert_eq!(asked(&main, "/api/v2/keys/x/metadata").await.0, 401);
        let (status, text) = asked(&router(world.app.clone()), "/metrics").await;
        assert_eq!(status, 200);
        let line = r#"claviger_requests_total{method="GET",route="/api/v2/keys/{id}/metadata",status="401"} 1"#;
        assert!(text.contains(line), "{text}");
    }
}
