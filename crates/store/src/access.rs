//! Access policies and access groups, and the epoch that says when any of it changed.

use crate::keys::{id, opt_id, root};
use crate::{StoreError, Tx, meta};
use claviger_domain::access::Scope;
use claviger_domain::id::{ClusterId, GroupId, PolicyId, UnixMs};
use claviger_domain::key::RootKey;
use claviger_domain::policy::{Policy, Role, Subject, Target};
use rusqlite::{OptionalExtension, Row, params};

/// Where the epoch is kept.
const EPOCH: &str = "access-epoch";

/// Says that who may do what is not as it was: every writer of a table of this subject calls it.
/// [`crate::Store::access_epoch`] tells it once the transaction is durable.
pub fn changed(tx: &Tx<'_>) -> Result<(), StoreError> {
    if tx.access_epoch().is_some() {
        return Ok(());
    }
    let next = epoch(tx)? + 1;
    meta::put(tx, EPOCH, next.to_string().as_bytes())?;
    tx.set_access_epoch(next);
    Ok(())
}

/// The epoch as of this view: rises whenever a principal, an API key, a group or a policy changes.
pub fn epoch(tx: &Tx<'_>) -> Result<u64, StoreError> {
    let Some(bytes) = meta::get(tx, EPOCH)? else { return Ok(0) };
    let text = std::str::from_utf8(&bytes).ok();
    let damaged = || StoreError::Damaged("the epoch of access".to_owned());
    text.and_then(|text| text.parse().ok()).ok_or_else(damaged)
}

/// Who made something, who changed it last, and how often it was changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stamp {
    /// Starts at 1, rises with each change; what `If-Match` is held against.
    pub version: u64,
    /// When it was made.
    pub created: UnixMs,
    /// By whom; empty if it was there before that was noted.
    pub created_by: String,
    /// When it was changed last.
    pub updated: UnixMs,
    /// By whom.
    pub updated_by: String,
}

impl Stamp {
    /// Of something that `by` makes.
    pub fn new(by: &str, now: UnixMs) -> Stamp {
        let (created_by, updated_by) = (by.to_owned(), by.to_owned());
        Stamp { version: 1, created: now, created_by, updated: now, updated_by }
    }

    /// Of the same thing once `by` has changed it.
    pub fn next(&self, by: &str, now: UnixMs) -> Stamp {
        let version = self.version + 1;
        Stamp { version, updated: now, updated_by: by.to_owned(), ..self.clone() }
    }

    fn read(row: &Row<'_>, at: usize) -> Result<Stamp, rusqlite::Error> {
        Ok(Stamp {
            version: row.get::<_, i64>(at)? as u64,
            created: UnixMs(row.get(at + 1)?),
            created_by: row.get(at + 2)?,
            updated: UnixMs(row.get(at + 3)?),
            updated_by: row.get(at + 4)?,
        })
    }
}

/// A policy as it is stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stored {
    /// What it says.
    pub policy: Policy,
    /// Who made it.
    pub stamp: Stamp,
}

const COLUMNS: &str = "id, subject_kind, subject, roles, service, instance, ring, key, cluster, \
                       version, created, created_by, updated, updated_by";

/// Adds a policy.
pub fn add(tx: &Tx<'_>, stored: &Stored) -> Result<(), StoreError> {
    let sql = format!(
        "INSERT INTO access_policies ({COLUMNS})
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14)"
    );
    write(tx, &sql, stored)
}

/// Changes a policy; whether there was one.
pub fn replace(tx: &Tx<'_>, stored: &Stored) -> Result<bool, StoreError> {
    let there = remove(tx, stored.policy.id())?;
    if there {
        add(tx, stored)?;
    }
    Ok(there)
}

fn write(tx: &Tx<'_>, sql: &str, Stored { policy, stamp }: &Stored) -> Result<(), StoreError> {
    let (kind, subject) = subject_columns(policy.subject());
    let roles: Vec<&str> = policy.roles().iter().map(|role| role.name()).collect();
    let (mut instance, mut ring, mut key, mut cluster) = (None, None, None, None);
    let service = match policy.target() {
        Target::Account => None,
        Target::Services => Some("services"),
        Target::Keys(scope) => {
            match scope {
                Scope::Everywhere => {}
                Scope::Instance(own) => instance = Some(own.to_string()),
                Scope::Ring(own, name) => {
                    (instance, ring) = (Some(own.to_string()), Some(name.clone()));
                }
                Scope::Key(root) => {
                    (instance, key) = (Some(root.instance.to_string()), Some(root.key.to_string()));
                }
            }
            Some("kms")
        }
        Target::Clusters(own) => {
            cluster = own.as_ref().map(ToString::to_string);
            Some("containers-kubernetes")
        }
    };
    tx.prepare_cached(sql)?.execute(params![
        policy.id().to_string(),
        kind,
        subject,
        roles.join(" "),
        service,
        instance,
        ring,
        key,
        cluster,
        stamp.version as i64,
        stamp.created.0,
        stamp.created_by,
        stamp.updated.0,
        stamp.updated_by,
    ])?;
    changed(tx)
}

fn subject_columns(subject: &Subject) -> (&'static str, String) {
    match subject {
        Subject::Principal(iam_id) => ("principal", iam_id.clone()),
        Subject::Group(group) => ("group", group.to_string()),
        Subject::Clusters(None) => ("clusters", String::new()),
        Subject::Clusters(Some(cluster)) => ("clusters", cluster.to_string()),
    }
}

/// The policy with this id.
pub fn get(tx: &Tx<'_>, policy: PolicyId) -> Result<Option<Stored>, StoreError> {
    let sql = format!("SELECT {COLUMNS} FROM access_policies WHERE id = ?1");
    let mut query = tx.prepare_cached(&sql)?;
    let mut rows = query.query([policy.to_string()])?;
    rows.next()?.map(read).transpose()
}

/// Every policy, oldest first. Bound: as many as the server lets be made.
pub fn all(tx: &Tx<'_>) -> Result<Vec<Stored>, StoreError> {
    let sql = format!("SELECT {COLUMNS} FROM access_policies ORDER BY created, id");
    let mut query = tx.prepare_cached(&sql)?;
    collect(query.query([])?)
}

/// The policies about one subject itself, oldest first.
pub fn about(tx: &Tx<'_>, subject: &Subject) -> Result<Vec<Stored>, StoreError> {
    let sql = format!(
        "SELECT {COLUMNS} FROM access_policies WHERE subject_kind = ?1 AND subject = ?2
         ORDER BY created, id"
    );
    let (kind, subject) = subject_columns(subject);
    let mut query = tx.prepare_cached(&sql)?;
    collect(query.query(params![kind, subject])?)
}

/// The policies that count for a person or a service ID: its own and those of its groups.
pub fn of_principal(tx: &Tx<'_>, iam_id: &str) -> Result<Vec<Stored>, StoreError> {
    let sql = format!(
        "SELECT {COLUMNS} FROM access_policies
         WHERE (subject_kind = 'principal' AND subject = ?1)
            OR (subject_kind = 'group' AND subject IN
                (SELECT access_group FROM access_group_members WHERE iam_id = ?1))
         ORDER BY created, id"
    );
    let mut query = tx.prepare_cached(&sql)?;
    collect(query.query([iam_id])?)
}

/// The authorizations that count for a cluster.
pub fn of_cluster(tx: &Tx<'_>, cluster: &ClusterId) -> Result<Vec<Stored>, StoreError> {
    let mut found = about(tx, &Subject::Clusters(Some(cluster.clone())))?;
    found.extend(about(tx, &Subject::Clusters(None))?);
    Ok(found)
}

/// Number of policies.
pub fn count(tx: &Tx<'_>) -> Result<u64, StoreError> {
    let mut query = tx.prepare_cached("SELECT count(*) FROM access_policies")?;
    Ok(query.query_row([], |row| row.get::<_, i64>(0))? as u64)
}

/// Removes a policy; whether there was one.
pub fn remove(tx: &Tx<'_>, policy: PolicyId) -> Result<bool, StoreError> {
    let sql = "DELETE FROM access_policies WHERE id = ?1";
    let gone = tx.prepare_cached(sql)?.execute([policy.to_string()])? > 0;
    changed(tx)?;
    Ok(gone)
}

/// Removes every policy about a subject itself.
pub fn remove_about(tx: &Tx<'_>, subject: &Subject) -> Result<(), StoreError> {
    let (kind, subject) = subject_columns(subject);
    let sql = "DELETE FROM access_policies WHERE subject_kind = ?1 AND subject = ?2";
    tx.prepare_cached(sql)?.execute(params![kind, subject])?;
    changed(tx)
}

fn collect(mut rows: rusqlite::Rows<'_>) -> Result<Vec<Stored>, StoreError> {
    let mut out = Vec::new();
    while let Some(row) = rows.next()? {
        out.push(read(row)?);
    }
    Ok(out)
}

fn read(row: &Row<'_>) -> Result<Stored, StoreError> {
    let damaged = || StoreError::Damaged("an access policy".to_owned());
    let text = |at| row.get::<_, Option<String>>(at);
    let (kind, subject): (String, String) = (row.get(1)?, row.get(2)?);
    let subject = match kind.as_str() {
        "principal" => Subject::Principal(subject),
        "group" => Subject::Group(subject.parse().map_err(|_| damaged())?),
        "clusters" if subject.is_empty() => Subject::Clusters(None),
        "clusters" => Subject::Clusters(Some(id(&subject)?)),
        _ => return Err(damaged()),
    };
    let roles: String = row.get(3)?;
    let roles: Option<Vec<Role>> = roles.split(' ').map(Role::named).collect();
    let target = match (text(4)?.as_deref(), text(5)?, text(6)?, text(7)?) {
        (None, None, None, None) => Target::Account,
        (Some("services"), None, None, None) => Target::Services,
        (Some("kms"), None, None, None) => Target::Keys(Scope::Everywhere),
        (Some("kms"), Some(instance), None, None) => Target::Keys(Scope::Instance(id(&instance)?)),
        (Some("kms"), Some(instance), Some(ring), None) => {
            Target::Keys(Scope::Ring(id(&instance)?, ring))
        }
        (Some("kms"), Some(instance), None, Some(key)) => {
            Target::Keys(Scope::Key(root(&instance, &key)?))
        }
        (Some("containers-kubernetes"), None, None, None) => Target::Clusters(opt_id(text(8)?)?),
        _ => return Err(damaged()),
    };
    let roles = roles.ok_or_else(damaged)?;
    let policy = Policy::new(id(&row.get::<_, String>(0)?)?, subject, roles, target)
        .map_err(|_| damaged())?;
    Ok(Stored { policy, stamp: Stamp::read(row, 9)? })
}

/// An access group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Group {
    /// Its identifier.
    pub id: GroupId,
    /// Its name; no other has it.
    pub name: String,
    /// For people; may be empty.
    pub description: String,
    /// Who made it.
    pub stamp: Stamp,
}

/// One who is in a group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// Who.
    pub iam_id: String,
    /// A service ID, not a person.
    pub service: bool,
    /// For people.
    pub name: String,
    /// May be empty.
    pub email: String,
    /// Since when.
    pub created: UnixMs,
    /// By whom.
    pub created_by: String,
}

const GROUP: &str =
    "g.id, g.name, g.description, g.version, g.created, g.created_by, g.updated, g.updated_by";

/// Adds a group. [`StoreError::is_taken`] if another has its name.
pub fn add_group(tx: &Tx<'_>, group: &Group) -> Result<(), StoreError> {
    let sql = "INSERT INTO access_groups
                   (id, name, description, version, created, created_by, updated, updated_by)
               VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)";
    tx.prepare_cached(sql)?.execute(params![
        group.id.to_string(),
        group.name,
        group.description,
        group.stamp.version as i64,
        group.stamp.created.0,
        group.stamp.created_by,
        group.stamp.updated.0,
        group.stamp.updated_by,
    ])?;
    changed(tx)
}

/// Changes name and description. [`StoreError::is_taken`] if another group has the name.
pub fn update_group(tx: &Tx<'_>, group: &Group) -> Result<(), StoreError> {
    let sql = "UPDATE access_groups
               SET name = ?2, description = ?3, version = ?4, updated = ?5, updated_by = ?6
               WHERE id = ?1";
    tx.prepare_cached(sql)?.execute(params![
        group.id.to_string(),
        group.name,
        group.description,
        group.stamp.version as i64,
        group.stamp.updated.0,
        group.stamp.updated_by,
    ])?;
    Ok(())
}

/// The group with this id.
pub fn group(tx: &Tx<'_>, group: GroupId) -> Result<Option<Group>, StoreError> {
    let sql = format!("SELECT {GROUP} FROM access_groups g WHERE g.id = ?1");
    let mut query = tx.prepare_cached(&sql)?;
    let mut rows = query.query([group.to_string()])?;
    rows.next()?.map(read_group).transpose()
}

/// Every group, by name; or those that `member` is in. Bound: as many as the server lets be made.
pub fn groups(tx: &Tx<'_>, member: Option<&str>) -> Result<Vec<Group>, StoreError> {
    let sql = format!(
        "SELECT {GROUP} FROM access_groups g
         WHERE ?1 IS NULL OR EXISTS (SELECT 1 FROM access_group_members m
                                     WHERE m.access_group = g.id AND m.iam_id = ?1)
         ORDER BY g.name"
    );
    let mut query = tx.prepare_cached(&sql)?;
    let mut rows = query.query([member])?;
    let mut out = Vec::new();
    while let Some(row) = rows.next()? {
        out.push(read_group(row)?);
    }
    Ok(out)
}

/// Removes a group with its members and the policies about it; whether there was one.
pub fn remove_group(tx: &Tx<'_>, group: GroupId) -> Result<bool, StoreError> {
    remove_about(tx, &Subject::Group(group))?;
    let text = group.to_string();
    tx.execute("DELETE FROM access_group_members WHERE access_group = ?1", [&text])?;
    Ok(tx.execute("DELETE FROM access_groups WHERE id = ?1", [&text])? > 0)
}

/// Who is in a group, by IAM id. Bound: as many as the server lets be added.
pub fn members(tx: &Tx<'_>, group: GroupId) -> Result<Vec<Member>, StoreError> {
    let sql = "SELECT m.iam_id, p.kind, p.name, p.email, m.created, m.created_by
               FROM access_group_members m JOIN principals p ON p.iam_id = m.iam_id
               WHERE m.access_group = ?1 ORDER BY m.iam_id";
    let mut query = tx.prepare_cached(sql)?;
    let rows = query.query_map([group.to_string()], |row| {
        Ok(Member {
            iam_id: row.get(0)?,
            service: row.get::<_, String>(1)? == "service",
            name: row.get(2)?,
            email: row.get(3)?,
            created: UnixMs(row.get(4)?),
            created_by: row.get(5)?,
        })
    })?;
    Ok(rows.collect::<Result<_, _>>()?)
}

/// Puts a principal into a group; whether it was not there.
pub fn add_member(
    tx: &Tx<'_>,
    group: GroupId,
    iam_id: &str,
    by: &str,
    now: UnixMs,
) -> Result<bool, StoreError> {
    let sql = "INSERT INTO access_group_members (access_group, iam_id, created, created_by)
               VALUES (?1, ?2, ?3, ?4) ON CONFLICT DO NOTHING";
    let added = tx.prepare_cached(sql)?.execute(params![group.to_string(), iam_id, now.0, by])? > 0;
    changed(tx)?;
    Ok(added)
}

/// Takes a principal out of a group; whether it was there.
pub fn remove_member(tx: &Tx<'_>, group: GroupId, iam_id: &str) -> Result<bool, StoreError> {
    let sql = "DELETE FROM access_group_members WHERE access_group = ?1 AND iam_id = ?2";
    let gone = tx.prepare_cached(sql)?.execute(params![group.to_string(), iam_id])? > 0;
    changed(tx)?;
    Ok(gone)
}

/// Whether somebody who can log in may administer access: without, nobody ever could again.
pub fn has_administrator(tx: &Tx<'_>) -> Result<bool, StoreError> {
    // Of the policies, which are fewer than the API keys.
    let sql = "WITH administrators AS (
                   SELECT subject_kind AS kind, subject FROM access_policies
                   WHERE service IS NULL AND ' ' || roles || ' ' LIKE '% Administrator %')
               SELECT 1 FROM administrators a JOIN api_keys k ON k.iam_id = a.subject
               WHERE a.kind = 'principal'
               UNION ALL
               SELECT 1 FROM administrators a
               JOIN access_group_members m ON m.access_group = a.subject
               JOIN api_keys k ON k.iam_id = m.iam_id
               WHERE a.kind = 'group'
               LIMIT 1";
    Ok(tx.prepare_cached(sql)?.query_row([], |_| Ok(())).optional()?.is_some())
}

fn read_group(row: &Row<'_>) -> Result<Group, StoreError> {
    Ok(Group {
        id: id(&row.get::<_, String>(0)?)?,
        name: row.get(1)?,
        description: row.get(2)?,
        stamp: Stamp::read(row, 3)?,
    })
}

/// The authorization that lets `cluster` use exactly `root`, if there is one.
pub fn authorization(
    tx: &Tx<'_>,
    cluster: &ClusterId,
    root: &RootKey,
) -> Result<Option<Stored>, StoreError> {
    let found = about(tx, &Subject::Clusters(Some(cluster.clone())))?;
    let exact = |stored: &Stored| *stored.policy.target() == Target::Keys(Scope::Key(*root));
    Ok(found.into_iter().find(exact))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Store, iam};
    use claviger_domain::access::{PlatformRole, ServiceRole};
    use claviger_domain::id::{InstanceId, KeyId};
    use uuid::Uuid;

    const READER: Role = Role::Service(ServiceRole::Reader);
    const VIEWER: Role = Role::Platform(PlatformRole::Viewer);

    fn store() -> (Store, InstanceId, tempfile::TempDir) {
        let dir = tempfile::tempdir().expect("a directory");
        let store = Store::open(&dir.path().join("claviger.db")).expect("opens");
        let (id, group) = (InstanceId::random(), Uuid::new_v4());
        let (name, region) = ("i".to_owned(), "local".to_owned());
        let instance = iam::Instance { id, name, region, created: UnixMs(0) };
        let made = store.tx("t", |tx| {
            iam::add_resource_group(tx, group, "g", UnixMs(0))?;
            iam::add_instance(tx, &instance, group)
        });
        made.expect("makes an instance");
        (store, id, dir)
    }

    #[test]
    fn policies_are_read_as_they_were_added() {
        let (store, instance, _dir) = store();
        let principal = Subject::Principal("IBMid-1".to_owned());
        let cluster = ClusterId::random();
        let root = RootKey { instance, key: KeyId::random() };
        let on = |scope| Target::Keys(scope);
        let rows = [
            (principal.clone(), vec![READER, VIEWER], Target::Account),
            (principal.clone(), vec![READER, VIEWER], Target::Services),
            (principal.clone(), vec![VIEWER], Target::Clusters(None)),
            (principal.clone(), vec![VIEWER], Target::Clusters(Some(cluster.clone()))),
            (principal.clone(), vec![READER], on(Scope::Everywhere)),
            (principal.clone(), vec![READER, VIEWER], on(Scope::Instance(instance))),
            (principal.clone(), vec![READER], on(Scope::Ring(instance, "payments".to_owned()))),
            (principal, vec![READER], on(Scope::Key(root))),
            (Subject::Group(GroupId::random()), vec![READER], Target::Account),
            (Subject::Clusters(None), vec![READER], on(Scope::Instance(instance))),
            (Subject::Clusters(Some(cluster.clone())), vec![READER], on(Scope::Key(root))),
        ];
        let all: Vec<Stored> = rows
            .into_iter()
            .enumerate()
            .map(|(at, (subject, roles, target))| Stored {
                policy: Policy::new(PolicyId::random(), subject, roles, target).expect("sense"),
                stamp: Stamp::new("IBMid-2", UnixMs(at as i64)),
            })
            .collect();
        store.tx("t", |tx| all.iter().try_for_each(|stored| add(tx, stored))).expect("adds");
        let read = |tx: &Tx<'_>| Ok::<_, StoreError>((super::all(tx)?, of_cluster(tx, &cluster)?));
        let (found, of_cluster) = store.read("t", read).expect("reads");
        assert_eq!(found, all);
        assert_eq!(of_cluster, [all[10].clone(), all[9].clone()]);
        // What would be half a target is none.
        for wrong in ["NULL, 'r', NULL, NULL", "?1, 'r', 'k', NULL", "?1, NULL, NULL, 'c'"] {
            let sql = format!(
                "INSERT INTO access_policies (id, subject_kind, subject, roles, service, instance,
                     ring, key, cluster, version, created, created_by, updated, updated_by)
                 VALUES ('x', 'principal', 'p', 'Reader', 'kms', {wrong}, 1, 0, '', 0, '')"
            );
            let refused = store.tx("t", |tx| {
                let guid = instance.to_string();
                let params: &[&dyn rusqlite::ToSql] =
                    if wrong.contains('?') { &[&guid] } else { &[] };
                Ok::<_, StoreError>(tx.execute(&sql, params)?)
            });
            assert!(refused.is_err(), "{wrong}");
        }
    }

    #[test]
    fn the_epoch_is_told_once_a_change_is_durable_and_only_then() {
        let (store, _, dir) = store();
        let before = store.access_epoch();
        let failed = store.tx("t", |tx| {
            changed(tx)?;
            Err::<(), _>(StoreError::Damaged("on purpose".to_owned()))
        });
        assert!(failed.is_err());
        assert_eq!(store.access_epoch(), before);
        store.tx("t", |tx| changed(tx).and(changed(tx))).expect("changes");
        assert_eq!(store.access_epoch(), before + 1, "once for a transaction");
        assert_eq!(store.read("t", epoch).expect("reads"), before + 1);
        store.tx("t", |tx| meta::put(tx, "other", b"")).expect("writes");
        assert_eq!(store.access_epoch(), before + 1);
        drop(store);
        let again = Store::open(&dir.path().join("claviger.db")).expect("opens");
        assert_eq!(again.access_epoch(), before + 1);
    }
}
