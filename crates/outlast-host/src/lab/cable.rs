//! The network of a lab: one bridge, and for each machine a cable from a port of the bridge to its interface.
//!
//! Machines may have addresses of different networks. Each reaches each all the same: it has its address alone (/32) and
//! takes everything to be on the same wire.

use std::io;
use std::net::IpAddr;
use std::os::fd::AsFd;

use outlast_kernel::netlink::{ASK, Attributes, CREATE, Messages, Socket};
use outlast_kernel::route::{
    ADDRESS_FLAGS, ADDRESS_LOCAL, ADDRESS_PEER, DELETE_LINK, LINK_HARDWARE_ADDRESS, LINK_NAME,
    NEW_ADDRESS, NEW_LINK, NEW_ROUTE, NO_DUPLICATE_DETECTION, ROUTE, UP, family, octets,
};
use rustix::net::netdevice::name_to_index;

const BRIDGE: &str = "lab";
const LOOPBACK: &str = "lo";

// linux/if_link.h
const LINK_MASTER: u16 = 10;
const LINK_INFO: u16 = 18;
const LINK_NAMESPACE_OF_PID: u16 = 19;
const INFO_KIND: u16 = 1;
const INFO_DATA: u16 = 2;
const VETH_PEER: u16 = 1;
const BRIDGE_MULTICAST_SNOOPING: u16 = 23;
// linux/rtnetlink.h
const ROUTE_INTERFACE: u16 = 4;
const ROUTE_SOURCE: u16 = 7;
const TABLE_MAIN: u8 = 254;
const PROTOCOL_STATIC: u8 = 4;
const SCOPE_LINK: u8 = 253;
const SCOPE_UNIVERSE: u8 = 0;
const TYPE_UNICAST: u8 = 1;

/// The bridge, as seen from the namespace that it lies in.
#[derive(Debug)]
pub struct Bridge {
    route: Socket,
    index: u32,
}

impl Bridge {
    /// Builds it in the network namespace of the caller, which must be one of the lab's own.
    pub fn build() -> io::Result<Bridge> {
        let route = Socket::open(ROUTE)?;
        set_up(&route, LOOPBACK, true)?;
        let mut ask = Messages::default();
        ask.add(NEW_LINK, ASK | CREATE, &link(0, true), |a| {
            a.put_text(LINK_NAME, BRIDGE);
            a.nest(LINK_INFO, |info| {
                info.put_text(INFO_KIND, "bridge");
                // A bridge that learns who listens to which group loses the first VRRP and neighbour messages.
                info.nest(INFO_DATA, |data| data.put(BRIDGE_MULTICAST_SNOOPING, &[0]));
            });
        });
        route.ask(ask.bytes())?;
        let index = name_to_index(route.as_fd(), BRIDGE)?;
        Ok(Bridge { route, index })
    }

    /// Lays a cable from `port` to `interface` in the network namespace of the process `pid`.
    pub fn plug(&self, port: &str, pid: u32, interface: &str, mac: [u8; 6]) -> io::Result<()> {
        let mut ask = Messages::default();
        ask.add(NEW_LINK, ASK | CREATE, &link(0, true), |a| {
            a.put_text(LINK_NAME, port);
            a.put(LINK_MASTER, &self.index.to_ne_bytes());
            a.nest(LINK_INFO, |info| {
                info.put_text(INFO_KIND, "veth");
                info.nest(INFO_DATA, |data| {
                    data.nest_after(VETH_PEER, &link(0, false), |peer| {
                        peer.put_text(LINK_NAME, interface);
                        peer.put(LINK_HARDWARE_ADDRESS, &mac);
                        peer.put(LINK_NAMESPACE_OF_PID, &pid.to_ne_bytes());
                    });
                });
            });
        });
        self.route.ask(ask.bytes())
    }

    /// Takes the cable away, both ends.
    pub fn unplug(&self, port: &str) -> io::Result<()> {
        let mut ask = Messages::default();
        ask.add(DELETE_LINK, ASK, &link(0, false), |a| a.put_text(LINK_NAME, port));
        self.route.ask(ask.bytes())
    }

    /// Lets nothing through any more, at once.
    pub fn silence(&self, port: &str) -> io::Result<()> {
        set_up(&self.route, port, false)
    }
}

/// Makes a machine reachable, from inside: loopback, its address on `interface`, and a route to everyone.
pub fn dress(interface: &str, address: IpAddr) -> io::Result<()> {
    let route = Socket::open(ROUTE)?;
    set_up(&route, LOOPBACK, true)?;
    set_up(&route, interface, true)?;
    let index = name_to_index(route.as_fd(), interface)?;
    let (family, bytes) = (family(address), octets(address));
    let scope = if address.is_ipv4() { SCOPE_LINK } else { SCOPE_UNIVERSE };
    let bits = u8::try_from(bytes.len() * 8).expect("an address has at most 128 bits");
    let mut ask = Messages::default();
    let index = index.to_ne_bytes();
    let fixed = [&[family, bits, 0, SCOPE_UNIVERSE], index.as_slice()].concat();
    ask.add(NEW_ADDRESS, ASK | CREATE, &fixed, |a| {
        a.put(ADDRESS_LOCAL, &bytes);
        a.put(ADDRESS_PEER, &bytes);
        // The file says that no two nodes have the same address, so nobody need be asked.
        a.put(ADDRESS_FLAGS, &NO_DUPLICATE_DETECTION.to_ne_bytes());
    });
    route.ask(ask.bytes())?;
    let mut ask = Messages::default();
    let fixed = [family, 0, 0, 0, TABLE_MAIN, PROTOCOL_STATIC, scope, TYPE_UNICAST, 0, 0, 0, 0];
    ask.add(NEW_ROUTE, ASK | CREATE, &fixed, |a: &mut Attributes<'_>| {
        a.put(ROUTE_INTERFACE, &index);
        // A virtual address that the machine takes over later is not spoken from unless someone binds to it.
        a.put(ROUTE_SOURCE, &bytes);
    });
    route.ask(ask.bytes())
}

/// struct ifinfomsg; an index of 0 means: by name.
fn link(index: u32, up: bool) -> Vec<u8> {
    let flags = if up { UP } else { 0 };
    [[0; 4], index.to_ne_bytes(), flags.to_ne_bytes(), flags.to_ne_bytes()].concat()
}

fn set_up(route: &Socket, name: &str, up: bool) -> io::Result<()> {
    let flags = if up { UP } else { 0 };
    let fixed = [[0; 4], [0; 4], flags.to_ne_bytes(), UP.to_ne_bytes()].concat();
    let mut ask = Messages::default();
    ask.add(NEW_LINK, ASK, &fixed, |a| a.put_text(LINK_NAME, name));
    route.ask(ask.bytes())
}
