//! `claviger iam`: who can come in, by what, and what he may do. For administrators; a person's
//! own API keys for himself.

mod groups;
mod issuers;
mod people;
mod policies;

use crate::connect::{Connection, Link};
use crate::exit::{self, Done, Failure};
use crate::render::{Look, attended, confirm};
use clap::Subcommand;
use serde_json::json;

/// Arguments of `claviger iam`.
#[derive(clap::Args)]
pub struct Args {
    #[command(subcommand)]
    noun: Noun,
    #[command(flatten)]
    look: Look,
    #[command(flatten)]
    connection: Connection,
}

#[derive(Subcommand)]
enum Noun {
    /// People
    #[command(subcommand)]
    User(people::User),
    /// Programs that come in by themselves
    #[command(subcommand)]
    ServiceId(people::Service),
    /// By what people and programs come in
    #[command(subcommand)]
    ApiKey(people::ApiKeys),
    /// People and programs that have roles together
    #[command(subcommand)]
    Group(groups::Verb),
    /// Who has which roles where
    #[command(subcommand)]
    Policy(policies::Verb),
    /// Which clusters may use which keys
    #[command(subcommand)]
    Authorization(policies::Authorization),
    /// Clusters whose pods come in by their service-account tokens
    #[command(subcommand)]
    Issuer(issuers::Verb),
    /// What signs access tokens
    #[command(subcommand)]
    SigningKey(SigningKey),
}

#[derive(Subcommand)]
enum SigningKey {
    /// Let another key sign from now on; tokens of the ones before are good to their end
    Rotate {
        /// End them at once: everybody must log in again
        #[arg(long)]
        now: bool,
    },
}

/// Runs it.
pub fn run(args: Args) -> Done {
    let Args { noun, look, connection } = args;
    connection.block_on(async |link| match noun {
        Noun::User(verb) => people::user(verb, look, link).await,
        Noun::ServiceId(verb) => people::service(verb, look, link).await,
        Noun::ApiKey(verb) => people::api_key(verb, look, link).await,
        Noun::Group(verb) => groups::run(verb, look, link).await,
        Noun::Policy(verb) => policies::run(verb, look, link).await,
        Noun::Authorization(verb) => policies::authorization(verb, look, link).await,
        Noun::Issuer(verb) => issuers::run(verb, look, link).await,
        Noun::SigningKey(SigningKey::Rotate { now }) => {
            look.doing("Rotating the signing key");
            let made = link.access.rotate_signing_key(now).await?;
            look.ok();
            look.answer(&made, || vec![format!("Key {} signs from now on.", made.kid)]);
            Ok(())
        }
    })
}

/// Asks before something is removed, unless the answer is given.
fn sure(question: &str, yes: bool) -> Result<(), Failure> {
    if yes || !attended() || confirm(question) {
        return Ok(());
    }
    Err(Failure::new(exit::NO, "not confirmed; nothing was changed", ""))
}

/// Tells that something is gone.
fn gone(what: &str, id: &str, look: Look) -> Done {
    look.ok();
    look.answer(&json!({ "deleted": id }), || vec![format!("{what} {id} is gone.")]);
    Ok(())
}

/// Whom a text names: an IAM id, or the name of a user or a service ID.
async fn who(text: &str, link: &Link) -> Result<String, Failure> {
    if text.starts_with("IBMid-") || text.starts_with("iam-ServiceId-") {
        return Ok(text.to_owned());
    }
    if text.starts_with("ServiceId-") {
        return Ok(format!("iam-{text}"));
    }
    let users = link.access.users().await?.into_iter().map(|user| {
        let name = format!("{} {}", user.firstname, user.lastname).trim().to_owned();
        (user.iam_id, vec![name, user.email])
    });
    let services = link.access.service_ids().await?.into_iter();
    let services = services.map(|one| (one.metadata.iam_id, vec![one.entity.name]));
    let named: Vec<String> = users
        .chain(services)
        .filter(|(_, names)| names.iter().any(|name| name == text))
        .map(|(iam_id, _)| iam_id)
        .collect();
    match &named[..] {
        [one] => Ok(one.clone()),
        [] => Err(Failure::new(
            exit::USAGE,
            format!("nobody is called {text:?}"),
            "see who there is: claviger iam user ls, claviger iam service-id ls",
        )),
        [..] => Err(Failure::new(
            exit::USAGE,
            format!("{} are called {text:?}", named.len()),
            format!("say which by IAM id: {}", named.join(", ")),
        )),
    }
}
