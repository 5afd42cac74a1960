//! Which region the next primary may come from.

use alloc::string::String;
use core::time::Duration;

use super::{Lead, Scene, Seen};
use crate::agreed::Database;
#[cfg(test)]
use crate::sim::{Bug, instead};
use crate::time::Instant;
use crate::topology::RegionFailover;

/// Where nobody of the region that was asked for can be primary for this long, members of the old primary's may again.
const ASKED_REGION_WAIT: Duration = Duration::from_secs(10);

impl Lead {
    /// Whether all of the primary's region is silent, its lease is over, and another region is to take over by itself.
    pub(super) fn is_region_lost(
        &self,
        now: Instant,
        scene: &Scene<'_>,
        agreed: &Database,
    ) -> bool {
        let primary = agreed.reign.primary.as_str();
        let silent = |name: &str| scene.members.get(name).and_then(Seen::fresh).is_none();
        let mut near = scene.wish.members.iter().filter(|name| scene.wish.are_near(name, primary));
        let over = !scene.leased;
        #[cfg(test)]
        let over = instead(Bug::CrossesEarly, over, true);
        scene.wish.home.is_some()
            && scene.wish.region_failover == RegionFailover::Automatic
            && !scene.paused
            && over
            && self.blind_until <= now
            && near.all(|name| silent(name))
            && silent(primary)
    }
}

/// Whether a member may come after the primary without more being asked. `lasts`: for how long there has been an election.
pub(super) fn is_heir(scene: &Scene<'_>, agreed: &Database, lasts: Duration, node: &str) -> bool {
    let near = scene.wish.are_near(node, &agreed.reign.primary);
    let asked = agreed.election.as_ref().and_then(|election| election.region.as_ref());
    match asked {
        Some(region) => {
            scene.wish.regions.get(node) == Some(region) || near && ASKED_REGION_WAIT <= lasts
        }
        None => near,
    }
}

/// Where the primary stands.
pub(super) fn region_of<'a>(scene: &'a Scene<'_>, agreed: &Database) -> &'a str {
    scene.wish.regions.get(&agreed.reign.primary).map_or("?", String::as_str)
}
