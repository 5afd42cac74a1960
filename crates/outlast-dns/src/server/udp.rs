//! A thread that answers over UDP: one socket, the datagrams that are there with one call, no lock, no allocation.

use std::io;
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Acquire, Ordering::Relaxed};
use std::time::Duration;

use outlast_kernel::datagrams::Datagrams;
use rustix::net::sockopt::{self, Ipv4PathMtuDiscovery};
use rustix::net::{AddressFamily, SocketFlags, SocketType};
use tokio::sync::mpsc;

use super::slow::Datagram;
use super::{Counters, World};
use crate::respond::{Asker, Reply, Transport, UDP_MAX, respond};
use crate::table::{Random, Table};

/// Bytes that the kernel may hold for a socket in each direction; it grants what it is allowed to.
const BUFFER: usize = 4 << 20;

/// Bytes of the longest datagram that is read; updates come in these, too.
const DATAGRAM_MAX: usize = 4_096;

/// How often a thread without work looks whether it is to stop.
const STOP_EVERY: Duration = Duration::from_millis(100);

/// Connections over TCP that may wait to be accepted.
const BACKLOG: i32 = 1_024;

/// Ports that are tried until one is free for both UDP and TCP.
const PORTS_MAX: usize = 16;

/// Binds an address for TCP and, for each thread, for UDP.
pub(super) fn bind(
    address: SocketAddr,
    threads: usize,
) -> io::Result<(TcpListener, Vec<UdpSocket>)> {
    let mut tries = 0;
    loop {
        tries += 1;
        match try_bind(address, threads) {
            Err(_) if address.port() == 0 && tries < PORTS_MAX => {}
            result => return result,
        }
    }
}

fn try_bind(address: SocketAddr, threads: usize) -> io::Result<(TcpListener, Vec<UdpSocket>)> {
    let listener = socket(address, SocketType::STREAM)?;
    sockopt::set_socket_reuseaddr(&listener, true)?;
    rustix::net::bind(&listener, &address)?;
    rustix::net::listen(&listener, BACKLOG)?;
    let listener = TcpListener::from(listener);
    listener.set_nonblocking(true)?;
    let address = listener.local_addr()?;
    let udp = || {
        let socket = socket(address, SocketType::DGRAM)?;
        sockopt::set_socket_reuseport(&socket, true)?;
        sockopt::set_socket_recv_buffer_size(&socket, BUFFER)?;
        sockopt::set_socket_send_buffer_size(&socket, BUFFER)?;
        if address.is_ipv4() {
            // No answer is taken apart, whatever a forged message says of its way (RFC 9715 3.1). What cannot be taken apart
            // needs no number of its own, which the kernel would hash and count for each; over IPv6 that is so anyway.
            sockopt::set_ip_mtu_discover(&socket, Ipv4PathMtuDiscovery::PROBE)?;
        }
        rustix::net::bind(&socket, &address)?;
        let socket = UdpSocket::from(socket);
        socket.set_read_timeout(Some(STOP_EVERY))?;
        Ok(socket)
    };
    let sockets = (0..threads).map(|_| udp()).collect::<io::Result<_>>()?;
    Ok((listener, sockets))
}

/// A socket of the address's family, which is closed in programs that are started.
fn socket(address: SocketAddr, kind: SocketType) -> io::Result<rustix::fd::OwnedFd> {
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let socket = rustix::net::socket_with(family, kind, SocketFlags::CLOEXEC, None)?;
    if address.is_ipv6() {
        sockopt::set_ipv6_v6only(&socket, true)?;
    }
    Ok(socket)
}

/// The table in force, as one thread has it.
pub(super) struct Cached {
    version: u64,
    pub(super) table: Arc<Table>,
}

impl Cached {
    pub(super) fn new(world: &World) -> Cached {
        let version = world.version.load(Acquire);
        Cached { version, table: world.table() }
    }

    /// Takes the new table if there is one.
    pub(super) fn refresh(&mut self, world: &World, version: &AtomicU64) {
        if version.load(Acquire) != self.version {
            *self = Cached::new(world);
        }
    }
}

/// Answers until the server stops.
pub(super) fn run(
    world: &World,
    socket: &UdpSocket,
    slow: &mpsc::Sender<Datagram>,
    counters: &Counters,
) {
    let mut cached = Cached::new(world);
    let mut random = Random(super::seed());
    let mut datagrams = Datagrams::new(DATAGRAM_MAX, usize::from(UDP_MAX));
    let mut again = None;
    while !world.stopping.load(Relaxed) {
        // An error is the timeout, or told of an earlier answer that could not be delivered: nothing to do about either.
        let Ok(count) = datagrams.receive(socket) else { continue };
        cached.refresh(world, &world.version);
        let now = super::now();
        for n in 0..count {
            let Some(arrived) = datagrams.get(n) else { continue };
            let asker = Asker {
                address: arrived.source.ip(),
                transport: Transport::Udp,
                now,
                chance: random.next(),
            };
            let message = arrived.bytes;
            let reply = respond(message, asker, &cached.table, &world.state, arrived.answer);
            counters.count(reply);
            match reply {
                Reply::Send(length, _) => *arrived.answer_length = length,
                Reply::Drop(_) => {}
                Reply::Later(later) => {
                    let Some(socket) = shared(&mut again, socket) else { continue };
                    let (message, source) = (message.to_vec(), arrived.source);
                    if slow.try_send(Datagram { message, later, source, socket }).is_err() {
                        counters.count_slow_dropped();
                    }
                }
            }
        }
        datagrams.send(socket);
    }
}

/// The same socket for the thread that answers later.
fn shared(again: &mut Option<Arc<UdpSocket>>, socket: &UdpSocket) -> Option<Arc<UdpSocket>> {
    if again.is_none() {
        *again = socket.try_clone().ok().map(Arc::new);
    }
    again.clone()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_over_ipv4_are_never_taken_apart() {
        let (_listener, sockets) = bind("127.0.0.1:0".parse().unwrap(), 2).unwrap();
        for socket in sockets {
            let how = sockopt::ip_mtu_discover(&socket).unwrap();
            assert_eq!(how, Ipv4PathMtuDiscovery::PROBE);
        }
    }
}
