//! A switchover that people have asked for at a time.

use alloc::borrow::ToOwned as _;
use alloc::format;
use alloc::string::String;

use super::switchover::could_switch;
use super::{Lead, Scene};
use crate::agreed::{Database, DatabaseCommand};

/// What cannot be begun within this time is not begun: nobody expects it later.
const LATE_MAX_MS: i64 = 60_000;

impl Lead {
    /// Begins it at its time, or gives it up.
    pub(super) fn begin_scheduled(
        &mut self,
        scene: &Scene<'_>,
        agreed: &Database,
    ) -> Option<DatabaseCommand> {
        let scheduled = agreed.scheduled.as_ref()?;
        let late = scene.wall.0.saturating_sub(scheduled.when.0);
        if late < 0 {
            return None;
        }
        let (database, asked) = (scene.name.to_owned(), scheduled.asked.index);
        let why = match could_begin(scene, agreed, &scheduled.to) {
            // Whoever leads now was not there at its time, or did not know it.
            Ok(()) if late <= LATE_MAX_MS => {
                let epoch = agreed.reign.epoch;
                return Some(DatabaseCommand::SwitchScheduled { database, epoch, asked });
            }
            Ok(()) => "nobody could begin it at its time".to_owned(),
            Err(why) => why,
        };
        if late <= LATE_MAX_MS && scheduled.to != agreed.reign.primary {
            self.stuck.get_or_insert(format!("the scheduled switchover waits: {why}"));
            return None;
        }
        Some(DatabaseCommand::Unschedule { database, asked, why })
    }
}

fn could_begin(scene: &Scene<'_>, agreed: &Database, to: &str) -> Result<(), String> {
    if to == agreed.reign.primary {
        return Err(format!("node `{to}` is the primary already"));
    }
    if agreed.switchover.is_some() {
        return Err("another switchover is under way".to_owned());
    }
    if !agreed.reign.open {
        return Err(format!("node `{}` is about to become primary", agreed.reign.primary));
    }
    if agreed.upkeep.as_ref().is_some_and(|upkeep| upkeep.turn.is_some()) {
        return Err("a member restarts or is made anew".to_owned());
    }
    could_switch(scene, &agreed.reign.primary, to)
}
