//! What kubectl does about identity: who am I, what may I, roles, certificates, tokens. Needs kubectl, as `RKUBE_KUBECTL`
//! names it or on the path; the answers are the same for every version of it.

use std::path::Path;
use std::process::Command;

use expect_test::expect;
use rkube_pki::{Leaf, csr};

use crate::process::Machine;

struct Kubectl<'a> {
    machine: &'a Machine,
    program: String,
}

impl<'a> Kubectl<'a> {
    fn new(machine: &'a Machine) -> Self {
        Self { machine, program: std::env::var("RKUBE_KUBECTL").unwrap_or_else(|_| "kubectl".to_owned()) }
    }

    fn output(&self, kubeconfig: &Path, arguments: &[&str]) -> (Option<i32>, String, String) {
        let mut command = Command::new(&self.program);
        command.args(arguments).env("KUBECONFIG", kubeconfig).env("HOME", self.machine.folder.path());
        let output = command.output().expect("these tests need kubectl: `hack/install-deps test`");
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        (output.status.code(), text(output.stdout), text(output.stderr))
    }

    fn run(&self, arguments: &[&str]) -> (Option<i32>, String, String) {
        self.output(&self.machine.path("admin.yaml"), arguments)
    }

    #[track_caller]
    fn ok(&self, arguments: &[&str]) -> String {
        let (code, out, error) = self.run(arguments);
        assert_eq!(code, Some(0), "kubectl {arguments:?}: {out}{error}");
        out
    }

    /// What a command prints, columns by one space, lines sorted where the server has no order.
    #[track_caller]
    fn table(&self, arguments: &[&str]) -> String {
        let mut lines: Vec<String> = self
            .ok(arguments)
            .lines()
            .map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ") + "\n")
            .collect();
        lines[1..].sort();
        lines.concat()
    }
}

const ROLES: &str = "
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: reader}
rules:
- {apiGroups: [''], resources: [pods, pods/log], verbs: [get, list]}
- {nonResourceURLs: [/logs], verbs: [get]}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {name: readers, namespace: default}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: reader}
subjects: [{apiGroup: rbac.authorization.k8s.io, kind: User, name: jane}]
";

#[test]
fn who_am_i_and_what_may_i() {
    let machine = Machine::new();
    let _server = machine.start(&[]);
    let kubectl = Kubectl::new(&machine);
    let whoami = kubectl.table(&["auth", "whoami"]);
    for line in [
        "Username kubernetes-admin\n",
        "Groups [system:masters system:authenticated]\n",
        "Extra: authentication.kubernetes.io/credential-id [X509SHA256=",
    ] {
        assert!(whoami.contains(line), "{whoami}");
    }
    let named = ["auth", "whoami", "--as", "jane", "--as-group", "dev", "--as-uid", "7"];
    expect![[r#"
        ATTRIBUTE VALUE
        Groups [dev system:authenticated]
        UID 7
        Username jane
    "#]]
    .assert_eq(&kubectl.table(&named));

    machine.write("roles.yaml", ROLES);
    let file = machine.path("roles.yaml").display().to_string();
    let reconcile = ["auth", "reconcile", "-f", &file];
    let done = "clusterrole.rbac.authorization.k8s.io/reader reconciled\nrolebinding.rbac.authorization.k8s.io/readers reconciled\n";
    let (_, out, details) = kubectl.run(&reconcile);
    let details: String = details.lines().map(|line| line.trim().to_owned() + "\n").collect();
    assert_eq!(out, done);
    expect![[r#"
        reconciliation required create
        missing rules added:
        {Verbs:[get list] APIGroups:[] Resources:[pods pods/log] ResourceNames:[] NonResourceURLs:[]}
        {Verbs:[get] APIGroups:[] Resources:[] ResourceNames:[] NonResourceURLs:[/logs]}
        reconciliation required create
        missing subjects added:
        {Kind:User APIGroup:rbac.authorization.k8s.io Name:jane Namespace:}
    "#]]
    .assert_eq(&details);
    assert_eq!(kubectl.run(&reconcile), (Some(0), done.to_owned(), String::new()), "nothing is left to do");

    for (question, answer) in [
        (["get", "pods", "default"], (Some(0), "yes\n")),
        (["list", "pods/log", "default"], (Some(0), "yes\n")),
        (["create", "pods", "default"], (Some(1), "no\n")),
        (["get", "pods", "kube-system"], (Some(1), "no\n")),
    ] {
        let [verb, what, namespace] = question;
        let (code, out, _) = kubectl.run(&["auth", "can-i", verb, what, "-n", namespace, "--as", "jane"]);
        assert_eq!((code, out.as_str()), answer, "{question:?}");
    }
    expect![[r#"
        Resources Non-Resource URLs Resource Names Verbs
        [/.well-known/*] [] [get]
        [/.well-known] [] [get]
        [/api/*] [] [get]
        [/api] [] [get]
        [/apis/*] [] [get]
        [/apis] [] [get]
        [/healthz] [] [get]
        [/healthz] [] [get]
        [/livez] [] [get]
        [/livez] [] [get]
        [/logs] [] [get]
        [/openapi/*] [] [get]
        [/openapi] [] [get]
        [/readyz] [] [get]
        [/readyz] [] [get]
        [/version/] [] [get]
        [/version/] [] [get]
        [/version] [] [get]
        [/version] [] [get]
        pods [] [] [get list]
        pods/log [] [] [get list]
        selfsubjectaccessreviews.authorization.k8s.io [] [] [create]
        selfsubjectreviews.authentication.k8s.io [] [] [create]
        selfsubjectrulesreviews.authorization.k8s.io [] [] [create]
    "#]]
    .assert_eq(&kubectl.table(&["auth", "can-i", "--list", "--as", "jane"]));
}

#[test]
fn certificates_are_approved_and_denied_and_tokens_made() {
    let machine = Machine::new();
    let _server = machine.start(&[]);
    let kubectl = Kubectl::new(&machine);
    for name in ["yes", "no"] {
        let request = csr::request(&Leaf::client("jane", &["dev"])).unwrap().request_pem;
        let request = base64::Engine::encode(&base64::engine::general_purpose::STANDARD, request);
        machine.write(
            "csr.yaml",
            &format!(
                "apiVersion: certificates.k8s.io/v1\nkind: CertificateSigningRequest\nmetadata: {{name: '{name}'}}\n\
                 spec: {{request: {request}, signerName: kubernetes.io/kube-apiserver-client, usages: [client auth]}}\n"
            ),
        );
        kubectl.ok(&["create", "-f", &machine.path("csr.yaml").display().to_string()]);
    }
    let condition = "-o=jsonpath={.status.conditions[*].type} {.status.conditions[*].reason}";
    assert_eq!(
        kubectl.ok(&["certificate", "approve", "yes"]),
        "certificatesigningrequest.certificates.k8s.io/yes approved\n"
    );
    assert_eq!(kubectl.ok(&["certificate", "deny", "no"]), "certificatesigningrequest.certificates.k8s.io/no denied\n");
    assert_eq!(kubectl.ok(&["get", "csr", "yes", condition]), "Approved KubectlApprove");
    assert_eq!(kubectl.ok(&["get", "csr", "no", condition]), "Denied KubectlDeny");
    kubectl.ok(&["wait", "csr/yes", "--for=jsonpath={.status.certificate}", "--timeout=60s"]);
    let states = kubectl.table(&["get", "csr", "-o=custom-columns=NAME:.metadata.name,SIGNED:.status.certificate"]);
    assert!(states.contains("no <none>\n") && !states.contains("yes <none>"), "{states}");

    let token = kubectl.ok(&["create", "token", "default", "--duration", "15m"]);
    let server = format!("--server=https://127.0.0.1:{}", machine.port);
    let authority = format!("--certificate-authority={}", machine.path("data/server/tls/ca.crt").display());
    let with = format!("--token={}", token.trim());
    let nobody = machine.path("nobody.yaml");
    let (code, out, error) = kubectl.output(&nobody, &["auth", "whoami", &server, &authority, &with]);
    assert_eq!(code, Some(0), "{error}");
    assert!(out.contains("system:serviceaccount:default:default"), "{out}");
    let other = kubectl.ok(&["create", "token", "default", "--audience", "vault"]);
    let with = format!("--token={}", other.trim());
    let (code, _, error) = kubectl.output(&nobody, &["auth", "whoami", &server, &authority, &with]);
    assert!(code == Some(1) && error.contains("Unauthorized"), "{error}");
    let (code, _, error) = kubectl.run(&["create", "token", "nobody"]);
    assert_eq!(
        (code, error.as_str()),
        (Some(1), "error: failed to create token: serviceaccounts \"nobody\" not found\n")
    );
    let (code, _, error) = kubectl.run(&["create", "token", "default", "--duration", "1m"]);
    assert!(code == Some(1) && error.contains("may not specify a duration less than 10 minutes"), "{error}");
}
