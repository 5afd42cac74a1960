//! The admin socket: how `outlast status`, `reload`, `drain` and the others reach their agent.
//!
//! HTTP/1.1 over `admin.sock` in the data directory. Whoever may open that directory may steer the agent; nobody else.

use std::convert::Infallible;
use std::net::IpAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context as _;
use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use outlast_host::handle::Handle;
use serde::{Deserialize, Serialize};
use tokio::net::UnixListener;
use tokio::sync::{mpsc, oneshot};

use super::face;
use super::run::{Request as Ask, Said};
use super::shared::Shared;
use crate::names;

/// Bytes of a request body.
const BODY_MAX: usize = 4 << 20;

/// How long the loop may take to answer.
const ANSWER_MAX: Duration = Duration::from_secs(30);

/// Where an agent listens for its own command line.
pub fn socket_path(data_dir: &Path) -> PathBuf {
    data_dir.join("admin.sock")
}

/// What a verb needs beside its path.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Order {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backend: Option<String>,
    /// A name of the name system, or a zone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// One of the values of a name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub value: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lasts_ms: Option<u64>,
    /// Where a client is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<IpAddr>,
    /// A zone file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub text: Option<String>,
}

/// The listening admin socket.
#[derive(Debug)]
pub(super) struct Admin {
    task: tokio::task::JoinHandle<()>,
    path: PathBuf,
}

impl Admin {
    pub(super) fn open(
        data_dir: &Path,
        shared: Shared,
        inbox: mpsc::Sender<Said>,
    ) -> anyhow::Result<Admin> {
        let path = socket_path(data_dir);
        // The lock on the directory is ours, so a socket that lies there is a leftover.
        std::fs::remove_file(&path).ok();
        let listener =
            UnixListener::bind(&path).with_context(|| format!("bind {}", path.display()))?;
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600))
            .context("protect the admin socket")?;
        // Held here, aborted on drop.
        let task = tokio::task::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (shared, inbox) = (shared.clone(), inbox.clone());
                let answer = hyper::service::service_fn(move |request| {
                    let (shared, inbox) = (shared.clone(), inbox.clone());
                    async move { Ok::<_, Infallible>(answer(request, &shared, &inbox).await) }
                });
                // Ends with its connection, or with the process.
                drop(tokio::task::spawn(async move {
                    // A client that goes early is no fault of ours.
                    hyper::server::conn::http1::Builder::new()
                        .serve_connection(TokioIo::new(stream), answer)
                        .await
                        .ok();
                }));
            }
        });
        Ok(Admin { task, path })
    }
}

impl Drop for Admin {
    fn drop(&mut self) {
        self.task.abort();
        std::fs::remove_file(&self.path).ok();
    }
}

async fn answer(
    request: Request<Incoming>,
    shared: &Shared,
    inbox: &mpsc::Sender<Said>,
) -> Response<Full<Bytes>> {
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    if method == Method::GET || method == Method::HEAD {
        return face::respond(&request, shared, face::Door::Admin);
    }
    if method != Method::POST {
        return text(StatusCode::METHOD_NOT_ALLOWED, "use GET or POST".to_owned());
    }
    let body = match Limited::new(request.into_body(), BODY_MAX).collect().await {
        Ok(body) => body.to_bytes(),
        Err(error) => return text(StatusCode::BAD_REQUEST, format!("read the request: {error}")),
    };
    let order: Order = match serde_json::from_slice(if body.is_empty() { b"{}" } else { &body }) {
        Ok(order) => order,
        Err(error) => {
            return text(StatusCode::BAD_REQUEST, format!("understand the request: {error}"));
        }
    };
    let (sender, receiver) = oneshot::channel();
    let service = order.service.unwrap_or_default();
    let backend = order.backend.unwrap_or_default();
    let name = order.name.unwrap_or_default();
    let ask = match path.as_str() {
        "/v1/reload" => Ask::Reload { answer: sender },
        "/v1/drain" => Ask::Drain { service, backend, on: true, answer: sender },
        "/v1/undrain" => Ask::Drain { service, backend, on: false, answer: sender },
        "/v1/failback" => Ask::Failback { service, answer: sender },
        "/v1/dns/explain" => Ask::Explain { name, from: order.from, answer: sender },
        "/v1/dns/pin" => {
            let lasts = order.lasts_ms.map(Duration::from_millis);
            Ask::Names(names::Ask::Pin { name, label: order.value, until: lasts, answer: sender })
        }
        "/v1/dns/lower-ttl" => {
            let lasts = order.lasts_ms.map(Duration::from_millis);
            Ask::Names(names::Ask::LowerTtl { name, lasts, answer: sender })
        }
        "/v1/dns/import" => {
            let text = order.text.unwrap_or_default();
            Ask::Names(names::Ask::Import { zone: name, text, answer: sender })
        }
        "/v1/upgrade" => Ask::Upgrade { answer: sender },
        "/v1/stop" => Ask::Stop { answer: sender },
        _ => return text(StatusCode::NOT_FOUND, format!("there is no {path}")),
    };
    if inbox.send(Said::Asked(ask)).await.is_err() {
        return text(StatusCode::SERVICE_UNAVAILABLE, "the agent is stopping".to_owned());
    }
    match tokio::time::timeout(ANSWER_MAX, receiver).await {
        Ok(Ok(Ok(done))) => text(StatusCode::OK, done),
        Ok(Ok(Err(refused))) => text(StatusCode::CONFLICT, refused),
        Ok(Err(_dropped)) => {
            text(StatusCode::SERVICE_UNAVAILABLE, "the agent is stopping".to_owned())
        }
        Err(_elapsed) => {
            text(StatusCode::GATEWAY_TIMEOUT, "the agent did not answer in time".to_owned())
        }
    }
}

fn text(status: StatusCode, text: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(text)));
    *response.status_mut() = status;
    response
}

pub(crate) fn no_agent(socket: &Path) -> String {
    format!(
        "no agent answers at {}; is `outlast run` running with this file, and may you open its data directory?",
        socket.display()
    )
}

/// The process that is the agent of a data directory.
pub fn process(data_dir: &Path) -> anyhow::Result<Handle> {
    let socket = socket_path(data_dir);
    let stream = std::os::unix::net::UnixStream::connect(&socket);
    let stream = stream.with_context(|| no_agent(&socket))?;
    Handle::of_peer(&stream).with_context(|| no_agent(&socket))
}

/// Asks the agent of a data directory; the status and the body of its answer.
pub async fn ask(
    data_dir: &Path,
    method: Method,
    path: &str,
    body: String,
) -> anyhow::Result<(StatusCode, String)> {
    let socket = socket_path(data_dir);
    let stream =
        tokio::net::UnixStream::connect(&socket).await.with_context(|| no_agent(&socket))?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    // Ends with the answer.
    drop(tokio::task::spawn(connection));
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header("host", "agent")
        .body(Full::new(Bytes::from(body)))?;
    let asked = async {
        let response = sender.send_request(request).await?;
        let status = response.status();
        let body = response.into_body().collect().await?.to_bytes();
        anyhow::Ok((status, String::from_utf8_lossy(&body).into_owned()))
    };
    tokio::time::timeout(ANSWER_MAX * 2, asked).await.context("the agent did not answer in time")?
}
