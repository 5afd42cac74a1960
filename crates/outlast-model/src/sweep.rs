//! The exact share of time that several groups are all up, although they stand on the same machines.
//!
//! Multiplying the groups would be wrong where one node carries cells of two of them: its loss would be counted twice.
//! Two exact ways lead round that. The sweep goes through the nodes one by one and remembers only how many cells of each
//! group are up so far: good for many nodes and few groups. The other takes every case of shared nodes up and down, within
//! which the groups are independent: good for few nodes and many groups.

use std::collections::{BTreeMap, BTreeSet};

use crate::availability::{Availability, k_of_n, serial};
use crate::layout::{Cell, Group};

/// When both ways have more states or cases than this, the product of the groups is taken, and the report says so.
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
            shared => match sweep(shared, nodes).or_else(|| by_cases(shared, nodes)) {
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
        .map(|cell| of_machine(cell, nodes).and(cell.own.unwrap_or(Availability::PERFECT)))
        .collect();
    k_of_n(group.at_least, &cells)
}

/// Each group by itself, multiplied.
fn product(groups: &[&Group], nodes: &Nodes) -> Availability {
    let each: Vec<Availability> = groups
        .iter()
        .map(|&group| {
            let alone: &[&Group] = &[group];
            sweep(alone, nodes)
                .or_else(|| by_cases(alone, nodes))
                .unwrap_or_else(|| independent(group, nodes))
        })
        .collect();
    serial(&each)
}

fn of_machine(cell: &Cell, nodes: &Nodes) -> Availability {
    cell.node.as_ref().map_or(Availability::PERFECT, |node| of_node(node, nodes))
}

/// What the file does not say counts as never down.
fn of_node(node: &str, nodes: &Nodes) -> Availability {
    nodes.get(node).expect("a part stands on nodes of the file").unwrap_or(Availability::PERFECT)
}

/// One machine and the cells on it, each with the number of its group.
struct Host<'a> {
    availability: Availability,
    cells: Vec<(usize, &'a Cell)>,
}

/// How many cells of each group are up among the hosts so far, at most as many as it asks for; and how likely that is.
type States = BTreeMap<Vec<usize>, f64>;

/// What is left to go through, and what is certain already.
struct Sweep<'a> {
    groups: &'a [&'a Group],
    /// Cells of each group that are still to come.
    ahead: Vec<usize>,
    /// How likely it is that a group cannot reach its number any more, whatever is still to come.
    down: f64,
}

/// Goes through the hosts; `None` when there are too many states to remember.
pub(crate) fn sweep(groups: &[&Group], nodes: &Nodes) -> Option<Availability> {
    let ahead = groups.iter().map(|group| group.cells.len()).collect();
    let mut sweep = Sweep { groups, ahead, down: 0.0 };
    let mut states = States::from([(vec![0; groups.len()], 1.0)]);
    for host in hosts(groups, nodes) {
        let mut lost = scaled(&states, host.availability.down());
        let mut kept = scaled(&states, host.availability.up());
        for &(group, cell) in &host.cells {
            sweep.ahead[group] -= 1;
            kept = sweep.open(with_cell(kept, group, cell, groups[group].at_least));
            lost = sweep.open(lost);
            if kept.len() > STATES_MAX {
                return None;
            }
        }
        for (state, mass) in lost {
            *kept.entry(state).or_default() += mass;
        }
        if kept.len() > STATES_MAX {
            return None;
        }
        states = kept;
    }
    // Of what is still open, nothing is missing.
    Some(Availability::from_masses(states.values().fold(0.0, |up, mass| up + mass), sweep.down))
}

impl Sweep<'_> {
    /// The states in which every group can still reach its number; the others are down.
    fn open(&mut self, mut states: States) -> States {
        states.retain(|state, mass| {
            let open = (0..self.groups.len())
                .all(|group| state[group] + self.ahead[group] >= self.groups[group].at_least);
            if !open {
                self.down += *mass;
            }
            open
        });
        states
    }
}

/// The states when something happens of this probability; none when it never does.
fn scaled(states: &States, share: f64) -> States {
    if share <= 0.0 {
        return States::new();
    }
    states.iter().map(|(state, mass)| (state.clone(), mass * share)).collect()
}

/// One more cell, on a host that is up.
fn with_cell(states: States, group: usize, cell: &Cell, at_least: usize) -> States {
    let own = cell.own.unwrap_or(Availability::PERFECT);
    let mut next = scaled(&states, own.down());
    for (mut state, mass) in states {
        state[group] = (state[group] + 1).min(at_least);
        *next.entry(state).or_default() += mass * own.up();
    }
    next
}

/// Takes every case of the shared nodes up and down; `None` when there are too many.
pub(crate) fn by_cases(groups: &[&Group], nodes: &Nodes) -> Option<Availability> {
    let mut cells_on: BTreeMap<&str, usize> = BTreeMap::new();
    for node in groups.iter().flat_map(|group| &group.cells).filter_map(|cell| cell.node.as_deref())
    {
        *cells_on.entry(node).or_default() += 1;
    }
    let shared: Vec<&str> =
        cells_on.into_iter().filter(|&(_, cells)| cells > 1).map(|(node, _)| node).collect();
    if shared.len() > STATES_MAX.ilog2() as usize {
        return None;
    }
    let (mut up, mut down) = (0.0, 0.0);
    for case in 0..1_usize << shared.len() {
        let mut mass = 1.0;
        let mut certain = nodes.clone();
        for (bit, &node) in shared.iter().enumerate() {
            let availability = of_node(node, nodes);
            let is_up = case >> bit & 1 == 1;
            mass *= if is_up { availability.up() } else { availability.down() };
            let known = if is_up { Availability::PERFECT } else { Availability::NONE };
            certain.insert(node.to_owned(), Some(known));
        }
        if mass > 0.0 {
            let each: Vec<Availability> =
                groups.iter().map(|group| independent(group, &certain)).collect();
            let whole = serial(&each);
            up += mass * whole.up();
            down += mass * whole.down();
        }
    }
    Some(Availability::from_masses(up, down))
}

/// Nodes by name; a cell on no node has a host to itself.
fn hosts<'a>(groups: &[&'a Group], nodes: &Nodes) -> Vec<Host<'a>> {
    let mut named: BTreeMap<&str, Host<'a>> = BTreeMap::new();
    let mut nameless = Vec::new();
    for (number, group) in groups.iter().enumerate() {
        for cell in &group.cells {
            let availability = of_machine(cell, nodes);
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
