//! Whatever the part, every state leads to where the part wants to be, and to no primary that must not be.

use std::collections::BTreeSet;
use std::format;
use std::string::String;
use std::vec::Vec;

use expect_test::expect_file;

use crate::database::{Duty, Part, State, order_of};

use State as S;

/// States that a duty can lead to, be it done or not; also what happens by itself where one rests.
fn leads_to(duty: Duty, from: State) -> Vec<State> {
    let to: &[State] = match duty {
        Duty::Rest => match from {
            S::Unknown => {
                &[S::Empty, S::Asleep, S::Dead, S::Deposed, S::Astray, S::Usurps, S::Hung]
            }
            S::Busy => &[S::Empty, S::Broken, S::Asleep, S::Deposed],
            S::Starting => &[S::Astray, S::Follows, S::Asleep, S::Hung],
            S::Rising => &[S::Reigns, S::Dead, S::Hung],
            S::Empty
            | S::Broken
            | S::Asleep
            | S::Dead
            | S::Deposed
            | S::Hung
            | S::Reigns
            | S::Usurps
            | S::Stopped
            | S::Follows
            | S::Starves
            | S::Astray => &[],
        },
        Duty::Create => &[S::Busy, S::Reigns, S::Empty, S::Broken],
        Duty::StartPrimary => &[S::Rising, S::Dead],
        Duty::StartAlone | Duty::StartFollowing => &[S::Starting, S::Asleep],
        Duty::Promote => &[S::Reigns, S::Asleep, S::Dead],
        Duty::Stop => &[S::Stopped],
        Duty::Follow => &[S::Follows, S::Stopped, S::Busy],
        Duty::Rewind => &[S::Busy, S::Starting],
        Duty::Clone => &[S::Busy],
        Duty::Kill | Duty::Yield if from == S::Reigns => &[S::Dead],
        Duty::Kill | Duty::Yield if from == S::Usurps => &[S::Deposed],
        Duty::Kill | Duty::Yield => &[S::Asleep, S::Dead, S::Deposed],
        Duty::Govern | Duty::GiveUp => &[],
    };
    to.iter().copied().chain([from]).collect()
}

/// Where a part wants to be, or waits for another part.
fn is_wanted(part: Part, state: State) -> bool {
    let gone = matches!(state, S::Empty | S::Broken);
    let primary = matches!(state, S::Reigns | S::Usurps | S::Rising | S::Hung);
    let passing = matches!(state, S::Unknown | S::Busy | S::Starting);
    match part {
        Part::Outsider => true,
        // A primary that runs already is taken over; one that cannot be is given up.
        Part::Maker => matches!(state, S::Reigns | S::Usurps | S::Broken),
        Part::Primary => state == S::Reigns || gone,
        Part::Unleased | Part::FollowerLater => !primary && !passing,
        Part::Elector => state == S::Stopped || gone,
        Part::Follower => state == S::Follows,
    }
}

fn reachable(part: Part, from: State) -> BTreeSet<State> {
    let mut seen = BTreeSet::from([from]);
    let mut next = Vec::from([from]);
    while let Some(state) = next.pop() {
        for to in leads_to(order_of(part, state), state) {
            if seen.insert(to) {
                next.push(to);
            }
        }
    }
    seen
}

#[test]
fn every_part_comes_to_where_it_wants_to_be_from_every_state() {
    for part in Part::ALL {
        for from in State::ALL {
            let reached = reachable(part, from);
            assert!(reached.iter().any(|&state| is_wanted(part, state)), "{part:?} from {from:?}");
            // No dead end on the way, either.
            for state in reached {
                let onward = reachable(part, state);
                let ends = onward.iter().any(|&state| is_wanted(part, state));
                assert!(ends, "{part:?} from {from:?} is stuck in {state:?}");
            }
        }
    }
}

#[test]
fn only_who_is_to_be_primary_and_has_the_lease_starts_or_promotes_one() {
    for part in Part::ALL {
        let may = matches!(part, Part::Maker | Part::Primary);
        for state in State::ALL {
            let duty = order_of(part, state);
            let makes = matches!(duty, Duty::Create | Duty::StartPrimary | Duty::Promote);
            assert!(may || !makes, "{part:?} in {state:?}: {duty:?}");
            assert!(duty != Duty::Create || part == Part::Maker);
            let runs = matches!(state, S::Reigns | S::Usurps | S::Rising | S::Hung);
            if runs && !may && part != Part::Outsider {
                assert_eq!(duty, Duty::Kill, "{part:?} in {state:?}");
            }
        }
        if !may && part != Part::Outsider {
            for from in State::ALL.into_iter().filter(|state| *state != S::Unknown) {
                let runs =
                    matches!(from, S::Reigns | S::Usurps | S::Rising | S::Hung | S::Starting);
                let reached = reachable(part, from);
                let primary = reached.contains(&S::Reigns) || reached.contains(&S::Usurps);
                assert!(runs || !primary, "{part:?} becomes primary from {from:?}");
            }
        }
    }
}

fn diagram(part: Part) -> String {
    let mut text = format!("### {part:?}\n\n```mermaid\nstateDiagram-v2\n");
    for from in State::ALL {
        let duty = order_of(part, from);
        let to: BTreeSet<State> = leads_to(duty, from).into_iter().collect();
        for to in to.into_iter().filter(|to| *to != from) {
            let label = if duty == Duty::Rest { String::new() } else { format!(" : {duty:?}") };
            text.push_str(&format!("    {from:?} --> {to:?}{label}\n"));
        }
    }
    text.push_str("```\n\n");
    text
}

#[test]
fn the_page_shows_the_table() {
    let mut page = String::from(
        "# What a member of a database does\n\n\
         A member's part follows from what is agreed, its state from what is seen of its PostgreSQL. Both together give one\n\
         duty (`crates/outlast-core/src/database/member.rs`). A test walks through all of it: whatever the part, every\n\
         state leads to where the part wants to be, and nothing starts or promotes a primary but the one that is agreed on\n\
         and holds the lease. This page is printed by that test; `UPDATE_EXPECT=1` writes it.\n\n## The table\n\n| state |",
    );
    for part in Part::ALL {
        page.push_str(&format!(" {part:?} |"));
    }
    page.push_str("\n| --- |");
    page.push_str(&" --- |".repeat(Part::ALL.len()));
    for state in State::ALL {
        page.push_str(&format!("\n| **{state:?}** |"));
        for part in Part::ALL {
            page.push_str(&format!(" {:?} |", order_of(part, state)));
        }
    }
    page.push_str("\n\n## Ways through it\n\nAn arrow without a word is something that happens by itself.\n\n");
    for part in [Part::Primary, Part::Elector, Part::Follower] {
        page.push_str(&diagram(part));
    }
    page.truncate(page.trim_end().len());
    page.push('\n');
    expect_file!["../../../../../docs/postgres-states.md"].assert_eq(&page);
}
