//! Carries packets by hand where a cable is slow: takes each as it leaves a machine, waits, and puts it where it was to go.
//!
//! The bridge drops what is carried here ([`super::rules`]), and its rule for that has its own end in the kernel. Large
//! packets and unfinished checksums keep their form: the kernel says in a header before each packet what is left to do,
//! and is told the same when the packet goes on.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::hash::{BuildHasher as _, RandomState};
use std::io::{self, PipeReader, PipeWriter};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use outlast_kernel::packet::{ALL, Socket};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::netdevice::name_to_index;
use rustix::net::sockopt::{set_socket_recv_buffer_size, set_socket_recv_buffer_size_force};
use rustix::net::{RecvFlags, recv};

/// Packets and bytes that are under way at one time; more are lost, as in a router whose queue is full.
const PACKETS_MAX: usize = 1 << 16;
const BYTES_MAX: usize = 64 << 20;
/// Bytes that may wait for us in the kernel, of each machine.
const BUFFER: usize = 8 << 20;
/// The longest packet that a sender hands down in one piece, with its headers.
const PACKET_MAX: usize = 80 << 10;
/// Packets taken from one machine before others have their turn.
const TURN_MAX: usize = 256;
/// struct virtio_net_hdr, linux/virtio_net.h.
const NOTE: usize = 10;
const OF_A_MILLION: u64 = 1_000_000;

/// One way between two ports of the bridge.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Way {
    pub from: String,
    pub to: String,
    /// The hardware address of the machine at `to`.
    pub to_mac: [u8; 6],
    pub delay: Duration,
    /// Each packet takes up to this much less or more.
    pub jitter: Duration,
    /// How many of a million packets are lost.
    pub lost_of_a_million: u32,
    pub until: Instant,
}

/// Carries packets until it is dropped; those under way arrive at once then.
#[derive(Debug)]
pub struct Carrier {
    stop: Option<PipeWriter>,
    thread: Option<JoinHandle<()>>,
}

impl Carrier {
    /// Begins, in the network namespace that the calling thread is in. Ports that are not there are left out.
    pub fn start(ways: &[Way]) -> io::Result<Carrier> {
        let outlet = open()?;
        let index = |port: &str| match name_to_index(&outlet, port) {
            Ok(index) => Ok(Some(index)),
            Err(Errno::NODEV) => Ok(None),
            Err(errno) => Err(io::Error::from(errno)),
        };
        let mut inlets: Vec<Inlet> = Vec::new();
        for way in ways {
            let (Some(from), Some(to)) = (index(&way.from)?, index(&way.to)?) else { continue };
            let inlet = match inlets.iter_mut().find(|inlet| inlet.index == from) {
                Some(inlet) => inlet,
                None => {
                    inlets.push_mut(Inlet { index: from, socket: listen(from)?, ways: Vec::new() })
                }
            };
            inlet.ways.push((to, way.clone()));
        }
        let (stopped, stop) = io::pipe()?;
        let road = Road {
            outlet,
            waiting: BinaryHeap::new(),
            bytes: 0,
            count: 0,
            chance: RandomState::new(),
        };
        let thread = std::thread::Builder::new()
            .name("carrier".to_owned())
            .spawn(move || road.run(&inlets, &stopped))?;
        Ok(Carrier { stop: Some(stop), thread: Some(thread) })
    }
}

impl Drop for Carrier {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            // A panic there has been printed; the bridge's rule ends by itself.
            thread.join().ok();
        }
    }
}

/// Where what a machine sends comes out, and where it may go from there.
struct Inlet {
    index: u32,
    socket: Socket,
    ways: Vec<(u32, Way)>,
}

/// A packet under way; the earliest is the greatest.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Packet {
    due: Instant,
    /// Of two that are due at one time the first goes first.
    count: u64,
    to: u32,
    bytes: Vec<u8>,
}

struct Road {
    outlet: Socket,
    waiting: BinaryHeap<Reverse<Packet>>,
    bytes: usize,
    count: u64,
    chance: RandomState,
}

impl Road {
    fn run(mut self, inlets: &[Inlet], stopped: &PipeReader) {
        let mut buffer = vec![0; PACKET_MAX];
        loop {
            let now = Instant::now();
            self.deliver(|due| due <= now);
            let wait =
                self.waiting.peek().map(|Reverse(next)| next.due.saturating_duration_since(now));
            let wait = wait.map(|wait| Timespec {
                tv_sec: i64::try_from(wait.as_secs()).unwrap_or(i64::MAX),
                tv_nsec: i64::from(wait.subsec_nanos()),
            });
            let mut fds = vec![PollFd::new(stopped, PollFlags::IN)];
            fds.extend(inlets.iter().map(|inlet| PollFd::new(&inlet.socket, PollFlags::IN)));
            match poll(&mut fds, wait.as_ref()) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(_) => break,
            }
            if !fds[0].revents().is_empty() {
                break;
            }
            for inlet in inlets {
                self.take(inlet, &mut buffer);
            }
        }
        self.deliver(|_| true);
    }

    fn take(&mut self, inlet: &Inlet, buffer: &mut [u8]) {
        for _ in 0..TURN_MAX {
            // Nothing there; or the port is gone, with the machine: then there is nothing to carry from it any more.
            let Ok((len, _)) = recv(&inlet.socket, &mut *buffer, RecvFlags::DONTWAIT) else {
                return;
            };
            let now = Instant::now();
            let packet = &buffer[..len];
            let Some(goal) = packet.get(NOTE..NOTE + 6) else { continue };
            for (to, way) in &inlet.ways {
                // The lowest bit of the first byte: to all, or to a group.
                let is_meant = goal == way.to_mac || goal[0] & 1 == 1;
                if is_meant && now < way.until {
                    self.accept(now, *to, way, packet);
                }
            }
        }
    }

    fn accept(&mut self, now: Instant, to: u32, way: &Way, packet: &[u8]) {
        self.count += 1;
        let chance = self.chance.hash_one((self.count, to));
        let is_lost = chance % OF_A_MILLION < u64::from(way.lost_of_a_million);
        let is_full = PACKETS_MAX <= self.waiting.len() || BYTES_MAX < self.bytes + packet.len();
        if is_lost || is_full {
            return;
        }
        // Evenly between delay - jitter and delay + jitter.
        let share = f64::from(u32::try_from(chance >> 32).unwrap_or(0)) / f64::from(u32::MAX);
        let spread = way.jitter.saturating_mul(2).mul_f64(share);
        let wait = (way.delay + spread).saturating_sub(way.jitter);
        self.bytes += packet.len();
        let bytes = packet.to_vec();
        self.waiting.push(Reverse(Packet { due: now + wait, count: self.count, to, bytes }));
    }

    fn deliver(&mut self, is_due: impl Fn(Instant) -> bool) {
        while let Some(Reverse(next)) = self.waiting.peek()
            && is_due(next.due)
            && let Some(Reverse(packet)) = self.waiting.pop()
        {
            self.bytes -= packet.bytes.len();
            // A machine that is off by now gets nothing, as with any cable.
            self.outlet.send(packet.to, &packet.bytes).ok();
        }
    }
}

/// A packet socket with a note before each packet.
fn open() -> io::Result<Socket> {
    let socket = Socket::open()?;
    socket.with_notes()?;
    Ok(socket)
}

/// A socket that receives all that the machine behind this port sends.
fn listen(index: u32) -> io::Result<Socket> {
    let socket = open()?;
    socket.ignore_outgoing()?;
    // Without root the system's limit holds (net.core.rmem_max): bursts may lose packets, which senders repeat.
    set_socket_recv_buffer_size_force(&socket, BUFFER)
        .or_else(|_refused| set_socket_recv_buffer_size(&socket, BUFFER))?;
    socket.bind(index, ALL)?;
    Ok(socket)
}
