//! `registries.yaml`: mirrors, authorities and credentials of image registries, as k3s has them.
//!
//! Mirrors and TLS become containerd's own `certs.d/<registry>/hosts.toml` ([`hosts`]), in a folder that containerd's
//! `config_path` must name. Credentials never reach that folder: they go with each pull ([`attempts`]).
//!
//! Differs from k3s: its containerd is changed to know `rewrite`. Here an image whose name is rewritten is pulled under
//! the other name, from a registry that exists in `certs.d` only and leads to the mirror, and gets its own name after.

pub mod attempts;
mod hosts;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use regex::Regex;
use serde::Deserialize;

/// The file is written by hand; what is larger is not it.
const FILE_BYTES_MAX: u64 = 1 << 20;
/// Stands for every registry that is not named itself.
const ANY: &str = "*";

#[derive(Debug, thiserror::Error)]
pub enum RegistriesError {
    #[error("reading {path}")]
    Read {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("{path} is not a registries file: {reason}")]
    Form { path: PathBuf, reason: String },
    #[error("writing {path}")]
    Write {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
}

#[derive(Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Registries {
    #[serde(default)]
    mirrors: BTreeMap<String, Mirror>,
    #[serde(default)]
    configs: BTreeMap<String, Config>,
}

#[derive(Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Mirror {
    #[serde(default)]
    endpoint: Vec<String>,
    #[serde(default)]
    rewrite: BTreeMap<String, String>,
}

#[derive(Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Config {
    auth: Option<Auth>,
    tls: Option<Tls>,
}

#[derive(Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Auth {
    #[serde(default)]
    username: String,
    #[serde(default)]
    password: String,
    #[serde(default)]
    auth: String,
    #[serde(default)]
    identity_token: String,
}

#[derive(Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Tls {
    #[serde(default)]
    ca_file: String,
    #[serde(default)]
    cert_file: String,
    #[serde(default)]
    key_file: String,
    #[serde(default)]
    insecure_skip_verify: bool,
}

impl std::fmt::Debug for Registries {
    /// Without credentials.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Registries").field("mirrors", &self.mirrors.keys()).finish_non_exhaustive()
    }
}

impl Registries {
    /// Reads the file; nothing is configured where there is none.
    pub fn read(path: &Path) -> Result<Self, RegistriesError> {
        let form = |reason: String| RegistriesError::Form { path: path.to_owned(), reason };
        let text = match std::fs::metadata(path) {
            Ok(metadata) if metadata.len() > FILE_BYTES_MAX => return Err(form("it is too large".to_owned())),
            Ok(_) => std::fs::read_to_string(path),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Self::default()),
            Err(error) => Err(error),
        };
        let text = text.map_err(|source| RegistriesError::Read { path: path.to_owned(), source })?;
        Self::parse(&text).map_err(form)
    }

    fn parse(text: &str) -> Result<Self, String> {
        if text.trim().is_empty() {
            return Ok(Self::default());
        }
        // An error of the parser may quote the file, and the file has passwords: the place is enough.
        let registries: Self = serde_saphyr::from_str(text).map_err(|error| match error.location() {
            Some(at) => format!("unknown key or wrong value in line {}", at.line()),
            None => "it is no mapping of mirrors and configs".to_owned(),
        })?;
        for (name, mirror) in &registries.mirrors {
            for pattern in mirror.rewrite.keys() {
                Regex::new(pattern).map_err(|_| format!("rewrite of mirror {name}: {pattern:?} is no expression"))?;
            }
        }
        let names = registries.mirrors.iter().flat_map(|(name, mirror)| std::iter::once(name).chain(&mirror.endpoint));
        for name in names.chain(registries.configs.keys()) {
            let host = Endpoint::of(name).host;
            if host.is_empty() || host.contains(['/', '\\', ' ', '\n']) || host.starts_with('.') {
                return Err(format!("{name:?} is not the name of a registry"));
            }
        }
        Ok(registries)
    }

    /// The mirrors of a registry: its own, or those of all.
    fn mirror_of(&self, host: &str) -> Option<&Mirror> {
        self.mirrors.get(host).or_else(|| self.mirrors.get(ANY))
    }

    /// Likewise how to talk to it.
    fn config_of(&self, host: &str) -> Option<&Config> {
        self.configs.get(host).or_else(|| self.configs.get(ANY))
    }

    /// Where a text leads: encrypted, unless it says otherwise or stays on this machine and has nothing to encrypt with.
    fn endpoint(&self, text: &str) -> Endpoint {
        let mut endpoint = Endpoint::of(text);
        if endpoint.scheme.is_empty() {
            let has_tls = self.config_of(&endpoint.host).is_some_and(|config| config.tls.is_some());
            endpoint.scheme = if endpoint.is_local() && !has_tls { "http" } else { "https" };
        }
        endpoint
    }

    /// The registry itself: Docker's answers under another name.
    fn origin_of(&self, host: &str) -> Endpoint {
        self.endpoint(if host == "docker.io" { "registry-1.docker.io" } else { host })
    }
}

/// Where a registry is: `host[:port]`, or a URL.
struct Endpoint {
    /// Empty where the text named none.
    scheme: &'static str,
    host: String,
    /// `None`: the registry's API is at its usual place.
    path: Option<String>,
}

impl Endpoint {
    fn of(text: &str) -> Self {
        let (scheme, rest) = match text.split_once("://") {
            Some(("http", rest)) => ("http", rest),
            Some((_, rest)) => ("https", rest),
            None => ("", text),
        };
        let (host, path) = rest.split_once('/').unwrap_or((rest, ""));
        let path = path.trim_end_matches('/');
        let path = (!path.is_empty() && path != "v2").then(|| path.to_owned());
        Self { scheme, host: host.to_owned(), path }
    }

    fn is_local(&self) -> bool {
        let name = self.host.rsplit_once(':').map_or(self.host.as_str(), |(name, _)| name);
        matches!(name, "localhost" | "127.0.0.1" | "[::1]")
    }

    /// Scheme and host, by which containerd tells whose credentials are whose.
    fn origin(&self) -> String {
        format!("{}://{}", self.scheme, self.host)
    }

    fn url(&self) -> String {
        format!("{}/{}", self.origin(), self.path.as_deref().unwrap_or("v2"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wrong_files_are_refused_without_showing_them() {
        let refusal = |text: &str| Registries::parse(text).map(drop).unwrap_err();
        assert!(!refusal("configs:\n  r.io:\n    auth: {pasword: secret}\n").contains("secret"));
        assert_eq!(
            refusal("mirrors:\n  r.io: {rewrite: {\"(a\": b}}\n"),
            "rewrite of mirror r.io: \"(a\" is no expression"
        );
        assert_eq!(refusal("mirrors:\n  ../r: {}\n"), "\"../r\" is not the name of a registry");
        assert!(Registries::parse("").is_ok());
    }
}
