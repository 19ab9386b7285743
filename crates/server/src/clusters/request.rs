//! What every handler of the cluster service does: read a body, keep the record.

use super::fault::Fault;
use crate::app::App;
use crate::http::Trace;
use crate::http::auth::Caller;
use crate::http::body::{self, Unread};
use crate::http::objects;
use crate::room::For;
use axum::extract::Request;
use claviger_domain::access::PlatformRole;
use claviger_domain::audit::{Credential, Record};
use claviger_domain::id::UnixMs;
use claviger_domain::policy::Site;
use claviger_store::Tx;
use claviger_store::clusters::{self, ClusterRow};
use serde::de::DeserializeOwned;
use std::sync::Arc;

/// Reads a JSON body of at most `max` bytes, whatever its content type.
pub async fn json<T: DeserializeOwned>(request: Request, max: usize) -> Result<T, Fault> {
    let bytes = body::read(request, max).await.map_err(|e| match e {
        Unread::TooLong => Fault::TooLarge(max),
        Unread::TooSlow => Fault::TooSlow,
        Unread::Broken => Fault::Bad("the body ended too early; send it again".into()),
    })?;
    // A tagged type is not read as a struct: this is for those that are a whole body.
    if bytes.trim_ascii_start().first() == Some(&b'[') {
        return Err(Fault::Bad("the body must be a JSON object".into()));
    }
    objects::read(&bytes).map_err(|e| Fault::Bad(format!("the body cannot be read: {e}")))
}

/// Looks again who the caller is and what he may do: every transaction that goes by it begins so.
pub fn renew(app: &App, tx: &Tx<'_>, caller: &mut Caller) -> Result<(), Fault> {
    if caller.renew(app, tx)? { Ok(()) } else { Err(Fault::Revoked) }
}

/// Checks that the caller holds at least `least` on `site`.
pub fn allowed(caller: &Caller, least: PlatformRole, site: Site<'_>) -> Result<(), Fault> {
    if caller.platform(least, site) { Ok(()) } else { Err(forbidden(caller, least)) }
}

/// The cluster that the caller names, if he holds at least `least` on it as of this view. Only
/// who holds it on all clusters learns that there is no such one.
pub fn cluster(
    app: &App,
    tx: &Tx<'_>,
    caller: &mut Caller,
    least: PlatformRole,
    id_or_name: &str,
) -> Result<ClusterRow, Fault> {
    renew(app, tx, caller)?;
    match clusters::find(tx, id_or_name)? {
        Some(row) => {
            allowed(caller, least, Site::Cluster(&row.cluster.id))?;
            Ok(row)
        }
        None => {
            allowed(caller, least, Site::Clusters)?;
            Err(Fault::NoCluster(id_or_name.chars().take(64).collect()))
        }
    }
}

fn forbidden(caller: &Caller, least: PlatformRole) -> Fault {
    let needs = match least {
        PlatformRole::Viewer => "Viewer",
        PlatformRole::Operator => "Operator",
        PlatformRole::Editor => "Editor",
        PlatformRole::Administrator => "Administrator",
    };
    Fault::Forbidden { who: caller.iam_id.clone(), needs }
}

/// An act that an operator is about to do.
#[derive(Debug, Clone)]
pub struct Doing {
    /// IAM id, or a node.
    pub who: String,
    /// How it proved that.
    pub credential: Credential,
    /// For instance `containers-kubernetes.cluster-kms.enable`.
    pub action: &'static str,
    /// What it is done to.
    pub target: String,
    /// What of the request goes on record.
    pub trace: Trace,
}

impl Doing {
    /// What this caller does.
    pub fn by(caller: &Caller, action: &'static str, target: impl Into<String>) -> Doing {
        Doing {
            who: caller.iam_id.clone(),
            credential: Credential::Token,
            action,
            target: target.into(),
            trace: caller.trace.clone(),
        }
    }

    /// Its audit record once it is done; goes into the same transaction.
    pub fn done(&self, at: UnixMs) -> Record {
        self.trace.record(&*self.who, self.credential, at, self.action, &*self.target)
    }

    fn failed(&self, at: UnixMs, fault: &Fault) -> Record {
        let (status, reason) = (fault.status().as_u16(), fault.code().into());
        Record { status, reason, ..self.done(at) }
    }
}

/// Runs `work` where it may block. A success puts its own record into its transaction; a failure
/// is recorded here.
pub async fn recorded<T: Send + 'static>(
    app: &Arc<App>,
    doing: Doing,
    work: impl FnOnce(&App, &Doing, UnixMs) -> Result<T, Fault> + Send + 'static,
) -> Result<T, Fault> {
    let now = app.clock.now();
    let run = move |app: &App| {
        let result = work(app, &doing, now);
        if let Err(fault) = &result {
            // Whoever has no credential could fill the disk so.
            let stranger = &*doing.who == "-";
            if stranger && app.refusals.login_failed(app, now, doing.trace.origin.address) {
                return Err(Fault::TooMany("too many tries from this address have failed; wait"));
            }
            // The refusal is answered even if it cannot be put on record: nothing was done.
            let _ = app.recorder.record_blocking(&doing.failed(now, fault));
        }
        result
    };
    app.asked(For::Other, run).await
}
