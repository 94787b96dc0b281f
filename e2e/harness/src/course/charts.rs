//! Software that comes as a chart.

use std::fs;

use anyhow::{Result, ensure};
use rkube_api::k8s::apps::v1::Deployment;
use rkube_api::k8s::core::v1::{ConfigMap, Service};

use crate::world::World;

/// A chart as helm wants it: path and text.
const CHART: [(&str, &str); 4] = [
    ("Chart.yaml", "apiVersion: v2\nname: shop\nversion: 1.0.0\nappVersion: \"1\"\n"),
    ("values.yaml", "replicas: 1\ngreeting: Welcome\n"),
    (
        "templates/shop.yaml",
        r#"
apiVersion: v1
kind: ConfigMap
metadata: {name: {{ .Release.Name }}-page}
data: {index.html: "{{ .Values.greeting }}, release {{ .Release.Revision }}"}
---
apiVersion: v1
kind: Service
metadata: {name: {{ .Release.Name }}}
spec:
  type: NodePort
  selector: {app: {{ .Release.Name }}}
  ports: [{port: 80, targetPort: 8080}]
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: {{ .Release.Name }}}
spec:
  replicas: {{ .Values.replicas }}
  selector: {matchLabels: {app: {{ .Release.Name }}}}
  template:
    metadata:
      labels: {app: {{ .Release.Name }}}
      annotations: {greeting: "{{ .Values.greeting }}"}
    spec:
      terminationGracePeriodSeconds: 1
      containers:
      - name: web
        image: busybox:1.35
        command: [httpd, -f, -p, "8080", -h, /page]
        readinessProbe: {tcpSocket: {port: 8080}, periodSeconds: 1}
        volumeMounts: [{name: page, mountPath: /page}]
      volumes: [{name: page, configMap: {name: {{ .Release.Name }}-page}}]
"#,
    ),
    (
        "templates/prepare.yaml",
        r#"
apiVersion: batch/v1
kind: Job
metadata:
  name: {{ .Release.Name }}-prepare
  annotations:
    helm.sh/hook: pre-install,pre-upgrade
    helm.sh/hook-delete-policy: before-hook-creation
spec:
  template:
    spec:
      restartPolicy: Never
      containers:
      - {name: prepare, image: "busybox:1.35", command: [echo, "prepared {{ .Release.Revision }}"]}
"#,
    ),
];

/// A chart with a hook is installed and waited for, upgraded, rolled back and uninstalled; the page follows, and nothing
/// is left in the end.
pub(super) async fn helm(world: &World<'_>) -> Result<()> {
    let chart = world.cluster.spec.folder.join("nodes/chart");
    fs::create_dir_all(chart.join("templates"))?;
    for (path, text) in CHART {
        fs::write(chart.join(path), text)?;
    }
    let chart = chart.display();
    let told = world.helm(&format!("install shop {chart} --wait --timeout 240s")).await?;
    ensure!(told.contains("STATUS: deployed"), "helm install said {told}");
    // `--wait` means what it says.
    let shown = world.kubectl("get deployment shop --no-headers").await?;
    ensure!(shown.contains("1/1"), "kubectl get deployment showed {shown}");
    let prepared = world.kubectl("logs job/shop-prepare").await?;
    ensure!(prepared == "prepared 1\n", "the hook said {prepared:?}");
    let url = format!("http://{}:{}/", world.cluster.spec.node_address(1), world.node_port("shop").await?);
    world.page(&url, |page| page == "Welcome, release 1").await?;

    world.helm(&format!("upgrade shop {chart} --set replicas=2,greeting=Hello --wait --timeout 240s")).await?;
    world.pods("app=shop", 2).await?;
    world.page(&url, |page| page == "Hello, release 2").await?;
    world.helm("rollback shop 1 --wait --timeout 240s").await?;
    world.pods("app=shop", 1).await?;
    world.page(&url, |page| page == "Welcome, release 1").await?;
    let history = world.helm("history shop").await?;
    ensure!(history.contains("Rollback to 1"), "helm history showed {history}");
    let listed = world.helm("list --short").await?;
    ensure!(listed == "shop\n", "helm list showed {listed:?}");

    let told = world.helm("uninstall shop --wait --timeout 240s").await?;
    ensure!(told.contains("uninstalled"), "helm uninstall said {told}");
    world.pods("app=shop", 0).await?;
    world.gone::<Deployment>("shop").await?;
    world.gone::<Service>("shop").await?;
    world.gone::<ConfigMap>("shop-page").await
}
