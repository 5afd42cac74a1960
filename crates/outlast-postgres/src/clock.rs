//! Moments of the one clock that agent and keeper share: it counts from the machine's start and does not stop in sleep.

use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};

/// A moment of `CLOCK_BOOTTIME`: the same for every process of this machine until it is started anew.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Moment {
    /// Nanoseconds since the machine's start.
    pub nanos: u64,
}

impl Moment {
    pub fn now() -> Moment {
        let now = clock_gettime(ClockId::Boottime);
        let seconds = u64::try_from(now.tv_sec).unwrap_or(0);
        let nanos = u64::try_from(now.tv_nsec).unwrap_or(0);
        Moment { nanos: seconds.saturating_mul(1_000_000_000).saturating_add(nanos) }
    }

    /// The moment this long from now.
    pub fn after(wait: Duration) -> Moment {
        let wait = u64::try_from(wait.as_nanos()).unwrap_or(u64::MAX);
        Moment { nanos: Moment::now().nanos.saturating_add(wait) }
    }

    /// How long until then; zero if it is over.
    pub fn left(self) -> Duration {
        Duration::from_nanos(self.nanos.saturating_sub(Moment::now().nanos))
    }
}
