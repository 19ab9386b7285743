//! The key service as the agent asks it, and the one translation of its answers: what fences,
//! what coasts, what is merely told.

use crate::keys::{Calling, KeyFailure, Keys};
use crate::node::Node;
use claviger_client::{Error, UnwrapOutcome};
use claviger_crypto::kek::{Carried, wrap_aad};
use claviger_crypto::{Key32, SecretBytes};
use claviger_domain::key::{KeyState, RootKey};
use claviger_kms_plugin::resolve::{Resolve, ResolveError, Resolving};
use std::sync::{Arc, OnceLock, Weak};

/// The key service behind a node's clients. Made before the node, bound to it afterwards.
#[derive(Default)]
pub struct ServiceKeys {
    node: OnceLock<Weak<Node>>,
}

impl ServiceKeys {
    /// Asks through `node` from now on.
    pub fn bind(&self, node: &Arc<Node>) {
        // A second call changes nothing.
        let _ = self.node.set(Arc::downgrade(node));
    }

    fn node(&self) -> Result<Arc<Node>, KeyFailure> {
        let node = self.node.get().and_then(Weak::upgrade);
        node.ok_or_else(|| KeyFailure::Away("the agent is starting or stopping".to_owned()))
    }
}

impl Keys for ServiceKeys {
    fn unwrap<'a>(
        &'a self,
        root: RootKey,
        wrapped: &'a str,
        aad: &'a [String],
    ) -> Calling<'a, SecretBytes> {
        Box::pin(async move {
            let clients = self.node()?.clients();
            match clients.keys.try_unwrap(root.instance, root.key, wrapped, aad).await {
                UnwrapOutcome::Opened(opened) => Ok(opened.plaintext),
                UnwrapOutcome::Closed { state, error } => Err(KeyFailure::NotActive {
                    root,
                    // The service said that the state forbids it; suspended is the mildest such.
                    state: state.unwrap_or(KeyState::Suspended),
                    message: error.to_string(),
                }),
                UnwrapOutcome::Refused(error) => Err(KeyFailure::Refused(error.to_string())),
                UnwrapOutcome::Unknown(error) => Err(KeyFailure::Away(error.to_string())),
            }
        })
    }

    fn wrap<'a>(&'a self, root: RootKey, key: &'a Key32, aad: &'a [String]) -> Calling<'a, String> {
        Box::pin(async move {
            let clients = self.node()?.clients();
            let secret = SecretBytes::new(key.expose().to_vec());
            let wrapped = clients.keys.wrap(root.instance, root.key, Some(&secret), aad).await;
            wrapped.map(|w| w.ciphertext).map_err(|error| failure(root, &error))
        })
    }
}

fn failure(root: RootKey, error: &Error) -> KeyFailure {
    let message = error.to_string();
    if error.is_key_state() {
        KeyFailure::NotActive { root, state: KeyState::Suspended, message }
    } else if matches!(error, Error::Refused { .. } | Error::Unauthorized { .. }) {
        KeyFailure::Refused(message)
    } else {
        KeyFailure::Away(message)
    }
}

impl Resolve for ServiceKeys {
    fn resolve(&self, carried: Carried) -> Resolving<'_> {
        Box::pin(async move {
            let unavailable = |f: KeyFailure| ResolveError::Unavailable(f.to_string());
            let node = self.node().map_err(unavailable)?;
            let aad = wrap_aad(&node.cluster, carried.serial);
            let opened = self.unwrap(carried.root.root, &carried.wrapped, &aad).await;
            let opened = opened.map_err(|failure| match failure {
                KeyFailure::Away(_) => ResolveError::Unavailable(failure.to_string()),
                _ => ResolveError::Refused(failure.to_string()),
            })?;
            let mut bytes = opened.expose().to_vec();
            Key32::take(&mut bytes)
                .ok_or_else(|| ResolveError::Refused("a KEK has 32 bytes".to_owned()))
        })
    }
}
