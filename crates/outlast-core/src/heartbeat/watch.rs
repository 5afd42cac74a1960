//! Whether the other node lives, by what is heard of it.

use core::time::Duration;

use super::{Pace, QUESTIONS, UNHEARD};
#[cfg(test)]
use crate::sim::{Bug, instead};
use crate::time::Instant;

/// How the other node is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Peer {
    /// It was never heard, and it is too early to say that it is not there. Nothing is decided.
    #[default]
    Unknown,
    Up,
    /// Heartbeats are missing; maybe it is being asked.
    Suspect,
    /// It was silent for the whole timeout, and did not answer three questions.
    Down,
}

/// What is known of the other node at one pace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Watch {
    pace: Pace,
    heard: Option<Instant>,
    /// From when on its silence counts.
    from: Instant,
    /// Questions that were asked since it fell silent, and when the last one was.
    asked: Option<(u8, Instant)>,
    gone: bool,
    /// When this was looked at last: who was not awake cannot say that another one was silent.
    looked: Instant,
}

impl Watch {
    /// This node has started.
    pub fn new(now: Instant, pace: Pace) -> Watch {
        Watch { pace, heard: None, from: now, asked: None, gone: false, looked: now }
    }

    /// Something of it has come that it said not long ago.
    pub fn hear(&mut self, now: Instant) {
        (self.heard, self.from, self.asked, self.gone) = (Some(now), now, None, false);
    }

    /// Whether it is time for another question, its number. To be called at [`Watch::deadline`], and after everything
    /// that has arrived was read.
    pub fn look(&mut self, now: Instant) -> Option<u8> {
        let asleep = self.pace.timeout / 2 < now.since(self.looked);
        #[cfg(test)]
        let asleep = instead(Bug::OwnSleepNotNoticed, asleep, false);
        self.looked = now;
        if asleep {
            (self.from, self.asked, self.gone) = (now, None, false);
        }
        if self.gone || now.since(self.from) < self.patience() {
            return None;
        }
        let questions = QUESTIONS;
        #[cfg(test)]
        let questions = instead(Bug::NeverVerifies, questions, 0);
        let (asked, due) = match self.asked {
            None => (0, true),
            Some((asked, at)) => (asked, self.pace.question_every() <= now.since(at)),
        };
        if !due {
            return None;
        }
        if asked >= questions {
            self.gone = true;
            return None;
        }
        self.asked = Some((asked + 1, now));
        Some(asked + 1)
    }

    pub fn peer(&self, now: Instant) -> Peer {
        match self.heard {
            _ if self.gone => Peer::Down,
            None => Peer::Unknown,
            Some(heard) if now.since(heard) <= self.pace.every * 3 / 2 => Peer::Up,
            Some(_) => Peer::Suspect,
        }
    }

    /// For how long it has been silent.
    pub fn silent_for(&self, now: Instant) -> Duration {
        now.since(self.heard.unwrap_or(self.from))
    }

    pub fn was_heard(&self) -> bool {
        self.heard.is_some()
    }

    /// How long the questions have taken so far.
    pub fn verified_in(&self, now: Instant) -> Duration {
        let since = self.from + self.patience();
        now.since(since)
    }

    /// When to look again if nothing is heard.
    pub fn deadline(&self, now: Instant) -> Instant {
        let next = match self.asked {
            _ if self.gone => now + self.pace.every,
            None => self.from + self.patience(),
            Some((_, at)) => at + self.pace.question_every(),
        };
        // It has to be awake to see.
        next.min(self.looked + self.pace.every.min(self.pace.timeout / 4))
    }

    fn patience(&self) -> Duration {
        let patience = match self.heard {
            Some(_) => self.pace.timeout,
            None => UNHEARD.max(self.pace.timeout),
        };
        #[cfg(test)]
        let patience = instead(Bug::UnknownIsGone, patience, self.pace.timeout);
        patience
    }
}
