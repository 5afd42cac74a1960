//! An address that moves, under keepalived and under outlast: the same machines, the same faults, the same client.

mod fault;
mod report;
mod sight;
mod stage;
mod watch;

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use self::fault::Fault;
use self::report::{Column, Report};
use self::stage::Stage;
pub(super) use self::stage::led;
pub(crate) use self::watch::{client, echo};
use super::{Finished, Options, measure};
use crate::random::Random;
use crate::{out, workspace};

pub(super) const PACKAGES: &[&str] = &["keepalived", "procps"];

const BUSY_TIME: Duration = Duration::from_secs(60);
const BUSY_TIME_QUICK: Duration = Duration::from_secs(10);
/// A minute of load is enough once.
const BUSY_ROUNDS: usize = 1;

pub(super) fn run(options: Options, outlast: Option<PathBuf>) -> Result<Option<Finished>> {
    let faults = faults(options.only.as_deref())?;
    // The machines are a lab of outlast's, whoever keeps the address in it.
    let ours = outlast.is_some();
    let outlast = outlast.map_or_else(|| workspace::outlast(options.given.clone()), Ok)?;
    let report = measure(compare(&options, &outlast, ours, &faults))?;
    Ok(report.map(|report| Finished {
        table: report.table(),
        json: report.json(),
        holds: report.holds(),
    }))
}

/// Letters, or all.
fn faults(only: Option<&str>) -> Result<Vec<Fault>> {
    let Some(only) = only else { return Ok(Fault::ALL.to_vec()) };
    let letters = only.chars().filter(|letter| letter.is_alphabetic());
    let found: Option<Vec<Fault>> = letters.map(Fault::find).collect();
    let Some(found) = found.filter(|found| !found.is_empty()) else {
        bail!("--only takes letters of faults: A, B, C, D, E, F, H, L; not `{only}`");
    };
    Ok(found)
}

async fn compare(
    options: &Options,
    outlast: &Path,
    ours: bool,
    faults: &[Fault],
) -> Result<Report> {
    let mut report = Report::new(ours, faults);
    let takes_part = |column: &Column| match column {
        Column::KeepalivedDefault => !options.ours_only && !options.quick,
        Column::KeepalivedFast => !options.ours_only,
        Column::Outlast => ours,
    };
    for column in Column::ALL.into_iter().filter(takes_part) {
        out::line(format!("starting a lab of four machines: {}", column.name()));
        if let Err(error) = fight(column, options, outlast, faults, &mut report).await {
            report.fault(format!("{}: {error:#}", column.name()));
        }
    }
    Ok(report)
}

/// Through all faults.
async fn fight(
    column: Column,
    options: &Options,
    outlast: &Path,
    faults: &[Fault],
    report: &mut Report,
) -> Result<()> {
    let mut stage = Stage::up(column, outlast).await?;
    let mut random = Random::new(None);
    let busy = if options.quick { BUSY_TIME_QUICK } else { BUSY_TIME };
    for round in 1..=options.rounds {
        for &fault in faults.iter().filter(|f| round <= BUSY_ROUNDS || **f != Fault::Busy) {
            let outcome = fault::befall(&mut stage, fault, busy, &mut random).await;
            let outcome = outcome.map_err(|error| format!("{error:#}"));
            let told = report::told(&outcome);
            out::line(format!("round {round}, {}, {}: {told}", column.name(), fault.letter()));
            let broken = outcome.is_err();
            report.record((fault, column), outcome);
            if broken {
                // Nothing can be measured on what does not heal.
                stage.whole().await.with_context(|| format!("after {}", fault.says()))?;
            }
        }
    }
    stage.down().await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn letters_choose_faults() {
        assert_eq!(faults(None).unwrap(), Fault::ALL);
        assert_eq!(faults(Some("a,H")).unwrap(), [Fault::KillAgent, Fault::Heal]);
        assert!(faults(Some("ax")).is_err());
        assert!(faults(Some(",")).is_err());
    }
}
