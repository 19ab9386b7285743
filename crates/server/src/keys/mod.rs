//! Key Protect v2.

use crate::app::App;
use axum::Router;
use std::sync::Arc;

/// Paths of the key service.
pub fn routes() -> Router<Arc<App>> {
    Router::new()
}
