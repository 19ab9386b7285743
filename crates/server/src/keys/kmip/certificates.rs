//! `/kmip_adapters/{adapter}/certificates`: whose clients may use an adapter.

use super::{Asked, EACH_MAX, PAGE, adapter, full, name, none, one, taken};
use crate::app::App;
use crate::http::body::Body;
use crate::http::error::KpError;
use crate::keys::act::{Changed, answer};
use crate::keys::view::second;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use claviger_crypto::digest::{hex, sha256};
use claviger_domain::access::KeyOperation;
use claviger_domain::id::UnixMs;
use claviger_store::Tx;
use claviger_store::kmip::{self as store, Adapter, Certificate};
use claviger_wire::kp::Envelope;
use claviger_wire::kp::kmip::{self, CERTIFICATE_TYPE, NewCertificate};
use std::sync::Arc;
use uuid::Uuid;
use x509_parser::pem::parse_x509_pem;
use x509_parser::prelude::{FromDer, X509Certificate};

/// Longest PEM: certificates have 1 to 3 KiB.
const PEM_MAX: usize = 16 << 10;

fn view(c: &Certificate, whole: bool) -> kmip::Certificate {
    kmip::Certificate {
        id: c.id,
        name: c.name.clone(),
        certificate: whole.then(|| c.pem.clone()),
        created_by: c.created_by.clone(),
        created_at: second(c.created),
    }
}

/// SHA-256 of the one X.509 certificate that a PEM text holds, if it has not ended.
fn fingerprint(pem: &str, now: UnixMs) -> Result<String, KpError> {
    let wrong = |what: &str| KpError::field("certificate", what);
    if pem.len() > PEM_MAX {
        let what = format!("The field 'certificate' must be: at most {PEM_MAX} bytes");
        return Err(wrong(&what));
    }
    let shape = "The field 'certificate' must be: one X.509 certificate in PEM";
    let (rest, read) = parse_x509_pem(pem.as_bytes()).map_err(|_| wrong(shape))?;
    if read.label != "CERTIFICATE" || !rest.trim_ascii().is_empty() {
        return Err(wrong(shape));
    }
    let (rest, certificate) =
        X509Certificate::from_der(&read.contents).map_err(|_| wrong(shape))?;
    if !rest.is_empty() {
        return Err(wrong(shape));
    }
    if certificate.validity().not_after.timestamp() < now.0.div_euclid(1000) {
        return Err(wrong("The certificate has expired; send one that has not"));
    }
    Ok(hex(&sha256(&read.contents)))
}

fn found(tx: &Tx<'_>, adapter: &Adapter, named: &str) -> Result<Certificate, KpError> {
    let found = store::find_certificate(tx, adapter, named)?;
    found.ok_or_else(|| none("KMIP_CERTIFICATE_NOT_FOUND_ERR", "client certificate"))
}

/// `GET`: without the certificates' text.
pub(super) async fn list(
    State(app): State<Arc<App>>,
    asked: Asked,
    Path(named): Path<String>,
) -> Result<Response, KpError> {
    let failed = "KMIP client certificates could not be listed";
    let (act, query) = asked.act("kms.kmip-management.list", failed);
    let list = act
        .look(&app, move |_, tx, act, _| {
            act.on_instance(tx, KeyOperation::ManageKmip)?;
            let adapter = adapter(tx, act.instance, &named)?;
            let all = store::certificates(tx, &adapter)?;
            let (page, total) = query.page_within(all, PAGE, EACH_MAX)?;
            let page = page.iter().map(|c| view(c, false)).collect();
            let mut list = Envelope::of(CERTIFICATE_TYPE, page);
            list.metadata.total_count = total;
            Ok(list)
        })
        .await?;
    Ok(answer(StatusCode::OK, CERTIFICATE_TYPE, &list))
}

/// `POST`.
pub(super) async fn create(
    State(app): State<Arc<App>>,
    asked: Asked,
    Path(named): Path<String>,
    body: Body,
) -> Result<Response, KpError> {
    let new = one::<NewCertificate>(&body);
    let failed = "KMIP client certificate could not be created";
    let (act, _) = asked.act("kms.kmip-management.create", failed);
    let made = act
        .change(&app, move |_, tx, act, now| {
            act.on_instance(tx, KeyOperation::ManageKmip)?;
            let adapter = adapter(tx, act.instance, &named)?;
            let new = new.as_ref().map_err(Clone::clone)?;
            let certificate = Certificate {
                id: Uuid::new_v4(),
                name: name(new.name.as_deref(), "kmip_cert")?,
                pem: new.certificate.clone(),
                fingerprint: fingerprint(&new.certificate, now)?,
                created: now,
                created_by: act.caller.iam_id.clone(),
            };
            if store::certificates(tx, &adapter)?.len() >= EACH_MAX {
                return Err(full("client certificates in the KMIP adapter"));
            }
            if store::has_certificate(tx, &certificate.fingerprint)? {
                let what = "The certificate belongs to a KMIP adapter already, and can belong to \
                            one only. Take another certificate, or delete it there first";
                return Err(KpError::conflict("KMIP_CERTIFICATE_NOT_UNIQUE_ERR", what));
            }
            store::add_certificate(tx, &adapter, &certificate)
                .map_err(taken("Another certificate of the adapter"))?;
            Ok(Changed::just(view(&certificate, true)))
        })
        .await?;
    let body = Envelope::of(CERTIFICATE_TYPE, vec![made]);
    Ok(answer(StatusCode::CREATED, CERTIFICATE_TYPE, &body))
}

/// `GET /{id or name}`.
pub(super) async fn get(
    State(app): State<Arc<App>>,
    asked: Asked,
    Path((named, certificate)): Path<(String, String)>,
) -> Result<Response, KpError> {
    let failed = "KMIP client certificate could not be retrieved";
    let (act, _) = asked.act("kms.kmip-management.read", failed);
    let seen = act
        .look(&app, move |_, tx, act, _| {
            act.on_instance(tx, KeyOperation::ManageKmip)?;
            let adapter = adapter(tx, act.instance, &named)?;
            Ok(view(&found(tx, &adapter, &certificate)?, true))
        })
        .await?;
    Ok(answer(StatusCode::OK, CERTIFICATE_TYPE, &Envelope::of(CERTIFICATE_TYPE, vec![seen])))
}

/// `DELETE /{id or name}`.
pub(super) async fn delete(
    State(app): State<Arc<App>>,
    asked: Asked,
    Path((named, certificate)): Path<(String, String)>,
) -> Result<Response, KpError> {
    let failed = "KMIP client certificate could not be deleted";
    let (act, _) = asked.act("kms.kmip-management.delete", failed);
    act.change(&app, move |_, tx, act, _| {
        act.on_instance(tx, KeyOperation::ManageKmip)?;
        let adapter = adapter(tx, act.instance, &named)?;
        let id = found(tx, &adapter, &certificate)?.id;
        store::remove_certificate(tx, &adapter, id)?;
        Ok(Changed::just(()))
    })
    .await?;
    Ok(StatusCode::NO_CONTENT.into_response())
}
