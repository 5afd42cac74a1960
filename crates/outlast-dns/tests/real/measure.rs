//! How much CPU time an answer costs, beside Knot and NSD with one thread each, as dnsperf asks them on this machine.
//!
//! `OUTLAST_MEASURE=1 cargo test --release -p outlast-dns --test real measure -- --nocapture`

use std::fmt::Write as _;
use std::net::{SocketAddr, UdpSocket};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;

use super::{Dir, Running, name, now, run, wait_for};
use outlast_dns::dnssec::{Signatures, ZoneKey};
use outlast_dns::server::{Config, Server};
use outlast_dns::table::Table;
use outlast_dns::zone::ZoneSpec;

/// Names of the zone, and rounds in which all servers take turns.
const NAMES: usize = 1_000;
const ROUNDS: usize = 5;

/// Servers of other makes; they stand first and run all the time.
const OTHERS: usize = 2;

/// Seconds that dnsperf asks for.
const SECONDS: &str = "4";

/// A server that is measured, and how it is asked.
struct Subject {
    what: &'static str,
    at: SocketAddr,
    process: u32,
    /// The threads that answer; all of the process if empty.
    thread: &'static str,
    asks: &'static [&'static str],
    /// Microseconds per query, those in user mode, and queries per second, of each round.
    rounds: Vec<(f64, f64, f64)>,
}

fn zone_file() -> String {
    let mut text = "$ORIGIN example.com.\n$TTL 60\n@ IN SOA ns1 host 7 300 60 604800 5\n@ IN NS ns1\nns1 IN A 127.0.0.1\n".to_owned();
    for n in 0..NAMES {
        writeln!(text, "www{n} IN A 192.0.2.{}", n % 250).unwrap();
    }
    text
}

fn queries() -> String {
    let names = (0..NAMES).map(|n| if n % 10 == 9 { format!("no{n}") } else { format!("www{n}") });
    names.map(|name| format!("{name}.example.com A\n")).collect()
}

fn ours(signed: bool) -> Server {
    let mut spec = ZoneSpec::from_zone_file(&name("example.com"), &zone_file()).unwrap();
    spec.key =
        signed.then(|| Arc::new(ZoneKey::from_pkcs8(&ZoneKey::generate().unwrap()).unwrap()));
    let table = Table::build(&[spec], &mut Signatures::default(), now()).unwrap();
    let listen = ["127.0.0.1:0".parse().unwrap()];
    Server::start(&listen, 1, Config::default(), table).unwrap().0
}

fn free() -> SocketAddr {
    UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

fn spawn(program: &str, args: &[&str], at: SocketAddr) -> Running {
    let child =
        Command::new(program).args(args).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
    let running = Running(child.unwrap());
    wait_for(program, || {
        super::ask("dig", at, "+short +tries=1 +timeout=1 www1.example.com A")
            .starts_with("192.0.2.1")
    });
    running
}

fn knot(dir: &Path) -> (Running, SocketAddr) {
    let (at, here) = (free(), dir.display());
    let conf = format!(
        "server:\n  listen: 127.0.0.1@{}\n  rundir: {here}\n  udp-workers: 1\n  tcp-workers: 1\n  background-workers: 1\n\
         database:\n  storage: {here}\nzone:\n  - domain: example.com\n    file: {here}/zone\n",
        at.port()
    );
    let file = dir.join("knot.conf");
    std::fs::write(&file, conf).unwrap();
    (spawn("/usr/sbin/knotd", &["-c", file.to_str().unwrap()], at), at)
}

fn nsd(dir: &Path) -> (Running, SocketAddr) {
    let (at, here) = (free(), dir.display());
    let conf = format!(
        "server:\n  ip-address: 127.0.0.1@{}\n  server-count: 1\n  username: \"\"\n  zonesdir: {here}\n  pidfile: {here}/nsd.pid\n\
         \x20 xfrdfile: {here}/xfrd\n  xfrdir: {here}\n  zonelistfile: {here}/list\n  database: \"\"\n  rrl-ratelimit: 0\n  rrl-whitelist-ratelimit: 0\n\
         remote-control:\n  control-enable: no\nzone:\n  name: example.com\n  zonefile: zone\n",
        at.port()
    );
    let file = dir.join("nsd.conf");
    std::fs::write(&file, conf).unwrap();
    (spawn("/usr/sbin/nsd", &["-d", "-c", file.to_str().unwrap()], at), at)
}

/// The processes that a process has started, and itself.
fn family(process: u32) -> Vec<u32> {
    let path = format!("/proc/{process}/task/{process}/children");
    let children = std::fs::read_to_string(path).unwrap_or_default();
    let children = children.split_whitespace().filter_map(|id| id.parse().ok());
    children.flat_map(family).chain([process]).collect()
}

/// CPU time of threads so far: nanoseconds, and ticks in user mode and in the kernel.
fn spent(process: u32, thread: &str) -> (f64, f64, f64) {
    let mut sums = (0.0, 0.0, 0.0);
    for process in family(process) {
        for task in std::fs::read_dir(format!("/proc/{process}/task")).unwrap().flatten() {
            let read =
                |file: &str| std::fs::read_to_string(task.path().join(file)).unwrap_or_default();
            if !read("comm").starts_with(thread) {
                continue;
            }
            let number = |text: &str, place: usize| -> f64 {
                text.split_whitespace().nth(place).and_then(|word| word.parse().ok()).unwrap_or(0.0)
            };
            let stat = read("stat");
            let after_name = stat.rsplit(')').next().unwrap_or_default();
            sums.0 += number(&read("schedstat"), 0);
            sums.1 += number(after_name, 11);
            sums.2 += number(after_name, 12);
        }
    }
    sums
}

/// Keeps the threads that answer on the processor that dnsperf does not use.
fn pin(subject: &Subject) {
    for process in family(subject.process) {
        for task in std::fs::read_dir(format!("/proc/{process}/task")).unwrap().flatten() {
            let comm = std::fs::read_to_string(task.path().join("comm")).unwrap_or_default();
            if comm.starts_with(subject.thread) {
                run("taskset", &["-cp", "0", task.file_name().to_str().unwrap()], "");
            }
        }
    }
}

/// One round: microseconds per query, those in user mode, queries per second.
fn measure(subject: &Subject, file: &str) -> (f64, f64, f64) {
    let port = subject.at.port().to_string();
    let mut args = vec!["-c", "1", "dnsperf", "-s", "127.0.0.1", "-p", &port, "-d", file];
    args.extend(["-l", SECONDS, "-c", "8", "-q", "200"]);
    args.extend(subject.asks);
    pin(subject);
    let before = spent(subject.process, subject.thread);
    let said = run("taskset", &args, "");
    let after = spent(subject.process, subject.thread);
    let figure = |label: &str| -> f64 {
        let line =
            said.lines().find(|line| line.contains(label)).unwrap_or_else(|| panic!("{said}"));
        let words = line.split(':').nth(1).unwrap().split_whitespace().next().unwrap();
        words.parse().unwrap()
    };
    let queries = figure("Queries completed");
    let (user, system) = (after.1 - before.1, after.2 - before.2);
    let total = (after.0 - before.0) / 1_000.0 / queries;
    (total, total * user / (user + system).max(1.0), figure("Queries per second"))
}

fn median(rounds: &[(f64, f64, f64)], of: fn(&(f64, f64, f64)) -> f64) -> f64 {
    let mut figures: Vec<f64> = rounds.iter().map(of).collect();
    figures.sort_by(f64::total_cmp);
    figures[figures.len() / 2]
}

#[test]
fn an_answer_costs_so_much() {
    if std::env::var_os("OUTLAST_MEASURE").is_none_or(|value| value != "1") {
        return;
    }
    let dir = Dir::new("measure");
    std::fs::write(dir.0.join("zone"), zone_file()).unwrap();
    std::fs::write(dir.0.join("queries"), queries()).unwrap();
    let file = dir.0.join("queries");
    let file = file.to_str().unwrap();
    let (knot, knot_at) = knot(&dir.0);
    let (nsd, nsd_at) = nsd(&dir.0);
    let us = std::process::id();
    let subject = |what, at, process, thread, asks| Subject {
        what,
        at,
        process,
        thread,
        asks,
        rounds: Vec::new(),
    };
    let (knot_id, nsd_id) = (knot.0.id(), nsd.0.id());
    let mut subjects = vec![
        subject("knot", knot_at, knot_id, "", &["-e"][..]),
        subject("nsd", nsd_at, nsd_id, "", &["-e"][..]),
    ];
    for round in 0..ROUNDS {
        for subject in subjects.iter_mut().take(OTHERS) {
            let figures = measure(subject, file);
            subject.rounds.push(figures);
        }
        // One of ours at a time, so that its threads are found by their name.
        for (place, (what, signed, asks)) in [
            ("ours", false, &["-e"][..]),
            ("ours, asked for signatures", false, &["-e", "-D"]),
            ("ours, signed", true, &["-e", "-D"]),
        ]
        .into_iter()
        .enumerate()
        {
            let server = ours(signed);
            let own = subject(what, server.addresses()[0], us, "dns-0", asks);
            let figures = measure(&own, file);
            if round == 0 {
                subjects.insert(OTHERS + place, own);
            }
            subjects[OTHERS + place].rounds.push(figures);
        }
    }
    for Subject { what, rounds, .. } in &subjects {
        println!("{what}: {rounds:.2?}");
    }
    println!("server, one thread | CPU us/query, median (min-max) | user us | best q/s");
    for Subject { what, rounds, .. } in &subjects {
        let totals = rounds.iter().map(|round| round.0);
        let (low, high) = (totals.clone().fold(f64::MAX, f64::min), totals.fold(0.0, f64::max));
        let best = rounds.iter().map(|round| round.2).fold(0.0, f64::max);
        let (total, user) = (median(rounds, |r| r.0), median(rounds, |r| r.1));
        println!("{what} | {total:.2} ({low:.2}-{high:.2}) | {user:.2} | {best:.0}");
    }
}
