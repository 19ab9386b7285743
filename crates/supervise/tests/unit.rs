//! Units with real processes.

#![allow(clippy::unwrap_used)] // A panic is the report of a test.

use claviger_domain::cluster::Process;
use claviger_supervise::unit::{Command, ProcessUnit};
use claviger_supervise::{SuperviseError, Supervisor, proc};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

struct Scratch {
    dir: tempfile::TempDir,
}

impl Scratch {
    fn new(script: &str) -> (Self, ProcessUnit) {
        let scratch = Self { dir: tempfile::tempdir().unwrap() };
        let unit = scratch.unit();
        unit.set_command(&Command {
            argv: ["/bin/sh", "-c", script, "sh"].map(String::from).to_vec(),
            env: BTreeMap::from([("GREETING".into(), "hello".into())]),
            hostname: Some("unit-test".into()),
            log: scratch.log(),
        })
        .unwrap();
        (scratch, unit)
    }

    fn unit(&self) -> ProcessUnit {
        ProcessUnit::open(&self.dir.path().join("unit")).unwrap()
    }

    fn log(&self) -> PathBuf {
        self.dir.path().join("log/program.log")
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = self.unit().kill();
        // What the program itself had started and a kill of the program leaves behind.
        for process in proc::of_units_below(self.unit().dir()) {
            let _ = proc::end(process, proc::Signal::KILL, Duration::from_secs(1));
        }
    }
}

fn eventually(what: &str, mut check: impl FnMut() -> bool) {
    let until = Instant::now() + Duration::from_secs(20);
    while !check() {
        assert!(Instant::now() < until, "never: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn starts_once_is_seen_by_others_and_dies_by_kill() {
    let (scratch, unit) = Scratch::new("echo $GREETING $1; exec sleep 1000");
    assert_eq!(unit.observe().unwrap().process, None);
    let process = unit.start(&["extra".into()]).unwrap();
    let other = scratch.unit();
    let seen = other.observe().unwrap();
    assert_eq!((seen.process, seen.held), (Some(process), None));
    assert_eq!(seen.extra_args, ["extra"]);
    match other.start(&[]) {
        Err(SuperviseError::Running(p)) => assert_eq!(p, process),
        other => panic!("{other:?}"),
    }
    eventually("the program has written", || {
        std::fs::read_to_string(scratch.log()).is_ok_and(|text| text == "hello extra\n")
    });
    other.kill().unwrap();
    assert!(!proc::is_alive(process));
    let seen = unit.observe().unwrap();
    assert_eq!(seen.process, None);
    assert_eq!(seen.extra_args, ["extra"], "kept for whoever starts it again");
    unit.kill().unwrap();
}

#[test]
fn a_dead_child_is_not_left_as_a_zombie() {
    let (_scratch, unit) = Scratch::new("exec sleep 1000");
    let process = unit.start(&[]).unwrap();
    unit.kill().unwrap();
    eventually("the child is reaped", || !Path::new(&format!("/proc/{}", process.pid)).exists());
}

#[test]
fn stop_kills_what_ignores_term_after_the_grace() {
    let (scratch, unit) = Scratch::new("trap '' TERM; echo deaf; while :; do sleep 1; done");
    let process = unit.start(&[]).unwrap();
    eventually("the trap is set", || {
        std::fs::read_to_string(scratch.log()).is_ok_and(|text| text.contains("deaf"))
    });
    let began = Instant::now();
    unit.stop(Duration::from_millis(300)).unwrap();
    assert!(began.elapsed() >= Duration::from_millis(300));
    assert!(!proc::is_alive(process));
}

#[test]
fn stop_lets_a_program_end_by_itself() {
    let (scratch, unit) =
        Scratch::new("trap 'echo bye; exit 0' TERM; echo up; while :; do sleep 0.02; done");
    unit.start(&[]).unwrap();
    let log = || std::fs::read_to_string(scratch.log()).unwrap_or_default();
    eventually("it is up", || log().contains("up"));
    unit.stop(Duration::from_secs(20)).unwrap();
    assert!(log().contains("bye"), "{}", log());
}

#[test]
fn a_fence_does_not_wait_for_a_stop_under_way() {
    let (scratch, unit) = Scratch::new("trap '' TERM; echo deaf; while :; do sleep 1; done");
    unit.start(&[]).unwrap();
    eventually("the trap is set", || {
        std::fs::read_to_string(scratch.log()).is_ok_and(|text| text.contains("deaf"))
    });
    let stopping = scratch.unit();
    let stop = std::thread::spawn(move || stopping.stop(Duration::from_secs(60)));
    std::thread::sleep(Duration::from_millis(100));
    let began = Instant::now();
    unit.hold("fenced").unwrap();
    unit.kill().unwrap();
    assert!(began.elapsed() < Duration::from_secs(10));
    stop.join().unwrap().unwrap();
}

#[test]
fn a_hold_forbids_starts_until_it_is_released() {
    let (scratch, unit) = Scratch::new("exec sleep 1000");
    unit.hold("root key suspended").unwrap();
    match scratch.unit().start(&[]) {
        Err(SuperviseError::Held(reason)) => assert_eq!(reason, "root key suspended"),
        other => panic!("{other:?}"),
    }
    assert_eq!(unit.observe().unwrap().held.as_deref(), Some("root key suspended"));
    unit.release().unwrap();
    unit.release().unwrap();
    unit.start(&[]).unwrap();
}

/// A process that no unit started.
struct Innocent(std::process::Child);

impl Innocent {
    fn new() -> Self {
        Self(std::process::Command::new("sleep").arg("1000").spawn().unwrap())
    }

    fn process(&self) -> Process {
        proc::alive(i32::try_from(self.0.id()).unwrap()).unwrap()
    }
}

impl Drop for Innocent {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Changes `process.json`.
fn edit(unit: &ProcessUnit, change: impl FnOnce(&mut serde_json::Value)) {
    let path = unit.dir().join("process.json");
    let mut record = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    change(&mut record);
    std::fs::write(&path, record.to_string()).unwrap();
}

#[test]
fn a_reused_process_id_is_not_hit() {
    let (_scratch, unit) = Scratch::new("exec sleep 1000");
    unit.start(&[]).unwrap();
    unit.kill().unwrap();
    let innocent = Innocent::new();
    let process = innocent.process();
    // As if the id had passed from a process that started earlier to this one.
    edit(&unit, |r| {
        r["process"] = serde_json::json!({ "pid": process.pid, "start": process.start - 1 });
    });
    assert_eq!(unit.observe().unwrap().process, None);
    unit.kill().unwrap();
    assert!(proc::is_alive(process), "the innocent process lives");
}

#[test]
fn a_record_of_an_earlier_boot_names_no_process() {
    let (_scratch, unit) = Scratch::new("exec sleep 1000");
    unit.start(&["a".into()]).unwrap();
    unit.kill().unwrap();
    let innocent = Innocent::new();
    let process = innocent.process();
    edit(&unit, |r| {
        r["process"] = serde_json::json!({ "pid": process.pid, "start": process.start });
        r["boot"] = "another".into();
    });
    let seen = unit.observe().unwrap();
    assert_eq!((seen.process, seen.extra_args), (None, vec!["a".to_owned()]));
}

#[test]
fn a_process_whose_record_is_lost_is_found_and_ended() {
    let (scratch, unit) = Scratch::new("sleep 1000; :");
    let lost = unit.start(&["x".into()]).unwrap();
    std::fs::remove_file(unit.dir().join("process.json")).unwrap();
    // What it runs with can be told from its last exec on.
    let until = Instant::now() + Duration::from_secs(30);
    let seen = loop {
        let seen = scratch.unit().observe().unwrap();
        if !seen.extra_args.is_empty() || Instant::now() > until {
            break seen;
        }
        std::thread::sleep(Duration::from_millis(10));
    };
    assert_eq!((seen.process, seen.extra_args), (Some(lost), vec!["x".to_owned()]));
    assert!(matches!(unit.start(&[]), Err(SuperviseError::Running(p)) if p == lost));
    // The record of a later start that came to nothing.
    edit(&unit, |r| r["process"] = serde_json::json!({ "pid": lost.pid, "start": 1 }));
    assert_eq!(unit.observe().unwrap().process, Some(lost));
    // Two at once: neither outlives a kill.
    let innocent = Innocent::new();
    edit(&unit, |r| {
        let process = innocent.process();
        r["process"] = serde_json::json!({ "pid": process.pid, "start": process.start });
    });
    unit.kill().unwrap();
    assert!(!proc::is_alive(lost) && unit.observe().unwrap().process.is_none());
}

/// Waits until a process that was just started is the program that its shell becomes: until then it
/// may be between two programs, where it cannot be told from others.
fn runs(process: Process, program: &str) {
    let until = Instant::now() + Duration::from_secs(30);
    let line = || std::fs::read(format!("/proc/{}/cmdline", process.pid)).unwrap();
    while !line().starts_with(program.as_bytes()) {
        assert!(Instant::now() < until, "it does not become {program}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// The environment is whatever its author wrote: a pod's author may write a unit's name, and may be
/// root in his container.
#[test]
fn a_process_of_another_user_or_pid_namespace_does_not_pass_for_the_program() {
    let (scratch, unit) = Scratch::new("exec sleep 1000");
    let other_user = ["setpriv", "--reuid", "65534", "--clear-groups", "setsid", "sleep", "1000"];
    let elsewhere = ["unshare", "--pid", "--fork", "--kill-child", "setsid", "sleep", "1000"];
    for argv in [&other_user, &elsewhere] {
        let tool = std::process::Command::new(argv[0]).args(&argv[1..4]).arg("true").status();
        if !tool.is_ok_and(|status| status.success()) {
            eprintln!("{} may not be used here: only root can make such a process", argv[0]);
            continue;
        }
        let child = std::process::Command::new(argv[0])
            .args(&argv[1..])
            .env("CLAVIGER_UNIT", unit.dir())
            .spawn()
            .unwrap();
        let _child = Innocent(child);
        let leads = |pid: &i32| {
            let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            stat.contains("(sleep)") && stat.split(' ').nth(5) == Some(&pid.to_string())
        };
        let mut stranger = None;
        eventually("a stranger leads a session under the unit's name", || {
            stranger = carriers(unit.dir()).into_iter().find(leads);
            stranger.is_some()
        });
        let stranger = proc::alive(stranger.unwrap()).unwrap();
        assert_eq!(scratch.unit().observe().unwrap().process, None, "{argv:?}");
        unit.start(&[]).unwrap();
        unit.kill().unwrap();
        assert!(proc::is_alive(stranger), "{argv:?}");
    }
}

#[test]
fn a_kill_needs_no_directory() {
    let (_scratch, unit) = Scratch::new("exec sleep 1000");
    let process = unit.start(&[]).unwrap();
    runs(process, "sleep");
    std::fs::remove_dir_all(unit.dir()).unwrap();
    assert!(unit.kill().is_err(), "whether another is started meanwhile, nobody can tell");
    assert!(!proc::is_alive(process));
}

#[test]
fn a_process_whose_starter_died_before_writing_it_down_is_found() {
    // The inner shell carries the same environment but leads no session.
    let (scratch, unit) = Scratch::new("sh -c 'sleep 1000; :' & wait");
    let process = unit.start(&["x".into()]).unwrap();
    edit(&unit, |r| r["process"] = serde_json::Value::Null);
    let seen = scratch.unit().observe().unwrap();
    assert_eq!(seen.process, Some(process));
    assert!(matches!(unit.start(&[]), Err(SuperviseError::Running(_))));
    unit.kill().unwrap();
    assert_eq!(unit.observe().unwrap().process, None);
}

#[test]
fn a_start_that_never_came_to_a_process_can_be_repeated() {
    let (_scratch, unit) = Scratch::new("exec sleep 1000");
    let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
    let record = serde_json::json!({
        "start": "nobody carries this", "boot": boot.trim(), "process": null, "extra_args": ["y"],
    });
    std::fs::write(unit.dir().join("process.json"), record.to_string()).unwrap();
    assert_eq!(unit.observe().unwrap().extra_args, ["y"]);
    unit.start(&["y".into()]).unwrap();
}

#[test]
fn a_missing_program_is_told_at_once() {
    let (scratch, unit) = Scratch::new("");
    let command =
        Command { argv: vec!["/nowhere/program".into()], ..unit.command().unwrap().unwrap() };
    unit.set_command(&command).unwrap();
    match unit.start(&[]) {
        Err(SuperviseError::Spawn { program, .. }) => assert_eq!(program, "/nowhere/program"),
        other => panic!("{other:?}"),
    }
    assert!(!scratch.log().exists());
}

#[test]
fn has_a_host_name_of_its_own_where_it_may() {
    let (scratch, unit) = Scratch::new("cat /proc/sys/kernel/hostname; exec sleep 1000");
    unit.start(&[]).unwrap();
    let machine = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap();
    eventually("the program has written", || {
        std::fs::read_to_string(scratch.log()).is_ok_and(|text| text.ends_with('\n'))
    });
    let name = std::fs::read_to_string(scratch.log()).unwrap();
    let may = std::process::Command::new("unshare").args(["--uts", "true"]).status().unwrap();
    assert_eq!(name.trim(), if may.success() { "unit-test" } else { machine.trim() });
    assert_eq!(std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap(), machine);
}

/// Not a test by itself: the starter that the next test kills.
#[test]
fn starter() {
    let Some(dir) = std::env::var_os("STARTER_UNIT") else { return };
    let unit = ProcessUnit::open(Path::new(&dir)).unwrap();
    loop {
        let _ = unit.start(&[]);
        let _ = unit.kill();
    }
}

#[test]
fn killing_the_starter_at_any_moment_loses_no_process() {
    let (scratch, unit) = Scratch::new("exec sleep 1000");
    for round in 0_u64..25 {
        let mut starter = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "starter", "--nocapture"])
            .env("STARTER_UNIT", unit.dir())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        std::thread::sleep(Duration::from_millis(40 + (round * 7) % 31));
        starter.kill().unwrap();
        starter.wait().unwrap();
        // Whatever carries this unit's name is what the unit sees, and nothing else. A process
        // that the starter had just sent SIGKILL may take a moment to go.
        let agree = || {
            let seen: Vec<i32> = unit.observe().unwrap().process.iter().map(|p| p.pid).collect();
            seen == carriers(unit.dir())
        };
        eventually(&format!("unit and kernel agree, round {round}"), agree);
        unit.kill().unwrap();
    }
    drop(scratch);
}

fn carriers(dir: &Path) -> Vec<i32> {
    let variable = format!("CLAVIGER_UNIT={}", dir.display());
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|n| n.parse::<i32>().ok()) else {
            continue;
        };
        let environ = std::fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        let carries = environ.split(|b| *b == 0).any(|one| one == variable.as_bytes());
        if carries && proc::alive(pid).is_some() {
            found.push(pid);
        }
    }
    found
}
