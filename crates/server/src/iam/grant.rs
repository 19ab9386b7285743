//! `POST /identity/token` and `POST /oidc/token`.

use crate::app::App;
use crate::http::Trace;
use crate::http::auth::Node;
use crate::http::body::Body;
use crate::http::error;
use crate::iam::token::Issue;
use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use claviger_crypto::digest;
use claviger_domain::audit::{Credential, Record};
use claviger_store::iam::{self, Principal};
use claviger_wire::iam::{GRANT_APIKEY, GRANT_NODE, Token};
use std::sync::Arc;

struct Refused {
    status: StatusCode,
    code: &'static str,
    message: &'static str,
}

pub(crate) async fn token(
    State(app): State<Arc<App>>,
    node: Option<axum::Extension<Node>>,
    trace: Trace,
    body: Body,
) -> Response {
    let fields = form(&body.0);
    let field = |name: &str| fields.iter().find(|(n, _)| n == name).map(|(_, v)| v.as_str());
    let grant = field("grant_type").unwrap_or_default();
    let found = match grant {
        GRANT_APIKEY => by_api_key(&app, field("apikey").unwrap_or_default()).await,
        GRANT_NODE => by_certificate(&app, node.map(|n| n.0)).await,
        _ => Err(Refused {
            status: StatusCode::BAD_REQUEST,
            code: "BXNIM0106E",
            message: "This grant_type is not supported; use an API key.",
        }),
    };
    let now = app.clock.now();
    let (who, status, reason) = match &found {
        Ok(principal) => (&*principal.iam_id, 200, ""),
        Err(refused) => ("-", refused.status.as_u16(), refused.code),
    };
    let credential = if grant == GRANT_NODE { Credential::Certificate } else { Credential::ApiKey };
    let target: String = grant.chars().take(80).collect();
    let login = trace.record(who, credential, now, "iam-identity.user-apikey.login", target);
    let record = Record { status, reason: reason.into(), ..login };
    let recorded = app.recorder.record(record).await;
    let found = match recorded {
        Ok(()) => found,
        Err(e) => Err(Refused {
            status: StatusCode::SERVICE_UNAVAILABLE,
            code: "BXNIM0999E",
            message: e.what(),
        }),
    };
    match found {
        Ok(principal) => {
            let life_s = app.settings.token_life.as_secs() as i64;
            let issuer = format!("{}/identity", app.settings.url);
            let access_token = app.tokens.issue(&Issue {
                principal: &principal,
                account: &app.account.id,
                issuer: &issuer,
                grant_type: grant,
                now,
                life_s,
            });
            Json(Token {
                access_token,
                refresh_token: "not_supported".to_owned(),
                token_type: "Bearer".to_owned(),
                expires_in: app.settings.token_life.as_secs(),
                expiration: now.0.div_euclid(1000) + life_s,
                scope: "ibm openid".to_owned(),
            })
            .into_response()
        }
        Err(refused) => {
            error::token(refused.status, refused.code, refused.message, &trace.correlation)
        }
    }
}

async fn by_api_key(app: &Arc<App>, api_key: &str) -> Result<Principal, Refused> {
    let unknown = Refused {
        status: StatusCode::BAD_REQUEST,
        code: "BXNIM0415E",
        message: "Provided API key could not be found.",
    };
    if api_key.is_empty() {
        return Err(unknown);
    }
    let mac = app.tokens.api_key_mac(api_key);
    let found = app
        .blocking(move |app| app.store.read("api key", |tx| iam::by_api_key(tx, &mac)))
        .await
        .map_err(storage)?;
    match found {
        Some((principal, stored)) if digest::equal(&stored, &mac) => Ok(principal),
        _ => Err(unknown),
    }
}

async fn by_certificate(app: &Arc<App>, node: Option<Node>) -> Result<Principal, Refused> {
    let refused = Refused {
        status: StatusCode::UNAUTHORIZED,
        code: "BXNIM0410E",
        message: "This grant needs the certificate of a node that belongs to a cluster.",
    };
    let Some(node) = node else { return Err(refused) };
    let crn = app.account.cluster_crn(&node.cluster);
    let known = app
        .blocking(move |app| {
            app.store.read("node", |tx| crate::clusters::admits(tx, &node, app.clock.now()))
        })
        .await
        .map_err(storage)?;
    if !known {
        return Err(refused);
    }
    let iam_id = format!("crn-{crn}");
    Ok(Principal { name: crn, service: true, email: String::new(), iam_id })
}

fn storage(e: claviger_store::StoreError) -> Refused {
    tracing::error!(error = %e, "database");
    Refused {
        status: StatusCode::SERVICE_UNAVAILABLE,
        code: "BXNIM0999E",
        message: "The server's database did not answer. Try again.",
    }
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
