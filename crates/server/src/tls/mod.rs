//! TLS of the server: which certificate a client is shown. Clients that come by a name of the
//! operator's own certificate, if there is one, are shown that; all others the one that the server's
//! authority signed, which is what agents trust.
//!
//! Both are exchanged while the server runs: its own when it is about to end, the operator's when
//! its files change. Connections that are open keep the certificate they began with.

mod files;

pub use files::{CertificateFiles, FilesError, Unfit};

use crate::app::App;
use crate::first::StartError;
use arc_swap::ArcSwapOption;
use claviger_domain::id::UnixMs;
use claviger_store::{StoreError, meta};
use files::{Own, Seen, Stamp, certified, covers};
use rustls::server::{ClientHello, ResolvesServerCert, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use rustls::{RootCertStore, ServerConfig};
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::signal::unix::{Signal, SignalKind, signal};

/// A server certificate with less life than this left is renewed, at start or while serving.
const RENEW: Duration = Duration::from_secs(30 * 86_400);
/// How often the certificate's life is looked at; short against [`RENEW`].
const LOOK_AT_CERTIFICATE: Duration = Duration::from_secs(86_400);
/// How often it is looked whether the operator's files have changed.
const LOOK_AT_FILES: Duration = Duration::from_secs(10);

/// Which certificate a metric is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Which {
    /// Signed by the server's authority.
    BuiltIn,
    /// Out of the operator's files.
    Own,
}

/// The certificates that clients are shown.
#[derive(Debug, Default)]
pub(crate) struct Certificates {
    built_in: ArcSwapOption<CertifiedKey>,
    own: ArcSwapOption<Own>,
    files: Mutex<Files>,
}

/// How the operator's files were found at the last look.
#[derive(Debug, Default)]
struct Files {
    seen: Option<[Option<Stamp>; 2]>,
    trouble: Option<String>,
}

impl ResolvesServerCert for Certificates {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let own = hello.server_name().and_then(|name| {
            let own = self.own.load_full()?;
            let good = own.names.iter().any(|pattern| covers(pattern, name));
            good.then(|| own.certified.clone())
        });
        own.or_else(|| self.built_in.load_full())
    }
}

impl Certificates {
    fn files(&self) -> MutexGuard<'_, Files> {
        self.files.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What an operator has to mend: the files hold no good pair, so the one of before is shown.
    pub(crate) fn trouble(&self, now: UnixMs) -> Option<String> {
        let ended = self.own.load().as_ref().is_some_and(|own| own.not_after.0 <= now.0);
        let ended = ended.then(|| "the certificate that clients are shown has ended".to_owned());
        self.files().trouble.clone().or(ended)
    }

    /// Takes the operator's pair up if its files have changed since the last look, or always if
    /// `asked`. Blocks.
    fn look(&self, app: &App, asked: bool) -> Result<(), FilesError> {
        let Some(files) = &app.settings.certificate else { return Ok(()) };
        let mut last = self.files();
        let stamps = Stamp::of(files);
        if last.seen == Some(stamps) && !asked {
            return Ok(());
        }
        let loaded = files.load(&app.settings.names, app.clock.now());
        last.seen = Some(stamps);
        last.trouble = loaded.as_ref().err().map(ToString::to_string);
        app.metrics.certificate_failing(loaded.is_err());
        let own = loaded?;
        app.metrics.certificate_ends(Which::Own, own.not_after);
        tracing::info!(names = own.names.join(","), "the certificate in the files is shown now");
        self.own.store(Some(Arc::new(own)));
        Ok(())
    }

    /// Loads the server's own certificate, renewed if need be. Blocks.
    fn renew(&self, app: &App) -> Result<(), StartError> {
        let mut names = vec!["localhost".to_owned(), "127.0.0.1".to_owned(), "::1".to_owned()];
        names.extend(app.settings.names.iter().cloned());
        let (certificate, key) = certificate(app, &names)?;
        if let Some(end) = not_after(&certificate) {
            app.metrics.certificate_ends(Which::BuiltIn, end);
        }
        let chain = vec![certificate, app.authority.der().clone()];
        self.built_in.store(Some(Arc::new(certified(chain, key)?)));
        Ok(())
    }
}

/// TLS of this server: its certificates, the built-in one made or renewed if need be, and which
/// clients' it takes. Blocks.
///
/// # Errors
/// When the database does not answer, a certificate cannot be made, or the operator's files hold no
/// good pair.
pub fn config(app: &App) -> Result<ServerConfig, StartError> {
    app.certificates.renew(app)?;
    app.certificates.look(app, true)?;
    let mut roots = RootCertStore::empty();
    roots.add(app.authority.der().clone())?;
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let clients = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone())
        .allow_unauthenticated()
        .build()
        .map_err(|e| rustls::Error::General(e.to_string()))?;
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_client_cert_verifier(clients)
        .with_cert_resolver(app.certificates.clone());
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(config)
}

/// Keeps both certificates as they should be, until the task is dropped. SIGHUP looks at the files
/// at once.
pub(crate) async fn watch(app: Arc<App>) {
    let mut hangup = match signal(SignalKind::hangup()) {
        Ok(hangup) => Some(hangup),
        Err(e) => {
            tracing::warn!(error = %e, "SIGHUP cannot be received");
            None
        }
    };
    let mut daily = tokio::time::interval(LOOK_AT_CERTIFICATE);
    let mut often = tokio::time::interval(LOOK_AT_FILES);
    loop {
        let asked = tokio::select! {
            _ = daily.tick() => {
                if let Err(e) = app.blocking(|app| app.certificates.renew(app)).await {
                    tracing::error!(error = %e, "the server's certificate cannot be renewed; trying again tomorrow");
                }
                continue;
            }
            _ = often.tick() => false,
            () = hung_up(&mut hangup) => true,
        };
        if let Err(e) = app.blocking(move |app| app.certificates.look(app, asked)).await {
            tracing::error!(error = %e, "the certificate of before stays");
        }
    }
}

async fn hung_up(hangup: &mut Option<Signal>) {
    let received = match hangup {
        Some(hangup) => hangup.recv().await,
        None => None,
    };
    if received.is_none() {
        std::future::pending::<()>().await;
    }
}

fn certificate(
    app: &App,
    names: &[String],
) -> Result<(CertificateDer<'static>, PrivateKeyDer<'static>), StartError> {
    const KEY: &str = "server-key";
    let now = app.clock.now();
    let names_text = names.join(",");
    let stored = app.store.read("server certificate", |tx| -> Result<_, StoreError> {
        let get = |name| meta::get(tx, name);
        Ok((get("server-certificate")?, get(KEY)?, get("server-names")?))
    })?;
    if let (Some(certificate), Some(sealed), Some(stored)) = stored
        && stored == names_text.as_bytes()
        && Seen::of(&certificate).is_ok_and(|seen| {
            // One that was made while the clock was ahead is good for nobody.
            seen.not_before <= now && seen.not_after.since(now) > RENEW.as_millis() as u64
        })
    {
        let key = app
            .custodian
            .open_column(&["meta", KEY], &sealed)
            .map_err(|_| StartError::MasterKey)?;
        let key = PrivateKeyDer::Pkcs8(key.expose().to_vec().into());
        return Ok((certificate.into(), key));
    }
    let (certificate, key) = app.authority.server(names, now)?;
    let sealed = app.custodian.seal_column(&["meta", KEY], &key);
    app.store.tx("server certificate", |tx| -> Result<(), StoreError> {
        meta::put(tx, "server-certificate", &certificate)?;
        meta::put(tx, KEY, &sealed)?;
        meta::put(tx, "server-names", names_text.as_bytes())
    })?;
    Ok((certificate, PrivateKeyDer::Pkcs8(key.into())))
}

/// When a certificate (DER) ends.
pub(crate) fn not_after(der: &[u8]) -> Option<UnixMs> {
    Seen::of(der).ok().map(|seen| seen.not_after)
}

#[cfg(test)]
mod tests;
