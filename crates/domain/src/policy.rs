//! Access policies: who has which roles where, and what that comes to for one caller.
//!
//! Allow-only: what any policy allows is allowed, and nothing else. A policy says what it says
//! by its type: there is no target that means nothing.

use crate::access::{
    KeyOperation, On, PlatformRole, Scope, ServiceRole, role_allows, services_only,
};
use crate::id::{ClusterId, GroupId, InstanceId, PolicyId};
use thiserror::Error;

/// Whom a policy is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Subject {
    /// A person or a service ID, by IAM id.
    Principal(String),
    /// Everyone in an access group.
    Group(GroupId),
    /// A cluster, or all of them: the policy is an authorization between services.
    Clusters(Option<ClusterId>),
}

/// A role of either kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Role {
    /// On instances, clusters and access itself.
    Platform(PlatformRole),
    /// On keys.
    Service(ServiceRole),
}

impl Role {
    /// Every role.
    pub fn all() -> impl Iterator<Item = Role> {
        let platform = PlatformRole::ALL.into_iter().map(Role::Platform);
        platform.chain(ServiceRole::ALL.into_iter().map(Role::Service))
    }

    /// Its name; no two roles have the same.
    pub fn name(self) -> &'static str {
        match self {
            Role::Platform(PlatformRole::Viewer) => "Viewer",
            Role::Platform(PlatformRole::Operator) => "Operator",
            Role::Platform(PlatformRole::Editor) => "Editor",
            Role::Platform(PlatformRole::Administrator) => "Administrator",
            Role::Service(ServiceRole::Reader) => "Reader",
            Role::Service(ServiceRole::ReaderPlus) => "ReaderPlus",
            Role::Service(ServiceRole::Writer) => "Writer",
            Role::Service(ServiceRole::Manager) => "Manager",
            Role::Service(ServiceRole::KeyPurge) => "KeyPurge",
            Role::Service(ServiceRole::KmipAdapterManager) => "KmipAdapterManager",
        }
    }

    /// The role of this name.
    pub fn named(name: &str) -> Option<Role> {
        Role::all().find(|role| role.name() == name)
    }
}

/// Where the roles of a policy count.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// Everywhere: both services, and access itself.
    Account,
    /// Both services, and not access itself.
    Services,
    /// The key service, or a part of it.
    Keys(Scope),
    /// One cluster, or all of them.
    Clusters(Option<ClusterId>),
}

/// Why a policy would mean nothing, or more than it seems.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum Senseless {
    /// No role.
    #[error("a policy must have at least one role")]
    NoRole,
    /// The same role twice.
    #[error("a policy must not have a role twice")]
    Twice,
    /// Service roles are about keys.
    #[error("clusters have platform roles only; service roles are for the service kms")]
    NoKeys,
    /// Platform roles are about whole instances.
    #[error("a key ring or a key has service roles only; platform roles are for a whole instance")]
    NotWhole,
    /// An authorization lets clusters use keys.
    #[error("an authorization lets clusters use keys: role Reader, on the service kms")]
    Authorization,
}

/// Who has which roles where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Policy {
    id: PolicyId,
    subject: Subject,
    roles: Vec<Role>,
    target: Target,
}

impl Policy {
    /// A policy that means something.
    pub fn new(
        id: PolicyId,
        subject: Subject,
        roles: Vec<Role>,
        target: Target,
    ) -> Result<Policy, Senseless> {
        let mut sorted = roles.clone();
        sorted.sort();
        sorted.dedup();
        if roles.is_empty() {
            return Err(Senseless::NoRole);
        }
        if sorted.len() != roles.len() {
            return Err(Senseless::Twice);
        }
        let platform = roles.iter().any(|role| matches!(role, Role::Platform(_)));
        let service = roles.iter().any(|role| matches!(role, Role::Service(_)));
        match (&subject, &target) {
            (Subject::Clusters(_), Target::Keys(_))
                if *roles == [Role::Service(ServiceRole::Reader)] => {}
            (Subject::Clusters(_), _) => return Err(Senseless::Authorization),
            (_, Target::Clusters(_)) if service => return Err(Senseless::NoKeys),
            (_, Target::Keys(Scope::Ring(..) | Scope::Key(_))) if platform => {
                return Err(Senseless::NotWhole);
            }
            _ => {}
        }
        Ok(Policy { id, subject, roles, target })
    }

    /// Its identifier.
    pub fn id(&self) -> PolicyId {
        self.id
    }

    /// Whom it is about.
    pub fn subject(&self) -> &Subject {
        &self.subject
    }

    /// What they may be.
    pub fn roles(&self) -> &[Role] {
        &self.roles
    }

    /// Where.
    pub fn target(&self) -> &Target {
        &self.target
    }

    /// Whether it lets a cluster use keys.
    pub fn is_authorization(&self) -> bool {
        matches!(self.subject, Subject::Clusters(_))
    }

    /// Where on keys it counts, if it has a service role.
    fn scope(&self) -> Option<Scope> {
        match &self.target {
            Target::Account | Target::Services => Some(Scope::Everywhere),
            Target::Keys(scope) => Some(scope.clone()),
            Target::Clusters(_) => None,
        }
    }
}

/// A set of operations: one bit each.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Operations(u64);

impl Operations {
    /// What these roles allow a person or a service.
    pub fn of(roles: &[Role], service: bool) -> Operations {
        let allowed = |operation: &KeyOperation| {
            let role = |role: &Role| match *role {
                Role::Service(role) => role_allows(role, *operation),
                Role::Platform(_) => false,
            };
            (service || !services_only(*operation)) && roles.iter().any(role)
        };
        let bits = KeyOperation::ALL.iter().copied().filter(allowed).map(bit);
        Operations(bits.fold(0, |all, bit| all | bit))
    }

    /// Whether `operation` is among them.
    pub fn has(self, operation: KeyOperation) -> bool {
        self.0 & bit(operation) != 0
    }

    /// Whether there are none.
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }
}

fn bit(operation: KeyOperation) -> u64 {
    1 << operation as u32
}

/// What a platform role is asked about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Site<'a> {
    /// Who may do what: principals, API keys, groups, policies.
    Access,
    /// All instances, the ones to come too.
    Instances,
    /// One instance of the key service.
    Instance(InstanceId),
    /// Any instance at all: to look which ones there are.
    SomeInstance,
    /// All clusters, the ones to come too.
    Clusters,
    /// One cluster.
    Cluster(&'a ClusterId),
    /// Any cluster at all.
    SomeCluster,
}

/// What one caller may do, compiled from the policies about him: looked at by each request, so
/// it holds one bitmask for each policy and nothing to parse.
#[derive(Debug, Clone, Default)]
pub struct Access {
    on_keys: Vec<OnKeys>,
    platform: Vec<Platform>,
}

#[derive(Debug, Clone)]
struct OnKeys {
    scope: Scope,
    operations: Operations,
    policy: PolicyId,
}

#[derive(Debug, Clone)]
struct Platform {
    target: Target,
    role: PlatformRole,
    policy: PolicyId,
}

impl Access {
    /// What these policies come to for a person or a service whom all of them are about.
    pub fn compile<'p>(policies: impl IntoIterator<Item = &'p Policy>, service: bool) -> Access {
        let mut access = Access::default();
        for policy in policies {
            let operations = Operations::of(&policy.roles, service);
            if let (Some(scope), false) = (policy.scope(), operations.is_empty()) {
                access.on_keys.push(OnKeys { scope, operations, policy: policy.id });
            }
            let highest = policy.roles.iter().filter_map(|role| match role {
                Role::Platform(role) => Some(*role),
                Role::Service(_) => None,
            });
            if let Some(role) = highest.max() {
                let (target, policy) = (policy.target.clone(), policy.id);
                access.platform.push(Platform { target, role, policy });
            }
        }
        access
    }

    /// The policy that allows `operation` on something of `instance`; none if it is not allowed.
    pub fn allows(
        &self,
        operation: KeyOperation,
        instance: InstanceId,
        on: On<'_>,
    ) -> Option<PolicyId> {
        self.on_keys
            .iter()
            .find(|rule| rule.operations.has(operation) && rule.scope.covers(instance, on))
            .map(|rule| rule.policy)
    }

    /// Whether `operation` is allowed on anything at all in `instance`.
    pub fn allows_somewhere(&self, operation: KeyOperation, instance: InstanceId) -> bool {
        self.on_keys
            .iter()
            .any(|rule| rule.operations.has(operation) && rule.scope.reaches(instance))
    }

    /// Whether any service role counts for anything in `instance`.
    pub fn reaches(&self, instance: InstanceId) -> bool {
        self.on_keys.iter().any(|rule| rule.scope.reaches(instance))
    }

    /// The policy that gives at least the platform role `least` on `site`; none if none does.
    pub fn platform(&self, least: PlatformRole, site: Site<'_>) -> Option<PolicyId> {
        self.platform
            .iter()
            .find(|rule| rule.role >= least && holds(&rule.target, site))
            .map(|rule| rule.policy)
    }
}

fn holds(target: &Target, site: Site<'_>) -> bool {
    match (target, site) {
        (Target::Account, _) => true,
        (Target::Services, site) => site != Site::Access,
        (Target::Keys(Scope::Everywhere | Scope::Instance(_)), Site::SomeInstance) => true,
        (Target::Keys(Scope::Everywhere), Site::Instances | Site::Instance(_)) => true,
        (Target::Keys(Scope::Instance(own)), Site::Instance(asked)) => *own == asked,
        (Target::Clusters(_), Site::SomeCluster) => true,
        (Target::Clusters(None), Site::Clusters | Site::Cluster(_)) => true,
        (Target::Clusters(Some(own)), Site::Cluster(asked)) => own == asked,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::KeyId;
    use crate::key::RootKey;

    fn policy(roles: &[Role], target: Target) -> Policy {
        let subject = Subject::Principal("IBMid-1".to_owned());
        Policy::new(PolicyId::random(), subject, roles.to_vec(), target)
            .expect("it means something")
    }

    const READER: Role = Role::Service(ServiceRole::Reader);
    const MANAGER: Role = Role::Service(ServiceRole::Manager);
    const EDITOR: Role = Role::Platform(PlatformRole::Editor);

    #[test]
    fn every_operation_has_a_bit_of_its_own_and_role_names_are_unique() {
        for (at, operation) in KeyOperation::ALL.iter().copied().enumerate() {
            assert_eq!(bit(operation), 1 << at, "{operation:?}");
        }
        let all: Vec<Role> = Role::all().collect();
        assert_eq!(all.len(), 10);
        for role in all {
            assert_eq!(Role::named(role.name()), Some(role));
        }
    }

    #[test]
    fn masks_say_what_the_table_of_roles_says() {
        for role in ServiceRole::ALL {
            for operation in KeyOperation::ALL.iter().copied() {
                let allowed = role_allows(role, operation);
                let mask = |service| Operations::of(&[Role::Service(role)], service).has(operation);
                assert_eq!(mask(true), allowed, "{role:?} {operation:?}");
                assert_eq!(mask(false), allowed && !services_only(operation));
            }
        }
    }

    #[test]
    fn the_union_of_policies_allows_and_says_which_one_did() {
        let (one, two, key) = (InstanceId::random(), InstanceId::random(), KeyId::random());
        let reads = policy(&[READER], Target::Keys(Scope::Instance(one)));
        let manages = policy(&[MANAGER], Target::Keys(Scope::Key(RootKey { instance: one, key })));
        let access = Access::compile([&reads, &manages], false);
        let (on, other) = (On::Key(key, "default"), On::Key(KeyId::random(), "default"));
        assert_eq!(access.allows(KeyOperation::Wrap, one, other), Some(reads.id()));
        assert_eq!(access.allows(KeyOperation::Delete, one, on), Some(manages.id()));
        assert_eq!(access.allows(KeyOperation::Delete, one, other), None);
        assert_eq!(access.allows(KeyOperation::Wrap, two, on), None);
        assert!(access.reaches(one) && !access.reaches(two));
        assert!(access.allows_somewhere(KeyOperation::Delete, one));
        assert!(!access.allows_somewhere(KeyOperation::Purge, one));
        assert!(Access::compile([], true).allows(KeyOperation::List, one, On::Instance).is_none());
    }

    #[test]
    fn platform_roles_count_on_what_their_policy_is_about() {
        let (one, two) = (InstanceId::random(), InstanceId::random());
        let (near, far) = (ClusterId::random(), ClusterId::random());
        let sites = [
            Site::Access,
            Site::Instances,
            Site::Instance(one),
            Site::Instance(two),
            Site::SomeInstance,
            Site::Clusters,
            Site::Cluster(&near),
            Site::Cluster(&far),
            Site::SomeCluster,
        ];
        for (target, cells) in [
            (Target::Account, "yyyyyyyyy"),
            (Target::Services, "nyyyyyyyy"),
            (Target::Keys(Scope::Everywhere), "nyyyynnnn"),
            (Target::Keys(Scope::Instance(one)), "nnynynnnn"),
            (Target::Clusters(None), "nnnnnyyyy"),
            (Target::Clusters(Some(near.clone())), "nnnnnnyny"),
        ] {
            let access = Access::compile([&policy(&[EDITOR], target.clone())], false);
            for (site, cell) in sites.into_iter().zip(cells.chars()) {
                let holds = access.platform(PlatformRole::Operator, site).is_some();
                assert_eq!(holds, cell == 'y', "{target:?} {site:?}");
                assert!(access.platform(PlatformRole::Administrator, site).is_none());
            }
        }
    }

    #[test]
    fn what_means_nothing_is_no_policy() {
        let root = RootKey { instance: InstanceId::random(), key: KeyId::random() };
        let person = Subject::Principal("IBMid-1".to_owned());
        let clusters = Subject::Clusters(None);
        let keys = Target::Keys(Scope::Key(root));
        for (subject, roles, target, want) in [
            (&person, vec![], Target::Account, Some(Senseless::NoRole)),
            (&person, vec![READER, READER], Target::Account, Some(Senseless::Twice)),
            (&person, vec![READER], Target::Clusters(None), Some(Senseless::NoKeys)),
            (&person, vec![EDITOR], keys.clone(), Some(Senseless::NotWhole)),
            (&person, vec![READER, EDITOR], Target::Account, None),
            (&clusters, vec![MANAGER], keys.clone(), Some(Senseless::Authorization)),
            (&clusters, vec![READER], Target::Account, Some(Senseless::Authorization)),
            (&clusters, vec![READER], keys, None),
        ] {
            let made = Policy::new(PolicyId::random(), subject.clone(), roles.clone(), target);
            assert_eq!(made.err(), want, "{subject:?} {roles:?}");
        }
    }
}
