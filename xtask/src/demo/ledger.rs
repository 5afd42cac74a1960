//! What became of every request, for the whole run and for each fault.

use std::collections::{BTreeMap, VecDeque};
use std::sync::mpsc::Receiver;
use std::time::{Duration, Instant};

use crate::histogram::Histogram;
use crate::load::{Outcome, Sample};

/// A request that took longer made somebody wait.
pub(crate) const DELAYED: Duration = Duration::from_millis(100);
/// What the status line looks back on.
const RECENT: Duration = Duration::from_secs(5);
/// Names are b1, b2, b3.
const NAME_BYTES: usize = 8;

/// A finished request.
#[derive(Clone, Debug)]
pub(super) struct Noted {
    pub(super) due: Instant,
    pub(super) latency: Duration,
    pub(super) outcome: Outcome,
    pub(super) backend: String,
}

impl From<Sample<'_>> for Noted {
    fn from(sample: Sample<'_>) -> Noted {
        let head = &sample.body[..sample.body.len().min(NAME_BYTES)];
        let name = head.split(|byte| *byte == b' ').next().unwrap_or_default();
        Noted {
            due: sample.due,
            latency: sample.latency,
            outcome: sample.outcome,
            backend: String::from_utf8_lossy(name).into_owned(),
        }
    }
}

/// Requests of one stretch of time.
#[derive(Debug)]
pub(super) struct Tally {
    pub(super) latencies: Histogram,
    pub(super) failed: u64,
    pub(super) failures: BTreeMap<String, u64>,
    pub(super) served: BTreeMap<String, u64>,
    pub(super) delayed: u64,
    pub(super) latency_max: Duration,
}

impl Tally {
    fn new() -> Tally {
        Tally {
            latencies: Histogram::new(),
            failed: 0,
            failures: BTreeMap::new(),
            served: BTreeMap::new(),
            delayed: 0,
            latency_max: Duration::ZERO,
        }
    }

    fn add(&mut self, noted: &Noted) {
        self.latencies.add(noted.latency);
        self.latency_max = self.latency_max.max(noted.latency);
        self.delayed += u64::from(noted.latency > DELAYED);
        match noted.outcome {
            Outcome::Ok => *self.served.entry(noted.backend.clone()).or_default() += 1,
            failure @ (Outcome::Status(_)
            | Outcome::Refused
            | Outcome::Cut
            | Outcome::Timeout
            | Outcome::Malformed) => {
                self.failed += 1;
                *self.failures.entry(format!("{failure:?}").to_lowercase()).or_default() += 1;
            }
        }
    }

    pub(super) fn requests(&self) -> u64 {
        self.latencies.total()
    }
}

/// One fault, from when it began to when the next one did.
#[derive(Debug)]
pub(super) struct Window {
    pub(super) name: String,
    pub(super) victim: String,
    pub(super) started: Instant,
    pub(super) tally: Tally,
    /// Since the start: the last request that failed or was delayed.
    pub(super) troubled_for: Duration,
    /// Whether the backend was revived, and when it then served again.
    pub(super) revived: Option<Instant>,
    pub(super) back_after: Option<Duration>,
    /// Why the fault did not really happen, if so.
    pub(super) doubts: Vec<String>,
}

#[derive(Debug)]
pub(super) struct Ledger {
    pub(super) started: Instant,
    pub(super) ended: Option<Instant>,
    pub(super) total: Tally,
    pub(super) windows: Vec<Window>,
    recent: VecDeque<Noted>,
}

impl Ledger {
    pub(super) fn new() -> Ledger {
        Ledger {
            started: Instant::now(),
            ended: None,
            total: Tally::new(),
            windows: Vec::new(),
            recent: VecDeque::new(),
        }
    }

    /// Opens a window for a fault on a backend; what ends from now on belongs to it.
    pub(super) fn open_window(&mut self, name: &str, victim: &str) {
        self.windows.push(Window {
            name: name.to_owned(),
            victim: victim.to_owned(),
            started: Instant::now(),
            tally: Tally::new(),
            troubled_for: Duration::ZERO,
            revived: None,
            back_after: None,
            doubts: Vec::new(),
        });
    }

    pub(super) fn window(&mut self) -> Option<&mut Window> {
        self.windows.last_mut()
    }

    /// No request is due any more.
    pub(super) fn close(&mut self) {
        self.ended = Some(Instant::now());
    }

    /// Takes in what has finished since the last time.
    pub(super) fn take(&mut self, samples: &Receiver<Noted>) {
        for noted in samples.try_iter() {
            self.add(noted);
        }
        let now = Instant::now();
        while self.recent.front().is_some_and(|old| now - old.due > RECENT) {
            self.recent.pop_front();
        }
    }

    fn add(&mut self, noted: Noted) {
        self.total.add(&noted);
        // What was under way when a fault began was hit by it.
        let done = noted.due + noted.latency;
        let window = self.windows.iter_mut().rev().find(|window| window.started <= done);
        if let Some(window) = window {
            window.tally.add(&noted);
            if noted.outcome != Outcome::Ok || noted.latency > DELAYED {
                window.troubled_for = window.troubled_for.max(done - window.started);
            }
            if let Some(revived) = window.revived
                && noted.backend == window.victim
                && noted.due > revived
            {
                window.back_after.get_or_insert(noted.due - revived);
            }
        }
        self.recent.push_back(noted);
    }

    /// The last few seconds.
    pub(super) fn recent(&self) -> Tally {
        let mut tally = Tally::new();
        for noted in &self.recent {
            tally.add(noted);
        }
        tally
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn noted(due: Instant, millis: u64, outcome: Outcome, backend: &str) -> Noted {
        let latency = Duration::from_millis(millis);
        Noted { due, latency, outcome, backend: backend.to_owned() }
    }

    #[test]
    fn a_request_under_way_when_a_fault_begins_counts_for_that_fault() {
        let mut ledger = Ledger::new();
        ledger.open_window("kill", "b1");
        ledger.open_window("freeze", "b1");
        let first = ledger.windows[0].started;
        let at = |millis| first + Duration::from_millis(millis);
        ledger.windows[1].started = at(1000);
        ledger.add(noted(at(200), 300, Outcome::Cut, ""));
        ledger.add(noted(at(990), 500, Outcome::Ok, "b2"));
        ledger.add(noted(at(1100), 5, Outcome::Ok, "b2"));
        let of = |at: usize| {
            let window = &ledger.windows[at];
            (window.tally.requests(), window.tally.failed, window.tally.delayed)
        };
        assert_eq!((of(0), of(1)), ((1, 1, 1), (2, 0, 1)));
        assert_eq!(ledger.windows[0].troubled_for, Duration::from_millis(500));
        assert_eq!(ledger.windows[1].troubled_for, Duration::from_millis(490));
        assert_eq!(ledger.total.failed, 1);
    }

    #[test]
    fn a_backend_is_back_with_its_first_answer_after_it_was_revived() {
        let mut ledger = Ledger::new();
        ledger.open_window("kill", "b1");
        let start = ledger.windows[0].started;
        let at = |millis| start + Duration::from_millis(millis);
        ledger.windows[0].revived = Some(at(100));
        ledger.add(noted(at(50), 1, Outcome::Ok, "b1"));
        ledger.add(noted(at(150), 1, Outcome::Ok, "b2"));
        assert_eq!(ledger.windows[0].back_after, None);
        ledger.add(noted(at(400), 1, Outcome::Ok, "b1"));
        assert_eq!(ledger.windows[0].back_after, Some(Duration::from_millis(300)));
    }
}
