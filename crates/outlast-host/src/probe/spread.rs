//! When probes ask: spread out, so that a thousand of them do not fire together.

use std::time::Duration;

/// The first question comes at most this long after the start, however rare the later ones are.
const FIRST_MAX: Duration = Duration::from_secs(1);
/// A round is longer or shorter than `every` by at most this many thousandths.
const JITTER: u64 = 50;
/// 2^64 / golden ratio: multiples of it fall evenly into any interval (Knuth, TAOCP 3, 6.4).
const GOLDEN: u64 = 0x9E37_79B9_7F4A_7C15;

/// How long after the start probe number `index` asks for the first time: within `every`, and within a second.
pub fn first_offset(every: Duration, index: u64) -> Duration {
    share(every.min(FIRST_MAX), index.wrapping_mul(GOLDEN))
}

/// How long from the start of question number `asked` to the start of the next: `every`, give or take 5 %.
pub fn round(every: Duration, index: u64, asked: u64) -> Duration {
    let least = every - every.mul_f64(JITTER as f64 / 1000.0);
    least + share((every - least) * 2, mix(index.wrapping_mul(GOLDEN) ^ asked))
}

/// The share `of64 / 2^64` of a duration.
fn share(of: Duration, of64: u64) -> Duration {
    let nanos = (of.as_nanos() * u128::from(of64)) >> 64;
    Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
}

/// Scatters a number over all 64 bits (splitmix64's finisher, Steele, Lea and Flood 2014).
fn mix(mut z: u64) -> u64 {
    z = z.wrapping_add(GOLDEN);
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How many of a thousand moments share the fullest 50 ms of the first `span`.
    fn fullest(moments: impl Iterator<Item = Duration>) -> usize {
        let mut buckets = std::collections::BTreeMap::<u128, usize>::new();
        for moment in moments {
            *buckets.entry(moment.as_millis() / 50).or_default() += 1;
        }
        buckets.into_values().max().unwrap()
    }

    #[test]
    fn a_thousand_first_probes_do_not_fire_together() {
        for every in [Duration::from_secs(1), Duration::from_secs(5), Duration::from_secs(3600)] {
            let fullest = fullest((0..1000).map(|index| first_offset(every, index)));
            assert!(fullest <= 55, "{fullest} of 1000 within one 50 ms of {every:?}");
            assert!((0..1000).all(|index| first_offset(every, index) < Duration::from_secs(1)));
        }
    }

    #[test]
    fn first_probes_fall_within_a_short_interval_too() {
        let every = Duration::from_millis(200);
        assert!((0..1000).all(|index| first_offset(every, index) < every));
    }

    #[test]
    fn later_rounds_stay_spread() {
        let every = Duration::from_secs(5);
        for rounds in [1, 10, 100] {
            let moment = |index| {
                let later: Duration = (0..rounds).map(|n| round(every, index, n)).sum();
                first_offset(every, index) + later
            };
            let fullest = fullest((0..1000).map(moment));
            assert!(fullest <= 70, "{fullest} of 1000 within 50 ms after {rounds} rounds");
        }
    }

    #[test]
    fn a_round_is_every_give_or_take_five_percent() {
        let every = Duration::from_secs(10);
        let rounds: Vec<Duration> = (0..10_000).map(|n| round(every, 7, n)).collect();
        assert!(rounds.iter().all(|r| (9_500..=10_500).contains(&r.as_millis())));
        let mean = rounds.iter().sum::<Duration>() / 10_000;
        assert!((9_990..=10_010).contains(&mean.as_millis()), "{mean:?}");
        assert!(rounds.iter().any(|r| r.as_millis() < 9_600));
        assert!(rounds.iter().any(|r| r.as_millis() > 10_400));
    }

    #[test]
    fn the_same_probe_asks_at_the_same_moments() {
        let every = Duration::from_secs(5);
        assert_eq!(first_offset(every, 3), first_offset(every, 3));
        assert_eq!(round(every, 3, 9), round(every, 3, 9));
        assert_eq!(round(Duration::ZERO, 3, 9), Duration::ZERO);
    }
}
