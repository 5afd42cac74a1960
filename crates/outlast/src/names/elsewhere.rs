//! Zones that are kept in other people's name servers as well: whoever leads does it, with each change of what is agreed on.

use std::path::Path;
use std::sync::Arc;

use outlast_core::agreed::AgreedNames;
use outlast_core::names::sticky;
use outlast_core::time::{Instant, Timestamp};
use outlast_core::topology::Topology;

use crate::elsewhere::{Healths, Keepers, Standings, wanted};

/// What this node keeps elsewhere, while it leads.
#[derive(Default)]
pub(super) struct Elsewhere {
    keepers: Option<Keepers>,
    /// What they follow now.
    made: Option<(Arc<Topology>, Arc<AgreedNames>)>,
}

impl Elsewhere {
    /// To be called within a runtime, whenever anything may have changed.
    pub(super) fn follow(
        &mut self,
        leads: bool,
        topology: &Arc<Topology>,
        agreed: &Arc<AgreedNames>,
        base: &Path,
    ) {
        let kept = topology.dns.values().any(|zone| !zone.elsewhere.is_empty());
        if !(leads && kept) {
            *self = Elsewhere::default();
            return;
        }
        let same = |(of, with): &(Arc<Topology>, Arc<AgreedNames>)| {
            Arc::ptr_eq(of, topology) && Arc::ptr_eq(with, agreed)
        };
        if self.made.as_ref().is_some_and(same) {
            return;
        }
        self.made = Some((topology.clone(), agreed.clone()));
        let keepers =
            self.keepers.get_or_insert_with(|| Keepers::new(&topology.cluster.name, base));
        let health = agreed.health.iter();
        let healths: Healths = health.map(|(of, agreed)| (of.clone(), agreed.health)).collect();
        keepers.follow(topology, |name, zone| {
            let sticky = sticky(name, agreed, Instant::default(), Timestamp::default());
            wanted(name, zone, &healths, &sticky)
        });
    }

    /// What has come of each place.
    pub(super) fn standings(&self) -> Standings {
        self.keepers
            .as_ref()
            .map(|keepers| keepers.standings().borrow().clone())
            .unwrap_or_default()
    }
}
