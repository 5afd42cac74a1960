//! How long a client can be wrong about where something is, at worst, for every address and name of a file.

use std::time::Duration;

use outlast_consensus::{NodeId, Settings};
use outlast_core::address::OVERHANG;
use outlast_core::names::{AGREEMENT, WorstCase, of_address, of_record};
use outlast_core::topology::{AddressMode, ConsensusKind, SplitBrain, Topology};
use outlast_core::units::show_duration;
use serde_json::{Value, json};

/// How long an etcd cluster waits for a leader that is gone.
const ETCD_PATIENCE_MAX: Duration = Duration::from_millis(1_500);

/// One address or name.
pub(super) struct Stale {
    part: String,
    worst: WorstCase,
}

/// All of them, in the order of the file's names.
pub(super) fn all(topology: &Topology) -> Vec<Stale> {
    let patience = match topology.consensus.kind {
        ConsensusKind::Embedded => Settings::new(NodeId(0)).election.1,
        ConsensusKind::Etcd { .. } => ETCD_PATIENCE_MAX,
    };
    // The holder may have led the agreement as well.
    let lease = patience + OVERHANG;
    let addresses = topology.addresses.iter().map(|(name, address)| {
        let worst = of_address(topology, address, lease, AGREEMENT);
        Stale { part: format!("address.{name}"), worst }
    });
    let zones = topology.dns.iter().flat_map(|(zone, part)| {
        part.records.iter().filter_map(move |record| {
            let worst = of_record(topology, record, AGREEMENT)?;
            let name = match record.name.as_str() {
                "@" => zone.clone(),
                name => format!("{name}.{zone}"),
            };
            Some(Stale { part: format!("{name} {}", record.kind), worst })
        })
    });
    addresses.chain(zones).collect()
}

/// For people; nothing where nothing moves.
pub(super) fn table(all: &[Stale]) -> String {
    if all.is_empty() {
        return String::new();
    }
    let heads = ["clients are wrong for", "at most", "noticed", "agreed", "forgotten"];
    let mut rows = vec![heads.map(str::to_owned)];
    rows.extend(all.iter().map(|stale| {
        let WorstCase { detection, agreement, memory } = stale.worst;
        let [total, detection, agreement, memory] =
            [stale.worst.total(), detection, agreement, memory].map(show_duration);
        [stale.part.clone(), total, detection, agreement, memory]
    }));
    let width = |column: usize| rows.iter().map(|row| row[column].len()).max().unwrap_or(0);
    let widths: [usize; 5] = std::array::from_fn(width);
    let mut text = String::from("\n");
    for row in &rows {
        let line: Vec<String> = row
            .iter()
            .zip(widths)
            .enumerate()
            .map(|(column, (cell, width))| match column {
                0 => format!("{cell:<width$}"),
                _ => format!("{cell:>width$}"),
            })
            .collect();
        text += line.join("  ").trim_end();
        text.push('\n');
    }
    text
}

/// For programs: seconds.
pub(super) fn json(all: &[Stale]) -> Value {
    let seconds = |duration: Duration| duration.as_secs_f64();
    let one = |stale: &Stale| {
        let WorstCase { detection, agreement, memory } = stale.worst;
        json!({
            "part": stale.part,
            "at_most_seconds": seconds(stale.worst.total()),
            "noticed_seconds": seconds(detection),
            "agreed_seconds": seconds(agreement),
            "forgotten_seconds": seconds(memory),
        })
    };
    Value::Array(all.iter().map(one).collect())
}

/// Addresses that will not move, or not safely, although the file says that they move.
pub(super) fn warnings(topology: &Topology) -> Vec<String> {
    let voters = match topology.consensus.kind {
        ConsensusKind::Embedded => topology.consensus.voters.len(),
        // How many it has is not in the file.
        ConsensusKind::Etcd { .. } => usize::MAX,
    };
    let one = |(name, address): (&String, &outlast_core::topology::Address)| match &address.mode {
        AddressMode::Vrrp(_) => Some(format!(
            "address.{name}: `mode = \"vrrp\"` is not safe against a parted network: nodes that do not hear each other all answer on it, for as long as that lasts; leave `mode` out for an agreed lease, which needs 3 nodes"
        )),
        AddressMode::Lease { .. } if topology.nodes.len() < 2 => Some(format!(
            "address.{name}: never held, because nodes agree on who holds it, and one node has nobody to agree with; add nodes until there are 3"
        )),
        AddressMode::Lease { .. } if address.nodes.len() < 2 => Some(format!(
            "address.{name}: it cannot move, because `nodes` has one; name another one that may hold it"
        )),
        AddressMode::Lease { split_brain: SplitBrain::Accept(pace), .. } => Some(format!(
            "address.{name}: `split_brain = \"accept\"` means that both nodes answer on it while they do not hear each other, since neither can tell a dead peer from a cut cable: for so long clients reach either of them, and what they change on one is not on the other. A node takes over {} after the last heartbeat; once both hear each other, one lets go. A third [node.NAME], which needs neither the network of the address nor data, makes two holders impossible",
            show_duration(pace.gone_after())
        )),
        AddressMode::Lease { .. } if voters < 3 => Some(format!(
            "address.{name}: it goes dark when a voter is lost, because [consensus] has {voters} of them and more than half must agree; add a third [node.NAME], which needs neither the network of the address nor data{}",
            if topology.nodes.len() == 2 {
                ". Without one, `split_brain = \"accept\"` has the last node take over, and both may hold it while the network is parted"
            } else {
                ""
            }
        )),
        AddressMode::Lease { .. } => None,
    };
    topology.addresses.iter().filter_map(one).collect()
}
