//! Whole-system tests: real API servers and etcd, started as a user would start them, and the
//! demo, which walks the same way more slowly.
//!
//! Nothing here is a fake, and Claviger is driven by its own command line.

pub mod conformance;
pub mod kube;
pub mod lab;
pub mod load;
pub mod raw;
pub mod torture;
pub mod traffic;

/// What goes wrong here ends a test or the demo; one text for the person who reads it.
pub type Outcome<T> = Result<T, String>;

/// User and kernel time that a process has used, in seconds; 0 of a dead one.
pub fn cpu_seconds(pid: i32) -> f64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // The second field is a name in parentheses that may hold blanks.
    let fields: Vec<&str> = stat
        .rsplit_once(')')
        .map(|(_, rest)| rest.split_whitespace().collect())
        .unwrap_or_default();
    let ticks: f64 = [11, 12].iter().filter_map(|i| fields.get(*i)?.parse::<f64>().ok()).sum();
    // Linux reports in units of USER_HZ, which is 100 on every architecture we build for.
    ticks / 100.0
}
