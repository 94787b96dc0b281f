//! Collects the settings from where they are given: defaults, the configuration file and its drop-ins,
//! the environment, flags; the later wins. Lists of a drop-in replace unless the key ends in `+`.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

use clap::ArgMatches;
use rkube_daemons::config::read_text;
use serde_json::Value;

use crate::settings::{self, Form, Roles, Setting};

/// Why the settings could not be collected. Never shows the value of a secret.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SettingsError {
    #[error("reading {path}")]
    Read {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("{path} is not YAML: {detail}")]
    Yaml { path: PathBuf, detail: String },
    #[error("{path} must hold keys and values")]
    NotAMap { path: PathBuf },
    #[error("{path}: unknown key {key:?}{}", suggestion(.nearest))]
    UnknownKey { path: PathBuf, key: String, nearest: Option<&'static str> },
    #[error("{origin}: {name} must be {expected}{}", shown(.value))]
    Malformed { origin: String, name: &'static str, expected: String, value: Option<String> },
    #[error("environment variable {name} is not text")]
    Environment { name: String },
    #[error("{0}")]
    Contradiction(String),
}

fn suggestion(nearest: &Option<&'static str>) -> String {
    nearest.map(|name| format!(", did you mean {name:?}?")).unwrap_or_default()
}

fn shown(value: &Option<String>) -> String {
    value.as_ref().map(|value| format!(", not {value:?}")).unwrap_or_default()
}

/// A value and where it came from, for error messages.
#[derive(Clone, Debug)]
struct Given {
    texts: Vec<String>,
    origin: String,
}

/// Every setting that was given or has a default.
#[derive(Debug, Default)]
pub(crate) struct Values(BTreeMap<&'static str, Given>);

impl Values {
    /// Collects the settings of `role`. `environment` is the process's, passed in.
    pub(crate) fn collect(
        role: Roles,
        flags: &ArgMatches,
        environment: &BTreeMap<OsString, OsString>,
    ) -> Result<Self, SettingsError> {
        let mut values = Self::default();
        for setting in settings::of(role) {
            if let Some(default) = setting.default {
                values.set(setting, vec![default.to_owned()], "default".to_owned(), false)?;
            }
        }
        let mut given = Self::default();
        given.read_environment(role, environment)?;
        given.read_flags(role, flags)?;
        let config = given.one("config").map_or_else(|| PathBuf::from(settings::CONFIG_FILE), PathBuf::from);
        let is_asked_for = given.0.contains_key("config");
        values.read_files(role, &config, is_asked_for)?;
        values.0.extend(given.0);
        Ok(values)
    }

    fn read_environment(
        &mut self,
        role: Roles,
        environment: &BTreeMap<OsString, OsString>,
    ) -> Result<(), SettingsError> {
        for setting in settings::of(role) {
            let name = setting.environment();
            if let Some(value) = environment.get(std::ffi::OsStr::new(&name)) {
                let text = value.to_str().ok_or_else(|| SettingsError::Environment { name: name.clone() })?;
                self.set(setting, split(setting, text), name, false)?;
            }
        }
        Ok(())
    }

    fn read_flags(&mut self, role: Roles, flags: &ArgMatches) -> Result<(), SettingsError> {
        for setting in settings::of(role) {
            // A command that needs few settings has flags for those only.
            if let Ok(Some(texts)) = flags.try_get_many::<String>(setting.name) {
                let texts = texts.flat_map(|text| split(setting, text)).collect();
                self.set(setting, texts, format!("--{}", setting.name), false)?;
            }
        }
        Ok(())
    }

    fn read_files(&mut self, role: Roles, config: &Path, is_asked_for: bool) -> Result<(), SettingsError> {
        let mut files = Vec::new();
        if is_asked_for || config.exists() {
            files.push(config.to_owned());
        }
        let mut drop_ins = config.as_os_str().to_owned();
        drop_ins.push(".d");
        files.extend(yaml_files(Path::new(&drop_ins))?);
        for file in files {
            self.read_file(role, &file)?;
        }
        Ok(())
    }

    fn read_file(&mut self, role: Roles, path: &Path) -> Result<(), SettingsError> {
        let read = |source| SettingsError::Read { path: path.to_owned(), source };
        let text = read_text(path).map_err(read)?;
        if text.trim().is_empty() {
            return Ok(());
        }
        // YAML 1.1, as kubectl reads it: 0640 is an octal number.
        // An error shows no line of the file, which may hold a token.
        let options = serde_saphyr::options! { legacy_octal_numbers: true, with_snippet: false };
        let value: Value = serde_saphyr::from_str_with_options(&text, options)
            .map_err(|error| SettingsError::Yaml { path: path.to_owned(), detail: one_line(&error) })?;
        let entries = match value {
            Value::Null => return Ok(()),
            Value::Object(entries) => entries,
            _ => return Err(SettingsError::NotAMap { path: path.to_owned() }),
        };
        for (key, value) in entries {
            let (name, append) = key.strip_suffix('+').map_or((key.as_str(), false), |name| (name, true));
            let Some(setting) =
                settings::of(Roles::Both).chain(settings::SETTINGS).find(|setting| setting.is_named(name))
            else {
                return Err(SettingsError::UnknownKey { path: path.to_owned(), nearest: nearest(name), key });
            };
            if !setting.roles.includes(role) {
                // One file may serve both roles of a machine.
                continue;
            }
            let origin = path.display().to_string();
            let texts = texts(setting, value, &origin)?;
            self.set(setting, texts, origin, append)?;
        }
        Ok(())
    }

    fn set(
        &mut self,
        setting: &'static Setting,
        texts: Vec<String>,
        origin: String,
        append: bool,
    ) -> Result<(), SettingsError> {
        for text in &texts {
            check(setting, text, &origin)?;
        }
        if append && let Some(given) = self.0.get_mut(setting.name) {
            given.texts.extend(texts);
            given.origin = origin;
            return Ok(());
        }
        self.0.insert(setting.name, Given { texts, origin });
        Ok(())
    }

    /// A single value.
    pub(crate) fn one(&self, name: &str) -> Option<&str> {
        self.0.get(name)?.texts.last().map(String::as_str)
    }

    pub(crate) fn list(&self, name: &str) -> &[String] {
        self.0.get(name).map_or(&[], |given| &given.texts)
    }

    pub(crate) fn switch(&self, name: &str) -> bool {
        self.one(name).is_some_and(|text| text == "true")
    }

    /// Where a setting was given; `None` if it has its default or no value.
    pub(crate) fn origin(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(|given| given.origin.as_str()).filter(|origin| *origin != "default")
    }
}

fn one_line(error: &impl std::fmt::Display) -> String {
    error.to_string().split_whitespace().collect::<Vec<_>>().join(" ")
}

/// The drop-ins in alphabetical order.
fn yaml_files(folder: &Path) -> Result<Vec<PathBuf>, SettingsError> {
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(source) => return Err(SettingsError::Read { path: folder.to_owned(), source }),
    };
    let mut files = Vec::new();
    for entry in entries {
        let path = entry.map_err(|source| SettingsError::Read { path: folder.to_owned(), source })?.path();
        if path.extension().is_some_and(|extension| extension == "yaml" || extension == "yml") {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

/// What a value of the file means as flag text.
fn texts(setting: &'static Setting, value: Value, origin: &str) -> Result<Vec<String>, SettingsError> {
    let malformed = || SettingsError::Malformed {
        origin: origin.to_owned(),
        name: setting.name,
        expected: expected(setting.form),
        value: None,
    };
    match value {
        Value::String(text) => Ok(split(setting, &text)),
        Value::Bool(value) => Ok(vec![value.to_string()]),
        // YAML reads 0644 as a number in octal; the setting is its text.
        Value::Number(number) if setting.form == Form::Mode => {
            number.as_u64().map(|mode| vec![format!("{mode:04o}")]).ok_or_else(malformed)
        }
        Value::Number(number) => Ok(vec![number.to_string()]),
        Value::Array(items) if matches!(setting.form, Form::List | Form::Repeated) => items
            .into_iter()
            .map(|item| match item {
                Value::String(text) => Ok(text),
                Value::Number(number) => Ok(number.to_string()),
                _ => Err(malformed()),
            })
            .collect(),
        _ => Err(malformed()),
    }
}

fn split(setting: &Setting, text: &str) -> Vec<String> {
    match setting.form {
        Form::List => text.split(',').map(str::trim).filter(|part| !part.is_empty()).map(str::to_owned).collect(),
        _ => vec![text.to_owned()],
    }
}

fn expected(form: Form) -> String {
    match form {
        Form::Text => "text".to_owned(),
        Form::List | Form::Repeated => "a list of texts".to_owned(),
        Form::Switch => "true or false".to_owned(),
        Form::Path => "a path".to_owned(),
        Form::Port => "a port between 1 and 65535".to_owned(),
        Form::PortRange => "a range of ports such as 30000-32767".to_owned(),
        Form::Address => "an IP address".to_owned(),
        Form::Cidr => "a network such as 10.42.0.0/16".to_owned(),
        Form::Mode => "an octal file mode such as 0600".to_owned(),
        Form::Choice(choices) => format!("one of {}", choices.join(", ")),
    }
}

fn check(setting: &'static Setting, text: &str, origin: &str) -> Result<(), SettingsError> {
    let is_fine = match setting.form {
        Form::Text | Form::List | Form::Repeated => !text.is_empty(),
        Form::Path => !text.is_empty() && !text.contains('\0'),
        Form::Switch => text == "true" || text == "false",
        Form::Port => text.parse::<u16>().is_ok_and(|port| port > 0),
        Form::PortRange => port_range(text).is_some(),
        Form::Address => text.parse::<std::net::IpAddr>().is_ok(),
        Form::Cidr => cidr(text).is_some(),
        Form::Mode => u32::from_str_radix(text, 8).is_ok_and(|mode| mode <= 0o777),
        Form::Choice(choices) => choices.contains(&text),
    };
    if is_fine {
        return Ok(());
    }
    Err(SettingsError::Malformed {
        origin: origin.to_owned(),
        name: setting.name,
        expected: expected(setting.form),
        value: (!setting.secret).then(|| text.to_owned()),
    })
}

pub(crate) fn port_range(text: &str) -> Option<(u16, u16)> {
    let (first, last) = text.split_once('-')?;
    let (first, last) = (first.parse::<u16>().ok()?, last.parse::<u16>().ok()?);
    (0 < first && first <= last).then_some((first, last))
}

pub(crate) fn cidr(text: &str) -> Option<rkube_daemons::config::Cidr> {
    let (address, prefix_length) = text.split_once('/')?;
    let address: std::net::IpAddr = address.parse().ok()?;
    let prefix_length: u8 = prefix_length.parse().ok()?;
    let bits = if address.is_ipv4() { 32 } else { 128 };
    (prefix_length <= bits).then_some(rkube_daemons::config::Cidr { address, prefix_length })
}

/// This machine's architecture as Go and container images name it.
pub(crate) fn go_architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

/// The known name closest to a wrong one, if it is close.
fn nearest(name: &str) -> Option<&'static str> {
    let distance = |known: &str| edit_distance(name, known);
    let best = settings::SETTINGS.iter().map(|setting| setting.name).min_by_key(|known| distance(known))?;
    (distance(best) <= best.len() / 3 + 1).then_some(best)
}

/// Insertions, deletions and replacements between two names.
fn edit_distance(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, from) in a.bytes().enumerate() {
        let mut diagonal = i;
        row[0] = i + 1;
        for (j, to) in b.bytes().enumerate() {
            let replace = diagonal + usize::from(from != to);
            diagonal = row[j + 1];
            row[j + 1] = replace.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arguments;

    fn collect(config: &str, drop_in: &str, environment: &[(&str, &str)], flags: &[&str]) -> Result<Values, String> {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("config.yaml");
        fs::write(&file, config).unwrap();
        fs::create_dir(folder.path().join("config.yaml.d")).unwrap();
        fs::write(folder.path().join("config.yaml.d/10.yaml"), drop_in).unwrap();
        let mut words = vec!["rkube".to_owned(), "server".to_owned(), format!("--config={}", file.display())];
        words.extend(flags.iter().map(|&flag| flag.to_owned()));
        let matches = arguments::command().try_get_matches_from(words).map_err(|error| error.to_string())?;
        let (_, flags) = matches.subcommand().unwrap();
        let environment =
            environment.iter().map(|(name, value)| (OsString::from(name), OsString::from(value))).collect();
        let folder_name = folder.path().display().to_string();
        Values::collect(Roles::Server, flags, &environment)
            .map_err(|error| error.to_string().replace(&folder_name, "D"))
    }

    #[test]
    fn the_later_source_wins_and_lists_append_on_request() {
        let config = "https-listen-port: 7000\ntls-san: [a, b]\nwrite-kubeconfig-mode: 0640\n";
        let values = collect(
            config,
            "tls-san+: [c]\ncluster-domain: one\n",
            &[("RKUBE_CLUSTER_DOMAIN", "two")],
            &["--cluster-domain=three", "--debug"],
        )
        .unwrap();
        assert_eq!(values.one("https-listen-port"), Some("7000"));
        assert_eq!(values.list("tls-san"), ["a", "b", "c"]);
        assert_eq!(values.one("write-kubeconfig-mode"), Some("0640"));
        assert_eq!(values.one("cluster-domain"), Some("three"));
        assert_eq!(values.one("service-cidr"), Some("10.43.0.0/16"));
        assert!(values.switch("debug") && !values.switch("disable-agent"));
    }

    #[test]
    fn errors_name_the_setting_its_source_and_the_nearest_known_key() {
        let error = |config: &str, environment: &[(&str, &str)]| collect(config, "", environment, &[]).unwrap_err();
        assert_eq!(
            error("cluster-cdir: x", &[]),
            "D/config.yaml: unknown key \"cluster-cdir\", did you mean \"cluster-cidr\"?"
        );
        assert_eq!(
            error("https-listen-port: 70000", &[]),
            "D/config.yaml: https-listen-port must be a port between 1 and 65535, not \"70000\""
        );
        assert_eq!(error("", &[("RKUBE_NODE_IP", "x")]), "RKUBE_NODE_IP: node-ip must be an IP address, not \"x\"");
        assert_eq!(error("token: [sesame]", &[]), "D/config.yaml: token must be text");
        assert_eq!(error("- a", &[]), "D/config.yaml must hold keys and values");
    }

    #[test]
    fn an_unknown_flag_is_refused() {
        assert!(collect("", "", &[], &["--cluster-cdir=x"]).unwrap_err().contains("--cluster-cidr"));
    }
}
