//! How long ago the primary wrote what a standby has not replayed yet, by the primary's own clock.
//!
//! PostgreSQL's `replay_lag` is of the last that was replayed: it says nothing while a standby is held up. So the primary's
//! agent remembers when the log reached which place, look by look.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use outlast_postgres::Standby;

/// Looks that are remembered: a quarter of an hour and more. A standby that is behind for longer is behind at least that.
const KEPT: usize = 1024;

/// Where the log has reached when.
#[derive(Debug, Default)]
pub(super) struct Track {
    /// The oldest first, each further than the one before.
    reached: VecDeque<(Instant, u64)>,
}

impl Track {
    pub(super) fn note(&mut self, now: Instant, end: u64) {
        if self.reached.back().is_some_and(|(_, last)| end <= *last) {
            return;
        }
        self.reached.push_back((now, end));
        if self.reached.len() > KEPT {
            self.reached.pop_front();
        }
    }

    /// How far behind in time each standby is that streams.
    pub(super) fn lags(&self, now: Instant, standbys: &[Standby]) -> BTreeMap<String, Duration> {
        let streaming = standbys.iter().filter(|standby| standby.state == "streaming");
        let lags = streaming.filter_map(|standby| {
            let lag = match self.behind(now, standby.replayed?.0) {
                // What it said is of the time before.
                None => Duration::ZERO,
                Some(behind) => behind.max(standby.replay_lag.unwrap_or_default()),
            };
            Some((standby.name.clone(), lag))
        });
        lags.collect()
    }

    /// Since when the log has reached further than this.
    fn behind(&self, now: Instant, replayed: u64) -> Option<Duration> {
        let first = self.reached.iter().find(|(_, end)| replayed < *end);
        first.map(|(at, _)| now.duration_since(*at))
    }
}

#[cfg(test)]
mod tests {
    use outlast_postgres::Lsn;

    use super::*;

    fn standby(replayed: u64, said: Option<u64>) -> Standby {
        Standby {
            pid: 1,
            name: "b".to_owned(),
            state: "streaming".to_owned(),
            sync_state: "async".to_owned(),
            flushed: None,
            replayed: Some(Lsn(replayed)),
            replay_lag: said.map(Duration::from_secs),
        }
    }

    #[test]
    fn a_standby_that_is_held_up_falls_behind_although_its_last_word_was_good() {
        let begun = Instant::now();
        let at = |seconds| begun + Duration::from_secs(seconds);
        let mut track = Track::default();
        for (seconds, end) in [(0, 10), (1, 10), (2, 20), (3, 30)] {
            track.note(at(seconds), end);
        }
        let lag =
            |now, replayed, said| track.lags(at(now), &[standby(replayed, said)])["b"].as_secs();
        assert_eq!(lag(9, 30, None), 0, "it has all");
        assert_eq!(lag(9, 30, Some(4)), 0, "what it said is of the time before");
        assert_eq!(lag(9, 10, None), 7, "what was written at 2 is missing");
        assert_eq!(lag(9, 25, Some(1)), 6);
        assert_eq!(lag(3, 25, Some(2)), 2, "what it says itself is finer");
    }
}
