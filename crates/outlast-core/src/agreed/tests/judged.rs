//! What whoever leads makes of a proposal: a table of votes and times.

use std::borrow::ToOwned as _;
use std::format;
use std::time::Duration;
use std::vec::Vec;

use expect_test::{Expect, expect};

use super::script::propose;
use crate::agreed::*;

/// Three nodes and their votes on one proposal, open for so long, with the first no so long ago (all in ms).
#[track_caller]
fn check(votes: [Option<Result<(), &str>>; 3], open_for: u64, no_for: Option<u64>, expect: Expect) {
    let mut agreed = Agreed::default();
    let mut index = 0;
    let mut apply = |agreed: &mut Agreed, command| {
        index += 1;
        let (origin, sequence) = match index {
            1 => (ClientId::NOBODY, 0),
            _ => (ClientId(1), index - 1),
        };
        let entry = Entry { origin, sequence, wall: Default::default(), command };
        (index, agreed.apply(index, &entry))
    };
    apply(&mut agreed, Command::Introduce);
    let mut ids = Vec::new();
    for name in ["a", "b", "c"] {
        let (name, address, role) = (name.to_owned(), "x".to_owned(), NodeRole::Voter);
        let join = NodeCommand::Join { name, role, address, replaces: None };
        ids.push(apply(&mut agreed, Command::Node(join)).0);
    }
    apply(&mut agreed, Command::Topology(propose("text".to_owned(), 0)));
    for (node, vote) in ids.into_iter().zip(votes) {
        let Some(vote) = vote else { continue };
        let (ok, reason) = (vote.is_ok(), vote.err().unwrap_or_default().to_owned());
        let vote = TopologyCommand::Vote { version: 1, node, ok, reason };
        assert_eq!(apply(&mut agreed, Command::Topology(vote)).1, Reply::Done);
    }
    let proposal = agreed.topology().proposal().unwrap();
    let (open_for, no_for) = (Duration::from_millis(open_for), no_for.map(Duration::from_millis));
    let verdict = match proposal.judge(agreed.registry(), open_for, no_for) {
        Verdict::Wait => "wait".to_owned(),
        Verdict::Commit => "commit".to_owned(),
        Verdict::Abort { reason } => format!("abort: {reason}"),
    };
    expect.assert_eq(&verdict);
}

#[test]
fn everybody_has_to_say_yes_in_time() {
    let (yes, no) = (Some(Ok(())), Some(Err("the port is taken")));
    check([yes, yes, yes], 0, None, expect!["commit"]);
    check([yes, yes, yes], 60_000, None, expect!["commit"]);
    check([None, None, None], 9_999, None, expect!["wait"]);
    check([yes, yes, None], 9_999, None, expect!["wait"]);
    check([yes, yes, None], 10_000, None, expect!["abort: no answer from c within 10s"]);
    check([None, yes, None], 10_000, None, expect!["abort: no answer from a, c within 10s"]);
    // Who says no early waits a moment for the reasons of the others.
    check([yes, no, None], 20, Some(0), expect!["wait"]);
    check(
        [yes, no, None],
        1_020,
        Some(1_000),
        expect!["abort: b: the port is taken; no answer from c yet"],
    );
    check([yes, no, no], 20, Some(0), expect!["abort: b: the port is taken; c: the port is taken"]);
}
