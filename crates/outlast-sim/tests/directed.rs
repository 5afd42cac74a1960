//! Single histories, led by hand: what the rules are for, shown where they bite.

use outlast_raft::{Append, Body, Message, NodeId};
use outlast_sim::Stage;

/// A vote must not be granted while a leader is heard, not even in a term that the voter has learned of otherwise.
#[test]
fn a_vote_in_a_term_already_known_does_not_break_a_lease() {
    let mut stage = Stage::new(3, 0, None);
    stage.elect(1);
    stage.run(100);
    let term = stage.status(1).term;
    // Node 3 is away, and stands for election with a vote request that takes its time.
    stage.cut(1, 3);
    stage.let_tick(&[1, 3]);
    // Word of a later term reaches 2 in some way that is no vote: here the late answer to an old question.
    let refusal = Message {
        from: NodeId(3),
        to: NodeId(2),
        term: term + 1,
        body: Body::PreVoteReply { granted: false },
    };
    let last = stage.status(1).last;
    let vote = Message {
        from: NodeId(3),
        to: NodeId(2),
        term: term + 1,
        body: Body::Vote { last_index: last, last_term: term, transfer: false },
    };
    // What 2 says to 1 from now on is lost, so that 1 does not learn of it.
    stage.hold(|message| message.from == NodeId(2) && message.to == NodeId(1));
    stage.carry(refusal);
    stage.carry(vote);
    stage.hold(|message| message.from == NodeId(2));
    stage.run(5);
    let held = stage.drop_held();
    let granted = held.iter().any(|m| m.body == Body::VoteReply { granted: true });
    assert!(!granted, "2 has just answered 1, which may act for a while: {held:?}");
    assert_eq!(stage.leader(), Some(1));
}

fn is_append(message: &Message) -> bool {
    matches!(message.body, Body::Append(_) | Body::Snapshot(_))
}

/// A snapshot must not take the place of entries that follow it: some of them may be committed because this node has them.
#[test]
fn a_snapshot_does_not_take_away_what_was_acknowledged() {
    let mut stage = Stage::new(5, 0, None).without_tail();
    stage.elect(1);
    stage.run(100);
    // Entry 2 and 3 are committed by 1, 2 and 3; entry 4 reaches only 2, which never learns what is committed.
    for far in [4, 5] {
        stage.cut(1, far);
    }
    // 2 gets all of it before anything is committed; 3 gets entry 4 late, because too much is on the way to it.
    stage.hold(|m| matches!(&m.body, Body::Append(a) if m.to == NodeId(3) && a.prev_index == 3));
    for text in ["two", "three", "four"] {
        stage.propose(1, text).unwrap();
    }
    stage.run(2);
    stage.hold(|message| message.from == NodeId(1));
    // 3 learns bit by bit that the others are committed, and takes a snapshot in between.
    for commit in [2, 3] {
        let (prev_index, prev_term, round, entries) = (3, 1, 0, Vec::new());
        let append = Append { prev_index, prev_term, commit, round, entries };
        let (from, to, term) = (NodeId(1), NodeId(3), 1);
        stage.carry(Message { from, to, term, body: Body::Append(append) });
        stage.run(1);
        if commit == 2 {
            stage.compact(3);
        }
    }
    assert_eq!(stage.texts(1), ["two", "three"]);
    assert_eq!(stage.texts(3), ["two", "three"]);
    assert_eq!((stage.status(2).durable, stage.status(2).commit), (4, 1));
    stage.drop_held();
    stage.crash(1, 0);
    // 3 leads term 2, of which nobody learns but by its votes.
    stage.hold(is_append);
    stage.elect(3);
    stage.run(400);
    // In term 3 it finds out that 2 has something else at 4.
    stage.drop_held();
    stage.hold(|message| is_append(message) && message.to != NodeId(2));
    stage.elect(3);
    // With the rule, the second is never so: what the snapshot stands for is here already.
    stage.wait(30, |stage| stage.status(2).last == 5 || stage.status(2).snapshot == 2);
    stage.drop_held();
    stage.crash(3, 0);
    stage.elect(2);
    stage.run(100);
    assert_eq!(stage.violation, None);
    assert_eq!(stage.texts(2)[..2], ["two", "three"]);
}
