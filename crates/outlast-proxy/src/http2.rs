//! HTTP/2 towards clients: each stream is translated to HTTP/1.1 at the door and then served like any other request.
//!
//! Framing, flow control and HPACK are hyper's. Retries, limits and ejection live in one place only, `http1`.

use std::convert::Infallible;
use std::future::poll_fn;
use std::io;
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{HeaderMap, Request, Response, Uri, Version, header};
use http_body::Frame;
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::http1::{self, Door};
use crate::io::{Io, Rest};
use crate::seats::Seat;
use crate::{answers, worker};

/// Bytes that wait between a stream and its translation, each way.
const STREAM_BUFFER: usize = 32 << 10;

/// Streams of one connection at once.
const STREAMS_MAX: u32 = 200;

/// Resets of streams that a client may have pending (CVE-2023-44487).
const RESETS_MAX: usize = 100;

/// Serves one HTTP/2 client until it goes, or has to.
pub(crate) async fn serve(io: Io, rest: Rest, door: Door) {
    let Some(service) = worker::service(&door.service) else { return };
    let head_bytes = service.spec.limits.head_bytes;
    let idle = service.spec.timeouts.idle;
    let mut builder = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
    builder
        .timer(TokioTimer::new())
        .max_concurrent_streams(STREAMS_MAX)
        .max_header_list_size(head_bytes)
        .max_pending_accept_reset_streams(RESETS_MAX)
        .keep_alive_interval(idle)
        .keep_alive_timeout(Duration::from_secs(20));
    let activity = Arc::new(Activity::default());
    let begun = Instant::now();
    let head = service.spec.timeouts.head;
    let (stream_door, streams) = (door.clone(), activity.clone());
    let answer = hyper::service::service_fn(move |request| {
        let (door, stream) = (stream_door.clone(), Stream::open(&streams));
        async move { Ok::<_, Infallible>(translate(request, door, stream).await) }
    });
    let mut conn = pin!(builder.serve_connection(TokioIo::new(Wire { io, rest }), answer));
    let mut look = tokio::time::interval(Duration::from_millis(500));
    let mut leaving: Option<Instant> = None;
    // Wakes this task when draining begins, and when the time for it is over.
    let _seat = Seat::take().await;
    let over = || service.state.over.load(Relaxed);
    loop {
        let told = poll_fn(|_cx| match (worker::draining() && leaving.is_none()) || over() {
            true => Poll::Ready(()),
            false => Poll::Pending,
        });
        tokio::select! {
            // A client's broken connection is its own affair.
            _ended = conn.as_mut() => return,
            () = told => {
                if over() {
                    return;
                }
                leaving = Some(Instant::now());
                conn.as_mut().graceful_shutdown();
            }
            _tick = look.tick() => {
                let quiet = activity.quiet(begun);
                // No stream ever, or none for long: a client that only answers pings holds a place for nothing.
                let limit = if activity.ever() { idle } else { head };
                if quiet.is_some_and(|quiet| limit + GOODBYE <= quiet) {
                    return;
                }
                // Quiet and told to go, it stays all the same. What it was sent last may still be on its way for a while.
                let stays = |at: Instant| LEAVE_MAX <= at.elapsed();
                if leaving.is_some_and(stays) && quiet.is_some_and(|quiet| LEAVE_MAX <= quiet) {
                    return;
                }
                if quiet.is_some_and(|quiet| limit <= quiet) && leaving.is_none() {
                    leaving = Some(Instant::now());
                    conn.as_mut().graceful_shutdown();
                }
            }
        }
    }
}

/// How long a client that is told to go may take.
const GOODBYE: Duration = Duration::from_secs(2);

/// How long a client that does not answer may stay when the process is to end.
const LEAVE_MAX: Duration = Duration::from_secs(5);

/// What happens on a connection.
#[derive(Debug, Default)]
struct Activity {
    open: AtomicU32,
    last_end: Mutex<Option<Instant>>,
}

impl Activity {
    /// Whether there was any stream.
    fn ever(&self) -> bool {
        self.open.load(Relaxed) > 0 || self.last_end.lock().expect("no panic while held").is_some()
    }

    /// How long no stream has been open; `None` while one is.
    fn quiet(&self, begun: Instant) -> Option<Duration> {
        let last = *self.last_end.lock().expect("no panic while held");
        (self.open.load(Relaxed) == 0).then(|| last.unwrap_or(begun).elapsed())
    }
}

/// An open stream.
#[derive(Debug)]
struct Stream(Arc<Activity>);

impl Stream {
    fn open(activity: &Arc<Activity>) -> Stream {
        activity.open.fetch_add(1, Relaxed);
        Stream(activity.clone())
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        *self.0.last_end.lock().expect("no panic while held") = Some(Instant::now());
        self.0.open.fetch_sub(1, Relaxed);
    }
}

/// One stream as an HTTP/1.1 request, served over memory.
async fn translate(request: Request<Incoming>, door: Door, stream: Stream) -> Response<Body> {
    let (near, far) = tokio::io::duplex(STREAM_BUFFER);
    // Ends when `near` is dropped, with its stream.
    drop(tokio::task::spawn(async move {
        drop(http1::serve_http1(Io::Memory(far), Rest::default(), door).await);
    }));
    let handshake = hyper::client::conn::http1::Builder::new().handshake(TokioIo::new(near));
    let Ok((mut sender, conn)) = handshake.await else { return refusal(502) };
    // Ends with the response body that it drives.
    drop(tokio::task::spawn(conn));
    let Some(request) = to_http1(request) else { return refusal(400) };
    match sender.send_request(request).await {
        Ok(response) => {
            let (mut parts, body) = response.into_parts();
            parts.version = Version::HTTP_2;
            strip(&mut parts.headers);
            let body = Body::Streamed { body, _sender: sender, _stream: stream };
            Response::from_parts(parts, body)
        }
        Err(_broken) => refusal(502),
    }
}

/// The same request in HTTP/1.1: the authority becomes the Host header (RFC 9113 section 8.3.1).
fn to_http1(request: Request<Incoming>) -> Option<Request<Incoming>> {
    let (mut parts, body) = request.into_parts();
    parts.version = Version::HTTP_11;
    let hosts = parts.headers.get_all(header::HOST).iter().count();
    if let Some(authority) = parts.uri.authority() {
        let host = http::HeaderValue::from_str(authority.as_str()).ok()?;
        parts.headers.insert(header::HOST, host);
    } else if hosts != 1 {
        return None;
    }
    let path = parts.uri.path_and_query().map_or("/", |p| p.as_str());
    parts.uri = path.parse::<Uri>().ok()?;
    strip(&mut parts.headers);
    // HTTP/2 may split cookies over several lines; HTTP/1.1 wants one (RFC 9113 section 8.2.3).
    let cookies: Vec<&[u8]> =
        parts.headers.get_all(header::COOKIE).iter().map(http::HeaderValue::as_bytes).collect();
    if cookies.len() > 1 {
        let joined = http::HeaderValue::from_bytes(&cookies.join(b"; ".as_slice())).ok()?;
        parts.headers.insert(header::COOKIE, joined);
    }
    Some(Request::from_parts(parts, body))
}

/// Headers of one hop have no place in HTTP/2 (RFC 9113 section 8.2.2).
fn strip(headers: &mut HeaderMap) {
    for name in
        ["connection", "keep-alive", "proxy-connection", "transfer-encoding", "upgrade", "te"]
    {
        headers.remove(name);
    }
}

fn refusal(status: u16) -> Response<Body> {
    let mut wire = Vec::new();
    answers::write(&mut wire, status, "the request could not be translated", true, false);
    let mut response = Response::new(Body::Empty);
    *response.status_mut() = http::StatusCode::from_u16(status).expect("a status of ours");
    response
}

/// A response body; it keeps alive what it comes from.
#[derive(Debug)]
enum Body {
    Empty,
    Streamed {
        body: Incoming,
        _sender: hyper::client::conn::http1::SendRequest<Incoming>,
        _stream: Stream,
    },
}

impl http_body::Body for Body {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        match self.get_mut() {
            Body::Empty => Poll::Ready(None),
            Body::Streamed { body, .. } => Pin::new(body).poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Body::Empty => true,
            Body::Streamed { body, .. } => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> http_body::SizeHint {
        match self {
            Body::Empty => http_body::SizeHint::with_exact(0),
            Body::Streamed { body, .. } => body.size_hint(),
        }
    }
}

/// A connection with what was read of it before.
#[derive(Debug)]
struct Wire {
    io: Io,
    rest: Rest,
}

impl AsyncRead for Wire {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.rest.is_empty() {
            let count = ready!(this.io.poll_read(cx, buf.initialize_unfilled()))?;
            buf.advance(count);
        } else {
            let bytes = this.rest.as_slice();
            let count = bytes.len().min(buf.remaining());
            buf.put_slice(&bytes[..count]);
            this.rest.consume(count);
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Wire {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.get_mut().io.poll_write(cx, buf)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.get_mut().io.poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.get_mut().io.poll_shutdown(cx)
    }
}
