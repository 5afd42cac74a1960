//! All figures of all name servers, each goal beside what was found, and one line for programs.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::super::figures::Spread;
use crate::out;

/// Who answers, in one of its settings.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Who {
    Outlast,
    OutlastSigned,
    Gdnsd,
    PdnsFast,
    PdnsDefault,
    Pdns,
    Knot,
    KnotSigned,
    Nsd,
}

impl Who {
    pub(super) fn name(self) -> &'static str {
        match self {
            Who::Outlast => "outlast",
            Who::OutlastSigned => "outlast, signed",
            Who::Gdnsd => "gdnsd",
            Who::PdnsFast => "PowerDNS Lua 1 s",
            Who::PdnsDefault => "PowerDNS Lua 5 s",
            Who::Pdns => "PowerDNS",
            Who::Knot => "Knot",
            Who::KnotSigned => "Knot, signed",
            Who::Nsd => "NSD",
        }
    }

    pub(super) fn key(self) -> String {
        self.name().to_lowercase().replace(", ", "_").replace(' ', "_")
    }

    pub(super) fn is_ours(self) -> bool {
        matches!(self, Who::Outlast | Who::OutlastSigned)
    }

    /// Whose cost per query ours is held against.
    fn is_plain_peer(self) -> bool {
        matches!(self, Who::Gdnsd | Who::Pdns | Who::Knot | Who::Nsd)
    }
}

/// What is shown, and left out if need be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Part {
    Failover,
    Cut,
    Restart,
    Cost,
    Rubbish,
}

impl Part {
    pub(super) const ALL: [Part; 5] =
        [Part::Failover, Part::Cut, Part::Restart, Part::Cost, Part::Rubbish];

    pub(super) fn letter(self) -> char {
        match self {
            Part::Failover => 'A',
            Part::Cut => 'B',
            Part::Restart => 'C',
            Part::Cost => 'D',
            Part::Rubbish => 'E',
        }
    }

    pub(super) fn says(self) -> &'static str {
        match self {
            Part::Failover => "the primary is killed: until the secondary is answered",
            Part::Cut => "a name server is cut off for 4 s: answers that are not the primary",
            Part::Restart => "a name server is killed and started while the secondary serves",
            Part::Cost => "what a query costs: one thread, 1,000 names, 10 % of them not there",
            Part::Rubbish => "malformed messages",
        }
    }

    pub(super) fn find(letter: char) -> Option<Part> {
        Part::ALL.into_iter().find(|part| part.letter() == letter.to_ascii_uppercase())
    }
}

/// One thing that is measured in every round.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Measure {
    FirstMoved,
    AllMoved,
    Spread,
    WrongElsewhere,
    WrongCutOff,
    WrongParted,
    WrongFirst,
    UntilAnswer,
    Cpu,
    CpuUser,
    CpuAgent,
    Rate,
    Lost,
    Forbidden,
    Garbled,
    Silent,
    Memory,
}

impl Measure {
    const ALL: [Measure; 17] = [
        Measure::FirstMoved,
        Measure::AllMoved,
        Measure::Spread,
        Measure::WrongElsewhere,
        Measure::WrongCutOff,
        Measure::WrongParted,
        Measure::WrongFirst,
        Measure::UntilAnswer,
        Measure::Cpu,
        Measure::CpuUser,
        Measure::CpuAgent,
        Measure::Rate,
        Measure::Lost,
        Measure::Forbidden,
        Measure::Garbled,
        Measure::Silent,
        Measure::Memory,
    ];

    fn part(self) -> Part {
        match self {
            Measure::FirstMoved | Measure::AllMoved | Measure::Spread => Part::Failover,
            Measure::WrongElsewhere | Measure::WrongCutOff | Measure::WrongParted => Part::Cut,
            Measure::WrongFirst | Measure::UntilAnswer => Part::Restart,
            Measure::Cpu | Measure::CpuUser | Measure::CpuAgent | Measure::Rate | Measure::Lost => {
                Part::Cost
            }
            Measure::Forbidden | Measure::Garbled | Measure::Silent | Measure::Memory => {
                Part::Rubbish
            }
        }
    }

    fn says(self) -> &'static str {
        match self {
            Measure::FirstMoved => "first server, ms",
            Measure::AllMoved => "all servers, ms",
            Measure::Spread => "between them, ms",
            Measure::WrongElsewhere => "of the others",
            Measure::WrongCutOff => "of one cut off from all",
            Measure::WrongParted => "from the primary alone",
            Measure::WrongFirst => "wrong first answers",
            Measure::UntilAnswer => "until it answers, ms",
            Measure::Cpu => "CPU, us",
            Measure::CpuUser => "in user mode, us",
            Measure::CpuAgent => "whole agent, us",
            Measure::Rate => "queries/s",
            Measure::Lost => "lost",
            Measure::Forbidden => "answers to what is no query",
            Measure::Garbled => "answers that are none",
            Measure::Silent => "proper questions unanswered",
            Measure::Memory => "memory grew, MiB",
        }
    }

    /// Counted over all rounds, instead of looked at one by one.
    fn is_count(self) -> bool {
        match self {
            Measure::WrongElsewhere
            | Measure::WrongCutOff
            | Measure::WrongParted
            | Measure::WrongFirst
            | Measure::Lost
            | Measure::Forbidden
            | Measure::Garbled
            | Measure::Silent => true,
            Measure::FirstMoved
            | Measure::AllMoved
            | Measure::Spread
            | Measure::UntilAnswer
            | Measure::Cpu
            | Measure::CpuUser
            | Measure::CpuAgent
            | Measure::Rate
            | Measure::Memory => false,
        }
    }

    fn decimals(self) -> usize {
        match self {
            Measure::Cpu | Measure::CpuUser | Measure::CpuAgent => 2,
            Measure::Memory => 1,
            Measure::FirstMoved
            | Measure::AllMoved
            | Measure::Spread
            | Measure::WrongElsewhere
            | Measure::WrongCutOff
            | Measure::WrongParted
            | Measure::WrongFirst
            | Measure::UntilAnswer
            | Measure::Rate
            | Measure::Lost
            | Measure::Forbidden
            | Measure::Garbled
            | Measure::Silent => 0,
        }
    }
}

/// What must hold of outlast.
const SWITCH_MEDIAN_MS_MAX: f64 = 800.0;
const SWITCH_WORST_MS_MAX: f64 = 1200.0;
const SPREAD_MS_MAX: f64 = 50.0;
const CPU_RATIO_MAX: f64 = 1.05;
const SIGNED_RATIO_MAX: f64 = 1.10;
const MEMORY_MIB_MAX: f64 = 8.0;

/// What was found, held against the most that it may be.
#[derive(Clone, Debug, PartialEq)]
struct Goal {
    part: Part,
    what: String,
    /// `None`: not measured.
    found: Option<f64>,
    most: f64,
}

impl Goal {
    fn is_met(&self) -> bool {
        self.found.is_some_and(|found| found <= self.most)
    }

    fn says(&self) -> String {
        let found = self.found.map_or("not measured".to_owned(), |found| short(found, 2));
        let word = if self.is_met() { "met" } else { "MISSED" };
        format!("{word}: {} {}: {found} (at most {})", self.part.letter(), self.what, self.most)
    }
}

/// Digits behind the point only where there are any.
fn short(number: f64, decimals: usize) -> String {
    let text = format!("{number:.decimals$}");
    if text.contains('.') {
        text.trim_end_matches('0').trim_end_matches('.').to_owned()
    } else {
        text
    }
}

#[derive(Debug, Default)]
pub(super) struct Report {
    values: BTreeMap<(Measure, Who), Vec<f64>>,
    /// What makes the result invalid, whatever the figures say.
    faults: Vec<String>,
    /// Worth knowing beside a part's figures.
    notes: Vec<(Part, String)>,
    ours: bool,
    asked: Vec<Part>,
}

impl Report {
    pub(super) fn new(ours: bool, asked: &[Part]) -> Report {
        Report { ours, asked: asked.to_vec(), ..Report::default() }
    }

    pub(super) fn record(&mut self, measure: Measure, who: Who, value: f64) {
        self.values.entry((measure, who)).or_default().push(value);
    }

    pub(super) fn fault(&mut self, fault: String) {
        self.faults.push(fault);
    }

    pub(super) fn note(&mut self, part: Part, note: String) {
        self.notes.push((part, note));
    }

    fn of(&self, measure: Measure, who: Who) -> Option<Spread> {
        Spread::of(self.values.get(&(measure, who))?.clone())
    }

    fn sum(&self, measure: Measure, who: Who) -> Option<f64> {
        Some(self.values.get(&(measure, who))?.iter().sum())
    }

    /// The peer that a query costs least.
    fn best(&self) -> Option<(Who, f64)> {
        let peers = self.values.keys().filter(|(m, who)| *m == Measure::Cpu && who.is_plain_peer());
        let costs = peers.filter_map(|(_, who)| Some((*who, self.of(Measure::Cpu, *who)?.median)));
        costs.min_by(|a, b| a.1.total_cmp(&b.1))
    }

    fn goals(&self) -> Vec<Goal> {
        if !self.ours {
            return Vec::new();
        }
        let of = |measure| self.of(measure, Who::Outlast);
        let median = |measure| of(measure).map(|spread: Spread| spread.median);
        let worst = |measure| of(measure).map(|spread: Spread| spread.max);
        let mut goals = Vec::new();
        for part in &self.asked {
            let mut goal = |what: &str, found: Option<f64>, most: f64| {
                goals.push(Goal { part: *part, what: what.to_owned(), found, most });
            };
            let count = |measure, who| self.sum(measure, who);
            match part {
                Part::Failover => {
                    for measure in [Measure::FirstMoved, Measure::AllMoved] {
                        let says = measure.says();
                        goal(&format!("p50, {says}"), median(measure), SWITCH_MEDIAN_MS_MAX);
                        goal(&format!("max, {says}"), worst(measure), SWITCH_WORST_MS_MAX);
                    }
                    goal("max, between them, ms", worst(Measure::Spread), SPREAD_MS_MAX);
                }
                Part::Cut => {
                    for measure in
                        [Measure::WrongElsewhere, Measure::WrongCutOff, Measure::WrongParted]
                    {
                        goal(measure.says(), count(measure, Who::Outlast), 0.0);
                    }
                }
                Part::Restart => {
                    let measure = Measure::WrongFirst;
                    goal(measure.says(), count(measure, Who::Outlast), 0.0);
                }
                Part::Cost => {
                    // Alone there is nobody to be held against.
                    if let Some((who, least)) = self.best() {
                        let ratio = median(Measure::Cpu).map(|ours| ours / least);
                        goal(&format!("CPU, of {}'s", who.name()), ratio, CPU_RATIO_MAX);
                    }
                    let signed = self.of(Measure::Cpu, Who::OutlastSigned);
                    let ratio = signed.zip(median(Measure::Cpu)).map(|(s, own)| s.median / own);
                    goal("CPU signed, of unsigned", ratio, SIGNED_RATIO_MAX);
                }
                Part::Rubbish => {
                    for measure in [Measure::Forbidden, Measure::Garbled, Measure::Silent] {
                        goal(measure.says(), count(measure, Who::OutlastSigned), 0.0);
                    }
                    let grew = self.of(Measure::Memory, Who::OutlastSigned).map(|s| s.max);
                    goal(Measure::Memory.says(), grew, MEMORY_MIB_MAX);
                }
            }
        }
        goals
    }

    pub(super) fn holds(&self) -> bool {
        self.faults.is_empty() && self.goals().iter().all(Goal::is_met)
    }

    pub(super) fn table(&self) -> String {
        let mut lines = Vec::new();
        for part in &self.asked {
            let measures = Measure::ALL.into_iter().filter(|measure| measure.part() == *part);
            let measures: Vec<Measure> = measures
                .filter(|measure| self.values.keys().any(|(known, _)| known == measure))
                .collect();
            let mut who: Vec<Who> = self.values.keys().map(|(_, who)| *who).collect();
            who.sort_unstable();
            who.dedup();
            let rows = who.into_iter().filter_map(|who| {
                let cells: Vec<String> = measures.iter().map(|m| self.cell(*m, who)).collect();
                let some = cells.iter().any(|cell| !cell.is_empty());
                let ratio = (*part == Part::Cost).then(|| self.ratio(who));
                let name = vec![who.name().to_owned()];
                some.then(|| [name, cells, ratio.into_iter().collect()].concat())
            });
            let rows: Vec<Vec<String>> = rows.collect();
            if rows.is_empty() {
                continue;
            }
            let mut head = vec![""];
            head.extend(measures.iter().map(|measure| measure.says()));
            head.extend((*part == Part::Cost).then_some("of the best peer's"));
            lines.push(format!("\n{} {}", part.letter(), part.says()));
            lines.push(out::table(&head, &rows));
            let notes = self.notes.iter().filter(|(of, _)| of == part);
            lines.extend(notes.map(|(_, note)| note.clone()));
        }
        lines
            .push("\nmedian (lowest-highest) of the rounds; what is counted is the sum".to_owned());
        lines.extend(self.goals().iter().map(Goal::says));
        lines.extend(self.faults.iter().map(|fault| format!("FAULT: {fault}")));
        if self.ours && self.holds() {
            lines.push("all goals are met".to_owned());
        }
        lines.join("\n")
    }

    fn cell(&self, measure: Measure, who: Who) -> String {
        let Some(values) = self.values.get(&(measure, who)) else { return String::new() };
        if measure.is_count() {
            let (sum, rounds) = (values.iter().sum::<f64>(), values.len());
            let bad = values.iter().filter(|value| 0.0 < **value).count();
            return format!("{} (in {bad} of {rounds})", short(sum, 0));
        }
        let Some(Spread { median, min, max }) = Spread::of(values.clone()) else {
            return String::new();
        };
        let n = measure.decimals();
        format!("{median:.n$} ({min:.n$}-{max:.n$})")
    }

    fn ratio(&self, who: Who) -> String {
        let cost = self.of(Measure::Cpu, who).zip(self.best());
        cost.map(|(spread, (_, least))| format!("{:.2}", spread.median / least)).unwrap_or_default()
    }

    /// One line for programs.
    pub(super) fn json(&self) -> String {
        let figures = self.values.iter().map(|((measure, who), values)| {
            let spread = Spread::of(values.clone());
            json!({
                "part": measure.part().letter().to_string(),
                "measure": measure.says(),
                "who": who.key(),
                "median": spread.map(|s| s.median),
                "min": spread.map(|s| s.min),
                "max": spread.map(|s| s.max),
                "sum": values.iter().sum::<f64>(),
                "values": values,
            })
        });
        let goal = |goal: &Goal| {
            json!({
                "part": goal.part.letter().to_string(),
                "what": goal.what,
                "found": goal.found,
                "most": goal.most,
                "met": goal.is_met(),
            })
        };
        json!({
            "bench": "dns",
            "figures": figures.collect::<Vec<Value>>(),
            "goals": self.goals().iter().map(goal).collect::<Vec<_>>(),
            "notes": self.notes.iter().map(|(_, note)| note).collect::<Vec<_>>(),
            "faults": self.faults,
            "holds": self.ours.then(|| self.holds()),
        })
        .to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_slow_round_misses_the_goal_and_what_was_not_measured_is_not_met() {
        let mut report = Report::new(true, &[Part::Failover]);
        assert!(!report.holds());
        for (all, between) in [(650.0, 8.0), (700.0, 12.0)] {
            report.record(Measure::FirstMoved, Who::Outlast, all - between);
            report.record(Measure::AllMoved, Who::Outlast, all);
            report.record(Measure::Spread, Who::Outlast, between);
            report.record(Measure::AllMoved, Who::Gdnsd, 2400.0);
        }
        assert!(report.holds(), "{}", report.table());
        assert!(report.table().contains("675 (650-700)"), "{}", report.table());
        report.record(Measure::AllMoved, Who::Outlast, 1300.0);
        assert!(!report.holds());
        let missed = "MISSED: A max, all servers, ms: 1300 (at most 1200)";
        assert!(report.table().contains(missed), "{}", report.table());
        let json: Value = serde_json::from_str(&report.json()).unwrap();
        assert_eq!(json["holds"], false);
    }

    #[test]
    fn cost_is_held_against_the_best_peer_that_does_not_sign() {
        let mut report = Report::new(true, &[Part::Cost]);
        for (who, cost) in [
            (Who::Outlast, 5.2),
            (Who::OutlastSigned, 5.6),
            (Who::Nsd, 5.0),
            (Who::Knot, 5.5),
            (Who::KnotSigned, 1.0),
        ] {
            report.record(Measure::Cpu, who, cost);
        }
        assert!(report.holds(), "{}", report.table());
        assert!(report.table().contains("met: D CPU, of NSD's: 1.04 (at most 1.05)"));
        report.record(Measure::Cpu, Who::OutlastSigned, 6.4);
        assert!(!report.holds());
    }

    #[test]
    fn one_wrong_answer_is_one_too_many_for_us_alone() {
        let mut report = Report::new(true, &[Part::Cut]);
        for measure in [Measure::WrongElsewhere, Measure::WrongCutOff, Measure::WrongParted] {
            report.record(measure, Who::Outlast, 0.0);
            report.record(measure, Who::Gdnsd, 400.0);
        }
        assert!(report.holds());
        report.record(Measure::WrongCutOff, Who::Outlast, 1.0);
        assert!(!report.holds());
        assert!(report.table().contains("1 (in 1 of 2)"), "{}", report.table());
    }
}
