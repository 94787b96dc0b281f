//! One HTTP request of a probe or hook.
//!
//! Behaves as pkg/probe/http/{http,request}.go, v1.36: certificates are not verified, redirects stay on the
//! host, and little of the body is read.

use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use http::header::{ACCEPT, CONNECTION, HOST, HeaderName, LOCATION, USER_AGENT};
use http::{HeaderMap, HeaderValue, Method, Request};
use http_body_util::{BodyExt, Empty};
use hyper_util::rt::TokioIo;
use rkube_api::k8s::core::v1::HTTPGetAction;
use rustls_pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

/// Upstream's `maxRespBodyLength`.
const BODY_BYTES_MAX: usize = 10 * 1024;
const REDIRECTS_MAX: usize = 10;

/// Where to ask and with what.
#[derive(Clone, Debug)]
pub struct HttpProbe {
    pub https: bool,
    pub host: String,
    pub port: u16,
    pub path: String,
    pub headers: HeaderMap,
}

impl HttpProbe {
    pub fn new(action: &HTTPGetAction, host: &str, port: u16, user_agent: &str) -> Self {
        let mut headers = HeaderMap::new();
        for header in action.http_headers.as_deref().unwrap_or_default() {
            let name = HeaderName::try_from(header.name.as_str());
            let value = HeaderValue::try_from(header.value.as_str());
            if let (Ok(name), Ok(value)) = (name, value) {
                headers.append(name, value);
            }
        }
        // Given and empty means: send none.
        for (name, default) in [(USER_AGENT, user_agent), (ACCEPT, "*/*")] {
            match headers.get(&name) {
                Some(value) if value.is_empty() => drop(headers.remove(&name)),
                Some(_) => {}
                None => drop(HeaderValue::try_from(default).map(|value| headers.insert(name, value))),
            }
        }
        let path = action.path.as_deref().unwrap_or_default();
        Self {
            https: action.scheme.as_deref().is_some_and(|scheme| scheme.eq_ignore_ascii_case("https")),
            host: host.to_owned(),
            port,
            path: if path.starts_with('/') { path.to_owned() } else { format!("/{path}") },
            headers,
        }
    }

    fn authority(&self) -> String {
        let host = if self.host.contains(':') { format!("[{}]", self.host) } else { self.host.clone() };
        format!("{host}:{}", self.port)
    }
}

/// The answer's beginning.
#[derive(Debug)]
pub struct HttpAnswer {
    pub status: u16,
    pub body: String,
    /// A redirect that leads to another host and was not followed.
    pub foreign_redirect: Option<String>,
}

#[derive(Debug, thiserror::Error)]
pub enum HttpProbeError {
    #[error("dial tcp {address}: {text}")]
    Dial { address: String, text: String },
    #[error("tls: {0}")]
    Tls(#[source] std::io::Error),
    #[error("{0}")]
    Http(#[from] hyper::Error),
    #[error("{0}")]
    Request(#[from] http::Error),
    #[error("tls: no usable configuration")]
    TlsConfig,
    #[error("stopped after 10 redirects")]
    Redirects,
}

/// A failure to connect in the words Go has for it, which people search for.
pub fn dial_text(error: &std::io::Error) -> String {
    match error.kind() {
        std::io::ErrorKind::ConnectionRefused => "connect: connection refused".to_owned(),
        std::io::ErrorKind::HostUnreachable => "connect: no route to host".to_owned(),
        std::io::ErrorKind::NetworkUnreachable => "connect: network is unreachable".to_owned(),
        std::io::ErrorKind::TimedOut => "i/o timeout".to_owned(),
        _ => error.to_string(),
    }
}

/// Sends a GET. `follow` redirects on the same host.
pub async fn get(probe: &HttpProbe, follow: bool) -> Result<HttpAnswer, HttpProbeError> {
    let mut probe = probe.clone();
    for _ in 0..REDIRECTS_MAX {
        let authority = probe.authority();
        let stream = TcpStream::connect(&authority)
            .await
            .map_err(|error| HttpProbeError::Dial { address: authority, text: dial_text(&error) })?;
        let (status, location, body) = if probe.https {
            let connector = TlsConnector::from(tls_config().ok_or(HttpProbeError::TlsConfig)?);
            let name = ServerName::try_from(probe.host.clone()).map_err(|_| HttpProbeError::TlsConfig)?;
            send(&probe, connector.connect(name, stream).await.map_err(HttpProbeError::Tls)?).await?
        } else {
            send(&probe, stream).await?
        };
        match location.filter(|_| (300..400).contains(&status) && follow) {
            None => return Ok(HttpAnswer { status, body, foreign_redirect: None }),
            Some(location) => match redirected(&probe, &location) {
                Some(next) => probe = next,
                None => return Ok(HttpAnswer { status, body, foreign_redirect: Some(location) }),
            },
        }
    }
    Err(HttpProbeError::Redirects)
}

fn tls_config() -> Option<Arc<rustls::ClientConfig>> {
    static CONFIG: OnceLock<Option<Arc<rustls::ClientConfig>>> = OnceLock::new();
    CONFIG.get_or_init(|| rkube_http::tls::unverified_client_config().ok().map(Arc::new)).clone()
}

fn redirected(probe: &HttpProbe, location: &str) -> Option<HttpProbe> {
    if location.starts_with('/') && !location.starts_with("//") {
        return Some(HttpProbe { path: location.to_owned(), ..probe.clone() });
    }
    let uri: http::Uri = location.parse().ok()?;
    if uri.host()? != probe.host {
        return None;
    }
    let https = uri.scheme_str() == Some("https");
    let port = uri.port_u16().unwrap_or(if https { 443 } else { 80 });
    let path = uri.path_and_query().map_or("/", |path| path.as_str()).to_owned();
    Some(HttpProbe { https, port, path, ..probe.clone() })
}

type Head = (u16, Option<String>, String);

async fn send<IO>(probe: &HttpProbe, io: IO) -> Result<Head, HttpProbeError>
where
    IO: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let mut request = Request::builder().method(Method::GET).uri(&probe.path);
    if let Some(headers) = request.headers_mut() {
        *headers = probe.headers.clone();
        if !headers.contains_key(HOST)
            && let Ok(value) = HeaderValue::try_from(probe.authority())
        {
            headers.insert(HOST, value);
        }
        headers.insert(CONNECTION, HeaderValue::from_static("close"));
    }
    let request = request.body(Empty::<Bytes>::new())?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(io)).await?;
    let exchange = async {
        let answer = sender.send_request(request).await?;
        let status = answer.status().as_u16();
        let location = answer.headers().get(LOCATION).and_then(|value| value.to_str().ok()).map(str::to_owned);
        let mut body = answer.into_body();
        let mut bytes = Vec::new();
        while bytes.len() < BODY_BYTES_MAX
            && let Some(frame) = body.frame().await
        {
            if let Ok(data) = frame?.into_data() {
                bytes.extend_from_slice(&data);
            }
        }
        bytes.truncate(BODY_BYTES_MAX);
        Ok::<Head, hyper::Error>((status, location, String::from_utf8_lossy(&bytes).into_owned()))
    };
    // The connection moves only while it is polled; it needs no task of its own and ends with the probe.
    tokio::pin!(exchange);
    tokio::pin!(connection);
    let mut open = true;
    loop {
        tokio::select! {
            result = &mut exchange => return Ok(result?),
            _ = &mut connection, if open => open = false,
        }
    }
}
