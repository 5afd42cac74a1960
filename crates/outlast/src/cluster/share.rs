//! What nodes tell each other of what they see, and what the agent's loop and the agreement tell each other.

use std::sync::Arc;
use std::time::Duration;

use outlast_consensus::Term;
use outlast_core::agent::Agreement;
use outlast_core::agreed::{ClientId, Command, Entry, Reply, SideCommand};
use outlast_core::codec::Code as _;
use outlast_core::event::Fact;
use outlast_core::observers::{Report, SAY_EVERY, short};
use outlast_core::time::Instant;
use outlast_link::{Channel, Inbox};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;

use super::agree::proposed;
use super::ask::{Answer, Ask};
use super::thread::{ANSWER_MAX, ASK_EVERY, Hub};
use crate::agent::shared::wall;

/// News that wait for the agent's loop.
pub(super) const NEWS_MAX: usize = 1024;

/// Wishes of the loop that wait.
pub(super) const WISHES_MAX: usize = 256;

/// Questions of the loop to other nodes that are under way.
const ASKED_MAX: usize = 256;

/// How long the loop waits for something to be agreed on.
const DECIDE_MAX: Duration = Duration::from_secs(1);

/// What the cluster's part tells the agent's loop.
#[derive(Debug)]
pub enum News {
    /// For the journal.
    Fact(Fact),
    /// Another node says what it sees.
    Heard { node: String, report: Report },
    /// What is agreed has changed, or who leads.
    Agreed(Agreement),
    /// What became of a decision.
    Answered { command: SideCommand, result: Result<(), String> },
    /// Until when this node may route to pairs, on the clock that counts suspension.
    Lease(Option<Instant>),
    /// Another node asks something of this one.
    Asked(Asked),
}

/// Where the answer to what was asked goes.
pub type Answering = oneshot::Sender<Result<String, String>>;

/// What the agent's loop wants of the others.
#[derive(Debug)]
pub(super) enum Wish {
    /// To be agreed on, as the leader; the answer is among the news.
    Agree(SideCommand),
    /// The leader is to do it.
    Failback { service: String, answer: Answering },
    /// Another node is to obey, within this time.
    Standby { node: String, order: StandbyOrder, limit: Duration, answer: Answering },
}

/// What only the loop can do.
#[derive(Debug)]
pub enum Asked {
    /// For the leader: let a pair return to its primary.
    Failback { service: String, answer: Answering },
    /// For the node on which a backup runs: obey an order of the leader.
    Standby(StandbyOrder, Answering),
}

/// An order about a standby, for the node on which it runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StandbyOrder {
    pub service: String,
    pub epoch: u64,
    /// Stop it; else start or activate it.
    pub stop: bool,
}

impl Hub {
    /// Tells the other nodes what this one sees: at once if it has changed, and every second.
    pub(super) async fn say(self: Arc<Self>) {
        let (mut said, mut databases) = (self.said.clone(), self.shelf.own.clone());
        let mut stuck = self.shelf.stuck.subscribe();
        loop {
            let mut sights = databases.borrow_and_update().sights.clone();
            for (name, why) in stuck.borrow_and_update().iter() {
                sights.entry(name.clone()).or_default().stuck = Some(short(why));
            }
            let report = Report {
                build: crate::VERSION.to_owned(),
                databases: sights,
                ..said.borrow_and_update().clone()
            };
            let bytes = report.to_bytes();
            for node in self.links().peers().into_keys() {
                // Who misses one gets the next.
                self.links().try_send(&node, Channel::Beliefs, bytes.clone()).ok();
            }
            let again = tokio::time::sleep(SAY_EVERY);
            tokio::select! {
                () = again => {}
                Ok(()) = databases.changed() => {}
                Ok(()) = stuck.changed() => {}
                changed = said.changed() => {
                    if changed.is_err() {
                        std::future::pending::<()>().await;
                    }
                }
            }
        }
    }

    /// Hears what the other nodes see.
    pub(super) async fn hear_beliefs(self: Arc<Self>, mut inbox: Inbox) {
        while let Some(incoming) = inbox.next().await {
            match Report::from_bytes(&incoming.bytes) {
                Ok(mut report) => {
                    let node = incoming.from.to_string();
                    self.hear_databases(&node, std::mem::take(&mut report.databases));
                    self.hear_sights(&node, &report);
                    // A loop that is behind has heard enough.
                    self.news.try_send(News::Heard { node, report }).ok();
                }
                Err(error) => {
                    tracing::warn!(node = &*incoming.from, %error, "drop what is no report");
                }
            }
        }
    }

    /// Tells the loop what is agreed, whenever that changes.
    pub(super) async fn tell_agreement(self: Arc<Self>) {
        // A node that has just started applies old entries again. Its data plane may still route by newer ones, so what
        // they say counts once the newest are there.
        while self.catch_up(DECIDE_MAX).await.is_err() {
            tokio::time::sleep(ASK_EVERY).await;
        }
        self.replica.caught_up.send_replace(true);
        let mut agreement = self.replica.agreement.subscribe();
        agreement.mark_changed();
        while agreement.changed().await.is_ok() {
            let now = agreement.borrow_and_update().as_ref().clone();
            if self.news.send(News::Agreed(now)).await.is_err() {
                break;
            }
        }
        std::future::pending::<()>().await;
    }

    /// Does what the loop wishes; what it decides is agreed on in its order.
    pub(super) async fn grant_wishes(self: Arc<Self>, mut wishes: mpsc::Receiver<Wish>) {
        let mut asked = JoinSet::new();
        while let Some(wish) = wishes.recv().await {
            while asked.try_join_next().is_some() {}
            if asked.len() >= ASKED_MAX {
                // One of them has to end first; each has its limit.
                asked.join_next().await;
            }
            match wish {
                Wish::Agree(command) => {
                    let result = self.agree_as_leader(Command::Side(command.clone())).await;
                    if self.news.send(News::Answered { command, result }).await.is_err() {
                        break;
                    }
                }
                Wish::Failback { service, answer } => {
                    let hub = self.clone();
                    asked.spawn(async move {
                        answer.send(hub.ask_leader(Ask::Failback { service }).await).ok();
                    });
                }
                Wish::Standby { node, order, limit, answer } => {
                    let hub = self.clone();
                    asked.spawn(async move {
                        let ask = Ask::Standby(order).to_bytes();
                        answer.send(hub.ask_for(&node, ask, limit).await).ok();
                    });
                }
            }
        }
        std::future::pending::<()>().await;
    }

    async fn ask_leader(&self, ask: Ask) -> Result<String, String> {
        let leader = self.consensus().and_then(|consensus| consensus.standing().borrow().leader);
        let leader = leader.and_then(|leader| self.replica.names().get(&leader.0).cloned());
        let leader = leader.ok_or("no leader has a majority of the voters behind it")?;
        self.ask_for(&leader, ask.to_bytes(), ANSWER_MAX).await
    }

    async fn ask_for(&self, node: &str, ask: Vec<u8>, limit: Duration) -> Result<String, String> {
        let answer = self.links().request(node, ask, limit).await;
        let answer = answer.map_err(|error| format!("ask node `{node}`: {error}"))?;
        match Answer::from_bytes(&answer) {
            Ok(Answer::Told { text }) => Ok(text),
            Ok(Answer::Refused { reason }) => Err(reason),
            Ok(
                Answer::Who(_)
                | Answer::Done { .. }
                | Answer::Index { .. }
                | Answer::NotLeader { .. }
                | Answer::Busy
                | Answer::Unknown
                | Answer::Grants(_),
            ) => Err(format!("node `{node}` could not do it now")),
            Err(error) => Err(format!("node `{node}` answers what is not known here: {error}")),
        }
    }

    /// Nobody else is asked to: who does not lead any more has nothing to decide.
    pub(super) async fn agree_as_leader(&self, command: Command) -> Result<(), String> {
        let consensus = self.consensus().filter(|consensus| consensus.may_act());
        let consensus = consensus.ok_or("this node does not lead")?;
        let term = consensus.standing().borrow().term;
        self.agree_in(term, command).await
    }

    /// The same for what was decided as the leader of this term.
    pub(super) async fn agree_in(&self, term: Term, command: Command) -> Result<(), String> {
        let consensus = self.consensus().ok_or("this node takes no part")?;
        let entry = Entry { origin: ClientId::NOBODY, sequence: 0, wall: wall(), command };
        let proposal = consensus.propose_as_leader(term, entry.to_bytes());
        match tokio::time::timeout(DECIDE_MAX, proposal).await.map(proposed) {
            Ok(Answer::Done { reply: Reply::Refused { why }, .. }) => Err(why.to_string()),
            Ok(Answer::Done { .. }) => Ok(()),
            Ok(Answer::NotLeader { .. }) => Err("another node leads".to_owned()),
            Ok(Answer::Busy) => Err("too much is under way".to_owned()),
            Ok(Answer::Refused { reason }) => Err(reason),
            Ok(
                Answer::Unknown
                | Answer::Who(_)
                | Answer::Index { .. }
                | Answer::Told { .. }
                | Answer::Grants(_),
            )
            | Err(_) => Err("no majority has answered in time".to_owned()),
        }
    }
}
