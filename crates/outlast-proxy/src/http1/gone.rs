//! Clients that go before they have their answer: whatever a request waits for, its client is watched meanwhile.

use std::future::poll_fn;
use std::pin::pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::time::Instant;

use super::Conn;
use crate::io::{Io, with_scratch};
use crate::live::{Flight, LiveService};

/// How long a client that has ended its side is still taken to be there, waiting for an answer: clients that close
/// and clients that only say that they send no more look the same.
pub(super) const HALF_CLOSED_MAX: Duration = Duration::from_secs(1);

/// Bytes that are read ahead of their use, in order to see whether the client has gone.
const AHEAD_MAX: usize = 16 << 10;

/// The client has gone.
pub(super) struct Gone;

impl Conn {
    /// Takes a place among the service's requests. A queue is for clients that wait: whoever has ended its side is taken
    /// to be gone.
    pub(super) async fn board(&mut self, service: &LiveService) -> Result<Option<Flight>, Gone> {
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

    /// Ready once the client has certainly gone. One that has only ended its side is noted down in `ended`.
    pub(super) fn poll_gone(&mut self, cx: &mut Context<'_>) -> Poll<Gone> {
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
}
