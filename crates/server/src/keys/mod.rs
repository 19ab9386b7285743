//! Key Protect v2: keys, what can be done with them, and who uses them.
//!
//! One file for each group of operations. Every operation runs through [`act::Act`]: permission,
//! work, audit record, error mapping. Content types of requests are ignored, since clients send
//! none or the wrong one.

mod acks;
pub(crate) mod act;
mod actions;
mod aliases;
mod changes;
pub mod clock;
mod create;
mod dual;
mod event_ack;
mod import;
mod kmip;
mod list;
pub(crate) mod policies;
mod purge;
pub(crate) mod query;
mod reading;
mod registrations;
mod rings;
mod sync;
pub(crate) mod view;

use crate::app::App;
use axum::Router;
use axum::routing::{delete, get, post};
use std::sync::Arc;

/// Paths of the key service.
pub fn routes() -> Router<Arc<App>> {
    Router::new()
        .route("/api/v2/keys", get(list::list).head(list::count).post(create::create))
        .route("/api/v2/keys/registrations", get(registrations::of_instance))
        .route(
            "/api/v2/keys/{id}",
            get(reading::with_payload).post(actions::old_form).delete(changes::delete),
        )
        .route("/api/v2/keys_with_policy_overrides", post(create::with_policies))
        .route("/api/v2/keys/{id}/purge", delete(purge::purge))
        .route("/api/v2/keys/{id}/policies", get(policies::key::get).put(policies::key::put))
        .route(
            "/api/v2/instance/policies",
            get(policies::instance::get).put(policies::instance::put),
        )
        .route("/api/v2/instance/allowed_ip_port", get(policies::instance::port))
        .route("/api/v2/keys/{id}/metadata", get(reading::metadata))
        .route("/api/v2/keys/{id}/versions", get(reading::versions))
        .route("/api/v2/keys/{id}/restore", post(changes::restore))
        .route("/api/v2/keys/{id}/actions/{action}", post(actions::act))
        .route("/api/v2/keys/{id}/registrations", get(registrations::of_key))
        // The CRN has slashes, encoded or not: the wildcard takes both.
        .route(
            "/api/v2/keys/{id}/registrations/{*crn}",
            post(registrations::create)
                .put(registrations::replace)
                .patch(registrations::change)
                .delete(registrations::delete),
        )
        .route("/v3/instances/{instance}/keys/{key}/acknowledgements", get(acks::acknowledgements))
        .merge(rings::routes())
        .merge(aliases::routes())
        .merge(import::routes())
        .merge(event_ack::routes())
        .merge(kmip::routes())
}

#[cfg(test)]
mod tests;
