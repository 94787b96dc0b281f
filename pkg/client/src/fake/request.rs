//! What a request asks for, from its path, and how it is recorded.

use std::fmt;

use bytes::Bytes;
use http::request::Parts;
use rkube_api::resource::Resource;
use serde_json::Value;

/// A resource path taken apart.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Target {
    pub(super) group: String,
    pub(super) plural: String,
    pub(super) namespace: String,
    pub(super) name: String,
    pub(super) subresource: String,
}

impl Target {
    /// An empty plural for paths that are not of resources.
    pub(super) fn parse(path: &str) -> Self {
        let decoded: Vec<String> = path
            .trim_matches('/')
            .split('/')
            .map(|segment| percent_encoding::percent_decode_str(segment).decode_utf8_lossy().into_owned())
            .collect();
        let segments: Vec<&str> = decoded.iter().map(String::as_str).collect();
        let (group, rest) = match segments.as_slice() {
            ["api", _version, rest @ ..] => ("", rest),
            ["apis", group, _version, rest @ ..] => (*group, rest),
            _ => return Self::default(),
        };
        let (namespace, rest) = match rest {
            ["namespaces", _, "status" | "finalize"] | ["namespaces"] | ["namespaces", _] => ("", rest),
            ["namespaces", namespace, rest @ ..] => (*namespace, rest),
            rest => ("", rest),
        };
        let part = |index: usize| rest.get(index).copied().unwrap_or_default().to_owned();
        Self {
            group: group.to_owned(),
            plural: part(0),
            namespace: namespace.to_owned(),
            name: part(1),
            subresource: rest.get(2..).map(|tail| tail.join("/")).unwrap_or_default(),
        }
    }
}

/// A request as it was made.
#[derive(Clone, Debug, PartialEq)]
pub struct Action {
    /// `get list watch create update patch delete deletecollection`.
    pub verb: &'static str,
    pub group: String,
    /// With the subresource: `pods/status`.
    pub resource: String,
    pub namespace: String,
    /// For creations the name in the body, or its `generateName` with a star.
    pub name: String,
    pub body: Value,
}

impl Action {
    pub(super) fn new(parts: &Parts, target: &Target, body: &Bytes) -> Self {
        let verb = match (parts.method.as_str(), target.name.is_empty()) {
            ("GET", _) => "get",
            ("POST", _) => "create",
            ("PUT", _) => "update",
            ("PATCH", _) => "patch",
            ("DELETE", true) => "deletecollection",
            ("DELETE", false) => "delete",
            _ => "other",
        };
        let body: Value = serde_json::from_slice(body).unwrap_or_default();
        let metadata = &body["metadata"];
        let name = if !target.name.is_empty() {
            target.name.clone()
        } else if let Some(name) = metadata["name"].as_str() {
            name.to_owned()
        } else {
            metadata["generateName"].as_str().map(|base| format!("{base}*")).unwrap_or_default()
        };
        let mut resource = target.plural.clone();
        if resource.is_empty() {
            resource = parts.uri.path().to_owned();
        }
        if !target.subresource.is_empty() {
            resource = format!("{resource}/{}", target.subresource);
        }
        Self { verb, group: target.group.clone(), resource, namespace: target.namespace.clone(), name, body }
    }

    pub(super) fn collection(verb: &'static str, resource: &Resource, namespace: &str) -> Self {
        Self {
            verb,
            group: resource.group.to_string(),
            resource: resource.plural.to_string(),
            namespace: namespace.to_owned(),
            name: String::new(),
            body: Value::Null,
        }
    }

    pub fn is_write(&self) -> bool {
        !matches!(self.verb, "get" | "list" | "watch")
    }
}

/// `create pods ns/name`.
impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.verb, self.resource)?;
        match (self.namespace.is_empty(), self.name.is_empty()) {
            (true, true) => Ok(()),
            (true, false) => write!(f, " {}", self.name),
            (false, _) => write!(f, " {}/{}", self.namespace, self.name),
        }
    }
}
