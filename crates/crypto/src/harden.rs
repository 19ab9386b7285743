//! Keeps a process that holds keys out of core dumps, debuggers and swap.

use rustix::mm::{MlockAllFlags, mlockall};
use rustix::process::{DumpableBehavior, Resource, Rlimit, set_dumpable_behavior, setrlimit};

/// What could not be done, in words for a log line; empty when all was done.
///
/// No core dumps (rlimit 0), not dumpable (so `/proc/PID/mem` and ptrace need root), all memory
/// locked, now and later. Locking needs `CAP_IPC_LOCK` or a large `RLIMIT_MEMLOCK`.
pub fn harden() -> Vec<String> {
    let mut failed = Vec::new();
    if let Err(e) = setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) }) {
        failed.push(format!("core dumps stay possible: {e}"));
    }
    if let Err(e) = set_dumpable_behavior(DumpableBehavior::NotDumpable) {
        failed.push(format!("the process stays dumpable: {e}"));
    }
    let flags = MlockAllFlags::CURRENT | MlockAllFlags::FUTURE | MlockAllFlags::ONFAULT;
    if let Err(e) = mlockall(flags) {
        failed.push(format!("memory is not locked and could be swapped: {e}"));
    }
    failed
}
