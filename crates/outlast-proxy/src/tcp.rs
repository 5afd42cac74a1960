//! Bytes both ways: TCP services, and HTTP connections after an upgrade.
//!
//! Small messages are copied. When a read fills the buffer, the direction switches to splice(2): the kernel moves pages through
//! a pipe and the bytes never enter this process.

use std::future::poll_fn;
use std::io;
use std::os::fd::OwnedFd;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use rustix::pipe::{PipeFlags, SpliceFlags};
use tokio::io::Interest;
use tokio::net::TcpStream;

use crate::eject::Outcome;
use crate::fence::Pass;
use crate::http1::{Door, is_our_own_lack};
use crate::io::{Deadline, Io, Rest, SCRATCH, with_scratch};
use crate::live::{BackendRun, Flight, LiveBackend, LiveService};
use crate::seats::Seat;
use crate::stats::ErrorKind;
use crate::worker;

/// Bytes that a pipe may hold; fewer if the system allows no more.
const PIPE_BYTES: usize = 256 << 10;

/// Pipes that one thread keeps for later.
const PIPES_KEPT: usize = 64;

thread_local! {
    static PIPES: std::cell::RefCell<Vec<Pipe>> = const { std::cell::RefCell::new(Vec::new()) };
}

/// An empty pipe.
#[derive(Debug)]
struct Pipe {
    from: OwnedFd,
    to: OwnedFd,
    bytes: usize,
}

impl Pipe {
    fn take() -> io::Result<Pipe> {
        if let Some(pipe) = PIPES.with_borrow_mut(Vec::pop) {
            return Ok(pipe);
        }
        let (from, to) = rustix::pipe::pipe_with(PipeFlags::NONBLOCK | PipeFlags::CLOEXEC)?;
        // More is only faster. Who is refused more may have been given less than others, too.
        let bytes = rustix::pipe::fcntl_setpipe_size(&to, PIPE_BYTES)
            .or_else(|_refused| rustix::pipe::fcntl_getpipe_size(&to))?;
        Ok(Pipe { from, to, bytes })
    }

    fn give_back(self) {
        PIPES.with_borrow_mut(|pipes| {
            if pipes.len() < PIPES_KEPT {
                pipes.push(self);
            }
        });
    }
}

/// Serves one client of a TCP service.
pub(crate) async fn serve(io: Io, rest: Rest, door: Door) {
    let Some(mut service) = worker::service(&door.service) else { return };
    let world = worker::with(|w| w.world.clone());
    let _seat = Seat::take().await;
    let Some(mut flight) = Flight::board(&service).await else {
        service.state.own.failed(ErrorKind::Limit);
        return;
    };
    let key = crate::balance::hash(door.client.ip().to_string().as_bytes());
    let mut tried = Vec::new();
    for _ in 0..service.spec.retry.attempts {
        // The queue and every try take time: who may serve is asked anew.
        let Some(now) = worker::service(&door.service) else { break };
        if !Arc::ptr_eq(&now, &service) {
            (service, tried) = (now, Vec::new());
        }
        if service.unvouched() {
            service.state.own.failed(ErrorKind::Unvouched);
            return;
        }
        let Some(i) = service.pick(&world, &tried, worker::random(), key) else { break };
        tried.push(i);
        let backend = &service.backends[i];
        flight.goes_to(&backend.state);
        // Taken before the connection is made, so that a fence in between is not missed.
        let cut = Cut::of(&service, backend, backend.state.tunnels.pass(), service.lease_pass());
        let connected = {
            // Gone before bytes are moved: one place in memory serves both.
            let connecting = pin!(worker::connect(&service, backend, door.client, door.local));
            cut.unless(connecting).await
        };
        let up = match connected {
            Some(Ok(up)) => up,
            // Nothing was sent: the new side may have it.
            None => continue,
            Some(Err(error)) if is_our_own_lack(&error) => {
                service.state.own.failed(ErrorKind::Limit);
                return;
            }
            Some(Err(_refused)) => {
                backend.state.counters.failed(ErrorKind::Connect);
                service.observe(&world, i, Outcome::Failure);
                continue;
            }
        };
        service.observe(&world, i, Outcome::Good);
        backend.state.counters.tunnels.fetch_add(1, Relaxed);
        run(io, rest, up, Rest::default(), service.spec.timeouts.tunnel, cut).await;
        return;
    }
    service.state.own.failed(ErrorKind::NoBackend);
}

/// When tunnels to a backend have to end. Their task has a seat, so that they look when something changes.
#[derive(Clone, Copy)]
pub(crate) struct Cut<'a> {
    backend: &'a BackendRun,
    service: &'a LiveService,
    pass: Pass,
    lease: Option<Pass>,
}

impl<'a> Cut<'a> {
    pub(crate) fn of(
        service: &'a LiveService,
        backend: &'a LiveBackend,
        pass: Pass,
        lease: Option<Pass>,
    ) -> Cut<'a> {
        Cut { backend: &backend.state, service, pass, lease }
    }

    /// The backend must not serve any more, nobody vouches for it, or its or our time for draining is over.
    pub(crate) fn now(&self) -> bool {
        worker::stops(&self.backend.tunnels, self.pass)
            || self.backend.over.load(Relaxed)
            || self.service.state.over.load(Relaxed)
            || self.service.lease_stops(self.lease)
    }

    /// Waits for something unless the tunnel is to end first.
    pub(crate) async fn unless<F: Future>(&self, mut work: Pin<&mut F>) -> Option<F::Output> {
        poll_fn(|cx| {
            if self.now() {
                return Poll::Ready(None);
            }
            work.as_mut().poll(cx).map(Some)
        })
        .await
    }
}

/// Moves bytes both ways until both sides have ended, one breaks, nothing moves for `idle`, or the tunnel is cut.
pub(crate) async fn run(
    mut client: Io,
    client_rest: Rest,
    mut up: Io,
    up_rest: Rest,
    idle: Duration,
    cut: Cut<'_>,
) {
    let counters = &cut.backend.counters;
    let mut there = Direction::new(client_rest, &counters.bytes_in);
    let mut back = Direction::new(up_rest, &counters.bytes_out);
    let mut deadline = Deadline::new(idle);
    let moving = pin!(poll_fn(|cx| {
        let a = there.poll(cx, &mut client, &mut up);
        let b = back.poll(cx, &mut up, &mut client);
        match (a, b) {
            (Poll::Ready(Err(e)), _) | (_, Poll::Ready(Err(e))) => return Poll::Ready(Err(e)),
            (Poll::Ready(Ok(())), Poll::Ready(Ok(()))) => return Poll::Ready(Ok(())),
            (Poll::Pending, _) | (_, Poll::Pending) => {}
        }
        while deadline.poll(cx).is_ready() {
            if !there.stirred() & !back.stirred() {
                return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
            }
            deadline.set_after(idle);
        }
        Poll::Pending
    }));
    // Both sides see the end of the connection; there is nobody else to tell.
    if cut.unless(moving).await.is_none() {
        counters.failed(ErrorKind::CutOff);
        client.reset();
        up.reset();
    }
    there.end();
    back.end();
}

/// One of the two directions.
struct Direction<'a> {
    pending: Rest,
    pipe: Option<Pipe>,
    in_pipe: usize,
    state: State,
    stirred: bool,
    bytes: &'a AtomicU64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Open,
    /// The source has ended; the rest is on its way.
    Ending,
    Ended,
}

impl<'a> Direction<'a> {
    fn new(pending: Rest, bytes: &'a AtomicU64) -> Direction<'a> {
        Direction { pending, pipe: None, in_pipe: 0, state: State::Open, stirred: false, bytes }
    }

    /// Whether anything moved since the last call.
    fn stirred(&mut self) -> bool {
        std::mem::take(&mut self.stirred)
    }

    fn end(&mut self) {
        if let Some(pipe) = self.pipe.take()
            && self.in_pipe == 0
        {
            pipe.give_back();
        }
    }

    fn moved(&mut self, count: usize) {
        self.stirred = true;
        self.bytes.fetch_add(count as u64, Relaxed);
    }

    fn poll(&mut self, cx: &mut Context<'_>, from: &mut Io, to: &mut Io) -> Poll<io::Result<()>> {
        loop {
            if !self.pending.is_empty() {
                let count = ready!(to.poll_write(cx, self.pending.as_slice()))?;
                self.pending.consume(count);
                self.moved(count);
                continue;
            }
            if self.in_pipe > 0 {
                ready!(self.poll_drain(cx, to))?;
                continue;
            }
            match self.state {
                State::Open => {}
                State::Ending => {
                    ready!(to.poll_shutdown(cx))?;
                    self.state = State::Ended;
                    return Poll::Ready(Ok(()));
                }
                State::Ended => return Poll::Ready(Ok(())),
            }
            let step = match (&mut *from, &*to) {
                (Io::Tcp(from), Io::Tcp(_)) if self.pipe.is_some() => self.poll_fill(cx, from),
                (from, _) => self.poll_copy(cx, from, to),
            };
            if step.is_pending() {
                // What TLS keeps back must leave before more is waited for.
                if let Poll::Ready(Err(e)) = to.poll_flush(cx) {
                    return Poll::Ready(Err(e));
                }
            }
            ready!(step)?;
        }
    }

    /// Reads once and writes what it can of it.
    fn poll_copy(
        &mut self,
        cx: &mut Context<'_>,
        from: &mut Io,
        to: &mut Io,
    ) -> Poll<io::Result<()>> {
        with_scratch(|scratch| {
            let count = ready!(from.poll_read(cx, scratch))?;
            if count == 0 {
                self.state = State::Ending;
                return Poll::Ready(Ok(()));
            }
            let written = match to.poll_write(cx, &scratch[..count]) {
                Poll::Ready(written) => written?,
                Poll::Pending => 0,
            };
            self.moved(written);
            self.pending.push(&scratch[written..count]);
            if count == SCRATCH && matches!((&*from, &*to), (Io::Tcp(_), Io::Tcp(_))) {
                // Without a pipe (no descriptors left, say) copying goes on.
                self.pipe = Pipe::take().ok();
            }
            Poll::Ready(Ok(()))
        })
    }

    /// Splices from the socket into the empty pipe.
    fn poll_fill(&mut self, cx: &mut Context<'_>, from: &TcpStream) -> Poll<io::Result<()>> {
        let Some(pipe) = &self.pipe else { return Poll::Ready(Ok(())) };
        loop {
            ready!(from.poll_read_ready(cx))?;
            let filled = from.try_io(Interest::READABLE, || {
                Ok(rustix::pipe::splice(from, None, &pipe.to, None, pipe.bytes, SPLICE)?)
            });
            match filled {
                Ok(0) => self.state = State::Ending,
                Ok(count) => self.in_pipe = count,
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => continue,
                Err(e) => return Poll::Ready(Err(e)),
            }
            return Poll::Ready(Ok(()));
        }
    }

    /// Splices from the pipe into the socket.
    fn poll_drain(&mut self, cx: &mut Context<'_>, to: &Io) -> Poll<io::Result<()>> {
        let (Some(pipe), Io::Tcp(to)) = (&self.pipe, to) else {
            return Poll::Ready(Err(io::Error::other(
                "a pipe between connections that cannot splice",
            )));
        };
        loop {
            ready!(to.poll_write_ready(cx))?;
            let drained = to.try_io(Interest::WRITABLE, || {
                Ok(rustix::pipe::splice(&pipe.from, None, to, None, self.in_pipe, SPLICE)?)
            });
            match drained {
                Ok(count) => {
                    self.in_pipe -= count;
                    self.moved(count);
                    return Poll::Ready(Ok(()));
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                Err(e) => return Poll::Ready(Err(e)),
            }
        }
    }
}

const SPLICE: SpliceFlags = SpliceFlags::MOVE.union(SpliceFlags::NONBLOCK);
