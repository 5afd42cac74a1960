//! The line between the two nodes of a pair: heartbeats, questions and answers by UDP, each sealed with a key that only they
//! have. The port has the number of that for TCP.

use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::path::Path;
use std::time::Duration;

use outlast_consensus::boottime;
use outlast_core::codec::Code as _;
use outlast_core::heartbeat::{
    DATAGRAM_MAX, Datagram, Kind, News, Said, Talk, UNITS_MAX, Unfit, open,
};
use outlast_core::time::Instant;
use outlast_core::topology::Topology;
use ring::hmac;
use rustix::net::{AddressFamily, SocketFlags, SocketType, sockopt};
use tokio::net::UdpSocket;

use crate::cluster::HeartbeatKey;

/// All nodes on one wire (RFC 1112 4, RFC 4291 2.7.1).
const ALL_NODES_V4: Ipv4Addr = Ipv4Addr::new(224, 0, 0, 1);
const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);

/// Datagrams that are read in one go: whoever floods this node delays nothing else.
const READ_MAX: usize = 64;

/// Between two attempts to open the socket.
const AGAIN: Duration = Duration::from_secs(2);

/// Between two lines in the log about datagrams that do not count.
const COMPLAIN_EVERY: Duration = Duration::from_secs(10);

/// Who is at the two ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Ends {
    own: SocketAddr,
    pub(super) peer: String,
    to: SocketAddr,
}

impl Ends {
    /// `None`: there are not two nodes.
    pub(super) fn of(topology: &Topology, node: &str) -> Option<Ends> {
        let mut all = topology.link_addresses();
        let own = all.remove(node)?;
        let (peer, to) = all.pop_first()?;
        all.is_empty().then_some(Ends { own, peer, to })
    }
}

/// Datagrams that did not count since the last line about them.
#[derive(Clone, Copy, Debug, Default)]
struct Bad {
    /// Too long, too short, or sealed with another key.
    unsealed: u64,
    malformed: u64,
    old: u64,
    strange: u64,
}

pub(super) struct Line {
    pub(super) ends: Ends,
    /// Bound to this node's own address: an address that moves must never be the source of what it says, since the other
    /// node would take that for a packet of its own while it holds it, too.
    socket: Option<UdpSocket>,
    /// Hears what is said to an address that moves, or to everybody.
    ears: Option<UdpSocket>,
    open_at: Instant,
    talk: Talk,
    seal: Option<hmac::Key>,
    /// Stands for the units that the two tell each other of.
    pub(super) plans: u64,
    /// These, in the order in which they are told of.
    pub(super) units: Vec<String>,
    every: Duration,
    beat_at: Instant,
    told: Vec<Said>,
    bad: Bad,
    complain_at: Instant,
    /// Why nothing can be said.
    pub(super) mute: Option<String>,
}

impl Line {
    /// `life`: a number that nobody can foresee. `fresh`: the longest time in which something said counts as just said.
    pub(super) fn new(node: &str, ends: Ends, life: u64, fresh: Duration) -> Line {
        let talk = Talk::new(node, &ends.peer, life, fresh);
        let now = boottime();
        let mut line = Line {
            ends,
            socket: None,
            ears: None,
            open_at: now,
            talk,
            seal: None,
            plans: 0,
            units: Vec::new(),
            every: Duration::MAX,
            beat_at: now,
            told: Vec::new(),
            bad: Bad::default(),
            complain_at: now,
            mute: Some("the nodes have not agreed on a key for heartbeats yet".to_owned()),
        };
        line.open();
        line
    }

    pub(super) fn speaks_of(&mut self, units: Vec<String>, plans: u64, every: Duration) {
        (self.units, self.plans, self.every) = (units, plans, every);
        if self.units.len() > UNITS_MAX {
            tracing::error!(
                "only the first {UNITS_MAX} addresses with `split_brain = \"accept\"` are taken over; put others into a `group`"
            );
            self.units.truncate(UNITS_MAX);
        }
        self.beat_at = boottime();
    }

    pub(super) fn has_key(&mut self, key: Option<&HeartbeatKey>) {
        self.seal = key.map(|key| hmac::Key::new(hmac::HMAC_SHA256, key.0.as_bytes()));
        if self.seal.is_some() && self.socket.is_some() {
            self.mute = None;
        }
    }

    fn open(&mut self) {
        match open_both(self.ends.own) {
            Ok((socket, ears)) => {
                (self.socket, self.ears) = (Some(socket), ears);
                self.mute = self.mute.take().filter(|_| self.seal.is_none());
            }
            Err(error) => {
                let why = format!("heartbeats cannot be sent: open UDP {}: {error}", self.ends.own);
                if self.mute.as_ref() != Some(&why) {
                    tracing::error!("{why}");
                }
                self.mute = Some(why);
            }
        }
        self.open_at = boottime() + AGAIN;
    }

    /// Returns once something may have come.
    pub(super) async fn readable(&self) {
        tokio::select! {
            () = readable(self.socket.as_ref()) => {}
            () = readable(self.ears.as_ref()) => {}
        }
    }

    /// When there is something to do although nothing has come.
    pub(super) fn deadline(&self) -> Instant {
        match &self.socket {
            Some(_) => self.beat_at,
            None => self.open_at,
        }
    }

    /// Whether it is time for a heartbeat: the last one was a while ago, or something is to be said.
    pub(super) fn is_due(&mut self, said: &[Said]) -> bool {
        if self.socket.is_none() && self.open_at <= boottime() {
            self.open();
        }
        self.beat_at <= boottime() || self.told != said
    }

    /// Also at these addresses, and to everybody at these interfaces. The number under which it was said.
    pub(super) fn say(
        &mut self,
        kind: Kind,
        said: &[Said],
        also: &[SocketAddr],
        interfaces: &BTreeSet<String>,
    ) -> u64 {
        let to = [&[self.ends.to], also].concat();
        self.say_to(kind, said, &to, interfaces)
    }

    pub(super) fn answer(&mut self, said: &[Said], to: SocketAddr) -> u64 {
        self.say_to(Kind::Answer, said, &[to], &BTreeSet::new())
    }

    fn say_to(
        &mut self,
        kind: Kind,
        said: &[Said],
        to: &[SocketAddr],
        interfaces: &BTreeSet<String>,
    ) -> u64 {
        let now = boottime();
        let datagram = self.talk.say(now, kind, self.plans, said.to_vec());
        if kind == Kind::Beat {
            self.beat_at = now + self.every;
            self.told = said.to_vec();
        }
        let number = datagram.number;
        let (Some(seal), Some(socket)) = (&self.seal, &self.socket) else { return number };
        let mut bytes = datagram.to_bytes();
        bytes.extend_from_slice(hmac::sign(seal, &bytes).as_ref());
        for to in to {
            // What cannot be sent now is as good as lost on its way, and that is reckoned with.
            if let Err(error) = socket.try_send_to(&bytes, *to) {
                tracing::trace!(%error, %to, "send a heartbeat");
            }
        }
        for interface in interfaces {
            if let Err(error) = say_to_all(socket, &bytes, self.ends.own, interface) {
                tracing::trace!(%error, interface, "send a heartbeat to everybody");
            }
        }
        number
    }

    /// Where an address that moves is asked, if this socket can.
    pub(super) fn port_at(&self, address: IpAddr) -> Option<SocketAddr> {
        (address.is_ipv4() == self.ends.own.is_ipv4())
            .then(|| SocketAddr::new(address, self.ends.own.port()))
    }

    /// The next thing that counts, and from where it came. `None`: nothing more has come.
    pub(super) fn read(&mut self) -> Option<(Read, SocketAddr)> {
        let mut buffer = [0; DATAGRAM_MAX + 1];
        for _ in 0..READ_MAX {
            let (length, from) = match self.receive(&mut buffer) {
                Ok(received) => received,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return None,
                // An earlier datagram did not arrive: nobody listens there.
                Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => continue,
                Err(error) => {
                    tracing::warn!(%error, "receive a heartbeat");
                    return None;
                }
            };
            let Some(read) = self.understand(buffer.get(..length)?) else { continue };
            return Some((read, from));
        }
        None
    }

    fn receive(&self, buffer: &mut [u8]) -> io::Result<(usize, SocketAddr)> {
        for socket in [&self.socket, &self.ears].into_iter().flatten() {
            match socket.try_recv_from(buffer) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                received => return received,
            }
        }
        Err(io::ErrorKind::WouldBlock.into())
    }

    fn understand(&mut self, bytes: &[u8]) -> Option<Read> {
        let seal = self.seal.as_ref()?;
        let sealed = open(bytes).filter(|(body, tag)| hmac::verify(seal, body, tag).is_ok());
        let Some((body, _)) = sealed else {
            self.bad.unsealed += 1;
            return self.complain();
        };
        let Ok(datagram) = Datagram::from_bytes(body) else {
            self.bad.malformed += 1;
            return self.complain();
        };
        match self.talk.hear(boottime(), &datagram, self.plans) {
            Ok(news) => Some(Read::News(news)),
            Err(Unfit::Unproven) => Some(Read::Unproven),
            Err(Unfit::Old) => {
                // A question that goes two ways arrives twice.
                self.bad.old += 1;
                None
            }
            Err(Unfit::Stranger) => {
                self.bad.strange += 1;
                self.complain()
            }
        }
    }

    fn complain(&mut self) -> Option<Read> {
        let now = boottime();
        if self.complain_at <= now {
            self.complain_at = now + COMPLAIN_EVERY;
            let Bad { unsealed, malformed, old, strange } = std::mem::take(&mut self.bad);
            tracing::warn!(
                unsealed,
                malformed,
                old,
                strange,
                "datagrams at the port for heartbeats do not count: whoever sends them is not {}, or has another key",
                self.ends.peer
            );
        }
        None
    }
}

async fn readable(socket: Option<&UdpSocket>) {
    match socket {
        Some(socket) if socket.readable().await.is_ok() => {}
        Some(_) | None => std::future::pending().await,
    }
}

fn open_both(own: SocketAddr) -> io::Result<(UdpSocket, Option<UdpSocket>)> {
    let any = match own.ip() {
        IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = open_at(own)?;
    sockopt::set_ip_multicast_loop(&socket, false).ok();
    sockopt::set_ipv6_multicast_loop(&socket, false).ok();
    let wide = !own.ip().is_loopback() && !own.ip().is_unspecified();
    let ears = wide.then(|| open_at(SocketAddr::new(any, own.port()))).transpose()?;
    Ok((socket, ears))
}

/// Two sockets have the port: what is for this node's own address goes to the one that is bound to it.
fn open_at(address: SocketAddr) -> io::Result<UdpSocket> {
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(family, SocketType::DGRAM, flags, None)?;
    sockopt::set_socket_reuseaddr(&socket, true)?;
    if address.is_ipv6() {
        sockopt::set_ipv6_v6only(&socket, true)?;
    }
    rustix::net::bind(&socket, &address)?;
    UdpSocket::from_std(std::net::UdpSocket::from(socket))
}

/// To all nodes on one wire. After a while of silence the kernel has forgotten where the other node is on the wire and asks
/// only once a second; and that node's own address may be on another wire.
fn say_to_all(
    socket: &UdpSocket,
    bytes: &[u8],
    own: SocketAddr,
    interface: &str,
) -> anyhow::Result<()> {
    let index = Path::new("/sys/class/net").join(interface).join("ifindex");
    let index: u32 = std::fs::read_to_string(index)?.trim().parse()?;
    let to: SocketAddr = match own.ip() {
        IpAddr::V4(address) => {
            let any = Ipv4Addr::UNSPECIFIED;
            sockopt::set_ip_multicast_if_with_ifindex(socket, &any, &address, index)?;
            SocketAddr::from((ALL_NODES_V4, own.port()))
        }
        IpAddr::V6(_) => SocketAddrV6::new(ALL_NODES, own.port(), 0, index).into(),
    };
    socket.try_send_to(bytes, to)?;
    Ok(())
}

/// What has come.
#[derive(Debug)]
pub(super) enum Read {
    News(News),
    /// It is to be answered, so that what comes next can count.
    Unproven,
}
