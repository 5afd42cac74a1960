//! `outlast restart` and `outlast reinit`: agreed on, and carried out by whoever leads, whatever becomes of the command.

use std::time::Duration;

use anyhow::{bail, ensure};
use clap::Args;
use outlast::agent::face::status_json::DatabaseStatus;
use outlast::cluster::door::Visitor;
use outlast_core::agreed::{
    Command, Database, DatabaseCommand, TurnDone, Upkeep, UpkeepKind, UpkeepPlan,
};
use outlast_core::units::show_duration;
use serde_json::json;

use super::{
    Format, LOOK_EVERY, WouldWait, confirmed, known, named, status, who, would_wait, write,
};
use crate::agreed::duration;
use crate::cli::AtArgs;
use crate::{Outcome, output, verbs};

pub(crate) const AFTER_HELP_OF_RESTART: &str = "\
Standbys restart first, one after the other, each back and receiving before the next one. The primary comes last: it hands
over to a standby as in `outlast switchover`, and restarts as a standby. With --in-place, and where nobody could take over,
it restarts where it is; clients of the database's ports wait for it, and what is in a transaction is cut. Where a setting
gets lower that no standby may have lower than its primary (max_connections and others), the primary restarts first, in
place.

What is asked for is agreed on: it goes on if this command is ended or its agent dies. `outlast status` shows how far it
is. A restart is no crash, and nobody takes over for it unless PostgreSQL is not back within 10 s.

Examples:
  outlast restart orders                 all members
  outlast restart orders --pending       those whose settings need it, as `outlast status` says
  outlast restart orders --node b        one of them

Exit status:
  0  done, or there was nothing to do
  1  given up; members that had their turn have restarted, the others run as before
  2  it could not be begun, or what became of it is not known";

pub(crate) const AFTER_HELP_OF_REINIT: &str = "\
The standby leaves those that acknowledge writes, then its data directory is kept aside (DATA_DIR.aside-MICROSECONDS; the
two newest stay) and it gets a copy of the primary's. There must be room for both. It is refused for the primary, and where
writes would have to wait without this copy: with two data nodes set `acks_min = 0` with `outlast apply` for that time. A
failover ends it before it has begun.

What is asked for is agreed on: it goes on if this command is ended.

Examples:
  outlast reinit orders --node b         says what it does, and asks

Exit status:
  0  done
  1  given up, or nothing was changed
  2  it could not be begun, or what became of it is not known";

#[derive(Debug, Args)]
pub(crate) struct RestartArgs {
    /// The NAME of [postgres.NAME].
    database: String,
    /// Only the member on this node; may be given more than once.
    #[arg(long = "node", value_name = "NODE")]
    nodes: Vec<String>,
    /// Only members whose settings need a restart.
    #[arg(long)]
    pending: bool,
    /// The primary does not hand over first.
    #[arg(long)]
    in_place: bool,
    /// Wait for the end no longer than this; it goes on all the same.
    #[arg(long, value_name = "TIME", default_value = "1h", value_parser = duration)]
    wait: Duration,
    #[arg(long, value_enum, default_value_t = Format::Text)]
    format: Format,
    #[command(flatten)]
    at: AtArgs,
}

#[derive(Debug, Args)]
pub(crate) struct ReinitArgs {
    /// The NAME of [postgres.NAME].
    database: String,
    /// The node whose member is made anew.
    #[arg(long, value_name = "NODE")]
    node: String,
    /// Do not ask.
    #[arg(long)]
    yes: bool,
    /// Wait for the end no longer than this; it goes on all the same.
    #[arg(long, value_name = "TIME", default_value = "12h", value_parser = duration)]
    wait: Duration,
    #[arg(long, value_enum, default_value_t = Format::Text)]
    format: Format,
    #[command(flatten)]
    at: AtArgs,
}

/// What both commands wait for, and how they show it.
struct Follow<'a> {
    database: &'a str,
    begun: u64,
    wait: Duration,
    format: Format,
}

pub(crate) fn restart(args: &RestartArgs) -> anyhow::Result<Outcome> {
    verbs::block_on(async {
        let mut visitor = Visitor::connect(&verbs::data_dir(&args.at)?).await?;
        let now = known(&mut visitor, true, u64::MAX).await?;
        let database = named(&now, &args.database)?;
        let seen = seen(&args.at, &args.database).await?;
        for node in &args.nodes {
            is_member(&seen, &args.database, node)?;
        }
        let members = seen
            .members
            .iter()
            .filter(|(node, _)| args.nodes.is_empty() || args.nodes.contains(node));
        let needs = members.clone().any(|(_, member)| !member.needs_restart.is_empty());
        if args.pending && !needs {
            output::print(&match args.format {
                Format::Json => format!("{}\n", json!({ "done": true, "why": null })),
                Format::Text => "no member needs a restart\n".to_owned(),
            })?;
            return Ok(Outcome::Fine);
        }
        is_free(database)?;
        let plan = UpkeepPlan {
            kind: UpkeepKind::Restart,
            nodes: members.map(|(node, _)| node.clone()).collect(),
            pending: args.pending,
            in_place: args.in_place,
            who: who(),
        };
        let (name, wait, format) = (args.database.as_str(), args.wait, args.format);
        let begun = begin(&mut visitor, name, database, plan).await?;
        follow(&mut visitor, &Follow { database: name, begun, wait, format }).await
    })
}

pub(crate) fn reinit(args: &ReinitArgs) -> anyhow::Result<Outcome> {
    verbs::block_on(async {
        let mut visitor = Visitor::connect(&verbs::data_dir(&args.at)?).await?;
        let now = known(&mut visitor, true, u64::MAX).await?;
        let database = named(&now, &args.database)?;
        let seen = seen(&args.at, &args.database).await?;
        let (name, node) = (&args.database, &args.node);
        is_member(&seen, name, node)?;
        is_free(database)?;
        let primary = &database.reign.primary;
        ensure!(
            node != primary,
            "node `{node}` is the primary, whose data is the database: switch over first"
        );
        if let Some(why) = would_wait(database, &seen, node) {
            bail!(needed(&why, name));
        }
        let question = format!(
            "postgres.{name}: the data of node `{node}` is set aside, and it gets a copy of that of node `{primary}`. Do it?"
        );
        if !args.yes && !confirmed(&question)? {
            output::complain("nothing was changed\n");
            return Ok(Outcome::Mistakes);
        }
        let plan = UpkeepPlan {
            kind: UpkeepKind::Remake,
            nodes: [node.clone()].into(),
            pending: false,
            in_place: false,
            who: who(),
        };
        let begun = begin(&mut visitor, name, database, plan).await?;
        let (wait, format) = (args.wait, args.format);
        follow(&mut visitor, &Follow { database: name, begun, wait, format }).await
    })
}

/// Why this copy is not made anew, and what a person can do about it where it is the only other one.
pub(super) fn needed(why: &WouldWait, name: &str) -> String {
    let WouldWait { node, left, .. } = why;
    format!(
        "the copy on node `{node}` is needed: {why}. Bring another standby back first, or let writes go on with fewer for \
         that time: set `acks_min = {left}` in [postgres.{name}] with `outlast apply`, give this command again, and set \
         the old value again once it is done"
    )
}

async fn seen(at: &AtArgs, name: &str) -> anyhow::Result<DatabaseStatus> {
    let mut status = status(at).await?;
    let seen = status.postgres.remove(name);
    seen.ok_or_else(|| anyhow::anyhow!("the topology of this node has no [postgres.{name}]"))
}

fn is_member(seen: &DatabaseStatus, name: &str, node: &str) -> anyhow::Result<()> {
    ensure!(seen.members.contains_key(node), "node `{node}` is no member of postgres.{name}");
    Ok(())
}

/// Refuses what would have to wait for something else.
fn is_free(database: &Database) -> anyhow::Result<()> {
    if let Some(upkeep) = &database.upkeep {
        bail!("a {} is under way already: see `outlast status`", upkeep.plan.kind.word());
    }
    if let Some(election) = &database.election {
        bail!("there is no primary now: {}", election.why);
    }
    ensure!(database.reign.open, "node `{}` is about to become primary", database.reign.primary);
    Ok(())
}

async fn begin(
    visitor: &mut Visitor,
    name: &str,
    database: &Database,
    plan: UpkeepPlan,
) -> anyhow::Result<u64> {
    let (database, epoch) = (name.to_owned(), database.reign.epoch);
    let command = DatabaseCommand::Upkeep { database, epoch, plan };
    Ok(write(visitor, Command::Database(command)).await?.0)
}

/// Shows each turn as it ends.
async fn follow(visitor: &mut Visitor, what: &Follow<'_>) -> anyhow::Result<Outcome> {
    let started = std::time::Instant::now();
    let (mut shown, mut moved) = (0, None);
    while started.elapsed() < what.wait {
        let now = known(visitor, false, u64::MAX).await?;
        let database = named(&now, what.database)?;
        let ended = database.last_upkeep.as_ref();
        let ended = ended.filter(|end| end.upkeep.begun.index == what.begun);
        let under_way = database.upkeep.as_ref().filter(|u| u.begun.index == what.begun);
        let Some(upkeep) = ended.map(|end| &end.upkeep).or(under_way) else {
            // This node has not applied it yet.
            tokio::time::sleep(LOOK_EVERY).await;
            continue;
        };
        if let Some(switchover) = &database.switchover
            && moved != Some(switchover.begun.index)
        {
            moved = Some(switchover.begun.index);
            let text = format!("node `{}` hands over to `{}`", switchover.from, switchover.to);
            say(what, started.elapsed(), &switchover.from, &text)?;
        }
        for done in upkeep.done.iter().skip(shown) {
            say(what, started.elapsed(), &done.node, &turn_words(upkeep, done))?;
        }
        shown = upkeep.done.len();
        if let Some(end) = ended {
            return say_end(what, end.failed.as_deref(), started.elapsed());
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
    bail!("it is still under way after {}: see `outlast status`", show_duration(what.wait))
}

fn turn_words(upkeep: &Upkeep, done: &TurnDone) -> String {
    let word = match upkeep.plan.kind {
        UpkeepKind::Restart => "has restarted",
        UpkeepKind::Remake => "was made anew",
    };
    format!("node `{}` {word}: {}", done.node, done.evidence)
}

fn say(what: &Follow<'_>, after: Duration, node: &str, text: &str) -> anyhow::Result<()> {
    let after = after.as_secs_f64();
    output::print(&match what.format {
        Format::Json => {
            format!("{}\n", json!({ "node": node, "text": text, "after_seconds": after }))
        }
        Format::Text => format!("{after:>7.2} s  {}\n", output::plain(text)),
    })
}

fn say_end(what: &Follow<'_>, failed: Option<&str>, after: Duration) -> anyhow::Result<Outcome> {
    let took = after.as_secs_f64();
    output::print(&match (what.format, failed) {
        (Format::Json, _) => {
            let done = failed.is_none();
            format!("{}\n", json!({ "done": done, "why": failed, "took_seconds": took }))
        }
        (Format::Text, None) => format!("done in {took:.2} s\n"),
        (Format::Text, Some(why)) => {
            format!("given up after {took:.2} s: {}\n", output::plain(why))
        }
    })?;
    Ok(if failed.is_none() { Outcome::Fine } else { Outcome::Mistakes })
}
