//! One HTTP/1.1 request on a connection of its own; the status and, if asked for, the body decide.

use std::convert::Infallible;
use std::error::Error;
use std::future::pending;
use std::sync::OnceLock;

use bytes::Bytes;
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper::header::{ACCEPT, CONNECTION, HOST, HeaderName, HeaderValue, LOCATION, USER_AGENT};
use hyper::{HeaderMap, Method, Request, Response, Uri};
use hyper_util::rt::TokioIo;
use outlast_core::topology::{Authority, Backend, HttpCheck, HttpTarget, StatusSet};

use super::dial::{Cover, Speech, Tls, io_cause, io_fault, open};
use super::{Code, Fault, Limit, authority, fault, internal, user_agent};
use crate::text::quote;

/// Bytes of a body that are searched for the expected text.
pub(super) const BODY_MAX: usize = 64 << 10;

/// Asks once; the sentence of a success.
pub(super) async fn ask(
    tls: &Tls,
    check: &HttpCheck,
    backend: Option<&Backend>,
    limit: &Limit,
) -> Result<String, Fault> {
    let target = target(check, backend)?;
    let request = request(check, &target)?;
    let name = server_name(request.headers(), &target.place);
    let cover = Cover { name: &name, verify: check.tls_verify, speech: Speech::Http1 };
    let stream = open(tls, &target.place, target.tls.then_some(cover), limit).await?;

    let (mut sender, connection) =
        http1::handshake(TokioIo::new(stream)).await.map_err(|e| hyper_fault(&e))?;
    let exchange = async {
        let response = sender.send_request(request).await.map_err(|e| hyper_fault(&e))?;
        judge(check, response).await
    };
    over(connection, exchange).await
}

/// Does an exchange while its connection is kept going; what ends the connection reaches the exchange.
pub(super) async fn over<T>(
    connection: impl Future<Output = Result<(), hyper::Error>>,
    exchange: impl Future<Output = Result<T, Fault>>,
) -> Result<T, Fault> {
    let broken = OnceLock::new();
    let drive = async {
        if let Err(error) = connection.await {
            broken.get_or_init(|| hyper_fault(&error));
        }
        pending::<Infallible>().await
    };
    let result = tokio::select! {
        result = exchange => result,
        never = drive => match never {},
    };
    result.map_err(|fault| match broken.into_inner() {
        Some(cause) if fault.code == Code::Reset => cause,
        Some(_) | None => fault,
    })
}

/// Where a check goes and what it asks for.
struct Target<'a> {
    tls: bool,
    place: Authority,
    path: &'a str,
}

fn target<'a>(check: &'a HttpCheck, backend: Option<&Backend>) -> Result<Target<'a>, Fault> {
    match (&check.target, backend) {
        (HttpTarget::Url { tls, authority, path }, _) => {
            Ok(Target { tls: *tls, place: authority.clone(), path })
        }
        (HttpTarget::Path(path), Some(backend)) => {
            Ok(Target { tls: backend.tls, place: authority(backend), path })
        }
        (HttpTarget::Path(path), None) => Err(internal(format!(
            "the check names the path {path}, but there is no backend to ask"
        ))),
    }
}

/// The request: our own headers, then the check's, which may replace them.
fn request(check: &HttpCheck, target: &Target<'_>) -> Result<Request<Empty<Bytes>>, Fault> {
    let method = Method::from_bytes(check.method.as_bytes())
        .map_err(|_invalid| internal(format!("`{}` is not an HTTP method", check.method)))?;
    let uri: Uri = target
        .path
        .parse()
        .map_err(|_invalid| internal(format!("`{}` is not a URL path", target.path)))?;
    let mut request = Request::new(Empty::new());
    *request.method_mut() = method;
    *request.uri_mut() = uri;
    let headers = request.headers_mut();
    headers.insert(HOST, header_value(&host(target))?);
    headers.insert(USER_AGENT, HeaderValue::from_static(user_agent()));
    headers.insert(ACCEPT, HeaderValue::from_static("*/*"));
    // The server closes, so that the probing side is not left with the sockets in TIME_WAIT.
    headers.insert(CONNECTION, HeaderValue::from_static("close"));
    for (name, value) in &check.headers {
        let name = HeaderName::from_bytes(name.as_bytes())
            .map_err(|_invalid| internal(format!("`{name}` is not a header name")))?;
        headers.insert(name, header_value(value)?);
    }
    Ok(request)
}

fn header_value(text: &str) -> Result<HeaderValue, Fault> {
    HeaderValue::from_str(text)
        .map_err(|_invalid| internal(format!("`{text}` is not a header value")))
}

/// The Host header; the scheme's own port goes without saying.
fn host(target: &Target<'_>) -> String {
    let full = target.place.to_string();
    let implied = if target.tls { ":443" } else { ":80" };
    full.strip_suffix(implied).map_or(full.clone(), str::to_owned)
}

/// The name for TLS: a Host header of the check wins, because that is whom it wants to talk to.
fn server_name(headers: &HeaderMap, place: &Authority) -> String {
    headers
        .get(HOST)
        .and_then(|host| host.to_str().ok()?.parse::<hyper::http::uri::Authority>().ok())
        .map_or(place.host.clone(), |host| host.host().trim_matches(['[', ']']).to_owned())
}

async fn judge(check: &HttpCheck, response: Response<Incoming>) -> Result<String, Fault> {
    let status = response.status().as_u16();
    if !check.status.contains(status) {
        let to = response.headers().get(LOCATION).map(|to| String::from_utf8_lossy(to.as_bytes()));
        let to = to.map_or(String::new(), |to| format!(" to {}", quote(&to)));
        let expected = show_statuses(&check.status);
        return Err(fault(Code::Status, format!("status {status}{to}, expected {expected}")));
    }
    if let Some(text) = &check.body {
        search(response.into_body(), text).await?;
    }
    Ok(format!("status {status}"))
}

/// Reads a body until the text has been found or the limit is reached.
async fn search(mut body: Incoming, text: &str) -> Result<(), Fault> {
    let mut read = Vec::new();
    while read.len() < BODY_MAX
        && let Some(frame) = body.frame().await
    {
        let frame = frame.map_err(|e| hyper_fault(&e))?;
        let Some(bytes) = frame.data_ref() else { continue };
        let from = read.len().saturating_sub(text.len());
        read.extend_from_slice(&bytes[..bytes.len().min(BODY_MAX - read.len())]);
        if contains(&read[from..], text.as_bytes()) {
            return Ok(());
        }
    }
    let within = if read.len() < BODY_MAX { "" } else { " in its first 64 KiB" };
    if text.is_empty() {
        Ok(())
    } else {
        Err(fault(Code::Body, format!("body lacks {:?}{within}", quote(text))))
    }
}

fn contains(bytes: &[u8], text: &[u8]) -> bool {
    text.is_empty() || bytes.windows(text.len()).any(|window| window == text)
}

/// `200-299, 304`
fn show_statuses(set: &StatusSet) -> String {
    let show = |&(low, high): &(u16, u16)| {
        if low == high { low.to_string() } else { format!("{low}-{high}") }
    };
    set.0.iter().map(show).collect::<Vec<_>>().join(", ")
}

/// An error of an HTTP exchange as a sentence.
pub(super) fn hyper_fault(error: &hyper::Error) -> Fault {
    if let Some(io) = io_cause(error) {
        return io_fault("", io);
    }
    // A request that was never sent carries the connection's own error.
    if let Some(cause) = error.source().and_then(|cause| cause.downcast_ref()) {
        return hyper_fault(cause);
    }
    if error.is_incomplete_message() || error.is_closed() || error.is_canceled() {
        return fault(Code::Reset, "closed by the other side");
    }
    if error.is_user() {
        return internal(format!("the request cannot be sent: {error}"));
    }
    fault(Code::Protocol, format!("the answer is not HTTP: {error}"))
}
