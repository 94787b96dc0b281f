//! Who answers a request that passed the chain: resources, discovery, health, metrics, documents.

use std::sync::Arc;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use rkube_apimachinery::status::{ApiStatus, Reason};
use rkube_http::body::Body;
use serde_json::json;

use crate::discovery::{aggregated, legacy};
use crate::health;
use crate::metrics;
use crate::negotiation::Output;
use crate::resources;
use crate::respond;
use crate::scope::Scope;
use crate::server::{Extension, ExtensionRequest, GIT_VERSION, Inner};

impl Inner {
    pub(crate) fn answer(self: Arc<Self>, scope: Scope, request: Request<Body>) -> BoxFuture<'static, Response<Body>> {
        Box::pin(async move {
            let passed = ExtensionRequest { request, user: scope.user.clone(), info: scope.info.clone() };
            let request = match ask(self.extensions.before.clone(), passed).await {
                Ok(response) => return response,
                Err(back) => back.request,
            };
            self.answer_itself(scope, request).await
        })
    }

    async fn answer_itself(self: Arc<Self>, scope: Scope, request: Request<Body>) -> Response<Body> {
        let passed = |request| ExtensionRequest { request, user: scope.user.clone(), info: scope.info.clone() };
        if scope.info.is_resource {
            if self.catalog.load().serves(&scope.info.group, &scope.info.version) {
                let output = scope.error_output();
                return match resources::dispatch(Arc::clone(&self), scope, request).await {
                    Ok(response) => response,
                    Err(status) => respond::failure(&status, output),
                };
            }
        } else if let Some(response) = self.document(&scope).await {
            return response;
        }
        match ask(self.extensions.after.clone(), passed(request)).await {
            Ok(response) => response,
            Err(_) => page_not_found(),
        }
    }

    /// Answers fixed paths; `None` for those that are not served.
    async fn document(&self, scope: &Scope) -> Option<Response<Body>> {
        let path = scope.info.path.trim_end_matches('/');
        let query = scope.query();
        let headers = &scope.headers;
        if let Some(response) = self.checks.answer(&scope.info.path, &query) {
            return Some(response);
        }
        if scope.method != Method::GET && scope.method != Method::HEAD {
            let served = matches!(path, "/version" | "/metrics" | "/api" | "/apis") || path.starts_with("/openapi/");
            return served.then(|| respond::failure(&method_not_allowed(), scope.error_output()));
        }
        let catalog = self.catalog.load_full();
        match path {
            "" => return Some(self.paths()),
            "/version" => return Some(respond::bytes(StatusCode::OK, "application/json", version())),
            "/metrics" => {
                self.registry.update_metrics().await;
                return Some(exposition(metrics::encode(&self.metrics_registry)));
            }
            "/openid/v1/jwks" => {
                let keys = self.extensions.openid.as_ref()?.keys.clone();
                return Some(public(respond::bytes(StatusCode::OK, "application/jwk-set+json", keys)));
            }
            "/.well-known/openid-configuration" => {
                let document = self.extensions.openid.as_ref()?.configuration.clone();
                return Some(public(respond::bytes(StatusCode::OK, "application/json", document)));
            }
            "/api" if aggregated::is_asked_for(headers) => return Some(catalog.documents().core.answer(headers)),
            "/apis" if aggregated::is_asked_for(headers) => return Some(catalog.documents().groups.answer(headers)),
            _ => {}
        }
        if path.starts_with("/openapi/") {
            return self.openapi.answer(path, &query, headers, &catalog);
        }
        let parts: Vec<&str> = path.trim_start_matches('/').split('/').collect();
        let found = match parts.as_slice() {
            ["api"] => legacy::core_versions(&self.advertise_address),
            ["apis"] => legacy::groups(&catalog),
            ["apis", group] => legacy::one_group(catalog.group(group).filter(|group| !group.name.is_empty())?),
            ["api", version] if catalog.serves("", version) => legacy::resources(&catalog, "", version),
            ["apis", group, version] if !group.is_empty() && catalog.serves(group, version) => {
                legacy::resources(&catalog, group, version)
            }
            _ => return None,
        };
        Some(match Output::negotiate_plain(headers, &query) {
            Ok(output) => {
                let mut response = respond::value(StatusCode::OK, &found, output, headers);
                if matches!(parts.as_slice(), ["api"] | ["apis"]) {
                    response.headers_mut().insert(header::VARY, HeaderValue::from_static("Accept"));
                }
                response
            }
            Err(status) => respond::failure(&status, Output::plain()),
        })
    }

    /// `/`: every path there is.
    fn paths(&self) -> Response<Body> {
        let catalog = self.catalog.load();
        let mut paths: Vec<String> = [
            "/.well-known/openid-configuration",
            "/api",
            "/apis",
            "/healthz",
            "/livez",
            "/metrics",
            "/openapi/v2",
            "/openapi/v3",
            "/openapi/v3/",
            "/openid/v1/jwks",
            "/readyz",
            "/version",
        ]
        .map(str::to_owned)
        .to_vec();
        for group in catalog.groups() {
            if group.name.is_empty() {
                paths.extend(group.versions.iter().map(|version| format!("/api/{version}")));
            } else {
                paths.push(format!("/apis/{}", group.name));
                paths.extend(group.versions.iter().map(|version| format!("/apis/{}/{version}", group.name)));
            }
        }
        paths.sort();
        let text = serde_json::to_vec_pretty(&json!({"paths": paths})).unwrap_or_default();
        respond::bytes(StatusCode::OK, "application/json", Bytes::from(text))
    }
}

/// Asks one after the other; the first that answers wins.
async fn ask(
    extensions: Vec<Arc<dyn Extension>>,
    mut request: ExtensionRequest,
) -> Result<Response<Body>, ExtensionRequest> {
    for extension in extensions {
        match extension.call(request).await {
            Ok(response) => return Ok(response),
            Err(back) => request = back,
        }
    }
    Err(request)
}

/// `/version`, with upstream's fields.
fn version() -> Bytes {
    let info = json!({
        "major": "1",
        "minor": "36",
        "emulationMajor": "1",
        "emulationMinor": "36",
        "minCompatibilityMajor": "1",
        "minCompatibilityMinor": "35",
        "gitVersion": GIT_VERSION,
        "gitCommit": option_env!("RKUBE_GIT_COMMIT").unwrap_or_default(),
        "gitTreeState": "clean",
        "buildDate": option_env!("RKUBE_BUILD_DATE").unwrap_or("1970-01-01T00:00:00Z"),
        "goVersion": "go1.26",
        "compiler": "rustc",
        "platform": format!("linux/{}", go_arch()),
    });
    Bytes::from(serde_json::to_vec_pretty(&info).unwrap_or_default())
}

/// The architecture, in Go's words.
fn go_arch() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

fn exposition(text: String) -> Response<Body> {
    respond::bytes(StatusCode::OK, "text/plain; version=0.0.4; charset=utf-8", Bytes::from(text))
}

fn public(mut response: Response<Body>) -> Response<Body> {
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("public, max-age=3600"));
    response
}

/// What upstream's last handler says of a path nobody knows.
pub(crate) fn page_not_found() -> Response<Body> {
    health::text(StatusCode::NOT_FOUND, "404 page not found\n".to_owned())
}

/// A path under a served group that is no resource.
pub(crate) fn resource_not_found() -> ApiStatus {
    with_details(ApiStatus::failure(Reason::NotFound, "the server could not find the requested resource"))
}

pub(crate) fn method_not_allowed() -> ApiStatus {
    let text = "the server does not allow this method on the requested resource";
    with_details(ApiStatus::failure(Reason::MethodNotAllowed, text))
}

/// Upstream's generic answers have empty details.
fn with_details(mut status: ApiStatus) -> ApiStatus {
    status.details_mut();
    status
}
