//! A planned change of primary: eight steps, of which each can be undone until the fifth.

use alloc::string::String;
use alloc::vec::Vec;
use core::time::Duration;

use super::Database;
use crate::agreed::Stamp;
use crate::agreed::form::{coded_enum, coded_struct};
use crate::agreed::reply::Refusal;

/// A step of a planned switchover, in their order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Step {
    /// The standby has caught up.
    CatchUp,
    /// The primary accepts no more writes.
    Close,
    /// The last of its log is on the standby.
    LastLog,
    /// The standby is fit to be primary.
    Examine,
    /// The point of no return: the standby is promoted.
    Promote,
    /// Clients are led to it.
    Route,
    /// A write goes through.
    Verify,
    /// The old primary is a standby.
    Demote,
}

coded_enum!(Step, "a step that is not known here", {
    1 = CatchUp, 2 = Close, 3 = LastLog, 4 = Examine, 5 = Promote, 6 = Route, 7 = Verify, 8 = Demote,
});

impl Step {
    pub const ALL: [Step; 8] = [
        Step::CatchUp,
        Step::Close,
        Step::LastLog,
        Step::Examine,
        Step::Promote,
        Step::Route,
        Step::Verify,
        Step::Demote,
    ];

    /// From here on there is no way back.
    pub const PIVOT: Step = Step::Promote;

    fn next(self) -> Option<Step> {
        Step::ALL.iter().copied().find(|step| self < *step)
    }

    pub fn words(self) -> &'static str {
        match self {
            Step::CatchUp => "check that the standby has caught up",
            Step::Close => "make the primary read-only",
            Step::LastLog => "wait until the last of its log is on the standby",
            Step::Examine => "check the standby's health",
            Step::Promote => "promote the standby",
            Step::Route => "point clients at it",
            Step::Verify => "verify that a write goes through",
            Step::Demote => "make the old primary a standby",
        }
    }
}

/// A planned change of primary.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Switchover {
    pub from: String,
    pub to: String,
    pub who: String,
    pub pause_max: Duration,
    pub begun: Stamp,
    /// What is being done.
    pub step: Step,
    pub done: Vec<StepDone>,
}

coded_struct!(Switchover { from, to, who, pause_max, begun, step, done });

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StepDone {
    pub step: Step,
    pub evidence: String,
    pub at: Stamp,
}

coded_struct!(StepDone { step, evidence, at });

/// How the last switchover ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SwitchoverEnd {
    pub switchover: Switchover,
    /// Why it was given up; `None`: it was carried out.
    pub failed: Option<String>,
    pub at: Stamp,
}

coded_struct!(SwitchoverEnd { switchover, failed, at });

impl Database {
    /// Whether the primary is to accept no writes because it is about to hand over.
    pub fn is_closed(&self) -> bool {
        self.switchover.as_ref().is_some_and(|switchover| {
            (Step::Close..=Step::PIVOT).contains(&switchover.step)
                && switchover.from == self.reign.primary
        })
    }

    pub(super) fn switching(&self, begun: u64) -> Result<&Switchover, Refusal> {
        let switchover = self.switchover.as_ref().filter(|s| s.begun.index == begun);
        switchover.ok_or(Refusal::NoProcedure)
    }

    /// Whether the primary that is to go still reigns.
    pub(super) fn reigns_from(&self) -> bool {
        self.switchover.as_ref().is_some_and(|s| s.from == self.reign.primary)
    }

    pub(super) fn step_done(&mut self, at: Stamp, evidence: &str) {
        let Some(mut switchover) = self.switchover.take() else { return };
        let evidence = String::from(evidence);
        switchover.done.push(StepDone { step: switchover.step, evidence, at });
        match switchover.step.next() {
            Some(next) => {
                switchover.step = next;
                self.switchover = Some(switchover);
            }
            None => {
                self.has_handed_over(at, &switchover);
                self.end_switchover(at, switchover, None);
            }
        }
    }

    pub(super) fn end_switchover(
        &mut self,
        at: Stamp,
        switchover: Switchover,
        failed: Option<String>,
    ) {
        self.last_switchover = Some(SwitchoverEnd { switchover, failed, at });
    }
}
