//! kill -9 against a real cluster.

use super::Dice;
use crate::lab::{Lab, Options};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// Secrets that each run starts with.
const SECRETS: usize = 300;

/// How long everything may take to come back after the last kill of a phase.
const RECOVERY: Duration = Duration::from_secs(240);

/// One seed: a new cluster, enabled, rotated, suspended and given back under fire.
pub fn one(seed: u64) -> Result<(), String> {
    let mut dice = Dice(seed);
    let servers = if dice.below(4) == 0 { 3 } else { 1 };
    let kubernetes = if dice.below(3) == 0 { "1.34" } else { "1.37" };
    let lab = Lab::up(&Options { bare: true, servers, kubernetes, ..Options::default() })?;
    let result = under_fire(&lab, &mut dice);
    if result.is_err() {
        eprintln!("{}", lab.last_words());
    }
    let down = lab.down();
    result.and(down)
}

fn under_fire(lab: &Lab, dice: &mut Dice) -> Result<(), String> {
    let mut expected = lab.load(SECRETS)?;
    let key = lab.create_key("torture")?;
    let writer = Writer::start(lab)?;
    let fired = (|| {
        lab.enable(&key)?;
        fire(lab, dice)?;
        lab.settled(RECOVERY).map_err(|e| format!("enable did not end by itself: {e}"))?;
        lab.rotate(&key, RECOVERY)?;
        fire(lab, dice)?;
        lab.settled(RECOVERY).map_err(|e| format!("rotate did not end by itself: {e}"))?;
        if dice.below(2) == 0 {
            lab.disable(&key, RECOVERY)?;
            fire(lab, dice)?;
            lab.fenced(RECOVERY)?;
            lab.enable_key(&key, RECOVERY)?;
            fire(lab, dice)?;
            lab.settled(RECOVERY).map_err(|e| format!("the cluster did not return: {e}"))?;
        }
        Ok::<(), String>(())
    })();
    let acknowledged = writer.stop();
    fired?;
    expected.extend(acknowledged.acknowledged);
    let found = lab.secrets()?;
    for (name, value) in &expected {
        match found.get(name) {
            None => return Err(format!("Secret {name} is gone")),
            Some(found) if found == value => {}
            // A write whose answer was lost may have happened.
            Some(found) if acknowledged.attempted.get(name) == Some(found) => {}
            Some(_) => return Err(format!("Secret {name} has another value than acknowledged")),
        }
    }
    lab.census_is_good()
}

/// Three to six kills, 0.1 to 3 s apart.
fn fire(lab: &Lab, dice: &mut Dice) -> Result<(), String> {
    for _ in 0..3 + dice.below(4) {
        std::thread::sleep(Duration::from_millis(100 + dice.below(2900)));
        let victims = lab.victims()?;
        if victims.is_empty() {
            continue;
        }
        let pick = usize::try_from(dice.below(victims.len() as u64)).expect("an index");
        let (what, pid) = &victims[pick];
        eprintln!("    kill -9 {what} ({pid})");
        lab.kill(*pid);
    }
    Ok(())
}

/// A client that goes on writing and remembers what was acknowledged.
struct Writer {
    stop: Arc<AtomicBool>,
    thread: std::thread::JoinHandle<Written>,
}

#[derive(Default)]
struct Written {
    acknowledged: BTreeMap<String, String>,
    attempted: BTreeMap<String, String>,
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
                written.attempted.insert(full.clone(), value.clone());
                if crate::lab::write_secret(&kubectl, &env, &name, &value) {
                    written.acknowledged.insert(full, value);
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
