//! Procedures of several steps that outlive whoever carries them out, such as a planned switchover.
//!
//! A procedure is a table of steps and what became of each. What comes next follows from the table alone ([`next`]), so
//! that a new coordinator goes on where the old one stopped. One step is the pivot: a failure before it unwinds what was
//! done, last step first; from the pivot on everything is repeated until it works, because there is no way back.
//!
//! ```text
//!   Pending ──Start──▶ Started ──Done──▶ Done
//!                       ▲   └──Failed──▶ Failed          unwinding:  Started, Done, Failed
//!                       └───────────────────┘ from the pivot on          └──UndoStart──▶ Undoing ──Undone──▶ Undone
//!                                                                             ▲             └──UndoFailed──▶ stuck
//!                                                                             └──a person asks again──────────┘
//! ```

use alloc::boxed::Box;
use alloc::collections::BTreeMap;
use alloc::format;
use alloc::string::String;

use super::Stamp;
#[cfg(test)]
use super::bugs::{Bug, instead};
use super::form::{coded_enum, coded_struct};
use super::history::History;
use super::lease::Leases;
use super::limits::{ENDED_KEPT, Limit};
use super::reply::{Refusal, Reply};

/// A step as it is planned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    pub name: String,
    /// There is something to take back.
    pub undo: bool,
}

coded_struct!(Plan { name, undo });

/// What can happen to procedures. Every command of a coordinator carries the epoch of its lease and is refused without.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ProcedureCommand {
    /// `coordinator` is the role whose holder carries it out; `pivot` is the first step without a way back, or the number
    /// of steps if each has one.
    Begin {
        kind: String,
        subject: String,
        coordinator: String,
        epoch: u64,
        pivot: u32,
        plan: Box<[Plan]>,
    },
    Step {
        id: u64,
        epoch: u64,
        step: u32,
        progress: Progress,
    },
    /// A deadline has passed or a person has changed their mind.
    Unwind {
        id: u64,
        epoch: u64,
        why: String,
    },
    /// A person takes it on themselves: nothing more is done or undone.
    Abandon {
        id: u64,
        who: String,
        why: String,
    },
}

coded_enum!(ProcedureCommand, "a command about procedures that is not known here", {
    1 = Begin { kind, subject, coordinator, epoch, pivot, plan }, 2 = Step { id, epoch, step, progress },
    3 = Unwind { id, epoch, why }, 4 = Abandon { id, who, why },
});

/// What a coordinator says about a step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Progress {
    Start,
    Done { evidence: String },
    Failed { why: String },
    UndoStart,
    Undone,
    UndoFailed { why: String },
}

coded_enum!(Progress, "a progress of a step that is not known here", {
    1 = Start, 2 = Done { evidence }, 3 = Failed { why }, 4 = UndoStart, 5 = Undone, 6 = UndoFailed { why },
});

impl ProcedureCommand {
    pub(super) fn check(&self) -> Result<(), Refusal> {
        match self {
            ProcedureCommand::Begin { kind, subject, coordinator, pivot, plan, .. } => {
                Limit::RoleBytes.name(kind)?;
                Limit::SubjectBytes.name(subject)?;
                Limit::RoleBytes.name(coordinator)?;
                Limit::Steps.holds(plan.len())?;
                if plan.is_empty() || *pivot as usize > plan.len() {
                    return Err(Refusal::BadPivot);
                }
                plan.iter().try_for_each(|step| Limit::NameBytes.name(&step.name))
            }
            ProcedureCommand::Step { progress, .. } => match progress {
                Progress::Done { evidence } => Limit::EvidenceBytes.text(evidence),
                Progress::Failed { why } | Progress::UndoFailed { why } => {
                    Limit::ReasonBytes.text(why)
                }
                Progress::Start | Progress::UndoStart | Progress::Undone => Ok(()),
            },
            ProcedureCommand::Unwind { why, .. } => Limit::ReasonBytes.text(why),
            ProcedureCommand::Abandon { who, why, .. } => {
                Limit::WhoBytes.name(who)?;
                Limit::ReasonBytes.text(why)
            }
        }
    }

    pub(super) fn repeatable(&self) -> bool {
        match self {
            ProcedureCommand::Begin { .. } | ProcedureCommand::Step { .. } => false,
            ProcedureCommand::Unwind { .. } | ProcedureCommand::Abandon { .. } => true,
        }
    }
}

/// What became of a step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StepState {
    Pending,
    /// It may have taken effect or not: whoever carries on looks, or does it again.
    Started {
        attempt: u32,
    },
    Done {
        evidence: String,
    },
    /// It may have taken effect in part.
    Failed {
        attempt: u32,
        why: String,
    },
    Undoing,
    Undone,
    UndoFailed {
        why: String,
    },
}

coded_enum!(StepState, "a state of a step that is not known here", {
    1 = Pending, 2 = Started { attempt }, 3 = Done { evidence }, 4 = Failed { attempt, why }, 5 = Undoing,
    6 = Undone, 7 = UndoFailed { why },
});

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    pub name: String,
    pub undo: bool,
    pub state: StepState,
}

coded_struct!(Step { name, undo, state });

/// How a procedure ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum How {
    Finished,
    /// Everything that was done is undone.
    Unwound,
    /// A person ended it as it was.
    Abandoned,
}

coded_enum!(How, "an end of a procedure that is not known here", {
    1 = Finished, 2 = Unwound, 3 = Abandoned,
});

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct End {
    pub how: How,
    pub at: Stamp,
}

coded_struct!(End { how, at });

/// A procedure in progress, or one that ended lately.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Procedure {
    pub kind: String,
    pub subject: String,
    pub coordinator: String,
    /// The epoch of the last coordinator that was obeyed.
    pub epoch: u64,
    pub pivot: u32,
    pub steps: Box<[Step]>,
    pub begun: Stamp,
    /// Why it is being unwound.
    pub unwinding: Option<String>,
    pub ended: Option<End>,
}

coded_struct!(Procedure {
    kind,
    subject,
    coordinator,
    epoch,
    pivot,
    steps,
    begun,
    unwinding,
    ended
});

/// What a coordinator has to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum What {
    Do {
        step: u32,
    },
    Undo {
        step: u32,
    },
    /// Undoing this step failed; a person must look, and may have it tried again.
    Stuck {
        step: u32,
    },
    Ended {
        how: How,
    },
}

/// Decides from the table alone what comes next.
pub fn next(procedure: &Procedure) -> What {
    if let Some(End { how, .. }) = procedure.ended {
        return What::Ended { how };
    }
    let numbered = || (0_u32..).zip(&procedure.steps);
    if procedure.unwinding.is_none() {
        let open = numbered().find(|(_, step)| !matches!(step.state, StepState::Done { .. }));
        return open.map_or(What::Ended { how: How::Finished }, |(step, _)| What::Do { step });
    }
    let undoing =
        numbered().filter(|(_, step)| step.undo).filter_map(|(step, of)| match of.state {
            StepState::Pending | StepState::Undone => None,
            StepState::UndoFailed { .. } => Some(What::Stuck { step }),
            #[cfg(test)]
            StepState::Failed { .. } if instead(Bug::FailedIsNotUndone, false, true) => None,
            StepState::Started { .. }
            | StepState::Done { .. }
            | StepState::Failed { .. }
            | StepState::Undoing => Some(What::Undo { step }),
        });
    undoing.last().unwrap_or(What::Ended { how: How::Unwound })
}

impl Procedure {
    fn past_pivot(&self) -> bool {
        let after = self.steps.get(self.pivot as usize..).unwrap_or_default();
        after.iter().any(|step| step.state != StepState::Pending)
    }

    fn advance(&mut self, number: u32, progress: &Progress) -> Result<Reply, Refusal> {
        let turn = next(self);
        let forward = self.unwinding.is_none();
        let step = self.steps.get_mut(number as usize).ok_or(Refusal::OutOfTurn)?;
        let state = match (progress, &step.state) {
            (Progress::Start, before) if turn == (What::Do { step: number }) => {
                let attempts = match before {
                    StepState::Started { attempt } | StepState::Failed { attempt, .. } => *attempt,
                    StepState::Pending
                    | StepState::Done { .. }
                    | StepState::Undoing
                    | StepState::Undone
                    | StepState::UndoFailed { .. } => 0,
                };
                StepState::Started { attempt: attempts.saturating_add(1) }
            }
            (Progress::Done { evidence }, StepState::Started { .. }) if forward => {
                StepState::Done { evidence: evidence.clone() }
            }
            (Progress::Failed { why }, StepState::Started { attempt }) if forward => {
                if number < self.pivot {
                    self.unwinding = Some(why.clone());
                }
                StepState::Failed { attempt: *attempt, why: why.clone() }
            }
            (Progress::UndoStart, _)
                if turn == (What::Undo { step: number })
                    || turn == (What::Stuck { step: number }) =>
            {
                StepState::Undoing
            }
            (Progress::Undone, StepState::Undoing) => StepState::Undone,
            (Progress::UndoFailed { why }, StepState::Undoing) => {
                StepState::UndoFailed { why: why.clone() }
            }
            (
                Progress::Start
                | Progress::Done { .. }
                | Progress::Failed { .. }
                | Progress::UndoStart
                | Progress::Undone
                | Progress::UndoFailed { .. },
                _,
            ) => return Err(Refusal::OutOfTurn),
        };
        let reply = match state {
            StepState::Started { attempt } => Reply::Started { attempt },
            StepState::Pending
            | StepState::Done { .. }
            | StepState::Failed { .. }
            | StepState::Undoing
            | StepState::Undone
            | StepState::UndoFailed { .. } => Reply::Done,
        };
        step.state = state;
        Ok(reply)
    }
}

/// The procedures in progress and the last ones that ended, by id.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Procedures {
    known: BTreeMap<u64, Procedure>,
}

coded_struct!(Procedures { known });

impl Procedures {
    pub fn known(&self) -> &BTreeMap<u64, Procedure> {
        &self.known
    }

    pub fn in_progress(&self) -> impl Iterator<Item = (u64, &Procedure)> {
        self.known.iter().filter(|(_, p)| p.ended.is_none()).map(|(&id, p)| (id, p))
    }

    pub(super) fn apply(
        &mut self,
        at: Stamp,
        command: &ProcedureCommand,
        leases: &Leases,
        history: &mut History,
    ) -> Result<Reply, Refusal> {
        match command {
            ProcedureCommand::Begin { kind, subject, coordinator, epoch, pivot, plan } => {
                leases.admits(coordinator, *epoch)?;
                if let Some((id, _)) = self.in_progress().find(|(_, p)| p.subject == *subject) {
                    return Err(Refusal::Busy { id });
                }
                Limit::Procedures.holds(self.in_progress().count() + 1)?;
                history.add(at, 0, &format!("{kind} of {subject} begins"));
                let steps = plan.iter().map(|plan| Step {
                    name: plan.name.clone(),
                    undo: plan.undo,
                    state: StepState::Pending,
                });
                let procedure = Procedure {
                    kind: kind.clone(),
                    subject: subject.clone(),
                    coordinator: coordinator.clone(),
                    epoch: *epoch,
                    pivot: *pivot,
                    steps: steps.collect(),
                    begun: at,
                    unwinding: None,
                    ended: None,
                };
                self.known.insert(at.index, procedure);
                Ok(Reply::Begun { id: at.index })
            }
            ProcedureCommand::Step { id, epoch, step, progress } => {
                let procedure = self.led_by(*id, *epoch, leases)?;
                let reply = procedure.advance(*step, progress)?;
                procedure.epoch = *epoch;
                self.end_if_over(at, *id, history);
                Ok(reply)
            }
            ProcedureCommand::Unwind { id, epoch, why } => {
                let procedure = self.led_by(*id, *epoch, leases)?;
                if procedure.past_pivot() {
                    return Err(Refusal::PastPivot);
                }
                procedure.epoch = *epoch;
                procedure.unwinding.get_or_insert_with(|| why.clone());
                self.end_if_over(at, *id, history);
                Ok(Reply::Done)
            }
            ProcedureCommand::Abandon { id, who, why } => {
                let procedure = self.open(*id)?;
                procedure.ended = Some(End { how: How::Abandoned, at });
                let (kind, subject) = (&procedure.kind, &procedure.subject);
                history.add(at, 0, &format!("{kind} of {subject} is abandoned by {who}: {why}"));
                self.forget_oldest();
                Ok(Reply::Done)
            }
        }
    }

    fn open(&mut self, id: u64) -> Result<&mut Procedure, Refusal> {
        let procedure = self.known.get_mut(&id).ok_or(Refusal::NoProcedure)?;
        if procedure.ended.is_some() { Err(Refusal::ProcedureOver) } else { Ok(procedure) }
    }

    fn led_by(&mut self, id: u64, epoch: u64, leases: &Leases) -> Result<&mut Procedure, Refusal> {
        let procedure = self.open(id)?;
        let admitted = leases.admits(&procedure.coordinator, epoch);
        #[cfg(test)]
        let admitted = instead(Bug::StaleCoordinator, admitted, Ok(()));
        admitted?;
        Ok(procedure)
    }

    fn end_if_over(&mut self, at: Stamp, id: u64, history: &mut History) {
        let Some(procedure) = self.known.get_mut(&id) else { return };
        let word = match next(procedure) {
            What::Do { .. } | What::Undo { .. } => return,
            What::Stuck { .. } => "is stuck, a person must look",
            What::Ended { how } => {
                procedure.ended = Some(End { how, at });
                match how {
                    How::Finished => "is finished",
                    How::Unwound => "is unwound",
                    How::Abandoned => "is abandoned",
                }
            }
        };
        let because = procedure.unwinding.as_deref().map(|why| format!(": {why}"));
        let (kind, subject) = (&procedure.kind, &procedure.subject);
        history.add(at, 0, &format!("{kind} of {subject} {word}{}", because.unwrap_or_default()));
        self.forget_oldest();
    }

    fn forget_oldest(&mut self) {
        let ended = self.known.iter().filter_map(|(&id, p)| p.ended.map(|end| (end.at.index, id)));
        if ended.clone().count() > ENDED_KEPT
            && let Some((_, id)) = ended.min()
        {
            self.known.remove(&id);
        }
    }
}
