//! How this node has something agreed on, and makes sure that what it reads is newest, wherever the leader is.

use std::time::Duration;

use outlast_consensus::{Consensus, NodeId, ProposeError, Role};
use outlast_core::agreed::{ClientId, Command, Entry, KvCommand, Refusal, Reply};
use outlast_core::codec::Code as _;
use outlast_link::RequestError;
use tokio::time::Instant;

use super::ask::{Answer, Ask};
use super::found::OWN_KEYS;
use super::thread::{ANSWER_MAX, Hub};
use crate::agent::shared::wall;

/// Between two tries, unless the leader changes before.
const TRY_AGAIN: Duration = Duration::from_millis(10);

/// Who sends commands, so that each takes effect once.
#[derive(Clone, Copy, Debug)]
pub(super) struct Client {
    id: ClientId,
    sequence: u64,
}

/// Why something was not agreed on or read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Failure {
    /// Nothing has happened.
    Unavailable(String),
    /// It may have happened.
    Unknown(String),
}

impl Hub {
    /// Has a command of this node's own agreed on.
    pub(super) async fn write_as_node(&self, command: Command) -> Result<(u64, Reply), Failure> {
        let mut client = self.client.lock().await;
        self.write(&mut client, command, ANSWER_MAX).await
    }

    /// Has a client's command agreed on, once, wherever the leader is.
    pub(super) async fn write(
        &self,
        client: &mut Option<Client>,
        command: Command,
        limit: Duration,
    ) -> Result<(u64, Reply), Failure> {
        let deadline = Instant::now() + limit;
        let was_known = client.is_some();
        let done = self.write_once(client, command.clone(), deadline).await?;
        if was_known && matches!(done.1, Reply::Refused { why: Refusal::Forgotten }) {
            // Many others were introduced since; who is forgotten had nothing done, and begins anew.
            *client = None;
            return self.write_once(client, command, deadline).await;
        }
        Ok(done)
    }

    async fn write_once(
        &self,
        client: &mut Option<Client>,
        command: Command,
        deadline: Instant,
    ) -> Result<(u64, Reply), Failure> {
        let known = match client {
            Some(client) => client,
            None => {
                let introduce = entry(ClientId::NOBODY, 0, Command::Introduce);
                let introduced = self.propose(&introduce, deadline).await;
                // Being introduced twice harms nobody, and the command itself was not sent yet.
                let introduced = introduced.map_err(|failure| match failure {
                    Failure::Unavailable(why) | Failure::Unknown(why) => Failure::Unavailable(why),
                })?;
                match introduced {
                    (_, Reply::Introduced { client: id }) => {
                        client.insert(Client { id: ClientId(id), sequence: 0 })
                    }
                    (_, other) => {
                        return Err(Failure::Unavailable(format!("introduce: {other:?}")));
                    }
                }
            }
        };
        known.sequence += 1;
        self.propose(&entry(known.id, known.sequence, command), deadline).await
    }

    /// Brings an entry to the leader until it is agreed on. The entry carries its number, so it takes effect once.
    pub(super) async fn propose(
        &self,
        entry: &Entry,
        deadline: Instant,
    ) -> Result<(u64, Reply), Failure> {
        let mut sent = false;
        let mut why = "this node takes no part in the cluster yet".to_owned();
        let mut standing = self.consensus().map(Consensus::standing);
        while Instant::now() < deadline {
            if let (Some(consensus), Some(standing)) = (self.consensus(), &mut standing) {
                let (role, leader) = {
                    let now = standing.borrow_and_update();
                    (now.role, now.leader)
                };
                let answer = if role == Role::Leader {
                    let proposal = consensus.propose(entry.to_bytes());
                    match tokio::time::timeout_at(deadline, proposal).await {
                        Ok(result) => proposed(result),
                        Err(_elapsed) => Answer::Unknown,
                    }
                } else {
                    match leader.and_then(|leader| self.replica.names().get(&leader.0).cloned()) {
                        None => Answer::NotLeader { leader: None },
                        Some(name) => {
                            let ask = Ask::Propose { entry: entry.clone() }.to_bytes();
                            self.asked_while_leading(&name, ask, leader, deadline).await
                        }
                    }
                };
                match answer {
                    Answer::Done { index, reply } => return Ok((index, reply)),
                    Answer::Unknown => {
                        sent = true;
                        why = "the leader went while it was under way".to_owned();
                    }
                    Answer::NotLeader { .. } => {
                        why = "no leader has a majority of the voters behind it".to_owned();
                    }
                    Answer::Busy => why = "too much is under way".to_owned(),
                    Answer::Refused { reason } => why = reason,
                    Answer::Who(_) | Answer::Index { .. } | Answer::Told { .. } => {
                        why = "an answer to another question".to_owned();
                    }
                }
                if standing.borrow().failed.is_some() {
                    why = "this node takes no part in the cluster any more".to_owned();
                    break;
                }
                tokio::select! {
                    Ok(()) = standing.changed() => {}
                    () = tokio::time::sleep(TRY_AGAIN) => {}
                }
            } else {
                tokio::time::sleep(TRY_AGAIN).await;
                standing = self.consensus().map(Consensus::standing);
            }
        }
        Err(if sent { Failure::Unknown(why) } else { Failure::Unavailable(why) })
    }

    /// Makes sure that what is applied here has everything that anybody knew of when this was called.
    pub(super) async fn catch_up(&self, limit: Duration) -> Result<u64, Failure> {
        let deadline = Instant::now() + limit;
        let mut why = "this node takes no part in the cluster yet".to_owned();
        while Instant::now() < deadline {
            if let Some(consensus) = self.consensus() {
                let (role, leader) = {
                    let standing = consensus.standing();
                    let now = standing.borrow();
                    (now.role, now.leader)
                };
                let answer = if role == Role::Leader {
                    match tokio::time::timeout_at(deadline, consensus.read()).await {
                        Ok(Ok(index)) => return Ok(index),
                        Ok(Err(error)) => refused(error),
                        Err(_elapsed) => Answer::Busy,
                    }
                } else {
                    match leader.and_then(|leader| self.replica.names().get(&leader.0).cloned()) {
                        None => Answer::NotLeader { leader: None },
                        Some(name) => {
                            let ask = Ask::ReadIndex.to_bytes();
                            self.asked_while_leading(&name, ask, leader, deadline).await
                        }
                    }
                };
                if let Answer::Index { index } = answer {
                    let mut reached = self.replica.reached.subscribe();
                    let here = reached.wait_for(|reached| index <= *reached);
                    if let Ok(Ok(_)) = tokio::time::timeout_at(deadline, here).await {
                        return Ok(index);
                    }
                    why = "this node is behind the leader".to_owned();
                } else {
                    why = "no leader has a majority of the voters behind it".to_owned();
                }
            }
            tokio::time::sleep(TRY_AGAIN).await;
        }
        Err(Failure::Unavailable(why))
    }

    /// Asks the leader; gives up at once when another one leads, because the one that was asked may be out of reach.
    async fn asked_while_leading(
        &self,
        name: &str,
        ask: Vec<u8>,
        leader: Option<NodeId>,
        deadline: Instant,
    ) -> Answer {
        let other = async {
            match self.consensus().map(Consensus::standing) {
                Some(mut standing) => {
                    if standing.wait_for(|now| now.leader != leader).await.is_err() {
                        // This node takes no part any more; the leader may answer all the same.
                        std::future::pending::<()>().await;
                    }
                }
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            answer = self.asked(name, ask, deadline) => answer,
            // What was asked may have been done.
            () = other => Answer::Unknown,
        }
    }

    pub(super) async fn asked(&self, name: &str, ask: Vec<u8>, deadline: Instant) -> Answer {
        let limit = deadline.saturating_duration_since(Instant::now()).min(ANSWER_MAX);
        match self.links().request(name, ask, limit).await {
            Ok(bytes) => Answer::from_bytes(&bytes)
                .unwrap_or_else(|error| Answer::Refused { reason: error.to_string() }),
            Err(RequestError::NotSent(_)) => Answer::NotLeader { leader: None },
            Err(RequestError::Refused(reason)) => Answer::Refused { reason },
            Err(RequestError::Lost | RequestError::Deadline) => Answer::Unknown,
        }
    }
}

fn entry(origin: ClientId, sequence: u64, command: Command) -> Entry {
    Entry { origin, sequence, wall: wall(), command }
}

pub(super) fn proposed(result: Result<outlast_consensus::Applied, ProposeError>) -> Answer {
    match result {
        Ok(applied) => match Reply::from_bytes(&applied.reply) {
            Ok(reply) => Answer::Done { index: applied.index, reply },
            Err(error) => Answer::Refused { reason: error.to_string() },
        },
        Err(error) => refused(error),
    }
}

pub(super) fn refused(error: ProposeError) -> Answer {
    match error {
        ProposeError::NotLeader(leader) => Answer::NotLeader { leader: leader.map(|id| id.0) },
        ProposeError::Busy => Answer::Busy,
        ProposeError::Unknown => Answer::Unknown,
        ProposeError::Stopped => Answer::NotLeader { leader: None },
    }
}

/// Whether people's commands may touch this.
pub(super) fn is_own(command: &Command) -> bool {
    match command {
        Command::Kv(
            KvCommand::Put { key, .. } | KvCommand::Delete { key, .. } | KvCommand::Cas { key, .. },
        ) => key.starts_with(OWN_KEYS),
        Command::Introduce
        | Command::Node(_)
        | Command::Topology(_)
        | Command::Lease(_)
        | Command::Notice(_)
        | Command::Procedure(_)
        | Command::Session(_)
        | Command::Lock(_)
        | Command::Side(_)
        | Command::Record { .. } => false,
    }
}
