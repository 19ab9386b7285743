//! `/v3/principals/{iam_id}/logins`: by which subjects of which issuers a person comes in. For
//! administrators.

use super::TAG;
use super::login::SUBJECT_MAX;
use crate::app::App;
use crate::http::admin::{Doing, Needs, Refusal, facts, parse};
use crate::http::api::content::json;
use crate::http::api::{Api, Kind, get, put as puts, says};
use crate::http::auth::Caller;
use crate::http::body::Body;
use crate::http::error::Form;
use axum::Json;
use axum::extract::{Path, State};
use claviger_domain::id::UnixMs;
use claviger_store::logins::{self, LoginSubject as Stored};
use claviger_store::{Tx, iam};
use claviger_wire::iam::{LoginSubject, Logins};
use std::sync::Arc;

/// Logins of one person: some issuers, each once or twice.
const LOGINS_MAX: usize = 20;
/// Longest issuer, in bytes.
const ISSUER_MAX: usize = 512;

pub(super) fn api() -> Api {
    let see = says("getLogins", "By which issuers a person comes in")
        .answers(200, json::<Logins>())
        .refuses(&[404]);
    let change = says("putLogins", "Let a person come in by exactly these subjects of issuers")
        .takes(json::<Logins>())
        .answers(200, json::<Logins>())
        .refuses(&[404, 409]);
    Api::new(TAG, Kind::Service)
        .at("/v3/principals/{iam_id}/logins", [get(show, see), puts(give, change)])
}

fn doing(caller: Caller, action: &'static str, iam_id: &str) -> Doing {
    let target = iam_id.chars().take(ISSUER_MAX).collect();
    Doing::new(caller, Form::Service, action, target, Needs::Administrator)
}

fn of(tx: &Tx<'_>, iam_id: &str) -> Result<Vec<LoginSubject>, Refusal> {
    let person = iam::principal(tx, iam_id)?.is_some_and(|principal| !principal.service);
    if !person {
        return Err(Refusal::none("There is no such person"));
    }
    let wire = |Stored { issuer, subject }| LoginSubject { issuer, subject };
    Ok(logins::of_person(tx, iam_id)?.into_iter().map(wire).collect())
}

/// For the record.
pub(super) fn said(logins: &[LoginSubject]) -> String {
    let one = |login: &LoginSubject| format!("{} {}", login.issuer, login.subject);
    logins.iter().map(one).collect::<Vec<_>>().join(", ")
}

/// Lets a person come in by exactly these.
pub(super) fn put(
    tx: &Tx<'_>,
    iam_id: &str,
    wanted: &[LoginSubject],
    by: &str,
    now: UnixMs,
) -> Result<(), Refusal> {
    if wanted.len() > LOGINS_MAX {
        return Err(Refusal::bad(format!("at most {LOGINS_MAX} logins can be given")));
    }
    logins::remove_all(tx, iam_id)?;
    for LoginSubject { issuer, subject } in wanted {
        for (name, text, max) in [("issuer", issuer, ISSUER_MAX), ("subject", subject, SUBJECT_MAX)]
        {
            if !(1..=max).contains(&text.len()) || text.chars().any(char::is_control) {
                let what = format!("{name} must have 1 to {max} bytes, none of them control");
                return Err(Refusal::bad(what));
            }
        }
        let login = Stored { issuer: issuer.clone(), subject: subject.clone() };
        match logins::add(tx, &login, iam_id, by, now) {
            Err(e) if e.is_taken() => {
                let what = format!("The subject {subject:?} of {issuer} comes in as somebody else");
                return Err(Refusal::conflict("LOGIN_TAKEN_ERR", what));
            }
            added => added?,
        }
    }
    Ok(())
}

/// `GET /v3/principals/{iam_id}/logins`.
async fn show(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path(iam_id): Path<String>,
) -> Result<Json<Logins>, Refusal> {
    let doing = doing(caller, "iam-identity.user-login.list", &iam_id);
    let logins = doing.look(&app, move |_, tx, _, _| of(tx, &iam_id)).await?;
    Ok(Json(Logins { logins }))
}

/// `PUT /v3/principals/{iam_id}/logins`: what was got by others counts no longer.
async fn give(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path(iam_id): Path<String>,
    body: Body,
) -> Result<Json<Logins>, Refusal> {
    let body = parse::<Logins>(&body);
    let doing = doing(caller, "iam-identity.user-login.update", &iam_id);
    let given = doing.run(&app, move |_, tx, doing, now| {
        let wanted = &body.as_ref().map_err(Clone::clone)?.logins;
        let before = of(tx, &iam_id)?;
        put(tx, &iam_id, wanted, &doing.caller.iam_id, now)?;
        let after = of(tx, &iam_id)?;
        doing.changed(facts([("logins", said(&before))]), facts([("logins", said(&after))]));
        Ok(after)
    });
    Ok(Json(Logins { logins: given.await? }))
}
