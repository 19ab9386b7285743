//! What a server is started with: flags, environment and a file, in this order of weight. Which
//! settings there are, [`SETTINGS`] says.

use super::settings::{Config, Kind, SETTINGS, Setting};
use crate::exit::Failure;
use clap::builder::BoolishValueParser;
use clap::parser::ValueSource;
use clap::{Arg, ArgAction, ArgMatches, Command, FromArgMatches};
use std::collections::BTreeMap;
use std::io::{ErrorKind, Read as _};
use std::path::{Path, PathBuf};
use toml::de::{DeTable, DeValue};

/// Largest configuration file; a real one has some hundred bytes.
const FILE_MAX: u64 = 64 << 10;
/// The flag of the file itself.
const FILE: &str = "config";
/// Its variable.
const FILE_VARIABLE: &str = "CLAVIGER_SERVER_CONFIG";

/// Values by the name of their setting.
type Values = BTreeMap<&'static str, Vec<String>>;

/// Flags and environment. What is not given comes from the file, or is the default.
#[derive(Debug, Default, Clone)]
pub(super) struct Given {
    config: Option<PathBuf>,
    flags: Values,
    variables: Values,
}

/// Where a setting's value comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Origin {
    Flag,
    Variable,
    File,
    Default,
}

/// A setting, what it is, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Held {
    pub(super) name: &'static str,
    /// Empty if there is none.
    pub(super) value: String,
    pub(super) origin: Origin,
}

impl Origin {
    /// For people: which flag, variable or file.
    pub(super) fn of(self, setting: &Setting, file: Option<&Path>) -> String {
        match self {
            Origin::Flag => format!("flag --{}", setting.flag),
            Origin::Variable => format!("env {}", setting.variable),
            Origin::File => format!("file {}", file.unwrap_or(Path::new("-")).display()),
            Origin::Default => "default".to_owned(),
        }
    }
}

impl clap::Args for Given {
    fn augment_args(command: Command) -> Command {
        let fields: Vec<&str> = SETTINGS.iter().map(|setting| setting.name).collect();
        let help = format!(
            "A file of settings (TOML): {}. Flags and environment count for more. A field that is \
             not known is refused",
            fields.join(", ")
        );
        let file = Arg::new(FILE)
            .long(FILE)
            .env(FILE_VARIABLE)
            .hide_env_values(true)
            .value_name("FILE")
            .value_parser(clap::value_parser!(PathBuf))
            .help(help);
        command.arg(file).args(SETTINGS.iter().map(arg))
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

fn arg(setting: &'static Setting) -> Arg {
    let help = match setting.default {
        "" => setting.help.to_owned(),
        default => format!("{} [default: {default}]", setting.help),
    };
    let arg = Arg::new(setting.name)
        .long(setting.flag)
        .env(setting.variable)
        .hide_env_values(true)
        .help(help);
    let parse = |text: &str| setting.parse(text);
    match setting.kind {
        Kind::Switch => arg.action(ArgAction::SetTrue).value_parser(BoolishValueParser::new()),
        Kind::One(value) => arg.value_name(value).value_parser(parse),
        Kind::Many(value) => {
            arg.value_name(value).action(ArgAction::Append).value_delimiter(',').value_parser(parse)
        }
    }
}

impl FromArgMatches for Given {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let mut given = Given::default();
        given.update_from_arg_matches(matches)?;
        Ok(given)
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        self.config = matches.get_one::<PathBuf>(FILE).cloned();
        for setting in SETTINGS {
            let values = match matches.value_source(setting.name) {
                Some(ValueSource::CommandLine) => &mut self.flags,
                Some(ValueSource::EnvVariable) => &mut self.variables,
                _ => continue,
            };
            let said = match setting.kind {
                Kind::Switch => vec![matches.get_flag(setting.name).to_string()],
                _ => matches.get_many(setting.name).into_iter().flatten().cloned().collect(),
            };
            values.insert(setting.name, said);
        }
        Ok(())
    }
}

impl Given {
    /// The file of settings, if one is given.
    pub(super) fn file(&self) -> Option<&Path> {
        self.config.as_deref()
    }

    /// Puts all together, with what is held of each setting. The file's directory plays no part:
    /// paths are the process's.
    pub(super) fn settle(self) -> Result<(Config, Vec<Held>), Failure> {
        let written = self.config.as_deref().map(read).transpose()?.unwrap_or_default();
        let sources = [
            (Origin::Flag, self.flags),
            (Origin::Variable, self.variables),
            (Origin::File, written),
        ];
        let mut config = Config::default();
        let mut held = Vec::new();
        for setting in SETTINGS {
            let found = sources.iter().find_map(|(origin, values)| {
                values.get(setting.name).map(|values| (*origin, values))
            });
            let Some((origin, values)) = found else {
                let value = setting.default.to_owned();
                held.push(Held { name: setting.name, value, origin: Origin::Default });
                continue;
            };
            for value in values {
                (setting.take)(&mut config, value).map_err(|why| {
                    Failure::new(2, format!("{}: {why}", setting.name), "mend it where it is given")
                })?;
            }
            held.push(Held { name: setting.name, value: values.join(","), origin });
        }
        if config.data.as_os_str().is_empty() {
            return Err(Failure::new(
                2,
                "the server has no data directory",
                "give --data DIR, or data = \"DIR\" in the file of --config",
            ));
        }
        if !config.public_names.is_empty() && config.public_listen.is_none() {
            return Err(Failure::new(
                2,
                "a name of the public listener is given, but no public listener",
                "give --public-listen ADDRESS too",
            ));
        }
        let half = config.certificate.as_ref().is_some_and(|files| {
            [&files.chain, &files.key].iter().any(|path| path.as_os_str().is_empty())
        });
        if half {
            return Err(Failure::new(
                2,
                "a certificate needs its private key, and a private key its certificate",
                "give both --tls-certificate and --tls-key",
            ));
        }
        Ok((config, held))
    }
}

fn read(path: &Path) -> Result<Values, Failure> {
    let shown = path.display();
    let mut text = String::new();
    std::fs::File::open(path)
        .and_then(|file| file.take(FILE_MAX + 1).read_to_string(&mut text))
        .map_err(|e| {
            let hint = match e.kind() {
                ErrorKind::InvalidData => "it must be TOML in UTF-8",
                _ => "look at the path and its permissions",
            };
            Failure::new(3, format!("cannot read {shown}: {e}"), hint)
        })?;
    if text.len() as u64 > FILE_MAX {
        let error = format!("{shown} has more than {FILE_MAX} bytes");
        return Err(Failure::new(2, error, "is it the configuration of a server?"));
    }
    let table = DeTable::parse(&text).map_err(|e| {
        // Says line, column and what was expected; the file holds no secret.
        let error = format!("{shown}: {}", e.to_string().trim_end());
        Failure::new(2, error, "it must be TOML")
    })?;
    let mut values = Values::new();
    for (field, value) in table.get_ref() {
        let line = text[..field.span().start].matches('\n').count() + 1;
        let (name, at) = (field.get_ref(), format!("{shown}, line {line}"));
        let Some(setting) = SETTINGS.iter().find(|setting| setting.name == &**name) else {
            let hint = match nearest(name) {
                Some(near) => format!("did you mean {near}?"),
                None => "claviger server run --help names the fields".to_owned(),
            };
            return Err(Failure::new(2, format!("{at}: there is no field {name:?}"), hint));
        };
        let wrong = |why: String| {
            Failure::new(2, format!("{at}: {}: {why}", setting.name), "mend the file")
        };
        let said = match (setting.kind, value.get_ref()) {
            (Kind::Many(_), DeValue::Array(all)) => {
                all.iter().map(|one| plain(one.get_ref())).collect::<Option<Vec<_>>>()
            }
            (Kind::Many(_), _) => None,
            (_, one) => plain(one).map(|one| vec![one]),
        };
        let said = said.ok_or_else(|| {
            wrong(match setting.kind {
                Kind::Many(_) => "expected an array of strings".to_owned(),
                Kind::Switch => "expected true or false".to_owned(),
                Kind::One(what) => format!("expected one {what}"),
            })
        })?;
        for value in &said {
            setting.parse(value).map_err(|why| wrong(format!("{value:?}: {why}")))?;
        }
        values.insert(setting.name, said);
    }
    Ok(values)
}

/// The text of a value that is one thing.
fn plain(value: &DeValue<'_>) -> Option<String> {
    match value {
        DeValue::String(text) => Some(text.clone().into_owned()),
        DeValue::Integer(number) => match number.radix() {
            10 => Some(number.as_str().to_owned()),
            _ => None,
        },
        DeValue::Boolean(is) => Some(is.to_string()),
        _ => None,
    }
}

/// The field that was probably meant: at most a third of its letters are others.
fn nearest(name: &str) -> Option<&'static str> {
    let far = |setting: &&Setting| distance(name, setting.name);
    let near = SETTINGS.iter().min_by_key(far)?;
    let flag = SETTINGS.iter().find(|setting| setting.flag == name.replace('_', "-"));
    match flag {
        Some(same) => Some(same.name),
        None => (3 * far(&near) <= near.name.len()).then_some(near.name),
    }
}

/// Letters to be put in, taken out or changed (Levenshtein).
fn distance(one: &str, other: &str) -> usize {
    let other: Vec<char> = other.chars().collect();
    let mut row: Vec<usize> = (0..=other.len()).collect();
    for (i, a) in one.chars().enumerate() {
        let mut before = std::mem::replace(&mut row[0], i + 1);
        for (j, b) in other.iter().enumerate() {
            let changed = before + usize::from(a != *b);
            before = row[j + 1];
            row[j + 1] = changed.min(row[j] + 1).min(before + 1);
        }
    }
    row[other.len()]
}

#[cfg(test)]
mod tests {
    use super::*;
    use claviger_audit::Durability;

    /// What a command line, some variables and a file come to.
    fn with(text: &str, flags: &[(&'static str, &str)]) -> Result<(Config, Vec<Held>), Failure> {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("server.toml");
        std::fs::write(&path, text).expect("writes");
        let flags = flags.iter().map(|(name, value)| (*name, vec![(*value).to_owned()])).collect();
        Given { config: Some(path), flags, ..Given::default() }.settle()
    }

    fn origin(held: &[Held], name: &str) -> Origin {
        held.iter().find(|held| held.name == name).expect("there").origin
    }

    #[test]
    fn flags_count_for_more_than_variables_and_both_for_more_than_the_file() {
        let text = "data = \"/var/lib/claviger\"\nlisten = \"[::]:8443\"\nnames = [\"a.example\"]\n\
                    audit_keep_days = 90\nno_waits = true\n";
        let (config, held) = with(text, &[]).expect("good");
        assert_eq!(config.data, Path::new("/var/lib/claviger"));
        assert_eq!(config.listen, "[::]:8443".parse().expect("an address"));
        assert_eq!(config.names, ["a.example"]);
        assert_eq!(config.audit.keep.map(|keep| keep.as_secs()), Some(90 * 86_400));
        assert!(config.no_waits);
        assert_eq!(origin(&held, "names"), Origin::File);
        assert_eq!(origin(&held, "bootstrap"), Origin::Default);

        let (config, held) = with(text, &[("data", "/srv"), ("names", "b.example")]).expect("good");
        assert_eq!(config.data, Path::new("/srv"));
        assert_eq!(config.names, ["b.example"], "instead, not besides");
        assert_eq!(config.listen, "[::]:8443".parse().expect("an address"), "of the file still");
        assert_eq!(origin(&held, "names"), Origin::Flag);

        let one = |value: &str| [("data", vec![value.to_owned()])].into();
        let given = Given { flags: one("/f"), variables: one("/v"), config: None };
        let (config, _) = given.clone().settle().expect("good");
        assert_eq!(config.data, Path::new("/f"));
        let (config, held) = Given { flags: Values::new(), ..given }.settle().expect("good");
        assert_eq!(config.data, Path::new("/v"));
        assert_eq!(origin(&held, "data"), Origin::Variable);
    }

    #[test]
    fn a_command_line_becomes_what_was_said() {
        let command = <Given as clap::Args>::augment_args(Command::new("t"));
        let line = ["t", "--data", "/d", "--name", "a,b", "--name", "c", "--no-waits"];
        let matches = command.clone().try_get_matches_from(line).expect("parses");
        let (config, _) = Given::from_arg_matches(&matches).expect("reads").settle().expect("good");
        assert_eq!((config.names.join(" ").as_str(), config.no_waits), ("a b c", true));
        for bad in [["--listen", "8443"], ["--audit-keep-mib", "1"], ["--name", "https://x"]] {
            let line = [&["t", "--data", "/d"][..], &bad].concat();
            assert!(command.clone().try_get_matches_from(line).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn what_is_not_known_or_not_whole_is_refused() {
        let data = "data = \"/srv\"\n";
        for (text, said) in [
            ("dta = \"/srv\"", "line 1: there is no field \"dta\"; did you mean data?"),
            (
                "\n\nlistens = \"/srv\"",
                "line 3: there is no field \"listens\"; did you mean listen?",
            ),
            ("name = \"x\"", "did you mean names?"),
            ("public_name = [\"x\"]", "did you mean public_names?"),
            ("colour = \"red\"", "--help names the fields"),
            ("data = 7.5", "data: expected one DATA"),
            ("listen = \"8443\"", "listen: \"8443\": expected ADDRESS:PORT"),
            ("names = [\"https://x\"]", "names: \"https://x\": expected a DNS name"),
            ("names = \"x\"", "names: expected an array of strings"),
            ("audit_keep_days = 0", "the audit log is kept for at least 1 day"),
            ("audit_keep_mib = 64", "the audit log is kept for at least 128 MiB"),
            ("audit_durability = \"soon\"", "expected synced or written"),
            ("data = ", "TOML"),
        ] {
            let failure = with(text, &[]).err().unwrap_or_else(|| panic!("taken: {text}"));
            let told = format!("{}; {}", failure.error, failure.hint);
            assert!(failure.code == 2 && told.contains(said), "{text}: {told}");
        }
        let alone = with("listen = \"127.0.0.1:1\"", &[]).expect_err("no data directory");
        assert_eq!(alone.code, 2);
        assert_eq!(
            with(&format!("{data}public_names = [\"x\"]"), &[]).err().map(|f| f.code),
            Some(2)
        );
        let half = format!("{data}tls_key = \"/k\"");
        assert_eq!(with(&half, &[]).err().map(|f| f.code), Some(2));
        let absent = Given { config: Some("/nowhere/x.toml".into()), ..Given::default() };
        assert_eq!(absent.settle().err().map(|f| f.code), Some(3));
    }

    #[test]
    fn proxies_that_are_trusted() {
        let trusts = |text: &str, flags: &[(&'static str, &str)], address: &str| {
            let (config, _) = with(&format!("data = \"/d\"\n{text}"), flags).expect("good");
            let address = address.parse().expect("an address");
            config.trusted_proxies.iter().any(|proxy| proxy.has(address))
        };
        assert!(!trusts("", &[], "127.0.0.1"), "nobody, unless it is said");
        let text = "trusted_proxies = [\"10.0.0.0/8\", \"2001:db8::1\"]\n";
        assert!(trusts(text, &[], "10.1.2.3") && trusts(text, &[], "2001:db8::1"));
        assert!(!trusts(text, &[], "2001:db8::2"));
        let flag = [("trusted_proxies", "192.0.2.1")];
        assert!(!trusts(text, &flag, "10.1.2.3") && trusts(text, &flag, "192.0.2.1"));
    }

    #[test]
    fn settings_of_the_audit_log() {
        let text = "data = \"/d\"\naudit_durability = \"written\"\n\
            audit_checkpoints = [\"file:/mnt/c\", \"syslog:/dev/log\", \"syslog:udp:192.0.2.1:514\"]\n";
        let (config, _) = with(text, &[]).expect("good");
        assert_eq!(config.audit.durability, Durability::Written);
        assert_eq!(config.audit.checkpoints.len(), 3);
        let (config, _) = with(text, &[("audit_durability", "synced")]).expect("good");
        assert_eq!(config.audit.durability, Durability::Synced);
    }

    #[test]
    fn distances() {
        for (one, other, far) in [("", "abc", 3), ("data", "dta", 1), ("kitten", "sitting", 3)] {
            assert_eq!((distance(one, other), distance(other, one)), (far, far));
        }
    }
}
