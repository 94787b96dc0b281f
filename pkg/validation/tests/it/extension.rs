//! Definitions of custom resources, webhooks, signing requests, flow control, API services, devices.

use expect_test::expect;
use rkube_api::apiextensions::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use rkube_api::apiregistration::pkg::apis::apiregistration::v1::APIService;
use rkube_api::k8s::admissionregistration::v1::ValidatingWebhookConfiguration;
use rkube_api::k8s::certificates::v1::CertificateSigningRequest;
use rkube_api::k8s::flowcontrol::v1::{FlowSchema, PriorityLevelConfiguration};
use rkube_api::k8s::resource::v1::{ResourceClaim, ResourceSlice};
use rkube_validation::admission_registration::webhooks;
use rkube_validation::apiextensions::definition;
use rkube_validation::resource::{claim, slice};
use rkube_validation::{api_registration, certificates, flow_control};
use serde_json::json;

use crate::Subject;

#[test]
fn custom_resource_definitions() {
    let subject = Subject::<CustomResourceDefinition> {
        object: json!({
            "metadata": {"name": "crontabs.stable.example.com", "resourceVersion": "1"},
            "spec": {
                "group": "stable.example.com", "scope": "Namespaced",
                "names": {"plural": "crontabs", "kind": "CronTab"},
                "versions": [{"name": "v1", "served": true, "storage": true, "schema": {"openAPIV3Schema": {
                    "type": "object",
                    "properties": {"spec": {"type": "object", "properties": {
                        "image": {"type": "string"},
                        "list": {"type": "array", "items": {"type": "string"}},
                    }}},
                }}}],
            },
        }),
        defaults: definition::set_defaults,
        validate: definition::validate,
        validate_update: definition::validate_update,
    };
    const SPEC: &str = "/spec/versions/0/schema/openAPIV3Schema/properties/spec";
    const LIST: &str = "/spec/versions/0/schema/openAPIV3Schema/properties/spec/properties/list";
    let text = subject.creates(&[
        ("/metadata/name", json!("x.stable.example.com")),
        ("/spec/group", json!("stable")),
        ("/spec/scope", json!("Galaxy")),
        ("/spec/names", json!({"plural": "crontabs", "kind": "Cron_Tab", "shortNames": ["C"]})),
        ("/spec/versions/0/storage", json!(false)),
        ("/spec/versions/0/schema", json!(null)),
        ("/spec/versions/0/schema/openAPIV3Schema", json!({})),
        (SPEC, json!({})),
        (SPEC, json!({"type": "text"})),
        (SPEC, json!({"type": "object", "anyOf": [{"properties": {"a": {"type": "string"}}}]})),
        (SPEC, json!({"type": "object", "properties": {"a": {"type": "string"}}, "additionalProperties": {"type": "string"}})),
        (SPEC, json!({"type": "object", "x-kubernetes-preserve-unknown-fields": false})),
        (SPEC, json!({"type": "object", "x-kubernetes-validations": [{"rule": " "}, {"rule": "a", "fieldPath": ".x"}]})),
        (SPEC, json!({"x-kubernetes-int-or-string": true, "anyOf": [{"type": "integer"}, {"type": "string"}]})),
        (LIST, json!({"type": "array"})),
        (LIST, json!({"type": "array", "items": {"type": "object"}, "x-kubernetes-list-type": "map"})),
        (LIST, json!({"type": "array", "uniqueItems": true, "items": {"type": "string", "pattern": "("}})),
        ("/spec/conversion", json!({"strategy": "Webhook"})),
        ("/spec/versions/0/additionalPrinterColumns", json!([{"name": "a", "type": "text", "jsonPath": "x"}])),
        ("/spec/versions/0/subresources", json!({"scale": {"specReplicasPath": ".replicas", "statusReplicasPath": ""}})),
        ("/spec/versions/0/selectableFields", json!([{"jsonPath": ".spec.image"}, {"jsonPath": ".spec.list"}, {"jsonPath": ".spec.no"}])),
        ("/spec/versions/0/deprecationWarning", json!("old")),
    ]);
    expect![[r#"
        /metadata/name = "x.stable.example.com"
          metadata.name: Invalid value: "x.stable.example.com": must be spec.names.plural+"."+spec.group
        /spec/group = "stable"
          metadata.name: Invalid value: "crontabs.stable.example.com": must be spec.names.plural+"."+spec.group
          spec.group: Invalid value: "stable": should be a domain with at least one dot
        /spec/scope = "Galaxy"
          spec.scope: Unsupported value: "Galaxy": supported values: "Cluster", "Namespaced"
        /spec/names = {"kind":"Cron_Tab","plural":"crontabs","shortNames":["C"]}
          spec.names.singular: Invalid value: "cron_tab": a DNS-1035 label must consist of lower case alphanumeric characters or '-', start with an alphabetic character, and end with an alphanumeric character (e.g. 'my-name',  or 'abc-123', regex used for validation is '[a-z]([-a-z0-9]*[a-z0-9])?')
          spec.names.kind: Invalid value: "Cron_Tab": may have mixed case, but should otherwise match: a DNS-1035 label must consist of lower case alphanumeric characters or '-', start with an alphabetic character, and end with an alphanumeric character (e.g. 'my-name',  or 'abc-123', regex used for validation is '[a-z]([-a-z0-9]*[a-z0-9])?')
          spec.names.listKind: Invalid value: "Cron_TabList": may have mixed case, but should otherwise match: a DNS-1035 label must consist of lower case alphanumeric characters or '-', start with an alphabetic character, and end with an alphanumeric character (e.g. 'my-name',  or 'abc-123', regex used for validation is '[a-z]([-a-z0-9]*[a-z0-9])?')
          spec.names.shortNames[0]: Invalid value: "C": a DNS-1035 label must consist of lower case alphanumeric characters or '-', start with an alphabetic character, and end with an alphanumeric character (e.g. 'my-name',  or 'abc-123', regex used for validation is '[a-z]([-a-z0-9]*[a-z0-9])?')
        /spec/versions/0/storage = false
          spec.versions: Invalid value: [{"name":"v1","schema":{"openAPIV3Schema":{"properties":{"spec":{"properties":{"image":{"type":"string"},"list":{"items":{"type":"string"},"type":"array"}},"type":"object"}},"type":"object"}},"served":true,"storage":false}]: must have exactly one version marked as storage version
          status.storedVersions: Invalid value: []: must have at least one stored version
        /spec/versions/0/schema = null
          spec.versions[0].schema.openAPIV3Schema: Required value
        /spec/versions/0/schema/openAPIV3Schema = {}
          spec.validation.openAPIV3Schema.type: Required value: must not be empty at the root
        /spec/versions/0/schema/openAPIV3Schema/properties/spec = {}
          spec.validation.openAPIV3Schema.properties[spec].type: Required value: must not be empty for specified object fields
        /spec/versions/0/schema/openAPIV3Schema/properties/spec = {"type":"text"}
          spec.validation.openAPIV3Schema.properties[spec].type: Unsupported value: "text": supported values: "array", "boolean", "integer", "number", "object", "string"
        /spec/versions/0/schema/openAPIV3Schema/properties/spec = {"anyOf":[{"properties":{"a":{"type":"string"}}}],"type":"object"}
          spec.validation.openAPIV3Schema.properties[spec].anyOf[0].properties[a].type: Forbidden: must be empty to be structural
        /spec/versions/0/schema/openAPIV3Schema/properties/spec = {"additionalProperties":{"type":"string"},"properties":{"a":{"type":"string"}},"type":"object"}
          spec.validation.openAPIV3Schema.properties[spec].additionalProperties: Forbidden: additionalProperties and properties are mutual exclusive
        /spec/versions/0/schema/openAPIV3Schema/properties/spec = {"type":"object","x-kubernetes-preserve-unknown-fields":false}
          spec.validation.openAPIV3Schema.properties[spec].x-kubernetes-preserve-unknown-fields: Invalid value: false: must be true or undefined
        /spec/versions/0/schema/openAPIV3Schema/properties/spec = {"type":"object","x-kubernetes-validations":[{"rule":" "},{"fieldPath":".x","rule":"a"}]}
          spec.validation.openAPIV3Schema.properties[spec].x-kubernetes-validations[0].rule: Required value: rule is not specified
          spec.validation.openAPIV3Schema.properties[spec].x-kubernetes-validations[1].fieldPath: Invalid value: ".x": must be a valid path
        /spec/versions/0/schema/openAPIV3Schema/properties/spec = {"anyOf":[{"type":"integer"},{"type":"string"}],"x-kubernetes-int-or-string":true}
        /spec/versions/0/schema/openAPIV3Schema/properties/spec/properties/list = {"type":"array"}
          spec.validation.openAPIV3Schema.properties[spec].properties[list].items: Required value: must be specified
        /spec/versions/0/schema/openAPIV3Schema/properties/spec/properties/list = {"items":{"type":"object"},"type":"array","x-kubernetes-list-type":"map"}
          spec.validation.openAPIV3Schema.properties[spec].properties[list].x-kubernetes-list-map-keys: Required value: must not be empty if x-kubernetes-list-type is map
        /spec/versions/0/schema/openAPIV3Schema/properties/spec/properties/list = {"items":{"pattern":"(","type":"string"},"type":"array","uniqueItems":true}
          spec.validation.openAPIV3Schema.properties[spec].properties[list].items.pattern: Invalid value: "(": must be a valid regular expression, but isn't: error parsing regexp: unclosed group: `(`
          spec.validation.openAPIV3Schema.properties[spec].properties[list].uniqueItems: Forbidden: uniqueItems cannot be set to true since the runtime complexity becomes quadratic
        /spec/conversion = {"strategy":"Webhook"}
          spec.conversion.webhookClientConfig: Required value: required when strategy is set to Webhook
          spec.conversion.conversionReviewVersions: Required value
        /spec/versions/0/additionalPrinterColumns = [{"jsonPath":"x","name":"a","type":"text"}]
          spec.additionalPrinterColumns[0].type: Invalid value: "text": must be one of boolean,date,integer,number,string
          spec.additionalPrinterColumns[0].JSONPath: Invalid value: "x": must be a simple json path starting with .
        /spec/versions/0/subresources = {"scale":{"specReplicasPath":".replicas","statusReplicasPath":""}}
          spec.subresources.scale.specReplicasPath: Invalid value: ".replicas": should be a json path under .spec
          spec.subresources.scale.statusReplicasPath: Required value
        /spec/versions/0/selectableFields = [{"jsonPath":".spec.image"},{"jsonPath":".spec.list"},{"jsonPath":".spec.no"}]
          spec.selectableFields[1].jsonPath: Invalid value: ".spec.list": must point to a field of type string, boolean or integer. Enum string fields and strings with formats are allowed.
          spec.selectableFields[2].jsonPath: Invalid value: ".spec.no": is an invalid path: does not refer to a valid field
        /spec/versions/0/deprecationWarning = "old"
          spec.versions[0].deprecationWarning: Invalid value: "old": can only be set for deprecated versions
    "#]].assert_eq(&text);
    let text = subject.updates(&[
        ("/spec/group", json!("other.example.com")),
        ("/status", json!({"storedVersions": ["v1alpha1", "v1"]})),
    ]);
    expect![[r#"
        /spec/group = "other.example.com"
          spec.group: Invalid value: "other.example.com": field is immutable
        /status = {"storedVersions":["v1alpha1","v1"]}
          status.storedVersions[0]: Invalid value: "v1alpha1": missing from spec.versions; v1alpha1 was previously a storage version, and must remain in spec.versions until a storage migration ensures no data remains persisted in v1alpha1 and removes v1alpha1 from status.storedVersions
    "#]].assert_eq(&text);
}

#[test]
fn webhook_configurations() {
    let subject = Subject::<ValidatingWebhookConfiguration> {
        object: json!({
            "metadata": {"name": "w", "resourceVersion": "1"},
            "webhooks": [{
                "name": "a.example.com", "sideEffects": "None", "admissionReviewVersions": ["v1"],
                "clientConfig": {"url": "https://example.com/x"},
                "rules": [{"operations": ["CREATE"], "apiGroups": ["*"], "apiVersions": ["v1"], "resources": ["pods"]}],
            }],
        }),
        defaults: webhooks::set_validating_defaults,
        validate: webhooks::validate_validating,
        validate_update: webhooks::validate_validating_update,
    };
    let text = subject.creates(&[
        ("/webhooks/0/name", json!("short")),
        ("/webhooks/0/sideEffects", json!("Some")),
        ("/webhooks/0/admissionReviewVersions", json!(["v2", "v2"])),
        ("/webhooks/0/timeoutSeconds", json!(31)),
        ("/webhooks/0/clientConfig", json!({})),
        ("/webhooks/0/clientConfig", json!({"url": "http://u:p@example.com/?q#f"})),
        ("/webhooks/0/clientConfig", json!({"service": {"name": "", "namespace": "n", "path": "x//y", "port": 0}})),
        ("/webhooks/0/rules/0", json!({"operations": ["*", "GET"], "apiGroups": [], "apiVersions": [""], "resources": ["pods/*", "pods/log"]})),
        ("/webhooks/0/matchConditions", json!([{"name": "a b", "expression": " "}])),
    ]);
    expect![[r#"
        /webhooks/0/name = "short"
          webhooks[0].name: Invalid value: "short": should be a domain with at least three segments separated by dots
        /webhooks/0/sideEffects = "Some"
          webhooks[0].sideEffects: Unsupported value: "Some": supported values: "None", "NoneOnDryRun"
        /webhooks/0/admissionReviewVersions = ["v2","v2"]
          webhooks[0].admissionReviewVersions[1]: Invalid value: "v2": duplicate version
          webhooks[0].admissionReviewVersions: Invalid value: ["v2","v2"]: must include at least one of v1, v1beta1
        /webhooks/0/timeoutSeconds = 31
          webhooks[0].timeoutSeconds: Invalid value: 31: the timeout value must be between 1 and 30 seconds
        /webhooks/0/clientConfig = {}
          webhooks[0].clientConfig: Required value: exactly one of url or service is required
        /webhooks/0/clientConfig = {"url":"http://u:p@example.com/?q#f"}
          webhooks[0].clientConfig.url: Invalid value: "http": 'https' is the only allowed URL scheme; desired format: https://host[/path]
          webhooks[0].clientConfig.url: Invalid value: "u:p": user information is not permitted in the URL
          webhooks[0].clientConfig.url: Invalid value: "f": fragments are not permitted in the URL
          webhooks[0].clientConfig.url: Invalid value: "q": query parameters are not permitted in the URL
        /webhooks/0/clientConfig = {"service":{"name":"","namespace":"n","path":"x//y","port":0}}
          webhooks[0].clientConfig.service.namespace: Required value
          webhooks[0].clientConfig.service.port: Invalid value: 0: port is not valid: must be between 1 and 65535, inclusive
          webhooks[0].clientConfig.service.path: Invalid value: "x//y": must start with a '/'
          webhooks[0].clientConfig.service.path: Invalid value: "x//y": segment[0] may not be empty
          webhooks[0].clientConfig.service.path: Invalid value: "x//y": segment[1] may not be empty
        /webhooks/0/rules/0 = {"apiGroups":[],"apiVersions":[""],"operations":["*","GET"],"resources":["pods/*","pods/log"]}
          webhooks[0].rules[0].operations: Invalid value: ["*","GET"]: if '*' is present, must not specify other operations
          webhooks[0].rules[0].operations[1]: Unsupported value: "GET": supported values: "*", "CONNECT", "CREATE", "DELETE", "UPDATE"
          webhooks[0].rules[0].apiGroups: Required value
          webhooks[0].rules[0].apiVersions[0]: Required value
          webhooks[0].rules[0].resources[1]: Invalid value: "pods/log": if 'pods/*' is present, must not specify pods/log
        /webhooks/0/matchConditions = [{"expression":" ","name":"a b"}]
          webhooks[0].matchConditions[0].expression: Required value
          webhooks[0].matchConditions[0].name: Invalid value: "a b": name part must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')
    "#]].assert_eq(&text);
}

#[test]
fn signing_requests() {
    let subject = Subject::<CertificateSigningRequest> {
        object: json!({
            "metadata": {"name": "c", "resourceVersion": "1"},
            "spec": {
                // Ed25519, CN=walk
                "request": "LS0tLS1CRUdJTiBDRVJUSUZJQ0FURSBSRVFVRVNULS0tLS0KTUlHT01FSUNBUUF3RHpFTk1Bc0dBMVVFQXd3RWQyRnNhekFxTUFVR0F5dGxjQU1oQUYzeFRSdHN3TzYxVmZORgpQTFVDcGRTczQ3ZHdRSSs4OFRjWmNqUzNBRGtPb0FBd0JRWURLMlZ3QTBFQTJHRExranR2OGp2djVUK1dkUmpUCkVYZ0JkRHQ3V0had2lkMzBCWHEzWnhJT0dLbklDUERUbU9sNDIvUzR3U25Ed3dvaXZoS2pOdGJDcnF0SHk4SnYKQWc9PQotLS0tLUVORCBDRVJUSUZJQ0FURSBSRVFVRVNULS0tLS0K",
                "signerName": "example.com/signer", "usages": ["client auth"],
            },
        }),
        defaults: certificates::set_defaults,
        validate: certificates::validate,
        validate_update: certificates::validate_approval_update,
    };
    let text = subject.creates(&[
        ("/spec/request", json!("eA==")),
        ("/spec/usages", json!([])),
        ("/spec/usages", json!(["client auth", "client auth"])),
        ("/spec/signerName", json!("signer")),
        ("/spec/signerName", json!("kubernetes.io/legacy-unknown")),
        ("/spec/expirationSeconds", json!(10)),
        (
            "/status",
            json!({"conditions": [{"type": "Approved", "status": "True"}, {"type": "Denied", "status": "False"}]}),
        ),
    ]);
    expect![[r#"
        /spec/request = "eA=="
          spec.request: Invalid value: "eA==": PEM block type must be CERTIFICATE REQUEST
        /spec/usages = []
          spec.usages: Required value
        /spec/usages = ["client auth","client auth"]
          spec.usages[1]: Duplicate value: "client auth"
        /spec/signerName = "signer"
          spec.signerName: Invalid value: "signer": must be a fully qualified domain and path of the form 'example.com/signer-name'
        /spec/signerName = "kubernetes.io/legacy-unknown"
          spec.signerName: Invalid value: "kubernetes.io/legacy-unknown": the legacy signerName is not allowed via this API version
        /spec/expirationSeconds = 10
          spec.expirationSeconds: Invalid value: 10: may not specify a duration less than 600 seconds (10 minutes)
        /status = {"conditions":[{"status":"True","type":"Approved"},{"status":"False","type":"Denied"}]}
          status.conditions[1].status: Unsupported value: "False": supported values: "True"
          status.conditions: Invalid value: "Denied": Approved and Denied conditions are mutually exclusive
    "#]].assert_eq(&text);
    let text = subject.updates(&[
        ("/status", json!({"conditions": [{"type": "Approved", "status": "True"}]})),
        ("/status", json!({"certificate": "eA=="})),
    ]);
    expect![[r#"
        /status = {"conditions":[{"status":"True","type":"Approved"}]}
        /status = {"certificate":"eA=="}
          status.certificate: Invalid value: "<certificate data>": must contain at least one CERTIFICATE PEM block
          status.certificate: Forbidden: updates may not set certificate content
    "#]]
    .assert_eq(&text);
}

#[test]
fn flow_control_and_api_services() {
    let subject = Subject::<FlowSchema> {
        object: json!({
            "metadata": {"name": "f", "resourceVersion": "1"},
            "spec": {
                "priorityLevelConfiguration": {"name": "p"},
                "rules": [{
                    "subjects": [{"kind": "User", "user": {"name": "*"}}],
                    "nonResourceRules": [{"verbs": ["get"], "nonResourceURLs": ["/x/*"]}],
                }],
            },
        }),
        defaults: flow_control::set_schema_defaults,
        validate: flow_control::validate_schema,
        validate_update: |new, _| flow_control::validate_schema(new),
    };
    let text = subject.creates(&[
        ("/spec/matchingPrecedence", json!(1)),
        ("/spec/priorityLevelConfiguration", json!({"name": ""})),
        ("/spec/rules/0/subjects", json!([{"kind": "User", "group": {"name": "g"}}])),
        ("/spec/rules/0/nonResourceRules", json!([{"verbs": ["*", "get"], "nonResourceURLs": ["x", "/a*"]}])),
        ("/spec/rules/0/resourceRules", json!([{"verbs": ["look"], "apiGroups": [], "resources": ["*", "pods"]}])),
        ("/metadata/name", json!("exempt")),
    ]);
    expect![[r#"
        /spec/matchingPrecedence = 1
          spec.matchingPrecedence: Invalid value: 1: only the schema named 'exempt' may have matchingPrecedence 1
        /spec/priorityLevelConfiguration = {"name":""}
          spec.priorityLevelConfiguration.name: Required value: must reference a priority level
        /spec/rules/0/subjects = [{"group":{"name":"g"},"kind":"User"}]
          spec.rules[0].subjects[0].user: Required value: user is required when subject kind is 'User'
          spec.rules[0].subjects[0].group: Forbidden: group is forbidden when subject kind is not 'Group'
        /spec/rules/0/nonResourceRules = [{"nonResourceURLs":["x","/a*"],"verbs":["*","get"]}]
          spec.rules[0].nonResourceRules[0].verbs: Invalid value: ["*","get"]: if '*' is present, must not specify other verbs
          spec.rules[0].nonResourceRules[0].nonResourceURLs[0]: Invalid value: "x": must start with slash
          spec.rules[0].nonResourceRules[0].nonResourceURLs[1]: Invalid value: "/a*": wildcard can only do suffix matching
        /spec/rules/0/resourceRules = [{"apiGroups":[],"resources":["*","pods"],"verbs":["look"]}]
          spec.rules[0].resourceRules[0].verbs: Unsupported value: ["look"]: supported values: "create", "delete", "deletecollection", "get", "list", "patch", "proxy", "update", "watch"
          spec.rules[0].resourceRules[0].apiGroups: Required value: resource rules must supply at least one api group
          spec.rules[0].resourceRules[0].resources: Invalid value: ["*","pods"]: if '*' is present, must not specify other resources
          spec.rules[0].resourceRules[0].namespaces: Required value: resource rules that are not cluster scoped must supply at least one namespace
        /metadata/name = "exempt"
          spec: Invalid value: {"matchingPrecedence":1000,"priorityLevelConfiguration":{"name":"p"},"rules":[{"nonResourceRules":[{"nonResourceURLs":["/x/*"],"verbs":["get"]}],"subjects":[{"kind":"User","user":{"name":"*"}}]}]}: spec of 'exempt' must equal the fixed value
    "#]].assert_eq(&text);

    let subject = Subject::<PriorityLevelConfiguration> {
        object: json!({
            "metadata": {"name": "p", "resourceVersion": "1"},
            "spec": {"type": "Limited", "limited": {"limitResponse": {"type": "Queue", "queuing": {}}}},
        }),
        defaults: flow_control::set_level_defaults,
        validate: flow_control::validate_level,
        validate_update: |new, _| flow_control::validate_level(new),
    };
    let text = subject.creates(&[
        ("/spec/type", json!("Exempt")),
        ("/spec/limited/limitResponse", json!({"type": "Queue", "queuing": {"handSize": 20, "queues": 1000}})),
        ("/spec/limited/limitResponse", json!({"type": "Drop"})),
        ("/spec/limited/nominalConcurrencyShares", json!(-1)),
    ]);
    expect![[r#"
        /spec/type = "Exempt"
          spec.type: Invalid value: "Exempt": must be 'Exempt' if and only if `name` is 'exempt'
          spec.limited: Forbidden: must be nil if the type is not Limited
        /spec/limited/limitResponse = {"queuing":{"handSize":20,"queues":1000},"type":"Queue"}
          spec.limited.limitResponse.queuing.handSize: Invalid value: 20: required entropy bits of deckSize 1000 and handSize 20 should not be greater than 60
        /spec/limited/limitResponse = {"type":"Drop"}
          spec.limited.limitResponse.type: Unsupported value: "Drop": supported values: "Queue", "Reject"
        /spec/limited/nominalConcurrencyShares = -1
          spec.limited.nominalConcurrencyShares: Invalid value: -1: must be a non-negative integer
    "#]].assert_eq(&text);

    let subject = Subject::<APIService> {
        object: json!({
            "metadata": {"name": "v1.example.com", "resourceVersion": "1"},
            "spec": {
                "group": "example.com", "version": "v1", "groupPriorityMinimum": 1000, "versionPriority": 10,
                "service": {"namespace": "n", "name": "s"},
            },
        }),
        defaults: api_registration::set_defaults,
        validate: api_registration::validate,
        validate_update: api_registration::validate_update,
    };
    let text = subject.creates(&[
        ("/metadata/name", json!("v2.example.com")),
        ("/spec/groupPriorityMinimum", json!(0)),
        ("/spec/service", json!({"port": 70000})),
        ("/spec/insecureSkipTLSVerify", json!(true)),
    ]);
    expect![[r#"
        /metadata/name = "v2.example.com"
          metadata.name: Invalid value: "v2.example.com": must be `spec.version+"."+spec.group`: "v1.example.com"
        /spec/groupPriorityMinimum = 0
          spec.groupPriorityMinimum: Invalid value: 0: must be positive and less than 20000
        /spec/service = {"port":70000}
          spec.service.namespace: Required value
          spec.service.name: Required value
          spec.service.port: Invalid value: 70000: port is not valid: must be between 1 and 65535, inclusive
        /spec/insecureSkipTLSVerify = true
    "#]]
    .assert_eq(&text);
}

#[test]
fn devices() {
    let subject = Subject::<ResourceClaim> {
        object: json!({
            "metadata": {"name": "c", "namespace": "default", "resourceVersion": "1"},
            "spec": {"devices": {"requests": [{"name": "gpu", "exactly": {"deviceClassName": "gpu.example.com"}}]}},
        }),
        defaults: claim::set_defaults,
        validate: claim::validate,
        validate_update: claim::validate_update,
    };
    let text = subject.creates(&[
        ("/spec/devices/requests", json!([{"name": "gpu"}])),
        (
            "/spec/devices/requests",
            json!([{"name": "gpu", "exactly": {"deviceClassName": "", "allocationMode": "All", "count": 1}}]),
        ),
        ("/spec/devices/constraints", json!([{"requests": ["cpu"], "matchAttribute": "model"}])),
        ("/spec/devices/config", json!([{"opaque": {"driver": "d", "parameters": []}}])),
    ]);
    expect![[r#"
        /spec/devices/requests = [{"name":"gpu"}]
          spec.devices.requests[0]: Required value: exactly one of `exactly` or `firstAvailable` is required
        /spec/devices/requests = [{"exactly":{"allocationMode":"All","count":1,"deviceClassName":""},"name":"gpu"}]
          spec.devices.requests[0].exactly.deviceClassName: Required value
          spec.devices.requests[0].exactly.count: Invalid value: 1: must not be specified when allocationMode is 'All'
        /spec/devices/constraints = [{"matchAttribute":"model","requests":["cpu"]}]
          spec.devices.constraints[0].requests[0]: Invalid value: "cpu": must be the name of a request in the claim or the name of a request and a subrequest separated by '/'
          spec.devices.constraints[0].matchAttribute: Invalid value: "model": a fully qualified name must be a domain and a name separated by a slash
        /spec/devices/config = [{"opaque":{"driver":"d","parameters":[]}}]
          spec.devices.config[0].opaque.parameters: Invalid value: "<value omitted>": must be a valid JSON object
    "#]].assert_eq(&text);

    let subject = Subject::<ResourceSlice> {
        object: json!({
            "metadata": {"name": "s", "resourceVersion": "1"},
            "spec": {
                "driver": "gpu.example.com", "nodeName": "n",
                "pool": {"name": "n", "generation": 0, "resourceSliceCount": 1},
                "devices": [{"name": "gpu-0", "attributes": {"model": {"string": "a"}}}],
            },
        }),
        defaults: |_| {},
        validate: slice::validate,
        validate_update: slice::validate_update,
    };
    let text = subject.creates(&[
        ("/spec/nodeName", json!(null)),
        ("/spec/allNodes", json!(true)),
        ("/spec/pool", json!({"name": "", "generation": -1, "resourceSliceCount": 0})),
        ("/spec/devices/0/attributes", json!({"a b": {}, "v": {"version": "one"}})),
        ("/spec/devices/0/taints", json!([{"key": "a", "effect": "Explode"}])),
    ]);
    expect![[r#"
        /spec/nodeName = null
          spec: Required value: exactly one of `nodeName`, `nodeSelector`, `allNodes`, `perDeviceNodeSelection` is required
        /spec/allNodes = true
          spec: Invalid value: "{`nodeName`, `allNodes`}": exactly one of `nodeName`, `nodeSelector`, `allNodes`, `perDeviceNodeSelection` is required, but multiple fields are set
        /spec/pool = {"generation":-1,"name":"","resourceSliceCount":0}
          spec.pool.name: Required value
          spec.pool.resourceSliceCount: Invalid value: 0: must be greater than zero
          spec.pool.generation: Invalid value: -1: must be greater than or equal to zero
        /spec/devices/0/attributes = {"a b":{},"v":{"version":"one"}}
          spec.devices[0].attributes: Invalid value: "a b": a valid C identifier must start with alphabetic character or '_', followed by a string of alphanumeric characters or '_' (e.g. 'my_name',  or 'MY_NAME',  or 'MyName', regex used for validation is '[A-Za-z_][A-Za-z0-9_]*')
          spec.devices[0].attributes[a b]: Invalid value: "": exactly one value must be specified
          spec.devices[0].attributes[v].version: Invalid value: "one": must be a string compatible with semver.org spec 2.0.0
        /spec/devices/0/taints = [{"effect":"Explode","key":"a"}]
          spec.devices[0].taints[0].effect: Unsupported value: "Explode": supported values: "NoExecute", "NoSchedule", "None"
    "#]].assert_eq(&text);
    expect![[r#"
        /spec/nodeName = "m"
          spec.nodeName: Invalid value: "m": field is immutable
    "#]]
    .assert_eq(&subject.updates(&[("/spec/nodeName", json!("m"))]));
}
