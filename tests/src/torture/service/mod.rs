//! kill -9 against a real key server, compared with a model.
//!
//! Several clients do at random what the API offers; at random moments the server is killed,
//! also while it starts. After each start everything that can be read is read, every ciphertext
//! that was ever answered is unwrapped, and the audit records and key events of all calls are
//! looked for. A model of the key service ([`state`]) must explain all of it ([`history`]).

mod call;
mod choose;
mod history;
mod records;
mod server;
mod state;

use super::Dice;
use crate::Outcome;
use call::{Actor, Call, Op};
use choose::Ground;
use claviger_audit::Durability;
use claviger_domain::key::KeyState;
use history::History;
use records::{Audit, Records};
use server::{Api, Server};
use state::{Age, State};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

/// Clients at the same time.
const CLIENTS: u64 = 4;
/// Calls of one client between two kills, at most.
const CALLS: usize = 60;
/// What may be lost of a log that is written and not yet flushed: 20 ms, and what a busy machine
/// may need more until a thread runs.
const WINDOW_MS: i64 = 20 + 500;
/// Kills among operations.
const KILLS: u64 = 5;

/// Milliseconds since the Unix epoch.
fn now() -> i64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

fn held<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// How a server ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// By kill -9: what it wrote is there.
    Kill,
    /// By a power cut: what is not durable is not.
    Power(Durability),
}

/// One seed: a new server with five kills among operations, and more among starts. What was done.
pub fn one(fault: Fault, seed: u64) -> Outcome<String> {
    let dir = std::env::temp_dir().join(format!("claviger-model-{}-{seed}", std::process::id()));
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .map_err(|e| format!("no runtime: {e}"))?;
    let done = runtime.block_on(Run::whole(&dir, fault, seed));
    match done {
        Ok(note) => {
            let _ = std::fs::remove_dir_all(&dir);
            Ok(note)
        }
        Err(why) => Err(format!("{why}\nthe server's files: {}", dir.display())),
    }
}

/// What the clock is to do to a key at the next start.
enum Due {
    Shred,
    Remove,
    Rotate,
}

struct Run {
    seed: u64,
    fault: Fault,
    dice: Dice,
    server: Server,
    api: Api,
    ground: Arc<Mutex<Ground>>,
    /// The states in which the server may be.
    states: Vec<State>,
    /// Calls of clients under fire; those without an answer, and how many of these were done.
    calls: usize,
    lost: usize,
    lost_done: usize,
    /// Of these, those that were asked for again.
    repeated: usize,
    /// Calls that had no answer at the last kill, for a report.
    unanswered: Vec<String>,
}

impl Run {
    async fn whole(dir: &Path, fault: Fault, seed: u64) -> Outcome<String> {
        let mut dice = Dice(seed);
        let mut server = Server::new(dir, fault, seed)?;
        let url = start(&mut server, &mut dice)?;
        let bootstrap = server.bootstrap()?;
        let mut api = Api::first(&url, &bootstrap).await?;
        api.let_in().await?;
        let ground = Arc::default();
        let mut run = Run {
            seed,
            fault,
            dice,
            server,
            api,
            ground,
            states: vec![State::default()],
            calls: 0,
            lost: 0,
            lost_done: 0,
            repeated: 0,
            unanswered: Vec::new(),
        };
        run.all().await.map_err(|why| {
            let unanswered = run.unanswered.join("\n    ");
            format!("{why}\n  without an answer at the last kill:\n    {unanswered}")
        })?;
        run.server.kill()?;
        records::verify(&run.server.database())?;
        let (calls, lost, lost_done) = (run.calls, run.lost, run.lost_done);
        let repeated = run.repeated;
        Ok(format!(
            ": {calls} calls under fire, {lost} without an answer, {lost_done} of them done, {repeated} asked for again{}",
            run.server.lost()
        ))
    }

    async fn all(&mut self) -> Outcome<()> {
        // A new key pair takes seconds.
        if self.seed.is_multiple_of(3) {
            self.quietly(vec![Op::MakeToken, Op::TakeToken], 1).await?;
        }
        for kill in 0..KILLS {
            self.under_fire(kill).await?;
            self.look().await?;
            let due = self.let_time_pass()?;
            if !due.is_empty() {
                self.server.kill()?;
                self.start()?;
                self.happened(due)?;
                self.look().await?;
            }
        }
        self.give_back().await
    }

    fn start(&mut self) -> Outcome<()> {
        let url = start(&mut self.server, &mut self.dice)?;
        self.api = self.api.at(&url);
        Ok(())
    }

    /// Clients at work, until the server is killed; then it is started again, and what they saw
    /// is explained.
    async fn under_fire(&mut self, round: u64) -> Outcome<()> {
        let history = Arc::new(Mutex::new(History::default()));
        let killed = Arc::new(AtomicBool::new(false));
        let mut clients = tokio::task::JoinSet::new();
        for client in 0..CLIENTS {
            let mut dice = Dice(self.seed ^ ((round * CLIENTS + client + 1) << 32));
            let (api, ground) = (self.api.clone(), Arc::clone(&self.ground));
            let (history, killed) = (Arc::clone(&history), Arc::clone(&killed));
            clients.spawn(async move {
                for _ in 0..CALLS {
                    if killed.load(Ordering::SeqCst) {
                        break;
                    }
                    let (actor, op) = held(&ground).choose(&mut dice)?;
                    if let Err(why) = ask(&api, &ground, &history, actor, op).await {
                        if killed.load(Ordering::SeqCst) {
                            break;
                        }
                        return Err(format!("while the server lived: {why}"));
                    }
                }
                Ok(())
            });
        }
        tokio::time::sleep(Duration::from_millis(20 + self.dice.below(500))).await;
        killed.store(true, Ordering::SeqCst);
        let killed_at = now();
        self.server.kill()?;
        while let Some(ended) = clients.join_next().await {
            ended.map_err(|e| e.to_string())??;
        }
        let mut history = std::mem::take(&mut *held(&history));
        history.dead(now());
        self.start()?;
        let records = Records::open(&self.server.database())?;
        let audit = records.audit()?;
        let lost: Vec<&Call> =
            history.calls().iter().filter(|call| call.answer.is_none()).collect();
        let done = |call: &Call| records::done(call, &audit);
        self.calls += history.calls().len();
        self.lost += lost.len();
        self.lost_done += lost.iter().filter(|call| done(call)).count();
        let said = |call: &&Call| {
            let done = if done(call) { "done" } else { "not done" };
            format!("{}: {:?}; by its record {done}", call.id, call.op)
        };
        self.unanswered = lost.iter().map(said).collect();
        let may_be_lost = |call: &Call| {
            self.fault == Fault::Power(Durability::Written)
                && is_in_the_log(call)
                && call.to >= killed_at - WINDOW_MS
        };
        records::complete(history.calls(), &audit, may_be_lost)?;
        self.explain(&history, &audit)?;
        let again = history.repeatable(done);
        self.repeat(&again, &records).await
    }

    /// Asks again for what was done and not answered, as it was asked for: it is answered, and on
    /// record as done once. That nothing was done again is seen by the next look.
    async fn repeat(&mut self, calls: &[&Call], records: &Records) -> Outcome<()> {
        for call in calls {
            let answer = self.api.ask(call.actor, &call.op, &call.id).await?;
            if answer.status >= 300 {
                return Err(format!("{}: {:?} again: {answer:?}", call.id, call.op));
            }
            held(&self.ground).learn(&call.op, &answer)?;
        }
        let audit = records.audit()?;
        for call in calls {
            // The change, and that it was asked for again.
            let found = audit.get(&call.id).map(Vec::as_slice).unwrap_or_default();
            if found.len() != 2 || records.rows(&call.id)? != 1 {
                return Err(format!("{}: {:?} again is on record as {found:?}", call.id, call.op));
            }
        }
        self.repeated += calls.len();
        Ok(())
    }

    fn explain(&mut self, history: &History, audit: &Audit) -> Outcome<()> {
        self.states = history.explain(&self.states, |call| records::done(call, audit))?;
        Ok(())
    }

    /// Operations while nothing is killed, some at a time.
    async fn quietly(&mut self, ops: Vec<Op>, at_once: usize) -> Outcome<()> {
        let history = Arc::new(Mutex::new(History::default()));
        let mut clients = tokio::task::JoinSet::new();
        for ops in split(ops, at_once) {
            let (api, ground) = (self.api.clone(), Arc::clone(&self.ground));
            let history = Arc::clone(&history);
            clients.spawn(async move {
                for op in ops {
                    ask(&api, &ground, &history, Actor::First, op).await?;
                }
                Ok::<(), String>(())
            });
        }
        while let Some(ended) = clients.join_next().await {
            ended.map_err(|e| e.to_string())??;
        }
        let history = std::mem::take(&mut *held(&history));
        let audit = Records::open(&self.server.database())?.audit()?;
        records::complete(history.calls(), &audit, |_| false)?;
        self.explain(&history, &audit)
    }

    /// Reads whatever can be read, and unwraps every ciphertext.
    async fn look(&mut self) -> Outcome<()> {
        // Shows keys whose creation was never answered.
        self.quietly(vec![Op::List, Op::Rings, Op::InstancePolicies], 1).await?;
        let ops = {
            let ground = held(&self.ground);
            let mut ops = Vec::new();
            for key in ground.keys.keys() {
                ops.push(Op::Look(ground.target(*key)));
                ops.push(Op::Versions(ground.target(*key)));
                ops.push(Op::Registrations(ground.target(*key)));
            }
            ops.extend(ground.held.iter().map(|held| Op::Unwrap {
                target: ground.target(held.key),
                held: Arc::clone(held),
            }));
            ops
        };
        self.quietly(ops, 6).await?;
        let records = Records::open(&self.server.database())?;
        let mut why = String::new();
        let mut good = Vec::new();
        for state in std::mem::take(&mut self.states) {
            match records.events_of(&state) {
                Ok(()) => good.push(state),
                Err(said) => why = said,
            }
        }
        self.states = good;
        if self.states.is_empty() { Err(why) } else { Ok(()) }
    }

    /// Lets some keys be older than they are; what the clock has to do to them at the next start.
    fn let_time_pass(&mut self) -> Outcome<Vec<(u32, String, Due)>> {
        let mut due = Vec::new();
        // What is written beside the server is in no ledger.
        if matches!(self.fault, Fault::Power(_)) {
            return Ok(due);
        }
        let records = Records::open(&self.server.database())?;
        let Some(first) = self.states.first().cloned() else { return Ok(due) };
        for (number, key) in &first.keys {
            let certain = self.states.iter().all(|s| {
                s.keys.get(number).is_some_and(|k| k.state == key.state && k.age == key.age)
            });
            let Some(id) = key.id.clone().filter(|_| certain) else { continue };
            if key.state == KeyState::Destroyed && key.age == Age::Real {
                match self.dice.below(6) {
                    0..2 => {
                        records.age(&id, Age::Hours)?;
                        self.set_age(*number, Age::Hours);
                    }
                    2 => {
                        records.age(&id, Age::Month)?;
                        self.set_age(*number, Age::Month);
                        due.push((*number, id, Due::Shred));
                    }
                    3 => {
                        records.let_be_removed(&id)?;
                        due.push((*number, id, Due::Remove));
                    }
                    _ => {}
                }
            } else if let Some((true, months)) = key.rotation
                && key.state == KeyState::Active
                && key.expires.is_none()
                && self.dice.once_in(3)
            {
                records.let_be_rotated(&id, months)?;
                due.push((*number, id, Due::Rotate));
            }
        }
        Ok(due)
    }

    fn set_age(&mut self, number: u32, age: Age) {
        for key in self.states.iter_mut().filter_map(|s| s.keys.get_mut(&number)) {
            Arc::make_mut(key).age = age;
        }
    }

    /// Waits until the clock has done what was due, and notes it.
    fn happened(&mut self, due: Vec<(u32, String, Due)>) -> Outcome<()> {
        let records = Records::open(&self.server.database())?;
        for (number, id, due) in due {
            let (what, sql, count) = match due {
                Due::Shred => (
                    "kms.secrets.shred",
                    "SELECT (SELECT count(*) FROM keys WHERE id = ?1 AND payload IS NOT NULL)
                        + count(*) FROM key_versions WHERE key = ?1 AND material IS NOT NULL",
                    0,
                ),
                Due::Remove => ("kms.secrets.purge", "SELECT count(*) FROM keys WHERE id = ?1", 0),
                Due::Rotate => {
                    let known = self.states.iter().filter_map(|s| s.keys.get(&number)).next();
                    let versions = known.map_or(0, |key| key.versions.len());
                    let sql = "SELECT count(*) FROM key_versions WHERE key = ?1";
                    ("kms.secrets.rotate", sql, i64::try_from(versions).unwrap_or(0) + 1)
                }
            };
            records.wait(what, &id, sql, count)?;
            let times = records.by_the_clock(what, &id)?;
            if times == 0 || (times > 1 && !matches!(due, Due::Rotate)) {
                return Err(format!("{what} of key {number} is on record {times} times"));
            }
            for state in &mut self.states {
                match due {
                    Due::Shred => {}
                    Due::Remove => drop(state.keys.remove(&number)),
                    Due::Rotate => {
                        if let Some(key) = state.keys.get_mut(&number) {
                            let key = Arc::make_mut(key);
                            key.versions.push(None);
                            key.events.push("rotate");
                            key.rotated = now();
                        }
                    }
                }
            }
        }
        Ok(())
    }

    /// Enables and restores every key, and then unwraps every ciphertext: material that was
    /// acknowledged is there, whatever state its key was in when the server was killed.
    async fn give_back(&mut self) -> Outcome<()> {
        let ops = {
            let ground = held(&self.ground);
            let targets: Vec<_> = ground.keys.keys().map(|key| ground.target(*key)).collect();
            let restored = targets.iter().cloned().map(Op::Restore);
            restored.chain(targets.iter().cloned().map(Op::Enable)).collect()
        };
        self.quietly(ops, 1).await?;
        self.look().await
    }
}

/// Starts the server, killed on its way up to twice before.
fn start(server: &mut Server, dice: &mut Dice) -> Outcome<String> {
    for _ in 0..dice.below(4).saturating_sub(1) {
        server.start_and_kill(Duration::from_millis(dice.below(250)))?;
    }
    server.start()
}

/// Whether a call is recorded in the audit log's segments: it changed nothing.
fn is_in_the_log(call: &Call) -> bool {
    call.op.only_reads() || call.answer.as_ref().is_some_and(|answer| answer.status >= 300)
}

/// Does one operation, and notes it.
async fn ask(
    api: &Api,
    ground: &Mutex<Ground>,
    history: &Mutex<History>,
    actor: Actor,
    op: Op,
) -> Outcome<()> {
    let id = held(ground).next_id();
    let from = now();
    let call = Call { actor, op: op.clone(), id: id.clone(), from, to: i64::MAX, answer: None };
    let number = held(history).begin(call);
    let answer = api.ask(actor, &op, &id).await?;
    held(history).end(number, now(), answer.clone());
    held(ground).learn(&op, &answer)
}

/// As many lists, of about the same length.
fn split(ops: Vec<Op>, lists: usize) -> Vec<Vec<Op>> {
    let mut all = vec![Vec::new(); lists];
    for (at, op) in ops.into_iter().enumerate() {
        all[at % lists].push(op);
    }
    all
}
