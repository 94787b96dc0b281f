//! What a scenario works with: one namespace of a cluster, kubectl as a student types it, and waiting.

use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use http::Request;
use rkube_api::Kind;
use rkube_api::k8s::core::v1::{Pod, Service};
use rkube_client::{Client, ListParams};
use rkube_http::body::Body;
use rkube_http::client::HttpClient;
use rkube_http::connect::Connector;
use serde_json::Value;
use tokio::io::AsyncWriteExt;
use tokio::process::Command;

use crate::api::{self, Objects, condition};
use crate::cluster::Cluster;
use crate::files;

/// Long enough for a debug binary on a busy machine; nothing waits this long when all is well.
pub(crate) const LIMIT: Duration = Duration::from_secs(240);
/// How long one try for a page may take; who fetches tries again.
const PAGE_TIMEOUT: Duration = Duration::from_secs(5);
const PAGE_BYTES_MAX: usize = 4 << 20;

pub(crate) struct World<'a> {
    pub(crate) cluster: &'a Cluster,
    kubeconfig: PathBuf,
    pub(crate) client: Client,
    pub(crate) namespace: String,
}

impl<'a> World<'a> {
    pub(crate) fn new(cluster: &'a Cluster, namespace: &str) -> Result<Self> {
        Self::with(cluster, cluster.spec.kubeconfig(), namespace)
    }

    /// The same, seen through one of several servers.
    pub(crate) fn through(cluster: &'a Cluster, server: usize, namespace: &str) -> Result<Self> {
        Self::with(cluster, cluster.kubeconfig_for(server)?, namespace)
    }

    fn with(cluster: &'a Cluster, kubeconfig: PathBuf, namespace: &str) -> Result<Self> {
        let client = api::connect(&kubeconfig)?;
        Ok(Self { cluster, kubeconfig, client, namespace: namespace.to_owned() })
    }

    fn command(&self) -> Command {
        let mut command = Command::new("kubectl");
        let cache: PathBuf = self.cluster.spec.folder.join("nodes/kubectl");
        command
            .arg("--kubeconfig")
            .arg(&self.kubeconfig)
            .arg("--cache-dir")
            .arg(cache)
            .args(["--namespace", &self.namespace])
            .stdin(Stdio::null())
            .kill_on_drop(true);
        command
    }

    /// kubectl with these words, in the scenario's namespace. Returns what it prints.
    pub(crate) async fn kubectl(&self, words: &str) -> Result<String> {
        self.kubectl_args(&words.split_whitespace().collect::<Vec<_>>()).await
    }

    /// The same for words that hold spaces.
    pub(crate) async fn kubectl_args(&self, words: &[&str]) -> Result<String> {
        let (done, out, error) = self.try_kubectl(words).await?;
        ensure!(done, "kubectl {}: {}{}", words.join(" "), error.trim(), out.trim());
        Ok(out)
    }

    /// kubectl that is to fail: returns what it says.
    pub(crate) async fn kubectl_fails(&self, words: &str) -> Result<String> {
        let (done, out, error) = self.try_kubectl(&words.split_whitespace().collect::<Vec<_>>()).await?;
        ensure!(!done, "kubectl {words} should have failed, but it said: {out}");
        Ok(error)
    }

    async fn try_kubectl(&self, words: &[&str]) -> Result<(bool, String, String)> {
        finished(self.command().args(words), &format!("kubectl {}", words.join(" "))).await
    }

    /// helm with these words, in the scenario's namespace. Returns what it prints.
    pub(crate) async fn helm(&self, words: &str) -> Result<String> {
        let mut command = Command::new("helm");
        for folder in ["CACHE", "CONFIG", "DATA"] {
            command.env(format!("HELM_{folder}_HOME"), self.cluster.spec.folder.join("nodes/helm").join(folder));
        }
        command
            .env("KUBECONFIG", &self.kubeconfig)
            .args(["--namespace", &self.namespace])
            .args(words.split_whitespace())
            .stdin(Stdio::null())
            .kill_on_drop(true);
        let (done, out, error) = finished(&mut command, &format!("helm {words}")).await?;
        ensure!(done, "helm {words}: {}{}", error.trim(), out.trim());
        Ok(out)
    }

    /// `kubectl apply -f -`, or another verb that reads a manifest.
    pub(crate) async fn manifest(&self, verb: &str, yaml: &str) -> Result<String> {
        let mut command = self.command();
        command.args([verb, "-f", "-"]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().context("running kubectl")?;
        let mut stdin = child.stdin.take().context("kubectl reads")?;
        stdin.write_all(yaml.as_bytes()).await?;
        drop(stdin);
        let output = child.wait_with_output().await?;
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(output.status.success(), "kubectl {verb}: {}", error.trim());
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    pub(crate) async fn apply(&self, yaml: &str) -> Result<()> {
        self.manifest("apply", yaml).await.map(drop)
    }

    /// Waits for objects of the namespace, selected by labels, to pass `check`.
    pub(crate) async fn wait<K: Kind, T>(
        &self,
        what: &str,
        labels: &str,
        check: impl FnMut(&Objects) -> Result<T, String>,
    ) -> Result<T> {
        let api = self.client.namespaced::<K>(&self.namespace);
        api::wait(api.dynamic(), &ListParams::labels(labels), LIMIT, what, check).await
    }

    /// Waits for one object to pass `check`.
    pub(crate) async fn wait_one<K: Kind, T>(
        &self,
        name: &str,
        what: &str,
        mut check: impl FnMut(&Value) -> Result<T, String>,
    ) -> Result<T> {
        let api = self.client.namespaced::<K>(&self.namespace);
        let params = ListParams::fields(format!("metadata.name={name}"));
        api::wait(api.dynamic(), &params, LIMIT, &format!("{} {name} {what}", K::KIND), |found| {
            match found.values().next() {
                Some(object) => check(object),
                None => Err(format!("there is no {} {name}", K::KIND)),
            }
        })
        .await
    }

    /// Waits until there is no object of this name.
    pub(crate) async fn gone<K: Kind>(&self, name: &str) -> Result<()> {
        self.wait::<K, _>(&format!("{} {name} gone", K::KIND), "", |found| {
            match found.values().any(|object| name_of(object) == name) {
                true => Err("it is still there".to_owned()),
                false => Ok(()),
            }
        })
        .await
    }

    /// Waits until exactly so many pods with the labels are there, all Ready and none on its way out. Their names.
    pub(crate) async fn pods(&self, labels: &str, wanted: usize) -> Result<Vec<String>> {
        let what = format!("{wanted} pods with {labels} Ready and no other");
        self.wait::<Pod, _>(&what, labels, |pods| {
            let leaving = count(pods, |pod| !pod["metadata"]["deletionTimestamp"].is_null());
            let ready = count(pods, |pod| condition(pod, "Ready") == "True");
            if (pods.len(), leaving, ready) == (wanted, 0, wanted) {
                return Ok(pods.values().map(name_of).collect());
            }
            Err(format!("{} pods, {ready} Ready, {leaving} leaving", pods.len()))
        })
        .await
    }

    /// Waits until one pod is Ready, and returns it.
    pub(crate) async fn pod(&self, name: &str) -> Result<Value> {
        self.wait_one::<Pod, _>(name, "Ready", |pod| match condition(pod, "Ready") {
            "True" => Ok(pod.clone()),
            _ => Err(pod["status"].to_string()),
        })
        .await
    }

    /// What a shell command in a pod prints.
    pub(crate) async fn shell(&self, pod: &str, script: &str) -> Result<String> {
        self.kubectl_args(&["exec", pod, "--", "sh", "-c", script]).await
    }

    /// Waits until a program in a pod succeeds and `check` passes what it prints: for what no event announces there, such
    /// as that a name is known.
    pub(crate) async fn asks_until(
        &self,
        pod: &str,
        what: &str,
        command: &[&str],
        check: impl Fn(&str) -> bool,
    ) -> Result<()> {
        let words = [&["exec", pod, "--"], command].concat();
        api::retry(LIMIT, &format!("{what}, from pod {pod}"), async || match self.kubectl_args(&words).await {
            Ok(said) if check(&said) => Ok(()),
            Ok(said) => Err(said),
            Err(error) => Err(format!("{error:#}")),
        })
        .await
    }

    /// Waits until a file of one of a pod's volumes has this text. `volume` is the volume's folder below the pod's, as
    /// `kubernetes.io~configmap/settings`.
    pub(crate) async fn volume_holds(&self, pod: &str, volume: &str, file: &str, text: &str) -> Result<()> {
        let pod = self.get::<Pod>(pod).await?;
        let node = self.cluster.named(pod["spec"]["nodeName"].as_str().context("the pod has a node")?)?;
        let uid = pod["metadata"]["uid"].as_str().context("the pod has a uid")?;
        let folder = node.pods_folder()?.join(uid).join("volumes").join(volume);
        files::holds(&folder, file, text, LIMIT).await
    }

    /// One object, as JSON.
    pub(crate) async fn get<K: Kind>(&self, name: &str) -> Result<Value> {
        let api = self.client.namespaced::<K>(&self.namespace);
        api.dynamic().get(name).await.with_context(|| format!("reading {} {name}", K::KIND))
    }

    /// Waits until a page is served and passes `check`.
    pub(crate) async fn page(&self, url: &str, check: impl Fn(&str) -> bool) -> Result<String> {
        api::retry(LIMIT, &format!("the page {url}"), async || match fetch(url).await {
            Ok(page) if check(&page) => Ok(page),
            Ok(page) => Err(format!("the page {:?}", page.chars().take(200).collect::<String>())),
            Err(error) => Err(format!("{error:#}")),
        })
        .await
    }

    /// The same from inside a pod that has busybox.
    pub(crate) async fn page_from_pod(&self, pod: &str, url: &str, text: &str) -> Result<()> {
        // The limit is not wget's own: with that option Debian's busybox crashes.
        let command = ["timeout", "5", "wget", "-q", "-O", "-", url];
        self.asks_until(pod, &format!("{text:?} at {url}"), &command, |page| page.contains(text)).await
    }

    /// The node port a Service was given.
    pub(crate) async fn node_port(&self, service: &str) -> Result<u64> {
        let service = self.get::<Service>(service).await?;
        service["spec"]["ports"][0]["nodePort"].as_u64().context("the Service has a node port")
    }

    /// A process of kubectl that stays, for what streams.
    pub(crate) fn kubectl_stream(&self, words: &str) -> Result<tokio::process::Child> {
        let mut command = self.command();
        command.args(words.split_whitespace()).stdout(Stdio::piped());
        command.spawn().context("running kubectl")
    }
}

/// Whether a program ended well, and what it printed.
async fn finished(command: &mut Command, what: &str) -> Result<(bool, String, String)> {
    let Ok(output) = tokio::time::timeout(2 * LIMIT, command.output()).await else {
        bail!("{what} did not end within {} s", 2 * LIMIT.as_secs());
    };
    let output = output.with_context(|| format!("running {what}"))?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Ok((output.status.success(), text(&output.stdout), text(&output.stderr)))
}

/// One GET, answered with 200 at once or not at all.
pub(crate) async fn fetch(url: &str) -> Result<String> {
    answered(Request::get(url).header("connection", "close").body(Body::empty())?, PAGE_TIMEOUT).await
}

/// One request that may not be repeated, answered with 200 however long its work takes.
pub(crate) async fn request(request: Request<Body>) -> Result<String> {
    answered(request, LIMIT).await
}

/// One request on a connection of its own.
async fn answered(request: Request<Body>, limit: Duration) -> Result<String> {
    let client = HttpClient::new(request.uri(), Connector::new(None))?;
    let answer = async {
        let response = client.request(request).await?;
        let status = response.status();
        let body = response.into_body().read(PAGE_BYTES_MAX).await?;
        ensure!(status.is_success(), "status {status}");
        Ok(String::from_utf8_lossy(&body).into_owned())
    };
    let Ok(answer) = tokio::time::timeout(limit, answer).await else { bail!("no answer within {} s", limit.as_secs()) };
    answer
}

/// How many of the objects pass.
pub(crate) fn count(objects: &Objects, check: impl Fn(&Value) -> bool) -> usize {
    objects.values().filter(|object| check(object)).count()
}

/// The name of an object.
pub(crate) fn name_of(object: &Value) -> String {
    object["metadata"]["name"].as_str().unwrap_or_default().to_owned()
}
