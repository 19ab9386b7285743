//! Logs and shutdown.
//!
//! Logs go to standard error, one line each; `CLAVIGER_LOG` filters them in the syntax of
//! `tracing_subscriber::EnvFilter` (default `info`), `CLAVIGER_LOG_FORMAT=json` makes them JSON.
//! Never log secrets, tokens or payloads.

use std::io::IsTerminal;
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;

/// Starts logging. A second call does nothing.
pub fn init() {
    let filter = EnvFilter::try_from_env("CLAVIGER_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    let logs = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        // A line that cannot be written is lost. To complain about it on standard error, which is
        // where it went, panics: a full disk below the log would end the thread that logs.
        .log_internal_errors(false)
        .with_ansi(std::io::stderr().is_terminal());
    let json = std::env::var("CLAVIGER_LOG_FORMAT").is_ok_and(|format| format == "json");
    // Fails only if logging was started before.
    let _ = if json { logs.json().try_init() } else { logs.with_target(false).try_init() };
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
