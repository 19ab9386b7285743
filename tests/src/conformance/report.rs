//! What came of each call and test: read from what the suites wrote, told, rendered into
//! conformance/README.md and held against what that file said before.

use super::root;
use super::suites::{ALL, Suite};
use crate::Outcome;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

/// What came of one call or test.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    /// The call, with what is special in parentheses; or the test.
    pub name: String,
    /// What came of it.
    pub outcome: Came,
    /// Why, where that is not plain.
    pub note: String,
}

/// What can come of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Came {
    /// It answers as it should.
    Works,
    /// It does not.
    Fails,
    /// The client's own suite leaves it out.
    LeftOut,
}

/// What came of a suite.
#[derive(Debug, Clone)]
pub struct Ran {
    /// Which.
    pub suite: &'static Suite,
    /// Its calls or tests, in their order.
    pub rows: Vec<Row>,
    /// How long it took.
    pub seconds: u64,
}

/// The row of what a suite as a whole did wrong.
const WHOLE: &str = "the suite as a whole";

impl Ran {
    /// What a suite came to whose program `ended` somehow.
    pub fn new(suite: &'static Suite, mut rows: Vec<Row>, ended: Outcome<()>) -> Self {
        let failed = rows.iter().any(|row| row.outcome == Came::Fails);
        if let Err(why) = &ended {
            eprintln!("    {}: {why}", suite.id);
        }
        // A suite with a failed test ends as failed; that is no news.
        if rows.is_empty() || (ended.is_err() && !failed) {
            let why = ended.err().unwrap_or_else(|| "it ran no test".to_owned());
            // What follows is a path of this machine.
            let first = why.split("; the end of ").next().unwrap_or_default();
            rows.push(Row { name: WHOLE.to_owned(), outcome: Came::Fails, note: steady(first) });
        }
        Self { suite, rows, seconds: 0 }
    }

    /// A suite that could not be run.
    pub fn broken(suite: &'static Suite, why: String) -> Self {
        Self::new(suite, Vec::new(), Err(why))
    }

    fn count(&self, came: Came) -> usize {
        self.rows.iter().filter(|row| row.outcome == came).count()
    }
}

/// Rows of the lines that our drivers and pytest's plugin write.
pub fn of_lines(path: &Path) -> Outcome<Vec<Row>> {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    text.lines().map(|line| row(&parse(line)?)).collect()
}

fn parse(line: &str) -> Outcome<Value> {
    serde_json::from_str(line).map_err(|e| format!("a line of a report is no JSON: {e}: {line}"))
}

fn row(value: &Value) -> Outcome<Row> {
    let text = |name: &str| value[name].as_str().unwrap_or_default().to_owned();
    let outcome = match value["outcome"].as_str() {
        Some("works") => Came::Works,
        Some("fails") => Came::Fails,
        Some("left out") => Came::LeftOut,
        _ => return Err(format!("a line of a report has no outcome: {value}")),
    };
    Ok(Row { name: text("name"), outcome, note: steady(&text("note")) })
}

/// Rows of what `go test -json` wrote.
pub fn of_go(log: &Path) -> Vec<Row> {
    let text = std::fs::read_to_string(log).unwrap_or_default();
    let mut said: BTreeMap<String, String> = BTreeMap::new();
    let mut rows = Vec::new();
    for line in text.lines() {
        let Ok(event) = serde_json::from_str::<Value>(line) else { continue };
        let Some(test) = event["Test"].as_str() else { continue };
        let outcome = match event["Action"].as_str() {
            Some("output") => {
                let more = event["Output"].as_str().unwrap_or_default();
                said.entry(test.to_owned()).or_default().push_str(more);
                continue;
            }
            Some("pass") => Came::Works,
            Some("fail") => Came::Fails,
            Some("skip") => Came::LeftOut,
            _ => continue,
        };
        let said = said.remove(test).unwrap_or_default();
        let note = if outcome == Came::Fails { reason(&said) } else { String::new() };
        rows.push(Row { name: test.to_owned(), outcome, note });
    }
    rows
}

/// The first complaint in what a Go test said.
fn reason(said: &str) -> String {
    let mut lines = said.lines().map(str::trim);
    let first = lines.find(|line| line.starts_with("Error:") || line.contains("panic:"));
    let first = first.unwrap_or("see its log");
    let more = lines.next().unwrap_or_default();
    steady(&format!("{first} {more}"))
}

/// The note without what differs from run to run: identifiers, addresses, runs of blanks.
fn steady(note: &str) -> String {
    let mut steady = String::new();
    let mut rest = note;
    while let Some(c) = rest.chars().next() {
        if let Some(candidate) = rest.get(..36)
            && uuid(candidate)
        {
            steady.push('…');
            rest = &rest[36..];
            continue;
        }
        steady.push(c);
        rest = &rest[c.len_utf8()..];
    }
    let steady: Vec<&str> = steady
        .split_whitespace()
        .map(|word| if word.starts_with("0x") { "…" } else { word })
        .collect();
    steady.join(" ").chars().take(200).collect()
}

fn uuid(text: &str) -> bool {
    text.bytes().enumerate().all(|(at, byte)| match at {
        8 | 13 | 18 | 23 => byte == b'-',
        _ => byte.is_ascii_hexdigit(),
    })
}

/// Writes results for the process outside of a namespace.
pub fn write_all(path: &Path, results: &[Ran]) -> Outcome<()> {
    let mut text = String::new();
    for ran in results {
        for row in &ran.rows {
            let line = json!({
                "suite": ran.suite.id, "name": row.name, "outcome": word(row.outcome),
                "note": row.note, "seconds": ran.seconds,
            });
            let _ = writeln!(text, "{line}");
        }
    }
    std::fs::write(path, text).map_err(|e| format!("cannot write {}: {e}", path.display()))
}

/// Reads them.
pub fn read_all(path: &Path, chosen: &[&'static Suite]) -> Outcome<Vec<Ran>> {
    let text = std::fs::read_to_string(path)
        .map_err(|e| format!("cannot read {}: {e}", path.display()))?;
    let mut results: Vec<Ran> =
        chosen.iter().map(|suite| Ran { suite, rows: Vec::new(), seconds: 0 }).collect();
    for line in text.lines() {
        let value = parse(line)?;
        let ran = results.iter_mut().find(|ran| value["suite"] == ran.suite.id);
        let ran = ran.ok_or_else(|| format!("a result of no suite: {line}"))?;
        ran.rows.push(row(&value)?);
        ran.seconds = value["seconds"].as_u64().unwrap_or_default();
    }
    Ok(results)
}

fn word(came: Came) -> &'static str {
    match came {
        Came::Works => "works",
        Came::Fails => "fails",
        Came::LeftOut => "left out",
    }
}

/// In the order of the table.
pub fn in_order(mut results: Vec<Ran>) -> Vec<Ran> {
    results.sort_by_key(|ran| ALL.iter().position(|suite| suite.id == ran.suite.id));
    results
}

/// Tells the person who started the run.
pub fn tell(results: &[Ran]) {
    for ran in results {
        for row in ran.rows.iter().filter(|row| row.outcome == Came::Fails) {
            println!("{}: {} fails: {}", ran.suite.id, row.name, row.note);
        }
    }
    for ran in results {
        println!(
            "{:<20} {:>3} work, {:>2} fail, {:>2} left out by the suite, {:>3} s",
            ran.suite.id,
            ran.count(Came::Works),
            ran.count(Came::Fails),
            ran.count(Came::LeftOut),
            ran.seconds
        );
    }
    // The form in which every task of the project counts.
    let all = |came| results.iter().map(|ran| ran.count(came)).sum::<usize>();
    println!("conformance: {} passed; {} failed", all(Came::Works), all(Came::Fails));
}

/// Begins and ends the generated part of the README.
const MARKS: [&str; 2] = ["<!-- results -->", "<!-- end of results -->"];

fn readme() -> PathBuf {
    root().join("conformance/README.md")
}

/// Holds the results against the committed table, and renews it unless only `check` is asked.
/// `whole` when every suite ran.
pub fn settle(results: &[Ran], check: bool, whole: bool) -> Outcome<()> {
    let path = readme();
    let text = std::fs::read_to_string(&path)
        .map_err(|e| format!("cannot read {}: {e}", path.display()))?;
    let marks = MARKS.map(|mark| text.find(mark));
    let [Some(begin), Some(end)] = marks else {
        return Err(format!("{} lacks the lines {}", path.display(), MARKS.join(" and ")));
    };
    let before = committed(&text[begin..end]);
    let worse = worse(&before, results, whole);
    if !check {
        let rendered =
            format!("{}{}\n\n{}{}", &text[..begin], MARKS[0], render(results), &text[end..]);
        if rendered != text {
            std::fs::write(&path, rendered)
                .map_err(|e| format!("cannot write {}: {e}", path.display()))?;
            eprintln!("    the table in {} has changed; commit it", path.display());
        }
    }
    if worse.is_empty() {
        return Ok(());
    }
    Err(format!("worked before and does not now:\n  {}", worse.join("\n  ")))
}

/// Suite and name of everything that works according to the table.
fn committed(table: &str) -> Vec<(String, String)> {
    let mut title = String::new();
    let mut works = Vec::new();
    for line in table.lines() {
        if let Some(heading) = line.strip_prefix("### ") {
            title = heading.to_owned();
        }
        let cells: Vec<&str> = line.split(" | ").collect();
        if let [name, result] = cells[..]
            && let Some(name) = name.strip_prefix("| ")
            && result.starts_with("works")
        {
            works.push((title.clone(), name.to_owned()));
        }
    }
    works
}

/// What worked and does not now. Suites that did not run are looked at only if all should have.
fn worse(before: &[(String, String)], results: &[Ran], whole: bool) -> Vec<String> {
    before
        .iter()
        .filter(|(title, name)| match results.iter().find(|ran| ran.suite.title == title) {
            None => whole,
            // A test that works and whose clean-up fails has two rows.
            Some(ran) => {
                let mut rows = ran.rows.iter().filter(|row| cell(&row.name) == *name).peekable();
                rows.peek().is_none() || !rows.all(|row| row.outcome == Came::Works)
            }
        })
        .map(|(title, name)| format!("{title}: {name}"))
        .collect()
}

fn render(results: &[Ran]) -> String {
    let mut text =
        "| suite | works | fails | left out by the suite |\n|---|---|---|---|\n".to_owned();
    for ran in results {
        let _ = writeln!(
            text,
            "| {} | {} | {} | {} |",
            ran.suite.title,
            ran.count(Came::Works),
            ran.count(Came::Fails),
            ran.count(Came::LeftOut)
        );
    }
    for ran in results {
        let _ = writeln!(text, "\n### {}\n\n| call | result |\n|---|---|", ran.suite.title);
        for row in &ran.rows {
            let result = match (row.outcome, row.note.as_str()) {
                (Came::Works, "") => "works".to_owned(),
                (Came::Works, note) => format!("works: {note}"),
                (Came::Fails, note) => format!("**fails**: {note}"),
                (Came::LeftOut, note) => format!("left out by the suite: {note}"),
            };
            let _ = writeln!(text, "| {} | {} |", cell(&row.name), cell(&result));
        }
    }
    text.push('\n');
    text
}

/// Text as a cell of a table holds it.
fn cell(text: &str) -> String {
    text.replace('|', "¦").replace('<', "‹")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)] // A panic is the report of a test.
    use super::*;

    fn ran(rows: &[(&str, Came)]) -> Ran {
        let rows = rows
            .iter()
            .map(|(name, outcome)| Row {
                name: (*name).to_owned(),
                outcome: *outcome,
                note: "a | b".to_owned(),
            })
            .collect();
        Ran { suite: &ALL[0], rows, seconds: 1 }
    }

    #[test]
    fn what_worked_and_does_not_now_is_worse() {
        let table =
            render(&[ran(&[("a", Came::Works), ("b | c", Came::Works), ("d", Came::Fails)])]);
        let before = committed(&table);
        assert_eq!(before.len(), 2, "{table}");
        let same = ran(&[("a", Came::Works), ("b | c", Came::Works), ("d", Came::Works)]);
        assert!(worse(&before, &[same], true).is_empty());
        let fails = ran(&[("a", Came::Works), ("b | c", Came::Fails)]);
        assert_eq!(worse(&before, &[fails], true).len(), 1);
        assert_eq!(worse(&before, &[ran(&[("a", Came::Works)])], true).len(), 1);
        assert_eq!(worse(&before, &[], true).len(), 2);
        assert!(worse(&before, &[], false).is_empty());
    }

    #[test]
    fn notes_carry_no_identifiers() {
        let note = "key  0f8fad5b-d9cb-469f-a165-70867728950e\nis – gone";
        assert_eq!(steady(note), "key … is – gone");
    }

    #[test]
    fn a_suite_that_runs_nothing_fails() {
        let ran = Ran::new(&ALL[0], Vec::new(), Ok(()));
        assert_eq!(ran.rows[0].outcome, Came::Fails);
        assert_eq!(ran.rows[0].note, "it ran no test");
    }

    #[test]
    fn results_survive_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("results");
        let results = [ran(&[("a", Came::Works), ("b", Came::LeftOut)])];
        write_all(&file, &results).unwrap();
        let read = read_all(&file, &[&ALL[0]]).unwrap();
        assert_eq!(read[0].rows, results[0].rows);
    }
}
