//! Members that restart, or are made anew, because people want it: one after the other.

use alloc::borrow::ToOwned as _;
use alloc::collections::BTreeSet;
use alloc::format;
use alloc::string::String;
use core::time::Duration;

use super::switchover::could_switch;
use super::{Lead, Scene, Seen};
use crate::agreed::{Database, DatabaseCommand, TURNS_MAX, Turn, Upkeep, UpkeepKind};
use crate::database::{MemberSight, MemberState};
use crate::time::Instant;

/// How long a turn may take.
const TURN_MAX: Duration = Duration::from_secs(120);

/// How long one that is to be made anew may copy nothing: it may wait for a primary, or have tried often enough.
const IDLE_MAX: Duration = Duration::from_secs(45);

/// The same for one that is to be made anew and counts for acknowledgements again.
const NEEDED_MAX: Duration = Duration::from_secs(20);

/// How long the next turn may be waited for.
const WAIT_MAX: Duration = Duration::from_secs(30);

/// How long a primary may close for if it hands over for a restart.
const PAUSE_MAX: Duration = Duration::from_secs(5);

/// What comes next.
enum Next {
    Turn(String),
    /// The primary hands over to this member first.
    Switch(String),
    Wait(String),
    GiveUp(String),
    Done,
}

impl Lead {
    /// The next step of a restart, or of a member that is made anew.
    pub(super) fn keep_up(
        &mut self,
        now: Instant,
        scene: &Scene<'_>,
        agreed: &Database,
    ) -> Option<DatabaseCommand> {
        let upkeep = agreed.upkeep.as_ref()?;
        if agreed.switchover.is_some() || !agreed.reign.open {
            return None;
        }
        let (database, begun) = (scene.name.to_owned(), upkeep.begun.index);
        if let Some(turn) = &upkeep.turn {
            return self.judge_turn(now, scene, agreed, turn);
        }
        let next = match upkeep.plan.kind {
            UpkeepKind::Restart => next_restart(scene, agreed, upkeep),
            UpkeepKind::Remake => next_remake(scene, agreed, upkeep),
        };
        let waits = matches!(next, Next::Wait(_));
        let waited = self.lasts(now, &format!("upkeep {begun} waits"), waits);
        let failed = match next {
            Next::Turn(node) => return Some(DatabaseCommand::Turn { database, begun, node }),
            Next::Switch(to) => {
                let (epoch, who) = (agreed.reign.epoch, format!("{}, to restart", upkeep.plan.who));
                let pause_max = PAUSE_MAX;
                return Some(DatabaseCommand::Switch { database, epoch, to, who, pause_max });
            }
            Next::Wait(why) if waited < WAIT_MAX => {
                self.stuck.get_or_insert(format!("{} waits: {why}", upkeep.plan.kind.word()));
                return None;
            }
            Next::Wait(why) | Next::GiveUp(why) => Some(why),
            Next::Done => None,
        };
        Some(DatabaseCommand::UpkeepDone { database, begun, failed })
    }

    fn judge_turn(
        &mut self,
        now: Instant,
        scene: &Scene<'_>,
        agreed: &Database,
        turn: &Turn,
    ) -> Option<DatabaseCommand> {
        let (database, index) = (scene.name.to_owned(), turn.at.index);
        let sight = scene.members.get(&turn.node).and_then(Seen::fresh);
        let copies = sight.is_some_and(|sight| sight.state == MemberState::Cloning);
        let lasts = self.lasts(now, &format!("turn {index}"), !copies);
        // After a failover it may count again, and then it keeps what it has.
        let needed = agreed.is_in_remake(&turn.node) && agreed.counts(&turn.node);
        let most = match agreed.is_in_remake(&turn.node) {
            true if needed => NEEDED_MAX,
            true => IDLE_MAX,
            false => TURN_MAX,
        };
        match is_back(agreed, turn, sight) {
            Ok(evidence) => Some(DatabaseCommand::TurnDone { database, turn: index, evidence }),
            Err(why) if most < lasts => {
                let begun = agreed.upkeep.as_ref()?.begun.index;
                let seconds = most.as_secs();
                let failed = Some(format!("node `{}` {why} after {seconds} s", turn.node));
                Some(DatabaseCommand::UpkeepDone { database, begun, failed })
            }
            Err(_) => None,
        }
    }
}

/// What shows that the member has done what it had to, and is what it was.
fn is_back(agreed: &Database, turn: &Turn, sight: Option<&MemberSight>) -> Result<String, String> {
    let sight = sight.ok_or_else(|| "is silent".to_owned())?;
    let primary = &agreed.reign.primary;
    if sight.turned != Some(turn.at.index) {
        return Err(format!("is {}", sight.state.word()));
    }
    if turn.node == *primary {
        let serves = sight.serves == Some(agreed.reign.epoch);
        return if serves { Ok("it serves".to_owned()) } else { Err("does not serve".to_owned()) };
    }
    let upstream = agreed.upstream(&turn.node);
    let follows = sight.follows.as_deref().filter(|f| *f == primary || *f == upstream);
    match follows.filter(|_| sight.state == MemberState::Standby) {
        Some(follows) => Ok(format!("it follows `{follows}`")),
        None => Err(format!("does not follow `{upstream}`")),
    }
}

/// Standbys first: what they must not have lower than their primary rises there first. Where it gets lower, the primary is
/// first.
fn next_restart(scene: &Scene<'_>, agreed: &Database, upkeep: &Upkeep) -> Next {
    let plan = &upkeep.plan;
    let primary = &agreed.reign.primary;
    let Some(ruler) = scene.members.get(primary).and_then(Seen::fresh) else {
        return Next::Wait(format!("node `{primary}` is silent"));
    };
    let mut left = BTreeSet::new();
    for node in plan.nodes.iter().filter(|node| scene.wish.members.contains(*node)) {
        let turns = upkeep.done.iter().filter(|done| done.node == *node).count();
        let sight = scene.members.get(node).and_then(Seen::fresh);
        if plan.pending && turns < TURNS_MAX {
            let Some(sight) = sight else {
                return Next::Wait(format!("node `{node}` is silent"));
            };
            if !sight.needs_restart.is_empty() {
                left.insert(node);
            }
        } else if turns == 0 && !plan.pending {
            left.insert(node);
        }
    }
    if ruler.lowers && left.contains(primary) {
        return Next::Turn(primary.clone());
    }
    match left.iter().find(|node| **node != primary) {
        Some(node) => match may_leave(scene, agreed, ruler, node) {
            Ok(()) => Next::Turn((*node).clone()),
            Err(why) => Next::Wait(why),
        },
        None if !left.contains(primary) => Next::Done,
        None if plan.in_place => Next::Turn(primary.clone()),
        None => move_first(scene, agreed, upkeep),
    }
}

/// Whether writes go on while this standby is away, if they could at all.
fn may_leave(
    scene: &Scene<'_>,
    agreed: &Database,
    ruler: &MemberSight,
    node: &str,
) -> Result<(), String> {
    let acks = agreed.rule().acks.min(scene.wish.acks_min);
    let acks = usize::try_from(acks).unwrap_or(usize::MAX);
    let others = scene.wish.members.len().saturating_sub(2);
    let present = ruler.streams_to.iter().filter(|name| *name != node).count();
    if present < acks.min(others) {
        return Err("another standby is away, and writes would wait".to_owned());
    }
    Ok(())
}

fn move_first(scene: &Scene<'_>, agreed: &Database, upkeep: &Upkeep) -> Next {
    let primary = &agreed.reign.primary;
    let tried = agreed.last_switchover.as_ref();
    let tried = tried.filter(|end| upkeep.begun.index < end.switchover.begun.index);
    if let Some(why) = tried.and_then(|end| end.failed.clone()) {
        return Next::GiveUp(format!("node `{primary}` could not hand over: {why}"));
    }
    let others = scene.wish.members.iter().filter(|node| *node != primary);
    let near = others.filter(|node| scene.wish.are_near(node, primary));
    let fit = near.filter(|node| could_switch(scene, primary, node).is_ok());
    let best = fit.max_by_key(|node| {
        let reaches = scene.members.get(*node).and_then(Seen::fresh).map(|sight| sight.reaches);
        (scene.wish.priority(node), reaches)
    });
    // Where nobody can take over, it restarts where it is.
    best.map_or_else(|| Next::Turn(primary.clone()), |node| Next::Switch(node.clone()))
}

fn next_remake(scene: &Scene<'_>, agreed: &Database, upkeep: &Upkeep) -> Next {
    let left = upkeep.plan.nodes.iter().find(|node| {
        scene.wish.members.contains(*node) && !upkeep.done.iter().any(|done| done.node == **node)
    });
    match left {
        None => Next::Done,
        Some(node) if *node == agreed.reign.primary => {
            Next::GiveUp(format!("node `{node}` has become primary"))
        }
        // Its copy may be all that is left.
        Some(_) if !is_copied_from(scene, agreed) => {
            Next::Wait(format!("node `{}` serves no copy now", agreed.reign.primary))
        }
        Some(node) if agreed.counts(node) => {
            Next::Wait(format!("writes would have to wait without node `{node}`"))
        }
        Some(node) => Next::Turn(node.clone()),
    }
}

fn is_copied_from(scene: &Scene<'_>, agreed: &Database) -> bool {
    let primary = scene.members.get(&agreed.reign.primary).and_then(Seen::fresh);
    primary.is_some_and(|sight| sight.is_source && sight.serves == Some(agreed.reign.epoch))
}
