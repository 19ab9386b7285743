//! The keys of an instance: list and count.

mod filter;
mod search;
mod sort;

use crate::app::App;
use crate::http::auth::Caller;
use crate::http::error::KpError;
use crate::keys::act::{About, Act, Instance, answer};
use crate::keys::query::Query;
use crate::keys::view;
use axum::extract::State;
use axum::http::{HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use claviger_domain::access::{KeyOperation, On};
use claviger_domain::id::UnixMs;
use claviger_domain::key::KeyState;
use claviger_store::Tx;
use claviger_store::keys::{self, Key};
use claviger_wire::kp;
use filter::{Filter, Property};
use search::Search;
use std::sync::Arc;

/// Keys that a search looks through; more are to be narrowed down by a filter first.
const SEARCHED_MAX: usize = 5000;

/// `GET /keys`.
pub(crate) async fn list(
    State(app): State<Arc<App>>,
    caller: Caller,
    Instance(instance): Instance,
    query: Query,
) -> Result<Response, KpError> {
    let act = Act {
        caller,
        instance,
        action: "kms.secrets.list",
        failed: "Keys could not be listed",
        about: About::Instance,
    };
    let envelope = act
        .look(&app, move |app, tx, act, now| {
            let search = query.get("search").map(Search::parse).transpose()?.flatten();
            let mut found = matches(tx, act, &query, search.as_ref(), now)?;
            sort::sort(&mut found, &query, now)?;
            let (page, total) = query.page(found)?;
            let page = page
                .iter()
                .map(|key| view::key(app, tx, key, now))
                .collect::<Result<Vec<_>, _>>()?;
            act.note(|data| data.total = Some(page.len() as u64));
            let mut envelope = kp::Envelope::of(kp::KEY_TYPE, page);
            envelope.metadata.total_count = total;
            envelope.metadata.search_query = search.map(|search| search.described());
            Ok(envelope)
        })
        .await?;
    Ok(answer(StatusCode::OK, kp::KEY_TYPE, &envelope))
}

/// `HEAD /keys`: the number of keys in the header `Key-Total`. It does not search.
pub(crate) async fn count(
    State(app): State<Arc<App>>,
    caller: Caller,
    Instance(instance): Instance,
    query: Query,
) -> Result<Response, KpError> {
    let act = Act {
        caller,
        instance,
        action: "kms.secrets.head",
        failed: "Keys could not be counted",
        about: About::Instance,
    };
    let total = act
        .look(&app, move |_, tx, act, now| {
            let total = matches(tx, act, &query, None, now)?.len();
            act.note(|data| data.total = Some(total as u64));
            Ok(total)
        })
        .await?;
    let mut response = StatusCode::OK.into_response();
    response.headers_mut().insert("key-total", HeaderValue::from(total));
    Ok(response)
}

/// The keys that the query asks for and the caller may list: a role on a key alone lets it use
/// the key, not find it.
fn matches(
    tx: &Tx<'_>,
    act: &Act,
    query: &Query,
    search: Option<&Search>,
    now: UnixMs,
) -> Result<Vec<Key>, KpError> {
    // An empty list would say that there are no keys.
    if !act.caller.access.allows_somewhere(KeyOperation::List, act.instance) {
        return Err(KpError::unauthorized());
    }
    act.exists(tx)?;
    let filter = query.get("filter").map(Filter::parse).transpose()?.unwrap_or_default();
    let extractable = query.flag("extractable")?;
    let numbers = query.list("state");
    for (name, given, property) in [
        ("state", !numbers.is_empty(), Property::State),
        ("extractable", extractable.is_some(), Property::Extractable),
    ] {
        if given && filter.names(property) {
            let what = format!("The query_param '{name}' must be: absent if the filter names it");
            return Err(KpError::query(name, what));
        }
    }
    let states = if numbers.is_empty() {
        match filter.names(Property::State) {
            true => KeyState::ALL.to_vec(),
            false => vec![KeyState::Active, KeyState::Suspended, KeyState::Deactivated],
        }
    } else {
        filter::states(numbers.into_iter()).ok_or_else(|| {
            let what = "The query_param 'state' must be: numbers out of 0, 1, 2, 3, 5";
            KpError::query("state", what)
        })?
    };
    let mut found = keys::all(tx, act.instance)?;
    found.retain(|key| {
        act.caller.permits(KeyOperation::List, act.instance, On::Ring(&key.ring))
            && act.caller.ring.as_ref().is_none_or(|ring| *ring == key.ring)
            && states.contains(&key.state_at(now))
            && extractable.is_none_or(|wanted| key.extractable == wanted)
            && filter.fits(key, now)
    });
    let Some(search) = search else { return Ok(found) };
    if found.len() > SEARCHED_MAX {
        let what = format!(
            "The search would look through {} keys and may look through {SEARCHED_MAX}; narrow it down by a filter or a key ring",
            found.len()
        );
        return Err(KpError::new(StatusCode::BAD_REQUEST, "KEY_SEARCH_TOO_BROAD", what));
    }
    let mut out = Vec::new();
    for key in found {
        if search.hits(&key, &keys::aliases(tx, &key.root)?) {
            out.push(key);
        }
    }
    Ok(out)
}

#[cfg(test)]
fn some_key() -> Key {
    use claviger_domain::id::{InstanceId, KeyId, KeyVersionId};
    use claviger_domain::life::Life;
    let root =
        claviger_domain::key::RootKey { instance: InstanceId::random(), key: KeyId::random() };
    Key {
        root,
        name: "some".to_owned(),
        description: None,
        tags: Vec::new(),
        life: Life::begin(),
        extractable: false,
        imported: false,
        ring: "default".to_owned(),
        created: UnixMs(0),
        created_by: String::new(),
        updated: None,
        rotated: None,
        expires: None,
        deleted: None,
        deleted_by: None,
        acted: None,
        current: Some(KeyVersionId::random()),
        set_by: None,
        set_at: None,
        synced: None,
    }
}
