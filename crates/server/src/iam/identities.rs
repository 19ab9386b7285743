//! `/apikeys`, `/serviceids` and the users of the account: who can come in, and by what.
//!
//! A person manages his own API keys; everything else is for administrators.

use super::TAG;
use super::principals::PRINCIPALS_MAX;
use super::said::{said_of_all, said_of_key};
use super::shape::{etag, if_match, if_match_header};
use super::text::{described, named};
use crate::app::App;
use crate::http::admin::{Doing, Needs, Refusal, facts, parse};
use crate::http::api::content::json;
use crate::http::api::parameters::{API_KEYS, CASCADE, IF_MATCH, SERVICE_IDS, USERS};
use crate::http::api::{Api, Kind, delete, get, post, put, says};
use crate::http::auth::Caller;
use crate::http::body::Body;
use crate::http::error::Form;
use crate::keys::query::Query;
use crate::keys::view::date;
use axum::Json;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use claviger_domain::access::PlatformRole;
use claviger_domain::audit::Facts;
use claviger_domain::policy::{Site, Subject};
use claviger_store::iam::{self, ApiKey, Identity, Principal};
use claviger_store::{Tx, access};
use claviger_wire::access::{User, Users};
use claviger_wire::iam::{
    ApiKey as WireApiKey, ApiKeyEntity, IdentityMetadata, Items, NewIdentity, ServiceId,
    ServiceIdEntity,
};
use std::sync::Arc;
use uuid::Uuid;

/// API keys of one principal.
const API_KEYS_MAX: usize = 20;
/// Items on a page.
const PAGE: usize = 100;

pub(super) fn api() -> Api {
    api_keys().merge(service_ids()).merge(users())
}

fn api_keys() -> Api {
    let list = says("listApiKeys", "API keys, without their secrets")
        .query(&API_KEYS)
        .answers(200, json::<Items<WireApiKey>>())
        .refuses(&[400]);
    let create = says("createApiKey", "Make an API key; the answer alone has its secret")
        .takes(json::<NewIdentity>())
        .answers(201, json::<WireApiKey>())
        .refuses(&[409]);
    let one = says("getApiKey", "An API key").answers(200, json::<WireApiKey>()).refuses(&[404]);
    let change = says("updateApiKey", "Change name or description of an API key")
        .needs(IF_MATCH)
        .takes(json::<NewIdentity>())
        .answers(200, json::<WireApiKey>())
        .refuses(&[404, 409]);
    let remove = says("deleteApiKey", "Remove an API key; its tokens count no longer")
        .query(&[CASCADE])
        .answers_nothing(204)
        .refuses(&[404, 409]);
    Api::new(TAG, Kind::Identity)
        .at("/apikeys", [get(list_api_keys, list), post(create_api_key, create)])
        .at(
            "/apikeys/{api_key}",
            [get(read_api_key, one), put(change_api_key, change), delete(remove_api_key, remove)],
        )
}

fn service_ids() -> Api {
    let list = |id| {
        says(id, "Service IDs")
            .query(&SERVICE_IDS)
            .answers(200, json::<Items<ServiceId>>())
            .refuses(&[400])
    };
    let create = |id| {
        says(id, "Make a service ID")
            .takes(json::<NewIdentity>())
            .answers(201, json::<ServiceId>())
            .refuses(&[409])
    };
    let one =
        says("getServiceId", "A service ID").answers(200, json::<ServiceId>()).refuses(&[404]);
    let change = says("updateServiceId", "Change name or description of a service ID")
        .needs(IF_MATCH)
        .takes(json::<NewIdentity>())
        .answers(200, json::<ServiceId>())
        .refuses(&[404, 409]);
    let remove = says("deleteServiceId", "Remove a service ID, its API keys and its policies")
        .answers_nothing(204)
        .refuses(&[404, 409]);
    Api::new(TAG, Kind::Identity)
        .at(
            "/serviceids",
            [
                get(list_service_ids, list("listServiceIds")),
                post(create_service_id, create("createServiceId")),
            ],
        )
        // One client puts a slash at the end.
        .at(
            "/serviceids/",
            [
                get(list_service_ids, list("listServiceIdsSlash")),
                post(create_service_id, create("createServiceIdSlash")),
            ],
        )
        .at(
            "/serviceids/{service_id}",
            [
                get(read_service_id, one),
                put(change_service_id, change),
                delete(remove_service_id, remove),
            ],
        )
}

fn users() -> Api {
    let list =
        says("listUsers", "People").query(&[USERS]).answers(200, json::<Users>()).refuses(&[404]);
    let one = says("getUser", "A person").answers(200, json::<User>()).refuses(&[404]);
    let remove = says("deleteUser", "Remove a person, his API keys and the policies about him")
        .answers_nothing(204)
        .refuses(&[404, 409]);
    Api::new(TAG, Kind::Access).at("/v2/accounts/{account}/users", [get(list_users, list)]).at(
        "/v2/accounts/{account}/users/{iam_id}",
        [get(read_user, one), delete(remove_user, remove)],
    )
}

fn doing(caller: Caller, form: Form, action: &'static str, target: &str, needs: Needs) -> Doing {
    let target = target.chars().take(128).collect();
    Doing::new(caller, form, action, target, needs)
}

fn crn(app: &App, kind: &str, id: &str) -> String {
    format!("crn:v1:bluemix:public:iam-identity::a/{}::{kind}:{id}", app.account.id)
}

/// The UUID by which clients know a service ID: its IAM id without `iam-`.
fn uuid_of(iam_id: &str) -> &str {
    iam_id.strip_prefix("iam-").unwrap_or(iam_id)
}

/// Whom `boundTo` names: an IAM id, or a CRN that ends in a user or a service ID.
fn bound_to(text: &str) -> String {
    let last =
        if text.starts_with("crn:") { text.rsplit(':').next().unwrap_or(text) } else { text };
    if last.starts_with("ServiceId-") { format!("iam-{last}") } else { last.to_owned() }
}

/// One page of `all`, and what names the next one.
fn page<T>(query: &Query, all: Vec<T>) -> Result<(Vec<T>, Option<String>), Refusal> {
    let start: usize = match query.get("pagetoken").map(str::parse) {
        None => 0,
        Some(Ok(start)) => start,
        Some(Err(_)) => return Err(Refusal::bad("pagetoken must come out of nextPageToken")),
    };
    let next = start.saturating_add(PAGE);
    let token = (next < all.len()).then(|| next.to_string());
    Ok((all.into_iter().skip(start).take(PAGE).collect(), token))
}

/// Lets a person at his own, and an administrator at everything. A service ID is not let at its
/// own: whoever stole one key could make another.
fn mine_or_administrator(doing: &Doing, whose: &str) -> Result<(), Refusal> {
    let mine = !doing.caller.service && doing.caller.iam_id == whose;
    let least = PlatformRole::Administrator;
    if mine || doing.caller.platform(least, Site::Access) {
        return Ok(());
    }
    Err(doing.forbidden(least))
}

fn shown(app: &App, key: &ApiKey, secret: String) -> WireApiKey {
    let id = key.id.to_string();
    let kind = if key.iam_id.starts_with("iam-") { "serviceid" } else { "user" };
    WireApiKey {
        metadata: IdentityMetadata {
            uuid: id.clone(),
            iam_id: key.iam_id.clone(),
            version: etag(key.version, key.id),
            crn: crn(app, "apikey", &id),
            created_at: date(key.created),
            modified_at: date(key.updated),
        },
        entity: ApiKeyEntity {
            name: key.name.clone(),
            description: key.description.clone(),
            bound_to: crn(app, kind, uuid_of(&key.iam_id)),
            format: "APIKEY".to_owned(),
            api_key: secret,
            api_key_id: id,
            created_with: key.created_with.map(|with| with.to_string()).unwrap_or_default(),
        },
    }
}

/// The API key of this id, if the caller may manage it. Whoever may not manage all learns of
/// none that it is there.
fn managed(tx: &Tx<'_>, doing: &Doing, id: &str) -> Result<ApiKey, Refusal> {
    let id = id.strip_prefix("ApiKey-").unwrap_or(id).parse::<Uuid>().ok();
    match id.map(|id| iam::api_key(tx, id)).transpose()?.flatten() {
        Some(key) => {
            mine_or_administrator(doing, &key.iam_id)?;
            Ok(key)
        }
        None => {
            mine_or_administrator(doing, "")?;
            Err(Refusal::none("There is no such API key"))
        }
    }
}

/// `GET /apikeys?boundTo=`: the caller's own unless it says whose.
async fn list_api_keys(
    State(app): State<Arc<App>>,
    caller: Caller,
    query: Query,
) -> Result<Json<Items<WireApiKey>>, Refusal> {
    let whose = query.get("boundTo").map_or_else(|| caller.iam_id.clone(), bound_to);
    let action = "iam-identity.user-apikey.list";
    let list = doing(caller, Form::Identity, action, &whose, Needs::Token);
    let items = list.look(&app, move |app, tx, doing, _| {
        mine_or_administrator(doing, &whose)?;
        let (keys, next_page_token) = page(&query, iam::api_keys(tx, &whose)?)?;
        let items = keys.iter().map(|key| shown(app, key, String::new())).collect();
        Ok(Items { next_page_token, items })
    });
    Ok(Json(items.await?))
}

/// `POST /apikeys`. The secret is in the answer and nowhere else.
async fn create_api_key(
    State(app): State<Arc<App>>,
    caller: Caller,
    body: Body,
) -> Result<Response, Refusal> {
    let body = parse::<NewIdentity>(&body);
    let whose = match &body {
        Ok(body) if !body.bound_to.is_empty() => bound_to(&body.bound_to),
        _ => caller.iam_id.clone(),
    };
    let action = match whose.starts_with("iam-ServiceId-") {
        true => "iam-identity.serviceid-apikey.create",
        false => "iam-identity.user-apikey.create",
    };
    let create = doing(caller, Form::Identity, action, &whose, Needs::Token);
    let made = create.run(&app, move |app, tx, doing, now| {
        mine_or_administrator(doing, &whose)?;
        let body = body.as_ref().map_err(Clone::clone)?;
        if iam::principal(tx, &whose)?.is_none() {
            return Err(Refusal::bad("boundTo is neither a user nor a service ID here"));
        }
        if iam::api_keys(tx, &whose)?.len() >= API_KEYS_MAX {
            let what = format!("it has {API_KEYS_MAX} API keys, as many as it may; delete one");
            return Err(Refusal::conflict("APIKEY_QUOTA_ERR", what));
        }
        let name = named(&body.name)?;
        let mut key = ApiKey::new(&whose, &name, &doing.caller.iam_id, now);
        key.description = described(&body.description)?;
        key.created_with = doing.caller.api_key();
        let secret = app.tokens.new_api_key();
        iam::add_api_key(tx, &key, &app.tokens.api_key_mac(&secret))?;
        doing.changed(Facts::new(), said_of_key(&key));
        Ok(shown(app, &key, secret))
    });
    let mut answer = (StatusCode::CREATED, Json(made.await?)).into_response();
    answer.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    Ok(answer)
}

/// `GET /apikeys/{id}`.
async fn read_api_key(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path(id): Path<String>,
) -> Result<Json<WireApiKey>, Refusal> {
    let action = "iam-identity.user-apikey.read";
    let read = doing(caller, Form::Identity, action, &id, Needs::Token);
    let key = read.look(&app, move |app, tx, doing, _| {
        Ok(shown(app, &managed(tx, doing, &id)?, String::new()))
    });
    Ok(Json(key.await?))
}

/// `PUT /apikeys/{id}`: name and description.
async fn change_api_key(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path(id): Path<String>,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<WireApiKey>, Refusal> {
    let (tag, body) = (if_match_header(&headers), parse::<NewIdentity>(&body));
    let action = "iam-identity.user-apikey.update";
    let change = doing(caller, Form::Identity, action, &id, Needs::Token);
    let key = change.run(&app, move |app, tx, doing, now| {
        let key = managed(tx, doing, &id)?;
        let body = body.as_ref().map_err(Clone::clone)?;
        if_match(tag.as_deref(), &etag(key.version, key.id), StatusCode::CONFLICT)?;
        let name = if body.name.is_empty() { key.name.clone() } else { named(&body.name)? };
        iam::describe_api_key(tx, key.id, &name, &described(&body.description)?, now)?;
        let changed = iam::api_key(tx, key.id)?;
        let gone = || Refusal::none("There is no such API key");
        let changed = changed.ok_or_else(gone)?;
        doing.changed(said_of_key(&key), said_of_key(&changed));
        Ok(shown(app, &changed, String::new()))
    });
    Ok(Json(key.await?))
}

/// `DELETE /apikeys/{id}`: tokens that were got with it count no longer. With `cascade=true` the
/// API keys that were made by such tokens go, too: whoever stole it may have made some.
async fn remove_api_key(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path(id): Path<String>,
    query: Query,
) -> Result<StatusCode, Refusal> {
    let action = "iam-identity.user-apikey.delete";
    let remove = doing(caller, Form::Identity, action, &id, Needs::Token);
    remove
        .run(&app, move |_, tx, doing, _| {
            let key = managed(tx, doing, &id)?;
            let mut before = said_of_key(&key);
            match query.get("cascade") {
                None | Some("false") => {}
                Some("true") => {
                    let made = iam::made_with(tx, key.id)?;
                    for key in &made {
                        mine_or_administrator(doing, &key.iam_id)?;
                        iam::remove_api_key(tx, key.id)?;
                    }
                    let made: Vec<String> = made.iter().map(|key| key.id.to_string()).collect();
                    before.append(&mut facts([("made", made.join(" "))]));
                }
                Some(_) => return Err(Refusal::bad("cascade must be true or false")),
            }
            doing.changed(before, Facts::new());
            iam::remove_api_key(tx, key.id)?;
            Ok(())
        })
        .await?;
    Ok(StatusCode::NO_CONTENT)
}

fn said(identity: &Identity) -> Facts {
    let Identity { principal, description, owner, .. } = identity;
    facts([
        ("name", principal.name.clone()),
        ("email", principal.email.clone()),
        ("description", description.clone()),
        ("owner", owner.clone().unwrap_or_default()),
    ])
}

/// Removes a principal with all that hangs on it, and notes what that was.
fn take_away(tx: &Tx<'_>, doing: &Doing, identity: &Identity) -> Result<(), Refusal> {
    let iam_id = &identity.principal.iam_id;
    let keys = iam::api_keys(tx, iam_id)?;
    let keys: Vec<String> = keys.iter().map(|key| key.id.to_string()).collect();
    let policies = access::about(tx, &Subject::Principal(iam_id.clone()))?;
    let mut before = said(identity);
    let (keys, policies) = (keys.join(" "), said_of_all(&policies));
    before.append(&mut facts([("api_keys", keys), ("policies", policies)]));
    doing.changed(before, Facts::new());
    iam::remove_principal(tx, iam_id)?;
    Ok(())
}

fn service_id(app: &App, identity: &Identity) -> ServiceId {
    let iam_id = &identity.principal.iam_id;
    ServiceId {
        metadata: IdentityMetadata {
            uuid: uuid_of(iam_id).to_owned(),
            iam_id: iam_id.clone(),
            version: etag(identity.version, uuid_of(iam_id)),
            crn: crn(app, "serviceid", uuid_of(iam_id)),
            created_at: date(identity.created),
            modified_at: date(identity.updated),
        },
        entity: ServiceIdEntity {
            bound_to: crn(app, "account", &app.account.id),
            name: identity.principal.name.clone(),
            description: identity.description.clone(),
        },
    }
}

fn found_service(tx: &Tx<'_>, id: &str) -> Result<Identity, Refusal> {
    let found = iam::identity(tx, &bound_to(id))?;
    let none = || Refusal::none("There is no such service ID; list them all");
    found.filter(|identity| identity.principal.service).ok_or_else(none)
}

/// `GET /serviceids?boundTo=`.
async fn list_service_ids(
    State(app): State<Arc<App>>,
    caller: Caller,
    query: Query,
) -> Result<Json<Items<ServiceId>>, Refusal> {
    let action = "iam-identity.account-serviceid.list";
    let list = doing(caller, Form::Identity, action, "serviceids", Needs::Administrator);
    let items = list.look(&app, move |app, tx, _, _| {
        let ours = |text: &str| bound_to(text) == app.account.id;
        let all = match query.get("boundTo") {
            Some(account) if !ours(account) => Vec::new(),
            _ => iam::identities(tx, true)?,
        };
        let (all, next_page_token) = page(&query, all)?;
        Ok(Items { next_page_token, items: all.iter().map(|one| service_id(app, one)).collect() })
    });
    Ok(Json(items.await?))
}

/// `POST /serviceids`: it stands for whoever makes it.
async fn create_service_id(
    State(app): State<Arc<App>>,
    caller: Caller,
    body: Body,
) -> Result<(StatusCode, Json<ServiceId>), Refusal> {
    let body = parse::<NewIdentity>(&body);
    let iam_id = format!("iam-ServiceId-{}", Uuid::new_v4());
    let action = "iam-identity.account-serviceid.create";
    let create = doing(caller, Form::Identity, action, &iam_id, Needs::Administrator);
    let made = create.run(&app, move |app, tx, doing, now| {
        let body = body.as_ref().map_err(Clone::clone)?;
        if !body.bound_to.is_empty() && bound_to(&body.bound_to) != app.account.id {
            return Err(Refusal::bad("boundTo is not the account of this server"));
        }
        if iam::count_principals(tx)? >= PRINCIPALS_MAX {
            let what = format!("there are {PRINCIPALS_MAX} principals, as many as there may be");
            return Err(Refusal::conflict("PRINCIPAL_QUOTA_ERR", what));
        }
        let principal = Principal {
            iam_id: iam_id.clone(),
            service: true,
            name: named(&body.name)?,
            email: String::new(),
        };
        iam::add_principal(tx, &principal, now)?;
        iam::describe_new(tx, &iam_id, &described(&body.description)?)?;
        if !doing.caller.service {
            iam::set_owner(tx, &iam_id, &doing.caller.iam_id)?;
        }
        let made = found_service(tx, &iam_id)?;
        doing.changed(Facts::new(), said(&made));
        Ok(service_id(app, &made))
    });
    Ok((StatusCode::CREATED, Json(made.await?)))
}

/// `GET /serviceids/{id}`.
async fn read_service_id(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path(id): Path<String>,
) -> Result<Json<ServiceId>, Refusal> {
    let action = "iam-identity.account-serviceid.read";
    let read = doing(caller, Form::Identity, action, &id, Needs::Administrator);
    let found = read.look(&app, move |app, tx, _, _| Ok(service_id(app, &found_service(tx, &id)?)));
    Ok(Json(found.await?))
}

/// `PUT /serviceids/{id}`: name and description.
async fn change_service_id(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path(id): Path<String>,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<ServiceId>, Refusal> {
    let (tag, body) = (if_match_header(&headers), parse::<NewIdentity>(&body));
    let action = "iam-identity.account-serviceid.update";
    let change = doing(caller, Form::Identity, action, &id, Needs::Administrator);
    let changed = change.run(&app, move |app, tx, doing, now| {
        let before = found_service(tx, &id)?;
        let body = body.as_ref().map_err(Clone::clone)?;
        let iam_id = &before.principal.iam_id;
        if_match(tag.as_deref(), &etag(before.version, uuid_of(iam_id)), StatusCode::CONFLICT)?;
        let name = match body.name.is_empty() {
            true => before.principal.name.clone(),
            false => named(&body.name)?,
        };
        iam::describe(tx, iam_id, &name, &described(&body.description)?, now)?;
        let after = found_service(tx, iam_id)?;
        doing.changed(said(&before), said(&after));
        Ok(service_id(app, &after))
    });
    Ok(Json(changed.await?))
}

/// `DELETE /serviceids/{id}`, with its API keys and the policies about it.
async fn remove_service_id(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path(id): Path<String>,
) -> Result<StatusCode, Refusal> {
    let action = "iam-identity.account-serviceid.delete";
    let remove = doing(caller, Form::Identity, action, &id, Needs::Administrator);
    remove.run(&app, move |_, tx, doing, _| take_away(tx, doing, &found_service(tx, &id)?)).await?;
    Ok(StatusCode::NO_CONTENT)
}

fn user(app: &App, identity: &Identity) -> User {
    let Principal { iam_id, name, email, .. } = &identity.principal;
    let (first, last) = name.split_once(' ').unwrap_or((name, ""));
    User {
        id: iam_id.clone(),
        iam_id: iam_id.clone(),
        realm: "IBMid".to_owned(),
        user_id: if email.is_empty() { name.clone() } else { email.clone() },
        firstname: first.to_owned(),
        lastname: last.to_owned(),
        state: "ACTIVE".to_owned(),
        email: email.clone(),
        account_id: app.account.id.clone(),
    }
}

fn found_user(app: &App, tx: &Tx<'_>, account: &str, iam_id: &str) -> Result<Identity, Refusal> {
    let found = iam::identity(tx, iam_id)?.filter(|_| account == app.account.id);
    let none = || Refusal::none("There is no such user in this account; list them all");
    found.filter(|identity| !identity.principal.service).ok_or_else(none)
}

/// `GET /v2/accounts/{account}/users`, a page after the user `_start`.
async fn list_users(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path(account): Path<String>,
    query: Query,
) -> Result<Json<Users>, Refusal> {
    let list =
        doing(caller, Form::Access, "user-management.user.list", &account, Needs::Administrator);
    let users = list.look(&app, move |app, tx, _, _| {
        if account != app.account.id {
            return Err(Refusal::none("There is no such account"));
        }
        let all = iam::identities(tx, false)?;
        let total_results = all.len();
        let start = query.get("_start");
        let after = start.and_then(|start| all.iter().position(|u| u.principal.iam_id == start));
        let rest: Vec<&Identity> = all.iter().skip(after.map_or(0, |at| at + 1)).collect();
        let path = format!("/v2/accounts/{account}/users");
        let more = rest.len() > PAGE;
        let last = rest.iter().take(PAGE).next_back().filter(|_| more);
        let next_url = last.map(|last| format!("{path}?_start={}", last.principal.iam_id));
        let resources = rest.iter().take(PAGE).map(|one| user(app, one)).collect();
        Ok(Users { total_results, limit: PAGE, first_url: path, next_url, resources })
    });
    Ok(Json(users.await?))
}

/// `GET /v2/accounts/{account}/users/{iam_id}`.
async fn read_user(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path((account, iam_id)): Path<(String, String)>,
) -> Result<Json<User>, Refusal> {
    let action = "user-management.user.read";
    let read = doing(caller, Form::Access, action, &iam_id, Needs::Administrator);
    let found = read
        .look(&app, move |app, tx, _, _| Ok(user(app, &found_user(app, tx, &account, &iam_id)?)));
    Ok(Json(found.await?))
}

/// `DELETE /v2/accounts/{account}/users/{iam_id}`, with his API keys and the policies about him.
async fn remove_user(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path((account, iam_id)): Path<(String, String)>,
) -> Result<StatusCode, Refusal> {
    let action = "user-management.user.delete";
    let remove = doing(caller, Form::Access, action, &iam_id, Needs::Administrator);
    remove
        .run(&app, move |app, tx, doing, _| {
            let user = found_user(app, tx, &account, &iam_id)?;
            let owned = iam::owned_by(tx, &user.principal.iam_id)?;
            if owned > 0 {
                let what = format!(
                    "{owned} service IDs stand for this user; delete them first, or let another \
                     make them anew"
                );
                return Err(Refusal::conflict("USER_OWNS_SERVICES_ERR", what));
            }
            take_away(tx, doing, &user)
        })
        .await?;
    Ok(StatusCode::NO_CONTENT)
}
