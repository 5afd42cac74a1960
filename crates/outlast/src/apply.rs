//! `outlast apply`: shows what a file changes, has all nodes agree to it, and waits until they run it.

use std::collections::{BTreeMap, BTreeSet};
use std::io::IsTerminal as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use clap::Args;
use outlast::cluster::door::{Question, Said, Visitor};
use outlast::cluster::topology::{Ended, TopologyState};
use outlast::file::{self, Change, Difference, Side};
use outlast_core::agreed::{Command, Limit, Refusal, Reply, TopologyCommand, Vote};
use outlast_core::topology::{ConsensusKind, Topology};
use outlast_core::units::show_duration;
use serde_json::{Value, json};

use crate::cli::{AtArgs, Format};
use crate::output::{self, Ink, Paint, plain};
use crate::{Outcome, agreed, check, verbs};

/// How often it looks how the vote goes.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// Whoever leads may change meanwhile, and counts the time from when it was told.
const LEADER_MAX: Duration = Duration::from_secs(10);

/// Nodes that can be spoken to may take this long to run what is in force.
const RUN_MAX: Duration = Duration::from_secs(15);

pub(crate) const AFTER_HELP: &str = "\
Every node of the cluster reads the file, tries it on its own machine (can it open the listeners, read the
certificates?) and votes. If all say yes, all take it at once, without dropping a connection. If one says no, or does
not answer in time, nothing changes anywhere, and every reason is shown. The same file goes to all nodes; relative
paths in it count from where each node has its own.

Nodes keep what is in force beside their log and start with it. A node that is down meanwhile makes the vote fail; one
that goes down later takes the newest version when it is back. Your file is read, never written.

A file that takes a node away is refused until `outlast node remove NAME`; a new [node.NAME] is linked to at once and
let in by `outlast node add NAME`. Who votes is changed by `outlast node promote` and `demote`, not by `voters`.

Examples:
  outlast apply                          outlast.toml, after showing the difference and asking
  outlast apply shop.toml --dry-run      only show the difference
  outlast apply shop.toml --yes          ask nothing
  outlast apply new.toml --file /etc/outlast/outlast.toml
                                         the file to take, and the one that says where the agent is
  outlast apply --yes --format json | jq .outcome

Exit status:
  0  in force, or there was nothing to change
  1  the file has mistakes, or a node said no: nothing has changed
  2  no majority answers, or it is not known what became of it";

#[derive(Debug, Args)]
pub(crate) struct ApplyArgs {
    /// The changed topology file; - is standard input.
    #[arg(default_value = "outlast.toml", value_name = "FILE")]
    file: PathBuf,
    /// The topology file that the agent runs, if it is another: it says where its data directory is.
    #[arg(
        long = "file",
        short = 'f',
        value_name = "FILE",
        env = crate::AGENT_FILE,
        hide_env_values = true
    )]
    agent_file: Option<PathBuf>,
    /// The agent's data directory, instead of the file.
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// Show the difference and change nothing.
    #[arg(long)]
    dry_run: bool,
    /// Do not ask.
    #[arg(long, short)]
    yes: bool,
    /// How long nodes may take to answer, 10 minutes at most.
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = limit)]
    timeout: Duration,
    /// How to print.
    #[arg(long, value_enum, default_value_t = Format::Table)]
    format: Format,
}

fn limit(text: &str) -> Result<Duration, String> {
    let limit = agreed::duration(text)?;
    if limit.is_zero() || outlast_core::agreed::PROPOSAL_MAX < limit {
        return Err("write a time above 0 and at most 10m".to_owned());
    }
    Ok(limit)
}

/// What is to be applied, and to what.
struct Plan {
    name: String,
    text: String,
    /// Where the agent was asked, and which node it is.
    node: String,
    base: TopologyState,
    difference: Difference,
    /// What else the user should know.
    notes: Vec<String>,
    format: Format,
}

/// What a proposal came to, node by node.
struct Voted {
    version: u64,
    votes: BTreeMap<String, Vote>,
    /// Nodes that run it, and those that do not yet, with the reason.
    runs: BTreeMap<String, Option<String>>,
}

/// What it all came to.
enum Came {
    Unchanged,
    DryRun,
    NotConfirmed,
    Refused { reason: String },
    Unknown { reason: String },
    GivenUp { reason: String, voted: Voted },
    InForce { voted: Voted },
}

impl Came {
    /// For programs, for people, for the shell.
    fn words(&self) -> (&'static str, &'static str, Outcome) {
        match self {
            Came::Unchanged => ("unchanged", "nothing to change", Outcome::Fine),
            Came::DryRun => ("dry_run", "nothing was proposed", Outcome::Fine),
            Came::NotConfirmed => ("not_confirmed", "nothing was proposed", Outcome::Mistakes),
            Came::Refused { .. } => ("refused", "refused", Outcome::Mistakes),
            Came::Unknown { .. } => ("unknown", "not known", Outcome::Unable),
            Came::GivenUp { .. } => {
                ("given_up", "given up, nothing has changed anywhere", Outcome::Mistakes)
            }
            Came::InForce { .. } => ("in_force", "", Outcome::Fine),
        }
    }

    fn reason(&self) -> Option<&str> {
        match self {
            Came::Refused { reason } | Came::Unknown { reason } | Came::GivenUp { reason, .. } => {
                Some(reason)
            }
            Came::Unchanged | Came::DryRun | Came::NotConfirmed | Came::InForce { .. } => None,
        }
    }

    fn voted(&self) -> Option<&Voted> {
        match self {
            Came::GivenUp { voted, .. } | Came::InForce { voted } => Some(voted),
            Came::Unchanged
            | Came::DryRun
            | Came::NotConfirmed
            | Came::Refused { .. }
            | Came::Unknown { .. } => None,
        }
    }
}

pub(crate) fn run(args: &ApplyArgs) -> anyhow::Result<Outcome> {
    let (name, text) = check::read(&args.file)?;
    let topology = match file::parse(&name, &text) {
        Ok(topology) => topology,
        Err(complaints) => {
            check::complain(&complaints, &name, args.format)?;
            return Ok(Outcome::Mistakes);
        }
    };
    if Limit::TopologyBytes.most() < text.len() {
        bail!(
            "{name} has {} bytes, and nodes agree on {} at most",
            text.len(),
            Limit::TopologyBytes.most()
        );
    }
    let dir = data_dir(args, &topology)?;
    verbs::block_on(async {
        let connected = Visitor::connect(&dir).await;
        let mut visitor = connected.with_context(|| match topology.nodes.len() {
            0 | 1 => "one node has nobody to agree with: use `outlast reload`".to_owned(),
            _ => {
                "is `outlast run` running on this node? --file or --data-dir says where".to_owned()
            }
        })?;
        let (base, node) = state(&mut visitor, true, true, 0).await?;
        let in_force = base.text.clone().unwrap_or_default();
        let difference = file::difference(&in_force, &text);
        // What cannot be read any more is like nothing here.
        let before = file::parse("", &in_force).ok();
        let notes = notes(&base, before.as_ref(), &topology);
        let plan = Plan { name, text, node, base, difference, notes, format: args.format };
        plan.say(&plan.shown())?;
        // Of a topology that was never agreed on other nodes may have another one.
        let same = before.as_ref() == Some(&topology);
        if same && plan.base.version > 0 {
            return plan.finish(&Came::Unchanged);
        }
        if args.dry_run {
            return plan.finish(&Came::DryRun);
        }
        if !args.yes && !confirmed(&plan)? {
            return plan.finish(&Came::NotConfirmed);
        }
        propose(&plan, &mut visitor, args.timeout).await
    })
}

fn data_dir(args: &ApplyArgs, topology: &Topology) -> anyhow::Result<PathBuf> {
    if args.agent_file.is_some() || args.data_dir.is_some() {
        let file = args.agent_file.clone().unwrap_or_default();
        return verbs::data_dir(&AtArgs { file, data_dir: args.data_dir.clone() });
    }
    if args.file == Path::new("-") {
        bail!("say where the agent is: --file or --data-dir");
    }
    let file = std::path::absolute(&args.file)?;
    Ok(file.parent().unwrap_or(&file).join(&topology.cluster.data_dir))
}

async fn state(
    visitor: &mut Visitor,
    fresh: bool,
    text: bool,
    about: u64,
) -> anyhow::Result<(TopologyState, String)> {
    let said = visitor.ask(&Question::Topology { fresh, text, about }).await?;
    if let Said::Topology { state, node } = said {
        Ok((state, node))
    } else {
        Err(agreed::failure(said))
    }
}

/// What the file says and `apply` does not do, or not at once.
fn notes(base: &TopologyState, before: Option<&Topology>, topology: &Topology) -> Vec<String> {
    let mut notes = Vec::new();
    // Another kind is refused by each node.
    if let ConsensusKind::Etcd { .. } = topology.consensus.kind
        && before.is_some_and(|before| before.consensus.kind != topology.consensus.kind)
    {
        notes.push("`endpoints` and `tls` of [consensus] take effect at the next start of each agent, which goes by those in the file that it is started with: write them there, too".to_owned());
    }
    for (name, runs) in &base.nodes {
        if !topology.nodes.contains_key(name) {
            notes.push(format!(
                "node `{name}` belongs to the cluster and is not in the file: every node will refuse it; run `outlast node remove {name}` first"
            ));
        } else if !runs.linked {
            notes.push(format!(
                "node `{name}` cannot be reached now, and has to say yes like all others; start it, or take it out with `outlast node remove {name}`"
            ));
        }
    }
    let new = topology.nodes.keys().filter(|name| !base.nodes.contains_key(*name));
    notes.extend(new.map(|name| {
        format!(
            "node `{name}` is new: once this is in force, let it in with `outlast node add {name}`"
        )
    }));
    // Through etcd nobody votes: the file names no voters, and may not.
    let names_voters = !topology.consensus.voters.is_empty();
    let wanted: BTreeSet<&String> = topology.consensus.voters.iter().collect();
    let registered = |votes: bool| {
        base.nodes.iter().filter(move |(_, node)| names_voters && node.voter == votes)
    };
    let promote = registered(false).filter(|(name, _)| wanted.contains(name));
    let demote = registered(true).filter(|(name, _)| !wanted.contains(name));
    let verbs = promote.map(|(name, _)| format!("`outlast node promote {name}`"));
    let verbs = verbs.chain(demote.map(|(name, _)| format!("`outlast node demote {name}`")));
    let verbs: Vec<String> = verbs.collect();
    if !verbs.is_empty() {
        notes.push(format!(
            "`voters` says who founds a cluster, and this one is founded; to change who votes run {}",
            verbs.join(", ")
        ));
    }
    notes
}

fn confirmed(plan: &Plan) -> anyhow::Result<bool> {
    let nodes: Vec<&str> = plan.base.nodes.keys().map(String::as_str).collect();
    if !std::io::stdin().is_terminal() || !std::io::stderr().is_terminal() {
        bail!("there is no terminal to ask on; add --yes, or look first with --dry-run");
    }
    output::complain(&format!("\nBring this into force on {}? [y/N] ", plain(&nodes.join(", "))));
    let mut answer = String::new();
    std::io::stdin().read_line(&mut answer).context("read the answer")?;
    Ok(matches!(answer.trim().to_ascii_lowercase().as_str(), "y" | "yes"))
}

async fn propose(plan: &Plan, visitor: &mut Visitor, timeout: Duration) -> anyhow::Result<Outcome> {
    let propose = TopologyCommand::Propose {
        text: plan.text.clone(),
        base_version: plan.base.version,
        by: plan.node.clone(),
        limit: timeout,
    };
    let said = visitor.ask(&Question::Write { command: Command::Topology(propose) }).await?;
    let Said::Replied { reply, .. } = said else { return Err(agreed::failure(said)) };
    let Reply::Proposed { version } = reply else {
        let (now, _) = state(visitor, false, false, 0).await?;
        return plan.finish(&Came::Refused { reason: refused(reply, &now) });
    };
    plan.say(&format!(
        "\nproposed as version {version}, every node has {} to answer\n",
        show_duration(timeout)
    ))?;
    let followed = follow_vote(plan, visitor, version, timeout).await;
    let followed = followed.with_context(|| {
        format!(
            "version {version} was being voted on, and whoever leads brings that to its end; look at `outlast status`"
        )
    })?;
    let Some(ended) = followed else {
        let reason = format!(
            "what became of version {version} is not known here; `outlast status` and `outlast events --subject topology` tell"
        );
        return plan.finish(&Came::Unknown { reason });
    };
    let Ended { reason, votes, .. } = ended;
    if let Some(reason) = reason {
        let voted = Voted { version, votes, runs: BTreeMap::new() };
        return plan.finish(&Came::GivenUp { reason, voted });
    }
    plan.say(&format!(
        "{}\n",
        plan.ink().on(Paint::Green, &format!("version {version} is in force"))
    ))?;
    let runs = follow_nodes(plan, visitor, version).await?;
    plan.finish(&Came::InForce { voted: Voted { version, votes, runs } })
}

/// Why it was not even voted on.
fn refused(reply: Reply, now: &TopologyState) -> String {
    let Reply::Refused { why } = reply else { return reply.to_string() };
    match (why, &now.open) {
        (Refusal::ProposalOpen { version }, Some(open)) => format!(
            "version {version}, proposed on node {}, is being voted on; wait until that is over, {} at most, and look at the difference again",
            open.by,
            show_duration(open.limit)
        ),
        (Refusal::ProposalOpen { version }, None) => {
            format!("version {version} was being voted on; look at the difference again")
        }
        (Refusal::OtherBase { current }, _) => format!(
            "version {current} came into force meanwhile; look at the difference to that one"
        ),
        _ => why.to_string(),
    }
}

/// Shows votes as they come; what it came to, if that is known. Ctrl-C takes the proposal back.
async fn follow_vote(
    plan: &Plan,
    visitor: &mut Visitor,
    version: u64,
    timeout: Duration,
) -> anyhow::Result<Option<Ended>> {
    let until = Instant::now() + timeout + LEADER_MAX;
    let mut shown: BTreeMap<String, Vote> = BTreeMap::new();
    loop {
        let (now, _) = state(visitor, false, false, version).await?;
        let open = now.open.filter(|open| open.version == version);
        let ended = match now.ended.filter(|ended| ended.version == version) {
            // This node has begun anew meanwhile, and has not noted how it came.
            None if open.is_none() && now.version == version => {
                Some(Ended { version, reason: None, votes: shown.clone() })
            }
            ended => ended,
        };
        let lost = ended.is_none() && open.is_none() && version < now.version;
        let votes = ended.as_ref().map(|ended| ended.votes.clone()).or(open.map(|open| open.votes));
        for (name, vote) in votes.unwrap_or_default() {
            if shown.get(&name) != Some(&vote) {
                plan.say(&plan.vote(&name, &vote))?;
                shown.insert(name, vote);
            }
        }
        if ended.is_some() || lost || until <= Instant::now() {
            return Ok(ended);
        }
        tokio::select! {
            () = tokio::time::sleep(LOOK_EVERY) => {}
            _ = tokio::signal::ctrl_c() => {
                output::complain("\ntaking it back\n");
                let reason = format!("taken back on node {}", plan.node);
                let abort = TopologyCommand::Abort { version, reason };
                // If it comes too late, the next look shows that.
                visitor.ask(&Question::Write { command: Command::Topology(abort) }).await?;
            }
        }
    }
}

/// Shows which nodes run it; why the others do not yet.
async fn follow_nodes(
    plan: &Plan,
    visitor: &mut Visitor,
    version: u64,
) -> anyhow::Result<BTreeMap<String, Option<String>>> {
    let until = Instant::now() + RUN_MAX;
    let mut runs: BTreeMap<String, Option<String>> = BTreeMap::new();
    loop {
        let (now, _) = state(visitor, false, false, version).await?;
        let mut missing = BTreeMap::new();
        for (name, node) in &now.nodes {
            // Or what came into force meanwhile.
            if node.in_force && version <= now.version {
                if runs.insert(name.clone(), None).is_none() {
                    let line = format!("  {}  runs it\n", plain(name));
                    plan.say(&plan.ink().on(Paint::Green, &line))?;
                }
            } else {
                missing.insert(name.clone(), node.clone());
            }
        }
        let waits = missing.values().any(|node| node.linked);
        if !waits || until <= Instant::now() {
            for (name, node) in missing {
                let why = match (node.trouble, node.linked) {
                    (Some(trouble), _) => {
                        format!("does not run it yet, and tries again: {trouble}")
                    }
                    (None, false) => "cannot be reached, and takes it when it is back".to_owned(),
                    (None, true) => "has not said yet that it runs it".to_owned(),
                };
                let line = format!("  {}  {}\n", plain(&name), plain(&why));
                plan.say(&plan.ink().on(Paint::Yellow, &line))?;
                runs.insert(name, Some(why));
            }
            return Ok(runs);
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

impl Plan {
    fn ink(&self) -> Ink {
        Ink { colour: output::output_may_have_colour() }
    }

    /// Tells people; programs get all of it at the end.
    fn say(&self, text: &str) -> anyhow::Result<()> {
        match self.format {
            Format::Table => output::print(text),
            Format::Json => Ok(()),
        }
    }

    fn vote(&self, name: &str, vote: &Vote) -> String {
        let ink = self.ink();
        let said = match vote.ok {
            true => ink.on(Paint::Green, "yes"),
            false => format!("{}: {}", ink.on(Paint::Red, "no"), plain(&vote.reason)),
        };
        format!("  {}  {said}\n", plain(name))
    }

    /// Who said no, and who said nothing; `None` if nobody said no. Why was shown with each vote.
    fn who_is_not_for_it(&self, voted: &Voted) -> Option<String> {
        let noes = voted.votes.iter().filter(|(_, vote)| !vote.ok).map(|(name, _)| name.as_str());
        let noes: Vec<&str> = noes.collect();
        let silent = self.base.nodes.keys().filter(|name| !voted.votes.contains_key(*name));
        let silent: Vec<&str> = silent.map(String::as_str).collect();
        let more = match silent.is_empty() {
            true => String::new(),
            false => format!("; no answer from {}", silent.join(", ")),
        };
        (!noes.is_empty()).then(|| format!("{} said no{more}", noes.join(", ")))
    }

    /// The difference, for people.
    fn shown(&self) -> String {
        let ink = self.ink();
        let against = match self.base.version {
            0 => format!("what node {} runs; nothing has been agreed on yet", self.node),
            version => format!("version {version}, which is in force"),
        };
        let mut text =
            ink.on(Paint::Bold, &format!("{} against {against}", plain(&self.name))) + "\n";
        for part in &self.difference.parts {
            let (paint, sign, word) = match part.what {
                Change::Added => (Paint::Green, "+", "is new"),
                Change::Changed => (Paint::Yellow, "~", "changes"),
                Change::Removed => (Paint::Red, "-", "goes"),
            };
            let title = format!("{sign} {} {word}", plain(&part.part));
            text += &format!("  {}\n", ink.on(paint, &title));
            let width = part.keys.iter().map(|key| key.key.chars().count()).max().unwrap_or(0);
            for key in &part.keys {
                let words = plain(&key.words(part.what));
                text += &format!("      {:<width$}  {words}\n", plain(&key.key));
            }
        }
        let counts = self.difference.counts();
        let counts = [("added", counts[0]), ("changed", counts[1]), ("removed", counts[2])];
        let counts = counts.iter().filter(|(_, count)| *count > 0);
        let counts: Vec<String> = counts.map(|(word, count)| format!("{count} {word}")).collect();
        text += &match counts.is_empty() {
            true => "  no difference in what it says\n".to_owned(),
            false => format!("  {}\n", counts.join(", ")),
        };
        for note in &self.notes {
            text += &format!("{} {}\n", ink.on(Paint::Yellow, "note:"), plain(note));
        }
        text
    }

    /// Says what it came to.
    fn finish(&self, came: &Came) -> anyhow::Result<Outcome> {
        let (word, words, status) = came.words();
        match (self.format, came.reason()) {
            (Format::Json, _) => {
                output::print(&format!("{:#}\n", self.to_json(word, came)))?;
            }
            (Format::Table, Some(reason)) => {
                let reason = came
                    .voted()
                    .and_then(|v| self.who_is_not_for_it(v))
                    .unwrap_or(reason.to_owned());
                let ink = Ink { colour: output::complaints_may_have_colour() };
                let line = ink.on(Paint::Red, &format!("{words}: {}", plain(&reason)));
                output::complain(&format!("{line}\n"));
            }
            (Format::Table, None) if words.is_empty() => {}
            (Format::Table, None) => output::print(&format!("{words}\n"))?,
        }
        Ok(status)
    }

    fn to_json(&self, word: &str, came: &Came) -> Value {
        let voted = came.voted();
        let parts: Vec<Value> = self.difference.parts.iter().map(part_json).collect();
        let nodes = self.base.nodes.keys().map(|name| {
            let vote = voted.and_then(|voted| voted.votes.get(name));
            let runs = voted.and_then(|voted| voted.runs.get(name));
            let node = json!({
                "vote": vote.map(|vote| if vote.ok { "yes" } else { "no" }),
                "reason": vote.filter(|vote| !vote.ok).map(|vote| &vote.reason),
                "runs": runs.map(Option::is_none),
                "waits": runs.and_then(Option::as_ref),
            });
            (name.clone(), node)
        });
        let nodes: BTreeMap<String, Value> = nodes.collect();
        json!({
            "v": 1,
            "file": self.name,
            "mistakes": [],
            "base_version": self.base.version,
            "difference": parts,
            "notes": self.notes,
            "outcome": word,
            "reason": came.reason(),
            "version": voted.map(|voted| voted.version),
            "nodes": nodes,
        })
    }
}

fn part_json(part: &file::Part) -> Value {
    let keys: Vec<Value> = part
        .keys
        .iter()
        .map(|key| {
            let is_default = |side: &Side| matches!(side, Side::Default(_));
            json!({
                "key": key.key,
                "old": key.old.value(),
                "new": key.new.value(),
                "old_is_default": is_default(&key.old),
                "new_is_default": is_default(&key.new),
            })
        })
        .collect();
    let what = match part.what {
        Change::Added => "added",
        Change::Changed => "changed",
        Change::Removed => "removed",
    };
    json!({ "part": part.part, "what": what, "keys": keys })
}

#[cfg(test)]
mod tests {
    use super::*;
    use outlast::cluster::topology::NodeRuns;

    const ETCD: &str = "kind = \"etcd\"\nendpoints = [\"http://127.0.0.1:2379\"]\n";

    /// Of `a` and `b`; what comes first in the text belongs to `[consensus]`.
    fn topology(consensus: &str) -> Topology {
        let mut text = format!("[cluster]\nname = \"test\"\n[consensus]\n{consensus}");
        for (at, name) in [(1, "a"), (2, "b")] {
            text += &format!("[node.{name}]\naddress = \"127.0.0.{at}\"\n");
        }
        file::parse("test", &text).expect("it is right")
    }

    #[track_caller]
    fn check(before: &str, consensus: &str, expected: &[&str]) {
        let voter = NodeRuns { voter: true, linked: true, ..NodeRuns::default() };
        let nodes = ["a", "b"].map(|name| (name.to_owned(), voter.clone()));
        let base = TopologyState { nodes: nodes.into(), ..TopologyState::default() };
        let notes = notes(&base, Some(&topology(before)), &topology(consensus));
        assert_eq!(notes.len(), expected.len(), "{notes:?}");
        for (note, expected) in notes.iter().zip(expected) {
            assert!(note.contains(expected), "{note}");
        }
    }

    #[test]
    fn who_votes_is_no_matter_where_nobody_does() {
        check("", "", &[]);
        check("", "voters = [\"a\"]\n", &["`outlast node demote b`"]);
        check(ETCD, ETCD, &[]);
    }

    #[test]
    fn how_etcd_is_reached_changes_at_the_next_start() {
        check(ETCD, &ETCD.replace("2379", "4001"), &["at the next start of each agent"]);
    }
}
