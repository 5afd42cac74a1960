//! One HTTP/1.1 client connection: request after request, each carried to a backend and, if need be, to another one.
//!
//! Bodies are streamed both ways at once and never held as a whole. `exchange` tries one request at one backend after another,
//! `run` is one such try, `answer` what comes back, `body_in` what goes there, and `gone` watches the client meanwhile.

mod answer;
mod body_in;
mod exchange;
mod gone;
mod run;

use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::time::Instant;

use body_in::BodyIn;
pub(crate) use exchange::is_our_own_lack;

use crate::body::{Decoder, Framing};
use crate::head::{self, HashOn, Method, Refusal, Request, RequestRules};
use crate::io::{Deadline, Io, Rest, with_scratch};
use crate::live::{LiveService, World};
use crate::seats::Seat;
use crate::stats::ErrorKind;
use crate::table::Balance;
use crate::{answers, http2, worker};

/// How a client came in.
#[derive(Clone, Debug)]
pub(crate) struct Door {
    pub(crate) service: String,
    pub(crate) client: SocketAddr,
    pub(crate) local: SocketAddr,
    pub(crate) tls: bool,
}

/// How long, and for how many bytes, a refused client is listened to so that it can read the refusal.
const LINGER: Duration = Duration::from_secs(1);
const LINGER_BYTES: usize = 256 << 10;

/// When the process is to end, a connection that has been quiet for this long is closed: long enough for a client that
/// asks again and again to be told with its next answer.
pub(crate) const QUIET: Duration = Duration::from_millis(500);

/// Heads larger than this give their memory back after use.
const KEEP_CAPACITY: usize = 4096;

/// A client connection.
#[derive(Debug)]
pub(crate) struct Conn {
    pub(crate) io: Io,
    pub(crate) rest: Rest,
    deadline: Deadline,
    request: Request,
    /// What the client is still to get.
    out: Vec<u8>,
    body: BodyIn,
    door: Door,
    service: Arc<LiveService>,
    world: Arc<World>,
    /// When the client was seen to have ended its side.
    ended: Option<Instant>,
    _seat: Seat,
}

/// Serves one client until it goes, or has to.
pub(crate) async fn serve(io: Io, rest: Rest, door: Door) {
    if let Some(conn) = serve_http1(io, rest, door).await {
        // The client opened with HTTP/2 and without TLS ("prior knowledge").
        Box::pin(http2::serve(conn.io, conn.rest, conn.door)).await;
    }
}

/// Serves HTTP/1.1; gives the connection back if the client speaks HTTP/2.
pub(crate) async fn serve_http1(io: Io, rest: Rest, door: Door) -> Option<Conn> {
    let service = worker::service(&door.service)?;
    let world = worker::with(|w| w.world.clone());
    let deadline = Deadline::new(service.spec.timeouts.head.min(service.spec.timeouts.idle));
    let body = BodyIn {
        decoder: Decoder::Length(0),
        replay: None,
        touched: false,
        bytes: 0,
        owes_continue: false,
    };
    let mut conn = Conn {
        io,
        rest,
        deadline,
        request: Request::default(),
        out: Vec::new(),
        body,
        door,
        service,
        world,
        ended: None,
        _seat: Seat::take().await,
    };
    let mut last_end = Instant::now();
    loop {
        match conn.read_head(last_end).await {
            Ok(Next::Request) => {}
            Ok(Next::Gone) => break,
            Ok(Next::Http2) => return Some(conn),
            Err(refusal) => {
                conn.service.state.own.failed(ErrorKind::BadRequest);
                conn.service.state.own.answered(refusal.status, Duration::ZERO);
                conn.refuse(refusal.status, refusal.reason).await;
                return None;
            }
        }
        if !conn.exchange(&mut last_end).await {
            break;
        }
        conn.trim();
    }
    // The other side may have gone already; there is nobody to tell.
    drop(poll_fn(|cx| conn.io.poll_shutdown(cx)).await);
    None
}

/// What a client sent next.
enum Next {
    Request,
    /// Nothing: it has gone, or was idle too long.
    Gone,
    Http2,
}

/// What HTTP/2 clients send first (RFC 9113 section 3.4), as far as it tells.
const HTTP2: &[u8] = b"PRI * HTTP/2.0\r\n";

impl Conn {
    /// Waits for a whole request head.
    async fn read_head(&mut self, now: Instant) -> Result<Next, Refusal> {
        let mut begun = !self.rest.is_empty();
        let timeouts = &self.service.spec.timeouts;
        self.deadline.set(now + if begun { timeouts.head } else { timeouts.idle });
        let mut looked_at = 0;
        let ready = poll_fn(|cx| {
            loop {
                if !self.rest.is_empty() {
                    self.refresh();
                    let bytes = self.rest.as_slice();
                    if bytes.starts_with(HTTP2) {
                        return Poll::Ready(Ok(Next::Http2));
                    }
                    let complete = looked_at == 0 || head::ends_in(bytes, looked_at);
                    looked_at = bytes.len();
                    if complete
                        && let Some(length) =
                            read_request(&self.service, &self.door, bytes, &mut self.request)?
                    {
                        self.rest.consume(length);
                        return Poll::Ready(Ok(Next::Request));
                    }
                    if looked_at > self.head_bytes() {
                        return Poll::Ready(Err(Refusal {
                            status: 431,
                            reason: "request head too large",
                        }));
                    }
                }
                let read = with_scratch(|scratch| {
                    let Some(count) = poll_some(self.io.poll_read(cx, scratch)) else {
                        return Poll::Pending;
                    };
                    if count == 0 {
                        return Poll::Ready(Ok(Some(Next::Gone)));
                    }
                    let bytes = &scratch[..count];
                    if self.rest.is_empty() && head::ends_in(bytes, 0) && !bytes.starts_with(HTTP2)
                    {
                        // The common case: the whole head in one read, never copied.
                        self.refresh();
                        if let Some(length) =
                            read_request(&self.service, &self.door, bytes, &mut self.request)?
                        {
                            self.rest.push(&bytes[length..]);
                            return Poll::Ready(Ok(Some(Next::Request)));
                        }
                    }
                    self.rest.push(bytes);
                    Poll::Ready(Ok(None))
                });
                match read {
                    Poll::Ready(Ok(Some(next))) => return Poll::Ready(Ok(next)),
                    Poll::Ready(Err(refusal)) => return Poll::Ready(Err(refusal)),
                    Poll::Ready(Ok(None)) => {
                        if !begun {
                            begun = true;
                            self.deadline.set_after(self.service.spec.timeouts.head);
                        }
                    }
                    Poll::Pending if self.over() => return Poll::Ready(Ok(Next::Gone)),
                    Poll::Pending => {
                        if !begun && worker::draining() {
                            self.deadline
                                .set((now + QUIET).min(now + self.service.spec.timeouts.idle));
                        }
                        ready!(self.deadline.poll(cx));
                        if !begun {
                            return Poll::Ready(Ok(Next::Gone));
                        }
                        return Poll::Ready(Err(Refusal {
                            status: 408,
                            reason: "request head took too long",
                        }));
                    }
                }
            }
        });
        ready.await
    }

    fn head_bytes(&self) -> usize {
        usize::try_from(self.service.spec.limits.head_bytes).unwrap_or(usize::MAX)
    }

    /// Takes the service as it is in the table in force.
    fn refresh(&mut self) {
        worker::with(|w| {
            if let Some(service) = w.live.services.get(&self.door.service)
                && !Arc::ptr_eq(service, &self.service)
            {
                self.service = service.clone();
            }
        });
    }

    /// Gives back memory that a large head took.
    fn trim(&mut self) {
        for buffer in [&mut self.out, &mut self.request.wire] {
            if buffer.capacity() > KEEP_CAPACITY {
                *buffer = Vec::new();
            }
        }
    }

    /// Whether the time for draining is over.
    fn over(&self) -> bool {
        self.service.state.over.load(Relaxed)
    }

    /// Answers without a backend. True: the connection may stay.
    async fn answer_own(
        &mut self,
        begun: Instant,
        last_end: &mut Instant,
        kind: ErrorKind,
    ) -> bool {
        let service = self.service.clone();
        let status = answers::status_of(kind);
        service.state.own.failed(kind);
        let stays =
            self.request.keep_alive && self.request.body.0 == Framing::None && !worker::draining();
        answers::write(
            &mut self.out,
            status,
            answers::reason_of(kind),
            self.request.method() == Method::Head,
            !stays,
        );
        let sent = self.flush_out().await;
        *last_end = Instant::now();
        service.state.own.answered(status, *last_end - begun);
        if !stays {
            self.linger().await;
        }
        stays && sent.is_ok()
    }

    /// Refuses what cannot be understood, and ends the connection in a way that lets the client read why.
    async fn refuse(&mut self, status: u16, reason: &str) {
        self.out.clear();
        answers::write(&mut self.out, status, reason, false, true);
        if self.flush_out().await.is_ok() {
            self.linger().await;
        }
    }

    async fn flush_out(&mut self) -> io::Result<()> {
        self.deadline.set_after(self.service.spec.timeouts.body);
        poll_fn(|cx| {
            if let Poll::Ready(done) = self.poll_out(cx) {
                return Poll::Ready(done);
            }
            ready!(self.deadline.poll(cx));
            Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
        })
        .await
    }

    fn poll_out(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.out.is_empty() {
            let count = ready!(self.io.poll_write(cx, &self.out))?;
            self.out.drain(..count);
        }
        self.io.poll_flush(cx)
    }

    /// Closing a socket with unread bytes resets it, and the answer with it: read a little more first.
    async fn linger(&mut self) {
        let reading = async {
            if poll_fn(|cx| self.io.poll_shutdown(cx)).await.is_err() {
                return;
            }
            let mut left = LINGER_BYTES;
            while left > 0 {
                match poll_fn(|cx| with_scratch(|s| self.io.poll_read(cx, s))).await {
                    Ok(count) if count > 0 => left = left.saturating_sub(count),
                    Ok(_) | Err(_) => return,
                }
            }
        };
        // Time is up, or the client has gone: either way it is over.
        drop(tokio::time::timeout(LINGER, reading).await);
    }
}

/// A read's count; an error counts as the end. `None`: not ready.
fn poll_some(poll: Poll<io::Result<usize>>) -> Option<usize> {
    match poll {
        Poll::Ready(result) => Some(result.unwrap_or(0)),
        Poll::Pending => None,
    }
}

fn read_request(
    service: &LiveService,
    door: &Door,
    bytes: &[u8],
    request: &mut Request,
) -> Result<Option<usize>, Refusal> {
    let spec = &service.spec;
    let rules = RequestRules {
        headers_max: spec.limits.headers,
        body_max: spec.limits.body_bytes,
        forwarded: spec.forwarded,
        trusted: !spec.trusted.is_empty() && spec.trusts(door.client.ip()),
        client: door.client,
        local: door.local,
        tls: door.tls,
        hash: match &spec.balance {
            Balance::HashPath => HashOn::Path,
            Balance::HashHeader(name) => HashOn::Header(name),
            Balance::HashCookie(name) => HashOn::Cookie(name),
            Balance::RoundRobin | Balance::Random | Balance::LeastRequests | Balance::HashIp => {
                HashOn::Nothing
            }
        },
    };
    let length = head::read_request(bytes, &rules, request)?;
    if length.is_some_and(|l| l > usize::try_from(spec.limits.head_bytes).unwrap_or(usize::MAX)) {
        return Err(Refusal { status: 431, reason: "request head too large" });
    }
    Ok(length)
}
