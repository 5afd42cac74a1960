//! The commands that change what is agreed on of a database.

use alloc::collections::BTreeMap;
use alloc::string::String;
use alloc::vec::Vec;
use core::time::Duration;

use super::{Confirm, Recruit, Step, UpkeepPlan};
use crate::agreed::form::coded_enum;
use crate::agreed::limits::Limit;
use crate::agreed::reply::Refusal;
use crate::time::Timestamp;

/// What can happen to a database.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DatabaseCommand {
    /// The first primary makes it, or takes over what lies on its disk.
    Create { database: String, node: String },
    /// It is there, under this identifier of PostgreSQL's.
    Made { database: String, epoch: u64, system: u64 },
    /// The primary of this reign serves, on this timeline.
    Open { database: String, epoch: u64, timeline: u32 },
    /// Ends the reign. `region`: where a person wants the next primary to be.
    Elect { database: String, epoch: u64, why: String, region: Option<String> },
    /// `epoch` is that of the election, or of the reign that a switchover ends. `next` is the rule that the new primary
    /// follows. `losing`: a person accepts that acknowledged writes may be lost.
    Appoint {
        database: String,
        epoch: u64,
        node: String,
        recruits: Vec<Recruit>,
        next: Confirm,
        losing: bool,
    },
    /// A primary whose lease has run out goes on with its reign, which nobody has ended.
    Regain { database: String, epoch: u64 },
    /// Both this rule and the present one count from now on.
    Widen { database: String, epoch: u64, to: Confirm },
    /// What was acknowledged under older rules is also acknowledged under this one, which alone counts from now on.
    Settle { database: String, epoch: u64, to: Confirm },
    /// A person has the primary move. `pause_max` is how long writes may be paused.
    Switch { database: String, epoch: u64, to: String, who: String, pause_max: Duration },
    /// A step of the switchover that began at this index is done.
    Step { database: String, begun: u64, step: Step, evidence: String },
    /// The switchover is given up and everything undone.
    Unwind { database: String, begun: u64, why: String },
    /// A person has the primary move at a time.
    Schedule { database: String, to: String, who: String, pause_max: Duration, when: Timestamp },
    /// The time of the switchover that was asked for at this index has come.
    SwitchScheduled { database: String, epoch: u64, asked: u64 },
    /// It is not begun: a person takes it back, or it could not be.
    Unschedule { database: String, asked: u64, why: String },
    /// A person has members restart, or be made anew.
    Upkeep { database: String, epoch: u64, plan: UpkeepPlan },
    /// It is this member's turn in the upkeep that began at this index.
    Turn { database: String, begun: u64, node: String },
    /// The member whose turn began at this index is back.
    TurnDone { database: String, turn: u64, evidence: String },
    /// All is done, or the rest is given up.
    UpkeepDone { database: String, begun: u64, failed: Option<String> },
    /// Who follows a relay from now on, and which.
    Relay { database: String, epoch: u64, upstreams: BTreeMap<String, String> },
}

coded_enum!(DatabaseCommand, "a command about databases that is not known here", {
    1 = Create { database, node }, 2 = Made { database, epoch, system }, 3 = Open { database, epoch, timeline },
    4 = Elect { database, epoch, why, region }, 5 = Appoint { database, epoch, node, recruits, next, losing },
    6 = Regain { database, epoch }, 7 = Widen { database, epoch, to }, 8 = Settle { database, epoch, to },
    9 = Switch { database, epoch, to, who, pause_max }, 10 = Step { database, begun, step, evidence },
    11 = Unwind { database, begun, why }, 12 = Schedule { database, to, who, pause_max, when },
    13 = SwitchScheduled { database, epoch, asked }, 14 = Unschedule { database, asked, why },
    15 = Upkeep { database, epoch, plan }, 16 = Turn { database, begun, node },
    17 = TurnDone { database, turn, evidence }, 18 = UpkeepDone { database, begun, failed },
    19 = Relay { database, epoch, upstreams },
});

impl DatabaseCommand {
    pub fn database(&self) -> &str {
        match self {
            DatabaseCommand::Create { database, .. }
            | DatabaseCommand::Made { database, .. }
            | DatabaseCommand::Open { database, .. }
            | DatabaseCommand::Elect { database, .. }
            | DatabaseCommand::Appoint { database, .. }
            | DatabaseCommand::Regain { database, .. }
            | DatabaseCommand::Widen { database, .. }
            | DatabaseCommand::Settle { database, .. }
            | DatabaseCommand::Switch { database, .. }
            | DatabaseCommand::Step { database, .. }
            | DatabaseCommand::Unwind { database, .. }
            | DatabaseCommand::Schedule { database, .. }
            | DatabaseCommand::SwitchScheduled { database, .. }
            | DatabaseCommand::Unschedule { database, .. }
            | DatabaseCommand::Upkeep { database, .. }
            | DatabaseCommand::Turn { database, .. }
            | DatabaseCommand::TurnDone { database, .. }
            | DatabaseCommand::UpkeepDone { database, .. }
            | DatabaseCommand::Relay { database, .. } => database,
        }
    }

    pub(in crate::agreed) fn check(&self) -> Result<(), Refusal> {
        Limit::SubjectBytes.name(self.database())?;
        match self {
            DatabaseCommand::Create { node, .. } | DatabaseCommand::Turn { node, .. } => {
                Limit::NameBytes.name(node)
            }
            DatabaseCommand::Elect { why, region, .. } => {
                region.iter().try_for_each(|region| Limit::NameBytes.name(region))?;
                Limit::ReasonBytes.text(why)
            }
            DatabaseCommand::Unwind { why, .. }
            | DatabaseCommand::Unschedule { why, .. }
            | DatabaseCommand::UpkeepDone { failed: Some(why), .. } => Limit::ReasonBytes.text(why),
            DatabaseCommand::Relay { upstreams, .. } => {
                Limit::Nodes.holds(upstreams.len())?;
                let names = upstreams.iter().flat_map(|(node, relay)| [node, relay]);
                names.into_iter().try_for_each(|name| Limit::NameBytes.name(name))
            }
            DatabaseCommand::Appoint { node, recruits, next, .. } => {
                Limit::NameBytes.name(node)?;
                Limit::Nodes.holds(recruits.len())?;
                Limit::Nodes.holds(next.of.len())?;
                recruits.iter().try_for_each(|recruit| Limit::NameBytes.name(&recruit.node))?;
                next.of.iter().try_for_each(|name| Limit::NameBytes.name(name))
            }
            DatabaseCommand::Widen { to, .. } | DatabaseCommand::Settle { to, .. } => {
                Limit::Nodes.holds(to.of.len())?;
                to.of.iter().try_for_each(|name| Limit::NameBytes.name(name))
            }
            DatabaseCommand::Switch { to, who, .. } | DatabaseCommand::Schedule { to, who, .. } => {
                Limit::NameBytes.name(to)?;
                Limit::WhoBytes.name(who)
            }
            DatabaseCommand::Step { evidence, .. } | DatabaseCommand::TurnDone { evidence, .. } => {
                Limit::EvidenceBytes.text(evidence)
            }
            DatabaseCommand::Upkeep { plan, .. } => {
                Limit::Nodes.holds(plan.nodes.len())?;
                plan.nodes.iter().try_for_each(|name| Limit::NameBytes.name(name))?;
                Limit::WhoBytes.name(&plan.who)
            }
            DatabaseCommand::Made { .. }
            | DatabaseCommand::Open { .. }
            | DatabaseCommand::Regain { .. }
            | DatabaseCommand::SwitchScheduled { .. }
            | DatabaseCommand::UpkeepDone { failed: None, .. } => Ok(()),
        }
    }

    /// An epoch is given once, and each names the state that it was meant for; but what people ask for can be over and be asked
    /// for again.
    pub(in crate::agreed) fn repeatable(&self) -> bool {
        !matches!(self, DatabaseCommand::Schedule { .. } | DatabaseCommand::Upkeep { .. })
    }
}
