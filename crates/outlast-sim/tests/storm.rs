//! Seeds, one after another; and every guard taken away once, to see that its absence is noticed.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use outlast_raft::Bug;
use outlast_sim::{Outcome, Plan, Slip, Violation, run};

/// `OUTLAST_SEEDS=FROM..TO` runs those; if it is only one and it fails, its log is printed.
fn seeds(most: u64) -> std::ops::Range<u64> {
    let Ok(text) = std::env::var("OUTLAST_SEEDS") else { return 0..most };
    let (from, to) = text.split_once("..").expect("FROM..TO");
    from.parse().expect("a number")..to.parse().expect("a number")
}

/// Why a lock can always be taken.
const HELD: &str = "no thread stops while it holds it";

/// Runs plans on all cores; the first violation by seed, and the sums of what came to pass.
fn storm(
    range: std::ops::Range<u64>,
    plan: impl Fn(u64) -> Plan + Sync,
) -> (Outcome, Option<Violation>) {
    let next = AtomicU64::new(range.start);
    let found: Mutex<BTreeMap<u64, Violation>> = Mutex::default();
    let sum: Mutex<Outcome> = Mutex::default();
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    std::thread::scope(|scope| {
        for _ in 0..cores {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if range.end <= seed || !found.lock().expect(HELD).is_empty() {
                        return;
                    }
                    let plan = plan(seed);
                    // Broken on purpose, a node may also abort itself: that is as good a find.
                    let ended = match plan.bug {
                        None => run(&plan),
                        Some(_) => std::panic::catch_unwind(|| run(&plan)).unwrap_or_else(|_| {
                            Err(Box::new(Violation {
                                seed,
                                at: 0,
                                what: "a node aborts".to_owned(),
                                events: 0,
                                log: String::new(),
                            }))
                        }),
                    };
                    match ended {
                        Ok(outcome) => add(&mut sum.lock().expect(HELD), &outcome),
                        Err(violation) => {
                            found.lock().expect(HELD).insert(seed, *violation);
                        }
                    }
                }
            });
        }
    });
    let first = found.into_inner().expect(HELD).into_iter().next().map(|(_, violation)| violation);
    (sum.into_inner().expect(HELD), first)
}

fn add(sum: &mut Outcome, one: &Outcome) {
    sum.events += one.events;
    sum.elections += one.elections;
    sum.writes += one.writes;
    sum.reads += one.reads;
    sum.crashes += one.crashes;
    sum.torn += one.torn;
    sum.changes += one.changes;
    sum.transfers += one.transfers;
    sum.snapshots += one.snapshots;
}

#[test]
fn what_must_hold_holds_through_every_storm() {
    let begun = std::time::Instant::now();
    let range = seeds(if cfg!(debug_assertions) { 300 } else { 20_000 });
    let one = range.end - range.start == 1;
    let (sum, violation) = storm(range, |seed| Plan { trace: one, ..Plan::of(seed) });
    let took = begun.elapsed();
    println!("{sum:?} in {took:?}, {:.0} events/s", sum.events as f64 / took.as_secs_f64());
    if let Some(violation) = violation {
        panic!("{}{violation}", violation.log);
    }
}

/// Too rare for storms: `directed.rs` shows that its absence is noticed.
const LED_BY_HAND: [Bug; 1] = [Bug::SnapshotTakesAll];

#[test]
#[cfg_attr(debug_assertions, ignore = "slow without the optimizer; the step `storms` runs it")]
fn every_guard_that_is_taken_away_is_missed() {
    let only = std::env::var("OUTLAST_BUG").ok();
    let wanted = |bug: &Bug| match &only {
        Some(only) => *only == format!("{bug:?}"),
        None => !LED_BY_HAND.contains(bug),
    };
    let mut missed = Vec::new();
    for bug in Bug::ALL.into_iter().filter(wanted) {
        let begun = std::time::Instant::now();
        let (sum, violation) = storm(seeds(40_000), |seed| Plan::aimed(seed, bug));
        match violation {
            Some(v) => println!(
                "{bug:?}: {} ({:?})",
                v.to_string().lines().next().unwrap_or_default(),
                begun.elapsed()
            ),
            None => missed.push(format!("{bug:?} is not found in {sum:?}")),
        }
    }
    assert!(missed.is_empty(), "{}", missed.join("\n"));
}

#[test]
#[cfg_attr(debug_assertions, ignore = "slow without the optimizer; the step `storms` runs it")]
fn every_guard_of_leases_that_is_taken_away_is_missed() {
    for slip in Slip::ALL {
        let begun = std::time::Instant::now();
        let (sum, violation) = storm(0..4_000, |seed| Plan::slipping(seed, slip));
        let violation = violation.unwrap_or_else(|| panic!("{slip:?} is not found in {sum:?}"));
        println!("{slip:?}: {violation} ({:?})", begun.elapsed());
    }
}

/// A cluster without its syncs loses what it has acknowledged, and then contradicts itself.
#[test]
fn disks_that_lie_are_found_out() {
    let begun = std::time::Instant::now();
    let (sum, violation) = storm(0..40_000, |seed| Plan {
        bug: None,
        lying_disks: true,
        ..Plan::aimed(seed, Bug::AckBeforeDisk)
    });
    let violation = violation.unwrap_or_else(|| panic!("not found in {sum:?}"));
    println!("{violation} ({:?})", begun.elapsed());
}

#[test]
fn the_same_seed_gives_the_same_log_byte_for_byte() {
    for seed in 0..20 {
        let plan = Plan { trace: true, ..Plan::of(seed) };
        let (first, second) = (run(&plan).unwrap(), run(&plan).unwrap());
        assert!(!first.log.is_empty());
        assert!(first == second, "seed {seed}");
    }
}
