//! Requests to the whole server: paths, queries, headers and bodies of every service, by a
//! manager, a service, a node and nobody. No answer is a fault of the server's, and every answer
//! is in the shape that clients read.
#![no_main]

use claviger_fuzz::world::{Answer, World};
use libfuzzer_sys::{Corpus, fuzz_target};
use serde_json::Value;
use std::sync::{LazyLock, Mutex};

/// Set when one input is replayed: what was asked and answered is shown.
static SHOW: LazyLock<bool> = LazyLock::new(|| std::env::var_os("CLAVIGER_FUZZ_SHOW").is_some());

static WORLD: LazyLock<Mutex<World>> = LazyLock::new(Default::default);

fuzz_target!(|input: &[u8]| -> Corpus {
    let mut world = WORLD.lock().expect("no panic is survived");
    let answers = world.ask(input);
    for (line, answer) in &answers {
        look(line, answer);
    }
    if answers.is_empty() { Corpus::Reject } else { Corpus::Keep }
});

fn look(line: &str, answer: &Answer) {
    let text = String::from_utf8_lossy(&answer.body);
    if *SHOW {
        eprintln!("{line}: {} {text}", answer.status);
    }
    assert!(answer.status < 500 || answer.status == 501, "{line}: {}: {text}", answer.status);
    if line.starts_with("HEAD ") {
        assert!(answer.body.is_empty(), "{line}: a body: {text}");
    } else if answer.media_type.contains("json") {
        let body: Value = serde_json::from_slice(&answer.body).expect("JSON");
        if answer.status >= 400 && line.contains(" /api/v2/") {
            let said = body.pointer("/resources/0/errorMsg").and_then(Value::as_str);
            assert!(said.is_some_and(|said| !said.is_empty()), "{line}: {text}");
        }
    } else if answer.status >= 400 {
        assert!(answer.body.is_empty(), "{line}: {} in no shape: {text}", answer.status);
    }
}
