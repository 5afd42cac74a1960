use super::*;
use proptest::prelude::*;

/// An outbox whose other side takes anything.
fn trusted() -> Outbox {
    let mut outbox = Outbox::default();
    for lane in Lane::ALL {
        assert!(outbox.credit(lane, u32::try_from(window(lane)).unwrap()));
    }
    outbox
}

fn put(outbox: &mut Outbox, lane: Lane, body: Vec<u8>) -> Result<(), NotTaken> {
    outbox.push(lane, Parcel { head: Head::None, body }).map(drop).map_err(|(why, _)| why)
}

/// The next batch, as lane and length of each frame of data; the credit that it used is given back.
fn batch(outbox: &mut Outbox) -> Vec<(Lane, usize)> {
    let mut bytes = Vec::new();
    outbox.fill(&mut bytes);
    assert!(bytes.len() <= BATCH_MAX + 2 * (FRAME_MAX + COST), "a batch of {}", bytes.len());
    let mut rest = &bytes[..];
    let mut frames = Vec::new();
    while let Some((frame, used)) = Frame::read(rest).unwrap() {
        if let Frame::Data { lane, payload, .. } = frame {
            frames.push((lane, payload.len()));
            let bytes = u32::try_from(payload.len() + COST).unwrap();
            assert!(outbox.credit(lane, bytes));
        }
        rest = &rest[used..];
    }
    assert!(rest.is_empty());
    frames
}

#[test]
fn what_is_urgent_goes_first_and_bulk_one_frame_at_a_time() {
    let mut outbox = trusted();
    put(&mut outbox, Lane::Bulk, vec![0; MESSAGE_MAX]).unwrap();
    assert_eq!(batch(&mut outbox), [(Lane::Bulk, FRAME_MAX)]);
    put(&mut outbox, Lane::Requests, vec![0; 3]).unwrap();
    put(&mut outbox, Lane::Beliefs, vec![0; 2]).unwrap();
    put(&mut outbox, Lane::Consensus, vec![0; 1]).unwrap();
    let next =
        [(Lane::Consensus, 1), (Lane::Beliefs, 2), (Lane::Requests, 3), (Lane::Bulk, FRAME_MAX)];
    assert_eq!(batch(&mut outbox), next);
    let mut frames = 2;
    while !batch(&mut outbox).is_empty() {
        frames += 1;
    }
    assert_eq!(frames, MESSAGE_MAX / FRAME_MAX, "and nothing else is left");
}

#[test]
fn bulk_does_not_starve_beside_what_is_urgent() {
    let mut outbox = trusted();
    put(&mut outbox, Lane::Bulk, vec![0; 2 * FRAME_MAX]).unwrap();
    for _ in 0..40 {
        put(&mut outbox, Lane::Consensus, vec![0; FRAME_MAX]).unwrap();
    }
    for _ in 0..2 {
        let frames = batch(&mut outbox);
        assert_eq!(frames.iter().filter(|(lane, _)| *lane == Lane::Bulk).count(), 1);
    }
}

#[test]
fn a_full_queue_takes_nothing_and_empty_messages_count_too() {
    let mut outbox = Outbox::default();
    let mut count = 0;
    while put(&mut outbox, Lane::Consensus, Vec::new()).is_ok() {
        count += 1;
    }
    assert_eq!(count, QUEUE_MAX / COST);
    assert_eq!(put(&mut outbox, Lane::Consensus, vec![1]), Err(NotTaken::Full));
    assert_eq!(put(&mut outbox, Lane::Beliefs, vec![1]), Ok(()), "each lane has its own");
    assert!(outbox.credit(Lane::Consensus, u32::try_from(WINDOW).unwrap()));
    let mut bytes = Vec::new();
    assert!(outbox.fill(&mut bytes), "whoever waits for room is told");
    assert_eq!(put(&mut outbox, Lane::Consensus, vec![1]), Ok(()));
}

#[test]
fn the_largest_message_is_taken_and_a_larger_one_is_not() {
    let mut outbox = Outbox::default();
    assert_eq!(put(&mut outbox, Lane::Bulk, vec![0; MESSAGE_MAX + 1]), Err(NotTaken::TooLarge));
    assert_eq!(put(&mut outbox, Lane::Bulk, vec![0; MESSAGE_MAX]), Ok(()));
    assert_eq!(put(&mut outbox, Lane::Bulk, Vec::new()), Err(NotTaken::Full));
}

#[test]
fn nothing_goes_without_credit_and_a_lane_without_it_does_not_stop_others() {
    let cost = u32::try_from(COST).unwrap();
    let mut outbox = Outbox::default();
    put(&mut outbox, Lane::Consensus, vec![0; 100]).unwrap();
    put(&mut outbox, Lane::Beliefs, vec![0; 10]).unwrap();
    let mut bytes = Vec::new();
    outbox.fill(&mut bytes);
    assert!(bytes.is_empty());
    assert!(outbox.credit(Lane::Consensus, 99 + cost));
    assert!(outbox.credit(Lane::Beliefs, 10 + cost));
    assert_eq!(batch(&mut outbox), [(Lane::Beliefs, 10)]);
    assert!(outbox.credit(Lane::Consensus, 1));
    assert_eq!(batch(&mut outbox), [(Lane::Consensus, 100)]);
    assert!(!outbox.credit(Lane::Bulk, u32::MAX), "more than a window is a lie");
}

#[test]
fn the_goodbye_comes_after_all_that_was_queued_and_then_nothing() {
    let mut outbox = trusted();
    put(&mut outbox, Lane::Bulk, vec![0; 3 * FRAME_MAX]).unwrap();
    outbox.close("the end");
    outbox.close("another end");
    assert_eq!(put(&mut outbox, Lane::Consensus, vec![1]), Err(NotTaken::Closed));
    for _ in 0..2 {
        assert_eq!(batch(&mut outbox).len(), 1);
        assert!(!outbox.parted());
    }
    let mut bytes = Vec::new();
    outbox.fill(&mut bytes);
    let (_, used) = Frame::read(&bytes).unwrap().unwrap();
    let (last, _) = Frame::read(&bytes[used..]).unwrap().unwrap();
    assert_eq!((last, outbox.parted()), (Frame::Goodbye("the end"), true));
    outbox.ping(1);
    bytes.clear();
    outbox.fill(&mut bytes);
    assert!(bytes.is_empty());
}

#[test]
fn pings_do_not_pile_up() {
    let mut outbox = Outbox::default();
    for number in 0..100 {
        outbox.pong(number);
        outbox.ping(number + 1);
    }
    let mut bytes = Vec::new();
    outbox.fill(&mut bytes);
    let (first, used) = Frame::read(&bytes).unwrap().unwrap();
    let (second, end) = Frame::read(&bytes[used..]).unwrap().unwrap();
    assert_eq!((first, second, used + end), (Frame::Pong(99), Frame::Ping(100), bytes.len()));
}

proptest! {
    /// What goes through an outbox and an inflow comes out as it was, in order within each lane.
    #[test]
    fn messages_come_out_as_they_went_in(lengths in prop::collection::vec((0_usize..5, 0_usize..100_000), 1..20)) {
        use crate::inflow::{Got, Inflow};
        let mut outbox = trusted();
        let mut sent: Vec<Vec<(Head, Vec<u8>)>> = vec![Vec::new(); Lane::ALL.len()];
        for (number, (lane, length)) in lengths.into_iter().enumerate() {
            let lane = Lane::ALL[lane];
            let id = number as u64;
            let head = match lane {
                Lane::Consensus | Lane::Beliefs | Lane::Bulk => Head::None,
                Lane::Requests => Head::Request(id << 40),
                Lane::Answers => Head::Answer { id, good: id.is_multiple_of(2) },
            };
            let body = vec![u8::try_from(number).unwrap(); length];
            if outbox.push(lane, Parcel { head, body: body.clone() }).is_ok() {
                sent[lane.index()].push((head, body));
            }
        }
        let mut inflow = Inflow::default();
        let mut got: Vec<Vec<(Head, Vec<u8>)>> = vec![Vec::new(); Lane::ALL.len()];
        loop {
            let mut bytes = Vec::new();
            outbox.fill(&mut bytes);
            let mut rest = &bytes[..];
            while let Some((frame, used)) = Frame::read(rest).unwrap() {
                if let Frame::Data { lane, payload, .. } = frame {
                    prop_assert!(outbox.credit(lane, u32::try_from(payload.len() + COST).unwrap()));
                }
                if let Got::Message { lane, head, body } = inflow.take(frame).unwrap() {
                    got[lane.index()].push((head, body));
                }
                rest = &rest[used..];
            }
            if bytes.is_empty() {
                break;
            }
        }
        prop_assert!(got == sent);
        prop_assert_eq!(outbox.queued_bytes(), 0);
    }
}
