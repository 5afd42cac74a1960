//! Sockets that a task waits for.

#![expect(unsafe_code, reason = "tokio has to be told that a descriptor stays the same")]

use std::io;
use std::os::fd::AsRawFd;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::{netlink, packet};

/// A socket that owns one descriptor from its beginning to its end.
trait Steady: AsRawFd {}

impl Steady for netlink::Socket {}
impl Steady for packet::Socket {}

fn readable<S: Steady>(socket: S) -> io::Result<AsyncFd<S>> {
    // SAFETY: the socket owns its descriptor, never closes it before its own end, and never has another one.
    let watched = unsafe { AsyncFd::register_with_interest(socket, Interest::READABLE) };
    Ok(watched?)
}

impl netlink::Socket {
    /// Has a task wait for what can be read. It must be called within a runtime of tokio.
    pub fn readable(self) -> io::Result<AsyncFd<netlink::Socket>> {
        readable(self)
    }
}

impl packet::Socket {
    /// Has a task wait for what can be read. It must be called within a runtime of tokio.
    pub fn readable(self) -> io::Result<AsyncFd<packet::Socket>> {
        readable(self)
    }
}
