//! One request: tried at one backend after another until it has an answer.
//!
//! It may be repeated as long as nothing of an answer has reached the client, and only if doing it twice is the same as doing
//! it once, or nothing of it was sent.

use std::future::poll_fn;
use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::task::Poll;
use std::time::Duration;

use tokio::time::Instant;

use super::Conn;
use super::body_in::BodyIn;
use super::gone::Gone;
use super::run::{LOOK_EVERY, Run, Sent};
use crate::body::Decoder;
use crate::eject::Outcome;
use crate::fence::Pass;
use crate::head::Refusal;
use crate::io::{Io, Rest};
use crate::live::LiveService;
use crate::stats::ErrorKind;
use crate::table::Balance;
use crate::worker;

/// A request that must not be sent twice takes a pooled connection only if it was used within this time, so that it does
/// not meet a backend that is just closing an idle connection.
const UNSAFE_REUSE_MAX: Duration = Duration::from_secs(1);

/// Tries of one request, whatever a table says.
const ATTEMPTS_MAX: usize = 16;

/// How one try ended.
pub(super) enum Try {
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

impl Conn {
    /// Carries one request to an answer. False: the connection has to end.
    pub(super) async fn exchange(&mut self, last_end: &mut Instant) -> bool {
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
            if service.unvouched() {
                last = ErrorKind::Unvouched;
                break;
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
            if kind == ErrorKind::CutOff && service.unvouched() && self.is_safe(clean) {
                last = ErrorKind::Unvouched;
                break;
            }
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
            | ErrorKind::ClientGone
            | ErrorKind::Unvouched => false,
        };
        wanted && self.is_safe(clean) && tries < usize::from(retry.attempts) && tries < ATTEMPTS_MAX
    }

    /// Whether doing it once more is the same as doing it once; `clean`: nothing of it was sent.
    fn is_safe(&self, clean: bool) -> bool {
        clean || (self.request.method().idempotent() && self.body_intact())
    }

    /// Whether the whole request could be sent again.
    pub(super) fn body_intact(&self) -> bool {
        self.body.replay.is_some() || !self.body.touched
    }

    /// The first retry goes at once; later ones wait, doubling, with jitter.
    async fn back_off(&mut self, service: &LiveService, tries: usize) -> Result<(), Gone> {
        let Some(doublings) = tries.checked_sub(2) else { return Ok(()) };
        let longest = service.spec.retry.backoff.saturating_mul(1 << doublings.min(10));
        let share = u32::try_from(worker::random() % 1000).expect("below 1000");
        let mut pause = pin!(tokio::time::sleep(longest / 2 + longest / 2000 * share));
        poll_fn(|cx| match pause.as_mut().poll(cx) {
            Poll::Ready(()) => Poll::Ready(Ok(())),
            Poll::Pending => self.poll_gone(cx).map(Err),
        })
        .await
    }

    /// One try at one backend, on a pooled connection if there is one.
    async fn attempt(&mut self, service: &Arc<LiveService>, i: usize, tried: &Tried) -> Try {
        let backend = &service.backends[i];
        let idempotent = self.request.method().idempotent();
        let age = if idempotent { service.spec.timeouts.backend_idle } else { UNSAFE_REUSE_MAX };
        // A PROXY header speaks for one client: connections that carry one are not shared.
        let alone = self.request.upgrade || service.spec.send_proxy.is_some();
        // Taken before a connection is, so that a fence in between is not missed.
        let passes = Passes::of(service, i);
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
        let connected = {
            // Pinned here and gone before the request is run: one place in memory serves both.
            let client = (self.door.client, self.door.local);
            let mut connecting = pin!(worker::connect(service, backend, client.0, client.1));
            poll_fn(|cx| {
                if passes.stop(service, i) || self.over() {
                    return Poll::Ready(Ok(None));
                }
                match connecting.as_mut().poll(cx) {
                    Poll::Ready(connected) => Poll::Ready(Ok(Some(connected))),
                    Poll::Pending => self.poll_gone(cx).map(Err),
                }
            })
            .await
        };
        match connected {
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
}

/// What a try was let in with at its backend, as a request and for the tunnel that it may become.
#[derive(Clone, Copy, Debug)]
pub(super) struct Passes {
    pub(super) request: Pass,
    pub(super) tunnel: Pass,
    pub(super) lease: Option<Pass>,
}

impl Passes {
    pub(super) fn of(service: &LiveService, i: usize) -> Passes {
        let backend = &service.backends[i].state;
        Passes {
            request: backend.requests.pass(),
            tunnel: backend.tunnels.pass(),
            lease: service.lease_pass(),
        }
    }

    /// Whether the backend has lost its role since or has drained for long enough, or nobody vouches for it any more.
    pub(super) fn stop(self, service: &LiveService, i: usize) -> bool {
        let backend = &service.backends[i].state;
        worker::stops(&backend.requests, self.request)
            || backend.over.load(Relaxed)
            || service.lease_stops(self.lease)
    }
}

/// The backends that have been tried for one request.
#[derive(Debug, Default)]
pub(super) struct Tried {
    pub(super) list: [usize; ATTEMPTS_MAX],
    pub(super) count: usize,
}

impl Tried {
    pub(super) fn push(&mut self, i: usize) {
        self.list[self.count] = i;
        self.count += 1;
    }

    /// The places were those of another table; only their number still counts.
    pub(super) fn forget(&mut self) {
        self.list = [usize::MAX; ATTEMPTS_MAX];
    }

    pub(super) fn as_slice(&self) -> &[usize] {
        &self.list[..self.count]
    }
}

/// Whether a connection failed for want of descriptors, ports or memory here: no fault of the backend's.
pub(crate) fn is_our_own_lack(error: &io::Error) -> bool {
    use rustix::io::Errno;
    let lacks = [Errno::MFILE, Errno::NFILE, Errno::ADDRNOTAVAIL, Errno::NOBUFS, Errno::NOMEM];
    Errno::from_io_error(error).is_some_and(|errno| lacks.contains(&errno))
}
