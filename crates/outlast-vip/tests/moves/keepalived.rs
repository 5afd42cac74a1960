//! Virtual routers together with those of keepalived: who is active, and how soon, in both roles.

use std::fs::{self, File};
use std::net::IpAddr;
use std::num::NonZeroU8;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use outlast_core::vrrp::wire::{Dialect, Malformed};
use outlast_core::vrrp::{LEAVES, State};
use rustix::process::{Pid, Signal, kill_process};

use crate::Case;
use crate::field::{Field, INTERFACE, Machine, pause, set_apart, wait_until};
use crate::vrrp::{Ips, Ours, Router, own};

pub(crate) const CASES: &[Case] = &[
    ("keepalived_and_we_take_turns_in_ipv4_by_multicast", |f| turns(f, true, false)),
    ("keepalived_and_we_take_turns_in_ipv4_by_unicast", |f| turns(f, true, true)),
    ("keepalived_and_we_take_turns_in_ipv6_by_multicast", |f| turns(f, false, false)),
    ("keepalived_and_we_take_turns_in_ipv6_by_unicast", |f| turns(f, false, true)),
    ("of_equal_ones_the_higher_address_stays_and_clients_know_it", |f| {
        equals(f, true);
        equals(f, false);
    }),
    ("a_keepalived_of_version_2_is_told_of", second_version),
    ("a_sync_group_of_keepalived_and_ours_move_as_one", groups),
];

/// Hundredths of a second between two advertisements.
pub(crate) const INTERVAL: u16 = 30;
const NUMBER: u8 = 51;
/// How much later something may be on a machine with other things to do; all of it is still sooner than silence is noticed.
const LATE: Duration = Duration::from_millis(600);

/// Of what a keepalived has said when a case fails.
const LOG_LINES_MAX: usize = 40;

/// RFC 9568 6.1.
fn skew(priority: u8) -> Duration {
    Duration::from_millis(u64::from(INTERVAL) * 10) * (256 - u32::from(priority)) / 256
}

pub(crate) fn ips(v4: bool) -> Ips {
    let all: &[(&str, u8)] =
        if v4 { &[("10.1.0.200", 24)] } else { &[("fe80::200", 64), ("fd01::200", 64)] };
    all.iter().map(|(ip, prefix)| (ip.parse().unwrap(), *prefix)).collect()
}

/// A keepalived on a machine, until it is dropped.
struct Keepalived {
    child: Child,
    dir: PathBuf,
}

impl Keepalived {
    fn start(machine: &Machine, config: String) -> Keepalived {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let moment = std::time::UNIX_EPOCH.elapsed().unwrap().as_nanos();
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let dir = std::env::temp_dir().join(format!("outlast-keepalived-{moment}-{number}"));
        fs::create_dir(&dir).unwrap();
        let file = |name: &str| dir.join(name);
        fs::write(file("conf"), config).unwrap();
        let log = File::create(file("log")).unwrap();
        let mut command = Command::new("keepalived");
        command.args(["--dont-fork", "--log-console", "--log-detail", "--vrrp", "--use-file"]);
        command.arg(file("conf")).arg("--pid").arg(file("pid"));
        command.arg("--vrrp_pid").arg(file("vrrp-pid"));
        command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
        let started = machine.run(move || command.spawn());
        let child = started.unwrap_or_else(|error| {
            panic!("start keepalived: {error}; apt-get install keepalived")
        });
        Keepalived { child, dir }
    }

    /// It says that it ends.
    fn stop(&mut self) {
        let pid = i32::try_from(self.child.id()).unwrap();
        kill_process(Pid::from_raw(pid).unwrap(), Signal::TERM).unwrap();
        self.child.wait().unwrap();
    }

    fn log(&self) -> String {
        fs::read_to_string(self.dir.join("log")).unwrap_or_default()
    }
}

impl Drop for Keepalived {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = self.log();
            let last: Vec<&str> = log.lines().rev().take(LOG_LINES_MAX).collect();
            println!("keepalived says, the last first:\n{}", last.join("\n"));
        }
        if matches!(self.child.try_wait(), Ok(None)) {
            self.stop();
        }
        fs::remove_dir_all(&self.dir).ok();
    }
}

/// A virtual router in the words of keepalived; without peers it speaks to the group.
fn instance(name: &str, v4: bool, priority: u8, unicast: Option<(IpAddr, IpAddr)>) -> String {
    let seconds = f64::from(INTERVAL) / 100.0;
    let addresses: String =
        ips(v4).iter().map(|(ip, prefix)| format!("  {ip}/{prefix}\n")).collect();
    let unicast = unicast.map_or(String::new(), |(own, peer)| {
        format!(" unicast_src_ip {own}\n unicast_peer {{\n  {peer}\n }}\n")
    });
    format!(
        "vrrp_instance {name} {{\n state BACKUP\n interface {INTERFACE}\n virtual_router_id {NUMBER}\n \
         priority {priority}\n advert_int {seconds}\n{unicast} virtual_ipaddress {{\n{addresses} }}\n}}\n"
    )
}

fn config(instances: &str) -> String {
    format!("global_defs {{\n router_id moves\n vrrp_version 3\n}}\n{instances}")
}

fn router(v4: bool, priority: u8, peers: Vec<IpAddr>) -> Router {
    Router {
        number: NonZeroU8::new(NUMBER).unwrap(),
        interval: INTERVAL,
        priority: NonZeroU8::new(priority).unwrap(),
        voices: vec![(ips(v4), peers)],
        checksum: None,
    }
}

fn turns(field: &Field, v4: bool, by_unicast: bool) {
    let (theirs, ours, client) = (field.machine(), field.machine(), field.machine());
    let vip = ips(v4).last().unwrap().0;
    // One that is spoken to one by one has an address that others know.
    let at = |machine: &Machine| match by_unicast && !v4 {
        true => machine.global(),
        false => own(machine, v4),
    };
    let (at_theirs, at_ours) = (at(&theirs), at(&ours));
    let start_theirs = |priority| {
        let unicast = by_unicast.then_some((at_theirs, at_ours));
        Keepalived::start(&theirs, config(&instance("edge", v4, priority, unicast)))
    };
    let start_ours = |priority| {
        let peers = if by_unicast { vec![at_theirs] } else { Vec::new() };
        Ours::start(&ours, &[at_ours], router(v4, priority, peers))
    };
    let _echoes = [theirs.echo(vip), ours.echo(vip)];
    let mut asks = client.client(vip);
    let only = |one: &Machine, other: &Machine| one.has(vip) && !other.has(vip);

    let mut keepalived = start_theirs(150);
    wait_until("keepalived has the address", || theirs.has(vip));
    let low = start_ours(100);
    wait_until("we hear keepalived", || low.heard(at_theirs).is_some());
    assert_eq!(low.heard(at_theirs).unwrap().priority, 150);
    assert_eq!(low.heard(at_theirs).unwrap().dialect, Dialect::PseudoHeader);
    assert_eq!(low.state(), State::Backup);
    asks.wait_for_answer();

    keepalived.stop();
    wait_until("we take over", || low.state() == State::Active);
    let word = low.heard(at_theirs).unwrap();
    assert_eq!(word.priority, LEAVES);
    let took = low.since(State::Active).since(word.at);
    assert!((skew(100)..skew(100) + LATE).contains(&took), "{took:?}");
    println!("  we take over {took:?} after priority 0, {:?} by the standard", skew(100));
    asks.wait_for_answer();
    assert!(only(&ours, &theirs));

    let keepalived = start_theirs(150);
    wait_until("keepalived takes over from a lower one", || only(&theirs, &ours));
    assert_eq!(low.state(), State::Backup);
    asks.wait_for_answer();
    low.stop();

    let high = start_ours(200);
    wait_until("we take over from a lower one", || only(&ours, &theirs));
    asks.wait_for_answer();
    // It believes us, and goes on to.
    let log = keepalived.log();
    assert!(!log.contains("checksum") && !log.contains("nvalid"), "{log}");

    high.stop();
    let ended = Instant::now();
    wait_until("keepalived takes over", || theirs.has(vip));
    let took = ended.elapsed();
    assert!(took < skew(150) + LATE, "{took:?}");
    println!("  keepalived takes over {took:?} after ours, {:?} by the standard", skew(150));
    assert!(!ours.has(vip));
    asks.wait_for_answer();
}

/// Two that were apart, and have the same priority.
fn equals(field: &Field, ours_is_higher: bool) {
    let (one, other, client) = (field.machine(), field.machine(), field.machine());
    let (theirs, ours) = if ours_is_higher { (&one, &other) } else { (&other, &one) };
    let vip = ips(true)[0].0;
    let _echoes = [theirs.echo(vip), ours.echo(vip)];
    let mut asks = client.client(vip);
    set_apart(&theirs.port, true);
    let keepalived = Keepalived::start(theirs, config(&instance("edge", true, 100, None)));
    let part = Ours::start(ours, &[own(ours, true)], router(true, 100, Vec::new()));
    wait_until("who hears nobody is active", || theirs.has(vip) && ours.has(vip));
    asks.wait_for_answer();
    set_apart(&theirs.port, false);
    let (stays, goes) = if ours_is_higher { (ours, theirs) } else { (theirs, ours) };
    wait_until("one of them steps down", || stays.has(vip) && !goes.has(vip));
    let state = if ours_is_higher { State::Active } else { State::Backup };
    assert_eq!(part.state(), state);
    let healed = Instant::now();
    asks.wait_for_answer();
    println!("  the client is answered {:?} after there is one again", healed.elapsed());
    part.stop();
    drop(keepalived);
}

/// What keepalived speaks unless it is told not to.
fn second_version(field: &Field) {
    let (theirs, ours) = (field.machine(), field.machine());
    let (at_theirs, at_ours) = (own(&theirs, true), own(&ours, true));
    let config =
        config(&instance("edge", true, 200, None)).replace("advert_int 0.3", "advert_int 1");
    let _keepalived =
        Keepalived::start(&theirs, config.replace("vrrp_version 3", "vrrp_version 2"));
    let part = Ours::start(&ours, &[at_ours], router(true, 100, Vec::new()));
    wait_until("it is not understood", || part.refused().is_some());
    let refused = part.refused().unwrap();
    assert_eq!((refused.from, refused.why), (at_theirs, Malformed::Version(2)));
    part.stop();
}

/// Two virtual routers on each side, which move together.
fn groups(field: &Field) {
    let (theirs, ours) = (field.machine(), field.machine());
    // Before there is another link-local address.
    let at_theirs = [true, false].map(|v4| own(&theirs, v4));
    let all: Vec<IpAddr> = [true, false].into_iter().flat_map(ips).map(|(ip, _)| ip).collect();
    let has = |machine: &Machine| {
        let here = machine.addresses();
        let count = all.iter().filter(|ip| here.iter().any(|here| here.ip == **ip)).count();
        assert!(count <= all.len());
        count
    };
    let both = instance("four", true, 150, None) + &instance("six", false, 150, None);
    let group = "vrrp_sync_group both {\n group {\n  four\n  six\n }\n}\n";
    let start_theirs = || Keepalived::start(&theirs, config(&format!("{group}{both}")));
    let mut keepalived = start_theirs();
    wait_until("keepalived has all", || has(&theirs) == all.len());
    let voices = [true, false].map(|v4| (ips(v4), Vec::new())).to_vec();
    let plan = Router { voices, ..router(true, 100, Vec::new()) };
    let part = Ours::start(&ours, &[own(&ours, true), own(&ours, false)], plan);
    wait_until("both are heard", || at_theirs.iter().all(|from| part.heard(*from).is_some()));
    keepalived.stop();
    wait_until("we have all", || has(&ours) == all.len() && has(&theirs) == 0);
    let _keepalived = start_theirs();
    wait_until("keepalived has all again", || has(&theirs) == all.len() && has(&ours) == 0);
    assert_eq!(part.state(), State::Backup);
    // For a while it stays so: neither kind of address changes it.
    let until = Instant::now() + 10 * Duration::from_millis(u64::from(INTERVAL) * 10);
    while Instant::now() < until {
        assert_eq!(has(&ours), 0);
        pause(Duration::from_millis(20));
    }
    part.stop();
}
