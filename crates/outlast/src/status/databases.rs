//! The part of `outlast status` that is about databases.

use outlast::agent::face::status_json::{DatabaseStatus, MemberStatus, PausedStatus};

use super::{Cell, aligned};
use crate::output::{Ink, Paint, plain};

/// One database: who is primary, how writes are acknowledged, and its members.
pub(super) fn block(name: &str, database: &DatabaseStatus, ink: Ink) -> String {
    let (paint, state) = match (&database.primary, database.open) {
        (Some(primary), true) => (Paint::Green, format!("primary on {}", plain(primary))),
        (Some(primary), false) => (Paint::Yellow, format!("{} becomes primary", plain(primary))),
        (None, _) => (Paint::Red, "no primary".to_owned()),
    };
    let mut text = format!(
        "{}  {}, epoch {}, timeline {}\n",
        ink.on(Paint::Bold, &format!("postgres.{}", plain(name))),
        ink.on(paint, &state),
        database.epoch,
        database.timeline
    );
    let changes = if database.rule_changes { ", about to change" } else { "" };
    if let Some(region) = &database.active_region {
        text += &format!("  the active region is {}\n", plain(region));
    }
    text +=
        &format!("  a write is acknowledged by {}{changes}\n", plain(&database.acknowledged_by));
    if let Some(switchover) = &database.switchover {
        text += &format!("  switchover {}\n", plain(switchover));
    }
    if let Some(scheduled) = &database.scheduled {
        let (to, at, who) = (plain(&scheduled.to), plain(&scheduled.at), plain(&scheduled.who));
        text += &format!("  switchover to node `{to}` at {at}, asked for by {who}\n");
    }
    if let Some(upkeep) = &database.upkeep {
        text += &format!("  {}\n", plain(upkeep));
    }
    if let Some(why) = &database.why {
        text += &format!("  {}\n", ink.on(Paint::Red, &plain(why)));
    }
    let mut heads = vec![
        "node",
        "role",
        "state",
        "for",
        "sync",
        "timeline",
        "lacks",
        "behind",
        "receives from",
        "why",
    ];
    let regions = database.members.values().any(|member| member.region.is_some());
    if regions {
        heads.insert(1, "region");
    }
    let heads = heads.into_iter().map(|head| Cell::plain(ink.on(Paint::Faint, head), head));
    let mut rows = vec![heads.collect()];
    rows.extend(database.members.iter().map(|(node, member)| {
        let mut row = row(node, member);
        if regions {
            row.insert(1, Cell::left(&plain(member.region.as_deref().unwrap_or("-"))));
        }
        row
    }));
    text + &aligned(&rows)
}

fn row(node: &str, member: &MemberStatus) -> Vec<Cell> {
    let paused = member.paused.as_ref().map(PausedStatus::words);
    let why = [paused, member.trouble.clone().or(member.unfit.clone())];
    let why = why.into_iter().flatten().collect::<Vec<_>>().join("; ");
    let behind = member.lag_seconds.map_or("-".to_owned(), |lag| format!("{lag:.1} s"));
    let lacks = member.lag_bytes.map_or("-".to_owned(), |bytes| format!("{bytes} B"));
    vec![
        Cell::left(&plain(node)),
        Cell::left(&member.role),
        Cell::left(&member.state),
        Cell::left(&member.lasts()),
        Cell::left(if member.sync { "yes" } else { "-" }),
        Cell::right(member.timeline.to_string()),
        Cell::right(lacks),
        Cell::right(behind),
        Cell::left(&plain(member.follows.as_deref().unwrap_or("-"))),
        Cell::left(&plain(&why)),
    ]
}
