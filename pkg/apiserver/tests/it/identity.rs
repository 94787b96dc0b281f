//! Who gets in: every route and verb of the resource table with every kind of caller, service account and
//! bootstrap tokens through the life of what they stand for, and credentials that are broken.

use std::collections::BTreeSet;

use base64::Engine as _;
use expect_test::expect;
use http::{HeaderMap, HeaderValue, Method, header};
use rkube_apimachinery::clock::{Clock, SystemClock};
use rkube_pki::CertificateAuthority;
use rustls_pki_types::CertificateDer;
use serde_json::{Value, json};

use crate::cluster::{Cluster, ISSUER, Setup, admin};

/// One thing that can be asked for: `verb resource/subresource`, with a request that asks for it.
struct Route {
    label: String,
    method: Method,
    path: String,
}

fn method(verb: &str) -> Option<Method> {
    Some(match verb {
        "get" | "list" | "watch" => Method::GET,
        "create" => Method::POST,
        "update" => Method::PUT,
        "patch" => Method::PATCH,
        "delete" | "deletecollection" => Method::DELETE,
        _ => return None,
    })
}

/// All of the table's, each once within a namespace and, where that exists, once across all.
fn routes() -> Vec<Route> {
    let mut routes = Vec::new();
    for row in rkube_api::resources() {
        let prefix = match row.group.as_ref() {
            "" => format!("/api/{}", row.version),
            group => format!("/apis/{group}/{}", row.version),
        };
        let all = format!("{prefix}/{}", row.plural);
        let within = if row.namespaced { format!("{prefix}/namespaces/default/{}", row.plural) } else { all.clone() };
        let qualified = if row.group.is_empty() { row.plural.to_string() } else { row.group_resource().to_string() };
        for verb in row.verbs.iter() {
            let Some(method) = method(verb) else { continue };
            let mut add = |path: String| {
                routes.push(Route { label: format!("{verb} {qualified}"), method: method.clone(), path });
            };
            match verb.as_ref() {
                "create" => add(format!("{within}?dryRun=All")),
                "deletecollection" => add(format!("{within}?dryRun=All&labelSelector=a%3Db")),
                "list" | "watch" => {
                    let query = if verb == "watch" { "?watch=true&timeoutSeconds=1" } else { "" };
                    add(format!("{within}{query}"));
                    if row.namespaced {
                        add(format!("{all}{query}"));
                    }
                }
                _ => add(format!("{within}/x?dryRun=All")),
            }
        }
        for subresource in row.subresources.iter() {
            for verb in subresource.verbs.iter() {
                let Some(method) = method(verb) else { continue };
                let label = format!("{verb} {qualified}/{}", subresource.name);
                let path = format!("{within}/x/{}?dryRun=All", subresource.name);
                routes.push(Route { label, method, path });
            }
        }
    }
    for path in [
        "/",
        "/api",
        "/api/v1",
        "/apis",
        "/apis/apps",
        "/apis/apps/v1",
        "/healthz",
        "/livez",
        "/livez/ping",
        "/logs/x",
        "/metrics",
        "/openapi/v2",
        "/openapi/v3",
        "/openid/v1/jwks",
        "/readyz",
        "/version",
        "/debug/pprof/",
        "/.well-known/openid-configuration",
        "/apis/nobody.example/v1/things",
        "/nothing",
    ] {
        routes.push(Route { label: format!("get {path}"), method: Method::GET, path: path.to_owned() });
    }
    routes
}

fn bearer(token: &str) -> HeaderMap {
    let mut headers = HeaderMap::new();
    headers.insert(header::AUTHORIZATION, HeaderValue::from_str(&format!("Bearer {token}")).unwrap());
    headers
}

/// What a caller may do, as a list; 401 and 403 are told apart by the caller's expectation.
async fn allowed(
    cluster: &Cluster,
    routes: &[Route],
    headers: &HeaderMap,
    certificates: &[CertificateDer<'static>],
    refusal: u16,
) -> BTreeSet<String> {
    let mut allowed = BTreeSet::new();
    for route in routes {
        let mut headers = headers.clone();
        if route.method == Method::PATCH {
            let kind = HeaderValue::from_static("application/merge-patch+json");
            headers.insert(header::CONTENT_TYPE, kind);
        }
        let body = if route.method == Method::GET { Value::Null } else { json!({}) };
        let code = cluster.code(route.method.clone(), &route.path, &headers, certificates.to_vec(), &body).await;
        match code {
            401 | 403 => assert_eq!(code, refusal, "{} {}", route.method, route.path),
            _ => {
                // Bad bodies and unknown names are for those who may ask at all.
                assert!(
                    matches!(code, 200 | 201 | 301 | 400 | 404 | 405 | 409 | 415 | 422 | 503),
                    "{code} {}",
                    route.path
                );
                allowed.insert(route.label.clone());
            }
        }
    }
    allowed
}

fn lines(labels: &BTreeSet<String>) -> String {
    labels.iter().map(|label| format!("{label}\n")).collect()
}

#[tokio::test]
async fn every_route_and_verb_knows_its_callers() {
    let cluster = Cluster::start(Setup { objects: vec![account("default")], ..Setup::default() }).await;
    let routes = routes();
    let nobody = HeaderMap::new();
    let of = |name: &str, groups: &[&str]| Cluster::certificate(&cluster.authority, name, groups);
    let (stranger, _) = CertificateAuthority::generate("test-ca", SystemClock::new().now()).unwrap();
    let forged = Cluster::certificate(&stranger, "kubernetes-admin", &["system:masters"]);

    for (headers, certificates) in [
        (bearer("unknown"), Vec::new()),
        (bearer("abcdef.0123456789abcdef"), Vec::new()),
        (bearer("a.b.c"), Vec::new()),
        (nobody.clone(), forged),
    ] {
        let allowed = allowed(&cluster, &routes, &headers, &certificates, 401).await;
        assert_eq!(lines(&allowed), "");
    }
    let anonymous = allowed(&cluster, &routes, &nobody, &[], 403).await;
    expect![[r#"
        get /.well-known/openid-configuration
        get /healthz
        get /livez
        get /readyz
        get /version
    "#]]
    .assert_eq(&lines(&anonymous));
    let jane = allowed(&cluster, &routes, &nobody, &of("jane", &["dev"]), 403).await;
    expect![[r#"
        create selfsubjectaccessreviews.authorization.k8s.io
        create selfsubjectreviews.authentication.k8s.io
        create selfsubjectrulesreviews.authorization.k8s.io
        get /.well-known/openid-configuration
        get /api
        get /api/v1
        get /apis
        get /apis/apps
        get /apis/apps/v1
        get /healthz
        get /livez
        get /openapi/v2
        get /openapi/v3
        get /readyz
        get /version
    "#]]
    .assert_eq(&lines(&jane));
    let node = allowed(&cluster, &routes, &nobody, &of("system:node:n", &["system:nodes"]), 403).await;
    expect![[r#"
        create certificatesigningrequests.certificates.k8s.io
        create events
        create events.events.k8s.io
        create localsubjectaccessreviews.authorization.k8s.io
        create pods/eviction
        create subjectaccessreviews.authorization.k8s.io
        create tokenreviews.authentication.k8s.io
        delete pods
        get certificatesigningrequests.certificates.k8s.io
        get csidrivers.storage.k8s.io
        get endpoints
        get runtimeclasses.node.k8s.io
        get services
        list certificatesigningrequests.certificates.k8s.io
        list csidrivers.storage.k8s.io
        list runtimeclasses.node.k8s.io
        list services
        patch events
        patch events.events.k8s.io
        patch nodes
        patch nodes/status
        patch pods/status
        update events
        update events.events.k8s.io
        update nodes
        update nodes/status
        update pods/status
        watch certificatesigningrequests.certificates.k8s.io
        watch csidrivers.storage.k8s.io
        watch runtimeclasses.node.k8s.io
        watch services
    "#]]
    .assert_eq(&lines(&node.difference(&jane).cloned().collect()));
    let root = allowed(&cluster, &routes, &nobody, &of("root", &["system:masters"]), 403).await;
    let all: BTreeSet<String> = routes.iter().map(|route| route.label.clone()).collect();
    assert_eq!(lines(&all.difference(&root).cloned().collect()), "", "nothing is kept from administrators");
}

fn account(name: &str) -> Value {
    json!({ "apiVersion": "v1", "kind": "ServiceAccount", "metadata": { "name": name, "namespace": "default" } })
}

fn pod(name: &str, account: &str) -> Value {
    json!({ "apiVersion": "v1", "kind": "Pod", "metadata": { "name": name, "namespace": "default" },
        "spec": { "nodeName": "n", "serviceAccountName": account, "terminationGracePeriodSeconds": 0,
            "containers": [{ "name": "c", "image": "i" }] } })
}

const NAMESPACE: &str = "/api/v1/namespaces/default";

/// A token of `account`, bound to what `reference` names.
async fn token(cluster: &Cluster, account: &str, kind: &str, name: &str) -> String {
    let mut spec = json!({});
    if !kind.is_empty() {
        spec["boundObjectRef"] = json!({ "apiVersion": "v1", "kind": kind, "name": name });
    }
    let path = format!("{NAMESPACE}/serviceaccounts/{account}/token");
    let answer = cluster.ask(&admin(), Method::POST, &path, &json!({ "spec": spec })).await;
    assert_eq!(answer.code, 201, "{}", answer.body);
    answer.body["status"]["token"].as_str().unwrap().to_owned()
}

const WHOAMI: &str = "/apis/authentication.k8s.io/v1/selfsubjectreviews";

async fn whoami(cluster: &Cluster, token: &str) -> Value {
    let answer = cluster.call_with_token(token, Method::POST, WHOAMI, &json!({})).await;
    if answer.code == 201 { answer.body["status"]["userInfo"].clone() } else { json!(answer.code) }
}

/// Waits until the watch cache, which tokens are checked against, has what was written so far.
async fn settle(cluster: &Cluster, plural: &str) {
    let path = if plural == "nodes" { "/api/v1/nodes".to_owned() } else { format!("{NAMESPACE}/{plural}") };
    assert_eq!(cluster.ask(&admin(), Method::GET, &path, &Value::Null).await.code, 200);
}

#[tokio::test]
async fn a_token_ends_with_what_it_is_bound_to() {
    let secret = json!({ "apiVersion": "v1", "kind": "Secret", "metadata": { "name": "s", "namespace": "default" } });
    let node = json!({ "apiVersion": "v1", "kind": "Node", "metadata": { "name": "n" } });
    let objects = vec![account("one"), account("two"), node, secret, pod("p", "one")];
    let cluster = Cluster::start(Setup { objects, ..Setup::default() }).await;
    for (kind, plural, name) in [("Pod", "pods", "p"), ("Secret", "secrets", "s"), ("Node", "nodes", "n")] {
        let bound = token(&cluster, "one", kind, name).await;
        let user = whoami(&cluster, &bound).await;
        assert_eq!(user["username"], "system:serviceaccount:default:one", "{user}");
        let extra: Vec<&String> = user["extra"].as_object().unwrap().keys().collect();
        let expected: &[&str] = match kind {
            "Pod" => &["credential-id", "node-name", "node-uid", "pod-name", "pod-uid"],
            "Node" => &["credential-id", "node-name", "node-uid"],
            _ => &["credential-id"],
        };
        let expected: Vec<String> =
            expected.iter().map(|name| format!("authentication.kubernetes.io/{name}")).collect();
        assert_eq!(extra, expected.iter().collect::<Vec<_>>());

        let path = if kind == "Node" { "/api/v1/nodes/n".to_owned() } else { format!("{NAMESPACE}/{plural}/{name}") };
        assert_eq!(cluster.ask(&admin(), Method::DELETE, &path, &Value::Null).await.code, 200, "{path}");
        settle(&cluster, plural).await;
        assert_eq!(whoami(&cluster, &bound).await, json!(401), "{kind} is gone");
    }
    let unbound = token(&cluster, "two", "", "").await;
    let groups = whoami(&cluster, &unbound).await["groups"].clone();
    assert_eq!(groups, json!(["system:serviceaccounts", "system:serviceaccounts:default", "system:authenticated"]));
    let path = format!("{NAMESPACE}/serviceaccounts");
    assert_eq!(cluster.ask(&admin(), Method::DELETE, &format!("{path}/two"), &Value::Null).await.code, 200);
    settle(&cluster, "serviceaccounts").await;
    assert_eq!(whoami(&cluster, &unbound).await, json!(401), "the account is gone");
    // One of the same name is another.
    assert_eq!(cluster.ask(&admin(), Method::POST, &path, &account("two")).await.code, 201);
    settle(&cluster, "serviceaccounts").await;
    assert_eq!(whoami(&cluster, &unbound).await, json!(401), "another account of the name");
}

#[tokio::test]
async fn tokens_are_reviewed_for_their_audience() {
    let cluster = Cluster::start(Setup { objects: vec![account("one")], ..Setup::default() }).await;
    let path = format!("{NAMESPACE}/serviceaccounts/one/token");
    let vault = cluster.ask(&admin(), Method::POST, &path, &json!({ "spec": { "audiences": ["vault"] } })).await;
    let vault = vault.body["status"]["token"].as_str().unwrap().to_owned();
    assert_eq!(whoami(&cluster, &vault).await, json!(401), "a token for others is none for this server");
    let own = token(&cluster, "one", "", "").await;
    let mut text = String::new();
    for (what, token, audiences) in [
        ("own", own.as_str(), json!([])),
        ("own for vault", own.as_str(), json!(["vault"])),
        ("vault", vault.as_str(), json!([])),
        ("vault for vault and more", vault.as_str(), json!(["vault", "more"])),
        ("own for us by name", own.as_str(), json!([ISSUER])),
        ("nonsense", "nonsense", json!([])),
        ("changed", &format!("{own}x"), json!([])),
    ] {
        let review = json!({ "spec": { "token": token, "audiences": audiences } });
        let path = "/apis/authentication.k8s.io/v1/tokenreviews";
        let status = cluster.ask(&admin(), Method::POST, path, &review).await.body["status"].clone();
        let (known, user) = (&status["authenticated"], &status["user"]["username"]);
        text.push_str(&format!("{what}: {known} {user} {} {}\n", status["audiences"], status["error"]));
    }
    expect![[r#"
        own: true "system:serviceaccount:default:one" ["https://kubernetes.default.svc.cluster.local"] null
        own for vault: null null null "token audiences [\"https://kubernetes.default.svc.cluster.local\"] is invalid for the target audiences [\"vault\"]"
        vault: null null null "token audiences [\"vault\"] is invalid for the target audiences [\"https://kubernetes.default.svc.cluster.local\"]"
        vault for vault and more: true "system:serviceaccount:default:one" ["vault"] null
        own for us by name: true "system:serviceaccount:default:one" ["https://kubernetes.default.svc.cluster.local"] null
        nonsense: null null null null
        changed: null null null "no key of this cluster signed the token"
    "#]].assert_eq(&text);
}

#[tokio::test]
async fn a_bootstrap_token_ends_when_it_expires_or_its_secret_goes() {
    let encoded = |text: &str| base64::engine::general_purpose::STANDARD.encode(text);
    let secret = |id: &str, change: &dyn Fn(&mut Value)| {
        let mut secret = json!({
            "apiVersion": "v1", "kind": "Secret", "type": "bootstrap.kubernetes.io/token",
            "metadata": { "name": format!("bootstrap-token-{id}"), "namespace": "kube-system" },
            "data": {
                "token-id": encoded(id), "token-secret": encoded("0123456789abcdef"),
                "usage-bootstrap-authentication": encoded("true"),
                "auth-extra-groups": encoded("system:bootstrappers:workers,system:masters")
            }
        });
        change(&mut secret);
        secret
    };
    let with = |field: &'static str, value: &'static str| {
        move |secret: &mut Value| secret["data"][field] = json!(base64::engine::general_purpose::STANDARD.encode(value))
    };
    let objects = vec![
        secret("aaaaaa", &|_| {}),
        secret("bbbbbb", &with("expiration", "2001-01-01T00:00:00Z")),
        secret("cccccc", &with("expiration", "soon")),
        secret("dddddd", &with("usage-bootstrap-authentication", "false")),
        secret("eeeeee", &with("token-id", "aaaaaa")),
        secret("ffffff", &|secret| secret["type"] = json!("Opaque")),
    ];
    let cluster = Cluster::start(Setup { objects, ..Setup::default() }).await;
    let user = whoami(&cluster, "aaaaaa.0123456789abcdef").await;
    let groups = json!(["system:bootstrappers", "system:bootstrappers:workers", "system:authenticated"]);
    assert_eq!((&user["username"], &user["groups"]), (&json!("system:bootstrap:aaaaaa"), &groups));
    for token in [
        "aaaaaa.0123456789abcdee",
        "bbbbbb.0123456789abcdef",
        "cccccc.0123456789abcdef",
        "dddddd.0123456789abcdef",
        "eeeeee.0123456789abcdef",
        "ffffff.0123456789abcdef",
        "gggggg.0123456789abcdef",
        "aaaaaa.",
        ".0123456789abcdef",
        "../../x.0123456789abcdef",
        "AAAAAA.0123456789abcdef",
    ] {
        assert_eq!(whoami(&cluster, token).await, json!(401), "{token}");
    }
    let path = "/api/v1/namespaces/kube-system/secrets";
    let gone = cluster.ask(&admin(), Method::DELETE, &format!("{path}/bootstrap-token-aaaaaa"), &Value::Null).await;
    assert_eq!(gone.code, 200);
    assert_eq!(cluster.ask(&admin(), Method::GET, path, &Value::Null).await.code, 200);
    assert_eq!(whoami(&cluster, "aaaaaa.0123456789abcdef").await, json!(401), "replayed after its end");
}

#[tokio::test]
async fn broken_credentials_are_refused_and_change_nothing() {
    let cluster = Cluster::start(Setup::default()).await;
    let good = Cluster::certificate(&cluster.authority, "jane", &["dev"]);
    let mut cut = good.clone();
    cut[0] = CertificateDer::from(good[0][..good[0].len() / 2].to_vec());
    let mut flipped = good.clone();
    let mut bytes = good[0].to_vec();
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    flipped[0] = CertificateDer::from(bytes);
    let nameless = Cluster::certificate(&cluster.authority, "", &["system:masters"]);
    let server = {
        let leaf = rkube_pki::Leaf::server("system:kube-scheduler", vec!["localhost".to_owned()], Vec::new());
        cluster.authority.issue(&leaf, SystemClock::new().now()).unwrap().chain().unwrap()
    };
    let none = HeaderMap::new();
    for (what, certificates, code) in [
        ("good", good.clone(), 200),
        ("cut", cut, 401),
        ("with a flipped bit", flipped, 401),
        ("nonsense", vec![CertificateDer::from(vec![0x30, 0x82, 0xff, 0xff])], 401),
        ("empty", vec![CertificateDer::from(Vec::new())], 401),
        ("for a server", server, 401),
        // Without a name it is no credential, so its bearer is anonymous.
        ("nameless", nameless, 403),
    ] {
        assert_eq!(cluster.code(Method::GET, "/api", &none, certificates, &Value::Null).await, code, "{what}");
    }
    let jwt = |header: &str, claims: Value| {
        let part = |text: &str| base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(text);
        format!("{}.{}.{}", part(header), part(&claims.to_string()), part("signature"))
    };
    let claims = json!({ "iss": ISSUER, "aud": [ISSUER], "exp": 9_999_999_999_u64, "sub": "system:serviceaccount:a:b",
        "kubernetes.io": { "namespace": "a", "serviceaccount": { "name": "b", "uid": "c" } } });
    for token in [
        "..".to_owned(),
        "a.b.c".to_owned(),
        jwt(r#"{"alg":"none"}"#, claims.clone()),
        jwt(r#"{"alg":"HS256"}"#, claims.clone()),
        jwt(r#"{"alg":"ES256"}"#, claims),
        jwt("{", json!(null)),
        "x".repeat(100_000),
        format!("{}.{}.{}", "a".repeat(50_000), "b".repeat(50_000), "c".repeat(50_000)),
    ] {
        assert_eq!(whoami(&cluster, &token).await, json!(401));
    }
    // What is no bearer token says nothing, as upstream; a bearer token that is not good is refused.
    for (value, code) in
        [("Basic YWRtaW46YWRtaW4=", 403), ("Bearer", 403), ("Bearer  spaced", 403), ("bearer wrong", 401)]
    {
        let mut headers = HeaderMap::new();
        headers.insert(header::AUTHORIZATION, HeaderValue::from_static(value));
        assert_eq!(cluster.code(Method::GET, "/api", &headers, Vec::new(), &Value::Null).await, code, "{value}");
        assert_eq!(cluster.code(Method::GET, "/api", &headers, good.clone(), &Value::Null).await, 200, "{value}");
    }
    // Whatever a request says of its host, it is the same server with the same rules.
    for host in ["evil.example", "127.0.0.1:1", "", "a b", "[::1]", "kubernetes.default.svc"] {
        let mut headers = HeaderMap::new();
        headers.insert(header::HOST, HeaderValue::from_str(host).unwrap());
        headers.insert("x-forwarded-host", HeaderValue::from_static("evil.example"));
        headers.insert("x-remote-user", HeaderValue::from_static("admin"));
        headers.insert("x-remote-group", HeaderValue::from_static("system:masters"));
        assert_eq!(cluster.code(Method::GET, "/api/v1/secrets", &headers, Vec::new(), &Value::Null).await, 403);
        let answer = cluster.call(Method::GET, "/api", &headers, good.clone(), &Value::Null).await;
        assert!(!answer.body.to_string().contains("evil"), "{}", answer.body);
    }
}

const CANARY: &str = "canary-4711-do-not-tell";

/// What is secret is in answers to those who may read it, and nowhere else.
#[tokio::test]
async fn secrets_appear_in_no_error_and_no_metric() {
    let canary = base64::engine::general_purpose::STANDARD.encode(CANARY);
    let secret = json!({ "apiVersion": "v1", "kind": "Secret", "metadata": { "name": "s", "namespace": "default" },
        "data": { "key": canary } });
    let cluster = Cluster::start(Setup { objects: vec![secret, account("one")], ..Setup::default() }).await;
    let (jane, root) = (crate::cluster::user("jane", &["system:authenticated"]), admin());
    let path = format!("{NAMESPACE}/secrets");
    let immutable = json!({ "metadata": { "name": "s" }, "type": "Other", "data": { "key": canary } });
    let wrong = json!({ "metadata": { "name": "t" }, "stringData": { "key": CANARY, "bad key!": CANARY } });
    let big = json!({ "metadata": { "name": "u" }, "stringData": { "key": CANARY.repeat(60_000) } });
    let typed = json!({ "metadata": { "name": "v" }, "type": "kubernetes.io/dockerconfigjson",
        "stringData": { ".dockerconfigjson": CANARY } });
    let mut answers = Vec::new();
    for (user, method, path, body) in [
        (&jane, Method::GET, format!("{path}/s"), Value::Null),
        (&jane, Method::POST, path.clone(), json!({ "metadata": { "name": "t" }, "stringData": { "key": CANARY } })),
        (&root, Method::POST, path.clone(), json!({ "metadata": { "name": "s" }, "stringData": { "key": CANARY } })),
        (&root, Method::PUT, format!("{path}/s"), immutable),
        (&root, Method::POST, path.clone(), wrong),
        (&root, Method::POST, path.clone(), big),
        (&root, Method::POST, path.clone(), typed),
        (
            &root,
            Method::POST,
            format!("{path}?fieldValidation=Strict"),
            json!({ "metadata": {}, "data": { "a": CANARY } }),
        ),
        (&root, Method::GET, "/metrics".to_owned(), Value::Null),
        (
            &root,
            Method::POST,
            "/apis/authentication.k8s.io/v1/tokenreviews".to_owned(),
            json!({ "spec": { "token": CANARY } }),
        ),
    ] {
        let answer = cluster.ask(user, method, &path, &body).await;
        answers.push((path, answer.code, answer.body));
    }
    let token = token(&cluster, "one", "", "").await;
    let broken = format!("{token}{CANARY}");
    answers.push(("token".to_owned(), 401, whoami(&cluster, &broken).await));
    for (path, code, body) in answers {
        let text = body.to_string();
        // A review gives back what was to be reviewed.
        let text = text.replace(&format!("\"spec\":{{\"token\":\"{CANARY}\"}}"), "");
        assert!(code >= 400 || path == "/metrics" || path.ends_with("tokenreviews"), "{code} {path} {text}");
        assert!(!text.contains(CANARY) && !text.contains(&canary) && !text.contains(&token), "{path}: {text}");
    }
}
