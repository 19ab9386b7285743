//! `GET /v3/audit`: what is on record, newest first.
//!
//! An administrator reads everything; a manager of an instance what is about that instance, and
//! only from where the instance lets him come.

pub mod body;
pub mod cadf;
pub mod chain;
mod merge;
pub(crate) mod retention;
mod segments;

use crate::app::App;
use crate::http::api::content::json;
use crate::http::api::parameters::EVENTS;
use crate::http::api::{Api, Kind, get, says};
use crate::http::auth::Caller;
use crate::http::error::KpError;
use crate::keys::act::{About, Act};
use crate::keys::query::Query;
use crate::keys::view;
use crate::record;
use crate::room::For;
use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use cadf::Names;
use claviger_domain::access::{KeyOperation, PlatformRole};
use claviger_domain::audit::Record;
use claviger_domain::id::{InstanceId, KeyId, KeyVersionId};
use claviger_domain::key::RootKey;
use claviger_domain::policy::Site;
use claviger_store::audit::{self, Page, Wanted};
use claviger_store::{StoreError, Tx, iam, keys};
use claviger_wire::audit::Events;
use merge::{Cursor, Mark};
use segments::Found;
use std::sync::Arc;

/// Usual and largest page.
const PAGE: (usize, usize) = (200, 1000);
const ACTION: &str = "kms.audit.list";

/// Paths of the audit records.
pub(crate) fn api() -> Api {
    let said = says("listAuditEvents", "What is on record, newest first")
        .query(&EVENTS)
        .answers(200, json::<Events>())
        .refuses(&[400, 403, 404]);
    Api::new("audit", Kind::Service).at("/v3/audit", [get(list, said)])
}

/// What is asked for.
struct Asked {
    wanted: Wanted,
    before: Cursor,
    limit: usize,
}

/// Parameters: `instance`, `key` (an id, with `instance`), `action` (a `*` at its end for all that
/// begin so), `from`, `to` (RFC 3339; `to` itself is not included), `limit`, `before`.
async fn list(State(app): State<Arc<App>>, caller: Caller, query: Query) -> Response {
    let administrator = caller.platform(PlatformRole::Administrator, Site::Access);
    let instance = match query.get("instance").map(str::parse::<InstanceId>) {
        Some(Ok(instance)) => Some(instance),
        Some(Err(_)) => return wrong("instance", "the id of an instance").in_service_form(),
        None => None,
    };
    let found = match (administrator, instance) {
        (false, Some(instance)) => of_manager(&app, caller, instance, query).await,
        (_, instance) => of_administrator(&app, caller, instance, query).await,
    };
    match found {
        Ok(found) => Json(found).into_response(),
        Err(e) => e.in_service_form(),
    }
}

async fn of_manager(
    app: &Arc<App>,
    caller: Caller,
    instance: InstanceId,
    query: Query,
) -> Result<Events, KpError> {
    let failed = "Audit records could not be listed";
    let act = Act { caller, instance, action: ACTION, failed, about: About::Instance };
    act.look(app, move |app, tx, act, _| {
        act.on_instance(tx, KeyOperation::ReadAudit)?;
        let found = look(app, tx, &asked(app, Some(instance), &query)?)?;
        act.note(|data| data.total = Some(found.events.len() as u64));
        Ok(found)
    })
    .await
}

async fn of_administrator(
    app: &Arc<App>,
    caller: Caller,
    instance: Option<InstanceId>,
    query: Query,
) -> Result<Events, KpError> {
    let target = match instance {
        Some(instance) => app.account.instance_crn(instance),
        None => app.account.id.clone(),
    };
    let mut record = caller.did(app.clock.now(), ACTION, target);
    let found = app
        .asked(For::Other, move |app| {
            if !caller.platform(PlatformRole::Administrator, Site::Access) {
                return Err(KpError::unauthorized());
            }
            let asked = asked(app, instance, &query)?;
            app.store.read(ACTION, |tx| look(app, tx, &asked))
        })
        .await;
    match &found {
        Ok(found) => record.data.total = Some(found.events.len() as u64),
        Err(e) => (record.status, record.reason) = (e.status.as_u16(), e.code().into()),
    }
    app.recorder.record(record).await?;
    found
}

fn asked(app: &App, instance: Option<InstanceId>, query: &Query) -> Result<Asked, KpError> {
    let date = |name: &str| {
        let text = query.get(name);
        let read = |text| view::parse_date(text).ok_or_else(|| wrong(name, "an RFC 3339 date"));
        text.map(read).transpose()
    };
    let key = query.get("key").map(str::parse::<KeyId>).transpose();
    let key = key.map_err(|_| wrong("key", "the id of a key"))?;
    let target = match (instance, key) {
        (None, None) => String::new(),
        (None, Some(_)) => return Err(wrong("key", "with the 'instance' that has the key")),
        (Some(instance), None) => app.account.crn_before(instance),
        (Some(instance), Some(key)) => app.account.key_crn(&RootKey { instance, key }),
    };
    let action = query.get("action").unwrap_or_default().to_owned();
    let before = query.get("before").map(|text| {
        Cursor::parse(text).ok_or_else(|| wrong("before", "what a page said in 'next'"))
    });
    Ok(Asked {
        wanted: Wanted { from: date("from")?, to: date("to")?, action, target },
        before: before.transpose()?.unwrap_or_default(),
        limit: query.limit(PAGE.0, PAGE.1)?,
    })
}

fn wrong(name: &str, must: &str) -> KpError {
    KpError::query(name, format!("The query_param '{name}' must be: {must}"))
}

fn look(app: &App, tx: &Tx<'_>, asked: &Asked) -> Result<Events, KpError> {
    let Asked { wanted, before, limit } = asked;
    let rows = match before.rows {
        Mark::End => Page::default(),
        Mark::Start => audit::page(tx, wanted, None, *limit)?,
        Mark::At(place) => audit::page(tx, wanted, Some(place), *limit)?,
    };
    let dir = record::directory(app.store.path());
    let now = app.clock.now();
    let found = match before.segments {
        Mark::End => Ok(Found::default()),
        Mark::Start => segments::page(&dir, wanted, None, *limit, now),
        Mark::At(place) => segments::page(&dir, wanted, Some(place), *limit, now),
    };
    let found = found.map_err(|error| {
        tracing::error!(%error, "the audit log cannot be read");
        let what = "The audit log cannot be read. Tell the server's operator to look at its disk";
        KpError::new(StatusCode::SERVICE_UNAVAILABLE, "AUDIT_LOG_ERR", what)
    })?;
    if found.damaged > 0 {
        tracing::error!(
            places = found.damaged,
            "the audit log is damaged; `claviger audit verify` says where"
        );
    }
    let (records, next) = merge::merge(rows, found, *before, *limit);
    let names = names(tx, &records)?;
    let events = records.iter().map(|record| cadf::event(record, &app.account, &names));
    Ok(Events { events: events.collect(), next: next.map(|cursor| cursor.to_string()) })
}

/// Looks up what the records leave out.
fn names(tx: &Tx<'_>, records: &[Record]) -> Result<Names, StoreError> {
    let mut names = Names::default();
    for record in records {
        if !names.principals.contains_key(&record.who) {
            let name = iam::principal(tx, &record.who)?.map(|p| p.name).unwrap_or_default();
            names.principals.insert(record.who.clone(), name);
        }
        let (Some(instance), Some(key)) = (cadf::instance_of(&record.target), &record.data.key)
        else {
            continue;
        };
        let root = RootKey { instance, key: key.id };
        let acknowledged = record.data.event.as_ref().and_then(|event| event.version);
        for version in [key.version, acknowledged].into_iter().flatten() {
            version_made(tx, &root, version, &mut names)?;
        }
    }
    Ok(names)
}

fn version_made(
    tx: &Tx<'_>,
    root: &RootKey,
    version: KeyVersionId,
    names: &mut Names,
) -> Result<(), StoreError> {
    if names.versions.contains_key(&version) {
        return Ok(());
    }
    if let Some(found) = keys::version(tx, root, version)? {
        names.versions.insert(version, found.created);
    }
    Ok(())
}

/// Everything on record: rows, then what lies in segments, each oldest first.
#[cfg(test)]
pub(crate) fn everything(app: &App) -> Vec<Record> {
    let wanted = Wanted::default();
    let rows = app.store.read("t", |tx| audit::page(tx, &wanted, None, 10_000)).unwrap();
    let dir = record::directory(app.store.path());
    let found = segments::page(&dir, &wanted, None, 10_000, app.clock.now()).unwrap();
    assert!(rows.next.is_none() && found.next.is_none() && found.damaged == 0);
    let rows = rows.records.into_iter().rev().map(|(record, _)| record);
    rows.chain(found.records.into_iter().rev().map(|(record, _)| record)).collect()
}

#[cfg(test)]
mod tests;
