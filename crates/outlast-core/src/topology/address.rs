//! Addresses that move: `[address.NAME]`.

use alloc::collections::BTreeMap;
use alloc::string::String;
use alloc::vec::Vec;
use core::net::IpAddr;
use core::num::{NonZeroI16, NonZeroU8};
use core::time::Duration;

use super::{Command, Network, PartRef};
use crate::health::Thresholds;
use crate::heartbeat::Pace;
use crate::vrrp::Interval;
use crate::vrrp::wire::Dialect;

/// IP addresses of one `[address.NAME]`.
pub const IPS_MAX: usize = 20;

/// Things that one address tracks.
pub const TRACKS_MAX: usize = 32;

/// The highest priority that a file may give (RFC 9568 5.2.4: 255 is for who owns the address, which nobody does here).
pub const PRIORITY_MAX: NonZeroU8 = NonZeroU8::new(254).expect("it is not zero");

/// Of the first of `nodes`, where the file gives no priorities.
const PRIORITY_FIRST: u8 = 150;
/// How much lower the next one's is, while there is room.
const PRIORITY_STEP: u8 = 10;

/// `[address.NAME]`: an IP address that moves, or several that move together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Address {
    /// At least one; no more than [`IPS_MAX`].
    pub ips: Vec<Network>,
    pub interface: String,
    /// Who may hold it, as it is written.
    pub nodes: Vec<String>,
    pub mode: AddressMode,
    /// Of each of `nodes`, before anything tracked is counted. Who has the highest one holds the address first.
    pub priorities: BTreeMap<String, NonZeroU8>,
    pub preempt: Preempt,
    /// Addresses of one group are held by one node, or by none.
    pub group: Option<String>,
    pub track: Vec<Track>,
}

/// How it is decided who holds an address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AddressMode {
    /// By an agreed lease: two nodes never hold it at one time.
    Lease {
        /// A part whose leading node holds the lease: the primary of a database, the active side of a pair.
        follows: Option<PartRef>,
        split_brain: SplitBrain,
        /// The holder says so by VRRP, for those who listen.
        announce: Option<Vrrp>,
    },
    /// By VRRP alone: nodes that do not hear each other hold it at one time.
    Vrrp(Vrrp),
}

/// What two nodes without a third one do when they do not hear each other.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SplitBrain {
    /// Neither takes what it does not hold.
    #[default]
    Refuse,
    /// The other takes over once heartbeats say that this one is gone, and both may hold the address while the network is
    /// parted.
    Accept(Pace),
}

/// A virtual router (RFC 9568).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Vrrp {
    /// Unique among the routers of one interface and kind of address.
    pub id: NonZeroU8,
    pub advert: Interval,
    pub peers: Peers,
    /// `None`: as the peer does; [`Dialect::PseudoHeader`] until it was heard.
    pub checksum: Option<Dialect>,
}

/// To whom advertisements go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Peers {
    /// To all on the network: 224.0.0.18, ff02::12.
    Multicast,
    /// To the addresses of the other nodes and to these, who are no nodes.
    Unicast { others: Vec<IpAddr> },
}

/// Whether a node of a higher priority takes the address from one that is well.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Preempt {
    Never,
    /// Once it has been well for this long.
    After(Duration),
}

/// What else must be well on a node that is to hold the address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Track {
    pub what: Tracked,
    /// `None`: while it is down, the node does not hold the address. Below zero: that much is taken from the priority
    /// while it is down. Above: added while it is up (keepalived's `weight`).
    pub weight: Option<NonZeroI16>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Tracked {
    /// The interface has a carrier and is up.
    Interface(String),
    /// A part, as this node sees it.
    Part(PartRef),
    /// Exit status 0.
    Script { command: Command, every: Duration, timeout: Duration, thresholds: Thresholds },
}

impl Address {
    /// The virtual router, whether it decides or only announces.
    pub fn vrrp(&self) -> Option<&Vrrp> {
        match &self.mode {
            AddressMode::Lease { announce, .. } => announce.as_ref(),
            AddressMode::Vrrp(vrrp) => Some(vrrp),
        }
    }

    /// The part whose leading node holds it.
    pub fn follows(&self) -> Option<&PartRef> {
        match &self.mode {
            AddressMode::Lease { follows, .. } => follows.as_ref(),
            AddressMode::Vrrp(_) => None,
        }
    }

    /// How fast its two nodes notice each other's end, where they take over without a majority.
    pub fn pair(&self) -> Option<Pace> {
        match self.mode {
            AddressMode::Lease { split_brain: SplitBrain::Accept(pace), .. } => Some(pace),
            AddressMode::Lease { split_brain: SplitBrain::Refuse, .. } | AddressMode::Vrrp(_) => {
                None
            }
        }
    }

    /// Its nodes, the preferred one first; of equal ones in the order of the file.
    pub fn preferred(&self) -> Vec<&String> {
        let mut nodes: Vec<&String> = self.nodes.iter().collect();
        nodes.sort_by_key(|&node| core::cmp::Reverse(self.priorities.get(node)));
        nodes
    }
}

/// What nodes have as priorities where the file gives none: the first one the highest, all different while there is
/// room.
pub fn priorities_by_order(nodes: &[String]) -> BTreeMap<String, NonZeroU8> {
    let count = u8::try_from(nodes.len()).unwrap_or(u8::MAX).max(1);
    let step = (PRIORITY_FIRST / count).clamp(1, PRIORITY_STEP);
    let mut next = PRIORITY_FIRST;
    let mut priorities = BTreeMap::new();
    for node in nodes {
        priorities.insert(node.clone(), NonZeroU8::new(next).unwrap_or(NonZeroU8::MIN));
        next = next.saturating_sub(step);
    }
    priorities
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::format;

    #[test]
    fn the_order_of_nodes_is_the_order_of_priorities() {
        let nodes = |count: u8| -> Vec<String> { (0..count).map(|n| format!("n{n:03}")).collect() };
        let of = |count| -> Vec<u8> {
            priorities_by_order(&nodes(count)).values().map(|priority| priority.get()).collect()
        };
        assert_eq!(of(0), [0; 0]);
        assert_eq!(of(3), [150, 140, 130]);
        for count in 1..=150 {
            assert!(of(count).is_sorted_by(|a, b| a > b), "{count}: {:?}", of(count));
        }
        assert_eq!(of(200).last(), Some(&1));
    }
}
