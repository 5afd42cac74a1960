//! Who leads: a key that its holder renews, and that another may take when it was not renewed for too long.
//!
//! Nothing here trusts a lease of etcd's, which a leader of etcd renews without asking a majority, and which one that was
//! replaced may still revoke (etcd #15247). A renewal is a transaction that a majority has agreed on; a takeover is one that
//! names the renewal that was judged, and fails if another came first. The holder counts from when it *sent* a renewal,
//! everyone else from when they *saw* it, which is later; each side counts with the margin that is against itself.

use std::time::Duration;

use outlast_core::agreed::{ACTION_LIMIT, CLOCK_RATE_ERROR};
use outlast_core::time::Instant;

use crate::form::Reign;

/// How long a reign lasts that is not renewed.
pub(crate) const LEASE: Duration = Duration::from_millis(1500);

/// How often its holder renews it.
pub(crate) const RENEW_EVERY: Duration = Duration::from_millis(400);

/// A pause in what etcd answers after which everything counts as seen anew: the holder could not renew either.
const PAUSE: Duration = LEASE;

/// How much longer or shorter a lease may be by another clock.
const RATE_ERROR: Duration =
    LEASE.saturating_mul(CLOCK_RATE_ERROR).checked_div(1_000_000).expect("it is not zero");

/// What this node knows of the chair.
#[derive(Clone, Debug, Default)]
pub(crate) struct Chair {
    pub(crate) reign: Reign,
    /// Of etcd, at which it was written.
    revision: u64,
    /// When this node saw it first.
    seen: Instant,
    /// The term that this process has taken, and when the renewal was sent that is known to have been agreed on.
    mine: Option<(u64, Instant)>,
    /// What was sent last and when, while nobody knows what became of it.
    doubt: Option<(Reign, Instant)>,
    /// When this node asked for a change last.
    asked: Option<Instant>,
    /// Since when etcd has answered without a pause, and when it answered last.
    steady: Instant,
    answered: Instant,
}

/// A change of the chair that is to be tried: it takes effect only if nothing has changed it since `revision`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Wish {
    pub(crate) reign: Reign,
    pub(crate) revision: u64,
}

impl Chair {
    /// A majority has answered something.
    pub(crate) fn heard(&mut self, now: Instant) {
        if PAUSE < now.since(self.answered) {
            self.steady = now;
        }
        self.answered = now;
    }

    /// The chair stood so at this revision of etcd.
    pub(crate) fn observe(&mut self, now: Instant, reign: Reign, revision: u64) {
        if revision <= self.revision {
            return;
        }
        if let Some((sent, at)) = self.doubt.take_if(|(sent, _)| *sent == reign) {
            // What nobody answered for was agreed on after all.
            self.mine = (sent.holder != 0).then_some((sent.term, at));
        } else if self.mine.is_some_and(|(term, _)| term != reign.term || reign.holder == 0) {
            self.mine = None;
        }
        self.doubt = None;
        (self.reign, self.revision, self.seen) = (reign, revision, now);
    }

    /// What to try now. `own`: this node's id, if it may lead.
    pub(crate) fn wish(&mut self, now: Instant, own: Option<u64>) -> Option<Wish> {
        if self.revision == 0 || self.asked.is_some_and(|asked| now < asked + RENEW_EVERY) {
            return None;
        }
        let holds = self.mine.is_some();
        match own {
            None => self.give_up(0),
            // An id may be replaced by another one.
            Some(own) if holds => Some(self.wish_for(Reign { holder: own, ..self.reign })),
            Some(own) if self.vacant_for(now, own) => {
                let term = self.reign.term + 1;
                Some(self.wish_for(Reign { term, holder: own, beat: 0, next: 0 }))
            }
            Some(_) => None,
        }
    }

    fn wish_for(&self, reign: Reign) -> Wish {
        Wish { reign: Reign { beat: reign.beat + 1, ..reign }, revision: self.revision }
    }

    /// To give the chair up, for whoever is first, or for one of the others.
    pub(crate) fn give_up(&mut self, next: u64) -> Option<Wish> {
        // From now on, whatever becomes of it.
        self.mine.take()?;
        Some(self.wish_for(Reign { holder: 0, next, ..self.reign }))
    }

    fn vacant_for(&self, now: Instant, own: u64) -> bool {
        let Reign { holder, next, .. } = self.reign;
        // Who held it before it died and came back has nothing to wait for.
        holder == own || holder == 0 && (next == 0 || next == own) || self.over(now)
    }

    /// Whether nobody has renewed it for too long, although they could have.
    fn over(&self, now: Instant) -> bool {
        self.seen.max(self.steady) + LEASE + RATE_ERROR <= now
    }

    /// This is being tried.
    pub(crate) fn sent(&mut self, now: Instant, reign: Reign) {
        self.asked = Some(now);
        // The same again counts from the first time.
        if self.doubt.is_none_or(|(before, _)| before != reign) {
            self.doubt = Some((reign, now));
        }
    }

    /// It was agreed on, at this revision.
    pub(crate) fn agreed(&mut self, now: Instant, reign: Reign, revision: u64) {
        if self.revision < revision {
            let sent = self.doubt.take().filter(|(sent, _)| *sent == reign).map(|(_, at)| at);
            self.mine = sent.filter(|_| reign.holder != 0).map(|sent| (reign.term, sent));
            (self.reign, self.revision, self.seen) = (reign, revision, now);
        }
    }

    /// Until when this node may do what only the leader does.
    pub(crate) fn acts_until(&self) -> Option<Instant> {
        self.mine.map(|(_, sent)| sent + (LEASE - RATE_ERROR - ACTION_LIMIT))
    }

    /// Who leads, as far as this node knows.
    pub(crate) fn leader(&self, now: Instant) -> Option<u64> {
        match self.acts_until() {
            Some(until) => (now < until).then_some(self.reign.holder),
            None => Some(self.reign.holder).filter(|&holder| holder != 0 && !self.over(now)),
        }
    }

    /// When there may be something to try; `None`: only once something else has happened.
    pub(crate) fn deadline(&self, now: Instant, own: Option<u64>) -> Option<Instant> {
        let (holds, next) =
            (self.mine.is_some(), self.asked.map_or(now, |asked| asked + RENEW_EVERY));
        let own = own.filter(|_| self.revision != 0);
        match own {
            None => holds.then_some(next),
            Some(own) if holds || self.vacant_for(now, own) => Some(next),
            Some(_) => Some(next.max(self.seen.max(self.steady) + LEASE + RATE_ERROR)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(millis: u64) -> Instant {
        Instant::from_start(Duration::from_millis(10_000 + millis))
    }

    fn reign(term: u64, holder: u64, beat: u64) -> Reign {
        Reign { term, holder, beat, next: 0 }
    }

    /// A chair that etcd has shown at 0 ms and has been answering for since.
    fn shown(reign: Reign, until: u64) -> Chair {
        let mut chair = Chair::default();
        for millis in (0..=until).step_by(400) {
            chair.heard(at(millis));
        }
        chair.observe(at(0), reign, 5);
        chair
    }

    /// One that node 1 has taken at 0 ms, which etcd said at 10 ms.
    fn taken() -> Chair {
        let mut chair = shown(reign(3, 0, 7), 0);
        let wish = chair.wish(at(0), Some(1)).unwrap();
        assert_eq!(wish, Wish { reign: reign(4, 1, 1), revision: 5 });
        chair.sent(at(0), wish.reign);
        chair.agreed(at(10), wish.reign, 6);
        chair
    }

    #[test]
    fn a_holder_acts_as_long_as_it_renews_counted_from_when_it_sent() {
        let mut chair = taken();
        assert_eq!(chair.acts_until(), Some(at(1400) - RATE_ERROR));
        assert_eq!(chair.leader(at(1300)), Some(1));
        assert_eq!(chair.leader(at(1400)), None);
        assert_eq!(chair.wish(at(399), Some(1)), None);
        let wish = chair.wish(at(400), Some(1)).unwrap();
        assert_eq!(wish, Wish { reign: reign(4, 1, 2), revision: 6 });
        chair.sent(at(400), wish.reign);
        // Nothing is won before the answer.
        assert_eq!(chair.acts_until(), Some(at(1400) - RATE_ERROR));
        chair.agreed(at(700), wish.reign, 9);
        assert_eq!(chair.acts_until(), Some(at(1800) - RATE_ERROR));
    }

    #[test]
    fn a_renewal_without_an_answer_counts_from_when_it_was_sent_first() {
        let mut chair = taken();
        let wish = chair.wish(at(400), Some(1)).unwrap();
        chair.sent(at(400), wish.reign);
        let again = chair.wish(at(900), Some(1)).unwrap();
        assert_eq!(again, wish);
        chair.sent(at(900), again.reign);
        // The first one had come through, so the second one failed and showed this.
        chair.observe(at(950), wish.reign, 8);
        assert_eq!(chair.acts_until(), Some(at(1800) - RATE_ERROR));
    }

    #[test]
    fn others_take_over_only_when_the_holder_cannot_believe_any_more_that_it_holds() {
        let holder = taken();
        let mut other = shown(reign(3, 0, 7), 1600);
        // As early as it can be seen.
        other.observe(at(0), reign(4, 1, 1), 6);
        let end = holder.acts_until().unwrap();
        assert_eq!(other.wish(end, Some(2)), None);
        assert_eq!(other.leader(end), Some(1));
        assert_eq!(other.wish(at(1500), Some(2)), None);
        let wish = other.wish(at(1502), Some(2)).unwrap();
        assert_eq!(wish, Wish { reign: reign(5, 2, 1), revision: 6 });
        assert_eq!(other.leader(at(1502)), None);
        assert_eq!(other.wish(at(1502), None), None);
        // A renewal that is seen meanwhile.
        other.observe(at(1502), reign(4, 1, 2), 7);
        assert_eq!(other.wish(at(1503), Some(2)), None);
    }

    #[test]
    fn while_etcd_is_silent_nobody_is_late() {
        let mut other = shown(reign(4, 1, 1), 400);
        assert_eq!(other.leader(at(1400)), Some(1));
        // It answers again after five seconds: the holder gets its time anew.
        other.heard(at(5400));
        assert_eq!(other.wish(at(5400), Some(2)), None);
        assert_eq!(other.leader(at(5400)), Some(1));
        for millis in (5800..6900).step_by(400) {
            other.heard(at(millis));
        }
        assert!(other.wish(at(6902), Some(2)).is_some());
    }

    #[test]
    fn who_was_taken_over_knows_as_soon_as_it_sees() {
        let mut chair = taken();
        chair.observe(at(500), reign(5, 2, 1), 9);
        assert_eq!(chair.acts_until(), None);
        assert_eq!(chair.leader(at(500)), Some(2));
        // Old news changes nothing.
        chair.observe(at(600), reign(4, 1, 1), 6);
        assert_eq!(chair.leader(at(600)), Some(2));
        chair.agreed(at(600), reign(4, 1, 2), 7);
        assert_eq!(chair.acts_until(), None);
    }

    #[test]
    fn a_chair_that_is_given_up_is_taken_at_once_by_who_is_named() {
        let mut chair = taken();
        let wish = chair.give_up(2).unwrap();
        assert_eq!(chair.acts_until(), None, "whatever becomes of it");
        assert_eq!(wish.reign, Reign { term: 4, holder: 0, beat: 2, next: 2 });
        let mut named = shown(wish.reign, 400);
        assert!(named.wish(at(1), Some(2)).is_some());
        assert_eq!(named.wish(at(1), Some(3)), None);
        assert_eq!(named.leader(at(1)), None);
        // If that one does not come, anybody may.
        named.heard(at(1500));
        assert!(named.wish(at(1502), Some(3)).is_some());
    }

    #[test]
    fn nobody_looks_at_the_clock_for_nothing() {
        let mut chair = taken();
        assert_eq!(chair.deadline(at(10), Some(1)), Some(at(400)));
        assert_eq!(chair.deadline(at(10), None), Some(at(400)), "to give it up");
        let other = shown(reign(4, 1, 1), 1600);
        assert_eq!(other.deadline(at(10), Some(2)), Some(at(1500) + RATE_ERROR));
        assert_eq!(other.deadline(at(1700), Some(2)), Some(at(1700)));
        assert_eq!(other.deadline(at(1700), None), None);
        let wish = chair.give_up(2).unwrap();
        let third = shown(wish.reign, 0);
        assert_eq!(third.deadline(at(10), Some(3)), Some(at(1500) + RATE_ERROR));
        assert_eq!(Chair::default().deadline(at(0), Some(3)), None);
    }

    #[test]
    fn who_may_not_lead_any_more_gives_the_chair_up_and_who_came_back_takes_it_anew() {
        let mut chair = taken();
        let wish = chair.wish(at(400), None).unwrap();
        assert_eq!(wish.reign.holder, 0);
        assert_eq!(chair.acts_until(), None, "another may lead before there is an answer");
        let mut back = shown(reign(4, 1, 9), 0);
        assert_eq!(back.acts_until(), None);
        assert_eq!(back.wish(at(1), Some(1)).unwrap().reign, reign(5, 1, 1));
    }
}
