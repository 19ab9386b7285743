//! `D/env`: a shell file by which any other tool joins in.

use crate::error::DevError;
use crate::files;
use crate::layout;
use crate::parts::{Dev, Part};
use crate::people;
use crate::registration;
use std::collections::BTreeMap;

/// Writes the file if what it says has changed. `pids` holds the processes that live.
pub fn write(dev: &Dev, pids: &BTreeMap<Part, i32>) -> Result<(), DevError> {
    let mut text =
        String::from("# Variables of a development cluster; kept current while it runs.\n");
    for (name, value) in variables(dev, pids)? {
        text.push_str(&format!("export {name}={}\n", quoted(&value)));
    }
    files::write_if_new(&dev.layout.env(), text.as_bytes())
}

/// What the file says.
pub fn variables(
    dev: &Dev,
    pids: &BTreeMap<Part, i32>,
) -> Result<Vec<(&'static str, String)>, DevError> {
    let all = |pick: &dyn Fn(&Part) -> bool| {
        let found: Vec<String> =
            pids.iter().filter(|(part, _)| pick(part)).map(|(_, pid)| pid.to_string()).collect();
        found.join(" ")
    };
    let mut list = Vec::new();
    if let Some(binaries) = &dev.binaries {
        let layout = &dev.layout;
        let mut sockets = Vec::new();
        for number in 1..=dev.spec.apiservers {
            sockets.push(layout::socket(&dev.spec.sockets, number)?.display().to_string());
        }
        list.extend([
            ("KUBECONFIG", layout.kubeconfig().display().to_string()),
            ("KUBECTL", binaries.kubectl.display().to_string()),
            ("ETCDCTL_ENDPOINTS", dev.etcd_url()),
            ("ETCDCTL_CACERT", layout.certificate("etcd-ca").display().to_string()),
            ("ETCDCTL_CERT", layout.certificate("etcd-client").display().to_string()),
            ("ETCDCTL_KEY", layout.key("etcd-client").display().to_string()),
            ("ETCD_DATA_DIR", layout.etcd_data().display().to_string()),
            ("ETCDUTL", binaries.etcdutl.display().to_string()),
            ("CLAVIGER_KMS_SOCKET", sockets.join(" ")),
            ("KUBE_APISERVER_PIDS", all(&|part| matches!(part, Part::ApiServer(_)))),
            ("ETCD_PID", all(&|part| *part == Part::Etcd)),
        ]);
    }
    list.extend([
        ("CLAVIGER_URL", dev.server_url()),
        ("CLAVIGER_PUBLIC_URL", dev.server_public_url()),
        ("CLAVIGER_IAM_URL", dev.server_url()),
        ("CLAVIGER_CA_FILE", dev.layout.server_ca().display().to_string()),
        ("CLAVIGER_PID", all(&|part| *part == Part::Server)),
    ]);
    if let Some(bootstrap) = registration::bootstrap(dev)? {
        list.push(("CLAVIGER_API_KEY", bootstrap.api_key.clone()));
        let names = ["CLAVIGER_INSTANCE_ID", "CLAVIGER_INSTANCE_ID_2"];
        let ids = bootstrap.instances.iter().map(|instance| instance.id.clone());
        list.extend(names.into_iter().zip(ids));
    }
    list.extend(people::api_keys(dev)?);
    if dev.binaries.is_some() {
        list.push(("CLAVIGER_CLUSTER", dev.spec.name.clone()));
        let agents = all(&|part| matches!(part, Part::Agent(_)));
        list.push(("CLAVIGER_AGENT_PIDS", agents));
    }
    Ok(list)
}

/// A value as the shell takes it, whatever it holds.
fn quoted(value: &str) -> String {
    format!("'{}'", value.replace('\'', "'\\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Other tools read these names.
    #[test]
    fn the_names_of_a_key_service_alone() {
        let home = tempfile::tempdir().unwrap();
        let dev = Dev::prepare(&crate::Options {
            dir: home.path().join("d"),
            kubernetes: None,
            apiservers: None,
            bare: false,
            only_key_service: true,
            program: "/bin/true".into(),
        })
        .unwrap();
        let bootstrap = serde_json::json!({
            "ca": "", "api_key": "k", "instances": [{ "id": "1" }, { "id": "2" }],
        });
        files::write_json(&dev.layout.bootstrap(), &bootstrap).unwrap();
        let people: BTreeMap<&str, &str> =
            people::wanted().into_iter().map(|(name, _)| (name, "k")).collect();
        assert!(!people::done(&dev).unwrap());
        files::write_json(&dev.layout.people(), &people).unwrap();
        assert!(people::done(&dev).unwrap());
        let names: Vec<_> =
            variables(&dev, &BTreeMap::new()).unwrap().into_iter().map(|(name, _)| name).collect();
        assert_eq!(
            names,
            [
                "CLAVIGER_URL",
                "CLAVIGER_PUBLIC_URL",
                "CLAVIGER_IAM_URL",
                "CLAVIGER_CA_FILE",
                "CLAVIGER_PID",
                "CLAVIGER_API_KEY",
                "CLAVIGER_INSTANCE_ID",
                "CLAVIGER_INSTANCE_ID_2",
                "CLAVIGER_API_KEY_2",
                "CLAVIGER_SERVICE_API_KEY",
                "CLAVIGER_READER_API_KEY",
                "CLAVIGER_PURGE_API_KEY",
                "CLAVIGER_SUITE_API_KEY",
            ]
        );
        let _ = std::fs::remove_dir_all(&dev.spec.sockets);
    }

    #[test]
    fn values_survive_the_shell() {
        for value in ["", "a b", "it's", "$HOME `id` \"x\" \\", "'", "a\nb"] {
            let script = format!("export V={}\nprintf %s \"$V\"", quoted(value));
            let out = std::process::Command::new("sh").args(["-c", &script]).output().unwrap();
            assert_eq!(String::from_utf8(out.stdout).unwrap(), value);
        }
    }
}
