//! Names of container images, and what they say about pulling.
//!
//! Behaves as pkg/util/parsers/parsers.go with the grammar of github.com/distribution/reference, v1.36.

/// Without its domain.
const PATH_MAX: usize = 255;
const TAG_MAX: usize = 128;
/// An image's own identifier, which is no name.
const IDENTIFIER_HEX: usize = 64;
const DIGEST_HEX_MIN: usize = 32;

/// A name that keeps to the grammar: `[domain/]path[:tag][@digest]`.
#[derive(Debug, PartialEq, Eq)]
pub struct ImageName<'a> {
    pub tag: Option<&'a str>,
    pub digest: Option<&'a str>,
}

impl<'a> ImageName<'a> {
    /// `None` for what is no image name.
    pub fn parse(image: &'a str) -> Option<Self> {
        if image.len() == IDENTIFIER_HEX && image.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return None;
        }
        let (name, digest) = match image.split_once('@') {
            Some((name, digest)) => (name, Some(digest)),
            None => (image, None),
        };
        let (directory, last) = match name.rsplit_once('/') {
            Some((directory, last)) => (Some(directory), last),
            None => (None, name),
        };
        let (base, tag) = match last.split_once(':') {
            Some((base, tag)) => (base, Some(tag)),
            None => (last, None),
        };
        let good = is_path(directory, base) && tag.is_none_or(is_tag) && digest.is_none_or(is_digest);
        good.then_some(Self { tag, digest })
    }

    /// Whether it may mean another image tomorrow.
    pub fn moves(&self) -> bool {
        match self.tag {
            Some(tag) => tag == "latest",
            None => self.digest.is_none(),
        }
    }
}

/// A moving tag is pulled every time, a fixed one when it is missing; a name that cannot be parsed has no tag either.
pub fn default_pull_policy(image: &str) -> &'static str {
    if ImageName::parse(image).is_some_and(|name| name.moves()) { "Always" } else { "IfNotPresent" }
}

fn is_path(directory: Option<&str>, base: &str) -> bool {
    let Some(directory) = directory else {
        return is_component(base) && "library/".len() + base.len() <= PATH_MAX;
    };
    let (first, rest) = match directory.split_once('/') {
        Some((first, rest)) => (first, Some(rest)),
        None => (directory, None),
    };
    let is_domain =
        first.contains(['.', ':']) || first == "localhost" || first.bytes().any(|byte| byte.is_ascii_uppercase());
    let first_good = if is_domain { is_domain_name(first) } else { is_component(first) };
    let path = if is_domain { rest.map_or(0, |rest| rest.len() + 1) } else { directory.len() + 1 };
    path + base.len() <= PATH_MAX
        && first_good
        && rest.is_none_or(|rest| rest.split('/').all(is_component))
        && is_component(base)
}

fn is_domain_name(text: &str) -> bool {
    text.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b':' | b'[' | b']'))
}

fn is_component(text: &str) -> bool {
    text.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'.' | b'_' | b'-'))
        && text.starts_with(|first: char| first.is_ascii_alphanumeric())
        && text.ends_with(|last: char| last.is_ascii_alphanumeric())
}

fn is_tag(text: &str) -> bool {
    (1..=TAG_MAX).contains(&text.len())
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-'))
        && !text.starts_with(['.', '-'])
}

fn is_digest(text: &str) -> bool {
    text.split_once(':').is_some_and(|(algorithm, hex)| {
        !algorithm.is_empty() && hex.len() >= DIGEST_HEX_MIN && hex.bytes().all(|byte| byte.is_ascii_hexdigit())
    })
}

#[cfg(test)]
mod tests {
    use super::default_pull_policy;

    #[test]
    fn a_name_decides_how_often_it_is_pulled() {
        let digest = format!("a@sha256:{}", "0".repeat(64));
        let (identifier, long, longest) = ("0".repeat(64), "x".repeat(248), format!("reg:5000/{}", "x".repeat(255)));
        for (image, policy) in [
            ("busybox", "Always"),
            ("reg:5000/a/b", "Always"),
            ("a/b:latest", "Always"),
            ("a/b:1.0", "IfNotPresent"),
            ("localhost/a", "Always"),
            (digest.as_str(), "IfNotPresent"),
            ("", "IfNotPresent"),
            ("-Bad_", "IfNotPresent"),
            ("UPPER", "IfNotPresent"),
            ("a b", "IfNotPresent"),
            (identifier.as_str(), "IfNotPresent"),
            (format!("{identifier}:latest").as_str(), "Always"),
            (long.as_str(), "IfNotPresent"),
            (longest.as_str(), "Always"),
        ] {
            assert_eq!(default_pull_policy(image), policy, "{image}");
        }
    }
}
