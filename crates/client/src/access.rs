//! Identity and access, as administrators use them: who can come in, by what, and what he may do.

use crate::error::Error;
use crate::http::{Answer, Call, segment};
use crate::token::Session;
use claviger_wire::access::{
    AddedMember, AddedMembers, Group, Groups, Member, Members, NewMembers, Policies, Policy, User,
    Users,
};
use claviger_wire::iam::{
    ApiKey, Items, Logins, NewIdentity, RotatedSigningKey, ServiceId, TrustedIssuer,
    TrustedIssuers, UserInfo,
};
use reqwest::Method;
use serde::de::DeserializeOwned;

/// Pages that a list is read to; no list of the server has as many.
const PAGES_MAX: usize = 200;

/// Who can come in, by what, and what he may do. Cheap to clone.
#[derive(Clone)]
pub struct Access {
    pub(crate) session: Session,
}

impl Access {
    async fn read<T: DeserializeOwned>(&self, path: String) -> Result<T, Error> {
        self.session.send(Call::get(path)).await?.json()
    }

    async fn delete(&self, path: String) -> Result<(), Error> {
        self.session.send(Call::new(Method::DELETE, path)).await.map(drop)
    }

    /// Reads page by page; `next` takes what a page has and says where the next one is.
    async fn pages<P: DeserializeOwned>(
        &self,
        first: String,
        mut next: impl FnMut(P) -> Option<String>,
    ) -> Result<(), Error> {
        let mut path = first;
        for _ in 0..PAGES_MAX {
            match next(self.read(path).await?) {
                Some(more) if more.starts_with('/') => path = more,
                _ => return Ok(()),
            }
        }
        Err(Error::protocol(format!("a list of more than {PAGES_MAX} pages")))
    }

    /// Who asks.
    pub async fn me(&self) -> Result<UserInfo, Error> {
        self.read("/identity/userinfo".to_owned()).await
    }

    async fn users_path(&self) -> Result<String, Error> {
        let me = self.me().await?;
        Ok(format!("/v2/accounts/{}/users", segment(&me.account.bss)))
    }

    /// Every person.
    pub async fn users(&self) -> Result<Vec<User>, Error> {
        let mut all = Vec::new();
        let path = self.users_path().await?;
        self.pages(path, |page: Users| {
            all.extend(page.resources);
            page.next_url
        })
        .await?;
        Ok(all)
    }

    /// Removes a person, with his API keys and the policies about him.
    pub async fn delete_user(&self, iam_id: &str) -> Result<(), Error> {
        let path = self.users_path().await?;
        self.delete(format!("{path}/{}", segment(iam_id))).await
    }

    /// By which issuers a person comes in.
    pub async fn logins(&self, iam_id: &str) -> Result<Logins, Error> {
        self.read(format!("/v3/principals/{}/logins", segment(iam_id))).await
    }

    /// Lets a person come in by exactly these subjects of issuers.
    pub async fn put_logins(&self, iam_id: &str, logins: &Logins) -> Result<Logins, Error> {
        let path = format!("/v3/principals/{}/logins", segment(iam_id));
        let call = Call::new(Method::PUT, path).idempotent();
        self.session.send(call.json(logins)?).await?.json()
    }

    /// Every service ID.
    pub async fn service_ids(&self) -> Result<Vec<ServiceId>, Error> {
        let mut all = Vec::new();
        self.pages("/serviceids".to_owned(), |page: Items<ServiceId>| {
            all.extend(page.items);
            page.next_page_token.map(|token| format!("/serviceids?pagetoken={}", segment(&token)))
        })
        .await?;
        Ok(all)
    }

    /// Makes a service ID, which stands for the caller.
    pub async fn create_service_id(&self, new: &NewIdentity) -> Result<ServiceId, Error> {
        self.session.send(Call::post("/serviceids".to_owned()).json(new)?).await?.json()
    }

    /// Removes a service ID, with its API keys and the policies about it.
    pub async fn delete_service_id(&self, uuid: &str) -> Result<(), Error> {
        self.delete(format!("/serviceids/{}", segment(uuid))).await
    }

    /// The API keys of someone, by IAM id; the caller's own if none is named.
    pub async fn api_keys(&self, whose: Option<&str>) -> Result<Vec<ApiKey>, Error> {
        let begin = match whose {
            Some(whose) => format!("/apikeys?boundTo={}", segment(whose)),
            None => "/apikeys?".to_owned(),
        };
        let mut all = Vec::new();
        self.pages(begin.clone(), |page: Items<ApiKey>| {
            all.extend(page.items);
            page.next_page_token.map(|token| format!("{begin}&pagetoken={}", segment(&token)))
        })
        .await?;
        Ok(all)
    }

    /// One API key, without its secret.
    pub async fn api_key(&self, id: &str) -> Result<ApiKey, Error> {
        self.read(format!("/apikeys/{}", segment(id))).await
    }

    /// Makes an API key; its secret is in the answer and nowhere else.
    pub async fn create_api_key(&self, new: &NewIdentity) -> Result<ApiKey, Error> {
        self.session.send(Call::post("/apikeys".to_owned()).json(new)?).await?.json()
    }

    /// Removes an API key; what was got with it counts no longer. With `cascade` so do the API
    /// keys that were made with it.
    pub async fn delete_api_key(&self, id: &str, cascade: bool) -> Result<(), Error> {
        self.delete(format!("/apikeys/{}?cascade={cascade}", segment(id))).await
    }

    /// Every access group.
    pub async fn groups(&self) -> Result<Vec<Group>, Error> {
        let mut all = Vec::new();
        self.pages("/v2/groups".to_owned(), |page: Groups| {
            all.extend(page.groups);
            page.page.next.map(|next| next.href)
        })
        .await?;
        Ok(all)
    }

    /// Makes an access group.
    pub async fn create_group(&self, new: &Group) -> Result<Group, Error> {
        self.session.send(Call::post("/v2/groups".to_owned()).json(new)?).await?.json()
    }

    /// Removes an access group; one with members only by force.
    pub async fn delete_group(&self, id: &str, force: bool) -> Result<(), Error> {
        self.delete(format!("/v2/groups/{}?force={force}", segment(id))).await
    }

    /// Who is in an access group.
    pub async fn members(&self, group: &str) -> Result<Vec<Member>, Error> {
        let mut all = Vec::new();
        self.pages(format!("/v2/groups/{}/members", segment(group)), |page: Members| {
            all.extend(page.members);
            page.page.next.map(|next| next.href)
        })
        .await?;
        Ok(all)
    }

    /// Puts someone into an access group.
    pub async fn add_member(&self, group: &str, iam_id: &str) -> Result<AddedMember, Error> {
        let member = Member { iam_id: iam_id.to_owned(), ..Member::default() };
        let path = format!("/v2/groups/{}/members", segment(group));
        let call = Call::new(Method::PUT, path).idempotent();
        let answer: Answer =
            self.session.send(call.json(&NewMembers { members: vec![member] })?).await?;
        let added: AddedMembers = answer.json()?;
        added.members.into_iter().next().ok_or_else(|| Error::protocol("no member in the answer"))
    }

    /// Takes someone out of an access group.
    pub async fn remove_member(&self, group: &str, iam_id: &str) -> Result<(), Error> {
        self.delete(format!("/v2/groups/{}/members/{}", segment(group), segment(iam_id))).await
    }

    /// Policies; `query` chooses among them, as `iam_id=…` or `type=authorization`.
    pub async fn policies(&self, query: &[(&str, &str)]) -> Result<Vec<Policy>, Error> {
        let query: Vec<String> =
            query.iter().map(|(name, value)| format!("{name}={}", segment(value))).collect();
        let all: Policies = self.read(format!("/v1/policies?{}", query.join("&"))).await?;
        Ok(all.policies)
    }

    /// Makes a policy.
    pub async fn create_policy(&self, new: &Policy) -> Result<Policy, Error> {
        self.session.send(Call::post("/v1/policies".to_owned()).json(new)?).await?.json()
    }

    /// Removes a policy.
    pub async fn delete_policy(&self, id: &str) -> Result<(), Error> {
        self.delete(format!("/v1/policies/{}", segment(id))).await
    }

    /// Every issuer whose tokens are believed.
    pub async fn issuers(&self) -> Result<Vec<TrustedIssuer>, Error> {
        let all: TrustedIssuers = self.read("/v3/trusted-issuers".to_owned()).await?;
        Ok(all.issuers)
    }

    /// Trusts an issuer with exactly these keys and subjects.
    pub async fn put_issuer(&self, issuer: &TrustedIssuer) -> Result<TrustedIssuer, Error> {
        let call = Call::new(Method::PUT, "/v3/trusted-issuers".to_owned()).idempotent();
        self.session.send(call.json(issuer)?).await?.json()
    }

    /// Trusts an issuer no longer.
    pub async fn delete_issuer(&self, issuer: &str) -> Result<(), Error> {
        self.delete(format!("/v3/trusted-issuers/{}", segment(issuer))).await
    }

    /// Lets another key sign access tokens from now on. Those that others have signed end by
    /// themselves, or `now`.
    pub async fn rotate_signing_key(&self, now: bool) -> Result<RotatedSigningKey, Error> {
        let path = format!("/v3/signing-keys/rotate?now={now}");
        self.session.send(Call::post(path)).await?.json()
    }
}
