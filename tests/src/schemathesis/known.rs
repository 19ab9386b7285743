//! What is there when schemathesis begins, and the files by which it knows.

use super::access;
use crate::Outcome;
use crate::conformance::instances::Api;
use crate::conformance::suites::Server;
use rcgen::{CertificateParams, KeyPair};
use serde_json::{Value, json};
use std::path::Path;

/// Keys that are disabled, deleted, restored and purged.
const SPARE: usize = 24;

/// Makes it all, and writes it into `dir`.
pub fn write(server: &Server, dir: &Path) -> Outcome<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|e| format!("no runtime: {e}"))?;
    runtime.block_on(make(server, dir))
}

async fn make(server: &Server, dir: &Path) -> Outcome<()> {
    let api_key = server.env.get("CLAVIGER_API_KEY").ok_or("there is no CLAVIGER_API_KEY")?;
    let api = Api::log_in_with(server, api_key).await?;
    let name = dir.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let instance = api.instance(&name).await?;
    let locked = api.instance(&format!("{name}-locked")).await?;
    let mut gone = Vec::new();
    for n in 0..3 {
        gone.push(api.instance(&format!("{name}-gone-{n}")).await?);
    }

    let world = World { api: &api, instance: &instance };
    let (mut roots, mut standard, mut spare) = (Vec::new(), Vec::new(), Vec::new());
    for n in 0..4 {
        let named = format!("root-{n}");
        roots.push(world.add("keys", json!({ "name": named, "aliases": [named] })).await?);
    }
    for n in 0..2 {
        let key = json!({ "name": format!("standard-{n}"), "extractable": true });
        standard.push(world.add("keys", key).await?);
    }
    for n in 0..SPARE {
        let named = format!("spare-{n}");
        let key = json!({ "name": named, "extractable": n % 4 == 3, "aliases": [named] });
        spare.push(world.add("keys", key).await?);
    }
    let mut ciphertexts = Vec::new();
    for root in &roots {
        let path = format!("/api/v2/keys/{root}/actions/wrap");
        ciphertexts.push(text(&api.post(&path, Some(&instance), &json!({})).await?, "ciphertext")?);
    }
    for ring in ["ring", "spare-ring"] {
        api.post(&format!("/api/v2/key_rings/{ring}"), Some(&instance), &Value::Null).await?;
    }

    let ca = std::fs::read_to_string(&server.ca_file)
        .map_err(|e| format!("cannot read {}: {e}", server.ca_file.display()))?;
    let cluster = json!({ "name": name, "server_url": "https://127.0.0.1:6443", "ca": ca });
    let made = api.post("/v3/clusters", None, &cluster).await?;
    let cluster = text(&made, "id")?;
    let (certificate, key) = join(&api, &text(&made, "join_token")?, "node-1").await?;
    for node in ["node-2", "node-3"] {
        let path = format!("/v3/clusters/{cluster}/join-tokens");
        let made = api.post(&path, None, &Value::Null).await?;
        join(&api, &text(&made, "join_token")?, node).await?;
    }
    let mut jobs = Vec::new();
    for kind in ["census", "verify"] {
        let path = format!("/v3/clusters/{cluster}/jobs");
        jobs.push(text(&api.post(&path, None, &json!({ "kind": kind })).await?, "id")?);
    }

    let mut adapters = Vec::new();
    for (n, root) in roots.iter().enumerate() {
        let adapter = json!({
            "name": format!("adapter-{n}"), "profile": "native_1.0",
            "profile_data": { "crk_id": root },
        });
        adapters.push(world.add("kmip_adapters", adapter).await?);
    }
    let path = format!("kmip_adapters/{}/certificates", adapters[0]);
    let client = json!({ "name": "client", "certificate": certificate });
    let client = world.add(&path, client).await?;
    let crns: Vec<String> =
        (0..3).map(|n| format!("crn:v1:bluemix:public:databases:local:a/0:{n}:table:t")).collect();

    let access = access::make(&api, &name, &instance).await?;
    let mut keys = [roots.clone(), standard].concat();
    keys.push("root-0".to_owned());
    let mut usual = json!({
        "id": keys, "key": roots, "alias": ["root-0", "another"], "ring": ["ring", "rings"],
        "crn": crns, "adapter": [adapters[0], "adapter-0"], "certificate": [client, "client"],
        "instance": [instance], "resource_instance": [instance], "group": [api.group()],
        "cluster": [cluster, name], "node": ["node-2"], "job": jobs,
        "Bluemix-Instance": [instance], "X-Kms-Key-Ring": ["default"],
        "Prefer": ["return=minimal", "return=representation"],
    });
    access::add(&mut usual, &access.usual);
    let mut others = usual.clone();
    access::add(&mut others, &access.spare);
    others["id"] = json!(spare);
    others["alias"] = json!(["spare-0", "spare-1"]);
    others["ring"] = json!(["spare-ring"]);
    others["adapter"] = json!(adapters[1..]);
    others["resource_instance"] = json!(gone);
    others["node"] = json!(["node-2", "node-3", "node-4"]);

    let put = |file: &str, text: String| {
        let path = dir.join(file);
        std::fs::write(&path, text).map_err(|e| format!("cannot write {}: {e}", path.display()))
    };
    // Policies of an instance can lock out whoever asks.
    let known = json!({
        "usual": usual, "spare": others, "locked": locked, "bodies": access.bodies,
    });
    put("known.json", known.to_string())?;
    put("node.pem", certificate)?;
    put("node.key", key)?;
    for (file, values) in [
        ("keys.txt", keys.as_slice()),
        ("key_ids.txt", &roots),
        ("ciphertexts.txt", &ciphertexts),
        ("clusters.txt", &[cluster, name]),
        ("instances.txt", std::slice::from_ref(&instance)),
        ("groups.txt", &[api.group().to_owned()]),
        ("certificates.txt", &[ca]),
        ("api_keys.txt", std::slice::from_ref(api_key)),
    ] {
        let lines = values.iter().map(|value| format!("{}\n", Value::from(value.as_str())));
        put(file, lines.collect())?;
    }
    Ok(())
}

struct World<'a> {
    api: &'a Api,
    instance: &'a str,
}

impl World<'_> {
    /// Makes one of what `path` lists, and returns its id.
    async fn add(&self, path: &str, resource: Value) -> Outcome<String> {
        let body = json!({
            "metadata": { "collectionType": "application/json", "collectionTotal": 1 },
            "resources": [resource],
        });
        let path = format!("/api/v2/{path}");
        let made = self.api.post(&path, Some(self.instance), &body).await?;
        text(&made["resources"][0], "id")
    }
}

/// A node's certificate and its key, PEM.
async fn join(api: &Api, token: &str, agent: &str) -> Outcome<(String, String)> {
    let why = |e: rcgen::Error| format!("no certificate request: {e}");
    let key = KeyPair::generate().map_err(why)?;
    let request = CertificateParams::default().serialize_request(&key).map_err(why)?;
    let csr = request.pem().map_err(why)?;
    let body = json!({ "token": token, "agent": agent, "csr": csr });
    let made = api.post("/agent/v1/join", None, &body).await?;
    Ok((text(&made, "certificate")?, key.serialize_pem()))
}

pub(super) fn text(answer: &Value, field: &str) -> Outcome<String> {
    let text = answer[field].as_str().map(str::to_owned);
    text.ok_or_else(|| format!("an answer without {field}"))
}
