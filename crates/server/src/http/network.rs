//! By which listener a request came.

use axum::extract::FromRequestParts;
use axum::http::request::Parts;
use std::convert::Infallible;

/// The listener; the accept loop puts it into each request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Network {
    /// The private one; also what is assumed where nobody said.
    Private,
    /// The public one.
    Public,
}

impl<S: Sync> FromRequestParts<S> for Network {
    type Rejection = Infallible;
    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Infallible> {
        Ok(parts.extensions.get().copied().unwrap_or(Network::Private))
    }
}
