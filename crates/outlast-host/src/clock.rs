//! The two clocks of this machine, as the core wants them.

use std::time::SystemTime;

use outlast_core::agent::Now;
use outlast_core::time::{Instant, Timestamp};

/// A monotonic clock that starts at zero when it is made, and the wall clock beside it.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    start: tokio::time::Instant,
}

impl Clock {
    pub fn start() -> Clock {
        Clock { start: tokio::time::Instant::now() }
    }

    /// Now, on both clocks.
    pub fn now(&self) -> Now {
        Now { instant: Instant::from_start(self.start.elapsed()), wall: wall() }
    }

    /// The same moment as a timer wants it.
    pub fn timer(&self, at: Instant) -> tokio::time::Instant {
        self.start + at.since_start()
    }
}

/// The wall clock.
pub fn wall() -> Timestamp {
    let since = |later: SystemTime, earlier| later.duration_since(earlier).ok();
    let millis =
        |duration: std::time::Duration| i64::try_from(duration.as_millis()).unwrap_or(i64::MAX);
    let now = SystemTime::now();
    match since(now, SystemTime::UNIX_EPOCH) {
        Some(after) => Timestamp(millis(after)),
        None => Timestamp(since(SystemTime::UNIX_EPOCH, now).map_or(0, |before| -millis(before))),
    }
}
