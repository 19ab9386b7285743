//! KMIP adapters: their management. Nothing listens for KMIP itself, so no adapter has objects.

mod adapters;
mod certificates;
mod objects;

use crate::app::App;
use crate::http::api::parameters::{CRK, EXPIRING, OBJECT_PAGE, OBJECT_STATE, SMALL_PAGE};
use crate::http::api::{Api, Kind, content, delete, get, post, says};
use crate::http::auth::Caller;
use crate::http::body::Body;
use crate::http::error::KpError;
use crate::keys::act::{About, Act, parse};
use crate::keys::query::Query;
use axum::extract::FromRequestParts;
use axum::http::StatusCode;
use axum::http::request::Parts;
use axum::response::{IntoResponse, Response};
use claviger_domain::id::InstanceId;
use claviger_store::keys::Key;
use claviger_store::kmip::{self as store, Adapter};
use claviger_store::{StoreError, Tx};
use claviger_wire::kp::Envelope;
use claviger_wire::kp::kmip::{self as wire, ADAPTER_TYPE, CERTIFICATE_TYPE, OBJECT_TYPE};
use serde::de::DeserializeOwned;
use std::sync::Arc;
use uuid::Uuid;

/// Paths of KMIP management.
pub(super) fn api() -> Api {
    let adapter = "/api/v2/kmip_adapters/{adapter}";
    let gone = |id, summary| says(id, summary).answers_nothing(204);
    let (adapters, certificates) = (
        content::envelope::<wire::Adapter>(ADAPTER_TYPE),
        content::envelope::<wire::Certificate>(CERTIFICATE_TYPE),
    );
    let objects = content::envelope::<serde_json::Value>(OBJECT_TYPE);
    Api::new("KMIP adapters", Kind::KeyProtect)
        .at(
            "/api/v2/kmip_adapters",
            [
                get(
                    adapters::list,
                    says("listKmipAdapters", "KMIP adapters of the instance")
                        .query(&SMALL_PAGE)
                        .query(&[CRK])
                        .answers(200, adapters),
                ),
                post(
                    adapters::create,
                    says("createKmipAdapter", "Make a KMIP adapter")
                        .query(&[EXPIRING])
                        .takes(content::one::<wire::NewAdapter>())
                        .answers(201, adapters)
                        .refuses(&[409]),
                ),
            ],
        )
        .at(
            adapter,
            [
                get(adapters::get, says("getKmipAdapter", "A KMIP adapter").answers(200, adapters)),
                delete(
                    adapters::delete,
                    gone("deleteKmipAdapter", "Delete a KMIP adapter with its certificates"),
                ),
            ],
        )
        .at(
            &format!("{adapter}/certificates"),
            [
                get(
                    certificates::list,
                    says(
                        "listKmipCertificates",
                        "Client certificates of an adapter, without their PEM",
                    )
                    .query(&SMALL_PAGE)
                    .answers(200, certificates),
                ),
                post(
                    certificates::create,
                    says("createKmipCertificate", "Add a client certificate to an adapter")
                        .takes(content::one::<wire::NewCertificate>())
                        .answers(201, certificates)
                        .refuses(&[409]),
                ),
            ],
        )
        .at(
            &format!("{adapter}/certificates/{{certificate}}"),
            [
                get(
                    certificates::get,
                    says("getKmipCertificate", "A client certificate").answers(200, certificates),
                ),
                delete(
                    certificates::delete,
                    gone("deleteKmipCertificate", "Delete a client certificate"),
                ),
            ],
        )
        .at(
            &format!("{adapter}/kmip_objects"),
            [get(
                objects::list,
                says("listKmipObjects", "Objects of an adapter; there are none")
                    .query(&OBJECT_PAGE)
                    .query(&[OBJECT_STATE])
                    .answers(200, objects),
            )],
        )
        .at(
            &format!("{adapter}/kmip_objects/{{object}}"),
            [
                get(objects::get, says("getKmipObject", "An object; there are none")),
                delete(
                    objects::delete,
                    says("deleteKmipObject", "Delete an object; there are none"),
                ),
            ],
        )
}

/// Adapters of an instance, and certificates of an adapter.
const EACH_MAX: usize = 200;
/// Usual page.
const PAGE: usize = 100;
const NAME_MAX: usize = 40;

/// Who asks, about which instance, with which query.
struct Asked {
    caller: Caller,
    instance: InstanceId,
    query: Query,
}

impl FromRequestParts<Arc<App>> for Asked {
    type Rejection = Response;
    async fn from_request_parts(parts: &mut Parts, app: &Arc<App>) -> Result<Self, Response> {
        let caller = Caller::from_request_parts(parts, app).await?;
        let instance = crate::keys::act::Instance::from_request_parts(parts, app).await;
        let instance = instance.map_err(IntoResponse::into_response)?.0;
        let query = Query::parse(parts.uri.query().unwrap_or_default());
        Ok(Asked { caller, instance, query })
    }
}

impl Asked {
    fn act(self, action: &'static str, failed: &'static str) -> (Act, Query) {
        let Asked { caller, instance, query } = self;
        (Act { caller, instance, action, failed, about: About::Instance }, query)
    }
}

/// Refuses to delete a key that an adapter uses, by force too: its objects would be lost.
pub(super) fn unattached(tx: &Tx<'_>, key: &Key) -> Result<(), KpError> {
    let Some(adapter) = store::using(tx, &key.root)? else { return Ok(()) };
    let what = format!("The KMIP adapter {adapter:?} uses the key. Delete the adapter first");
    Err(KpError::conflict("PROTECTED_RESOURCE_ERR", what))
}

/// The adapter that a path names by id or name.
fn adapter(tx: &Tx<'_>, instance: InstanceId, named: &str) -> Result<Adapter, KpError> {
    store::find(tx, instance, named)?.ok_or_else(|| none("KMIP_ADAPTER_NOT_FOUND_ERR", "adapter"))
}

fn none(code: &'static str, what: &str) -> KpError {
    let what = format!("There is no such KMIP {what}; list them to see which there are");
    KpError::new(StatusCode::NOT_FOUND, code, what)
}

fn full(what: &str) -> KpError {
    let what = format!("There are {EACH_MAX} {what}, as many as there may be. Delete one first");
    KpError::conflict("KMIP_QUOTA_ERR", what)
}

fn taken(what: &'static str) -> impl FnOnce(StoreError) -> KpError {
    move |e| match e.is_taken() {
        true => KpError::conflict("KMIP_NAME_NOT_UNIQUE_ERR", format!("{what} has this name")),
        false => e.into(),
    }
}

/// The one resource of an envelope.
fn one<T: DeserializeOwned>(body: &Body) -> Result<T, KpError> {
    let text = body.text().ok_or_else(|| KpError::body("The body is missing"))?;
    let mut body: Envelope<T> = parse(text)?;
    if body.metadata.collection_total != body.resources.len() as u64 {
        let code = "COLLECTION_TOTAL_MISMATCH_ERR";
        let what = "collectionTotal is not the number of resources";
        return Err(KpError::new(StatusCode::BAD_REQUEST, code, what));
    }
    match (body.resources.pop(), body.resources.is_empty()) {
        (Some(one), true) => Ok(one),
        _ => Err(KpError::body("The body must have exactly one element in 'resources'")),
    }
}

/// A name that was given, or a new one that begins with `kind`. A path may hold either a name or
/// an id, so a name is no UUID.
fn name(given: Option<&str>, kind: &str) -> Result<String, KpError> {
    let Some(given) = given.filter(|text| !text.is_empty()) else {
        let random = Uuid::new_v4().simple().to_string();
        return Ok(format!("{kind}_{}", &random[..16]));
    };
    let sane = given.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_');
    if !sane || !(2..=NAME_MAX).contains(&given.len()) || Uuid::parse_str(given).is_ok() {
        let what = format!(
            "The field 'name' must be: 2 to {NAME_MAX} letters, digits, '-' and '_', not a UUID"
        );
        return Err(KpError::field("name", what));
    }
    Ok(given.to_owned())
}

#[cfg(test)]
mod tests;
