//! Pods: containers, volumes, scheduling, security, updates.

use expect_test::expect;
use rkube_api::k8s::core::v1::Pod;
use rkube_validation::core::{pod, pod_defaults, pod_update, pod_warnings};
use serde_json::json;

use crate::Subject;

fn subject() -> Subject<Pod> {
    Subject {
        object: json!({
            "metadata": {"name": "web", "namespace": "default", "resourceVersion": "1"},
            "spec": {
                "containers": [{"name": "web", "image": "nginx:1"}],
                "tolerations": [{"key": "a", "operator": "Exists"}],
            },
        }),
        defaults: pod_defaults::set_defaults,
        validate: pod::validate,
        validate_update: pod_update::validate_update,
    }
}

#[test]
fn names_and_labels() {
    let text = subject().creates(&[
        ("/metadata/name", json!("Web_1")),
        ("/metadata/name", json!("")),
        ("/metadata/namespace", json!("")),
        ("/metadata/labels", json!({"a/b/c": "x", "b": "-"})),
        ("/metadata/finalizers", json!(["x y"])),
        ("/metadata/ownerReferences", json!([{"apiVersion": "v1", "kind": "Event", "name": "e", "uid": "u"}])),
    ]);
    expect![[r#"
        /metadata/name = "Web_1"
          metadata.name: Invalid value: "Web_1": a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')
        /metadata/name = ""
          metadata.name: Required value: name or generateName is required
        /metadata/namespace = ""
          metadata.namespace: Required value
        /metadata/labels = {"a/b/c":"x","b":"-"}
          metadata.labels: Invalid value: "a/b/c": a valid label key must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]') with an optional DNS subdomain prefix and '/' (e.g. 'example.com/MyName')
          metadata.labels: Invalid value: "-": a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyValue',  or 'my_value',  or '12345', regex used for validation is '(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?')
        /metadata/finalizers = ["x y"]
          metadata.finalizers: Invalid value: "x y": name part must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')
          metadata.finalizers[0]: Invalid value: "x y": name is neither a standard finalizer name nor is it fully qualified
        /metadata/ownerReferences = [{"apiVersion":"v1","kind":"Event","name":"e","uid":"u"}]
          metadata.ownerReferences: Invalid value: {"apiVersion":"v1","kind":"Event","name":"e","uid":"u"}: /v1, Kind=Event is disallowed from being an owner
    "#]].assert_eq(&text);
}

#[test]
fn containers() {
    let text = subject().creates(&[
        ("/spec/containers", json!([])),
        ("/spec/containers/0/name", json!("")),
        ("/spec/containers/0/image", json!("")),
        ("/spec/containers/0/image", json!(" nginx")),
        ("/spec/containers/0/imagePullPolicy", json!("Sometimes")),
        ("/spec/containers", json!([{"name": "a", "image": "i"}, {"name": "a", "image": "i"}])),
        ("/spec/containers/0/ports", json!([{"containerPort": 0}, {"containerPort": 99999, "protocol": "tcp"}])),
        (
            "/spec/containers/0/ports",
            json!([{"containerPort": 80, "hostPort": 80}, {"containerPort": 81, "hostPort": 80}]),
        ),
        ("/spec/containers/0/env", json!([{"name": ""}, {"name": "a=b"}])),
        (
            "/spec/containers/0/env",
            json!([{"name": "a", "value": "x", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}]),
        ),
        ("/spec/containers/0/env", json!([{"name": "a", "valueFrom": {"fieldRef": {"fieldPath": "metadata.whoami"}}}])),
        ("/spec/containers/0/resources", json!({"requests": {"cpu": "2"}, "limits": {"cpu": "1"}})),
        ("/spec/containers/0/resources", json!({"requests": {"disk": "2"}, "limits": {"memory": "-1"}})),
        ("/spec/containers/0/livenessProbe", json!({"tcpSocket": {"port": 80}, "successThreshold": 2})),
        (
            "/spec/containers/0/livenessProbe",
            json!({"httpGet": {"port": "no such", "scheme": "FTP"}, "exec": {"command": ["a"]}}),
        ),
        ("/spec/containers/0/lifecycle", json!({"preStop": {}})),
        ("/spec/initContainers", json!([{"name": "web", "image": "i"}])),
        ("/spec/initContainers", json!([{"name": "i", "image": "i", "restartPolicy": "Never2"}])),
        ("/spec/ephemeralContainers", json!([{"name": "e", "image": "i"}])),
    ]);
    expect![[r#"
        /spec/containers = []
          spec.containers: Required value
        /spec/containers/0/name = ""
          spec.containers[0].name: Required value
        /spec/containers/0/image = ""
          spec.containers[0].image: Required value
        /spec/containers/0/image = " nginx"
          spec.containers[0].image: Invalid value: " nginx": must not have leading or trailing whitespace
        /spec/containers/0/imagePullPolicy = "Sometimes"
          spec.containers[0].imagePullPolicy: Unsupported value: "Sometimes": supported values: "Always", "IfNotPresent", "Never"
        /spec/containers = [{"image":"i","name":"a"},{"image":"i","name":"a"}]
          spec.containers[1].name: Duplicate value: "a"
        /spec/containers/0/ports = [{"containerPort":0},{"containerPort":99999,"protocol":"tcp"}]
          spec.containers[0].ports[0].containerPort: Required value
          spec.containers[0].ports[1].containerPort: Invalid value: 99999: must be between 1 and 65535, inclusive
          spec.containers[0].ports[1].protocol: Unsupported value: "tcp": supported values: "SCTP", "TCP", "UDP"
        /spec/containers/0/ports = [{"containerPort":80,"hostPort":80},{"containerPort":81,"hostPort":80}]
          spec.containers[0].ports[1].hostPort: Duplicate value: "TCP//80"
        /spec/containers/0/env = [{"name":""},{"name":"a=b"}]
          spec.containers[0].env[0].name: Required value
          spec.containers[0].env[1].name: Invalid value: "a=b": a valid environment variable name must consist only of printable ASCII characters other than '='
        /spec/containers/0/env = [{"name":"a","value":"x","valueFrom":{"fieldRef":{"fieldPath":"metadata.name"}}}]
          spec.containers[0].env[0].valueFrom: Invalid value: "": may not be specified when `value` is not empty
        /spec/containers/0/env = [{"name":"a","valueFrom":{"fieldRef":{"fieldPath":"metadata.whoami"}}}]
          spec.containers[0].env[0].valueFrom.fieldRef.fieldPath: Invalid value: "metadata.whoami": error converting fieldPath: field label not supported: metadata.whoami
        /spec/containers/0/resources = {"limits":{"cpu":"1"},"requests":{"cpu":"2"}}
          spec.containers[0].resources.requests: Invalid value: "2": must be less than or equal to cpu limit of 1
        /spec/containers/0/resources = {"limits":{"memory":"-1"},"requests":{"disk":"2"}}
          spec.containers[0].resources.limits[memory]: Invalid value: "-1": must be greater than or equal to 0
          spec.containers[0].resources.requests[disk]: Invalid value: "disk": must be a standard resource type or fully qualified
          spec.containers[0].resources.requests[disk]: Invalid value: "disk": must be a standard resource for containers
          spec.containers[0].resources.requests[memory]: Invalid value: "-1": must be greater than or equal to 0
        /spec/containers/0/livenessProbe = {"successThreshold":2,"tcpSocket":{"port":80}}
          spec.containers[0].livenessProbe.successThreshold: Invalid value: 2: must be 1
        /spec/containers/0/livenessProbe = {"exec":{"command":["a"]},"httpGet":{"port":"no such","scheme":"FTP"}}
          spec.containers[0].livenessProbe.httpGet: Forbidden: may not specify more than 1 handler type
        /spec/containers/0/lifecycle = {"preStop":{}}
          spec.containers[0].lifecycle.preStop: Required value: must specify a handler type
        /spec/initContainers = [{"image":"i","name":"web"}]
          spec.initContainers[0].name: Duplicate value: "web"
        /spec/initContainers = [{"image":"i","name":"i","restartPolicy":"Never2"}]
          spec.initContainers[0].restartPolicy: Unsupported value: "Never2": supported values: "Always", "Never", "OnFailure"
        /spec/ephemeralContainers = [{"image":"i","name":"e"}]
          spec.ephemeralContainers: Forbidden: cannot be set on create
    "#]].assert_eq(&text);
}

#[test]
fn volumes() {
    let text = subject().creates(&[
        ("/spec/volumes", json!([{"name": "v", "emptyDir": {}}, {"name": "v", "emptyDir": {}}])),
        ("/spec/volumes", json!([{"name": "v", "emptyDir": {}, "hostPath": {"path": "/x"}}])),
        ("/spec/volumes", json!([{"name": "v"}])),
        ("/spec/volumes", json!([{"name": "v", "hostPath": {"path": "/a/../b"}}])),
        ("/spec/volumes", json!([{"name": "v", "configMap": {"name": "", "items": [{"key": "k", "path": "../x"}]}}])),
        ("/spec/volumes", json!([{"name": "v", "secret": {"secretName": "s", "defaultMode": 4096}}])),
        ("/spec/volumes", json!([{"name": "v", "projected": {"sources": [{}]}}])),
        ("/spec/containers/0/volumeMounts", json!([{"name": "x", "mountPath": "/a"}])),
    ]);
    expect![[r#"
        /spec/volumes = [{"emptyDir":{},"name":"v"},{"emptyDir":{},"name":"v"}]
          spec.volumes[1].name: Duplicate value: "v"
        /spec/volumes = [{"emptyDir":{},"hostPath":{"path":"/x"},"name":"v"}]
          spec.volumes[0].hostPath: Forbidden: may not specify more than 1 volume type
        /spec/volumes = [{"name":"v"}]
        /spec/volumes = [{"hostPath":{"path":"/a/../b"},"name":"v"}]
          spec.volumes[0].hostPath.path: Invalid value: "/a/../b": must not contain '..'
        /spec/volumes = [{"configMap":{"items":[{"key":"k","path":"../x"}],"name":""},"name":"v"}]
          spec.volumes[0].configMap.name: Required value
          spec.volumes[0].configMap.items[0].path: Invalid value: "../x": must not contain '..'
        /spec/volumes = [{"name":"v","secret":{"defaultMode":4096,"secretName":"s"}}]
          spec.volumes[0].secret.defaultMode: Invalid value: 4096: must be a number between 0 and 0777 (octal), both inclusive
        /spec/volumes = [{"name":"v","projected":{"sources":[{}]}}]
        /spec/containers/0/volumeMounts = [{"mountPath":"/a","name":"x"}]
          spec.containers[0].volumeMounts[0].name: Not found: "x"
    "#]].assert_eq(&text);
}

#[test]
fn scheduling_and_security() {
    let text = subject().creates(&[
        ("/spec/restartPolicy", json!("Sometimes")),
        ("/spec/dnsPolicy", json!("Mine")),
        ("/spec/dnsConfig", json!({"nameservers": ["a", "1.1.1.1", "2.2.2.2", "3.3.3.3"]})),
        ("/spec/nodeName", json!("a b")),
        ("/spec/nodeSelector", json!({"a": "b c"})),
        ("/spec/hostname", json!("Upper")),
        ("/spec/activeDeadlineSeconds", json!(0)),
        ("/spec/terminationGracePeriodSeconds", json!(-1)),
        ("/spec/serviceAccountName", json!("-")),
        (
            "/spec/tolerations",
            json!([{"operator": "Equal", "value": "x"}, {"key": "a", "operator": "Exists", "value": "y"}]),
        ),
        (
            "/spec/affinity",
            json!({"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": []}}}),
        ),
        (
            "/spec/affinity",
            json!({"podAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [{"topologyKey": ""}]}}),
        ),
        ("/spec/topologySpreadConstraints", json!([{"maxSkew": 0, "topologyKey": "z", "whenUnsatisfiable": "Maybe"}])),
        ("/spec/hostAliases", json!([{"ip": "1.2.3", "hostnames": ["a b"]}])),
        ("/spec/securityContext", json!({"runAsUser": -1, "sysctls": [{"name": "a b", "value": "1"}]})),
        ("/spec/containers/0/securityContext", json!({"privileged": true, "allowPrivilegeEscalation": false})),
        ("/spec/containers/0/securityContext", json!({"seccompProfile": {"type": "Localhost"}})),
        ("/spec/schedulingGates", json!([{"name": ""}])),
    ]);
    expect![[r#"
        /spec/restartPolicy = "Sometimes"
          spec.restartPolicy: Unsupported value: "Sometimes": supported values: "Always", "OnFailure", "Never"
        /spec/dnsPolicy = "Mine"
          spec.dnsPolicy: Unsupported value: "Mine": supported values: "ClusterFirstWithHostNet", "ClusterFirst", "Default", "None"
        /spec/dnsConfig = {"nameservers":["a","1.1.1.1","2.2.2.2","3.3.3.3"]}
          spec.dnsConfig.nameservers: Invalid value: ["a","1.1.1.1","2.2.2.2","3.3.3.3"]: must not have more than 3 nameservers
          spec.dnsConfig.nameservers[0]: Invalid value: "a": must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)
        /spec/nodeName = "a b"
          spec.nodeName: Invalid value: "a b": a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')
        /spec/nodeSelector = {"a":"b c"}
          spec.nodeSelector: Invalid value: "b c": a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyValue',  or 'my_value',  or '12345', regex used for validation is '(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?')
        /spec/hostname = "Upper"
          spec.hostname: Invalid value: "Upper": a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?')
        /spec/activeDeadlineSeconds = 0
          spec.activeDeadlineSeconds: Invalid value: 0: must be between 1 and 2147483647, inclusive
        /spec/terminationGracePeriodSeconds = -1
        /spec/serviceAccountName = "-"
          spec.serviceAccountName: Invalid value: "-": a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')
        /spec/tolerations = [{"operator":"Equal","value":"x"},{"key":"a","operator":"Exists","value":"y"}]
          spec.tolerations[0].operator: Invalid value: "Equal": operator must be Exists when `key` is empty, which means "match all values and all keys"
          spec.tolerations[1].operator: Invalid value: "y": value must be empty when `operator` is 'Exists'
        /spec/affinity = {"nodeAffinity":{"requiredDuringSchedulingIgnoredDuringExecution":{"nodeSelectorTerms":[]}}}
          spec.affinity.nodeAffinity.requiredDuringSchedulingIgnoredDuringExecution.nodeSelectorTerms: Required value: must have at least one node selector term
        /spec/affinity = {"podAffinity":{"requiredDuringSchedulingIgnoredDuringExecution":[{"topologyKey":""}]}}
          spec.affinity.podAffinity.requiredDuringSchedulingIgnoredDuringExecution[0].topologyKey: Required value: can not be empty
          spec.affinity.podAffinity.requiredDuringSchedulingIgnoredDuringExecution[0].topologyKey: Invalid value: "": name part must be non-empty
          spec.affinity.podAffinity.requiredDuringSchedulingIgnoredDuringExecution[0].topologyKey: Invalid value: "": name part must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')
        /spec/topologySpreadConstraints = [{"maxSkew":0,"topologyKey":"z","whenUnsatisfiable":"Maybe"}]
          spec.topologySpreadConstraints[0].maxSkew: Invalid value: 0: must be greater than zero
          spec.topologySpreadConstraints[0].whenUnsatisfiable: Unsupported value: "Maybe": supported values: "DoNotSchedule", "ScheduleAnyway"
        /spec/hostAliases = [{"hostnames":["a b"],"ip":"1.2.3"}]
          spec.hostAliases[0].ip: Invalid value: "1.2.3": must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)
          spec.hostAliases[0].hostnames[0]: Invalid value: "a b": a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')
        /spec/securityContext = {"runAsUser":-1,"sysctls":[{"name":"a b","value":"1"}]}
          spec.securityContext.runAsUser: Invalid value: -1: must be between 0 and 2147483647, inclusive
          spec.securityContext.sysctls[0].name: Invalid value: "a b": must have at most 253 characters and match regex ^([a-z0-9]([-_a-z0-9]*[a-z0-9])?[\./])*[a-z0-9]([-_a-z0-9]*[a-z0-9])?$
        /spec/containers/0/securityContext = {"allowPrivilegeEscalation":false,"privileged":true}
          spec.containers[0].securityContext: Invalid value: {"allowPrivilegeEscalation":false,"privileged":true}: cannot set `allowPrivilegeEscalation` to false and `privileged` to true
        /spec/containers/0/securityContext = {"seccompProfile":{"type":"Localhost"}}
          spec.containers[0].securityContext.seccompProfile.localhostProfile: Required value: must be set when seccomp type is Localhost
        /spec/schedulingGates = [{"name":""}]
          spec.schedulingGates[0]: Invalid value: "": name part must be non-empty
          spec.schedulingGates[0]: Invalid value: "": name part must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')
    "#]].assert_eq(&text);
}

#[test]
fn updates() {
    let text = subject().updates(&[
        ("/spec/containers/0/image", json!("nginx:2")),
        ("/spec/containers/0/image", json!("")),
        ("/spec/containers/0/name", json!("other")),
        ("/spec/containers", json!([{"name": "web", "image": "nginx:1"}, {"name": "b", "image": "i"}])),
        ("/spec/tolerations", json!([])),
        ("/spec/tolerations", json!([{"key": "a", "operator": "Exists"}, {"key": "b", "operator": "Exists"}])),
        ("/spec/activeDeadlineSeconds", json!(10)),
        ("/spec/hostNetwork", json!(true)),
        ("/metadata/resourceVersion", json!("")),
        ("/metadata/name", json!("other")),
    ]);
    expect![[r#"
        /spec/containers/0/image = "nginx:2"
        /spec/containers/0/image = ""
          spec.containers[0].image: Required value
          spec.containers[0].image: Required value
        /spec/containers/0/name = "other"
          spec: Forbidden: pod updates may not change fields other than `spec.containers[*].image`,`spec.initContainers[*].image`,`spec.activeDeadlineSeconds`,`spec.tolerations` (only additions to existing tolerations),`spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously negative)
        - containers[0].name: "web"
        + containers[0].name: "other"
        /spec/containers = [{"image":"nginx:1","name":"web"},{"image":"i","name":"b"}]
          spec.containers: Forbidden: pod updates may not add or remove containers
        /spec/tolerations = []
          spec.tolerations: Forbidden: existing toleration can not be modified except its tolerationSeconds
        /spec/tolerations = [{"key":"a","operator":"Exists"},{"key":"b","operator":"Exists"}]
        /spec/activeDeadlineSeconds = 10
        /spec/hostNetwork = true
          spec: Forbidden: pod updates may not change fields other than `spec.containers[*].image`,`spec.initContainers[*].image`,`spec.activeDeadlineSeconds`,`spec.tolerations` (only additions to existing tolerations),`spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously negative)
        + hostNetwork: true
        /metadata/resourceVersion = ""
          metadata.resourceVersion: Invalid value: "": must be specified for an update
        /metadata/name = "other"
          metadata.name: Invalid value: "other": field is immutable
    "#]].assert_eq(&text);
}

#[test]
fn warnings() {
    let mut object = subject().object;
    crate::put(&mut object, "/spec/nodeSelector", json!({"beta.kubernetes.io/os": "linux"}));
    let env = json!([{"name": "A", "value": "1"}, {"name": "A", "value": "2"}]);
    crate::put(&mut object, "/spec/containers/0/env", env);
    let volumes = json!([{"name": "g", "gitRepo": {"repository": "r"}}]);
    crate::put(&mut object, "/spec/volumes", volumes);
    let mut pod = <Pod as rkube_api::Kind>::from_value(object).expect("it decodes");
    pod_defaults::set_defaults(&mut pod);
    expect![[r#"
        spec.nodeSelector[beta.kubernetes.io/os]: deprecated since v1.14; use "kubernetes.io/os" instead
        spec.volumes[0].gitRepo: deprecated in v1.11, and disabled by default in v1.33+
        spec.containers[0].env[1]: hides previous definition of "A", which may be dropped when using apply"#]]
    .assert_eq(&pod_warnings::warnings(&pod).join("\n"));
}
