use super::*;
use proptest::prelude::*;

fn lane() -> impl Strategy<Value = Lane> {
    prop::sample::select(&Lane::ALL[..])
}

fn hello() -> impl Strategy<Value = Hello> {
    let versions = (any::<u32>(), any::<u32>()).prop_map(|(min, max)| Versions { min, max });
    let words = (".{0,20}", ".{0,20}", ".{0,20}");
    (versions, words, any::<u64>(), any::<u64>()).prop_map(|(versions, words, id, instance)| {
        let (cluster, node, build) = words;
        Hello { versions, cluster, node, id, instance, build }
    })
}

fn greeting() -> impl Strategy<Value = Greeting> {
    prop_oneof![
        hello().prop_map(Greeting::Hello),
        Just(Greeting::Accepted),
        (any::<bool>(), ".{0,50}").prop_map(|(again, reason)| Greeting::Refused { again, reason }),
    ]
}

/// A frame that owns what it holds.
#[derive(Clone, Debug)]
enum Owned {
    Data(Lane, bool, Vec<u8>),
    Ping(u64),
    Pong(u64),
    Credit(Lane, u32),
    Goodbye(String),
}

impl Owned {
    fn frame(&self) -> Frame<'_> {
        match self {
            Owned::Data(lane, more, payload) => Frame::Data { lane: *lane, more: *more, payload },
            Owned::Ping(number) => Frame::Ping(*number),
            Owned::Pong(number) => Frame::Pong(*number),
            Owned::Credit(lane, bytes) => Frame::Credit { lane: *lane, bytes: *bytes },
            Owned::Goodbye(reason) => Frame::Goodbye(reason),
        }
    }
}

fn frame() -> impl Strategy<Value = Owned> {
    let payload = prop_oneof![
        prop::collection::vec(any::<u8>(), 0..200),
        Just(vec![7; FRAME_MAX]),
        Just(vec![7; FRAME_MAX - 1]),
    ];
    prop_oneof![
        (lane(), any::<bool>(), payload)
            .prop_map(|(l, more, payload)| Owned::Data(l, more, payload)),
        any::<u64>().prop_map(Owned::Ping),
        any::<u64>().prop_map(Owned::Pong),
        (lane(), any::<u32>()).prop_map(|(lane, bytes)| Owned::Credit(lane, bytes)),
        ".{0,50}".prop_map(Owned::Goodbye),
    ]
}

/// Everything that is read when bytes arrive in pieces of `step`.
fn read_in_pieces(wire: &[u8], step: usize) -> (Vec<String>, Option<Malformed>) {
    let mut seen = Vec::new();
    let mut buffer = Vec::new();
    for piece in wire.chunks(step.max(1)) {
        buffer.extend_from_slice(piece);
        loop {
            match Frame::read(&buffer) {
                Ok(Some((frame, used))) => {
                    seen.push(format!("{frame:?}"));
                    buffer.drain(..used);
                }
                Ok(None) => break,
                Err(why) => return (seen, Some(why)),
            }
        }
    }
    (seen, None)
}

proptest! {
    #[test]
    fn a_greeting_is_read_as_it_was_written_and_no_part_of_it_is(greeting in greeting()) {
        let mut bytes = Vec::new();
        greeting.write(&mut bytes);
        let length = bytes.len();
        prop_assert_eq!(Greeting::read(&bytes), Ok(Some((greeting.clone(), length))));
        for cut in 0..length {
            prop_assert_eq!(Greeting::read(&bytes[..cut]), Ok(None), "cut at {}", cut);
        }
        bytes.extend_from_slice(b"and frames");
        prop_assert_eq!(Greeting::read(&bytes), Ok(Some((greeting, length))));
    }

    #[test]
    fn a_hello_of_a_later_build_may_say_more_and_not_less(hello in hello(), more in prop::collection::vec(any::<u8>(), 0..20)) {
        let body = hello.to_bytes();
        let greeting = |body: &[u8]| {
            let mut bytes = Vec::new();
            put(HELLO, body, &mut bytes);
            Greeting::read(&bytes)
        };
        let longer = [&body[..], &more[..]].concat();
        let read = greeting(&longer).map(|read| read.map(|(greeting, _)| greeting));
        prop_assert_eq!(read, Ok(Some(Greeting::Hello(hello))));
        for cut in 0..body.len() {
            prop_assert!(greeting(&body[..cut]).is_err(), "cut at {}", cut);
        }
    }

    #[test]
    fn a_frame_is_read_as_it_was_written_and_no_part_of_it_is(owned in frame(), cuts in prop::collection::vec(any::<prop::sample::Index>(), 20)) {
        let mut bytes = Vec::new();
        owned.frame().write(&mut bytes);
        let length = bytes.len();
        prop_assert_eq!(Frame::read(&bytes), Ok(Some((owned.frame(), length))));
        let every = if length < 300 { length } else { 300 };
        for cut in (0..every).chain(cuts.iter().map(|cut| cut.index(length))) {
            prop_assert_eq!(Frame::read(&bytes[..cut]), Ok(None), "cut at {}", cut);
        }
    }

    #[test]
    fn what_is_read_does_not_depend_on_how_bytes_arrive(frames in prop::collection::vec(frame(), 0..6), step in 1_usize..5000) {
        let mut wire = Vec::new();
        for owned in &frames {
            owned.frame().write(&mut wire);
        }
        let whole = read_in_pieces(&wire, wire.len());
        prop_assert_eq!(whole.0.len(), frames.len());
        prop_assert_eq!(&read_in_pieces(&wire, step), &whole);
        if wire.len() < 500 {
            for step in 1..=wire.len() {
                prop_assert_eq!(&read_in_pieces(&wire, step), &whole, "pieces of {}", step);
            }
        }
    }

    #[test]
    fn any_bytes_are_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..100), step in 1_usize..10) {
        drop(Greeting::read(&bytes));
        prop_assert_eq!(read_in_pieces(&bytes, step), read_in_pieces(&bytes, bytes.len()));
    }

    #[test]
    fn what_is_read_has_one_form(bytes in prop::collection::vec(any::<u8>(), 0..40)) {
        if let Ok(Some((frame, used))) = Frame::read(&bytes) {
            let mut again = Vec::new();
            frame.write(&mut again);
            prop_assert_eq!(&again[..], &bytes[..used]);
        }
    }
}

#[test]
fn every_lane_has_a_number_of_its_own() {
    let mut numbers: Vec<u8> = Lane::ALL.into_iter().map(Lane::number).collect();
    numbers.sort_unstable();
    assert_eq!(numbers, [0, 1, 2, 3, 4], "they are places in arrays too");
    assert!(Lane::ALL.is_sorted(), "urgent ones first");
}

#[test]
fn the_highest_common_version_is_spoken() {
    for (ours, theirs, common) in [
        ((1, 1), (1, 1), Some(1)),
        ((1, 2), (2, 3), Some(2)),
        ((1, 4), (2, 3), Some(3)),
        ((1, 2), (3, 4), None),
        ((3, 2), (1, 9), None),
        ((1, 1), (5, 0), None),
    ] {
        let of = |(min, max)| Versions { min, max };
        assert_eq!(of(ours).common(of(theirs)), common, "{ours:?} {theirs:?}");
        assert_eq!(of(theirs).common(of(ours)), common, "{theirs:?} {ours:?}");
    }
}

#[test]
fn a_long_reason_is_cut_between_characters() {
    let long = "ü".repeat(REASON_MAX);
    let short = shortened(&long);
    assert_eq!((short.len(), shortened("short")), (REASON_MAX, "short"));
    assert_eq!(shortened(&format!("x{long}")).len(), REASON_MAX - 1);
}
