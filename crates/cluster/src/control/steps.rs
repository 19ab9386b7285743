//! One step of the plan and its commit. Each step is safe to repeat: it may have been done
//! before by an agent that was killed before it could commit.

use super::jobs;
use super::kube::KubeError;
use super::lease::Lease;
use super::rewrite::{self, Told};
use super::verify::{self, VerifyError};
use crate::contact::wall;
use crate::file::FileError;
use crate::node::Node;
use crate::run::with_causes;
use crate::scrub::ScrubError;
use claviger_client::Error as ClientError;
use claviger_crypto::digest::equal;
use claviger_crypto::kek::wrap_aad;
use claviger_crypto::{Key32, SecretBytes};
use claviger_domain::cluster::commit::Commit;
use claviger_domain::cluster::plan::{Step, must_fence};
use claviger_domain::cluster::ring::{Kek, Role};
use claviger_domain::cluster::{OperationKind, Rewrite, TakeUp, Tally};
use claviger_domain::id::{OperationId, Serial};
use claviger_domain::key::{RootKey, RootVersion};
use claviger_etcd::EtcdError;
use claviger_etcd::census::Census;
use claviger_etcd::residue::{self, ResidueError};
use claviger_wire::agent::{CommitRequest, State, code};
use claviger_wire::kp::RegistrationInput;
use std::sync::Arc;
use std::time::{Duration, Instant};
use thiserror::Error;

/// Why a step was not done. It is tried again, after another look.
#[derive(Debug, Error)]
pub enum StepError {
    /// The server or key service.
    #[error("the server refused or did not answer")]
    Server(#[from] ClientError),
    /// etcd.
    #[error("etcd did not do it")]
    Etcd(#[from] EtcdError),
    /// The API server.
    #[error("the API server did not do it")]
    Kube(#[from] KubeError),
    /// A file of this node.
    #[error(transparent)]
    File(#[from] FileError),
    /// etcd's files.
    #[error("cannot search etcd's files for plaintext")]
    Residue(#[from] ResidueError),
    /// The proof did not come about.
    #[error("etcd's records do not prove it")]
    Verify(#[from] VerifyError),
    /// The lease is another agent's by now.
    #[error("the lease is over")]
    LeaseOver,
    /// The key service unwrapped something else than was wrapped.
    #[error("the key service does not give back what it wrapped; nothing was changed")]
    NotTheSame,
    /// Secrets that the API server refuses to store again.
    #[error("the API server refuses to store again {}", .0.join(", "))]
    Refused(Vec<String>),
    /// A pass that the API server did not get through.
    #[error("the API server did not store Secret {name} again")]
    NotStored {
        /// Namespace and name; there may be others.
        name: String,
        /// What it said of that one.
        #[source]
        error: KubeError,
    },
    /// A whole pass without effect.
    #[error(
        "{left} records were patched and are still not under the new key; does the API server at {url} write to the etcd that was counted?"
    )]
    NoEffect {
        /// Records left, as many as before the pass.
        left: u64,
        /// The API server.
        url: String,
    },

    /// etcd's files were not cleared.
    #[error("cannot clear etcd's files: {0}")]
    Scrub(String),
    /// A task of ours ended early: a fault of ours.
    #[error("an inner task failed")]
    Task(#[from] tokio::task::JoinError),
}

impl StepError {
    /// Whether it only says that somebody else moved meanwhile.
    pub fn is_stale(&self) -> bool {
        match self {
            StepError::LeaseOver => true,
            StepError::Server(e) => {
                matches!(e.reason(), Some(code::STALE_REVISION | code::STALE_FENCING))
            }
            _ => false,
        }
    }
}

/// Does steps.
pub struct Steps {
    node: Arc<Node>,
    lease: Lease,
    /// What the last pass of the rewrite began with, to see whether it had an effect.
    left: Option<(OperationId, u64)>,
    /// The revision at which this process compacted last, every member defragmented since.
    compacted: Option<i64>,
    /// The enablement that ends without a scrub: one failed in the middle of its work.
    unscrubbed: Option<OperationId>,
}

impl Steps {
    /// For `node`, under `lease`.
    pub fn new(node: Arc<Node>, lease: Lease) -> Self {
        Self { node, lease, left: None, compacted: None, unscrubbed: None }
    }

    /// The node.
    pub fn node(&self) -> &Node {
        &self.node
    }

    /// Makes one durable change, planned on `state`.
    pub async fn commit(&self, state: &State, commit: Commit) -> Result<State, StepError> {
        let fencing = self.lease.fencing().ok_or(StepError::LeaseOver)?;
        let request = CommitRequest { fencing, revision: state.cluster.revision, commit };
        match self.node.clients().api.commit(&request).await {
            Ok(state) => {
                self.node.took(state.clone())?;
                Ok(state)
            }
            Err(error) => {
                if error.reason() == Some(code::STALE_FENCING) {
                    self.lease.lost();
                }
                Err(error.into())
            }
        }
    }

    /// Does `step`, planned on `state`, and commits it.
    pub async fn take(
        &mut self,
        state: State,
        step: Step,
        tally: Option<Tally>,
    ) -> Result<State, StepError> {
        let commit = match step {
            Step::Rest | Step::Wait(_) | Step::Rewrite { .. } => return Ok(state),
            Step::Open { target } => Commit::Opened {
                id: OperationId::random(),
                kind: OperationKind::Rotate,
                target,
                take_up: TakeUp::Restart,
                public_endpoint: None,
                by: "system".to_owned(),
            },
            Step::CommitPreflighted => Commit::Preflighted,
            Step::Reject { reason } => Commit::Rejected { reason },
            Step::Register { target } => {
                self.register(&state, target, None).await?;
                Commit::Registered
            }
            Step::Mint { target, serial } => {
                Commit::Minted { kek: self.mint(&state, target, serial).await? }
            }
            Step::TakeUp { agent, stage } => Commit::TakeUp { agent, stage },
            Step::Promote { .. } => Commit::Promoted,
            Step::Verify => {
                let verified = verify::prove(&self.node, &state.cluster, state.now).await?;
                Commit::Verified { verified }
            }
            Step::Compact { revision } => {
                let state = self.compact(state, revision, tally).await?;
                return self.commit(&state, Commit::Compacted { revision }).await;
            }
            Step::GoWithout { root } => Commit::WentWithout { root },
            Step::Readmit { serial } => Commit::Readmitted { serial },
            Step::Finish => {
                if let Some(kek) = state.cluster.ring.write() {
                    self.register(&state, kek.root.root, Some(kek.root)).await?;
                }
                Commit::Finished
            }
        };
        self.commit(&state, commit).await
    }

    /// Makes sure that the key service lists the cluster as a user of the root key, so that it
    /// cannot be deleted; with the version in use, where there is one.
    async fn register(
        &self,
        state: &State,
        root: RootKey,
        version: Option<RootVersion>,
    ) -> Result<(), StepError> {
        let input = RegistrationInput {
            description: Some(format!("Secrets of cluster {}", state.cluster.name)),
            prevent_key_deletion: Some(true),
            key_version_id: version.map(|v| v.version.0),
            registration_metadata: None,
        };
        let keys = &self.node.clients().keys;
        keys.ensure_registration(root.instance, root.key, &state.crn, &input).await?;
        Ok(())
    }

    /// A new KEK, wrapped under the root key's current version and unwrapped once.
    async fn mint(&self, state: &State, target: RootKey, serial: Serial) -> Result<Kek, StepError> {
        let key = Key32::generate();
        let secret = SecretBytes::new(key.expose().to_vec());
        let aad = wrap_aad(&state.cluster.id, serial);
        let clients = self.node.clients();
        let wrapped = clients.keys.wrap(target.instance, target.key, Some(&secret), &aad).await?;
        let back =
            clients.keys.unwrap(target.instance, target.key, &wrapped.ciphertext, &aad).await?;
        if !equal(back.plaintext.expose(), key.expose()) {
            return Err(StepError::NotTheSame);
        }
        Ok(Kek {
            serial,
            root: RootVersion { root: target, version: wrapped.version },
            wrapped: wrapped.ciphertext,
            role: Role::Staged,
            created: wall(),
        })
    }

    /// Compacts history, defragments every member and looks what is left in this node's files.
    async fn compact(
        &mut self,
        state: State,
        revision: i64,
        tally: Option<Tally>,
    ) -> Result<State, StepError> {
        // Once: what comes after it may have to wait for room on the disk.
        if self.compacted != Some(revision) {
            let etcd = self.node.local.etcd();
            etcd.compact(revision, true).await?;
            etcd.defragment_all().await?;
            self.compacted = Some(revision);
        }
        if self.node.config.etcd.scrub_after_enable {
            self.scrub(&state).await?;
        }
        let Some(data_dir) = self.node.config.etcd.data_dir.clone() else { return Ok(state) };
        let found = tokio::task::spawn_blocking(move || residue::scan(&data_dir, None)).await??;
        let live = tally.map_or(0, |t| t.plaintext);
        self.commit(&state, Commit::Residue { residue: found.residue(live, wall()) }).await
    }

    /// Clears etcd's files, where this node can. Where it never could, or failed once with everything
    /// stopped for it, the enablement ends all the same: what is left in the files is counted and
    /// told. Another try would be another outage.
    async fn scrub(&mut self, state: &State) -> Result<(), StepError> {
        let operation = state.cluster.operation.as_ref().map(|op| op.id);
        if operation.is_some() && self.unscrubbed == operation {
            return Ok(());
        }
        let scrub = match jobs::scrub_here(&self.node, &state.cluster) {
            Ok(scrub) => scrub,
            Err(why) => {
                tracing::warn!(%why, "etcd's files are not cleared after the enablement");
                return Ok(());
            }
        };
        let ready = scrub.check().await;
        let checked = ready.is_ok();
        let done = match ready {
            Ok(()) => scrub.run(&|text| tracing::info!("scrub: {text}")).await.map(|_| ()),
            Err(error) => Err(error),
        };
        let Err(error) = done else { return Ok(()) };
        let why = with_causes(&error);
        if !goes_on(&error, checked, scrub.lacks_room()) {
            return Err(StepError::Scrub(why));
        }
        tracing::warn!(%why, "etcd's files are not cleared after the enablement");
        self.unscrubbed = operation;
        Ok(())
    }

    /// Stores every stale record of `census` again, and tells the cluster how far it is.
    pub async fn rewrite(&mut self, state: State, census: &Census) -> Result<State, StepError> {
        let resources = super::resources();
        let (id, ring) = (&state.cluster.id, &state.cluster.ring);
        // Oldest first: what has waited longest is under the key that has been replaced longest.
        let reads_plaintext = state.cluster.reads_plaintext();
        let due = census.stale(id, ring, &resources);
        let mut due: Vec<_> = due.filter(|one| reads_plaintext || !one.plaintext).collect();
        due.sort_unstable_by_key(|record| record.mod_revision);
        let mut stale = Vec::with_capacity(due.len());
        let mut nameless = Vec::new();
        for record in due {
            match rewrite::name_of(record.key, &resources) {
                Some(name) => stale.push(name),
                None => nameless.push(String::from_utf8_lossy(record.key).into_owned()),
            }
        }
        let left = (stale.len() + nameless.len()) as u64;
        let operation = state.cluster.operation.as_ref().map(|op| op.id);
        // Nothing under an older key is written any more, so a pass that leaves as many as it
        // found would do so for ever. It is made all the same, after the pause that an error
        // brings: the cause may be gone.
        let before = operation.and_then(|id| self.left.replace((id, left)).filter(|l| l.0 == id));
        let no_effect = before.is_some_and(|(_, before)| left >= before);
        let total = census.total();
        let mut told = Told::new(total - (stale.len() as u64).min(total), total);
        let mut state = self.tell(state, told.so_far(0)).await?;
        let mut last = Instant::now();
        let mut pass = rewrite::Pass::begin(self.node.local.kube(), stale, rewrite::WORKERS);
        while pass.more().await {
            if !self.lease.held() {
                return Err(StepError::LeaseOver);
            }
            if last.elapsed() >= Duration::from_secs(1) {
                last = Instant::now();
                // The figures are for people; that they could not be told stops nothing.
                match self.tell(state.clone(), told.so_far(pass.done())).await {
                    Ok(newer) => state = newer,
                    Err(StepError::LeaseOver) => return Err(StepError::LeaseOver),
                    Err(_) => state = self.node.clients().api.state().await?,
                }
                // Another operation took this one's place, or the API server is fenced: each
                // record would be tried in vain for seconds, and nothing else be done meanwhile.
                let now = state.cluster.operation.as_ref().map(|op| op.id);
                if now != operation || must_fence(&state.cluster, &state.roots).is_some() {
                    tracing::info!("the rewrite is broken off");
                    return Ok(state);
                }
            }
        }
        let state = self.tell(state, told.so_far(pass.done())).await?;
        pass.end().map_err(|failed| match failed {
            rewrite::Failed::Refused(names) => StepError::Refused(names),
            rewrite::Failed::Kube { name, error } => StepError::NotStored { name, error },
        })?;
        if !nameless.is_empty() {
            nameless.truncate(rewrite::NAMES_MAX);
            return Err(StepError::Refused(nameless));
        }
        if no_effect {
            return Err(StepError::NoEffect { left, url: self.node.local.kube().url().to_owned() });
        }
        Ok(state)
    }

    async fn tell(&self, state: State, rewrite: Rewrite) -> Result<State, StepError> {
        self.commit(&state, Commit::Rewriting { rewrite }).await
    }
}

/// Whether an enablement goes on without the scrub that failed so: it never can be done, or it had
/// been `checked` before, so that the failure came with everything stopped. Without room it is tried
/// again, since the next check sees that before anything is stopped.
fn goes_on(error: &ScrubError, checked: bool, lacks_room: bool) -> bool {
    error.never() || (checked && !error.waits() && !lacks_room)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scrub_that_failed_with_everything_stopped_is_not_tried_again() {
        let strange = || ScrubError::StrangeWriter { taken: 1, newer: 2 };
        let unfit = ScrubError::Etcdutl { path: "/x".into(), why: "is none".into() };
        for (name, error, checked, lacks_room, expected) in [
            ("the tool is missing", unfit, false, false, true),
            ("several members", ScrubError::NotSingle(3), false, false, true),
            ("etcd is away", EtcdError::Nonsense("no endpoint").into(), false, false, false),
            ("a strange writer", strange(), true, false, true),
            ("the tool failed", ScrubError::Restore("no".into()), true, false, true),
            ("another agent scrubs", ScrubError::Busy, true, false, false),
            ("the disk filled up", strange(), true, true, false),
        ] {
            assert_eq!(goes_on(&error, checked, lacks_room), expected, "{name}");
        }
    }
}
