//! `/kmip_adapters/{adapter}/kmip_objects`. Objects are made over KMIP, for which nothing
//! listens, so there are none.

use super::{Asked, PAGE, adapter, none};
use crate::app::App;
use crate::http::error::KpError;
use crate::keys::act::answer;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::Response;
use claviger_domain::access::KeyOperation;
use claviger_wire::kp::Envelope;
use claviger_wire::kp::kmip::OBJECT_TYPE;
use std::sync::Arc;

/// Largest page of objects.
const PAGE_MAX: usize = 5000;

/// `GET`.
pub(super) async fn list(
    State(app): State<Arc<App>>,
    asked: Asked,
    Path(named): Path<String>,
) -> Result<Response, KpError> {
    let failed = "KMIP objects could not be listed";
    let (act, query) = asked.act("kms.kmip-management.list", failed);
    let list = act
        .look(&app, move |_, tx, act, _| {
            act.on_instance(tx, KeyOperation::ManageKmip)?;
            adapter(tx, act.instance, &named)?;
            if query.list("state").iter().any(|state| !["1", "2", "3", "4"].contains(state)) {
                let what = "The query_param 'state' must be: a list of 1, 2, 3 and 4";
                return Err(KpError::query("state", what));
            }
            let none: Vec<serde_json::Value> = Vec::new();
            let (page, total) = query.page_within(none, PAGE, PAGE_MAX)?;
            let mut list = Envelope::of(OBJECT_TYPE, page);
            list.metadata.total_count = total;
            Ok(list)
        })
        .await?;
    Ok(answer(StatusCode::OK, OBJECT_TYPE, &list))
}

/// `GET /{id}`.
pub(super) async fn get(
    State(app): State<Arc<App>>,
    asked: Asked,
    Path((named, _)): Path<(String, String)>,
) -> Result<Response, KpError> {
    absent(app, asked, named, "kms.kmip-management.read", "KMIP object could not be retrieved")
        .await
}

/// `DELETE /{id}`.
pub(super) async fn delete(
    State(app): State<Arc<App>>,
    asked: Asked,
    Path((named, _)): Path<(String, String)>,
) -> Result<Response, KpError> {
    absent(app, asked, named, "kms.kmip-management.delete", "KMIP object could not be deleted")
        .await
}

async fn absent(
    app: Arc<App>,
    asked: Asked,
    named: String,
    action: &'static str,
    failed: &'static str,
) -> Result<Response, KpError> {
    let (act, _) = asked.act(action, failed);
    act.look(&app, move |_, tx, act, _| {
        act.on_instance(tx, KeyOperation::ManageKmip)?;
        adapter(tx, act.instance, &named)?;
        Err(none("KMIP_OBJECT_NOT_FOUND_ERR", "object"))
    })
    .await
}
