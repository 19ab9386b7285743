//! How the operator's commands reach the key server.

use crate::exit::{self, Done, Failure};
use crate::files;
use crate::login_file;
use claviger_client::{Access, Admin, ClusterService, Config, Error, KeyService, Operator, Proof};
use claviger_crypto::SecretBytes;
use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;
use std::process::Command;

/// Where the key server is and who asks.
#[derive(clap::Args, Clone)]
pub struct Connection {
    /// URL of the key server
    #[arg(
        long,
        env = "CLAVIGER_URL",
        hide_env_values = true,
        global = true,
        help_heading = "Key server",
        value_name = "URL"
    )]
    url: Option<String>,
    /// URL of the token endpoint, if it is another
    #[arg(
        long,
        env = "CLAVIGER_IAM_URL",
        hide_env_values = true,
        global = true,
        help_heading = "Key server",
        value_name = "URL"
    )]
    iam_url: Option<String>,
    /// CA of the key server, PEM
    #[arg(
        long,
        env = "CLAVIGER_CA_FILE",
        hide_env_values = true,
        global = true,
        help_heading = "Key server",
        value_name = "FILE"
    )]
    ca_file: Option<PathBuf>,
    /// File that holds the API key; or the variable CLAVIGER_API_KEY, never an argument
    #[arg(long, global = true, help_heading = "Key server", value_name = "FILE")]
    api_key_file: Option<PathBuf>,
}

/// A key server that can be asked.
pub struct Link {
    /// Root keys.
    pub keys: KeyService,
    /// Clusters.
    pub clusters: ClusterService,
    /// Instances.
    pub admin: Admin,
    /// Who may do what.
    pub access: Access,
    environment: Vec<(&'static str, OsString)>,
    proof: Proof,
}

/// The variable that an API key may come by.
const API_KEY: &str = "CLAVIGER_API_KEY";
/// Longest API key file: a key has 44 characters.
const API_KEY_MAX: u64 = 4096;

impl Link {
    /// Lets a process of ours reach the same key server. Who asks, it is to be told by a pipe
    /// ([`Link::api_key`]), since others may read its variables.
    pub fn tell(&self, command: &mut Command) {
        command.envs(self.environment.iter().cloned()).env_remove(API_KEY);
    }

    /// The API key, for a process of ours that reads it by [`Connection::with_api_key`]. None of a
    /// login, whose file it finds by itself.
    pub fn api_key(&self) -> Option<&SecretBytes> {
        match &self.proof {
            Proof::ApiKey(key) => Some(key),
            Proof::RefreshToken(_) => None,
        }
    }
}

impl Connection {
    /// Does `work` with a key server.
    pub fn block_on(self, work: impl AsyncFnOnce(&Link) -> Done) -> Done {
        self.with_api_key(None, work)
    }

    /// Does `work` with a key server, as whoever has this API key; without one, as whoever the
    /// caller says he is.
    pub fn with_api_key(
        self,
        api_key: Option<SecretBytes>,
        work: impl AsyncFnOnce(&Link) -> Done,
    ) -> Done {
        if let Ok(traceparent) = std::env::var("TRACEPARENT") {
            claviger_client::continue_trace(&traceparent);
        }
        let link = self.link(api_key)?;
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|e| Failure::new(exit::FAULT, format!("cannot start: {e}"), "try again"))?;
        runtime.block_on(work(&link))
    }

    fn link(self, api_key: Option<SecretBytes>) -> Result<Link, Failure> {
        let (url, ca_file) = self.server()?;
        let mut environment: Vec<(&'static str, OsString)> = vec![
            ("CLAVIGER_URL", url.clone().into()),
            ("CLAVIGER_CA_FILE", ca_file.clone().into_os_string()),
        ];
        let api_key = match api_key {
            Some(key) => Some(key),
            None => self.own_api_key()?,
        };
        let proof = match api_key {
            Some(key) => Proof::ApiKey(key),
            None => {
                let path = login_file::path().ok();
                let login = path.as_deref().map(|path| login_file::read(path, &url)).transpose()?;
                let (Some(path), Some(login)) = (path, login.flatten()) else {
                    return Err(missing(
                        "an API key",
                        "set CLAVIGER_API_KEY, say --api-key-file, or claviger login",
                    ));
                };
                environment.push((login_file::VARIABLE, path.into_os_string()));
                Proof::RefreshToken(login.refresh_token)
            }
        };
        if let Some(iam) = &self.iam_url {
            environment.push(("CLAVIGER_IAM_URL", iam.into()));
        }
        let config = Config { url, iam_url: self.iam_url, ca_file, proof };
        let Operator { keys, clusters, admin, access } = Operator::connect(&config)?;
        Ok(Link { keys, clusters, admin, access, environment, proof: config.proof })
    }

    /// The key server's URL, and its CA file.
    pub fn server(&self) -> Result<(String, PathBuf), Failure> {
        let url = self.url.clone();
        let url =
            url.ok_or_else(|| missing("the key server's URL", "say --url, or set CLAVIGER_URL"))?;
        let ca_file = self.ca_file.clone();
        let ca_file = ca_file.ok_or_else(|| {
            missing("the key server's CA", "say --ca-file, or set CLAVIGER_CA_FILE")
        })?;
        Ok((url, ca_file))
    }

    /// The API key that the caller gives by a file or a variable, if he does.
    fn own_api_key(&self) -> Result<Option<SecretBytes>, Failure> {
        let Some(path) = &self.api_key_file else {
            let given = std::env::var_os(API_KEY).map(|key| SecretBytes::new(key.into_vec()));
            return Ok(given.filter(|key| !key.expose().is_empty()));
        };
        let shown = path.display();
        match files::others_may(path) {
            files::Others::Nothing => {}
            // Not refused: a Secret that is mounted into a container looks like this.
            files::Others::Read => {
                eprintln!("warning: others may read the API key in {shown}: chmod 600 {shown}");
            }
            files::Others::Write => {
                return Err(Failure::new(
                    exit::USAGE,
                    format!("others may write to {shown}, so whose API key is in it?"),
                    format!("look at it, then: chmod 600 {shown}"),
                ));
            }
        }
        let read = files::read_secret(path, API_KEY_MAX)?;
        let api_key = SecretBytes::new(read.expose().trim_ascii().to_vec());
        if api_key.expose().is_empty() {
            return Err(Failure::new(
                exit::USAGE,
                "the API key file is empty",
                "write the API key into it, as it was shown when it was made",
            ));
        }
        Ok(Some(api_key))
    }
}

fn missing(what: &str, how: &str) -> Failure {
    Failure::new(
        exit::USAGE,
        format!("{what} is not given"),
        format!("{how}; a cluster of `claviger dev` sets all by `. D/env`"),
    )
}

/// What to do about a refusal of the key service, whose own errors carry no command.
fn mended_by(reason: Option<&str>) -> &'static str {
    match reason {
        Some("KEY_ACTION_INVALID_STATE_ERR") => "see its state: claviger key get",
        Some("KEY_PAYLOAD_REQ_ERR") => "give the new material: --material FILE",
        Some("KEY_NOT_FOUND_ERR") => "see which there are: claviger key ls",
        Some("INSTANCE_NOT_FOUND_ERR") => "see which there are: claviger ks kms instance ls",
        Some("PROTECTED_RESOURCE_ERR" | "PREV_KEY_DEL_ERR") => {
            "see who uses it: claviger key get; move those clusters to another key, then take them off this one: claviger ks kms release"
        }
        Some("AUTHORIZATION_MISSING_ERR") => "claviger iam authorization create",
        Some("RC-ServiceBrokerErrorResponse") => "see its keys: claviger key ls, claviger key get",
        _ => "",
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Failure {
        let code = match &error {
            Error::Unreachable { .. } | Error::Busy { .. } => exit::UNREACHABLE,
            // What the command line names does not exist, or is not what it should be.
            Error::Refused { status: 400 | 404 | 413, .. } => exit::USAGE,
            Error::Refused { .. } | Error::Unauthorized { .. } => exit::NO,
            // A wrong CA or a broken file: another try gives the same.
            Error::Tls { .. } | Error::Local { .. } => exit::USAGE,
            Error::Protocol { .. } => exit::FAULT,
        };
        let hint = match (&error, error.hint()) {
            (Error::Tls { .. }, "") => "is --ca-file the CA of this server?",
            (Error::Local { .. }, "") => "see `claviger help` and docs/cli.md",
            (_, "") => mended_by(error.reason()),
            (_, hint) => hint,
        };
        Failure::new(code, &error, hint)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_get_the_codes_of_the_table() {
        let refused = |status| Error::Refused {
            status,
            code: "X".to_owned(),
            message: "m".to_owned(),
            hint: String::new(),
        };
        let what = "w".to_owned();
        for (error, code) in [
            (Error::Unreachable { url: "u".to_owned(), what: what.clone() }, 3),
            (Error::Busy { url: "u".to_owned(), status: 503, what: what.clone() }, 3),
            (Error::Tls { url: "u".to_owned(), what: what.clone() }, 2),
            (refused(404), 2),
            (refused(409), 1),
            (refused(422), 1),
            (Error::Unauthorized { message: what.clone() }, 1),
            (Error::Local { what: what.clone() }, 2),
            (Error::Protocol { what }, 70),
        ] {
            assert_eq!(Failure::from(error.clone()).code, code, "{error}");
        }
    }
}
