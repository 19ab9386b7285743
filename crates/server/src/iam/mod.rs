//! Tokens: who calls. What they may do is looked up for each request.

mod grant;
mod principals;
pub mod token;

use crate::app::App;
use axum::Router;
use axum::routing::post;
use std::sync::Arc;

/// Paths of IAM.
pub fn routes() -> Router<Arc<App>> {
    Router::new()
        .route("/identity/token", post(grant::token))
        .route("/oidc/token", post(grant::token))
        .route("/v3/principals", post(principals::create))
}
