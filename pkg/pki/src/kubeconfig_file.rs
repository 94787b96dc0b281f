//! A kubeconfig, read: where the server is, whom it must be, and who we are.
//!
//! Behaves as `k8s.io/client-go/tools/clientcmd`, v1.36, for one file: the current context, inline data before files,
//! file names relative to the kubeconfig. Credential plugins and passwords are refused by name.

use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;

use crate::{CertifiedKey, PkiError, files};

/// What is needed to connect. `Debug` shows no secret.
pub struct KubeconfigFile {
    /// `https://host:port`
    pub server: String,
    /// PEM of the authority the server must be of.
    pub authority: String,
    pub server_name: Option<String>,
    pub identity: Option<CertifiedKey>,
    pub token: Option<String>,
}

impl std::fmt::Debug for KubeconfigFile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("KubeconfigFile").field("server", &self.server).finish_non_exhaustive()
    }
}

impl KubeconfigFile {
    pub fn load(path: &Path) -> Result<Self, PkiError> {
        let text = files::read(path)?.ok_or_else(|| {
            let detail = "there is no such file; name another with --kubeconfig, or run this where the server runs";
            PkiError::Kubeconfig { path: path.to_owned(), detail: detail.to_owned() }
        })?;
        Self::parse(&text, path)
    }

    /// `path` names the text in errors; relative file names are relative to its folder.
    fn parse(text: &str, path: &Path) -> Result<Self, PkiError> {
        let reader = Reader { path: path.to_owned() };
        let config: Value = serde_saphyr::from_str(text)
            .map_err(|error| reader.bad(format!("it is not YAML: {}", first_line(&error))))?;
        let current = config["current-context"].as_str().unwrap_or_default();
        if current.is_empty() {
            return Err(reader.bad("it has no current-context"));
        }
        let context = reader.named(&config, "contexts", "context", current)?;
        let cluster = reader.named(&config, "clusters", "cluster", context["cluster"].as_str().unwrap_or_default())?;
        let user = reader.named(&config, "users", "user", context["user"].as_str().unwrap_or_default())?;
        for unsupported in ["exec", "auth-provider", "username"] {
            if user.get(unsupported).is_some() {
                return Err(reader.bad(format!("its user has {unsupported:?}, which is not supported")));
            }
        }
        let certificate = reader.content(user, "client-certificate")?;
        let identity = match (certificate, reader.content(user, "client-key")?) {
            (Some(certificate_pem), Some(key_pem)) => Some(CertifiedKey { certificate_pem, key_pem }),
            (None, None) => None,
            _ => return Err(reader.bad("its user has a client certificate or a client key, but not both")),
        };
        let token = match (user["token"].as_str(), user["tokenFile"].as_str()) {
            (Some(token), _) => Some(token.to_owned()),
            (None, Some(file)) => Some(reader.file(file, "tokenFile")?.trim().to_owned()),
            (None, None) => None,
        };
        let server = cluster["server"].as_str().unwrap_or_default().trim_end_matches('/').to_owned();
        if !server.starts_with("https://") {
            return Err(reader.bad(format!("its server {server:?} is not an https:// URL")));
        }
        let authority = reader.content(cluster, "certificate-authority")?;
        Ok(Self {
            server,
            authority: authority.ok_or_else(|| reader.bad("its cluster has no certificate-authority"))?,
            server_name: cluster["tls-server-name"].as_str().map(str::to_owned),
            identity,
            token,
        })
    }
}

fn first_line(error: &impl std::fmt::Display) -> String {
    error.to_string().lines().next().unwrap_or_default().to_owned()
}

struct Reader {
    path: PathBuf,
}

impl Reader {
    fn bad(&self, detail: impl Into<String>) -> PkiError {
        PkiError::Kubeconfig { path: self.path.clone(), detail: detail.into() }
    }

    fn named<'a>(&self, config: &'a Value, list: &str, field: &str, name: &str) -> Result<&'a Value, PkiError> {
        let entries = config[list].as_array().map(Vec::as_slice).unwrap_or_default();
        let entry = entries.iter().find(|entry| entry["name"] == name);
        entry.map(|entry| &entry[field]).ok_or_else(|| self.bad(format!("it has no {field} {name:?}")))
    }

    fn file(&self, name: &str, field: &str) -> Result<String, PkiError> {
        let file = self.path.parent().unwrap_or(Path::new(".")).join(name);
        files::read(&file)?.ok_or_else(|| self.bad(format!("its {field} {name} does not exist")))
    }

    /// `<field>-data` decoded, or the file that `<field>` names.
    fn content(&self, object: &Value, field: &str) -> Result<Option<String>, PkiError> {
        let inline = format!("{field}-data");
        if let Some(data) = object[&inline].as_str() {
            let decoded = STANDARD.decode(data).ok().and_then(|bytes| String::from_utf8(bytes).ok());
            return decoded.map(Some).ok_or_else(|| self.bad(format!("its {inline} is not base64 of text")));
        }
        object[field].as_str().map(|name| self.file(name, field)).transpose()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kubeconfig::{User, render};

    const CONFIG: &str = "
current-context: a
contexts: [{name: a, context: {cluster: c, user: u}}]
clusters: [{name: c, cluster: {server: 'https://127.0.0.1:6443', certificate-authority-data: Q0E=}}]
users: [{name: u, user: USER}]
";

    fn parse(text: &str) -> Result<KubeconfigFile, String> {
        KubeconfigFile::parse(text, Path::new("/nowhere/k")).map_err(|error| error.to_string())
    }

    #[test]
    fn what_we_write_reads_back() {
        let pair = CertifiedKey { certificate_pem: "C".to_owned(), key_pem: "K".to_owned() };
        let text = render("rkube", "https://192.0.2.1:6443", "CA", "admin", &User::Certificate(pair));
        let read = parse(&text).unwrap();
        assert_eq!((read.server.as_str(), read.authority.as_str()), ("https://192.0.2.1:6443", "CA"));
        assert_eq!(
            read.identity.map(|pair| (pair.certificate_pem, pair.key_pem)),
            Some(("C".to_owned(), "K".to_owned()))
        );
        let text = render("rkube", "https://192.0.2.1:6443", "CA", "robot", &User::Token("secret".to_owned()));
        assert_eq!(parse(&text).unwrap().token.as_deref(), Some("secret"));
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (user, expected) in [
            ("{exec: {command: x}}", "its user has \"exec\", which is not supported"),
            ("{client-key-data: QQ==}", "its user has a client certificate or a client key, but not both"),
            ("{client-certificate-data: '?'}", "its client-certificate-data is not base64 of text"),
            ("{client-certificate: a.pem}", "its client-certificate a.pem does not exist"),
        ] {
            assert_eq!(parse(&CONFIG.replace("USER", user)).unwrap_err(), format!("kubeconfig /nowhere/k: {expected}"));
        }
        for (text, expected) in [
            ("kind: Config", "it has no current-context"),
            ("current-context: b", "it has no context \"b\""),
            (&CONFIG.replace("https://", "http://"), "its server \"http://127.0.0.1:6443\" is not an https:// URL"),
            (&CONFIG.replace("certificate-authority-data", "x"), "its cluster has no certificate-authority"),
        ] {
            assert_eq!(parse(text).unwrap_err(), format!("kubeconfig /nowhere/k: {expected}"));
        }
        assert!(parse("a: [").unwrap_err().contains("it is not YAML: "));
    }
}
