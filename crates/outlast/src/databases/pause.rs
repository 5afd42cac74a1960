//! `outlast pause` and `outlast resume`: of failover in the whole cluster, or of the members on one node.

use std::time::Duration;

use anyhow::{bail, ensure};
use clap::Args;
use outlast::cluster::door::Visitor;
use outlast_core::agreed::{Command, NoticeCommand, NoticeKind, node_subject};
use outlast_core::units::show_duration;

use super::{Known, LOOK_EVERY, known, status, who, would_wait, write};
use crate::agreed::duration;
use crate::cli::AtArgs;
use crate::{Outcome, output, verbs};

pub(crate) const AFTER_HELP_OF_PAUSE: &str = "\
Without --node no failover happens by itself, in the whole cluster. Switchovers and `outlast failover` still work.

With --node the members on that node are counted on for nothing, so that a person can work there: they are not made
primary, no write waits for them, they get no readers, and their agent neither starts PostgreSQL nor rewinds or clones it.
What runs goes on until you stop it. It is refused while a member there is primary (switch over first), and while writes
would have to wait without it; --force pauses it then all the same, and writes wait once it is down.

A pause ends by itself, by the leader's clock; a new leader begins to count anew.

Examples:
  outlast pause --for 2h --why \"new switch\"
  outlast pause --node b --for 30m --why \"more memory\"
  outlast resume --node b";

#[derive(Debug, Args)]
pub(crate) struct PauseArgs {
    /// Only the members of databases on this node.
    #[arg(long, value_name = "NODE")]
    node: Option<String>,
    /// Also if writes have to wait without that node.
    #[arg(long, requires = "node")]
    force: bool,
    /// It ends by itself after this long.
    #[arg(long = "for", value_name = "TIME", default_value = "1h", value_parser = duration)]
    lasts: Duration,
    /// For those who wonder.
    #[arg(long, default_value = "")]
    why: String,
    #[command(flatten)]
    at: AtArgs,
}

#[derive(Debug, Args)]
pub(crate) struct ResumeArgs {
    /// Only the pause of this node.
    #[arg(long, value_name = "NODE")]
    node: Option<String>,
    #[command(flatten)]
    at: AtArgs,
}

/// How long the rule for acknowledgements may take to go on without a node.
const LEAVES_MAX: Duration = Duration::from_secs(20);

pub(crate) fn pause(args: &PauseArgs) -> anyhow::Result<Outcome> {
    verbs::block_on(async {
        let mut visitor = Visitor::connect(&verbs::data_dir(&args.at)?).await?;
        match &args.node {
            Some(node) => pause_node(args, node, &mut visitor).await,
            None => {
                post(args, NoticeKind::Pause, String::new(), &mut visitor).await?;
                output::print(&format!(
                    "no failover happens by itself for {}, or until `outlast resume`\n",
                    show_duration(args.lasts)
                ))?;
                Ok(Outcome::Fine)
            }
        }
    })
}

async fn post(
    args: &PauseArgs,
    kind: NoticeKind,
    subject: String,
    visitor: &mut Visitor,
) -> anyhow::Result<()> {
    let (who, why, lasts) = (who(), args.why.clone(), args.lasts);
    let command = NoticeCommand::Post { kind, subject, who, why, lasts };
    write(visitor, Command::Notice(command)).await.map(drop)
}

async fn pause_node(
    args: &PauseArgs,
    node: &str,
    visitor: &mut Visitor,
) -> anyhow::Result<Outcome> {
    let now = known(visitor, true, u64::MAX).await?;
    let subject = node_subject(node);
    ensure!(now.names.values().any(|name| name == node), "there is no node `{node}`");
    ensure!(pauses(&now, Some(node)).is_empty(), "node `{node}` is paused already");
    let seen = status(&args.at).await?;
    for (name, database) in &now.all {
        let Some(seen) = seen.postgres.get(name).filter(|seen| seen.members.contains_key(node))
        else {
            continue;
        };
        ensure!(
            database.reign.primary != node || database.election.is_some(),
            "node `{node}` is the primary of postgres.{name}: switch over first"
        );
        if let Some(why) = would_wait(database, seen, node).filter(|_| !args.force) {
            bail!("postgres.{name}: {why}; --force pauses it all the same");
        }
    }
    post(args, NoticeKind::Maintenance, subject, visitor).await?;
    let left = leaves(node, visitor).await?;
    let lasts = show_duration(args.lasts);
    output::print(&match left.as_slice() {
        [] => format!(
            "node `{node}` is counted on for nothing for {lasts}, or until `outlast resume --node {node}`\n"
        ),
        names => format!(
            "node `{node}` is paused for {lasts}, but writes of {} wait for it: there are too few others\n",
            names.join(", ")
        ),
    })?;
    Ok(Outcome::Fine)
}

/// Waits until no write waits for the node; names the databases where that does not come.
async fn leaves(node: &str, visitor: &mut Visitor) -> anyhow::Result<Vec<String>> {
    let started = std::time::Instant::now();
    loop {
        let now = known(visitor, false, u64::MAX).await?;
        let counts = now.all.iter().filter(|(_, database)| database.counts(node));
        let counts: Vec<String> = counts.map(|(name, _)| format!("postgres.{name}")).collect();
        if counts.is_empty() || LEAVES_MAX < started.elapsed() {
            return Ok(counts);
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// The pauses of this node, or of the whole cluster.
fn pauses(known: &Known, node: Option<&str>) -> Vec<u64> {
    let wanted = |kind, subject: &str| match node {
        Some(node) => kind == NoticeKind::Maintenance && subject == node_subject(node),
        None => kind == NoticeKind::Pause,
    };
    let up = known.notices.iter().filter(|(_, notice)| wanted(notice.kind, &notice.subject));
    up.map(|(id, _)| *id).collect()
}

pub(crate) fn resume(args: &ResumeArgs) -> anyhow::Result<Outcome> {
    verbs::block_on(async {
        let mut visitor = Visitor::connect(&verbs::data_dir(&args.at)?).await?;
        let now = known(&mut visitor, true, u64::MAX).await?;
        let pauses = pauses(&now, args.node.as_deref());
        if pauses.is_empty() {
            output::print("nothing is paused\n")?;
        }
        for id in pauses {
            write(&mut visitor, Command::Notice(NoticeCommand::Lift { id, who: who() })).await?;
            output::print(&match &args.node {
                Some(node) => format!("node `{node}` is counted on again\n"),
                None => "failover happens by itself again\n".to_owned(),
            })?;
        }
        Ok(Outcome::Fine)
    })
}
