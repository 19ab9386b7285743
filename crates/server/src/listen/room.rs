//! Room for connections: so many of strangers in all, and so many of one address or one agent. What
//! is taken is given back when it is dropped.

use crate::http::auth::Node;
use claviger_audit::source_of;
use claviger_domain::id::{AgentName, ClusterId};
use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// There is no room for one more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("there is no room for one more {0}")]
pub(super) struct Full(&'static str);

/// How many there may be.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    /// Of strangers in all.
    pub(super) strangers: usize,
    /// Of strangers at one address.
    pub(super) of_address: usize,
    /// At one address that have not said yet who they are.
    pub(super) handshakes: usize,
    /// Of one agent.
    pub(super) of_agent: usize,
}

/// Who is counted together.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Source {
    Handshake(IpAddr),
    Stranger(IpAddr),
    /// Whoever comes by a proxy.
    Proxy,
    /// By its certificate, too: one that counts no longer takes no room from its successor.
    Agent(ClusterId, AgentName, String),
}

/// The connections that are open. Holds one entry for each source that has some.
pub(super) struct Room {
    limits: Limits,
    strangers: Arc<Semaphore>,
    open: Mutex<HashMap<Source, usize>>,
}

/// The room that one connection takes.
pub(super) struct Place {
    room: Arc<Room>,
    source: Source,
    _stranger: Option<OwnedSemaphorePermit>,
}

impl Room {
    pub(super) fn new(limits: Limits) -> Arc<Room> {
        let strangers = Arc::new(Semaphore::new(limits.strangers));
        Arc::new(Room { limits, strangers, open: Mutex::default() })
    }

    /// For one who begins a handshake.
    pub(super) fn handshake(self: &Arc<Self>, peer: IpAddr) -> Result<Place, Full> {
        let source = Source::Handshake(source_of(peer));
        self.take(source, self.limits.handshakes, None).ok_or(Full("handshake of this address"))
    }

    /// For one who showed no certificate of a node; without an address if it says nothing about
    /// him.
    pub(super) fn stranger(self: &Arc<Self>, peer: Option<IpAddr>) -> Result<Place, Full> {
        let one = self.strangers.clone().try_acquire_owned().map_err(|_| Full("stranger"))?;
        let (source, most) = match peer {
            Some(peer) => (Source::Stranger(source_of(peer)), self.limits.of_address),
            None => (Source::Proxy, self.limits.strangers),
        };
        self.take(source, most, Some(one)).ok_or(Full("stranger of this address"))
    }

    /// For an agent.
    pub(super) fn agent(self: &Arc<Self>, node: &Node) -> Result<Place, Full> {
        let source =
            Source::Agent(node.cluster.clone(), node.agent.clone(), node.fingerprint.clone());
        self.take(source, self.limits.of_agent, None).ok_or(Full("connection of this agent"))
    }

    fn take(
        self: &Arc<Self>,
        source: Source,
        most: usize,
        stranger: Option<OwnedSemaphorePermit>,
    ) -> Option<Place> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let count = open.entry(source.clone()).or_default();
        if *count >= most {
            return None;
        }
        *count += 1;
        Some(Place { room: self.clone(), source, _stranger: stranger })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut open = self.room.open.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = open.get_mut(&self.source) {
            *count -= 1;
            if *count == 0 {
                open.remove(&self.source);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use claviger_domain::id::UnixMs;

    fn ip(text: &str) -> IpAddr {
        text.parse().expect("an address")
    }

    fn node(cluster: &ClusterId, agent: &str) -> Node {
        Node {
            cluster: cluster.clone(),
            agent: agent.parse().expect("a name"),
            fingerprint: String::new(),
            not_after: UnixMs(0),
        }
    }

    #[test]
    fn each_source_has_its_own_room_and_gives_it_back() {
        let limits = Limits { strangers: 5, of_address: 2, handshakes: 1, of_agent: 2 };
        let room = Room::new(limits);
        let (a, b) = (ip("192.0.2.1"), ip("192.0.2.2"));
        let mut held = vec![room.stranger(Some(a)), room.stranger(Some(a))];
        assert_eq!(room.stranger(Some(a)).err(), Some(Full("stranger of this address")));
        held.extend([room.stranger(Some(b)), room.stranger(Some(b))]);
        // Strangers leave room for the handshakes of agents beside them, and for agents.
        let handshake = room.handshake(a);
        assert!(handshake.is_ok() && room.handshake(a).is_err() && room.handshake(b).is_ok());
        let cluster = ClusterId::random();
        let agents = [0; 2].map(|_| room.agent(&node(&cluster, "n1")));
        assert!(agents.iter().all(Result::is_ok));
        assert_eq!(room.agent(&node(&cluster, "n1")).err(), Some(Full("connection of this agent")));
        assert!(room.agent(&node(&cluster, "n2")).is_ok());
        assert!(room.agent(&node(&ClusterId::random(), "n1")).is_ok());
        // Whoever has one address of a /64 has all of them.
        held.push(room.stranger(Some(ip("2001:db8::1"))));
        assert_eq!(room.stranger(Some(ip("2001:db8:1::1"))).err(), Some(Full("stranger")));
        assert_eq!(room.stranger(None).err(), Some(Full("stranger")), "by a proxy, too");
        held.remove(0).expect("was taken");
        let six = room.stranger(Some(ip("2001:db8::2")));
        assert!(six.is_ok() && room.stranger(Some(ip("2001:db8::3"))).is_err());
        assert!(held.iter().all(Result::is_ok));
        drop((held, agents, handshake, six));
        assert!(
            room.open.lock().expect("whole").is_empty(),
            "nothing is remembered of who has left"
        );
        assert_eq!(room.strangers.available_permits(), 5);
    }
}
