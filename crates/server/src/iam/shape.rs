//! Policies between IBM's attributes and ours. What is not understood is refused: an attribute
//! that was left out would make a policy wider than it says.

use super::principals::within;
use crate::app::App;
use crate::http::admin::Refusal;
use crate::keys::view::date;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use claviger_domain::access::{Scope, ServiceRole};
use claviger_domain::id::{ClusterId, InstanceId, PolicyId};
use claviger_domain::policy::{Policy, Role, Subject, Target};
use claviger_store::access::{self as store, Stored};
use claviger_store::{Tx, iam};
use claviger_wire::access::{
    Attribute, Attributes, OldAttributes, OldPolicy, OldRole, Policy as WirePolicy, PolicyRole,
    TYPE_ACCESS, TYPE_AUTHORIZATION,
};
use serde::Serialize;
use std::fmt::Display;

/// The key service.
pub(super) const KMS: &str = "kms";
/// The cluster service.
pub(super) const CLUSTERS: &str = "containers-kubernetes";
/// Longest value of an attribute.
const VALUE_MAX: usize = 200;

/// Names and values, in either form.
pub(super) type Pairs = Vec<(String, String)>;

/// A policy as a client wants it.
#[derive(Debug, Clone)]
pub(super) struct Wanted {
    pub(super) subject: Subject,
    pub(super) roles: Vec<Role>,
    pub(super) target: Target,
}

impl Wanted {
    pub(super) fn policy(&self, id: PolicyId) -> Result<Policy, Refusal> {
        let Wanted { subject, roles, target } = self.clone();
        Policy::new(id, subject, roles, target).map_err(|e| Refusal::bad(e.to_string()))
    }
}

/// Reads a policy in the form of `/v1/policies`.
pub(super) fn wanted(app: &App, tx: &Tx<'_>, policy: &WirePolicy) -> Result<Wanted, Refusal> {
    let subject = one("subject", &policy.subjects)?;
    let resource = one("resource", &policy.resources)?;
    let roles = policy.roles.iter().map(|role| role_of(&role.role_id)).collect::<Result<_, _>>()?;
    let subject = self::subject(app, tx, &policy.kind, pairs(subject)?)?;
    Ok(Wanted { subject, roles, target: target(app, tx, pairs(resource)?)? })
}

/// Reads a policy in the older form. The path says whom it is about, or its subjects do.
pub(super) fn wanted_old(
    app: &App,
    tx: &Tx<'_>,
    policy: &OldPolicy,
    about: Option<Subject>,
) -> Result<Wanted, Refusal> {
    let flat = |set: &OldAttributes| {
        set.iter().map(|(name, value)| (name.clone(), value.clone())).collect::<Pairs>()
    };
    let resource = one("resource", &policy.resources)?;
    let roles = policy.roles.iter().map(|role| role_of(&role.id)).collect::<Result<_, _>>()?;
    let subject = match about {
        Some(subject) => subject,
        None => subject(app, tx, &policy.kind, flat(one("subject", &policy.subjects)?))?,
    };
    Ok(Wanted { subject, roles, target: target(app, tx, flat(resource))? })
}

fn one<'p, T>(what: &str, all: &'p [T]) -> Result<&'p T, Refusal> {
    match all {
        [one] => Ok(one),
        _ => Err(Refusal::bad(format!("a policy must have exactly one {what}"))),
    }
}

fn pairs(set: &Attributes) -> Result<Pairs, Refusal> {
    let pair = |attribute: &Attribute| match attribute.operator.as_deref() {
        None | Some("" | "stringEquals") => Ok((attribute.name.clone(), attribute.value.clone())),
        Some(other) => {
            Err(Refusal::bad(format!("the operator {other:?} is not supported; stringEquals is")))
        }
    };
    set.attributes.iter().map(pair).collect()
}

/// Takes attributes out one by one; what is left at the end is not understood.
struct Left(Pairs);

impl Left {
    fn new(pairs: Pairs) -> Result<Left, Refusal> {
        for (at, (name, value)) in pairs.iter().enumerate() {
            if pairs[..at].iter().any(|(before, _)| before == name) {
                return Err(Refusal::bad(format!("the attribute {name:?} is there twice")));
            }
            if value.is_empty() || value.chars().count() > VALUE_MAX {
                return Err(Refusal::bad(format!(
                    "the attribute {name:?} must have 1 to {VALUE_MAX} characters"
                )));
            }
        }
        Ok(Left(pairs))
    }

    fn take(&mut self, name: &str) -> Option<String> {
        let at = self.0.iter().position(|(n, _)| n == name)?;
        Some(self.0.swap_remove(at).1)
    }

    /// The account is always ours; whether it is named.
    fn account(&mut self, app: &App) -> Result<bool, Refusal> {
        match self.take("accountId") {
            Some(id) if id != app.account.id => {
                Err(Refusal::bad("accountId is not the account of this server"))
            }
            named => Ok(named.is_some()),
        }
    }

    fn done(self) -> Result<(), Refusal> {
        match self.0.first() {
            None => Ok(()),
            Some((name, value)) => Err(Refusal::bad(format!(
                "the attribute {name:?} ({value:?}) is not supported here; a policy without it \
                 would be wider"
            ))),
        }
    }
}

fn subject(app: &App, tx: &Tx<'_>, kind: &str, pairs: Pairs) -> Result<Subject, Refusal> {
    let mut left = Left::new(pairs)?;
    left.account(app)?;
    let subject = match kind {
        TYPE_AUTHORIZATION => {
            if left.take("serviceName").as_deref() != Some(CLUSTERS) {
                return Err(Refusal::bad(format!(
                    "an authorization is for the service {CLUSTERS} to use {KMS}"
                )));
            }
            let cluster = left.take("serviceInstance");
            let cluster = cluster.map(|id| id.parse::<ClusterId>()).transpose();
            Subject::Clusters(cluster.map_err(|e| Refusal::bad(format!("serviceInstance: {e}")))?)
        }
        TYPE_ACCESS | "" => {
            let group = left.take("access_group_id").or_else(|| left.take("accessGroupId"));
            match (left.take("iam_id"), group) {
                (Some(iam_id), None) => principal(tx, &iam_id)?,
                (None, Some(group)) => self::group(tx, &group)?,
                _ => {
                    return Err(Refusal::bad(
                        "the subject must be an iam_id or an access_group_id",
                    ));
                }
            }
        }
        other => {
            return Err(Refusal::bad(format!(
                "type {other:?} is neither access nor authorization"
            )));
        }
    };
    left.done()?;
    Ok(subject)
}

/// A person or a service ID that is there.
pub(super) fn principal(tx: &Tx<'_>, iam_id: &str) -> Result<Subject, Refusal> {
    match iam::principal(tx, iam_id)? {
        Some(principal) => Ok(Subject::Principal(principal.iam_id)),
        None => Err(Refusal::bad("the subject's iam_id is nobody here")),
    }
}

fn group(tx: &Tx<'_>, id: &str) -> Result<Subject, Refusal> {
    let none = || Refusal::bad("the subject's access_group_id is no group here");
    let id = id.parse().map_err(|_| none())?;
    store::group(tx, id)?.map(|group| Subject::Group(group.id)).ok_or_else(none)
}

fn target(app: &App, tx: &Tx<'_>, pairs: Pairs) -> Result<Target, Refusal> {
    let mut left = Left::new(pairs)?;
    let account = left.account(app)?;
    let services = match left.take("serviceType").as_deref() {
        None => false,
        Some("service") => true,
        Some(kind) => {
            return Err(Refusal::bad(format!(
                "serviceType {kind:?} is not supported; service is, and a policy with accountId \
                 alone covers access, too"
            )));
        }
    };
    let service = left.take("serviceName");
    let instance = left.take("serviceInstance");
    let resource = (left.take("resourceType"), left.take("resource"));
    let resource = match resource {
        (None, None) => None,
        (Some(kind), Some(name)) => Some((kind, name)),
        _ => return Err(Refusal::bad("resourceType and resource are given both or not at all")),
    };
    left.done()?;
    match service.as_deref() {
        None if instance.is_none() && resource.is_none() => match (services, account) {
            (true, _) => Ok(Target::Services),
            (false, true) => Ok(Target::Account),
            (false, false) => {
                Err(Refusal::bad("the whole account must be named: by accountId, and nothing else"))
            }
        },
        None => Err(Refusal::bad("a serviceInstance or a resource needs its serviceName")),
        Some(KMS) => Ok(Target::Keys(scope(tx, instance, resource)?)),
        Some(CLUSTERS) => {
            let cluster = match (instance, resource) {
                (Some(id), None) => Some(id),
                (None, Some((kind, id))) if kind == "cluster" => Some(id),
                (None, None) => None,
                _ => return Err(Refusal::bad("a cluster is named by serviceInstance alone")),
            };
            let cluster = cluster.map(|id| id.parse::<ClusterId>()).transpose();
            Ok(Target::Clusters(cluster.map_err(|e| Refusal::bad(e.to_string()))?))
        }
        Some(other) => Err(Refusal::bad(format!(
            "the service {other:?} is not here; {KMS} and {CLUSTERS} are"
        ))),
    }
}

fn scope(
    tx: &Tx<'_>,
    instance: Option<String>,
    resource: Option<(String, String)>,
) -> Result<Scope, Refusal> {
    let Some(instance) = instance else {
        return match resource {
            None => Ok(Scope::Everywhere),
            Some(_) => Err(Refusal::bad("a key ring or a key needs its serviceInstance")),
        };
    };
    let instance: InstanceId =
        instance.parse().map_err(|e| Refusal::bad(format!("serviceInstance: {e}")))?;
    match resource {
        None => within(tx, instance, None, None),
        Some((kind, id)) if kind == "key" => {
            let key = id.parse().map_err(|e| Refusal::bad(format!("resource: {e}")))?;
            within(tx, instance, None, Some(key))
        }
        Some((kind, ring)) if kind == "keyRing" => within(tx, instance, Some(&ring), None),
        Some((kind, _)) => Err(Refusal::bad(format!(
            "resourceType {kind:?} is not supported; key and keyRing are"
        ))),
    }
}

/// The role that a CRN names.
fn role_of(crn: &str) -> Result<Role, Refusal> {
    let unknown = || {
        let short: String = crn.chars().take(VALUE_MAX).collect();
        Refusal::bad(format!("{short:?} is no role here; see /v2/roles"))
    };
    let parts: Vec<&str> = crn.split(':').collect();
    let [
        "crn",
        "v1",
        "bluemix",
        "public",
        "iam" | KMS,
        "",
        "",
        "",
        kind @ ("role" | "serviceRole"),
        name,
    ] = parts[..]
    else {
        return Err(unknown());
    };
    let role = Role::named(name).ok_or_else(unknown)?;
    let fits =
        matches!((role, kind), (Role::Platform(_), "role") | (Role::Service(_), "serviceRole"));
    if fits { Ok(role) } else { Err(unknown()) }
}

/// The CRN of a role.
pub(super) fn role_crn(role: Role) -> String {
    let kind = if matches!(role, Role::Platform(_)) { "role" } else { "serviceRole" };
    let service = match role {
        Role::Service(
            ServiceRole::ReaderPlus | ServiceRole::KeyPurge | ServiceRole::KmipAdapterManager,
        ) => KMS,
        _ => "iam",
    };
    format!("crn:v1:bluemix:public:{service}::::{kind}:{}", role.name())
}

/// What a role is for, in a sentence.
pub(super) fn role_text(role: Role) -> &'static str {
    use claviger_domain::access::PlatformRole;
    match role {
        Role::Platform(PlatformRole::Viewer) => "See instances and clusters.",
        Role::Platform(PlatformRole::Operator) => "Viewer, and operate clusters.",
        Role::Platform(PlatformRole::Editor) => "Operator, and make and remove instances.",
        Role::Platform(PlatformRole::Administrator) => {
            "Editor, and enable encryption; on the account, manage access."
        }
        Role::Service(ServiceRole::Reader) => "See keys, wrap and unwrap.",
        Role::Service(ServiceRole::ReaderPlus) => "Reader, and see payloads of standard keys.",
        Role::Service(ServiceRole::Writer) => "ReaderPlus, and create, import and rotate keys.",
        Role::Service(ServiceRole::Manager) => {
            "Writer, and disable, enable, delete and restore keys, and set policies."
        }
        Role::Service(ServiceRole::KeyPurge) => "Purge deleted keys, and nothing else.",
        Role::Service(ServiceRole::KmipAdapterManager) => "Manage KMIP adapters.",
    }
}

fn subject_pairs(app: &App, subject: &Subject) -> Pairs {
    let pair = |name: &str, value: String| (name.to_owned(), value);
    match subject {
        Subject::Principal(iam_id) => vec![pair("iam_id", iam_id.clone())],
        Subject::Group(group) => vec![pair("access_group_id", group.to_string())],
        Subject::Clusters(cluster) => {
            let mut out = vec![
                pair("accountId", app.account.id.clone()),
                pair("serviceName", CLUSTERS.to_owned()),
            ];
            out.extend(cluster.iter().map(|id| pair("serviceInstance", id.to_string())));
            out
        }
    }
}

fn target_pairs(app: &App, target: &Target) -> Pairs {
    let mut out = vec![("accountId".to_owned(), app.account.id.clone())];
    let mut add = |name: &str, value: &dyn Display| out.push((name.to_owned(), value.to_string()));
    match target {
        Target::Account => {}
        Target::Services => add("serviceType", &"service"),
        Target::Keys(scope) => {
            add("serviceName", &KMS);
            match scope {
                Scope::Everywhere => {}
                Scope::Instance(instance) => add("serviceInstance", instance),
                Scope::Ring(instance, ring) => {
                    add("serviceInstance", instance);
                    add("resourceType", &"keyRing");
                    add("resource", ring);
                }
                Scope::Key(root) => {
                    add("serviceInstance", &root.instance);
                    add("resourceType", &"key");
                    add("resource", &root.key);
                }
            }
        }
        Target::Clusters(cluster) => {
            add("serviceName", &CLUSTERS);
            if let Some(cluster) = cluster {
                add("serviceInstance", cluster);
            }
        }
    }
    out
}

/// Which type a policy has.
pub(super) fn kind(policy: &Policy) -> &'static str {
    if policy.is_authorization() { TYPE_AUTHORIZATION } else { TYPE_ACCESS }
}

/// A policy in the form of `/v1/policies`.
pub(super) fn shown(app: &App, Stored { policy, stamp }: &Stored) -> WirePolicy {
    let attributes = |pairs: Pairs| {
        let attribute = |(name, value)| Attribute { name, value, operator: None };
        vec![Attributes { attributes: pairs.into_iter().map(attribute).collect() }]
    };
    let role = |role: &Role| PolicyRole {
        role_id: role_crn(*role),
        display_name: role.name().to_owned(),
        description: role_text(*role).to_owned(),
    };
    WirePolicy {
        id: policy.id().to_string(),
        kind: kind(policy).to_owned(),
        description: String::new(),
        subjects: attributes(subject_pairs(app, policy.subject())),
        roles: policy.roles().iter().map(role).collect(),
        resources: attributes(target_pairs(app, policy.target())),
        href: format!("{}/v1/policies/{}", app.settings.url, policy.id()),
        created_at: date(stamp.created),
        created_by_id: stamp.created_by.clone(),
        last_modified_at: date(stamp.updated),
        last_modified_by_id: stamp.updated_by.clone(),
        state: "active".to_owned(),
    }
}

/// A policy in the older form.
pub(super) fn shown_old(app: &App, Stored { policy, .. }: &Stored) -> OldPolicy {
    let mut subject = subject_pairs(app, policy.subject());
    for (name, _) in &mut subject {
        if name == "access_group_id" {
            "accessGroupId".clone_into(name);
        }
    }
    OldPolicy {
        id: policy.id().to_string(),
        kind: kind(policy).to_owned(),
        roles: policy.roles().iter().copied().map(old_role).collect(),
        resources: vec![target_pairs(app, policy.target()).into_iter().collect()],
        subjects: vec![subject.into_iter().collect()],
    }
}

/// A role in the older form.
pub(super) fn old_role(role: Role) -> OldRole {
    let (display_name, description) = (role.name().to_owned(), role_text(role).to_owned());
    OldRole { id: role_crn(role), display_name, description }
}

/// What `If-Match` is held against.
pub(super) fn etag(version: u64, id: impl Display) -> String {
    format!("{version}-{id}")
}

/// Refuses a change by somebody who has not seen the last one.
pub(super) fn if_match(given: Option<&str>, is: &str, status: StatusCode) -> Result<(), Refusal> {
    let given = given.ok_or_else(|| {
        Refusal::bad("the header If-Match is missing; it must hold the version that was read last")
    })?;
    let plain = given.trim().trim_start_matches("W/").trim_matches('"');
    if plain == is || plain == "*" {
        return Ok(());
    }
    let what = "it was changed meanwhile; read it again, and send its new version in If-Match";
    Err(Refusal::new(status, "PRECONDITION_FAILED_ERR", what))
}

/// The header of [`if_match`].
pub(super) fn if_match_header(headers: &HeaderMap) -> Option<String> {
    Some(headers.get(header::IF_MATCH)?.to_str().ok()?.to_owned())
}

/// A JSON answer with its version in the header `ETag`.
pub(super) fn tagged(status: StatusCode, tag: &str, body: &impl Serialize) -> Response {
    let mut response = (status, axum::Json(body)).into_response();
    let tag = HeaderValue::from_str(&format!("\"{tag}\"")).expect("versions and ids are ASCII");
    response.headers_mut().insert(header::ETAG, tag);
    response
}
