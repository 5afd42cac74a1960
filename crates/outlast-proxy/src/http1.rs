//! One HTTP/1.1 client connection: request after request, each carried to a backend and, if need be, to another one.
//!
//! Bodies are streamed both ways at once and never held as a whole. A request may be repeated as long as nothing of an answer
//! has reached the client, and only if doing it twice is the same as doing it once, or nothing of it was sent.

use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::time::Instant;

use crate::body::{Decoder, Framing};
use crate::eject::Outcome;
use crate::fence::Pass;
use crate::head::{self, HashOn, Method, Refusal, Request, RequestRules};
use crate::io::{Deadline, Io, Rest, with_scratch};
use crate::live::{Flight, LiveBackend, LiveService, World};
use crate::seats::Seat;
use crate::stats::ErrorKind;
use crate::table::Balance;
use crate::{answers, http2, tcp, worker};

/// How a client came in.
#[derive(Clone, Debug)]
pub(crate) struct Door {
    pub(crate) service: String,
    pub(crate) client: SocketAddr,
    pub(crate) local: SocketAddr,
    pub(crate) tls: bool,
}

/// Bytes of a request body that are kept to send them again.
const REPLAY_MAX: usize = 64 << 10;

/// A request that must not be sent twice takes a pooled connection only if it was used within this time, so that it does
/// not meet a backend that is just closing an idle connection.
const UNSAFE_REUSE_MAX: Duration = Duration::from_secs(1);

/// How often a request that waits for an answer looks whether its backend is still good.
const LOOK_EVERY: Duration = Duration::from_millis(250);

/// Tries of one request, whatever a table says.
const ATTEMPTS_MAX: usize = 16;

/// How long, and for how many bytes, a refused client is listened to so that it can read the refusal.
const LINGER: Duration = Duration::from_secs(1);
const LINGER_BYTES: usize = 256 << 10;

/// How long a client that has ended its side is still taken to be there, waiting for an answer: clients that close
/// and clients that only say that they send no more look the same.
const HALF_CLOSED_MAX: Duration = Duration::from_secs(1);

/// Bytes that are read ahead of their use, in order to see whether the client has gone.
const AHEAD_MAX: usize = 16 << 10;

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

/// A request body on its way.
#[derive(Debug)]
struct BodyIn {
    decoder: Decoder,
    /// Everything read of it so far, while that is little enough to send again.
    replay: Option<Vec<u8>>,
    /// Anything of it has been read.
    touched: bool,
    bytes: u64,
    /// The client still waits for `100 Continue`.
    owes_continue: bool,
}

/// How one try ended.
enum Try {
    /// The client has its answer.
    Answered {
        status: u16,
        client_stays: bool,
    },
    /// The answer was an upgrade, and the tunnel has ended.
    Tunnelled,
    ClientGone,
    /// The client's body cannot be understood.
    BadBody(Refusal),
    Failed {
        kind: ErrorKind,
        clean: bool,
    },
    /// The answer has begun and cannot be finished.
    Broken(ErrorKind),
    /// A 5xx answer was put aside for another try.
    Spared,
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

    /// Carries one request to an answer. False: the connection has to end.
    async fn exchange(&mut self, last_end: &mut Instant) -> bool {
        let begun = Instant::now();
        let mut service = self.service.clone();
        self.out.clear();
        self.body = BodyIn {
            decoder: Decoder::new(self.request.body.0),
            replay: self.request.method().idempotent().then(Vec::new),
            touched: false,
            bytes: 0,
            owes_continue: self.request.expects_continue,
        };
        let mut flight = match self.board(&service).await {
            Ok(Some(flight)) => flight,
            Ok(None) => return self.answer_own(begun, last_end, ErrorKind::Limit).await,
            Err(Gone) => {
                service.state.own.failed(ErrorKind::ClientGone);
                return false;
            }
        };
        service.state.budget.deposit(service.spec.retry.budget);
        let key = match service.spec.balance {
            Balance::HashIp => crate::balance::hash(self.door.client.ip().to_string().as_bytes()),
            Balance::HashPath | Balance::HashHeader(_) | Balance::HashCookie(_) => {
                self.request.hash
            }
            Balance::RoundRobin | Balance::Random | Balance::LeastRequests => 0,
        };
        let mut tried = Tried::default();
        let mut last = ErrorKind::NoBackend;
        loop {
            // The queue, a try and a pause all take time: who may serve is asked anew.
            self.refresh();
            if !Arc::ptr_eq(&service, &self.service) {
                service = self.service.clone();
                tried.forget();
            }
            let random = worker::random();
            let again = || {
                service.pick(&self.world, &[], random, key).filter(|_| !tried.as_slice().is_empty())
            };
            let Some(i) = service.pick(&self.world, tried.as_slice(), random, key).or_else(again)
            else {
                break;
            };
            tried.push(i);
            let backend = &service.backends[i];
            flight.goes_to(&backend.state);
            let counters = &backend.state.counters;
            let (kind, clean) = match self.attempt(&service, i, &tried).await {
                Try::Answered { status, client_stays } => {
                    *last_end = Instant::now();
                    counters.answered(status, *last_end - begun);
                    let outcome = if status >= 500 { Outcome::Status5xx } else { Outcome::Good };
                    service.observe(&self.world, i, outcome);
                    if status >= 500 {
                        counters.failed(ErrorKind::Status5xx);
                    }
                    if !self.body.decoder.done() {
                        // The answer came early: the client may still be sending.
                        drop(flight);
                        self.linger().await;
                    }
                    return client_stays;
                }
                Try::Tunnelled => return false,
                Try::ClientGone => {
                    counters.failed(ErrorKind::ClientGone);
                    return false;
                }
                Try::BadBody(refusal) => {
                    service.state.own.failed(ErrorKind::BadRequest);
                    service.state.own.answered(refusal.status, begun.elapsed());
                    self.refuse(refusal.status, refusal.reason).await;
                    return false;
                }
                Try::Broken(kind) => {
                    counters.failed(kind);
                    if kind != ErrorKind::CutOff {
                        service.observe(&self.world, i, Outcome::Failure);
                    }
                    return false;
                }
                Try::Spared => {
                    counters.failed(ErrorKind::Status5xx);
                    service.observe(&self.world, i, Outcome::Status5xx);
                    service.state.retries.fetch_add(1, Relaxed);
                    flight.leaves_backend();
                    if self.back_off(&service, tried.count).await.is_err() {
                        service.state.own.failed(ErrorKind::ClientGone);
                        return false;
                    }
                    continue;
                }
                Try::Failed { kind, clean } => (kind, clean),
            };
            counters.failed(kind);
            if !matches!(kind, ErrorKind::Limit | ErrorKind::CutOff) {
                service.observe(&self.world, i, Outcome::Failure);
            }
            last = kind;
            flight.leaves_backend();
            if !self.may_repeat(&service, kind, clean, tried.count) {
                break;
            }
            if !service.state.budget.withdraw(self.world.now_ms()) {
                service.state.retries_denied.fetch_add(1, Relaxed);
                break;
            }
            service.state.retries.fetch_add(1, Relaxed);
            if self.back_off(&service, tried.count).await.is_err() {
                service.state.own.failed(ErrorKind::ClientGone);
                return false;
            }
        }
        drop(flight);
        self.answer_own(begun, last_end, last).await
    }

    fn may_repeat(
        &self,
        service: &LiveService,
        kind: ErrorKind,
        clean: bool,
        tries: usize,
    ) -> bool {
        let retry = &service.spec.retry;
        let wanted = match kind {
            ErrorKind::Connect => retry.on_connect,
            ErrorKind::Reset | ErrorKind::BadAnswer => retry.on_reset,
            // To the client, a side that lost its role is one that broke off.
            ErrorKind::CutOff => retry.on_reset && !self.over(),
            ErrorKind::Timeout => retry.on_timeout,
            ErrorKind::Status5xx => retry.on_5xx,
            ErrorKind::NoBackend
            | ErrorKind::Limit
            | ErrorKind::BadRequest
            | ErrorKind::ClientGone => false,
        };
        let safe = clean || (self.request.method().idempotent() && self.body_intact());
        wanted && safe && tries < usize::from(retry.attempts) && tries < ATTEMPTS_MAX
    }

    /// Whether the whole request could be sent again.
    fn body_intact(&self) -> bool {
        self.body.replay.is_some() || !self.body.touched
    }

    /// The first retry goes at once; later ones wait, doubling, with jitter.
    async fn back_off(&mut self, service: &LiveService, tries: usize) -> Result<(), Gone> {
        let Some(doublings) = tries.checked_sub(2) else { return Ok(()) };
        let longest = service.spec.retry.backoff.saturating_mul(1 << doublings.min(10));
        let share = u32::try_from(worker::random() % 1000).expect("below 1000");
        self.unless_gone(tokio::time::sleep(longest / 2 + longest / 2000 * share)).await
    }

    /// Takes a place among the service's requests. A queue is for clients that wait: whoever has ended its side is taken
    /// to be gone.
    async fn board(&mut self, service: &LiveService) -> Result<Option<Flight>, Gone> {
        let mut boarding = pin!(Flight::board(service));
        poll_fn(|cx| {
            if let Poll::Ready(flight) = boarding.as_mut().poll(cx) {
                return Poll::Ready(Ok(flight));
            }
            match self.poll_gone(cx) {
                Poll::Pending if self.ended.is_none() => Poll::Pending,
                Poll::Pending | Poll::Ready(Gone) => Poll::Ready(Err(Gone)),
            }
        })
        .await
    }

    /// Waits for something on behalf of a client, for as long as that is there.
    async fn unless_gone<F: Future>(&mut self, work: F) -> Result<F::Output, Gone> {
        let mut work = pin!(work);
        poll_fn(|cx| match work.as_mut().poll(cx) {
            Poll::Ready(done) => Poll::Ready(Ok(done)),
            Poll::Pending => self.poll_gone(cx).map(Err),
        })
        .await
    }

    /// Ready once the client has certainly gone. One that has only ended its side is noted down in `ended`.
    fn poll_gone(&mut self, cx: &mut Context<'_>) -> Poll<Gone> {
        while self.ended.is_none() {
            let room = AHEAD_MAX.saturating_sub(self.rest.as_slice().len());
            if room == 0 {
                return Poll::Pending;
            }
            let read = with_scratch(|scratch| {
                let read = self.io.poll_read(cx, &mut scratch[..room]);
                if let Poll::Ready(Ok(count)) = read {
                    self.rest.push(&scratch[..count]);
                }
                read
            });
            match ready!(read) {
                Ok(0) if matches!(self.io, Io::Memory(_)) => return Poll::Ready(Gone),
                Ok(0) => self.ended = Some(Instant::now()),
                Ok(_read_ahead) => {}
                Err(_reset) => return Poll::Ready(Gone),
            }
        }
        Poll::Pending
    }

    /// Whether the time for draining is over.
    fn over(&self) -> bool {
        self.service.state.over.load(Relaxed)
    }

    /// One try at one backend, on a pooled connection if there is one.
    async fn attempt(&mut self, service: &Arc<LiveService>, i: usize, tried: &Tried) -> Try {
        let backend = &service.backends[i];
        let idempotent = self.request.method().idempotent();
        let age = if idempotent { service.spec.timeouts.backend_idle } else { UNSAFE_REUSE_MAX };
        // A PROXY header speaks for one client: connections that carry one are not shared.
        let alone = self.request.upgrade || service.spec.send_proxy.is_some();
        // Taken before a connection is, so that a fence in between is not missed.
        let passes = Passes::of(backend);
        let pooled = if alone { None } else { worker::take_idle(backend.state.id, age) };
        if let Some(io) = pooled {
            let end = self.run(service, i, tried, io, passes).await;
            // The backend closed it while it was idle: once more, on a new connection, without blame.
            let stale = matches!(end, Try::Failed { kind: ErrorKind::Reset, clean }
                if clean || (idempotent && self.body_intact()));
            if !stale {
                return end;
            }
        }
        let connecting = worker::connect(service, backend, self.door.client, self.door.local);
        let connecting = async {
            let mut connecting = pin!(connecting);
            poll_fn(|cx| {
                if passes.stop(backend) || service.state.over.load(Relaxed) {
                    return Poll::Ready(None);
                }
                connecting.as_mut().poll(cx).map(Some)
            })
            .await
        };
        match self.unless_gone(connecting).await {
            Ok(Some(Ok(io))) => self.run(service, i, tried, io, passes).await,
            Ok(Some(Err(error))) if is_our_own_lack(&error) => self.not_sent(ErrorKind::Limit),
            Ok(Some(Err(_refused))) => self.not_sent(ErrorKind::Connect),
            Ok(None) => self.not_sent(ErrorKind::CutOff),
            Err(Gone) => Try::ClientGone,
        }
    }

    fn not_sent(&self, kind: ErrorKind) -> Try {
        Try::Failed { kind, clean: !self.body.touched }
    }

    async fn run(
        &mut self,
        service: &Arc<LiveService>,
        i: usize,
        tried: &Tried,
        up: Io,
        passes: Passes,
    ) -> Try {
        let retry = &service.spec.retry;
        let spare_5xx = retry.on_5xx
            && self.request.method().idempotent()
            && tried.count < usize::from(retry.attempts)
            && tried.count < ATTEMPTS_MAX;
        let now = Instant::now();
        self.deadline.set(now + LOOK_EVERY);
        let mut run = Run {
            conn: self,
            service,
            i,
            tried,
            spare_5xx,
            passes,
            up,
            up_rest: Rest::default(),
            wire_sent: 0,
            replay_sent: 0,
            pending: Rest::default(),
            sent: Sent::No,
            waiting_since: now,
            progress: false,
            answer: None,
            reusable: false,
        };
        let end = poll_fn(|cx| run.poll(cx)).await;
        run.finish(end).await
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

/// The client has gone.
struct Gone;

/// What a try was let in with at its backend, as a request and for the tunnel that it may become.
#[derive(Clone, Copy, Debug)]
struct Passes {
    request: Pass,
    tunnel: Pass,
}

impl Passes {
    fn of(backend: &LiveBackend) -> Passes {
        Passes { request: backend.state.requests.pass(), tunnel: backend.state.tunnels.pass() }
    }

    /// Whether the backend has lost its role since.
    fn stop(self, backend: &LiveBackend) -> bool {
        worker::stops(&backend.state.requests, self.request)
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

/// The backends that have been tried for one request.
#[derive(Debug, Default)]
struct Tried {
    list: [usize; ATTEMPTS_MAX],
    count: usize,
}

impl Tried {
    fn push(&mut self, i: usize) {
        self.list[self.count] = i;
        self.count += 1;
    }

    /// The places were those of another table; only their number still counts.
    fn forget(&mut self) {
        self.list = [usize::MAX; ATTEMPTS_MAX];
    }

    fn as_slice(&self) -> &[usize] {
        &self.list[..self.count]
    }
}

/// Whether a connection failed for want of descriptors, ports or memory here: no fault of the backend's.
pub(crate) fn is_our_own_lack(error: &io::Error) -> bool {
    use rustix::io::Errno;
    let lacks = [Errno::MFILE, Errno::NFILE, Errno::ADDRNOTAVAIL, Errno::NOBUFS, Errno::NOMEM];
    Errno::from_io_error(error).is_some_and(|errno| lacks.contains(&errno))
}

/// How far the request has got.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sent {
    No,
    Some,
    All,
    /// The backend takes no more of it; an answer may still come.
    Refused,
}

/// One request at one backend, both directions at once.
struct Run<'a> {
    conn: &'a mut Conn,
    service: &'a Arc<LiveService>,
    i: usize,
    tried: &'a Tried,
    spare_5xx: bool,
    passes: Passes,
    up: Io,
    up_rest: Rest,
    wire_sent: usize,
    replay_sent: usize,
    /// Body bytes that are not kept for a replay and that the backend has not taken yet.
    pending: Rest,
    sent: Sent,
    /// The last moment when the backend was not the one to be waited for.
    waiting_since: Instant,
    progress: bool,
    answer: Option<Answer>,
    /// The connection of an answer that was put aside can serve on.
    reusable: bool,
}

/// A response on its way to the client.
#[derive(Debug)]
struct Answer {
    status: u16,
    decoder: Decoder,
    dechunk: bool,
    until_close: bool,
    backend_stays: bool,
    client_stays: bool,
    upgraded: bool,
}

/// How the two directions of a run ended.
enum End {
    Done,
    Spared,
    ClientGone,
    BadBody(Refusal),
    Failed(ErrorKind),
}

impl Run<'_> {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<End> {
        if self.passes.stop(&self.service.backends[self.i]) || self.conn.over() {
            return Poll::Ready(End::Failed(ErrorKind::CutOff));
        }
        if matches!(self.sent, Sent::No | Sent::Some) {
            match self.poll_send(cx) {
                Poll::Ready(Ok(())) => self.sent = Sent::All,
                Poll::Ready(Err(Some(end))) => return Poll::Ready(end),
                // The backend takes no more, but may have said why.
                Poll::Ready(Err(None)) => self.sent = Sent::Refused,
                Poll::Pending => {}
            }
        }
        if self.answer.is_none() {
            if !self.conn.out.is_empty()
                && let Poll::Ready(Err(_gone)) = self.conn.poll_out(cx)
            {
                return Poll::Ready(End::ClientGone);
            }
            if let Poll::Ready(Err(end)) = self.poll_answer(cx) {
                return Poll::Ready(end);
            }
        }
        if self.answer.is_some()
            && let Poll::Ready(end) = self.poll_deliver(cx)
        {
            return Poll::Ready(end);
        }
        // While the body is still being read, its end is where a client is missed.
        if matches!(self.sent, Sent::All | Sent::Refused)
            && let Poll::Ready(Gone) = self.conn.poll_gone(cx)
        {
            return Poll::Ready(End::ClientGone);
        }
        self.poll_patience(cx)
    }

    /// Sends the head and the body. `Err(None)`: the backend does not take it.
    fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Option<End>>> {
        loop {
            let conn = &mut *self.conn;
            let replay = conn.body.replay.as_deref().unwrap_or_default();
            let (head, body) = (&conn.request.wire[self.wire_sent..], &replay[self.replay_sent..]);
            if !head.is_empty() || !body.is_empty() {
                let Ok(count) = ready!(self.up.poll_write_both(cx, head, body)) else {
                    return Poll::Ready(Err(None));
                };
                self.sent = Sent::Some;
                let of_head = count.min(head.len());
                self.wire_sent += of_head;
                self.replay_sent += count - of_head;
                continue;
            }
            if !self.pending.is_empty() {
                let Ok(count) = ready!(self.up.poll_write(cx, self.pending.as_slice())) else {
                    return Poll::Ready(Err(None));
                };
                self.pending.consume(count);
                self.progress = true;
                continue;
            }
            if conn.body.decoder.done() {
                return self.up.poll_flush(cx).map_err(|_refused| None);
            }
            let taken = if conn.rest.is_empty() {
                if conn.body.owes_continue {
                    conn.body.owes_continue = false;
                    conn.out.extend_from_slice(b"HTTP/1.1 100 Continue\r\n\r\n");
                    if let Poll::Ready(Err(_gone)) = conn.poll_out(cx) {
                        return Poll::Ready(Err(Some(End::ClientGone)));
                    }
                }
                // All that the client has sent so far must leave before it is waited for.
                if let Poll::Ready(Err(_refused)) = self.up.poll_flush(cx) {
                    return Poll::Ready(Err(None));
                }
                with_scratch(|scratch| {
                    let Some(count) = poll_some(conn.io.poll_read(cx, scratch)) else {
                        return Poll::Pending;
                    };
                    if count == 0 {
                        return Poll::Ready(Err(End::ClientGone));
                    }
                    let taken = conn.body.take(&scratch[..count], &mut self.pending, &conn.service);
                    if let Ok(taken) = taken {
                        conn.rest.push(&scratch[taken..count]);
                    }
                    Poll::Ready(taken.map_err(End::BadBody))
                })
            } else {
                let taken = conn.body.take(conn.rest.as_slice(), &mut self.pending, &conn.service);
                if let Ok(taken) = taken {
                    conn.rest.consume(taken);
                }
                Poll::Ready(taken.map_err(End::BadBody))
            };
            ready!(taken).map_err(Some)?;
            self.waiting_since = Instant::now();
            self.progress = true;
            // A body that has grown too large to keep was sent from the start of `replay`: what is left of it is pending.
            if let Some(dropped) = conn.body.outgrown(self.replay_sent) {
                self.pending.push(&dropped);
                self.replay_sent = 0;
            }
        }
    }

    /// Reads the answer's head, and sends it on with what came with it.
    fn poll_answer(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), End>> {
        loop {
            let read = with_scratch(|scratch| {
                let count = match ready!(self.up.poll_read(cx, scratch)) {
                    Ok(count) if count > 0 => count,
                    Ok(_) | Err(_) => return Poll::Ready(Err(End::Failed(ErrorKind::Reset))),
                };
                if self.up_rest.is_empty() {
                    let used = self.take_answer(cx, &scratch[..count])?;
                    self.up_rest.push(&scratch[used..count]);
                } else {
                    self.up_rest.push(&scratch[..count]);
                    let bytes = std::mem::take(&mut self.up_rest);
                    let used = self.take_answer(cx, bytes.as_slice())?;
                    self.up_rest = bytes;
                    self.up_rest.consume(used);
                }
                Poll::Ready(Ok(()))
            });
            ready!(read)?;
            if self.answer.is_some() {
                return Poll::Ready(Ok(()));
            }
            if self.up_rest.as_slice().len() > self.conn.head_bytes() {
                return Poll::Ready(Err(End::Failed(ErrorKind::BadAnswer)));
            }
        }
    }

    /// Takes as much of `bytes` as can be used; returns how many those were.
    fn take_answer(&mut self, cx: &mut Context<'_>, bytes: &[u8]) -> Result<usize, End> {
        let mut used = 0;
        loop {
            let conn = &mut *self.conn;
            let before = conn.out.len();
            let (method, http10) = (conn.request.method(), conn.request.http10);
            let parsed = head::read_response(&bytes[used..], method, http10, &mut conn.out)
                .map_err(|_bad| End::Failed(ErrorKind::BadAnswer))?;
            let Some((length, response)) = parsed else {
                conn.out.truncate(before);
                return Ok(used);
            };
            used += length;
            if response.status < 200 && response.status != 101 {
                // Interim answers are ours to give: we have said 100 ourselves.
                conn.out.truncate(before);
                continue;
            }
            let upgraded = response.status == 101;
            if upgraded && !conn.request.upgrade {
                conn.out.truncate(before);
                return Err(End::Failed(ErrorKind::BadAnswer));
            }
            let mut decoder = Decoder::new(response.framing);
            if response.status >= 500 && self.spare_5xx && self.spares(response.status) {
                self.conn.out.truncate(before);
                let whole = decoder.advance(&bytes[used..]).is_ok_and(|n| n == bytes.len() - used)
                    && decoder.done();
                self.reusable = whole && response.keep_alive && self.sent == Sent::All;
                return Err(End::Spared);
            }
            let conn = &mut *self.conn;
            let dechunk = conn.request.http10 && response.framing == Framing::Chunked;
            let until_close = response.framing == Framing::UntilClose;
            let client_stays =
                conn.request.keep_alive && !until_close && !dechunk && !worker::draining();
            if upgraded {
                conn.out.extend_from_slice(b"Connection: Upgrade\r\n");
            } else if !client_stays {
                conn.out.extend_from_slice(b"Connection: close\r\n");
            } else if conn.request.http10 {
                conn.out.extend_from_slice(b"Connection: keep-alive\r\n");
            }
            conn.out.extend_from_slice(b"\r\n");
            self.progress = true;
            let answer = self.answer.insert(Answer {
                status: response.status,
                decoder,
                dechunk,
                until_close,
                backend_stays: response.keep_alive,
                client_stays,
                upgraded,
            });
            let rest = &bytes[used..];
            let taken = answer.pass(rest, &mut conn.out, &mut conn.io, cx)?;
            return Ok(used + taken);
        }
    }

    /// Whether another backend could do better than this 5xx answer, and the budget allows to ask it.
    fn spares(&self, status: u16) -> bool {
        let retryable = matches!(status, 500 | 502 | 503 | 504);
        let other = self.service.backends.iter().enumerate().any(|(j, b)| {
            !self.tried.as_slice().contains(&j)
                && b.spec.state == crate::table::BackendState::Up
                && !b.state.ejected.load(Relaxed)
        });
        if !retryable || !other || !self.conn.body_intact() {
            return false;
        }
        let allowed = self.service.state.budget.withdraw(self.conn.world.now_ms());
        if !allowed {
            self.service.state.retries_denied.fetch_add(1, Relaxed);
        }
        allowed
    }

    /// Passes the body on until it ends.
    fn poll_deliver(&mut self, cx: &mut Context<'_>) -> Poll<End> {
        let conn = &mut *self.conn;
        let Some(answer) = &mut self.answer else { return Poll::Pending };
        loop {
            if !conn.out.is_empty() {
                let Ok(count) = ready!(conn.io.poll_write(cx, &conn.out)) else {
                    return Poll::Ready(End::ClientGone);
                };
                conn.out.drain(..count);
                self.progress = true;
                continue;
            }
            if answer.decoder.done() {
                return match ready!(conn.io.poll_flush(cx)) {
                    Ok(()) => Poll::Ready(End::Done),
                    Err(_gone) => Poll::Ready(End::ClientGone),
                };
            }
            if answer.upgraded {
                return Poll::Ready(End::Done);
            }
            let passed = if self.up_rest.is_empty() {
                with_scratch(|scratch| {
                    let count = match self.up.poll_read(cx, scratch) {
                        Poll::Ready(Ok(count)) if count > 0 => count,
                        Poll::Ready(Ok(_)) if answer.until_close => {
                            answer.decoder = Decoder::Length(0);
                            return Poll::Ready(Ok(()));
                        }
                        Poll::Ready(Ok(_) | Err(_)) => {
                            return Poll::Ready(Err(End::Failed(ErrorKind::Reset)));
                        }
                        Poll::Pending => return Poll::Pending,
                    };
                    let taken = answer.pass(&scratch[..count], &mut conn.out, &mut conn.io, cx)?;
                    self.up_rest.push(&scratch[taken..count]);
                    Poll::Ready(Ok(()))
                })
            } else {
                let taken = answer.pass(self.up_rest.as_slice(), &mut conn.out, &mut conn.io, cx);
                Poll::Ready(taken.map(|taken| self.up_rest.consume(taken)))
            };
            match passed {
                Poll::Ready(Ok(())) => self.progress = true,
                Poll::Ready(Err(end)) => return Poll::Ready(end),
                Poll::Pending => {
                    // What TLS keeps back must leave before the backend is waited for.
                    return match conn.io.poll_flush(cx) {
                        Poll::Ready(Err(_gone)) => Poll::Ready(End::ClientGone),
                        Poll::Ready(Ok(())) | Poll::Pending => Poll::Pending,
                    };
                }
            }
        }
    }

    /// Looks at the clock: is this still worth waiting for?
    fn poll_patience(&mut self, cx: &mut Context<'_>) -> Poll<End> {
        while self.conn.deadline.poll(cx).is_ready() {
            let now = Instant::now();
            let spec = &self.service.spec;
            let sending = matches!(self.sent, Sent::No | Sent::Some);
            if self.answer.is_some() || sending {
                // Bodies: some progress within each period, either way.
                let period = spec.timeouts.body;
                if self.answer.is_some() || self.progress {
                    if !std::mem::take(&mut self.progress) {
                        return Poll::Ready(self.out_of_patience());
                    }
                    self.conn.deadline.set(now + period);
                    continue;
                }
                if period <= now - self.waiting_since {
                    return Poll::Ready(self.out_of_patience());
                }
                self.conn.deadline.set((now + LOOK_EVERY).min(self.waiting_since + period));
                continue;
            }
            if self.conn.ended.is_some_and(|at| HALF_CLOSED_MAX <= now - at) {
                return Poll::Ready(End::ClientGone);
            }
            if spec.retry.try_timeout <= now - self.waiting_since {
                return Poll::Ready(End::Failed(ErrorKind::Timeout));
            }
            let repeatable = self.conn.request.method().idempotent()
                && self.conn.body_intact()
                && spec.retry.on_timeout;
            if repeatable && !self.backend_still_good() {
                return Poll::Ready(End::Failed(ErrorKind::Timeout));
            }
            self.conn
                .deadline
                .set((now + LOOK_EVERY).min(self.waiting_since + spec.retry.try_timeout));
        }
        Poll::Pending
    }

    /// Nothing has moved for too long: whose fault is that? A backend must not be blamed for a slow client.
    fn out_of_patience(&self) -> End {
        let conn = &*self.conn;
        let replay = conn.body.replay.as_deref().unwrap_or_default();
        let all_passed_on = self.wire_sent == conn.request.wire.len()
            && self.replay_sent == replay.len()
            && self.pending.is_empty();
        let client_owes = matches!(self.sent, Sent::No | Sent::Some)
            && all_passed_on
            && !conn.body.decoder.done();
        match &self.answer {
            Some(_) if client_owes || !conn.out.is_empty() => End::ClientGone,
            None if client_owes => {
                End::BadBody(Refusal { status: 408, reason: "request body took too long" })
            }
            Some(_) | None => End::Failed(ErrorKind::Timeout),
        }
    }

    /// In the table in force, which may be newer than the one that this request began with.
    fn backend_still_good(&self) -> bool {
        let id = self.service.backends[self.i].state.id;
        worker::service(&self.conn.door.service).is_some_and(|service| service.still_good(id))
    }

    /// Puts connections where they belong, and says how the try ended.
    async fn finish(self, end: End) -> Try {
        let clean = self.wire_sent == 0 && !self.conn.body.touched;
        let backend_id = self.service.backends[self.i].state.id;
        let all_sent = self.sent == Sent::All;
        let shared = self.service.spec.send_proxy.is_none();
        match (end, self.answer) {
            (End::Done, Some(answer)) if answer.upgraded => {
                let backend = &self.service.backends[self.i];
                // Counted now: a tunnel may last for days.
                backend.state.counters.tunnels.fetch_add(1, Relaxed);
                self.service.observe(&self.conn.world, self.i, Outcome::Good);
                let client =
                    std::mem::replace(&mut self.conn.io, Io::Memory(tokio::io::duplex(1).0));
                let rest = std::mem::take(&mut self.conn.rest);
                let idle = self.service.spec.timeouts.tunnel;
                let cut = tcp::Cut::of(backend, &self.service.state, self.passes.tunnel);
                tcp::run(client, rest, self.up, self.up_rest, idle, cut).await;
                Try::Tunnelled
            }
            (End::Done, Some(answer)) => {
                if answer.backend_stays && all_sent && self.up_rest.is_empty() && shared {
                    worker::put_idle(backend_id, self.up);
                }
                Try::Answered {
                    status: answer.status,
                    client_stays: answer.client_stays && all_sent,
                }
            }
            (End::Done, None) => Try::Failed { kind: ErrorKind::BadAnswer, clean: false },
            (End::Spared, _) => {
                if self.reusable && shared {
                    worker::put_idle(backend_id, self.up);
                }
                Try::Spared
            }
            (End::ClientGone, _) => Try::ClientGone,
            (End::BadBody(refusal), None) => Try::BadBody(refusal),
            (End::BadBody(_), Some(_)) => Try::ClientGone,
            (End::Failed(kind), None) => Try::Failed { kind, clean },
            (End::Failed(kind), Some(answer)) => {
                if answer.dechunk || answer.until_close {
                    // Its end is the end of the connection: only a reset tells that this was not it.
                    let nothing = Io::Memory(tokio::io::duplex(1).0);
                    std::mem::replace(&mut self.conn.io, nothing).reset();
                }
                Try::Broken(kind)
            }
        }
    }
}

impl Answer {
    /// Writes what is pending and the body part of `bytes`; returns how many of `bytes` belonged to the body.
    fn pass(
        &mut self,
        bytes: &[u8],
        out: &mut Vec<u8>,
        io: &mut Io,
        cx: &mut Context<'_>,
    ) -> Result<usize, End> {
        let bad = |_malformed| End::Failed(ErrorKind::BadAnswer);
        if self.dechunk {
            return self.decoder.decode(bytes, out).map_err(bad);
        }
        let taken = self.decoder.advance(bytes).map_err(bad)?;
        let body = &bytes[..taken];
        if out.is_empty() && body.is_empty() {
            return Ok(taken);
        }
        let written = match io.poll_write_both(cx, out, body) {
            Poll::Ready(Ok(count)) => count,
            Poll::Ready(Err(_gone)) => return Err(End::ClientGone),
            Poll::Pending => 0,
        };
        let of_out = written.min(out.len());
        out.drain(..of_out);
        out.extend_from_slice(&body[written - of_out..]);
        Ok(taken)
    }
}

impl BodyIn {
    /// Takes the body's part of `bytes` for sending; returns how many those were.
    fn take(
        &mut self,
        bytes: &[u8],
        pending: &mut Rest,
        service: &LiveService,
    ) -> Result<usize, Refusal> {
        let taken =
            self.decoder.advance(bytes).map_err(|m| Refusal { status: 400, reason: m.0 })?;
        self.touched = true;
        self.bytes += taken as u64;
        let max = service.spec.limits.body_bytes;
        if max > 0 && self.bytes > max {
            return Err(Refusal { status: 413, reason: "body too large" });
        }
        match &mut self.replay {
            Some(replay) => replay.extend_from_slice(&bytes[..taken]),
            None => pending.push(&bytes[..taken]),
        }
        Ok(taken)
    }

    /// Gives up the replay of a body that is too large for it; returns what of it has not been sent.
    fn outgrown(&mut self, sent: usize) -> Option<Vec<u8>> {
        if self.replay.as_ref().is_none_or(|r| r.len() <= REPLAY_MAX) {
            return None;
        }
        self.replay.take().map(|mut replay| replay.split_off(sent))
    }
}
