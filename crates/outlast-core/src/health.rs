//! Turns a noisy stream of probe results into a steady belief.

use core::fmt;
use core::num::NonZeroU16;

/// What is believed of a thing. Nobody acts on `Unknown`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Health {
    #[default]
    Unknown,
    Up,
    Down,
}

impl fmt::Display for Health {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Health::Unknown => "unknown",
            Health::Up => "up",
            Health::Down => "down",
        })
    }
}

/// How many results in a row change a belief (HAProxy's words; Kubernetes says success and failure threshold).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Thresholds {
    pub rise: NonZeroU16,
    pub fall: NonZeroU16,
}

/// A count of consecutive results and the health that they amount to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Belief {
    health: Health,
    /// Successes in a row if positive, failures if negative.
    streak: i32,
    thresholds: Thresholds,
}

impl Belief {
    /// Knows nothing yet.
    pub fn new(thresholds: Thresholds) -> Belief {
        Belief { health: Health::Unknown, streak: 0, thresholds }
    }

    /// Carries on with what somebody else (an earlier process, another observer) believed.
    pub fn resume(thresholds: Thresholds, health: Health) -> Belief {
        Belief { health, streak: 0, thresholds }
    }

    pub fn health(&self) -> Health {
        self.health
    }

    /// Results in a row so far: positive for successes, negative for failures.
    pub fn streak(&self) -> i32 {
        self.streak
    }

    /// Takes one probe result; returns the new health if it changed.
    pub fn observe(&mut self, ok: bool) -> Option<Health> {
        self.streak = match ok {
            true => self.streak.max(0).saturating_add(1),
            false => self.streak.min(0).saturating_sub(1),
        };
        let now = match self.streak {
            s if s >= i32::from(self.thresholds.rise.get()) => Health::Up,
            s if -s >= i32::from(self.thresholds.fall.get()) => Health::Down,
            _ => self.health,
        };
        let changed = now != self.health;
        self.health = now;
        changed.then_some(now)
    }

    /// Knows nothing again.
    pub fn forget(&mut self) {
        *self = Belief::new(self.thresholds);
    }

    /// Takes new thresholds and keeps what is believed.
    pub fn retune(&mut self, thresholds: Thresholds) {
        self.thresholds = thresholds;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::string::{String, ToString};
    use std::vec::Vec;

    fn thresholds(rise: u16, fall: u16) -> Thresholds {
        Thresholds { rise: NonZeroU16::new(rise).unwrap(), fall: NonZeroU16::new(fall).unwrap() }
    }

    /// Feeds `+` and `-`; a change of health is written behind the result that caused it.
    fn check_belief(rise: u16, fall: u16, expected: &str) {
        let mut belief = Belief::new(thresholds(rise, fall));
        let got: Vec<String> = expected
            .split_whitespace()
            .map(|word| {
                let ok = word.starts_with('+');
                let change = belief.observe(ok).map(|h| h.to_string()).unwrap_or_default();
                std::format!("{}{change}", if ok { '+' } else { '-' })
            })
            .collect();
        assert_eq!(got.join(" "), expected);
    }

    #[test]
    fn a_belief_changes_after_rise_successes_or_fall_failures_in_a_row() {
        check_belief(2, 3, "+ +up - - + - - -down - + - + +up");
        check_belief(1, 1, "+up -down +up");
        check_belief(2, 3, "- - + - - -down");
    }

    #[test]
    fn kubernetes_readiness_vector_holds() {
        // failureThreshold 3, successThreshold 2: `PP` ready at the second; `FFPFFF` not ready at the sixth.
        check_belief(2, 3, "+ +up - - + - - -down + - + +up");
    }

    proptest! {
        #[test]
        fn health_is_what_the_last_long_enough_run_says(results: Vec<bool>, rise in 1u16..5, fall in 1u16..5) {
            let mut belief = Belief::new(thresholds(rise, fall));
            let mut model = Health::Unknown;
            for end in 1..=results.len() {
                belief.observe(results[end - 1]);
                let run = results[..end].iter().rev().take_while(|&&r| r == results[end - 1]).count();
                if results[end - 1] && run >= usize::from(rise) { model = Health::Up; }
                if !results[end - 1] && run >= usize::from(fall) { model = Health::Down; }
                prop_assert_eq!(belief.health(), model);
            }
        }
    }
}
