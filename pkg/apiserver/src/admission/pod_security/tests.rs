//! Verdicts: one pod per case, as JSON, and what upstream says of it.

use rkube_api::Kind;
use rkube_api::k8s::core::v1::Pod;
use serde_json::{Value, json};

use super::evaluate::{details, evaluate};
use super::policy::{Level, LevelVersion, Version};

const BASELINE: LevelVersion = LevelVersion { level: Level::Baseline, version: Version::Latest };
const RESTRICTED: LevelVersion = LevelVersion { level: Level::Restricted, version: Version::Latest };

fn restricted_at(minor: u32) -> LevelVersion {
    LevelVersion { level: Level::Restricted, version: Version::Minor(minor) }
}

fn verdict(standard: LevelVersion, spec: Value, annotations: Value) -> String {
    let pod = json!({ "metadata": { "name": "p", "annotations": annotations }, "spec": spec });
    let pod = Pod::from_value(pod).unwrap();
    details(&evaluate(standard, &pod.metadata, pod.spec.as_ref().unwrap()))
}

fn check(standard: LevelVersion, spec: Value, expected: &str) {
    assert_eq!(verdict(standard, spec.clone(), json!({})), expected, "{spec}");
}

fn container(security: Value) -> Value {
    json!({ "containers": [{ "name": "a", "securityContext": security }] })
}

/// What the restricted level asks for.
fn hardened() -> Value {
    json!({
        "allowPrivilegeEscalation": false, "runAsNonRoot": true,
        "capabilities": { "drop": ["ALL"] }, "seccompProfile": { "type": "RuntimeDefault" }
    })
}

#[test]
fn an_ordinary_pod_is_baseline_and_a_hardened_one_restricted() {
    check(BASELINE, json!({ "containers": [{ "name": "a" }] }), "");
    check(RESTRICTED, container(hardened()), "");
}

#[test]
fn a_plain_pod_is_told_all_that_restricted_asks_for() {
    check(
        RESTRICTED,
        json!({ "containers": [{ "name": "a" }] }),
        "allowPrivilegeEscalation != false (container \"a\" must set securityContext.allowPrivilegeEscalation=false), \
         unrestricted capabilities (container \"a\" must set securityContext.capabilities.drop=[\"ALL\"]), runAsNonRoot != \
         true (pod or container \"a\" must set securityContext.runAsNonRoot=true), seccompProfile (pod or container \"a\" \
         must set securityContext.seccompProfile.type to \"RuntimeDefault\" or \"Localhost\")",
    );
}

#[test]
fn baseline_refuses_what_leads_to_the_host() {
    let cases = [
        (
            json!({ "hostNetwork": true, "hostPID": true, "containers": [] }),
            "host namespaces (hostNetwork=true, hostPID=true)",
        ),
        (
            json!({ "containers": [], "volumes": [{ "name": "v", "hostPath": { "path": "/" } }, { "name": "w", "emptyDir": {} }] }),
            "hostPath volumes (volume \"v\")",
        ),
        (
            container(json!({ "privileged": true })),
            "privileged (container \"a\" must not set securityContext.privileged=true)",
        ),
        (
            container(json!({ "capabilities": { "add": ["SYS_ADMIN", "CHOWN", "NET_RAW"] } })),
            "non-default capabilities (container \"a\" must not include \"NET_RAW\", \"SYS_ADMIN\" in \
             securityContext.capabilities.add)",
        ),
        (
            json!({ "containers": [{ "name": "a", "ports": [{ "containerPort": 1, "hostPort": 80 }, { "containerPort": 2, "hostPort": 443 }] }] }),
            "hostPort (container \"a\" uses hostPorts 443, 80)",
        ),
        (
            container(json!({ "procMount": "Unmasked" })),
            "procMount (container \"a\" must not set securityContext.procMount to \"Unmasked\")",
        ),
        (
            json!({ "securityContext": { "seLinuxOptions": { "type": "x", "user": "u" } }, "containers": [{ "name": "a" }] }),
            "seLinuxOptions (pod set forbidden securityContext.seLinuxOptions: type \"x\"; user may not be set)",
        ),
        (
            json!({ "securityContext": { "seccompProfile": { "type": "Unconfined" } }, "containers": [{ "name": "a", "securityContext": { "seccompProfile": { "type": "Unconfined" } } }] }),
            "seccompProfile (pod and container \"a\" must not set securityContext.seccompProfile.type to \"Unconfined\")",
        ),
        (
            json!({ "securityContext": { "sysctls": [{ "name": "net.ipv4.tcp_rmem", "value": "1" }, { "name": "kernel.msgmax", "value": "1" }] }, "containers": [] }),
            "forbidden sysctls (kernel.msgmax)",
        ),
        (
            container(json!({ "appArmorProfile": { "type": "Unconfined" } })),
            "forbidden AppArmor profile (container \"a\" must not set AppArmor profile type to \"Unconfined\")",
        ),
        (
            json!({ "containers": [{ "name": "a", "livenessProbe": { "httpGet": { "port": 1, "host": "169.254.169.254" } } }] }),
            "probe or lifecycle host (container \"a\" uses probe or lifecycle host \"169.254.169.254\")",
        ),
        (
            json!({ "securityContext": { "windowsOptions": { "hostProcess": true } }, "containers": [] }),
            "hostProcess (pod must not set securityContext.windowsOptions.hostProcess=true)",
        ),
    ];
    for (spec, expected) in cases {
        check(BASELINE, spec, expected);
    }
}

#[test]
fn init_and_ephemeral_containers_count() {
    let privileged = json!({ "privileged": true });
    check(
        BASELINE,
        json!({
            "containers": [{ "name": "a" }],
            "initContainers": [{ "name": "i", "securityContext": privileged }],
            "ephemeralContainers": [{ "name": "e", "securityContext": privileged }]
        }),
        "privileged (containers \"i\", \"e\" must not set securityContext.privileged=true)",
    );
}

#[test]
fn versions_ask_for_what_they_asked_for_then() {
    let mut spec = container(hardened());
    spec["containers"][0]["securityContext"]["runAsUser"] = json!(0);
    check(restricted_at(22), spec.clone(), "");
    check(RESTRICTED, spec.clone(), "runAsUser=0 (container \"a\" must not set runAsUser=0)");
    spec["hostUsers"] = json!(false);
    check(RESTRICTED, spec.clone(), "");
    check(restricted_at(34), spec, "runAsUser=0 (container \"a\" must not set runAsUser=0)");
    let annotations = json!({ "seccomp.security.alpha.kubernetes.io/pod": "unconfined" });
    let old = LevelVersion { level: Level::Baseline, version: Version::Minor(18) };
    assert_eq!(
        verdict(old, json!({ "containers": [] }), annotations.clone()),
        "seccompProfile (forbidden annotation seccomp.security.alpha.kubernetes.io/pod=\"unconfined\")"
    );
    assert_eq!(verdict(BASELINE, json!({ "containers": [] }), annotations), "");
}

#[test]
fn restricted_names_the_types_of_volumes_it_refuses() {
    let mut spec = container(hardened());
    spec["volumes"] = json!([{ "name": "h", "hostPath": { "path": "/" } }, { "name": "n", "nfs": { "server": "s", "path": "/" } }, { "name": "c", "configMap": { "name": "c" } }]);
    check(
        RESTRICTED,
        spec,
        "restricted volume types (volumes \"h\", \"n\" use restricted volume types \"hostPath\", \"nfs\")",
    );
}

#[test]
fn windows_pods_are_spared_what_only_linux_knows() {
    let spec = json!({ "os": { "name": "windows" }, "securityContext": { "runAsNonRoot": true }, "containers": [{ "name": "a" }] });
    check(RESTRICTED, spec, "");
}
