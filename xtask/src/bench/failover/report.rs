//! All figures of all stacks in one table, the goals, and one line for programs.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::{Value, json};

use super::super::figures::Spread;
use super::scenario::{Outcome, Scenario};
use crate::out;
use crate::postgres::analysis::Blackout;
use crate::postgres::cost::Cost;

/// A stack in one of its settings.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Column {
    PatroniDefault,
    PatroniTightest,
    Outlast,
}

impl Column {
    pub(super) const ALL: [Column; 3] =
        [Column::PatroniDefault, Column::PatroniTightest, Column::Outlast];

    pub(super) fn name(self) -> &'static str {
        match self {
            Column::PatroniDefault => "patroni default",
            Column::PatroniTightest => "patroni tightest",
            Column::Outlast => "outlast",
        }
    }

    fn key(self) -> String {
        self.name().replace(' ', "_")
    }
}

/// Who must have a write before it is acknowledged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Durability {
    Quorum,
    Async,
}

impl Durability {
    pub(super) const ALL: [Durability; 2] = [Durability::Quorum, Durability::Async];

    pub(super) fn name(self) -> &'static str {
        match self {
            Durability::Quorum => "quorum",
            Durability::Async => "async",
        }
    }
}

/// What must hold of outlast in one scenario, in every round.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Goal {
    blackout_max: Duration,
    /// Acknowledged writes may be lost, or must not be.
    lost_max: Option<usize>,
    failed_max: Option<usize>,
}

fn goal(scenario: Scenario, durability: Durability) -> Goal {
    let seconds = |seconds: f64| Duration::from_secs_f64(seconds);
    let nothing_lost = (durability == Durability::Quorum).then_some(0);
    match (scenario, durability) {
        (Scenario::KillNode | Scenario::KillHost, Durability::Quorum) => {
            Goal { blackout_max: seconds(4.0), lost_max: Some(0), failed_max: None }
        }
        (Scenario::KillNode | Scenario::KillHost, Durability::Async)
        | (Scenario::FreezeNode | Scenario::FreezePostgres, _) => {
            Goal { blackout_max: seconds(8.0), lost_max: nothing_lost, failed_max: None }
        }
        (Scenario::KillPostmaster, _) => {
            Goal { blackout_max: seconds(1.5), lost_max: Some(0), failed_max: None }
        }
        (Scenario::Switchover, _) => {
            Goal { blackout_max: seconds(1.0), lost_max: Some(0), failed_max: Some(0) }
        }
    }
}

const CPU_PERCENT_MAX: f64 = 1.0;
const NODE_MIB_MAX: f64 = 40.0;

/// Why a scenario did not come to an end, or what it found.
pub(super) type Round = Result<Outcome, String>;

#[derive(Debug, Default)]
pub(super) struct Report {
    rounds: BTreeMap<(Scenario, Durability, Column), Vec<Round>>,
    /// Idle, the costliest node of each stack.
    costs: BTreeMap<Column, Cost>,
    /// Stacks that did not come up.
    faults: Vec<String>,
    ours: bool,
}

impl Report {
    pub(super) fn new(ours: bool) -> Report {
        Report { ours, ..Report::default() }
    }

    pub(super) fn record(&mut self, at: (Scenario, Durability, Column), outcome: Round) {
        self.rounds.entry(at).or_default().push(outcome);
    }

    pub(super) fn cost(&mut self, column: Column, cost: Cost) {
        self.costs.insert(column, cost);
    }

    pub(super) fn fault(&mut self, fault: String) {
        self.faults.push(fault);
    }

    /// Which goals are missed, and how; empty without outlast.
    fn missed(&self) -> Vec<String> {
        let mut missed = Vec::new();
        for ((scenario, durability, _), rounds) in
            self.rounds.iter().filter(|((_, _, column), _)| *column == Column::Outlast)
        {
            let what = format!("{} {}", scenario.letter(), durability.name());
            let faults = rounds.iter().flat_map(|round| judge(round, goal(*scenario, *durability)));
            missed.extend(faults.map(|fault| format!("{what}: {fault}")));
        }
        if let Some(cost) = self.costs.get(&Column::Outlast) {
            if cost.cpu_percent >= CPU_PERCENT_MAX {
                missed.push(format!("idle: {:.2} % of a core", cost.cpu_percent));
            }
            if cost.node_mib >= NODE_MIB_MAX {
                missed.push(format!("idle: {:.1} MiB", cost.node_mib));
            }
        } else if self.ours {
            missed.push("idle: not measured".to_owned());
        }
        missed
    }

    pub(super) fn holds(&self) -> bool {
        self.faults.is_empty() && self.missed().is_empty()
    }

    pub(super) fn table(&self) -> String {
        let head: Vec<&str> =
            ["scenario", "writes"].into_iter().chain(Column::ALL.map(Column::name)).collect();
        let mut rows = Vec::new();
        for scenario in Scenario::ALL {
            for durability in Durability::ALL {
                let cells = Column::ALL.map(|column| {
                    let rounds = self.rounds.get(&(scenario, durability, column));
                    rounds.map(|rounds| cell(rounds)).unwrap_or_default()
                });
                if cells.iter().any(|cell| !cell.is_empty()) {
                    let what = format!("{} {}", scenario.letter(), scenario.says());
                    rows.push(
                        [what, durability.name().to_owned()].into_iter().chain(cells).collect(),
                    );
                }
            }
        }
        let mut lines = vec![String::new(), out::table(&head, &rows), String::new()];
        lines.push(
            "blackout in seconds, median (range); failed requests; acknowledged writes lost"
                .to_owned(),
        );
        for (column, cost) in &self.costs {
            lines.push(format!(
                "idle node of {}: {:.2} % of a core, {:.1} MiB with each program's pages once, {:.1} MiB RSS, {:.1} MiB PSS (PostgreSQL aside)",
                column.name(),
                cost.cpu_percent,
                cost.node_mib,
                cost.rss_mib,
                cost.pss_mib
            ));
        }
        lines.extend(self.faults.iter().map(|fault| format!("FAULT: {fault}")));
        lines.extend(self.missed().iter().map(|missed| format!("MISSED: {missed}")));
        if self.ours && self.holds() {
            lines.push("all goals are met".to_owned());
        }
        lines.join("\n")
    }

    /// One line for programs.
    pub(super) fn json(&self) -> String {
        let figures: Vec<Value> = self.rounds.iter().map(figure).collect();
        let costs: serde_json::Map<String, Value> =
            self.costs.iter().map(|(column, cost)| (column.key(), cost.json())).collect();
        json!({
            "bench": "failover",
            "figures": figures,
            "idle": costs,
            "faults": self.faults,
            "missed": self.missed(),
            "holds": self.ours.then(|| self.holds()),
        })
        .to_string()
    }
}

/// What is wrong with a round, held against a goal.
fn judge(round: &Round, goal: Goal) -> Vec<String> {
    let Outcome { findings, stale, .. } = match round {
        Ok(outcome) => outcome,
        Err(fault) => return vec![fault.clone()],
    };
    let mut faults = Vec::new();
    match findings.blackout {
        Blackout::Open(_) => faults.push("writes did not resume".to_owned()),
        Blackout::Ended(time) if time > goal.blackout_max => {
            faults.push(format!("a blackout of {:.2} s", time.as_secs_f64()));
        }
        Blackout::Ended(_) => {}
    }
    if goal.lost_max.is_some_and(|most| most < findings.lost) {
        faults.push(format!("{} acknowledged writes lost", findings.lost));
    }
    if let Some((_, lost)) =
        stale.filter(|(_, lost)| goal.lost_max.is_some_and(|most| most < *lost))
    {
        faults.push(format!("{lost} writes lost that the woken primary acknowledged"));
    }
    if findings.unattempted > 0 {
        faults.push(format!("{} rows that nobody wrote", findings.unattempted));
    }
    if goal.failed_max.is_some_and(|most| most < findings.failed) {
        faults.push(format!("{} requests failed", findings.failed));
    }
    faults
}

/// One round in words.
pub(super) fn told(round: &Round) -> String {
    let Outcome { findings, recovery, stale, stalled_percent } = match round {
        Ok(outcome) => outcome,
        Err(fault) => return format!("BROKEN: {fault}"),
    };
    let (so_far, time) = match findings.blackout {
        Blackout::Ended(time) => ("", time),
        Blackout::Open(time) => ("not over after ", time),
    };
    let mut parts = vec![
        format!("blackout {so_far}{:.2} s", time.as_secs_f64()),
        format!("{} failed {:?}", findings.failed, findings.failed_by),
        format!("{} lost", findings.lost),
        format!("whole again after {:.1} s", recovery.as_secs_f64()),
    ];
    if findings.late > 0 {
        parts.push(format!("{} acknowledged by the old primary after the new one", findings.late));
    }
    if let Some((count, lost)) = stale {
        parts.push(format!("{count} acknowledged by the woken primary, {lost} of them lost"));
    }
    if let Some(percent) = stalled_percent {
        parts.push(format!("a core was waited for {percent:.0} % of the time"));
    }
    if !findings.starved.is_zero() {
        parts.push(format!("PROBER STARVED for {:.2} s", findings.starved.as_secs_f64()));
    }
    parts.join(", ")
}

fn cell(rounds: &[Round]) -> String {
    let good: Vec<&Outcome> = rounds.iter().filter_map(|round| round.as_ref().ok()).collect();
    let broken = rounds.len() - good.len();
    let mut parts = Vec::new();
    if !good.is_empty() {
        let open =
            good.iter().any(|outcome| matches!(outcome.findings.blackout, Blackout::Open(_)));
        let seconds = good.iter().map(|outcome| outcome.findings.blackout.at_least().as_secs_f64());
        let failed = good.iter().map(|outcome| count(outcome.findings.failed));
        let lost: usize = good.iter().map(|outcome| outcome.findings.lost).sum();
        let so_far = if open { "not over after " } else { "" };
        parts.push(format!("{so_far}{}", spread(seconds.collect(), 2)));
        parts.push(format!("{} failed", spread(failed.collect(), 0)));
        parts.push(format!("{lost} lost"));
        let stale: usize =
            good.iter().filter_map(|outcome| outcome.stale).map(|(_, lost)| lost).sum();
        if stale > 0 {
            parts.push(format!("{stale} stale lost"));
        }
    }
    if broken > 0 {
        parts.push(format!("{broken} BROKEN"));
    }
    parts.join(", ")
}

fn figure(
    ((scenario, durability, column), rounds): (&(Scenario, Durability, Column), &Vec<Round>),
) -> Value {
    let good: Vec<&Outcome> = rounds.iter().filter_map(|round| round.as_ref().ok()).collect();
    let each =
        |of: fn(&Outcome) -> Value| good.iter().map(|outcome| of(outcome)).collect::<Vec<_>>();
    let rounded = |time: Duration| (time.as_secs_f64() * 1000.0).round() / 1000.0;
    let seconds: Vec<f64> =
        good.iter().map(|outcome| rounded(outcome.findings.blackout.at_least())).collect();
    let recovery: Vec<f64> = good.iter().map(|outcome| rounded(outcome.recovery)).collect();
    json!({
        "stack": column.key(),
        "scenario": scenario.letter(),
        "durability": durability.name(),
        "blackout_seconds": seconds,
        "resumed": each(|o| json!(matches!(o.findings.blackout, Blackout::Ended(_)))),
        "failed": each(|o| json!(o.findings.failed)),
        "failed_by": each(|o| json!(o.findings.failed_by)),
        "failed_before": each(|o| json!(o.findings.failed_before)),
        "lost": each(|o| json!(o.findings.lost)),
        "late": each(|o| json!(o.findings.late)),
        "stale": each(|o| json!(o.stale.map(|(count, _)| count))),
        "stale_lost": each(|o| json!(o.stale.map(|(_, lost)| lost))),
        "acknowledged": each(|o| json!(o.findings.acknowledged)),
        "prober_starved_ms": each(|o| json!(u64::try_from(o.findings.starved.as_millis()).ok())),
        "recovery_seconds": recovery,
        "cpu_stall_percent": each(|o| json!(o.stalled_percent.map(f64::round))),
        "broken": rounds.iter().filter_map(|round| round.as_ref().err()).collect::<Vec<_>>(),
    })
}

#[expect(clippy::cast_precision_loss, reason = "far fewer than 2^52")]
fn count(count: usize) -> f64 {
    count as f64
}

/// The middle, and the range of what differs.
fn spread(values: Vec<f64>, digits: usize) -> String {
    let one = values.len() == 1;
    let Some(Spread { median, min, max }) = Spread::of(values) else { return String::new() };
    if one {
        return format!("{median:.digits$}");
    }
    format!("{median:.digits$} ({min:.digits$}-{max:.digits$})")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::postgres::analysis::Findings;

    fn outcome(blackout: Blackout, failed: usize, lost: usize) -> Outcome {
        let findings = Findings {
            blackout,
            failed,
            failed_by: BTreeMap::new(),
            failed_before: 0,
            lost,
            unattempted: 0,
            late: 0,
            acknowledged: 1000,
            starved: Duration::ZERO,
        };
        Outcome { findings, recovery: Duration::from_secs(3), stale: None, stalled_percent: None }
    }

    fn ended(seconds: f64) -> Blackout {
        Blackout::Ended(Duration::from_secs_f64(seconds))
    }

    #[test]
    fn one_round_beyond_a_goal_misses_it() {
        let mut report = Report::new(true);
        let at = (Scenario::KillNode, Durability::Quorum, Column::Outlast);
        report.cost(
            Column::Outlast,
            Cost { cpu_percent: 0.4, rss_mib: 20.0, pss_mib: 18.0, node_mib: 20.0 },
        );
        report.record(at, Ok(outcome(ended(3.9), 390, 0)));
        assert!(report.holds(), "{:?}", report.missed());
        report.record(at, Ok(outcome(ended(4.1), 410, 1)));
        assert_eq!(
            report.missed(),
            ["A quorum: a blackout of 4.10 s", "A quorum: 1 acknowledged writes lost"]
        );
        assert!(report.table().contains("4.00 (3.90-4.10), 400 (390-410) failed, 1 lost"));
        let json: Value = serde_json::from_str(&report.json()).unwrap();
        assert_eq!(json["holds"], false);
        assert_eq!(json["figures"][0]["blackout_seconds"], json!([3.9, 4.1]));
    }

    #[test]
    fn peers_miss_no_goal_and_what_never_ends_says_so() {
        let mut report = Report::new(false);
        let open = Blackout::Open(Duration::from_secs(30));
        let at = (Scenario::FreezePostgres, Durability::Async, Column::PatroniDefault);
        report.record(at, Ok(outcome(open, 3000, 0)));
        assert!(report.holds());
        assert!(report.table().contains("not over after 30.00, 3000 failed, 0 lost"));
    }

    #[test]
    fn a_switchover_may_fail_no_request_and_a_broken_round_misses() {
        let goal = goal(Scenario::Switchover, Durability::Async);
        assert_eq!(judge(&Ok(outcome(ended(0.5), 1, 0)), goal), ["1 requests failed"]);
        assert_eq!(judge(&Err("no primary".to_owned()), goal), ["no primary"]);
    }

    #[test]
    fn outlast_without_its_idle_cost_does_not_hold() {
        assert!(!Report::new(true).holds());
    }
}
