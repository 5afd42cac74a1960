//! The same seed, the same numbers (xorshift64*).

use std::time::{Duration, SystemTime};

#[derive(Debug)]
pub(crate) struct Random {
    pub(crate) seed: u64,
    state: u64,
}

impl Random {
    /// Without a seed, one from the clock.
    pub(crate) fn new(seed: Option<u64>) -> Random {
        let clock = || SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let seed = seed.unwrap_or_else(|| u64::from(clock().subsec_nanos()));
        Random { seed, state: seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1 }
    }

    fn next(&mut self) -> u64 {
        self.state ^= self.state >> 12;
        self.state ^= self.state << 25;
        self.state ^= self.state >> 27;
        self.state.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 11
    }

    pub(crate) fn index(&mut self, count: usize) -> usize {
        usize::try_from(self.next() % count as u64).expect("below a count that fits")
    }

    pub(crate) fn millis(&mut self, range: std::ops::Range<u64>) -> Duration {
        Duration::from_millis(range.start + self.next() % (range.end - range.start))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_repeats_itself_and_reaches_everything() {
        let draw = |seed| {
            let mut random = Random::new(Some(seed));
            (0..100).map(|_| random.index(5)).collect::<Vec<_>>()
        };
        assert_eq!(draw(7), draw(7));
        assert_ne!(draw(7), draw(8));
        assert!((0..5).all(|fault| draw(7).contains(&fault)));
        let pause = Random::new(Some(1)).millis(500..4_000).as_millis();
        assert!((500..4000).contains(&pause));
    }
}
