//! Paths and operations, written from the resource table.

use rkube_api::resource::{Resource, Subresource};
use rkube_apimachinery::gvk::GroupVersionKind;
use serde_json::{Map, Value, json};

use super::schemas::{Definitions, Dialect};

const META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.";
const LIST_PARAMETERS: [(&str, &str); 10] = [
    ("allowWatchBookmarks", "boolean"),
    ("continue", "string"),
    ("fieldSelector", "string"),
    ("labelSelector", "string"),
    ("limit", "integer"),
    ("resourceVersion", "string"),
    ("resourceVersionMatch", "string"),
    ("sendInitialEvents", "boolean"),
    ("timeoutSeconds", "integer"),
    ("watch", "boolean"),
];
const WRITE_PARAMETERS: [(&str, &str); 3] =
    [("dryRun", "string"), ("fieldManager", "string"), ("fieldValidation", "string")];
const PATCH_PARAMETERS: [(&str, &str); 4] =
    [("dryRun", "string"), ("fieldManager", "string"), ("fieldValidation", "string"), ("force", "boolean")];
const DELETE_PARAMETERS: [(&str, &str); 5] = [
    ("dryRun", "string"),
    ("gracePeriodSeconds", "integer"),
    ("ignoreStoreReadErrorWithClusterBreakingPotential", "boolean"),
    ("orphanDependents", "boolean"),
    ("propagationPolicy", "string"),
];
const PATCH_TYPES: [&str; 4] = [
    "application/apply-patch+yaml",
    "application/json-patch+json",
    "application/merge-patch+json",
    "application/strategic-merge-patch+json",
];
const MEDIA_TYPES: [&str; 3] = ["application/json", "application/vnd.kubernetes.protobuf", "application/yaml"];

/// Streams and proxies: no objects.
const CONNECTED: [&str; 4] = ["attach", "exec", "portforward", "proxy"];

/// Writes the operations of resources.
pub(super) struct Paths<'a> {
    pub(super) dialect: Dialect,
    pub(super) definitions: &'a mut Definitions,
}

impl Paths<'_> {
    /// Adds every path of a row.
    pub(super) fn add(&mut self, row: &Resource, into: &mut Map<String, Value>) {
        let base = if row.group.is_empty() {
            format!("/api/{}", row.version)
        } else {
            format!("/apis/{}/{}", row.group, row.version)
        };
        let scoped = if row.namespaced { format!("{base}/namespaces/{{namespace}}") } else { base.clone() };
        let collection = format!("{scoped}/{}", row.plural);
        let prefix = id_prefix(row);
        let scope = if row.namespaced { "Namespaced" } else { "" };
        let kind = &row.kind;
        if row.namespaced && row.has_verb("list") {
            let id = format!("list{prefix}{kind}ForAllNamespaces");
            let mut item = Map::new();
            item.insert("get".to_owned(), self.list(row, &id));
            self.put(into, format!("{base}/{}", row.plural), item, false, false);
        }
        let mut item = Map::new();
        if row.has_verb("list") {
            item.insert("get".to_owned(), self.list(row, &format!("list{prefix}{scope}{kind}")));
        }
        if row.has_verb("create") {
            let id = format!("create{prefix}{scope}{kind}");
            item.insert("post".to_owned(), self.write(row, &row.gvk(), &id, "post", &WRITE_PARAMETERS));
        }
        if row.has_verb("deletecollection") {
            let id = format!("delete{prefix}Collection{scope}{kind}");
            item.insert("delete".to_owned(), self.delete(row, &id, "deletecollection"));
        }
        self.put(into, collection.clone(), item, row.namespaced, false);
        let mut item = Map::new();
        self.object_operations(row, &row.gvk(), &row.verbs, &format!("{prefix}{scope}{kind}"), &mut item);
        if row.has_verb("delete") {
            let id = format!("delete{prefix}{scope}{kind}");
            item.insert("delete".to_owned(), self.delete(row, &id, "delete"));
        }
        self.put(into, format!("{collection}/{{name}}"), item, row.namespaced, true);
        for sub in row.subresources.iter() {
            self.subresource(row, sub, &format!("{prefix}{scope}{kind}{}", title(&sub.name)), &collection, into);
        }
    }

    fn subresource(
        &mut self,
        row: &Resource,
        sub: &Subresource,
        id: &str,
        collection: &str,
        into: &mut Map<String, Value>,
    ) {
        let gvk = GroupVersionKind::new(sub.group.as_ref(), sub.version.as_ref(), sub.kind.as_ref());
        let mut item = Map::new();
        if CONNECTED.contains(&sub.name.as_ref()) {
            for (verb, method) in
                [("get", "get"), ("create", "post"), ("update", "put"), ("patch", "patch"), ("delete", "delete")]
            {
                if sub.verbs.iter().any(|known| known == verb) {
                    // The operation's name has the method in it, before the scope.
                    let (prefix, rest) = id.split_at(id_prefix(row).len());
                    let id = format!("connect{prefix}{}{rest}", title(method));
                    let text = json!({"type": "string"});
                    item.insert(method.to_owned(), self.operation(row, &gvk, &id, "connect", text, "200"));
                }
            }
        } else {
            self.object_operations(row, &gvk, &sub.verbs, id, &mut item);
            if sub.verbs.iter().any(|verb| verb == "create") {
                let id = format!("create{id}");
                item.insert("post".to_owned(), self.write(row, &gvk, &id, "post", &WRITE_PARAMETERS));
            }
        }
        self.put(into, format!("{collection}/{{name}}/{}", sub.name), item, row.namespaced, true);
    }

    /// GET, PUT and PATCH of one object.
    fn object_operations(
        &mut self,
        row: &Resource,
        gvk: &GroupVersionKind,
        verbs: &[std::borrow::Cow<'static, str>],
        id: &str,
        item: &mut Map<String, Value>,
    ) {
        let has = |verb: &str| verbs.iter().any(|known| known == verb);
        if has("get") {
            let body = self.kind(gvk);
            item.insert("get".to_owned(), self.operation(row, gvk, &format!("read{id}"), "get", body, "200"));
        }
        if has("update") {
            let operation = self.write(row, gvk, &format!("replace{id}"), "put", &WRITE_PARAMETERS);
            item.insert("put".to_owned(), operation);
        }
        if has("patch") {
            item.insert("patch".to_owned(), self.patch(row, gvk, &format!("patch{id}")));
        }
    }

    fn kind(&mut self, gvk: &GroupVersionKind) -> Value {
        match rkube_api::type_of(gvk) {
            Some(ty) => self.definitions.reference(ty),
            None => json!({"type": "object"}),
        }
    }

    fn list(&mut self, row: &Resource, id: &str) -> Value {
        let list = GroupVersionKind::new(row.group.as_ref(), row.version.as_ref(), format!("{}List", row.kind));
        let body = self.kind(&list);
        let mut operation = self.operation(row, &row.gvk(), id, "list", body, "200");
        self.parameters(&mut operation, &LIST_PARAMETERS);
        operation
    }

    fn write(
        &mut self,
        row: &Resource,
        gvk: &GroupVersionKind,
        id: &str,
        action: &str,
        parameters: &[(&str, &str)],
    ) -> Value {
        let body = self.kind(gvk);
        let code = if action == "post" { "201" } else { "200" };
        let mut operation = self.operation(row, gvk, id, action, body.clone(), code);
        self.parameters(&mut operation, parameters);
        self.body(&mut operation, body, &["*/*"], true);
        operation
    }

    fn patch(&mut self, row: &Resource, gvk: &GroupVersionKind, id: &str) -> Value {
        let body = self.kind(gvk);
        let mut operation = self.operation(row, gvk, id, "patch", body, "200");
        self.parameters(&mut operation, &PATCH_PARAMETERS);
        let patch = self.definitions.reference_named(&format!("{META}Patch"));
        self.body(&mut operation, patch, &PATCH_TYPES, true);
        operation
    }

    fn delete(&mut self, row: &Resource, id: &str, action: &str) -> Value {
        let status = self.definitions.reference_named(&format!("{META}Status"));
        let mut operation = self.operation(row, &row.gvk(), id, action, status, "200");
        self.parameters(&mut operation, &DELETE_PARAMETERS);
        let options = self.definitions.reference_named(&format!("{META}DeleteOptions"));
        self.body(&mut operation, options, &["*/*"], false);
        operation
    }

    fn operation(
        &mut self,
        row: &Resource,
        gvk: &GroupVersionKind,
        id: &str,
        action: &str,
        body: Value,
        code: &str,
    ) -> Value {
        let answer = match self.dialect {
            Dialect::V2 => json!({"description": "OK", "schema": body}),
            Dialect::V3 => {
                let content: Map<String, Value> =
                    MEDIA_TYPES.iter().map(|media| ((*media).to_owned(), json!({"schema": body}))).collect();
                json!({"description": "OK", "content": content})
            }
        };
        let mut operation = json!({
            "operationId": id,
            "responses": {code: answer, "401": {"description": "Unauthorized"}},
            "tags": [tag(row)],
            "x-kubernetes-action": action,
            "x-kubernetes-group-version-kind": {"group": gvk.group, "version": gvk.version, "kind": gvk.kind},
        });
        if self.dialect == Dialect::V2 {
            operation["schemes"] = json!(["https"]);
            operation["produces"] = json!(MEDIA_TYPES);
            operation["consumes"] = json!(if action == "patch" { PATCH_TYPES.as_slice() } else { &["*/*"] });
        }
        operation
    }

    fn parameters(&self, operation: &mut Value, parameters: &[(&str, &str)]) {
        let list: Vec<Value> = parameters.iter().map(|(name, kind)| self.parameter("query", name, kind)).collect();
        operation["parameters"] = Value::Array(list);
    }

    fn parameter(&self, place: &str, name: &str, kind: &str) -> Value {
        let mut parameter = match self.dialect {
            Dialect::V2 => json!({"in": place, "name": name, "type": kind, "uniqueItems": true}),
            Dialect::V3 => json!({"in": place, "name": name, "schema": {"type": kind, "uniqueItems": true}}),
        };
        if place == "path" {
            parameter["required"] = json!(true);
        }
        parameter
    }

    fn body(&self, operation: &mut Value, schema: Value, media: &[&str], required: bool) {
        match self.dialect {
            Dialect::V2 => {
                let mut parameter = json!({"in": "body", "name": "body", "schema": schema});
                if required {
                    parameter["required"] = json!(true);
                }
                match operation["parameters"].as_array_mut() {
                    Some(parameters) => parameters.push(parameter),
                    None => operation["parameters"] = json!([parameter]),
                }
            }
            Dialect::V3 => {
                let content: Map<String, Value> =
                    media.iter().map(|media| ((*media).to_owned(), json!({"schema": schema}))).collect();
                let mut body = json!({"content": content});
                if required {
                    body["required"] = json!(true);
                }
                operation["requestBody"] = body;
            }
        }
    }

    /// Adds a path with the parameters all its operations share.
    fn put(
        &self,
        into: &mut Map<String, Value>,
        path: String,
        mut item: Map<String, Value>,
        namespaced: bool,
        named: bool,
    ) {
        if item.is_empty() {
            return;
        }
        let mut parameters = Vec::new();
        if named {
            parameters.push(self.parameter("path", "name", "string"));
        }
        if namespaced {
            parameters.push(self.parameter("path", "namespace", "string"));
        }
        parameters.push(self.parameter("query", "pretty", "string"));
        item.insert("parameters".to_owned(), Value::Array(parameters));
        into.insert(path, Value::Object(item));
    }
}

/// `AppsV1`, `CoreV1`: what operation ids begin with after their verb.
fn id_prefix(row: &Resource) -> String {
    format!("{}{}", title(group_name(row)), title(&row.version))
}

fn tag(row: &Resource) -> String {
    let group = group_name(row);
    let mut name = String::with_capacity(group.len());
    let mut upper = false;
    for character in group.chars() {
        match character {
            '.' | '-' => upper = true,
            other if upper => {
                name.extend(other.to_uppercase());
                upper = false;
            }
            other => name.push(other),
        }
    }
    format!("{name}_{}", row.version)
}

fn group_name(row: &Resource) -> &str {
    if row.group.is_empty() { "core" } else { row.group.strip_suffix(".k8s.io").unwrap_or(&row.group) }
}

/// `rbac.authorization` becomes `RbacAuthorization`.
fn title(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut upper = true;
    for character in text.chars() {
        if matches!(character, '.' | '-') {
            upper = true;
        } else if upper {
            out.extend(character.to_uppercase());
            upper = false;
        } else {
            out.push(character);
        }
    }
    out
}
