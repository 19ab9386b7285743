//! Plaintext in etcd's files, added up over the members.

#![allow(clippy::unwrap_used)] // A panic is the report of a test.

use claviger_domain::cluster::files::{EtcdFiles, left};
use claviger_domain::cluster::{Cluster, Observation, Residue, Seen, Stage, Target};
use claviger_domain::id::{AgentName, UnixMs};
use std::collections::BTreeMap;

fn residue(db: u64, wal: u64, at: i64) -> Option<Residue> {
    Some(Residue { live: 0, db, wal, at: UnixMs(at) })
}

/// What an agent says: nothing yet, no files, or a place and its count.
enum Says {
    Nothing,
    NoFiles,
    Files(&'static str, Option<Residue>),
}

#[test]
fn every_member_counts_once_and_whoever_has_not_counted_is_named() {
    use Says::*;
    let (n1, n2): (AgentName, AgentName) = ("n1".parse().unwrap(), "n2".parse().unwrap());
    let rows = [
        ("nobody spoke", [Nothing, Nothing], None, None, 0, vec![&n1, &n2], vec![]),
        (
            "two members",
            [Files("a", residue(1, 2, 9)), Files("b", residue(10, 20, 7))],
            residue(5, 5, 99),
            residue(11, 22, 7),
            2,
            vec![],
            vec![],
        ),
        (
            "two agents of one member: the newer count",
            [Files("a", residue(1, 2, 9)), Files("a", residue(0, 0, 10))],
            None,
            residue(0, 0, 10),
            1,
            vec![],
            vec![],
        ),
        (
            "two agents of one member, one has not counted",
            [Files("a", residue(1, 2, 9)), Files("a", None)],
            None,
            residue(1, 2, 9),
            1,
            vec![],
            vec![],
        ),
        (
            "one member, and a newer count of the cluster: a scrub",
            [Files("a", residue(1, 2, 9)), NoFiles],
            residue(0, 0, 10),
            residue(0, 0, 10),
            1,
            vec![],
            vec![&n2],
        ),
        (
            "one has not counted yet",
            [Files("a", residue(1, 2, 9)), Files("b", None)],
            residue(1, 2, 8),
            residue(1, 2, 9),
            1,
            vec![&n2],
            vec![],
        ),
        ("no agent has files", [NoFiles, NoFiles], None, None, 0, vec![], vec![&n1, &n2]),
    ];
    for (name, says, of_cluster, sum, members, not_counted, without) in rows {
        let mut seen = BTreeMap::new();
        let mut servers = BTreeMap::new();
        for (agent, says) in [&n1, &n2].into_iter().zip(says) {
            servers.insert(agent.clone(), Target { stage: Stage::Only, since: UnixMs(0) });
            let files = match says {
                Nothing => continue,
                NoFiles => None,
                Files(place, residue) => Some(EtcdFiles { place: place.to_owned(), residue }),
            };
            seen.insert(
                agent.clone(),
                Seen { observation: observation(agent, files), at: UnixMs(0) },
            );
        }
        let cluster = Cluster {
            servers,
            residue: of_cluster,
            ..Cluster::new("aaaaaaaabbbbbbbbcccc".parse().unwrap(), "c".to_owned(), UnixMs(0))
        };
        let left = left(&cluster, &seen);
        assert_eq!((left.sum, left.members), (sum, members), "{name}");
        assert_eq!(left.not_counted.iter().collect::<Vec<_>>(), not_counted, "{name}");
        assert_eq!(left.without.iter().collect::<Vec<_>>(), without, "{name}");
    }
}

fn observation(agent: &AgentName, files: Option<EtcdFiles>) -> Observation {
    Observation {
        stage_on_disk: Stage::Only,
        stage_loaded: Some(Stage::Only),
        ready: true,
        files,
        ..Observation::nothing(agent.clone())
    }
}
