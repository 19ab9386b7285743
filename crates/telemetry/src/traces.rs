//! Traces: which request took how long in which part, sent to a collector by OTLP (HTTP, protobuf).
//!
//! Off unless an endpoint is given. Whoever ends a span never waits: it goes into a bounded queue,
//! or is dropped and counted. Only spans of the target [`TARGET`] are sent, and no log lines: what
//! they say is chosen where they are made, and is never a key, a token or a body.

use opentelemetry::propagation::TextMapPropagator as _;
use opentelemetry::trace::{TraceContextExt as _, TracerProvider as _};
use opentelemetry_http::HeaderExtractor;
use opentelemetry_otlp::{Protocol, WithExportConfig as _, WithHttpConfig as _};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::{
    SdkTracerProvider, Span, SpanData, SpanExporter as _, SpanProcessor,
};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::time::{Duration, Instant};
use thiserror::Error;
use tracing::level_filters::LevelFilter;
use tracing::{Metadata, Subscriber};
use tracing_opentelemetry::OpenTelemetrySpanExt as _;
use tracing_subscriber::Layer;
use tracing_subscriber::filter::FilterFn;
use tracing_subscriber::registry::LookupSpan;

/// The target of spans that are sent. They have the level `DEBUG`, which costs nothing while traces
/// are off.
pub const TARGET: &str = "claviger::trace";

/// Spans that wait for the collector: some seconds of a busy server, about a KiB each.
const QUEUE: usize = 4096;
/// Spans that are sent at once.
const BATCH: usize = 512;
/// How long a span waits for others to go with it.
const GATHER: Duration = Duration::from_secs(1);
/// How long the collector may take; what waits meanwhile is in the queue.
const EXPORT: Duration = Duration::from_secs(5);
/// How long a process that ends waits for its last spans to leave.
const END: Duration = Duration::from_secs(3);
/// Largest file of certificates.
const CA_MAX: u64 = 1 << 20;

static SENT: AtomicU64 = AtomicU64::new(0);
static DROPPED: AtomicU64 = AtomicU64::new(0);

/// Spans of this process since its start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Counts {
    /// Taken by the collector.
    pub sent: u64,
    /// Lost: the queue was full, or the collector did not take them.
    pub dropped: u64,
}

/// How many spans were sent and dropped.
pub fn counts() -> Counts {
    Counts { sent: SENT.load(Ordering::Relaxed), dropped: DROPPED.load(Ordering::Relaxed) }
}

/// Why traces cannot be sent.
#[derive(Debug, Error)]
pub enum TracesError {
    /// The endpoint is none.
    #[error("{0:?} is no endpoint for traces: expected http://HOST:PORT or https://HOST:PORT")]
    Endpoint(String),
    /// The file of the collector's CA.
    #[error("OTEL_EXPORTER_OTLP_CERTIFICATE, {file}: {why}")]
    Certificate {
        /// Its path.
        file: String,
        /// What is wrong.
        why: String,
    },
    /// Anything else, which is a fault of ours or of the system.
    #[error("traces cannot be sent: {0}")]
    Exporter(String),
}

/// Sends traces while it lives.
#[derive(Debug)]
pub struct Traces {
    queue: SyncSender<Item>,
    provider: SdkTracerProvider,
}

enum Item {
    Span(Box<SpanData>),
    /// All that came before has to leave; answered by dropping the sender.
    End(SyncSender<()>),
}

impl Traces {
    /// Traces of `service` for the collector at `endpoint`, to which `/v1/traces` is added. The
    /// variables `OTEL_EXPORTER_OTLP_HEADERS` (what the collector wants to be told, such as a token)
    /// and `OTEL_EXPORTER_OTLP_CERTIFICATE` (its CA, instead of the system's) count, too.
    ///
    /// # Errors
    /// When the endpoint is no URL, or the CA cannot be read. That the collector does not answer is
    /// none: its spans are dropped until it does.
    pub(crate) fn start(service: &'static str, endpoint: &str) -> Result<Traces, TracesError> {
        let url = traces_url(endpoint)?;
        let failed = |e: &dyn std::fmt::Display| TracesError::Exporter(e.to_string());
        let mut client =
            reqwest::Client::builder().timeout(EXPORT).redirect(reqwest::redirect::Policy::none());
        if let Some(file) = std::env::var_os("OTEL_EXPORTER_OTLP_CERTIFICATE") {
            client = client.tls_certs_only(authorities(&file.to_string_lossy())?);
        }
        if rustls::crypto::CryptoProvider::get_default().is_none() {
            // Fails only if another thread was faster, with the same.
            let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        }
        let mut exporter = opentelemetry_otlp::SpanExporter::builder()
            .with_http()
            .with_http_client(client.build().map_err(|e| failed(&e))?)
            .with_protocol(Protocol::HttpBinary)
            .with_endpoint(url)
            .with_timeout(EXPORT)
            .build()
            .map_err(|e| failed(&e))?;
        let resource = Resource::builder().with_service_name(service).build();
        exporter.set_resource(&resource);
        let (queue, items) = sync_channel(QUEUE);
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|e| failed(&e))?;
        let send = move || {
            send(&items, |batch| {
                let exported = async { tokio::time::timeout(EXPORT, exporter.export(batch)).await };
                match runtime.block_on(exported) {
                    Ok(Ok(())) => Ok(()),
                    Ok(Err(e)) => Err(e.to_string()),
                    Err(_) => Err("the collector did not answer in time".to_owned()),
                }
            })
        };
        let thread = std::thread::Builder::new().name("traces".to_owned());
        thread.spawn(send).map_err(|e| failed(&e))?;
        let provider = SdkTracerProvider::builder()
            .with_resource(resource)
            .with_span_processor(Queue(queue.clone()))
            .build();
        Ok(Traces { queue, provider })
    }

    /// The layer that makes spans of [`TARGET`] into traces.
    pub(crate) fn layer<S>(&self) -> impl Layer<S> + use<S>
    where
        S: Subscriber + for<'s> LookupSpan<'s> + Send + Sync,
    {
        let ours = |metadata: &Metadata<'_>| metadata.is_span() && metadata.target() == TARGET;
        tracing_opentelemetry::layer()
            .with_tracer(self.provider.tracer("claviger"))
            .with_location(false)
            .with_threads(false)
            .with_target(false)
            .with_tracked_inactivity(false)
            .with_filter(FilterFn::new(ours).with_max_level_hint(LevelFilter::DEBUG))
    }
}

impl Drop for Traces {
    /// Waits, for some seconds at most, until the last spans have left.
    fn drop(&mut self) {
        let (ended, done) = sync_channel(0);
        let deadline = Instant::now() + END;
        let mut item = Item::End(ended);
        while Instant::now() < deadline {
            match self.queue.try_send(item) {
                Ok(()) => {
                    let _ = done.recv_timeout(deadline.saturating_duration_since(Instant::now()));
                    return;
                }
                Err(TrySendError::Full(back)) => item = back,
                Err(TrySendError::Disconnected(_)) => return,
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

/// Whether a text can be the endpoint of [`crate::init`].
///
/// # Errors
/// When it is no URL of HTTP, or has more than that.
pub fn check_endpoint(endpoint: &str) -> Result<(), TracesError> {
    traces_url(endpoint).map(drop)
}

/// `/v1/traces` of an endpoint.
fn traces_url(endpoint: &str) -> Result<String, TracesError> {
    let wrong = || TracesError::Endpoint(endpoint.to_owned());
    let url = reqwest::Url::parse(endpoint.trim()).map_err(|_| wrong())?;
    let plain = url.query().is_none() && url.fragment().is_none() && url.username().is_empty();
    if !matches!(url.scheme(), "http" | "https") || url.host_str().is_none() || !plain {
        return Err(wrong());
    }
    Ok(format!("{}/v1/traces", url.as_str().trim_end_matches('/')))
}

fn authorities(file: &str) -> Result<Vec<reqwest::Certificate>, TracesError> {
    use std::io::Read as _;
    let wrong = |why: String| TracesError::Certificate { file: file.to_owned(), why };
    let mut pem = Vec::new();
    std::fs::File::open(file)
        .and_then(|opened| opened.take(CA_MAX).read_to_end(&mut pem))
        .map_err(|e| wrong(e.to_string()))?;
    match reqwest::Certificate::from_pem_bundle(&pem) {
        Ok(found) if !found.is_empty() => Ok(found),
        _ => Err(wrong("holds no certificate in PEM".to_owned())),
    }
}

/// Where spans go when they end.
#[derive(Debug)]
struct Queue(SyncSender<Item>);

impl SpanProcessor for Queue {
    fn on_start(&self, _: &mut Span, _: &opentelemetry::Context) {}

    fn on_end(&self, span: SpanData) {
        if span.span_context.is_sampled() && self.0.try_send(Item::Span(Box::new(span))).is_err() {
            DROPPED.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn force_flush(&self) -> OTelSdkResult {
        Ok(())
    }

    fn shutdown_with_timeout(&self, _: Duration) -> OTelSdkResult {
        Ok(())
    }
}

/// Sends what comes, in batches, until nobody can send any more.
fn send(items: &Receiver<Item>, mut export: impl FnMut(Vec<SpanData>) -> Result<(), String>) {
    let mut failing = false;
    while let Ok(first) = items.recv() {
        let mut batch = Vec::new();
        let mut ended = None;
        let until = Instant::now() + GATHER;
        let mut next = Some(first);
        while let Some(item) = next.take() {
            match item {
                Item::Span(span) => batch.push(*span),
                Item::End(done) => ended = Some(done),
            }
            if ended.is_none() && batch.len() < BATCH {
                let left = until.saturating_duration_since(Instant::now());
                // Out of time, or nobody is left to send.
                next = items.recv_timeout(left).ok();
            }
        }
        let spans = batch.len() as u64;
        if spans > 0 {
            match export(batch) {
                Ok(()) => {
                    SENT.fetch_add(spans, Ordering::Relaxed);
                    failing = false;
                }
                Err(error) => {
                    DROPPED.fetch_add(spans, Ordering::Relaxed);
                    // Once, not each second.
                    if !std::mem::replace(&mut failing, true) {
                        tracing::warn!(error, "traces are dropped until the collector takes them");
                    }
                }
            }
        }
        drop(ended);
    }
}

/// Makes `span` a part of the trace that a caller names in his header `traceparent` (W3C Trace
/// Context), if he does. To be called before the span is entered.
pub fn continue_from(span: &tracing::Span, headers: &http::HeaderMap) {
    if span.is_disabled() {
        return;
    }
    let caller = TraceContextPropagator::new().extract(&HeaderExtractor(headers));
    if caller.span().span_context().is_valid() {
        // Fails only while traces are off.
        let _ = span.set_parent(caller);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use opentelemetry::trace::{SpanId, TraceId};
    use tracing_subscriber::layer::SubscriberExt as _;

    #[test]
    fn an_endpoint_is_a_base_url() {
        for (endpoint, url) in [
            ("http://localhost:4318", Some("http://localhost:4318/v1/traces")),
            ("https://c.example/otlp/", Some("https://c.example/otlp/v1/traces")),
            ("localhost:4318", None),
            ("grpc://localhost:4317", None),
            ("http://u@c.example", None),
            ("http://c.example?x=1", None),
            ("", None),
        ] {
            assert_eq!(traces_url(endpoint).ok().as_deref(), url, "{endpoint}");
        }
    }

    /// Spans that end in `work`, without a collector.
    fn spans(queue: usize, work: impl FnOnce()) -> Vec<SpanData> {
        let (queue, items) = sync_channel(queue);
        let provider =
            SdkTracerProvider::builder().with_span_processor(Queue(queue.clone())).build();
        let traces = Traces { queue, provider };
        let subscriber = tracing_subscriber::registry().with(traces.layer());
        tracing::subscriber::with_default(subscriber, work);
        let found = items.try_iter().filter_map(|item| match item {
            Item::Span(span) => Some(*span),
            Item::End(_) => None,
        });
        let found = found.collect();
        // Nobody answers the end.
        drop(items);
        found
    }

    #[test]
    fn a_caller_names_the_trace_and_decides_whether_it_is_kept() {
        let trace = "0af7651916cd43dd8448eb211c80319c";
        let begin = |traceparent: &str| {
            let mut headers = http::HeaderMap::new();
            headers.insert("traceparent", traceparent.parse().unwrap());
            let span = tracing::debug_span!(target: TARGET, "request");
            continue_from(&span, &headers);
            span.in_scope(|| drop(tracing::debug_span!(target: TARGET, "transaction")));
        };
        let found = spans(9, || begin(&format!("00-{trace}-b7ad6b7169203331-01")));
        let trace = TraceId::from_hex(trace).unwrap();
        assert_eq!(found.len(), 2);
        assert!(found.iter().all(|span| span.span_context.trace_id() == trace));
        assert_eq!(found[1].parent_span_id, SpanId::from_hex("b7ad6b7169203331").unwrap());
        assert_eq!(found[0].parent_span_id, found[1].span_context.span_id());
        let unsampled = format!("00-{trace}-b7ad6b7169203331-00");
        assert_eq!(spans(9, || begin(&unsampled)).len(), 0);
        for wrong in ["rubbish", "00-00000000000000000000000000000000-b7ad6b7169203331-01"] {
            let found = spans(9, || begin(wrong));
            assert!(found.iter().all(|span| span.span_context.trace_id() != trace), "{wrong}");
            assert_eq!(found.len(), 2);
        }
    }

    #[test]
    fn what_is_not_of_the_target_is_not_sent_and_what_finds_no_room_is_counted() {
        let before = counts().dropped;
        let found = spans(1, || {
            drop(tracing::error_span!("of a library"));
            tracing::error!("a line");
            for _ in 0..5 {
                drop(tracing::debug_span!(target: TARGET, "request"));
            }
        });
        assert_eq!(found.len(), 1);
        assert!(found[0].events.is_empty());
        assert!(counts().dropped - before >= 4);
    }
}
