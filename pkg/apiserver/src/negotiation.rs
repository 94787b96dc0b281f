//! Which form the client wants the answer in, and which form its body has.
//!
//! Behaves as `k8s.io/apiserver/pkg/endpoints/handlers/negotiation`, v1.36.

use http::{HeaderMap, header};
use rkube_apimachinery::status::ApiStatus;
use rkube_codec::Media;

use crate::query::Query;

pub(crate) const JSON: &str = Media::Json.mime();

/// What to make of an object before it is encoded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Transform {
    #[default]
    None,
    /// `version` is `v1` or `v1beta1`, repeated in the answer.
    Table {
        version: &'static str,
    },
    PartialObjectMetadata {
        version: &'static str,
    },
    PartialObjectMetadataList {
        version: &'static str,
    },
}

/// What an endpoint can do.
#[derive(Clone, Copy)]
struct Endpoint {
    streams: bool,
    transforms: bool,
    protobuf: bool,
}

/// How to answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Output {
    pub encoding: Media,
    pub transform: Transform,
    pub pretty: bool,
}

impl Output {
    /// For answers to clients whose wishes cannot be met or are not known.
    pub fn plain() -> Self {
        Self::default()
    }

    /// Negotiates for an endpoint that serves objects. `streams` is for watches; without
    /// `protobuf` the kind has no such form, but its metadata has.
    ///
    /// # Errors
    /// 406, when nothing the client accepts is served.
    pub fn negotiate(headers: &HeaderMap, query: &Query<'_>, streams: bool, protobuf: bool) -> Result<Self, ApiStatus> {
        Self::choose(headers, query, Endpoint { streams, transforms: true, protobuf })
            .ok_or_else(|| not_acceptable(streams, protobuf))
    }

    /// Negotiates for an endpoint that serves only its own kind: errors, discovery, options.
    pub fn negotiate_plain(headers: &HeaderMap, query: &Query<'_>) -> Result<Self, ApiStatus> {
        Self::choose(headers, query, Endpoint { streams: false, transforms: false, protobuf: true })
            .ok_or_else(|| not_acceptable(false, true))
    }

    fn choose(headers: &HeaderMap, query: &Query<'_>, endpoint: Endpoint) -> Option<Self> {
        let pretty = is_pretty(headers, query);
        let accept = headers.get_all(header::ACCEPT);
        let joined: Vec<&str> = accept.iter().filter_map(|value| value.to_str().ok()).collect();
        if joined.iter().all(|value| value.trim().is_empty()) {
            return Some(Self { pretty, ..Self::default() });
        }
        for clause in parse_accept(&joined.join(",")) {
            for encoding in Media::ALL {
                // Upstream has no YAML streams.
                if (endpoint.streams && encoding == Media::Yaml) || !clause.covers(encoding.mime()) {
                    continue;
                }
                if let Some(transform) = clause.transform(encoding, endpoint.transforms) {
                    if encoding == Media::Protobuf && transform == Transform::None && !endpoint.protobuf {
                        continue;
                    }
                    let pretty = pretty || clause.parameter("pretty") == Some("1");
                    return Some(Self { encoding, transform, pretty });
                }
            }
        }
        None
    }

    pub fn content_type(self) -> &'static str {
        self.encoding.mime()
    }
}

/// One clause of an `Accept` header.
#[derive(Debug, PartialEq)]
pub struct Clause<'a> {
    kind: &'a str,
    subkind: &'a str,
    parameters: Vec<(&'a str, &'a str)>,
    quality: f32,
}

impl Clause<'_> {
    pub fn covers(&self, media_type: &str) -> bool {
        let Some((kind, subkind)) = media_type.split_once('/') else { return false };
        match (self.kind, self.subkind) {
            ("*", "*") => true,
            (own, "*") => own == kind,
            (own, own_sub) => own == kind && own_sub == subkind,
        }
    }

    pub fn parameter(&self, name: &str) -> Option<&str> {
        self.parameters.iter().rev().find(|(known, _)| *known == name).map(|(_, value)| *value)
    }

    /// `None` when the clause asks for something this endpoint or encoding does not have.
    fn transform(&self, encoding: Media, transforms: bool) -> Option<Transform> {
        if self.parameter("stream").is_some_and(|stream| !stream.is_empty() && stream != "watch") {
            return None;
        }
        if self.parameter("sv").is_some_and(|version| !version.is_empty()) {
            return None;
        }
        let (kind, group, version) = (self.parameter("as"), self.parameter("g"), self.parameter("v"));
        if kind.is_none() && group.is_none() && version.is_none() {
            return Some(Transform::None);
        }
        if !transforms || group != Some("meta.k8s.io") {
            return None;
        }
        let version = match version {
            Some("v1") => "v1",
            Some("v1beta1") => "v1beta1",
            _ => return None,
        };
        match (kind, encoding) {
            // Tables have no protobuf form.
            (Some("Table"), Media::Json | Media::Yaml) => Some(Transform::Table { version }),
            (Some("PartialObjectMetadata"), _) => Some(Transform::PartialObjectMetadata { version }),
            (Some("PartialObjectMetadataList"), _) => Some(Transform::PartialObjectMetadataList { version }),
            _ => None,
        }
    }
}

/// The clauses, best first. Clauses that are no media types are skipped.
pub fn parse_accept(header: &str) -> Vec<Clause<'_>> {
    let mut clauses: Vec<Clause<'_>> = header
        .split(',')
        .filter_map(|part| {
            let mut pieces = part.split(';').map(str::trim);
            let media_type = pieces.next()?;
            let (kind, subkind) = match media_type.split_once('/') {
                Some((kind, subkind)) => (kind.trim(), subkind.trim()),
                None if media_type == "*" => ("*", "*"),
                None => return None,
            };
            let mut clause = Clause { kind, subkind, parameters: Vec::new(), quality: 1.0 };
            for piece in pieces {
                let Some((name, value)) = piece.split_once('=') else { continue };
                let (name, value) = (name.trim(), value.trim().trim_matches('"'));
                if name == "q" {
                    clause.quality = value.parse().unwrap_or(1.0);
                } else {
                    clause.parameters.push((name, value));
                }
            }
            Some(clause)
        })
        .collect();
    // By quality, then by how specific they are; equal ones keep the client's order.
    clauses.sort_by(|a, b| {
        let rank = |clause: &Clause<'_>| (clause.kind != "*", clause.subkind != "*");
        b.quality.total_cmp(&a.quality).then_with(|| rank(b).cmp(&rank(a)))
    });
    clauses
}

/// Asked for in the query, or a person's client by its name.
pub fn is_pretty(headers: &HeaderMap, query: &Query<'_>) -> bool {
    if let Some(asked) = query.get("pretty").filter(|value| !value.is_empty()) {
        return matches!(asked, "1" | "t" | "T" | "true" | "TRUE" | "True");
    }
    let agent = headers.get(header::USER_AGENT).and_then(|value| value.to_str().ok()).unwrap_or_default();
    ["curl", "Wget", "Mozilla/5.0"].iter().any(|name| agent.starts_with(name))
}

fn not_acceptable(streams: bool, protobuf: bool) -> ApiStatus {
    let types = match (streams, protobuf) {
        (true, true) => "application/json;stream=watch, application/vnd.kubernetes.protobuf;stream=watch",
        (true, false) => "application/json;stream=watch",
        (false, true) => "application/json, application/yaml, application/vnd.kubernetes.protobuf",
        (false, false) => "application/json, application/yaml",
    };
    ApiStatus::not_acceptable(format!("only the following media types are accepted: {types}"))
}

/// The form of a request's body. A missing `Content-Type` is JSON.
///
/// # Errors
/// 415 for anything else.
pub fn body_encoding(headers: &HeaderMap, protobuf: bool) -> Result<Media, ApiStatus> {
    let Some(value) = headers.get(header::CONTENT_TYPE) else { return Ok(Media::Json) };
    let media_type = media_type(value.to_str().unwrap_or("?"));
    if media_type.is_empty() {
        return Ok(Media::Json);
    }
    let found = Media::ALL.into_iter().find(|encoding| media_type.eq_ignore_ascii_case(encoding.mime()));
    found.filter(|encoding| protobuf || *encoding != Media::Protobuf).ok_or_else(|| {
        let last = if protobuf { ", application/vnd.kubernetes.protobuf" } else { "" };
        ApiStatus::unsupported_media_type(format!(
            "the body of the request was in an unknown format - accepted media types include: application/json, application/yaml{last}"
        ))
    })
}

/// A media type without its parameters.
pub fn media_type(content_type: &str) -> &str {
    content_type.split(';').next().unwrap_or_default().trim()
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn negotiate(accept: &str, streams: bool) -> Result<Output, String> {
        let mut headers = HeaderMap::new();
        headers.insert(header::ACCEPT, HeaderValue::from_str(accept).unwrap());
        Output::negotiate(&headers, &Query::default(), streams, true).map_err(|status| status.message().to_owned())
    }

    #[test]
    fn kubectl_gets_its_table_and_others_their_objects() {
        let kubectl = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json;as=Table;v=v1beta1;g=meta.k8s.io,application/json";
        assert_eq!(negotiate(kubectl, false).unwrap().transform, Transform::Table { version: "v1" });
        let client_go = "application/vnd.kubernetes.protobuf,application/json";
        assert_eq!(negotiate(client_go, true).unwrap().encoding, Media::Protobuf);
        let metadata =
            "application/vnd.kubernetes.protobuf;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1,application/json";
        let output = negotiate(metadata, false).unwrap();
        assert_eq!(output.encoding, Media::Protobuf);
        assert_eq!(output.transform, Transform::PartialObjectMetadataList { version: "v1" });
        assert_eq!(negotiate("*/*", false).unwrap().encoding, Media::Json);
        assert_eq!(
            negotiate("text/html;q=0.9,application/yaml;q=0.5,application/*;q=0.4", false).unwrap().encoding,
            Media::Yaml
        );
    }

    #[test]
    fn what_is_not_served_is_refused_with_what_is() {
        assert_eq!(
            negotiate("text/plain", false).unwrap_err(),
            "only the following media types are accepted: application/json, application/yaml, application/vnd.kubernetes.protobuf"
        );
        assert!(negotiate("application/json;as=Table;v=v3;g=meta.k8s.io", false).is_err());
        assert!(negotiate("application/vnd.kubernetes.protobuf;as=Table;v=v1;g=meta.k8s.io", false).is_err());
        assert!(negotiate("application/yaml", true).unwrap_err().contains("stream=watch"));
    }
}
