//! Whether what clients saw can have happened one operation after the other.
//!
//! Clients act at the same time, so there is more than one order, and more than one state that
//! the server may be in. [`History::explain`] follows all of them: an operation takes effect at
//! one moment between its request and its answer; one without an answer, because the server was
//! killed, wholly if it is on record, and else not at all. Operations that touch nothing in
//! common are not tried in both orders (after G. Lowe, "Testing for linearizability", 2017).

use super::call::{Call, Thing};
use super::state::State;

/// More states than this at one moment mean that a search would not end.
const STATES_MAX: usize = 4096;

/// Characters of an answer that a report shows.
const ANSWER_SHOWN: usize = 800;

/// Calls in the order in which they were sent and answered.
#[derive(Default)]
pub struct History {
    calls: Vec<Call>,
    /// A call, and whether it ended here or began.
    events: Vec<(usize, bool)>,
}

/// A state, and the calls under way that have not taken effect in it.
#[derive(Clone, PartialEq)]
struct Possible {
    state: State,
    open: Vec<usize>,
}

impl History {
    /// Notes that a call is being sent; its number.
    pub fn begin(&mut self, call: Call) -> usize {
        self.calls.push(call);
        let number = self.calls.len() - 1;
        self.events.push((number, false));
        number
    }

    /// Notes its answer.
    pub fn end(&mut self, number: usize, to: i64, answer: super::call::Answer) {
        if let Some(call) = self.calls.get_mut(number) {
            call.to = to;
            call.answer = Some(answer);
            self.events.push((number, true));
        }
    }

    /// The server is dead: whatever has no answer will never have one.
    pub fn dead(&mut self, at: i64) {
        for call in self.calls.iter_mut().filter(|call| call.answer.is_none()) {
            call.to = at;
        }
    }

    /// Every call.
    pub fn calls(&self) -> &[Call] {
        &self.calls
    }

    /// Calls without an answer that are `recorded` as done, and after which nothing can have changed
    /// the same thing: asked for again, they must be answered and not done.
    pub fn repeatable(&self, recorded: impl Fn(&Call) -> bool) -> Vec<&Call> {
        let done = |call: &Call| match &call.answer {
            Some(answer) => answer.status < 300,
            None => recorded(call),
        };
        let alone = |call: &&Call| {
            let touched = call.op.touches();
            let mut others = self.calls.iter().filter(|other| other.id != call.id);
            !others.any(|other| {
                done(other) && !other.op.only_reads() && meet(&touched, &other.op.touches())
            })
        };
        let lost = |call: &&Call| call.answer.is_none() && call.op.is_done_once() && recorded(call);
        self.calls.iter().filter(lost).filter(alone).collect()
    }

    /// The states in which the server may be afterwards, if it was in one of `before`.
    /// `recorded` says whether a call without an answer is on record as done.
    ///
    /// # Errors
    /// When there is none: an acknowledged change is not there, or something that nobody did is.
    pub fn explain(
        &self,
        before: &[State],
        recorded: impl Fn(&Call) -> bool,
    ) -> Result<Vec<State>, String> {
        let happened = |call: &Call| call.answer.is_some() || recorded(call);
        let mut possible: Vec<Possible> =
            before.iter().map(|s| Possible { state: s.clone(), open: Vec::new() }).collect();
        for (at, (number, ended)) in self.events.iter().enumerate() {
            if !happened(&self.calls[*number]) {
                continue;
            }
            if !*ended {
                possible.iter_mut().for_each(|p| p.open.push(*number));
                continue;
            }
            possible = self.settle(possible, *number).map_err(|why| self.report(at, &why))?;
        }
        for number in 0..self.calls.len() {
            let call = &self.calls[number];
            if call.answer.is_none() && recorded(call) && !call.op.only_reads() {
                let at = self.events.len().saturating_sub(1);
                possible = self
                    .settle(possible, number)
                    .map_err(|why| format!("on record, without an answer: {:?}: {why}", call.op))
                    .map_err(|why| self.report(at, &why))?;
            }
        }
        let mut states: Vec<State> = Vec::new();
        for p in possible {
            if !states.contains(&p.state) {
                states.push(p.state);
            }
        }
        Ok(states)
    }

    /// Lets a call take effect where it has not, others before it where that matters.
    fn settle(&self, possible: Vec<Possible>, number: usize) -> Result<Vec<Possible>, String> {
        let mut settled: Vec<Possible> = Vec::new();
        let mut why = String::new();
        let mut work = possible;
        while let Some(p) = work.pop() {
            if settled.len() + work.len() > STATES_MAX {
                return Err(format!("more than {STATES_MAX} states are possible"));
            }
            if !p.open.contains(&number) {
                if !settled.contains(&p) {
                    settled.push(p);
                }
                continue;
            }
            for next in self.close_to(&p.open, number) {
                match p.state.after(&self.calls[next]) {
                    Ok(states) => {
                        let open: Vec<usize> =
                            p.open.iter().copied().filter(|n| *n != next).collect();
                        for state in states {
                            let p = Possible { state, open: open.clone() };
                            if !work.contains(&p) {
                                work.push(p);
                            }
                        }
                    }
                    Err(said) if next == number => why = said,
                    Err(_) => {}
                }
            }
        }
        if settled.is_empty() { Err(why) } else { Ok(settled) }
    }

    /// Of the calls under way, the one and those with which it has something in common, over
    /// others too.
    fn close_to(&self, open: &[usize], number: usize) -> Vec<usize> {
        let mut close = vec![number];
        let mut at = 0;
        while let Some(one) = close.get(at).copied() {
            let touched = self.calls[one].op.touches();
            for other in open {
                if !close.contains(other) && meet(&touched, &self.calls[*other].op.touches()) {
                    close.push(*other);
                }
            }
            at += 1;
        }
        close
    }

    /// What cannot be explained, with the calls before it that touch the same things.
    fn report(&self, at: usize, why: &str) -> String {
        let Some((number, _)) = self.events.get(at) else { return why.to_owned() };
        let call = &self.calls[*number];
        let touched = call.op.touches();
        let answer: String = format!("{:?}", call.answer).chars().take(ANSWER_SHOWN).collect();
        let mut lines = vec![format!("{}: {:?}\n  {why}\n  answer: {answer}", call.id, call.op)];
        let before = self.events[..at].iter().rev().filter(|(n, ended)| {
            let other = &self.calls[*n];
            (*ended || other.answer.is_none()) && meet(&touched, &other.op.touches())
        });
        lines.extend(before.take(25).map(|(n, _)| {
            let call = &self.calls[*n];
            let answer = call.answer.as_ref().map(|a| (a.status, a.code.as_str()));
            format!(
                "    before: {} {}..{} {:?} -> {answer:?}",
                call.id, call.from, call.to, call.op
            )
        }));
        lines.join("\n")
    }
}

fn meet(a: &[(Thing, bool)], b: &[(Thing, bool)]) -> bool {
    a.iter().any(|(x, x_writes)| {
        b.iter().any(|(y, y_writes)| {
            (*x_writes || *y_writes) && (x == y || *x == Thing::All || *y == Thing::All)
        })
    })
}

#[cfg(test)]
mod tests {
    use super::super::call::{Actor, Answer, Material, Op, Target};
    use super::*;
    use serde_json::{Value, json};

    fn call(op: Op) -> Call {
        Call { actor: Actor::First, op, id: "c".to_owned(), from: 0, to: 0, answer: None }
    }

    fn answer(status: u16, code: &str) -> Answer {
        Answer { status, code: code.to_owned(), body: Value::Null }
    }

    fn create() -> Op {
        let (ring, aliases) = (None, vec![1]);
        Op::Create { key: 1, root: true, material: Material::Made, ring, aliases, expires: None }
    }

    fn target() -> Target {
        Target::Key(1, "id".to_owned())
    }

    fn listed(names: &[&str]) -> Answer {
        let keys: Vec<Value> = names.iter().map(|name| json!({ "name": name })).collect();
        Answer { status: 200, code: String::new(), body: json!({ "resources": keys }) }
    }

    fn states(history: &History, recorded: bool) -> Result<Vec<State>, String> {
        history.explain(&[State::default()], |_| recorded)
    }

    #[test]
    fn what_has_no_answer_happened_if_it_is_on_record_and_else_not() {
        let mut history = History::default();
        history.begin(call(create()));
        history.dead(5);
        assert_eq!(states(&history, true).unwrap()[0].keys.len(), 1);
        assert_eq!(states(&history, false).unwrap(), [State::default()]);
    }

    #[test]
    fn what_may_be_asked_for_again_is_what_nobody_changed_since() {
        let repeatable = |ops: [(Op, Option<u16>); 2], recorded: bool| {
            let mut history = History::default();
            for (number, (op, status)) in ops.into_iter().enumerate() {
                let call = Call { id: number.to_string(), ..call(op) };
                let begun = history.begin(call);
                if let Some(status) = status {
                    history.end(begun, 1, answer(status, ""));
                }
            }
            history.repeatable(|_| recorded).len()
        };
        let rotate = || (Op::Rotate { target: target(), payload: None }, None);
        assert_eq!(repeatable([rotate(), (Op::MakeRing(1), Some(201))], true), 1);
        assert_eq!(repeatable([rotate(), (Op::MakeRing(1), Some(201))], false), 0);
        assert_eq!(repeatable([rotate(), (Op::Disable(target()), Some(204))], true), 0);
        assert_eq!(repeatable([rotate(), (Op::Disable(target()), Some(409))], true), 1);
        assert_eq!(repeatable([(Op::MakeToken, None), (Op::List, None)], true), 0);
    }

    #[test]
    fn an_acknowledged_change_must_be_there_afterwards() {
        let mut history = History::default();
        let made = history.begin(call(Op::MakeRing(1)));
        history.end(made, 1, answer(201, ""));
        let rings = |names: &[&str]| {
            let rings: Vec<Value> = names.iter().map(|name| json!({ "id": name })).collect();
            Answer { status: 200, code: String::new(), body: json!({ "resources": rings }) }
        };
        let seen = history.begin(call(Op::Rings));
        history.end(seen, 2, rings(&["default"]));
        assert!(states(&history, false).unwrap_err().contains("ring-1"));
        history.calls[seen].answer = Some(rings(&["default", "ring-1"]));
        assert!(states(&history, false).is_ok());
    }

    #[test]
    fn operations_at_the_same_time_are_tried_in_every_order_that_matters() {
        let mut history = History::default();
        let list = history.begin(call(Op::List));
        let made = history.begin(call(Op::MakeRing(1)));
        let deleted = history.begin(call(Op::DeleteRing { ring: 1, force: false }));
        history.end(deleted, 1, answer(204, ""));
        history.end(made, 2, answer(201, ""));
        history.end(list, 3, listed(&[]));
        assert_eq!(states(&history, false).unwrap(), [State::default()]);
        // One after the other there is one order only.
        let mut history = History::default();
        let deleted = history.begin(call(Op::DeleteRing { ring: 1, force: false }));
        history.end(deleted, 1, answer(204, ""));
        let made = history.begin(call(Op::MakeRing(1)));
        history.end(made, 2, answer(201, ""));
        assert!(states(&history, false).is_err());
    }

    #[test]
    fn a_refusal_must_be_the_one_of_the_table() {
        let mut before = History::default();
        before.begin(call(create()));
        let before = states(&before, true).unwrap();
        for (op, status, code, fits) in [
            (Op::Enable(target()), 409, "KEY_ACTION_INVALID_STATE_ERR", true),
            (Op::Enable(target()), 204, "", false),
            (Op::Disable(target()), 204, "", true),
            (Op::Restore(target()), 409, "KEY_ACTION_INVALID_STATE_ERR", true),
            (Op::AddAlias(target(), 1), 409, "KEY_ALIAS_NOT_UNIQUE_ERR", true),
            (Op::AddAlias(target(), 2), 409, "KEY_ALIAS_NOT_UNIQUE_ERR", false),
            (Op::Look(Target::Alias(2)), 404, "KEY_NOT_FOUND_ERR", true),
        ] {
            let mut history = History::default();
            let number = history.begin(call(op.clone()));
            history.end(number, 1, answer(status, code));
            let explained = history.explain(&before, |_| false);
            assert_eq!(explained.is_ok(), fits, "{op:?} {status}");
        }
    }
}
