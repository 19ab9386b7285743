//! The EncryptionConfiguration of this node's API server, one file for each [`Stage`].
//!
//! The bytes follow from stage and socket alone, so a hash that the API server publishes says
//! which stage it has loaded. kube-apiserver takes the hash over the raw bytes, so a changed
//! comment would count as another file.

use claviger_crypto::digest;
use claviger_domain::cluster::{PROVIDER, Stage};
use std::path::Path;

/// How long kube-apiserver waits for an answer of the plugin: enough for one unwrap by the key
/// service, when a record carries a KEK that the ring does not hold.
pub const TIMEOUT_S: u32 = 10;

/// The stages that have a file, from the least to the most encrypted.
pub const STAGES: [Stage; 3] = [Stage::ReadFirst, Stage::WriteFirst, Stage::Only];

/// The file for `stage`; none for [`Stage::Bare`], which is the absence of one.
pub fn bytes(stage: Stage, socket: &Path) -> Option<Vec<u8>> {
    let kms = format!(
        "      - kms:\n          apiVersion: v2\n          name: {PROVIDER}\n          endpoint: {}\n          timeout: {TIMEOUT_S}s\n",
        quoted(&format!("unix://{}", socket.display()))
    );
    let identity = "      - identity: {}\n";
    let providers = match stage {
        Stage::Bare => return None,
        Stage::ReadFirst => [identity, &kms].concat(),
        Stage::WriteFirst => [&kms, identity].concat(),
        Stage::Only => kms,
    };
    let text = format!(
        "# Written by the Claviger agent of this node; it puts changes back.\napiVersion: apiserver.config.k8s.io/v1\nkind: EncryptionConfiguration\nresources:\n  - resources:\n      - secrets\n    providers:\n{providers}"
    );
    Some(text.into_bytes())
}

/// A YAML double-quoted scalar: JSON's escapes are all valid there.
fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

/// What kube-apiserver publishes for a file: `sha256:` and 64 hexadecimal digits.
pub fn hash(bytes: &[u8]) -> String {
    format!("sha256:{}", digest::hex(&digest::sha256(bytes)))
}

/// The stage of a file's bytes; none if it is not ours. A file that names no provider but
/// `identity` encrypts nothing and counts as [`Stage::Bare`].
pub fn stage_of(file: &[u8], socket: &Path) -> Option<Stage> {
    let ours = STAGES.into_iter().find(|s| bytes(*s, socket).is_some_and(|b| b == file));
    ours.or_else(|| encrypts_nothing(file).then_some(Stage::Bare))
}

/// The stage of the file whose hash is `hash`; none if it is not ours.
pub fn stage_of_hash(hash: &str, socket: &Path) -> Option<Stage> {
    STAGES.into_iter().find(|s| bytes(*s, socket).is_some_and(|b| self::hash(&b) == hash))
}

/// Whether the file says `identity` and no other provider that kube-apiserver knows. A text
/// search, on the side of doubt: a comment that names one makes the answer no.
fn encrypts_nothing(file: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(file) else { return false };
    let others = ["kms", "aescbc", "aesgcm", "secretbox"];
    text.contains("identity") && !others.iter().any(|name| text.contains(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOCKET: &str = "/run/claviger/kms.sock";

    #[test]
    fn the_file_of_write_first_byte_by_byte() {
        let expected = "\
# Written by the Claviger agent of this node; it puts changes back.
apiVersion: apiserver.config.k8s.io/v1
kind: EncryptionConfiguration
resources:
  - resources:
      - secrets
    providers:
      - kms:
          apiVersion: v2
          name: claviger
          endpoint: \"unix:///run/claviger/kms.sock\"
          timeout: 10s
      - identity: {}
";
        let file = bytes(Stage::WriteFirst, Path::new(SOCKET)).unwrap();
        assert_eq!(String::from_utf8(file).unwrap(), expected);
    }

    #[test]
    fn each_stage_is_known_by_its_bytes_and_by_its_hash() {
        let socket = Path::new(SOCKET);
        for stage in STAGES {
            let file = bytes(stage, socket).unwrap();
            assert_eq!(stage_of(&file, socket), Some(stage));
            assert_eq!(stage_of_hash(&hash(&file), socket), Some(stage));
            assert_eq!(stage_of(&file, Path::new("/run/other.sock")), None);
        }
        assert_eq!(bytes(Stage::Bare, socket), None);
        assert_eq!(stage_of_hash("sha256:00", socket), None);
    }

    #[test]
    fn a_foreign_file_is_bare_only_if_it_encrypts_nothing() {
        let socket = Path::new(SOCKET);
        let identity = b"kind: EncryptionConfiguration\nproviders:\n- identity: {}\n";
        assert_eq!(stage_of(identity, socket), Some(Stage::Bare));
        for other in ["- aescbc:\n- identity: {}\n", "", "- kms:\n    name: x\n- identity: {}\n"] {
            assert_eq!(stage_of(other.as_bytes(), socket), None, "{other}");
        }
    }
}
