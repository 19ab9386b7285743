//! How answers are shown: text for people, JSON for programs, progress while somebody looks.
//!
//! Answers go to standard output; progress, warnings and questions to standard error, so that
//! `--output json` yields one JSON document and nothing else.

use crate::exit;
use claviger_domain::id::UnixMs;
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;
use std::borrow::Cow;
use std::collections::BTreeSet;
use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

/// In which form an answer is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum Format {
    /// Lines and tables for people.
    #[default]
    Text,
    /// One JSON document; fields are only ever added.
    Json,
}

/// Flags that every command of an operator has.
#[derive(Debug, Clone, Copy, clap::Args)]
pub struct Look {
    /// Form of the answer
    #[arg(long, value_enum, default_value = "text", global = true)]
    pub output: Format,
    /// Print the answer only, no banners
    #[arg(short, long, global = true)]
    pub quiet: bool,
}

impl Look {
    /// Says what is being done now.
    pub fn doing(self, what: &str) {
        if self.output == Format::Text && !self.quiet {
            print_text(&format!("{what}…"));
        }
    }

    /// Says that it is done.
    pub fn ok(self) {
        if self.output == Format::Text && !self.quiet {
            print_line("OK");
        }
    }

    /// Shows an answer: `json` as it is, or the lines that `text` makes.
    pub fn answer<T: Serialize>(self, json: &T, text: impl FnOnce() -> Vec<String>) {
        match self.output {
            Format::Json => {
                // Our own wire types hold no map with keys that are not text, and nothing else
                // makes serde_json fail.
                let document = serde_json::to_string_pretty(json).expect("wire types serialise");
                print_line(&clean_json(&document));
            }
            Format::Text => text().iter().for_each(|line| print_text(line)),
        }
    }

    /// Tells something that the caller should know but did not ask for.
    pub fn warn(self, text: &str) {
        eprintln!("warning: {}", clean(text, LINES));
    }
}

/// Whether a terminal would act on `c` rather than show it: control characters (Unicode class Cc,
/// with which escape sequences begin) and those that turn the direction of writing.
fn acts(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// `text` with each character that a terminal would act on as its escape in Rust's form, all but
/// those in `but`. Names, descriptions and messages come from others: shown as they are, they
/// could hide lines, forge them, or drive the reader's terminal.
pub fn clean<'a>(text: &'a str, but: &[char]) -> Cow<'a, str> {
    if !text.chars().any(|c| acts(c) && !but.contains(&c)) {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        if acts(c) && !but.contains(&c) {
            out.extend(c.escape_unicode());
        } else {
            out.push(c);
        }
    }
    Cow::Owned(out)
}

/// The same for a JSON document, by JSON's own escapes: it stays the same document.
pub fn clean_json(document: &str) -> String {
    let mut out = String::with_capacity(document.len());
    for c in document.chars() {
        if acts(c) && c != '\n' {
            // All of them are in the basic plane, so four digits do.
            out.push_str(&format!("\\u{:04x}", u32::from(c)));
        } else {
            out.push(c);
        }
    }
    out
}

/// Characters of a text of several lines that are shown as they are.
pub const LINES: &[char] = &['\n', '\t'];

/// Prints a text for people, [`clean`].
pub fn print_text(text: &str) {
    print_line(&clean(text, LINES));
}

/// Prints a line. A reader that went away (`| head`) ends the program quietly, as SIGPIPE would;
/// an answer that cannot be written, to a full disk, must not pass for one that was given.
pub fn print_line(line: &str) {
    match writeln!(std::io::stdout().lock(), "{line}") {
        Ok(()) => {}
        Err(e) if e.kind() == std::io::ErrorKind::BrokenPipe => std::process::exit(0),
        Err(e) => {
            eprintln!("error: the answer cannot be written: {e}");
            eprintln!(
                "hint: what was asked for was done; look at it where there is room. What is shown once, an API key or a join token, is lost: remove it and make another"
            );
            std::process::exit(i32::from(exit::UNREACHABLE));
        }
    }
}

/// Lines of a table: columns as wide as their widest cell, two blanks between them.
pub fn table(head: &[&str], rows: &[Vec<String>]) -> Vec<String> {
    let rows: Vec<Vec<Cow<'_, str>>> =
        rows.iter().map(|row| row.iter().map(|cell| clean(cell, &[])).collect()).collect();
    let mut widths: Vec<usize> = head.iter().map(|cell| cell.chars().count()).collect();
    for row in &rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let line = |cells: &mut dyn Iterator<Item = &str>| {
        let padded: Vec<String> =
            cells.zip(&widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
        padded.join("  ").trim_end().to_owned()
    };
    let mut lines = vec![line(&mut head.iter().copied())];
    lines.extend(rows.iter().map(|row| line(&mut row.iter().map(|cell| &**cell))));
    lines
}

/// Lines `Name: value`, the values in one column. An empty value is left out.
pub fn pairs(pairs: &[(&str, String)]) -> Vec<String> {
    let width = pairs.iter().map(|(name, _)| name.len()).max().unwrap_or(0) + 1;
    let shown = pairs.iter().filter(|(_, value)| !value.is_empty());
    shown
        .map(|(name, value)| format!("{:<width$} {}", format!("{name}:"), clean(value, &[])))
        .collect()
}

/// `1,234,567`.
pub fn thousands(number: u64) -> String {
    let digits = number.to_string();
    let mut shown = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            shown.push(',');
        }
        shown.push(digit);
    }
    shown
}

/// The time now.
pub fn now() -> UnixMs {
    UnixMs(jiff::Timestamp::now().as_millisecond())
}

/// A moment as text, or a dash.
pub fn when(at: UnixMs) -> String {
    jiff::Timestamp::from_millisecond(at.0)
        .map(|t| t.strftime("%Y-%m-%dT%H:%M:%SZ").to_string())
        .unwrap_or_else(|_| "-".to_owned())
}

/// How long ago, in one word and a unit: `just now`, `12 s ago`, `1 min ago`, `3 h ago`, `2 d ago`.
pub fn age(elapsed: Duration) -> String {
    let seconds = elapsed.as_secs();
    match seconds {
        0 => "just now".to_owned(),
        1..60 => format!("{seconds} s ago"),
        60..3600 => format!("{} min ago", seconds / 60),
        3600..86_400 => format!("{} h ago", seconds / 3600),
        _ => format!("{} d ago", seconds / 86_400),
    }
}

/// How long ago `at` was.
pub fn ago(at: UnixMs, now: UnixMs) -> String {
    age(Duration::from_millis(now.since(at)))
}

/// The age of a text time, as servers write it; empty when it cannot be read.
pub fn ago_of_text(at: &str, now: UnixMs) -> String {
    at.parse::<jiff::Timestamp>().map(|t| ago(UnixMs(t.as_millisecond()), now)).unwrap_or_default()
}

/// Progress of long work: a bar where a person looks, a line now and then elsewhere.
pub struct Progress {
    look: Look,
    bar: Option<ProgressBar>,
    phase: String,
    started: Instant,
    said: Option<Instant>,
    warned: BTreeSet<String>,
}

/// Plain lines come no more often than this: a log is not an animation.
const LINE_EVERY: Duration = Duration::from_secs(5);

impl Progress {
    /// Begins; nothing is shown yet.
    pub fn new(look: Look) -> Self {
        let shown = std::io::stderr().is_terminal() && !look.quiet;
        let bar = shown.then(|| {
            let bar = ProgressBar::new_spinner();
            bar.enable_steady_tick(Duration::from_millis(120));
            bar
        });
        let (started, warned) = (Instant::now(), BTreeSet::new());
        Self { look, bar, phase: String::new(), started, said: None, warned }
    }

    /// What is going on, in a few words; said once when it changes.
    pub fn phase(&mut self, phase: &str) {
        if self.phase == phase {
            return;
        }
        phase.clone_into(&mut self.phase);
        self.said = None;
        match &self.bar {
            Some(bar) => {
                bar.set_style(style("{spinner} {msg}"));
                bar.println(self.line(phase));
                bar.set_message(clean(phase, &[]).into_owned());
            }
            None => self.plain(phase),
        }
    }

    /// What somebody should know; said once.
    pub fn warn(&mut self, warning: &str) {
        if !self.warned.insert(warning.to_owned()) {
            return;
        }
        let line = format!("warning: {}", clean(warning, &[]));
        match &self.bar {
            Some(bar) => bar.println(line),
            None if self.look.quiet => {}
            None => eprintln!("{line}"),
        }
    }

    /// How far it is: with rate and time left.
    pub fn count(&mut self, what: &str, done: u64, total: u64, per_second: u64) {
        let left = total.saturating_sub(done);
        let time = match per_second {
            0 => String::new(),
            rate => format!(", {} s left", left.div_ceil(rate)),
        };
        match &self.bar {
            Some(bar) => {
                bar.set_style(style("{msg} {bar:30} {percent}% "));
                bar.set_length(total);
                bar.set_position(done);
                bar.set_message(format!(
                    "{what} {}/{} ({}/s{time})",
                    thousands(done),
                    thousands(total),
                    thousands(per_second)
                ));
            }
            None => {
                if self.said.is_some_and(|at| at.elapsed() < LINE_EVERY) && left > 0 {
                    return;
                }
                self.said = Some(Instant::now());
                let percent = (done * 100).checked_div(total).unwrap_or(100);
                self.plain(&format!(
                    "{what}: {percent}% ({}/{}), {}/s{time}",
                    thousands(done),
                    thousands(total),
                    thousands(per_second)
                ));
            }
        }
    }

    /// Takes the bar away.
    pub fn end(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
    }

    fn line(&self, text: &str) -> String {
        format!("{:>6.1} s  {}", self.started.elapsed().as_secs_f64(), clean(text, &[]))
    }

    fn plain(&self, text: &str) {
        if !self.look.quiet {
            eprintln!("{}", self.line(text));
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.end();
    }
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_spinner())
}

/// Whether a person sits at both ends.
pub fn attended() -> bool {
    std::io::stdin().is_terminal() && std::io::stderr().is_terminal()
}

/// Asks a yes-or-no question; anything but `y` or `yes` is no.
pub fn confirm(question: &str) -> bool {
    eprint!("{} [y/N] ", clean(question, &[]));
    let mut answer = String::new();
    std::io::stdin().read_line(&mut answer).is_ok()
        && matches!(answer.trim().to_ascii_lowercase().as_str(), "y" | "yes")
}

/// Asks for a word to be typed as a decision; what was typed, without blanks around it.
pub fn typed(question: &str) -> String {
    eprint!("{question} ");
    let mut answer = String::new();
    // What cannot be read is no decision.
    let _ = std::io::stdin().read_line(&mut answer);
    answer.trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up_and_lines_have_no_tail() {
        let rows =
            vec![vec!["a".to_owned(), "xyz".to_owned()], vec!["bcd".to_owned(), String::new()]];
        assert_eq!(table(&["Name", "ID"], &rows), ["Name  ID", "a     xyz", "bcd"]);
    }

    #[test]
    fn what_others_named_does_not_drive_the_terminal() {
        let name = "\u{1b}[2Jred\u{7}\r\nx\u{9b}m\u{202e}ü";
        let shown = "\\u{1b}[2Jred\\u{7}\\u{d}\\u{a}x\\u{9b}m\\u{202e}ü";
        assert_eq!(clean(name, &[]), shown);
        assert_eq!(clean("a\n\tb", LINES), "a\n\tb");
        assert_eq!(table(&["Name"], &[vec![name.to_owned()]])[1], shown);
        assert_eq!(pairs(&[("Name", name.to_owned())]), [format!("Name: {shown}")]);
        let document = serde_json::to_string_pretty(&[name]).unwrap();
        let safe = clean_json(&document);
        assert!(!safe.chars().any(|c| acts(c) && c != '\n'), "{safe:?}");
        assert_eq!(serde_json::from_str::<[String; 1]>(&safe).unwrap(), [name]);
    }

    #[test]
    fn ages_read_as_in_the_cluster_service() {
        for (seconds, text) in [
            (0, "just now"),
            (59, "59 s ago"),
            (60, "1 min ago"),
            (7200, "2 h ago"),
            (200_000, "2 d ago"),
        ] {
            assert_eq!(age(Duration::from_secs(seconds)), text);
        }
        assert_eq!(ago_of_text("1970-01-01T00:00:00Z", UnixMs(61_000)), "1 min ago");
        assert_eq!(ago_of_text("yesterday", UnixMs(0)), "");
    }

    #[test]
    fn numbers_are_grouped() {
        assert_eq!(thousands(7), "7");
        assert_eq!(thousands(1234), "1,234");
        assert_eq!(thousands(1_234_567), "1,234,567");
    }

    #[test]
    fn empty_values_are_left_out() {
        let lines = pairs(&[("A", "1".to_owned()), ("Long", String::new()), ("B", "2".to_owned())]);
        assert_eq!(lines, ["A:    1", "B:    2"]);
    }
}
