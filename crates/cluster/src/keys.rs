//! What the agent asks of the key service, and the one distinction that everything rests on: an
//! authenticated "this key is not active" fences the node, silence does not.

use claviger_crypto::{Key32, SecretBytes};
use claviger_domain::key::{KeyState, RootKey};
use std::pin::Pin;
use thiserror::Error;

/// Why the key service did not wrap or unwrap.
#[derive(Debug, Error, Clone, PartialEq, Eq)]
pub enum KeyFailure {
    /// The key service says, authenticated, that the root key is not active. Final until an
    /// operator changes the key's state.
    #[error("root key {} is {state}: {message}", .root.key)]
    NotActive {
        /// Which.
        root: RootKey,
        /// Its state.
        state: KeyState,
        /// The service's words.
        message: String,
    },
    /// No answer that could be believed: network, TLS, overload. Says nothing about the key.
    #[error("the key service gave no answer: {0}")]
    Away(String),
    /// The key service answered no for another reason: no access, a text that does not open.
    #[error("the key service refused: {0}")]
    Refused(String),
}

/// A call under way.
pub type Calling<'a, T> = Pin<Box<dyn Future<Output = Result<T, KeyFailure>> + Send + 'a>>;

/// The two calls of the key service that an agent makes by itself.
pub trait Keys: Send + Sync {
    /// Unwraps `wrapped` with `root` under `aad`.
    fn unwrap<'a>(
        &'a self,
        root: RootKey,
        wrapped: &'a str,
        aad: &'a [String],
    ) -> Calling<'a, SecretBytes>;
    /// Wraps `key` with the current version of `root` under `aad`.
    fn wrap<'a>(&'a self, root: RootKey, key: &'a Key32, aad: &'a [String]) -> Calling<'a, String>;
}
