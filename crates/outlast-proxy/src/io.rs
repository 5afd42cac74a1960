//! Connections, one scratch buffer per thread, and a deadline that is cheap to move.
//!
//! A connection owns no buffer while it is idle: bytes are read into the thread's scratch buffer and handed on from there;
//! only what could not be handed on is kept.

use std::cell::RefCell;
use std::future::Future as _;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, DuplexStream, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::Instant;

/// Bytes that one read takes at most.
pub(crate) const SCRATCH: usize = 64 << 10;

thread_local! {
    static BUFFER: RefCell<Box<[u8]>> = RefCell::new(vec![0; SCRATCH].into_boxed_slice());
}

/// Lends the thread's scratch buffer; not to be nested.
pub(crate) fn with_scratch<R>(body: impl FnOnce(&mut [u8]) -> R) -> R {
    BUFFER.with_borrow_mut(|buffer| body(buffer))
}

/// A connection of any kind.
#[derive(Debug)]
pub(crate) enum Io {
    Tcp(TcpStream),
    Server(Box<tokio_rustls::server::TlsStream<TcpStream>>),
    Client(Box<tokio_rustls::client::TlsStream<TcpStream>>),
    /// One stream of an HTTP/2 connection, translated to HTTP/1.1.
    Memory(DuplexStream),
}

impl Io {
    pub(crate) fn poll_read(
        &mut self,
        cx: &mut Context<'_>,
        buffer: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        let mut buf = ReadBuf::new(buffer);
        ready!(match self {
            Io::Tcp(io) => Pin::new(io).poll_read(cx, &mut buf),
            Io::Server(io) => Pin::new(io).poll_read(cx, &mut buf),
            Io::Client(io) => Pin::new(io).poll_read(cx, &mut buf),
            Io::Memory(io) => Pin::new(io).poll_read(cx, &mut buf),
        })?;
        Poll::Ready(Ok(buf.filled().len()))
    }

    pub(crate) fn poll_write(
        &mut self,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        match self {
            Io::Tcp(io) => Pin::new(io).poll_write(cx, bytes),
            Io::Server(io) => Pin::new(io).poll_write(cx, bytes),
            Io::Client(io) => Pin::new(io).poll_write(cx, bytes),
            Io::Memory(io) => Pin::new(io).poll_write(cx, bytes),
        }
    }

    /// Writes `head` and then `body`, in one call where the kind of connection allows it.
    pub(crate) fn poll_write_both(
        &mut self,
        cx: &mut Context<'_>,
        head: &[u8],
        body: &[u8],
    ) -> Poll<io::Result<usize>> {
        match self {
            _ if head.is_empty() => self.poll_write(cx, body),
            Io::Tcp(io) if !body.is_empty() => {
                Pin::new(io).poll_write_vectored(cx, &[IoSlice::new(head), IoSlice::new(body)])
            }
            Io::Tcp(_) | Io::Server(_) | Io::Client(_) | Io::Memory(_) => self.poll_write(cx, head),
        }
    }

    /// Only TLS keeps bytes back.
    pub(crate) fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Io::Tcp(_) | Io::Memory(_) => Poll::Ready(Ok(())),
            Io::Server(io) => Pin::new(io).poll_flush(cx),
            Io::Client(io) => Pin::new(io).poll_flush(cx),
        }
    }

    pub(crate) fn poll_shutdown(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Io::Tcp(io) => Pin::new(io).poll_shutdown(cx),
            Io::Server(io) => Pin::new(io).poll_shutdown(cx),
            Io::Client(io) => Pin::new(io).poll_shutdown(cx),
            Io::Memory(io) => Pin::new(io).poll_shutdown(cx),
        }
    }

    /// Closes with a reset: nothing that is still queued reaches the other side.
    pub(crate) fn reset(self) {
        let stream = match &self {
            Io::Tcp(stream) => stream,
            Io::Server(tls) => tls.get_ref().0,
            Io::Client(tls) => tls.get_ref().0,
            Io::Memory(_) => return,
        };
        // A socket that is already gone needs no reset.
        rustix::net::sockopt::set_socket_linger(stream, Some(Duration::ZERO)).ok();
    }
}

/// Bytes that were read but not used yet. Gives its memory back when it is empty.
#[derive(Debug, Default)]
pub(crate) struct Rest {
    bytes: Vec<u8>,
    at: usize,
}

impl Rest {
    pub(crate) fn is_empty(&self) -> bool {
        self.at == self.bytes.len()
    }

    pub(crate) fn as_slice(&self) -> &[u8] {
        &self.bytes[self.at..]
    }

    pub(crate) fn push(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    pub(crate) fn consume(&mut self, count: usize) {
        self.at += count;
        if self.is_empty() {
            *self = Rest::default();
        }
    }
}

/// A deadline that moves with every request but touches the timer wheel only when it must.
///
/// Moving it later costs nothing: the timer that is already set fires early, looks, and sets itself again.
#[derive(Debug)]
pub(crate) struct Deadline {
    at: Instant,
    armed: Instant,
    sleep: Pin<Box<tokio::time::Sleep>>,
}

impl Deadline {
    pub(crate) fn new(after: Duration) -> Deadline {
        let at = Instant::now() + after;
        Deadline { at, armed: at, sleep: Box::pin(tokio::time::sleep_until(at)) }
    }

    pub(crate) fn set(&mut self, at: Instant) {
        self.at = at;
        if at < self.armed {
            self.arm(at);
        }
    }

    pub(crate) fn set_after(&mut self, after: Duration) {
        self.set(Instant::now() + after);
    }

    fn arm(&mut self, at: Instant) {
        self.armed = at;
        self.sleep.as_mut().reset(at);
    }

    /// Ready when the deadline has passed.
    pub(crate) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            ready!(self.sleep.as_mut().poll(cx));
            if self.at <= self.armed {
                return Poll::Ready(());
            }
            self.arm(self.at);
        }
    }
}
