//! A client of the server under test, with whatever credentials a test wants to show.

use std::sync::Arc;

use arc_swap::ArcSwap;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Uri};
use rkube_http::body::Body;
use rkube_http::client::HttpClient;
use rkube_http::connect::Connector;
use rkube_http::tls;
use rkube_pki::{KubeconfigFile, authority};
use serde_json::Value;

use crate::process::Machine;

const ANSWER_BYTES_MAX: usize = 64 << 20;

#[derive(Clone)]
pub(crate) struct Caller {
    http: HttpClient,
}

/// A code and a text.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) code: u16,
    pub(crate) text: String,
}

impl Answer {
    /// The message of a Status, or the whole text.
    pub(crate) fn message(&self) -> String {
        let status: Value = serde_json::from_str(&self.text).unwrap_or_default();
        status["message"].as_str().map_or_else(|| self.text.clone(), str::to_owned)
    }
}

impl Caller {
    /// The administrator.
    pub(crate) fn admin(machine: &Machine) -> Self {
        Self::new(machine, true)
    }

    /// Someone without a certificate.
    pub(crate) fn stranger(machine: &Machine) -> Self {
        Self::new(machine, false)
    }

    fn new(machine: &Machine, with_identity: bool) -> Self {
        let config = KubeconfigFile::load(&machine.path("admin.yaml")).unwrap();
        let roots = tls::roots(&authority::certificates(&config.authority, "ca").unwrap()).unwrap();
        let pair = config.identity.filter(|_| with_identity);
        let identity = pair.map(|pair| (pair.chain().unwrap(), pair.key().unwrap()));
        let tls = Arc::new(ArcSwap::from_pointee(tls::client_config(roots, identity).unwrap()));
        let base: Uri = format!("https://127.0.0.1:{}", machine.port).parse().unwrap();
        Self { http: HttpClient::new(&base, Connector::new(Some(tls)).http2(true)).unwrap() }
    }

    /// Sends bytes as they are.
    pub(crate) async fn send(&self, method: Method, path: &str, headers: &[(&str, &str)], body: Vec<u8>) -> Answer {
        let mut all = HeaderMap::new();
        for (name, value) in headers {
            all.append(HeaderName::try_from(*name).unwrap(), HeaderValue::from_str(value).unwrap());
        }
        let mut request = Request::builder().method(method).uri(path).body(Body::from(body)).unwrap();
        *request.headers_mut() = all;
        let response = self.http.request(request).await.unwrap();
        let code = response.status().as_u16();
        if code == 401 {
            // The server ends the connection.
            self.http.reconnect();
        }
        let text = response.into_body().read(ANSWER_BYTES_MAX).await.unwrap();
        Answer { code, text: String::from_utf8_lossy(&text).into_owned() }
    }

    pub(crate) async fn ask(&self, method: Method, path: &str, body: &Value) -> Answer {
        let kind = if method == Method::PATCH { "application/merge-patch+json" } else { "application/json" };
        let body = if body.is_null() { Vec::new() } else { body.to_string().into_bytes() };
        self.send(method, path, &[("content-type", kind)], body).await
    }

    /// With a bearer token.
    pub(crate) async fn code_with(&self, token: &str, path: &str) -> u16 {
        self.send(Method::GET, path, &[("authorization", &format!("Bearer {token}"))], Vec::new()).await.code
    }
}
