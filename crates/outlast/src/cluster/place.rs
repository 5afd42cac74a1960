//! Where this node belongs: it founds a cluster with others, joins one, or waits until it is let in.

use std::collections::BTreeMap;
use std::sync::Arc;

use anyhow::Context as _;
use outlast_consensus::{Consensus, Home, Members, NodeId, Snapshot};
use outlast_core::agreed::Reply;
use outlast_core::codec::Code as _;
use outlast_core::topology::ConsensusKind;
use tokio::task::JoinSet;

use super::agree::Failure;
use super::ask::{Answer, Ask, Who};
use super::duties;
use super::identity::{self, Identity};
use super::replica::Feeder;
use super::thread::{ANSWER_MAX, ASK_EVERY, Hub, Wire};
use super::view::Phase;

impl Hub {
    /// Finds this node's place, then looks after what a leader has to do.
    pub(super) async fn take_part(self: Arc<Self>, home: Option<Home>) {
        if let ConsensusKind::Etcd { endpoints, tls } =
            self.settings.topology.consensus.kind.clone()
        {
            return self.take_part_through_etcd(&endpoints, tls.as_ref()).await;
        }
        let home = match home {
            Some(home) => Ok(home),
            None => self.find_a_place().await,
        };
        if let Err(error) = home.and_then(|home| self.start_consensus(home)) {
            let reason = format!("{error:#}");
            tracing::error!(reason, "take part in the cluster");
            self.set_phase(Phase::Failed { reason });
            return std::future::pending().await;
        }
        self.set_phase(Phase::Running);
        self.show();
        duties::look_after(self).await;
    }

    pub(super) fn start_consensus(self: &Arc<Self>, home: Home) -> anyhow::Result<()> {
        let id = NodeId(self.identity().id.context("the log is there, and the node's id is not")?);
        let feeder = Feeder::new(self.replica.clone());
        let wire = Wire {
            links: self.links().clone(),
            replica: self.replica.clone(),
            heard: self.heard.clone(),
        };
        let settings = outlast_consensus::Settings::new(id);
        let consensus = Consensus::start(&settings, home, feeder, wire).context("start")?;
        self.consensus.set(Box::new(consensus)).ok();
        Ok(())
    }

    /// Asks around until there is a cluster to found or to join.
    pub(super) async fn find_a_place(&self) -> anyhow::Result<Home> {
        loop {
            let answers = self.ask_everybody().await;
            let own = self.settings.node.clone();
            let other =
                answers.iter().find(|(_, who)| !who.joined && who.plan != self.founding.plan);
            if let Some((id, claim)) = joined(&answers) {
                let reason = match id {
                    None => format!(
                        "the cluster does not know this node: on one of its nodes run `outlast node add {own}`"
                    ),
                    Some(id) => match self.take(id, claim).await {
                        // It has promised nothing under this id yet: whoever leads brings it everything.
                        Ok(true) => return self.make_home(id, Snapshot::begin(Members::default())),
                        Ok(false) => format!(
                            "id {id} belongs to a disk that this node no longer has: on another node run \
                             `outlast node replace {own}`"
                        ),
                        Err(failure) => format!("taking id {id} waits: {failure:?}"),
                    },
                };
                self.set_phase(Phase::Joining { reason });
            } else if let Some((peer, Who { plan, .. })) = other {
                self.set_phase(Phase::Joining {
                    reason: format!(
                        "node `{peer}` would found another cluster than this node (plan {plan:x} and {:x}): \
                         give all nodes the same nodes, addresses and voters in the topology file",
                        self.founding.plan
                    ),
                });
            } else {
                let mut tokens = BTreeMap::from([(own.clone(), self.identity().token)]);
                tokens.extend(answers.iter().map(|(name, who)| (name.clone(), who.token)));
                tokens.retain(|name, _| self.founding.voters.contains(name));
                let missing: Vec<String> = self
                    .founding
                    .voters
                    .iter()
                    .filter(|v| !tokens.contains_key(*v))
                    .cloned()
                    .collect();
                if missing.is_empty() && self.founding.founder() == Some(&own) {
                    let (snapshot, ids) = self.founding.begin(&tokens);
                    let id = *ids.get(&own).context("a founder has an id")?;
                    return self.make_home(id, snapshot);
                }
                self.set_phase(Phase::Founding { missing });
            }
            self.show();
            tokio::time::sleep(ASK_EVERY).await;
        }
    }

    /// Whether this disk has the id, or can have it.
    pub(super) async fn take(&self, id: u64, claim: Option<u64>) -> Result<bool, Failure> {
        match claim {
            Some(token) => Ok(token == self.identity().token),
            None => self.claim(id).await,
        }
    }

    pub(super) fn make_home(&self, id: u64, begin: Snapshot) -> anyhow::Result<Home> {
        let home = Home::create(&identity::dir(&self.settings.data_dir), begin);
        let home = home.context("make the log")?;
        // Last: a log without an id has never been used.
        let identity = Identity { id: Some(id), ..self.identity() };
        identity::save(&self.settings.data_dir, &identity)?;
        *self.identity.lock().expect("no panic while held") = identity;
        Ok(home)
    }

    pub(super) async fn ask_everybody(&self) -> BTreeMap<String, Who> {
        let ask = Ask::WhoAreYou { plan: self.founding.plan }.to_bytes();
        let mut asked = JoinSet::new();
        for name in self.links().peers().into_keys() {
            let (links, ask) = (self.links().clone(), ask.clone());
            asked.spawn(async move {
                let answer = links.request(&name, ask, ANSWER_MAX).await.ok()?;
                match Answer::from_bytes(&answer) {
                    Ok(Answer::Who(who)) => Some((name, who)),
                    Ok(
                        Answer::Done { .. }
                        | Answer::Index { .. }
                        | Answer::NotLeader { .. }
                        | Answer::Busy
                        | Answer::Unknown
                        | Answer::Refused { .. }
                        | Answer::Told { .. }
                        | Answer::Grants(_),
                    )
                    | Err(_) => None,
                }
            });
        }
        asked.join_all().await.into_iter().flatten().collect()
    }

    /// Takes an id for this disk. False: another disk has it.
    pub(super) async fn claim(&self, id: u64) -> Result<bool, Failure> {
        let ask = Ask::Claim { id, token: self.identity().token }.to_bytes();
        let mut failure = Failure::Unavailable("nobody answers".to_owned());
        for name in self.links().peers().into_keys() {
            let Ok(bytes) = self.links().request(&name, ask.clone(), ANSWER_MAX * 2).await else {
                continue;
            };
            match Answer::from_bytes(&bytes) {
                Ok(Answer::Done { reply: Reply::Written { .. }, .. }) => return Ok(true),
                Ok(Answer::Done { .. }) => return Ok(false),
                Ok(other) => failure = Failure::Unavailable(format!("{name} says {other:?}")),
                Err(error) => failure = Failure::Unavailable(format!("{name}: {error}")),
            }
        }
        Err(failure)
    }
}

/// Somebody who has a log already, and the id that we have there.
fn joined(answers: &BTreeMap<String, Who>) -> Option<(Option<u64>, Option<u64>)> {
    let joined = answers.values().filter(|who| who.joined);
    // Who knows more of us is further: ids and claims only come.
    joined.map(|who| (who.your_id, who.your_claim)).max()
}
