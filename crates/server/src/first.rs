//! The first start, and every later one: what a server must have before it listens.

use crate::app::{Account, App};
use crate::authority::Authority;
use crate::iam::said::said;
use crate::iam::signing::{self, SigningKeys};
use crate::iam::token::Tokens;
use crate::record::Writer;
use claviger_audit::WriterId;
use claviger_crypto::digest::MacKey;
use claviger_crypto::sign::SigningKey;
use claviger_crypto::{Key32, SecretBytes};
use claviger_custody::Custodian;
use claviger_domain::access::{PlatformRole, Scope, ServiceRole};
use claviger_domain::audit::{Change, Facts, Record};
use claviger_domain::id::{InstanceId, RestoreId, UnixMs};
use claviger_store::iam::{self, ApiKey, Grant, Instance, Principal};
use claviger_store::{Store, StoreError, Tx, access, audit, clusters, events, meta};
use serde::{Deserialize, Serialize};
use thiserror::Error;
use uuid::Uuid;
use zeroize::Zeroizing;

/// Why a server does not start.
#[derive(Debug, Error)]
pub enum StartError {
    /// The database.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The master key is not the one under which this database was sealed.
    #[error("the master key does not open this database: they do not belong together")]
    MasterKey,
    /// Certificates.
    #[error("certificate: {0}")]
    Certificate(#[from] rcgen::Error),
    /// TLS.
    #[error("TLS: {0}")]
    Tls(#[from] rustls::Error),
    /// The operator's own certificate.
    #[error(transparent)]
    Files(#[from] crate::tls::FilesError),
    /// Logins by issuers.
    #[error(transparent)]
    Login(#[from] crate::iam::LoginError),
    /// The audit log.
    #[error("the audit log cannot be opened: {0}")]
    Audit(#[source] std::io::Error),
    /// The database misses something that the first start writes.
    #[error("the database is damaged: {0} is missing")]
    Missing(&'static str),
}

pub(crate) struct Parts {
    pub(crate) authority: Authority,
    pub(crate) account: Account,
    pub(crate) tokens: Tokens,
    pub(crate) writer: Writer,
    /// By what requests are known that are made again.
    pub(crate) repeats: MacKey,
}

/// Bytes that show whether a master key belongs to a database.
const CHECK: &[u8] = b"claviger";
/// The secret under which API keys are hashed.
const PEPPER: &str = "api-key-pepper";
/// What its tag of this is the key for.
const REPEATS: &[u8] = b"claviger repeated requests 1";
/// How tokens were signed once; its tokens are read no longer.
const OLD_TOKEN_KEY: &str = "token-key";

/// Makes what is missing, in one transaction, and loads it. Safe to repeat.
pub(crate) fn establish(
    store: &Store,
    custodian: &dyn Custodian,
    now: UnixMs,
) -> Result<Parts, StartError> {
    let known = store.read("start", |tx| meta::get(tx, "check"))?;
    match known {
        Some(sealed) => {
            let opened = custodian.open_column(&["meta", "check"], &sealed);
            opened.map_err(|_| StartError::MasterKey)?;
        }
        None => store.tx("first start", |tx| begin(tx, custodian, now))?,
    }
    store.tx("restored", |tx| take_up_restore(tx, now))?;
    // A database of before there was an audit log.
    if store.read("start", |tx| meta::get(tx, AUDIT_WRITER))?.is_none() {
        store.tx("audit log", |tx| begin_audit(tx, custodian))?;
    }
    if !store.read("start", signing::there)? {
        store.tx("iam", |tx| begin_iam(tx, custodian, now))?;
    }
    store.read("start", |tx| load(tx, custodian))
}

/// A restore that no server has taken up yet: the bytes of its [`RestoreId`].
pub(crate) const RESTORED: &str = "restored";

/// The first start after a restore: agents may hold KEKs of each cluster which this database lacks,
/// and are asked for them. They may have heard of later key events, too, whose numbers would
/// come again with another meaning.
fn take_up_restore(tx: &Tx<'_>, now: UnixMs) -> Result<(), StartError> {
    let Some(id) = meta::get(tx, RESTORED)? else { return Ok(()) };
    let id = Uuid::from_slice(&id).map_err(|_| StartError::Missing(RESTORED))?;
    clusters::restored(tx, RestoreId(id)).map_err(StoreError::from)?;
    events::renumber(tx, now)?;
    Ok(meta::remove(tx, RESTORED)?)
}

/// Id of the audit log's writer, the key that signs its checkpoints, and the key's public half.
const AUDIT_WRITER: &str = "audit-writer";
const AUDIT_KEY: &str = "audit-key";
/// The public half, which is no secret: whoever verifies the log reads it here.
pub const AUDIT_PUBLIC: &str = "audit-public";

fn begin_audit(tx: &Tx<'_>, custodian: &dyn Custodian) -> Result<(), StoreError> {
    let seed = Key32::generate();
    let public = SigningKey::of_seed(&seed).public();
    meta::put(tx, AUDIT_WRITER, WriterId::random().0.as_bytes())?;
    meta::put(tx, AUDIT_KEY, &custodian.seal_column(&["meta", AUDIT_KEY], seed.expose()))?;
    meta::put(tx, AUDIT_PUBLIC, &public.0)
}

fn writer(tx: &Tx<'_>, seed: &SecretBytes) -> Result<Writer, StartError> {
    let damaged = || StartError::Missing(AUDIT_WRITER);
    let id = meta::get(tx, AUDIT_WRITER)?.ok_or_else(damaged)?;
    let id = WriterId(Uuid::from_slice(&id).map_err(|_| damaged())?);
    let mut seed = Zeroizing::new(seed.expose().to_vec());
    let seed = Key32::take(&mut seed).ok_or(StartError::Missing(AUDIT_KEY))?;
    Ok(Writer { id, key: SigningKey::of_seed(&seed) })
}

/// What databases of before have not: a key that signs tokens, and an authorization for each
/// root key that a cluster uses already.
fn begin_iam(tx: &Tx<'_>, custodian: &dyn Custodian, now: UnixMs) -> Result<(), StartError> {
    signing::rotate(tx, custodian, now, None)?;
    meta::remove(tx, OLD_TOKEN_KEY)?;
    Ok(crate::clusters::authorise_all(tx, now)?)
}

/// Whoever acts where nobody asked.
const SYSTEM: &str = "system";

fn begin(tx: &Tx<'_>, custodian: &dyn Custodian, now: UnixMs) -> Result<(), StartError> {
    let seal = |name: &str, value: &[u8]| {
        meta::put(tx, name, &custodian.seal_column(&["meta", name], value))
    };
    seal("check", CHECK)?;
    seal(PEPPER, SecretBytes::random(32).expose())?;
    let (certificate, key) = Authority::generate(now)?;
    let key = SecretBytes::new(key);
    meta::put(tx, "ca-certificate", &certificate)?;
    seal("ca-key", key.expose())?;

    meta::put(tx, "account", Uuid::new_v4().simple().to_string().as_bytes())?;
    let group = Uuid::new_v4();
    meta::put(tx, "resource-group", group.to_string().as_bytes())?;
    iam::add_resource_group(tx, group, "default", now)?;
    for name in ["claviger-1", "claviger-2"] {
        let instance = Instance {
            id: InstanceId::random(),
            name: name.to_owned(),
            region: REGION.to_owned(),
            created: now,
        };
        iam::add_instance(tx, &instance, group)?;
    }
    Ok(())
}

/// The region of everything.
const REGION: &str = "local";

/// Whose server this is.
pub(crate) fn account(tx: &Tx<'_>) -> Result<Account, StartError> {
    let get = |name: &'static str| meta::get(tx, name)?.ok_or(StartError::Missing(name));
    let text =
        |name: &'static str| String::from_utf8(get(name)?).map_err(|_| StartError::Missing(name));
    let resource_group = text("resource-group")?;
    Ok(Account {
        id: text("account")?,
        region: REGION.to_owned(),
        resource_group: resource_group
            .parse()
            .map_err(|_| StartError::Missing("resource-group"))?,
    })
}

fn load(tx: &Tx<'_>, custodian: &dyn Custodian) -> Result<Parts, StartError> {
    let get = |name: &'static str| meta::get(tx, name)?.ok_or(StartError::Missing(name));
    let open = |name: &'static str| {
        let sealed = get(name)?;
        custodian.open_column(&["meta", name], &sealed).map_err(|_| StartError::MasterKey)
    };
    Ok(Parts {
        authority: Authority::load(get("ca-certificate")?, open("ca-key")?.expose())?,
        account: account(tx)?,
        repeats: MacKey::new(&MacKey::new(open(PEPPER)?.expose()).tag(REPEATS)),
        tokens: Tokens::new(SigningKeys::load(tx, custodian)?, &open(PEPPER)?),
        writer: writer(tx, &open(AUDIT_KEY)?)?,
    })
}

/// What a first start tells the operator, and `claviger dev`. Holds an API key: mode 0600.
#[derive(Serialize, Deserialize)]
pub struct Bootstrap {
    /// The account's id.
    pub account: String,
    /// The region.
    pub region: String,
    /// Base URL of the server.
    pub url: String,
    /// Base URL of its public listener, if it has one.
    #[serde(default)]
    pub public_url: Option<String>,
    /// PEM of the authority.
    pub ca: String,
    /// SHA-256 of the authority's certificate.
    pub ca_sha256: String,
    /// Instances of the key service.
    pub instances: Vec<BootstrapInstance>,
    /// IAM id of the administrator.
    pub iam_id: String,
    /// The administrator's API key. Kept nowhere else.
    pub api_key: String,
}

/// An instance of the key service.
#[derive(Serialize, Deserialize)]
pub struct BootstrapInstance {
    /// Its identifier.
    pub id: InstanceId,
    /// Its name.
    pub name: String,
}

/// Makes an administrator (Manager on all instances, platform Administrator) with an API key,
/// unless the database has one whose key was `delivered`; so a crash between the two only leads
/// to one more key. None when there is nothing to tell. Blocks.
///
/// # Errors
/// When the database does not answer.
pub fn bootstrap(app: &App) -> Result<Option<Bootstrap>, StartError> {
    let now = app.clock.now();
    if app.store.read("bootstrap", |tx| meta::get(tx, "delivered"))?.is_some() {
        return Ok(None);
    }
    let iam_id = format!("IBMid-{}", &app.account.id[..10].to_ascii_uppercase());
    let api_key = app.tokens.new_api_key();
    let mac = app.tokens.api_key_mac(&api_key);
    let instances = app.store.tx("bootstrap", |tx| -> Result<_, StoreError> {
        if iam::principal(tx, &iam_id)?.is_none() {
            let admin = Principal {
                iam_id: iam_id.clone(),
                service: false,
                name: "admin".to_owned(),
                email: "admin@claviger.local".to_owned(),
            };
            iam::add_principal(tx, &admin, now)?;
            let scope = Scope::Everywhere;
            let manager = Grant::Service { role: ServiceRole::Manager, scope };
            for grant in [manager, Grant::Platform(PlatformRole::Administrator)] {
                let id = iam::add_grant(tx, &iam_id, &grant, SYSTEM, now)?;
                let policy = access::get(tx, id)?;
                let to = policy.map(|stored| said(&stored.policy)).unwrap_or_default();
                let target = format!("policy:{id}");
                let mut record = Record::of_system(now, "iam-am.policy.create", target);
                record.data.change = Some(Change::Access { from: Facts::new(), to });
                audit::add(tx, &record)?;
            }
        }
        iam::add_api_key(tx, &ApiKey::new(&iam_id, "bootstrap", SYSTEM, now), &mac)?;
        iam::instances(tx)
    })?;
    let instances =
        instances.into_iter().map(|i| BootstrapInstance { id: i.id, name: i.name }).collect();
    Ok(Some(Bootstrap {
        account: app.account.id.clone(),
        region: app.account.region.clone(),
        url: app.settings.url.clone(),
        public_url: app.settings.public_url.clone(),
        ca: app.authority.pem(),
        ca_sha256: app.authority.fingerprint(),
        instances,
        iam_id,
        api_key,
    }))
}

/// Notes that the bootstrap reached the operator, so that none is made again. Blocks.
///
/// # Errors
/// When the database does not answer.
pub fn delivered(app: &App) -> Result<(), StoreError> {
    let now = app.clock.now().0.to_string();
    app.store.tx("bootstrap", |tx| meta::put(tx, "delivered", now.as_bytes()))
}
