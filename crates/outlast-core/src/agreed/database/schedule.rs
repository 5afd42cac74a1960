//! A switchover that is to begin at a time.

use alloc::string::String;
use core::time::Duration;

use super::Database;
use crate::agreed::Stamp;
use crate::agreed::form::coded_struct;
use crate::agreed::reply::{Refusal, Reply};
use crate::time::Timestamp;

/// A switchover that waits for its time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Scheduled {
    pub to: String,
    pub who: String,
    pub pause_max: Duration,
    /// By the wall clock of whoever leads then.
    pub when: Timestamp,
    pub asked: Stamp,
}

coded_struct!(Scheduled { to, who, pause_max, when, asked });

/// What became of the last one that was not begun.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unscheduled {
    pub scheduled: Scheduled,
    pub why: String,
    pub at: Stamp,
}

coded_struct!(Unscheduled { scheduled, why, at });

impl Database {
    pub(super) fn schedule(&mut self, scheduled: Scheduled) -> Result<Reply, Refusal> {
        if let Some(known) = &self.scheduled {
            return Err(Refusal::Busy { id: known.asked.index });
        }
        if scheduled.when <= scheduled.asked.wall {
            return Err(Refusal::Duration);
        }
        let id = scheduled.asked.index;
        self.scheduled = Some(scheduled);
        Ok(Reply::Begun { id })
    }

    /// Takes it out, because it is begun or given up.
    pub(super) fn take_scheduled(&mut self, asked: u64) -> Result<Scheduled, Refusal> {
        let scheduled = self.scheduled.take_if(|known| known.asked.index == asked);
        scheduled.ok_or(Refusal::NoProcedure)
    }
}
