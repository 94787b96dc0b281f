//! Data that outlives pods.

use anyhow::{Context, Result, ensure};
use http::Request;
use rkube_api::k8s::core::v1::{PersistentVolume, PersistentVolumeClaim};
use rkube_client::ListParams;
use rkube_http::body::Body;

use crate::api;
use crate::manifest::{PodManifest, object, service};
use crate::world::{LIMIT, World, request};

/// A PersistentVolume on one node's disk, for the claims of a step's own storage class.
pub(super) struct Volume {
    pub(super) node: usize,
    pub(super) name: &'static str,
}

impl Volume {
    pub(super) fn manifest(&self, world: &World<'_>) -> String {
        let (namespace, name, node) = (&world.namespace, self.name, world.cluster.spec.node_name(self.node));
        let path = world.cluster.spec.node_folder(self.node).join("disk").join(format!("{namespace}-{name}"));
        let path = path.display();
        let spec = format!(
            "capacity: {{storage: 1Gi}}\n\
             accessModes: [ReadWriteOnce]\n\
             persistentVolumeReclaimPolicy: Retain\n\
             storageClassName: {namespace}\n\
             hostPath: {{path: {path}, type: DirectoryOrCreate}}\n\
             nodeAffinity: {{required: {{nodeSelectorTerms: [{{matchExpressions: [\
               {{key: kubernetes.io/hostname, operator: In, values: [{node}]}}]}}]}}}}"
        );
        object("v1", "PersistentVolume", &format!("{{name: {namespace}-{name}}}"), &spec)
    }
}

/// A volume on the first node and a claim of the same name for it.
fn volume_and_claim(world: &World<'_>, name: &'static str) -> String {
    let spec = format!(
        "storageClassName: {}\naccessModes: [ReadWriteOnce]\nresources: {{requests: {{storage: 500Mi}}}}",
        world.namespace
    );
    Volume { node: 1, name }.manifest(world)
        + &object("v1", "PersistentVolumeClaim", &format!("{{name: {name}}}"), &spec)
}

/// Deletes a volume whose claim was deleted, as an administrator does with `Retain`.
pub(super) async fn forget_volume(world: &World<'_>, name: &str) -> Result<()> {
    let name = format!("{}-{name}", world.namespace);
    let volumes = world.client.all::<PersistentVolume>();
    let params = ListParams::fields(format!("metadata.name={name}"));
    api::wait(volumes.dynamic(), &params, LIMIT, "the volume released", |found| {
        let phase = found.values().next().map(|volume| volume["status"]["phase"].clone());
        if phase.as_ref().is_some_and(|phase| phase == "Released") { Ok(()) } else { Err(format!("{phase:?}")) }
    })
    .await?;
    world.kubectl(&format!("delete pv {name}")).await.map(drop)
}

async fn bound(world: &World<'_>, claim: &str) -> Result<()> {
    world
        .wait_one::<PersistentVolumeClaim, _>(claim, "bound", |claim| match claim["status"]["phase"].as_str() {
            Some("Bound") => Ok(()),
            phase => Err(format!("phase {phase:?}")),
        })
        .await
}

const WRITER: &str = r#"
containers:
- name: writer
  image: busybox:1.35
  command: [sleep, "3600"]
  volumeMounts: [{name: data, mountPath: /data}]
volumes: [{name: data, persistentVolumeClaim: {claimName: data}}]
"#;

/// A claim is bound to the volume that fits, and what one pod writes another reads after it is gone.
pub(super) async fn volumes(world: &World<'_>) -> Result<()> {
    let pod = PodManifest::new("writer", WRITER).alone();
    world.apply(&(volume_and_claim(world, "data") + &pod)).await?;
    bound(world, "data").await?;
    world.pods("app=writer", 1).await?;
    world.shell("writer", "echo kept > /data/note").await?;
    world.kubectl("delete pod writer").await?;
    world.apply(&pod).await?;
    world.pods("app=writer", 1).await?;
    let note = world.kubectl("exec writer -- cat /data/note").await?;
    ensure!(note == "kept\n", "the note says {note:?}");
    let shown = world.kubectl("get pvc data --no-headers").await?;
    ensure!(shown.contains("Bound") && shown.contains("1Gi"), "kubectl get pvc showed {shown}");
    world.kubectl("delete pod writer").await?;
    world.kubectl("delete pvc data").await?;
    forget_volume(world, "data").await
}

const MARIADB: &str = r#"
containers:
- name: mariadb
  image: mariadb:10.11
  env:
  - {name: MARIADB_DATABASE, value: wordpress}
  - {name: MARIADB_USER, value: wordpress}
  - {name: MARIADB_PASSWORD, valueFrom: {secretKeyRef: {name: database, key: password}}}
  - {name: MARIADB_ROOT_PASSWORD, valueFrom: {secretKeyRef: {name: database, key: root}}}
  readinessProbe: {tcpSocket: {port: 3306}, periodSeconds: 2}
  volumeMounts: [{name: data, mountPath: /var/lib/mysql}]
volumes: [{name: data, persistentVolumeClaim: {claimName: database}}]
"#;

const WORDPRESS: &str = r#"
containers:
- name: wordpress
  image: wordpress:6-fpm
  env:
  - {name: WORDPRESS_DB_HOST, value: database}
  - {name: WORDPRESS_DB_NAME, value: wordpress}
  - {name: WORDPRESS_DB_USER, value: wordpress}
  - {name: WORDPRESS_DB_PASSWORD, valueFrom: {secretKeyRef: {name: database, key: password}}}
  readinessProbe: {tcpSocket: {port: 9000}, periodSeconds: 2}
  volumeMounts: [{name: html, mountPath: /var/www/html}]
- name: nginx
  image: nginx:1.22
  ports: [{containerPort: 80}]
  volumeMounts:
  - {name: html, mountPath: /var/www/html}
  - {name: conf, mountPath: /etc/nginx/conf.d}
volumes:
- {name: html, emptyDir: {}}
- {name: conf, configMap: {name: nginx}}
"#;

/// The passwords, and how nginx hands requests to PHP.
const SETTINGS: &str = r#"
---
apiVersion: v1
kind: Secret
metadata: {name: database}
stringData: {root: very-secret, password: wp-secret}
---
apiVersion: v1
kind: ConfigMap
metadata: {name: nginx}
data:
  default.conf: |
    server {
      listen 80;
      root /var/www/html;
      index index.php;
      location / { try_files $uri $uri/ /index.php?$args; }
      location ~ \.php$ {
        include fastcgi_params;
        fastcgi_param SCRIPT_FILENAME $document_root$fastcgi_script_name;
        fastcgi_read_timeout 120s;
        fastcgi_pass 127.0.0.1:9000;
      }
    }
"#;

/// WordPress with MariaDB behind nginx: installed through the node port, and the page is still there after the database's
/// pod was deleted.
pub(super) async fn wordpress(world: &World<'_>) -> Result<()> {
    let manifests = [
        volume_and_claim(world, "database"),
        SETTINGS.to_owned(),
        PodManifest::new("database", MARIADB).grace_seconds(20).deployment("strategy: {type: Recreate}"),
        service("database", "database", "ports: [{port: 3306}]"),
        PodManifest::new("blog", WORDPRESS).grace_seconds(2).deployment(""),
        service("blog", "blog", "type: NodePort\nports: [{port: 80}]"),
    ];
    world.apply(&manifests.concat()).await?;
    bound(world, "database").await?;
    world.pods("app=database", 1).await?;
    world.pods("app=blog", 1).await?;
    let site = format!("http://{}:{}", world.cluster.spec.node_address(1), world.node_port("blog").await?);
    world.page(&format!("{site}/wp-admin/install.php"), |page| page.contains("Welcome")).await?;
    let form = "weblog_title=Our+class&user_name=teacher&admin_password=a-long-pass-word&admin_password2=a-long-pass-word\
                &pw_weak=on&admin_email=teacher%40example.internal&blog_public=0&Submit=Install";
    let installed = request(
        Request::post(format!("{site}/wp-admin/install.php?step=2"))
            .header("content-type", "application/x-www-form-urlencoded")
            .body(Body::from(bytes::Bytes::from(form)))?,
    )
    .await
    .context("installing WordPress")?;
    ensure!(installed.contains("Success"), "the installation said {installed}");
    let shows_blog = |page: &str| page.contains("Our class") && page.contains("Hello world!");
    world.page(&format!("{site}/"), shows_blog).await?;

    let pods = world.pods("app=database", 1).await?;
    world.kubectl(&format!("delete pod {}", pods.first().context("a pod")?)).await?;
    world.pods("app=database", 1).await?;
    world.page(&format!("{site}/"), shows_blog).await?;
    world.kubectl("delete deployment blog database").await?;
    world.kubectl("delete pvc database").await?;
    forget_volume(world, "database").await
}
