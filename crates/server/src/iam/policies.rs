//! `/v1/policies`, and the same policies by the older paths below `/acms`: for administrators.

use super::TAG;
use super::said::said;
use super::shape::{
    self, etag, if_match, if_match_header, principal, shown, shown_old, tagged, wanted, wanted_old,
};
use crate::app::App;
use crate::http::admin::{Doing, Needs, Refusal, parse};
use crate::http::api::content::json;
use crate::http::api::parameters::{ETAG, IF_MATCH, POLICIES};
use crate::http::api::{Api, Description, Kind, delete, get, post, put, says};
use crate::http::auth::Caller;
use crate::http::body::Body;
use crate::http::error::Form;
use crate::keys::query::Query;
use axum::Json;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::Response;
use claviger_domain::audit::Facts;
use claviger_domain::id::{PolicyId, UnixMs};
use claviger_domain::policy::Subject;
use claviger_store::Tx;
use claviger_store::access::{self as store, Stamp, Stored};
use claviger_wire::access::{OldPolicy, Policies, Policy as WirePolicy};
use schemars::JsonSchema;
use std::sync::Arc;

/// Policies of one server; a bound on lists.
pub(crate) const POLICIES_MAX: u64 = 10_000;
/// Policies about one subject; each request of a caller looks at all of his.
const ABOUT_MAX: usize = 100;

pub(super) fn api() -> Api {
    let all = says("listAccessPolicies", "Access policies")
        .query(&POLICIES)
        .answers(200, json::<Policies>());
    let gone = |id| says(id, "Remove an access policy").answers_nothing(204).refuses(&[404, 409]);
    let old = Ids {
        list: "listOldAccessPolicies",
        create: "createOldAccessPolicy",
        get: "getOldAccessPolicy",
        replace: "replaceOldAccessPolicy",
    };
    let new = Ids {
        list: "",
        create: "createAccessPolicy",
        get: "getAccessPolicy",
        replace: "replaceAccessPolicy",
    };
    let users = Ids {
        list: "listUserPolicies",
        create: "createUserPolicy",
        get: "getUserPolicy",
        replace: "replaceUserPolicy",
    };
    let services = Ids {
        list: "listServiceIdPolicies",
        create: "createServiceIdPolicy",
        get: "getServiceIdPolicy",
        replace: "replaceServiceIdPolicy",
    };
    let about = "/acms/v1/scopes/{scope}";
    Api::new(TAG, Kind::Access)
        .at("/v1/policies", [get(list, all), post(create, new.create::<WirePolicy>())])
        .at(
            "/v1/policies/{policy}",
            [
                get(read, new.get::<WirePolicy>()),
                put(replace, new.replace::<WirePolicy>()),
                delete(remove, gone("deleteAccessPolicy")),
            ],
        )
        .at("/acms/v1/policies/{policy}", [delete(remove, gone("deleteOldAccessPolicy"))])
        .at(
            "/acms/v2/accounts/{account}/policies",
            [
                get(list_old, old.list().query(&POLICIES)),
                post(create_old, old.create::<OldPolicy>()),
            ],
        )
        .at(
            "/acms/v2/accounts/{account}/policies/{policy}",
            [get(read_old, old.get::<OldPolicy>()), put(replace_old, old.replace::<OldPolicy>())],
        )
        .merge(below(&format!("{about}/users"), &users, gone("deleteUserPolicy")))
        .merge(below(&format!("{about}/service_ids"), &services, gone("deleteServiceIdPolicy")))
}

/// Policies about whom the path names.
fn below(root: &str, ids: &Ids, gone: Description) -> Api {
    let all = format!("{root}/{{iam_id}}/policies");
    let create = ids.create::<OldPolicy>();
    Api::new(TAG, Kind::Access)
        .at(&all, [get(list_about, ids.list()), post(create_about, create)])
        .at(
            &format!("{all}/{{policy}}"),
            [
                get(read_about, ids.get::<OldPolicy>()),
                put(replace_about, ids.replace::<OldPolicy>()),
                delete(remove_about, gone),
            ],
        )
}

/// Names of operations on policies in one form.
struct Ids {
    list: &'static str,
    create: &'static str,
    get: &'static str,
    replace: &'static str,
}

impl Ids {
    fn list(&self) -> Description {
        says(self.list, "Access policies, in the older form")
            .answers(200, json::<Policies<OldPolicy>>())
            .refuses(&[404])
    }

    fn create<P: JsonSchema>(&self) -> Description {
        says(self.create, "Make an access policy")
            .takes(json::<P>())
            .answers(201, json::<P>())
            .tells(ETAG)
            .refuses(&[404, 409])
    }

    fn get<P: JsonSchema>(&self) -> Description {
        says(self.get, "An access policy").answers(200, json::<P>()).tells(ETAG).refuses(&[404])
    }

    fn replace<P: JsonSchema>(&self) -> Description {
        says(self.replace, "Put another access policy in the place of one")
            .needs(IF_MATCH)
            .takes(json::<P>())
            .answers(200, json::<P>())
            .tells(ETAG)
            .refuses(&[404, 409, 412])
    }
}

fn doing(app: &App, caller: Caller, verb: &'static str, id: Option<&str>) -> Doing {
    let action = match verb {
        "create" => "iam-am.policy.create",
        "update" => "iam-am.policy.update",
        "delete" => "iam-am.policy.delete",
        "list" => "iam-am.policy.list",
        _ => "iam-am.policy.read",
    };
    let target = match id {
        Some(id) => format!("policy:{}", id.chars().take(64).collect::<String>()),
        None => format!("a/{}", app.account.id),
    };
    Doing::new(caller, Form::Access, action, target, Needs::Administrator)
}

fn found(tx: &Tx<'_>, id: &str) -> Result<Stored, Refusal> {
    let id = id.parse::<PolicyId>().ok();
    let stored = id.map(|id| store::get(tx, id)).transpose()?.flatten();
    stored.ok_or_else(|| Refusal::none("There is no such policy; list them all"))
}

fn version(stored: &Stored) -> String {
    etag(stored.stamp.version, stored.policy.id())
}

/// Adds what is wanted, unless the same is there.
fn add(tx: &Tx<'_>, doing: &Doing, wanted: &shape::Wanted, now: UnixMs) -> Result<Stored, Refusal> {
    let policy = wanted.policy(PolicyId::random())?;
    let about = store::about(tx, policy.subject())?;
    let same = about.iter().find(|stored| {
        stored.policy.target() == policy.target() && stored.policy.roles() == policy.roles()
    });
    if let Some(same) = same {
        let what = format!("policy {} says the same already", same.policy.id());
        return Err(Refusal::conflict("policy_conflict_error", what));
    }
    if about.len() >= ABOUT_MAX {
        let what = format!("{ABOUT_MAX} policies are about this subject, as many as may be");
        return Err(Refusal::conflict("POLICY_QUOTA_ERR", what));
    }
    room(tx, 1)?;
    let stored = Stored { policy, stamp: Stamp::new(&doing.caller.iam_id, now) };
    store::add(tx, &stored)?;
    doing.about(named(stored.policy.id()));
    doing.changed(Facts::new(), said(&stored.policy));
    Ok(stored)
}

/// As many policies as there may be, for tests.
#[cfg(test)]
pub(crate) fn fill(app: &App) {
    use claviger_domain::access::ServiceRole;
    use claviger_domain::policy::{Policy, Role, Target};
    let filled = app.store.tx("t", |tx| {
        for n in store::count(tx)?..POLICIES_MAX {
            let subject = Subject::Principal(format!("IBMid-{n}"));
            let roles = vec![Role::Service(ServiceRole::Reader)];
            let policy = Policy::new(PolicyId::random(), subject, roles, Target::Account);
            let stamp = Stamp::new("t", app.clock.now());
            store::add(tx, &Stored { policy: policy.expect("it means something"), stamp })?;
        }
        Ok::<_, claviger_store::StoreError>(())
    });
    filled.expect("adds");
}

/// Refuses where there is no room for so many more policies.
pub(super) fn room(tx: &Tx<'_>, more: usize) -> Result<(), Refusal> {
    if store::count(tx)? + more as u64 > POLICIES_MAX {
        let what = format!("there may be {POLICIES_MAX} policies, and there is no room for more");
        return Err(Refusal::conflict("POLICY_QUOTA_ERR", what));
    }
    Ok(())
}

/// Puts what is wanted in the place of `before`, whose version the client must know.
fn change(
    tx: &Tx<'_>,
    doing: &Doing,
    before: &Stored,
    wanted: &shape::Wanted,
    tag: Option<&str>,
    now: UnixMs,
) -> Result<Stored, Refusal> {
    if_match(tag, &version(before), StatusCode::PRECONDITION_FAILED)?;
    if wanted.subject != *before.policy.subject() {
        return Err(Refusal::bad("a policy stays about its subject; make another one"));
    }
    let policy = wanted.policy(before.policy.id())?;
    let stored = Stored { policy, stamp: before.stamp.next(&doing.caller.iam_id, now) };
    store::replace(tx, &stored)?;
    doing.changed(said(&before.policy), said(&stored.policy));
    Ok(stored)
}

fn take_away(tx: &Tx<'_>, doing: &Doing, stored: &Stored) -> Result<(), Refusal> {
    store::remove(tx, stored.policy.id())?;
    doing.changed(said(&stored.policy), Facts::new());
    Ok(())
}

/// A policy in an audit record.
fn named(id: PolicyId) -> String {
    format!("policy:{id}")
}

/// `GET /v1/policies`.
async fn list(
    State(app): State<Arc<App>>,
    caller: Caller,
    query: Query,
) -> Result<Json<Policies>, Refusal> {
    let doing = doing(&app, caller, "list", None);
    let policies = doing.look(&app, move |app, tx, _, _| {
        Ok(chosen(app, tx, &query)?.iter().map(|stored| shown(app, stored)).collect())
    });
    Ok(Json(Policies { policies: policies.await? }))
}

/// The policies that a query asks for, by the names that clients of either form use.
fn chosen(app: &App, tx: &Tx<'_>, query: &Query) -> Result<Vec<Stored>, Refusal> {
    let first = |names: &[&str]| names.iter().find_map(|name| query.get(name));
    if first(&["account_id"]).is_some_and(|id| id != app.account.id) {
        return Ok(Vec::new());
    }
    let group = first(&["access_group_id", "accessGroupId"]);
    let all = match (first(&["iam_id", "subjectId"]), group) {
        (Some(iam_id), _) => store::about(tx, &Subject::Principal(iam_id.to_owned()))?,
        (None, Some(group)) => match group.parse() {
            Ok(group) => store::about(tx, &Subject::Group(group))?,
            Err(_) => Vec::new(),
        },
        (None, None) => store::all(tx)?,
    };
    let kind = query.get("type");
    let fits = |stored: &Stored| kind.is_none_or(|kind| kind == shape::kind(&stored.policy));
    Ok(all.into_iter().filter(fits).collect())
}

/// `POST /v1/policies`.
async fn create(
    State(app): State<Arc<App>>,
    caller: Caller,
    body: Body,
) -> Result<Response, Refusal> {
    let body = parse::<WirePolicy>(&body);
    let made = doing(&app, caller, "create", None).run(&app, move |app, tx, doing, now| {
        let wanted = wanted(app, tx, body.as_ref().map_err(Clone::clone)?)?;
        let stored = add(tx, doing, &wanted, now)?;
        Ok((version(&stored), shown(app, &stored)))
    });
    let (tag, policy) = made.await?;
    Ok(tagged(StatusCode::CREATED, &tag, &policy))
}

/// `GET /v1/policies/{id}`.
async fn read(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path(id): Path<String>,
) -> Result<Response, Refusal> {
    let seen = doing(&app, caller, "read", Some(&id)).look(&app, move |app, tx, _, _| {
        let stored = found(tx, &id)?;
        Ok((version(&stored), shown(app, &stored)))
    });
    let (tag, policy) = seen.await?;
    Ok(tagged(StatusCode::OK, &tag, &policy))
}

/// `PUT /v1/policies/{id}`.
async fn replace(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path(id): Path<String>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Refusal> {
    let (tag, body) = (if_match_header(&headers), parse::<WirePolicy>(&body));
    let doing = doing(&app, caller, "update", Some(&id));
    let changed = doing.run(&app, move |app, tx, doing, now| {
        let before = found(tx, &id)?;
        let wanted = wanted(app, tx, body.as_ref().map_err(Clone::clone)?)?;
        let stored = change(tx, doing, &before, &wanted, tag.as_deref(), now)?;
        Ok((version(&stored), shown(app, &stored)))
    });
    let (tag, policy) = changed.await?;
    Ok(tagged(StatusCode::OK, &tag, &policy))
}

/// `DELETE /v1/policies/{id}`.
async fn remove(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path(id): Path<String>,
) -> Result<StatusCode, Refusal> {
    let doing = doing(&app, caller, "delete", Some(&id));
    doing.run(&app, move |_, tx, doing, _| take_away(tx, doing, &found(tx, &id)?)).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Refuses an account that is not this server's; `a/` before it is part of a scope.
fn our_account(app: &App, account: &str) -> Result<(), Refusal> {
    let id = account.strip_prefix("a/").unwrap_or(account);
    if id == app.account.id { Ok(()) } else { Err(Refusal::none("There is no such account")) }
}

/// `GET /acms/v2/accounts/{account}/policies`.
async fn list_old(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path(account): Path<String>,
    query: Query,
) -> Result<Json<Policies<OldPolicy>>, Refusal> {
    let doing = doing(&app, caller, "list", None);
    let policies = doing.look(&app, move |app, tx, _, _| {
        our_account(app, &account)?;
        Ok(chosen(app, tx, &query)?.iter().map(|stored| shown_old(app, stored)).collect())
    });
    Ok(Json(Policies { policies: policies.await? }))
}

/// `POST /acms/v2/accounts/{account}/policies`.
async fn create_old(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path(account): Path<String>,
    body: Body,
) -> Result<Response, Refusal> {
    let body = parse::<OldPolicy>(&body);
    let made = doing(&app, caller, "create", None).run(&app, move |app, tx, doing, now| {
        our_account(app, &account)?;
        let wanted = wanted_old(app, tx, body.as_ref().map_err(Clone::clone)?, None)?;
        let stored = add(tx, doing, &wanted, now)?;
        Ok((version(&stored), shown_old(app, &stored)))
    });
    let (tag, policy) = made.await?;
    Ok(tagged(StatusCode::CREATED, &tag, &policy))
}

/// `GET /acms/v2/accounts/{account}/policies/{id}`.
async fn read_old(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path((account, id)): Path<(String, String)>,
) -> Result<Response, Refusal> {
    let seen = doing(&app, caller, "read", Some(&id)).look(&app, move |app, tx, _, _| {
        our_account(app, &account)?;
        let stored = found(tx, &id)?;
        Ok((version(&stored), shown_old(app, &stored)))
    });
    let (tag, policy) = seen.await?;
    Ok(tagged(StatusCode::OK, &tag, &policy))
}

/// `PUT /acms/v2/accounts/{account}/policies/{id}`.
async fn replace_old(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path((account, id)): Path<(String, String)>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Refusal> {
    let (tag, body) = (if_match_header(&headers), parse::<OldPolicy>(&body));
    let doing = doing(&app, caller, "update", Some(&id));
    let changed = doing.run(&app, move |app, tx, doing, now| {
        our_account(app, &account)?;
        let before = found(tx, &id)?;
        let wanted = wanted_old(app, tx, body.as_ref().map_err(Clone::clone)?, None)?;
        let stored = change(tx, doing, &before, &wanted, tag.as_deref(), now)?;
        Ok((version(&stored), shown_old(app, &stored)))
    });
    let (tag, policy) = changed.await?;
    Ok(tagged(StatusCode::OK, &tag, &policy))
}

/// Whom a path is about, whose account must be ours.
fn about(app: &App, tx: &Tx<'_>, scope: &str, who: &str) -> Result<Subject, Refusal> {
    our_account(app, scope)?;
    principal(tx, who).map_err(|_| Refusal::none("There is no such user or service ID"))
}

/// The policy of a path, if it is about whom the path says.
fn found_about(tx: &Tx<'_>, id: &str, subject: &Subject) -> Result<Stored, Refusal> {
    let stored = found(tx, id)?;
    if stored.policy.subject() == subject {
        return Ok(stored);
    }
    Err(Refusal::none("There is no such policy about this user or service ID"))
}

/// `GET …/policies`.
async fn list_about(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path((scope, who)): Path<(String, String)>,
) -> Result<Json<Policies<OldPolicy>>, Refusal> {
    let doing = doing(&app, caller, "list", None);
    let policies = doing.look(&app, move |app, tx, _, _| {
        let all = store::about(tx, &about(app, tx, &scope, &who)?)?;
        Ok(all.iter().map(|stored| shown_old(app, stored)).collect())
    });
    Ok(Json(Policies { policies: policies.await? }))
}

/// `POST …/policies`.
async fn create_about(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path((scope, who)): Path<(String, String)>,
    body: Body,
) -> Result<Response, Refusal> {
    let body = parse::<OldPolicy>(&body);
    let made = doing(&app, caller, "create", None).run(&app, move |app, tx, doing, now| {
        let subject = about(app, tx, &scope, &who)?;
        let body = body.as_ref().map_err(Clone::clone)?;
        let stored = add(tx, doing, &wanted_old(app, tx, body, Some(subject))?, now)?;
        Ok((version(&stored), shown_old(app, &stored)))
    });
    let (tag, policy) = made.await?;
    Ok(tagged(StatusCode::CREATED, &tag, &policy))
}

/// `GET …/policies/{id}`.
async fn read_about(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path((scope, who, id)): Path<(String, String, String)>,
) -> Result<Response, Refusal> {
    let seen = doing(&app, caller, "read", Some(&id)).look(&app, move |app, tx, _, _| {
        let stored = found_about(tx, &id, &about(app, tx, &scope, &who)?)?;
        Ok((version(&stored), shown_old(app, &stored)))
    });
    let (tag, policy) = seen.await?;
    Ok(tagged(StatusCode::OK, &tag, &policy))
}

/// `PUT …/policies/{id}`.
async fn replace_about(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path((scope, who, id)): Path<(String, String, String)>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Refusal> {
    let (tag, body) = (if_match_header(&headers), parse::<OldPolicy>(&body));
    let doing = doing(&app, caller, "update", Some(&id));
    let changed = doing.run(&app, move |app, tx, doing, now| {
        let subject = about(app, tx, &scope, &who)?;
        let before = found_about(tx, &id, &subject)?;
        let body = body.as_ref().map_err(Clone::clone)?;
        let wanted = wanted_old(app, tx, body, Some(subject))?;
        let stored = change(tx, doing, &before, &wanted, tag.as_deref(), now)?;
        Ok((version(&stored), shown_old(app, &stored)))
    });
    let (tag, policy) = changed.await?;
    Ok(tagged(StatusCode::OK, &tag, &policy))
}

/// `DELETE …/policies/{id}`.
async fn remove_about(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path((scope, who, id)): Path<(String, String, String)>,
) -> Result<StatusCode, Refusal> {
    let doing = doing(&app, caller, "delete", Some(&id));
    doing
        .run(&app, move |app, tx, doing, _| {
            take_away(tx, doing, &found_about(tx, &id, &about(app, tx, &scope, &who)?)?)
        })
        .await?;
    Ok(StatusCode::NO_CONTENT)
}
