//! What is agreed on is agreed on everywhere, and stays; members come, lead and go.

use outlast_consensus::{Change, Members, NodeId, ProposeError, Refusal, Role};
use outlast_core::codec::Code as _;

use crate::harness::{Nodes, now, texts, until};

#[test]
fn what_is_proposed_is_applied_on_all_nodes_in_one_order_and_read_as_newest() {
    let nodes = Nodes::start_all("propose", 3);
    let mut last = 0;
    for (text, count) in texts(0..20).iter().zip(1_u64..) {
        let applied = nodes.propose(text);
        assert_eq!(applied.reply, count.to_bytes());
        assert!(last < applied.index, "indices fence");
        last = applied.index;
    }
    let leader = nodes.leader();
    assert!(last <= now(nodes.node(leader).read()).unwrap());
    nodes.all_say(&texts(0..20));
    for other in nodes.ids().into_iter().filter(|&id| id != leader) {
        let node = nodes.node(other);
        let refused = Err(ProposeError::NotLeader(Some(NodeId(leader))));
        assert_eq!(now(node.propose(b"elsewhere".to_vec())).map(|_| ()), refused);
        assert_eq!(now(node.read()).map(|_| ()), refused);
    }
}

#[test]
fn a_restart_of_one_node_and_then_of_all_loses_nothing() {
    let mut nodes = Nodes::start_all("restart", 3);
    for text in texts(0..10) {
        nodes.propose(&text);
    }
    let leader = nodes.leader();
    nodes.stop(leader);
    for text in texts(10..20) {
        nodes.propose(&text);
    }
    nodes.start(leader);
    nodes.all_say(&texts(0..20));
    for id in 1..=3 {
        nodes.stop(id);
    }
    for id in 1..=3 {
        nodes.start(id);
    }
    nodes.propose("entry 20");
    nodes.all_say(&texts(0..21));
}

#[test]
fn the_lead_is_handed_over_at_once() {
    let nodes = Nodes::start_all("transfer", 3);
    nodes.propose("entry 0");
    let leader = nodes.leader();
    let next = nodes.ids().into_iter().find(|&id| id != leader).unwrap();
    let term = nodes.standing(leader).term;
    assert_eq!(now(nodes.node(leader).transfer(NodeId(leader))), Err(Refusal::NoChange));
    now(nodes.node(leader).transfer(NodeId(next))).unwrap();
    // Only once it has everything: until then the old one leads and takes nothing new.
    until("the other one leads", || nodes.standing(next).role == Role::Leader);
    assert_eq!(nodes.standing(next).term, term + 1, "it was the only one to stand");
    assert!(!nodes.node(leader).may_act());
    nodes.propose("entry 1");
    nodes.all_say(&texts(0..2));
}

#[test]
fn a_node_joins_votes_and_another_one_leaves() {
    let mut nodes = Nodes::start_all("members", 3);
    for text in texts(0..10) {
        nodes.propose(&text);
    }
    nodes.create(4, Members::default());
    nodes.start(4);
    let change = |nodes: &Nodes, change: Change| {
        until("the change is begun", || now(nodes.node(nodes.leader()).change(change)).is_ok());
    };
    change(&nodes, Change::AddLearner(NodeId(4)));
    nodes.all_say(&texts(0..10));
    // Refused until its log is near the leader's.
    change(&nodes, Change::Promote(NodeId(4)));
    let leaves = (1..=3).find(|&id| id != nodes.leader()).unwrap();
    change(&nodes, Change::Remove(NodeId(leaves)));
    let rest = Members::voters((1..=4).filter(|&id| id != leaves));
    until("all know it", || {
        nodes.ids().iter().filter(|&&id| id != leaves).all(|&id| nodes.standing(id).members == rest)
    });
    nodes.stop(leaves);
    // Two of three are a majority, one of them the new one.
    let stops = rest.voters.iter().find(|id| id.0 != 4 && id.0 != nodes.leader()).unwrap().0;
    nodes.stop(stops);
    nodes.propose("entry 10");
    nodes.all_say(&texts(0..11));
}
