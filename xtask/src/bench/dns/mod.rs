//! Names that move, and what an answer costs: our name server beside gdnsd, PowerDNS, Knot and NSD, in one run.

mod alone;
mod cost;
mod moves;
mod net;
mod report;
mod rubbish;
mod stage;
mod systems;
mod watch;
mod wire;

use std::path::{Path, PathBuf};

use anyhow::{Result, bail};

use self::moves::Stall;
use self::report::{Part, Report, Who};
use self::stage::Stage;
use super::{Finished, Options, measure};
use crate::children::Household;
use crate::out;
use crate::random::Random;

pub(super) const PACKAGES: &[&str] =
    &["gdnsd", "pdns-server", "pdns-backend-bind", "knot", "nsd", "dnsperf", "iproute2"];

/// Restarts of part C for each round of the others.
const RESTARTS_PER_ROUND: usize = 5;
/// What a query costs is known after so many rounds.
const COST_ROUNDS_MAX: usize = 5;

pub(super) fn run(options: Options, outlast: Option<PathBuf>) -> Result<Option<Finished>> {
    let parts = parts(options.only.as_deref())?;
    let report = measure(compare(&options, outlast.as_deref(), &parts))?;
    Ok(report.map(|report| Finished {
        table: report.table(),
        json: report.json(),
        holds: report.holds(),
    }))
}

/// Letters, or all.
fn parts(only: Option<&str>) -> Result<Vec<Part>> {
    let Some(only) = only else { return Ok(Part::ALL.to_vec()) };
    let letters = only.chars().filter(|letter| letter.is_alphabetic());
    let found: Option<Vec<Part>> = letters.map(Part::find).collect();
    let Some(mut found) = found.filter(|found| !found.is_empty()) else {
        bail!("--only takes letters of parts: A, B, C, D, E; not `{only}`");
    };
    found.sort_unstable();
    found.dedup();
    Ok(found)
}

async fn compare(options: &Options, outlast: Option<&Path>, parts: &[Part]) -> Result<Report> {
    // Dropped last: ends whatever an agent that was killed has left.
    let _household = Household::found()?;
    let mut report = Report::new(outlast.is_some(), parts);
    let mut random = Random::new(options.seed);
    out::line(format!("seed {}", random.seed));
    let moving = |part: &&Part| matches!(part, Part::Failover | Part::Cut | Part::Restart);
    let moving: Vec<Part> = parts.iter().filter(moving).copied().collect();
    if !moving.is_empty()
        && let Err(error) = move_names(options, outlast, &moving, &mut random, &mut report).await
    {
        report.fault(format!("{error:#}"));
    }
    for part in parts {
        let done = match part {
            Part::Failover | Part::Cut | Part::Restart => continue,
            Part::Cost => {
                let rounds = options.rounds.min(COST_ROUNDS_MAX);
                let takes_part = |who: &Who| takes_part(*who, options, outlast);
                let stall = Stall::begin();
                let done =
                    cost::compare(rounds, options.quick, takes_part, outlast, &mut report).await;
                note(stall, *part, &mut report);
                done
            }
            Part::Rubbish => match outlast {
                Some(outlast) => {
                    rubbish::throw(options.quick, outlast, &mut random, &mut report).await
                }
                None => Ok(()),
            },
        };
        if let Err(error) = done {
            report.fault(format!("{error:#}"));
        }
    }
    Ok(report)
}

fn takes_part(who: Who, options: &Options, outlast: Option<&Path>) -> bool {
    if who.is_ours() { outlast.is_some() } else { !options.ours_only }
}

/// How busy the machine was during a part.
fn note(stall: Stall, part: Part, report: &mut Report) {
    if let Some(noise) = stall.says() {
        report.note(part, noise);
    }
}

/// The parts that have one stage.
async fn move_names(
    options: &Options,
    outlast: Option<&Path>,
    parts: &[Part],
    random: &mut Random,
    report: &mut Report,
) -> Result<()> {
    let mut who = systems::FOLLOWERS.to_vec();
    who.retain(|who| takes_part(*who, options, outlast));
    out::line("starting three machines with name servers");
    let mut stage = Stage::up(&who, outlast).await?;
    for part in parts {
        let stall = Stall::begin();
        match part {
            Part::Failover => {
                moves::failovers(&mut stage, &who, options.rounds, random, report).await?;
            }
            Part::Cut => moves::cuts(&mut stage, options.rounds, random, report).await?,
            Part::Restart => {
                let restarts = options.rounds * RESTARTS_PER_ROUND;
                moves::restarts(&mut stage, &who, restarts, report).await?;
            }
            Part::Cost | Part::Rubbish => {}
        }
        note(stall, *part, report);
    }
    stage.down().await;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn letters_choose_parts() {
        assert_eq!(parts(None).unwrap(), Part::ALL);
        assert_eq!(parts(Some("d,A")).unwrap(), [Part::Failover, Part::Cost]);
        assert!(parts(Some("ax")).is_err());
        assert!(parts(Some(",")).is_err());
    }
}
