//! `registries.yaml`: mirrors, authorities and credentials of image registries, as k3s has them.
//!
//! Mirrors and TLS become containerd's own `certs.d/<registry>/hosts.toml`, in a folder that containerd's
//! `config_path` must name. Credentials never reach that folder: they go with each pull.
//!
//! Differs from k3s: `rewrite` is refused. It needs a containerd that is changed for it, and a setting that does
//! nothing is worse than an error.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use rkube_cri::v1::AuthConfig;
use serde::Deserialize;

/// The file is written by hand; what is larger is not it.
const FILE_BYTES_MAX: u64 = 1 << 20;
const HEADER: &str = "# Written by rkube from registries.yaml; changes are lost.\n";

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
            if !mirror.rewrite.is_empty() {
                return Err(format!("rewrite of mirror {name} is not supported"));
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

    /// Brings the folder in line: one subfolder per registry, and none of registries that are no longer named.
    pub fn write(&self, folder: &Path) -> Result<(), RegistriesError> {
        let at = |path: &Path| {
            let path = path.to_owned();
            move |source| RegistriesError::Write { path, source }
        };
        let hosts: BTreeSet<String> =
            self.mirrors.keys().chain(self.configs.keys()).map(|name| Endpoint::of(name).host).collect();
        std::fs::create_dir_all(folder).map_err(at(folder))?;
        for host in &hosts {
            let directory = folder.join(directory_name(host));
            let path = directory.join("hosts.toml");
            std::fs::create_dir_all(&directory).map_err(at(&directory))?;
            let temporary = directory.join(".hosts.toml");
            std::fs::write(&temporary, self.hosts_toml(host)).map_err(at(&temporary))?;
            std::fs::rename(&temporary, &path).map_err(at(&path))?;
        }
        let wanted: BTreeSet<String> = hosts.iter().map(|host| directory_name(host)).collect();
        for entry in std::fs::read_dir(folder).map_err(at(folder))?.flatten() {
            let path = entry.path();
            let ours = std::fs::read_to_string(path.join("hosts.toml")).is_ok_and(|text| text.starts_with(HEADER));
            let is_wanted = entry.file_name().to_str().is_some_and(|name| wanted.contains(name));
            if ours && !is_wanted {
                std::fs::remove_dir_all(&path).map_err(at(&path))?;
            }
        }
        Ok(())
    }

    /// containerd's description of one registry.
    fn hosts_toml(&self, host: &str) -> String {
        let mut text = HEADER.to_owned();
        // Writing to a string cannot fail.
        if host != "*" {
            let server = Endpoint::of(if host == "docker.io" { "registry-1.docker.io" } else { host });
            let _ =
                writeln!(text, "server = {}\ncapabilities = [\"pull\", \"resolve\", \"push\"]", quoted(&server.url()));
            text.push_str(&self.tls(host, ""));
        }
        let endpoints = self.mirrors.get(host).into_iter().flat_map(|mirror| &mirror.endpoint);
        for endpoint in endpoints.map(|endpoint| Endpoint::of(endpoint)) {
            let _ = writeln!(text, "\n[host.{}]\n  capabilities = [\"pull\", \"resolve\"]", quoted(&endpoint.url()));
            if endpoint.path.is_some() {
                text.push_str("  override_path = true\n");
            }
            text.push_str(&self.tls(&endpoint.host, "  "));
        }
        text
    }

    fn tls(&self, host: &str, indent: &str) -> String {
        let mut text = String::new();
        let Some(tls) = self.configs.get(host).and_then(|config| config.tls.as_ref()) else { return text };
        if tls.insecure_skip_verify {
            let _ = writeln!(text, "{indent}skip_verify = true");
        }
        if !tls.ca_file.is_empty() {
            let _ = writeln!(text, "{indent}ca = [{}]", quoted(&tls.ca_file));
        }
        if !tls.cert_file.is_empty() {
            let _ = writeln!(text, "{indent}client = [[{}, {}]]", quoted(&tls.cert_file), quoted(&tls.key_file));
        }
        text
    }

    /// The node's own credentials for a registry, used where a pod brings none.
    pub fn credentials(&self, host: &str) -> Option<AuthConfig> {
        let auth = self.configs.get(host)?.auth.clone()?;
        Some(AuthConfig {
            username: auth.username,
            password: auth.password,
            auth: auth.auth,
            identity_token: auth.identity_token,
            ..AuthConfig::default()
        })
    }
}

/// containerd's name for all registries that have no folder of their own.
fn directory_name(host: &str) -> String {
    if host == "*" { "_default".to_owned() } else { host.to_owned() }
}

/// Where a registry is: `host[:port]`, or a URL.
struct Endpoint {
    scheme: &'static str,
    host: String,
    /// `None`: the registry's API is at its usual place.
    path: Option<String>,
}

impl Endpoint {
    fn of(text: &str) -> Self {
        let (scheme, rest) = match text.split_once("://") {
            Some(("http", rest)) => (Some("http"), rest),
            Some((_, rest)) => (Some("https"), rest),
            None => (None, text),
        };
        let (host, path) = rest.split_once('/').unwrap_or((rest, ""));
        let path = path.trim_end_matches('/');
        let name = host.rsplit_once(':').map_or(host, |(name, _)| name);
        let is_local = matches!(name, "localhost" | "127.0.0.1" | "[::1]");
        Self {
            scheme: scheme.unwrap_or(if is_local { "http" } else { "https" }),
            host: host.to_owned(),
            path: (!path.is_empty() && path != "v2").then(|| path.to_owned()),
        }
    }

    fn url(&self) -> String {
        format!("{}://{}/{}", self.scheme, self.host, self.path.as_deref().unwrap_or("v2"))
    }
}

/// A TOML string.
fn quoted(text: &str) -> String {
    let escaped = text.chars().map(|c| match c {
        '"' | '\\' => format!("\\{c}"),
        c if c.is_control() => format!("\\u{:04X}", u32::from(c)),
        c => c.to_string(),
    });
    format!("\"{}\"", escaped.collect::<String>())
}

#[cfg(test)]
mod tests {
    use expect_test::{Expect, expect};

    use super::*;

    const FILE: &str = r#"
mirrors:
  docker.io:
    endpoint: ["https://mirror.example:5000", "http://cache.local/proxy/dockerhub"]
  "*":
    endpoint: ["registry.local"]
configs:
  mirror.example:5000:
    auth: {username: me, password: secret}
    tls: {ca_file: /etc/ca.pem, cert_file: /c.pem, key_file: /k.pem}
  registry.local:
    tls: {insecure_skip_verify: true}
"#;

    fn check(host: &str, expected: Expect) {
        expected.assert_eq(&Registries::parse(FILE).unwrap().hosts_toml(host));
    }

    #[test]
    fn mirrors_become_hosts() {
        check(
            "docker.io",
            expect![[r#"
            # Written by rkube from registries.yaml; changes are lost.
            server = "https://registry-1.docker.io/v2"
            capabilities = ["pull", "resolve", "push"]

            [host."https://mirror.example:5000/v2"]
              capabilities = ["pull", "resolve"]
              ca = ["/etc/ca.pem"]
              client = [["/c.pem", "/k.pem"]]

            [host."http://cache.local/proxy/dockerhub"]
              capabilities = ["pull", "resolve"]
              override_path = true
        "#]],
        );
        check(
            "*",
            expect![[r#"
            # Written by rkube from registries.yaml; changes are lost.

            [host."https://registry.local/v2"]
              capabilities = ["pull", "resolve"]
              skip_verify = true
        "#]],
        );
    }

    #[test]
    fn the_folder_follows_the_file_and_leaves_others_alone() {
        let folder = tempfile::tempdir().unwrap();
        let names = || {
            let mut names: Vec<_> = std::fs::read_dir(folder.path())
                .unwrap()
                .map(|entry| entry.unwrap().file_name().into_string().unwrap())
                .collect();
            names.sort();
            names
        };
        std::fs::create_dir(folder.path().join("mine")).unwrap();
        std::fs::write(folder.path().join("mine/hosts.toml"), "server = \"x\"").unwrap();
        let registries = Registries::parse(FILE).unwrap();
        registries.write(folder.path()).unwrap();
        assert_eq!(names(), ["_default", "docker.io", "mine", "mirror.example:5000", "registry.local"]);
        let written = std::fs::read_to_string(folder.path().join("mirror.example:5000/hosts.toml")).unwrap();
        assert!(!written.contains("secret"), "credentials stay out of it");
        assert_eq!(registries.credentials("mirror.example:5000").unwrap().username, "me");
        Registries::default().write(folder.path()).unwrap();
        assert_eq!(names(), ["mine"]);
    }

    #[test]
    fn wrong_files_are_refused_without_showing_them() {
        let refusal = |text: &str| Registries::parse(text).map(drop).unwrap_err();
        assert!(!refusal("configs:\n  r.io:\n    auth: {pasword: secret}\n").contains("secret"));
        assert_eq!(refusal("mirrors:\n  r.io: {rewrite: {a: b}}\n"), "rewrite of mirror r.io is not supported");
        assert_eq!(refusal("mirrors:\n  ../r: {}\n"), "\"../r\" is not the name of a registry");
        assert!(Registries::parse("").is_ok());
    }
}
