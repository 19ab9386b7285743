//! `/v2/groups` and the older `/v1/groups`: access groups and who is in them, for administrators.

use super::TAG;
use super::said::said_of_all;
use super::shape::{etag, if_match, if_match_header, tagged};
use super::text::{described, named};
use crate::app::App;
use crate::http::admin::{Doing, Needs, Refusal, facts, parse};
use crate::http::api::content::json;
use crate::http::api::parameters::{ACCESS_GROUPS, ETAG, FORCE_GROUP, IF_MATCH, OFFSETS};
use crate::http::api::{Api, Kind, delete, get, patch, post, put, says};
use crate::http::auth::Caller;
use crate::http::body::Body;
use crate::http::error::Form;
use crate::keys::query::Query;
use crate::keys::view::date;
use axum::Json;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode, Uri};
use axum::response::Response;
use claviger_domain::audit::Facts;
use claviger_domain::id::{GroupId, UnixMs};
use claviger_domain::policy::Subject;
use claviger_store::access::{self as store, Group, Stamp};
use claviger_store::{StoreError, Tx, iam};
use claviger_wire::access::{
    AccessErrorItem, AddedMember, AddedMembers, Group as WireGroup, GroupChange, Groups, Href,
    Member, Members, NewMembers, Page,
};
use std::sync::Arc;

/// Groups of one server; a bound on lists.
const GROUPS_MAX: usize = 500;
/// Members of one group; a bound on lists.
const MEMBERS_MAX: usize = 1000;
/// Groups of one principal; each request of a caller looks at the policies of all of his.
const PER_MEMBER_MAX: usize = 10;
/// Members that one request may add.
const ADDED_MAX: usize = 50;
/// Largest page, and the usual one.
const LIMIT_MAX: usize = 100;

/// Names of the operations below one root.
struct Ids {
    root: &'static str,
    list: &'static str,
    create: &'static str,
    get: &'static str,
    update: &'static str,
    delete: &'static str,
    members: &'static str,
    add: &'static str,
    remove: &'static str,
}

const NEW: Ids = Ids {
    root: "/v2/groups",
    list: "listAccessGroups",
    create: "createAccessGroup",
    get: "getAccessGroup",
    update: "updateAccessGroup",
    delete: "deleteAccessGroup",
    members: "listAccessGroupMembers",
    add: "addAccessGroupMembers",
    remove: "removeAccessGroupMember",
};
const OLD: Ids = Ids {
    root: "/v1/groups",
    list: "listOldAccessGroups",
    create: "createOldAccessGroup",
    get: "getOldAccessGroup",
    update: "updateOldAccessGroup",
    delete: "deleteOldAccessGroup",
    members: "listOldAccessGroupMembers",
    add: "addOldAccessGroupMembers",
    remove: "removeOldAccessGroupMember",
};

pub(super) fn api() -> Api {
    below(&NEW).merge(below(&OLD))
}

fn below(ids: &Ids) -> Api {
    let list_ = says(ids.list, "Access groups")
        .query(&ACCESS_GROUPS)
        .query(&OFFSETS)
        .answers(200, json::<Groups>())
        .refuses(&[400]);
    let create_ = says(ids.create, "Make an access group")
        .takes(json::<WireGroup>())
        .answers(201, json::<WireGroup>())
        .tells(ETAG)
        .refuses(&[409]);
    let get_ = says(ids.get, "An access group")
        .answers(200, json::<WireGroup>())
        .tells(ETAG)
        .refuses(&[404]);
    let update_ = says(ids.update, "Change name or description of an access group")
        .needs(IF_MATCH)
        .takes(json::<GroupChange>())
        .answers(200, json::<WireGroup>())
        .tells(ETAG)
        .refuses(&[404, 409]);
    let delete_ = says(ids.delete, "Remove an access group, with the policies about it")
        .query(&[FORCE_GROUP])
        .answers_nothing(204)
        .refuses(&[404, 409]);
    let members_ = says(ids.members, "Who is in an access group")
        .query(&OFFSETS)
        .answers(200, json::<Members>())
        .refuses(&[404]);
    let add_ = says(ids.add, "Put people and service IDs into an access group")
        .takes(json::<NewMembers>())
        .answers(207, json::<AddedMembers>())
        .refuses(&[404]);
    let remove_ = says(ids.remove, "Take one out of an access group")
        .answers_nothing(204)
        .refuses(&[404, 409]);
    let root = ids.root;
    let one = format!("{root}/{{access_group}}");
    Api::new(TAG, Kind::Access)
        .at(root, [get(list, list_), post(create, create_)])
        .at(&one, [get(read, get_), patch(change, update_), delete(remove, delete_)])
        .at(&format!("{one}/members"), [get(members, members_), put(add_members, add_)])
        .at(&format!("{one}/members/{{iam_id}}"), [delete(remove_member, remove_)])
}

fn doing(app: &App, caller: Caller, action: &'static str, id: Option<&str>) -> Doing {
    let target = match id {
        Some(id) => format!("group:{}", id.chars().take(64).collect::<String>()),
        None => format!("a/{}", app.account.id),
    };
    Doing::new(caller, Form::Access, action, target, Needs::Administrator)
}

fn found(tx: &Tx<'_>, id: &str) -> Result<Group, Refusal> {
    let id = id.parse::<GroupId>().ok();
    let group = id.map(|id| store::group(tx, id)).transpose()?.flatten();
    group.ok_or_else(|| Refusal::none("There is no such access group; list them all"))
}

fn taken(e: StoreError) -> Refusal {
    if e.is_taken() {
        return Refusal::conflict("group_name_not_unique", "Another access group has this name");
    }
    e.into()
}

fn said(group: &Group) -> Facts {
    facts([("name", group.name.clone()), ("description", group.description.clone())])
}

fn version(group: &Group) -> String {
    etag(group.stamp.version, group.id)
}

fn shown(app: &App, group: &Group) -> WireGroup {
    WireGroup {
        id: group.id.to_string(),
        name: group.name.clone(),
        description: group.description.clone(),
        account_id: app.account.id.clone(),
        created_at: date(group.stamp.created),
        created_by_id: group.stamp.created_by.clone(),
        last_modified_at: date(group.stamp.updated),
        last_modified_by_id: group.stamp.updated_by.clone(),
    }
}

/// A page of `all` as the query asks for it, and where the next one is.
pub(super) fn page<T>(query: &Query, path: &str, all: Vec<T>) -> Result<(Page, Vec<T>), Refusal> {
    let number = |name: &str, usual: usize| match query.get(name).map(str::parse::<usize>) {
        None => Ok(usual),
        Some(Ok(number)) => Ok(number),
        Some(Err(_)) => Err(Refusal::bad(format!("{name} must be a number"))),
    };
    let limit = number("limit", LIMIT_MAX)?.clamp(1, LIMIT_MAX);
    let (offset, total_count) = (number("offset", 0)?, all.len());
    let href =
        |offset: usize| Href { href: query.with(path, &[("offset", offset), ("limit", limit)]) };
    let next = offset.saturating_add(limit);
    let next = (next < total_count).then(|| href(next));
    let items = all.into_iter().skip(offset).take(limit).collect();
    Ok((Page { limit, offset, total_count, first: href(0), next }, items))
}

/// `GET /v2/groups`, or those that `iam_id` is in.
async fn list(
    State(app): State<Arc<App>>,
    caller: Caller,
    query: Query,
    uri: Uri,
) -> Result<Json<Groups>, Refusal> {
    let list = doing(&app, caller, "iam-groups.group.list", None);
    let groups = list.look(&app, move |app, tx, _, _| {
        let account = ["account_id", "account"].iter().find_map(|name| query.get(name));
        let all = match account {
            Some(id) if id != app.account.id => Vec::new(),
            _ => store::groups(tx, query.get("iam_id"))?,
        };
        let (page, groups) = page(&query, uri.path(), all)?;
        Ok(Groups { page, groups: groups.iter().map(|group| shown(app, group)).collect() })
    });
    Ok(Json(groups.await?))
}

/// `POST /v2/groups`.
async fn create(
    State(app): State<Arc<App>>,
    caller: Caller,
    body: Body,
) -> Result<Response, Refusal> {
    let body = parse::<WireGroup>(&body);
    let doing = doing(&app, caller, "iam-groups.group.create", None);
    let made = doing.run(&app, move |app, tx, doing, now| {
        let body = body.as_ref().map_err(Clone::clone)?;
        if store::groups(tx, None)?.len() >= GROUPS_MAX {
            let what = format!("there are {GROUPS_MAX} access groups, as many as there may be");
            return Err(Refusal::conflict("GROUP_QUOTA_ERR", what));
        }
        let group = Group {
            id: GroupId::random(),
            name: named(&body.name)?,
            description: described(&body.description)?,
            stamp: Stamp::new(&doing.caller.iam_id, now),
        };
        store::add_group(tx, &group).map_err(taken)?;
        doing.about(format!("group:{}", group.id));
        doing.changed(Facts::new(), said(&group));
        Ok((version(&group), shown(app, &group)))
    });
    let (tag, group) = made.await?;
    Ok(tagged(StatusCode::CREATED, &tag, &group))
}

/// `GET /v2/groups/{id}`.
async fn read(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path(id): Path<String>,
) -> Result<Response, Refusal> {
    let doing = doing(&app, caller, "iam-groups.group.read", Some(&id));
    let seen = doing.look(&app, move |app, tx, _, _| {
        let group = found(tx, &id)?;
        Ok((version(&group), shown(app, &group)))
    });
    let (tag, group) = seen.await?;
    Ok(tagged(StatusCode::OK, &tag, &group))
}

/// `PATCH /v2/groups/{id}`.
async fn change(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path(id): Path<String>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Refusal> {
    let (tag, body) = (if_match_header(&headers), parse::<GroupChange>(&body));
    let doing = doing(&app, caller, "iam-groups.group.update", Some(&id));
    let changed = doing.run(&app, move |app, tx, doing, now| {
        let mut group = found(tx, &id)?;
        let before = said(&group);
        let change = body.as_ref().map_err(Clone::clone)?;
        if_match(tag.as_deref(), &version(&group), StatusCode::CONFLICT)?;
        if let Some(name) = &change.name {
            group.name = named(name)?;
        }
        if let Some(description) = &change.description {
            group.description = described(description)?;
        }
        group.stamp = group.stamp.next(&doing.caller.iam_id, now);
        store::update_group(tx, &group).map_err(taken)?;
        doing.changed(before, said(&group));
        Ok((version(&group), shown(app, &group)))
    });
    let (tag, group) = changed.await?;
    Ok(tagged(StatusCode::OK, &tag, &group))
}

/// `DELETE /v2/groups/{id}`: one with members only by force, as it takes roles from them.
async fn remove(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path(id): Path<String>,
    query: Query,
) -> Result<StatusCode, Refusal> {
    let doing = doing(&app, caller, "iam-groups.group.delete", Some(&id));
    doing
        .run(&app, move |_, tx, doing, _| {
            let group = found(tx, &id)?;
            let force = match query.get("force") {
                None | Some("false") => false,
                Some("true") => true,
                Some(_) => return Err(Refusal::bad("force must be true or false")),
            };
            let inside = store::members(tx, group.id)?;
            let members = inside.len();
            if members > 0 && !force {
                let what = format!(
                    "the access group has {members} members, who would lose its roles; remove \
                     them, or delete it with force=true"
                );
                return Err(Refusal::conflict("GROUP_NOT_EMPTY_ERR", what));
            }
            let inside: Vec<String> = inside.into_iter().map(|member| member.iam_id).collect();
            let policies = store::about(tx, &Subject::Group(group.id))?;
            let mut before = said(&group);
            before.append(&mut facts([
                ("members", inside.join(" ")),
                ("policies", said_of_all(&policies)),
            ]));
            doing.changed(before, Facts::new());
            store::remove_group(tx, group.id)?;
            Ok(())
        })
        .await?;
    Ok(StatusCode::NO_CONTENT)
}

fn kind(service: bool) -> String {
    if service { "service" } else { "user" }.to_owned()
}

/// `GET /v2/groups/{id}/members`.
async fn members(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path(id): Path<String>,
    query: Query,
    uri: Uri,
) -> Result<Json<Members>, Refusal> {
    let doing = doing(&app, caller, "iam-groups.member.list", Some(&id));
    let members = doing.look(&app, move |_, tx, _, _| {
        let all = store::members(tx, found(tx, &id)?.id)?;
        let (page, members) = page(&query, uri.path(), all)?;
        let shown = members.into_iter().map(|member| Member {
            id: member.iam_id.clone(),
            iam_id: member.iam_id,
            kind: kind(member.service),
            name: member.name,
            email: member.email,
            created_at: date(member.created),
            created_by_id: member.created_by,
        });
        Ok(Members { page, members: shown.collect() })
    });
    Ok(Json(members.await?))
}

/// `PUT /v2/groups/{id}/members`: 207, with what became of each.
async fn add_members(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path(id): Path<String>,
    body: Body,
) -> Result<(StatusCode, Json<AddedMembers>), Refusal> {
    let body = parse::<NewMembers>(&body);
    let doing = doing(&app, caller, "iam-groups.member.add", Some(&id));
    let added = doing.run(&app, move |_, tx, doing, now| {
        let group = found(tx, &id)?;
        let asked = &body.as_ref().map_err(Clone::clone)?.members;
        if asked.is_empty() || asked.len() > ADDED_MAX {
            return Err(Refusal::bad(format!("members must be 1 to {ADDED_MAX}")));
        }
        let members = asked.iter().map(|member| add(tx, doing, group.id, member, now));
        let members: Vec<AddedMember> = members.collect::<Result<_, _>>()?;
        let added = |ok: bool| {
            let those = members.iter().filter(|member| member.ok == ok);
            those.map(|member| member.iam_id.as_str()).collect::<Vec<_>>().join(" ")
        };
        doing.changed(Facts::new(), facts([("members", added(true)), ("refused", added(false))]));
        let status = |ok: bool| members.iter().find(|m| m.ok == ok).map(|m| m.status_code);
        doing.ended(status(true).or(status(false)).unwrap_or(200));
        Ok(AddedMembers { members })
    });
    Ok((StatusCode::MULTI_STATUS, Json(added.await?)))
}

fn add(
    tx: &Tx<'_>,
    doing: &Doing,
    group: GroupId,
    member: &Member,
    now: UnixMs,
) -> Result<AddedMember, Refusal> {
    let iam_id = if member.iam_id.is_empty() { &member.id } else { &member.iam_id };
    let answer = |kind: String, status_code: u16, errors| AddedMember {
        iam_id: iam_id.clone(),
        id: iam_id.clone(),
        kind,
        status_code,
        ok: status_code == 200,
        errors,
    };
    let refused = |status_code, code: &str, message: String| {
        let item = AccessErrorItem { code: code.to_owned(), message };
        Ok(answer(member.kind.clone(), status_code, vec![item]))
    };
    let Some(principal) = iam::principal(tx, iam_id)? else {
        return refused(404, "NOT_FOUND_ERR", "there is no such user or service ID".to_owned());
    };
    let mine = store::groups(tx, Some(iam_id))?;
    if !mine.iter().any(|own| own.id == group) {
        if mine.len() >= PER_MEMBER_MAX {
            let what = format!("it is in {PER_MEMBER_MAX} access groups, as many as it may");
            return refused(409, "MEMBER_QUOTA_ERR", what);
        }
        if store::members(tx, group)?.len() >= MEMBERS_MAX {
            let what = format!("the group has {MEMBERS_MAX} members, as many as it may");
            return refused(409, "MEMBER_QUOTA_ERR", what);
        }
    }
    store::add_member(tx, group, iam_id, &doing.caller.iam_id, now)?;
    Ok(answer(kind(principal.service), 200, Vec::new()))
}

/// `DELETE /v2/groups/{id}/members/{iam_id}`.
async fn remove_member(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path((id, iam_id)): Path<(String, String)>,
) -> Result<StatusCode, Refusal> {
    let doing = doing(&app, caller, "iam-groups.member.delete", Some(&id));
    doing
        .run(&app, move |_, tx, doing, _| {
            let group = found(tx, &id)?;
            if store::remove_member(tx, group.id, &iam_id)? {
                doing.changed(facts([("members", iam_id.clone())]), Facts::new());
                return Ok(());
            }
            Err(Refusal::none("It is not in this access group"))
        })
        .await?;
    Ok(StatusCode::NO_CONTENT)
}
