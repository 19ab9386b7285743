//! Work that an operator asks a cluster's agents for, and how it stands.

use super::fault::Fault;
use super::limits::{JOB_LIFE_MS, JOBS_KEPT, JOBS_OPEN_MAX, REASON_MAX};
use claviger_domain::id::{ClusterId, JobId, UnixMs};
use claviger_store::clusters::{self, JobRow};
use claviger_store::{StoreError, Tx};
use claviger_wire::agent::{Job, JobKind, JobReport};
use claviger_wire::ks::JobView;

/// Adds a job.
pub fn create(
    tx: &Tx<'_>,
    cluster: &ClusterId,
    kind: JobKind,
    by: &str,
    now: UnixMs,
) -> Result<JobView, Fault> {
    let open = clusters::open_jobs(tx, cluster, asked_after(now))?;
    if open.len() >= JOBS_OPEN_MAX {
        return Err(Fault::TooManyJobs);
    }
    let id = JobId::random();
    let text = serde_json::to_string(&kind).map_err(|e| Fault::Bug(e.to_string()))?;
    let stored = clusters::insert_job(tx, cluster, id, &text, by, now)
        .and_then(|()| clusters::forget_jobs(tx, cluster, JOBS_KEPT));
    stored?;
    Ok(JobView { id, kind, report: None })
}

/// How a job stands. One that nobody finished in its hour has failed.
pub fn view(tx: &Tx<'_>, cluster: &ClusterId, id: JobId, now: UnixMs) -> Result<JobView, Fault> {
    let row = clusters::job(tx, cluster, id)?.ok_or(Fault::NoJob(id))?;
    let lapsed = row.ended.is_none() && row.requested <= asked_after(now);
    let report = if lapsed {
        Some(JobReport::Failed {
            reason: format!(
                "no agent finished it within {} minutes; see that agents run, then ask again",
                JOB_LIFE_MS / 60_000
            ),
        })
    } else {
        row.report.as_deref().map(read).transpose()?
    };
    Ok(JobView { id, kind: read(&row.kind)?, report })
}

/// Stores an agent's report.
pub fn report(
    tx: &Tx<'_>,
    cluster: &ClusterId,
    id: JobId,
    report: &JobReport,
    now: UnixMs,
) -> Result<(), Fault> {
    let ended = match report {
        JobReport::Running { note } if note.len() > REASON_MAX => {
            return Err(Fault::Bad(format!("a note has at most {REASON_MAX} bytes")));
        }
        JobReport::Running { .. } => None,
        JobReport::Done { .. } | JobReport::Failed { .. } => Some(now),
    };
    let text = serde_json::to_string(report).map_err(|e| Fault::Bug(e.to_string()))?;
    let open = clusters::report_job(tx, cluster, id, &text, ended)?;
    if open { Ok(()) } else { Err(Fault::NoJob(id)) }
}

/// A stored job as the agents read it.
pub fn job(row: &JobRow) -> Result<Job, StoreError> {
    Ok(Job { id: row.id, kind: read(&row.kind)?, requested: row.requested })
}

/// Whether an operator asked for this count of etcd's records and waits for it.
pub fn asks_count(
    tx: &Tx<'_>,
    cluster: &ClusterId,
    id: JobId,
    now: UnixMs,
) -> Result<bool, StoreError> {
    let open = clusters::open_jobs(tx, cluster, asked_after(now))?;
    let Some(row) = open.iter().find(|row| row.id == id) else { return Ok(false) };
    Ok(matches!(read(&row.kind)?, JobKind::Census | JobKind::Verify))
}

fn asked_after(now: UnixMs) -> UnixMs {
    UnixMs(now.0 - JOB_LIFE_MS)
}

fn read<T: serde::de::DeserializeOwned>(text: &str) -> Result<T, StoreError> {
    serde_json::from_str(text).map_err(|e| StoreError::Damaged(format!("job: {e}")))
}
