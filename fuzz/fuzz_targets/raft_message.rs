//! What nodes say to each other so that they agree: what is read is written back the same, and a node hears it out.
#![no_main]

use core::time::Duration;

use libfuzzer_sys::fuzz_target;
use outlast_core::codec::{Code, Reader};
use outlast_core::time::Instant;
use outlast_raft::{
    Body, Config, Entry, Input, Members, Message, Node, NodeId, Saved, Snapshot, wal,
};

/// Terms and indices that are not near the end of all numbers: a member that lies about them may stop another.
const NEAR: u64 = 1 << 40;

fn is_near(message: &Message) -> bool {
    let (index, term) = match &message.body {
        Body::PreVote { last_index, last_term } | Body::Vote { last_index, last_term, .. } => {
            (*last_index, *last_term)
        }
        Body::Append(append) => (append.prev_index, append.prev_term),
        Body::Snapshot(chunk) => (chunk.index, chunk.term),
        Body::PreVoteReply { .. }
        | Body::VoteReply { .. }
        | Body::AppendReply { .. }
        | Body::SnapshotReply { .. }
        | Body::TimeoutNow => (0, 0),
    };
    message.term < NEAR && index < NEAR && term < NEAR
}

fuzz_target!(|bytes: &[u8]| {
    let _ = wal::decode_snapshot(bytes);
    for kind in [
        Entry::from_bytes(bytes).map(|v| v.to_bytes()),
        Snapshot::from_bytes(bytes).map(|v| v.to_bytes()),
    ] {
        if let Ok(again) = kind {
            assert_eq!(again, bytes, "one value, one form");
        }
    }
    let mut reader = Reader::new(bytes);
    let id = NodeId(1);
    let mut node =
        Node::start(Config::new(id, 7), Saved::begin(Members::voters(1..=3)), Instant::default());
    let mut out = Vec::new();
    let mut now = Instant::default();
    while let Ok(message) = Message::decode(&mut reader) {
        assert_eq!(Message::from_bytes(&message.to_bytes()), Ok(message.clone()));
        now = now + Duration::from_millis(20);
        // Members are believed; what they would never say together is not what this is about.
        let replaces =
            matches!(&message.body, Body::Append(a) if !a.entries.is_empty() || a.commit > 0);
        if is_near(&message) && !replaces {
            node.step(now, Input::Message(Message { to: id, ..message }), &mut out);
            node.step(now, Input::Tick, &mut out);
        }
    }
});
