//! containerd's own description of registries, `certs.d/<registry>/hosts.toml`.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;

use super::{ANY, Endpoint, Registries, RegistriesError};

const HEADER: &str = "# Written by rkube from registries.yaml; changes are lost.\n";

/// The registry that leads to one mirror only, for images that have another name there. It exists in `certs.d` alone.
pub(super) fn alias(host: &str, number: usize) -> String {
    let host = if host == ANY { "any".to_owned() } else { host.replace([':', '[', ']'], "-") };
    format!("mirror-{number}.{host}.rewrite.invalid")
}

impl Registries {
    /// Brings the folder in line: one subfolder per registry, and none of registries that are no longer named.
    pub fn write(&self, folder: &Path) -> Result<(), RegistriesError> {
        let at = |path: &Path| {
            let path = path.to_owned();
            move |source| RegistriesError::Write { path, source }
        };
        let files = self.files();
        std::fs::create_dir_all(folder).map_err(at(folder))?;
        for (name, text) in &files {
            let directory = folder.join(name);
            let path = directory.join("hosts.toml");
            std::fs::create_dir_all(&directory).map_err(at(&directory))?;
            let temporary = directory.join(".hosts.toml");
            std::fs::write(&temporary, text).map_err(at(&temporary))?;
            std::fs::rename(&temporary, &path).map_err(at(&path))?;
        }
        for entry in std::fs::read_dir(folder).map_err(at(folder))?.flatten() {
            let path = entry.path();
            let ours = std::fs::read_to_string(path.join("hosts.toml")).is_ok_and(|text| text.starts_with(HEADER));
            let is_wanted = entry.file_name().to_str().is_some_and(|name| files.contains_key(name));
            if ours && !is_wanted {
                std::fs::remove_dir_all(&path).map_err(at(&path))?;
            }
        }
        Ok(())
    }

    /// The files by the name of their folder.
    fn files(&self) -> BTreeMap<String, String> {
        let mut files = BTreeMap::new();
        for name in self.mirrors.keys().chain(self.configs.keys()) {
            let host = Endpoint::of(name).host;
            files.insert(directory_name(&host), self.hosts_toml(&host));
        }
        for (host, mirror) in self.mirrors.iter().filter(|(_, mirror)| !mirror.rewrite.is_empty()) {
            for (number, endpoint) in mirror.endpoint.iter().enumerate() {
                // As a mirror of nothing: containerd before 1.7 takes a server from the name alone.
                let mut text = HEADER.to_owned();
                self.mirror(&mut text, &self.endpoint(endpoint));
                files.insert(alias(host, number), text);
            }
        }
        files
    }

    fn hosts_toml(&self, host: &str) -> String {
        let mut text = HEADER.to_owned();
        if host == ANY {
            // Each registry is where its name says; only how to talk to it is told.
            text.push_str(&self.tls(host, ""));
        } else {
            self.server(&mut text, &self.origin_of(host));
        }
        let endpoints = self.mirror_of(host).into_iter().flat_map(|mirror| &mirror.endpoint);
        for endpoint in endpoints {
            self.mirror(&mut text, &self.endpoint(endpoint));
        }
        text
    }

    fn mirror(&self, text: &mut String, endpoint: &Endpoint) {
        // Writing to a string cannot fail.
        let _ = writeln!(text, "\n[host.{}]\n  capabilities = [\"pull\", \"resolve\"]", quoted(&endpoint.url()));
        if endpoint.path.is_some() {
            text.push_str("  override_path = true\n");
        }
        text.push_str(&self.tls(&endpoint.host, "  "));
    }

    fn server(&self, text: &mut String, endpoint: &Endpoint) {
        let url = quoted(&endpoint.url());
        // Writing to a string cannot fail.
        let _ = writeln!(text, "server = {url}\ncapabilities = [\"pull\", \"resolve\", \"push\"]");
        text.push_str(&self.tls(&endpoint.host, ""));
    }

    fn tls(&self, host: &str, indent: &str) -> String {
        let mut text = String::new();
        let Some(tls) = self.config_of(host).and_then(|config| config.tls.as_ref()) else { return text };
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
}

/// containerd's name for all registries that have no folder of their own.
fn directory_name(host: &str) -> String {
    if host == ANY { "_default".to_owned() } else { host.to_owned() }
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
    rewrite: {"^library/(.*)": "public/$1"}
  "*":
    endpoint: ["registry.local"]
configs:
  mirror.example:5000:
    auth: {username: me, password: secret}
    tls: {ca_file: /etc/ca.pem, cert_file: /c.pem, key_file: /k.pem}
  registry.local:
    tls: {insecure_skip_verify: true}
"#;

    fn check(folder: &str, expected: Expect) {
        expected.assert_eq(&Registries::parse(FILE).unwrap().files()[folder]);
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
            "_default",
            expect![[r#"
            # Written by rkube from registries.yaml; changes are lost.

            [host."https://registry.local/v2"]
              capabilities = ["pull", "resolve"]
              skip_verify = true
        "#]],
        );
        check(
            "mirror-1.docker.io.rewrite.invalid",
            expect![[r#"
            # Written by rkube from registries.yaml; changes are lost.

            [host."http://cache.local/proxy/dockerhub"]
              capabilities = ["pull", "resolve"]
              override_path = true
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
            names.join(" ")
        };
        std::fs::create_dir(folder.path().join("mine")).unwrap();
        std::fs::write(folder.path().join("mine/hosts.toml"), "server = \"x\"").unwrap();
        Registries::parse(FILE).unwrap().write(folder.path()).unwrap();
        assert_eq!(
            names(),
            "_default docker.io mine mirror-0.docker.io.rewrite.invalid mirror-1.docker.io.rewrite.invalid \
             mirror.example:5000 registry.local"
        );
        let written = std::fs::read_to_string(folder.path().join("mirror.example:5000/hosts.toml")).unwrap();
        assert!(!written.contains("secret"), "credentials stay out of it");
        Registries::default().write(folder.path()).unwrap();
        assert_eq!(names(), "mine");
    }
}
