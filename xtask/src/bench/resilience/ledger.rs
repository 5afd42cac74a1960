//! What became of every request, counted for the deed that was done when it ended.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crate::histogram::Histogram;
use crate::load::{Method, Outcome, Sample};

/// A finished request.
#[derive(Clone, Copy, Debug)]
pub(super) struct Noted {
    pub(super) due: Instant,
    latency: Duration,
    method: Method,
    outcome: Outcome,
}

impl From<Sample<'_>> for Noted {
    fn from(sample: Sample<'_>) -> Noted {
        let Sample { due, latency, method, outcome, body: _ } = sample;
        Noted { due, latency, method, outcome }
    }
}

impl Noted {
    pub(super) fn done(&self) -> Instant {
        self.due + self.latency
    }
}

/// Requests of one kind of deed.
#[derive(Clone, Debug)]
pub(super) struct Tally {
    pub(super) requests: u64,
    pub(super) posts: u64,
    pub(super) failed: u64,
    /// Of the failed ones: the connection was closed or reset before the whole answer was there.
    pub(super) cut: u64,
    /// Of the failed ones: nobody accepted the connection.
    pub(super) refused: u64,
    /// Each kind of failure, by method.
    pub(super) failures: BTreeMap<String, u64>,
    pub(super) latencies: Histogram,
    pub(super) latency_max: Duration,
}

impl Tally {
    pub(super) fn new() -> Tally {
        Tally {
            requests: 0,
            posts: 0,
            failed: 0,
            cut: 0,
            refused: 0,
            failures: BTreeMap::new(),
            latencies: Histogram::new(),
            latency_max: Duration::ZERO,
        }
    }

    pub(super) fn add(&mut self, noted: &Noted) {
        self.requests += 1;
        self.posts += u64::from(noted.method == Method::Post);
        self.latencies.add(noted.latency);
        self.latency_max = self.latency_max.max(noted.latency);
        match noted.outcome {
            Outcome::Ok => return,
            Outcome::Cut => self.cut += 1,
            Outcome::Refused => self.refused += 1,
            Outcome::Status(_) | Outcome::Timeout | Outcome::Malformed => {}
        }
        self.failed += 1;
        let kind = format!("{:?} {:?}", noted.method, noted.outcome).to_lowercase();
        *self.failures.entry(kind).or_default() += 1;
    }

    pub(super) fn merge(&mut self, other: &Tally) {
        self.requests += other.requests;
        self.posts += other.posts;
        self.failed += other.failed;
        self.cut += other.cut;
        self.refused += other.refused;
        for (kind, count) in &other.failures {
            *self.failures.entry(kind.clone()).or_default() += count;
        }
        self.latency_max = self.latency_max.max(other.latency_max);
    }
}

/// The middle one.
pub(super) fn median(mut times: Vec<Duration>) -> Option<Duration> {
    times.sort_unstable();
    times.get(times.len() / 2).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_are_counted_by_kind_and_method() {
        let mut tally = Tally::new();
        for (method, outcome) in [
            (Method::Get, Outcome::Ok),
            (Method::Post, Outcome::Cut),
            (Method::Get, Outcome::Status(502)),
            (Method::Get, Outcome::Refused),
        ] {
            let (due, latency) = (Instant::now(), Duration::from_millis(3));
            tally.add(&Noted { due, latency, method, outcome });
        }
        assert_eq!((tally.requests, tally.posts, tally.failed), (4, 1, 3));
        assert_eq!((tally.cut, tally.refused), (1, 1));
        let kinds: Vec<_> = tally.failures.keys().map(String::as_str).collect();
        assert_eq!(kinds, ["get refused", "get status(502)", "post cut"]);
    }
}
