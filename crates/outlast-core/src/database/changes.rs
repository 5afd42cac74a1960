//! What has happened to a database between two looks at what is agreed, for the journal.

use alloc::borrow::ToOwned as _;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use crate::agreed::{Database, Scheduled, Unscheduled};
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
    schedule(before, now, &mut say);
    upkeep(before, now, &mut say);
    facts
}

fn schedule(before: &Database, now: &Database, say: &mut impl FnMut(Change, String)) {
    if before.scheduled != now.scheduled
        && let Some(Scheduled { to, who, when, .. }) = &now.scheduled
    {
        let text = format!("to node `{to}` at {when}, asked for by {who}");
        say(Change::SwitchoverScheduled, text);
    }
    if before.last_unscheduled != now.last_unscheduled
        && let Some(Unscheduled { scheduled, why, .. }) = &now.last_unscheduled
    {
        let Scheduled { to, when, .. } = scheduled;
        say(Change::SwitchoverGivenUp, format!("to node `{to}` at {when}: {why}"));
    }
}

fn upkeep(before: &Database, now: &Database, say: &mut impl FnMut(Change, String)) {
    let begun = |database: &Database| database.upkeep.as_ref().map(|upkeep| upkeep.begun.index);
    if let Some(upkeep) = now.upkeep.as_ref().filter(|_| begun(before) != begun(now)) {
        let names: Vec<&str> = upkeep.plan.nodes.iter().map(String::as_str).collect();
        let (word, who) = (upkeep.plan.kind.word(), &upkeep.plan.who);
        say(Change::UpkeepBegun, format!("{word} of {}, asked for by {who}", names.join(", ")));
    }
    let ended = now.last_upkeep.as_ref().filter(|_| before.last_upkeep != now.last_upkeep);
    let shown = ended.map(|end| &end.upkeep).or(now.upkeep.as_ref());
    let known = before.upkeep.as_ref().map_or(0, |upkeep| upkeep.done.len());
    for done in shown.iter().flat_map(|upkeep| upkeep.done.iter().skip(known)) {
        let word = shown.map_or("", |upkeep| upkeep.plan.kind.word());
        say(Change::UpkeepTurn, format!("{word} of node `{}`: {}", done.node, done.evidence));
    }
    if let Some(end) = ended {
        let word = end.upkeep.plan.kind.word();
        match &end.failed {
            Some(why) => say(Change::UpkeepFailed, format!("{word} given up: {why}")),
            None => say(Change::UpkeepDone, format!("{word} done")),
        }
    }
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
