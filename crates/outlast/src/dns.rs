//! `outlast dns`: why a name is answered as it is, who is to serve it, and records from elsewhere.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context as _;
use clap::{Args, Subcommand};
use outlast::agent::admin::{self, Order};
use outlast_core::units::show_duration;
use serde::Deserialize;

use crate::Outcome;
use crate::cli::AtArgs;
use crate::databases::Format;
use crate::output::{self, Ink, Paint, plain};
use crate::verbs;

pub(crate) const AFTER_HELP: &str = "\
Examples:
  outlast dns explain api.example.com                    what is answered, why, and what each node sees
  outlast dns explain api.example.com --from 192.0.2.7   what a client there gets
  outlast dns pin api.example.com 192.0.2.2 --for 1h     who is to serve of a failover policy, while people work
  outlast dns unpin api.example.com                      back to what its health says
  outlast dns lower-ttl api.example.com --for 2h         before its move: caches forget it sooner; --end when it is done
  outlast dns import example.com example.com.zone        the records of a zone file, on all name servers

  outlast dns plan                                       what would be changed in other people's servers; push does it

docs/dns.md has the policies, what is agreed on, and how other servers follow.";

#[derive(Debug, Subcommand)]
pub(crate) enum DnsVerb {
    /// Says what a name is answered with, which policy chose it, what every node sees, and how long a client can be wrong.
    Explain(ExplainArgs),
    /// Has one value of a failover policy serve, as long as it is not down.
    Pin(PinArgs),
    /// Ends a pin.
    Unpin(UnpinArgs),
    /// Has all records of a name remembered for less long (`ttl_degraded`), so that a move that people plan is soon noticed.
    LowerTtl(LowerTtlArgs),
    /// Adds the records of a zone file (RFC 1035) to a zone; what the topology has stays the topology's.
    Import(ImportArgs),
    #[command(flatten)]
    Elsewhere(crate::dns_elsewhere::ElsewhereVerb),
}

#[derive(Debug, Args)]
pub(crate) struct ExplainArgs {
    /// The whole name, or what stands in the file.
    name: String,
    /// What a client at this address gets.
    #[arg(long, value_name = "IP")]
    from: Option<IpAddr>,
    #[arg(long, value_enum, default_value_t = Format::Text)]
    format: Format,
    #[command(flatten)]
    at: AtArgs,
}

#[derive(Debug, Args)]
pub(crate) struct PinArgs {
    /// The whole name.
    name: String,
    /// One of the values among which the policy chooses.
    value: String,
    /// How long; until `outlast dns unpin` if absent.
    #[arg(long = "for", value_name = "DURATION", value_parser = crate::agreed::duration)]
    lasts: Option<Duration>,
    #[command(flatten)]
    at: AtArgs,
}

#[derive(Debug, Args)]
pub(crate) struct UnpinArgs {
    /// The whole name.
    name: String,
    #[command(flatten)]
    at: AtArgs,
}

#[derive(Debug, Args)]
pub(crate) struct LowerTtlArgs {
    /// The whole name.
    name: String,
    /// How long, a day at most: it ends by itself. Said again, it counts from then.
    #[arg(
        long = "for",
        value_name = "DURATION",
        value_parser = crate::agreed::duration,
        required_unless_present = "end"
    )]
    lasts: Option<Duration>,
    /// Ends it now.
    #[arg(long, conflicts_with = "lasts")]
    end: bool,
    #[command(flatten)]
    at: AtArgs,
}

#[derive(Debug, Args)]
pub(crate) struct ImportArgs {
    zone: String,
    zone_file: PathBuf,
    #[command(flatten)]
    at: AtArgs,
}

pub(crate) fn run(verb: &DnsVerb) -> anyhow::Result<Outcome> {
    match verb {
        DnsVerb::Explain(args) => explain(args),
        DnsVerb::Pin(args) => {
            let order = Order {
                name: Some(args.name.clone()),
                value: Some(args.value.clone()),
                lasts_ms: args.lasts.map(millis),
                ..Order::default()
            };
            verbs::give(&args.at, "/v1/dns/pin", &order)
        }
        DnsVerb::Unpin(args) => {
            let order = Order { name: Some(args.name.clone()), ..Order::default() };
            verbs::give(&args.at, "/v1/dns/pin", &order)
        }
        DnsVerb::LowerTtl(args) => {
            let order = Order {
                name: Some(args.name.clone()),
                lasts_ms: args.lasts.map(millis),
                ..Order::default()
            };
            verbs::give(&args.at, "/v1/dns/lower-ttl", &order)
        }
        DnsVerb::Import(args) => {
            let shown = args.zone_file.display();
            let text = std::fs::read_to_string(&args.zone_file);
            let text = text.with_context(|| format!("read the zone file {shown}"))?;
            let order =
                Order { name: Some(args.zone.clone()), text: Some(text), ..Order::default() };
            verbs::give(&args.at, "/v1/dns/import", &order)
        }
        DnsVerb::Elsewhere(verb) => crate::dns_elsewhere::run(verb),
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

fn explain(args: &ExplainArgs) -> anyhow::Result<Outcome> {
    let order = Order { name: Some(args.name.clone()), from: args.from, ..Order::default() };
    let body = serde_json::to_string(&order)?;
    let dir = verbs::data_dir(&args.at)?;
    let asked = admin::ask(&dir, http::Method::POST, "/v1/dns/explain", body);
    let (status, said) = verbs::block_on(asked)?;
    if !status.is_success() {
        output::complain(&format!("{}\n", said.trim_end()));
        return Ok(Outcome::Mistakes);
    }
    match args.format {
        Format::Json => output::print(&format!("{}\n", said.trim_end()))?,
        Format::Text => {
            let all: Vec<Record> =
                serde_json::from_str(&said).context("understand the agent's answer")?;
            let ink = Ink { colour: output::output_may_have_colour() };
            let texts: Vec<String> = all.iter().map(|record| record.text(ink)).collect();
            output::print(&texts.join("\n"))?;
        }
    }
    Ok(Outcome::Fine)
}

/// One record, as the agent explains it.
#[derive(Debug, Deserialize)]
struct Record {
    why: Why,
    serial: Option<u32>,
    ttl_lowered_until: Option<String>,
    things: Vec<Thing>,
    wrong_at_most: Option<Worst>,
}

#[derive(Debug, Deserialize)]
struct Why {
    line: String,
    inner: Vec<Why>,
}

#[derive(Debug, Deserialize)]
struct Thing {
    of: String,
    health: String,
    since: Option<String>,
    reason: Option<String>,
    nodes: Vec<Sight>,
}

#[derive(Debug, Deserialize)]
struct Sight {
    node: String,
    health: String,
    reason: String,
}

#[derive(Debug, Deserialize)]
struct Worst {
    noticed_seconds: f64,
    agreed_seconds: f64,
    forgotten_seconds: f64,
    total_seconds: f64,
}

impl Record {
    fn text(&self, ink: Ink) -> String {
        let mut text = String::new();
        self.why.write(&mut text, 0, ink);
        match self.serial {
            Some(serial) => text += &format!("  serial {serial}\n"),
            None => {
                text += &format!("  {}\n", ink.on(Paint::Red, "this node does not answer for it"));
            }
        }
        if let Some(until) = &self.ttl_lowered_until {
            text += &format!("  its ttl is lower until {}, a person says\n", plain(until));
        }
        for thing in &self.things {
            let since =
                thing.since.as_ref().map(|at| format!(" since {}", plain(at))).unwrap_or_default();
            let reason =
                thing.reason.as_ref().map(|why| format!(": {}", plain(why))).unwrap_or_default();
            text += &format!(
                "  {} is {}{since}{reason}\n",
                plain(&thing.of),
                health(&thing.health, ink)
            );
            for sight in &thing.nodes {
                let reason = if sight.reason.is_empty() { "nothing yet" } else { &sight.reason };
                text += &format!(
                    "    {} sees it {}: {}\n",
                    plain(&sight.node),
                    health(&sight.health, ink),
                    plain(reason)
                );
            }
        }
        match &self.wrong_at_most {
            Some(worst) => {
                let [total, noticed, agreed, forgotten] = [
                    worst.total_seconds,
                    worst.noticed_seconds,
                    worst.agreed_seconds,
                    worst.forgotten_seconds,
                ]
                .map(|seconds| show_duration(Duration::from_secs_f64(seconds)));
                text += &format!(
                    "  a client is wrong for at most {total}: {noticed} until it is noticed, {agreed} until it is agreed \
                     on, {forgotten} until it is forgotten\n"
                );
            }
            None => text += "  its answer never changes by itself\n",
        }
        text
    }
}

impl Why {
    fn write(&self, text: &mut String, depth: usize, ink: Ink) {
        let line = plain(&self.line);
        let line = if depth == 0 { ink.on(Paint::Bold, &line) } else { line };
        *text += &format!("{:1$}{line}\n", "", depth * 2);
        self.inner.iter().for_each(|inner| inner.write(text, depth + 1, ink));
    }
}

fn health(word: &str, ink: Ink) -> String {
    match word {
        "up" => ink.on(Paint::Green, word),
        "down" => ink.on(Paint::Red, word),
        other => plain(other),
    }
}
