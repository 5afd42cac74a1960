//! Single points of failure: what takes a critical service down alone, or a database that no other part needs.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use outlast_core::topology::{PartKind, PartRef, Topology};

use crate::layout::{Group, Layout};

/// A thing whose loss alone takes a critical service down, or a database that no other part needs.
#[derive(Clone, Debug, PartialEq)]
pub struct Spof {
    pub subject: Subject,
    /// The critical services and databases that go down with it.
    pub takes_down: Vec<PartRef>,
    /// The nodes that are single points of failure through it: all that carry a cell of a part without a spare one.
    pub nodes: Vec<String>,
    /// Why, in one sentence.
    pub reason: String,
}

/// What is lost.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Subject {
    /// A part that can spare none of its backends, nodes or instances.
    Part(PartRef),
    /// A node that carries more of a redundant part than it can spare, or all of several parts.
    Node(String),
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Subject::Part(part) => part.fmt(f),
            Subject::Node(node) => write!(f, "node.{node}"),
        }
    }
}

/// The parts that critical services need, themselves included, each with the services that are down without it. A database
/// that no other part needs stands for itself: its clients are none of the file's.
pub(crate) type CriticalParts<'a> = BTreeMap<&'a PartRef, Vec<PartRef>>;

/// `may_use` and `critical = false` do not count, unless a critical service needs the part.
pub(crate) fn critical<'a>(topology: &Topology, layout: &'a Layout) -> CriticalParts<'a> {
    let services = topology.services.iter().filter(|(_, service)| service.critical);
    let services =
        services.map(|(name, _)| PartRef { kind: PartKind::Service, name: name.clone() });
    let of_others = used_by_others(topology);
    let databases = topology.postgres.keys();
    let databases = databases.map(|name| PartRef { kind: PartKind::Postgres, name: name.clone() });
    let mut parts = CriticalParts::new();
    for ends in services.chain(databases.filter(|database| !of_others.contains(database))) {
        for group in layout.required(&ends) {
            parts.entry(&group.part).or_default().push(ends.clone());
        }
    }
    parts
}

/// What some part needs or may use: how much it matters is up to that one.
fn used_by_others(topology: &Topology) -> BTreeSet<&PartRef> {
    let services = topology.services.values();
    let by_services = services.flat_map(|service| service.needs.iter().chain(&service.may_use));
    let by_processes = topology.processes.values().flat_map(|process| &process.needs);
    by_services.chain(by_processes).collect()
}

/// All single points of failure: services, other parts, nodes.
pub(crate) fn find(critical: &CriticalParts<'_>, layout: &Layout) -> Vec<Spof> {
    let needed: Vec<&Group> = critical.keys().map(|part| &layout.groups[*part]).collect();
    let parts = needed.iter().filter(|group| group.spare() == Some(0)).map(|group| {
        let takes_down = critical[&group.part].clone();
        Spof {
            subject: Subject::Part(group.part.clone()),
            nodes: nodes_of(group).into_iter().map(str::to_owned).collect(),
            reason: sentence(&no_spare(group), &takes_down),
            takes_down,
        }
    });
    let nodes = layout.nodes.keys().filter_map(|node| of_node(node, &needed, critical));
    let mut spofs: Vec<Spof> = parts.chain(nodes).collect();
    spofs.sort_by(|a, b| a.subject.cmp(&b.subject));
    spofs
}

/// A node that only takes down one part without a spare is that part's point, and not told twice.
fn of_node(node: &str, needed: &[&Group], critical: &CriticalParts<'_>) -> Option<Spof> {
    let lost: Vec<&Group> = needed
        .iter()
        .copied()
        .filter(|group| group.spare().is_some_and(|spare| carried(group, node) > spare))
        .collect();
    if lost.is_empty() || matches!(lost.as_slice(), [only] if only.spare() == Some(0)) {
        return None;
    }
    let why: Vec<String> = lost.iter().map(|group| carries(group, node)).collect();
    let takes_down: BTreeSet<&PartRef> =
        lost.iter().flat_map(|group| &critical[&group.part]).collect();
    let takes_down: Vec<PartRef> = takes_down.into_iter().cloned().collect();
    Some(Spof {
        subject: Subject::Node(node.to_owned()),
        nodes: vec![node.to_owned()],
        reason: sentence(&format!("it carries {}", listed(&why)), &takes_down),
        takes_down,
    })
}

fn carried(group: &Group, node: &str) -> usize {
    group.cells.iter().filter(|cell| cell.node.as_deref() == Some(node)).count()
}

fn nodes_of(group: &Group) -> BTreeSet<&str> {
    group.cells.iter().filter_map(|cell| cell.node.as_deref()).collect()
}

fn carries(group: &Group, node: &str) -> String {
    let (part, cell) = (&group.part, cell_word(group.part.kind));
    match (carried(group, node), group.cells.len()) {
        (_, 1) => format!("the only {cell} of {part}"),
        (carried, all) if carried == all => format!("all {all} {cell}s of {part}"),
        (carried, all) => {
            format!("{carried} of the {all} {cell}s of {part}, which needs {}", group.at_least)
        }
    }
}

fn no_spare(group: &Group) -> String {
    let word = cell_word(group.part.kind);
    match group.cells.as_slice() {
        [cell] => {
            let name =
                if cell.name.is_empty() { String::new() } else { format!(", {}", cell.name) };
            let place = match &cell.node {
                Some(node) if cell.name != format!("node.{node}") => format!(" on node.{node}"),
                Some(_) | None => String::new(),
            };
            format!("it has one {word}{name}{place}")
        }
        cells => format!("all {} of its {word}s must be up", cells.len()),
    }
}

fn cell_word(kind: PartKind) -> &'static str {
    match kind {
        PartKind::Service => "backend",
        PartKind::Process
        | PartKind::Postgres
        | PartKind::Redis
        | PartKind::Store
        | PartKind::Address => "node",
        PartKind::External => "instance",
    }
}

fn sentence(why: &str, takes_down: &[PartRef]) -> String {
    let services: Vec<String> = takes_down.iter().map(PartRef::to_string).collect();
    let verb = if services.len() == 1 { "is" } else { "are" };
    format!("{why}: without it {} {verb} down", listed(&services))
}

/// `a`, `a and b`, `a, b and c`.
fn listed(words: &[String]) -> String {
    match words {
        [] => String::new(),
        [only] => only.clone(),
        [first @ .., last] => format!("{} and {last}", first.join(", ")),
    }
}
