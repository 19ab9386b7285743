//! Instances, access and what is on record, as administrators use them.

use crate::error::Error;
use crate::http::{Call, segment};
use crate::token::Session;
use claviger_domain::id::{InstanceId, KeyId};
use claviger_wire::audit::Events;
use claviger_wire::iam::{MadePrincipal, NewPrincipal};
use claviger_wire::rc::{NewResourceInstance, ResourceInstance, ResourceInstances};
use reqwest::Method;

/// Pages that a list is read to; the server has at most ten.
const PAGES_MAX: usize = 100;

/// Records asked for at once.
const RECORDS: usize = 1000;
/// Pages of records that are asked for; the server looks through 10,000 records for each, so that
/// a rare thing among ten million is found.
const RECORD_PAGES_MAX: usize = 1000;

/// Which records are wanted. What is none matches all.
#[derive(Debug, Clone, Default)]
pub struct WantedEvents {
    /// Of this instance; without it of the whole server, for administrators.
    pub instance: Option<InstanceId>,
    /// Of this key of the instance.
    pub key: Option<KeyId>,
    /// The action, or with a `*` at its end what it begins with.
    pub action: Option<String>,
    /// Not before this, RFC 3339.
    pub from: Option<String>,
    /// Before this, RFC 3339.
    pub to: Option<String>,
    /// Older than the place that an earlier answer named.
    pub before: Option<String>,
}

/// The Resource Controller, who is let in, and what is on record. Cheap to clone.
#[derive(Clone)]
pub struct Admin {
    pub(crate) session: Session,
}

impl Admin {
    /// Every instance, by name.
    pub async fn instances(&self) -> Result<Vec<ResourceInstance>, Error> {
        let mut path = "/v2/resource_instances".to_owned();
        let mut all = Vec::new();
        for _ in 0..PAGES_MAX {
            let page: ResourceInstances = self.session.send(Call::get(path)).await?.json()?;
            all.extend(page.resources);
            match page.next_url {
                Some(next) if next.starts_with("/v2/resource_instances?") => path = next,
                _ => break,
            }
        }
        all.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(all)
    }

    /// One instance.
    pub async fn instance(&self, id: InstanceId) -> Result<ResourceInstance, Error> {
        self.session.send(Call::get(below(id))).await?.json()
    }

    /// Makes an instance.
    pub async fn create_instance(
        &self,
        new: &NewResourceInstance,
    ) -> Result<ResourceInstance, Error> {
        let call = Call::post("/v2/resource_instances".to_owned()).json(new)?;
        self.session.send(call).await?.json()
    }

    /// Removes an instance in which no key is in use.
    pub async fn delete_instance(&self, id: InstanceId) -> Result<(), Error> {
        self.session.send(Call::new(Method::DELETE, below(id))).await.map(drop)
    }

    /// At most `limit` records, newest first, and where to go on if there are more.
    pub async fn events(&self, wanted: &WantedEvents, limit: usize) -> Result<Events, Error> {
        let mut query = String::new();
        for (name, value) in [
            ("instance", wanted.instance.map(|id| id.to_string())),
            ("key", wanted.key.map(|id| id.to_string())),
            ("action", wanted.action.clone()),
            ("from", wanted.from.clone()),
            ("to", wanted.to.clone()),
        ] {
            if let Some(value) = value {
                query.push_str(&format!("&{name}={}", segment(&value)));
            }
        }
        let mut all = Events { events: Vec::new(), next: wanted.before.clone() };
        for _ in 0..RECORD_PAGES_MAX {
            let page = (limit - all.events.len()).min(RECORDS);
            let before = all.next.as_deref().map(|next| format!("&before={}", segment(next)));
            let before = before.unwrap_or_default();
            let call = Call::get(format!("/v3/audit?limit={page}{query}{before}"));
            let found: Events = self.session.send(call).await?.json()?;
            all.events.extend(found.events.into_iter().take(page));
            all.next = found.next;
            if all.next.is_none() || all.events.len() >= limit {
                break;
            }
        }
        Ok(all)
    }

    /// Lets a person or a service in; the API key is in the answer and nowhere else.
    pub async fn create_principal(&self, new: &NewPrincipal) -> Result<MadePrincipal, Error> {
        self.session.send(Call::post("/v3/principals".to_owned()).json(new)?).await?.json()
    }
}

fn below(id: InstanceId) -> String {
    format!("/v2/resource_instances/{}", segment(&id.to_string()))
}
