//! VRRP: says advertisements on one interface, hears those of others, and does what follows from them.
//!
//! Who is active is decided by `outlast_core::vrrp`. What is heard is taken from the wire, because only there the hops and
//! the goal of a packet of IPv6 are known; rules of a firewall against it therefore have to be the switch's or the sender's.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::num::{NonZeroU8, NonZeroU32};
use std::os::fd::OwnedFd;

use outlast_core::vrrp::wire::{Advert, Dialect, GROUP_V4, GROUP_V6, HOPS, Malformed, PROTOCOL};
use outlast_kernel::packet::{self, Filter, IPV4, IPV6};
use outlast_kernel::route::{Link, Route};
use rustix::io::Errno;
use rustix::net::sockopt::{
    set_ip_add_membership_with_ifindex, set_ip_multicast_if_with_ifindex, set_ip_multicast_loop,
    set_ip_multicast_ttl, set_ip_ttl, set_ipv6_add_membership, set_ipv6_multicast_hops,
    set_ipv6_multicast_if, set_ipv6_multicast_loop, set_ipv6_unicast_hops,
    set_socket_recv_buffer_size,
};
use rustix::net::{
    AddressFamily, Protocol, SendFlags, SocketFlags, SocketType, bind, sendto, socket_with,
};
use tokio::io::unix::AsyncFd;

use crate::error::Error;

mod part;

pub use part::{HEARD_MAX, HOLD_MIN, Part, Status, Voice, Word};

/// Others that are spoken to one by one.
pub const PEERS_MAX: usize = 64;
/// The longest frame that is looked at: one of IPv6 with as many addresses as there can be.
const FRAME_MAX: usize = 14 + 60 + 8 + 255 * 16;

/// The header of Ethernet, and where IP says what follows its header.
const ETHERNET: usize = 14;
const V4_PROTOCOL: u32 = 14 + 9;
const V6_PROTOCOL: u32 = 14 + 6;
const V4_HEADER: usize = 20;
const V6_HEADER: usize = 40;

/// What another router has said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Said {
    pub advert: Advert,
    pub from: IpAddr,
    /// How it makes its checksums: it wants ours to be made in the same way.
    pub dialect: Dialect,
}

/// What is none that counts, although it came from near enough and from nobody strange.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refused {
    pub from: IpAddr,
    /// Of which virtual router it is: every version has that at the same place.
    pub number: Option<NonZeroU8>,
    pub why: Malformed,
}

/// Speaks VRRP on one interface, in IPv4 or in IPv6, and hears nothing.
#[derive(Debug)]
pub struct Mouth {
    own: IpAddr,
    index: u32,
    to: Vec<IpAddr>,
    socket: OwnedFd,
}

/// Speaks and hears VRRP on one interface, in IPv4 or in IPv6.
#[derive(Debug)]
pub struct Speaker {
    mouth: Mouth,
    /// Empty: it speaks to the group, and hears everybody.
    peers: Vec<IpAddr>,
    ears: AsyncFd<packet::Socket>,
    refused: u64,
}

/// The address from which a node speaks on an interface: the wished one if it is there, else its first one in IPv4, the
/// link-local one in IPv6. Those that move are nobody's own.
pub fn own_address(
    interface: &str,
    v4: bool,
    wished: Option<IpAddr>,
    moving: &[IpAddr],
) -> Result<IpAddr, Error> {
    let (route, link) = look_up(interface)?;
    let look = |error| Error::kernel(format!("list the addresses of `{interface}`"), error);
    let found = route.addresses(link.index).map_err(look)?;
    let mut own = found.iter().map(|here| here.ip).filter(|ip| !moving.contains(ip));
    if let Some(wished) = wished
        && own.clone().any(|ip| ip == wished)
    {
        return Ok(wished);
    }
    let fits = |ip: &IpAddr| match ip {
        IpAddr::V4(_) => v4,
        IpAddr::V6(ip) => !v4 && ip.is_unicast_link_local(),
    };
    own.find(fits).ok_or_else(|| {
        let kind = if v4 { "address of IPv4" } else { "link-local address of IPv6" };
        Error::Asked(format!("`{interface}` has no {kind} of its own to speak VRRP from: add one"))
    })
}

impl Mouth {
    /// Speaks from this node's own address, to these peers, or to everybody if there are none.
    pub fn open(interface: &str, own: IpAddr, peers: &[IpAddr]) -> Result<Mouth, Error> {
        if PEERS_MAX < peers.len() || peers.iter().any(|peer| peer.is_ipv4() != own.is_ipv4()) {
            return Err(Error::Asked(format!(
                "VRRP from {own} speaks to at most {PEERS_MAX} peers of the same version of IP"
            )));
        }
        let (_, link) = look_up(interface)?;
        let failed = |error| Error::kernel(format!("open VRRP on `{interface}`"), error);
        let socket = match own {
            IpAddr::V4(ip) => mouth_v4(ip, link.index),
            IpAddr::V6(ip) => mouth_v6(ip, link.index),
        };
        let to = if peers.is_empty() { vec![group_of(own)] } else { peers.to_vec() };
        Ok(Mouth { own, index: link.index, to, socket: socket.map_err(failed)? })
    }

    /// Says an advertisement to everybody that it speaks to; the first failure is said, and the others are spoken to.
    pub fn say(&self, advert: &Advert, dialect: Dialect) -> Result<(), Error> {
        self.to.iter().map(|to| self.say_to(*to, advert, dialect)).fold(Ok(()), Result::and)
    }

    fn say_to(&self, to: IpAddr, advert: &Advert, dialect: Dialect) -> Result<(), Error> {
        let bytes = advert.to_bytes(self.own, to, dialect);
        let address = socket_address(to, self.index);
        let sent = sendto(&self.socket, &bytes, SendFlags::DONTWAIT, &address);
        sent.map(|_len| ())
            .map_err(|errno| Error::kernel(format!("say VRRP to {to}"), errno.into()))
    }
}

impl Speaker {
    /// Speaks from this node's own address, to these peers, or to everybody if there are none. It must be called within a
    /// runtime of tokio.
    pub fn open(interface: &str, own: IpAddr, peers: &[IpAddr]) -> Result<Speaker, Error> {
        let mouth = Mouth::open(interface, own, peers)?;
        let failed = |error| Error::kernel(format!("open VRRP on `{interface}`"), error);
        let ears = hear_on(mouth.index, own.is_ipv4()).map_err(failed)?;
        Ok(Speaker { mouth, peers: peers.to_vec(), ears, refused: 0 })
    }

    /// From where it speaks.
    pub fn own(&self) -> IpAddr {
        self.mouth.own
    }

    /// Says an advertisement to everybody that it speaks to; the first failure is said, and the others are spoken to.
    pub fn say(&self, advert: &Advert, dialect: Dialect) -> Result<(), Error> {
        self.mouth.say(advert, dialect)
    }

    /// Waits for the next advertisement of somebody else. It may be given up at any time without losing one.
    pub async fn hear(&mut self) -> Result<Said, Error> {
        loop {
            if let Ok(said) = self.listen().await? {
                return Ok(said);
            }
        }
    }

    /// The same, and tells of what cannot be understood.
    pub async fn listen(&mut self) -> Result<Result<Said, Refused>, Error> {
        let failed = |error| Error::kernel("listen for VRRP", error);
        let mut buffer = vec![0; FRAME_MAX];
        loop {
            let mut ready = self.ears.readable().await.map_err(failed)?;
            let arrival = match ready.try_io(|ears| ears.get_ref().receive(&mut buffer)) {
                Ok(Ok(arrival)) => arrival,
                // The interface is down for now.
                Ok(Err(error)) if Errno::from_io_error(&error) == Some(Errno::NETDOWN) => continue,
                Ok(Err(error)) => return Err(failed(error)),
                Err(_would_block) => continue,
            };
            let read = buffer.get(..arrival.len).and_then(|frame| self.read(frame));
            if !matches!(read, Some(Ok(_))) {
                self.refused = self.refused.saturating_add(1);
            }
            if let Some(read) = read {
                return Ok(read);
            }
        }
    }

    /// How many packets were none that count: from too far, from strangers, for others, or malformed.
    pub fn refused(&self) -> u64 {
        self.refused
    }

    fn read(&self, frame: &[u8]) -> Option<Result<Said, Refused>> {
        let packet = frame.get(ETHERNET..)?;
        let own = self.own();
        let Packet { from, to, hops, message } =
            if own.is_ipv4() { packet_v4(packet) } else { packet_v6(packet) }?;
        let is_known = self.peers.is_empty() || self.peers.contains(&from);
        let is_for_us = to == own || to == group_of(own);
        // keepalived 2.2.7 speaks to its peers in IPv6 with 64 hops: whoever names its peers is content with their addresses.
        let is_near = hops == HOPS || !self.peers.is_empty();
        if !is_near || !is_known || !is_for_us || from == own {
            return None;
        }
        Some(match Advert::read(message, from, to) {
            Ok((advert, dialect)) => Ok(Said { advert, from, dialect }),
            Err(why) => {
                let number = message.get(1).copied().and_then(NonZeroU8::new);
                Err(Refused { from, number, why })
            }
        })
    }
}

/// What the header of IP says of a message.
struct Packet<'p> {
    from: IpAddr,
    to: IpAddr,
    hops: u8,
    message: &'p [u8],
}

/// RFC 791 3.1; a fragment is none, and what fills up the frame is left out.
fn packet_v4(packet: &[u8]) -> Option<Packet<'_>> {
    let header = packet.first_chunk::<V4_HEADER>()?;
    let header_len = usize::from(header[0] & 15) * 4;
    let len = usize::from(u16::from_be_bytes([header[2], header[3]]));
    let is_fragment = u16::from_be_bytes([header[6], header[7]]) & 0x3fff != 0;
    if header[0] >> 4 != 4 || header_len < V4_HEADER || is_fragment {
        return None;
    }
    let address = |at: usize| Some(Ipv4Addr::from(*packet.get(at..)?.first_chunk::<4>()?).into());
    let message = packet.get(header_len..len)?;
    Some(Packet { from: address(12)?, to: address(16)?, hops: header[8], message })
}

/// RFC 8200 3; VRRP follows at once.
fn packet_v6(packet: &[u8]) -> Option<Packet<'_>> {
    let header = packet.first_chunk::<V6_HEADER>()?;
    let len = usize::from(u16::from_be_bytes([header[4], header[5]]));
    let address = |at: usize| Some(Ipv6Addr::from(*packet.get(at..)?.first_chunk::<16>()?).into());
    let message = packet.get(V6_HEADER..V6_HEADER + len)?;
    let is_v6 = header[0] >> 4 == 6;
    is_v6.then_some(Packet { from: address(8)?, to: address(24)?, hops: header[7], message })
}

fn group_of(own: IpAddr) -> IpAddr {
    if own.is_ipv4() { GROUP_V4.into() } else { GROUP_V6.into() }
}

fn look_up(interface: &str) -> Result<(Route, Link), Error> {
    let route = Route::open().map_err(|error| Error::kernel("open netlink", error))?;
    let link = route
        .link(interface)
        .map_err(|error| Error::Interface { name: interface.to_owned(), error })?;
    Ok((route, link))
}

fn socket_address(ip: IpAddr, index: u32) -> SocketAddr {
    match ip {
        IpAddr::V4(_) => SocketAddr::new(ip, 0),
        IpAddr::V6(ip) => SocketAddrV6::new(ip, 0, 0, index).into(),
    }
}

/// A raw socket; what arrives there is heard elsewhere, so it keeps as little as can be.
fn raw(family: AddressFamily) -> io::Result<OwnedFd> {
    let protocol = NonZeroU32::new(u32::from(PROTOCOL)).map(Protocol::from_raw);
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(family, SocketType::RAW, flags, protocol)?;
    set_socket_recv_buffer_size(&socket, 0)?;
    Ok(socket)
}

fn mouth_v4(own: Ipv4Addr, index: u32) -> io::Result<OwnedFd> {
    let socket = raw(AddressFamily::INET)?;
    set_ip_ttl(&socket, u32::from(HOPS))?;
    set_ip_multicast_ttl(&socket, u32::from(HOPS))?;
    set_ip_multicast_loop(&socket, false)?;
    set_ip_multicast_if_with_ifindex(&socket, &GROUP_V4, &own, index)?;
    set_ip_add_membership_with_ifindex(&socket, &GROUP_V4, &own, index)?;
    bind(&socket, &socket_address(own.into(), index))?;
    Ok(socket)
}

fn mouth_v6(own: Ipv6Addr, index: u32) -> io::Result<OwnedFd> {
    let socket = raw(AddressFamily::INET6)?;
    set_ipv6_unicast_hops(&socket, Some(HOPS))?;
    set_ipv6_multicast_hops(&socket, u32::from(HOPS))?;
    set_ipv6_multicast_loop(&socket, false)?;
    set_ipv6_multicast_if(&socket, index)?;
    set_ipv6_add_membership(&socket, &GROUP_V6, index)?;
    bind(&socket, &socket_address(own.into(), index))?;
    Ok(socket)
}

fn hear_on(index: u32, v4: bool) -> io::Result<AsyncFd<packet::Socket>> {
    let (protocol, at) = if v4 { (IPV4, V4_PROTOCOL) } else { (IPV6, V6_PROTOCOL) };
    let socket = packet::Socket::open()?;
    socket.ignore_outgoing()?;
    socket.filter(&Filter::default().load_byte(at).need(u32::from(PROTOCOL)).take())?;
    socket.bind(index, protocol)?;
    socket.readable()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_packet_is_read_without_what_fills_up_its_frame() {
        let mut packet = vec![0x45, 0, 0, 24, 0, 0, 0, 0, 255, 112, 0, 0, 10, 0, 0, 1];
        packet.extend([224, 0, 0, 18, 1, 2, 3, 4, 0, 0, 0]);
        let read = packet_v4(&packet).unwrap();
        assert_eq!((read.from, read.hops), ([10, 0, 0, 1].into(), 255));
        assert_eq!((read.to, read.message), (GROUP_V4.into(), [1, 2, 3, 4].as_slice()));
        for len in 0..24 {
            assert!(packet_v4(&packet[..len]).is_none(), "{len}");
        }
        packet[6] = 0x20;
        assert!(packet_v4(&packet).is_none(), "a fragment");
    }

    #[test]
    fn a_packet_of_ipv6_is_read_with_its_hops() {
        let mut packet = vec![0x60, 0, 0, 0, 0, 4, 112, 255];
        packet.extend(Ipv6Addr::LOCALHOST.octets());
        packet.extend(GROUP_V6.octets());
        packet.extend([1, 2, 3, 4, 0]);
        let read = packet_v6(&packet).unwrap();
        assert_eq!(
            (read.to, read.hops, read.message),
            (GROUP_V6.into(), 255, [1, 2, 3, 4].as_slice())
        );
        for len in 0..44 {
            assert!(packet_v6(&packet[..len]).is_none(), "{len}");
        }
    }
}
