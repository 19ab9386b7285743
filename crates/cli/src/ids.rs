//! Identifiers as people give them: a GUID, a CRN that holds one, or a name. And the one wait
//! that two commands share.

use crate::exit::{self, Failure};
use claviger_client::KeyService;
use claviger_domain::id::{InstanceId, KeyId};
use claviger_domain::key::KeyState;
use claviger_wire::kp::Key;
use std::time::{Duration, Instant};

/// An instance's GUID, alone or as the eighth segment of a CRN.
pub fn instance(text: &str) -> Result<InstanceId, String> {
    let guid = if text.starts_with("crn:") { text.split(':').nth(7).unwrap_or("") } else { text };
    guid.parse().map_err(|_| {
        "expected the GUID or CRN of an instance; see `claviger ks kms instance ls`".to_owned()
    })
}

/// A key's GUID, alone or as the last segment of its CRN.
fn key(text: &str) -> Option<KeyId> {
    let guid = if text.starts_with("crn:") { text.rsplit(':').next().unwrap_or("") } else { text };
    guid.parse().ok()
}

/// Finds a key by id, CRN or name. A name that two keys have is refused.
pub async fn find_key(
    keys: &KeyService,
    instance: InstanceId,
    text: &str,
) -> Result<KeyId, Failure> {
    if let Some(key) = key(text) {
        return Ok(key);
    }
    let list = keys.list(instance).await?;
    pick(&list, text)
}

fn pick(list: &[Key], name: &str) -> Result<KeyId, Failure> {
    let named: Vec<&Key> =
        list.iter().filter(|k| k.name == name || k.aliases.iter().any(|a| a == name)).collect();
    match named[..] {
        [one] => Ok(KeyId(one.id)),
        [] => Err(Failure::new(
            exit::USAGE,
            format!("no key is called {name:?}"),
            "see `claviger key ls`; deleted keys are found by their id only",
        )),
        [..] => Err(Failure::new(
            exit::USAGE,
            format!("{} keys are called {name:?}", named.len()),
            "say which by its id; see `claviger key ls`",
        )),
    }
}

/// The key service lets a key be enabled or restored 30 seconds after its last change, no sooner.
const TOO_EARLY_MAX: Duration = Duration::from_secs(35);

/// Enables a key. Waits the key service's own waiting time out, and says so by `note`; a key
/// that is active already is no failure.
pub async fn enable(
    keys: &KeyService,
    instance: InstanceId,
    key: KeyId,
    note: impl FnMut(&str),
) -> Result<(), Failure> {
    let done = wait_out(note, async || keys.enable(instance, key).await).await;
    unless_so_already(done, keys, instance, key, KeyState::Active).await
}

/// Disables a key, and says whether that changed anything; one that is suspended already is no
/// failure.
pub async fn disable(keys: &KeyService, instance: InstanceId, key: KeyId) -> Result<bool, Failure> {
    let done = keys.disable(instance, key).await.map_err(Failure::from);
    let changed = done.is_ok();
    unless_so_already(done, keys, instance, key, KeyState::Suspended).await?;
    Ok(changed)
}

/// A change that was refused is none to complain of where the key is as wanted.
async fn unless_so_already(
    done: Result<(), Failure>,
    keys: &KeyService,
    instance: InstanceId,
    key: KeyId,
    wanted: KeyState,
) -> Result<(), Failure> {
    if done.is_err()
        && let Ok(found) = keys.metadata(instance, key).await
        && found.state == wanted as u8
    {
        return Ok(());
    }
    done
}

/// Does `act`, again each second while the key service says that it is too early.
pub async fn wait_out<T>(
    mut note: impl FnMut(&str),
    act: impl AsyncFn() -> Result<T, claviger_client::Error>,
) -> Result<T, Failure> {
    let until = Instant::now() + TOO_EARLY_MAX;
    loop {
        match act().await {
            Err(error) if error.reason() == Some("REQ_TOO_EARLY_ERR") && Instant::now() < until => {
                note("the key service wants up to 30 s between two changes of a key; waiting");
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
            other => return Ok(other?),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn crns_give_their_guid() {
        let guid = "11111111-2222-4333-8444-555555555555";
        let crn = format!("crn:v1:claviger:public:kms:local:a/acc:{guid}::");
        assert_eq!(instance(guid).unwrap().to_string(), guid);
        assert_eq!(instance(&crn).unwrap().to_string(), guid);
        assert!(instance("crn:v1").is_err());
        let other = "99999999-2222-4333-8444-555555555555";
        let crn = format!("crn:v1:claviger:public:kms:local:a/acc:{guid}:key:{other}");
        assert_eq!(key(&crn).unwrap().to_string(), other);
        assert_eq!(key("shop-root"), None);
    }

    #[test]
    fn a_name_must_be_one_keys_only() {
        let named =
            |name: &str| Key { name: name.to_owned(), id: KeyId::random().0, ..Key::default() };
        let list = [named("a"), named("b"), named("b")];
        assert_eq!(pick(&list, "a").unwrap(), KeyId(list[0].id));
        assert!(pick(&list, "b").unwrap_err().error.contains("2 keys"));
        assert!(pick(&list, "c").unwrap_err().error.contains("no key"));
    }
}
