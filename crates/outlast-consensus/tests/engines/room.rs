//! What waits, and what is kept before a snapshot, is bounded in bytes.

use std::sync::Arc;

use outlast_consensus::ProposeError;

use crate::harness::{Nodes, now, texts, until};

const MEBIBYTE: usize = 1 << 20;

#[test]
fn a_snapshot_takes_the_place_of_so_many_bytes_and_gives_everything_back() {
    let mut nodes = Nodes::found("snapshots", 1);
    nodes.snapshot_after_bytes = Some(1_000);
    nodes.start(1);
    let all = texts(0..200);
    for text in &all {
        nodes.propose(text);
    }
    until("there is a snapshot", || nodes.standing(1).snapshot > 0);
    nodes.stop(1);
    nodes.start(1);
    nodes.all_say(&all);
}

/// The state may be big, and to write it down may take longer than a heartbeat may be late.
#[test]
fn a_node_goes_on_while_a_snapshot_is_written_down() {
    let mut nodes = Nodes::found("slow-snapshot", 1);
    nodes.snapshot_after_bytes = Some(1_000);
    nodes.start(1);
    let gate = nodes.tapes[&1].gate.clone();
    let shut = gate.lock().unwrap();
    for text in texts(0..200) {
        nodes.propose(&text);
    }
    assert_eq!(nodes.standing(1).snapshot, 0);
    drop(shut);
    until("there is a snapshot", || nodes.standing(1).snapshot > 0);
}

#[test]
fn what_waits_for_a_node_that_is_held_up_is_bounded_in_bytes() {
    let mut nodes = Nodes::found("inbox", 1);
    nodes.start(1);
    nodes.propose("entry 0");
    let node = nodes.node(nodes.leader());
    let tape = nodes.tapes[&1].said.clone();
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    // It stands still with the first of these.
    let standing_still = tape.lock().unwrap();
    let (refused, under_way) = runtime.block_on(async {
        let mut under_way = tokio::task::JoinSet::new();
        for turn in 0..200 {
            let node = node.clone();
            under_way.spawn(async move { node.propose(vec![0; MEBIBYTE]).await });
            // Each is asked once, and answers at once if there is no room.
            tokio::task::yield_now().await;
            if let Some(answer) = under_way.try_join_next() {
                assert_eq!(answer.unwrap(), Err(ProposeError::Busy));
                return (Some(turn), under_way);
            }
        }
        (None, under_way)
    });
    // What was taken out before it stood still makes room.
    let refused = refused.expect("there is an end to it");
    assert!((32..=100).contains(&refused), "{refused}");
    drop(standing_still);
    // Nothing of it is lost: what is taken takes effect, and what is beyond a later limit is told so. There is room again.
    let answers = runtime.block_on(under_way.join_all());
    let told = |answer: &Result<_, _>| matches!(answer, Ok(_) | Err(ProposeError::Busy));
    assert!(answers.iter().all(told), "{answers:?}");
    assert!(answers.iter().any(Result::is_ok));
    assert!(now(node.propose(b"more".to_vec())).is_ok());
    drop::<Arc<_>>(node);
}
