//! Which units a topology has, and where those belong that follow something.

use alloc::borrow::ToOwned as _;
use alloc::collections::BTreeMap;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::time::Duration;

use super::{Member, Unit};
use crate::agent::Agreement;
use crate::heartbeat::Pace;
use crate::pair::Side;
use crate::topology::{
    Address, AddressMode, Network, PartKind, PartRef, Pool, Preempt, Topology, Track,
};

/// What one unit is, to those who decide on it and to those who carry it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    pub unit: Unit,
    /// Where that is, it is.
    pub follows: Option<PartRef>,
    /// Each address and its interface.
    pub places: Vec<(Network, String)>,
    pub track: Vec<Track>,
    /// Its two nodes take over without a majority.
    pub pair: Option<Pace>,
}

/// The units of a topology that are held by lease: each address by itself, and each group as one.
pub fn plans(topology: &Topology) -> BTreeMap<String, Plan> {
    let mut plans: BTreeMap<String, Plan> = BTreeMap::new();
    for (name, address) in &topology.addresses {
        if matches!(address.mode, AddressMode::Vrrp(_)) {
            continue;
        }
        let own = Plan::of(address);
        match plans.entry(unit_of(name, address)) {
            alloc::collections::btree_map::Entry::Vacant(place) => drop(place.insert(own)),
            alloc::collections::btree_map::Entry::Occupied(mut group) => group.get_mut().join(own),
        }
    }
    plans
}

/// Stands for which units there are, and which addresses each has. While nodes differ in that, the name of a unit does not
/// say which addresses it is about (FNV-1a, 64 bits).
pub fn digest(plans: &BTreeMap<String, Plan>) -> u64 {
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    let mut add = |text: &str| {
        for byte in text.bytes().chain([0]) {
            hash = (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
    };
    for (name, plan) in plans {
        add(name);
        for (network, interface) in &plan.places {
            add(&format!("{}/{} {interface}", network.address, network.prefix));
        }
        add("");
    }
    hash
}

/// The unit of an address: its group, or itself.
pub fn unit_of(name: &str, address: &Address) -> String {
    match &address.group {
        // No address has a dot in its name.
        Some(group) => format!("group.{group}"),
        None => name.to_owned(),
    }
}

impl Plan {
    fn of(address: &Address) -> Plan {
        let priority =
            |node: &String| address.priorities.get(node).map_or(0, |p| i32::from(p.get()));
        let members = address.preferred().into_iter();
        let members = members.map(|node| Member { node: node.clone(), priority: priority(node) });
        let preempt = match address.preempt {
            Preempt::Never => None,
            Preempt::After(delay) => Some(delay),
        };
        let follows = address.follows().cloned();
        let unit = Unit { members: members.collect(), preempt, follows: follows.is_some() };
        let places = address.ips.iter().map(|ip| (*ip, address.interface.clone())).collect();
        Plan { unit, follows, places, track: address.track.clone(), pair: address.pair() }
    }

    /// Another address of the same group: what either of them needs, both need. The slowest to return decides.
    fn join(&mut self, other: Plan) {
        self.places.extend(other.places);
        for track in other.track {
            if !self.track.contains(&track) {
                self.track.push(track);
            }
        }
        let slowest = |a: Duration, b: Duration| a.max(b);
        self.unit.preempt = self.unit.preempt.zip(other.unit.preempt).map(|(a, b)| slowest(a, b));
        self.follows = self.follows.take().or(other.follows);
        self.unit.follows = self.follows.is_some();
        // The file lets these of one group be the same only.
        self.pair = self.pair.filter(|pair| other.pair == Some(*pair));
    }

    /// Whether of its members this one is preferred: by priority, then by order.
    pub fn is_first(&self, node: &str) -> bool {
        let better = |best: &'_ Member, next: &'_ Member| best.priority < next.priority;
        let first = self.unit.members.iter().reduce(|a, b| if better(a, b) { b } else { a });
        first.is_some_and(|member| member.node == node)
    }

    /// The node where what this unit follows is now, if that is known.
    pub fn wanted(&self, topology: &Topology, agreement: &Agreement) -> Option<String> {
        let part = self.follows.as_ref()?;
        match part.kind {
            PartKind::Postgres => {
                let held = agreement.databases.get(&part.name)?;
                held.database.serving().cloned()
            }
            PartKind::Service => {
                let Pool::Pair(pair) = &topology.services.get(&part.name)?.pool else {
                    return None;
                };
                let agreed = agreement.sides.get(&part.name);
                if agreed.is_some_and(|agreed| !agreed.settled) {
                    return None;
                }
                let side = agreed.map_or(Side::Primary, |agreed| agreed.side);
                let server = match side {
                    Side::Primary => &pair.primary,
                    Side::Backup => &pair.backup,
                };
                let mut there = topology
                    .nodes
                    .iter()
                    .filter(|(_, node)| Ok(node.address) == server.host.parse());
                let (name, _) = there.next()?;
                there.next().is_none().then(|| name.to_owned())
            }
            PartKind::Process
            | PartKind::Redis
            | PartKind::Store
            | PartKind::Address
            | PartKind::External => None,
        }
    }
}
