//! What the clock does to keys, and what must wait for it.

use super::*;
use crate::keys::clock::{due_at, turn};
use crate::sure::trust_clock;
use claviger_domain::access::PlatformRole;
use claviger_domain::key::KeyState;
use claviger_store::keys;
use std::collections::HashSet;

const DAY: u64 = 86_400;

impl World {
    fn turn(&self) {
        turn(&self.app).unwrap();
    }

    fn root_key(&self, id: &str) -> RootKey {
        RootKey { instance: self.one, key: id.parse().unwrap() }
    }

    fn versions(&self, id: &str) -> usize {
        self.app.store.read("t", |tx| keys::versions(tx, &self.root_key(id))).unwrap().len()
    }

    async fn rotating(&self, months: u8) -> String {
        let key = json!({"name": "rotating", "rotation": {"interval_month": months}});
        self.call("POST /keys_with_policy_overrides", &envelope(key)).await.is(201).id()
    }

    fn rows(&self, table: &str, id: &str) -> i64 {
        let column = if table == "keys" { "id" } else { "key" };
        let sql = format!("SELECT count(*) FROM {table} WHERE {column} = ?1");
        self.app
            .store
            .read("t", |tx| Ok::<_, StoreError>(tx.query_row(&sql, [id], |r| r.get(0))?))
            .unwrap()
    }
}

#[tokio::test]
async fn a_key_rotates_when_its_policy_says_so_and_once_however_late() {
    let w = World::new();
    let mut hub = w.app.hub.key_events();
    let id = w.rotating(1).await;
    let (suspended, off) = (w.rotating(1).await, w.rotating(1).await);
    w.call(&format!("POST /keys/{suspended}/actions/disable"), &Value::Null).await.is(204);
    let policy = json!({"metadata": {"collectionType": "x", "collectionTotal": 1}, "resources": [{"rotation": {"enabled": false}}]});
    w.call(&format!("PUT /keys/{off}/policies"), &policy).await.is(200);
    let due = due_at(&w.root_key(&id), START, 1);
    let late = due.since(UnixMs(START.0 + 30 * DAY as i64 * 1000));
    assert!(late < 3_600_000, "spread over an hour");

    w.clock.advance(Duration::from_millis(due.since(START) - 1));
    w.turn();
    assert_eq!(w.versions(&id), 1, "not before it is due");
    w.clock.advance(Duration::from_millis(1));
    w.turn();
    w.turn();
    assert_eq!((w.versions(&id), w.audited("kms.secrets.rotate")), (2, 1));
    let seen = w.call(&format!("GET /keys/{id}/metadata"), &Value::Null).await;
    assert!(seen.key()["lastRotateDate"].as_str().unwrap().starts_with("2027-02-14T"));
    assert_eq!(w.kinds(), [EventKind::Disable, EventKind::Rotate]);
    hub.try_recv().unwrap();
    assert_eq!(hub.try_recv().unwrap().kind, EventKind::Rotate, "announced as any other");
    let who: String = w
        .app
        .store
        .read("t", |tx| {
            let sql = "SELECT who FROM audit WHERE action = 'kms.secrets.rotate'";
            Ok::<_, StoreError>(tx.query_row(sql, [], |r| r.get(0))?)
        })
        .unwrap();
    assert_eq!(who, "system");

    // A rotation by hand counts as any other: the next is due a month after it.
    w.advance(20 * DAY);
    w.call(&format!("POST /keys/{id}/actions/rotate"), &Value::Null).await.is(204);
    w.advance(20 * DAY);
    w.turn();
    assert_eq!(w.versions(&id), 3);
    // Down for half a year: one rotation, not six.
    w.advance(180 * DAY);
    w.turn();
    w.turn();
    assert_eq!(w.versions(&id), 4);

    assert_eq!((w.versions(&suspended), w.versions(&off)), (1, 1));
    w.call(&format!("POST /keys/{suspended}/actions/enable"), &Value::Null).await.is(204);
    w.turn();
    assert_eq!(w.versions(&suspended), 2, "made up for once it is active again");
}

#[tokio::test]
async fn what_is_long_deleted_is_shredded_then_removed_with_all_that_hangs_on_it() {
    let w = World::new();
    let key = json!({"name": "doomed", "aliases": ["al"], "rotation": {"interval_month": 12}});
    let id = w.call("POST /keys_with_policy_overrides", &envelope(key)).await.is(201).id();
    w.call(&format!("POST /keys/{id}/actions/rotate"), &Value::Null).await.is(204);
    let root = RootKey { instance: w.one, key: id.parse().unwrap() };
    w.person("only", &[(ServiceRole::Reader, Scope::Key(root))]);
    w.call(&format!("DELETE /keys/{id}"), &Value::Null).await.is(204);
    w.advance(30 * DAY + 1);
    w.turn();
    assert_eq!(w.audited("kms.secrets.shred"), 1);
    w.call("GET /keys/al/metadata", &Value::Null).await.is(200);
    w.advance(60 * DAY);
    w.turn();
    assert_eq!(w.audited("kms.secrets.purge"), 1);
    w.call(&format!("GET /keys/{id}"), &Value::Null).await.refused(404, "KEY_NOT_FOUND_ERR");
    for table in [
        "keys",
        "key_versions",
        "aliases",
        "key_policies",
        "key_events",
        "event_acks",
        "event_answers",
        "registrations",
        "access_policies",
    ] {
        assert_eq!(w.rows(table, &id), 0, "{table}");
    }
    // The alias is free again.
    w.create(json!({"name": "next", "aliases": ["al"]})).await.is(201);
}

#[tokio::test]
async fn purge_waits_four_hours_and_needs_its_own_role() {
    let w = World::new();
    let purger = w.person("purger", &[(ServiceRole::KeyPurge, Scope::Instance(w.one))]);
    let id = w.root().await;
    let line = format!("DELETE /keys/{id}/purge");
    w.by(&purger, &line, "").await.refused(409, "KEY_ACTION_INVALID_STATE_ERR");
    w.call(&format!("DELETE /keys/{id}"), &Value::Null).await.is(204);
    w.advance(4 * 3600 - 1);
    w.call(&line, &Value::Null).await.is(401);
    let early = w.by(&purger, &line, "").await;
    assert!(
        early.body.to_string().contains("Purge operation is allowed 4h0m0s after key is deleted")
    );
    early.refused(409, "REQ_TOO_EARLY_ERR");
    w.advance(1);
    let seen = w.call(&format!("GET /keys/{id}/metadata"), &Value::Null).await;
    assert_eq!(seen.key()["purgeAllowed"], true);
    let request = Request::delete(format!("/api/v2/keys/{id}/purge"))
        .header("authorization", format!("bearer {purger}"))
        .header("bluemix-instance", w.one.to_string())
        .header("prefer", "return=representation");
    let purged = w.raw(request.body(Body::empty()).unwrap()).await.is(200);
    assert_eq!(purged.id(), id);
    w.by(&purger, &line, "").await.refused(404, "KEY_NOT_FOUND_ERR");
    for line in [format!("GET /keys/{id}/metadata"), format!("POST /keys/{id}/restore")] {
        w.call(&line, &Value::Null).await.refused(404, "KEY_NOT_FOUND_ERR");
    }
    assert_eq!((w.rows("keys", &id), w.rows("key_versions", &id)), (0, 0));
}

#[tokio::test]
async fn sync_says_the_state_again_at_most_hourly() {
    let w = World::new();
    let mut hub = w.app.hub.key_events();
    let id = w.root().await;
    let sync = format!("POST /keys/{id}/actions/sync");
    w.call(&format!("POST /keys/{id}/actions/disable"), &Value::Null).await.is(204);
    let early = w.call(&sync, &Value::Null).await;
    let said = early.key()["reasons"][0]["message"].as_str().unwrap().to_owned();
    assert!(
        said.ends_with("Sync cannot be performed until at least 2027-01-15T09:00:00Z"),
        "{said}"
    );
    early.refused(409, "REQ_TOO_EARLY_ERR");
    w.advance(3600);
    w.call(&sync, &Value::Null).await.is(204);
    assert_eq!(w.kinds(), [EventKind::Disable, EventKind::Disable], "the same again");
    let (first, second) = (hub.try_recv().unwrap(), hub.try_recv().unwrap());
    assert!(second.id > first.id, "a new one to act on");
    w.call(&sync, &Value::Null).await.refused(409, "REQ_TOO_EARLY_ERR");
    w.advance(3600);
    w.call(&format!("POST /keys/{id}?action=sync"), &Value::Null)
        .await
        .refused(400, "INVALID_QUERY_PARAM_ERR");
    let reader = w.person("reader", &[(ServiceRole::Reader, Scope::Instance(w.one))]);
    w.by(&reader, &sync, "").await.is(401);
    w.call(&sync, &Value::Null).await.is(204);
    let standard = w.create(json!({"name": "std", "extractable": true})).await.is(201).id();
    w.call(&format!("POST /keys/{standard}/actions/sync"), &Value::Null)
        .await
        .refused(400, "KEY_ROOT_REQ_ERR");
}

/// A server with a key that expires in ten days, one that was just deleted, and one that rotates.
async fn with_dates() -> (World, String, String, String) {
    let w = World::new();
    let key = json!({"name": "short", "expirationDate": "2027-01-25T08:00:00Z"});
    let short = w.create(key).await.is(201).id();
    let gone = w.root().await;
    w.call(&format!("DELETE /keys/{gone}"), &Value::Null).await.is(204);
    let rotating = w.rotating(1).await;
    (w, short, gone, rotating)
}

impl World {
    /// Sets the clock so far ahead of the true time, while no time passes.
    fn ahead(&self, seconds: u64) {
        self.clock.set(UnixMs(self.app.clock.now().0 + seconds as i64 * 1000));
    }

    fn written(&self, id: &str) -> Option<KeyState> {
        let key = self.app.store.read("t", |tx| keys::get(tx, &self.root_key(id))).unwrap();
        key.map(|key| key.life.state())
    }

    fn has_material(&self, id: &str) -> bool {
        let sql = "SELECT count(*) FROM key_versions WHERE key = ?1 AND material IS NOT NULL";
        self.app
            .store
            .read("t", |tx| Ok::<_, StoreError>(tx.query_row(sql, [id], |r| r.get::<_, i64>(0))?))
            .unwrap()
            > 0
    }
}

#[tokio::test]
async fn a_clock_that_is_ahead_for_a_moment_destroys_nothing() {
    let (w, short, gone, rotating) = with_dates().await;
    w.turn();
    let now = w.app.clock.now();
    w.ahead(100 * DAY);
    w.turn();
    let wrap = format!("POST /keys/{short}/actions/wrap");
    w.call(&wrap, &Value::Null).await.refused(409, "KEY_ACTION_INVALID_STATE_ERR");
    assert_eq!(w.written(&short), Some(KeyState::Active), "refused, and not for good");
    assert!(w.has_material(&gone), "neither shredded nor purged");
    assert_eq!(w.versions(&rotating), 1);
    assert!(w.app.metrics.render().contains("claviger_clock_in_doubt 1"));

    w.clock.set(now);
    w.advance(60);
    w.turn();
    w.call(&wrap, &Value::Null).await.is(200);
    w.call(&format!("POST /keys/{gone}/restore"), &Value::Null).await.is(201);
    assert!(w.app.metrics.render().contains("claviger_clock_in_doubt 0"));
}

#[tokio::test]
async fn what_was_due_while_the_server_was_off_is_done_hours_later() {
    let (w, short, gone, rotating) = with_dates().await;
    w.turn();
    w.ahead(40 * DAY);
    w.turn();
    w.advance(4 * 3600 - 1);
    w.turn();
    let undone = (w.written(&short), w.has_material(&gone), w.versions(&rotating));
    assert_eq!(undone, (Some(KeyState::Active), true, 1));
    w.advance(1);
    w.turn();
    let done = (w.written(&short), w.has_material(&gone), w.versions(&rotating));
    assert_eq!(done, (Some(KeyState::Deactivated), false, 2));
}

#[tokio::test]
async fn an_operator_says_that_the_clock_is_right() {
    let (w, _, gone, _) = with_dates().await;
    w.turn();
    w.ahead(40 * DAY);
    w.turn();
    let database = w.dir.path().join("claviger.db");
    trust_clock(&database, "host-uid-0", w.app.clock.now()).unwrap();
    w.turn();
    assert!(!w.has_material(&gone));
    assert_eq!(w.audited("claviger.clock.trust"), 1);
}

/// A start does not make a wrong clock right: what is kept is what the last run was sure of.
#[tokio::test]
async fn a_start_with_a_clock_that_is_ahead_destroys_nothing() {
    let (w, short, gone, _) = with_dates().await;
    w.turn();
    w.ahead(100 * DAY);
    for _ in 0..3 {
        let keeper = crate::sure::Keeper::start(&w.app.store, &*w.clock).unwrap();
        *w.app.keeper.lock().unwrap() = keeper;
        w.turn();
        w.advance(3600);
        w.turn();
    }
    assert_eq!((w.written(&short), w.has_material(&gone)), (Some(KeyState::Active), true));
}

#[tokio::test]
async fn nobody_waits_for_a_moment_that_has_not_come() {
    let w = World::new();
    let (id, other) = (w.root().await, w.root().await);
    let post = |action: &str| format!("POST /keys/{id}/actions/{action}");
    let purger = w.person("purger", &[(ServiceRole::KeyPurge, Scope::Everywhere)]);
    let now = w.app.clock.now();
    w.ahead(DAY);
    w.call(&post("rotate"), &Value::Null).await.is(204);
    w.call(&post("disable"), &Value::Null).await.is(204);
    w.call(&format!("DELETE /keys/{other}"), &Value::Null).await.is(204);
    w.clock.set(now);
    w.call(&post("sync"), &Value::Null).await.is(204);
    w.call(&post("enable"), &Value::Null).await.is(204);
    w.call(&post("rotate"), &Value::Null).await.is(204);
    w.call(&post("rotate"), &Value::Null).await.refused(409, "KEY_ROTATION_NOT_PERMITTED");
    w.by(&purger, &format!("DELETE /keys/{other}/purge"), "").await.is(204);
}

#[tokio::test]
async fn a_clock_that_is_set_back_stops_nothing() {
    let w = World::with(Settings::default().without_waits());
    let id = w.root().await;
    w.call(&format!("DELETE /keys/{id}"), &Value::Null).await.is(204);
    let now = w.app.clock.now();
    w.ahead(365 * DAY);
    let watch = tokio::spawn(crate::keys::clock::watch(w.app.clone()));
    let sure = async || {
        for _ in 0..200 {
            if w.app.metrics.render().contains("claviger_clock_in_doubt 1") {
                return;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        panic!("it never looked");
    };
    sure().await;
    w.clock.set(now);
    w.advance(30 * DAY + 1);
    for _ in 0..200 {
        if !w.has_material(&id) {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    watch.abort();
    assert!(!w.has_material(&id), "nothing slow was done any more");
}

#[tokio::test]
async fn a_damaged_row_keeps_nothing_else_from_its_time() {
    let (w, short, gone, rotating) = with_dates().await;
    let damaged = json!({"name": "bad", "expirationDate": "2027-01-20T08:00:00Z"});
    let damaged = w.create(damaged).await.is(201).id();
    let tags = w.root().await;
    w.call(&format!("DELETE /keys/{tags}"), &Value::Null).await.is(204);
    for id in [&damaged, &tags] {
        let sql = "UPDATE keys SET tags = 'no JSON' WHERE id = ?1";
        w.app.store.tx("t", |tx| Ok::<_, StoreError>(tx.execute(sql, [id])?)).unwrap();
    }
    w.advance(40 * DAY);
    assert_eq!(turn(&w.app), Err(2));
    let done = (w.written(&short), w.has_material(&gone), w.versions(&rotating));
    assert_eq!(done, (Some(KeyState::Deactivated), false, 2));
    assert!(w.has_material(&tags));
    // Nobody is told to try again what only an operator mends.
    let line = format!("GET /keys/{damaged}/metadata");
    w.call(&line, &Value::Null).await.refused(500, "INCOMPLETE_METADATA_ERR");
}

/// Every run of 16 bytes of a text, at steps of 16.
fn marks(text: &[u8]) -> impl Iterator<Item = [u8; 16]> + '_ {
    text.chunks_exact(16).map(|chunk| chunk.try_into().unwrap())
}

/// How many of `marks` are anywhere in the files of the database: pages in use, free pages, log.
fn found(w: &World, marks: &HashSet<[u8; 16]>) -> usize {
    let mut seen = HashSet::new();
    for bytes in w.files() {
        for window in bytes.windows(16) {
            let window: [u8; 16] = window.try_into().unwrap();
            if marks.contains(&window) {
                seen.insert(window);
            }
        }
    }
    seen.len()
}

#[tokio::test]
async fn no_file_of_the_database_holds_shredded_material() {
    let w = World::with(Settings::default().without_waits());
    let material: Vec<u8> = (0..32).map(|i| i * 7 + 3).collect();
    // Larger than a page, so that it has pages of its own, which become free.
    let payload: Vec<u8> = (0..7000_u32).map(|i| (i * i * 31 + i / 251) as u8).collect();
    let (mut ids, mut secret) = (Vec::new(), HashSet::new());
    secret.extend(marks(&material).chain(marks(&payload)));
    for n in 0..6 {
        let root = json!({"name": "imported", "payload": STANDARD.encode(&material)});
        let standard =
            json!({"name": "standard", "extractable": true, "payload": STANDARD.encode(&payload)});
        let generated = json!({"name": "generated"});
        for key in [root, standard, generated] {
            ids.push(w.create(key).await.is(201).id());
        }
        if n % 2 == 0 {
            let line = format!("POST /keys/{}/actions/rotate", ids.last().unwrap());
            w.call(&line, &Value::Null).await.is(204);
        }
    }
    let kept = ids.split_off(12);
    let sealed = |id: &String| -> HashSet<[u8; 16]> {
        let root = w.root_key(id);
        let all = w.app.store.read("t", |tx| -> Result<_, StoreError> {
            let mut all = vec![keys::payload(tx, &root)?];
            for version in keys::versions(tx, &root)? {
                all.push(keys::material(tx, &root, version.id)?);
            }
            Ok(all)
        });
        all.unwrap().into_iter().flatten().flat_map(|s| marks(&s).collect::<Vec<_>>()).collect()
    };
    let doomed: HashSet<_> = ids.iter().flat_map(sealed).collect();
    let living: HashSet<_> = kept.iter().flat_map(sealed).collect();
    // A header is the same for all that is sealed.
    let (doomed, living): (HashSet<_>, HashSet<_>) = (&doomed - &living, &living - &doomed);
    // What straddles two pages is not found in one piece, so not quite all.
    let (many, before) = (doomed.len(), found(&w, &doomed));
    assert!(before > many * 9 / 10, "the search finds what is there: {before} of {many}");
    assert_eq!(found(&w, &secret), 0, "nothing is there in the clear");
    for id in &ids {
        w.call(&format!("DELETE /keys/{id}"), &Value::Null).await.is(204);
    }
    assert!(found(&w, &doomed) > many * 9 / 10, "a deleted key can be restored");

    w.advance(30 * DAY + 1);
    w.turn();
    assert_eq!(found(&w, &doomed), 0, "shredded");
    assert_eq!(found(&w, &secret), 0);
    assert!(found(&w, &living) > living.len() * 9 / 10, "and nothing else");
    let root = w.root_key(&ids[0]);
    let version = w.app.store.read("t", |tx| keys::versions(tx, &root)).unwrap()[0].id;
    let material = w.app.store.read("t", |tx| keys::material(tx, &root, version)).unwrap();
    assert_eq!(material, None);

    // A purge by hand leaves as little.
    let purger = w.person("purger", &[(ServiceRole::KeyPurge, Scope::Everywhere)]);
    for id in &kept {
        w.call(&format!("DELETE /keys/{id}"), &Value::Null).await.is(204);
    }
    w.advance(4 * 3600);
    for id in &kept {
        w.by(&purger, &format!("DELETE /keys/{id}/purge"), "").await.is(204);
    }
    w.turn();
    assert_eq!(found(&w, &living), 0, "purged");

    // So does the removal of an instance.
    let mut doomed = HashSet::new();
    for n in 0..20 {
        let id = w.make_root(&w.manager, w.two, &format!("other-{n}")).await;
        let root = RootKey { instance: w.two, key: id.parse().unwrap() };
        let version = w.app.store.read("t", |tx| keys::versions(tx, &root)).unwrap()[0].id;
        let sealed = w.app.store.read("t", |tx| keys::material(tx, &root, version)).unwrap();
        // Without the header, which is the same for all.
        doomed.extend(marks(&sealed.unwrap()[32..]));
        let path = format!("/api/v2/keys/{id}");
        w.ask_in(w.two, &w.manager, "DELETE", &path, Value::Null).await.is(204);
    }
    w.app.store.settle().unwrap();
    assert!(found(&w, &doomed) > 0, "the search finds what is there");
    let editor = w.person_with("editor", &[Grant::Platform(PlatformRole::Editor)]);
    let path = format!("/v2/resource_instances/{}", w.two);
    w.ask(&editor, "DELETE", &path, Value::Null).await.is(204);
    w.turn();
    assert_eq!(found(&w, &doomed), 0, "removed");
}
