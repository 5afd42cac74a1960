//! The verbs for databases: `outlast switchover`, `failover`, `restart`, `reinit`, `pause`, `resume` and `history`.

#![expect(
    clippy::wildcard_enum_match_arm,
    reason = "a question has one kind of answer, and all others are told to people alike"
)]

mod pause;
mod schedule;
#[cfg(test)]
mod tests;
mod upkeep;

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use clap::{ArgGroup, Args, ValueEnum};
use outlast::agent::admin;
use outlast::agent::face::status_json::{DatabaseStatus, MemberStatus, Status};
use outlast::cluster::door::{Question, Said, Visitor};
use outlast_core::agreed::{
    Command, Confirm, Database, DatabaseCommand, Fact, Notice, Position, Recruit, Refusal, Reply,
    SwitchoverStep as Step,
};
use outlast_core::units::show_duration;
use serde_json::json;

pub(crate) use pause::{AFTER_HELP_OF_PAUSE, PauseArgs, ResumeArgs, pause, resume};
pub(crate) use upkeep::{
    AFTER_HELP_OF_REINIT, AFTER_HELP_OF_RESTART, ReinitArgs, RestartArgs, reinit, restart,
};

use crate::agreed::duration;
use crate::cli::AtArgs;
use crate::{Outcome, output, verbs};

/// How often the agreement is looked at while something is under way.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// A switchover that has passed its point of no return may take this long to be done, old primary included.
const SWITCHOVER_MAX: Duration = Duration::from_secs(120);

/// How long members may take to report after an election has begun.
const REPORTS_MAX: Duration = Duration::from_secs(15);

/// Who reports later than this is not waited for where somebody has reported.
const REPORTS_WITHIN: Duration = Duration::from_secs(3);

/// What was heard longer ago, in seconds, counts for nothing.
const HEARD_WITHIN: f64 = 2.0;

/// How long a new primary may take to serve.
const FAILOVER_MAX: Duration = Duration::from_secs(60);

pub(crate) const AFTER_HELP_OF_SWITCHOVER: &str = "\
Clients that come through the database's ports wait while it happens; what they have begun is finished first.
Until the standby is promoted every failure, and --pause running out, leads back to where it began.

Steps:
  1 check that the standby has caught up      5 promote the standby: the point of no return
  2 make the primary read-only                6 point clients at it
  3 wait until the last of its log is there   7 verify that a write goes through
  4 check the standby's health                8 make the old primary a standby

Examples:
  outlast switchover orders --to b            make the member on node b the primary
  outlast switchover orders --to b --dry-run  only say whether it could be done now
  outlast switchover orders --region us-east  make the best member of that region the primary
  outlast switchover orders --to b --at 2026-12-01T02:00:00Z
  outlast switchover orders --cancel          take that back

With --at it is agreed on and this command ends; `outlast status` shows it. What cannot be begun at its time, nor within a
minute, is given up: `outlast history` says why.

Exit status:
  0  done
  1  given up; the old primary serves as before
  2  it could not be begun, or what became of it is not known";

pub(crate) const AFTER_HELP_OF_FAILOVER: &str = "\
Ends the reign of the primary now. The members that are left report how far their logs reach, and the one that has all
that was acknowledged takes over. While the primary is well, `outlast switchover` is what you want.

Where a database has a home, members of the primary's region take over; --region names another one.
Where members are missing that may be the only ones to have an acknowledged write, nobody takes over by itself.
--allow-data-loss takes the member that reaches furthest all the same; what only the others have is lost. One that may not be
primary (priority 0, paused, not fit) is taken only where no other reports, and you are told before you are asked.

Examples:
  outlast failover orders
  outlast failover orders --allow-data-loss   says what may be lost, and asks
  outlast failover orders --region us-east --allow-data-loss";

#[derive(Debug, Args)]
#[command(group = ArgGroup::new("what").required(true).args(["to", "region", "cancel"]))]
pub(crate) struct SwitchoverArgs {
    /// The NAME of [postgres.NAME].
    database: String,
    /// The node whose member becomes primary.
    #[arg(long, value_name = "NODE")]
    to: Option<String>,
    /// The region whose best member, at the moment, becomes primary.
    #[arg(long, value_name = "REGION")]
    region: Option<String>,
    /// Give it up if writes would have to wait for longer than this.
    #[arg(long, value_name = "TIME", default_value = "5s", value_parser = duration)]
    pause: Duration,
    /// Change nothing, and say whether it could be done now.
    #[arg(long)]
    dry_run: bool,
    /// Begin at this time, like 2026-12-01T02:00:00Z; whoever leads the nodes then begins it.
    #[arg(long = "at", value_name = "TIME", conflicts_with = "dry_run", value_parser = moment)]
    when: Option<jiff::Timestamp>,
    /// Take back the one that waits for its time.
    #[arg(long, conflicts_with_all = ["when", "dry_run"])]
    cancel: bool,
    #[arg(long, value_enum, default_value_t = Format::Text)]
    format: Format,
    #[command(flatten)]
    at: AtArgs,
}

#[derive(Debug, Args)]
pub(crate) struct FailoverArgs {
    /// The NAME of [postgres.NAME].
    database: String,
    /// Take the member that reaches furthest, although acknowledged writes may be on others only.
    #[arg(long)]
    allow_data_loss: bool,
    /// Take a member of this region, and not of the primary's.
    #[arg(long, value_name = "REGION")]
    region: Option<String>,
    /// Do not ask.
    #[arg(long)]
    yes: bool,
    #[command(flatten)]
    at: AtArgs,
}

#[derive(Debug, Args)]
pub(crate) struct HistoryArgs {
    /// Only of this database.
    database: Option<String>,
    /// At most this many lines, the newest.
    #[arg(long, default_value_t = 50)]
    limit: usize,
    #[arg(long, value_enum, default_value_t = Format::Text)]
    format: Format,
    #[command(flatten)]
    at: AtArgs,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    // Other verbs print tables for people.
    #[value(alias = "table")]
    Text,
    /// One object a line.
    Json,
}

/// What is agreed, as the agent tells it.
struct Known {
    all: BTreeMap<String, Database>,
    notices: BTreeMap<u64, Notice>,
    history: VecDeque<Fact>,
    names: BTreeMap<u64, String>,
}

async fn known(visitor: &mut Visitor, fresh: bool, history: u64) -> anyhow::Result<Known> {
    match visitor.ask(&Question::Databases { fresh, history }).await? {
        Said::Databases { all, notices, history, names } => {
            Ok(Known { all, notices, history, names })
        }
        Said::Unavailable { reason } | Said::Unknown { reason } => bail!(reason),
        other => bail!("the agent answers what was not asked: {other:?}"),
    }
}

async fn write(visitor: &mut Visitor, command: Command) -> anyhow::Result<(u64, Reply)> {
    let written = try_write(visitor, command).await?;
    written.map_err(|why| anyhow::anyhow!("refused: {}", refusal_words(why)))
}

/// The same, where the command has an answer to a refusal.
async fn try_write(
    visitor: &mut Visitor,
    command: Command,
) -> anyhow::Result<Result<(u64, Reply), Refusal>> {
    match visitor.ask(&Question::Write { command }).await? {
        Said::Replied { reply: Reply::Refused { why }, .. } => Ok(Err(why)),
        Said::Replied { index, reply } => Ok(Ok((index, reply))),
        Said::Unavailable { reason } | Said::Unknown { reason } => bail!(reason),
        other => bail!("the agent answers what was not asked: {other:?}"),
    }
}

/// Why nothing was changed, in the words of people who know verbs, but neither epochs nor procedures.
fn refusal_words(why: Refusal) -> String {
    let words = match why {
        Refusal::OtherEpoch { .. } | Refusal::NotHeld => {
            "another primary was chosen meanwhile, or is being chosen: look at `outlast status`, and ask again if you still want it"
        }
        Refusal::OutOfTurn | Refusal::NoProcedure | Refusal::ProcedureOver => {
            "things have changed since the command looked: look at `outlast status`, and ask again if you still want it"
        }
        Refusal::Busy { .. } => {
            "something else is under way or waits for its time: `outlast status` shows it"
        }
        Refusal::AlreadyPaused { .. } => {
            "somebody has paused failover meanwhile: `outlast status` says who; `outlast resume` comes first"
        }
        Refusal::NoNotice => "somebody has ended this pause meanwhile, or it has run out",
        Refusal::Duration => "the time has passed, or is too far away",
        other => return other.to_string(),
    };
    words.to_owned()
}

/// A moment for people: with a zone, for nodes may be in several.
fn moment(text: &str) -> Result<jiff::Timestamp, String> {
    text.parse().map_err(|_any: jiff::Error| {
        "write a date, a time and a zone, like 2026-12-01T02:00:00Z or 2026-12-01T02:00:00+01:00"
            .to_owned()
    })
}

fn named<'a>(known: &'a Known, name: &str) -> anyhow::Result<&'a Database> {
    known.all.get(name).with_context(|| {
        let names: Vec<&str> = known.all.keys().map(String::as_str).collect();
        match names.as_slice() {
            [] => format!("there is no database `{name}`, nor any other, yet"),
            names => format!("there is no database `{name}`; there is {}", names.join(", ")),
        }
    })
}

/// Who asks, for the history.
fn who() -> String {
    std::env::var("SUDO_USER")
        .or_else(|_| std::env::var("USER"))
        .unwrap_or_else(|_| "somebody".to_owned())
}

async fn status(at: &AtArgs) -> anyhow::Result<Status> {
    let dir = verbs::data_dir(at)?;
    let (code, text) = admin::ask(&dir, http::Method::GET, "/v1/status", String::new()).await?;
    ensure!(code.is_success(), "the agent answers {code}: {}", text.trim_end());
    serde_json::from_str(&text).context("understand the agent's answer")
}

pub(crate) fn switchover(args: &SwitchoverArgs) -> anyhow::Result<Outcome> {
    verbs::block_on(switch(args))
}

async fn switch(args: &SwitchoverArgs) -> anyhow::Result<Outcome> {
    let mut visitor = Visitor::connect(&verbs::data_dir(&args.at)?).await?;
    if args.cancel {
        return schedule::cancel(args, &mut visitor).await;
    }
    if let Some(when) = args.when {
        return schedule::schedule(args, when, &mut visitor).await;
    }
    let before = known(&mut visitor, true, u64::MAX).await?;
    let database = named(&before, &args.database)?.clone();
    let seen = status(&args.at).await?;
    let to = wanted(args, &seen)?;
    let reasons = against(&seen, &args.database, &database, &to);
    if args.dry_run {
        return say_dry_run(args, &reasons);
    }
    if let Some(reason) = reasons.first() {
        bail!("{reason}");
    }
    let command = Command::Database(DatabaseCommand::Switch {
        database: args.database.clone(),
        epoch: database.reign.epoch,
        to: to.clone(),
        who: who(),
        pause_max: args.pause,
    });
    let (begun, _) = write(&mut visitor, command).await?;
    let started = std::time::Instant::now();
    let mut shown = 0;
    while started.elapsed() < SWITCHOVER_MAX {
        let now = known(&mut visitor, false, u64::MAX).await?;
        let database = named(&now, &args.database)?;
        let ended = database.last_switchover.as_ref();
        let ended = ended.filter(|end| end.switchover.begun.index == begun);
        let under_way = database.switchover.as_ref().filter(|s| s.begun.index == begun);
        let Some(switchover) = ended.map(|end| &end.switchover).or(under_way) else {
            // This node has not applied it yet.
            tokio::time::sleep(LOOK_EVERY).await;
            continue;
        };
        for done in switchover.done.iter().skip(shown) {
            show_step(args, done.step, &done.evidence, started.elapsed())?;
        }
        shown = switchover.done.len();
        if let Some(end) = ended {
            return say_end(args, &to, end.failed.as_deref(), started.elapsed());
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
    bail!("it is still under way after {}: see `outlast status`", show_duration(SWITCHOVER_MAX))
}

/// Writes would have to wait without a member.
#[derive(Debug, PartialEq, Eq)]
struct WouldWait {
    node: String,
    /// How many others a write needs, and how many there would be.
    acks: usize,
    left: usize,
}

impl std::fmt::Display for WouldWait {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let WouldWait { node, acks, left } = self;
        write!(
            f,
            "a write needs {acks} other members, and without node `{node}` there are {left}: writes would have to wait"
        )
    }
}

/// Whether writes would have to wait without this member.
fn would_wait(database: &Database, seen: &DatabaseStatus, node: &str) -> Option<WouldWait> {
    let acks = database.rule().acks.min(seen.acks_min);
    let acks = usize::try_from(acks).unwrap_or(usize::MAX);
    let receives = seen.members.iter().filter(|(name, member)| {
        *name != node
            && member.state == "standby"
            && member.paused.is_none()
            && member.follows.as_ref() == Some(&database.reign.primary)
    });
    let left = receives.count();
    (left < acks).then(|| WouldWait { node: node.to_owned(), acks, left })
}

/// The node that was named, or the best one of the region that was.
fn wanted(args: &SwitchoverArgs, seen: &Status) -> anyhow::Result<String> {
    match (&args.to, &args.region) {
        (Some(to), _) => Ok(to.clone()),
        (None, region) => best_of(seen, &args.database, region.as_deref().unwrap_or_default()),
    }
}

/// The member of a region that could become primary and lacks the least.
fn best_of(status: &Status, name: &str, region: &str) -> anyhow::Result<String> {
    let empty = DatabaseStatus::default();
    let members = &status.postgres.get(name).unwrap_or(&empty).members;
    let there = members.iter().filter(|(_, member)| member.region.as_deref() == Some(region));
    let there: Vec<(&String, &MemberStatus)> = there.collect();
    ensure!(!there.is_empty(), "postgres.{name} has no member in region `{region}`, or no `home`");
    let primary = member_primary(status, name);
    let able = there
        .iter()
        .filter(|(node, member)| member.cannot_switch.is_none() && Some(*node) != primary.as_ref());
    // Who follows the primary itself is told the least late.
    let best = able.min_by_key(|(_, member)| (member.follows != primary, member.lag_bytes));
    let best = best.or(there.first()).map(|(node, _)| (*node).clone());
    best.context("no member")
}

fn member_primary(status: &Status, name: &str) -> Option<String> {
    status.postgres.get(name)?.primary.clone()
}

/// Why it could not be done now.
fn against(status: &Status, name: &str, database: &Database, to: &str) -> Vec<String> {
    let mut reasons = Vec::new();
    let Some(seen) = status.postgres.get(name) else {
        return vec![format!("the topology of this node has no [postgres.{name}]")];
    };
    if let Some(election) = &database.election {
        reasons.push(format!("there is no primary now: {}", election.why));
    } else if !database.reign.open {
        reasons.push(format!("node `{}` is about to become primary", database.reign.primary));
    }
    if database.reign.primary == to {
        reasons.push(format!("node `{to}` is the primary already"));
    }
    if let Some(switchover) = &database.switchover {
        reasons.push(format!("a switchover to node `{}` is under way", switchover.to));
    }
    match seen.members.get(to) {
        None => reasons.push(format!("node `{to}` is no member of postgres.{name}")),
        // By the leader's own rule: what it would give up at once is not begun.
        Some(member) if database.election.is_none() => {
            let why = member.cannot_switch.as_ref();
            reasons.extend(why.map(|why| format!("node `{to}`: {why}")));
        }
        Some(_) => {}
    }
    reasons
}

fn say_dry_run(args: &SwitchoverArgs, reasons: &[String]) -> anyhow::Result<Outcome> {
    let may = reasons.is_empty();
    output::print(&match args.format {
        Format::Json => format!("{}\n", json!({ "could": may, "reasons": reasons })),
        Format::Text if may => "it could be done now; nothing was changed\n".to_owned(),
        Format::Text => format!("it could not be done now: {}\n", reasons.join("; ")),
    })?;
    Ok(if may { Outcome::Fine } else { Outcome::Mistakes })
}

fn show_step(
    args: &SwitchoverArgs,
    step: Step,
    evidence: &str,
    after: Duration,
) -> anyhow::Result<()> {
    let number = Step::ALL.iter().position(|known| *known == step).unwrap_or_default() + 1;
    output::print(&match args.format {
        Format::Json => format!(
            "{}\n",
            json!({ "step": number, "does": step.words(), "evidence": evidence, "after_seconds": after.as_secs_f64() })
        ),
        Format::Text => {
            format!("{number} of 8  {:>6.2} s  {}: {evidence}\n", after.as_secs_f64(), step.words())
        }
    })
}

fn say_end(
    args: &SwitchoverArgs,
    to: &str,
    failed: Option<&str>,
    after: Duration,
) -> anyhow::Result<Outcome> {
    let took = after.as_secs_f64();
    output::print(&match (args.format, failed) {
        (Format::Json, failed) => {
            format!(
                "{}\n",
                json!({ "done": failed.is_none(), "why": failed, "took_seconds": took })
            )
        }
        (Format::Text, None) => format!("done in {took:.2} s: node `{to}` is primary\n"),
        (Format::Text, Some(why)) => format!("given up after {took:.2} s: {why}\n"),
    })?;
    Ok(if failed.is_none() { Outcome::Fine } else { Outcome::Mistakes })
}

pub(crate) fn failover(args: &FailoverArgs) -> anyhow::Result<Outcome> {
    verbs::block_on(fail_over(args))
}

async fn fail_over(args: &FailoverArgs) -> anyhow::Result<Outcome> {
    let mut visitor = Visitor::connect(&verbs::data_dir(&args.at)?).await?;
    let now = known(&mut visitor, true, u64::MAX).await?;
    let database = named(&now, &args.database)?.clone();
    if let Some(region) = &args.region {
        let seen = status(&args.at).await?;
        refuse_region(args, &database, &seen, region)?;
    }
    let mut accepted = None;
    let question = match args.allow_data_loss {
        true => {
            let seen = status(&args.at).await?;
            let seen = seen.postgres.get(&args.database).cloned().unwrap_or_default();
            let defect = only_defective(args, &database, &seen);
            let note = defect.as_ref().map(|(node, why)| format!(" {}", defect_words(node, why)));
            let lost = may_be_lost(args, &database, &seen);
            accepted = defect.map(|(node, _)| node);
            format!("{lost}{} Take the member that reaches furthest?", note.unwrap_or_default())
        }
        false => format!(
            "postgres.{}: end the reign of node `{}` now?",
            args.database, database.reign.primary
        ),
    };
    if !args.yes && !confirmed(&question)? {
        output::complain("nothing was changed\n");
        return Ok(Outcome::Mistakes);
    }
    let mut ended = database.epoch();
    if database.election.is_none() || args.region.is_some() {
        let why = format!("{} asked for it", who());
        let (database, epoch) = (args.database.clone(), database.epoch());
        let region = args.region.clone();
        let elect = DatabaseCommand::Elect { database, epoch, why, region };
        ended = match try_write(&mut visitor, Command::Database(elect)).await? {
            Ok((index, _)) => index,
            // Whoever leads was first: what comes of that is looked at.
            Err(Refusal::OtherEpoch { .. } | Refusal::OutOfTurn) if args.region.is_none() => {
                ended.saturating_add(1)
            }
            Err(why) => bail!("refused: {}", refusal_words(why)),
        };
    }
    if args.allow_data_loss && !appoint_furthest(args, &mut visitor, ended, accepted).await? {
        output::complain("nobody was appointed: `outlast status` says what is waited for\n");
        return Ok(Outcome::Mistakes);
    }
    let started = std::time::Instant::now();
    while started.elapsed() < FAILOVER_MAX {
        let now = known(&mut visitor, false, u64::MAX).await?;
        let database = named(&now, &args.database)?;
        // This node may not have applied yet what it has asked for.
        let next = database.election.is_none() && ended < database.reign.epoch;
        if next && database.reign.open {
            output::print(&format!("node `{}` is primary\n", database.reign.primary))?;
            return Ok(Outcome::Fine);
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
    let why = status(&args.at).await?.postgres.get(&args.database).and_then(|d| d.why.clone());
    bail!("no member has taken over: {}", why.unwrap_or_else(|| "see `outlast status`".to_owned()))
}

/// Says no before anything is changed: nobody there could take over, or not without a loss.
fn refuse_region(
    args: &FailoverArgs,
    database: &Database,
    status: &Status,
    region: &str,
) -> anyhow::Result<()> {
    let seen = status.postgres.get(&args.database).cloned().unwrap_or_default();
    let there = seen.members.values().filter(|member| member.region.as_deref() == Some(region));
    let states: Vec<&str> = there.map(|member| member.state.as_str()).collect();
    ensure!(
        !states.is_empty(),
        "postgres.{} has no member in region `{region}`, or no `home`; nothing was changed",
        args.database
    );
    ensure!(
        states.contains(&"standby"),
        "no member in region `{region}` is a standby now; nothing was changed"
    );
    let likely: Vec<(Recruit, bool)> = seen
        .members
        .iter()
        .filter(|(_, member)| member.state == "standby" && member.heard_seconds_ago < HEARD_WITHIN)
        // Those of the primary's region are what may be lost.
        .filter(|(_, member)| member.region != seen.region_of(&database.reign.primary))
        .filter_map(|(node, member)| {
            Some((recruit(node, member)?, member.region.as_deref() == Some(region)))
        })
        .collect();
    let end = likely.iter().filter(|(_, there)| *there).map(|(recruit, _)| recruit.reaches).max();
    let all: Vec<Recruit> = likely.iter().map(|(recruit, _)| recruit.clone()).collect();
    let covered = database.is_covered(&all, end.unwrap_or_default());
    ensure!(
        covered || args.allow_data_loss,
        "{} Give --allow-data-loss if you mean it, or `outlast switchover --region` if the primary is well; nothing was changed",
        may_be_lost(args, database, &seen)
    );
    Ok(())
}

/// The member that would be taken, and why it should not be, where no other one is left.
fn only_defective(
    args: &FailoverArgs,
    database: &Database,
    seen: &DatabaseStatus,
) -> Option<(String, String)> {
    let gone = |node: &str| database.election.is_none() && node == database.reign.primary;
    let there = seen.members.iter().filter(|(node, member)| {
        !gone(node) && member.state == "standby" && member.heard_seconds_ago < HEARD_WITHIN
    });
    let likely: Vec<Recruit> = there.filter_map(|(node, member)| recruit(node, member)).collect();
    let best = furthest(seen, &likely, args.region.as_deref())?;
    let why = seen.members.get(&best.node)?.cannot_lead.clone()?;
    Some((best.node.clone(), why))
}

fn defect_words(node: &str, why: &str) -> String {
    format!("Only node `{node}` could be taken, and by itself it would not be: {why}.")
}

/// Who reaches furthest of those that may be primary; one that may not be only where there is nobody else.
fn furthest<'a>(
    seen: &DatabaseStatus,
    recruits: &'a [Recruit],
    region: Option<&str>,
) -> Option<&'a Recruit> {
    let member = |recruit: &Recruit| seen.members.get(&recruit.node);
    let wanted = recruits.iter().filter(|recruit| {
        let there = member(recruit).and_then(|member| member.region.as_deref());
        region.is_none() || there == region
    });
    wanted.max_by_key(|recruit| {
        let may = member(recruit).is_some_and(|member| member.cannot_lead.is_none());
        (may, recruit.reaches)
    })
}

fn may_be_lost(args: &FailoverArgs, database: &Database, seen: &DatabaseStatus) -> String {
    let name = &args.database;
    let wanted = |member: &&MemberStatus| args.region.is_none() || member.region == args.region;
    let lags = seen.members.values().filter(wanted).filter_map(|member| member.lag_bytes);
    let lags = lags.min().filter(|_| args.region.is_some());
    let lags = lags.map(|bytes| {
        format!(" The best member there lacks {bytes} bytes of the log, as far as is known.")
    });
    let rules: Vec<String> = database.confirms.iter().map(Confirm::to_string).collect();
    format!(
        "postgres.{name}: writes were acknowledged by {}. Those that only members have which do not report now are lost, \
         and nothing brings them back.{}",
        rules.join(", or by "),
        lags.unwrap_or_default()
    )
}

fn confirmed(question: &str) -> anyhow::Result<bool> {
    use std::io::IsTerminal as _;
    ensure!(std::io::stdin().is_terminal(), "{question} There is nobody to ask; give --yes");
    output::complain(&format!("{question} [y/N] "));
    let mut answer = String::new();
    std::io::stdin().read_line(&mut answer).context("read the answer")?;
    Ok(["y", "yes"].contains(&answer.trim()))
}

/// Appoints the member that reaches furthest of those that have reported; `false` if a person did not want that one.
async fn appoint_furthest(
    args: &FailoverArgs,
    visitor: &mut Visitor,
    ended: u64,
    mut accepted: Option<String>,
) -> anyhow::Result<bool> {
    let started = std::time::Instant::now();
    loop {
        let now = known(visitor, false, u64::MAX).await?;
        let database = named(&now, &args.database)?.clone();
        if database.epoch() < ended && started.elapsed() < REPORTS_MAX {
            tokio::time::sleep(LOOK_EVERY).await;
            continue;
        }
        let Some(election) = &database.election else { return Ok(true) };
        let seen = status(&args.at).await?;
        let seen = seen.postgres.get(&args.database).cloned().unwrap_or_default();
        let recruits = reported(&seen, election.epoch);
        let waited = started.elapsed();
        let all = recruits.len() == seen.members.len();
        let is_wanted = |node: &str| {
            let region = seen.members.get(node).map(|member| &member.region);
            args.region.is_none() || region == Some(&args.region)
        };
        let best = furthest(&seen, &recruits, args.region.as_deref());
        let defect = best.and_then(|best| seen.members.get(&best.node)?.cannot_lead.clone());
        let enough = all || REPORTS_WITHIN < waited;
        if let (Some(best), true, true) = (best, enough, waited < REPORTS_MAX) {
            if let Some(why) = defect.filter(|_| accepted.as_ref() != Some(&best.node)) {
                let words = defect_words(&best.node, &why);
                if args.yes {
                    output::complain(&format!("{words}\n"));
                } else if !confirmed(&format!("{words} Take it all the same?"))? {
                    return Ok(false);
                }
                accepted = Some(best.node.clone());
            }
            let rule = database.rule();
            let others = recruits.iter().filter(|recruit| recruit.node != best.node);
            // Of the region of the next primary, if there are such.
            let near: Vec<&Recruit> = others.clone().filter(|r| is_wanted(&r.node)).collect();
            let others = others.filter(|r| near.is_empty() || is_wanted(&r.node));
            let of = others.map(|recruit| recruit.node.clone());
            let next = match rule.acks {
                0 if rule.is_async() => Confirm::default(),
                0 => Confirm::alone(&best.node),
                acks => Confirm { acks, of: of.collect(), ..Confirm::default() },
            };
            let next = if next.of.is_empty() && next.acks > 0 { rule } else { next };
            let command = DatabaseCommand::Appoint {
                database: args.database.clone(),
                epoch: election.epoch,
                node: best.node.clone(),
                recruits: recruits.clone(),
                next,
                losing: true,
            };
            match try_write(visitor, Command::Database(command)).await? {
                Ok(_) => return Ok(true),
                // Whoever leads was first, or the election was followed by another: this node hears of it in a moment.
                Err(Refusal::OtherEpoch { .. } | Refusal::OutOfTurn) => {
                    tokio::time::sleep(LOOK_EVERY).await;
                    continue;
                }
                Err(why) => bail!("refused: {}", refusal_words(why)),
            }
        }
        ensure!(
            waited < REPORTS_MAX,
            "no member has reported within {}",
            show_duration(REPORTS_MAX)
        );
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

fn reported(seen: &DatabaseStatus, election: u64) -> Vec<Recruit> {
    let stopped = seen.members.iter().filter(|(_, member)| member.stopped == Some(election));
    stopped.filter_map(|(node, member)| recruit(node, member)).collect()
}

fn recruit(node: &str, member: &MemberStatus) -> Option<Recruit> {
    let (high, low) = member.lsn.split_once('/')?;
    let part = |hex| u64::from_str_radix(hex, 16).ok();
    let lsn = part(high)? << 32 | part(low)?;
    Some(Recruit { node: node.to_owned(), reaches: Position { timeline: member.timeline, lsn } })
}

pub(crate) fn history(args: &HistoryArgs) -> anyhow::Result<Outcome> {
    verbs::block_on(async {
        let mut visitor = Visitor::connect(&verbs::data_dir(&args.at)?).await?;
        let now = known(&mut visitor, false, 0).await?;
        let prefix = args.database.as_ref().map(|name| format!("postgres.{name}: "));
        let about = |fact: &&Fact| match &prefix {
            Some(prefix) => fact.text.starts_with(prefix),
            None => true,
        };
        let lines: Vec<&Fact> = now.history.iter().filter(about).collect();
        if let (Some(name), true) = (&args.database, lines.is_empty()) {
            // What is remembered of one that was removed is shown all the same.
            named(&now, name)?;
        }
        for fact in lines.iter().skip(lines.len().saturating_sub(args.limit)) {
            let node = now.names.get(&fact.node).map_or("-", String::as_str);
            output::print(&match args.format {
                Format::Json => format!(
                    "{}\n",
                    json!({ "at": fact.at.wall.to_string(), "index": fact.at.index, "node": node, "text": fact.text })
                ),
                Format::Text => {
                    format!("{}  {node:<12} {}\n", fact.at.wall, output::plain(&fact.text))
                }
            })?;
        }
        Ok(Outcome::Fine)
    })
}
