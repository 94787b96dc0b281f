//! kubeconfig files, written. One cluster, one user, one context.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use crate::CertifiedKey;

/// How the user of a kubeconfig proves who it is.
#[derive(Clone)]
pub enum User {
    Certificate(CertifiedKey),
    /// Paths instead of content: the files may be renewed under the reader.
    CertificateFiles {
        certificate: String,
        key: String,
    },
    Token(String),
}

/// A kubeconfig as YAML. JSON is YAML, but people open this file: block style, in kubectl's key order.
pub fn render(cluster: &str, server: &str, ca_pem: &str, user_name: &str, user: &User) -> String {
    let credentials = match user {
        User::Certificate(pair) => json!({
            "client-certificate-data": STANDARD.encode(&pair.certificate_pem),
            "client-key-data": STANDARD.encode(&pair.key_pem),
        }),
        User::CertificateFiles { certificate, key } => json!({ "client-certificate": certificate, "client-key": key }),
        User::Token(token) => json!({ "token": token }),
    };
    let context = if user_name == cluster { cluster.to_owned() } else { format!("{user_name}@{cluster}") };
    let mut out = String::from("apiVersion: v1\nclusters:\n- cluster:\n");
    fields(&mut out, 4, &json!({ "certificate-authority-data": STANDARD.encode(ca_pem), "server": server }));
    fields(&mut out, 2, &json!({ "name": cluster }));
    out.push_str("contexts:\n- context:\n");
    fields(&mut out, 4, &json!({ "cluster": cluster, "user": user_name }));
    fields(&mut out, 2, &json!({ "name": context }));
    fields(&mut out, 0, &json!({ "current-context": context, "kind": "Config" }));
    out.push_str("preferences: {}\nusers:\n");
    out.push_str(&format!("- name: {}\n  user:\n", scalar(user_name)));
    fields(&mut out, 4, &credentials);
    out
}

/// What a stranger is told of a cluster, as kubeadm writes it: a kubeconfig of one cluster and no user.
pub fn cluster_info(server: &str, ca_pem: &str) -> String {
    let mut out = String::from("apiVersion: v1\nclusters:\n- cluster:\n");
    fields(&mut out, 4, &json!({ "certificate-authority-data": STANDARD.encode(ca_pem), "server": server }));
    out.push_str("  name: \"\"\ncontexts: null\ncurrent-context: \"\"\nkind: Config\npreferences: {}\nusers: null\n");
    out
}

/// The authority in a kubeconfig that [`cluster_info`] or kubeadm wrote.
pub fn authority_of(text: &str) -> Option<String> {
    let data = text
        .lines()
        .find_map(|line| line.trim().trim_start_matches("- ").strip_prefix("certificate-authority-data:"))?;
    let bytes = STANDARD.decode(data.trim().trim_matches('"')).ok()?;
    String::from_utf8(bytes).ok()
}

fn fields(out: &mut String, indent: usize, object: &Value) {
    for (name, value) in object.as_object().into_iter().flatten() {
        let text = scalar(value.as_str().unwrap_or_default());
        out.push_str(&format!("{:indent$}{name}: {text}\n", ""));
    }
}

/// Plain where YAML reads plain text back as itself, else quoted as JSON.
fn scalar(text: &str) -> String {
    let starts_with_letter = text.starts_with(|first: char| first.is_ascii_alphabetic() || first == '/');
    let is_plain = text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"+/=@._:-".contains(&byte))
        && !text.ends_with(':')
        && text.len() > 5; // Longer than every word YAML reads as a boolean or null.
    if starts_with_letter && is_plain { text.to_owned() } else { Value::from(text).to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kubeconfig_reads_as_kubectl_writes_it() {
        let user = User::Token("yes".to_owned());
        let text = render("rkube", "https://127.0.0.1:6443", "CA", "default", &user);
        assert_eq!(
            text,
            "apiVersion: v1\nclusters:\n- cluster:\n    certificate-authority-data: \"Q0E=\"\n    \
             server: https://127.0.0.1:6443\n  name: \"rkube\"\ncontexts:\n- context:\n    cluster: \"rkube\"\n    \
             user: default\n  name: default@rkube\ncurrent-context: default@rkube\nkind: Config\n\
             preferences: {}\nusers:\n- name: default\n  user:\n    token: \"yes\"\n"
        );
    }
}
