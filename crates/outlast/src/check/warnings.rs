//! What makes sense in a file and is seldom meant.

use outlast::file::region_warnings;
use outlast_core::topology::{ConsensusKind, Postgres, Topology};

/// Of so many voters one may be lost.
const VOTERS_MIN: usize = 3;

/// What a member's priority is that the file does not name.
const PRIORITY: u32 = 100;

/// The setting by which standbys stay behind on purpose.
const DELAY: &str = "recovery_min_apply_delay";

/// All warnings of a topology, one line each.
pub(super) fn warnings(topology: &Topology) -> Vec<String> {
    let layout = of_face(topology).into_iter().chain(of_tls(topology)).chain(of_voters(topology));
    let databases = topology.postgres.iter().filter_map(|(name, part)| of_database(name, part));
    let delays = topology.postgres.iter().filter_map(|(name, part)| of_delay(name, part));
    let addresses = super::stale::warnings(topology);
    let regions = region_warnings(topology);
    layout.chain(databases).chain(delays).chain(regions).chain(addresses).collect()
}

fn of_face(topology: &Topology) -> Option<String> {
    let address = topology.cluster.face.filter(|address| !address.ip().is_loopback())?;
    Some(format!(
        "`face` at {address} shows the names and addresses of all parts to whoever reaches it, without a password; keep it on 127.0.0.1, or on a network of your own"
    ))
}

/// Nodes that would not even speak with each other.
fn of_tls(topology: &Topology) -> Option<String> {
    if !outlast::cluster::wanted(topology) || topology.cluster.tls.is_some() {
        return None;
    }
    let mut nodes = topology.nodes.iter();
    let (name, node) = nodes.find(|(_, node)| !node.address.to_canonical().is_loopback())?;
    Some(format!(
        "node.{name} is at {}, and [cluster] has no `tls`: without it agents stay within one machine and refuse to start, other than in `outlast lab`, which has certificates of its own; run `outlast certs init` and `outlast certs issue`, then write `tls` in [cluster]",
        node.address
    ))
}

/// Databases that nobody can agree about, or not without every node.
fn of_voters(topology: &Topology) -> Option<String> {
    let names: Vec<String> =
        topology.postgres.keys().map(|name| format!("postgres.{name}")).collect();
    let several = topology.postgres.values().any(|part| part.nodes.len() > 1);
    let voters = match topology.consensus.kind {
        ConsensusKind::Embedded => Some(topology.consensus.voters.len()),
        // How many it has is not in the file.
        ConsensusKind::Etcd { .. } => None,
    };
    let databases = names.join(", ");
    match (topology.nodes.len(), voters) {
        _ if names.is_empty() => None,
        (0 | 1, _) => Some(format!(
            "{databases}: never started, because nodes agree on who is primary, and one node has nobody to agree with; add nodes, which need no data, until there are {VOTERS_MIN}"
        )),
        (2, Some(_)) => Some(format!(
            "{databases}: no failover, because two of two nodes must agree; while one is away, the other stops, too. Add a third [node.NAME], which needs no data"
        )),
        (_, Some(voters)) if voters < VOTERS_MIN && several => Some(format!(
            "{databases}: no failover where a voter is lost, because [consensus] has {voters} in `voters`, and more than half must agree; name {VOTERS_MIN}"
        )),
        (_, Some(_) | None) => None,
    }
}

/// Members of which nobody could take over by itself.
fn of_database(name: &str, part: &Postgres) -> Option<String> {
    let priority = |node: &String| part.priorities.get(node).copied().unwrap_or(PRIORITY);
    let electable: Vec<&String> = part.nodes.iter().filter(|node| priority(node) > 0).collect();
    if part.nodes.len() < 2 {
        return None;
    }
    match electable.as_slice() {
        [] => Some(format!(
            "postgres.{name}: nobody takes over by itself, because all of its members have priority 0; give two of them another in `priorities`"
        )),
        [only] => Some(format!(
            "postgres.{name}: nobody takes over from node `{only}` by itself, because all other members have priority 0; give one of them another in `priorities`"
        )),
        [_, _, ..] => None,
    }
}

fn of_delay(name: &str, part: &Postgres) -> Option<String> {
    let (_, delay) = part.parameters.iter().find(|(key, _)| key.eq_ignore_ascii_case(DELAY))?;
    let number = delay.trim().trim_end_matches(|c: char| c.is_ascii_alphabetic() || c == ' ');
    let is_none = number.parse::<f64>().is_ok_and(|number| number == 0.0);
    (!is_none && part.nodes.len() > 1).then(|| {
        format!(
            "postgres.{name}: nobody takes over by itself, because `{DELAY}` in `parameters` keeps all members behind; take it out"
        )
    })
}
