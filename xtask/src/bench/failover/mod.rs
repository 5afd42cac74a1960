//! PostgreSQL with three nodes under Patroni, etcd and HAProxy, and under outlast: the same faults, the same client.

mod drill;
mod report;
mod scenario;

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use self::report::{Column, Durability, Report};
use self::scenario::Scenario;
use super::{Finished, Options, measure};
use crate::postgres::cost::{self, Cost};
use crate::postgres::ours::Ours;
use crate::postgres::patroni::{self, Patroni, Profile};
use crate::postgres::stack::{self, NODES, Stack};
use crate::random::Random;
use crate::{out, tools};

const START_LIMIT: Duration = Duration::from_secs(150);
const IDLE_TIME: Duration = Duration::from_secs(30);
const IDLE_TIME_QUICK: Duration = Duration::from_secs(10);

pub(super) const PACKAGES: &[&str] =
    &["haproxy", "etcd-server", "postgresql-15", "postgresql-client-15", "python3-venv"];

pub(super) fn run(options: Options, outlast: Option<PathBuf>) -> Result<Option<Finished>> {
    let drill = options.drill > 0;
    if outlast.is_none() || !(options.ours_only || drill) {
        tools::install_bench_pip()?;
    }
    if drill {
        return measure(run_drill(&options, outlast.as_deref()));
    }
    let scenarios = scenarios(options.only.as_deref())?;
    let report = measure(compare(&options, outlast.as_deref(), &scenarios))?;
    Ok(report.map(|report| Finished {
        table: report.table(),
        json: report.json(),
        holds: report.holds(),
    }))
}

async fn run_drill(options: &Options, outlast: Option<&Path>) -> Result<Finished> {
    let (count, seed) = (options.drill, options.seed);
    match outlast {
        Some(outlast) => drill::drill(Ours::start(outlast, true).await?, count, seed).await,
        None => drill::drill(Patroni::start(patroni::TIGHTEST, true).await?, count, seed).await,
    }
}

/// Letters, or all.
fn scenarios(only: Option<&str>) -> Result<Vec<Scenario>> {
    let Some(only) = only else { return Ok(Scenario::ALL.to_vec()) };
    let letters = only.chars().filter(|letter| letter.is_alphabetic());
    let found: Option<Vec<Scenario>> =
        letters.map(|letter| Scenario::find(&letter.to_string())).collect();
    let Some(found) = found.filter(|found| !found.is_empty()) else {
        bail!("--only takes letters of scenarios: A, B, C, D, E, F; not `{only}`");
    };
    Ok(found)
}

async fn compare(
    options: &Options,
    outlast: Option<&Path>,
    scenarios: &[Scenario],
) -> Result<Report> {
    if let Some(outlast) = outlast {
        // Before the others have taken their time.
        drop(Ours::prepare(outlast, true).await?);
    }
    let mut report = Report::new(outlast.is_some());
    for column in columns(options, outlast) {
        for durability in Durability::ALL {
            let what = format!("{}, {}", column.name(), durability.name());
            out::line(format!("starting three nodes: {what}"));
            let mut bout = Bout { column, durability, options, scenarios, report: &mut report };
            let quorum = durability == Durability::Quorum;
            let fought = match (profile(column), outlast) {
                (Some(profile), _) => bout.fight(Patroni::start(profile, quorum).await).await,
                (None, Some(outlast)) => bout.fight(Ours::start(outlast, quorum).await).await,
                (None, None) => Ok(()),
            };
            if let Err(error) = fought {
                report.fault(format!("{what}: {error:#}"));
            }
        }
    }
    Ok(report)
}

fn columns(options: &Options, outlast: Option<&Path>) -> Vec<Column> {
    let takes_part = |column: &Column| match column {
        Column::PatroniDefault => !options.ours_only && !options.quick,
        Column::PatroniTightest => !options.ours_only,
        Column::Outlast => outlast.is_some(),
    };
    Column::ALL.into_iter().filter(takes_part).collect()
}

fn profile(column: Column) -> Option<Profile> {
    match column {
        Column::PatroniDefault => Some(patroni::DEFAULT),
        Column::PatroniTightest => Some(patroni::TIGHTEST),
        Column::Outlast => None,
    }
}

/// One stack in one setting, through all scenarios.
struct Bout<'a> {
    column: Column,
    durability: Durability,
    options: &'a Options,
    scenarios: &'a [Scenario],
    report: &'a mut Report,
}

impl Bout<'_> {
    async fn fight(&mut self, started: Result<impl Stack>) -> Result<()> {
        let mut stack = started?;
        stack::begun(&mut stack, START_LIMIT).await?;
        if self.durability == Durability::Quorum {
            let cost = idle(&mut stack, self.options.quick).await;
            self.report.cost(self.column, cost);
        }
        let mut random = Random::new(None);
        let mut number = 0;
        for round in 1..=self.options.rounds {
            for &scenario in self.scenarios {
                number += 1;
                let outcome = scenario::befall(&mut stack, scenario, number, &mut random).await;
                let outcome = outcome.map_err(|error| format!("{error:#}"));
                let told = report::told(&outcome);
                let (name, durability) = (self.column.name(), self.durability.name());
                out::line(format!(
                    "round {round}, {name}, {durability}, {}: {told}",
                    scenario.letter()
                ));
                let broken = outcome.is_err();
                self.report.record((scenario, self.durability, self.column), outcome);
                if broken {
                    heal(&mut stack).await.with_context(|| format!("after {}", scenario.says()))?;
                }
            }
        }
        stack.stop().await;
        Ok(())
    }
}

/// Nothing can be measured on a stack that does not heal.
async fn heal(stack: &mut impl Stack) -> Result<()> {
    for at in 0..NODES {
        stack.revive(at).await?;
    }
    stack::whole(stack, START_LIMIT).await.map(drop)
}

/// The costliest node.
async fn idle(stack: &mut impl Stack, quick: bool) -> Cost {
    let groups: Vec<Vec<i32>> = (0..NODES).map(|at| stack.keepers(at)).collect();
    let time = if quick { IDLE_TIME_QUICK } else { IDLE_TIME };
    let costs = cost::measure(&groups, time).await;
    let most = |of: fn(&Cost) -> f64| costs.iter().map(of).fold(0.0, f64::max);
    Cost {
        cpu_percent: most(|cost| cost.cpu_percent),
        rss_mib: most(|cost| cost.rss_mib),
        node_mib: most(|cost| cost.node_mib),
        pss_mib: most(|cost| cost.pss_mib),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn letters_choose_scenarios() {
        assert_eq!(scenarios(None).unwrap(), Scenario::ALL);
        let chosen = scenarios(Some("a,D")).unwrap();
        assert_eq!(chosen, [Scenario::KillNode, Scenario::KillPostmaster]);
        assert!(scenarios(Some("ax")).is_err());
        assert!(scenarios(Some(",")).is_err());
    }
}
