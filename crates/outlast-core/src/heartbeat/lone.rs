//! One unit of a pair on one of its nodes: goes on or takes over when nobody can be asked, and lets go when it has to.

use alloc::vec::Vec;
use core::time::Duration;

use super::{Basis, Claim, HESITATION, News, PATIENCE, Pace, Peer, SILENCE, Said, Watch};
use crate::address::{ASK_EVERY, Hold, Order};
#[cfg(test)]
use crate::sim::{Bug, instead};
use crate::time::Instant;

/// What is known at a moment beside what was heard.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Scene {
    /// Nothing that the unit needs is missing here.
    pub able: bool,
    /// Nothing is to be taken over: people want that nothing moves by itself, or no heartbeat can be sent.
    pub paused: bool,
    /// The last epoch of the unit that this node knows to be agreed on; 0: none.
    pub epoch: u64,
}

/// What is to be done, in this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Act {
    /// Ask the other node by every way whether it lives, and what it holds. 0: it does live.
    Ask { number: u8 },
    /// Go on: nobody grants more time, and nobody else may have it.
    GoOn(Order),
    /// Take what nobody holds. `gone`: the other node did not answer; otherwise it is there, and nothing can be agreed on.
    TakeOver { until: Instant, gone: bool, verified: Duration },
    /// Nobody holds it, and this node cannot.
    CannotServe { verified: Duration },
    /// Let go: the other node holds it too.
    Yield,
    /// Say again on the network that it is here.
    Announce,
    /// Send a heartbeat now.
    Say,
}

/// This node wants to take over although the other one is there: that one must have heard so first, and still hold nothing,
/// because it may be granted at the same moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Intent {
    /// The first datagram that has said so.
    number: Option<u64>,
    heard: bool,
}

#[derive(Clone, Debug)]
pub struct Lone {
    pace: Pace,
    /// Of the two nodes this one is preferred.
    first: bool,
    watch: Watch,
    /// What the hold rests on, if there is one.
    basis: Option<Basis>,
    /// When it was asked what whoever leads has answered last.
    answered: Instant,
    /// What the other node has said last.
    theirs: Option<Said>,
    /// Since when it is heard and does not hear us.
    deaf: Option<Instant>,
    /// What was granted to this node, which the other one has to let go first.
    waits: Option<(u64, Instant)>,
    intent: Option<Intent>,
    /// The highest epoch that is known here.
    epoch: u64,
    renewed: Instant,
    announce: bool,
    said_unable: bool,
}

impl Lone {
    pub fn new(now: Instant, pace: Pace, first: bool) -> Lone {
        Lone {
            pace,
            first,
            watch: Watch::new(now, pace),
            basis: None,
            answered: now,
            theirs: None,
            deaf: None,
            waits: None,
            intent: None,
            epoch: 0,
            renewed: now,
            announce: false,
            said_unable: false,
        }
    }

    /// The other node has said something. `said` of this unit; `None`: it means other ones.
    pub fn hear(&mut self, now: Instant, said: Option<Said>, news: &News) {
        let hears_us = news.hears_us;
        let was_silent = self.pace.timeout <= self.watch.silent_for(now);
        self.watch.hear(now);
        self.deaf = match (hears_us, self.deaf) {
            (true, _) => None,
            (false, Some(since)) if !was_silent => Some(since),
            (false, _) => Some(now),
        };
        let held = self.theirs.is_some_and(|said| said.holds());
        let holds = said.is_some_and(|said| said.holds());
        // Who was away has to learn where it is, and so has everybody who has heard the other node say that it is there.
        self.announce |= was_silent || held != holds || holds;
        if let Some(claim) = said.and_then(|said| said.claim) {
            self.epoch = self.epoch.max(claim.epoch);
        }
        self.theirs = said;
        if let Some(Intent { number: Some(number), heard }) = &mut self.intent {
            *heard |= *number <= news.echoed && said.is_some_and(|said| said.claim.is_none());
        }
    }

    /// What was said last is in the datagram of this number.
    pub fn sent(&mut self, number: u64) {
        if let Some(intent) = &mut self.intent {
            intent.number.get_or_insert(number);
        }
    }

    /// Whoever leads has answered what was asked then, whatever it said.
    pub fn answered(&mut self, asked: Instant) {
        self.answered = self.answered.max(asked);
    }

    /// Whether this node has to wait with what it was granted, because the other one says that it holds it.
    pub fn has_to_wait(&mut self, now: Instant, epoch: u64, hold: &Hold) -> bool {
        let holds = self.theirs.is_some_and(|said| said.holds() || said.intends());
        let held = match self.watch.peer(now) {
            Peer::Up => holds,
            // What it said is not of now.
            Peer::Suspect => true,
            Peer::Unknown => self.watch.silent_for(now) < HESITATION,
            Peer::Down => false,
        };
        let waits = hold.epoch().is_none() && held;
        #[cfg(test)]
        let waits = instead(Bug::TakesWhatIsHeld, waits, false);
        self.waits = waits.then_some((epoch, now));
        waits
    }

    /// What was granted is held now.
    pub fn granted(&mut self) {
        (self.basis, self.waits) = (Some(Basis::Granted), None);
    }

    /// Whether this node took it although it was not granted.
    pub fn took_over(&self) -> bool {
        self.basis == Some(Basis::TookOver)
    }

    /// Whether this node holds it although nobody grants that any more.
    pub fn is_alone(&self) -> bool {
        self.basis.is_some_and(|basis| basis != Basis::Granted)
    }

    pub fn basis(&self) -> Option<Basis> {
        self.basis
    }

    pub fn peer(&self, now: Instant) -> Peer {
        self.watch.peer(now)
    }

    pub fn silent_for(&self, now: Instant) -> Duration {
        self.watch.silent_for(now)
    }

    pub fn was_heard(&self) -> bool {
        self.watch.was_heard()
    }

    /// What the other node says of the unit, while it is heard.
    pub fn theirs(&self, now: Instant) -> Option<Said> {
        self.theirs.filter(|_| self.is_heard(now))
    }

    fn is_heard(&self, now: Instant) -> bool {
        match self.watch.peer(now) {
            Peer::Up | Peer::Suspect => true,
            Peer::Unknown | Peer::Down => false,
        }
    }

    /// What to tell the other node.
    pub fn said(&self, hold: &Hold, able: bool) -> Said {
        Said { able, claim: self.claim(hold) }
    }

    fn claim(&self, hold: &Hold) -> Option<Claim> {
        match (hold.epoch(), self.waits) {
            (Some(epoch), _) => {
                let basis = self.basis.unwrap_or(Basis::Granted);
                Some(Claim { epoch, basis, holds: true })
            }
            (None, Some((epoch, _))) => Some(Claim { epoch, basis: Basis::Granted, holds: false }),
            (None, None) => {
                let claim = Claim { epoch: self.epoch, basis: Basis::TookOver, holds: false };
                self.intent.map(|_| claim)
            }
        }
    }

    /// When to step again if nothing happens before.
    pub fn deadline(&self, now: Instant, hold: &Hold) -> Instant {
        let watch = self.watch.deadline(now);
        let renew = hold.until().map(|until| until - ASK_EVERY);
        let again = self.is_alone().then_some(self.renewed + ASK_EVERY);
        // What is due already was looked at, and waits for something else.
        let due = [renew, again].into_iter().flatten().filter(|&at| now < at);
        due.fold(watch, Instant::min)
    }

    /// To be called at [`Lone::deadline`], and after everything that has arrived was heard. What is over must have been
    /// let go of before.
    pub fn step(&mut self, now: Instant, hold: &mut Hold, scene: &Scene) -> Vec<Act> {
        let mut acts = Vec::new();
        self.epoch = self.epoch.max(scene.epoch);
        if hold.epoch().is_none() {
            self.basis = None;
        }
        // A grant that is not repeated is over.
        self.waits = self.waits.filter(|(_, at)| now.since(*at) < SILENCE);
        if let Some(number) = self.watch.look(now) {
            acts.push(Act::Ask { number });
        }
        if self.waits.is_some() {
            // It may have let go already, and not have been heard.
            acts.push(Act::Ask { number: 0 });
        }
        if hold.epoch().is_some() {
            self.intent = None;
            if self.has_to_yield(now, hold) {
                hold.let_go();
                self.basis = None;
                acts.extend([Act::Yield, Act::Say]);
                return acts;
            }
            self.go_on(now, hold, scene, &mut acts);
            if core::mem::take(&mut self.announce) {
                acts.push(Act::Announce);
            }
        } else {
            self.announce = false;
            self.take_over(now, hold, scene, &mut acts);
        }
        acts
    }

    /// Whether both hold it, and this is the node that lets go.
    fn has_to_yield(&self, now: Instant, hold: &Hold) -> bool {
        let Some((theirs, mine)) =
            self.theirs(now).and_then(|said| said.claim).zip(self.claim(hold))
        else {
            return false;
        };
        let beaten = theirs.beats(&mine, !self.first);
        #[cfg(test)]
        let beaten = instead(Bug::NobodyYields, beaten, false);
        // It cannot know that we hold it, too: whoever knows more lets go.
        beaten || self.is_deaf(now) && theirs.holds && self.nobody_leads(now, SILENCE)
    }

    fn go_on(&mut self, now: Instant, hold: &mut Hold, scene: &Scene, acts: &mut Vec<Act>) {
        let Some(until) = hold.until().filter(|_| scene.able) else { return };
        let was_granted = !self.is_alone();
        let due = if was_granted {
            // Nobody has granted more in time. Who was never heard may not know that this node would go on.
            until.since(now) <= ASK_EVERY && self.watch.was_heard()
        } else {
            self.renewed + ASK_EVERY <= now
        };
        if !due {
            return;
        }
        self.basis = Some(self.basis.unwrap_or(Basis::Granted).min(Basis::WentOn));
        self.renewed = now;
        acts.push(Act::GoOn(hold.alone(now, self.epoch)));
        if was_granted {
            acts.push(Act::Say);
        }
    }

    fn take_over(&mut self, now: Instant, hold: &mut Hold, scene: &Scene, acts: &mut Vec<Act>) {
        let peer = self.watch.peer(now);
        // Of one that was never heard, maybe only heartbeats are lost: an election is no reason to take over from it.
        let silence = if self.watch.was_heard() { SILENCE } else { PATIENCE };
        let gone = peer == Peer::Down && self.nobody_leads(now, silence);
        let stuck = peer == Peer::Up && self.nobody_leads(now, PATIENCE) && self.is_next();
        if !stuck || !scene.able || scene.paused {
            self.intent = None;
        }
        if !gone && !stuck || scene.paused || self.waits.is_some() {
            self.said_unable &= gone;
            return;
        }
        let verified = if gone { self.watch.verified_in(now) } else { Duration::ZERO };
        if !scene.able {
            if gone && !core::mem::replace(&mut self.said_unable, true) {
                acts.push(Act::CannotServe { verified });
            }
            return;
        }
        self.said_unable = false;
        // One that hears nothing of this node is granted nothing by it, and could not say that it has heard.
        let heard = self.intent.get_or_insert_default().heard || self.is_deaf(now);
        if !gone && !heard {
            acts.push(Act::Ask { number: 0 });
            return;
        }
        self.intent = None;
        self.basis = Some(Basis::TookOver);
        self.renewed = now;
        if let Order::Take { until } = hold.alone(now, self.epoch) {
            acts.extend([Act::TakeOver { until, gone, verified }, Act::Say]);
        }
    }

    /// Whether of two nodes that are there and hold nothing this one is to take it.
    fn is_next(&self) -> bool {
        let free = |said: Said| said.claim.is_none() || self.first && said.intends();
        self.theirs.is_some_and(|said| free(said) && (self.first || !said.able))
    }

    /// Whether the other node is heard and does not hear this one.
    fn is_deaf(&self, now: Instant) -> bool {
        self.deaf.is_some_and(|since| self.pace.timeout <= now.since(since))
    }

    /// Whether agreement goes on although the other node is silent: then maybe only heartbeats are lost. One that is cut off
    /// is answered for a moment by what it was told before, or by itself.
    pub fn agrees_unheard(&self, now: Instant) -> bool {
        let silent = PATIENCE.max(self.pace.timeout) <= self.silent_for(now);
        silent && !self.is_alone() && !self.nobody_leads(now, SILENCE)
    }

    /// Whether whoever leads has not answered for so long.
    pub fn nobody_leads(&self, now: Instant, patience: Duration) -> bool {
        patience <= now.since(self.answered)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// After the last heartbeat, with answers of whoever leads until then: whether only heartbeats seem to be lost.
    fn check(silent: Duration, unanswered: Duration, basis: Basis, lost: bool) {
        let start = Instant::default();
        let mut lone = Lone::new(start, Pace::default(), true);
        lone.watch.hear(start);
        lone.basis = Some(basis);
        lone.answered(start + silent.saturating_sub(unanswered));
        assert_eq!(
            lone.agrees_unheard(start + silent),
            lost,
            "{silent:?} {unanswered:?} {basis:?}"
        );
    }

    #[test]
    fn only_heartbeats_are_lost_where_agreement_goes_on_without_them() {
        let (soon, none) = (Duration::from_millis(400), Duration::ZERO);
        check(PATIENCE, none, Basis::Granted, true);
        // In the moment after a cut nobody knows yet.
        check(soon, none, Basis::Granted, false);
        check(PATIENCE, SILENCE, Basis::Granted, false);
        check(PATIENCE, none, Basis::WentOn, false);
    }
}
