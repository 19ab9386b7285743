//! How much requests have the server do at one time.
//!
//! Behind a pool of threads is a queue without end, and what is in it stays there when whoever asked
//! hangs up. So nothing comes to it that has found no [`Room`] before. What nodes ask for has room of
//! its own: they are to hear of a suspension however much others ask.

use crate::app::App;
use crate::listen::CONNECTIONS;
use claviger_store::StoreError;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Threads that may block. Each may hold a database reader for a moment; requests wait for one
/// beyond that. The server's own work (clocks, status) has those that [`Room`] leaves.
pub const THREADS: usize = 64;
/// Work for nodes at one time.
const NODES: usize = 12;
/// Work for everybody else at one time.
const OTHERS: usize = 48;
/// Requests of everybody else that wait for room. Each holds its body, at most 256 KiB.
const WAITING: usize = 1024;
/// How long they wait: some hundred times what all that is under way takes.
const PATIENCE: Duration = Duration::from_secs(5);

/// For whom something is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum For {
    /// An agent, or the cluster that it is of.
    Node,
    /// Anybody else.
    Other,
}

impl For {
    /// A cluster, or somebody else.
    pub(crate) fn cluster<T>(cluster: Option<&T>) -> For {
        if cluster.is_some() { For::Node } else { For::Other }
    }

    pub(crate) fn as_str(self) -> &'static str {
        match self {
            For::Node => "node",
            For::Other => "other",
        }
    }
}

/// Room for what requests ask for.
pub(crate) struct Room {
    nodes: Side,
    others: Side,
}

struct Side {
    running: Arc<Semaphore>,
    waiting: Semaphore,
}

impl Side {
    fn new(running: usize, waiting: usize) -> Side {
        Side { running: Arc::new(Semaphore::new(running)), waiting: Semaphore::new(waiting) }
    }

    async fn enter(&self) -> Option<OwnedSemaphorePermit> {
        if let Ok(permit) = self.running.clone().try_acquire_owned() {
            return Some(permit);
        }
        let _waits = self.waiting.try_acquire().ok()?;
        let permit = tokio::time::timeout(PATIENCE, self.running.clone().acquire_owned());
        permit.await.ok()?.ok()
    }
}

impl Room {
    pub(crate) fn new() -> Room {
        // A node asks for one thing at a time, but for its stream.
        Room { nodes: Side::new(NODES, CONNECTIONS), others: Side::new(OTHERS, WAITING) }
    }

    fn side(&self, whom: For) -> &Side {
        match whom {
            For::Node => &self.nodes,
            For::Other => &self.others,
        }
    }
}

impl App {
    /// Runs `work` of a request as [`App::blocking`] does, once there is room. The room is taken
    /// until the work is done, also where nobody waits for it any longer.
    ///
    /// # Errors
    /// Those of `work`; [`StoreError::Busy`] when there is no room for five seconds, or more than a
    /// thousand others wait for it: nothing was begun then, nor put on record.
    pub(crate) async fn asked<T, E>(
        self: &Arc<App>,
        whom: For,
        work: impl FnOnce(&App) -> Result<T, E> + Send + 'static,
    ) -> Result<T, E>
    where
        T: Send + 'static,
        E: From<StoreError> + Send + 'static,
    {
        let Some(permit) = self.room.side(whom).enter().await else {
            self.metrics.found_no_room(whom.as_str());
            return Err(StoreError::Busy.into());
        };
        let work = move |app: &App| {
            let _permit = permit;
            work(app)
        };
        self.blocking(work).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::World;
    use serde_json::{Value, json};
    use std::sync::mpsc;

    /// No room, and none to wait in.
    fn full(w: &World, whom: For) -> (OwnedSemaphorePermit, tokio::sync::SemaphorePermit<'_>) {
        let side = w.app.room.side(whom);
        let running = side.running.available_permits() as u32;
        let waiting = side.waiting.available_permits() as u32;
        let running = side.running.clone().try_acquire_many_owned(running).expect("all of it");
        (running, side.waiting.try_acquire_many(waiting).expect("all of it"))
    }

    #[tokio::test]
    async fn without_room_a_request_is_turned_away_and_nodes_are_not() {
        let w = World::new();
        let key = w.root().await;
        let (cluster, _, token) = w.cluster(&key);
        let taken = full(&w, For::Other);
        let paths =
            ["/api/v2/keys", "/v2/resource_instances", "/v1/policies", "/v2/getCluster?cluster=x"];
        for path in paths {
            let answer = w.ask(&w.manager, "GET", path, Value::Null).await.is(503);
            assert_eq!(answer.headers["retry-after"], "2", "{path}");
            assert!(answer.body.to_string().contains("busy"), "{path}: {}", answer.body);
        }
        let line = format!("POST /keys/{key}/actions/wrap");
        let aad = json!({"aad": ["claviger kek 1", cluster.as_str()]}).to_string();
        w.by(&token, &line, aad.clone()).await.is(200);
        let text = w.app.metrics.render();
        assert!(text.contains("claviger_requests_without_room_total{whom=\"other\"} 4"), "{text}");
        drop(taken);
        w.call("GET /keys", &Value::Null).await.is(200);
        let taken = full(&w, For::Node);
        w.by(&token, &line, aad).await.is(503);
        w.call("GET /keys", &Value::Null).await.is(200);
        drop(taken);
    }

    #[tokio::test]
    async fn who_hangs_up_makes_no_room_before_the_work_is_done() {
        let w = World::new();
        let (go, wait) = mpsc::channel::<()>();
        let work = move |_: &App| Ok::<_, StoreError>(wait.recv().is_ok());
        let mut asked = Box::pin(w.app.asked(For::Other, work));
        assert!(futures_util::poll!(&mut asked).is_pending());
        drop(asked);
        let running = &w.app.room.others.running;
        assert_eq!(running.available_permits(), OTHERS - 1);
        go.send(()).expect("it waits");
        let all = running.acquire_many(OTHERS as u32).await;
        drop(all.expect("never closed"));
    }
}
