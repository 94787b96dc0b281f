//! Typed and untyped access to one resource, in one namespace or in all.
//!
//! Requests and answers are JSON bytes in one non-generic core, [`DynamicApi`]; [`Api`] adds the type.
//! Behaves as `k8s.io/client-go/gentype` and `dynamic`, v1.36.

use std::fmt::Write as _;
use std::marker::PhantomData;
use std::sync::Arc;

use bytes::Bytes;
use http::Method;
use rkube_api::Kind;
use rkube_api::StoredObject;
use rkube_api::resource::SharedResource;
use serde::Serialize;
use serde_json::{Value, json};

use crate::client::{Client, collection_path, escape};
use crate::transport::{ClientError, ListRequest, ObjectList, WatchRequest, WatchStream};

const JSON: &str = "application/json";

/// A change to an object, in one of the four ways the server understands.
#[derive(Clone, Debug)]
pub enum Patch {
    /// RFC 6902: an array of operations.
    Json(Value),
    /// RFC 7386.
    Merge(Value),
    /// By the schema's merge keys. Not for custom resources.
    Strategic(Value),
    /// Server-side apply.
    Apply { object: Value, field_manager: String, force: bool },
}

impl Patch {
    fn content_type(&self) -> &'static str {
        match self {
            Self::Json(_) => "application/json-patch+json",
            Self::Merge(_) => "application/merge-patch+json",
            Self::Strategic(_) => "application/strategic-merge-patch+json",
            Self::Apply { .. } => "application/apply-patch+yaml",
        }
    }

    fn body(&self) -> Bytes {
        let (Self::Json(value) | Self::Merge(value) | Self::Strategic(value) | Self::Apply { object: value, .. }) =
            self;
        Bytes::from(value.to_string())
    }

    fn query(&self) -> String {
        match self {
            Self::Apply { field_manager, force, .. } => {
                format!("?fieldManager={}&force={force}", escape(field_manager))
            }
            _ => String::new(),
        }
    }
}

/// What happens to the objects an object owns.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum Propagation {
    Background,
    Foreground,
    Orphan,
}

/// `metav1.DeleteOptions`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct DeleteOptions {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub grace_period_seconds: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub preconditions: Option<Preconditions>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub propagation_policy: Option<Propagation>,
}

/// What must hold for a delete to happen; 409 otherwise.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Preconditions {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub uid: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub resource_version: Option<String>,
}

impl DeleteOptions {
    /// Only this very object, not one that took its name since.
    pub fn uid(uid: &str) -> Self {
        let preconditions = Preconditions { uid: Some(uid.to_owned()), resource_version: None };
        Self { preconditions: Some(preconditions), ..Self::default() }
    }

    #[must_use]
    pub fn resource_version(mut self, resource_version: &str) -> Self {
        self.preconditions.get_or_insert_default().resource_version = Some(resource_version.to_owned());
        self
    }

    #[must_use]
    pub fn propagation(mut self, policy: Propagation) -> Self {
        self.propagation_policy = Some(policy);
        self
    }

    #[must_use]
    pub fn grace_period_seconds(mut self, seconds: i64) -> Self {
        self.grace_period_seconds = Some(seconds);
        self
    }

    pub(crate) fn body(&self) -> Bytes {
        let mut body = json!(self);
        body["apiVersion"] = "v1".into();
        body["kind"] = "DeleteOptions".into();
        Bytes::from(body.to_string())
    }
}

/// Which objects to list.
#[derive(Clone, Debug, Default)]
pub struct ListParams {
    pub label_selector: String,
    pub field_selector: String,
    /// Empty for a consistent read, `0` for whatever the cache has.
    pub resource_version: String,
    pub resource_version_match: String,
    /// 0 for all.
    pub limit: u64,
    pub continue_token: String,
}

impl ListParams {
    pub fn labels(selector: impl Into<String>) -> Self {
        Self { label_selector: selector.into(), ..Self::default() }
    }

    pub fn fields(selector: impl Into<String>) -> Self {
        Self { field_selector: selector.into(), ..Self::default() }
    }
}

/// One page of typed objects.
#[derive(Clone, Debug)]
pub struct List<K> {
    pub items: Vec<Arc<K>>,
    pub resource_version: String,
    pub continue_token: String,
}

/// Any resource as JSON trees.
#[derive(Clone)]
pub struct DynamicApi {
    client: Client,
    resource: SharedResource,
    namespace: String,
    collection: String,
}

impl DynamicApi {
    pub(crate) fn new(client: Client, resource: SharedResource, namespace: &str) -> Self {
        let collection = collection_path(&resource, namespace);
        Self { client, resource, namespace: namespace.to_owned(), collection }
    }

    pub fn resource(&self) -> &SharedResource {
        &self.resource
    }

    fn path(&self, name: &str, subresource: &str) -> String {
        let mut path = self.collection.clone();
        if !name.is_empty() {
            let _ = write!(path, "/{}", escape(name));
        }
        if !subresource.is_empty() {
            let _ = write!(path, "/{subresource}");
        }
        path
    }

    async fn call(
        &self,
        method: Method,
        path: &str,
        body: Option<(&'static str, Bytes)>,
    ) -> Result<Bytes, ClientError> {
        Ok(self.client.send(method, path, body).await?.into_body())
    }

    pub(crate) async fn get_bytes(&self, name: &str, subresource: &str) -> Result<Bytes, ClientError> {
        self.call(Method::GET, &self.path(name, subresource), None).await
    }

    pub(crate) async fn post_bytes(
        &self,
        name: &str,
        subresource: &str,
        body: impl Into<Bytes>,
    ) -> Result<Bytes, ClientError> {
        self.call(Method::POST, &self.path(name, subresource), Some((JSON, body.into()))).await
    }

    pub(crate) async fn put_bytes(
        &self,
        name: &str,
        subresource: &str,
        body: impl Into<Bytes>,
    ) -> Result<Bytes, ClientError> {
        self.call(Method::PUT, &self.path(name, subresource), Some((JSON, body.into()))).await
    }

    pub(crate) async fn patch_bytes(&self, name: &str, subresource: &str, patch: &Patch) -> Result<Bytes, ClientError> {
        let path = self.path(name, subresource) + &patch.query();
        self.call(Method::PATCH, &path, Some((patch.content_type(), patch.body()))).await
    }

    pub async fn get(&self, name: &str) -> Result<Value, ClientError> {
        self.parse(&self.get_bytes(name, "").await?)
    }

    pub async fn create(&self, object: &Value) -> Result<Value, ClientError> {
        self.parse(&self.post_bytes("", "", object.to_string()).await?)
    }

    /// Replaces the object of the same name.
    pub async fn update(&self, object: &Value) -> Result<Value, ClientError> {
        self.parse(&self.put_bytes(name_of(object), "", object.to_string()).await?)
    }

    pub async fn update_status(&self, object: &Value) -> Result<Value, ClientError> {
        self.parse(&self.put_bytes(name_of(object), "status", object.to_string()).await?)
    }

    pub async fn patch(&self, name: &str, patch: &Patch) -> Result<Value, ClientError> {
        self.parse(&self.patch_bytes(name, "", patch).await?)
    }

    pub async fn patch_status(&self, name: &str, patch: &Patch) -> Result<Value, ClientError> {
        self.parse(&self.patch_bytes(name, "status", patch).await?)
    }

    pub async fn get_subresource(&self, name: &str, subresource: &str) -> Result<Value, ClientError> {
        self.parse(&self.get_bytes(name, subresource).await?)
    }

    pub async fn create_subresource(&self, name: &str, subresource: &str, body: &Value) -> Result<Value, ClientError> {
        self.parse(&self.post_bytes(name, subresource, body.to_string()).await?)
    }

    pub async fn update_subresource(&self, name: &str, subresource: &str, body: &Value) -> Result<Value, ClientError> {
        self.parse(&self.put_bytes(name, subresource, body.to_string()).await?)
    }

    pub async fn patch_subresource(&self, name: &str, subresource: &str, patch: &Patch) -> Result<Value, ClientError> {
        self.parse(&self.patch_bytes(name, subresource, patch).await?)
    }

    /// The answer, an object or a `Status`, is not of interest: watch to see the object go.
    pub async fn delete(&self, name: &str, options: &DeleteOptions) -> Result<(), ClientError> {
        self.call(Method::DELETE, &self.path(name, ""), Some((JSON, options.body()))).await.map(drop)
    }

    pub async fn delete_collection(&self, options: &DeleteOptions, params: &ListParams) -> Result<(), ClientError> {
        let mut path = self.collection.clone();
        let selectors = [("labelSelector", &params.label_selector), ("fieldSelector", &params.field_selector)];
        let mut separator = '?';
        for (name, selector) in selectors.into_iter().filter(|(_, selector)| !selector.is_empty()) {
            let _ = write!(path, "{separator}{name}={}", escape(selector));
            separator = '&';
        }
        self.call(Method::DELETE, &path, Some((JSON, options.body()))).await.map(drop)
    }

    pub async fn list(&self, params: &ListParams) -> Result<ObjectList, ClientError> {
        let ListParams {
            label_selector,
            field_selector,
            resource_version,
            resource_version_match,
            limit,
            continue_token,
        } = params.clone();
        let request = ListRequest {
            resource: Arc::clone(&self.resource),
            namespace: self.namespace.clone(),
            label_selector,
            field_selector,
            resource_version,
            resource_version_match,
            limit,
            continue_token,
        };
        self.client.list(request).await
    }

    /// Changes after `resource_version`.
    pub async fn watch(&self, params: &ListParams, timeout_seconds: u32) -> Result<WatchStream, ClientError> {
        let request = WatchRequest {
            resource: Arc::clone(&self.resource),
            namespace: self.namespace.clone(),
            label_selector: params.label_selector.clone(),
            field_selector: params.field_selector.clone(),
            resource_version: params.resource_version.clone(),
            send_initial_events: false,
            allow_bookmarks: true,
            timeout_seconds,
        };
        self.client.watch(request).await
    }

    fn parse(&self, bytes: &[u8]) -> Result<Value, ClientError> {
        serde_json::from_slice(bytes).map_err(|source| self.decode_error(source))
    }

    fn decode_error(&self, source: impl std::error::Error + Send + Sync + 'static) -> ClientError {
        ClientError::Decode { path: self.collection.clone(), source: Box::new(source) }
    }
}

fn name_of(object: &Value) -> &str {
    object["metadata"]["name"].as_str().unwrap_or_default()
}

/// Objects of one built-in kind.
pub struct Api<K> {
    dynamic: DynamicApi,
    kind: PhantomData<fn() -> K>,
}

impl<K> Clone for Api<K> {
    fn clone(&self) -> Self {
        Self { dynamic: self.dynamic.clone(), kind: PhantomData }
    }
}

impl<K: Kind> Api<K> {
    pub(crate) fn new(dynamic: DynamicApi) -> Self {
        Self { dynamic, kind: PhantomData }
    }

    /// The same objects as JSON, and every subresource.
    pub fn dynamic(&self) -> &DynamicApi {
        &self.dynamic
    }

    pub async fn get(&self, name: &str) -> Result<K, ClientError> {
        self.decode(&self.dynamic.get_bytes(name, "").await?)
    }

    pub async fn create(&self, object: &K) -> Result<K, ClientError> {
        self.decode(&self.dynamic.post_bytes("", "", object.encode()).await?)
    }

    /// Replaces the object of the same name; conflicts if its `resourceVersion` is not the stored one.
    pub async fn update(&self, object: &K) -> Result<K, ClientError> {
        self.decode(&self.dynamic.put_bytes(own_name(object), "", object.encode()).await?)
    }

    pub async fn update_status(&self, object: &K) -> Result<K, ClientError> {
        self.decode(&self.dynamic.put_bytes(own_name(object), "status", object.encode()).await?)
    }

    pub async fn patch(&self, name: &str, patch: &Patch) -> Result<K, ClientError> {
        self.decode(&self.dynamic.patch_bytes(name, "", patch).await?)
    }

    pub async fn patch_status(&self, name: &str, patch: &Patch) -> Result<K, ClientError> {
        self.decode(&self.dynamic.patch_bytes(name, "status", patch).await?)
    }

    pub async fn delete(&self, name: &str, options: &DeleteOptions) -> Result<(), ClientError> {
        self.dynamic.delete(name, options).await
    }

    pub async fn delete_collection(&self, options: &DeleteOptions, params: &ListParams) -> Result<(), ClientError> {
        self.dynamic.delete_collection(options, params).await
    }

    pub async fn list(&self, params: &ListParams) -> Result<List<K>, ClientError> {
        let page = self.dynamic.list(params).await?;
        let items = page.items.iter().map(|object| self.typed(object)).collect::<Result<_, _>>()?;
        Ok(List { items, resource_version: page.resource_version, continue_token: page.continue_token })
    }

    /// The scale subresource, `autoscaling/v1` Scale as JSON.
    pub async fn get_scale(&self, name: &str) -> Result<Value, ClientError> {
        self.dynamic.get_subresource(name, "scale").await
    }

    pub async fn update_scale(&self, name: &str, scale: &Value) -> Result<Value, ClientError> {
        self.dynamic.update_subresource(name, "scale", scale).await
    }

    /// Asks for a pod's eviction: a delete that respects disruption budgets (429 when it must wait).
    pub async fn evict(&self, namespace: &str, name: &str, options: &DeleteOptions) -> Result<(), ClientError> {
        let body = json!({
            "apiVersion": "policy/v1", "kind": "Eviction",
            "metadata": {"name": name, "namespace": namespace},
            "deleteOptions": options,
        });
        self.dynamic.post_bytes(name, "eviction", body.to_string()).await.map(drop)
    }

    /// Assigns a pod to a node, once. `uid` guards against a pod that took the name since.
    pub async fn bind(&self, namespace: &str, name: &str, uid: &str, node: &str) -> Result<(), ClientError> {
        let body = json!({
            "apiVersion": "v1", "kind": "Binding",
            "metadata": {"name": name, "namespace": namespace, "uid": uid},
            "target": {"apiVersion": "v1", "kind": "Node", "name": node},
        });
        self.dynamic.post_bytes(name, "binding", body.to_string()).await.map(drop)
    }

    /// A token of a service account; `spec` is that of `authentication.k8s.io/v1` TokenRequest.
    pub async fn create_token(&self, name: &str, spec: Value) -> Result<Value, ClientError> {
        let body = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": spec});
        self.dynamic.create_subresource(name, "token", &body).await
    }

    fn typed(&self, object: &StoredObject) -> Result<Arc<K>, ClientError> {
        object.typed().map_err(|source| self.dynamic.decode_error(source))
    }

    fn decode(&self, bytes: &[u8]) -> Result<K, ClientError> {
        K::decode(bytes).map_err(|source| self.dynamic.decode_error(source))
    }
}

fn own_name<K: Kind>(object: &K) -> &str {
    object.metadata().name.as_deref().unwrap_or_default()
}
