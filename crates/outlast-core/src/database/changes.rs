//! What has happened to a database between two looks at what is agreed, for the journal.

use alloc::borrow::ToOwned as _;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use crate::agreed::Database;
use crate::event::{DatabaseChange as Change, Fact};

/// The events that lead from one to the other.
pub fn changes(name: &str, before: Option<&Database>, now: &Database) -> Vec<Fact> {
    let mut facts = Vec::new();
    let mut say = |change, text: String| {
        let (database, epoch) = (name.to_owned(), now.epoch());
        facts.push(Fact::Database { database, epoch, change, text });
    };
    let reign = &now.reign;
    let Some(before) = before else {
        say(
            Change::Created,
            format!("node `{}` is its primary, epoch {}", reign.primary, reign.epoch),
        );
        return facts;
    };
    if before.election != now.election
        && let Some(election) = &now.election
    {
        say(
            Change::Elects,
            format!("node `{}` is primary no more: {}", reign.primary, election.why),
        );
    }
    if before.reign.epoch != reign.epoch {
        let from = format!("it has the log up to {}", reign.from);
        say(
            Change::Appointed,
            format!("node `{}` is to be primary, epoch {}: {from}", reign.primary, reign.epoch),
        );
    }
    if reign.open && !(before.reign.open && before.reign.epoch == reign.epoch) {
        let text = format!(
            "node `{}` serves, epoch {}, timeline {}",
            reign.primary, reign.epoch, reign.timeline
        );
        say(Change::Opened, text);
    }
    if before.confirms != now.confirms && now.confirms.len() == 1 {
        say(Change::Rule, format!("a write is acknowledged once it is on {}", now.rule()));
    }
    switchover(before, now, &mut say);
    facts
}

fn switchover(before: &Database, now: &Database, say: &mut impl FnMut(Change, String)) {
    let begun = |database: &Database| database.switchover.as_ref().map(|s| s.begun.index);
    if let Some(switchover) = &now.switchover {
        if begun(before) != begun(now) {
            let (from, to, who) = (&switchover.from, &switchover.to, &switchover.who);
            say(
                Change::SwitchoverBegun,
                format!("from node `{from}` to `{to}`, asked for by {who}"),
            );
        }
        let known = before.switchover.as_ref().filter(|_| begun(before) == begun(now));
        let known = known.map_or(0, |switchover| switchover.done.len());
        for done in switchover.done.iter().skip(known) {
            say(Change::SwitchoverStep, format!("{}: {}", done.step.words(), done.evidence));
        }
    }
    if before.last_switchover != now.last_switchover
        && let Some(end) = &now.last_switchover
    {
        let (from, to) = (&end.switchover.from, &end.switchover.to);
        match &end.failed {
            Some(why) => say(
                Change::SwitchoverFailed,
                format!("from node `{from}` to `{to}` given up: {why}"),
            ),
            None => {
                say(
                    Change::SwitchoverDone,
                    format!("node `{to}` is primary, `{from}` its standby"),
                );
            }
        }
    }
}
