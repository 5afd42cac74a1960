//! The verbs that speak to what is agreed: `outlast kv` and `outlast node`.

#![expect(
    clippy::wildcard_enum_match_arm,
    reason = "a question has one kind of answer, and all others are told to people alike"
)]

use std::io::{Read as _, Write as _};
use std::os::unix::process::ExitStatusExt as _;
use std::time::Duration;

use anyhow::{Context as _, bail};
use clap::{Args, Subcommand, ValueEnum};
use outlast::cluster::door::{Question, Said, Visitor};
use outlast_core::agreed::{
    Changed, Command, Expected, Item, KvCommand, LockCommand, NodeCommand, NodeRole, Reply,
    SessionCommand,
};
use rustix::process::{Pid, Signal};
use serde_json::json;
use tokio::signal::unix::{SignalKind, signal};

use crate::cli::AtArgs;
use crate::{Outcome, output, verbs};

pub(crate) const AFTER_HELP_OF_KV: &str = "\
What is written is on the disks of a majority of the voters before the verb returns; what is read is
newest, unless --local is given. Values have at most 64 KiB, keys 512 bytes.

Examples:
  outlast kv put flags/checkout on       write a value
  outlast kv put config -                take the value from standard input
  outlast kv get flags/checkout          print it
  outlast kv cas leader me --absent      write it only if nobody has
  outlast kv list flags/                 all keys that begin so
  outlast kv watch flags/                print changes as they come
  outlast kv lock nightly -- ./job.sh    run a command while this cluster's only `nightly` lock is held

Exit status:
  0  done
  1  there is no such key, or it is not as expected
  2  no majority answers, or it is not known whether it was done";

pub(crate) const AFTER_HELP_OF_NODE: &str = "\
Examples:
  outlast node list                      who takes part, under which id, and in which role
  outlast node add d                     let a new node in; it learns, and does not vote; first bring a
                                         file with [node.d] into force: `outlast apply`
  outlast node promote d                 let it vote
  outlast node promote d --witness       let it vote only: a small third machine, so that two others outlive each other
  outlast node demote d                  let it only learn
  outlast node remove d                  its id never comes back
  outlast node replace d                 give a node whose disk is lost a new id
  outlast node lead b                    hand the lead to b; run it on the leader's node

A change takes effect once a majority of the voters has it. Each node keeps an odd number of voters useful:
three survive one loss, five survive two.";

#[derive(Debug, Subcommand)]
pub(crate) enum Kv {
    /// Prints a value.
    Get {
        key: String,
        #[command(flatten)]
        read: ReadArgs,
    },
    /// Writes a value; `-` takes it from standard input.
    Put {
        key: String,
        value: String,
        #[command(flatten)]
        at: AtArgs,
    },
    /// Deletes a key.
    Delete {
        key: String,
        #[command(flatten)]
        at: AtArgs,
    },
    /// Writes a value only if the key is as expected.
    Cas {
        key: String,
        value: String,
        #[command(flatten)]
        expected: ExpectedArgs,
        #[command(flatten)]
        at: AtArgs,
    },
    /// Lists keys and values.
    List {
        #[arg(default_value = "")]
        prefix: String,
        #[command(flatten)]
        read: ReadArgs,
    },
    /// Prints changes as they come, one a line; with --format json one object a line.
    Watch {
        #[arg(default_value = "")]
        prefix: String,
        /// From this index of the log on, as far as it is still kept.
        #[arg(long, default_value_t = 0, hide_default_value = true)]
        from: u64,
        #[command(flatten)]
        read: ReadArgs,
    },
    /// Measures this cluster: writes or reads of many clients through this node's agent, below the key `bench/`.
    Bench(BenchArgs),
    /// Runs a command while it holds a lock; OUTLAST_TOKEN is the lock's fencing token.
    Lock {
        key: String,
        /// How long the lock outlives its holder.
        #[arg(long, default_value = "10s", value_parser = duration)]
        ttl: Duration,
        #[command(flatten)]
        at: AtArgs,
        #[arg(last = true, required = true, value_name = "COMMAND")]
        command: Vec<String>,
    },
}

#[derive(Debug, Args)]
pub(crate) struct BenchArgs {
    /// Clients at the same time, each with one question under way.
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u16).range(1..=1000))]
    clients: u16,
    #[arg(long, default_value = "5s", value_parser = duration)]
    time: Duration,
    /// Bytes of a value.
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u16).range(1..=60000))]
    size: u16,
    /// Read instead of writing; what is read is newest.
    #[arg(long)]
    read: bool,
    #[arg(long, value_enum, default_value_t = Format::Text)]
    format: Format,
    #[command(flatten)]
    at: AtArgs,
}

#[derive(Debug, Subcommand)]
pub(crate) enum NodeVerb {
    /// Lists the nodes that belong to the cluster.
    List {
        #[command(flatten)]
        read: ReadArgs,
    },
    /// Lets a new node in, as one that learns.
    Add {
        name: String,
        /// Where its agent is reached by the others; known if the topology in force has [node.NAME].
        #[arg(long, value_name = "ADDRESS:PORT")]
        address: Option<String>,
        #[command(flatten)]
        at: AtArgs,
    },
    /// Lets a node vote.
    Promote {
        #[command(flatten)]
        node: NodeArgs,
        /// It is only there to make a majority: it votes, and hands the lead on to another voter.
        #[arg(long)]
        witness: bool,
    },
    /// Lets a node only learn.
    Demote(NodeArgs),
    /// Takes a node out for ever.
    Remove(NodeArgs),
    /// Gives a node that has lost its disk a new id.
    Replace(NodeArgs),
    /// Hands the lead to a voter.
    Lead(NodeArgs),
}

#[derive(Debug, Args)]
pub(crate) struct NodeArgs {
    name: String,
    #[command(flatten)]
    at: AtArgs,
}

#[derive(Debug, Args)]
pub(crate) struct ReadArgs {
    /// As this node has it, which may be old: works without a majority.
    #[arg(long)]
    local: bool,
    #[arg(long, value_enum, default_value_t = Format::Text)]
    format: Format,
    #[command(flatten)]
    at: AtArgs,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Format {
    // Other verbs print tables for people.
    #[value(alias = "table")]
    Text,
    Json,
}

#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
pub(crate) struct ExpectedArgs {
    /// There must be no such key.
    #[arg(long)]
    absent: bool,
    /// The key must have this version.
    #[arg(long, value_name = "N")]
    version: Option<u64>,
    /// The key's last change must have this index.
    #[arg(long, value_name = "INDEX")]
    modified: Option<u64>,
}

impl ExpectedArgs {
    fn expected(&self) -> Expected {
        match (self.version, self.modified) {
            (Some(version), _) => Expected::Version { version },
            (None, Some(index)) => Expected::Modified { index },
            (None, None) => Expected::Absent,
        }
    }
}

pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    let parsed = outlast_core::units::parse_duration(text);
    parsed.map_err(|fault| format!("it {fault}: write for example 5s, 250ms or 1h30m"))
}

pub(crate) fn kv(kv: Kv) -> anyhow::Result<Outcome> {
    verbs::block_on(async {
        match kv {
            Kv::Get { key, read } => get(key, &read).await,
            Kv::Put { key, value, at } => {
                let value = value_of(value)?;
                let put = KvCommand::Put { key: key.into_bytes(), value, session: None };
                done(write(&at, Command::Kv(put)).await?)
            }
            Kv::Delete { key, at } => {
                let delete = KvCommand::Delete { key: key.into_bytes(), expected: None };
                done(write(&at, Command::Kv(delete)).await?)
            }
            Kv::Cas { key, value, expected, at } => {
                let value = value_of(value)?;
                let (key, expected) = (key.into_bytes(), expected.expected());
                let cas = KvCommand::Cas { key, expected, value, session: None };
                done(write(&at, Command::Kv(cas)).await?)
            }
            Kv::List { prefix, read } => list(&prefix, &read).await,
            Kv::Watch { prefix, from, read } => watch(prefix, from, &read).await,
            Kv::Bench(args) => bench(&args).await,
            Kv::Lock { key, ttl, at, command } => lock(key, ttl, &at, &command).await,
        }
    })
}

pub(crate) fn node(verb: NodeVerb) -> anyhow::Result<Outcome> {
    verbs::block_on(async {
        match verb {
            NodeVerb::List { read } => nodes(&read).await,
            NodeVerb::Add { name, address, at } => {
                let address = match address {
                    Some(address) => address,
                    None => address_in_force(&name, &at).await?,
                };
                let join = join(name, address, NodeRole::Learner, None);
                done(write(&at, Command::Node(join)).await?)
            }
            NodeVerb::Promote { node, witness: false } => role(&node, NodeRole::Voter).await,
            NodeVerb::Promote { node, witness: true } => role(&node, NodeRole::Witness).await,
            NodeVerb::Demote(args) => role(&args, NodeRole::Learner).await,
            NodeVerb::Remove(args) => {
                let (id, _) = registered(&args).await?;
                done(write(&args.at, Command::Node(NodeCommand::Remove { id })).await?)
            }
            NodeVerb::Replace(args) => {
                let (id, node) = registered(&args).await?;
                let join = join(args.name.clone(), node.address, node.role, Some(id));
                done(write(&args.at, Command::Node(join)).await?)
            }
            NodeVerb::Lead(args) => {
                let question = Question::Lead { node: args.name.clone() };
                match visit(&args.at).await?.ask(&question).await? {
                    Said::Done => Ok(Outcome::Fine),
                    other => unexpected(other),
                }
            }
        }
    })
}

/// Where the topology in force says that a node is reached.
async fn address_in_force(name: &str, at: &AtArgs) -> anyhow::Result<String> {
    let question = Question::Topology { fresh: true, text: true, about: 0 };
    let text = match visit(at).await?.ask(&question).await? {
        Said::Topology { state, .. } => state.text.unwrap_or_default(),
        other => return Err(failure(other)),
    };
    let topology = outlast::file::parse("the topology in force", &text);
    let address = topology.ok().and_then(|topology| topology.link_addresses().remove(name));
    let address = address.with_context(|| {
        format!(
            "the topology in force has no [node.{name}], so that no node would link to it; add it and run `outlast apply`, or say where it is: --address"
        )
    })?;
    Ok(address.to_string())
}

fn join(name: String, address: String, role: NodeRole, replaces: Option<u64>) -> NodeCommand {
    NodeCommand::Join { name, role, address, replaces }
}

async fn role(args: &NodeArgs, role: NodeRole) -> anyhow::Result<Outcome> {
    let (id, _) = registered(args).await?;
    done(write(&args.at, Command::Node(NodeCommand::SetRole { id, role })).await?)
}

async fn registered(args: &NodeArgs) -> anyhow::Result<(u64, outlast_core::agreed::Node)> {
    match visit(&args.at).await?.ask(&Question::Nodes { fresh: true }).await? {
        Said::Nodes { nodes } => {
            let found = nodes.into_iter().find(|(_, node)| node.name == args.name);
            found.with_context(|| format!("there is no node `{}` in the cluster", args.name))
        }
        other => Err(failure(other)),
    }
}

async fn visit(at: &AtArgs) -> anyhow::Result<Visitor> {
    Visitor::connect(&verbs::data_dir(at)?).await
}

async fn write(at: &AtArgs, command: Command) -> anyhow::Result<Reply> {
    match visit(at).await?.ask(&Question::Write { command }).await? {
        Said::Replied { reply, .. } => Ok(reply),
        other => Err(failure(other)),
    }
}

pub(crate) fn failure(said: Said) -> anyhow::Error {
    match said {
        Said::Unavailable { reason } => anyhow::anyhow!("nothing was done: {reason}"),
        Said::Unknown { reason } => {
            anyhow::anyhow!(
                "whether it was done is not known: {reason}; look before you do it again"
            )
        }
        other => anyhow::anyhow!("the agent answered another question: {other:?}"),
    }
}

fn unexpected<T>(said: Said) -> anyhow::Result<T> {
    Err(failure(said))
}

/// What became of a command, in a line.
fn done(reply: Reply) -> anyhow::Result<Outcome> {
    match reply {
        Reply::Refused { why } => {
            output::complain(&format!("refused: {why}\n"));
            Ok(Outcome::Mistakes)
        }
        Reply::Deleted { existed: false } => {
            output::complain("there was no such key\n");
            Ok(Outcome::Mistakes)
        }
        other => {
            output::print(&format!("{other}\n"))?;
            Ok(Outcome::Fine)
        }
    }
}

fn value_of(value: String) -> anyhow::Result<Vec<u8>> {
    if value != "-" {
        return Ok(value.into_bytes());
    }
    let mut bytes = Vec::new();
    // One more than fits, so that what is too long is refused and not cut.
    std::io::stdin().take((64 << 10) + 1).read_to_end(&mut bytes).context("read the value")?;
    Ok(bytes)
}

fn shown(key: &[u8], item: &Item) -> serde_json::Value {
    json!({
        "key": String::from_utf8_lossy(key),
        "value": String::from_utf8_lossy(&item.value),
        "version": item.version,
        "created_index": item.created_index,
        "modified_index": item.modified_index,
    })
}

async fn get(key: String, read: &ReadArgs) -> anyhow::Result<Outcome> {
    let question = Question::Get { key: key.clone().into_bytes(), fresh: !read.local };
    match visit(&read.at).await?.ask(&question).await? {
        Said::Item { item: Some(item) } => {
            match read.format {
                Format::Json => output::print(&format!("{}\n", shown(key.as_bytes(), &item)))?,
                Format::Text => {
                    let mut out = std::io::stdout().lock();
                    out.write_all(&item.value).context("print the value")?;
                    out.write_all(b"\n").context("print the value")?;
                }
            }
            Ok(Outcome::Fine)
        }
        Said::Item { item: None } => {
            output::complain(&format!("there is no key `{key}`\n"));
            Ok(Outcome::Mistakes)
        }
        other => unexpected(other),
    }
}

async fn list(prefix: &str, read: &ReadArgs) -> anyhow::Result<Outcome> {
    let mut visitor = visit(&read.at).await?;
    let mut after = None;
    loop {
        let prefix = prefix.as_bytes().to_vec();
        let question = Question::List { prefix, after, fresh: !read.local };
        match visitor.ask(&question).await? {
            Said::Page { items, more } => {
                for (key, item) in &items {
                    let key = String::from_utf8_lossy(key);
                    output::print(&match read.format {
                        Format::Json => format!("{}\n", shown(key.as_bytes(), item)),
                        Format::Text => {
                            format!("{key}\t{}\n", String::from_utf8_lossy(&item.value))
                        }
                    })?;
                }
                if !more {
                    return Ok(Outcome::Fine);
                }
                after = items.into_iter().last().map(|(key, _)| key);
            }
            other => return unexpected(other),
        }
    }
}

async fn watch(prefix: String, from: u64, read: &ReadArgs) -> anyhow::Result<Outcome> {
    let mut visitor = visit(&read.at).await?;
    let question = Question::Watch { prefix: prefix.into_bytes(), from };
    let mut said = visitor.ask(&question).await?;
    loop {
        match said {
            Said::Changes { changes, .. } => {
                for change in changes {
                    let key = String::from_utf8_lossy(&change.key).into_owned();
                    let (what, number) = match change.what {
                        Changed::Written { version } => ("written", Some(version)),
                        Changed::Deleted => ("deleted", None),
                        Changed::Locked { session } => ("locked", Some(session)),
                        Changed::Unlocked => ("unlocked", None),
                    };
                    let index = change.index;
                    let number = number.map(|n| n.to_string()).unwrap_or_default();
                    let line = match read.format {
                        Format::Json => {
                            json!({ "index": index, "key": key, "what": what, "number": number })
                                .to_string()
                        }
                        Format::Text => format!("{index}\t{what}\t{key}\t{number}"),
                    };
                    if !output::print_on(&format!("{line}\n"))? {
                        return Ok(Outcome::Fine);
                    }
                }
            }
            Said::Compacted { first } => {
                output::complain(&format!("changes before {first} are no longer kept\n"));
            }
            other => return unexpected(other),
        }
        said = tokio::select! {
            said = visitor.next() => said?,
            () = output::reader_gone() => return Ok(Outcome::Fine),
        };
    }
}

async fn lock(
    key: String,
    ttl: Duration,
    at: &AtArgs,
    command: &[String],
) -> anyhow::Result<Outcome> {
    let mut visitor = visit(at).await?;
    let session = match ask(&mut visitor, Command::Session(SessionCommand::Open { ttl })).await? {
        Reply::SessionOpened { id } => id,
        other => return done(other),
    };
    let key = key.into_bytes();
    let token = loop {
        let wanted = LockCommand::Lock { key: key.clone(), session };
        match ask(&mut visitor, Command::Lock(wanted)).await? {
            Reply::Locked { token } => break token,
            Reply::Queued { position } => {
                output::complain(&format!("waiting; {position} are before\n"));
                renew(&mut visitor, session).await?;
                tokio::time::sleep(ttl / 4).await;
            }
            other => return done(other),
        }
    };
    let (program, rest) = command.split_first().context("name a command after --")?;
    // The answer may be old: only a renewal that is sent now says that the session lives, and until when.
    let mut held_until = renewed_until(&mut visitor, session, ttl).await?;
    let mut child = tokio::process::Command::new(program)
        .args(rest)
        .env("OUTLAST_TOKEN", token.to_string())
        // With what it starts itself, so that all of it can be ended.
        .process_group(0)
        .kill_on_drop(true)
        .spawn()
        .with_context(|| format!("start {program}"))?;
    let group = child.id().and_then(|pid| i32::try_from(pid).ok()).and_then(Pid::from_raw);
    let end = |why: &str| {
        if let Some(group) = group {
            // It may have ended by itself.
            rustix::process::kill_process_group(group, Signal::KILL).ok();
        }
        anyhow::anyhow!("{why}, and the command was ended")
    };
    let mut terminate = signal(SignalKind::terminate()).context("listen for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("listen for Ctrl-C")?;
    let status = loop {
        tokio::select! {
            status = child.wait() => break status.context("wait for the command")?,
            _ = terminate.recv() => return Err(end("SIGTERM came")),
            _ = interrupt.recv() => return Err(end("Ctrl-C came")),
            () = tokio::time::sleep(ttl / 4) => {
                let renewal = renewed_until(&mut visitor, session, ttl);
                match tokio::time::timeout_at(held_until, renewal).await {
                    Ok(Ok(until)) => held_until = until,
                    Ok(Err(error)) => return Err(error.context(end("the lock is lost"))),
                    Err(_elapsed) => return Err(end("the lock could not be renewed in time")),
                }
            }
        }
    };
    // The command is over; that the lock is free a little later changes nothing about it.
    ask(&mut visitor, Command::Session(SessionCommand::Close { id: session })).await.ok();
    let code = match (status.code(), status.signal()) {
        (Some(code), _) => u8::try_from(code).unwrap_or(u8::MAX),
        // As shells say it.
        (None, Some(signal)) => 128_u8.saturating_add(u8::try_from(signal).unwrap_or(0)),
        (None, None) => u8::MAX,
    };
    Ok(if code == 0 { Outcome::Fine } else { Outcome::Code(code) })
}

/// Renews the session; until when the lock is ours for certain, counted from when we asked.
async fn renewed_until(
    visitor: &mut Visitor,
    session: u64,
    ttl: Duration,
) -> anyhow::Result<tokio::time::Instant> {
    let asked = tokio::time::Instant::now();
    renew(visitor, session).await?;
    // A tenth for clocks, and for the time that it takes to end a command.
    Ok(asked + ttl - ttl / 10)
}

/// What one client of the measurement saw.
#[derive(Debug, Default)]
struct Seen {
    took: Vec<Duration>,
    failed: u64,
    /// The longest time without an answer that was good.
    gap: Duration,
}

async fn bench(args: &BenchArgs) -> anyhow::Result<Outcome> {
    let dir = verbs::data_dir(&args.at)?;
    let begun = std::time::Instant::now();
    let mut clients = tokio::task::JoinSet::new();
    for number in 0..args.clients {
        let mut visitor = Visitor::connect(&dir).await?;
        let (time, read) = (args.time, args.read);
        let value = vec![b'x'; usize::from(args.size)];
        clients.spawn(async move {
            let mut seen = Seen::default();
            let mut last_good = begun;
            for turn in 0_u64.. {
                if time <= begun.elapsed() {
                    break;
                }
                let key = format!("bench/{number}/{}", turn % 16).into_bytes();
                let question = if read {
                    Question::Get { key, fresh: true }
                } else {
                    let put = KvCommand::Put { key, value: value.clone(), session: None };
                    Question::Write { command: Command::Kv(put) }
                };
                let asked = std::time::Instant::now();
                match visitor.ask(&question).await {
                    Ok(Said::Replied { reply: Reply::Written { .. }, .. } | Said::Item { .. }) => {
                        seen.took.push(asked.elapsed());
                        seen.gap = seen.gap.max(last_good.elapsed());
                        last_good = std::time::Instant::now();
                    }
                    Ok(_) => seen.failed += 1,
                    Err(_) => {
                        seen.failed += 1;
                        break;
                    }
                }
            }
            seen
        });
    }
    let seen = clients.join_all().await;
    let took = begun.elapsed().as_secs_f64();
    let failed: u64 = seen.iter().map(|seen| seen.failed).sum();
    let gap = seen.iter().map(|seen| seen.gap).max().unwrap_or_default();
    let mut all: Vec<Duration> = seen.into_iter().flat_map(|seen| seen.took).collect();
    all.sort_unstable();
    let at = |share: usize| all.get((all.len() * share / 1000).min(all.len().saturating_sub(1)));
    let ms = |share| at(share).copied().unwrap_or_default().as_secs_f64() * 1e3;
    #[expect(clippy::cast_precision_loss, reason = "a count of requests is far below 2^52")]
    let rate = all.len() as f64 / took;
    let (p50, p99, max) = (ms(500), ms(990), ms(1000));
    let gap_ms = gap.as_secs_f64() * 1e3;
    output::print(&match args.format {
        Format::Json => format!(
            "{}\n",
            json!({ "per_second": rate, "p50_ms": p50, "p99_ms": p99, "max_ms": max,
                    "gap_ms": gap_ms, "done": all.len(), "failed": failed })
        ),
        Format::Text => format!(
            "{rate:.0}/s, {} done, {failed} failed; p50 {p50:.2} ms, p99 {p99:.2} ms, max {max:.1} ms; \
             longest without an answer {gap_ms:.0} ms\n",
            all.len()
        ),
    })?;
    Ok(if failed == 0 { Outcome::Fine } else { Outcome::Mistakes })
}

async fn ask(visitor: &mut Visitor, command: Command) -> anyhow::Result<Reply> {
    match visitor.ask(&Question::Write { command }).await? {
        Said::Replied { reply, .. } => Ok(reply),
        other => unexpected(other),
    }
}

async fn renew(visitor: &mut Visitor, session: u64) -> anyhow::Result<()> {
    match ask(visitor, Command::Session(SessionCommand::Renew { id: session })).await? {
        Reply::Refused { why } => bail!("renew the session: {why}"),
        _ => Ok(()),
    }
}

async fn nodes(read: &ReadArgs) -> anyhow::Result<Outcome> {
    let question = Question::Nodes { fresh: !read.local };
    match visit(&read.at).await?.ask(&question).await? {
        Said::Nodes { nodes } => {
            for (id, node) in nodes {
                output::print(&match read.format {
                    Format::Json => format!(
                        "{}\n",
                        json!({ "id": id, "name": node.name, "role": node.role.to_string(), "address": node.address })
                    ),
                    Format::Text => {
                        format!("{id:>6}  {:<16} {:<8} {}\n", node.name, node.role, node.address)
                    }
                })?;
            }
            Ok(Outcome::Fine)
        }
        other => unexpected(other),
    }
}
