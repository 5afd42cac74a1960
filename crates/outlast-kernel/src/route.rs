//! The kernel's interfaces and their addresses.

use std::io;
use std::net::IpAddr;

use rustix::net::Protocol;

use crate::netlink::{
    ASK, Attributes, CREATE_OR_CHANGE, LIST, Messages, Socket, attributes_of, messages_of,
};
use crate::packet::Mac;

/// NETLINK_ROUTE, which is 0 and so has no name in rustix.
pub const ROUTE: Option<Protocol> = None;

// linux/rtnetlink.h
pub const NEW_LINK: u16 = 16;
pub const DELETE_LINK: u16 = 17;
pub const GET_LINK: u16 = 18;
pub const NEW_ADDRESS: u16 = 20;
pub const DELETE_ADDRESS: u16 = 21;
pub const GET_ADDRESS: u16 = 22;
pub const NEW_ROUTE: u16 = 24;
// linux/if_link.h
pub const LINK_HARDWARE_ADDRESS: u16 = 1;
pub const LINK_NAME: u16 = 3;
// linux/if.h
/// Somebody has switched it on.
pub const UP: u32 = 1;
/// IFF_LOWER_UP: there is a signal on the wire.
const CARRIER: u32 = 1 << 16;
// linux/if_addr.h
pub const ADDRESS_PEER: u16 = 1;
pub const ADDRESS_LOCAL: u16 = 2;
const ADDRESS_LIFE: u16 = 6;
pub const ADDRESS_FLAGS: u16 = 8;
/// IFA_F_NODAD: the kernel asks nobody whether the address is in use.
pub const NO_DUPLICATE_DETECTION: u32 = 0x02;
/// IFA_F_NOPREFIXROUTE: the address brings no route to its network.
pub const NO_PREFIX_ROUTE: u32 = 0x200;
/// ARPHRD_ETHER of linux/if_arp.h.
const ETHERNET: u16 = 1;
/// RTMGRP_LINK
const GROUP_LINK: u32 = 1;
/// struct ifaddrmsg, struct ifinfomsg
const ADDRESS_FIXED: usize = 8;
const LINK_FIXED: usize = 16;
/// What a lifetime without an end says.
const FOR_EVER: u32 = u32::MAX;

/// AF_INET, AF_INET6 of linux/socket.h.
pub fn family(ip: IpAddr) -> u8 {
    match ip {
        IpAddr::V4(_) => 2,
        IpAddr::V6(_) => 10,
    }
}

/// The bytes of an address, in network order.
pub fn octets(ip: IpAddr) -> Vec<u8> {
    match ip {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    }
}

/// An interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    pub index: u32,
    pub name: String,
    /// `None`: it is no Ethernet, so that nobody on it asks for hardware addresses.
    pub mac: Option<Mac>,
    /// It is switched on and has a signal.
    pub up: bool,
}

/// What was said about an interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LinkNews {
    Is(Link),
    Gone { index: u32, name: String },
}

/// An address of an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Addressed {
    pub ip: IpAddr,
    pub prefix: u8,
    /// In seconds; `None` has no end.
    pub valid: Option<u32>,
}

/// An address as it is to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wanted {
    pub ip: IpAddr,
    pub prefix: u8,
    /// Seconds until the kernel takes it away.
    pub valid: u32,
    /// Seconds in which the kernel itself may choose it as the source of what it sends.
    pub preferred: u32,
    pub flags: u32,
}

/// Asks about interfaces and addresses.
#[derive(Debug)]
pub struct Route(Socket);

impl Route {
    pub fn open() -> io::Result<Route> {
        Ok(Route(Socket::open(ROUTE)?))
    }

    /// The interface of this name.
    pub fn link(&self, name: &str) -> io::Result<Link> {
        let mut ask = Messages::default();
        ask.add(GET_LINK, ASK, &[0; LINK_FIXED], |a| a.put_text(LINK_NAME, name));
        let mut found = None;
        self.0.query(ask.bytes(), |kind, body| found = link_news(kind, body))?;
        match found {
            Some(LinkNews::Is(link)) => Ok(link),
            Some(LinkNews::Gone { .. }) | None => Err(io::ErrorKind::NotFound.into()),
        }
    }

    /// All addresses of an interface.
    pub fn addresses(&self, index: u32) -> io::Result<Vec<Addressed>> {
        self.addresses_of(|own| own == index)
    }

    fn addresses_of(&self, wanted: impl Fn(u32) -> bool) -> io::Result<Vec<Addressed>> {
        let mut ask = Messages::default();
        ask.add(GET_ADDRESS, LIST, &[0; ADDRESS_FIXED], |_| {});
        let mut found = Vec::new();
        self.0.query(ask.bytes(), |kind, body| {
            if kind == NEW_ADDRESS {
                found.extend(addressed(body, &wanted));
            }
        })?;
        Ok(found)
    }

    /// All addresses of this machine.
    pub fn all_addresses(&self) -> io::Result<Vec<Addressed>> {
        self.addresses_of(|_| true)
    }

    /// Adds the address to the interface, or changes how long it is valid.
    pub fn put_address(&self, index: u32, wanted: &Wanted) -> io::Result<()> {
        let mut ask = Messages::default();
        let fixed = address_header(wanted.ip, wanted.prefix, index);
        ask.add(NEW_ADDRESS, ASK | CREATE_OR_CHANGE, &fixed, |a| {
            own_address(a, wanted.ip);
            // struct ifa_cacheinfo: preferred, valid, and two moments that the kernel fills in.
            let life = [wanted.preferred, wanted.valid, 0, 0].map(u32::to_ne_bytes).concat();
            a.put(ADDRESS_LIFE, &life);
            a.put(ADDRESS_FLAGS, &wanted.flags.to_ne_bytes());
        });
        self.0.ask(ask.bytes())
    }

    /// Takes the address away. True: it was there.
    pub fn delete_address(&self, index: u32, ip: IpAddr, prefix: u8) -> io::Result<bool> {
        let mut ask = Messages::default();
        let fixed = address_header(ip, prefix, index);
        ask.add(DELETE_ADDRESS, ASK, &fixed, |a| own_address(a, ip));
        match self.0.ask(ask.bytes()) {
            Ok(()) => Ok(true),
            Err(error) if error.raw_os_error() == Some(libc::EADDRNOTAVAIL) => Ok(false),
            Err(error) => Err(error),
        }
    }
}

/// The kernel tells of every change of an interface here.
pub fn watch_links() -> io::Result<Socket> {
    Socket::listen(ROUTE, GROUP_LINK)
}

/// What one datagram says about interfaces.
pub fn links_of(datagram: &[u8]) -> impl Iterator<Item = LinkNews> {
    messages_of(datagram).filter_map(|(kind, body)| link_news(kind, body))
}

/// struct ifaddrmsg
fn address_header(ip: IpAddr, prefix: u8, index: u32) -> [u8; ADDRESS_FIXED] {
    let [a, b, c, d] = index.to_ne_bytes();
    [family(ip), prefix, 0, 0, a, b, c, d]
}

fn own_address(a: &mut Attributes<'_>, ip: IpAddr) {
    a.put(ADDRESS_LOCAL, &octets(ip));
    a.put(ADDRESS_PEER, &octets(ip));
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(*bytes.get(at..)?.first_chunk()?))
}

/// `None` if it is about something else, or cut short.
fn link_news(kind: u16, body: &[u8]) -> Option<LinkNews> {
    // A bridge tells of its ports in the same group, as the family AF_BRIDGE.
    if (kind != NEW_LINK && kind != DELETE_LINK) || *body.first()? != 0 {
        return None;
    }
    let hardware = u16::from_ne_bytes(*body.get(2..)?.first_chunk()?);
    let (index, flags) = (word(body, 4)?, word(body, 8)?);
    let (mut name, mut mac) = (String::new(), None);
    for (kind, value) in attributes_of(body.get(LINK_FIXED..)?) {
        match kind {
            LINK_NAME => name = text(value),
            LINK_HARDWARE_ADDRESS => mac = value.try_into().ok(),
            _ => {}
        }
    }
    if kind == DELETE_LINK {
        return Some(LinkNews::Gone { index, name });
    }
    let up = flags & (UP | CARRIER) == UP | CARRIER;
    Some(LinkNews::Is(Link { index, name, mac: mac.filter(|_| hardware == ETHERNET), up }))
}

/// A text without the zero that ends it.
fn text(value: &[u8]) -> String {
    String::from_utf8_lossy(value.strip_suffix(&[0]).unwrap_or(value)).into_owned()
}

/// `None` if it belongs to another interface, or is cut short.
fn addressed(body: &[u8], wanted: impl Fn(u32) -> bool) -> Option<Addressed> {
    word(body, 4).filter(|index| wanted(*index))?;
    let prefix = *body.get(1)?;
    let (mut peer, mut local, mut valid) = (None, None, None);
    for (kind, value) in attributes_of(body.get(ADDRESS_FIXED..)?) {
        match kind {
            ADDRESS_PEER => peer = ip_of(value),
            ADDRESS_LOCAL => local = ip_of(value),
            ADDRESS_LIFE => valid = word(value, 4).filter(|valid| *valid != FOR_EVER),
            _ => {}
        }
    }
    // IPv6 says the address itself here unless there is another end.
    Some(Addressed { ip: local.or(peer)?, prefix, valid })
}

fn ip_of(value: &[u8]) -> Option<IpAddr> {
    let v4 = <[u8; 4]>::try_from(value).map(IpAddr::from);
    v4.or_else(|_longer| <[u8; 16]>::try_from(value).map(IpAddr::from)).ok()
}
