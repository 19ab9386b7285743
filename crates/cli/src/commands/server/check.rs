//! `claviger server run --check`: what holds, where it comes from, and whether a server would start
//! with it. Changes nothing.

use super::config::Held;
use super::settings::{Config, SETTINGS};
use super::{bind, is_new, master_key, names, start, store};
use crate::exit::{Done, Failure};
use crate::render::{now, print_text, table, when};
use claviger_custody::Custodian as _;
use claviger_custody::software::Software;
use claviger_server::backup;
use claviger_server::first::StartError;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

/// Prints settings and findings. Of a database that a server has open, only its schema and its
/// master key are looked at.
pub(super) fn check(config: &Config, held: &[Held], file: Option<&Path>) -> Done {
    let _ = claviger_crypto::harden::harden();
    for line in settings(held, file) {
        print_text(&line);
    }
    let database = config.data.join(backup::DATABASE);
    if !is_new(config)? {
        let (found, known) = claviger_store::schema(&database).map_err(store)?;
        print_text(&match found < known {
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
        print_text("master key: of this database");
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
            return Err(Failure::new(3, error, "give --data a directory that this user may write"));
        }
        if config.master_key.is_some() {
            drop(master_key(config, false)?);
        }
        warn_if_others_may_write(&config.data);
        print_text("database: none yet; the first start makes it");
    }
    if let Some(files) = &config.certificate {
        let told = names(config, [Some(config.listen), config.public_listen]);
        let ends = files.look(&told, now());
        let ends = ends.map_err(|e| start(StartError::Files(e)))?;
        print_text(&format!("certificate: good until {}", when(ends)));
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
    print_text("a server would start with this");
    Ok(())
}

/// What holds and where it comes from. What is neither given nor has a default is left out.
fn settings(held: &[Held], file: Option<&Path>) -> Vec<String> {
    let rows: Vec<Vec<String>> = SETTINGS
        .iter()
        .zip(held)
        .filter(|(_, held)| !held.value.is_empty())
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
