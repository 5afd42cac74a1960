//! When a reign ends, and who comes next.

use alloc::borrow::ToOwned as _;
use alloc::collections::BTreeSet;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::time::Duration;

use super::region::{is_heir, region_of};
use super::{Lead, Scene, Seen, unfit};
use crate::agreed::{Database, DatabaseCommand, Recruit};
use crate::database::{MemberSight, MemberState};
use crate::health::Health;
#[cfg(test)]
use crate::sim::{Bug, instead};
use crate::time::Instant;

/// Where nothing is promised, an election waits this long for members that are there and have not reported.
const REPORTS_WAIT: Duration = Duration::from_secs(1);

/// The old primary is chosen again only if nobody else can be for this long.
const OLD_PRIMARY_AFTER: Duration = Duration::from_secs(3);

/// Others do not reach the primary, although its node is heard and says that all is well: for this long.
const UNREACHED_AFTER: Duration = Duration::from_secs(2);

/// A primary that is heard but holds no lease gets this long to ask for it again.
const WITHOUT_LEASE: Duration = Duration::from_secs(3);

/// How long an appointed primary may take to be promoted, and how long without a sign of life to be made.
const PROMOTE_MAX: Duration = Duration::from_secs(30);

impl Lead {
    /// Why the reign has to end now.
    pub(super) fn why_end(
        &mut self,
        now: Instant,
        scene: &Scene<'_>,
        agreed: &Database,
    ) -> Option<String> {
        let primary = &agreed.reign.primary;
        let seen = scene.members.get(primary).cloned().unwrap_or_default();
        let silent = seen.fresh().is_none() && self.blind_until <= now;
        let unleased = self.lasts(now, "unleased", !scene.leased);
        let down = seen.port == Health::Down;
        let serves = seen.fresh().is_some_and(|sight| sight.serves == Some(agreed.reign.epoch));
        let unreached = self.lasts(now, "unreached", down && serves && agreed.reign.open);
        let waits = !silent && !agreed.reign.open && agreed.system.is_some();
        let unpromoted = self.lasts(now, "unpromoted", waits);
        if silent && !scene.leased {
            return Some(format!("node `{primary}` is silent and its lease is over"));
        }
        if silent && down {
            return Some(format!("node `{primary}` is silent and its PostgreSQL does not answer"));
        }
        if let Some(why) = seen.fresh().and_then(|sight| sight.gives_up.clone()) {
            return Some(why);
        }
        if unreached >= UNREACHED_AFTER {
            return Some(format!("other nodes do not reach PostgreSQL on node `{primary}`"));
        }
        if unleased >= WITHOUT_LEASE && !silent {
            return Some(format!("node `{primary}` does not get its lease back"));
        }
        (unpromoted >= PROMOTE_MAX).then(|| format!("node `{primary}` was not promoted in time"))
    }

    /// Ends the reign if somebody can come after it.
    pub(super) fn elect(
        &mut self,
        now: Instant,
        scene: &Scene<'_>,
        agreed: &Database,
        why: String,
    ) -> Option<DatabaseCommand> {
        if scene.paused {
            self.stuck = Some(format!("{why}, but failover is paused"));
            return None;
        }
        let likely: Vec<Recruit> = scene
            .members
            .iter()
            .filter_map(|(name, seen)| {
                let sight = seen.fresh().filter(|sight| sight.state == MemberState::Standby)?;
                recruit(agreed, name, sight)
            })
            .collect();
        let (heirs, far): (Vec<Recruit>, Vec<Recruit>) = likely
            .iter()
            .cloned()
            .partition(|recruit| is_heir(scene, agreed, Duration::ZERO, &recruit.node));
        let fit = |of: &[Recruit]| of.iter().any(|recruit| unfit(scene, &recruit.node).is_none());
        let end = heirs.iter().map(|recruit| recruit.reaches).max().unwrap_or_default();
        let lossless = fit(&heirs) && agreed.is_covered(&likely, end);
        let (after, why) = if lossless {
            (&heirs, why)
        } else if fit(&far) && self.is_region_lost(now, scene, agreed) {
            let lost = region_of(scene, agreed);
            (&far, format!("{why}, and all of region `{lost}` is silent"))
        } else {
            self.stuck = Some(format!("{why}, but {}", no_heir(scene, agreed)));
            return None;
        };
        if (agreed.is_async() || !lossless)
            && let Some(short) = lacks_too_much(scene, agreed, after)
        {
            self.stuck = Some(format!("{why}, but {short}"));
            return None;
        }
        let why = if lossless { why } else { format!("{why}; {}", may_lose(scene, agreed, after)) };
        let (database, epoch) = (scene.name.to_owned(), agreed.reign.epoch);
        let elect = DatabaseCommand::Elect { database, epoch, why, region: None };
        #[cfg(test)]
        let elect = instead(Bug::NoElection, elect, self.at_once(scene, agreed, likely)?);
        Some(elect)
    }

    #[cfg(test)]
    pub(super) fn at_once(
        &self,
        scene: &Scene<'_>,
        agreed: &Database,
        recruits: Vec<Recruit>,
    ) -> Option<DatabaseCommand> {
        let node = recruits.iter().max_by_key(|recruit| recruit.reaches)?.node.clone();
        let next = self.next_rule(scene, &node, &recruits);
        let (database, epoch) = (scene.name.to_owned(), agreed.reign.epoch);
        Some(DatabaseCommand::Appoint { database, epoch, node, recruits, next, losing: false })
    }

    /// Appoints the next primary once the recruits are enough.
    pub(super) fn choose(
        &mut self,
        now: Instant,
        scene: &Scene<'_>,
        agreed: &Database,
    ) -> Option<DatabaseCommand> {
        let election = agreed.election.as_ref()?;
        let lasts = self.lasts(now, &format!("election {}", election.epoch), true);
        let recruits = recruits(scene, agreed, election.epoch);
        let all_there = scene.members.iter().all(|(name, seen)| {
            let alive = seen.fresh().is_some_and(|sight| {
                sight.state == MemberState::Standby && recruit(agreed, name, sight).is_some()
            });
            !alive || recruits.iter().any(|recruit| recruit.node == *name)
        });
        if agreed.is_async() && !all_there && lasts < REPORTS_WAIT {
            return None;
        }
        let (heirs, far): (Vec<Recruit>, Vec<Recruit>) = recruits
            .iter()
            .cloned()
            .partition(|recruit| is_heir(scene, agreed, lasts, &recruit.node));
        if agreed.is_async()
            && let Some(short) = lacks_too_much(scene, agreed, &heirs)
        {
            self.stuck = Some(short);
            return None;
        }
        let candidates = heirs.iter().filter(|recruit| {
            let old = recruit.node == agreed.reign.primary;
            agreed.is_covered(&recruits, recruit.reaches) && (!old || OLD_PRIMARY_AFTER <= lasts)
        });
        let mut losing = false;
        let mut best = best_of(scene, candidates);
        if best.is_none() && self.may_cross(now, scene, agreed, lasts) {
            if let Some(short) = lacks_too_much(scene, agreed, &far) {
                self.stuck = Some(short);
                return None;
            }
            best = best_of(scene, far.iter());
            losing = best.is_some_and(|best| !agreed.is_covered(&recruits, best.reaches));
        }
        let Some(best) = best else {
            self.stuck = Some(missing(scene, agreed, lasts, &recruits));
            return None;
        };
        let (node, next) = (best.node.clone(), self.next_rule(scene, &best.node, &recruits));
        let (database, epoch) = (scene.name.to_owned(), election.epoch);
        Some(DatabaseCommand::Appoint { database, epoch, node, recruits, next, losing })
    }

    /// Whether a member of another region is to take over: nobody in the primary's can, and it has stopped by itself.
    fn may_cross(
        &self,
        now: Instant,
        scene: &Scene<'_>,
        agreed: &Database,
        lasts: Duration,
    ) -> bool {
        let asked_for = agreed.election.as_ref().is_some_and(|election| election.region.is_some());
        !asked_for && REPORTS_WAIT <= lasts && self.is_region_lost(now, scene, agreed)
    }
}

fn best_of<'a>(
    scene: &Scene<'_>,
    recruits: impl Iterator<Item = &'a Recruit>,
) -> Option<&'a Recruit> {
    recruits.filter(|recruit| unfit(scene, &recruit.node).is_none()).max_by_key(|recruit| {
        let free = scene.members.get(&recruit.node).and_then(Seen::fresh);
        let free = free.map(|sight| sight.free_bytes).unwrap_or_default();
        (
            recruit.reaches,
            scene.wish.priority(&recruit.node),
            free >> 30,
            core::cmp::Reverse(&recruit.node),
        )
    })
}

fn recruits(scene: &Scene<'_>, agreed: &Database, election: u64) -> Vec<Recruit> {
    let stopped = scene.members.iter().filter_map(|(name, seen)| {
        let sight = seen.fresh().filter(|sight| sight.stopped == Some(election))?;
        recruit(agreed, name, sight)
    });
    stopped.collect()
}

/// Only a log that is a part of the last primary's can be compared with others.
fn recruit(agreed: &Database, name: &str, sight: &MemberSight) -> Option<Recruit> {
    let comparable = sight.system == agreed.system && agreed.is_part(sight.lineage, sight.reaches);
    comparable.then(|| Recruit { node: name.to_owned(), reaches: sight.reaches })
}

/// What everybody lacks, as far as the old primary's end is known.
fn lacks(scene: &Scene<'_>, agreed: &Database, recruits: &[Recruit]) -> Option<u64> {
    let last = scene.members.get(&agreed.reign.primary)?.sight.as_ref()?.reaches;
    let best = recruits.iter().map(|recruit| recruit.reaches).max()?;
    (best.timeline == last.timeline).then(|| last.lsn.saturating_sub(best.lsn))
}

/// Whether that is more than may be lost.
fn lacks_too_much(scene: &Scene<'_>, agreed: &Database, recruits: &[Recruit]) -> Option<String> {
    let lacks = lacks(scene, agreed, recruits).filter(|lacks| scene.wish.lag_max < *lacks)?;
    Some(format!("every other member lacks at least {lacks} bytes, more than lag_limit"))
}

fn may_lose(scene: &Scene<'_>, agreed: &Database, recruits: &[Recruit]) -> String {
    match lacks(scene, agreed, recruits) {
        Some(lacks) => format!("what only it has is lost, {lacks} bytes of the log or more"),
        None => "what only it has is lost".to_owned(),
    }
}

/// Why nobody could come after the primary.
fn no_heir(scene: &Scene<'_>, agreed: &Database) -> String {
    match scene.wish.home {
        None => "no other member could take over without a loss".to_owned(),
        Some(_) => format!(
            "no other member in region `{}` could take over without a loss",
            region_of(scene, agreed)
        ),
    }
}

/// Why nobody can be appointed.
fn missing(scene: &Scene<'_>, agreed: &Database, lasts: Duration, recruits: &[Recruit]) -> String {
    let silent = |name: &&String| !recruits.iter().any(|recruit| recruit.node == **name);
    let of = agreed.confirms.iter().flat_map(|confirm| &confirm.of);
    let silent: BTreeSet<&String> = of.filter(silent).collect();
    if silent.is_empty() {
        let refusals = recruits.iter().filter_map(|recruit| {
            let far = !is_heir(scene, agreed, lasts, &recruit.node);
            let far = far.then(|| "it is in another region".to_owned());
            Some(format!("node `{}`: {}", recruit.node, unfit(scene, &recruit.node).or(far)?))
        });
        let refusals: Vec<String> = refusals.collect();
        return format!("waits for a member that can be primary; {}", refusals.join("; "));
    }
    let names: Vec<&str> = silent.into_iter().map(String::as_str).collect();
    format!("an acknowledged write may be on {} only, which has not reported", names.join(", "))
}
