//! What a request is about, read from its method and path before anything else looks at it.
//!
//! Behaves as `k8s.io/apiserver/pkg/endpoints/request/requestinfo.go`, v1.36.

use http::Method;
use percent_encoding::percent_decode_str;
use rkube_apimachinery::gvk::{GroupResource, GroupVersionResource};

use crate::query::Query;

const NAMESPACE_SUBRESOURCES: [&str; 2] = ["status", "finalize"];

/// A request as authorization, audit and routing see it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RequestInfo {
    /// About API objects, as opposed to a path like `/healthz`.
    pub is_resource: bool,
    pub path: String,
    /// The API verb (`get`, `list`, `watch`, ...), or the method in lower case.
    pub verb: &'static str,
    /// `api` or `apis`.
    pub prefix: String,
    pub group: String,
    pub version: String,
    pub namespace: String,
    pub resource: String,
    pub subresource: String,
    pub name: String,
    /// The path from the resource on: `pods`, `web`, `proxy`, `index.html`.
    pub parts: Vec<String>,
    pub field_selector: String,
    pub label_selector: String,
    /// `/api/v1/watch/...`, the old way to watch.
    pub watch_prefix: bool,
}

/// A path that cannot be understood.
#[derive(Debug, thiserror::Error)]
#[error("unable to determine kind and namespace from url, {0}")]
pub struct InvalidPath(String);

impl RequestInfo {
    pub fn new(method: &Method, uri: &http::Uri) -> Result<Self, InvalidPath> {
        let path = percent_decode_str(uri.path()).decode_utf8_lossy().into_owned();
        let mut info = Self { path, verb: lower_case(method), ..Self::default() };
        let trimmed = info.path.trim_matches('/');
        if trimmed.is_empty() {
            return Ok(info);
        }
        let parts: Vec<&str> = trimmed.split('/').collect();
        let mut rest = parts.as_slice();
        if rest.len() < 3 || !matches!(rest[0], "api" | "apis") {
            return Ok(info);
        }
        let prefix = rest[0].to_owned();
        rest = &rest[1..];
        let mut group = String::new();
        if prefix == "apis" {
            if rest.len() < 3 {
                info.prefix = prefix;
                return Ok(info);
            }
            rest[0].clone_into(&mut group);
            rest = &rest[1..];
        }
        let version = rest[0].to_owned();
        rest = &rest[1..];
        let Some(first) = rest.first() else { return Ok(info) };
        let mut watch_prefix = false;
        let mut verb = if matches!(*first, "watch" | "proxy") {
            if rest.len() < 2 {
                let shown = uri.path_and_query().map_or_else(|| uri.path().to_owned(), ToString::to_string);
                return Err(InvalidPath(shown));
            }
            watch_prefix = *first == "watch";
            rest = &rest[1..];
            if watch_prefix { "watch" } else { "proxy" }
        } else {
            match *method {
                Method::POST => "create",
                Method::GET | Method::HEAD => "get",
                Method::PUT => "update",
                Method::PATCH => "patch",
                Method::DELETE => "delete",
                _ => "",
            }
        };
        let verb_in_path = matches!(verb, "watch" | "proxy");
        let mut namespace = String::new();
        if rest[0] == "namespaces" && rest.len() > 1 {
            rest[1].clone_into(&mut namespace);
            if rest.len() > 2 && !NAMESPACE_SUBRESOURCES.contains(&rest[2]) {
                rest = &rest[2..];
            }
        }
        let owned: Vec<String> = rest.iter().map(|part| (*part).to_owned()).collect();
        let part = |index: usize| owned.get(index).cloned().unwrap_or_default();
        let (resource, mut name) = (part(0), part(1));
        let subresource = if verb_in_path && verb == "proxy" { String::new() } else { part(2) };
        let query = Query::of(uri);
        if name.is_empty() && verb == "get" {
            verb = if query.is_on("watch") { "watch" } else { "list" };
            if let Some(exact) = exact_name(query.get("fieldSelector").unwrap_or_default()) {
                name = exact;
            }
        }
        if name.is_empty() && verb == "delete" {
            verb = "deletecollection";
        }
        if !verb_in_path && matches!(verb, "list" | "watch" | "deletecollection") {
            info.field_selector = query.get("fieldSelector").unwrap_or_default().to_owned();
            info.label_selector = query.get("labelSelector").unwrap_or_default().to_owned();
        }
        Ok(Self {
            is_resource: true,
            verb,
            prefix,
            group,
            version,
            namespace,
            resource,
            subresource,
            name,
            parts: owned,
            watch_prefix,
            ..info
        })
    }

    pub fn gvr(&self) -> GroupVersionResource {
        GroupVersionResource::new(&*self.group, &*self.version, &*self.resource)
    }

    pub fn group_resource(&self) -> GroupResource {
        GroupResource::new(&*self.group, &*self.resource)
    }

    /// The name as it stands in the path, not as a field selector implies it.
    pub fn path_name(&self) -> &str {
        self.parts.get(1).map(String::as_str).unwrap_or_default()
    }

    /// What follows the subresource: the path asked of a proxied backend, without its leading slash.
    pub fn rest_of_path(&self) -> String {
        self.parts.get(3..).unwrap_or_default().join("/")
    }

    /// A request that lasts as long as its client wants, and so has no deadline and no place in flow control.
    pub fn is_long_running(&self) -> bool {
        self.is_resource
            && (matches!(self.verb, "watch" | "proxy")
                || matches!(self.subresource.as_str(), "attach" | "exec" | "proxy" | "log" | "portforward"))
    }

    pub fn is_read_only(&self) -> bool {
        matches!(self.verb, "get" | "list" | "watch" | "head" | "options")
    }
}

/// The name a field selector demands, where it is one that could stand in a path.
fn exact_name(selector: &str) -> Option<String> {
    let mut found = None;
    for term in selector.split(',') {
        if let Some((field, value)) = term.split_once('=')
            && field.trim() == "metadata.name"
        {
            let value = value.strip_prefix('=').unwrap_or(value).trim();
            found = Some(value.to_owned());
        }
    }
    found.filter(|name| !name.is_empty() && name != "." && name != ".." && !name.contains(['/', '%']))
}

fn lower_case(method: &Method) -> &'static str {
    match *method {
        Method::GET => "get",
        Method::HEAD => "head",
        Method::POST => "post",
        Method::PUT => "put",
        Method::PATCH => "patch",
        Method::DELETE => "delete",
        Method::OPTIONS => "options",
        Method::CONNECT => "connect",
        Method::TRACE => "trace",
        _ => "unknown",
    }
}

#[cfg(test)]
mod tests {
    use expect_test::expect;

    use super::*;

    fn check(requests: &str, expected: &expect_test::Expect) {
        let mut out = String::new();
        for line in requests.lines() {
            let (method, path) = line.trim().split_once(' ').expect("method and path");
            let method: Method = method.parse().expect("a method");
            let uri: http::Uri = path.parse().expect("a path");
            match RequestInfo::new(&method, &uri) {
                Err(error) => out.push_str(&format!("{error}\n")),
                Ok(info) if !info.is_resource => out.push_str(&format!("- {} {}\n", info.verb, info.path)),
                Ok(info) => out.push_str(&format!(
                    "{} {}/{} ns={} {} {} {}\n",
                    info.verb, info.group, info.version, info.namespace, info.resource, info.name, info.subresource
                )),
            }
        }
        expected.assert_eq(&out);
    }

    #[test]
    fn paths_are_understood_as_upstream_does() {
        check(
            "GET /\nGET /api\nGET /api/v1\nGET /apis/apps/v1\nGET /healthz/ping
             GET /api/v1/namespaces\nGET /api/v1/namespaces/other\nPUT /api/v1/namespaces/other/finalize
             GET /api/v1/namespaces/other/pods\nGET /api/v1/namespaces/other/pods/foo\nHEAD /api/v1/namespaces/other/pods/foo
             GET /api/v1/pods?watch=true\nGET /api/v1/pods?watch=1&fieldSelector=metadata.name%3Dfoo
             GET /api/v1/watch/pods\nGET /api/v1/watch/namespaces/other/pods/foo\nGET /api/v1/watch
             GET /api/v1/namespaces/other/pods/foo/proxy/a/b/c\nPOST /api/v1/namespaces/other/pods/foo/eviction
             DELETE /apis/apps/v1/namespaces/other/deployments\nDELETE /apis/apps/v1/namespaces/other/deployments/d
             PATCH /apis/apps/v1/namespaces/other/deployments/d/scale\nOPTIONS /api/v1/pods",
            &expect![[r#"
                - get /
                - get /api
                - get /api/v1
                - get /apis/apps/v1
                - get /healthz/ping
                list /v1 ns= namespaces  
                get /v1 ns=other namespaces other 
                update /v1 ns=other namespaces other finalize
                list /v1 ns=other pods  
                get /v1 ns=other pods foo 
                get /v1 ns=other pods foo 
                watch /v1 ns= pods  
                watch /v1 ns= pods foo 
                watch /v1 ns= pods  
                watch /v1 ns=other pods foo 
                unable to determine kind and namespace from url, /api/v1/watch
                get /v1 ns=other pods foo proxy
                create /v1 ns=other pods foo eviction
                deletecollection apps/v1 ns=other deployments  
                delete apps/v1 ns=other deployments d 
                patch apps/v1 ns=other deployments d scale
                 /v1 ns= pods  
            "#]],
        );
    }
}
