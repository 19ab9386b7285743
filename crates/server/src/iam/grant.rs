//! `POST /identity/token` and `POST /oidc/token`: what a credential is exchanged for.

use super::token::{BadToken, Bearer, Credential, Issue};
use super::{login, trust};
use crate::app::App;
use crate::http::Trace;
use crate::http::auth::{self, Node, alive};
use crate::http::body::Body;
use crate::http::error::{self, Form};
use crate::refusals::RETRY_AFTER_S;
use crate::room::For;
use axum::Json;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use claviger_crypto::digest;
use claviger_domain::audit::{Credential as Proof, Record};
use claviger_domain::id::UnixMs;
use claviger_store::iam::{self, Principal};
use claviger_wire::iam::{
    ACCESS_TOKEN, GRANT_APIKEY, GRANT_CR_TOKEN, GRANT_EXCHANGE, GRANT_NODE, GRANT_REFRESH,
    ID_TOKEN, Token,
};
use std::sync::Arc;

/// Why no token is given.
pub(super) struct Refused {
    pub(super) status: StatusCode,
    pub(super) code: &'static str,
    pub(super) message: &'static str,
    pub(super) record: OnRecord,
}

/// How a refusal is put on record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum OnRecord {
    /// By itself: it is this server's fault.
    Each,
    /// A stranger can cause it as often as he likes: by itself until his address has too many.
    Limited,
    /// Not at all: nothing was begun.
    Never,
}

impl Refused {
    pub(super) fn bad(code: &'static str, message: &'static str) -> Refused {
        let (status, record) = (StatusCode::BAD_REQUEST, OnRecord::Limited);
        Refused { status, code, message, record }
    }

    fn storage(message: &'static str, record: OnRecord) -> Refused {
        let status = StatusCode::SERVICE_UNAVAILABLE;
        Refused { status, code: "BXNIM0999E", message, record }
    }
}

/// Who asked, by what, and until when a refresh token of his is good.
pub(super) struct Login {
    pub(super) principal: Principal,
    pub(super) credential: Credential,
    /// When the credential ends by itself, in seconds since the Unix epoch: no access token of it
    /// lives longer.
    pub(super) until_s: Option<i64>,
    /// Seconds since the Unix epoch; none where the credential itself is at hand anyway.
    pub(super) refresh_until_s: Option<i64>,
}

pub(crate) async fn token(
    State(app): State<Arc<App>>,
    node: Option<axum::Extension<Node>>,
    trace: Trace,
    body: Body,
) -> Response {
    let fields = form(&body.0);
    let field = |name: &str| {
        let found = fields.iter().find(|(n, _)| n == name).map(|(_, v)| v.clone());
        found.unwrap_or_default()
    };
    let (grant, now) = (field("grant_type"), app.clock.now());
    let found = match grant.as_str() {
        GRANT_APIKEY => by_api_key(&app, field("apikey"), now).await,
        GRANT_REFRESH => by_refresh_token(&app, field("refresh_token"), now).await,
        GRANT_CR_TOKEN => {
            let profile = ["profile_id", "profile_crn", "profile_name"].map(field);
            let profile = profile.into_iter().find(|text| !text.is_empty());
            trust::login(&app, field("cr_token"), profile, now).await
        }
        GRANT_EXCHANGE if field("subject_token_type") == ID_TOKEN => {
            login::login(&app, field("subject_token"), now).await
        }
        GRANT_EXCHANGE => {
            Err(Refused::bad("BXNIM0448E", "Only an ID token is taken as subject_token_type."))
        }
        GRANT_NODE => {
            let node = node.map(|n| n.0);
            if let Some(Err(too_often)) = node.as_ref().map(|node| node.admit(&app)) {
                return Form::Identity.too_often(too_often);
            }
            by_certificate(&app, node).await
        }
        _ => Err(Refused::bad(
            "BXNIM0106E",
            "This grant_type is not supported; use an API key, a refresh token, a cr-token or an ID token.",
        )),
    };
    if let Err(refused) = &found
        && refused.record == OnRecord::Limited
        && app.refusals.login_failed(&app, now, trace.origin.address)
    {
        let what = "Too many logins from this address have failed. Wait, and use a credential that is good.";
        let status = StatusCode::TOO_MANY_REQUESTS;
        let mut answer = error::identity(status, "BXNIM0429E", what, &trace.correlation);
        answer.headers_mut().insert(header::RETRY_AFTER, RETRY_AFTER_S.into());
        return answer;
    }
    if let Err(refused) = &found
        && refused.record == OnRecord::Never
    {
        return error::identity(refused.status, refused.code, refused.message, &trace.correlation);
    }
    // Whoever comes in counts like his other calls: each login is on record.
    if let Ok(login) = &found
        && grant != GRANT_NODE
    {
        let (iam_id, credential) = (&login.principal.iam_id, &login.credential);
        if let Err(too_often) = auth::admit(&app, iam_id, credential) {
            return Form::Identity.too_often(too_often);
        }
    }
    let (who, status, reason) = match &found {
        Ok(login) => (&*login.principal.iam_id, 200, ""),
        Err(refused) => ("-", refused.status.as_u16(), refused.code),
    };
    let proof = match grant.as_str() {
        GRANT_NODE => Proof::Certificate,
        GRANT_APIKEY => Proof::ApiKey,
        _ => Proof::Token,
    };
    let target: String = grant.chars().take(80).collect();
    let record = trace.record(who, proof, now, "iam-identity.user-apikey.login", target);
    let record = Record { status, reason: reason.into(), ..record };
    let found = match app.recorder.record(record).await {
        Ok(()) => found,
        Err(e) => Err(Refused::storage(e.what(), OnRecord::Each)),
    };
    match found {
        Ok(login) => Json(issue(&app, &login, &grant, now)).into_response(),
        Err(refused) => {
            error::identity(refused.status, refused.code, refused.message, &trace.correlation)
        }
    }
}

fn issue(app: &App, login: &Login, grant: &str, now: UnixMs) -> Token {
    let now_s = now.0.div_euclid(1000);
    let left_s = |until_s: i64| until_s.saturating_sub(now_s).max(0);
    let life_s = login.until_s.map_or(i64::MAX, left_s).min(app.token_life_s());
    let access_token = app.tokens.issue(&Issue {
        principal: &login.principal,
        credential: &login.credential,
        account: &app.account.id,
        issuer: &app.issuer(),
        grant_type: grant,
        now,
        life_s,
    });
    let refresh_token = match login.refresh_until_s {
        None => "not_supported".to_owned(),
        Some(expires_s) => {
            let (iam_id, credential) = (login.principal.iam_id.clone(), login.credential.clone());
            app.tokens.refresh_token(&Bearer { iam_id, credential, expires_s }, now)
        }
    };
    Token {
        access_token,
        refresh_token,
        token_type: "Bearer".to_owned(),
        expires_in: life_s.unsigned_abs(),
        expiration: now_s + life_s,
        scope: "ibm openid".to_owned(),
        issued_token_type: (grant == GRANT_EXCHANGE).then(|| ACCESS_TOKEN.to_owned()),
    }
}

async fn by_api_key(app: &Arc<App>, api_key: String, now: UnixMs) -> Result<Login, Refused> {
    let unknown = || Refused::bad("BXNIM0415E", "Provided API key could not be found.");
    if api_key.is_empty() {
        return Err(unknown());
    }
    let mac = app.tokens.api_key_mac(&api_key);
    let found = app
        .asked(For::Other, move |app| app.store.read("api key", |tx| iam::by_api_key(tx, &mac)))
        .await
        .map_err(storage)?;
    match found {
        Some((principal, key, stored)) if digest::equal(&stored, &mac) => {
            let until = now.0.div_euclid(1000) + app.settings.refresh_life.as_secs() as i64;
            let credential = Credential::ApiKey(key);
            Ok(Login { principal, credential, until_s: None, refresh_until_s: Some(until) })
        }
        _ => Err(unknown()),
    }
}

/// The same caller again, for as long as the login is good and its credential counts. The new
/// refresh token ends when the old one would have.
async fn by_refresh_token(app: &Arc<App>, token: String, now: UnixMs) -> Result<Login, Refused> {
    // The code on which clients log in anew.
    let over = || Refused::bad("BXNIM0407E", "Provided refresh_token is invalid; log in again.");
    let bearer = app.tokens.read_refresh(&token, now).map_err(|bad| match bad {
        BadToken::Malformed | BadToken::Foreign | BadToken::Expired => over(),
    })?;
    let Bearer { iam_id, credential, expires_s } = bearer;
    let asked = credential.clone();
    let found = app.asked(For::Other, move |app| {
        app.store.read("refresh token", |tx| {
            if alive(tx, &iam_id, &asked, now)? { iam::principal(tx, &iam_id) } else { Ok(None) }
        })
    });
    let principal = found.await.map_err(storage)?.ok_or_else(over)?;
    Ok(Login { principal, credential, until_s: None, refresh_until_s: Some(expires_s) })
}

async fn by_certificate(app: &Arc<App>, node: Option<Node>) -> Result<Login, Refused> {
    let refused = || Refused {
        status: StatusCode::UNAUTHORIZED,
        code: "BXNIM0410E",
        message: "This grant needs the certificate of a node that belongs to a cluster.",
        record: OnRecord::Limited,
    };
    let node = node.ok_or_else(refused)?;
    let crn = app.account.cluster_crn(&node.cluster);
    let until_s = Some(node.not_after.0.div_euclid(1000));
    let (agent, fingerprint) = (node.agent.clone(), node.fingerprint.clone());
    let credential = Credential::Node { agent, fingerprint, not_after: node.not_after };
    let known = app
        .asked(For::Node, move |app| {
            app.store.read("node", |tx| crate::clusters::admits(tx, &node, app.clock.now()))
        })
        .await
        .map_err(storage)?;
    if !known {
        return Err(refused());
    }
    let iam_id = format!("crn-{crn}");
    let principal = Principal { name: crn, service: true, email: String::new(), iam_id };
    Ok(Login { principal, credential, until_s, refresh_until_s: None })
}

pub(super) fn storage(e: claviger_store::StoreError) -> Refused {
    if matches!(e, claviger_store::StoreError::Busy) {
        return Refused::storage(error::BUSY, OnRecord::Never);
    }
    tracing::error!(error = %e, "database");
    Refused::storage("The server's database did not answer. Try again.", OnRecord::Each)
}

/// Reads `application/x-www-form-urlencoded` (WHATWG URL standard, section 5.1).
fn form(body: &[u8]) -> Vec<(String, String)> {
    let text = String::from_utf8_lossy(body);
    text.split('&')
        .filter_map(|pair| {
            let (name, value) = pair.split_once('=')?;
            Some((decode(name), decode(value)))
        })
        .collect()
}

fn decode(text: &str) -> String {
    let bytes: Vec<u8> = text.bytes().map(|b| if b == b'+' { b' ' } else { b }).collect();
    String::from_utf8_lossy(&crate::http::percent_decode(&bytes)).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forms_are_decoded() {
        let fields = form(b"grant_type=urn%3Aibm%3Aparams&apikey=a+b%2Bc&bad&x=%zz");
        let want = [("grant_type", "urn:ibm:params"), ("apikey", "a b+c"), ("x", "%zz")];
        let want = want.map(|(n, v)| (n.to_owned(), v.to_owned()));
        assert_eq!(fields, want);
    }
}
