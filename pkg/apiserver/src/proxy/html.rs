//! Makes a backend's links and redirects lead back through the proxy.
//!
//! Behaves as `k8s.io/apimachinery/pkg/util/proxy/transport.go`, v1.36: absolute paths and URLs of the backend
//! in HTML attributes that hold links, and in `Location`.

use http::{HeaderValue, Response, header};
use rkube_http::body::Body;

/// Pages larger than this are passed on as they are.
const PAGE_BYTES_MAX: usize = 4 * 1024 * 1024;
/// Attributes whose values are links.
const LINKS: [&str; 16] = [
    "action",
    "archive",
    "background",
    "cite",
    "classid",
    "codebase",
    "data",
    "formaction",
    "href",
    "icon",
    "longdesc",
    "manifest",
    "poster",
    "profile",
    "src",
    "usemap",
];

/// `prefix` is the path of the proxy, `host` the backend's `host:port`.
pub(super) async fn rewrite(response: Response<Body>, prefix: &str, host: &str) -> Response<Body> {
    let (mut head, body) = response.into_parts();
    if let Some(location) = head.headers.get(header::LOCATION).and_then(|value| value.to_str().ok())
        && let Some(changed) = link(location, prefix, host)
        && let Ok(value) = HeaderValue::from_str(&changed)
    {
        head.headers.insert(header::LOCATION, value);
    }
    let kind = head.headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let is_html = kind.split(';').next().is_some_and(|kind| kind.trim() == "text/html");
    if !is_html || head.headers.contains_key(header::CONTENT_ENCODING) {
        return Response::from_parts(head, body);
    }
    let length = head.headers.get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse::<usize>().ok());
    if length.is_none_or(|length| length > PAGE_BYTES_MAX) {
        return Response::from_parts(head, body);
    }
    match body.read(PAGE_BYTES_MAX).await {
        Ok(page) => {
            let changed = page_links(&String::from_utf8_lossy(&page), prefix, host);
            head.headers.remove(header::CONTENT_LENGTH);
            Response::from_parts(head, Body::from(changed))
        }
        Err(error) => {
            // The backend broke off: so does the answer.
            head.headers.remove(header::CONTENT_LENGTH);
            let broken = futures_util::stream::iter([Err(error.into())]);
            Response::from_parts(head, Body::stream(broken))
        }
    }
}

/// The link through the proxy; `None` for links that stay as they are.
fn link(target: &str, prefix: &str, host: &str) -> Option<String> {
    if target.starts_with("//") {
        return None;
    }
    if let Some(path) = target.strip_prefix('/') {
        let already = target.strip_prefix(prefix).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
        return (!already).then(|| format!("{prefix}/{path}"));
    }
    let rest = target.strip_prefix("http://").or_else(|| target.strip_prefix("https://"))?;
    let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
    (authority == host).then(|| format!("{prefix}/{path}"))
}

/// Changes the link attributes of all tags of a page.
fn page_links(page: &str, prefix: &str, host: &str) -> String {
    let mut out = String::with_capacity(page.len() + 256);
    let mut rest = page;
    while let Some(open) = rest.find('<') {
        let (text, tag) = rest.split_at(open);
        out.push_str(text);
        let Some(end) = tag.find('>') else {
            rest = tag;
            break;
        };
        let (tag, after) = tag.split_at(end + 1);
        out.push_str(&tag_links(tag, prefix, host));
        rest = after;
    }
    out.push_str(rest);
    out
}

fn tag_links(tag: &str, prefix: &str, host: &str) -> String {
    let mut out = String::with_capacity(tag.len() + prefix.len());
    let mut rest = tag;
    while let Some(equals) = rest.find('=') {
        let (before, after) = rest.split_at(equals);
        let name = before.trim_end().rsplit(|c: char| c.is_ascii_whitespace()).next().unwrap_or_default();
        let value = after.get(1..).unwrap_or_default();
        let spaces = value.len() - value.trim_start().len();
        let (gap, quoted) = value.split_at(spaces);
        out.push_str(before);
        out.push('=');
        out.push_str(gap);
        let Some(quote) = quoted.chars().next().filter(|quote| matches!(quote, '"' | '\'')) else {
            rest = quoted;
            continue;
        };
        let inner = quoted.get(1..).unwrap_or_default();
        let Some(close) = inner.find(quote) else {
            rest = quoted;
            break;
        };
        let (target, following) = inner.split_at(close);
        let is_link = LINKS.iter().any(|known| name.eq_ignore_ascii_case(known));
        let changed = if is_link { link(target, prefix, host) } else { None };
        out.push(quote);
        out.push_str(changed.as_deref().unwrap_or(target));
        out.push(quote);
        rest = following.get(1..).unwrap_or_default();
    }
    out.push_str(rest);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_lead_through_the_proxy() {
        let page = r#"<html><a href="/rewriteme">x = "/y"</a><img src='http://10.0.0.1:80/i.png' alt="/a"><a href="https://else.where/">"#;
        let expected = r#"<html><a href="/p/proxy/rewriteme">x = "/y"</a><img src='/p/proxy/i.png' alt="/a"><a href="https://else.where/">"#;
        assert_eq!(page_links(page, "/p/proxy", "10.0.0.1:80"), expected);
        assert_eq!(link("/p/proxy/a", "/p/proxy", "h"), None);
        assert_eq!(link("relative", "/p/proxy", "h"), None);
        assert_eq!(page_links("a < b <unclosed href=\"/", "/p", "h"), "a < b <unclosed href=\"/");
    }
}
