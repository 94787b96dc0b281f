//! The fake server's objects and history, and what each request does to them.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use http::request::Parts;
use http::{Method, StatusCode};
use rkube_api::StoredObject;
use rkube_api::object::Selection;
use rkube_api::resource::Resource;
use rkube_apimachinery::clock::SharedClock;
use rkube_apimachinery::gvk::GroupResource;
use rkube_apimachinery::key::ObjectKey;
use rkube_apimachinery::labels::Selector;
use rkube_apimachinery::status::{ApiStatus, OPTIMISTIC_LOCK, Reason};
use serde_json::{Map, Value, json};

use super::patch;
use super::request::Target;
use crate::transport::{ClientError, WatchEvent, WatchRequest};

/// Group and plural; versions share their objects.
type Collection = (String, String);
type Answer = Result<(StatusCode, Value), ClientError>;

pub(super) struct State {
    clock: SharedClock,
    pub(super) revision: u64,
    pub(super) requests: u64,
    pub(super) watch_epoch: u64,
    pub(super) graceful_pods: bool,
    pub(super) raw: BTreeMap<String, Value>,
    objects: BTreeMap<Collection, BTreeMap<ObjectKey, Arc<StoredObject>>>,
    /// Changes in order, starting at index `forgotten`.
    log: Vec<Change>,
    forgotten: u64,
    compacted_revision: u64,
    next_id: u64,
}

struct Change {
    collection: Collection,
    old: Option<Arc<StoredObject>>,
    /// For a deletion the last state at the revision of the deletion.
    new: Arc<StoredObject>,
    deleted: bool,
}

/// Which objects a list or watch wants.
pub(super) struct Filter {
    collection: Collection,
    namespace: String,
    labels: Selector,
    /// Path, value, and whether it must be equal.
    fields: Vec<(String, String, bool)>,
}

impl Filter {
    pub(super) fn new(resource: &Resource, namespace: &str, labels: &str, fields: &str) -> Result<Self, ClientError> {
        let labels = Selector::parse(labels).map_err(|error| ApiStatus::bad_request(error.to_string()))?;
        let parse = |term: &str| {
            let (path, value, equal) = match term.split_once("!=") {
                Some((path, value)) => (path, value, false),
                None => term.split_once('=').map(|(path, value)| (path, value.trim_start_matches('='), true))?,
            };
            Some((path.to_owned(), value.to_owned(), equal))
        };
        let fields = fields.split(',').filter_map(parse).collect();
        let collection = (resource.group.to_string(), resource.plural.to_string());
        Ok(Self { collection, namespace: namespace.to_owned(), labels, fields })
    }

    fn matches(&self, object: &StoredObject) -> bool {
        if !self.namespace.is_empty() && *object.key.namespace != *self.namespace {
            return false;
        }
        if !self.labels.matches(&object.selection.labels) {
            return false;
        }
        if self.fields.is_empty() {
            return true;
        }
        let value = object.value().unwrap_or_default();
        self.fields.iter().all(|(path, wanted, equal)| {
            let found = path.split('.').try_fold(&value, |value, name| value.get(name));
            let text = match found {
                Some(Value::String(text)) => text.clone(),
                Some(Value::Null) | None => String::new(),
                Some(other) => other.to_string(),
            };
            (text == *wanted) == *equal
        })
    }
}

pub(super) fn stored_from(value: &Value) -> Arc<StoredObject> {
    let metadata = &value["metadata"];
    let text = |name: &str| metadata[name].as_str().unwrap_or_default();
    let mut labels: Vec<(String, String)> = metadata["labels"]
        .as_object()
        .into_iter()
        .flatten()
        .map(|(key, value)| (key.clone(), value.as_str().unwrap_or_default().to_owned()))
        .collect();
    labels.sort();
    let selection = Selection { uid: text("uid").to_owned(), labels, fields: Vec::new() };
    let revision = text("resourceVersion").parse().unwrap_or(0);
    let key = ObjectKey::new(text("namespace"), text("name"));
    Arc::new(StoredObject::new(key, revision, Bytes::from(value.to_string()), selection))
}

impl State {
    pub(super) fn new(clock: SharedClock) -> Self {
        Self {
            clock,
            revision: 1,
            requests: 0,
            watch_epoch: 0,
            graceful_pods: false,
            raw: BTreeMap::new(),
            objects: BTreeMap::new(),
            log: Vec::new(),
            forgotten: 0,
            compacted_revision: 0,
            next_id: 0,
        }
    }

    pub(super) fn get(&self, group: &str, plural: &str, key: &ObjectKey) -> Option<Arc<StoredObject>> {
        self.objects.get(&(group.to_owned(), plural.to_owned()))?.get(key).cloned()
    }

    pub(super) fn list(&self, group: &str, plural: &str) -> Vec<Arc<StoredObject>> {
        let collection = self.objects.get(&(group.to_owned(), plural.to_owned()));
        collection.into_iter().flat_map(BTreeMap::values).cloned().collect()
    }

    pub(super) fn select(&self, filter: &Filter) -> Vec<Arc<StoredObject>> {
        let collection = self.objects.get(&filter.collection);
        collection.into_iter().flat_map(BTreeMap::values).filter(|object| filter.matches(object)).cloned().collect()
    }

    pub(super) fn put(&mut self, plural: &str, mut object: Value) {
        let group = group_of(&object);
        let key = key_of(&object);
        let existing = self.get(&group, plural, &key).and_then(|stored| stored.value().ok());
        self.complete(&mut object, existing.as_ref());
        self.commit((group, plural.to_owned()), object);
    }

    /// Metadata that every stored object has.
    fn complete(&mut self, object: &mut Value, existing: Option<&Value>) {
        self.next_id += 1;
        let uid = format!("00000000-0000-4000-8000-{:012}", self.next_id);
        let now = self.clock.now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
        let metadata = &mut object["metadata"];
        let old = existing.map(|existing| &existing["metadata"]);
        let mut default = |name: &str, fresh: Value| {
            if metadata[name].is_null() {
                metadata[name] = old.map(|old| old[name].clone()).filter(|old| !old.is_null()).unwrap_or(fresh);
            }
        };
        default("uid", uid.into());
        default("creationTimestamp", now.into());
        default("generation", 1.into());
    }

    /// Stores `object` at a new revision and tells watchers.
    fn commit(&mut self, collection: Collection, mut object: Value) -> Value {
        self.revision += 1;
        object["metadata"]["resourceVersion"] = self.revision.to_string().into();
        let stored = stored_from(&object);
        let objects = self.objects.entry(collection.clone()).or_default();
        let old = objects.insert(stored.key.clone(), Arc::clone(&stored));
        self.log.push(Change { collection, old, new: stored, deleted: false });
        object
    }

    pub(super) fn remove(&mut self, group: &str, plural: &str, key: &ObjectKey) {
        let collection = (group.to_owned(), plural.to_owned());
        let Some(old) = self.objects.get_mut(&collection).and_then(|objects| objects.remove(key)) else { return };
        self.revision += 1;
        let mut last = old.value().unwrap_or_default();
        last["metadata"]["resourceVersion"] = self.revision.to_string().into();
        self.log.push(Change { collection, old: Some(old), new: stored_from(&last), deleted: true });
    }

    pub(super) fn finish_deletions(&mut self) {
        let terminating = self.list("", "pods").into_iter().filter(|pod| {
            let value = pod.value().unwrap_or_default();
            let metadata = &value["metadata"];
            !metadata["deletionTimestamp"].is_null() && metadata["finalizers"].as_array().is_none_or(Vec::is_empty)
        });
        for pod in terminating.collect::<Vec<_>>() {
            self.remove("", "pods", &pod.key);
        }
    }

    pub(super) fn compact(&mut self) {
        self.forgotten += self.log.len() as u64;
        self.log.clear();
        self.compacted_revision = self.revision;
    }

    /// Initial events, where in the log to go on, and the watch epoch.
    pub(super) fn start_watch(
        &self,
        request: &WatchRequest,
        filter: &Filter,
    ) -> Result<(Vec<WatchEvent>, u64, u64), ClientError> {
        let end = self.forgotten + self.log.len() as u64;
        if request.send_initial_events {
            let mut events: Vec<_> = self.select(filter).into_iter().map(WatchEvent::Added).collect();
            let resource_version = self.revision.to_string();
            events.push(WatchEvent::Bookmark { resource_version, initial_events_end: true });
            return Ok((events, end, self.watch_epoch));
        }
        let from: u64 = request.resource_version.parse().unwrap_or(0);
        if from < self.compacted_revision {
            return Err(expired(from, self.compacted_revision).into());
        }
        let seen = self.log.iter().take_while(|change| change.new.revision <= from).count();
        Ok((Vec::new(), self.forgotten + seen as u64, self.watch_epoch))
    }

    pub(super) fn next_event(&self, filter: &Filter, position: &mut u64) -> Result<Option<WatchEvent>, ApiStatus> {
        let Some(start) = position.checked_sub(self.forgotten) else {
            return Err(expired(*position, self.compacted_revision));
        };
        for change in self.log.iter().skip(usize::try_from(start).unwrap_or(usize::MAX)) {
            *position += 1;
            if change.collection != filter.collection {
                continue;
            }
            let was = change.old.as_ref().is_some_and(|old| filter.matches(old));
            let is = !change.deleted && filter.matches(&change.new);
            let object = Arc::clone(&change.new);
            match (was, is) {
                (false, true) => return Ok(Some(WatchEvent::Added(object))),
                (true, true) => return Ok(Some(WatchEvent::Modified(object))),
                (true, false) => return Ok(Some(WatchEvent::Deleted(object))),
                (false, false) => {}
            }
        }
        Ok(None)
    }

    pub(super) fn serve(&mut self, parts: &Parts, target: &Target, body: &[u8]) -> Answer {
        if target.plural.is_empty() || self.raw.contains_key(parts.uri.path()) {
            let answer = self.raw.get(parts.uri.path()).cloned().or_else(|| discovery(parts.uri.path()));
            let missing = || ApiStatus::failure(Reason::NotFound, "the server could not find the requested resource");
            return Ok((StatusCode::OK, answer.ok_or_else(missing)?));
        }
        let body: Value = if body.is_empty() {
            Value::Null
        } else {
            serde_json::from_slice(body).map_err(|error| ApiStatus::bad_request(error.to_string()))?
        };
        match (&parts.method, target.subresource.as_str()) {
            (&Method::GET, "") => Ok((StatusCode::OK, self.existing(target)?)),
            (&Method::GET, "scale") => Ok((StatusCode::OK, scale_of(&self.existing(target)?))),
            (&Method::GET, _) => Ok((StatusCode::OK, self.existing(target)?)),
            (&Method::POST, "") => self.create(target, body),
            (&Method::POST, "eviction") => self.delete(target, &body["deleteOptions"]),
            (&Method::POST, "binding") => self.bind(target, &body),
            (&Method::POST, "token") => {
                let mut answer = body;
                answer["status"] = json!({"token": format!("token-of-{}", target.name)});
                Ok((StatusCode::CREATED, answer))
            }
            (&Method::PUT, _) => self.update(target, body),
            (&Method::PATCH, _) => self.patch(parts, target, &body),
            (&Method::DELETE, "") if target.name.is_empty() => self.delete_collection(parts, target, &body),
            (&Method::DELETE, "") => self.delete(target, &body),
            _ => Err(ApiStatus::method_not_supported(&resource_of(target), parts.method.as_str()).into()),
        }
    }

    fn existing(&self, target: &Target) -> Result<Value, ClientError> {
        let key = ObjectKey::new(target.namespace.as_str(), target.name.as_str());
        let stored = self.get(&target.group, &target.plural, &key);
        let value = stored.and_then(|stored| stored.value().ok());
        value.ok_or_else(|| ApiStatus::not_found(&resource_of(target), &target.name).into())
    }

    fn create(&mut self, target: &Target, mut object: Value) -> Answer {
        if let Some(fields) = object.as_object_mut() {
            fields.remove("status");
        }
        if target.plural == "pods" {
            object["status"] = json!({"phase": "Pending"});
        }
        let metadata = &mut object["metadata"];
        if !target.namespace.is_empty() {
            metadata["namespace"] = target.namespace.clone().into();
        }
        if metadata["name"].as_str().unwrap_or_default().is_empty() {
            self.next_id += 1;
            let base: String = metadata["generateName"].as_str().unwrap_or_default().chars().take(58).collect();
            metadata["name"] = format!("{base}{:05}", self.next_id).into();
        }
        for name in ["uid", "resourceVersion", "creationTimestamp", "generation", "deletionTimestamp"] {
            if let Some(fields) = metadata.as_object_mut() {
                fields.remove(name);
            }
        }
        let key = key_of(&object);
        if self.get(&target.group, &target.plural, &key).is_some() {
            return Err(ApiStatus::already_exists(&resource_of(target), &key.name).into());
        }
        self.complete(&mut object, None);
        let stored = self.commit(collection_of(target), object);
        Ok((StatusCode::CREATED, stored))
    }

    fn update(&mut self, target: &Target, object: Value) -> Answer {
        let existing = self.existing(target)?;
        if target.subresource == "scale" {
            let mut wanted = existing.clone();
            wanted["spec"]["replicas"] = object["spec"]["replicas"].clone();
            check_version(target, &existing, &object)?;
            let (code, stored) = self.replace(target, "", existing, wanted)?;
            return Ok((code, scale_of(&stored)));
        }
        check_version(target, &existing, &object)?;
        self.replace(target, &target.subresource, existing, object)
    }

    /// Writes `wanted` over `existing`, as far as the subresource may change it.
    fn replace(&mut self, target: &Target, subresource: &str, existing: Value, mut wanted: Value) -> Answer {
        match subresource {
            "status" => {
                let (status, metadata) = (wanted["status"].take(), wanted["metadata"].take());
                wanted = existing.clone();
                wanted["status"] = status;
                for name in ["labels", "annotations"] {
                    wanted["metadata"][name] = metadata[name].clone();
                }
            }
            "finalize" => {
                let finalizers = wanted["spec"]["finalizers"].take();
                wanted = existing.clone();
                wanted["spec"]["finalizers"] = finalizers;
            }
            "approval" => {}
            _ if existing.get("status").is_some() => wanted["status"] = existing["status"].clone(),
            _ => drop(wanted.as_object_mut().map(|fields| fields.remove("status"))),
        }
        for name in
            ["uid", "creationTimestamp", "generation", "resourceVersion", "deletionTimestamp", "name", "namespace"]
        {
            wanted["metadata"][name] = existing["metadata"][name].clone();
        }
        drop_empty(&mut wanted["metadata"]);
        if wanted.get("status").is_some_and(Value::is_null) {
            wanted.as_object_mut().map(|fields| fields.remove("status"));
        }
        if wanted == existing {
            return Ok((StatusCode::OK, existing));
        }
        if wanted.get("spec") != existing.get("spec") {
            let generation = existing["metadata"]["generation"].as_i64().unwrap_or(0);
            wanted["metadata"]["generation"] = (generation + 1).into();
        }
        let metadata = &wanted["metadata"];
        let held = metadata["finalizers"].as_array().is_some_and(|list| !list.is_empty())
            || (target.plural == "namespaces"
                && wanted["spec"]["finalizers"].as_array().is_some_and(|l| !l.is_empty()));
        let waits = self.graceful_pods && target.plural == "pods" && metadata["deletionGracePeriodSeconds"] != 0;
        if !metadata["deletionTimestamp"].is_null() && !held && !waits {
            self.remove(&target.group, &target.plural, &key_of(&wanted));
            return Ok((StatusCode::OK, wanted));
        }
        Ok((StatusCode::OK, self.commit(collection_of(target), wanted)))
    }

    fn patch(&mut self, parts: &Parts, target: &Target, body: &Value) -> Answer {
        let content_type = parts.headers.get(http::header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
        let existing = match self.existing(target) {
            Err(error) if error.is_not_found() && content_type == Some("application/apply-patch+yaml") => {
                let mut object = body.clone();
                object["metadata"]["name"] = target.name.clone().into();
                return self.create(target, object);
            }
            result => result?,
        };
        let mut wanted = existing.clone();
        match content_type {
            Some("application/json-patch+json") => patch::json(&mut wanted, body)?,
            Some("application/merge-patch+json") => patch::merge(&mut wanted, body),
            _ => patch::strategic(&mut wanted, body),
        }
        if wanted["metadata"]["uid"] != existing["metadata"]["uid"] {
            let text = format!(
                "Precondition failed: UID in precondition: {}, UID in object meta: {}",
                wanted["metadata"]["uid"].as_str().unwrap_or_default(),
                existing["metadata"]["uid"].as_str().unwrap_or_default(),
            );
            return Err(ApiStatus::conflict(&resource_of(target), &target.name, &text).into());
        }
        check_version(target, &existing, &wanted)?;
        if target.subresource == "scale" {
            return self.replace(target, "", existing, wanted);
        }
        self.replace(target, &target.subresource, existing, wanted)
    }

    fn bind(&mut self, target: &Target, binding: &Value) -> Answer {
        let mut pod = self.existing(target)?;
        if pod["spec"]["nodeName"].as_str().is_some_and(|node| !node.is_empty()) {
            let text = format!("pod {} is already assigned to node {}", target.name, pod["spec"]["nodeName"]);
            return Err(ApiStatus::conflict(&resource_of(target), &target.name, &text).into());
        }
        pod["spec"]["nodeName"] = binding["target"]["name"].clone();
        let scheduled = json!({"conditions": [{"type": "PodScheduled", "status": "True"}]});
        patch::strategic(&mut pod["status"], &scheduled);
        self.commit(collection_of(target), pod);
        Ok((StatusCode::CREATED, json!({"kind": "Status", "apiVersion": "v1", "status": "Success"})))
    }

    fn delete_collection(&mut self, parts: &Parts, target: &Target, options: &Value) -> Answer {
        let query = parts.uri.query().unwrap_or_default();
        let parameter = |name: &str| {
            let found = query.split('&').find_map(|pair| pair.strip_prefix(name)?.strip_prefix('='));
            found.map(|text| percent_encoding::percent_decode_str(text).decode_utf8_lossy().into_owned())
        };
        let labels = parameter("labelSelector").unwrap_or_default();
        let fields = parameter("fieldSelector").unwrap_or_default();
        let selector = Selector::parse(&labels).map_err(|error| ApiStatus::bad_request(error.to_string()))?;
        let mut filter = Filter {
            collection: collection_of(target),
            namespace: target.namespace.clone(),
            labels: selector,
            fields: Vec::new(),
        };
        filter.fields = fields
            .split(',')
            .filter_map(|term| term.split_once('='))
            .map(|(path, value)| (path.to_owned(), value.to_owned(), true))
            .collect();
        for object in self.select(&filter) {
            let one = Target {
                namespace: object.key.namespace.to_string(),
                name: object.key.name.to_string(),
                ..target.clone()
            };
            self.delete(&one, options)?;
        }
        Ok((StatusCode::OK, json!({"kind": "Status", "apiVersion": "v1", "status": "Success"})))
    }

    fn delete(&mut self, target: &Target, options: &Value) -> Answer {
        let existing = self.existing(target)?;
        let metadata = &existing["metadata"];
        for (name, label) in [("uid", "UID"), ("resourceVersion", "ResourceVersion")] {
            let wanted = &options["preconditions"][name];
            if !wanted.is_null() && *wanted != metadata[name] {
                let (wanted, found) =
                    (wanted.as_str().unwrap_or_default(), metadata[name].as_str().unwrap_or_default());
                let text =
                    format!("Precondition failed: {label} in precondition: {wanted}, {label} in object meta: {found}");
                return Err(ApiStatus::conflict(&resource_of(target), &target.name, &text).into());
            }
        }
        let mut wanted = existing.clone();
        let mut finalizers: Vec<Value> = metadata["finalizers"].as_array().cloned().unwrap_or_default();
        let policy = match options["propagationPolicy"].as_str() {
            Some("Foreground") => Some("foregroundDeletion"),
            Some("Orphan") => Some("orphan"),
            _ => None,
        };
        if options.get("propagationPolicy").is_some() {
            finalizers.retain(|finalizer| finalizer != "foregroundDeletion" && finalizer != "orphan");
        }
        finalizers.extend(policy.map(Value::from));
        let is_pod = target.plural == "pods";
        let grace = options["gracePeriodSeconds"]
            .as_i64()
            .or_else(|| existing["spec"]["terminationGracePeriodSeconds"].as_i64())
            .unwrap_or(30);
        let bound = existing["spec"]["nodeName"].as_str().is_some_and(|node| !node.is_empty());
        let finished = matches!(existing["status"]["phase"].as_str(), Some("Succeeded" | "Failed"));
        let waits = self.graceful_pods && is_pod && bound && !finished && grace > 0;
        let holds_namespace = target.plural == "namespaces"
            && existing["spec"]["finalizers"].as_array().is_some_and(|list| !list.is_empty());
        if finalizers.is_empty() && !waits && !holds_namespace {
            self.remove(&target.group, &target.plural, &key_of(&existing));
            return Ok((StatusCode::OK, existing));
        }
        wanted["metadata"]["finalizers"] = finalizers.into();
        drop_empty(&mut wanted["metadata"]);
        if metadata["deletionTimestamp"].is_null() {
            let now = self.clock.now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
            wanted["metadata"]["deletionTimestamp"] = now.into();
            wanted["metadata"]["deletionGracePeriodSeconds"] = if waits { grace } else { 0 }.into();
            if holds_namespace {
                wanted["status"]["phase"] = "Terminating".into();
            }
        }
        if wanted == existing {
            return Ok((StatusCode::OK, existing));
        }
        Ok((StatusCode::OK, self.commit(collection_of(target), wanted)))
    }
}

/// The resources of a group, by version.
type Versions<'a> = Vec<(&'a str, Vec<Value>)>;

/// The built-in resources as aggregated discovery tells them.
fn discovery(path: &str) -> Option<Value> {
    let core = match path {
        "/api" => true,
        "/apis" => false,
        _ => return None,
    };
    let mut groups: Vec<(&str, Versions<'_>)> = Vec::new();
    for row in rkube_api::resources().iter().filter(|row| row.group.is_empty() == core) {
        let resource = json!({
            "resource": row.plural, "singularResource": row.singular, "verbs": row.verbs,
            "scope": if row.namespaced { "Namespaced" } else { "Cluster" },
            "responseKind": {"group": row.group, "version": row.version, "kind": row.kind},
        });
        let group = match groups.iter().position(|(name, _)| *name == row.group) {
            Some(index) => index,
            None => {
                groups.push((row.group.as_ref(), Vec::new()));
                groups.len() - 1
            }
        };
        let versions = &mut groups[group].1;
        match versions.iter_mut().find(|(name, _)| *name == row.version) {
            Some((_, resources)) => resources.push(resource),
            None => versions.push((row.version.as_ref(), vec![resource])),
        }
    }
    let items = groups.into_iter().map(|(name, versions)| {
        let versions = versions.into_iter();
        let versions: Vec<Value> = versions
            .map(|(version, resources)| json!({"version": version, "freshness": "Current", "resources": resources}))
            .collect();
        json!({"metadata": {"name": name}, "versions": versions})
    });
    let kind = "APIGroupDiscoveryList";
    Some(json!({"apiVersion": "apidiscovery.k8s.io/v2", "kind": kind, "items": items.collect::<Vec<_>>()}))
}

fn expired(from: u64, oldest: u64) -> ApiStatus {
    ApiStatus::expired(format!("too old resource version: {from} ({oldest})"))
}

fn check_version(target: &Target, existing: &Value, wanted: &Value) -> Result<(), ClientError> {
    let found = &existing["metadata"]["resourceVersion"];
    let asked = &wanted["metadata"]["resourceVersion"];
    if asked.as_str().is_some_and(|version| !version.is_empty()) && asked != found {
        return Err(ApiStatus::conflict(&resource_of(target), &target.name, OPTIMISTIC_LOCK).into());
    }
    let (found, asked) = (&existing["metadata"]["uid"], &wanted["metadata"]["uid"]);
    if asked.as_str().is_some_and(|uid| !uid.is_empty()) && asked != found {
        let text = format!("Precondition failed: UID in precondition: {asked}, UID in object meta: {found}");
        return Err(ApiStatus::conflict(&resource_of(target), &target.name, &text).into());
    }
    Ok(())
}

fn scale_of(object: &Value) -> Value {
    let metadata = &object["metadata"];
    let labels = object["spec"]["selector"]["matchLabels"].as_object().cloned().unwrap_or_default();
    let selector: Vec<String> =
        labels.iter().map(|(key, value)| format!("{key}={}", value.as_str().unwrap_or_default())).collect();
    json!({
        "apiVersion": "autoscaling/v1", "kind": "Scale",
        "metadata": {
            "name": metadata["name"], "namespace": metadata["namespace"],
            "uid": metadata["uid"], "resourceVersion": metadata["resourceVersion"],
        },
        "spec": {"replicas": object["spec"]["replicas"]},
        "status": {"replicas": object["status"]["replicas"].as_i64().unwrap_or(0), "selector": selector.join(",")},
    })
}

fn resource_of(target: &Target) -> GroupResource {
    GroupResource::new(target.group.as_str(), target.plural.as_str())
}

fn collection_of(target: &Target) -> Collection {
    (target.group.clone(), target.plural.clone())
}

fn group_of(object: &Value) -> String {
    let api_version = object["apiVersion"].as_str().unwrap_or_default();
    api_version.split_once('/').map(|(group, _)| group.to_owned()).unwrap_or_default()
}

fn key_of(object: &Value) -> ObjectKey {
    let text = |name: &str| object["metadata"][name].as_str().unwrap_or_default();
    ObjectKey::new(text("namespace"), text("name"))
}

/// Null and empty metadata fields do not exist.
fn drop_empty(metadata: &mut Value) {
    let Some(fields) = metadata.as_object_mut() else { return };
    let empty = |value: &Value| {
        value.is_null() || value.as_array().is_some_and(Vec::is_empty) || value.as_object().is_some_and(Map::is_empty)
    };
    fields.retain(|_, value| !empty(value));
}
