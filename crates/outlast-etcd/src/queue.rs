//! What is proposed here, until it is agreed on or known not to be.

use std::collections::VecDeque;
use std::sync::Arc;

use outlast_consensus::ProposeError;
use outlast_core::time::Instant;

use crate::engine::WAIT_MAX;
use crate::form::{Batch, Place};
use crate::part::Answer;

/// Entries and bytes that are appended together; the last entry may go beyond the bytes.
const BATCH_MAX: usize = 1_024;
const BATCH_BYTES: usize = 256 << 10;

/// What may wait to be appended; one alone may be of any size.
const WAITING_MAX: usize = 16_384;
const WAITING_BYTES_MAX: usize = 32 << 20;

/// How often a proposal may find that another node's was first.
const LOST_MAX: u32 = 16;

/// A command that waits to be appended.
struct Proposal {
    command: Vec<u8>,
    answer: Answer,
    since: Instant,
    lost: u32,
    /// The term in which this node led when it took it in: it takes effect in that term or never.
    term: Option<u64>,
}

/// What is being appended. The same bytes are sent again until it is known what became of them: the end of the log that
/// they name is there once, so they take effect once or never.
struct Flight {
    append: Append,
    proposals: Vec<Proposal>,
    calling: bool,
    /// It may have arrived.
    doubt: bool,
}

/// What to append, and where the log ends then.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Append {
    pub(crate) number: u64,
    pub(crate) at: Place,
    pub(crate) after: Place,
    /// The term that must not be over.
    pub(crate) term: Option<u64>,
    pub(crate) bytes: Arc<[u8]>,
}

/// How a call came back that was to append.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Return {
    /// With an answer, or without having arrived.
    Known,
    Unknown,
    /// It did not happen, and will not.
    Never,
}

/// One batch is under way at a time; what comes meanwhile shares the next one.
pub(crate) struct Queue {
    waiting: VecDeque<Proposal>,
    /// Of all commands that wait.
    waiting_bytes: usize,
    flight: Option<Flight>,
    flights: u64,
    random: u64,
}

impl Queue {
    pub(crate) fn new(random: u64) -> Queue {
        Queue { waiting: VecDeque::new(), waiting_bytes: 0, flight: None, flights: 0, random }
    }

    /// `term`: that in which this node leads, if it does. Where too much waits already, it is told so.
    pub(crate) fn push(
        &mut self,
        now: Instant,
        term: Option<u64>,
        command: Vec<u8>,
        answer: Answer,
    ) {
        let bytes = self.waiting_bytes + command.len();
        let full = WAITING_MAX <= self.waiting.len() || WAITING_BYTES_MAX < bytes;
        if full && !self.waiting.is_empty() {
            answer.send(Err(ProposeError::Busy)).ok();
            return;
        }
        self.waiting_bytes = bytes;
        self.waiting.push_back(Proposal { command, answer, since: now, lost: 0, term });
    }

    /// The one that waits first, if this holds of it.
    fn pop_if(&mut self, holds: impl FnOnce(&mut Proposal) -> bool) -> Option<Proposal> {
        let proposal = self.waiting.pop_front_if(holds)?;
        self.waiting_bytes -= proposal.command.len();
        Some(proposal)
    }

    /// What to append behind `at` now; `new`: also what has not been tried yet.
    pub(crate) fn append(&mut self, at: Place, new: bool, leads: Option<u64>) -> Option<Append> {
        if self.flight.is_none() && new {
            self.flight = self.take_off(at, leads);
        }
        let flight = self.flight.as_mut().filter(|flight| !flight.calling)?;
        flight.calling = true;
        Some(flight.append.clone())
    }

    /// Puts together what waits.
    fn take_off(&mut self, at: Place, leads: Option<u64>) -> Option<Flight> {
        let (mut proposals, mut size, mut term) = (Vec::new(), 0, None);
        while proposals.len() < BATCH_MAX && size < BATCH_BYTES {
            let same = |next: &mut Proposal| proposals.is_empty() || next.term == term;
            let Some(proposal) = self.pop_if(same) else { break };
            if proposal.term.is_some() && proposal.term != leads {
                proposal.answer.send(Err(ProposeError::NotLeader(None))).ok();
            } else if !proposal.answer.is_closed() {
                // Who has given up has had nothing done.
                term = proposal.term;
                size += proposal.command.len();
                proposals.push(proposal);
            }
        }
        if proposals.is_empty() {
            return None;
        }
        self.flights += 1;
        let nonce = self.random.wrapping_add(self.flights);
        let entries = proposals.iter().map(|proposal| proposal.command.clone()).collect();
        let batch = Batch { before: at.chain, nonce, entries };
        let bytes = batch.value();
        let after = at.after(&batch, &bytes);
        let append = Append { number: self.flights, at, after, term, bytes: Arc::from(bytes) };
        Some(Flight { append, proposals, calling: false, doubt: false })
    }

    /// A call has come back; whether the batch that it was for is still under way.
    pub(crate) fn returned(&mut self, number: u64, end: Return) -> bool {
        let Some(flight) = self.flight.as_mut().filter(|flight| flight.append.number == number)
        else {
            return false;
        };
        flight.calling = false;
        flight.doubt |= end == Return::Unknown;
        if end == Return::Never && !flight.doubt {
            self.drop_flight(ProposeError::NotLeader(None));
        }
        true
    }

    /// This batch has been agreed on. Those who wait for its entries, in their order, if it is ours. `None`: another one
    /// stands where ours was to be, and all of it waits again.
    pub(crate) fn appended(&mut self, batch: &[u8]) -> Option<Vec<Answer>> {
        let Some(flight) = self.flight.take() else { return Some(Vec::new()) };
        if flight.append.bytes[..] == *batch {
            return Some(flight.proposals.into_iter().map(|proposal| proposal.answer).collect());
        }
        for mut proposal in flight.proposals.into_iter().rev() {
            proposal.lost += 1;
            if LOST_MAX <= proposal.lost {
                proposal.answer.send(Err(ProposeError::Busy)).ok();
            } else {
                self.waiting_bytes += proposal.command.len();
                self.waiting.push_front(proposal);
            }
        }
        None
    }

    /// The log still ends where this batch was to be, and this term goes: a batch of another one comes too late for ever.
    pub(crate) fn fenced(&mut self, number: u64, term: u64) {
        let late =
            |append: &Append| append.number == number && append.term.is_some_and(|t| t != term);
        if self.flight.as_ref().is_some_and(|flight| late(&flight.append)) {
            self.drop_flight(ProposeError::NotLeader(None));
        }
    }

    /// Lets whoever waits try elsewhere: nothing has happened.
    pub(crate) fn send_away(&mut self) {
        self.waiting_bytes = 0;
        for proposal in self.waiting.drain(..) {
            proposal.answer.send(Err(ProposeError::Busy)).ok();
        }
    }

    /// A snapshot goes beyond what is under way: whether that took effect, this node will never know.
    pub(crate) fn overtaken(&mut self, place: Place) {
        if self.flight.as_ref().is_some_and(|flight| flight.append.at.index < place.index) {
            self.drop_flight(ProposeError::Unknown);
        }
    }

    /// Tells those who have waited for too long.
    pub(crate) fn give_up(&mut self, now: Instant) {
        let late = |proposal: &Proposal| proposal.since + WAIT_MAX <= now;
        // What has lost stands before what came later, so the first is the oldest.
        while let Some(proposal) = self.pop_if(|first| late(first)) {
            proposal.answer.send(Err(ProposeError::NotLeader(None))).ok();
        }
        let Some(flight) = self.flight.as_mut().filter(|f| f.proposals.first().is_some_and(late))
        else {
            return;
        };
        if flight.doubt || flight.calling {
            // It stays until it is known what became of it.
            for proposal in flight.proposals.drain(..) {
                proposal.answer.send(Err(ProposeError::Unknown)).ok();
            }
        } else {
            self.drop_flight(ProposeError::NotLeader(None));
        }
    }

    fn drop_flight(&mut self, why: ProposeError) {
        for proposal in self.flight.take().into_iter().flat_map(|flight| flight.proposals) {
            proposal.answer.send(Err(why)).ok();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use outlast_consensus::Applied;
    use tokio::sync::oneshot::{self, Receiver};

    use super::*;

    type Told = Receiver<Result<Applied, ProposeError>>;

    fn at(seconds: u64) -> Instant {
        Instant::from_start(Duration::from_secs(seconds))
    }

    fn push(queue: &mut Queue, since: Instant, command: &str) -> Told {
        let (answer, told) = oneshot::channel();
        queue.push(since, None, command.as_bytes().to_vec(), answer);
        told
    }

    fn entries(append: &Append) -> Vec<String> {
        let batch = Batch::of_value(&append.bytes).unwrap();
        batch.entries.into_iter().map(|entry| String::from_utf8(entry).unwrap()).collect()
    }

    fn place(index: u64) -> Place {
        Place { index, ..Place::default() }
    }

    #[test]
    fn what_comes_while_a_batch_is_under_way_shares_the_next() {
        let mut queue = Queue::new(7);
        assert_eq!(queue.append(place(4), true, None), None);
        let mut first = push(&mut queue, at(0), "one");
        let append = queue.append(place(4), true, None).unwrap();
        let (_two, _three) = (push(&mut queue, at(0), "two"), push(&mut queue, at(0), "three"));
        assert_eq!(queue.append(place(4), true, None), None);
        assert_eq!((append.after.index, entries(&append)), (5, vec!["one".to_owned()]));
        let answers = queue.appended(&append.bytes).unwrap();
        assert_eq!(answers.len(), 1);
        assert!(first.try_recv().is_err(), "who has them answers");
        // It was known before its call came back.
        assert!(!queue.returned(append.number, Return::Known));
        assert_eq!(entries(&queue.append(append.after, true, None).unwrap()), ["two", "three"]);
    }

    #[test]
    fn a_batch_without_an_answer_is_sent_again_as_it_is() {
        let mut queue = Queue::new(7);
        let mut told = push(&mut queue, at(0), "one");
        let append = queue.append(place(4), true, None).unwrap();
        assert!(queue.returned(append.number, Return::Unknown));
        assert_eq!(queue.append(place(4), false, None).as_ref(), Some(&append));
        // It may have happened the first time, so that a no now says nothing.
        assert!(queue.returned(append.number, Return::Never));
        queue.give_up(at(0) + WAIT_MAX);
        assert_eq!(told.try_recv().unwrap(), Err(ProposeError::Unknown));
        assert_eq!(queue.append(place(4), false, None), Some(append));
    }

    #[test]
    fn what_another_was_faster_than_waits_again_in_its_order_but_not_for_ever() {
        let mut queue = Queue::new(7);
        let mut told = [push(&mut queue, at(0), "one"), push(&mut queue, at(0), "two")];
        for lost in 0..LOST_MAX {
            let append = queue.append(place(u64::from(lost)), true, None).unwrap();
            assert_eq!(entries(&append), ["one", "two"]);
            assert!(queue.appended(b"another").is_none());
        }
        assert_eq!(queue.append(place(99), true, None), None);
        assert!(told.iter_mut().all(|told| told.try_recv().unwrap() == Err(ProposeError::Busy)));
    }

    #[test]
    fn who_waits_too_long_is_told_whether_anything_can_have_happened() {
        let mut queue = Queue::new(7);
        let mut waits = push(&mut queue, at(0), "one");
        queue.give_up(at(1));
        assert!(waits.try_recv().is_err());
        queue.give_up(at(0) + WAIT_MAX);
        assert_eq!(waits.try_recv().unwrap(), Err(ProposeError::NotLeader(None)));
        let mut refused = push(&mut queue, at(10), "two");
        let append = queue.append(place(4), true, None).unwrap();
        queue.returned(append.number, Return::Never);
        assert_eq!(refused.try_recv().unwrap(), Err(ProposeError::NotLeader(None)));
        let mut flies = push(&mut queue, at(20), "three");
        queue.append(place(4), true, None).unwrap();
        queue.give_up(at(20) + WAIT_MAX);
        assert_eq!(flies.try_recv().unwrap(), Err(ProposeError::Unknown));
        queue.overtaken(place(9));
        assert_eq!(queue.append(place(9), true, None), None);
    }

    #[test]
    fn who_is_sent_away_has_nothing_done() {
        let mut queue = Queue::new(7);
        let mut told = push(&mut queue, at(0), "one");
        queue.send_away();
        assert_eq!(told.try_recv().unwrap(), Err(ProposeError::Busy));
        assert_eq!(queue.append(place(4), true, None), None);
        assert_eq!(queue.appended(b"another").map(|answers| answers.len()), Some(0));
    }

    #[test]
    fn what_waits_has_a_limit_in_number_and_in_bytes() {
        let busy = |told: &mut Told| told.try_recv() == Ok(Err(ProposeError::Busy));
        let half = "x".repeat(WAITING_BYTES_MAX / 2);
        let mut queue = Queue::new(7);
        let mut told = [&half[..], &half, "x"].map(|command| push(&mut queue, at(0), command));
        assert_eq!(told.each_mut().map(busy), [false, false, true]);
        // One is under way, then waits again.
        queue.append(place(4), true, None).unwrap();
        assert!(!busy(&mut push(&mut queue, at(0), "x")));
        assert!(queue.appended(b"another").is_none());
        assert!(busy(&mut push(&mut queue, at(0), "x")));
        queue.give_up(at(0) + WAIT_MAX);
        assert_eq!((queue.waiting.len(), queue.waiting_bytes), (0, 0));
        let mut told: Vec<Told> = (0..=WAITING_MAX).map(|_| push(&mut queue, at(9), "")).collect();
        assert_eq!(told.iter_mut().filter_map(|told| busy(told).then_some(())).count(), 1);
    }

    #[test]
    fn who_has_given_up_has_nothing_done() {
        let mut queue = Queue::new(7);
        drop(push(&mut queue, at(0), "one"));
        let _told = push(&mut queue, at(0), "two");
        assert_eq!(entries(&queue.append(place(4), true, None).unwrap()), ["two"]);
    }

    #[test]
    fn what_a_leader_took_in_takes_effect_in_its_term_or_never() {
        let mut queue = Queue::new(7);
        let push = |queue: &mut Queue, term, command: &str| {
            let (answer, told) = oneshot::channel();
            queue.push(at(0), term, command.as_bytes().to_vec(), answer);
            told
        };
        let gone = Err(ProposeError::NotLeader(None));
        let mut told = push(&mut queue, Some(3), "one");
        let _two = push(&mut queue, None, "two");
        let append = queue.append(place(4), true, Some(3)).unwrap();
        assert_eq!((append.term, entries(&append)), (Some(3), vec!["one".to_owned()]));
        // Another batch was first, and then another leader.
        assert!(queue.appended(b"another").is_none());
        let append = queue.append(place(5), true, None).unwrap();
        assert_eq!((append.term, entries(&append)), (None, vec!["two".to_owned()]));
        assert_eq!(told.try_recv().unwrap(), gone);
        queue.appended(&append.bytes).unwrap();
        // The same while it is under way, even if nobody has answered for it so far.
        let mut told = push(&mut queue, Some(5), "three");
        let append = queue.append(place(6), true, Some(5)).unwrap();
        queue.returned(append.number, Return::Unknown);
        queue.fenced(append.number, 5);
        assert!(told.try_recv().is_err());
        queue.fenced(append.number, 6);
        assert_eq!(told.try_recv().unwrap(), gone);
        assert_eq!(queue.append(place(6), true, None), None);
    }
}
