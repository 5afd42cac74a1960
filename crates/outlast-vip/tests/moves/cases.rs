//! What must hold, each in a network of its own.

use std::io::{self, BufRead as _, BufReader, Write as _};
use std::net::IpAddr;
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use outlast_kernel::nft::{self, Batch, Family, Table};
use outlast_kernel::packet::{self, Mac};
use outlast_kernel::route::{NO_DUPLICATE_DETECTION, Route, Wanted};
use outlast_vip::{Error, Event, Guard, Guardian, Place, Rivals, boottime, guardian};
use rustix::process::{Pid, Signal, kill_process_group};

use crate::Case;
use crate::field::{Field, INTERFACE, LIMIT, Machine, pause, place, set_up, wait_until};

pub(crate) const CASES: &[Case] = &[
    ("who_takes_an_address_is_reached_and_announces_it_in_ipv4", |f| taken(f, V4)),
    ("who_takes_an_address_is_reached_and_announces_it_in_ipv6", |f| taken(f, V6)),
    ("a_lease_that_nobody_refreshes_ends_by_itself_in_ipv4", |f| ends_by_itself(f, V4)),
    ("a_lease_that_nobody_refreshes_ends_by_itself_in_ipv6", |f| ends_by_itself(f, V6)),
    ("outside_the_lease_nobody_says_where_the_address_is_in_ipv4", |f| unresolved(f, V4)),
    ("outside_the_lease_nobody_says_where_the_address_is_in_ipv6", |f| unresolved(f, V6)),
    ("an_address_is_never_dark_while_it_is_refreshed", never_dark),
    ("what_is_dropped_is_dark_at_once_in_ipv4", |f| dropped(f, V4)),
    ("what_is_dropped_is_dark_at_once_in_ipv6", |f| dropped(f, V6)),
    ("everything_may_be_done_twice", twice),
    ("an_address_moves_to_another_machine_and_clients_follow_in_ipv4", |f| moves(f, V4)),
    ("an_address_moves_to_another_machine_and_clients_follow_in_ipv6", |f| moves(f, V6)),
    ("rules_that_somebody_flushes_come_back_with_the_next_refresh", flushed),
    ("what_an_earlier_process_has_left_is_removed", leftovers),
    ("a_network_route_outlasts_the_addresses_that_come_and_go", route_stays),
    ("a_lease_that_is_over_is_not_taken", over),
    ("a_guardian_drops_the_addresses_of_a_dead_parent", guarded),
    ("a_guardian_that_hears_a_goodbye_drops_nothing", goodbye),
    ("a_rival_is_heard_in_ipv4", |f| rival(f, V4)),
    ("a_rival_is_heard_in_ipv6", |f| rival(f, V6)),
    ("links_are_seen_to_go_down_and_up", links),
];

const V4: (&str, u8) = ("10.1.0.200", 24);
const V6: (&str, u8) = ("fd01::200", 64);
/// Long enough for everything here, on the slowest machine.
const LONG: Duration = Duration::from_secs(50);
const SHORT: Duration = Duration::from_millis(400);

fn ip(of: (&str, u8)) -> IpAddr {
    of.0.parse().expect("an address")
}

fn places(of: (&'static str, u8)) -> Vec<Place> {
    vec![place(of.0, of.1)]
}

fn open(machine: &Machine, places: Vec<Place>) -> Guard {
    machine.run(move || Guard::open("test", &places)).unwrap_or_else(|error| panic!("{error}"))
}

fn take(guard: &mut Guard, time: Duration) {
    guard.take(boottime() + time).unwrap_or_else(|error| panic!("{error}"));
}

fn taken(field: &Field, of: (&'static str, u8)) {
    let (holder, client) = (field.machine(), field.machine());
    let ip = ip(of);
    let mut guard = open(&holder, places(of));
    let _echo = holder.echo(ip);
    let mut asks = client.client(ip);
    asks.must_be_dark();
    assert!(!holder.has(ip));
    let listener = client.run(listen);
    take(&mut guard, LONG);
    assert!(holder.has(ip) && guard.holds());
    assert_eq!(claims(&listener, ip, 1 + usize::from(ip.is_ipv4())), holder.mac);
    asks.wait_for_answer();
    guard.announce().unwrap();
    assert_eq!(claims(&listener, ip, 1 + usize::from(ip.is_ipv4())), holder.mac);
    guard.close().unwrap();
    assert!(!holder.has(ip));
    assert!(!holder.run(|| table_is_there("test")), "a closed guard leaves no table");
}

fn ends_by_itself(field: &Field, of: (&'static str, u8)) {
    let (holder, client) = (field.machine(), field.machine());
    let ip = ip(of);
    let mut guard = open(&holder, places(of));
    let _echo = holder.echo(ip);
    let mut asks = client.client(ip);
    take(&mut guard, LONG);
    asks.wait_for_answer();
    let began = Instant::now();
    guard.refresh(boottime() + SHORT).unwrap();
    let (last, granted) = (asks.last_answer(), Instant::now());
    let lasted = last.duration_since(began);
    // The kernel counts in ticks of up to 10 ms; nothing that this machine is late with makes it longer.
    assert!(lasted < SHORT + Duration::from_millis(100), "answered after {lasted:?}");
    wait_until("the lease is over", || !guard.holds());
    asks.must_be_dark();
    wait_until("the address is gone", || !holder.has(ip));
    let gone = granted.elapsed();
    assert!(gone < Duration::from_secs(15), "gone after {gone:?}");
}

/// The address is still on the interface, but nothing of it is seen on the wire.
fn unresolved(field: &Field, of: (&'static str, u8)) {
    let (holder, client) = (field.machine(), field.machine());
    let ip = ip(of);
    let mut guard = open(&holder, places(of));
    let _echo = holder.echo(ip);
    let mut asks = client.client(ip);
    take(&mut guard, LONG);
    asks.wait_for_answer();
    client.forget_neighbour(ip);
    asks.wait_for_answer();
    // The same without a lease: an address that somebody has added by hand.
    guard.drop_all().unwrap();
    put_by_hand(&holder, of);
    client.forget_neighbour(ip);
    let listener = client.run(listen);
    asks.must_be_dark();
    assert_eq!(next_claim(&listener, ip), None, "something says where the address is");
    let sent = holder.run(move || {
        let socket = std::net::UdpSocket::bind((ip, 1008)).unwrap();
        let to: IpAddr =
            if ip.is_ipv4() { [10, 1, 0, 77].into() } else { "fd01::77".parse().unwrap() };
        socket.send_to(b"x", (to, 9))
    });
    assert!(sent.is_err(), "it may speak from the address");
    take(&mut guard, LONG);
    asks.wait_for_answer();
}

fn put_by_hand(machine: &Machine, of: (&'static str, u8)) {
    let (ip, prefix) = (ip(of), of.1);
    machine.run(move || {
        let route = Route::open().unwrap();
        let index = route.link(INTERFACE).unwrap().index;
        let flags = NO_DUPLICATE_DETECTION;
        let wanted = Wanted { ip, prefix, valid: u32::MAX, preferred: u32::MAX, flags };
        route.put_address(index, &wanted).unwrap();
    });
}

fn never_dark(field: &Field) {
    const GRANT: Duration = Duration::from_secs(2);
    let (holder, client) = (field.machine(), field.machine());
    let all = [places(V4), places(V6)].concat();
    let mut guard = open(&holder, all);
    let _echoes = [holder.echo(ip(V4)), holder.echo(ip(V6))];
    let mut clients = [client.client(ip(V4)), client.client(ip(V6))];
    let mut granted = boottime();
    take(&mut guard, GRANT);
    clients.iter_mut().for_each(crate::field::Client::wait_for_answer);
    let until = Instant::now() + 3 * GRANT;
    while Instant::now() < until {
        let now = boottime();
        assert!(now.since(granted) < GRANT, "this machine is too late to refresh anything");
        guard.refresh(now + GRANT).unwrap();
        granted = now;
        for asks in &mut clients {
            // The answer to one may come late, but it comes before the lease ends.
            assert!((0..20).any(|_| asks.ask().is_some()), "dark while it was refreshed");
        }
        pause(Duration::from_millis(50));
    }
    assert!(holder.has(ip(V4)) && holder.has(ip(V6)));
}

fn dropped(field: &Field, of: (&'static str, u8)) {
    let (holder, client) = (field.machine(), field.machine());
    let ip = ip(of);
    let mut guard = open(&holder, places(of));
    let _echo = holder.echo(ip);
    let mut asks = client.client(ip);
    take(&mut guard, LONG);
    asks.wait_for_answer();
    guard.drop_all().unwrap();
    asks.must_be_dark();
    assert!(!holder.has(ip) && !guard.holds());
}

fn twice(field: &Field) {
    let (holder, client) = (field.machine(), field.machine());
    let ip = ip(V4);
    let mut guard = open(&holder, places(V4));
    let _echo = holder.echo(ip);
    let mut asks = client.client(ip);
    guard.drop_all().unwrap();
    guard.announce().unwrap();
    for _ in 0..2 {
        take(&mut guard, LONG);
        take(&mut guard, LONG);
        asks.wait_for_answer();
        guard.refresh(boottime() + LONG).unwrap();
        guard.refresh(boottime() + LONG).unwrap();
        asks.wait_for_answer();
        guard.drop_all().unwrap();
        guard.drop_all().unwrap();
        asks.must_be_dark();
    }
    // Who refreshes what it has not takes it.
    guard.refresh(boottime() + LONG).unwrap();
    asks.wait_for_answer();
    // A shorter lease ends earlier.
    guard.refresh(boottime() + SHORT).unwrap();
    asks.last_answer();
    wait_until("the lease is over", || !guard.holds());
}

fn moves(field: &Field, of: (&'static str, u8)) {
    let (one, other, client) = (field.machine(), field.machine(), field.machine());
    let ip = ip(of);
    let (mut here, mut there) = (open(&one, places(of)), open(&other, places(of)));
    let _echoes = [one.echo(ip), other.echo(ip)];
    let mut asks = client.client(ip);
    for _ in 0..3 {
        take(&mut here, LONG);
        asks.wait_for_answer();
        here.drop_all().unwrap();
        take(&mut there, LONG);
        asks.wait_for_answer();
        assert!(!one.has(ip) && other.has(ip));
        there.drop_all().unwrap();
    }
    // Who does not have the address may be a client of who has, and hears where it moves to.
    take(&mut here, LONG);
    let mut asks = other.client(ip);
    asks.wait_for_answer();
}

fn flushed(field: &Field) {
    let (holder, client) = (field.machine(), field.machine());
    let ip = ip(V4);
    let mut guard = open(&holder, places(V4));
    let _echo = holder.echo(ip);
    let mut asks = client.client(ip);
    take(&mut guard, LONG);
    holder.run(|| {
        let mut batch = Batch::new();
        for family in [Family::Inet, Family::Arp] {
            batch.delete_table(Table { family, name: "outlast_vip_test" });
        }
        batch.commit(&nft::open().unwrap()).unwrap();
    });
    guard.refresh(boottime() + SHORT).unwrap();
    asks.wait_for_answer();
    asks.last_answer();
    assert!(holder.run(|| table_is_there("test")));
}

fn leftovers(field: &Field) {
    let (holder, client) = (field.machine(), field.machine());
    let ip = ip(V4);
    let _echo = holder.echo(ip);
    let mut asks = client.client(ip);
    let mut guard = open(&holder, places(V4));
    take(&mut guard, LONG);
    asks.wait_for_answer();
    // As if its process had been killed.
    std::mem::forget(guard);
    let guard = open(&holder, vec![place(V4.0, 32)]);
    asks.must_be_dark();
    assert!(!holder.has(ip) && !guard.holds());
}

fn route_stays(field: &Field) {
    let (holder, client) = (field.machine(), field.machine());
    let own = holder.addresses().into_iter().find(|here| here.prefix == 64 && here.valid.is_none());
    let own = own.expect("it has an address of its own").ip;
    let mut guard = open(&holder, places(V6));
    let _echo = holder.echo(own);
    let mut asks = client.client(own);
    asks.wait_for_answer();
    take(&mut guard, Duration::from_millis(300));
    guard.refresh(boottime() + Duration::from_millis(300)).unwrap();
    wait_until("the address is gone", || !holder.has(ip(V6)));
    let until = Instant::now() + Duration::from_secs(4);
    while Instant::now() < until {
        asks.wait_for_answer();
        assert!(
            holder.run(prefix_route_has_no_end),
            "the route to the network ends with the address"
        );
        pause(Duration::from_millis(100));
    }
}

/// Whether the route to fd01::/64 is there for good.
fn prefix_route_has_no_end() -> bool {
    let routes = std::fs::read_to_string("/proc/thread-self/net/ipv6_route").unwrap();
    let network = "fd010000000000000000000000000000 40";
    // RTF_EXPIRES of linux/ipv6_route.h.
    const EXPIRES: u32 = 0x0040_0000;
    let flags = routes
        .lines()
        .filter(|line| line.starts_with(network))
        .filter_map(|line| u32::from_str_radix(line.split_whitespace().nth(8)?, 16).ok());
    flags.clone().count() == 1 && flags.clone().all(|flags| flags & EXPIRES == 0)
}

fn over(field: &Field) {
    let holder = field.machine();
    let mut guard = open(&holder, places(V4));
    let refused = guard.take(boottime());
    assert!(matches!(refused, Err(Error::Over)), "{refused:?}");
    assert!(!holder.has(ip(V4)) && !guard.holds());
    let nowhere = Place { interface: "none0".to_owned(), ..place(V4.0, V4.1) };
    let refused = holder.run(move || Guard::open("test", &[nowhere])).unwrap_err().to_string();
    assert!(refused.contains("none0"), "{refused}");
}

/// What a binary does in its hidden verb.
pub(crate) fn guardian_process() -> ExitCode {
    match guardian(io::stdin(), io::stdout()) {
        Ok(_) => ExitCode::SUCCESS,
        Err(error) => panic!("{error}"),
    }
}

fn guardian_command() -> Command {
    let mut command = Command::new(std::env::current_exe().expect("we run"));
    command.arg("guardian");
    command
}

/// An agent: takes the addresses for long, with a guardian behind it, and waits for its end.
pub(crate) fn holder_process() -> ExitCode {
    let all = [places(V4), places(V6)].concat();
    let mut guard = Guard::open("test", &all).unwrap_or_else(|error| panic!("{error}"));
    let _guardian =
        Guardian::spawn(guardian_command(), "test", &all).unwrap_or_else(|error| panic!("{error}"));
    take(&mut guard, LONG);
    println!("holds");
    io::stdout().flush().unwrap();
    io::copy(&mut io::stdin(), &mut io::sink()).unwrap();
    ExitCode::SUCCESS
}

fn start_holder(machine: &Machine) -> Child {
    machine.run(|| {
        let mut command = Command::new(std::env::current_exe().expect("we run"));
        command.arg("holder").stdin(Stdio::piped()).stdout(Stdio::piped()).process_group(0);
        let mut child = command.spawn().expect("start a holder");
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert_eq!(line, "holds\n");
        child
    })
}

fn guarded(field: &Field) {
    for signal in [Signal::KILL, Signal::TERM] {
        let (machine, client) = (field.machine(), field.machine());
        let _echoes = [machine.echo(ip(V4)), machine.echo(ip(V6))];
        let mut holder = start_holder(&machine);
        let mut clients = [client.client(ip(V4)), client.client(ip(V6))];
        clients.iter_mut().for_each(crate::field::Client::wait_for_answer);
        // The guardian is not in the group: it hears nothing of this.
        let group = Pid::from_child(&holder);
        kill_process_group(group, signal).unwrap();
        holder.wait().unwrap();
        let killed = Instant::now();
        for asks in &mut clients {
            let last = asks.last_answer().saturating_duration_since(killed);
            assert!(last < LONG / 2, "dropped after {last:?}");
        }
        wait_until("the addresses are gone", || !machine.has(ip(V4)) && !machine.has(ip(V6)));
        assert!(killed.elapsed() < LONG / 2, "dropped by the end of the lease only");
    }
}

fn goodbye(field: &Field) {
    let machine = field.machine();
    let mut guard = open(&machine, places(V4));
    let spawned = machine.run(|| Guardian::spawn(guardian_command(), "test", &places(V4)));
    let mut kept = spawned.unwrap_or_else(|error| panic!("{error}"));
    take(&mut guard, LONG);
    assert!(!kept.has_ended());
    kept.goodbye().unwrap();
    assert!(machine.has(ip(V4)));
    // One whose parent lets it go without a word drops everything.
    let spawned = machine.run(|| Guardian::spawn(guardian_command(), "test", &places(V4)));
    drop(spawned.unwrap_or_else(|error| panic!("{error}")));
    assert!(!machine.has(ip(V4)));
    // The next refresh of a parent that lives has it all back.
    guard.refresh(boottime() + LONG).unwrap();
    assert!(machine.has(ip(V4)));
    let failed = machine.run(|| Guardian::spawn(Command::new("/bin/false"), "test", &places(V4)));
    assert!(matches!(failed, Err(Error::Guardian { .. })), "{failed:?}");
}

fn rival(field: &Field, of: (&'static str, u8)) {
    let (holder, other) = (field.machine(), field.machine());
    let (address, mac) = (ip(of), other.mac);
    let mut guard = open(&holder, places(of));
    take(&mut guard, LONG);
    let heard = holder.start(move || {
        in_runtime(async {
            let mut rivals = Rivals::open("test", &places(of)).unwrap();
            loop {
                if let Event::Rival { address, mac } = rivals.next().await.unwrap() {
                    return (address, mac);
                }
            }
        })
    });
    let mut there = open(&other, places(of));
    take(&mut there, LONG);
    wait_until("the rival is heard", || {
        guard.announce().unwrap();
        there.announce().unwrap();
        heard.is_finished()
    });
    assert_eq!(heard.join().unwrap(), (address, mac));
}

fn links(field: &Field) {
    let machine = field.machine();
    let (sender, seen) = std::sync::mpsc::channel();
    let watch = machine.start(move || {
        in_runtime(async {
            let mut rivals = Rivals::open("test", &places(V4)).unwrap();
            for _ in 0..3 {
                sender.send(rivals.next().await.unwrap()).unwrap();
            }
        });
    });
    let link = |up| Event::Link { interface: INTERFACE.to_owned(), up };
    assert_eq!(seen.recv_timeout(LIMIT).unwrap(), link(true));
    set_up(&machine.port, false);
    assert_eq!(seen.recv_timeout(LIMIT).unwrap(), link(false));
    set_up(&machine.port, true);
    assert_eq!(seen.recv_timeout(LIMIT).unwrap(), link(true));
    watch.join().unwrap();
}

pub(crate) fn in_runtime<T>(work: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let limited = async { tokio::time::timeout(LIMIT, work).await };
    runtime.unwrap().block_on(limited).expect("nothing was heard")
}

/// Hears everything on the wire.
pub(crate) fn listen() -> packet::Socket {
    let socket = packet::Socket::open().unwrap();
    socket.ignore_outgoing().unwrap();
    socket.bind(0, packet::ALL).unwrap();
    socket
}

/// Waits for that many frames that say whose the address is; the last one's answer.
fn claims(listener: &packet::Socket, ip: IpAddr, count: usize) -> Mac {
    let mut found = Vec::new();
    wait_until("the address is announced", || {
        found.extend(next_claim(listener, ip));
        count <= found.len()
    });
    found[count - 1]
}

/// The next frame of those that are there that says whose the address is: ARP from it, or an advertisement of it.
fn next_claim(listener: &packet::Socket, ip: IpAddr) -> Option<Mac> {
    let mut buffer = [0; 2048];
    while let Ok(arrival) = listener.receive(&mut buffer) {
        let frame = &buffer[..arrival.len];
        let sender = <Mac>::try_from(&frame[6..12]).unwrap();
        let says = match ip {
            IpAddr::V4(ip) => {
                frame[12..14] == packet::ARP.to_be_bytes() && frame[28..32] == ip.octets()
            }
            IpAddr::V6(ip) => {
                frame[12..14] == packet::IPV6.to_be_bytes()
                    && frame[20] == 58
                    && frame[54] == 136
                    && frame[62..78] == ip.octets()
            }
        };
        if says {
            return Some(sender);
        }
    }
    None
}

/// Whether the tables of a unit are there: they cannot be made as new ones.
fn table_is_there(unit: &str) -> bool {
    let name = format!("outlast_vip_{unit}");
    let mut batch = Batch::new();
    batch.delete_table(Table { family: Family::Inet, name: &name });
    batch.commit(&nft::open().unwrap()).is_ok()
}
