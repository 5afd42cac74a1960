//! Where the parts are that failover policies follow.

use alloc::collections::BTreeMap;
use alloc::string::ToString as _;

use super::Places;
use crate::address::{plans, unit_of};
use crate::agent::Agreement;
use crate::agreed::AgreedSide;
use crate::pair::Side;
use crate::topology::{PartKind, PartRef, Policy, Pool, Topology};

/// Of each part that a zone's record follows, which of its sides or nodes it is at, as far as that is agreed on.
///
/// A name moves last: where an address follows the same part, the name waits until that is held where the part is now.
pub fn places(topology: &Topology, agreement: &Agreement) -> Places {
    let records = topology.dns.values().flat_map(|zone| &zone.records);
    let followed = records.filter_map(|record| match &record.policy {
        Policy::Failover { follows, .. } => follows.as_ref(),
        Policy::Simple(_)
        | Policy::Weighted(_)
        | Policy::Multivalue(_)
        | Policy::Latency(_)
        | Policy::Geo { .. }
        | Policy::Alias { .. } => None,
    });
    let place = |part: &PartRef| Some((part.to_string(), place(topology, agreement, part)?));
    followed.filter_map(place).collect()
}

fn place(topology: &Topology, agreement: &Agreement, part: &PartRef) -> Option<usize> {
    let place = match part.kind {
        PartKind::Service => side(topology, agreement.sides.get(&part.name), part)?,
        PartKind::Postgres => {
            let serving = agreement.databases.get(&part.name)?.database.serving()?;
            let nodes = &topology.postgres.get(&part.name)?.nodes;
            nodes.iter().position(|node| node == serving)?
        }
        PartKind::Address => {
            let address = topology.addresses.get(&part.name)?;
            let holder = agreement.addresses.get(&unit_of(&part.name, address))?.holder.as_ref()?;
            address.nodes.iter().position(|node| node == holder)?
        }
        PartKind::Process | PartKind::Redis | PartKind::Store | PartKind::External => return None,
    };
    let waits = plans(topology).into_iter().any(|(unit, plan)| {
        let wanted = plan.wanted(topology, agreement);
        let holder = agreement.addresses.get(&unit).and_then(|agreed| agreed.holder.as_ref());
        // Nobody waits for an address that nobody can hold.
        plan.follows.as_ref() == Some(part) && holder.is_some() && wanted.as_ref() != holder
    });
    (!waits).then_some(place)
}

/// The side of a pair that serves; none while it changes sides.
fn side(topology: &Topology, agreed: Option<&AgreedSide>, part: &PartRef) -> Option<usize> {
    let service = topology.services.get(&part.name)?;
    matches!(service.pool, Pool::Pair(_)).then_some(())?;
    match agreed {
        Some(agreed) if !agreed.settled => None,
        Some(AgreedSide { side: Side::Backup, .. }) => Some(1),
        Some(AgreedSide { side: Side::Primary, .. }) | None => Some(0),
    }
}

/// The same where there is only one node, which knows the sides of its pairs.
pub fn places_alone(sides: &BTreeMap<alloc::string::String, Side>) -> Places {
    let place = |side: &Side| match side {
        Side::Primary => 0,
        Side::Backup => 1,
    };
    sides.iter().map(|(name, side)| (alloc::format!("service.{name}"), place(side))).collect()
}
