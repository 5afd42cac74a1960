//! Latencies counted into buckets that are at most 3 % wide, so that any number of them takes the same room.

use std::time::Duration;

/// Buckets for each doubling.
const STEPS: u32 = 32;
/// Enough doublings for more than an hour in microseconds.
const DOUBLINGS: u32 = 32;

#[derive(Clone, Debug)]
pub(crate) struct Histogram {
    counts: Vec<u64>,
    total: u64,
    max: Duration,
}

impl Histogram {
    pub(crate) fn new() -> Self {
        Histogram { counts: vec![0; (STEPS * DOUBLINGS) as usize], total: 0, max: Duration::ZERO }
    }

    pub(crate) fn add(&mut self, latency: Duration) {
        let last = self.counts.len() - 1;
        self.counts[bucket(latency).min(last)] += 1;
        self.total += 1;
        self.max = self.max.max(latency);
    }

    pub(crate) fn total(&self) -> u64 {
        self.total
    }

    /// The latency that this share of requests did not exceed; zero when there were none.
    pub(crate) fn quantile(&self, share: f64) -> Duration {
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            clippy::cast_precision_loss,
            reason = "a share of a count is a count"
        )]
        let rank = ((self.total as f64 * share).ceil() as u64).max(1);
        let mut seen = 0;
        for (at, count) in self.counts.iter().enumerate() {
            seen += count;
            if seen >= rank {
                return upper_edge(at).min(self.max);
            }
        }
        self.max
    }
}

/// The first 32 buckets are a microsecond wide; then each doubling has 32.
fn bucket(latency: Duration) -> usize {
    let micros = u64::try_from(latency.as_micros()).unwrap_or(u64::MAX);
    if micros < u64::from(STEPS) {
        return usize::try_from(micros).expect("below 32");
    }
    let doubling = micros.ilog2() - STEPS.ilog2();
    let step = micros >> doubling;
    usize::try_from(u64::from(doubling * STEPS) + step).expect("a few thousand at most")
}

fn upper_edge(at: usize) -> Duration {
    let at = u64::try_from(at).expect("a few thousand at most");
    let steps = u64::from(STEPS);
    if at < steps {
        return Duration::from_micros(at);
    }
    let doubling = at / steps - 1;
    let step = at % steps + steps;
    Duration::from_micros(((step + 1) << doubling) - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_latency_lies_in_a_bucket_that_is_at_most_three_percent_wider() {
        for micros in (0..4000).chain((4000..50_000_000).step_by(77_777)) {
            let latency = Duration::from_micros(micros);
            let edge = upper_edge(bucket(latency));
            assert!(edge >= latency && edge <= latency * 104 / 100, "{micros} {edge:?}");
        }
    }

    #[test]
    fn quantiles_are_those_of_the_list() {
        let mut histogram = Histogram::new();
        for micros in 1..=1000 {
            histogram.add(Duration::from_micros(micros));
        }
        let near = |share, micros| {
            let (found, latency) = (histogram.quantile(share), Duration::from_micros(micros));
            assert!(found >= latency && found <= latency * 104 / 100, "{share}: {found:?}");
        };
        near(0.5, 500);
        near(0.99, 990);
        near(1.0, 1000);
        assert_eq!(Histogram::new().quantile(0.99), Duration::ZERO);
    }
}
