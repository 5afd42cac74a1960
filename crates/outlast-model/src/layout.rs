//! Which parts of a topology must be up together, and which stand in for each other.
//!
//! A part is up while enough of its cells are (k of n) and every part that it needs is. A cell is one backend, one database
//! node, one instance: its machine and what runs on it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use outlast_core::topology::{
    Backend, Durability, Node, PartKind, PartRef, Reliability, StoreMode, Topology,
};

use crate::availability::Availability;

/// The redundant cells of one part.
#[derive(Clone, Debug)]
pub(crate) struct Group {
    pub(crate) part: PartRef,
    pub(crate) at_least: usize,
    pub(crate) cells: Vec<Cell>,
}

#[derive(Clone, Debug)]
pub(crate) struct Cell {
    /// What people call it: a backend's URL, a node's name; an instance has no name.
    pub(crate) name: String,
    /// The machine that it shares with other cells.
    pub(crate) node: Option<String>,
    /// Of the cell itself, on top of its node.
    pub(crate) own: Option<Availability>,
}

impl Cell {
    /// A cell that is nowhere and of which nothing is said.
    pub(crate) fn is_blank(&self) -> bool {
        self.node.is_none() && self.own.is_none()
    }
}

impl Group {
    /// How many cells may be lost; `None`: more are asked for than there are.
    pub(crate) fn spare(&self) -> Option<usize> {
        self.cells.len().checked_sub(self.at_least)
    }
}

/// Every part of the file with its cells, and what each needs.
#[derive(Debug)]
pub(crate) struct Layout {
    pub(crate) groups: BTreeMap<PartRef, Group>,
    needs: BTreeMap<PartRef, Vec<PartRef>>,
    /// `None`: the file does not say.
    pub(crate) nodes: BTreeMap<String, Option<Availability>>,
}

impl Layout {
    pub(crate) fn of(topology: &Topology) -> Layout {
        let mut layout = Layout {
            groups: BTreeMap::new(),
            needs: BTreeMap::new(),
            nodes: topology
                .nodes
                .iter()
                .map(|(name, node)| (name.clone(), stated(node.reliability)))
                .collect(),
        };
        for (name, service) in &topology.services {
            let own = stated(service.reliability);
            let cells = service
                .pool
                .backends()
                .into_iter()
                .map(|backend| Cell {
                    name: backend.url.clone(),
                    node: node_of(backend, &topology.nodes),
                    own,
                })
                .collect();
            let part = layout.add(PartKind::Service, name, service.at_least.get().into(), cells);
            layout.needs.insert(part, service.needs.clone());
        }
        for (name, process) in &topology.processes {
            let part = layout.add(PartKind::Process, name, 1, on_nodes(&process.nodes, None));
            layout.needs.insert(part, process.needs.clone());
        }
        for (name, postgres) in &topology.postgres {
            let at_least = match postgres.durability {
                Durability::Async => 1,
                // A write waits for the primary and `acks_min` others; a new primary is agreed on by a majority, which
                // two data nodes have with a witness.
                Durability::Quorum { acks_min, .. } => {
                    let agree =
                        if postgres.nodes.len() > 2 { majority(postgres.nodes.len()) } else { 1 };
                    agree.max(usize::from(acks_min) + 1)
                }
            };
            let cells = on_nodes(&postgres.nodes, stated(postgres.reliability));
            layout.add(PartKind::Postgres, name, at_least, cells);
        }
        for (name, redis) in &topology.redis {
            layout.add(PartKind::Redis, name, 1, on_nodes(&redis.nodes, stated(redis.reliability)));
        }
        for (name, store) in &topology.stores {
            let at_least = match store.mode {
                StoreMode::Quorum => majority(store.nodes.len()),
                StoreMode::ActiveActive => 1,
            };
            let cells = on_nodes(&store.nodes, stated(store.reliability));
            layout.add(PartKind::Store, name, at_least, cells);
        }
        for (name, address) in &topology.addresses {
            layout.add(PartKind::Address, name, 1, on_nodes(&address.nodes, None));
        }
        for (name, external) in &topology.externals {
            let cell = Cell { name: String::new(), node: None, own: stated(external.reliability) };
            let cells = vec![cell; external.instances.get().into()];
            layout.add(PartKind::External, name, external.at_least.get().into(), cells);
        }
        layout
    }

    fn add(&mut self, kind: PartKind, name: &str, at_least: usize, cells: Vec<Cell>) -> PartRef {
        let part = PartRef { kind, name: name.to_owned() };
        self.groups.insert(part.clone(), Group { part: part.clone(), at_least, cells });
        part
    }

    /// The part and all that it needs, directly or through others; each once.
    pub(crate) fn required(&self, part: &PartRef) -> Vec<&Group> {
        let mut found = BTreeSet::new();
        let mut open = vec![part];
        while let Some(next) = open.pop() {
            if found.insert(next) {
                open.extend(self.needs.get(next).into_iter().flatten());
            }
        }
        found.into_iter().map(|part| &self.groups[part]).collect()
    }
}

/// One cell per node; without nodes the file is about one machine, of which it says nothing.
fn on_nodes(nodes: &[String], own: Option<Availability>) -> Vec<Cell> {
    if nodes.is_empty() {
        return vec![Cell { name: String::new(), node: None, own }];
    }
    nodes
        .iter()
        .map(|node| Cell { name: format!("node.{node}"), node: Some(node.clone()), own })
        .collect()
}

/// The node that a backend is on: the one whose address is the backend's host.
fn node_of(backend: &Backend, nodes: &BTreeMap<String, Node>) -> Option<String> {
    let address: IpAddr = backend.host.parse().ok()?;
    nodes.iter().find(|(_, node)| node.address == address).map(|(name, _)| name.clone())
}

fn stated(reliability: Option<Reliability>) -> Option<Availability> {
    reliability.map(Availability::of_reliability)
}

/// More than half.
fn majority(n: usize) -> usize {
    n / 2 + 1
}
