//! Hears others who claim our addresses, and sees links go up and down.

use std::collections::VecDeque;
use std::io;
use std::net::IpAddr;
use std::time::Duration;

use outlast_core::time::Instant;
use outlast_kernel::netlink::{self, ANSWER_MAX};
use outlast_kernel::packet::{self, ARP, Arrival, Filter, IPV6, Mac};
use outlast_kernel::route::{Link, LinkNews, Route, links_of, watch_links};
use rustix::io::Errno;
use tokio::io::unix::AsyncFd;

use crate::address::{Place, check};
use crate::clock::boottime;
use crate::error::Error;

/// Claims of one address are reported at most this often.
pub const RIVAL_QUIET: Duration = Duration::from_millis(50);
/// The header of Ethernet, and what is behind it.
const ETHERNET: u32 = 14;
const ARP_MAC: u32 = ETHERNET + 8;
const ARP_FROM: u32 = ETHERNET + 14;
const NEXT_HEADER: u32 = ETHERNET + 6;
const ICMP6_TYPE: u32 = ETHERNET + 40;
const TARGET: u32 = ICMP6_TYPE + 8;
const ICMP6: u32 = 58;
const ADVERTISEMENT: u32 = 136;
/// Where Ethernet says who sends.
const SENDER: u32 = 6;

/// What was heard or seen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// Somebody else says that the address is theirs.
    Rival { address: IpAddr, mac: Mac },
    /// How an interface is, first of all and whenever that changes.
    Link { interface: String, up: bool },
}

/// Listens on the interfaces of a unit.
#[derive(Debug)]
pub struct Rivals {
    places: Vec<Watched>,
    interfaces: Vec<Interface>,
    route: Route,
    links: AsyncFd<netlink::Socket>,
    arp: AsyncFd<packet::Socket>,
    neighbours: AsyncFd<packet::Socket>,
    events: VecDeque<Event>,
}

#[derive(Debug)]
struct Watched {
    address: IpAddr,
    interface: String,
    reported: Option<Instant>,
}

#[derive(Debug)]
struct Interface {
    name: String,
    /// `None`: it is not there.
    link: Option<Link>,
    /// As last said.
    up: bool,
}

impl Rivals {
    /// Begins to listen. It must be called within a runtime of tokio that has its I/O switched on.
    pub fn open(unit: &str, places: &[Place]) -> Result<Rivals, Error> {
        check(unit, places)?;
        let hear = |error| Error::kernel("listen for others who have the addresses", error);
        let mut names: Vec<_> = places.iter().map(|place| place.interface.clone()).collect();
        names.sort_unstable();
        names.dedup();
        let interfaces = names.into_iter().map(|name| Interface { name, link: None, up: false });
        let watched = |place: &Place| Watched {
            address: place.network.address,
            interface: place.interface.clone(),
            reported: None,
        };
        let mut rivals = Rivals {
            places: places.iter().map(watched).collect(),
            interfaces: interfaces.collect(),
            route: Route::open().map_err(hear)?,
            links: watch_links().and_then(netlink::Socket::readable).map_err(hear)?,
            arp: listen(&arp_filter(places), ARP).map_err(hear)?,
            neighbours: listen(&neighbour_filter(), IPV6).map_err(hear)?,
            events: VecDeque::new(),
        };
        // The kernel tells of changes from now on, so none is missed.
        rivals.look_at_links(true);
        Ok(rivals)
    }

    /// The next event. It may be given up at any time without losing one.
    pub async fn next(&mut self) -> Result<Event, Error> {
        loop {
            if let Some(event) = self.events.pop_front() {
                return Ok(event);
            }
            self.hear().await.map_err(|error| {
                Error::kernel("listen for others who have the addresses", error)
            })?;
        }
    }

    /// Waits until there is something to read, and takes it in.
    async fn hear(&mut self) -> io::Result<()> {
        let mut buffer = vec![0; ANSWER_MAX];
        tokio::select! {
            ready = self.links.readable() => {
                if let Ok(got) = ready?.try_io(|links| links.get_ref().receive(&mut buffer)) {
                    self.links_arrived(got, &buffer)?;
                }
            }
            ready = self.arp.readable() => {
                if let Ok(got) = ready?.try_io(|arp| arp.get_ref().receive(&mut buffer)) {
                    self.frame_arrived(got, &buffer, arp_claim)?;
                }
            }
            ready = self.neighbours.readable() => {
                if let Ok(got) = ready?.try_io(|icmp| icmp.get_ref().receive(&mut buffer)) {
                    self.frame_arrived(got, &buffer, neighbour_claim)?;
                }
            }
        }
        Ok(())
    }

    fn links_arrived(&mut self, got: io::Result<usize>, buffer: &[u8]) -> io::Result<()> {
        let len = match got {
            Ok(len) => len,
            // There was more than the kernel keeps for us: all is asked for anew.
            Err(error) if Errno::from_io_error(&error) == Some(Errno::NOBUFS) => {
                self.look_at_links(false);
                return Ok(());
            }
            Err(error) => return Err(error),
        };
        for news in links_of(buffer.get(..len).unwrap_or_default()) {
            let (name, link) = match news {
                LinkNews::Is(link) => (link.name.clone(), Some(link)),
                LinkNews::Gone { name, .. } => (name, None),
            };
            self.link_is(&name, link, false);
        }
        Ok(())
    }

    fn look_at_links(&mut self, is_first: bool) {
        let names: Vec<_> = self.interfaces.iter().map(|known| known.name.clone()).collect();
        for name in names {
            // Whatever is in the way: an interface of which nothing is known is not up.
            let link = self.route.link(&name).ok();
            self.link_is(&name, link, is_first);
        }
    }

    fn link_is(&mut self, name: &str, link: Option<Link>, is_first: bool) {
        let Some(known) = self.interfaces.iter_mut().find(|known| known.name == name) else {
            return;
        };
        let up = link.as_ref().is_some_and(|link| link.up);
        known.link = link;
        if is_first || known.up != up {
            known.up = up;
            self.events.push_back(Event::Link { interface: name.to_owned(), up });
        }
    }

    fn frame_arrived(
        &mut self,
        got: io::Result<Arrival>,
        buffer: &[u8],
        claim: fn(&[u8]) -> Option<(IpAddr, Mac)>,
    ) -> io::Result<()> {
        let arrival = match got {
            Ok(arrival) => arrival,
            // An interface went down: said elsewhere.
            Err(error) if Errno::from_io_error(&error) == Some(Errno::NETDOWN) => return Ok(()),
            Err(error) => return Err(error),
        };
        if let Some((address, mac)) = buffer.get(..arrival.len).and_then(claim) {
            self.claimed(arrival.index, address, mac);
        }
        Ok(())
    }

    fn claimed(&mut self, index: u32, address: IpAddr, mac: Mac) {
        let is_here = |known: &&Interface| {
            known.link.as_ref().is_some_and(|link| link.index == index && link.mac != Some(mac))
        };
        let Some(interface) = self.interfaces.iter().find(is_here) else { return };
        let now = boottime();
        let is_meant = |place: &&mut Watched| {
            place.address == address
                && place.interface == interface.name
                && place.reported.is_none_or(|last| last + RIVAL_QUIET <= now)
        };
        if let Some(place) = self.places.iter_mut().find(is_meant) {
            place.reported = Some(now);
            self.events.push_back(Event::Rival { address, mac });
        }
    }
}

/// Hears all interfaces: one that is made anew is heard at once.
fn listen(filter: &Filter, protocol: u16) -> io::Result<AsyncFd<packet::Socket>> {
    let socket = packet::Socket::open()?;
    socket.ignore_outgoing()?;
    socket.filter(filter)?;
    socket.bind(0, protocol)?;
    socket.readable()
}

/// Whatever ARP comes from one of the addresses.
fn arp_filter(places: &[Place]) -> Filter {
    let mut filter = Filter::default().load_word(ARP_FROM);
    for place in places {
        if let IpAddr::V4(ip) = place.network.address {
            filter = filter.take_if(ip.to_bits());
        }
    }
    filter.refuse()
}

/// All neighbour advertisements; no header stands between theirs and that of IPv6 (RFC 6980).
fn neighbour_filter() -> Filter {
    Filter::default()
        .load_byte(NEXT_HEADER)
        .need(ICMP6)
        .load_byte(ICMP6_TYPE)
        .need(ADVERTISEMENT)
        .take()
}

/// Who says in this frame that an address is theirs.
fn arp_claim(frame: &[u8]) -> Option<(IpAddr, Mac)> {
    let mac = bytes(frame, ARP_MAC)?;
    Some((IpAddr::from(bytes::<4>(frame, ARP_FROM)?), mac))
}

fn neighbour_claim(frame: &[u8]) -> Option<(IpAddr, Mac)> {
    Some((IpAddr::from(bytes::<16>(frame, TARGET)?), bytes(frame, SENDER)?))
}

fn bytes<const N: usize>(frame: &[u8], at: u32) -> Option<[u8; N]> {
    frame.get(usize::try_from(at).ok()?..)?.first_chunk().copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn claims_are_read_and_what_is_cut_short_is_none() {
        let mut arp = vec![0; 60];
        arp[22..28].copy_from_slice(&[2, 0, 0, 0, 0, 7]);
        arp[28..32].copy_from_slice(&[10, 0, 0, 9]);
        assert_eq!(arp_claim(&arp), Some(([10, 0, 0, 9].into(), [2, 0, 0, 0, 0, 7])));
        let mut neighbour = vec![0; 86];
        neighbour[6..12].copy_from_slice(&[2, 0, 0, 0, 0, 8]);
        neighbour[62] = 0xfd;
        neighbour[77] = 9;
        let claim = ("fd00::9".parse().unwrap(), [2, 0, 0, 0, 0, 8]);
        assert_eq!(neighbour_claim(&neighbour), Some(claim));
        for len in 0..32 {
            assert_eq!(arp_claim(&arp[..len]), None);
            assert_eq!(neighbour_claim(&neighbour[..len]), None);
        }
    }
}
