//! The ways to get one image, in the order they are tried. Pure.
//!
//! A pod's own credentials go to whatever registry its image comes from, as with every kubelet. The node's go only
//! where `registries.yaml` says: each is bound to the one address it is for.

use regex::Regex;
use rkube_cri::v1::AuthConfig;

use super::{ANY, Auth, Endpoint, Registries, hosts};

const DOCKER: &str = "docker.io";

/// One way.
#[derive(Clone, Debug, PartialEq)]
pub struct Attempt {
    /// The name to pull under.
    pub reference: String,
    /// The image's own name in full, when it is pulled under another one.
    pub rename_to: Option<String>,
    pub auth: Option<AuthConfig>,
}

/// `registry/repository:tag`, with what Docker's names leave out.
#[derive(Debug, PartialEq, Eq)]
struct Name<'a> {
    registry: &'a str,
    repository: String,
    /// `:tag`, `@digest`, or both.
    version: &'a str,
}

impl<'a> Name<'a> {
    fn of(image: &'a str) -> Self {
        let registry = registry_of(image);
        let rest = match image.split_once('/') {
            Some((first, rest)) if first == registry || first == "index.docker.io" => rest,
            _ => image,
        };
        let end = rest.rfind('/').map_or(0, |at| at + 1);
        let version = rest[end..].find([':', '@']).map_or(rest.len(), |at| end + at);
        let (repository, version) = rest.split_at(version);
        let is_official = registry == DOCKER && !repository.contains('/');
        let repository = if is_official { format!("library/{repository}") } else { repository.to_owned() };
        Self { registry, repository, version }
    }

    fn full(&self) -> String {
        format!("{}/{}{}", self.registry, self.repository, self.version)
    }
}

/// The registry an image comes from.
pub fn registry_of(image: &str) -> &str {
    match image.split_once('/') {
        Some(("index.docker.io", _)) => DOCKER,
        Some((first, _)) if first.contains(['.', ':']) || first == "localhost" => first,
        _ => DOCKER,
    }
}

impl Registries {
    /// The ways to get `image`, for a pod that brings these credentials. Never none.
    pub fn attempts(&self, image: &str, of_pod: &[AuthConfig]) -> Vec<Attempt> {
        let name = Name::of(image);
        let mut attempts = self.rewritten(&name, of_pod);
        let plain = |auth| Attempt { reference: image.to_owned(), rename_to: None, auth };
        attempts.extend(of_pod.iter().cloned().map(Some).map(plain));
        let mirrors = self.mirror_of(name.registry).into_iter().flat_map(|mirror| &mirror.endpoint);
        let places = mirrors.map(|endpoint| self.endpoint(endpoint)).chain([self.origin_of(name.registry)]);
        let own: Vec<AuthConfig> = places.filter_map(|place| self.credentials(&place, name.registry)).collect();
        attempts.extend(own.into_iter().map(Some).map(plain));
        if attempts.iter().all(|attempt| attempt.rename_to.is_some()) {
            attempts.push(plain(None));
        }
        attempts
    }

    /// The mirrors under whose names the image is another one.
    fn rewritten(&self, name: &Name<'_>, of_pod: &[AuthConfig]) -> Vec<Attempt> {
        let Some(mirror) = self.mirror_of(name.registry) else { return vec![] };
        let host = if self.mirrors.contains_key(name.registry) { name.registry } else { ANY };
        let rewritten = mirror.rewrite.iter().find_map(|(pattern, replacement)| {
            // It was read once when the file was.
            let rewritten = Regex::new(pattern).ok()?.replace_all(&name.repository, replacement).into_owned();
            (rewritten != name.repository).then_some(rewritten)
        });
        let Some(repository) = rewritten else { return vec![] };
        let mut attempts = Vec::new();
        for (number, endpoint) in mirror.endpoint.iter().enumerate() {
            let endpoint = self.endpoint(endpoint);
            let own = self.credentials(&endpoint, &endpoint.host);
            let mut credentials: Vec<Option<AuthConfig>> = of_pod.iter().cloned().chain(own).map(Some).collect();
            if credentials.is_empty() {
                credentials.push(None);
            }
            attempts.extend(credentials.into_iter().map(|auth| Attempt {
                reference: format!("{}/{repository}{}", hosts::alias(host, number), name.version),
                rename_to: Some(name.full()),
                auth,
            }));
        }
        attempts
    }

    /// The node's credentials for one address. `registry` is what images call it.
    fn credentials(&self, endpoint: &Endpoint, registry: &str) -> Option<AuthConfig> {
        // Docker's registry is configured under either of its names.
        let other = (endpoint.host == "registry-1.docker.io").then_some(registry);
        let config =
            [Some(endpoint.host.as_str()), other].into_iter().flatten().find_map(|host| self.config_of(host))?;
        let Auth { username, password, auth, identity_token } = config.auth.clone()?;
        let server_address = endpoint.origin();
        Some(AuthConfig { username, password, auth, identity_token, server_address, ..AuthConfig::default() })
    }
}

#[cfg(test)]
mod tests {
    use expect_test::{Expect, expect};

    use super::*;

    const FILE: &str = r#"
mirrors:
  docker.io:
    endpoint: ["https://first.example", "http://second.example:5000/docker"]
    rewrite: {"^library/(.*)": "public/$1"}
  "*":
    endpoint: ["cache.local"]
configs:
  first.example: {auth: {username: first, password: x}}
  docker.io: {auth: {username: docker, password: x}}
  127.0.0.1:5000: {auth: {username: local, password: x}, tls: {ca_file: /ca.pem}}
"#;

    fn check(image: &str, of_pod: &[&str], expected: Expect) {
        let of_pod: Vec<AuthConfig> =
            of_pod.iter().map(|user| AuthConfig { username: (*user).to_owned(), ..AuthConfig::default() }).collect();
        let lines = Registries::parse(FILE).unwrap().attempts(image, &of_pod).into_iter().map(|attempt| {
            let auth = attempt.auth.map(|auth| format!(" as {} {}", auth.username, auth.server_address));
            let rename = attempt.rename_to.map(|name| format!(" for {name}"));
            let line = format!("{}{}{}", attempt.reference, auth.unwrap_or_default(), rename.unwrap_or_default());
            format!("{}\n", line.trim_end())
        });
        expected.assert_eq(&lines.collect::<String>());
    }

    #[test]
    fn credentials_go_where_they_belong() {
        check("reg.io/app:1", &[], expect!["reg.io/app:1\n"]);
        check("reg.io/app:1", &["pod"], expect!["reg.io/app:1 as pod\n"]);
        check(
            "127.0.0.1:5000/app:1",
            &["pod"],
            expect![[r#"
                127.0.0.1:5000/app:1 as pod
                127.0.0.1:5000/app:1 as local https://127.0.0.1:5000
            "#]],
        );
        check(
            "team/app:1",
            &[],
            expect![[r#"
                team/app:1 as first https://first.example
                team/app:1 as docker https://registry-1.docker.io
            "#]],
        );
    }

    #[test]
    fn a_rewritten_image_is_asked_of_each_mirror_and_then_of_its_registry() {
        let digest = format!("@sha256:{}", "a".repeat(64));
        check(
            "nginx:1",
            &[],
            expect![[r#"
                mirror-0.docker.io.rewrite.invalid/public/nginx:1 as first https://first.example for docker.io/library/nginx:1
                mirror-1.docker.io.rewrite.invalid/public/nginx:1 for docker.io/library/nginx:1
                nginx:1 as first https://first.example
                nginx:1 as docker https://registry-1.docker.io
            "#]],
        );
        assert_eq!(Name::of(&format!("a.io/b/c{digest}")).version, digest);
        assert_eq!(Name::of("index.docker.io/x").full(), "docker.io/library/x");
        assert_eq!(Name::of("localhost:5000/x:2").full(), "localhost:5000/x:2");
    }
}
