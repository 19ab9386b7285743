//! Tokens: who calls. What they may do is looked up for each request.

mod grant;
mod principals;
pub mod token;

use crate::http::api::content::{Content, json};
use crate::http::api::{Api, Description, Kind, post, says};
use claviger_wire::iam::{GRANT_APIKEY, GRANT_NODE, MadePrincipal, NewPrincipal, Token};
use schemars::json_schema;

/// Paths of IAM.
pub(crate) fn api() -> Api {
    let principal = says("createPrincipal", "Let a person or a service in, with an API key")
        .takes(json::<NewPrincipal>())
        .answers(201, json::<MadePrincipal>())
        .refuses(&[409]);
    Api::new("access", Kind::Token)
        .at("/identity/token", [post(grant::token, token("createToken"))])
        .at("/oidc/token", [post(grant::token, token("createTokenOidc"))])
        .merge(
            Api::new("access", Kind::Service)
                .at("/v3/principals", [post(principals::create, principal)]),
        )
}

fn token(id: &'static str) -> Description {
    says(id, "A token for an API key, or for the certificate of a node")
        .takes(FORM)
        .answers(200, json::<Token>())
}

/// What the token endpoint takes.
const FORM: Content = Content {
    media_type: "application/x-www-form-urlencoded",
    schema: |_| {
        json_schema!({
            "type": "object",
            "properties": {
                "grant_type": { "enum": [GRANT_APIKEY, GRANT_NODE] },
                "apikey": { "type": "string", "description": "Only with the first grant type." },
            },
            "required": ["grant_type"],
        })
    },
};
