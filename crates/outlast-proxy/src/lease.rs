//! Until when this node may vouch for what it knows.
//!
//! Which side of a pair serves is agreed on among nodes; a node may route to it only while it can vouch for what it knows. The
//! agent says until when, on the clock that goes on while the machine is suspended, and this process holds to it by itself:
//! every decision asks here, and the guard ends what is under way. Services that need nobody's word never ask.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed, Ordering::SeqCst};
use std::time::Duration;

use outlast_core::time::Instant;
use rustix::time::{
    ClockId, Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, clock_gettime,
    timerfd_create, timerfd_settime,
};

use crate::fence::{Fence, Pass};
use crate::stats::LeaseStats;

/// What all workers ask, and what the guard watches over.
#[derive(Debug)]
pub(crate) struct Lease {
    /// Nanoseconds of the boottime clock; 0: nobody has vouched for anything.
    until: AtomicU64,
    /// Closed while nobody vouches. What is under way has a pass, so that it ends even if a new lease comes before
    /// anybody has noticed the end of the old one.
    fence: Fence,
    /// Held by whoever changes the two above.
    change: Mutex<()>,
    alarm: Alarm,
    ended: AtomicU64,
}

/// What a word has changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Vouched {
    /// The lease before had ended and nobody had noticed: what began under it is still to be cut.
    pub(crate) overslept: bool,
    /// There was no lease before.
    pub(crate) begins: bool,
}

impl Lease {
    /// One that nobody has vouched for yet.
    pub(crate) fn none() -> io::Result<Lease> {
        let fence = Fence::default();
        fence.close();
        Ok(Lease {
            until: AtomicU64::new(0),
            fence,
            change: Mutex::new(()),
            alarm: Alarm::new()?,
            ended: AtomicU64::new(0),
        })
    }

    /// Whether work may begin.
    pub(crate) fn lasts(&self) -> bool {
        !self.fence.closed() && boottime() < self.until.load(SeqCst)
    }

    /// What work is let in with.
    pub(crate) fn pass(&self) -> Pass {
        self.fence.pass()
    }

    /// Whether work with this pass has to end: by the clock as well, because a process that was frozen wakes up before
    /// its guard does.
    pub(crate) fn stops(&self, pass: Pass) -> bool {
        self.fence.stops(pass) || self.until.load(SeqCst) <= boottime()
    }

    /// Makes the lease last until then, be it longer or shorter than before.
    pub(crate) fn vouch(&self, until: Instant) -> Vouched {
        let until = nanoseconds(until.since_start());
        let _held = self.change.lock().expect("no panic while held");
        let now = boottime();
        let overslept = self.close_if_over(now);
        self.until.store(until, SeqCst);
        let begins = now < until && self.fence.closed();
        if begins {
            self.fence.open();
        }
        self.alarm.ring_at(until);
        Vouched { overslept, begins }
    }

    /// Lets nothing more go on if the lease is over. True: it was this call that ended it.
    pub(crate) fn end_if_over(&self) -> bool {
        let _held = self.change.lock().expect("no panic while held");
        self.close_if_over(boottime())
    }

    fn close_if_over(&self, now: u64) -> bool {
        let ends = self.until.load(SeqCst) <= now && self.fence.close();
        if ends {
            self.ended.fetch_add(1, Relaxed);
        }
        ends
    }

    /// Waits until the lease may be over, or somebody rings.
    pub(crate) fn wait(&self) {
        self.alarm.wait();
    }

    /// Wakes the guard.
    pub(crate) fn ring(&self) {
        self.alarm.ring_at(0);
    }

    pub(crate) fn stats(&self) -> LeaseStats {
        let left = self.until.load(SeqCst).saturating_sub(boottime());
        LeaseStats {
            left: self.lasts().then(|| Duration::from_nanos(left)),
            ended: self.ended.load(Relaxed),
        }
    }
}

/// Wakes one thread at a moment of the boottime clock; at once if the machine was suspended over it.
#[derive(Debug)]
struct Alarm(OwnedFd);

impl Alarm {
    fn new() -> io::Result<Alarm> {
        Ok(Alarm(timerfd_create(TimerfdClockId::Boottime, TimerfdFlags::CLOEXEC)?))
    }

    fn ring_at(&self, nanoseconds: u64) {
        // Zero would mean never.
        let at = Duration::from_nanos(nanoseconds.max(1));
        let tv_sec = i64::try_from(at.as_secs()).expect("nanoseconds in 64 bits are few seconds");
        let it_value = Timespec { tv_sec, tv_nsec: i64::from(at.subsec_nanos()) };
        let it_interval = Timespec { tv_sec: 0, tv_nsec: 0 };
        let timer = Itimerspec { it_interval, it_value };
        timerfd_settime(&self.0, TimerfdTimerFlags::ABSTIME, &timer)
            .expect("an open timer takes every moment");
    }

    fn wait(&self) {
        while rustix::io::read(&self.0, &mut [0; 8]) == Err(rustix::io::Errno::INTR) {}
    }
}

/// Nanoseconds since the machine started, suspension included.
fn boottime() -> u64 {
    let now = clock_gettime(ClockId::Boottime);
    let seconds = u64::try_from(now.tv_sec).unwrap_or_default();
    let nanos = u32::try_from(now.tv_nsec).unwrap_or_default();
    nanoseconds(Duration::new(seconds, nanos))
}

fn nanoseconds(of: Duration) -> u64 {
    u64::try_from(of.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: Duration = Duration::from_secs(3600);

    fn now() -> Instant {
        Instant::from_start(Duration::from_nanos(boottime()))
    }

    #[test]
    fn nothing_begins_before_somebody_vouches() {
        let lease = Lease::none().unwrap();
        assert!(!lease.lasts() && lease.stops(lease.pass()));
        assert!(!lease.end_if_over(), "what never began does not end");
        assert_eq!(lease.stats(), LeaseStats::default());
    }

    #[test]
    fn a_lease_lasts_until_its_end_however_often_it_is_moved() {
        let lease = Lease::none().unwrap();
        let vouched = |overslept, begins| Vouched { overslept, begins };
        assert_eq!(lease.vouch(now() + LONG), vouched(false, true));
        let pass = lease.pass();
        assert_eq!(lease.vouch(now() + LONG / 2), vouched(false, false));
        assert!(lease.lasts() && !lease.stops(pass) && !lease.end_if_over());
        assert!(lease.stats().left.is_some_and(|left| left <= LONG / 2));
        // Given up at once.
        assert_eq!(lease.vouch(Instant::default()), vouched(false, false));
        assert!(!lease.lasts() && lease.stops(pass));
        assert!(lease.end_if_over() && !lease.end_if_over());
        assert_eq!(lease.stats().ended, 1);
    }

    #[test]
    fn an_end_that_nobody_noticed_is_made_good_for() {
        let lease = Lease::none().unwrap();
        lease.vouch(now() + LONG);
        let old = lease.pass();
        lease.vouch(Instant::default());
        // The guard has not looked; the next lease comes first.
        assert_eq!(lease.vouch(now() + LONG), Vouched { overslept: true, begins: true });
        assert!(lease.lasts() && lease.stops(old) && !lease.stops(lease.pass()));
        assert!(!lease.end_if_over());
    }

    #[test]
    fn the_alarm_rings_at_its_moment_and_at_once_for_one_that_has_passed() {
        let lease = Lease::none().unwrap();
        let end = now() + Duration::from_millis(20);
        lease.vouch(end);
        lease.wait();
        assert!(end <= now() && !lease.lasts());
        lease.ring();
        lease.wait();
        lease.vouch(Instant::default());
        lease.wait();
        // A moment that no clock reaches is a moment all the same.
        lease.vouch(Instant::from_start(Duration::MAX));
        assert!(lease.lasts());
    }
}
