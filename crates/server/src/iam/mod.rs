//! Identity and access: who calls, by which token, and who may do what. What a caller may do is
//! compiled from the policies about him and counts for as long as none of them changes.

mod about;
mod grant;
mod groups;
mod identities;
pub(crate) mod issuer_keys;
mod issuers;
pub(crate) mod known;
mod login;
mod logins;
mod policies;
mod principals;
pub(crate) mod said;
mod shape;
pub(crate) mod signing;
mod text;
pub mod token;
pub(crate) mod trust;

pub use issuer_keys::{LoginError, may_ask};
pub(crate) use policies::POLICIES_MAX;
#[cfg(test)]
pub(crate) use policies::fill;

use crate::http::api::content::{Content, json};
use crate::http::api::{Api, Description, Kind, post, says};
use claviger_wire::iam::{
    GRANT_APIKEY, GRANT_CR_TOKEN, GRANT_EXCHANGE, GRANT_NODE, GRANT_REFRESH, ID_TOKEN,
    MadePrincipal, NewPrincipal, Token,
};
use schemars::json_schema;

/// The heading of all of it in the description.
const TAG: &str = "access";

/// Paths of IAM.
pub(crate) fn api() -> Api {
    let principal = says("createPrincipal", "Let a person or a service in, with an API key")
        .takes(json::<NewPrincipal>())
        .answers(201, json::<MadePrincipal>())
        .refuses(&[409]);
    Api::new(TAG, Kind::Token)
        .at("/identity/token", [post(grant::token, token("createToken"))])
        .at("/oidc/token", [post(grant::token, token("createTokenOidc"))])
        .merge(
            Api::new(TAG, Kind::Service)
                .at("/v3/principals", [post(principals::create, principal)]),
        )
        .merge(about::api())
        .merge(groups::api())
        .merge(identities::api())
        .merge(issuers::api())
        .merge(logins::api())
        .merge(policies::api())
}

fn token(id: &'static str) -> Description {
    says(id, "A token for an API key, a refresh token, a pod's or a person's token, a certificate")
        .takes(FORM)
        .answers(200, json::<Token>())
        .refuses(&[429, 503])
}

/// What the token endpoint takes.
const FORM: Content = Content {
    media_type: "application/x-www-form-urlencoded",
    schema: |_| {
        json_schema!({
            "type": "object",
            "properties": {
                "grant_type": {
                    "enum": [
                        GRANT_APIKEY, GRANT_REFRESH, GRANT_CR_TOKEN, GRANT_NODE, GRANT_EXCHANGE,
                    ],
                },
                "apikey": { "type": "string", "description": "With the first grant type." },
                "refresh_token": { "type": "string", "description": "With the second." },
                "cr_token": { "type": "string", "description": "With the third." },
                "profile_id": {
                    "type": "string",
                    "description": "With the third: which service ID to become, where several \
                        may be; so are the next two.",
                },
                "subject_token": { "type": "string", "description": "With the last." },
                "subject_token_type": { "enum": [ID_TOKEN] },
                "profile_crn": { "type": "string" },
                "profile_name": { "type": "string" },
            },
            "required": ["grant_type"],
        })
    },
};

#[cfg(test)]
mod tests;
