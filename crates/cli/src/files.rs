//! Files that the operator's commands read and write.

use crate::exit::{self, Failure};
use claviger_crypto::SecretBytes;
use rustix::fs::{Mode, OFlags};
use std::fs::File;
use std::io::{Read, Write};
use std::path::Path;

/// Longest certificate bundle or kubeconfig: real ones have a few KiB.
pub const CONFIG_MAX: u64 = 1 << 20;

/// Longest key material file: a standard key's 7,500 bytes are 10,000 characters of base64; the rest
/// is for line ends.
const MATERIAL_MAX: u64 = 10_400;

/// Reads a text file, or standard input for `-`.
pub fn read_text(path: &Path, max: u64) -> Result<String, Failure> {
    let bytes = read(path, max)?;
    String::from_utf8(bytes).map_err(|_| {
        Failure::new(exit::USAGE, format!("{} is not text", path.display()), "give another file")
    })
}

/// What users other than its owner may do with a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Others {
    /// Nothing that matters.
    Nothing,
    /// Read it.
    Read,
    /// Put something else into it.
    Write,
}

/// What others may do with `path`. Pipes and other things that are no files are nobody's business.
pub fn others_may(path: &Path) -> Others {
    use std::os::unix::fs::PermissionsExt;
    match std::fs::metadata(path) {
        Ok(m) if m.is_file() && m.permissions().mode() & 0o022 != 0 => Others::Write,
        Ok(m) if m.is_file() && m.permissions().mode() & 0o044 != 0 => Others::Read,
        _ => Others::Nothing,
    }
}

/// Reads a secret, or standard input for `-`.
pub fn read_secret(path: &Path, max: u64) -> Result<SecretBytes, Failure> {
    read(path, max).map(SecretBytes::new)
}

/// Reads key material, or standard input for `-`: base64, or the bytes themselves if `raw`.
pub fn read_material(path: &Path, raw: bool) -> Result<SecretBytes, Failure> {
    use base64::Engine;
    use base64::engine::general_purpose::STANDARD;
    let read = read_secret(path, MATERIAL_MAX)?;
    if read.expose().trim_ascii().is_empty() {
        // The server would take none for a wish to have it generated.
        return Err(Failure::new(
            exit::USAGE,
            format!("{} holds no key material", path.display()),
            "give 16, 24 or 32 bytes; a standard key may have up to 7,500",
        ));
    }
    if raw {
        return Ok(read);
    }
    let text: Vec<u8> =
        read.expose().iter().copied().filter(|byte| !byte.is_ascii_whitespace()).collect();
    let text = SecretBytes::new(text);
    let decoded = STANDARD.decode(text.expose()).map(SecretBytes::new);
    // The decoder's error names a byte of the secret, so it is not passed on.
    decoded.map_err(|_| {
        Failure::new(
            exit::USAGE,
            format!("{} is not base64", path.display()),
            "give base64, or --raw for the bytes themselves",
        )
    })
}

fn read(path: &Path, max: u64) -> Result<Vec<u8>, Failure> {
    let fail = |e: std::io::Error| {
        Failure::new(exit::USAGE, format!("cannot read {}: {e}", path.display()), "check the path")
    };
    // Room for all at once: a vector that grows leaves copies of a secret behind.
    let mut bytes = Vec::with_capacity(usize::try_from(max + 1).unwrap_or(0));
    if path.as_os_str() == "-" {
        std::io::stdin().lock().take(max + 1).read_to_end(&mut bytes).map_err(fail)?;
    } else {
        File::open(path).map_err(fail)?.take(max + 1).read_to_end(&mut bytes).map_err(fail)?;
    }
    if bytes.len() as u64 > max {
        return Err(Failure::new(
            exit::USAGE,
            format!("{} has more than {max} bytes", path.display()),
            "is it the right file?",
        ));
    }
    Ok(bytes)
}

/// Reads JSON of a file, or of standard input for `-`.
pub fn read_json<T: serde::de::DeserializeOwned>(path: &Path) -> Result<T, Failure> {
    let text = read_text(path, CONFIG_MAX)?;
    serde_json::from_str(&text).map_err(|e| {
        let error = format!("{} is not what it should be: {e}", path.display());
        Failure::new(exit::USAGE, error, "is it the right file, and whole?")
    })
}

/// Refuses a file that is there already, unless `over`. Asked before the work whose answer is to be
/// written, so that no answer is lost.
pub fn is_free(path: &Path, over: bool) -> Result<(), Failure> {
    // A link that leads nowhere is there too.
    if over || std::fs::symlink_metadata(path).is_err() {
        return Ok(());
    }
    Err(Failure::new(
        exit::USAGE,
        format!("{} is there already", path.display()),
        "name another file, or say --yes to write over it",
    ))
}

/// Writes JSON into a file that only its owner may read, whole or not at all.
pub fn write_json(path: &Path, value: &impl serde::Serialize) -> Result<(), Failure> {
    let mut text = serde_json::to_vec_pretty(value)
        .map_err(|e| Failure::new(exit::FAULT, format!("cannot write JSON: {e}"), ""))?;
    text.push(b'\n');
    write_secret(path, &text)
}

/// Writes a file that only its owner may read, whole or not at all.
pub fn write_secret(path: &Path, bytes: &[u8]) -> Result<(), Failure> {
    let fail = |e: std::io::Error| {
        Failure::new(
            exit::UNREACHABLE,
            format!("cannot write {}: {e}", path.display()),
            "choose a directory that you may write to and that has room",
        )
    };
    let dir = match path.parent() {
        Some(dir) if !dir.as_os_str().is_empty() => dir,
        _ => Path::new("."),
    };
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(format!(".{}", std::process::id()));
    let temporary = Path::new(&temporary);
    let write = || -> std::io::Result<()> {
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
        let mode = Mode::RUSR | Mode::WUSR;
        let mut file = File::from(rustix::fs::open(temporary, flags, mode)?);
        // The umask can only have taken bits away; this says the rest.
        rustix::fs::fchmod(&file, mode)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        std::fs::rename(temporary, path)?;
        File::open(dir)?.sync_all()
    };
    write().map_err(|e| {
        drop(std::fs::remove_file(temporary));
        fail(e)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_secret_file_is_the_owners_and_whole() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config");
        write_secret(&path, b"one").unwrap();
        write_secret(&path, b"two").unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"two");
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "no temporary file is left");
        let failure = write_secret(&dir.path().join("no/such/dir"), b"x").unwrap_err();
        assert_eq!(failure.code, exit::UNREACHABLE);
    }

    #[test]
    fn a_file_that_is_there_is_written_over_only_on_demand() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config");
        assert!(is_free(&path, false).is_ok());
        std::os::unix::fs::symlink(dir.path().join("nowhere"), &path).unwrap();
        let failure = is_free(&path, false).unwrap_err();
        assert_eq!(failure.code, exit::USAGE);
        assert!(failure.hint.contains("--yes"), "{}", failure.hint);
        assert!(is_free(&path, true).is_ok());
    }

    #[test]
    fn material_is_base64_or_raw_and_errors_do_not_tell_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        std::fs::write(&path, "AAEC\nAwQF\n").unwrap();
        assert_eq!(read_material(&path, false).unwrap().expose(), [0, 1, 2, 3, 4, 5]);
        assert_eq!(read_material(&path, true).unwrap().expose().len(), 10);
        std::fs::write(&path, "geheim!").unwrap();
        let failure = read_material(&path, false).err().unwrap();
        assert!(!failure.error.contains('!'), "{}", failure.error);
        std::fs::write(&path, vec![b'A'; 12_000]).unwrap();
        assert!(read_material(&path, false).err().unwrap().error.contains("more than 10400"));
    }
}
