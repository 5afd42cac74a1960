//! A node's clock: it runs on, but not at everybody's rate, and it began somewhere else.

use core::time::Duration;
use outlast_core::time::Instant;

/// True time of the simulation in nanoseconds.
pub(crate) type Nanos = u64;

const MILLION: i128 = 1_000_000;

#[derive(Clone, Copy, Debug)]
pub(crate) struct Clock {
    pub(crate) offset: Nanos,
    /// Millionths by which it is too fast.
    pub(crate) rate_ppm: i64,
}

impl Clock {
    pub(crate) fn local(self, at: Nanos) -> Instant {
        let run = i128::from(at) * (MILLION + i128::from(self.rate_ppm)) / MILLION;
        let nanos = u64::try_from(run).expect("rates are near one") + self.offset;
        Instant::from_start(Duration::from_nanos(nanos))
    }

    /// When the clock will show `local`, rounded up: never before.
    pub(crate) fn when(self, local: Instant) -> Nanos {
        let nanos = u64::try_from(local.since_start().as_nanos()).unwrap_or(u64::MAX);
        let run = i128::from(nanos.saturating_sub(self.offset));
        let at = run * MILLION / (MILLION + i128::from(self.rate_ppm)) + 1;
        u64::try_from(at).unwrap_or(u64::MAX)
    }
}
