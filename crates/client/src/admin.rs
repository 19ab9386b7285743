//! Instances and access, as administrators use them.

use crate::config::Config;
use crate::error::Error;
use crate::http::{Call, segment};
use crate::keys::operator;
use crate::token::{Credential, Session};
use claviger_crypto::SecretBytes;
use claviger_domain::id::InstanceId;
use claviger_wire::iam::{MadePrincipal, NewPrincipal};
use claviger_wire::rc::{NewResourceInstance, ResourceInstance, ResourceInstances};
use reqwest::Method;

/// Pages that a list is read to; the server has at most ten.
const PAGES_MAX: usize = 100;

/// The Resource Controller, and who is let in. Cheap to clone.
#[derive(Clone)]
pub struct Admin {
    session: Session,
}

impl Admin {
    /// For an operator. Connects with the first call.
    pub fn connect(config: &Config) -> Result<Self, Error> {
        let (http, iam) = operator(config)?;
        let key = SecretBytes::new(config.api_key.expose().to_vec());
        Ok(Self { session: Session::new(http, iam, Credential::ApiKey(key)) })
    }

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

    /// Lets a person or a service in; the API key is in the answer and nowhere else.
    pub async fn create_principal(&self, new: &NewPrincipal) -> Result<MadePrincipal, Error> {
        self.session.send(Call::post("/v3/principals".to_owned()).json(new)?).await?.json()
    }
}

fn below(id: InstanceId) -> String {
    format!("/v2/resource_instances/{}", segment(&id.to_string()))
}
