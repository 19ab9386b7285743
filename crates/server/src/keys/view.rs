//! Keys as clients see them.

use crate::app::App;
use crate::keys::changes::too_early;
use crate::keys::{dual, policies};
use claviger_domain::id::UnixMs;
use claviger_domain::key::KeyState;
use claviger_store::keys::{self, Key};
use claviger_store::{StoreError, Tx};
use claviger_wire::kp;
use std::time::Duration;

/// RFC 3339 in UTC, with a fraction only where there is one.
pub(crate) fn date(at: UnixMs) -> String {
    jiff::Timestamp::from_millisecond(at.0).unwrap_or(jiff::Timestamp::UNIX_EPOCH).to_string()
}

/// RFC 3339 in UTC, whole seconds.
pub(crate) fn second(at: UnixMs) -> String {
    date(whole_second(at))
}

/// The second that `at` is in: what clients see of most moments.
pub(crate) fn whole_second(at: UnixMs) -> UnixMs {
    UnixMs(at.0.div_euclid(1000) * 1000)
}

/// A moment out of RFC 3339, with any offset.
pub(crate) fn parse_date(text: &str) -> Option<UnixMs> {
    let at: jiff::Timestamp = text.parse().ok()?;
    Some(UnixMs(at.as_millisecond()))
}

pub(crate) fn later(at: UnixMs, by: Duration) -> UnixMs {
    UnixMs(at.0.saturating_add(i64::try_from(by.as_millis()).unwrap_or(i64::MAX)))
}

/// A key without payload.
pub(crate) fn key(app: &App, tx: &Tx<'_>, key: &Key, now: UnixMs) -> Result<kp::Key, StoreError> {
    let state = key.state_at(now);
    let version = match key.current {
        None => None,
        Some(id) => keys::version(tx, &key.root, id)?
            .map(|v| kp::KeyVersion { id: v.id.0, creation_date: Some(second(v.created)) }),
    };
    let (rotation, dual) = policies::key::of_key(tx, key, dual::set_until(key, now))?;
    let mut out = kp::Key {
        media_type: kp::KEY_TYPE.to_owned(),
        id: key.root.key.0,
        name: key.name.clone(),
        aliases: keys::aliases(tx, &key.root)?,
        description: key.description.clone(),
        tags: key.tags.clone(),
        state: state as u8,
        expiration_date: key.expires.map(date),
        extractable: key.extractable,
        crn: app.account.key_crn(&key.root),
        imported: key.imported,
        key_ring_id: key.ring.clone(),
        creation_date: second(key.created),
        created_by: key.created_by.clone(),
        algorithm_type: "Deprecated".to_owned(),
        algorithm_metadata: kp::AlgorithmMetadata {
            bit_length: "256".to_owned(),
            mode: "Deprecated".to_owned(),
        },
        algorithm_bit_size: 256,
        algorithm_mode: "Deprecated".to_owned(),
        nonactive_state_reason: (state != KeyState::Active).then_some(1),
        last_update_date: key.updated.map(second),
        last_rotate_date: key.rotated.map(second),
        key_version: version,
        rotation,
        dual_auth_delete: Some(dual),
        deleted: state == KeyState::Destroyed,
        ..kp::Key::default()
    };
    if let (KeyState::Destroyed, Some(deleted)) = (state, key.deleted) {
        let until = later(deleted, app.settings.restore_within);
        let purge_from = later(deleted, app.settings.purge_after);
        out.deletion_date = Some(second(deleted));
        out.deleted_by = key.deleted_by.clone();
        out.restore_allowed = Some(now < until && key.expires.is_none_or(|end| now < end));
        out.restore_expiration_date = Some(second(until));
        let early = too_early(key.deleted, app.settings.purge_after, now);
        out.purge_allowed = Some(early.is_none());
        out.purge_allowed_from = Some(second(purge_from));
        out.purge_scheduled_on = Some(second(later(deleted, app.settings.purged_after)));
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_rfc_3339_as_go_reads_them() {
        assert_eq!(date(UnixMs(1_583_984_252_000)), "2020-03-12T03:37:32Z");
        assert_eq!(date(UnixMs(1_583_984_252_120)), "2020-03-12T03:37:32.12Z");
        assert_eq!(second(UnixMs(1_583_984_252_120)), "2020-03-12T03:37:32Z");
        assert_eq!(parse_date("2020-03-12T05:37:32+02:00"), Some(UnixMs(1_583_984_252_000)));
        assert_eq!(parse_date("tomorrow"), None);
    }
}
