//! What the server counts, for Prometheus.
//!
//! Labels have few values: routes as they are written in the router, never ids of keys or names of
//! callers.

use crate::tls::Which;
use claviger_audit::Health;
use claviger_domain::id::UnixMs;
use claviger_telemetry::traces::Counts;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric as _, text};
use prometheus_client::metrics::counter::{ConstCounter, Counter};
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};
use std::time::Duration;

/// Upper ends of the buckets of durations, in seconds: a wrap takes about a millisecond, a list
/// some hundred.
const BUCKETS: [f64; 10] = [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 10.0];

/// Media type of [`Metrics::render`].
pub(crate) const MEDIA_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Request {
    method: &'static str,
    /// As in the router; an action of keys by its name.
    route: String,
    status: u16,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Route {
    route: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Kind {
    kind: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Certificate {
    certificate: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Whom {
    whom: &'static str,
}

type Histograms = Family<Route, Histogram, fn() -> Histogram>;

/// The server's counters. Cheap to count on, from any thread.
pub struct Metrics {
    registry: Registry,
    requests: Family<Request, Counter>,
    durations: Histograms,
    events: Family<Kind, Counter>,
    connections: Gauge,
    refused: Counter,
    limited: Family<Kind, Counter>,
    without_room: Family<Whom, Counter>,
    clock_in_doubt: Gauge,
    audit_failing: Gauge,
    audit_record: Gauge,
    audit_signed_record: Gauge,
    audit_not_sent: Gauge,
    certificate_ends: Family<Certificate, Gauge>,
    certificate_failing: Gauge,
}

impl Metrics {
    pub(crate) fn new() -> Self {
        let mut registry = Registry::with_prefix("claviger");
        let requests = Family::default();
        let durations: Histograms = Family::new_with_constructor(|| Histogram::new(BUCKETS));
        let events = Family::default();
        let connections = Gauge::default();
        let refused = Counter::default();
        registry.register("requests", "Requests that were answered", requests.clone());
        registry.register_with_unit(
            "request_duration",
            "From a request's head to its answer's head",
            Unit::Seconds,
            durations.clone(),
        );
        registry.register("key_events", "Changes of root keys that were announced", events.clone());
        registry.register("connections", "Connections that are open", connections.clone());
        registry.register("connections_refused", "Connections that found no room", refused.clone());
        let limited = Family::default();
        let help = "Calls that were not answered because their caller called too often";
        registry.register("calls_limited", help, limited.clone());
        let without_room = Family::default();
        registry.register(
            "requests_without_room",
            "Requests that were turned away since too much was asked for at once",
            without_room.clone(),
        );
        let gauge = |registry: &mut Registry, name: &str, help: &str| {
            let gauge = Gauge::default();
            registry.register(name, help, gauge.clone());
            gauge
        };
        let doubt = "1 while the machine's clock is not where it was expected, so that nothing is done by it that cannot be undone";
        let clock_in_doubt = gauge(&mut registry, "clock_in_doubt", doubt);
        let failing = "1 while acts cannot be put on record, so that nothing is answered";
        let audit_failing = gauge(&mut registry, "audit_failing", failing);
        let last = "Number of the last record of the audit log";
        let audit_record = gauge(&mut registry, "audit_record", last);
        let signed = "Number of the last record that a checkpoint covers";
        let audit_signed_record = gauge(&mut registry, "audit_signed_record", signed);
        let not_sent = "Checkpoints since the start that did not leave by some sink";
        let audit_not_sent = gauge(&mut registry, "audit_checkpoints_not_sent", not_sent);
        let certificate_ends = Family::default();
        registry.register_with_unit(
            "tls_certificate_not_after",
            "When the certificate that clients are shown ends, since the Unix epoch",
            Unit::Seconds,
            certificate_ends.clone(),
        );
        let certificate_failing = Gauge::default();
        registry.register(
            "tls_certificate_failing",
            "1 while the files of the certificate hold no good pair, so that the one of before stays",
            certificate_failing.clone(),
        );
        registry.register_collector(Box::new(Spans));
        Self {
            registry,
            requests,
            durations,
            events,
            connections,
            refused,
            limited,
            without_room,
            clock_in_doubt,
            audit_failing,
            audit_record,
            audit_signed_record,
            audit_not_sent,
            certificate_ends,
            certificate_failing,
        }
    }

    /// A request was answered. `route` as in the router, `path` as it was called.
    pub(crate) fn answered(
        &self,
        method: &axum::http::Method,
        route: Option<&str>,
        path: &str,
        status: u16,
        took: Duration,
    ) {
        let route = named(route.unwrap_or("unknown"), path);
        self.durations.get_or_create(&Route { route: route.clone() }).observe(took.as_secs_f64());
        let method = known_method(method);
        self.requests.get_or_create(&Request { method, route, status }).inc();
    }

    /// A root key changed.
    pub(crate) fn key_changed(&self, kind: &'static str) {
        self.events.get_or_create(&Kind { kind }).inc();
    }

    /// A connection was opened. Counts until what it returns is dropped.
    pub(crate) fn connected(&self) -> Connected {
        self.connections.inc();
        Connected(self.connections.clone())
    }

    /// A connection found no room.
    pub(crate) fn refused(&self) {
        self.refused.inc();
    }

    /// A caller of this kind called too often.
    pub(crate) fn limited(&self, kind: &'static str) {
        self.limited.get_or_create(&Kind { kind }).inc();
    }

    /// A request was turned away.
    pub(crate) fn found_no_room(&self, whom: &'static str) {
        self.without_room.get_or_create(&Whom { whom }).inc();
    }

    /// Whether the machine's clock is believed.
    pub(crate) fn doubts_clock(&self, doubts: bool) {
        self.clock_in_doubt.set(i64::from(doubts));
    }

    /// How the audit log is doing.
    pub(crate) fn audit(&self, health: &Health) {
        let number = |of: u64| i64::try_from(of).unwrap_or(i64::MAX);
        self.audit_failing.set(i64::from(health.failing.is_some()));
        self.audit_record.set(number(health.records));
        self.audit_signed_record.set(number(health.checkpoint.map_or(0, |(_, last)| last)));
        self.audit_not_sent.set(number(health.not_sent));
    }

    /// A certificate is shown that ends then.
    pub(crate) fn certificate_ends(&self, which: Which, end: UnixMs) {
        let certificate = match which {
            Which::BuiltIn => "built-in",
            Which::Own => "own",
        };
        self.certificate_ends.get_or_create(&Certificate { certificate }).set(end.0 / 1000);
    }

    /// Whether the files of the operator's certificate hold no good pair.
    pub(crate) fn certificate_failing(&self, failing: bool) {
        self.certificate_failing.set(i64::from(failing));
    }

    /// All of it in the OpenMetrics text format, version 1.0.
    pub(crate) fn render(&self) -> String {
        let mut out = String::new();
        text::encode(&mut out, &self.registry).expect("a string takes any text");
        out
    }
}

/// How traces leave.
#[derive(Debug)]
struct Spans;

impl Collector for Spans {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let Counts { sent, dropped } = claviger_telemetry::traces::counts();
        for (name, help, count) in [
            ("trace_spans_sent", "Spans that the collector of traces took", sent),
            ("trace_spans_dropped", "Spans that found no room, or no collector", dropped),
        ] {
            let counter = ConstCounter::new(count);
            let metric = encoder.encode_descriptor(name, help, None, counter.metric_type())?;
            counter.encode(metric)?;
        }
        Ok(())
    }
}

/// An open connection.
pub(crate) struct Connected(Gauge);

impl Drop for Connected {
    fn drop(&mut self) {
        self.0.dec();
    }
}

/// Actions of keys, each of which counts by itself.
const ACTIONS: [&str; 9] = [
    "wrap",
    "unwrap",
    "rewrap",
    "rotate",
    "disable",
    "enable",
    "setKeyForDeletion",
    "unsetKeyForDeletion",
    "sync",
];

pub(crate) fn named(route: &str, path: &str) -> String {
    let action = path.rsplit('/').next().filter(|last| ACTIONS.contains(last));
    match (route.strip_suffix("{action}"), action) {
        (Some(before), Some(action)) => format!("{before}{action}"),
        _ => route.to_owned(),
    }
}

pub(crate) fn known_method(method: &axum::http::Method) -> &'static str {
    match method.as_str() {
        "GET" => "GET",
        "HEAD" => "HEAD",
        "POST" => "POST",
        "PUT" => "PUT",
        "PATCH" => "PATCH",
        "DELETE" => "DELETE",
        _ => "other",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::http::Method;

    #[test]
    fn labels_stay_few_whatever_is_called() {
        let metrics = Metrics::new();
        let took = Duration::from_millis(2);
        let route = Some("/api/v2/keys/{id}/actions/{action}");
        for n in 0..100 {
            let path = format!("/api/v2/keys/{n}/actions/wrap");
            metrics.answered(&Method::POST, route, &path, 200, took);
            let path = format!("/api/v2/keys/{n}/actions/made-up-{n}");
            metrics.answered(&Method::POST, route, &path, 404, took);
            let method = Method::from_bytes(format!("M{n}").as_bytes()).expect("a method");
            metrics.answered(&method, None, "/x", 404, took);
        }
        let text = metrics.render();
        let lines: Vec<&str> =
            text.lines().filter(|line| line.starts_with("claviger_requests_total{")).collect();
        assert_eq!(lines.len(), 3, "{text}");
        let wraps = r#"method="POST",route="/api/v2/keys/{id}/actions/wrap",status="200"} 100"#;
        assert!(lines.iter().any(|line| line.contains(wraps)), "{text}");
        assert!(text.contains("claviger_request_duration_seconds_bucket{le=\"0.0025\""), "{text}");
        assert!(text.ends_with("# EOF\n"));
    }

    #[test]
    fn a_connection_counts_while_it_lives() {
        let metrics = Metrics::new();
        let open = metrics.connected();
        assert!(metrics.render().contains("claviger_connections 1"));
        drop(open);
        assert!(metrics.render().contains("claviger_connections 0"));
    }
}
