//! An answer on its way to the client: its head is read and written anew, its body passed on as it comes.

use std::sync::atomic::Ordering::Relaxed;
use std::task::{Context, Poll, ready};

use super::run::{End, Run, Sent};
use crate::body::{Decoder, Framing};
use crate::head;
use crate::io::{Io, with_scratch};
use crate::stats::ErrorKind;
use crate::worker;

/// A response on its way to the client.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) decoder: Decoder,
    pub(super) dechunk: bool,
    pub(super) until_close: bool,
    pub(super) backend_stays: bool,
    pub(super) client_stays: bool,
    pub(super) upgraded: bool,
}

impl Run<'_> {
    /// Reads the answer's head, and sends it on with what came with it.
    pub(super) fn poll_answer(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), End>> {
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
    pub(super) fn poll_deliver(&mut self, cx: &mut Context<'_>) -> Poll<End> {
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
