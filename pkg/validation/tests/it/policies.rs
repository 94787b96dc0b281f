//! Budgets, roles, classes and leases.

use expect_test::expect;
use rkube_api::k8s::authorization::v1::{LocalSubjectAccessReview, SubjectAccessReview};
use rkube_api::k8s::coordination::v1::Lease;
use rkube_api::k8s::policy::v1::PodDisruptionBudget;
use rkube_api::k8s::rbac::v1::{ClusterRole, RoleBinding};
use rkube_api::k8s::scheduling::v1::PriorityClass;
use rkube_api::k8s::storage::v1::{CSIDriver, StorageClass};
use rkube_validation::{coordination, policy, rbac, reviews, scheduling, storage};
use serde_json::json;

use crate::Subject;

#[test]
fn policies() {
    let subject = Subject::<PodDisruptionBudget> {
        object: json!({
            "metadata": {"name": "p", "namespace": "default", "resourceVersion": "1"},
            "spec": {"minAvailable": 1, "selector": {"matchLabels": {"a": "b"}}},
        }),
        defaults: policy::set_defaults,
        validate: policy::validate,
        validate_update: policy::validate_update,
    };
    let text = subject.creates(&[
        ("/spec/maxUnavailable", json!(1)),
        ("/spec/minAvailable", json!(-1)),
        ("/spec/minAvailable", json!("101%")),
        ("/spec/unhealthyPodEvictionPolicy", json!("Never")),
        ("/spec/selector", json!({"matchExpressions": [{"key": "a", "operator": "Is"}]})),
    ]);
    expect![[r#"
        /spec/maxUnavailable = 1
          spec: Invalid value: {"maxUnavailable":1,"minAvailable":1,"selector":{"matchLabels":{"a":"b"}}}: minAvailable and maxUnavailable cannot be both set
        /spec/minAvailable = -1
          spec.minAvailable: Invalid value: -1: must be greater than or equal to 0
        /spec/minAvailable = "101%"
          spec.minAvailable: Invalid value: "101%": must not be greater than 100%
        /spec/unhealthyPodEvictionPolicy = "Never"
          spec.unhealthyPodEvictionPolicy: Unsupported value: "Never": supported values: "AlwaysAllow", "IfHealthyBudget"
        /spec/selector = {"matchExpressions":[{"key":"a","operator":"Is"}]}
          spec.selector.matchExpressions[0].operator: Invalid value: "Is": not a valid selector operator
    "#]].assert_eq(&text);

    let subject = Subject::<Lease> {
        object: json!({
            "metadata": {"name": "l", "namespace": "default", "resourceVersion": "1"}, "spec": {"leaseDurationSeconds": 1},
        }),
        defaults: coordination::set_defaults,
        validate: coordination::validate,
        validate_update: coordination::validate_update,
    };
    let text = subject.creates(&[("/spec/leaseDurationSeconds", json!(0)), ("/spec/leaseTransitions", json!(-1))]);
    expect![[r#"
        /spec/leaseDurationSeconds = 0
          spec.leaseDurationSeconds: Invalid value: 0: must be greater than 0
        /spec/leaseTransitions = -1
          spec.leaseTransitions: Invalid value: -1: must be greater than or equal to 0
    "#]]
    .assert_eq(&text);
}

#[test]
fn roles() {
    let subject = Subject::<ClusterRole> {
        object: json!({
            "metadata": {"name": "system:r", "resourceVersion": "1"},
            "rules": [{"apiGroups": [""], "resources": ["pods"], "verbs": ["get"]}],
        }),
        defaults: |_| {},
        validate: rbac::validate_cluster_role,
        validate_update: rbac::validate_cluster_role_update,
    };
    let text = subject.creates(&[
        ("/metadata/name", json!("a/b")),
        ("/rules", json!([{"apiGroups": [""], "resources": ["pods"], "verbs": []}])),
        ("/rules", json!([{"verbs": ["get"]}])),
        ("/rules", json!([{"verbs": ["get"], "nonResourceURLs": ["/x"], "resources": ["pods"]}])),
        ("/aggregationRule", json!({"clusterRoleSelectors": []})),
    ]);
    expect![[r#"
        /metadata/name = "a/b"
          metadata.name: Invalid value: "a/b": may not contain '/'
        /rules = [{"apiGroups":[""],"resources":["pods"],"verbs":[]}]
          rules[0].verbs: Required value: verbs must contain at least one value
        /rules = [{"verbs":["get"]}]
          rules[0].apiGroups: Required value: resource rules must supply at least one api group
          rules[0].resources: Required value: resource rules must supply at least one resource
        /rules = [{"nonResourceURLs":["/x"],"resources":["pods"],"verbs":["get"]}]
          rules[0].nonResourceURLs: Invalid value: ["/x"]: rules cannot apply to both regular resources and non-resource URLs
        /aggregationRule = {"clusterRoleSelectors":[]}
          aggregationRule.clusterRoleSelectors: Required value: at least one clusterRoleSelector required if aggregationRule is non-nil
    "#]].assert_eq(&text);

    let subject = Subject::<RoleBinding> {
        object: json!({
            "metadata": {"name": "b", "namespace": "default", "resourceVersion": "1"},
            "roleRef": {"kind": "Role", "name": "r"}, "subjects": [{"kind": "User", "name": "u"}],
        }),
        defaults: rbac::set_role_binding_defaults,
        validate: rbac::validate_role_binding,
        validate_update: rbac::validate_role_binding_update,
    };
    let text = subject.creates(&[
        ("/roleRef", json!({"kind": "Rule", "name": ""})),
        ("/subjects", json!([{"kind": "ServiceAccount", "name": "A"}, {"kind": "Robot", "name": "r"}])),
    ]);
    expect![[r#"
        /roleRef = {"kind":"Rule","name":""}
          roleRef.kind: Unsupported value: "Rule": supported values: "Role", "ClusterRole"
          roleRef.name: Required value
        /subjects = [{"kind":"ServiceAccount","name":"A"},{"kind":"Robot","name":"r"}]
          subjects[0].name: Invalid value: "A": a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')
          subjects[1].kind: Unsupported value: "Robot": supported values: "ServiceAccount", "User", "Group"
    "#]].assert_eq(&text);
    expect![[r#"
        /roleRef = {"kind":"ClusterRole","name":"r"}
          roleRef: Invalid value: {"apiGroup":"rbac.authorization.k8s.io","kind":"ClusterRole","name":"r"}: cannot change roleRef
    "#]].assert_eq(&subject.updates(&[("/roleRef", json!({"kind": "ClusterRole", "name": "r"}))]));
}

#[test]
fn classes() {
    let subject = Subject::<PriorityClass> {
        object: json!({"metadata": {"name": "p", "resourceVersion": "1"}, "value": 10}),
        defaults: scheduling::set_priority_class_defaults,
        validate: scheduling::validate_priority_class,
        validate_update: scheduling::validate_priority_class_update,
    };
    let text = subject.creates(&[
        ("/metadata/name", json!("system-mine")),
        ("/value", json!(2_000_000_000)),
        ("/preemptionPolicy", json!("Always")),
    ]);
    expect![[r#"
        /metadata/name = "system-mine"
          metadata.name: Forbidden: priority class names with 'system-' prefix are reserved for system use only. error: system-mine is not a known system priority class
        /value = 2000000000
          value: Forbidden: maximum allowed value of a user defined priority is 1000000000
        /preemptionPolicy = "Always"
          preemptionPolicy: Unsupported value: "Always": supported values: "PreemptLowerPriority", "Never"
    "#]].assert_eq(&text);
    let text = subject.updates(&[("/value", json!(11)), ("/preemptionPolicy", json!("Never"))]);
    expect![[r#"
        /value = 11
          value: Forbidden: may not be changed in an update.
        /preemptionPolicy = "Never"
          preemptionPolicy: Invalid value: "Never": field is immutable
    "#]]
    .assert_eq(&text);

    let subject = Subject::<StorageClass> {
        object: json!({"metadata": {"name": "s", "resourceVersion": "1"}, "provisioner": "a.b/c"}),
        defaults: storage::set_class_defaults,
        validate: storage::validate_class,
        validate_update: storage::validate_class_update,
    };
    let text = subject.creates(&[
        ("/provisioner", json!("")),
        ("/reclaimPolicy", json!("Recycle")),
        ("/volumeBindingMode", json!("Later")),
        ("/parameters", json!({"": "x"})),
    ]);
    expect![[r#"
        /provisioner = ""
          provisioner: Required value
        /reclaimPolicy = "Recycle"
          reclaimPolicy: Unsupported value: "Recycle": supported values: "Delete", "Retain"
        /volumeBindingMode = "Later"
          volumeBindingMode: Unsupported value: "Later": supported values: "Immediate", "WaitForFirstConsumer"
        /parameters = {"":"x"}
          parameters: Invalid value: "": field can not be empty.
    "#]]
    .assert_eq(&text);
    expect![[r#"
        /parameters = {"a":"b"}
          parameters: Invalid value: {"a":"b"}: field is immutable
        /provisioner = "d"
          provisioner: Invalid value: "d": field is immutable
    "#]]
    .assert_eq(&subject.updates(&[("/parameters", json!({"a": "b"})), ("/provisioner", json!("d"))]));

    let subject = Subject::<CSIDriver> {
        object: json!({"metadata": {"name": "d", "resourceVersion": "1"}, "spec": {}}),
        defaults: storage::set_csi_driver_defaults,
        validate: storage::validate_csi_driver,
        validate_update: storage::validate_csi_driver_update,
    };
    let text = subject.creates(&[
        ("/spec/fsGroupPolicy", json!("Some")),
        ("/spec/tokenRequests", json!([{"audience": "a", "expirationSeconds": 1}, {"audience": "a"}])),
        ("/spec/volumeLifecycleModes", json!(["Eternal"])),
    ]);
    expect![[r#"
        /spec/fsGroupPolicy = "Some"
          spec.fsGroupPolicy: Unsupported value: "Some": supported values: "File", "None", "ReadWriteOnceWithFSType"
        /spec/tokenRequests = [{"audience":"a","expirationSeconds":1},{"audience":"a"}]
          spec.tokenRequests[0].expirationSeconds: Invalid value: 1: may not specify a duration less than 10 minutes
          spec.tokenRequests[1].audience: Duplicate value: "a"
        /spec/volumeLifecycleModes = ["Eternal"]
          spec.volumeLifecycleModes: Unsupported value: "Eternal": supported values: "Persistent", "Ephemeral"
    "#]]
    .assert_eq(&text);
    expect![[r#"
        /spec/attachRequired = false
          spec.attachedRequired: Invalid value: false: field is immutable
    "#]]
    .assert_eq(&subject.updates(&[("/spec/attachRequired", json!(false))]));
}

#[test]
fn reviews_of_access() {
    let subject = Subject::<SubjectAccessReview> {
        object: json!({"spec": {"user": "u", "resourceAttributes": {"verb": "get", "resource": "pods"}}}),
        defaults: |_| {},
        validate: reviews::validate,
        validate_update: |new, _| reviews::validate(new),
    };
    let text = subject.creates(&[
        ("/metadata", json!({"name": "x"})),
        ("/spec", json!({})),
        ("/spec/nonResourceAttributes", json!({"path": "/"})),
        ("/spec/resourceAttributes/fieldSelector", json!({})),
        ("/spec/resourceAttributes/fieldSelector", json!({"requirements": [{"key": "", "operator": "In"}]})),
        (
            "/spec/resourceAttributes/labelSelector",
            json!({"rawSelector": "a", "requirements": [{"key": "a", "operator": "Near"}]}),
        ),
    ]);
    expect![[r#"
        /metadata = {"name":"x"}
          metadata: Invalid value: {"name":"x"}: must be empty
        /spec = {}
          spec.resourceAttributes: Invalid value: null: exactly one of nonResourceAttributes or resourceAttributes must be specified
          spec.user: Invalid value: "": at least one of user or group must be specified
        /spec/nonResourceAttributes = {"path":"/"}
          spec.nonResourceAttributes: Invalid value: {"path":"/"}: cannot be specified in combination with resourceAttributes
        /spec/resourceAttributes/fieldSelector = {}
          spec.resourceAttributes.fieldSelector.requirements: Required value: when spec.resourceAttributes.fieldSelector is specified, requirements or rawSelector is required
        /spec/resourceAttributes/fieldSelector = {"requirements":[{"key":"","operator":"In"}]}
          spec.resourceAttributes.fieldSelector.requirements[0].key: Required value: must be specified
          spec.resourceAttributes.fieldSelector.requirements[0].values: Required value: must be specified when `operator` is 'In' or 'NotIn'
        /spec/resourceAttributes/labelSelector = {"rawSelector":"a","requirements":[{"key":"a","operator":"Near"}]}
          spec.resourceAttributes.labelSelector.rawSelector: Invalid value: "a": may not specified at the same time as requirements
    "#]].assert_eq(&text);

    let subject = Subject::<LocalSubjectAccessReview> {
        object: json!({
            "metadata": {"namespace": "n"},
            "spec": {"user": "u", "resourceAttributes": {"namespace": "n", "verb": "get", "resource": "pods"}},
        }),
        defaults: |_| {},
        validate: reviews::validate_local,
        validate_update: |new, _| reviews::validate_local(new),
    };
    let text = subject.creates(&[("/metadata/namespace", json!("m")), ("/metadata/name", json!("x"))]);
    expect![[r#"
        /metadata/namespace = "m"
          spec.resourceAttributes.namespace: Invalid value: "n": must match metadata.namespace
        /metadata/name = "x"
          metadata: Invalid value: {"name":"x"}: must be empty except for namespace
    "#]]
    .assert_eq(&text);
}
