//! Logs, traces and shutdown.
//!
//! Logs go to standard error, one line each; `CLAVIGER_LOG` filters them in the syntax of
//! `tracing_subscriber::EnvFilter` (default `info`), `CLAVIGER_LOG_FORMAT=json` makes them JSON.
//! Never log secrets, tokens or payloads, and put none of them into a span.

pub mod traces;

use std::io::IsTerminal;
use tokio::signal::unix::{SignalKind, signal};
use traces::{Traces, TracesError};
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{EnvFilter, Layer as _};

/// Starts logging, and sends traces of `service` to the collector at `endpoint`, if one is given,
/// for as long as what this gives lives. A second call does nothing.
///
/// # Errors
/// When the endpoint cannot be one.
pub fn init(service: &'static str, endpoint: Option<&str>) -> Result<Option<Traces>, TracesError> {
    let traces = endpoint.map(|endpoint| Traces::start(service, endpoint)).transpose()?;
    let filter = EnvFilter::try_from_env("CLAVIGER_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    let logs = tracing_subscriber::fmt::layer()
        .with_writer(std::io::stderr)
        // A line that cannot be written is lost. To complain about it on standard error, which is
        // where it went, panics: a full disk below the log would end the thread that logs.
        .log_internal_errors(false)
        .with_ansi(std::io::stderr().is_terminal());
    let json = std::env::var("CLAVIGER_LOG_FORMAT").is_ok_and(|format| format == "json");
    let logs = if json { logs.json().boxed() } else { logs.with_target(false).boxed() };
    let all = tracing_subscriber::registry()
        .with(traces.as_ref().map(Traces::layer))
        .with(logs.with_filter(filter));
    // Fails only if logging was started before.
    let _ = all.try_init();
    Ok(traces)
}

/// Waits for SIGTERM or SIGINT and says which came.
///
/// # Errors
/// When the handlers cannot be installed.
pub async fn asked_to_stop() -> std::io::Result<&'static str> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    Ok(tokio::select! {
        _ = terminate.recv() => "SIGTERM",
        _ = interrupt.recv() => "SIGINT",
    })
}
