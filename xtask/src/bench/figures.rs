//! Measured values by round, what they say in the middle, and whether the goals are met.

use serde_json::{Map, Value, json};

use super::peers::Peer;
use crate::out;

/// More foreign work than this, in cores, makes a measurement doubtful.
pub(super) const FOREIGN_CORES_MAX: f64 = 0.35;

/// One thing that is measured of every peer in every round.
#[derive(Clone, Debug)]
pub(super) struct Series {
    pub(super) name: String,
    pub(super) unit: &'static str,
    /// The ratio to HAProxy must not exceed it.
    pub(super) goal: Option<Goal>,
    /// Of one round: a value for each peer that took part.
    rounds: Vec<Vec<(Peer, f64)>>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Goal {
    pub(super) ratio_max: f64,
    /// Otherwise it is only shown.
    pub(super) decides: bool,
}

/// The middle, the lowest and the highest.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Spread {
    pub(super) median: f64,
    pub(super) min: f64,
    pub(super) max: f64,
}

impl Spread {
    pub(super) fn of(mut values: Vec<f64>) -> Option<Spread> {
        values.sort_by(f64::total_cmp);
        let (min, max) = (*values.first()?, *values.last()?);
        let half = values.len() / 2;
        let median = if values.len().is_multiple_of(2) {
            f64::midpoint(values[half - 1], values[half])
        } else {
            values[half]
        };
        Some(Spread { median, min, max })
    }
}

impl Series {
    pub(super) fn values(&self, peer: Peer) -> Option<Spread> {
        Spread::of(self.rounds.iter().filter_map(|round| of(round, peer)).collect())
    }

    /// Of values that were measured in the same round.
    pub(super) fn ratio(&self, peer: Peer) -> Option<Spread> {
        let paired = |round: &Vec<(Peer, f64)>| Some(of(round, peer)? / of(round, Peer::Haproxy)?);
        Spread::of(self.rounds.iter().filter_map(paired).collect())
    }

    /// `None` while there is no goal, or nothing to hold against it.
    fn holds(&self) -> Option<bool> {
        Some(self.ratio(Peer::Outlast)?.median <= self.goal?.ratio_max)
    }
}

fn of(round: &[(Peer, f64)], peer: Peer) -> Option<f64> {
    round.iter().find(|(p, _)| *p == peer).map(|(_, value)| *value)
}

/// Everything that one benchmark found.
#[derive(Debug)]
pub(super) struct Report {
    series: Vec<Series>,
    /// What makes the result invalid, whatever the figures say.
    pub(super) faults: Vec<String>,
    /// Foreign work, in cores, during each measurement.
    pub(super) foreign_cores: Vec<f64>,
    outlast_takes_part: bool,
}

impl Report {
    pub(super) fn new(outlast_takes_part: bool) -> Report {
        let (series, faults, foreign_cores) = (Vec::new(), Vec::new(), Vec::new());
        Report { series, faults, foreign_cores, outlast_takes_part }
    }

    pub(super) fn record(
        &mut self,
        round: usize,
        peer: Peer,
        (name, unit): (&str, &'static str),
        goal: Option<Goal>,
        value: f64,
    ) {
        let at = self.series.iter().position(|series| series.name == name).unwrap_or_else(|| {
            self.series.push(Series { name: name.to_owned(), unit, goal, rounds: Vec::new() });
            self.series.len() - 1
        });
        let rounds = &mut self.series[at].rounds;
        if rounds.len() <= round {
            rounds.resize(round + 1, Vec::new());
        }
        rounds[round].push((peer, value));
    }

    /// Without outlast there is nothing to miss.
    pub(super) fn holds(&self) -> bool {
        self.faults.is_empty() && self.missed().is_empty() && self.unmeasured().is_empty()
    }

    fn missed(&self) -> Vec<&Series> {
        let decides = |series: &&Series| series.goal.is_some_and(|goal| goal.decides);
        self.series.iter().filter(decides).filter(|s| s.holds() == Some(false)).collect()
    }

    /// A goal that nothing was held against is not met.
    fn unmeasured(&self) -> Vec<&Series> {
        let wanted =
            |s: &&Series| self.outlast_takes_part && s.goal.is_some_and(|goal| goal.decides);
        self.series.iter().filter(wanted).filter(|s| s.holds().is_none()).collect()
    }

    pub(super) fn table(&self) -> String {
        let head =
            ["", "unit", "haproxy", "nginx", "ratio", "outlast", "ratio", "[min-max]", "goal"];
        let rows: Vec<_> = self.series.iter().map(row).collect();
        let mut lines = vec![String::new(), out::table(&head, &rows), String::new()];
        lines.push("medians; ratios to HAProxy are medians of ratios within one round".to_owned());
        lines.push(self.noise());
        lines.extend(self.faults.iter().map(|fault| format!("FAULT: {fault}")));
        lines.extend(self.missed().iter().map(|series| format!("MISSED: {}", series.name)));
        lines.extend(self.unmeasured().iter().map(|s| format!("NOT MEASURED: {}", s.name)));
        if self.outlast_takes_part && self.holds() {
            lines.push("all goals are met".to_owned());
        }
        lines.join("\n")
    }

    fn noise(&self) -> String {
        let all = self.foreign_cores.len();
        let noisy = self.foreign_cores.iter().filter(|share| **share > FOREIGN_CORES_MAX).count();
        let median = Spread::of(self.foreign_cores.clone()).map_or(0.0, |spread| spread.median);
        let word = if noisy * 4 > all { "NOISY MACHINE" } else { "noise" };
        format!(
            "{word}: beside {noisy} of {all} measurements ran other work of more than {FOREIGN_CORES_MAX} cores \
             (median {median:.2})"
        )
    }

    /// One line for machines.
    pub(super) fn json(&self, bench: &str) -> String {
        let figures: Map<_, _> = self.series.iter().map(|s| (s.name.clone(), figure(s))).collect();
        let goals: Vec<_> = self.series.iter().filter_map(goal).collect();
        let holds = self.outlast_takes_part.then(|| self.holds());
        json!({
            "bench": bench,
            "figures": figures,
            "goals": goals,
            "faults": self.faults,
            "foreign_cores": self.foreign_cores.iter().map(|cores| rounded(*cores)).collect::<Vec<_>>(),
            "holds": holds,
        })
        .to_string()
    }
}

fn row(series: &Series) -> Vec<String> {
    let value = |peer| series.values(peer).map_or_else(String::new, |v| short(v.median));
    let ratio = |peer| series.ratio(peer).map_or_else(String::new, |r| format!("{:.2}", r.median));
    let range = |r: Spread| format!("[{:.2}-{:.2}]", r.min, r.max);
    let goal = series.goal.map(|goal| {
        let word = match series.holds() {
            None => "",
            Some(true) => " ok",
            Some(false) => " MISSED",
        };
        let brackets = if goal.decides { ("", "") } else { ("(", ")") };
        format!("{}<= {:.2}{word}{}", brackets.0, goal.ratio_max, brackets.1)
    });
    vec![
        series.name.clone(),
        series.unit.to_owned(),
        value(Peer::Haproxy),
        value(Peer::Nginx),
        ratio(Peer::Nginx),
        value(Peer::Outlast),
        ratio(Peer::Outlast),
        series.ratio(Peer::Outlast).map(range).unwrap_or_default(),
        goal.unwrap_or_default(),
    ]
}

/// `[median, lowest, highest]` of each peer, and of its ratio to HAProxy.
fn figure(series: &Series) -> Value {
    let spread = |s: Spread| json!([rounded(s.median), rounded(s.min), rounded(s.max)]);
    let mut figure = Map::from_iter([("unit".to_owned(), json!(series.unit))]);
    for peer in Peer::ALL {
        let Some(value) = series.values(peer) else { continue };
        figure.insert(peer.name().to_owned(), spread(value));
        if let Some(ratio) = series.ratio(peer).filter(|_| peer != Peer::Haproxy) {
            figure.insert(format!("{}_ratio", peer.name()), spread(ratio));
        }
    }
    Value::Object(figure)
}

fn goal(series: &Series) -> Option<Value> {
    let goal = series.goal?;
    let ratio = series.ratio(Peer::Outlast).map(|ratio| rounded(ratio.median));
    Some(json!({
        "name": series.name,
        "ratio_max": goal.ratio_max,
        "ratio": ratio,
        "decides": goal.decides,
        "holds": series.holds(),
    }))
}

fn rounded(value: f64) -> f64 {
    (value * 1000.0).round() / 1000.0
}

fn short(value: f64) -> String {
    if value >= 1000.0 { format!("{value:.0}") } else { format!("{value:.2}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(outlast: [f64; 3]) -> Report {
        let mut report = Report::new(true);
        let goal = Some(Goal { ratio_max: 1.1, decides: true });
        for (round, (haproxy, outlast)) in [10.0, 20.0, 30.0].into_iter().zip(outlast).enumerate() {
            report.record(round, Peer::Haproxy, ("cpu", "us"), goal, haproxy);
            report.record(round, Peer::Outlast, ("cpu", "us"), goal, outlast);
        }
        report
    }

    #[test]
    fn a_ratio_is_the_median_of_ratios_within_rounds() {
        let report = report([10.0, 30.0, 36.0]);
        let ratio = report.series[0].ratio(Peer::Outlast).unwrap();
        assert_eq!(ratio, Spread { median: 1.2, min: 1.0, max: 1.5 });
        assert!(!report.holds());
        assert!(report.table().contains("MISSED: cpu"));
    }

    #[test]
    fn goals_met_hold_and_the_last_line_says_so() {
        let report = report([10.0, 20.0, 36.0]);
        assert!(report.holds());
        let json: Value = serde_json::from_str(&report.json("proxy")).unwrap();
        assert_eq!(json["holds"], true);
        assert_eq!(json["goals"][0]["ratio"], 1.0);
        assert_eq!(json["figures"]["cpu"]["haproxy"], serde_json::json!([20.0, 10.0, 30.0]));
    }

    #[test]
    fn a_goal_without_a_measurement_does_not_hold() {
        let mut report = report([10.0, 20.0, 30.0]);
        report.record(
            0,
            Peer::Haproxy,
            ("p99", "ms"),
            Some(Goal { ratio_max: 1.1, decides: true }),
            1.0,
        );
        assert!(!report.holds());
        report.outlast_takes_part = false;
        assert!(report.holds());
    }
}
