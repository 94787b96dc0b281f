//! The network by real packets, on three nodes: who reaches whom, what each policy promises, what a user sees when
//! something is not possible, and that nothing is left when a node gives it up.

use std::cell::Cell;
use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use anyhow::{Context, Result, bail, ensure};
use futures_util::future::{join, join_all};
use rkube_api::k8s::core::v1::{Event, Node as NodeKind, Pod, Service};
use rkube_client::DeleteOptions;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::api;
use crate::cluster::Cluster;
use crate::node::Node;
use crate::world::{LIMIT, World, fetch};

/// One of three endpoints is missed in so many draws with a chance of (2/3)^60 * 3 = 1e-10.
const DRAWS: usize = 60;
/// Where Debian has the plugins of others.
const PLUGINS: &str = "/usr/lib/cni";

/// Of a pod: it says its name and whom it sees.
const SERVING: &str = r#"
  terminationGracePeriodSeconds: 1,
  volumes: [{name: who, configMap: {name: who, defaultMode: 0555}}],
  containers: [{
    name: web, image: "busybox:1.35", command: [httpd, -f, -p, "8080", -h, /srv],
    volumeMounts: [{name: who, mountPath: /srv/cgi-bin}],
    readinessProbe: {tcpSocket: {port: 8080}, periodSeconds: 1}
  }]
"#;

/// A pod on every node, one on the second alone, and Services of all kinds.
const PODS: &str = r##"
apiVersion: v1
kind: ConfigMap
metadata: {name: who}
data:
  who: |
    #!/bin/sh
    echo
    client=${REMOTE_ADDR##*:}
    echo "$(hostname) ${client%]}"
---
apiVersion: apps/v1
kind: DaemonSet
metadata: {name: web}
spec:
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec: {SERVING}
---
apiVersion: v1
kind: Pod
metadata: {name: second, labels: {app: second}}
spec: {nodeSelector: {kubernetes.io/hostname: node2}, SERVING}
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {type: NodePort, selector: {app: web}, ports: [{port: 80, targetPort: 8080}]}
---
apiVersion: v1
kind: Service
metadata: {name: inside}
spec: {internalTrafficPolicy: Local, selector: {app: web}, ports: [{port: 80, targetPort: 8080}]}
---
apiVersion: v1
kind: Service
metadata: {name: sticky}
spec: {sessionAffinity: ClientIP, selector: {app: web}, ports: [{port: 80, targetPort: 8080}]}
---
apiVersion: v1
kind: Service
metadata: {name: near}
spec: {type: NodePort, externalTrafficPolicy: Local, selector: {app: second}, ports: [{port: 80, targetPort: 8080}]}
---
apiVersion: v1
kind: Service
metadata: {name: balanced}
spec: {type: LoadBalancer, selector: {app: web}, ports: [{port: 8081, targetPort: 8080}]}
---
apiVersion: v1
kind: Service
metadata: {name: kept}
spec: {type: LoadBalancer, externalTrafficPolicy: Local, selector: {app: second}, ports: [{port: 8082, targetPort: 8080}]}
"##;

/// Pods that serve on for a while when they are told to end, as a user is told to have them do.
const ROLL: &str = r#"
apiVersion: apps/v1
kind: Deployment
metadata: {name: roll}
spec:
  replicas: 3
  selector: {matchLabels: {app: roll}}
  template:
    metadata: {labels: {app: roll}}
    spec:
      terminationGracePeriodSeconds: 6
      containers:
      - name: roll
        image: busybox:1.35
        command: [sh, -c, "hostname > /tmp/index.html; exec httpd -f -p 8080 -h /tmp"]
        readinessProbe: {tcpSocket: {port: 8080}, periodSeconds: 1}
        lifecycle: {preStop: {exec: {command: [sleep, "4"]}}}
---
apiVersion: v1
kind: Service
metadata: {name: roll}
spec: {type: NodePort, selector: {app: roll}, ports: [{port: 80, targetPort: 8080}]}
"#;

/// Says what it is told.
const ECHO: &str = r#"
apiVersion: v1
kind: Pod
metadata: {name: echo, labels: {app: echo}}
spec:
  nodeSelector: {kubernetes.io/hostname: node3}
  terminationGracePeriodSeconds: 1
  containers:
  - name: echo
    image: busybox:1.35
    command: [nc, -ll, -p, "9000", -e, cat]
    readinessProbe: {tcpSocket: {port: 9000}, periodSeconds: 1}
---
apiVersion: v1
kind: Service
metadata: {name: echo}
spec: {type: NodePort, selector: {app: echo}, ports: [{port: 9000}]}
"#;

pub(crate) async fn packets(cluster: &mut Cluster) -> Result<()> {
    administrate(&cluster.node(2)).await?;
    let rules = administrated(&cluster.node(2)).await?;
    {
        let world = World::new(cluster, "default")?;
        world.apply(&PODS.replace("SERVING", SERVING)).await?;
        world.pods("app=web", 3).await?;
        world.pod("second").await?;
        let pods = pods(&world).await?;
        everyone(&world, &pods).await.context("who reaches whom")?;
        policies(&world, &pods).await.context("policies")?;
        balancers(&world).await.context("load balancers")?;
        rolling(&world, &pods).await.context("a rolling update under load")?;
        told(&world).await.context("what is not possible")?;
        restarts(&world).await.context("an agent that is killed")?;
    }
    ensure!(administrated(&cluster.node(2)).await? == rules, "the administrator's own rules changed");
    removed(&cluster.node(3)).await.context("rkube uninstall network")?;
    another_plugin(cluster).await.context("another CNI plugin")?;
    leaves(cluster).await.context("a node that leaves for good")
}

/// Rules of the administrator's own, by both of the usual tools.
async fn administrate(node: &Node) -> Result<()> {
    let own = "add table inet admin; add chain inet admin c { type filter hook forward priority 5; policy accept; }; \
               add rule inet admin c tcp dport 9 drop";
    node.run(&["nft", own]).await?;
    node.run(&["iptables", "-A", "INPUT", "-p", "tcp", "--dport", "9", "-j", "DROP"]).await.map(drop)
}

async fn administrated(node: &Node) -> Result<String> {
    Ok(node.run(&["nft", "list", "table", "inet", "admin"]).await? + &node.run(&["iptables", "-S"]).await?)
}

/// A pod of the DaemonSet.
struct Place {
    pod: String,
    address: String,
}

async fn pods(world: &World<'_>) -> Result<Vec<Place>> {
    world
        .wait::<Pod, _>("the pods with addresses", "app=web", |pods| {
            let places = pods.values().filter_map(|pod| {
                let text = |value: &Value| value.as_str().map(str::to_owned);
                Some(Place { pod: text(&pod["metadata"]["name"])?, address: text(&pod["status"]["podIP"])? })
            });
            let places: Vec<_> = places.collect();
            if places.len() == 3 { Ok(places) } else { Err(format!("{} pods", places.len())) }
        })
        .await
}

/// An answer: who gave it, and whom that one saw.
type Answer = (String, String);

fn answer(text: &str) -> Result<Answer> {
    let (who, client) = text.trim().split_once(' ').with_context(|| format!("an answer, not {text:?}"))?;
    Ok((who.to_owned(), client.to_owned()))
}

fn who(host: impl std::fmt::Display) -> String {
    format!("http://{host}/cgi-bin/who")
}

/// Asks from a pod, one after the other.
async fn ask(world: &World<'_>, pod: &str, urls: &[String]) -> Result<Vec<Answer>> {
    let script = "for url in $0 $*; do timeout 10 wget -q -O - $url || echo nobody at $url; done";
    let mut words = vec!["exec", pod, "--", "sh", "-c", script];
    words.extend(urls.iter().map(String::as_str));
    let answers = world.kubectl_args(&words).await?;
    let answers: Vec<_> = answers.lines().map(answer).collect::<Result<_>>().with_context(|| format!("from {pod}"))?;
    ensure!(answers.len() == urls.len(), "{} answers to {} questions from {pod}", answers.len(), urls.len());
    Ok(answers)
}

/// Waits until something outside answers: rules follow what the API says a moment later.
async fn outside(world: &World<'_>, host: impl std::fmt::Display) -> Result<Answer> {
    answer(&world.page(&who(host), |page| answer(page).is_ok()).await?)
}

fn names(answers: &[Answer]) -> BTreeSet<&str> {
    answers.iter().map(|(who, _)| who.as_str()).collect()
}

/// Pods to pods on their own and other nodes, to the Service by its names, and from outside by every node.
async fn everyone(world: &World<'_>, pods: &[Place]) -> Result<()> {
    let everybody: BTreeSet<&str> = pods.iter().map(|place| place.pod.as_str()).collect();
    let port = world.node_port("web").await?;
    let second = world.get::<Pod>("second").await?["status"]["podIP"].as_str().unwrap_or_default().to_owned();
    let direct: Vec<String> = pods.iter().map(|to| who(format_args!("{}:8080", to.address))).collect();
    for from in pods {
        world.page_from_pod(&from.pod, &who("web.default.svc.cluster.local"), "web-").await?;
        for (answer, to) in ask(world, &from.pod, &direct).await?.iter().zip(pods) {
            let expected = (to.pod.clone(), from.address.clone());
            ensure!(*answer == expected, "{} asked {} and got {answer:?}", from.pod, to.pod);
        }
        // What goes between nodes is wrapped in 50 bytes more.
        let mtu = world.shell(&from.pod, "cat /sys/class/net/eth0/mtu").await?;
        ensure!(mtu.trim() == "1450", "the MTU of {} is {mtu}", from.pod);
        // Two pods of one node see each other, too.
        let (name, client) = ask(world, &from.pod, &[who(format_args!("{second}:8080"))]).await?.remove(0);
        ensure!((name.as_str(), &client) == ("second", &from.address), "{name} answered {} as {client}", from.pod);
        let by_name = ask(world, &from.pod, &vec![who("web"); DRAWS]).await?;
        ensure!(names(&by_name) == everybody, "the Service led {} to {:?}", from.pod, names(&by_name));
        // Who is reached through the Service sees the pod, unless it is that itself.
        let hidden = by_name.iter().find(|(name, client)| *name != from.pod && *client != from.address);
        ensure!(hidden.is_none(), "{} was seen as {hidden:?}", from.pod);
        let nodes = world.cluster.nodes().map(|node| who(format_args!("{}:{port}", address(world, &node))));
        let by_node = ask(world, &from.pod, &nodes.collect::<Vec<_>>()).await?;
        ensure!(names(&by_node).is_subset(&everybody), "node ports led {} to {by_node:?}", from.pod);
    }
    for node in world.cluster.nodes() {
        let mut seen = BTreeSet::new();
        for _ in 0..DRAWS {
            seen.insert(outside(world, format_args!("{}:{port}", address(world, &node))).await?.0);
        }
        ensure!(seen.len() == pods.len(), "the port of {} led to {seen:?}", node.name());
    }
    Ok(())
}

fn address(world: &World<'_>, node: &Node) -> Ipv4Addr {
    world.cluster.spec.node_address(node.number)
}

async fn policies(world: &World<'_>, pods: &[Place]) -> Result<()> {
    for from in pods {
        // On each node it is the pod itself: what it sends comes back to it.
        let inside = ask(world, &from.pod, &vec![who("inside"); 5]).await?;
        ensure!(names(&inside) == BTreeSet::from([from.pod.as_str()]), "{} was led to {inside:?}", from.pod);
        let sticky = ask(world, &from.pod, &vec![who("sticky"); 20]).await?;
        ensure!(names(&sticky).len() == 1, "{} did not stay with one: {sticky:?}", from.pod);
    }
    let port = world.node_port("near").await?;
    for node in world.cluster.nodes() {
        let to = format!("{}:{port}", address(world, &node));
        if node.number == 2 {
            let (name, client) = outside(world, &to).await?;
            let host = world.cluster.spec.host_address().to_string();
            ensure!((name.as_str(), &client) == ("second", &host), "{name} saw {client} and not {host}");
        } else {
            let answer = fetch(&who(&to)).await;
            ensure!(answer.is_err(), "{} has no endpoint and answered {answer:?}", node.name());
        }
    }
    Ok(())
}

async fn balancers(world: &World<'_>) -> Result<()> {
    let ingress = async |service: &'static str, wanted: usize| {
        world
            .wait_one::<Service, _>(service, "with its addresses", |service| {
                let ingress = service["status"]["loadBalancer"]["ingress"].as_array().cloned().unwrap_or_default();
                let addresses: BTreeSet<_> =
                    ingress.iter().filter_map(|one| one["ip"].as_str().map(str::to_owned)).collect();
                if addresses.len() == wanted { Ok(addresses) } else { Err(format!("{addresses:?}")) }
            })
            .await
    };
    for address in ingress("balanced", 3).await? {
        let (name, _) = outside(world, format_args!("{address}:8081")).await?;
        ensure!(name.starts_with("web-"), "{address} led to {name}");
    }
    let second = world.cluster.spec.node_address(2).to_string();
    let kept = ingress("kept", 1).await?;
    ensure!(kept == BTreeSet::from([second.clone()]), "only the node with the pod is an address, not {kept:?}");
    let (name, client) = outside(world, format_args!("{second}:8082")).await?;
    let host = world.cluster.spec.host_address().to_string();
    ensure!((name.as_str(), client) == ("second", host), "the client's address is kept");
    Ok(())
}

/// No connection is refused or lost, from outside by every node and from a pod.
async fn rolling(world: &World<'_>, pods: &[Place]) -> Result<()> {
    world.apply(ROLL).await?;
    world.pods("app=roll", 3).await?;
    let port = world.node_port("roll").await?;
    let urls: Vec<_> = world.cluster.nodes().map(|node| format!("http://{}:{port}/", address(world, &node))).collect();
    for url in &urls {
        world.page(url, |page| page.starts_with("roll-")).await?;
    }
    let client = &pods.first().context("a pod")?.pod;
    world.page_from_pod(client, "http://roll/", "roll-").await?;
    let over = Cell::new(false);
    let load = async {
        let (mut count, mut failures) = (0, Vec::new());
        while !over.get() {
            for answer in join_all(urls.iter().map(|url| fetch(url))).await {
                count += 1;
                failures.extend(answer.err().map(|error| format!("{error:#}")));
            }
        }
        (count, failures)
    };
    let script = "n=0; while [ ! -e /tmp/over ]; do n=$((n+1)); \
                  timeout 10 wget -q -O /dev/null http://roll/ || echo failed after $n; done; echo $n";
    let inside = world.shell(client, script);
    let update = async {
        let outcome = async {
            world.kubectl("rollout restart deployment roll").await?;
            world.kubectl("rollout status deployment roll --timeout=240s").await?;
            // Also those that leave last.
            world.pods("app=roll", 3).await
        };
        let outcome = outcome.await;
        over.set(true);
        world.shell(client, "touch /tmp/over").await?;
        outcome
    };
    let ((count, failures), (inside, update)) = join(load, join(inside, update)).await;
    update?;
    ensure!(failures.is_empty(), "of {count} requests from outside {} failed: {failures:?}", failures.len());
    let inside = inside?;
    let inside: u32 = inside.trim().parse().with_context(|| format!("requests from a pod: {inside}"))?;
    ensure!(count > 100 && inside > 20, "{count} requests from outside and {inside} from a pod are too few");
    Ok(())
}

async fn event(world: &World<'_>, reason: &'static str, text: &str) -> Result<()> {
    world
        .wait::<Event, _>(&format!("an event {reason}"), "", |events| {
            let found = events.values().filter(|event| event["reason"] == reason);
            let messages: Vec<_> = found.filter_map(|event| event["message"].as_str()).collect();
            if messages.iter().any(|message| message.contains(text)) { Ok(()) } else { Err(format!("{messages:?}")) }
        })
        .await
}

/// A user is told of what is not done, and why.
async fn told(world: &World<'_>) -> Result<()> {
    let dns = world.cluster.spec.cluster_dns().to_string();
    let greedy = json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": "greedy"},
        "spec": {"externalIPs": [dns], "selector": {"app": "web"}, "ports": [{"port": 53, "targetPort": 8080}]},
    });
    world.apply(&greedy.to_string()).await?;
    event(world, "ExternalIPNotServed", &dns).await?;
    let client = &pods(world).await?.remove(0).pod;
    world.kubectl(&format!("exec {client} -- nslookup web.default.svc.cluster.local")).await?;
    world.kubectl("delete service greedy").await?;

    // A network of the host's that the pods have already; any change of a node makes it look.
    let node = world.cluster.node(3);
    let cidr = world.cluster.spec.cluster_cidr();
    let inside = cidr.replace(".0.0/16", ".250.1/24");
    node.run(&["ip", "address", "add", &inside, "dev", "eth0"]).await?;
    world.kubectl("label node node3 look=again").await?;
    let seen = event(world, "NetworkSetupFailed", &inside).await;
    node.run(&["ip", "address", "del", &inside, "dev", "eth0"]).await?;
    world.kubectl("label node node3 look-").await?;
    seen
}

/// A connection lives on while the agents at both of its ends are killed and come back.
async fn restarts(world: &World<'_>) -> Result<()> {
    world.apply(ECHO).await?;
    world.pod("echo").await?;
    let port = u16::try_from(world.node_port("echo").await?)?;
    let node = world.cluster.node(2);
    let mut stream = api::retry(LIMIT, "a connection to the node port", async || {
        TcpStream::connect((address(world, &node), port)).await.map_err(|error| error.to_string())
    })
    .await?;
    let mut exchange = async |word: &str| {
        let talking = async {
            stream.write_all(word.as_bytes()).await?;
            let mut heard = vec![0; word.len()];
            stream.read_exact(&mut heard).await?;
            ensure!(heard == word.as_bytes(), "said {word:?} and heard {heard:?}");
            Ok(())
        };
        tokio::time::timeout(LIMIT, talking).await.with_context(|| format!("no answer {word}"))?
    };
    exchange("before").await?;
    let agents = [node.clone(), world.cluster.node(3)];
    for agent in &agents {
        agent.kill().await?;
    }
    exchange("without agents").await?;
    for agent in &agents {
        world.cluster.start_node(agent).await?;
    }
    exchange("with new agents").await?;
    world.cluster.nodes_ready(3).await?;
    exchange("and when all are Ready").await
}

/// What is left of us on a node: nothing, when we are told to go.
async fn removed(node: &Node) -> Result<()> {
    let folder = node.spec.node_folder(node.number);
    let path = |name: &str| folder.join(name).display().to_string();
    let (program, data) = (node.spec.binary().display().to_string(), node.data_dir().display().to_string());
    let (bin, conf) = (path("cni/bin"), path("cni/conf"));
    let command =
        [&program, "uninstall", "network", "--data-dir", &data, "--cni-bin-dir", &bin, "--cni-conf-dir", &conf];
    let refused = node.run(&command).await;
    ensure!(
        refused.is_err_and(|error| format!("{error:#}").contains("stop it first")),
        "it runs, and let us remove it"
    );
    node.stop().await?;
    let dry: Vec<&str> = command.iter().copied().chain(["--dry-run"]).collect();
    let plan = node.run(&dry).await?;
    for what in ["05-rkube.conflist", "device veth", "device rkube-vxlan", "device rkube0", "of lo", "table ip rkube"] {
        ensure!(plan.contains(what), "no {what:?} in the plan:\n{plan}");
    }
    let done = node.run(&command).await?;
    ensure!(done.lines().count() == plan.lines().count(), "planned:\n{plan}\nand done:\n{done}");
    let left = node.run(&dry).await?;
    ensure!(left.is_empty(), "left is\n{left}");
    for command in [&["nft", "list", "ruleset"][..], &["ip", "link"], &["ip", "address"], &["ip", "route"]] {
        let shown = node.run(command).await?;
        let ours = ["rkube", "proto 121", "veth"].into_iter().find(|mark| shown.contains(mark));
        ensure!(ours.is_none(), "{ours:?} is left:\n{shown}");
    }
    Ok(())
}

/// Pods on the node that has another plugin.
const FOREIGN: &str = r##"
apiVersion: apps/v1
kind: Deployment
metadata: {name: foreign}
spec:
  replicas: 2
  selector: {matchLabels: {app: foreign}}
  template:
    metadata: {labels: {app: foreign}}
    spec: {nodeSelector: {kubernetes.io/hostname: node3}, SERVING}
---
apiVersion: v1
kind: Service
metadata: {name: foreign}
spec: {type: NodePort, selector: {app: foreign}, ports: [{port: 80, targetPort: 8080}]}
"##;

/// With `--network-backend=none` another plugin attaches pods; Services and names work as ever.
async fn another_plugin(cluster: &mut Cluster) -> Result<()> {
    cluster.spec.arguments.agent.push("--network-backend=none".to_owned());
    let cluster = &*cluster;
    let (world, node) = (World::new(cluster, "default")?, cluster.node(3));
    let spec = world.client.all::<NodeKind>().dynamic().get(&node.name()).await?["spec"].clone();
    let subnet = spec["podCIDR"].as_str().context("the node has a pod network")?;
    let folder = node.spec.node_folder(node.number).join("cni");
    for plugin in ["ptp", "host-local", "loopback"] {
        let source = format!("{PLUGINS}/{plugin}");
        std::fs::copy(&source, folder.join("bin").join(plugin))
            .with_context(|| format!("{source} (package containernetworking-plugins)"))?;
    }
    let ipam = json!({
        "type": "host-local", "ranges": [[{"subnet": subnet}]], "routes": [{"dst": "0.0.0.0/0"}],
        "dataDir": folder.join("addresses"),
    });
    let config = json!({"cniVersion": "0.4.0", "name": "other", "plugins": [{"type": "ptp", "ipam": ipam}]});
    std::fs::write(folder.join("conf/10-other.conflist"), config.to_string())?;
    cluster.start_node(&node).await?;
    cluster.nodes_ready(3).await?;
    world.apply(&FOREIGN.replace("SERVING", SERVING)).await?;
    let pods = world.pods("app=foreign", 2).await?;
    let everybody: BTreeSet<&str> = pods.iter().map(String::as_str).collect();
    for pod in &pods {
        world.page_from_pod(pod, &who("foreign.default.svc.cluster.local"), "foreign-").await?;
        let answers = ask(&world, pod, &vec![who("foreign"); DRAWS]).await?;
        ensure!(names(&answers) == everybody, "the Service led {pod} to {:?}", names(&answers));
    }
    let (name, _) =
        outside(&world, format_args!("{}:{}", address(&world, &node), world.node_port("foreign").await?)).await?;
    ensure!(name.starts_with("foreign-"), "the node port led to {name}");
    let links = node.run(&["ip", "link"]).await?;
    if links.contains("rkube") {
        bail!("there is another plugin, and still\n{links}");
    }
    Ok(())
}

/// Nothing leads to a node that was deleted.
async fn leaves(cluster: &Cluster) -> Result<()> {
    let (world, stays) = (World::new(cluster, "default")?, cluster.node(1));
    let node = world.client.all::<NodeKind>().dynamic().get("node3").await?;
    let network = node["spec"]["podCIDR"].as_str().context("the node has a pod network")?.to_owned();
    let ways = async || {
        let routes = stays.run(&["ip", "route"]).await?;
        let tunnel = stays.run(&["bridge", "fdb", "show", "dev", "rkube-vxlan"]).await?;
        Ok::<_, anyhow::Error>(format!("{routes}{tunnel}"))
    };
    let address = format!("dst {} ", cluster.spec.node_address(3));
    let before = ways().await?;
    ensure!(before.contains(&network) && before.contains(&address), "no way to node3 in\n{before}");
    cluster.node(3).power_off().await?;
    world.client.all::<NodeKind>().delete("node3", &DeleteOptions::default()).await?;
    api::retry(LIMIT, "the ways to node3 going", async || match ways().await {
        Ok(ways) if !ways.contains(&network) && !ways.contains(&address) => Ok(()),
        Ok(ways) => Err(ways),
        Err(error) => Err(format!("{error:#}")),
    })
    .await?;
    // The others go on.
    let port = world.node_port("web").await?;
    for number in [1, 2] {
        outside(&world, format_args!("{}:{port}", cluster.spec.node_address(number))).await?;
    }
    Ok(())
}
