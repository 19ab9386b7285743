//! Words that have no place in the project, and files that have grown too long.

use crate::sh::{files, root, say};
use std::fs;

/// Longer source files get a warning, not an error: the remedy needs thought.
const LINES_MAX: usize = 600;

/// Files larger than this are data, not text that somebody wrote.
const BYTES_MAX: u64 = 1 << 20;

/// Paths of one machine, and the workplace's own vocabulary. Cut in two, so that this file
/// passes its own check.
const FORBIDDEN: &[(&str, &str)] = &[
    (concat!("/wo", "rk/"), "a path of one machine"),
    (concat!("/tmp/", "brief"), "a path of one machine"),
    (concat!("/tmp/", "prep"), "a path of one machine"),
    (concat!("/ro", "ot/"), "a path of one machine"),
    (concat!("/home/", "runner"), "a path of one machine"),
    (concat!("this sess", "ion"), "whoever reads it later was not there"),
    (concat!("other sess", "ion"), "whoever reads it later was not there"),
    (concat!("previous sess", "ion"), "whoever reads it later was not there"),
    (concat!("TO", "DO"), "an open end; finish it or write it into the README's table"),
    (concat!("FIX", "ME"), "an open end; finish it or write it into the README's table"),
];

/// Complaints, one line each.
pub fn check() -> Result<Vec<String>, String> {
    let mut complaints = Vec::new();
    for path in files()? {
        let full = root().join(&path);
        let shown = path.display().to_string();
        let size = fs::metadata(&full).map(|m| m.len()).unwrap_or(0);
        if size > BYTES_MAX
            || shown == "LICENSE"
            || shown == "Cargo.lock"
            || shown.ends_with("go.sum")
        {
            continue;
        }
        // What is not text carries no words.
        let Ok(text) = fs::read_to_string(&full) else { continue };
        complaints.extend(look(&shown, &text));
        let lines = text.lines().count();
        if lines > LINES_MAX && shown.ends_with(".rs") {
            say(&format!("warning: {shown} has {lines} lines, more than {LINES_MAX}; split it"));
        }
    }
    Ok(complaints)
}

fn look(path: &str, text: &str) -> Vec<String> {
    let mut complaints = Vec::new();
    for (index, line) in text.lines().enumerate() {
        for (word, why) in FORBIDDEN {
            if line.contains(word) {
                complaints.push(format!("{path}:{}: {word:?}: {why}", index + 1));
            }
        }
    }
    complaints
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_forbidden_word_is_named_with_its_line() {
        let text = format!("fine\nsee {}\n", concat!("/wo", "rk/main"));
        let complaints = look("a.md", &text);
        assert_eq!(complaints.len(), 1);
        assert!(complaints[0].starts_with("a.md:2: "), "{complaints:?}");
    }
}
