//! Takes the oldest segments of the audit log away, if the settings say so.

use crate::app::App;
use claviger_audit::Keep;
use claviger_domain::id::UnixMs;
use std::sync::Arc;
use std::time::Duration;

/// How often it is looked.
const PAUSE: Duration = Duration::from_secs(3600);

/// Looks now and then until the task is dropped.
pub async fn watch(app: Arc<App>) {
    loop {
        app.blocking(turn).await;
        tokio::time::sleep(PAUSE).await;
    }
}

/// Removes what is due, by the sure time ([`crate::sure`]). What is damaged stays, as evidence.
pub(crate) fn turn(app: &App) {
    let settings = &app.settings.audit;
    if settings.keep.is_none() && settings.keep_bytes.is_none() {
        return;
    }
    let now = match app.sure() {
        Ok(now) => now,
        Err(error) => return tracing::error!(%error, "old segments of the audit log stay"),
    };
    let age = |keep: Duration| i64::try_from(keep.as_millis()).unwrap_or(i64::MAX);
    let keep = Keep {
        since: settings.keep.map(|keep| UnixMs(now.0.saturating_sub(age(keep)))),
        bytes: settings.keep_bytes,
    };
    match app.recorder.retire(keep, now) {
        Ok(retired) if retired.segments > 0 => {
            tracing::info!(
                segments = retired.segments,
                bytes = retired.bytes,
                first_record = retired.from,
                "old segments of the audit log were removed"
            );
        }
        Ok(_) => {}
        Err(error) => tracing::error!(%error, "old segments of the audit log stay"),
    }
}
