//! Whose rights count, besides the caller's, when a cluster is lent a root key: the owner of the
//! API key, as IBM's clients know it. Of a person only the rights are used, as of that moment: what
//! talks to the key service is always the cluster itself, so nobody's leaving locks it out.

use super::fault::Fault;
use super::request::{Doing, allowed, cluster, recorded, renew};
use crate::app::App;
use crate::http::auth::{self, Caller};
use axum::Json;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode};
use claviger_domain::access::PlatformRole::{Administrator, Viewer};
use claviger_domain::policy::Site;
use claviger_store::{StoreError, Tx, audit, iam, meta};
use claviger_wire::ks::KeyOwner;
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use uuid::Uuid;

/// Names the setting that holds the [`Owner`].
const OWNER: &str = "clusters-api-key-owner";

/// Whose rights count, as long as his API key is there.
#[derive(Serialize, Deserialize)]
struct Owner {
    iam_id: String,
    api_key: Uuid,
}
/// By this header a client says which region it means.
const REGION: &str = "X-Region";

/// The owner, if there is one whose API key is here still.
pub(super) fn lender(tx: &Tx<'_>) -> Result<Option<Caller>, StoreError> {
    let Some(bytes) = meta::get(tx, OWNER)? else { return Ok(None) };
    let damaged = |_| StoreError::Damaged("the owner of the API key".to_owned());
    let Owner { iam_id, api_key } = serde_json::from_slice(&bytes).map_err(damaged)?;
    let there = iam::api_key(tx, api_key)?.is_some_and(|key| key.iam_id == iam_id);
    if there { auth::find(tx, &iam_id) } else { Ok(None) }
}

/// `GET /v1/logging/{cluster}/clusterkeyowner`: the owner, or the cluster itself where there is
/// none.
pub async fn owner(
    State(app): State<Arc<App>>,
    mut caller: Caller,
    Path(name): Path<String>,
) -> Result<Json<KeyOwner>, Fault> {
    let action = "containers-kubernetes.cluster-apikey-owner.get";
    let doing = Doing::by(&caller, action, &*name);
    let owner = recorded(&app, doing, move |app, doing, now| {
        app.store.tx("key owner", |tx| {
            let row = cluster(app, tx, &mut caller, Viewer, &name)?;
            let target = row.crn.clone();
            audit::add(tx, &Doing { target, ..doing.clone() }.done(now))?;
            let principal = match lender(tx)? {
                Some(owner) => iam::principal(tx, &owner.iam_id)?,
                None => None,
            };
            Ok::<_, Fault>(match principal {
                Some(p) => KeyOwner { id: p.iam_id, name: p.name, email: p.email },
                None => KeyOwner {
                    id: format!("crn-{}", row.crn),
                    name: format!("cluster {}", row.cluster.name),
                    email: String::new(),
                },
            })
        })
    });
    Ok(Json(owner.await?))
}

/// `POST /v1/keys`: the caller is the owner from now on, for all clusters of the region, by the API
/// key that he logged in with.
pub async fn reset(
    State(app): State<Arc<App>>,
    mut caller: Caller,
    headers: HeaderMap,
) -> Result<StatusCode, Fault> {
    let region = headers.get(REGION).and_then(|v| v.to_str().ok()).unwrap_or_default().to_owned();
    let action = "containers-kubernetes.account-api-key.reset";
    let doing = Doing::by(&caller, action, &*app.account.id);
    let reset = recorded(&app, doing, move |app, doing, now| {
        if !region.is_empty() && region != app.account.region {
            return Err(Fault::Bad(format!("the region here is {}", app.account.region)));
        }
        app.store.tx("reset API key", |tx| {
            renew(app, tx, &mut caller)?;
            allowed(&caller, Administrator, Site::Clusters)?;
            let without = || Fault::Bad("only who logged in with an API key can lend keys".into());
            let api_key = caller.api_key().ok_or_else(without)?;
            let owner = Owner { iam_id: caller.iam_id.clone(), api_key };
            let owner = serde_json::to_vec(&owner).expect("texts are valid JSON");
            meta::put(tx, OWNER, &owner)?;
            Ok::<_, Fault>(audit::add(tx, &doing.done(now))?)
        })
    });
    reset.await?;
    Ok(StatusCode::NO_CONTENT)
}
