//! What is sent and stored is read back as it was, in one form only, and never from a part of it.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::fmt::Debug;

use outlast_core::codec::Code;
use proptest::prelude::*;

use crate::{
    Append, AppendReply, Body, Entry, HardState, Members, Message, NodeId, Payload, Snapshot,
    SnapshotChunk, wal,
};

fn number() -> impl Strategy<Value = u64> {
    prop_oneof![0..200_u64, Just(u64::MAX), any::<u64>()]
}

/// A term or an index as they may come from others.
fn count() -> impl Strategy<Value = u64> {
    prop_oneof![0..200_u64, Just(1 << 62), 0..1_u64 << 62]
}

fn node() -> impl Strategy<Value = NodeId> {
    number().prop_map(NodeId)
}

fn bytes() -> impl Strategy<Value = Arc<[u8]>> {
    proptest::collection::vec(any::<u8>(), 0..200).prop_map(Arc::from)
}

fn members() -> impl Strategy<Value = Members> {
    let ids = || proptest::collection::btree_set(node(), 0..6);
    (ids(), ids()).prop_map(|(voters, learners)| Members { voters, learners })
}

fn payload() -> impl Strategy<Value = Payload> {
    prop_oneof![
        Just(Payload::Blank),
        bytes().prop_map(Payload::Command),
        members().prop_map(Payload::Members),
    ]
}

fn entry() -> impl Strategy<Value = Entry> {
    (number(), number(), payload()).prop_map(|(index, term, payload)| Entry {
        index,
        term,
        payload,
    })
}

fn append() -> impl Strategy<Value = Append> {
    let steps = proptest::collection::vec((0..3_u64, payload()), 0..5);
    (0..1_u64 << 40, 0..1_u64 << 40, number(), number(), steps).prop_map(
        |(prev_index, prev_term, commit, round, steps)| {
            let mut before = (prev_index, prev_term);
            let follow = |(rise, payload)| {
                before = (before.0 + 1, before.1 + rise);
                Entry { index: before.0, term: before.1, payload }
            };
            let entries = steps.into_iter().map(follow).collect();
            Append { prev_index, prev_term, commit, round, entries }
        },
    )
}

fn chunk() -> impl Strategy<Value = SnapshotChunk> {
    (count(), count(), members(), number(), number(), number(), bytes()).prop_map(
        |(index, term, members, offset, length, round, bytes)| SnapshotChunk {
            index,
            term,
            members,
            offset,
            length,
            round,
            bytes,
        },
    )
}

fn body() -> impl Strategy<Value = Body> {
    let ends = || (number(), number());
    prop_oneof![
        ends().prop_map(|(last_index, last_term)| Body::PreVote { last_index, last_term }),
        any::<bool>().prop_map(|granted| Body::PreVoteReply { granted }),
        (ends(), any::<bool>()).prop_map(|((last_index, last_term), transfer)| Body::Vote {
            last_index,
            last_term,
            transfer
        }),
        any::<bool>().prop_map(|granted| Body::VoteReply { granted }),
        append().prop_map(Body::Append),
        ends().prop_map(|(round, durable)| Body::AppendReply {
            round,
            reply: AppendReply::Accepted { durable }
        }),
        (number(), ends()).prop_map(|(round, (prev, hint))| Body::AppendReply {
            round,
            reply: AppendReply::Rejected { prev, hint }
        }),
        chunk().prop_map(Body::Snapshot),
        (number(), ends()).prop_map(|(index, (have, round))| Body::SnapshotReply {
            index,
            have,
            round
        }),
        Just(Body::TimeoutNow),
    ]
}

fn message() -> impl Strategy<Value = Message> {
    (node(), node(), count(), body()).prop_map(|(from, to, term, body)| Message {
        from,
        to,
        term,
        body,
    })
}

fn snapshot() -> impl Strategy<Value = Snapshot> {
    (number(), number(), members(), bytes()).prop_map(|(index, term, members, data)| Snapshot {
        index,
        term,
        members,
        data,
    })
}

#[test]
fn terms_and_indices_beyond_all_reason_are_refused() {
    let message =
        Message { from: NodeId(1), to: NodeId(2), term: u64::MAX, body: Body::TimeoutNow };
    assert!(Message::from_bytes(&message.to_bytes()).is_err());
}

fn check<T: Code + PartialEq + Debug>(value: &T) {
    let bytes = value.to_bytes();
    assert_eq!(T::from_bytes(&bytes).as_ref(), Ok(value));
    for cut in 0..bytes.len() {
        assert!(T::from_bytes(&bytes[..cut]).is_err(), "{value:?} from {cut} bytes");
    }
}

/// Whatever can be read is written back the same.
fn check_form<T: Code>(bytes: &[u8]) {
    if let Ok(value) = T::from_bytes(bytes) {
        assert_eq!(value.to_bytes(), bytes);
    }
}

proptest! {
    #[test]
    fn a_message_is_read_as_it_was_written(message in message()) {
        check(&message);
    }

    #[test]
    fn an_entry_is_read_as_it_was_written(entry in entry()) {
        check(&entry);
    }

    #[test]
    fn term_and_vote_are_read_as_they_were_written(term in number(), voted in proptest::option::of(node())) {
        check(&HardState { term, voted_for: voted });
    }

    #[test]
    fn a_snapshot_is_read_as_it_was_written_and_not_if_a_bit_is_wrong(
        snapshot in snapshot(),
        flip in any::<prop::sample::Index>(),
        bit in 0..8_u8,
    ) {
        check(&snapshot);
        let mut file = wal::encode_snapshot(&snapshot);
        prop_assert_eq!(wal::decode_snapshot(&file), Ok(snapshot));
        for cut in 0..file.len() {
            prop_assert!(wal::decode_snapshot(&file[..cut]).is_err());
        }
        let at = flip.index(file.len());
        file[at] ^= 1_u8 << bit;
        prop_assert!(wal::decode_snapshot(&file).is_err());
    }

    #[test]
    fn any_bytes_give_a_value_in_its_only_form_or_none(bytes in proptest::collection::vec(any::<u8>(), 0..100)) {
        check_form::<Message>(&bytes);
        check_form::<Entry>(&bytes);
        check_form::<Snapshot>(&bytes);
    }

    #[test]
    fn a_message_with_a_wrong_byte_is_refused_or_another_message(
        message in message(),
        at in any::<prop::sample::Index>(),
        byte in any::<u8>(),
    ) {
        let mut bytes: Vec<u8> = message.to_bytes();
        let at = at.index(bytes.len());
        bytes[at] = byte;
        check_form::<Message>(&bytes);
    }
}
