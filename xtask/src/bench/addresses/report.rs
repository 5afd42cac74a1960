//! All figures of outlast and keepalived in one table, each beside its goal, and one line for programs.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::{Value, json};

use super::super::figures::Spread;
use super::fault::{Fault, Outcome};
use super::sight::Silence;
use crate::out;

/// Who keeps the address, in one of its settings.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Column {
    KeepalivedDefault,
    KeepalivedFast,
    Outlast,
}

impl Column {
    pub(super) const ALL: [Column; 3] =
        [Column::KeepalivedDefault, Column::KeepalivedFast, Column::Outlast];

    pub(super) fn name(self) -> &'static str {
        match self {
            Column::KeepalivedDefault => "keepalived 1 s",
            Column::KeepalivedFast => "keepalived 0.1 s",
            Column::Outlast => "outlast",
        }
    }

    fn key(self) -> String {
        self.name().replace(' ', "_")
    }
}

/// What must hold of outlast. No sample may ever see two holders, whatever the fault.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Goal {
    /// Of all rounds, in milliseconds.
    median_ms_max: Option<f64>,
    worst_ms_max: Option<f64>,
    moves_max: Option<usize>,
}

fn goal(fault: Fault) -> Goal {
    let none = Goal { median_ms_max: None, worst_ms_max: None, moves_max: None };
    match fault {
        Fault::KillAgent | Fault::Freeze | Fault::PowerOff | Fault::Cut | Fault::Part => {
            Goal { median_ms_max: Some(400.0), worst_ms_max: Some(700.0), ..none }
        }
        Fault::Move => Goal { worst_ms_max: Some(50.0), ..none },
        Fault::Heal => Goal { worst_ms_max: Some(200.0), ..none },
        Fault::Busy => Goal { moves_max: Some(0), ..none },
    }
}

impl Goal {
    fn says(self) -> String {
        let part = |word: &str, most: Option<f64>| most.map(|ms| format!("{word} <= {ms:.0} ms"));
        let moves = self.moves_max.map(|most| format!("{most} moves"));
        let parts = [part("p50", self.median_ms_max), part("max", self.worst_ms_max), moves];
        let parts = parts.into_iter().flatten().chain(["0 dual".to_owned()]);
        parts.collect::<Vec<_>>().join(", ")
    }
}

/// Why a round did not come to an end, or what it found.
pub(super) type Round = Result<Outcome, String>;

#[derive(Debug, Default)]
pub(super) struct Report {
    rounds: BTreeMap<(Fault, Column), Vec<Round>>,
    /// Stages that did not come up.
    faults: Vec<String>,
    ours: bool,
    asked: Vec<Fault>,
}

impl Report {
    pub(super) fn new(ours: bool, asked: &[Fault]) -> Report {
        Report { ours, asked: asked.to_vec(), ..Report::default() }
    }

    pub(super) fn record(&mut self, at: (Fault, Column), round: Round) {
        self.rounds.entry(at).or_default().push(round);
    }

    pub(super) fn fault(&mut self, fault: String) {
        self.faults.push(fault);
    }

    /// Which goals are missed, and how; empty without outlast.
    fn missed(&self) -> Vec<String> {
        if !self.ours {
            return Vec::new();
        }
        let mut missed = Vec::new();
        for fault in &self.asked {
            let found = match self.rounds.get(&(*fault, Column::Outlast)) {
                Some(rounds) => judge(rounds, goal(*fault)),
                None => vec!["not measured".to_owned()],
            };
            let what = format!("{} {}", fault.letter(), fault.says());
            missed.extend(found.into_iter().map(|found| format!("{what}: {found}")));
        }
        missed
    }

    pub(super) fn holds(&self) -> bool {
        self.faults.is_empty() && self.missed().is_empty()
    }

    pub(super) fn table(&self) -> String {
        let names = Column::ALL.map(Column::name);
        let head: Vec<&str> = ["", "holder"].into_iter().chain(names).chain(["goal"]).collect();
        let mut rows = Vec::new();
        for fault in Fault::ALL {
            if !self.rounds.keys().any(|(of, _)| *of == fault) {
                continue;
            }
            let what = format!("{} {}", fault.letter(), fault.says());
            let cells = Column::ALL.map(|column| cell(self.of(fault, column), None));
            rows.push(row(what, "any", cells, goal(fault).says()));
            for (word, led) in [("leads", true), ("follows", false)] {
                let ours = cell(self.of(fault, Column::Outlast), Some(led));
                if !ours.is_empty() {
                    let cells = [String::new(), String::new(), ours];
                    rows.push(row(String::new(), word, cells, String::new()));
                }
            }
        }
        let mut lines = vec![String::new(), out::table(&head, &rows), String::new()];
        lines.push(
            "silence of the address for a client, in ms: median, highest, (rounds); samples in which two machines claimed \
             it; looks that saw it on two machines' interfaces, where outlast lets the kernel keep it dark; \
             goals are outlast's"
                .to_owned(),
        );
        lines.extend(self.noise());
        lines.extend(self.faults.iter().map(|fault| format!("FAULT: {fault}")));
        lines.extend(self.missed().iter().map(|missed| format!("MISSED: {missed}")));
        if self.ours && self.holds() {
            lines.push("all goals are met".to_owned());
        }
        lines.join("\n")
    }

    fn of(&self, fault: Fault, column: Column) -> &[Round] {
        self.rounds.get(&(fault, column)).map(Vec::as_slice).unwrap_or_default()
    }

    /// How much the machine was at work for others.
    fn noise(&self) -> Option<String> {
        let quiet = self.rounds.iter().filter(|((fault, _), _)| *fault != Fault::Busy);
        let good = || quiet.clone().flat_map(|(_, rounds)| rounds.iter().flatten());
        let shares = good().filter_map(|outcome| outcome.stalled_percent).collect();
        let Spread { median, min, max } = Spread::of(shares)?;
        let late = good().map(|outcome| outcome.late).max().unwrap_or_default();
        Some(format!(
            "a core was waited for {median:.0} % of the time ({min:.0}-{max:.0}); the client itself was late by {} ms at most",
            late.as_millis()
        ))
    }

    /// One line for programs.
    pub(super) fn json(&self) -> String {
        let figures: Vec<Value> = self.rounds.iter().map(figure).collect();
        json!({
            "bench": "addresses",
            "figures": figures,
            "faults": self.faults,
            "missed": self.missed(),
            "holds": self.ours.then(|| self.holds()),
        })
        .to_string()
    }
}

fn row(what: String, holder: &str, cells: [String; 3], goal: String) -> Vec<String> {
    [what, holder.to_owned()].into_iter().chain(cells).chain([goal]).collect()
}

/// What is wrong with the rounds of one fault, held against a goal.
fn judge(rounds: &[Round], goal: Goal) -> Vec<String> {
    let mut found: Vec<String> = rounds.iter().filter_map(|r| r.as_ref().err().cloned()).collect();
    let good: Vec<&Outcome> = rounds.iter().flatten().collect();
    if let Some(Spread { median, max, .. }) = Spread::of(good.iter().map(silence_ms).collect()) {
        if goal.median_ms_max.is_some_and(|most| most < median) {
            found.push(format!("a median of {median:.0} ms"));
        }
        if goal.worst_ms_max.is_some_and(|most| most < max) {
            found.push(format!("{max:.0} ms"));
        }
    }
    let open = good.iter().filter(|o| matches!(o.silence, Silence::Open(_))).count();
    if 0 < open {
        found.push(format!("nobody answered again in {open} rounds"));
    }
    let dual: usize = good.iter().map(|outcome| outcome.dual).sum();
    if 0 < dual {
        found.push(format!("two machines claimed it in {dual} samples"));
    }
    // Nothing that was looked at cannot be good.
    if good.iter().any(|outcome| outcome.samples == 0) {
        found.push("nobody was seen to claim it".to_owned());
    }
    let moves: usize = good.iter().filter_map(|outcome| outcome.moves).sum();
    if goal.moves_max.is_some_and(|most| most < moves) {
        found.push(format!("it moved {moves} times"));
    }
    found
}

fn silence_ms(outcome: &&Outcome) -> f64 {
    ms(outcome.silence.at_least())
}

fn ms(time: Duration) -> f64 {
    (time.as_secs_f64() * 10_000.0).round() / 10.0
}

/// One round in words.
pub(super) fn told(round: &Round) -> String {
    let outcome = match round {
        Ok(outcome) => outcome,
        Err(fault) => return format!("BROKEN: {fault}"),
    };
    let so_far = if matches!(outcome.silence, Silence::Open(_)) { "not over after " } else { "" };
    let mut parts = vec![
        format!("silence {so_far}{:.0} ms", ms(outcome.silence.at_least())),
        format!("{} of {} samples dual", outcome.dual, outcome.samples),
    ];
    if outcome.led {
        parts.push("the holder led".to_owned());
    }
    if let Some(late) = outcome.since_healed {
        parts.push(format!("{:.0} ms once it was said to be healed", ms(late)));
    }
    if 0 < outcome.on_two {
        parts.push(format!("on two interfaces in {} looks", outcome.on_two));
    }
    if let Some(moves) = outcome.moves {
        parts.push(format!("moved {moves} times"));
    }
    if let Some(percent) = outcome.stalled_percent {
        parts.push(format!("a core was waited for {percent:.0} % of the time"));
    }
    if !outcome.late.is_zero() {
        parts.push(format!("CLIENT LATE by {} ms", outcome.late.as_millis()));
    }
    parts.join(", ")
}

/// Of all rounds, or of those whose holder led the agreement or did not.
fn cell(rounds: &[Round], led: Option<bool>) -> String {
    let fits = |outcome: &&Outcome| led.is_none_or(|led| led == outcome.led);
    let good: Vec<&Outcome> = rounds.iter().flatten().filter(fits).collect();
    let mut parts = Vec::new();
    if let Some(Spread { median, max, .. }) = Spread::of(good.iter().map(silence_ms).collect()) {
        let open = good.iter().any(|o| matches!(o.silence, Silence::Open(_)));
        let so_far = if open { "not over after " } else { "" };
        parts.push(format!("{so_far}{median:.0}, {max:.0} ({})", good.len()));
        let sum = |of: fn(&&Outcome) -> usize| good.iter().map(of).sum::<usize>();
        parts.push(format!("{} dual", sum(|outcome| outcome.dual)));
        let on_two = sum(|outcome| outcome.on_two);
        if 0 < on_two {
            parts.push(format!("{on_two} on two"));
        }
        if good.iter().any(|outcome| outcome.moves.is_some()) {
            parts.push(format!("{} moves", sum(|outcome| outcome.moves.unwrap_or(0))));
        }
    }
    let broken = rounds.iter().filter(|round| round.is_err()).count();
    if led.is_none() && 0 < broken {
        parts.push(format!("{broken} BROKEN"));
    }
    parts.join(", ")
}

fn figure(((fault, column), rounds): (&(Fault, Column), &Vec<Round>)) -> Value {
    let good: Vec<&Outcome> = rounds.iter().flatten().collect();
    let each = |of: fn(&Outcome) -> Value| good.iter().map(|o| of(o)).collect::<Vec<_>>();
    let Goal { median_ms_max, worst_ms_max, moves_max } = goal(*fault);
    let spread = Spread::of(good.iter().map(silence_ms).collect());
    json!({
        "stack": column.key(),
        "fault": fault.letter().to_string(),
        "says": fault.says(),
        "median_ms": spread.map(|spread| spread.median),
        "max_ms": spread.map(|spread| spread.max),
        "goal": { "median_ms_max": median_ms_max, "max_ms_max": worst_ms_max, "moves_max": moves_max, "dual_max": 0 },
        "silence_ms": each(|o| json!(ms(o.silence.at_least()))),
        "resumed": each(|o| json!(matches!(o.silence, Silence::Ended(_)))),
        "holder_led": each(|o| json!(o.led)),
        "since_healed_ms": each(|o| json!(o.since_healed.map(ms))),
        "dual": each(|o| json!(o.dual)),
        "samples": each(|o| json!(o.samples)),
        "on_two_interfaces": each(|o| json!(o.on_two)),
        "moves": each(|o| json!(o.moves)),
        "cpu_stall_percent": each(|o| json!(o.stalled_percent.map(f64::round))),
        "client_late_ms": each(|o| json!(ms(o.late))),
        "broken": rounds.iter().filter_map(|round| round.as_ref().err()).collect::<Vec<_>>(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome(ms: u64, led: bool, dual: usize) -> Outcome {
        Outcome {
            led,
            silence: Silence::Ended(Duration::from_millis(ms)),
            since_healed: None,
            dual,
            samples: 100,
            on_two: 0,
            moves: None,
            stalled_percent: None,
            late: Duration::ZERO,
        }
    }

    #[test]
    fn one_round_beyond_a_goal_misses_it() {
        let mut report = Report::new(true, &[Fault::Cut]);
        assert_eq!(report.missed(), ["D holder cut off: not measured"]);
        let at = (Fault::Cut, Column::Outlast);
        report.record(at, Ok(outcome(300, true, 0)));
        report.record(at, Ok(outcome(420, false, 0)));
        assert!(report.holds(), "{:?}", report.missed());
        report.record(at, Ok(outcome(710, false, 2)));
        let expected = [
            "D holder cut off: a median of 420 ms",
            "D holder cut off: 710 ms",
            "D holder cut off: two machines claimed it in 2 samples",
        ];
        assert_eq!(report.missed(), expected);
        let table = report.table();
        assert!(table.contains("420, 710 (3), 2 dual"), "{table}");
        assert!(table.contains("300, 300 (1), 0 dual"), "{table}");
        let json: Value = serde_json::from_str(&report.json()).unwrap();
        assert_eq!(json["holds"], false);
        assert_eq!(json["figures"][0]["silence_ms"], json!([300.0, 420.0, 710.0]));
    }

    #[test]
    fn peers_miss_no_goal_and_what_never_ends_says_so() {
        let mut report = Report::new(false, &[Fault::KillAgent]);
        let open = Silence::Open(Duration::from_secs(2));
        let at = (Fault::KillAgent, Column::KeepalivedFast);
        report.record(at, Ok(Outcome { silence: open, ..outcome(0, false, 5) }));
        assert!(report.holds());
        assert!(report.table().contains("not over after 2000, 2000 (1), 5 dual"));
    }

    #[test]
    fn an_address_that_moves_under_load_misses() {
        let goal = goal(Fault::Busy);
        let moved = |moves| Ok(Outcome { moves: Some(moves), ..outcome(900, false, 0) });
        assert!(judge(&[moved(0)], goal).is_empty());
        assert_eq!(judge(&[moved(0), moved(1)], goal), ["it moved 1 times"]);
        assert_eq!(judge(&[Err("gone".to_owned())], goal), ["gone"]);
    }
}
