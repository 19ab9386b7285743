//! `POST /v3/principals`: lets a person or a service in, with roles and one API key.

use super::login::new_person_id;
use super::said::said_of_all;
use super::{logins, policies};
use crate::app::App;
use crate::http::admin::{Doing, Needs, Refusal, facts, parse};
use crate::http::auth::Caller;
use crate::http::body::Body;
use crate::http::error::Form;
use axum::Json;
use axum::extract::State;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use claviger_domain::access::Scope;
use claviger_domain::audit::Facts;
use claviger_domain::id::{InstanceId, KeyId};
use claviger_domain::key::RootKey;
use claviger_domain::policy::Subject;
use claviger_store::iam::{self, ApiKey, Grant, Principal};
use claviger_store::{Tx, access, keys, rings};
use claviger_wire::iam::{MadePrincipal, NewPrincipal, RoleOn};
use std::sync::Arc;
use uuid::Uuid;

/// Principals of one server; a bound on the database, generous for people and services.
pub(super) const PRINCIPALS_MAX: u64 = 10_000;
/// Roles of one principal; each request looks at all of them.
const ROLES_MAX: usize = 100;
const TEXT_MAX: usize = 180;

/// For an administrator. The API key is in the answer and nowhere else.
pub(super) async fn create(
    State(app): State<Arc<App>>,
    caller: Caller,
    body: Body,
) -> Result<Response, Refusal> {
    let new = parse::<NewPrincipal>(&body);
    let service = new.as_ref().is_ok_and(|new| new.service);
    let (action, iam_id) = if service {
        let action = "iam-identity.serviceid-apikey.create";
        (action, format!("iam-ServiceId-{}", Uuid::new_v4()))
    } else {
        ("iam-identity.user-apikey.create", new_person_id())
    };
    let (form, target) = (Form::Service, iam_id.clone());
    let doing = Doing::new(caller, form, action, target, Needs::Administrator);
    let made = doing.run(&app, move |app, tx, doing, now| {
        let new = new.as_ref().map_err(Clone::clone)?;
        let grants = check(tx, new)?;
        let principal = Principal {
            iam_id: iam_id.clone(),
            service: new.service,
            name: new.name.clone(),
            email: new.email.clone(),
        };
        iam::add_principal(tx, &principal, now)?;
        if new.service {
            let owner = new.owner.as_deref().unwrap_or(&doing.caller.iam_id);
            let person = iam::principal(tx, owner)?.is_some_and(|owner| !owner.service);
            if !person {
                return Err(Refusal::bad("owner must be the IAM id of a person"));
            }
            iam::set_owner(tx, &iam_id, owner)?;
        }
        for grant in &grants {
            iam::add_grant(tx, &iam_id, grant, &doing.caller.iam_id, now)?;
        }
        let (apikey, id) = match &new.login {
            Some(login) => {
                logins::put(tx, &iam_id, std::slice::from_ref(login), &doing.caller.iam_id, now)?;
                (None, String::new())
            }
            None => {
                let apikey = app.tokens.new_api_key();
                let mut key = ApiKey::new(&iam_id, &new.name, &doing.caller.iam_id, now);
                key.created_with = doing.caller.api_key();
                iam::add_api_key(tx, &key, &app.tokens.api_key_mac(&apikey))?;
                (Some(apikey), key.id.to_string())
            }
        };
        let given = access::about(tx, &Subject::Principal(iam_id.clone()))?;
        doing.changed(
            Facts::new(),
            facts([
                ("name", new.name.clone()),
                ("email", new.email.clone()),
                ("api_keys", id),
                ("logins", logins::said(new.login.as_slice())),
                ("policies", said_of_all(&given)),
            ]),
        );
        Ok(MadePrincipal { iam_id: iam_id.clone(), name: new.name.clone(), apikey })
    });
    let mut answer = (StatusCode::CREATED, Json(made.await?)).into_response();
    answer.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    Ok(answer)
}

/// What a new principal may do, if all that is said of it makes sense.
fn check(tx: &Tx<'_>, new: &NewPrincipal) -> Result<Vec<Grant>, Refusal> {
    let sane = |text: &str| text.chars().count() <= TEXT_MAX && !text.chars().any(char::is_control);
    if new.name.trim().is_empty() || !sane(&new.name) || !sane(&new.email) {
        let what = format!(
            "name must have 1 to {TEXT_MAX} characters and email at most so many, none of them \
             control"
        );
        return Err(Refusal::bad(what));
    }
    if new.login.is_some() && new.service {
        return Err(Refusal::bad("only a person comes in by an issuer"));
    }
    if new.owner.is_some() && !new.service {
        return Err(Refusal::bad("only a service has an owner"));
    }
    if new.roles.len() + new.platform.len() > ROLES_MAX {
        return Err(Refusal::bad(format!("at most {ROLES_MAX} roles can be given")));
    }
    if iam::count_principals(tx)? >= PRINCIPALS_MAX {
        let what = format!("There are {PRINCIPALS_MAX} principals, as many as there may be");
        return Err(Refusal::new(StatusCode::CONFLICT, "PRINCIPAL_QUOTA_ERR", what));
    }
    policies::room(tx, new.roles.len() + new.platform.len())?;
    let service = new
        .roles
        .iter()
        .map(|on| scope(tx, on).map(|scope| Grant::Service { role: on.role, scope }));
    let platform = new.platform.iter().map(|role| Ok(Grant::Platform(*role)));
    service.chain(platform).collect()
}

/// Where a role counts; what it names must be there.
fn scope(tx: &Tx<'_>, on: &RoleOn) -> Result<Scope, Refusal> {
    let Some(instance) = on.instance else {
        return match (&on.ring, on.key) {
            (None, None) => Ok(Scope::Everywhere),
            _ => Err(Refusal::bad("a role on a key ring or a key must name its instance")),
        };
    };
    within(tx, instance, on.ring.as_deref(), on.key)
}

/// An instance, or a key ring or a key of it. What is named must be there: a role on a key ring that
/// somebody makes later would count for keys that nobody meant.
pub(super) fn within(
    tx: &Tx<'_>,
    instance: InstanceId,
    ring: Option<&str>,
    key: Option<KeyId>,
) -> Result<Scope, Refusal> {
    if !iam::has_instance(tx, instance)? {
        return Err(Refusal::bad(format!("there is no instance {instance} of the key service")));
    }
    match (ring, key) {
        (None, None) => Ok(Scope::Instance(instance)),
        (Some(ring), None) if rings::exists(tx, instance, ring)? => {
            Ok(Scope::Ring(instance, ring.to_owned()))
        }
        (Some(_), None) => Err(Refusal::bad("there is no such key ring in the instance")),
        (None, Some(key)) => {
            let root = RootKey { instance, key };
            match keys::get(tx, &root)? {
                Some(_) => Ok(Scope::Key(root)),
                None => Err(Refusal::bad(format!("there is no key {key} in the instance"))),
            }
        }
        (Some(_), Some(_)) => Err(Refusal::bad("a role is on a key ring or on a key, not on both")),
    }
}
