//! What the leader does for all: ends what has run out, makes the members those that are registered, and hands the lead on
//! if it is a witness.

use std::sync::Arc;
use std::time::Duration;

use outlast_consensus::{Agreement, Change, Members, NodeId, Role};
use outlast_core::agreed::{ClientId, Command, Entry, NodeRole, Registry};
use tokio::time::Instant;

use super::thread::Hub;
use super::topology::Judge;
use crate::agent::shared::wall;

/// How often a leader looks whether there is something to do.
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// How long one duty may take before it is tried again.
const DUTY_MAX: Duration = Duration::from_secs(1);

/// How often a witness that leads tries to hand the lead on.
const WITNESS_EVERY: Duration = Duration::from_secs(2);

/// Never ends.
pub(super) async fn look_after(hub: Arc<Hub>) {
    let mut judge = Judge::default();
    let mut witnessed = Instant::now();
    loop {
        leads(&hub).await;
        tokio::time::sleep(LOOK_EVERY).await;
        let Some(consensus) = hub.consensus().filter(|consensus| consensus.may_act()) else {
            judge.rest();
            continue;
        };
        let judged = hub.replica.read(|agreed| judge.look(agreed, Instant::now()));
        for command in hub.replica.over().into_iter().chain(judged.map(Command::Topology)) {
            let entry = Entry { origin: ClientId::NOBODY, sequence: 0, wall: wall(), command };
            // A renewal that came meanwhile makes it fail, as it should.
            hub.propose(&entry, Instant::now() + DUTY_MAX).await.ok();
        }
        change_members(&hub, consensus).await;
        if witnessed.elapsed() >= WITNESS_EVERY {
            witnessed = Instant::now();
            hand_on_as_witness(&hub, consensus).await;
        }
    }
}

/// A witness leads only while no voter can.
async fn hand_on_as_witness(hub: &Hub, consensus: &dyn Agreement) {
    let own = consensus.standing().borrow().id;
    let next = hub.replica.read(|agreed| {
        let nodes = agreed.registry().nodes();
        let witness = nodes.get(&own.0).is_some_and(|node| node.role == NodeRole::Witness);
        let peers = hub.links().peers();
        let linked = |name: &str| peers.get(name).is_some_and(|peer| peer.connection.is_some());
        let mut voters = nodes.iter().filter(|(_, node)| node.role == NodeRole::Voter);
        voters.find(|(_, node)| witness && linked(&node.name)).map(|(id, _)| NodeId(*id))
    });
    if let Some(next) = next
        && let Err(refusal) = consensus.transfer(next).await
    {
        tracing::debug!(?next, ?refusal, "hand the lead on a little later");
    }
}

/// Waits until this node leads; nobody else has to look.
async fn leads(hub: &Hub) {
    let Some(consensus) = hub.consensus() else { return };
    let mut standing = consensus.standing();
    if standing.wait_for(|now| now.role == Role::Leader).await.is_err() {
        // It takes no part any more.
        std::future::pending::<()>().await;
    }
}

/// One change at a time; the next look makes the next one.
async fn change_members(hub: &Hub, consensus: &dyn Agreement) {
    let (role, own, members) = {
        let standing = consensus.standing();
        let now = standing.borrow();
        (now.role, now.id, now.members.clone())
    };
    if role != Role::Leader {
        return;
    }
    let differences = hub.replica.read(|agreed| differences(agreed.registry(), &members));
    if differences.is_empty() {
        return;
    }
    let (names, peers) = (hub.replica.names(), hub.links().peers());
    let lives = |id: NodeId| {
        let peer = names.get(&id.0).and_then(|name| peers.get(name));
        id == own || peer.is_some_and(|peer| peer.connection.is_some())
    };
    for change in differences {
        if !survives(change, &members, lives) {
            tracing::warn!(?change, "wait with it: without this voter no majority would be there");
            continue;
        }
        match consensus.change(change).await {
            Ok(_) => return,
            // A learner that lacks entries holds up nobody else.
            Err(refusal) => {
                tracing::debug!(?change, ?refusal, "change the members a little later");
            }
        }
    }
}

/// Whether a majority of the voters that the change leaves can be spoken to: else it would be the last change.
fn survives(change: Change, members: &Members, lives: impl Fn(NodeId) -> bool) -> bool {
    let mut voters = members.voters.clone();
    match change {
        Change::AddLearner(_) => return true,
        Change::Promote(id) => {
            voters.insert(id);
        }
        Change::Demote(id) | Change::Remove(id) => {
            // A learner that goes changes nothing for the voters.
            if !voters.remove(&id) {
                return true;
            }
        }
    }
    let alive = voters.iter().filter(|&&id| lives(id)).count();
    voters.len() / 2 < alive
}

/// What is to change, in this order, so that the members are those that are registered.
fn differences(registry: &Registry, members: &Members) -> Vec<Change> {
    let nodes = registry.nodes();
    // Without a registry there is nothing to be guided by.
    if nodes.is_empty() {
        return Vec::new();
    }
    let ids = || nodes.iter().map(|(&id, node)| (NodeId(id), node.role.votes()));
    let come = ids().filter(|(id, _)| !members.contains(*id));
    let rise = ids().filter(|(id, votes)| *votes && members.learners.contains(id));
    let fall = ids().filter(|(id, votes)| !votes && members.voters.contains(id));
    let leave = members.all().filter(|id| !nodes.contains_key(&id.0));
    // Who comes is counted before who goes.
    come.map(|(id, _)| Change::AddLearner(id))
        .chain(rise.map(|(id, _)| Change::Promote(id)))
        .chain(fall.map(|(id, _)| Change::Demote(id)))
        .chain(leave.map(Change::Remove))
        .collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::cluster::found::Founding;

    #[test]
    fn a_cluster_as_it_was_founded_needs_no_change() {
        let text = "[cluster]\nname = \"x\"\n[consensus]\nvoters = [\"a\", \"b\"]\n\
                    [node.a]\naddress = \"127.0.0.1\"\n[node.b]\naddress = \"127.0.0.2\"\n\
                    [node.c]\naddress = \"127.0.0.3\"\n";
        let topology = crate::file::parse("x", text).unwrap();
        let (snapshot, ids) = Founding::of(&topology).begin(&BTreeMap::from([("a".to_owned(), 7)]));
        assert_eq!(ids.len(), 3);
        let agreed = outlast_core::agreed::Agreed::restore(&snapshot.data).unwrap();
        assert_eq!(differences(agreed.registry(), &snapshot.members), []);
        let mut fewer = snapshot.members;
        let lost = fewer.learners.pop_first().unwrap();
        assert_eq!(differences(agreed.registry(), &fewer), [Change::AddLearner(lost)]);
    }

    #[test]
    fn nobody_is_taken_out_whom_a_majority_needs() {
        let three = Members::voters([1, 2, 3]);
        let without = |dead: u64| move |id: NodeId| id.0 != dead;
        assert!(!survives(Change::Remove(NodeId(3)), &three, without(2)));
        assert!(survives(Change::Remove(NodeId(2)), &three, without(2)));
        assert!(!survives(Change::Demote(NodeId(1)), &three, without(2)));
        assert!(survives(Change::Promote(NodeId(4)), &three, without(2)));
    }
}
