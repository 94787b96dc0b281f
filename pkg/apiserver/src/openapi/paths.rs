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

/// What an operation is about.
struct Subject<'a> {
    row: &'a Resource,
    /// Empty for the resource itself.
    subresource: &'a str,
    /// What is sent and answered.
    gvk: GroupVersionKind,
}

impl<'a> Subject<'a> {
    fn of(row: &'a Resource) -> Self {
        Self { row, subresource: "", gvk: row.gvk() }
    }

    fn sub(row: &'a Resource, sub: &'a Subresource) -> Self {
        let gvk = GroupVersionKind::new(sub.group.as_ref(), sub.version.as_ref(), sub.kind.as_ref());
        Self { row, subresource: &sub.name, gvk }
    }

    /// What an operation does, in the words of `apiserver/pkg/endpoints/installer.go`.
    fn description(&self, action: &str, method: &str) -> String {
        let kind = &self.row.kind;
        let of = match self.subresource {
            "" => String::new(),
            sub => format!("{sub} of "),
        };
        let article = article(kind);
        match action {
            "list" if self.row.has_verb("watch") => format!("list or watch objects of kind {kind}"),
            "list" => format!("list objects of kind {kind}"),
            "get" => format!("read {of}the specified {kind}"),
            "put" => format!("replace {of}the specified {kind}"),
            "patch" => format!("partially update {of}the specified {kind}"),
            "post" => format!("create {of}{article}{kind}"),
            "delete" => format!("delete {of}{article}{kind}"),
            "deletecollection" => format!("delete collection of {kind}"),
            _ => format!("{action} {} requests to {of}{kind}", method.to_uppercase()),
        }
    }
}

/// With the space after it. What ends like a plural has none.
fn article(kind: &str) -> &'static str {
    if kind.ends_with('s') && !kind.ends_with("ss") {
        ""
    } else if kind.starts_with(['A', 'E', 'I', 'O', 'U']) {
        "an "
    } else {
        "a "
    }
}

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
        let subject = Subject::of(row);
        if row.namespaced && row.has_verb("list") {
            let id = format!("list{prefix}{kind}ForAllNamespaces");
            let mut item = Map::new();
            item.insert("get".to_owned(), self.list(&subject, &id));
            self.put(into, format!("{base}/{}", row.plural), item, false, None);
        }
        let mut item = Map::new();
        if row.has_verb("list") {
            item.insert("get".to_owned(), self.list(&subject, &format!("list{prefix}{scope}{kind}")));
        }
        if row.has_verb("create") {
            let id = format!("create{prefix}{scope}{kind}");
            item.insert("post".to_owned(), self.write(&subject, &id, "post", &WRITE_PARAMETERS));
        }
        if row.has_verb("deletecollection") {
            let id = format!("delete{prefix}Collection{scope}{kind}");
            item.insert("delete".to_owned(), self.delete(&subject, &id, "deletecollection"));
        }
        self.put(into, collection.clone(), item, row.namespaced, None);
        let mut item = Map::new();
        self.object_operations(&subject, &row.verbs, &format!("{prefix}{scope}{kind}"), &mut item);
        if row.has_verb("delete") {
            let id = format!("delete{prefix}{scope}{kind}");
            item.insert("delete".to_owned(), self.delete(&subject, &id, "delete"));
        }
        self.put(into, format!("{collection}/{{name}}"), item, row.namespaced, Some(kind));
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
        let subject = Subject::sub(row, sub);
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
                    item.insert(method.to_owned(), self.operation(&subject, &id, ("connect", method), text, "200"));
                }
            }
        } else {
            self.object_operations(&subject, &sub.verbs, id, &mut item);
            if sub.verbs.iter().any(|verb| verb == "create") {
                let id = format!("create{id}");
                item.insert("post".to_owned(), self.write(&subject, &id, "post", &WRITE_PARAMETERS));
            }
        }
        self.put(into, format!("{collection}/{{name}}/{}", sub.name), item, row.namespaced, Some(&sub.kind));
    }

    /// GET, PUT and PATCH of one object.
    fn object_operations(
        &mut self,
        subject: &Subject<'_>,
        verbs: &[std::borrow::Cow<'static, str>],
        id: &str,
        item: &mut Map<String, Value>,
    ) {
        let has = |verb: &str| verbs.iter().any(|known| known == verb);
        if has("get") {
            let body = self.kind(&subject.gvk);
            let id = format!("read{id}");
            item.insert("get".to_owned(), self.operation(subject, &id, ("get", "get"), body, "200"));
        }
        if has("update") {
            let operation = self.write(subject, &format!("replace{id}"), "put", &WRITE_PARAMETERS);
            item.insert("put".to_owned(), operation);
        }
        if has("patch") {
            item.insert("patch".to_owned(), self.patch(subject, &format!("patch{id}")));
        }
    }

    fn kind(&mut self, gvk: &GroupVersionKind) -> Value {
        match rkube_api::type_of(gvk) {
            Some(ty) => self.definitions.reference(ty),
            None => json!({"type": "object"}),
        }
    }

    fn list(&mut self, subject: &Subject<'_>, id: &str) -> Value {
        let row = subject.row;
        let list = GroupVersionKind::new(row.group.as_ref(), row.version.as_ref(), format!("{}List", row.kind));
        let body = self.kind(&list);
        let mut operation = self.operation(subject, id, ("list", "get"), body, "200");
        self.parameters(&mut operation, &LIST_PARAMETERS);
        operation
    }

    fn write(&mut self, subject: &Subject<'_>, id: &str, action: &str, parameters: &[(&str, &str)]) -> Value {
        let body = self.kind(&subject.gvk);
        let code = if action == "post" { "201" } else { "200" };
        let mut operation = self.operation(subject, id, (action, action), body.clone(), code);
        self.parameters(&mut operation, parameters);
        self.body(&mut operation, body, &["*/*"], true);
        operation
    }

    fn patch(&mut self, subject: &Subject<'_>, id: &str) -> Value {
        let body = self.kind(&subject.gvk);
        let mut operation = self.operation(subject, id, ("patch", "patch"), body, "200");
        self.parameters(&mut operation, &PATCH_PARAMETERS);
        let patch = self.definitions.reference_named(&format!("{META}Patch"));
        self.body(&mut operation, patch, &PATCH_TYPES, true);
        operation
    }

    fn delete(&mut self, subject: &Subject<'_>, id: &str, action: &str) -> Value {
        let status = self.definitions.reference_named(&format!("{META}Status"));
        let mut operation = self.operation(subject, id, (action, "delete"), status, "200");
        self.parameters(&mut operation, &DELETE_PARAMETERS);
        let options = self.definitions.reference_named(&format!("{META}DeleteOptions"));
        self.body(&mut operation, options, &["*/*"], false);
        operation
    }

    fn operation(
        &mut self,
        subject: &Subject<'_>,
        id: &str,
        (action, method): (&str, &str),
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
        let gvk = &subject.gvk;
        let mut operation = json!({
            "description": subject.description(action, method),
            "operationId": id,
            "responses": {code: answer, "401": {"description": "Unauthorized"}},
            "tags": [tag(subject.row)],
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

    /// Adds a path with the parameters all its operations share. `named`: the kind that a name in the path is of.
    fn put(
        &self,
        into: &mut Map<String, Value>,
        path: String,
        mut item: Map<String, Value>,
        namespaced: bool,
        named: Option<&str>,
    ) {
        if item.is_empty() {
            return;
        }
        let mut parameters = Vec::new();
        if let Some(kind) = named {
            let mut name = self.parameter("path", "name", "string");
            name["description"] = json!(format!("name of the {kind}"));
            parameters.push(name);
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
