//! One request at one backend, both directions at once: the request there, the answer back, and the patience for both.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::time::Instant;

use super::answer::Answer;
use super::exchange::{Passes, Tried, Try};
use super::gone::{Gone, HALF_CLOSED_MAX};
use super::{Conn, poll_some};
use crate::eject::Outcome;
use crate::head::Refusal;
use crate::io::{Io, Rest, with_scratch};
use crate::live::LiveService;
use crate::stats::ErrorKind;
use crate::{tcp, worker};

/// How often a request that waits for an answer looks whether its backend is still good.
pub(super) const LOOK_EVERY: Duration = Duration::from_millis(250);

/// How far the request has got.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sent {
    No,
    Some,
    All,
    /// The backend takes no more of it; an answer may still come.
    Refused,
}

/// One request at one backend, both directions at once.
pub(super) struct Run<'a> {
    pub(super) conn: &'a mut Conn,
    pub(super) service: &'a Arc<LiveService>,
    pub(super) i: usize,
    pub(super) tried: &'a Tried,
    pub(super) spare_5xx: bool,
    pub(super) passes: Passes,
    pub(super) up: Io,
    pub(super) up_rest: Rest,
    pub(super) wire_sent: usize,
    pub(super) replay_sent: usize,
    /// Body bytes that are not kept for a replay and that the backend has not taken yet.
    pub(super) pending: Rest,
    pub(super) sent: Sent,
    /// The last moment when the backend was not the one to be waited for.
    pub(super) waiting_since: Instant,
    pub(super) progress: bool,
    pub(super) answer: Option<Answer>,
    /// The connection of an answer that was put aside can serve on.
    pub(super) reusable: bool,
}

/// How the two directions of a run ended.
pub(super) enum End {
    Done,
    Spared,
    ClientGone,
    BadBody(Refusal),
    Failed(ErrorKind),
}

impl Run<'_> {
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<End> {
        if self.passes.stop(self.service, self.i) || self.conn.over() {
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
    pub(super) async fn finish(self, end: End) -> Try {
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
                let cut =
                    tcp::Cut::of(self.service, backend, self.passes.tunnel, self.passes.lease);
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
            (End::Failed(kind), None) => {
                if kind == ErrorKind::CutOff {
                    // What the kernel still holds back for it must not reach it later.
                    self.up.reset();
                }
                Try::Failed { kind, clean }
            }
            (End::Failed(kind), Some(answer)) => {
                if kind == ErrorKind::CutOff {
                    self.up.reset();
                }
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
