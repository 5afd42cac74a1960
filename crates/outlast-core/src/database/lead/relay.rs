//! Who follows whom in regions that the primary is not in: one member, the relay, follows the primary, the others follow it, so
//! that the log crosses once.

use alloc::borrow::ToOwned as _;
use alloc::collections::BTreeMap;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::time::Duration;

use super::{Lead, Scene, Seen, is_aside};
use crate::agreed::{Database, DatabaseCommand};
use crate::database::MemberState;
#[cfg(test)]
use crate::sim::{Bug, instead};
use crate::time::Instant;

/// A standby can be a relay once it has received for this long, and is none any more once it has not for that long.
const JOINS_AFTER: Duration = Duration::from_millis(500);
const LEAVES_AFTER: Duration = Duration::from_secs(2);

impl Lead {
    /// Has each other region follow one of its members.
    pub(super) fn plan_relays(
        &mut self,
        now: Instant,
        scene: &Scene<'_>,
        agreed: &Database,
    ) -> Option<DatabaseCommand> {
        let reign = &agreed.reign;
        let primary = scene.members.get(&reign.primary)?.fresh()?;
        // Whoever is to take over is not given another upstream meanwhile.
        if primary.serves != Some(reign.epoch) || !reign.open || agreed.switchover.is_some() {
            return None;
        }
        // Who may be waited for receives from the primary itself.
        let acknowledges = |name: &str| agreed.confirms.iter().any(|rule| rule.of.contains(name));
        let mut upstreams = BTreeMap::new();
        let far = far_regions(scene, &reign.primary);
        for members in far.values().filter(|_| acks_near(scene, &reign.primary)) {
            let Some(relay) = self.relay_of(now, scene, agreed, members) else { continue };
            let others = members.iter().filter(|name| ***name != relay && !acknowledges(name));
            upstreams.extend(others.map(|name| ((*name).to_owned(), relay.clone())));
        }
        let (database, epoch) = (scene.name.to_owned(), reign.epoch);
        (upstreams != agreed.upstreams).then_some(DatabaseCommand::Relay {
            database,
            epoch,
            upstreams,
        })
    }

    /// The relay that these members have, or one that they could have.
    fn relay_of(
        &mut self,
        now: Instant,
        scene: &Scene<'_>,
        agreed: &Database,
        members: &[&str],
    ) -> Option<String> {
        let (mut present, mut able) = (None, Vec::new());
        for name in members.iter().copied() {
            let can = can_relay(scene, agreed, name);
            let joined = JOINS_AFTER <= self.lasts(now, &format!("can relay {name}"), can);
            let left = LEAVES_AFTER <= self.lasts(now, &format!("cannot relay {name}"), !can);
            if !left && agreed.followers(name).next().is_some() {
                present = Some(name);
            }
            if joined {
                able.push(name);
            }
        }
        let best = able.into_iter();
        let best = best.max_by_key(|name| (scene.wish.priority(name), core::cmp::Reverse(*name)));
        present.or(best).map(str::to_owned)
    }
}

/// Members of each region that the primary is not in.
fn far_regions<'a>(scene: &'a Scene<'_>, primary: &str) -> BTreeMap<&'a str, Vec<&'a str>> {
    let mut far: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for name in scene.wish.members.iter().filter(|name| !scene.wish.are_near(name, primary)) {
        if let Some(region) = scene.wish.regions.get(name) {
            far.entry(region).or_default().push(name);
        }
    }
    far
}

/// Whether the primary's region could do without acknowledgements of others: each of those would have to receive from it.
fn acks_near(scene: &Scene<'_>, primary: &str) -> bool {
    let near = scene.wish.members.iter();
    let near = near.filter(|name| *name != primary && scene.wish.are_near(name, primary));
    usize::try_from(scene.wish.acks).is_ok_and(|acks| acks <= near.count())
}

/// Whether its log is known to be a part of the primary's, and it receives from that.
fn can_relay(scene: &Scene<'_>, agreed: &Database, name: &str) -> bool {
    let sight = scene.members.get(name).and_then(Seen::fresh);
    sight.is_some_and(|sight| {
        let known = sight.lineage == Some(agreed.reign.epoch)
            && sight.follows.as_ref() == Some(&agreed.reign.primary);
        #[cfg(test)]
        let known = instead(Bug::RelayUnknown, known, true);
        sight.state == MemberState::Standby && known && !is_aside(scene, name)
    })
}
