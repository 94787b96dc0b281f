//! Deployments, stateful sets, jobs and autoscalers.

use expect_test::expect;
use rkube_api::k8s::apps::v1::{Deployment, StatefulSet};
use rkube_api::k8s::autoscaling::v2::HorizontalPodAutoscaler;
use rkube_api::k8s::batch::v1::{CronJob, Job};
use rkube_validation::apps::{deployment, stateful_set};
use rkube_validation::autoscaling;
use rkube_validation::batch::{cron_job, job};
use serde_json::{Value, json};

use crate::Subject;

fn template() -> Value {
    json!({"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "c", "image": "i"}]}})
}

fn meta() -> Value {
    json!({"name": "x", "namespace": "default", "resourceVersion": "1"})
}

#[test]
fn deployments() {
    let subject = Subject::<Deployment> {
        object: json!({
            "metadata": meta(), "spec": {"selector": {"matchLabels": {"a": "b"}}, "template": template()},
        }),
        defaults: deployment::set_defaults,
        validate: deployment::validate,
        validate_update: deployment::validate_update,
    };
    let text = subject.creates(&[
        ("/spec/replicas", json!(-1)),
        ("/spec/selector", json!({})),
        ("/spec/selector", json!({"matchLabels": {"a": "c"}})),
        ("/spec/strategy", json!({"type": "Recreate", "rollingUpdate": {"maxSurge": 1}})),
        ("/spec/strategy", json!({"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 0, "maxUnavailable": "0%"}})),
        (
            "/spec/strategy",
            json!({"type": "RollingUpdate", "rollingUpdate": {"maxSurge": "x%", "maxUnavailable": "101%"}}),
        ),
        ("/spec/template/spec/restartPolicy", json!("Never")),
        ("/spec/progressDeadlineSeconds", json!(0)),
        ("/spec/revisionHistoryLimit", json!(-1)),
    ]);
    expect![[r#"
        /spec/replicas = -1
          spec.replicas: Invalid value: -1: must be greater than or equal to 0
        /spec/selector = {}
          spec.selector: Required value
          spec.template.metadata.labels: Invalid value: {"a":"b"}: `selector` does not match template `labels`
        /spec/selector = {"matchLabels":{"a":"c"}}
          spec.template.metadata.labels: Invalid value: {"a":"b"}: `selector` does not match template `labels`
        /spec/strategy = {"rollingUpdate":{"maxSurge":1},"type":"Recreate"}
          spec.strategy.rollingUpdate: Forbidden: may not be specified when strategy `type` is 'Recreate'
        /spec/strategy = {"rollingUpdate":{"maxSurge":0,"maxUnavailable":"0%"},"type":"RollingUpdate"}
          spec.strategy.rollingUpdate.maxUnavailable: Invalid value: "0%": may not be 0 when `maxSurge` is 0
        /spec/strategy = {"rollingUpdate":{"maxSurge":"x%","maxUnavailable":"101%"},"type":"RollingUpdate"}
          spec.strategy.rollingUpdate.maxSurge: Invalid value: "x%": a valid percent string must be a numeric string followed by an ending '%' (e.g. '1%',  or '93%', regex used for validation is '[0-9]+%')
          spec.strategy.rollingUpdate.maxUnavailable: Invalid value: "101%": must not be greater than 100%
        /spec/template/spec/restartPolicy = "Never"
          spec.template.spec.restartPolicy: Unsupported value: "Never": supported values: "Always"
        /spec/progressDeadlineSeconds = 0
          spec.progressDeadlineSeconds: Invalid value: 0: must be greater than minReadySeconds
        /spec/revisionHistoryLimit = -1
          spec.revisionHistoryLimit: Invalid value: -1: must be greater than or equal to 0
    "#]].assert_eq(&text);
    let text = subject
        .updates(&[("/spec/selector", json!({"matchLabels": {"a": "b", "c": "d"}})), ("/spec/replicas", json!(5))]);
    expect![[r#"
        /spec/selector = {"matchLabels":{"a":"b","c":"d"}}
          spec.template.metadata.labels: Invalid value: {"a":"b"}: `selector` does not match template `labels`
          spec.selector: Invalid value: {"matchLabels":{"a":"b","c":"d"}}: field is immutable
        /spec/replicas = 5
    "#]]
    .assert_eq(&text);
}

#[test]
fn stateful_sets() {
    let subject = Subject::<StatefulSet> {
        object: json!({
            "metadata": meta(),
            "spec": {"selector": {"matchLabels": {"a": "b"}}, "serviceName": "s", "template": template()},
        }),
        defaults: stateful_set::set_defaults,
        validate: stateful_set::validate,
        validate_update: stateful_set::validate_update,
    };
    let text = subject.creates(&[
        ("/spec/podManagementPolicy", json!("Random")),
        ("/spec/updateStrategy", json!({"type": "Never"})),
        ("/spec/updateStrategy", json!({"type": "RollingUpdate", "rollingUpdate": {"partition": -1}})),
        ("/spec/minReadySeconds", json!(-1)),
    ]);
    expect![[r#"
        /spec/podManagementPolicy = "Random"
          spec.podManagementPolicy: Invalid value: "Random": must be 'OrderedReady' or 'Parallel'
        /spec/updateStrategy = {"type":"Never"}
          spec.updateStrategy: Invalid value: {"type":"Never"}: must be 'RollingUpdate' or 'OnDelete'
        /spec/updateStrategy = {"rollingUpdate":{"partition":-1},"type":"RollingUpdate"}
          spec.updateStrategy.rollingUpdate.partition: Invalid value: -1: must be greater than or equal to 0
        /spec/minReadySeconds = -1
          spec.minReadySeconds: Invalid value: -1: must be greater than or equal to 0
    "#]]
    .assert_eq(&text);
    let text = subject.updates(&[("/spec/serviceName", json!("t")), ("/spec/replicas", json!(3))]);
    expect![[r#"
        /spec/serviceName = "t"
          spec: Forbidden: updates to statefulset spec for fields other than 'replicas', 'ordinals', 'template', 'updateStrategy', 'revisionHistoryLimit', 'persistentVolumeClaimRetentionPolicy' and 'minReadySeconds' are forbidden
        /spec/replicas = 3
    "#]].assert_eq(&text);
}

#[test]
fn jobs() {
    let mut once = template();
    crate::put(&mut once, "/spec/restartPolicy", json!("Never"));
    let labels = json!({"batch.kubernetes.io/controller-uid": "u", "controller-uid": "u", "batch.kubernetes.io/job-name": "x", "job-name": "x"});
    let mut owned = once.clone();
    crate::put(&mut owned, "/metadata/labels", labels);
    let mut meta = meta();
    crate::put(&mut meta, "/uid", json!("u"));
    let subject = Subject::<Job> {
        object: json!({
            "metadata": meta,
            "spec": {"selector": {"matchLabels": {"batch.kubernetes.io/controller-uid": "u"}}, "template": owned},
        }),
        defaults: job::set_defaults,
        validate: job::validate,
        validate_update: job::validate_update,
    };
    let text = subject.creates(&[
        ("/spec/template/spec/restartPolicy", json!("Always")),
        ("/spec/parallelism", json!(-1)),
        ("/spec/backoffLimit", json!(-1)),
        ("/spec/completionMode", json!("Both")),
        ("/spec/completionMode", json!("Indexed")),
        ("/spec/podFailurePolicy", json!({"rules": [{"action": "Fail"}]})),
        ("/spec/ttlSecondsAfterFinished", json!(-1)),
        ("/spec/selector", json!(null)),
    ]);
    expect![[r#"
        /spec/template/spec/restartPolicy = "Always"
          spec.template.spec.restartPolicy: Required value: valid values: "OnFailure", "Never"
        /spec/parallelism = -1
          spec.parallelism: Invalid value: -1: must be greater than or equal to 0
        /spec/backoffLimit = -1
          spec.backoffLimit: Invalid value: -1: must be greater than or equal to 0
        /spec/completionMode = "Both"
          spec.completionMode: Unsupported value: "Both": supported values: "NonIndexed", "Indexed"
        /spec/completionMode = "Indexed"
        /spec/podFailurePolicy = {"rules":[{"action":"Fail"}]}
          spec.podFailurePolicy.rules[0].action: Unsupported value: "Fail": supported values: "Count", "FailIndex", "FailJob", "Ignore"
          spec.podFailurePolicy.rules[0]: Invalid value: specifying one of OnExitCodes and OnPodConditions is required
        /spec/ttlSecondsAfterFinished = -1
          spec.ttlSecondsAfterFinished: Invalid value: -1: must be greater than or equal to 0
        /spec/selector = null
          spec.selector: Required value
          spec.template.metadata.labels: Invalid value: {"batch.kubernetes.io/controller-uid":"u","batch.kubernetes.io/job-name":"x","controller-uid":"u","job-name":"x"}: `selector` does not match template `labels`
    "#]].assert_eq(&text);
    let text = subject.updates(&[("/spec/completions", json!(3)), ("/spec/template/spec/hostNetwork", json!(true))]);
    expect![[r#"
        /spec/completions = 3
          spec.completions: Invalid value: 3: field is immutable
        /spec/template/spec/hostNetwork = true
          spec.template: Invalid value: {"metadata":{"labels":{"batch.kubernetes.io/controller-uid":"u","batch.kubernetes.io/job-name":"x","controller-uid":"u","job-name":"x"}},"spec":{"containers":[{"image":"i","imagePullPolicy":"Always","name":"c","resources":{},"terminationMessagePath":"/dev/termination-log","terminationMessagePolicy":"File"}],"dnsPolicy":"ClusterFirst","hostNetwork":true,"restartPolicy":"Never","schedulerName":"default-scheduler","securityContext":{},"terminationGracePeriodSeconds":30}}: field is immutable
    "#]].assert_eq(&text);

    let subject = Subject::<CronJob> {
        object: json!({
            "metadata": self::meta(), "spec": {"schedule": "*/5 * * * *", "jobTemplate": {"spec": {"template": once}}},
        }),
        defaults: cron_job::set_defaults,
        validate: cron_job::validate,
        validate_update: cron_job::validate_update,
    };
    let text = subject.creates(&[
        ("/spec/schedule", json!("")),
        ("/spec/schedule", json!("61 * * * *")),
        ("/spec/schedule", json!("TZ=UTC * * * * *")),
        ("/spec/timeZone", json!("Nowhere/City")),
        ("/spec/concurrencyPolicy", json!("Maybe")),
        ("/spec/jobTemplate/spec/manualSelector", json!(true)),
        ("/metadata/name", json!("x".repeat(53))),
    ]);
    expect![[r#"
        /spec/schedule = ""
          spec.schedule: Required value
        /spec/schedule = "61 * * * *"
          spec.schedule: Invalid value: "61 * * * *": end of range (61) above maximum (59): 61
        /spec/schedule = "TZ=UTC * * * * *"
          spec.schedule: Invalid value: "TZ=UTC * * * * *": cannot use TZ or CRON_TZ in schedule, use timeZone field instead
        /spec/timeZone = "Nowhere/City"
          spec.timeZone: Invalid value: "Nowhere/City": unknown time zone Nowhere/City
        /spec/concurrencyPolicy = "Maybe"
          spec.concurrencyPolicy: Unsupported value: "Maybe": supported values: "Allow", "Forbid", "Replace"
        /spec/jobTemplate/spec/manualSelector = true
          spec.jobTemplate.spec.manualSelector: Unsupported value: true: supported values: "nil", "false"
        /metadata/name = "xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx"
          metadata.name: Invalid value: "xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx": must be no more than 52 characters
    "#]].assert_eq(&text);
}

#[test]
fn autoscalers() {
    let subject = Subject::<HorizontalPodAutoscaler> {
        object: json!({
            "metadata": meta(),
            "spec": {"maxReplicas": 3, "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "d"}},
        }),
        defaults: autoscaling::set_defaults,
        validate: autoscaling::validate,
        validate_update: autoscaling::validate_update,
    };
    let text = subject.creates(&[
        ("/spec/maxReplicas", json!(0)),
        ("/spec/minReplicas", json!(4)),
        ("/spec/minReplicas", json!(0)),
        ("/spec/scaleTargetRef", json!({"kind": "", "name": "a/b"})),
        ("/spec/metrics", json!([{"type": "Pods"}])),
        (
            "/spec/metrics",
            json!([{"type": "Resource", "resource": {"name": "cpu", "target": {"type": "Utilization"}}}]),
        ),
        ("/spec/behavior", json!({"scaleUp": {"policies": [], "selectPolicy": "Best"}})),
        (
            "/spec/behavior",
            json!({"scaleDown": {"policies": [{"type": "Percent", "value": 0, "periodSeconds": 1801}]}}),
        ),
    ]);
    expect![[r#"
        /spec/maxReplicas = 0
          spec.maxReplicas: Required value: must be set and greater than 0
          spec.maxReplicas: Invalid value: 0: must be greater than or equal to `minReplicas`
        /spec/minReplicas = 4
          spec.maxReplicas: Invalid value: 3: must be greater than or equal to `minReplicas`
        /spec/minReplicas = 0
          spec.minReplicas: Invalid value: 0: must be greater than or equal to 1
          spec.metrics: Forbidden: must specify at least one Object or External metric to support scaling to zero replicas
        /spec/scaleTargetRef = {"kind":"","name":"a/b"}
          spec.scaleTargetRef.kind: Required value
          spec.scaleTargetRef.name: Invalid value: "a/b": may not contain '/'
          spec.scaleTargetRef.apiVersion: Invalid value: "": apiVersion must specify API group
        /spec/metrics = [{"type":"Pods"}]
          spec.metrics[0].pods: Required value: must populate information for the given metric source
        /spec/metrics = [{"resource":{"name":"cpu","target":{"type":"Utilization"}},"type":"Resource"}]
          spec.metrics[0].resource.target.averageUtilization: Required value: must set either a target raw value or a target utilization
        /spec/behavior = {"scaleUp":{"policies":[],"selectPolicy":"Best"}}
          spec.behavior.scaleUp.selectPolicy: Unsupported value: "Best": supported values: "Disabled", "Max", "Min"
          spec.behavior.scaleUp.policies: Required value: must specify at least one Policy
        /spec/behavior = {"scaleDown":{"policies":[{"periodSeconds":1801,"type":"Percent","value":0}]}}
          spec.behavior.scaleDown.policies[0].value: Invalid value: 0: must be greater than zero
          spec.behavior.scaleDown.policies[0].periodSeconds: Invalid value: 1801: must be less than or equal to 1800
    "#]].assert_eq(&text);
}
