//! The grant `token-exchange` (RFC 8693): people come in by an ID token of an OpenID Connect issuer
//! that the operator named. Who someone is, issuer and subject say together, never an e-mail
//! address: that may be another's tomorrow.

use super::grant::{Login, OnRecord, Refused, storage};
use super::issuer_keys::NoKey;
use super::principals::PRINCIPALS_MAX;
use super::token::{Credential, LEEWAY_S};
use super::trust::{Audience, TOKEN_MAX, issuer_of, signed};
use crate::app::{App, LoginIssuer};
use crate::http::admin::facts;
use crate::room::For;
use axum::http::StatusCode;
use claviger_domain::audit::{Change, Data, Facts, Record};
use claviger_domain::id::UnixMs;
use claviger_store::iam::{self, Principal};
use claviger_store::logins::{self, LoginSubject};
use claviger_store::{StoreError, Tx, audit};
use serde::Deserialize;
use std::sync::Arc;
use uuid::Uuid;

/// How old an ID token may be, in seconds: it is exchanged as soon as the issuer gave it, and one
/// that was stolen later is of no use.
const AGE_MAX_S: i64 = 600;
/// Longest subject, in bytes (OpenID Connect Core 1.0, section 2).
pub(super) const SUBJECT_MAX: usize = 255;
/// Longest name that is taken over, in characters.
const NAME_MAX: usize = 180;

/// What is read of an ID token (OpenID Connect Core 1.0, section 2).
#[derive(Deserialize)]
struct Claims {
    iss: String,
    sub: String,
    aud: Audience,
    exp: i64,
    iat: i64,
    #[serde(default)]
    nbf: Option<i64>,
    #[serde(default)]
    azp: Option<String>,
    #[serde(default)]
    name: String,
}

/// Why an ID token is no way in; for the server's log.
#[derive(Debug, PartialEq, Eq)]
enum Unfit {
    Issuer,
    Audience,
    Party,
    Ended,
    Early,
    Old,
    Subject,
}

/// Whether a token that the issuer signed is one for this server, now.
fn fits(claims: &Claims, issuer: &LoginIssuer, now: UnixMs) -> Result<(), Unfit> {
    let now_s = now.0.div_euclid(1000);
    if claims.iss != issuer.issuer {
        return Err(Unfit::Issuer);
    }
    if !claims.aud.has(&issuer.audience) {
        return Err(Unfit::Audience);
    }
    // For several, or for another: the one that it was given to must be ours.
    if claims.azp.as_ref().map_or(claims.aud.several(), |azp| *azp != issuer.audience) {
        return Err(Unfit::Party);
    }
    if now_s > claims.exp.saturating_add(LEEWAY_S) {
        return Err(Unfit::Ended);
    }
    if claims.nbf.unwrap_or(claims.iat).max(claims.iat) > now_s + LEEWAY_S {
        return Err(Unfit::Early);
    }
    if now_s > claims.iat.saturating_add(AGE_MAX_S) {
        return Err(Unfit::Old);
    }
    if !(1..=SUBJECT_MAX).contains(&claims.sub.len()) || claims.sub.chars().any(char::is_control) {
        return Err(Unfit::Subject);
    }
    Ok(())
}

/// Exchanges an ID token. One answer for all that is wrong with it; who is not let in although an
/// issuer vouches for him is told so, since only he has his token.
pub(super) async fn login(app: &Arc<App>, token: String, now: UnixMs) -> Result<Login, Refused> {
    let bad = || {
        Refused::bad(
            "BXNIM0446E",
            "Provided subject_token is no ID token of an issuer that is believed here, for this audience, given within the last minutes.",
        )
    };
    if token.len() > TOKEN_MAX {
        return Err(bad());
    }
    let issuer = issuer_of(&token).and_then(|issuer| app.issuers.named(&issuer));
    let Some(issuer) = issuer.cloned() else { return Err(bad()) };
    let kid = jsonwebtoken::decode_header(&token).ok().and_then(|header| header.kid);
    let Some(kid) = kid else { return Err(bad()) };
    let key = match app.issuers.key(&issuer, &kid).await {
        Ok(key) => key,
        Err(NoKey::Unknown) => return Err(bad()),
        Err(down @ NoKey::Down { .. }) => {
            tracing::warn!(error = %down, "a login fails");
            return Err(Refused {
                status: StatusCode::SERVICE_UNAVAILABLE,
                code: "BXNIM0513E",
                message: "The issuer of this token does not give its keys, so the token cannot be verified. Try again.",
                record: OnRecord::Limited,
            });
        }
    };
    let Some(claims) = signed::<Claims>(&token, &key) else { return Err(bad()) };
    if let Err(unfit) = fits(&claims, &issuer, now) {
        tracing::info!(issuer = issuer.issuer, ?unfit, "an ID token is refused");
        return Err(bad());
    }
    let (issuer, subject) = (issuer.issuer, claims.sub);
    let credential = Credential::Login { issuer: issuer.clone(), subject: subject.clone() };
    let found = app.asked(For::Other, move |app| {
        let known = app.store.read("login", |tx| person(tx, &issuer, &subject))?;
        match known {
            None if app.settings.login.open => {
                app.store.tx("first login", |tx| first(tx, &issuer, &subject, &claims.name, now))
            }
            known => Ok(known),
        }
    });
    let principal = found.await.map_err(storage)?.ok_or_else(|| {
        Refused::bad(
            "BXNIM0447E",
            "The issuer vouches for you, but nobody has let you in here. An administrator does it with: claviger iam user create NAME --issuer ISSUER --subject SUBJECT",
        )
    })?;
    let until = now.0.div_euclid(1000) + app.settings.refresh_life.as_secs() as i64;
    Ok(Login { principal, credential, until_s: None, refresh_until_s: Some(until) })
}

/// Whom a subject of an issuer comes in as.
fn person(tx: &Tx<'_>, issuer: &str, subject: &str) -> Result<Option<Principal>, StoreError> {
    match logins::person(tx, issuer, subject)? {
        Some(iam_id) => iam::principal(tx, &iam_id),
        None => Ok(None),
    }
}

/// Makes a person of somebody whom an issuer vouches for: without any role.
fn first(
    tx: &Tx<'_>,
    issuer: &str,
    subject: &str,
    name: &str,
    now: UnixMs,
) -> Result<Option<Principal>, StoreError> {
    if let Some(there) = person(tx, issuer, subject)? {
        return Ok(Some(there));
    }
    if iam::count_principals(tx)? >= PRINCIPALS_MAX {
        return Ok(None);
    }
    let name: String = name.chars().filter(|c| !c.is_control()).take(NAME_MAX).collect();
    let name = match name.trim() {
        "" => subject.to_owned(),
        name => name.to_owned(),
    };
    let iam_id = new_person_id();
    let principal =
        Principal { iam_id: iam_id.clone(), service: false, name, email: String::new() };
    iam::add_principal(tx, &principal, now)?;
    let login = LoginSubject { issuer: issuer.to_owned(), subject: subject.to_owned() };
    logins::add(tx, &login, &iam_id, &iam_id, now)?;
    let to = facts([("name", principal.name.clone()), ("logins", format!("{issuer} {subject}"))]);
    let record = Record::of_system(now, "iam-identity.user.create", iam_id);
    let change = Some(Change::Access { from: Facts::new(), to });
    audit::add(tx, &Record { data: Data { change, ..Data::default() }, ..record })?;
    Ok(Some(principal))
}

/// An IAM id for a person that is new.
pub(super) fn new_person_id() -> String {
    let text = Uuid::new_v4().simple().to_string().to_ascii_uppercase();
    format!("IBMid-{}", &text[..10])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_token_is_judged() {
        let issuer = LoginIssuer {
            issuer: "https://i".to_owned(),
            audience: "claviger".to_owned(),
            jwks_url: None,
        };
        let one = |audience: &str| Audience::One(audience.to_owned());
        let many = |all: &[&str]| Audience::Many(all.iter().map(|a| (*a).to_owned()).collect());
        let now = 1_000_000;
        let good = || Claims {
            iss: "https://i".to_owned(),
            sub: "s".to_owned(),
            aud: one("claviger"),
            exp: now + 60,
            iat: now,
            nbf: None,
            azp: None,
            name: String::new(),
        };
        let rows: Vec<(&str, Claims, Result<(), Unfit>)> = vec![
            ("good", good(), Ok(())),
            ("slash", Claims { iss: "https://i/".to_owned(), ..good() }, Err(Unfit::Issuer)),
            ("for another", Claims { aud: one("other"), ..good() }, Err(Unfit::Audience)),
            ("for none", Claims { aud: many(&[]), ..good() }, Err(Unfit::Audience)),
            ("alone in a list", Claims { aud: many(&["claviger"]), ..good() }, Ok(())),
            ("for several", Claims { aud: many(&["claviger", "x"]), ..good() }, Err(Unfit::Party)),
            (
                "for several, given to us",
                Claims {
                    aud: many(&["claviger", "x"]),
                    azp: Some("claviger".to_owned()),
                    ..good()
                },
                Ok(()),
            ),
            ("to another", Claims { azp: Some("x".to_owned()), ..good() }, Err(Unfit::Party)),
            ("ended", Claims { exp: now - LEEWAY_S - 1, ..good() }, Err(Unfit::Ended)),
            ("nearly ended", Claims { exp: now - LEEWAY_S, ..good() }, Ok(())),
            ("of tomorrow", Claims { iat: now + LEEWAY_S + 1, ..good() }, Err(Unfit::Early)),
            ("not yet", Claims { nbf: Some(now + 60), ..good() }, Err(Unfit::Early)),
            ("old", Claims { iat: now - AGE_MAX_S - 1, ..good() }, Err(Unfit::Old)),
            ("endless", Claims { exp: i64::MAX, iat: i64::MIN, ..good() }, Err(Unfit::Old)),
            ("nobody", Claims { sub: String::new(), ..good() }, Err(Unfit::Subject)),
            ("long", Claims { sub: "x".repeat(256), ..good() }, Err(Unfit::Subject)),
        ];
        for (what, claims, expected) in rows {
            assert_eq!(fits(&claims, &issuer, UnixMs(now * 1000)), expected, "{what}");
        }
    }
}
