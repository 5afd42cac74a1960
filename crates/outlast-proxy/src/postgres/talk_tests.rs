use proptest::prelude::*;

use super::*;

fn message(tag: u8, body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(body.len() + 4).unwrap();
    [&[tag], length.to_be_bytes().as_slice(), body].concat()
}

fn query(text: &str) -> Vec<u8> {
    message(b'Q', format!("{text}\0").as_bytes())
}

fn parse(name: &str, text: &str) -> Vec<u8> {
    message(b'P', format!("{name}\0{text}\0\0\0").as_bytes())
}

fn ready(status: u8) -> Vec<u8> {
    message(b'Z', &[status])
}

const SYNC: &[u8] = b"S\0\0\0\x04";
const EXECUTE: &[u8] = b"E\0\0\0\x09\0\0\0\0\0";

/// Plays a conversation: `>` client, `<` server, then whether it is at rest and bound.
fn check(steps: &[(char, Vec<u8>, bool, bool)]) {
    for chunk in [1, 2, 3, 7, usize::MAX] {
        let mut talk = Talk::new(Parameters::default());
        for (i, (side, bytes, rest, bound)) in steps.iter().enumerate() {
            for piece in bytes.chunks(chunk.min(bytes.len())) {
                match side {
                    '>' => talk.front(piece).unwrap(),
                    _ => assert_eq!(talk.back(piece), Ok(Heard::All)),
                }
            }
            assert_eq!(
                (talk.at_rest(), talk.bound().is_some()),
                (*rest, *bound),
                "step {i}, pieces of {chunk}"
            );
        }
    }
}

#[test]
fn a_session_rests_between_transactions() {
    check(&[
        ('>', query("SELECT 1"), false, false),
        ('<', message(b'T', b"x"), false, false),
        ('<', ready(b'I'), true, false),
        ('>', query("BEGIN"), false, false),
        ('<', ready(b'T'), false, false),
        ('>', query("COMMIT"), false, false),
        ('<', ready(b'I'), true, false),
        ('>', query("SET x = 1"), false, true),
        ('<', ready(b'I'), true, true),
    ]);
}

#[test]
fn every_request_of_a_pipeline_is_answered_before_it_rests() {
    let two =
        [parse("", "SELECT 1"), EXECUTE.to_vec(), SYNC.to_vec(), parse("", "x"), SYNC.to_vec()]
            .concat();
    check(&[
        ('>', two, false, false),
        ('<', ready(b'I'), false, false),
        ('<', message(b'E', b"SERROR\0C42601\0\0"), false, false),
        ('<', ready(b'I'), true, false),
        ('>', parse("", "SELECT 1"), false, false),
        ('>', SYNC.to_vec(), false, false),
        ('<', ready(b'I'), true, false),
        ('>', [query("SELECT 1"), query("SELECT 2")].concat(), false, false),
        ('<', ready(b'I'), false, false),
        ('<', ready(b'I'), true, false),
    ]);
}

#[test]
fn a_prepared_statement_binds_until_it_is_closed() {
    let close = message(b'C', b"Sone\0");
    check(&[
        ('>', [parse("one", "SELECT 1"), SYNC.to_vec()].concat(), false, true),
        ('<', ready(b'I'), true, true),
        ('>', [message(b'C', b"Pone\0"), SYNC.to_vec()].concat(), false, true),
        ('<', ready(b'I'), true, true),
        ('>', [close.clone(), SYNC.to_vec()].concat(), false, false),
        ('<', ready(b'I'), true, false),
        // An error before a Close skips it.
        ('>', [parse("", "bad"), close, SYNC.to_vec()].concat(), false, false),
        ('<', message(b'E', b"C42601\0\0"), false, true),
        ('<', ready(b'I'), true, true),
        ('>', query("DISCARD ALL"), false, true),
        ('<', message(b'C', b"DISCARD ALL\0"), false, false),
        ('<', ready(b'I'), true, false),
    ]);
}

#[test]
fn rows_that_are_copied_count_until_their_end() {
    check(&[
        ('>', query("COPY t FROM STDIN"), false, false),
        ('<', message(b'G', &[0, 0, 0]), false, false),
        ('>', [message(b'd', b"1\n"), SYNC.to_vec(), message(b'd', b"2\n")].concat(), false, false),
        ('>', message(b'c', b""), false, false),
        ('<', message(b'C', b"COPY 2\0"), false, false),
        ('<', ready(b'I'), true, false),
        // The Sync of the extended form is lost amid the rows.
        (
            '>',
            [parse("", "COPY t FROM STDIN"), EXECUTE.to_vec(), SYNC.to_vec()].concat(),
            false,
            false,
        ),
        ('<', message(b'G', &[0, 0, 0]), false, false),
        ('>', [message(b'd', b"1\n"), message(b'c', b""), SYNC.to_vec()].concat(), false, false),
        ('<', ready(b'I'), true, false),
    ]);
}

#[test]
fn a_server_that_leaves_a_resting_session_is_not_heard() {
    let mut talk = Talk::new(Parameters::default());
    let notice = message(b'N', b"hint\0\0");
    let farewell = message(b'E', b"SFATAL\0C57P01\0Mgo\0\0");
    assert_eq!(
        talk.back(&[notice.clone(), farewell.clone()].concat()),
        Ok(Heard::Leaves(notice.len()))
    );
    assert!(talk.at_rest(), "for the next server");
    let own = message(b'E', b"SFATAL\0C57P05\0Midle\0\0");
    assert_eq!(Talk::new(Parameters::default()).back(&own), Ok(Heard::All));
    let mut talk = Talk::new(Parameters::default());
    talk.front(&query("SELECT 1")).unwrap();
    assert_eq!(talk.back(&farewell), Ok(Heard::All), "its client has to know");
}

#[test]
fn lengths_that_cannot_be_are_refused() {
    for head in [b"Q\0\0\0\x03", b"Q\xff\xff\xff\xff"] {
        assert!(Talk::new(Parameters::default()).front(head).is_err());
        assert!(Talk::new(Parameters::default()).back(head).is_err());
    }
}

#[test]
fn what_the_client_knows_is_remembered() {
    let mut talk = Talk::new(Parameters::default());
    let status = message(b'S', b"TimeZone\0UTC\0");
    for piece in status.chunks(3) {
        talk.back(piece).unwrap();
    }
    assert_eq!(talk.known.value(b"TimeZone"), Some(b"UTC".as_slice()));
}

proptest! {
    #[test]
    fn it_does_not_matter_how_messages_arrive(
        said in proptest::collection::vec((any::<bool>(), "[QPSCBDEHFdcfXTZGWN]", "[a-cSPI\0; ]{0,12}"), 0..20),
        size in 1_usize..8,
    ) {
        let mut whole = Talk::new(Parameters::default());
        let mut pieces = whole.clone();
        for (front, tag, body) in said {
            let bytes = message(tag.as_bytes()[0], body.as_bytes());
            if front {
                whole.front(&bytes).unwrap();
                bytes.chunks(size).for_each(|piece| pieces.front(piece).unwrap());
            } else {
                // Whether a server leaves is seen from as much of its error as has come.
                if whole.at_rest() && tag == "E" {
                    continue;
                }
                prop_assert_eq!(whole.back(&bytes), Ok(Heard::All));
                bytes.chunks(size).for_each(|piece| assert_eq!(pieces.back(piece), Ok(Heard::All)));
            }
            prop_assert_eq!(format!("{:?}", (whole.at_rest(), whole.bound())), format!("{:?}", (pieces.at_rest(), pieces.bound())));
            prop_assert_eq!(whole.asked, pieces.asked);
        }
    }

    #[test]
    fn no_bytes_make_it_panic(bytes: Vec<u8>) {
        Talk::new(Parameters::default()).front(&bytes).ok();
        Talk::new(Parameters::default()).back(&bytes).ok();
    }
}
