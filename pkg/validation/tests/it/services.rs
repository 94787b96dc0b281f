//! Services, ingresses, policies, slices and configuration.

use expect_test::expect;
use rkube_api::k8s::core::v1::{ConfigMap, Namespace, PersistentVolumeClaim, Secret, Service};
use rkube_api::k8s::discovery::v1::EndpointSlice;
use rkube_api::k8s::networking::v1::{Ingress, NetworkPolicy};
use rkube_validation::core::{config_map, namespace, persistent_volume_claim, secret, service};
use rkube_validation::discovery;
use rkube_validation::networking::{ingress, network_policy};
use serde_json::json;

use crate::Subject;

#[test]
fn services() {
    let subject = Subject::<Service> {
        object: json!({
            "metadata": {"name": "web", "namespace": "default", "resourceVersion": "1"},
            "spec": {
                "clusterIP": "10.0.0.1", "clusterIPs": ["10.0.0.1"], "ipFamilies": ["IPv4"], "ipFamilyPolicy": "SingleStack",
                "selector": {"app": "web"}, "ports": [{"port": 80}],
            },
        }),
        defaults: service::set_defaults,
        validate: service::validate,
        validate_update: service::validate_update,
    };
    let text = subject.creates(&[
        ("/metadata/name", json!("1web.")),
        ("/spec/ports", json!([])),
        ("/spec/ports", json!([{"port": 80}, {"port": 81}])),
        ("/spec/ports", json!([{"port": 0, "protocol": "HTTP", "targetPort": "x y"}])),
        ("/spec/ports", json!([{"name": "a", "port": 80}, {"name": "a", "port": 80}])),
        ("/spec/type", json!("Cluster")),
        ("/spec/type", json!("ExternalName")),
        ("/spec/sessionAffinity", json!("Cookie")),
        ("/spec/externalTrafficPolicy", json!("Local")),
        ("/spec/clusterIP", json!("10.0.0.2")),
        ("/spec/externalIPs", json!(["127.0.0.1", "x"])),
        ("/spec/loadBalancerSourceRanges", json!(["10.0.0.0/8"])),
    ]);
    expect![[r#"
        /metadata/name = "1web."
          metadata.name: Invalid value: "1web.": a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?')
        /spec/ports = []
          spec.ports: Required value
        /spec/ports = [{"port":80},{"port":81}]
          spec.ports[0].name: Required value
          spec.ports[1].name: Required value
        /spec/ports = [{"port":0,"protocol":"HTTP","targetPort":"x y"}]
          spec.ports[0].port: Invalid value: 0: must be between 1 and 65535, inclusive
          spec.ports[0].protocol: Unsupported value: "HTTP": supported values: "SCTP", "TCP", "UDP"
          spec.ports[0].targetPort: Invalid value: "x y": must contain only alpha-numeric characters (a-z, 0-9), and hyphens (-)
        /spec/ports = [{"name":"a","port":80},{"name":"a","port":80}]
          spec.ports[1].name: Duplicate value: "a"
          spec.ports[1]: Duplicate value: {"AppProtocol":null,"Name":"","NodePort":0,"Port":80,"Protocol":"TCP","TargetPort":0}
        /spec/type = "Cluster"
          spec.type: Unsupported value: "Cluster": supported values: "ClusterIP", "ExternalName", "LoadBalancer", "NodePort"
        /spec/type = "ExternalName"
          spec.clusterIPs: Forbidden: may not be set for ExternalName services
          spec.ipFamilies: Forbidden: may not be set for ExternalName services
          spec.ipFamilyPolicy: Forbidden: may not be set for ExternalName services
          spec.externalName: Required value
        /spec/sessionAffinity = "Cookie"
          spec.sessionAffinity: Unsupported value: "Cookie": supported values: "ClientIP", "None"
        /spec/externalTrafficPolicy = "Local"
          spec.externalTrafficPolicy: Invalid value: "Local": may only be set for externally-accessible services
        /spec/clusterIP = "10.0.0.2"
          spec.clusterIPs: Invalid value: ["10.0.0.1"]: first value must match `clusterIP`
        /spec/externalIPs = ["127.0.0.1","x"]
          spec.externalIPs[0]: Invalid value: "127.0.0.1": may not be in the loopback range (127.0.0.0/8, ::1/128)
          spec.externalIPs[1]: Invalid value: "x": must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)
        /spec/loadBalancerSourceRanges = ["10.0.0.0/8"]
          spec.LoadBalancerSourceRanges: Forbidden: may only be used when `type` is 'LoadBalancer'
    "#]].assert_eq(&text);
    let text = subject.updates(&[("/spec/clusterIPs", json!(["10.0.0.2"])), ("/spec/selector", json!({"a b": "c"}))]);
    expect![[r#"
        /spec/clusterIPs = ["10.0.0.2"]
          spec.clusterIPs[0]: Invalid value: ["10.0.0.2"]: may not change once set
          spec.clusterIPs: Invalid value: ["10.0.0.2"]: first value must match `clusterIP`
        /spec/selector = {"a b":"c"}
          spec.selector: Invalid value: "a b": name part must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')
    "#]].assert_eq(&text);
}

#[test]
fn configuration() {
    let subject = Subject::<ConfigMap> {
        object: json!({
            "metadata": {"name": "c", "namespace": "default", "resourceVersion": "1"},
            "data": {"a": "1"}, "immutable": true,
        }),
        defaults: |_| {},
        validate: config_map::validate,
        validate_update: config_map::validate_update,
    };
    let text = subject.creates(&[
        ("/data", json!({"a b": "1", "..": "2"})),
        ("/binaryData", json!({"a": "MQ=="})),
        ("/data", json!({"a": "x".repeat((1 << 20) + 1)})),
    ]);
    let text = text.replace(&"x".repeat((1 << 20) + 1), "<a byte more than 1 MiB>");
    expect![[r#"
        /data = {"..":"2","a b":"1"}
          data[..]: Invalid value: "..": must not be '..'
          data[a b]: Invalid value: "a b": a valid config key must consist of alphanumeric characters, '-', '_' or '.' (e.g. 'key.name',  or 'KEY_NAME',  or 'key-name', regex used for validation is '[-._a-zA-Z0-9]+')
        /binaryData = {"a":"MQ=="}
          data[a]: Invalid value: "a": duplicate of key present in binaryData
        /data = {"a":"<a byte more than 1 MiB>"}
          : Too long: may not be more than 1048576 bytes
    "#]].assert_eq(&text);
    expect![[r#"
        /data = {"a":"2"}
          data: Forbidden: field is immutable when `immutable` is set
        /immutable = false
          immutable: Forbidden: field is immutable when `immutable` is set
    "#]]
    .assert_eq(&subject.updates(&[("/data", json!({"a": "2"})), ("/immutable", json!(false))]));

    let subject = Subject::<Secret> {
        object: json!({
            "metadata": {"name": "s", "namespace": "default", "resourceVersion": "1"},
            "type": "kubernetes.io/basic-auth", "data": {"username": "dQ=="},
        }),
        defaults: secret::set_defaults,
        validate: secret::validate,
        validate_update: secret::validate_update,
    };
    let text = subject.creates(&[
        ("/type", json!("kubernetes.io/tls")),
        ("/type", json!("kubernetes.io/dockerconfigjson")),
        ("/type", json!("kubernetes.io/service-account-token")),
        ("/data", json!({})),
    ]);
    expect![[r#"
        /type = "kubernetes.io/tls"
          data[tls.crt]: Required value
          data[tls.key]: Required value
        /type = "kubernetes.io/dockerconfigjson"
          data[.dockerconfigjson]: Required value
        /type = "kubernetes.io/service-account-token"
          metadata.annotations[kubernetes.io/service-account.name]: Required value
        /data = {}
          data[username]: Required value
          data[password]: Required value
    "#]]
    .assert_eq(&text);
    expect![[r#"
        /type = "Opaque"
          type: Invalid value: "Opaque": field is immutable
    "#]]
    .assert_eq(&subject.updates(&[("/type", json!("Opaque"))]));

    let subject = Subject::<Namespace> {
        object: json!({"metadata": {"name": "n", "resourceVersion": "1"}}),
        defaults: namespace::set_defaults,
        validate: namespace::validate,
        validate_update: namespace::validate_update,
    };
    let text = subject.creates(&[("/metadata/name", json!("a.b")), ("/metadata/namespace", json!("x"))]);
    expect![[r#"
        /metadata/name = "a.b"
          metadata.name: Invalid value: "a.b": must not contain dots
        /metadata/namespace = "x"
          metadata.namespace: Forbidden: not allowed on this type
    "#]]
    .assert_eq(&text);
}

#[test]
fn claims() {
    let subject = Subject::<PersistentVolumeClaim> {
        object: json!({
            "metadata": {"name": "c", "namespace": "default", "resourceVersion": "1"},
            "spec": {
                "accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}},
                "storageClassName": "fast", "volumeName": "v",
            },
            "status": {"phase": "Bound", "capacity": {"storage": "1Gi"}},
        }),
        defaults: persistent_volume_claim::set_defaults,
        validate: persistent_volume_claim::validate,
        validate_update: persistent_volume_claim::validate_update,
    };
    let text = subject.creates(&[
        ("/spec/accessModes", json!([])),
        ("/spec/accessModes", json!(["ReadWriteOncePod", "ReadOnlyMany"])),
        ("/spec/resources", json!({})),
        ("/spec/resources", json!({"requests": {"storage": "0"}})),
        ("/spec/volumeMode", json!("Tape")),
    ]);
    expect![[r#"
        /spec/accessModes = []
          spec.accessModes: Required value: at least 1 access mode is required
        /spec/accessModes = ["ReadWriteOncePod","ReadOnlyMany"]
          spec.accessModes: Forbidden: may not use ReadWriteOncePod with other access modes
        /spec/resources = {}
          spec.resources[storage]: Required value
        /spec/resources = {"requests":{"storage":"0"}}
          spec.resources[storage]: Invalid value: "0": must be greater than zero
        /spec/volumeMode = "Tape"
          spec.volumeMode: Unsupported value: "Tape": supported values: "Block", "Filesystem"
    "#]]
    .assert_eq(&text);
    let text = subject.updates(&[
        ("/spec/resources", json!({"requests": {"storage": "2Gi"}})),
        ("/spec/resources", json!({"requests": {"storage": "1Mi"}})),
        ("/spec/storageClassName", json!("slow")),
    ]);
    expect![[r#"
        /spec/resources = {"requests":{"storage":"2Gi"}}
        /spec/resources = {"requests":{"storage":"1Mi"}}
          spec.resources.requests.storage: Forbidden: field can not be less than status.capacity
        /spec/storageClassName = "slow"
          spec: Forbidden: spec is immutable after creation except resources.requests and volumeAttributesClassName for bound claims
        - storageClassName: "fast"
        + storageClassName: "slow"
    "#]].assert_eq(&text);
}

#[test]
fn networking() {
    let subject = Subject::<Ingress> {
        object: json!({
            "metadata": {"name": "i", "namespace": "default", "resourceVersion": "1"},
            "spec": {"rules": [{"host": "a.example", "http": {"paths": [
                {"path": "/", "pathType": "Prefix", "backend": {"service": {"name": "s", "port": {"number": 80}}}}
            ]}}]},
        }),
        defaults: ingress::set_defaults,
        validate: ingress::validate,
        validate_update: ingress::validate_update,
    };
    let text = subject.creates(&[
        ("/spec", json!({})),
        ("/spec/rules/0/host", json!("1.2.3.4")),
        ("/spec/rules/0/host", json!("*.*.x")),
        ("/spec/rules/0/http/paths/0/path", json!("a//b/./%2f")),
        ("/spec/rules/0/http/paths/0/pathType", json!("")),
        ("/spec/rules/0/http/paths/0/backend", json!({})),
        ("/spec/rules/0/http/paths/0/backend", json!({"service": {"name": "s", "port": {"number": 80, "name": "x"}}})),
        ("/spec/tls", json!([{"hosts": ["A"], "secretName": "-"}])),
    ]);
    expect![[r#"
        /spec = {}
          spec: Invalid value: null: either `defaultBackend` or `rules` must be specified
        /spec/rules/0/host = "1.2.3.4"
          spec.rules[0].host: Invalid value: "1.2.3.4": must be a DNS name, not an IP address
        /spec/rules/0/host = "*.*.x"
          spec.rules[0].host: Invalid value: "*.*.x": a wildcard DNS-1123 subdomain must start with '*.', followed by a valid DNS subdomain, which must consist of lower case alphanumeric characters, '-' or '.' and end with an alphanumeric character (e.g. '*.example.com', regex used for validation is '\*\.[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')
        /spec/rules/0/http/paths/0/path = "a//b/./%2f"
          spec.rules[0].http.paths[0].path: Invalid value: "a//b/./%2f": must be an absolute path
          spec.rules[0].http.paths[0].path: Invalid value: "a//b/./%2f": must not contain '//'
          spec.rules[0].http.paths[0].path: Invalid value: "a//b/./%2f": must not contain '/./'
          spec.rules[0].http.paths[0].path: Invalid value: "a//b/./%2f": must not contain '%2f'
        /spec/rules/0/http/paths/0/pathType = ""
          spec.rules[0].http.paths[0].pathType: Required value: pathType must be specified
        /spec/rules/0/http/paths/0/backend = {}
          spec.rules[0].http.paths[0].backend: Invalid value: "": resource or service backend is required
        /spec/rules/0/http/paths/0/backend = {"service":{"name":"s","port":{"name":"x","number":80}}}
          spec.rules[0].http.paths[0].backend: Invalid value: "": cannot set both port name & port number
        /spec/tls = [{"hosts":["A"],"secretName":"-"}]
          spec.tls[0].hosts[0]: Invalid value: "A": a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')
          spec.tls[0].secretName: Invalid value: "-": a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')
    "#]].assert_eq(&text);

    let subject = Subject::<NetworkPolicy> {
        object: json!({
            "metadata": {"name": "n", "namespace": "default", "resourceVersion": "1"},
            "spec": {"podSelector": {}, "ingress": [{"from": [{"ipBlock": {"cidr": "10.0.0.0/8"}}]}]},
        }),
        defaults: network_policy::set_defaults,
        validate: network_policy::validate,
        validate_update: network_policy::validate_update,
    };
    let text = subject.creates(&[
        ("/spec/policyTypes", json!(["Ingress", "Sideways"])),
        ("/spec/ingress/0/from", json!([{}])),
        ("/spec/ingress/0/from", json!([{"ipBlock": {"cidr": "10.0.0.0/8", "except": ["11.0.0.0/8"]}}])),
        ("/spec/ingress/0/from", json!([{"ipBlock": {"cidr": "10.0.0.0/8"}, "podSelector": {}}])),
        ("/spec/ingress/0/ports", json!([{"port": 80, "endPort": 70}, {"protocol": "X"}])),
    ]);
    expect![[r#"
        /spec/policyTypes = ["Ingress","Sideways"]
          spec.policyTypes[1]: Unsupported value: "Sideways": supported values: "Ingress", "Egress"
        /spec/ingress/0/from = [{}]
          spec.ingress[0].from[0]: Required value: must specify a peer
        /spec/ingress/0/from = [{"ipBlock":{"cidr":"10.0.0.0/8","except":["11.0.0.0/8"]}}]
          spec.ingress[0].from[0].ipBlock.except[0]: Invalid value: "11.0.0.0/8": must be a strict subset of `cidr`
        /spec/ingress/0/from = [{"ipBlock":{"cidr":"10.0.0.0/8"},"podSelector":{}}]
          spec.ingress[0].from[0]: Forbidden: may not specify both ipBlock and another peer
        /spec/ingress/0/ports = [{"endPort":70,"port":80},{"protocol":"X"}]
          spec.ingress[0].ports[0].endPort: Invalid value: 80: must be greater than or equal to `port`
          spec.ingress[0].ports[1].protocol: Unsupported value: "X": supported values: "TCP", "UDP", "SCTP"
    "#]]
    .assert_eq(&text);

    let subject = Subject::<EndpointSlice> {
        object: json!({
            "metadata": {"name": "e", "namespace": "default", "resourceVersion": "1"},
            "addressType": "IPv4", "endpoints": [{"addresses": ["10.0.0.1"]}], "ports": [{"port": 80}],
        }),
        defaults: discovery::set_defaults,
        validate: discovery::validate,
        validate_update: discovery::validate_update,
    };
    let text = subject.creates(&[
        ("/endpoints/0/addresses", json!([])),
        ("/endpoints/0/addresses", json!(["fd00::1", "127.0.0.1"])),
        ("/ports", json!([{"name": "a"}, {"name": "a", "port": 1}])),
    ]);
    expect![[r#"
        /endpoints/0/addresses = []
          endpoints[0].addresses: Required value: must contain at least 1 address
        /endpoints/0/addresses = ["fd00::1","127.0.0.1"]
          endpoints[0].addresses: Invalid value: "fd00::1": must be an IPv4 address
          endpoints[0].addresses[1]: Invalid value: "127.0.0.1": may not be in the loopback range (127.0.0.0/8, ::1/128)
        /ports = [{"name":"a"},{"name":"a","port":1}]
          ports[1].name: Duplicate value: "a"
    "#]]
    .assert_eq(&text);
    expect![[r#"
        /addressType = "IPv6"
          addressType: Invalid value: "IPv6": field is immutable
    "#]]
    .assert_eq(&subject.updates(&[("/addressType", json!("IPv6"))]));
}
