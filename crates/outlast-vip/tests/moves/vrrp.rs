//! Advertisements between machines.

use std::net::{IpAddr, SocketAddr};
use std::num::{NonZeroU8, NonZeroU32};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use outlast_core::time::Instant as Moment;
use outlast_core::vrrp::wire::{Advert, Dialect, GROUP_V4, PROTOCOL};
use outlast_core::vrrp::{Event, Interval, Settings, State};
use outlast_vip::boottime;
use outlast_vip::vrrp::{HOLD_MIN, Part, Refused, Said, Speaker, Status, Voice, Word, own_address};
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
    ("checksums_are_made_as_the_peer_makes_them", dialects),
    ("the_address_goes_where_more_is_well", weights),
    ("the_kernel_lets_go_of_a_frozen_one_before_another_is_active", frozen),
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
pub(crate) fn own(machine: &Machine, v4: bool) -> IpAddr {
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

/// Addresses and their prefixes.
pub(crate) type Ips = Vec<(IpAddr, u8)>;

/// What a part is to be.
#[derive(Clone)]
pub(crate) struct Router {
    pub(crate) number: NonZeroU8,
    /// In hundredths of a second.
    pub(crate) interval: u16,
    pub(crate) priority: NonZeroU8,
    /// The addresses of each voice, and to whom it speaks: to the group if there is nobody.
    pub(crate) voices: Vec<(Ips, Vec<IpAddr>)>,
    pub(crate) checksum: Option<Dialect>,
}

/// A part on a machine, and when it came into which state.
pub(crate) struct Ours {
    pub(crate) orders: mpsc::Sender<Event>,
    freeze: mpsc::Sender<Duration>,
    status: watch::Receiver<Status>,
    states: Arc<Mutex<Vec<(Moment, State)>>>,
    thread: JoinHandle<()>,
}

impl Ours {
    /// Each voice speaks from the address at its place.
    pub(crate) fn start(machine: &Machine, own: &[IpAddr], router: Router) -> Ours {
        let settings = Settings {
            priority: router.priority,
            interval: Interval::of_centiseconds(router.interval).unwrap(),
            preempt: true,
            preempt_delay: Duration::ZERO,
            refresh: Duration::from_secs(1),
        };
        let own = own.to_vec();
        let (orders, ordered) = mpsc::channel(1);
        let (freeze, mut frozen) = mpsc::channel(1);
        let (sender, status) = channel();
        let states = Arc::new(Mutex::new(Vec::new()));
        let kept = Arc::clone(&states);
        let thread = machine.start(move || {
            in_runtime(async move {
                let speak = |((ips, peers), own): (&(Ips, Vec<_>), IpAddr)| Voice {
                    number: router.number,
                    interval: settings.interval,
                    checksum: router.checksum,
                    addresses: ips.iter().map(|(ip, _)| *ip).collect(),
                    speaker: Speaker::open(INTERFACE, own, peers).unwrap(),
                };
                let voices = router.voices.iter().zip(own).map(speak).collect();
                let ips = router.voices.iter().flat_map(|(ips, _)| ips);
                let places: Vec<_> =
                    ips.map(|(ip, prefix)| place(&ip.to_string(), *prefix)).collect();
                let part = Part::new("edge", settings, voices, &places).unwrap();
                let mut changes = part.status();
                sender.send(part.status()).unwrap();
                let watching = tokio::spawn(async move {
                    let mut last = State::Idle;
                    while changes.changed().await.is_ok() {
                        let state = changes.borrow_and_update().state;
                        if state != last {
                            last = state;
                            kept.lock().unwrap().push((boottime(), state));
                        }
                    }
                });
                // All of it has one thread.
                tokio::spawn(async move {
                    while let Some(time) = frozen.recv().await {
                        pause(time);
                    }
                });
                part.run(ordered).await.unwrap();
                watching.await.unwrap();
            });
        });
        let status = status.recv_timeout(LIMIT).unwrap();
        Ours { orders, freeze, status, states, thread }
    }

    pub(crate) fn state(&self) -> State {
        self.status.borrow().state
    }

    /// When it came into this state the last time.
    pub(crate) fn since(&self, state: State) -> Moment {
        let states = self.states.lock().unwrap();
        states.iter().rev().find(|(_, then)| *then == state).unwrap().0
    }

    /// What was heard from there last.
    pub(crate) fn heard(&self, from: IpAddr) -> Option<Word> {
        self.status.borrow().heard.get(&from).copied()
    }

    pub(crate) fn refused(&self) -> Option<Refused> {
        self.status.borrow().refused.map(|(refused, _)| refused)
    }

    /// Returns once it has ended, and has said all that it had to.
    pub(crate) fn stop(self) {
        assert_eq!(self.status.borrow().unsaid, None);
        drop(self.orders);
        self.thread.join().unwrap();
    }
}

fn seven(priority: u8) -> Router {
    Router {
        number: NonZeroU8::new(7).unwrap(),
        interval: 10,
        priority: NonZeroU8::new(priority).unwrap(),
        voices: vec![(vec![("10.1.0.200".parse().unwrap(), 24)], Vec::new())],
        checksum: None,
    }
}

fn two_parts(field: &Field) {
    let (one, other, client) = (field.machine(), field.machine(), field.machine());
    let ip = "10.1.0.200".parse().unwrap();
    let _echoes = [one.echo(ip), other.echo(ip)];
    let mut asks = client.client(ip);
    let low = Ours::start(&other, &[own(&other, true)], seven(100));
    wait_until("who is alone becomes active", || low.state() == State::Active);
    asks.wait_for_answer();
    let high = Ours::start(&one, &[own(&one, true)], seven(200));
    wait_until("the higher priority takes over", || {
        high.state() == State::Active && low.state() == State::Backup
    });
    wait_until("the address has moved", || one.has(ip) && !other.has(ip));
    asks.wait_for_answer();
    // Much longer than the addresses are held at one time.
    let until = Instant::now() + 8 * HOLD_MIN;
    while Instant::now() < until {
        asks.wait_for_answer();
        pause(Duration::from_millis(20));
    }
    high.stop();
    wait_until("the other one is active again", || low.state() == State::Active);
    asks.wait_for_answer();
    assert!(!one.has(ip) && other.has(ip));
    low.stop();
    assert!(!other.has(ip));
}

/// A peer of which the checksums cover the message alone, as the standard has it, and keepalived does not.
fn dialects(field: &Field) {
    let (one, other, third) = (field.machine(), field.machine(), field.machine());
    let (at_one, at_other) = (own(&one, true), own(&other, true));
    let strict = Router { checksum: Some(Dialect::MessageOnly), ..seven(200) };
    let strict = Ours::start(&one, &[at_one], strict);
    wait_until("it is active", || strict.state() == State::Active);
    let auto = Ours::start(&other, &[at_other], seven(100));
    wait_until("it is heard", || auto.heard(at_one).is_some());
    assert_eq!(auto.heard(at_one).unwrap().dialect, Dialect::MessageOnly);
    strict.stop();
    wait_until("the other one is active", || auto.state() == State::Active);
    let (said, thread) = hear(&third, own(&third, true), Vec::new());
    let from_auto = said.recv_timeout(LIMIT).unwrap();
    assert_eq!(from_auto.from, at_other);
    // As it was spoken to, and not as it began.
    assert_eq!(from_auto.dialect, Dialect::MessageOnly);
    auto.stop();
    thread.join().unwrap();
}

/// What is tracked, in the words of the machine: less priority, none, and back.
fn weights(field: &Field) {
    let (one, other) = (field.machine(), field.machine());
    let ip = "10.1.0.200".parse().unwrap();
    let preferred = Ours::start(&one, &[own(&one, true)], seven(150));
    let second = Ours::start(&other, &[own(&other, true)], seven(140));
    let weigh = |priority: Option<u8>| {
        let order = Event::Weigh(priority.map(|of| NonZeroU8::new(of).unwrap()));
        preferred.orders.blocking_send(order).unwrap();
    };
    let is_at = |here: &Machine, there: &Machine| here.has(ip) && !there.has(ip);
    wait_until("the preferred one has it", || is_at(&one, &other));
    weigh(Some(100));
    wait_until("it goes where more is well", || is_at(&other, &one));
    weigh(Some(150));
    wait_until("it comes back", || is_at(&one, &other));
    weigh(None);
    wait_until("it is given up", || is_at(&other, &one));
    assert_eq!(preferred.state(), State::Idle);
    weigh(Some(150));
    wait_until("it comes back again", || is_at(&one, &other));
    assert_eq!(second.state(), State::Backup);
    preferred.stop();
    second.stop();
}

/// When something could be sent from the address for the last time.
fn last_sent(machine: &Machine, ip: IpAddr, to: IpAddr) -> JoinHandle<Moment> {
    machine.start(move || {
        let socket = socket(AddressFamily::INET, SocketType::DGRAM, None).unwrap();
        rustix::net::sockopt::set_ip_freebind(&socket, true).unwrap();
        bind(&socket, &SocketAddr::new(ip, 0)).unwrap();
        let to = SocketAddr::new(to, 9);
        let mut last = boottime();
        wait_until("nothing can be sent any more", || {
            let sent = sendto(&socket, b"here", SendFlags::DONTWAIT, &to).is_ok();
            if sent {
                last = boottime();
            }
            !sent
        });
        last
    })
}

fn frozen(field: &Field) {
    /// What the kernel may be late by.
    const LATE: Duration = Duration::from_millis(20);
    let (one, other) = (field.machine(), field.machine());
    let ip = "10.1.0.200".parse().unwrap();
    let at_other = own(&other, true);
    let preferred = Ours::start(&one, &[own(&one, true)], seven(150));
    let second = Ours::start(&other, &[at_other], seven(140));
    wait_until("the preferred one has it", || one.has(ip) && !other.has(ip));
    wait_until("the other one knows", || second.heard(own(&one, true)).is_some());
    let last = last_sent(&one, ip, at_other);
    preferred.freeze.blocking_send(Duration::from_secs(1)).unwrap();
    wait_until("the other one is active", || second.state() == State::Active);
    let (last, active) = (last.join().unwrap(), second.since(State::Active));
    assert!(last < active + LATE, "{:?} too late", last.since(active));
    println!("  dark for {:?} before another one is active", active.since(last));
    wait_until("it knows that it was late", || preferred.status.borrow().lost == 1);
    wait_until("the preferred one has it again", || one.has(ip) && !other.has(ip));
    preferred.stop();
    second.stop();
}
