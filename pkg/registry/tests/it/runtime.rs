//! Resources that come and go while the registry runs.

use std::sync::Arc;

use rkube_api::resource::{Resource, SelectableField, SharedResource, StoredAs};
use rkube_apimachinery::gvk::GroupVersionResource;
use rkube_apimachinery::meta::Meta;
use rkube_apimachinery::schema::{Object, SchemaSet, Shape, TypeDef, TypeId};
use rkube_registry::store::{Answer, Target};
use rkube_registry::strategy::generic::{GenericStatusStrategy, GenericStrategy};
use rkube_registry::{RuntimeStrategies, ScalePaths, SelectorPath, Store};
use serde_json::{Value, json};

use crate::cluster::{Cluster, at, keys, value};

fn schema() -> (Arc<SchemaSet>, TypeId) {
    let mut schema = rkube_api::schema().extend();
    let any = Object { fields: vec![].into(), wire: vec![].into(), preserve_unknown: true, atomic: false };
    let ty = schema.push(TypeDef { name: "org.example.v1.Widget".into(), shape: Shape::Object(any) });
    (Arc::new(schema), ty)
}

fn widgets(ty: TypeId, version: &'static str, fields: &[&'static str]) -> SharedResource {
    let field = |path: &&'static str| SelectableField { label: (*path).into(), path: (*path).into(), zero: "".into() };
    Arc::new(Resource {
        group: "example.org".into(),
        version: version.into(),
        plural: "widgets".into(),
        singular: "widget".into(),
        short_names: vec![].into(),
        categories: vec![].into(),
        kind: "Widget".into(),
        namespaced: true,
        verbs: vec![].into(),
        subresources: vec![].into(),
        schema: ty,
        stored_as: Some(StoredAs {
            prefix: "example.org/widgets".into(),
            group: "example.org".into(),
            version: "v1".into(),
            kind: "Widget".into(),
        }),
        storage_version_hash: "".into(),
        selectable_fields: fields.iter().map(field).collect::<Vec<_>>().into(),
    })
}

async fn add(cluster: &Cluster, fields: &[&'static str]) -> Store {
    let (schema, ty) = schema();
    let strategies = RuntimeStrategies {
        schema,
        main: Arc::new(GenericStrategy { has_status: true, allow_unconditional_update: false }),
        subresources: vec![("status", Arc::new(GenericStatusStrategy { allow_unconditional_update: false }))],
        scale: Some(ScalePaths {
            spec_replicas: "/spec/size".to_owned(),
            status_replicas: "/status/size".to_owned(),
            selector: SelectorPath::Text("/status/selector".to_owned()),
        }),
    };
    let rows = vec![widgets(ty, "v1", fields), widgets(ty, "v2", fields)];
    cluster.registry.add(rows, strategies).await.expect("is served");
    served(cluster, "v1").expect("is served")
}

fn served(cluster: &Cluster, version: &str) -> Option<Store> {
    cluster.registry.store(&GroupVersionResource::new("example.org", version, "widgets"))
}

async fn create(cluster: &Cluster, store: &Store, name: &str, color: &str) -> Value {
    let body = json!({
        "apiVersion": "example.org/v1", "kind": "Widget", "metadata": {"name": name},
        "spec": {"color": color, "size": 2}, "status": {"ignored": true},
    });
    let answer = store.create(&cluster.context, &Target::new("ns", ""), body, &Default::default()).await;
    match answer.expect("creates") {
        Answer::Object(object) => value(&object),
        Answer::Status(status) => panic!("{status:?}"),
    }
}

#[tokio::test]
async fn a_resource_added_at_run_time_is_like_any_other() {
    let cluster = Cluster::new().await;
    let store = add(&cluster, &["spec.color"]).await;
    let created = create(&cluster, &store, "a", "red").await;
    assert_eq!((created.generation(), created.get("status")), (1, None));
    create(&cluster, &store, "b", "blue").await;

    let select = serde_json::from_value(json!({"fieldSelector": "spec.color=blue"})).expect("options");
    let page = store.list(&cluster.context, "ns", &select).await.expect("lists");
    assert_eq!(keys(&page), ["ns/b"]);
    let scale = at("a").subresource("scale");
    let patch = rkube_registry::store::Patch::Merge(json!({"spec": {"replicas": 7}}).to_string().into());
    let scaled = store.patch(&cluster.context, &scale, patch, &Default::default()).await.expect("scales");
    assert_eq!(value(&scaled.object)["kind"], "Scale");
    let read = value(&store.get(&cluster.context, &at("a"), &Default::default()).await.expect("reads"));
    assert_eq!((&read["spec"]["size"], read.generation()), (&json!(7), 2));
    let other = served(&cluster, "v2").expect("is served");
    let read = value(&other.get(&cluster.context, &at("a"), &Default::default()).await.expect("reads"));
    assert_eq!(read["apiVersion"], "example.org/v2");
}

#[tokio::test]
async fn objects_outlive_the_serving_of_their_resource() {
    let cluster = Cluster::new().await;
    let store = add(&cluster, &[]).await;
    let created = create(&cluster, &store, "a", "red").await;
    let watch = serde_json::from_value(json!({"resourceVersion": created.resource_version()})).expect("options");
    let mut watcher = store.watch(&cluster.context, "", &watch).await.expect("watches");
    cluster.registry.remove("example.org", "widgets").await;
    assert!(!watcher.next_batch(&mut Vec::new()).await, "the watch ends");
    assert!(served(&cluster, "v1").is_none());

    let store = add(&cluster, &[]).await;
    let read = store.get(&cluster.context, &at("a"), &Default::default()).await.expect("reads");
    assert_eq!(value(&read), created);
}

#[tokio::test]
async fn new_selectable_fields_are_read_from_what_is_stored() {
    let cluster = Cluster::new().await;
    let store = add(&cluster, &[]).await;
    create(&cluster, &store, "a", "red").await;
    let store = add(&cluster, &["spec.color"]).await;
    let select = serde_json::from_value(json!({"fieldSelector": "spec.color=red"})).expect("options");
    let page = store.list(&cluster.context, "ns", &select).await.expect("lists");
    assert_eq!(keys(&page), ["ns/a"]);
}
