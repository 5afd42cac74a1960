//! Advertisements between machines.

use std::net::{IpAddr, SocketAddr};
use std::num::{NonZeroU8, NonZeroU32};
use std::sync::mpsc::{Receiver, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use outlast_core::vrrp::wire::{Advert, Dialect, GROUP_V4, PROTOCOL};
use outlast_core::vrrp::{Event, Interval, Settings, State};
use outlast_vip::vrrp::{HOLD_MIN, Part, Said, Speaker, Status, Voice, own_address};
use rustix::net::sockopt::{set_ip_multicast_if_with_ifindex, set_ip_multicast_ttl};
use rustix::net::{AddressFamily, Protocol, SendFlags, SocketType, bind, sendto, socket};

use tokio::sync::{mpsc, watch};

use crate::Case;
use crate::cases::in_runtime;
use crate::field::{Field, INTERFACE, LIMIT, Machine, pause, place, wait_until};

pub(crate) const CASES: &[Case] = &[
    ("an_advertisement_is_heard_by_the_group_in_ipv4", |f| heard(f, true)),
    ("an_advertisement_is_heard_by_the_group_in_ipv6", |f| heard(f, false)),
    ("peers_are_spoken_to_one_by_one_and_strangers_not_heard", peers),
    ("an_advertisement_that_has_crossed_a_router_is_none", far),
    ("the_higher_priority_has_the_address_and_the_other_one_after_it", two_parts),
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
                let own = own_address(INTERFACE, v4, None, &[]).ok()?;
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

/// Takes part until the sender is dropped.
fn take_part(
    machine: &Machine,
    own: IpAddr,
    priority: u8,
) -> (mpsc::Sender<Event>, watch::Receiver<Status>, JoinHandle<()>) {
    let settings = Settings {
        priority: NonZeroU8::new(priority).unwrap(),
        interval: Interval::of_centiseconds(10).unwrap(),
        preempt: true,
        preempt_delay: Duration::ZERO,
        refresh: Duration::from_secs(1),
    };
    let (orders, ordered) = mpsc::channel(1);
    let (sender, status) = channel();
    let thread = machine.start(move || {
        in_runtime(async move {
            let speaker = Speaker::open(INTERFACE, own, &[]).unwrap();
            let places = [place("10.1.0.200", 24)];
            let voice = Voice {
                number: NonZeroU8::new(7).unwrap(),
                interval: settings.interval,
                checksum: None,
                addresses: vec![places[0].network.address],
                speaker,
            };
            let part = Part::new("edge", settings, vec![voice], &places).unwrap();
            sender.send(part.status()).unwrap();
            part.run(ordered).await.unwrap();
        });
    });
    (orders, status.recv_timeout(LIMIT).unwrap(), thread)
}

fn two_parts(field: &Field) {
    let (one, other, client) = (field.machine(), field.machine(), field.machine());
    let ip = "10.1.0.200".parse().unwrap();
    let is = |status: &watch::Receiver<Status>, state| status.borrow().state == state;
    let _echoes = [one.echo(ip), other.echo(ip)];
    let mut asks = client.client(ip);
    let (low_orders, low, low_thread) = take_part(&other, own(&other, true), 100);
    wait_until("who is alone becomes active", || is(&low, State::Active));
    asks.wait_for_answer();
    let (high_orders, high, high_thread) = take_part(&one, own(&one, true), 200);
    wait_until("the higher priority takes over", || {
        is(&high, State::Active) && is(&low, State::Backup)
    });
    wait_until("the address has moved", || one.has(ip) && !other.has(ip));
    asks.wait_for_answer();
    // Longer than the addresses are held at one time.
    let until = Instant::now() + 2 * HOLD_MIN;
    while Instant::now() < until {
        asks.wait_for_answer();
        pause(Duration::from_millis(20));
    }
    drop(high_orders);
    high_thread.join().unwrap();
    wait_until("the other one is active again", || is(&low, State::Active));
    asks.wait_for_answer();
    assert!(!one.has(ip) && other.has(ip));
    drop(low_orders);
    low_thread.join().unwrap();
    assert!(!other.has(ip));
    assert_eq!(low.borrow().unsaid, None);
}
