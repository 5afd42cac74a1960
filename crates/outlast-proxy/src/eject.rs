//! Decides from traffic alone when a backend gets no more of it for a while.
//!
//! The active probe asks now and then; every request asks too. A run of failures, or a high share of 5xx answers, ejects a
//! backend at once. The ejection doubles with each repetition; when it ends, one request goes first as a trial.

use std::time::{Duration, Instant};

use crate::table::Eject;

/// How one request at a backend went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    Good,
    Status5xx,
    /// Connect error, reset or timeout.
    Failure,
}

/// The passive belief in one backend.
#[derive(Clone, Debug)]
pub struct Ejection {
    failures: u32,
    window_start: Instant,
    window_all: u32,
    window_5xx: u32,
    state: State,
    /// How often in a row it has been ejected.
    times: u32,
    /// When the last ejection ended.
    ended: Option<Instant>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    In,
    Out {
        until: Instant,
    },
    /// The ejection is over; one request tries, until this moment.
    Trial {
        until: Instant,
    },
}

/// What an outcome changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    None,
    Ejected { time: Duration, reason: &'static str },
    Returned,
}

/// The length of the window for the 5xx rate.
const WINDOW: Duration = Duration::from_secs(10);

/// Without a request that could be the trial, the probe alone has vouched for this long.
const LAPSE: Duration = Duration::from_secs(5);

/// A trial request that never comes back frees its place after this long.
const TRIAL_MAX: Duration = Duration::from_secs(10);

impl Ejection {
    pub fn new(now: Instant) -> Ejection {
        Ejection {
            failures: 0,
            window_start: now,
            window_all: 0,
            window_5xx: 0,
            state: State::In,
            times: 0,
            ended: None,
        }
    }

    /// Whether it takes no ordinary traffic.
    pub fn ejected(&self) -> bool {
        self.state != State::In
    }

    /// Whether a request could go there now.
    pub fn due(&self, now: Instant) -> bool {
        match self.state {
            State::In => true,
            State::Out { until } | State::Trial { until } => until <= now,
        }
    }

    /// Whether a request may go there now; a trial takes the one place that there is.
    pub fn admit(&mut self, now: Instant) -> bool {
        let due = self.due(now);
        if due && self.ejected() {
            self.state = State::Trial { until: now + TRIAL_MAX };
        }
        due
    }

    /// Ends an ejection that has been over for a while without a request to try. True: it is back in.
    pub fn lapse(&mut self, now: Instant) -> bool {
        let lapsed = match self.state {
            State::In => false,
            State::Out { until } | State::Trial { until } => until + LAPSE <= now,
        };
        if lapsed {
            self.state = State::In;
            self.ended = Some(now);
        }
        lapsed
    }

    /// Takes the outcome of one request. `last`: no other backend could take its place, so it stays.
    pub fn observe(&mut self, now: Instant, outcome: Outcome, last: bool, rules: &Eject) -> Change {
        if WINDOW <= now.duration_since(self.window_start) {
            self.window_start = now;
            self.window_all = 0;
            self.window_5xx = 0;
        }
        self.window_all += 1;
        match outcome {
            Outcome::Good => self.failures = 0,
            Outcome::Status5xx => {
                self.failures = 0;
                self.window_5xx += 1;
            }
            Outcome::Failure => self.failures += 1,
        }
        match (self.state, outcome) {
            (State::Trial { .. }, Outcome::Good) => {
                self.state = State::In;
                self.ended = Some(now);
                Change::Returned
            }
            (State::Trial { .. }, Outcome::Failure | Outcome::Status5xx) => {
                self.eject(now, "the trial failed", rules)
            }
            // Answers to what was sent before the ejection.
            (State::Out { .. }, _) => Change::None,
            (State::In, Outcome::Good) => Change::None,
            (State::In, _) if last => Change::None,
            (State::In, Outcome::Failure)
                if 0 < rules.failures && rules.failures <= self.failures =>
            {
                self.eject(now, "failures in a row", rules)
            }
            (State::In, Outcome::Status5xx) if self.rate_is_bad(rules) => {
                self.eject(now, "share of 5xx answers", rules)
            }
            (State::In, Outcome::Failure | Outcome::Status5xx) => Change::None,
        }
    }

    /// Whether nothing bad is on its mind: good outcomes need not be told for a while.
    pub fn quiet(&self) -> bool {
        self.state == State::In && self.failures == 0 && self.window_5xx == 0
    }

    /// The active probe saw it down and up again, or somebody else vouches for it.
    pub fn pardon(&mut self, now: Instant) {
        *self = Ejection::new(now);
    }

    fn rate_is_bad(&self, rules: &Eject) -> bool {
        rules.rate_5xx.is_some_and(|rate| {
            rules.rate_min.max(1) <= self.window_all
                && rate * f64::from(self.window_all) <= f64::from(self.window_5xx)
        })
    }

    fn eject(&mut self, now: Instant, reason: &'static str, rules: &Eject) -> Change {
        // A long good time makes the past forgotten.
        if self.ended.is_some_and(|ended| rules.max_time < now.duration_since(ended)) {
            self.times = 0;
        }
        let time = rules.time.saturating_mul(1 << self.times.min(16)).min(rules.max_time);
        self.times += 1;
        self.failures = 0;
        self.window_all = 0;
        self.window_5xx = 0;
        let first = self.state == State::In;
        self.state = State::Out { until: now + time };
        if first { Change::Ejected { time, reason } } else { Change::None }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules() -> Eject {
        Eject {
            failures: 3,
            rate_5xx: Some(0.5),
            rate_min: 4,
            time: Duration::from_secs(5),
            max_time: Duration::from_secs(60),
        }
    }

    /// Feeds `+` good, `-` failure, `5` 5xx, `?` admit, digits of `w7` wait seconds; writes what changed.
    fn check(script: &str, last: bool, expected: &str) {
        let mut now = Instant::now();
        let mut ejection = Ejection::new(now);
        let mut got = Vec::new();
        for word in script.split_whitespace() {
            let outcome = match word {
                "+" => Outcome::Good,
                "-" => Outcome::Failure,
                "5" => Outcome::Status5xx,
                "?" => {
                    got.push(if ejection.admit(now) { "yes".to_owned() } else { "no".to_owned() });
                    continue;
                }
                wait => {
                    now += Duration::from_secs(wait[1..].parse().unwrap());
                    continue;
                }
            };
            match ejection.observe(now, outcome, last, &rules()) {
                Change::None => {}
                Change::Ejected { time, .. } => got.push(format!("out{}", time.as_secs())),
                Change::Returned => got.push("in".to_owned()),
            }
        }
        assert_eq!(got.join(" "), expected, "{script}");
    }

    #[test]
    fn failures_in_a_row_eject() {
        check("- - + - - ? - ?", false, "yes out5 no");
    }

    #[test]
    fn one_trial_goes_first_and_decides() {
        check("- - - w5 ? ? + ?", false, "out5 yes no in yes");
        check("- - - w5 ? - ? w9 ? w1 ?", false, "out5 yes no no yes");
    }

    #[test]
    fn an_ejection_without_traffic_lapses() {
        let now = Instant::now();
        let mut ejection = Ejection::new(now);
        for _ in 0..3 {
            ejection.observe(now, Outcome::Failure, false, &rules());
        }
        assert!(!ejection.lapse(now + Duration::from_secs(9)) && ejection.ejected());
        assert!(ejection.lapse(now + Duration::from_secs(10)) && !ejection.ejected());
    }

    #[test]
    fn ejections_double_up_to_a_limit() {
        check(
            "- - - w5 ? - w10 ? - w20 ? - w40 ? - w59 ? w1 ?",
            false,
            "out5 yes yes yes yes no yes",
        );
    }

    #[test]
    fn a_high_share_of_5xx_ejects() {
        check("+ 5 + 5 ?", false, "out5 no");
        check("+ + + 5 5 + ?", false, "yes");
    }

    #[test]
    fn the_last_backend_is_never_ejected() {
        check("- - - - - 5 5 5 5 5 ?", true, "yes");
    }
}
