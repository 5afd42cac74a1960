//! `outlast dns plan` and `outlast dns push`: zones in other people's name servers, by hand.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;

use anyhow::{Context as _, ensure};
use clap::{Args, Subcommand};
use outlast::agent::admin;
use outlast::agent::face::status_json::{Mark, Status};
use outlast::agent::face::zone_status::ZoneStatus;
use outlast::elsewhere::{self, Healths, Place};
use outlast_core::health::Health;
use outlast_core::names::{FailoverId, Sticky};
use outlast_core::time::Instant;
use outlast_core::topology::{RecordKind, Topology};
use outlast_dns::elsewhere::{Outline, Trouble};
use serde_json::json;

use crate::cli::{AtArgs, Format};
use crate::output::{self, plain};
use crate::{Outcome, check, verbs};

pub(crate) const AFTER_HELP: &str = "\
A zone's `elsewhere` names servers that its records are kept in: BIND, Knot or PowerDNS by signed updates (RFC 2136), or
AWS Route 53. Only the names and types that the file has are touched; docs/dns-elsewhere.md says what becomes of policies.

Credentials for AWS come from where its own tools look for them: the environment, ~/.aws, a container or the instance.

Examples:
  outlast dns plan                      what would be changed, everywhere; changes nothing
  outlast dns plan example.com
  outlast dns push example.com          does it, once
  outlast dns push --without-agent      where no agent runs: as if everything were healthy

Exit status:
  0  as wanted; with plan: it can be made so
  1  something cannot be said there, and was left alone
  2  a server was not reached, or refuses";

#[derive(Debug, Subcommand)]
pub(crate) enum ElsewhereVerb {
    /// Shows what would be changed elsewhere, and changes nothing.
    #[command(after_help = AFTER_HELP)]
    Plan(ElsewhereArgs),
    /// Makes it elsewhere as the file and the agent's view of health say, once.
    #[command(after_help = AFTER_HELP)]
    Push(ElsewhereArgs),
}

#[derive(Debug, Args)]
pub(crate) struct ElsewhereArgs {
    /// The zone; all that are kept elsewhere if absent.
    #[arg(value_name = "ZONE")]
    zone: Option<String>,
    #[command(flatten)]
    at: AtArgs,
    /// Ask no agent what is healthy; everything counts as healthy.
    #[arg(long)]
    without_agent: bool,
    /// How to print.
    #[arg(long, value_enum, default_value_t = Format::Table)]
    format: Format,
}

pub(crate) fn run(verb: &ElsewhereVerb) -> anyhow::Result<Outcome> {
    let (args, does) = match verb {
        ElsewhereVerb::Plan(args) => (args, false),
        ElsewhereVerb::Push(args) => (args, true),
    };
    let Some(topology) = topology(&args.at.file)? else { return Ok(Outcome::Mistakes) };
    let zones: Vec<&String> = match &args.zone {
        Some(zone) => {
            let zone = zone.trim_end_matches('.');
            let found = topology.dns.get_key_value(zone);
            let (name, part) = found.with_context(|| format!("the file has no zone {zone}"))?;
            ensure!(!part.elsewhere.is_empty(), "the zone {name} has no `elsewhere`");
            vec![name]
        }
        None => {
            let kept = topology.dns.iter().filter(|(_, zone)| !zone.elsewhere.is_empty());
            kept.map(|(name, _)| name).collect()
        }
    };
    ensure!(!zones.is_empty(), "no zone of the file has `elsewhere`");
    let base = base(&args.at.file)?;
    verbs::block_on(async {
        let (healths, said, by) = if args.without_agent {
            let by = "no agent was asked: everything counts as healthy".to_owned();
            (Healths::new(), BTreeMap::new(), by)
        } else {
            healths(&args.at).await?
        };
        let mut done = Vec::new();
        for name in zones {
            let zone = &topology.dns[name];
            let wanted = elsewhere::wanted(
                name,
                zone,
                &healths,
                said.get(name).unwrap_or(&Sticky::default()),
            );
            for place in elsewhere::places(&topology.cluster.name, name, zone, &base) {
                let Place { name, server } = place;
                let result = match (server, &wanted) {
                    (Err(why), _) => Err(Trouble::Never(why)),
                    (Ok(_), Err(trouble)) => Err(trouble.clone()),
                    (Ok(server), Ok(wanted)) if does => Box::pin(server.push(wanted)).await,
                    (Ok(server), Ok(wanted)) => Box::pin(server.outline(wanted)).await,
                };
                done.push((name, result));
            }
        }
        output::print(&match args.format {
            Format::Table => table(&by, &done, does),
            Format::Json => format!("{:#}\n", as_json(&by, &done, does)),
        })?;
        Ok(outcome(&done))
    })
}

/// Each place and what has come of it.
type Done = [(String, Result<Outline, Trouble>)];

fn outcome(done: &Done) -> Outcome {
    if done.iter().any(|(_, result)| result.is_err()) {
        Outcome::Unable
    } else if done.iter().flat_map(|(_, result)| result).any(|outline| !outline.refused.is_empty())
    {
        Outcome::Mistakes
    } else {
        Outcome::Fine
    }
}

fn table(by: &str, done: &Done, does: bool) -> String {
    let mut text = format!("{}\n", plain(by));
    for (place, result) in done {
        // A `String` takes everything.
        let mut say = |line: &str| writeln!(text, "{}", plain(line)).unwrap_or_default();
        say("");
        match result {
            Ok(outline) if outline.lines.is_empty() => say(&format!("{place}: as wanted")),
            Ok(_) if does => say(&format!("{place}: done")),
            Ok(_) => say(&format!("{place}: would be changed")),
            Err(trouble) => say(&format!("{place}: error: {trouble}")),
        }
        if let Ok(outline) = result {
            outline.to_string().lines().for_each(|line| say(&format!("  {line}")));
        }
    }
    text
}

fn as_json(by: &str, done: &Done, does: bool) -> serde_json::Value {
    let places: Vec<_> = done
        .iter()
        .map(|(place, result)| match result {
            Ok(outline) => json!({
                "place": place, "changes": outline.lines, "warnings": outline.warnings, "refused": outline.refused, "error": null,
            }),
            Err(trouble) => json!({
                "place": place, "changes": [], "warnings": [], "refused": [], "error": trouble.to_string(),
            }),
        })
        .collect();
    json!({ "v": 1, "done": does, "health": by, "places": places })
}

/// The file, if it makes sense; else its mistakes are shown.
pub(crate) fn topology(file: &Path) -> anyhow::Result<Option<Topology>> {
    let (name, text) = check::read(file)?;
    match outlast::file::parse(&name, &text) {
        Ok(topology) => Ok(Some(topology)),
        Err(complaints) => {
            output::complain(&complaints.to_string());
            Ok(None)
        }
    }
}

/// Where relative paths of the file count from.
pub(crate) fn base(file: &Path) -> anyhow::Result<std::path::PathBuf> {
    let file = std::path::absolute(file)?;
    Ok(file.parent().unwrap_or(&file).to_owned())
}

/// What the agent of this machine knows, and who that is: what is healthy, and of each zone what people have said.
async fn healths(at: &AtArgs) -> anyhow::Result<(Healths, BTreeMap<String, Sticky>, String)> {
    let dir = verbs::data_dir(at)?;
    let asked = admin::ask(&dir, http::Method::GET, "/v1/status", String::new()).await;
    let (code, text) = asked.context(
        "find out what is healthy; where no agent runs, --without-agent takes everything for healthy",
    )?;
    ensure!(code.is_success(), "the agent answers {code}: {}", text.trim_end());
    let status: Status = serde_json::from_str(&text).context("understand the agent's answer")?;
    let by = format!("health as the agent of {} knows it", status.node);
    let said = status.dns.iter().map(|(name, zone)| (name.clone(), lowered(zone))).collect();
    Ok((known(&status), said, by))
}

fn lowered(zone: &ZoneStatus) -> Sticky {
    let records = zone.records.iter().filter_map(|record| {
        record.ttl_lowered_until.as_ref()?;
        let kind = RecordKind::ALL.into_iter().find(|kind| kind.word() == record.kind)?;
        let id = FailoverId { name: record.name.clone(), kind, path: Vec::new() };
        // When it ends is the agents' business.
        Some((id, Instant::default()))
    });
    Sticky { lowered: records.collect(), ..Sticky::default() }
}

fn known(status: &Status) -> Healths {
    let health = |mark: Mark| match mark {
        Mark::Up | Mark::Degraded => Health::Up,
        Mark::Down => Health::Down,
        Mark::Unknown => Health::Unknown,
    };
    let services = status.services.iter().map(|(name, s)| (format!("service.{name}"), s.state));
    let externals = status.externals.iter().map(|(name, e)| (format!("external.{name}"), e.health));
    let processes = status.processes.iter().map(|(name, p)| (format!("process.{name}"), p.health));
    let all = services.chain(externals).chain(processes);
    all.map(|(name, mark)| (name, health(mark))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn people_and_programs_are_told_the_same() {
        let outline = Outline {
            lines: vec!["+ api.example.com. 60 A 192.0.2.1".to_owned()],
            warnings: vec!["w".to_owned()],
            refused: vec!["geo.example.com. A: \u{1b}no".to_owned()],
        };
        let done = [
            ("example.com at 192.0.2.53:53".to_owned(), Ok(outline)),
            ("example.com at Route 53 zone Z1".to_owned(), Ok(Outline::default())),
            ("example.org at 192.0.2.53:53".to_owned(), Err(Trouble::Later("away".to_owned()))),
        ];
        expect_test::expect![[r#"
            by hand

            example.com at 192.0.2.53:53: done
              + api.example.com. 60 A 192.0.2.1
              warning: w
              left alone: geo.example.com. A:  no

            example.com at Route 53 zone Z1: as wanted

            example.org at 192.0.2.53:53: error: away
        "#]]
        .assert_eq(&table("by hand", &done, true));
        let json = as_json("by hand", &done, true);
        assert_eq!(json["places"][0]["changes"][0], "+ api.example.com. 60 A 192.0.2.1");
        assert_eq!(json["places"][2]["error"], "away");
        assert_eq!(outcome(&done), Outcome::Unable);
        assert_eq!(outcome(&done[..2]), Outcome::Mistakes);
        assert_eq!(outcome(&done[1..2]), Outcome::Fine);
    }
}
