//! Logs and shutdown.
