//! Which form a request has and which one its answer should have.
//!
//! Behaves as apiserver/pkg/endpoints/handlers/negotiation, v1.36.

use rkube_apimachinery::status::ApiStatus;

/// The forms an object has on the wire.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Media {
    #[default]
    Json,
    Yaml,
    Protobuf,
}

impl Media {
    /// In the order upstream prefers them.
    pub const ALL: [Self; 3] = [Self::Json, Self::Yaml, Self::Protobuf];

    pub fn mime(self) -> &'static str {
        match self {
            Self::Json => "application/json",
            Self::Yaml => "application/yaml",
            Self::Protobuf => "application/vnd.kubernetes.protobuf",
        }
    }

    /// The `Content-Type` of a watch in this form.
    pub fn stream_mime(self) -> &'static str {
        match self {
            Self::Json => "application/json",
            Self::Yaml => "application/yaml",
            Self::Protobuf => "application/vnd.kubernetes.protobuf;stream=watch",
        }
    }

    /// The form of a body by its `Content-Type`; JSON if there is none.
    ///
    /// # Errors
    /// 415 for anything else than the three.
    pub fn of_body(content_type: Option<&str>, supported: &[Self]) -> Result<Self, ApiStatus> {
        let Some(content_type) = content_type.filter(|text| !text.is_empty()) else { return Ok(Self::Json) };
        let essence = content_type.split(';').next().unwrap_or_default().trim();
        supported.iter().copied().find(|media| media.mime().eq_ignore_ascii_case(essence)).ok_or_else(|| {
            let names = names(supported);
            let text = "the body of the request was in an unknown format - accepted media types include";
            ApiStatus::unsupported_media_type(format!("{text}: {names}"))
        })
    }
}

fn names(supported: &[Media]) -> String {
    supported.iter().map(|media| media.mime()).collect::<Vec<_>>().join(", ")
}

/// What the answer should be instead of the object itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Transform {
    /// `as=Table`, in the version asked for.
    Table(MetaVersion),
    PartialObjectMetadata(MetaVersion),
    PartialObjectMetadataList(MetaVersion),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum MetaVersion {
    V1,
    V1Beta1,
}

impl MetaVersion {
    /// `meta.k8s.io/v1`.
    pub fn api_version(self) -> &'static str {
        match self {
            Self::V1 => "meta.k8s.io/v1",
            Self::V1Beta1 => "meta.k8s.io/v1beta1",
        }
    }
}

/// The chosen form of an answer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Accept {
    pub media: Media,
    pub transform: Option<Transform>,
    /// `pretty=1` in the media type, not the query parameter.
    pub pretty: bool,
    pub stream: bool,
    pub profile: String,
}

/// What an endpoint can answer with.
#[derive(Clone, Copy, Debug)]
pub struct Endpoint {
    pub media: &'static [Media],
    /// Whether tables and partial metadata may be asked for.
    pub transforms: bool,
    /// A watch: its form must be one that streams.
    pub streaming: bool,
}

impl Endpoint {
    /// Objects of a resource.
    pub const RESOURCE: Self = Self { media: &Media::ALL, transforms: true, streaming: false };
    /// A watch of them.
    pub const WATCH: Self = Self { media: &[Media::Json, Media::Protobuf], transforms: true, streaming: true };
    /// Custom resources, and everything else that has no protobuf form.
    pub const CUSTOM: Self = Self { media: &[Media::Json, Media::Yaml], transforms: true, streaming: false };
    pub const CUSTOM_WATCH: Self = Self { media: &[Media::Json], transforms: true, streaming: true };
    /// Status answers, discovery, options.
    pub const PLAIN: Self = Self { media: &Media::ALL, transforms: false, streaming: false };
}

/// One media range of an `Accept` header.
#[derive(Debug)]
struct Clause<'a> {
    kind: &'a str,
    subtype: &'a str,
    params: Vec<(String, &'a str)>,
    /// In thousandths.
    quality: u32,
}

/// Ranges with a better quality first; equal ones in the order they came.
fn clauses(header: &str) -> Vec<Clause<'_>> {
    let mut clauses: Vec<Clause<'_>> = header.split(',').filter_map(clause).collect();
    clauses.sort_by_key(|clause| std::cmp::Reverse(clause.quality));
    clauses
}

fn clause(text: &str) -> Option<Clause<'_>> {
    let mut parts = text.split(';');
    let range = parts.next()?.trim();
    let (kind, subtype) = match range.split_once('/') {
        Some((kind, subtype)) => (kind.trim(), subtype.trim()),
        // Some old clients send a lone star.
        None if range == "*" => ("*", "*"),
        None => return None,
    };
    let mut clause = Clause { kind, subtype, params: Vec::new(), quality: 1000 };
    for part in parts {
        let (name, value) = part.split_once('=').unwrap_or((part, ""));
        let (name, value) = (name.trim(), value.trim().trim_matches('"'));
        if name == "q" {
            let quality = value.parse::<f64>().unwrap_or(1.0).clamp(0.0, 1.0);
            #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "between 0 and 1000")]
            let thousandths = (quality * 1000.0) as u32;
            clause.quality = thousandths;
        } else {
            clause.params.push((name.to_owned(), value));
        }
    }
    Some(clause)
}

impl Accept {
    /// Chooses by the `Accept` header; JSON if there is none.
    ///
    /// # Errors
    /// 406 with the forms the endpoint has.
    pub fn negotiate(header: Option<&str>, endpoint: Endpoint) -> Result<Self, ApiStatus> {
        let Some(header) = header.filter(|text| !text.is_empty()) else {
            return Ok(Self { media: endpoint.media.first().copied().unwrap_or_default(), ..Self::default() });
        };
        for clause in clauses(header) {
            for media in endpoint.media {
                let (kind, subtype) = media.mime().split_once('/').unwrap_or_default();
                let fits = match (clause.kind, clause.subtype) {
                    ("*", "*") => true,
                    (wanted, "*") => wanted == kind,
                    (wanted, wanted_subtype) => wanted == kind && wanted_subtype == subtype,
                };
                if fits && let Some(accept) = options(&clause, *media, endpoint) {
                    return Ok(accept);
                }
            }
        }
        let names = names(endpoint.media);
        Err(ApiStatus::not_acceptable(format!("only the following media types are accepted: {names}")))
    }

    /// The `Content-Type` of the answer. A transformed answer repeats what was asked for.
    pub fn content_type(&self) -> String {
        let base = if self.stream { self.media.stream_mime() } else { self.media.mime() };
        let Some(transform) = self.transform else { return base.to_owned() };
        let (name, version) = match transform {
            Transform::Table(version) => ("Table", version),
            Transform::PartialObjectMetadata(version) => ("PartialObjectMetadata", version),
            Transform::PartialObjectMetadataList(version) => ("PartialObjectMetadataList", version),
        };
        let version = version.api_version().trim_start_matches("meta.k8s.io/");
        format!("{base};as={name};g=meta.k8s.io;v={version}")
    }
}

/// The clause's parameters, or `None` if the endpoint cannot follow them: the next clause is tried then.
fn options(clause: &Clause<'_>, media: Media, endpoint: Endpoint) -> Option<Accept> {
    let mut accept = Accept { media, stream: endpoint.streaming, ..Accept::default() };
    let (mut kind, mut group, mut version) = (None, "", "");
    for (name, value) in &clause.params {
        match name.as_str() {
            "as" => kind = Some(*value),
            "g" => group = value,
            "v" => version = value,
            "stream" if !value.is_empty() && *value != "watch" => return None,
            // No server version but our own is known.
            "sv" if !value.is_empty() => return None,
            "pretty" => accept.pretty = *value == "1",
            "profile" => (*value).clone_into(&mut accept.profile),
            _ => {}
        }
    }
    let Some(kind) = kind else {
        // A group or version without a kind is a transformation to nothing.
        return (group.is_empty() && version.is_empty()).then_some(accept);
    };
    let version = match version {
        "v1" => MetaVersion::V1,
        "v1beta1" => MetaVersion::V1Beta1,
        _ => return None,
    };
    if !endpoint.transforms || group != "meta.k8s.io" {
        return None;
    }
    accept.transform = Some(match kind {
        // Tables have no protobuf form.
        "Table" if media != Media::Protobuf => Transform::Table(version),
        "PartialObjectMetadata" => Transform::PartialObjectMetadata(version),
        "PartialObjectMetadataList" => Transform::PartialObjectMetadataList(version),
        _ => return None,
    });
    Some(accept)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(header: &str, endpoint: Endpoint, expected: &str) {
        let found = match Accept::negotiate(Some(header), endpoint) {
            Ok(accept) => accept.content_type(),
            Err(status) => format!("{} {}", status.code(), status.message()),
        };
        assert_eq!(found, expected, "{header}");
    }

    #[test]
    fn answers_are_negotiated_as_upstream_does() {
        check("", Endpoint::RESOURCE, "application/json");
        check("*/*", Endpoint::RESOURCE, "application/json");
        check("application/*", Endpoint::RESOURCE, "application/json");
        check(
            "application/vnd.kubernetes.protobuf,application/json",
            Endpoint::RESOURCE,
            "application/vnd.kubernetes.protobuf",
        );
        check("application/json;q=0.5,application/yaml", Endpoint::RESOURCE, "application/yaml");
        check("application/vnd.kubernetes.protobuf,application/json", Endpoint::CUSTOM, "application/json");
        check(
            "application/json;as=Table;v=v1;g=meta.k8s.io,application/json",
            Endpoint::RESOURCE,
            "application/json;as=Table;g=meta.k8s.io;v=v1",
        );
        check("application/json;as=Table;v=v2;g=meta.k8s.io,application/json", Endpoint::RESOURCE, "application/json");
        check(
            "application/vnd.kubernetes.protobuf;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1",
            Endpoint::RESOURCE,
            "application/vnd.kubernetes.protobuf;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1",
        );
        check(
            "application/vnd.kubernetes.protobuf;stream=watch",
            Endpoint::WATCH,
            "application/vnd.kubernetes.protobuf;stream=watch",
        );
        check(
            "text/html",
            Endpoint::RESOURCE,
            "406 only the following media types are accepted: application/json, application/yaml, \
             application/vnd.kubernetes.protobuf",
        );
    }

    #[test]
    fn bodies_are_one_of_three() {
        assert_eq!(Media::of_body(None, &Media::ALL), Ok(Media::Json));
        assert_eq!(Media::of_body(Some("application/json; charset=utf-8"), &Media::ALL), Ok(Media::Json));
        assert_eq!(Media::of_body(Some("application/yaml"), &Media::ALL), Ok(Media::Yaml));
        let refused = Media::of_body(Some("text/plain"), &Media::ALL).expect_err("not a media type of ours");
        assert_eq!(
            (refused.code(), refused.message()),
            (
                415,
                "the body of the request was in an unknown format - accepted media types include: \
                 application/json, application/yaml, application/vnd.kubernetes.protobuf"
            )
        );
    }
}
