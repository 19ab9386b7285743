//! Which crate may name which: the table in docs/architecture.md, held against each Cargo.toml.
//!
//! Development dependencies are free: they do not ship.

use crate::sh::root;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;

/// What the table allows: for each crate, the crates it may name.
type Table = BTreeMap<String, BTreeSet<String>>;

/// Complaints, one line each.
pub fn check() -> Result<Vec<String>, String> {
    let table = read_table(&read("docs/architecture.md")?)?;
    let mut complaints = Vec::new();
    for name in crate_names()? {
        let path = format!("crates/{name}/Cargo.toml");
        match table.get(&name) {
            Some(allowed) => complaints.extend(compare(&path, &read(&path)?, allowed)?),
            None => complaints.push(format!(
                "{path}: crate {name} is not in the code map of docs/architecture.md; add its row"
            )),
        }
    }
    Ok(complaints)
}

fn read(path: &str) -> Result<String, String> {
    fs::read_to_string(root().join(path)).map_err(|e| format!("cannot read {path}: {e}"))
}

fn crate_names() -> Result<Vec<String>, String> {
    let dir = root().join("crates");
    let entries = fs::read_dir(&dir).map_err(|e| format!("cannot read {}: {e}", dir.display()))?;
    let mut names: Vec<String> = entries
        .filter_map(Result::ok)
        .filter(|entry| entry.path().join("Cargo.toml").is_file())
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    Ok(names)
}

/// Reads the rows `| crate | what it is | may name |` of the code map.
fn read_table(text: &str) -> Result<Table, String> {
    let rows: Vec<(String, &str)> = text
        .lines()
        .skip_while(|line| !line.starts_with("| crate |"))
        .skip(2)
        .take_while(|line| line.starts_with('|'))
        .filter_map(|line| {
            let cells: Vec<&str> = line.trim_matches('|').split('|').map(str::trim).collect();
            let [name, _, may] = cells[..] else { return None };
            Some((name.trim_matches('`').to_owned(), may))
        })
        .collect();
    if rows.is_empty() {
        return Err("docs/architecture.md has no table that begins with `| crate |`".to_owned());
    }
    let all: BTreeSet<String> = rows.iter().map(|(name, _)| name.clone()).collect();
    let mut table = Table::new();
    for (name, may) in &rows {
        let list = |text: &str| -> BTreeSet<String> {
            text.split(',').map(|word| word.trim().to_owned()).collect()
        };
        let mut allowed = if *may == "nothing of ours" {
            BTreeSet::new()
        } else if *may == "all" {
            all.clone()
        } else if let Some(except) = may.strip_prefix("all but ") {
            all.difference(&list(except)).cloned().collect()
        } else {
            list(may)
        };
        allowed.remove(name);
        if let Some(stranger) = allowed.iter().find(|word| !all.contains(*word)) {
            return Err(format!(
                "docs/architecture.md: row {name} names {stranger}, which has no row"
            ));
        }
        table.insert(name.clone(), allowed);
    }
    Ok(table)
}

/// Complains about each of our crates in `manifest` that `allowed` does not hold.
fn compare(path: &str, manifest: &str, allowed: &BTreeSet<String>) -> Result<Vec<String>, String> {
    let parsed: toml::Table = manifest.parse().map_err(|e| format!("{path}: {e}"))?;
    let mut complaints = Vec::new();
    // Of every machine, and of some machines alone.
    let targets = parsed.get("target").and_then(toml::Value::as_table);
    let targets =
        targets.into_iter().flat_map(|all| all.values()).filter_map(toml::Value::as_table);
    for section in std::iter::once(&parsed).chain(targets) {
        for kind in ["dependencies", "build-dependencies"] {
            let Some(named) = section.get(kind).and_then(toml::Value::as_table) else { continue };
            for (key, value) in named {
                // Under another name it is the same crate.
                let package = value.get("package").and_then(toml::Value::as_str).unwrap_or(key);
                let Some(other) = package.strip_prefix("claviger-") else { continue };
                if !allowed.contains(other) {
                    let line = manifest
                        .lines()
                        .position(|line| line.trim_start().starts_with(key.as_str()))
                        .map_or(0, |index| index + 1);
                    complaints.push(format!(
                        "{path}:{line}: may not name {other}; docs/architecture.md says which way arrows point"
                    ));
                }
            }
        }
    }
    Ok(complaints)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAP: &str = "\
text
| crate | what it is | may name |
|---|---|---|
| `domain` | words | nothing of ours |
| `store` | SQLite | domain |
| `agent` | all but the store | all but store, cli |
| `cli` | the binary | all |

more text";

    #[test]
    fn the_table_is_read() {
        let table = read_table(MAP).expect("reads");
        assert!(table["domain"].is_empty());
        assert_eq!(table["store"], BTreeSet::from(["domain".to_owned()]));
        assert_eq!(table["agent"], BTreeSet::from(["domain".to_owned()]));
        assert_eq!(table["cli"].len(), 3);
        assert!(read_table("no table").is_err());
        assert!(read_table(&MAP.replace("SQLite | domain", "SQLite | nobody")).is_err());
    }

    #[test]
    fn an_arrow_that_points_up_is_named_with_its_line() {
        let table = read_table(MAP).expect("reads");
        let manifest = "[dependencies]\nserde = \"1\"\nclaviger-domain.workspace = true\n\
                        claviger-cli.workspace = true\n[dev-dependencies]\nclaviger-agent.workspace = true\n";
        let complaints = compare("x/Cargo.toml", manifest, &table["store"]).expect("parses");
        assert_eq!(complaints.len(), 1, "{complaints:?}");
        assert!(complaints[0].starts_with("x/Cargo.toml:4: may not name cli"), "{complaints:?}");
        assert!(
            compare("x", manifest, &table["cli"])
                .expect("parses")
                .iter()
                .all(|c| c.contains("cli"))
        );
    }

    #[test]
    fn an_arrow_is_seen_wherever_it_is_written() {
        let table = read_table(MAP).expect("reads");
        for manifest in [
            "[build-dependencies]\nclaviger-cli.workspace = true\n",
            "[target.'cfg(unix)'.dependencies]\nclaviger-cli = \"1\"\n",
            "[dependencies]\nharmless = { package = \"claviger-cli\", path = \"x\" }\n",
        ] {
            let complaints = compare("x/Cargo.toml", manifest, &table["store"]).expect("parses");
            let wanted = "x/Cargo.toml:2: may not name cli";
            assert!(complaints.iter().any(|c| c.starts_with(wanted)), "{manifest} {complaints:?}");
        }
        let fine = "[dependencies]\nx = { package = \"claviger-domain\", path = \"x\" }\n";
        assert_eq!(compare("x", fine, &table["store"]).expect("parses"), Vec::<String>::new());
    }
}
