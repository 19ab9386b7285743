//! Identity and access: who calls, by which token, and who may do what. What a caller may do is
//! compiled from the policies about him and counts for as long as none of them changes.

mod about;
mod grant;
mod groups;
mod identities;
mod issuers;
pub(crate) mod known;
mod policies;
mod principals;
mod shape;
pub(crate) mod signing;
mod text;
pub mod token;
mod trust;

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
        .merge(about::routes())
        .merge(groups::routes())
        .merge(identities::routes())
        .merge(issuers::routes())
        .merge(policies::routes())
}

#[cfg(test)]
mod tests;
