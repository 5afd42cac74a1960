//! Waiting for what has to become so, each time with a limit.

use std::time::{Duration, Instant};

/// Until a database is made and all members are there, on a machine that does other things, too.
pub(crate) const BEGIN: Duration = Duration::from_secs(90);

/// Until another member has taken over, on a machine that does other things, too.
pub(crate) const TAKEOVER: Duration = Duration::from_secs(25);

/// Until a member that was away is a standby again, be it by a clone.
pub(crate) const REJOIN: Duration = Duration::from_secs(60);

/// Everything else.
pub(crate) const SOON: Duration = Duration::from_secs(20);

const POLL: Duration = Duration::from_millis(20);

/// Looks again and again until there is something; `Err` if there is nothing in time.
pub(crate) fn look<T>(limit: Duration, mut look: impl FnMut() -> Option<T>) -> Option<T> {
    let until = Instant::now() + limit;
    loop {
        if let Some(found) = look() {
            return Some(found);
        }
        if until <= Instant::now() {
            return None;
        }
        #[expect(clippy::disallowed_methods, reason = "between two looks at a condition")]
        std::thread::sleep(POLL);
    }
}
