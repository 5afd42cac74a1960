//! What befalls the primary, and what a client saw of it.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::postgres::analysis::{self, Findings};
use crate::postgres::attempts::{Flow, Log};
use crate::postgres::machine::{Frozen, Part};
use crate::postgres::probe::{CLIENT, Probe, STALE};
use crate::postgres::stack::{self, Stack};
use crate::postgres::{monotonic, sample_for, span};
use crate::procs;
use crate::random::Random;

const WHOLE_LIMIT: Duration = Duration::from_secs(150);
const WARM_UP_LIMIT: Duration = Duration::from_secs(30);
const RESUME_LIMIT: Duration = Duration::from_secs(240);
/// A stack that lets a frozen PostgreSQL be its primary does so for ever.
const NEVER_AFTER: Duration = Duration::from_secs(30);
/// Undisturbed writes before the fault: these, and up to a period of the agents, so that the fault meets any moment of it.
const CALM_WRITES: usize = 200;
const PERIOD_MAX: Duration = Duration::from_secs(10);
/// Writes flow again when so many that began after the fault are acknowledged, and nearly all of the last seconds.
const FLOW: Flow = Flow { acknowledged_min: 300, calm: Duration::from_secs(6), percent_min: 90 };
/// Requests under way when a fault strikes may still be answered.
const AFTER_FAULT: u64 = 300_000_000;
/// Woken processes are watched for at least this long.
const WOKEN_MIN: Duration = Duration::from_secs(15);

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Scenario {
    KillNode,
    KillHost,
    FreezeNode,
    Switchover,
    KillPostmaster,
    FreezePostgres,
}

impl Scenario {
    pub(super) const ALL: [Scenario; 6] = [
        Scenario::KillNode,
        Scenario::KillHost,
        Scenario::FreezeNode,
        Scenario::Switchover,
        Scenario::KillPostmaster,
        Scenario::FreezePostgres,
    ];

    pub(super) fn letter(self) -> &'static str {
        match self {
            Scenario::KillNode => "A",
            Scenario::KillHost => "E",
            Scenario::FreezeNode => "B",
            Scenario::Switchover => "C",
            Scenario::KillPostmaster => "D",
            Scenario::FreezePostgres => "F",
        }
    }

    pub(super) fn says(self) -> &'static str {
        match self {
            Scenario::KillNode => "agent and PostgreSQL killed",
            Scenario::KillHost => "host that also leads the agreement",
            Scenario::FreezeNode => "agent and PostgreSQL frozen, woken",
            Scenario::Switchover => "planned switchover",
            Scenario::KillPostmaster => "postmaster alone killed",
            Scenario::FreezePostgres => "PostgreSQL alone frozen",
        }
    }

    pub(super) fn find(letter: &str) -> Option<Scenario> {
        Scenario::ALL.into_iter().find(|scenario| scenario.letter().eq_ignore_ascii_case(letter))
    }
}

/// One scenario, once.
#[derive(Clone, Debug)]
pub(super) struct Outcome {
    pub(super) findings: Findings,
    /// From the repair until all nodes were as good as new.
    pub(super) recovery: Duration,
    /// What a client got acknowledged by the woken old primary, and how much of it was lost.
    pub(super) stale: Option<(usize, usize)>,
    /// Of the time, somebody on this machine waited for a core.
    pub(super) stalled_percent: Option<f64>,
}

/// What the machine was busy with beside us, from one moment to another.
struct Noise {
    begun: u64,
    stalled: Option<Duration>,
}

impl Noise {
    fn begin() -> Noise {
        Noise { begun: monotonic(), stalled: procs::cpu_stall() }
    }

    fn percent(&self) -> Option<f64> {
        let stalled = procs::cpu_stall()?.saturating_sub(self.stalled?);
        Some(100.0 * stalled.as_secs_f64() / span(self.begun, monotonic()).as_secs_f64())
    }
}

/// One scenario from whole to whole.
pub(super) async fn befall(
    stack: &mut impl Stack,
    scenario: Scenario,
    number: usize,
    random: &mut Random,
) -> Result<Outcome> {
    let mut old = stack::whole(stack, WHOLE_LIMIT).await?;
    if scenario == Scenario::KillHost {
        stack.lead_from_primary().await.context("lead from the primary's node")?;
        old = stack::whole(stack, WHOLE_LIMIT).await?;
    }
    let table = format!("probe_{}_{number}", scenario.letter().to_lowercase());
    stack::create_table(stack, old, &table).await?;
    let name = format!("{}-{number}", scenario.letter());
    let dir = stack.dir().to_owned();
    let (entries, server) = (stack.entries(old), stack.addresses().server(old));
    let mut probe = Probe::start(&format!("probe-{name}"), &entries, &table, CLIENT, &dir)?;
    calm(stack.period(), &mut probe, random).await?;
    let stale = match scenario {
        Scenario::FreezeNode => Some(hang_on(&name, server, &table, &dir).await?),
        Scenario::KillNode
        | Scenario::KillHost
        | Scenario::Switchover
        | Scenario::KillPostmaster
        | Scenario::FreezePostgres => None,
    };

    let noise = Noise::begin();
    let fault = monotonic();
    let frozen = strike(stack, scenario, old).await?;
    let limit = if scenario == Scenario::FreezePostgres { NEVER_AFTER } else { RESUME_LIMIT };
    // A blackout that does not end is a finding, too.
    let _resumed = probe.flows(fault + AFTER_FAULT, limit, FLOW).await?;

    let stalled_percent = noise.percent();
    let repaired = monotonic();
    let log = if scenario == Scenario::FreezeNode {
        drop(frozen);
        sample_for(WOKEN_MIN.max(2 * stack.period())).await;
        probe.finish().await?
    } else {
        let log = probe.finish().await?;
        drop(frozen);
        log
    };
    stack.revive(old).await?;
    let stale = match stale {
        Some(stale) => Some(stale.finish().await?),
        None => None,
    };
    let last = stack::primary(stack, WHOLE_LIMIT).await?;
    let present = stack::present_rows(stack, last, &table).await?;
    let ours: BTreeSet<i64> = present.range(..STALE.id_base).copied().collect();
    let address = server.ip().to_string();
    let findings = analysis::analyse(&log, fault, &ours, &address);
    stack::whole(stack, WHOLE_LIMIT).await.context("wait for all nodes after the fault")?;
    let stale = stale.map(|log| after_waking(&log, repaired, &present));
    Ok(Outcome { findings, recovery: span(repaired, monotonic()), stale, stalled_percent })
}

/// Does it; what stands still until it is dropped is returned.
async fn strike(
    stack: &mut impl Stack,
    scenario: Scenario,
    primary: usize,
) -> Result<Option<Frozen>> {
    if scenario == Scenario::Switchover {
        let to = stack.state().await?.candidate.context("nobody to switch over to")?;
        stack.switchover(primary, to).await?;
        return Ok(None);
    }
    if scenario == Scenario::KillHost {
        stack.kill_beside(primary)?;
    }
    let machine = &stack.machines()[primary];
    match scenario {
        Scenario::KillNode | Scenario::KillHost => machine.kill(Part::All).await?,
        Scenario::KillPostmaster => machine.kill(Part::Postmaster).await?,
        Scenario::FreezeNode => return Ok(Some(machine.freeze(Part::All).await?)),
        Scenario::FreezePostgres => return Ok(Some(machine.freeze(Part::Postgres).await?)),
        Scenario::Switchover => {}
    }
    Ok(None)
}

/// Writes that nothing disturbs, for a while that differs.
async fn calm(period: Duration, probe: &mut Probe, random: &mut Random) -> Result<()> {
    let interval = CLIENT.interval.as_millis();
    let more = random.index(usize::try_from(period.min(PERIOD_MAX).as_millis() / interval)?.max(1));
    let want = CALM_WRITES + more;
    let calm = probe.wait_until(WARM_UP_LIMIT, |log| want <= log.acknowledged().count()).await?;
    ensure!(calm, "fewer than {want} writes were acknowledged before the fault");
    Ok(())
}

/// A client that hangs on to the old primary, whatever happens.
async fn hang_on(name: &str, at: SocketAddr, table: &str, dir: &Path) -> Result<Probe> {
    let mut stale = Probe::start(name, &[at], table, STALE, dir)?;
    let begun = stale.wait_until(WARM_UP_LIMIT, |log| log.acknowledged().count() > 2).await?;
    ensure!(begun, "a client of PostgreSQL itself gets no answer");
    Ok(stale)
}

/// How much was acknowledged after a moment, and how much of that is lost.
fn after_waking(log: &Log, woken: u64, present: &BTreeSet<i64>) -> (usize, usize) {
    let late = log.acknowledged().filter(|attempt| woken < attempt.ended);
    let late: Vec<i64> = late.map(|attempt| attempt.id).collect();
    (late.len(), late.iter().filter(|id| !present.contains(id)).count())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_scenario_is_found_by_its_letter() {
        for scenario in Scenario::ALL {
            let letter = scenario.letter();
            assert_eq!(Scenario::find(&letter.to_lowercase()), Some(scenario));
        }
        assert_eq!(Scenario::find("x"), None);
    }
}
