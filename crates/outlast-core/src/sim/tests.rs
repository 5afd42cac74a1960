use std::collections::{BTreeMap, BTreeSet};
use std::format;
use std::string::String;
use std::vec::Vec;

use super::{Broken, Bug, run};

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok()?.parse().ok()
}

/// The seeds of a test run. `OUTLAST_SEEDS` asks for more; `OUTLAST_SEED` replays one, and shows all of it if it fails.
fn seeds() -> std::ops::Range<u64> {
    let many = if cfg!(debug_assertions) { 100 } else { 3_000 };
    match number("OUTLAST_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("OUTLAST_SEEDS").unwrap_or(many),
    }
}

/// Says which law a seed breaks and what led there.
fn tell(broken: &Broken) -> String {
    let again = run(broken.seed, None, true).err();
    let log = again.map(|b| b.log).unwrap_or_default();
    let lines = if number("OUTLAST_SEED").is_some() { usize::MAX } else { 60 };
    let mut tail: Vec<&str> = log.lines().rev().take(lines).collect();
    tail.reverse();
    format!(
        "{}\nseed {} broke a law at {:?}: {}; replay it with OUTLAST_SEED={}",
        tail.join("\n"),
        broken.seed,
        broken.at,
        broken.law,
        broken.seed,
    )
}

#[test]
fn no_seed_breaks_a_law_and_every_documented_transition_is_taken() {
    let (mut seen, mut steps) = (BTreeMap::<&str, u64>::new(), 0);
    for seed in seeds() {
        match run(seed, None, false) {
            Ok(outcome) => {
                steps += outcome.steps;
                for (transition, times) in outcome.seen {
                    *seen.entry(transition).or_default() += times;
                }
            }
            Err(broken) => panic!("{}", tell(&broken)),
        }
    }
    std::println!("{steps} steps, {seen:#?}");
    if number("OUTLAST_SEED").is_none() {
        let documented: BTreeSet<&str> = documented().into_iter().collect();
        assert_eq!(seen.keys().copied().collect::<BTreeSet<_>>(), documented);
    }
}

/// The first column of the table of transitions.
fn documented() -> Vec<&'static str> {
    let page = include_str!("../../../../docs/failover.md");
    let table = page.split("## Transitions").nth(1).expect("the page has the section");
    let rows = table.lines().skip_while(|line| !line.starts_with("| `"));
    rows.map_while(|line| line.strip_prefix("| `")?.split('`').next()).collect()
}

#[test]
fn every_documented_transition_is_in_the_diagram() {
    let page = include_str!("../../../../docs/failover.md");
    let diagram = page.split("```mermaid").nth(1).and_then(|rest| rest.split("```").next());
    let diagram = diagram.expect("the page has a diagram");
    for transition in documented() {
        assert!(diagram.contains(transition), "`{transition}` is not in the diagram");
    }
}

#[test]
fn the_same_seed_gives_the_same_log() {
    for seed in 0..20 {
        let log = || match run(seed, None, true) {
            Ok(outcome) => outcome.log,
            Err(broken) => broken.log,
        };
        let first = log();
        assert!(first.len() > 10_000);
        assert!(first == log(), "seed {seed}");
    }
}

/// Plants a bug and says what the first seed that finds it has to say.
#[track_caller]
fn check_found(bug: Bug, law: &str) {
    let found = (0..500).find_map(|seed| run(seed, Some(bug), false).err());
    let found = found.unwrap_or_else(|| panic!("{bug:?} was not found"));
    assert!(found.law.contains(law), "{bug:?} was found otherwise: {}", found.law);
    assert_eq!(run(found.seed, Some(bug), false).err().map(|again| again.law), Some(found.law));
}

#[test]
fn the_simulator_finds_a_failback_that_does_not_wait() {
    check_found(Bug::FailbackAtOnce, "failback too soon");
}

#[test]
fn the_simulator_finds_an_epoch_that_is_used_twice() {
    check_found(Bug::SameEpoch, "every route has an epoch of its own");
}

#[test]
fn the_simulator_finds_a_missing_pause() {
    check_found(Bug::NoPause, "without a pause");
}

#[test]
fn the_simulator_finds_a_route_to_the_unknown() {
    check_found(Bug::UnknownIsUp, "backup that is unknown");
}

#[test]
fn the_simulator_finds_two_commands_at_once() {
    check_found(Bug::TwoCommands, "a command while that of");
}

#[test]
fn the_simulator_finds_an_order_that_was_not_written_down_first() {
    check_found(Bug::SavedLate, "before it was saved");
}

#[test]
fn the_simulator_finds_a_route_that_the_disk_refused() {
    check_found(Bug::ActsUnsaved, "before it was saved");
}

#[test]
fn the_simulator_finds_an_epoch_that_a_reload_forgot() {
    check_found(Bug::EpochForgotten, "after Some(Epoch");
}

#[test]
fn the_simulator_finds_a_side_that_has_become_another_server() {
    check_found(Bug::SideKept, "after (");
}

#[test]
fn the_simulator_finds_a_failback_that_is_slept_through() {
    check_found(Bug::Oversleeps, "a failback was slept through");
}
