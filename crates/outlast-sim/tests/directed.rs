//! Single histories, led by hand: what the rules are for, shown where they bite.

use outlast_raft::{Append, Body, Bug, Change, Members, Message, NodeId, Refusal};
use outlast_sim::Stage;

/// A vote must not be granted while a leader is heard, not even in a term that the voter has learned of otherwise.
#[test]
fn a_vote_in_a_term_already_known_does_not_break_a_lease() {
    assert!(!votes_within_a_lease(None));
    assert!(votes_within_a_lease(Some(Bug::NoStickinessInTerm)));
}

fn votes_within_a_lease(bug: Option<Bug>) -> bool {
    let mut stage = Stage::new(3, 0, bug);
    stage.elect(1);
    stage.run(100);
    let term = stage.status(1).term;
    stage.cut(1, 3);
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
    // What 2 says from now on does not arrive, so that 1 does not learn of it.
    stage.hold(|message| message.from == NodeId(2));
    stage.carry(refusal);
    stage.carry(vote);
    stage.run(5);
    assert_eq!(stage.leader(), Some(1), "2 has just answered it");
    let said = stage.drop_held();
    said.iter().any(|message| message.body == Body::VoteReply { granted: true })
}

/// What a leader has given out for the rest of its lease is kept although it hands over, and the message is lost.
#[test]
fn a_leader_that_stepped_down_votes_for_nobody_before_its_lease_is_over() {
    let mut stage = Stage::new(3, 0, None);
    stage.elect(1);
    stage.run(100);
    stage.hold(|m| m.body == Body::TimeoutNow || m.from == NodeId(1));
    stage.transfer(1, 2).expect("it leads");
    stage.run(5);
    assert_eq!(stage.leader(), None, "it has stepped down");
    let (term, last) = (stage.status(1).term, stage.status(1).last);
    let body = Body::Vote { last_index: last, last_term: term, transfer: false };
    let vote = Message { from: NodeId(3), to: NodeId(1), term: term + 1, body };
    let granted = |stage: &mut Stage| {
        stage.hold(|m| m.from == NodeId(1));
        stage.carry(vote.clone());
        stage.run(5);
        stage.drop_held().iter().any(|m| m.body == Body::VoteReply { granted: true })
    };
    assert!(!granted(&mut stage), "its lease may be what somebody goes by");
    stage.let_tick(&[]);
    stage.run(400);
    assert!(granted(&mut stage), "it is over");
}

#[test]
fn a_leader_knows_whether_the_lead_was_handed_to_it() {
    let mut stage = Stage::new(3, 0, None);
    stage.elect(1);
    stage.run(100);
    stage.let_all_tick();
    assert!(!stage.status(1).handed);
    stage.transfer(1, 2).expect("it leads");
    assert!(stage.wait(1_000, |stage| stage.leader() == Some(2)));
    assert!(stage.status(2).handed && !stage.status(1).handed);
    stage.isolate(2);
    assert!(stage.wait(2_000, |stage| stage.leader().is_some_and(|leader| leader != 2)));
    let next = stage.leader().expect("waited for");
    assert!(!stage.status(next).handed);
}

fn is_append(message: &Message) -> bool {
    matches!(message.body, Body::Append(_) | Body::Snapshot(_))
}

/// A snapshot must not take the place of entries that follow it: some of them may be committed because this node has them.
#[test]
fn a_snapshot_does_not_take_away_what_was_acknowledged() {
    let kept = a_snapshot_comes_to_whoever_holds_more(None);
    assert_eq!(kept.violation, None);
    assert_eq!(kept.texts(2)[..2], ["two", "three"]);
    let lost = a_snapshot_comes_to_whoever_holds_more(Some(Bug::SnapshotTakesAll));
    let what = lost.violation.expect("the rule is what keeps it");
    assert!(what.starts_with("node 2 applies another entry at 3"), "{what}");
}

fn a_snapshot_comes_to_whoever_holds_more(bug: Option<Bug>) -> Stage {
    let mut stage = Stage::new(5, 0, bug).without_tail();
    stage.elect(1);
    stage.run(100);
    // Entry 2 and 3 are committed by 1, 2 and 3; entry 4 reaches only 2, which never learns what is committed.
    for far in [4, 5] {
        stage.cut(1, far);
    }
    // 2 gets all of it before anything is committed; 3 gets entry 4 late, because too much is on the way to it.
    stage.hold(|m| matches!(&m.body, Body::Append(a) if m.to == NodeId(3) && a.prev_index == 3));
    for text in ["two", "three", "four"] {
        stage.propose(1, text).expect("it leads");
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
    stage.run(600);
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
    stage
}

/// Whether some leader commits something new within two seconds.
fn serves(stage: &mut Stage) -> bool {
    let known = stage.ids().into_iter().filter(|&id| stage.lives(id));
    let known = known.map(|id| stage.status(id).commit).max().unwrap_or(0);
    let end = stage.now + 2_000_000_000;
    while stage.now < end {
        let Some(leader) = stage.leader() else {
            stage.run(10);
            continue;
        };
        if stage.propose(leader, "served").is_ok_and(|position| position.index > known)
            && stage.wait(200, |stage| stage.texts(leader).contains(&"served"))
        {
            return true;
        }
        stage.run(10);
    }
    false
}

/// Omni-Paxos calls it quorum loss: the old leader hears of nobody but the hub, and keeps the hub from voting.
#[test]
fn a_star_whose_leaf_led_goes_on_because_that_leaf_steps_down() {
    let after = |bug| {
        let mut stage = Stage::new(5, 0, bug);
        stage.elect(1);
        stage.let_all_tick();
        stage.run(200);
        stage.star(3);
        let served = serves(&mut stage);
        (served, stage)
    };
    let (served, stage) = after(None);
    assert!(served && stage.violation.is_none(), "{stage:?}");
    assert_eq!(stage.leader(), Some(3), "only the hub reaches a majority");
    let (_, stuck) = after(Some(Bug::NoQuorumGate));
    // It goes on believing, and the hub goes on believing it: nobody commits anything.
    let commits = [2, 3, 4, 5].map(|id| stuck.status(id).commit);
    assert_eq!((commits, stuck.status(3).leader), ([1; 4], Some(NodeId(1))), "{stuck:?}");
}

#[test]
fn three_nodes_with_any_one_link_cut_go_on_under_the_same_leader() {
    for (one, other) in [(1, 2), (1, 3), (2, 3)] {
        let mut stage = Stage::new(3, 0, None);
        stage.elect(1);
        stage.let_all_tick();
        stage.run(200);
        let term = stage.status(1).term;
        stage.cut(one, other);
        for _ in 0..10 {
            assert!(serves(&mut stage), "{one}-{other}: {stage:?}");
            stage.run(500);
        }
        assert_eq!(stage.violation, None);
        assert_eq!((stage.leader(), stage.status(1).term), (Some(1), term), "{stage:?}");
    }
}

#[test]
fn a_node_that_a_cut_link_keeps_from_the_leader_does_not_overthrow_it() {
    let leader = |bug| {
        let mut stage = Stage::new(3, 0, bug);
        stage.elect(1);
        stage.let_all_tick();
        stage.cut(1, 3);
        stage.run(10_000);
        (stage.status(2).term, stage.status(2).leader)
    };
    assert_eq!(leader(None), (1, Some(NodeId(1))));
    assert_eq!(leader(Some(Bug::NoStickiness)), (2, Some(NodeId(3))));
}

#[test]
fn a_cold_restart_of_all_nodes_with_torn_tails_loses_nothing_that_was_acknowledged() {
    for seed in 0..100 {
        let mut stage = Stage::new(3, 0, None);
        stage.elect(1);
        stage.run(50);
        let texts: Vec<String> = (0..20).map(|n| format!("entry {n}")).collect();
        for text in &texts {
            stage.propose(1, text).unwrap();
        }
        assert!(stage.wait(100, |stage| stage.texts(1).len() == 20));
        // These reach no disk whole.
        for id in 1..=3 {
            stage.hang_disk(id);
        }
        for n in 20..40 {
            stage.propose(1, &format!("entry {n}")).unwrap();
        }
        stage.run(10);
        for id in 1..=3 {
            stage.crash(id, seed * 3 + id);
        }
        for id in 1..=3 {
            stage.start(id);
        }
        stage.let_all_tick();
        assert!(serves(&mut stage), "{stage:?}");
        stage.run(200);
        assert_eq!(stage.violation, None, "seed {seed}");
        for id in 1..=3 {
            assert_eq!(stage.texts(id)[..20], texts, "seed {seed}, node {id}");
        }
    }
}

#[test]
fn the_lead_is_handed_over_without_waiting_for_an_election() {
    let mut stage = Stage::new(3, 0, None);
    stage.elect(1);
    stage.let_all_tick();
    stage.run(50);
    stage.propose(1, "before").unwrap();
    stage.run(50);
    stage.transfer(1, 2).unwrap();
    assert_eq!(stage.propose(1, "too late"), Err(Refusal::NotLeader { leader: None }));
    assert!(stage.wait(10, |stage| stage.leader() == Some(2)), "{stage:?}");
    assert_eq!(stage.texts(2), ["before"]);
    stage.run(1_000);
    assert_eq!((stage.leader(), stage.violation), (Some(2), None));
}

#[test]
fn a_leader_that_is_removed_sees_it_through_and_leaves_the_others_in_peace() {
    let mut stage = Stage::new(3, 0, None);
    stage.elect(1);
    stage.let_all_tick();
    stage.run(50);
    stage.change(1, Change::Remove(NodeId(1))).unwrap();
    assert!(stage.wait(1_000, |stage| matches!(stage.leader(), Some(2 | 3))), "{stage:?}");
    let leader = stage.leader().unwrap();
    let term = stage.status(leader).term;
    assert_eq!(stage.status(leader).members, Members::voters(2..=3));
    stage.run(5_000);
    assert_eq!((stage.leader(), stage.status(leader).term), (Some(leader), term));
    assert_eq!(stage.violation, None);
}

#[test]
fn a_learner_gets_a_snapshot_in_pieces_and_then_votes() {
    let mut stage = Stage::new(3, 1, None).without_tail();
    stage.elect(1);
    stage.let_all_tick();
    stage.run(50);
    for n in 0..50 {
        stage.propose(1, &format!("entry {n}")).unwrap();
    }
    stage.run(50);
    stage.compact(1);
    assert_eq!(stage.change(1, Change::Promote(NodeId(4))), Err(Refusal::NoChange));
    stage.change(1, Change::AddLearner(NodeId(4))).unwrap();
    stage.run(2);
    assert_eq!(stage.change(1, Change::Promote(NodeId(4))), Err(Refusal::Behind));
    assert!(stage.wait(500, |stage| stage.status(4).commit == stage.status(1).commit));
    assert!(stage.status(4).snapshot > 0);
    stage.change(1, Change::Promote(NodeId(4))).unwrap();
    stage.run(100);
    assert_eq!(stage.status(4).members, Members::voters(1..=4));
    // Three of four are needed now, and it counts.
    stage.crash(2, 0);
    assert!(serves(&mut stage), "{stage:?}");
    assert_eq!(stage.violation, None);
}

/// Each answer that came twice once began a conversation of its own, so that their number doubled with each piece.
#[test]
fn a_snapshot_over_a_network_that_doubles_everything_is_not_sent_a_thousand_times() {
    let mut stage = Stage::new(3, 1, None).without_tail();
    stage.elect(1);
    stage.let_all_tick();
    stage.run(50);
    for n in 0..50 {
        stage.propose(1, &format!("entry {n}")).unwrap();
    }
    stage.run(50);
    stage.compact(1);
    stage.doubles = true;
    let before = stage.spoken[&1];
    stage.change(1, Change::AddLearner(NodeId(4))).unwrap();
    assert!(stage.wait(500, |stage| stage.status(4).commit == stage.status(1).commit));
    let spoken = stage.spoken[&1] - before;
    assert!(spoken < 100, "{spoken}");
}

/// Each newer snapshot once began the sending anew, so that who was slower than that never had one.
#[test]
fn a_slow_member_gets_to_the_end_of_a_snapshot_though_its_leader_takes_newer_ones() {
    let mut stage = Stage::new(3, 1, None).without_tail();
    stage.elect(1);
    stage.let_all_tick();
    stage.run(50);
    for n in 0..50 {
        stage.propose(1, &format!("entry {n}")).unwrap();
    }
    stage.run(50);
    stage.compact(1);
    stage.change(1, Change::AddLearner(NodeId(4))).unwrap();
    for n in 0..100 {
        stage.run(5);
        stage.propose(1, &format!("late entry {n}")).unwrap();
        stage.run(5);
        stage.compact(1);
    }
    assert!(stage.status(4).snapshot > 0, "{stage:?}");
    assert!(stage.wait(500, |stage| stage.status(4).commit == stage.status(1).commit));
    assert_eq!(stage.violation, None);
}

const KIBIBYTE: usize = 1 << 10;

/// Proposes a kibibyte again and again, and lets so many milliseconds go by after each; how often it was taken.
fn fill(stage: &mut Stage, pause: u64) -> u64 {
    let text = "x".repeat(KIBIBYTE);
    for taken in 0..200 {
        match stage.propose(1, &text) {
            Ok(_) => stage.run(pause),
            Err(refusal) => {
                assert_eq!(refusal, Refusal::Busy);
                return taken;
            }
        }
    }
    panic!("there is no end to it");
}

#[test]
fn a_leader_takes_no_more_than_it_can_hold_while_nobody_commits_it() {
    let mut stage = Stage::new(3, 0, None).with_room(64 * KIBIBYTE);
    stage.elect(1);
    stage.run(50);
    stage.isolate(1);
    // All within its lease.
    assert!((64..=66).contains(&fill(&mut stage, 0)));
}

#[test]
fn a_leader_takes_no_more_than_it_can_hold_while_its_own_disk_is_behind() {
    let mut stage = Stage::new(3, 0, None).with_room(64 * KIBIBYTE);
    stage.elect(1);
    stage.let_all_tick();
    stage.run(50);
    stage.hang_disk(1);
    assert!((63..=66).contains(&fill(&mut stage, 4)));
    let (commit, last) = (stage.status(1).commit, stage.status(1).last);
    assert!(last <= commit + 2, "the others commit it: {stage:?}");
    // It can still be asked, and let another one lead.
    stage.read(1, 7).unwrap();
    stage.transfer(1, 2).unwrap();
    assert!(stage.wait(100, |stage| stage.leader() == Some(2)), "{stage:?}");
    assert_eq!(stage.violation, None);
}

/// The log cannot know that a voter has lost its disk: whoever starts a node must refuse to do it under its old id.
#[test]
fn a_voter_with_an_empty_disk_under_its_old_id_loses_what_was_acknowledged() {
    let mut stage = Stage::new(3, 0, None);
    stage.elect(1);
    stage.run(50);
    stage.isolate(3);
    stage.propose(1, "acknowledged").unwrap();
    assert!(stage.wait(50, |stage| stage.texts(1) == ["acknowledged"]));
    stage.crash(1, 0);
    stage.crash(2, 0);
    stage.wipe(2, 3);
    stage.heal();
    stage.start(2);
    stage.elect(3);
    stage.run(200);
    let what = stage.violation.expect("nothing in the log shows it");
    assert!(what.contains("applies another entry at 2"), "{what}");
}

#[test]
fn a_follower_whose_disk_lost_what_it_acknowledged_is_not_talked_to_without_end() {
    let mut stage = Stage::new(3, 0, None);
    stage.elect(1);
    stage.run(50);
    let old = stage.disk(2);
    for n in 0..50 {
        stage.propose(1, &format!("entry {n}")).unwrap();
    }
    stage.run(100);
    stage.crash(2, 0);
    stage.swap_disk(2, old);
    stage.start(2);
    let before = stage.spoken[&1];
    stage.run(1_000);
    // Ten beats to each of two, and a question more to the one that answers strangely.
    let spoken = stage.spoken[&1] - before;
    assert!(spoken <= 40, "{spoken}");
    assert!(serves(&mut stage));
    assert_eq!(stage.violation, None);
}
