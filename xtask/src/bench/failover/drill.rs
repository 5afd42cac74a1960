//! Random faults, one after the other, while a client writes without pause: nothing acknowledged is lost,
//! and nothing is there that nobody wrote.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::super::Finished;
use super::super::figures::Spread;
use crate::out;
use crate::postgres::analysis::{self, Blackout, Findings};
use crate::postgres::attempts::{Flow, Log};
use crate::postgres::machine::Part;
use crate::postgres::probe::{CLIENT, Pace, Probe};
use crate::postgres::stack::{self, NODES, Stack};
use crate::postgres::{monotonic, span};
use crate::random::Random;

/// Fifty rows a second.
const PACE: Pace = Pace { interval: Duration::from_millis(20), ..CLIENT };
const TABLE: &str = "drill";
const START_LIMIT: Duration = Duration::from_secs(150);
const RECOVERY_LIMIT: Duration = Duration::from_secs(120);
const RESUME_LIMIT: Duration = Duration::from_secs(60);
/// A frozen process wakes up again once writes flow without it, or after this.
const FREEZE_LIMIT: Duration = Duration::from_secs(20);
/// Undisturbed writes between two faults.
const CALM_WRITES: usize = 50;
const CALM_LIMIT: Duration = Duration::from_secs(30);
const FLOW: Flow = Flow { acknowledged_min: 50, calm: Duration::from_secs(1), percent_min: 90 };
const AFTER_FAULT: u64 = 300_000_000;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Fault {
    KillPostmaster,
    KillAgent,
    KillBoth,
    FreezePostgres,
    FreezeBoth,
    Switchover,
    RestartAgent,
}

impl Fault {
    const ALL: [Fault; 7] = [
        Fault::KillPostmaster,
        Fault::KillAgent,
        Fault::KillBoth,
        Fault::FreezePostgres,
        Fault::FreezeBoth,
        Fault::Switchover,
        Fault::RestartAgent,
    ];

    fn name(self) -> &'static str {
        match self {
            Fault::KillPostmaster => "kill postmaster",
            Fault::KillAgent => "kill agent",
            Fault::KillBoth => "kill both",
            Fault::FreezePostgres => "freeze PostgreSQL",
            Fault::FreezeBoth => "freeze both",
            Fault::Switchover => "switchover",
            Fault::RestartAgent => "restart agent",
        }
    }
}

/// One fault that was recovered from.
struct Episode {
    fault: Fault,
    begun: u64,
    recovery: Duration,
}

pub(super) async fn drill(
    mut stack: impl Stack,
    count: usize,
    seed: Option<u64>,
) -> Result<Finished> {
    let mut random = Random::new(seed);
    let seed = random.seed;
    out::line(format!("{count} random faults; seed {seed}"));
    let primary = stack::begun(&mut stack, START_LIMIT).await?;
    stack::create_table(&stack, primary, TABLE).await?;
    // Through all nodes: over a hundred faults, each of them is the primary at some time.
    let mut probe = Probe::start("drill", &stack.all_entries(), TABLE, PACE, stack.dir())?;
    let mut episodes = Vec::new();
    let mut broken = None;
    for number in 1..=count {
        let fault = Fault::ALL[random.index(Fault::ALL.len())];
        match episode(&mut stack, &mut probe, fault, &mut random).await {
            Ok((victim, episode)) => {
                let blackout = blackout(probe.look()?, episode.begun);
                out::line(format!(
                    "{number:4}  {:<18} {victim:<10} blackout {blackout:6.2} s, whole after {:6.2} s",
                    fault.name(),
                    episode.recovery.as_secs_f64()
                ));
                episodes.push(episode);
            }
            Err(error) => {
                let fault = format!("fault {number}, {}: {error:#}", fault.name());
                out::line(format!("NOT RECOVERED: {fault}"));
                broken = Some(fault);
                break;
            }
        }
    }
    let log = probe.finish().await?;
    let present = what_is_left(&mut stack).await;
    let present = present.with_context(|| match &broken {
        Some(fault) => format!("{fault}; what is left cannot be read"),
        None => "what is left cannot be read".to_owned(),
    })?;
    stack.stop().await;
    let begun = episodes.first().map_or_else(monotonic, |episode| episode.begun);
    let findings = analysis::analyse(&log, begun, &present, "");
    Ok(finish(seed, count, &episodes, &log, &findings, broken))
}

/// The rows that the primary holds, whatever the last fault has left dead.
async fn what_is_left(stack: &mut impl Stack) -> Result<BTreeSet<i64>> {
    for at in 0..NODES {
        stack.revive(at).await?;
    }
    let primary = stack::whole(stack, RECOVERY_LIMIT).await?;
    stack::present_rows(stack, primary, TABLE).await
}

/// One fault on the primary, or for an agent on any node, until all is as good as new.
async fn episode(
    stack: &mut impl Stack,
    probe: &mut Probe,
    fault: Fault,
    random: &mut Random,
) -> Result<(String, Episode)> {
    let primary = stack::whole(stack, RECOVERY_LIMIT).await?;
    calm(probe).await?;
    let any = random.index(NODES);
    let victim = match fault {
        Fault::KillAgent | Fault::RestartAgent => any,
        Fault::KillPostmaster
        | Fault::KillBoth
        | Fault::FreezePostgres
        | Fault::FreezeBoth
        | Fault::Switchover => primary,
    };
    let begun = monotonic();
    match fault {
        Fault::KillPostmaster => stack.machines()[victim].kill(Part::Postmaster).await?,
        Fault::KillAgent => stack.machines()[victim].kill(Part::Agent).await?,
        Fault::KillBoth => stack.machines()[victim].kill(Part::All).await?,
        Fault::FreezePostgres | Fault::FreezeBoth => {
            let part = if fault == Fault::FreezeBoth { Part::All } else { Part::Postgres };
            let frozen = stack.machines()[victim].freeze(part).await?;
            let _flows = probe.flows(begun + AFTER_FAULT, FREEZE_LIMIT, FLOW).await?;
            drop(frozen);
        }
        Fault::Switchover => {
            let to = stack.state().await?.candidate.context("nobody to switch over to")?;
            stack.switchover(victim, to).await?;
        }
        Fault::RestartAgent => stack.machines()[victim].end_agent().await?,
    }
    let flows = probe.flows(begun + AFTER_FAULT, RESUME_LIMIT, FLOW).await?;
    ensure!(flows, "writes do not resume within {RESUME_LIMIT:?}");
    stack.revive(victim).await?;
    stack::whole(stack, RECOVERY_LIMIT).await?;
    let role = if victim == primary { "primary" } else { "standby" };
    let recovery = span(begun, monotonic());
    Ok((format!("{} {role}", stack.node(victim)), Episode { fault, begun, recovery }))
}

async fn calm(probe: &mut Probe) -> Result<()> {
    let from = monotonic();
    let calm = probe.wait_until(CALM_LIMIT, |log| {
        let since = log.attempts.iter().rev().take_while(|attempt| from < attempt.ended);
        CALM_WRITES <= since.filter(|attempt| attempt.acknowledged()).count()
    });
    ensure!(calm.await?, "fewer than {CALM_WRITES} writes are acknowledged in {CALM_LIMIT:?}");
    Ok(())
}

/// Seconds, of what the client has seen since a moment.
fn blackout(log: &Log, since: u64) -> f64 {
    analysis::blackout(log, since).at_least().as_secs_f64()
}

fn finish(
    seed: u64,
    count: usize,
    episodes: &[Episode],
    log: &Log,
    findings: &Findings,
    broken: Option<String>,
) -> Finished {
    let mut complaints: Vec<String> = broken.into_iter().collect();
    if findings.lost > 0 {
        complaints.push(format!("{} acknowledged rows are lost", findings.lost));
    }
    if findings.unattempted > 0 {
        complaints.push(format!("{} rows are there that nobody wrote", findings.unattempted));
    }
    if matches!(findings.blackout, Blackout::Open(_)) {
        complaints.push("writes had not resumed at the end".to_owned());
    }
    let seen = seen(episodes, log);
    let head = ["fault", "count", "blackout s, median", "worst", "recovery s, worst"];
    let rows: Vec<Vec<String>> = seen.iter().map(|(fault, times)| row(*fault, times)).collect();
    let verdict = match complaints.as_slice() {
        [] => "nothing that was acknowledged is lost, and nothing is there that nobody wrote"
            .to_owned(),
        some => format!("NOT GOOD:\n  {}", some.join("\n  ")),
    };
    let table = format!(
        "\n{}\n\n{} rows acknowledged, {} requests failed, {} lost, {} from nobody\n{verdict}",
        out::table(&head, &rows),
        findings.acknowledged,
        findings.failed,
        findings.lost,
        findings.unattempted
    );
    let figures: Value = seen
        .iter()
        .map(|(fault, times)| {
            let (blackouts, recoveries): (Vec<f64>, Vec<f64>) = times.iter().copied().unzip();
            (
                fault.name().to_owned(),
                json!({ "blackout_seconds": blackouts, "recovery_seconds": recoveries }),
            )
        })
        .collect::<serde_json::Map<_, _>>()
        .into();
    let json = json!({
        "bench": "failover drill",
        "seed": seed,
        "faults": count,
        "recovered": episodes.len(),
        "figures": figures,
        "acknowledged": findings.acknowledged,
        "failed": findings.failed,
        "lost": findings.lost,
        "unattempted": findings.unattempted,
        "complaints": complaints,
        "holds": complaints.is_empty(),
    });
    Finished { table, json: json.to_string(), holds: complaints.is_empty() }
}

/// Blackouts and recoveries of each kind of fault, in seconds.
fn seen(episodes: &[Episode], log: &Log) -> BTreeMap<Fault, Vec<(f64, f64)>> {
    let mut seen: BTreeMap<Fault, Vec<(f64, f64)>> = BTreeMap::new();
    for (number, episode) in episodes.iter().enumerate() {
        // Up to the next fault.
        let end = episodes.get(number + 1).map_or(u64::MAX, |next| next.begun);
        let part = Log {
            attempts: log.attempts.iter().filter(|a| a.ended < end).cloned().collect(),
            starved: Vec::new(),
        };
        let rounded = |seconds: f64| (seconds * 1000.0).round() / 1000.0;
        let times =
            (rounded(blackout(&part, episode.begun)), rounded(episode.recovery.as_secs_f64()));
        seen.entry(episode.fault).or_default().push(times);
    }
    seen
}

fn row(fault: Fault, times: &[(f64, f64)]) -> Vec<String> {
    let (blackouts, recoveries): (Vec<f64>, Vec<f64>) = times.iter().copied().unzip();
    let spread = |values| Spread::of(values).expect("a fault stands here when it happened");
    let (blackout, recovery) = (spread(blackouts), spread(recoveries));
    vec![
        fault.name().to_owned(),
        times.len().to_string(),
        format!("{:.2}", blackout.median),
        format!("{:.2}", blackout.max),
        format!("{:.1}", recovery.max),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::postgres::attempts::{ACKNOWLEDGED, Attempt};

    fn log(moments_ms: &[u64]) -> Log {
        let attempts = moments_ms.iter().zip(1..).map(|(ms, id)| Attempt {
            id,
            started: ms * 1_000_000,
            ended: ms * 1_000_000,
            status: ACKNOWLEDGED.to_owned(),
            server: String::new(),
        });
        Log { attempts: attempts.collect(), starved: Vec::new() }
    }

    #[test]
    fn each_fault_has_its_own_blackout() {
        let log = log(&[0, 100, 1100, 1200, 4200, 4300]);
        let episode = |begun_ms: u64, fault| Episode {
            fault,
            begun: begun_ms * 1_000_000,
            recovery: Duration::from_secs(5),
        };
        let episodes = [episode(150, Fault::KillBoth), episode(1250, Fault::Switchover)];
        let seen = seen(&episodes, &log);
        assert_eq!(seen[&Fault::KillBoth], [(1.0, 5.0)]);
        assert_eq!(seen[&Fault::Switchover], [(3.0, 5.0)]);
    }

    #[test]
    fn one_lost_row_is_not_good() {
        let log = log(&[0, 10, 20]);
        let judge = |present: &[i64]| {
            let present: BTreeSet<i64> = present.iter().copied().collect();
            let findings = analysis::analyse(&log, 0, &present, "");
            finish(1, 1, &[], &log, &findings, None)
        };
        assert!(judge(&[1, 2, 3]).holds);
        assert!(!judge(&[1, 3]).holds);
        assert!(!judge(&[1, 2, 3, 4]).holds);
        assert!(judge(&[1, 3]).table.contains("1 acknowledged rows are lost"));
    }
}
