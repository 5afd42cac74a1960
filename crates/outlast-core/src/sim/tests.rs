use std::collections::{BTreeMap, BTreeSet};
use std::format;
use std::vec::Vec;

use super::seeds::each_seed;
use super::{Broken, Bug, run};

/// Which law a seed breaks, and what led there.
fn tell(broken: Broken) -> super::seeds::Broken {
    let Broken { seed, at, law, log } = broken;
    (format!("seed {seed} broke a law at {at:?}: {law}"), log)
}

#[test]
fn no_seed_breaks_a_law_and_every_documented_transition_is_taken() {
    let (mut seen, mut steps) = (BTreeMap::<&str, u64>::new(), 0);
    let run = |seed, tells| run(seed, None, tells).map_err(tell);
    let seeds = each_seed([100, 3_000], run, |_, outcome| {
        steps += outcome.steps;
        for (transition, times) in outcome.seen {
            *seen.entry(transition).or_default() += times;
        }
    });
    std::println!("{steps} steps, {seen:#?}");
    if seeds > 1 {
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
