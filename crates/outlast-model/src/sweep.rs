//! The exact share of time that several groups are all up, although they stand on the same machines.
//!
//! Multiplying the groups would be wrong where one node carries cells of two of them: its loss would be counted twice. So
//! the nodes are gone through one by one, and what is remembered is only how many cells of each group are up so far.

use std::collections::{BTreeMap, BTreeSet};

use crate::availability::{Availability, k_of_n, serial};
use crate::layout::{Cell, Group};

/// Beyond this many states the product of the groups is taken, and the report says so.
pub const STATES_MAX: usize = 1 << 14;

/// What the groups come to.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Together {
    pub(crate) availability: Availability,
    /// False: groups that share nodes were multiplied as if they did not.
    pub(crate) exact: bool,
}

type Nodes = BTreeMap<String, Option<Availability>>;

/// The share of time that all of the groups are up. What the file does not say counts as never down.
pub(crate) fn all_up(groups: &[&Group], nodes: &Nodes) -> Together {
    let clusters: Vec<Together> = clusters(groups)
        .into_iter()
        .map(|cluster| match cluster.as_slice() {
            [group] if stands_alone(group) => one_up(group, nodes),
            shared => match sweep(shared, nodes) {
                Some(availability) => Together { availability, exact: true },
                None => Together { availability: product(shared, nodes), exact: false },
            },
        })
        .collect();
    let availabilities: Vec<Availability> = clusters.iter().map(|c| c.availability).collect();
    Together {
        availability: serial(&availabilities),
        exact: clusters.iter().all(|cluster| cluster.exact),
    }
}

/// Groups that no node ties to each other are in different clusters.
fn clusters<'a>(groups: &[&'a Group]) -> Vec<Vec<&'a Group>> {
    let mut clusters: Vec<(BTreeSet<&str>, Vec<&Group>)> = Vec::new();
    for &group in groups {
        let mut nodes: BTreeSet<&str> =
            group.cells.iter().filter_map(|cell| cell.node.as_deref()).collect();
        let mut members = vec![group];
        clusters.retain_mut(|(others, theirs)| {
            let apart = others.is_disjoint(&nodes);
            if !apart {
                nodes.append(others);
                members.append(theirs);
            }
            apart
        });
        clusters.push((nodes, members));
    }
    clusters.into_iter().map(|(_, members)| members).collect()
}

/// No two of its cells are on one node.
fn stands_alone(group: &Group) -> bool {
    let mut seen = BTreeSet::new();
    group.cells.iter().filter_map(|cell| cell.node.as_deref()).all(|node| seen.insert(node))
}

fn one_up(group: &Group, nodes: &Nodes) -> Together {
    Together { availability: independent(group, nodes), exact: true }
}

/// k of n, each cell with a node of its own.
fn independent(group: &Group, nodes: &Nodes) -> Availability {
    let cells: Vec<Availability> = group
        .cells
        .iter()
        .map(|cell| of_node(cell, nodes).and(cell.own.unwrap_or(Availability::PERFECT)))
        .collect();
    k_of_n(group.at_least, &cells)
}

/// Each group by itself, multiplied.
fn product(groups: &[&Group], nodes: &Nodes) -> Availability {
    let each: Vec<Availability> = groups
        .iter()
        .map(|group| sweep(&[group], nodes).unwrap_or_else(|| independent(group, nodes)))
        .collect();
    serial(&each)
}

fn of_node(cell: &Cell, nodes: &Nodes) -> Availability {
    cell.node
        .as_ref()
        .and_then(|name| *nodes.get(name).expect("a part stands on nodes of the file"))
        .unwrap_or(Availability::PERFECT)
}

/// One machine and the cells on it, each with the number of its group.
struct Host<'a> {
    availability: Availability,
    cells: Vec<(usize, &'a Cell)>,
}

/// How many cells of each group are up among the hosts so far, at most as many as it asks for; and how likely that is.
type States = BTreeMap<Vec<usize>, f64>;

/// Goes through the hosts; `None` when there are too many states to remember.
fn sweep(groups: &[&Group], nodes: &Nodes) -> Option<Availability> {
    let mut ahead: Vec<usize> = groups.iter().map(|group| group.cells.len()).collect();
    let mut states = States::from([(vec![0; groups.len()], 1.0)]);
    let mut down = 0.0;
    for host in hosts(groups, nodes) {
        let mut next = with_host_up(groups, &host, &states);
        if host.availability.down() > 0.0 {
            for (state, mass) in states {
                *next.entry(state).or_default() += mass * host.availability.down();
            }
        }
        for (group, _) in &host.cells {
            ahead[*group] -= 1;
        }
        // A group that cannot reach its number any more is down, whatever the other hosts do.
        next.retain(|state, mass| {
            let open = (0..groups.len()).all(|g| state[g] + ahead[g] >= groups[g].at_least);
            if !open {
                down += *mass;
            }
            open
        });
        if next.len() > STATES_MAX {
            return None;
        }
        states = next;
    }
    // Of what is still open, nothing is missing.
    Some(Availability::from_masses(states.values().fold(0.0, |up, mass| up + mass), down))
}

fn with_host_up(groups: &[&Group], host: &Host<'_>, states: &States) -> States {
    let up: States =
        states.iter().map(|(state, mass)| (state.clone(), mass * host.availability.up())).collect();
    host.cells.iter().fold(up, |states, &(group, cell)| {
        let own = cell.own.unwrap_or(Availability::PERFECT);
        let mut next = States::new();
        for (state, mass) in states {
            let mut more = state.clone();
            more[group] = (more[group] + 1).min(groups[group].at_least);
            *next.entry(more).or_default() += mass * own.up();
            if own.down() > 0.0 {
                *next.entry(state).or_default() += mass * own.down();
            }
        }
        next
    })
}

/// Nodes by name; a cell on no node has a host to itself.
fn hosts<'a>(groups: &[&'a Group], nodes: &Nodes) -> Vec<Host<'a>> {
    let mut named: BTreeMap<&str, Host<'a>> = BTreeMap::new();
    let mut nameless = Vec::new();
    for (number, group) in groups.iter().enumerate() {
        for cell in &group.cells {
            let availability = of_node(cell, nodes);
            match &cell.node {
                Some(node) => named
                    .entry(node)
                    .or_insert(Host { availability, cells: Vec::new() })
                    .cells
                    .push((number, cell)),
                None => nameless.push(Host { availability, cells: vec![(number, cell)] }),
            }
        }
    }
    named.into_values().chain(nameless).collect()
}
