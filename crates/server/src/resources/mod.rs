//! Instances of the key service and their groups, as IBM's Resource Controller and Resource
//! Manager show them to clients.

mod groups;
mod instances;
mod view;

use crate::app::App;
use axum::Router;
use axum::routing::get;
use std::sync::Arc;

/// Paths of the Resource Controller.
pub fn routes() -> Router<Arc<App>> {
    Router::new()
        .route("/v2/resource_instances", get(instances::list).post(instances::create))
        // A CRN has a slash, which some clients encode and others do not: the wildcard takes both.
        .route(
            "/v2/resource_instances/{*id}",
            get(instances::get).patch(instances::change).delete(instances::delete),
        )
        .route("/v2/resource_groups", get(groups::list))
        .route("/v2/resource_groups/{id}", get(groups::get))
}

#[cfg(test)]
mod tests;
