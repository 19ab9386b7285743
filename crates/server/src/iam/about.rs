//! What anyone may know: who he is, which roles there are, which keys sign tokens. And who makes
//! another such key.

use super::TAG;
use super::shape::{KMS, old_role, role_crn, role_text};
use super::signing;
use crate::app::App;
use crate::http::admin::{Doing, Needs, Refusal, facts};
use crate::http::api::content::json;
use crate::http::api::parameters::{NOW, OLD_ROLES, ROLES};
use crate::http::api::{Api, Kind, get, post, says};
use crate::http::auth::Caller;
use crate::http::error::Form;
use crate::iam::signing::SigningKeys;
use crate::keys::query::Query;
use crate::room::For;
use axum::Json;
use axum::extract::State;
use claviger_domain::audit::Facts;
use claviger_domain::policy::Role;
use claviger_store::{Tx, iam};
use claviger_wire::access::{OldPlatformRoles, OldRoles, OldSystemRole, Role as WireRole, Roles};
use claviger_wire::iam::{EcJwk, JwkSet, RotatedSigningKey, UserInfo, UserInfoAccount};
use std::sync::Arc;

pub(super) fn api() -> Api {
    let keys_ = says("getTokenKeys", "Public keys, to verify access tokens with")
        .answers(200, json::<JwkSet>());
    let info = says("getUserInfo", "Who the caller is").answers(200, json::<UserInfo>());
    let roles_ = says("listRoles", "Roles").query(&[ROLES]).answers(200, json::<Roles>());
    let old = says("listOldRoles", "Roles of a service, in the older form")
        .query(&OLD_ROLES)
        .answers(200, json::<OldRoles>());
    let rotated = says("rotateSigningKey", "Another key signs tokens from now on")
        .query(&[NOW])
        .answers(200, json::<RotatedSigningKey>())
        .refuses(&[400, 409]);
    Api::new(TAG, Kind::Open)
        .at("/identity/keys", [get(keys, keys_)])
        .merge(Api::new(TAG, Kind::Identity).at("/identity/userinfo", [get(user_info, info)]))
        .merge(
            Api::new(TAG, Kind::Access)
                .at("/v2/roles", [get(roles, roles_)])
                .at("/acms/v1/roles", [get(old_roles, old)]),
        )
        .merge(Api::new(TAG, Kind::Service).at("/v3/signing-keys/rotate", [post(rotate, rotated)]))
}

/// `GET /identity/keys`: public keys, for whoever verifies tokens. Needs no token.
async fn keys(State(app): State<Arc<App>>) -> Json<JwkSet> {
    let jwk = |key: &signing::SigningKey| EcJwk {
        kty: "EC".to_owned(),
        crv: "P-256".to_owned(),
        usage: "sig".to_owned(),
        alg: "ES256".to_owned(),
        kid: key.listed.kid.clone(),
        x: key.point.0.clone(),
        y: key.point.1.clone(),
    };
    let (now, life_s) = (app.clock.now(), app.token_life_s());
    Json(JwkSet { keys: app.tokens.with_keys(now, life_s, |keys| keys.map(jwk).collect()) })
}

/// `POST /v3/signing-keys/rotate`: another key signs from now on. The ones before verify as long
/// as their tokens live, or with `now=true` no longer.
async fn rotate(
    State(app): State<Arc<App>>,
    caller: Caller,
    query: Query,
) -> Result<Json<RotatedSigningKey>, Refusal> {
    let (form, action) = (Form::Service, "iam-identity.signing-key.rotate");
    let (target, needs) = ("signing-keys".to_owned(), Needs::Administrator);
    let doing = Doing::new(caller, form, action, target, needs);
    let rotated = doing.run_then(
        &app,
        move |app, tx, doing, now| {
            let life_s = match query.get("now") {
                None | Some("false") => Some(app.token_life_s()),
                Some("true") => None,
                Some(_) => return Err(Refusal::bad("now must be true or false")),
            };
            let made = signing::rotate(tx, &*app.custodian, now, life_s).map_err(failed)?;
            let many = || {
                let what = "There are as many signing keys as there may be whose tokens live; \
                            wait for some to end, or end all of them with now=true";
                Refusal::conflict("SIGNING_KEY_QUOTA_ERR", what)
            };
            let kid = made.ok_or_else(many)?.kid;
            let ended = if life_s.is_none() { "all before it" } else { "" };
            doing.changed(Facts::new(), facts([("kid", kid.clone()), ("ended", ended.to_owned())]));
            Ok(kid)
        },
        // Only once it is durable, and whether or not the client waits for its answer: a token
        // must not name a key that nobody knows after a crash, nor be signed by one that ended.
        |app| {
            let keys =
                || app.store.read("signing keys", |tx| SigningKeys::load(tx, &*app.custodian));
            app.tokens.reload(keys).map_err(failed)
        },
    );
    Ok(Json(RotatedSigningKey { kid: rotated.await? }))
}

fn failed(e: crate::first::StartError) -> Refusal {
    tracing::error!(error = %e, "signing key");
    let what = "The server could not make a signing key; its log says why";
    Refusal::new(axum::http::StatusCode::SERVICE_UNAVAILABLE, "SIGNING_KEY_ERR", what)
}

/// `GET /identity/userinfo`.
async fn user_info(State(app): State<Arc<App>>, caller: Caller) -> Result<Json<UserInfo>, Refusal> {
    let iam_id = caller.iam_id;
    let seen = app.asked(For::Other, move |app| {
        app.store.read("userinfo", |tx: &Tx<'_>| {
            let principal = iam::principal(tx, &iam_id)?;
            let (name, email) = principal.map(|p| (p.name, p.email)).unwrap_or_default();
            let (realm, identifier) = iam_id.split_once('-').unwrap_or(("iam", &iam_id));
            Ok::<_, Refusal>(UserInfo {
                active: true,
                realm_id: realm.to_owned(),
                identifier: identifier.to_owned(),
                sub: if email.is_empty() { iam_id.clone() } else { email.clone() },
                name,
                email,
                account: UserInfoAccount { bss: app.account.id.clone() },
                iss: app.issuer(),
                iam_id,
            })
        })
    });
    Ok(Json(seen.await?))
}

fn is_service(role: &Role) -> bool {
    matches!(role, Role::Service(_))
}

/// `GET /v2/roles`. Roles are as they are: there are no custom ones.
async fn roles(State(app): State<Arc<App>>, _: Caller, query: Query) -> Json<Roles> {
    let role = |role: Role| WireRole {
        id: role_crn(role),
        crn: role_crn(role),
        name: role.name().to_owned(),
        display_name: role.name().to_owned(),
        description: role_text(role).to_owned(),
        service_name: if is_service(&role) { KMS.to_owned() } else { String::new() },
        account_id: app.account.id.clone(),
        actions: Vec::new(),
    };
    let keys = query.get("service_name").is_some_and(|name| name == KMS);
    let (service, system): (Vec<Role>, Vec<Role>) = Role::all().partition(is_service);
    let service_roles = service.into_iter().filter(|_| keys).map(role).collect();
    let system_roles = system.into_iter().map(role).collect();
    Json(Roles { custom_roles: Vec::new(), service_roles, system_roles })
}

/// `GET /acms/v1/roles`: of a service, or those that an authorization can give.
async fn old_roles(_: Caller, query: Query) -> Json<OldRoles> {
    use claviger_domain::access::ServiceRole::Reader;
    let keys = query.get("serviceName").is_some_and(|name| name == KMS);
    let authorization = query.get("policyType") == Some("authorization");
    let (service, system): (Vec<Role>, Vec<Role>) = Role::all().partition(is_service);
    let fits = |role: &Role| keys && (!authorization || *role == Role::Service(Reader));
    let supported = service.into_iter().filter(fits).map(old_role).collect();
    let platform = system.iter().filter(|_| !authorization).copied().map(old_role).collect();
    let system = system.iter().map(|role| OldSystemRole {
        crn: role_crn(*role),
        display_name: role.name().to_owned(),
        description: role_text(*role).to_owned(),
    });
    Json(OldRoles {
        supported_roles: supported,
        platform_extensions: OldPlatformRoles { supported_roles: platform },
        system_defined_roles: system.collect(),
    })
}
