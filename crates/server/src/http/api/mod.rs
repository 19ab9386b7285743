//! Routes and their descriptions, made together: nothing answers that is not described.
//!
//! [`Api`] is the only way to a route of the server. [`document::of`] writes what it holds down as
//! OpenAPI 3.1.

pub(crate) mod content;
pub(crate) mod document;
pub(crate) mod parameters;
#[cfg(test)]
mod tests;

use crate::app::App;
use crate::http::error::Form;
use axum::handler::Handler;
use axum::routing::{MethodFilter, MethodRouter, on};
use axum::{Extension, Router};
use content::Content;
use parameters::{Header, Query};
use std::convert::Infallible;
use std::sync::Arc;

/// What all operations of a kind have in common: who may ask, how, and the shape of a refusal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// The key service: a token, and a header that names the instance.
    KeyProtect,
    /// The Resource Controller: a token.
    Resource,
    /// Policies, groups and users: a token.
    Access,
    /// API keys and service IDs: a token.
    Identity,
    /// The cluster service and our own: a token.
    Service,
    /// The agents' API: a node's certificate.
    Node,
    /// The token endpoint: credentials are in the form.
    Token,
    /// Nobody has to say who he is.
    Open,
}

impl Kind {
    /// The shape of its refusals.
    pub(crate) fn form(self) -> Form {
        match self {
            Kind::KeyProtect => Form::KeyProtect,
            Kind::Resource => Form::Resource,
            Kind::Access => Form::Access,
            Kind::Token | Kind::Identity => Form::Identity,
            Kind::Service | Kind::Node | Kind::Open => Form::Service,
        }
    }

    /// Statuses by which any of its operations may be refused.
    fn refusals(self) -> &'static [u16] {
        match self {
            Kind::KeyProtect => &[400, 401, 403, 404, 429, 500, 503],
            Kind::Resource | Kind::Access | Kind::Identity | Kind::Service | Kind::Node => {
                &[401, 429, 500, 503]
            }
            Kind::Token => &[400, 401, 429, 503],
            Kind::Open => &[],
        }
    }
}

/// What an operation takes and answers, for whoever reads the document.
#[derive(Clone)]
pub(crate) struct Description {
    id: &'static str,
    summary: &'static str,
    deprecated: bool,
    query: Vec<Query>,
    /// Headers, and whether they must be there.
    headers: Vec<(Header, bool)>,
    /// The body, and whether there must be one.
    takes: Option<(Content, bool)>,
    answers: Vec<(u16, Option<Content>)>,
    /// Headers of good answers.
    tells: Vec<Header>,
    refusals: Vec<u16>,
}

/// Begins a description: a name for generated clients, unique, and what is done, for people.
pub(crate) fn says(id: &'static str, summary: &'static str) -> Description {
    Description {
        id,
        summary,
        deprecated: false,
        query: Vec::new(),
        headers: Vec::new(),
        takes: None,
        answers: Vec::new(),
        tells: Vec::new(),
        refusals: Vec::new(),
    }
}

impl Description {
    /// Nobody should begin to use it.
    pub(crate) fn deprecated(self) -> Self {
        Self { deprecated: true, ..self }
    }

    /// Query parameters.
    pub(crate) fn query(mut self, query: &[Query]) -> Self {
        self.query.extend_from_slice(query);
        self
    }

    /// A header that it heeds.
    pub(crate) fn header(mut self, header: Header) -> Self {
        self.headers.push((header, false));
        self
    }

    /// A header that it needs.
    pub(crate) fn needs(mut self, header: Header) -> Self {
        self.headers.push((header, true));
        self
    }

    /// It needs this body.
    pub(crate) fn takes(self, content: Content) -> Self {
        Self { takes: Some((content, true)), ..self }
    }

    /// It may have this body.
    pub(crate) fn may_take(self, content: Content) -> Self {
        Self { takes: Some((content, false)), ..self }
    }

    /// A good answer.
    pub(crate) fn answers(mut self, status: u16, content: Content) -> Self {
        self.answers.push((status, Some(content)));
        self
    }

    /// A good answer without a body.
    pub(crate) fn answers_nothing(mut self, status: u16) -> Self {
        self.answers.push((status, None));
        self
    }

    /// A header of its good answers.
    pub(crate) fn tells(mut self, header: Header) -> Self {
        self.tells.push(header);
        self
    }

    /// Statuses by which it may be refused, besides those of its kind.
    pub(crate) fn refuses(mut self, statuses: &[u16]) -> Self {
        self.refusals.extend_from_slice(statuses);
        self
    }
}

/// A method of a path: who answers, and what he says of himself.
pub(crate) struct Operation {
    handler: MethodRouter<Arc<App>, Infallible>,
    method: &'static str,
    cases: Cases,
}

enum Cases {
    One(Description),
    /// One for each value of a path parameter.
    Each(&'static str, Vec<(&'static str, Description)>),
}

macro_rules! method {
    ($name:ident, $filter:ident, $text:literal) => {
        #[doc = concat!("`", stringify!($filter), "` of a path.")]
        pub(crate) fn $name<H, T>(handler: H, said: Description) -> Operation
        where
            H: Handler<T, Arc<App>>,
            T: 'static,
        {
            let handler = on(MethodFilter::$filter, handler);
            Operation { handler, method: $text, cases: Cases::One(said) }
        }
    };
}

method!(get, GET, "get");
method!(head, HEAD, "head");
method!(post, POST, "post");
method!(put, PUT, "put");
method!(patch, PATCH, "patch");
method!(delete, DELETE, "delete");

/// `POST` of a path whose parameter `name` has these values, each an operation of its own.
pub(crate) fn post_each<H, T>(
    handler: H,
    name: &'static str,
    cases: Vec<(&'static str, Description)>,
) -> Operation
where
    H: Handler<T, Arc<App>>,
    T: 'static,
{
    let handler = on(MethodFilter::POST, handler);
    Operation { handler, method: "post", cases: Cases::Each(name, cases) }
}

/// An operation, placed.
struct Placed {
    tag: &'static str,
    kind: Kind,
    /// As OpenAPI writes it.
    path: String,
    method: &'static str,
    said: Description,
    /// What may also stand before the path.
    prefix: Option<&'static str>,
}

/// Routes with their descriptions.
pub(crate) struct Api {
    tag: &'static str,
    kind: Kind,
    router: Router<Arc<App>>,
    placed: Vec<Placed>,
}

impl Api {
    /// None yet; those to come are listed under `tag`.
    pub(crate) fn new(tag: &'static str, kind: Kind) -> Api {
        Api { tag, kind, router: Router::new(), placed: Vec::new() }
    }

    /// Adds a path, in axum's notation, and its methods.
    pub(crate) fn at(mut self, path: &str, operations: impl IntoIterator<Item = Operation>) -> Api {
        let shown = path.replace("{*", "{");
        for Operation { handler, method, cases } in operations {
            self.router = self.router.route(path, handler);
            let cases = match cases {
                Cases::One(said) => vec![(shown.clone(), said)],
                Cases::Each(name, cases) => {
                    let place = |value| shown.replace(&format!("{{{name}}}"), value);
                    cases.into_iter().map(|(value, said)| (place(value), said)).collect()
                }
            };
            let (tag, kind) = (self.tag, self.kind);
            self.placed.extend(cases.into_iter().map(|(path, said)| Placed {
                tag,
                kind,
                path,
                method,
                said,
                prefix: None,
            }));
        }
        self
    }

    /// Adds those of another.
    pub(crate) fn merge(mut self, other: Api) -> Api {
        self.router = self.router.merge(other.router);
        self.placed.extend(other.placed);
        self
    }

    /// Answers all of it under `prefix` too.
    pub(crate) fn also_under(mut self, prefix: &'static str) -> Api {
        self.router = self.router.clone().nest(prefix, self.router);
        for placed in &mut self.placed {
            placed.prefix = Some(prefix);
        }
        self
    }

    /// Gives all handlers that are there something that they share.
    pub(crate) fn sharing<T: Clone + Send + Sync + 'static>(mut self, shared: T) -> Api {
        self.router = self.router.layer(Extension(shared));
        self
    }

    /// The routes; their descriptions go.
    pub(crate) fn into_router(self) -> Router<Arc<App>> {
        self.router
    }
}
