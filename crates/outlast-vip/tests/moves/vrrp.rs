//! Advertisements between machines.

use std::net::{IpAddr, SocketAddr};
use std::num::{NonZeroU8, NonZeroU32};
use std::sync::mpsc::{Receiver, channel};
use std::thread::JoinHandle;

use outlast_core::vrrp::Interval;
use outlast_core::vrrp::wire::{Advert, Dialect, GROUP_V4, PROTOCOL};
use outlast_vip::vrrp::{Said, Speaker, own_address};
use rustix::net::sockopt::{set_ip_multicast_if_with_ifindex, set_ip_multicast_ttl};
use rustix::net::{AddressFamily, Protocol, SendFlags, SocketType, bind, sendto, socket};

use crate::Case;
use crate::cases::in_runtime;
use crate::field::{Field, INTERFACE, LIMIT, Machine, wait_until};

pub(crate) const CASES: &[Case] = &[
    ("an_advertisement_is_heard_by_the_group_in_ipv4", |f| heard(f, true)),
    ("an_advertisement_is_heard_by_the_group_in_ipv6", |f| heard(f, false)),
    ("peers_are_spoken_to_one_by_one_and_strangers_not_heard", peers),
    ("an_advertisement_that_has_crossed_a_router_is_none", far),
];

fn advert(priority: u8) -> Advert {
    Advert {
        router: NonZeroU8::new(7).unwrap(),
        priority,
        interval: Interval::of_centiseconds(10).unwrap(),
        addresses: vec!["10.1.0.200".parse().unwrap(), "fe80::200".parse().unwrap()],
    }
}

/// Waits until the machine has an address that may be used.
fn own(machine: &Machine, v4: bool) -> IpAddr {
    let mut found = None;
    wait_until("there is an address to speak from", || {
        found = machine.run(move || {
            in_runtime(async move {
                let own = own_address(INTERFACE, v4).ok()?;
                Speaker::open(INTERFACE, own, &[]).ok()?;
                Some(own)
            })
        });
        found.is_some()
    });
    found.unwrap()
}

/// What is heard there, until somebody says priority 0; how much was refused by then.
fn hear(machine: &Machine, own: IpAddr, peers: Vec<IpAddr>) -> (Receiver<Said>, JoinHandle<u64>) {
    let (sender, said) = channel();
    let (ready, is_ready) = channel();
    let thread = machine.start(move || {
        in_runtime(async move {
            let mut speaker = Speaker::open(INTERFACE, own, &peers).unwrap();
            ready.send(()).unwrap();
            loop {
                let said = speaker.hear().await.unwrap();
                let is_last = said.advert.priority == 0;
                sender.send(said).unwrap();
                if is_last {
                    return speaker.refused();
                }
            }
        })
    });
    is_ready.recv_timeout(LIMIT).unwrap();
    (said, thread)
}

fn say(machine: &Machine, own: IpAddr, peers: Vec<IpAddr>, priority: u8, dialect: Dialect) {
    machine.run(move || {
        in_runtime(async move {
            let speaker = Speaker::open(INTERFACE, own, &peers).unwrap();
            speaker.say(&advert(priority), dialect).unwrap();
        });
    });
}

fn heard(field: &Field, v4: bool) {
    let (one, other) = (field.machine(), field.machine());
    let (from, to) = (own(&one, v4), own(&other, v4));
    let (said, thread) = hear(&other, to, Vec::new());
    for dialect in [Dialect::PseudoHeader, Dialect::MessageOnly] {
        say(&one, from, Vec::new(), 100, dialect);
        let said = said.recv_timeout(LIMIT).unwrap();
        let mut expected = advert(100);
        expected.addresses.retain(|ip| ip.is_ipv4() == v4);
        // In IPv6 there is one way only to make a checksum.
        let dialect = if v4 { dialect } else { Dialect::PseudoHeader };
        assert_eq!(said, Said { advert: expected, from, dialect });
    }
    say(&one, from, Vec::new(), 0, Dialect::PseudoHeader);
    assert_eq!(thread.join().unwrap(), 0);
}

fn peers(field: &Field) {
    let (one, other, stranger) = (field.machine(), field.machine(), field.machine());
    let (from, to, strange) = (own(&one, true), own(&other, true), own(&stranger, true));
    let (said, thread) = hear(&other, to, vec![from]);
    say(&stranger, strange, Vec::new(), 200, Dialect::PseudoHeader);
    say(&stranger, strange, vec![to], 200, Dialect::PseudoHeader);
    say(&one, from, vec![to], 0, Dialect::PseudoHeader);
    assert_eq!(said.recv_timeout(LIMIT).unwrap().from, from);
    assert_eq!(thread.join().unwrap(), 2);
}

fn far(field: &Field) {
    let (one, other) = (field.machine(), field.machine());
    let (from, to) = (own(&one, true), own(&other, true));
    let (said, thread) = hear(&other, to, Vec::new());
    one.run(move || {
        let IpAddr::V4(own) = from else { panic!("{from} is none of IPv4") };
        let protocol = NonZeroU32::new(PROTOCOL.into()).map(Protocol::from_raw);
        let socket = socket(AddressFamily::INET, SocketType::RAW, protocol).unwrap();
        set_ip_multicast_ttl(&socket, 254).unwrap();
        let index = outlast_kernel::route::Route::open().unwrap().link(INTERFACE).unwrap().index;
        set_ip_multicast_if_with_ifindex(&socket, &GROUP_V4, &own, index).unwrap();
        bind(&socket, &SocketAddr::new(from, 0)).unwrap();
        let bytes = advert(255).to_bytes(from, GROUP_V4.into(), Dialect::PseudoHeader);
        sendto(&socket, &bytes, SendFlags::empty(), &SocketAddr::new(GROUP_V4.into(), 0)).unwrap();
    });
    say(&one, from, Vec::new(), 0, Dialect::PseudoHeader);
    assert_eq!(said.recv_timeout(LIMIT).unwrap().advert.priority, 0);
    assert_eq!(thread.join().unwrap(), 1);
}
