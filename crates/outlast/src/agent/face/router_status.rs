//! Addresses that nobody agrees on, as `/v1/status` tells of them: what this node knows of their virtual routers.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::num::NonZeroU8;

use outlast_consensus::boottime;
use outlast_core::address::unit_of;
use outlast_core::topology::{Address, AddressMode, Topology, Vrrp};
use outlast_core::vrrp::State;
use outlast_core::vrrp::wire::Dialect;
use outlast_vip::vrrp::Word;
use serde::{Deserialize, Serialize};

use super::address_status::AddressStatus;
use crate::agent::shared::Picture;

/// This node's part in a virtual router.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct RouterStatus {
    pub id: u8,
    /// `active`, `backup`, or `idle`: it takes no part. Null on a node that is no member.
    pub state: Option<String>,
    /// With what is tracked; null while it takes no part.
    pub priority: Option<u8>,
    /// Others that were heard, by the address that they speak from.
    pub peers: BTreeMap<String, PeerStatus>,
}

/// What another router has said last.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct PeerStatus {
    /// Null: it is none of the nodes, or speaks from another address.
    pub node: Option<String>,
    /// 0: it has given the address up.
    pub priority: u8,
    pub interval_seconds: f64,
    pub heard_seconds_ago: f64,
    /// Of IPv4: `with-pseudo-header`, as keepalived has it, or `without`.
    pub checksum: String,
}

/// Those of the mode `vrrp`.
pub(super) fn all(node: &str, picture: &Picture) -> BTreeMap<String, AddressStatus> {
    let of = |(name, address): (&String, &Address)| {
        let AddressMode::Vrrp(vrrp) = &address.mode else { return None };
        Some((name.clone(), one(node, picture, name, address, vrrp)))
    };
    picture.topology.addresses.iter().filter_map(of).collect()
}

fn one(node: &str, picture: &Picture, name: &str, address: &Address, vrrp: &Vrrp) -> AddressStatus {
    let seen = picture.routers.get(&unit_of(name, address));
    let (topology, now) = (&picture.topology, boottime());
    let v4 = address.ips.iter().all(|ip| ip.address.is_ipv4());
    let is_active = seen.is_some_and(|seen| seen.state == State::Active);
    let elsewhere = || {
        let active = seen?.active(now)?;
        Some(node_at(topology, active).unwrap_or_else(|| active.to_string()))
    };
    let heard = seen.into_iter().flat_map(|seen| &seen.heard);
    let peers = heard.filter(|(from, _)| from.is_ipv4() == v4).map(|(from, word)| {
        let ago = now.since(word.at);
        let peer = PeerStatus {
            node: node_at(topology, *from),
            priority: word.priority,
            interval_seconds: word.interval.duration().as_secs_f64(),
            heard_seconds_ago: ago.as_millis() as f64 / 1000.0,
            checksum: checksum(word).to_owned(),
        };
        (from.to_string(), peer)
    });
    AddressStatus {
        ips: address.ips.iter().map(|ip| format!("{}/{}", ip.address, ip.prefix)).collect(),
        holder: if is_active { Some(node.to_owned()) } else { elsewhere() },
        here: is_active,
        trouble: seen.and_then(|seen| seen.trouble.clone()),
        router: Some(RouterStatus {
            id: vrrp.id.get(),
            state: seen.map(|seen| state(seen.state).to_owned()),
            priority: seen.and_then(|seen| seen.priority).map(NonZeroU8::get),
            peers: peers.collect(),
        }),
        ..AddressStatus::default()
    }
}

fn state(state: State) -> &'static str {
    match state {
        State::Active => "active",
        State::Backup => "backup",
        State::Idle => "idle",
    }
}

fn checksum(word: &Word) -> &'static str {
    match word.dialect {
        Dialect::PseudoHeader => "with-pseudo-header",
        Dialect::MessageOnly => "without",
    }
}

fn node_at(topology: &Topology, ip: IpAddr) -> Option<String> {
    let mut nodes = topology.nodes.iter();
    nodes.find(|(_, node)| node.address == ip).map(|(name, _)| name.clone())
}
