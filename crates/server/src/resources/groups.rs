//! `GET /v2/resource_groups`: the one group, in which everything is.

use super::view;
use crate::app::App;
use crate::http::admin::{Doing, Needs, Refusal};
use crate::http::auth::Caller;
use crate::http::error::Form;
use crate::keys::query::Query;
use axum::Json;
use axum::extract::{Path, State};
use claviger_domain::access::PlatformRole;
use claviger_domain::policy::Site;
use claviger_store::instances as store;
use claviger_wire::rc::{ResourceGroup, ResourceGroups};
use std::sync::Arc;

fn doing(app: &App, caller: Caller, action: &'static str) -> Doing {
    let target = format!("a/{}", app.account.id);
    let needs = Needs::Role(PlatformRole::Viewer, Site::SomeInstance);
    Doing::new(caller, Form::Resource, action, target, needs)
}

/// All groups, or those with this `name`, or the one that is the `default`.
pub(super) async fn list(
    State(app): State<Arc<App>>,
    caller: Caller,
    query: Query,
) -> Result<Json<ResourceGroups>, Refusal> {
    let doing = doing(&app, caller, "resource-controller.resource-group.list");
    let resources = doing
        .look(&app, move |app, tx, _, _| {
            let all = store::groups(tx)?.iter().map(|g| view::group(app, g)).collect::<Vec<_>>();
            let fits = |g: &ResourceGroup| {
                let is = |name, value: &str| query.get(name).is_none_or(|wanted| wanted == value);
                let default = if g.default { "true" } else { "false" };
                is("name", &g.name) && is("default", default) && is("account_id", &g.account_id)
            };
            Ok(all.into_iter().filter(fits).collect())
        })
        .await?;
    Ok(Json(ResourceGroups { resources }))
}

/// One group, by id.
pub(super) async fn get(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path(id): Path<String>,
) -> Result<Json<ResourceGroup>, Refusal> {
    let doing = doing(&app, caller, "resource-controller.resource-group.read");
    let group = doing.look(&app, move |app, tx, _, _| {
        let found = store::group(tx, &id)?;
        let none = || Refusal::none("There is no such resource group; list them all");
        Ok(view::group(app, &found.ok_or_else(none)?))
    });
    Ok(Json(group.await?))
}
