//! How agents come and go, what they said last, and which of them holds the lease.

use super::{json, number, parsed, text, unsigned};
use claviger_domain::cluster::{Observation, Seen};
use claviger_domain::id::{AgentName, ClusterId, UnixMs};
use rusqlite::{Connection, OptionalExtension, Result, Row, params};
use std::collections::BTreeMap;

/// Adds a join token by its keyed hash, and forgets those of the cluster that ended before
/// `forget_before`.
pub fn insert_join_token(
    db: &Connection,
    tag: &[u8; 32],
    cluster: &ClusterId,
    by: &str,
    expires: UnixMs,
    forget_before: UnixMs,
) -> Result<()> {
    db.execute(
        "DELETE FROM join_tokens WHERE cluster = ?1 AND expires_ms < ?2",
        params![cluster.as_str(), forget_before.0],
    )?;
    db.execute(
        "INSERT INTO join_tokens (tag, cluster, made_by, expires_ms) VALUES (?1, ?2, ?3, ?4)",
        params![tag.as_slice(), cluster.as_str(), by, expires.0],
    )?;
    Ok(())
}

/// How many unused tokens the cluster has that are still good at `now`.
pub fn open_join_tokens(db: &Connection, cluster: &ClusterId, now: UnixMs) -> Result<usize> {
    let n: i64 = db.query_row(
        "SELECT count(*) FROM join_tokens WHERE cluster = ?1 AND expires_ms > ?2 AND used_ms IS NULL",
        params![cluster.as_str(), now.0],
        |row| row.get(0),
    )?;
    Ok(usize::try_from(n).unwrap_or(usize::MAX))
}

/// What became of a join token that somebody showed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TokenUse {
    /// It was good and is used up now.
    Good(ClusterId),
    /// Nobody made it, or it was forgotten.
    Unknown,
    /// Its hour is over.
    Expired,
    /// This agent joined with it and this very key before, within the token's time.
    Again {
        /// The cluster.
        cluster: ClusterId,
        /// When it joined.
        joined: UnixMs,
    },
    /// An agent joined with it before.
    Used {
        /// Which.
        by: String,
    },
}

/// Uses a join token up, for an agent whose public key hashes to `key`. It counts as used at the
/// last time that this agent showed it.
pub fn use_join_token(
    db: &Connection,
    tag: &[u8; 32],
    agent: &AgentName,
    key: &[u8; 32],
    now: UnixMs,
) -> Result<TokenUse> {
    struct Found {
        cluster: ClusterId,
        expires: i64,
        used: Option<(String, Option<Vec<u8>>, i64)>,
    }
    let sql = "SELECT cluster, expires_ms, used_by, used_key, used_ms FROM join_tokens
               WHERE tag = ?1";
    let read = |row: &Row<'_>| {
        let used_by: Option<String> = row.get(2)?;
        let used = match used_by {
            Some(by) => Some((by, row.get(3)?, row.get(4)?)),
            None => None,
        };
        Ok(Found { cluster: parsed(row, 0)?, expires: row.get(1)?, used })
    };
    let Some(found) = db.query_row(sql, [tag.as_slice()], read).optional()? else {
        return Ok(TokenUse::Unknown);
    };
    let in_time = found.expires > now.0;
    let answer = match found.used {
        None if !in_time => return Ok(TokenUse::Expired),
        None => TokenUse::Good(found.cluster),
        Some((by, used_key, used_ms))
            if in_time && by == agent.as_str() && used_key.as_deref() == Some(key.as_slice()) =>
        {
            TokenUse::Again { cluster: found.cluster, joined: UnixMs(used_ms) }
        }
        Some((by, ..)) => return Ok(TokenUse::Used { by }),
    };
    db.execute(
        "UPDATE join_tokens SET used_ms = ?2, used_by = ?3, used_key = ?4 WHERE tag = ?1",
        params![tag.as_slice(), now.0, agent.as_str(), key.as_slice()],
    )?;
    Ok(answer)
}

/// An agent and the certificate that counts for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AgentRow {
    /// Its name.
    pub name: AgentName,
    /// SHA-256 of its certificate, hexadecimal.
    pub fingerprint: String,
    /// That of the certificate before the last renewal.
    pub previous: Option<String>,
    /// When its certificate ends.
    pub not_after: UnixMs,
    /// When it joined last.
    pub joined: UnixMs,
    /// When it last proved who it is.
    pub last_contact: UnixMs,
}

fn agent_row(row: &Row<'_>) -> Result<AgentRow> {
    Ok(AgentRow {
        name: parsed(row, 0)?,
        fingerprint: row.get(1)?,
        previous: row.get(2)?,
        not_after: UnixMs(row.get(3)?),
        joined: UnixMs(row.get(4)?),
        last_contact: UnixMs(row.get(5)?),
    })
}

const AGENT_COLUMNS: &str = "name, fingerprint, previous, not_after_ms, joined_ms, last_contact_ms";

/// The agents of a cluster, by name.
pub fn agents(db: &Connection, cluster: &ClusterId) -> Result<Vec<AgentRow>> {
    db.prepare_cached(&format!(
        "SELECT {AGENT_COLUMNS} FROM agents WHERE cluster = ?1 ORDER BY name"
    ))?
    .query_map([cluster.as_str()], agent_row)?
    .collect()
}

/// One agent.
pub fn agent(db: &Connection, cluster: &ClusterId, name: &AgentName) -> Result<Option<AgentRow>> {
    db.prepare_cached(&format!(
        "SELECT {AGENT_COLUMNS} FROM agents WHERE cluster = ?1 AND name = ?2"
    ))?
    .query_row([cluster.as_str(), name.as_str()], agent_row)
    .optional()
}

/// An agent joined: from now on this certificate alone counts for its name, and what was said under
/// it before is forgotten: that was another machine, or the same one before it was reinstalled.
pub fn agent_joined(
    db: &Connection,
    cluster: &ClusterId,
    name: &AgentName,
    fingerprint: &str,
    not_after: UnixMs,
    now: UnixMs,
) -> Result<()> {
    db.execute(
        "INSERT INTO agents (cluster, name, fingerprint, not_after_ms, joined_ms, last_contact_ms)
         VALUES (?1, ?2, ?3, ?4, ?5, ?5)
         ON CONFLICT (cluster, name) DO UPDATE SET fingerprint = ?3, previous = NULL,
             not_after_ms = ?4, joined_ms = ?5, last_contact_ms = ?5",
        params![cluster.as_str(), name.as_str(), fingerprint, not_after.0, now.0],
    )?;
    let who = params![cluster.as_str(), name.as_str()];
    db.execute("DELETE FROM observations WHERE cluster = ?1 AND agent = ?2", who)?;
    Ok(())
}

/// An agent renewed its certificate, showing `shown`. Both count: the answer may be lost.
pub fn agent_renewed(
    db: &Connection,
    cluster: &ClusterId,
    name: &AgentName,
    shown: &str,
    fingerprint: &str,
    not_after: UnixMs,
) -> Result<()> {
    db.execute(
        "UPDATE agents SET previous = ?3, fingerprint = ?4, not_after_ms = ?5
         WHERE cluster = ?1 AND name = ?2",
        params![cluster.as_str(), name.as_str(), shown, fingerprint, not_after.0],
    )?;
    Ok(())
}

/// An agent left for good: no certificate counts for its name, and its words are forgotten. The
/// lease stays, so that its fencing token never falls.
pub fn agent_left(db: &Connection, cluster: &ClusterId, name: &AgentName) -> Result<()> {
    let who = params![cluster.as_str(), name.as_str()];
    db.execute("DELETE FROM agents WHERE cluster = ?1 AND name = ?2", who)?;
    db.execute("DELETE FROM observations WHERE cluster = ?1 AND agent = ?2", who)?;
    db.execute("DELETE FROM event_acks WHERE cluster = ?1 AND agent = ?2", who)?;
    Ok(())
}

/// Notes that an agent proved who it is.
pub fn agent_contact(
    db: &Connection,
    cluster: &ClusterId,
    name: &AgentName,
    now: UnixMs,
) -> Result<()> {
    db.prepare_cached("UPDATE agents SET last_contact_ms = ?3 WHERE cluster = ?1 AND name = ?2")?
        .execute(params![cluster.as_str(), name.as_str(), now.0])?;
    Ok(())
}

/// Stores an agent's newest observation.
pub fn observe(db: &Connection, cluster: &ClusterId, seen: &Seen) -> Result<()> {
    db.prepare_cached(
        "INSERT INTO observations (cluster, agent, at_ms, doc) VALUES (?1, ?2, ?3, ?4)
         ON CONFLICT (cluster, agent) DO UPDATE SET at_ms = ?3, doc = ?4",
    )?
    .execute(params![
        cluster.as_str(),
        seen.observation.agent.as_str(),
        seen.at.0,
        text(&seen.observation)
    ])?;
    Ok(())
}

/// The newest observation of one agent.
pub fn seen_of(db: &Connection, cluster: &ClusterId, agent: &AgentName) -> Result<Option<Seen>> {
    db.prepare_cached("SELECT doc, at_ms FROM observations WHERE cluster = ?1 AND agent = ?2")?
        .query_row([cluster.as_str(), agent.as_str()], |row| {
            Ok(Seen { observation: json(row, 0)?, at: UnixMs(row.get(1)?) })
        })
        .optional()
}

/// The newest observation of every agent of a cluster.
pub fn seen(db: &Connection, cluster: &ClusterId) -> Result<BTreeMap<AgentName, Seen>> {
    db.prepare_cached("SELECT doc, at_ms FROM observations WHERE cluster = ?1")?
        .query_map([cluster.as_str()], |row| {
            let observation: Observation = json(row, 0)?;
            Ok((observation.agent.clone(), Seen { observation, at: UnixMs(row.get(1)?) }))
        })?
        .collect()
}

/// The lease of a cluster, held or ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeaseRow {
    /// Who holds it, or held it last.
    pub agent: AgentName,
    /// Rises with each new holder.
    pub fencing: u64,
    /// Until when.
    pub until: UnixMs,
}

/// The lease of a cluster; none before anybody ever held it.
pub fn lease(db: &Connection, cluster: &ClusterId) -> Result<Option<LeaseRow>> {
    db.prepare_cached("SELECT agent, fencing, until_ms FROM leases WHERE cluster = ?1")?
        .query_row([cluster.as_str()], |row| {
            Ok(LeaseRow {
                agent: parsed(row, 0)?,
                fencing: unsigned(row.get(1)?),
                until: UnixMs(row.get(2)?),
            })
        })
        .optional()
}

/// Stores the lease of a cluster.
pub fn set_lease(db: &Connection, cluster: &ClusterId, lease: &LeaseRow) -> Result<()> {
    db.prepare_cached(
        "INSERT INTO leases (cluster, agent, fencing, until_ms) VALUES (?1, ?2, ?3, ?4)
         ON CONFLICT (cluster) DO UPDATE SET agent = ?2, fencing = ?3, until_ms = ?4",
    )?
    .execute(params![
        cluster.as_str(),
        lease.agent.as_str(),
        number(lease.fencing),
        lease.until.0
    ])?;
    Ok(())
}
