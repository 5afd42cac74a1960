//! On which members a write must be before it is acknowledged.

use alloc::borrow::ToOwned as _;
use alloc::collections::BTreeSet;
use alloc::format;
use alloc::string::String;
use core::time::Duration;

use super::{Lead, Scene, Seen, is_aside};
use crate::agreed::{Confirm, Database, DatabaseCommand, Recruit};
use crate::time::Instant;

/// A standby counts for acknowledgements once it has received for this long, and no more once it has not for that long.
const JOINS_AFTER: Duration = Duration::from_millis(500);
const LEAVES_AFTER: Duration = Duration::from_secs(2);

/// Before it goes on alone a primary must have been heard within this time; each speaks every half second.
const HEARD_JUST_NOW: Duration = Duration::from_millis(700);

impl Lead {
    /// Who acknowledges for a new primary: those that can follow it.
    pub(super) fn next_rule(
        &self,
        scene: &Scene<'_>,
        primary: &str,
        recruits: &[Recruit],
    ) -> Confirm {
        let others = recruits.iter().map(|recruit| &recruit.node);
        let of: BTreeSet<String> = others
            .filter(|name| *name != primary && scene.wish.members.contains(*name))
            .filter(|name| !is_aside(scene, name))
            .cloned()
            .collect();
        let of = best_of(scene, primary, of);
        filled(scene, primary, acks_with(scene, of.len()), of)
    }

    /// Keeps the rule for acknowledgements to those that receive.
    pub(super) fn plan_confirm(
        &mut self,
        now: Instant,
        scene: &Scene<'_>,
        agreed: &Database,
    ) -> Option<DatabaseCommand> {
        let reign = &agreed.reign;
        let primary = scene.members.get(&reign.primary)?.fresh()?.clone();
        if primary.serves != Some(reign.epoch) || !reign.open || agreed.is_closed() {
            return None;
        }
        let (database, epoch, rule) = (scene.name.to_owned(), reign.epoch, agreed.rule());
        if primary.confirmed.as_ref() == Some(&rule) && agreed.confirms.len() > 1 {
            return Some(DatabaseCommand::Settle { database, epoch, to: rule });
        }
        let mut of = BTreeSet::new();
        for name in scene.wish.members.iter().filter(|name| **name != reign.primary) {
            let heard = scene.members.get(name).and_then(Seen::fresh);
            let receives = primary.streams_to.contains(name) && heard.is_some();
            let joined = JOINS_AFTER <= self.lasts(now, &format!("receives {name}"), receives);
            let left = LEAVES_AFTER <= self.lasts(now, &format!("is away {name}"), !receives);
            if !is_aside(scene, name) && (joined || rule.of.contains(name) && !left) {
                of.insert(name.clone());
            }
        }
        let of = best_of(scene, &reign.primary, of);
        let acks = acks_with(scene, of.len());
        let few = of.len() < usize::try_from(acks).unwrap_or(usize::MAX);
        let stays = few && rule.acks == acks && rule.of.is_subset(&scene.wish.members);
        // Whoever comes first of those that count is as good as any other.
        let to = if stays { rule.clone() } else { filled(scene, &reign.primary, acks, of) };
        // One change at a time, unless the last one cannot come true.
        let settled = agreed.confirms.len() <= 1;
        let hangs = LEAVES_AFTER <= self.lasts(now, "unsettled", !settled);
        let room = agreed.confirms.len() < crate::agreed::Limit::Confirms.most();
        // Nobody could come after one that is gone by now.
        let alone = to.acks == 0 && !to.is_async();
        let heard = scene.members.get(&reign.primary)?.heard_ago <= HEARD_JUST_NOW || !alone;
        // Who is being made anew has nothing to acknowledge with.
        let has = !to.of.iter().any(|name| agreed.is_in_remake(name));
        let may = heard && has && (settled || hangs && room);
        (!to.is_like(&rule) && may).then_some(DatabaseCommand::Widen { database, epoch, to })
    }
}

/// How many acknowledge where so many could.
fn acks_with(scene: &Scene<'_>, there: usize) -> u32 {
    let there = u32::try_from(there).unwrap_or(u32::MAX);
    scene.wish.acks.min(there.max(scene.wish.acks_min))
}

/// Who of these acknowledges: who does not become primary by itself, because of its priority or its region, could have a write
/// that nobody else has, and keep it from everybody. Where there are too few others, they acknowledge all the same.
pub(super) fn best_of(scene: &Scene<'_>, primary: &str, of: BTreeSet<String>) -> BTreeSet<String> {
    let near = |name: &str| scene.wish.are_near(name, primary);
    let rises = |name: &str| scene.wish.priority(name) > 0;
    let enough = usize::try_from(scene.wish.acks).unwrap_or(usize::MAX);
    let choices: [&dyn Fn(&str) -> bool; 3] =
        [&|name| near(name) && rises(name), &|name| near(name), &|name| near(name) || rises(name)];
    for choice in choices {
        let chosen: BTreeSet<String> = of.iter().filter(|name| choice(name)).cloned().collect();
        if enough <= chosen.len() {
            return chosen;
        }
    }
    of
}

pub(super) fn acknowledgers(scene: &Scene<'_>, primary: &str) -> BTreeSet<String> {
    let others = scene.wish.members.iter().filter(|name| *name != primary);
    best_of(scene, primary, others.cloned().collect())
}

/// Makes up the number of those that acknowledge with members that are away: then writes wait for them.
pub(super) fn filled(
    scene: &Scene<'_>,
    primary: &str,
    acks: u32,
    mut of: BTreeSet<String>,
) -> Confirm {
    let (aside, others): (BTreeSet<String>, BTreeSet<String>) =
        acknowledgers(scene, primary).into_iter().partition(|name| is_aside(scene, name));
    for name in others.into_iter().chain(aside) {
        if of.len() >= usize::try_from(acks).unwrap_or(usize::MAX) {
            break;
        }
        of.insert(name);
    }
    match (acks, scene.wish.acks) {
        (0, 0) => Confirm::default(),
        (0, _) => Confirm::alone(primary),
        (acks, _) => Confirm { acks, of, ..Confirm::default() },
    }
}
