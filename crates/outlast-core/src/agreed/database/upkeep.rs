//! What people have members do, one after the other: restart PostgreSQL, or be made anew from the primary.

use alloc::collections::BTreeSet;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use super::{Database, Switchover};
use crate::agreed::Stamp;
use crate::agreed::form::{coded_enum, coded_struct};
use crate::agreed::reply::{Refusal, Reply};

/// How often a member restarts in one upkeep.
pub(crate) const TURNS_MAX: usize = 2;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UpkeepKind {
    /// PostgreSQL ends and starts again.
    Restart,
    /// The member's data is set aside, and it gets a copy of the primary's.
    Remake,
}

coded_enum!(UpkeepKind, "a kind of upkeep that is not known here", { 1 = Restart, 2 = Remake });

impl UpkeepKind {
    pub fn word(self) -> &'static str {
        match self {
            UpkeepKind::Restart => "restart",
            UpkeepKind::Remake => "reinit",
        }
    }
}

/// What people want done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UpkeepPlan {
    pub kind: UpkeepKind,
    pub nodes: BTreeSet<String>,
    /// Only members whose settings need a restart.
    pub pending: bool,
    /// The primary restarts where it is, and does not hand over first.
    pub in_place: bool,
    pub who: String,
}

coded_struct!(UpkeepPlan { kind, nodes, pending, in_place, who });

/// The same under way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Upkeep {
    pub plan: UpkeepPlan,
    pub begun: Stamp,
    /// Whose turn it is.
    pub turn: Option<Turn>,
    pub done: Vec<TurnDone>,
}

coded_struct!(Upkeep { plan, begun, turn, done });

/// A member whose turn it is; its index is the turn's name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Turn {
    pub node: String,
    pub at: Stamp,
}

coded_struct!(Turn { node, at });

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TurnDone {
    pub node: String,
    pub evidence: String,
    pub at: Stamp,
}

coded_struct!(TurnDone { node, evidence, at });

/// How the last upkeep ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UpkeepEnd {
    pub upkeep: Upkeep,
    /// Why it was given up; `None`: it was carried out.
    pub failed: Option<String>,
    pub at: Stamp,
}

coded_struct!(UpkeepEnd { upkeep, failed, at });

impl Database {
    /// What this member is to do now.
    pub fn turn_of(&self, node: &str) -> Option<(UpkeepKind, u64)> {
        let upkeep = self.upkeep.as_ref()?;
        let turn = upkeep.turn.as_ref().filter(|turn| turn.node == node)?;
        Some((upkeep.plan.kind, turn.at.index))
    }

    /// Whether this member is to lose its copy: then nothing may rest on that.
    pub fn is_remade(&self, node: &str) -> bool {
        self.upkeep.as_ref().is_some_and(|upkeep| {
            upkeep.plan.kind == UpkeepKind::Remake && upkeep.plan.nodes.contains(node)
        })
    }

    /// Whether it is this member's turn to lose its copy.
    pub fn is_in_remake(&self, node: &str) -> bool {
        self.turn_of(node).is_some_and(|(kind, _)| kind == UpkeepKind::Remake)
    }

    /// Whether an acknowledged write may be on this member and the primary only.
    pub fn counts(&self, node: &str) -> bool {
        self.confirms.iter().any(|confirm| confirm.of.contains(node))
    }

    pub(super) fn begin_upkeep(&mut self, at: Stamp, plan: &UpkeepPlan) -> Result<Reply, Refusal> {
        if let Some(upkeep) = &self.upkeep {
            return Err(Refusal::Busy { id: upkeep.begun.index });
        }
        let remake = plan.kind == UpkeepKind::Remake;
        if !self.reign.open || remake && plan.nodes.contains(&self.reign.primary) {
            return Err(Refusal::OutOfTurn);
        }
        self.upkeep = Some(Upkeep { plan: plan.clone(), begun: at, turn: None, done: Vec::new() });
        Ok(Reply::Begun { id: at.index })
    }

    /// The reign ends: nobody is made anew now, whatever its copy may be good for.
    pub(super) fn keep_what_there_is(&mut self, at: Stamp, why: &str) {
        let remake = |upkeep: &mut Upkeep| upkeep.plan.kind == UpkeepKind::Remake;
        if let Some(upkeep) = self.upkeep.take_if(remake) {
            let failed = Some(format!("failed over: {why}"));
            self.last_upkeep = Some(UpkeepEnd { upkeep, failed, at });
        }
    }

    fn keeping_up(&mut self, begun: u64) -> Result<&mut Upkeep, Refusal> {
        let upkeep = self.upkeep.as_mut().filter(|upkeep| upkeep.begun.index == begun);
        upkeep.ok_or(Refusal::NoProcedure)
    }

    pub(super) fn begin_turn(
        &mut self,
        at: Stamp,
        begun: u64,
        node: &str,
    ) -> Result<Reply, Refusal> {
        let needed = self.counts(node) || self.reign.primary == node;
        let is_free = self.election.is_none() && self.switchover.is_none();
        let upkeep = self.keeping_up(begun)?;
        let remake = upkeep.plan.kind == UpkeepKind::Remake;
        // A second restart can be needed, where the first made another member able to go lower.
        let most = if remake { 1 } else { TURNS_MAX };
        let had = upkeep.done.iter().filter(|done| done.node == node).count();
        let known = upkeep.plan.nodes.contains(node) && had < most;
        if !is_free || !known || upkeep.turn.is_some() || remake && needed {
            return Err(Refusal::OutOfTurn);
        }
        upkeep.turn = Some(Turn { node: String::from(node), at });
        Ok(Reply::Done)
    }

    pub(super) fn end_turn(
        &mut self,
        at: Stamp,
        turn: u64,
        evidence: &str,
    ) -> Result<Reply, Refusal> {
        let upkeep = self.upkeep.as_mut().ok_or(Refusal::NoProcedure)?;
        let ended = upkeep.turn.take_if(|now| now.at.index == turn).ok_or(Refusal::OutOfTurn)?;
        upkeep.done.push(TurnDone { node: ended.node, evidence: String::from(evidence), at });
        Ok(Reply::Done)
    }

    /// The old primary of a switchover was started anew: it does not have to restart once more.
    pub(super) fn has_handed_over(&mut self, at: Stamp, switchover: &Switchover) {
        let restart = self.upkeep.as_mut().filter(|upkeep| {
            upkeep.plan.kind == UpkeepKind::Restart && upkeep.plan.nodes.contains(&switchover.from)
        });
        if let Some(upkeep) = restart {
            let evidence = format!("it has handed over to `{}`", switchover.to);
            upkeep.done.push(TurnDone { node: switchover.from.clone(), evidence, at });
        }
    }

    pub(super) fn end_upkeep(
        &mut self,
        at: Stamp,
        begun: u64,
        failed: Option<&String>,
    ) -> Result<Reply, Refusal> {
        self.keeping_up(begun)?;
        let ended = self.upkeep.take().ok_or(Refusal::NoProcedure)?;
        self.last_upkeep = Some(UpkeepEnd { upkeep: ended, failed: failed.cloned(), at });
        Ok(Reply::Done)
    }
}
