//! The product's first claim, put to the test: no failed request and no reset connection over restarts of backends one by
//! one, reloads, upgrades of the binary and kills of the agent, under load.

mod deeds;
mod journal;
mod ledger;
mod load;
mod stage;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde_json::{Map, Value, json};

use self::ledger::{Noted, Tally, median};
use self::load::{Load, RATE_PER_SECOND};
use self::stage::Stage;
use super::{Finished, Options, measure};
use crate::out;

/// Of the requests that should have been sent.
const RATE_SHARE_MIN: f64 = 0.95;
/// Load before the first deed and after the last.
const CALM: Duration = Duration::from_secs(1);
/// From one deed to the next, at least: each is to meet requests.
const PERIOD: Duration = Duration::from_millis(500);

/// What is done to the running system.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// SIGTERM to a backend, which finishes and ends, and is started again.
    Restart,
    /// SIGKILL to a backend.
    KillBackend,
    Reload,
    BadFile,
    Upgrade,
    KillAgent,
    KillProxy,
}

impl Kind {
    const ALL: [Kind; 7] = [
        Kind::Restart,
        Kind::KillBackend,
        Kind::Reload,
        Kind::BadFile,
        Kind::Upgrade,
        Kind::KillAgent,
        Kind::KillProxy,
    ];

    fn name(self) -> &'static str {
        match self {
            Kind::Restart => "restart of a backend",
            Kind::KillBackend => "kill of a backend (GET only)",
            Kind::Reload => "reload",
            Kind::BadFile => "reload of a bad file",
            Kind::Upgrade => "upgrade of the binary",
            Kind::KillAgent => "kill of the agent",
            Kind::KillProxy => "kill of the proxy",
        }
    }

    fn key(self) -> &'static str {
        match self {
            Kind::Restart => "restart",
            Kind::KillBackend => "kill_backend",
            Kind::Reload => "reload",
            Kind::BadFile => "bad_file",
            Kind::Upgrade => "upgrade",
            Kind::KillAgent => "kill_agent",
            Kind::KillProxy => "kill_proxy",
        }
    }

    /// How often it is done; of the hundred restarts, twenty are kills.
    fn times(self, quick: bool) -> usize {
        let (full, quickly) = match self {
            Kind::Restart => (80, 9),
            Kind::KillBackend => (20, 3),
            Kind::Reload => (20, 4),
            Kind::BadFile => (1, 1),
            Kind::Upgrade => (10, 2),
            Kind::KillAgent => (10, 2),
            Kind::KillProxy => (3, 1),
        };
        if quick { quickly } else { full }
    }

    /// Whoever loses the process that carries its request loses the request.
    fn may_cut(self) -> bool {
        self == Kind::KillProxy
    }
}

/// One deed that was done.
#[derive(Debug)]
struct Deed {
    kind: Kind,
    begun: Instant,
    took: Option<Duration>,
}

/// All deeds of a run, and what became of the requests meanwhile.
#[derive(Debug)]
struct Report {
    deeds: Vec<Deed>,
    tallies: Vec<(Kind, Tally)>,
    /// Of the requests that should have been sent.
    rate_share: f64,
    /// What did not happen as it should.
    faults: Vec<String>,
}

pub(super) fn run(options: Options, outlast: Option<PathBuf>) -> Result<Option<Finished>> {
    let outlast = outlast.context("--peers-only: there is nobody else here")?;
    let report = measure(play(&outlast, options.quick))?;
    Ok(report.map(|report| Finished {
        table: report.table(),
        json: report.json(),
        holds: report.holds(),
    }))
}

async fn play(outlast: &Path, quick: bool) -> Result<Report> {
    let mut stage = Stage::set(outlast)?;
    stage.wait_until_all_serve().await?;
    let load = Load::start(stage.service);
    tokio::time::sleep(CALM).await;
    let (mut deeds, mut faults) = (Vec::new(), Vec::new());
    let started = Instant::now();
    for kind in Kind::ALL {
        let times = kind.times(quick);
        for turn in 0..times {
            out::status(format!(
                "{:6.1} s  {} {} of {times}",
                started.elapsed().as_secs_f64(),
                kind.name(),
                turn + 1
            ));
            let begun = Instant::now();
            let done = deeds::doing(kind, turn, &mut stage, &load).await;
            deeds.push(Deed { kind, begun, took: done.as_ref().ok().copied() });
            if let Err(error) = done {
                faults.push(format!("{} {}: {error:#}", kind.name(), turn + 1));
                out::line(faults.last().map_or("", String::as_str));
                // What is not as it was would only fail again.
                stage.agent.check_running()?;
            }
            tokio::time::sleep(PERIOD.saturating_sub(begun.elapsed())).await;
        }
    }
    tokio::time::sleep(CALM).await;
    let time = started.elapsed() + CALM;
    let noted = load.finish()?;
    if !stage.strike().await {
        faults.push("something did not end by itself and was killed".to_owned());
    }
    out::status("");
    #[expect(clippy::cast_precision_loss, reason = "far fewer requests than 2^52")]
    let rate_share = noted.len() as f64 / (time.as_secs_f64() * RATE_PER_SECOND);
    let tallies = tallies(&deeds, &noted);
    Ok(Report { deeds, tallies, rate_share, faults })
}

/// A request belongs to the deed before its end: whatever was under way was hit by it.
fn tallies(deeds: &[Deed], noted: &[Noted]) -> Vec<(Kind, Tally)> {
    let mut tallies: Vec<_> = Kind::ALL.iter().map(|&kind| (kind, Tally::new())).collect();
    for noted in noted {
        let after = deeds.partition_point(|deed| deed.begun <= noted.done());
        let kind = deeds.get(after.saturating_sub(1)).map(|deed| deed.kind);
        if let Some((_, tally)) = tallies.iter_mut().find(|(of, _)| Some(*of) == kind) {
            tally.add(noted);
        }
    }
    tallies
}

/// Something that is counted and must not be more than this.
struct Goal {
    name: &'static str,
    max: u64,
    count: u64,
}

impl Report {
    /// Everything but the deeds that may cut what is under way.
    fn total(&self) -> Tally {
        let mut total = Tally::new();
        for (_, tally) in self.tallies.iter().filter(|(kind, _)| !kind.may_cut()) {
            total.merge(tally);
        }
        total
    }

    fn goals(&self) -> Vec<Goal> {
        let total = self.total();
        let cutting = self.tallies.iter().filter(|(kind, _)| kind.may_cut());
        let refused = cutting.map(|(_, tally)| tally.failed - tally.cut).sum();
        let goal = |name, count| Goal { name, max: 0, count };
        vec![
            goal("failed requests", total.failed),
            goal("reset connections", total.cut),
            goal("failed requests that were not under way when the proxy was killed", refused),
            goal("deeds that did not go as they should", self.faults.len() as u64),
        ]
    }

    fn holds(&self) -> bool {
        self.rate_share >= RATE_SHARE_MIN && self.goals().iter().all(|goal| goal.count <= goal.max)
    }

    fn times(&self, kind: Kind) -> Vec<Duration> {
        self.deeds.iter().filter(|deed| deed.kind == kind).filter_map(|deed| deed.took).collect()
    }

    fn table(&self) -> String {
        let head = [
            "deed", "done", "median", "longest", "requests", "POSTs", "failed", "reset", "p99",
            "max",
        ];
        let rows: Vec<_> =
            self.tallies.iter().map(|(kind, tally)| self.row(*kind, tally)).collect();
        let mut lines = vec![String::new(), out::table(&head, &rows), String::new()];
        lines.push("median, longest: a restart until the backend is up again, a reload until it is answered, an upgrade".to_owned());
        lines.push("and a kill of the agent until the agent answers, a kill of the proxy until the first connection that".to_owned());
        lines.push("arrived without it is served; p99, max: what requests took meanwhile. Backends are killed under GETs only:".to_owned());
        lines.push("a POST whose backend dies under it may have taken effect, so nobody may send it twice.".to_owned());
        for (kind, tally) in &self.tallies {
            for (failure, count) in &tally.failures {
                let word = if kind.may_cut() { "under way" } else { "FAILED" };
                lines.push(format!("{word}: {count} x {failure}, {}", kind.name()));
            }
        }
        lines.extend(self.faults.iter().map(|fault| format!("FAULT: {fault}")));
        if self.rate_share < RATE_SHARE_MIN {
            lines.push(format!(
                "MISSED: only {:.0} % of the requests were sent",
                self.rate_share * 100.0
            ));
        }
        for goal in self.goals().iter().filter(|goal| goal.count > goal.max) {
            lines.push(format!("MISSED: {} {}", goal.count, goal.name));
        }
        if self.holds() {
            let total = self.total();
            lines
                .push(format!("{} requests, none failed, no connection was reset", total.requests));
        }
        lines.join("\n")
    }

    fn row(&self, kind: Kind, tally: &Tally) -> Vec<String> {
        let times = self.times(kind);
        let longest = times.iter().max().copied();
        let show = |time: Option<Duration>| time.map_or_else(String::new, millis);
        vec![
            kind.name().to_owned(),
            times.len().to_string(),
            show(median(times)),
            show(longest),
            tally.requests.to_string(),
            tally.posts.to_string(),
            tally.failed.to_string(),
            tally.cut.to_string(),
            millis(tally.latencies.quantile(0.99)),
            millis(tally.latency_max),
        ]
    }

    /// One line for machines; times in seconds.
    fn json(&self) -> String {
        let figure = |(kind, tally): &(Kind, Tally)| {
            let times = self.times(*kind);
            let longest = times.iter().max().map(Duration::as_secs_f64);
            let value = json!({
                "done": times.len(),
                "median": median(times).map(|time| time.as_secs_f64()),
                "longest": longest,
                "requests": tally.requests,
                "posts": tally.posts,
                "failed": tally.failed,
                "reset": tally.cut,
                "refused": tally.refused,
                "p99": tally.latencies.quantile(0.99).as_secs_f64(),
                "max": tally.latency_max.as_secs_f64(),
            });
            (kind.key().to_owned(), value)
        };
        let figures: Map<String, Value> = self.tallies.iter().map(figure).collect();
        let goals: Vec<_> = self
            .goals()
            .iter()
            .map(|goal| {
                let (name, count, max) = (goal.name, goal.count, goal.max);
                json!({ "name": name, "count": count, "max": max, "holds": count <= max })
            })
            .collect();
        json!({
            "bench": "resilience",
            "figures": figures,
            "goals": goals,
            "rate_share": self.rate_share,
            "faults": self.faults,
            "holds": self.holds(),
        })
        .to_string()
    }
}

fn millis(time: Duration) -> String {
    format!("{:.1} ms", time.as_secs_f64() * 1000.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::load::{Method, Outcome, Sample};

    fn report(outcomes: &[(u64, Outcome)]) -> Report {
        let start = Instant::now();
        let at = |millis| start + Duration::from_millis(millis);
        let deed = |kind, begun| Deed { kind, begun: at(begun), took: Some(CALM) };
        let deeds = vec![deed(Kind::Restart, 0), deed(Kind::KillProxy, 1000)];
        let noted: Vec<_> = outcomes
            .iter()
            .map(|&(due, outcome)| {
                let latency = Duration::from_millis(100);
                Noted::from(Sample {
                    due: at(due),
                    latency,
                    method: Method::Get,
                    outcome,
                    body: &[],
                })
            })
            .collect();
        let tallies = tallies(&deeds, &noted);
        Report { deeds, tallies, rate_share: 1.0, faults: Vec::new() }
    }

    #[test]
    fn what_was_under_way_when_the_proxy_was_killed_is_no_failure() {
        let good = report(&[(500, Outcome::Ok), (950, Outcome::Cut), (1100, Outcome::Ok)]);
        assert!(good.holds(), "{}", good.table());
        let json: Value = serde_json::from_str(&good.json()).unwrap();
        assert_eq!(
            (&json["holds"], &json["figures"]["kill_proxy"]["reset"]),
            (&json!(true), &json!(1))
        );
    }

    #[test]
    fn a_connection_that_is_cut_refused_or_late_is_a_failure() {
        for (due, outcome) in
            [(500, Outcome::Cut), (500, Outcome::Status(502)), (1100, Outcome::Refused)]
        {
            let bad = report(&[(due, outcome)]);
            assert!(!bad.holds() && bad.table().contains("MISSED"), "{outcome:?}");
        }
        let mut bad = report(&[(500, Outcome::Ok)]);
        bad.faults.push("the old proxy has not ended".to_owned());
        assert!(!bad.holds());
    }
}
