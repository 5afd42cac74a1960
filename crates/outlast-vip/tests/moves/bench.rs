//! How long things take. The figures are for people: a machine that is busy makes them larger and fails nothing.

use std::time::{Duration, Instant};

use outlast_vip::{Guard, boottime};

use crate::Case;
use crate::field::{Field, place};

pub(crate) const CASES: &[Case] =
    &[("figures_of_a_guard", calls), ("figures_of_darkness", darkness)];

const RUNS: u32 = 20;
const GRANT: Duration = Duration::from_millis(300);

fn calls(field: &Field) {
    let holder = field.machine();
    let places = vec![place("10.1.0.200", 24), place("fd01::200", 64)];
    let mut guard = holder.run(move || Guard::open("bench", &places)).unwrap();
    let (mut takes, mut refreshes, mut drops) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..RUNS {
        takes.push(timed(|| guard.take(boottime() + GRANT).unwrap()));
        for _ in 0..5 {
            refreshes.push(timed(|| guard.refresh(boottime() + GRANT).unwrap()));
        }
        drops.push(timed(|| guard.drop_all().unwrap()));
    }
    say("take", takes);
    say("refresh", refreshes);
    say("drop", drops);
}

/// How much longer than its lease an address answers: negative if it ends early.
fn darkness(field: &Field) {
    for ip in ["10.1.0.200", "fd01::200"] {
        let (holder, client) = (field.machine(), field.machine());
        let places = vec![place(ip, 24)];
        let mut guard = holder.run(move || Guard::open("bench", &places)).unwrap();
        let ip = ip.parse().unwrap();
        let _echo = holder.echo(ip);
        let mut asks = client.client(ip);
        let mut lasted = Vec::new();
        for _ in 0..RUNS {
            guard.take(boottime() + Duration::from_secs(10)).unwrap();
            asks.wait_for_answer();
            let began = Instant::now();
            guard.refresh(boottime() + GRANT).unwrap();
            lasted.push(asks.last_answer().duration_since(began));
        }
        say(&format!("last answer after a grant of {GRANT:?} to {ip}"), lasted);
    }
}

fn timed(work: impl FnOnce()) -> Duration {
    let began = Instant::now();
    work();
    began.elapsed()
}

fn say(what: &str, mut times: Vec<Duration>) {
    times.sort_unstable();
    let (min, max) = (times[0], times[times.len() - 1]);
    let median = times[times.len() / 2];
    println!("MEASURED {what}: min {min:?}, median {median:?}, max {max:?}, {} runs", times.len());
}
