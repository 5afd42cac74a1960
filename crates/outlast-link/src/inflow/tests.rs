use super::*;
use crate::limits::FRAME_MAX;
use proptest::prelude::*;

#[test]
fn a_message_beyond_the_limit_is_refused_before_it_is_kept() {
    let mut inflow = Inflow::default();
    let payload = &[0; FRAME_MAX];
    let piece = Frame::Data { lane: Lane::Bulk, more: true, payload };
    for _ in 0..MESSAGE_MAX / FRAME_MAX {
        assert_eq!(inflow.take(piece), Ok(Got::Part));
    }
    let one_more = Frame::Data { lane: Lane::Bulk, more: false, payload: &[0] };
    assert_eq!(inflow.take(one_more), Err(Malformed("a message beyond the limit")));
}

#[test]
fn lanes_do_not_mix() {
    let mut inflow = Inflow::default();
    let data = |lane, more, payload| Frame::Data { lane, more, payload };
    assert_eq!(inflow.take(data(Lane::Bulk, true, b"one ")), Ok(Got::Part));
    let vote = Got::Message { lane: Lane::Consensus, head: Head::None, body: b"vote".to_vec() };
    assert_eq!(inflow.take(data(Lane::Consensus, false, b"vote")), Ok(vote));
    assert_eq!(inflow.take(data(Lane::Requests, true, b"\x05ques")), Ok(Got::Part));
    let bulk = Got::Message { lane: Lane::Bulk, head: Head::None, body: b"one two".to_vec() };
    assert_eq!(inflow.take(data(Lane::Bulk, false, b"two")), Ok(bulk));
    let body = b"question".to_vec();
    let question = Got::Message { lane: Lane::Requests, head: Head::Request(5), body };
    assert_eq!(inflow.take(data(Lane::Requests, false, b"tion")), Ok(question));
}

#[test]
fn a_head_must_be_in_the_first_frame() {
    for payload in [&b""[..], b"\x80", b"\x80\x00"] {
        let mut inflow = Inflow::default();
        assert!(inflow.take(Frame::Data { lane: Lane::Requests, more: true, payload }).is_err());
    }
    let mut inflow = Inflow::default();
    let no_bool = Frame::Data { lane: Lane::Answers, more: false, payload: &[1, 2] };
    assert!(inflow.take(no_bool).is_err());
}

/// Drives one lane of both sides: sends while there is credit, takes when told to.
#[derive(Debug)]
struct Pipe {
    held: Held,
    credit: usize,
    waiting: Vec<usize>,
}

const LANE: Lane = Lane::Bulk;

impl Pipe {
    fn new() -> Pipe {
        let mut pipe = Pipe { held: Held::default(), credit: 0, waiting: Vec::new() };
        pipe.held.begin(LANE);
        pipe.pass_credit();
        pipe
    }

    fn pass_credit(&mut self) {
        self.credit += self.held.credit(LANE).unwrap_or(0);
        assert!(self.credit <= window(LANE));
    }

    /// Sends a message as far as credit goes; true if all of it went.
    fn send(&mut self, length: usize) -> bool {
        let mut rest = length;
        loop {
            let piece = rest.min(FRAME_MAX);
            if piece + COST > self.credit {
                return false;
            }
            self.credit -= piece + COST;
            assert!(self.held.receive(LANE, piece), "what has credit is never refused");
            rest -= piece;
            if rest == 0 {
                self.held.complete(Some(length));
                self.waiting.push(length);
            }
            self.pass_credit();
            if rest == 0 {
                return true;
            }
        }
    }

    fn take(&mut self) {
        if !self.waiting.is_empty() {
            let length = self.waiting.remove(0);
            self.held.take(length);
            self.pass_credit();
        }
    }
}

proptest! {
    #[test]
    fn what_nobody_takes_is_bounded_and_what_is_taken_makes_room(
        steps in prop::collection::vec((any::<bool>(), 0..=MESSAGE_MAX), 1..60)
    ) {
        let mut pipe = Pipe::new();
        for (take, length) in steps {
            if take {
                pipe.take();
            } else if !pipe.send(length) {
                // It stands in the middle of a message: only taking helps, and then it always does.
                prop_assert!(pipe.held.bytes() > HELD_MAX - window(LANE));
                break;
            }
            prop_assert!(pipe.held.bytes() <= HELD_MAX + window(LANE));
        }
        while !pipe.waiting.is_empty() {
            pipe.take();
        }
        prop_assert!(pipe.credit >= window(LANE) / 2, "{} of credit is left", pipe.credit);
    }
}

#[test]
fn a_message_of_the_largest_size_passes_behind_another_that_is_taken_later() {
    let mut pipe = Pipe::new();
    assert!(pipe.send(MESSAGE_MAX));
    assert!(!pipe.send(MESSAGE_MAX), "the first has to be taken before the second is whole");
    pipe.take();
    assert!(pipe.credit > 0, "and then it goes on");
}

#[test]
fn connecting_again_does_not_give_another_share() {
    let mut pipe = Pipe::new();
    let mut sent = 0;
    for _ in 0..1000 {
        while pipe.send(FRAME_MAX) {
            sent += FRAME_MAX;
        }
        pipe.credit = 0;
        pipe.held.begin(LANE);
        pipe.pass_credit();
    }
    assert!(sent <= HELD_MAX + window(LANE), "{sent}");
}
