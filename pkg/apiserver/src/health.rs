//! `/livez`, `/readyz` and `/healthz` with named checks.
//!
//! Behaves as `k8s.io/apiserver/pkg/server/healthz/healthz.go`, v1.36: failures do not say why to the public.

use std::fmt::Write as _;
use std::sync::Arc;

use http::{HeaderValue, Response, StatusCode, header};
use rkube_apimachinery::quote::quote;
use rkube_http::body::Body;
use tracing::debug;

use crate::query::Query;

/// A named check. The error's text goes to the log.
#[derive(Clone)]
pub struct Check {
    pub name: String,
    /// `livez`, `readyz`, `healthz`: where the check takes part.
    pub endpoints: &'static [&'static str],
    check: Arc<dyn Fn() -> Result<(), String> + Send + Sync>,
}

pub const EVERYWHERE: &[&str] = &["livez", "readyz", "healthz"];
pub const READINESS: &[&str] = &["readyz"];

impl Check {
    pub fn new(
        name: impl Into<String>,
        endpoints: &'static [&'static str],
        check: impl Fn() -> Result<(), String> + Send + Sync + 'static,
    ) -> Self {
        Self { name: name.into(), endpoints, check: Arc::new(check) }
    }

    /// The check that always passes: the process answers.
    pub fn ping() -> Self {
        Self::new("ping", EVERYWHERE, || Ok(()))
    }
}

/// All checks of a server.
#[derive(Clone, Default)]
pub struct Checks(Vec<Check>);

impl Checks {
    pub fn new(checks: Vec<Check>) -> Self {
        Self(checks)
    }

    /// Whether every check of an endpoint passes.
    pub fn passes(&self, endpoint: &str) -> bool {
        self.of(endpoint).all(|check| (check.check)().is_ok())
    }

    fn of<'a>(&'a self, endpoint: &'a str) -> impl Iterator<Item = &'a Check> {
        self.0.iter().filter(move |check| check.endpoints.contains(&endpoint))
    }

    /// Answers `/readyz` and `/readyz/<check>`; `None` for other paths.
    pub fn answer(&self, path: &str, query: &Query<'_>) -> Option<Response<Body>> {
        let path = path.strip_prefix('/')?.trim_end_matches('/');
        let (endpoint, name) = path.split_once('/').unwrap_or((path, ""));
        if !EVERYWHERE.contains(&endpoint) {
            return None;
        }
        if name.is_empty() {
            return Some(self.all(endpoint, query));
        }
        let check = self.of(endpoint).find(|check| check.name == name)?;
        Some(match (check.check)() {
            Ok(()) => text(StatusCode::OK, "ok".to_owned()),
            Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, format!("internal server error: {error}\n")),
        })
    }

    fn all(&self, endpoint: &str, query: &Query<'_>) -> Response<Body> {
        let excluded: Vec<&str> = query.all("exclude").collect();
        let mut out = String::new();
        let mut failed = false;
        for check in self.of(endpoint) {
            // Writing to a string cannot fail.
            if excluded.contains(&check.name.as_str()) {
                let _ = writeln!(out, "[+]{} excluded: ok", check.name);
                continue;
            }
            match (check.check)() {
                Ok(()) => {
                    let _ = writeln!(out, "[+]{} ok", check.name);
                }
                Err(error) => {
                    failed = true;
                    debug!(endpoint, check = check.name, error, "Health check failed");
                    let _ = writeln!(out, "[-]{} failed: reason withheld", check.name);
                }
            }
        }
        let unknown: Vec<String> = excluded
            .iter()
            .filter(|name| !self.of(endpoint).any(|check| check.name == **name))
            .map(|name| quote(name).to_string())
            .collect();
        if !unknown.is_empty() {
            let _ = writeln!(out, "warn: some health checks cannot be excluded: no matches for {}", unknown.join(","));
        }
        if failed {
            let _ = writeln!(out, "{endpoint} check failed");
            return text(StatusCode::INTERNAL_SERVER_ERROR, out);
        }
        if query.get("verbose").is_none() {
            return text(StatusCode::OK, "ok".to_owned());
        }
        let _ = writeln!(out, "{endpoint} check passed");
        text(StatusCode::OK, out)
    }
}

/// Plain text that browsers take as such.
pub(crate) fn text(status: StatusCode, body: String) -> Response<Body> {
    let mut response = Response::new(Body::from(body));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn ask(checks: &Checks, path: &str, query: &str) -> Option<(u16, String)> {
        let response = checks.answer(path, &Query::parse(query))?;
        let status = response.status().as_u16();
        let body = response.into_body().read(4096).await.unwrap();
        Some((status, String::from_utf8(body.to_vec()).unwrap()))
    }

    #[tokio::test]
    async fn failing_checks_are_named_but_not_explained() {
        let secret = Check::new("etcd", READINESS, || Err("password wrong".to_owned()));
        let checks = Checks::new(vec![Check::ping(), secret]);
        assert_eq!(ask(&checks, "/livez", "").await, Some((200, "ok".to_owned())));
        let failed = "[+]ping ok\n[-]etcd failed: reason withheld\nreadyz check failed\n";
        assert_eq!(ask(&checks, "/readyz", "").await, Some((500, failed.to_owned())));
        let excluded = "[+]ping ok\n[+]etcd excluded: ok\nreadyz check passed\n";
        assert_eq!(ask(&checks, "/readyz", "verbose&exclude=etcd").await, Some((200, excluded.to_owned())));
        assert_eq!(ask(&checks, "/readyz/ping", "").await, Some((200, "ok".to_owned())));
        assert_eq!(ask(&checks, "/livez/etcd", "").await, None);
        assert_eq!(ask(&checks, "/metrics", "").await, None);
    }
}
