//! What an agent would stumble over on this machine, told before it starts. Only looks.

use crate::config::AgentConfig;
use crate::identity;
use std::fs::File;
use std::io::Read as _;
use std::os::unix::fs::FileTypeExt as _;
use std::path::Path;

/// Everything that is wrong with where the settings point to; empty when the agent would start.
/// Whether server, etcd and API server answer is not asked: they may be down meanwhile.
pub fn look(config: &AgentConfig) -> Vec<String> {
    let mut wrong = Vec::new();
    let etcd = &config.etcd;
    let kube = &config.kube;
    for (name, path) in [
        ("ca", &config.ca),
        ("kube.ca", &kube.ca),
        ("kube.cert", &kube.cert),
        ("kube.key", &kube.key),
        ("etcd.ca", &etcd.ca),
        ("etcd.cert", &etcd.cert),
        ("etcd.key", &etcd.key),
    ] {
        // A directory opens, and reads not.
        let read = File::open(path).and_then(|mut file| file.read(&mut [0]));
        match read {
            Ok(0) => wrong.push(format!("{name}: {} is empty", path.display())),
            Ok(_) => {}
            Err(e) => wrong.push(format!("{name}: cannot read {}: {e}", path.display())),
        }
    }
    for (name, path) in [
        ("state_dir", Some(&config.state_dir)),
        ("api_server.unit_dir", Some(&config.api_server.unit_dir)),
    ] {
        wrong.extend(path.and_then(|path| directory(name, path)));
    }
    for (name, path) in [
        ("etcd.data_dir", &etcd.data_dir),
        ("etcd.unit_dir", &etcd.unit_dir),
        ("etcd.etcdutl", &etcd.etcdutl),
    ] {
        if let Some(path) = path.as_ref().filter(|path| !path.exists()) {
            wrong.push(format!("{name}: {} is not there", path.display()));
        }
    }
    let file = &config.api_server.encryption_config;
    wrong.extend(parent("api_server.encryption_config", file));
    if file.is_dir() {
        wrong.push(format!("api_server.encryption_config: {} is a directory", file.display()));
    }
    wrong.extend(parent("socket", &config.socket));
    // A socket of an agent that was killed is in nobody's way.
    if let Ok(found) = std::fs::symlink_metadata(&config.socket)
        && !found.file_type().is_socket()
    {
        wrong.push(format!("socket: {} is there and is none", config.socket.display()));
    }
    if config.state_dir.is_dir() {
        wrong.extend(identity::key_trouble(config));
    }
    if !identity::joined(config) {
        match &config.join_token_file {
            Some(path) if path.is_file() => {}
            Some(path) => wrong.push(format!(
                "join_token_file: {} is not there, and this node has not joined: `claviger ks cluster join-token` gives a token",
                path.display()
            )),
            None => wrong.push(
                "join_token_file: not set, and this node has not joined: name a file with what `claviger ks cluster join-token` printed".to_owned(),
            ),
        }
    }
    wrong
}

/// A directory that is there or can be made.
fn directory(name: &str, path: &Path) -> Option<String> {
    match std::fs::metadata(path) {
        Ok(found) if found.is_dir() => None,
        Ok(_) => Some(format!("{name}: {} is no directory", path.display())),
        Err(_) => path
            .ancestors()
            .find(|above| above.exists())
            .filter(|above| !above.is_dir())
            .map(|above| format!("{name}: {} is no directory", above.display())),
    }
}

fn parent(name: &str, path: &Path) -> Option<String> {
    let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty())?;
    (!dir.is_dir()).then(|| format!("{name}: the directory {} is not there", dir.display()))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::config::{ApiServerConfig, CoastMax, EtcdConfig, KubeConfig};
    use std::path::PathBuf;

    pub(crate) fn config(dir: &Path) -> AgentConfig {
        let at = |name: &str| dir.join(name);
        AgentConfig {
            server: "https://localhost".into(),
            ca: at("ca.pem"),
            name: "n1".parse().unwrap(),
            state_dir: at("state"),
            socket: at("kms.sock"),
            join_token_file: Some(at("token")),
            coast_max: CoastMax::default(),
            kube: KubeConfig {
                url: "https://localhost".into(),
                ca: at("ca.pem"),
                cert: at("ca.pem"),
                key: at("ca.pem"),
            },
            etcd: EtcdConfig {
                endpoints: vec!["https://localhost".into()],
                ca: at("ca.pem"),
                cert: at("ca.pem"),
                key: at("ca.pem"),
                data_dir: None,
                unit_dir: None,
                etcdutl: None,
                api_server_units: Vec::new(),
                scrub_after_enable: false,
            },
            api_server: ApiServerConfig {
                unit_dir: at("unit"),
                encryption_config: at("encryption.yaml"),
            },
        }
    }

    #[test]
    fn each_path_that_leads_nowhere_is_named() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["ca.pem", "token", "plain"] {
            std::fs::write(dir.path().join(name), "x").unwrap();
        }
        std::fs::write(dir.path().join("empty"), "").unwrap();
        let at = |name: &str| dir.path().join(name);
        assert_eq!(look(&config(dir.path())), Vec::<String>::new());
        type Change<'a> = (&'a str, &'a dyn Fn(&mut AgentConfig));
        let rows: [Change<'_>; 12] = [
            ("ca: cannot read", &|c| c.ca = at("none")),
            ("ca: cannot read", &|c| c.ca = dir.path().to_owned()),
            ("kube.key: ", &|c| c.kube.key = at("none")),
            ("etcd.cert: ", &|c| c.etcd.cert = at("empty")),
            ("state_dir: ", &|c| c.state_dir = at("plain")),
            ("state_dir: ", &|c| c.state_dir = at("plain/below")),
            ("api_server.unit_dir: ", &|c| c.api_server.unit_dir = at("plain")),
            ("api_server.encryption_config: ", &|c| c.api_server.encryption_config = at("no/e")),
            ("etcd.data_dir: ", &|c| c.etcd.data_dir = Some(at("none"))),
            ("socket: ", &|c| c.socket = at("plain")),
            ("socket: ", &|c| c.socket = at("no/kms.sock")),
            ("join_token_file: ", &|c| c.join_token_file = None::<PathBuf>),
        ];
        for (says, change) in rows {
            let mut config = config(dir.path());
            change(&mut config);
            let wrong = look(&config);
            assert!(wrong.len() == 1 && wrong[0].starts_with(says), "{says}: {wrong:?}");
        }
    }
}
