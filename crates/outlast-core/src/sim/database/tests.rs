use std::string::String;
use std::vec::Vec;

use super::{Slip, World};

/// What a run came to.
struct Ran {
    failovers: u64,
    switchovers: u64,
    writes: usize,
    events: u64,
}

/// What a run came to, or the law that a seed breaks and what led there.
fn run(seed: u64, slip: Option<Slip>, text: bool) -> Result<Ran, (String, String)> {
    let mut world = World::new(seed, slip, text);
    match world.run() {
        Ok(()) => Ok(Ran {
            failovers: world.ledger.failovers,
            switchovers: world.ledger.switchovers,
            writes: world.writes(),
            events: world.events,
        }),
        Err(law) => {
            let law = std::format!("seed {seed} ({:?}) at {}: {law}", world.kind, world.now);
            Err((law, world.text.unwrap_or_default()))
        }
    }
}

/// `OUTLAST_SEEDS` is how many, or `from..to`; `OUTLAST_SEED` replays one.
fn seeds() -> std::ops::Range<u64> {
    let number = |text: &str| text.parse::<u64>().ok();
    let variable = |name: &str| std::env::var(name).ok();
    if let Some(seed) = variable("OUTLAST_SEED").as_deref().and_then(number) {
        return seed..seed + 1;
    }
    let text = variable("OUTLAST_SEEDS").unwrap_or_default();
    if let Some((from, to)) = text.split_once("..")
        && let (Some(from), Some(to)) = (number(from), number(to))
    {
        return from..to;
    }
    0..number(&text).unwrap_or(if cfg!(debug_assertions) { 40 } else { 3_000 })
}

#[test]
fn no_acknowledged_write_is_lost_and_all_find_back() {
    let (mut failovers, mut switchovers, mut writes, mut events) = (0, 0, 0, 0);
    for seed in seeds() {
        match run(seed, None, false) {
            Ok(ran) => {
                failovers += ran.failovers;
                switchovers += ran.switchovers;
                writes += ran.writes;
                events += ran.events;
            }
            Err((law, _)) => {
                let (_, text) = run(seed, None, true).err().expect("the same seed");
                let most = if seeds().count() == 1 { usize::MAX } else { 80 };
                let mut tail: Vec<&str> = text.lines().rev().take(most).collect();
                tail.reverse();
                panic!("{}\n{law}\nreplay it with OUTLAST_SEED={seed}", tail.join("\n"));
            }
        }
    }
    std::println!(
        "{} seeds: {failovers} changes of primary, {switchovers} of them planned, {writes} writes, {events} events",
        seeds().count()
    );
}

#[test]
#[ignore]
fn survey() {
    for seed in seeds() {
        if let Err((law, _)) = run(seed, None, false) {
            std::println!("{}", &law[..law.len().min(300)]);
        }
    }
}
