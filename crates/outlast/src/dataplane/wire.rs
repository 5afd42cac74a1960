//! Messages between an agent and its proxy: a length, JSON, and file descriptors beside it.
//!
//! Both ends come from one binary except during an upgrade. So `Hello`, `GiveSockets`, `Sockets`, `Drain` and `Draining` never
//! change their form, and everything else is only sent to a proxy of the same build.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::net::SocketAddr;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use outlast_proxy::Notice;
use outlast_proxy::stats::Stats;
use outlast_proxy::table::Table;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags,
};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// Bytes of one message.
const MESSAGE_MAX: usize = 16 << 20;

/// Descriptors that travel in one piece; the kernel takes 253. The first piece is beside the message's first byte: a build
/// that knows of one piece only can still be given this many.
const PIECE_MAX: usize = 128;

/// Listening sockets of one node, and so descriptors of one message.
pub const SOCKETS_MAX: usize = outlast_core::topology::LISTENERS_MAX;

/// What an agent says.
#[derive(Debug, Serialize, Deserialize)]
pub enum ToProxy {
    /// Put this table in force. The sockets for `sockets` come with the message, in their order.
    Apply {
        table: Box<Table>,
        sockets: Vec<SocketAddr>,
    },
    GiveSockets,
    GiveStats,
    /// The node vouches for what it knows until then, on the boottime clock: the one clock that both processes read alike,
    /// and no other machine does. No answer.
    Vouch {
        until: Duration,
    },
    /// Stop accepting, finish what is open, end after `deadline` at the latest.
    Drain {
        deadline: Duration,
    },
}

/// What a proxy says.
#[derive(Debug, Serialize, Deserialize)]
pub enum FromProxy {
    Hello(Hello),
    Applied {
        generation: u64,
    },
    NotApplied {
        generation: u64,
        reason: String,
    },
    /// The listening sockets come with the message, in their order.
    Sockets {
        addresses: Vec<SocketAddr>,
    },
    Stats(Stats),
    Notice(Notice),
    Draining {
        connections: u64,
    },
}

/// Who a proxy is.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Hello {
    pub pid: u32,
    /// Hash of the binary that it runs.
    pub build: String,
    pub draining: bool,
    /// The table in force; readable for the same build.
    pub table: serde_json::Value,
}

/// Sends one message with its descriptors.
pub fn send<T: Serialize>(
    stream: &UnixStream,
    message: &T,
    fds: &[BorrowedFd<'_>],
) -> io::Result<()> {
    let mut bytes = vec![0; 4];
    serde_json::to_writer(&mut bytes, message).map_err(io::Error::other)?;
    let length = u32::try_from(bytes.len() - 4)
        .ok()
        .filter(|&l| usize::try_from(l).is_ok_and(|l| l <= MESSAGE_MAX));
    let length = length.ok_or_else(|| io::Error::other("message too long"))?;
    bytes[..4].copy_from_slice(&length.to_be_bytes());
    if fds.len() > SOCKETS_MAX {
        return Err(io::Error::other(format!("more than {SOCKETS_MAX} listening sockets")));
    }
    let mut pieces = fds.chunks(PIECE_MAX);
    let mut sent = 0;
    // Each piece but the last goes beside one byte of its own.
    for piece in pieces.by_ref().take(fds.len().div_ceil(PIECE_MAX).saturating_sub(1)) {
        sent += send_piece(stream, &bytes[sent..=sent], piece)?;
    }
    sent += send_piece(stream, &bytes[sent..], pieces.next().unwrap_or_default())?;
    while sent < bytes.len() {
        match rustix::net::send(stream, &bytes[sent..], SendFlags::NOSIGNAL) {
            Ok(count) => sent += count,
            Err(rustix::io::Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(())
}

/// Sends bytes, some of them at least, and beside the first one descriptors.
fn send_piece(stream: &UnixStream, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<usize> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(PIECE_MAX))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(fds)) {
        return Err(io::Error::other("a piece of descriptors that is too large"));
    }
    loop {
        let slices = [IoSlice::new(bytes)];
        match rustix::net::sendmsg(stream, &slices, &mut control, SendFlags::NOSIGNAL) {
            Ok(count) => return Ok(count),
            Err(rustix::io::Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
}

/// Receives one message with its descriptors; `Ok(None)` when the other side has closed. After `InvalidData` (a message of
/// another build) the next one can be received.
pub fn receive<T: DeserializeOwned>(stream: &UnixStream) -> io::Result<Option<(T, Vec<OwnedFd>)>> {
    let mut head = [0; 4];
    let mut fds = Vec::new();
    if !read_all(stream, &mut head, &mut fds)? {
        return Ok(None);
    }
    let length = usize::try_from(u32::from_be_bytes(head)).ok().filter(|&l| l <= MESSAGE_MAX);
    let length = length.ok_or_else(|| io::Error::other("message too long"))?;
    let mut bytes = vec![0; length];
    if !read_all(stream, &mut bytes, &mut fds)? && length > 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    let invalid = |error| io::Error::new(io::ErrorKind::InvalidData, error);
    let message = serde_json::from_slice(&bytes).map_err(invalid)?;
    Ok(Some((message, fds)))
}

/// Fills `bytes` and keeps the descriptors that come beside them; false if the other side has closed before the first.
fn read_all(stream: &UnixStream, bytes: &mut [u8], fds: &mut Vec<OwnedFd>) -> io::Result<bool> {
    let mut have = 0;
    while have < bytes.len() {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(PIECE_MAX))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut slices = [IoSliceMut::new(&mut bytes[have..])];
        let flags = RecvFlags::CMSG_CLOEXEC;
        let got = match rustix::net::recvmsg(stream.as_fd(), &mut slices, &mut control, flags) {
            Ok(got) => got,
            Err(rustix::io::Errno::INTR) => continue,
            Err(errno) => return Err(errno.into()),
        };
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(received) = message {
                fds.extend(received);
            }
        }
        if got.flags.contains(rustix::net::ReturnFlags::CTRUNC) {
            return Err(io::Error::other("descriptors were lost: the limit of open files"));
        }
        if fds.len() > SOCKETS_MAX {
            return Err(io::Error::other(format!("more than {SOCKETS_MAX} listening sockets")));
        }
        if got.bytes == 0 {
            return if have == 0 { Ok(false) } else { Err(io::ErrorKind::UnexpectedEof.into()) };
        }
        have += got.bytes;
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_and_sockets_arrive_together_and_in_order() {
        let (near, far) = UnixStream::pair().unwrap();
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        send(&near, &FromProxy::Applied { generation: 1 }, &[]).unwrap();
        send(&near, &FromProxy::Sockets { addresses: vec![address] }, &[listener.as_fd()]).unwrap();
        drop(near);
        let (first, fds) = receive::<FromProxy>(&far).unwrap().unwrap();
        assert!(matches!(first, FromProxy::Applied { generation: 1 }) && fds.is_empty());
        let (second, mut fds) = receive::<FromProxy>(&far).unwrap().unwrap();
        assert!(matches!(second, FromProxy::Sockets { .. }));
        let passed = std::net::TcpListener::from(fds.pop().unwrap());
        assert_eq!(passed.local_addr().unwrap(), address);
        assert!(receive::<FromProxy>(&far).unwrap().is_none());
    }
    #[test]
    fn as_many_sockets_as_a_node_may_have_arrive_in_their_order() {
        let mut addresses = Vec::new();
        let mut listeners = Vec::new();
        for _ in 0..SOCKETS_MAX {
            let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
            addresses.push(listener.local_addr().unwrap());
            listeners.push(listener);
        }
        for count in [0, 1, PIECE_MAX, PIECE_MAX + 1, 2 * PIECE_MAX, 300, SOCKETS_MAX] {
            let (near, far) = UnixStream::pair().unwrap();
            let fds: Vec<BorrowedFd<'_>> = listeners[..count].iter().map(|l| l.as_fd()).collect();
            let message = FromProxy::Sockets { addresses: addresses[..count].to_vec() };
            send(&near, &message, &fds).unwrap();
            send(&near, &FromProxy::Applied { generation: 7 }, &[]).unwrap();
            let (got, fds) = receive::<FromProxy>(&far).unwrap().unwrap();
            let FromProxy::Sockets { addresses: got } = got else { panic!("{got:?}") };
            let passed = fds.into_iter().map(|fd| std::net::TcpListener::from(fd).local_addr());
            assert_eq!(passed.collect::<io::Result<Vec<_>>>().unwrap(), got);
            assert_eq!(got, addresses[..count]);
            let (next, fds) = receive::<FromProxy>(&far).unwrap().unwrap();
            assert!(matches!(next, FromProxy::Applied { generation: 7 }) && fds.is_empty());
        }
        let (near, _far) = UnixStream::pair().unwrap();
        let mut fds: Vec<BorrowedFd<'_>> = listeners.iter().map(|l| l.as_fd()).collect();
        fds.push(fds[0]);
        let refused = send(&near, &FromProxy::Sockets { addresses }, &fds).unwrap_err();
        assert_eq!(refused.to_string(), "more than 512 listening sockets");
    }
}
