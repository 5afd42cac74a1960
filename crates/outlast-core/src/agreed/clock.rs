//! When a lease is over: for its holder, who must stop in time, and for everyone else, who must not be early.
//!
//! No moment crosses from one machine to another, only durations. The holder counts from when it *sent* what was granted,
//! everyone else from when they *applied* it, which is later; each side counts with the margin that is against itself.

use alloc::collections::BTreeMap;
use alloc::string::String;
use alloc::vec::Vec;
use core::time::Duration;

use super::lease::LeaseCommand;
use super::notice::NoticeCommand;
use super::session::SessionCommand;
use super::{Agreed, Command};
use crate::time::{Instant, Timestamp};

/// ρ: how much faster or slower than true time a node's clock may run, in millionths. Time daemons slew by up to 500.
pub const CLOCK_RATE_ERROR: u32 = 1000;

/// δ: how long an action may run that was begun just before the lease ended.
pub const ACTION_LIMIT: Duration = Duration::from_millis(100);

/// s: how long it takes to stop what the lease allows, or to cut it off.
pub const STOP_LIMIT: Duration = Duration::from_millis(200);

/// How far two readings of the two clocks, one after the other, may lie apart although nothing is wrong. The holder gives
/// up this much of its lease, because it would not notice so short a sleep of its machine.
pub const READING_ERROR: Duration = Duration::from_millis(10);

pub(crate) fn rate_error(of: Duration) -> Duration {
    let share = of.as_nanos().saturating_mul(u128::from(CLOCK_RATE_ERROR)).div_ceil(1_000_000);
    Duration::from_nanos(u64::try_from(share).unwrap_or(u64::MAX))
}

/// Something that ends after a while unless it is renewed.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Timed {
    Lease { role: String, epoch: u64 },
    Session { id: u64 },
    Notice { id: u64 },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Seen {
    renewed_index: u64,
    ttl: Duration,
    at: Instant,
}

/// Remembers by a watcher's own clock when it saw each grant and renewal, and says what is over.
///
/// Whoever leads calls [`observe`](LeaseClock::observe) after applying entries and proposes what
/// [`over`](LeaseClock::over) returns; a renewal that is under way meanwhile makes the proposal fail.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LeaseClock {
    seen: BTreeMap<Timed, Seen>,
}

impl LeaseClock {
    /// Notes what was granted or renewed since the last call, as of now. To look late makes the end late, never early:
    /// once every few entries or milliseconds is enough.
    pub fn observe(&mut self, now: Instant, agreed: &Agreed) {
        let mut seen = BTreeMap::new();
        for (timed, renewed_index, ttl) in agreed.timed() {
            let before = self.seen.get(&timed).copied();
            let before =
                before.filter(|seen| (seen.renewed_index, seen.ttl) == (renewed_index, ttl));
            seen.insert(timed, before.unwrap_or(Seen { renewed_index, ttl, at: now }));
        }
        self.seen = seen;
    }

    /// This node leads from now on: everything that lives counts as renewed now, because nobody could renew while there
    /// was no leader.
    pub fn took_over(&mut self, now: Instant, agreed: &Agreed) {
        self.seen.clear();
        self.observe(now, agreed);
    }

    /// What to propose: the end of everything that was not renewed in time.
    pub fn over(&self, now: Instant) -> Vec<Command> {
        let over = self.seen.iter().filter(|(_, seen)| end(seen) <= now);
        over.map(|(timed, seen)| expiry(timed, seen.renewed_index)).collect()
    }

    /// When the first of them is over.
    pub fn deadline(&self) -> Option<Instant> {
        self.seen.values().map(end).min()
    }
}

/// t_apply + D(1 + ρ).
fn end(seen: &Seen) -> Instant {
    seen.at + seen.ttl + rate_error(seen.ttl)
}

fn expiry(timed: &Timed, renewed_index: u64) -> Command {
    match timed {
        Timed::Lease { role, epoch } => {
            let (role, epoch) = (role.clone(), *epoch);
            Command::Lease(LeaseCommand::Expire { role, epoch, renewed_index })
        }
        Timed::Session { id } => {
            Command::Session(SessionCommand::Expire { id: *id, renewed_index })
        }
        Timed::Notice { id } => {
            Command::Notice(NoticeCommand::Lift { id: *id, who: String::from("its time") })
        }
    }
}

/// Both clocks of a node, read one right after the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Moment {
    /// Best a clock that goes on while the machine is suspended.
    pub now: Instant,
    pub wall: Timestamp,
}

/// Why a holder's right has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    TimeIsUp,
    /// The wall clock went another way: the machine slept, or someone set a clock.
    ClocksDisagree,
}

/// A lease as its holder sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Held {
    epoch: u64,
    ttl: Duration,
    sent: Moment,
    ended: Option<Ended>,
}

impl Held {
    /// A lease that was granted; counted from when it was asked for.
    pub fn granted(epoch: u64, ttl: Duration, sent: Moment) -> Held {
        Held { epoch, ttl, sent, ended: None }
    }

    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// A renewal was answered; `sent` is when it was asked for and `at` when the answer came. A right that has ended
    /// does not come back: then the role has to be granted anew.
    pub fn renewed(&mut self, sent: Moment, at: Moment) {
        let lives = self.check(at).is_ok();
        if lives && self.sent.now < sent.now && disagreement(sent, at) <= self.tolerated() {
            self.sent = sent;
        }
    }

    /// t_send + D(1 − ρ) − δ − s, and a little less for what the two clocks cannot show.
    pub fn ends(&self) -> Instant {
        let margin = rate_error(self.ttl) + ACTION_LIMIT + STOP_LIMIT + READING_ERROR;
        self.sent.now + self.ttl.saturating_sub(margin)
    }

    /// The epoch to act under, as long as there is the right to. What is begun now must end within [`ACTION_LIMIT`].
    pub fn check(&mut self, at: Moment) -> Result<u64, Ended> {
        if self.ended.is_none() {
            if at.now >= self.ends() {
                self.ended = Some(Ended::TimeIsUp);
            } else if disagreement(self.sent, at) > self.tolerated() {
                self.ended = Some(Ended::ClocksDisagree);
            }
        }
        self.ended.map_or(Ok(self.epoch), Err)
    }

    fn tolerated(&self) -> Duration {
        rate_error(self.ttl) + READING_ERROR
    }
}

/// By how much the two clocks went apart from one moment to the other.
fn disagreement(from: Moment, to: Moment) -> Duration {
    let steady = to.now.since(from.now);
    let wall = to.wall.0.saturating_sub(from.wall.0);
    let went = Duration::from_millis(wall.unsigned_abs());
    if wall < 0 { steady.saturating_add(went) } else { steady.abs_diff(went) }
}

#[cfg(test)]
mod tests;
