//! Which virtual routers a node takes part in, where the nodes decide by VRRP alone.

use alloc::borrow::ToOwned as _;
use alloc::collections::BTreeMap;
use alloc::string::String;
use alloc::vec::Vec;
use core::net::IpAddr;
use core::num::NonZeroU8;

use super::unit_of;
use crate::topology::{
    Address, AddressMode, Network, PRIORITY_MAX, Peers, Preempt, Topology, Track, Vrrp,
};
use crate::vrrp::{Interval, PRIORITY};

/// To whom the advertisements of a virtual router go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Audience {
    Everybody,
    /// To these; there may be none.
    Only(Vec<IpAddr>),
}

/// A virtual router, as one node speaks it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Voice {
    /// `NAME` of `[address.NAME]`.
    pub name: String,
    pub vrrp: Vrrp,
    pub interface: String,
    /// All of one kind.
    pub ips: Vec<Network>,
    pub audience: Audience,
    /// This node's own address, if it is of the same kind: where the others expect this node to speak from.
    pub own: Option<IpAddr>,
}

impl Voice {
    /// `None`: this address does not speak VRRP, or not from this node.
    pub fn of(topology: &Topology, name: &str, address: &Address, node: &str) -> Option<Voice> {
        let vrrp = address.vrrp()?;
        let v4 = address.ips.first()?.address.is_ipv4();
        let is_kind = |ip: &IpAddr| ip.is_ipv4() == v4;
        let address_of = |node: &String| topology.nodes.get(node).map(|node| node.address);
        let audience = match &vrrp.peers {
            Peers::Multicast => Audience::Everybody,
            Peers::Unicast { others } => {
                let nodes = address.nodes.iter().filter(|other| *other != node);
                let all = nodes.filter_map(address_of).chain(others.iter().copied());
                let mut known: Vec<IpAddr> = Vec::new();
                for ip in all.filter(is_kind) {
                    if !known.contains(&ip) {
                        known.push(ip);
                    }
                }
                Audience::Only(known)
            }
        };
        Some(Voice {
            name: name.to_owned(),
            vrrp: vrrp.clone(),
            interface: address.interface.clone(),
            ips: address.ips.clone(),
            audience,
            own: address_of(&node.to_owned()).filter(is_kind),
        })
    }
}

/// A virtual router by itself, or all of a group, of which this node is a member.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RouterPlan {
    /// At least one.
    pub voices: Vec<Voice>,
    pub priority: NonZeroU8,
    pub preempt: Preempt,
    pub track: Vec<Track>,
}

/// Those of a node, by unit.
pub fn router_plans(topology: &Topology, node: &str) -> BTreeMap<String, RouterPlan> {
    let mut plans: BTreeMap<String, RouterPlan> = BTreeMap::new();
    for (name, address) in &topology.addresses {
        let is_member = address.nodes.iter().any(|member| member == node);
        if !is_member || !matches!(address.mode, AddressMode::Vrrp(_)) {
            continue;
        }
        let Some(voice) = Voice::of(topology, name, address, node) else { continue };
        let plan = plans.entry(unit_of(name, address)).or_insert_with(|| RouterPlan {
            voices: Vec::new(),
            priority: address.priorities.get(node).copied().unwrap_or(PRIORITY),
            preempt: address.preempt,
            track: Vec::new(),
        });
        plan.voices.push(voice);
        for track in &address.track {
            if !plan.track.contains(track) {
                plan.track.push(track.clone());
            }
        }
    }
    plans
}

/// All addresses that move: none of them is a node's own, though it may be there.
pub fn moving(topology: &Topology) -> Vec<IpAddr> {
    let all = topology.addresses.values().flat_map(|address| &address.ips);
    all.map(|network| network.address).collect()
}

/// What a node says of the addresses that it may hold by lease, by unit: the holder announces itself.
pub fn announcing(topology: &Topology, node: &str) -> BTreeMap<String, Vec<Voice>> {
    let mut all: BTreeMap<String, Vec<Voice>> = BTreeMap::new();
    for (name, address) in &topology.addresses {
        let is_member = address.nodes.iter().any(|member| member == node);
        if !is_member || !matches!(address.mode, AddressMode::Lease { .. }) {
            continue;
        }
        if let Some(voice) = Voice::of(topology, name, address, node) {
            all.entry(unit_of(name, address)).or_default().push(voice);
        }
    }
    all
}

impl RouterPlan {
    /// The shortest of its intervals: a group speaks with one rhythm.
    pub fn interval(&self) -> Option<Interval> {
        self.voices.iter().map(|voice| voice.vrrp.advert).min()
    }

    /// Less what is down, more what is up; `None`: something that it cannot do without is down. `down` has the same order
    /// as [`RouterPlan::track`].
    pub fn weighed(&self, down: &[bool]) -> Option<NonZeroU8> {
        let mut sum = i32::from(self.priority.get());
        for (track, down) in self.track.iter().zip(down) {
            match track.weight {
                None if *down => return None,
                Some(weight) if (weight.get() < 0) == *down => sum += i32::from(weight.get()),
                None | Some(_) => {}
            }
        }
        let least = i32::from(NonZeroU8::MIN.get());
        let within = sum.clamp(least, i32::from(PRIORITY_MAX.get()));
        u8::try_from(within).ok().and_then(NonZeroU8::new)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::topology::{Node, Tracked};
    use core::num::NonZeroI16;
    use core::time::Duration;

    fn address(ip: &str, peers: Peers, group: Option<&str>) -> Address {
        let nodes = ["a".to_owned(), "b".to_owned()];
        let vrrp = Vrrp {
            id: NonZeroU8::MIN,
            advert: Interval::of_centiseconds(100).unwrap(),
            peers,
            checksum: None,
        };
        Address {
            ips: alloc::vec![Network { address: ip.parse().unwrap(), prefix: 24 }],
            interface: "eth0".to_owned(),
            mode: AddressMode::Vrrp(vrrp),
            priorities: crate::topology::priorities_by_order(&nodes),
            nodes: nodes.into(),
            preempt: Preempt::After(Duration::ZERO),
            group: group.map(str::to_owned),
            track: Vec::new(),
        }
    }

    fn topology(addresses: &[(&str, Address)]) -> Topology {
        let mut topology = Topology::default();
        for (name, ip) in [("a", "10.0.0.1"), ("b", "10.0.0.2"), ("c", "10.0.0.3")] {
            let node = Node {
                address: ip.parse().unwrap(),
                port: None,
                region: None,
                zone: None,
                reliability: None,
                cost_per_month: None,
            };
            topology.nodes.insert(name.to_owned(), node);
        }
        for (name, address) in addresses {
            topology.addresses.insert((*name).to_owned(), address.clone());
        }
        topology
    }

    #[test]
    fn a_node_speaks_to_its_peers_of_the_same_kind_once() {
        let others = ["10.0.0.2", "10.0.0.9", "fe80::9"].map(|ip| ip.parse().unwrap()).into();
        let unicast = Peers::Unicast { others };
        let all = topology(&[
            ("four", address("10.0.0.100", unicast.clone(), None)),
            ("six", address("fe80::100", unicast, None)),
            ("wide", address("10.0.0.101", Peers::Multicast, None)),
        ]);
        let plans = router_plans(&all, "a");
        let of = |name: &str| plans[name].voices[0].clone();
        let ips = |ips: &[&str]| Audience::Only(ips.iter().map(|ip| ip.parse().unwrap()).collect());
        assert_eq!(of("four").audience, ips(&["10.0.0.2", "10.0.0.9"]));
        assert_eq!(of("six").audience, ips(&["fe80::9"]));
        assert_eq!(of("wide").audience, Audience::Everybody);
        assert_eq!(of("wide").own, Some("10.0.0.1".parse().unwrap()));
        assert_eq!(of("six").own, None);
        assert_eq!(plans["wide"].priority.get(), 150);
        assert!(router_plans(&all, "c").is_empty());
    }

    #[test]
    fn a_group_is_one_unit_and_lease_is_none() {
        let mut leased = address("10.0.0.102", Peers::Multicast, None);
        leased.mode = AddressMode::Lease {
            follows: None,
            split_brain: crate::topology::SplitBrain::Refuse,
            announce: leased.vrrp().cloned(),
        };
        let all = topology(&[
            ("four", address("10.0.0.100", Peers::Multicast, Some("all"))),
            ("leased", leased),
            ("six", address("fe80::100", Peers::Multicast, Some("all"))),
        ]);
        let plans = router_plans(&all, "b");
        assert_eq!(plans.keys().collect::<Vec<_>>(), ["group.all"]);
        assert_eq!(plans["group.all"].voices.len(), 2);
        // It speaks all the same, and decides nothing by it.
        let announced = announcing(&all, "b");
        assert_eq!(announced.keys().collect::<Vec<_>>(), ["leased"]);
        assert!(announcing(&all, "c").is_empty());
    }

    #[test]
    fn what_is_tracked_changes_the_priority_or_ends_it() {
        let all = topology(&[("edge", address("10.0.0.100", Peers::Multicast, None))]);
        let plan = |weights: &[i16]| {
            let track = |weight: &i16| Track {
                what: Tracked::Interface("eth1".to_owned()),
                weight: NonZeroI16::new(*weight),
            };
            let track = weights.iter().map(track).collect();
            RouterPlan { track, ..router_plans(&all, "a")["edge"].clone() }
        };
        for (weights, down, priority) in [
            (&[][..], &[][..], Some(150)),
            (&[-50], &[false], Some(150)),
            (&[-50], &[true], Some(100)),
            (&[20], &[false], Some(170)),
            (&[20], &[true], Some(150)),
            (&[-50, 20], &[true, false], Some(120)),
            (&[-253], &[true], Some(1)),
            (&[253], &[false], Some(254)),
            (&[0], &[false], Some(150)),
            (&[0, 253], &[true, false], None),
        ] {
            let weighed = plan(weights).weighed(down).map(NonZeroU8::get);
            assert_eq!(weighed, priority, "{weights:?} {down:?}");
        }
    }
}
