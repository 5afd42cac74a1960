//! Moves the messages of a session that has a server, until it loses its place, ends, or is to go on elsewhere.
//!
//! Bytes go through the thread's scratch buffer, as everywhere; on their way the session's `Talk` reads them.

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::sync::atomic::Ordering::Relaxed;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead as _, AsyncWrite as _, ReadBuf};
use tokio::net::TcpStream;

use super::place::{Place, Working, fences};
use super::refusal::Refusal;
use super::session::Session;
use super::talk::Heard;
use super::wire::Wire;
use crate::io::with_scratch;
use crate::stats::ErrorKind;
use crate::table::BackendState;
use crate::worker;

/// What a client says that ends its session.
pub(crate) const TERMINATE: [u8; 5] = [b'X', 0, 0, 0, 4];

/// Why a session has no server any more.
pub(crate) enum Left {
    /// Both sides know.
    Over,
    /// Nothing was under way, and it may go on at another server.
    Resting,
    /// The client has to be told.
    Refused(Refusal),
    /// The client is in the middle of a message that will never end.
    Torn,
}

/// Runs a session at a server until it leaves it.
pub(crate) async fn run(session: &mut Session, place: &Place, server: Wire) -> Left {
    let Wire { stream: server, buffer: early } = server;
    let run = &place.backend().state;
    let working = session.works().then(|| Working::begin(run));
    let mut relay = Relay {
        session,
        place,
        server,
        early,
        working,
        seen: None,
        stay: Stay::Here,
        deaf: false,
        ended: false,
    };
    let left = poll_fn(|cx| relay.poll(cx)).await;
    relay.leave();
    left
}

struct Relay<'a> {
    session: &'a mut Session,
    place: &'a Place,
    server: TcpStream,
    /// What the server said before it was listened to here.
    early: Vec<u8>,
    /// While it holds up a pause.
    working: Option<Working>,
    /// The table that `stay` was read from.
    seen: Option<u64>,
    stay: Stay,
    /// The server takes no bytes any more; what it has said is still to be read.
    deaf: bool,
    /// The client will say no more, and the server knows.
    ended: bool,
}

/// What the table says of sessions at this server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stay {
    Here,
    /// Begins nothing, leaves if it can, waits if it cannot.
    Pause,
    /// Leaves when it can, and goes on until then.
    Drain,
}

impl Relay<'_> {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Left> {
        if self.place.cut().now() {
            return Poll::Ready(self.cut_off());
        }
        if let Poll::Ready(left) = self.poll_back(cx) {
            return Poll::Ready(left);
        }
        match self.poll_front(cx) {
            Poll::Ready(left) => Poll::Ready(left),
            Poll::Pending => self.poll_stay(),
        }
    }

    /// A session that rests may have to leave, now that both directions have nothing to do.
    fn poll_stay(&mut self) -> Poll<Left> {
        if self.is_resting() {
            self.look();
            let leaves = self.stay != Stay::Here && self.session.talk.bound().is_none();
            if leaves {
                return Poll::Ready(Left::Resting);
            }
            if self.stay == Stay::Pause {
                self.working = None;
            }
        }
        Poll::Pending
    }

    fn is_resting(&self) -> bool {
        self.session.talk.at_rest() && !self.session.client_ended
    }

    /// Reads the table anew if it has changed.
    fn look(&mut self) {
        let now = fences();
        if self.seen == Some(now) {
            return;
        }
        self.seen = Some(now);
        self.stay = self.read_table();
        if self.stay != Stay::Pause && self.working.is_none() && self.session.works() {
            self.working = Some(Working::begin(&self.place.backend().state));
        }
    }

    fn read_table(&self) -> Stay {
        let Some(service) = worker::service(&self.session.door.service) else { return Stay::Drain };
        if service.spec.postgres.as_ref().is_some_and(|port| port.paused) {
            return Stay::Pause;
        }
        let id = self.place.backend().state.id;
        let state = service.backends.iter().find(|b| b.state.id == id).map(|b| b.spec.state);
        match state {
            Some(BackendState::Draining) | None => Stay::Drain,
            // What must not be used any more is cut; what is only unknown keeps its sessions.
            Some(
                BackendState::Up
                | BackendState::Unknown
                | BackendState::Down
                | BackendState::Passive,
            ) => Stay::Here,
        }
    }

    /// The place is lost.
    fn cut_off(&self) -> Left {
        let over = self.place.service().state.over.load(Relaxed);
        let left = if over && self.session.talk.at_rest() {
            self.told(Refusal::ends())
        } else {
            self.lost()
        };
        match &left {
            Left::Over | Left::Resting => {}
            Left::Refused(_) | Left::Torn => {
                self.place.backend().state.counters.failed(ErrorKind::CutOff);
            }
        }
        // Nothing of what the server may still say is to be heard.
        rustix::net::sockopt::set_socket_linger(&self.server, Some(std::time::Duration::ZERO)).ok();
        left
    }

    /// The server is lost: what that means for the client.
    fn lost(&self) -> Left {
        let talk = &self.session.talk;
        if self.session.client_ended {
            return Left::Over;
        }
        match (talk.at_rest(), talk.bound()) {
            (true, None) => Left::Resting,
            (true, Some(reason)) => {
                self.place.service().state.bound.fetch_add(1, Relaxed);
                self.told(Refusal::bound(reason))
            }
            (false, _) if talk.quiet() => self.told(Refusal::rolled_back()),
            (false, _) => self.told(Refusal::unknown_outcome()),
        }
    }

    fn told(&self, refusal: Refusal) -> Left {
        let may = self.session.talk.may_be_told() && self.session.to_client.is_empty();
        if may { Left::Refused(refusal) } else { Left::Torn }
    }

    /// From server to client.
    fn poll_back(&mut self, cx: &mut Context<'_>) -> Poll<Left> {
        loop {
            if ready!(self.session.poll_tell(cx)).is_err() {
                return Poll::Ready(Left::Over);
            }
            if let Some(left) = ready!(with_scratch(|scratch| self.poll_hear(cx, scratch))) {
                return Poll::Ready(left);
            }
        }
    }

    /// Reads once; `Some` if that was the end.
    fn poll_hear(&mut self, cx: &mut Context<'_>, scratch: &mut [u8]) -> Poll<Option<Left>> {
        let count = match ready!(self.poll_server(cx, scratch)) {
            Ok(0) | Err(_) => return Poll::Ready(Some(self.server_ended())),
            Ok(count) => count,
        };
        // What has come after the cut must not be passed on.
        if self.place.cut().now() {
            return Poll::Ready(Some(self.cut_off()));
        }
        let (pass, leaves) = match self.session.talk.back(&scratch[..count]) {
            Ok(Heard::All) => (count, false),
            Ok(Heard::Leaves(pass)) => (pass, true),
            Err(_malformed) => {
                self.place.backend().state.counters.failed(ErrorKind::BadAnswer);
                return Poll::Ready(Some(Left::Torn));
            }
        };
        self.place.backend().state.counters.bytes_out.fetch_add(pass as u64, Relaxed);
        if self.session.tell_at_once(cx, &scratch[..pass]).is_err() {
            return Poll::Ready(Some(Left::Over));
        }
        if leaves {
            self.place.suspect();
        }
        Poll::Ready(leaves.then_some(Left::Resting))
    }

    fn poll_server(&mut self, cx: &mut Context<'_>, scratch: &mut [u8]) -> Poll<io::Result<usize>> {
        match take_early(&mut self.early, scratch) {
            0 => poll_read(&mut self.server, cx, scratch),
            count => Poll::Ready(Ok(count)),
        }
    }

    fn poll_client(&mut self, cx: &mut Context<'_>, scratch: &mut [u8]) -> Poll<io::Result<usize>> {
        match take_early(&mut self.session.early, scratch) {
            0 => poll_read(&mut self.session.client, cx, scratch),
            count => Poll::Ready(Ok(count)),
        }
    }

    fn server_ended(&self) -> Left {
        let talk = &self.session.talk;
        if self.session.client_ended || talk.has_ended() || talk.refused_last() {
            return Left::Over;
        }
        if !talk.at_rest() {
            self.place.backend().state.counters.failed(ErrorKind::Reset);
        }
        self.place.suspect();
        self.lost()
    }

    /// From client to server.
    fn poll_front(&mut self, cx: &mut Context<'_>) -> Poll<Left> {
        loop {
            if self.deaf {
                return Poll::Pending;
            }
            if !self.session.to_server.is_empty() {
                match ready!(
                    Pin::new(&mut self.server).poll_write(cx, self.session.to_server.as_slice())
                ) {
                    Ok(count) => self.session.to_server.consume(count),
                    Err(_broken) => self.deaf = true,
                }
                continue;
            }
            if self.session.client_ended {
                return self.poll_end(cx);
            }
            if self.session.talk.at_rest() {
                if self.place.cut().now() {
                    return Poll::Ready(self.cut_off());
                }
                self.look();
                let waits = self.stay == Stay::Pause
                    || (self.stay == Stay::Drain && self.session.talk.bound().is_none());
                if waits {
                    return Poll::Pending;
                }
            }
            if let Some(left) = ready!(with_scratch(|scratch| self.poll_say(cx, scratch))) {
                return Poll::Ready(left);
            }
        }
    }

    /// Passes the end of the client on.
    fn poll_end(&mut self, cx: &mut Context<'_>) -> Poll<Left> {
        if !self.ended {
            // A server that has closed as well is about to be heard of.
            drop(ready!(Pin::new(&mut self.server).poll_shutdown(cx)));
            self.ended = true;
        }
        Poll::Pending
    }

    /// Reads once from the client; `Some` if that was the end of all.
    fn poll_say(&mut self, cx: &mut Context<'_>, scratch: &mut [u8]) -> Poll<Option<Left>> {
        let count = match ready!(self.poll_client(cx, scratch)) {
            Ok(count) => count,
            Err(_gone) => return Poll::Ready(Some(Left::Over)),
        };
        if count == 0 {
            self.session.client_ended = true;
            return Poll::Ready(None);
        }
        if let Err(malformed) = self.session.talk.front(&scratch[..count]) {
            self.place.service().state.own.failed(ErrorKind::BadRequest);
            return Poll::Ready(Some(self.told(Refusal::malformed(malformed.0))));
        }
        self.place.backend().state.counters.bytes_in.fetch_add(count as u64, Relaxed);
        let written = match Pin::new(&mut self.server).poll_write(cx, &scratch[..count]) {
            Poll::Ready(Ok(written)) => written,
            Poll::Ready(Err(_broken)) => {
                self.deaf = true;
                return Poll::Ready(None);
            }
            Poll::Pending => 0,
        };
        self.session.to_server.push(&scratch[written..count]);
        Poll::Ready(None)
    }

    /// Says goodbye to a server whose session rests; any other server notices by itself.
    fn leave(&self) {
        if self.session.talk.at_rest() {
            // Between two messages, and there is room in the socket: or else closing says the same.
            self.server.try_write(&TERMINATE).ok();
        }
    }
}

/// Takes what was read before; it gives its memory back.
fn take_early(early: &mut Vec<u8>, buffer: &mut [u8]) -> usize {
    let count = early.len().min(buffer.len());
    if count > 0 {
        buffer[..count].copy_from_slice(&early[..count]);
        *early = early.split_off(count);
    }
    count
}

/// Reads into a buffer.
pub(crate) fn poll_read(
    stream: &mut TcpStream,
    cx: &mut Context<'_>,
    buffer: &mut [u8],
) -> Poll<io::Result<usize>> {
    let mut buffer = ReadBuf::new(buffer);
    ready!(Pin::new(stream).poll_read(cx, &mut buffer))?;
    Poll::Ready(Ok(buffer.filled().len()))
}
