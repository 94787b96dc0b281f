#![allow(clippy::print_stdout, clippy::disallowed_methods, reason = "a measurement")]
use rkube_apimachinery::clock::SystemClock;
use rkube_apimachinery::gvk::GroupVersionResource;
use rkube_apimachinery::random::SeededRandom;
use rkube_registry::store::Target;
use rkube_registry::{Config, Registry, RequestContext};
use rkube_storage::memory::MemoryStorage;
use serde_json::json;
use std::sync::Arc;
use std::time::Instant;

fn cpu() -> f64 {
    let text = std::fs::read_to_string("/proc/self/stat").unwrap();
    let fields: Vec<&str> = text.rsplit(')').next().unwrap().split_whitespace().collect();
    (fields[11].parse::<f64>().unwrap() + fields[12].parse::<f64>().unwrap()) / 100.0
}

#[tokio::main(worker_threads = 2)]
async fn main() {
    let storage = Arc::new(MemoryStorage::new());
    let registry = Registry::new(storage.clone(), SystemClock::shared(), SeededRandom::shared(1), Config::default())
        .await
        .unwrap();
    let context = Arc::new(RequestContext::internal());
    let maps = registry.store(&GroupVersionResource::new("", "v1", "configmaps")).unwrap();
    let pods = registry.store(&GroupVersionResource::new("", "v1", "pods")).unwrap();
    let payload = "x".repeat(1000);
    let n = 20_000;
    let (t, c) = (Instant::now(), cpu());
    for i in 0..n {
        let body = json!({"metadata": {"name": format!("m{i}")}, "data": {"k": payload}});
        maps.create(&context, &Target::new("ns", ""), body, &Default::default()).await.unwrap();
    }
    println!(
        "create configmap: {:.1} us wall, {:.1} us cpu",
        t.elapsed().as_micros() as f64 / n as f64,
        (cpu() - c) * 1e6 / n as f64
    );
    let pod = |i: usize| {
        json!({"metadata": {"name": format!("p{i}"), "labels": {"app": "web", "hash": "abc"}}, "spec": {
        "terminationGracePeriodSeconds": 30, "restartPolicy": "Always", "dnsPolicy": "ClusterFirst", "nodeName": format!("n{}", i % 100),
        "containers": [{"name": "c", "image": "nginx:1", "imagePullPolicy": "Always", "terminationMessagePath": "/dev/termination-log", "terminationMessagePolicy": "File",
            "resources": {"requests": {"cpu": "100m", "memory": "64Mi"}}, "env": [{"name": "A", "value": "b"}, {"name": "C", "value": "d"}],
            "ports": [{"containerPort": 80, "protocol": "TCP"}], "volumeMounts": [{"name": "v", "mountPath": "/v"}]}],
        "volumes": [{"name": "v", "emptyDir": {}}],
        "tolerations": [{"key": "node.kubernetes.io/not-ready", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 300}]}})
    };
    let (t, c) = (Instant::now(), cpu());
    for i in 0..n {
        pods.create(&context, &Target::new("ns", ""), pod(i), &Default::default()).await.unwrap();
    }
    println!(
        "create pod: {:.1} us wall, {:.1} us cpu",
        t.elapsed().as_micros() as f64 / n as f64,
        (cpu() - c) * 1e6 / n as f64
    );
    let (t, c) = (Instant::now(), cpu());
    for i in 0..n {
        let patch = rkube_registry::store::Patch::Merge(
            json!({"status": {"phase": "Running", "podIP": format!("10.0.{}.{}", i / 250, i % 250)}})
                .to_string()
                .into(),
        );
        pods.patch(&context, &Target::new("ns", format!("p{i}")).subresource("status"), patch, &Default::default())
            .await
            .unwrap();
    }
    println!(
        "patch pod status: {:.1} us wall, {:.1} us cpu",
        t.elapsed().as_micros() as f64 / n as f64,
        (cpu() - c) * 1e6 / n as f64
    );
    let (t, c) = (Instant::now(), cpu());
    let gets = 200_000;
    for i in 0..gets {
        pods.get(&context, &Target::new("ns", format!("p{}", i % n)), &Default::default()).await.unwrap();
    }
    println!(
        "get: {:.2} us wall, {:.2} us cpu",
        t.elapsed().as_micros() as f64 / gets as f64,
        (cpu() - c) * 1e6 / gets as f64
    );
    let t = Instant::now();
    let page = pods.list(&context, "", &Default::default()).await.unwrap();
    println!("list {} pods: {} us, {} bytes each", page.items.len(), t.elapsed().as_micros(), page.items[0].json.len());
    let t = Instant::now();
    let list = serde_json::from_value(json!({"fieldSelector": "spec.nodeName=n7"})).unwrap();
    let page = pods.list(&context, "", &list).await.unwrap();
    println!("list {} of {n} by node: {} us", page.items.len(), t.elapsed().as_micros());
    // Fan-out: 500 watchers, updates of one object.
    let watchers = 500;
    let updates = 2_000;
    let mut tasks = Vec::new();
    for _ in 0..watchers {
        let list = serde_json::from_value(json!({"resourceVersion": page.revision.to_string()})).unwrap();
        let mut watcher = maps.watch(&context, "", &list).await.unwrap();
        tasks.push(tokio::task::spawn(async move {
            let mut batch = Vec::new();
            let mut seen = 0;
            while seen < updates {
                assert!(watcher.next_batch(&mut batch).await);
                seen += batch.len();
            }
        }));
    }
    let (t, c) = (Instant::now(), cpu());
    for i in 0..updates {
        let body = json!({"metadata": {"name": "m0"}, "data": {"k": i.to_string(), "p": payload}});
        maps.update(&context, &Target::new("ns", "m0"), body, &Default::default()).await.unwrap();
    }
    for task in tasks {
        task.await.unwrap();
    }
    let events = (updates * watchers) as f64;
    println!(
        "fan-out: {:.0} events/s, {:.3} us cpu per event",
        events / t.elapsed().as_secs_f64(),
        (cpu() - c) * 1e6 / events
    );
    let t = Instant::now();
    let again =
        Registry::new(storage, SystemClock::shared(), SeededRandom::shared(1), Config::default()).await.unwrap();
    println!("restart with 40k objects: {} ms", t.elapsed().as_millis());
    drop(again);
}
