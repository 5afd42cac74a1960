//! Addresses that move, as `/v1/status` tells of them.

use std::collections::BTreeMap;

use outlast_core::address::unit_of;
use outlast_core::topology::{Address, AddressMode};
use serde::{Deserialize, Serialize};

use super::router_status::{self, RouterStatus};
use crate::agent::shared::{AddressesView, Picture};
use crate::cluster::Phase;

/// One `[address.NAME]`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct AddressStatus {
    /// With their prefixes.
    pub ips: Vec<String>,
    /// Null while nobody has ever held it.
    pub holder: Option<String>,
    /// The epoch under which that is agreed.
    pub epoch: u64,
    /// Since when, by the wall clock of whoever led then.
    pub since: Option<String>,
    /// Why it went there.
    pub why: Option<String>,
    /// This node answers on it now.
    pub here: bool,
    /// Why this node cannot hold it, or what makes it hold it less gladly.
    pub trouble: Option<String>,
    /// Null in the mode `lease`; else who has it is not agreed on, and `holder` is who this node takes for the active one.
    pub router: Option<RouterStatus>,
    /// What is the case while nothing can be agreed on: who holds it all the same, or why nobody takes it.
    pub unagreed: Option<String>,
}

impl AddressStatus {
    /// On the node of this name.
    pub(super) fn all(node: &str, picture: &Picture) -> BTreeMap<String, AddressStatus> {
        let mut all = AddressStatus::leased(picture);
        all.extend(router_status::all(node, picture));
        all
    }

    fn leased(picture: &Picture) -> BTreeMap<String, AddressStatus> {
        let Some(view) = &picture.addresses else { return BTreeMap::new() };
        let leased = picture.topology.addresses.iter();
        let leased = leased.filter(|(_, address)| !matches!(address.mode, AddressMode::Vrrp(_)));
        leased
            .map(|(name, address)| {
                let mut status = AddressStatus::of(name, address, view);
                status.unagreed = status.unagreed.or_else(|| nobody_takes_it(address, picture));
                (name.clone(), status)
            })
            .collect()
    }

    fn of(name: &str, address: &Address, view: &AddressesView) -> AddressStatus {
        let unit = unit_of(name, address);
        let (agreed, seen) = (view.agreed.get(&unit), view.seen.get(&unit));
        AddressStatus {
            ips: address.ips.iter().map(|ip| format!("{}/{}", ip.address, ip.prefix)).collect(),
            holder: agreed.and_then(|agreed| agreed.holder.clone()),
            epoch: agreed.map_or(0, |agreed| agreed.epoch),
            since: agreed.map(|agreed| agreed.moved.wall.to_string()),
            why: agreed.map(|agreed| agreed.why.clone()),
            here: seen.is_some_and(|seen| seen.holds.is_some()),
            trouble: seen.and_then(|seen| seen.trouble.clone()),
            router: None,
            unagreed: seen.and_then(|seen| seen.unagreed.clone()),
        }
    }
}

/// Why an address of two nodes goes to neither while nobody leads.
fn nobody_takes_it(address: &Address, picture: &Picture) -> Option<String> {
    let cluster = picture.cluster.as_ref()?;
    let nobody_leads = cluster.phase == Phase::Running && cluster.leader().is_none();
    let two = picture.topology.nodes.len() == 2 && address.pair().is_none();
    (nobody_leads && two).then(|| {
        "nobody takes it over: nothing can be agreed on, because more than half of two nodes is both. \
         Add a third [node.NAME], which needs neither this network nor data; or write `split_brain = \"accept\"` \
         here, and both nodes hold it while they do not hear each other"
            .to_owned()
    })
}
