//! One node's side: it asks, and does what it may.

use core::time::Duration;

use super::{GRANT, GUARD_ERROR, Grant, Said};
use crate::agreed::rate_error;
#[cfg(test)]
use crate::sim::{Bug, instead};
use crate::time::Instant;

/// What the hands of a node have to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// Answer on the addresses until then, and let everybody know.
    Take { until: Instant },
    /// Go on until then; `tell`: and say again that they are here.
    Keep { until: Instant, tell: bool },
    /// Answer on them no more.
    Drop,
}

/// A unit as one of its members sees it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Hold {
    /// The epoch under which this node answers on it, and until when.
    held: Option<(u64, Instant)>,
    /// The highest epoch that was obeyed.
    obeyed: u64,
    /// The last question in which this node said that it holds nothing. What was granted before that is void.
    empty: u64,
}

impl Hold {
    /// The epoch under which this node answers on the unit.
    pub fn epoch(&self) -> Option<u64> {
        self.held.map(|(epoch, _)| epoch)
    }

    /// When this node ceases to, unless more is granted.
    pub fn until(&self) -> Option<Instant> {
        self.held.map(|(_, until)| until)
    }

    /// What to say with this question. Every order so far must have been carried out.
    pub fn said(&mut self, number: u64, able: bool, priority: i32) -> Said {
        if self.held.is_none() {
            self.empty = number;
        }
        Said { able, priority, holds: self.epoch(), alone: false }
    }

    /// What follows from the answer to a question that was asked at `sent`.
    pub fn answered(
        &mut self,
        number: u64,
        sent: Instant,
        now: Instant,
        grant: Grant,
    ) -> Option<Order> {
        match grant {
            Grant::Hold { epoch, lasts, tell } => {
                let until = ends(sent, lasts);
                #[cfg(test)]
                let until = instead(Bug::CountsFromAnswer, until, ends(now, lasts));
                let void = number < self.empty;
                #[cfg(test)]
                let void = instead(Bug::TakesWhatItGaveBack, void, false);
                if void || epoch < self.obeyed || until <= now {
                    return None;
                }
                self.obeyed = epoch;
                match self.held {
                    Some((held, before)) if held == epoch => {
                        let until = until.max(before);
                        self.held = Some((epoch, until));
                        Some(Order::Keep { until, tell })
                    }
                    Some(_) | None => {
                        self.held = Some((epoch, until));
                        Some(Order::Take { until })
                    }
                }
            }
            Grant::LetGo { epoch } => {
                let (held, _) = self.held?;
                if epoch < held {
                    return None;
                }
                self.let_go()
            }
        }
    }

    /// Goes on, or begins, although nobody has granted it: there is nobody to grant it, see [`crate::heartbeat`].
    pub fn alone(&mut self, now: Instant, epoch: u64) -> Order {
        let until = ends(now, GRANT);
        match self.held {
            Some((held, before)) => {
                let until = until.max(before);
                self.held = Some((held, until));
                Order::Keep { until, tell: false }
            }
            None => {
                self.obeyed = self.obeyed.max(epoch);
                self.held = Some((self.obeyed, until));
                Order::Take { until }
            }
        }
    }

    /// Ceases what is over.
    pub fn pass(&mut self, now: Instant) -> Option<Order> {
        let (_, until) = self.held?;
        if now < until { None } else { self.let_go() }
    }

    /// Ceases at once: this node is not able any more, or ends.
    pub fn let_go(&mut self) -> Option<Order> {
        self.held.take().map(|_| Order::Drop)
    }
}

/// t_asked + D(1 − ρ), less what the kernel may be late by.
fn ends(asked: Instant, lasts: Duration) -> Instant {
    asked + lasts.saturating_sub(rate_error(lasts) + GUARD_ERROR)
}
