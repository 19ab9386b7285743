//! The file that a login leaves: a refresh token, for its owner alone.

use crate::exit::{self, Failure};
use crate::files::{self, Others};
use claviger_crypto::SecretBytes;
use claviger_server::files::write_private;
use serde::{Deserialize, Serialize};
use std::fs::DirBuilder;
use std::io::ErrorKind;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use zeroize::{Zeroize as _, Zeroizing};

/// Names the file, if it is not to be where it usually is.
pub const VARIABLE: &str = "CLAVIGER_LOGIN_FILE";
/// Largest file; a real one has some hundred bytes.
const FILE_MAX: u64 = 64 << 10;

/// A login.
pub struct LoginFile {
    /// The key server that it is for; the token goes to no other.
    pub url: String,
    /// Who vouched for the person.
    pub issuer: String,
    /// Good for access tokens until the server says otherwise.
    pub refresh_token: SecretBytes,
}

#[derive(Serialize, Deserialize)]
struct Written {
    url: String,
    issuer: String,
    refresh_token: String,
}

/// Where it is: [`VARIABLE`], or `claviger/login.json` in the directory for state.
pub fn path() -> Result<PathBuf, Failure> {
    let set = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    let state = || {
        let home = || set("HOME").map(|home| home.join(".local/state"));
        set("XDG_STATE_HOME").or_else(home).map(|state| state.join("claviger/login.json"))
    };
    set(VARIABLE).or_else(state).ok_or_else(|| {
        let error = "there is no place for the login: HOME is not set";
        Failure::new(exit::USAGE, error, format!("set {VARIABLE}"))
    })
}

/// Writes it with mode 0600, in place of one that is there.
pub fn write(path: &Path, login: &LoginFile) -> Result<(), Failure> {
    let failed = |e: std::io::Error| {
        let error = format!("cannot write the login to {}: {e}", path.display());
        Failure::new(exit::UNREACHABLE, error, format!("name another file by {VARIABLE}"))
    };
    if let Some(dir) = path.parent().filter(|dir| !dir.as_os_str().is_empty()) {
        DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(failed)?;
    }
    let token = std::str::from_utf8(login.refresh_token.expose());
    let token = token.map_err(|e| Failure::new(exit::FAULT, e, ""))?;
    let mut written = Written {
        url: login.url.clone(),
        issuer: login.issuer.clone(),
        refresh_token: token.to_owned(),
    };
    let text = serde_json::to_vec(&written).map_err(|e| Failure::new(exit::FAULT, e, ""));
    written.refresh_token.zeroize();
    write_private(path, &Zeroizing::new(text?)).map_err(failed)
}

/// The login at the key server `url`; none if there is none, or it is for another.
pub fn read(path: &Path, url: &str) -> Result<Option<LoginFile>, Failure> {
    if !path.exists() {
        return Ok(None);
    }
    if files::others_may(path) != Others::Nothing {
        let shown = path.display();
        return Err(Failure::new(
            exit::USAGE,
            format!("others may use the login in {shown}"),
            format!("claviger logout, or: chmod 600 {shown}"),
        ));
    }
    let text = Zeroizing::new(files::read_text(path, FILE_MAX)?);
    let written: Written = serde_json::from_str(&text).map_err(|_| {
        let error = format!("{} is no login", path.display());
        Failure::new(exit::USAGE, error, "claviger logout, then claviger login")
    })?;
    let Written { url: of, issuer, refresh_token } = written;
    let refresh_token = SecretBytes::new(refresh_token.into_bytes());
    Ok((of == url).then_some(LoginFile { url: of, issuer, refresh_token }))
}

/// Removes it; whether there was one.
pub fn remove(path: &Path) -> Result<bool, Failure> {
    match std::fs::remove_file(path) {
        Ok(()) => Ok(true),
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(false),
        Err(e) => {
            let error = format!("cannot remove {}: {e}", path.display());
            Err(Failure::new(exit::UNREACHABLE, error, "remove it by hand"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::Permissions;
    use std::os::unix::fs::PermissionsExt as _;

    #[test]
    fn a_login_is_for_its_server_and_its_owner_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state/claviger/login.json");
        let login = LoginFile {
            url: "https://one".to_owned(),
            issuer: "https://issuer".to_owned(),
            refresh_token: SecretBytes::new(b"clr_x".to_vec()),
        };
        assert!(read(&path, "https://one").unwrap().is_none());
        write(&path, &login).unwrap();
        let mode = std::fs::metadata(&path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode, 0o600);
        let found = read(&path, "https://one").unwrap().unwrap();
        assert_eq!(found.refresh_token.expose(), b"clr_x");
        assert!(read(&path, "https://two").unwrap().is_none());
        std::fs::set_permissions(&path, Permissions::from_mode(0o640)).unwrap();
        assert_eq!(read(&path, "https://one").err().map(|f| f.code), Some(exit::USAGE));
        assert!(remove(&path).unwrap());
        assert!(!remove(&path).unwrap());
    }
}
