//! One HTTP/1.1 request on a connection of its own.

use std::io;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::Request;
use hyper::body::Body as _;
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

/// How long it may take to reach a server, its name and TLS included.
const CONNECT_MAX: Duration = Duration::from_secs(5);

/// For how long an answer is waited for, its body included.
const ANSWER_MAX: Duration = Duration::from_secs(30);

/// Bytes of an answer's body. A page of Route 53 has at most 300 sets of records.
const BODY_MAX: usize = 8 << 20;

/// Where a service is: `http://HOST:PORT` or `https://HOST`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Endpoint {
    tls: bool,
    host: String,
    port: u16,
    /// As in the Host header.
    pub(crate) authority: String,
    /// What stands before each path, without a slash at its end.
    pub(crate) prefix: String,
}

impl Endpoint {
    pub(crate) fn parse(url: &str) -> Option<Endpoint> {
        let uri: hyper::Uri = url.parse().ok()?;
        let tls = match uri.scheme_str()? {
            "http" => false,
            "https" => true,
            _ => return None,
        };
        let port = uri.port_u16().unwrap_or(if tls { 443 } else { 80 });
        let authority = uri.authority()?.as_str();
        if authority.contains('@') {
            return None;
        }
        Some(Endpoint {
            tls,
            host: uri.host()?.trim_matches(['[', ']']).to_owned(),
            port,
            authority: authority.to_owned(),
            prefix: uri.path().trim_end_matches('/').to_owned(),
        })
    }

    pub(crate) fn host(&self) -> &str {
        &self.host
    }

    pub(crate) fn is_tls(&self) -> bool {
        self.tls
    }
}

/// An answer, whatever it says.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) body: Bytes,
}

/// A request's parts; headers beside Host.
pub(crate) struct Question<'a> {
    pub(crate) method: &'a str,
    /// With its query.
    pub(crate) target: &'a str,
    pub(crate) headers: &'a [(&'static str, String)],
    pub(crate) body: Bytes,
}

/// What goes wrong, in words that name the place and nothing that was sent.
pub(crate) async fn ask(endpoint: &Endpoint, question: Question<'_>) -> Result<Answer, String> {
    ask_within(endpoint, question, CONNECT_MAX, ANSWER_MAX).await
}

pub(crate) async fn ask_within(
    endpoint: &Endpoint,
    question: Question<'_>,
    connect_max: Duration,
    answer_max: Duration,
) -> Result<Answer, String> {
    let place = &endpoint.authority;
    let mut request = Request::builder()
        .method(question.method)
        .uri(question.target)
        .header("host", place)
        .header("user-agent", concat!("outlast/", env!("CARGO_PKG_VERSION")))
        .header("connection", "close");
    for (name, value) in question.headers {
        let mut value: hyper::header::HeaderValue = value
            .parse()
            .map_err(|_invalid| format!("the header {name} to {place} cannot be sent"))?;
        value.set_sensitive(true);
        request = request.header(*name, value);
    }
    let request = request
        .body(Full::new(question.body))
        .map_err(|error| format!("the request to {place}: {error}"))?;
    let late = |_elapsed| format!("{place} is not reached within {connect_max:?}");
    let unreached = |error| format!("reach {place}: {error}");
    let answered = if endpoint.tls {
        // Large, and few use it.
        let connected = timeout(connect_max, Box::pin(connect_tls(endpoint))).await;
        let stream = connected.map_err(late)?.map_err(unreached)?;
        timeout(answer_max, Box::pin(exchange(stream, request))).await
    } else {
        let connected = timeout(connect_max, connect(endpoint)).await;
        let stream = connected.map_err(late)?.map_err(unreached)?;
        timeout(answer_max, exchange(stream, request)).await
    };
    match answered {
        Ok(answer) => answer.map_err(|error| format!("{place}: {error}")),
        Err(_elapsed) => Err(format!("{place} does not answer within {answer_max:?}")),
    }
}

async fn exchange<S>(stream: S, request: Request<Full<Bytes>>) -> Result<Answer, String>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let shaken = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await;
    let (mut sender, connection) = shaken.map_err(|error| error.to_string())?;
    let answer = async {
        let response = sender.send_request(request).await?;
        let status = response.status().as_u16();
        let body = response.into_body();
        if body.size_hint().lower() > BODY_MAX as u64 {
            return Ok(Err("its answer is too long".to_owned()));
        }
        let whole = Limited::new(body, BODY_MAX).collect().await;
        let body = whole.map(http_body_util::Collected::to_bytes);
        Ok(body.map(|body| Answer { status, body }).map_err(|error| error.to_string()))
    };
    tokio::pin!(answer, connection);
    let answer: hyper::Result<_> = tokio::select! {
        answer = &mut answer => answer,
        // What has come is an answer, however the connection ended after it.
        ended = &mut connection => answer.await.map_err(|error| ended.err().unwrap_or(error)),
    };
    answer.map_err(|error| error.to_string())?
}

async fn connect(endpoint: &Endpoint) -> io::Result<TcpStream> {
    let stream = TcpStream::connect((endpoint.host.as_str(), endpoint.port)).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

async fn connect_tls(endpoint: &Endpoint) -> io::Result<TlsStream<TcpStream>> {
    let name = ServerName::try_from(endpoint.host.clone()).map_err(io::Error::other)?;
    let config = TLS.as_ref().map_err(|error| io::Error::other(error.clone()))?;
    TlsConnector::from(config.clone()).connect(name, connect(endpoint).await?).await
}

/// The roots of this machine are read once.
static TLS: LazyLock<Result<Arc<ClientConfig>, String>> = LazyLock::new(|| {
    let native = rustls_native_certs::load_native_certs();
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(native.certs);
    if roots.is_empty() {
        return Err("this machine has no root certificates; install ca-certificates".to_owned());
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(Arc::new(config))
});
