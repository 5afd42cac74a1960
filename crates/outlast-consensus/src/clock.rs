//! The clock that leases are counted on: it goes on while the machine is suspended.

use std::time::Duration;

use outlast_core::time::Instant;
use rustix::time::{ClockId, clock_gettime};

/// Time since the machine started, suspension included; `std::time::Instant` leaves that out on Linux.
pub fn boottime() -> Instant {
    let now = clock_gettime(ClockId::Boottime);
    let seconds = u64::try_from(now.tv_sec).unwrap_or_default();
    let nanos = u32::try_from(now.tv_nsec).unwrap_or_default();
    Instant::from_start(Duration::new(seconds, nanos))
}
