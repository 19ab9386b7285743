//! `/v3/trusted-issuers`: whose service-account tokens are believed, and what their subjects may
//! become. For administrators.

use super::TAG;
use super::said::said_of_issuer;
use super::trust::read_keys;
use crate::app::App;
use crate::http::admin::{Doing, Needs, Refusal, parse};
use crate::http::api::content::json;
use crate::http::api::{Api, Kind, delete, get, put, says};
use crate::http::auth::Caller;
use crate::http::body::Body;
use crate::http::error::Form;
use axum::Json;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use claviger_domain::audit::Facts;
use claviger_store::trust::{self, Issuer, Trust};
use claviger_store::{Tx, iam};
use claviger_wire::iam::{TrustedIssuer, TrustedIssuers, TrustedSubject};
use std::sync::Arc;

/// Issuers of one server: about one for each cluster.
const ISSUERS_MAX: usize = 100;
/// Subjects of one issuer.
const SUBJECTS_MAX: usize = 500;
/// Longest issuer, audience or subject, in bytes.
const TEXT_MAX: usize = 512;

pub(super) fn api() -> Api {
    let all = says("listTrustedIssuers", "Whose service-account tokens are believed")
        .answers(200, json::<TrustedIssuers>());
    let change = says("putTrustedIssuer", "Trust an issuer, with exactly these keys and subjects")
        .takes(json::<TrustedIssuer>())
        .answers(200, json::<TrustedIssuer>())
        .refuses(&[409]);
    let end = says("deleteTrustedIssuer", "Trust an issuer no longer")
        .answers_nothing(204)
        .refuses(&[404, 409]);
    Api::new(TAG, Kind::Service)
        .at("/v3/trusted-issuers", [get(list, all), put(give, change)])
        // An issuer is a URL, with slashes encoded or not.
        .at("/v3/trusted-issuers/{*issuer}", [delete(remove, end)])
}

fn doing(caller: Caller, action: &'static str, target: &str) -> Doing {
    let target = target.chars().take(TEXT_MAX).collect();
    Doing::new(caller, Form::Service, action, target, Needs::Administrator)
}

fn shown(tx: &Tx<'_>, issuer: Issuer) -> Result<TrustedIssuer, Refusal> {
    let subjects = trust::of_issuer(tx, &issuer.issuer)?;
    let subject = |trust: Trust| TrustedSubject { subject: trust.subject, iam_id: trust.iam_id };
    Ok(TrustedIssuer {
        subjects: subjects.into_iter().map(subject).collect(),
        jwks: serde_json::from_str(&issuer.jwks).unwrap_or_default(),
        issuer: issuer.issuer,
        audience: issuer.audience,
    })
}

/// `GET /v3/trusted-issuers`.
async fn list(
    State(app): State<Arc<App>>,
    caller: Caller,
) -> Result<Json<TrustedIssuers>, Refusal> {
    let doing = doing(caller, "iam-identity.trusted-issuer.list", "trusted-issuers");
    let issuers = doing.look(&app, |_, tx, _, _| {
        trust::issuers(tx)?.into_iter().map(|issuer| shown(tx, issuer)).collect()
    });
    Ok(Json(TrustedIssuers { issuers: issuers.await? }))
}

/// `PUT /v3/trusted-issuers`: trusts an issuer with exactly these keys and subjects.
async fn give(
    State(app): State<Arc<App>>,
    caller: Caller,
    body: Body,
) -> Result<Json<TrustedIssuer>, Refusal> {
    let body = parse::<TrustedIssuer>(&body);
    let target = body.as_ref().map(|body| body.issuer.clone()).unwrap_or_default();
    let doing = doing(caller, "iam-identity.trusted-issuer.update", &target);
    let given = doing.run(&app, move |_, tx, doing, now| {
        let body = body.as_ref().map_err(Clone::clone)?;
        for (name, text) in [("issuer", &body.issuer), ("audience", &body.audience)] {
            sane(name, text)?;
        }
        let jwks = body.jwks.to_string();
        read_keys(&jwks).map_err(Refusal::bad)?;
        let known = trust::issuers(tx)?;
        let new = known.iter().all(|issuer| issuer.issuer != body.issuer);
        if new && known.len() >= ISSUERS_MAX {
            let what = format!("{ISSUERS_MAX} issuers are trusted, as many as may be");
            return Err(Refusal::conflict("ISSUER_QUOTA_ERR", what));
        }
        if body.subjects.len() > SUBJECTS_MAX {
            return Err(Refusal::bad(format!("at most {SUBJECTS_MAX} subjects can be given")));
        }
        let before = trust::issuer(tx, &body.issuer)?;
        let before = before.map(|issuer| shown(tx, issuer)).transpose()?;
        let (by, issuer) = (&doing.caller.iam_id, body.issuer.clone());
        let audience = body.audience.clone();
        let issuer = Issuer { issuer, audience, jwks, created: now, created_by: by.clone() };
        trust::put_issuer(tx, &issuer)?;
        for gone in trust::of_issuer(tx, &issuer.issuer)? {
            trust::remove(tx, &gone)?;
        }
        for TrustedSubject { subject, iam_id } in &body.subjects {
            sane("subject", subject)?;
            let service = iam::principal(tx, iam_id)?.is_some_and(|principal| principal.service);
            if !service {
                return Err(Refusal::bad(format!(
                    "the subject {subject:?} may become a service ID only; iam_id is none here"
                )));
            }
            let (issuer, subject) = (issuer.issuer.clone(), subject.clone());
            trust::add(tx, &Trust { issuer, subject, iam_id: iam_id.clone() }, by, now)?;
        }
        let after = shown(tx, issuer)?;
        doing.changed(
            before.as_ref().map(said_of_issuer).unwrap_or_default(),
            said_of_issuer(&after),
        );
        Ok(after)
    });
    Ok(Json(given.await?))
}

fn sane(name: &str, text: &str) -> Result<(), Refusal> {
    let fits = (1..=TEXT_MAX).contains(&text.len());
    if fits && text.chars().all(|c| !c.is_control() && !c.is_whitespace()) {
        return Ok(());
    }
    Err(Refusal::bad(format!("{name} must have 1 to {TEXT_MAX} bytes, without blanks")))
}

/// `DELETE /v3/trusted-issuers/{issuer}`: tokens that were got by it count no longer.
async fn remove(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path(issuer): Path<String>,
) -> Result<StatusCode, Refusal> {
    let doing = doing(caller, "iam-identity.trusted-issuer.delete", &issuer);
    doing
        .run(&app, move |_, tx, doing, _| {
            let none = || Refusal::none("This issuer is not trusted");
            let before = shown(tx, trust::issuer(tx, &issuer)?.ok_or_else(none)?)?;
            doing.changed(said_of_issuer(&before), Facts::new());
            trust::remove_issuer(tx, &issuer)?;
            Ok(())
        })
        .await?;
    Ok(StatusCode::NO_CONTENT)
}
