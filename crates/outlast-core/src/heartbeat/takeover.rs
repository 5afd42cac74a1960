//! The five steps of a takeover, each recorded with what it came to and how long it took.

use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;
use core::time::Duration;

use crate::units::show_duration;

/// In the order in which they are done; each needs the one before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Step {
    /// The other node is asked three times whether it lives.
    Verify,
    /// What the address needs is well on this node.
    Serve,
    /// The kernel answers on it, under a guard that ends by itself.
    Take,
    /// Everybody on the network hears where it is now.
    Announce,
    /// People and programs hear of it: the journal, its hooks, `outlast status`.
    Tell,
}

/// All of them.
pub const STEPS: [Step; 5] = [Step::Verify, Step::Serve, Step::Take, Step::Announce, Step::Tell];

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Step::Verify => "verify",
            Step::Serve => "serve",
            Step::Take => "take",
            Step::Announce => "announce",
            Step::Tell => "tell",
        })
    }
}

/// What a step came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    Done,
    Failed(String),
}

/// A takeover as far as it came.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Takeover {
    done: Vec<(Step, Duration, Outcome)>,
}

impl Takeover {
    /// The step that is to be done now; `None`: all are, or one has failed.
    pub fn next(&self) -> Option<Step> {
        if self.failed().is_some() {
            return None;
        }
        STEPS.get(self.done.len()).copied()
    }

    /// The step that is to be done now came to this.
    pub fn record(&mut self, took: Duration, outcome: Outcome) {
        if let Some(step) = self.next() {
            self.done.push((step, took, outcome));
        }
    }

    pub fn failed(&self) -> Option<(Step, &str)> {
        self.done.iter().find_map(|(step, _, outcome)| match outcome {
            Outcome::Done => None,
            Outcome::Failed(why) => Some((*step, why.as_str())),
        })
    }

    pub fn steps(&self) -> &[(Step, Duration, Outcome)] {
        &self.done
    }
}

/// `verify 100ms, serve 0s, take 3ms, announce 1ms, tell 0s`.
impl fmt::Display for Takeover {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (nth, step) in STEPS.into_iter().enumerate() {
            if nth > 0 {
                f.write_str(", ")?;
            }
            match self.done.get(nth) {
                Some((_, took, Outcome::Done)) => write!(f, "{step} {}", show_duration(*took))?,
                Some((_, _, Outcome::Failed(why))) => write!(f, "{step} failed: {why}")?,
                None => write!(f, "{step} not done")?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::borrow::ToOwned as _;
    use alloc::string::ToString as _;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn five_steps_are_done_in_their_order_and_none_after_one_that_failed() {
        let mut takeover = Takeover::default();
        for step in STEPS {
            assert_eq!(takeover.next(), Some(step));
            takeover.record(MS, Outcome::Done);
        }
        assert_eq!(takeover.next(), None);
        assert_eq!(takeover.to_string(), "verify 1ms, serve 1ms, take 1ms, announce 1ms, tell 1ms");
        let mut failed = Takeover::default();
        failed.record(MS * 100, Outcome::Done);
        failed.record(Duration::ZERO, Outcome::Failed("eth1 is down".to_owned()));
        failed.record(MS, Outcome::Done);
        assert_eq!((failed.next(), failed.failed()), (None, Some((Step::Serve, "eth1 is down"))));
        assert_eq!(
            failed.to_string(),
            "verify 100ms, serve failed: eth1 is down, take not done, announce not done, tell not done"
        );
    }
}
