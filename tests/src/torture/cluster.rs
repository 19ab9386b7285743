//! kill -9 against a real cluster.

use super::Dice;
use crate::lab::{Lab, Options};
use serde_json::Value;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Secrets that each run starts with: seconds of rewriting.
const SECRETS: usize = 500;

/// How long a kill waits for the rewrite of an operation to begin.
const REWRITE: Duration = Duration::from_secs(120);

/// How long everything may take to come back after the last kill of a phase.
const RECOVERY: Duration = Duration::from_secs(240);

/// Where the work stood, as far as could be told, when a process was killed; and how often.
pub type Kills = BTreeMap<&'static str, usize>;

/// The phase in which every batch of seeds has to have killed something.
pub const IN_THE_REWRITE: &str = "rewriting";

/// One seed: a new cluster, enabled, rotated, suspended and given back under fire.
pub fn one(seed: u64) -> Result<Kills, String> {
    let mut dice = Dice(seed);
    let servers = if dice.below(4) == 0 { 3 } else { 1 };
    let kubernetes = if dice.below(3) == 0 { "1.34" } else { "1.37" };
    let bare = dice.below(5) != 0;
    let lab = Lab::up(&Options { bare, servers, kubernetes, ..Options::default() })?;
    let take_up = if bare { "restart" } else { "reload" };
    eprintln!("    seed {seed}: Kubernetes {kubernetes}, {servers} API servers, by {take_up}");
    let result = under_fire(&lab, &mut dice, take_up);
    if result.is_err() {
        eprintln!("{}", lab.last_words());
    }
    let down = lab.down();
    result.and_then(|kills| down.map(|()| kills))
}

fn under_fire(lab: &Lab, dice: &mut Dice, take_up: &str) -> Result<Kills, String> {
    let mut expected = lab.load(SECRETS)?;
    let key = lab.create_key("torture")?;
    let writer = Writer::start(lab)?;
    let mut kills = Kills::new();
    let fired = (|| {
        lab.enable_by(&key, take_up)?;
        fire(lab, dice, true, &mut kills)?;
        lab.settled(RECOVERY).map_err(|e| format!("enable did not end by itself: {e}"))?;
        lab.rotate(&key, RECOVERY)?;
        fire(lab, dice, true, &mut kills)?;
        lab.settled(RECOVERY).map_err(|e| format!("rotate did not end by itself: {e}"))?;
        if dice.below(2) == 0 {
            lab.disable(&key, RECOVERY)?;
            fire(lab, dice, false, &mut kills)?;
            lab.fenced(RECOVERY)?;
            lab.enable_key(&key, RECOVERY)?;
            fire(lab, dice, false, &mut kills)?;
            lab.settled(RECOVERY).map_err(|e| format!("the cluster did not return: {e}"))?;
        }
        Ok::<(), String>(())
    })();
    let acknowledged = writer.stop();
    fired?;
    if acknowledged.acknowledged.is_empty() {
        return Err("the client that writes all the while has not written anything".to_owned());
    }
    expected.extend(acknowledged.acknowledged);
    let found = lab.secrets()?;
    for (name, value) in &expected {
        match found.get(name) {
            None => return Err(format!("Secret {name} is gone")),
            Some(found) if found == value => {}
            // A write whose answer was lost may have happened.
            Some(found) if acknowledged.unanswered.get(name).is_some_and(|v| v.contains(found)) => {
            }
            Some(found) => {
                return Err(format!(
                    "Secret {name} has the value {found:?}; acknowledged last was {value:?}, \
                     without an answer since: {:?}",
                    acknowledged.unanswered.get(name).unwrap_or(&Vec::new())
                ));
            }
        }
    }
    lab.census_is_good()?;
    Ok(kills)
}

/// Three to six kills, 0.1 to 3 s apart. With `rewrite` the last, and any other by the dice, is
/// kept until Secrets are being rewritten.
fn fire(lab: &Lab, dice: &mut Dice, rewrite: bool, kills: &mut Kills) -> Result<(), String> {
    let shots = 3 + dice.below(4);
    for shot in 0..shots {
        let (pause, short) = (100 + dice.below(2900), dice.below(1000));
        if rewrite && (shot + 1 == shots || dice.below(4) == 0) && until_rewrite(lab) {
            std::thread::sleep(Duration::from_millis(short));
        } else {
            std::thread::sleep(Duration::from_millis(pause));
        }
        let victims = lab.victims()?;
        let Some((what, pid)) = dice.pick(&victims) else { continue };
        let phase = phase(lab);
        // One that died meanwhile counts not: `D/env` is some seconds late.
        if lab.kill(*pid) {
            eprintln!("    kill -9 {what} ({pid}), {phase}");
            *kills.entry(phase).or_default() += 1;
        }
    }
    Ok(())
}

/// Waits until Secrets are being rewritten; false when that is over, or does not begin.
fn until_rewrite(lab: &Lab) -> bool {
    let deadline = Instant::now() + REWRITE;
    while Instant::now() < deadline {
        match phase(lab) {
            IN_THE_REWRITE => return true,
            "at rest" | "verified" => return false,
            _ => std::thread::sleep(Duration::from_millis(50)),
        }
    }
    false
}

/// Where the cluster's operation stands.
fn phase(lab: &Lab) -> &'static str {
    let Ok(status) = lab.status() else { return "the key server away" };
    let operation = status.pointer("/state/cluster/operation").unwrap_or(&Value::Null);
    let is = |field: &str| operation.get(field).is_some_and(|v| !v.is_null() && *v != false);
    if operation.is_null() {
        "at rest"
    } else if is("verified") {
        "verified"
    } else if is("rewrite") {
        IN_THE_REWRITE
    } else if is("promoted") {
        "promoted"
    } else if is("serial") {
        "staged"
    } else {
        "beginning"
    }
}

/// A client that goes on writing and remembers what was acknowledged.
struct Writer {
    stop: Arc<AtomicBool>,
    thread: std::thread::JoinHandle<Written>,
}

#[derive(Default)]
struct Written {
    acknowledged: BTreeMap<String, String>,
    /// What was tried since then. Any of it may have happened.
    unanswered: BTreeMap<String, Vec<String>>,
}

impl Writer {
    fn start(lab: &Lab) -> Result<Self, String> {
        let stop = Arc::new(AtomicBool::new(false));
        let (kubectl, env) = (lab.kubectl_path()?, lab.env()?);
        let asked = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            let mut written = Written::default();
            let mut n = 0u64;
            while !asked.load(Ordering::Relaxed) {
                n += 1;
                let (name, value) = (format!("writer-{}", n % 20), format!("value-{n}"));
                let full = format!("default/{name}");
                if crate::lab::write_secret(&kubectl, &env, &name, &value) {
                    written.unanswered.remove(&full);
                    written.acknowledged.insert(full, value);
                } else {
                    written.unanswered.entry(full).or_default().push(value);
                }
                std::thread::sleep(Duration::from_millis(100));
            }
            written
        });
        Ok(Self { stop, thread })
    }

    fn stop(self) -> Written {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().unwrap_or_default()
    }
}
