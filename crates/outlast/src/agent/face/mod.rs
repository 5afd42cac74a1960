//! The face: /health, /metrics and the status page, for people and for other machines.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use anyhow::Context as _;
use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::Full;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpListener;

use super::shared::Shared;

/// Connections to the face at once; more wait to be accepted.
const CONNECTIONS_MAX: usize = 256;

/// A client may take this long to send a request head.
const HEAD_MAX: Duration = Duration::from_secs(10);

/// Who asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Door {
    /// Anybody who reaches the address of the face.
    Public,
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
        face.listen(address)?;
        Ok(face)
    }

    /// Moves to another address, or away.
    pub fn listen(&mut self, address: Option<SocketAddr>) -> anyhow::Result<()> {
        let task = match address {
            None => None,
            Some(address) => {
                let socket = super::start::listen(address).with_context(|| {
                    format!("listen on {address} for the status page; end what uses it, or change `face` of [cluster]")
                })?;
                let listener =
                    TcpListener::from_std(socket.into()).context("listen for the status page")?;
                Some(serve(listener, self.shared.clone()))
            }
        };
        if let Some(old) = std::mem::replace(&mut self.task, task) {
            old.abort();
        }
        Ok(())
    }
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
            let stream = match listener.accept().await {
                Ok((stream, _)) => stream,
                Err(error) => {
                    tracing::warn!(%error, "accept at the face");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    continue;
                }
            };
            let shared = shared.clone();
            let answer = hyper::service::service_fn(move |request| {
                let response = respond(&request, &shared, Door::Public);
                async move { Ok::<_, Infallible>(response) }
            });
            // Bounded by CONNECTIONS_MAX and by the head timeout.
            drop(tokio::task::spawn(async move {
                // A client that goes early is no fault of ours.
                hyper::server::conn::http1::Builder::new()
                    .timer(Timer)
                    .header_read_timeout(HEAD_MAX)
                    .serve_connection(HyperIo::new(stream), answer)
                    .await
                    .ok();
                drop(place);
            }));
        }
    })
}

/// Answers a GET.
pub fn respond<B>(request: &Request<B>, shared: &Shared, door: Door) -> Response<Full<Bytes>> {
    let picture = shared.picture.borrow().clone();
    let _ = door;
    match request.uri().path() {
        "/health/live" => {
            answer(StatusCode::OK, "application/health+json", "{\"status\":\"pass\"}")
        }
        "/v1/status" => answer(StatusCode::OK, "text/plain", &format!("{:#?}", picture.view)),
        _ => answer(StatusCode::NOT_FOUND, "text/plain; charset=utf-8", "not found\n"),
    }
}

fn answer(status: StatusCode, kind: &'static str, body: &str) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(body.to_owned())));
    *response.status_mut() = status;
    response.headers_mut().insert(http::header::CONTENT_TYPE, http::HeaderValue::from_static(kind));
    response
        .headers_mut()
        .insert(http::header::CACHE_CONTROL, http::HeaderValue::from_static("no-store"));
    response
}

/// Tokio's timer for hyper.
#[derive(Clone, Copy, Debug)]
struct Timer;

#[derive(Debug)]
struct Sleep(Pin<Box<tokio::time::Sleep>>);

impl Future for Sleep {
    type Output = ();
    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        self.0.as_mut().poll(cx)
    }
}

impl hyper::rt::Sleep for Sleep {}

impl hyper::rt::Timer for Timer {
    fn sleep(&self, duration: Duration) -> Pin<Box<dyn hyper::rt::Sleep>> {
        Box::pin(Sleep(Box::pin(tokio::time::sleep(duration))))
    }

    fn sleep_until(&self, deadline: std::time::Instant) -> Pin<Box<dyn hyper::rt::Sleep>> {
        Box::pin(Sleep(Box::pin(tokio::time::sleep_until(deadline.into()))))
    }
}

/// A tokio connection as hyper wants it.
#[derive(Debug)]
pub struct HyperIo<T>(T);

impl<T> HyperIo<T> {
    pub fn new(io: T) -> HyperIo<T> {
        HyperIo(io)
    }
}

impl<T: AsyncRead + Unpin> hyper::rt::Read for HyperIo<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        mut buf: hyper::rt::ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        let mut chunk = [0; 8192];
        let space = buf.remaining().min(chunk.len());
        let mut read = ReadBuf::new(&mut chunk[..space]);
        std::task::ready!(Pin::new(&mut self.0).poll_read(cx, &mut read))?;
        buf.put_slice(read.filled());
        Poll::Ready(Ok(()))
    }
}

impl<T: AsyncWrite + Unpin> hyper::rt::Write for HyperIo<T> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}
