//! What the leader does for all: ends what has run out, and makes the members those that are registered.

use std::sync::Arc;
use std::time::Duration;

use outlast_consensus::{Change, Consensus, Members, NodeId, Role};
use outlast_core::agreed::{ClientId, Entry, Registry};
use tokio::time::Instant;

use super::thread::Hub;
use crate::agent::shared::wall;

/// How often it looks whether there is something to do.
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// How long one duty may take before it is tried again.
const DUTY_MAX: Duration = Duration::from_secs(1);

/// Never ends.
pub(super) async fn look_after(hub: Arc<Hub>) {
    loop {
        tokio::time::sleep(LOOK_EVERY).await;
        let Some(consensus) = hub.consensus().filter(|consensus| consensus.may_act()) else {
            continue;
        };
        for command in hub.replica.over() {
            let entry = Entry { origin: ClientId::NOBODY, sequence: 0, wall: wall(), command };
            // A renewal that came meanwhile makes it fail, as it should.
            hub.propose(&entry, Instant::now() + DUTY_MAX).await.ok();
        }
        change_members(&hub, consensus).await;
    }
}

/// One change at a time; the next look makes the next one.
async fn change_members(hub: &Hub, consensus: &Consensus) {
    let (role, members) = {
        let standing = consensus.standing();
        let now = standing.borrow();
        (now.role, now.members.clone())
    };
    let change = hub.replica.read(|agreed| difference(agreed.registry(), &members));
    if role == Role::Leader
        && let Some(change) = change
        && let Err(refusal) = consensus.change(change).await
    {
        tracing::debug!(?change, ?refusal, "change the members a little later");
    }
}

/// What is to change first, so that the members are those that are registered.
fn difference(registry: &Registry, members: &Members) -> Option<Change> {
    let nodes = registry.nodes();
    // Without a registry there is nothing to be guided by.
    if nodes.is_empty() {
        return None;
    }
    let come = nodes.keys().map(|&id| NodeId(id)).find(|id| !members.contains(*id));
    let rise = nodes
        .iter()
        .find(|(id, node)| node.role.votes() && members.learners.contains(&NodeId(**id)));
    let fall = nodes
        .iter()
        .find(|(id, node)| !node.role.votes() && members.voters.contains(&NodeId(**id)));
    let leave = members.all().find(|id| !nodes.contains_key(&id.0));
    // Who comes is counted before who goes.
    come.map(Change::AddLearner)
        .or(rise.map(|(&id, _)| Change::Promote(NodeId(id))))
        .or(fall.map(|(&id, _)| Change::Demote(NodeId(id))))
        .or(leave.map(Change::Remove))
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
        assert_eq!(difference(agreed.registry(), &snapshot.members), None);
        let mut fewer = snapshot.members;
        let lost = fewer.learners.pop_first().unwrap();
        assert_eq!(difference(agreed.registry(), &fewer), Some(Change::AddLearner(lost)));
    }
}
