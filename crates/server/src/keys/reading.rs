//! What only looks: list, count, metadata, payload of standard keys, versions.

use crate::app::App;
use crate::http::auth::Caller;
use crate::http::error::KpError;
use crate::keys::act::{Act, Instance, answer, root_only, state_allows};
use crate::keys::query::Query;
use crate::keys::view;
use axum::extract::{Path, State};
use axum::http::{HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use claviger_domain::access::KeyOperation;
use claviger_domain::id::UnixMs;
use claviger_domain::key::{KeyAction, KeyState};
use claviger_store::Tx;
use claviger_store::keys::{self, Key};
use claviger_wire::kp;
use std::sync::Arc;

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
        key: String::new(),
    };
    let envelope = act
        .look(&app, move |app, tx, act, now| {
            let mut found = matches(tx, act, &query, now)?;
            sort(&mut found, &query, now)?;
            let (page, total) = query.page(found)?;
            let page = page
                .iter()
                .map(|key| view::key(app, tx, key, now))
                .collect::<Result<Vec<_>, _>>()?;
            let mut envelope = kp::Envelope::of(kp::KEY_TYPE, page);
            envelope.metadata.total_count = total;
            Ok(envelope)
        })
        .await?;
    Ok(answer(StatusCode::OK, kp::KEY_TYPE, &envelope))
}

/// `HEAD /keys`: the number of keys in the header `Key-Total`.
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
        key: String::new(),
    };
    let total =
        act.look(&app, move |_, tx, act, now| Ok(matches(tx, act, &query, now)?.len())).await?;
    let mut response = StatusCode::OK.into_response();
    response.headers_mut().insert("key-total", HeaderValue::from(total));
    Ok(response)
}

/// The keys that the query asks for and the caller may see.
fn matches(tx: &Tx<'_>, act: &Act, query: &Query, now: UnixMs) -> Result<Vec<Key>, KpError> {
    if !act.caller.sees(act.instance) {
        return Err(KpError::unauthorized());
    }
    act.exists(tx)?;
    if query.get("filter").is_some() {
        let what = "The query_param 'filter' must be: absent; this server does not filter yet";
        return Err(KpError::query("filter", what));
    }
    let mut states = Vec::new();
    for text in query.list("state") {
        match text.parse::<u8>() {
            // No key is ever in state 0, pre-activation.
            Ok(0) => {}
            Ok(number) if KeyState::from_number(number).is_some() => {
                states.extend(KeyState::from_number(number));
            }
            _ => {
                let what = "The query_param 'state' must be: numbers out of 0, 1, 2, 3, 5";
                return Err(KpError::query("state", what));
            }
        }
    }
    if query.list("state").is_empty() {
        states = vec![KeyState::Active, KeyState::Suspended, KeyState::Deactivated];
    }
    let extractable = query.flag("extractable")?;
    let search = query.get("search").map(Search::parse);
    let mut out = Vec::new();
    for key in keys::all(tx, act.instance)? {
        let seen = act.caller.permits(KeyOperation::List, act.instance, Some(key.root.key));
        if seen
            && states.contains(&key.state_at(now))
            && extractable.is_none_or(|wanted| key.extractable == wanted)
        {
            let hit = match &search {
                None => true,
                Some(search) => search.hits(&key, &keys::aliases(tx, &key.root)?),
            };
            if hit {
                out.push(key);
            }
        }
    }
    Ok(out)
}

/// A search text: prefixes in any order, then what to look for.
struct Search {
    not: bool,
    exact: bool,
    name: bool,
    alias: bool,
    text: String,
}

impl Search {
    fn parse(text: &str) -> Search {
        let mut s =
            Search { not: false, exact: false, name: false, alias: false, text: String::new() };
        // A client appends a comma to every search text.
        let mut rest = text.strip_suffix(',').unwrap_or(text);
        loop {
            rest = match rest.split_once(':') {
                Some(("not", rest)) => {
                    s.not = true;
                    rest
                }
                Some(("exact", rest)) => {
                    s.exact = true;
                    rest
                }
                Some(("name", rest)) => {
                    s.name = true;
                    rest
                }
                Some(("alias", rest)) => {
                    s.alias = true;
                    rest
                }
                Some(("escape", rest)) => {
                    s.text = rest.to_lowercase();
                    break;
                }
                _ => {
                    s.text = rest.to_lowercase();
                    break;
                }
            };
        }
        if !s.name && !s.alias {
            (s.name, s.alias) = (true, true);
        }
        s
    }

    fn hits(&self, key: &Key, aliases: &[String]) -> bool {
        let fits = |text: &str| {
            let text = text.to_lowercase();
            if self.exact { text == self.text } else { text.contains(&self.text) }
        };
        let hit = self.text == key.root.key.to_string()
            || (self.name && fits(&key.name))
            || (self.alias && aliases.iter().any(|alias| fits(alias)));
        hit != self.not
    }
}

/// Sorts by the query's `sort`: property names, `-` before one for descending; by id at last.
fn sort(found: &mut [Key], query: &Query, now: UnixMs) -> Result<(), KpError> {
    const KNOWN: [&str; 9] = [
        "id",
        "state",
        "extractable",
        "imported",
        "creationDate",
        "lastUpdateDate",
        "lastRotateDate",
        "deletionDate",
        "expirationDate",
    ];
    let by: Vec<(&str, bool)> = query
        .list("sort")
        .into_iter()
        .map(|name| name.strip_prefix('-').map_or((name, false), |name| (name, true)))
        .collect();
    if by.iter().any(|(name, _)| !KNOWN.contains(name)) {
        let what = format!("The query_param 'sort' must be: out of {}", KNOWN.join(", "));
        return Err(KpError::query("sort", what));
    }
    let value = |key: &Key, name: &str| -> i64 {
        let date = |at: Option<UnixMs>| at.map_or(i64::MIN, |at| at.0);
        match name {
            "state" => key.state_at(now) as i64,
            "extractable" => i64::from(key.extractable),
            "imported" => i64::from(key.imported),
            "creationDate" => key.created.0,
            "lastUpdateDate" => date(key.updated),
            "lastRotateDate" => date(key.rotated),
            "deletionDate" => date(key.deleted),
            _ => date(key.expires),
        }
    };
    found.sort_by(|a, b| {
        for (name, descending) in &by {
            let order = match *name {
                "id" => a.root.key.cmp(&b.root.key),
                name => value(a, name).cmp(&value(b, name)),
            };
            let order = if *descending { order.reverse() } else { order };
            if order.is_ne() {
                return order;
            }
        }
        a.root.key.cmp(&b.root.key)
    });
    Ok(())
}

/// `GET /keys/{id}`: with the payload of a standard key.
pub(crate) async fn with_payload(
    State(app): State<Arc<App>>,
    caller: Caller,
    Instance(instance): Instance,
    Path(id): Path<String>,
) -> Result<Response, KpError> {
    let act = Act {
        caller,
        instance,
        action: "kms.secrets.read",
        failed: "Key could not be retrieved",
        key: id,
    };
    let key = act
        .look(&app, |app, tx, act, now| {
            let key = act.key(tx, KeyOperation::ReadPayload)?;
            state_allows(&key, KeyAction::Read, now)?;
            let mut out = view::key(app, tx, &key, now)?;
            if key.extractable && key.state_at(now) != KeyState::Destroyed {
                out.payload = payload(app, tx, &key)?;
            }
            Ok(out)
        })
        .await?;
    Ok(answer(StatusCode::OK, kp::KEY_TYPE, &kp::Envelope::of(kp::KEY_TYPE, vec![key])))
}

/// The payload of a standard key, base64.
pub(crate) fn payload(app: &App, tx: &Tx<'_>, key: &Key) -> Result<Option<String>, KpError> {
    let Some(sealed) = keys::payload(tx, &key.root)? else { return Ok(None) };
    let (instance, id) = (key.root.instance.to_string(), key.root.key.to_string());
    let opened = app.custodian.open_column(&["keys", "payload", &instance, &id], &sealed);
    let opened = opened.map_err(|e| {
        tracing::error!(error = %e, "payload of a standard key");
        let what = "The payload does not open; the server's operator must look at its log";
        KpError::new(StatusCode::INTERNAL_SERVER_ERROR, "INCOMPLETE_METADATA_ERR", what)
    })?;
    Ok(Some(STANDARD.encode(opened.expose())))
}

/// `GET /keys/{id}/metadata`.
pub(crate) async fn metadata(
    State(app): State<Arc<App>>,
    caller: Caller,
    Instance(instance): Instance,
    Path(id): Path<String>,
) -> Result<Response, KpError> {
    let act = Act {
        caller,
        instance,
        action: "kms.secrets-metadata.read",
        failed: "Key metadata could not be retrieved",
        key: id,
    };
    let key = act
        .look(&app, |app, tx, act, now| {
            let key = act.key(tx, KeyOperation::ReadMetadata)?;
            state_allows(&key, KeyAction::Read, now)?;
            Ok(view::key(app, tx, &key, now)?)
        })
        .await?;
    Ok(answer(StatusCode::OK, kp::KEY_TYPE, &kp::Envelope::of(kp::KEY_TYPE, vec![key])))
}

/// `GET /keys/{id}/versions`, newest first.
pub(crate) async fn versions(
    State(app): State<Arc<App>>,
    caller: Caller,
    Instance(instance): Instance,
    Path(id): Path<String>,
    query: Query,
) -> Result<Response, KpError> {
    let act = Act {
        caller,
        instance,
        action: "kms.secrets-key-versions.list",
        failed: "Key versions could not be listed",
        key: id,
    };
    let envelope = act
        .look(&app, move |_, tx, act, now| {
            let key = act.key(tx, KeyOperation::ReadMetadata)?;
            state_allows(&key, KeyAction::Read, now)?;
            root_only(&key)?;
            let all_states = query.flag("allKeyStates")?.unwrap_or(false);
            if key.state_at(now) == KeyState::Destroyed && !all_states {
                let what = "The key is destroyed; ask with allKeyStates=true";
                return Err(KpError::new(StatusCode::NOT_FOUND, "KEY_NOT_FOUND_ERR", what));
            }
            let all = keys::versions(tx, &key.root)?
                .into_iter()
                .map(|v| kp::KeyVersion {
                    id: v.id.0,
                    creation_date: Some(view::second(v.created)),
                })
                .collect();
            let (page, total) = query.page(all)?;
            let mut envelope = kp::Envelope::of(kp::VERSION_TYPE, page);
            envelope.metadata.total_count = total;
            Ok(envelope)
        })
        .await?;
    Ok(answer(StatusCode::OK, kp::VERSION_TYPE, &envelope))
}

#[cfg(test)]
mod tests {
    use super::Search;

    #[test]
    fn search_prefixes_in_any_order() {
        let s = Search::parse("exact:not:alias:escape:name:x,");
        assert!(s.not && s.exact && s.alias && !s.name);
        assert_eq!(s.text, "name:x");
        let s = Search::parse("foo,");
        assert!(s.name && s.alias && !s.not && !s.exact);
        assert_eq!(s.text, "foo");
    }
}
