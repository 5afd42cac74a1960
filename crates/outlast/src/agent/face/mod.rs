//! The face: /health, /metrics and the status page, for people and for other machines.

pub mod address_status;
pub mod database_status;
pub mod health;
pub mod metrics;
pub mod page;
pub mod router_status;
pub mod scene;
pub mod status_json;
pub mod topology_status;
pub mod zone_status;

#[cfg(test)]
mod doors;
#[cfg(test)]
mod tests;

use std::convert::Infallible;
use std::hash::{BuildHasher as _, RandomState};
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::Context as _;
use bytes::Bytes;
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::{Method, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Body as _;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpListener;

use super::shared::Shared;
use health::{Detail, Question, Verdict};
use metrics::Form;
use scene::Scene;
use status_json::Status;

/// Connections to the face at once; more wait to be accepted.
const CONNECTIONS_MAX: usize = 256;

/// A client may take this long to send a request head.
const HEAD_MAX: Duration = Duration::from_secs(10);

/// A connection lives this long; who wants more opens another.
const LIFE_MAX: Duration = Duration::from_secs(30);

/// Who asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Door {
    /// Anybody who reaches the address of the face.
    Public,
    /// Somebody on this machine.
    Local,
    /// Somebody who may open the data directory.
    Admin,
}

/// The listening face.
#[derive(Debug)]
pub struct Face {
    shared: Shared,
    task: Option<tokio::task::JoinHandle<()>>,
}

impl Face {
    pub fn open(address: Option<SocketAddr>, shared: Shared) -> anyhow::Result<Face> {
        let mut face = Face { shared, task: None };
        face.move_to(listener(address)?);
        Ok(face)
    }

    /// Moves to another listener, or away.
    pub fn move_to(&mut self, listener: Option<TcpListener>) {
        let task = listener.map(|listener| serve(listener, self.shared.clone()));
        if let Some(old) = std::mem::replace(&mut self.task, task) {
            old.abort();
        }
    }
}

/// Opens the face's listener, if it is to have one.
pub fn listener(address: Option<SocketAddr>) -> anyhow::Result<Option<TcpListener>> {
    let Some(address) = address else { return Ok(None) };
    let socket = super::start::listen(address).with_context(|| {
        format!("listen on {address} for the status page; end what uses it, or change `face` of [cluster]")
    })?;
    TcpListener::from_std(socket.into()).map(Some).context("listen for the status page")
}

impl Drop for Face {
    fn drop(&mut self) {
        if let Some(task) = &self.task {
            task.abort();
        }
    }
}

fn serve(listener: TcpListener, shared: Shared) -> tokio::task::JoinHandle<()> {
    let places = std::sync::Arc::new(tokio::sync::Semaphore::new(CONNECTIONS_MAX));
    // Held by Face, aborted on drop.
    tokio::task::spawn(async move {
        loop {
            let Ok(place) = places.clone().acquire_owned().await else { return };
            let (stream, peer) = match listener.accept().await {
                Ok(accepted) => accepted,
                Err(error) => {
                    tracing::warn!(%error, "accept at the face");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    continue;
                }
            };
            let shared = shared.clone();
            let local = peer.ip().to_canonical().is_loopback();
            let door = if local { Door::Local } else { Door::Public };
            let answer = hyper::service::service_fn(move |request| {
                let response = respond(&request, &shared, door);
                async move { Ok::<_, Infallible>(response) }
            });
            // Bounded by CONNECTIONS_MAX and by the head timeout.
            drop(tokio::task::spawn(async move {
                // A client that goes early is no fault of ours.
                let serving = hyper::server::conn::http1::Builder::new()
                    .timer(TokioTimer::new())
                    .header_read_timeout(HEAD_MAX)
                    .serve_connection(TokioIo::new(stream), answer);
                // Also one that does not read its answer holds a place for this long at most.
                tokio::time::timeout(LIFE_MAX, serving).await.ok();
                drop(place);
            }));
        }
    })
}

/// What can be asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Page,
    Health(Question),
    Metrics,
    Status,
}

/// Everything there is.
const PLACES: [(&str, Place, &str); 7] = [
    ("/", Place::Page, "the status page"),
    ("/health", Place::Health(Question::Whole), "is anything wrong?"),
    ("/health/live", Place::Health(Question::Live), "does the process answer?"),
    ("/health/ready", Place::Health(Question::Ready), "may traffic be sent here?"),
    ("/health/started", Place::Health(Question::Started), "has the agent come up?"),
    ("/metrics", Place::Metrics, "for Prometheus"),
    ("/v1/status", Place::Status, "the status page as JSON"),
];

/// Answers a GET or a HEAD.
pub fn respond<B>(request: &Request<B>, shared: &Shared, door: Door) -> Response<Full<Bytes>> {
    let path = request.uri().path();
    let asked = if path.len() > 1 { path.trim_end_matches('/') } else { path };
    let place = PLACES.iter().find(|(known, _, _)| *known == asked).map(|&(_, place, _)| place);
    let method = request.method();
    let mut response = match place {
        None => {
            let known = PLACES.map(|(path, _, what)| format!("  {path:<16} {what}\n"));
            let text = format!("there is nothing at this path; there is\n{}", known.concat());
            answer(StatusCode::NOT_FOUND, PLAIN, text)
        }
        Some(_) if method != Method::GET && method != Method::HEAD => {
            let text = "this path can only be read: use GET or HEAD\n".to_owned();
            let mut response = answer(StatusCode::METHOD_NOT_ALLOWED, PLAIN, text);
            put(&mut response, header::ALLOW, "GET, HEAD");
            response
        }
        Some(place) => draw(place, request.headers(), shared, door),
    };
    if method == Method::HEAD {
        // The length is that of what a GET would bring.
        let length = response.body().size_hint().exact().unwrap_or_default();
        response.headers_mut().insert(header::CONTENT_LENGTH, length.into());
        *response.body_mut() = Full::default();
    }
    response
}

fn draw(place: Place, headers: &HeaderMap, shared: &Shared, door: Door) -> Response<Full<Bytes>> {
    let scene = Scene::of(shared);
    match place {
        Place::Page => {
            // A fresh secret each time, so that no other script can claim it.
            let nonce = format!("{:016x}", RandomState::new().hash_one(shared.started));
            let html = page::page(&Status::of(&scene), &shared.recent.lines(), &nonce);
            let mut response = answer(StatusCode::OK, "text/html; charset=utf-8", html);
            let policy = format!(
                "default-src 'none'; style-src 'unsafe-inline'; script-src 'nonce-{nonce}'; connect-src 'self'; \
                 base-uri 'none'; form-action 'none'; frame-ancestors 'self'"
            );
            put(&mut response, header::CONTENT_SECURITY_POLICY, &policy);
            put(&mut response, header::REFERRER_POLICY, "no-referrer");
            response
        }
        Place::Health(question) => {
            let found = health::health(&scene, question, detail(door, headers));
            let status = match found.verdict {
                Verdict::Pass | Verdict::Warn => StatusCode::OK,
                Verdict::Fail => StatusCode::SERVICE_UNAVAILABLE,
            };
            answer(status, "application/health+json", found.body)
        }
        Place::Metrics => {
            let accept: Vec<&str> =
                headers.get_all(header::ACCEPT).iter().filter_map(|v| v.to_str().ok()).collect();
            let form = Form::negotiate(&accept.join(","));
            let mut response =
                answer(StatusCode::OK, form.content_type(), metrics::print(&scene, form));
            put(&mut response, header::VARY, "accept");
            response
        }
        Place::Status => answer(StatusCode::OK, "application/json", Status::of(&scene).to_json()),
    }
}

/// Reasons and addresses are for those who could also log in here.
fn detail(door: Door, headers: &HeaderMap) -> Detail {
    // Another proxy on this machine passes strangers on.
    let forwarded =
        ["forwarded", "x-forwarded-for", "via"].iter().any(|h| headers.contains_key(*h));
    match door {
        Door::Admin => Detail::Full,
        Door::Local if !forwarded => Detail::Full,
        Door::Local | Door::Public => Detail::Names,
    }
}

const PLAIN: &str = "text/plain; charset=utf-8";

fn answer(status: StatusCode, kind: &'static str, body: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    put(&mut response, header::CONTENT_TYPE, kind);
    put(&mut response, header::CACHE_CONTROL, "no-store");
    put(&mut response, header::X_CONTENT_TYPE_OPTIONS, "nosniff");
    response
}

fn put(response: &mut Response<Full<Bytes>>, name: HeaderName, value: &str) {
    let value = HeaderValue::from_str(value).expect("ours, and plain ASCII");
    response.headers_mut().insert(name, value);
}
