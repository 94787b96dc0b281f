//! Users named by a proxy's headers: believed from the front proxy, and from nobody else.

use expect_test::expect;
use http::{HeaderMap, HeaderName, HeaderValue, Method};
use rkube_apimachinery::clock::{Clock, SystemClock};
use rkube_pki::{CertificateAuthority, Leaf};
use rustls_pki_types::CertificateDer;
use serde_json::{Value, json};

use crate::cluster::{Cluster, Setup};

const WHOAMI: &str = "/apis/authentication.k8s.io/v1/selfsubjectreviews";
const ROOT: [(&str, &str); 2] = [("X-Remote-User", "root"), ("X-Remote-Group", "system:masters")];

fn headers(pairs: &[(&str, &str)]) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for (name, value) in pairs {
        headers.append(HeaderName::try_from(*name).unwrap(), HeaderValue::from_bytes(value.as_bytes()).unwrap());
    }
    headers
}

/// Who the server takes the sender for, or the code of its refusal.
async fn whoami(cluster: &Cluster, pairs: &[(&str, &str)], certificates: &[CertificateDer<'static>]) -> Value {
    let answer = cluster.call(Method::POST, WHOAMI, &headers(pairs), certificates.to_vec(), &json!({})).await;
    if answer.code == 201 { answer.body["status"]["userInfo"].clone() } else { json!(answer.code) }
}

#[tokio::test]
async fn the_front_proxy_says_who_its_users_are() {
    let cluster = Cluster::start(Setup::default()).await;
    let proxy = Cluster::certificate(&cluster.front_proxy, "front-proxy-client", &["ignored"]);
    let jane = [
        ("X-Remote-User", "jane"),
        ("X-Remote-User", "second"),
        ("x-remote-uid", "7"),
        ("X-REMOTE-GROUP", "dev"),
        ("X-Remote-Group", ""),
        ("X-Remote-Group", "ops"),
        ("X-Remote-Extra-acme.example%2Fscope", "view"),
        ("X-Remote-Extra-Acme.Example%2fscope", "edit"),
        ("X-Remote-Extra-bad%ff", "x"),
        ("Authorization", "Bearer not-looked-at"),
    ];
    expect![[r#"
        {
          "extra": {
            "acme.example/scope": [
              "view",
              "edit"
            ],
            "bad%ff": [
              "x"
            ]
          },
          "groups": [
            "dev",
            "ops",
            "system:authenticated"
          ],
          "uid": "7",
          "username": "jane"
        }"#]]
    .assert_eq(&serde_json::to_string_pretty(&whoami(&cluster, &jane, &proxy).await).unwrap());
    // Whoever is named may impersonate as what they are, and anonymous is anonymous.
    let root = whoami(&cluster, &[ROOT[0], ROOT[1], ("Impersonate-User", "jim")], &proxy).await;
    assert_eq!(root["username"], "jim");
    let anonymous = whoami(&cluster, &[("X-Remote-User", "system:anonymous")], &proxy).await;
    assert_eq!(anonymous, json!(403));
    // Without a name nobody is named, and the proxy itself is no user of the cluster.
    for pairs in [&[][..], &[("X-Remote-User", "")], &[("X-Remote-Group", "system:masters")]] {
        assert_eq!(whoami(&cluster, pairs, &proxy).await, json!(401), "{pairs:?}");
    }
}

#[tokio::test]
async fn headers_of_anyone_else_do_not_count() {
    let cluster = Cluster::start(Setup::default()).await;
    let now = SystemClock::new().now();
    let (stranger, _) = CertificateAuthority::generate("test-front-proxy-ca", now).unwrap();
    let of = |authority: &CertificateAuthority, name: &str| Cluster::certificate(authority, name, &["dev"]);
    let year = std::time::Duration::from_secs(400 * 24 * 3600);
    let expired = cluster.front_proxy.issue(&Leaf::client("front-proxy-client", &[]), now - year).unwrap();
    let server = cluster.front_proxy.issue(&Leaf::server("front-proxy-client", Vec::new(), Vec::new()), now).unwrap();
    for (what, certificates, expected) in [
        ("no certificate", Vec::new(), json!(403)),
        ("another authority of the same name", of(&stranger, "front-proxy-client"), json!(401)),
        ("a name that is not allowed", of(&cluster.front_proxy, "proxy"), json!(401)),
        ("no name", of(&cluster.front_proxy, ""), json!(401)),
        ("expired", expired.chain().unwrap(), json!(401)),
        ("for a server", server.chain().unwrap(), json!(401)),
        (
            "of the users' authority, by the allowed name",
            of(&cluster.authority, "front-proxy-client"),
            json!("front-proxy-client"),
        ),
        ("a user", of(&cluster.authority, "jane"), json!("jane")),
    ] {
        let found = whoami(&cluster, &ROOT, &certificates).await;
        let found = if found.is_object() { found["username"].clone() } else { found };
        assert_eq!(found, expected, "{what}");
    }
}

/// One connection, as a pooling client has it: what was found out about it serves every request, each by its headers.
#[tokio::test]
async fn one_connection_carries_many_users() {
    let cluster = Cluster::start(Setup::default()).await;
    let connection = Cluster::connection(Cluster::certificate(&cluster.front_proxy, "front-proxy-client", &[]));
    for (pairs, expected) in
        [(&ROOT[..], 200), (&[("X-Remote-User", "jane")], 403), (&[], 401), (&ROOT[..], 200), (&[], 401)]
    {
        let code = cluster.code_over(&connection, Method::GET, "/api/v1/secrets", &headers(pairs)).await;
        assert_eq!(code, expected, "{pairs:?}");
    }
    let connection = Cluster::connection(Cluster::certificate(&cluster.authority, "root", &["system:masters"]));
    for pairs in [&[][..], &[("X-Remote-User", "jane")], &[]] {
        let code = cluster.code_over(&connection, Method::GET, "/api/v1/secrets", &headers(pairs)).await;
        assert_eq!(code, 200, "{pairs:?}");
    }
}
