//! The steps of a planned change of primary.

use alloc::borrow::ToOwned as _;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::time::Duration;

use super::{Lead, Scene, Seen, never, unfit};
use crate::agreed::{
    Database, DatabaseCommand, Position, Recruit, Switchover, SwitchoverStep as Step,
};
use crate::database::{MemberSight, MemberState};
use crate::time::Instant;

/// A switchover waits this long for a standby that lacks more than it may.
const CATCH_UP_MAX: Duration = Duration::from_secs(60);
const CATCH_UP_BYTES: u64 = 1 << 20;

/// All but the old primary is as it was wanted: that may be down for good, and is waited for no longer than this.
const DEMOTE_MAX: Duration = Duration::from_secs(60);

impl Lead {
    /// The next step of a planned switchover.
    pub(super) fn switch(
        &mut self,
        now: Instant,
        scene: &Scene<'_>,
        agreed: &Database,
    ) -> Option<DatabaseCommand> {
        let switchover = agreed.switchover.as_ref()?;
        let name = format!("switchover {} {:?}", switchover.begun.index, switchover.step);
        let lasts = self.lasts(now, &name, true);
        let paused = (Step::Close..=Step::PIVOT).contains(&switchover.step);
        let paused = self.lasts(now, &format!("pause {}", switchover.begun.index), paused);
        let still = switchover.from == agreed.reign.primary;
        let (database, begun) = (scene.name.to_owned(), switchover.begun.index);
        let overdue = if switchover.step == Step::CatchUp {
            CATCH_UP_MAX < lasts
        } else {
            switchover.pause_max < paused
        };
        let lost = never(scene, &switchover.to).is_some() || agreed.is_remade(&switchover.to);
        let overdue = overdue || lost;
        match judge_step(scene, agreed, switchover) {
            Ok(_) if switchover.step == Step::PIVOT && still => {
                self.appoint_planned(scene, agreed, switchover)
            }
            Ok(evidence) => {
                Some(DatabaseCommand::Step { database, begun, step: switchover.step, evidence })
            }
            Err(why) if still && overdue => {
                let why = format!("{}: {why}", switchover.step.words());
                Some(DatabaseCommand::Unwind { database, begun, why })
            }
            Err(why) if switchover.step == Step::Demote && DEMOTE_MAX < lasts => {
                let seconds = DEMOTE_MAX.as_secs();
                let evidence = format!("not waited for any longer than {seconds} s: {why}");
                Some(DatabaseCommand::Step { database, begun, step: Step::Demote, evidence })
            }
            Err(why) => {
                self.stuck = Some(why);
                None
            }
        }
    }

    pub(super) fn appoint_planned(
        &self,
        scene: &Scene<'_>,
        agreed: &Database,
        switchover: &Switchover,
    ) -> Option<DatabaseCommand> {
        // It has all of the old primary's log; who reaches as far as it does has all of it, too.
        let end = scene.members.get(&switchover.to).and_then(Seen::fresh)?.reaches;
        let reached = scene.members.iter().filter_map(|(name, seen)| {
            // What the standby has came from the old primary, be it written after that was closed.
            let has = |sight: &&MemberSight| *name == switchover.from || sight.reaches >= end;
            let sight = seen.fresh().filter(has)?;
            let same = sight.lineage == Some(agreed.reign.epoch);
            same.then(|| Recruit { node: name.clone(), reaches: end })
        });
        let recruits: Vec<Recruit> = reached.collect();
        let next = self.next_rule(scene, &switchover.to, &recruits);
        Some(DatabaseCommand::Appoint {
            database: scene.name.to_owned(),
            epoch: agreed.reign.epoch,
            node: switchover.to.clone(),
            recruits,
            next,
            losing: false,
        })
    }
}

fn end_of(scene: &Scene<'_>, node: &str) -> Position {
    let sight = scene.members.get(node).and_then(Seen::fresh);
    sight.map(|sight| sight.reaches).unwrap_or_default()
}

/// What shows that a step is done, or what is missing.
fn judge_step(
    scene: &Scene<'_>,
    agreed: &Database,
    switchover: &Switchover,
) -> Result<String, String> {
    let sight = |node: &str| {
        let sight = scene.members.get(node).and_then(Seen::fresh);
        sight.ok_or_else(|| format!("node `{node}` is silent"))
    };
    let (from, to) = (sight(&switchover.from), sight(&switchover.to));
    let epoch = agreed.reign.epoch;
    match switchover.step {
        Step::CatchUp => {
            let (from, to) = (from?, to?);
            could_switch(scene, &switchover.from, &switchover.to)?;
            let lag = from.reaches.lsn.saturating_sub(to.reaches.lsn);
            if lag > CATCH_UP_BYTES {
                return Err(format!("node `{}` lacks {lag} bytes", switchover.to));
            }
            Ok(format!("lacks {lag} bytes"))
        }
        Step::Close => {
            let closed = from?.closed == Some(switchover.begun.index);
            let end = end_of(scene, &switchover.from);
            if closed { Ok(format!("ends at {end}")) } else { Err("open transactions".to_owned()) }
        }
        Step::LastLog => {
            let from = from?;
            if from.closed != Some(switchover.begun.index) {
                return Err(format!("node `{}` is not known to be closed", switchover.from));
            }
            let end = from.reaches;
            for name in &agreed.rule().of {
                let reaches = scene.members.get(name).and_then(Seen::fresh).map(|s| s.reaches);
                if reaches.is_some_and(|reaches| reaches < end) {
                    return Err(format!("node `{name}` has not received all of it"));
                }
            }
            let to = to?;
            if to.system != agreed.system || to.lineage != Some(epoch) || to.reaches < end {
                return Err(format!("node `{}` has not received all of it", switchover.to));
            }
            Ok(token(agreed, end))
        }
        Step::Examine => {
            could_switch(scene, &switchover.from, &switchover.to).map(|()| "fit".to_owned())
        }
        Step::Promote if switchover.from == agreed.reign.primary => {
            let to = to?;
            // It may have died or lost its data since.
            match to.state == MemberState::Standby && to.lineage == Some(epoch) {
                true => Ok(String::new()),
                false => Err(format!("node `{}` is {}", switchover.to, to.state.word())),
            }
        }
        Step::Promote => match to?.serves == Some(epoch) {
            true => {
                Ok(format!("epoch {epoch}, timeline {}", end_of(scene, &switchover.to).timeline))
            }
            false => Err(format!("node `{}` is being promoted", switchover.to)),
        },
        Step::Route => match agreed.reign.open {
            true => Ok("every node has been told".to_owned()),
            false => Err("it does not serve yet".to_owned()),
        },
        Step::Verify => match to?.verified == Some(epoch) {
            true => Ok("a write was acknowledged".to_owned()),
            false => Err("no write has been acknowledged yet".to_owned()),
        },
        Step::Demote => {
            let from = from?;
            let follows = from.follows.as_ref() == Some(&switchover.to);
            match from.state == MemberState::Standby && follows {
                true => Ok(format!("follows {}", switchover.to)),
                false => Err(format!("node `{}` is {}", switchover.from, from.state.word())),
            }
        }
    }
}

/// The demotion token: by it, who has received all of the closed primary's log can be told from everybody else.
fn token(agreed: &Database, end: Position) -> String {
    format!("has {end} of system {}", agreed.system.unwrap_or_default())
}

/// Whether the one that is to become primary could.
pub(super) fn could_switch(scene: &Scene<'_>, from: &str, to: &str) -> Result<(), String> {
    let why = why_not_switch(scene, from, to);
    why.map_or(Ok(()), |why| Err(format!("node `{to}`: {why}")))
}

/// Why this member could not become primary in the place of that one.
pub(super) fn why_not_switch(scene: &Scene<'_>, from: &str, to: &str) -> Option<String> {
    if let Some(why) = unfit(scene, to) {
        return Some(why);
    }
    if scene.agreed.is_some_and(|agreed| agreed.is_remade(to)) {
        return Some("it is about to be made anew".to_owned());
    }
    let sight = scene.members.get(to).and_then(Seen::fresh)?;
    if sight.state != MemberState::Standby {
        return Some(format!("it is {}", sight.state.word()));
    }
    let relay = scene.agreed.map_or(from, |agreed| agreed.upstream(to));
    let follows = sight.follows.as_deref().is_some_and(|f| f == from || f == relay);
    (!follows).then(|| format!("it does not receive from `{from}`"))
}
