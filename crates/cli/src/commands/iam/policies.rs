//! `claviger iam policy`, `claviger iam authorization`

use super::{gone, groups, sure, who};
use crate::connect::Link;
use crate::exit::{self, Done, Failure};
use crate::ids;
use crate::render::{Look, table};
use clap::Subcommand;
use claviger_domain::access::ServiceRole;
use claviger_domain::id::InstanceId;
use claviger_domain::policy::Role;
use claviger_wire::access::{
    Attribute, Attributes, Policy, PolicyRole, TYPE_ACCESS, TYPE_AUTHORIZATION,
};

const KMS: &str = "kms";
const CLUSTERS: &str = "containers-kubernetes";

/// What can be done with policies.
#[derive(Subcommand)]
pub enum Verb {
    /// List policies
    Ls(About),
    /// Give roles to someone or to an access group
    ///
    /// Without --service the roles count everywhere: platform roles on instances, clusters and
    /// access itself, service roles on all keys.
    Create(New),
    /// Take a policy away; it counts no longer at once
    Delete(Which),
}

/// What can be done with authorizations.
#[derive(Subcommand)]
pub enum Authorization {
    /// List which clusters may use which keys
    Ls,
    /// Let a cluster use keys; `ks kms enable` does it for the key that it is given
    Create(NewAuthorization),
    /// Take an authorization away: the cluster wraps and unwraps with those keys no longer
    Delete(Which),
}

/// Whom it is about.
#[derive(clap::Args)]
pub struct About {
    /// About this user or service ID: IAM id or name
    #[arg(long, value_name = "WHO", conflicts_with = "group")]
    of: Option<String>,
    /// About this access group: id or name
    #[arg(long, value_name = "GROUP")]
    group: Option<String>,
}

/// Which part of an instance.
#[derive(clap::Args)]
pub struct Part {
    /// Only this key of the instance: id, CRN or name
    #[arg(long, value_name = "KEY", conflicts_with = "ring", requires = "instance_id")]
    key: Option<String>,
    /// Only this key ring of the instance
    #[arg(long, value_name = "RING", requires = "instance_id")]
    ring: Option<String>,
}

/// A policy to make.
#[derive(clap::Args)]
pub struct New {
    #[command(flatten)]
    about: About,
    /// Roles: Viewer, Operator, Editor, Administrator; Reader, ReaderPlus, Writer, Manager,
    /// KeyPurge, KmipAdapterManager
    #[arg(long = "role", value_name = "ROLE", required = true, value_delimiter = ',')]
    roles: Vec<String>,
    /// On this service alone
    #[arg(long, value_name = "SERVICE", value_parser = [KMS, CLUSTERS])]
    service: Option<String>,
    /// Only this instance of the key service: GUID or CRN
    #[arg(long, value_name = "ID", value_parser = ids::instance)]
    instance_id: Option<InstanceId>,
    #[command(flatten)]
    part: Part,
    /// Only this cluster: id or name
    #[arg(long, value_name = "CLUSTER", conflicts_with = "instance_id")]
    cluster: Option<String>,
}

/// An authorization to make.
#[derive(clap::Args)]
pub struct NewAuthorization {
    /// The cluster: id or name
    #[arg(short, long, env = "CLAVIGER_CLUSTER", hide_env_values = true, value_name = "CLUSTER")]
    cluster: String,
    /// Id (GUID or CRN) of the key service's instance
    #[arg(long, env = "CLAVIGER_INSTANCE_ID", hide_env_values = true, value_name = "ID", value_parser = ids::instance)]
    instance_id: InstanceId,
    #[command(flatten)]
    part: Part,
}

/// A policy.
#[derive(clap::Args)]
pub struct Which {
    /// Its id
    id: String,
    /// Do not ask
    #[arg(short = 'f', long)]
    yes: bool,
}

/// `claviger iam policy`
pub async fn run(verb: Verb, look: Look, link: &Link) -> Done {
    match verb {
        Verb::Ls(about) => {
            let query = about_query(about, link).await?;
            let query: Vec<_> = query.iter().map(|(n, v)| (*n, v.as_str())).collect();
            list(
                link.access.policies(&[&query[..], &[("type", TYPE_ACCESS)]].concat()).await?,
                look,
            )
        }
        Verb::Create(new) => {
            let subject = about_query(new.about, link).await?;
            if subject.is_empty() {
                let error = "it is not said whom the policy is about";
                return Err(Failure::new(exit::USAGE, error, "say --of or --group"));
            }
            let mut on = Vec::new();
            let service = match (new.service, new.instance_id, &new.cluster) {
                (Some(service), _, _) => Some(service),
                (None, Some(_), _) => Some(KMS.to_owned()),
                (None, None, Some(_)) => Some(CLUSTERS.to_owned()),
                (None, None, None) => None,
            };
            let service_given = service.is_some();
            on.extend(service.map(|service| ("serviceName", service)));
            if new.instance_id.is_none() && (new.part.key.is_some() || new.part.ring.is_some()) {
                // Left out, it would make the policy wider than was asked.
                let error = "a key or a key ring is of an instance, and none is given";
                return Err(Failure::new(exit::USAGE, error, "say --instance-id"));
            }
            match (new.instance_id, &new.cluster) {
                (Some(instance), _) => on.extend(part(instance, new.part, link).await?),
                (None, Some(cluster)) => {
                    on.push(("serviceInstance", cluster_id(cluster, link).await?))
                }
                (None, None) if service_given => {}
                (None, None) => on.push(("accountId", link.access.me().await?.account.bss)),
            }
            let roles = new.roles.iter().map(|name| role(name)).collect::<Result<_, _>>()?;
            create(TYPE_ACCESS, subject, roles, on, look, link).await
        }
        Verb::Delete(which) => {
            sure("Whoever has roles by the policy alone loses them. Remove it?", which.yes)?;
            delete("policy", which.id, look, link).await
        }
    }
}

/// `claviger iam authorization`
pub async fn authorization(verb: Authorization, look: Look, link: &Link) -> Done {
    match verb {
        Authorization::Ls => {
            list(link.access.policies(&[("type", TYPE_AUTHORIZATION)]).await?, look)
        }
        Authorization::Create(new) => {
            let cluster = cluster_id(&new.cluster, link).await?;
            let subject = vec![("serviceName", CLUSTERS.to_owned()), ("serviceInstance", cluster)];
            let mut on = vec![("serviceName", KMS.to_owned())];
            on.extend(part(new.instance_id, new.part, link).await?);
            let roles = vec![Role::Service(ServiceRole::Reader)];
            create(TYPE_AUTHORIZATION, subject, roles, on, look, link).await
        }
        Authorization::Delete(which) => {
            let question = "The cluster cannot unwrap by it any longer: an agent that restarts \
                            will not come up. Remove it?";
            sure(question, which.yes)?;
            delete("authorization", which.id, look, link).await
        }
    }
}

type Pairs = Vec<(&'static str, String)>;

async fn about_query(about: About, link: &Link) -> Result<Pairs, Failure> {
    Ok(match (about.of, about.group) {
        (Some(text), _) => vec![("iam_id", who(&text, link).await?)],
        (None, Some(text)) => vec![("access_group_id", groups::find(&text, link).await?)],
        (None, None) => Vec::new(),
    })
}

async fn part(instance: InstanceId, part: Part, link: &Link) -> Result<Pairs, Failure> {
    let mut on = vec![("serviceInstance", instance.to_string())];
    let resource = match (part.key, part.ring) {
        (Some(key), _) => {
            Some(("key", ids::find_key(&link.keys, instance, &key).await?.to_string()))
        }
        (None, Some(ring)) => Some(("keyRing", ring)),
        (None, None) => None,
    };
    if let Some((kind, name)) = resource {
        on.extend([("resourceType", kind.to_owned()), ("resource", name)]);
    }
    Ok(on)
}

async fn cluster_id(text: &str, link: &Link) -> Result<String, Failure> {
    Ok(link.clusters.get(text).await?.id.to_string())
}

fn role(name: &str) -> Result<Role, Failure> {
    Role::named(name).ok_or_else(|| {
        let all: Vec<_> = Role::all().map(Role::name).collect();
        let error = format!("there is no role {name:?}");
        Failure::new(exit::USAGE, error, format!("there are {}", all.join(", ")))
    })
}

fn crn(role: Role) -> String {
    let (service, kind) = match role {
        Role::Platform(_) => ("iam", "role"),
        Role::Service(_) => (KMS, "serviceRole"),
    };
    format!("crn:v1:bluemix:public:{service}::::{kind}:{}", role.name())
}

async fn create(
    kind: &str,
    subject: Pairs,
    roles: Vec<Role>,
    on: Pairs,
    look: Look,
    link: &Link,
) -> Done {
    let attributes = |pairs: Pairs| {
        let attribute = |(name, value): (&str, String)| Attribute {
            name: name.to_owned(),
            value,
            operator: None,
        };
        vec![Attributes { attributes: pairs.into_iter().map(attribute).collect() }]
    };
    let role = |role: Role| PolicyRole { role_id: crn(role), ..PolicyRole::default() };
    let new = Policy {
        kind: kind.to_owned(),
        subjects: attributes(subject),
        roles: roles.into_iter().map(role).collect(),
        resources: attributes(on),
        ..Policy::default()
    };
    look.doing("Making the policy");
    let made = link.access.create_policy(&new).await?;
    look.ok();
    look.answer(&made, || rows(std::slice::from_ref(&made)));
    Ok(())
}

async fn delete(what: &str, id: String, look: Look, link: &Link) -> Done {
    look.doing(&format!("Removing {what} {id}"));
    link.access.delete_policy(&id).await?;
    gone("Policy", &id, look)
}

fn list(list: Vec<Policy>, look: Look) -> Done {
    look.ok();
    look.answer(&list, || rows(&list));
    Ok(())
}

fn rows(list: &[Policy]) -> Vec<String> {
    let value = |set: &[Attributes], names: &[&str]| {
        let mut all = set.iter().flat_map(|set| &set.attributes);
        let found = all.find(|a| names.contains(&a.name.as_str()));
        found.map(|a| a.value.clone()).unwrap_or_default()
    };
    let row = |policy: &Policy| {
        let about = ["iam_id", "access_group_id", "serviceInstance", "serviceName"];
        let roles: Vec<_> = policy.roles.iter().map(|r| r.display_name.clone()).collect();
        let services = value(&policy.resources, &["serviceType"]);
        let service = match value(&policy.resources, &["serviceName"]) {
            service if !service.is_empty() => service,
            _ if !services.is_empty() => "all services".to_owned(),
            _ => "everything".to_owned(),
        };
        vec![
            policy.id.clone(),
            // The narrowest that is said of it.
            about
                .iter()
                .map(|name| value(&policy.subjects, &[name]))
                .find(|text| !text.is_empty())
                .unwrap_or_default(),
            roles.join(", "),
            service,
            value(&policy.resources, &["serviceInstance"]),
            value(&policy.resources, &["resource"]),
        ]
    };
    let rows: Vec<_> = list.iter().map(row).collect();
    table(&["ID", "Of", "Roles", "On", "Instance", "Key or ring"], &rows)
}
