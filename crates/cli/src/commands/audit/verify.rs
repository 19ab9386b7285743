//! `claviger audit verify`

use crate::exit::{self, Done, Failure};
use crate::render::{Look, thousands, when};
use claviger_audit::{Checkpoint, Report, checkpoints_of};
use claviger_crypto::digest::hex;
use claviger_crypto::sign::PublicKey;
use claviger_server::audit::chain::{self, RowFinding, Verified, VerifyError};
use claviger_server::backup;
use serde::Serialize;
use std::io::Read as _;
use std::path::{Path, PathBuf};

/// Largest file of checkpoints: some hundred bytes each, one a minute, for years.
const CHECKPOINTS_MAX: u64 = 1 << 30;

#[derive(clap::Args)]
pub(super) struct Args {
    /// Directory of the server's database
    #[arg(long)]
    data: PathBuf,
    /// A file with checkpoints that left the machine, as a file sink or a syslog daemon wrote it.
    /// Without one, nobody can tell whether the newest records were cut off
    #[arg(long = "checkpoint", value_name = "FILE")]
    checkpoints: Vec<PathBuf>,
    /// A public key that signs checkpoints, 64 hexadecimal digits, as an earlier `verify` printed
    /// it. Without one the key in the database is believed
    #[arg(long = "key", value_name = "HEX", value_parser = key)]
    keys: Vec<PublicKey>,
}

/// For JSON.
#[derive(Serialize)]
struct Shown {
    whole: bool,
    keys: Vec<String>,
    segments: u64,
    removed: u64,
    first_record: u64,
    last_record: u64,
    last_signed_record: Option<u64>,
    checkpoints: u64,
    outside: u64,
    outside_unchecked: u64,
    rows: u64,
    rows_unchained: u64,
    anchors: u64,
    findings: Vec<String>,
    more_findings: u64,
}

pub(super) fn run(args: Args, look: Look) -> Done {
    let database = args.data.join(backup::DATABASE);
    let mut outside = Vec::new();
    for path in &args.checkpoints {
        outside.extend(read(path)?);
    }
    let given = outside.len();
    let found = chain::verify(&database, args.keys, outside).map_err(failed)?;
    let whole = found.segments.is_whole() && found.rows.findings.is_empty();
    let shown = shown(&found, whole);
    look.answer(&shown, || told(&shown, &found.segments, given));
    if whole {
        return Ok(());
    }
    let hint = "keep the data directory as it is: it is evidence; the runbook says how to go on";
    Err(Failure::new(exit::NO, "the audit log is not as it was written", hint))
}

fn shown(found: &Verified, whole: bool) -> Shown {
    let Verified { keys, segments: report, rows } = found;
    let mut findings: Vec<String> = report
        .findings
        .iter()
        .map(|f| {
            format!("segment {} byte {} record {}: {}", f.sequence, f.offset, f.record, f.what)
        })
        .collect();
    let row = |(id, what): &(i64, RowFinding)| format!("row {id}: {what}");
    findings.extend(rows.findings.iter().map(row));
    Shown {
        whole,
        keys: keys.iter().map(|key| hex(&key.0)).collect(),
        segments: report.segments,
        removed: report.removed,
        first_record: report.from,
        last_record: report.to,
        last_signed_record: report.signed.map(|(record, _)| record),
        checkpoints: report.checkpoints,
        outside: report.outside,
        outside_unchecked: report.outside_unchecked,
        rows: rows.chained,
        rows_unchained: rows.older,
        anchors: rows.anchors,
        findings,
        more_findings: report.more,
    }
}

fn told(shown: &Shown, report: &Report, given: usize) -> Vec<String> {
    let records = match shown.last_record {
        last if last < shown.first_record => "no records".to_owned(),
        last => format!("records {} to {}", thousands(shown.first_record), thousands(last)),
    };
    let mut lines = vec![format!("segments: {}, {records}", shown.segments)];
    lines.push(match report.signed {
        Some((record, at)) => {
            format!("signed: up to record {} ({})", thousands(record), when(at))
        }
        None => "signed: nothing yet; the first checkpoint comes within a minute".to_owned(),
    });
    lines.push(format!(
        "rows of changes: {} chained, {} named by checkpoints",
        thousands(shown.rows),
        shown.anchors
    ));
    if shown.rows_unchained > 0 {
        let older = thousands(shown.rows_unchained);
        lines.push(format!(
            "{older} older rows are of before rows were chained: nothing vouches for them"
        ));
    }
    if report.cuts > 0 {
        lines
            .push(format!("{} torn end(s) were cut off at a start, as after a crash", report.cuts));
    }
    lines.push(match given {
        0 => "checkpoints from outside: none given, so a missing end would not show".to_owned(),
        _ => format!(
            "checkpoints from outside: {} agree, {} are about other logs or removed segments",
            shown.outside, shown.outside_unchecked
        ),
    });
    for key in &shown.keys {
        lines.push(format!("key: {key}"));
    }
    lines.extend(shown.findings.iter().cloned());
    if shown.more_findings > 0 {
        lines.push(format!("and {} more", shown.more_findings));
    }
    if shown.whole {
        lines.push("the audit log is as it was written".to_owned());
    }
    lines
}

fn read(path: &Path) -> Result<Vec<Checkpoint>, Failure> {
    let shown = path.display();
    let mut text = String::new();
    std::fs::File::open(path)
        .and_then(|file| file.take(CHECKPOINTS_MAX).read_to_string(&mut text))
        .map_err(|e| {
            Failure::new(exit::USAGE, format!("cannot read {shown}: {e}"), "look at the path")
        })?;
    let found: Result<Vec<Checkpoint>, _> = checkpoints_of(&text).collect();
    let found = found.map_err(|e| {
        Failure::new(exit::USAGE, format!("{shown}: {e}"), "was the file cut, or changed?")
    })?;
    if found.is_empty() {
        let error = format!("{shown} holds no checkpoint");
        return Err(Failure::new(exit::USAGE, error, "give what a sink of the server wrote"));
    }
    Ok(found)
}

fn key(text: &str) -> Result<PublicKey, String> {
    let wrong = || "expected 64 hexadecimal digits".to_owned();
    if text.len() != 64 || !text.is_ascii() {
        return Err(wrong());
    }
    let mut key = [0; 32];
    for (at, byte) in key.iter_mut().enumerate() {
        *byte = u8::from_str_radix(&text[2 * at..2 * at + 2], 16).map_err(|_| wrong())?;
    }
    Ok(PublicKey(key))
}

fn failed(e: VerifyError) -> Failure {
    let (code, hint) = match &e {
        VerifyError::NoKey => (exit::UNKNOWN, "start its server once, or give --key"),
        VerifyError::Store(_) | VerifyError::Segments(..) => {
            (exit::UNREACHABLE, "is --data the server's data directory?")
        }
    };
    Failure::new(code, e, hint)
}
