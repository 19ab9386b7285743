//! Forms to the token endpoint. Only whoever sends a whole API key is given a token.
#![no_main]

use claviger_fuzz::world::World;
use libfuzzer_sys::fuzz_target;
use serde_json::Value;
use std::sync::{LazyLock, Mutex};

static WORLD: LazyLock<Mutex<World>> = LazyLock::new(Default::default);

fuzz_target!(|form: &[u8]| {
    let mut world = WORLD.lock().expect("no panic is survived");
    let answer = world.identify(form);
    let body: Value = serde_json::from_slice(&answer.body).expect("JSON");
    let given = body["access_token"].is_string();
    assert!(answer.status < 500, "{}: {body}", answer.status);
    assert_eq!(given, answer.status == 200, "{body}");
    let word = form.windows(7).any(|bytes| bytes == b"$apikey" || bytes == b"$newkey");
    assert!(!given || word, "a token for nothing");
});
