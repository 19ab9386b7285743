//! `claviger iam user`, `service-id`, `api-key`

use super::{gone, sure, who};
use crate::connect::Link;
use crate::exit::{self, Done, Failure};
use crate::render::{Look, ago_of_text, now, pairs, table};
use clap::Subcommand;
use claviger_wire::access::User as WireUser;
use claviger_wire::iam::{
    ApiKey, LoginSubject, MadePrincipal, NewIdentity, NewPrincipal, ServiceId,
};

/// What can be done with people.
#[derive(Subcommand)]
pub enum User {
    /// List people
    Ls,
    /// Let a person in; he has no role before a policy gives him one
    Create(NewUser),
    /// By which issuers a person comes in; with --issuer by one more
    Logins(LoginsOf),
    /// Remove a person, with his API keys and the policies about him
    Delete(Which),
}

/// What can be done with service IDs.
#[derive(Subcommand)]
pub enum Service {
    /// List service IDs
    Ls,
    /// Make a service ID, which stands for you; give it an API key and a policy
    Create(New),
    /// Remove a service ID, with its API keys and the policies about it
    Delete(Which),
}

/// What can be done with API keys.
#[derive(Subcommand)]
pub enum ApiKeys {
    /// List API keys: your own, or someone's
    Ls(Whose),
    /// Make an API key; it is shown this once
    Create(NewKey),
    /// Remove an API key; tokens that were got with it count no longer
    Delete(DeleteKey),
    /// Put a new API key in the place of one; the new one is shown before the old one is removed
    Rotate(WhichKey),
}

/// A person to let in.
#[derive(clap::Args)]
pub struct NewUser {
    /// Name of the person
    name: String,
    /// E-mail address; for people to read, nothing is sent to it
    #[arg(long, value_name = "ADDRESS", default_value = "")]
    email: String,
    #[command(flatten)]
    login: LoginArgs,
}

/// Somebody as an issuer knows him.
#[derive(clap::Args)]
pub struct LoginArgs {
    /// OpenID Connect issuer by which he comes in, instead of an API key; one that the server's
    /// settings name
    #[arg(long, value_name = "URL", requires = "subject")]
    issuer: Option<String>,
    /// Who he is there: what his ID tokens say in sub; claviger login tells him
    #[arg(long, value_name = "TEXT", requires = "issuer")]
    subject: Option<String>,
}

impl LoginArgs {
    fn subject(self) -> Option<LoginSubject> {
        let (issuer, subject) = self.issuer.zip(self.subject)?;
        Some(LoginSubject { issuer, subject })
    }
}

/// Whose logins.
#[derive(clap::Args)]
pub struct LoginsOf {
    /// IAM id or name
    who: String,
    #[command(flatten)]
    login: LoginArgs,
    /// Let him come in by no issuer any longer, or not by the one of --issuer and --subject
    #[arg(long)]
    remove: bool,
}

/// Someone.
#[derive(clap::Args)]
pub struct Which {
    /// IAM id or name
    who: String,
    /// Do not ask
    #[arg(short = 'f', long)]
    yes: bool,
}

/// Something to make.
#[derive(clap::Args)]
pub struct New {
    /// Name of it
    name: String,
    /// What it is for
    #[arg(long, value_name = "TEXT", default_value = "")]
    description: String,
}

/// Whose.
#[derive(clap::Args)]
pub struct Whose {
    /// IAM id or name of whose it is; you if not given
    #[arg(long, value_name = "WHO")]
    of: Option<String>,
}

/// An API key to make.
#[derive(clap::Args)]
pub struct NewKey {
    #[command(flatten)]
    new: New,
    #[command(flatten)]
    whose: Whose,
}

/// An API key.
#[derive(clap::Args)]
pub struct WhichKey {
    /// Id of the API key
    id: String,
    /// Do not ask
    #[arg(short = 'f', long)]
    yes: bool,
}

/// An API key to remove.
#[derive(clap::Args)]
pub struct DeleteKey {
    #[command(flatten)]
    which: WhichKey,
    /// Remove the API keys, too, that were made with it: whoever stole it may have made some
    #[arg(long)]
    cascade: bool,
}

/// `claviger iam user`
pub async fn user(verb: User, look: Look, link: &Link) -> Done {
    match verb {
        User::Ls => {
            let list = link.access.users().await?;
            look.ok();
            let row = |u: &WireUser| {
                let name = format!("{} {}", u.firstname, u.lastname).trim().to_owned();
                vec![name, u.email.clone(), u.iam_id.clone(), u.state.clone()]
            };
            look.answer(&list, || {
                table(&["Name", "Email", "ID", "State"], &list.iter().map(row).collect::<Vec<_>>())
            });
            Ok(())
        }
        User::Create(NewUser { name, email, login }) => {
            look.doing(&format!("Letting {name} in"));
            let new =
                NewPrincipal { name, email, login: login.subject(), ..NewPrincipal::default() };
            let made: MadePrincipal = link.admin.create_principal(&new).await?;
            look.ok();
            look.answer(&made, || {
                let mut lines = pairs(&[
                    ("Name", made.name.clone()),
                    ("ID", made.iam_id.clone()),
                    ("API key", made.apikey.clone().unwrap_or_default()),
                ]);
                if made.apikey.is_some() {
                    lines.push("The API key is shown this once.".to_owned());
                }
                lines
            });
            Ok(())
        }
        User::Logins(LoginsOf { who: text, login, remove }) => {
            let iam_id = who(&text, link).await?;
            let mut logins = link.access.logins(&iam_id).await?;
            let change = match (login.subject(), remove) {
                (None, false) => false,
                (None, true) => {
                    logins.logins.clear();
                    true
                }
                (Some(one), remove) => {
                    logins.logins.retain(|there| *there != one);
                    if !remove {
                        logins.logins.push(one);
                    }
                    true
                }
            };
            if change {
                look.doing(&format!("Changing by which issuers {iam_id} comes in"));
                logins = link.access.put_logins(&iam_id, &logins).await?;
            }
            look.ok();
            look.answer(&logins, || {
                let row = |one: &LoginSubject| vec![one.issuer.clone(), one.subject.clone()];
                table(&["Issuer", "Subject"], &logins.logins.iter().map(row).collect::<Vec<_>>())
            });
            Ok(())
        }
        User::Delete(which) => {
            let iam_id = who(&which.who, link).await?;
            sure(&format!("{iam_id} loses all access. Remove him?"), which.yes)?;
            look.doing(&format!("Removing user {iam_id}"));
            link.access.delete_user(&iam_id).await?;
            gone("User", &iam_id, look)
        }
    }
}

/// `claviger iam service-id`
pub async fn service(verb: Service, look: Look, link: &Link) -> Done {
    match verb {
        Service::Ls => {
            let list = link.access.service_ids().await?;
            look.ok();
            look.answer(&list, || {
                let row = |s: &ServiceId| {
                    let created = ago_of_text(&s.metadata.created_at, now());
                    vec![
                        s.entity.name.clone(),
                        s.metadata.iam_id.clone(),
                        s.entity.description.clone(),
                        created,
                    ]
                };
                let rows: Vec<_> = list.iter().map(row).collect();
                table(&["Name", "ID", "Description", "Created"], &rows)
            });
            Ok(())
        }
        Service::Create(New { name, description }) => {
            look.doing(&format!("Making service ID {name}"));
            let new = NewIdentity { name, description, ..NewIdentity::default() };
            let made = link.access.create_service_id(&new).await?;
            look.ok();
            look.answer(&made, || {
                pairs(&[
                    ("Name", made.entity.name.clone()),
                    ("ID", made.metadata.iam_id.clone()),
                    ("CRN", made.metadata.crn.clone()),
                ])
            });
            Ok(())
        }
        Service::Delete(which) => {
            let iam_id = who(&which.who, link).await?;
            sure(&format!("{iam_id} loses all access. Remove it?"), which.yes)?;
            look.doing(&format!("Removing service ID {iam_id}"));
            link.access.delete_service_id(&iam_id).await?;
            gone("Service ID", &iam_id, look)
        }
    }
}

/// `claviger iam api-key`
pub async fn api_key(verb: ApiKeys, look: Look, link: &Link) -> Done {
    match verb {
        ApiKeys::Ls(whose) => {
            let whose = of(whose, link).await?;
            let list = link.access.api_keys(whose.as_deref()).await?;
            look.ok();
            look.answer(&list, || {
                let row = |k: &ApiKey| {
                    let created = ago_of_text(&k.metadata.created_at, now());
                    vec![
                        k.entity.name.clone(),
                        k.metadata.uuid.clone(),
                        k.metadata.iam_id.clone(),
                        created,
                        k.entity.created_with.clone(),
                    ]
                };
                let rows: Vec<_> = list.iter().map(row).collect();
                table(&["Name", "ID", "Of", "Created", "Made with"], &rows)
            });
            Ok(())
        }
        ApiKeys::Create(NewKey { new: New { name, description }, whose }) => {
            let bound_to = of(whose, link).await?.unwrap_or_default();
            look.doing(&format!("Making API key {name}"));
            let new = NewIdentity { name, description, bound_to };
            let made = link.access.create_api_key(&new).await?;
            look.ok();
            shown(&made, look);
            Ok(())
        }
        ApiKeys::Delete(DeleteKey { which, cascade }) => {
            sure("Whoever uses the API key is cut off at once. Remove it?", which.yes)?;
            look.doing(&format!("Removing API key {}", which.id));
            link.access.delete_api_key(&which.id, cascade).await?;
            gone("API key", &which.id, look)
        }
        ApiKeys::Rotate(which) => {
            sure("Whoever uses the old API key is cut off at once. Rotate it?", which.yes)?;
            look.doing(&format!("Rotating API key {}", which.id));
            let old = link.access.api_key(&which.id).await?;
            let new = NewIdentity {
                name: old.entity.name,
                description: old.entity.description,
                bound_to: old.metadata.iam_id,
            };
            let made = link.access.create_api_key(&new).await?;
            // Shown first: once the old one is gone, it may be the only one that is left.
            look.ok();
            shown(&made, look);
            // The one that asks may be the one that goes.
            link.access.delete_api_key(&which.id, false).await.map_err(|e| {
                let hint = format!("remove it: claviger iam api-key delete {}", which.id);
                Failure::new(exit::NO, format!("the old API key is there still: {e}"), hint)
            })
        }
    }
}

fn shown(made: &ApiKey, look: Look) {
    look.answer(made, || {
        let mut lines = pairs(&[
            ("Name", made.entity.name.clone()),
            ("ID", made.metadata.uuid.clone()),
            ("Of", made.metadata.iam_id.clone()),
            ("API key", made.entity.api_key.clone()),
        ]);
        lines.push("The API key is shown this once.".to_owned());
        lines
    });
}

async fn of(whose: Whose, link: &Link) -> Result<Option<String>, Failure> {
    match whose.of {
        Some(text) => Ok(Some(who(&text, link).await?)),
        None => Ok(None),
    }
}
