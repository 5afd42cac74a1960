//! The clock that leases are counted on.

use std::time::Duration;

use outlast_core::time::Instant;
use rustix::time::{ClockId, clock_gettime};

/// Now, by `CLOCK_BOOTTIME`: the same for every process of this machine until it is started anew.
pub fn boottime() -> Instant {
    let now = clock_gettime(ClockId::Boottime);
    let seconds = u64::try_from(now.tv_sec).unwrap_or(0);
    Instant::from_start(Duration::new(seconds, u32::try_from(now.tv_nsec).unwrap_or(0)))
}
