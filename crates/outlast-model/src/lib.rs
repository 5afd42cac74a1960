//! The numbers of a topology before it runs: how available each part will be, what its outages cost, and what can take
//! a service down alone.
//!
//! Everything here is a pure function of the topology: no clock, no I/O, the same report on every machine. The formulas
//! and what they leave out are in `docs/numbers.md`.

use std::collections::BTreeSet;

use outlast_core::topology::{PartKind, PartRef, Topology};

pub mod availability;
pub mod downtime;
mod layout;
mod spof;
mod sweep;

pub use availability::{Availability, k_of_n, parallel, serial};
pub use downtime::{Downtime, Nines, NinesRow, nine_nines, outage_cost_per_year};
pub use spof::{Spof, Subject};
pub use sweep::STATES_MAX;

use layout::{Group, Layout};
use spof::CriticalParts;

/// All that can be said of a topology before it runs.
#[derive(Clone, Debug, PartialEq)]
pub struct Report {
    /// The cluster's name.
    pub cluster: String,
    pub services: Vec<Figures>,
    /// The parts that are not services.
    pub parts: Vec<Figures>,
    pub spofs: Vec<Spof>,
    pub assumed: Vec<Assumption>,
    /// What makes a figure other than exact, or a part other than it looks; one sentence each.
    pub caveats: Vec<String>,
    pub revenue_per_hour: Option<f64>,
    /// As written in the file: "$", "EUR".
    pub currency: Option<String>,
}

impl Report {
    /// Whether there is anything that a single point of failure could take down.
    pub fn has_critical_parts(&self) -> bool {
        self.services.iter().chain(&self.parts).any(|figures| figures.critical)
    }
}

/// The numbers of one part.
#[derive(Clone, Debug, PartialEq)]
pub struct Figures {
    pub part: PartRef,
    /// Whether a critical service is down without it, or it is a database that no other part needs.
    pub critical: bool,
    /// Backends, nodes or instances that it has, and how many of them must be up.
    pub cells: usize,
    pub at_least: usize,
    /// Of the part's own cells, without what it needs.
    pub itself: Availability,
    /// Of the part with all that it needs.
    pub availability: Availability,
    pub certainty: Certainty,
    /// False: parts that share too many nodes were multiplied as if they shared none; the exact figure is no worse.
    pub exact: bool,
    pub downtime: Downtime,
    /// `None` of a part that is never down by these numbers.
    pub nines: Option<Nines>,
    /// U times 8760 h times `revenue_per_hour`; `None` when the file names no revenue.
    pub outage_cost_per_year: Option<f64>,
}

/// How much of a figure comes from the file. An unknown is shown as unknown, never as 100 %.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Certainty {
    /// The file gives every number that goes into it.
    Stated,
    /// Some numbers are missing and count as 100 %: it is no better than this.
    AtMost,
    /// The file gives none of the numbers.
    Unknown,
}

/// A number that the file does not give, and what was taken instead.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Assumption {
    /// What lacks it: `node.b`.
    pub subject: String,
    /// What was taken, and what to write instead.
    pub text: String,
}

/// Analyses a topology: availability, downtime and cost of every part, single points of failure, and what was assumed.
pub fn analyse(topology: &Topology) -> Report {
    let layout = Layout::of(topology);
    let critical = spof::critical(topology, &layout);
    let all: Vec<Figures> =
        layout.groups.keys().map(|part| figures(part, topology, &layout, &critical)).collect();
    let caveats = caveats(&layout, &all);
    let (services, parts) =
        all.into_iter().partition(|figures| figures.part.kind == PartKind::Service);
    Report {
        cluster: topology.cluster.name.clone(),
        services,
        parts,
        spofs: spof::find(&critical, &layout),
        assumed: assumed(&layout),
        caveats,
        revenue_per_hour: topology.cost.revenue_per_hour,
        currency: topology.cost.currency.clone(),
    }
}

fn figures(
    part: &PartRef,
    topology: &Topology,
    layout: &Layout,
    critical: &CriticalParts<'_>,
) -> Figures {
    let group = &layout.groups[part];
    let required = layout.required(part);
    let sweep::Together { availability, exact } = sweep::all_up(&required, &layout.nodes);
    Figures {
        part: part.clone(),
        critical: critical.contains_key(part),
        cells: group.cells.len(),
        at_least: group.at_least,
        itself: sweep::all_up(&[group], &layout.nodes).availability,
        availability,
        certainty: certainty(&required, layout),
        exact,
        downtime: Downtime::of(availability),
        nines: Nines::of(availability),
        outage_cost_per_year: topology
            .cost
            .revenue_per_hour
            .map(|revenue| outage_cost_per_year(availability, revenue)),
    }
}

fn certainty(groups: &[&Group], layout: &Layout) -> Certainty {
    let cells = || groups.iter().flat_map(|group| &group.cells);
    let nodes: Vec<&String> = cells().filter_map(|cell| cell.node.as_ref()).collect();
    let gap = cells().any(layout::Cell::is_blank)
        || nodes.iter().any(|node| layout.nodes[*node].is_none());
    let known = cells().any(|cell| cell.own.is_some())
        || nodes.iter().any(|node| layout.nodes[*node].is_some());
    match (gap, known) {
        (false, _) => Certainty::Stated,
        (true, true) => Certainty::AtMost,
        (true, false) => Certainty::Unknown,
    }
}

/// Nodes and parts that carry something and of which nothing is said.
fn assumed(layout: &Layout) -> Vec<Assumption> {
    let used: BTreeSet<&String> = layout
        .groups
        .values()
        .flat_map(|group| &group.cells)
        .filter_map(|cell| cell.node.as_ref())
        .collect();
    let nodes = used.into_iter().filter(|node| layout.nodes[*node].is_none()).map(|node| {
        let subject = format!("node.{node}");
        let text = format!(
            "{subject} has no availability: counted as 100 %; write `availability = 0.999`, or `mtbf` and `mttr`, in [{subject}]"
        );
        Assumption { subject, text }
    });
    let parts = layout
        .groups
        .values()
        .filter(|group| group.cells.iter().any(layout::Cell::is_blank))
        .map(|group| Assumption { subject: group.part.to_string(), text: blank_cells(group) });
    let mut all: Vec<Assumption> = nodes.chain(parts).collect();
    all.sort();
    all
}

fn blank_cells(group: &Group) -> String {
    let part = &group.part;
    match part.kind {
        PartKind::Service => {
            let strangers: Vec<&str> = group
                .cells
                .iter()
                .filter(|cell| cell.is_blank())
                .map(|cell| cell.name.as_str())
                .collect();
            format!(
                "{part} has backends on no node of this file ({}): counted as 100 %; write `availability = 0.999` in [{part}], or name the machine as a [node.NAME] with that address",
                strangers.join(", ")
            )
        }
        PartKind::Process
        | PartKind::Postgres
        | PartKind::Redis
        | PartKind::Store
        | PartKind::Address => {
            format!(
                "{part} names no nodes: counted as 100 %; write `nodes = [\"a\", \"b\"]` in [{part}]"
            )
        }
        PartKind::External => format!(
            "{part} has no availability: counted as 100 %; write `availability = 0.999`, or `mtbf` and `mttr`, in [{part}]"
        ),
    }
}

fn caveats(layout: &Layout, figures: &[Figures]) -> Vec<String> {
    let short = layout.groups.values().filter(|group| group.spare().is_none()).map(|group| {
        format!(
            "{} asks for {} of {}: it can never be up",
            group.part,
            group.at_least,
            group.cells.len()
        )
    });
    let multiplied = figures.iter().filter(|figures| !figures.exact).map(|figures| {
        format!(
            "{} shares nodes with what it needs in more than {STATES_MAX} ways: its layers are multiplied as if they shared none; the exact figure is no worse",
            figures.part
        )
    });
    short.chain(multiplied).collect()
}

#[cfg(test)]
mod tests;
