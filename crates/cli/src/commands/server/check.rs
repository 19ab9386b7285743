//! `claviger server run --check`: what holds, where it comes from, and whether a server would start
//! with it. Changes nothing.

use super::config::Held;
use super::settings::{Config, SETTINGS, Setting};
use super::{bind, is_new, master_key, names, start, store};
use crate::exit::{self, Done, Failure};
use crate::render::{Look, now, table, when};
use claviger_custody::Custodian as _;
use claviger_custody::software::Software;
use claviger_server::backup;
use claviger_server::first::StartError;
use serde_json::{Value, json};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

/// Prints settings and findings. Of a database that a server has open, only its schema and its
/// master key are looked at.
pub(super) fn check(config: &Config, held: &[Held], file: Option<&Path>, look: Look) -> Done {
    let _ = claviger_crypto::harden::harden();
    // What is said until the end, or until something keeps a server from starting.
    let mut lines = Vec::new();
    let looked = look_at(config, &mut lines);
    let values: Vec<Value> = shown(held)
        .map(|(setting, held)| {
            let from = held.origin.of(setting, file);
            json!({ "setting": held.name, "value": held.value, "from": from })
        })
        .collect();
    let answer = json!({ "good": looked.is_ok(), "settings": values, "found": lines });
    look.answer(&answer, || {
        settings(held, file).into_iter().chain(lines.iter().cloned()).collect()
    });
    looked
}

fn look_at(config: &Config, lines: &mut Vec<String>) -> Done {
    let mut say = |line: &str| lines.push(line.to_owned());
    let database = config.data.join(backup::DATABASE);
    if !is_new(config)? {
        let (found, known) = claviger_store::schema(&database).map_err(store)?;
        say(&match found < known {
            true => format!("database: schema {found}; this program brings it to {known}"),
            false => format!("database: schema {found}, as this program's"),
        });
        let master = master_key(config, false)?;
        let sealed = claviger_store::peek(&database, "check").map_err(store)?;
        let custodian = Software::new(&master);
        let opened = sealed.map(|sealed| custodian.open_column(&["meta", "check"], &sealed));
        if opened.is_some_and(|opened| opened.is_err()) {
            return Err(start(StartError::MasterKey));
        }
        say("master key: of this database");
        for path in [config.data.as_path(), &database] {
            warn_if_others_may_write(path);
        }
    } else {
        let parent = config.data.ancestors().find(|path| path.exists());
        let writable = parent.is_some_and(|path| {
            rustix::fs::access(path, rustix::fs::Access::WRITE_OK).is_ok() && path.is_dir()
        });
        if !writable {
            let error = format!("this user may not make {}", config.data.display());
            return Err(Failure::new(
                exit::UNREACHABLE,
                error,
                "give --data a directory that this user may write",
            ));
        }
        if config.master_key.is_some() {
            drop(master_key(config, false)?);
        }
        warn_if_others_may_write(&config.data);
        say("database: none yet; the first start makes it");
    }
    if let Some(files) = &config.certificate {
        let told = names(config, [Some(config.listen), config.public_listen]);
        let ends = files.look(&told, now());
        let ends = ends.map_err(|e| start(StartError::Files(e)))?;
        say(&format!("certificate: good until {}", when(ends)));
    }
    let asked = [
        ("--listen", Some(config.listen)),
        ("--public-listen", config.public_listen),
        ("--status-listen", config.status_listen),
    ];
    let mut bound = Vec::new();
    for (flag, address) in asked.into_iter().filter_map(|(flag, asked)| Some((flag, asked?))) {
        // All at once: two that ask for the same address find out.
        bound.push(std::net::TcpListener::bind(address).map_err(|e| bind(flag, address, e))?);
    }
    say("a server would start with this");
    Ok(())
}

fn shown(held: &[Held]) -> impl Iterator<Item = (&'static Setting, &Held)> {
    SETTINGS.iter().zip(held).filter(|(_, held)| !held.value.is_empty())
}

/// What holds and where it comes from. What is neither given nor has a default is left out.
fn settings(held: &[Held], file: Option<&Path>) -> Vec<String> {
    let rows: Vec<Vec<String>> = shown(held)
        .map(|(setting, held)| {
            vec![held.name.to_owned(), held.value.clone(), held.origin.of(setting, file)]
        })
        .collect();
    table(&["SETTING", "VALUE", "FROM"], &rows)
}

/// Whoever may write there could put a database of his own in its place.
pub(super) fn warn_if_others_may_write(path: &Path) {
    let mode = std::fs::metadata(path).map_or(0, |found| found.permissions().mode());
    if mode & 0o022 != 0 {
        let good = if path.is_dir() { "700" } else { "600" };
        let path = path.display();
        eprintln!("warning: others may write to {path}: chmod {good} {path}");
    }
}
