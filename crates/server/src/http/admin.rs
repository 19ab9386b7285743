//! What operators of instances and of access go through: platform role, work and audit record in
//! one transaction, and how it is refused.

use crate::app::App;
use crate::http::auth::Caller;
use crate::http::body::Body;
use crate::http::error::{self, Form};
use crate::http::objects;
use crate::record::NotRecorded;
use crate::room::For;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use claviger_domain::access::PlatformRole;
use claviger_domain::audit::{Change, Facts, Record};
use claviger_domain::id::UnixMs;
use claviger_domain::policy::Site;
use claviger_store::{StoreError, Tx, access, audit};
use serde::de::DeserializeOwned;
use std::cell::RefCell;
use std::sync::Arc;
use uuid::Uuid;

/// Why nothing was done.
#[derive(Debug, Clone)]
pub(crate) struct Refusal {
    status: StatusCode,
    code: &'static str,
    what: String,
    form: Form,
    correlation: String,
}

impl Refusal {
    pub(crate) fn new(status: StatusCode, code: &'static str, what: impl Into<String>) -> Refusal {
        let correlation = Uuid::new_v4().to_string();
        Refusal { status, code, what: what.into(), form: Form::Service, correlation }
    }

    /// 400: the caller must send something else.
    pub(crate) fn bad(what: impl Into<String>) -> Refusal {
        Refusal::new(StatusCode::BAD_REQUEST, "BAD_REQUEST_ERR", what)
    }

    /// 404.
    pub(crate) fn none(what: impl Into<String>) -> Refusal {
        Refusal::new(StatusCode::NOT_FOUND, "NOT_FOUND_ERR", what)
    }
}

impl Refusal {
    /// 409: something else is in the way.
    pub(crate) fn conflict(code: &'static str, what: impl Into<String>) -> Refusal {
        Refusal::new(StatusCode::CONFLICT, code, what)
    }
}

impl From<StoreError> for Refusal {
    fn from(e: StoreError) -> Refusal {
        if matches!(e, StoreError::Busy) {
            return Refusal::new(StatusCode::SERVICE_UNAVAILABLE, "BUSY_ERR", error::BUSY);
        }
        tracing::error!(error = %e, "database");
        if matches!(e, StoreError::Damaged(_)) {
            let status = StatusCode::INTERNAL_SERVER_ERROR;
            return Refusal::new(status, "DATABASE_DAMAGED_ERR", error::DAMAGED);
        }
        let what = "The server's database did not answer; nothing was changed. Try again";
        Refusal::new(StatusCode::SERVICE_UNAVAILABLE, "STORAGE_ERR", what)
    }
}

impl From<NotRecorded> for Refusal {
    fn from(e: NotRecorded) -> Refusal {
        Refusal::new(StatusCode::SERVICE_UNAVAILABLE, "STORAGE_ERR", e.what())
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let wait = self.status == StatusCode::SERVICE_UNAVAILABLE;
        let mut response = match self.form {
            Form::Resource => {
                error::resource(self.status, self.code, &self.what, &self.correlation)
            }
            Form::Access => error::access(self.status, self.code, &self.what, &self.correlation),
            Form::Identity => {
                error::identity(self.status, self.code, &self.what, &self.correlation)
            }
            form => form.answer(self.status, self.code, &self.what, None),
        };
        error::say_when(&mut response, wait.then_some(error::RETRY_AFTER));
        response
    }
}

/// Refuses a change after which nobody could administer access, if somebody could before.
fn administered(app: &App, tx: &Tx<'_>) -> Result<(), Refusal> {
    if !tx.changed_access() || access::has_administrator(tx)? {
        return Ok(());
    }
    // Another view: as it is without the change.
    if app.store.read("administrators", access::has_administrator)? {
        return Err(last_administrator());
    }
    Ok(())
}

fn last_administrator() -> Refusal {
    let what = "Nobody could administer access any longer: the last administrator with an API key \
                must stay; let another one in first";
    Refusal::new(StatusCode::CONFLICT, "LAST_ADMINISTRATOR_ERR", what)
}

/// One act of an operator.
pub(crate) struct Doing {
    pub(crate) caller: Caller,
    /// The shape of its errors.
    pub(crate) form: Form,
    /// For the audit record.
    pub(crate) action: &'static str,
    /// What it is done to.
    pub(crate) target: String,
    /// Who may do it.
    pub(crate) needs: Needs,
    /// What the work says of itself for the record.
    noted: RefCell<Noted>,
}

#[derive(Default)]
struct Noted {
    target: Option<String>,
    change: Option<Change>,
    status: Option<u16>,
}

/// Facts for the record, as they are kept.
pub(crate) fn facts<const N: usize>(facts: [(&str, String); N]) -> Facts {
    let kept = facts.map(|(name, text)| (name.to_owned(), Record::kept(&text).to_owned()));
    kept.into_iter().collect()
}

/// Who may do something.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Needs {
    /// Whoever has at least this platform role there.
    Role(PlatformRole, Site<'static>),
    /// Administrators of access.
    Administrator,
    /// Whoever has a token; the work looks further.
    Token,
}

impl Doing {
    pub(crate) fn new(
        caller: Caller,
        form: Form,
        action: &'static str,
        target: String,
        needs: Needs,
    ) -> Doing {
        Doing { caller, form, action, target, needs, noted: RefCell::default() }
    }

    /// Notes what it was done to, where that is known only now.
    pub(crate) fn about(&self, target: String) {
        self.noted.borrow_mut().target = Some(target);
    }

    /// Notes what something said before and says now; nothing where it was not or is no more.
    pub(crate) fn changed(&self, from: Facts, to: Facts) {
        self.noted.borrow_mut().change = Some(Change::Access { from, to });
    }

    /// Notes how it ended, where the answer tells of several that ended otherwise.
    pub(crate) fn ended(&self, status: u16) {
        self.noted.borrow_mut().status = Some(status);
    }

    /// Does it: role, work and record in one transaction.
    pub(crate) async fn run<T: Send + 'static>(
        self,
        app: &Arc<App>,
        work: impl FnMut(&App, &Tx<'_>, &Doing, UnixMs) -> Result<T, Refusal> + Send + 'static,
    ) -> Result<T, Refusal> {
        self.run_then(app, work, |_| Ok(())).await
    }

    /// Like [`run`](Self::run), and once it is durable does `then`, which nobody can interrupt.
    pub(crate) async fn run_then<T: Send + 'static>(
        mut self,
        app: &Arc<App>,
        mut work: impl FnMut(&App, &Tx<'_>, &Doing, UnixMs) -> Result<T, Refusal> + Send + 'static,
        then: impl FnOnce(&App) -> Result<(), Refusal> + Send + 'static,
    ) -> Result<T, Refusal> {
        let now = app.clock.now();
        let run = move |app: &App| {
            let done = app.store.tx(self.action, |tx| {
                // The transaction may be done over.
                self.noted.take();
                self.admit(app, tx)?;
                let value = work(app, tx, &self, now)?;
                administered(app, tx)?;
                audit::add(tx, &self.done(now))?;
                Ok::<_, Refusal>(value)
            });
            let done = done.and_then(|value| then(app).map(|()| value));
            done.map_err(|refusal| self.refuse(app, now, refusal))
        };
        app.asked(For::Other, run).await
    }

    /// Does what changes nothing: on a view, which waits for no writer and holds none up.
    pub(crate) async fn look<T: Send + 'static>(
        mut self,
        app: &Arc<App>,
        work: impl FnOnce(&App, &Tx<'_>, &Doing, UnixMs) -> Result<T, Refusal> + Send + 'static,
    ) -> Result<T, Refusal> {
        let now = app.clock.now();
        let run = move |app: &App| {
            let done = app.store.read(self.action, |tx| {
                self.admit(app, tx)?;
                work(app, tx, &self, now)
            });
            let done = done.and_then(|value| {
                app.recorder.record_blocking(&self.done(now))?;
                Ok(value)
            });
            done.map_err(|refusal| self.refuse(app, now, refusal))
        };
        app.asked(For::Other, run).await
    }

    /// Puts a refusal on record, and gives it the form of what was asked. Where it is decided, so
    /// that nobody can try without a trace by hanging up.
    fn refuse(&self, app: &App, now: UnixMs, refusal: Refusal) -> Refusal {
        if app.recorder.record_blocking(&self.refused(now, &refusal)).is_err() {
            tracing::warn!(action = self.action, "a refusal could not be put on record");
        }
        let correlation = self.caller.trace.correlation.clone();
        Refusal { form: self.form, correlation, ..refusal }
    }

    /// Whether the caller may ask for this, as of this view.
    fn admit(&mut self, app: &App, tx: &Tx<'_>) -> Result<(), Refusal> {
        if !self.caller.renew(app, tx)? {
            let what = "Unauthorized: the token counts no longer; log in again";
            return Err(Refusal::new(StatusCode::UNAUTHORIZED, self.unauthorized(), what));
        }
        let (least, site) = match self.needs {
            Needs::Role(least, site) => (least, site),
            Needs::Administrator => (PlatformRole::Administrator, Site::Access),
            Needs::Token => return Ok(()),
        };
        if self.caller.platform(least, site) {
            return Ok(());
        }
        Err(self.forbidden(least))
    }

    /// Why it is refused to whoever has not this platform role.
    pub(crate) fn forbidden(&self, least: PlatformRole) -> Refusal {
        let what = format!(
            "Unauthorized: this needs the platform role {least:?}; ask an administrator for it"
        );
        Refusal::new(StatusCode::UNAUTHORIZED, self.unauthorized(), what)
    }

    /// The code of a 401. That status as everywhere here: on 403 some clients ask again for a
    /// minute and a half.
    fn unauthorized(&self) -> &'static str {
        if self.form == Form::Resource { "RC-IamErrorResponse" } else { "E0001" }
    }

    fn done(&self, at: UnixMs) -> Record {
        let Noted { target, change, status } = self.noted.take();
        let mut record =
            self.caller.did(at, self.action, target.unwrap_or_else(|| self.target.clone()));
        record.data.change = change;
        record.status = status.unwrap_or(record.status);
        record
    }

    fn refused(&self, at: UnixMs, refusal: &Refusal) -> Record {
        let record = self.caller.did(at, self.action, &*self.target);
        Record { status: refusal.status.as_u16(), reason: refusal.code.into(), ..record }
    }
}

/// Reads a JSON body.
pub(crate) fn parse<T: DeserializeOwned>(body: &Body) -> Result<T, Refusal> {
    let text = body.text().ok_or_else(|| Refusal::bad("The body is missing; it must be JSON"))?;
    objects::read(text).map_err(|e| Refusal::bad(format!("The body cannot be read: {e}")))
}
