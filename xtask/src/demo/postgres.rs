//! A database whose primary is killed and moved while someone writes to it and people watch.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::script::{STATUS_EVERY_FILE, STATUS_EVERY_TERMINAL, TURN};
use crate::postgres::analysis::{self, Blackout};
use crate::postgres::attempts::{Flow, Log};
use crate::postgres::machine::Part;
use crate::postgres::monotonic;
use crate::postgres::ours::Ours;
use crate::postgres::patroni::{self, Patroni};
use crate::postgres::probe::{CLIENT, Probe};
use crate::postgres::stack::{self, NODES, Stack};
use crate::{Verdict, children, out, tools};

const TABLE: &str = "demo";
const START_LIMIT: Duration = Duration::from_secs(150);
const RESUME_LIMIT: Duration = Duration::from_secs(120);
const WHOLE_LIMIT: Duration = Duration::from_secs(150);
/// Undisturbed writes before each act: three seconds of them.
const CALM_WRITES: usize = 300;
const CALM_LIMIT: Duration = Duration::from_secs(30);
const FLOW: Flow = Flow { acknowledged_min: 100, calm: Duration::from_secs(2), percent_min: 90 };
const AFTER_FAULT: u64 = 300_000_000;

/// Who looks after the database.
#[derive(Clone, Debug)]
pub(super) enum Keeper {
    Outlast(PathBuf),
    Patroni,
}

impl Keeper {
    pub(super) fn patroni() -> Result<Keeper> {
        tools::install_some(&["haproxy", "etcd-server", "python3-venv"])?;
        tools::install_bench_pip()?;
        Ok(Keeper::Patroni)
    }
}

pub(super) async fn play(keeper: &Keeper, once: bool) -> Result<Verdict> {
    tools::install_some(&["postgresql-15", "postgresql-client-15"])?;
    let verdict = children::unless_interrupted(async {
        match keeper {
            Keeper::Outlast(outlast) => show(Ours::start(outlast, true).await?, once).await,
            Keeper::Patroni => show(Patroni::start(patroni::TIGHTEST, true).await?, once).await,
        }
    });
    let verdict = verdict.await?.transpose()?;
    if verdict.is_none() {
        out::line("interrupted; everything is gone");
    }
    // Without --once there is no other end.
    Ok(verdict.unwrap_or(if once { Verdict::Bad } else { Verdict::Good }))
}

/// What happened in one act, for the table at the end.
struct Act {
    name: &'static str,
    from: String,
    to: String,
    blackout: Blackout,
    failed: usize,
    lost: usize,
    whole_after: Duration,
}

async fn show(mut stack: impl Stack, once: bool) -> Result<Verdict> {
    out::line("three nodes begin; the first makes the database, the others copy it");
    let primary = stack::begun(&mut stack, START_LIMIT).await?;
    for at in 0..NODES {
        let role = if at == primary { "primary" } else { "standby" };
        let server = stack.addresses().server(at);
        out::line(format!("node {:<8} PostgreSQL at {server}   {role}", stack.node(at)));
    }
    stack::create_table(&stack, primary, TABLE).await?;
    let entries = stack.all_entries();
    let shown: Vec<String> = entries.iter().map(ToString::to_string).collect();
    out::line(format!("a client writes a row every 10 ms through {}", shown.join(", ")));
    let probe = Probe::start("writer", &entries, TABLE, CLIENT, stack.dir())?;
    let clock = Clock { started: Instant::now(), status_due: Instant::now() };
    let mut show = Show { stack, probe, clock, acts: Vec::new() };
    loop {
        show.kill_primary().await?;
        show.switch_over().await?;
        if once {
            return show.end().await;
        }
    }
}

struct Show<S> {
    stack: S,
    probe: Probe,
    clock: Clock,
    acts: Vec<Act>,
}

impl<S: Stack> Show<S> {
    async fn kill_primary(&mut self) -> Result<()> {
        let old = self.calm().await?;
        let name = self.stack.node(old);
        self.say(format!("{name} dies: SIGKILL for its agent and its PostgreSQL, the primary"));
        let begun = monotonic();
        self.stack.machines()[old].kill(Part::All).await?;
        let new = self.watch_take_over(begun).await?;
        let to = self.stack.node(new);
        self.say(format!("{name} is started again; it has to become a standby of {to}"));
        let repaired = Instant::now();
        self.stack.revive(old).await?;
        self.whole().await?;
        let whole_after = repaired.elapsed();
        self.say(format!("{name} is a standby, {:.1} s later", whole_after.as_secs_f64()));
        self.conclude("kill primary", (old, new), begun, whole_after).await
    }

    async fn switch_over(&mut self) -> Result<()> {
        let old = self.calm().await?;
        let to = self.stack.state().await?.candidate.context("nobody to switch over to")?;
        let names = (self.stack.node(old), self.stack.node(to));
        self.say(format!("planned switchover from {} to {}", names.0, names.1));
        let begun = monotonic();
        self.stack.switchover(old, to).await?;
        let new = self.watch_take_over(begun).await?;
        ensure!(new == to, "{} is the primary, not {}", self.stack.node(new), names.1);
        let moved = Instant::now();
        self.whole().await?;
        self.conclude("switchover", (old, new), begun, moved.elapsed()).await
    }

    /// Undisturbed writes; the primary.
    async fn calm(&mut self) -> Result<usize> {
        let primary = self.whole().await?;
        let from = monotonic();
        let calm = self.watch(CALM_LIMIT, |log| {
            let since = log.attempts.iter().rev().take_while(|attempt| from < attempt.ended);
            CALM_WRITES <= since.filter(|attempt| attempt.acknowledged()).count()
        });
        ensure!(calm.await?, "fewer than {CALM_WRITES} rows are acknowledged in {CALM_LIMIT:?}");
        Ok(primary)
    }

    /// The new primary, once writes flow again; every row that was acknowledged so far is there.
    async fn watch_take_over(&mut self, begun: u64) -> Result<usize> {
        let flows =
            self.watch(RESUME_LIMIT, |log| log.flows(begun + AFTER_FAULT, monotonic(), &FLOW));
        ensure!(flows.await?, "writes do not resume within {RESUME_LIMIT:?}");
        let new = stack::primary(&mut self.stack, WHOLE_LIMIT).await?;
        let blackout = analysis::blackout(self.probe.look()?, begun).at_least();
        self.say(format!(
            "{} is the primary; nothing was acknowledged for {:.2} s",
            self.stack.node(new),
            blackout.as_secs_f64()
        ));
        let (acknowledged, lost) = self.verify(new).await?;
        self.say(format!("{acknowledged} rows acknowledged so far, {lost} of them missing"));
        Ok(new)
    }

    /// How many rows were acknowledged before we asked, and how many of them are not there.
    async fn verify(&mut self, at: usize) -> Result<(usize, usize)> {
        let acknowledged: Vec<i64> =
            self.probe.look()?.acknowledged().map(|attempt| attempt.id).collect();
        let present = stack::present_rows(&self.stack, at, TABLE).await?;
        let lost = acknowledged.iter().filter(|id| !present.contains(id)).count();
        Ok((acknowledged.len(), lost))
    }

    async fn conclude(
        &mut self,
        name: &'static str,
        (old, new): (usize, usize),
        begun: u64,
        whole_after: Duration,
    ) -> Result<()> {
        let (_, lost) = self.verify(new).await?;
        let findings = analysis::analyse(self.probe.look()?, begun, &BTreeSet::new(), "");
        let (from, to) = (self.stack.node(old), self.stack.node(new));
        let (blackout, failed) = (findings.blackout, findings.failed);
        self.acts.push(Act { name, from, to, blackout, failed, lost, whole_after });
        Ok(())
    }

    async fn end(self) -> Result<Verdict> {
        let Show { mut stack, probe, acts, .. } = self;
        let log = probe.finish().await?;
        let primary = stack::whole(&mut stack, WHOLE_LIMIT).await?;
        let present = stack::present_rows(&stack, primary, TABLE).await?;
        let complaints = complaints(&log, &present);
        out::line(render(&acts, &log, &complaints));
        stack.stop().await;
        Ok(if complaints.is_empty() { Verdict::Good } else { Verdict::Bad })
    }

    /// Shows what happens until the condition holds; false if it does not within the limit.
    async fn watch(&mut self, limit: Duration, mut done: impl FnMut(&Log) -> bool) -> Result<bool> {
        let end = Instant::now() + limit;
        loop {
            self.probe.check_running()?;
            let log = self.probe.look()?;
            if done(log) {
                return Ok(true);
            }
            if end <= Instant::now() {
                return Ok(false);
            }
            self.clock.status(log);
            tokio::time::sleep(TURN).await;
        }
    }

    /// Shows what happens until all nodes are as good as new; the primary.
    async fn whole(&mut self) -> Result<usize> {
        let Show { stack, probe, clock, .. } = self;
        let whole = stack::whole(stack, WHOLE_LIMIT);
        tokio::pin!(whole);
        loop {
            tokio::select! {
                whole = &mut whole => return whole,
                () = tokio::time::sleep(TURN) => clock.status(probe.look()?),
            }
        }
    }

    fn say(&self, text: impl std::fmt::Display) {
        out::line(format!("{:7.1} s  {text}", self.clock.started.elapsed().as_secs_f64()));
    }
}

struct Clock {
    started: Instant,
    status_due: Instant,
}

impl Clock {
    fn status(&mut self, log: &Log) {
        if Instant::now() < self.status_due {
            return;
        }
        let every = if out::is_terminal() { STATUS_EVERY_TERMINAL } else { STATUS_EVERY_FILE };
        self.status_due = Instant::now() + every;
        out::status(status(log, self.started.elapsed(), monotonic()));
    }
}

/// Counts since the start, and when the last row was acknowledged, by whom.
fn status(log: &Log, elapsed: Duration, now: u64) -> String {
    let acknowledged = log.acknowledged().count();
    let failed = log.attempts.len() - acknowledged;
    let last = log.acknowledged().last();
    let last = last.map_or_else(String::new, |last| {
        let ago = crate::postgres::span(last.ended, now).as_secs_f64();
        format!(" | last by {} {ago:.1} s ago", last.server)
    });
    let elapsed = elapsed.as_secs_f64();
    format!("{elapsed:7.1} s  {acknowledged} rows acknowledged, {failed} failed{last}")
}

/// Why the run does not count as a success; empty if it does.
fn complaints(log: &Log, present: &BTreeSet<i64>) -> Vec<String> {
    let findings = analysis::analyse(log, 0, present, "");
    let mut complaints = Vec::new();
    if findings.acknowledged == 0 {
        complaints.push("nothing was acknowledged".to_owned());
    }
    if findings.lost > 0 {
        complaints.push(format!("{} acknowledged rows are lost", findings.lost));
    }
    if findings.unattempted > 0 {
        complaints.push(format!("{} rows are there that nobody wrote", findings.unattempted));
    }
    complaints
}

fn render(acts: &[Act], log: &Log, complaints: &[String]) -> String {
    let head = ["act", "from", "to", "blackout", "failed", "lost", "whole after"];
    let row = |act: &Act| {
        vec![
            act.name.to_owned(),
            act.from.clone(),
            act.to.clone(),
            format!("{:.2} s", act.blackout.at_least().as_secs_f64()),
            act.failed.to_string(),
            act.lost.to_string(),
            format!("{:.1} s", act.whole_after.as_secs_f64()),
        ]
    };
    let rows: Vec<_> = acts.iter().map(row).collect();
    let verdict = match complaints {
        [] => "every acknowledged row is there, and no other".to_owned(),
        some => format!("NOT GOOD:\n  {}", some.join("\n  ")),
    };
    let acknowledged = log.acknowledged().count();
    format!(
        "\n{}\n\nblackout: the longest time without an acknowledged row; whole after: from the repair until three \
         nodes replicated again\n\n{acknowledged} rows acknowledged of {} tried\n{verdict}",
        out::table(&head, &rows),
        log.attempts.len()
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::postgres::attempts::{ACKNOWLEDGED, Attempt};

    fn log() -> Log {
        let attempt = |id, status: &str| Attempt {
            id,
            started: 1_000_000_000,
            ended: 2_000_000_000,
            status: status.to_owned(),
            server: "127.0.0.1".to_owned(),
        };
        Log { attempts: vec![attempt(1, ACKNOWLEDGED), attempt(2, "E_lost")], starved: Vec::new() }
    }

    #[test]
    fn what_failed_may_be_there_and_what_was_acknowledged_must_be() {
        assert!(complaints(&log(), &BTreeSet::from([1])).is_empty());
        assert!(complaints(&log(), &BTreeSet::from([1, 2])).is_empty());
        assert_eq!(complaints(&log(), &BTreeSet::from([2])), ["1 acknowledged rows are lost"]);
        let strange = complaints(&log(), &BTreeSet::from([1, 9]));
        assert_eq!(strange, ["1 rows are there that nobody wrote"]);
        let nothing = complaints(&Log::default(), &BTreeSet::new());
        assert_eq!(nothing, ["nothing was acknowledged"]);
    }

    #[test]
    fn the_status_says_who_acknowledged_last() {
        let shown = status(&log(), Duration::from_secs(9), 5_000_000_000);
        assert_eq!(shown, "    9.0 s  1 rows acknowledged, 1 failed | last by 127.0.0.1 3.0 s ago");
    }
}
