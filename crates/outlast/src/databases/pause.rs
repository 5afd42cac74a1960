//! `outlast pause` and `outlast resume`: of failover in the whole cluster, or of the members on one node.

use std::time::Duration;

use anyhow::{bail, ensure};
use clap::Args;
use outlast::agent::face::status_json::PausedStatus;
use outlast::cluster::door::Visitor;
use outlast_core::agreed::{
    Command, NOTICE_MAX, Notice, NoticeCommand, NoticeKind, node_of_subject, node_subject,
};
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
    /// It ends by itself after this long, 366d at most.
    #[arg(long = "for", value_name = "TIME", default_value = "1h", value_parser = length)]
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
                let now = known(&mut visitor, true, u64::MAX).await?;
                if let Some((_, pause)) = pauses(&now, None).first() {
                    bail!("failover is {} already; `outlast resume` comes first", words(pause));
                }
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
    is_node(&now, node)?;
    if let Some((_, pause)) = pauses(&now, Some(node)).first() {
        let words = words(pause);
        bail!("node `{node}` is {words} already; `outlast resume --node {node}` comes first");
    }
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

/// How long a pause may be told to last.
fn length(text: &str) -> Result<Duration, String> {
    let lasts = duration(text)?;
    if lasts.is_zero() || NOTICE_MAX < lasts {
        let most = show_duration(NOTICE_MAX);
        return Err(format!(
            "a pause lasts for more than 0s and for {most} at most, like 30m or 2h"
        ));
    }
    Ok(lasts)
}

/// The pauses of this node, or of the whole cluster.
fn pauses<'a>(known: &'a Known, node: Option<&str>) -> Vec<(u64, &'a Notice)> {
    let wanted = |notice: &Notice| match node {
        Some(node) => {
            notice.kind == NoticeKind::Maintenance && notice.subject == node_subject(node)
        }
        None => notice.kind == NoticeKind::Pause,
    };
    let up = known.notices.iter().filter(|(_, notice)| wanted(notice));
    up.map(|(id, notice)| (*id, notice)).collect()
}

/// `paused by ann until 2026-12-01T02:00:00Z: new switch`.
fn words(pause: &Notice) -> String {
    output::plain(&PausedStatus::of(pause).words())
}

fn is_node(known: &Known, node: &str) -> anyhow::Result<()> {
    let names: Vec<String> = known.names.values().map(|name| format!("`{name}`")).collect();
    let is_one = known.names.values().any(|name| name == node);
    ensure!(is_one, "there is no node `{node}`; there is {}", names.join(", "));
    Ok(())
}

/// What is paused although that is not what was asked about.
fn rest(known: &Known, node: Option<&str>) -> Vec<String> {
    let mut rest = Vec::new();
    let all = known.notices.values();
    for (kind, notice) in all.map(|notice| (notice.kind, notice)) {
        match (kind, node, node_of_subject(&notice.subject)) {
            (NoticeKind::Pause, Some(_), _) => {
                rest.push(format!("failover is {}: `outlast resume`", words(notice)));
            }
            (NoticeKind::Maintenance, _, Some(other)) if Some(other) != node => rest.push(format!(
                "node `{other}` is {}: `outlast resume --node {other}`",
                words(notice)
            )),
            (NoticeKind::Pause | NoticeKind::Maintenance | NoticeKind::Silence, _, _) => {}
        }
    }
    rest
}

/// What is said where there is nothing to end.
fn nothing(known: &Known, node: Option<&str>) -> String {
    let subject = match node {
        Some(node) => format!("node `{node}` is not paused"),
        None => "failover is not paused".to_owned(),
    };
    match rest(known, node).as_slice() {
        [] => format!("{subject}, nor is anything else\n"),
        rest => format!("{subject}, but there is:\n  {}\n", rest.join("\n  ")),
    }
}

pub(crate) fn resume(args: &ResumeArgs) -> anyhow::Result<Outcome> {
    verbs::block_on(async {
        let mut visitor = Visitor::connect(&verbs::data_dir(&args.at)?).await?;
        let now = known(&mut visitor, true, u64::MAX).await?;
        let pauses = pauses(&now, args.node.as_deref());
        if pauses.is_empty() {
            // The pause of a node that was removed meanwhile can be ended, too.
            args.node.as_ref().map_or(Ok(()), |node| is_node(&now, node))?;
            output::print(&nothing(&now, args.node.as_deref()))?;
        }
        for (id, _) in pauses {
            write(&mut visitor, Command::Notice(NoticeCommand::Lift { id, who: who() })).await?;
            output::print(&match &args.node {
                Some(node) => format!("node `{node}` is counted on again\n"),
                None => "failover happens by itself again\n".to_owned(),
            })?;
        }
        Ok(Outcome::Fine)
    })
}

#[cfg(test)]
mod tests {
    use outlast_core::agreed::Stamp;
    use outlast_core::time::Timestamp;

    use super::*;

    fn notice(kind: NoticeKind, subject: &str) -> Notice {
        Notice {
            kind,
            subject: subject.to_owned(),
            who: "ann".to_owned(),
            why: "new switch".to_owned(),
            lasts: Duration::from_secs(3600),
            posted: Stamp { index: 1, wall: Timestamp(0) },
        }
    }

    fn knows(notices: &[(NoticeKind, &str)]) -> Known {
        let notices = notices.iter().map(|(kind, subject)| notice(*kind, subject));
        Known {
            all: [].into(),
            notices: (7..).zip(notices).collect(),
            history: [].into(),
            names: [(1, "a".to_owned()), (2, "b".to_owned())].into(),
        }
    }

    #[test]
    fn who_ends_what_is_not_paused_hears_what_is() {
        let pause = (NoticeKind::Pause, "");
        let node = (NoticeKind::Maintenance, "node.b");
        let until = "by ann until 1970-01-01T01:00:00.000Z: new switch";
        let check = |notices: &[(NoticeKind, &str)], node, said: &str| {
            assert_eq!(nothing(&knows(notices), node), said);
        };
        check(&[], None, "failover is not paused, nor is anything else\n");
        check(&[], Some("b"), "node `b` is not paused, nor is anything else\n");
        let said = format!(
            "failover is not paused, but there is:\n  node `b` is paused {until}: `outlast resume --node b`\n"
        );
        check(&[node], None, &said);
        let said = format!(
            "node `b` is not paused, but there is:\n  failover is paused {until}: `outlast resume`\n"
        );
        check(&[pause], Some("b"), &said);
    }

    #[test]
    fn pauses_of_nodes_are_not_those_of_the_cluster() {
        let known = knows(&[(NoticeKind::Maintenance, "node.b"), (NoticeKind::Pause, "")]);
        let ids = |node| pauses(&known, node).iter().map(|(id, _)| *id).collect::<Vec<_>>();
        assert_eq!((ids(None), ids(Some("b")), ids(Some("a"))), (vec![8], vec![7], vec![]));
    }

    #[test]
    fn an_unknown_node_is_answered_with_the_known_ones() {
        let error = is_node(&knows(&[]), "nosuch").unwrap_err().to_string();
        assert_eq!(error, "there is no node `nosuch`; there is `a`, `b`");
        is_node(&knows(&[]), "b").unwrap();
    }

    #[test]
    fn a_pause_is_as_long_as_the_nodes_agree_on() {
        assert_eq!(length("366d"), Ok(NOTICE_MAX));
        for text in ["0s", "0", "367d"] {
            let said = length(text).unwrap_err();
            assert!(said.contains("more than 0s and for 366d at most"), "{said}");
        }
        assert_eq!(
            length("5").unwrap_err(),
            "it has no unit: write for example 5s, 250ms or 1h30m"
        );
    }
}
