//! Messages between an agent and its proxy: a length, JSON, and file descriptors beside it.
//!
//! Both ends come from one binary except during an upgrade. So `Hello`, `GiveSockets`, `Sockets`, `Drain` and `Draining` never
//! change their form, and everything else is only sent to a proxy of the same build.

use std::io::{self, IoSlice, IoSliceMut, Read as _};
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

/// Listening sockets of one node.
pub const SOCKETS_MAX: usize = 128;

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
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(SOCKETS_MAX))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(fds)) {
        return Err(io::Error::other("too many listening sockets"));
    }
    let mut sent = loop {
        match rustix::net::sendmsg(
            stream,
            &[IoSlice::new(&bytes)],
            &mut control,
            SendFlags::NOSIGNAL,
        ) {
            Ok(count) => break count,
            Err(rustix::io::Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    };
    while sent < bytes.len() {
        match rustix::net::send(stream, &bytes[sent..], SendFlags::NOSIGNAL) {
            Ok(count) => sent += count,
            Err(rustix::io::Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(())
}

/// Receives one message with its descriptors; `Ok(None)` when the other side has closed. After `InvalidData` (a message of
/// another build) the next one can be received.
pub fn receive<T: DeserializeOwned>(stream: &UnixStream) -> io::Result<Option<(T, Vec<OwnedFd>)>> {
    let mut head = [0; 4];
    let mut fds = Vec::new();
    let mut have = 0;
    // Descriptors arrive with the first byte of their message.
    while have < head.len() {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(SOCKETS_MAX))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut slices = [IoSliceMut::new(&mut head[have..])];
        let got = match rustix::net::recvmsg(
            stream.as_fd(),
            &mut slices,
            &mut control,
            RecvFlags::CMSG_CLOEXEC,
        ) {
            Ok(got) => got.bytes,
            Err(rustix::io::Errno::INTR) => continue,
            Err(errno) => return Err(errno.into()),
        };
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(received) = message {
                fds.extend(received);
            }
        }
        if got == 0 {
            return if have == 0 { Ok(None) } else { Err(io::ErrorKind::UnexpectedEof.into()) };
        }
        have += got;
    }
    let length = usize::try_from(u32::from_be_bytes(head)).ok().filter(|&l| l <= MESSAGE_MAX);
    let length = length.ok_or_else(|| io::Error::other("message too long"))?;
    let mut bytes = vec![0; length];
    let mut reader = stream;
    reader.read_exact(&mut bytes)?;
    let invalid = |error| io::Error::new(io::ErrorKind::InvalidData, error);
    let message = serde_json::from_slice(&bytes).map_err(invalid)?;
    Ok(Some((message, fds)))
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
}
