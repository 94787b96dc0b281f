//! A kubeconfig, read: where the server is, whom it must be, and who we are.
//!
//! Behaves as `k8s.io/client-go/tools/clientcmd` for one file: the current context, inline data before files, file names
//! relative to the kubeconfig. Credential plugins and passwords are refused by name.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::Uri;
use serde_json::Value;

/// What is needed to connect.
#[derive(Debug)]
pub(crate) struct Kubeconfig {
    pub(crate) server: Uri,
    pub(crate) ca_pem: Option<Vec<u8>>,
    pub(crate) insecure: bool,
    pub(crate) server_name: Option<String>,
    /// Certificate and key.
    pub(crate) identity: Option<(Vec<u8>, Vec<u8>)>,
    pub(crate) token: Option<String>,
}

impl Kubeconfig {
    pub(crate) fn load(path: &Path) -> Result<Self> {
        let bytes = fs::read(path).with_context(|| format!("reading kubeconfig {}", path.display()))?;
        Self::parse(&bytes, path.parent().unwrap_or(Path::new(".")))
            .with_context(|| format!("using kubeconfig {}", path.display()))
    }

    /// `folder` is what relative file names are relative to.
    fn parse(bytes: &[u8], folder: &Path) -> Result<Self> {
        let config = rkube_codec::yaml::parse(bytes)?.value;
        let current = config["current-context"].as_str().unwrap_or_default();
        ensure!(!current.is_empty(), "it has no current-context");
        let context = named(&config, "contexts", "context", current)?;
        let cluster = named(&config, "clusters", "cluster", context["cluster"].as_str().unwrap_or_default())?;
        let user = named(&config, "users", "user", context["user"].as_str().unwrap_or_default())?;
        for unsupported in ["exec", "auth-provider", "username"] {
            ensure!(user.get(unsupported).is_none(), "its user has {unsupported:?}, which is not supported");
        }
        let server = cluster["server"].as_str().unwrap_or_default();
        let certificate = content(user, "client-certificate", folder)?;
        let identity = match (certificate, content(user, "client-key", folder)?) {
            (Some(certificate), Some(key)) => Some((certificate, key)),
            (None, None) => None,
            _ => bail!("its user has a client certificate or a client key, but not both"),
        };
        let token_file = user["tokenFile"].as_str().map(|name| fs::read_to_string(folder.join(name)));
        let token = match (user["token"].as_str(), token_file) {
            (Some(token), _) => Some(token.to_owned()),
            (None, Some(read)) => Some(read.context("reading its tokenFile")?.trim().to_owned()),
            (None, None) => None,
        };
        Ok(Self {
            server: server.parse().with_context(|| format!("its server {server:?} is no URL"))?,
            ca_pem: content(cluster, "certificate-authority", folder)?,
            insecure: cluster["insecure-skip-tls-verify"].as_bool().unwrap_or(false),
            server_name: cluster["tls-server-name"].as_str().map(str::to_owned),
            identity,
            token,
        })
    }
}

fn named<'a>(config: &'a Value, list: &str, field: &str, name: &str) -> Result<&'a Value> {
    let entries = config[list].as_array().map(Vec::as_slice).unwrap_or_default();
    let entry = entries.iter().find(|entry| entry["name"] == name);
    entry.map(|entry| &entry[field]).with_context(|| format!("it has no {field} {name:?}"))
}

/// `<field>-data` decoded, or the file that `<field>` names.
fn content(object: &Value, field: &str, folder: &Path) -> Result<Option<Vec<u8>>> {
    let inline = format!("{field}-data");
    if let Some(data) = object[&inline].as_str() {
        return STANDARD.decode(data).map(Some).with_context(|| format!("its {inline} is not base64"));
    }
    let Some(name) = object[field].as_str() else { return Ok(None) };
    fs::read(folder.join(name)).map(Some).with_context(|| format!("reading its {field} {name}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONFIG: &str = "
current-context: a
contexts: [{name: a, context: {cluster: c, user: u}}]
clusters: [{name: c, cluster: {server: 'https://127.0.0.1:6443', certificate-authority-data: Q0E=}}]
users: [{name: u, user: USER}]
";

    fn parse(user: &str) -> Result<Kubeconfig> {
        Kubeconfig::parse(CONFIG.replace("USER", user).as_bytes(), Path::new("/nowhere"))
    }

    #[test]
    fn inline_credentials_are_decoded() {
        let config = parse("{token: secret}").unwrap();
        assert_eq!(
            (config.server.to_string().as_str(), config.token.as_deref()),
            ("https://127.0.0.1:6443/", Some("secret"))
        );
        assert_eq!(config.ca_pem.as_deref(), Some(b"CA".as_slice()));
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (user, expected) in [
            ("{exec: {command: x}}", "its user has \"exec\", which is not supported"),
            ("{client-key-data: QQ==}", "its user has a client certificate or a client key, but not both"),
            ("{client-certificate-data: '?'}", "its client-certificate-data is not base64"),
            ("{client-certificate: a.pem}", "reading its client-certificate a.pem"),
        ] {
            assert_eq!(parse(user).unwrap_err().to_string(), expected);
        }
        let none = Kubeconfig::parse(b"kind: Config", Path::new("")).unwrap_err();
        assert_eq!(none.to_string(), "it has no current-context");
        let unknown = Kubeconfig::parse(b"current-context: b", Path::new("")).unwrap_err();
        assert_eq!(unknown.to_string(), "it has no context \"b\"");
    }
}
