//! A connection while a session begins: whole messages, read into a buffer that is given up afterwards.

use std::io;
use std::time::Duration;

use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;

use super::refusal::Refusal;
use crate::io::with_scratch;

/// No message is longer while a session begins (PG_MAX_AUTH_TOKEN_LENGTH).
const MESSAGE_MAX: usize = 65_535;

/// How long a client that was told an error is listened to, so that closing does not destroy what it has yet to read.
const PART_LIMIT: Duration = Duration::from_secs(1);

/// A peer that says nothing is asked whether it is there after so long, so often, and then given up.
const KEEPALIVE: (Duration, Duration, u32) = (Duration::from_secs(60), Duration::from_secs(15), 4);

#[derive(Debug)]
pub(crate) struct Wire {
    pub(crate) stream: TcpStream,
    pub(crate) buffer: Vec<u8>,
}

/// A whole message at the beginning of a buffer.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Message<'a> {
    pub(crate) tag: u8,
    pub(crate) body: &'a [u8],
    /// With its head.
    pub(crate) bytes: &'a [u8],
}

impl Wire {
    pub(crate) fn new(stream: TcpStream) -> Wire {
        Wire { stream, buffer: Vec::new() }
    }

    /// Reads once; may be given up at any time. False at the end.
    pub(crate) async fn fill(&mut self) -> io::Result<bool> {
        loop {
            self.stream.readable().await?;
            let read = with_scratch(|scratch| {
                let count = self.stream.try_read(scratch)?;
                self.buffer.extend_from_slice(&scratch[..count]);
                Ok::<usize, io::Error>(count)
            });
            match read {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                read => return read.map(|count| count > 0),
            }
        }
    }

    /// The message that the buffer begins with, if it is complete.
    pub(crate) fn message(&self) -> io::Result<Option<Message<'_>>> {
        let Some(&[tag, a, b, c, d]) = self.buffer.first_chunk::<5>() else { return Ok(None) };
        let length = usize::try_from(u32::from_be_bytes([a, b, c, d])).unwrap_or(usize::MAX);
        if !(4..=MESSAGE_MAX).contains(&length) {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "length of a message"));
        }
        let Some(bytes) = self.buffer.get(..=length) else { return Ok(None) };
        Ok(Some(Message { tag, body: &bytes[5..], bytes }))
    }

    pub(crate) fn consume(&mut self, count: usize) {
        self.buffer.drain(..count);
    }

    pub(crate) async fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.write_all(bytes).await
    }
}

/// Tells a client why it is left, and leaves it.
pub(crate) async fn part(mut client: TcpStream, refusal: &Refusal) {
    let parting = async {
        client.write_all(&refusal.wire()).await?;
        client.shutdown().await?;
        let mut wire = Wire::new(client);
        while wire.fill().await? {
            wire.buffer.clear();
        }
        Ok::<(), io::Error>(())
    };
    // Whoever does not listen is left all the same.
    drop(tokio::time::timeout(PART_LIMIT, parting).await);
}

/// Finds out by itself that the other side has gone without a word.
pub(crate) fn keep_alive(stream: &TcpStream) {
    use rustix::net::sockopt;
    let (idle, interval, count) = KEEPALIVE;
    // A system that cannot do this waits longer.
    sockopt::set_socket_keepalive(stream, true).ok();
    sockopt::set_tcp_keepidle(stream, idle).ok();
    sockopt::set_tcp_keepintvl(stream, interval).ok();
    sockopt::set_tcp_keepcnt(stream, count).ok();
}

/// The SQLSTATE of an ErrorResponse.
pub(crate) fn sqlstate(body: &[u8]) -> &[u8] {
    body.split(|&b| b == 0).find_map(|field| field.strip_prefix(b"C")).unwrap_or_default()
}
