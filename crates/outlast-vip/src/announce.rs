//! Says to the neighbours where an address is now: gratuitous ARP (RFC 5227 3) and unsolicited neighbour advertisements
//! (RFC 4861 7.2.6).

use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use outlast_core::time::Instant;
use outlast_kernel::packet::{self, Mac, Socket};
use outlast_kernel::route::Link;

/// When an address is announced, from the moment on at which it was taken: one announcement may be lost, and a switch may
/// learn slowly.
pub const ANNOUNCE_AT: [Duration; 4] =
    [Duration::ZERO, Duration::from_millis(50), Duration::from_millis(200), Duration::from_secs(1)];
/// And this often from then on: nobody is left with a wrong entry for longer.
pub const ANNOUNCE_EVERY: Duration = Duration::from_secs(5);
/// However often there is a reason, the row of announcements begins anew no sooner after the last time. What is left of a
/// younger row comes after the reason anyway.
pub const QUIET_MIN: Duration = Duration::from_millis(500);

/// When the address is to be announced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timetable {
    begun: Instant,
    /// How many of the row have been made.
    said: usize,
    next: Instant,
}

impl Timetable {
    /// The address was taken and announced just now.
    pub fn begin(now: Instant) -> Timetable {
        let mut timetable = Timetable { begun: now, said: 0, next: now };
        timetable.said(now);
        timetable
    }

    /// When to announce it next.
    pub fn next(&self) -> Instant {
        self.next
    }

    /// It was announced just now.
    pub fn said(&mut self, now: Instant) {
        self.said = self.said.saturating_add(1);
        self.next = match ANNOUNCE_AT.get(self.said) {
            Some(after) => (self.begun + *after).max(now),
            None => now + ANNOUNCE_EVERY,
        };
    }

    /// There is a reason to say it again: a rival was heard, a link came up, a partition has healed.
    pub fn again(&mut self, now: Instant) {
        if self.begun + QUIET_MIN <= now {
            *self = Timetable { begun: now, said: 0, next: now };
        }
    }
}

const BROADCAST: Mac = [0xff; 6];
/// ff02::1 and where it is on Ethernet (RFC 2464 7).
const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
const ALL_NODES_MAC: Mac = [0x33, 0x33, 0, 0, 0, 1];
/// The shortest frame of Ethernet, without its checksum.
const FRAME_MIN: usize = 60;
const REQUEST: u16 = 1;
const REPLY: u16 = 2;
const ICMP6: u8 = 58;
const HOPS: u8 = 255;
const ADVERTISEMENT: u8 = 136;
/// RFC 4861 4.4: R, and O; S stays 0.
const ROUTER: u8 = 0x80;
const OVERRIDE: u8 = 0x20;
/// RFC 4861 4.6.1: the target's link-layer address, one unit of 8 bytes.
const TARGET_LINK_LAYER: [u8; 2] = [2, 1];

/// Announces an address on this interface; on one that is no Ethernet nobody asks for it.
pub(crate) fn announce(packets: &Socket, link: &Link, ip: IpAddr) -> io::Result<()> {
    let Some(mac) = link.mac else { return Ok(()) };
    match ip {
        IpAddr::V4(ip) => {
            // Some hear only the one, some only the other.
            packets.send(link.index, &gratuitous(ip, mac, REQUEST))?;
            packets.send(link.index, &gratuitous(ip, mac, REPLY))
        }
        IpAddr::V6(ip) => packets.send(link.index, &advertisement(ip, mac, is_router(&link.name))),
    }
}

/// Whether this machine forwards what comes in here.
fn is_router(interface: &str) -> bool {
    let path = format!("/proc/sys/net/ipv6/conf/{interface}/forwarding");
    fs::read_to_string(path).is_ok_and(|text| text.trim() == "1")
}

fn ethernet(to: Mac, from: Mac, protocol: u16) -> Vec<u8> {
    [to.as_slice(), &from, &protocol.to_be_bytes()].concat()
}

/// RFC 826: from the address, about the address.
fn gratuitous(ip: Ipv4Addr, mac: Mac, operation: u16) -> Vec<u8> {
    let about = if operation == REPLY { mac } else { [0; 6] };
    let mut frame = ethernet(BROADCAST, mac, packet::ARP);
    // Ethernet, IPv4, and the lengths of their addresses.
    frame.extend([0, 1, 8, 0, 6, 4]);
    frame.extend(operation.to_be_bytes());
    frame.extend(mac);
    frame.extend(ip.octets());
    frame.extend(about);
    frame.extend(ip.octets());
    frame.resize(FRAME_MIN, 0);
    frame
}

/// RFC 4861 4.4, in the packet of RFC 8200 that it travels in.
fn advertisement(ip: Ipv6Addr, mac: Mac, is_router: bool) -> Vec<u8> {
    let flags = OVERRIDE | if is_router { ROUTER } else { 0 };
    let mut message = vec![ADVERTISEMENT, 0, 0, 0, flags, 0, 0, 0];
    message.extend(ip.octets());
    message.extend(TARGET_LINK_LAYER);
    message.extend(mac);
    let len = u16::try_from(message.len()).expect("32 bytes");
    let sum = checksum(ip, &message);
    message[2..4].copy_from_slice(&sum.to_be_bytes());
    let mut frame = ethernet(ALL_NODES_MAC, mac, packet::IPV6);
    frame.extend([0x60, 0, 0, 0]);
    frame.extend(len.to_be_bytes());
    frame.extend([ICMP6, HOPS]);
    frame.extend(ip.octets());
    frame.extend(ALL_NODES.octets());
    frame.extend(message);
    frame
}

/// RFC 1071 over the message and the pseudo-header of RFC 8200 8.1.
fn checksum(from: Ipv6Addr, message: &[u8]) -> u16 {
    let len = u32::try_from(message.len()).expect("32 bytes").to_be_bytes();
    let pseudo = [&from.octets(), &ALL_NODES.octets(), len.as_slice(), &[0, 0, 0, ICMP6]].concat();
    let words = pseudo.chunks_exact(2).chain(message.chunks_exact(2));
    let sum: u32 = words.map(|word| u32::from(u16::from_be_bytes([word[0], word[1]]))).sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    !u16::try_from((folded & 0xffff) + (folded >> 16)).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAC: Mac = [2, 0, 0, 0, 0, 7];

    fn at(millis: u64) -> Instant {
        Instant::from_start(Duration::from_millis(millis))
    }

    #[test]
    fn an_address_is_announced_four_times_and_then_now_and_then() {
        let mut timetable = Timetable::begin(at(1000));
        let mut moments = Vec::new();
        for _ in 0..5 {
            moments.push(timetable.next());
            timetable.said(timetable.next());
        }
        assert_eq!(moments, [at(1050), at(1200), at(2000), at(7000), at(12_000)]);
    }

    #[test]
    fn a_reason_begins_anew_but_not_all_the_time() {
        let mut timetable = Timetable::begin(at(0));
        for millis in [50, 200, 1000] {
            timetable.said(at(millis));
        }
        timetable.again(at(3000));
        assert_eq!(timetable.next(), at(3000));
        timetable.said(at(3000));
        for millis in 3001..3500 {
            timetable.again(at(millis));
            assert!(at(3000) < timetable.next());
        }
    }

    #[test]
    fn a_gratuitous_request_says_whose_it_is_in_both_places() {
        let frame = gratuitous([10, 0, 0, 9].into(), MAC, REQUEST);
        assert_eq!(frame.len(), FRAME_MIN);
        assert_eq!(frame[..14], [0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2, 0, 0, 0, 0, 7, 8, 6]);
        assert_eq!(frame[20..22], [0, 1]);
        assert_eq!(frame[22..28], MAC);
        assert_eq!(frame[28..32], [10, 0, 0, 9]);
        assert_eq!(frame[38..42], [10, 0, 0, 9]);
    }

    #[test]
    fn an_advertisement_overrides_and_has_a_right_checksum() {
        let ip: Ipv6Addr = "fd00::9".parse().unwrap();
        let frame = advertisement(ip, MAC, false);
        assert_eq!(frame.len(), 14 + 40 + 32);
        assert_eq!(frame[20..22], [ICMP6, HOPS]);
        assert_eq!(frame[54..56], [ADVERTISEMENT, 0]);
        assert_eq!(frame[58], OVERRIDE);
        assert_eq!(frame[78..], [2, 1, 2, 0, 0, 0, 0, 7]);
        assert_eq!(checksum(ip, &frame[54..]), 0);
        assert_eq!(advertisement(ip, MAC, true)[58], OVERRIDE | ROUTER);
    }
}
