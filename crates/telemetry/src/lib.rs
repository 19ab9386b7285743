//! Logs, traces and shutdown.
//!
//! Logs go to standard error, one line each; `CLAVIGER_LOG` filters them in the syntax of
//! `tracing_subscriber::EnvFilter` (default `info`), `CLAVIGER_LOG_FORMAT=json` makes them JSON.
//! What is not understood is said, and the default holds.
//! Never log secrets, tokens or payloads, and put none of them into a span.

pub mod traces;

use std::io::IsTerminal;
use tokio::signal::unix::{SignalKind, signal};
use traces::{Traces, TracesError};
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{EnvFilter, Layer as _};

/// What is logged unless `CLAVIGER_LOG` says otherwise.
const DEFAULT: &str = "info";

/// Starts logging. A second call does nothing.
pub fn logs() {
    logs_at(DEFAULT);
}

/// Starts logging with another default, in the syntax of `CLAVIGER_LOG`.
pub fn logs_at(default: &str) {
    start(default, None);
}

/// Starts logging, and sends traces of `service` to the collector at `endpoint`, if one is given,
/// for as long as what this gives lives. A second call does nothing.
///
/// # Errors
/// When the endpoint cannot be one.
pub fn init(service: &'static str, endpoint: Option<&str>) -> Result<Option<Traces>, TracesError> {
    let traces = endpoint.map(|endpoint| Traces::start(service, endpoint)).transpose()?;
    start(DEFAULT, traces.as_ref());
    Ok(traces)
}

fn start(default: &str, traces: Option<&Traces>) {
    let asked = std::env::var("CLAVIGER_LOG").unwrap_or_default();
    let (filter, wrong) = filter(&asked, default);
    let logs = tracing_subscriber::fmt::layer()
        .with_writer(std::io::stderr)
        // A line that cannot be written is lost. To complain about it on standard error, which is
        // where it went, panics: a full disk below the log would end the thread that logs.
        .log_internal_errors(false)
        .with_ansi(std::io::stderr().is_terminal());
    let json = std::env::var("CLAVIGER_LOG_FORMAT").is_ok_and(|format| format == "json");
    let logs = if json { logs.json().boxed() } else { logs.with_target(false).boxed() };
    let all = tracing_subscriber::registry()
        .with(traces.map(Traces::layer))
        .with(logs.with_filter(filter));
    // Fails only if logging was started before.
    let _ = all.try_init();
    if let Some(wrong) = wrong {
        tracing::warn!("CLAVIGER_LOG={asked:?} is not understood ({wrong}); taking {default:?}");
    }
}

/// The filter that was asked for, or the default and why that was not understood.
fn filter(asked: &str, default: &str) -> (EnvFilter, Option<String>) {
    let parsed = if asked.is_empty() { None } else { Some(EnvFilter::try_new(asked)) };
    match parsed {
        Some(Ok(filter)) => (filter, None),
        Some(Err(wrong)) => (EnvFilter::new(default), Some(wrong.to_string())),
        None => (EnvFilter::new(default), None),
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_understood_is_said() {
        for (asked, want, wrong) in [
            ("", "info", false),
            ("debug", "debug", false),
            ("claviger::decision=debug,warn", "claviger::decision=debug,warn", false),
            ("info,=", "info", true),
            ("a=b=c", "info", true),
        ] {
            let (filter, why) = filter(asked, DEFAULT);
            assert_eq!(filter.to_string(), want, "{asked}");
            assert_eq!(why.is_some(), wrong, "{asked}: {why:?}");
        }
    }
}
