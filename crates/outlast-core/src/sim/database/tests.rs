use std::string::String;

use super::{NAMES, Slip, World};
use crate::agreed::bugs::{Bug as Agreed, with};
use crate::sim::seeds::each_seed;
use crate::sim::{Bug, PLANTED};

/// What a run came to.
struct Ran {
    failovers: u64,
    switchovers: u64,
    crossings: u64,
    writes: usize,
    events: u64,
    strays: u64,
    losses: u64,
}

/// What a run came to, or the law that a seed breaks and what led there.
fn run(seed: u64, slip: Option<Slip>, text: bool) -> Result<Ran, (String, String)> {
    let mut world = World::new(seed, slip, text);
    match world.run() {
        Ok(()) => Ok(Ran {
            failovers: world.ledger.failovers,
            switchovers: world.ledger.switchovers,
            crossings: world.ledger.crossings,
            writes: world.writes(),
            events: world.events,
            strays: world.ledger.strays,
            losses: world.ledger.losses,
        }),
        Err(law) => {
            let law = std::format!("seed {seed} ({:?}) at {}: {law}", world.kind, world.now);
            Err((law, world.text.unwrap_or_default()))
        }
    }
}

#[test]
fn no_acknowledged_write_is_lost_and_all_find_back() {
    let (mut failovers, mut switchovers, mut crossings) = (0, 0, 0);
    let (mut writes, mut events) = (0, 0);
    let (mut strays, mut losses) = (0, 0);
    let seeds = each_seed(
        [40, 3_000],
        |seed, tells| run(seed, None, tells),
        |_, ran| {
            failovers += ran.failovers;
            switchovers += ran.switchovers;
            crossings += ran.crossings;
            writes += ran.writes;
            events += ran.events;
            strays += ran.strays;
            losses += ran.losses;
        },
    );
    std::println!(
        "{seeds} seeds: {failovers} changes of primary, {switchovers} of them planned, {crossings} to another region with a loss, \
         {writes} writes, {strays} strays, {losses} losses accepted, {events} events"
    );
}

/// Plants a bug, and wants a seed that breaks this law.
#[track_caller]
fn check_found(what: &str, slip: Option<Slip>, law: &str) {
    let breaks = |seed| run(seed, slip, false).is_err_and(|(found, _)| found.contains(law));
    assert!((0..4_000).any(breaks), "{what} was not found: {law}");
}

#[track_caller]
fn check_bug(bug: Bug, law: &str) {
    PLANTED.set(Some(bug));
    check_found(&std::format!("{bug:?}"), None, law);
    PLANTED.set(None);
}

/// The same, in worlds that have regions.
#[track_caller]
fn check_region_bug(bug: Bug, law: &str) {
    PLANTED.set(Some(bug));
    let seeds = (0..400).flat_map(|n| [7 * n + 5, 7 * n + 6]);
    let found = seeds.into_iter().find_map(|seed| run(seed, None, false).err());
    PLANTED.set(None);
    let (found, _) = found.unwrap_or_else(|| panic!("{bug:?} was not found"));
    assert!(found.contains(law), "{bug:?} was found otherwise: {found}");
}

#[track_caller]
fn check_slip(slip: Slip, law: &str) {
    check_found(&std::format!("{slip:?}"), Some(slip), law);
}

#[test]
fn the_simulation_finds_what_lets_two_primaries_serve() {
    check_bug(Bug::StartedUnleased, "two primaries take writes");
    check_bug(Bug::NoElection, "two primaries take writes");
    check_slip(Slip::KilledLate, "two primaries take writes");
    check_slip(Slip::NoKeeper, "two primaries take writes");
    with(Agreed::RenewedAfterElection, || check_found("a late renewal", None, "renewed after"));
}

#[test]
fn the_simulation_finds_logs_that_do_not_fit() {
    check_bug(Bug::FollowsAhead, "on top of another log");
    check_bug(Bug::LineageIgnored, "on top of another log");
}

#[test]
fn the_simulation_finds_what_is_wrong_between_regions() {
    check_region_bug(Bug::RelayUnknown, "it follows a relay whose log is not known to be a part");
    check_region_bug(Bug::CrossesEarly, "gave it up");
}

/// Has a world without faults go on until all is well.
#[track_caller]
fn calm_down(world: &mut World, what: &str) {
    let end = world.now + 60_000;
    while world.now < end {
        world.tick().expect(what);
        if world.what_is_wrong().is_none() {
            return;
        }
    }
    let text = world.text.as_deref().unwrap_or_default();
    panic!("{what}: {}\n{text}", world.what_is_wrong().unwrap_or_default());
}

#[test]
fn a_planned_move_to_another_region_and_back_rebuilds_nothing() {
    for seed in (0..25).map(|n| 7 * n + 5) {
        let mut world = World::new(seed, None, true);
        world.faults.orders_fail = false;
        calm_down(&mut world, "it is made");
        let (copies, at_home) = (world.ledger.copies, world.members().into_iter().next());
        for to in [world.members().into_iter().next_back(), at_home] {
            let to = to.expect("a member");
            // A standby that is asked too early, or a leader that is lost, leads back to where it began.
            while world.primary_name() != Some(NAMES[to]) && world.now < 90_000 {
                let (epoch, until) = (world.epoch(), world.now + 10_000);
                world.switch_to(to);
                while world.epoch() == epoch && world.now < until {
                    world.tick().expect("it moves");
                }
                calm_down(&mut world, "it has moved");
            }
            assert_eq!(world.primary_name(), Some(NAMES[to]), "seed {seed}");
        }
        assert_eq!(world.ledger.copies, copies, "seed {seed}");
    }
}

#[test]
fn the_simulation_finds_what_loses_writes() {
    check_slip(Slip::ConfirmedEarly, "without write");
    check_slip(Slip::StoppedEarly, "without write");
    with(Agreed::Uncovered, || check_found("an uncovered appointment", None, "without write"));
}
